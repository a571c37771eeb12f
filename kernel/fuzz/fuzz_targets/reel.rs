//! Any header, index and data in a reel's file: recovery neither panics nor shows a record beyond
//! what is there, and the reel can be filled further.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;

use papa_kernel::world::reel::{Capture, FIRST_DATA_OFFSET, Reel};
use papa_kernel::sys::memfd;
use papa_protocol::record::Stream;

/// Where the index begins: behind the header page.
const INDEX: u64 = 4096;
/// How a header of a later kind begins.
const LATER_KIND: &[u8] = b"paparel2";
/// Longest data tried.
const MOST_DATA: usize = 1 << 16;

fuzz_target!(|input: (&[u8], &[u8], &[u8], u64)| {
    let (header, index, data, position) = input;
    let Ok(file) = memfd::memfd_create("fuzz") else {
        return;
    };
    let data = &data[..data.len().min(MOST_DATA)];
    memfd::set_size(&file, FIRST_DATA_OFFSET + data.len() as u64).expect("a sparse file");
    memfd::write_at(&file, &header[..header.len().min(88)], 0).expect("memory");
    memfd::write_at(&file, &index[..index.len().min(1 << 16)], INDEX).expect("memory");
    memfd::write_at(&file, data, FIRST_DATA_OFFSET).expect("memory");
    let Ok(mut reel) = Reel::recover(file, 1 << 16, 1) else {
        return;
    };
    check(&reel);
    reel.settle();
    check(&reel);
    let _ = reel.acknowledge(position);
    check(&reel);
    let _ = reel.drop_oldest();
    check(&reel);
    let (pipe, mut writer) = std::io::pipe().expect("two descriptors");
    writer.write_all(b"more").expect("room in a new pipe");
    let captured = reel.capture(&pipe, Stream::Err, 1 << 20, 2);
    // In a reel of a later kind there may be no room, or its numbers may lead nowhere.
    if !header.starts_with(LATER_KIND) {
        assert_eq!(captured, Ok(Capture::Bytes(4)));
    }
    check(&reel);
});

fn check(reel: &Reel) {
    assert!(reel.start() <= reel.committed());
    let mut end = reel.start();
    for record in reel.records_from(reel.start()) {
        assert!(record.end > end);
        end = record.end;
    }
    assert_eq!(end, reel.committed());
}
