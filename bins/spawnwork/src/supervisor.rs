//! What we tell the supervisor above us (sd_notify(3)): readiness, reloads, the end, signs of life, and
//! the sockets that it is to keep. What to say is a pure function of what it was told and what is; to
//! say it never delays the loop, and a supervisor that is gone or behind harms nobody.

use crate::events;
use crate::plan::Plan;
use crate::pool::{Phase, State as WorkerState};
use crate::run::Master;
use crate::store::{self, Origin, Spot};
use common::event::Level;
use common::fds::Upward;
use common::socket::{self, Address};
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A longer stage is asked for in pieces of this length: a master that hangs is found out by then
/// (the supervisor puts its watchdog off by the same time).
const PIECE: Duration = Duration::from_secs(30);
/// Asked for again so often: two datagrams may be lost.
const AGAIN: Duration = Duration::from_secs(10);
/// What a stage may take above what its limits add up to.
const MARGIN: Duration = Duration::from_secs(10);
/// A peer that is behind is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// How long a start waits for the supervisor to close a socket that is in the way.
const RELEASE: Duration = Duration::from_secs(1);

/// What the pool does, as far as the supervisor is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The first generation has not served yet.
    Starting,
    /// A generation serves.
    Serving,
    /// A new generation comes.
    Reloading {
        /// Its number.
        target: u32,
        /// How many of its workers are ready.
        ready: usize,
    },
    /// It failed when some slots had changed hands already: the old one comes back there.
    Returning,
    /// Everybody goes: there is no way back from here.
    Stopping {
        /// Workers that are still there.
        left: usize,
    },
}

/// How the last reload ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// There was none.
    #[default]
    None,
    /// The new generation took over.
    Committed,
    /// The old one stayed.
    Failed,
    /// It was not begun.
    Refused,
}

/// Everything that a message may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// What goes on.
    pub stage: Stage,
    /// The generation that serves, or starts as the first.
    pub generation: u32,
    /// Slots with a worker that serves.
    pub ready: usize,
    /// All slots.
    pub workers: usize,
    /// The generation of a reload that failed, until one succeeds.
    pub frozen: Option<u32>,
    /// How the last reload ended.
    pub outcome: Outcome,
    /// Reloads that were asked for so far.
    pub requests: u64,
}

impl State {
    /// One short line for people.
    #[must_use]
    pub fn words(&self) -> String {
        let (generation, ready, workers) = (self.generation, self.ready, self.workers);
        let serve = format!("{ready} of {workers} workers ready");
        match self.stage {
            Stage::Starting => format!("starting generation {generation}, {serve}"),
            Stage::Serving => {
                let mut text = format!("generation {generation}, {serve}");
                if let Some(failed) = self.frozen {
                    text.push_str(&format!("; reload to generation {failed} failed, frozen"));
                }
                match self.outcome {
                    Outcome::None | Outcome::Failed => {}
                    Outcome::Committed => text.push_str("; reload committed"),
                    Outcome::Refused => text.push_str("; reload refused"),
                }
                text
            }
            Stage::Reloading { target, ready } => format!(
                "reloading to generation {target}, {ready} of {workers} ready; generation {generation}, {serve}"
            ),
            Stage::Returning => {
                let failed = self
                    .frozen
                    .map_or_else(String::new, |failed| format!(" to generation {failed}"));
                format!("reload{failed} failed, back to generation {generation}, {serve}")
            }
            Stage::Stopping { left } => format!("stopping, workers left: {left}"),
        }
    }

    fn reloading(&self) -> bool {
        match self.stage {
            Stage::Reloading { .. } | Stage::Returning => true,
            Stage::Starting | Stage::Serving | Stage::Stopping { .. } => false,
        }
    }
}

/// What the supervisor knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    ready: bool,
    reloading: bool,
    stopping: bool,
    requests: u64,
    state: Option<State>,
}

impl Told {
    fn after(&self, state: State) -> Told {
        let serving = state.stage == Stage::Serving;
        Told {
            ready: self.ready || serving,
            reloading: self.ready && state.reloading(),
            stopping: matches!(state.stage, Stage::Stopping { .. }),
            requests: state.requests,
            state: Some(state),
        }
    }
}

