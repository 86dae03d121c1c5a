//! `--orphans adopt`: the workers of a master that was killed, found and taken over by the next one.
//!
//! They go on serving by themselves. The next master finds them by a variable in their environment,
//! takes copies of their listening sockets and of the read ends of their output pipes, starts its own
//! workers on those very sockets, and then asks the orphans to leave. Who is an orphan, and what comes
//! when, is decided here by pure functions.

use crate::events;
use crate::launch::expand_with;
use crate::node::sockets::same_host;
use crate::output::{Output, Stream, Which};
use crate::plan::{Node, Plan};
use crate::pool::Phase;
use crate::run::{Master, Token};
use crate::store::Spot;
use common::child::{self, Peer};
use common::event::Level;
use common::exit::Exit;
use common::signal::Signals;
use common::socket::{self, Address, LocalAddr};
use common::sys;
use common::wait::Interest;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names what a worker is found by, once its master is gone.
pub const VARIABLE: &str = "SPAWNWORK_ADOPT";
/// Tells the preload for how many milliseconds a worker goes on alone; 0: it leaves at once.
pub const ALONE: &str = "SPAWNWORK_ALONE_MS";
/// So long a node worker goes on alone.
pub const GO_ON: Duration = Duration::from_secs(60);

/// What tells a node worker without a master to leave. It is ignored by default, so it harms nobody who
/// does not know it; and apps have handlers of their own for the usual ones.
const LEAVE: i32 = Signal::SIGURG as i32;
const TERM: i32 = 15;
const KILL: i32 = 9;
const CONT: i32 = 18;

/// Orphans are no children of ours: nothing tells of their end.
const LOOK: Duration = Duration::from_millis(50);

// ---- who is an orphan ----

/// How a worker can be asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// Its preload drains it.
    Node,
    /// By the signal that stops it.
    Plain,
}

/// The value of [`VARIABLE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// How it leaves.
    pub manners: Manners,
    /// When its master was started: with `SPAWNWORK_PID` that names one process for ever.
    pub start: u64,
    /// The pid file or control socket that the next master must have.
    pub key: PathBuf,
}

impl Mark {
    /// As it stands in the environment.
    #[must_use]
    pub fn value(&self) -> OsString {
        let manners = match self.manners {
            Manners::Node => "node",
            Manners::Plain => "plain",
        };
        let mut value = OsString::from(format!("{manners}:{}:", self.start));
        value.push(&self.key);
        value
    }

    fn parse(value: &[u8]) -> Option<Mark> {
        let mut parts = value.splitn(3, |byte| *byte == b':');
        let manners = match parts.next()? {
            b"node" => Manners::Node,
            b"plain" => Manners::Plain,
            _ => return None,
        };
        let start = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let key = PathBuf::from(OsString::from_vec(parts.next()?.to_vec()));
        key.is_absolute().then_some(Mark {
            manners,
            start,
            key,
        })
    }
}

/// What a process says of itself in its environment, and what the kernel says beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    mark: Mark,
    master: i32,
    slot: usize,
    generation: u32,
    /// Real, effective, saved and file system uid.
    uids: Vec<u32>,
    /// In our namespaces: a path and a pid mean there what they mean here.
    here: bool,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    claim: Option<Claim>,
}

/// Who looks for orphans.
#[derive(Debug)]
pub struct Heir {
    keys: Vec<PathBuf>,
    uids: Vec<u32>,
    pid: i32,
}

impl Heir {
    fn new(plan: &Plan) -> Heir {
        let own = nix::unistd::geteuid().as_raw();
        let user = plan.user.as_ref().map(|user| user.uid);
        Heir {
            keys: plan.keys.clone(),
            uids: [Some(own), user].into_iter().flatten().collect(),
            pid: std::process::id() as i32,
        }
    }

