//! Private Python environments, made once per target folder: one with the original client, its
//! server, and Circus; one with web servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::kernel::target_folder;
use crate::skipped;

/// What the interoperation tests install. Pinned: these are the versions we promise to work with,
/// and the libraries under Circus that still suit it.
const REQUIREMENTS: &str = "papa==1.0.6\ncircus==0.17.2\npsutil==7.2.2\npyzmq==27.3.0\ntornado==6.6.1\nsetuptools==65.5.0\n";

/// The environment.
#[derive(Debug)]
pub struct Venv {
    root: PathBuf,
}

impl Venv {
    /// Makes the environment, or finds it made; none (and a note) when Python or the packages are
    /// not to be had.
    ///
    /// `PAPA_TEST_PYTHON` may name the interpreter to start from.
    ///
    /// # Panics
    /// In CI, when it cannot be made.
    pub fn get() -> Option<Self> {
        // papa is a source package only: what builds it comes first.
        let first = ["setuptools==65.5.0", "wheel"];
        Self::found(Self::make("interop-venv", REQUIREMENTS, &first))
    }

    /// The same for other packages, all of which are listed, in an environment called `name`.
    ///
    /// # Panics
    /// In CI, when it cannot be made.
    pub fn with(name: &str, requirements: &str) -> Option<Self> {
        Self::found(Self::make(name, requirements, &[]))
    }

    fn found(made: Result<Self, String>) -> Option<Self> {
        made.map_err(|why| skipped(&why)).ok()
    }

    /// Where `first` names packages, they are installed before the others, which are built with
    /// them; else the list is complete.
    fn make(name: &str, requirements: &str, first: &[&str]) -> Result<Self, String> {
        let target = target_folder();
        let root = target.join(name);
        fs::create_dir_all(&target).map_err(|error| error.to_string())?;
        let lock = fs::File::create(target.join(format!("{name}.lock")))
            .map_err(|error| error.to_string())?;
        // Suites run at the same time, in several processes: one installs, the others wait.
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| format!("lock of the Python environment: {error}"))?;
        let stamp = root.join("installed.txt");
        if fs::read_to_string(&stamp).is_ok_and(|text| text == requirements) {
            return Ok(Self { root });
        }
        let _ = fs::remove_dir_all(&root);
        let python = std::env::var("PAPA_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        run(Command::new(python).args(["-m", "venv"]).arg(&root))?;
        let list = root.join("requirements.txt");
        fs::write(&list, requirements).map_err(|error| error.to_string())?;
        let pip = || {
            let mut command = Command::new(root.join("bin/python"));
            command.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ]);
            command.arg(if first.is_empty() {
                "--no-deps"
            } else {
                "--no-build-isolation"
            });
            command
        };
        if !first.is_empty() {
            run(pip().args(first))?;
        }
        run(pip().arg("-r").arg(&list))?;
        fs::write(&stamp, requirements).map_err(|error| error.to_string())?;
        Ok(Self { root })
    }

    /// The INI files of Circus's source package, sorted; it is fetched once, beside the
    /// environment.
    ///
    /// # Errors
    /// It is not to be had.
    pub fn circus_ini_files(&self) -> Result<Vec<PathBuf>, String> {
        let parent = self
            .root()
            .parent()
            .ok_or("the environment has no parent")?;
        let root = parent.join("circus-0.17.2-source");
        let lock = fs::File::create(parent.join("circus-0.17.2-source.lock"))
            .map_err(|error| error.to_string())?;
        let _lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error.to_string())?;
        let unpacked = root.join("circus-0.17.2");
        if !root.join("complete").exists() {
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(&root).map_err(|error| error.to_string())?;
            run(Command::new(self.python())
                .args([
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--disable-pip-version-check",
                ])
                .args([
                    "circus==0.17.2",
                    "--no-deps",
                    "--no-binary",
                    ":all:",
                    "--dest",
                ])
                .arg(&root))?;
            run(Command::new("tar")
                .arg("-xzf")
                .arg(root.join("circus-0.17.2.tar.gz"))
                .arg("-C")
                .arg(&root))?;
            fs::write(root.join("complete"), "").map_err(|error| error.to_string())?;
        }
        let mut files = Vec::new();
        let mut folders = vec![unpacked];
        while let Some(folder) = folders.pop() {
            for entry in
                fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?
            {
                let path = entry.map_err(|error| error.to_string())?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "ini") {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Its interpreter.
    pub fn python(&self) -> PathBuf {
        self.root.join("bin/python")
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}