/// The datagrams that take it from `told` to `state`. `monotonic` is CLOCK_MONOTONIC in microseconds:
/// by it a supervisor tells the answer to its own request from that to an earlier one. Every request is
/// answered by RELOADING=1, and in the end by READY=1, even when it was refused or failed at once:
/// somebody waits for that. `more` is time to ask for.
#[must_use]
pub fn messages(told: &Told, state: &State, monotonic: u64, more: Option<Duration>) -> Vec<String> {
    let mut list = Vec::new();
    let asked = told.ready && state.requests != told.requests;
    let reloading = format!("RELOADING=1\nMONOTONIC_USEC={monotonic}\n");
    let head = match state.stage {
        Stage::Starting => String::new(),
        Stage::Serving => {
            if asked {
                list.push(reloading.trim_end().to_owned());
            }
            if asked || told.reloading || !told.ready {
                "READY=1\n".to_owned()
            } else {
                String::new()
            }
        }
        Stage::Reloading { .. } | Stage::Returning => {
            if asked || !told.reloading {
                reloading
            } else {
                String::new()
            }
        }
        Stage::Stopping { .. } if told.stopping => String::new(),
        Stage::Stopping { .. } => "STOPPING=1\n".to_owned(),
    };
    let words = state.words();
    let news = told.state.as_ref().map(State::words).as_ref() != Some(&words);
    let mut text = head;
    if news || !text.is_empty() {
        text.push_str(&format!("STATUS={words}\n"));
    }
    if let Some(more) = more {
        text.push_str(&format!("EXTEND_TIMEOUT_USEC={}\n", more.as_micros()));
    }
    if !text.is_empty() {
        list.push(text.trim_end().to_owned());
    }
    list
}

/// How long the present stage may take at most by the limits that the user set; zero for one that needs
/// no end. Beyond that the supervisor's own limit counts.
#[must_use]
pub fn limit(stage: Stage, plan: &Plan, workers: usize) -> Duration {
    let rules = plan.policy().rules(workers);
    let waves = |workers: usize, at_once: usize| {
        u32::try_from(workers.div_ceil(at_once.max(1))).unwrap_or(u32::MAX)
    };
    let ready = plan.ready_timeout;
    match stage {
        Stage::Serving => Duration::ZERO,
        // Those that hang hold the others up for two seconds only: see STAGGER in pool/mod.rs.
        Stage::Starting => Duration::from_secs(2)
            .saturating_mul(waves(workers, rules.parallel))
            .saturating_add(ready)
            .saturating_add(MARGIN),
        Stage::Reloading { .. } | Stage::Returning => {
            let mut each = ready.saturating_add(rules.probation);
            if rules.surge == 0 {
                each = each.saturating_add(plan.stop_timeout);
            }
            let rest = waves(workers.saturating_sub(1), rules.parallel.min(rules.surge));
            // --check comes before all of them, and has the same time.
            let check = plan.check.as_ref().map_or(Duration::ZERO, |_| ready);
            each.saturating_mul(rest.saturating_add(1))
                .saturating_add(check)
                .saturating_add(MARGIN)
        }
        // The workers, and then what they leave behind.
        Stage::Stopping { .. } => plan.stop_timeout.saturating_mul(2).saturating_add(MARGIN),
    }
}

/// What to ask for `elapsed` after the stage began, `asked` ago for the last time.
#[must_use]
pub fn extension(limit: Duration, elapsed: Duration, asked: Option<Duration>) -> Option<Duration> {
    let left = limit.saturating_sub(elapsed);
    let due = asked.is_none_or(|ago| ago >= AGAIN);
    Some(left.min(PIECE)).filter(|piece| due && !piece.is_zero())
}

/// A message about a socket.
#[derive(Debug)]
struct Parcel {
    text: String,
    /// The name, and the socket: none where the store is to forget it.
    name: String,
    fd: Option<Rc<OwnedFd>>,
}

