//! `--follow`: the file was moved or removed, and nobody said so. Whoever did it may be about to make the
//! new one himself (logrotate's `create` does, with O_EXCL), so he gets time for that.

use std::time::{Duration, Instant};

/// What stands at the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The file that we write.
    Ours,
    /// Nothing.
    Nothing,
    /// Another file.
    Another,
    /// It cannot be looked at.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing, before somebody says that something happened.
    Rest,
    /// To look again then.
    Look(Instant),
    /// To open what stands at the path, or to make it.
    Reopen,
}

/// The state of one file.
#[derive(Debug)]
pub struct Follow {
    patience: Duration,
    /// Ours is not there since.
    gone: Option<Instant>,
    /// At the last look another file stood there.
    another: bool,
}

impl Follow {
    /// Waits `patience` for the path to come back.
    #[must_use]
    pub fn new(patience: Duration) -> Follow {
        Follow {
            patience,
            gone: None,
            another: false,
        }
    }

    /// After each look.
    pub fn step(&mut self, seen: Seen, now: Instant) -> Act {
        if matches!(seen, Seen::Ours | Seen::Unknown) {
            self.calm();
            return Act::Rest;
        }
        let since = *self.gone.get_or_insert(now);
        let limit = since + self.patience;
        // Another file is taken at the second look: whoever makes it may still be giving it its owner.
        let settled = seen == Seen::Another && self.another;
        self.another = seen == Seen::Another;
        if settled || now >= limit {
            self.calm();
            return Act::Reopen;
        }
        Act::Look((now + self.patience / 10).min(limit))
    }

    /// Another file is written from now on.
    pub fn calm(&mut self) {
        self.gone = None;
        self.another = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_the_path_and_takes_what_comes() {
        use Seen::{Another, Nothing, Ours, Unknown};
        let second = Duration::from_secs(1);
        let start = Instant::now();
        // (seconds since the first look, what is seen) -> what is done, with patience 10 s
        let after = |steps: &[(u32, Seen)]| {
            let mut follow = Follow::new(second * 10);
            let mut act = Act::Rest;
            for (at, seen) in steps {
                act = follow.step(*seen, start + second * *at);
            }
            match act {
                Act::Look(at) => Err((at - start).as_secs()),
                Act::Rest => Err(0),
                Act::Reopen => Ok(()),
            }
        };
        for (steps, expected) in [
            (&[(0, Ours)][..], Err(0)),
            (&[(0, Unknown)], Err(0)),
            (&[(0, Nothing)], Err(1)),
            (&[(0, Nothing), (1, Nothing)], Err(2)),
            (&[(0, Nothing), (9, Nothing)], Err(10)),
            (&[(0, Nothing), (10, Nothing)], Ok(())),
            (&[(0, Nothing), (1, Another)], Err(2)),
            (&[(0, Nothing), (1, Another), (2, Another)], Ok(())),
            (&[(0, Nothing), (10, Another)], Ok(())),
            (&[(0, Another), (1, Another)], Ok(())),
            (&[(0, Another), (1, Nothing), (2, Another)], Err(3)),
            // It was put back.
            (&[(0, Nothing), (1, Ours)], Err(0)),
            (&[(0, Nothing), (1, Ours), (20, Nothing)], Err(21)),
        ] {
            assert_eq!(after(steps), expected, "{steps:?}");
        }
    }
}
