//! What is held for one file: runs of lines in order, bounded in bytes, and what was dropped beyond that.
//! Nothing here waits or writes.

use crate::cli::OnFull;
use crate::stream::BUFFER;
use common::lines::{Buffer, Run, count};
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

/// A full buffer is waited for so long after the last write before lines are dropped; the pipe has room
/// meanwhile.
const GRACE: Duration = Duration::from_millis(10);
/// A disk that is only slow is waited for longer, for it sets the pace as it would without us: the kernel
/// pauses a writer for 200 ms at a time (MAX_PAUSE of mm/page-writeback.c), and now and then more than once.
const SLOW: Duration = Duration::from_secs(1);

/// What is written in a few milliseconds, in bytes.
const SOON: usize = 4 << 20;

/// What was dropped, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Whole lines.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the first one came.
    pub since: SystemTime,
    /// When the last one came.
    pub until: SystemTime,
}

/// What the writer takes out, in order.
#[derive(Debug)]
pub enum Item {
    /// Lines.
    Run(Run),
    /// Lines are missing here.
    Gap(Gap),
    /// The file is to be changed here, by this request.
    Cut(u64),
    /// The file is to be rotated here, by this request.
    Rotate(u64),
}

/// Whether more may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes; it may be dropped.
    Yes,
    /// Not before then, or before something was written.
    Later(Instant),
    /// Not before something was written.
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    No,
    /// Nothing was written since then.
    Since(Instant),
    /// It has been waited for; what does not fit now is dropped.
    Stuck,
    Dropping,
}

/// The queue between the loop and a file's writer.
#[derive(Debug)]
pub struct Queue {
    items: VecDeque<Item>,
    held: usize,
    limit: usize,
    policy: OnFull,
    full: Full,
    gap: Option<Gap>,
    /// The line that this source was in the middle of was dropped in part; so is its rest.
    skipping: [bool; 2],
    lost: (u64, u64),
}

impl Queue {
    /// Holds `limit` bytes.
    #[must_use]
    pub fn new(limit: usize, policy: OnFull) -> Queue {
        Queue {
            items: VecDeque::new(),
            held: 0,
            limit,
            policy,
            full: Full::No,
            gap: None,
            skipping: [false; 2],
            lost: (0, 0),
        }
    }

    /// Bytes that are held, those in the writer's hand included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Lines and bytes dropped since the start.
    #[must_use]
    pub fn lost(&self) -> (u64, u64) {
        self.lost
    }

    /// Whether more may be read. `slow` is asked when a full buffer has been waited for: whether the disk
    /// takes what it is given, and only takes its time.
    pub fn room(&mut self, now: Instant, slow: &mut dyn FnMut() -> bool) -> Room {
        // The next read may bring that much; the first one always passes.
        let chunk = BUFFER.min(self.limit / 2);
        if self.held == 0 || self.held + chunk <= self.limit {
            return Room::Yes;
        }
        match (self.policy, self.full) {
            (OnFull::Block, _) => Room::No,
            (OnFull::Drop, Full::Stuck | Full::Dropping) => Room::Yes,
            (OnFull::Drop, Full::No) => {
                self.full = Full::Since(now);
                Room::Later(now + GRACE)
            }
            (OnFull::Drop, Full::Since(since)) if now < since + GRACE => Room::Later(since + GRACE),
            (OnFull::Drop, Full::Since(since)) if now < since + SLOW && slow() => {
                Room::Later(now + GRACE)
            }
            (OnFull::Drop, Full::Since(_)) => {
                self.full = Full::Stuck;
                Room::Yes
            }
        }
    }

