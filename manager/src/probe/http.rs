//! One HTTP request, as little of HTTP as the question needs.
//!
//! Owns the request's text and reading the status line. Nothing of the answer is kept; 200 to 399
//! is a yes.
//! Source: RFC 9112.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connect::{Connection, connect};
use super::{ProbeError, in_time, shown};
use crate::config::target;

/// Most bytes of an answer that are read before its status must be clear.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most bytes of an answer that are read and thrown away, so that the server can finish and sees no
/// reset.
const MAX_REST_BYTES: usize = 64 << 10;
/// How long that may take: it is a courtesy.
const REST_TIME: Duration = Duration::from_millis(50);

/// Whether `url` answers 200 to 399. Redirections are not followed.
///
/// # Errors
/// It answers something else, nobody listens there, or it takes longer than `timeout`.
pub async fn http(url: &str, timeout: Duration) -> Result<(), ProbeError> {
    let asked = target::http(url)?;
    in_time(url, timeout, async {
        let mut connection = connect(&asked.target).await.map_err(ProbeError::io(url))?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: papa-manager/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            asked.path,
            asked.host,
            env!("CARGO_PKG_VERSION"),
        );
        connection
            .write_all(request.as_bytes())
            .await
            .map_err(ProbeError::io(url))?;
        let answer = answer(&mut connection).await;
        match answer.map_err(ProbeError::io(url))? {
            Head::Status(200..=399, _) => {
                read_rest(&mut connection).await;
                Ok(())
            }
            Head::Status(_, line) => Err(no(url, &format!("answered {line:?}, expected 200 to 399"))),
            Head::Strange(bytes) if bytes.is_empty() => Err(no(url, "closed the connection without an answer")),
            Head::Strange(bytes) => {
                let line = shown(bytes.split(|byte| *byte == b'\n').next().unwrap_or_default());
                Err(no(url, &format!("answered {line:?}, expected an HTTP status line")))
            }
        }
    })
    .await
}

fn no(url: &str, answer: &str) -> ProbeError {
    ProbeError::Answer {
        what: url.to_owned(),
        answer: answer.to_owned(),
    }
}

/// How an answer begins.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// Its final status, and the line it is from.
    Status(u16, String),
    /// Nothing HTTP/1 knows.
    Strange(Vec<u8>),
}

async fn answer(connection: &mut Box<dyn Connection>) -> std::io::Result<Head> {
    let mut bytes = Vec::new();
    let mut piece = [0; 2048];
    loop {
        let read = connection.read(&mut piece).await?;
        bytes.extend_from_slice(&piece[..read]);
        match head(&bytes) {
            Some(head) => return Ok(head),
            None if read == 0 || bytes.len() >= MAX_HEAD_BYTES => return Ok(Head::Strange(bytes)),
            None => {}
        }
    }
}

/// The answer's head, once enough of it is there. Interim answers (100 to 199) are passed over.
fn head(bytes: &[u8]) -> Option<Head> {
    let mut rest = bytes;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        let Some(status) = status(line) else {
            return Some(Head::Strange(bytes.to_vec()));
        };
        if !(100..200).contains(&status) {
            return Some(Head::Status(status, shown(line)));
        }
        let next = rest.windows(4).position(|four| four == b"\r\n\r\n")?;
        rest = &rest[next + 4..];
    }
}

fn status(line: &[u8]) -> Option<u16> {
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, behind) = rest.split_at_checked(3)?;
    let ends = matches!(behind.first(), None | Some(b' '));
    let digits = std::str::from_utf8(digits).ok().filter(|_| ends)?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

async fn read_rest(connection: &mut Box<dyn Connection>) {
    let mut piece = [0; 4096];
    let rest = async {
        let mut left = MAX_REST_BYTES;
        while let Ok(read @ 1..) = connection.read(&mut piece).await {
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    };
    // Whether it finishes does not matter.
    let _ = tokio::time::timeout(REST_TIME, rest).await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// Answers one connection with `answer` and hands back what it was asked.
    fn server(answer: &'static [u8]) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut piece = [0; 512];
            while !asked.ends_with(b"\r\n\r\n") {
                let read = stream.read(&mut piece).unwrap();
                asked.extend_from_slice(&piece[..read]);
            }
            let _ = stream.write_all(answer);
            String::from_utf8(asked).unwrap()
        });
        (format!("http://{address}/health?a=b"), thread)
    }

    #[tokio::test]
    async fn a_yes_is_200_to_399() {
        for good in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..],
            b"HTTP/1.0 204\r\n\r\n",
            b"HTTP/1.1 302 Found\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            let (url, thread) = server(good);
            http(&url, SOON).await.unwrap();
            let asked = thread.join().unwrap();
            assert!(
                asked.starts_with("GET /health?a=b HTTP/1.1\r\nHost: 127.0.0.1:"),
                "{asked}"
            );
        }
    }

    #[tokio::test]
    async fn a_no_says_what_was_answered() {
        for (answer, says) in [
            (&b"HTTP/1.1 503 Busy\x1b\r\n\r\n"[..], "503 Busy"),
            (b"HTTP/1.1 404 \r\n\r\n", "404"),
            (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "status line"),
            (b"", "without an answer"),
            (b"HTTP/1.1 20", "HTTP/1.1 20"),
        ] {
            let (url, thread) = server(answer);
            let error = http(&url, SOON).await.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains('\x1b'), "{error:?}");
            thread.join().unwrap();
        }
    }

    #[tokio::test]
    async fn an_endless_answer_and_silence_end() {
        let (url, thread) = server(&[b'x'; 4 * MAX_HEAD_BYTES]);
        assert!(http(&url, SOON).await.is_err());
        thread.join().unwrap();
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let error = http(&url, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, ProbeError::Timeout { .. }), "{error}");
    }
}
