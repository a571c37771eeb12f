//! Files that are something else than a configuration of ours.
//!
//! Owns telling what a file looks like, so that one sentence names it in place of a complaint about
//! each of its lines, or of silence: a file of another program can be good INI in which nothing is
//! a watcher. Knows no key.
//! Invariant: a file with a section of ours is never foreign.

use crate::known;

/// Sections that only supervisord has.
const SUPERVISORD: [&str; 8] = [
    "program",
    "group",
    "eventlistener",
    "fcgi-program",
    "supervisord",
    "supervisorctl",
    "unix_http_server",
    "inet_http_server",
];

/// Sections of systemd's units.
const SYSTEMD: [&str; 7] = [
    "Unit", "Service", "Install", "Socket", "Timer", "Path", "Mount",
];

/// So many bytes that no text has are mistakes in a text.
const FEW_BYTES: usize = 8;

/// What `bytes` look like; none if they may be a configuration of ours, or nothing at all.
#[must_use]
pub fn looks_like(bytes: &[u8]) -> Option<String> {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes {
        return Some("it is text in UTF-16, expected UTF-8".to_owned());
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        // One odd byte in a text is a mistake of its line.
        let odd = bytes.iter().filter(|byte| is_binary(**byte)).count();
        if line == 1 || odd > FEW_BYTES.max(bytes.len() / 64) {
            return Some("it is no text".to_owned());
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with(['#', ';']))
        .collect();
    let sections: Vec<&str> = lines.iter().filter_map(|line| section(line)).collect();
    if sections.iter().any(|name| is_ours(name)) {
        return None;
    }
    kind(&text, &lines, &sections).map(|kind| format!("it looks like {kind}"))
}

fn is_binary(byte: u8) -> bool {
    byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t' | 0x0c | 0x1b)
}

/// The name in a section's header.
fn section(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('[')?;
    Some(&rest[..rest.find(']')?])
}

fn is_ours(section: &str) -> bool {
    let kind = section.split(':').next().unwrap_or_default();
    // A misspelt one is meant to be ours, too.
    section == "DEFAULT" || known::nearest(known::SECTIONS, kind.trim()).is_some()
}

fn kind(text: &str, lines: &[&str], sections: &[&str]) -> Option<&'static str> {
    let kinds = |names: &[&str]| {
        sections
            .iter()
            .any(|section| names.contains(&section.split(':').next().unwrap_or_default()))
    };
    let first = lines.first()?.trim_start();
    if text.starts_with("#!") {
        return Some("a script");
    }
    if kinds(&SUPERVISORD) {
        return Some(
            "a configuration of supervisord: [program:NAME] is [watcher:NAME] here, its command is cmd",
        );
    }
    if kinds(&SYSTEMD) {
        return Some("a unit of systemd: a service is [watcher:NAME] here, its ExecStart is cmd");
    }
    if kinds(&["uwsgi"]) {
        return Some(
            "a configuration of uWSGI: it goes into a watcher's command, cmd = uwsgi --ini FILE",
        );
    }
    if first.starts_with('{') || (is_json_array(first) && sections.is_empty()) {
        return Some("JSON");
    }
    if first.starts_with('<') {
        return Some("XML");
    }
    if ["module.exports", "export default", "import ", "const "]
        .iter()
        .any(|start| lines.iter().any(|line| line.starts_with(start)))
        && sections.is_empty()
    {
        return Some("a program, such as pm2's ecosystem file");
    }
    if is_toml(lines, sections) {
        return Some("TOML");
    }
    if sections.is_empty() {
        return plain_kind(lines);
    }
    None
}

/// The header of a section that was cut off begins like one.
fn is_json_array(first: &str) -> bool {
    first.strip_prefix('[').is_some_and(|rest| {
        let rest = rest.trim_start();
        rest.is_empty() || rest.starts_with(['{', '[', '"', ']'])
    })
}

fn is_toml(lines: &[&str], sections: &[&str]) -> bool {
    let typed = |line: &&&str| {
        let value = line.split_once('=').map(|(_, value)| value.trim());
        value.is_some_and(|value| {
            (value.len() > 1 && value.starts_with('"') && value.ends_with('"'))
                || value.starts_with('[')
        })
    };
    lines.iter().any(|line| line.starts_with("[["))
        || lines.iter().filter(typed).count() * 2 > lines.len() - sections.len().min(lines.len())
}

/// What has no sections at all.
fn plain_kind(lines: &[&str]) -> Option<&'static str> {
    let starts = |word: &str| lines.iter().any(|line| line.starts_with(word));
    if starts("services:") {
        return Some("a file of docker-compose");
    }
    if starts("processes:") {
        return Some("a file of process-compose");
    }
    let key_alone = |line: &&str| {
        let line = line.trim_end();
        line.ends_with(':') && !line.contains([' ', '=']) || line.starts_with("- ")
    };
    if lines[0] == "---" || lines.iter().any(key_alone) {
        return Some("YAML");
    }
    let process = |line: &&str| {
        line.split_once(": ").is_some_and(|(name, command)| {
            !command.trim().is_empty()
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        })
    };
    lines
        .iter()
        .all(process)
        .then_some("a Procfile: NAME: COMMAND is [watcher:NAME] and cmd = COMMAND here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_programs_are_named() {
        for (text, expected) in [
            (
                "[supervisord]\nnodaemon=true\n[program:web]\ncommand=x",
                "supervisord",
            ),
            ("; c\n[program:web]\ncommand=x", "supervisord"),
            (
                "[Unit]\nDescription=x\n[Service]\nExecStart=/bin/x",
                "systemd",
            ),
            ("[uwsgi]\nmaster = true", "uWSGI"),
            ("title = \"x\"\n[tool.x]\na = \"b\"", "TOML"),
            ("[[process]]\nname = 1", "TOML"),
            ("{\n  \"apps\": []\n}", "JSON"),
            ("[\n  {\"a\": 1}\n]", "JSON"),
            ("[{\"a\": 1}\n]", "JSON"),
            ("services:\n  web:\n    image: x", "docker-compose"),
            (
                "version: \"0.5\"\nprocesses:\n  a:\n    command: x",
                "process-compose",
            ),
            ("---\na: 1", "YAML"),
            ("a:\n  - b", "YAML"),
            ("web: gunicorn x:app\nworker: python w.py", "Procfile"),
            ("#!/bin/sh\necho", "script"),
            ("module.exports = {\n  apps: []\n}", "pm2"),
            ("<?xml?>\n<plist>", "XML"),
            ("\u{7f}ELF\u{2}\0\0\0\0", "no text"),
        ] {
            let found = looks_like(text.as_bytes());
            assert!(
                found
                    .as_deref()
                    .is_some_and(|found| found.contains(expected)),
                "{text:?}: {found:?}"
            );
        }
        assert!(looks_like(b"\xff\xfe[\0c\0").unwrap().contains("UTF-16"));
    }

    #[test]
    fn files_that_may_be_ours_are_left_alone() {
        for text in [
            "",
            "# only this",
            "[circus]\n",
            "[watcher:a]\ncmd = \"x\"\n[program:b]\ncommand = y",
            "[wacher:a]\ncmd = \"x\"",
            "[env]\nA = \"b\"\nC = \"d\"",
            "[DEFAULT]\na = \"b\"",
            "[watc",
            "[something]\nkey = value",
            "[circus]\nl = a\0b",
        ] {
            assert_eq!(looks_like(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = looks_like(&bytes);
        }
    }
}
