//! What a worker gets: the generation it belongs to, its environment, its descriptors.

use crate::adopt;
use crate::cli::{Balance, OrphansArg};
use crate::node::preload::Preload;
use crate::node::shim;
use crate::plan::{Node, Plan};
use crate::state::{Hex, Open, Taken};
use common::child;
use common::error::{Doing, Error, Result};
use common::sys::{Image, Session};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What all workers of one generation have in common.
#[derive(Debug)]
pub struct Generation {
    /// Its number, from 1.
    pub number: u32,
    /// The directory of `--chdir`, held open: a later start of this generation runs in the release it
    /// began with, wherever the link points by then.
    directory: Option<(OwnedFd, PathBuf)>,
    /// `--env-file`, as it was.
    environment: Vec<(OsString, OsString)>,
}

impl Generation {
    /// Resolves what a generation resolves anew.
    ///
    /// # Errors
    /// The directory or the file cannot be had.
    pub fn new(number: u32, plan: &Plan) -> Result<Generation> {
        let directory = match &plan.chdir {
            None => None,
            Some(path) => {
                let doing = format!("change to {}", path.display());
                let resolved = std::fs::canonicalize(path).doing(&doing)?;
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let fd = nix::fcntl::open(&resolved, flags, Mode::empty()).doing(&doing)?;
                Some((fd, resolved))
            }
        };
        let environment = match &plan.env_file {
            None => Vec::new(),
            Some(path) => {
                let text = read_env_file(path).doing(&format!("read {}", path.display()))?;
                parse_env_file(&text).map_err(|line| {
                    Error::new(
                        &format!("read {}", path.display()),
                        format!("line {line} is not NAME=value"),
                    )
                })?
            }
        };
        Ok(Generation {
            number,
            directory,
            environment,
        })
    }

    /// Why no worker can be started in it any more: a directory that was removed is still open, and a
    /// program in it fails in a hundred ways of which none names the cause.
    fn removed(&self) -> Option<Error> {
        let (fd, path) = self.directory.as_ref()?;
        let links = nix::sys::stat::fstat(fd).map_or(1, |stat| stat.st_nlink);
        let doing = format!("change to {}", path.display());
        (links == 0).then(|| Error::new(&doing, "the directory was removed"))
    }

    /// Where its workers run, if that was said.
    #[must_use]
    pub fn directory(&self) -> Option<&PathBuf> {
        self.directory.as_ref().map(|(_, path)| path)
    }
}

/// A generation, for another program in our place.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedGeneration {
    /// Its number.
    pub number: u32,
    directory: Option<(RawFd, Hex)>,
    environment: Vec<(Hex, Hex)>,
}

impl Generation {
    /// Takes it down.
    pub fn save(&self, open: &mut Open) -> SavedGeneration {
        SavedGeneration {
            number: self.number,
            directory: self
                .directory
                .as_ref()
                .map(|(fd, path)| (open.keep(fd), Hex::of(path))),
            environment: self
                .environment
                .iter()
                .map(|(name, value)| (Hex::of(name), Hex::of(value)))
                .collect(),
        }
    }

    /// Puts it back.
    ///
    /// # Errors
    /// Its directory is not open.
    pub fn restore(saved: &SavedGeneration, taken: &mut Taken) -> Result<Generation> {
        let directory = match &saved.directory {
            Some((number, path)) => Some((taken.own(*number)?, PathBuf::from(path.text()))),
            None => None,
        };
        Ok(Generation {
            number: saved.number,
            directory,
            environment: saved
                .environment
                .iter()
                .map(|(name, value)| (name.text(), value.text()))
                .collect(),
        })
    }
}

/// More than an execve(2) takes in all is a wrong file.
const LONGEST_ENV_FILE: u64 = 4 << 20;

/// All of it. A reload reads it in the only thread we have: what could keep us waiting (a FIFO that
/// nobody writes to) or has no end (/dev/zero) is refused.
fn read_env_file(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind, Read};
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        let why = "a pipe can be read only once, and each reload reads it anew";
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    let mut text = Vec::new();
    file.take(LONGEST_ENV_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST_ENV_FILE {
        return Err(Error::new(ErrorKind::InvalidInput, "it is too long"));
    }
    Ok(text)
}

