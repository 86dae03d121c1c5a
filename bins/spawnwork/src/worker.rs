//! One worker process, what it has said and shown, and when it counts as ready. What is to become of it
//! is decided in pool.

use crate::cli::Ready;
use crate::node::channel::Channel;
use crate::plan::Readiness;
use common::cgroup::Group;
use common::child::{Child, at_work};
use common::lines::LastLines;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A worker.
#[derive(Debug)]
pub struct Worker {
    /// Never reused.
    pub id: u64,
    /// Its slot.
    pub slot: usize,
    /// Its generation.
    pub generation: u32,
    /// The process.
    pub child: Child,
    /// What it cannot leave by forking, where there is one.
    pub cgroup: Option<Group>,
    /// When it was forked.
    pub started: Instant,
    /// Not ready by then is failed.
    pub ready_by: Instant,
    /// The kernel's count of OOM kills when it was started.
    pub oom_kills: Option<u64>,
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
    /// When it was last looked at whether it does something while it starts, and whether it did.
    pub looked: Option<(Instant, bool)>,
    /// We closed its channel: by that its preload knows that it is to drain, without a signal.
    pub cut_off: bool,
    /// The last lines of its stderr.
    pub last: LastLines,
    /// Its streams that are still read.
    pub streams: usize,
}

/// An app may listen on several ports: it is ready when it has stopped asking for this long.
const SETTLED: Duration = Duration::from_millis(50);
/// One that only has to live on is looked at so often at first, while others wait for it: the next one is
/// soon started, and a look costs some tens of microseconds.
const LOOK: Duration = Duration::from_millis(10);
/// And so often at least, when it has much to do.
const LONGEST_LOOK: Duration = Duration::from_millis(100);
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
    }

    /// When there is something to be looked at while it starts: a sign that it serves, the end of its
    /// time, the next try of `--ready exec:CMD`.
    #[must_use]
    pub fn start_deadline(&self, how: &Readiness, now: Instant) -> Option<Instant> {
        let check = match how {
            Readiness::Told(Ready::Exec(_)) if self.check.0.is_none() => {
                Some(self.check.1.max(now))
            }
            Readiness::Told(_) | Readiness::Found => None,
        };
        [Some(self.ready_by), self.ready_from(how), check]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether it has done what it has to do at its start, as two looks in a row show, and counts as ready
    /// for no other reason than that it lives on. Others wait for that, or it is not looked at.
    #[must_use]
    pub fn is_settled(&mut self, how: &Readiness, others_wait: bool, now: Instant) -> bool {
        if !others_wait || self.look_at(how).is_none_or(|at| at > now) {
            return false;
        }
        // Without /proc nobody can tell.
        let works = at_work(self.child.pid()).unwrap_or(true);
        let before = self.looked.replace((now, works));
        !works && before.is_some_and(|(_, worked)| !worked)
    }

    /// When it is to be looked at, if others wait for it.
    #[must_use]
    pub fn look_at(&self, how: &Readiness) -> Option<Instant> {
        let by_age = match how {
            Readiness::Told(Ready::Alive(_)) => true,
            Readiness::Found => !self.shown && !self.notified,
            Readiness::Told(_) => false,
        };
        let last = self.looked.map_or(self.started, |(at, _)| at);
        let age = last.saturating_duration_since(self.started);
        by_age.then(|| last + (age / 4).clamp(LOOK, LONGEST_LOOK))
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
