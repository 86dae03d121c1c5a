//! Who can be reached, and who is meant by a name.

use crate::cli::Reach;
use crate::door;
use crate::frames::Hello;
use crate::link::{Link, Place, wait_for};
use crate::wire::{Answer, Request};
use common::error::{Error, Result};
use common::exit::Exit;
use nix::unistd::isatty;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An agent answers within microseconds; one that does not within this is busy.
const PATIENCE: Duration = Duration::from_millis(700);

/// What a process does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Ok,
    /// It does not: its event loop is blocked.
    Busy,
    /// It serves no new requests.
    Draining,
    /// Nobody listens any more.
    Stale,
    /// It is not for us.
    Refused,
}

impl State {
    /// As `ls` has it.
    pub fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Busy => "busy",
            State::Draining => "draining",
            State::Stale => "stale",
            State::Refused => "refused",
        }
    }
}

/// A socket, and who is behind it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its directory's name.
    pub app: String,
    /// `WORKER_ID`
    pub worker: Option<u32>,
    /// `SPAWNWORK_GENERATION`
    pub generation: Option<u32>,
    /// As the kernel says; of a stale one as its name says.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// The socket.
    pub path: PathBuf,
    /// What it does.
    pub state: State,
}

impl Found {
    /// `shop/2`, or `shop/4711` where it has no number.
    pub fn name(&self) -> String {
        match self.worker {
            Some(worker) => format!("{}/{worker}", self.app),
            None => format!("{}/{}", self.app, self.pid),
        }
    }
}

