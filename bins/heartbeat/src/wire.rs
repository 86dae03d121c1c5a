//! One connection of one check: a non-blocking socket, and one time limit for all that is done with it.

use crate::outcome::{Failure, Reason, short, shown};
use crate::url::Endpoint;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getsockopt, shutdown,
    socket, sockopt,
};
use nix::sys::time::TimeSpec;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A wake-up that much after the deadline is our own starvation (edge case 23 of the design).
pub const LATE: Duration = Duration::from_secs(2);
/// A full backlog of a unix socket answers EAGAIN at once, and nothing tells when there is room: asked
/// again so often.
const AGAIN: Duration = Duration::from_millis(10);
/// An address that does not answer is given that much time for itself before the next one is tried beside
/// it (RFC 8305 recommends 250 ms).
const STAGGER: Duration = Duration::from_millis(250);
/// Modules of the name service switch are other people's code.
const RESOLVER_STACK: usize = 512 << 10;
/// How much of what came first is kept for the message.
const KEPT: usize = 33;
/// A server that was told `Connection: close` is given so long to close first, so that the waiting state
/// of TCP (TIME_WAIT) is on its side, which has one port, and not on ours.
const LINGER: Duration = Duration::from_millis(20);

/// `-4`, `-6`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Both.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Family {
    fn takes(self, address: &SocketAddr) -> bool {
        match self {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        }
    }
}

/// How far a check has got: for the message of a timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Its name is looked up.
    #[default]
    Name,
    /// No connection yet.
    Connect,
    /// TLS is negotiated.
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    Tls,
    /// Connected; nothing has come.
    Silent,
    /// Something came, but no whole head.
    Head,
    /// The head came.
    Body,
}

/// What is known of one check while it runs, whoever of us found it out.
#[derive(Debug, Default)]
pub struct Facts {
    /// How far it got.
    pub phase: Phase,
    /// Who answered.
    pub address: Option<String>,
    /// The first bytes that came.
    pub first: Vec<u8>,
    /// Bytes that came.
    pub received: u64,
    /// The first failure of the connection.
    pub fault: Option<Failure>,
    /// When the peer's certificate ends, since 1970.
    pub cert_end: Option<Duration>,
    /// The peer has closed its side.
    pub eof: bool,
    /// The socket, when it is not needed any more.
    pub spent: Option<OwnedFd>,
    /// We had no descriptor or memory.
    pub ours: Option<String>,
}

/// One check's time and facts, shared by all layers.
#[derive(Clone, Debug)]
pub struct Run {
    /// When it began.
    pub start: Instant,
    /// For all of it.
    pub limit: Duration,
    facts: Arc<Mutex<Facts>>,
}

impl Run {
    /// Begins now.
    #[must_use]
    pub fn new(limit: Duration) -> Run {
        Run {
            start: Instant::now(),
            limit,
            facts: Arc::default(),
        }
    }

    /// The same one, for the thread that makes the check: its time begins now.
    #[must_use]
    pub fn begun(run: Run) -> Run {
        Run {
            start: Instant::now(),
            ..run
        }
    }

