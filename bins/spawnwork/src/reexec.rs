//! `reexec`: another program in our place, with the same pid, the same workers and the same sockets. It
//! looks at the state first, and says whether it can go on with it; until then nothing has happened.

use crate::events;
use crate::pool::Phase;
use crate::run::Master;
use crate::state::{Open, Saved};
use common::child::{self, Child};
use common::control::Reply;
use common::error::{Doing, Error, Result};
use common::event::Level;
use common::exit::{End, Exit};
use common::sys::{Image, OnExec, set_on_exec};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Names the descriptor that holds the state, to the program that takes our place.
const VARIABLE: &str = "SPAWNWORK_STATE";
/// How long the new program may look at the state.
const PATIENCE: Duration = Duration::from_secs(10);
/// What `--check-state` says when it can go on. Any program can end with 0, an empty file too (a shell
/// makes a script of it): in our place it would end, and everything with it.
const ACCEPTED: &str = "state accepted";
/// The longest state that is read, in bytes.
const LONGEST: u64 = 256 << 20;

/// The new program looks at the state.
#[derive(Debug)]
pub struct Upgrade {
    child: Child,
    said: OwnedFd,
    client: u64,
    program: PathBuf,
    /// When it has taken too long.
    pub deadline: Instant,
}

impl Upgrade {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Nobody wants its word any more.
    pub fn abandon(&self) {
        self.child.signal_group(9);
    }
}

/// The program that stands where ours was started from: a newer one, as a rule.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().doing("find our own program")?;
    // Linux marks the path of a file that was replaced (proc_pid_exe(5)).
    let bytes = own.as_os_str().as_bytes();
    let path = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Ok(PathBuf::from(OsString::from_vec(path.to_vec())))
}

fn text(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::usage("an argument holds a NUL byte"))
}

/// Our environment, and one more variable.
fn environment(state: Option<RawFd>) -> Result<Vec<CString>> {
    let state = state.map(|fd| (OsString::from(VARIABLE), OsString::from(fd.to_string())));
    std::env::vars_os()
        .filter(|(name, _)| name != VARIABLE)
        .chain(state)
        .map(|(name, value)| {
            let mut pair = name.into_vec();
            pair.push(b'=');
            pair.extend(value.into_vec());
            text(&pair)
        })
        .collect()
}

fn memory(state: &Saved) -> Result<OwnedFd> {
    let fd = memfd_create(c"spawnwork-state", MFdFlags::MFD_CLOEXEC).doing("make a memfd")?;
    let mut file = File::from(fd);
    file.write_all(&state.write()?).doing("write the state")?;
    Ok(file.into())
}

fn read(file: &File) -> Result<Vec<u8>> {
    let doing = "read the state";
    let length = file.metadata().doing(doing)?.len();
    if length > LONGEST {
        return Err(Error::new(doing, "it is too long"));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0).doing(doing)?;
    Ok(bytes)
}

/// The state that this process was executed with; `None` for an ordinary start.
///
/// # Errors
/// It cannot be read.
pub fn inherited() -> Result<Option<Saved>> {
    let Some(number) = std::env::var_os(VARIABLE) else {
        return Ok(None);
    };
    let fd = number
        .to_str()
        .and_then(|number| number.parse().ok())
        .and_then(common::sys::adopt)
        .ok_or_else(|| Error::usage(format!("{VARIABLE} is no option of yours: unset it")))?;
    Saved::read(&read(&File::from(fd))?, std::process::id()).map(Some)
}

/// `--check-state`: this program can go on with the state on descriptor `number`.
///
/// # Errors
/// It cannot.
pub fn check(number: RawFd) -> Result<Exit> {
    let fd = common::sys::adopt(number)
        .ok_or_else(|| Error::usage(format!("--check-state {number}: it is not open")))?;
    let parent = u32::try_from(nix::unistd::getppid().as_raw()).unwrap_or_default();
    Saved::read(&read(&File::from(fd))?, parent)?;
    Ok(match common::cli::print(ACCEPTED)? {
        true => Exit::Ok,
        false => Exit::No,
    })
}

