//! The loop of `serve`: who came, who said what, whose command ended.

use super::cli::Serve;
use super::client::{Client, Phase, Sent, Speech, Watch};
use super::plan::{Plan, Way};
use super::program::{Console, Ends, Output, Program, USUAL_SIZE, usual};
use super::queue::Queue;
use super::record::Recorder;
use super::replay::Replay;
use super::tell::{Visitor, Voice};
use crate::door;
use crate::events;
use crate::frames::{Hello, Kind, PREFACE, Piece, Stream};
use common::error::{Doing, Error, Result};
use common::event::Level;
use common::exit::{End, Exit};
use common::signal::Signals;
use common::wait::{Interest, Loop, Wake};
use nix::libc;
use nix::sys::socket::{Shutdown, SockFlag, accept4, shutdown};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// A client that says nothing for so long is one of plain text that waits for a greeting.
const SILENCE: Duration = Duration::from_millis(100);
/// One read: what a throughput of gigabytes wants, and there is one buffer for all.
const BUFFER: usize = 256 << 10;
/// A terminal gives 4 KiB at a time: so many of them become one frame.
const COALESCED: usize = 64 << 10;
/// A command whose client is gone has its input's end, and so long to take note of that.
const GRACE: Duration = Duration::from_secs(1);
/// From a hang-up to a kill.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// So long after its command's end what others hold open is still read: it may have been written before.
const LINGER: Duration = Duration::from_millis(50);
/// And so much of it at most: more than a pipe holds was written later.
const LINGER_BYTES: u64 = 1 << 20;
/// How long a client that got everything may take to close.
const PARTING: Duration = Duration::from_secs(1);
/// Without descriptors nobody is accepted for so long.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);
/// The path is looked at so often: cleaners of /tmp remove old sockets.
const LOOK: Duration = Duration::from_secs(10);
/// A client of a shared command for which so much waits ...
const SLOW: usize = 1 << 20;
/// ... loses it, unless it takes half of that within this time. So long the command waits for it, and so the
/// others: a burst is no fault of who reads it.
const PATIENCE: Duration = Duration::from_secs(1);
/// And has so long for what waits.
const SLOW_PARTING: Duration = Duration::from_secs(5);
/// A client over TCP proves itself within so long.
const UNKNOWN: Duration = Duration::from_secs(5);
/// More than --max-clients are only told that it is busy, and so many of them at once.
const TURNED_AWAY: usize = 32;
/// Connections that wait in the kernel.
const BACKLOG: i32 = 128;

/// No client has this number: whose command goes on without him belongs to him.
const NOBODY: u64 = 0;
const LISTENER: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;
const TCP: u64 = u64::MAX - 2;
const RECORDER: u64 = u64::MAX - 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Client(u64),
    Program(u64),
    Accept,
    Look,
    Stop,
}

/// Serves until a signal ends it.
pub fn run(order: Serve) -> Result<Exit> {
    common::fds::ensure_standard()?;
    // Before anything is opened: what we were started with is a shared command's.
    let inherited = if order.shared {
        common::wrap::inherited()
    } else {
        Vec::new()
    };
    let plan = Plan::of(order)?;
    let signals = Signals::block()?;
    common::sys::return_memory();
    let mut server = Server::open(plan, signals, &inherited)?;
    let exit = server.serve();
    server.close_door();
    if let Some(recorder) = &mut server.recorder {
        recorder.finish(PARTING);
    }
    server.voice.finish();
    drop(server);
    let exit = exit?;
    common::wrap::end_by_signal(exit);
    Ok(exit)
}

struct Server {
    plan: Plan,
    events: Loop,
    signals: Signals,
    listener: Option<OwnedFd>,
    tcp: Option<OwnedFd>,
    recorder: Option<Recorder>,
    /// The command of all, and what is shown to who comes to it.
    shared: Option<u64>,
    replay: Replay,
    /// Whose terminal the size of the shared one is.
    typist: u64,
    exit: Exit,
    voice: Voice,
    clients: BTreeMap<u64, Client>,
    programs: BTreeMap<u64, Program>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    buffer: Vec<u8>,
    next: u64,
    stopping: bool,
}

impl Server {
    fn open(plan: Plan, signals: Signals, inherited: &[RawFd]) -> Result<Server> {
        let events = Loop::new()?;
        events.add(&signals, SIGNALS, Interest::Read)?;
        let listener = door::listen(&plan.path, plan.rights, BACKLOG)?;
        events.add(&listener, LISTENER, Interest::Read)?;
        let tcp = match &plan.tcp {
            None => None,
            Some((address, _)) => {
                let doing = format!("listen on {address}");
                Some(common::socket::listen_tcp(*address, None, BACKLOG).doing(&doing)?)
            }
        };
        if let Some(tcp) = &tcp {
            events.add(tcp, TCP, Interest::Read)?;
        }
        let recorder = plan.record.as_deref().map(Recorder::open).transpose()?;
        if let Some(recorder) = &recorder {
            events.add(&*recorder.wake, RECORDER, Interest::Read)?;
        }
        let mut known = vec![0, nix::unistd::geteuid().as_raw()];
        known.extend(&plan.allowed.uids);
        let mut voice = Voice::new(plan.format, plan.quiet, &known);
        let address = plan.path.display().to_string();
        let fields = [("address", address.into()), ("command", plan.name().into())];
        voice.say(Level::Info, events::LISTENING, &fields);
        let mut server = Server {
            plan,
            events,
            signals,
            listener: Some(listener),
            tcp,
            recorder,
            shared: None,
            replay: Replay::default(),
            typist: 0,
            exit: Exit::Ok,
            voice,
            clients: BTreeMap::new(),
            programs: BTreeMap::new(),
            timers: BinaryHeap::new(),
            buffer: vec![0; BUFFER],
            next: 1,
            stopping: false,
        };
        server.at(Instant::now() + LOOK, Timer::Look);
        if server.plan.shared {
            server.begin_shared(inherited)?;
        }
        common::sys::forget_start();
        Ok(server)
    }

