//! What was typed, meant: looked up, checked, contradictions refused. No effect yet.

use crate::actions::Actions;
use crate::ask::Question;
use crate::cli::{
    Backoff, Balance, Cli, Compat, NodeArg, NofileArg, OnLimit, OrphansArg, OutputArg, Ready,
    Surge, Workers,
};
use crate::output::{self, Kind};
use crate::pool::{Policy, respawn};
use crate::state::Saved;
use crate::{adopt, cpus, store};
use common::error::{Error, Result};
use common::event::{Format, Level};
use common::fds::{self, Inherited, ListenPid};
use common::privs::{self, Nofile, User};
use common::socket::{Address, UnixRights};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Not at all.
    No,
    /// The program (or what it execs) is node: it gets the channel.
    Direct,
    /// A package manager that starts node later: it gets the script shell.
    Shim,
}

/// How a worker shows that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// As the user said.
    Told(Ready),
    /// READY=1 if it says anything on NOTIFY_SOCKET within a second, else that second alive.
    Found,
}

/// A socket to have before any worker starts.
#[derive(Debug)]
pub enum Listen {
    /// To be bound.
    Bind(String, Address),
    /// One that we were started with.
    Take(String, Inherited),
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Order {
    /// To be a master.
    Run(Box<Plan>),
    /// To ask one.
    Ask(Question),
    /// To look at the state of one, on this descriptor.
    CheckState(i32),
    /// To say what a master would do.
    Check(Box<Plan>),
}

impl Order {
    /// Tells the two apart.
    ///
    /// # Errors
    /// Wrong usage (2), or something that this machine cannot give (125).
    pub fn make(cli: Cli) -> Result<Order> {
        match cli.ctl {
            Some(path) => {
                Question::new(path, &cli.command, cli.timeout, crate::ask::REQUESTS).map(Order::Ask)
            }
            None if cli.timeout.is_some() => {
                Err(Error::usage("--timeout is for the answer to --ctl"))
            }
            None if cli.check_config => {
                Plan::make(cli, false).map(|plan| Order::Check(Box::new(plan)))
            }
            None => match cli.check_state {
                // The command line must make sense to this program, too.
                Some(number) => Plan::make(cli, true).map(|_| Order::CheckState(number)),
                None => {
                    let saved = crate::reexec::inherited()?;
                    let mut plan = Plan::make(cli, saved.is_some())?;
                    plan.saved = saved;
                    Ok(Order::Run(Box::new(plan)))
                }
            },
        }
    }
}

/// Everything that is settled before anything happens.
#[derive(Debug)]
pub struct Plan {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Number of workers.
    pub workers: usize,
    /// Sockets, in the order of LISTEN_FDS.
    pub listen: Vec<Listen>,
    /// Sockets that came back from the supervisor's store.
    pub returned: Vec<Inherited>,
    /// Rights of unix sockets.
    pub rights: UnixRights,
    /// For each socket.
    pub backlog: i32,
    /// `--bind-retry`
    pub bind_retry: Duration,
    /// `--compat`
    pub compat: Vec<Compat>,
    /// Node's part.
    pub node: Node,
    /// The drain module is loaded into node workers.
    pub preload: bool,
    /// Who accepts.
    pub balance: Balance,
    /// Ports below this one are not bound for node workers.
    pub lowest_port: u16,
    /// Whom the workers run as.
    pub user: Option<User>,
    /// RLIMIT_NOFILE of workers, soft and hard.
    pub nofile: (u64, u64),
    /// `--chdir`
    pub chdir: Option<PathBuf>,
    /// `--env`
    pub env: Vec<(String, String)>,
    /// `--env-file`
    pub env_file: Option<PathBuf>,
    /// `--ready`
    pub ready: Readiness,
    /// `--ready-timeout`
    pub ready_timeout: Duration,
    /// `--check`
    pub check: Option<String>,
    /// `--probe`
    pub probe: Option<String>,
    /// The reload's rules, for this number of workers.
    pub surge: Surge,
    /// `--start-parallel`
    pub parallel: usize,
    /// `--probation`
    pub probation: Duration,
    /// `--stop-signal`, where it was given.
    pub stop_signal: Option<i32>,
    /// `--stop-timeout`
    pub stop_timeout: Duration,
    /// `--respawn-limit`, `--backoff`
    pub respawn: respawn::Policy,
    /// `--watchdog`; `None`: off.
    pub watchdog: Option<Duration>,
    /// `--max-rss`, in bytes.
    pub max_rss: Option<u64>,
    /// `--max-lifetime`
    pub max_lifetime: Option<Duration>,
    /// `--jitter`, in per cent.
    pub jitter: u32,
    /// `--on-limit`
    pub on_limit: OnLimit,
    /// `--orphans`
    pub orphans: OrphansArg,
    /// What the next master finds our workers by; `None` but for `--orphans adopt`.
    pub mark: Option<OsString>,
    /// What we find the workers of a dead master by.
    pub keys: Vec<PathBuf>,
    /// stdout of workers goes through us.
    pub pipe_stdout: bool,
    /// The same for stderr.
    pub pipe_stderr: bool,
    /// `--prefix`
    pub prefix: String,
    /// `--pid-file`
    pub pid_file: Option<PathBuf>,
    /// `--control`
    pub control: Option<PathBuf>,
    /// What signals do.
    pub actions: Actions,
    /// `--log-format`
    pub format: Option<Format>,
    /// What is logged.
    pub level: Level,
    /// What the program before us has left us.
    pub saved: Option<Saved>,
}

impl Plan {
    /// Makes sense of the command line. In the place of another program there are sockets already.
    ///
    /// # Errors
    /// Wrong usage (2), or something that this machine cannot give (125).
    pub fn make(cli: Cli, resumed: bool) -> Result<Plan> {
        let user = cli.user.as_deref().map(privs::look_up).transpose()?;
        let owner = cli
            .socket_owner
            .as_deref()
            .map(privs::look_up)
            .transpose()?;
        let nofile = privs::nofile(match cli.nofile {
            None => Nofile::Default,
            Some(NofileArg::Max) => Nofile::Max,
            Some(NofileArg::Count(count)) => Nofile::Count(count),
        })?;
        let program = cli.command.first().cloned().unwrap_or_default();
        let node = match cli.node {
            NodeArg::No => Node::No,
            NodeArg::Yes => {
                if is_manager(&program) {
                    Node::Shim
                } else {
                    Node::Direct
                }
            }
            NodeArg::Auto if is_manager(&program) => Node::Shim,
            NodeArg::Auto if is_node(&program) => Node::Direct,
            NodeArg::Auto => Node::No,
        };
        if cli.balance == Balance::RoundRobin && node == Node::No {
            return Err(Error::usage(
                "--balance round-robin is for node (see --node); other programs accept by themselves",
            ));
        }
        if let Some(path) = &cli.probe {
            if cli.balance != Balance::RoundRobin {
                return Err(Error::usage(
                    "--probe needs --balance round-robin: only there the master has connections to give",
                ));
            }
            if !path.starts_with('/')
                || path.contains(|c: char| c.is_whitespace() || c.is_control())
            {
                return Err(Error::usage(format!(
                    "--probe '{path}': a path like /health would do"
                )));
            }
        }
        let ready = match cli.ready.clone() {
            Some(Ready::Listen) if node == Node::No => {
                return Err(Error::usage(
                    "--ready listen is for node (see --node); others can use notify, fd:N, exec:CMD or alive:D",
                ));
            }
            Some(ready) => Readiness::Told(ready),
            None if node == Node::No => Readiness::Found,
            None => Readiness::Told(Ready::Listen),
        };
        let (listen, returned) = if resumed {
            (Vec::new(), Vec::new())
        } else {
            listen(&cli)?
        };
        if !resumed {
            crate::slots::check(cli.balance, node, &listen)?;
            crate::compat::check(&cli.compat, &listen)?;
        }
        let taken = match &ready {
            Readiness::Told(Ready::Fd(number)) => {
                Some(*number).filter(|number| (*number as usize) < 3 + listen.len())
            }
            Readiness::Told(_) | Readiness::Found => None,
        };
        if let Some(number) = taken {
            return Err(Error::usage(format!(
                "--ready fd:{number} is the number of a --listen socket; take {} or higher",
                3 + listen.len()
            )));
        }
        let workers = match cli.workers {
            Workers::Count(count) => count,
            Workers::Auto => match std::env::var("WEB_CONCURRENCY") {
                Ok(text) if !text.is_empty() => match text.parse::<usize>() {
                    Ok(count) if (1..=10_000).contains(&count) => count,
                    _ => {
                        return Err(Error::usage(format!(
                            "WEB_CONCURRENCY='{text}': a number from 1 to 10000 would do"
                        )));
                    }
                },
                _ => cpus::usable(),
            },
        };
        let another = user
            .as_ref()
            .is_some_and(|user| user.uid != nix::unistd::geteuid().as_raw());
        let lowest_port = if another && !cli.allow_bind {
            unprivileged_port_start()
        } else {
            0
        };
        let (out, err) = (
            output::kind_of(common::sys::standard(1)),
            output::kind_of(common::sys::standard(2)),
        );
        let keys = keys(&cli, node)?;
        let mark = keys.first().map(|key| mark(key, node)).transpose()?;
        let Backoff { min, max } = cli.backoff;
        Ok(Plan {
            workers,
            listen,
            returned,
            rights: UnixRights {
                mode: cli.socket_mode,
                owner: owner.map(|owner| (owner.uid, owner.gid)),
            },
            backlog: i32::try_from(cli.backlog).unwrap_or(i32::MAX),
            bind_retry: cli.bind_retry,
            compat: cli.compat,
            node,
            preload: !cli.no_preload,
            balance: cli.balance,
            lowest_port,
            user,
            nofile,
            chdir: cli.chdir,
            env: cli.env,
            env_file: cli.env_file,
            ready,
            ready_timeout: cli.ready_timeout,
            check: cli.check,
            probe: cli.probe,
            surge: cli.surge,
            parallel: cli
                .start_parallel
                .map_or_else(cpus::usable, |count| count as usize),
            probation: cli.probation,
            stop_signal: cli.stop_signal,
            stop_timeout: cli.stop_timeout,
            respawn: respawn::Policy {
                count: cli.respawn_limit.rate.count,
                per: cli.respawn_limit.rate.per,
                filter: cli.respawn_limit.filter,
                min,
                max,
            },
            watchdog: cli.watchdog.filter(|length| !length.is_zero()),
            max_rss: cli.max_rss,
            max_lifetime: cli.max_lifetime,
            jitter: cli.jitter,
            on_limit: cli.on_limit,
            orphans: cli.orphans,
            mark,
            keys,
            pipe_stdout: match cli.output {
                Some(how) => how == OutputArg::Lines,
                None => out == Kind::Other,
            },
            pipe_stderr: match cli.output {
                Some(how) => how == OutputArg::Lines,
                None => err != Kind::Terminal,
            },
            prefix: cli.prefix.unwrap_or_default(),
            pid_file: cli.pid_file,
            control: cli.control,
            actions: Actions::new(&cli.on_signal).map_err(Error::usage)?,
            format: cli.log_format,
            level: match (cli.quiet, cli.verbose) {
                (true, _) => Level::Warning,
                (_, true) => Level::Debug,
                _ => Level::Info,
            },
            command: cli.command,
            saved: None,
        })
    }

