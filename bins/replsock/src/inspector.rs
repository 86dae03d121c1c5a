//! The client of Node's own inspector, for as long as its port is open: HTTP to find it, a WebSocket
//! (RFC 6455), the DevTools protocol on that. What comes from there is bounded, and believed only as far as
//! the port was proved to be the target's.

use common::error::{Error, Result, describe};
use common::exit::Exit;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// More than any answer that is asked for here.
const LONGEST: usize = 16 << 20;

/// A session.
#[derive(Debug)]
pub struct Inspector {
    stream: TcpStream,
    bytes: Vec<u8>,
    next: u64,
    /// What was not asked for, to be looked for later.
    pub events: Vec<Value>,
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::new("talk to the inspector", why)
}

fn connect(address: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&address, patience).map_err(|why| failed(describe(&why)))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Bytes of the stream up to `end`, or `None` when the deadline or the end of the stream came first.
fn read_until(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    deadline: Instant,
    whole: impl Fn(&[u8]) -> bool,
) -> io::Result<bool> {
    let mut buffer = [0u8; 16384];
    while !whole(bytes) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            Err(why) => return Err(why),
        }
        if bytes.len() > LONGEST {
            return Err(io::Error::other("an answer without end"));
        }
    }
    Ok(true)
}

fn has_head(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|part| part == b"\r\n\r\n")
}

/// The path of the first target that `/json/list` names.
fn first_target(address: SocketAddr, deadline: Instant) -> Result<String> {
    let patience = deadline.saturating_duration_since(Instant::now());
    let mut stream = connect(address, patience.max(Duration::from_millis(1)))?;
    let ask = format!("GET /json/list HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(ask.as_bytes())
        .map_err(|why| failed(describe(&why)))?;
    let mut bytes = Vec::new();
    // It closes when it has said all; the list itself tells when that was.
    let ended = |bytes: &[u8]| has_head(bytes) && bytes.trim_ascii_end().ends_with(b"]");
    read_until(&mut stream, &mut bytes, deadline, ended).map_err(|why| failed(describe(&why)))?;
    let text = String::from_utf8_lossy(&bytes);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let list: Value = serde_json::from_str(body.trim())
        .map_err(|_| failed("no inspector answers on that port"))?;
    let url = list
        .get(0)
        .and_then(|target| target.get("webSocketDebuggerUrl"))
        .and_then(Value::as_str)
        .ok_or_else(|| failed("it names no target (--inspect-publish-uid?)"))?;
    let path = url
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('/'));
    let (_, path) = path.ok_or_else(|| failed("it names a target without a path"))?;
    if path.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(failed("it names a target with a strange path"));
    }
    Ok(format!("/{path}"))
}

impl Inspector {
    /// Connects to the first target there.
    ///
    /// # Errors
    /// Nobody answers as an inspector does.
    pub fn open(address: SocketAddr, deadline: Instant) -> Result<Inspector> {
        let path = first_target(address, deadline)?;
        let patience = deadline.saturating_duration_since(Instant::now());
        let mut stream = connect(address, patience.max(Duration::from_millis(1)))?;
        // The key proves that the other side speaks WebSocket; who it is was proved by the kernel.
        let ask = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: cmVwbHNvY2stcmVwbHNvYw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        stream
            .write_all(ask.as_bytes())
            .map_err(|why| failed(describe(&why)))?;
        let mut bytes = Vec::new();
        read_until(&mut stream, &mut bytes, deadline, has_head)
            .map_err(|why| failed(describe(&why)))?;
        let end = bytes
            .windows(4)
            .position(|part| part == b"\r\n\r\n")
            .ok_or_else(|| failed("it closed the connection"))?;
        if !bytes.starts_with(b"HTTP/1.1 101") {
            return Err(failed("it refuses a WebSocket"));
        }
        bytes.drain(..end + 4);
        Ok(Inspector {
            stream,
            bytes,
            next: 0,
            events: Vec::new(),
        })
    }