/// `NAME=value` lines; blank ones and `#` comments are passed over; quotes around a value go.
pub(crate) fn parse_env_file(text: &[u8]) -> std::result::Result<Vec<(OsString, OsString)>, usize> {
    let mut list = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        let line = match line.strip_prefix(b"export") {
            Some(rest @ [b' ' | b'\t', ..]) => rest.trim_ascii_start(),
            Some(_) | None => line,
        };
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let equals = line
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or(number + 1)?;
        let (name, value) = (&line[..equals], &line[equals + 1..]);
        let blank = name.iter().any(u8::is_ascii_whitespace);
        if name.is_empty() || blank || line.contains(&0) {
            return Err(number + 1);
        }
        let value = match value {
            [first @ (b'"' | b'\''), inner @ .., last] if first == last => inner,
            value => value,
        };
        list.push((
            OsString::from_vec(name.to_vec()),
            OsString::from_vec(value.to_vec()),
        ));
    }
    Ok(list)
}

/// Which worker is to be started.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Never reused; what node calls the worker's id.
    pub id: u64,
    /// `WORKER_ID`
    pub slot: usize,
    /// How many workers there are.
    pub workers: usize,
    /// Its generation.
    pub generation: &'a Generation,
    /// How the last worker of the slot ended.
    pub last_exit: Option<&'a str>,
}

/// Descriptors and names that the master prepared.
#[derive(Debug, Default)]
pub struct Given<'a> {
    /// stdin, stdout, stderr.
    pub standard: [RawFd; 3],
    /// The sockets, from descriptor 3 on.
    pub sockets: Vec<RawFd>,
    /// Their names.
    pub names: Vec<&'a str>,
    /// Read ends of its own output, so that its writes do not fail if we die.
    pub readers: Vec<RawFd>,
    /// What ends its group with us.
    pub lifeline: Option<RawFd>,
    /// The cgroup that it is to be born in.
    pub cgroup: Option<RawFd>,
    /// Node's channel.
    pub channel: Option<RawFd>,
    /// (number, descriptor) for `--ready fd:N`.
    pub ready: Option<(RawFd, RawFd)>,
    /// `NOTIFY_SOCKET`
    pub notify: Option<String>,
    /// `SPAWNWORK_SHIM`
    pub rendezvous: Option<String>,
    /// The drain module.
    pub preload: Option<String>,
    /// Whether that holds the worker back from accepting until it is told.
    pub held: bool,
    /// Those of `--compat`.
    pub compat: Vec<(String, String)>,
}

/// The environment that is nobody's business but ours, or that the worker gets from us.
const OURS: [&str; 12] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
    "WORKER_ID",
];

/// Puts everything together for the one function that starts processes.
///
/// # Errors
/// An argument or variable holds a NUL byte.
pub fn image(plan: &Plan, who: Who<'_>, given: &Given<'_>) -> Result<Image> {
    if let Some(error) = who.generation.removed() {
        return Err(error);
    }
    let environment = environment(plan, who, given)?;
    let path = environment.get(OsStr::new("PATH")).cloned();
    let program = plan
        .command
        .first()
        .map_or(OsStr::new(""), OsString::as_os_str);
    let text = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| Error::usage("an argument holds a NUL byte"))
    };
    let mut descriptors: Vec<(RawFd, RawFd)> = given
        .standard
        .iter()
        .enumerate()
        .map(|(number, fd)| (*fd, number as RawFd))
        .collect();
    let mut next = common::fds::FIRST;
    for fd in &given.sockets {
        descriptors.push((*fd, next));
        next += 1;
    }
    if let Some((number, fd)) = given.ready {
        descriptors.push((fd, number));
    }
    let more = given.channel.iter().chain(&given.readers);
    for fd in more.chain(&given.lifeline) {
        if given.ready.is_some_and(|(number, _)| number == next) {
            next += 1;
        }
        descriptors.push((*fd, next));
        next += 1;
    }
    Ok(Image {
        candidates: child::candidates(program, path.as_deref()),
        arguments: plan
            .command
            .iter()
            .map(|word| text(word.as_bytes()))
            .collect::<Result<_>>()?,
        environment: pairs(environment)?,
        listen_pid: !given.sockets.is_empty(),
        descriptors,
        directory: who
            .generation
            .directory
            .as_ref()
            .map(|(fd, _)| fd.as_raw_fd()),
        nofile: Some(plan.nofile),
        identity: plan
            .user
            .as_ref()
            .map(|user| (user.uid, user.gid, user.groups.clone())),
        own_group: true,
        session: Session::Ours,
        death_signal: match (plan.orphans, plan.node) {
            (OrphansArg::Die, _) => Some(9),
            (OrphansArg::Drain, Node::No) => Some(15),
            // A node worker learns of our end by its channel, and drains.
            (OrphansArg::Drain, Node::Direct | Node::Shim) => None,
            // It goes on; but what is not a worker yet when we die is to be none: nobody would find it.
            (OrphansArg::Adopt, _) => Some(0),
        },
        lifeline: given.lifeline,
        cgroup: given.cgroup,
        borrows_memory: false,
    })
}