    /// What of it the pool decides by.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            surge: self.surge,
            parallel: self.parallel,
            probation: self.probation,
            check: self.check.is_some(),
            probe: self.probe.is_some(),
            // A new release that fails in its probation takes no request along: until the switch the
            // old one has them all.
            holds: self.node != Node::No && self.preload,
            // With a socket for each slot, what waits at one is nobody else's.
            shares: self.node != Node::No && self.preload && self.balance != Balance::Slots,
            stop_timeout: self.stop_timeout,
            respawn: self.respawn.clone(),
            on_limit: self.on_limit,
            max_rss: self.max_rss,
            max_lifetime: self.max_lifetime,
            jitter: self.jitter,
        }
    }
}

/// The files that tell for whom orphans are, in one spelling.
fn keys(cli: &Cli, node: Node) -> Result<Vec<PathBuf>> {
    match cli.orphans {
        OrphansArg::Die | OrphansArg::Drain => return Ok(Vec::new()),
        OrphansArg::Adopt => {}
    }
    if node != Node::No && cli.no_preload {
        return Err(Error::usage(
            "--orphans adopt and --no-preload: without the preload a node worker ends with its master",
        ));
    }
    if cli.balance == Balance::Slots {
        return Err(Error::usage(
            "--orphans adopt and --balance slots: which slot an orphan's socket belongs to is not known; shared sockets can be adopted",
        ));
    }
    let files = [cli.pid_file.as_deref(), cli.control.as_deref()];
    let keys: Vec<PathBuf> = files.into_iter().flatten().map(in_full).collect();
    if keys.is_empty() {
        return Err(Error::usage(
            "--orphans adopt needs --pid-file or --control: by that file the next spawnwork knows whose workers they are",
        ));
    }
    Ok(keys)
}

