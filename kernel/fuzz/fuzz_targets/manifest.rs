//! What a program of another version, or a broken one, left for the next role: any bytes as its
//! settings, any descriptor list, numbers named twice or not open. Nothing panics, and no
//! descriptor is owned twice.
#![no_main]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use libfuzzer_sys::fuzz_target;

use papa_kernel::config::Config;
use papa_kernel::keeper::manifest::{self, Manifest};
use papa_kernel::sys::memfd;

/// Most descriptors that are really open.
const MOST_OPEN: usize = 8;

fuzz_target!(|input: (&[u8], &[u8], Vec<(u8, u64, u8)>, u8)| {
    let (settings, text, entries, open) = input;
    if let Some(file) = written(settings)
        && let Ok(config) = Config::read(&file)
    {
        let again = config.write().expect("memory");
        Config::read(again.as_fd()).expect("our own settings");
    }

    // Numbers of the fuzzer's own must not be taken: a manifest made up of bytes is only parsed.
    let mut manifest: Manifest = serde_json::from_slice(text).unwrap_or_default();
    let Ok(first) = File::open("/dev/null") else {
        return;
    };
    let numbers: Vec<i32> = (0..usize::from(open) % MOST_OPEN)
        .filter_map(|_| first.try_clone().ok())
        .map(IntoRawFd::into_raw_fd)
        .collect();
    let closed = 1 << 20;
    manifest.ready = None;
    manifest.line = None;
    manifest.descriptors = entries
        .into_iter()
        .map(|(kind, id, which)| {
            let number = numbers.get(usize::from(which)).copied();
            (
                kind,
                id,
                number.unwrap_or(if which == 255 { -1 } else { closed }),
            )
        })
        .collect();
    // Every open one is named at least once, or it would leak.
    manifest
        .descriptors
        .extend(numbers.iter().map(|number| (0, 0, *number)));
    let Some(file) = serde_json::to_vec(&manifest)
        .ok()
        .and_then(|text| written(&text))
    else {
        return;
    };
    let (_, kept) = manifest::read(&file).expect("our own manifest");
    let mut taken: Vec<i32> = kept.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    taken.sort_unstable();
    let mut expected = numbers;
    expected.sort_unstable();
    assert_eq!(taken, expected);
});

fn written(bytes: &[u8]) -> Option<std::os::fd::OwnedFd> {
    let file = memfd::memfd_create("fuzz").ok()?;
    memfd::write_at(&file, bytes, 0).ok()?;
    Some(file)
}
