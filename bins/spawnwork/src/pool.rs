//! The workers as a whole: start, ready, death, reload, stop.

use crate::cgroups;
use crate::check::Check;
use crate::cli::{Balance, OnLimit, Ready};
use crate::control::Begun;
use crate::deaths::{self, By, Death, Oom};
use crate::events;
use crate::launch::{self, Generation, Given, Who, expand_with};
use crate::lifeline::{self, Lifeline};
use crate::node::channel;
use crate::node::sockets::HandOver;
use crate::output::{Stream, Which};
use crate::plan::{Node, Readiness};
use crate::reload::{Reload, Step, Trial};
use crate::respawn::Verdict;
use crate::run::{Leftover, Master, Phase, Token};
use crate::status::Frozen;
use crate::supervisor::Outcome;
use crate::worker::{Slot, State, Wait, Worker};
use common::child::{self, Child};
use common::control::Reply;
use common::error::Result;
use common::event::{Level, Value};
use common::exit::{End, Exit};
use common::lines::LastLines;
use common::sys::{Image, Step as StartStep};
use common::wait::Interest;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

const TERM: i32 = 15;
const KILL: i32 = 9;
const CONT: i32 = 18;

/// A reload under way.
#[derive(Debug)]
pub struct Reloading {
    /// Its steps.
    pub steps: Reload,
    /// What comes.
    pub target: Rc<Generation>,
    /// What serves until then.
    pub old: Rc<Generation>,
    /// When it was asked for.
    pub since: Instant,
    /// The way back after a failure in mid-switch.
    pub back: bool,
    /// `--check`, which comes before all else.
    pub check: Option<Box<Check>>,
}

impl Reloading {
    /// Where it is, in one word.
    #[must_use]
    pub fn step(&self) -> &'static str {
        match (&self.check, self.back) {
            (Some(_), _) => "check",
            (None, true) => "back",
            (None, false) => self.steps.step(),
        }
    }
}

/// Whether a worker may take connections as soon as it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    Open,
    Held,
}

/// A worker that has started as one of the newest counts as starting for this long: others need not
/// wait for one that hangs.
const STAGGER: Duration = Duration::from_secs(2);

/// A new worker that never had a client, and is not wanted any more, has this long to leave.
const ABORT: Duration = Duration::from_secs(5);

/// So many generations may finish what they had begun; the oldest of more is ended.
const MOST_DRAINING: usize = 3;

/// How long what can wait is put off for the exec of a worker that has just been started.
const EXEC: Duration = Duration::from_millis(5);

impl Master {
    // ---- start ----

    /// What workers need by now: ready ones, late ones, those that may start.
    pub(crate) fn on_workers_time(&mut self, now: Instant) {
        let ids: Vec<u64> = self.workers.keys().copied().collect();
        for id in ids {
            self.on_worker_time(id, now);
        }
        for index in 0..self.slots.len() {
            let due = match self.slots[index].wait {
                Wait::Backoff(until) | Wait::Held(until) => until <= now,
                Wait::Nothing | Wait::Queued => false,
            };
            if due {
                self.slots[index].wait = Wait::Queued;
                self.line.push_back(index);
            }
        }
        self.advance_reload(now);
        self.start_line(now);
    }

    fn on_worker_time(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        match worker.state {
            State::Starting => {
                if worker.shows_ready(&self.plan.ready, now) {
                    self.on_ready(id, now);
                } else if worker.is_late(&self.plan.ready, now) {
                    let hint = match self.plan.ready {
                        Readiness::Told(Ready::Listen) if worker.spoke => {
                            "; an app that never listens needs --ready alive:1s"
                        }
                        Readiness::Told(Ready::Listen) => {
                            "; it never spoke Node's cluster protocol: is it node? (--node)"
                        }
                        _ => "",
                    };
                    let error = format!(
                        "not ready within {}{hint}",
                        humantime_of(self.plan.ready_timeout)
                    );
                    worker.cause = Some(error.clone());
                    worker.by = Some(By::ReadyTimeout);
                    let fields = [
                        ("slot", worker.slot.into()),
                        ("generation", worker.generation.number.into()),
                        ("error", Value::from(error)),
                    ];
                    self.late.insert(id);
                    self.say(Level::Error, events::WORKER_FAILED, &fields);
                    self.kill(id, now);
                } else if let Readiness::Told(Ready::Exec(command)) = &self.plan.ready {
                    if worker.check.0.is_none() && worker.check.1 <= now {
                        let command = command.clone();
                        self.start_check(id, &command, now);
                    }
                }
            }
            State::Serving => {}
            State::Aborting => {
                if worker.kill_at.is_some_and(|at| at <= now) {
                    let fields = [
                        ("slot", worker.slot.into()),
                        ("pid", worker.child.pid().into()),
                        ("error", "SIGABRT did not end it".into()),
                    ];
                    self.say(Level::Warning, events::WORKER_KILLED, &fields);
                    self.kill(id, now);
                }
            }
            State::Draining => {
                if worker.kill_at.is_some_and(|at| at <= now) {
                    let patience = if worker.aborted {
                        self.plan.stop_timeout.min(ABORT)
                    } else {
                        self.plan.stop_timeout
                    };
                    let error = format!("not gone within {}", humantime_of(patience));
                    worker.cause = Some(error.clone());
                    worker.by = Some(By::StopTimeout);
                    let fields = [
                        ("slot", worker.slot.into()),
                        ("pid", worker.child.pid().into()),
                        ("error", Value::from(error)),
                    ];
                    self.say(Level::Warning, events::WORKER_KILLED, &fields);
                    self.kill(id, now);
                }
            }
            State::Killing => {
                if worker.kill_at.is_some_and(|at| at <= now) {
                    worker.kill();
                    worker.kill_at = Some(now + Duration::from_secs(1));
                }
            }
        }
    }

