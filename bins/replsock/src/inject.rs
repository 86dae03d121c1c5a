//! `--inject`: into a Node process that was started without the agent. SIGUSR1 opens its inspector on a
//! loopback port, which every local user can reach; so it is done by a process of its own, that goes on and
//! closes the port when the one who asked is killed.

use crate::audit::Trail;
use crate::cli::Reach;
use crate::inspector::Inspector;
use crate::link::Place;
use crate::target::{self, Target};
use crate::{door, env};
use common::child::{Child, Peer};
use common::error::{Doing, Error, Result, describe};
use common::exit::Exit;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{geteuid, pipe2};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The name of processes that came to have an agent in this way.
pub const APP: &str = "injected";
/// The port opens within 65 to 200 ms on a calm machine.
const OPENS: Duration = Duration::from_secs(5);
/// For all that is said on it.
const TALK: Duration = Duration::from_secs(10);
/// Node's own port.
const USUAL: u16 = 9229;

/// What is done while the port is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Deed {
    /// The agent is brought in.
    Agent,
    /// The stack of what runs is looked at.
    Stack,
}

/// The one that `reach` means; a pid without an agent gets one where `--inject` allows.
///
/// # Errors
/// As [`target::one`]; 126: it would be killed, or is root's.
pub fn target(reach: &Reach) -> Result<Target> {
    if !reach.inject {
        return target::one(reach);
    }
    let pid = match target::one(reach) {
        Ok(target) => return Ok(target),
        Err(error) => match (reach.target.parse::<i32>(), error.exit) {
            (Ok(pid), Exit::NotFound) => pid,
            _ => return Err(error),
        },
    };
    let said = through_the_port(reach, pid, Deed::Agent)?;
    let path = PathBuf::from(said.trim());
    if path.as_os_str().is_empty() {
        return Err(Error::new(
            &format!("reach pid {pid}"),
            "its agent could make no socket",
        ));
    }
    Ok(Target {
        place: Place::Unix(path),
        name: format!("{APP}/{pid}"),
        app: APP.to_owned(),
        worker: None,
        pid,
        draining: false,
    })
}

/// Does `deed` by a process of its own; what it prints.
///
/// # Errors
/// Its own.
pub fn through_the_port(reach: &Reach, pid: i32, deed: Deed) -> Result<String> {
    let begun = Instant::now();
    let mut trail = Trail::open(reach.audit.as_deref(), reach.audit_expr, &reach.target)?;
    let done = start(reach, pid, deed);
    trail.injected(pid, done.is_ok(), begun.elapsed());
    done
}

fn start(reach: &Reach, pid: i32, deed: Deed) -> Result<String> {
    let target = permitted(pid, reach.yes_open_port)?;
    let doing = format!("come to pid {pid}");
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).doing(&doing)?;
    let (errors, errors_in) = pipe2(OFlag::O_CLOEXEC).doing(&doing)?;
    let null = File::open("/dev/null").doing(&doing)?;
    let word = |text: String| CString::new(text).map_err(|_| Error::new(&doing, "a NUL"));
    let deed_name = match deed {
        Deed::Agent => "agent",
        Deed::Stack => "stack",
    };
    let mut arguments = Vec::new();
    for text in [
        "replsock",
        "through-the-port",
        &pid.to_string(),
        &target.start.to_string(),
        deed_name,
    ] {
        arguments.push(word(text.to_owned())?);
    }
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        let mut all = name.into_vec();
        all.push(b'=');
        all.extend(value.into_vec());
        environment.extend(CString::new(all));
    }
    let image = common::sys::Image {
        candidates: vec![c"/proc/self/exe".to_owned()],
        arguments,
        environment,
        descriptors: vec![
            (null.as_raw_fd(), 0),
            (writer.as_raw_fd(), 1),
            (errors_in.as_raw_fd(), 2),
        ],
        // Control-C at the terminal, and its end, are for us alone.
        own_group: true,
        ..common::sys::Image::default()
    };
    let child = Child::start(&image).doing(&doing)?;
    drop((writer, errors_in));
    let read = |fd| {
        let mut text = String::new();
        let _ = File::from(fd).take(1 << 20).read_to_string(&mut text);
        text
    };
    let (said, why) = (read(reader), read(errors));
    let _ = crate::link::wait_for(&[std::os::fd::AsFd::as_fd(&child)], None);
    match child.reap() {
        Some(common::exit::End::Exited(0)) => Ok(said),
        end => {
            let why = why.trim().trim_start_matches("replsock: ").to_owned();
            let exit = match end {
                Some(common::exit::End::Exited(124)) => Exit::TimedOut,
                Some(common::exit::End::Exited(126)) => Exit::NotExecutable,
                Some(common::exit::End::Exited(127)) => Exit::NotFound,
                _ => Exit::Fault,
            };
            Err(Error { message: why, exit })
        }
    }
}

struct Known {
    start: u64,
}

fn refused(pid: i32, why: &str) -> Error {
    Error::new(&format!("inject into pid {pid}"), why).with_exit(Exit::NotExecutable)
}

