//! Suggestions; the tables against the reader of values and against the reference page.

use super::*;
use crate::types::StreamClass;

#[test]
fn misspelt_keys_are_recognised() {
    assert_eq!(suggestion(WATCHER, "numproceses"), Some("numprocesses"));
    assert_eq!(suggestion(WATCHER, "Numprocesses"), Some("numprocesses"));
    assert_eq!(suggestion(WATCHER, "cdm"), Some("cmd"));
    assert_eq!(suggestion(WATCHER, "active"), None);
    assert_eq!(suggestion(WATCHER, "stats_base_port"), None);
    assert_eq!(nearest(SECTIONS, "wacher"), Some("watcher"));
}

/// One key without the type of its section.
struct Row {
    name: &'static str,
    default: Initial,
    meaning: &'static str,
    example: &'static str,
}

/// A table, the section of the reference page it stands in, and what is written there.
struct Table {
    section: &'static str,
    rows: Vec<Row>,
    page: String,
}

fn table<S>(section: &'static str, table: &[Key<S>]) -> Table {
    let rows = table.iter().map(|key| Row {
        name: key.name,
        default: key.default,
        meaning: key.meaning,
        example: key.example,
    });
    Table {
        section,
        rows: rows.collect(),
        page: markdown(table),
    }
}

fn tables() -> [Table; 6] {
    [
        table("circus", CIRCUS),
        table("watcher", WATCHER),
        table("stream", STREAM),
        table("socket", SOCKET),
        table("plugin", PLUGIN),
        table("flapping", FLAPPING),
    ]
}

#[test]
fn the_first_page_names_the_rust_that_is_needed() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md"));
    let page = page.unwrap();
    let said = page.lines().find(|line| line.contains("`rust-version`"));
    let needed = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " ");
    assert!(said.unwrap().contains(needed), "{said:?}: {needed}");
}

#[test]
fn the_reference_page_is_equal_to_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ini.md");
    let page = std::fs::read_to_string(path).unwrap();
    let mut expected = page.clone();
    for Table { section, page, .. } in tables() {
        let begin = format!("<!-- keys of {section}, written by UPDATE_README=1 cargo test -->\n");
        let end = "<!-- end -->";
        let from = expected
            .find(&begin)
            .unwrap_or_else(|| panic!("no marker {begin:?}"))
            + begin.len();
        let length = expected[from..].find(end).expect("the marker has an end");
        expected.replace_range(from..from + length, &format!("\n{page}\n"));
    }
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "manager/docs/ini.md differs from the tables; UPDATE_README=1 writes it anew"
    );
}

#[test]
fn no_key_stands_twice() {
    for Table { section, rows, .. } in tables() {
        for (index, key) in rows.iter().enumerate() {
            let mut before = rows[..index].iter();
            let place = format!("{section}: {}", key.name);
            assert!(before.all(|other| other.name != key.name), "{place}");
            assert!(
                !key.meaning.is_empty() && !key.example.is_empty(),
                "{place}"
            );
        }
    }
}

/// A file with one key of a section, and what else that key needs.
fn file(section: &str, key: &str, value: &str) -> String {
    let line = format!("{key} = {value}\n");
    match section {
        "circus" => format!("[circus]\n{line}"),
        "socket" => format!("[socket:web]\nbacklog = 1\n{line}"),
        "plugin" => format!("[plugin:p]\nuse = circus.plugins.flapping.Flapping\n{line}"),
        "flapping" => format!("[plugin:p]\nuse = circus.plugins.flapping.Flapping\n{line}"),
        _ => {
            let needs = match key {
                "on_demand" => "use_sockets = yes\n",
                "shell_args" => "shell = yes\n",
                "copy_path" => "copy_env = yes\n",
                _ => "",
            };
            let cmd = if key == "cmd" { "" } else { "cmd = x\n" };
            format!(
                "[socket:web]\nbacklog = 1\n[watcher:db]\ncmd=x\n[watcher:cache]\ncmd=x\n[watcher:w]\n{cmd}{needs}{line}"
            )
        }
    }
}

fn load(text: &str) -> Result<crate::Config, crate::ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.ini");
    // The directory that the examples of `include` and `include_dir` name.
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(&path, text).unwrap();
    let around = crate::Surroundings {
        environment: [("HOME".into(), "/root".into())].into(),
        directory: "/srv".into(),
    };
    crate::load(&path, &around)
}

#[test]
fn every_example_is_accepted() {
    for Table { section, rows, .. } in tables() {
        for key in &rows {
            // Families of keys, those of streams, and what depends on the machine.
            if key.name.contains(char::is_uppercase)
                || section == "stream"
                || ["virtualenv", "virtualenv_py_ver", "uid", "gid"].contains(&key.name)
            {
                continue;
            }
            let text = file(section, key.name, key.example);
            // The duplicate of what the file has already is only a warning.
            if let Err(errors) = load(&text) {
                panic!("[{section}] {}: {errors}", key.name);
            }
        }
    }
}

