//! Control sockets, both ends: one request line in, reply lines out, the last of them `OK text` or
//! `ERR CODE text`, where CODE is the exit status that goes with it. Then the connection is closed.

use crate::error::{Error, Result, describe};
use crate::exit::Exit;
use crate::file::{Identity, identity};
use crate::socket::{self, Address, UnixRights};
use crate::wait::{Interest, Loop, Rest, Wake};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, accept4, connect, getsockopt, recv,
    send, sockopt,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest request, in bytes.
pub const LONGEST: usize = 4096;
/// As many clients may be there at once.
pub const MOST_CLIENTS: usize = 32;
/// A client that sends no request, or does not read its answer, is closed after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nobody is let in for so long after the kernel could not let somebody in: short beside a client's patience,
/// long beside the microseconds of one more try.
pub const SHUT: Duration = Duration::from_millis(100);
/// When so much waits for a client, in bytes, it gets no further line and is closed.
const MOST_WAITING: usize = 1 << 20;

/// The last line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// What was asked for happened.
    Ok(String),
    /// It did not: the exit status for it, and why.
    Err(u8, String),
}

impl Reply {
    fn line(&self) -> String {
        match self {
            Reply::Ok(text) if text.is_empty() => "OK".to_owned(),
            Reply::Ok(text) => format!("OK {}", visible(text)),
            Reply::Err(code, text) => format!("ERR {code} {}", visible(text)),
        }
    }

    /// The reply that a line is, if it is a last one.
    #[must_use]
    pub fn parse(line: &str) -> Option<Reply> {
        if line == "OK" {
            return Some(Reply::Ok(String::new()));
        }
        if let Some(text) = line.strip_prefix("OK ") {
            return Some(Reply::Ok(text.to_owned()));
        }
        let rest = line.strip_prefix("ERR ")?;
        let (code, text) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Reply::Err(code.parse().ok()?, text.to_owned()))
    }
}

/// One line without control bytes, whatever a worker or a file wrote: it may end up on a terminal.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && letter != '\t' {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its request has not come.
    Asking,
    /// Its request is being worked on.
    Waiting,
    /// Its last line is queued.
    Leaving,
}

#[derive(Debug)]
struct Client {
    fd: OwnedFd,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// The last time that it sent or took something, or was first owed something.
    since: Instant,
}

impl Client {
    fn new(fd: OwnedFd, state: State, now: Instant) -> Client {
        Client {
            fd,
            state,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            since: now,
        }
    }

    fn owed(&self) -> usize {
        self.output.len() - self.sent
    }

    /// When patience with it ends; `None` while it waits for us.
    fn limit(&self) -> Option<Instant> {
        (self.state == State::Asking || self.owed() > 0).then(|| self.since + PATIENCE)
    }
}

/// The socket that is asked, and those who ask.
#[derive(Debug)]
pub struct Server {
    fd: OwnedFd,
    path: PathBuf,
    made: Option<Identity>,
    clients: BTreeMap<u64, Client>,
    last: u64,
    token: fn(u64) -> u64,
    /// Given up for a moment when no descriptor is left, so that a client can be turned away.
    spare: Option<File>,
    /// Nobody is let in for a moment; then the door is waited for again, with this token.
    shut: Rest,
    door: u64,
}

impl Server {
    /// Makes the socket at `path`, mode 0600. `token` gives the loop's token of a client.
    ///
    /// # Errors
    /// Somebody answers there (named, where /proc tells), the path is too long or cannot be written.
    pub fn open(path: &Path, token: fn(u64) -> u64) -> Result<Server> {
        let rights = UnixRights {
            mode: 0o600,
            owner: None,
        };
        let fd = socket::listen_unix(path, rights, 64).map_err(|why| {
            let mut text = describe(&why);
            let address = Address::Unix(path.to_owned());
            if why.raw_os_error() == Some(libc::EADDRINUSE) {
                if let Some((pid, command)) = socket::holder_of(&address) {
                    text = format!("{text} (held by pid {pid}, {command})");
                }
            }
            Error::new(&format!("make the control socket {}", path.display()), text)
        })?;
        Ok(Server {
            fd,
            path: path.to_owned(),
            made: identity(path).ok(),
            clients: BTreeMap::new(),
            last: 0,
            token,
            spare: spare(),
            shut: Rest::default(),
            door: 0,
        })
    }

    /// The one at `path` that the program before us in this very process had made.
    #[must_use]
    pub fn again(path: &Path, fd: OwnedFd, token: fn(u64) -> u64) -> Server {
        Server {
            fd,
            path: path.to_owned(),
            made: identity(path).ok(),
            clients: BTreeMap::new(),
            last: 0,
            token,
            spare: spare(),
            shut: Rest::default(),
            door: 0,
        }
    }