/// Whether the signal is safe, and the port may be opened.
fn permitted(pid: i32, open_port: bool) -> Result<Known> {
    let gone = || {
        Error::new(&format!("inject into pid {pid}"), "no such process").with_exit(Exit::NotFound)
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| gone())?;
    let start = common::child::stat(pid).ok_or_else(gone)?.start;
    let line = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let mask = |name: &str| {
        line(name)
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .unwrap_or(0)
    };
    let bit = 1u64 << (libc::SIGUSR1 - 1);
    // In its first milliseconds a node has neither; from 6 ms on it is blocked, then caught.
    if (mask("SigCgt") | mask("SigBlk")) & bit == 0 {
        return Err(refused(
            pid,
            "it does not listen for SIGUSR1, which would kill it; start it by 'replsock env'",
        ));
    }
    let uid = line("Uid")
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u32>().ok())
        .unwrap_or(0);
    let own = geteuid();
    if uid != own.as_raw() && !own.is_root() {
        return Err(refused(
            pid,
            &format!("it belongs to {}", door::user_name(uid)),
        ));
    }
    if uid == 0 && !open_port {
        return Err(refused(
            pid,
            "it is root's, and for about 100 ms every local user could become root by its port; --yes-open-port does it all the same",
        ));
    }
    Ok(Known { start })
}

/// In the process of its own.
///
/// # Errors
/// Why not; the port is closed all the same.
pub fn inside(pid: i32, start: u64, deed: Deed) -> Result<Exit> {
    let doing = format!("inject into pid {pid}");
    let directory = std::path::absolute(door::directory()).doing(&doing)?;
    door::make(&directory)?;
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join(".inject.lock"))
        .doing(&doing)?;
    // There is one usual port: two at a time would take it from each other.
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, why)| Error::new(&doing, describe(&why.into())))?;
    let peer = Peer::open(pid)
        .map_err(|why| Error::new(&doing, describe(&why)).with_exit(Exit::NotFound))?;
    if common::child::stat(pid).is_none_or(|stat| stat.start != start) {
        return Err(Error::new(&doing, "it has ended meanwhile").with_exit(Exit::NotFound));
    }
    // The lock may have been waited for; an exec takes handlers away.
    permitted(pid, true)?;
    let before = listeners(pid);
    let usual = before
        .iter()
        .find(|listener| listener.1.port() == USUAL)
        .map(|listener| listener.1);
    // --inspect: it is open anyway, and stays so.
    if let Some(address) = usual {
        return work(address, pid, &directory, deed);
    }
    peer.signal(libc::SIGUSR1);
    let address = opened(pid, &before).ok_or_else(|| {
        let holder = common::socket::holder_of(&common::socket::Address::Tcp {
            host: Some("127.0.0.1".to_owned()),
            port: USUAL,
        });
        let why = match holder {
            Some((holder, name)) if holder != pid => format!(
                "its inspector does not open: pid {holder} ({name}) holds port {USUAL}, and that one is not meant"
            ),
            _ => "its inspector does not open: the app has its own handler of SIGUSR1, or is no node".to_owned(),
        };
        Error::new(&doing, why)
    })?;
    let done = work(address, pid, &directory, deed);
    let closed = close(address, pid);
    let exit = done?;
    closed?;
    Ok(exit)
}

/// The new listener of the very process.
fn opened(pid: i32, before: &BTreeSet<(u64, SocketAddr)>) -> Option<SocketAddr> {
    let deadline = Instant::now() + OPENS;
    while Instant::now() < deadline {
        if let Some((_, address)) = listeners(pid).difference(before).next() {
            return Some(*address);
        }
        pause(Duration::from_millis(5));
    }
    None
}

fn pause(length: Duration) {
    let ms = u16::try_from(length.as_millis()).unwrap_or(u16::MAX);
    let _ = nix::poll::poll(&mut [], ms);
}

/// The listening TCP sockets that a process has open: inode and address.
fn listeners(pid: i32) -> BTreeSet<(u64, SocketAddr)> {
    let own: BTreeSet<u64> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.path()).ok()?;
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect();
    let mut found = BTreeSet::new();
    for name in ["tcp", "tcp6"] {
        let Ok(table) = std::fs::read_to_string(format!("/proc/{pid}/net/{name}")) else {
            continue;
        };
        found.extend(
            table
                .lines()
                .skip(1)
                .filter_map(listener)
                .filter(|(inode, _)| own.contains(inode)),
        );
    }
    found
}

