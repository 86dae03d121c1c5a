//! The workers' watchdog (`--watchdog`): who serves must say WATCHDOG=1 now and then, or is aborted.

use crate::pool::State;
use crate::run::Master;
use std::time::{Duration, Instant};

/// What a deadline means by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has not come yet.
    Early,
    /// The worker is late.
    Late,
    /// We were late ourselves: stopped, or with the whole machine. The loop wakes at each deadline, so a
    /// look long after one says nothing of the worker, who may have been stopped with us, or waited for
    /// us to read.
    Overslept,
}

/// The verdict on a worker that was to be heard by `at`, within `length`, when it is `now`.
#[must_use]
pub fn judge(at: Instant, length: Duration, now: Instant) -> Verdict {
    match now.checked_duration_since(at) {
        None => Verdict::Early,
        Some(over) if over > length / 2 => Verdict::Overslept,
        Some(_) => Verdict::Late,
    }
}

impl Master {
    /// Whoever serves and was not heard in time.
    pub(crate) fn on_watchdog(&mut self, now: Instant) {
        let Some(length) = self.plan.watchdog else {
            return;
        };
        if self
            .verdicts(length, now)
            .iter()
            .all(|one| one.1 == Verdict::Early)
        {
            return;
        }
        // What was said in time may be unread.
        self.on_notify(now);
        let verdicts = self.verdicts(length, now);
        let overslept = verdicts.iter().any(|one| one.1 == Verdict::Overslept);
        for (id, verdict) in verdicts {
            if overslept {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.heard_by = Some(now + length);
                }
            } else if verdict == Verdict::Late {
                let limit = common::time::say(length);
                self.pool
                    .abort(id, format!("no WATCHDOG=1 within {limit}"), now);
                self.act(now);
            }
        }
    }

    fn verdicts(&self, length: Duration, now: Instant) -> Vec<(u64, Verdict)> {
        self.workers
            .values()
            .filter(|worker| self.pool.state(worker.id) == Some(State::Serving))
            .filter_map(|worker| Some((worker.id, judge(worker.heard_by?, length, now))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_worker_is_told_from_a_late_loop() {
        let (at, length) = (Instant::now(), Duration::from_secs(10));
        let s = Duration::from_secs;
        assert_eq!(judge(at + s(1), length, at), Verdict::Early);
        assert_eq!(judge(at, length, at), Verdict::Late);
        assert_eq!(judge(at, length, at + s(5)), Verdict::Late);
        assert_eq!(judge(at, length, at + s(6)), Verdict::Overslept);
        assert_eq!(judge(at, length, at + s(6000)), Verdict::Overslept);
    }
}
