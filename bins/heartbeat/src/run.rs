//! The loop: what happened in, what is done about it out.

use crate::events;
use crate::heal::{Queue, Task, Why, environment, shown};
use crate::judge::{Judge, Ruling, Sight, State};
use crate::metrics::{Counters, Writer};
use crate::outcome::{Failure, Outcome, Reason, Verdict, short};
use crate::plan::{Check, Kind, Mode, Plan, Service};
use crate::probe::{Probe, Prober, Talk};
use crate::process::{Processes, machine, percent, stolen};
use crate::schedule::Schedule;
use crate::seek::{Seeker, Sought};
use crate::tell::{Voice, clock, good, nagios};
use crate::url::Endpoint;
use crate::wire::{LATE, Resolver, Run};
use common::action::Action;
use common::aside::Aside;
use common::child::{output_pipe, raw};
use common::error::{Doing, Error, Result, describe};
use common::event::Level;
use common::exit::{End, Exit};
use common::fds::Upward;
use common::file::PidFile;
use common::limiter::{Leave, Limiter};
use common::signal::{Received, Sender, Signals};
use common::time::{random, say};
use common::wait::{Interest, Loop, Wake};
use common::watched::{Name, Unfound, Watched};
use common::wrap::{self, Wrapped};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::alarm;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SIGNALS: u64 = 0;
const COMMAND: u64 = 1;
const PROBES: u64 = 2;
const ACTION: u64 = 3;
/// Tokens of --exec checks begin here, and those of their output.
const EXEC: u64 = 100;
const OUTPUT: u64 = 1 << 32;

/// Of what an --exec check prints, so many bytes are kept.
const KEPT: usize = 200;

/// Counters at one moment, for `cpu=` and `steal=`.
#[derive(Clone, Copy, Debug)]
struct Base {
    at: Instant,
    machine: Option<(u64, u64)>,
    used: Option<Duration>,
}

/// The machine's counters are read so often while all is well.
const MACHINE: Duration = Duration::from_secs(10);
/// They are counted over that at least, if they can be.
const WINDOW: Duration = Duration::from_millis(500);
/// A check that keeps its time limit itself has not kept it by that much: something below it hangs. Then it
/// has so many `LOOK`s more, each of which came when it was to come: time in which this process was stopped or
/// starved is not held against its threads. After a stop the whole machine may have as much to catch up.
const OVERDUE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 10;
const LOOKS_AFTER_STOP: u32 = 50;
/// An action waits no longer than that for the pid file to be read, and the end for the last metrics.
const PATIENCE: Duration = Duration::from_secs(1);
/// The system's certificates are some hundred kilobytes.
const TRUST_STACK: usize = 512 << 10;

/// An --exec check that runs.
#[derive(Debug)]
struct Exec {
    action: Action,
    begun: Instant,
    output: Option<OwnedFd>,
    said: Vec<u8>,
    answered: bool,
}

/// Checks of one tick.
#[derive(Debug)]
struct Round {
    outcomes: Vec<Option<Outcome>>,
    /// It is the check just before an action.
    again: bool,
    /// Processes are looked at then: one shot has to wait for a whole window.
    look_at: Option<Instant>,
    /// The pid file is waited for until then.
    seek_until: Option<Instant>,
    /// Who has not answered then is overdue; from then on, the looks that are left before it hangs.
    overdue: Option<(Instant, Option<u32>)>,
}

/// An action that heals, from its first step to its last.
#[derive(Clone, Copy, Debug)]
struct Healing {
    attempt: u32,
    cooldown: Duration,
}

/// Runs as planned.
///
/// # Errors
/// What cannot be had at the start: a certificate file, the command, the lock, the process of --pid.
pub fn run(plan: Plan) -> Result<Exit> {
    if plan.mode == Mode::Explain {
        for line in crate::explain::lines(&plan) {
            if !common::cli::print(&line)? {
                break;
            }
        }
        return Ok(Exit::Ok);
    }
    if is_plain(&plan) {
        return ask_plainly(&plan);
    }
    let mut beating = Beating::start(plan)?;
    let exit = beating.serve()?;
    // The lock goes; all else ends with the process, threads that have nothing to do included.
    drop(beating.lock.take());
    std::mem::forget(beating);
    wrap::end_by_signal(exit);
    Ok(exit)
}

/// One question over one socket, where nothing can hang that the time limit is not kept for: no name, no
/// path, no regular expression. It needs no loop, and no thread.
fn is_plain(plan: &Plan) -> bool {
    let plain = |endpoint: &Endpoint| match endpoint {
        Endpoint::Localhost(_) | Endpoint::Literal(_) => true,
        Endpoint::Unix(path) => path.starts_with(b"@"),
        Endpoint::Name(..) => false,
    };
    let asks = match &*plan.checks {
        [only] => match &only.kind {
            Kind::Http(request) => {
                request.body.is_none() && request.not_body.is_none() && plain(&request.endpoint)
            }
            Kind::Tcp(endpoint, _) => plain(endpoint),
            Kind::Exec(_) | Kind::Process => false,
        },
        _ => false,
    };
    asks && plan.mode == Mode::Once
        && plan.lock.is_none()
        && plan.metrics.is_none()
        && !plan.sd_notify
}

/// Asks it. Signals do what they do to a program that knows none of them, which is to end it; those that
/// mean something to a loop have nothing to say to this.
fn ask_plainly(plan: &Plan) -> Result<Exit> {
    common::fds::ensure_standard()?;
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        mask.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).doing("block signals")?;
    let limit = plan.times.timeout;
    // Whatever happens: a process that hangs would be no answer at all.
    let last = u32::try_from((limit + OVERDUE + LOOK * LOOKS).as_secs()).unwrap_or(u32::MAX);
    alarm::set(last.saturating_add(1));
    let trust = match wish(plan) {
        Some(wish) => load(&wish)?,
        None => None,
    };
    let mut outcomes = Vec::new();
    for check in &plan.checks {
        let probe = probe(plan, check, &Resolver::default(), trust.as_ref());
        if let Some(probe) = probe {
            outcomes.push(probe.check(&Run::new(limit)));
        }
    }
    for outcome in &mut outcomes {
        slow(plan, outcome);
    }
    let mut voice = Voice::new(plan);
    let exit = tell_once(plan, &mut voice, &outcomes);
    voice.finish();
    Ok(exit)
}

/// What a thread does for a check, if it has one.
fn probe(
    plan: &Plan,
    check: &Check,
    resolver: &Resolver,
    trust: Option<&crate::http::Trust>,
) -> Option<Probe> {
    match &check.kind {
        Kind::Http(request) => {
            let trust = trust.filter(|_| request.url.tls).cloned();
            let client = crate::http::Client::new((**request).clone(), resolver.clone(), trust);
            Some(Probe::Http(Arc::new(client)))
        }
        Kind::Tcp(endpoint, dialogue) => Some(Probe::Tcp(Arc::new(Talk {
            endpoint: endpoint.clone(),
            family: plan.family,
            dialogue: dialogue.clone(),
            resolver: resolver.clone(),
        }))),
        Kind::Exec(_) | Kind::Process => None,
    }
}

/// `--slow`: well, but too late.
fn slow(plan: &Plan, outcome: &mut Outcome) {
    if let (Verdict::Well, Some(slow)) = (&outcome.verdict, plan.slow) {
        if outcome.latency > slow {
            outcome.verdict = Verdict::Warning(format!("slower than {}", say(slow)));
        }
    }
}

/// The program while it watches.
struct Beating {
    plan: Plan,
    voice: Voice,
    events: Loop,
    signals: Signals,
    wake: Arc<EventFd>,
    probers: Vec<Option<Prober>>,
    /// Reads certificates again.
    renewer: Aside<(), std::result::Result<Option<crate::http::Trust>, String>>,
    /// Reads the pid file.
    seeker: Option<Seeker>,
    /// The pid file, when it was read last, named the process that is held.
    named: bool,
    /// An action that waits for the pid file, until then.
    asking: Option<(Task, Instant)>,
    execs: Vec<Option<Exec>>,
    processes: Processes,
    held: Option<Watched>,
    judge: Judge,
    schedule: Schedule,
    limiter: Limiter,
    round: Option<Round>,
    sample_at: Option<Instant>,
    action: Option<(Action, Task, Instant)>,
    queue: Queue,
    healing: Option<Healing>,
    held_said: bool,
    state_before: &'static str,
    last_failure: Option<(usize, Failure)>,
    last_latency: Duration,
    down_since: Option<Instant>,
    /// Why the service's process is gone.
    gone: Option<Unfound>,
    /// The process that was seen last.
    seen: Option<(i32, u64)>,
    /// Counters when the last good round began, and the one before it.
    base: [Option<Base>; 2],
    machine_at: Instant,
    paused: bool,
    stopping: bool,
    over: Option<Exit>,
    deadline: Option<Instant>,
    wrapped: Option<Wrapped>,
    notify: Option<Upward>,
    ready: bool,
    counters: Counters,
    metrics: Option<Writer>,
    hidden_said: bool,
    settled: bool,
    started: Instant,
    lock: Option<PidFile>,
}

