//! A service in Rust: its listening socket is its standard input (`stdin_socket`), which needs
//! neither a number nor `unsafe`.
//!
//! What it takes to be replaced without an error is in DRAIN 1 to 4, and explained in README.md.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// What clients are promised: an idle connection is not closed before so many seconds.
const KEEP_ALIVE_SECONDS: u64 = 5;
/// How long one may be idle: the promise and a margin, since the client's clock starts later than
/// ours.
const MAX_IDLE: Duration = Duration::from_secs(KEEP_ALIVE_SECONDS + 1);
/// Longest head of a request.
const MAX_HEAD_BYTES: u64 = 16 * 1024;
/// Pause after accept failed, for example for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let version: Arc<str> = std::fs::read_to_string("VERSION")?.trim().into();
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    // Everything that can fail is done. Only now are connections accepted.
    let listener = TcpListener::from_std(listener)?;
    ready()?;

    let (drain, draining) = watch::channel(false);
    // Each connection holds a sender and sends nothing: the channel ends with the last of them.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => break,
        };
        let Ok((stream, _)) = accepted else {
            sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let (version, draining, open) = (version.clone(), draining.clone(), open.clone());
        tokio::spawn(async move {
            let _open = open;
            // A client that goes away has nobody to tell.
            let _ = serve(stream, &version, &draining).await;
        });
    }
    // DRAIN 1: accept no more. The socket stays open with the kernel; whoever waits in its queue is
    // served by the others.
    drop(listener);
    drain.send_replace(true);
    // DRAIN 3: connections are waited for, not closed. One that is idle has one more answer, or the
    // promised time runs out.
    drop(open);
    all_closed.recv().await;
    // DRAIN 4: end by yourself, before `graceful_timeout`.
    Ok(())
}

async fn serve(
    stream: TcpStream,
    version: &str,
    draining: &watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(path) = timeout(MAX_IDLE, head(&mut stream)).await?? {
        let body = match path.as_str() {
            "/health" => "ok\n".to_owned(),
            _ => format!("rust {version} {}\n", std::process::id()),
        };
        // DRAIN 2: this answer is the last one of its connection, and says so. The client opens
        // another, which a new worker accepts.
        let last = *draining.borrow();
        let connection = if last {
            "Connection: close".to_owned()
        } else {
            format!("Keep-Alive: timeout={KEEP_ALIVE_SECONDS}")
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{connection}\r\n\r\n{body}",
            body.len()
        );
        if path == "/slow" {
            let (first, rest) = answer.split_at(answer.len() - 5);
            stream.write_all(first.as_bytes()).await?;
            sleep(Duration::from_millis(200)).await;
            stream.write_all(rest.as_bytes()).await?;
        } else {
            stream.write_all(answer.as_bytes()).await?;
        }
        if last {
            break;
        }
    }
    stream.shutdown().await
}

/// The path of the next request; none when the client is done. Requests with a body are beyond this
/// example.
async fn head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut lines = stream.take(MAX_HEAD_BYTES).lines();
    let Some(request) = lines.next_line().await? else {
        return Ok(None);
    };
    while let Some(line) = lines.next_line().await? {
        if line.is_empty() {
            return Ok(request.split(' ').nth(1).map(str::to_owned));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// READY=1 to the manager, if one asks for it; `sd_notify(3)`.
fn ready() -> io::Result<()> {
    let Ok(address) = std::env::var("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}
