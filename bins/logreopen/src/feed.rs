//! A stream that its file's writer reads itself. While much comes, the bytes then stay with one processor from
//! the pipe to the file, which costs a third less than to hand them from thread to thread. The loop looks on,
//! and takes the stream back as soon as the file may hang.

use common::lines::{Buffer, Pace, Pool, Pump, Run};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is read at once, in bytes. Measured on 64 KiB writes: half of it or twice as much cost a tenth more, for
/// then it is the calls, or the processor's cache.
const READ: usize = 128 << 10;
/// A turn of the loop's that brought this part of a pipe lends the stream ...
pub const MUCH: usize = 8;
/// ... and one that brings less than this many bytes gives it back.
const LITTLE: usize = 16 << 10;
/// A pipe that is filled fast is looked at again after this; it holds more than comes in that time.
const BREATH: Duration = Duration::from_micros(200);
/// How often the loop looks on.
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
    /// It is the loop's again: little comes, a line is very long, or all writers are gone.
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
            over: false,
        }
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
            let turn = std::mem::take(&mut self.turn);
            let pause = self.pace.after(turn, self.size, now).unwrap_or(BREATH);
            self.wait = Some(now + pause);
            self.over |= turn < LITTLE;
        }
        match run {
            Some(run) => Fed::Lines(run),
            None if self.over => Fed::Over,
            None => self.wait.map_or(Fed::Part, Fed::Wait),
        }
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
    fn little_gives_it_back_and_what_was_begun_goes_with_it() {
        let (mut feed, mut pipe) = feed();
        let now = Instant::now();
        pipe.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(lines(feed.read(now)), b"one\ntwo\n");
        assert!(feed.is_over(), "ten bytes are not much");
        pipe.write_all(b"ee\n").unwrap();
        assert!(matches!(feed.read(now + BREATH * 1000), Fed::Over));
        let (pump, _) = feed.into_parts();
        assert_eq!(pump.tail(), b"thr", "the rest is the loop's");
    }

    #[test]
    fn much_is_read_again_after_a_pause_and_not_before() {
        let (mut feed, mut pipe) = feed();
        let now = Instant::now();
        let much = [&[b'x'; LITTLE - 1][..], b"\n"].concat();
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
            pipe.write_all(&[b'x'; 2 * LITTLE]).unwrap();
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
