//! `HOST:PORT` and URLs, as the configuration writes them.
//!
//! Owns their syntax. Pure: no name is looked up.

use std::path::PathBuf;

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// A unix socket's path.
    Unix(PathBuf),
}

/// What to ask a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTarget {
    /// Where it is.
    pub target: Target,
    /// The `Host` header.
    pub host: String,
    /// Path and query, from the `/` on.
    pub path: String,
}

/// Text that names nothing to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?}: expected {expected}")]
pub struct TargetError {
    what: &'static str,
    text: String,
    expected: &'static str,
}

impl TargetError {
    /// What is accepted.
    #[must_use]
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

/// Reads `HOST:PORT`, `[IPV6]:PORT` or `unix:/PATH`.
///
/// # Errors
/// The text is none of these.
pub fn tcp(text: &str) -> Result<Target, TargetError> {
    let error = || TargetError {
        what: "address",
        text: text.to_owned(),
        expected: "HOST:PORT with a port from 1 to 65535, or unix:/PATH",
    };
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path).ok_or_else(error);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
    Ok(Target::Tcp(
        host_name(host).ok_or_else(error)?,
        port_number(port).ok_or_else(error)?,
    ))
}

/// Reads `http://HOST[:PORT][/PATH]`, or nginx's form for unix sockets,
/// `http://unix:/SOCKET[:/PATH]`.
///
/// # Errors
/// The text is no such URL; HTTPS is none.
pub fn http(text: &str) -> Result<HttpTarget, TargetError> {
    let error = || TargetError {
        what: "URL",
        text: text.to_owned(),
        expected: "http://HOST[:PORT]/PATH or http://unix:/SOCKET:/PATH, without blanks and characters beyond ASCII",
    };
    // What is sent is one line: nothing may end it early.
    let rest = text
        .strip_prefix("http://")
        .filter(|rest| rest.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(error)?;
    // A fragment is never sent.
    let rest = rest.split('#').next().unwrap_or(rest);
    if let Some(rest) = rest.strip_prefix("unix:") {
        let (socket, path) = rest.split_once(":/").unwrap_or((rest, ""));
        return Ok(HttpTarget {
            target: unix(socket).ok_or_else(error)?,
            host: "localhost".to_owned(),
            path: format!("/{path}"),
        });
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // Behind the last colon is the port, unless that colon is part of an IPv6 address.
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port_number(port).ok_or_else(error)?),
        _ => (authority, 80),
    };
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Ok(HttpTarget {
        target: Target::Tcp(host_name(name).ok_or_else(error)?, port),
        host: authority.to_owned(),
        path,
    })
}

fn unix(path: &str) -> Option<Target> {
    let path = path.strip_prefix("//").unwrap_or(path);
    (path.starts_with('/') && !path.contains('\0')).then(|| Target::Unix(path.into()))
}

fn host_name(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']')?;
        return inner
            .parse::<std::net::Ipv6Addr>()
            .ok()
            .map(|_| inner.to_owned());
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (!text.is_empty() && text.bytes().all(known)).then(|| text.to_owned())
}

fn port_number(text: &str) -> Option<u16> {
    let port = text.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = port.then(|| text.parse().ok()).flatten()?;
    (port != 0).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let host = |host: &str, port| Ok(Target::Tcp(host.into(), port));
        assert_eq!(tcp("127.0.0.1:80"), host("127.0.0.1", 80));
        assert_eq!(tcp("[::1]:8080"), host("::1", 8080));
        assert_eq!(tcp("a-b.example:1"), host("a-b.example", 1));
        assert_eq!(
            tcp("unix:/run/x.sock"),
            Ok(Target::Unix("/run/x.sock".into()))
        );
        for bad in [
            "",
            "80",
            "host:",
            ":80",
            "host:0",
            "host:65536",
            "h:+1",
            "::1:80",
            "[x]:1",
            "unix:x",
            "a b:1",
        ] {
            assert!(tcp(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls() {
        let url = http("http://localhost:8080/health?x=1#top").unwrap();
        assert_eq!(url.target, Target::Tcp("localhost".into(), 8080));
        assert_eq!(
            (url.host.as_str(), url.path.as_str()),
            ("localhost:8080", "/health?x=1")
        );
        let url = http("http://[::1]").unwrap();
        assert_eq!(url.target, Target::Tcp("::1".into(), 80));
        assert_eq!((url.host.as_str(), url.path.as_str()), ("[::1]", "/"));
        assert_eq!(http("http://h?q").unwrap().path, "/?q");
        let url = http("http://unix:/run/web.sock:/ping").unwrap();
        assert_eq!(url.target, Target::Unix("/run/web.sock".into()));
        assert_eq!(url.path, "/ping");
        assert_eq!(http("http://unix:/run/web.sock").unwrap().path, "/");
        for bad in [
            "https://h/",
            "h/",
            "http://",
            "http://h:x/",
            "http://u@h/",
            "http://h/ x",
            "http://h/\r\nX: y",
            "http://h/ü",
        ] {
            assert!(http(bad).is_err(), "{bad}");
        }
    }
}
