//! A small load client: a thread for each connection, each failed request counted by its kind.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const CONNECTIONS: u64 = 32;
/// How long an answer is waited for. /slow takes 300 ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// No answer is longer, in bytes. nginx is slow by many of them.
const LONGEST: usize = 32 << 10;

#[derive(Clone, Copy, PartialEq)]
pub enum Shape {
    /// One connection after another goes on for as long as the server lets it.
    KeepAlive,
    /// A connection for each request.
    Fresh,
    /// As `Fresh`, and each request is for /slow: it is under way for long.
    Slow,
}

#[derive(Clone, Copy)]
enum Failure {
    Refused,
    Reset,
    Empty,
    Timeout,
    Wrong,
    Other,
}

const NAMES: [&str; 6] = [
    "refused",
    "reset",
    "empty",
    "timeout",
    "wrong body",
    "other",
];

#[derive(Clone, Default)]
pub struct Count {
    pub requests: u64,
    /// By the pid that answered.
    pub answers: BTreeMap<i32, u64>,
    /// Requests after which the connection went on.
    pub kept: u64,
    failures: [u64; NAMES.len()],
}

impl Count {
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.kept += other.kept;
        for (pid, more) in &other.answers {
            *self.answers.entry(*pid).or_default() += more;
        }
        for (sum, more) in self.failures.iter_mut().zip(other.failures) {
            *sum += more;
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = (NAMES.iter().zip(self.failures))
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        f.write_str(&kinds.join(", "))
    }
}

fn kind_of(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
            Failure::Reset
        }
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::Timeout,
        _ => Failure::Other,
    }
}

struct Client {
    port: u16,
    stream: Option<TcpStream>,
}

impl Client {
    fn connect(port: u16) -> std::io::Result<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// One request, never tried again: the pid that answered, and whether the connection goes on.
    fn request(&mut self, path: &str, keep: bool) -> Result<(i32, bool), Failure> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => Self::connect(self.port).map_err(|error| kind_of(&error))?,
        };
        let connection = if keep { "keep-alive" } else { "close" };
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .map_err(|error| kind_of(&error))?;
        let (pid, goes_on) = answer(&mut stream)?;
        let goes_on = keep && goes_on;
        if goes_on {
            self.stream = Some(stream);
        } else {
            // The server closes first, and has the TIME_WAIT: the client's ports last.
            let _ = stream.read(&mut [0; 16]);
        }
        Ok((pid, goes_on))
    }
}

/// Reads one answer: the pid in it, and whether the connection goes on after it.
fn answer(stream: &mut TcpStream) -> Result<(i32, bool), Failure> {
    let mut buffer = [0; LONGEST];
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            return Err(Failure::Wrong);
        }
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(Failure::Empty),
            Ok(more) => filled += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(kind_of(&error)),
        }
        let got = &buffer[..filled];
        let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = std::str::from_utf8(&got[..end]).map_err(|_| Failure::Wrong)?;
        let header = |wanted: &str| {
            head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim())
            })
        };
        let length: usize = header("content-length")
            .and_then(|value| value.parse().ok())
            .ok_or(Failure::Wrong)?;
        let body = &got[end + 4..];
        if body.len() < length {
            continue;
        }
        let right = has_status(head, "200") && body.len() == length;
        let goes_on =
            !header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let pid = who(body).filter(|_| right).ok_or(Failure::Wrong)?;
        return Ok((pid, goes_on));
    }
}

fn has_status(head: &str, wanted: &str) -> bool {
    head.starts_with("HTTP/1.") && head.split(' ').nth(1) == Some(wanted)
}

/// The pid in `hello PID ...`.
fn who(body: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(body).ok()?;
    let rest = text.strip_prefix("hello ")?.strip_suffix('\n')?;
    rest.split(' ').next()?.parse().ok()
}

/// Whether the app answers at all.
pub fn answers(port: u16) -> bool {
    let mut client = Client { port, stream: None };
    client.request("/", false).is_ok()
}

/// Load that goes on until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Seen,
    began: Instant,
    threads: Vec<JoinHandle<Count>>,
}

/// The pids that have answered so far.
type Seen = Arc<Mutex<BTreeSet<i32>>>;

impl Load {
    /// As much as the server can take.
    pub fn start(port: u16, shape: Shape) -> Self {
        Self::paced(port, shape, CONNECTIONS, Duration::ZERO)
    }

    /// `pause` between the requests of a connection.
    pub fn paced(port: u16, shape: Shape, connections: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Seen::default();
        let one = |_| {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            std::thread::spawn(move || connection(port, shape, pause, &stop, &seen))
        };
        Self {
            began: Instant::now(),
            threads: (0..connections).map(one).collect(),
            stop,
            seen,
        }
    }

    /// The pids that have answered so far.
    pub fn seen(&self) -> BTreeSet<i32> {
        self.seen.lock().unwrap().clone()
    }

    /// The counts, and the requests per second that were answered.
    pub fn finish(mut self) -> (Count, f64) {
        let took = self.began.elapsed();
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Count::default();
        for thread in std::mem::take(&mut self.threads) {
            sum.add(&thread.join().expect("a client's thread"));
        }
        let rate = (sum.requests - sum.failed()) as f64 / took.as_secs_f64();
        (sum, rate)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn connection(port: u16, shape: Shape, pause: Duration, stop: &AtomicBool, seen: &Seen) -> Count {
    let mut client = Client { port, stream: None };
    let mut count = Count::default();
    let path = if shape == Shape::Slow { "/slow" } else { "/" };
    while !stop.load(Ordering::Relaxed) {
        count.requests += 1;
        match client.request(path, shape == Shape::KeepAlive) {
            Ok((pid, kept)) => {
                count.kept += u64::from(kept);
                let times = count.answers.entry(pid).or_default();
                *times += 1;
                if *times == 1 {
                    seen.lock().unwrap().insert(pid);
                }
            }
            Err(failure) => {
                count.failures[failure as usize] += 1;
                // A server that refuses is not asked in a busy loop, which would count the same outage many times over.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    count
}
