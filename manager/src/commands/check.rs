//! `papactl check`: reads an INI file and reports every mistake in it; starts nothing.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::cli::Common;
use crate::cli::args::CheckArgs;
use crate::commands::{CommandError, note, print, print_json, table};
use crate::config::{self, Config, Problem, Surroundings};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &CheckArgs) -> Result<(), CommandError> {
    let around = Surroundings::current()?;
    let config = match config::load(&args.file, &around) {
        Ok(config) => config,
        Err(errors) => {
            if !common.json {
                print_warnings(&errors.warnings, usize::MAX);
            }
            return Err(errors.into());
        }
    };
    if common.json {
        return print_json(&json!({
            "status": "ok",
            "namespace": config.namespace,
            "watchers": config.watchers.iter().map(|watcher| &watcher.name).collect::<Vec<_>>(),
            "sockets": config.sockets.iter().map(|socket| &socket.name).collect::<Vec<_>>(),
            "plugins": config.plugins.iter().map(|plugin| &plugin.name).collect::<Vec<_>>(),
            "warnings": problems(&config.warnings),
        }));
    }
    print_warnings(&config.warnings, usize::MAX);
    print(&summary(&config))
}

/// Problems as JSON.
pub(super) fn problems(problems: &[Problem]) -> Value {
    problems
        .iter()
        .map(|problem| {
            json!({
                "file": problem.origin.file().to_string_lossy(),
                "line": problem.origin.line(),
                "column": problem.origin.column(),
                "message": problem.message,
            })
        })
        .collect()
}

/// The first `most` warnings on standard error.
pub(super) fn print_warnings(warnings: &[Problem], most: usize) {
    for warning in warnings.iter().take(most) {
        note(&format!(
            "warning: {}",
            table::printable(&warning.to_string())
        ));
    }
    if warnings.len() > most {
        note(&format!(
            "warning: and {} more; `papactl check FILE` shows all",
            warnings.len() - most
        ));
    }
}

fn summary(config: &Config) -> String {
    let mut text = format!(
        "{}: no mistakes; {}, {}\n",
        table::printable(&config.path.to_string_lossy()),
        count(config.watchers.len(), "watcher"),
        count(config.sockets.len(), "socket"),
    );
    let width = config
        .watchers
        .iter()
        .map(|watcher| watcher.name.chars().count())
        .max();
    for watcher in &config.watchers {
        let line = format!(
            "  {:width$}  {:>3} x {}",
            table::printable(&watcher.name),
            watcher.numprocesses,
            table::printable(&watcher.argv_template.join(" ")),
            width = width.unwrap_or(0),
        );
        let _ = writeln!(text, "{}", table::shortened(&line));
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
