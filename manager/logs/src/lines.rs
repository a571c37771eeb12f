//! Captured chunks to whole lines, for one stream of one process.
//!
//! Owns the unfinished line at the end of what was seen; the kernel keeps its bytes too until it is
//! written. Leaves to others: prefix and file (`writer`).
//! Invariant: every byte at or beyond the position it started from is emitted once and in order, or
//! is in the tail; the tail is never longer than the limit. Chunking does not change what is
//! emitted, but for lines longer than the limit.

/// Longest line written in one piece; also the most a stream may leave unacknowledged in the kernel
/// for want of a newline.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// Whole lines of a stream; `head` was seen earlier than `body`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Beginning of the first line, from earlier chunks.
    pub head: &'a [u8],
    /// Where the head's bytes come from: runs of contiguous ones, each as its offset in the head
    /// and the position of its first byte.
    pub head_runs: &'a [(usize, u64)],
    /// The rest of the first line, and when it ends in a newline perhaps more lines.
    pub body: &'a [u8],
    /// Position of the body's first byte; the body's bytes are contiguous, the head's need not be.
    pub body_start: u64,
    /// When the first line's first byte was captured, in microseconds since the epoch.
    pub head_stamp_us: i64,
    /// The same for every further line.
    pub body_stamp_us: i64,
}

impl Piece<'_> {
    /// The position below which everything of the stream is emitted once this piece is.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.body_start + self.body.len() as u64
    }

    /// The position behind the first `bytes` bytes of head and body.
    #[must_use]
    pub fn position_after(&self, bytes: usize) -> u64 {
        if bytes > self.head.len() || self.head.is_empty() {
            return self.body_start + (bytes - self.head.len()) as u64;
        }
        let before = self.head_runs.partition_point(|(at, _)| *at < bytes);
        match before
            .checked_sub(1)
            .and_then(|run| self.head_runs.get(run))
        {
            Some((at, position)) => position + (bytes - at) as u64,
            None => 0,
        }
    }
}

/// Assembles lines from chunks.
#[derive(Debug)]
pub struct Assembler {
    /// Output below is emitted or in the tail.
    next: u64,
    tail: Vec<u8>,
    /// Its runs of contiguous bytes.
    tail_runs: Vec<(usize, u64)>,
    tail_start: u64,
    tail_stamp_us: i64,
    limit: usize,
}

impl Assembler {
    /// Starts at `position`: what lies below has been written before. `limit` bounds a line.
    #[must_use]
    pub fn new(position: u64, limit: usize) -> Self {
        Self {
            next: position,
            tail: Vec::new(),
            tail_runs: Vec::new(),
            tail_start: 0,
            tail_stamp_us: 0,
            limit: limit.clamp(1, MAX_LINE_BYTES),
        }
    }

    /// Bounds the lines from here on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.clamp(1, MAX_LINE_BYTES);
    }

    /// Position of the unfinished line's first byte.
    #[must_use]
    pub fn tail_start(&self) -> Option<u64> {
        (!self.tail.is_empty()).then_some(self.tail_start)
    }

    /// Takes a chunk of the stream that starts at `position`; emits what is complete.
    ///
    /// # Errors
    /// The first error of `emit`, after which the assembler is of no use.
    pub fn feed<E>(
        &mut self,
        position: u64,
        chunk: &[u8],
        stamp_us: i64,
        mut emit: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let known = usize::try_from(self.next.saturating_sub(position)).unwrap_or(usize::MAX);
        let Some(mut rest) = chunk.get(known..).filter(|rest| !rest.is_empty()) else {
            return Ok(());
        };
        let mut at = position + known as u64;
        self.next = at + rest.len() as u64;
        while !rest.is_empty() {
            let room = self.limit.saturating_sub(self.tail.len());
            let taken = if self.tail.is_empty() {
                match rest.iter().rposition(|byte| *byte == b'\n') {
                    Some(last) => Some(last + 1),
                    None => (rest.len() > room).then(|| whole_characters(rest, room)),
                }
            } else {
                let near = rest.get(..=room).unwrap_or(rest);
                match near.iter().position(|byte| *byte == b'\n') {
                    Some(first) => Some(first + 1),
                    None => (rest.len() > room).then(|| whole_characters(rest, room)),
                }
            };
            let Some(length) = taken else {
                self.keep(at, rest, stamp_us);
                break;
            };
            let (body, more) = rest.split_at(length);
            emit(Piece {
                head: &self.tail,
                head_runs: &self.tail_runs,
                body,
                body_start: at,
                head_stamp_us: if self.tail.is_empty() {
                    stamp_us
                } else {
                    self.tail_stamp_us
                },
                body_stamp_us: stamp_us,
            })?;
            self.tail.clear();
            self.tail_runs.clear();
            at += length as u64;
            rest = more;
        }
        Ok(())
    }

    /// Adds to the unfinished line.
    fn keep(&mut self, at: u64, rest: &[u8], stamp_us: i64) {
        if self.tail.is_empty() {
            self.tail_start = at;
            self.tail_stamp_us = stamp_us;
        }
        let goes_on = self
            .tail_runs
            .last()
            .is_some_and(|(from, position)| position + (self.tail.len() - from) as u64 == at);
        if !goes_on {
            self.tail_runs.push((self.tail.len(), at));
        }
        self.tail.extend_from_slice(rest);
    }

    /// Emits the unfinished line: the stream ended, or its continuation was dropped. Where there is
    /// none, an empty piece if `always`.
    ///
    /// # Errors
    /// The error of `emit`.
    pub fn finish<E>(
        &mut self,
        always: bool,
        emit: impl FnOnce(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.tail.is_empty() && !always {
            return Ok(());
        }
        let tail = std::mem::take(&mut self.tail);
        let runs = std::mem::take(&mut self.tail_runs);
        emit(Piece {
            head: &tail,
            head_runs: &runs,
            body: &[],
            body_start: self.next,
            head_stamp_us: self.tail_stamp_us,
            body_stamp_us: self.tail_stamp_us,
        })
    }
}

