use super::layout::{FIRST_DATA_OFFSET as DATA_OFFSET, MAGIC};
use super::*;
use papa_test_hooks::patience::eventually;
use proptest::prelude::*;

fn pipe() -> (OwnedFd, OwnedFd) {
    use nix::fcntl::OFlag;
    nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap()
}

fn all(reel: &Reel) -> Vec<u8> {
    let length = usize::try_from(reel.committed() - reel.start()).unwrap();
    let mut bytes = BytesMut::new();
    reel.read(&mut bytes, reel.start(), length).unwrap();
    bytes.to_vec()
}

#[test]
fn bytes_spliced_but_not_indexed_belong_to_the_intended_stream() {
    let (read, write) = pipe();
    let mut reel = Reel::create(1000, None).unwrap();
    nix::unistd::write(&write, b"one").unwrap();
    reel.capture(&read, Stream::Err, 1 << 20, 5).unwrap();
    // Killed between the splice and the index entry.
    nix::unistd::write(&write, b"two").unwrap();
    memfd::splice_at(&read, reel.as_fd(), DATA_OFFSET + 3, 100).unwrap();
    let file = reel.as_fd().try_clone_to_owned().unwrap();
    let mut again = Reel::recover(file, 1000, 2_000_000).unwrap();
    assert_eq!(all(&again), b"onetwo");
    let streams = |reel: &Reel| -> Vec<_> {
        let records = reel.records_from(0);
        records.map(|r| (r.end, r.stream, r.stamp_us)).collect()
    };
    let expected = [(3, Stream::Err, 5), (6, Stream::Err, 2_000_000)];
    assert_eq!(streams(&again), expected);
    // Looking has written nothing down, settling does.
    let stamp = |reel: &Reel| {
        let file = reel.as_fd().try_clone_to_owned().unwrap();
        streams(&Reel::recover(file, 1000, 7_000_000).unwrap())[1].2
    };
    assert_eq!(stamp(&again), 7_000_000);
    again.settle();
    assert_eq!(stamp(&again), 2_000_000);
}

#[test]
fn what_there_is_no_room_for_stays_in_the_pipe_where_bytes_are_copied() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let (read, write) = pipe();
    let file = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    memfd::set_size(&file, DATA_OFFSET + 3).unwrap();
    // Behind these three bytes nothing more can be had.
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    let mut reel = Reel::empty(file, Layout::FIRST, 1000);
    reel.copying = true;
    nix::unistd::write(&write, b"one").unwrap();
    let taken = reel.capture(&read, Stream::Out, 1 << 20, 5);
    assert_eq!(taken, Ok(Capture::Bytes(3)));
    nix::unistd::write(&write, b"two").unwrap();
    let refused = reel.capture(&read, Stream::Out, 1 << 20, 6);
    assert_eq!(refused, Err(Errno::EPERM));
    let mut buffer = [0u8; 10];
    assert_eq!(nix::unistd::read(&read, &mut buffer), Ok(3));
    assert_eq!(&buffer[..3], b"two");
    assert_eq!(all(&reel), b"one");
}

#[test]
fn a_small_step_back_of_the_clock_is_held_a_large_one_followed() {
    let (read, write) = pipe();
    let mut reel = Reel::create(1000, None).unwrap();
    for stamp in [10_000_000, 9_500_000, 3_000_000] {
        nix::unistd::write(&write, b"x").unwrap();
        reel.capture(&read, Stream::Out, 1 << 20, stamp).unwrap();
        // Different streams in between keep the records apart.
        nix::unistd::write(&write, b"y").unwrap();
        reel.capture(&read, Stream::Err, 1 << 20, stamp).unwrap();
    }
    let stamps: Vec<_> = reel
        .records_from(0)
        .filter(|record| record.stream == Stream::Out)
        .map(|record| record.stamp_us)
        .collect();
    assert_eq!(stamps, [10_000_000, 10_000_000, 3_000_000]);
}

