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
        Value("AF_INET"),
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
        Words("`no`; `yes` where `use_papa = yes` is written, as papa's were"),
        "no: `O_NONBLOCK` is set on the socket, for all its holders",
        "yes",
    ),
    key(
        "use_papa",
        YES_NO,
        Words("`yes`, and `blocking` is `no`"),
        "no: given up when the manager quits",
        "no",
    ),
];
