//! A stream that its file's writer reads itself, which it does as long as it can write: the bytes stay with one
//! processor from the pipe to the file, which costs a third less than to hand them from thread to thread, and a
//! lone line wakes one thread rather than two. The loop is woken when the file may hang, and takes the stream back.

use crate::run::IDLE;
use crate::stream::SHOWN;
use common::lines::{Buffer, Pace, Pool, Pump, Run};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is read at once, in bytes. Measured on 64 KiB writes: with half of it, it is the calls that cost a tenth
/// more, with four times as much the processor's cache.
const READ: usize = 256 << 10;
/// A pipe that is filled fast is looked at again after this; it holds more than comes in that time.
const BREATH: Duration = Duration::from_micros(200);
/// A writer that was not heard of for so long may hang.
pub const WATCH: Duration = Duration::from_millis(5);

/// What reading brought.
#[derive(Debug)]
pub enum Fed {
    /// Lines.
    Lines(Run),
    /// Not enough for a line; there may be more.
    Part,
    /// Nothing before then.
    Wait(Instant),
    /// Nothing before the pipe can be read, or until then.
    Silent(Option<Instant>),
    /// It is the loop's again: a line is very long or does not end, or all writers are gone.
    Over,
}

/// The stream, in the writer's hand.
#[derive(Debug)]
pub struct Feed {
    fd: Arc<OwnedFd>,
    pump: Pump,
    pool: Pool,
    pace: Pace,
    size: usize,
    turn: usize,
    wait: Option<Instant>,
    /// The pipe is empty, and is waited for.
    silent: bool,
    /// The beginning of a line is shown then.
    show: Option<Instant>,
    /// No memory is kept from then on.
    idle_at: Option<Instant>,
    over: bool,
}

impl Feed {
    /// A pipe with room for `size` bytes, that can be read without waiting.
    #[must_use]
    pub fn new(fd: Arc<OwnedFd>, pump: Pump, pace: Pace, size: usize) -> Feed {
        Feed {
            fd,
            pump,
            pool: Pool::new(READ, 2),
            pace,
            size,
            turn: 0,
            wait: None,
            silent: false,
            show: None,
            idle_at: None,
            over: false,
        }
    }

    /// The pipe, which is to be waited for after [`Fed::Silent`].
    #[must_use]
    pub fn pipe(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// The pipe that was waited for can be read.
    pub fn ready(&mut self) {
        self.silent = false;
    }

    /// Reads once, if it is time.
    pub fn read(&mut self, now: Instant) -> Fed {
        if self.over {
            return Fed::Over;
        }
        if let Some(until) = self.wait.filter(|until| now < *until) {
            return Fed::Wait(until);
        }
        self.wait = None;
        if self.silent {
            return self.rest(now);
        }
        let mut run = None;
        let mut emptied = false;
        let fd = &self.fd;
        let got = self.pump.fill(
            &mut self.pool,
            &mut |room| {
                let got = nix::unistd::read(fd, room);
                emptied = got.is_ok_and(|count| count < room.len());
                got
            },
            &mut |whole| run = Some(whole),
        );
        match got {
            Ok(count @ 1..) => self.turn += count,
            Err(nix::Error::EAGAIN) => emptied = true,
            // The end, which the loop will see as well.
            Ok(_) | Err(_) => self.over = true,
        }
        // Who may write between is for the loop to say.
        self.over |= self.pump.inside();
        if emptied {
            self.empty(now);
        }
        match run {
            Some(run) => Fed::Lines(run),
            None if self.over => Fed::Over,
            None if self.silent => self.rest(now),
            None => self.wait.map_or(Fed::Part, Fed::Wait),
        }
    }

    /// The pipe has nothing more for now.
    fn empty(&mut self, now: Instant) {
        let turn = std::mem::take(&mut self.turn);
        self.silent = true;
        if turn == 0 {
            return;
        }
        self.idle_at = Some(now + IDLE);
        self.show = (!self.pump.tail().is_empty()).then(|| now + SHOWN);
        let much = (turn >= self.size / 2).then_some(BREATH);
        if let Some(pause) = self.pace.after(turn, self.size, now).or(much) {
            self.wait = Some(now + pause);
            self.silent = false;
        }
    }

    /// Nothing comes: what is due by time alone.
    fn rest(&mut self, now: Instant) -> Fed {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.idle_at) {
            self.idle_at = None;
            self.pool.empty();
        }
        if due(self.show) {
            self.show = None;
            if let Some(run) = self.pump.flush() {
                self.over = true;
                return Fed::Lines(run);
            }
        }
        Fed::Silent(self.show.into_iter().chain(self.idle_at).min())
    }

    /// It is to be given back.
    pub fn stop(&mut self) {
        self.over = true;
    }

    /// It waits for the loop to take it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// A buffer that is written.
    pub fn give(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    /// No line has begun without its end.
    #[must_use]
    pub fn is_between_lines(&self) -> bool {
        !self.pump.inside() && self.pump.tail().is_empty()
    }

    /// A line was handed on in part.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.pump.inside()
    }

