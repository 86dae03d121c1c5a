//! The steps of a rolling reload. Pure: (progress, event, now) -> what to do next.
//!
//! check -> canary (one worker to the end of its probation) -> fill (the rest) -> switch (the old
//! ones drain). With a surge below the number of workers, fill and switch go slot by slot; with 0
//! the old worker of a slot goes first.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How far a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Its old worker serves, no new one exists.
    Old,
    /// Surge 0: its old worker was asked to go.
    Emptying,
    /// Its new worker starts.
    Starting,
    /// Its new worker has started, and only has to live on until it counts as ready.
    Settled,
    /// Its new worker serves since then: on probation.
    Ready(Instant),
    /// Its new worker has lived long enough.
    Proven,
    /// The old worker was told to go, the new one has the slot.
    Switched,
}

/// What the master is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start the new worker of this slot.
    Start(usize),
    /// The new worker of this slot takes it; the old one drains.
    Switch(usize),
    /// Surge 0: the old worker of this slot goes, and is not respawned.
    Empty(usize),
    /// All slots are switched.
    Commit,
}

/// What the user allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// New workers beside the old ones; 0: an old one goes first.
    pub surge: usize,
    /// New workers that start at once.
    pub parallel: usize,
    /// How long a new worker must have served.
    pub probation: Duration,
    /// The canary is asked something besides: see [`Reload::probed`].
    pub probe: bool,
}

/// A reload under way.
#[derive(Clone, Debug)]
pub struct Reload {
    rules: Rules,
    slots: Vec<Progress>,
    canary: Option<usize>,
    canary_proven: bool,
    unprobed: bool,
}

impl Reload {
    /// A reload of `slots` slots that begins with a canary.
    #[must_use]
    pub fn new(slots: usize, rules: Rules) -> Reload {
        Reload {
            rules,
            slots: vec![Progress::Old; slots],
            canary: None,
            canary_proven: false,
            unprobed: rules.probe,
        }
    }

    /// The way back after a failure in the middle of a slot-by-slot switch: known code, no canary;
    /// slots that were not switched stay as they are.
    #[must_use]
    pub fn back(slots: usize, switched: &[usize], rules: Rules) -> Reload {
        let slots = (0..slots)
            .map(|slot| {
                if switched.contains(&slot) {
                    Progress::Old
                } else {
                    Progress::Switched
                }
            })
            .collect();
        Reload {
            rules: Rules {
                probation: Duration::ZERO,
                ..rules
            },
            slots,
            canary: None,
            canary_proven: true,
            unprobed: false,
        }
    }

    /// `late` has passed in which nobody could show anything: it does not count for the trials.
    pub fn put_off(&mut self, late: Duration) {
        for slot in &mut self.slots {
            if let Progress::Ready(since) = slot {
                *since += late;
            }
        }
    }

