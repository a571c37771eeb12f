//! The files a configuration consists of.
//!
//! Owns opening the main file and what its `include` and `include_dir` name, in a fixed order; the
//! grammar is `ini`'s. Patterns are relative to the main file's directory and matches are read in
//! name order, so that the result does not depend on the file system. Included files include
//! nothing themselves.
//! Source: Circus 0.17.2's `read_config`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;

use crate::fnmatch;
use crate::foreign;
use crate::ini::Document;
use crate::problem::{Findings, Origin};

/// Largest configuration file, in bytes: far beyond any real one, small enough to read whole.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Most files one configuration may consist of.
pub const MAX_FILES: usize = 10_000;

/// What was read, and from where.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Main file and included files as one.
    pub document: Document,
    /// Every file read, the main one first, named as in problems.
    pub files: Vec<PathBuf>,
    /// Those of them in which no section has a key.
    pub empty: Vec<PathBuf>,
    /// What `include` and `include_dir` ask for.
    pub patterns: Vec<Pattern>,
}

/// A pattern of `include` or `include_dir`, variables replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// `include conf.d/*.ini`.
    pub text: String,
    /// How many files it matches.
    pub matches: usize,
}

/// Reads `path` and what it includes; a relative `path` begins at `directory` and is named in
/// problems as it was given. `expand` replaces variables in the patterns.
pub fn load(
    path: &Path,
    directory: &Path,
    expand: impl Fn(&str) -> String,
    findings: &mut Findings,
) -> Loaded {
    let mut loaded = Loaded::default();
    if !read_into(&mut loaded, path, directory, None, findings) {
        return loaded;
    }
    let base = path.parent().unwrap_or(Path::new(""));
    let mut included = Vec::new();
    for key in ["include", "include_dir"] {
        let Some(entry) = loaded.document.get("circus", key) else {
            continue;
        };
        for pattern in expand(&entry.value).split_whitespace() {
            let mut path = base.join(pattern);
            if key == "include_dir" {
                path.push("*.ini");
            }
            let matches = match expand_pattern(&path, directory) {
                Ok(matches) => matches,
                Err(why) => {
                    findings.error(&entry.value_origin, format!("{key} {pattern:?}: {why}"));
                    continue;
                }
            };
            loaded.patterns.push(Pattern {
                text: format!("{key} {pattern}"),
                matches: matches.len(),
            });
            if matches.is_empty() {
                findings.warn(
                    &entry.value_origin,
                    format!(
                        "{key} {pattern:?}: {} matches no file; relative paths begin where the main file is",
                        path.display()
                    ),
                );
            }
            let asked = Asked {
                key,
                origin: entry.value_origin.clone(),
            };
            included.extend(matches.into_iter().map(|file| (file, asked.clone())));
            if included.len() > MAX_FILES {
                findings.error(
                    &entry.value_origin,
                    format!("{key} names more than {MAX_FILES} files"),
                );
                return loaded;
            }
        }
    }
    for (file, asked) in included {
        // A pattern may well match the main file, or a file twice.
        if !loaded.files.contains(&file) {
            read_into(&mut loaded, &file, directory, Some(&asked), findings);
        }
    }
    loaded
}

/// The key of `[circus]` that names a file, and where its value is.
#[derive(Debug, Clone)]
struct Asked {
    key: &'static str,
    origin: Origin,
}

/// Adds the file `path` to what was read. What is wrong with a file as a whole is said at the
/// place that includes it, which is where it can be mended.
fn read_into(
    loaded: &mut Loaded,
    path: &Path,
    directory: &Path,
    asked: Option<&Asked>,
    findings: &mut Findings,
) -> bool {
    let mut fault = |text: String| match asked {
        None => findings.error(&Origin::whole(path), text),
        Some(asked) => findings.error(
            &asked.origin,
            format!("{} {}: {text}", asked.key, path.display()),
        ),
    };
    match read_bounded(&directory.join(path)) {
        Ok(bytes) => {
            if let Some(what) = foreign::looks_like(path, &bytes) {
                fault(format!(
                    "{what}; expected an INI file with sections like [watcher:web]"
                ));
                loaded.files.push(path.to_owned());
                return false;
            }
            let mut own = Document::default();
            // Reading it reports its mistakes.
            own.read(path, &bytes, &mut Findings::default());
            if asked.is_some() {
                report_ignored(&loaded.document, loaded.files.first(), &own, findings);
            }
            loaded.document.read(path, &bytes, findings);
            loaded.files.push(path.to_owned());
            if own.is_empty() {
                loaded.empty.push(path.to_owned());
            }
            true
        }
        Err(error) => {
            fault(format!("cannot be read: {error}"));
            false
        }
    }
}