    fn start_check(&mut self, id: u64, command: &str, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let text = |text: String| std::ffi::CString::new(text).unwrap_or_default();
        let mut environment: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| {
                use std::os::unix::ffi::OsStringExt;
                let mut pair = name.into_vec();
                pair.push(b'=');
                pair.extend(value.into_vec());
                std::ffi::CString::new(pair).ok()
            })
            .collect();
        environment.push(text(format!("PID={}", worker.child.pid())));
        environment.push(text(format!("WORKER_ID={}", worker.slot)));
        let image = Image {
            candidates: vec![c"/bin/sh".to_owned()],
            arguments: vec![c"sh".to_owned(), c"-c".to_owned(), text(command.to_owned())],
            environment,
            descriptors: vec![(self.null.as_raw_fd(), 0), (2, 1), (2, 2)],
            own_group: true,
            identity: self
                .plan
                .user
                .as_ref()
                .map(|user| (user.uid, user.gid, user.groups.clone())),
            death_signal: Some(KILL),
            ..Image::default()
        };
        match Child::start(&image) {
            Ok(child) => worker.check = (Some(child), now),
            Err(_) => worker.check.1 = now + Duration::from_millis(200),
        }
    }

    fn starting_now(&self, now: Instant) -> usize {
        self.workers
            .values()
            .filter(|worker| {
                worker.state == State::Starting
                    && now.saturating_duration_since(worker.started) < STAGGER
            })
            .count()
    }

    /// When the line moves without an event.
    pub(crate) fn next_start(&self, now: Instant) -> Option<Instant> {
        if matches!(self.phase, Phase::Initial) && self.room() == 0 {
            // The end of one that leaves tells.
            return None;
        }
        if self.starting_now(now) < self.plan.parallel.max(1) {
            return Some(now);
        }
        self.workers
            .values()
            .filter(|worker| worker.state == State::Starting)
            .map(|worker| worker.started + STAGGER)
            .filter(|at| *at > now)
            .min()
    }

    /// How many more workers there may be: never more than two for a slot, those aside that finish for
    /// their clients.
    fn room(&self) -> usize {
        let there = self
            .workers
            .values()
            .filter(|worker| worker.stays() || worker.aborted)
            .count();
        (2 * self.slots.len()).saturating_sub(there)
    }

    pub(crate) fn start_line(&mut self, now: Instant) {
        while !self.line.is_empty() && self.starting_now(now) < self.plan.parallel.max(1) {
            if matches!(self.phase, Phase::Initial) && self.room() == 0 {
                return;
            }
            let Some(index) = self.line.pop_front() else {
                return;
            };
            let wanted = self
                .slots
                .get(index)
                .is_some_and(|slot| slot.wait == Wait::Queued && slot.current.is_none());
            if !wanted || matches!(self.phase, Phase::Stopping(_)) {
                continue;
            }
            self.slots[index].wait = Wait::Nothing;
            let generation = Rc::clone(&self.slots[index].generation);
            match self.start_worker(index, &generation, Beginning::Open) {
                Ok(id) => self.slots[index].current = Some(id),
                Err(error) => {
                    self.say(
                        Level::Error,
                        events::WORKER_FAILED,
                        &[
                            ("slot", index.into()),
                            ("generation", generation.number.into()),
                            ("error", error.to_string().into()),
                        ],
                    );
                    // fork's EAGAIN and ENOMEM, EMFILE: the others live on, this one waits.
                    self.after_death(index, None, Duration::ZERO, now);
                }
            }
        }
    }

    fn start_worker(
        &mut self,
        slot: usize,
        generation: &Rc<Generation>,
        beginning: Beginning,
    ) -> Result<u64> {
        use common::error::Doing;
        self.last_id += 1;
        let id = self.last_id;
        let last_exit = self
            .slots
            .get(slot)
            .and_then(|slot| slot.last_end)
            .map(|end| end.to_string());
        let who = Who {
            id,
            slot,
            workers: self.slots.len(),
            generation,
            last_exit: last_exit.as_deref(),
        };

        let mut kept: Vec<OwnedFd> = Vec::new();
        let mut streams = Vec::new();
        let mut given = Given {
            standard: [self.null.as_raw_fd(), 1, 2],
            ..Given::default()
        };
        for (number, which, piped) in [
            (1, Which::Out, self.plan.pipe_stdout),
            (2, Which::Err, self.plan.pipe_stderr),
        ] {
            if piped {
                // The pid is known only after the fork: %p is filled in then.
                let (stream, writer) =
                    Stream::open(which, id).doing("make a pipe for a worker's output")?;
                given.standard[number] = writer.as_raw_fd();
                given.readers.push(child::raw(&stream));
                kept.push(writer);
                streams.push(stream);
            }
        }
        let sockets = self.given_to(slot, generation.number)?;
        for ((_, fd), name) in sockets.iter().zip(&self.given_names) {
            given.sockets.push(fd.as_raw_fd());
            given.names.push(name);
        }
        given.compat =
            crate::compat::variables(&self.plan.compat, slot, generation.number, &sockets);
        let mut ours = None;
        if self.plan.node == Node::Direct {
            let (channel, theirs) = channel::pair().doing("make a channel for a worker")?;
            given.channel = Some(theirs.as_raw_fd());
            kept.push(theirs);
            ours = Some(channel);
        }
        let mut ready_fd = None;
        if let Readiness::Told(Ready::Fd(number)) = self.plan.ready {
            let (reader, writer) = child::output_pipe().doing("make a pipe for --ready fd:N")?;
            given.ready = Some((number, writer.as_raw_fd()));
            kept.push(writer);
            ready_fd = Some(reader);
        }
        given.notify = self.notify.as_ref().map(crate::notify::Notify::variable);
        given.rendezvous = self
            .rendezvous
            .as_ref()
            .map(|rendezvous| rendezvous.variable(id));
        given.preload = self
            .preload
            .as_ref()
            .map(|preload| preload.path().to_string_lossy().into_owned());
        // A new release that fails in its probation takes no request along: until the switch the old
        // one has them all. With surge 0 there is no old one in this slot.
        given.held =
            beginning == Beginning::Held && self.plan.node != Node::No && given.preload.is_some();
        let held = given.held;
        let lifeline = self.lifeline.as_ref().and_then(Lifeline::reader);
        given.lifeline = lifeline.as_ref().map(AsRawFd::as_raw_fd);
        let cgroup = self.cgroups.make(id);
        let directory = cgroup.as_ref().and_then(|cgroup| cgroup.open().ok());
        given.cgroup = directory.as_ref().map(AsRawFd::as_raw_fd);
        let started = launch::image(&self.plan, who, &given)
            .and_then(|image| Child::start(&image).doing("start a worker"));
        if let (Err(_), Some(cgroup)) = (&started, &cgroup) {
            cgroup.remove();
        }
        let child = started?;
        let cgroup = cgroup.map(|cgroup| cgroup.with_certainty(child.in_cgroup()));
        if let Some(reader) = lifeline {
            lifeline::tie(&reader, child.pid());
        }
        // Not the time of the event that led here: that may have been waiting for us.
        let started = Instant::now();
        drop(kept);

        let pid = child.pid();
        let count = streams.len();
        for mut stream in streams {
            stream.set_prefix(self.prefix(slot, generation.number, pid));
            let number = id * 2 + stream.which as u64;
            self.events
                .add(&stream, Token::Stream(number).number(), Interest::Read)?;
            self.streams.insert(number, stream);
        }
        if let Some(channel) = &ours {
            self.events
                .add(channel, Token::Channel(id).number(), Interest::Read)?;
        }
        if let Some(fd) = &ready_fd {
            self.events
                .add(fd, Token::Ready(id).number(), Interest::Read)?;
        }
        self.workers.insert(
            id,
            Worker {
                id,
                slot,
                generation: Rc::clone(generation),
                child,
                cgroup,
                state: State::Starting,
                started,
                lifetime: self.plan.max_lifetime.map(|length| {
                    common::time::jittered(length, self.plan.jitter, common::time::random())
                }),
                ready_by: started + self.plan.ready_timeout,
                ready_at: None,
                kill_at: None,
                cause: None,
                by: None,
                oom_kills: child::oom_kills(),
                aborted: false,
                owed: BTreeSet::new(),
                channel: ours,
                spoke: false,
                open_queries: 0,
                listening_since: None,
                disconnected: false,
                held,
                cut_off: false,
                notified: false,
                heard_by: None,
                shown: false,
                ready_fd,
                check: (None, started),
                last: LastLines::new(20, 512),
                streams: count,
            },
        );
        self.say(
            Level::Info,
            events::WORKER_STARTED,
            &[
                ("slot", slot.into()),
                ("pid", pid.into()),
                ("generation", generation.number.into()),
            ],
        );
        Ok(id)
    }

    fn prefix(&self, slot: usize, generation: u32, pid: i32) -> Vec<u8> {
        expand_with(&self.plan.prefix, slot, generation, Some(pid)).into_bytes()
    }

    /// What stands before each line of a worker.
    pub(crate) fn prefix_of(&self, worker: &Worker) -> Vec<u8> {
        self.prefix(worker.slot, worker.generation.number, worker.child.pid())
    }

    // ---- ready ----

    pub(crate) fn on_ready(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.state != State::Starting {
            return;
        }
        worker.state = State::Serving;
        worker.ready_at = Some(now);
        worker.heard_by = self.plan.watchdog.map(|length| now + length);
        worker.ready_fd = None;
        if let (Some(check), _) = &worker.check {
            check.signal_group(KILL);
        }
        let (slot, pid, generation) = (worker.slot, worker.child.pid(), worker.generation.number);
        let took = now.saturating_duration_since(worker.started);
        let fields = [
            ("slot", slot.into()),
            ("pid", pid.into()),
            ("generation", generation.into()),
            ("took", took.into()),
        ];
        self.ever_ready = true;
        self.late.clear();
        self.say(Level::Info, events::WORKER_READY, &fields);
        let is_next = self
            .slots
            .get(slot)
            .is_some_and(|slot| slot.next == Some(id));
        if let (Phase::Reloading(reloading), true) = (&mut self.phase, is_next) {
            reloading.steps.ready(slot, now);
            let canary = !reloading.back && reloading.steps.canary() == Some(slot);
            let ready = reloading.steps.ready_count();
            if canary {
                self.say(
                    Level::Info,
                    events::RELOAD_CANARY,
                    &[("slot", slot.into()), ("pid", pid.into())],
                );
                let took = common::time::say(took);
                self.progress(generation, &format!("canary ready in {took}"), now);
                if let Some(path) = self.plan.probe.clone() {
                    self.start_probe(id, &path, now);
                }
            } else {
                let all = self.slots.len();
                self.progress(generation, &format!("{ready}/{all} ready"), now);
            }
        }
        if is_next && self.recycling.replaces(slot) {
            self.recycled(slot, now);
        }
        self.send_owed(id);
        self.first_generation_serves(now);
    }

    /// Whether all slots of the first generation serve by now.
    pub(crate) fn first_generation_serves(&mut self, now: Instant) {
        let all = self.slots.iter().all(|slot| {
            slot.current
                .and_then(|id| self.workers.get(&id))
                .is_some_and(|worker| worker.state == State::Serving)
        });
        if all && matches!(self.phase, Phase::Initial) {
            self.phase = Phase::Running;
            self.say_serving(now, self.started);
            let generation = self.generation.number;
            let reply = Reply::Ok(format!("generation {generation} serves"));
            self.reload_ended(generation, &reply, &[], now);
        }
    }

    fn say_serving(&mut self, now: Instant, since: Instant) {
        self.served = true;
        let fields = [
            ("generation", self.generation.number.into()),
            ("workers", self.slots.len().into()),
            ("took", now.saturating_duration_since(since).into()),
        ];
        self.say(Level::Info, events::GENERATION_SERVING, &fields);
        self.drop_returned();
    }

    // ---- death ----

    pub(crate) fn on_worker_end(&mut self, id: u64, now: Instant) {
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
        let end = worker.child.ended();
        let uptime = now.saturating_duration_since(worker.started);
        let slot = worker.slot;
        let was_current = self
            .slots
            .get(slot)
            .is_some_and(|one| one.current == Some(id));
        let was_next = self.slots.get(slot).is_some_and(|one| one.next == Some(id));
        let expected = !worker.stays();
        let oom = match (worker.oom_kills, child::oom_kills()) {
            (Some(before), Some(after)) if after > before => Oom::Counted,
            _ => Oom::No,
        };
        let by = deaths::judge(end, worker.by, oom);
        *self.deaths.entry(by).or_default() += 1;
        if let Some(one) = self.slots.get_mut(slot) {
            let death = Death {
                pid: worker.child.pid(),
                generation: worker.generation.number,
                end,
                by,
                uptime,
                at: now,
            };
            one.deaths.note(death, &worker.last);
            one.last_end = end;
            if was_current {
                one.current = None;
            }
            if was_next {
                one.next = None;
            }
        }
        let mut fields: Vec<(&str, Value)> = vec![
            ("slot", slot.into()),
            ("pid", worker.child.pid().into()),
            ("generation", worker.generation.number.into()),
        ];
        match end {
            Some(End::Exited(status)) => fields.push(("status", status.into())),
            Some(End::Killed(signal)) => {
                fields.push(("signal", common::signal::name(signal).into()))
            }
            None => {}
        }
        fields.push(("uptime", uptime.into()));
        fields.push(("by", by.name().into()));
        if let Some(cause) = &worker.cause {
            fields.push(("error", cause.clone().into()));
        }
        let unexpected = worker.stays() || worker.cause.is_some();
        if let Some(text) = last_words(&worker.last).filter(|_| unexpected) {
            fields.push(("stderr", text.into()));
        }
        self.say(
            if unexpected {
                Level::Warning
            } else {
                Level::Info
            },
            events::WORKER_EXITED,
            &fields,
        );

        let failure = worker.child.start_failure();
        if let Some(failure) = failure {
            let program = self.plan.command.first().cloned().unwrap_or_default();
            let error = failure.describe(&program);
            self.say(
                Level::Error,
                events::WORKER_FAILED,
                &[
                    ("slot", slot.into()),
                    ("generation", worker.generation.number.into()),
                    ("error", error.clone().into()),
                ],
            );
            worker.cause.get_or_insert(error);
            if !self.ever_ready && matches!(self.phase, Phase::Initial) {
                let exit = match (failure.step, failure.errno) {
                    (StartStep::Exec, 2 | 20) => Exit::NotFound,
                    // E2BIG: argv or environment too large, which no other program would cure.
                    (StartStep::Exec, 7) => Exit::Fault,
                    (StartStep::Exec, _) => Exit::NotExecutable,
                    _ => Exit::Fault,
                };
                self.stop(exit, now);
            }
        }
        let zero_before_ready = end == Some(End::Exited(0)) && worker.ready_at.is_none();
        let why = worker.cause.clone().unwrap_or_else(|| {
            end.map_or_else(
                || "ended".to_owned(),
                |end| format!("ended with {end} before its time"),
            )
        });
        let words = deaths::spoken(&worker.last);

        if self.recycling.replaces(slot) && (was_next || was_current) {
            if was_next {
                if !expected || worker.cause.is_some() {
                    let pid = worker.child.pid();
                    self.recycle_failed(&format!("worker {slot} (pid {pid}) {why}"), now);
                }
            } else {
                // It did not wait for its replacement, which has the slot by that.
                self.recycled(slot, now);
            }
        } else if was_next && (!expected || worker.cause.is_some()) {
            self.reload_failed(
                &format!("worker {slot} (pid {}) {why}", worker.child.pid()),
                words,
                now,
            );
        } else if was_current && !expected && self.mass_death(slot, &worker, now) {
            self.roll_back(words, now);
        } else if was_current
            && (!expected || worker.cause.is_some())
            && !matches!(self.phase, Phase::Stopping(_))
        {
            if !self.ever_ready
                && zero_before_ready
                && matches!(self.phase, Phase::Initial)
                && self.all_left_at_once()
            {
                self.say(Level::Error, events::WORKER_FAILED, &[("generation", 1u32.into()), ("error", "every worker ended with status 0 before it was ready; a job that ends is not a service".into())]);
                self.stop(Exit::No, now);
            } else if !self.ever_ready
                && matches!(self.phase, Phase::Initial)
                && self.nobody_in_time(id)
            {
                // Each has had its --ready-timeout and the next would have no other end.
                self.stop(Exit::No, now);
            } else {
                self.after_death(slot, end, uptime, now);
                // At once, not at the next turn of the loop: this is the way back after a kill -9.
                self.start_line(now);
            }
        }
        self.start_emptied(slot, now);
        // The look through all processes would compete with the new one for the processor.
        let next = self.slots.get(slot).and_then(|one| one.current);
        if let Some(next) = next.and_then(|id| self.workers.get(&id)) {
            next.child.let_execute(EXEC);
        }
        // Many may end at once: one look for all of them follows.
        self.dead.push(worker);
        self.drop_sockets();
        self.close_removed();
    }

    /// The worker of the newest generation died, and with it more than half of its slots in their time
    /// of trial.
    fn mass_death(&mut self, slot: usize, worker: &Worker, now: Instant) -> bool {
        let newest = worker.generation.number == self.generation.number;
        match &mut self.trial {
            Some((trial, _)) if newest && matches!(self.phase, Phase::Running) => {
                trial.died(slot, now)
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
        let bad = self.generation.number;
        let error = format!(
            "more than half of its workers died within {} of the switch; generation {} comes back",
            humantime_of(self.plan.probation * 2),
            old.number
        );
        let mut fields = vec![
            ("generation", bad.into()),
            ("error", Value::from(error.clone())),
        ];
        if let Some(text) = in_one_line(&words) {
            fields.push(("stderr", text.into()));
        }
        self.reloads.rolled_back += 1;
        self.supervisor.reload_ended(Outcome::Failed);
        self.say(Level::Error, events::RELOAD_ROLLED_BACK, &fields);
        self.frozen = Some(Frozen {
            generation: bad,
            error,
            words,
            at: now,
        });
        self.generation = Rc::clone(&old);
        let mut alive = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.generation = Rc::clone(&old);
            slot.history.clear();
            if slot.current.is_some() {
                alive.push(index);
            } else if slot.wait != Wait::Queued {
                slot.wait = Wait::Queued;
                self.line.push_back(index);
            }
        }
        if !alive.is_empty() {
            // Each slot as soon as its old release serves: what it has now may die at any moment.
            let rules = crate::reload::Rules {
                surge: (self.slots.len() - 1).max(1),
                ..self.plan.rules(self.slots.len())
            };
            self.phase = Phase::Reloading(Reloading {
                steps: Reload::back(self.slots.len(), &alive, rules),
                target: Rc::clone(&old),
                old,
                since: now,
                back: true,
                check: None,
            });
            self.advance_reload(now);
        }
        self.start_line(now);
    }

    pub(crate) fn probe_passed(&mut self, status: u16, took: Duration, now: Instant) {
        let Phase::Reloading(reloading) = &mut self.phase else {
            return;
        };
        reloading.steps.probed();
        let generation = reloading.target.number;
        let text = format!("probe answered {status} in {}", common::time::say(took));
        self.progress(generation, &text, now);
        self.advance_reload(now);
    }

    pub(crate) fn probe_failed(&mut self, id: u64, why: &str, now: Instant) {
        let path = self.plan.probe.clone().unwrap_or_default();
        if let Some(worker) = self.workers.get(&id) {
            let (slot, pid) = (worker.slot, worker.child.pid());
            let words = deaths::spoken(&worker.last);
            let why = format!("worker {slot} (pid {pid}) failed the probe {path}: {why}");
            self.reload_failed(&why, words, now);
        }
    }

    /// Slots that wait, for whatever reason, are started now.
    pub(crate) fn start_waiting(&mut self, now: Instant) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.wait, Wait::Backoff(_) | Wait::Held(_)) {
                slot.wait = Wait::Queued;
                self.line.push_back(index);
            }
        }
        self.start_line(now);
    }

    /// Of too many generations that drain, the oldest has had its time.
    fn limit_draining(&mut self, now: Instant) {
        let old: BTreeSet<u32> = self
            .workers
            .values()
            .filter(|worker| worker.state == State::Draining && !worker.aborted)
            .map(|worker| worker.generation.number)
            .filter(|number| *number != self.generation.number)
            .collect();
        let Some(oldest) = old.first().filter(|_| old.len() > MOST_DRAINING) else {
            return;
        };
        let ids: Vec<u64> = self
            .workers
            .values()
            .filter(|worker| worker.state == State::Draining && worker.generation.number == *oldest)
            .map(|worker| worker.id)
            .collect();
        for id in ids {
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            let error = format!("{MOST_DRAINING} newer generations are draining, too");
            worker.cause = Some(error.clone());
            worker.by = Some(By::StopTimeout);
            let fields = [
                ("slot", worker.slot.into()),
                ("pid", worker.child.pid().into()),
                ("error", Value::from(error)),
            ];
            self.say(Level::Warning, events::WORKER_KILLED, &fields);
            self.kill(id, now);
        }
    }

    /// Whether `id`, which has just ended, and all others of the first generation were late.
    fn nobody_in_time(&mut self, id: u64) -> bool {
        if self.late.contains(&id) {
            let others = self.workers.keys().all(|other| self.late.contains(other));
            return others && self.line.is_empty();
        }
        false
    }

    fn all_left_at_once(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.current.is_none() && slot.last_end == Some(End::Exited(0)))
    }

    /// The slot's worker died: when is the next one due?
    fn after_death(&mut self, index: usize, end: Option<End>, uptime: Duration, now: Instant) {
        let random = common::time::random();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        slot.restarts += 1;
        let verdict = slot
            .history
            .died(&self.plan.respawn, end, uptime, now, random);
        match verdict {
            Verdict::AtOnce => {
                slot.wait = Wait::Queued;
                self.line.push_back(index);
            }
            Verdict::After(wait) => {
                slot.wait = Wait::Backoff(now + wait);
                self.say(
                    Level::Info,
                    events::WORKER_BACKOFF,
                    &[("slot", index.into()), ("wait", wait.into())],
                );
            }
            Verdict::Over(wait) => {
                slot.wait = Wait::Held(now + wait);
                self.say(
                    Level::Error,
                    events::WORKER_HELD,
                    &[
                        ("slot", index.into()),
                        ("wait", wait.into()),
                        ("error", "over its respawn limit".into()),
                    ],
                );
                let nobody = self
                    .slots
                    .iter()
                    .all(|slot| matches!(slot.wait, Wait::Held(_)));
                if self.plan.on_limit == OnLimit::Exit || nobody {
                    self.stop(Exit::No, now);
                }
            }
        }
    }

    /// What workers that have ended left behind in their cgroups, or else in their process groups or as
    /// orphans, gets TERM, and KILL when it is time. The number of a process group is safe as long as its
    /// leader is not reaped, which comes last.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let mut dead = std::mem::take(&mut self.dead);
        if dead.is_empty() {
            return;
        }
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
            .collect();
        let trace = |worker: &Worker| child::Trace {
            group: worker.child.pid(),
            marks: vec![
                format!("SPAWNWORK_PID={}", std::process::id()),
                format!("WORKER_ID={}", worker.slot),
                format!("SPAWNWORK_GENERATION={}", worker.generation.number),
            ],
        };
        // Whoever was born in its cgroup has left everything there.
        let elsewhere = |worker: &&Worker| !worker.cgroup.as_ref().is_some_and(|one| one.certain());
        let traces: Vec<child::Trace> = dead.iter().filter(elsewhere).map(trace).collect();
        let (mut peers, cgroups) =
            cgroups::left(dead.iter_mut().filter_map(|worker| worker.cgroup.take()));
        if !traces.is_empty() {
            peers.extend(child::leftovers(&traces, |pid| known.contains(&pid)));
        }
        if !peers.is_empty() || !cgroups.is_empty() {
            for peer in &peers {
                peer.signal(TERM);
                peer.signal(CONT);
            }
            self.leftovers.push(Leftover {
                peers,
                cgroups,
                kill_at: now + self.plan.stop_timeout,
            });
        }
        for worker in dead {
            let _ = worker.child.reap();
        }
    }

    // ---- stop ----

    /// Asks a worker to go.
    pub(crate) fn leave(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if !worker.stays() {
            return;
        }
        let served = worker.listening_since.is_some();
        worker.state = State::Draining;
        worker.by.get_or_insert(By::Asked);
        worker.kill_at = Some(now + self.plan.stop_timeout);
        let fields = [
            ("slot", worker.slot.into()),
            ("pid", worker.child.pid().into()),
        ];
        let by_channel = worker.channel.is_some() && served && self.plan.stop_signal.is_none();
        if !by_channel && !worker.cut_off {
            worker
                .child
                .signal_group(self.plan.stop_signal.unwrap_or(TERM));
        }
        // A stopped worker could not hear it.
        worker.child.signal_group(CONT);
        self.say(Level::Info, events::WORKER_STOPPING, &fields);
        if by_channel {
            self.disconnect(id);
        }
    }

    fn kill(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.state = State::Killing;
        worker.kill_at = Some(now + Duration::from_secs(1));
        worker.kill();
    }

    pub(crate) fn kill_all(&mut self, cause: &str, now: Instant) {
        let ids: Vec<u64> = self.workers.keys().copied().collect();
        for id in ids {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.cause.get_or_insert_with(|| cause.to_owned());
                worker.by = Some(By::Operator);
            }
            self.kill(id, now);
        }
        for leftover in &mut self.leftovers {
            leftover.kill_at = now;
        }
        self.orphans.hurry(now);
    }

    pub(crate) fn stop(&mut self, exit: Exit, now: Instant) {
        if matches!(self.phase, Phase::Stopping(_)) {
            return;
        }
        if let Phase::Reloading(reloading) = &self.phase {
            reloading.check.iter().for_each(|check| check.abandon());
        }
        self.drop_recycle("we are stopping", now);
        self.drop_probe();
        self.upgrade
            .iter()
            .for_each(crate::reexec::Upgrade::abandon);
        self.phase = Phase::Stopping(exit);
        self.no_result_will_come(exit, now);
        self.queued_reload = false;
        self.line.clear();
        for slot in &mut self.slots {
            slot.wait = Wait::Nothing;
            slot.next = None;
        }
        let ids: Vec<u64> = self.workers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.leave(id, now));
    }

    // ---- reload ----

    pub(crate) fn reload(&mut self, now: Instant) -> Begun {
        self.supervisor.reload_requested();
        match &self.phase {
            Phase::Stopping(_) => {
                self.say(
                    Level::Warning,
                    events::RELOAD_REFUSED,
                    &[("error", "we are stopping".into())],
                );
                self.reloads.refused += 1;
                return Begun::Refused("we are stopping".to_owned());
            }
            Phase::Reloading(reloading)
                if reloading.back || !reloading.steps.switched().is_empty() =>
            {
                self.queued_reload = true;
                self.say(Level::Info, events::RELOAD_QUEUED, &[]);
                return Begun::Queued;
            }
            Phase::Reloading(_) | Phase::Initial | Phase::Running => {}
        }
        let target = match Generation::new(self.last_generation + 1, &self.plan) {
            Ok(generation) => Rc::new(generation),
            Err(error) => {
                return self.refuse(error.to_string());
            }
        };
        self.last_generation += 1;
        self.drop_recycle("a reload has begun", now);
        let old = match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Reloading(reloading) => {
                self.say(
                    Level::Info,
                    events::RELOAD_SUPERSEDED,
                    &[("generation", reloading.target.number.into())],
                );
                self.reloads.superseded += 1;
                if let Some(check) = &reloading.check {
                    check.abandon();
                }
                self.drop_probe();
                self.drop_next(now);
                self.reload_superseded(reloading.target.number, now);
                reloading.old
            }
            Phase::Initial => {
                // Nobody serves yet: the newest code is the first generation.
                self.phase = Phase::Initial;
                self.say(
                    Level::Info,
                    events::RELOAD_STARTED,
                    &[("generation", target.number.into())],
                );
                self.reload_superseded(self.generation.number, now);
                let ids: Vec<u64> = self
                    .slots
                    .iter_mut()
                    .filter_map(|slot| slot.current.take())
                    .collect();
                ids.into_iter().for_each(|id| self.call_off(id, now));
                self.line.clear();
                for (index, slot) in self.slots.iter_mut().enumerate() {
                    *slot = Slot::new(&target);
                    self.line.push_back(index);
                }
                self.generation = target;
                return Begun::Started(self.last_generation);
            }
            Phase::Running | Phase::Stopping(_) => Rc::clone(&self.generation),
        };
        self.say(
            Level::Info,
            events::RELOAD_STARTED,
            &[("generation", target.number.into())],
        );
        let check = match self.plan.check.clone() {
            Some(command) => match self.start_check_of(&command, &target, now) {
                Ok(check) => Some(Box::new(check)),
                Err(error) => return self.refuse(error.to_string()),
            },
            None => None,
        };
        let number = target.number;
        let steps = Reload::new(self.slots.len(), self.plan.rules(self.slots.len()));
        self.phase = Phase::Reloading(Reloading {
            steps,
            target,
            old,
            since: now,
            back: false,
            check,
        });
        self.advance_reload(now);
        Begun::Started(number)
    }

    fn refuse(&mut self, why: String) -> Begun {
        self.supervisor.reload_ended(Outcome::Refused);
        self.reloads.refused += 1;
        self.say(
            Level::Error,
            events::RELOAD_REFUSED,
            &[("error", why.clone().into())],
        );
        Begun::Refused(why)
    }

    /// Asks a worker to go that has no client and never will.
    pub(crate) fn call_off(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.aborted = worker.held || worker.state == State::Starting;
        self.leave(id, now);
        if let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.aborted) {
            let limit = now + self.plan.stop_timeout.min(ABORT);
            worker.kill_at = worker.kill_at.map(|at| at.min(limit));
        }
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

    pub(crate) fn advance_reload(&mut self, now: Instant) {
        let room = self.room();
        let Phase::Reloading(reloading) = &mut self.phase else {
            return;
        };
        if reloading.check.is_some() {
            return;
        }
        let steps = reloading.steps.advance(now, room);
        let target = Rc::clone(&reloading.target);
        let switching = steps
            .iter()
            .filter(|step| matches!(step, Step::Switch(_)))
            .count();
        let mut replaced = reloading.steps.switched().len().saturating_sub(switching);
        for step in steps {
            if !matches!(self.phase, Phase::Reloading(_)) {
                return;
            }
            match step {
                Step::Start(slot) => self.start_next(slot, &target, now),
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
                    let Some(slot) = self.slots.get_mut(index) else {
                        continue;
                    };
                    let old = std::mem::replace(&mut slot.current, slot.next.take());
                    slot.generation = Rc::clone(&target);
                    slot.history.clear();
                    slot.wait = Wait::Nothing;
                    let new = slot.current;
                    if let Some(new) = new {
                        self.let_accept(new, now);
                    }
                    if let Some(old) = old {
                        self.leave(old, now);
                    }
                    replaced += 1;
                    let text = format!("{replaced}/{} replaced", self.slots.len());
                    self.progress(target.number, &text, now);
                }
                Step::Commit => self.commit(now),
            }
        }
    }

    /// A slot that a reload had to empty first is empty now.
    fn start_emptied(&mut self, slot: usize, now: Instant) {
        if let Phase::Reloading(reloading) = &mut self.phase {
            if reloading.steps.emptied(slot) {
                let target = Rc::clone(&reloading.target);
                self.start_next(slot, &target, now);
            }
        }
    }

    /// The worker that is to take another's place: known code, which accepts as soon as it listens.
    pub(crate) fn start_replacement(
        &mut self,
        slot: usize,
        generation: &Rc<Generation>,
    ) -> Result<u64> {
        self.start_worker(slot, generation, Beginning::Open)
    }

    fn start_next(&mut self, slot: usize, target: &Rc<Generation>, now: Instant) {
        let beginning = if self.plan.rules(self.slots.len()).surge > 0 {
            Beginning::Held
        } else {
            Beginning::Open
        };
        match self.start_worker(slot, target, beginning) {
            Ok(id) => {
                if let Some(slot) = self.slots.get_mut(slot) {
                    slot.next = Some(id);
                }
            }
            Err(error) => self.reload_failed(&error.to_string(), Vec::new(), now),
        }
    }

    fn commit(&mut self, now: Instant) {
        let Phase::Reloading(reloading) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return;
        };
        self.generation = Rc::clone(&reloading.target);
        self.trial = None;
        if !reloading.back {
            self.frozen = None;
            self.reloads.committed += 1;
            let until = now + self.plan.probation * 2;
            self.trial = Some((Trial::new(self.slots.len(), until), reloading.old));
            self.supervisor.reload_ended(Outcome::Committed);
            let fields = [
                ("generation", reloading.target.number.into()),
                ("workers", self.slots.len().into()),
                (
                    "took",
                    now.saturating_duration_since(reloading.since).into(),
                ),
            ];
            self.say(Level::Info, events::RELOAD_COMMITTED, &fields);
            let reply = Reply::Ok(format!(
                "generation {} serves: {} workers in {}",
                reloading.target.number,
                self.slots.len(),
                humantime_of(now.saturating_duration_since(reloading.since))
            ));
            self.reload_ended(reloading.target.number, &reply, &[], now);
        }
        self.say_serving(now, reloading.since);
        // A slot that was in its backoff has a worker now, or is to get one of the new code.
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.current.is_none() && slot.wait == Wait::Nothing {
                slot.wait = Wait::Queued;
                self.line.push_back(index);
            }
        }
        self.limit_draining(now);
        self.drop_sockets();
        self.resize(now);
        self.reload_from_queue(now);
    }

    /// Any failure before the switch: the new go, the old stay, and everybody may know.
    fn reload_failed(&mut self, why: &str, words: Vec<String>, now: Instant) {
        let Phase::Reloading(reloading) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return;
        };
        self.drop_probe();
        self.drop_next(now);
        let mut fields = vec![
            ("generation", reloading.target.number.into()),
            (
                "error",
                Value::from(format!(
                    "{why}; generation {} goes on",
                    reloading.old.number
                )),
            ),
        ];
        if let Some(text) = in_one_line(&words) {
            fields.push(("stderr", text.into()));
        }
        self.say(Level::Error, events::RELOAD_FAILED, &fields);
        // On the way back it is the old release that failed, and the freeze names the new one.
        if !reloading.back {
            let (failed, old) = (reloading.target.number, reloading.old.number);
            self.reloads.failed += 1;
            self.supervisor.reload_ended(Outcome::Failed);
            let reply = Reply::Err(
                Exit::No.code(),
                format!("generation {failed} failed: {why}; generation {old} goes on"),
            );
            self.reload_ended(failed, &reply, &words, now);
            self.frozen = Some(Frozen {
                generation: failed,
                error: why.to_owned(),
                words,
                at: now,
            });
        }
        let switched = reloading.steps.switched();
        if !switched.is_empty() && !reloading.back {
            let rules = self.plan.rules(self.slots.len());
            // An emptied slot has nobody: start there, and beside the others.
            let rules = crate::reload::Rules {
                surge: rules.surge.max(1),
                ..rules
            };
            let steps = Reload::back(self.slots.len(), &switched, rules);
            let target = Rc::clone(&reloading.old);
            self.phase = Phase::Reloading(Reloading {
                steps,
                target: Rc::clone(&target),
                old: target,
                since: now,
                back: true,
                check: None,
            });
            self.advance_reload(now);
        } else {
            for index in 0..self.slots.len() {
                let slot = &mut self.slots[index];
                if slot.current.is_none() && slot.wait == Wait::Nothing {
                    slot.wait = Wait::Queued;
                    self.line.push_back(index);
                }
            }
            self.resize(now);
            self.reload_from_queue(now);
        }
        self.drop_sockets();
    }

    // ---- status ----

    pub(crate) fn status(&mut self, now: Instant) {
        let mut lines: Vec<Vec<(&str, Value)>> = Vec::new();
        let mut head: Vec<(&str, Value)> = vec![
            ("generation", self.generation.number.into()),
            ("workers", self.slots.len().into()),
        ];
        head.push(("sweep", self.cgroups.sweep().name().into()));
        if let Some(frozen) = &self.frozen {
            head.push(("frozen", frozen.generation.into()));
        }
        if self.lost > 0 {
            head.push(("lost", self.lost.into()));
        }
        lines.push(head);
        for (index, slot) in self.slots.iter().enumerate() {
            let mut line: Vec<(&str, Value)> = vec![("slot", index.into())];
            match slot.current.and_then(|id| self.workers.get(&id)) {
                Some(worker) => {
                    line.push(("pid", worker.child.pid().into()));
                    line.push(("generation", worker.generation.number.into()));
                    line.push(("state", worker.state.name().into()));
                    line.push((
                        "uptime",
                        now.saturating_duration_since(worker.started).into(),
                    ));
                }
                None => {
                    let state = match slot.wait {
                        Wait::Backoff(_) => "backoff",
                        Wait::Held(_) => "held",
                        Wait::Nothing | Wait::Queued => "waiting",
                    };
                    line.push(("state", state.into()));
                }
            }
            line.push(("restarts", slot.restarts.into()));
            lines.push(line);
        }
        for worker in self.workers.values() {
            let Some(slot) = self.slots.get(worker.slot) else {
                continue;
            };
            if slot.current != Some(worker.id) {
                lines.push(vec![
                    ("slot", worker.slot.into()),
                    ("pid", worker.child.pid().into()),
                    ("generation", worker.generation.number.into()),
                    ("state", worker.state.name().into()),
                ]);
            }
        }
        for (address, _) in &self.given {
            lines.push(vec![("address", address.to_string().into())]);
        }
        for (_, shared) in self.sockets.iter().filter(|(_, shared)| !shared.ours) {
            lines.push(vec![
                ("address", shared.name.clone().into()),
                ("workers", shared.holders.len().into()),
            ]);
        }
        for line in lines {
            self.say(Level::Warning, events::STATUS, &line);
        }
    }

    /// Sockets that no worker holds and none is to hold: of a generation that is gone, or of one that
    /// never came to serve. Those whose holders died are kept for the next ones.
    fn drop_sockets(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let serving = self.generation.number;
        let alive = |number: u32| {
            self.workers
                .values()
                .any(|worker| worker.generation.number == number)
        };
        let dropped = self.sockets.drop_unheld(|shared| {
            (shared.generation < serving && !alive(shared.generation))
                || (shared.made_by > serving && !alive(shared.made_by))
        });
        self.close_all_unasked();
        for (_, shared) in dropped {
            self.forget_socket(&shared);
            self.supervisor.forget(shared.stored.as_deref());
            self.say(
                Level::Info,
                events::SOCKET_DROPPED,
                &[("address", shared.name.into())],
            );
        }
    }

    pub(crate) fn round_robin(&self) -> bool {
        self.plan.balance == Balance::RoundRobin
    }

    /// Whether a socket's connections may be accepted now.
    pub(crate) fn may_accept(hand_over: &HandOver, now: Instant) -> bool {
        hand_over.turns.has_room(now)
    }
}

/// The last lines of stderr in one.
fn last_words(last: &LastLines) -> Option<String> {
    in_one_line(&deaths::spoken(last))
}

/// Lines in one, for an event: the end of them, which tells most.
pub(crate) fn in_one_line(lines: &[String]) -> Option<String> {
    let text = lines.join(" | ");
    if text.is_empty() {
        return None;
    }
    // An event line has 4096 bytes for everything, and the end of a report tells more than its start.
    let mut from = text.len().saturating_sub(2500);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    Some(text[from..].to_owned())
}

fn humantime_of(length: Duration) -> String {
    common::time::say(length)
}
