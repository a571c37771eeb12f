//! `[socket:NAME]`.

use super::{Key, NUMBER, PATH, TEXT, Value, Words, YES_NO, key};

/// Keys of `[socket:NAME]`.
pub const SOCKET: &[Key] = &[
    key(
        "path",
        PATH,
        Words(""),
        "a unix socket; family, host and port do not count then",
        "/run/web.sock",
    ),
    key(
        "host",
        "name or address",
        Value("localhost"),
        "where an inet socket is bound",
        "0.0.0.0",
    ),
    key(
        "port",
        "0 to 65535",
        Value("8080"),
        "its port; 0: any free one, shown by `papactl listsockets`",
        "9000",
    ),
    key(
        "family",
        "`AF_INET`, `AF_INET6` or `AF_UNIX`",
        Words("`AF_INET`; `AF_INET6` where `host` is such an address"),
        "address family",
        "AF_INET6",
    ),
    key(
        "type",
        "`SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_RAW`, `SOCK_RDM` or `SOCK_SEQPACKET`",
        Value("SOCK_STREAM"),
        "only STREAM and SEQPACKET sockets listen",
        "SOCK_DGRAM",
    ),
    key(
        "proto",
        "name of a protocol, as in /etc/protocols",
        Words("the type's usual one"),
        "must be the one the type has anyway: the kernel opens no other",
        "tcp",
    ),
    key(
        "backlog",
        NUMBER,
        Value("2048"),
        "length of the accept queue",
        "128",
    ),
    key(
        "umask",
        "mask; octal with a leading 0, else decimal",
        Value("010"),
        "mask of a unix socket's file mode; decimal is what Circus reads, and is warned about",
        "077",
    ),
    key(
        "replace",
        YES_NO,
        Value("no"),
        "take the path over even if somebody serves it; a path that nobody serves is always replaced",
        "yes",
    ),
    key(
        "interface",
        TEXT,
        Words("all"),
        "bind to this network interface",
        "eth0",
    ),
    key(
        "so_reuseport",
        YES_NO,
        Value("no"),
        "a fresh socket on the same port for each worker",
        "yes",
    ),
    key(
        "blocking",
        YES_NO,
        Words("`no`; `yes` if the section says `use_papa = yes`, as for the sockets of papa"),
        "no: `O_NONBLOCK` is set on the socket, for all its holders",
        "yes",
    ),
    key(
        "v6only",
        YES_NO,
        Words("the system's; `yes` where another section has its port for IPv4"),
        "an `AF_INET6` socket leaves IPv4 to others: `::` and `0.0.0.0` can then have one port (not in Circus)",
        "yes",
    ),
    key(
        "use_papa",
        YES_NO,
        Words("`yes`"),
        "no: the socket is closed when the manager quits; if `yes` is written, `blocking` is `yes` unless written too",
        "no",
    ),
];
