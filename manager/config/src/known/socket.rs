//! `[socket:NAME]`.

use super::key::{self, Form, Key, MAX_WHOLE, OnChange};
use super::{PATH, TEXT};
use crate::scalar;
use crate::types::SocketConfig;
use crate::values::socket as values;

type Section = SocketConfig;

/// Keys of `[socket:NAME]`.
pub const SOCKET: &[Key<SocketConfig>] = &[
    path!("path", path)
        .change(OnChange::Reopen)
        .meaning("a unix socket; family, host and port do not count then")
        .example("/run/web.sock"),
    optional!(
        "host",
        Form::Text("name or address"),
        host,
        values::host,
        Clone::clone
    )
    .change(OnChange::Reopen)
    .default("localhost")
    .meaning("where an inet socket is bound")
    .example("0.0.0.0"),
    Key::new("port", Form::Number(0, 65535))
        .field(
            |socket: &mut Section, written| {
                socket.port = Some(key::to_number(written.text, 0, 65535)?);
                Ok(())
            },
            |socket| Some(socket.port.map_or(String::new(), |port| port.to_string())),
        )
        .change(OnChange::Reopen)
        .default("8080")
        .meaning("its port; 0: any free one, shown by `papactl listsockets`")
        .example("9000"),
    Key::new("family", Form::Text("`AF_INET`, `AF_INET6` or `AF_UNIX`"))
        .field(
            |socket: &mut Section, written| {
                socket.family = values::family(written.text)?;
                Ok(())
            },
            |socket| Some(socket.family.word().to_owned()),
        )
        .change(OnChange::Reopen)
        .without("`AF_INET`; `AF_INET6` where `host` is such an address")
        .meaning("address family")
        .example("AF_INET6"),
    Key::new(
        "type",
        Form::Text("`SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_RAW`, `SOCK_RDM` or `SOCK_SEQPACKET`"),
    )
    .field(
        |socket: &mut Section, written| {
            socket.kind = values::kind(written.text)?;
            Ok(())
        },
        |socket| Some(socket.kind.word().to_owned()),
    )
    .change(OnChange::Reopen)
    .default("SOCK_STREAM")
    .meaning("only STREAM and SEQPACKET sockets listen")
    .example("SOCK_DGRAM"),
    Key::new(
        "proto",
        Form::Text("name of a protocol, as in /etc/protocols"),
    )
    .change(OnChange::Never)
    .without("the type's usual one")
    .meaning("must be the one the type has anyway: the kernel opens no other")
    .example("tcp"),
    number!("backlog", 0, MAX_WHOLE, backlog)
        .change(OnChange::Reopen)
        .default("2048")
        .meaning("length of the accept queue")
        .example("128"),
    Key::new(
        "umask",
        Form::Text("mask; octal with a leading 0, else decimal"),
    )
    .show(|socket: &Section| Some(socket.umask.as_ref().map_or(String::new(), key::mask)))
    .change(OnChange::Reopen)
    // It is odd, but a front end that runs as another user depends on being let in.
    .default("010")
    .meaning(
        "mask of a unix socket's file mode; decimal is what Circus reads, and is \
         warned about",
    )
    .example("077"),
    // Only how it is opened.
    flag!("replace", replace)
        .default("no")
        .meaning(
            "take the path over even if somebody serves it; a path that nobody serves is \
             always replaced",
        )
        .example("yes"),
    Key::new("interface", TEXT)
        .field(
            |socket: &mut Section, written| {
                socket.interface = Some(written.text.to_owned());
                Ok(())
            },
            |socket| Some(socket.interface.clone().unwrap_or_default()),
        )
        .or_blank()
        .change(OnChange::Reopen)
        .without("all")
        .meaning("bind to this network interface")
        .example("eth0"),
    flag!("so_reuseport", reuseport)
        .change(OnChange::Reopen)
        .default("no")
        .meaning("a fresh socket on the same port for each worker")
        .example("yes"),
    Key::new("blocking", Form::YesNo)
        .field(
            |socket: &mut Section, written| {
                socket.nonblocking = !scalar::boolean(written.text)?;
                Ok(())
            },
            |socket| Some(key::yes_no(&!socket.nonblocking)),
        )
        .change(OnChange::Reopen)
        .without("`no`; `yes` if the section says `use_papa = yes`, as for the sockets of papa")
        .meaning("no: `O_NONBLOCK` is set on the socket, for all its holders")
        .example("yes"),
    Key::new("v6only", Form::YesNo)
        .field(
            |socket: &mut Section, written| {
                socket.v6only = Some(scalar::boolean(written.text)?);
                Ok(())
            },
            |socket| Some(socket.v6only.as_ref().map_or(String::new(), key::yes_no)),
        )
        .change(OnChange::Reopen)
        .without("the system's; `yes` where another section has its port for IPv4")
        .meaning(
            "an `AF_INET6` socket leaves IPv4 to others: `::` and `0.0.0.0` can then have \
             one port (not in Circus)",
        )
        .example("yes"),
    // Only when it is given up.
    flag!("use_papa", use_papa)
        .without("`yes`")
        .meaning(
            "no: the socket is closed when the manager quits; if `yes` is written, \
             `blocking` is `yes` unless written too",
        )
        .example("no"),
];
