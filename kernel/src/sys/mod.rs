//! Every system call the kernel makes beyond what std and nix offer safely.
//!
//! The only module of the crate with `unsafe`. Names follow the man pages;
//! errors carry operation, object and errno through [`Errno`].
//! Descriptors are `OwnedFd`/`BorrowedFd`; raw numbers appear only at the
//! system call itself and in the plans a vforked child follows.
#![allow(
    unsafe_code,
    reason = "the one place for system calls; every block says why it holds"
)]

pub mod alarm;
pub mod cgroup;
pub mod clock;
pub mod diag;
pub mod errno;
pub mod memfd;
pub mod message;
pub mod pidfd;
pub mod poller;
pub mod process;
mod raw;
pub mod runtime;
pub mod socket;
pub mod spawn;

pub use nix::errno::Errno;
