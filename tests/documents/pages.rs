//! The pages of the repository, and what is in them.

use std::fs;
use std::path::{Path, PathBuf};

/// The top of the repository.
pub(crate) fn top() -> PathBuf {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
    harness.join("../..").canonicalize().unwrap()
}

/// Every file of the repository but what was built, by its path from the top.
pub(crate) fn files() -> Vec<String> {
    let mut found = Vec::new();
    collect(&top(), "", &mut found);
    found.sort();
    assert!(found.len() > 300, "{found:?}");
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{prefix}{name}");
        let built = ["target", ".git", "__pycache__", "venv", "node_modules"];
        if built.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{path}/"), found);
        } else {
            found.push(path);
        }
    }
}

/// A page.
pub(crate) struct Page {
    /// Its path from the top of the repository.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn open(path: &str) -> Self {
        let text = fs::read_to_string(top().join(path)).unwrap();
        let path = path.to_owned();
        Self { path, text }
    }

    /// The folder it is in: empty, or ending in a slash.
    pub(crate) fn folder(&self) -> &str {
        self.path.rfind('/').map_or("", |end| &self.path[..=end])
    }

    /// Its sentences and tables: lines that are no example, with their numbers.
    pub(crate) fn prose(&self) -> Vec<(usize, &str)> {
        let mut fenced = false;
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(self.text.lines()) {
            if line.starts_with("```") {
                fenced = !fenced;
            } else if !fenced && !line.starts_with("    ") {
                lines.push((number, line));
            }
        }
        lines
    }

    /// The lines indented by four blanks between this heading and the next.
    pub(crate) fn block(&self, heading: &str) -> Vec<&str> {
        let mut lines = self.text.lines();
        assert!(
            lines.any(|line| line == heading),
            "{}: {heading}",
            self.path
        );
        let block: Vec<&str> = lines
            .take_while(|line| !line.starts_with('#'))
            .filter_map(|line| line.strip_prefix("    "))
            .collect();
        assert!(!block.is_empty(), "{}: {heading}", self.path);
        block
    }

    /// The example in a fence of this language that has this line.
    pub(crate) fn fenced(&self, language: &str, line: &str) -> &str {
        let fence = format!("```{language}\n");
        self.text
            .split(&fence)
            .skip(1)
            .filter_map(|rest| rest.split_once("\n```"))
            .map(|(example, _)| example)
            .find(|example| example.lines().any(|has| has == line))
            .unwrap_or_else(|| panic!("{}: no {language} with {line}", self.path))
    }
}

/// Every page.
pub(crate) fn pages() -> Vec<Page> {
    let paths = files();
    let pages = paths.iter().filter(|path| path.ends_with(".md"));
    pages.map(|path| Page::open(path)).collect()
}
