//! The loop: what happened in, what is done about it out. It never asks for a file itself.

use crate::act::{Batch, Item, place_of, variables};
use crate::cli::SplayBy;
use crate::events;
use crate::eye::{Eye, Handle, Inbox, Sighting, Via, Way};
use crate::lock::{Locker, News};
use crate::notice::{Heard, Notices};
use crate::place::Class;
use crate::plan::{Deed, Plan};
use crate::print::line;
use crate::settle::{Decider, Order};
use crate::signature::{Change, Ground, Seen, Track};
use crate::stamp::{self, Entry, Keeper};
use common::action::Action;
use common::aside::Aside;
use common::error::{Doing, Error, Result, describe};
use common::event::{Level, Log, Value};
use common::exit::{End, Exit};
use common::output::Output;
use common::signal::{Received, Sender, Signals};
use common::wait::{Interest, Loop, Wake};
use common::watched::{Name, Unfound, Watched};
use common::wrap::{self, Wrapped};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SIGNALS: u64 = 0;
const COMMAND: u64 = 1;
const INBOX: u64 = 2;
const ACTION: u64 = 3;
const LOCK: u64 = 4;
const STAMP: u64 = 5;
const OUT: u64 = 6;
const ERR: u64 = 7;
const NOTICES: u64 = 8;
const SOUGHT: u64 = 9;

/// A file server that is away must not keep the command from being started.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// A look that takes so many intervals is said ...
const STALE: u32 = 3;
/// ... if it is that long, too: a busy machine is not a file server that is away.
const STALE_AT_LEAST: Duration = Duration::from_secs(1);
/// For a stamp on a disk that hangs, and for the last lines of a reader who is slow, at the end.
const LAST_WRITE: Duration = Duration::from_secs(1);
/// The same when we were told to stop.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Of the thread that reads a pid file, in bytes: it opens it, and reads a few files of /proc.
const SEEKER_STACK: usize = 128 << 10;

/// The signals that mean something to us.
mod own_signals {
    pub const HUP: i32 = nix::libc::SIGHUP;
    pub const INT: i32 = nix::libc::SIGINT;
    pub const QUIT: i32 = nix::libc::SIGQUIT;
    pub const TERM: i32 = nix::libc::SIGTERM;
    pub const USR1: i32 = nix::libc::SIGUSR1;
    pub const CHLD: i32 = nix::libc::SIGCHLD;
}

/// One file, as the loop knows it.
#[derive(Debug)]
struct File {
    handle: Handle,
    track: Track,
    via: Via,
    class: Option<Class>,
    /// What the stamp says was acted upon.
    acted: Option<Seen>,
    /// When its absence counts as lasting.
    gone_at: Option<Instant>,
    /// Something was mounted on the way, by a look that was not believed otherwise.
    moved: bool,
    degraded: bool,
    failed: bool,
    circle: bool,
    stale: Option<Instant>,
}

/// An action that runs, or waits for its lock, or for the pid file to be read.
#[derive(Debug)]
enum Running {
    Waiting(Instant),
    /// Until then.
    Seeking(Instant),
    Shell(Action, Instant),
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    With(Exit),
    /// When the running action has ended.
    Stopping(Exit),
}

struct Watching {
    plan: Plan,
    log: Log,
    events: Arc<Loop>,
    signals: Signals,
    notices: Arc<Notices>,
    inbox: Arc<Inbox>,
    files: Vec<File>,
    born: Instant,
    decider: Decider,
    batch: Batch,
    /// Since when something is in the batch.
    first: Option<Instant>,
    /// Count and delay of what is acted upon.
    told: (u32, Duration),
    /// USR1, or the start.
    forced: Option<Via>,
    running: Option<Running>,
    keeper: Option<Keeper>,
    /// What the stamp held at the start; `None` while it is being read.
    since: Option<Vec<Entry>>,
    written: String,
    /// What was seen before the stamp was read.
    early: Vec<Sighting>,
    locker: Option<Locker>,
    /// A pid file may lie on a file server that is away.
    seeker: Aside<Name, std::result::Result<Watched, Unfound>>,
    sought: Arc<EventFd>,
    out: Option<Output>,
    /// Lines that wait for a slow reader: one for each file, with its count.
    held: Vec<(Item, u32)>,
    err: Output,
    err_armed: bool,
    inherited: Vec<i32>,
    wrapped: Option<Wrapped>,
    ready_fd: Option<OwnedFd>,
    ready: bool,
    begun: bool,
    timeout: Option<Instant>,
    stale_check: Option<Instant>,
    /// The command has ended.
    end: Option<End>,
    /// How the last action ended.
    last: Exit,
    finish: Option<Finish>,
}