    /// Its facts.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time that is left; `None`: none.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.limit
            .checked_sub(self.start.elapsed())
            .filter(|left| !left.is_zero())
    }

    /// The time limit has passed.
    #[must_use]
    pub fn timed_out(&self) -> Failure {
        let elapsed = self.start.elapsed();
        let phase = self.phase();
        let mut failure = Failure::new(
            Reason::Timeout,
            format!("after {} ({phase})", short(self.limit)),
        );
        failure.late = elapsed > self.limit + LATE;
        failure
    }

    /// How far it has got, in words.
    #[must_use]
    pub fn phase(&self) -> String {
        // Asked by the loop too, which must not wait for a thread that hangs.
        let Ok(facts) = self.facts.try_lock() else {
            return "nobody knows where".to_owned();
        };
        match facts.phase {
            Phase::Name => "the name is still looked up".to_owned(),
            Phase::Connect => "no connection".to_owned(),
            Phase::Tls => "connected, no TLS".to_owned(),
            Phase::Silent => "connected, no reply".to_owned(),
            Phase::Head => format!("{} bytes, no whole reply", facts.received),
            Phase::Body => format!("{} bytes, the reply goes on", facts.received),
        }
    }

    /// The time limit has passed by far, and whoever makes the check has not come back.
    #[must_use]
    pub fn hangs(&self) -> Failure {
        let phase = self.phase();
        Failure::new(
            Reason::Timeout,
            format!("after {} ({phase}; its thread hangs)", short(self.limit)),
        )
    }

    /// Keeps the first failure, and makes an I/O error of it, which the layers above pass on.
    pub fn fail(&self, failure: Failure) -> io::Error {
        let text = failure.say();
        self.facts().fault.get_or_insert(failure);
        io::Error::other(text)
    }

    fn fail_timeout(&self) -> io::Error {
        let failure = self.timed_out();
        self.fail(failure)
    }

    /// Our own want: of descriptors, of memory.
    fn fail_ours(&self, doing: &str, why: nix::Error) -> io::Error {
        let text = format!("cannot {doing}: {}", common::error::describe(&why.into()));
        self.facts().ours.get_or_insert(text.clone());
        io::Error::other(text)
    }

    /// Waits for one of the descriptors, or `pause`, within the limit. True: one is ready.
    fn wait(&self, fds: &mut [PollFd<'_>], pause: Option<Duration>) -> io::Result<bool> {
        let until = pause.map(|pause| Instant::now() + pause);
        loop {
            let Some(left) = self.left() else {
                return Err(self.fail_timeout());
            };
            let pause = until.map(|until| until.saturating_duration_since(Instant::now()));
            if pause.is_some_and(|pause| pause.is_zero()) {
                return Ok(false);
            }
            // Not rounded up: what comes after the limit has not come in time. ppoll(2), which is finer,
            // begins anew with what was left when the process was stopped; poll(2) knows its end.
            let time = pause.map_or(left, |pause| pause.min(left));
            let ready = match i32::try_from(time.as_millis()).unwrap_or(i32::MAX) {
                0 => ppoll(fds, Some(TimeSpec::from_duration(time)), None),
                ms => poll(fds, PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)),
            };
            match ready {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(why) => return Err(self.fail_ours("wait for a socket", why)),
            }
        }
    }
}

/// Where the addresses of a name come from: getaddrinfo(3) cannot be called off, so it has a thread, of
/// which there is one at most, however long DNS hangs.
#[derive(Clone, Debug, Default)]
pub struct Resolver(Arc<(Mutex<bool>, Condvar)>);

type Found = Result<Vec<SocketAddr>, String>;

