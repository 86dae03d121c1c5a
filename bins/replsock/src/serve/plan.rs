//! What was meant by `serve`: looked up and checked, before anything is done.

use super::cli::Serve;
use crate::door::{self, Allowed, MakeToken};
use common::child::candidates;
use common::error::{Error, Result};
use common::event::Format;
use common::exit::Exit;
use common::socket::UnixRights;
use nix::unistd::{AccessFlags, access};
use std::ffi::{CString, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// What the command's standard descriptors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A terminal for a client that has one, pipes for others.
    AsTheClient,
    /// A terminal.
    Terminal,
    /// Pipes.
    Pipes,
}

/// All of it.
#[derive(Debug)]
pub struct Plan {
    /// Where it listens.
    pub path: PathBuf,
    /// With these rights.
    pub rights: UnixRights,
    /// A loopback port, and what a client proves itself by there.
    pub tcp: Option<(SocketAddr, String)>,
    /// One command for all.
    pub shared: bool,
    /// A terminal or pipes.
    pub way: Way,
    /// What is run.
    pub command: Vec<OsString>,
    /// The program, as the path may lead to it.
    pub candidates: Vec<CString>,
    /// Its RLIMIT_NOFILE, soft and hard: ours is raised.
    pub nofile: Option<(u64, u64)>,
    /// Who is let in besides.
    pub allowed: Allowed,
    /// Clients at once.
    pub max_clients: usize,
    /// A client in which nothing moves that long is left.
    pub idle: Option<Duration>,
    /// Where sessions are recorded.
    pub record: Option<PathBuf>,
    /// Of events.
    pub format: Option<Format>,
    /// Only warnings.
    pub quiet: bool,
}

impl Plan {
    /// Of what was typed.
    ///
    /// # Errors
    /// 2; 126, 127: the command cannot be run, or is not there.
    pub fn of(order: Serve) -> Result<Plan> {
        let path = match order
            .socket
            .to_str()
            .and_then(|text| text.strip_prefix("unix:"))
        {
            Some(path) => path.into(),
            None => order.socket,
        };
        if path.file_name().is_none() {
            return Err(Error::usage(format!(
                "'{}' is no path of a socket; ./console.sock would do",
                path.display()
            )));
        }
        if order.max_clients == 0 {
            return Err(Error::usage("--max-clients 0 lets nobody in"));
        }
        let mut allowed = Allowed::default();
        for who in &order.allow {
            allowed
                .add(who)
                .map_err(|why| Error::usage(format!("--allow {why}")))?;
        }
        let tcp = match (&order.tcp, &order.token_file) {
            (Some(text), Some(file)) => {
                let address =
                    door::loopback(text).map_err(|why| Error::usage(format!("--tcp {why}")))?;
                Some((address, door::token(file, MakeToken::IfMissing)?))
            }
            _ => None,
        };
        let program = order.command.first().cloned().unwrap_or_default();
        let candidates = candidates(&program, std::env::var_os("PATH").as_deref());
        runnable(&program, &candidates)?;
        Ok(Plan {
            path,
            rights: allowed.rights(),
            tcp,
            shared: order.shared,
            way: match (order.pty, order.pipe) {
                (true, _) => Way::Terminal,
                (_, true) => Way::Pipes,
                // A console that some look at and others leave has to be one.
                (false, false) if order.shared => Way::Terminal,
                (false, false) => Way::AsTheClient,
            },
            command: order.command,
            candidates,
            // Six descriptors for a session, and 1024 is the usual limit.
            nofile: common::privs::raise_nofile(),
            allowed,
            max_clients: order.max_clients as usize,
            idle: (!order.idle.is_zero()).then_some(order.idle),
            record: order.record,
            format: order.log_format,
            quiet: order.quiet,
        })
    }
}

impl Plan {
    /// The program, for people.
    pub fn name(&self) -> String {
        let program = self.command.first();
        program.map_or_else(String::new, |word| word.to_string_lossy().into_owned())
    }
}

/// A command that is not there is said now, and not to each client.
fn runnable(program: &OsString, candidates: &[CString]) -> Result<()> {
    let is_file = |path: &CString| {
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        path.is_file()
    };
    let doing = format!("execute '{}'", program.to_string_lossy());
    if candidates
        .iter()
        .any(|path| is_file(path) && access(path.as_c_str(), AccessFlags::X_OK).is_ok())
    {
        return Ok(());
    }
    if candidates.iter().any(is_file) {
        return Err(Error::new(&doing, "permission denied").with_exit(Exit::NotExecutable));
    }
    Err(Error::new(&doing, "no such file or directory").with_exit(Exit::NotFound))
}