    /// The orphans among `all`: those whose claim holds, and the rest of their process groups. A worker
    /// may have started us; we and our ancestors are nobody's orphans.
    fn find(&self, all: &[Process], lives: impl Fn(i32, u64) -> bool) -> Vec<Process> {
        let mut kin = BTreeSet::from([self.pid]);
        let mut next = Some(self.pid);
        while let Some(pid) = next {
            let parent = all
                .iter()
                .find(|one| one.pid == pid)
                .map(|one| one.parent)
                .filter(|parent| *parent > 0);
            next = parent.filter(|parent| kin.insert(*parent));
        }
        let holds = |claim: &Claim| {
            claim.here
                && self.keys.contains(&claim.mark.key)
                && claim.uids.iter().all(|uid| self.uids.contains(uid))
                && !lives(claim.master, claim.mark.start)
        };
        let strangers = || all.iter().filter(|one| !kin.contains(&one.pid));
        let groups: BTreeSet<i32> = strangers()
            .filter(|one| one.pid == one.group && one.claim.as_ref().is_some_and(holds))
            .map(|one| one.group)
            .collect();
        strangers()
            .filter(|one| groups.contains(&one.group) || one.claim.as_ref().is_some_and(holds))
            .cloned()
            .collect()
    }
}

pub(crate) fn claim(environ: &[u8]) -> Option<(Mark, i32, usize, u32)> {
    let value = |name: &str| {
        environ.split(|byte| *byte == 0).find_map(|pair| {
            pair.strip_prefix(name.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"="))
        })
    };
    let mark = Mark::parse(value(VARIABLE)?)?;
    let text = |name: &str| std::str::from_utf8(value(name)?).ok();
    let master = text("SPAWNWORK_PID")?.parse().ok()?;
    // A check of --check has no slot.
    let slot = text("WORKER_ID").and_then(|text| text.parse().ok());
    let generation = text("SPAWNWORK_GENERATION").and_then(|text| text.parse().ok());
    Some((
        mark,
        master,
        slot.unwrap_or_default(),
        generation.unwrap_or_default(),
    ))
}

