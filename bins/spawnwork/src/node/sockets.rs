//! The sockets that node workers asked for: bound once, shared by all, kept when a holder dies.

use super::balance::Turns;
use super::message::{HandleType, Query, Wanted};
use crate::adopt::Estate;
use crate::slots::{Group, SavedGroup};
use crate::state::{Hex, Open, Taken};
use crate::store::{Origin, Returned, Spot};
use common::socket::{self, Address, UnixRights};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// A socket that was bound for the workers.
#[derive(Debug)]
pub struct Shared {
    /// What the workers know it by.
    pub key: String,
    /// The socket itself.
    pub fd: Rc<OwnedFd>,
    /// Its kind on the wire.
    pub kind: HandleType,
    /// For people: `127.0.0.1:3000`, `unix:/run/app.sock`.
    pub name: String,
    /// The workers that hold it.
    pub holders: BTreeSet<u64>,
    /// The data of the first worker that asked (TLS ticket keys).
    pub data: String,
    /// One of `--listen`, never dropped.
    pub ours: bool,
    /// The newest generation that asked for it.
    pub generation: u32,
    /// The generation that it was made for.
    pub made_by: u32,
    /// Connections that the master hands over, in round-robin.
    pub hand_over: Option<HandOver>,
    /// Its name in the supervisor's store, where it is there.
    pub stored: Option<String>,
    /// Whether it came from there.
    pub origin: Origin,
    /// The sockets of the slots.
    pub group: Option<Rc<Group>>,
    wanted: Wanted,
    index: i64,
    path: Option<(PathBuf, common::file::Identity)>,
}

/// The round-robin side of a socket.
#[derive(Debug, Default)]
pub struct HandOver {
    /// Whose turn it is.
    pub turns: Turns,
    /// Accepted, and refused by a worker: offered again before any new one is accepted.
    pub put_back: VecDeque<OwnedFd>,
    /// Handed to (worker, seq), and not answered.
    pub under_way: BTreeMap<(u64, u64), OwnedFd>,
}

/// Who asks, and what he may have.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The worker.
    pub worker: u64,
    /// Its generation.
    pub generation: u32,
    /// The user that unix sockets are made as, if another than ours.
    pub identity: Option<(u32, u32)>,
    /// Ports below this one are refused (net.ipv4.ip_unprivileged_port_start).
    pub lowest_port: u16,
    /// For each socket.
    pub backlog: i32,
    /// TCP and unix connections are handed over by the master.
    pub round_robin: bool,
}

/// The book of all sockets of the node workers, by a number that is never reused.
#[derive(Debug, Default)]
pub struct Sockets {
    /// What came back from the supervisor's store.
    pub returned: Returned,
    /// What the workers of a dead master hold.
    pub estate: Estate,
    released: Vec<String>,
    list: BTreeMap<u64, Shared>,
    last: u64,
}

/// What became of a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The socket of this number; true: it was made just now.
    Socket(u64, bool),
    /// An errno.
    Refused(i32),
}

impl Sockets {
    /// An empty book, and what came back from the supervisor's store.
    #[must_use]
    pub fn new(returned: Returned) -> Sockets {
        Sockets {
            returned,
            ..Sockets::default()
        }
    }

    /// The names of sockets in the store that stood in the way of a query.
    pub fn take_released(&mut self) -> Vec<String> {
        std::mem::take(&mut self.released)
    }