impl Resolver {
    fn look_up(&self, name: &str, port: u16, run: &Run) -> Result<Vec<SocketAddr>, Failure> {
        use std::net::ToSocketAddrs;
        let busy = || {
            let mut failure = run.timed_out();
            failure.reason = Reason::Dns;
            failure.detail = format!("{name} is not resolved within {}", short(run.limit));
            failure
        };
        {
            let (flag, freed) = &*self.0;
            let mut taken = flag.lock().unwrap_or_else(PoisonError::into_inner);
            while *taken {
                let Some(left) = run.left() else {
                    let mut failure = busy();
                    failure.detail = format!("{name}: the look-up before still hangs");
                    return Err(failure);
                };
                taken = freed
                    .wait_timeout(taken, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            *taken = true;
        }
        let (answer, answered) = std::sync::mpsc::sync_channel::<Found>(1);
        let (slot, owned) = (self.clone(), name.to_owned());
        let thread = std::thread::Builder::new()
            .name("resolver".to_owned())
            .stack_size(RESOLVER_STACK)
            .spawn(move || {
                let found = (owned.as_str(), port)
                    .to_socket_addrs()
                    .map(Iterator::collect)
                    .map_err(|why| resolver_words(&why));
                // Nobody may wait for it any more.
                let _ = answer.send(found);
                slot.release();
            });
        if let Err(why) = thread {
            self.release();
            run.facts().ours = Some(format!(
                "cannot start a thread: {}",
                common::error::describe(&why)
            ));
            return Err(Failure::new(Reason::Dns, "no look-up"));
        }
        match answered.recv_timeout(run.left().unwrap_or_default()) {
            Ok(Ok(found)) if !found.is_empty() => Ok(found),
            Ok(Ok(_)) => Err(Failure::new(Reason::Dns, format!("{name} has no address"))),
            Ok(Err(why)) => Err(Failure::new(Reason::Dns, format!("{name}: {why}"))),
            Err(_) => Err(busy()),
        }
    }

    fn release(&self) {
        let (flag, freed) = &*self.0;
        *flag.lock().unwrap_or_else(PoisonError::into_inner) = false;
        freed.notify_one();
    }
}

/// getaddrinfo's message without the library's preface.
fn resolver_words(why: &io::Error) -> String {
    let text = why.to_string();
    let text = text
        .strip_prefix("failed to lookup address information: ")
        .unwrap_or(&text);
    text.to_lowercase()
}

/// A connected socket.
#[derive(Debug)]
pub struct Wire {
    fd: Option<OwnedFd>,
    run: Run,
    tcp: bool,
}

impl Wire {
    /// Connects, within the limit.
    ///
    /// # Errors
    /// The failure stands among the run's facts.
    pub fn connect(
        endpoint: &Endpoint,
        family: Family,
        resolver: &Resolver,
        run: &Run,
    ) -> io::Result<Wire> {
        let (fd, address) = match endpoint {
            Endpoint::Unix(path) => (connect_unix(path, run)?, unix_name(path)),
            Endpoint::Localhost(_) | Endpoint::Literal(_) | Endpoint::Name(..) => {
                let found = match endpoint {
                    Endpoint::Localhost(port) => vec![
                        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), *port),
                        SocketAddr::new(Ipv6Addr::LOCALHOST.into(), *port),
                    ],
                    Endpoint::Literal(address) => vec![*address],
                    Endpoint::Name(name, port) => resolver
                        .look_up(name, *port, run)
                        .map_err(|failure| run.fail(failure))?,
                    Endpoint::Unix(_) => Vec::new(),
                };
                let found: Vec<SocketAddr> = found
                    .into_iter()
                    .filter(|address| family.takes(address))
                    .collect();
                let (fd, address) = connect_any(&found, run)?;
                (fd, address.to_string())
            }
        };
        let mut facts = run.facts();
        facts.phase = Phase::Silent;
        facts.address = Some(address);
        drop(facts);
        Ok(Wire {
            fd: Some(fd),
            run: run.clone(),
            tcp: !matches!(endpoint, Endpoint::Unix(_)),
        })
    }