/// The four numbers of `Uid:` in /proc/PID/status.
pub(crate) fn uids(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// `SigCgt:` in /proc/PID/status: whether it has a handler for `signal`.
pub(crate) fn catches(status: &str, signal: i32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

fn status(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

fn process(pid: i32) -> Option<Process> {
    let stat = child::stat(pid).filter(|stat| stat.state != b'Z')?;
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let namespace =
        |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let claim = claim(&environ).map(|(mark, master, slot, generation)| Claim {
        mark,
        master,
        slot,
        generation,
        uids: uids(&status(pid)),
        here: ["pid", "mnt"]
            .iter()
            .all(|kind| namespace(&pid.to_string(), kind) == namespace("self", kind)),
    });
    Some(Process {
        pid,
        parent: stat.parent,
        group: stat.group,
        claim,
    })
}

/// One look at all processes; those that are found are held.
fn search(heir: &Heir) -> Vec<Orphan> {
    let all: Vec<Process> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(process)
        .collect();
    let lives = |pid: i32, start: u64| {
        child::stat(pid).is_some_and(|stat| stat.start == start && stat.state != b'Z')
    };
    heir.find(&all, lives)
        .into_iter()
        .filter_map(|found| {
            let peer = Peer::open(found.pid).ok()?;
            // Looked at again now that the number can mean no other process.
            let again = process(found.pid)?;
            let same = again.group == found.group && again.claim == found.claim;
            (same && peer.alive()).then(|| Orphan {
                peer,
                leads: found.pid == found.group,
                group: found.group,
                claim: found.claim,
                told: None,
            })
        })
        .collect()
}

/// A process that a dead master left.
#[derive(Debug)]
struct Orphan {
    peer: Peer,
    group: i32,
    leads: bool,
    claim: Option<Claim>,
    told: Option<Told>,
}

impl Orphan {
    /// Its preload hears [`LEAVE`].
    fn drains(&self) -> bool {
        let node = |claim: &Claim| claim.mark.manners == Manners::Node;
        self.claim.as_ref().is_some_and(node) && catches(&status(self.peer.pid()), LEAVE)
    }

    /// A worker, rather than something that a worker has started.
    fn worker(&self) -> Option<&Claim> {
        self.claim.as_ref().filter(|_| self.leads)
    }
}

// ---- what they hold ----

/// What a socket of an orphan's is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bound {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    /// The name that it was bound to, which is not the path where it is found.
    Unix,
}

#[derive(Debug)]
struct Held {
    fd: OwnedFd,
    bound: Bound,
    /// Its number in the orphan: what comes from `--listen` has its place there.
    number: RawFd,
}

/// The listening sockets of orphans, until somebody asks for their address.
#[derive(Debug, Default)]
pub struct Estate {
    list: Vec<Held>,
}

impl Estate {
    /// The socket for `spot`; `place` is that of a `--listen` address among all of them.
    pub fn take(&mut self, spot: &Spot, place: Option<usize>) -> Option<OwnedFd> {
        let found = self.list.iter().position(|held| held.serves(spot, place))?;
        Some(self.list.remove(found).fd)
    }

    /// All that nobody asked for goes.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    fn add(&mut self, fd: OwnedFd, number: RawFd) {
        let bound = match (getsockopt(&fd, sockopt::SockType), socket::local_addr(&fd)) {
            (Ok(SockType::Datagram), Ok(LocalAddr::Inet(bound))) if bound.port() != 0 => {
                Bound::Udp(bound)
            }
            (Ok(SockType::Stream), Ok(bound))
                if getsockopt(&fd, sockopt::AcceptConn) == Ok(true) =>
            {
                match bound {
                    LocalAddr::Inet(bound) => Bound::Tcp(bound),
                    LocalAddr::Unix(_) => Bound::Unix,
                }
            }
            // A connection, or nothing that is bound.
            _ => return,
        };
        self.list.push(Held { fd, bound, number });
    }
}

impl Held {
    fn serves(&self, spot: &Spot, place: Option<usize>) -> bool {
        let number = place.and_then(|place| RawFd::try_from(place).ok());
        match (spot, &self.bound) {
            // Any port: that of the same address at the same place. What a node worker asks for
            // without a port is bound anew.
            (Spot::Tcp { host, port: 0, .. }, Bound::Tcp(bound)) => {
                number.is_some_and(|place| self.number == common::fds::FIRST + place)
                    && named(host.as_deref(), bound)
            }
            (Spot::Tcp { host, port, .. }, Bound::Tcp(bound)) => {
                bound.port() == *port && named(host.as_deref(), bound)
            }
            (Spot::Udp { host, port, v6, .. }, Bound::Udp(bound)) => {
                *port != 0
                    && bound.port() == *port
                    && bound.is_ipv6() == *v6
                    && named(host.as_deref(), bound)
            }
            (Spot::Unix(path), Bound::Unix) => socket::leads_to(path, &self.fd),
            (
                Spot::Tcp { .. } | Spot::Udp { .. } | Spot::Unix(_),
                Bound::Tcp(_) | Bound::Udp(_) | Bound::Unix,
            ) => false,
        }
    }
}

/// Whether a host means the address that a socket is bound to.
fn named(host: Option<&str>, bound: &SocketAddr) -> bool {
    if same_host(host, Some(&bound.ip().to_string())) {
        return true;
    }
    let Some(host) = host else { return false };
    (host, 0)
        .to_socket_addrs()
        .is_ok_and(|mut all| all.any(|one| one.ip() == bound.ip()))
}

/// Takes copies of what an orphan holds: listening sockets go into `estate`, and the read ends of its
/// own stdout and stderr are returned. `seen` are the links of what others brought.
fn take_over(
    orphan: &Orphan,
    seen: &mut BTreeSet<PathBuf>,
    estate: &mut Estate,
) -> io::Result<Vec<(Which, OwnedFd)>> {
    let directory = format!("/proc/{}/fd", orphan.peer.pid());
    let links: BTreeMap<RawFd, PathBuf> = std::fs::read_dir(&directory)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, std::fs::read_link(entry.path()).ok()?))
        })
        .collect();
    let copy = |number: RawFd, link: &Path| match sys::pidfd_getfd(orphan.peer.as_fd(), number) {
        // The number may have been closed, and may mean another file by now.
        Ok(fd) => Ok(Some(fd).filter(|fd| same_file(fd, link))),
        Err(why) => match why.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBADF | Errno::ESRCH) => Ok(None),
            Some(_) | None => Err(why),
        },
    };
    let kind = |link: &Path, kind: &[u8]| link.as_os_str().as_bytes().starts_with(kind);
    for (number, link) in &links {
        if kind(link, b"socket:[") && !seen.contains(link) {
            if let Some(fd) = copy(*number, link)? {
                estate.add(fd, *number);
                seen.insert(link.clone());
            }
        }
    }
    let mut readers = Vec::new();
    for (standard, which) in [(1, Which::Out), (2, Which::Err)] {
        let Some(link) = links.get(&standard).filter(|link| kind(link, b"pipe:[")) else {
            continue;
        };
        if seen.contains(link) {
            continue;
        }
        // Who writes to a pipe and holds its read end as well has it from us: a pipe to another
        // process, such as an app's child, is held at one end only.
        for (number, _) in links
            .iter()
            .filter(|(at, other)| **at > 2 && *other == link)
        {
            let Some(fd) = copy(*number, link)? else {
                continue;
            };
            let flags = fcntl(&fd, FcntlArg::F_GETFL)?;
            if OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY {
                seen.insert(link.clone());
                readers.push((which, fd));
                break;
            }
        }
    }
    Ok(readers)
}

