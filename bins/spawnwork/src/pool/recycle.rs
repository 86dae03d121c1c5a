//! Recycling: a worker that has grown too large or too old, or is named by the operator, is replaced by
//! one of the same generation. The replacement is ready and through its trial before the old one goes, one
//! slot at a time: the files may have changed since the generation began, and what dies of that takes no
//! client along, and nobody's place.

use super::{Beginning, Effect, Phase, Pool, State, Wait};
use crate::deaths::By;
use crate::events;
use common::control::Reply;
use common::event::{Level, Value};
use common::exit::Exit;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Memory is looked at so often, where it is limited.
const LOOK: Duration = Duration::from_secs(10);

/// Why a worker is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its resident set is over the limit, in bytes.
    Memory(u64),
    /// It has lived as long as it may.
    Age,
    /// The operator wants it.
    Asked,
    /// It is of a generation that was taken back, and could not be replaced at that time.
    Generation,
}

impl Why {
    /// For the event.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Why::Memory(_) => "memory",
            Why::Age => "age",
            Why::Asked => "asked",
            Why::Generation => "generation",
        }
    }

    fn by(self) -> By {
        match self {
            Why::Memory(_) => By::MemoryLimit,
            Why::Age => By::Lifetime,
            Why::Asked => By::Operator,
            Why::Generation => By::Asked,
        }
    }
}

/// A worker that serves, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its slot.
    pub slot: usize,
    /// How long it has lived.
    pub age: Duration,
    /// How long it may, its own jitter included.
    pub lifetime: Option<Duration>,
    /// Its resident set in bytes, where that was looked at.
    pub rss: Option<u64>,
    /// It is not of the generation that its slot is to have.
    pub strange: bool,
    /// A replacement failed: not again before this time is over.
    pub rests: bool,
}

/// Whose turn it is: one of another generation, then the largest of those over the limit, then the one
/// that is longest over its time.
#[must_use]
pub fn choose(candidates: &[Candidate], max_rss: Option<u64>) -> Option<(usize, Why)> {
    let free = || candidates.iter().filter(|one| !one.rests);
    if let Some(one) = free().find(|one| one.strange) {
        return Some((one.slot, Why::Generation));
    }
    let large = free()
        .filter_map(|one| Some((one.rss?, one.slot)))
        .filter(|(rss, _)| max_rss.is_some_and(|most| *rss > most))
        .max_by_key(|(rss, slot)| (*rss, std::cmp::Reverse(*slot)));
    if let Some((rss, slot)) = large {
        return Some((slot, Why::Memory(rss)));
    }
    free()
        .filter_map(|one| Some((one.age.checked_sub(one.lifetime?)?, one.slot)))
        .max_by_key(|(over, slot)| (*over, std::cmp::Reverse(*slot)))
        .map(|(_, slot)| (slot, Why::Age))
}

/// A replacement under way.
#[derive(Clone, Copy, Debug)]
struct Replacing {
    slot: usize,
    why: Why,
    since: Instant,
    /// The replacement serves since then: on trial.
    ready: Option<Instant>,
}

/// The book of it.
#[derive(Clone, Debug, Default)]
pub struct Recycling {
    under_way: Option<Replacing>,
    asked: VecDeque<usize>,
    /// Somebody waits for the end of what was asked for.
    awaited: bool,
    restarted: usize,
    look_at: Option<Instant>,
    rests: BTreeMap<usize, Instant>,
}

impl Recycling {
    /// One is under way in this slot.
    #[must_use]
    pub fn replaces(&self, slot: usize) -> bool {
        self.under_way.is_some_and(|one| one.slot == slot)
    }
}

impl Pool {
    /// What is due, if nothing else is under way: a recycle that comes at the wrong time is dropped,
    /// and comes again. `rss` measures a process, in bytes, by its pid.
    pub fn recycle(&mut self, rss: &mut dyn FnMut(i32) -> Option<u64>, now: Instant) {
        if !self.may_recycle() {
            return;
        }
        self.recycling.rests.retain(|_, until| *until > now);
        while let Some(slot) = self.recycling.asked.pop_front() {
            if self.replace_worker(slot, Why::Asked, now) {
                return;
            }
        }
        self.restarts_done();
        let mut look = self.policy.max_rss.is_some();
        if look {
            look = self.recycling.look_at.is_none_or(|at| at <= now);
            if look {
                let random = self.random();
                let pause = common::time::jittered(LOOK, self.policy.jitter, random);
                self.recycling.look_at = Some(now + pause);
            }
        }
        let current = self.slots.iter().filter_map(|slot| slot.current);
        let candidates: Vec<Candidate> = current
            .filter_map(|id| self.members.get(&id))
            .filter(|member| member.state == State::Serving)
            .map(|member| Candidate {
                slot: member.slot,
                age: now.saturating_duration_since(member.started),
                lifetime: member.lifetime,
                rss: if look { rss(member.pid) } else { None },
                strange: member.generation != self.slots[member.slot].generation,
                rests: self.recycling.rests.contains_key(&member.slot),
            })
            .collect();
        if let Some((slot, why)) = choose(&candidates, self.policy.max_rss) {
            // The next one is looked for as soon as this one is done.
            self.recycling.look_at = None;
            let _ = self.replace_worker(slot, why, now);
        }
    }

