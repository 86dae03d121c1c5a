//! The loop: what happened -> what follows.

use crate::actions::{Action, Hangup};
use crate::adopt::Orphans;
use crate::cgroups::Cgroups;
use crate::check::Check;
use crate::cli::OrphansArg;
use crate::control::{self, Waiting};
use crate::deaths::By;
use crate::events;
use crate::launch::Generation;
use crate::lifeline::Lifeline;
use crate::node::preload::Preload;
use crate::node::shim::Rendezvous;
use crate::node::sockets::Sockets;
use crate::notify::Notify;
use crate::output::{self, Output, Readout, Stream, Which};
use crate::plan::{Listen, Node, Plan, Readiness};
use crate::pool::{Phase, Pool, State};
use crate::probe::Probe;
use crate::reexec::Upgrade;
use crate::resize::Resizing;
use crate::slots::Group;
use crate::state::Taken;
use crate::store::{self, Origin, Returned, Spot};
use crate::supervisor::Supervisor;
use crate::worker::Worker;
use common::cgroup::Group as Cgroup;
use common::child::Peer;
use common::control::{Reply, Server};
use common::error::{Doing, Error, Result};
use common::event::{Format, Level, Log, Value};
use common::exit::Exit;
use common::file::PidFile;
use common::signal::{Received, Signals};
use common::socket::{self, Address};
use common::sys;
use common::wait::{Interest, Loop, Wake};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a token of the loop stands for: a kind and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The signalfd.
    Signals,
    /// A worker's channel.
    Channel(u64),
    /// One of the streams.
    Stream(u64),
    /// A shared socket.
    Socket(u64),
    /// One of our outputs has room.
    Output(Which),
    /// The workers' NOTIFY_SOCKET.
    Notify,
    /// A shim of npm calls.
    Rendezvous,
    /// A worker's `--ready fd:N`.
    Ready(u64),
    /// A socket of `--listen`.
    Given(u64),
    /// The control socket.
    Control,
    /// A client of it.
    Client(u64),
    /// What `--check` says.
    Check,
    /// The connection of `--probe`.
    Probe,
}

impl Token {
    /// As the loop carries it.
    #[must_use]
    pub fn number(self) -> u64 {
        let (kind, number) = match self {
            Token::Signals => (0, 0),
            Token::Channel(id) => (1, id),
            Token::Stream(id) => (2, id),
            Token::Socket(id) => (3, id),
            Token::Output(Which::Out) => (4, 0),
            Token::Output(Which::Err) => (4, 1),
            Token::Notify => (5, 0),
            Token::Rendezvous => (6, 0),
            Token::Ready(id) => (7, id),
            Token::Given(index) => (8, index),
            Token::Control => (9, 0),
            Token::Client(id) => (10, id),
            Token::Check => (11, 0),
            Token::Probe => (12, 0),
        };
        kind << 56 | number
    }

    fn from_number(number: u64) -> Option<Token> {
        let id = number & ((1 << 56) - 1);
        Some(match number >> 56 {
            0 => Token::Signals,
            1 => Token::Channel(id),
            2 => Token::Stream(id),
            3 => Token::Socket(id),
            4 if id == 0 => Token::Output(Which::Out),
            4 => Token::Output(Which::Err),
            5 => Token::Notify,
            6 => Token::Rendezvous,
            7 => Token::Ready(id),
            8 => Token::Given(id),
            9 => Token::Control,
            10 => Token::Client(id),
            11 => Token::Check,
            12 => Token::Probe,
            _ => return None,
        })
    }
}

/// To look so late means that we were stopped, or the whole machine was: limits of others are put off.
const OVERSLEPT: Duration = Duration::from_millis(250);

/// Processes that a worker left behind.
#[derive(Debug)]
pub struct Leftover {
    pub(crate) peers: Vec<Peer>,
    /// Their cgroups, where they have some.
    pub(crate) cgroups: Vec<Cgroup>,
    pub(crate) kill_at: Instant,
    pub(crate) killed: Option<Instant>,
}

