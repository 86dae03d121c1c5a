//! Whole lines out of pipes: what came in pieces goes on in runs that end at a newline.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The kernel copies to addresses that are a multiple of this, in bytes. Measured (AMD, 64 KiB lines): a read to
/// where malloc(3) puts a buffer, 16 bytes behind the beginning of a page, costs three times as much as one to
/// the beginning of a cache line, for `rep movsb` falls back to a slower copy.
const LINE: usize = 64;
/// A pipe's buffers are pages (pipe(7)). A read that ends within one leaves its rest for the next read, and the
/// pages that follow would not be copied to multiples of [`LINE`].
const PAGE: usize = 4096;

/// Memory that is read into and handed on without copying. What is filled begins where the next read goes to a
/// multiple of [`LINE`].
#[derive(Debug, Default)]
pub struct Buffer {
    room: Vec<u8>,
    size: usize,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Room for `size` bytes; the kernel gives the memory when it is first touched.
    #[must_use]
    pub fn new(size: usize) -> Buffer {
        let mut buffer = Buffer {
            room: vec![0; size + LINE],
            size,
            start: 0,
            len: 0,
        };
        buffer.begin(&[]);
        buffer
    }

    /// Holds `bytes` alone, which it has room for, so that what is read behind them is aligned.
    fn begin(&mut self, bytes: &[u8]) {
        let behind = self.room.as_ptr().wrapping_add(bytes.len());
        self.start = behind.align_offset(LINE).min(self.room.len() - self.size);
        self.len = 0;
        self.extend(bytes);
    }

    /// What is filled.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.room[self.start..self.start + self.len]
    }

    /// How much there is room for in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.size
    }

    /// What is not filled yet.
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.room[self.start + self.len..self.start + self.size]
    }

    /// What is to be read into: as much of what is spare as is whole pages.
    fn pages(&mut self) -> &mut [u8] {
        let spare = self.spare();
        match spare.len() / PAGE * PAGE {
            0 => spare,
            whole => &mut spare[..whole],
        }
    }

    /// So many more bytes are filled.
    pub fn add(&mut self, count: usize) {
        self.len = (self.len + count).min(self.size);
    }

    /// Only the first `len` bytes stay.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Takes the first `count` bytes out; the others move to the front.
    pub fn cut_front(&mut self, count: usize) {
        let count = count.min(self.len);
        let from = self.start + count;
        self.room
            .copy_within(from..self.start + self.len, self.start);
        self.len -= count;
    }

    /// Adds `bytes` when they fit.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let Some(place) = self.spare().get_mut(..bytes.len()) else {
            return false;
        };
        place.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }

    /// Adds `bytes`, with more room if it is needed.
    pub fn extend(&mut self, bytes: &[u8]) {
        let need = self.len + bytes.len();
        if need > self.size {
            self.grow(need.max(self.size * 2));
        }
        let fits = self.push(bytes);
        debug_assert!(fits);
    }

    fn grow(&mut self, size: usize) {
        self.size = size;
        self.room.resize(size + LINE, 0);
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Buffer {
        Buffer {
            room: bytes.to_vec(),
            size: bytes.len(),
            start: 0,
            len: bytes.len(),
        }
    }
}

/// A few buffers that are not in use, so that their memory need not be had anew from the kernel; not more
/// than a few, so that nobody keeps what a burst has needed.
#[derive(Debug)]
pub struct Pool {
    spare: Vec<Buffer>,
    size: usize,
    most: usize,
}

impl Pool {
    /// Buffers of `size` bytes, of which `most` are kept.
    #[must_use]
    pub fn new(size: usize, most: usize) -> Pool {
        Pool {
            spare: Vec::new(),
            size,
            most,
        }
    }

    /// The size of its buffers, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// An empty buffer.
    pub fn take(&mut self) -> Buffer {
        self.spare.pop().unwrap_or_else(|| Buffer::new(self.size))
    }

    /// Takes a buffer back; those of another size, and more than a few, are freed.
    pub fn give(&mut self, mut buffer: Buffer) {
        if buffer.capacity() == self.size && self.spare.len() < self.most {
            buffer.begin(&[]);
            self.spare.push(buffer);
        }
    }

    /// Frees what is kept: after silence nobody may hold memory for nothing.
    pub fn empty(&mut self) {
        self.spare = Vec::new();
    }

    /// Something is kept.
    #[must_use]
    pub fn keeps_any(&self) -> bool {
        !self.spare.is_empty()
    }
}

