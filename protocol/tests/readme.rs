//! What README.md, the normative text, shows is what the crate does.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests panic like the tests themselves"
)]

use papa_protocol::json::Request;
use papa_protocol::json::reply::{ErrorCode, Message};
use papa_protocol::json::request::Op;
use papa_protocol::{classic, limits};

const README: &str = include_str!("../README.md");

/// The lines of the indented blocks of the section with this heading.
fn block(heading: &str) -> Vec<&'static str> {
    let (_, section) = README
        .split_once(&format!("\n### {heading}\n"))
        .expect(heading);
    let end = section.find("\n#").unwrap_or(section.len());
    section[..end]
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .collect()
}

#[test]
fn the_json_session_is_understood() {
    let lines = block("A JSON session");
    let mut requests = 0;
    let mut refused = None;
    for line in lines {
        if let Some(request) = line.strip_prefix(">> ") {
            requests += 1;
            refused = Request::parse(request.as_bytes())
                .err()
                .map(|rejected| rejected.failure);
            continue;
        }
        if !line.starts_with('{') || line.contains('…') {
            continue;
        }
        match Message::parse(line.as_bytes()).expect(line) {
            Message::Reply {
                result: Err(shown), ..
            } => assert_eq!(refused.take(), Some(shown)),
            Message::Unknown => panic!("{line}"),
            Message::Reply { .. } | Message::Output(_) | Message::Push(_) => {
                assert_eq!(refused, None);
            }
        }
    }
    assert!(requests > 5);
}

#[test]
fn the_classic_session_is_understood() {
    let mut commands = 0;
    for command in block("A classic session")
        .iter()
        .filter_map(|line| line.strip_prefix("> "))
    {
        commands += 1;
        let parsed = classic::parse(command);
        if command == "remove sockets" {
            let shown = format!("Error: {}", parsed.unwrap_err());
            assert!(README.contains(&shown), "{shown}");
        } else {
            assert!(parsed.unwrap().is_some(), "{command}");
        }
    }
    assert!(commands > 5);
}

#[test]
fn every_limit_that_is_told_is_listed() {
    for (name, limit) in limits::advertised() {
        let row = README.lines().find(|line| {
            line.contains(&format!("`{name}`")) && line.contains(&format!(" {limit} "))
        });
        assert!(row.is_some(), "{name} {limit}");
    }
}

#[test]
fn every_op_and_error_code_is_listed() {
    for word in Op::WORDS {
        assert!(README.contains(&format!("\n| `{word}` |")), "{word}");
    }
    for code in [
        ErrorCode::Invalid,
        ErrorCode::UnknownOp,
        ErrorCode::NotFound,
        ErrorCode::Exists,
        ErrorCode::Claimed,
        ErrorCode::StaleEpoch,
        ErrorCode::Limit,
        ErrorCode::Denied,
        ErrorCode::SpawnFailed,
        ErrorCode::BindFailed,
        ErrorCode::Unsupported,
        ErrorCode::NoDescriptor,
        ErrorCode::Internal,
    ] {
        let word = serde_json::to_string(&code).unwrap().replace('"', "`");
        assert!(README.contains(&word), "{word}");
    }
}