    /// Its time and facts.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    fn broken(&self, why: nix::Error) -> io::Error {
        let failure = match why {
            nix::Error::ECONNRESET | nix::Error::EPIPE | nix::Error::ECONNABORTED => {
                let received = self.run.facts().received;
                Failure::new(Reason::Reset, format!("after {received} bytes"))
            }
            nix::Error::ETIMEDOUT | nix::Error::EHOSTUNREACH | nix::Error::ENETUNREACH => {
                Failure::new(Reason::Reset, common::error::describe(&why.into()))
            }
            why => return self.run.fail_ours("use a socket", why),
        };
        self.run.fail(failure)
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(fd) = &self.fd else { return Ok(0) };
        loop {
            // What was sent before the limit but is read after it did not come in time.
            if self.run.left().is_none() {
                return Err(self.run.fail_timeout());
            }
            match nix::unistd::read(fd, buffer) {
                Ok(count) => {
                    let mut facts = self.run.facts();
                    facts.eof |= count == 0;
                    facts.received += count as u64;
                    let room = KEPT - facts.first.len().min(KEPT);
                    let kept = &buffer[..count.min(room)];
                    facts.first.extend_from_slice(kept);
                    if count > 0 && facts.phase == Phase::Silent {
                        facts.phase = Phase::Head;
                    }
                    return Ok(count);
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                    self.run.wait(&mut asked, None)?;
                }
                Err(why) => return Err(self.broken(why)),
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(fd) = &self.fd else {
            return Err(self.broken(nix::Error::EPIPE));
        };
        loop {
            let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
            match nix::sys::socket::send(fd.as_raw_fd(), bytes, flags) {
                Ok(count) => return Ok(count),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                    self.run.wait(&mut asked, None)?;
                }
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => {
                    // The answer may have come before it closed: reading tells.
                    return Ok(bytes.len());
                }
                Err(why) => return Err(self.broken(why)),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            if self.tcp {
                // Closed when the verdict stands: see `part`.
                self.run.facts().spent = Some(fd);
            }
        }
    }
}

/// Parts from the server as politely as time allows, after the verdict. One that has not said all is told
/// by a half-close first, so that its application sees an end and no error.
pub fn part(run: &Run) {
    let (fd, eof) = {
        let mut facts = run.facts();
        (facts.spent.take(), facts.eof)
    };
    let Some(fd) = fd else { return };
    if eof {
        return;
    }
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let end = ppoll(&mut asked, Some(TimeSpec::from_duration(LINGER)), None);
    let mut buffer = [0u8; 512];
    let closed = end == Ok(1) && nix::unistd::read(&fd, &mut buffer) == Ok(0);
    if !closed {
        let _ = shutdown(fd.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    }
}

fn unix_name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

/// The address of a path, or `@` and an abstract name.
///
/// # Errors
/// Over 107 bytes.
pub fn unix_address(path: &[u8]) -> nix::Result<UnixAddr> {
    match path {
        [b'@', name @ ..] => UnixAddr::new_abstract(name),
        path => UnixAddr::new(path),
    }
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

fn connect_unix(path: &[u8], run: &Run) -> io::Result<OwnedFd> {
    run.facts().phase = Phase::Connect;
    let address = unix_address(path).map_err(|why| run.fail_ours("use a path", why))?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)
        .map_err(|why| run.fail_ours("make a socket", why))?;
    loop {
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(fd),
            Err(nix::Error::EAGAIN) => {
                run.wait(&mut [], Some(AGAIN))?;
            }
            Err(nix::Error::EINTR) => {}
            Err(why @ (nix::Error::ECONNREFUSED | nix::Error::ENOENT | nix::Error::EACCES)) => {
                let words = common::error::describe(&why.into());
                return Err(run.fail(Failure::new(Reason::Refused, words)));
            }
            Err(why) => {
                let words = common::error::describe(&why.into());
                return Err(run.fail(Failure::new(Reason::Refused, words)));
            }
        }
    }
}

/// Connects to the first that answers: one after the other, an earlier one going on beside the later.
fn connect_any(addresses: &[SocketAddr], run: &Run) -> io::Result<(OwnedFd, SocketAddr)> {
    run.facts().phase = Phase::Connect;
    if addresses.is_empty() {
        return Err(run.fail(Failure::new(Reason::Dns, "no address of that family")));
    }
    // Each has its share of the time, if that is less.
    let share = run.limit / (addresses.len() as u32 + 1);
    let mut pending: Vec<(OwnedFd, SocketAddr)> = Vec::new();
    let mut refusal: Option<(SocketAddr, nix::Error)> = None;
    let mut waiting = addresses.iter();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            match begin(address) {
                Ok((fd, true)) => return Ok((fd, *address)),
                Ok((fd, false)) => pending.push((fd, *address)),
                Err(why) if is_ours(why) => return Err(run.fail_ours("make a socket", why)),
                Err(why) => {
                    refusal.get_or_insert((*address, why));
                    continue;
                }
            }
        }
        if pending.is_empty() {
            // The first refusal: 127.0.0.1 is what most servers listen on.
            let (address, why) = refusal.unwrap_or((addresses[0], nix::Error::ECONNREFUSED));
            let words = common::error::describe(&why.into());
            let detail = if addresses.len() > 1 {
                format!("{words} ({address} and {} more)", addresses.len() - 1)
            } else {
                format!("{words} ({address})")
            };
            return Err(run.fail(Failure::new(Reason::Refused, detail)));
        }
        let more = waiting.len() > 0;
        let pause = more.then_some(STAGGER.min(share));
        let ready: Vec<bool> = {
            let mut asked: Vec<PollFd<'_>> = pending
                .iter()
                .map(|(fd, _)| PollFd::new(fd.as_fd(), PollFlags::POLLOUT))
                .collect();
            run.wait(&mut asked, pause)?;
            asked
                .iter()
                .map(|asked| asked.any().unwrap_or(true))
                .collect()
        };
        let mut open = Vec::new();
        for ((fd, address), ready) in pending.into_iter().zip(ready) {
            if !ready {
                open.push((fd, address));
                continue;
            }
            match getsockopt(&fd, sockopt::SocketError) {
                Ok(0) => return Ok((fd, address)),
                Ok(errno) => {
                    refusal.get_or_insert((address, nix::Error::from_raw(errno)));
                }
                Err(why) => return Err(run.fail_ours("ask a socket", why)),
            }
        }
        pending = open;
    }
}

