//! What workers say: a pipe each, read at once, passed on in whole lines, held back when our own
//! output is.

use common::child;
use common::lines::{LastLines, Pace, Pool, Pump, each_line};
pub use common::output::{Kind, Output, kind_of, same};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// A line longer than this is passed on in pieces, in bytes.
const LONGEST: usize = 2 << 20;

/// Which of our outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// stdout
    Out,
    /// stderr
    Err,
}

/// The read end of a worker's stdout or stderr.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    pump: Pump,
    pace: Pace,
    prefix: Vec<u8>,
    /// Where it goes.
    pub which: Which,
    /// Whose it is.
    pub worker: u64,
    /// The worker has ended: what is in the pipe is the last of it.
    pub last: bool,
    /// Not to be read before then.
    pub pause: Option<Instant>,
    /// The loop waits for it.
    pub registered: bool,
}

/// What reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout {
    /// There may be more.
    More,
    /// Nothing for now.
    Empty,
    /// All writers are gone.
    End,
}

impl Stream {
    /// A stream, which the loop is to wait for, and the end that the worker writes to.
    ///
    /// # Errors
    /// EMFILE.
    pub fn open(which: Which, worker: u64) -> io::Result<(Stream, OwnedFd)> {
        let (fd, writer) = child::output_pipe()?;
        Ok((Stream::again(fd, which, worker, &[]), writer))
    }

    /// One that was begun by the program before us: `tail` is a line whose end has not come.
    #[must_use]
    pub fn again(fd: OwnedFd, which: Which, worker: u64, tail: &[u8]) -> Stream {
        Stream {
            fd,
            pump: Pump::again(LONGEST, tail),
            pace: Pace::new(),
            prefix: Vec::new(),
            which,
            worker,
            last: false,
            pause: None,
            registered: true,
        }
    }

    /// The line whose end has not come.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        self.pump.tail()
    }

    /// What stands before each line: known when the worker's pid is.
    pub fn set_prefix(&mut self, prefix: Vec<u8>) {
        self.prefix = prefix;
    }

    /// Reads once and passes whole lines on; those of stderr are remembered for the report too.
    pub fn pump(
        &mut self,
        pool: &mut Pool,
        output: &mut Output,
        mut last: Option<&mut LastLines>,
        now: Instant,
    ) -> Readout {
        let (fd, prefix) = (&self.fd, &self.prefix);
        let mut emptied = false;
        let mut given_back = None;
        let got = self.pump.fill(
            pool,
            &mut |room| {
                let got = nix::unistd::read(fd, room);
                emptied = got.is_ok_and(|count| count < room.len());
                got
            },
            &mut |run| {
                pass_on(run.buffer.filled(), prefix, output, last.as_deref_mut());
                given_back = Some(run.buffer);
            },
        );
        if let Some(buffer) = given_back {
            pool.give(buffer);
        }
        match got {
            Err(nix::Error::EAGAIN) => Readout::Empty,
            Ok(0) | Err(_) => {
                self.finish(output, last);
                Readout::End
            }
            Ok(_) if !emptied => Readout::More,
            Ok(count) => {
                let pause = self.pace.after(count, pool.size(), now);
                self.pause = pause.map(|pause| now + pause);
                Readout::Empty
            }
        }
    }

    /// The end: what stands without a newline is passed on with one.
    pub fn finish(&mut self, output: &mut Output, last: Option<&mut LastLines>) {
        if let Some(run) = self.pump.finish() {
            pass_on(run.buffer.filled(), &self.prefix, output, last);
        }
    }
}

fn pass_on(run: &[u8], prefix: &[u8], output: &mut Output, last: Option<&mut LastLines>) {
    if let Some(last) = last {
        last.push(run);
    }
    if prefix.is_empty() {
        output.write(run);
        return;
    }
    let mut prefixed = Vec::with_capacity(run.len() + 64 * prefix.len());
    each_line(run, |line| {
        prefixed.extend_from_slice(prefix);
        prefixed.extend_from_slice(line);
    });
    output.write(&prefixed);
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
