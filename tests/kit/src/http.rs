//! As much of HTTP/1.1 as a client needs that wants to know exactly how a request failed.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody took the connection.
    Refused,
    /// It was broken off, with RST or in mid-answer.
    Reset,
    /// It was closed before a byte of the answer.
    Empty,
    /// The answer is not the expected one.
    Wrong,
    /// No answer in time.
    TimedOut,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// 200
    pub status: u16,
    /// All of it.
    pub body: String,
    /// The server keeps the connection.
    pub keeps: bool,
}

/// A connection, of TCP or a unix socket.
#[derive(Debug)]
pub enum Connection {
    /// TCP
    Tcp(TcpStream),
    /// unix
    Unix(UnixStream),
}

impl Connection {
    /// The other side has closed or reset it, or has sent something that was not asked for.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let fd = match self {
            Connection::Tcp(stream) => stream.as_fd(),
            Connection::Unix(stream) => stream.as_fd(),
        };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Tcp(stream) => stream.read(buffer),
            Connection::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Tcp(stream) => stream.write(bytes),
            Connection::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects to `HOST:PORT` or `unix:PATH`.
///
/// # Errors
/// How it failed.
pub fn connect(address: &str, timeout: Duration) -> Result<Connection, Failure> {
    let refused = |why: io::Error| match why.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TimedOut,
        _ => Failure::Refused,
    };
    if let Some(path) = address.strip_prefix("unix:") {
        let stream = UnixStream::connect(path).map_err(refused)?;
        stream.set_read_timeout(Some(timeout)).map_err(refused)?;
        return Ok(Connection::Unix(stream));
    }
    let address: SocketAddr = address.parse().expect("an address with its port");
    let stream = TcpStream::connect_timeout(&address, timeout).map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    stream.set_read_timeout(Some(timeout)).map_err(refused)?;
    Ok(Connection::Tcp(stream))
}

/// Sends a request and reads its answer.
///
/// # Errors
/// How it failed.
pub fn exchange(
    connection: &mut Connection,
    path: &str,
    keep_alive: bool,
) -> Result<Reply, Failure> {
    let header = if keep_alive { "keep-alive" } else { "close" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {header}\r\n\r\n");
    connection
        .write_all(request.as_bytes())
        .map_err(|_| Failure::Reset)?;
    let mut answer = Vec::new();
    let mut buffer = [0u8; 16384];
    let mut more = |answer: &mut Vec<u8>| match connection.read(&mut buffer) {
        Ok(0) if answer.is_empty() => Err(Failure::Empty),
        Ok(count) => {
            answer.extend_from_slice(&buffer[..count]);
            Ok(count)
        }
        Err(why)
            if matches!(
                why.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ) =>
        {
            Err(Failure::TimedOut)
        }
        Err(_) => Err(Failure::Reset),
    };
    let head_end = loop {
        if let Some(at) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if more(&mut answer)? == 0 {
            return Err(Failure::Reset);
        }
    };
    let head = String::from_utf8_lossy(&answer[..head_end]).to_lowercase();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or(Failure::Wrong)?;
    let value = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let mut body;
    if let Some(length) = value("content-length").and_then(|text| text.parse::<usize>().ok()) {
        while answer.len() < head_end + length {
            if more(&mut answer)? == 0 {
                return Err(Failure::Reset);
            }
        }
        body = answer.split_off(head_end);
        body.truncate(length);
    } else if value("transfer-encoding") == Some("chunked") {
        while !answer.ends_with(b"0\r\n\r\n") {
            if more(&mut answer)? == 0 {
                return Err(Failure::Reset);
            }
        }
        body = unchunk(&answer[head_end..]).ok_or(Failure::Wrong)?;
    } else {
        while more(&mut answer)? > 0 {}
        body = answer.split_off(head_end);
    }
    Ok(Reply {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
        keeps: value("connection") != Some("close"),
    })
}

fn unchunk(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = text.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&text[..line]).ok()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(text.get(line + 2..line + 2 + size)?);
        text = text.get(line + size + 4..)?;
    }
}

/// One request over a connection of its own.
///
/// # Errors
/// How it failed, as text.
pub fn get(address: impl ToString, path: &str) -> Result<Reply, String> {
    let timeout = Duration::from_secs(30);
    let mut connection =
        connect(&address.to_string(), timeout).map_err(|why| format!("{why:?}"))?;
    exchange(&mut connection, path, false).map_err(|why| format!("{why:?}"))
}