    /// What is to be done now, with at most `room` starts. Each step is given once.
    pub fn advance(&mut self, now: Instant, mut room: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if self.unprobed && self.canary == Some(index) {
                continue;
            }
            if matches!(*slot, Progress::Ready(since)
                if now.saturating_duration_since(since) >= self.rules.probation)
            {
                *slot = Progress::Proven;
            }
        }
        let canary = self.canary.and_then(|canary| self.slots.get(canary));
        if matches!(canary, Some(Progress::Proven | Progress::Switched)) {
            self.canary_proven = true;
        }
        let all_at_once = self.rules.surge >= self.slots.len();
        if all_at_once {
            if self
                .slots
                .iter()
                .all(|slot| matches!(slot, Progress::Proven | Progress::Switched))
            {
                for index in 0..self.slots.len() {
                    self.switch(index, &mut steps);
                }
            }
        } else {
            for index in 0..self.slots.len() {
                self.switch(index, &mut steps);
            }
        }
        if self.slots.iter().all(|slot| *slot == Progress::Switched) {
            steps.push(Step::Commit);
            return steps;
        }
        let mut beside = self.count(|slot| {
            matches!(
                slot,
                Progress::Starting
                    | Progress::Settled
                    | Progress::Ready(_)
                    | Progress::Proven
                    | Progress::Emptying
            )
        });
        let mut starting = self.count(|slot| *slot == Progress::Starting);
        let surge = self.rules.surge.max(1);
        for index in 0..self.slots.len() {
            if self.slots[index] != Progress::Old
                || beside >= surge
                || room == 0
                || starting >= self.rules.parallel.max(1)
            {
                continue;
            }
            if !self.canary_proven && self.canary.is_some() {
                break;
            }
            if !self.canary_proven {
                self.canary = Some(index);
            }
            beside += 1;
            room -= 1;
            if self.rules.surge == 0 {
                self.slots[index] = Progress::Emptying;
                steps.push(Step::Empty(index));
            } else {
                starting += 1;
                self.slots[index] = Progress::Starting;
                steps.push(Step::Start(index));
            }
        }
        steps
    }

    fn switch(&mut self, index: usize, steps: &mut Vec<Step>) {
        if self.slots[index] == Progress::Proven {
            self.slots[index] = Progress::Switched;
            steps.push(Step::Switch(index));
        }
    }

    fn count(&self, which: impl Fn(&Progress) -> bool) -> usize {
        self.slots.iter().filter(|slot| which(slot)).count()
    }

    /// The new worker of `slot` serves.
    pub fn ready(&mut self, slot: usize, now: Instant) {
        if let Some(progress @ (Progress::Starting | Progress::Settled)) = self.slots.get_mut(slot)
        {
            *progress = Progress::Ready(now);
        }
    }

    /// The new worker of `slot` does nothing more, and only has to live on until it counts as ready: the
    /// next one may start.
    pub fn settled(&mut self, slot: usize) {
        if let Some(progress @ Progress::Starting) = self.slots.get_mut(slot) {
            *progress = Progress::Settled;
        }
    }

    /// Whether the next new worker waits for nothing but those that start.
    #[must_use]
    pub fn waits_for_starts(&self) -> bool {
        (self.canary.is_none() || self.canary_proven)
            && self.slots.contains(&Progress::Old)
            && self.count(|slot| *slot == Progress::Starting) >= self.rules.parallel.max(1)
    }

    /// The new worker of `slot` will end, although it was ready.
    pub fn lost(&mut self, slot: usize) {
        if let Some(progress @ (Progress::Ready(_) | Progress::Proven)) = self.slots.get_mut(slot) {
            *progress = Progress::Starting;
        }
    }

    /// The old worker of `slot` is gone. With surge 0 the new one may start: then true.
    #[must_use]
    pub fn emptied(&mut self, slot: usize) -> bool {
        if let Some(progress @ Progress::Emptying) = self.slots.get_mut(slot) {
            *progress = Progress::Starting;
            return true;
        }
        false
    }

    /// The canary has answered as it should.
    pub fn probed(&mut self) {
        self.unprobed = false;
    }

    /// New workers that have become ready so far.
    #[must_use]
    pub fn ready_count(&self) -> usize {
        self.count(|slot| {
            matches!(
                slot,
                Progress::Ready(_) | Progress::Proven | Progress::Switched
            )
        })
    }

    /// Where it is, in one word.
    #[must_use]
    pub fn step(&self) -> &'static str {
        if !self.canary_proven {
            "canary"
        } else if self.switched().is_empty() {
            "fill"
        } else {
            "switch"
        }
    }

    /// The first worker of the new generation.
    #[must_use]
    pub fn canary(&self) -> Option<usize> {
        self.canary
    }

    /// The slots whose old worker has gone or was told to go.
    #[must_use]
    pub fn switched(&self) -> Vec<usize> {
        (0..self.slots.len())
            .filter(|slot| {
                self.slots[*slot] == Progress::Switched
                    || (self.rules.surge == 0 && self.slots[*slot] != Progress::Old)
            })
            .collect()
    }

    /// When [`Reload::advance`] has something to do again without an event.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(index, _)| !(self.unprobed && self.canary == Some(*index)))
            .filter_map(|(_, slot)| match slot {
                Progress::Ready(since) => Some(*since + self.rules.probation),
                Progress::Old
                | Progress::Emptying
                | Progress::Starting
                | Progress::Settled
                | Progress::Proven
                | Progress::Switched => None,
            })
            .min()
    }
}

/// A generation that has just taken over: for a while it may be taken back.
#[derive(Clone, Debug)]
pub struct Trial {
    slots: usize,
    until: Instant,
    died: BTreeSet<usize>,
}

impl Trial {
    /// A trial of `slots` slots, until then.
    #[must_use]
    pub fn new(slots: usize, until: Instant) -> Trial {
        Trial {
            slots,
            until,
            died: BTreeSet::new(),
        }
    }

