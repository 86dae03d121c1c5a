//! The master's state as it travels to another program in its place (`reexec`): by number for what is
//! open, by age for what has a time. Nothing here decides anything.

use crate::deaths::{By, Death, Deaths};
use crate::launch::{Generation, SavedGeneration};
use crate::node::channel::{Channel, SavedChannel};
use crate::node::sockets::{SavedSockets, Sockets};
use crate::output::{Stream, Which};
use crate::pool::{Member, Slot, State, Wait};
use crate::run::{Leftover, Master, Token};
use crate::slots::{Group, SavedGroup};
use crate::status::{Frozen, Reloads};
use crate::worker::Worker;
use common::child::{Child, Peer};
use common::error::{Error, Result, describe};
use common::exit::End;
use common::lines::LastLines;
use common::wait::Interest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Raised with each change of what is written: a program reads its own version and no other.
pub const VERSION: u32 = 2;

/// Bytes that need not be text, in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hex(String);

impl Hex {
    /// Writes them.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Hex {
        use std::fmt::Write;
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Hex(text)
    }

    /// Of a path, a variable.
    #[must_use]
    pub fn of(text: impl AsRef<OsStr>) -> Hex {
        Hex::new(text.as_ref().as_bytes())
    }

    /// Reads them; what is no hexadecimal ends them.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let pairs = self.0.as_bytes().chunks_exact(2);
        pairs
            .map_while(|pair| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok())
            .collect()
    }

    /// As a path or variable.
    #[must_use]
    pub fn text(&self) -> OsString {
        OsString::from_vec(self.bytes())
    }
}

/// What has to stay open, by number.
#[derive(Debug, Default)]
pub struct Open(Vec<RawFd>);

impl Open {
    /// Takes note of a descriptor.
    pub fn keep(&mut self, fd: impl AsFd) -> RawFd {
        let number = fd.as_fd().as_raw_fd();
        self.0.push(number);
        number
    }

    /// All of them.
    #[must_use]
    pub fn numbers(&self) -> &[RawFd] {
        &self.0
    }
}

/// The way back: each number is taken over once; what several share is shared again.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<RawFd, Rc<OwnedFd>>);

impl Taken {
    /// One that nobody shares.
    ///
    /// # Errors
    /// It is not open.
    pub fn own(&mut self, number: RawFd) -> Result<OwnedFd> {
        common::sys::adopt(number).ok_or_else(|| {
            Error::new(
                "take the state over",
                format!("descriptor {number} is not open"),
            )
        })
    }

    /// One that may be shared.
    ///
    /// # Errors
    /// It is not open.
    pub fn shared(&mut self, number: RawFd) -> Result<Rc<OwnedFd>> {
        if let Some(fd) = self.0.get(&number) {
            return Ok(Rc::clone(fd));
        }
        let fd = Rc::new(self.own(number)?);
        self.0.insert(number, Rc::clone(&fd));
        Ok(fd)
    }
}

/// Times, from one process to the next: milliseconds from now, either way.
#[derive(Clone, Copy, Debug)]
pub struct Clock(pub Instant);

impl Clock {
    fn ago(self, at: Instant) -> u64 {
        millis(self.0.saturating_duration_since(at))
    }

    fn left(self, at: Instant) -> u64 {
        millis(at.saturating_duration_since(self.0))
    }

    fn past(self, ms: u64) -> Instant {
        // A machine that was started less than `ms` ago has no such time; then now.
        self.0
            .checked_sub(Duration::from_millis(ms))
            .unwrap_or(self.0)
    }

    fn future(self, ms: u64) -> Instant {
        self.0 + Duration::from_millis(ms)
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX >> 1)
}