/// What is ignored of an included file: its own `include`, and keys that another included file has
/// given a different value. A main file overrides what it includes on purpose.
fn report_ignored(
    before: &Document,
    main: Option<&PathBuf>,
    own: &Document,
    findings: &mut Findings,
) {
    for key in ["include", "include_dir"] {
        if let Some(entry) = own.get("circus", key) {
            findings.warn(
                &entry.origin,
                format!("{key} has no effect in an included file, as in Circus; include from the main file"),
            );
        }
    }
    for section in own.sections() {
        let mut ignored = Vec::new();
        let mut first = None;
        for entry in &section.entries {
            let known = before.section(&section.name).and_then(|known| {
                let mut entries = known.entries.iter();
                entries.find(|known| known.key == entry.key)
            });
            if let Some(known) = known
                && known.value != entry.value
                && main.is_some_and(|main| known.origin.file() != main)
            {
                ignored.push(entry.key.as_str());
                first.get_or_insert((&entry.origin, &known.origin));
            }
        }
        if let Some((here, there)) = first {
            let keys = ignored.join(", ");
            let (are, have) = if ignored.len() == 1 {
                ("is", "it")
            } else {
                ("are", "them")
            };
            let place = format!("{}:{}", there.file().display(), there.line());
            findings.warn(
                here,
                format!(
                    "[{}]: {keys} {are} ignored; {place}, which is read first, has {have} too",
                    section.name
                ),
            );
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a named pipe would block the manager until a writer comes.
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|error| dangling(path).unwrap_or(error))?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("it is a directory, expected a file"));
    }
    if kind.is_fifo() {
        // The pipe of `papactl check <(command)` has no name of its own, and its writer is there.
        if path.canonicalize().is_ok() {
            return Err(io::Error::other("it is a named pipe, expected a file"));
        }
        file = File::open(path)?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

/// Explains why an existing link cannot be opened: its target does not exist.
fn dangling(path: &Path) -> Option<io::Error> {
    let target = fs::read_link(path).ok()?;
    let missing = path.metadata().err()?.kind() == io::ErrorKind::NotFound;
    missing.then(|| {
        io::Error::other(format!(
            "it is a link to {}, which is not there",
            target.display()
        ))
    })
}

/// Every path `pattern` matches, in name order; a relative one begins at `start`. A wildcard does
/// not match a leading dot. A name without wildcards is taken as it is: whether it can be read
/// shows when it is.
///
/// # Errors
/// A directory named without wildcards cannot be listed: what is in it is unknown, which is not the
/// same as nothing.
fn expand_pattern(pattern: &Path, start: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = vec![PathBuf::new()];
    let mut guessed = false;
    for component in pattern.components() {
        let wanted = component.as_os_str().to_string_lossy();
        let literal = !matches!(component, Component::Normal(_)) || !fnmatch::is_pattern(&wanted);
        let mut next = Vec::new();
        for directory in found {
            if literal {
                next.push(directory.join(component));
                continue;
            }
            match list_matching(&start.join(&directory), &wanted) {
                Ok(names) => next.extend(names.into_iter().map(|name| directory.join(name))),
                // One of several matches of a wildcard may be a file, or another user's.
                Err(_) if guessed => {}
                Err(error) => {
                    let shown = start.join(&directory);
                    return Err(format!(
                        "the directory {} cannot be read: {error}",
                        shown.display()
                    ));
                }
            }
        }
        guessed |= !literal;
        next.truncate(MAX_FILES + 1);
        found = next;
    }
    if guessed {
        // A dangling link stays: it is named, and cannot be read.
        found.retain(|path| start.join(path).symlink_metadata().is_ok());
    }
    Ok(found)
}

/// Names in `directory` that match, sorted.
fn list_matching(directory: &Path, pattern: &str) -> io::Result<Vec<OsString>> {
    let mut names: Vec<_> = fs::read_dir(directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .filter(|name| {
            let name = name.to_string_lossy();
            fnmatch::matches(pattern, &name) && (pattern.starts_with('.') || !name.starts_with('.'))
        })
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn includes_are_read_in_name_order_after_the_main_file() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        write(
            base,
            "main.ini",
            "[circus]\ninclude = ((circus.x))/*.ini none-*\ninclude_dir = d?\n[s]\nk = main",
        );
        write(base, "sub/b.ini", "[s]\nk = b\nl = a");
        write(base, "sub/a.ini", "[s]\nl = a");
        write(base, "sub/.hidden.ini", "[s]\nl = hidden");
        write(base, "d1/c.ini", "[s]\nm = c");
        let mut findings = Findings::default();
        let loaded = load(
            Path::new("main.ini"),
            base,
            |text| text.replace("((circus.x))", "sub"),
            &mut findings,
        );
        assert_eq!(findings.errors, []);
        assert_eq!(findings.warnings.len(), 1, "{:?}", findings.warnings);
        assert!(
            findings.warnings[0]
                .to_string()
                .starts_with("main.ini:2:11: include \"none-*\"")
        );
        let names: Vec<_> = loaded
            .files
            .iter()
            .map(|file| file.to_str().unwrap())
            .collect();
        assert_eq!(names, ["main.ini", "sub/a.ini", "sub/b.ini", "d1/c.ini"]);
        let get = |key| loaded.document.get("s", key).unwrap().value.as_str();
        assert_eq!([get("k"), get("l"), get("m")], ["main", "a", "c"]);
    }

    #[test]
    fn a_name_that_cannot_be_read_is_a_mistake_and_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        write(base, "conf.d/a.ini", "[s]\nk = 1");
        std::os::unix::fs::symlink("nowhere", base.join("conf.d/b.ini")).unwrap();
        for (include, part) in [
            ("include = conf.d/*.ini", "b.ini: cannot be read"),
            ("include = gone.ini", "gone.ini: cannot be read"),
            ("include = gone/*.ini", "gone cannot be read"),
            ("include_dir = gone", "gone cannot be read"),
        ] {
            write(base, "main.ini", &format!("[circus]\n{include}\n"));
            let mut findings = Findings::default();
            load(Path::new("main.ini"), base, str::to_owned, &mut findings);
            assert_eq!(findings.errors.len(), 1, "{include}: {findings:?}");
            let said = findings.errors[0].to_string();
            assert!(said.contains(part), "{part:?} in {said:?}");
            assert!(said.starts_with("main.ini:2:"), "{said:?}");
        }
        // A match of a wildcard may be missing.
        write(base, "main.ini", "[circus]\ninclude = */x.ini none-*.ini\n");
        let mut findings = Findings::default();
        let loaded = load(Path::new("main.ini"), base, str::to_owned, &mut findings);
        assert_eq!(findings.errors, []);
        let matches: Vec<_> = loaded
            .patterns
            .iter()
            .map(|pattern| pattern.matches)
            .collect();
        assert_eq!(matches, [0, 0]);
    }

    #[test]
    fn a_named_pipe_in_place_of_a_file_is_a_mistake_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let pipe = base.join("conf.d/pipe.ini");
        write(base, "main.ini", "[circus]\ninclude = conf.d/*.ini\n");
        fs::create_dir(base.join("conf.d")).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(&pipe, base.join("link.ini")).unwrap();
        for (main, named) in [
            ("main.ini", "main.ini:2:11: include conf.d/pipe.ini"),
            ("conf.d/pipe.ini", "conf.d/pipe.ini"),
            ("link.ini", "link.ini"),
        ] {
            let (done, waiting) = std::sync::mpsc::channel();
            let start = base.to_owned();
            std::thread::spawn(move || {
                let mut findings = Findings::default();
                load(Path::new(main), &start, str::to_owned, &mut findings);
                let _ = done.send(findings.errors);
            });
            let errors = waiting
                .recv_timeout(std::time::Duration::from_secs(20))
                .unwrap_or_else(|_| panic!("{main}: waits for a writer"));
            assert_eq!(errors.len(), 1, "{main}: {errors:?}");
            let expected = format!("{named}: cannot be read: it is a named pipe, expected a file");
            assert_eq!(errors[0].to_string(), expected);
        }
    }

    #[test]
    fn an_included_file_that_is_no_good_named_nobody_who_includes_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        write(base, "main.ini", "[circus]\ninclude = part.ini\n");
        let part = base.join("part.ini");
        let cases: [(&dyn Fn(), &str); 5] = [
            (
                &|| std::os::unix::fs::symlink("nowhere", &part).unwrap(),
                "cannot be read: it is a link to nowhere, which is not there",
            ),
            (
                &|| fs::create_dir(&part).unwrap(),
                "cannot be read: it is a directory, expected a file",
            ),
            (
                &|| std::os::unix::fs::symlink(&part, &part).unwrap(),
                "cannot be read: Too many levels",
            ),
            (
                &|| fs::write(&part, "[program:x]\ncommand = y\n").unwrap(),
                "it looks like a configuration of supervisord",
            ),
            (
                &|| fs::write(&part, b"\xff\xfe[\0c\0").unwrap(),
                "it is text in UTF-16",
            ),
        ];
        for (make, text) in cases {
            make();
            let mut findings = Findings::default();
            load(Path::new("main.ini"), base, str::to_owned, &mut findings);
            let said: Vec<_> = findings.errors.iter().map(ToString::to_string).collect();
            let expected = format!("main.ini:2:11: include part.ini: {text}");
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with(&expected), "{expected:?}: {said:?}");
            let _ = fs::remove_file(&part).or_else(|_| fs::remove_dir(&part));
        }
    }

    #[test]
    fn a_file_that_lost_its_keys_did_not_count_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        for (text, empty) in [
            (&b""[..], true),
            (b" \n\t\n# c\n; d\nrem e\n", true),
            (b"\xef\xbb\xbf", true),
            (b"\xef\xbb\xbf\r\n# c\r\n", true),
            (b"[watcher:a]\n", true),
            (b"[circus]\n[DEFAULT]\n", true),
            (b"[DEFAULT]\na = b\n", false),
            (b"[watcher:a]\ncmd = x\n", false),
        ] {
            fs::write(base.join("main.ini"), text).unwrap();
            let mut findings = Findings::default();
            let loaded = load(Path::new("main.ini"), base, str::to_owned, &mut findings);
            let text = String::from_utf8_lossy(text);
            assert_eq!(!loaded.empty.is_empty(), empty, "{text:?}");
        }
    }

    #[test]
    fn what_an_included_file_said_in_vain_was_silent() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        write(
            base,
            "main.ini",
            "[circus]\ninclude = conf.d/*.ini\n[watcher:a]\nargs = main\n",
        );
        write(
            base,
            "conf.d/1.ini",
            "[watcher:a]\ncmd = x\nshell = no\nargs = 1\n",
        );
        write(
            base,
            "conf.d/2.ini",
            "[circus]\ninclude = deeper/*.ini\n[watcher:a]\nshell = no\ncmd = y\nargs = 2\n",
        );
        let mut findings = Findings::default();
        load(Path::new("main.ini"), base, str::to_owned, &mut findings);
        let said: Vec<_> = findings.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "conf.d/2.ini:2:1: include has no effect in an included file, as in Circus; include from the main file",
                "conf.d/2.ini:5:1: [watcher:a]: cmd is ignored; conf.d/1.ini:2, which is read first, has it too",
            ]
        );
        assert_eq!(findings.errors, []);
    }

    #[test]
    fn a_pipe_without_a_name_is_read_whole() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        std::io::Write::write_all(&mut writer, b"[watcher:a]\ncmd = sleep 1\n").unwrap();
        drop(writer);
        let mut findings = Findings::default();
        let loaded = load(
            Path::new(&path),
            Path::new("/"),
            str::to_owned,
            &mut findings,
        );
        assert_eq!(findings.errors, []);
        assert!(loaded.document.get("watcher:a", "cmd").is_some());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("nope.ini")] {
            let mut findings = Findings::default();
            load(&path, Path::new("/"), str::to_owned, &mut findings);
            assert_eq!(findings.errors.len(), 1);
            assert_eq!(findings.errors[0].origin.file(), path);
        }
    }
}
