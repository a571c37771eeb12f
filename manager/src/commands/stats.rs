//! `papactl stats` and `dstats`: CPU and memory, in circusctl's lines.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::args::StatsArgs;
use crate::commands::{CommandError, connect, print, print_json, table, with_ok};
use crate::control::message::{Command, Request};

/// The columns after the pid, in order.
const COLUMNS: [&str; 9] = [
    "pid",
    "cmdline",
    "username",
    "nice",
    "mem_info1",
    "mem_info2",
    "cpu",
    "mem",
    "ctime",
];

/// Runs `stats`.
pub(super) fn run(common: &Common, args: &StatsArgs) -> Result<(), CommandError> {
    let command = Command::Stats {
        name: args.name.clone(),
        process: args.pid,
        extended: args.extended,
    };
    let reply = ask(common, command)?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    let mut text = String::new();
    if let Some(watchers) = reply.get("infos").and_then(Value::as_object) {
        for (name, processes) in watchers {
            group(&mut text, name, processes);
        }
    } else if let Some(pid) = reply.get("process") {
        let none = Value::Null;
        process(
            &mut text,
            &pid.to_string(),
            reply.get("info").unwrap_or(&none),
            0,
        );
    } else {
        let name = reply.get("name").and_then(Value::as_str).unwrap_or("?");
        group(&mut text, name, reply.get("info").unwrap_or(&Value::Null));
    }
    print(&text)
}

/// Runs `dstats`.
pub(super) fn run_manager(common: &Common) -> Result<(), CommandError> {
    let reply = ask(common, Command::DStats)?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    let mut text = "Main Process:\n".to_owned();
    let info = reply.get("info").unwrap_or(&Value::Null);
    let _ = writeln!(text, "    {}", row(info));
    children(&mut text, info, 4);
    print(&text)
}

fn ask(common: &Common, command: Command) -> Result<Map<String, Value>, CommandError> {
    Ok(connect(common)?.ask(&Request::waiting(command), common.timeout())?)
}

fn group(text: &mut String, name: &str, processes: &Value) {
    let _ = writeln!(text, "{}:", table::printable(name));
    let mut numbered: Vec<(u64, &String, &Value)> = processes
        .as_object()
        .into_iter()
        .flatten()
        .map(|(pid, info)| (pid.parse().unwrap_or(u64::MAX), pid, info))
        .collect();
    numbered.sort_by_key(|(number, ..)| *number);
    for (_, pid, info) in numbered {
        process(text, pid, info, 0);
    }
}

fn process(text: &mut String, pid: &str, info: &Value, indent: usize) {
    let _ = writeln!(
        text,
        "{:indent$}{}: {}",
        "",
        table::printable(pid),
        row(info)
    );
    children(text, info, indent + 3);
}

fn children(text: &mut String, info: &Value, indent: usize) {
    for child in info["children"].as_array().into_iter().flatten() {
        process(text, &plain(&child["pid"]), child, indent);
    }
}

fn row(info: &Value) -> String {
    if !info.is_object() {
        // A process that went meanwhile is a text.
        return plain(info);
    }
    let mut row = String::new();
    for (index, column) in COLUMNS.iter().enumerate() {
        // Two spaces after the pid, as circusctl had it.
        row.push_str(["", "  ", " "][index.min(2)]);
        row.push_str(&plain(&info[*column]));
    }
    row
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => table::printable(text),
        Value::Null => "N/A".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn processes_are_listed_with_their_children() {
        let info = |pid: u32, children: Value| {
            json!({"pid": pid, "cmdline": "a b", "username": "root", "nice": 0, "mem_info1": "12B",
                "mem_info2": "1.50M", "cpu": 0.5, "mem": 0.125, "ctime": "0:00.10", "children": children})
        };
        let processes =
            json!({"10": "No such process (stopped?)", "9": info(9, json!([info(11, json!([]))]))});
        let mut text = String::new();
        group(&mut text, "web", &processes);
        assert_eq!(
            text,
            "web:\n9: 9  a b root 0 12B 1.50M 0.5 0.125 0:00.10\n   11: 11  a b root 0 12B 1.50M 0.5 0.125 0:00.10\n10: No such process (stopped?)\n"
        );
    }
}