/// The supervisor, if there is one.
#[derive(Debug, Default)]
pub struct Supervisor {
    peer: Option<Upward>,
    /// Why there is none although there should be.
    trouble: Option<String>,
    complained: bool,
    told: Told,
    requests: u64,
    outcome: Outcome,
    /// The present stage by its kind and request, since when, and when time was asked for.
    stage: Option<((u8, u64), Instant, Option<Instant>)>,
    limit: Duration,
    /// A sign of life so often.
    alive: Option<Duration>,
    alive_at: Option<Instant>,
    healthy: bool,
    /// How many sockets it keeps; `None`: it keeps none.
    room: Option<usize>,
    stored: BTreeSet<String>,
    parcels: VecDeque<Parcel>,
    retry: Option<Instant>,
}

impl Supervisor {
    /// By NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID and FDSTORE.
    #[must_use]
    pub fn of_environment() -> Supervisor {
        let mut supervisor = Supervisor::default();
        let Some(variable) = std::env::var_os("NOTIFY_SOCKET").filter(|text| !text.is_empty())
        else {
            return supervisor;
        };
        match Upward::open(&variable) {
            Ok(peer) => supervisor.peer = Some(peer),
            Err(why) => {
                supervisor.trouble = Some(format!(
                    "NOTIFY_SOCKET is '{}': {}",
                    variable.to_string_lossy(),
                    common::error::describe(&why)
                ));
            }
        }
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
        let pid = std::env::var("WATCHDOG_PID").ok();
        if pid.is_none() || number(pid) == Some(u64::from(std::process::id())) {
            let limit = number(std::env::var("WATCHDOG_USEC").ok()).filter(|limit| *limit > 0);
            supervisor.alive = limit.map(|limit| Duration::from_micros(limit / 2));
        }
        supervisor.room = number(std::env::var("FDSTORE").ok())
            .and_then(|room| usize::try_from(room).ok())
            .filter(|room| *room > 0 && supervisor.peer.is_some());
        supervisor
    }

    /// A reload was asked for.
    pub fn reload_requested(&mut self) {
        self.requests += 1;
    }

    /// A reload ended so.
    pub fn reload_ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Gives a socket into the store, and says under which name it is there.
    pub fn keep(&mut self, name: Option<String>, fd: &Rc<OwnedFd>) -> Option<String> {
        let name = name?;
        if self.stored.len() >= self.room? {
            return None;
        }
        let name = store::distinct(name, |name| self.stored.contains(name));
        self.stored.insert(name.clone());
        // Without FDPOLL=0 a socket that a worker shut down, and that listens again with us, or one of
        // UDP with a pending error, is thrown out of the store.
        self.parcels.push_back(Parcel {
            text: format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"),
            name: name.clone(),
            fd: Some(Rc::clone(fd)),
        });
        Some(name)
    }

    /// The socket of this name is closed: the store must not keep its port.
    pub fn forget(&mut self, name: Option<&str>) {
        let Some(name) = name.filter(|name| self.stored.remove(*name)) else {
            return;
        };
        let before = self.parcels.len();
        self.parcels.retain(|parcel| parcel.name != name);
        if self.parcels.len() == before {
            self.discard(name.to_owned());
        }
    }

    /// The same for a socket that came back, and that nobody wants.
    pub fn discard(&mut self, name: String) {
        if self.peer.is_some() {
            self.parcels.push_back(Parcel {
                text: format!("FDSTOREREMOVE=1\nFDNAME={name}"),
                name,
                fd: None,
            });
        }
    }

