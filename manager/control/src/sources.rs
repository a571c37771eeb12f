//! Whose lines are meant, and where they are: files, or the kernel.
//!
//! Owns the grouping: every file once, whoever shares it, and for each watcher the streams that are
//! in no file. Opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use papa_logs::form::LineForm;

use crate::message::{LogsReply, WatcherLogs};

/// Names before a label says "and more".
const MAX_LABEL_NAMES: usize = 3;
/// Labels are lined up as far as this; a longer one pushes its line to the right.
const MAX_LABEL_COLUMNS: usize = 24;

/// What is to be shown.
#[derive(Debug, Default)]
pub struct Sources {
    pub files: Vec<FileSource>,
    /// By the lower-case name, as the kernel has it.
    pub live: BTreeMap<String, LiveSource>,
}

/// One file and who writes it.
#[derive(Debug, Clone)]
pub struct FileSource {
    pub path: PathBuf,
    pub watchers: Vec<String>,
    /// None where both write to it.
    pub stream: Option<&'static str>,
    pub form: Option<LineForm>,
    /// Whether its watcher's other stream goes elsewhere.
    divided: bool,
    /// Only one worker's lines are wanted; the file does not tell them apart.
    pub of_one_worker: bool,
}

/// A watcher with output in no file.
#[derive(Debug, Clone)]
pub struct LiveSource {
    pub name: String,
    pub stdout: bool,
    pub stderr: bool,
    /// Only these workers; empty: all.
    pub wids: BTreeSet<u32>,
}

impl Sources {
    /// Of these watchers.
    pub fn of(reply: &LogsReply) -> Self {
        let mut sources = Self::default();
        for logs in &reply.logs {
            let streams = [
                ("stdout", &logs.stdout, &logs.stdout_lines),
                ("stderr", &logs.stderr, &logs.stderr_lines),
            ];
            for (stream, path, form) in streams {
                if let Some(path) = path {
                    sources.file(logs, path, stream, form.as_ref());
                }
            }
            let live = LiveSource {
                name: logs.name.clone(),
                stdout: is_live(logs.stdout.as_ref(), logs.stdout_lines.as_ref()),
                stderr: is_live(logs.stderr.as_ref(), logs.stderr_lines.as_ref()),
                wids: BTreeSet::new(),
            };
            if live.stdout || live.stderr {
                sources.live.insert(logs.name.to_lowercase(), live);
            }
        }
        sources
    }

    fn file(
        &mut self,
        logs: &WatcherLogs,
        path: &str,
        stream: &'static str,
        form: Option<&LineForm>,
    ) {
        let known = self
            .files
            .iter_mut()
            .find(|file| file.path.as_os_str() == path);
        if let Some(file) = known {
            if file.stream != Some(stream) {
                file.stream = None;
            }
            if !file.watchers.contains(&logs.name) {
                file.watchers.push(logs.name.clone());
            }
            return;
        }
        self.files.push(FileSource {
            path: path.into(),
            watchers: vec![logs.name.clone()],
            stream: Some(stream),
            form: form.cloned(),
            of_one_worker: false,
            divided: logs.stdout.is_some() && logs.stderr.is_some() && logs.stdout != logs.stderr,
        });
    }

    /// Leaves of these watchers, by lower-case name, only these workers.
    pub fn only(&mut self, wids: &BTreeMap<String, BTreeSet<u32>>) {
        for (name, wids) in wids {
            if let Some(live) = self.live.get_mut(name) {
                live.wids.clone_from(wids);
            }
            for file in &mut self.files {
                let mut watchers = file.watchers.iter();
                file.of_one_worker |= watchers.any(|watcher| watcher.to_lowercase() == *name);
            }
        }
    }

    /// Width of the widest label, in columns, as far as labels are lined up.
    pub fn label_width(&self) -> usize {
        let files = self.files.iter().map(|file| file.label().chars().count());
        // Behind the name come a dot and the worker's number.
        let live = self.live.values().map(|live| live.name.chars().count() + 2);
        files.chain(live).max().unwrap_or(0).min(MAX_LABEL_COLUMNS)
    }

    /// Whether lines come from nowhere.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.live.is_empty()
    }

    /// Whether lines come from more than a watcher and its file.
    pub fn are_several(&self) -> bool {
        let in_files = self.files.iter().flat_map(|file| &file.watchers);
        let mut names: Vec<&String> = in_files
            .chain(self.live.values().map(|live| &live.name))
            .collect();
        names.sort_unstable();
        names.dedup();
        self.files.len() > 1 || (names.len() > 1 && self.files.len() + self.live.len() > 1)
    }
}

/// A manager of an earlier version says nothing of streams without a file.
fn is_live(path: Option<&String>, form: Option<&LineForm>) -> bool {
    path.is_none() && form.is_none_or(|form| *form == LineForm::Kernel)
}

impl FileSource {
    /// Shown before each line when there are several places.
    pub fn label(&self) -> String {
        let mut label = self
            .watchers
            .iter()
            .take(MAX_LABEL_NAMES)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(",");
        if self.watchers.len() > MAX_LABEL_NAMES {
            label.push_str(",…");
        }
        match self.stream {
            Some(stream) if self.divided && self.watchers.len() == 1 => format!("{label} {stream}"),
            _ => label,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(name: &str, stdout: Option<&str>, stderr: Option<&str>) -> WatcherLogs {
        let lines = |path: Option<&str>| Some(path.map_or(LineForm::Kernel, |_| LineForm::Plain));
        WatcherLogs {
            name: name.to_owned(),
            stdout: stdout.map(str::to_owned),
            stderr: stderr.map(str::to_owned),
            stdout_lines: lines(stdout),
            stderr_lines: lines(stderr),
            ends: Default::default(),
            draining: false,
        }
    }

    #[test]
    fn a_shared_file_is_there_once_and_names_all_who_share_it() {
        let sources = Sources::of(&LogsReply {
            logs: vec![
                logs("a", Some("/x"), Some("/x")),
                logs("b", Some("/x"), None),
                logs("c", Some("/y"), Some("/z")),
            ],
            troubles: BTreeMap::new(),
            gone: Vec::new(),
        });
        let labels: Vec<_> = sources.files.iter().map(FileSource::label).collect();
        assert_eq!(labels, ["a,b", "c stdout", "c stderr"]);
        assert_eq!(sources.files[0].stream, None);
        assert!(sources.are_several());
        let one = Sources::of(&LogsReply {
            logs: vec![logs("b", Some("/x"), None)],
            troubles: BTreeMap::new(),
            gone: Vec::new(),
        });
        assert!(!one.are_several() && !one.is_empty());
    }

    #[test]
    fn what_is_in_no_file_is_in_the_kernel_or_nowhere() {
        let mut nowhere = logs("N", None, None);
        nowhere.stdout_lines = Some(LineForm::Nowhere);
        nowhere.stderr_lines = Some(LineForm::Nowhere);
        let sources = Sources::of(&LogsReply {
            logs: vec![logs("A", Some("/x"), None), logs("b", None, None), nowhere],
            troubles: BTreeMap::new(),
            gone: Vec::new(),
        });
        let live: Vec<_> = sources
            .live
            .iter()
            .map(|(key, live)| (key.as_str(), live.stdout, live.stderr))
            .collect();
        assert_eq!(live, [("a", false, true), ("b", true, true)]);
    }
}