    /// A socket.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Shared> {
        self.list.get(&id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Shared> {
        self.list.get_mut(&id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Shared)> {
        self.list.iter().map(|(id, shared)| (*id, shared))
    }

    /// All of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Shared)> {
        self.list.iter_mut().map(|(id, shared)| (*id, shared))
    }

    /// The one that `worker` knows by `key`.
    #[must_use]
    pub fn held(&self, worker: u64, key: &str) -> Option<u64> {
        self.iter()
            .find(|(_, shared)| shared.key == key && shared.holders.contains(&worker))
            .map(|(id, _)| id)
    }

    /// Meets a query. `given` are the sockets of `--listen`, in the order of the workers' LISTEN_FDS.
    pub fn ask(&mut self, query: &Query, asker: Asker, given: &[(Address, Rc<OwnedFd>)]) -> Answer {
        let same = |shared: &Shared| {
            shared.wanted == query.wanted
                && (shared.index == query.index || !by_index(&query.wanted))
                && shared.still_there()
        };
        let mut twice = false;
        if let Some((id, shared)) = self.list.iter_mut().find(|(_, shared)| same(shared)) {
            if !shared.holders.contains(&asker.worker) {
                shared.holders.insert(asker.worker);
                shared.generation = shared.generation.max(asker.generation);
                return Answer::Socket(*id, false);
            }
            // The same key twice crashes the worker (ERR_INTERNAL_ASSERTION in child.js).
            if shared.kind == HandleType::Net {
                return Answer::Refused(nix::errno::Errno::EADDRINUSE as i32);
            }
            twice = true;
        }
        let made = match find_given(&query.wanted, given) {
            Some(Ok((address, fd))) => Ok((fd, Some(address), Origin::Bound, None)),
            Some(Err(errno)) => return Answer::Refused(errno as i32),
            None => self
                .have(query, asker)
                .map(|(fd, origin, stored)| (Rc::new(fd), None, origin, stored)),
        };
        let (fd, address, origin, stored) = match made {
            Ok(made) => made,
            Err(why) => {
                return Answer::Refused(
                    why.raw_os_error()
                        .unwrap_or(nix::errno::Errno::EINVAL as i32),
                );
            }
        };
        self.last += 1;
        let kind = if matches!(query.wanted, Wanted::Udp { .. }) {
            HandleType::Datagram
        } else {
            HandleType::Net
        };
        // Numbered where a key with the same words may live on: sockets of different paths, UDP twice.
        let key = if twice
            || self
                .list
                .values()
                .any(|shared| shared.wanted == query.wanted)
        {
            format!("{}#{}", key_of(query), self.last)
        } else {
            key_of(query)
        };
        let path = match &query.wanted {
            Wanted::Unix(path) if address.is_none() => common::file::identity(Path::new(path))
                .ok()
                .map(|identity| (PathBuf::from(path), identity)),
            _ => None,
        };
        self.list.insert(
            self.last,
            Shared {
                key,
                name: address
                    .as_ref()
                    .map_or_else(|| name_of(&query.wanted, &fd), ToString::to_string),
                fd,
                kind,
                holders: BTreeSet::from([asker.worker]),
                data: query.data.clone(),
                ours: address.is_some(),
                generation: asker.generation,
                made_by: asker.generation,
                hand_over: (asker.round_robin && kind == HandleType::Net).then(HandOver::default),
                origin,
                stored: stored.or_else(|| spot(query).filter(|_| address.is_none())?.name()),
                group: None,
                wanted: query.wanted.clone(),
                index: query.index,
                path,
            },
        );
        Answer::Socket(self.last, true)
    }

    /// The socket that came back for this address, with its name in the store, that of orphans, or a new
    /// one.
    fn have(
        &mut self,
        query: &Query,
        asker: Asker,
    ) -> io::Result<(OwnedFd, Origin, Option<String>)> {
        may_bind(query, asker)?;
        let Some(spot) = spot(query) else {
            return bind(query, asker).map(|fd| (fd, Origin::Bound, None));
        };
        let udp = matches!(query.wanted, Wanted::Udp { .. });
        while let Some((name, fd)) = self.returned.take(&spot) {
            let again = socket::set_nonblocking(&fd);
            let listens = || socket::backlog_again(fd.as_fd(), asker.backlog).is_ok();
            if again.is_ok() && (udp || listens()) {
                return Ok((fd, Origin::Returned, Some(name)));
            }
            self.released.push(name);
        }
        if let Some(fd) = self.estate.take(&spot, None) {
            socket::set_nonblocking(&fd)?;
            if !udp {
                socket::backlog_again(fd.as_fd(), asker.backlog)?;
            }
            return Ok((fd, Origin::Adopted, None));
        }
        let in_use = |why: &io::Error| why.kind() == io::ErrorKind::AddrInUse;
        match bind(query, asker) {
            Err(why) if in_use(&why) => {
                let way = self.returned.in_the_way(&spot);
                self.released.extend(way.into_iter().map(|(name, _)| name));
                // Until the store has closed its own copy this fails again, and the next worker has it.
                bind(query, asker).map(|fd| (fd, Origin::Bound, None))
            }
            made => made.map(|fd| (fd, Origin::Bound, None)),
        }
    }

    /// The worker holds `id` no longer. Its unanswered connections are offered to others.
    pub fn leave(&mut self, id: u64, worker: u64) {
        let Some(shared) = self.list.get_mut(&id) else {
            return;
        };
        shared.holders.remove(&worker);
        if let Some(hand_over) = &mut shared.hand_over {
            hand_over.turns.leave(worker);
            let seqs: Vec<_> = hand_over
                .under_way
                .keys()
                .filter(|(holder, _)| *holder == worker)
                .copied()
                .collect();
            for seq in seqs {
                hand_over.put_back.extend(hand_over.under_way.remove(&seq));
            }
        }
    }

    /// The numbers of all that a worker holds.
    #[must_use]
    pub fn held_by(&self, worker: u64) -> Vec<u64> {
        self.iter()
            .filter(|(_, shared)| shared.holders.contains(&worker))
            .map(|(id, _)| id)
            .collect()
    }

    /// Takes those out that nobody holds and that `unwanted` names.
    pub fn drop_unheld(&mut self, unwanted: impl Fn(&Shared) -> bool) -> Vec<(u64, Shared)> {
        let ids: Vec<u64> = self
            .iter()
            .filter(|(_, shared)| shared.holders.is_empty() && !shared.ours && unwanted(shared))
            .map(|(id, _)| id)
            .collect();
        ids.into_iter()
            .filter_map(|id| {
                let shared = self.list.remove(&id)?;
                shared.unlink();
                Some((id, shared))
            })
            .collect()
    }

    /// The paths of those unix sockets go that end with the master.
    pub fn unlink_all(&self, ends: impl Fn(&Shared) -> bool) {
        let all = self.list.values();
        all.filter(|shared| ends(shared)).for_each(Shared::unlink);
    }
}

/// The book, for another program in our place.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedSockets {
    last: u64,
    list: Vec<SavedShared>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedShared {
    id: u64,
    key: String,
    fd: RawFd,
    datagram: bool,
    name: String,
    holders: BTreeSet<u64>,
    data: String,
    ours: bool,
    generation: u32,
    made_by: u32,
    hand_over: Option<SavedHandOver>,
    stored: Option<String>,
    group: Option<SavedGroup>,
    wanted: Wanted,
    index: i64,
    path: Option<(Hex, u64, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedHandOver {
    turns: Vec<u64>,
    put_back: Vec<RawFd>,
    under_way: Vec<(u64, u64, RawFd)>,
}

impl Sockets {
    /// Takes it down.
    pub fn save(&self, open: &mut Open) -> SavedSockets {
        let list = self.list.iter().map(|(id, shared)| SavedShared {
            id: *id,
            key: shared.key.clone(),
            fd: open.keep(&*shared.fd),
            datagram: shared.kind == HandleType::Datagram,
            name: shared.name.clone(),
            holders: shared.holders.clone(),
            data: shared.data.clone(),
            ours: shared.ours,
            generation: shared.generation,
            made_by: shared.made_by,
            hand_over: shared.hand_over.as_ref().map(|hand_over| SavedHandOver {
                turns: hand_over.turns.workers().collect(),
                put_back: hand_over.put_back.iter().map(|fd| open.keep(fd)).collect(),
                under_way: hand_over
                    .under_way
                    .iter()
                    .map(|((worker, seq), fd)| (*worker, *seq, open.keep(fd)))
                    .collect(),
            }),
            stored: shared.stored.clone(),
            group: shared
                .group
                .as_ref()
                .filter(|_| !shared.ours)
                .map(|group| group.save(open)),
            wanted: shared.wanted.clone(),
            index: shared.index,
            path: shared
                .path
                .as_ref()
                .map(|(path, identity)| (Hex::of(path), identity.dev, identity.ino)),
        });
        SavedSockets {
            last: self.last,
            list: list.collect(),
        }
    }

    /// Puts it back.
    ///
    /// # Errors
    /// A descriptor is not open.
    pub fn restore(
        saved: SavedSockets,
        backlog: i32,
        taken: &mut Taken,
    ) -> common::error::Result<Sockets> {
        let mut sockets = Sockets {
            last: saved.last,
            ..Sockets::default()
        };
        for one in saved.list {
            let hand_over = match one.hand_over {
                None => None,
                Some(saved) => {
                    let mut hand_over = HandOver::default();
                    saved
                        .turns
                        .into_iter()
                        .for_each(|id| hand_over.turns.join(id));
                    for number in saved.put_back {
                        hand_over.put_back.push_back(taken.own(number)?);
                    }
                    for (worker, seq, number) in saved.under_way {
                        hand_over.turns.spend(worker);
                        hand_over
                            .under_way
                            .insert((worker, seq), taken.own(number)?);
                    }
                    Some(hand_over)
                }
            };
            let group = match one.group {
                Some(group) => Some(Rc::new(Group::restore(group, backlog, taken)?)),
                None => None,
            };
            let shared = Shared {
                key: one.key,
                fd: taken.shared(one.fd)?,
                kind: if one.datagram {
                    HandleType::Datagram
                } else {
                    HandleType::Net
                },
                name: one.name,
                holders: one.holders,
                data: one.data,
                ours: one.ours,
                generation: one.generation,
                made_by: one.made_by,
                hand_over,
                stored: one.stored,
                origin: Origin::Bound,
                group,
                wanted: one.wanted,
                index: one.index,
                path: one.path.map(|(path, dev, ino)| {
                    let identity = common::file::Identity { dev, ino };
                    (PathBuf::from(path.text()), identity)
                }),
            };
            sockets.list.insert(one.id, shared);
        }
        Ok(sockets)
    }
}

impl Shared {
    /// A unix socket's path still leads to it. An app that was written to run alone unlinks the path
    /// before it listens, and with that the address of its elder siblings' socket.
    fn still_there(&self) -> bool {
        self.path.as_ref().is_none_or(|(path, identity)| {
            common::file::identity(path).is_ok_and(|now| now == *identity)
        })
    }

    fn unlink(&self) {
        if let Some((path, _)) = self.path.as_ref().filter(|_| self.still_there()) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// When a full worker may be asked again.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.hand_over
            .as_ref()
            .and_then(|hand_over| hand_over.turns.deadline())
    }
}

/// Several listens on port 0 are told apart by their order.
fn by_index(wanted: &Wanted) -> bool {
    matches!(
        wanted,
        Wanted::Tcp { port: 0, .. } | Wanted::Udp { port: 0, .. }
    )
}

/// What was asked for, for people.
#[must_use]
pub fn asked_for(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Tcp { host, port, .. } | Wanted::Udp { host, port, .. } => match host {
            Some(host) if host.contains(':') => format!("[{host}]:{port}"),
            Some(host) => format!("{host}:{port}"),
            None => port.to_string(),
        },
        Wanted::Unix(path) => format!("unix:{path}"),
        Wanted::Fd(fd) => format!("fd:{fd}"),
    }
}

/// address:port:addressType:fd, and the index where it counts, as Node's own primary makes it.
pub fn key_of(query: &Query) -> String {
    let host = |host: &Option<String>| host.clone().unwrap_or_else(|| "null".to_owned());
    let key = match &query.wanted {
        Wanted::Tcp {
            host: name,
            port,
            v6only,
        } => format!(
            "{}:{port}:{}:null",
            host(name),
            if *v6only { "6only" } else { "4" }
        ),
        Wanted::Unix(path) => format!("{path}:-1:-1:null"),
        Wanted::Fd(fd) => format!("null:null:null:{fd}"),
        Wanted::Udp {
            host: name,
            port,
            v6,
            ..
        } => format!("{}:{port}:udp{}:-1", host(name), if *v6 { 6 } else { 4 }),
    };
    if by_index(&query.wanted) {
        format!("{key}:{}", query.index)
    } else {
        key
    }
}

/// The socket of `--listen` that a query means: the same address, or a number of LISTEN_FDS.
fn find_given(
    wanted: &Wanted,
    given: &[(Address, Rc<OwnedFd>)],
) -> Option<Result<(Address, Rc<OwnedFd>), nix::errno::Errno>> {
    let found = match wanted {
        Wanted::Fd(number) => {
            let index = usize::try_from(number - common::fds::FIRST).ok();
            match index.and_then(|index| given.get(index)) {
                Some(found) => Some(found),
                None => return Some(Err(nix::errno::Errno::EBADF)),
            }
        }
        Wanted::Tcp { host, port, .. } => given.iter().find(|(address, _)| match address {
            Address::Tcp {
                host: bound,
                port: number,
            } => number == port && same_host(host.as_deref(), bound.as_deref()),
            Address::Unix(_) => false,
        }),
        Wanted::Unix(path) => given
            .iter()
            .find(|(address, _)| *address == Address::Unix(PathBuf::from(path))),
        Wanted::Udp { .. } => None,
    };
    found.map(|(address, fd)| Ok((address.clone(), Rc::clone(fd))))
}

/// Whether two hosts mean the same addresses.
#[must_use]
pub fn same_host(asked: Option<&str>, bound: Option<&str>) -> bool {
    let any = |host: Option<&str>| matches!(host, None | Some("::" | "0.0.0.0"));
    asked == bound
        || (any(asked) && any(bound))
        || (bound == Some("localhost") && asked == Some("127.0.0.1"))
}

/// Where a query's socket is found again in the supervisor's store.
fn spot(query: &Query) -> Option<Spot> {
    let index = by_index(&query.wanted).then_some(query.index);
    match &query.wanted {
        Wanted::Tcp { host, port, .. } => Some(Spot::Tcp {
            host: host.clone(),
            port: *port,
            index,
        }),
        Wanted::Udp { host, port, v6, .. } => Some(Spot::Udp {
            host: host.clone(),
            port: *port,
            v6: *v6,
            index,
        }),
        Wanted::Unix(path) => Some(Spot::Unix(PathBuf::from(path))),
        Wanted::Fd(_) => None,
    }
}

/// A privileged port is not had by way of the store either.
fn may_bind(query: &Query, asker: Asker) -> io::Result<()> {
    let port = match query.wanted {
        Wanted::Tcp { port, .. } | Wanted::Udp { port, .. } => port,
        Wanted::Unix(_) | Wanted::Fd(_) => 0,
    };
    if port != 0 && port < asker.lowest_port {
        return Err(io::Error::from_raw_os_error(
            nix::errno::Errno::EACCES as i32,
        ));
    }
    Ok(())
}

fn bind(query: &Query, asker: Asker) -> io::Result<OwnedFd> {
    let refused = |errno: nix::errno::Errno| io::Error::from_raw_os_error(errno as i32);
    let address = |host: &Option<String>, port: u16, v6: bool| -> io::Result<SocketAddr> {
        match host {
            // Node looks names up itself: here are addresses only, with a scope on link-local ones.
            Some(host) => match host.parse::<IpAddr>() {
                Ok(ip) => Ok(SocketAddr::new(ip, port)),
                Err(_) => format!("[{host}]:{port}")
                    .parse()
                    .map_err(|_| refused(nix::errno::Errno::EINVAL)),
            },
            None if v6 => Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)),
            None => Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
        }
    };
    match &query.wanted {
        Wanted::Tcp {
            host: None,
            port,
            v6only: false,
        } => socket::listen_any(*port, asker.backlog),
        Wanted::Tcp { host, port, v6only } => {
            let address = address(host, *port, *v6only)?;
            socket::listen_tcp(address, address.is_ipv6().then_some(*v6only), asker.backlog)
        }
        Wanted::Udp {
            host,
            port,
            v6,
            v6only,
            reuse,
        } => socket::udp(address(host, *port, *v6)?, *reuse, *v6only),
        Wanted::Unix(path) => bind_unix(Path::new(path), query, asker),
        Wanted::Fd(_) => Err(refused(nix::errno::Errno::EBADF)),
    }
}

