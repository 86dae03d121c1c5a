//! What the pool has decided, done: processes start, get signals, and clients get answers.

use crate::cli::Ready;
use crate::control::Begun;
use crate::launch::{self, Given, Who, expand_with};
use crate::lifeline::Lifeline;
use crate::node::channel;
use crate::output::{Stream, Which};
use crate::plan::{Node, Readiness};
use crate::pool::{Asked, Beginning, Effect, State};
use crate::run::{Master, Token};
use crate::worker::Worker;
use common::child::{self, Child};
use common::error::{Doing, Error, Result};
use common::event::Level;
use common::exit::Exit;
use common::lines::LastLines;
use common::sys::Image;
use common::wait::Interest;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

const ABRT: i32 = 6;
const KILL: i32 = 9;
const TERM: i32 = 15;
const CONT: i32 = 18;

impl Master {
    /// Does what the pool wants to be done, and what follows from that.
    pub(crate) fn act(&mut self, now: Instant) {
        while let Some(effect) = self.pool.next_effect() {
            self.perform(effect, now);
        }
        let pool = &self.pool;
        self.generations.retain(|number, _| pool.needs(*number));
    }

    fn perform(&mut self, effect: Effect, now: Instant) {
        match effect {
            Effect::Start {
                id,
                slot,
                generation,
                beginning,
            } => {
                // Not the time of the event that led here: that may have been waiting for us.
                match self.start_worker(id, slot, generation, beginning) {
                    Ok(pid) => self.pool.started(id, pid, Instant::now()),
                    Err(error) => self.pool.start_failed(id, &error.to_string(), now),
                }
            }
            Effect::Stop(id) => self.ask_to_go(id),
            Effect::Abort(id) => {
                if let Some(worker) = self.workers.get(&id) {
                    worker.child.signal_group(ABRT);
                    // A stopped worker could not hear it.
                    worker.child.signal_group(CONT);
                }
            }
            Effect::Kill(id) => {
                if let Some(worker) = self.workers.get(&id) {
                    worker.kill();
                }
            }
            Effect::Accept(id) => self.let_accept(id, now),
            Effect::Check(generation) => self.start_check_of(generation, now),
            Effect::DropCheck => self.drop_check(),
            Effect::Probe(id) => {
                if let Some(path) = self.plan.probe.clone() {
                    self.start_probe(id, &path, now);
                }
            }
            Effect::DropProbe => self.drop_probe(),
            Effect::Say(level, event, fields) => self.say(level, event, &fields),
            Effect::Progress(generation, text) => self.progress(generation, &text, now),
            Effect::Result(generation, reply, words) => {
                self.reload_ended(generation, &reply, &words, now);
            }
            Effect::Restarted(reply) => self.restarts_ended(&reply, now),
            Effect::Outcome(outcome) => self.supervisor.reload_ended(outcome),
            Effect::Serving => self.drop_returned(),
            Effect::NextReload => {
                // The number of workers first: a reload counts them when it begins.
                self.resize(now);
                self.reload_from_queue(now);
            }
            Effect::Tidy => {
                self.drop_sockets();
                self.close_removed();
            }
            Effect::NoResult(exit) => self.no_result_will_come(exit, now),
        }
    }

    // ---- start ----

