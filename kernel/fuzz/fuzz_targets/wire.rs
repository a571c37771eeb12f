//! Any message between keeper and kernel: reading it does not panic, and what is understood reads
//! the same after it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;

use papa_kernel::keeper::wire::{MAX_MESSAGE, ToKeeper, ToKernel};

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MAX_MESSAGE)];
    if let Some(message) = ToKeeper::decode(bytes) {
        let again = message.encode();
        assert!(again.len() <= MAX_MESSAGE);
        assert_eq!(ToKeeper::decode(&again), Some(message));
    }
    if let Some(message) = ToKernel::decode(bytes) {
        let again = message.encode();
        assert!(again.len() <= MAX_MESSAGE);
        assert_eq!(ToKernel::decode(&again), Some(message));
    }
});