/// Links of the directory are followed, the last name is not: there the file is made anew.
fn in_full(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = std::fs::canonicalize(parent.unwrap_or(Path::new(".")));
    match (parent, path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        (Err(_), _) | (_, None) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

fn mark(key: &Path, node: Node) -> Result<OsString> {
    let own = common::child::stat(std::process::id() as i32);
    let own = own.ok_or_else(|| {
        Error::new(
            "use --orphans adopt",
            "/proc is not there; --orphans drain needs none",
        )
    })?;
    let manners = match node {
        Node::No => adopt::Manners::Plain,
        Node::Direct | Node::Shim => adopt::Manners::Node,
    };
    let mark = adopt::Mark {
        manners,
        start: own.start,
        key: key.to_owned(),
    };
    Ok(mark.value())
}

/// node itself, or a script that its first line gives to node (`node_modules/.bin/next`).
fn is_node(program: &OsStr) -> bool {
    let named = |path: &[u8]| {
        matches!(
            path.rsplit(|byte| *byte == b'/').next(),
            Some(b"node" | b"nodejs")
        )
    };
    if named(program.as_bytes()) {
        return true;
    }
    let path = std::env::var_os("PATH");
    let found = common::child::candidates(program, path.as_deref())
        .into_iter()
        .map(|path| PathBuf::from(OsStr::from_bytes(path.as_bytes())))
        .find(|path| path.is_file());
    found.is_some_and(|path| {
        first_line(&path).is_some_and(|line| {
            line.strip_prefix(b"#!").is_some_and(|rest| {
                rest.split(|byte| byte.is_ascii_whitespace())
                    .filter(|word| !word.is_empty())
                    .take(3)
                    .any(named)
            })
        })
    })
}

fn first_line(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(256)
        .read_to_end(&mut start)
        .ok()?;
    start
        .split(|byte| *byte == b'\n')
        .next()
        .map(<[u8]>::to_vec)
}

fn is_manager(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    ["npm", "npx", "pnpm", "yarn"]
        .iter()
        .any(|manager| name == *manager)
}

/// net.ipv4.ip_unprivileged_port_start, ip-sysctl.
fn unprivileged_port_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

/// What is to be had before any worker starts, and what came back from the supervisor's store.
fn listen(cli: &Cli) -> Result<(Vec<Listen>, Vec<Inherited>)> {
    let check = if cli.no_listen_pid {
        ListenPid::Ignored
    } else {
        ListenPid::Checked
    };
    let wants_inherited = cli.listen.iter().any(|text| {
        let (_, address) = named(text);
        address.starts_with("fd:") || address.starts_with("sd:")
    });
    // Sockets of systemd that are not asked for are not ours to refuse: the variables may be meant for
    // a program around us.
    // Given by an activator and nothing else was said: they are for the workers.
    let wants_inherited =
        wants_inherited || (std::env::var_os("LISTEN_FDS").is_some() && cli.listen.is_empty());
    let (returned, others) = if fds::names().iter().any(|name| store::is_ours(name)) {
        // Nobody but us gives such names, so what bears one is ours whatever LISTEN_PID says: a shell
        // between the supervisor and us must not keep a service from coming back.
        let (returned, others): (Vec<_>, Vec<_>) = fds::inherited(ListenPid::Ignored)?
            .into_iter()
            .partition(|one| store::is_ours(&one.name));
        if wants_inherited && !others.is_empty() && check == ListenPid::Checked {
            fds::check_listen_pid()?;
        }
        (returned, others)
    } else if wants_inherited {
        (Vec::new(), fds::inherited(check)?)
    } else {
        (Vec::new(), Vec::new())
    };
    if cli.listen.is_empty() {
        let all = others.into_iter();
        let list = all.map(|one| Listen::Take(one.name.clone(), one)).collect();
        return Ok((list, returned));
    }
    let mut inherited: Vec<Option<Inherited>> = others.into_iter().map(Some).collect();
    let free = |number: i32| !returned.iter().any(|one| one.number == number);
    let mut list = Vec::new();
    for text in &cli.listen {
        let (name, address) = named(text);
        if let Some(number) = address.strip_prefix("fd:") {
            let number: i32 = number
                .parse()
                .map_err(|_| Error::usage(format!("--listen '{text}': fd:N takes a number")))?;
            let found = inherited
                .iter_mut()
                .find(|one| one.as_ref().is_some_and(|one| one.number == number));
            let one = match found.and_then(Option::take) {
                Some(one) => one,
                None if number > 2 && inherited.iter().all(Option::is_some) && free(number) => {
                    adopt(number)?
                }
                None => return Err(Error::new(&format!("use fd:{number}"), "it is named twice")),
            };
            list.push(Listen::Take(
                name.map_or_else(|| one.name.clone(), str::to_owned),
                one,
            ));
        } else if let Some(wanted) = address.strip_prefix("sd:") {
            let before = list.len();
            for slot in &mut inherited {
                if let Some(one) = slot.take_if(|one| one.name == wanted) {
                    list.push(Listen::Take(name.unwrap_or(wanted).to_owned(), one));
                }
            }
            if list.len() == before {
                return Err(Error::new(
                    &format!("use sd:{wanted}"),
                    "LISTEN_FDNAMES names no such socket",
                ));
            }
        } else {
            if looks_like_log(address) {
                return Err(Error::usage(format!(
                    "--listen '{text}' looks like a log file; logs are the business of: logreopen -l {address} -- spawnwork ..."
                )));
            }
            let parsed = common::cli::address(address)
                .map_err(|why| Error::usage(format!("--listen '{text}': {why}")))?;
            if matches!(&parsed, Address::Unix(path) if path.as_os_str().len() > 107) {
                return Err(Error::usage(format!(
                    "--listen '{text}': the path is longer than the 107 bytes of a unix socket"
                )));
            }
            list.push(Listen::Bind(name.unwrap_or("unknown").to_owned(), parsed));
        }
    }
    Ok((list, returned))
}

fn adopt(number: i32) -> Result<Inherited> {
    match common::sys::adopt(number) {
        Some(fd) => Ok(Inherited {
            number,
            name: "unknown".to_owned(),
            fd,
        }),
        None => Err(Error::new(&format!("use fd:{number}"), "it is not open")),
    }
}

/// `NAME=ADDRESS`; a name has no colon and no slash, so that `unix:/a=b` is an address.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() && !name.contains([':', '/']) => {
            (Some(name), address)
        }
        _ => (None, text),
    }
}