fn same_file(fd: &OwnedFd, link: &Path) -> bool {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok_and(|own| own == link)
}

// ---- what comes when ----

/// Where the orphans are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Course {
    /// There are none.
    #[default]
    Nobody,
    /// They serve, until our own workers do.
    Serving,
    /// They were asked to leave; then they are killed.
    Leaving(Instant),
    /// We have failed, and they go on without us.
    Left,
}

/// Where we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    /// By request.
    Stopping,
    /// For want of workers.
    Failing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Ask them to leave.
    Dismiss,
    /// Let them go on.
    Leave,
    /// See who is gone.
    Look,
    /// End them.
    Kill,
}

impl Course {
    fn next(self, stage: Stage, now: Instant) -> Action {
        match (self, stage) {
            (Course::Serving, Stage::Serving | Stage::Stopping) => Action::Dismiss,
            (Course::Serving, Stage::Failing) => Action::Leave,
            (Course::Leaving(kill_at), _) if kill_at <= now => Action::Kill,
            (Course::Leaving(_), _) => Action::Look,
            (Course::Serving, Stage::Starting) | (Course::Nobody | Course::Left, _) => {
                Action::Nothing
            }
        }
    }
}

/// What an orphan was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// To its preload.
    Drain,
    /// By the signal that stops it.
    Stop,
}

/// An orphan, for the choice of what it is told.
#[derive(Clone, Copy, Debug)]
struct View {
    group: i32,
    told: Option<Told>,
    drains: bool,
}

/// What those who were told nothing yet are to be told now. Who shares a group with a process that
/// drains (npm, a shell) waits for that one's end: most of them leave with it.
fn to_tell(all: &[View]) -> Vec<(usize, Told)> {
    let draining = |group: i32| {
        all.iter()
            .any(|one| one.group == group && (one.drains || one.told == Some(Told::Drain)))
    };
    all.iter()
        .enumerate()
        .filter(|(_, one)| one.told.is_none())
        .filter_map(|(index, one)| match (one.drains, draining(one.group)) {
            (true, _) => Some((index, Told::Drain)),
            (false, true) => None,
            (false, false) => Some((index, Told::Stop)),
        })
        .collect()
}

/// The orphans that this master has found.
#[derive(Debug, Default)]
pub struct Orphans {
    list: Vec<Orphan>,
    course: Course,
    streams: Vec<u64>,
    killed: bool,
}

impl Orphans {
    /// None is left that we wait for.
    #[must_use]
    pub fn gone(&self) -> bool {
        matches!(self.course, Course::Nobody | Course::Left)
    }

    /// They serve on what we were to serve on: no path of theirs is ours to remove.
    #[must_use]
    pub fn serve(&self) -> bool {
        matches!(self.course, Course::Serving | Course::Left)
    }

    /// When they are to be looked at again.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        match self.course {
            Course::Leaving(kill_at) => Some(kill_at.min(now + LOOK)),
            Course::Nobody | Course::Serving | Course::Left => None,
        }
    }

    /// No further patience.
    pub fn hurry(&mut self, now: Instant) {
        match self.course {
            Course::Serving | Course::Leaving(_) => self.course = Course::Leaving(now),
            Course::Nobody | Course::Left => {}
        }
    }

    /// Tells whom it is time to tell; slot and pid of the workers among them.
    fn tell(&mut self, stop_signal: Option<i32>) -> Vec<(usize, i32)> {
        if self.list.iter().all(|one| one.told.is_some()) {
            return Vec::new();
        }
        let views: Vec<View> = self
            .list
            .iter()
            .map(|one| View {
                group: one.group,
                told: one.told,
                // With --stop-signal that is what a worker is stopped by, node or not.
                drains: stop_signal.is_none() && one.told.is_none() && one.drains(),
            })
            .collect();
        let told = to_tell(&views);
        for (index, what) in &told {
            let orphan = &mut self.list[*index];
            orphan.told = Some(*what);
            orphan.peer.signal(match what {
                Told::Drain => LEAVE,
                Told::Stop => stop_signal.unwrap_or(TERM),
            });
            // A stopped one could not hear it.
            orphan.peer.signal(CONT);
        }
        told.into_iter()
            .filter_map(|(index, _)| {
                let orphan = &self.list[index];
                Some((orphan.worker()?.slot, orphan.peer.pid()))
            })
            .collect()
    }
}

