//! A supervisor for tests of its parts, without a kernel.

use crate::config::{Surroundings, load};
use crate::runtime_dir::RuntimeDir;
use crate::supervisor::{Setup, Supervisor};

/// One that has not begun, of a file with this text.
pub(super) fn supervisor(text: &str) -> Supervisor {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.ini");
    std::fs::write(&path, text).unwrap();
    Supervisor::new(Setup {
        config: load(&path, &Surroundings::current().unwrap()).unwrap(),
        directory: RuntimeDir::locate(),
        addresses: Vec::new(),
        program: None,
        arguments: Vec::new(),
        console: false,
        umask: None,
    })
}
