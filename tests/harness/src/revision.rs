//! Programs of an older revision of this repository, in `target/revisions/REVISION`, built once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kernel::target_folder;

/// Where the programs of a revision are.
///
/// # Errors
/// They cannot be built, and why: the history is not here, or a dependency is not.
pub fn built(revision: &str) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let place = target_folder().join("revisions").join(revision);
    let (source, target) = (place.join("source"), place.join("target"));
    fs::create_dir_all(&source).map_err(|error| format!("{}: {error}", source.display()))?;
    let run = |command: &mut Command| {
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{command:?}: {}\n{said}", output.status))
    };
    let archive = place.join("source.tar");
    run(Command::new("git")
        .current_dir(&root)
        .args(["archive", "--output"])
        .arg(&archive)
        .arg(revision))
    .map_err(|why| format!("revision {revision} is not in this repository's history: {why}"))?;
    run(Command::new("tar")
        .arg("xf")
        .arg(&archive)
        .arg("-C")
        .arg(&source))?;
    run(Command::new(env!("CARGO"))
        .current_dir(&source)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .args(["build", "--quiet", "--locked", "--workspace", "--bins"]))?;
    Ok(target.join("debug"))
}
