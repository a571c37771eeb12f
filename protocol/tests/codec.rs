//! Streams cut anywhere give the same items, and no stream makes a decoder ask for more than its
//! limit.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests panic like the tests themselves"
)]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use papa_protocol::codec::{DecodeError, Item, LineDecoder, LineTooLong, PushDecoder};
use papa_protocol::json::push::{End, OutputHeader, Push, encode_output};
use papa_protocol::json::reply::{self, Done};
use papa_protocol::json::request::Id;
use papa_protocol::limits::{MAX_BATCH_BYTES, MAX_LINE_BYTES};
use papa_protocol::record::{Record, Serial, Stream};

/// Feeds `stream` in pieces of the given sizes, over and over.
fn feed<T>(
    stream: &[u8],
    sizes: &[usize],
    mut take: impl FnMut(&mut BytesMut) -> Option<T>,
) -> Vec<T> {
    let mut buffer = BytesMut::new();
    let mut items = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*sizes.next().unwrap_or(&1)).max(1));
        buffer.extend_from_slice(piece);
        rest = after;
        while let Some(item) = take(&mut buffer) {
            items.push(item);
        }
    }
    items
}

#[test]
fn the_longest_line_is_read_and_one_more_byte_is_not() {
    let mut decoder = LineDecoder::new(4);
    let mut buffer = BytesMut::from("abcd\nabcd");
    assert_eq!(decoder.decode(&mut buffer), Ok(Some(Bytes::from("abcd"))));
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
    buffer.extend_from_slice(b"e");
    assert_eq!(
        decoder.decode(&mut buffer),
        Err(LineTooLong { limit_bytes: 4 })
    );
    let mut whole = BytesMut::from("abcde\n");
    assert_eq!(
        LineDecoder::new(4).decode(&mut whole),
        Err(LineTooLong { limit_bytes: 4 })
    );
}

#[test]
fn a_carriage_return_goes_with_its_newline() {
    let mut buffer = BytesMut::from("a\r\n\r\nb\rc\n");
    let mut decoder = LineDecoder::default();
    for line in ["a", "", "b\rc"] {
        assert_eq!(decoder.decode(&mut buffer).unwrap().unwrap(), line);
    }
}

fn header(length: u64, records: Vec<Record>) -> BytesMut {
    let mut out = BytesMut::new();
    let header = OutputHeader {
        sub: 1,
        serial: Serial(2),
        start: 0,
        length,
        inline: true,
        records,
    };
    encode_output(&header, &mut out);
    out
}

fn record(end: u64) -> Record {
    Record {
        end,
        stream: Stream::Out,
        stamp_us: 1,
    }
}

#[test]
fn headers_that_lie_end_the_stream() {
    let most = MAX_BATCH_BYTES as u64;
    assert!(matches!(
        PushDecoder::default().decode(&mut header(most + 1, vec![record(most + 1)])),
        Err(DecodeError::TooMuch(_))
    ));
    for records in [
        vec![],
        vec![record(4)],
        vec![record(6)],
        vec![record(4), record(3), record(5)],
    ] {
        assert!(matches!(
            PushDecoder::default().decode(&mut header(5, records)),
            Err(DecodeError::Records)
        ));
    }
    assert!(
        PushDecoder::default()
            .decode(&mut BytesMut::from("nonsense\n"))
            .is_err()
    );
}

#[test]
fn output_is_split_off_without_copying() {
    let mut buffer = header(5, vec![record(5)]);
    buffer.extend_from_slice(b"hello");
    let bytes = buffer.as_ptr_range();
    match PushDecoder::default().decode(&mut buffer) {
        Ok(Some(Item::Output(_, output))) => {
            assert_eq!(output, "hello");
            assert!(bytes.contains(&output.as_ptr()), "the output was copied");
        }
        other => panic!("{other:?}"),
    }
}

/// What one stream of a session holds, in a form that can be compared.
#[derive(Debug, Clone, PartialEq)]
enum Sent {
    Reply(u64),
    End(u64),
    Output(Vec<u8>),
    Reel(u64),
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        any::<u64>().prop_map(Sent::Reply),
        any::<u64>().prop_map(Sent::End),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Sent::Output),
        (1_u64..1 << 40).prop_map(Sent::Reel),
    ]
}

fn encode(items: &[Sent]) -> BytesMut {
    let mut out = BytesMut::new();
    for item in items {
        match item {
            Sent::Reply(id) => reply::encode_ok(Some(&Id::Number(*id)), &Done {}, &mut out),
            Sent::End(position) => {
                let end = End {
                    sub: 1,
                    serial: Serial(2),
                    stream: Stream::Err,
                    position: *position,
                };
                Push::End(end).encode(&mut out);
            }
            Sent::Output(bytes) => {
                let length = bytes.len() as u64;
                out.extend_from_slice(&header(length, vec![record(length / 2), record(length)]));
                out.extend_from_slice(bytes);
            }
            Sent::Reel(length) => {
                let header = OutputHeader {
                    sub: 1,
                    serial: Serial(2),
                    start: 7,
                    length: *length,
                    inline: false,
                    records: vec![record(7 + length)],
                };
                encode_output(&header, &mut out);
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_how_they_arrive(
        lines in prop::collection::vec("[^\n\r]{0,40}", 0..10),
        sizes in prop::collection::vec(1_usize..50, 1..6),
    ) {
        let stream: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let mut decoder = LineDecoder::default();
        let read = feed(stream.as_bytes(), &sizes, |buffer| decoder.decode(buffer).unwrap());
        prop_assert_eq!(read, lines);
    }

    #[test]
    fn a_session_does_not_depend_on_how_it_arrives(
        items in prop::collection::vec(sent(), 0..8),
        sizes in prop::collection::vec(1_usize..200, 1..6),
    ) {
        let mut decoder = PushDecoder::default();
        let read = feed(&encode(&items), &sizes, |buffer| {
            decoder.decode(buffer).unwrap().map(|item| match item {
                Item::Reply { id: Some(Id::Number(id)), result: Ok(_) } => Sent::Reply(id),
                Item::Push(Push::End(end)) => Sent::End(end.position),
                Item::Output(header, bytes) if header.inline => Sent::Output(bytes.to_vec()),
                Item::Output(header, bytes) if bytes.is_empty() => Sent::Reel(header.length),
                other => panic!("{other:?}"),
            })
        });
        prop_assert_eq!(read, items);
    }

    #[test]
    fn arbitrary_bytes_end_or_are_read_but_never_pile_up(
        stream: Vec<u8>,
        sizes in prop::collection::vec(1_usize..50, 1..6),
        limit in 1_usize..40,
    ) {
        let mut lines = LineDecoder::new(limit);
        let mut ended = false;
        feed(&stream, &sizes, |buffer| match lines.decode(buffer) {
            _ if ended => None,
            Ok(line) => {
                assert!(line.is_some() || buffer.len() <= limit);
                line
            }
            Err(_) => {
                ended = true;
                None
            }
        });
        let mut pushes = PushDecoder::default();
        let mut ended = false;
        feed(&stream, &sizes, |buffer| {
            if ended {
                return None;
            }
            let item = pushes.decode(buffer).unwrap_or_else(|_| { ended = true; None });
            assert!(pushes.wanted_bytes(buffer.len()) <= MAX_BATCH_BYTES && buffer.len() <= MAX_LINE_BYTES);
            item
        });
    }
}
