//! `--balance slots`: a socket of its own for each slot, on the same port, held by the master for ever.
//!
//! The sockets of one address are a group (SO_REUSEPORT): the kernel gives each of them its share of the
//! connections, in a queue of its own. A worker's death loses nothing of it, because the master holds
//! the socket and the slot's next worker gets it. A slot that is removed is passed over by new
//! connections first (a program in the kernel chooses among the others), empties its queue, and goes.

use crate::cli::Balance;
use crate::events;
use crate::node::message::HandleType;
use crate::node::sockets::Shared;
use crate::plan::{Listen, Node};
use crate::pool::{Phase, State};
use crate::run::{Master, Token};
use crate::state::{Open, Taken};
use common::error::{Doing, Error, Result};
use common::event::Level;
use common::socket::{self, Address, LocalAddr};
use common::wait::Interest;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;

/// Refuses what has no socket that could be had more than once.
///
/// # Errors
/// Wrong usage (2).
pub fn check(balance: Balance, node: Node, listen: &[Listen]) -> Result<()> {
    let can = |one: &Listen| matches!(one, Listen::Bind(_, Address::Tcp { .. }));
    // A Node program's own listen() may bring one.
    if balance != Balance::Slots || node != Node::No || listen.iter().any(can) {
        return Ok(());
    }
    Err(Error::usage(if listen.is_empty() {
        "--balance slots needs a --listen with a TCP port, which each slot is to have a socket for"
    } else {
        "--balance slots needs a --listen with a TCP port: unix and inherited sockets are always shared"
    }))
}

/// The sockets of one address, in the order that the kernel numbers them.
#[derive(Debug)]
pub struct Group {
    members: RefCell<Vec<Member>>,
    steered: Cell<bool>,
    backlog: i32,
}

/// A group, for another program in our place.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedGroup {
    members: Vec<(usize, RawFd, u32)>,
    steered: bool,
}

#[derive(Debug)]
struct Member {
    slot: usize,
    fd: Rc<OwnedFd>,
    /// The newest generation that had it.
    generation: u32,
}

impl Group {
    /// A group of the one socket that `slot` has.
    ///
    /// # Errors
    /// EOPNOTSUPP for a unix socket.
    pub fn open(fd: &Rc<OwnedFd>, slot: usize, generation: u32, backlog: i32) -> io::Result<Group> {
        socket::open_group(&**fd)?;
        Ok(Group {
            members: RefCell::new(vec![Member {
                slot,
                fd: Rc::clone(fd),
                generation,
            }]),
            steered: Cell::new(false),
            backlog,
        })
    }

    /// The slot's socket, if it has one.
    #[must_use]
    pub fn get(&self, slot: usize) -> Option<Rc<OwnedFd>> {
        self.members
            .borrow()
            .iter()
            .find(|member| member.slot == slot)
            .map(|member| Rc::clone(&member.fd))
    }

    /// The slot's socket for a worker of `generation`; true: it was made just now.
    ///
    /// # Errors
    /// Those of socket(2), bind(2), listen(2).
    fn have(&self, slot: usize, generation: u32) -> io::Result<(Rc<OwnedFd>, bool)> {
        let mut members = self.members.borrow_mut();
        if let Some(member) = members.iter_mut().find(|member| member.slot == slot) {
            member.generation = member.generation.max(generation);
            return Ok((Rc::clone(&member.fd), false));
        }
        let Some(first) = members.first() else {
            return Err(nix::errno::Errno::EADDRNOTAVAIL.into());
        };
        let fd = Rc::new(socket::join_group(&*first.fd, self.backlog)?);
        members.push(Member {
            slot,
            fd: Rc::clone(&fd),
            generation,
        });
        Ok((fd, true))
    }

    /// New connections pass the slots over that are `closed`, if there are others.
    fn steer(&self, closed: impl Fn(usize) -> bool) -> io::Result<()> {
        let members = self.members.borrow();
        let indices: Vec<usize> = members
            .iter()
            .enumerate()
            .filter(|(_, member)| closed(member.slot))
            .map(|(index, _)| index)
            .collect();
        let Some(first) = members.first() else {
            return Ok(());
        };
        // As long as nobody was passed over, the kernel's own choice will do.
        if indices.len() == members.len() || (indices.is_empty() && !self.steered.get()) {
            return Ok(());
        }
        self.steered.set(true);
        socket::steer_group(&*first.fd, members.len(), &indices)
    }

    /// Connections that wait for slots.
    fn waiting(&self, which: impl Fn(usize) -> bool) -> u32 {
        self.members
            .borrow()
            .iter()
            .filter(|member| which(member.slot))
            .filter_map(|member| socket::queue(&*member.fd))
            .map(|queue| queue.length)
            .sum()
    }

