//! The loop: what happened -> what follows.

use crate::adopt::Orphans;
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
use crate::pool::Reloading;
use crate::probe::Probe;
use crate::reload::Trial;
use crate::status::{Frozen, Reloads};
use crate::store::{self, Origin, Returned, Spot};
use crate::supervisor::Supervisor;
use crate::worker::{Slot, State, Wait, Worker};
use common::child::{self, Peer};
use common::control::Server;
use common::error::{Doing, Error, Result};
use common::event::{Format, Level, Log, Value};
use common::exit::Exit;
use common::file::PidFile;
use common::signal::{Received, Sender, Signals};
use common::socket::{self, Address};
use common::sys;
use common::wait::{Interest, Loop, Wake};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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

/// What the pool as a whole is doing.
#[derive(Debug)]
pub enum Phase {
    /// The first generation starts.
    Initial,
    /// It serves.
    Running,
    /// A new generation comes.
    Reloading(Reloading),
    /// Everybody goes; then we end with this status.
    Stopping(Exit),
}

/// Processes that a worker left behind.
#[derive(Debug)]
pub struct Leftover {
    pub(crate) peers: Vec<Peer>,
    pub(crate) kill_at: Instant,
}

/// The master.
pub struct Master {
    pub(crate) plan: Plan,
    pub(crate) log: Log,
    pub(crate) events: Loop,
    pub(crate) slots: Vec<Slot>,
    pub(crate) workers: BTreeMap<u64, Worker>,
    pub(crate) last_id: u64,
    pub(crate) generation: Rc<Generation>,
    pub(crate) last_generation: u32,
    pub(crate) phase: Phase,
    pub(crate) queued_reload: bool,
    pub(crate) frozen: Option<Frozen>,
    /// What may be taken back, and what would come in its place.
    pub(crate) trial: Option<(Trial, Rc<Generation>)>,
    pub(crate) reloads: Reloads,
    pub(crate) deaths: BTreeMap<By, u64>,
    pub(crate) probe: Option<Probe>,
    pub(crate) control: Option<Server>,
    pub(crate) waiting: Vec<Waiting>,
    /// Clients that are told every event, and the form that they get it in.
    pub(crate) subscribers: Vec<u64>,
    pub(crate) feed: Log,
    pub(crate) line: VecDeque<usize>,
    pub(crate) given: Vec<(Address, Rc<OwnedFd>)>,
    pub(crate) given_names: Vec<String>,
    own_paths: Vec<(std::path::PathBuf, common::file::Identity)>,
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
    /// The workers of a dead master.
    pub(crate) orphans: Orphans,
    pub(crate) lifeline: Option<Lifeline>,
    pub(crate) null: OwnedFd,
    pub(crate) started: Instant,
    pub(crate) ever_ready: bool,
    pub(crate) served: bool,
    /// Workers of the first generation that were not ready in time.
    pub(crate) late: BTreeSet<u64>,
    pub(crate) lost: u64,
}

