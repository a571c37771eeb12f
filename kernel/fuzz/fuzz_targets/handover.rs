//! Any bytes as what another version handed over of its sessions: reading does not panic or reserve
//! what a length promises, and what is understood reads again after it was written.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

use papa_kernel::change::handover::HandOver;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (text, rest) = input;
    check(&[text, rest].concat());
    // With the right frame, which a fuzzer finds late.
    let length = (text.len() as u64).to_le_bytes();
    check(&[&b"papahnd1"[..], &length, text, rest].concat());
});

fn check(bytes: &[u8]) {
    let Some(handed) = HandOver::parse(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let sessions = handed.sessions.len();
    let file = handed.write().expect("memory");
    let again = HandOver::read(&file).expect("our own hand-over");
    assert_eq!(again.sessions.len(), sessions);
}
