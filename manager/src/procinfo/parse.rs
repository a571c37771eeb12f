//! The texts of `/proc`.
//!
//! Owns their syntax. Pure; anything unexpected is `None`, since other systems' `/proc` may lack
//! things and a process may be gone half-way through its files.
//! Source: `proc_pid_stat(5)`, `proc_pid_status(5)`, `proc_pid_cmdline(5)`, `proc_meminfo(5)`.

/// What `/proc/PID/stat` says, in its own units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) zombie: bool,
    pub(super) parent: i32,
    /// User and system time in ticks.
    pub(super) cpu_ticks: u64,
    pub(super) nice: i32,
    /// In ticks since boot: with the pid it names one process for ever.
    pub(super) started_ticks: u64,
    pub(super) virtual_bytes: u64,
    pub(super) resident_pages: u64,
}

/// Reads the fields behind the command name, which may hold anything, parentheses included.
pub(super) fn stat(bytes: &[u8]) -> Option<Stat> {
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: number(11)?.saturating_add(number(12)?),
        nice: fields.get(16)?.parse().ok()?,
        started_ticks: number(19)?,
        virtual_bytes: number(20)?,
        // A process that is ending may be a little below nothing.
        resident_pages: number(21).unwrap_or(0),
    })
}

/// The real user in `/proc/PID/status`.
pub(super) fn user(text: &str) -> Option<u32> {
    value(text, "Uid:")?.parse().ok()
}

/// The program's file name, as it was called, in `/proc/PID/cmdline`. None for zombies and threads
/// of the system.
pub(super) fn program(bytes: &[u8]) -> Option<String> {
    let first = bytes.split(|byte| *byte == 0).next()?;
    let name = first.rsplit(|byte| *byte == b'/').next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// The machine's memory in bytes, in `/proc/meminfo`.
pub(super) fn memory_bytes(text: &str) -> Option<u64> {
    value(text, "MemTotal:")?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// When the machine started, in seconds since the epoch, in `/proc/stat`.
pub(super) fn boot_time(text: &str) -> Option<u64> {
    value(text, "btime")?.parse().ok()
}

/// Seconds since the machine started, in `/proc/uptime`.
pub(super) fn uptime(text: &str) -> Option<f64> {
    let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then_some(seconds)
}

/// The first word behind `key`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))?
        .split_ascii_whitespace()
        .next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_name_cannot_forge_fields() {
        let line = b"42 (a) R 1 1 ( x)) S 7 8 9 0 -1 4194560 1 2 3 4 115 35 6 7 39 19 1 0 123 2650112 417 18446744073709551615 1";
        let found = stat(line).unwrap();
        assert_eq!(
            found,
            Stat {
                zombie: false,
                parent: 7,
                cpu_ticks: 150,
                nice: 19,
                started_ticks: 123,
                virtual_bytes: 2_650_112,
                resident_pages: 417,
            }
        );
        let zombie = b"42 (x) Z 7 8 9 0 -1 0 0 0 0 0 1 1 0 0 20 -5 1 0 123 0 0 0";
        assert!(stat(zombie).is_some_and(|stat| stat.zombie && stat.nice == -5));
        let below = b"42 (x) S 7 8 9 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 123 0 -3 0";
        assert_eq!(stat(below).unwrap().resident_pages, 0);
        assert_eq!(stat(b"42 (x) S 7"), None);
    }

    #[test]
    fn the_other_files() {
        let status = "Name:\tUid:\nUid:\t1000\t0\t0\t0\nGid:\t5\n";
        assert_eq!(user(status), Some(1000));
        assert_eq!(user("Name:\tx\n"), None);
        assert_eq!(
            program(b"/usr/bin/python3\0-c\0x\0").as_deref(),
            Some("python3")
        );
        assert_eq!(
            program(b"nginx: master process").as_deref(),
            Some("nginx: master process")
        );
        assert_eq!(program(b"\xff\0").as_deref(), Some("\u{fffd}"));
        assert_eq!((program(b""), program(b"dir/\0")), (None, None));
        assert_eq!(
            memory_bytes("MemFree: 1 kB\nMemTotal:       2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(
            boot_time("cpu  1 2\nbtime 1700000000\n"),
            Some(1_700_000_000)
        );
        assert_eq!(uptime("12.50 99.0\n"), Some(12.5));
        assert_eq!((uptime("nan 1"), uptime("")), (None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = (stat(&bytes), program(&bytes), user(&text), memory_bytes(&text), boot_time(&text), uptime(&text));
        }
    }
}