    /// The worker of a slot died. True when, in time, more than half of the slots have seen that.
    #[must_use]
    pub fn died(&mut self, slot: usize, now: Instant) -> bool {
        if now > self.until {
            return false;
        }
        self.died.insert(slot);
        self.died.len() * 2 > self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(surge: usize, parallel: usize) -> Rules {
        Rules {
            surge,
            parallel,
            probation: Duration::from_secs(3),
            probe: false,
        }
    }

    #[test]
    fn nothing_else_starts_before_the_canary_is_proven() {
        let now = Instant::now();
        let mut reload = Reload::new(4, rules(4, 2));
        assert_eq!(reload.advance(now, 99), [Step::Start(0)]);
        assert_eq!(reload.advance(now, 99), []);
        reload.ready(0, now);
        assert_eq!(reload.advance(now + Duration::from_secs(2), 99), []);
        assert_eq!(reload.deadline(), Some(now + Duration::from_secs(3)));
        let now = now + Duration::from_secs(3);
        assert_eq!(reload.advance(now, 99), [Step::Start(1), Step::Start(2)]);
        reload.ready(1, now);
        assert_eq!(reload.advance(now, 99), [Step::Start(3)]);
        reload.ready(2, now);
        reload.ready(3, now);
        // All on probation: no old worker goes.
        assert_eq!(reload.advance(now + Duration::from_secs(2), 99), []);
        let steps = reload.advance(now + Duration::from_secs(3), 99);
        assert_eq!(
            steps,
            [
                Step::Switch(0),
                Step::Switch(1),
                Step::Switch(2),
                Step::Switch(3),
                Step::Commit
            ]
        );
    }

    #[test]
    fn time_in_which_all_stood_still_proves_nothing() {
        let now = Instant::now();
        let mut reload = Reload::new(1, rules(1, 1));
        assert_eq!(reload.advance(now, 99), [Step::Start(0)]);
        reload.ready(0, now);
        reload.put_off(Duration::from_secs(60));
        assert_eq!(reload.advance(now + Duration::from_secs(61), 99), []);
        let steps = reload.advance(now + Duration::from_secs(63), 99);
        assert_eq!(steps, [Step::Switch(0), Step::Commit]);
    }

    #[test]
    fn one_that_only_has_to_live_on_makes_place_for_the_next() {
        let now = Instant::now();
        let mut reload = Reload::new(4, rules(3, 1));
        assert_eq!(reload.advance(now, 99), [Step::Start(0)]);
        // The canary is proven by its probation, not by that.
        reload.settled(0);
        assert!(!reload.waits_for_starts());
        assert_eq!(reload.advance(now, 99), []);
        reload.ready(0, now);
        let now = now + Duration::from_secs(3);
        assert_eq!(reload.advance(now, 99), [Step::Switch(0), Step::Start(1)]);
        assert!(reload.waits_for_starts());
        reload.settled(1);
        assert!(!reload.waits_for_starts());
        assert_eq!(reload.advance(now, 99), [Step::Start(2)]);
        reload.settled(2);
        // Nor are there ever more beside the old ones than the surge allows.
        assert_eq!(reload.advance(now, 99), [Step::Start(3)]);
        reload.settled(3);
        assert_eq!(reload.advance(now, 99), []);
        assert_eq!(reload.ready_count(), 1);
        reload.ready(1, now);
        assert_eq!(reload.deadline(), Some(now + Duration::from_secs(3)));
    }

    #[test]
    fn one_by_one() {
        let mut now = Instant::now();
        let mut reload = Reload::new(3, rules(1, 8));
        assert_eq!(reload.advance(now, 99), [Step::Start(0)]);
        for slot in 0..3 {
            reload.ready(slot, now);
            now += Duration::from_secs(3);
            let next = if slot < 2 {
                Step::Start(slot + 1)
            } else {
                Step::Commit
            };
            assert_eq!(reload.advance(now, 99), [Step::Switch(slot), next]);
        }
    }

    #[test]
    fn stop_first() {
        let mut now = Instant::now();
        let mut reload = Reload::new(2, rules(0, 8));
        assert_eq!(reload.advance(now, 99), [Step::Empty(0)]);
        assert_eq!(reload.advance(now, 99), []);
        assert!(!reload.emptied(1));
        assert!(reload.emptied(0));
        assert!(!reload.emptied(0));
        reload.ready(0, now);
        assert_eq!(reload.switched(), [0]);
        now += Duration::from_secs(3);
        assert_eq!(reload.advance(now, 99), [Step::Switch(0), Step::Empty(1)]);
        assert!(reload.emptied(1));
        reload.ready(1, now);
        now += Duration::from_secs(3);
        assert_eq!(reload.advance(now, 99), [Step::Switch(1), Step::Commit]);
    }

    #[test]
    fn the_way_back_replaces_only_what_was_switched_and_waits_for_no_probation() {
        let now = Instant::now();
        let mut reload = Reload::back(3, &[1], rules(1, 8));
        assert_eq!(reload.advance(now, 99), [Step::Start(1)]);
        reload.ready(1, now);
        assert_eq!(reload.advance(now, 99), [Step::Switch(1), Step::Commit]);
    }

    #[test]
    fn one_worker_is_replaced_start_first_too() {
        let now = Instant::now();
        let mut reload = Reload::new(1, rules(1, 1));
        assert_eq!(reload.advance(now, 99), [Step::Start(0)]);
        reload.ready(0, now);
        assert_eq!(
            reload.advance(now + Duration::from_secs(3), 99),
            [Step::Switch(0), Step::Commit]
        );
    }

    #[test]
    fn a_canary_that_is_to_be_asked_is_not_proven_by_time_alone() {
        let now = Instant::now();
        let probe = Rules {
            probe: true,
            ..rules(2, 8)
        };
        let mut reload = Reload::new(2, probe);
        assert_eq!(reload.advance(now, 99), [Step::Start(0)]);
        reload.ready(0, now);
        let later = now + Duration::from_secs(9);
        assert_eq!(reload.advance(later, 99), []);
        assert_eq!(reload.deadline(), None);
        assert_eq!((reload.step(), reload.ready_count()), ("canary", 1));
        reload.probed();
        assert_eq!(reload.advance(later, 99), [Step::Start(1)]);
        assert_eq!(reload.step(), "fill");
    }

    #[test]
    fn a_new_worker_that_will_end_does_not_get_its_slot() {
        let now = Instant::now();
        let mut reload = Reload::new(1, rules(1, 1));
        assert_eq!(reload.advance(now, 99), [Step::Start(0)]);
        reload.ready(0, now);
        reload.lost(0);
        assert_eq!(reload.advance(now + Duration::from_secs(9), 99), []);
        assert_eq!(reload.deadline(), None);
    }

    #[test]
    fn no_more_starts_than_there_is_room() {
        let now = Instant::now();
        let mut reload = Reload::new(4, rules(4, 8));
        assert_eq!(reload.advance(now, 0), []);
        assert_eq!(reload.advance(now, 1), [Step::Start(0)]);
        reload.ready(0, now);
        let now = now + Duration::from_secs(3);
        assert_eq!(reload.advance(now, 2), [Step::Start(1), Step::Start(2)]);
        assert_eq!(reload.advance(now, 0), []);
        assert_eq!(reload.advance(now, 9), [Step::Start(3)]);
    }

    #[test]
    fn more_than_half_of_the_slots_and_in_time() {
        let now = Instant::now();
        let end = now + Duration::from_secs(6);
        let mut trial = Trial::new(4, end);
        assert!(!trial.died(0, now) && !trial.died(0, now) && !trial.died(1, now));
        assert!(!trial.clone().died(2, end + Duration::from_millis(1)));
        assert!(trial.died(2, end));
        assert!(Trial::new(1, end).died(0, now));
    }

    proptest! {
        /// Whatever comes in whatever order: never more new workers than the surge allows, no slot
        /// switched before its new worker has served its probation, none without a canary, each step
        /// once, and in the end everything is switched.
        #[test]
        fn random_orders(
            slots in 1usize..9, surge in 0usize..9, parallel in 1usize..4,
            choices in proptest::collection::vec((0usize..9, 0u64..2000), 1..200),
        ) {
            let surge = surge.min(slots);
            let mut now = Instant::now();
            let mut reload = Reload::new(slots, rules(surge, parallel));
            let mut ready: Vec<Option<Instant>> = vec![None; slots];
            let (mut started, mut switched) = (BTreeSet::new(), BTreeSet::new());
            let mut emptied = BTreeSet::new();
            let mut committed = false;
            let calm = (0..(slots + 1) * (slots + 1) * 2).map(|step| (step % slots, 3000));
            for (slot, wait) in choices.into_iter().chain(calm) {
                now += Duration::from_millis(wait);
                let slot = slot % slots;
                if emptied.contains(&slot) && !started.contains(&slot) && reload.emptied(slot) {
                    started.insert(slot);
                }
                if started.contains(&slot) && ready[slot].is_none() {
                    reload.ready(slot, now);
                    ready[slot] = Some(now);
                }
                for step in reload.advance(now, 99) {
                    match step {
                        Step::Start(slot) => prop_assert!(started.insert(slot)),
                        Step::Empty(slot) => prop_assert!(surge == 0 && emptied.insert(slot)),
                        Step::Switch(slot) => {
                            prop_assert!(switched.insert(slot));
                            let since = ready[slot].map(|at| now - at).unwrap_or_default();
                            prop_assert!(since >= Duration::from_secs(3));
                        }
                        Step::Commit => {
                            prop_assert!(!committed && switched.len() == slots);
                            committed = true;
                        }
                    }
                }
                let beside = started.union(&emptied).filter(|slot| !switched.contains(slot)).count();
                prop_assert!(beside <= surge.max(1));
                let proven = ready.iter().flatten().any(|at| now - *at >= Duration::from_secs(3));
                prop_assert!(proven || started.union(&emptied).count() <= 1);
                if committed {
                    break;
                }
            }
            prop_assert!(committed);
        }
    }
}
