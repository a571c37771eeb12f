//! Circus's INI grammar: lines become keys that know their file and line.
//!
//! Owns comments, continuations, duplicates and `[DEFAULT]`; knows no key and replaces no variable.
//! The rules are those of Circus's parser, except that a continuation of an ignored duplicate is
//! ignored too, and that a section header without its `]` is an error instead of an odd key.
//! Invariant: any bytes give a document and a list of what is wrong with them; the first of two
//! equal keys stays.
//! Source: Circus 0.17.2 behaviour of `StrictConfigParser`.

use std::path::Path;
use std::sync::Arc;

use crate::kept::{KeptDocument, KeptSection};
use crate::known;
use crate::problem::{Findings, Origin};
use crate::words;

/// Most lines of one file that are reported as no INI; the rest is only counted.
const MAX_REJECTED: usize = 20;

/// The section whose keys are visible in all others.
const DEFAULT_SECTION: &str = "DEFAULT";

/// `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As written: case matters.
    pub key: String,
    /// Lines joined by newlines, comments cut.
    pub value: String,
    /// Where the key is.
    pub origin: Origin,
    /// Where the value begins.
    pub value_origin: Origin,
}

/// `[name]` and its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// As written: case matters.
    pub name: String,
    /// The first line of this name.
    pub origin: Origin,
    /// In file order, no key twice.
    pub entries: Vec<Entry>,
}

/// One or more files read after one another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    sections: Vec<Section>,
    defaults: Vec<Entry>,
}

impl KeptDocument {
    /// What is kept of a document: everything but the places in its files.
    #[must_use]
    pub fn of(document: &Document) -> Self {
        let pairs = |entries: &[Entry]| {
            entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.value.clone()))
                .collect()
        };
        let section = |section: &Section| KeptSection {
            name: section.name.clone(),
            entries: pairs(&section.entries),
        };
        Self {
            defaults: pairs(&document.defaults),
            sections: document.sections.iter().map(section).collect(),
        }
    }

    /// The document again. Every key is said to be in `file`.
    #[must_use]
    pub fn to_document(&self, file: &Path) -> Document {
        let origin = Origin::whole(file);
        let entries = |pairs: &[(String, String)]| {
            let entry = |(key, value): &(String, String)| Entry {
                key: key.clone(),
                value: value.clone(),
                origin: origin.clone(),
                value_origin: origin.clone(),
            };
            pairs.iter().map(entry).collect()
        };
        let section = |section: &KeptSection| Section {
            name: section.name.clone(),
            origin: origin.clone(),
            entries: entries(&section.entries),
        };
        Document {
            sections: self.sections.iter().map(section).collect(),
            defaults: entries(&self.defaults),
        }
    }
}

/// Which value a line that begins with white space continues.
#[derive(Clone, Copy)]
enum Open {
    /// None: no key has been read in this section.
    Nothing,
    /// The last entry of the current section at this index.
    Entry(usize),
    /// A key that is not kept.
    Ignored,
}

/// The section that lines are added to.
#[derive(Clone, Copy)]
enum Current {
    None,
    Defaults,
    Section(usize),
}

impl Document {
    /// Adds a file. Keys and sections of files read earlier win.
    pub fn read(&mut self, file: &Path, bytes: &[u8], findings: &mut Findings) {
        let mut reader = Reader {
            document: self,
            file: Arc::from(file),
            current: Current::None,
            open: Open::Nothing,
            rejected: 0,
            findings,
        };
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        for (index, line) in split_lines(bytes).enumerate() {
            let origin = Origin::new(Arc::clone(&reader.file), index + 1);
            match std::str::from_utf8(line) {
                Ok(line) => match line.find('\0') {
                    Some(at) => reader.reject(
                        &origin.at_column(line[..at].chars().count() + 1),
                        "found a NUL byte, expected text".to_owned(),
                    ),
                    None => {
                        let indent = line.chars().take_while(|c| c.is_whitespace()).count();
                        reader.line(line, origin.at_column(indent + 1));
                    }
                },
                Err(error) => {
                    let (good, bad) = line.split_at(error.valid_up_to());
                    let column = String::from_utf8_lossy(good).chars().count() + 1;
                    reader.reject(
                        &origin.at_column(column),
                        format!(
                            "found the byte 0x{:02x}, expected text in UTF-8",
                            bad.first().copied().unwrap_or_default()
                        ),
                    );
                }
            }
        }
        if reader.rejected > MAX_REJECTED {
            let more = reader.rejected - MAX_REJECTED;
            reader.findings.error(
                &Origin::whole(file),
                format!("{more} more lines are no INI either"),
            );
        }
    }