impl Beating {
    fn start(plan: Plan) -> Result<Beating> {
        common::fds::ensure_standard()?;
        common::sys::return_memory();
        let signals = Signals::block()?;
        let inherited = if plan.command.is_empty() {
            Vec::new()
        } else {
            wrap::inherited()
        };
        let lock = plan.lock.as_deref().map(PidFile::create).transpose()?;
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .doing("make an eventfd")?;
        let wake = Arc::new(wake);
        let events = Loop::new()?;
        events.add(&signals, SIGNALS, Interest::Read)?;
        events.add(&*wake, PROBES, Interest::Read)?;
        let trust = match wish(&plan) {
            Some(wish) => load(&wish)?,
            None => None,
        };
        let resolver = Resolver::default();
        let mut probers = Vec::new();
        for check in &plan.checks {
            let probe = probe(&plan, check, &resolver, trust.as_ref());
            probers.push(probe.map(|probe| Prober::new(probe, plan.times.timeout, wake.clone())));
        }
        let seeker = match &plan.service {
            Service::Named(Name::File(path)) => Some(Seeker::new(path.clone(), wake.clone())),
            Service::Named(Name::Number(_)) | Service::Nobody | Service::Wrapped => None,
        };
        let mut held = None;
        if let (Service::Named(name @ Name::Number(pid)), Mode::Watch) = (&plan.service, plan.mode)
        {
            let found = Watched::find(name);
            held = Some(found.map_err(|why| Error::new(&format!("watch pid {pid}"), why))?);
        }
        let wrapped = match plan.command.first() {
            None => None,
            Some(_) => {
                let wrapped = Wrapped::start(&wrap::Order {
                    command: &plan.command,
                    standard: [0, 1, 2],
                    inherited: &inherited,
                    added: &[],
                })?;
                events.add(wrapped.child(), COMMAND, Interest::Read)?;
                Some(wrapped)
            }
        };
        let now = Instant::now();
        let times = plan.times;
        let first = now + times.start_delay;
        // A question that is asked once is asked at once.
        let jitter = if plan.mode == Mode::Watch {
            times.jitter
        } else {
            0
        };
        let interval = if times.start_period.is_zero() {
            times.normal
        } else {
            times.start
        };
        let schedule = Schedule::new(first, interval, jitter, random());
        let judge = Judge::new(plan.rules, times.start_delay + times.start_period, now);
        let metrics = match &plan.metrics {
            None => None,
            Some(path) => Some(
                Writer::start(path.clone(), wake.clone())
                    .map_err(|why| Error::new("start a thread", describe(&why)))?,
            ),
        };
        let deadline = match plan.mode {
            Mode::Wait(length) => Some(now + length),
            Mode::Watch | Mode::Once | Mode::Explain => None,
        };
        let mut beating = Beating {
            voice: Voice::new(&plan),
            execs: plan.checks.iter().map(|_| None).collect(),
            processes: Processes::new(plan.process.clone()),
            limiter: Limiter::new(plan.limits),
            counters: Counters::new(plan.checks.iter().map(|check| check.target.clone())),
            sample_at: None,
            events,
            signals,
            renewer: Aside::new("trust", TRUST_STACK, wake.clone()),
            wake,
            probers,
            seeker,
            named: false,
            asking: None,
            held,
            judge,
            schedule,
            round: None,
            action: None,
            queue: Queue::default(),
            healing: None,
            held_said: false,
            state_before: State::Starting.name(),
            last_failure: None,
            last_latency: Duration::ZERO,
            down_since: None,
            gone: None,
            seen: None,
            base: [None; 2],
            machine_at: now,
            paused: false,
            stopping: false,
            over: None,
            deadline,
            wrapped,
            notify: None,
            ready: false,
            metrics,
            hidden_said: false,
            settled: false,
            started: now,
            lock,
            plan,
        };
        beating.open_notify();
        if let Some(wrapped) = &beating.wrapped {
            let command = wrapped.program().to_string_lossy().into_owned();
            let pid = wrapped.child().pid();
            beating.voice.say(
                Level::Info,
                events::COMMAND_STARTED,
                &[("pid", pid.into()), ("command", command.into())],
            );
        }
        Ok(beating)
    }

    // ---- the loop ----

    fn serve(&mut self) -> Result<Exit> {
        let mut wakes = Vec::new();
        loop {
            if let Some(exit) = self.over {
                // A running action is waited for: it has a time limit, and was told if it is not wanted.
                if self.action.is_none() {
                    self.finish();
                    return Ok(exit);
                }
            }
            let deadline = self.next_deadline();
            self.events.wait(deadline, &mut wakes)?;
            let now = Instant::now();
            for wake in &wakes {
                self.on_wake(*wake, now);
            }
            self.on_time(now);
            self.voice.flush();
            if let Some(lost) = self.voice.take_lost() {
                self.voice.say(
                    Level::Warning,
                    events::LINES_LOST,
                    &[("lines", lost.into())],
                );
            }
            if !self.voice.heard() && self.over.is_none() {
                // Whom it was said to has gone, as after `| head`.
                self.stop(Exit::Ok, now);
            }
        }
    }

    fn finish(&mut self) {
        for exec in self.execs.iter_mut().filter_map(Option::take) {
            exec.action.kill();
        }
        if let (Mode::Watch, Some(notify)) = (self.plan.mode, &self.notify) {
            let _ = notify.send("STOPPING=1", None);
        }
        // The last file, which is the only one of --once, is to be written; a disk that hangs is not waited for.
        let trouble = self
            .metrics
            .take()
            .and_then(|metrics| metrics.finish(PATIENCE));
        self.metrics_failed(trouble);
        self.voice.finish();
    }

    fn next_deadline(&self) -> Option<Instant> {
        let mut all: Vec<Instant> = Vec::with_capacity(8);
        if self.over.is_none() {
            match &self.round {
                Some(round) => {
                    let overdue = round.overdue.map(|(at, _)| at);
                    all.extend(
                        [round.look_at, round.seek_until, overdue]
                            .into_iter()
                            .flatten(),
                    );
                }
                None => all.push(self.schedule.next()),
            }
            all.extend(self.sample_at);
            all.extend(self.deadline);
            all.extend(self.asking.as_ref().map(|(_, until)| *until));
        }
        all.extend(self.action.as_ref().map(|(action, _, _)| action.deadline()));
        all.extend(
            self.execs
                .iter()
                .flatten()
                .map(|exec| exec.action.deadline()),
        );
        all.into_iter().min()
    }

    fn on_wake(&mut self, wake: Wake, now: Instant) {
        match wake.token {
            SIGNALS => {
                while let Some(received) = self.signals.next() {
                    self.on_signal(received, now);
                }
            }
            COMMAND => self.on_command_end(now),
            PROBES => self.on_answers(now),
            ACTION => self.on_action_end(now),
            token if token >= OUTPUT => self.on_exec_output((token - OUTPUT) as usize),
            token if token >= EXEC => self.on_exec_end((token - EXEC) as usize, now),
            _ => {}
        }
    }

