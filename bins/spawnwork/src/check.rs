//! `--check`: a command that looks at a release before any worker of it is started.

use crate::launch;
use crate::lifeline::Lifeline;
use crate::output::{Output, Readout, Stream, Which};
use crate::run::{Master, Token};
use common::child::Child;
use common::error::{Doing, Result};
use common::exit::End;
use common::lines::LastLines;
use common::wait::Interest;
use std::os::fd::AsRawFd;
use std::time::Instant;

/// The command at work.
#[derive(Debug)]
pub struct Check {
    generation: u32,
    child: Child,
    stream: Stream,
    words: LastLines,
    started: Instant,
    /// When it has taken too long.
    pub deadline: Instant,
}

impl Check {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Ends it: nobody wants its result any more.
    pub fn abandon(&self) {
        self.child.signal_group(9);
    }

    /// Reads what is left in the pipe, room or not: the last lines are those that say why. More than
    /// the pipe holds (1 MiB) comes only from somebody who has left the group and still writes.
    fn drain(&mut self, output: &mut Output, now: Instant) {
        let mut buffer = common::lines::Pool::new(16 << 10, 1);
        for _ in 0..128 {
            match self
                .stream
                .pump(&mut buffer, output, Some(&mut self.words), now)
            {
                Readout::More => {}
                Readout::Empty => break,
                Readout::End => return,
            }
        }
        self.stream.finish(output, Some(&mut self.words));
    }
}

impl Master {
    /// Starts `--check` for a generation, in its directory and with its environment.
    pub(crate) fn start_check_of(&mut self, generation: u32, now: Instant) {
        match self.check_of(generation, now) {
            Ok(check) => self.check = Some(check),
            Err(error) => {
                let why = error.to_string();
                self.pool.check_failed(generation, &why, Vec::new(), now);
            }
        }
    }

    fn check_of(&self, generation: u32, now: Instant) -> Result<Check> {
        let command = self.plan.check.as_deref().unwrap_or_default();
        let (stream, writer) =
            Stream::open(Which::Err, 0).doing("make a pipe for the output of --check")?;
        let standard = [
            self.null.as_raw_fd(),
            writer.as_raw_fd(),
            writer.as_raw_fd(),
        ];
        let reader = self.lifeline.as_ref().and_then(Lifeline::reader);
        let lifeline = reader.as_ref().map(AsRawFd::as_raw_fd);
        let release = self.generation(generation)?;
        let image = launch::check_image(&self.plan, release, command, standard, lifeline)?;
        let child = Child::start(&image).doing("start --check")?;
        self.events
            .add(&stream, Token::Check.number(), Interest::Read)?;
        Ok(Check {
            generation,
            child,
            stream,
            words: LastLines::new(20, 512),
            started: now,
            deadline: now + self.plan.ready_timeout,
        })
    }

    /// Nobody wants its result any more; it is reaped as a stranger.
    pub(crate) fn drop_check(&mut self) {
        if let Some(check) = self.check.take() {
            self.events.remove(&check.stream);
            check.abandon();
        }
    }

    /// What it says goes where the workers' stderr goes.
    pub(crate) fn on_check_output(&mut self, now: Instant) {
        let mut buffer = common::lines::Pool::new(16 << 10, 1);
        let index = self.index_of(Which::Err);
        let (Some(check), Some(output)) = (self.check.as_mut(), self.outputs[index].as_mut())
        else {
            return;
        };
        for _ in 0..16 {
            if !output.has_room() {
                // Not waited for: that it has ended would be said all the time.
                self.events.remove(&check.stream);
                check.stream.registered = false;
                return;
            }
            match check
                .stream
                .pump(&mut buffer, output, Some(&mut check.words), now)
            {
                Readout::More => {}
                Readout::Empty => return,
                Readout::End => {
                    self.events.remove(&check.stream);
                    return;
                }
            }
        }
    }

    /// Our output has room again.
    pub(crate) fn arm_check(&mut self) {
        if let Some(check) = self.check.as_mut() {
            if !check.stream.registered {
                // Without the memory for it the rest is read when the command has ended.
                let token = Token::Check.number();
                let added = self.events.add(&check.stream, token, Interest::Read);
                check.stream.registered = added.is_ok();
            }
        }
    }

    /// It takes too long.
    pub(crate) fn on_check_time(&mut self, now: Instant) {
        if let Some(check) = self.check.as_ref().filter(|check| check.deadline <= now) {
            check.abandon();
        }
    }

    /// It has ended.
    pub(crate) fn on_check_end(&mut self, now: Instant) {
        let index = self.index_of(Which::Err);
        let Some(mut check) = self.check.take() else {
            return;
        };
        self.events.remove(&check.stream);
        let took = now.saturating_duration_since(check.started);
        let late = check.deadline <= now;
        // What it started is gone with it.
        check.abandon();
        if let Some(output) = self.outputs[index].as_mut() {
            check.drain(output, now);
        }
        let words = crate::deaths::spoken(&check.words);
        let mut child = check.child;
        let why = match (child.start_failure(), child.reap()) {
            (Some(failure), _) => Some(failure.describe(std::ffi::OsStr::new("/bin/sh"))),
            (None, Some(End::Exited(0))) => None,
            (None, _) if late => Some(format!(
                "--check was not done within {}",
                common::time::say(self.plan.ready_timeout)
            )),
            (None, Some(end)) => Some(format!("--check ended with {end}")),
            (None, None) => Some("--check ended".to_owned()),
        };
        match why {
            None => self.pool.check_passed(check.generation, took, now),
            Some(why) => self.pool.check_failed(check.generation, &why, words, now),
        }
        self.act(now);
    }
}
