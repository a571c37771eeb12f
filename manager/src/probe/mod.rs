//! Asking from outside whether something serves: for readiness, health checks and starts on demand.
//!
//! Owns the questions and the bound on each; leaves to `supervisor` when to ask and what an answer
//! leads to.
//! Invariant: every function ends within the time it was given, may be dropped at any await and
//! then leaves no process, connection or thread of its own behind.
//!
//! | file | asks |
//! |---|---|
//! | `target`, `connect`, `http` | a TCP or unix socket, a web server |
//! | `command` | a program, run with the watcher's user and environment |
//! | `ready`, `notify`, `pipe` | the worker itself: it says when it serves |
//! | `demand` | a listening socket: is there a connection nobody takes? |

mod command;
mod connect;
pub mod demand;
mod http;
mod notify;
mod pipe;
pub mod ready;

use std::io;
use std::time::Duration;

use papa_client::ClientError;
use papa_protocol::name::NameError;

use crate::config::{HealthProbe, WatcherConfig, variables};

use crate::config::target;
pub use crate::config::target::TargetError;
pub use command::command;
pub use http::http;

/// What an answer of somebody else's is cut to in a message.
const SHOWN_BYTES: usize = 200;

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The configuration names nothing that can be asked.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was asked, or started.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{what}: no answer within {} ms", timeout.as_millis())]
    Timeout {
        /// What was asked.
        what: String,
        /// For so long.
        timeout: Duration,
    },
    /// There is an answer, and it is no.
    #[error("{what}: {answer}")]
    Answer {
        /// What was asked.
        what: String,
        /// What it said, and what would have been right.
        answer: String,
    },
    /// Nothing is held for this worker: it was started by somebody who does not wait for it, and
    /// cannot say anything.
    #[error("worker {0} was started without a way to say that it is ready")]
    NotPrepared(String),
    /// A worker did not become ready in time, or will not; says what is missing.
    #[error("{0}")]
    NotReady(String),
    /// The kernel does not keep what it must keep.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A name the kernel would not take.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl ProbeError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Whether something accepts connections at `address`, `HOST:PORT` or `unix:/PATH`.
///
/// Proves nothing about a listener the kernel holds: that one accepts while nobody serves. Ask such
/// a service over HTTP.
///
/// # Errors
/// Nobody listens there, or no answer came in time.
pub async fn tcp(address: &str, timeout: Duration) -> Result<(), ProbeError> {
    let what = format!("tcp {address}");
    let target = target::tcp(address)?;
    in_time(&what, timeout, async {
        connect::connect(&target)
            .await
            .map(drop)
            .map_err(ProbeError::io(&what))
    })
    .await
}

/// Whether worker `wid` of `watcher`, whose process is `pid`, is well.
///
/// # Errors
/// It is not, or the question could not be asked.
pub async fn health(
    probe: &HealthProbe,
    watcher: &WatcherConfig,
    wid: u32,
    pid: u32,
    timeout: Duration,
) -> Result<(), ProbeError> {
    match probe {
        HealthProbe::Tcp(address) => tcp(&for_worker(address, wid), timeout).await,
        HealthProbe::Http(url) => http(&for_worker(url, wid), timeout).await,
        HealthProbe::Command(argv) => {
            let argv: Vec<String> = argv.iter().map(|word| for_worker(word, wid)).collect();
            command(&argv, watcher, pid, timeout).await
        }
    }
}

/// Replaces the worker's number.
fn for_worker(text: &str, wid: u32) -> String {
    variables::replace(text, |key| (key == "wid").then(|| wid.to_string()))
}

async fn in_time<T>(
    what: &str,
    timeout: Duration,
    question: impl Future<Output = Result<T, ProbeError>>,
) -> Result<T, ProbeError> {
    match tokio::time::timeout(timeout, question).await {
        Ok(answer) => answer,
        Err(_) => Err(ProbeError::Timeout {
            what: what.to_owned(),
            timeout,
        }),
    }
}

/// What somebody else wrote, safe and short enough for a message.
fn shown(bytes: &[u8]) -> String {
    let cut = bytes.len().min(SHOWN_BYTES);
    let mut text = papa_protocol::text::escape_control_bytes(&bytes[..cut]);
    if cut < bytes.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use papa_test_hooks::patience::eventually;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn tcp_tells_a_listener_from_nobody() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        tcp(&address.to_string(), SOON).await.unwrap();
        tcp(&format!("localhost:{}", address.port()), SOON)
            .await
            .unwrap();
        drop(listener);
        // A child of another test may have a copy of the listener until its exec.
        let refused = || std::net::TcpStream::connect(address).is_err();
        assert!(eventually(refused));
        let error = tcp(&address.to_string(), SOON).await.unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(matches!(
            tcp("nonsense", SOON).await,
            Err(ProbeError::Target(_))
        ));
        let error = tcp("no-such-host.invalid:80", SOON).await.unwrap_err();
        assert!(matches!(error, ProbeError::Io { .. }), "{error}");
    }

    #[test]
    fn what_others_say_is_cut_and_escaped() {
        assert_eq!(shown(b"a\x1b[2Jb"), "a\\x1b[2Jb");
        assert!(shown(&[b'x'; 1000]).chars().count() < 210);
        assert_eq!(for_worker("127.0.0.1:80$(circus.wid)", 7), "127.0.0.1:807");
    }
}
