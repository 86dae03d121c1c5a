//! A worker ends: who ended it, and what follows for its slot, for a reload, for the pool.

use super::{Effect, Ended, Member, Phase, Pool, Reloading, State, Wait, in_one_line, reload};
use crate::cli::OnLimit;
use crate::deaths::{self, By, Death};
use crate::events;
use crate::pool::respawn::Verdict;
use crate::status::Frozen;
use crate::supervisor::Outcome;
use common::event::{Level, Value};
use common::exit::{End, Exit};
use std::time::{Duration, Instant};

/// What a worker was to its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It had the slot.
    Current,
    /// It was to have it.
    Next,
    /// Another one has it by now, or the slot is gone.
    None,
}

impl Pool {
    /// A worker has ended.
    pub fn ended(&mut self, id: u64, ended: Ended, now: Instant) {
        let Some(mut member) = self.members.remove(&id) else {
            return;
        };
        let end = ended.end;
        let uptime = now.saturating_duration_since(member.started);
        let by = deaths::judge(end, member.by, ended.oom);
        *self.deaths.entry(by).or_default() += 1;
        if let Some(slot) = self.slots.get_mut(member.slot) {
            let death = Death {
                pid: member.pid,
                generation: member.generation,
                end,
                by,
                uptime,
                at: now,
            };
            slot.deaths.note(death, ended.words.clone());
            slot.last_end = end;
            // The next one of a slot whose worker killed itself so soon will do no better.
            let proven = member
                .ready_at
                .is_some_and(|at| at + self.policy.probation <= now);
            slot.unproven |= by == By::Itself && !proven && slot.current == Some(id);
        }
        let place = self.vacate(&member);
        self.say_exited(&member, end, uptime, by, &ended.words);
        if let Some((error, exit)) = ended.unstarted {
            self.say(
                Level::Error,
                events::WORKER_FAILED,
                [
                    ("slot", member.slot.into()),
                    ("generation", member.generation.into()),
                    ("error", error.clone().into()),
                ],
            );
            member.cause.get_or_insert(error);
            if !self.ever_ready && matches!(self.phase, Phase::Initial) {
                self.stop(exit, now);
            }
        }
        self.left(&member, place, end, &ended.words, now);
        self.give(Effect::Tidy);
    }

    /// A killed worker is not gone although it had time: it hangs in the kernel, and its place goes to
    /// another one. When it ends after all, it is reaped as everybody is.
    pub(super) fn is_stuck(&mut self, id: u64, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.state = State::Stuck;
        member.until = Some(now);
        let member = member.clone();
        let mut fields = member.fields();
        fields.push((
            "error",
            "killed, and not gone: it hangs in the kernel, where no signal reaches it".into(),
        ));
        self.say(Level::Error, events::WORKER_STUCK, fields);
        let place = self.vacate(&member);
        self.left(&member, place, None, &[], now);
        self.give(Effect::Tidy);
    }

    fn vacate(&mut self, member: &Member) -> Place {
        let Some(slot) = self.slots.get_mut(member.slot) else {
            return Place::None;
        };
        if slot.current == Some(member.id) {
            slot.current = None;
            Place::Current
        } else if slot.next == Some(member.id) {
            slot.next = None;
            Place::Next
        } else {
            Place::None
        }
    }

    fn say_exited(
        &mut self,
        member: &Member,
        end: Option<End>,
        uptime: Duration,
        by: By,
        words: &[String],
    ) {
        let mut fields = member.fields();
        fields.push(("generation", member.generation.into()));
        match end {
            Some(End::Exited(status)) => fields.push(("status", status.into())),
            Some(End::Killed(signal)) => {
                fields.push(("signal", common::signal::name(signal).into()));
            }
            None => {}
        }
        fields.push(("uptime", uptime.into()));
        fields.push(("by", by.name().into()));
        if let Some(cause) = &member.cause {
            fields.push(("error", cause.clone().into()));
        }
        let unexpected = member.stays() || member.cause.is_some();
        if let Some(text) = in_one_line(words).filter(|_| unexpected) {
            fields.push(("stderr", text.into()));
        }
        let level = if unexpected {
            Level::Warning
        } else {
            Level::Info
        };
        self.say(level, events::WORKER_EXITED, fields);
    }

    /// What follows when a worker is there no longer for its slot.
    fn left(
        &mut self,
        member: &Member,
        place: Place,
        end: Option<End>,
        words: &[String],
        now: Instant,
    ) {
        let index = member.slot;
        let unwanted = member.stays() || member.cause.is_some();
        let why = member.cause.clone().unwrap_or_else(|| {
            end.map_or_else(
                || "ended".to_owned(),
                |end| format!("ended with {end} before its time"),
            )
        });
        match place {
            Place::Next if self.recycling.replaces(index) => {
                if unwanted {
                    let why = format!("worker {index} (pid {}) {why}", member.pid);
                    self.recycle_failed(&why, now);
                }
            }
            // It did not wait for its replacement, which has the slot by that.
            Place::Current if self.recycling.replaces(index) => self.recycled(index, now),
            Place::Next if unwanted => {
                let why = format!("worker {index} (pid {}) {why}", member.pid);
                self.reload_failed(&why, words.to_vec(), now);
            }
            Place::Current if member.stays() && self.mass_death(member, now) => {
                self.roll_back(words.to_vec(), now);
            }
            Place::Current if unwanted && !self.stopping() => {
                self.replace(member, end, now);
            }
            Place::Current | Place::Next | Place::None => {}
        }
        self.start_emptied(index, now);
    }

