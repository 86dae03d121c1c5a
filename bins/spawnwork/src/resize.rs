//! More workers or fewer: by signals, and over the control socket.

use crate::events;
use crate::pool::Phase;
use crate::run::Master;
use common::event::Level;
use std::time::{Duration, Instant};

/// The most workers that there may be.
pub const MOST: usize = 10_000;

/// A connection whose handshake began before its slot was passed over comes within this time.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// How often queues that are to become empty are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// So many more.
    Add(usize),
    /// So many fewer.
    Remove(usize),
    /// So many.
    Set(usize),
}

impl Change {
    /// How many there are to be. Never none.
    #[must_use]
    pub fn applied_to(self, present: usize) -> usize {
        let wanted = match self {
            Change::Add(count) => present.saturating_add(count),
            Change::Remove(count) => present.saturating_sub(count),
            Change::Set(count) => count,
        };
        wanted.clamp(1, MOST)
    }
}

/// A change that waits: for the end of a reload, or for queues to become empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resizing {
    /// How many workers there are to be.
    pub wanted: usize,
    /// Since when the slots that are to go are passed over by new connections.
    passed_over: Option<Instant>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    /// There are so many slots now.
    Now(usize),
    /// There will be so many.
    Later(usize),
    /// We are stopping.
    Refused,
}

/// Whether slots whose queues held `waiting` connections at `now` may go.
fn may_go(passed_over: Instant, waiting: u32, patience: Duration, now: Instant) -> bool {
    let since = now.saturating_duration_since(passed_over);
    since >= patience || (waiting == 0 && since >= HANDSHAKE)
}

impl Master {
    /// Asks for `count` workers more.
    pub(crate) fn add_workers(&mut self, count: usize, now: Instant) -> Resized {
        self.ask_for(Change::Add(count), now)
    }

    /// Asks for `count` workers fewer; one stays.
    pub(crate) fn remove_workers(&mut self, count: usize, now: Instant) -> Resized {
        self.ask_for(Change::Remove(count), now)
    }

    /// Asks for so many workers.
    pub(crate) fn set_workers(&mut self, count: usize, now: Instant) -> Resized {
        self.ask_for(Change::Set(count), now)
    }

    fn ask_for(&mut self, change: Change, now: Instant) -> Resized {
        if matches!(self.pool.phase, Phase::Stopping(_)) {
            return Resized::Refused;
        }
        // Requests add up while they wait.
        let before = self
            .resizing
            .map_or(self.pool.slots.len(), |resizing| resizing.wanted);
        let wanted = change.applied_to(before);
        if wanted != before {
            self.resizing = Some(Resizing {
                wanted,
                passed_over: None,
            });
            self.resize(now);
        }
        if self.resizing.is_none() {
            return Resized::Now(wanted);
        }
        if wanted != before {
            let fields = [("workers", wanted.into())];
            self.say(Level::Info, events::WORKERS_QUEUED, &fields);
        }
        Resized::Later(wanted)
    }

    /// Does what was asked for, as far as it can be done now.
    pub(crate) fn resize(&mut self, now: Instant) {
        let Some(Resizing {
            wanted,
            passed_over,
        }) = self.resizing
        else {
            return;
        };
        match self.pool.phase {
            // A reload counts its slots when it begins.
            Phase::Reloading(_) => return,
            Phase::Stopping(_) => {
                self.resizing = None;
                return;
            }
            Phase::Initial | Phase::Running => {}
        }
        let present = self.pool.slots.len();
        if wanted < present {
            match passed_over {
                Some(since) => {
                    let waiting = self.waiting_for_removed();
                    if !may_go(since, waiting, self.plan.stop_timeout, now) {
                        return;
                    }
                }
                None if self.pass_over() => {
                    self.resizing = Some(Resizing {
                        wanted,
                        passed_over: Some(now),
                    });
                    return;
                }
                // No slot has a queue of its own.
                None => {}
            }
        }
        self.resizing = None;
        self.pool.resize(wanted, now);
        if wanted >= present {
            // Those that were to go and are to stay after all get new connections again.
            self.pass_over();
        }
        self.act(now);
    }

    /// When queues are looked at next.
    pub(crate) fn resize_deadline(&self, now: Instant) -> Option<Instant> {
        let passed_over = self.resizing.and_then(|resizing| resizing.passed_over);
        match self.pool.phase {
            Phase::Initial | Phase::Running => passed_over.map(|_| now + LOOK),
            Phase::Reloading(_) | Phase::Stopping(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_none_and_never_too_many() {
        for (present, change, wanted) in [
            (2, Change::Add(3), 5),
            (2, Change::Remove(1), 1),
            (2, Change::Remove(2), 1),
            (2, Change::Remove(usize::MAX), 1),
            (2, Change::Set(0), 1),
            (2, Change::Set(7), 7),
            (9_999, Change::Add(2), MOST),
            (1, Change::Add(usize::MAX), MOST),
        ] {
            assert_eq!(change.applied_to(present), wanted, "{present} {change:?}");
        }
    }

    #[test]
    fn a_slot_goes_when_its_queue_is_empty_or_patience_is_over() {
        let since = Instant::now();
        let patience = Duration::from_secs(30);
        let after = |seconds| since + Duration::from_secs(seconds);
        // A handshake that had begun may still end there.
        assert!(!may_go(since, 0, patience, since));
        assert!(may_go(since, 0, patience, after(1)));
        assert!(!may_go(since, 3, patience, after(29)));
        assert!(may_go(since, 3, patience, after(30)));
        assert!(may_go(since, 3, Duration::ZERO, since));
    }
}