fn looks_like_log(address: &str) -> bool {
    let path = Path::new(address.strip_prefix("unix:").unwrap_or(address));
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    (address.contains('/') && !address.starts_with('/') && !address.starts_with("unix:"))
        || (matches!(ending, "log" | "out" | "err")
            && address.parse::<std::net::SocketAddr>().is_err())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        assert_eq!(named("web=3000"), (Some("web"), "3000"));
        assert_eq!(named("unix:/a=b"), (None, "unix:/a=b"));
        assert_eq!(named("=3000"), (None, "=3000"));
    }

    #[test]
    fn the_log_file_of_another_tool_is_noticed() {
        for log in ["logs/app.out", "app.log", "/var/log/app.err", "./x/y"] {
            assert!(looks_like_log(log), "{log}");
        }
        for address in [
            "3000",
            "127.0.0.1:80",
            "/run/app.sock",
            "unix:run/app.sock",
            "[::1]:80",
        ] {
            assert!(!looks_like_log(address), "{address}");
        }
    }

    #[test]
    fn programs_of_node() {
        for node in ["node", "/usr/local/bin/node", "nodejs"] {
            assert!(is_node(OsStr::new(node)));
        }
        assert!(is_manager(OsStr::new("/usr/bin/npm")));
        assert!(!is_node(OsStr::new("/bin/sh")));
    }
}
