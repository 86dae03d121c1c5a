//! The names that our sockets have in a supervisor's store (FDSTORE=1, sd_pid_notify_with_fds(3)), and
//! the sockets that came back from there under such names when the service was started again.

use common::fds::Inherited;
use common::file::{self, Identity};
use common::socket::{self, Address, LocalAddr};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is ours among the names of LISTEN_FDNAMES.
const PREFIX: &str = "spawnwork-";
/// FDNAME may have so many bytes (sd_pid_notify_with_fds(3)).
const LONGEST: usize = 255;

/// The address that a socket was asked for with: by that it is found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spot {
    /// A TCP port; `index` tells those of port 0 apart that node workers ask for.
    Tcp {
        /// `None`: all addresses.
        host: Option<String>,
        /// As it was asked for, 0 included.
        port: u16,
        /// Node's.
        index: Option<i64>,
    },
    /// A UDP port.
    Udp {
        /// `None`: all addresses.
        host: Option<String>,
        /// As it was asked for, 0 included.
        port: u16,
        /// The family, where the host does not say it.
        v6: bool,
        /// Node's.
        index: Option<i64>,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// Whether a name of LISTEN_FDNAMES was given by us.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Names are printable ASCII without a colon. A colon is frequent in addresses: it becomes a comma.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' | b'*' => {
                text.push(char::from(*byte));
            }
            b':' => text.push(','),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// A unix socket's name holds the identity of its path as well: a socket whose path was replaced
/// since is nobody's.
#[must_use]
pub fn unix_name(path: &Path, identity: Identity) -> Option<String> {
    let path = escaped(path.as_os_str().as_bytes());
    let name = format!("{PREFIX}unix-{path}={:x}.{:x}", identity.dev, identity.ino);
    Some(name).filter(|name| name.len() <= LONGEST)
}

impl Spot {
    /// The spot of an address of `--listen`.
    #[must_use]
    pub fn of(address: &Address) -> Spot {
        match address {
            Address::Tcp { host, port } => Spot::Tcp {
                host: host.clone(),
                port: *port,
                index: None,
            },
            Address::Unix(path) => Spot::Unix(path.clone()),
        }
    }

    /// The name in the store; `None` when there can be none.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let inet = |kind: &str, host: &Option<String>, port: u16, index: Option<i64>| {
            let host = escaped(host.as_deref().unwrap_or("*").as_bytes());
            let index = index.map_or_else(String::new, |index| format!(",{index}"));
            Some(format!("{PREFIX}{kind}-{host},{port}{index}"))
                .filter(|name| name.len() <= LONGEST)
        };
        match self {
            Spot::Tcp { host, port, index } => inet("tcp", host, *port, *index),
            Spot::Udp {
                host,
                port,
                v6,
                index,
            } => inet(if *v6 { "udp6" } else { "udp4" }, host, *port, *index),
            Spot::Unix(path) => unix_name(path, file::identity(path).ok()?),
        }
    }
}

/// `name`, or with the lowest number behind it that makes it another one than those `taken`.
#[must_use]
pub fn distinct(name: String, taken: impl Fn(&str) -> bool) -> String {
    if !taken(&name) {
        return name;
    }
    (2..)
        .map(|number: u64| format!("{name}~{number}"))
        .find(|name| !taken(name))
        .unwrap_or(name)
}

/// A name without that number, and the number.
fn parts(name: &str) -> (&str, u64) {
    match name.rsplit_once('~') {
        Some((base, number)) => match number.parse() {
            Ok(number) => (base, number),
            Err(_) => (name, 1),
        },
        None => (name, 1),
    }
}

/// Where a listening socket is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was bound just now.
    Bound,
    /// It came back from the store.
    Returned,
    /// The workers of a dead master had kept it.
    Adopted,
}

#[derive(Debug)]
struct Kept {
    name: String,
    fd: OwnedFd,
    stream: bool,
    bound: Option<SocketAddr>,
}

/// Sockets that came back, until somebody asks for their address.
#[derive(Debug, Default)]
pub struct Returned {
    list: Vec<Kept>,
}

