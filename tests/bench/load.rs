//! A small load client: a thread for each connection, each failed request counted by its kind.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const CONNECTIONS: u64 = 32;
/// How long an answer is waited for. /slow takes 300 ms.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq)]
pub enum Shape {
    /// One connection after another goes on for as long as the server lets it.
    KeepAlive,
    /// A connection for each request.
    Fresh,
    /// As `KeepAlive`, and one request in ten is for /slow.
    Mixed,
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
    failures: [u64; NAMES.len()],
}

impl Count {
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
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

    /// One request, never tried again.
    fn request(&mut self, path: &str, keep: bool) -> Result<(), Failure> {
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
        let goes_on = answer(&mut stream)?;
        if keep && goes_on {
            self.stream = Some(stream);
        } else {
            // The server closes first, and has the TIME_WAIT: the client's ports last.
            let _ = stream.read(&mut [0; 16]);
        }
        Ok(())
    }
}

/// Reads one answer; whether the connection goes on after it.
fn answer(stream: &mut TcpStream) -> Result<bool, Failure> {
    let mut buffer = [0; 2048];
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
        let right = head.starts_with("HTTP/1.1 200 ") && body.len() == length && is_hello(body);
        let goes_on =
            !header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        return if right {
            Ok(goes_on)
        } else {
            Err(Failure::Wrong)
        };
    }
}

fn is_hello(body: &[u8]) -> bool {
    body.strip_prefix(b"hello ")
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit))
}

/// Whether the app answers at all.
pub fn answers(port: u16) -> bool {
    let mut client = Client { port, stream: None };
    client.request("/", false).is_ok()
}

/// Load that goes on until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    began: Instant,
    threads: Vec<JoinHandle<Count>>,
}

impl Load {
    pub fn start(port: u16, shape: Shape) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let one = |seed: u64| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || connection(port, shape, seed, &stop))
        };
        Self {
            began: Instant::now(),
            threads: (1..=CONNECTIONS).map(one).collect(),
            stop,
        }
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

fn connection(port: u16, shape: Shape, seed: u64, stop: &AtomicBool) -> Count {
    let mut client = Client { port, stream: None };
    let mut count = Count::default();
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let slow = shape == Shape::Mixed && random % 10 == 0;
        let path = if slow { "/slow" } else { "/" };
        count.requests += 1;
        if let Err(failure) = client.request(path, shape != Shape::Fresh) {
            count.failures[failure as usize] += 1;
            // A server that refuses is not asked in a busy loop, which would count the same outage many times over.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    count
}