/// Watches until it is told to stop, or the command ends.
///
/// # Errors
/// A file cannot be watched at all, the command not be started, a stamp not be read.
pub fn run(plan: Plan) -> Result<Exit> {
    let mut inherited = wrap::inherited();
    common::fds::ensure_standard()?;
    let ready_fd = match plan.ready_fd {
        None => None,
        Some(fd) => {
            let open = fd <= 2 || inherited.contains(&fd);
            inherited.retain(|other| *other != fd);
            let refused = || Error::usage(format!("--ready-fd {fd}: it is not open"));
            let owned = if !open {
                None
            } else if fd <= 2 {
                nix::unistd::dup(common::sys::standard(fd)).ok()
            } else {
                common::sys::adopt(fd)
            };
            Some(owned.ok_or_else(refused)?)
        }
    };
    // Before any thread exists: each of them is born with all signals blocked.
    let signals = Signals::block()?;
    let mut watching = Watching::open(plan, signals, inherited, ready_fd)?;
    let exit = watching.serve()?;
    drop(watching);
    wrap::end_by_signal(exit);
    Ok(exit)
}

fn stale_after(plan: &Plan) -> Duration {
    (plan.interval * STALE).max(STALE_AT_LEAST)
}

impl Watching {
    fn open(
        plan: Plan,
        signals: Signals,
        inherited: Vec<i32>,
        ready_fd: Option<OwnedFd>,
    ) -> Result<Watching> {
        let events = Arc::new(Loop::new()?);
        events.add(&signals, SIGNALS, Interest::Read)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_value_and_flags(0, flags).doing("make an eventfd")?;
        let inbox = Arc::new(Inbox::new(bell));
        events.add(inbox.bell(), INBOX, Interest::Read)?;
        let born = Instant::now();
        let files: Vec<File> = plan
            .files
            .iter()
            .map(|_| File {
                handle: Handle::default(),
                track: Track::new(plan.wanted),
                via: Via::Poll,
                class: None,
                acted: None,
                gone_at: None,
                moved: false,
                degraded: false,
                failed: false,
                circle: false,
                stale: None,
            })
            .collect();
        let pokes = files.iter().map(|file| file.handle.poke.clone()).collect();
        let always = plan.way == Way::NoPoll;
        let notices = Arc::new(Notices::new(pokes, always, events.clone(), NOTICES));
        let keeper = match &plan.since {
            None => None,
            Some(path) => {
                let keeper = Keeper::open(path.clone()).doing("start a thread for the stamp")?;
                events.add(keeper.bell(), STAMP, Interest::Read)?;
                Some(keeper)
            }
        };
        let locker = match &plan.lock {
            None => None,
            Some(path) => {
                let locker = Locker::open(path.clone()).doing("start a thread for the lock")?;
                events.add(locker.bell(), LOCK, Interest::Read)?;
                Some(locker)
            }
        };
        for (file, path) in plan.files.iter().enumerate() {
            let handle = &files[file].handle;
            let eye = Eye {
                file,
                path: path.clone(),
                way: plan.way,
                interval: plan.interval,
                safety: plan.safety,
                notices: notices.clone(),
                inbox: inbox.clone(),
                poke: handle.poke.clone(),
                busy: handle.busy.clone(),
                glances: handle.glances.clone(),
                spot: handle.spot.clone(),
                born,
            };
            eye.open()
                .doing(&format!("start a thread that looks at {}", path.display()))?;
        }
        let sought = EventFd::from_value_and_flags(0, flags).doing("make an eventfd")?;
        let sought = Arc::new(sought);
        events.add(&*sought, SOUGHT, Interest::Read)?;
        let prints = matches!(plan.deed, Deed::Print(_));
        let out = prints.then(|| Output::open(1));
        if let Some(fd) = out.as_ref().and_then(Output::descriptor) {
            // Only its end is of interest for now. A file cannot be waited for, and need not be.
            let _ = events.add(fd, OUT, Interest::Nothing);
        }
        Ok(Watching {
            log: Log::new("watchtouch", plan.log_format, plan.threshold),
            decider: Decider::new(plan.policy),
            timeout: plan.timeout.map(|timeout| born + timeout),
            stale_check: Some(born + stale_after(&plan)),
            since: keeper.is_none().then(Vec::new),
            plan,
            events,
            signals,
            notices,
            inbox,
            files,
            born,
            batch: Batch::default(),
            first: None,
            told: (0, Duration::ZERO),
            forced: None,
            running: None,
            keeper,
            written: String::new(),
            early: Vec::new(),
            locker,
            seeker: Aside::new("pid-file", SEEKER_STACK, sought.clone()),
            sought,
            out,
            held: Vec::new(),
            err: Output::open(2),
            err_armed: false,
            inherited,
            wrapped: None,
            ready_fd,
            ready: false,
            begun: false,
            end: None,
            last: Exit::Ok,
            finish: None,
        })
    }

    /// The loop, to its end.
    fn serve(&mut self) -> Result<Exit> {
        let mut wakes = Vec::new();
        loop {
            match self.finish {
                Some(Finish::With(exit)) => return Ok(self.say_goodbye(exit)),
                Some(Finish::Stopping(exit)) if self.running.is_none() => {
                    return Ok(self.say_goodbye(exit));
                }
                Some(Finish::Stopping(_)) | None => {}
            }
            let deadline = self.deadline();
            self.events.wait(deadline, &mut wakes)?;
            let now = Instant::now();
            for wake in &wakes {
                self.on_wake(*wake, now)?;
            }
            self.on_time(now)?;
        }
    }