    /// Closes sockets of slots, and says how many connections waited there.
    fn close(&self, which: impl Fn(usize, u32) -> bool) -> (Vec<Rc<OwnedFd>>, u32) {
        let mut members = self.members.borrow_mut();
        let (mut closed, mut lost) = (Vec::new(), 0);
        while let Some(index) = members
            .iter()
            .position(|member| which(member.slot, member.generation))
        {
            // The kernel's order: the last one gets the number of one that goes.
            let member = members.swap_remove(index);
            lost += socket::queue(&*member.fd).map_or(0, |queue| queue.length);
            closed.push(member.fd);
        }
        (closed, lost)
    }

    /// Has sockets listen again that a worker shut down; how many they were, and whether all do.
    fn listen_again(&self) -> (usize, bool) {
        let mut members = self.members.borrow_mut();
        let (mut count, mut all) = (0, true);
        // From the back: what moves to the end has been looked at.
        for index in (0..members.len()).rev() {
            if socket::is_listening(&*members[index].fd) {
                continue;
            }
            count += 1;
            let member = members.swap_remove(index);
            all &= socket::backlog_again(member.fd.as_fd(), self.backlog).is_ok();
            members.push(member);
        }
        (count, all)
    }

    /// Takes it down, for another program in our place.
    pub fn save(&self, open: &mut Open) -> SavedGroup {
        let members = self.members.borrow();
        let members = members
            .iter()
            .map(|member| (member.slot, open.keep(&*member.fd), member.generation));
        SavedGroup {
            members: members.collect(),
            steered: self.steered.get(),
        }
    }

    /// Puts it back: the kernel's order is the same, since the sockets are.
    ///
    /// # Errors
    /// One is not open.
    pub fn restore(saved: SavedGroup, backlog: i32, taken: &mut Taken) -> Result<Group> {
        let mut members = Vec::new();
        for (slot, number, generation) in saved.members {
            members.push(Member {
                slot,
                fd: taken.shared(number)?,
                generation,
            });
        }
        Ok(Group {
            members: RefCell::new(members),
            steered: Cell::new(saved.steered),
            backlog,
        })
    }

    /// All its sockets.
    #[must_use]
    pub fn all(&self) -> Vec<Rc<OwnedFd>> {
        let members = self.members.borrow();
        members.iter().map(|member| Rc::clone(&member.fd)).collect()
    }
}

impl Master {
    fn by_slots(&self) -> bool {
        self.plan.balance == Balance::Slots
    }

    /// The group of a socket of `--listen` that was bound just now.
    pub(crate) fn group_of_given(&self, fd: &Rc<OwnedFd>) -> io::Result<Option<Rc<Group>>> {
        let tcp = matches!(socket::local_addr(&**fd), Ok(LocalAddr::Inet(_)));
        if !self.by_slots() || !tcp {
            return Ok(None);
        }
        Group::open(fd, 0, self.pool.generation, self.plan.backlog)
            .map(|group| Some(Rc::new(group)))
    }

    /// The sockets of `--listen` as the workers of a slot get them.
    pub(crate) fn given_to(
        &mut self,
        slot: usize,
        generation: u32,
    ) -> Result<Vec<(Address, Rc<OwnedFd>)>> {
        let mut list = Vec::with_capacity(self.given.len());
        for index in 0..self.given.len() {
            let (address, fd) = self.given[index].clone();
            let group = self.given_groups.get(index).cloned().flatten();
            let fd = match group {
                None => fd,
                Some(group) => {
                    let doing = format!("bind {address} for slot {slot}");
                    let token = Token::Given(index as u64);
                    // As with the first of them: Node's are looked after when they are asked for.
                    let token = Some(token).filter(|_| self.plan.node == Node::No);
                    self.have(&group, slot, generation, token).doing(&doing)?
                }
            };
            list.push((address, fd));
        }
        Ok(list)
    }

    fn have(
        &self,
        group: &Group,
        slot: usize,
        generation: u32,
        token: Option<Token>,
    ) -> io::Result<Rc<OwnedFd>> {
        let (fd, new) = group.have(slot, generation)?;
        if new {
            // Where nobody can be passed over, nobody was.
            let _ = group.steer(|slot| slot >= self.open_slots());
            if let Some(token) = token {
                let _ = self.events.add(&*fd, token.number(), Interest::Nothing);
            }
        }
        Ok(fd)
    }