/// How many of the first `room` bytes to take so that no character of UTF-8 is cut, where that is
/// what the bytes are.
pub(super) fn whole_characters(bytes: &[u8], room: usize) -> usize {
    let is_inside = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
    // A character has at most four bytes.
    (room.saturating_sub(3).max(1)..=room)
        .rev()
        .find(|at| !is_inside(*at))
        .unwrap_or(room)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(assembler: &mut Assembler, chunks: &[(u64, &[u8])]) -> Vec<(Vec<u8>, u64)> {
        let mut out = Vec::new();
        for (position, chunk) in chunks {
            assembler
                .feed(*position, chunk, 1, |piece| {
                    out.push(([piece.head, piece.body].concat(), piece.done()));
                    Ok::<_, ()>(())
                })
                .unwrap();
        }
        out
    }

    #[test]
    fn lines_are_whole_and_the_tail_waits() {
        let mut lines = Assembler::new(0, 100);
        let out = run(&mut lines, &[(0, b"a\nbc\nde"), (17, b"f\ng")]);
        assert_eq!(out, [(b"a\nbc\n".to_vec(), 5), (b"def\n".to_vec(), 19)]);
        assert_eq!(lines.tail_start(), Some(19));
    }

    #[test]
    fn what_was_seen_before_is_skipped() {
        let mut lines = Assembler::new(3, 100);
        let out = run(
            &mut lines,
            &[(0, b"abc"), (0, b"abcd\n"), (2, b"cd\n"), (5, b"e\n")],
        );
        assert_eq!(out, [(b"d\n".to_vec(), 5), (b"e\n".to_vec(), 7)]);
    }

    #[test]
    fn a_long_line_comes_in_pieces() {
        let mut lines = Assembler::new(0, 4);
        let out = run(&mut lines, &[(0, b"abc"), (3, b"defgh"), (8, b"i\nj\n")]);
        let texts: Vec<_> = out.iter().map(|(text, _)| text.as_slice()).collect();
        assert_eq!(
            texts,
            [&b"abcd"[..], b"efgh", b"i\nj\n"].map(<[u8]>::to_vec)
        );
    }

    #[test]
    fn bytes_of_a_head_in_several_runs_have_their_positions() {
        let mut lines = Assembler::new(0, 100);
        run(
            &mut lines,
            &[(0, b"ab"), (2, b"c"), (10, b"de"), (20, b"f")],
        );
        let mut positions = Vec::new();
        lines
            .feed(30, b"gh\n", 1, |piece| {
                positions = (1..=9).map(|bytes| piece.position_after(bytes)).collect();
                Ok::<_, ()>(())
            })
            .unwrap();
        assert_eq!(positions, [1, 2, 3, 11, 12, 21, 31, 32, 33]);
    }

    #[test]
    fn no_character_is_cut() {
        let text = "a\u{e9}\u{20ac}\u{1f600}".as_bytes();
        let cuts: Vec<_> = (1..text.len())
            .map(|room| whole_characters(text, room))
            .collect();
        assert_eq!(cuts, [1, 1, 3, 3, 3, 6, 6, 6, 6]);
        // Bytes that are no text are cut anywhere.
        assert_eq!(whole_characters(&[0x80; 9], 8), 8);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_one_piece() {
        let mut lines = Assembler::new(0, 4);
        let out = run(&mut lines, &[(0, b"ab"), (2, b"cd"), (4, b"\n")]);
        assert_eq!(out, [(b"abcd\n".to_vec(), 5)]);
    }

    proptest! {
        #[test]
        fn any_chunking_emits_every_byte_once_and_in_order(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'x'), any::<u8>()], 0..300),
            cuts in proptest::collection::vec(0usize..300, 0..10),
            start in 0u64..100,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut lines = Assembler::new(start, 16);
            let mut seen = Vec::new();
            let mut done = start;
            let mut emit = |piece: Piece<'_>| {
                assert!(piece.head.len() <= 16);
                assert!(piece.done() >= done);
                done = piece.done();
                seen.extend_from_slice(piece.head);
                seen.extend_from_slice(piece.body);
                Ok::<_, ()>(())
            };
            for pair in cuts.windows(2) {
                lines.feed(pair[0] as u64, &text[pair[0]..pair[1]], 0, &mut emit).unwrap();
            }
            lines.finish(false, &mut emit).unwrap();
            let from = usize::try_from(start).unwrap().min(text.len());
            prop_assert_eq!(seen, &text[from..]);
        }
    }
}
