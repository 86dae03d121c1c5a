//! A reload from the request to its result: what comes, what goes, and what stays when it fails.

use super::reload::{Reload, Rules, Step, Trial};
use super::{Beginning, Effect, Phase, Pool, Slot, Wait, in_one_line};
use crate::control::Begun;
use crate::events;
use crate::status::Frozen;
use crate::supervisor::Outcome;
use common::control::Reply;
use common::event::{Level, Value};
use common::exit::Exit;
use std::time::{Duration, Instant};

/// A reload under way.
#[derive(Clone, Debug)]
pub struct Reloading {
    /// Its steps.
    pub steps: Reload,
    /// What comes.
    pub target: u32,
    /// What serves until then.
    pub old: u32,
    /// When it was asked for.
    pub since: Instant,
    /// The way back after a failure in mid-switch.
    pub back: bool,
    /// `--check`, which comes before all else, is at work.
    pub checking: bool,
}

impl Reloading {
    /// Where it is, in one word.
    #[must_use]
    pub fn step(&self) -> &'static str {
        match (self.checking, self.back) {
            (true, _) => "check",
            (false, true) => "back",
            (false, false) => self.steps.step(),
        }
    }
}

/// What a request to reload comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It can begin: [`Pool::begin_reload`] with this generation, or [`Pool::refuse_reload`].
    Begin(u32),
    /// It cannot, now or at all.
    Not(Begun),
}

impl Pool {
    /// Somebody wants a reload.
    pub fn ask_reload(&mut self) -> Asked {
        match &self.phase {
            Phase::Stopping(_) => {
                self.say(
                    Level::Warning,
                    events::RELOAD_REFUSED,
                    [("error", "we are stopping".into())],
                );
                self.reloads.refused += 1;
                Asked::Not(Begun::Refused("we are stopping".to_owned()))
            }
            Phase::Reloading(reloading)
                if reloading.back || !reloading.steps.switched().is_empty() =>
            {
                self.queued_reload = true;
                self.say(Level::Info, events::RELOAD_QUEUED, []);
                Asked::Not(Begun::Queued)
            }
            Phase::Reloading(_) | Phase::Initial | Phase::Running => {
                Asked::Begin(self.last_generation + 1)
            }
        }
    }

    /// Its generation cannot be had.
    pub fn refuse_reload(&mut self, why: String) -> Begun {
        self.give(Effect::Outcome(Outcome::Refused));
        self.reloads.refused += 1;
        self.say(
            Level::Error,
            events::RELOAD_REFUSED,
            [("error", why.clone().into())],
        );
        Begun::Refused(why)
    }