    fn at(&mut self, when: Instant, timer: Timer) {
        self.timers.push(Reverse((when, timer)));
    }

    fn serve(&mut self) -> Result<Exit> {
        let mut wakes: Vec<Wake> = Vec::new();
        while !(self.stopping && self.programs.is_empty() && self.clients.is_empty()) {
            let deadline = self.timers.peek().map(|Reverse((when, _))| *when);
            self.events.wait(deadline, &mut wakes)?;
            for wake in &wakes {
                self.woken(*wake);
            }
            let now = Instant::now();
            while let Some(Reverse((when, timer))) = self.timers.peek().copied() {
                if when > now {
                    break;
                }
                self.timers.pop();
                if timer == Timer::Stop {
                    self.programs.clear();
                    self.clients.clear();
                    break;
                }
                self.fired(timer, now);
            }
        }
        self.voice.say(Level::Info, events::STOPPED, &[]);
        Ok(self.exit)
    }

    fn begin_shared(&mut self, inherited: &[RawFd]) -> Result<()> {
        let console = match self.plan.way {
            Way::Pipes => Console::Pipes,
            // It has no client yet: what most terminals understand.
            Way::Terminal | Way::AsTheClient => {
                let term = std::env::var("TERM").ok().filter(|term| term != "dumb");
                Console::Terminal(USUAL_SIZE, term.unwrap_or_else(|| "xterm".to_owned()))
            }
        };
        let at = self.next;
        self.next += 1;
        let mut program =
            Program::start(&self.plan, at, None, &console, inherited).map_err(|message| Error {
                message,
                exit: Exit::Fault,
            })?;
        self.record(at, &mut program, &console, "");
        let fields = [("pid", program.pid.into())];
        self.voice
            .say(Level::Info, events::COMMAND_STARTED, &fields);
        self.programs.insert(at, program);
        self.shared = Some(at);
        self.adjust_program(at);
        Ok(())
    }

    fn record(&self, at: u64, program: &mut Program, console: &Console, title: &str) {
        let Some(recorder) = &self.recorder else {
            return;
        };
        let (size, term) = match console {
            Console::Pipes => (USUAL_SIZE, ""),
            Console::Terminal(size, term) => (usual(*size), term.as_str()),
        };
        let words: Vec<_> = self
            .plan
            .command
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        let command = words.join(" ");
        program.recording = Some(recorder.begin(at, program.pid, size, &command, title, term));
    }

    fn woken(&mut self, wake: Wake) {
        match wake.token {
            LISTENER | TCP => self.accept(wake.token),
            RECORDER => {
                let failures = self.recorder.as_ref().map(Recorder::failures);
                for error in failures.unwrap_or_default() {
                    let fields = [("error", error.into())];
                    self.voice.say(Level::Error, events::RECORD_FAILED, &fields);
                }
            }
            SIGNALS => self.signalled(),
            token => {
                let (id, role) = (token >> 3, token & 7);
                match role {
                    0 => self.client_woken(id, wake),
                    1 => self.feed_more(id),
                    2 => {
                        if wake.writable {
                            self.feed_more(id);
                        }
                        if wake.readable {
                            self.heard(id, Output::Main);
                        }
                    }
                    3 => self.heard(id, Output::Errors),
                    _ => self.program_ended(id),
                }
            }
        }
    }