    /// The socket that a Node worker of `slot` gets as its answer.
    pub(crate) fn socket_for(
        &mut self,
        id: u64,
        slot: usize,
        generation: u32,
    ) -> io::Result<Option<Rc<OwnedFd>>> {
        let by_slots = self.by_slots();
        let (given, groups, backlog) = (&self.given, &self.given_groups, self.plan.backlog);
        let Some(shared) = self.sockets.get_mut(id) else {
            return Ok(None);
        };
        if by_slots && shared.group.is_none() && shared.kind == HandleType::Net {
            shared.group = if shared.ours {
                given
                    .iter()
                    .zip(groups)
                    .find(|((_, fd), _)| Rc::ptr_eq(fd, &shared.fd))
                    .and_then(|(_, group)| group.clone())
            } else {
                // A unix socket cannot: it stays shared.
                Group::open(&shared.fd, slot, generation, backlog)
                    .ok()
                    .map(Rc::new)
            };
        }
        let (fd, group) = (Rc::clone(&shared.fd), shared.group.clone());
        match group {
            None => Ok(Some(fd)),
            Some(group) => self
                .have(&group, slot, generation, Some(Token::Socket(id)))
                .map(Some),
        }
    }

    /// How many slots new connections may go to.
    pub(crate) fn open_slots(&self) -> usize {
        let wanted = self.resizing.map_or(usize::MAX, |resizing| resizing.wanted);
        self.pool.slots.len().min(wanted)
    }

    /// The queue of a socket: all that the slots have at its address.
    pub(crate) fn queue_of(&self, fd: &Rc<OwnedFd>) -> Option<socket::Queue> {
        let group = self.groups().into_iter().map(|(_, group)| group);
        let mut group = group.filter(|group| group.all().iter().any(|one| Rc::ptr_eq(one, fd)));
        match group.next() {
            None => socket::queue(&**fd),
            Some(group) => {
                let all = group.all().into_iter();
                all.filter_map(|fd| socket::queue(&*fd))
                    .reduce(|sum, one| socket::Queue {
                        length: sum.length + one.length,
                        limit: sum.limit + one.limit,
                        overflows: sum.overflows.zip(one.overflows).map(|(a, b)| a + b),
                    })
            }
        }
    }

    fn groups(&self) -> Vec<(String, Rc<Group>)> {
        let given = self.given.iter().zip(&self.given_groups);
        let given = given.filter_map(|((address, _), group)| {
            Some((address.to_string(), Rc::clone(group.as_ref()?)))
        });
        let asked = self.sockets.iter().filter(|(_, shared)| !shared.ours);
        let asked = asked.filter_map(|(_, shared)| {
            Some((shared.name.clone(), Rc::clone(shared.group.as_ref()?)))
        });
        given.chain(asked).collect()
    }

    /// Whether there are sockets whose queues must be empty before their slot goes. From now on, new
    /// connections pass it over.
    pub(crate) fn pass_over(&self) -> bool {
        let open = self.open_slots();
        let mut some = false;
        for (_, group) in self.groups() {
            // Without that (an old kernel) its queue would never be empty.
            some |= group.steer(|slot| slot >= open).is_ok();
        }
        some
    }

    /// Connections that wait in the queues of slots that are to go.
    pub(crate) fn waiting_for_removed(&self) -> u32 {
        let open = self.open_slots();
        let groups = self.groups().into_iter();
        groups
            .map(|(_, group)| group.waiting(|slot| slot >= open))
            .sum()
    }

    /// Closes the sockets of slots that are gone, and whose last worker is.
    pub(crate) fn close_removed(&mut self) {
        if !self.by_slots() {
            return;
        }
        let count = self.pool.slots.len();
        let held: BTreeSet<usize> = self.workers.values().map(|worker| worker.slot).collect();
        self.close_members(|slot, _| slot >= count && !held.contains(&slot));
    }

    /// Closes the sockets that a serving worker could have had from its predecessor, and did not ask
    /// for: the program listens there no longer.
    pub(crate) fn close_unasked(&mut self, id: u64, by: Unasked) {
        let Some(shared) = self.sockets.get(id).filter(|shared| !shared.ours) else {
            return;
        };
        let Some(group) = shared.group.clone() else {
            return;
        };
        let name = shared.name.clone();
        let asked: BTreeSet<usize> = shared
            .holders
            .iter()
            .filter_map(|id| self.workers.get(id))
            .map(|worker| worker.slot)
            .collect();
        let serving = self.pool.generation;
        let served: BTreeSet<usize> = self
            .pool
            .slots
            .iter()
            .filter_map(|slot| self.pool.members.get(&slot.current?))
            .filter(|worker| worker.state == State::Serving && worker.generation == serving)
            .map(|worker| worker.slot)
            .collect();
        let unasked = |slot: usize, generation: u32| {
            !asked.contains(&slot)
                && match by {
                    Unasked::Closed(closed) => closed == slot,
                    Unasked::Release => served.contains(&slot) && generation < serving,
                }
        };
        let closed = group.close(unasked);
        self.after_close(&name, &group, closed);
    }

