//! Suggestions; the tables against the reader of values and against the reference page.

use super::*;

#[test]
fn misspelt_keys_are_recognised() {
    assert_eq!(suggestion(WATCHER, "numproceses"), Some("numprocesses"));
    assert_eq!(suggestion(WATCHER, "Numprocesses"), Some("numprocesses"));
    assert_eq!(suggestion(WATCHER, "cdm"), Some("cmd"));
    assert_eq!(suggestion(WATCHER, "active"), None);
    assert_eq!(suggestion(WATCHER, "stats_base_port"), None);
    assert_eq!(nearest(SECTIONS, "wacher"), Some("watcher"));
}

/// The tables and the sections of the reference page they stand in.
const TABLES: [(&str, &[Key]); 6] = [
    ("circus", CIRCUS),
    ("watcher", WATCHER),
    ("stream", STREAM),
    ("socket", SOCKET),
    ("plugin", PLUGIN),
    ("flapping", FLAPPING),
];

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
    for (name, table) in TABLES {
        let begin = format!("<!-- keys of {name}, written by UPDATE_README=1 cargo test -->\n");
        let end = "<!-- end -->";
        let from = expected
            .find(&begin)
            .unwrap_or_else(|| panic!("no marker {begin:?}"))
            + begin.len();
        let length = expected[from..].find(end).expect("the marker has an end");
        expected.replace_range(from..from + length, &format!("\n{}\n", markdown(table)));
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
    for (name, table) in TABLES {
        for (index, key) in table.iter().enumerate() {
            assert!(
                find(&table[..index], key.name).is_none(),
                "{name}: {}",
                key.name
            );
            assert!(
                !key.meaning.is_empty() && !key.accepts.is_empty() && !key.example.is_empty(),
                "{name}: {}",
                key.name
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
    for (section, table) in TABLES {
        for key in table {
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
    for (section, table) in TABLES {
        for key in table {
            let Value(value) = key.default else { continue };
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
                "[{section}] {} = {value:?}: {plan}",
                key.name
            );
        }
    }
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
