//! npm, npx, pnpm and yarn are node programs themselves: given the channel, they would take it and
//! drop it. They get a script shell instead, which is this very binary: it connects back to the
//! master, makes that connection the channel, and becomes /bin/sh.

use common::error::{Doing, Error, Result};
use common::exit::Exit;
use common::wait::{Interest, Loop, Rest};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, socket, sockopt,
};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::time::Instant;

/// So many that cannot be let in are turned away before others have their turn.
const MOST_AT_ONCE: usize = 64;

/// Names the rendezvous and the worker: `NAME:ID`.
pub const VARIABLE: &str = "SPAWNWORK_SHIM";
/// The preload's path, for NODE_OPTIONS of the script alone.
pub const PRELOAD: &str = "SPAWNWORK_SHIM_PRELOAD";

/// How package managers are told which shell runs their scripts: npm, npx, yarn 1 and older pnpm by the
/// first; pnpm from 11 on reads settings under its own name only.
pub const SCRIPT_SHELLS: [&str; 2] = ["npm_config_script_shell", "pnpm_config_script_shell"];

/// The master's side: an abstract socket (nothing on disk) that shims connect to.
#[derive(Debug)]
pub struct Rendezvous {
    /// The listening socket.
    pub fd: OwnedFd,
    name: String,
    /// Given up for a moment when no descriptor is left, so that a script can be turned away.
    spare: Option<File>,
    rest: Rest,
}

impl Rendezvous {
    /// Opens it under a name that nobody can know beforehand.
    ///
    /// # Errors
    /// EMFILE.
    pub fn open() -> Result<Rendezvous> {
        let name = format!(
            "spawnwork-{}-{:016x}",
            std::process::id(),
            common::time::random()
        );
        let open = || -> nix::Result<OwnedFd> {
            let fd = socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )?;
            bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
            listen(&fd, Backlog::new(64)?)?;
            Ok(fd)
        };
        let fd = open().doing("open the socket that npm's scripts connect to")?;
        Ok(Rendezvous::again(fd, name))
    }

    /// The same one, in another program.
    #[must_use]
    pub fn again(fd: OwnedFd, name: String) -> Rendezvous {
        let spare = common::control::spare();
        Rendezvous {
            fd,
            name,
            spare,
            rest: Rest::default(),
        }
    }

    /// Its abstract name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable's value for a worker.
    #[must_use]
    pub fn variable(&self, worker: u64) -> String {
        format!("{}:{worker}", self.name)
    }

    /// The next shim: its connection, and the pid of the script. `None` when there is no further one, or the
    /// kernel cannot let it in: then nobody is waited for, for a moment.
    #[must_use]
    pub fn accept(&mut self, events: &Loop, now: Instant) -> Option<(OwnedFd, i32)> {
        self.spare = self.spare.take().or_else(common::control::spare);
        let door = self.fd.as_raw_fd();
        let next = || {
            let fd = accept4(door, SockFlag::SOCK_CLOEXEC)?;
            common::sys::adopt(fd).ok_or(nix::Error::EBADF)
        };
        for _ in 0..MOST_AT_ONCE {
            let fd = match next() {
                Ok(fd) => fd,
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
                Err(nix::Error::EAGAIN) => return None,
                Err(nix::Error::EMFILE | nix::Error::ENFILE) if self.spare.take().is_some() => {
                    // Left in the queue it would wake us for ever. Its worker fails, and another one is started.
                    let turned_away = next();
                    self.spare = common::control::spare();
                    match turned_away {
                        Ok(fd) => drop(fd),
                        Err(nix::Error::EAGAIN) => return None,
                        Err(_) => break,
                    }
                    continue;
                }
                Err(_) => break,
            };
            // Nobody without credentials can be told from a stranger.
            if let Ok(peer) = getsockopt(&fd, sockopt::PeerCredentials) {
                return Some((fd, peer.pid()));
            }
        }
        self.rest
            .begin(events, &self.fd, common::control::SHUT, now);
        None
    }

    /// Waits for them again, if the moment is over.
    pub fn wake_if_due(&mut self, events: &Loop, token: u64, now: Instant) {
        self.rest
            .end_if_due(events, &self.fd, token, Interest::Read, now);
    }

    /// When it is.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.rest.deadline()
    }
}

/// What this process is to be, if it was started as a script shell.
#[must_use]
pub fn asked() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Becomes `/bin/sh` with the same arguments, and with a channel to the master.
///
/// # Errors
/// The master cannot be reached, or there is no /bin/sh.
pub fn run(rendezvous: &str, arguments: impl Iterator<Item = OsString>) -> Result<Exit> {
    let (name, worker) = rendezvous
        .rsplit_once(':')
        .ok_or_else(|| Error::new("use SPAWNWORK_SHIM", "it names no worker"))?;
    let dial = || -> nix::Result<OwnedFd> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Ok(fd)
    };
    let channel = dial().doing("reach the spawnwork that started this")?;
    fcntl(&channel, FcntlArg::F_SETFD(FdFlag::empty())).doing("keep the channel open")?;
    let mut shell = std::process::Command::new("/bin/sh");
    shell
        .args(arguments)
        .env_remove(VARIABLE)
        .env_remove(PRELOAD)
        .env_remove(SCRIPT_SHELLS[0])
        .env_remove(SCRIPT_SHELLS[1])
        .env("NODE_CHANNEL_FD", channel.as_raw_fd().to_string())
        .env("NODE_CHANNEL_SERIALIZATION_MODE", "json")
        .env("NODE_UNIQUE_ID", worker);
    if let Ok(path) = std::env::var(PRELOAD) {
        let present = std::env::var("NODE_OPTIONS").ok();
        shell.env(
            "NODE_OPTIONS",
            super::preload::Preload::options(&path, present.as_deref()),
        );
    }
    let why = shell.exec();
    Err(Error::new("execute /bin/sh", common::error::describe(&why)).with_exit(Exit::NotFound))
}

/// What this process does instead of its own job, if it was started as npm's script shell.
#[must_use]
pub fn instead() -> Option<Result<Exit>> {
    let rendezvous = asked()?;
    let mut arguments = std::env::args_os().skip(1).peekable();
    // npm calls `SHELL -c 'command'`; a spawnwork that a script starts by name is no shell.
    if arguments.peek().is_none_or(|first| first != "-c") {
        return None;
    }
    common::exit::abort_on_panic();
    Some(run(&rendezvous, arguments))
}
