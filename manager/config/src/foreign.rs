//! Recognises files that belong to other programs.
//!
//! Owns the recognition, so that one sentence names the kind of file. Otherwise each of its lines
//! would be an error, or none: another program's file can be valid INI without a watcher. Knows no
//! key.
//! Invariant: a file with one of our sections is never foreign.

use std::path::Path;

use crate::known;

/// Sections that only supervisord has.
const SUPERVISORD: [&str; 10] = [
    "include",
    "rpcinterface",
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
const SYSTEMD: [&str; 14] = [
    "Unit",
    "Service",
    "Install",
    "Socket",
    "Timer",
    "Path",
    "Mount",
    "Automount",
    "Swap",
    "Slice",
    "Scope",
    "Container",
    "Pod",
    "Kube",
];

const SCRIPT: &str = "a script";
const PROGRAM: &str = "a program, such as pm2's ecosystem file";
const PYTHON: &str =
    "a program in Python; settings of gunicorn go into a watcher's command, cmd = gunicorn -c FILE";
const YAML: &str = "YAML";
const PROCFILE: &str = "a Procfile: NAME: COMMAND is [watcher:NAME] and cmd = COMMAND here";

/// Kinds of files that are recognised by their names only.
const EXTENSIONS: [(&str, &str); 11] = [
    ("yaml", YAML),
    ("yml", YAML),
    ("toml", "TOML"),
    ("json", "JSON"),
    ("js", PROGRAM),
    ("cjs", PROGRAM),
    ("mjs", PROGRAM),
    ("ts", PROGRAM),
    ("py", PYTHON),
    ("sh", SCRIPT),
    ("rb", SCRIPT),
];

/// What begins a line of a crontab in place of five fields.
const CRON_WORDS: [&str; 8] = [
    "@reboot",
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@midnight",
    "@hourly",
];

/// Up to this many bytes that no text has count as mistakes in a text.
const FEW_BYTES: usize = 8;

/// What `bytes`, read from `path`, look like; none if they may be a configuration of ours, or
/// nothing at all.
#[must_use]
pub fn looks_like(path: &Path, bytes: &[u8]) -> Option<String> {
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
    if sections.is_empty() && (std::str::from_utf8(bytes).is_err() || text.starts_with("%PDF")) {
        return Some("it is no text".to_owned());
    }
    let named = by_name(path, &lines);
    kind(&text, &lines, &sections)
        // Two words with a colon between them are YAML as well.
        .filter(|kind| *kind != PROCFILE || named.is_none())
        .or(named)
        .map(|kind| format!("it looks like {kind}"))
}

/// What the name says of a file that has something in it.
fn by_name(path: &Path, lines: &[&str]) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    let mut known = EXTENSIONS.iter();
    let (_, kind) = known.find(|(known, _)| *known == extension)?;
    (!lines.is_empty()).then_some(*kind)
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
        return Some(SCRIPT);
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
    if sections.is_empty() && is_python(lines) {
        return Some(PYTHON);
    }
    if sections.is_empty() && is_javascript(lines) {
        return Some(PROGRAM);
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

fn is_python(lines: &[&str]) -> bool {
    lines.iter().any(|line| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("from"), Some(_), Some("import")) => true,
            (Some("import"), Some(name), None) => !name.contains(['"', '\'']),
            _ => false,
        }
    })
}

fn is_javascript(lines: &[&str]) -> bool {
    let starts = [
        "module.exports",
        "exports.",
        "export ",
        "import ",
        "const ",
        "let ",
        "//",
        "/*",
        "'use strict'",
        "\"use strict\"",
    ];
    // A shell, and files of variables, export without braces.
    let is_code = |line: &&str| {
        starts.iter().any(|start| line.starts_with(start))
            && (!line.starts_with("export ") || line.contains(['{', '(', '[', ';']))
    };
    lines.iter().any(is_code)
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
    if lines.iter().any(|line| is_job(line)) {
        return Some("a crontab: programs run on here; what runs at a time of day stays with cron");
    }
    if lines[0] == "---" || lines.iter().any(key_alone) {
        return Some(YAML);
    }
    if lines.iter().all(|line| is_variable(line)) {
        return Some("a file of environment variables: they go below [env] or [env:NAME] here");
    }
    if lines[0].starts_with("FROM ") {
        return Some("a Dockerfile: its CMD is cmd in [watcher:NAME] here");
    }
    if lines.iter().any(|line| line.trim_end().ends_with('{')) {
        return Some("a file with blocks in braces");
    }
    let process = |line: &&str| {
        line.split_once(": ").is_some_and(|(name, command)| {
            !command.trim().is_empty()
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        })
    };
    lines.iter().all(process).then_some(PROCFILE)
}

/// A line of a crontab: when, and a command.
fn is_job(line: &str) -> bool {
    let mut words = line.split_whitespace();
    if words
        .clone()
        .next()
        .is_some_and(|word| CRON_WORDS.contains(&word))
    {
        return words.count() > 1;
    }
    let is_when = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit() || c == '*')
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '*' | '/' | '-' | ','))
    };
    words.by_ref().take(5).filter(|word| is_when(word)).count() == 5 && words.next().is_some()
}

/// `NAME=VALUE` as shells and Compose read it; lower-case names are more likely keys that lost
/// their section.
fn is_variable(line: &str) -> bool {
    let line = line.strip_prefix("export ").unwrap_or(line);
    line.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks_like(bytes: &[u8]) -> Option<String> {
        super::looks_like(Path::new("x.ini"), bytes)
    }

    #[test]
    fn files_of_other_programs_were_taken_for_broken_ini() {
        for (text, expected) in [
            (
                "# env\nDATABASE_URL=postgres://x\nexport SECRET=1",
                "environment variables",
            ),
            ("A=1\nB=\"two\"", "environment variables"),
            ("SHELL=/bin/sh\n17 *\t* * *\troot run-parts", "crontab"),
            ("@reboot /x", "crontab"),
            ("// pm2\nexports.apps = [ { name: 'x' } ];", "pm2"),
            ("'use strict';\nvar apps = [];", "pm2"),
            ("export const apps = [];", "pm2"),
            ("import os\nprint(1)", "Python"),
            ("from x import y\n\nworkers = 3", "Python"),
            ("FROM alpine\nRUN x", "Dockerfile"),
            ("server {\n  listen 80;\n}", "braces"),
            (
                "[include]\nfiles = /etc/supervisor/conf.d/*.conf",
                "supervisord",
            ),
            ("[Container]\nImage=x", "systemd"),
            ("%PDF-1.4\n", "no text"),
        ] {
            let found = looks_like(text.as_bytes());
            assert!(
                found
                    .as_deref()
                    .is_some_and(|found| found.contains(expected)),
                "{text:?}: {found:?}"
            );
        }
        assert!(
            looks_like(b"\x1f\x8b\x08\x01abc")
                .unwrap()
                .contains("no text")
        );
        for (name, text, expected) in [
            ("a.yaml", "a: b\nc: d e", "YAML"),
            ("x.toml", "[process.web]\ncmd = \"x\"\nport = 80", "TOML"),
            (
                "gunicorn.conf.py",
                "bind = \"0.0.0.0:80\"\nworkers = 3",
                "Python",
            ),
            ("run.sh", "set -e\nexec gunicorn", "script"),
        ] {
            let found = super::looks_like(Path::new(name), text.as_bytes());
            assert!(
                found
                    .as_deref()
                    .is_some_and(|found| found.contains(expected)),
                "{name}: {found:?}"
            );
        }
    }

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
