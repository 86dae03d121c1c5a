//! What has ended: reaped, reported to the pool, and swept up behind.

use crate::cgroups;
use crate::deaths::{self, Oom};
use crate::events;
use crate::run::{Leftover, Master};
use crate::worker::Worker;
use common::cgroup::{Group, Removal};
use common::child::{self, Child, Peer};
use common::event::Level;
use common::exit::{End, Exit};
use common::sys::Step;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const KILL: i32 = 9;
const TERM: i32 = 15;
const CONT: i32 = 18;

/// How long what can wait is put off for the exec of a worker that has just been started.
const EXEC: Duration = Duration::from_millis(5);

/// How often strangers are looked at that are to go: their pids give no event ...
const LOOK: Duration = Duration::from_millis(50);
/// ... and once they were killed and are still there, or could not be looked for, for lack of descriptors.
const LOOK_SELDOM: Duration = Duration::from_secs(1);

impl Leftover {
    /// Processes that have got TERM, and get KILL then.
    #[must_use]
    pub fn new(peers: Vec<Peer>, cgroups: Vec<Group>, kill_at: Instant) -> Leftover {
        Leftover {
            peers,
            cgroups,
            kill_at,
            killed: None,
        }
    }

    /// When they are looked at again.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Instant {
        match self.killed {
            Some(since) if now.saturating_duration_since(since) > LOOK_SELDOM => now + LOOK_SELDOM,
            Some(_) | None => self.kill_at.min(now + LOOK),
        }
    }

    /// They were killed, and the kernel does not let them go.
    #[must_use]
    pub fn is_stuck(&self, now: Instant) -> bool {
        self.killed
            .is_some_and(|since| now.saturating_duration_since(since) >= crate::pool::STUCK)
    }
}

impl Master {
    /// Every child that has ended.
    pub(crate) fn reap(&mut self, now: Instant) {
        let ended: Vec<u64> = self
            .workers
            .values()
            .filter(|worker| worker.child.ended().is_some())
            .map(|worker| worker.id)
            .collect();
        ended.into_iter().for_each(|id| self.on_worker_end(id, now));
        self.sweep(now);
        while let Some(pid) = child::next_ended() {
            if let Some(id) = self.id_of(pid) {
                // Since we looked.
                self.on_worker_end(id, now);
                self.sweep(now);
            } else if let Some(worker) = self.workers.values_mut().find(|worker| {
                worker
                    .check
                    .0
                    .as_ref()
                    .is_some_and(|check| check.pid() == pid)
            }) {
                if let Some(check) = worker.check.0.take() {
                    check.signal_group(KILL);
                    worker.shown |= check.reap() == Some(End::Exited(0));
                    worker.check.1 = now + Duration::from_millis(200);
                }
            } else if self.check.as_ref().is_some_and(|check| check.pid() == pid) {
                self.on_check_end(now);
            } else if self
                .upgrade
                .as_ref()
                .is_some_and(|upgrade| upgrade.pid() == pid)
            {
                self.on_upgrade_end(now);
            } else if self.dead.iter().any(|worker| worker.child.pid() == pid) {
                // Its leftovers are looked for once more before its number is free; others wait behind it.
                break;
            } else {
                child::reap_stranger(pid);
            }
        }
    }

    fn id_of(&self, pid: i32) -> Option<u64> {
        let mut workers = self.workers.values();
        let found = workers.find(|worker| worker.child.pid() == pid);
        found.map(|worker| worker.id)
    }

    fn on_worker_end(&mut self, id: u64, now: Instant) {
        // What it said last, before it is reported; read although more is in the pipe than one turn.
        for number in [id * 2, id * 2 + 1] {
            if let Some(stream) = self.streams.get_mut(&number) {
                stream.last = true;
            }
            for _ in 0..8 {
                self.on_stream(number, now);
            }
        }
        self.close_channel(id);
        let Some(mut worker) = self.workers.remove(&id) else {
            return;
        };
        if let (Some(check), _) = &worker.check {
            check.signal_group(KILL);
        }
        let oom = match (worker.oom_kills, child::oom_kills()) {
            (Some(before), Some(after)) if after > before => Oom::Counted,
            _ => Oom::No,
        };
        let ended = crate::pool::Ended {
            end: worker.child.ended(),
            oom,
            words: deaths::spoken(&worker.last),
            unstarted: self.unstarted(&mut worker.child),
        };
        let slot = worker.slot;
        // Many may end at once: one look for all of them follows.
        self.dead.push(worker);
        self.pool.ended(id, ended, now);
        self.act(now);
        // The look through all processes would compete with the new one for the processor.
        let next = self.pool.slots.get(slot).and_then(|one| one.current);
        if let Some(next) = next.and_then(|id| self.workers.get(&id)) {
            next.child.let_execute(EXEC);
        }
    }