    /// One at a time, never during a reload, and not while those of a reload that was called off leave.
    fn may_recycle(&self) -> bool {
        matches!(self.phase, Phase::Running)
            && self.recycling.under_way.is_none()
            && self.room() > 0
    }

    /// When [`Pool::recycle`] has something to do.
    #[must_use]
    pub fn recycle_deadline(&self) -> Option<Instant> {
        if !self.may_recycle() {
            return None;
        }
        let current = self.slots.iter().filter_map(|slot| slot.current);
        let ages = current
            .filter_map(|id| self.members.get(&id))
            .filter(|member| member.state == State::Serving)
            .filter_map(|member| {
                let at = if member.generation == self.slots[member.slot].generation {
                    member.started + member.lifetime?
                } else {
                    member.started
                };
                let rests = self.recycling.rests.get(&member.slot);
                Some(rests.map_or(at, |until| at.max(*until)))
            });
        let look = self
            .recycling
            .look_at
            .filter(|_| self.policy.max_rss.is_some());
        ages.chain(look).min()
    }

    /// Starts the replacement; false when there is nobody to be replaced.
    fn replace_worker(&mut self, index: usize, why: Why, now: Instant) -> bool {
        let Some(slot) = self.slots.get(index) else {
            return false;
        };
        if slot.current.is_none() {
            self.start_waiting();
            return false;
        }
        let generation = slot.generation;
        self.recycling.under_way = Some(Replacing {
            slot: index,
            why,
            since: now,
            ready: None,
        });
        let beginning = if self.policy.holds {
            Beginning::Held
        } else {
            Beginning::Open
        };
        let id = self.start(index, generation, beginning, now);
        self.slots[index].next = Some(id);
        self.unless_too_many_are_stuck(id, now);
        true
    }

    /// The replacement serves: its trial begins.
    pub(super) fn replacement_is_ready(&mut self, now: Instant) {
        if let Some(one) = &mut self.recycling.under_way {
            one.ready = Some(now);
        }
        self.advance_recycle(now);
    }

    pub(super) fn put_off_replacement(&mut self, late: Duration) {
        let ready = self.recycling.under_way.as_mut();
        if let Some(since) = ready.and_then(|one| one.ready.as_mut()) {
            *since += late;
        }
    }

    /// When the trial of the replacement is over; one that is told to go in it does not pass.
    pub(super) fn replacement_due(&self) -> Option<Instant> {
        let one = self.recycling.under_way?;
        let next = self.slots.get(one.slot)?.next?;
        self.state(next).filter(|state| *state == State::Serving)?;
        let trial = match one.why {
            // What it replaces may die at any moment.
            Why::Generation => Duration::ZERO,
            Why::Memory(_) | Why::Age | Why::Asked => self.policy.probation,
        };
        Some(one.ready? + trial)
    }

    pub(super) fn advance_recycle(&mut self, now: Instant) {
        let due = self.replacement_due().is_some_and(|at| at <= now);
        if let Some(one) = self.recycling.under_way.filter(|_| due) {
            self.recycled(one.slot, now);
        }
    }

    /// The trial is over, or the old one is gone: it has the slot, and the old one finishes.
    pub(super) fn recycled(&mut self, index: usize, now: Instant) {
        let Some(one) = self.recycling.under_way.take_if(|one| one.slot == index) else {
            return;
        };
        let old = self.slots.get_mut(index).and_then(|slot| {
            slot.restarts += 1;
            slot.wait = Wait::Nothing;
            std::mem::replace(&mut slot.current, slot.next.take())
        });
        self.let_accept(index);
        if one.why == Why::Asked {
            self.recycling.restarted += 1;
        }
        let Some(member) = old.and_then(|id| self.members.get_mut(&id)) else {
            return;
        };
        member.by.get_or_insert(one.why.by());
        let id = member.id;
        let uptime = now.saturating_duration_since(member.started);
        let mut fields = member.fields();
        fields.push(("reason", one.why.name().into()));
        fields.push(("uptime", uptime.into()));
        if let Why::Memory(rss) = one.why {
            fields.push(("rss", rss.into()));
        }
        fields.push(("took", now.saturating_duration_since(one.since).into()));
        self.say(Level::Info, events::WORKER_RECYCLED, fields);
        self.leave(id, now);
    }

