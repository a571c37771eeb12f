//! The checks of requests that their types cannot make: lengths, ranges, contradictions.
//!
//! Owns which requests are refused before anything is looked up; the classic dialect's sockets and
//! processes pass through the same checks.

use crate::json::reply::{ErrorCode, Failure};
use crate::json::request::ops::{
    Claim, Hello, HoldDrop, KernelUpgrade, OutputConsume, OutputFollow, ProcessMake, ProcessRemove,
    SocketMake, SocketRemove, ValueRemove, ValueSet,
};
use crate::limits;
use crate::name::NamePattern;
use crate::size::ByteSize;
use crate::socket::{Family, quoted};
use crate::text::ByteString;

impl Hello {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        let text = self.client.as_deref().unwrap_or_default();
        at_most("client", text.len(), limits::MAX_HOLDER_BYTES)
    }
}

impl ValueSet {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        at_most("value", self.value.len(), limits::MAX_VALUE_BYTES)
    }
}

impl KernelUpgrade {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        let Some(path) = &self.binary else {
            return Ok(());
        };
        at_most("binary", path.len(), limits::MAX_PATH_BYTES)?;
        if path.as_bytes().first() != Some(&b'/') || path.as_bytes().contains(&0) {
            return Err(invalid(
                "binary: expected an absolute path: the kernel's directory is not yours",
            ));
        }
        Ok(())
    }
}

impl ValueRemove {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        if self.names.iter().any(NamePattern::is_everything) {
            return Err(invalid(
                "names: \"*\" alone would remove all values; name a prefix",
            ));
        }
        not_empty(&self.names)
    }
}

impl SocketRemove {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        not_empty(&self.names)
    }
}

impl HoldDrop {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        not_empty(&self.names)
    }
}

impl OutputConsume {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        not_empty(&self.names)
    }
}

impl OutputFollow {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        not_empty(&self.names)
    }
}

impl ProcessRemove {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        if self.names.is_empty() && self.serials.is_empty() {
            return Err(invalid("names, serials: at least one is needed"));
        }
        Ok(())
    }
}

impl Claim {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        at_most("holder", self.holder.len(), limits::MAX_HOLDER_BYTES)
    }
}

impl SocketMake {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        self.check_fields()?;
        if self.aside.as_ref() == Some(&self.name) {
            return Err(invalid("aside: expected another name than the socket's"));
        }
        if self.effective_family() == Family::Unix {
            let absolute = self
                .path
                .as_ref()
                .is_some_and(|path| path.as_bytes().starts_with(b"/"));
            if !absolute {
                return Err(crate::classic::Error::PathNotAbsolute.into());
            }
        }
        Ok(())
    }

    /// The checks both dialects share: lengths and contradictions.
    pub(crate) fn check_fields(&self) -> Result<(), Failure> {
        if self
            .backlog
            .is_some_and(|backlog| backlog > limits::MAX_BACKLOG)
        {
            return Err(invalid(&format!(
                "backlog {}: expected a whole number from 0 to {}",
                self.backlog.unwrap_or_default(),
                limits::MAX_BACKLOG
            )));
        }
        if let Some(path) = &self.path {
            no_nul("path", path.as_bytes())?;
            at_most("path", path.len() + 1, limits::MAX_SOCKET_PATH_BYTES)?;
        }
        if let Some(host) = &self.host {
            no_nul("host", host.as_bytes())?;
            at_most("host", host.len(), limits::MAX_HOST_BYTES)?;
        }
        if let Some(interface) = &self.interface {
            no_nul("interface", interface.as_bytes())?;
            at_most(
                "interface",
                interface.len() + 1,
                limits::MAX_INTERFACE_BYTES,
            )?;
        }
        Ok(())
    }
}

impl ProcessMake {
    pub(super) fn checked(&self) -> Result<(), Failure> {
        if self.argv.is_empty() {
            return Err(crate::classic::Error::NoCommand.into());
        }
        self.check_fields()
    }

    /// The checks both dialects share: lengths, ranges and bytes no system call can carry.
    pub(crate) fn check_fields(&self) -> Result<(), Failure> {
        let mut total = 0;
        for argument in &self.argv {
            no_nul("argv", argument.as_bytes())?;
            at_most("argument", argument.len() + 1, limits::MAX_ARGUMENT_BYTES)?;
            total += argument.len() + 1;
        }
        if self.argv.first().is_some_and(ByteString::is_empty) {
            return Err(invalid("argv: the command is empty"));
        }
        for (name, value) in &self.env.0 {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(invalid(&format!(
                    "env {}: a variable's name must not be empty nor hold \"=\" or NUL",
                    quoted(name)
                )));
            }
            no_nul("env", value.as_bytes())?;
            let length = name.len() + value.len() + 2;
            at_most("env variable", length, limits::MAX_ARGUMENT_BYTES)?;
            total += length;
        }
        at_most("argv and env", total, limits::MAX_ARGV_BYTES)?;
        if let Some(directory) = &self.working_dir {
            no_nul("working_dir", directory.as_bytes())?;
            at_most("working_dir", directory.len() + 1, limits::MAX_PATH_BYTES)?;
        }
        in_range("nice", self.nice, -20, 19)?;
        in_range("oom_score_adj", self.oom_score_adj, -1000, 1000)?;
        for number in self.descriptors.keys() {
            if !(3..=limits::MAX_DESCRIPTOR_NUMBER).contains(number) {
                return Err(invalid(&format!(
                    "descriptors {number}: expected a number from 3 to {}",
                    limits::MAX_DESCRIPTOR_NUMBER
                )));
            }
        }
        for (name, limit) in &self.rlimits {
            if limit.soft.unwrap_or(u64::MAX) > limit.hard.unwrap_or(u64::MAX) {
                return Err(invalid(&format!(
                    "rlimits {}: the soft limit is above the hard limit",
                    quoted(name)
                )));
            }
        }
        match self.reel_bytes {
            Some(ByteSize(bytes)) if bytes > limits::MAX_REEL_BYTES => Err(invalid(&format!(
                "reel_bytes {bytes}: at most {} are allowed",
                limits::MAX_REEL_BYTES
            ))),
            _ => Ok(()),
        }
    }
}

fn invalid(message: &str) -> Failure {
    Failure::new(ErrorCode::Invalid, message)
}

fn at_most(field: &str, length: usize, limit: usize) -> Result<(), Failure> {
    if length > limit {
        return Err(Failure::new(
            ErrorCode::Limit,
            &format!("{field} of {length} bytes: at most {limit} are allowed"),
        ));
    }
    Ok(())
}

fn no_nul(field: &str, bytes: &[u8]) -> Result<(), Failure> {
    if bytes.contains(&0) {
        return Err(invalid(&format!("{field}: a NUL byte is not allowed")));
    }
    Ok(())
}

fn not_empty(names: &[NamePattern]) -> Result<(), Failure> {
    if names.is_empty() {
        return Err(invalid("names: at least one is needed"));
    }
    Ok(())
}

fn in_range(field: &str, value: Option<i32>, low: i32, high: i32) -> Result<(), Failure> {
    match value {
        Some(value) if !(low..=high).contains(&value) => Err(invalid(&format!(
            "{field} {value}: expected a whole number from {low} to {high}"
        ))),
        _ => Ok(()),
    }
}