/// A run of lines out of a stream.
#[derive(Debug)]
pub struct Run {
    /// Its bytes.
    pub buffer: Buffer,
    /// It begins where a line begins.
    pub starts: bool,
    /// It ends with a newline.
    pub ends: bool,
}

/// An unfinished line up to this size, in bytes, waits in memory of its own: a whole buffer for it would
/// be kept from others.
const SMALL: usize = 4096;

#[derive(Debug)]
enum Tail {
    Small(Vec<u8>),
    Large(Buffer),
}

impl Default for Tail {
    fn default() -> Tail {
        Tail::Small(Vec::new())
    }
}

/// Reads one stream and hands on runs of whole lines. A byte is copied only if it belongs to a line whose
/// end has not come.
#[derive(Debug)]
pub struct Pump {
    tail: Tail,
    longest: usize,
    inside: bool,
    split: u64,
}

impl Pump {
    /// Lines up to `longest` bytes (at least a buffer's size) are kept whole; what is longer passes in
    /// pieces.
    #[must_use]
    pub fn new(longest: usize) -> Pump {
        Pump {
            tail: Tail::default(),
            longest,
            inside: false,
            split: 0,
        }
    }

    /// Goes on where another one was stopped: `tail` is a line whose end has not come.
    #[must_use]
    pub fn again(longest: usize, tail: &[u8]) -> Pump {
        Pump {
            tail: Tail::Small(tail.to_vec()),
            ..Pump::new(longest)
        }
    }

    /// Reads once, by `read`, and hands on the lines that are whole now. 0 is the end of the stream.
    ///
    /// # Errors
    /// Those of `read`, but for EINTR; nothing is lost by them.
    pub fn fill(
        &mut self,
        pool: &mut Pool,
        read: &mut dyn FnMut(&mut [u8]) -> nix::Result<usize>,
        sink: &mut dyn FnMut(Run),
    ) -> nix::Result<usize> {
        let mut buffer = match std::mem::take(&mut self.tail) {
            Tail::Large(buffer) => buffer,
            Tail::Small(tail) => {
                let mut buffer = pool.take();
                buffer.begin(&tail);
                buffer
            }
        };
        if buffer.spare().is_empty() {
            let more = buffer.capacity().min(self.longest).max(SMALL);
            buffer.grow(buffer.capacity() + more);
        }
        let before = buffer.len;
        let got = loop {
            match read(buffer.pages()) {
                Err(nix::Error::EINTR) => {}
                other => break other,
            }
        };
        let Ok(count @ 1..) = got else {
            self.keep(buffer, pool);
            return got;
        };
        buffer.add(count);
        let starts = !self.inside;
        let newest = &buffer.filled()[before..];
        if let Some(at) = memchr::memrchr(b'\n', newest) {
            let cut = before + at + 1;
            let rest = &buffer.filled()[cut..];
            if rest.len() <= SMALL {
                self.tail = Tail::Small(rest.to_vec());
            } else {
                let mut next = pool.take();
                next.begin(rest);
                self.tail = Tail::Large(next);
            }
            buffer.truncate(cut);
            self.inside = false;
            sink(Run {
                buffer,
                starts,
                ends: true,
            });
        } else if buffer.len >= self.longest {
            if !self.inside {
                self.split += 1;
            }
            self.inside = true;
            sink(Run {
                buffer,
                starts,
                ends: false,
            });
        } else {
            self.keep(buffer, pool);
        }
        Ok(count)
    }

    fn keep(&mut self, buffer: Buffer, pool: &mut Pool) {
        self.tail = if buffer.len <= SMALL {
            let tail = Tail::Small(buffer.filled().to_vec());
            pool.give(buffer);
            tail
        } else {
            Tail::Large(buffer)
        };
    }

    /// The unfinished line as a run, without waiting for its end.
    #[must_use]
    pub fn flush(&mut self) -> Option<Run> {
        if self.tail().is_empty() {
            return None;
        }
        let buffer = match std::mem::take(&mut self.tail) {
            Tail::Small(tail) => Buffer::from(tail.as_slice()),
            Tail::Large(buffer) => buffer,
        };
        let starts = !self.inside;
        self.inside = true;
        Some(Run {
            buffer,
            starts,
            ends: false,
        })
    }

    /// The end of the input: an unfinished line, with a newline. The memory is given back.
    #[must_use]
    pub fn finish(&mut self) -> Option<Run> {
        let starts = !self.inside;
        let run = self.flush();
        let unfinished = std::mem::replace(&mut self.inside, false);
        let mut buffer = match run {
            Some(run) => run.buffer,
            None if unfinished => Buffer::default(),
            None => return None,
        };
        buffer.extend(b"\n");
        Some(Run {
            buffer,
            starts,
            ends: true,
        })
    }