/// The master.
pub struct Master {
    pub(crate) plan: Plan,
    pub(crate) log: Log,
    pub(crate) events: Loop,
    /// What is decided about workers.
    pub(crate) pool: Pool,
    /// Their processes.
    pub(crate) workers: BTreeMap<u64, Worker>,
    /// What those of each generation have in common, as long as anybody may need it.
    pub(crate) generations: BTreeMap<u32, Rc<Generation>>,
    pub(crate) check: Option<Check>,
    pub(crate) probe: Option<Probe>,
    pub(crate) pid_file: Option<PidFile>,
    pub(crate) control: Option<Server>,
    /// The new program looks at our state.
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) waiting: Vec<Waiting>,
    /// Clients that are told every event, and the form that they get it in.
    pub(crate) subscribers: Vec<u64>,
    pub(crate) feed: Log,
    pub(crate) given: Vec<(Address, Rc<OwnedFd>)>,
    pub(crate) given_names: Vec<String>,
    /// The sockets of the slots, where they have their own.
    pub(crate) given_groups: Vec<Option<Rc<crate::slots::Group>>>,
    pub(crate) resizing: Option<Resizing>,
    pub(crate) own_paths: Vec<(std::path::PathBuf, common::file::Identity)>,
    pub(crate) sockets: Sockets,
    pub(crate) supervisor: Supervisor,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) outputs: [Option<Output>; 2],
    pub(crate) one_output: bool,
    pub(crate) outputs_waiting: [bool; 2],
    pub(crate) notify: Option<Notify>,
    pub(crate) rendezvous: Option<Rendezvous>,
    pub(crate) preload: Option<Preload>,
    pub(crate) leftovers: Vec<Leftover>,
    pub(crate) cgroups: Cgroups,
    /// The workers of a dead master.
    pub(crate) orphans: Orphans,
    pub(crate) lifeline: Option<Lifeline>,
    /// Workers that have ended and are not reaped.
    pub(crate) dead: Vec<Worker>,
    /// When what they left behind is looked for once more.
    pub(crate) sweep_at: Option<Instant>,
    pub(crate) null: OwnedFd,
    pub(crate) started: Instant,
    pub(crate) lost: u64,
}

/// Binds, starts, and stays until it is told to stop.
///
/// # Errors
/// What was asked for cannot be had on this machine.
pub fn run(mut plan: Plan) -> Result<Exit> {
    common::fds::ensure_standard()?;
    // Four descriptors for a worker, and 1024 is the usual limit; workers get what --nofile says.
    let _ = common::privs::raise_nofile();
    let signals = Signals::block()?;
    let saved = plan.saved.take();
    let listen = std::mem::take(&mut plan.listen);
    let mut master = match &saved {
        None => {
            let pid_file = plan.pid_file.as_deref().map(PidFile::create).transpose()?;
            let control = plan
                .control
                .as_deref()
                .map(|path| Server::open(path, control::client_token))
                .transpose()?;
            Master::new(plan, pid_file, control)?
        }
        Some(saved) => {
            let mut taken = Taken::default();
            let pid_file = match (&plan.pid_file, saved.pid_file) {
                (Some(path), Some(fd)) => Some(PidFile::again(path, taken.own(fd)?)?),
                (_, None) | (None, _) => None,
            };
            let control = match (&plan.control, saved.control) {
                (Some(path), Some(fd)) => {
                    Some(Server::again(path, taken.own(fd)?, control::client_token))
                }
                (_, None) | (None, _) => None,
            };
            Master::new(plan, pid_file, control)?
        }
    };
    master
        .events
        .add(&signals, Token::Signals.number(), Interest::Read)?;
    let resumed = saved.is_some();
    match saved {
        None => {
            if let Some(exit) = master.adopt(&signals) {
                return Ok(master.leave_early(exit));
            }
            master.prepare()?;
            for one in listen {
                let bound = master.listen(one, &signals);
                // Told to stop while it waited for an address.
                if let Phase::Stopping(exit) = master.pool.phase {
                    return Ok(master.leave_early(exit));
                }
                bound?;
            }
            master.read_orphans(Instant::now());
        }
        Some(saved) => {
            let client = saved.client;
            master.restore(saved, Instant::now())?;
            master.prepare()?;
            master.resumed(client, Instant::now());
        }
    }
    // Orphans of our workers come to us, and can be found; PID 1 gets them anyway.
    let _ = sys::become_subreaper();
    if !resumed {
        master.say(
            Level::Info,
            events::STARTED,
            &[
                ("workers", master.plan.workers.into()),
                ("generation", 1u32.into()),
            ],
        );
    }
    let result = master.serve(&signals);
    master.end(result.as_ref().ok().copied());
    master.pid_file = None;
    master.leave_clients();
    result
}