    /// Sends a command; its number.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn send(&mut self, method: &str, parameters: &Value) -> Result<u64> {
        self.next += 1;
        let text = json!({"id": self.next, "method": method, "params": parameters}).to_string();
        let frame = masked(text.as_bytes(), common::time::random() as u32);
        self.stream
            .write_all(&frame)
            .map_err(|why| failed(describe(&why)))?;
        Ok(self.next)
    }

    /// The next message; `None`: the other side has ended the session.
    ///
    /// # Errors
    /// 124 at the deadline.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<Value>> {
        let mut text = Vec::new();
        loop {
            let whole = read_until(&mut self.stream, &mut self.bytes, deadline, |bytes| {
                length_of(bytes).is_some_and(|(head, body)| bytes.len() >= head + body)
            });
            match whole {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) if why.kind() == io::ErrorKind::TimedOut => {
                    return Err(failed("it does not answer").with_exit(Exit::TimedOut));
                }
                Err(why) if why.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(why) => return Err(failed(describe(&why))),
            }
            let Some((head, body)) = length_of(&self.bytes) else {
                return Err(failed("a frame that is none"));
            };
            let first = self.bytes.first().copied().unwrap_or(0);
            let frame: Vec<u8> = self.bytes.drain(..head + body).skip(head).collect();
            match first & 0x0f {
                // Text, and what goes on with it.
                0 | 1 => text.extend_from_slice(&frame),
                8 => return Ok(None),
                _ => continue,
            }
            if text.len() > LONGEST {
                return Err(failed("an answer without end"));
            }
            if first & 0x80 != 0 {
                return serde_json::from_slice(&text).map(Some).map_err(failed);
            }
        }
    }

    /// The result of a command; events on the way are kept. `None`: the session has ended.
    ///
    /// # Errors
    /// It is refused (125); 124 at the deadline.
    pub fn call(
        &mut self,
        method: &str,
        parameters: &Value,
        deadline: Instant,
    ) -> Result<Option<Value>> {
        let id = self.send(method, parameters)?;
        loop {
            let Some(message) = self.receive(deadline)? else {
                return Ok(None);
            };
            if message.get("id").and_then(Value::as_u64) != Some(id) {
                self.events.push(message);
                continue;
            }
            if let Some(why) = message.get("error") {
                let text = why
                    .get("message")
                    .and_then(Value::as_str)
                    .unwrap_or("refused");
                return Err(failed(format!(
                    "{method}: {}",
                    common::control::visible(text)
                )));
            }
            return Ok(Some(message.get("result").cloned().unwrap_or_default()));
        }
    }

    /// An event of this name, kept or still to come; `None`: not by then.
    ///
    /// # Errors
    /// The session has ended.
    pub fn event(&mut self, name: &str, deadline: Instant) -> Result<Option<Value>> {
        let is = |message: &Value| message.get("method").and_then(Value::as_str) == Some(name);
        if let Some(at) = self.events.iter().position(is) {
            return Ok(Some(self.events.swap_remove(at)));
        }
        loop {
            match self.receive(deadline) {
                Ok(Some(message)) if is(&message) => return Ok(Some(message)),
                Ok(Some(_)) => {}
                Ok(None) => return Err(failed("it ended the session")),
                Err(error) if error.exit == Exit::TimedOut => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// A text frame of a client, whose bytes are masked (RFC 6455, 5.3).
fn masked(text: &[u8], mask: u32) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=65535 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = mask.to_be_bytes();
    frame.extend_from_slice(&mask);
    frame.extend(
        text.iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

/// Lengths of a frame's head and body; `None`: not known yet.
fn length_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let masked = if bytes.get(1)? & 0x80 != 0 { 4 } else { 0 };
    match bytes.get(1)? & 0x7f {
        126 => {
            let length = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
            Some((4 + masked, usize::from(length)))
        }
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
            // Longer ones are never whole, and end at the limit of what is read.
            Some((
                10 + masked,
                usize::try_from(length).unwrap_or(usize::MAX).min(1 << 40),
            ))
        }
        length => Some((2 + masked, usize::from(length))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_of_all_lengths() {
        for length in [0, 125, 126, 65535, 65536] {
            let frame = masked(&vec![b'a'; length], 0x0102_0304);
            let (head, body) = length_of(&frame).unwrap();
            assert_eq!((body, head + body), (length, frame.len()));
            if length > 1 {
                assert_eq!(frame[head..head + 2], [b'a' ^ 1, b'a' ^ 2]);
            }
        }
        assert_eq!(length_of(b"\x81"), None);
    }

    proptest! {
        #[test]
        fn any_head_has_a_length_or_none(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = length_of(&bytes).map(|(head, body)| head + body);
        }
    }
}
