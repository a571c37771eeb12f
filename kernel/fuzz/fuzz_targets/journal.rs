//! Any header, records of any text and any bytes behind them: recovery neither panics nor reads
//! what was not appended whole, and the journal can be written on.
#![no_main]

use libfuzzer_sys::fuzz_target;

use papa_kernel::world::journal::Journal;
use papa_kernel::sys::memfd;
use papa_kernel::world::table::{Entry, Read, Table};

/// Where records begin: behind the header page.
const FIRST_RECORD: u64 = 4096;

fuzz_target!(|input: (&[u8], Vec<&[u8]>, &[u8])| {
    let (header, texts, garbage) = input;
    let Ok(file) = Journal::create() else { return };
    // Records with a right checksum, which no fuzzer finds by itself.
    let mut records = Vec::new();
    for text in texts {
        records.extend((text.len() as u32).to_le_bytes());
        records.extend(crc32fast::hash(text).to_le_bytes());
        records.extend(text);
    }
    records.extend(garbage);
    memfd::write_at(&file, &records, FIRST_RECORD).expect("memory for a small file");
    // The words behind the magic may hold anything.
    memfd::write_at(&file, &header[..header.len().min(40)], 8).expect("memory for a small file");
    let Ok(copy) = file.try_clone() else { return };
    let Ok(mut replay) = Journal::replay(copy) else {
        return;
    };
    let mut table = Table::default();
    while let Ok(Some(text)) = replay.next_record() {
        if let Read::Entry(entry) = Entry::read(&text) {
            table.apply(entry);
        }
    }
    let mut journal = replay.finish();
    if journal.settle().is_err() {
        return;
    }
    if journal.compact(table.image()).is_err() {
        return;
    }
    let mut again = Journal::replay(file).expect("a journal just written is one");
    let mut copied = Table::default();
    while let Some(text) = again.next_record().expect("readable") {
        let Read::Entry(entry) = Entry::read(&text) else {
            panic!("our own record")
        };
        copied.apply(entry);
    }
    let image = |table: &Table| -> Vec<_> {
        table
            .image()
            .map(|entry| serde_json::to_string(&entry).unwrap())
            .collect()
    };
    assert_eq!(image(&table), image(&copied));
});