/// Binds, starts, and stays until it is told to stop.
///
/// # Errors
/// What was asked for cannot be had on this machine.
pub fn run(mut plan: Plan) -> Result<Exit> {
    common::fds::ensure_standard()?;
    let signals = Signals::block()?;
    let log = Log::new("spawnwork", plan.format, plan.level);
    let pid_file = plan.pid_file.as_deref().map(PidFile::create).transpose()?;
    let control = plan
        .control
        .as_deref()
        .map(|path| Server::open(path, control::client_token))
        .transpose()?;
    // The journal's form is for the journal alone.
    let feed = match plan.format {
        Some(Format::Json) => Format::Json,
        Some(Format::Text | Format::Journal) | None => Format::Text,
    };
    let generation = Rc::new(Generation::new(1, &plan)?);
    let listen = std::mem::take(&mut plan.listen);
    let returned = Returned::new(std::mem::take(&mut plan.returned));
    let mut master = Master {
        log,
        events: Loop::new()?,
        slots: (0..plan.workers).map(|_| Slot::new(&generation)).collect(),
        workers: BTreeMap::new(),
        last_id: 0,
        generation,
        last_generation: 1,
        phase: Phase::Initial,
        queued_reload: false,
        frozen: None,
        trial: None,
        reloads: Reloads::default(),
        deaths: BTreeMap::new(),
        probe: None,
        control,
        waiting: Vec::new(),
        subscribers: Vec::new(),
        feed: Log::new("spawnwork", Some(feed), Level::Info),
        line: (0..plan.workers).collect(),
        given: Vec::new(),
        given_names: Vec::new(),
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
        orphans: Orphans::default(),
        lifeline: None,
        null: std::fs::OpenOptions::new()
            .read(true)
            .open("/dev/null")
            .doing("open /dev/null")?
            .into(),
        started: Instant::now(),
        ever_ready: false,
        served: false,
        late: BTreeSet::new(),
        lost: 0,
        plan,
    };
    master.outputs[1] = Some(Output::open(2));
    if master.plan.pipe_stdout && !master.one_output {
        master.outputs[0] = Some(Output::open(1));
    }
    if let Some(exit) = master.adopt(&signals) {
        return Ok(exit);
    }
    for one in listen {
        master.listen(one)?;
    }
    master.prepare()?;
    master.read_orphans(Instant::now());
    master
        .events
        .add(&signals, Token::Signals.number(), Interest::Read)?;
    // Orphans of our workers come to us, and can be found; PID 1 gets them anyway.
    let _ = sys::become_subreaper();
    master.say(
        Level::Info,
        events::STARTED,
        &[
            ("workers", master.plan.workers.into()),
            ("generation", 1u32.into()),
        ],
    );
    let result = master.serve(&signals);
    master.end(result.as_ref().ok().copied());
    drop(pid_file);
    master.leave_clients();
    result
}

