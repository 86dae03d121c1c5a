//! The effects of Node's protocol: what a message of a worker makes the master do.

use crate::cli::{Balance, Ready};
use crate::events;
use crate::node::channel::{Channel, Ended, Went};
use crate::node::message::{self, HandleType, Message, Query};
use crate::node::sockets::{Answer, Asker, asked_for, key_of};
use crate::notify::Alive;
use crate::plan::{Node, Readiness};
use crate::pool::Phase;
use crate::run::{Master, Token};
use crate::slots::Unasked;
use crate::worker::Worker;
use common::event::Level;
use common::socket;
use common::wait::{Interest, Wake};
use nix::sys::socket::{SockFlag, accept4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

impl Master {
    pub(crate) fn on_channel(&mut self, id: u64, wake: Wake, now: Instant) {
        let Some(channel) = self
            .workers
            .get_mut(&id)
            .and_then(|worker| worker.channel.as_mut())
        else {
            return;
        };
        let mut went = Ok(Went::On);
        if wake.writable {
            went = channel.flush();
        }
        let mut messages = Vec::new();
        if wake.readable {
            went = match (channel.receive(&mut messages), went) {
                (Err(why), _) | (_, Err(why)) => Err(why),
                (Ok(Went::Short), _) | (_, Ok(Went::Short)) => Ok(Went::Short),
                (Ok(Went::On), Ok(Went::On)) => Ok(Went::On),
            };
        }
        for message in messages {
            self.on_message(id, message, now);
        }
        self.channel_went(id, went, now);
    }

    fn channel_went(&mut self, id: u64, went: Result<Went, Ended>, now: Instant) {
        match went {
            Ok(went) => self.arm_channel(id, went, now),
            Err(why) => self.channel_ended(id, why, now),
        }
    }

    fn arm_channel(&mut self, id: u64, went: Went, now: Instant) {
        let Some(channel) = self
            .workers
            .get_mut(&id)
            .and_then(|worker| worker.channel.as_mut())
        else {
            return;
        };
        match went {
            Went::Short => channel.rest(&self.events, now),
            Went::On if channel.rests() => {}
            Went::On => {
                let token = Token::Channel(id).number();
                self.events.set(&*channel, token, channel.interest());
            }
        }
    }

    /// Channels that the kernel was too short of memory for are tried again.
    pub(crate) fn on_channels_time(&mut self, now: Instant) {
        for (id, worker) in &mut self.workers {
            if let Some(channel) = worker.channel.as_mut() {
                channel.wake_if_due(&self.events, Token::Channel(*id).number(), now);
            }
        }
    }

    /// The end of a channel that was no fault of ours.
    fn channel_ended(&mut self, id: u64, why: Ended, now: Instant) {
        self.close_channel(id);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        // A script of npm's that was node and ended (prestart): the next one may bring its own.
        if why == Ended::Closed {
            worker.spoke &= self.plan.node != Node::Shim;
            return;
        }
        let fields = [
            ("slot", worker.slot.into()),
            ("pid", worker.child.pid().into()),
            ("error", why.describe().into()),
        ];
        let error = why.describe().to_owned();
        self.say(Level::Error, events::CHANNEL_CLOSED, &fields);
        // Its requests end in peace; another one takes its place.
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if self.pool.stays(id) {
            worker.cut_off = self.preload.is_some() && worker.listening_since.is_some();
            self.pool.dismiss(id, error, now);
            self.act(now);
        }
    }

    /// Closes our end and lets go of what the worker held.
    pub(crate) fn close_channel(&mut self, id: u64) {
        if let Some(channel) = self
            .workers
            .get_mut(&id)
            .and_then(|worker| worker.channel.take())
        {
            self.events.remove(&channel);
        }
        for socket in self.sockets.held_by(id) {
            self.sockets.leave(socket, id);
            self.arm_socket(socket, Instant::now());
        }
    }

    /// Queues a message; a channel that takes none is at its end.
    pub(crate) fn send(&mut self, id: u64, message: String, handle: Option<Rc<OwnedFd>>) {
        let Some(channel) = self
            .workers
            .get_mut(&id)
            .and_then(|worker| worker.channel.as_mut())
        else {
            return;
        };
        let went = channel.send(message, handle);
        self.channel_went(id, went, Instant::now());
    }

    pub(crate) fn seq(&mut self, id: u64) -> u64 {
        self.workers
            .get_mut(&id)
            .and_then(|worker| worker.channel.as_mut())
            .map_or(0, Channel::next_seq)
    }

    fn on_message(&mut self, id: u64, message: Message, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.spoke = true;
        match message {
            Message::Online | Message::HandleAck | Message::Other => {}
            Message::Query(query) => self.on_query(id, &query, now),
            Message::Listening => {
                worker.open_queries = worker.open_queries.saturating_sub(1);
                worker.listening_since = Some(now);
                let slot = worker.slot;
                let held = self.pool.members.get(&id).is_some_and(|one| one.held);
                // Its own listen() has rewritten the backlog that all share (511 by default).
                let fds: Vec<(u64, Rc<OwnedFd>)> = self
                    .sockets
                    .held_by(id)
                    .into_iter()
                    .filter_map(|socket| Some((socket, self.sockets.get(socket)?)))
                    .filter(|(_, shared)| shared.kind == HandleType::Net)
                    .map(|(socket, shared)| {
                        let own = shared.group.as_ref().and_then(|group| group.get(slot));
                        (socket, own.unwrap_or_else(|| Rc::clone(&shared.fd)))
                    })
                    .collect();
                for (socket, fd) in fds {
                    let _ = socket::backlog_again(fd.as_fd(), self.plan.backlog);
                    if let Some(hand_over) = self
                        .sockets
                        .get_mut(socket)
                        .and_then(|shared| shared.hand_over.as_mut())
                        .filter(|_| !held)
                    {
                        hand_over.turns.join(id);
                    }
                    self.arm_socket(socket, now);
                }
            }
            Message::Close(key) => self.on_close(id, &key, now),
            Message::Leaving(seq) => {
                // cluster.worker.disconnect() or kill() in the app: it waits for this before it goes.
                let own = self.seq(id);
                self.send(id, message::acknowledge(own, seq), None);
            }
            Message::Accepted(seq, accepted) => self.on_accepted(id, seq, accepted, now),
            Message::HandleNack => self.on_nack(id, now),
            Message::ForeignHandle => self.send(id, message::handle_ack(), None),
        }
    }

    /// The worker was held back, and has a slot now.
    pub(crate) fn let_accept(&mut self, id: u64, now: Instant) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let listens = worker.listening_since.is_some();
        self.send(id, message::accept_now(self.plan.backlog), None);
        for socket in self.sockets.held_by(id) {
            if let Some(hand_over) = self
                .sockets
                .get_mut(socket)
                .and_then(|shared| shared.hand_over.as_mut())
                .filter(|_| listens)
            {
                hand_over.turns.join(id);
            }
            self.arm_socket(socket, now);
        }
    }

    fn on_query(&mut self, id: u64, query: &Query, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let asker = Asker {
            worker: id,
            generation: worker.generation,
            identity: self
                .plan
                .user
                .as_ref()
                .filter(|user| user.uid != nix::unistd::geteuid().as_raw())
                .map(|user| (user.uid, user.gid)),
            lowest_port: self.plan.lowest_port,
            backlog: self.plan.backlog,
            round_robin: self.plan.balance == Balance::RoundRobin,
        };
        let slot = worker.slot;
        let mut answer = self.sockets.ask(query, asker, &self.given);
        for name in self.sockets.take_released() {
            self.supervisor.discard(name);
        }
        let mut of_slot = None;
        if let Answer::Socket(socket, _) = answer {
            match self.socket_for(socket, slot, asker.generation) {
                Ok(fd) => of_slot = fd,
                Err(why) => {
                    self.sockets.leave(socket, id);
                    let errno = why.raw_os_error();
                    answer = Answer::Refused(errno.unwrap_or(nix::errno::Errno::EINVAL as i32));
                }
            }
        }
        let own = self.seq(id);
        match answer {
            Answer::Socket(socket, new) => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.open_queries += 1;
                }
                let Some(shared) = self.sockets.get(socket) else {
                    return;
                };
                let (fd, kind, key, data) = (
                    Rc::clone(&shared.fd),
                    shared.kind,
                    shared.key.clone(),
                    shared.data.clone(),
                );
                let (name, ours, hands_over) =
                    (shared.name.clone(), shared.ours, shared.hand_over.is_some());
                let (stored, origin) = (shared.stored.clone(), shared.origin);
                if new {
                    let interest = Interest::Nothing;
                    let _ = self
                        .events
                        .add(&*fd, Token::Socket(socket).number(), interest);
                    if !ours {
                        let stored = self.supervisor.keep(stored, &fd);
                        if let Some(shared) = self.sockets.get_mut(socket) {
                            shared.stored = stored;
                        }
                        self.say_listens(origin, name.clone());
                        if kind == HandleType::Net {
                            self.warn_of_somaxconn(&name);
                        }
                    }
                }
                if hands_over {
                    let name = match socket::local_addr(&*fd) {
                        Ok(socket::LocalAddr::Inet(name)) => Some(name),
                        Ok(socket::LocalAddr::Unix(_)) | Err(_) => None,
                    };
                    self.send(
                        id,
                        message::round_robin(own, query.seq, &key, &data, name),
                        None,
                    );
                } else {
                    let text =
                        message::with_handle(kind, &message::shared(own, query.seq, &key, &data));
                    self.send(id, text, Some(of_slot.unwrap_or(fd)));
                }
            }
            Answer::Refused(errno) => {
                let address = key_of(query);
                let error = common::error::describe(&std::io::Error::from_raw_os_error(errno));
                self.say(
                    Level::Warning,
                    events::BIND_REFUSED,
                    &[
                        ("slot", slot.into()),
                        ("address", asked_for(&query.wanted).into()),
                        ("error", error.into()),
                    ],
                );
                self.send(
                    id,
                    message::refused(own, query.seq, &address, &query.data, errno),
                    None,
                );
            }
        }
        let _ = now;
    }

    /// The app closed a listening socket.
    fn on_close(&mut self, id: u64, key: &str, now: Instant) {
        let Some(socket) = self.sockets.held(id, key) else {
            return;
        };
        self.sockets.leave(socket, id);
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let (leaving, slot) = (!self.pool.stays(id), worker.slot);
        let holds_more = !self.sockets.held_by(id).is_empty();
        if leaving {
            // An app that closes its server on TERM by itself is held by nothing but its channel now.
            if !worker.disconnected && !holds_more {
                self.disconnect(id);
            }
        } else if !matches!(self.pool.phase, Phase::Stopping(_)) {
            let mine = self.sockets.drop_unheld(|shared| shared.key == key);
            self.close_unasked(socket, Unasked::Closed(slot));
            for (_, shared) in mine {
                self.forget_socket(&shared);
                self.supervisor.forget(shared.stored.as_deref());
                self.say(
                    Level::Info,
                    events::SOCKET_DROPPED,
                    &[("address", shared.name.into())],
                );
            }
        }
        self.arm_socket(socket, now);
    }

    /// Asks a node worker to close its servers and to leave with its last connection.
    pub(crate) fn disconnect(&mut self, id: u64) {
        let own = self.seq(id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.disconnected = true;
        }
        self.send(id, message::disconnect(own), None);
    }

    // ---- round-robin, and listeners that somebody shut down ----

    pub(crate) fn on_socket(&mut self, socket: u64, now: Instant) {
        let Some(shared) = self.sockets.get(socket) else {
            return;
        };
        if shared.hand_over.is_some() {
            self.hand_over(socket, now);
            return;
        }
        if let Some(group) = shared.group.clone() {
            let name = shared.name.clone();
            self.group_listens_again(name, &group);
            return;
        }
        let (fd, name) = (Rc::clone(&shared.fd), shared.name.clone());
        let listener = shared.kind == HandleType::Net;
        self.listen_again(&fd, name, listener);
    }

    /// The same for a socket of `--listen` that no node worker asked for.
    pub(crate) fn on_given(&mut self, index: u64) {
        let given = usize::try_from(index).ok();
        if let Some((address, fd)) = given.and_then(|index| self.given.get(index)) {
            let (fd, name) = (Rc::clone(fd), address.to_string());
            let group = given.and_then(|index| self.given_groups.get(index)?.clone());
            match group {
                Some(group) => self.group_listens_again(name, &group),
                None => self.listen_again(&fd, name, true),
            }
        }
    }

    /// Nothing but a hang-up is waited for: a worker called shutdown(2) on what all share.
    fn listen_again(&mut self, fd: &Rc<OwnedFd>, name: String, listener: bool) {
        let again = listener && socket::backlog_again(fd.as_fd(), self.plan.backlog).is_ok();
        if !again {
            self.events.remove(&**fd);
        }
        self.say_listens_again(name, again);
    }

    pub(crate) fn say_listens_again(&mut self, name: String, again: bool) {
        let level = if again { Level::Warning } else { Level::Error };
        self.say(
            level,
            events::SOCKET_RELISTENED,
            &[
                ("address", name.into()),
                ("error", "a worker had shut it down".into()),
            ],
        );
    }

    /// Accepts as far as anybody has room.
    fn hand_over(&mut self, socket: u64, now: Instant) {
        for _ in 0..64 {
            let Some(shared) = self.sockets.get_mut(socket) else {
                return;
            };
            let (fd, key) = (Rc::clone(&shared.fd), shared.key.clone());
            let Some(hand_over) = shared.hand_over.as_mut() else {
                return;
            };
            hand_over.turns.expire(now);
            if !hand_over.turns.has_room(now) {
                break;
            }
            let connection = match hand_over.put_back.pop_front() {
                Some(connection) => connection,
                None => match accept4(
                    fd.as_raw_fd(),
                    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                ) {
                    Ok(fd) => match common::sys::adopt(fd) {
                        Some(connection) => connection,
                        None => break,
                    },
                    Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
                    Err(nix::Error::EAGAIN) => break,
                    // EMFILE, ENFILE, ENOMEM.
                    Err(_) => {
                        hand_over.turns.short(now);
                        break;
                    }
                },
            };
            let Some(worker) = hand_over.turns.next(now) else {
                hand_over.put_back.push_front(connection);
                break;
            };
            let seq = self.seq(worker);
            // A copy stays with us until the worker has said that it took it.
            let Ok(copy) = connection.try_clone() else {
                if let Some(hand_over) = self
                    .sockets
                    .get_mut(socket)
                    .and_then(|shared| shared.hand_over.as_mut())
                {
                    hand_over.put_back.push_front(connection);
                    hand_over.turns.give_back(worker);
                    hand_over.turns.short(now);
                }
                break;
            };
            if let Some(hand_over) = self
                .sockets
                .get_mut(socket)
                .and_then(|shared| shared.hand_over.as_mut())
            {
                hand_over.under_way.insert((worker, seq), connection);
            }
            let text = message::with_handle(HandleType::Net, &message::connection(seq, &key));
            self.send(worker, text, Some(Rc::new(copy)));
        }
        self.arm_socket(socket, now);
    }

    /// Put back connections, and workers that were full, get their next occasion.
    pub(crate) fn hand_over_all(&mut self, now: Instant) {
        if !(self.plan.balance == Balance::RoundRobin) {
            return;
        }
        let due: Vec<u64> = self
            .sockets
            .iter()
            .filter(|(_, shared)| {
                shared.deadline().is_some_and(|at| at <= now)
                    || shared.hand_over.as_ref().is_some_and(|hand_over| {
                        !hand_over.put_back.is_empty() && hand_over.turns.has_room(now)
                    })
            })
            .map(|(id, _)| id)
            .collect();
        due.into_iter().for_each(|id| self.hand_over(id, now));
    }

    pub(crate) fn arm_socket(&mut self, socket: u64, now: Instant) {
        let Some(shared) = self.sockets.get(socket) else {
            return;
        };
        let Some(hand_over) = shared.hand_over.as_ref() else {
            return;
        };
        let interest = if hand_over.turns.has_room(now) {
            Interest::Read
        } else {
            Interest::Nothing
        };
        self.events
            .set(&*shared.fd, Token::Socket(socket).number(), interest);
    }

    fn on_accepted(&mut self, id: u64, seq: u64, accepted: bool, now: Instant) {
        let mut found = None;
        for (socket, shared) in self.sockets.iter_mut() {
            let Some(hand_over) = shared.hand_over.as_mut() else {
                continue;
            };
            let Some(connection) = hand_over.under_way.remove(&(id, seq)) else {
                continue;
            };
            hand_over.turns.answered(id, accepted, now);
            if !accepted {
                hand_over.put_back.push_back(connection);
            }
            found = Some(socket);
            break;
        }
        if let Some(socket) = found {
            self.hand_over(socket, now);
        }
    }

    /// The worker had no descriptor free for the oldest connection under way to it: answers come in
    /// order, and carry no number.
    fn on_nack(&mut self, id: u64, now: Instant) {
        let oldest = self
            .sockets
            .iter()
            .filter_map(|(socket, shared)| {
                let hand_over = shared.hand_over.as_ref()?;
                let first = hand_over
                    .under_way
                    .keys()
                    .find(|(worker, _)| *worker == id)?;
                Some((first.1, socket))
            })
            .min();
        if let Some((seq, _)) = oldest {
            self.on_accepted(id, seq, false, now);
        }
    }

    // ---- npm, notify, ready ----

    pub(crate) fn on_rendezvous(&mut self, now: Instant) {
        loop {
            let Some(rendezvous) = self.rendezvous.as_mut() else {
                return;
            };
            let Some((fd, pid)) = rendezvous.accept(&self.events, now) else {
                return;
            };
            // Anybody may connect to an abstract socket; a script of a worker is its descendant.
            let owner = self
                .workers
                .values()
                .find(|worker| {
                    self.pool.stays(worker.id) && common::child::descends(pid, worker.child.pid())
                })
                .map(|worker| worker.id);
            let (Some(id), Ok(channel)) = (owner, Channel::new(fd)) else {
                continue;
            };
            self.close_channel(id);
            let added = self
                .events
                .add(&channel, Token::Channel(id).number(), Interest::Read);
            if let (Ok(()), Some(worker)) = (added, self.workers.get_mut(&id)) {
                worker.channel = Some(channel);
                worker.open_queries = 0;
            }
        }
    }

    pub(crate) fn on_notify(&mut self, now: Instant) {
        // With --watchdog the socket is there although something else shows who is ready.
        let counts = match self.plan.ready {
            Readiness::Found | Readiness::Told(Ready::Notify) => true,
            Readiness::Told(Ready::Listen | Ready::Fd(_) | Ready::Exec(_) | Ready::Alive(_)) => {
                false
            }
        };
        // A bounded turn: a worker that talks without end is not to keep us from the others.
        for _ in 0..1024 {
            let Some(notify) = self.notify.as_mut() else {
                return;
            };
            let Some(said) = notify.next(&self.events, now) else {
                return;
            };
            let own = |worker: &&mut Worker| worker.child.pid() == said.pid;
            let related = |worker: &&mut Worker| {
                // A helper that has ended is no descendant any more; its group may still tell.
                common::child::descends(said.pid, worker.child.pid())
                    || common::child::stat(said.pid)
                        .is_some_and(|stat| stat.group == worker.child.pid())
            };
            // Signs of life are frequent, and come from the worker itself: that needs no look at /proc.
            let id = match self.workers.values_mut().find(own) {
                Some(worker) => Some(worker.id),
                None => self.workers.values_mut().find(related).map(|one| one.id),
            };
            let Some(worker) = id.and_then(|id| self.workers.get_mut(&id)) else {
                continue;
            };
            worker.notified |= said.more;
            worker.shown |= said.ready && counts;
            let (id, watched) = (worker.id, worker.heard_by.is_some());
            match (said.alive, self.plan.watchdog) {
                (Some(Alive::Yes), Some(length)) if watched => worker.heard_by = Some(now + length),
                (Some(Alive::No), Some(_)) if watched => {
                    self.pool
                        .abort(id, "it sent WATCHDOG=trigger".to_owned(), now);
                    self.act(now);
                }
                (Some(Alive::Yes | Alive::No) | None, _) => {}
            }
        }
    }

    pub(crate) fn on_ready_fd(&mut self, id: u64) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Some(fd) = &worker.ready_fd else { return };
        let mut buffer = [0u8; 256];
        match nix::unistd::read(fd, &mut buffer) {
            Ok(count) if count > 0 => worker.shown |= buffer[..count].contains(&b'\n'),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            // Its end; or what cannot be read would wake us for ever, and the worker is not ready in time.
            Ok(_) | Err(_) => {
                self.events.remove(fd);
                worker.ready_fd = None;
            }
        }
    }
}
