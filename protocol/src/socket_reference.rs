//! References to sockets inside arguments: `$(socket.NAME.fileno)` and `$(socket.NAME.port)`.
//!
//! Owns finding and replacing them; what a socket's numbers are, the caller says. The error texts
//! are papa 1.0.6's; unlike it, every reference in an argument is replaced, not only the first.

use std::fmt::Write as _;

use crate::classic::Error;
use crate::name::Name;

const OPENING: &[u8] = b"$(socket.";

/// What of a socket is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The descriptor's number.
    Fileno,
    /// The port bound.
    Port,
}

/// Whether `argument` holds anything to replace; most hold nothing.
#[must_use]
pub fn is_present(argument: &[u8]) -> bool {
    argument
        .windows(OPENING.len())
        .any(|window| window == OPENING)
}

/// Replaces the references in one argument of the process `process`.
///
/// `lookup` answers the number for a socket's part, or `None` where there is no such socket or it
/// has none.
///
/// # Errors
/// A reference is malformed, or `lookup` answered `None` or failed.
pub fn replace(
    argument: &[u8],
    process: &Name,
    mut lookup: impl FnMut(&str, Part) -> Option<u32>,
) -> Result<Vec<u8>, Error> {
    let mut replaced = Vec::with_capacity(argument.len());
    let mut rest = argument;
    while let Some(start) = rest
        .windows(OPENING.len())
        .position(|window| window == OPENING)
    {
        replaced.extend_from_slice(&rest[..start]);
        let inside = &rest[start + OPENING.len()..];
        let Some(end) = inside.iter().position(|byte| *byte == b')') else {
            return Err(Error::ReferenceUnclosed(process.clone()));
        };
        let reference = String::from_utf8_lossy(&inside[..end]);
        let (name, part) = reference
            .rsplit_once('.')
            .ok_or(Error::ReferenceWithoutPart)?;
        let part = match part {
            "fileno" => Part::Fileno,
            "port" => Part::Port,
            _ => return Err(Error::ReferenceWithoutPart),
        };
        let number = lookup(name, part).ok_or_else(|| Error::SocketNotFound(name.to_owned()))?;
        let mut digits = String::new();
        // Writing to a String cannot fail.
        let _ = write!(digits, "{number}");
        replaced.extend_from_slice(digits.as_bytes());
        rest = &inside[end + 1..];
    }
    replaced.extend_from_slice(rest);
    Ok(replaced)
}

/// The sockets an argument refers to, in order, for the list of what a process inherits.
#[must_use]
pub fn names(argument: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = argument;
    while let Some(start) = rest
        .windows(OPENING.len())
        .position(|window| window == OPENING)
    {
        let inside = &rest[start + OPENING.len()..];
        let Some(end) = inside.iter().position(|byte| *byte == b')') else {
            break;
        };
        let reference = String::from_utf8_lossy(&inside[..end]);
        if let Some((name, _)) = reference.rsplit_once('.') {
            names.push(name.to_owned());
        }
        rest = &inside[end + 1..];
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(argument: &str) -> Result<String, Error> {
        let process = Name::new("p1").unwrap();
        replace(argument.as_bytes(), &process, |name, part| {
            match (name, part) {
                ("circus.web", Part::Fileno) => Some(100),
                ("circus.web", Part::Port) => Some(8080),
                _ => None,
            }
        })
        .map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn every_reference_is_replaced() {
        assert_eq!(run("plain").unwrap(), "plain");
        assert_eq!(run("fd://$(socket.circus.web.fileno)").unwrap(), "fd://100");
        assert_eq!(
            run("$(socket.circus.web.port)-$(socket.circus.web.fileno)!").unwrap(),
            "8080-100!"
        );
        assert_eq!(
            names(b"a$(socket.x.y.fileno)b$(socket.z.port)"),
            ["x.y", "z"]
        );
    }

    #[test]
    fn what_is_wrong_with_a_reference_is_said_as_papa_does() {
        assert_eq!(
            run("$(socket.nope.fileno)").unwrap_err().to_string(),
            "Socket nope not found"
        );
        assert_eq!(run("$(socket.web)"), Err(Error::ReferenceWithoutPart));
        assert_eq!(
            run("$(socket.circus.web.foo)"),
            Err(Error::ReferenceWithoutPart)
        );
        assert_eq!(
            run("$(socket.circus.web.fileno").unwrap_err().to_string(),
            "Process for p1 argument starts with \"$(socket.\" but has no closing parenthesis"
        );
    }
}