    /// The line that was handed on in part is over, by decision of whoever has it: what comes next begins
    /// a line.
    pub fn break_line(&mut self) {
        self.inside = false;
    }

    /// The unfinished line, as far as it was not handed on.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        match &self.tail {
            Tail::Small(tail) => tail,
            Tail::Large(buffer) => buffer.filled(),
        }
    }

    /// A line was handed on in part, and its end has not come.
    #[must_use]
    pub fn inside(&self) -> bool {
        self.inside
    }

    /// Lines that were longer than allowed.
    #[must_use]
    pub fn split(&self) -> u64 {
        self.split
    }
}

/// How many newlines.
#[must_use]
pub fn count(bytes: &[u8]) -> u64 {
    crate::sys::count_byte(b'\n', bytes)
}

/// Calls `each` with every line of a run, its newline included.
pub fn each_line(run: &[u8], each: impl FnMut(&[u8])) {
    run.split_inclusive(|byte| *byte == b'\n').for_each(each);
}

/// Cuts a run into batches of whole lines of at most `limit` bytes; a longer line stands alone.
pub fn batches(run: &[u8], limit: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = run;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = if rest.len() <= limit {
            rest.len()
        } else {
            match rest[..limit].iter().rposition(|byte| *byte == b'\n') {
                Some(at) => at + 1,
                None => rest
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(rest.len(), |at| at + 1),
            }
        };
        let (batch, after) = rest.split_at(cut);
        rest = after;
        Some(batch)
    })
}

/// The last lines of a stream, for a report.
#[derive(Clone, Debug)]
pub struct LastLines {
    lines: VecDeque<String>,
    count: usize,
    width: usize,
}

impl LastLines {
    /// Keeps `count` lines of at most `width` bytes.
    #[must_use]
    pub fn new(count: usize, width: usize) -> LastLines {
        LastLines {
            lines: VecDeque::new(),
            count,
            width,
        }
    }

