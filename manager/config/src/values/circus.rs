//! Values of `[circus]`: where the kernel is, the namespace, the manager's own log.

use std::path::Path;

use crate::types::{KernelEndpoint, LogOutput, SyslogAddress, SyslogConfig};
use crate::values::stream;

/// Longest namespace, in bytes: it is part of every name and of a socket's path, which may have
/// 107.
const MAX_NAMESPACE_BYTES: usize = 32;

/// Circus's default facility.
const SYSLOG_USER: u8 = 1;

/// Levels `loglevel` knows.
const LOG_LEVELS: [&str; 5] = ["critical", "error", "warning", "info", "debug"];

/// `logoutput`: a file, a syslog daemon, or standard error, which is what Circus means by `-` and
/// `stdout` too. A relative path begins at `directory`.
pub(crate) fn log_output(text: &str, directory: &Path) -> Result<Option<LogOutput>, String> {
    match text.trim() {
        "-" | "stdout" => Ok(None),
        text if text.starts_with("syslog:") => syslog_output(text).map(Some),
        path => Ok(Some(LogOutput::File(directory.join(path)))),
    }
}

/// The text of a log output.
pub(crate) fn log_output_text(output: &LogOutput) -> String {
    match output {
        LogOutput::File(path) => path.display().to_string(),
        LogOutput::Syslog(syslog) => {
            let facility = stream::facility_name(&syslog.facility);
            match &syslog.address {
                SyslogAddress::Unix(path) => format!("syslog://{}?{facility}", path.display()),
                address @ SyslogAddress::Udp(..) => {
                    format!("{}?{facility}", stream::address_text(address))
                }
            }
        }
    }
}

/// A level of the manager's own log, lower case.
pub(crate) fn log_level(text: &str) -> Result<String, String> {
    let level = text.trim().to_lowercase();
    if LOG_LEVELS.contains(&level.as_str()) {
        Ok(level)
    } else {
        Err(format!("expected one of {}", LOG_LEVELS.join(", ")))
    }
}

/// `check_delay` of Circus, in seconds: a negative one turned its pass off.
pub(crate) fn check_delay(text: &str) -> Result<f64, String> {
    let number = text.trim().parse();
    number.map_err(|_| "expected seconds like 5".to_owned())
}

/// `syslog://HOST[:PORT][?FACILITY]` or `syslog:///PATH[?FACILITY]`.
pub(crate) fn syslog_output(text: &str) -> Result<LogOutput, String> {
    let (address, facility) = match text.trim().split_once('?') {
        Some((address, facility)) => (address, stream::facility(facility)?),
        None => (text.trim(), SYSLOG_USER),
    };
    let address = match address.strip_prefix("syslog://") {
        Some(path) if path.starts_with('/') => stream::syslog_address(path),
        _ => stream::syslog_address(address),
    };
    Ok(LogOutput::Syslog(SyslogConfig {
        address: address.map_err(|_| {
            "expected syslog://HOST[:PORT][?FACILITY] or syslog:///dev/log[?FACILITY]".to_owned()
        })?,
        facility,
        rfc5424: false,
    }))
}

/// A namespace as `--namespace` and the file take it.
///
/// # Errors
/// It is empty, too long, or has characters that could not stand in every name and path.
pub fn namespace(text: &str) -> Result<String, String> {
    let text = text.trim();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if text.is_empty() || text.len() > MAX_NAMESPACE_BYTES || !text.chars().all(legal) {
        return Err(format!(
            "expected 1 to {MAX_NAMESPACE_BYTES} letters, digits, `_` or `-`"
        ));
    }
    Ok(text.to_owned())
}

pub(crate) fn kernel_endpoint(text: &str) -> Result<KernelEndpoint, String> {
    const EXPECTED: &str = "expected ipc:/path, /path, @abstract or tcp://host:port";
    let text = text.trim();
    // Circus collapses the slashes after `ipc:` to one.
    let path = match text
        .strip_prefix("ipc:")
        .or_else(|| text.strip_prefix("unix:"))
    {
        Some(path) => Some(format!("/{}", path.trim_start_matches('/'))),
        None => text.starts_with('/').then(|| text.to_owned()),
    };
    if let Some(path) = path {
        return if path == "/" {
            Err(EXPECTED.to_owned())
        } else {
            Ok(KernelEndpoint::Unix(path.into()))
        };
    }
    if let Some(name) = text.strip_prefix('@').filter(|name| !name.is_empty()) {
        return Ok(KernelEndpoint::Abstract(name.to_owned()));
    }
    let (host, port) = text
        .strip_prefix("tcp://")
        .and_then(|address| address.trim_end_matches('/').rsplit_once(':'))
        .ok_or(EXPECTED)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port.parse() {
        Ok(port) if port > 0 && !host.is_empty() => Ok(KernelEndpoint::Tcp(host.to_owned(), port)),
        _ => Err(EXPECTED.to_owned()),
    }
}