    /// The replacement did not come: the old one stays, and has its rest.
    pub(super) fn recycle_failed(&mut self, why: &str, now: Instant) {
        let Some(one) = self.recycling.under_way.take() else {
            return;
        };
        let random = self.random();
        let pause = common::time::jittered(self.policy.respawn.max, self.policy.jitter, random);
        self.recycling.rests.insert(one.slot, now + pause);
        self.say(
            Level::Error,
            events::RECYCLE_FAILED,
            [
                ("slot", one.slot.into()),
                ("reason", one.why.name().into()),
                ("error", Value::from(why.to_owned())),
            ],
        );
        if one.why == Why::Asked {
            self.recycling.asked.clear();
            self.recycling.restarted = 0;
            let reply = Reply::Err(Exit::No.code(), format!("slot {}: {why}", one.slot));
            self.restarts_ended(reply);
        }
    }

    /// Something more important comes: the replacement goes, the old one stays.
    pub fn drop_recycle(&mut self, why: &str, now: Instant) {
        if let Some(one) = self.recycling.under_way.take() {
            let next = self
                .slots
                .get_mut(one.slot)
                .and_then(|slot| slot.next.take());
            next.into_iter().for_each(|id| self.call_off(id, now));
        }
        self.recycling.asked.clear();
        self.recycling.restarted = 0;
        self.restarts_ended(Reply::Err(Exit::No.code(), why.to_owned()));
    }

    /// The operator wants these slots to have new workers.
    pub fn restart(&mut self, slots: impl Iterator<Item = usize>) {
        self.recycling.awaited = true;
        for slot in slots {
            if !self.recycling.asked.contains(&slot) {
                self.recycling.asked.push_back(slot);
            }
        }
    }

    fn restarts_done(&mut self) {
        let count = std::mem::take(&mut self.recycling.restarted);
        let s = if count == 1 { "" } else { "s" };
        self.restarts_ended(Reply::Ok(format!("{count} worker{s} restarted")));
    }

    fn restarts_ended(&mut self, reply: Reply) {
        if std::mem::take(&mut self.recycling.awaited) {
            self.give(Effect::Restarted(reply));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(slot: usize, age: u64, lifetime: Option<u64>, rss: Option<u64>) -> Candidate {
        Candidate {
            slot,
            age: Duration::from_secs(age),
            lifetime: lifetime.map(Duration::from_secs),
            rss,
            strange: false,
            rests: false,
        }
    }

    #[test]
    fn the_largest_first_then_the_most_overdue() {
        let all = [
            candidate(0, 50, Some(40), Some(100)),
            candidate(1, 90, Some(60), Some(300)),
            candidate(2, 10, Some(60), Some(200)),
        ];
        assert_eq!(choose(&all, Some(150)), Some((1, Why::Memory(300))));
        assert_eq!(choose(&all, Some(300)), Some((1, Why::Age)));
        assert_eq!(choose(&all[..1], None), Some((0, Why::Age)));
        assert_eq!(choose(&all[2..], None), None);
        let resting = all.map(|one| Candidate {
            rests: one.slot == 1,
            ..one
        });
        assert_eq!(choose(&resting, Some(150)), Some((2, Why::Memory(200))));
        let strange = resting.map(|one| Candidate {
            strange: true,
            ..one
        });
        assert_eq!(choose(&strange[1..], None), Some((2, Why::Generation)));
    }

    proptest! {
        #[test]
        fn nobody_goes_without_a_reason(
            all in proptest::collection::vec((0u64..100, proptest::option::of(1u64..100), proptest::option::of(0u64..100), any::<bool>()), 0..9),
            most in proptest::option::of(0u64..100),
        ) {
            let all: Vec<Candidate> = all
                .into_iter()
                .enumerate()
                .map(|(slot, (age, lifetime, rss, rests))| Candidate { rests, ..candidate(slot, age, lifetime, rss) })
                .collect();
            let over = |one: &Candidate| !one.rests
                && (most.is_some_and(|most| one.rss.is_some_and(|rss| rss > most))
                    || one.lifetime.is_some_and(|lifetime| one.age >= lifetime));
            match choose(&all, most) {
                Some((slot, _)) => prop_assert!(over(&all[slot])),
                None => prop_assert!(!all.iter().any(over)),
            }
        }
    }
}