/// A name as the directory of an app: nothing that could lead elsewhere.
pub fn is_app(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The sockets of `app`, or of all, with who is behind them. Those that drain come last.
///
/// # Errors
/// The own directory is not ours alone (126).
pub fn survey(app: Option<&str>) -> Result<Vec<Found>> {
    let mut paths = Vec::new();
    for (at, directory) in door::directories().iter().enumerate() {
        match door::check(directory) {
            Ok(()) => {}
            // The first is our own: if somebody else has it that must be said.
            Err(error) if at == 0 && error.exit != Exit::NotFound => return Err(error),
            Err(_) => continue,
        }
        for name in names(directory) {
            if !is_app(&name) || app.is_some_and(|app| app != name) {
                continue;
            }
            let place = directory.join(&name);
            if door::check(&place).is_err() {
                continue;
            }
            let sockets = names(&place).into_iter();
            paths.extend(
                sockets
                    .filter(|file| file.ends_with(".sock"))
                    .map(|file| (name.clone(), place.join(file))),
            );
        }
    }
    let mut links = Vec::new();
    let mut list = Vec::new();
    for (name, path) in paths {
        // Where a command is served, that starts none.
        let hello = Hello {
            mode: "json".to_owned(),
            ..Hello::default()
        };
        let link = Link::open(&Place::Unix(path.clone()), &hello);
        let named = path.file_stem().and_then(|stem| stem.to_str());
        let mut found = Found {
            app: name,
            worker: None,
            generation: None,
            pid: named.and_then(|stem| stem.parse().ok()).unwrap_or(0),
            uid: nix::unistd::geteuid().as_raw(),
            path,
            state: State::Busy,
        };
        match link {
            Ok(mut link) => {
                found.pid = link.peer.pid;
                found.uid = link.peer.uid;
                (found.worker, found.generation) = numbers(found.pid);
                let asked = link.ask(Request {
                    op: "info",
                    ..Request::default()
                });
                if asked.is_ok() {
                    links.push((list.len(), link));
                }
            }
            Err(error) if error.exit == Exit::NotFound => found.state = State::Stale,
            Err(error) if error.exit == Exit::NotExecutable => found.state = State::Refused,
            // It lives, and let nobody in.
            Err(_) => {}
        }
        list.push(found);
    }
    hear(&mut list, links)?;
    list.sort_by_key(|found| {
        let last = matches!(found.state, State::Draining | State::Stale | State::Refused);
        (found.app.clone(), last, found.worker, found.pid)
    });
    Ok(list)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The states of those that answer in time.
fn hear(list: &mut [Found], mut links: Vec<(usize, Link)>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !links.is_empty() {
        let fds: Vec<_> = links.iter().map(|(_, link)| link.as_fd()).collect();
        let ready = wait_for(&fds, Some(deadline))?;
        if !ready.contains(&true) {
            break;
        }
        let mut at = 0;
        links.retain_mut(|(index, link)| {
            let readable = ready.get(at).copied().unwrap_or(false);
            at += 1;
            if !readable {
                return true;
            }
            let Some(found) = list.get_mut(*index) else {
                return false;
            };
            if link.read().is_err() {
                // It has ended meanwhile; or it takes no more clients, and lives.
                let again = Link::open(&Place::Unix(found.path.clone()), &Hello::default());
                if again.is_err_and(|error| error.exit == Exit::NotFound) {
                    found.state = State::Stale;
                }
                return false;
            }
            if let Ok(hello) = link.greeting(Some(Instant::now())) {
                if hello.mode == "serve" {
                    found.state = State::Ok;
                    return false;
                }
            }
            match link.next_answer() {
                Some(Answer { draining, .. }) => {
                    found.state = if draining { State::Draining } else { State::Ok };
                    false
                }
                None => true,
            }
        });
    }
    Ok(())
}

/// What spawnwork has told a process: its worker's number and generation. Also of one that is busy.
fn numbers(pid: i32) -> (Option<u32>, Option<u32>) {
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else {
        return (None, None);
    };
    let number = |name: &str| {
        environment
            .split(|byte| *byte == 0)
            .filter_map(|one| std::str::from_utf8(one).ok())
            .find_map(|one| one.strip_prefix(name)?.strip_prefix('='))
            .and_then(|value| value.parse().ok())
    };
    (number("WORKER_ID"), number("SPAWNWORK_GENERATION"))
}

/// One that was chosen.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where.
    pub place: Place,
    /// For people: `shop/2`.
    pub name: String,
    /// Its app, for the history.
    pub app: String,
    /// Its worker's number.
    pub worker: Option<u32>,
    /// Its process; 0 until connected.
    pub pid: i32,
    /// It serves no new requests.
    pub draining: bool,
}

impl From<&Found> for Target {
    fn from(found: &Found) -> Target {
        Target {
            place: Place::Unix(found.path.clone()),
            name: found.name(),
            app: found.app.clone(),
            worker: found.worker,
            pid: found.pid,
            draining: found.state == State::Draining,
        }
    }
}

fn missing(text: &str, why: &str) -> Error {
    Error::new(&format!("find {text}"), why).with_exit(Exit::NotFound)
}

/// All that `reach` may mean: one for a path or a pid, each worker for an app.
///
/// # Errors
/// 127: nobody; 126: it is there, and not for us.
pub fn all(reach: &Reach) -> Result<Vec<Target>> {
    let text = reach.target.as_str();
    if let Some(address) = text.strip_prefix("tcp:") {
        let address = door::loopback(address).map_err(Error::usage)?;
        let file = reach.token_file.as_deref().ok_or_else(|| {
            Error::usage("a target over TCP needs --token-file with the server's token")
        })?;
        let token = door::token(file, door::MakeToken::No)?;
        return Ok(vec![Target {
            place: Place::Tcp(address, token),
            name: text.to_owned(),
            app: "tcp".to_owned(),
            worker: None,
            pid: 0,
            draining: false,
        }]);
    }
    if let Some(path) = as_path(text) {
        if let Err(why) = path.symlink_metadata() {
            if why.kind() == std::io::ErrorKind::PermissionDenied {
                let error = missing(text, "its directory is another user's, and closed");
                return Err(error.with_exit(Exit::NotExecutable));
            }
            return Err(missing(text, "no such socket"));
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        door::check_named(parent.unwrap_or(Path::new(".")))?;
        let app = parent
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .filter(|name| is_app(name));
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let app = app.unwrap_or("socket").to_owned();
        return Ok(vec![Target {
            name: format!("{app}/{}", stem.unwrap_or("?")),
            place: Place::Unix(path),
            app,
            worker: None,
            pid: 0,
            draining: false,
        }]);
    }
    if let Ok(pid) = text.parse::<i32>() {
        let mut found = survey(None)?;
        found.retain(|found| found.pid == pid && found.state != State::Stale);
        return match found.first() {
            Some(found) => Ok(vec![found.into()]),
            None if Path::new(&format!("/proc/{pid}")).exists() => Err(missing(
                text,
                "this process has no agent; start it by 'replsock env', or, a node, come in by --inject",
            )),
            None => Err(missing(text, "no such process")),
        };
    }
    let (app, number) = match text.split_once('/') {
        Some((app, number)) => (app, Some(number)),
        None => (text, None),
    };
    if !is_app(app) || number.is_some_and(|number| number.parse::<u32>().is_err()) {
        return Err(Error::usage(format!(
            "'{text}' is no target; APP, APP/2, APP/PID, a pid, tcp:PORT or a path with a / would do"
        )));
    }
    let mut found = survey(Some(app))?;
    let refused = found.iter().any(|found| found.state == State::Refused);
    found.retain(|found| !matches!(found.state, State::Stale | State::Refused));
    if let Some(number) = number.and_then(|number| number.parse::<i64>().ok()) {
        let workers: Vec<Target> = found
            .iter()
            .filter(|found| found.worker.map(i64::from) == Some(number))
            .map(Target::from)
            .collect();
        // During a reload there are two of a number: the one that goes on is meant.
        if let Some(first) = workers.into_iter().next() {
            return Ok(vec![first]);
        }
        found.retain(|found| i64::from(found.pid) == number);
    }
    if found.is_empty() {
        if refused {
            return Err(missing(text, "its sockets are not for us").with_exit(Exit::NotExecutable));
        }
        return Err(missing(
            text,
            "nobody of that name can be reached (replsock ls says who can; replsock env --app NAME -- command starts one)",
        ));
    }
    Ok(found.iter().map(Target::from).collect())
}

/// A path or an address, and no name.
pub fn is_place(text: &str) -> bool {
    text.starts_with("tcp:") || as_path(text).is_some()
}

fn as_path(text: &str) -> Option<PathBuf> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Some(path.into());
    }
    let path = text.starts_with('/') || text.starts_with("./") || text.starts_with("../");
    (path || text.ends_with(".sock")).then(|| text.into())
}

