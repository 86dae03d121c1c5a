//! `--probe`: one private request to the first worker of a new generation, before it gets any client.
//!
//! In round-robin the master accepts, so it can hand the worker a connection of its own.

use crate::node::message;
use crate::run::{Master, Token};
use common::error::describe;
use common::wait::Interest;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

/// The longest status line that is waited for, in bytes.
const LONGEST: usize = 1024;

/// A request under way.
#[derive(Debug)]
pub struct Probe {
    fd: OwnedFd,
    worker: u64,
    request: Vec<u8>,
    answer: Vec<u8>,
    started: Instant,
    /// When the answer is too late.
    pub deadline: Instant,
}

/// The status of an answer, as far as it has come: `None` while its first line is not complete.
fn status_of(answer: &[u8]) -> Option<Result<u16, String>> {
    let Some(end) = answer.iter().position(|byte| *byte == b'\n') else {
        return (answer.len() > LONGEST).then(|| Err("answered what is no HTTP".to_owned()));
    };
    let line = String::from_utf8_lossy(&answer[..end]);
    let mut words = line.split_ascii_whitespace();
    let http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    match words.next().and_then(|word| word.parse::<u16>().ok()) {
        Some(status) if http => Some(Ok(status)),
        _ => Some(Err("answered what is no HTTP".to_owned())),
    }
}

impl Master {
    /// Sends the request to the canary, by way of the first socket that it listens on.
    pub(crate) fn start_probe(&mut self, id: u64, path: &str, now: Instant) {
        let key = self.sockets.held_by(id).into_iter().find_map(|socket| {
            let shared = self.sockets.get(socket)?;
            shared.hand_over.as_ref().map(|_| shared.key.clone())
        });
        let Some(key) = key else {
            self.probe_failed(id, "the worker listens on no socket", now);
            return;
        };
        let (ours, theirs) = match common::socket::loopback_pair() {
            Ok(pair) => pair,
            Err(why) => {
                let why = format!("no connection to the worker: {}", describe(&why));
                self.probe_failed(id, &why, now);
                return;
            }
        };
        if let Err(why) = self
            .events
            .add(&ours, Token::Probe.number(), Interest::Both)
        {
            self.probe_failed(id, &why.to_string(), now);
            return;
        }
        self.probe = Some(Probe {
            fd: ours,
            worker: id,
            request: format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: spawnwork-probe\r\nConnection: close\r\n\r\n"
            )
            .into_bytes(),
            answer: Vec::new(),
            started: now,
            deadline: now + self.plan.ready_timeout,
        });
        let seq = self.seq(id);
        let text = message::with_handle(message::HandleType::Net, &message::connection(seq, &key));
        self.send(id, text, Some(Rc::new(theirs)));
    }

    /// Its connection can be read or written, or its time is over.
    pub(crate) fn on_probe(&mut self, now: Instant) {
        let Some(probe) = self.probe.as_mut() else {
            return;
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut over = None;
        while !probe.request.is_empty() {
            match send(probe.fd.as_raw_fd(), &probe.request, flags) {
                Ok(count) => drop(probe.request.drain(..count)),
                // Its end reading tells.
                Err(nix::Error::EAGAIN | nix::Error::EPIPE | nix::Error::ECONNRESET) => break,
                Err(nix::Error::EINTR) => {}
                Err(why) => {
                    over = Some(describe(&why.into()));
                    break;
                }
            }
        }
        if probe.request.is_empty() {
            self.events
                .set(&probe.fd, Token::Probe.number(), Interest::Read);
        }
        let mut buffer = [0u8; LONGEST];
        while over.is_none() {
            match recv(probe.fd.as_raw_fd(), &mut buffer, flags) {
                Ok(0) => over = Some("closed without an answer".to_owned()),
                Ok(count) => probe.answer.extend_from_slice(&buffer[..count]),
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) => break,
                Err(why) => over = Some(describe(&why.into())),
            }
            if status_of(&probe.answer).is_some() {
                break;
            }
        }
        let result = match (status_of(&probe.answer), over) {
            (Some(Ok(status @ 200..=399)), _) => Ok(status),
            (Some(Ok(status)), _) => Err(format!("answered {status}")),
            (Some(Err(why)), _) => Err(why),
            (None, Some(why)) => Err(why),
            (None, None) if probe.deadline <= now => Err(format!(
                "no answer within {}",
                common::time::say(self.plan.ready_timeout)
            )),
            (None, None) => return,
        };
        let (id, took) = (probe.worker, now.saturating_duration_since(probe.started));
        self.drop_probe();
        match result {
            Ok(status) => self.pool.probe_passed(status, took, now),
            Err(why) => self.probe_failed(id, &why, now),
        }
        self.act(now);
    }

    fn probe_failed(&mut self, id: u64, why: &str, now: Instant) {
        let path = self.plan.probe.as_deref().unwrap_or_default();
        let words = self
            .workers
            .get(&id)
            .map(|worker| crate::deaths::spoken(&worker.last))
            .unwrap_or_default();
        let why = format!("failed the probe {path}: {why}");
        self.pool.probe_failed(id, &why, words, now);
    }

    /// Nobody wants its result any more.
    pub(crate) fn drop_probe(&mut self) {
        if let Some(probe) = self.probe.take() {
            self.events.remove(&probe.fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_decides() {
        assert_eq!(status_of(b""), None);
        assert_eq!(status_of(b"HTTP/1.1 20"), None);
        assert_eq!(status_of(b"HTTP/1.1 204 No\r\nX"), Some(Ok(204)));
        assert_eq!(status_of(b"HTTP/1.0 503\r\n"), Some(Ok(503)));
        for other in [
            &b"SSH-2.0-x\r\n"[..],
            b"HTTP/1.1 x\r\n",
            b"\n",
            &[b'x'; LONGEST + 1],
        ] {
            assert!(matches!(status_of(other), Some(Err(_))), "{other:?}");
        }
    }
}