    fn start_worker(
        &mut self,
        id: u64,
        slot: usize,
        number: u32,
        beginning: Beginning,
    ) -> Result<i32> {
        let generation = Rc::clone(self.generation(number)?);
        let last_exit = self
            .pool
            .slots
            .get(slot)
            .and_then(|slot| slot.last_end)
            .map(|end| end.to_string());
        let who = Who {
            id,
            slot,
            workers: self.pool.slots.len(),
            generation: &generation,
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
        let sockets = self.given_to(slot, number)?;
        for ((_, fd), name) in sockets.iter().zip(&self.given_names) {
            given.sockets.push(fd.as_raw_fd());
            given.names.push(name);
        }
        given.compat = crate::compat::variables(&self.plan.compat, slot, number, &sockets);
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
        if let Some(preload) = self.preload.as_mut() {
            preload.renew()?;
        }
        given.preload = self
            .preload
            .as_ref()
            .map(|preload| preload.path().to_string_lossy().into_owned());
        given.held = beginning == Beginning::Held;
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
        let started = Instant::now();
        drop(kept);

        let pid = child.pid();
        let count = streams.len();
        for mut stream in streams {
            stream.set_prefix(self.prefix(slot, number, pid));
            let token = id * 2 + stream.which as u64;
            self.events
                .add(&stream, Token::Stream(token).number(), Interest::Read)?;
            self.streams.insert(token, stream);
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
                generation: number,
                child,
                cgroup,
                started,
                ready_by: started + self.plan.ready_timeout,
                oom_kills: child::oom_kills(),
                owed: BTreeSet::new(),
                channel: ours,
                spoke: false,
                open_queries: 0,
                listening_since: None,
                disconnected: false,
                cut_off: false,
                notified: false,
                heard_by: None,
                shown: false,
                ready_fd,
                check: (None, started),
                looked: None,
                last: LastLines::new(20, 512),
                streams: count,
            },
        );
        Ok(pid)
    }

    fn prefix(&self, slot: usize, generation: u32, pid: i32) -> Vec<u8> {
        expand_with(&self.plan.prefix, slot, generation, Some(pid)).into_bytes()
    }

    /// What stands before each line of a worker.
    pub(crate) fn prefix_of(&self, worker: &Worker) -> Vec<u8> {
        self.prefix(worker.slot, worker.generation, worker.child.pid())
    }

    // ---- ready ----

    /// Workers that start: who is ready by now, who is late, whose `--ready exec:CMD` is due.
    pub(crate) fn on_workers_time(&mut self, now: Instant) {
        let ids: Vec<u64> = self
            .workers
            .keys()
            .copied()
            .filter(|id| self.pool.state(*id) == Some(State::Starting))
            .collect();
        for id in ids {
            self.on_starting(id, now);
        }
        self.pool.on_time(now);
        self.act(now);
    }

    fn on_starting(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.shows_ready(&self.plan.ready, now) {
            worker.heard_by = self.plan.watchdog.map(|length| now + length);
            worker.ready_fd = None;
            if let (Some(check), _) = &worker.check {
                check.signal_group(KILL);
            }
            self.pool.ready(id, now);
            self.act(now);
            self.send_owed(id);
        } else if worker.is_late(&self.plan.ready, now) {
            let hint = match self.plan.ready {
                Readiness::Told(Ready::Listen) if worker.spoke => {
                    "; an app that never listens needs --ready alive:1s"
                }
                Readiness::Told(Ready::Listen) => {
                    "; it never spoke Node's cluster protocol: is it node? (--node)"
                }
                Readiness::Told(_) | Readiness::Found => "",
            };
            let limit = common::time::say(self.plan.ready_timeout);
            self.pool
                .late(id, format!("not ready within {limit}{hint}"), now);
            self.act(now);
        } else if self.pool.starts(id)
            && worker.is_settled(&self.plan.ready, self.pool.waits_for_starts(now), now)
        {
            self.pool.settled(id);
        } else if let Readiness::Told(Ready::Exec(command)) = &self.plan.ready {
            if worker.check.0.is_none() && worker.check.1 <= now {
                let command = command.clone();
                self.start_ready_check(id, &command, now);
            }
        }
    }

