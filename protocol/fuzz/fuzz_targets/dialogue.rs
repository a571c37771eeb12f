//! Whole sessions, classic and after the switch JSON: no line panics, every answer is well-formed,
//! and every JSON request that is accepted reads the same after it was encoded.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

use papa_protocol::classic::{self, Request as Classic};
use papa_protocol::json::reply::Message;
use papa_protocol::json::{Request, reply};

fuzz_target!(|session: &[u8]| {
    let mut json = false;
    for line in session.split(|byte| *byte == b'\n') {
        if json {
            json_line(line);
            continue;
        }
        match classic::parse_bytes(line) {
            Ok(Some(Classic::Json)) => json = true,
            Ok(_) => {}
            Err(error) => {
                let mut answer = BytesMut::new();
                classic::finish_error(&error.to_string(), &mut answer);
                // One line and the prompt: whatever was typed, an error forges no second reply.
                assert_eq!(answer.iter().filter(|byte| **byte == b'\n').count(), 1);
            }
        }
    }
});

fn json_line(line: &[u8]) {
    match Request::parse(line) {
        Ok(None) => {}
        Ok(Some(request)) => {
            let mut encoded = BytesMut::new();
            request.encode(&mut encoded);
            let again = Request::parse(&encoded).ok().flatten();
            assert_eq!(again.as_ref(), Some(&request));
        }
        Err(rejected) => {
            let mut answer = BytesMut::new();
            reply::encode_error(rejected.id.as_ref(), &rejected.failure, &mut answer);
            assert!(matches!(
                Message::parse(&answer),
                Ok(Message::Reply { result: Err(_), .. })
            ));
        }
    }
}
