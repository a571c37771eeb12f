//! System calls without the C library's `errno`.
//!
//! A child that shares this process's memory while this process goes on would overwrite its
//! `errno`.
//! Source: `syscall(2)`, "Architecture calling conventions".

/// What is needed beside for a child that shares memory: the system says when it has let go of it.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(target_env = "musl")
))]
pub(super) const CLONE_FLAGS: libc::c_int = libc::CLONE_CHILD_CLEARTID;
/// Where the call below is the C library's, the parent stands still instead. musl refuses the other
/// flags (EINVAL).
#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(target_env = "musl")
)))]
pub(super) const CLONE_FLAGS: libc::c_int = libc::CLONE_VFORK;

/// Makes a system call; a negative result is an errno.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> libc::c_long {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the registers of the convention; the caller upholds the rest.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a system call; a negative result is an errno.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> libc::c_long {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the registers of the convention; the caller upholds the rest.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
    }
    result
}

/// Makes a system call; a negative result is an errno.
///
/// # Safety
/// As the call itself.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> libc::c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller upholds it; the parent stands still meanwhile.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        -libc::c_long::from(nix::errno::Errno::last_raw())
    } else {
        result
    }
}