#[test]
fn byte_by_byte_costs_few_records() {
    let (read, write) = pipe();
    let mut reel = Reel::create(1 << 20, None).unwrap();
    for _ in 0..3000 {
        nix::unistd::write(&write, b"x").unwrap();
        reel.capture(&read, Stream::Out, 1 << 20, 77).unwrap();
    }
    assert_eq!(reel.records_from(0).count(), 1);
}

fn put(reel: &mut Reel, bytes: &[u8], stream: Stream, now_us: u64) -> Capture {
    let (read, write) = pipe();
    nix::unistd::write(&write, bytes).unwrap();
    reel.capture(&read, stream, 1 << 20, now_us).unwrap()
}

fn settled(mut reel: Reel) -> Reel {
    reel.settle();
    reel
}

/// The reel as the next kernel finds it.
fn recovered(reel: &Reel) -> Reel {
    let file = reel.as_fd().try_clone_to_owned().unwrap();
    settled(Reel::recover(file, reel.limit, 5_000_000).unwrap())
}

fn records(reel: &Reel) -> Vec<Record> {
    reel.records_from(0).copied().collect()
}

/// Kilobytes of memory the file takes.
fn used_kib(reel: &Reel) -> i64 {
    nix::sys::stat::fstat(reel.as_fd()).unwrap().st_blocks / 2
}

#[test]
fn a_header_that_holds_anything_does_no_harm() {
    let file = memfd::memfd_create("test").unwrap();
    memfd::set_size(&file, DATA_OFFSET + 100).unwrap();
    memfd::write_at(&file, &[0xff; 64], 0).unwrap();
    memfd::write_at(&file, &MAGIC.to_le_bytes(), MAGIC_AT).unwrap();
    let mut reel = settled(Reel::recover(file, 1000, 1).unwrap());
    assert_eq!((reel.start(), reel.committed()), (100, 100));
    assert_eq!(put(&mut reel, b"x", Stream::Err, 9), Capture::Bytes(1));
    assert_eq!(reel.acknowledge(u64::MAX), Ok(1));
    assert!(reel.dropped() <= reel.start());
}

#[test]
fn after_a_large_step_back_of_the_clock_records_are_not_joined() {
    let mut reel = Reel::create(1000, None).unwrap();
    put(&mut reel, b"x", Stream::Out, 10_000_000);
    put(&mut reel, b"y", Stream::Out, 3_000_000);
    let stamps: Vec<_> = records(&reel).iter().map(|r| r.stamp_us).collect();
    assert_eq!(stamps, [10_000_000, 3_000_000]);
}

#[test]
fn looking_at_a_pipe_with_nothing_in_it_costs_no_memory() {
    let (read, write) = pipe();
    let mut reel = Reel::create(1000, None).unwrap();
    let mut look = |stream| reel.capture(&read, stream, 1 << 20, 1).unwrap();
    assert_eq!(look(Stream::Out), Capture::Empty);
    drop(write);
    assert!(eventually(|| look(Stream::Err) == Capture::End));
    assert_eq!(used_kib(&reel), 0);
}

#[test]
fn an_intent_that_could_not_be_written_is_written_the_next_time() {
    let (read, write) = pipe();
    let mut reel = Reel::create(1000, None).unwrap();
    nix::unistd::write(&write, b"x").unwrap();
    let read_only = memfd::reopen_read_only(reel.as_fd()).unwrap();
    let file = std::mem::replace(&mut reel.file, read_only);
    assert!(reel.capture(&read, Stream::Err, 1 << 20, 1).is_err());
    reel.file = file;
    reel.capture(&read, Stream::Err, 1 << 20, 1).unwrap();
    assert_eq!(recovered(&reel).intent, 2);
    assert_eq!(records(&recovered(&reel)), records(&reel));
}