    /// Why its program was never executed, and what the end of a first start by that is.
    fn unstarted(&self, child: &mut Child) -> Option<(String, Exit)> {
        let failure = child.start_failure()?;
        let program = self.plan.command.first().cloned().unwrap_or_default();
        let exit = match (failure.step, failure.errno) {
            (Step::Exec, 2 | 20) => Exit::NotFound,
            // E2BIG: argv or environment too large, which no other program would cure.
            (Step::Exec, 7) => Exit::Fault,
            (Step::Exec, _) => Exit::NotExecutable,
            _ => Exit::Fault,
        };
        Some((failure.describe(&program), exit))
    }

    /// What workers that have ended left behind in their cgroups, or else in their process groups or as
    /// orphans, gets TERM, and KILL when it is time. The number of a process group is safe as long as its
    /// leader is not reaped, which comes last; so they stay as they are until all of it could be looked for.
    fn sweep(&mut self, now: Instant) {
        let mut dead = std::mem::take(&mut self.dead);
        if dead.is_empty() {
            return;
        }
        let held = self.leftovers.iter().flat_map(|leftover| &leftover.peers);
        let known: BTreeSet<i32> = self
            .workers
            .values()
            .chain(&dead)
            .flat_map(|worker| {
                [
                    Some(worker.child.pid()),
                    worker.check.0.as_ref().map(Child::pid),
                ]
            })
            .flatten()
            .chain(held.map(Peer::pid))
            .collect();
        let trace = |worker: &Worker| child::Trace {
            group: worker.child.pid(),
            marks: vec![
                format!("SPAWNWORK_PID={}", std::process::id()),
                format!("WORKER_ID={}", worker.slot),
                format!("SPAWNWORK_GENERATION={}", worker.generation),
            ],
        };
        // Whoever was born in its cgroup has left everything there.
        let elsewhere = |worker: &&Worker| !worker.cgroup.as_ref().is_some_and(Group::certain);
        let traces: Vec<child::Trace> = dead.iter().filter(elsewhere).map(trace).collect();
        let (mut peers, cgroups) =
            cgroups::left(dead.iter_mut().filter_map(|worker| worker.cgroup.take()));
        let mut more = false;
        if !traces.is_empty() {
            let found = child::leftovers(&traces, |pid| known.contains(&pid));
            peers.extend(found.peers);
            more = found.more;
        }
        if !peers.is_empty() || !cgroups.is_empty() {
            for peer in &peers {
                peer.signal(TERM);
                peer.signal(CONT);
            }
            let kill_at = now + self.plan.stop_timeout;
            self.leftovers.push(Leftover::new(peers, cgroups, kill_at));
        }
        if more {
            // They have told their end, and would tell it all the time.
            dead.iter()
                .for_each(|worker| self.events.remove(&worker.child));
            self.dead = dead;
            self.sweep_at = Some(now + LOOK_SELDOM);
        } else {
            for worker in dead {
                let _ = worker.child.reap();
            }
            self.sweep_at = None;
        }
    }

    /// Looks once more for what could not be looked for, when it is time for that, or because we end.
    pub(crate) fn on_sweep_time(&mut self, now: Instant) {
        let due = self.sweep_at.is_some_and(|at| at <= now) || self.pool.end(now).is_some();
        if due && !self.dead.is_empty() {
            self.reap(now);
        }
    }

    /// What was left behind and does not leave by itself; at our end not even KILL is waited for without
    /// a limit.
    pub(crate) fn on_leftovers_time(&mut self, now: Instant) {
        for leftover in &mut self.leftovers {
            if leftover.kill_at <= now {
                leftover.peers.iter().for_each(|peer| peer.signal(KILL));
                leftover.cgroups.iter().for_each(Group::kill);
                leftover.kill_at = now + Duration::from_secs(1);
                leftover.killed.get_or_insert(now);
            }
            leftover.peers.retain(Peer::alive);
            let busy = |cgroup: &Group| cgroup.remove() == Removal::Busy;
            leftover.cgroups.retain(busy);
        }
        self.leftovers
            .retain(|leftover| !leftover.peers.is_empty() || !leftover.cgroups.is_empty());
        if self.pool.stopping() {
            let (stuck, others) = std::mem::take(&mut self.leftovers)
                .into_iter()
                .partition(|leftover| leftover.is_stuck(now));
            self.leftovers = others;
            let stuck: Vec<Leftover> = stuck;
            for peer in stuck.iter().flat_map(|leftover| &leftover.peers) {
                self.say_left_behind(None, peer.pid());
            }
        }
    }

    /// We end although this process is still there.
    pub(crate) fn say_left_behind(&mut self, slot: Option<usize>, pid: i32) {
        let mut fields = Vec::new();
        fields.extend(slot.map(|slot| ("slot", slot.into())));
        fields.push(("pid", pid.into()));
        fields.push((
            "error",
            "it hangs in the kernel, and is left to it: no signal reaches it".into(),
        ));
        self.say(Level::Error, events::WORKER_LEFT, &fields);
    }
}
