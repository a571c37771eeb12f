//! `papactl stats` and `dstats`: CPU and memory, one line for each process, children below their
//! parents.

use std::fmt::Write;

use papa_system::printable::printable;
use serde_json::{Map, Value, json};

use crate::cli::Common;
use crate::cli::args::StatsArgs;
use crate::commands::{CommandError, connect, meant, print, print_json, table, with_ok};
use papa_control::client::ManagerClient;
use papa_control::message::{Command, Request};

/// What stands above the columns.
const HEADER: &str = "PID      CPU%   MEM%     RSS    VIRT       TIME  NI USER      COMMAND";

/// Runs `stats`.
pub(super) fn run(common: &Common, args: &StatsArgs) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let (names, pid) = meant::names_and_pid(&args.words);
    if names.is_empty() {
        let command = Command::Stats {
            name: None,
            process: None,
            extended: args.extended,
        };
        let reply = ask(common, &mut client, command)?;
        if common.json {
            return print_json(&with_ok(reply));
        }
        let none = Map::new();
        let watchers = reply.get("infos").and_then(Value::as_object);
        return print(&table_of(watchers.unwrap_or(&none)));
    }
    let targets = meant::targets(common, &mut client, names)?;
    let several = targets.len() > 1;
    let mut infos = Map::new();
    for target in targets {
        let command = Command::Stats {
            name: Some(target.watcher.clone()),
            process: target.worker.map(|worker| worker.pid).or(pid),
            extended: args.extended,
        };
        let reply = ask(common, &mut client, command)?;
        if common.json && !several {
            return print_json(&with_ok(reply));
        }
        let info = reply.get("info").cloned().unwrap_or_default();
        // Of one worker the information comes without its pid around it.
        let processes = match reply.get("process") {
            Some(pid) => json!({ plain(pid): info }),
            None => info,
        };
        let known = infos
            .entry(target.watcher)
            .or_insert_with(|| Map::new().into());
        if let (Some(known), Value::Object(processes)) = (known.as_object_mut(), processes) {
            known.extend(processes);
        }
    }
    if common.json {
        return print_json(&with_ok(json!({ "infos": infos })));
    }
    print(&table_of(&infos))
}

/// Runs `dstats`.
pub(super) fn run_manager(common: &Common) -> Result<(), CommandError> {
    let reply = ask(common, &mut connect(common)?, Command::DStats)?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    let mut text = format!("{}\n", table::fitted(HEADER));
    let info = reply.get("info").unwrap_or(&Value::Null);
    process(&mut text, "?", info, 0);
    print(&text)
}

fn ask(
    common: &Common,
    client: &mut ManagerClient,
    command: Command,
) -> Result<Map<String, Value>, CommandError> {
    Ok(client.ask(&Request::waiting(command), common.timeout())?)
}

fn table_of(watchers: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (name, processes) in watchers {
        group(&mut text, name, processes);
    }
    if text.is_empty() {
        return "no watchers\n".to_owned();
    }
    format!("{}\n{text}", table::fitted(HEADER))
}

fn group(text: &mut String, name: &str, processes: &Value) {
    let _ = writeln!(text, "{}:", printable(name));
    let mut numbered: Vec<(u64, &String, &Value)> = processes
        .as_object()
        .into_iter()
        .flatten()
        .map(|(pid, info)| (pid.parse().unwrap_or(u64::MAX), pid, info))
        .collect();
    if numbered.is_empty() {
        let _ = writeln!(text, "no workers");
    }
    numbered.sort_by_key(|(number, ..)| *number);
    for (_, pid, info) in numbered {
        process(text, pid, info, 0);
    }
}

/// A process and, indented below it, its children.
fn process(text: &mut String, pid: &str, info: &Value, depth: usize) {
    if info.is_object() {
        let pid = format!("{:1$}{2}", "", 2 * depth, plain(&info["pid"]));
        let value = |name: &str| plain(&info[name]);
        let line = format!(
            "{pid:8} {:>4} {:>6} {:>7} {:>7} {:>10} {:>3} {:9} {}",
            value("cpu"),
            value("mem"),
            value("mem_info1"),
            value("mem_info2"),
            value("ctime"),
            value("nice"),
            value("username"),
            value("cmdline"),
        );
        let _ = writeln!(text, "{}", table::fitted(line.trim_end()));
    } else {
        // A process that went meanwhile is a text.
        let _ = writeln!(text, "{:8} {}", printable(pid), plain(info));
    }
    for child in info["children"].as_array().into_iter().flatten() {
        process(text, "?", child, depth + 1);
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
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
            format!("{HEADER}\n{text}"),
            "\
PID      CPU%   MEM%     RSS    VIRT       TIME  NI USER      COMMAND
web:
9         0.5  0.125     12B   1.50M    0:00.10   0 root      a b
  11      0.5  0.125     12B   1.50M    0:00.10   0 root      a b
10       No such process (stopped?)
"
        );
        assert_eq!(table_of(&Map::new()), "no watchers\n");
    }
}