    /// The store has the socket of this name: it outlives us.
    #[must_use]
    pub fn holds(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| {
            self.stored.contains(name) && !self.parcels.iter().any(|parcel| parcel.name == name)
        })
    }

    /// Waits until everything said so far has been read, but not for long (BARRIER=1, sd_notify(3)).
    /// Before the loop runs only.
    fn barrier(&mut self, patience: Duration) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        self.deliver();
        let (Some(peer), Ok((reader, writer))) = (&self.peer, common::child::output_pipe()) else {
            return;
        };
        if peer.send("BARRIER=1", Some(writer.as_fd())).is_err() {
            return;
        }
        drop(writer);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        let _ = poll(
            &mut fds,
            PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO),
        );
    }

    fn deliver(&mut self) -> Option<std::io::Error> {
        let peer = self.peer.as_ref()?;
        let mut lost = None;
        while let Some(parcel) = self.parcels.front() {
            let fd = parcel.fd.as_ref().map(|fd| fd.as_fd());
            match peer.send(&parcel.text, fd) {
                Ok(()) => {}
                Err(why) if is_full(&why) || is_gone(&why) => return Some(why),
                // A socket that cannot be passed must not hold back what comes after it.
                Err(why) => lost = Some(why),
            }
            self.parcels.pop_front();
        }
        lost
    }

    /// Says what is new and what is due. The error of the first failure is returned, once.
    fn tell(&mut self, state: State, limit: Duration, now: Instant) -> Option<String> {
        if let Some(trouble) = self.trouble.take() {
            return Some(trouble);
        }
        self.peer.as_ref()?;
        let kind = match state.stage {
            Stage::Starting => 0,
            Stage::Serving => 1,
            Stage::Reloading { .. } => 2,
            Stage::Returning => 3,
            Stage::Stopping { .. } => 4,
        };
        let key = (kind, state.requests);
        let (since, asked) = match self.stage {
            Some((known, since, asked)) if known == key => (since, asked),
            Some(_) | None => (now, None),
        };
        self.stage = Some((key, since, asked));
        self.limit = limit;
        self.healthy = state.ready > 0;
        let ago = |at: Instant| now.saturating_duration_since(at);
        let more = extension(limit, ago(since), asked.map(ago));
        let news = self.told.state != Some(state) || self.told.requests != state.requests;
        let mut failed = self.deliver();
        if news || more.is_some() {
            let lost = self.send_all(&messages(&self.told, &state, monotonic(), more));
            if lost.is_none() {
                self.told = self.told.after(state);
                self.stage = Some((key, since, more.map_or(asked, |_| Some(now))));
            }
            failed = failed.or(lost);
        }
        if let Some(half) = self.alive.filter(|_| self.healthy) {
            if self.alive_at.is_none_or(|at| at <= now) {
                let lost = self.send_all(&["WATCHDOG=1".to_owned()]);
                let next = if lost.is_some() { half / 4 } else { half };
                self.alive_at = Some(now + next);
                failed = failed.or(lost);
            }
        }
        // A reader that is behind is tried again soon; one that is gone at the next change.
        let full = failed.as_ref().is_some_and(is_full);
        self.retry = full.then(|| now + RETRY);
        let why = failed.filter(|_| !full && !std::mem::replace(&mut self.complained, true))?;
        Some(common::error::describe(&why))
    }

    fn send_all(&self, list: &[String]) -> Option<std::io::Error> {
        let peer = self.peer.as_ref()?;
        list.iter().find_map(|text| peer.send(text, None).err())
    }

    /// When something is to be said without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.peer.as_ref()?;
        let more = self.stage.and_then(|(_, since, asked)| {
            let next = asked? + AGAIN;
            (next.saturating_duration_since(since) < self.limit).then_some(next)
        });
        let alive = self
            .alive_at
            .filter(|_| self.healthy && self.alive.is_some());
        [more, alive, self.retry].into_iter().flatten().min()
    }
}

fn is_full(why: &std::io::Error) -> bool {
    use nix::errno::Errno;
    let full = [
        Errno::EAGAIN,
        Errno::ENOBUFS,
        Errno::ENOMEM,
        Errno::ETOOMANYREFS,
    ];
    full.iter()
        .any(|errno| why.raw_os_error() == Some(*errno as i32))
}

fn is_gone(why: &std::io::Error) -> bool {
    use nix::errno::Errno;
    let gone = [Errno::ENOENT, Errno::ECONNREFUSED];
    gone.iter()
        .any(|errno| why.raw_os_error() == Some(*errno as i32))
}

/// CLOCK_MONOTONIC in microseconds, as sd_notify(3) wants it.
fn monotonic() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        Duration::from(time).as_micros().try_into().unwrap_or(0)
    })
}

