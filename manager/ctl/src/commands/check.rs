//! `papactl check`: reads an INI file and reports every mistake in it; starts nothing.

use std::fmt::Write;
use std::io::IsTerminal;

use papa_system::printable::printable;
use serde_json::{Value, json};

use crate::cli::Common;
use crate::cli::args::CheckArgs;
use crate::commands::{CommandError, note, print, print_json, table};
use papa_config::{self as config, Config, ConfigErrors, Problem, Surroundings, inspect};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &CheckArgs) -> Result<(), CommandError> {
    let around = Surroundings::current()?;
    let read = config::load(&args.file, &around).and_then(|config| {
        config.require_watchers(&args.file)?;
        Ok(config)
    });
    let mut config = match read {
        Ok(config) => config,
        Err(errors) => {
            if common.json {
                return Err(errors.into());
            }
            print_findings(&errors.errors, &errors.warnings);
            return Err(CommandError::Checked);
        }
    };
    config.warnings.extend(inspect::missing(&config));
    let refused = args.strict && !config.warnings.is_empty();
    if common.json {
        print_json(&json!({
            "status": if refused { "error" } else { "ok" },
            "namespace": config.namespace,
            "watchers": config.watchers.iter().map(|watcher| &watcher.name).collect::<Vec<_>>(),
            "sockets": config.sockets.iter().map(|socket| &socket.name).collect::<Vec<_>>(),
            "plugins": config.plugins.iter().map(|plugin| &plugin.name).collect::<Vec<_>>(),
            "warnings": problems(&config.warnings),
        }))?;
    } else {
        print_findings(&[], &config.warnings);
        print(&summary(&config))?;
    }
    if refused {
        return Err(CommandError::Checked);
    }
    Ok(())
}

/// Mistakes and warnings in the order of the file, on standard error; then how many.
fn print_findings(errors: &[Problem], warnings: &[Problem]) {
    let errors = errors.iter().map(|problem| (problem, "error"));
    let mut findings: Vec<_> = errors
        .chain(warnings.iter().map(|problem| (problem, "warning")))
        .collect();
    // A stable sort: the files' own order, one after another.
    findings.sort_by_key(|(problem, _)| {
        let origin = &problem.origin;
        (origin.file(), origin.line(), origin.column())
    });
    for (problem, kind) in &findings {
        note_finding(&problem.labelled(kind));
    }
    let mistakes = findings.iter().filter(|(_, kind)| *kind == "error").count();
    if mistakes > 0 {
        note(&format!(
            "papactl: {}, {}; nothing would be started",
            count(mistakes, "mistake"),
            count(findings.len() - mistakes, "warning"),
        ));
    }
}

/// One finding on standard error, broken to the width of a terminal.
pub(super) fn note_finding(text: &str) {
    let columns = std::io::stderr().is_terminal().then_some(table::COLUMNS);
    note(&wrapped(&printable(text), columns));
}

/// Every mistake of a file that was to be used, on standard error; then how many.
pub(super) fn print_errors(errors: &ConfigErrors) {
    for problem in &errors.errors {
        note_finding(&problem.labelled("error"));
    }
    note(&format!(
        "papactl: {} in {}; nothing was done",
        count(errors.errors.len(), "mistake"),
        printable(&errors.path.to_string_lossy()),
    ));
}

/// Broken between words at `columns`, what follows indented; in a pipe one line stays one line, for
/// editors and grep.
fn wrapped(text: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else {
        return text.to_owned();
    };
    let mut lines = String::new();
    let mut width = 0;
    for (index, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && width + 1 + length > columns {
            lines.push_str("\n    ");
            width = 4;
        } else if index > 0 {
            lines.push(' ');
            width += 1;
        }
        lines.push_str(word);
        width += length;
    }
    lines
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
        note_finding(&warning.labelled("warning"));
    }
    if warnings.len() > most {
        note(&format!(
            "papactl: {} more; `papactl check FILE` shows all",
            count(warnings.len() - most, "warning")
        ));
    }
}

fn summary(config: &Config) -> String {
    let mut text = format!(
        "{}: {}; {}, {}\n",
        printable(&config.path.to_string_lossy()),
        match config.warnings.len() {
            0 => "no mistakes".to_owned(),
            number => format!("no mistakes, {}", count(number, "warning")),
        },
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
            printable(&watcher.name),
            watcher.numprocesses,
            printable(&watcher.argv_template.join(" ")),
            width = width.unwrap_or(0),
        );
        let _ = writeln!(text, "{}", table::shortened(&line));
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_findings_are_broken_between_words_on_a_terminal_only() {
        let text = "f.ini:1:2: error: one two three";
        assert_eq!(wrapped(text, None), text);
        assert_eq!(
            wrapped(text, Some(20)),
            "f.ini:1:2: error:\n    one two three"
        );
        assert_eq!(
            wrapped("averyveryverylongword x", Some(8)),
            "averyveryverylongword\n    x"
        );
    }
}