    /// A client's descriptor, for the program that takes our place.
    #[must_use]
    pub fn raw(&self, id: u64) -> Option<i32> {
        self.clients.get(&id).map(|client| client.fd.as_raw_fd())
    }

    /// The last line for a client of the program before us.
    pub fn answer_for(&mut self, events: &Loop, fd: OwnedFd, reply: &Reply, now: Instant) {
        self.last += 1;
        let id = self.last;
        if events.add(&fd, (self.token)(id), Interest::Nothing).is_ok() {
            self.clients
                .insert(id, Client::new(fd, State::Waiting, now));
            self.end(events, id, reply, now);
        }
    }

    /// Lets in whoever waits at the door, for which the loop waits with the token `door`. Where the kernel
    /// cannot let anybody in (ENOMEM, ENOBUFS; EMFILE with the spare one taken by somebody else), those who
    /// wait would wake us for ever: for a moment the door is not looked at.
    pub fn accept(&mut self, events: &Loop, door: u64, now: Instant) {
        // Lost where the whole system was short of files; without it the next shortage would spin.
        self.spare = self.spare.take().or_else(spare);
        for _ in 0..MOST_CLIENTS {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = match accept4(self.fd.as_raw_fd(), flags) {
                Ok(fd) => match crate::sys::adopt(fd) {
                    Some(fd) => fd,
                    None => return,
                },
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
                Err(nix::Error::EMFILE | nix::Error::ENFILE) if self.spare.take().is_some() => {
                    // Left in the queue it would wake us for ever.
                    match accept4(self.fd.as_raw_fd(), flags) {
                        Ok(fd) => {
                            let refused = crate::sys::adopt(fd);
                            turn_away(refused.as_ref(), "too many open files");
                        }
                        Err(nix::Error::EAGAIN) => {}
                        Err(_) => return self.shut(events, door, now),
                    }
                    self.spare = spare();
                    continue;
                }
                Err(nix::Error::EAGAIN) => return,
                Err(_) => return self.shut(events, door, now),
            };
            let uid = getsockopt(&fd, sockopt::PeerCredentials).map(|peer| peer.uid());
            if !uid.is_ok_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw()) {
                turn_away(Some(&fd), "only root and the user of this process may ask");
                continue;
            }
            if self.clients.len() >= MOST_CLIENTS {
                turn_away(Some(&fd), "too many clients; try again");
                continue;
            }
            self.last += 1;
            if events
                .add(&fd, (self.token)(self.last), Interest::Read)
                .is_err()
            {
                continue;
            }
            self.clients
                .insert(self.last, Client::new(fd, State::Asking, now));
        }
    }

    fn shut(&mut self, events: &Loop, door: u64, now: Instant) {
        self.door = door;
        self.shut.begin(events, &self.fd, SHUT, now);
    }

    /// A client can be read or written: its request, when it is complete.
    pub fn hear(&mut self, events: &Loop, id: u64, wake: Wake, now: Instant) -> Option<String> {
        let state = self.clients.get(&id)?.state;
        match state {
            State::Asking => self.read(events, id, now),
            State::Waiting | State::Leaving => {
                // Only a client that is gone can be read here.
                if wake.readable {
                    self.remove(events, id);
                } else {
                    self.flush(events, id, now);
                }
                None
            }
        }
    }

    fn read(&mut self, events: &Loop, id: u64, now: Instant) -> Option<String> {
        let client = self.clients.get_mut(&id)?;
        let mut buffer = [0u8; LONGEST + 1];
        let ended = loop {
            match recv(client.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => break true,
                Ok(count) => {
                    client.input.extend_from_slice(&buffer[..count]);
                    client.since = now;
                    break false;
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return None,
                Err(_) => {
                    self.remove(events, id);
                    return None;
                }
            }
        };
        let end = client.input.iter().position(|byte| *byte == b'\n');
        let length = match end {
            Some(end) => end,
            // The end of the input ends the line too.
            None if ended || client.input.len() > LONGEST => client.input.len(),
            None => return None,
        };
        if length == 0 && ended {
            self.remove(events, id);
            return None;
        }
        client.state = State::Waiting;
        client.since = now;
        let line = std::mem::take(&mut client.input);
        self.arm(events, id);
        if length > LONGEST {
            let why = format!("a request has at most {LONGEST} bytes");
            self.end(events, id, &Reply::Err(Exit::Usage.code(), why), now);
            return None;
        }
        match std::str::from_utf8(&line[..length]) {
            Ok(text) if !text.trim_end().chars().any(char::is_control) => {
                Some(text.trim().to_owned())
            }
            Ok(_) | Err(_) => {
                let why = "the request is no text".to_owned();
                self.end(events, id, &Reply::Err(Exit::Usage.code(), why), now);
                None
            }
        }
    }

    /// The client is still there.
    #[must_use]
    pub fn has(&self, id: u64) -> bool {
        self.clients.contains_key(&id)
    }

    /// Queues one line of an answer, or several that are separated by newlines. Without the client
    /// nothing happens.
    pub fn line(&mut self, events: &Loop, id: u64, text: &str, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.owed() > MOST_WAITING {
            self.remove(events, id);
            return;
        }
        if client.owed() == 0 {
            client.since = now;
        }
        for line in text.trim_end_matches('\n').split('\n') {
            client.output.extend_from_slice(visible(line).as_bytes());
            client.output.push(b'\n');
        }
        self.flush(events, id, now);
    }

    /// Queues the last line; the client is closed when it has read it.
    pub fn end(&mut self, events: &Loop, id: u64, reply: &Reply, now: Instant) {
        if let Some(client) = self.clients.get_mut(&id) {
            if client.owed() == 0 {
                client.since = now;
            }
            client.state = State::Leaving;
            client.output.extend_from_slice(reply.line().as_bytes());
            client.output.push(b'\n');
            self.flush(events, id, now);
        }
    }

    /// Writes what goes without waiting.
    fn flush(&mut self, events: &Loop, id: u64, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while client.owed() > 0 {
            match send(client.fd.as_raw_fd(), &client.output[client.sent..], flags) {
                Ok(count) => {
                    client.sent += count;
                    client.since = now;
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    self.arm(events, id);
                    return;
                }
                Err(_) => {
                    self.remove(events, id);
                    return;
                }
            }
        }
        client.output = Vec::new();
        client.sent = 0;
        if client.state == State::Leaving {
            self.remove(events, id);
        } else {
            self.arm(events, id);
        }
    }

    fn arm(&self, events: &Loop, id: u64) {
        if let Some(client) = self.clients.get(&id) {
            let interest = match client.state {
                State::Asking => Interest::Read,
                State::Waiting | State::Leaving if client.owed() > 0 => Interest::Write,
                State::Waiting | State::Leaving => Interest::Nothing,
            };
            events.set(&client.fd, (self.token)(id), interest);
        }
    }

    fn remove(&mut self, events: &Loop, id: u64) {
        if let Some(client) = self.clients.remove(&id) {
            // A socket that is closed with something unread in it resets the other end (unix(7)), which
            // may not have read its answer yet.
            let mut buffer = [0u8; LONGEST];
            for _ in 0..64 {
                match recv(client.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            events.remove(&client.fd);
        }
    }

    /// Closes those with whom patience is at its end, and opens a door that was shut for a moment.
    pub fn expire(&mut self, events: &Loop, now: Instant) {
        self.shut
            .end_if_due(events, &self.fd, self.door, Interest::Read, now);
        let over: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.limit().is_some_and(|limit| limit <= now))
            .map(|(id, _)| *id)
            .collect();
        over.into_iter().for_each(|id| self.remove(events, id));
    }

    /// When [`Server::expire`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let limits = self.clients.values().filter_map(Client::limit);
        limits.chain(self.shut.deadline()).min()
    }

    /// Nobody can come in any more: the path is free for the next one.
    pub fn unlink(&mut self) {
        let made = self.made.take();
        if made.is_some() && identity(&self.path).ok() == made {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Gives those who are owed something up to `patience` to read it; for the end of the program.
    pub fn finish(&mut self, events: &Loop, patience: Duration) {
        let deadline = Instant::now() + patience;
        while let Some(id) = self
            .clients
            .iter()
            .find(|(_, client)| client.owed() > 0)
            .map(|(id, _)| *id)
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if let Some(client) = self.clients.get(&id) {
                let _ = poll(
                    &mut [PollFd::new(client.fd.as_fd(), PollFlags::POLLOUT)],
                    PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX),
                );
            }
            self.flush(events, id, Instant::now());
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// A descriptor to give up when there is no other one.
#[must_use]
pub fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn turn_away(fd: Option<&OwnedFd>, why: &str) {
    if let Some(fd) = fd {
        let line = Reply::Err(Exit::Fault.code(), why.to_owned()).line() + "\n";
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // It fits into an empty socket buffer, or the client has gone.
        let _ = send(fd.as_raw_fd(), line.as_bytes(), flags);
    }
}

/// Asks the server at `path`; `each` gets every reply line before the last, and says whether it wants
/// more. `None` when it did not.
///
/// # Errors
/// Nobody answers there or the answer breaks off (125); `timeout` is over (124).
pub fn ask(
    path: &Path,
    request: &str,
    timeout: Option<Duration>,
    each: &mut dyn FnMut(&str) -> bool,
) -> Result<Option<Reply>> {
    let doing = format!("ask {}", path.display());
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let too_late = || {
        let length = crate::time::say(timeout.unwrap_or_default());
        Error::new(&doing, format!("no answer within {length}")).with_exit(Exit::TimedOut)
    };
    let wait = |fd: BorrowedFd<'_>, flags: PollFlags, most: Duration| -> bool {
        let left = match deadline {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(most),
            None => most,
        };
        let timeout = PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(fd, flags)], timeout);
        deadline.is_none_or(|deadline| Instant::now() < deadline)
    };
    let hour = Duration::from_secs(3600);
    let failed = |why: nix::Error| Error::new(&doing, describe(&why.into()));

    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(failed)?;
    let address = UnixAddr::new(path).map_err(failed)?;
    loop {
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(nix::Error::EINTR) => {}
            // The queue is full (unix(7)); no event tells when it is not.
            Err(nix::Error::EAGAIN) => {
                if !wait(fd.as_fd(), PollFlags::empty(), Duration::from_millis(20)) {
                    return Err(too_late());
                }
            }
            Err(why @ (nix::Error::ENOENT | nix::Error::ECONNREFUSED)) => {
                return Err(Error::new(
                    &doing,
                    format!("nobody answers there ({})", describe(&why.into())),
                ));
            }
            Err(why) => return Err(failed(why)),
        }
    }
    let line = format!("{request}\n");
    let mut sent = 0;
    while sent < line.len() {
        match send(
            fd.as_raw_fd(),
            &line.as_bytes()[sent..],
            MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(count) => sent += count,
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => {
                if !wait(fd.as_fd(), PollFlags::POLLOUT, hour) {
                    return Err(too_late());
                }
            }
            // It may have answered already, and closed: that it does not want us.
            Err(_) => break,
        }
    }
    let mut input = Vec::new();
    let mut buffer = [0u8; 16 << 10];
    loop {
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Err(Error::new(&doing, "it closed before it had answered")),
            Ok(count) => input.extend_from_slice(&buffer[..count]),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => {
                if !wait(fd.as_fd(), PollFlags::POLLIN, hour) {
                    return Err(too_late());
                }
            }
            Err(why) => return Err(failed(why)),
        }
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&input[..end]).into_owned();
            input.drain(..=end);
            match Reply::parse(&line) {
                Some(reply) => return Ok(Some(reply)),
                None if each(&line) => {}
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const DOOR: u64 = 0;

    struct Set {
        server: Server,
        events: Loop,
        directory: PathBuf,
    }

    impl Set {
        fn new(name: &str) -> Set {
            let directory =
                std::env::temp_dir().join(format!("control-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let server = Server::open(&directory.join("s"), |id| id).unwrap();
            let events = Loop::new().unwrap();
            events.add(&server, DOOR, Interest::Read).unwrap();
            Set {
                server,
                events,
                directory,
            }
        }

        fn client(&self) -> UnixStream {
            UnixStream::connect(self.directory.join("s")).unwrap()
        }

        /// Serves what is there; the requests that came.
        fn turn(&mut self) -> Vec<(u64, String)> {
            let mut heard = Vec::new();
            let mut wakes = Vec::new();
            let now = Instant::now();
            self.events
                .wait(Some(now + Duration::from_millis(50)), &mut wakes)
                .unwrap();
            for wake in wakes {
                if wake.token == DOOR {
                    self.server.accept(&self.events, DOOR, now);
                } else if let Some(line) = self.server.hear(&self.events, wake.token, wake, now) {
                    heard.push((wake.token, line));
                }
            }
            heard
        }

        fn request(&mut self) -> (u64, String) {
            for _ in 0..100 {
                if let Some(one) = self.turn().pop() {
                    return one;
                }
            }
            panic!("no request came");
        }
    }

    impl Drop for Set {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    fn all_of(mut client: UnixStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_question_its_lines_and_the_last_one() {
        let mut set = Set::new("plain");
        let mut client = set.client();
        client.write_all(b"  status json \nmore").unwrap();
        let (id, line) = set.request();
        assert_eq!(line, "status json");
        let now = Instant::now();
        set.server.line(&set.events, id, "a\x1b[31m", now);
        set.server
            .end(&set.events, id, &Reply::Ok("done".to_owned()), now);
        assert!(!set.server.has(id));
        assert_eq!(all_of(client), "a\\u{1b}[31m\nOK done\n");
    }

    #[test]
    fn the_end_of_the_input_ends_a_line() {
        let mut set = Set::new("eof");
        let mut client = set.client();
        client.write_all(b"help").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (id, line) = set.request();
        assert_eq!(line, "help");
        // Half closed, it wakes nobody while it waits.
        assert!(set.turn().is_empty());
        assert!(set.server.has(id));
        set.server.end(
            &set.events,
            id,
            &Reply::Err(4, "no".to_owned()),
            Instant::now(),
        );
        assert_eq!(all_of(client), "ERR 4 no\n");
    }

    #[test]
    fn too_long_binary_and_silent() {
        let mut set = Set::new("bad");
        let mut long = set.client();
        long.write_all(&[b'x'; LONGEST + 1]).unwrap();
        let mut binary = set.client();
        binary.write_all(b"\xff\xfe\n").unwrap();
        let mut control = set.client();
        control.write_all(b"a\x07b\n").unwrap();
        let silent = set.client();
        for _ in 0..6 {
            assert!(set.turn().is_empty());
        }
        assert!(all_of(long).starts_with("ERR 2 "));
        assert!(all_of(binary).starts_with("ERR 2 "));
        assert!(all_of(control).starts_with("ERR 2 "));
        let limit = set.server.deadline().unwrap();
        set.server
            .expire(&set.events, limit - Duration::from_millis(1));
        assert!(set.server.deadline().is_some());
        set.server.expire(&set.events, limit);
        assert_eq!(set.server.deadline(), None);
        assert_eq!(all_of(silent), "");
    }

    #[test]
    fn one_too_many_is_turned_away_and_one_that_reads_nothing_is_closed() {
        let mut set = Set::new("many");
        let mut clients: Vec<_> = (0..MOST_CLIENTS).map(|_| set.client()).collect();
        for _ in 0..4 {
            set.turn();
        }
        let refused = set.client();
        set.turn();
        assert!(all_of(refused).starts_with("ERR 125 "));
        clients[0].write_all(b"events\n").unwrap();
        let (id, _) = set.request();
        let line = "x".repeat(1 << 16);
        for _ in 0..40 {
            set.server.line(&set.events, id, &line, Instant::now());
        }
        assert!(!set.server.has(id), "2.5 MiB wait for nobody");
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut set = Set::new("gone");
        let mut client = set.client();
        client.write_all(b"reload\n").unwrap();
        let (id, _) = set.request();
        drop(client);
        set.turn();
        assert!(!set.server.has(id));
    }

    #[test]
    fn both_ends() {
        let mut set = Set::new("both");
        let path = set.directory.join("s");
        let asking = std::thread::spawn(move || {
            let mut lines = Vec::new();
            let reply = ask(&path, "ping", Some(Duration::from_secs(20)), &mut |line| {
                lines.push(line.to_owned());
                true
            });
            (reply, lines)
        });
        let (id, line) = set.request();
        assert_eq!(line, "ping");
        let now = Instant::now();
        set.server.line(&set.events, id, "one\ntwo", now);
        set.server.end(
            &set.events,
            id,
            &Reply::Err(3, "other news".to_owned()),
            now,
        );
        let (reply, lines) = asking.join().unwrap();
        assert_eq!(reply, Ok(Some(Reply::Err(3, "other news".to_owned()))));
        assert_eq!(lines, ["one", "two"]);
        let path = set.directory.join("s");
        let late = ask(&path, "ping", Some(Duration::from_millis(20)), &mut |_| {
            true
        })
        .unwrap_err();
        assert_eq!(late.exit, Exit::TimedOut);
        let nobody = ask(&path.with_extension("x"), "ping", None, &mut |_| true).unwrap_err();
        assert_eq!(nobody.exit, Exit::Fault);
    }

    #[test]
    fn a_live_one_is_not_replaced_and_it_goes_with_its_owner() {
        let set = Set::new("twice");
        let path = set.directory.join("s");
        let second = Server::open(&path, |id| id).unwrap_err();
        assert!(
            second
                .message
                .contains(&format!("pid {}", std::process::id())),
            "{second}"
        );
        drop(set);
        assert!(!path.exists());
    }

    proptest! {
        #[test]
        fn last_lines_are_read_as_they_were_written(code in 1u8.., text in "\\PC{0,40}") {
            let text = text.trim().to_owned();
            for reply in [Reply::Ok(text.clone()), Reply::Err(code, text.clone())] {
                prop_assert_eq!(Reply::parse(&reply.line()), Some(reply));
            }
        }
    }
}