    /// No section has a key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.defaults.is_empty()
            && self
                .sections
                .iter()
                .all(|section| section.entries.is_empty())
    }

    /// Every section in file order.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The section called `name`.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The keys of `section` and those of `[DEFAULT]` that it does not have itself.
    pub fn entries<'a>(&'a self, section: &'a Section) -> impl Iterator<Item = &'a Entry> {
        let inherited = self
            .defaults
            .iter()
            .filter(|entry| find(&section.entries, &entry.key).is_none());
        section.entries.iter().chain(inherited)
    }

    /// The value of `key` in the section called `name`, `[DEFAULT]` included.
    #[must_use]
    pub fn get(&self, name: &str, key: &str) -> Option<&Entry> {
        let section = self.section(name)?;
        self.entries(section).find(|entry| entry.key == key)
    }
}

struct Reader<'a> {
    document: &'a mut Document,
    file: Arc<Path>,
    current: Current,
    open: Open,
    /// Lines that are no INI.
    rejected: usize,
    findings: &'a mut Findings,
}

impl Reader<'_> {
    fn line(&mut self, line: &str, origin: Origin) {
        if is_comment_or_blank(line) {
            return;
        }
        if line.starts_with(char::is_whitespace) && !matches!(self.open, Open::Nothing) {
            self.continuation(line.trim(), &origin);
        } else if line.starts_with('[') {
            self.header(line, origin);
        } else {
            self.option(line, &origin);
        }
    }

    fn continuation(&mut self, text: &str, origin: &Origin) {
        let Open::Entry(index) = self.open else {
            return;
        };
        let entry = &mut self.entries()[index];
        let key = entry.key.clone();
        entry.value.push('\n');
        entry.value.push_str(text);
        // Circus takes all of these as part of the value, silently.
        let looks_like = if text.starts_with(['#', ';']) {
            "a comment"
        } else if text.starts_with('[') && text.ends_with(']') {
            "a section"
        } else if split_option(text).is_some_and(|(key, _)| known::is_known(key)) {
            "a key"
        } else {
            return;
        };
        self.findings.warn(
            origin,
            format!(
                "indented, so this continues the value of {key:?}; if it is meant as {looks_like}, begin in the first column"
            ),
        );
    }

    fn header(&mut self, line: &str, origin: Origin) {
        self.open = Open::Nothing;
        let Some((name, rest)) = split_header(line) else {
            self.current = Current::None;
            self.reject(
                &origin,
                format!(
                    "found {:?}, expected a section header like [watcher:web]",
                    line.trim()
                ),
            );
            return;
        };
        if !rest.is_empty() && !rest.starts_with([';', '#']) {
            self.findings.warn(
                &origin,
                format!("{rest:?} after the section header is ignored"),
            );
        }
        if name == DEFAULT_SECTION {
            self.current = Current::Defaults;
            return;
        }
        let known = self
            .document
            .sections
            .iter()
            .position(|section| section.name == name);
        self.current = Current::Section(known.unwrap_or_else(|| {
            self.document.sections.push(Section {
                name: name.to_owned(),
                origin,
                entries: Vec::new(),
            });
            self.document.sections.len() - 1
        }));
    }

    fn option(&mut self, line: &str, origin: &Origin) {
        if matches!(self.current, Current::None) {
            // After a broken header its keys would only repeat the complaint.
            if !matches!(self.open, Open::Ignored) {
                self.reject(
                    origin,
                    format!(
                        "found {:?} before any section, expected a section header like [circus]",
                        line.trim()
                    ),
                );
            }
            return;
        }
        let column = |text: &str| {
            // `text` is a part of `line`.
            let offset = text.as_ptr().addr() - line.as_ptr().addr();
            line[..offset].chars().count() + 1
        };
        let (key, value) = match split_option(line) {
            Some(("", _)) => {
                self.reject(
                    origin,
                    format!(
                        "found {:?}, expected a key before the delimiter",
                        line.trim()
                    ),
                );
                return;
            }
            Some(parts) => parts,
            None => {
                self.reject(
                    origin,
                    format!("found {:?}, expected `key = value`", line.trim()),
                );
                return;
            }
        };
        let value_origin = origin.at_column(column(value));
        let origin = origin.at_column(column(key));
        let (value, cut) = clean_value(value);
        if let Some(cut) =
            cut.filter(|cut| words::open_quote(value).is_some_and(|quote| cut.contains(quote)))
        {
            // A cmd is then refused for its open quote; elsewhere half a text would be used
            // silently.
            self.findings.warn(
                &origin.at_column(column(cut)),
                format!("the value of {key:?} ends here: white space and `;` begin a comment, in quotes too; write `;` without white space before it"),
            );
        }
        if value.starts_with(';') {
            self.findings.warn(
                &value_origin,
                format!("the value of {key:?} begins with `;`; to leave it empty, end the line after the delimiter"),
            );
        }
        self.add(Entry {
            key: key.to_owned(),
            value: value.to_owned(),
            origin,
            value_origin,
        });
    }

    /// Adds a key to the section, unless the section has it: the first one counts.
    fn add(&mut self, entry: Entry) {
        let entries = self.entries();
        let Some(index) = find(entries, &entry.key) else {
            self.open = Open::Entry(entries.len());
            return self.entries().push(entry);
        };
        let first = entries[index].origin.clone();
        // Across files this is how a main file overrides what it includes.
        if first.file() == entry.origin.file() {
            let (key, line) = (&entry.key, first.line());
            self.findings.warn(
                &entry.origin,
                format!("{key:?} is ignored: the first one, in line {line}, is used"),
            );
        }
        self.open = Open::Ignored;
    }

    /// Notes an error; what continues the line is skipped.
    fn reject(&mut self, origin: &Origin, message: String) {
        self.open = Open::Ignored;
        self.rejected += 1;
        if self.rejected <= MAX_REJECTED {
            self.findings.error(origin, message);
        }
    }

    fn entries(&mut self) -> &mut Vec<Entry> {
        match self.current {
            Current::Section(index) => &mut self.document.sections[index].entries,
            Current::Defaults | Current::None => &mut self.document.defaults,
        }
    }
}