    fn on_wake(&mut self, wake: Wake, now: Instant) -> Result<()> {
        match wake.token {
            SIGNALS => {
                while let Some(received) = self.signals.next() {
                    self.on_signal(received, now);
                }
            }
            COMMAND => self.on_command_end(),
            INBOX => self.on_news(now)?,
            NOTICES => self.on_notices(now)?,
            ACTION => self.on_action_end(now),
            LOCK => self.on_lock(now),
            STAMP => self.on_stamp(now)?,
            SOUGHT => self.on_sought(now),
            OUT => self.on_out(),
            ERR => {
                self.err.flush();
                self.arm_err();
            }
            _ => {}
        }
        Ok(())
    }

    // ---- time ----

    fn deadline(&self) -> Option<Instant> {
        let mut all: Vec<Instant> = Vec::with_capacity(8);
        if self.acts() {
            all.extend(self.decider.deadline());
        }
        match &self.running {
            Some(Running::Shell(action, _)) => all.push(action.deadline()),
            Some(Running::Seeking(until)) => all.push(*until),
            Some(Running::Waiting(_)) | None => {}
        }
        all.extend(self.files.iter().filter_map(|file| file.gone_at));
        if !self.begun {
            all.push(self.born + FIRST_LOOK);
        }
        if !self.awaits_end() {
            all.extend(self.timeout);
        }
        all.extend(self.stale_check);
        all.into_iter().min()
    }

    fn on_time(&mut self, now: Instant) -> Result<()> {
        match &mut self.running {
            Some(Running::Shell(action, _)) => action.expire(now),
            Some(Running::Seeking(until)) if *until <= now => self.tired_of_seeking(now),
            Some(Running::Waiting(_) | Running::Seeking(_)) | None => {}
        }
        for file in &mut self.files {
            if file.gone_at.is_some_and(|at| at <= now) {
                file.gone_at = None;
                if file.track.gone() {
                    file.track.settle();
                }
            }
        }
        if !self.begun && now >= self.born + FIRST_LOOK {
            self.begin()?;
        }
        while self.acts() {
            let Some(order) = self.decider.tick(now) else {
                break;
            };
            self.obey(order, now);
        }
        if self.stale_check.is_some_and(|at| at <= now) {
            self.check_stale(now);
        }
        let over = self.timeout.is_some_and(|at| at <= now) && !self.awaits_end();
        if over && self.finish.is_none() {
            self.finish = Some(Finish::With(Exit::TimedOut));
        }
        self.keep_stamp();
        Ok(())
    }

    /// New actions may begin.
    fn acts(&self) -> bool {
        self.finish.is_none() && self.end.is_none()
    }

    /// A touch has come, and what it leads to is not at its end.
    fn awaits_end(&self) -> bool {
        self.decider.pending() || self.running.is_some()
    }