#[test]
fn entries_that_could_not_be_written_are_written_later() {
    let mut reel = Reel::create(1000, None).unwrap();
    put(&mut reel, b"x", Stream::Err, 1_000);
    // Two more, without memory for their entries.
    memfd::write_at(&reel.file, b"yz", DATA_OFFSET + 1).unwrap();
    reel.committed = 3;
    let read_only = memfd::reopen_read_only(reel.as_fd()).unwrap();
    let file = std::mem::replace(&mut reel.file, read_only);
    reel.add_record(Stream::Err, 2, 1_001);
    reel.add_record(Stream::Err, 3, 9_000);
    reel.file = file;
    let streams = |reel: &Reel| -> Vec<_> {
        let all = records(reel);
        all.iter().map(|r| (r.end, r.stream)).collect()
    };
    assert_eq!(streams(&reel), [(2, Stream::Err), (3, Stream::Err)]);
    assert_eq!(
        streams(&recovered(&reel)),
        [(1, Stream::Err), (3, Stream::Err)]
    );
    let mut reel = recovered(&reel);
    put(&mut reel, b"!", Stream::Out, 20_000);
    assert_eq!(records(&recovered(&reel)), records(&reel));
    assert_eq!(records(&reel).len(), 3);
}

#[test]
fn who_has_read_a_record_gets_what_joined_it_later() {
    let mut reel = Reel::create(1000, None).unwrap();
    put(&mut reel, b"abc", Stream::Out, 1_000);
    reel.acknowledge(2).unwrap();
    put(&mut reel, b"def", Stream::Out, 1_001);
    let rest: Vec<_> = reel.records_from(3).map(|record| record.end).collect();
    assert_eq!(rest, [6]);
    assert_eq!(records(&recovered(&reel)), records(&reel));
    reel.acknowledge(6).unwrap();
    // Nothing is left to join.
    put(&mut reel, b"g", Stream::Out, 1_001);
    assert_eq!(records(&reel).len(), 1);
    assert_eq!(records(&recovered(&reel)), records(&reel));
}

#[test]
fn a_ring_that_is_full_wraps_around_and_loses_no_byte() {
    let mut reel = Reel::create(1 << 20, None).unwrap();
    put(&mut reel, b"x", Stream::Out, 7);
    let same = |reel: &Reel| records(&recovered(reel)) == records(reel);
    let fill = |reel: &mut Reel, most: u64| {
        let mut count = 0;
        while count < most && !reel.is_full() {
            let stream = Stream::ALL[usize::try_from(reel.committed % 2).unwrap()];
            memfd::set_size(&reel.file, DATA_OFFSET + reel.committed + 1).unwrap();
            reel.committed += 1;
            reel.add_record(stream, reel.committed, 7);
            count += 1;
        }
        count
    };
    let most = reel.layout.max_records();
    assert_eq!(fill(&mut reel, u64::MAX), most - 2);
    assert!(same(&reel));
    reel.acknowledge(40_000).unwrap();
    assert_eq!(fill(&mut reel, u64::MAX), 40_000);
    assert!(same(&reel));
    // More than there is room for, as after several recoveries.
    for stamp in 0..5 {
        put(&mut reel, b"x", Stream::Err, stamp * 10_000);
        reel = recovered(&reel);
    }
    assert_eq!(reel.records.len() as u64, most);
    assert_eq!(reel.records[0].end, 40_001);
    assert_eq!(reel.records.back().unwrap().end, reel.committed());
    assert_eq!(reel.drop_oldest(), Ok(2));
    assert!(!reel.is_over());
    // Once all is acknowledged, one page of index is in use.
    reel.acknowledge(u64::MAX).unwrap();
    assert_eq!(used_kib(&reel), 8);
    assert_eq!(fill(&mut reel, 3), 3);
    assert!(same(&reel));
}

#[test]
fn what_was_acknowledged_and_not_given_back_goes_at_recovery() {
    let mut reel = Reel::create(1 << 20, None).unwrap();
    put(&mut reel, &[7; 60_000], Stream::Out, 1);
    // Killed behind the store of the new start.
    memfd::write_at(&reel.file, &60_000u64.to_le_bytes(), START_AT).unwrap();
    assert_eq!(used_kib(&recovered(&reel)), 8);
}

