//! Tells a service manager about readiness and the main process, if it has asked for that.
//!
//! The launcher reads the environment variable once; the roles hand its value on among their
//! settings, so that no worker inherits it.
//! Source: `sd_notify(3)`.

use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable that names the socket.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// Sends `state`, such as `READY=1`, and that the main process is `main`. A failure is ignored: the
/// service manager notices by itself.
pub(super) fn tell(socket: Option<&str>, state: &str, main: i32) {
    let (Some(path), Ok(sender)) = (socket, UnixDatagram::unbound()) else {
        return;
    };
    // The keeper must not wait for a service manager that stands still.
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