impl Master {
    fn new(mut plan: Plan, pid_file: Option<PidFile>, control: Option<Server>) -> Result<Master> {
        // The journal's form is for the journal alone.
        let feed = match plan.format {
            Some(Format::Json) => Format::Json,
            Some(Format::Text | Format::Journal) | None => Format::Text,
        };
        let started = Instant::now();
        let returned = Returned::new(std::mem::take(&mut plan.returned));
        let mut master = Master {
            log: Log::new("spawnwork", plan.format, plan.level),
            events: Loop::new()?,
            pool: Pool::new(plan.workers, plan.policy(), common::time::random(), started),
            workers: BTreeMap::new(),
            generations: BTreeMap::from([(1, Rc::new(Generation::new(1, &plan)?))]),
            check: None,
            probe: None,
            pid_file,
            control,
            upgrade: None,
            waiting: Vec::new(),
            subscribers: Vec::new(),
            feed: Log::new("spawnwork", Some(feed), Level::Info),
            given: Vec::new(),
            given_names: Vec::new(),
            given_groups: Vec::new(),
            resizing: None,
            own_paths: Vec::new(),
            sockets: Sockets::new(returned),
            supervisor: Supervisor::of_environment(),
            streams: BTreeMap::new(),
            outputs: [None, None],
            one_output: output::same(sys::standard(1), sys::standard(2)),
            outputs_waiting: [false; 2],
            notify: None,
            rendezvous: None,
            preload: None,
            leftovers: Vec::new(),
            cgroups: Cgroups::find(Instant::now()),
            orphans: Orphans::default(),
            lifeline: None,
            dead: Vec::new(),
            sweep_at: None,
            null: std::fs::OpenOptions::new()
                .read(true)
                .open("/dev/null")
                .doing("open /dev/null")?
                .into(),
            started,
            lost: 0,
            plan,
        };
        master.outputs[1] = Some(Output::open(2));
        if master.plan.pipe_stdout && !master.one_output {
            master.outputs[0] = Some(Output::open(1));
        }
        Ok(master)
    }

    /// The end, before there was a worker.
    fn leave_early(&mut self, exit: Exit) -> Exit {
        self.end(Some(exit));
        self.pid_file = None;
        self.leave_clients();
        exit
    }