/// What a kernel may have been doing in a ring when it was killed.
fn bring_in_up_to(reel: &mut Reel, step: usize) {
    let from = reel.committed - reel.landed;
    if step >= 1 {
        let mut bytes = BytesMut::new();
        reel.read(&mut bytes, from, usize::try_from(reel.landed).unwrap())
            .unwrap();
        let mut rest = &bytes[..];
        for piece in reel.layout.pieces(from..reel.committed, reel.committed) {
            let here = usize::try_from(piece.end - piece.start).unwrap();
            memfd::write_at(&reel.file, &rest[..here], piece.start).unwrap();
            rest = &rest[here..];
        }
    }
    if step >= 2 {
        memfd::write_at(&reel.file, &reel.committed.to_le_bytes(), RING_END_AT).unwrap();
        memfd::write_at(&reel.file, &reel.landed.to_le_bytes(), LANDED_AT).unwrap();
    }
    if step >= 3 {
        memfd::set_size(&reel.file, reel.layout.empty_size()).unwrap();
    }
}

#[test]
fn a_ring_is_whole_wherever_its_kernel_was_killed() {
    for step in 0..4 {
        let mut reel = Reel::create(1 << 20, Some(MIN_FILE_BYTES)).unwrap();
        let mut at = 0u64;
        let mut line = || {
            at += 1;
            format!("{at:>4000}").into_bytes()
        };
        let mut kept: Vec<u8> = Vec::new();
        for _ in 0..100 {
            let bytes = line();
            kept.extend(&bytes);
            if reel.is_full() {
                reel.acknowledge(reel.start() + 4000).unwrap();
                kept.drain(..4000);
            }
            // As `capture` does, up to where it is killed.
            let (read, write) = pipe();
            nix::unistd::write(&write, &bytes).unwrap();
            reel.bring_in().unwrap();
            if reel.intent != 1 {
                reel.set_intent(Stream::Out).unwrap();
            }
            memfd::splice_at(&read, reel.as_fd(), reel.layout.empty_size(), 1 << 20).unwrap();
            reel.committed += 4000;
            reel.landed = 4000;
            bring_in_up_to(&mut reel, step);
            let file = reel.as_fd().try_clone_to_owned().unwrap();
            reel = Reel::recover(file, 1 << 20, 5_000_000).unwrap();
            assert_eq!(all(&reel), kept, "step {step}: before settling");
            reel.settle();
            assert_eq!(all(&reel), kept, "step {step}");
        }
        assert_eq!(reel.committed(), 400_000);
        let size = memfd::size(reel.as_fd()).unwrap();
        assert!(size <= MIN_FILE_BYTES, "{size}");
        reel.acknowledge(u64::MAX).unwrap();
        assert!(used_kib(&reel) <= 12, "memory is given back");
    }
}

#[test]
fn short_lines_that_alternate_filled_a_large_reel_at_65_279() {
    let mut reel = Reel::create(2 << 20, None).unwrap();
    let (read, write) = pipe();
    for number in 0..100_000u64 {
        nix::unistd::write(&write, b"twenty bytes a line\n").unwrap();
        let stream = Stream::ALL[usize::try_from(number % 2).unwrap()];
        reel.capture(&read, stream, 1 << 20, 77).unwrap();
        assert!(!reel.is_full() && !reel.is_over(), "line {number}");
    }
    assert_eq!(reel.records_from(0).count(), 100_000);
    assert_eq!(records(&recovered(&reel)), records(&reel));
    reel.acknowledge(u64::MAX).unwrap();
    assert!(used_kib(&reel) <= 8, "memory is given back");
}

#[test]
fn a_record_larger_than_the_ring_it_should_go_to_stopped_its_writer() {
    let mut reel = Reel::create(8 << 20, None).unwrap();
    let (read, write) = pipe();
    crate::sys::process::set_pipe_size(&read, 1 << 20);
    nix::unistd::write(&write, &[7; 500_000]).unwrap();
    reel.capture(&read, Stream::Out, 1 << 20, 1).unwrap();
    assert_eq!(reel.records_from(0).count(), 1);
    assert_eq!(reel.to_ring(MIN_FILE_BYTES).unwrap_err(), Errno::EFBIG);
    let lost = reel.drop_for_ring(MIN_FILE_BYTES).unwrap();
    let ring = reel.to_ring(MIN_FILE_BYTES).unwrap();
    assert_eq!((ring.start(), ring.dropped()), (lost, lost));
    assert_eq!(ring.committed(), 500_000);
    assert_eq!(500_000 - lost, ring.limit());
    assert_eq!(all(&recovered(&ring)), all(&reel));
}

