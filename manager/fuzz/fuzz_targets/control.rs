//! Any line on the control socket: reading it does not panic, and what is accepted reads the same
//! after it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;

use papa_control::reply::Reply;
use papa_control::request::Request;

fuzz_target!(|line: &[u8]| {
    match Request::parse(line) {
        Ok(request) => {
            let again = request.to_line();
            assert_eq!(again.iter().filter(|byte| **byte == b'\n').count(), 1);
            let again = Request::parse(&again).expect("our own request");
            assert_eq!(again, request);
        }
        Err((id, error)) => {
            let answer = Reply::error(id, 0.0, error).to_line();
            assert_eq!(answer.iter().filter(|byte| **byte == b'\n').count(), 1);
            Reply::parse(&answer).expect("our own reply");
        }
    }
    // What a manager of another version may have answered.
    let _ = Reply::parse(line);
});