/// The command of `--check`, as a worker of `generation` would be started, but for descriptors and slot.
///
/// # Errors
/// The command or a variable holds a NUL byte.
pub fn check_image(
    plan: &Plan,
    generation: &Generation,
    command: &str,
    standard: [RawFd; 3],
    lifeline: Option<RawFd>,
) -> Result<Image> {
    let who = Who {
        id: 0,
        slot: 0,
        workers: plan.workers,
        generation,
        last_exit: None,
    };
    let mut environment = environment(plan, who, &Given::default())?;
    environment.remove(OsStr::new("WORKER_ID"));
    let text =
        |bytes: &[u8]| CString::new(bytes).map_err(|_| Error::usage("a variable holds a NUL byte"));
    Ok(Image {
        candidates: vec![c"/bin/sh".to_owned()],
        arguments: vec![
            c"sh".to_owned(),
            c"-c".to_owned(),
            text(command.as_bytes())?,
        ],
        environment: pairs(environment)?,
        descriptors: standard
            .iter()
            .chain(&lifeline)
            .enumerate()
            .map(|(number, fd)| (*fd, number as RawFd))
            .collect(),
        lifeline,
        nofile: Some(plan.nofile),
        directory: generation.directory.as_ref().map(|(fd, _)| fd.as_raw_fd()),
        identity: plan
            .user
            .as_ref()
            .map(|user| (user.uid, user.gid, user.groups.clone())),
        own_group: true,
        death_signal: Some(9),
        ..Image::default()
    })
}

/// `NAME=value` each.
fn pairs(environment: BTreeMap<OsString, OsString>) -> Result<Vec<CString>> {
    environment
        .into_iter()
        .map(|(name, value)| {
            let mut pair = name.into_vec();
            pair.push(b'=');
            pair.extend_from_slice(value.as_bytes());
            CString::new(pair).map_err(|_| Error::usage("a variable holds a NUL byte"))
        })
        .collect()
}

