//! Any bytes behind a journal's header: recovery neither panics nor reads what was not appended whole, and the
//! journal can be written on.
#![no_main]

use libfuzzer_sys::fuzz_target;

use papa_kernel::journal::Journal;
use papa_kernel::sys::memfd;
use papa_kernel::table::{Entry, Table};

/// Where records begin: behind the header page.
const FIRST_RECORD: u64 = 4096;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (header, records) = input;
    let Ok(file) = Journal::create() else { return };
    memfd::write_at(&file, records, FIRST_RECORD).expect("memory for a small file");
    // The words behind the magic may hold anything.
    memfd::write_at(&file, &header[..header.len().min(40)], 8).expect("memory for a small file");
    let Ok(copy) = file.try_clone() else { return };
    let Ok(mut replay) = Journal::replay(copy) else { return };
    let mut table = Table::default();
    while let Ok(Some(text)) = replay.next_record() {
        if let Ok(entry) = serde_json::from_slice::<Entry>(&text) {
            table.apply(entry);
        }
    }
    let Ok(mut journal) = replay.finish() else { return };
    if journal.compact(table.image()).is_err() {
        return;
    }
    let mut again = Journal::replay(file).expect("a journal just written is one");
    let mut copied = Table::default();
    while let Some(text) = again.next_record().expect("readable") {
        copied.apply(serde_json::from_slice(&text).expect("our own record"));
    }
    assert_eq!(table.image().count(), copied.image().count());
});
