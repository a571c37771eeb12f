//! Memory files: created, read and written by position, never mapped.
//!
//! A memfd outlives the process that fills it as long as anyone holds a
//! descriptor, which is what makes the journal and the reels crash-proof.
//! Source: `memfd_create(2)`, `splice(2)`, `fallocate(2)`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bytes::BytesMut;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, SpliceFFlags, fallocate};
use nix::sys::memfd::MFdFlags;

/// Creates an empty, close-on-exec memory file; `name` shows in `/proc/PID/fd`.
///
/// # Errors
/// The errno of `memfd_create(2)`: mostly `EMFILE` or `ENFILE`.
pub fn memfd_create(name: &str) -> Result<OwnedFd, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    nix::sys::memfd::memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)
}

/// The file's size in bytes.
///
/// # Errors
/// The errno of `fstat(2)`.
pub fn size(file: impl AsFd) -> Result<u64, Errno> {
    let stat = nix::sys::stat::fstat(file)?;
    u64::try_from(stat.st_size).map_err(|_| Errno::EOVERFLOW)
}

/// Sets the file's size in bytes; growing leaves a hole.
///
/// # Errors
/// The errno of `ftruncate(2)`.
pub fn set_size(file: impl AsFd, size: u64) -> Result<(), Errno> {
    let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    nix::unistd::ftruncate(file, size)
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// The errno of `pwrite(2)`; some bytes may have been written.
pub fn write_at(file: impl AsFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let at = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        match nix::sys::uio::pwrite(&file, bytes, at) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads until `buffer` is full or the file ends; returns the bytes read.
///
/// # Errors
/// The errno of `pread(2)`.
pub fn read_at(file: impl AsFd, buffer: &mut [u8], mut offset: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        let at = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        match nix::sys::uio::pread(&file, &mut buffer[filled..], at) {
            Ok(0) => break,
            Ok(n) => {
                filled += n;
                offset += n as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}

/// Appends `length` bytes at `offset` of the file to `buffer`, without
/// clearing the room first: on the output path that would cost as much as the
/// copy itself. Returns the bytes appended, fewer only at the end of the file.
///
/// # Errors
/// The errno of `pread(2)`; the buffer is then as it was.
pub fn append_at(
    file: impl AsFd,
    buffer: &mut BytesMut,
    offset: u64,
    length: usize,
) -> Result<usize, Errno> {
    buffer.reserve(length);
    let before = buffer.len();
    let mut filled = 0;
    while filled < length {
        let at = i64::try_from(offset + filled as u64).map_err(|_| Errno::EFBIG)?;
        let room = &mut buffer.spare_capacity_mut()[filled..length];
        // SAFETY: the pointer leads to `room.len()` writable bytes of the
        // buffer's own memory.
        let result = unsafe {
            libc::pread(
                file.as_fd().as_raw_fd(),
                room.as_mut_ptr().cast(),
                room.len(),
                at,
            )
        };
        match Errno::result(result) {
            Ok(0) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(count) => filled += count.unsigned_abs(),
        }
    }
    // SAFETY: `filled` bytes behind `before` have been written by pread, and
    // they lie within the room reserved.
    unsafe { buffer.set_len(before + filled) };
    Ok(filled)
}

/// Has memory ready for `length` bytes at `offset`, leaving the size alone.
///
/// # Errors
/// The errno of `fallocate(2)`: `ENOSPC` or `ENOMEM` without it.
pub fn reserve(file: impl AsFd, offset: u64, length: u64) -> Result<(), Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
    fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length)
}

/// Gives the pages between `start` and `end` back, leaving the size alone.
///
/// # Errors
/// The errno of `fallocate(2)`.
pub fn punch_hole(file: impl AsFd, start: u64, end: u64) -> Result<(), Errno> {
    if end <= start {
        return Ok(());
    }
    let offset = i64::try_from(start).map_err(|_| Errno::EFBIG)?;
    let length = i64::try_from(end - start).map_err(|_| Errno::EFBIG)?;
    fallocate(
        file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        offset,
        length,
    )
}

/// Moves up to `length` bytes from `pipe` into `file` at `offset` without
/// waiting. The kernel copies and extends the file in one call, so a process
/// killed at any instant has either left the bytes in the pipe or in the file.
///
/// # Errors
/// `EAGAIN` when the pipe is empty, `EINVAL` where the file refuses splices,
/// else the errno of `splice(2)`. `Ok(0)` is end of file.
pub fn splice_at(
    pipe: impl AsFd,
    file: impl AsFd,
    offset: u64,
    length: usize,
) -> Result<usize, Errno> {
    let mut at = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    nix::fcntl::splice(
        pipe,
        None,
        file,
        Some(&mut at),
        length,
        SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE,
    )
}

/// Opens the same memory file once more, for reading only: also for whoever
/// opens that descriptor through `/proc` again. (Memory files begin with a mode
/// that lets everybody write.)
///
/// # Errors
/// The errno of `fchmod(2)` or `open(2)`; `ENOENT` without `/proc`.
pub fn reopen_read_only(file: std::os::fd::BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    nix::sys::stat::fchmod(file, nix::sys::stat::Mode::S_IRUSR)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::fcntl::open(
        path.as_str(),
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// Throws away up to `length` bytes of `pipe` by splicing them into `sink`
/// (`/dev/null`), without waiting.
///
/// # Errors
/// As [`splice_at`].
pub fn splice_away(pipe: impl AsFd, sink: impl AsFd, length: usize) -> Result<usize, Errno> {
    nix::fcntl::splice(
        pipe,
        None,
        sink,
        None,
        length,
        SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use papa_test_hooks::patience::eventually;

    #[test]
    fn writes_read_back_and_holes_read_as_zero() {
        let file = memfd_create("test").unwrap();
        write_at(&file, b"hello", 10_000).unwrap();
        assert_eq!(size(&file).unwrap(), 10_005);
        let mut buffer = [1u8; 10];
        assert_eq!(read_at(&file, &mut buffer, 9_998).unwrap(), 7);
        assert_eq!(&buffer[..7], b"\0\0hello");
        punch_hole(&file, 8_192, 10_005).unwrap();
        assert_eq!(read_at(&file, &mut buffer[..5], 10_000).unwrap(), 5);
        assert_eq!(&buffer[..5], b"\0\0\0\0\0");
    }

    #[test]
    fn splice_moves_what_is_there_and_tells_the_end() {
        let file = memfd_create("test").unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        assert_eq!(splice_at(&read, &file, 0, 100), Err(Errno::EAGAIN));
        nix::unistd::write(&write, b"abc").unwrap();
        assert_eq!(splice_at(&read, &file, 4_096, 100), Ok(3));
        assert_eq!(size(&file).unwrap(), 4_099);
        drop(write);
        let end = || splice_at(&read, &file, 4_099, 100) == Ok(0);
        assert!(eventually(end));
    }
}
