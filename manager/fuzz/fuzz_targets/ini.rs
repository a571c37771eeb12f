//! Any bytes as a configuration: reading neither panics nor names a line that is not there, and
//! what is accepted renders into a worker's request.
#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

use papa_manager::config::ini::Document;
use papa_manager::config::problem::{Findings, Problem};
use papa_manager::config::{Surroundings, load, render_text, render_worker};

/// Comes before every input: the first of two equal keys stays, so no input names files of this
/// machine. The patterns match nothing, which is no mistake; a name that cannot be read would be
/// one, and nothing behind it would be tried.
const HEADER: &[u8] =
    b"[circus]\ninclude = there-is-no-such-file*\ninclude_dir = there-is-no-such-directory*\n";
/// The one file.
const NAME: &str = "fuzz.ini";

thread_local! {
    /// Where that file is; one folder for all inputs.
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    let mut findings = Findings::default();
    let mut document = Document::default();
    document.read(Path::new(NAME), bytes, &mut findings);
    check(bytes, findings.errors.iter().chain(&findings.warnings));

    let text = [HEADER, bytes].concat();
    let result = FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            // In memory where that is possible: a file that is written anew waits for some disks.
            let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
            folder.expect("a temporary folder")
        });
        fs::write(folder.path().join(NAME), &text).expect("room for a small file");
        let around = Surroundings {
            environment: [("HOME".into(), "/".into())].into_iter().collect(),
            directory: folder.path().to_owned(),
        };
        load(Path::new(NAME), &around)
    });
    match result {
        Err(wrong) => {
            assert!(!wrong.errors.is_empty());
            check(&text, wrong.errors.iter().chain(&wrong.warnings));
        }
        Ok(config) => {
            check(&text, &config.warnings);
            for watcher in &config.watchers {
                let worker = render_worker(watcher, &config.namespace, 1);
                assert!(!worker.argv.is_empty());
                let _ = render_text(&watcher.name, 1);
            }
        }
    }
});

fn check<'a>(text: &[u8], problems: impl IntoIterator<Item = &'a Problem>) {
    let lines = text.split(|byte| *byte == b'\n' || *byte == b'\r').count();
    for problem in problems {
        let shown = problem.to_string();
        assert!(shown.starts_with(NAME), "{shown}");
        assert!(problem.origin.line() <= lines, "{shown}: {lines} lines");
    }
}