    fn replace(&mut self, member: &Member, end: Option<End>, now: Instant) {
        let hopeless = !self.ever_ready && matches!(self.phase, Phase::Initial);
        if hopeless && end == Some(End::Exited(0)) && self.all_left_at_once() {
            self.say(
                Level::Error,
                events::WORKER_FAILED,
                [
                    ("generation", self.generation.into()),
                    (
                        "error",
                        "every worker ended with status 0 before it was ready; a job that ends is not a service"
                            .into(),
                    ),
                ],
            );
            self.stop(Exit::No, now);
        } else if hopeless && member.late && self.nobody_in_time() {
            // Each has had its --ready-timeout and the next would have no other end.
            self.stop(Exit::No, now);
        } else {
            let uptime = now.saturating_duration_since(member.started);
            self.after_death(member.slot, end, uptime, now);
            // At once, not at the next turn of the loop: this is the way back after a kill -9.
            self.start_line(now);
        }
    }

    /// Whether all others of the first generation were late, too.
    fn nobody_in_time(&self) -> bool {
        self.members.values().all(|other| other.late) && self.line.is_empty()
    }

    fn all_left_at_once(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.current.is_none() && slot.last_end == Some(End::Exited(0)))
    }

    /// The slot's worker died: when is the next one due?
    pub(super) fn after_death(
        &mut self,
        index: usize,
        end: Option<End>,
        uptime: Duration,
        now: Instant,
    ) {
        let random = self.random();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        slot.restarts += 1;
        let verdict = slot
            .history
            .died(&self.policy.respawn, end, uptime, now, random);
        match verdict {
            Verdict::AtOnce => self.queue(index),
            Verdict::After(wait) => {
                slot.wait = Wait::Backoff(now + wait);
                self.say(
                    Level::Info,
                    events::WORKER_BACKOFF,
                    [("slot", index.into()), ("wait", wait.into())],
                );
            }
            Verdict::Over(wait) => {
                slot.wait = Wait::Held(now + wait);
                self.say(
                    Level::Error,
                    events::WORKER_HELD,
                    [
                        ("slot", index.into()),
                        ("wait", wait.into()),
                        ("error", "over its respawn limit".into()),
                    ],
                );
                let nobody = self
                    .slots
                    .iter()
                    .all(|slot| matches!(slot.wait, Wait::Held(_)));
                if self.policy.on_limit == OnLimit::Exit || nobody {
                    self.stop(Exit::No, now);
                }
            }
        }
    }

    /// The worker of the newest generation died, and with it more than half of its slots in their time
    /// of trial.
    fn mass_death(&mut self, member: &Member, now: Instant) -> bool {
        let newest = member.generation == self.generation;
        match &mut self.trial {
            Some((trial, _)) if newest && matches!(self.phase, Phase::Running) => {
                trial.died(member.slot, now)
            }
            Some(_) | None => false,
        }
    }

    /// The generation that has just taken over cannot live: the old one comes back from its pin.
    fn roll_back(&mut self, words: Vec<String>, now: Instant) {
        let Some((_, old)) = self.trial.take() else {
            return;
        };
        self.drop_recycle("the generation is taken back", now);
        let bad = self.generation;
        let error = format!(
            "more than half of its workers died within {} of the switch; generation {old} comes back",
            common::time::say(self.policy.probation * 2),
        );
        let mut fields = vec![
            ("generation", bad.into()),
            ("error", Value::from(error.clone())),
        ];
        if let Some(text) = in_one_line(&words) {
            fields.push(("stderr", text.into()));
        }
        self.reloads.rolled_back += 1;
        self.give(Effect::Outcome(Outcome::Failed));
        self.say(Level::Error, events::RELOAD_ROLLED_BACK, fields);
        self.frozen = Some(Frozen {
            generation: bad,
            error,
            words,
            at: now,
        });
        self.generation = old;
        let mut alive = Vec::new();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            slot.generation = old;
            slot.history.clear();
            slot.unproven = false;
            if slot.current.is_some() {
                alive.push(index);
            } else {
                self.queue(index);
            }
        }
        if !alive.is_empty() {
            // Each slot as soon as its old release serves: what it has now may die at any moment.
            let rules = reload::Rules {
                surge: (self.slots.len() - 1).max(1),
                ..self.policy.rules(self.slots.len())
            };
            self.phase = Phase::Reloading(Reloading {
                steps: reload::Reload::back(self.slots.len(), &alive, rules),
                target: old,
                old,
                since: now,
                back: true,
                checking: false,
            });
            self.advance_reload(now);
        }
        self.start_line(now);
    }
}
