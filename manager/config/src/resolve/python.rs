//! `virtualenv`, `virtualenv_py_ver` and `copy_path`: what a Python program finds on its paths.
//!
//! Owns reading a virtualenv's folders and what they add to `PATH` and `PYTHONPATH`; runs no
//! Python. Circus put its own import path in front for `copy_path`; this manager has none, so the
//! `PYTHONPATH` it was started with is all there is.
//! Source: Circus 0.17.2's `load_virtualenv`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::environment::Environment;
use crate::fields::Fields;
use crate::surroundings::Surroundings;

/// Largest `.pth` file that is read, in bytes; real ones are a few lines.
const MAX_PTH_BYTES: u64 = 64 * 1024;
/// Most paths taken from `.pth` files: an environment has a size limit too.
const MAX_PATHS: usize = 256;

/// Adds to `environment` what the keys ask for; `copy_env` is their condition, as in Circus.
pub(super) fn resolve(
    fields: &mut Fields<'_>,
    copy_env: bool,
    around: &Surroundings,
    environment: &mut Environment,
) {
    if fields.boolean("copy_path", false) {
        need_copy_env(fields, "copy_path", copy_env);
    }
    let Some(root) = fields.path("virtualenv", &around.directory) else {
        if let Some(origin) = fields.origin("virtualenv_py_ver") {
            fields
                .findings
                .warn(origin, "virtualenv_py_ver has no effect without virtualenv");
        }
        return;
    };
    need_copy_env(fields, "virtualenv", copy_env);
    let version = fields.filled("virtualenv_py_ver");
    match site_packages(&root, version.as_deref().map(str::trim)) {
        Ok(site) => add(&root, &site, environment),
        Err(expected) => {
            fields.parsed("virtualenv", |_| Err::<(), _>(expected));
        }
    }
}

fn need_copy_env(fields: &mut Fields<'_>, key: &str, copy_env: bool) {
    if !copy_env && let Some(origin) = fields.origin(key) {
        fields
            .findings
            .error(origin, format!("{key} needs copy_env = true"));
    }
}

fn add(root: &Path, site: &Path, environment: &mut Environment) {
    let bin = root.join("bin");
    if bin.exists() {
        let old = environment.get(OsStr::new("PATH")).cloned();
        environment.insert("PATH".into(), joined([bin.into_os_string()], old));
    }
    let old = environment.get(OsStr::new("PYTHONPATH")).cloned();
    let listed = listed_paths(site).into_iter().map(PathBuf::into_os_string);
    let mut path = joined(listed, old.filter(|old| !old.is_empty()));
    let is_there = std::env::split_paths(&path).any(|there| there == site);
    if !is_there {
        path = joined(
            [path].into_iter().filter(|path| !path.is_empty()),
            Some(site.into()),
        );
    }
    environment.insert("PYTHONPATH".into(), path);
}

/// Parts joined by colons, `last` behind them.
fn joined(parts: impl IntoIterator<Item = OsString>, last: Option<OsString>) -> OsString {
    let mut text = OsString::new();
    for part in parts.into_iter().chain(last) {
        if !text.is_empty() {
            text.push(":");
        }
        text.push(part);
    }
    text
}

/// `lib/pythonX.Y/site-packages`; without a version that of the newest Python there.
fn site_packages(root: &Path, version: Option<&str>) -> Result<PathBuf, String> {
    let lib = root.join("lib");
    let mut found: Vec<((u32, u32), PathBuf)> = Vec::new();
    for entry in fs::read_dir(&lib).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(its_version) = name
            .strip_prefix("python")
            .or_else(|| name.strip_prefix("pypy"))
        else {
            continue;
        };
        let site = entry.path().join("site-packages");
        let numbers = its_version
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        if let Some(numbers) = numbers
            && version.is_none_or(|version| version == its_version)
            && site.is_dir()
        {
            found.push((numbers, site));
        }
    }
    found.sort();
    found.pop().map(|(_, site)| site).ok_or_else(|| {
        format!(
            "expected a virtualenv with {}",
            lib.join(format!("python{}", version.unwrap_or("X.Y")))
                .join("site-packages")
                .display()
        )
    })
}

/// Existing paths named in `.pth` files, in the order of their names.
fn listed_paths(site: &Path) -> Vec<PathBuf> {
    let files: BTreeSet<PathBuf> = fs::read_dir(site)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("pth")))
        .collect();
    let mut paths = Vec::new();
    for file in files {
        // One that cannot be read adds nothing, as for Python.
        let Ok(text) = read_bounded(&file) else {
            continue;
        };
        for line in text.lines().map(str::trim_end) {
            // Lines that begin with `import` are code.
            if line.is_empty() || line.starts_with('#') || line.starts_with("import") {
                continue;
            }
            let path = site.join(line);
            if path.exists() && !paths.contains(&path) && paths.len() < MAX_PATHS {
                paths.push(path);
            }
        }
    }
    paths
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_PTH_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn venv() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in [
            "bin",
            "lib/python3.9/site-packages",
            "lib/python3.11/site-packages/egg",
            "lib/pythonx",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let pth = "# note\nimport site; x()\n\negg\nnot-there\n";
        fs::write(root.join("lib/python3.11/site-packages/a.pth"), pth).unwrap();
        dir
    }

    #[test]
    fn the_newest_python_is_taken_unless_one_is_named() {
        let dir = venv();
        let end = |version| {
            site_packages(dir.path(), version)
                .map(|path| path.strip_prefix(dir.path()).unwrap().to_owned())
        };
        assert_eq!(
            end(None).unwrap(),
            Path::new("lib/python3.11/site-packages")
        );
        assert_eq!(
            end(Some("3.9")).unwrap(),
            Path::new("lib/python3.9/site-packages")
        );
        assert!(
            end(Some("3.1"))
                .unwrap_err()
                .ends_with("/lib/python3.1/site-packages")
        );
    }

    #[test]
    fn its_programs_come_first_and_its_packages_last() {
        let dir = venv();
        let site = dir.path().join("lib/python3.11/site-packages");
        let mut environment: Environment = [("PATH", "/bin"), ("PYTHONPATH", "/lib/py")]
            .map(|(key, value)| (key.into(), value.into()))
            .into();
        add(dir.path(), &site, &mut environment);
        let (root, get) = (dir.path().display(), |key: &str| {
            environment[OsStr::new(key)].to_str().unwrap()
        });
        assert_eq!(get("PATH"), format!("{root}/bin:/bin"));
        let site = site.display();
        assert_eq!(get("PYTHONPATH"), format!("{site}/egg:/lib/py:{site}"));
    }
}