    fn on_time(&mut self, now: Instant) {
        if let Some((action, _, _)) = &mut self.action {
            action.expire(now);
        }
        for index in 0..self.execs.len() {
            if let Some(exec) = &mut self.execs[index] {
                exec.action.expire(now);
                if exec.action.expired() && !exec.answered {
                    exec.answered = true;
                    let mut failure = Failure::new(
                        Reason::Timeout,
                        format!(
                            "after {} (the command runs)",
                            short(self.plan.times.timeout)
                        ),
                    );
                    failure.late = now > exec.begun + self.plan.times.timeout + LATE;
                    let outcome = Outcome::new(Verdict::Failed(failure), now - exec.begun);
                    self.answer(index, outcome, now);
                }
            }
        }
        if self.over.is_some() {
            return;
        }
        if self.sample_at.is_some_and(|at| at <= now) {
            self.sample(now);
        }
        if self
            .round
            .as_ref()
            .is_some_and(|round| round.look_at.is_some_and(|at| at <= now))
        {
            self.look_now(now);
        }
        let until = self.round.as_ref().and_then(|round| round.seek_until);
        if until.is_some_and(|at| at <= now) {
            self.tired_of_seeking();
            self.seek_is_over(now);
        }
        if self.asking.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.tired_of_seeking();
            self.asked(now);
        }
        let overdue = self.round.as_ref().and_then(|round| round.overdue);
        if let Some((at, left)) = overdue.filter(|(at, _)| *at <= now) {
            self.on_overdue(at, left, now);
        }
        if self.deadline.is_some_and(|at| at <= now) {
            return self.wait_is_over(now);
        }
        if self.round.is_none() && self.schedule.next() <= now {
            if self.paused {
                // Whoever watches us is not to think that we hang.
                self.watchdog();
                self.advance(now);
            } else {
                self.begin(false, now);
            }
        }
    }

    // ---- signals, the command ----

    fn on_signal(&mut self, received: Received, now: Instant) {
        let kernel = received.sender == Sender::Kernel;
        match received.signal {
            own_signals::CHLD => self.reap_strangers(),
            own_signals::USR1 => {
                if !self.paused {
                    self.schedule.hurry(now);
                }
            }
            own_signals::HUP if !kernel || self.wrapped.is_some() => {
                self.reload();
                // The command may have a use for it, and nothing of ours is lost by that.
                if let Some(wrapped) = &self.wrapped {
                    wrapped.forward(received);
                }
            }
            own_signals::HUP if self.signals.hup_ignored() => {}
            own_signals::USR2 if self.wrapped.is_none() => self.pause(now),
            signal => match &self.wrapped {
                Some(wrapped) => {
                    wrapped.forward(received);
                    if [own_signals::TERM, own_signals::INT, own_signals::QUIT].contains(&signal) {
                        self.judge.leaving(now);
                    }
                }
                None => match signal {
                    own_signals::TERM | own_signals::INT | own_signals::HUP | own_signals::QUIT => {
                        let exit = if self.plan.mode == Mode::Watch && signal != own_signals::QUIT {
                            Exit::Ok
                        } else {
                            Exit::Signal(signal)
                        };
                        self.stop(exit, now);
                    }
                    own_signals::TSTP => {
                        let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                    }
                    _ => {}
                },
            },
        }
    }

    /// Ends: at once, or when a running action has ended, which is asked to. Asked twice, it is killed.
    fn stop(&mut self, exit: Exit, now: Instant) {
        self.queue.clear();
        self.asking = None;
        self.round = None;
        if let Some((action, _, _)) = &mut self.action {
            if self.stopping {
                action.expire(now + Duration::from_secs(3600));
            } else {
                action.cut_short(now);
            }
        }
        self.stopping = true;
        self.over.get_or_insert(exit);
    }

    fn pause(&mut self, now: Instant) {
        self.paused = !self.paused;
        if self.paused {
            self.voice.say(Level::Info, events::PAUSED, &[]);
        } else {
            self.voice.say(Level::Info, events::RESUMED, &[]);
            self.schedule.hurry(now);
        }
    }

    fn reload(&mut self) {
        self.seek();
        let Some(wish) = wish(&self.plan) else {
            return self.voice.say(Level::Info, events::RELOADED, &[]);
        };
        if self.renewer.open() {
            // Once more while it is done is once.
            return;
        }
        let asked = self.renewer.ask((), || {
            Box::new(move |(), answer| answer(load(&wish).map_err(|why| why.to_string())))
        });
        if let Err(why) = asked {
            self.reloaded(Err(format!("cannot start a thread: {}", describe(&why))));
        }
    }

    fn reloaded(&mut self, trust: std::result::Result<Option<crate::http::Trust>, String>) {
        match trust {
            Ok(trust) => {
                for prober in self.probers.iter().flatten() {
                    if let Some(trust) = &trust {
                        prober.trust(trust);
                    }
                }
                self.voice.say(Level::Info, events::RELOADED, &[]);
            }
            Err(why) => {
                self.voice
                    .say(Level::Warning, events::RELOADED, &[("error", why.into())]);
            }
        }
    }

    fn reap_strangers(&self) {
        // As process 1 of a container we get everybody's orphans.
        let command = self.wrapped.as_ref().map(|wrapped| wrapped.child().pid());
        let action = self.action.as_ref().map(|(action, _, _)| action.pid());
        while let Some(pid) = common::child::next_ended() {
            let ours = Some(pid) == command
                || Some(pid) == action
                || self
                    .execs
                    .iter()
                    .flatten()
                    .any(|exec| exec.action.pid() == pid);
            if ours {
                break;
            }
            common::child::reap_stranger(pid);
        }
    }

    fn on_command_end(&mut self, now: Instant) {
        let Some(wrapped) = &self.wrapped else { return };
        let Some(end) = wrapped.ended() else { return };
        self.events.remove(wrapped.child());
        let took = now - self.started;
        self.voice.say(
            Level::Info,
            events::COMMAND_EXITED,
            &[("status", end.into()), ("took", took.into())],
        );
        // A running action ends as it would have; nothing else begins.
        self.queue.clear();
        self.round = None;
        self.over.get_or_insert(end.into());
    }

    // ---- rounds ----

    /// Starts the checks, all at once.
    fn begin(&mut self, again: bool, now: Instant) {
        if self.plan.mode == Mode::Watch && self.judge.failing_since().is_none() {
            let mut base = Base {
                at: now,
                machine: None,
                used: self.processes.used(self.service_pid()),
            };
            // The kernel adds all processors up for that, which costs as much as a check.
            base.machine = match self.base[0] {
                Some(last) if now.saturating_duration_since(self.machine_at) < MACHINE => {
                    last.machine
                }
                Some(_) | None => {
                    self.machine_at = now;
                    machine()
                }
            };
            self.base = [Some(base), self.base[0]];
        }
        self.round = Some(Round {
            outcomes: self.plan.checks.iter().map(|_| None).collect(),
            again,
            look_at: None,
            seek_until: None,
            overdue: self
                .probers
                .iter()
                .any(Option::is_some)
                .then(|| (now + self.plan.times.timeout + OVERDUE, None)),
        });
        for index in 0..self.plan.checks.len() {
            match &self.plan.checks[index].kind {
                Kind::Http(_) | Kind::Tcp(..) => {
                    let answer = self.probers[index].as_mut().and_then(Prober::ask);
                    if let Some(outcome) = answer {
                        self.answer(index, outcome, now);
                    }
                }
                Kind::Exec(_) => self.begin_exec(index, now),
                Kind::Process => self.begin_look(index, now),
            }
        }
    }

    fn on_answers(&mut self, now: Instant) {
        let _ = self.wake.read();
        for index in 0..self.probers.len() {
            let answer = self.probers[index].as_mut().and_then(Prober::answer);
            if let Some(outcome) = answer {
                self.answer(index, outcome, now);
            }
        }
        if let Some(sought) = self.seeker.as_mut().and_then(Seeker::answer) {
            self.on_sought(sought, now);
        }
        if let Some(trust) = self.renewer.answer() {
            self.reloaded(trust);
        }
        let trouble = self.metrics.as_ref().and_then(Writer::trouble);
        self.metrics_failed(trouble);
    }

    fn metrics_failed(&mut self, trouble: Option<String>) {
        let (Some(why), Some(file)) = (trouble, &self.plan.metrics) else {
            return;
        };
        let file = file.to_string_lossy().into_owned();
        self.voice.say(
            Level::Warning,
            events::METRICS_FAILED,
            &[("file", file.into()), ("error", why.into())],
        );
    }

    /// Who has not answered long after the time limit hangs, below all that keeps it.
    fn on_overdue(&mut self, at: Instant, left: Option<u32>, now: Instant) {
        let Some(round) = &mut self.round else { return };
        // We may have been stopped: only what does not answer although we run is late.
        let stopped = now > at + LOOK;
        let left = match left {
            None if stopped => LOOKS_AFTER_STOP,
            None => LOOKS,
            Some(left) if stopped => left,
            Some(left) => left.saturating_sub(1),
        };
        if left > 0 {
            round.overdue = Some((now + LOOK, Some(left)));
            return;
        }
        round.overdue = None;
        for index in 0..self.probers.len() {
            let Some(prober) = &mut self.probers[index] else {
                continue;
            };
            if let Some(outcome) = prober.give_up() {
                let hung = prober.hung();
                let target = self.plan.checks[index].target.clone();
                self.voice.say(
                    Level::Warning,
                    events::CHECK_HANGS,
                    &[("target", target.into()), ("count", hung.into())],
                );
                self.answer(index, outcome, now);
            }
        }
    }

    fn answer(&mut self, index: usize, mut outcome: Outcome, now: Instant) {
        let is_process = matches!(self.plan.checks[index].kind, Kind::Process);
        if !is_process {
            slow(&self.plan, &mut outcome);
        }
        let Some(round) = &mut self.round else { return };
        if let Some(place) = round.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
        if round.outcomes.iter().all(Option::is_some) {
            self.end_round(now);
        }
    }

    fn advance(&mut self, now: Instant) {
        let times = &self.plan.times;
        let interval = if self.plan.mode != Mode::Watch || self.judge.quiet(now) {
            times.start
        } else if self.judge.in_doubt() {
            times.fast
        } else if self.judge.state() == State::Down {
            times.down
        } else {
            times.normal
        };
        self.schedule.advance(now, interval, random());
    }

    fn end_round(&mut self, now: Instant) {
        let Some(round) = self.round.take() else {
            return;
        };
        let outcomes: Vec<Outcome> = round.outcomes.into_iter().flatten().collect();
        for (index, outcome) in outcomes.iter().enumerate() {
            let reason = match &outcome.verdict {
                Verdict::Failed(failure) => Some(failure.reason),
                Verdict::Well | Verdict::Warning(_) | Verdict::Unknown(_) => None,
            };
            self.counters.check(index, reason, outcome.latency);
        }
        if self.plan.mode != Mode::Watch {
            return self.one_shot(outcomes, now);
        }
        let failed = worst(&outcomes);
        let unknown = outcomes
            .iter()
            .position(|outcome| matches!(outcome.verdict, Verdict::Unknown(_)));
        let slow = outcomes
            .iter()
            .any(|outcome| matches!(outcome.verdict, Verdict::Warning(_)));
        // What happens while an action runs says nothing yet.
        let judged = self.healing.is_none();
        let sight = match &failed {
            Some((_, failure)) => Some(Sight::of(failure)),
            None if unknown.is_some() => None,
            None if slow => Some(Sight::Slow),
            None => Some(Sight::Well),
        };
        let ruling = match (sight, judged) {
            (Some(sight), true) => Some(self.judge.see(sight, now)),
            _ => None,
        };
        self.tell_checks(&outcomes, ruling);
        if let Some((index, failure)) = &failed {
            self.last_failure = Some((*index, failure.clone()));
            self.last_latency = outcomes[*index].latency;
            if failure.late {
                let target = self.plan.checks[*index].target.clone();
                self.voice.say(
                    Level::Warning,
                    events::CHECK_LATE,
                    &[
                        ("target", target.into()),
                        ("reason", failure.reason.name().into()),
                    ],
                );
            }
        }
        if failed.is_none() && unknown.is_none() {
            self.watchdog();
        }
        match ruling {
            None => {}
            Some(Ruling::Enough { count }) => self.on_enough(round.again, count, now),
            Some(Ruling::Changed(before)) => self.on_changed(before, &outcomes, now),
            Some(Ruling::Same { .. }) if round.again && failed.is_none() => {
                self.voice.report(
                    Level::Info,
                    events::ACTION_CANCELLED,
                    &[("target", self.plan.checks[0].target.clone().into())],
                    "skip the check just before the action passed",
                );
            }
            Some(Ruling::Same { .. }) => {}
        }
        if failed.is_none() && unknown.is_none() && judged {
            if self.judge.state() != State::Down {
                self.limiter.well(now);
            }
            if let Some(command) = self.plan.actions.ok.clone() {
                // It is a sign of life, not a list: one that still runs is enough.
                if self.action.is_none() && self.asking.is_none() {
                    self.enqueue(
                        Why::Ok,
                        command.as_os_str(),
                        None,
                        &outcomes.first().cloned(),
                        now,
                    );
                }
            }
        }
        self.write_metrics();
        if self.round.is_none() {
            self.advance(now);
        }
        self.run_next(now);
        if !std::mem::replace(&mut self.settled, true) {
            // From here on the same few functions run, for as long as the service does.
            common::sys::forget_start();
        }
    }

    fn write_metrics(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.write(
                self.counters
                    .text(self.judge.state(), self.limiter.gave_up()),
            );
        }
    }

    /// Each check's line: with --verbose.
    fn tell_checks(&mut self, outcomes: &[Outcome], ruling: Option<Ruling>) {
        let fails = self.plan.rules.fails.fails;
        for (check, outcome) in self.plan.checks.iter().zip(outcomes) {
            let target = check.target.as_str();
            let took = Duration::from_micros(outcome.latency.as_micros() as u64);
            match &outcome.verdict {
                Verdict::Well => {
                    let mut fields = vec![("target", target.into()), ("took", took.into())];
                    fields.extend(
                        outcome
                            .status
                            .map(|status| ("status", i64::from(status).into())),
                    );
                    fields.extend(
                        outcome
                            .address
                            .clone()
                            .map(|address| ("address", address.into())),
                    );
                    let human = format!("ok   {}", good(target, outcome));
                    self.voice
                        .report(Level::Debug, events::CHECK_PASSED, &fields, &human);
                }
                Verdict::Warning(why) => {
                    let mut fields = vec![
                        ("target", target.into()),
                        ("took", took.into()),
                        ("error", why.as_str().into()),
                    ];
                    fields.extend(
                        outcome
                            .status
                            .map(|status| ("status", i64::from(status).into())),
                    );
                    fields.extend(
                        outcome
                            .address
                            .clone()
                            .map(|address| ("address", address.into())),
                    );
                    let human = format!("slow {}", good(target, outcome));
                    self.voice
                        .report(Level::Debug, events::CHECK_SLOW, &fields, &human);
                }
                Verdict::Failed(failure) => {
                    let count = match ruling {
                        Some(Ruling::Same { count } | Ruling::Enough { count }) if count > 0 => {
                            format!("{}/{fails}", count.min(fails))
                        }
                        Some(_) => "(does not count yet)".to_owned(),
                        None => "(an action runs)".to_owned(),
                    };
                    let mut fields = vec![
                        ("target", target.into()),
                        ("reason", failure.reason.name().into()),
                        ("error", failure.detail.as_str().into()),
                        ("took", took.into()),
                        ("count", count.as_str().into()),
                    ];
                    fields.extend(
                        outcome
                            .status
                            .map(|status| ("status", i64::from(status).into())),
                    );
                    fields.extend(failure.pid.map(|pid| ("pid", pid.into())));
                    let human = format!("fail {target} {} {count}", failure.say());
                    self.voice
                        .report(Level::Debug, events::CHECK_FAILED, &fields, &human);
                }
                Verdict::Unknown(why) => {
                    self.voice.say(
                        Level::Warning,
                        events::CHECK_IMPOSSIBLE,
                        &[("target", target.into()), ("error", why.as_str().into())],
                    );
                }
            }
        }
    }

    // ---- one shot ----

    fn one_shot(&mut self, outcomes: Vec<Outcome>, now: Instant) {
        let failed = worst(&outcomes);
        let unknown = outcomes.iter().find_map(|outcome| match &outcome.verdict {
            Verdict::Unknown(why) => Some(why.clone()),
            Verdict::Well | Verdict::Warning(_) | Verdict::Failed(_) => None,
        });
        let well = failed.is_none() && unknown.is_none();
        if !well && self.plan.mode != Mode::Once {
            self.last_failure = failed;
            self.tell_checks(&outcomes, Some(Ruling::Same { count: 0 }));
            return self.advance(now);
        }
        let exit = tell_once(&self.plan, &mut self.voice, &outcomes);
        self.write_metrics();
        self.over = Some(exit);
    }

    fn wait_is_over(&mut self, now: Instant) {
        let waited = say(now - self.started);
        let line = match &self.last_failure {
            Some((index, failure)) => {
                format!(
                    "{} {} after {waited}",
                    self.plan.checks[*index].target,
                    failure.say()
                )
            }
            None => format!(
                "{} no answer yet after {waited}",
                self.plan.checks[0].target
            ),
        };
        if self.plan.format == crate::cli::Format::Nagios {
            self.voice
                .print(&format!("HEARTBEAT CRITICAL - {}", line.replace('|', "/")));
            self.over = Some(Exit::Code(2));
            return;
        }
        let (target, reason) = match &self.last_failure {
            Some((index, failure)) => (*index, failure.reason.name()),
            None => (0, Reason::Timeout.name()),
        };
        let target = self.plan.checks[target].target.clone();
        self.voice.report(
            Level::Warning,
            events::SERVICE_DOWN,
            &[("target", target.into()), ("reason", reason.into())],
            &format!("DOWN {line}"),
        );
        self.over = Some(Exit::TimedOut);
    }

    // ---- what follows ----

    fn state_name(&self) -> &'static str {
        if self.limiter.gave_up() {
            "gave-up"
        } else {
            self.judge.state().name()
        }
    }

    fn on_changed(&mut self, before: State, outcomes: &[Outcome], now: Instant) {
        let name_before = if self.limiter.gave_up() {
            "gave-up"
        } else {
            before.name()
        };
        self.state_before = name_before;
        self.held_said = false;
        let warned = outcomes
            .iter()
            .position(|outcome| matches!(outcome.verdict, Verdict::Warning(_)));
        let index = warned.unwrap_or(0);
        let target = self.plan.checks[index].target.clone();
        let outcome = outcomes.get(index).cloned();
        let words = outcome
            .as_ref()
            .map(|outcome| good(&target, outcome))
            .unwrap_or_default();
        let took = outcome
            .as_ref()
            .map(|outcome| outcome.latency)
            .unwrap_or_default();
        match self.judge.state() {
            State::Up => {
                let since = match before {
                    State::Down => self.down_since.take().unwrap_or(now),
                    State::Starting | State::Up | State::Slow => self.started,
                };
                let mut fields = vec![
                    ("target", target.clone().into()),
                    ("took", took.into()),
                    ("previous", name_before.into()),
                ];
                let after = now.saturating_duration_since(since);
                let human = if before == State::Slow {
                    format!("UP   {words}")
                } else {
                    fields.push(("after", after.into()));
                    format!("UP   {words} after {}", say(rounded(after)))
                };
                self.voice
                    .report(Level::Info, events::SERVICE_UP, &fields, &human);
                self.limiter.well(now);
                self.last_failure = None;
                if before == State::Down {
                    if let Some(command) = self.plan.actions.recover.clone() {
                        self.enqueue(Why::Recover, &command, None, &outcome, now);
                    }
                }
            }
            State::Slow => {
                let mut fields = vec![("target", target.clone().into()), ("took", took.into())];
                if let Some(Verdict::Warning(why)) =
                    outcome.as_ref().map(|outcome| &outcome.verdict)
                {
                    fields.push(("error", why.as_str().into()));
                }
                self.voice.report(
                    Level::Warning,
                    events::SERVICE_SLOW,
                    &fields,
                    &format!("SLOW {words}"),
                );
                if let Some(command) = self.plan.actions.slow.clone() {
                    self.enqueue(Why::Slow, &command, None, &outcome, now);
                }
            }
            State::Starting | State::Down => {}
        }
        self.status();
        self.changed(&outcome, now);
    }

    fn changed(&mut self, outcome: &Option<Outcome>, now: Instant) {
        if let Some(command) = self.plan.actions.change.clone() {
            let worker = self
                .last_failure
                .as_ref()
                .and_then(|(_, failure)| failure.pid);
            self.enqueue(Why::Change, &command, worker, outcome, now);
        }
    }

    /// As many failures as it takes.
    fn on_enough(&mut self, again: bool, count: u32, now: Instant) {
        let acts = self.plan.actions.heals();
        let ends = self.plan.actions.exit_on_fail;
        if acts && self.judge.state() == State::Down {
            // A check more is only worth it if an action may follow.
            match self.limiter.ask(now) {
                Leave::Act { .. } => {}
                Leave::NotBefore(at) => return self.hold("cooldown", at - now),
                Leave::GiveUp => return self.give_up(now),
                Leave::GivenUp => return,
            }
        }
        let decided_before = !acts && !ends;
        if !again && !decided_before {
            return self.begin(true, now);
        }
        if self.judge.state() != State::Down {
            self.go_down(count, now);
        }
        if acts {
            self.act(now);
        } else if ends {
            self.over.get_or_insert(Exit::No);
        }
    }

    fn go_down(&mut self, count: u32, now: Instant) {
        self.state_before = self.state_name();
        self.judge.confirm();
        self.limiter.unwell(now);
        self.held_said = false;
        let since = self.judge.failing_since().unwrap_or(now);
        self.down_since = Some(since);
        let Some((index, failure)) = self.last_failure.clone() else {
            return;
        };
        let target = self.plan.checks[index].target.clone();
        let steal = self.steal(now);
        let cpu = self.cpu(now);
        let mut fields = vec![
            ("target", target.as_str().into()),
            ("reason", failure.reason.name().into()),
            ("error", failure.detail.as_str().into()),
            ("count", count.into()),
            ("after", (now - since).into()),
        ];
        let mut human = format!(
            "DOWN {target} {} x{count} since {}",
            failure.reason.name(),
            clock(now - since)
        );
        if let Some(cpu) = cpu {
            fields.push(("cpu", cpu.into()));
            human.push_str(&format!(" cpu={cpu}%"));
        }
        if let Some(steal) = steal {
            fields.push(("steal", steal.into()));
            human.push_str(&format!(" steal={steal}%"));
        }
        if let Some(pid) = failure.pid {
            fields.push(("pid", pid.into()));
        }
        if !failure.detail.is_empty() {
            human.push_str(&format!(": {}", failure.detail));
        }
        self.voice
            .report(Level::Error, events::SERVICE_DOWN, &fields, &human);
        self.status();
        self.changed(&None, now);
    }

    fn base_now(&self, now: Instant) -> Base {
        Base {
            at: now,
            machine: machine(),
            used: self.processes.used(self.service_pid()),
        }
    }

    /// What is counted from: a window of next to nothing would say nothing.
    fn base(&self, now: Instant) -> Option<Base> {
        let [newest, older] = self.base;
        let long = |base: &Base| now.saturating_duration_since(base.at) >= WINDOW;
        newest.filter(long).or(older).or(newest)
    }

    fn steal(&self, now: Instant) -> Option<u64> {
        stolen(self.base(now)?.machine, machine())
    }

    fn cpu(&self, now: Instant) -> Option<u64> {
        let base = self.base(now)?;
        let used = self.processes.used(self.service_pid())?;
        let time = now
            .checked_duration_since(base.at)
            .filter(|time| !time.is_zero())?;
        Some(percent(used.saturating_sub(base.used?), time))
    }

    fn act(&mut self, now: Instant) {
        let asking = self.asking.as_ref().map(|(task, _)| task);
        let runs = self.action.as_ref().map(|(_, task, _)| task);
        if asking
            .into_iter()
            .chain(runs)
            .any(|task| task.why != Why::Ok)
        {
            return self.hold("running", Duration::ZERO);
        }
        if let Some(most) = self.plan.actions.skip_if_steal {
            let steal = self.steal(now).unwrap_or(0);
            if steal > u64::from(most) {
                // From here on it is measured anew: the hypervisor may have stopped stealing.
                self.base = [Some(self.base_now(now)), None];
                return self.hold("steal", Duration::ZERO);
            }
        }
        let (attempt, cooldown) = match self.limiter.ask(now) {
            Leave::Act { attempt, cooldown } => (attempt, cooldown),
            Leave::NotBefore(at) => return self.hold("cooldown", at - now),
            Leave::GiveUp => return self.give_up(now),
            Leave::GivenUp => return,
        };
        // A ping that hangs is no reason to let the service lie.
        if let Some((action, _, _)) = &mut self.action {
            action.cut_short(now);
        }
        self.asking = None;
        self.limiter.begun(now);
        self.counters.action();
        self.healing = Some(Healing { attempt, cooldown });
        self.held_said = false;
        let worker = self
            .last_failure
            .as_ref()
            .and_then(|(_, failure)| failure.pid);
        let actions = &self.plan.actions;
        let (before, signal, fail) = (actions.before.clone(), actions.signal, actions.fail.clone());
        if let Some(command) = before {
            self.enqueue(Why::Before, &command, worker, &None, now);
        }
        if let Some(signal) = signal {
            self.enqueue(Why::Signal(signal), OsStr::new(""), worker, &None, now);
        }
        if let Some(command) = fail {
            self.enqueue(Why::Fail, &command, worker, &None, now);
        }
    }

    /// An action has to wait: said once for each time that the service is down.
    fn hold(&mut self, why: &str, left: Duration) {
        if std::mem::replace(&mut self.held_said, true) {
            return;
        }
        let human = if left.is_zero() {
            format!("hold the action waits ({why})")
        } else {
            format!("hold the action waits ({why}, {} left)", say(rounded(left)))
        };
        self.voice.report(
            Level::Info,
            events::ACTION_HELD,
            &[("reason", why.into()), ("left", left.into())],
            &human,
        );
    }

    fn give_up(&mut self, now: Instant) {
        let attempts = self.limiter.attempts();
        let limit = self.plan.limits.limit;
        self.state_before = State::Down.name();
        self.voice.report(
            Level::Error,
            events::GAVE_UP,
            &[("attempts", attempts.into())],
            &format!(
                "GAVE UP after {} actions in {}; acts no more until the service is well again",
                limit.count,
                say(limit.per)
            ),
        );
        self.status();
        self.changed(&None, now);
        if self.plan.actions.exit_on_giveup {
            self.over.get_or_insert(Exit::No);
        }
    }

    // ---- actions ----

    fn enqueue(
        &mut self,
        why: Why,
        command: &OsStr,
        worker: Option<i32>,
        outcome: &Option<Outcome>,
        now: Instant,
    ) {
        let mut variables = vec![
            ("HEARTBEAT_STATE", self.state_name().to_owned()),
            ("HEARTBEAT_PREVIOUS", self.state_before.to_owned()),
        ];
        let steal = self.steal(now);
        variables.extend(steal.map(|steal| ("HEARTBEAT_STEAL", steal.to_string())));
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let since = |at: Instant| wall.saturating_sub(now - at).as_secs().to_string();
        let failing = matches!(why, Why::Before | Why::Signal(_) | Why::Fail)
            || (why == Why::Change && self.judge.state() == State::Down);
        let failure = self.last_failure.as_ref().filter(|_| failing);
        if let Some((index, failure)) = failure {
            variables.push(("HEARTBEAT_TARGET", self.plan.checks[*index].target.clone()));
            variables.push(("HEARTBEAT_REASON", failure.reason.name().to_owned()));
            variables.push(("HEARTBEAT_DETAIL", failure.detail.clone()));
            if failure.reason == Reason::Status {
                let status = failure.detail.split(' ').next().unwrap_or_default();
                variables.push(("HEARTBEAT_STATUS", status.to_owned()));
            }
        }
        if let (Some(outcome), false) = (outcome, failing) {
            variables.push(("HEARTBEAT_TARGET", self.plan.checks[0].target.clone()));
            variables.extend(
                outcome
                    .status
                    .map(|status| ("HEARTBEAT_STATUS", status.to_string())),
            );
            variables.push((
                "HEARTBEAT_LATENCY_MS",
                format!("{:.1}", outcome.latency.as_secs_f64() * 1000.0),
            ));
        }
        if failing {
            let latency = self.last_latency.as_secs_f64() * 1000.0;
            variables.push(("HEARTBEAT_LATENCY_MS", format!("{latency:.1}")));
        }
        let fails = self.judge.count();
        if fails > 0 {
            variables.push(("HEARTBEAT_FAILS", fails.to_string()));
        }
        if let Some(healing) = self.healing {
            variables.push(("HEARTBEAT_ATTEMPT", healing.attempt.to_string()));
        }
        let at = self.down_since.or(self.judge.failing_since());
        variables.extend(
            at.filter(|_| failing)
                .map(|at| ("HEARTBEAT_SINCE", since(at))),
        );
        self.queue.push(Task {
            why,
            command: command.to_owned(),
            variables,
            worker,
        });
    }

    fn run_next(&mut self, now: Instant) {
        while self.action.is_none() && self.asking.is_none() && !self.stopping {
            let Some(task) = self.queue.pop() else { break };
            // The process that an action is about is looked at anew.
            if task.worker.is_none() && self.seek() {
                self.asking = Some((task, now + PATIENCE));
            } else {
                self.run_task(task, now);
            }
        }
        self.healed(now);
    }

    fn run_task(&mut self, task: Task, now: Instant) {
        let pid = match task.worker {
            Some(pid) => self.processes.get(pid).map(Watched::pid),
            None => self.service(),
        };
        self.tell_run(&task, pid);
        if let Why::Signal(signal) = task.why {
            self.send(signal, pid, task.worker);
        } else {
            self.start_action(task, pid, now);
        }
    }

    /// The pid file was read, or has been waited for long enough.
    fn asked(&mut self, now: Instant) {
        if let Some((task, _)) = self.asking.take() {
            self.run_task(task, now);
            self.run_next(now);
        }
    }

    fn healed(&mut self, now: Instant) {
        let asking = self
            .asking
            .as_ref()
            .is_some_and(|(task, _)| task.why.heals());
        if self.healing.is_some() && !self.queue.heals() && !asking {
            let runs = self
                .action
                .as_ref()
                .is_some_and(|(_, task, _)| task.why.heals());
            if !runs {
                self.end_healing(now);
            }
        }
    }

    fn end_healing(&mut self, now: Instant) {
        self.healing = None;
        self.limiter.ended(now);
        self.judge.acted(self.plan.times.grace, now);
        self.write_metrics();
        if self.plan.actions.exit_on_fail {
            self.over.get_or_insert(Exit::No);
        }
        if self.round.is_none() {
            self.advance(now);
        }
    }

    fn tell_run(&mut self, task: &Task, pid: Option<i32>) {
        let command = match task.why {
            Why::Signal(signal) => {
                let to = pid.map_or("nobody".to_owned(), |pid| pid.to_string());
                format!("signal {} to {to}", common::signal::name(signal))
            }
            _ => shown(&task.command, pid),
        };
        let mut fields = vec![
            ("action", task.why.option().into()),
            ("command", command.as_str().into()),
        ];
        let mut human = format!("run  {command}");
        let mut level = Level::Debug;
        if let (Some(healing), true) = (self.healing, task.why.heals()) {
            level = Level::Info;
            fields.push(("attempt", healing.attempt.into()));
            fields.push(("cooldown", healing.cooldown.into()));
            human.push_str(&format!(
                " (attempt {}, next not before {})",
                healing.attempt,
                say(healing.cooldown)
            ));
        } else if task.why != Why::Ok {
            level = Level::Info;
        }
        fields.extend(pid.map(|pid| ("pid", pid.into())));
        self.voice
            .report(level, events::ACTION_STARTED, &fields, &human);
    }

    fn send(&mut self, signal: i32, pid: Option<i32>, worker: Option<i32>) {
        let sent = match (pid, worker) {
            (Some(pid), Some(_)) => self
                .processes
                .get(pid)
                .map(|watched| watched.signal(signal)),
            (Some(_), None) => match (&self.held, &self.wrapped) {
                (Some(held), _) => Some(held.signal(signal)),
                (None, Some(wrapped)) => {
                    wrapped.child().signal(signal);
                    Some(Ok(()))
                }
                (None, None) => None,
            },
            (None, _) => None,
        };
        let why = match sent {
            Some(Ok(())) => return,
            Some(Err(why)) => describe(&why),
            None => "the process is gone".to_owned(),
        };
        self.counters.action_failed();
        self.voice.say(
            Level::Warning,
            events::ACTION_FAILED,
            &[("action", "signal".into()), ("error", why.into())],
        );
    }

    fn start_action(&mut self, task: Task, pid: Option<i32>, now: Instant) {
        let environment = environment(&task, pid);
        let variables: Vec<(&str, Option<&OsStr>)> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect();
        let started =
            Action::start_into(&task.command, &variables, 2, self.plan.action_timeout, now);
        let waited =
            started.and_then(
                |action| match self.events.add(&action, ACTION, Interest::Read) {
                    Ok(()) => Ok(action),
                    Err(why) => {
                        action.kill();
                        Err(std::io::Error::other(why.to_string()))
                    }
                },
            );
        match waited {
            Ok(action) => self.action = Some((action, task, now)),
            Err(why) => {
                self.counters.action_failed();
                let option = task.why.option();
                self.voice.say(
                    Level::Error,
                    events::ACTION_FAILED,
                    &[("action", option.into()), ("error", describe(&why).into())],
                );
            }
        }
    }

    fn on_action_end(&mut self, now: Instant) {
        let Some((action, task, begun)) = self.action.take() else {
            return;
        };
        let Some(end) = action.ended() else {
            self.action = Some((action, task, begun));
            return;
        };
        self.events.remove(&action);
        let expired = action.expired();
        action.reap();
        let took = now - begun;
        let option = task.why.option();
        if end == End::Exited(0) && !expired {
            self.voice.say(
                Level::Debug,
                events::ACTION_ENDED,
                &[("action", option.into()), ("took", took.into())],
            );
        } else {
            self.counters.action_failed();
            let error = if expired && !self.stopping {
                "its time ran out"
            } else {
                ""
            };
            let mut fields = vec![
                ("action", option.into()),
                ("status", end.into()),
                ("took", took.into()),
            ];
            if !error.is_empty() {
                fields.push(("error", error.into()));
            }
            self.voice
                .say(Level::Warning, events::ACTION_FAILED, &fields);
        }
        self.run_next(now);
    }

    // ---- exec ----

    fn begin_exec(&mut self, index: usize, now: Instant) {
        if self.execs[index].is_some() {
            // It was asked to end when its time ran out, and has not yet.
            let failure = Failure::new(Reason::Timeout, "the command before has not ended yet");
            return self.answer(
                index,
                Outcome::new(Verdict::Failed(failure), Duration::ZERO),
                now,
            );
        }
        let Kind::Exec(command) = &self.plan.checks[index].kind else {
            return;
        };
        let command = command.clone();
        let pid = self.service_pid().map(|pid| pid.to_string());
        let variables = [("PID", pid.as_deref().map(OsStr::new))];
        let limit = self.plan.times.timeout;
        let started = output_pipe().and_then(|(reader, writer)| {
            let action = Action::start_into(&command, &variables, raw(&writer), limit, now)?;
            let token = index as u64;
            // Of one whose end cannot be waited for (ENOMEM) nothing would be heard any more.
            let waits = self
                .events
                .add(&action, EXEC + token, Interest::Read)
                .and_then(|()| self.events.add(&reader, OUTPUT + token, Interest::Read));
            match waits {
                Ok(()) => Ok((action, reader)),
                Err(why) => {
                    action.kill();
                    Err(std::io::Error::other(why.to_string()))
                }
            }
        });
        match started {
            Ok((action, reader)) => {
                self.execs[index] = Some(Exec {
                    action,
                    begun: now,
                    output: Some(reader),
                    said: Vec::new(),
                    answered: false,
                });
            }
            Err(why) => {
                let verdict =
                    Verdict::Unknown(format!("cannot start a command: {}", describe(&why)));
                self.answer(index, Outcome::new(verdict, Duration::ZERO), now);
            }
        }
    }

    fn on_exec_output(&mut self, index: usize) {
        let Some(exec) = self.execs.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let Some(output) = &exec.output else { return };
        let mut buffer = [0u8; 4096];
        // A few at a time: one that prints without end must not hold the loop.
        for _ in 0..16 {
            match nix::unistd::read(output, &mut buffer) {
                Ok(0) => {
                    self.events.remove(output);
                    exec.output = None;
                    return;
                }
                Ok(count) => {
                    let room = KEPT - exec.said.len().min(KEPT);
                    exec.said.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return,
                Err(_) => {
                    // It would wake us until the command ends.
                    self.events.remove(output);
                    exec.output = None;
                    return;
                }
            }
        }
    }

    fn on_exec_end(&mut self, index: usize, now: Instant) {
        self.on_exec_output(index);
        let Some(exec) = self.execs.get_mut(index).and_then(Option::take) else {
            return;
        };
        let Some(end) = exec.action.ended() else {
            self.execs[index] = Some(exec);
            return;
        };
        self.events.remove(&exec.action);
        if let Some(output) = &exec.output {
            self.events.remove(output);
        }
        let (begun, answered) = (exec.begun, exec.answered);
        exec.action.reap();
        if answered {
            return;
        }
        let text = String::from_utf8_lossy(&exec.said);
        let first = text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        let first: String = first
            .trim()
            .chars()
            .filter(|letter| !letter.is_control())
            .collect();
        let verdict = match end {
            End::Exited(0) => Verdict::Well,
            end => {
                let detail = if first.is_empty() {
                    end.to_string()
                } else {
                    format!("{end}: {first}")
                };
                Verdict::Failed(Failure::new(Reason::Exec, detail))
            }
        };
        self.answer(index, Outcome::new(verdict, now - begun), now);
    }

    // ---- processes ----

    /// The service's pid, without looking whether the pid file has changed.
    fn service_pid(&self) -> Option<i32> {
        match (&self.held, &self.wrapped) {
            (Some(held), _) => held.alive().then(|| held.pid()),
            (None, Some(wrapped)) => wrapped.ended().is_none().then(|| wrapped.child().pid()),
            (None, None) => None,
        }
    }

    /// The service's pid, by what is known of it; `None` when it is gone, and why stands in `gone`.
    fn service(&mut self) -> Option<i32> {
        match &self.plan.service {
            Service::Named(name @ Name::Number(_)) => {
                if self.held.is_none() {
                    self.held = Watched::find(name)
                        .map_err(|why| self.gone = Some(why))
                        .ok();
                } else if self.held.as_ref().is_some_and(|held| !held.alive()) {
                    self.gone = Some(Unfound::Gone(format!("{name} has ended")));
                }
            }
            Service::Named(Name::File(_)) if !self.named => return None,
            Service::Named(Name::File(_)) | Service::Nobody | Service::Wrapped => {}
        }
        self.service_pid()
    }

    /// Begins to read the pid file; true: it is worth waiting for that.
    fn seek(&mut self) -> bool {
        let held = self.held.as_ref().filter(|held| held.alive());
        let pid = held.map(Watched::pid);
        let Some(seeker) = &mut self.seeker else {
            return false;
        };
        seeker.ask(pid);
        seeker.waits()
    }

    fn on_sought(&mut self, sought: Sought, now: Instant) {
        self.gone = None;
        self.named = true;
        match sought {
            Sought::Same => {}
            Sought::Found(found) => self.found(found),
            Sought::No(why) => {
                // We cannot look: the process is that which was found last.
                self.named = matches!(why, Unfound::Unseen(_)) && self.held.is_some();
                self.gone = Some(why);
            }
        }
        self.seek_is_over(now);
        self.asked(now);
    }

    /// The pid file is not read in time: it is gone by what it said last.
    fn tired_of_seeking(&mut self) {
        if !self.seeker.as_mut().is_some_and(Seeker::tired) {
            return;
        }
        let Service::Named(name) = &self.plan.service else {
            return;
        };
        let file = name.to_string();
        if self.held.is_none() {
            let why = format!("{file}: it is not read in time");
            self.gone = Some(Unfound::Gone(why));
        }
        self.voice.say(
            Level::Warning,
            events::PID_FILE_HANGS,
            &[("file", file.into())],
        );
    }

    fn process_check(&self) -> Option<usize> {
        self.plan
            .checks
            .iter()
            .position(|check| matches!(check.kind, Kind::Process))
    }

    /// A check that waited for the pid file goes on.
    fn seek_is_over(&mut self, now: Instant) {
        let waited = self
            .round
            .as_mut()
            .and_then(|round| round.seek_until.take());
        if let (Some(_), Some(index)) = (waited, self.process_check()) {
            self.go_on_looking(index, now);
        }
    }

    fn found(&mut self, found: Watched) {
        let pid = found.pid();
        let another = self.seen.is_some_and(|seen| seen != (pid, found.start()));
        self.seen = Some((pid, found.start()));
        self.held = Some(found);
        let level = if another { Level::Info } else { Level::Debug };
        self.voice
            .say(level, events::PROCESS_FOUND, &[("pid", pid.into())]);
        if another && self.plan.mode == Mode::Watch && self.healing.is_none() {
            // A young process is given time, whoever has started it.
            self.judge
                .restarted(self.plan.times.start_period, Instant::now());
        }
    }

    fn begin_look(&mut self, index: usize, now: Instant) {
        if self.seek() {
            if let Some(round) = &mut self.round {
                round.seek_until = Some(now + self.plan.times.timeout);
                return;
            }
        }
        self.go_on_looking(index, now);
    }

    fn go_on_looking(&mut self, index: usize, now: Instant) {
        let window = self.plan.process.window();
        if let (true, Some(window)) = (self.plan.mode != Mode::Watch, window) {
            // Two looks, and as much time between them.
            let pid = self.service();
            self.processes.look(pid);
            if let (Some(round), Some(_)) = (&mut self.round, pid) {
                round.look_at = Some(now + window + Duration::from_millis(10));
                return;
            }
        }
        let outcome = self.look(now);
        self.answer(index, outcome, now);
    }

    fn look_now(&mut self, now: Instant) {
        if let Some(round) = &mut self.round {
            round.look_at = None;
        }
        let outcome = self.look(now);
        if let Some(index) = self.process_check() {
            self.answer(index, outcome, now);
        }
    }

    fn look(&mut self, now: Instant) -> Outcome {
        let pid = self.service();
        self.processes.look(pid);
        if self.processes.hidden() && !std::mem::replace(&mut self.hidden_said, true) {
            self.voice.say(
                Level::Warning,
                events::COUNTERS_HIDDEN,
                &[("error", "reads and writes are not ours to see (another user): --stuck goes by time and switches".into())],
            );
        }
        if let (None, Some(period), Mode::Watch) =
            (self.sample_at, self.plan.process.period(), self.plan.mode)
        {
            self.sample_at = Some(now + period);
        }
        let gone = |why: String| Verdict::Failed(Failure::new(Reason::Gone, why));
        let verdict = match pid {
            None => match self.gone.clone() {
                Some(Unfound::Unseen(why)) => Verdict::Unknown(why),
                Some(Unfound::Gone(why)) => gone(why),
                None => gone("the process has ended".to_owned()),
            },
            Some(_) => match self.processes.judge() {
                Some(failure) => Verdict::Failed(failure),
                None => Verdict::Well,
            },
        };
        Outcome::new(verdict, now.elapsed())
    }

    /// Between the checks, where their interval is too long for a window.
    fn sample(&mut self, now: Instant) {
        let pid = self.service_pid();
        let spins = self.processes.look(pid);
        let period = self.plan.process.period().unwrap_or(Duration::from_secs(1));
        self.sample_at = Some(now + period);
        if spins && self.round.is_none() && !self.paused && self.judge.state() != State::Down {
            self.schedule.hurry(now);
        }
    }

    // ---- systemd ----

    fn open_notify(&mut self) {
        if !self.plan.sd_notify {
            return;
        }
        let opened = match std::env::var_os("NOTIFY_SOCKET") {
            None => Err("NOTIFY_SOCKET is not set".to_owned()),
            Some(address) => Upward::open(&address).map_err(|why| describe(&why)),
        };
        match opened {
            Ok(notify) => self.notify = Some(notify),
            Err(why) => {
                self.voice.say(
                    Level::Warning,
                    events::NOTIFY_FAILED,
                    &[("error", why.into())],
                );
            }
        }
        let watchdog = std::env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|text| text.parse::<u64>().ok());
        if let Some(watchdog) = watchdog.map(Duration::from_micros) {
            let slowest =
                self.plan.times.normal.max(self.plan.times.start) + self.plan.times.timeout;
            if slowest > watchdog {
                let why = format!(
                    "--interval and --timeout are {} together, WatchdogSec is {}",
                    say(slowest),
                    say(watchdog)
                );
                self.voice.say(
                    Level::Warning,
                    events::NOTIFY_FAILED,
                    &[("error", why.into())],
                );
            }
        }
    }

    fn notify(&mut self, text: &str) {
        if let Some(notify) = &self.notify {
            // A supervisor that is behind reads the next one.
            let _ = notify.send(text, None);
        }
    }

    fn watchdog(&mut self) {
        if self.notify.is_none() {
            return;
        }
        if self.ready {
            self.notify("WATCHDOG=1");
        } else if !self.paused {
            self.ready = true;
            self.notify("READY=1\nWATCHDOG=1");
        }
    }

    fn status(&mut self) {
        if self.notify.is_some() {
            let text = match (&self.last_failure, self.judge.state()) {
                (Some((index, failure)), State::Down) => {
                    format!(
                        "{}: {} {}",
                        self.state_name(),
                        self.plan.checks[*index].target,
                        failure.say()
                    )
                }
                _ => self.state_name().to_owned(),
            };
            self.notify(&format!("STATUS={}", text.replace('\n', " ")));
        }
    }
}