    fn fired(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Client(id) => self.client_due(id, now),
            Timer::Program(id) => self.program_due(id, now),
            Timer::Accept => {
                let mut waits = true;
                for (listener, token) in [(&self.listener, LISTENER), (&self.tcp, TCP)] {
                    if let Some(listener) = listener {
                        // One of them may be waited for already.
                        self.events.remove(listener);
                        waits &= self.events.add(listener, token, Interest::Read).is_ok();
                    }
                }
                if !waits {
                    // Short of memory here too; without a further try nobody would ever come in again.
                    self.at(now + NO_DESCRIPTORS, Timer::Accept);
                }
            }
            Timer::Look => {
                self.look();
                self.at(now + LOOK, Timer::Look);
            }
            Timer::Stop => {}
        }
    }

    // ---- the door ----

    fn accept(&mut self, token: u64) {
        for _ in 0..64 {
            let listener = if token == TCP {
                &self.tcp
            } else {
                &self.listener
            };
            let Some(listener) = listener else {
                return;
            };
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = match accept4(listener.as_raw_fd(), flags) {
                // It is new, and nobody else's.
                Ok(fd) => common::sys::adopt(fd),
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
                Err(nix::Error::EAGAIN) => return,
                Err(why) => {
                    self.events.remove(listener);
                    let error = common::error::describe(&why.into());
                    let fields = [("error", error.into())];
                    self.voice
                        .say(Level::Warning, events::ACCEPT_PAUSED, &fields);
                    self.at(Instant::now() + NO_DESCRIPTORS, Timer::Accept);
                    return;
                }
            };
            match fd {
                Some(fd) if token == TCP => self.welcome_tcp(fd),
                Some(fd) => self.welcome(fd),
                None => {}
            }
        }
    }

    fn welcome(&mut self, fd: OwnedFd) {
        let Ok(peer) = door::peer(&fd) else {
            return;
        };
        let visitor = Visitor::unix(peer);
        let groups = || common::sys::peer_groups(fd.as_fd()).unwrap_or_default();
        let refusal = (!self.plan.allowed.lets_in(peer, groups)).then(|| {
            let text = format!("user {} is not let in; serve --allow would do", peer.uid);
            (126, text)
        });
        self.admit(fd, visitor, true, refusal);
    }

    fn welcome_tcp(&mut self, fd: OwnedFd) {
        let Some(address) = common::socket::peer_addr(&fd) else {
            return;
        };
        // A key is sent as it is typed.
        let _ = nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::TcpNoDelay, &true);
        self.admit(fd, Visitor::Tcp(address), false, None);
    }

    fn admit(
        &mut self,
        fd: OwnedFd,
        visitor: Visitor,
        trusted: bool,
        mut refusal: Option<(u8, String)>,
    ) {
        let turned_away = self
            .clients
            .values()
            .filter(|client| client.refusal.is_some())
            .count();
        if refusal.is_none() && self.clients.len() - turned_away >= self.plan.max_clients {
            refusal = Some((
                125,
                format!("busy: {} clients are served", self.plan.max_clients),
            ));
        }
        let mut fields = self.voice.who(&visitor);
        if let Some((status, why)) = &refusal {
            fields.push(("status", i32::from(*status).into()));
            fields.push(("error", why.as_str().into()));
            self.voice
                .say(Level::Warning, events::CLIENT_REFUSED, &fields);
            if turned_away >= TURNED_AWAY {
                return;
            }
        }
        let now = Instant::now();
        let id = self.next;
        self.next += 1;
        let patience = if trusted { SILENCE } else { UNKNOWN };
        let client = Client {
            fd,
            visitor,
            speech: Speech::Unknown,
            out: Queue::default(),
            slow: None,
            watch: Watch::new(id << 3),
            phase: Phase::Open,
            program: None,
            trusted,
            refusal,
            read_only: false,
            terminal: false,
            size: (0, 0),
            term: String::new(),
            input_over: false,
            since: now,
            active: now,
            received: 0,
            sent: 0,
        };
        self.clients.insert(id, client);
        self.at(now + patience, Timer::Client(id));
        // What it says at once is there mostly, and a wake less.
        self.read_client(id);
    }

    fn look(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        match self.plan.path.symlink_metadata() {
            Ok(_) if common::socket::leads_to(&self.plan.path, listener) => {}
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
                let address = self.plan.path.display().to_string();
                let fields = [("address", address.into())];
                match door::listen(&self.plan.path, self.plan.rights, BACKLOG) {
                    Ok(again) => {
                        if self.events.add(&again, LISTENER, Interest::Read).is_ok() {
                            self.voice
                                .say(Level::Warning, events::SOCKET_RENEWED, &fields);
                            self.listener = Some(again);
                        }
                    }
                    Err(_) => self.voice.say(Level::Error, events::SOCKET_LOST, &fields),
                }
            }
            Ok(_) | Err(_) => {
                let address = self.plan.path.display().to_string();
                let fields = [("address", address.into())];
                self.voice.say(Level::Error, events::SOCKET_LOST, &fields);
            }
        }
    }

    // ---- signals ----

    fn signalled(&mut self) {
        while let Some(received) = self.signals.next() {
            let command = self.shared.and_then(|at| self.programs.get(&at));
            match received.signal {
                libc::SIGCHLD => self.reap_unheard(),
                // About ourselves, our terminal, or our own writing.
                libc::SIGPIPE
                | libc::SIGTSTP
                | libc::SIGTTIN
                | libc::SIGTTOU
                | libc::SIGCONT
                | libc::SIGWINCH
                | libc::SIGXFSZ => {}
                // With a command that is there for all we are its wrapper.
                signal if command.is_some() => {
                    if let Some(child) = command.and_then(|command| command.child.as_ref()) {
                        child.signal(signal);
                    }
                }
                libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => self.stop(),
                _ => {}
            }
        }
    }

    /// Commands whose end could not be waited for.
    fn reap_unheard(&mut self) {
        let unheard = |program: &Program| program.child.is_some() && !program.watches[3].is_on();
        let ids: Vec<u64> = self
            .programs
            .iter()
            .filter(|(_, program)| unheard(program))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.program_ended(id);
        }
    }

    /// No more clients; the commands are hung up, and have their time for that.
    fn stop(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        let now = Instant::now();
        self.close_door();
        let ids: Vec<u64> = self.programs.keys().copied().collect();
        for id in ids {
            if let Some(program) = self.programs.get_mut(&id) {
                program.hang_up(now + KILL_AFTER);
                self.at(now + KILL_AFTER, Timer::Program(id));
            }
        }
        let idle: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.program.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            self.part(id);
        }
        self.at(now + KILL_AFTER + PARTING * 2, Timer::Stop);
    }

    fn close_door(&mut self) {
        self.tcp = None;
        if let Some(listener) = self.listener.take() {
            // Somebody else's is not removed.
            if common::socket::leads_to(&self.plan.path, &listener) {
                let _ = std::fs::remove_file(&self.plan.path);
            }
        }
    }

    // ---- clients ----

    fn client_woken(&mut self, id: u64, wake: Wake) {
        if wake.writable {
            let Some(client) = self.clients.get_mut(&id) else {
                return;
            };
            if !client.out.is_empty() {
                client.active = Instant::now();
                if client.flush() == Sent::Gone {
                    return self.gone(id);
                }
                let caught_up = client.slow.is_some() && client.out.len() <= SLOW / 2;
                if caught_up {
                    client.slow = None;
                }
                let room = client.out.is_empty() || caught_up;
                let program = client.program;
                if client.out.is_empty() && matches!(client.phase, Phase::Closing(_)) {
                    return self.part(id);
                }
                if let (true, Some(at)) = (room, program) {
                    // It was not listened to meanwhile.
                    self.adjust_program(at);
                }
            }
        }
        if wake.readable {
            self.read_client(id);
        } else {
            self.adjust(id);
        }
    }

    fn read_client(&mut self, id: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Some(client) = self.clients.get_mut(&id) {
            let program = client.program.and_then(|at| self.programs.get(&at));
            let full = client.phase == Phase::Open && program.is_some_and(|it| !it.has_room());
            if full && !client.hung_up() {
                // Others have filled the shared command since it was waited for.
                self.buffer = buffer;
                return self.adjust(id);
            }
            match nix::unistd::read(&client.fd, &mut buffer) {
                Ok(0) => {
                    if client.hung_up() || client.phase != Phase::Open {
                        self.gone(id);
                    } else {
                        self.half_closed(id);
                    }
                }
                Ok(count) => self.said(id, &buffer[..count]),
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                Err(_) => self.gone(id),
            }
        }
        self.buffer = buffer;
        self.adjust(id);
    }

    fn said(&mut self, id: u64, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.phase != Phase::Open {
            return;
        }
        client.active = Instant::now();
        let first = client.received == 0;
        client.received += bytes.len() as u64;
        let late =
            first && matches!(client.speech, Speech::Plain) && bytes.first() == Some(&PREFACE);
        if late {
            return self.late(id, bytes);
        }
        match &client.speech {
            Speech::Unknown => match bytes.split_first() {
                Some((&PREFACE, rest)) => {
                    client.speech = Speech::Frames(Stream::default());
                    self.framed(id, rest);
                }
                _ => {
                    self.plain(id);
                    self.input(id, bytes);
                }
            },

            Speech::Plain => self.input(id, bytes),
            Speech::Frames(_) => self.framed(id, bytes),
        }
    }

    /// A client of frames that was so slow to say so that it was taken for one of plain text: what was
    /// started for it is dropped. If it was sent something already it cannot tell that from frames, and has
    /// to come again.
    fn late(&mut self, id: u64, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let program = client.program.take();
        let clean = client.sent == 0;
        client.speech = Speech::Frames(Stream::default());
        if let Some(program) = program {
            self.abandon(program);
        }
        if clean {
            self.framed(id, bytes.get(1..).unwrap_or_default());
        } else {
            self.gone(id);
        }
    }

    fn framed(&mut self, id: u64, mut bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        // Taken out, so that what it hands on can be given to the rest of us.
        let speech = std::mem::replace(&mut client.speech, Speech::Frames(Stream::default()));
        let Speech::Frames(mut stream) = speech else {
            return;
        };
        loop {
            match stream.take(&mut bytes) {
                Ok(None) => break,
                Ok(Some(Piece::Data(part))) => {
                    self.begin(id, &Hello::default());
                    self.input(id, part);
                }
                Ok(Some(Piece::Whole(kind, body))) => self.frame(id, kind, body),
                Ok(Some(Piece::Stderr(_))) => {}
                Err(bad) => {
                    self.refuse(
                        id,
                        125,
                        &format!("{bad} came; replsock-protocol(7) has those that are known"),
                    );
                    break;
                }
            }
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.speech = Speech::Frames(stream);
        }
    }

    fn frame(&mut self, id: u64, kind: Kind, body: &[u8]) {
        match kind {
            Kind::Hello => match Hello::read(body) {
                Some(hello) => self.begin(id, &hello),
                None => self.refuse(id, 125, "your HELLO is none"),
            },
            Kind::Eof => {
                self.begin(id, &Hello::default());
                self.end_input(id);
            }
            Kind::Winch => {
                let Some(size) = crate::frames::size_of_body(body) else {
                    return;
                };
                let Some(client) = self.clients.get_mut(&id) else {
                    return;
                };
                client.size = size;
                let Some(at) = client.program else { return };
                let alone = || self.attached(at).count() == 1;
                if !self.plan.shared || self.typist == id || alone() {
                    self.resize(at, size);
                }
            }
            Kind::Signal => {
                let (Some(client), Some(signal)) = (self.clients.get(&id), body.first()) else {
                    return;
                };
                let signal = i32::from(*signal);
                // What can be typed, too; the others' command is not ended by number.
                let typed = [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP].contains(&signal);
                let program = client.program.and_then(|at| self.programs.get(&at));
                if let (Some(program), false) = (program, client.read_only) {
                    if typed || !self.plan.shared {
                        program.signal(signal);
                    }
                }
            }
            // Only a server says those.
            Kind::Data | Kind::Stderr | Kind::Exit | Kind::Error => {}
        }
    }

    /// A client of frames begins, once: with its HELLO, or with the first thing that it says instead.
    fn begin(&mut self, id: u64, hello: &Hello) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.program.is_some() || client.phase != Phase::Open {
            return;
        }
        if let Some((status, why)) = client.refusal.clone() {
            return self.refuse(id, status, &why);
        }
        if !client.trusted {
            let token = self.plan.tcp.as_ref().map(|(_, token)| token.as_str());
            if !token.is_some_and(|token| door::same_token(token, &hello.token)) {
                return self.turn_away(id, "the token is another one (--token-file)");
            }
            client.trusted = true;
        }
        client.terminal = hello.mode == "pty";
        client.size = (hello.cols, hello.rows);
        client.term.clone_from(&hello.term);
        client.read_only = hello.read_only;
        let way = self.plan.way;
        let answer = Hello {
            version: 1,
            mode: "serve".to_owned(),
            terminal: way == Way::Terminal || way == Way::AsTheClient && client.terminal,
            pid: std::process::id() as i32,
            shared: self.plan.shared,
            ..Hello::default()
        };
        if client.send(Kind::Hello, &answer.body()) == Sent::Gone {
            return self.gone(id);
        }
        if hello.mode == "json" {
            // It looks for an agent. What it asks for must not become a command's input.
            return self.close(id);
        }
        self.start(id);
    }

    /// A client of plain text begins.
    fn plain(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.speech = Speech::Plain;
        if !client.trusted {
            return self.turn_away(id, "this port wants frames, and a token in HELLO");
        }
        if let Some((status, why)) = client.refusal.clone() {
            return self.refuse(id, status, &why);
        }
        self.start(id);
    }

    /// Who has not proved himself.
    fn turn_away(&mut self, id: u64, why: &str) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let mut fields = self.voice.who(&client.visitor);
        fields.push(("status", 126.into()));
        fields.push(("error", why.into()));
        self.voice
            .say(Level::Warning, events::CLIENT_REFUSED, &fields);
        self.refuse(id, 126, why);
    }

    /// A client comes to the command of all.
    fn attach(&mut self, id: u64, at: u64) {
        let (Some(client), Some(program)) = (self.clients.get_mut(&id), self.programs.get(&at))
        else {
            return self.refuse(id, 125, "its command has ended");
        };
        client.program = Some(at);
        let mode = if program.on_terminal() { "pty" } else { "pipe" };
        let pid = program.pid;
        let mut fields = self.voice.who(&client.visitor);
        fields.push(("pid", pid.into()));
        fields.push(("mode", mode.into()));
        self.voice
            .say(Level::Info, events::CLIENT_CONNECTED, &fields);
        if client.terminal {
            // A script gets what is said from now on, and no answer to somebody else's question.
            if !self.replay.shown().is_empty()
                && client.send(Kind::Data, self.replay.shown()) == Sent::Gone
            {
                return self.gone(id);
            }
            let size = client.size;
            self.typist = id;
            self.resize(at, size);
            // A program that fills the screen draws it anew, also if it has that size already.
            if let Some(program) = self.programs.get(&at) {
                program.signal(libc::SIGWINCH);
            }
        }
        if let Some(idle) = self.plan.idle {
            self.at(Instant::now() + idle, Timer::Client(id));
        }
    }

    fn attached(&self, at: u64) -> impl Iterator<Item = u64> + '_ {
        self.clients
            .iter()
            .filter(move |(_, client)| client.program == Some(at))
            .map(|(id, _)| *id)
    }

    fn resize(&mut self, at: u64, size: (u16, u16)) {
        if let Some(program) = self.programs.get_mut(&at) {
            program.resize(size);
            if let (Some(recorder), Some(recording)) = (&self.recorder, &mut program.recording) {
                recorder.resized(recording, usual(size));
            }
        }
    }

    fn start(&mut self, id: u64) {
        if self.plan.shared {
            return self.attach(id, self.shared.unwrap_or(NOBODY));
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let console = match (self.plan.way, client.terminal) {
            (Way::Terminal, _) | (Way::AsTheClient, true) => {
                Console::Terminal(client.size, client.term.clone())
            }
            (Way::Pipes, _) | (Way::AsTheClient, false) => Console::Pipes,
        };
        let at = self.next;
        self.next += 1;
        let mut program = match Program::start(&self.plan, at, Some(id), &console, &[]) {
            Ok(program) => program,
            Err(why) => return self.refuse(id, 125, &why),
        };
        client.program = Some(at);
        let mut fields = self.voice.who(&client.visitor);
        fields.push(("pid", program.pid.into()));
        let mode = if program.on_terminal() { "pty" } else { "pipe" };
        fields.push(("mode", mode.into()));
        self.voice
            .say(Level::Info, events::CLIENT_CONNECTED, &fields);
        if self.recorder.is_some() {
            let title = client.visitor.to_string();
            self.record(at, &mut program, &console, &title);
        }
        self.programs.insert(at, program);
        if let Some(idle) = self.plan.idle {
            self.at(Instant::now() + idle, Timer::Client(id));
        }
        self.adjust_program(at);
    }

    /// Says why not, and that is its last.
    fn refuse(&mut self, id: u64, status: u8, why: &str) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let sent = if client.framed() {
            let mut body = vec![status];
            body.extend_from_slice(why.as_bytes());
            client.send(Kind::Error, &body)
        } else {
            client.send(Kind::Data, format!("replsock: {why}\n").as_bytes())
        };
        if sent == Sent::Gone {
            return self.gone(id);
        }
        self.close(id);
    }

    /// What waits for it is its last.
    fn close(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.phase != Phase::Open {
            return;
        }
        client.phase = Phase::Closing(None);
        let slow = client.slow.take().and(client.program);
        if client.out.is_empty() {
            self.part(id);
        } else {
            self.adjust(id);
        }
        if let Some(at) = slow {
            self.adjust_program(at);
        }
    }

    /// It has everything.
    fn part(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if matches!(client.phase, Phase::Over(_)) {
            return;
        }
        let until = Instant::now() + PARTING;
        client.phase = Phase::Over(until);
        if shutdown(client.fd.as_raw_fd(), Shutdown::Write).is_err() || client.input_over {
            return self.gone(id);
        }
        self.at(until, Timer::Client(id));
        self.adjust(id);
    }

    fn input(&mut self, id: u64, bytes: &[u8]) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        if client.read_only || client.input_over {
            return;
        }
        let Some(at) = client.program else { return };
        let (terminal, size) = (client.terminal, client.size);
        if self.plan.shared && terminal && self.typist != id {
            // The size of the one that types.
            self.typist = id;
            self.resize(at, size);
        }
        if let Some(program) = self.programs.get_mut(&at) {
            program.feed(bytes);
            self.adjust_program(at);
        }
    }

    fn half_closed(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if matches!(client.speech, Speech::Unknown) {
            // An empty input.
            self.plain(id);
        }
        self.end_input(id);
    }

    fn end_input(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.input_over = true;
        let Some(at) = client.program else { return };
        if let Some(program) = self.programs.get_mut(&at) {
            if program.owner == Some(id) {
                program.input_over = true;
                self.feed_more(at);
            }
        }
    }

    /// Nobody is there any more.
    fn gone(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        let Some(at) = client.program else { return };
        let mut fields = self.voice.who(&client.visitor);
        fields.push(("received", client.received.into()));
        fields.push(("sent", client.sent.into()));
        fields.push(("took", client.since.elapsed().into()));
        self.voice.say(Level::Info, events::CLIENT_LEFT, &fields);
        let slow = client.slow.is_some();
        drop(client);
        if self
            .programs
            .get(&at)
            .is_some_and(|program| program.owner == Some(id))
        {
            self.abandon(at);
        } else if slow {
            // Nobody waits for it any more.
            self.adjust_program(at);
        }
    }

    /// A command without its client. On a terminal that is a hang-up; with pipes it still has what it was
    /// sent, and the end of that.
    fn abandon(&mut self, at: u64) {
        let now = Instant::now();
        let Some(program) = self.programs.get_mut(&at) else {
            return;
        };
        program.input_over = true;
        program.owner = Some(NOBODY);
        let due = if program.on_terminal() {
            program.hang_up(now + KILL_AFTER);
            program.ends = Ends::None;
            program.pending = Queue::default();
            now + KILL_AFTER
        } else {
            program.flush(now);
            program.hang_up_at = Some(now + GRACE);
            now + GRACE
        };
        self.at(due, Timer::Program(at));
        self.adjust_program(at);
    }

    fn client_due(&mut self, id: u64, now: Instant) {
        let unheard = |client: &Client| {
            client.phase == Phase::Open
                && matches!(client.speech, Speech::Unknown)
                && !client.watch.is_on()
        };
        if self.clients.get(&id).is_some_and(unheard) {
            self.read_client(id);
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        match client.phase {
            Phase::Over(until) | Phase::Closing(Some(until)) if until <= now => {
                return self.gone(id);
            }
            Phase::Over(_) => return,
            Phase::Open if client.slow.is_some_and(|until| until <= now) => {
                return self.drop_slow(id, now);
            }
            Phase::Open | Phase::Closing(_) => {}
        }
        if !client.trusted {
            if now >= client.since + UNKNOWN {
                self.gone(id);
            }
            return;
        }
        if matches!(client.speech, Speech::Unknown) {
            if now >= client.since + SILENCE {
                self.plain(id);
                self.adjust(id);
            }
            return;
        }
        if let (Some(idle), true) = (self.plan.idle, client.program.is_some()) {
            let until = client.active + idle;
            if until <= now {
                let text = format!("nothing moved for {}", common::time::say(idle));
                // One that does not read would not hear of it either.
                if client.framed() && client.out.is_empty() {
                    return self.refuse(id, 124, &text);
                }
                return self.gone(id);
            }
            self.at(until, Timer::Client(id));
        }
    }

    /// What is waited for of a client.
    fn adjust(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let room = client
            .program
            .and_then(|at| self.programs.get(&at))
            .is_none_or(Program::has_room);
        let read = match client.phase {
            Phase::Open => !client.input_over && room,
            // It goes on sending though nobody listens: not our loss.
            Phase::Closing(_) => false,
            Phase::Over(_) => true,
        };
        let write = !client.out.is_empty();
        let fd = client.fd.as_fd();
        let heard = if !read && !write {
            client.watch.want_hang_up(&self.events, fd)
        } else {
            client.watch.want(&self.events, fd, read, write)
        };
        if !heard {
            self.unheard(id);
        }
    }

    /// The kernel cannot wait for a client, or for its command: it is told so, and closed.
    fn unheard(&mut self, id: u64) {
        const WHY: &str = "the kernel is short of memory, or of epoll watches (fs.epoll.max_user_watches); try again";
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.phase != Phase::Open {
            // What it still sends is not waited for; unread, it would take from it what it has not read.
            let _ = nix::unistd::read(&client.fd, &mut [0u8; 4096]);
            return self.gone(id);
        }
        let first = client.refusal.is_none();
        if first {
            client.refusal = Some((125, WHY.to_owned()));
            let mut fields = self.voice.who(&client.visitor);
            fields.push(("status", 125.into()));
            fields.push(("error", WHY.into()));
            self.voice
                .say(Level::Warning, events::CLIENT_REFUSED, &fields);
        }
        if matches!(client.speech, Speech::Unknown) {
            // How to tell it is known when it has spoken, or is silent for a while.
            if first {
                self.at(Instant::now() + SILENCE, Timer::Client(id));
            }
            return;
        }
        self.refuse(id, 125, WHY);
    }

    // ---- commands ----

    fn feed_more(&mut self, at: u64) {
        let Some(program) = self.programs.get_mut(&at) else {
            return;
        };
        program.flush(Instant::now());
        if let (_, Some(due)) = program.typed_eof {
            self.timers.push(Reverse((due, Timer::Program(at))));
        }
        let owner = program.owner;
        self.adjust_program(at);
        self.adjust_owner(at, owner);
    }

    fn adjust_owner(&mut self, at: u64, owner: Option<u64>) {
        match owner {
            Some(owner) => self.adjust(owner),
            None => {
                let ids: Vec<u64> = self.attached(at).collect();
                for id in ids {
                    self.adjust(id);
                }
            }
        }
    }

    fn heard(&mut self, at: u64, which: Output) {
        let Some(program) = self.programs.get_mut(&at) else {
            return;
        };
        let Some(fd) = program.output(which) else {
            return;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut have = 0;
        let mut over = false;
        loop {
            match nix::unistd::read(fd, &mut buffer[have..]) {
                Ok(0) | Err(nix::Error::EIO) => {
                    over = true;
                    break;
                }
                Ok(count) => {
                    have += count;
                    // A terminal gives little at a time; where it gave much there is more.
                    if !program.on_terminal() || count < 1024 || have >= COALESCED {
                        break;
                    }
                }
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => {}
                Err(_) => {
                    over = true;
                    break;
                }
            }
        }
        if program.end.is_some() {
            program.after_end += have as u64;
        }
        program.look_at_terminal();
        if over {
            program.output_over(which);
        }
        let owner = program.owner;
        if have > 0 {
            let kind = match which {
                Output::Main => Kind::Data,
                Output::Errors => Kind::Stderr,
            };
            self.deliver(at, owner, kind, &buffer[..have]);
        }
        self.buffer = buffer;
        if over {
            self.settle(at);
        }
        self.adjust_program(at);
        self.adjust_owner(at, owner);
    }

    fn deliver(&mut self, at: u64, owner: Option<u64>, kind: Kind, bytes: &[u8]) {
        if let Some(program) = self.programs.get_mut(&at) {
            if let (Some(recorder), Some(recording)) = (&self.recorder, &mut program.recording) {
                recorder.output(recording, bytes);
            }
            if program.on_terminal() && bytes.contains(&0x1b) || program.queries.is_within() {
                let answers = program.queries.answers(bytes);
                let mut clients = self.clients.values();
                if !answers.is_empty()
                    && !clients.any(|client| client.program == Some(at) && client.terminal)
                {
                    program.feed(&answers);
                }
            }
        }
        let Some(id) = owner else {
            return self.deliver_to_all(at, kind, bytes);
        };
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.active = Instant::now();
        if client.send(kind, bytes) == Sent::Gone {
            self.gone(id);
        }
    }

    /// The command waits a moment for its clients, and for none longer: who does not keep up loses it.
    fn deliver_to_all(&mut self, at: u64, kind: Kind, bytes: &[u8]) {
        self.replay.add(bytes);
        let now = Instant::now();
        let (mut gone, mut slow) = (Vec::new(), Vec::new());
        for (id, client) in &mut self.clients {
            if client.program != Some(at) || client.phase != Phase::Open {
                continue;
            }
            client.active = now;
            if client.send(kind, bytes) == Sent::Gone {
                gone.push(*id);
            } else if client.out.len() > SLOW && client.slow.is_none() {
                client.slow = Some(now + PATIENCE);
                slow.push(*id);
            }
        }
        for id in slow {
            self.at(now + PATIENCE, Timer::Client(id));
        }
        for id in gone {
            self.gone(id);
        }
    }

    fn drop_slow(&mut self, id: u64, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.slow = None;
        if client.framed() {
            let mut body = vec![125];
            body.extend_from_slice(b"too slow: 1 MiB of output waited for you");
            let _ = client.send(Kind::Error, &body);
        }
        client.phase = Phase::Closing(Some(now + SLOW_PARTING));
        let program = client.program;
        self.at(now + SLOW_PARTING, Timer::Client(id));
        self.adjust(id);
        if let Some(at) = program {
            self.adjust_program(at);
        }
    }

    fn program_ended(&mut self, at: u64) {
        let now = Instant::now();
        let Some(program) = self.programs.get_mut(&at) else {
            return;
        };
        if let Some(child) = &program.child {
            let _ = program.watches[3].want(&self.events, child.as_fd(), false, false);
        }
        if program.reap(
            self.plan
                .command
                .first()
                .map(|word| word.as_os_str())
                .unwrap_or_default(),
            now,
        ) {
            self.at(now + LINGER, Timer::Program(at));
            self.settle(at);
        }
    }

    fn program_due(&mut self, at: u64, now: Instant) {
        let Some(program) = self.programs.get_mut(&at) else {
            return;
        };
        if program.hang_up_at.is_some_and(|due| due <= now) {
            program.hang_up(now + KILL_AFTER);
            self.timers
                .push(Reverse((now + KILL_AFTER, Timer::Program(at))));
        }
        if program.kill_at.is_some_and(|due| due <= now) {
            program.kill();
        }
        if let (_, Some(due)) = program.typed_eof {
            if due <= now {
                program.type_eof(now);
                if let (_, Some(next)) = program.typed_eof {
                    self.timers.push(Reverse((next, Timer::Program(at))));
                }
            }
        }
        let again = std::mem::take(&mut program.again);
        if program.ended_at.is_some_and(|ended| now >= ended + LINGER) {
            self.linger(at, now);
        }
        if again {
            self.adjust_program(at);
        }
    }

    /// The command has ended, and somebody else holds its output open: what it wrote is there by now.
    fn linger(&mut self, at: u64, now: Instant) {
        for which in [Output::Main, Output::Errors] {
            let Some(program) = self.programs.get(&at) else {
                return;
            };
            if program.output(which).is_none() || !self.listens(program) {
                continue;
            }
            let before = program.after_end;
            self.heard(at, which);
            if let Some(program) = self.programs.get_mut(&at) {
                if program.after_end == before || program.after_end > LINGER_BYTES {
                    program.output_over(which);
                }
            }
        }
        self.settle(at);
        if self.programs.contains_key(&at) {
            self.at(now + LINGER, Timer::Program(at));
        }
    }

    /// What it says can be passed on now, or thrown away.
    fn listens(&self, program: &Program) -> bool {
        match program.owner {
            Some(id) => {
                let client = self.clients.get(&id);
                client.is_none_or(|client| client.out.is_empty())
            }
            None => self.clients.values().all(|client| client.slow.is_none()),
        }
    }

    /// Where it has ended and all of it was heard, that is told.
    fn settle(&mut self, at: u64) {
        let Some(program) = self.programs.get(&at) else {
            return;
        };
        let (Some(end), true) = (program.end, program.silent()) else {
            return;
        };
        let Some(mut program) = self.programs.remove(&at) else {
            return;
        };
        if let (Some(recorder), Some(recording)) = (&self.recorder, program.recording.take()) {
            recorder.end(recording);
        }
        let fields = [
            ("pid", program.pid.into()),
            ("end", end.into()),
            ("took", program.since.elapsed().into()),
        ];
        self.voice.say(Level::Info, events::COMMAND_ENDED, &fields);
        let Some(id) = program.owner else {
            return self.shared_ended(at, end, program.failure);
        };
        self.tell_end(id, end, program.failure.as_ref());
    }

    /// The command of all has ended, and so do we.
    fn shared_ended(&mut self, at: u64, end: End, failure: Option<(u8, String)>) {
        self.exit = match &failure {
            Some((status, _)) => Exit::Code(*status),
            None => end.into(),
        };
        self.stopping = true;
        self.close_door();
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            if self
                .clients
                .get(&id)
                .is_some_and(|client| client.program == Some(at))
            {
                self.tell_end(id, end, failure.as_ref());
            } else {
                self.part(id);
            }
        }
        if let Some((_, why)) = failure {
            let fields = [("error", why.into())];
            self.voice
                .say(Level::Error, events::COMMAND_FAILED, &fields);
        }
        self.at(Instant::now() + PARTING * 2, Timer::Stop);
    }

    fn tell_end(&mut self, id: u64, end: End, failure: Option<&(u8, String)>) {
        if let Some((status, why)) = failure {
            return self.refuse(id, *status, why);
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.framed() {
            let body = match end {
                End::Exited(status) => [0, (status & 255) as u8],
                End::Killed(signal) => [1, (signal & 255) as u8],
            };
            if client.send(Kind::Exit, &body) == Sent::Gone {
                return self.gone(id);
            }
        }
        self.close(id);
    }

    /// What is waited for of a command.
    fn adjust_program(&mut self, at: u64) {
        let Some(program) = self.programs.get(&at) else {
            return;
        };
        let listens = self.listens(program);
        let Some(program) = self.programs.get_mut(&at) else {
            return;
        };
        let write = !program.pending.is_empty();
        let [of_input, of_output, of_errors, of_child] = &mut program.watches;
        let mut heard = true;
        if let Some(child) = &program.child {
            heard &= of_child.want(&self.events, child.as_fd(), true, false);
        }
        match &program.ends {
            Ends::Pipes {
                input,
                output,
                errors,
            } => {
                if let Some(fd) = input {
                    heard &= of_input.want(&self.events, fd.as_fd(), false, write);
                }
                if let Some(fd) = output {
                    heard &= of_output.want(&self.events, fd.as_fd(), listens, false);
                }
                if let Some(fd) = errors {
                    heard &= of_errors.want(&self.events, fd.as_fd(), listens, false);
                }
            }
            Ends::Terminal { master, over, .. } => {
                heard &= of_output.want(&self.events, master.as_fd(), listens && !over, write);
            }
            Ends::None => {}
        }
        match program.owner {
            Some(_) if heard => {}
            Some(owner) => {
                let client = self.clients.get(&owner);
                if client.is_some_and(|client| client.phase == Phase::Open) {
                    self.unheard(owner);
                }
            }
            // That of all is not ended for it: it is tried again.
            None if heard => program.again = false,
            None if program.again => {}
            None => {
                program.again = true;
                self.at(Instant::now() + NO_DESCRIPTORS, Timer::Program(at));
            }
        }
    }
}
