//! Words of other managers that are no verbs here, and what to type instead.
//!
//! Owns the table; a word that merely looks like one of our verbs is left to clap.
//! Source: the command lines of supervisorctl, circusctl, pm2, systemctl, s6, runit and docker.

/// What to type instead of `word`, for people.
#[must_use]
pub(super) fn instead_of(word: &str) -> Option<&'static str> {
    Some(match word.to_lowercase().as_str() {
        "top" | "htop" | "monit" | "monitor" => "papactl stats",
        "avail" => "papactl options NAME, or papactl reloadconfig --plan",
        "maintail" => "the manager's log, which `papactl up` names",
        "clear" | "flush" => "papactl logs reads files and deletes none; truncate the file itself",
        "pid" | "pids" => "papactl list NAME",
        "fg" | "attach" => "papactl logs NAME -f",
        "enable" | "disable" => "autostart in the file, then papactl reloadconfig",
        "daemon-reload" => "papactl reloadconfig",
        "reload-or-restart" | "gracefulreload" | "startorreload" | "startorrestart" => {
            "papactl reload NAME"
        }
        "is-active" | "is-failed" => "papactl status NAME",
        "cat" | "show" | "describe" | "info" | "inspect" | "prettylist" | "config" => {
            "papactl options NAME"
        }
        "jlist" => "papactl status --json",
        "journalctl" | "log" => "papactl logs NAME",
        "save" | "resurrect" | "dump" => {
            "nothing: workers outlive the manager, and the file says what runs"
        }
        "startup" | "unstartup" => "a unit that runs `papactl up --foreground FILE`",
        "run" | "exec" => "papactl add --start NAME CMD",
        "exit" => "papactl quit, which leaves the workers, or papactl down",
        "events" | "subscribe" => "papactl listen",
        "sockets" => "papactl listsockets",
        "validate" | "configtest" | "-t" => "papactl check FILE",
        "init" | "daemon" | "serve" => "papactl up FILE",
        "rotate" => "papactl reopenlogs after logrotate, or max_bytes in the file",
        "hup" => "papactl signal NAME HUP",
        "web" => "papactl status; there is no page yet",
        _ => return None,
    })
}
