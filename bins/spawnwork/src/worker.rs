//! One worker process, and when it counts as ready.

use crate::cli::Ready;
use crate::launch::Generation;
use crate::node::channel::Channel;
use crate::plan::Readiness;
use common::cgroup::Group;
use common::child::Child;
use common::exit::End;
use common::lines::LastLines;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// starting -> serving -> draining -> killing -> gone; a hung one aborting instead of draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// Not ready yet.
    Starting,
    /// Ready.
    Serving,
    /// Asked to stop.
    Draining,
    /// Its watchdog was not fed: it has got SIGABRT.
    Aborting,
    /// Killed, and not gone yet.
    Killing,
}

impl State {
    /// For the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Aborting => "aborting",
            State::Killing => "killing",
        }
    }
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    /// Never reused.
    pub id: u64,
    /// Its slot.
    pub slot: usize,
    /// Its generation.
    pub generation: Rc<Generation>,
    /// The process.
    pub child: Child,
    /// What it cannot leave by forking, where there is one.
    pub cgroup: Option<Group>,
    /// Where it is in its life.
    pub state: State,
    /// When it was forked.
    pub started: Instant,
    /// How long it may live, its own jitter included.
    pub lifetime: Option<Duration>,
    /// Not ready by then is failed.
    pub ready_by: Instant,
    /// When it became ready.
    pub ready_at: Option<Instant>,
    /// Draining: when patience ends.
    pub kill_at: Option<Instant>,
    /// Why we ended it, if we did.
    pub cause: Option<String>,
    /// Who ended it, as far as we know before its end.
    pub by: Option<crate::deaths::By>,
    /// The kernel's count of OOM kills when it was started.
    pub oom_kills: Option<u64>,
    /// It never had the slot that it was made for, and will not.
    pub aborted: bool,
    /// Signals to be passed on to it once it is ready: before that it may not handle them yet.
    pub owed: std::collections::BTreeSet<i32>,
    /// Node's channel.
    pub channel: Option<Channel>,
    /// Something came through the channel at some time.
    pub spoke: bool,
    /// Queries answered whose `listening` has not come.
    pub open_queries: usize,
    /// The last change to `open_queries` after the first `listening`.
    pub listening_since: Option<Instant>,
    /// `disconnect` was sent.
    pub disconnected: bool,
    /// It said something on NOTIFY_SOCKET, other than to its watchdog.
    pub notified: bool,
    /// It serves under `--watchdog`, and is to be heard again by then.
    pub heard_by: Option<Instant>,
    /// READY=1, the newline on its descriptor, or the command's success.
    pub shown: bool,
    /// The read end for `--ready fd:N`.
    pub ready_fd: Option<OwnedFd>,
    /// The running command of `--ready exec:CMD`, and when the next may start.
    pub check: (Option<Child>, Instant),
    /// It gets no connection until its generation has the slots.
    pub held: bool,
    /// We closed its channel: by that its preload knows that it is to drain, without a signal.
    pub cut_off: bool,
    /// The last lines of its stderr.
    pub last: LastLines,
    /// Its streams that are still read.
    pub streams: usize,
}

/// An app may listen on several ports: it is ready when it has stopped asking for this long.
const SETTLED: Duration = Duration::from_millis(50);
/// Without another sign, a worker that lives so long is taken to serve.
const ALIVE: Duration = Duration::from_secs(1);

impl Worker {
    /// Ends it, and whatever it has started: its process group, and all that is in its cgroup.
    pub fn kill(&self) {
        self.child.signal_group(9);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    /// It has not been told to go.
    #[must_use]
    pub fn stays(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving)
    }

    /// Whether it serves, by the user's sign for that. Pure but for `now`.
    #[must_use]
    pub fn shows_ready(&self, how: &Readiness, now: Instant) -> bool {
        match self.ready_from(how) {
            Some(at) => at <= now,
            None => false,
        }
    }

    /// Its time to become ready is over. What has shown that it listens, and only has to be quiet for a
    /// moment yet, is not late.
    #[must_use]
    pub fn is_late(&self, how: &Readiness, now: Instant) -> bool {
        let soon = self.ready_from(how);
        now >= self.ready_by && soon.is_none_or(|at| at > self.ready_by + SETTLED)
    }

    /// We have not looked for `late`: stopped, or with the whole machine. What it may have done
    /// meanwhile it gets the time to show.
    pub fn put_off(&mut self, late: Duration) {
        self.ready_by += late;
        self.kill_at = self.kill_at.map(|at| at + late);
    }

    /// From when on it counts as ready; `None` while only an event can make it so.
    #[must_use]
    pub fn ready_from(&self, how: &Readiness) -> Option<Instant> {
        let shown = self.shown.then_some(self.started);
        match how {
            Readiness::Told(Ready::Listen) => self
                .listening_since
                .filter(|_| self.open_queries == 0)
                .map(|since| since + SETTLED),
            Readiness::Told(Ready::Notify | Ready::Fd(_) | Ready::Exec(_)) => shown,
            Readiness::Told(Ready::Alive(length)) => Some(self.started + *length),
            Readiness::Found => shown.or_else(|| (!self.notified).then(|| self.started + ALIVE)),
        }
    }
}

/// A place for a worker.
#[derive(Debug)]
pub struct Slot {
    /// The worker that serves here.
    pub current: Option<u64>,
    /// The worker of the next generation, during a reload.
    pub next: Option<u64>,
    /// The generation whose workers belong here.
    pub generation: Rc<Generation>,
    /// Its deaths.
    pub history: crate::respawn::History,
    /// What it waits for.
    pub wait: Wait,
    /// Workers that were started here after the first.
    pub restarts: u64,
    /// How the last one ended.
    pub last_end: Option<End>,
    /// How the last ones ended, and what the last one said.
    pub deaths: crate::deaths::Deaths,
}

/// Why a slot has no worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It has one, or is to have none.
    Nothing,
    /// It is in the line of those that start.
    Queued,
    /// Until then, by the backoff.
    Backoff(Instant),
    /// Until then, over its limit.
    Held(Instant),
}

impl Slot {
    /// An empty slot of a generation.
    #[must_use]
    pub fn new(generation: &Rc<Generation>) -> Slot {
        Slot {
            current: None,
            next: None,
            generation: Rc::clone(generation),
            history: crate::respawn::History::default(),
            wait: Wait::Queued,
            restarts: 0,
            last_end: None,
            deaths: crate::deaths::Deaths::default(),
        }
    }
}