/// As libuv does: an existing path is EADDRINUSE, whoever it belongs to; what may be made where is
/// for the worker's user to have, not for root's.
fn bind_unix(path: &Path, query: &Query, asker: Asker) -> io::Result<OwnedFd> {
    let mut mode = 0o755;
    if query.readable_all {
        mode |= 0o444;
    }
    if query.writable_all {
        mode |= 0o222;
    }
    let before = asker
        .identity
        .map(|(uid, gid)| common::sys::file_system_ids(uid, gid));
    let made = socket::listen_unix(path, UnixRights { mode, owner: None }, asker.backlog);
    if let Some((uid, gid)) = before {
        let _ = common::sys::file_system_ids(uid, gid);
    }
    made
}

fn name_of(wanted: &Wanted, fd: &OwnedFd) -> String {
    match (wanted, socket::local_addr(fd)) {
        (Wanted::Unix(path), _) => format!("unix:{path}"),
        (Wanted::Udp { .. }, Ok(socket::LocalAddr::Inet(address))) => format!("udp:{address}"),
        (_, Ok(socket::LocalAddr::Inet(address))) => address.to_string(),
        (_, Ok(socket::LocalAddr::Unix(path))) => format!("unix:{}", path.display()),
        (_, Err(_)) => "unknown".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn asker(worker: u64) -> Asker {
        Asker {
            worker,
            generation: 1,
            identity: None,
            lowest_port: 0,
            backlog: 16,
            round_robin: false,
        }
    }

    fn query(wanted: Wanted, index: i64) -> Query {
        Query {
            seq: 1,
            wanted,
            index,
            data: "null".to_owned(),
            readable_all: false,
            writable_all: false,
        }
    }

    fn any_port() -> Wanted {
        Wanted::Tcp {
            host: Some("127.0.0.1".to_owned()),
            port: 0,
            v6only: false,
        }
    }

    #[test]
    fn the_same_question_gets_the_same_socket_and_only_once_a_worker() {
        let mut sockets = Sockets::default();
        let Answer::Socket(first, true) = sockets.ask(&query(any_port(), 0), asker(1), &[]) else {
            panic!()
        };
        assert_eq!(
            sockets.ask(&query(any_port(), 0), asker(2), &[]),
            Answer::Socket(first, false)
        );
        assert_eq!(
            sockets.ask(&query(any_port(), 0), asker(1), &[]),
            Answer::Refused(98)
        );
        let Answer::Socket(second, true) = sockets.ask(&query(any_port(), 1), asker(1), &[]) else {
            panic!()
        };
        assert_ne!(first, second);
        assert_ne!(
            sockets.get(first).unwrap().key,
            sockets.get(second).unwrap().key
        );
    }

    #[test]
    fn kept_for_those_who_died_dropped_for_those_who_closed() {
        let mut sockets = Sockets::default();
        let Answer::Socket(id, _) = sockets.ask(&query(any_port(), 0), asker(1), &[]) else {
            panic!()
        };
        sockets.leave(id, 1);
        assert!(
            sockets
                .drop_unheld(|shared| shared.generation > 1)
                .is_empty()
        );
        assert!(sockets.get(id).is_some());
        assert_eq!(sockets.drop_unheld(|_| true).len(), 1);
        assert!(sockets.get(id).is_none());
    }

    #[test]
    fn numbers_of_listen_fds_and_addresses_of_listen_are_found() {
        let fd = Rc::new(socket::listen_tcp("127.0.0.1:0".parse().unwrap(), None, 1).unwrap());
        let given = [(
            Address::Tcp {
                host: None,
                port: 3000,
            },
            fd,
        )];
        let mut sockets = Sockets::default();
        assert_eq!(
            sockets.ask(&query(Wanted::Fd(4), 0), asker(1), &given),
            Answer::Refused(9)
        );
        assert!(matches!(
            sockets.ask(&query(Wanted::Fd(3), 0), asker(1), &given),
            Answer::Socket(_, true)
        ));
        let wanted = Wanted::Tcp {
            host: None,
            port: 3000,
            v6only: false,
        };
        let Answer::Socket(id, true) = sockets.ask(&query(wanted, 0), asker(1), &given) else {
            panic!()
        };
        assert!(sockets.get(id).unwrap().ours);
    }

    #[test]
    fn privileged_ports_are_for_those_who_may() {
        let wanted = Wanted::Tcp {
            host: None,
            port: 80,
            v6only: false,
        };
        let asker = Asker {
            lowest_port: 1024,
            ..asker(1)
        };
        assert_eq!(
            Sockets::default().ask(&query(wanted, 0), asker, &[]),
            Answer::Refused(13)
        );
    }

    #[test]
    fn a_path_that_was_unlinked_is_bound_anew() {
        let directory = std::env::temp_dir().join(format!("sockets-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("a.sock");
        let wanted = Wanted::Unix(path.to_str().unwrap().to_owned());
        let mut sockets = Sockets::default();
        let Answer::Socket(first, true) = sockets.ask(&query(wanted.clone(), 0), asker(1), &[])
        else {
            panic!()
        };
        assert_eq!(
            sockets.ask(&query(wanted.clone(), 0), asker(2), &[]),
            Answer::Socket(first, false)
        );
        std::fs::remove_file(&path).unwrap();
        let Answer::Socket(second, true) = sockets.ask(&query(wanted, 0), asker(3), &[]) else {
            panic!()
        };
        assert_ne!(first, second);
        sockets.unlink_all(|_| true);
        assert!(!path.exists());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