fn find(entries: &[Entry], key: &str) -> Option<usize> {
    entries.iter().position(|entry| entry.key == key)
}

/// Lines ended by `\n`, `\r\n` or `\r`, as Python reads text.
fn split_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').flat_map(|line| {
        line.strip_suffix(b"\r")
            .unwrap_or(line)
            .split(|byte| *byte == b'\r')
    })
    // A line of a \r\n file must not count twice, so the `\r` before `\n` was cut first.
}

fn is_comment_or_blank(line: &str) -> bool {
    line.starts_with(['#', ';'])
        || line.trim().is_empty()
        || (line.starts_with(['r', 'R'])
            && line
                .split_whitespace()
                .next()
                .is_some_and(|word| word.eq_ignore_ascii_case("rem")))
}

/// The name between the brackets and what follows them. The name may hold brackets:
/// `[env:web[12]]`.
fn split_header(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_end();
    let comment = line
        .match_indices([';', '#'])
        .map(|(index, _)| index)
        .find(|index| {
            line[..*index].trim_end().ends_with(']')
                && line[..*index].ends_with(char::is_whitespace)
        });
    let end = line[..comment.unwrap_or(line.len())].rfind(']')?;
    let name = &line[1..end];
    (!name.is_empty()).then(|| (name, line[end + 1..].trim()))
}

/// Key and rest at the first `=` or `:`.
fn split_option(line: &str) -> Option<(&str, &str)> {
    let (key, rest) = line.split_once(['=', ':'])?;
    Some((key.trim(), rest.trim_start()))
}

/// The value, and the comment that was cut from it.
fn clean_value(value: &str) -> (&str, Option<&str>) {
    let (value, cut) = match value.find(';') {
        Some(at) if value[..at].ends_with(char::is_whitespace) => {
            (&value[..at], Some(&value[at..]))
        }
        _ => (value, None),
    };
    match value.trim() {
        "\"\"" => ("", cut),
        value => (value, cut),
    }
}

#[cfg(test)]
mod tests;
