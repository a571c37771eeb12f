//! What a service manager that asked for it is told.
//!
//! Source: `sd_notify(3)`. The variable it asks by is read once, by the
//! launcher; roles hand it on among their settings, so that no process
//! inherits it.

use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable that names the socket.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// Says `state`, as in `READY=1`, and that the main process is `main`.
/// Nobody listening is the service manager's affair.
pub(super) fn tell(socket: Option<&str>, state: &str, main: i32) {
    let (Some(path), Ok(sender)) = (socket, UnixDatagram::unbound()) else {
        return;
    };
    // It may stand still, and nobody here may.
    let _ = sender.set_nonblocking(true);
    let text = format!("{state}MAINPID={main}");
    if let Some(name) = path.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        if let Ok(address) = SocketAddr::from_abstract_name(name) {
            let _ = sender.send_to_addr(text.as_bytes(), &address);
        }
    } else {
        let _ = sender.send_to(text.as_bytes(), path);
    }
}
