//! Who gets the next connection in round-robin. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Connections under way to a worker that it has not answered yet. More would only wait in its
/// channel, where a stuck worker keeps them, instead of in our queue, where anybody may take them.
pub const CREDIT: usize = 4;
/// A worker that refused a connection is asked again after this, or when it accepts another one.
const FULL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, Default)]
struct Worker {
    under_way: usize,
    full_until: Option<Instant>,
}

/// The workers that serve one socket, in turn.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    workers: BTreeMap<u64, Worker>,
    last: u64,
    short_until: Option<Instant>,
}

impl Turns {
    /// A worker serves this socket from now on.
    pub fn join(&mut self, worker: u64) {
        self.workers.entry(worker).or_default();
    }

    /// It does no longer.
    pub fn leave(&mut self, worker: u64) {
        self.workers.remove(&worker);
    }

    /// The next in turn that has credit and is not full; one of its credits is spent.
    pub fn next(&mut self, now: Instant) -> Option<u64> {
        let free = |(_, worker): &(&u64, &Worker)| {
            worker.under_way < CREDIT && worker.full_until.is_none_or(|until| until <= now)
        };
        let chosen = self
            .workers
            .range(self.last + 1..)
            .find(free)
            .or_else(|| self.workers.range(..=self.last).find(free))
            .map(|(id, _)| *id)?;
        self.last = chosen;
        if let Some(worker) = self.workers.get_mut(&chosen) {
            worker.under_way += 1;
        }
        Some(chosen)
    }

    /// Who serves this socket.
    pub fn workers(&self) -> impl Iterator<Item = u64> {
        self.workers.keys().copied()
    }

    /// A connection is under way to it that was handed over before.
    pub fn spend(&mut self, worker: u64) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.under_way += 1;
        }
    }

    /// Nothing was handed over to it after all.
    pub fn give_back(&mut self, worker: u64) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.under_way = worker.under_way.saturating_sub(1);
        }
    }

    /// A worker answered: it took the connection, or refused it.
    pub fn answered(&mut self, worker: u64, accepted: bool, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.under_way = worker.under_way.saturating_sub(1);
            worker.full_until = if accepted { None } else { Some(now + FULL) };
        }
    }

    /// We have no descriptor for a connection: it stays in the queue of the kernel, which would wake us
    /// for it without end if we did not look away for a moment.
    pub fn short(&mut self, now: Instant) {
        self.short_until = Some(now + FULL);
    }

    /// When a full worker may be asked again, or we look for connections again.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.workers
            .values()
            .map(|worker| worker.full_until)
            .chain([self.short_until])
            .flatten()
            .min()
    }

    /// Somebody could take a connection now.
    #[must_use]
    pub fn has_room(&self, now: Instant) -> bool {
        let passed = |until: Instant| until <= now;
        self.short_until.is_none_or(passed)
            && self
                .workers
                .values()
                .any(|worker| worker.under_way < CREDIT && worker.full_until.is_none_or(passed))
    }

    /// Full times that have passed count no longer.
    pub fn expire(&mut self, now: Instant) {
        self.short_until = self.short_until.filter(|until| *until > now);
        for worker in self.workers.values_mut() {
            worker.full_until = worker.full_until.filter(|until| *until > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_turn_and_only_as_far_as_the_credit() {
        let now = Instant::now();
        let mut turns = Turns::default();
        for id in [1, 2, 5] {
            turns.join(id);
        }
        let order: Vec<_> = std::iter::from_fn(|| turns.next(now)).collect();
        assert_eq!(order, [1, 2, 5, 1, 2, 5, 1, 2, 5, 1, 2, 5]);
        assert!(!turns.has_room(now));
        turns.answered(2, true, now);
        assert_eq!(turns.next(now), Some(2));
        turns.leave(1);
        turns.answered(1, true, now);
        assert_eq!(turns.next(now), None);
    }

    #[test]
    fn a_full_worker_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut turns = Turns::default();
        turns.join(1);
        turns.join(2);
        assert_eq!(turns.next(now), Some(1));
        turns.answered(1, false, now);
        assert_eq!(turns.next(now), Some(2));
        assert_eq!(turns.next(now), Some(2));
        assert_eq!(turns.deadline(), Some(now + FULL));
        let later = now + FULL;
        turns.expire(later);
        assert_eq!(turns.deadline(), None);
        assert_eq!(turns.next(later), Some(1));
    }

    #[test]
    fn without_descriptors_nobody_has_room_for_a_moment() {
        let now = Instant::now();
        let mut turns = Turns::default();
        turns.join(1);
        turns.next(now);
        turns.give_back(1);
        turns.short(now);
        assert!(!turns.has_room(now));
        assert_eq!(turns.deadline(), Some(now + FULL));
        turns.expire(now + FULL);
        assert!(turns.has_room(now + FULL));
        assert_eq!(turns.deadline(), None);
    }
}