impl Master {
    /// Once a turn of the loop.
    pub(crate) fn tell_supervisor(&mut self, now: Instant) {
        if self.supervisor.peer.is_none() && self.supervisor.trouble.is_none() {
            return;
        }
        let stage = match &self.pool.phase {
            Phase::Initial => Stage::Starting,
            Phase::Running => Stage::Serving,
            Phase::Reloading(reloading) if reloading.back => Stage::Returning,
            Phase::Reloading(reloading) => Stage::Reloading {
                target: reloading.target,
                ready: self
                    .pool
                    .members
                    .values()
                    .filter(|worker| {
                        worker.generation == reloading.target
                            && worker.state == WorkerState::Serving
                    })
                    .count(),
            },
            Phase::Stopping(_) => Stage::Stopping {
                left: self.workers.len(),
            },
        };
        let state = State {
            stage,
            generation: self.pool.generation,
            ready: self.pool.serving(),
            workers: self.pool.slots.len(),
            frozen: self.pool.frozen.as_ref().map(|frozen| frozen.generation),
            outcome: self.supervisor.outcome,
            requests: self.supervisor.requests,
        };
        let limit = limit(stage, &self.plan, self.pool.slots.len());
        if let Some(error) = self.supervisor.tell(state, limit, now) {
            self.say(
                Level::Warning,
                events::SUPERVISOR_UNREACHED,
                &[("error", error.into())],
            );
        }
    }

    /// The socket that came back for an address of `--listen`, made as new, and its name. What came
    /// back for another address and is in its way is let go.
    pub(crate) fn take_from_store(
        &mut self,
        address: &Address,
    ) -> Option<(Option<String>, OwnedFd)> {
        let spot = Spot::of(address);
        if let Some((name, fd)) = self.sockets.returned.take(&spot) {
            let again = socket::set_nonblocking(&fd)
                .and_then(|()| socket::backlog_again(fd.as_fd(), self.plan.backlog));
            if again.is_ok() {
                if let Address::Unix(path) = address {
                    let _ = socket::set_rights(path, self.plan.rights);
                }
                return Some((Some(name), fd));
            }
            self.supervisor.discard(name);
            drop(fd);
            self.supervisor.barrier(RELEASE);
        }
        let in_the_way = self.sockets.returned.in_the_way(&spot);
        if !in_the_way.is_empty() {
            for (name, _) in in_the_way {
                self.supervisor.discard(name);
            }
            self.supervisor.barrier(RELEASE);
        }
        None
    }

    /// A socket listens.
    pub(crate) fn say_listens(&mut self, origin: Origin, address: String) {
        let fields = [("address", address.into())];
        match origin {
            Origin::Bound => self.say(Level::Info, events::SOCKET_BOUND, &fields),
            Origin::Returned => self.say(Level::Info, events::SOCKET_RETURNED, &fields),
            Origin::Adopted => self.say(Level::Info, events::SOCKET_ADOPTED, &fields),
        }
    }