fn environment(
    plan: &Plan,
    who: Who<'_>,
    given: &Given<'_>,
) -> Result<BTreeMap<OsString, OsString>> {
    let mut all: BTreeMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| {
            !OURS.iter().any(|ours| name == ours)
                && !name.as_bytes().starts_with(b"SPAWNWORK_")
                && !crate::compat::is_foreign(name)
        })
        .collect();
    let mut set = |name: &str, value: OsString| {
        all.insert(name.into(), value);
    };
    if let Some(user) = &plan.user {
        set("HOME", user.home.clone().into());
        set("USER", user.name.clone().into());
        set("LOGNAME", user.name.clone().into());
        set("SHELL", user.shell.clone().into());
    }
    if let Some(path) = who.generation.directory() {
        set("PWD", path.clone().into());
    }
    for (name, value) in &who.generation.environment {
        all.insert(name.clone(), value.clone());
    }
    for (name, value) in &plan.env {
        all.insert(name.into(), expand(value, who).into());
    }
    let mut set = |name: &str, value: String| {
        all.insert(name.into(), value.into());
    };
    set("WORKER_ID", who.slot.to_string());
    set("SPAWNWORK_WORKERS", who.workers.to_string());
    set("SPAWNWORK_GENERATION", who.generation.number.to_string());
    set("SPAWNWORK_PID", std::process::id().to_string());
    if let Some(mark) = &plan.mark {
        all.insert(adopt::VARIABLE.into(), mark.clone());
    }
    let mut set = |name: &str, value: String| {
        all.insert(name.into(), value.into());
    };
    if let Some(last) = who.last_exit {
        set("SPAWNWORK_LAST_EXIT", last.to_owned());
    }
    if !given.sockets.is_empty() {
        set("LISTEN_FDS", given.sockets.len().to_string());
        set("LISTEN_FDNAMES", given.names.join(":"));
    }
    for (name, value) in &given.compat {
        set(name, value.clone());
    }
    if let Some(notify) = &given.notify {
        set("NOTIFY_SOCKET", notify.clone());
        // Without WATCHDOG_PID it is for whoever speaks, also behind a wrapper (sd_watchdog_enabled(3)).
        if let Some(length) = plan.watchdog {
            set("WATCHDOG_USEC", length.as_micros().to_string());
        }
    }
    if given.channel.is_some() {
        let fd = common::fds::FIRST as usize + given.sockets.len();
        let fd = if given.ready.is_some_and(|(number, _)| number as usize == fd) {
            fd + 1
        } else {
            fd
        };
        set("NODE_CHANNEL_FD", fd.to_string());
        set("NODE_CHANNEL_SERIALIZATION_MODE", "json".to_owned());
        set("NODE_UNIQUE_ID", who.id.to_string());
    }
    if let Some(rendezvous) = &given.rendezvous {
        set(shim::VARIABLE, rendezvous.clone());
        let own = std::env::current_exe().doing("find our own program")?;
        for name in shim::SCRIPT_SHELLS {
            set(name, own.to_string_lossy().into_owned());
        }
    }
    if let Some(path) = &given.preload {
        set(
            "SPAWNWORK_DRAIN_MS",
            plan.stop_timeout.as_millis().to_string(),
        );
        match (plan.orphans, plan.balance) {
            (OrphansArg::Die | OrphansArg::Drain, _) => {}
            (OrphansArg::Adopt, Balance::Shared | Balance::Slots) => {
                set(adopt::ALONE, adopt::GO_ON.as_millis().to_string());
            }
            // Nobody can hand it a connection any more.
            (OrphansArg::Adopt, Balance::RoundRobin) => set(adopt::ALONE, "0".to_owned()),
        }
        if given.held {
            set("SPAWNWORK_HOLD", "1".to_owned());
        }
        if given.rendezvous.is_some() {
            set(shim::PRELOAD, path.clone());
        } else {
            let present = all
                .get(OsStr::new("NODE_OPTIONS"))
                .map(|options| options.to_string_lossy().into_owned());
            all.insert(
                "NODE_OPTIONS".into(),
                Preload::options(path, present.as_deref()).into(),
            );
        }
    }
    Ok(all)
}

/// `%i` is the slot, `%g` the generation, `%%` a per cent sign.
fn expand(text: &str, who: Who<'_>) -> String {
    expand_with(text, who.slot, who.generation.number, None)
}

/// The same with `%p`, the worker's pid, where it is known.
#[must_use]
pub fn expand_with(text: &str, slot: usize, generation: u32, pid: Option<i32>) -> String {
    let mut out = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let follows = if letter == '%' {
            letters.peek().copied()
        } else {
            None
        };
        match (follows, pid) {
            (Some('i'), _) => out.push_str(&slot.to_string()),
            (Some('g'), _) => out.push_str(&generation.to_string()),
            (Some('p'), Some(pid)) => out.push_str(&pid.to_string()),
            (Some('%'), _) => out.push('%'),
            _ => {
                out.push(letter);
                continue;
            }
        }
        letters.next();
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn percent_letters() {
        assert_eq!(
            expand_with("w%i.%g/%p %% %x %", 3, 7, Some(42)),
            "w3.7/42 % %x %"
        );
        assert_eq!(expand_with("%p", 3, 7, None), "%p");
    }

    #[test]
    fn env_files() {
        let text = b"# c\n\nA=1\nexport B=\"two words\"\n  C='x'\nD=\nE=\"open\n";
        let list = parse_env_file(text).unwrap();
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
            .collect();
        assert_eq!(list, ["A=1", "B=two words", "C=x", "D=", "E=\"open"]);
        assert_eq!(parse_env_file(b"A=1\nnonsense\n"), Err(2));
        assert_eq!(parse_env_file(b"=1"), Err(1));
        assert_eq!(parse_env_file(b"A\tB=1"), Err(1));
    }
}