/// A line of /proc/net/tcp (proc_net_tcp in Linux' Documentation/networking): state 0A is LISTEN.
pub(crate) fn listener(line: &str) -> Option<(u64, SocketAddr)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != "0A" {
        return None;
    }
    let (host, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits in the machine's order.
    let words: Vec<u32> = (0..host.len() / 8)
        .map(|at| u32::from_str_radix(host.get(at * 8..at * 8 + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ip: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Ipv4Addr::from(four).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).into(),
    };
    let ip = match ip {
        any if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some((fields.get(9)?.parse().ok()?, SocketAddr::new(ip, port)))
}

/// Everything that is said while the port is open.
fn work(address: SocketAddr, pid: i32, directory: &Path, deed: Deed) -> Result<Exit> {
    let deadline = Instant::now() + TALK;
    let mut inspector = Inspector::open(address, deadline)?;
    match deed {
        Deed::Agent => {
            let settings = env::settings(APP, directory, "", libc::SIGURG, 300_000);
            let (_, agent) = env::AGENTS[0];
            let expression = format!(
                "globalThis[Symbol.for('replsock.given')] = {settings};\n\
                 try {{ (function () {{ {agent}\n }})() }} finally {{ delete globalThis[Symbol.for('replsock.given')] }}\n\
                 globalThis[Symbol.for('replsock.agent')] ? globalThis[Symbol.for('replsock.agent')].socket() : ''"
            );
            let parameters = json!({"expression": expression, "includeCommandLineAPI": true, "returnByValue": true});
            let answer = inspector.call("Runtime.evaluate", &parameters, deadline)?;
            let answer = answer.unwrap_or_default();
            if let Some(details) = answer.get("exceptionDetails") {
                let why = details.to_string();
                return Err(Error::new(
                    &format!("inject into pid {pid}"),
                    common::control::visible(&why.chars().take(300).collect::<String>()),
                ));
            }
            let path = answer
                .pointer("/result/value")
                .and_then(Value::as_str)
                .unwrap_or_default();
            common::cli::print(path)?;
        }
        Deed::Stack => {
            inspector.call("Debugger.enable", &json!({}), deadline)?;
            inspector.call("Debugger.pause", &json!({}), deadline)?;
            let paused =
                inspector.event("Debugger.paused", Instant::now() + Duration::from_secs(1))?;
            match paused {
                None => {
                    common::cli::print(
                        "(no JavaScript runs: the event loop waits, or a native call does not come back)",
                    )?;
                }
                Some(event) => {
                    for line in stack(&event, &urls(&inspector.events)) {
                        common::cli::print(&line)?;
                    }
                    inspector.call("Debugger.resume", &json!({}), deadline)?;
                }
            }
            inspector.call("Debugger.disable", &json!({}), deadline)?;
        }
    }
    Ok(Exit::Ok)
}

/// The files of the scripts, by their ids; the frames of newer nodes name those alone.
fn urls(events: &[Value]) -> BTreeMap<&str, &str> {
    fn text<'a>(event: &'a Value, path: &str) -> Option<&'a str> {
        event.pointer(path)?.as_str()
    }
    events
        .iter()
        .filter_map(|event| {
            Some((
                text(event, "/params/scriptId")?,
                text(event, "/params/url")?,
            ))
        })
        .collect()
}

/// `at spin (/app/app.js:12:3)`, as errors have it.
fn stack(event: &Value, urls: &BTreeMap<&str, &str>) -> Vec<String> {
    let frames = event
        .pointer("/params/callFrames")
        .and_then(Value::as_array);
    frames
        .into_iter()
        .flatten()
        .map(|frame| {
            let name = frame.get("functionName").and_then(Value::as_str);
            let name = name
                .filter(|name| !name.is_empty())
                .unwrap_or("(anonymous)");
            let script = frame.pointer("/location/scriptId").and_then(Value::as_str);
            let url = frame
                .get("url")
                .and_then(Value::as_str)
                .filter(|url| !url.is_empty())
                .or_else(|| urls.get(script?).copied())
                .unwrap_or_default();
            let number = |path: &str| frame.pointer(path).and_then(Value::as_u64).unwrap_or(0) + 1;
            common::control::visible(&format!(
                "    at {name} ({}:{}:{})",
                url.strip_prefix("file://").unwrap_or(url),
                number("/location/lineNumber"),
                number("/location/columnNumber")
            ))
        })
        .collect()
}

/// Closes the port, and looks whether it is.
fn close(address: SocketAddr, pid: i32) -> Result<()> {
    let deadline = Instant::now() + TALK;
    let open = || listeners(pid).iter().any(|(_, other)| *other == address);
    while open() && Instant::now() < deadline {
        if let Ok(mut inspector) = Inspector::open(address, Instant::now() + Duration::from_secs(2))
        {
            let parameters = json!({"expression": "process._debugEnd()"});
            // The answer is the end of the session.
            let _ = inspector.call(
                "Runtime.evaluate",
                &parameters,
                Instant::now() + Duration::from_secs(1),
            );
        }
        pause(Duration::from_millis(20));
    }
    if open() {
        return Err(Error::new(
            &format!("close the inspector of pid {pid}"),
            format!(
                "{address} is still open to every local user; kill -USR1 does not close it, a restart does"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn listeners_out_of_the_kernels_table() {
        let line = "   0: 0100007F:240D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x";
        assert_eq!(
            listener(line),
            Some((4711, "127.0.0.1:9229".parse().unwrap()))
        );
        let six = "   1: 00000000000000000000000001000000:240D 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 12 1";
        assert_eq!(listener(six), Some((12, "[::1]:9229".parse().unwrap())));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_not(line in "[ 0-9A-F:a]{0,120}") {
            let _ = listener(&line);
        }
    }
}