#[test]
fn a_reel_of_an_unknown_kind_is_refused() {
    let file = memfd::memfd_create("test").unwrap();
    memfd::write_at(&file, b"paparel9", 0).unwrap();
    assert_eq!(Reel::check(&file), Err(Errno::EBADMSG));
    assert!(Reel::recover(file, 1000, 1).is_err());
}

proptest! {
    /// Against a plain string: captures of both streams, acknowledgements,
    /// drops, recoveries and moves to a ring in any order, in each kind of reel.
    #[test]
    fn holds_what_a_string_would(
        steps in proptest::collection::vec((0u8..8, 1usize..9000), 1..80),
        kind in 0u8..3,
    ) {
        let (read, write) = pipe();
        let (limit, largest) = match kind {
            0 => (20_000u64, None),
            1 => (2 << 20, None),
            _ => (20_000, Some(300_000)),
        };
        let mut reel = Reel::create(limit, largest).unwrap();
        let mut model: Vec<(u8, bool)> = Vec::new();
        let mut start = 0usize;
        let mut stamp = 1_000;
        let mut dropped = 0;
        for (step, amount) in steps {
            stamp += 5_000;
            match step {
                // Whoever captures makes room before.
                0..=2 if reel.kind() == ReelKind::Ring && reel.committed() - reel.start() + amount as u64 > reel.limit() + 4096 => {}
                0..=2 => {
                    let byte = u8::try_from(amount % 251).unwrap();
                    let bytes = vec![byte; amount];
                    nix::unistd::write(&write, &bytes).unwrap();
                    let stream = if step == 0 { Stream::Err } else { Stream::Out };
                    prop_assert_eq!(reel.capture(&read, stream, 1 << 20, stamp).unwrap(), Capture::Bytes(amount));
                    model.extend(bytes.iter().map(|b| (*b, step == 0)));
                }
                3 => {
                    let position = start + amount % (model.len() - start + 1);
                    reel.acknowledge(position as u64).unwrap();
                    start = position;
                }
                4 => {
                    let lost = reel.drop_oldest().unwrap();
                    start += usize::try_from(lost).unwrap();
                    dropped += lost;
                }
                5 => {
                    if let Ok(ring) = reel.to_ring(300_000) {
                        prop_assert!(memfd::size(ring.as_fd()).unwrap() <= 300_000);
                        reel = ring;
                    }
                }
                6 => {
                    let lost = reel.drop_for_ring(MIN_FILE_BYTES + amount as u64).unwrap();
                    start += usize::try_from(lost).unwrap();
                    dropped += lost;
                    reel = reel.to_ring(MIN_FILE_BYTES + amount as u64).unwrap();
                }
                _ => {
                    let file = reel.as_fd().try_clone_to_owned().unwrap();
                    reel = settled(Reel::recover(file, limit, stamp).unwrap());
                }
            }
            prop_assert_eq!(reel.start(), start as u64);
            prop_assert_eq!(reel.committed(), model.len() as u64);
            prop_assert_eq!(reel.dropped(), dropped);
            let expected: Vec<u8> = model[start..].iter().map(|(byte, _)| *byte).collect();
            prop_assert_eq!(all(&reel), expected);
            let mut at = start;
            for record in reel.records_from(start as u64) {
                let end = usize::try_from(record.end).unwrap();
                prop_assert!(end > at);
                prop_assert!(model[at..end].iter().all(|(_, err)| *err == (record.stream == Stream::Err)));
                at = end;
            }
            prop_assert_eq!(at, model.len());
        }
    }
}