/// The answer to `--once` and `--wait`, and its status.
fn tell_once(plan: &Plan, voice: &mut Voice, outcomes: &[Outcome]) -> Exit {
    let unknown = outcomes
        .iter()
        .any(|outcome| matches!(outcome.verdict, Verdict::Unknown(_)));
    if plan.format == crate::cli::Format::Nagios {
        let (status, line) = nagios(plan, outcomes);
        voice.print(&line);
        return Exit::Code(status);
    }
    for (check, outcome) in plan.checks.iter().zip(outcomes) {
        let target = check.target.as_str();
        let took = Duration::from_micros(outcome.latency.as_micros() as u64);
        let mut fields = vec![("target", target.into()), ("took", took.into())];
        fields.extend(
            outcome
                .status
                .map(|status| ("status", i64::from(status).into())),
        );
        fields.extend(
            outcome
                .address
                .clone()
                .map(|address| ("address", address.into())),
        );
        match &outcome.verdict {
            Verdict::Well => {
                let human = format!("ok   {}", good(target, outcome));
                voice.report(Level::Info, events::CHECK_PASSED, &fields, &human);
            }
            Verdict::Warning(why) => {
                fields.push(("error", why.as_str().into()));
                let human = format!("slow {}", good(target, outcome));
                voice.report(Level::Warning, events::CHECK_SLOW, &fields, &human);
            }
            Verdict::Failed(failure) => {
                fields.push(("reason", failure.reason.name().into()));
                fields.push(("error", failure.detail.as_str().into()));
                fields.extend(failure.pid.map(|pid| ("pid", pid.into())));
                let human = format!("fail {target} {}", failure.say());
                voice.report(Level::Warning, events::CHECK_FAILED, &fields, &human);
            }
            Verdict::Unknown(why) => {
                voice.say(
                    Level::Error,
                    events::CHECK_IMPOSSIBLE,
                    &[("target", target.into()), ("error", why.as_str().into())],
                );
            }
        }
    }
    match (worst(outcomes), unknown) {
        (Some(_), _) => Exit::No,
        (None, true) => Exit::Fault,
        (None, false) => Exit::Ok,
    }
}