impl Master {
    /// Looks for orphans, and takes over what they hold. What cannot be taken over is waited for, as
    /// long as workers have to stop: what they hold can be bound when they are gone. `Some`: we were
    /// told to stop meanwhile.
    pub(crate) fn adopt(&mut self, signals: &Signals) -> Option<Exit> {
        if self.plan.keys.is_empty() {
            return None;
        }
        let mut refused = Orphans::default();
        let mut why = None;
        let mut seen = BTreeSet::new();
        for orphan in search(&Heir::new(&self.plan)) {
            if let Some(claim) = orphan.worker() {
                let fields = [
                    ("slot", claim.slot.into()),
                    ("pid", orphan.peer.pid().into()),
                    ("generation", claim.generation.into()),
                ];
                self.say(Level::Info, events::ORPHAN_FOUND, &fields);
            }
            match take_over(&orphan, &mut seen, &mut self.sockets.estate) {
                Ok(readers) => {
                    for (which, fd) in readers {
                        self.listen_to(&orphan, which, fd);
                    }
                    self.orphans.list.push(orphan);
                }
                // Of another user, and in a worker's group: no worker of ours.
                Err(_) if orphan.claim.is_none() => {}
                Err(error) => {
                    why.get_or_insert((orphan.peer.pid(), error));
                    refused.list.push(orphan);
                }
            }
        }
        if !self.orphans.list.is_empty() {
            self.orphans.course = Course::Serving;
        }
        let (pid, error) = why?;
        let error = format!(
            "cannot take its sockets over: {}; they are bound again when it is gone",
            common::error::describe(&error)
        );
        self.say(
            Level::Warning,
            events::ORPHAN_REFUSED,
            &[("pid", pid.into()), ("error", error.into())],
        );
        self.see_off(refused, signals)
    }

    /// Waits for the end of orphans before anything is bound. The loop does not run yet: a request to
    /// stop is heard here.
    fn see_off(&mut self, mut orphans: Orphans, signals: &Signals) -> Option<Exit> {
        let mut kill_at = Instant::now() + self.plan.stop_timeout;
        loop {
            let now = Instant::now();
            orphans.list.retain(|orphan| orphan.peer.alive());
            if orphans.list.is_empty() {
                return None;
            }
            for (slot, pid) in orphans.tell(self.plan.stop_signal) {
                self.say_leaving(slot, pid);
            }
            if kill_at <= now {
                if orphans.killed {
                    // What a KILL does not end within a second may hold its sockets for ever.
                    return None;
                }
                orphans.killed = true;
                orphans.list.iter().for_each(|one| one.peer.signal(KILL));
                kill_at = now + Duration::from_secs(1);
            }
            let left = kill_at.saturating_duration_since(now).min(LOOK);
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll(
                &mut fds,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
            );
            while let Some(received) = signals.next() {
                if [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]
                    .iter()
                    .any(|signal| *signal as i32 == received.signal)
                {
                    return Some(Exit::Ok);
                }
            }
        }
    }

    /// What an orphan says goes where our own workers' words go.
    fn listen_to(&mut self, orphan: &Orphan, which: Which, fd: OwnedFd) {
        let id = self.pool.new_id();
        let mut stream = Stream::again(fd, which, id, &[]);
        let (slot, generation) = orphan
            .claim
            .as_ref()
            .map_or((0, 0), |claim| (claim.slot, claim.generation));
        let prefix = expand_with(&self.plan.prefix, slot, generation, Some(orphan.peer.pid()));
        stream.set_prefix(prefix.into_bytes());
        let number = id * 2 + which as u64;
        if which == Which::Out && !self.one_output && self.outputs[0].is_none() {
            self.outputs[0] = Some(Output::open(1));
        }
        let token = Token::Stream(number).number();
        if self.events.add(&stream, token, Interest::Read).is_ok() {
            self.streams.insert(number, stream);
            self.orphans.streams.push(number);
        }
    }

