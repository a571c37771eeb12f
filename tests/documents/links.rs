//! Links and paths lead to something that exists.

use std::collections::BTreeSet;

use crate::pages::{Page, files, pages, top};

/// The targets of links in a line: `[text](target)`.
fn targets(line: &str) -> Vec<&str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

/// What a heading is called in links.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn anchors(page: &Page) -> BTreeSet<String> {
    let lines = page.prose();
    let headings = lines.iter().filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| anchor(line)).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let pages = pages();
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in &pages {
        for (number, line) in page.prose() {
            for target in targets(line) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                seen += 1;
                let (file, heading) = target.split_once('#').unwrap_or((target, ""));
                let place = if file.is_empty() {
                    top().join(&page.path)
                } else {
                    top().join(page.folder()).join(file)
                };
                let exists = place.canonicalize().is_ok_and(|found| {
                    let mut others = pages.iter();
                    heading.is_empty()
                        || others
                            .find(|other| found == top().join(&other.path))
                            .is_some_and(|other| anchors(other).contains(heading))
                });
                if !exists {
                    broken.push(format!("{}:{number}: {target}", page.path));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(seen > 50, "{seen}");
}

/// Endings of files whose names are checked.
const ENDINGS: [&str; 9] = [
    ".rs", ".md", ".py", ".sh", ".ini", ".toml", ".json", ".c", ".js",
];

/// Files that are made while something runs, and examples of names.
const NOT_IN_HERE: [&str; 15] = [
    "app.ini",
    "clock.ini",
    "x.ini",
    "your.ini",
    "site.ini",
    "servers.ini",
    "app.py",
    "NAMESPACE.workers.json",
    "pause.rs",
    "client.py",
    "logging.ini",
    "RUNTIME/NAMESPACE.workers.json",
    "/srv/current/app.py",
    "/srv/current/x.ini",
    "manager/ctl/src/commands/pause.rs",
];

/// The words in backquotes of a line that look like the name of a file of ours, or of a folder.
fn named(line: &str) -> Vec<&str> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .flat_map(|quoted| quoted.split_whitespace())
        .map(|word| word.split('#').next().unwrap_or(word))
        .filter(|word| {
            let plain = word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
            let file = ENDINGS.iter().any(|ending| word.ends_with(ending));
            plain && (file || (word.ends_with('/') && word.len() > 2)) && !word.starts_with('/')
        })
        .collect()
}

#[test]
fn files_and_folders_that_pages_name_exist() {
    let files = files();
    let mut missing = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for (number, line) in page.prose() {
            for name in named(line) {
                seen += 1;
                let ends = format!("/{name}");
                let exists = NOT_IN_HERE.contains(&name)
                    || files.iter().any(|file| {
                        let file = format!("/{file}");
                        file.ends_with(&ends) || (name.ends_with('/') && file.contains(&ends))
                    });
                if !exists {
                    missing.push(format!("{}:{number}: {name}", page.path));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(seen > 100, "{seen}");
}

/// Characters that six lines of 120 have.
const PARAGRAPH_CHARS: usize = 720;

/// Paragraphs and items of lists that are longer than that, by the numbers of their last lines.
fn long_paragraphs(page: &Page) -> Vec<usize> {
    let mut long = Vec::new();
    let mut chars = 0;
    for (number, line) in page.prose() {
        let text = line.trim_start();
        let numbered = text.split_once(". ");
        let numbered = numbered.is_some_and(|(first, _)| first.parse::<u32>().is_ok());
        if text.is_empty() || text.starts_with(['#', '|', '<']) {
            chars = 0;
            continue;
        }
        if text.starts_with("- ") || numbered {
            chars = 0;
        }
        let before = chars;
        chars += text.chars().count() + 1;
        if before <= PARAGRAPH_CHARS && chars > PARAGRAPH_CHARS {
            long.push(number);
        }
    }
    long
}

#[test]
fn no_paragraph_of_a_page_is_longer_than_six_lines() {
    let mut long = Vec::new();
    for page in pages() {
        for number in long_paragraphs(&page) {
            long.push(format!("{}:{number}", page.path));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn a_long_paragraph_is_found_and_several_short_ones_are_not() {
    let page = |text: String| Page {
        path: String::new(),
        text,
    };
    let line = "word ".repeat(23);
    let long = format!("{line}\n").repeat(7);
    assert_eq!(long_paragraphs(&page(long)), [7]);
    let items = format!("- {line}\n").repeat(7);
    assert!(long_paragraphs(&page(items)).is_empty());
}