    /// The generation serves, and nobody has asked for these: a port that is open and that nobody
    /// serves would only keep clients waiting.
    pub(crate) fn drop_returned(&mut self) {
        for (name, fd) in self.sockets.returned.rest() {
            let address = match socket::local_addr(&fd) {
                Ok(socket::LocalAddr::Inet(bound)) => bound.to_string(),
                Ok(socket::LocalAddr::Unix(_)) | Err(_) => name.clone(),
            };
            drop(fd);
            self.supervisor.discard(name);
            self.say(
                Level::Info,
                events::SOCKET_DROPPED,
                &[("address", address.into())],
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn state(stage: Stage, ready: usize) -> State {
        State {
            stage,
            generation: 1,
            ready,
            workers: 2,
            frozen: None,
            outcome: Outcome::None,
            requests: 0,
        }
    }

    /// Tells all of `states` in turn, with 7 on the clock.
    fn said(told: &mut Told, states: &[State]) -> Vec<String> {
        let mut list = Vec::new();
        for state in states {
            list.extend(messages(told, state, 7, None));
            *told = told.after(*state);
        }
        list
    }

    #[test]
    fn ready_is_said_once_and_only_when_the_generation_serves() {
        let mut told = Told::default();
        let list = said(
            &mut told,
            &[
                state(Stage::Starting, 0),
                state(Stage::Starting, 0),
                state(Stage::Starting, 1),
                state(Stage::Serving, 2),
                state(Stage::Serving, 2),
                state(Stage::Serving, 1),
                state(Stage::Serving, 2),
            ],
        );
        assert_eq!(
            list,
            [
                "STATUS=starting generation 1, 0 of 2 workers ready",
                "STATUS=starting generation 1, 1 of 2 workers ready",
                "READY=1\nSTATUS=generation 1, 2 of 2 workers ready",
                "STATUS=generation 1, 1 of 2 workers ready",
                "STATUS=generation 1, 2 of 2 workers ready",
            ]
        );
    }

    #[test]
    fn a_reload_begins_and_ends_whatever_comes_of_it() {
        let mut told = Told::default();
        said(&mut told, &[state(Stage::Serving, 2)]);
        let reloading = |requests: u64, target: u32, ready: usize| State {
            requests,
            ..state(Stage::Reloading { target, ready }, 2)
        };
        let committed = State {
            requests: 1,
            generation: 2,
            outcome: Outcome::Committed,
            ..state(Stage::Serving, 2)
        };
        assert_eq!(
            said(
                &mut told,
                &[reloading(1, 2, 0), reloading(1, 2, 1), committed]
            ),
            [
                "RELOADING=1\nMONOTONIC_USEC=7\nSTATUS=reloading to generation 2, 0 of 2 ready; generation 1, 2 of 2 workers ready",
                "STATUS=reloading to generation 2, 1 of 2 ready; generation 1, 2 of 2 workers ready",
                "READY=1\nSTATUS=generation 2, 2 of 2 workers ready; reload committed",
            ]
        );
        // Taken over by a newer request, whose supervisor waits for its own answer; then it fails.
        let failed = State {
            frozen: Some(4),
            requests: 3,
            outcome: Outcome::Failed,
            ..state(Stage::Serving, 2)
        };
        assert_eq!(
            said(&mut told, &[reloading(2, 3, 0), reloading(3, 4, 0), failed]),
            [
                "RELOADING=1\nMONOTONIC_USEC=7\nSTATUS=reloading to generation 3, 0 of 2 ready; generation 1, 2 of 2 workers ready",
                "RELOADING=1\nMONOTONIC_USEC=7\nSTATUS=reloading to generation 4, 0 of 2 ready; generation 1, 2 of 2 workers ready",
                "READY=1\nSTATUS=generation 1, 2 of 2 workers ready; reload to generation 4 failed, frozen",
            ]
        );
        // Refused, or over within one turn of the loop.
        let refused = State {
            requests: 4,
            outcome: Outcome::Refused,
            ..failed
        };
        assert_eq!(
            said(&mut told, &[refused]),
            [
                "RELOADING=1\nMONOTONIC_USEC=7",
                "READY=1\nSTATUS=generation 1, 2 of 2 workers ready; reload to generation 4 failed, frozen; reload refused",
            ]
        );
    }

    #[test]
    fn the_way_back_is_still_the_reload() {
        let mut told = Told::default();
        said(&mut told, &[state(Stage::Serving, 2)]);
        let requests = 1;
        let begun = State {
            requests,
            ..state(
                Stage::Reloading {
                    target: 2,
                    ready: 0,
                },
                2,
            )
        };
        let back = State {
            requests,
            frozen: Some(2),
            ..state(Stage::Returning, 1)
        };
        let list = said(&mut told, &[begun, back]);
        assert_eq!(
            list[1],
            "STATUS=reload to generation 2 failed, back to generation 1, 1 of 2 workers ready"
        );
    }

    #[test]
    fn a_reload_before_the_first_generation_serves_is_part_of_the_start() {
        let mut told = Told::default();
        let again = State {
            generation: 2,
            requests: 1,
            ..state(Stage::Starting, 0)
        };
        let serving = State {
            stage: Stage::Serving,
            ready: 2,
            ..again
        };
        assert_eq!(
            said(&mut told, &[state(Stage::Starting, 0), again, serving]),
            [
                "STATUS=starting generation 1, 0 of 2 workers ready",
                "STATUS=starting generation 2, 0 of 2 workers ready",
                "READY=1\nSTATUS=generation 2, 2 of 2 workers ready",
            ]
        );
    }

    #[test]
    fn stopping_is_said_once_from_every_stage() {
        for before in [
            state(Stage::Starting, 0),
            state(Stage::Serving, 2),
            state(
                Stage::Reloading {
                    target: 2,
                    ready: 0,
                },
                2,
            ),
        ] {
            let mut told = Told::default();
            said(&mut told, &[before]);
            let left = |left| state(Stage::Stopping { left }, 0);
            assert_eq!(
                said(&mut told, &[left(2), left(1), left(1), left(0)]),
                [
                    "STOPPING=1\nSTATUS=stopping, workers left: 2",
                    "STATUS=stopping, workers left: 1",
                    "STATUS=stopping, workers left: 0",
                ]
            );
        }
    }

    #[test]
    fn time_is_asked_for_in_pieces_as_far_as_the_limits_go() {
        let s = Duration::from_secs;
        assert_eq!(extension(s(70), s(0), None), Some(s(30)));
        assert_eq!(extension(s(70), s(9), Some(s(9))), None);
        assert_eq!(extension(s(70), s(10), Some(s(10))), Some(s(30)));
        assert_eq!(extension(s(70), s(60), Some(s(10))), Some(s(10)));
        assert_eq!(extension(s(70), s(70), Some(s(10))), None);
        assert_eq!(extension(Duration::ZERO, s(0), None), None);
        let more = messages(
            &Told::default().after(state(Stage::Starting, 0)),
            &state(Stage::Starting, 0),
            7,
            Some(s(30)),
        );
        assert_eq!(more, ["EXTEND_TIMEOUT_USEC=30000000"]);
        let first = messages(&Told::default(), &state(Stage::Starting, 0), 7, Some(s(30)));
        assert_eq!(
            first,
            ["STATUS=starting generation 1, 0 of 2 workers ready\nEXTEND_TIMEOUT_USEC=30000000"]
        );
    }

    #[test]
    fn the_store_is_told_of_each_socket_once_and_not_beyond_its_room() {
        let fd = Rc::new(socket::listen_tcp("127.0.0.1:0".parse().unwrap(), None, 8).unwrap());
        let mut nobody = Supervisor::default();
        assert_eq!(nobody.keep(Some("a".to_owned()), &fd), None);
        nobody.discard("a".to_owned());
        assert!(nobody.parcels.is_empty());

        let mut store = Supervisor {
            room: Some(2),
            peer: Upward::open("@spawnwork-test-nobody".as_ref()).ok(),
            ..Supervisor::default()
        };
        let one = store.keep(Some("a".to_owned()), &fd);
        let two = store.keep(Some("a".to_owned()), &fd);
        assert_eq!((one.as_deref(), two.as_deref()), (Some("a"), Some("a~2")));
        assert_eq!(store.keep(Some("b".to_owned()), &fd), None);
        // Not sent yet: nothing is left to say.
        assert!(!store.holds(two.as_deref()));
        store.forget(two.as_deref());
        assert_eq!(store.parcels.len(), 1);
        store.parcels.clear();
        assert!(store.holds(one.as_deref()));
        store.forget(one.as_deref());
        store.forget(one.as_deref());
        let texts: Vec<&str> = store.parcels.iter().map(|one| one.text.as_str()).collect();
        assert_eq!(texts, ["FDSTOREREMOVE=1\nFDNAME=a"]);
    }

    #[test]
    fn a_peer_that_is_gone_costs_nothing_but_one_complaint() {
        let now = Instant::now();
        let mut gone = Supervisor {
            peer: Upward::open("@spawnwork-test-nobody".as_ref()).ok(),
            ..Supervisor::default()
        };
        assert!(
            gone.tell(state(Stage::Serving, 2), Duration::ZERO, now)
                .is_some()
        );
        assert!(
            gone.tell(state(Stage::Serving, 1), Duration::ZERO, now)
                .is_none()
        );
        assert_eq!(gone.told, Told::default());
        assert_eq!(gone.deadline(), None);
        assert_eq!(Supervisor::default().deadline(), None);
        for wrong in ["", "relative", "@"] {
            assert!(Upward::open(wrong.as_ref()).is_err(), "{wrong}");
        }
    }
}
