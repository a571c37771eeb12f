//! Which file it is, whatever its name is by now.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Device and inode: a path alone does not survive a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// That of a file with this metadata.
pub(super) fn file_id(metadata: &Metadata) -> FileId {
    FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}