impl Returned {
    /// What LISTEN_FDS brought under names of ours.
    #[must_use]
    pub fn new(list: Vec<Inherited>) -> Returned {
        let mut list: Vec<Kept> = list
            .into_iter()
            .map(|one| Kept {
                stream: getsockopt(&one.fd, sockopt::SockType) == Ok(SockType::Stream),
                bound: match socket::local_addr(&one.fd) {
                    Ok(LocalAddr::Inet(bound)) => Some(bound),
                    Ok(LocalAddr::Unix(_)) | Err(_) => None,
                },
                name: one.name,
                fd: one.fd,
            })
            .collect();
        // Those of one address in the order in which they were made, which a store does not keep.
        list.sort_by(|one, other| parts(&one.name).cmp(&parts(&other.name)));
        Returned { list }
    }

    /// The socket for `spot`, with its name in the store.
    pub fn take(&mut self, spot: &Spot) -> Option<(String, OwnedFd)> {
        let name = spot.name()?;
        let port = match spot {
            Spot::Tcp { port, .. } | Spot::Udp { port, .. } => *port,
            Spot::Unix(_) => 0,
        };
        let found = self
            .list
            .iter()
            .position(|kept| {
                parts(&kept.name).0 == name
                    && (port == 0 || kept.bound.is_some_and(|bound| bound.port() == port))
            })
            .or_else(|| self.list.iter().position(|kept| kept.serves(spot)))?;
        let kept = self.list.remove(found);
        Some((kept.name, kept.fd))
    }

    /// Those that stand in the way of binding `spot` anew: the same port, on all addresses or on one.
    pub fn in_the_way(&mut self, spot: &Spot) -> Vec<(String, OwnedFd)> {
        let (wanted, number, stream) = match spot {
            Spot::Tcp { host, port, .. } => (host, *port, true),
            Spot::Udp { host, port, .. } => (host, *port, false),
            Spot::Unix(_) => return Vec::new(),
        };
        let all = matches!(wanted.as_deref(), None | Some("::" | "0.0.0.0"));
        self.extract(|kept| {
            kept.stream == stream
                && kept.bound.is_some_and(|bound| {
                    bound.port() == number && (all || bound.ip().is_unspecified())
                })
        })
    }

    /// All that nobody asked for.
    pub fn rest(&mut self) -> Vec<(String, OwnedFd)> {
        self.extract(|_| true)
    }

    fn extract(&mut self, wanted: impl Fn(&Kept) -> bool) -> Vec<(String, OwnedFd)> {
        let (out, stay) = std::mem::take(&mut self.list)
            .into_iter()
            .partition(|kept| wanted(kept));
        self.list = stay;
        let out: Vec<Kept> = out;
        out.into_iter().map(|kept| (kept.name, kept.fd)).collect()
    }
}