/// The failure that counts: one that is about the service comes before one that is about ourselves, and
/// one that names a worker before all others.
fn worst(outcomes: &[Outcome]) -> Option<(usize, Failure)> {
    let failures =
        outcomes
            .iter()
            .enumerate()
            .filter_map(|(index, outcome)| match &outcome.verdict {
                Verdict::Failed(failure) => Some((index, failure.clone())),
                Verdict::Well | Verdict::Warning(_) | Verdict::Unknown(_) => None,
            });
    failures.min_by_key(|(_, failure)| (failure.late, !failure.decisive))
}

/// To whole seconds, from ten on; a tenth below that.
fn rounded(length: Duration) -> Duration {
    if length >= Duration::from_secs(10) {
        Duration::from_secs(length.as_secs())
    } else {
        Duration::from_millis((length.as_millis() / 100 * 100) as u64)
    }
}

#[cfg(feature = "tls")]
fn wish(plan: &Plan) -> Option<crate::tls::Wish> {
    plan.trust.clone()
}

#[cfg(feature = "tls")]
fn load(wish: &crate::tls::Wish) -> Result<Option<crate::http::Trust>> {
    Ok(Some(Arc::new(crate::tls::Trust::load(wish)?)))
}

/// Without the feature there is nobody to trust.
#[cfg(not(feature = "tls"))]
fn wish(_: &Plan) -> Option<()> {
    None
}

#[cfg(not(feature = "tls"))]
#[allow(clippy::unnecessary_wraps)]
fn load(_: &()) -> Result<Option<crate::http::Trust>> {
    Ok(None)
}

/// Signals that mean something to us; heartbeat(1) lists the same ones.
mod own_signals {
    use nix::sys::signal::Signal;

    pub const HUP: i32 = Signal::SIGHUP as i32;
    pub const INT: i32 = Signal::SIGINT as i32;
    pub const QUIT: i32 = Signal::SIGQUIT as i32;
    pub const TERM: i32 = Signal::SIGTERM as i32;
    pub const TSTP: i32 = Signal::SIGTSTP as i32;
    pub const USR1: i32 = Signal::SIGUSR1 as i32;
    pub const USR2: i32 = Signal::SIGUSR2 as i32;
    pub const CHLD: i32 = Signal::SIGCHLD as i32;
}