    /// The same for all sockets, after a release has taken over.
    pub(crate) fn close_all_unasked(&mut self) {
        if !self.by_slots() || !matches!(self.pool.phase, Phase::Running) {
            return;
        }
        let ids: Vec<u64> = self.sockets.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.close_unasked(id, Unasked::Release);
        }
    }

    fn close_members(&mut self, which: impl Fn(usize, u32) -> bool) {
        for (name, group) in self.groups() {
            let closed = group.close(&which);
            self.after_close(&name, &group, closed);
        }
    }

    fn after_close(&mut self, name: &str, group: &Group, closed: (Vec<Rc<OwnedFd>>, u32)) {
        let (fds, lost) = closed;
        if fds.is_empty() {
            return;
        }
        fds.iter().for_each(|fd| self.events.remove(&**fd));
        // The one that stood for all of them must not stay open on our side alone.
        for (_, shared) in self.sockets.iter_mut() {
            if fds.iter().any(|fd| Rc::ptr_eq(fd, &shared.fd)) {
                if let Some(fd) = group.all().first() {
                    shared.fd = Rc::clone(fd);
                }
            }
        }
        drop(fds);
        let _ = group.steer(|slot| slot >= self.open_slots());
        if lost > 0 {
            self.say(
                Level::Warning,
                events::QUEUE_LOST,
                &[
                    ("address", name.into()),
                    ("count", lost.into()),
                    ("error", "they waited for a slot that is gone".into()),
                ],
            );
        }
    }

    /// Something was shut down in a group.
    pub(crate) fn group_listens_again(&mut self, name: String, group: &Group) {
        let (count, all) = group.listen_again();
        if !all {
            // It would wake us for ever.
            for fd in group.all() {
                if !socket::is_listening(&*fd) {
                    self.events.remove(&*fd);
                }
            }
        }
        // Their numbers have changed.
        let _ = group.steer(|slot| slot >= self.open_slots());
        if count > 0 {
            self.say_listens_again(name, all);
        }
    }

    /// Ends the waiting for all sockets of one that is dropped.
    pub(crate) fn forget_socket(&self, shared: &Shared) {
        self.events.remove(&*shared.fd);
        if let Some(group) = &shared.group {
            group.all().iter().for_each(|fd| self.events.remove(&**fd));
        }
    }
}

/// Why a socket of a slot is not wanted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// The worker of this slot closed it.
    Closed(usize),
    /// The release that serves does not listen there.
    Release,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn group() -> (Group, std::net::SocketAddr) {
        let first =
            Rc::new(socket::listen_tcp("127.0.0.1:0".parse().unwrap(), None, 1024).unwrap());
        let Ok(LocalAddr::Inet(bound)) = socket::local_addr(&*first) else {
            panic!()
        };
        (Group::open(&first, 2, 1, 1024).unwrap(), bound)
    }

    fn connect(to: std::net::SocketAddr) -> Vec<std::net::TcpStream> {
        (0..64)
            .map(|_| std::net::TcpStream::connect(to).unwrap())
            .collect()
    }

    #[test]
    fn a_slot_has_one_socket_for_ever_and_is_passed_over_when_it_is_to_go() {
        let (group, address) = group();
        // Slots come in any order.
        let (zero, true) = group.have(0, 1).unwrap() else {
            panic!()
        };
        assert!(group.have(1, 1).unwrap().1);
        let (again, false) = group.have(0, 2).unwrap() else {
            panic!()
        };
        assert!(Rc::ptr_eq(&zero, &again));
        group.steer(|slot| slot == 2).unwrap();
        let _clients = connect(address);
        assert_eq!(group.waiting(|slot| slot == 2), 0);
        assert_eq!(group.waiting(|slot| slot < 2), 64);
        // The last takes the number of the one that goes.
        let (closed, lost) = group.close(|slot, _| slot == 2);
        assert_eq!((closed.len(), lost), (1, 0));
        drop(closed);
        group.steer(|slot| slot == 1).unwrap();
        let before = group.waiting(|slot| slot == 1);
        let _clients = connect(address);
        assert_eq!(group.waiting(|slot| slot == 1), before);
        let (_, lost) = group.close(|slot, generation| slot == 0 && generation == 2);
        assert!(lost >= 64);
    }

    #[test]
    fn what_was_shut_down_listens_again_and_the_order_is_known() {
        let (group, address) = group();
        group.have(0, 1).unwrap();
        group.have(1, 1).unwrap();
        group.steer(|slot| slot == 1).unwrap();
        let shut = group.get(0).unwrap();
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*shut),
            nix::sys::socket::Shutdown::Both,
        )
        .unwrap();
        assert_eq!(group.listen_again(), (1, true));
        assert_eq!(group.listen_again(), (0, true));
        group.steer(|slot| slot == 1).unwrap();
        let _clients = connect(address);
        assert_eq!(group.waiting(|slot| slot == 1), 0);
        assert!(group.waiting(|slot| slot == 0) > 0);
        assert!(group.waiting(|slot| slot == 2) > 0);
    }
}
