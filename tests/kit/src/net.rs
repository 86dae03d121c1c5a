//! Hosts with addresses of their own: network namespaces, joined by bridges. They have no names, so those of two
//! runs cannot meet, and the kernel removes each of them, with its links, when nobody is in it any more.

use crate::mount::need_root;
use crate::{Run, Running, eventually};
use std::os::fd::OwnedFd;

/// The networks are 10.77.N.0/24.
const PREFIX: &str = "10.77";

/// A namespace, held by a process that ends with this one, even if that is killed.
#[derive(Debug)]
pub struct Host {
    holder: Running,
    _end: OwnedFd,
}

impl Host {
    /// One with nothing but its loopback.
    #[must_use]
    pub fn new() -> Host {
        need_root();
        let (read, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let holder = Run::new("unshare")
            .args(["--net", "--", "cat"])
            .stdin(read)
            .start();
        let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        eventually("a network namespace", || {
            let there = space(&holder.pid().to_string())?;
            (Some(there) != space("self")).then_some(())
        });
        let host = Host { holder, _end: end };
        host.ip("link set lo up");
        host
    }

    /// A program on this host. Its pid is that of the [`Running`].
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        let path = std::env::var("PATH").unwrap();
        Run::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.holder.pid()))
            .arg("--")
            .arg(program)
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
    }

    fn ip(&self, words: &str) {
        let run = self.run("ip").args(words.split(' ')).finish();
        assert_eq!(run.status, 0, "ip {words}: {}", run.err);
    }
}

impl Default for Host {
    fn default() -> Host {
        Host::new()
    }
}

/// Hosts, and one in their middle that they are all linked to, by several networks.
#[derive(Debug)]
pub struct Net {
    /// The one in the middle: 10.77.N.254 in network N.
    pub hub: Host,
    /// 10.77.N.1 and so on.
    pub hosts: Vec<Host>,
}

impl Net {
    /// So many hosts, in so many networks.
    #[must_use]
    pub fn new(hosts: usize, networks: usize) -> Net {
        let net = Net {
            hub: Host::new(),
            hosts: (0..hosts).map(|_| Host::new()).collect(),
        };
        for network in 0..networks {
            net.hub.ip(&format!("link add bridge{network} type bridge"));
            net.hub.ip(&format!(
                "addr add {PREFIX}.{network}.254/24 dev bridge{network}"
            ));
            net.hub.ip(&format!("link set bridge{network} up"));
            for (at, host) in net.hosts.iter().enumerate() {
                let (port, pid) = (port(at, network), host.holder.pid());
                net.hub.ip(&format!(
                    "link add {port} type veth peer name eth{network} netns {pid}"
                ));
                net.hub
                    .ip(&format!("link set {port} master bridge{network}"));
                net.hub.ip(&format!("link set {port} up"));
                let address = address(at, network);
                host.ip(&format!("addr add {address}/24 dev eth{network}"));
                host.ip(&format!("link set eth{network} up"));
            }
        }
        net
    }

    /// A host's cable of this network is pulled, at the other end: nothing tells its programs.
    pub fn cut(&self, host: usize, network: usize) {
        self.hub
            .ip(&format!("link set {} down", port(host, network)));
    }

    /// It is put back.
    pub fn mend(&self, host: usize, network: usize) {
        self.hub.ip(&format!("link set {} up", port(host, network)));
    }
}

fn port(host: usize, network: usize) -> String {
    format!("port{network}-{host}")
}

/// Of a host.
#[must_use]
pub fn address(host: usize, network: usize) -> String {
    format!("{PREFIX}.{network}.{}", host + 1)
}

/// Of the hub.
#[must_use]
pub fn hub(network: usize) -> String {
    format!("{PREFIX}.{network}.254")
}