impl Master {
    /// Why it cannot be now.
    fn not_now(&self) -> Option<&'static str> {
        match self.pool.phase {
            Phase::Running if self.upgrade.is_some() => Some("one is under way"),
            Phase::Running if self.pool.slots.iter().any(|slot| slot.next.is_some()) => {
                Some("a worker is being replaced")
            }
            Phase::Running if self.resizing.is_some() => Some("slots that go are emptied"),
            Phase::Running if !self.orphans.gone() => {
                Some("the workers of a dead master are leaving")
            }
            Phase::Running => None,
            Phase::Initial => Some("the first generation is still starting"),
            Phase::Reloading(_) => Some("a reload is under way"),
            Phase::Stopping(_) => Some("we are stopping"),
        }
    }

    /// A client asks for it.
    pub(crate) fn reexec(&mut self, client: u64, now: Instant) {
        if let Some(why) = self.not_now() {
            self.reexec_failed(client, &format!("not now: {why}"), now);
            return;
        }
        match self.ask_new_program(client, now) {
            Ok(upgrade) => self.upgrade = Some(upgrade),
            Err(error) => self.reexec_failed(client, &error.to_string(), now),
        }
    }

    fn ask_new_program(&mut self, client: u64, now: Instant) -> Result<Upgrade> {
        let program = program()?;
        let state = memory(&self.save(now, &mut Open::default()))?;
        let (said, writer) = child::output_pipe().doing("make a pipe")?;
        let mut arguments = vec![text(program.as_os_str().as_bytes())?];
        arguments.extend([c"--check-state".to_owned(), c"3".to_owned()]);
        for word in std::env::args_os().skip(1) {
            arguments.push(text(word.as_bytes())?);
        }
        let image = Image {
            candidates: vec![text(program.as_os_str().as_bytes())?],
            arguments,
            environment: environment(None)?,
            descriptors: vec![
                (self.null.as_raw_fd(), 0),
                (writer.as_raw_fd(), 1),
                (writer.as_raw_fd(), 2),
                (state.as_raw_fd(), 3),
            ],
            own_group: true,
            death_signal: Some(9),
            ..Image::default()
        };
        Ok(Upgrade {
            child: Child::start(&image).doing("start the new program")?,
            said,
            client,
            program,
            deadline: now + PATIENCE,
        })
    }

    /// The new program has looked.
    pub(crate) fn on_upgrade_end(&mut self, now: Instant) {
        let Some(upgrade) = self.upgrade.take() else {
            return;
        };
        upgrade.abandon();
        let late = upgrade.deadline <= now;
        let mut buffer = [0u8; 2048];
        let count = nix::unistd::read(&upgrade.said, &mut buffer).unwrap_or(0);
        let said = String::from_utf8_lossy(&buffer[..count]);
        let said = said.trim().replace('\n', "; ");
        let mut child = upgrade.child;
        let failure = child.start_failure();
        let why = match (failure, child.reap()) {
            (Some(failure), _) => failure.describe(upgrade.program.as_os_str()),
            (None, Some(End::Exited(0))) if said != ACCEPTED => {
                format!("what is installed there is no spawnwork: it said '{said}'")
            }
            (None, Some(End::Exited(0))) => match self.not_now() {
                None => match self.become_new_program(upgrade.client, &upgrade.program, now) {
                    Ok(never) => match never {},
                    Err(error) => error.to_string(),
                },
                Some(why) => format!("not now: {why}"),
            },
            (None, _) if late => {
                format!(
                    "the new program did not answer within {}",
                    common::time::say(PATIENCE)
                )
            }
            (None, Some(end)) => format!("the new program refused the state ({end}): {said}"),
            (None, None) => "the new program ended".to_owned(),
        };
        self.reexec_failed(upgrade.client, &why, now);
    }

    fn reexec_failed(&mut self, client: u64, why: &str, now: Instant) {
        let fields = [("error", why.to_owned().into())];
        self.say(Level::Error, events::REEXEC_FAILED, &fields);
        let reply = Reply::Err(Exit::No.code(), format!("{why}; nothing has happened"));
        self.answer(client, &reply, now);
    }

    /// From here on it is the other program's turn; back only if it cannot be executed.
    fn become_new_program(
        &mut self,
        client: u64,
        program: &std::path::Path,
        now: Instant,
    ) -> Result<std::convert::Infallible> {
        for output in self.outputs.iter_mut().flatten() {
            output.finish(Duration::from_millis(100));
        }
        let mut open = Open::default();
        let mut saved = self.save(now, &mut open);
        saved.client = self
            .control
            .as_ref()
            .and_then(|control| control.raw(client));
        let state = memory(&saved)?;
        let mut numbers: Vec<RawFd> = open.numbers().to_vec();
        numbers.extend(saved.client);
        numbers.push(state.as_raw_fd());
        let path = text(program.as_os_str().as_bytes())?;
        let arguments = std::env::args_os()
            .map(|word| text(word.as_bytes()))
            .collect::<Result<Vec<_>>>()?;
        let environment = environment(Some(state.as_raw_fd()))?;
        let set = |what| {
            numbers.iter().for_each(|number| set_on_exec(*number, what));
        };
        set(OnExec::Kept);
        let why = nix::unistd::execve(&path, &arguments, &environment);
        set(OnExec::Closed);
        why.doing(&format!("execute {}", program.display()))
    }
}