fn is_ours(why: nix::Error) -> bool {
    matches!(
        why,
        nix::Error::EMFILE | nix::Error::ENFILE | nix::Error::ENOMEM | nix::Error::ENOBUFS
    )
}

/// Begins to connect; true: it is done.
fn begin(address: &SocketAddr) -> nix::Result<(OwnedFd, bool)> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let fd = socket(family, SockType::Stream, FLAGS, None)?;
    // A request is one write: nothing to be gathered for.
    let _ = nix::sys::socket::setsockopt(&fd, sockopt::TcpNoDelay, &true);
    let to = SockaddrStorage::from(*address);
    let mut done = connect(fd.as_raw_fd(), &to);
    if done == Err(nix::Error::EINPROGRESS) && address.ip().is_loopback() {
        // This host has answered itself by now, and says so when it is asked again.
        done = connect(fd.as_raw_fd(), &to);
    }
    match done {
        Ok(()) => Ok((fd, true)),
        Err(nix::Error::EINPROGRESS | nix::Error::EALREADY | nix::Error::EINTR) => Ok((fd, false)),
        Err(why) => Err(why),
    }
}

/// What a dialogue says, and must hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// `--send`
    pub send: Vec<u8>,
    /// `--receive`
    pub receive: Vec<u8>,
    /// `--max-body`
    pub most: usize,
}

/// Connects, says, hears.
///
/// # Errors
/// What failed.
pub fn talk(wire: &mut Wire, dialogue: &Dialogue) -> Result<(), Failure> {
    let fault = |wire: &Wire| {
        let fault = wire.run().facts().fault.take();
        fault.unwrap_or_else(|| Failure::new(Reason::Reset, ""))
    };
    wire.write_all(&dialogue.send).map_err(|_| fault(wire))?;
    if dialogue.receive.is_empty() {
        return Ok(());
    }
    let mut heard: Vec<u8> = Vec::new();
    let mut buffer = [0u8; 4096];
    let wanted = shown(&dialogue.receive);
    loop {
        let count = match wire.read(&mut buffer) {
            Ok(count) => count,
            Err(_) => {
                let mut failure = fault(wire);
                // Something came, and that was not it.
                if failure.reason == Reason::Timeout && !heard.is_empty() && !failure.late {
                    failure.reason = Reason::Body;
                    let heard = shown(&heard);
                    let limit = short(wire.run().limit);
                    failure.detail = format!("{heard} instead of {wanted} within {limit}");
                }
                return Err(failure);
            }
        };
        if count == 0 && heard.is_empty() {
            return Err(Failure::new(Reason::Eof, "closed without an answer"));
        }
        heard.extend_from_slice(&buffer[..count]);
        let found = heard
            .windows(dialogue.receive.len())
            .any(|part| part == dialogue.receive);
        if found {
            return Ok(());
        }
        if count == 0 || heard.len() >= dialogue.most {
            let detail = format!("{} instead of {wanted}", shown(&heard));
            return Err(Failure::new(Reason::Body, detail));
        }
    }
}