    /// Takes a run of `source` (0 or 1), or drops what does not fit. A buffer that is free by that comes
    /// back.
    pub fn offer(&mut self, mut run: Run, source: usize, wall: SystemTime) -> Option<Buffer> {
        if run.starts {
            self.skipping[source] = false;
        } else if self.skipping[source] {
            let filled = run.buffer.filled();
            let end = memchr::memchr(b'\n', filled).map_or(filled.len(), |at| at + 1);
            let found = filled[..end].ends_with(b"\n");
            self.drop_bytes(&filled[..end], wall);
            if !found {
                return Some(run.buffer);
            }
            self.skipping[source] = false;
            run.buffer.cut_front(end);
            run.starts = true;
            if run.buffer.filled().is_empty() {
                return Some(run.buffer);
            }
        }
        let length = run.buffer.filled().len();
        let fits = self.held + length <= self.limit;
        match self.full {
            Full::No | Full::Since(_) => return self.push(run),
            Full::Stuck if fits => return self.push(run),
            Full::Stuck | Full::Dropping => {}
        }
        // The lines that fit are kept, all that follows is dropped, until much has been written: one gap,
        // not many.
        let room = self.limit.saturating_sub(self.held);
        let kept = if self.full == Full::Dropping {
            0
        } else {
            let fitting = &run.buffer.filled()[..room.min(length)];
            memchr::memrchr(b'\n', fitting).map_or(0, |at| at + 1)
        };
        self.full = Full::Dropping;
        self.skipping[source] = !run.ends;
        self.drop_bytes(&run.buffer.filled()[kept..], wall);
        if kept == 0 {
            return Some(run.buffer);
        }
        run.buffer.truncate(kept);
        run.ends = true;
        self.push(run)
    }

    fn drop_bytes(&mut self, bytes: &[u8], wall: SystemTime) {
        let lines = count(bytes);
        let gap = self.gap.get_or_insert(Gap {
            lines: 0,
            bytes: 0,
            since: wall,
            until: wall,
        });
        gap.lines += lines;
        gap.bytes += bytes.len() as u64;
        gap.until = wall;
        self.lost.0 += lines;
        self.lost.1 += bytes.len() as u64;
    }