    /// Takes a run of whole lines; only its last ones are looked at.
    pub fn push(&mut self, run: &[u8]) {
        let body = run.strip_suffix(b"\n").unwrap_or(run);
        let mut newest: Vec<String> = body
            .rsplit(|byte| *byte == b'\n')
            .take(self.count)
            .map(|line| shortened(line, self.width))
            .collect();
        while let Some(line) = newest.pop() {
            if self.lines.len() == self.count {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
    }

    /// Oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// The beginning of a line as text, of at most `width` bytes. What is no text is longer as text, and a letter is
/// taken whole or not at all.
fn shortened(line: &[u8], width: usize) -> String {
    // A letter has four bytes at most.
    let beginning = &line[..line.len().min(width.saturating_add(3))];
    let mut text = String::from_utf8_lossy(beginning).into_owned();
    let mut end = text.len().min(width);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// How long to wait before the next read, so that a stream of short writes does not cost a wake-up
/// each: longer while little comes, shorter when much does, not at all after silence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    pause: Duration,
    last: Option<Instant>,
}

/// Measured: 200 MB a second of short lines fill a pipe of 1 MiB by 80 % in this time.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);
const SHORTEST_PAUSE: Duration = Duration::from_micros(500);
/// Nothing for so long is silence: what comes then waits for nothing.
const SILENCE: Duration = Duration::from_millis(8);

impl Pace {
    /// No pause yet.
    #[must_use]
    pub fn new() -> Pace {
        Pace::default()
    }

    /// After a turn that emptied the pipe: it brought `got` bytes, and the pipe has room for `capacity`.
    /// `None`: wait for the pipe itself.
    pub fn after(&mut self, got: usize, capacity: usize, now: Instant) -> Option<Duration> {
        let last = self.last.replace(now);
        let long = last.is_none_or(|last| now.saturating_duration_since(last) > SILENCE);
        // Much after a long time is no silence: we did not get the processor.
        if long && got < capacity / 16 {
            self.pause = Duration::ZERO;
            return None;
        }
        if got >= capacity / 2 {
            self.pause /= 2;
            if self.pause < SHORTEST_PAUSE {
                self.pause = Duration::ZERO;
            }
        } else if got < capacity / 16 || (got < capacity / 4 && !self.pause.is_zero()) {
            self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
        (!self.pause.is_zero()).then_some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes out when `chunks` come in one by one.
    fn through(chunks: &[&[u8]], size: usize, longest: usize) -> Vec<Vec<u8>> {
        let mut pool = Pool::new(size, 2);
        let mut pump = Pump::new(longest);
        let mut runs = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            while !rest.is_empty() {
                let mut read = |room: &mut [u8]| {
                    let count = room.len().min(rest.len());
                    room[..count].copy_from_slice(&rest[..count]);
                    rest = &rest[count..];
                    Ok(count)
                };
                let mut out = Vec::new();
                let got = pump.fill(&mut pool, &mut read, &mut |run| out.push(run));
                assert!(got.is_ok());
                for run in out {
                    runs.push(run.buffer.filled().to_vec());
                    pool.give(run.buffer);
                }
            }
        }
        runs.extend(pump.finish().map(|run| run.buffer.filled().to_vec()));
        runs
    }

    #[test]
    fn runs_end_at_newlines() {
        assert_eq!(
            through(&[b"a\nb", b"c\nd\ne", b"f"], 100, 100),
            [&b"a\n"[..], b"bc\nd\n", b"ef\n"]
        );
        assert_eq!(through(&[b"", b"\n"], 100, 100), [&b"\n"[..]]);
        assert!(through(&[], 100, 100).is_empty());
    }

    #[test]
    fn a_line_without_end_passes_in_pieces() {
        let runs = through(&[b"xxxxxx", b"yyyyyy", b"z\nq\n"], 5, 5);
        assert_eq!(runs, [&b"xxxxx"[..], b"xyyyy", b"yyz\n", b"q\n"]);
    }

    #[test]
    fn a_line_may_be_longer_than_a_buffer() {
        let long = [b'x'; 40];
        let runs = through(&[&long, b"\ny\n"], 8, 1000);
        assert_eq!(runs.concat().len(), 43);
        assert!(runs.iter().all(|run| run.ends_with(b"\n")), "{runs:?}");
    }

    #[test]
    fn an_error_or_nothing_to_read_loses_nothing() {
        let mut pool = Pool::new(8, 2);
        let mut pump = Pump::again(8, b"abc");
        let mut none = |_: Run| unreachable!();
        for answer in [Err(nix::Error::EAGAIN), Err(nix::Error::EIO), Ok(0)] {
            let got = pump.fill(&mut pool, &mut |_| answer, &mut none);
            assert_eq!(got, answer);
            assert_eq!(pump.tail(), b"abc");
        }
        let mut interrupted = 0;
        let mut read = |room: &mut [u8]| {
            interrupted += 1;
            if interrupted == 1 {
                return Err(nix::Error::EINTR);
            }
            room[0] = b'\n';
            Ok(1)
        };
        let mut runs = Vec::new();
        assert_eq!(
            pump.fill(&mut pool, &mut read, &mut |run| runs.push(run)),
            Ok(1)
        );
        assert_eq!(runs[0].buffer.filled(), b"abc\n");
    }

    #[test]
    fn what_is_flushed_is_the_beginning_of_a_line_and_its_rest_is_not() {
        let mut pool = Pool::new(16, 2);
        let mut pump = Pump::again(16, b"abc");
        let first = pump.flush();
        assert!(first.is_some_and(|run| run.starts && !run.ends));
        assert!(pump.inside() && pump.flush().is_none());
        let mut read = |room: &mut [u8]| {
            room[..2].copy_from_slice(b"d\n");
            Ok(2)
        };
        let mut rest = None;
        assert_eq!(
            pump.fill(&mut pool, &mut read, &mut |run| rest = Some(run)),
            Ok(2)
        );
        assert!(rest.is_some_and(|run| !run.starts && run.ends));
        assert!(!pump.inside() && pump.finish().is_none());
    }

    #[test]
    fn batches_are_whole_lines_as_far_as_they_fit() {
        let run = b"aa\nbb\ncccccccccc\nd\n";
        let cut: Vec<_> = batches(run, 6).collect();
        assert_eq!(cut, [&b"aa\nbb\n"[..], b"cccccccccc\n", b"d\n"]);
        assert_eq!(batches(b"", 6).count(), 0);
    }

    #[test]
    fn newlines_are_counted_however_many() {
        for length in [0, 1, 31, 32, 33, 32 * 255, 32 * 255 + 1, 100_000] {
            assert_eq!(count(&b"\n".repeat(length)), length as u64);
            assert_eq!(count(&b"x".repeat(length)), 0);
        }
    }

    #[test]
    fn the_last_lines() {
        let mut last = LastLines::new(3, 4);
        last.push(b"1\n2\n3\n4444444\n");
        last.push(b"5\n");
        assert_eq!(last.lines().collect::<Vec<_>>(), ["3", "4444", "5"]);
        last.push("\u{e4}\u{e4}\u{e4}\n\u{20ac}\u{20ac}\n".as_bytes());
        last.push(b"\xff\xff\xff\xff\n");
        assert_eq!(
            last.lines().collect::<Vec<_>>(),
            ["\u{e4}\u{e4}", "\u{20ac}", "\u{fffd}"]
        );
    }

    #[test]
    fn the_pool_keeps_a_few_and_no_strangers() {
        let mut pool = Pool::new(8, 2);
        for _ in 0..3 {
            pool.give(Buffer::new(8));
        }
        pool.give(Buffer::new(9));
        assert_eq!(pool.spare.len(), 2);
        pool.empty();
        assert!(!pool.keeps_any());
        assert_eq!(pool.take().capacity(), 8);
    }

    #[test]
    fn whole_pages_are_read_to_where_a_copy_is_cheap() {
        let size = 3 * PAGE;
        let mut pool = Pool::new(size, 2);
        let mut pump = Pump::new(size);
        let mut seen = |run: Run| assert_eq!(run.buffer.filled(), b"\n");
        for tail in (0..2 * LINE).chain([SMALL, SMALL + 1, size - PAGE]) {
            let text = [&b"\n"[..], &b"x".repeat(tail)].concat();
            let mut rest = text.as_slice();
            for _ in 0..2 {
                let mut read = |room: &mut [u8]| {
                    assert_eq!(room.as_ptr().align_offset(LINE), 0, "{tail}");
                    assert_eq!(room.len() % PAGE, 0, "{tail}");
                    if rest.is_empty() {
                        return Err(nix::Error::EAGAIN);
                    }
                    room[..rest.len()].copy_from_slice(rest);
                    Ok(std::mem::take(&mut rest).len())
                };
                let _ = pump.fill(&mut pool, &mut read, &mut seen);
            }
            assert_eq!(pump.tail().len(), tail);
            let _ = pump.finish();
        }
    }

    #[test]
    fn much_after_a_long_time_is_no_silence() {
        let capacity = 1 << 20;
        let mut pace = Pace::new();
        let mut now = Instant::now();
        for (got, expected) in [
            (100, None),
            (capacity / 16 - 1, None),
            (capacity / 16, None),
            (100, Some(SHORTEST_PAUSE)),
            (capacity / 16, Some(SHORTEST_PAUSE * 2)),
        ] {
            now += if got == 100 { SILENCE } else { SILENCE * 2 };
            assert_eq!(pace.after(got, capacity, now), expected, "{got}");
        }
    }

    #[test]
    fn the_pause_grows_while_little_comes_and_ends_when_much_does() {
        let capacity = 1 << 20;
        let mut pace = Pace::new();
        let mut now = Instant::now();
        // A lone line waits for nothing, nor does the next one after silence.
        assert_eq!(pace.after(100, capacity, now), None);
        now += SILENCE * 2;
        assert_eq!(pace.after(100, capacity, now), None);
        let mut last = None;
        for _ in 0..10 {
            now += Duration::from_millis(1);
            let next = pace.after(100, capacity, now);
            assert!(next >= last);
            last = next;
        }
        assert_eq!(last, Some(LONGEST_PAUSE));
        for (got, expected) in [
            (capacity / 3, Some(LONGEST_PAUSE)),
            (capacity / 2, Some(LONGEST_PAUSE / 2)),
            (capacity, Some(LONGEST_PAUSE / 4)),
            (capacity, Some(LONGEST_PAUSE / 8)),
            (capacity, None),
            (capacity / 16, None),
            (capacity / 16 - 1, Some(SHORTEST_PAUSE)),
        ] {
            now += Duration::from_millis(1);
            assert_eq!(pace.after(got, capacity, now), expected, "{got}");
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_bytes(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300),
            size in 1usize..20,
            buffer in 1usize..64,
        ) {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            prop_assert_eq!(count(&text), text.iter().filter(|byte| **byte == b'\n').count() as u64);
            let runs = through(&chunks, buffer, 1000);
            let mut expected = text.clone();
            if expected.last().is_some_and(|byte| *byte != b'\n') {
                expected.push(b'\n');
            }
            prop_assert!(runs.iter().all(|run| run.ends_with(b"\n")));
            prop_assert_eq!(runs.concat(), expected.clone());
            prop_assert_eq!(batches(&expected, 16).collect::<Vec<_>>().concat(), expected.clone());
            // In pieces the bytes are the same too.
            prop_assert_eq!(through(&chunks, 4, 4).concat(), expected);
        }
    }
}
