//! What serve says of itself: events on stderr, which never hold it up.

use crate::audit::Who;
use crate::door::Peer;
use common::event::{Level, Log, Value};
use common::output::Output;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Who came.
#[derive(Clone, Debug)]
pub enum Visitor {
    /// By the unix socket.
    Unix(Who),
    /// By loopback; who has the token.
    Tcp(SocketAddr),
}

impl Visitor {
    /// Of a unix socket's peer.
    pub fn unix(peer: Peer) -> Visitor {
        Visitor::Unix(Who::of(peer.pid, peer.uid))
    }
}

impl std::fmt::Display for Visitor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Visitor::Unix(who) => write!(formatter, "uid {}, pid {}", who.uid, who.pid),
            Visitor::Tcp(address) => write!(formatter, "{address}"),
        }
    }
}

/// Where it is said.
#[derive(Debug)]
pub struct Voice {
    err: Output,
    log: Log,
    /// Users by their numbers, looked up before anybody came: a directory service that hangs must not hold
    /// up a session.
    names: BTreeMap<u32, String>,
}

impl Voice {
    /// Speaks from now on; `known` are the users that are called by their names.
    pub fn new(format: Option<common::event::Format>, quiet: bool, known: &[u32]) -> Voice {
        let threshold = if quiet { Level::Warning } else { Level::Info };
        Voice {
            err: Output::open(2),
            log: Log::new("replsock", format, threshold),
            names: known
                .iter()
                .map(|uid| (*uid, crate::door::user_name(*uid)))
                .collect(),
        }
    }

    /// An event.
    pub fn say(&mut self, level: Level, event: &str, fields: &[(&str, Value)]) {
        if let Some(line) = self.log.line(level, event, fields) {
            if self.err.wants_to_write() {
                self.err.flush();
            }
            self.err.write_or_drop(&line);
        }
    }

    /// Who a visitor is, in fields.
    pub fn who(&self, visitor: &Visitor) -> Vec<(&'static str, Value)> {
        match visitor {
            Visitor::Tcp(address) => vec![("address", address.to_string().into())],
            Visitor::Unix(who) => {
                let mut list = vec![("uid", who.uid.into())];
                if let Some(name) = self.names.get(&who.uid) {
                    list.push(("user", name.as_str().into()));
                }
                if let Some(login) = who.login {
                    let name = self.names.get(&login).cloned();
                    list.push(("login", name.unwrap_or_else(|| login.to_string()).into()));
                }
                list.push(("peer", who.pid.into()));
                list
            }
        }
    }

    /// The last words.
    pub fn finish(&mut self) {
        self.err.finish(Duration::from_millis(100));
    }
}