    fn start_ready_check(&mut self, id: u64, command: &str, now: Instant) {
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
        let reader = self.lifeline.as_ref().and_then(Lifeline::reader);
        let lifeline = reader.as_ref().map(AsRawFd::as_raw_fd);
        let mut descriptors = vec![(self.null.as_raw_fd(), 0), (2, 1), (2, 2)];
        descriptors.extend(lifeline.map(|fd| (fd, common::fds::FIRST)));
        let image = Image {
            candidates: vec![c"/bin/sh".to_owned()],
            arguments: vec![c"sh".to_owned(), c"-c".to_owned(), text(command.to_owned())],
            environment,
            descriptors,
            own_group: true,
            lifeline,
            nofile: Some(self.plan.nofile),
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

    // ---- the way out ----

    /// By its channel, where it has one and listens: then it also finishes keep-alive connections.
    fn ask_to_go(&mut self, id: u64) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let serves = worker.listening_since.is_some();
        let by_channel = worker.channel.is_some() && serves && self.plan.stop_signal.is_none();
        if !by_channel && !worker.cut_off {
            worker
                .child
                .signal_group(self.plan.stop_signal.unwrap_or(TERM));
        }
        // A stopped worker could not hear it.
        worker.child.signal_group(CONT);
        if by_channel {
            self.disconnect(id);
        }
    }

    /// Everybody goes, and then we end with this status.
    pub(crate) fn stop(&mut self, exit: Exit, now: Instant) {
        self.upgrade
            .iter()
            .for_each(crate::reexec::Upgrade::abandon);
        self.pool.stop(exit, now);
        self.act(now);
    }

    /// Everybody is to end at once.
    pub(crate) fn kill_all(&mut self, cause: &str, now: Instant) {
        self.pool.kill_all(cause, now);
        self.act(now);
        for leftover in &mut self.leftovers {
            leftover.kill_at = now;
        }
        self.orphans.hurry(now);
    }

    /// Replaces who is due for that, unless something else has to come first.
    pub(crate) fn recycle(&mut self, now: Instant) {
        if self.may_recycle() {
            self.pool.recycle(&mut child::rss, now);
            self.act(now);
        }
    }

    fn may_recycle(&self) -> bool {
        self.resizing.is_none() && self.upgrade.is_none()
    }

    pub(crate) fn recycle_deadline(&self) -> Option<Instant> {
        self.pool.recycle_deadline().filter(|_| self.may_recycle())
    }

    // ---- reload ----

    /// What the workers of a generation have in common.
    pub(crate) fn generation(&self, number: u32) -> Result<&Rc<launch::Generation>> {
        self.generations
            .get(&number)
            .ok_or_else(|| Error::new("start a worker", format!("generation {number} is gone")))
    }

    /// Resolved anew, and looked at as far as that goes without a process.
    fn new_generation(&self, number: u32) -> Result<launch::Generation> {
        let generation = launch::Generation::new(number, &self.plan)?;
        let who = Who {
            id: self.pool.last_id,
            slot: 0,
            workers: self.pool.slots.len(),
            generation: &generation,
            last_exit: None,
        };
        let image = launch::image(&self.plan, who, &Given::default())?;
        match child::too_large(&image) {
            Some(why) => Err(Error::new(&format!("start generation {number}"), why)),
            None => Ok(generation),
        }
    }

    /// A new generation is to take over.
    pub(crate) fn reload(&mut self, now: Instant) -> Begun {
        self.supervisor.reload_requested();
        let begun = match self.pool.ask_reload() {
            Asked::Not(begun) => begun,
            Asked::Begin(number) => match self.new_generation(number) {
                Ok(generation) => {
                    self.generations.insert(number, Rc::new(generation));
                    self.pool.begin_reload(number, now)
                }
                Err(error) => self.pool.refuse_reload(error.to_string()),
            },
        };
        self.act(now);
        begun
    }

    /// Sockets that no worker holds and none is to hold: of a generation that is gone, or of one that
    /// never came to serve. Those whose holders died are kept for the next ones.
    pub(crate) fn drop_sockets(&mut self) {
        if !matches!(self.pool.phase, crate::pool::Phase::Running) {
            return;
        }
        let serving = self.pool.generation;
        let alive = |number: u32| {
            self.workers
                .values()
                .any(|worker| worker.generation == number)
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
                crate::events::SOCKET_DROPPED,
                &[("address", shared.name.into())],
            );
        }
    }
}