    /// Whether the writer may read on by itself when it has written what is here: soon, and nothing was dropped.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.held <= SOON.min(self.limit / 2) && self.full == Full::No && self.gap.is_none()
    }

    /// The writer has read so many bytes itself.
    pub fn passed_by(&mut self, bytes: usize) {
        self.held += bytes;
    }

    fn push(&mut self, run: Run) -> Option<Buffer> {
        self.held += run.buffer.filled().len();
        if let Some(Item::Run(last)) = self.items.back_mut() {
            // Small runs that wait share a buffer, so that what is held costs about what it weighs.
            if last.ends && run.starts && last.buffer.push(run.buffer.filled()) {
                last.ends = run.ends;
                return Some(run.buffer);
            }
        }
        self.items.push_back(Item::Run(run));
        None
    }

    /// The file is to be changed after what is held now, by a rotation of ours or not.
    pub fn change(&mut self, request: u64, rotate: bool) {
        if rotate {
            self.rotate(request);
        } else {
            self.cut(request);
        }
    }

    /// The file is to be changed after what is held now; several such requests in a row are one.
    pub fn cut(&mut self, request: u64) {
        self.close_gap();
        if let Some(Item::Cut(last)) = self.items.back_mut() {
            *last = request;
        } else {
            self.items.push_back(Item::Cut(request));
        }
    }

    /// The file is to be rotated after what is held now.
    pub fn rotate(&mut self, request: u64) {
        self.close_gap();
        self.items.push_back(Item::Rotate(request));
    }

    /// Nobody waits for the disk any more: what does not fit is dropped and counted.
    pub fn give_up(&mut self) {
        self.policy = OnFull::Drop;
        if self.full != Full::Dropping {
            self.full = Full::Stuck;
        }
    }

    /// No more comes: a gap at the end is said too.
    pub fn close(&mut self) {
        self.close_gap();
    }

    fn close_gap(&mut self) {
        if let Some(gap) = self.gap.take() {
            self.items.push_back(Item::Gap(gap));
        }
    }

    /// The next item.
    pub fn pop(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// The next change of the file, before the lines that wait in front of it: those cannot be written to
    /// the old one.
    pub fn pop_change(&mut self) -> Option<Item> {
        let change = |item: &Item| matches!(item, Item::Cut(_) | Item::Rotate(_));
        let at = self.items.iter().position(change)?;
        self.items.remove(at)
    }

    /// So many bytes of what was taken out are written now.
    pub fn written(&mut self, bytes: usize, now: Instant) {
        self.held -= bytes.min(self.held);
        if let Full::Since(since) = &mut self.full {
            *since = now;
        }
        if self.held <= self.limit / 2 {
            self.close_gap();
            self.full = Full::No;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    fn run(text: &str) -> Run {
        Run {
            buffer: Buffer::from(text.as_bytes()),
            starts: true,
            ends: text.ends_with('\n'),
        }
    }

    fn piece(text: &str) -> Run {
        Run {
            starts: false,
            ..run(text)
        }
    }

    /// All that can be taken out, `written` as it is taken.
    fn drained(queue: &mut Queue) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(item) = queue.pop() {
            out.push(match item {
                Item::Run(run) => {
                    queue.written(run.buffer.filled().len(), Instant::now());
                    String::from_utf8_lossy(run.buffer.filled()).into_owned()
                }
                Item::Gap(gap) => format!("gap {} {}", gap.lines, gap.bytes),
                Item::Cut(request) => format!("cut {request}"),
                Item::Rotate(request) => format!("rotate {request}"),
            });
        }
        out
    }

    #[test]
    fn what_does_not_fit_is_dropped_by_whole_lines_and_said_once() {
        let mut queue = Queue::new(10, OnFull::Drop);
        queue.offer(run("1234\n"), 0, EPOCH);
        queue.give_up();
        // Of this one line fits.
        queue.offer(run("56\n78\n90\n"), 0, EPOCH + Duration::from_secs(1));
        queue.offer(run("a\n"), 0, EPOCH + Duration::from_secs(2));
        assert_eq!(queue.held(), 8);
        assert_eq!(queue.lost(), (3, 8));
        assert_eq!(drained(&mut queue), ["1234\n", "56\n", "gap 3 8"]);
        queue.offer(run("b\n"), 0, EPOCH);
        assert_eq!(drained(&mut queue), ["b\n"]);
        assert_eq!(queue.lost(), (3, 8));
    }

    #[test]
    fn it_drops_until_half_is_written() {
        let mut queue = Queue::new(10, OnFull::Drop);
        queue.give_up();
        for text in ["123\n", "456\n", "789\n"] {
            queue.offer(run(text), 0, EPOCH);
        }
        assert_eq!((queue.held(), queue.lost()), (8, (1, 4)));
        queue.written(2, Instant::now());
        queue.offer(run("a\n"), 0, EPOCH);
        assert_eq!(queue.lost(), (2, 6));
        queue.written(1, Instant::now());
        queue.offer(run("b\n"), 0, EPOCH);
        assert_eq!((queue.held(), queue.lost()), (7, (2, 6)));
        let mut rest = drained(&mut queue);
        rest.retain(|text| !text.starts_with(['1', '4']));
        assert_eq!(rest, ["gap 2 6", "b\n"]);
    }

    #[test]
    fn a_run_larger_than_the_limit_passes_when_nothing_is_held() {
        let mut queue = Queue::new(4, OnFull::Drop);
        queue.offer(run("0123456789\n"), 0, EPOCH);
        assert_eq!((queue.held(), queue.lost()), (11, (0, 0)));
    }

    #[test]
    fn a_line_in_pieces_is_dropped_to_its_end() {
        let mut queue = Queue::new(8, OnFull::Drop);
        queue.give_up();
        queue.offer(run("aaaa"), 0, EPOCH);
        queue.offer(piece("bbbbbbbb"), 0, EPOCH);
        // The other stream is not concerned, but for the space.
        queue.offer(run("x\n"), 1, EPOCH);
        queue.written(4, Instant::now());
        queue.offer(piece("cc"), 0, EPOCH);
        queue.offer(piece("d\ne\n"), 0, EPOCH);
        assert_eq!(queue.lost(), (2, 14));
        assert_eq!(
            drained(&mut queue),
            ["aaaa", "gap 1 10", "e\n", "gap 1 4"],
            "the rest of the line goes too, and is counted"
        );
    }

    #[test]
    fn block_drops_nothing_and_says_no() {
        let mut queue = Queue::new(4, OnFull::Block);
        let now = Instant::now();
        assert_eq!(queue.room(now, &mut || false), Room::Yes);
        queue.offer(run("123\n"), 0, EPOCH);
        queue.offer(run("456\n"), 0, EPOCH);
        assert_eq!(queue.room(now + GRACE * 100, &mut || false), Room::No);
        assert_eq!(queue.lost(), (0, 0));
        queue.written(6, Instant::now());
        assert_eq!(queue.room(now, &mut || false), Room::Yes);
    }

    #[test]
    fn a_full_buffer_is_waited_for_a_moment() {
        let mut queue = Queue::new(4, OnFull::Drop);
        let now = Instant::now();
        queue.offer(run("123\n"), 0, EPOCH);
        assert_eq!(queue.room(now, &mut || false), Room::Later(now + GRACE));
        assert_eq!(
            queue.room(now + GRACE / 2, &mut || false),
            Room::Later(now + GRACE)
        );
        assert_eq!(queue.room(now + GRACE, &mut || false), Room::Yes);
        queue.offer(run("4\n"), 0, EPOCH);
        assert_eq!(queue.lost(), (1, 2));
        // From then on nobody waits.
        assert_eq!(queue.room(now + GRACE * 2, &mut || false), Room::Yes);
        queue.written(4, Instant::now());
        assert_eq!(queue.room(now + GRACE * 3, &mut || false), Room::Yes);
    }

    #[test]
    fn a_disk_that_is_only_slow_is_waited_for() {
        let mut queue = Queue::new(8, OnFull::Drop);
        let mut now = Instant::now();
        queue.offer(run("1234567890\n"), 0, EPOCH);
        for _ in 0..3 {
            assert_eq!(queue.room(now, &mut || false), Room::Later(now + GRACE));
            now += GRACE / 2;
            queue.written(1, now);
        }
        assert_eq!(
            (queue.held(), queue.room(now, &mut || false)),
            (8, Room::Later(now + GRACE))
        );
        let late = now + GRACE;
        assert_eq!(queue.room(late, &mut || true), Room::Later(late + GRACE));
        assert_eq!(queue.room(now + SLOW, &mut || true), Room::Yes);
        assert_eq!(queue.room(late, &mut || false), Room::Yes);
    }

    #[test]
    fn requests_in_a_row_are_one_and_can_go_ahead_of_lines() {
        let mut queue = Queue::new(100, OnFull::Drop);
        queue.offer(run("a\n"), 0, EPOCH);
        queue.cut(1);
        queue.cut(2);
        queue.offer(run("b\n"), 0, EPOCH);
        queue.cut(3);
        assert!(matches!(queue.pop_change(), Some(Item::Cut(2))));
        assert_eq!(drained(&mut queue), ["a\n", "b\n", "cut 3"]);
        assert!(queue.pop_change().is_none() && queue.held() == 0);
    }

    #[test]
    fn small_runs_share_a_buffer() {
        let mut queue = Queue::new(1000, OnFull::Drop);
        let mut first = Run {
            buffer: Buffer::new(8),
            starts: true,
            ends: true,
        };
        first.buffer.extend(b"a\n");
        assert!(queue.offer(first, 0, EPOCH).is_none());
        assert!(queue.offer(run("b\n"), 0, EPOCH).is_some());
        assert!(queue.offer(run("cccccc\n"), 0, EPOCH).is_none());
        assert_eq!(drained(&mut queue), ["a\nb\n", "cccccc\n"]);
    }

    proptest! {
        /// Whatever comes and however it is written: each line is kept or counted as lost, in order.
        #[test]
        fn every_line_is_kept_or_counted(steps in proptest::collection::vec((1usize..6, 0usize..8), 1..60), limit in 1usize..40) {
            let mut queue = Queue::new(limit, OnFull::Drop);
            let mut number = 0u64;
            let (mut kept, mut gaps) = (Vec::new(), 0);
            for (lines, taken) in steps {
                let now = Instant::now();
                if queue.room(now, &mut || false) != Room::Yes {
                    // It is stuck for long enough.
                    assert_eq!(queue.room(now + SLOW, &mut || false), Room::Yes);
                }
                let mut text = String::new();
                for _ in 0..lines {
                    number += 1;
                    text.push_str(&format!("{number}\n"));
                }
                queue.offer(run(&text), 0, EPOCH);
                for _ in 0..taken {
                    match queue.pop() {
                        Some(Item::Run(run)) => {
                            queue.written(run.buffer.filled().len(), Instant::now());
                            kept.extend_from_slice(run.buffer.filled());
                        }
                        Some(Item::Gap(gap)) => gaps += gap.lines,
                        _ => break,
                    }
                }
            }
            queue.close();
            while let Some(item) = queue.pop() {
                match item {
                    Item::Run(run) => kept.extend_from_slice(run.buffer.filled()),
                    Item::Gap(gap) => gaps += gap.lines,
                    Item::Cut(_) | Item::Rotate(_) => {}
                }
            }
            let text = String::from_utf8(kept).unwrap_or_default();
            let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(numbers.len() as u64 + gaps, number);
            prop_assert_eq!(queue.lost().0, gaps);
        }
    }
}