    /// What the dead master had not read comes before anything that new workers say.
    pub(crate) fn read_orphans(&mut self, now: Instant) {
        for stream in self.orphans.streams.clone() {
            self.on_stream(stream, now);
        }
    }

    /// An orphan's socket for an address of `--listen`.
    pub(crate) fn take_from_orphans(&mut self, address: &Address) -> Option<OwnedFd> {
        let place = self.given.len();
        let fd = self.sockets.estate.take(&Spot::of(address), Some(place))?;
        // Orphans that are no node programs expect accept(2) to wait, and share this setting with us.
        if self.plan.node != Node::No {
            socket::set_nonblocking(&fd).ok()?;
        }
        socket::backlog_again(fd.as_fd(), self.plan.backlog).ok()?;
        if let Address::Unix(path) = address {
            let _ = socket::set_rights(path, self.plan.rights);
        }
        Some(fd)
    }

    /// What is due for the orphans.
    pub(crate) fn on_orphans_time(&mut self, now: Instant) {
        let stage = match self.pool.phase {
            Phase::Initial => Stage::Starting,
            Phase::Running | Phase::Reloading(_) => Stage::Serving,
            Phase::Stopping(Exit::Ok) => Stage::Stopping,
            Phase::Stopping(_) => Stage::Failing,
        };
        match self.orphans.course.next(stage, now) {
            Action::Nothing => {}
            Action::Leave => {
                self.orphans.course = Course::Left;
                self.orphans.list.clear();
            }
            Action::Dismiss => {
                // A port that is open and that nobody serves would only keep clients waiting.
                self.sockets.estate.clear();
                // What they have started since, and who was between fork and exec at the first look.
                self.search_again();
                self.orphans.course = Course::Leaving(now + self.plan.stop_timeout);
                self.look_after_orphans(now);
            }
            Action::Look => self.look_after_orphans(now),
            Action::Kill => {
                for index in 0..self.orphans.list.len() {
                    let orphan = &self.orphans.list[index];
                    orphan.peer.signal(KILL);
                    let worker = orphan.worker().filter(|_| !self.orphans.killed);
                    if let Some(claim) = worker {
                        let fields = [
                            ("slot", claim.slot.into()),
                            ("pid", orphan.peer.pid().into()),
                            ("error", "it did not leave in time".into()),
                        ];
                        self.say(Level::Warning, events::ORPHAN_KILLED, &fields);
                    }
                }
                self.orphans.killed = true;
                self.orphans.course = Course::Leaving(now + Duration::from_secs(1));
                self.look_after_orphans(now);
            }
        }
    }

    fn search_again(&mut self) {
        for orphan in search(&Heir::new(&self.plan)) {
            let pid = orphan.peer.pid();
            if !self.orphans.list.iter().any(|one| one.peer.pid() == pid) {
                self.orphans.list.push(orphan);
            }
        }
    }

    fn say_leaving(&mut self, slot: usize, pid: i32) {
        let fields = [("slot", slot.into()), ("pid", pid.into())];
        self.say(Level::Info, events::ORPHAN_STOPPING, &fields);
    }