    /// We are the program that took the place of another one.
    fn resumed(&mut self, client: Option<i32>, now: Instant) {
        let ids: Vec<u64> = self.sockets.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(shared) = self.sockets.get(id) {
                let (fd, stored) = (Rc::clone(&shared.fd), shared.stored.clone());
                let group = shared.group.clone();
                let group = group.filter(|_| !shared.ours);
                let members = group.map(|group| group.all()).unwrap_or_default();
                for fd in members.iter().chain([&fd]) {
                    // One of the members is the first; to add it twice does nothing.
                    let _ = self
                        .events
                        .add(&**fd, Token::Socket(id).number(), Interest::Nothing);
                }
                let _ = self.supervisor.keep(stored, &fd);
            }
            self.arm_socket(id, now);
        }
        let version = env!("CARGO_PKG_VERSION");
        let fields = [
            ("version", version.into()),
            ("generation", self.pool.generation.into()),
            ("workers", self.pool.slots.len().into()),
        ];
        self.say(Level::Info, events::REEXECUTED, &fields);
        let client = client.and_then(sys::adopt);
        if let (Some(control), Some(fd)) = (self.control.as_mut(), client) {
            let reply = Reply::Ok(format!("spawnwork {version} has taken over"));
            control.answer_for(&self.events, fd, &reply, now);
        }
        // Whoever died in between has told nobody.
        self.reap(now);
        self.act(now);
    }

    /// A socket of `--listen` that the program before us had.
    pub(crate) fn take_given(
        &mut self,
        name: String,
        address: Address,
        fd: Rc<OwnedFd>,
        group: Option<Rc<Group>>,
    ) -> Result<()> {
        if self.plan.node == Node::No {
            let number = self.given.len() as u64;
            let members = group.as_ref().map(|group| group.all()).unwrap_or_default();
            for fd in members.iter().chain([&fd]) {
                let _ = self
                    .events
                    .add(&**fd, Token::Given(number).number(), Interest::Nothing);
            }
        }
        let stored = Spot::of(&address).name();
        self.supervisor.keep(stored, &fd);
        self.given.push((address, fd));
        self.given_groups.push(group);
        self.given_names.push(name);
        Ok(())
    }

    fn listen(&mut self, one: Listen, signals: &Signals) -> Result<()> {
        let bound = matches!(one, Listen::Bind(..));
        let mut stored = None;
        let mut origin = Origin::Bound;
        let (name, address, fd) = match one {
            Listen::Bind(name, address) => {
                let spot = Spot::of(&address);
                let made = match self.take_from_store(&address) {
                    Some((name, fd)) => {
                        origin = Origin::Returned;
                        stored = name;
                        Ok(fd)
                    }
                    None => match self.take_from_orphans(&address) {
                        Some(fd) => {
                            origin = Origin::Adopted;
                            Ok(fd)
                        }
                        None => self.bind(&address, signals),
                    },
                };
                let fd = made
                    .map_err(|why| Error::new(&format!("bind {address}"), busy(&why, &address)))?;
                let real = match (&address, socket::local_addr(&fd)) {
                    (Address::Tcp { host, port: 0 }, Ok(socket::LocalAddr::Inet(bound))) => {
                        Address::Tcp {
                            host: host.clone(),
                            port: bound.port(),
                        }
                    }
                    _ => address,
                };
                if let Address::Unix(path) = &real {
                    let made = common::file::identity(path);
                    self.own_paths
                        .extend(made.ok().map(|made| (path.clone(), made)));
                }
                self.warn_of_somaxconn(&real.to_string());
                stored = stored.or_else(|| spot.name());
                (name, real, fd)
            }
            Listen::Take(name, inherited) => {
                let address = match socket::local_addr(&inherited.fd) {
                    Ok(socket::LocalAddr::Inet(bound)) if bound.ip().is_unspecified() => {
                        Address::Tcp {
                            host: None,
                            port: bound.port(),
                        }
                    }
                    Ok(socket::LocalAddr::Inet(bound)) => Address::Tcp {
                        host: Some(bound.ip().to_string()),
                        port: bound.port(),
                    },
                    Ok(socket::LocalAddr::Unix(path)) => Address::Unix(path),
                    Err(why) => {
                        return Err(Error::new(
                            &format!("use descriptor {}", inherited.number),
                            common::error::describe(&why),
                        ));
                    }
                };
                (name, address, inherited.fd)
            }
        };
        self.say_listens(origin, address.to_string());
        // A plain program expects accept(2) to wait; node sets O_NONBLOCK itself, and we need it for
        // round-robin. An inherited socket stays as it was: others may share it.
        // One that orphans accept from stays as it is, too: they rely on how they set it.
        if bound && origin != Origin::Adopted && self.plan.node == Node::No {
            socket::set_blocking(&fd).doing(&format!("make {address} blocking"))?;
        }
        if self.plan.node == Node::No {
            let number = self.given.len() as u64;
            self.events
                .add(&fd, Token::Given(number).number(), Interest::Nothing)?;
        }
        let fd = Rc::new(fd);
        self.supervisor.keep(stored, &fd);
        let group = if bound {
            self.group_of_given(&fd)
                .doing(&format!("share {address} with SO_REUSEPORT"))?
        } else {
            None
        };
        self.given.push((address, fd));
        self.given_groups.push(group);
        self.given_names.push(name);
        Ok(())
    }

    /// Binds. An address in use is tried again until `--bind-retry` is over; signals and the control
    /// socket are served meanwhile.
    fn bind(&mut self, address: &Address, signals: &Signals) -> std::io::Result<OwnedFd> {
        const AGAIN: Duration = Duration::from_millis(100);
        let until = Instant::now() + self.plan.bind_retry;
        let mut wakes: Vec<Wake> = Vec::new();
        let mut said = false;
        loop {
            let why = match socket::listen(address, self.plan.rights, self.plan.backlog) {
                Err(why) if why.kind() == std::io::ErrorKind::AddrInUse => why,
                done => return done,
            };
            let now = Instant::now();
            if now >= until {
                return Err(why);
            }
            if !said {
                said = true;
                let fields = [
                    ("address", address.to_string().into()),
                    ("wait", self.plan.bind_retry.into()),
                    ("error", busy(&why, address).into()),
                ];
                self.say(Level::Warning, events::BIND_WAITING, &fields);
            }
            self.drive_outputs();
            self.events
                .wait(Some(until.min(now + AGAIN)), &mut wakes)
                .map_err(|why| std::io::Error::other(why.message))?;
            let now = Instant::now();
            let mut signalled = false;
            for wake in &wakes {
                // There are no workers yet, and nothing else that could come from them.
                let token = Token::from_number(wake.token);
                signalled |= token == Some(Token::Signals);
                if token == Some(Token::Control) {
                    self.on_door(now);
                } else if let Some(Token::Client(id)) = token {
                    self.on_client(id, *wake, now);
                }
            }
            if let Some(control) = self.control.as_mut() {
                control.expire(&self.events, now);
            }
            if signalled {
                self.on_signals(signals, now);
            }
            if matches!(self.pool.phase, Phase::Stopping(_)) {
                return Err(why);
            }
        }
    }

    pub(crate) fn warn_of_somaxconn(&mut self, address: &str) {
        if let Some(limit) = socket::somaxconn().filter(|limit| *limit < self.plan.backlog) {
            let fields = [
                ("address", address.to_owned().into()),
                ("backlog", self.plan.backlog.into()),
                ("limit", limit.into()),
                (
                    "error",
                    "net.core.somaxconn cuts it; raise it with sysctl, or lower --backlog".into(),
                ),
            ];
            self.say(Level::Warning, events::BACKLOG_CUT, &fields);
        }
    }

    fn prepare(&mut self) -> Result<()> {
        if matches!(
            self.plan.ready,
            Readiness::Found | Readiness::Told(crate::cli::Ready::Notify)
        ) || self.plan.watchdog.is_some()
        {
            let notify = match self.notify.take() {
                Some(notify) => notify,
                None => Notify::open()?,
            };
            self.events
                .add(&notify, Token::Notify.number(), Interest::Read)?;
            self.notify = Some(notify);
        }
        if let Some(control) = &self.control {
            self.events
                .add(control, Token::Control.number(), Interest::Read)?;
        }
        if self.plan.node == Node::Shim {
            let rendezvous = match self.rendezvous.take() {
                Some(rendezvous) => rendezvous,
                None => Rendezvous::open()?,
            };
            self.events
                .add(&rendezvous.fd, Token::Rendezvous.number(), Interest::Read)?;
            self.rendezvous = Some(rendezvous);
        }
        if self.plan.node != Node::No && self.plan.preload && self.preload.is_none() {
            self.preload = Some(Preload::write()?);
        }
        if self.plan.orphans == OrphansArg::Die && self.lifeline.is_none() {
            self.lifeline = Some(Lifeline::open()?);
        }
        Ok(())
    }

    fn serve(&mut self, signals: &Signals) -> Result<Exit> {
        let mut wakes: Vec<Wake> = Vec::new();
        let mut last = Instant::now();
        loop {
            let now = self.look(last, last);
            self.on_time(now);
            self.tell_supervisor(now);
            if let Some(exit) = self.pool.end(now) {
                if self.leftovers.is_empty() && self.orphans.gone() {
                    self.leave_stuck_behind();
                    return Ok(exit);
                }
            }
            self.drive_outputs();
            let due = self.deadline(Instant::now());
            self.events.wait(due, &mut wakes)?;
            // Without a deadline nobody can be late.
            let now = self.look(due.unwrap_or_else(Instant::now), last);
            last = now;
            let mut signalled = false;
            for wake in &wakes {
                match Token::from_number(wake.token) {
                    Some(Token::Signals) => signalled = true,
                    Some(Token::Channel(id)) => self.on_channel(id, *wake, now),
                    Some(Token::Stream(id)) => self.on_stream(id, now),
                    Some(Token::Socket(id)) => self.on_socket(id, now),
                    Some(Token::Output(_)) => {}
                    Some(Token::Notify) => self.on_notify(now),
                    Some(Token::Rendezvous) => self.on_rendezvous(now),
                    Some(Token::Ready(id)) => self.on_ready_fd(id),
                    Some(Token::Given(index)) => self.on_given(index),
                    Some(Token::Control) => self.on_door(now),
                    Some(Token::Client(id)) => self.on_client(id, *wake, now),
                    Some(Token::Check) => self.on_check_output(now),
                    Some(Token::Probe) => self.on_probe(now),
                    None => {}
                }
            }
            if signalled {
                self.on_signals(signals, now);
            }
        }
    }

    /// What time it is, when it ought to be about `expected`, and was `last` when we last looked: from
    /// then on we may have been stopped.
    fn look(&mut self, expected: Instant, last: Instant) -> Instant {
        let now = Instant::now();
        if now.saturating_duration_since(expected) > OVERSLEPT {
            self.put_off(now.saturating_duration_since(last));
        }
        now
    }

    /// Nobody is late because we were.
    fn put_off(&mut self, late: Duration) {
        self.workers
            .values_mut()
            .for_each(|worker| worker.put_off(late));
        if let Some(probe) = self.probe.as_mut() {
            probe.deadline += late;
        }
        if let Some(check) = self.check.as_mut() {
            check.deadline += late;
        }
        self.pool.put_off(late);
    }

    /// Child ends first, then stops, then reloads: a batch has no order of its own.
    fn on_signals(&mut self, signals: &Signals, now: Instant) {
        const CHLD: i32 = 17;
        let batch: Vec<Received> = std::iter::from_fn(|| signals.next()).collect();
        if batch.iter().any(|received| received.signal == CHLD) {
            self.reap(now);
        }
        let hangup = if signals.hup_ignored() {
            Hangup::Ignored
        } else {
            Hangup::Heard
        };
        let mut batch: Vec<(Received, Action)> = batch
            .into_iter()
            .map(|received| (received, self.plan.actions.of(received, hangup)))
            .collect();
        batch.sort_by_key(|(_, action)| action.rank());
        for (received, action) in batch {
            match action {
                Action::Stop => {
                    self.say(
                        Level::Info,
                        events::STOP_REQUESTED,
                        &[("signal", name(received.signal).into())],
                    );
                    if matches!(self.pool.phase, Phase::Stopping(_)) {
                        self.kill_all("a second request to stop", now);
                    } else {
                        self.stop(Exit::Ok, now);
                    }
                }
                Action::Quit => {
                    let name = name(received.signal);
                    self.say(
                        Level::Info,
                        events::STOP_REQUESTED,
                        &[("signal", name.clone().into())],
                    );
                    if !matches!(self.pool.phase, Phase::Stopping(_)) {
                        self.stop(Exit::Ok, now);
                    }
                    self.kill_all(&name, now);
                }
                Action::Reload => drop(self.reload(now)),
                Action::Status => self.status(now),
                Action::Add => drop(self.add_workers(1, now)),
                Action::Remove => drop(self.remove_workers(1, now)),
                Action::Forward(other) => self.forward(other.unwrap_or(received.signal)),
                Action::Ignore => {}
            }
        }
    }

    /// Passes a signal on to each worker's group. One that starts gets it when it is ready: before its
    /// program has installed a handler, most signals would end it.
    fn forward(&mut self, signal: i32) {
        let mut count = 0usize;
        for worker in self.workers.values_mut() {
            match self.pool.state(worker.id) {
                Some(State::Starting) => drop(worker.owed.insert(signal)),
                Some(State::Serving | State::Draining) => {
                    if crate::control::ENDING.contains(&signal) {
                        self.pool.blame(worker.id, By::Operator);
                    }
                    worker.child.signal_group(signal);
                }
                Some(State::Aborting | State::Killing | State::Stuck) | None => continue,
            }
            count += 1;
        }
        self.say(
            Level::Info,
            events::SIGNAL_FORWARDED,
            &[("signal", name(signal).into()), ("workers", count.into())],
        );
    }

    /// What was passed on while the worker started.
    pub(crate) fn send_owed(&mut self, id: u64) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        for signal in std::mem::take(&mut worker.owed) {
            if crate::control::ENDING.contains(&signal) {
                self.pool.blame(id, By::Operator);
            }
            worker.child.signal_group(signal);
        }
    }

    /// What is due.
    fn on_time(&mut self, now: Instant) {
        let due: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.pause.is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.pause = None;
            }
            self.on_stream(id, now);
        }
        self.on_check_time(now);
        if let Some(upgrade) = self
            .upgrade
            .as_ref()
            .filter(|upgrade| upgrade.deadline <= now)
        {
            upgrade.abandon();
        }
        if self
            .probe
            .as_ref()
            .is_some_and(|probe| probe.deadline <= now)
        {
            self.on_probe(now);
        }
        self.on_watchdog(now);
        self.on_rest_time(now);
        self.resize(now);
        self.on_workers_time(now);
        self.recycle(now);
        self.hand_over_all(now);
        if let Some(control) = self.control.as_mut() {
            control.expire(&self.events, now);
        }
        self.on_sweep_time(now);
        self.on_leftovers_time(now);
        self.cgroups.on_time(now);
        self.on_orphans_time(now);
    }

    /// What was left alone for a moment is waited for again.
    fn on_rest_time(&mut self, now: Instant) {
        self.on_channels_time(now);
        if let Some(rendezvous) = self.rendezvous.as_mut() {
            rendezvous.wake_if_due(&self.events, Token::Rendezvous.number(), now);
        }
        if let Some(notify) = self.notify.as_mut() {
            notify.wake_if_due(&self.events, Token::Notify.number(), now);
        }
    }

    fn rest_deadline(&self) -> Option<Instant> {
        let channels = self
            .workers
            .values()
            .filter_map(|worker| worker.channel.as_ref()?.deadline());
        let rendezvous = self.rendezvous.as_ref().and_then(Rendezvous::deadline);
        let notify = self.notify.as_ref().and_then(Notify::deadline);
        channels.chain(rendezvous).chain(notify).min()
    }

    /// When an output is tried again that could not be waited for: for lack of memory.
    fn outputs_deadline(&self, now: Instant) -> Option<Instant> {
        const AGAIN: Duration = Duration::from_millis(50);
        let waits = self
            .outputs
            .iter()
            .zip(self.outputs_waiting)
            .any(|(output, waited_for)| {
                !waited_for && output.as_ref().is_some_and(Output::wants_to_write)
            });
        waits.then_some(now + AGAIN)
    }

    /// When something is due next.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let streams = self.streams.values().filter_map(|stream| stream.pause);
        let workers = self
            .workers
            .values()
            .filter_map(|worker| self.worker_deadline(worker, now));
        let others_wait = self.pool.waits_for_starts(now);
        let looks = self
            .workers
            .values()
            .filter(|worker| others_wait && self.pool.starts(worker.id))
            .filter_map(|worker| worker.look_at(&self.plan.ready));
        let sockets = self
            .sockets
            .iter()
            .filter_map(|(_, shared)| shared.deadline());
        let leftovers = self.leftovers.iter().map(|leftover| leftover.deadline(now));
        streams
            .chain(workers)
            .chain(looks)
            .chain(sockets)
            .chain(leftovers)
            .chain(self.sweep_at)
            .chain(self.pool.deadline(now))
            .chain(self.recycle_deadline())
            .chain(self.resize_deadline(now))
            .chain(self.check.as_ref().map(|check| check.deadline))
            .chain(self.probe.as_ref().map(|probe| probe.deadline))
            .chain(self.upgrade.as_ref().map(|upgrade| upgrade.deadline))
            .chain(self.control.as_ref().and_then(Server::deadline))
            .chain(self.supervisor.deadline())
            .chain(self.orphans.deadline(now))
            .chain(self.cgroups.deadline())
            .chain(self.rest_deadline())
            .chain(self.outputs_deadline(now))
            .min()
    }

    fn worker_deadline(&self, worker: &Worker, now: Instant) -> Option<Instant> {
        match self.pool.state(worker.id)? {
            State::Starting => worker.start_deadline(&self.plan.ready, now),
            State::Serving => worker.heard_by,
            State::Draining | State::Aborting | State::Killing | State::Stuck => None,
        }
    }

    /// Workers that are there still although they were killed.
    fn leave_stuck_behind(&mut self) {
        let stuck: Vec<(usize, i32)> = self
            .pool
            .stuck()
            .map(|member| (member.slot, member.pid))
            .collect();
        for (slot, pid) in stuck {
            self.say_left_behind(Some(slot), pid);
        }
    }

    // ---- what workers say ----

    pub(crate) fn index_of(&self, which: Which) -> usize {
        if self.one_output { 1 } else { which as usize }
    }

    /// Reads a stream until it is empty for now, or our own output is full.
    pub(crate) fn on_stream(&mut self, id: u64, now: Instant) {
        let mut buffer = common::lines::Pool::new(64 << 10, 1);
        // A bounded turn: other workers, and signals, have theirs.
        for _ in 0..16 {
            let Some(stream) = self.streams.get_mut(&id) else {
                return;
            };
            let index = if self.one_output {
                1
            } else {
                stream.which as usize
            };
            let Some(output) = self.outputs[index].as_mut() else {
                return;
            };
            if !output.has_room() {
                break;
            }
            let last = match stream.which {
                Which::Err => self
                    .workers
                    .get_mut(&stream.worker)
                    .map(|worker| &mut worker.last),
                Which::Out => None,
            };
            match stream.pump(&mut buffer, output, last, now) {
                Readout::More => {}
                Readout::Empty if stream.last => {
                    stream.finish(output, None);
                    self.end_stream(id);
                    return;
                }
                Readout::Empty => break,
                Readout::End => {
                    self.end_stream(id);
                    return;
                }
            }
        }
        self.arm(id);
    }

    fn arm(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let index = if self.one_output {
            1
        } else {
            stream.which as usize
        };
        /// Until the kernel may have the memory to wait for it.
        const AGAIN: Duration = Duration::from_millis(50);
        let room = self.outputs[index].as_ref().is_some_and(Output::has_room);
        let token = Token::Stream(id).number();
        // Taken out while nothing is read of it: that its worker has ended would be said all the time.
        match (room, stream.registered) {
            (true, true) if stream.pause.is_some() => {
                self.events.set(&*stream, token, Interest::Nothing);
            }
            (true, true) => self.events.set(&*stream, token, Interest::Read),
            (true, false) => {
                stream.registered = self.events.add(&*stream, token, Interest::Read).is_ok();
                if !stream.registered {
                    stream.pause = Some(Instant::now() + AGAIN);
                }
            }
            (false, true) => {
                self.events.remove(&*stream);
                stream.registered = false;
            }
            (false, false) => {}
        }
    }

    fn end_stream(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            self.events.remove(&stream);
            if let Some(worker) = self.workers.get_mut(&stream.worker) {
                worker.streams = worker.streams.saturating_sub(1);
            }
        }
    }

    /// Gives our outputs what waits for them, and lets streams go on that waited for room.
    fn drive_outputs(&mut self) {
        for which in [Which::Out, Which::Err] {
            let index = which as usize;
            let Some(output) = self.outputs[index].as_mut() else {
                continue;
            };
            let had_room = output.has_room();
            output.flush();
            let lost = output.take_lost();
            let room_again = !had_room && output.has_room();
            let waits = output.wants_to_write();
            if waits != self.outputs_waiting[index] {
                // Waited for only while something waits for its reader: that he is gone would be said all the
                // time.
                self.outputs_waiting[index] = match output.descriptor() {
                    Some(fd) if waits => {
                        let token = Token::Output(which).number();
                        self.events.add(fd, token, Interest::Write).is_ok()
                    }
                    Some(fd) => {
                        self.events.remove(fd);
                        false
                    }
                    None => {
                        // Its reader is gone, and the descriptor itself may be there still.
                        let standard = common::sys::standard(index as i32 + 1);
                        self.events.remove(standard);
                        false
                    }
                };
            }
            if lost > 0 {
                let first = self.lost == 0;
                self.lost += lost;
                if first {
                    self.say(
                        Level::Warning,
                        events::LINES_LOST,
                        &[
                            ("count", lost.into()),
                            ("error", "our reader is gone or full".into()),
                        ],
                    );
                }
            }
            if room_again {
                let ids: Vec<u64> = self
                    .streams
                    .iter()
                    .filter(|(_, stream)| self.index_of(stream.which) == index)
                    .map(|(id, _)| *id)
                    .collect();
                ids.into_iter().for_each(|id| self.arm(id));
                self.arm_check();
            }
        }
    }

    /// An event line, in its place among the workers' lines.
    pub(crate) fn say(&mut self, level: Level, event: &str, fields: &[(&str, Value)]) {
        self.publish(level, event, fields);
        let Some(line) = self.log.line(level, event, fields) else {
            return;
        };
        if let Some(output) = self.outputs[1].as_mut() {
            output.write_or_drop(&line);
        }
    }

    fn end(&mut self, exit: Option<Exit>) {
        // The last words of workers, from pipes that a grandchild may hold open for ever.
        let ids: Vec<u64> = self.streams.keys().copied().collect();
        let deadline = Instant::now() + Duration::from_secs(5);
        for id in ids {
            while self.streams.contains_key(&id) && Instant::now() < deadline {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.last = true;
                }
                let index = self
                    .streams
                    .get(&id)
                    .map_or(1, |stream| self.index_of(stream.which));
                if let Some(output) = self.outputs[index]
                    .as_mut()
                    .filter(|output| !output.has_room())
                {
                    output.finish(deadline.saturating_duration_since(Instant::now()));
                    if !output.has_room() {
                        break;
                    }
                }
                self.on_stream(id, Instant::now());
            }
        }
        // A socket that the supervisor keeps is not at its end, and its path must lead to it still.
        // So is one on which orphans go on without us.
        let serve = self.orphans.serve();
        self.sockets
            .unlink_all(|shared| !serve && !self.supervisor.holds(shared.stored.as_deref()));
        for (path, made) in &self.own_paths {
            let kept = serve
                || self
                    .supervisor
                    .holds(store::unix_name(path, *made).as_deref());
            if !kept && common::file::identity(path).is_ok_and(|now| now == *made) {
                let _ = std::fs::remove_file(path);
            }
        }
        self.cgroups.finish();
        let status = exit.map_or(125, |exit| i64::from(exit.code()));
        self.say(Level::Info, events::STOPPED, &[("status", status.into())]);
        for output in self.outputs.iter_mut().flatten() {
            output.finish(
                deadline
                    .saturating_duration_since(Instant::now())
                    .max(Duration::from_millis(100)),
            );
        }
    }

    /// The last answers: when they are read, everything of ours is free for the next master.
    fn leave_clients(&mut self) {
        self.given.clear();
        self.given_groups.clear();
        self.sockets = Sockets::default();
        if let Some(control) = self.control.as_mut() {
            control.unlink();
        }
        self.say_goodbye(Instant::now());
        if let Some(control) = self.control.as_mut() {
            control.finish(&self.events, Duration::from_secs(1));
        }
    }
}

/// Why an address cannot be had, and who has it.
fn busy(why: &std::io::Error, address: &Address) -> String {
    let text = common::error::describe(why);
    let in_use = why.kind() == std::io::ErrorKind::AddrInUse;
    match in_use.then(|| socket::holder_of(address)).flatten() {
        Some((pid, command)) => format!("{text} (held by pid {pid}, {command})"),
        None => text,
    }
}

fn name(signal: i32) -> String {
    common::signal::name(signal)
}