    fn check_stale(&mut self, now: Instant) {
        let limit = stale_after(&self.plan);
        let mut hang = false;
        for index in 0..self.files.len() {
            let file = &self.files[index];
            let since = match file.handle.busy.load(Ordering::Relaxed) {
                0 => None,
                ms => Some(self.born + Duration::from_millis(ms - 1)),
            };
            hang |= file.class != Some(Class::Local) || since.is_some();
            let path = self.name(index);
            match (file.stale, since.filter(|since| now >= *since + limit)) {
                (None, Some(since)) => {
                    self.files[index].stale = Some(since);
                    let fields = [("file", path), ("since", (now - since).into())];
                    self.say(Level::Warning, events::WATCH_STALE, &fields);
                }
                (Some(since), None) => {
                    self.files[index].stale = None;
                    let fields = [("file", path), ("took", (now - since).into())];
                    self.say(Level::Warning, events::WATCH_RECOVERED, &fields);
                }
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        // Where nothing can hang, nobody looks for what does.
        self.stale_check = hang.then_some(now + limit);
    }

    // ---- signals ----

    fn on_signal(&mut self, received: Received, now: Instant) {
        use own_signals::{CHLD, HUP, INT, QUIT, TERM, USR1};
        match received.signal {
            CHLD => {}
            USR1 => {
                self.forced = Some(Via::Signal);
                self.touched(now);
            }
            HUP if self.signals.hup_ignored() => {}
            // The terminal is gone: nobody asks for a look.
            HUP if received.sender == Sender::Kernel => self.stop(received, now),
            HUP => self.files.iter().for_each(|file| file.handle.poke.rearm()),
            TERM | INT | QUIT => self.stop(received, now),
            _ => {
                if let Some(wrapped) = &self.wrapped {
                    wrapped.forward(received);
                }
            }
        }
    }

    fn stop(&mut self, received: Received, now: Instant) {
        if let (Some(wrapped), None) = (&self.wrapped, self.end) {
            // It ends, and we with it.
            wrapped.forward(received);
            return;
        }
        // Who waited for a touch must not take the end for one.
        let stopped = received.signal == own_signals::TERM && !self.plan.once;
        let exit = if stopped {
            Exit::Ok
        } else {
            Exit::Signal(received.signal)
        };
        match &mut self.running {
            Some(Running::Shell(action, _)) => action.cut_short(now),
            Some(Running::Waiting(_) | Running::Seeking(_)) => self.running = None,
            None => {}
        }
        let exit = self.end.map_or(exit, Exit::from);
        self.finish = Some(Finish::Stopping(exit));
    }

    // ---- what is seen ----

    fn on_news(&mut self, now: Instant) -> Result<()> {
        for sighting in self.inbox.take() {
            if self.since.is_some() {
                self.on_sighting(sighting, now)?;
            } else {
                self.early.push(sighting);
            }
        }
        Ok(())
    }

    /// Something was heard: of the file itself the loop looks, if it can and the eye has nothing to say.
    fn on_notices(&mut self, now: Instant) -> Result<()> {
        for (index, heard) in self.notices.hear().into_iter().enumerate() {
            if heard == Heard::Nothing {
                continue;
            }
            let handle = &self.files[index].handle;
            let seen = if heard == Heard::File && handle.poke.asleep() {
                // All that the eye has seen, before what is seen now.
                if !self.inbox.is_empty() {
                    self.on_news(now)?;
                }
                let known = self.since.is_some() && self.files[index].class.is_some();
                known.then(|| self.files[index].handle.glance()).flatten()
            } else {
                None
            };
            match seen {
                Some(seen) => self.see(index, seen, Ground::Same, Via::Inotify, now),
                None => self.files[index].handle.poke.notice(),
            }
        }
        Ok(())
    }

    fn see(&mut self, index: usize, seen: Seen, ground: Ground, via: Via, now: Instant) {
        let file = &mut self.files[index];
        file.via = via;
        let touched = file.track.see(seen, ground);
        file.gone_at = None;
        if touched {
            self.touched(now);
        } else if file.track.gone() {
            file.gone_at = Some(now + self.plan.policy.settle);
        }
    }

    fn on_sighting(&mut self, sighting: Sighting, now: Instant) -> Result<()> {
        let index = sighting.file;
        let file = &mut self.files[index];
        if sighting.glances != file.handle.glances.load(Ordering::SeqCst) {
            // It may be older than what we have seen: the eye is to look again.
            file.moved |= sighting.ground == Ground::Moved;
            file.handle.poke.notice();
            return Ok(());
        }
        let first = self.files[index].class.is_none();
        if first && !self.begun {
            self.refuse(&sighting)?;
        }
        self.files[index].class = Some(sighting.class);
        if sighting.class != Class::Local && self.stale_check.is_none() {
            self.stale_check = Some(now + stale_after(&self.plan));
        }
        self.tell_trouble(&sighting);
        if let Ok(seen) = sighting.seen {
            let mut ground = sighting.ground;
            if std::mem::take(&mut self.files[index].moved) {
                ground = Ground::Moved;
            }
            if first {
                let path = &self.plan.files[index];
                let base = self.since.as_ref().and_then(|since| stamp::of(since, path));
                if let Some(base) = base {
                    self.files[index].track.begin_with(base);
                    self.files[index].acted = Some(base);
                    if matches!(base, Seen::There(_)) {
                        // A device has another number after a boot.
                        ground = Ground::Moved;
                    }
                }
            }
            let via = if first { Via::Start } else { sighting.via };
            self.see(index, seen, ground, via, now);
        }
        if self.files.iter().all(|file| file.class.is_some()) {
            if !self.begun {
                self.begin()?;
            }
            self.be_ready(now);
        }
        Ok(())
    }

    /// At the start, what cannot be watched is an error of whoever named it.
    fn refuse(&self, sighting: &Sighting) -> Result<()> {
        let path = &self.plan.files[sighting.file];
        let no = |why: &str| Err(Error::new(&format!("watch {}", path.display()), why));
        match &sighting.seen {
            // The server may come back; a wrong name will not become right.
            Err((errno, why)) if ![libc::EIO, libc::ESTALE, libc::ETIMEDOUT].contains(errno) => {
                return no(&match *errno {
                    libc::EACCES => format!(
                        "{why}: a directory on the way cannot be searched (it needs the permission x)"
                    ),
                    _ => why.clone(),
                });
            }
            Ok(Seen::There(_)) => {
                let kind = match sighting.mode & libc::S_IFMT {
                    libc::S_IFIFO => "a FIFO",
                    libc::S_IFCHR | libc::S_IFBLK => "a device",
                    libc::S_IFSOCK => "a socket",
                    _ => "",
                };
                if !kind.is_empty() {
                    return no(&format!("it is {kind}; a file or a directory would do"));
                }
            }
            Ok(Seen::Missing) if sighting.circle => {
                return no("its symbolic links lead in a circle");
            }
            Ok(Seen::Missing) | Err(_) => {}
        }
        match &sighting.degraded {
            Some(why) if self.plan.way == Way::NoPoll => {
                no(&format!("{why}; without --no-poll it would be polled"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn tell_trouble(&mut self, sighting: &Sighting) {
        let index = sighting.file;
        let path = self.name(index);
        let file = &mut self.files[index];
        let before = (file.degraded, file.failed, file.circle);
        file.degraded = sighting.degraded.is_some();
        file.failed = sighting.seen.is_err();
        file.circle = sighting.circle;
        match &sighting.degraded {
            Some(why) if !before.0 => {
                let fields = [("file", path.clone()), ("error", why.clone().into())];
                self.say(Level::Warning, events::WATCH_POLLING, &fields);
            }
            None if before.0 => {
                self.say(
                    Level::Info,
                    events::WATCH_RESTORED,
                    &[("file", path.clone())],
                );
            }
            Some(_) | None => {}
        }
        match &sighting.seen {
            Err((_, why)) if !before.1 => {
                let fields = [("file", path.clone()), ("error", why.clone().into())];
                self.say(Level::Warning, events::LOOK_FAILED, &fields);
            }
            Ok(_) if before.1 => {
                self.say(
                    Level::Info,
                    events::LOOK_RECOVERED,
                    &[("file", path.clone())],
                );
            }
            Ok(_) | Err(_) => {}
        }
        if sighting.circle && !before.2 {
            self.say(Level::Warning, events::LINK_LOOP, &[("file", path)]);
        }
    }

    fn touched(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.decider.touch(now);
    }

    /// The command starts when the first look has answered, or takes too long.
    fn begin(&mut self) -> Result<()> {
        self.begun = true;
        let Some(command) = &self.plan.command else {
            return Ok(());
        };
        let wrapped = Wrapped::start(&wrap::Order {
            command,
            standard: [0, 1, 2],
            inherited: &self.inherited,
            added: &[],
        })?;
        self.events.add(wrapped.child(), COMMAND, Interest::Read)?;
        let fields = [
            ("pid", wrapped.child().pid().into()),
            (
                "command",
                wrapped.program().to_string_lossy().into_owned().into(),
            ),
        ];
        self.wrapped = Some(wrapped);
        self.say(Level::Info, events::COMMAND_STARTED, &fields);
        Ok(())
    }

    fn be_ready(&mut self, now: Instant) {
        if std::mem::replace(&mut self.ready, true) {
            return;
        }
        let fields = [("files", self.files.len().into())];
        self.say(Level::Info, events::READY, &fields);
        if let Some(fd) = self.ready_fd.take() {
            // Whoever waits there may be gone.
            let _ = nix::unistd::write(&fd, b"\n");
        }
        if self.plan.run_at_start {
            self.forced = Some(Via::Start);
            self.touched(now);
        }
    }

    // ---- when it acts ----

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Settle => {
                let differs = self.gather() || !self.batch.items.is_empty();
                if !differs {
                    self.first = None;
                }
                let splay = self.splay();
                self.decider.settled(differs, splay, now);
            }
            Order::Start { count, attempt } => {
                if attempt == 0 {
                    self.gather();
                }
                self.begin_action(count, attempt, now);
            }
            Order::Queue => {
                let fields = [("pid", self.action_pid())];
                self.say(Level::Info, events::ACTION_QUEUED, &fields);
            }
            Order::Ignore => {
                self.drop_batch();
                let fields = [("pid", self.action_pid())];
                self.say(Level::Info, events::TOUCH_IGNORED, &fields);
            }
            Order::Stop => {
                if let Some(Running::Shell(action, _)) = &mut self.running {
                    action.cut_short(now);
                }
                let fields = [("pid", self.action_pid())];
                self.say(Level::Info, events::ACTION_STOPPED, &fields);
            }
            Order::Signal(signal) => {
                self.drop_batch();
                if let Some(Running::Shell(action, _)) = &self.running {
                    action.signal(signal);
                }
                let fields = [
                    ("pid", self.action_pid()),
                    ("signal", common::signal::name(signal).into()),
                ];
                self.say(Level::Info, events::ACTION_SIGNALLED, &fields);
            }
            Order::Suspect(pause) => {
                let fields = [
                    ("error", "the action seems to touch the file itself".into()),
                    ("pause", pause.into()),
                ];
                self.say(Level::Warning, events::TOUCH_LOOP, &fields);
            }
            Order::SelfTouch => {
                self.gather();
                self.drop_batch();
                let fields = [("pid", self.action_pid())];
                self.say(Level::Warning, events::TOUCH_IGNORED, &fields);
            }
        }
    }

    /// Of the action that runs; 0 where it waits.
    fn action_pid(&self) -> Value {
        match &self.running {
            Some(Running::Shell(action, _)) => action.pid().into(),
            Some(Running::Waiting(_) | Running::Seeking(_)) | None => 0.into(),
        }
    }

    /// Takes into the batch what differs from what was acted upon; true when there was something.
    fn gather(&mut self) -> bool {
        let mut found = false;
        for (index, file) in self.files.iter_mut().enumerate() {
            let Some(change) = file.track.pending() else {
                continue;
            };
            found = true;
            let previous = file.track.settle();
            self.batch.add(Item {
                file: index,
                path: self.plan.files[index].clone(),
                change,
                via: file.via,
                seen: file.track.now(),
                previous,
            });
        }
        if let Some(via) = self.forced.take() {
            found = true;
            for (index, file) in self.files.iter().enumerate() {
                if self.batch.items.iter().any(|item| item.file == index) {
                    continue;
                }
                self.batch.add(Item {
                    file: index,
                    path: self.plan.files[index].clone(),
                    change: Change::Touched,
                    via,
                    seen: file.track.now(),
                    previous: match file.track.now() {
                        Seen::There(found) => Some(found.mtime),
                        Seen::Missing => None,
                    },
                });
            }
        }
        found
    }

    fn drop_batch(&mut self) {
        self.batch = Batch::default();
        self.first = None;
    }

    fn splay(&self) -> Duration {
        if self.plan.splay.is_zero() {
            return Duration::ZERO;
        }
        let share = match self.plan.splay_by {
            SplayBy::Random => (common::time::random() >> 11) as f64 / (1u64 << 53) as f64,
            SplayBy::Host => {
                let host = nix::unistd::gethostname().unwrap_or_default();
                let path = self.plan.files.first().map(|path| path.as_os_str());
                place_of(&host, path.unwrap_or(OsStr::new("")))
            }
        };
        self.plan.splay.mul_f64(share)
    }

    // ---- what it does ----

    fn begin_action(&mut self, count: u32, attempt: u32, now: Instant) {
        self.count(count, attempt, now);
        self.decider.started(now);
        match self.plan.deed.clone() {
            Deed::Print(_) => {
                for item in std::mem::take(&mut self.batch).items {
                    self.print(item, count);
                }
                self.begun_action();
                self.ended(Exit::Ok, now);
            }
            Deed::Signal(_) => self.seek(now),
            Deed::Shell(_) => match &self.locker {
                Some(locker) => {
                    locker.take();
                    self.running = Some(Running::Waiting(now));
                }
                None => self.seek(now),
            },
        }
    }

    /// Finds out whom the action is about, and goes on with it.
    fn seek(&mut self, now: Instant) {
        let found = match &self.plan.target {
            None => None,
            Some(name @ Name::Number(_)) => Some(Watched::find(name)),
            Some(name @ Name::File(path)) => {
                let work = || -> common::aside::Work<_, _> {
                    Box::new(|name: Name, answer| answer(Watched::find(&name)))
                };
                match self.seeker.ask(name.clone(), work) {
                    Ok(()) => {
                        let until = now + self.plan.action_timeout;
                        self.running = Some(Running::Seeking(until));
                        return;
                    }
                    Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {
                        let why = format!("{}: it cannot be read", path.display());
                        Some(Err(Unfound::Unseen(why)))
                    }
                    // No thread to be had: better here than not at all.
                    Err(_) => Some(Watched::find(name)),
                }
            }
        };
        self.act_upon(found, now);
    }

    fn on_sought(&mut self, now: Instant) {
        let _ = self.sought.read();
        let answer = self.seeker.answer();
        if let (Some(found), Some(Running::Seeking(_))) = (answer, &self.running) {
            self.running = None;
            self.act_upon(Some(found), now);
        }
    }

    /// The file server does not answer.
    fn tired_of_seeking(&mut self, now: Instant) {
        self.seeker.give_up();
        self.running = None;
        let path = match &self.plan.target {
            Some(name) => name.to_string(),
            None => String::new(),
        };
        let fields = [("error", format!("{path}: it cannot be read in time").into())];
        let event = match self.plan.deed {
            Deed::Signal(_) => events::SIGNAL_FAILED,
            Deed::Print(_) | Deed::Shell(_) => events::ACTION_FAILED,
        };
        self.say(Level::Warning, event, &fields);
        self.unlock();
        self.ended(Exit::TimedOut, now);
    }

    /// With the process that it is about: `None`, nobody has named one.
    fn act_upon(&mut self, found: Option<std::result::Result<Watched, Unfound>>, now: Instant) {
        let Deed::Signal(signal) = self.plan.deed else {
            return self.start_shell(found, now);
        };
        let result = self.send(signal, found);
        self.begun_action();
        let exit = match result {
            Ok(()) => Exit::Ok,
            Err(why) => {
                let fields = [
                    ("signal", common::signal::name(signal).into()),
                    ("error", why.into()),
                ];
                self.say(Level::Warning, events::SIGNAL_FAILED, &fields);
                Exit::No
            }
        };
        self.ended(exit, now);
    }

    /// Says what is acted upon, and remembers what the action is told.
    fn count(&mut self, count: u32, attempt: u32, now: Instant) {
        if attempt > 0 {
            return;
        }
        let level = if matches!(self.plan.deed, Deed::Print(_)) {
            Level::Debug
        } else {
            Level::Info
        };
        let delay = self.first.map_or(Duration::ZERO, |first| now - first);
        if level <= self.plan.threshold {
            for item in self.batch.items.clone() {
                let fields = [
                    ("file", self.name(item.file)),
                    ("event", item.change.name().into()),
                    ("via", item.via.name().into()),
                    ("count", count.into()),
                    ("delay", delay.into()),
                ];
                self.say(level, events::FILE_TOUCHED, &fields);
            }
        }
        self.told = (count, delay);
        self.first = None;
    }

    fn start_shell(&mut self, found: Option<std::result::Result<Watched, Unfound>>, now: Instant) {
        let Deed::Shell(command) = self.plan.deed.clone() else {
            return;
        };
        let pid = match (&self.wrapped, found) {
            (Some(wrapped), _) => Some(wrapped.child().pid()),
            (None, Some(Ok(watched))) => Some(watched.pid()),
            // The action may be what starts it.
            (None, Some(Err(why))) => {
                let fields = [("error", why.to_string().into())];
                self.say(Level::Debug, events::SIGNAL_FAILED, &fields);
                None
            }
            (None, None) => None,
        };
        let (count, delay) = self.told;
        let variables = variables(&self.batch, pid, count, delay);
        let borrowed: Vec<(&str, Option<&OsStr>)> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_deref()))
            .collect();
        let started = Action::start_into(&command, &borrowed, 2, self.plan.action_timeout, now)
            .map_err(|why| describe(&why))
            .and_then(|action| {
                let added = self.events.add(&action, ACTION, Interest::Read);
                added.map_err(|why| why.message).map(|()| action)
            });
        match started {
            Ok(action) => {
                let fields = [("pid", action.pid().into()), ("count", count.into())];
                self.say(Level::Info, events::ACTION_STARTED, &fields);
                self.running = Some(Running::Shell(action, now));
                self.begun_action();
            }
            Err(why) => {
                let fields = [("error", why.into())];
                self.say(Level::Warning, events::ACTION_FAILED, &fields);
                self.unlock();
                self.running = None;
                self.ended(Exit::Fault, now);
            }
        }
    }

    /// What the stamp is for has happened. The batch stays for a next try.
    fn begun_action(&mut self) {
        for file in &mut self.files {
            if let Some(base) = file.track.base() {
                file.acted = Some(base);
            }
        }
    }

    fn send(
        &mut self,
        signal: i32,
        found: Option<std::result::Result<Watched, Unfound>>,
    ) -> std::result::Result<(), String> {
        let pid = match (&self.wrapped, found) {
            (Some(wrapped), _) => {
                wrapped.child().signal(signal);
                wrapped.child().pid()
            }
            (None, Some(found)) => {
                let watched = found.map_err(|why| why.to_string())?;
                let sent = watched.signal(signal);
                sent.map_err(|why| format!("pid {}: {}", watched.pid(), describe(&why)))?;
                watched.pid()
            }
            (None, None) => return Err("the command does not run yet".to_owned()),
        };
        let fields = [
            ("pid", pid.into()),
            ("signal", common::signal::name(signal).into()),
        ];
        self.say(Level::Info, events::SIGNAL_SENT, &fields);
        Ok(())
    }

    fn on_action_end(&mut self, now: Instant) {
        let Some(Running::Shell(action, since)) = &self.running else {
            return;
        };
        let Some(end) = action.ended() else { return };
        let (expired, pid, took) = (action.expired(), action.pid(), now - *since);
        if let Some(Running::Shell(action, _)) = self.running.take() {
            self.events.remove(&action);
            action.reap();
        }
        self.unlock();
        let fields = [
            ("pid", pid.into()),
            ("status", end.into()),
            ("took", took.into()),
        ];
        if end == End::Exited(0) {
            self.say(Level::Info, events::ACTION_ENDED, &fields);
        } else {
            self.say(Level::Warning, events::ACTION_FAILED, &fields);
        }
        let exit = match end {
            // Its time ran out, whatever it said to that.
            _ if expired => Exit::TimedOut,
            End::Exited(0) => Exit::Ok,
            end => end.into(),
        };
        self.ended(exit, now);
    }

    /// An action is at its end, well or not.
    fn ended(&mut self, exit: Exit, now: Instant) {
        self.last = exit;
        let pause = self.decider.ended(exit == Exit::Ok, now);
        self.timeout = self.plan.timeout.map(|timeout| now + timeout);
        match pause {
            Some(pause) => {
                let fields = [("pause", pause.into())];
                self.say(Level::Info, events::ACTION_RETRIED, &fields);
            }
            None => {
                self.batch = Batch::default();
                if self.plan.once && self.finish.is_none() {
                    self.finish = Some(Finish::With(exit));
                }
            }
        }
    }

    // ---- the lock ----

    fn on_lock(&mut self, now: Instant) {
        let Some(news) = self.locker.as_ref().and_then(Locker::news) else {
            return;
        };
        let path = match &self.plan.lock {
            Some(path) => path.to_string_lossy().into_owned(),
            None => String::new(),
        };
        let since = match &self.running {
            Some(Running::Waiting(since)) => *since,
            Some(Running::Shell(..) | Running::Seeking(_)) => return,
            None => {
                self.unlock();
                return;
            }
        };
        match news {
            News::Waiting => {
                let fields = [("file", path.into())];
                self.say(Level::Info, events::LOCK_WAITING, &fields);
            }
            News::Taken => {
                let fields = [("file", path.into()), ("took", (now - since).into())];
                self.say(Level::Info, events::LOCK_TAKEN, &fields);
                self.seek(now);
            }
            News::Failed(why) => {
                let fields = [("file", path.into()), ("error", why.into())];
                self.say(Level::Warning, events::LOCK_FAILED, &fields);
                self.running = None;
                self.ended(Exit::Fault, now);
            }
        }
    }

    fn unlock(&self) {
        if let Some(locker) = &self.locker {
            locker.release();
        }
    }

    // ---- the stamp ----

    fn on_stamp(&mut self, now: Instant) -> Result<()> {
        let Some(keeper) = &self.keeper else {
            return Ok(());
        };
        let path = match &self.plan.since {
            Some(path) => path.to_string_lossy().into_owned(),
            None => String::new(),
        };
        if let Some(found) = keeper.take_found() {
            match found {
                Ok(entries) => self.since = Some(entries.unwrap_or_default()),
                Err(why) => return Err(Error::new(&format!("use the stamp {path}"), why)),
            }
            for sighting in std::mem::take(&mut self.early) {
                self.on_sighting(sighting, now)?;
            }
            return Ok(());
        }
        if let Some(why) = keeper.take_failure() {
            let fields = [("file", path.into()), ("error", why.into())];
            self.say(Level::Warning, events::STAMP_FAILED, &fields);
        }
        Ok(())
    }

    /// Has the stamp written when there is something new to keep: what was acted upon, and what was found
    /// of files that nothing is to be done for.
    fn keep_stamp(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        if self.since.is_none() {
            return;
        }
        let busy = self.decider.pending();
        let mut entries: Vec<Entry> = Vec::new();
        for (index, file) in self.files.iter_mut().enumerate() {
            if !busy || file.acted.is_none() {
                file.acted = file.track.base().or(file.acted);
            }
            if let Some(seen) = file.acted {
                entries.push((self.plan.files[index].clone(), seen));
            }
        }
        if entries.is_empty() {
            return;
        }
        let text = stamp::text(&entries);
        if text != self.written {
            self.written.clone_from(&text);
            keeper.write(text);
        }
    }

    // ---- the command ----

    fn on_command_end(&mut self) {
        let Some(end) = self.wrapped.as_ref().and_then(Wrapped::ended) else {
            return;
        };
        if let Some(wrapped) = &self.wrapped {
            self.events.remove(wrapped.child());
        }
        self.end = Some(end);
        let fields = match end {
            End::Exited(status) => [("status", status.into())],
            End::Killed(signal) => [("signal", common::signal::name(signal).into())],
        };
        self.say(Level::Info, events::COMMAND_EXITED, &fields);
        if let Some(Running::Waiting(_)) = self.running {
            self.running = None;
        }
        // An action that runs may end.
        self.finish = Some(Finish::Stopping(end.into()));
    }

    // ---- what it says ----

    fn name(&self, index: usize) -> Value {
        crate::print::escaped(&self.plan.files[index]).into()
    }

    fn say(&mut self, level: Level, event: &str, fields: &[(&str, Value)]) {
        if let Some(line) = self.log.line(level, event, fields) {
            self.err.write_or_drop(&line);
            self.arm_err();
        }
    }

    /// Waits for the reader of stderr only while something waits for it: one who is gone would wake us
    /// for ever.
    fn arm_err(&mut self) {
        if self.err.descriptor().is_none() && self.err_armed {
            // He is gone, and the descriptor itself may be there still.
            self.err_armed = false;
            self.events.remove(common::sys::standard(2));
        }
        let wanted = self.err.wants_to_write();
        if let (Some(fd), true) = (self.err.descriptor(), wanted != self.err_armed) {
            self.err_armed = wanted;
            if wanted {
                let _ = self.events.add(fd, ERR, Interest::Write);
            } else {
                self.events.remove(fd);
            }
        }
    }

    fn print(&mut self, item: Item, count: u32) {
        let Deed::Print(lines) = self.plan.deed else {
            return;
        };
        let Some(out) = &mut self.out else { return };
        if out.wants_to_write() {
            // The reader is slow: one line for each file is all that is kept.
            match self.held.iter_mut().find(|(old, _)| old.file == item.file) {
                Some((old, sum)) => {
                    *old = item;
                    *sum = sum.saturating_add(count);
                }
                None => self.held.push((item, count)),
            }
        } else {
            let time = SystemTime::now().duration_since(UNIX_EPOCH);
            out.write(&line(&item, count, time.unwrap_or_default(), lines));
        }
        self.arm_out();
    }

    fn on_out(&mut self) {
        let Some(out) = &mut self.out else { return };
        if !out.wants_to_write() {
            // Nothing was asked for but its end.
            self.finish.get_or_insert(Finish::With(Exit::Ok));
            return;
        }
        out.flush();
        if !out.wants_to_write() {
            for (item, count) in std::mem::take(&mut self.held) {
                self.print(item, count);
            }
        }
        self.arm_out();
    }

    fn arm_out(&mut self) {
        let Some(out) = &self.out else { return };
        if out.is_gone() {
            self.finish.get_or_insert(Finish::With(Exit::Ok));
            return;
        }
        if let Some(fd) = out.descriptor() {
            let interest = if out.wants_to_write() {
                Interest::Write
            } else {
                Interest::Nothing
            };
            self.events.set(fd, OUT, interest);
        }
    }

    fn say_goodbye(&mut self, exit: Exit) -> Exit {
        let patience = if matches!(self.finish, Some(Finish::Stopping(_))) {
            LAST_WORDS
        } else {
            LAST_WRITE
        };
        self.keep_stamp();
        if let Some(keeper) = &self.keeper {
            keeper.finish(patience);
        }
        if let Some(out) = &mut self.out {
            out.finish(patience);
        }
        self.err.finish(LAST_WORDS);
        exit
    }
}
