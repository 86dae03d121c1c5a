//! Whole lines out of pipes: what came in pieces goes on in runs that end at a newline.

use std::collections::VecDeque;
use std::time::Duration;

/// Puts the pieces of one stream together.
#[derive(Debug)]
pub struct Lines {
    tail: Vec<u8>,
    longest: usize,
    inside: bool,
    split: u64,
}

impl Lines {
    /// Lines up to `longest` bytes are kept whole; what is longer passes in pieces.
    #[must_use]
    pub fn new(longest: usize) -> Lines {
        Lines {
            tail: Vec::new(),
            longest,
            inside: false,
            split: 0,
        }
    }

    /// Takes a chunk; `sink` gets runs of whole lines, in order.
    pub fn push(&mut self, chunk: &[u8], sink: &mut dyn FnMut(&[u8])) {
        let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') else {
            self.keep(chunk, sink);
            return;
        };
        let (whole, rest) = chunk.split_at(end + 1);
        if self.tail.is_empty() {
            sink(whole);
        } else {
            // Only the first line belongs to the tail; the others need not be copied.
            let first = whole
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(whole.len(), |at| at + 1);
            self.tail.extend_from_slice(&whole[..first]);
            sink(&self.tail);
            self.tail.clear();
            if first < whole.len() {
                sink(&whole[first..]);
            }
        }
        self.inside = false;
        self.give_back();
        self.keep(rest, sink);
    }

    fn keep(&mut self, piece: &[u8], sink: &mut dyn FnMut(&[u8])) {
        if piece.is_empty() {
            return;
        }
        self.tail.extend_from_slice(piece);
        if self.tail.len() > self.longest {
            if !self.inside {
                self.split += 1;
                self.inside = true;
            }
            sink(&self.tail);
            self.tail.clear();
            self.give_back();
        }
    }

    /// The end of the input: an unfinished line goes on with a newline. The memory is given back.
    pub fn finish(&mut self, sink: &mut dyn FnMut(&[u8])) {
        if !self.tail.is_empty() || self.inside {
            self.tail.push(b'\n');
            sink(&self.tail);
        }
        self.inside = false;
        self.tail = Vec::new();
    }

    /// The unfinished line.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Bytes of an unfinished line.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tail.len()
    }

    /// Lines that were longer than allowed.
    #[must_use]
    pub fn split(&self) -> u64 {
        self.split
    }

    fn give_back(&mut self) {
        if self.tail.is_empty() && self.tail.capacity() > 64 << 10 {
            self.tail = Vec::new();
        }
    }
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
            .map(|line| String::from_utf8_lossy(&line[..line.len().min(self.width)]).into_owned())
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

/// How long to wait before the next read, so that a stream of short writes does not cost a wake-up
/// each: longer while little comes, shorter when much does, not at all after silence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    pause: Duration,
}

/// Measured: at 4 ms a pipe of 1 MiB is far from full at a gigabyte in ten seconds.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);
const SHORTEST_PAUSE: Duration = Duration::from_micros(500);

impl Pace {
    /// No pause yet.
    #[must_use]
    pub fn new() -> Pace {
        Pace::default()
    }

    /// After a read of `got` bytes into `capacity`: `emptied` when the pipe has no more, `first` when
    /// it was the first one after silence. `None`: read on at once, or wait for the pipe.
    pub fn after_read(
        &mut self,
        got: usize,
        capacity: usize,
        emptied: bool,
        first: bool,
    ) -> Option<Duration> {
        if !emptied || got >= capacity / 2 {
            self.pause = Duration::ZERO;
            return None;
        }
        if first {
            // A lone line waits for nothing; if more follow at once, they may come together.
            self.pause = SHORTEST_PAUSE;
        } else if got < capacity / 16 {
            self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
        Some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn through(chunks: &[&[u8]], longest: usize) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(longest);
        let mut runs = Vec::new();
        for chunk in chunks {
            lines.push(chunk, &mut |run| runs.push(run.to_vec()));
        }
        lines.finish(&mut |run| runs.push(run.to_vec()));
        runs
    }

    #[test]
    fn runs_end_at_newlines() {
        assert_eq!(
            through(&[b"a\nb", b"c\nd\ne", b"f"], 100),
            [&b"a\n"[..], b"bc\n", b"d\n", b"ef\n"]
        );
        assert_eq!(through(&[b"", b"\n"], 100), [&b"\n"[..]]);
        assert!(through(&[], 100).is_empty());
    }

    #[test]
    fn a_line_without_end_passes_in_pieces() {
        let runs = through(&[b"xxxxxx", b"yyyyyy", b"z\nq\n"], 5);
        assert_eq!(runs, [&b"xxxxxx"[..], b"yyyyyy", b"z\nq\n"]);
    }

    #[test]
    fn batches_are_whole_lines_as_far_as_they_fit() {
        let run = b"aa\nbb\ncccccccccc\nd\n";
        let cut: Vec<_> = batches(run, 6).collect();
        assert_eq!(cut, [&b"aa\nbb\n"[..], b"cccccccccc\n", b"d\n"]);
        assert_eq!(batches(b"", 6).count(), 0);
    }

    #[test]
    fn the_last_lines() {
        let mut last = LastLines::new(3, 4);
        last.push(b"1\n2\n3\n4444444\n");
        last.push(b"5\n");
        assert_eq!(last.lines().collect::<Vec<_>>(), ["3", "4444", "5"]);
    }

    #[test]
    fn the_pause_grows_while_little_comes_and_ends_when_much_does() {
        let mut pace = Pace::new();
        let first = pace.after_read(100, 65536, true, true);
        let mut last = first;
        for _ in 0..10 {
            let next = pace.after_read(100, 65536, true, false);
            assert!(next >= last);
            last = next;
        }
        assert_eq!(last, Some(LONGEST_PAUSE));
        assert_eq!(pace.after_read(65536, 65536, false, false), None);
        assert_eq!(pace.after_read(40000, 65536, true, false), None);
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_bytes(text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300), size in 1usize..20) {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            let runs = through(&chunks, 1000);
            let mut expected = text.clone();
            if expected.last().is_some_and(|byte| *byte != b'\n') {
                expected.push(b'\n');
            }
            prop_assert!(runs.iter().all(|run| run.ends_with(b"\n")));
            prop_assert_eq!(runs.concat(), expected.clone());
            prop_assert_eq!(batches(&expected, 16).collect::<Vec<_>>().concat(), expected);
        }
    }
}
