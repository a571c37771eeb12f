//! The keys each kind of section knows.
//!
//! Owns the lists, so that a misspelt key is reported instead of silently kept, and a key that is accepted without
//! effect says so. Values are `resolve`'s.
//! Source: Circus 0.17.2's option tables; manager/README.md lists the same.

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is obeyed.
    Active,
    /// It is kept and shown, and has no effect yet, or none any more; the text says what that means.
    Inactive(&'static str),
}

use Effect::{Active, Inactive};

const NOT_YET: Effect = Inactive("is accepted but not yet active");
const ZMQ: Effect =
    Inactive("is accepted but not active: papactl uses a private unix socket instead of ZeroMQ");
const NEVER_READ: Effect = Inactive("has no effect, as in Circus");

/// Keys of `[circus]`.
pub const CIRCUS: &[(&str, Effect)] = &[
    // Exits are noticed at once, so there is no pass whose period this could be.
    ("check_delay", Active),
    ("debug", Active),
    ("debug_gc", NEVER_READ),
    ("endpoint", ZMQ),
    ("endpoint_owner", ZMQ),
    ("fqdn_prefix", NEVER_READ),
    ("httpd", NOT_YET),
    ("httpd_host", NOT_YET),
    ("httpd_port", NOT_YET),
    ("include", Active),
    ("include_dir", Active),
    ("loggerconfig", NOT_YET),
    ("loglevel", Active),
    ("logoutput", NOT_YET),
    ("multicast_endpoint", ZMQ),
    ("namespace", Active),
    ("papa_endpoint", Active),
    ("pidfile", NOT_YET),
    ("pubsub_endpoint", ZMQ),
    ("stats_endpoint", NOT_YET),
    ("statsd", NOT_YET),
    ("umask", Active),
    ("warmup_delay", Active),
];

/// Keys of `[watcher:NAME]`.
pub const WATCHER: &[(&str, Effect)] = &[
    ("args", Active),
    ("autostart", Active),
    ("check_flapping", NEVER_READ),
    ("close_child_stderr", Active),
    ("close_child_stdin", Active),
    ("close_child_stdout", Active),
    ("cmd", Active),
    ("copy_env", Active),
    ("copy_path", NOT_YET),
    ("executable", NEVER_READ),
    ("gid", Active),
    ("graceful_timeout", Active),
    ("max_age", NOT_YET),
    ("max_age_variance", NOT_YET),
    ("max_retry", Active),
    ("name", Active),
    ("numprocesses", Active),
    ("on_demand", NOT_YET),
    ("priority", Active),
    ("respawn", Active),
    ("send_hup", Active),
    ("shell", Active),
    ("shell_args", Active),
    ("singleton", Active),
    ("stdin_socket", Active),
    ("stop_children", Active),
    ("stop_signal", Active),
    ("uid", Active),
    ("use_papa", Active),
    ("use_sockets", Active),
    ("virtualenv", NOT_YET),
    ("virtualenv_py_ver", NOT_YET),
    ("warmup_delay", Active),
    ("working_dir", Active),
];

/// Keys of `[socket:NAME]`.
pub const SOCKET: &[(&str, Effect)] = &[
    ("backlog", Active),
    ("blocking", Active),
    ("family", Active),
    ("host", Active),
    ("interface", Active),
    ("path", Active),
    ("port", Active),
    ("proto", NOT_YET),
    ("replace", Active),
    ("so_reuseport", Active),
    ("type", Active),
    ("umask", Active),
    ("use_papa", Active),
];

/// Options of `stdout_stream.` and `stderr_stream.`.
pub const STREAM: &[(&str, Effect)] = &[
    ("backup_count", Active),
    ("class", Active),
    (
        "color",
        Inactive("is accepted but not active: output is not coloured"),
    ),
    ("filename", Active),
    ("max_bytes", Active),
    ("refresh_time", NEVER_READ),
    ("rotate_interval", NOT_YET),
    ("rotate_when", NOT_YET),
    ("time_format", Active),
    ("utc", NOT_YET),
];

/// Kinds of sections, for suggestions.
pub const SECTIONS: &[(&str, Effect)] = &[
    ("circus", Active),
    ("env", Active),
    ("plugin", NOT_YET),
    ("socket", Active),
    ("watcher", Active),
];

/// What `key` does, if the list has it.
#[must_use]
pub fn effect(list: &[(&str, Effect)], key: &str) -> Option<Effect> {
    list.iter()
        .find(|(known, _)| *known == key)
        .map(|(_, effect)| *effect)
}

/// Whether any section knows `key`.
#[must_use]
pub fn is_known(key: &str) -> bool {
    [CIRCUS, WATCHER, SOCKET]
        .iter()
        .any(|list| effect(list, key).is_some())
        || ["stdout_stream.", "stderr_stream.", "hooks.", "rlimit_"]
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

/// The key that was probably meant by an unknown one.
#[must_use]
pub fn suggestion<'a>(list: &[(&'a str, Effect)], key: &str) -> Option<&'a str> {
    let lower = key.to_lowercase();
    let tolerance = (lower.chars().count() / 3).min(2);
    list.iter()
        .map(|(known, _)| (distance(&lower, known), *known))
        .filter(|(distance, _)| *distance <= tolerance)
        .min()
        .map(|(_, known)| known)
}

/// Longest text worth comparing, in characters; no known key is near that.
const MAX_COMPARED: usize = 64;

/// Insertions, deletions, replacements and swaps of neighbours between two texts.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(MAX_COMPARED).collect();
    let b: Vec<char> = b.chars().take(MAX_COMPARED).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_keys_are_recognised() {
        assert_eq!(suggestion(WATCHER, "numproceses"), Some("numprocesses"));
        assert_eq!(suggestion(WATCHER, "Numprocesses"), Some("numprocesses"));
        assert_eq!(suggestion(WATCHER, "cdm"), Some("cmd"));
        assert_eq!(suggestion(WATCHER, "active"), None);
        assert_eq!(suggestion(WATCHER, "stats_base_port"), None);
        assert_eq!(suggestion(SECTIONS, "wacher"), Some("watcher"));
    }
}