impl Kept {
    /// The same address in other words: what was node's own is named by --listen now, or the reverse.
    fn serves(&self, spot: &Spot) -> bool {
        match (spot, self.bound) {
            (Spot::Tcp { host, port, .. }, Some(bound)) => {
                let ip = bound.ip().to_string();
                *port != 0
                    && self.stream
                    && bound.port() == *port
                    && crate::node::sockets::same_host(host.as_deref(), Some(&ip))
            }
            (Spot::Tcp { .. }, None) | (Spot::Udp { .. } | Spot::Unix(_), _) => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn tcp(host: Option<&str>, port: u16) -> Spot {
        Spot::Tcp {
            host: host.map(str::to_owned),
            port,
            index: None,
        }
    }

    fn listener(address: &str) -> (OwnedFd, u16) {
        let fd = socket::listen_tcp(address.parse().unwrap(), None, 8).unwrap();
        let Ok(LocalAddr::Inet(bound)) = socket::local_addr(&fd) else {
            panic!()
        };
        (fd, bound.port())
    }

    fn returned(list: Vec<(String, OwnedFd)>) -> Returned {
        let list = list.into_iter().enumerate().map(|(index, (name, fd))| {
            let number = 3 + index as i32;
            Inherited { number, name, fd }
        });
        Returned::new(list.collect())
    }

    #[test]
    fn names_are_such_as_a_store_takes() {
        for (spot, name) in [
            (tcp(None, 3000), "spawnwork-tcp-*,3000"),
            (tcp(Some("127.0.0.1"), 80), "spawnwork-tcp-127.0.0.1,80"),
            (
                tcp(Some("fe80::1%eth0"), 80),
                "spawnwork-tcp-fe80,,1%25eth0,80",
            ),
            (
                Spot::Udp {
                    host: None,
                    port: 0,
                    v6: true,
                    index: Some(2),
                },
                "spawnwork-udp6-*,0,2",
            ),
        ] {
            assert_eq!(spot.name().as_deref(), Some(name));
            assert!(is_ours(name) && !name.contains(':') && name.is_ascii());
        }
        let identity = Identity { dev: 1, ino: 0xfe };
        assert_eq!(
            unix_name(Path::new("/run/a b~\u{e4}:\n"), identity).as_deref(),
            Some("spawnwork-unix-/run/a%20b%7E%C3%A4,%0A=1.fe")
        );
        let long = "\u{e4}".repeat(53);
        assert_eq!(unix_name(Path::new(&long), identity), None);
        assert!(!is_ours("web"));
    }

    #[test]
    fn the_same_address_twice_has_two_names_and_comes_back_in_order() {
        let taken = ["x", "x~2"];
        let next = distinct("x".to_owned(), |name| taken.contains(&name));
        assert_eq!(next, "x~3");
        assert_eq!(distinct("y".to_owned(), |_| false), "y");

        let (one, first) = listener("127.0.0.1:0");
        let (two, second) = listener("127.0.0.1:0");
        let (ten, tenth) = listener("127.0.0.1:0");
        let spot = tcp(Some("127.0.0.1"), 0);
        let name = spot.name().unwrap();
        let mut back = returned(vec![
            (format!("{name}~10"), ten),
            (format!("{name}~2"), two),
            (name.clone(), one),
        ]);
        for port in [first, second, tenth] {
            let (_, fd) = back.take(&spot).unwrap();
            let Ok(LocalAddr::Inet(bound)) = socket::local_addr(&fd) else {
                panic!()
            };
            assert_eq!(bound.port(), port);
        }
        assert!(back.take(&spot).is_none());
    }

    #[test]
    fn an_address_is_found_in_other_words_and_never_another_one() {
        let (fd, port) = listener("127.0.0.1:0");
        let mut back = returned(vec![("spawnwork-tcp-somewhere,1".to_owned(), fd)]);
        assert!(back.take(&tcp(Some("127.0.0.1"), port ^ 1)).is_none());
        assert!(back.take(&tcp(Some("127.0.0.2"), port)).is_none());
        assert!(back.take(&tcp(Some("127.0.0.1"), 0)).is_none());
        assert!(back.take(&tcp(Some("127.0.0.1"), port)).is_some());

        // A name that lies about its port.
        let (fd, port) = listener("127.0.0.1:0");
        let wrong = tcp(Some("127.0.0.1"), port ^ 1);
        let mut back = returned(vec![(wrong.name().unwrap(), fd)]);
        assert!(back.take(&wrong).is_none());
        assert_eq!(back.rest().len(), 1);
        assert!(back.rest().is_empty());
    }

    #[test]
    fn what_stands_in_the_way() {
        let (fd, port) = listener("127.0.0.1:0");
        let mut back = returned(vec![("spawnwork-tcp-x,1".to_owned(), fd)]);
        assert!(back.in_the_way(&tcp(Some("127.0.0.2"), port)).is_empty());
        assert!(back.in_the_way(&tcp(None, port ^ 1)).is_empty());
        assert_eq!(back.in_the_way(&tcp(None, port)).len(), 1);
        let (fd, port) = listener("0.0.0.0:0");
        let mut back = returned(vec![("spawnwork-tcp-x,1".to_owned(), fd)]);
        assert_eq!(back.in_the_way(&tcp(Some("127.0.0.1"), port)).len(), 1);
    }

    #[test]
    fn a_unix_socket_whose_path_was_replaced_is_not_taken() {
        let path = std::env::temp_dir().join(format!("store-{}.sock", std::process::id()));
        let rights = socket::UnixRights {
            mode: 0o600,
            owner: None,
        };
        let spot = Spot::Unix(path.clone());
        let first = socket::listen_unix(&path, rights, 8).unwrap();
        let name = spot.name().unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = socket::listen_unix(&path, rights, 8).unwrap();
        // Some file systems give the number of an inode that was freed to the next one at once; the
        // first is still held by its socket.
        let mut back = returned(vec![(name, first)]);
        assert!(back.take(&spot).is_none());
        let _ = std::fs::remove_file(&path);
        assert!(spot.name().is_none());
    }
}
