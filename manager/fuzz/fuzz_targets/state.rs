//! What a predecessor kept, whatever it is: watcher states and the log state are read without a
//! panic, and written on.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;

use papa_logs::store::Store;
use papa_manager::state::Kept;

/// Longest piece written into the log state.
const MOST_BYTES: usize = 1 << 16;

fuzz_target!(|input: (&[u8], Vec<(u32, &[u8])>)| {
    let (kept, pieces) = input;
    let kept = Kept::parse(kept);
    assert_eq!(Kept::parse(kept.to_value().as_bytes()), kept);

    let store = Store::create().expect("a memory file");
    let file = File::from(
        store
            .descriptor()
            .try_clone_to_owned()
            .expect("a descriptor"),
    );
    let size = file.metadata().expect("its size").len();
    for (place, piece) in pieces {
        // Near the beginning, where the tables are, and everywhere.
        let offset = if place % 2 == 0 {
            u64::from(place / 2) % 8192
        } else {
            u64::from(place) % size
        };
        let piece = &piece[..piece.len().min(MOST_BYTES)];
        file.write_all_at(piece, offset).expect("memory");
    }
    if let Ok((mut store, unfinished)) = Store::open(file.into()) {
        let serials: Vec<u64> = store.serials().collect();
        let _ = store.retain(|serial| serial % 2 == 0);
        let _ = store.acquire();
        drop((serials, unfinished));
    }
});