    /// Notes who is gone, and tells the others what it is time for.
    fn look_after_orphans(&mut self, now: Instant) {
        let (alive, gone): (Vec<Orphan>, Vec<Orphan>) = std::mem::take(&mut self.orphans.list)
            .into_iter()
            .partition(|orphan| orphan.peer.alive());
        self.orphans.list = alive;
        for orphan in gone {
            if let Some(claim) = orphan.worker() {
                let fields = [
                    ("slot", claim.slot.into()),
                    ("pid", orphan.peer.pid().into()),
                    ("generation", claim.generation.into()),
                ];
                self.say(Level::Info, events::ORPHAN_EXITED, &fields);
            }
        }
        if self.orphans.list.is_empty() {
            // Whom the last of them has started while it was leaving.
            self.search_again();
        }
        for (slot, pid) in self.orphans.tell(self.plan.stop_signal) {
            self.say_leaving(slot, pid);
        }
        if self.orphans.list.is_empty() {
            self.orphans.course = Course::Nobody;
            for number in std::mem::take(&mut self.orphans.streams) {
                // Their last words; a process that left our sight may hold the pipe for ever.
                if let Some(stream) = self.streams.get_mut(&number) {
                    stream.last = true;
                }
                self.on_stream(number, now);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn mark(key: &str) -> Mark {
        Mark {
            manners: Manners::Node,
            start: 4711,
            key: key.into(),
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for key in ["/run/app.pid", "/run/a:b c"] {
            let value = mark(key).value();
            assert_eq!(Mark::parse(value.as_bytes()), Some(mark(key)));
        }
        for wrong in [
            "",
            "node:1",
            "node:x:/a",
            "node:1:",
            "node:1:a",
            "java:1:/a",
            "node:-1:/a",
        ] {
            assert_eq!(Mark::parse(wrong.as_bytes()), None, "{wrong}");
        }
        let environ = b"A=1\0SPAWNWORK_ADOPT=node:4711:/a\0SPAWNWORK_PID=12\0WORKER_ID=3\0SPAWNWORK_GENERATION=2\0";
        assert_eq!(claim(environ), Some((mark("/a"), 12, 3, 2)));
        assert_eq!(claim(b"SPAWNWORK_ADOPT=node:4711:/a\0"), None);
        assert_eq!(
            claim(b"XSPAWNWORK_ADOPT=node:4711:/a\0SPAWNWORK_PID=12\0"),
            None
        );
    }

    #[test]
    fn the_kernels_words() {
        let status = "Name:\tnode\nUid:\t1\t2\t3\t4\nSigCgt:\t0000000000400000\n";
        assert_eq!(uids(status), [1, 2, 3, 4]);
        assert!(catches(status, 23) && !catches(status, 22) && !catches("", 23));
    }

    /// pid, parent, group.
    fn process(pid: i32, parent: i32, group: i32) -> Process {
        Process {
            pid,
            parent,
            group,
            claim: None,
        }
    }

    fn claimed(pid: i32, parent: i32, group: i32, change: impl FnOnce(&mut Claim)) -> Process {
        let mut claim = Claim {
            mark: mark("/a"),
            master: 50,
            slot: 0,
            generation: 1,
            uids: vec![65534; 4],
            here: true,
        };
        change(&mut claim);
        Process {
            claim: Some(claim),
            ..process(pid, parent, group)
        }
    }

    fn found(all: &[Process]) -> Vec<i32> {
        let heir = Heir {
            keys: vec!["/a".into(), "/b".into()],
            uids: vec![0, 65534],
            pid: 10,
        };
        // 60 is a master that lives, if it was started at that time.
        heir.find(all, |pid, start| (pid, start) == (60, 4711))
            .iter()
            .map(|one| one.pid)
            .collect()
    }

    #[test]
    fn who_is_an_orphan() {
        let none = |_: &mut Claim| {};
        assert_eq!(found(&[claimed(100, 1, 100, none)]), [100]);
        assert!(found(&[process(100, 1, 100)]).is_empty());
        type Change = fn(&mut Claim);
        let cases: [(Change, bool); 7] = [
            (|claim| claim.mark.key = "/b".into(), true),
            (|claim| claim.mark.key = "/c".into(), false),
            (|claim| claim.uids[1] = 0, true),
            (|claim| claim.uids[2] = 1000, false),
            (|claim| claim.here = false, false),
            (|claim| claim.master = 60, false),
            (
                |claim| {
                    claim.master = 60;
                    claim.mark.start = 4710;
                },
                true,
            ),
        ];
        for (index, (change, orphan)) in cases.into_iter().enumerate() {
            let wanted: &[i32] = if orphan { &[100] } else { &[] };
            assert_eq!(found(&[claimed(100, 1, 100, change)]), wanted, "{index}");
        }
        // The rest of its group comes along, and who left the group but bears the mark.
        let family = [
            claimed(100, 1, 100, none),
            process(101, 100, 100),
            claimed(102, 1, 102, none),
            process(103, 1, 102),
            process(104, 100, 104),
            claimed(105, 101, 105, |claim| claim.mark.key = "/c".into()),
        ];
        assert_eq!(found(&family), [100, 101, 102, 103]);
        // A worker has started us: neither we nor the way to us.
        let kin = [
            claimed(100, 1, 100, none),
            claimed(101, 100, 100, none),
            claimed(10, 101, 100, none),
            claimed(102, 1, 102, none),
        ];
        assert_eq!(found(&kin), [102]);
    }

    #[test]
    fn what_comes_when() {
        let now = Instant::now();
        let (past, future) = (now, now + Duration::from_secs(1));
        let stages = [
            Stage::Starting,
            Stage::Serving,
            Stage::Stopping,
            Stage::Failing,
        ];
        use Action::{Dismiss, Kill, Leave, Look, Nothing};
        for (course, actions) in [
            (Course::Nobody, [Nothing; 4]),
            (Course::Serving, [Nothing, Dismiss, Dismiss, Leave]),
            (Course::Leaving(future), [Look; 4]),
            (Course::Leaving(past), [Kill; 4]),
            (Course::Left, [Nothing; 4]),
        ] {
            for (stage, action) in stages.into_iter().zip(actions) {
                assert_eq!(course.next(stage, now), action, "{course:?} {stage:?}");
            }
        }
    }

    #[test]
    fn who_is_told_what() {
        let view = |group, drains, told| View {
            group,
            told,
            drains,
        };
        // npm, its shell, and node; a plain worker.
        let mut all = [
            view(1, false, None),
            view(1, false, None),
            view(1, true, None),
            view(4, false, None),
        ];
        assert_eq!(to_tell(&all), [(2, Told::Drain), (3, Told::Stop)]);
        all[2] = view(1, false, Some(Told::Drain));
        all[3].told = Some(Told::Stop);
        assert!(to_tell(&all).is_empty());
        // node is gone.
        assert_eq!(to_tell(&all[..2]), [(0, Told::Stop), (1, Told::Stop)]);
    }

    #[test]
    fn a_socket_is_had_by_its_address() {
        let tcp = |host: Option<&str>, port: u16| Spot::Tcp {
            host: host.map(str::to_owned),
            port,
            index: None,
        };
        let listener = |address: &str| {
            let fd = socket::listen_tcp(address.parse().unwrap(), Some(false), 8);
            let fd = fd.or_else(|_| socket::listen_tcp(address.parse().unwrap(), None, 8));
            let fd = fd.unwrap();
            let Ok(LocalAddr::Inet(bound)) = socket::local_addr(&fd) else {
                panic!()
            };
            (fd, bound.port())
        };
        let mut estate = Estate::default();
        let (one, first) = listener("127.0.0.1:0");
        let (two, second) = listener("0.0.0.0:0");
        // A connection, and a socket that is not bound, are nobody's address.
        let connection = std::net::TcpStream::connect(("127.0.0.1", first)).unwrap();
        estate.add(connection.into(), 7);
        estate.add(
            std::os::unix::net::UnixDatagram::unbound().unwrap().into(),
            8,
        );
        assert_eq!(estate.list.len(), 0);
        estate.add(one, 4);
        estate.add(two, 9);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let third = udp.local_addr().unwrap().port();
        estate.add(udp.into(), 10);

        assert!(estate.take(&tcp(Some("127.0.0.1"), second), None).is_none());
        assert!(estate.take(&tcp(None, first), None).is_none());
        assert!(estate.take(&tcp(None, second), None).is_some());
        assert!(estate.take(&tcp(None, second), None).is_none(), "once");
        // Any port: where it stood among those of --listen, and at the same address.
        assert!(estate.take(&tcp(Some("127.0.0.1"), 0), None).is_none());
        assert!(estate.take(&tcp(Some("127.0.0.1"), 0), Some(0)).is_none());
        assert!(estate.take(&tcp(None, 0), Some(1)).is_none());
        assert!(estate.take(&tcp(Some("localhost"), 0), Some(1)).is_some());
        let spot = |port| Spot::Udp {
            host: Some("127.0.0.1".to_owned()),
            port,
            v6: false,
            index: None,
        };
        assert!(estate.take(&spot(0), None).is_none());
        assert!(estate.take(&spot(third), None).is_some());
        assert_eq!(estate.list.len(), 0);
    }
}