#[test]
fn every_default_is_the_default() {
    for Table { section, rows, .. } in tables() {
        for key in &rows {
            let Initial::Value(value) = key.default else {
                continue;
            };
            if section == "stream" || ["use", "active"].contains(&key.name) {
                continue;
            }
            let text = file(section, key.name, value);
            let without = text.replace(&format!("\n{} = {value}\n", key.name), "\n");
            assert_ne!(text, without, "{}", key.name);
            let plan = match (load(&without), load(&text)) {
                (Ok(without), Ok(with)) => crate::diff::diff(&without, &with),
                (without, with) => panic!("{}: {:?} {:?}", key.name, without.err(), with.err()),
            };
            assert!(
                plan.is_empty(),
                "[{section}] {} = {value:?}: {plan:?}",
                key.name
            );
        }
    }
}

/// Reads the key's default and its example into `section`, shows each, and reads what was shown:
/// it is the same value.
fn round_trip<S: Clone>(table: &[Key<S>], section: &S, skipped: &[&str]) {
    let sockets = [crate::SocketConfig {
        name: "web".to_owned(),
        ..crate::SocketConfig::default()
    }];
    for key in table {
        let (Some(read), Some(show)) = (key.read, key.show) else {
            continue;
        };
        let default = match key.default {
            Initial::Value(text) => Some(text),
            Initial::Words(_) => None,
        };
        for text in default.into_iter().chain([key.example]) {
            if skipped.contains(&key.name) {
                continue;
            }
            let stored = |text: &str| {
                let mut section = section.clone();
                let written = Written {
                    text,
                    directory: std::path::Path::new("/srv"),
                    sockets: &sockets,
                };
                read(&mut section, written)
                    .unwrap_or_else(|error| panic!("{} = {text:?}: {error}", key.name));
                show(&section)
            };
            let shown = stored(text).unwrap_or_else(|| panic!("{} is not shown", key.name));
            assert_eq!(
                stored(&shown).as_ref(),
                Some(&shown),
                "{} = {text:?}",
                key.name
            );
            // An empty field is one in which nothing was stored.
            assert!(!shown.is_empty(), "{} = {text:?}", key.name);
        }
    }
}

#[test]
fn what_is_shown_reads_as_the_same_value() {
    use crate::types::{FancyConfig, HealthCheck, HealthProbe, RotateWhen, RotationConfig};
    use crate::{FileStreamConfig, FlappingConfig, SocketConfig, StreamConfig, WatcherConfig};
    let watcher = WatcherConfig {
        health: Some(HealthCheck {
            probe: HealthProbe::Tcp(String::new()),
            interval: std::time::Duration::ZERO,
            timeout: std::time::Duration::ZERO,
            retries: 0,
        }),
        ..WatcherConfig::default()
    };
    // Their examples are users of another machine.
    round_trip(WATCHER, &watcher, &["uid", "gid"]);
    round_trip(SOCKET, &SocketConfig::default(), &[]);
    round_trip(FLAPPING, &FlappingConfig::default(), &[]);
    round_trip(CIRCUS, &load("[watcher:w]\ncmd = x\n").unwrap(), &[]);
    let file = StreamConfig::File(FileStreamConfig {
        json: true,
        rotation: Some(RotationConfig {
            when: RotateWhen::Day,
            interval: 1,
            utc: false,
        }),
        ..FileStreamConfig::default()
    });
    let fancy = StreamConfig::Fancy(FancyConfig {
        color: None,
        time_format: String::new(),
    });
    let syslog = StreamConfig::Syslog(crate::SyslogConfig {
        address: crate::SyslogAddress::Unix("/x".into()),
        facility: 0,
        rfc5424: false,
    });
    for (class, stream) in [
        (StreamClass::Json, file),
        (StreamClass::FancyStdout, fancy),
        (StreamClass::Syslog, syslog),
    ] {
        let keys = STREAM.iter().filter(|key| key.classes.contains(&class));
        let keys: Vec<Key<StreamConfig>> = keys.copied().collect();
        assert!(keys.len() >= 2, "{class:?}");
        round_trip(&keys, &stream, &[]);
    }
}

#[test]
fn shown_values_are_written_as_in_a_file() {
    let config = load(
        "[circus]\nlogoutput = syslog://[::1]:5514?local3\n[socket:s]\npath = /x\numask = 0777\n\
         [watcher:w]\ncmd = x\nstdout_stream.class = syslog\nstdout_stream.address = syslog://[::1]:1\n",
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    let value = |facets: Vec<crate::facets::Facet>, key: &str| {
        let facet = facets.into_iter().find(|facet| facet.key == key);
        facet.unwrap_or_else(|| panic!("{key}")).value
    };
    let manager = crate::facets::of_manager(&config);
    assert_eq!(value(manager, "logoutput"), "syslog://[::1]:5514?local3");
    let socket = crate::facets::of_socket(&config.sockets[0]);
    assert_eq!(value(socket, "umask"), "0777");
    let watcher = crate::facets::of_watcher(&config.watchers[0]);
    assert_eq!(value(watcher, "stdout_stream.address"), "syslog://[::1]:1");
}

#[test]
fn files_in_the_guide_have_no_mistake() {
    let guide = include_str!("../../../README.md");
    let files: Vec<&str> = guide
        .split("```ini\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("\n```"))
        .map(|(file, _)| file)
        .collect();
    assert!(files.len() >= 2, "{files:?}");
    for text in files {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("guide.ini");
        std::fs::write(&file, text).unwrap();
        let around = crate::Surroundings::current().unwrap();
        let config =
            crate::load(&file, &around).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert_eq!(config.warnings.len(), 0, "{:?}\n{text}", config.warnings);
    }
}