    /// It begins, in the place of one that has not switched anything yet.
    pub fn begin_reload(&mut self, target: u32, now: Instant) -> Begun {
        self.last_generation = target;
        self.drop_recycle("a reload has begun", now);
        let fields = [("generation", Value::from(target))];
        let old = match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Reloading(reloading) => {
                let superseded = reloading.target;
                self.say(
                    Level::Info,
                    events::RELOAD_SUPERSEDED,
                    [("generation", superseded.into())],
                );
                self.reloads.superseded += 1;
                self.give(Effect::DropCheck);
                self.give(Effect::DropProbe);
                self.drop_next(now);
                self.superseded(superseded, target);
                reloading.old
            }
            Phase::Initial => {
                // Nobody serves yet: the newest code is the first generation.
                self.phase = Phase::Initial;
                self.say(Level::Info, events::RELOAD_STARTED, fields);
                self.superseded(self.generation, target);
                let ids: Vec<u64> = self
                    .slots
                    .iter_mut()
                    .filter_map(|slot| slot.current.take())
                    .collect();
                ids.into_iter().for_each(|id| self.call_off(id, now));
                self.line = (0..self.slots.len()).collect();
                for slot in &mut self.slots {
                    *slot = Slot::new(target);
                }
                self.generation = target;
                return Begun::Started(target);
            }
            Phase::Running | Phase::Stopping(_) => self.generation,
        };
        self.say(Level::Info, events::RELOAD_STARTED, fields);
        self.phase = Phase::Reloading(Reloading {
            steps: Reload::new(self.slots.len(), self.policy.rules(self.slots.len())),
            target,
            old,
            since: now,
            back: false,
            checking: self.policy.check,
        });
        if self.policy.check {
            self.give(Effect::Check(target));
        }
        self.advance_reload(now);
        Begun::Started(target)
    }

    fn superseded(&mut self, generation: u32, by: u32) {
        let why = format!(
            "a newer reload, to generation {by}, took the place of generation {generation}"
        );
        let reply = Reply::Err(crate::control::SUPERSEDED, why);
        self.give(Effect::Result(generation, reply, Vec::new()));
    }

    /// `--check` is content with the generation.
    pub fn check_passed(&mut self, generation: u32, took: Duration, now: Instant) {
        match &mut self.phase {
            Phase::Reloading(reloading) if reloading.target == generation => {
                reloading.checking = false;
            }
            Phase::Reloading(_) | Phase::Initial | Phase::Running | Phase::Stopping(_) => return,
        }
        let text = format!("check passed in {}", common::time::say(took));
        self.give(Effect::Progress(generation, text));
        self.advance_reload(now);
    }

    /// It is not, or could not be asked; it had said this.
    pub fn check_failed(&mut self, generation: u32, why: &str, words: Vec<String>, now: Instant) {
        match &self.phase {
            Phase::Reloading(reloading) if reloading.target == generation => {}
            Phase::Reloading(_) | Phase::Initial | Phase::Running | Phase::Stopping(_) => return,
        }
        self.phase = Phase::Running;
        self.reloads.refused += 1;
        self.give(Effect::Outcome(Outcome::Refused));
        let mut fields = vec![
            ("generation", generation.into()),
            ("error", Value::from(why.to_owned())),
        ];
        if let Some(text) = in_one_line(&words) {
            fields.push(("stderr", text.into()));
        }
        self.say(Level::Error, events::RELOAD_REFUSED, fields);
        let reply = Reply::Err(crate::control::REFUSED, format!("refused: {why}"));
        self.give(Effect::Result(generation, reply, words));
        self.after_reload(now);
    }

    /// The canary has answered as it should.
    pub fn probe_passed(&mut self, status: u16, took: Duration, now: Instant) {
        let Phase::Reloading(reloading) = &mut self.phase else {
            return;
        };
        reloading.steps.probed();
        let generation = reloading.target;
        let text = format!("probe answered {status} in {}", common::time::say(took));
        self.give(Effect::Progress(generation, text));
        self.advance_reload(now);
    }

    /// It has not.
    pub fn probe_failed(&mut self, id: u64, why: &str, words: Vec<String>, now: Instant) {
        if let Some(member) = self.members.get(&id) {
            let why = format!("worker {} (pid {}) {why}", member.slot, member.pid);
            self.reload_failed(&why, words, now);
        }
    }

    /// A worker that is to take over a slot in a reload is ready.
    pub(super) fn next_is_ready(&mut self, id: u64, now: Instant) {
        let (Phase::Reloading(reloading), Some(member)) = (&mut self.phase, self.members.get(&id))
        else {
            return;
        };
        let (slot, generation) = (member.slot, member.generation);
        reloading.steps.ready(slot, now);
        let ready = reloading.steps.ready_count();
        if !reloading.back && reloading.steps.canary() == Some(slot) {
            let took = common::time::say(member.took(now));
            let fields = member.fields();
            self.say(Level::Info, events::RELOAD_CANARY, fields);
            self.give(Effect::Progress(
                generation,
                format!("canary ready in {took}"),
            ));
            if self.policy.probe {
                self.give(Effect::Probe(id));
            }
        } else {
            let text = format!("{ready}/{} ready", self.slots.len());
            self.give(Effect::Progress(generation, text));
        }
        self.advance_reload(now);
    }

    /// The workers of a generation that will not come.
    fn drop_next(&mut self, now: Instant) {
        let ids: Vec<u64> = self
            .slots
            .iter_mut()
            .filter_map(|slot| slot.next.take())
            .collect();
        ids.into_iter().for_each(|id| self.call_off(id, now));
    }

    pub(super) fn advance_reload(&mut self, now: Instant) {
        let room = self.room();
        let Phase::Reloading(reloading) = &mut self.phase else {
            return;
        };
        if reloading.checking {
            return;
        }
        let steps = reloading.steps.advance(now, room);
        let target = reloading.target;
        let switching = steps
            .iter()
            .filter(|step| matches!(step, Step::Switch(_)))
            .count();
        let mut replaced = reloading.steps.switched().len().saturating_sub(switching);
        for step in steps {
            // A start that failed has ended it.
            match &self.phase {
                Phase::Reloading(reloading) if reloading.target == target => {}
                Phase::Reloading(_) | Phase::Initial | Phase::Running | Phase::Stopping(_) => {
                    return;
                }
            }
            match step {
                Step::Start(slot) => self.start_next(slot, target, now),
                Step::Empty(slot) => {
                    let old = self.slots.get_mut(slot).and_then(|slot| {
                        slot.wait = Wait::Nothing;
                        slot.current.take()
                    });
                    match old {
                        Some(id) => self.leave(id, now),
                        None => self.start_emptied(slot, now),
                    }
                }
                Step::Switch(index) => {
                    replaced += 1;
                    self.switch(index, target, now);
                    let text = format!("{replaced}/{} replaced", self.slots.len());
                    self.give(Effect::Progress(target, text));
                }
                Step::Commit => self.commit(now),
            }
        }
    }

    fn switch(&mut self, index: usize, target: u32, now: Instant) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let old = std::mem::replace(&mut slot.current, slot.next.take());
        slot.generation = target;
        slot.history.clear();
        slot.wait = Wait::Nothing;
        self.let_accept(index);
        if let Some(old) = old {
            self.leave(old, now);
        }
    }

    /// A slot that a reload had to empty first is empty now.
    pub(super) fn start_emptied(&mut self, slot: usize, now: Instant) {
        if let Phase::Reloading(reloading) = &mut self.phase {
            if reloading.steps.emptied(slot) {
                let target = reloading.target;
                self.start_next(slot, target, now);
            }
        }
    }

    fn start_next(&mut self, slot: usize, target: u32, now: Instant) {
        let first = self.policy.rules(self.slots.len()).surge > 0;
        let beginning = if first && self.policy.holds {
            Beginning::Held
        } else {
            Beginning::Open
        };
        let id = self.start(slot, target, beginning, now);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.next = Some(id);
        }
        self.unless_too_many_are_stuck(id, now);
    }

    fn commit(&mut self, now: Instant) {
        let Phase::Reloading(reloading) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return;
        };
        let took = now.saturating_duration_since(reloading.since);
        self.generation = reloading.target;
        self.trial = None;
        if !reloading.back {
            self.frozen = None;
            self.reloads.committed += 1;
            let until = now + self.policy.probation * 2;
            self.trial = Some((Trial::new(self.slots.len(), until), reloading.old));
            self.give(Effect::Outcome(Outcome::Committed));
            let (generation, workers) = (reloading.target, self.slots.len());
            self.say(
                Level::Info,
                events::RELOAD_COMMITTED,
                [
                    ("generation", generation.into()),
                    ("workers", workers.into()),
                    ("took", took.into()),
                ],
            );
            let reply = Reply::Ok(format!(
                "generation {generation} serves: {workers} workers in {}",
                common::time::say(took)
            ));
            self.give(Effect::Result(generation, reply, Vec::new()));
        }
        self.say_serving(now, reloading.since);
        self.limit_draining(now);
        self.after_reload(now);
    }

    /// What had to wait for the end of a reload, whatever that was.
    fn after_reload(&mut self, now: Instant) {
        // A slot that was in its backoff has a worker now, or is to get one of the code that serves.
        self.queue_empty();
        self.give(Effect::Tidy);
        self.start_line(now);
        if std::mem::take(&mut self.queued_reload) {
            self.give(Effect::NextReload);
        }
    }

    /// Any failure before the switch: the new go, the old stay, and everybody may know.
    pub(super) fn reload_failed(&mut self, why: &str, words: Vec<String>, now: Instant) {
        let reloading = match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Reloading(reloading) => reloading,
            other => {
                self.phase = other;
                return;
            }
        };
        self.give(Effect::DropProbe);
        self.drop_next(now);
        let (failed, old) = (reloading.target, reloading.old);
        let error = if reloading.back {
            format!("{why}, on the way back; its workers are started one at a time")
        } else {
            format!("{why}; generation {old} goes on")
        };
        let mut fields = vec![("generation", failed.into()), ("error", Value::from(error))];
        if let Some(text) = in_one_line(&words) {
            fields.push(("stderr", text.into()));
        }
        self.say(Level::Error, events::RELOAD_FAILED, fields);
        // On the way back it is the old release that failed, and the freeze names the new one.
        if !reloading.back {
            self.reloads.failed += 1;
            self.give(Effect::Outcome(Outcome::Failed));
            let reply = Reply::Err(
                Exit::No.code(),
                format!("generation {failed} failed: {why}; generation {old} goes on"),
            );
            self.give(Effect::Result(failed, reply, words.clone()));
            self.frozen = Some(Frozen {
                generation: failed,
                error: why.to_owned(),
                words,
                at: now,
            });
        }
        let switched = reloading.steps.switched();
        if switched.is_empty() || reloading.back {
            // What has not come back by now is replaced one at a time, as soon as it can be.
            for slot in &mut self.slots {
                slot.generation = self.generation;
            }
            self.after_reload(now);
            return;
        }
        // An emptied slot has nobody: start there, and beside the others.
        let rules = self.policy.rules(self.slots.len());
        let rules = Rules {
            surge: rules.surge.max(1),
            ..rules
        };
        self.phase = Phase::Reloading(Reloading {
            steps: Reload::back(self.slots.len(), &switched, rules),
            target: old,
            old,
            since: now,
            back: true,
            checking: false,
        });
        self.give(Effect::Tidy);
        self.advance_reload(now);
    }
}