/// What every version writes, and reads first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    version: u32,
    pid: u32,
}

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    pid: u32,
    age: u64,
    generation: u32,
    last_generation: u32,
    last_id: u64,
    generations: Vec<SavedGeneration>,
    frozen: Option<SavedFrozen>,
    reloads: Reloads,
    deaths: BTreeMap<By, u64>,
    lost: u64,
    slots: Vec<SavedSlot>,
    workers: Vec<SavedWorker>,
    streams: Vec<SavedStream>,
    leftovers: Vec<SavedLeftover>,
    given: Vec<SavedGiven>,
    own_paths: Vec<(Hex, u64, u64)>,
    sockets: SavedSockets,
    notify: Option<(RawFd, String)>,
    rendezvous: Option<(RawFd, String)>,
    preload: Option<Hex>,
    lifeline: Option<[RawFd; 2]>,
    /// Its lock.
    pub pid_file: Option<RawFd>,
    /// The control socket.
    pub control: Option<RawFd>,
    /// The client that asked for all this.
    pub client: Option<RawFd>,
    outputs: [Hex; 2],
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedFrozen {
    generation: u32,
    error: String,
    words: Vec<String>,
    ago: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedDeath {
    pid: i32,
    generation: u32,
    status: Option<i32>,
    signal: Option<i32>,
    by: By,
    uptime: u64,
    ago: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSlot {
    current: Option<u64>,
    generation: u32,
    /// Until the next start, in a backoff.
    backoff: Option<u64>,
    /// The same, over the limit.
    held: Option<u64>,
    #[serde(default)]
    unproven: bool,
    restarts: u64,
    deaths: Vec<SavedDeath>,
    words: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedWorker {
    id: u64,
    slot: usize,
    generation: u32,
    pid: i32,
    state: State,
    age: u64,
    lifetime: Option<u64>,
    ready_by: u64,
    ready: Option<u64>,
    kill_in: Option<u64>,
    /// Since it was found to hang in the kernel.
    stuck: Option<u64>,
    kills: u32,
    cause: Option<String>,
    by: Option<By>,
    oom_kills: Option<u64>,
    /// It has a cgroup, whose name follows from its number; and whether it was born there.
    cgroup: Option<bool>,
    aborted: bool,
    channel: Option<SavedChannel>,
    spoke: bool,
    open_queries: usize,
    listening: Option<u64>,
    disconnected: bool,
    notified: bool,
    heard_by: Option<u64>,
    shown: bool,
    ready_fd: Option<RawFd>,
    held: bool,
    cut_off: bool,
    owed: BTreeSet<i32>,
    last: Vec<String>,
    streams: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedStream {
    number: u64,
    fd: RawFd,
    tail: Hex,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedLeftover {
    pids: Vec<i32>,
    /// Names of cgroups.
    cgroups: Vec<String>,
    kill_in: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedGiven {
    name: String,
    address: String,
    fd: RawFd,
    group: Option<SavedGroup>,
}

impl Saved {
    /// Reads what another program has written for this process.
    ///
    /// # Errors
    /// It is of another version, of another process, or no state at all.
    pub fn read(text: &[u8], pid: u32) -> Result<Saved> {
        let doing = "take the state over";
        let head: Head = serde_json::from_slice(text)
            .map_err(|why| Error::new(doing, format!("it is none: {why}")))?;
        if head.version != VERSION {
            let why = format!(
                "it is of version {}, and this program reads {VERSION}",
                head.version
            );
            return Err(Error::new(doing, why));
        }
        if head.pid != pid {
            return Err(Error::new(
                doing,
                format!("it is of process {}, not {pid}", head.pid),
            ));
        }
        let saved: Saved = serde_json::from_slice(text)
            .map_err(|why| Error::new(doing, format!("it is damaged: {why}")))?;
        let known = |number: &u32| saved.generations.iter().any(|one| one.number == *number);
        let mut wanted = vec![saved.generation];
        wanted.extend(saved.workers.iter().map(|worker| worker.generation));
        wanted.extend(saved.slots.iter().map(|slot| slot.generation));
        match wanted.into_iter().find(|number| !known(number)) {
            Some(number) => Err(Error::new(doing, format!("it lacks generation {number}"))),
            None => Ok(saved),
        }
    }

    /// As it is read.
    ///
    /// # Errors
    /// None in practice.
    pub fn write(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|why| Error::new("write the state", why))
    }
}

impl Master {
    /// Takes everything down, and what has to stay open.
    pub(crate) fn save(&mut self, now: Instant, open: &mut Open) -> Saved {
        let clock = Clock(now);
        let mut generations: BTreeMap<u32, SavedGeneration> = BTreeMap::new();
        for (number, generation) in &self.generations {
            generations.insert(*number, generation.save(open));
        }
        let death = |death: &Death| SavedDeath {
            pid: death.pid,
            generation: death.generation,
            status: match death.end {
                Some(End::Exited(status)) => Some(status),
                Some(End::Killed(_)) | None => None,
            },
            signal: match death.end {
                Some(End::Killed(signal)) => Some(signal),
                Some(End::Exited(_)) | None => None,
            },
            by: death.by,
            uptime: millis(death.uptime),
            ago: clock.ago(death.at),
        };
        let slots = self.pool.slots.iter().map(|slot| SavedSlot {
            current: slot.current,
            generation: slot.generation,
            backoff: match slot.wait {
                Wait::Backoff(until) => Some(clock.left(until)),
                Wait::Nothing | Wait::Queued | Wait::Held(_) => None,
            },
            held: match slot.wait {
                Wait::Held(until) => Some(clock.left(until)),
                Wait::Nothing | Wait::Queued | Wait::Backoff(_) => None,
            },
            unproven: slot.unproven,
            restarts: slot.restarts,
            deaths: slot.deaths.iter().map(death).collect(),
            words: slot.deaths.words().to_vec(),
        });
        let slots = slots.collect();
        let workers = self.workers.values().filter_map(|worker| {
            let member = self.pool.members.get(&worker.id)?;
            let stuck = member.state == State::Stuck;
            Some(SavedWorker {
                id: worker.id,
                slot: worker.slot,
                generation: worker.generation,
                pid: worker.child.pid(),
                state: member.state,
                age: clock.ago(worker.started),
                lifetime: member.lifetime.map(millis),
                ready_by: clock.left(worker.ready_by),
                ready: member.ready_at.map(|at| clock.ago(at)),
                kill_in: member.until.filter(|_| !stuck).map(|at| clock.left(at)),
                stuck: member.until.filter(|_| stuck).map(|at| clock.ago(at)),
                kills: member.kills,
                cause: member.cause.clone(),
                by: member.by,
                oom_kills: worker.oom_kills,
                cgroup: worker.cgroup.as_ref().map(|cgroup| cgroup.certain()),
                aborted: member.aborted,
                channel: worker.channel.as_ref().map(|channel| channel.save(open)),
                spoke: worker.spoke,
                open_queries: worker.open_queries,
                listening: worker.listening_since.map(|at| clock.ago(at)),
                disconnected: worker.disconnected,
                notified: worker.notified,
                heard_by: worker.heard_by.map(|at| clock.left(at)),
                shown: worker.shown,
                ready_fd: worker.ready_fd.as_ref().map(|fd| open.keep(fd)),
                held: member.held,
                cut_off: worker.cut_off,
                owed: worker.owed.clone(),
                last: crate::deaths::spoken(&worker.last),
                streams: worker.streams,
            })
        });
        let workers = workers.collect();
        let streams = self.streams.iter().map(|(number, stream)| SavedStream {
            number: *number,
            fd: open.keep(stream),
            tail: Hex::new(stream.tail()),
        });
        let streams = streams.collect();
        let given = self
            .given
            .iter()
            .zip(&self.given_names)
            .zip(&self.given_groups)
            .map(|(((address, fd), name), group)| SavedGiven {
                name: name.clone(),
                address: address.to_string(),
                fd: open.keep(&**fd),
                group: group.as_ref().map(|group| group.save(open)),
            });
        let given = given.collect();
        let outputs = std::array::from_fn(|index| {
            let waiting = self.outputs[index].as_ref();
            Hex::new(
                &waiting
                    .map(crate::output::Output::waiting)
                    .unwrap_or_default(),
            )
        });
        Saved {
            version: VERSION,
            pid: std::process::id(),
            age: clock.ago(self.started),
            generation: self.pool.generation,
            last_generation: self.pool.last_generation,
            last_id: self.pool.last_id,
            generations: generations.into_values().collect(),
            frozen: self.pool.frozen.as_ref().map(|frozen| SavedFrozen {
                generation: frozen.generation,
                error: frozen.error.clone(),
                words: frozen.words.clone(),
                ago: clock.ago(frozen.at),
            }),
            reloads: self.pool.reloads,
            deaths: self.pool.deaths.clone(),
            lost: self.lost,
            slots,
            workers,
            streams,
            leftovers: self
                .leftovers
                .iter()
                .map(|leftover| SavedLeftover {
                    pids: leftover.peers.iter().map(Peer::pid).collect(),
                    cgroups: leftover
                        .cgroups
                        .iter()
                        .map(|cgroup| cgroup.name().to_owned())
                        .collect(),
                    kill_in: clock.left(leftover.kill_at),
                })
                .collect(),
            given,
            own_paths: self
                .own_paths
                .iter()
                .map(|(path, made)| (Hex::of(path), made.dev, made.ino))
                .collect(),
            sockets: self.sockets.save(open),
            notify: self
                .notify
                .as_ref()
                .map(|notify| (open.keep(notify), notify.name().to_owned())),
            rendezvous: self
                .rendezvous
                .as_ref()
                .map(|rendezvous| (open.keep(&rendezvous.fd), rendezvous.name().to_owned())),
            preload: self
                .preload
                .as_ref()
                .map(|preload| Hex::of(preload.directory())),
            lifeline: self.lifeline.as_ref().map(|lifeline| lifeline.save(open)),
            pid_file: self.pid_file.as_ref().map(|file| open.keep(file)),
            control: self.control.as_ref().map(|control| open.keep(control)),
            client: None,
            outputs,
        }
    }

    /// Puts everything back. The master was made with the same command line, and has nothing yet.
    ///
    /// # Errors
    /// Something is not open, or a worker's process cannot be held.
    pub(crate) fn restore(&mut self, saved: Saved, now: Instant) -> Result<()> {
        let clock = Clock(now);
        let mut taken = Taken::default();
        self.generations.clear();
        for one in &saved.generations {
            let generation = Generation::restore(one, &mut taken)?;
            self.generations.insert(one.number, Rc::new(generation));
        }
        self.started = clock.past(saved.age);
        self.pool.generation = saved.generation;
        self.pool.last_generation = saved.last_generation;
        self.pool.last_id = saved.last_id;
        self.pool.frozen = saved.frozen.map(|frozen| Frozen {
            generation: frozen.generation,
            error: frozen.error,
            words: frozen.words,
            at: clock.past(frozen.ago),
        });
        self.pool.reloads = saved.reloads;
        self.pool.deaths = saved.deaths;
        self.lost = saved.lost;
        self.own_paths = saved
            .own_paths
            .iter()
            .map(|(path, dev, ino)| {
                let identity = common::file::Identity {
                    dev: *dev,
                    ino: *ino,
                };
                (path.text().into(), identity)
            })
            .collect();
        for one in saved.given {
            let address = common::cli::address(&one.address)
                .map_err(|why| Error::new("take the state over", why))?;
            let fd = taken.shared(one.fd)?;
            let group = match one.group {
                Some(group) => Some(Rc::new(Group::restore(
                    group,
                    self.plan.backlog,
                    &mut taken,
                )?)),
                None => None,
            };
            self.take_given(one.name, address, fd, group)?;
        }
        self.sockets = Sockets::restore(saved.sockets, self.plan.backlog, &mut taken)?;
        // One group for a socket of --listen, whoever asks for it.
        for (_, shared) in self.sockets.iter_mut().filter(|(_, shared)| shared.ours) {
            let given = self.given.iter().zip(&self.given_groups);
            let found = given.filter(|((_, fd), _)| Rc::ptr_eq(fd, &shared.fd));
            shared.group = found.filter_map(|(_, group)| group.clone()).next();
        }
        self.notify = match saved.notify {
            Some((fd, name)) => Some(crate::notify::Notify::again(taken.own(fd)?, name)),
            None => None,
        };
        self.rendezvous = match saved.rendezvous {
            Some((fd, name)) => Some(crate::node::shim::Rendezvous::again(taken.own(fd)?, name)),
            None => None,
        };
        self.preload = match &saved.preload {
            Some(directory) => Some(crate::node::preload::Preload::again(
                directory.text().into(),
            )?),
            None => None,
        };
        self.lifeline = match saved.lifeline {
            Some(ends) => Some(crate::lifeline::Lifeline::restore(ends, &mut taken)?),
            None => None,
        };

        let mut slots = Vec::new();
        for one in saved.slots {
            let mut slot = Slot::new(one.generation);
            slot.current = one.current;
            slot.unproven = one.unproven;
            slot.restarts = one.restarts;
            slot.wait = match (one.current, one.backoff, one.held) {
                (Some(_), _, _) => Wait::Nothing,
                (None, Some(ms), _) => Wait::Backoff(clock.future(ms)),
                (None, None, Some(ms)) => Wait::Held(clock.future(ms)),
                (None, None, None) => Wait::Queued,
            };
            let mut deaths = Deaths::default();
            for death in one.deaths.iter().rev() {
                let end = match (death.status, death.signal) {
                    (Some(status), _) => Some(End::Exited(status)),
                    (None, Some(signal)) => Some(End::Killed(signal)),
                    (None, None) => None,
                };
                slot.last_end = end;
                let death = Death {
                    pid: death.pid,
                    generation: death.generation,
                    end,
                    by: death.by,
                    uptime: Duration::from_millis(death.uptime),
                    at: clock.past(death.ago),
                };
                deaths.note(death, one.words.clone());
            }
            slot.deaths = deaths;
            slots.push(slot);
        }
        let mut members = Vec::new();
        for one in saved.workers {
            // It is still our child, and nobody has reaped it: the number means it.
            let child = Child::again(one.pid)
                .map_err(|why| Error::new(&format!("hold worker {}", one.pid), describe(&why)))?;
            let mut last = LastLines::new(20, 512);
            one.last
                .iter()
                .for_each(|line| last.push(format!("{line}\n").as_bytes()));
            let channel = match one.channel {
                Some(channel) => Some(Channel::restore(channel, &mut taken)?),
                None => None,
            };
            if let Some(channel) = &channel {
                let token = Token::Channel(one.id).number();
                self.events.add(channel, token, channel.interest())?;
            }
            let ready_fd = match one.ready_fd {
                Some(fd) => Some(taken.own(fd)?),
                None => None,
            };
            if let Some(fd) = &ready_fd {
                self.events
                    .add(fd, Token::Ready(one.id).number(), Interest::Read)?;
            }
            let until = match (one.kill_in, one.stuck) {
                (Some(ms), _) => Some(clock.future(ms)),
                (None, Some(ms)) => Some(clock.past(ms)),
                (None, None) => None,
            };
            members.push(Member {
                id: one.id,
                slot: one.slot,
                generation: one.generation,
                pid: one.pid,
                state: one.state,
                started: clock.past(one.age),
                lifetime: one.lifetime.map(Duration::from_millis),
                ready_at: one.ready.map(|ms| clock.past(ms)),
                until,
                kills: one.kills,
                cause: one.cause,
                by: one.by,
                held: one.held,
                aborted: one.aborted,
                late: false,
                settled: false,
            });
            let worker = Worker {
                id: one.id,
                slot: one.slot,
                generation: one.generation,
                child,
                cgroup: one
                    .cgroup
                    .and_then(|certain| self.cgroups.again(one.id, certain)),
                started: clock.past(one.age),
                ready_by: clock.future(one.ready_by),
                oom_kills: one.oom_kills,
                owed: one.owed,
                channel,
                spoke: one.spoke,
                open_queries: one.open_queries,
                listening_since: one.listening.map(|ms| clock.past(ms)),
                disconnected: one.disconnected,
                cut_off: one.cut_off,
                notified: one.notified,
                heard_by: one.heard_by.map(|ms| clock.future(ms)),
                shown: one.shown,
                ready_fd,
                check: (None, now),
                looked: None,
                last,
                streams: one.streams,
            };
            self.workers.insert(one.id, worker);
        }
        self.pool.restore(slots, members);
        for one in saved.streams {
            let which = if one.number % 2 == 0 {
                Which::Out
            } else {
                Which::Err
            };
            let worker = one.number / 2;
            let mut stream = Stream::again(taken.own(one.fd)?, which, worker, &one.tail.bytes());
            if let Some(worker) = self.workers.get(&worker) {
                stream.set_prefix(self.prefix_of(worker));
            }
            self.events
                .add(&stream, Token::Stream(one.number).number(), Interest::Read)?;
            self.streams.insert(one.number, stream);
        }
        for one in saved.leftovers {
            // Orphans came to us: their numbers cannot have been reused before we reap them.
            let peers: Vec<Peer> = one.pids.into_iter().filter_map(Peer::of_child).collect();
            let kill_at = clock.future(one.kill_in);
            let cgroups = one.cgroups.iter();
            let cgroups = cgroups.filter_map(|name| self.cgroups.named(name));
            let leftover = Leftover::new(peers, cgroups.collect(), kill_at);
            self.leftovers.push(leftover);
        }
        for (output, waiting) in self.outputs.iter_mut().zip(&saved.outputs) {
            if let Some(output) = output {
                output.write(&waiting.bytes());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn another_version_is_refused_before_anything_else_is_read() {
        let text = format!("{{\"version\":{},\"pid\":7,\"unknown\":[]}}", VERSION + 1);
        let why = Saved::read(text.as_bytes(), 7).unwrap_err().message;
        assert!(why.contains(&format!("version {}", VERSION + 1)), "{why}");
        let text = format!("{{\"version\":{VERSION},\"pid\":8}}");
        let why = Saved::read(text.as_bytes(), 7).unwrap_err().message;
        assert!(why.contains("process 8, not 7"), "{why}");
        let text = format!("{{\"version\":{VERSION},\"pid\":7}}");
        let why = Saved::read(text.as_bytes(), 7).unwrap_err().message;
        assert!(why.contains("damaged"), "{why}");
        assert!(
            Saved::read(b"\x7fELF", 7)
                .unwrap_err()
                .message
                .contains("it is none")
        );
    }

    #[test]
    fn times_are_kept_as_distances() {
        let clock = Clock(Instant::now());
        let later = Clock(clock.0 + Duration::from_secs(100));
        assert_eq!(later.ago(clock.0), 100_000);
        assert_eq!(later.past(100_000), clock.0);
        assert_eq!(clock.left(later.0), 100_000);
        assert_eq!(clock.future(100_000), later.0);
        assert_eq!(later.left(clock.0), 0);
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Hex::new(&bytes).bytes(), bytes);
        }

        #[test]
        fn whatever_is_read_is_refused_or_a_state(text in "\\PC{0,60}") {
            let _ = Saved::read(text.as_bytes(), 1);
        }
    }
}
