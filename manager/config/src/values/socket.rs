//! Values of a socket's `family` and `type`.

use crate::types::{SocketFamily, SocketType};

/// With or without `AF_`, in any case.
pub(crate) fn family(text: &str) -> Result<SocketFamily, String> {
    match prefixless(text, "AF_").as_str() {
        "INET" => Ok(SocketFamily::Inet),
        "INET6" => Ok(SocketFamily::Inet6),
        "UNIX" => Ok(SocketFamily::Unix),
        _ => Err("expected AF_INET, AF_INET6 or AF_UNIX".to_owned()),
    }
}

/// With or without `SOCK_`, in any case.
pub(crate) fn kind(text: &str) -> Result<SocketType, String> {
    match prefixless(text, "SOCK_").as_str() {
        "STREAM" => Ok(SocketType::Stream),
        "DGRAM" => Ok(SocketType::Dgram),
        "RAW" => Ok(SocketType::Raw),
        "RDM" => Ok(SocketType::Rdm),
        "SEQPACKET" => Ok(SocketType::Seqpacket),
        _ => {
            Err("expected SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_RDM or SOCK_SEQPACKET".to_owned())
        }
    }
}

fn prefixless(text: &str, prefix: &str) -> String {
    let text = text.trim().to_uppercase();
    text.strip_prefix(prefix).unwrap_or(&text).to_owned()
}

/// A name or an address.
pub(crate) fn host(text: &str) -> Result<String, String> {
    Ok(text.trim().to_owned())
}
