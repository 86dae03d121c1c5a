//! `--check`: a command that looks at a release before any worker of it is started.

use crate::events;
use crate::launch::{self, Generation};
use crate::output::{Readout, Stream, Which};
use crate::run::{Master, Phase, Token};
use common::child::Child;
use common::error::{Doing, Result};
use common::event::{Level, Value};
use common::exit::End;
use common::lines::LastLines;
use common::wait::Interest;
use std::os::fd::AsRawFd;
use std::time::Instant;

/// The command at work.
#[derive(Debug)]
pub struct Check {
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
}

impl Master {
    /// Starts `--check` for a generation, in its directory and with its environment.
    pub(crate) fn start_check_of(
        &mut self,
        command: &str,
        generation: &Generation,
        now: Instant,
    ) -> Result<Check> {
        let (stream, writer) =
            Stream::open(Which::Err, 0).doing("make a pipe for the output of --check")?;
        let standard = [
            self.null.as_raw_fd(),
            writer.as_raw_fd(),
            writer.as_raw_fd(),
        ];
        let image = launch::check_image(&self.plan, generation, command, standard)?;
        let child = Child::start(&image).doing("start --check")?;
        self.events
            .add(&stream, Token::Check.number(), Interest::Read)?;
        Ok(Check {
            child,
            stream,
            words: LastLines::new(20, 512),
            started: now,
            deadline: now + self.plan.ready_timeout,
        })
    }

    /// What it says goes where the workers' stderr goes.
    pub(crate) fn on_check_output(&mut self, now: Instant) {
        let mut buffer = common::lines::Pool::new(16 << 10, 1);
        let index = self.index_of(Which::Err);
        let Phase::Reloading(reloading) = &mut self.phase else {
            return;
        };
        let (Some(check), Some(output)) = (&mut reloading.check, self.outputs[index].as_mut())
        else {
            return;
        };
        for _ in 0..16 {
            if !output.has_room() {
                self.events
                    .set(&check.stream, Token::Check.number(), Interest::Nothing);
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
        if let Phase::Reloading(reloading) = &self.phase {
            if let Some(check) = &reloading.check {
                self.events
                    .set(&check.stream, Token::Check.number(), Interest::Read);
            }
        }
    }

    /// It takes too long.
    pub(crate) fn on_check_time(&mut self, now: Instant) {
        if let Phase::Reloading(reloading) = &self.phase {
            if let Some(check) = reloading
                .check
                .as_ref()
                .filter(|check| check.deadline <= now)
            {
                check.abandon();
            }
        }
    }

    /// It has ended.
    pub(crate) fn on_check_end(&mut self, now: Instant) {
        self.on_check_output(now);
        let Phase::Reloading(reloading) = &mut self.phase else {
            return;
        };
        let (Some(check), generation) = (reloading.check.take(), reloading.target.number) else {
            return;
        };
        self.events.remove(&check.stream);
        let took = now.saturating_duration_since(check.started);
        let late = check.deadline <= now;
        // What it started is gone with it.
        check.abandon();
        let words = crate::deaths::spoken(&check.words);
        let mut child = check.child;
        let failure = child.start_failure();
        let why = match (failure, child.reap()) {
            (Some(failure), _) => failure.describe(std::ffi::OsStr::new("/bin/sh")),
            (None, Some(End::Exited(0))) => {
                let took = common::time::say(took);
                self.progress(generation, &format!("check passed in {took}"), now);
                self.advance_reload(now);
                return;
            }
            (None, _) if late => format!(
                "--check was not done within {}",
                common::time::say(self.plan.ready_timeout)
            ),
            (None, Some(end)) => format!("--check ended with {end}"),
            (None, None) => "--check ended".to_owned(),
        };
        self.phase = Phase::Running;
        self.reloads.refused += 1;
        self.supervisor
            .reload_ended(crate::supervisor::Outcome::Refused);
        let mut fields = vec![
            ("generation", generation.into()),
            ("error", Value::from(why.clone())),
        ];
        if let Some(text) = crate::pool::in_one_line(&words) {
            fields.push(("stderr", text.into()));
        }
        self.say(Level::Error, events::RELOAD_REFUSED, &fields);
        let why = format!("refused: {why}");
        self.reload_not_begun(generation, &why, &words, now);
    }
}