impl Master {
    fn listen(&mut self, one: Listen) -> Result<()> {
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
                        None => socket::listen(&address, self.plan.rights, self.plan.backlog),
                    },
                };
                let fd = made.map_err(|why| {
                    let mut text = common::error::describe(&why);
                    let holder = (why.kind() == std::io::ErrorKind::AddrInUse)
                        .then(|| socket::holder_of(&address));
                    if let Some((pid, command)) = holder.flatten() {
                        text = format!("{text} (held by pid {pid}, {command})");
                    }
                    Error::new(&format!("bind {address}"), text)
                })?;
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
        self.given.push((address, fd));
        self.given_names.push(name);
        Ok(())
    }

    pub(crate) fn warn_of_somaxconn(&self, address: &str) {
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
            // Written to the log that exists by now, although the loop does not run yet.
            if let Some(line) = self.log.line(Level::Warning, events::BACKLOG_CUT, &fields) {
                let _ = nix::unistd::write(sys::standard(2), &line);
            }
        }
    }

    fn prepare(&mut self) -> Result<()> {
        if matches!(
            self.plan.ready,
            Readiness::Found | Readiness::Told(crate::cli::Ready::Notify)
        ) || self.plan.watchdog.is_some()
        {
            let notify = Notify::open()?;
            self.events
                .add(&notify, Token::Notify.number(), Interest::Read)?;
            self.notify = Some(notify);
        }
        if let Some(control) = &self.control {
            self.events
                .add(control, Token::Control.number(), Interest::Read)?;
        }
        if self.plan.node == Node::Shim {
            let rendezvous = Rendezvous::open()?;
            self.events
                .add(&rendezvous.fd, Token::Rendezvous.number(), Interest::Read)?;
            self.rendezvous = Some(rendezvous);
        }
        if self.plan.node != Node::No && self.plan.preload {
            self.preload = Some(Preload::write()?);
        }
        if self.plan.orphans == OrphansArg::Die {
            self.lifeline = Some(Lifeline::open()?);
        }
        for which in [Which::Out, Which::Err] {
            if let Some(fd) = self.outputs[which as usize]
                .as_ref()
                .and_then(Output::descriptor)
            {
                // /dev/null and its like cannot be waited for, and need not be.
                let _ = self
                    .events
                    .add(fd, Token::Output(which).number(), Interest::Nothing);
            }
        }
        Ok(())
    }

    fn serve(&mut self, signals: &Signals) -> Result<Exit> {
        let mut wakes: Vec<Wake> = Vec::new();
        loop {
            let now = Instant::now();
            self.on_time(now);
            self.tell_supervisor(now);
            match self.phase {
                Phase::Stopping(exit)
                    if self.workers.is_empty()
                        && self.leftovers.is_empty()
                        && self.orphans.gone() =>
                {
                    return Ok(exit);
                }
                Phase::Stopping(_) | Phase::Initial | Phase::Running | Phase::Reloading(_) => {}
            }
            self.drive_outputs();
            self.events
                .wait(self.deadline(Instant::now()), &mut wakes)?;
            let now = Instant::now();
            let mut signalled = false;
            for wake in &wakes {
                match Token::from_number(wake.token) {
                    Some(Token::Signals) => signalled = true,
                    Some(Token::Channel(id)) => self.on_channel(id, *wake, now),
                    Some(Token::Stream(id)) => self.on_stream(id, now),
                    Some(Token::Socket(id)) => self.on_socket(id, now),
                    Some(Token::Output(_)) => {}
                    Some(Token::Notify) => self.on_notify(now),
                    Some(Token::Rendezvous) => self.on_rendezvous(),
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

    /// Child ends first, then stops, then reloads: a batch has no order of its own.
    fn on_signals(&mut self, signals: &Signals, now: Instant) {
        const CHLD: i32 = 17;
        let mut batch: Vec<Received> = std::iter::from_fn(|| signals.next()).collect();
        let rank = |signal: i32| match name(signal).as_str() {
            "CHLD" => 0,
            "QUIT" | "TERM" | "INT" => 1,
            _ => 2,
        };
        batch.sort_by_key(|received| rank(received.signal));
        if batch.iter().any(|received| received.signal == CHLD) {
            self.reap(now);
        }
        for received in batch {
            match name(received.signal).as_str() {
                "TERM" | "INT" => {
                    self.say(
                        Level::Info,
                        events::STOP_REQUESTED,
                        &[("signal", name(received.signal).into())],
                    );
                    if matches!(self.phase, Phase::Stopping(_)) {
                        self.kill_all("a second request to stop", now);
                    } else {
                        self.stop(Exit::Ok, now);
                    }
                }
                "QUIT" => {
                    self.say(
                        Level::Info,
                        events::STOP_REQUESTED,
                        &[("signal", "QUIT".into())],
                    );
                    if !matches!(self.phase, Phase::Stopping(_)) {
                        self.stop(Exit::Ok, now);
                    }
                    self.kill_all("QUIT", now);
                }
                "USR2" => drop(self.reload(now)),
                "HUP" if !signals.hup_ignored() => drop(self.reload(now)),
                "USR1" => self.status(now),
                "TTIN" if matches!(received.sender, Sender::Process(_)) => self.add_worker(),
                "TTOU" if matches!(received.sender, Sender::Process(_)) => self.remove_worker(now),
                // Everything else, SIGCHLD and SIGWINCH among it, ends nobody.
                _ => {}
            }
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
        if self
            .probe
            .as_ref()
            .is_some_and(|probe| probe.deadline <= now)
        {
            self.on_probe(now);
        }
        self.on_watchdog(now);
        self.on_workers_time(now);
        self.hand_over_all(now);
        if let Some(control) = self.control.as_mut() {
            control.expire(&self.events, now);
        }
        for leftover in &mut self.leftovers {
            if leftover.kill_at <= now {
                leftover.peers.iter().for_each(|peer| peer.signal(9));
                leftover.kill_at = now + Duration::from_secs(1);
            }
            leftover.peers.retain(Peer::alive);
        }
        self.leftovers.retain(|leftover| !leftover.peers.is_empty());
        self.on_orphans_time(now);
    }

    /// When something is due next.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let streams = self.streams.values().filter_map(|stream| stream.pause);
        let workers = self
            .workers
            .values()
            .filter_map(|worker| self.worker_deadline(worker, now));
        let slots = self.slots.iter().filter_map(|slot| match slot.wait {
            Wait::Backoff(until) | Wait::Held(until) => Some(until),
            Wait::Nothing | Wait::Queued => None,
        });
        let sockets = self
            .sockets
            .iter()
            .filter_map(|(_, shared)| shared.deadline());
        let leftovers = self.leftovers.iter().map(|leftover| leftover.kill_at);
        let reload = match &self.phase {
            Phase::Reloading(reloading) => match &reloading.check {
                Some(check) => Some(check.deadline),
                None => reloading.steps.deadline(),
            },
            Phase::Initial | Phase::Running | Phase::Stopping(_) => None,
        };
        let line = if self.line.is_empty() {
            None
        } else {
            self.next_start(now)
        };
        // Pids of strangers give no event: looked at while there are any.
        let strangers = (!self.leftovers.is_empty()).then(|| now + Duration::from_millis(50));
        streams
            .chain(workers)
            .chain(slots)
            .chain(sockets)
            .chain(leftovers)
            .chain(reload)
            .chain(self.probe.as_ref().map(|probe| probe.deadline))
            .chain(self.control.as_ref().and_then(Server::deadline))
            .chain(line)
            .chain(strangers)
            .chain(self.supervisor.deadline())
            .chain(self.orphans.deadline(now))
            .min()
    }

    fn worker_deadline(&self, worker: &Worker, now: Instant) -> Option<Instant> {
        match worker.state {
            State::Starting => {
                let limit = worker.started + self.plan.ready_timeout;
                let ready = worker.ready_from(&self.plan.ready);
                let check = match self.plan.ready {
                    Readiness::Told(crate::cli::Ready::Exec(_)) if worker.check.0.is_none() => {
                        Some(worker.check.1.max(now))
                    }
                    _ => None,
                };
                [Some(limit), ready, check].into_iter().flatten().min()
            }
            State::Serving => worker.heard_by,
            State::Draining | State::Aborting | State::Killing => worker.kill_at,
        }
    }

    // ---- what workers say ----

    pub(crate) fn index_of(&self, which: Which) -> usize {
        if self.one_output { 1 } else { which as usize }
    }

    /// Reads a stream until it is empty for now, or our own output is full.
    pub(crate) fn on_stream(&mut self, id: u64, now: Instant) {
        let mut buffer = [0u8; 64 << 10];
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
        let room = self.outputs[index].as_ref().is_some_and(Output::has_room);
        let interest = if room && stream.pause.is_none() {
            Interest::Read
        } else {
            Interest::Nothing
        };
        self.events
            .set(&*stream, Token::Stream(id).number(), interest);
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
                if let Some(fd) = output.descriptor() {
                    let interest = if waits {
                        Interest::Write
                    } else {
                        Interest::Nothing
                    };
                    self.events.set(fd, Token::Output(which).number(), interest);
                }
                self.outputs_waiting[index] = waits;
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
        self.sockets = Sockets::default();
        if let Some(control) = self.control.as_mut() {
            control.unlink();
        }
        self.say_goodbye(Instant::now());
        if let Some(control) = self.control.as_mut() {
            control.finish(&self.events, Duration::from_secs(1));
        }
    }

    /// Every child that has ended.
    fn reap(&mut self, now: Instant) {
        while let Some(pid) = child::next_ended() {
            if let Some(id) = self
                .workers
                .values()
                .find(|worker| worker.child.pid() == pid)
                .map(|worker| worker.id)
            {
                self.on_worker_end(id, now);
            } else if let Some(worker) = self.workers.values_mut().find(|worker| {
                worker
                    .check
                    .0
                    .as_ref()
                    .is_some_and(|check| check.pid() == pid)
            }) {
                if let Some(check) = worker.check.0.take() {
                    check.signal_group(9);
                    worker.shown |= check.reap() == Some(common::exit::End::Exited(0));
                    worker.check.1 = now + Duration::from_millis(200);
                }
            } else if matches!(&self.phase, Phase::Reloading(reloading)
                if reloading.check.as_ref().is_some_and(|check| check.pid() == pid))
            {
                self.on_check_end(now);
            } else {
                child::reap_stranger(pid);
            }
        }
    }
}

fn name(signal: i32) -> String {
    common::signal::name(signal)
}
