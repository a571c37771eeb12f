//! `papactl listsockets`: the sockets held for the workers, as circusctl printed them.

use papa_system::printable::printable;

use crate::cli::Common;
use crate::commands::{CommandError, connect, print, print_json, with_ok};
use papa_control::message::{Command, Request, SocketsReply};

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let request = Request::waiting(Command::ListSockets);
    let reply: SocketsReply = connect(common)?.ask(&request, common.timeout())?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    let mut text = String::new();
    for socket in &reply.sockets {
        let place = match (&socket.path, &socket.host, socket.port) {
            (Some(path), ..) => path.clone(),
            (None, Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
            (None, Some(host), Some(port)) => format!("{host}:{port}"),
            _ => "?".to_owned(),
        };
        let fd = socket
            .fd
            .map_or_else(|| "-".to_owned(), |fd| fd.to_string());
        let trouble = match &socket.trouble {
            Some(trouble) => format!("  not there: {trouble}"),
            None => String::new(),
        };
        text.push_str(&printable(&format!(
            "{fd}:socket '{}' at {place}{trouble}",
            socket.name
        )));
        text.push('\n');
    }
    if text.is_empty() {
        text.push_str("no sockets\n");
    }
    print(&text)
}
