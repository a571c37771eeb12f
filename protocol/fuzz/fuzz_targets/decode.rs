//! Any stream, cut anywhere: no decoder panics or piles up, and a client's decoder gives the same
//! items for any cut.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

use papa_protocol::codec::{LineDecoder, PushDecoder};
use papa_protocol::limits::{MAX_BATCH_BYTES, MAX_LINE_BYTES};

/// A line's limit low enough for the fuzzer to reach it.
const SHORT_LINE_BYTES: usize = 64;

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, stream) = input;
    let cut = usize::from(cut).max(1);

    let mut decoder = LineDecoder::new(SHORT_LINE_BYTES);
    let mut buffer = BytesMut::new();
    'lines: for piece in stream.chunks(cut) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(line)) => assert!(line.len() <= SHORT_LINE_BYTES && !line.contains(&b'\n')),
                Ok(None) => break,
                Err(_) => break 'lines,
            }
        }
        assert!(buffer.len() <= SHORT_LINE_BYTES);
    }

    assert_eq!(items(stream, cut), items(stream, stream.len().max(1)));
});

/// How the items of a session look, and whether it ended in an error.
fn items(stream: &[u8], cut: usize) -> (Vec<String>, bool) {
    let mut decoder = PushDecoder::default();
    let mut buffer = BytesMut::new();
    let mut items = Vec::new();
    for piece in stream.chunks(cut) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(item)) => items.push(format!("{item:?}")),
                Ok(None) => break,
                Err(_) => return (items, true),
            }
        }
        assert!(buffer.len() <= MAX_LINE_BYTES.max(MAX_BATCH_BYTES));
    }
    (items, false)
}