    /// What the loop goes on with.
    #[must_use]
    pub fn into_parts(self) -> (Pump, Pace) {
        (self.pump, self.pace)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::stream::LONGEST;
    use nix::fcntl::OFlag;
    use proptest::prelude::*;
    use std::fs::File;
    use std::io::Write;

    /// Half of a pipe.
    const MUCH: usize = 32 << 10;

    fn feed() -> (Feed, File) {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let feed = Feed::new(Arc::new(reader), Pump::new(LONGEST), Pace::new(), 65_536);
        (feed, writer.into())
    }

    fn lines(fed: Fed) -> Vec<u8> {
        match fed {
            Fed::Lines(run) => run.buffer.filled().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn little_waits_for_the_pipe_and_what_was_begun_goes_back() {
        let (mut feed, mut pipe) = feed();
        let now = Instant::now();
        pipe.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(lines(feed.read(now)), b"one\ntwo\n");
        assert!(!feed.is_between_lines() && !feed.has_begun());
        pipe.write_all(b"ee\nfo").unwrap();
        let Fed::Silent(Some(_)) = feed.read(now) else {
            panic!("nobody has said that there is more");
        };
        feed.ready();
        assert_eq!(lines(feed.read(now)), b"three\n");
        assert!(!feed.is_over());
        feed.stop();
        assert!(matches!(feed.read(now + BREATH * 1000), Fed::Over));
        let (pump, _) = feed.into_parts();
        assert_eq!(pump.tail(), b"fo", "the rest is the loop's");
    }

    #[test]
    fn a_line_that_does_not_end_is_shown_and_then_the_loops() {
        let (mut feed, mut pipe) = feed();
        let now = Instant::now();
        pipe.write_all(b"Password: ").unwrap();
        let Fed::Silent(Some(until)) = feed.read(now) else {
            panic!("it has no end yet");
        };
        assert_eq!(until, now + SHOWN.min(IDLE));
        assert_eq!(lines(feed.read(now + SHOWN)), b"Password: ");
        assert!(feed.has_begun() && feed.is_over());
    }

    #[test]
    fn no_memory_is_kept_after_silence() {
        let (mut feed, mut pipe) = feed();
        let now = Instant::now();
        pipe.write_all(b"line\n").unwrap();
        let Fed::Lines(run) = feed.read(now) else {
            panic!("it has come");
        };
        feed.give(run.buffer);
        assert!(matches!(feed.read(now), Fed::Silent(Some(until)) if until == now + IDLE));
        assert!(feed.pool.keeps_any());
        assert!(matches!(feed.read(now + IDLE), Fed::Silent(None)));
        assert!(!feed.pool.keeps_any());
    }

    #[test]
    fn much_is_read_again_after_a_pause_and_not_before() {
        let (mut feed, mut pipe) = feed();
        let now = Instant::now();
        let much = [&[b'x'; MUCH - 1][..], b"\n"].concat();
        pipe.write_all(&much).unwrap();
        assert_eq!(lines(feed.read(now)), much);
        assert!(!feed.is_over());
        pipe.write_all(&much).unwrap();
        let Fed::Wait(until) = feed.read(now) else {
            panic!("it has just been emptied");
        };
        assert!(until > now);
        assert_eq!(lines(feed.read(until)), much);
        feed.stop();
        assert!(matches!(feed.read(until + BREATH * 1000), Fed::Over));
    }

    #[test]
    fn the_end_and_a_line_without_end_are_the_loops() {
        let (mut feed, pipe) = feed();
        drop(pipe);
        assert!(matches!(feed.read(Instant::now()), Fed::Over));
        let (mut long, mut pipe) = self::feed();
        let (mut seen, mut now) = (0, Instant::now());
        while !long.is_over() {
            pipe.write_all(&[b'x'; MUCH]).unwrap();
            now += Duration::from_millis(10);
            if let Fed::Lines(run) = long.read(now) {
                assert!(!run.ends);
                seen += run.buffer.filled().len();
            }
        }
        assert_eq!(seen, LONGEST);
        assert!(long.into_parts().0.inside());
    }

    proptest! {
        /// Whatever comes, and whenever it is taken back: the lines that came out and what is left in the pump
        /// and in the pipe are what was written.
        #[test]
        fn nothing_is_lost_on_the_way_back(chunks in proptest::collection::vec("[a-c\n]{0,40}", 1..40), turns in 0usize..40) {
            let (mut feed, mut pipe) = feed();
            let (mut out, mut now) = (Vec::new(), Instant::now());
            for (turn, chunk) in chunks.iter().enumerate() {
                pipe.write_all(chunk.as_bytes()).unwrap();
                if turn == turns {
                    feed.stop();
                }
                now += Duration::from_millis(10);
                feed.ready();
                if let Fed::Lines(run) = feed.read(now) {
                    prop_assert!(run.ends && run.starts);
                    out.extend_from_slice(run.buffer.filled());
                }
            }
            let fd = Arc::clone(&feed.fd);
            let (pump, _) = feed.into_parts();
            out.extend_from_slice(pump.tail());
            let mut rest = [0; 4096];
            if let Ok(count) = nix::unistd::read(&*fd, &mut rest) {
                out.extend_from_slice(&rest[..count]);
            }
            prop_assert_eq!(out, chunks.concat().into_bytes());
        }
    }
}