/// The one that `reach` means; where there are several a person is asked, and a script told.
///
/// # Errors
/// As [`all`]; 2: several.
pub fn one(reach: &Reach) -> Result<Target> {
    let list = all(reach)?;
    let [only] = list.as_slice() else {
        return choose(reach, &list);
    };
    Ok(only.clone())
}

fn choose(reach: &Reach, list: &[Target]) -> Result<Target> {
    let terminal = isatty(common::sys::standard(0)).unwrap_or(false)
        && isatty(common::sys::standard(2)).unwrap_or(false);
    let mut text = String::new();
    for (at, target) in list.iter().enumerate() {
        let number = if terminal {
            format!("{:>3}  ", at + 1)
        } else {
            String::new()
        };
        text.push_str(&format!("{number}{}  pid {}\n", target.name, target.pid));
    }
    common::cli::note(text.trim_end());
    if terminal {
        common::cli::note("Which one? Its number:");
        let mut line = String::new();
        let typed = File::open("/dev/tty").map(BufReader::new);
        if typed.and_then(|mut tty| tty.read_line(&mut line)).is_ok() {
            let chosen = line.trim().parse::<usize>().ok();
            if let Some(target) = chosen.and_then(|at| list.get(at.checked_sub(1)?)) {
                return Ok(target.clone());
            }
        }
    }
    Err(Error::usage(format!(
        "{} means {} processes; one of the above would do",
        reach.target,
        list.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        assert!(is_app("shop") && is_app("a.b-c_1"));
        for name in ["", ".", "..", ".agents", "a/b", "a b", "é"] {
            assert!(!is_app(name), "{name}");
        }
        assert!(as_path("shop/2").is_none() && as_path("4711").is_none());
        assert!(as_path("./a").is_some() && as_path("x.sock").is_some());
    }
}
