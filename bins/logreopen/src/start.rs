//! From a plan to a loop that can run: everything is opened, root is dropped, the command is started. If
//! one of these fails, files that we have made are gone again.

use crate::cli::{Fsync, OnFull};
use crate::events;
use crate::place::{Opened, Place, directory_of, explain, may_come};
use crate::plan::{Input, Plan};
use crate::queue::Queue;
use crate::run::{
    ALARM, Base, CLIENT, COMMAND, DOOR, INOTIFY, Output, Pumping, SIGNALS, STREAM, WRITER,
};
use crate::shared::Shared;
use crate::stream::{PIPE, Stream};
use crate::tell::Voice;
use crate::writer::{Options, Writer};
use common::control::Server;
use common::error::{Doing, Error, Result, describe};
use common::event::{Level, Log};
use common::file::{Identity, PidFile, fd_identity};
use common::output::{Kind, Output as Own, kind_of, same};
use common::signal::Signals;
use common::sys::standard;
use common::wait::{Interest, Loop};
use common::wrap::{self, Wrapped};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::unistd::{AccessFlags, Gid, Uid};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a stderr or stdout that leads to a file may hold, in bytes.
const OWN_BUFFER: usize = 1 << 20;

/// Files that we have made: taken back when dropped, if nobody has written to them, unless kept.
#[derive(Debug, Default)]
struct Made(Vec<(PathBuf, Identity)>);

impl Made {
    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for (path, made) in &self.0 {
            let unused = path.metadata().is_ok_and(|found| found.len() == 0);
            if unused && common::file::identity(path).ok() == Some(*made) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// The files of a plan, opened; and for each that was named, which one it is.
struct Files {
    places: Vec<(Place, Option<Opened>)>,
    index: Vec<usize>,
}

fn open_files(plan: &Plan, made: &mut Made) -> Result<Files> {
    let dropping = plan.user.as_ref().is_some_and(|user| user.uid != 0);
    let mut files = Files {
        places: Vec::new(),
        index: Vec::new(),
    };
    for path in &plan.files {
        let doing = format!("open {}", path.display());
        let place = Place {
            path: path.clone(),
            mode: plan.mode,
            owner: plan.owner,
            mkdir: plan.mkdir,
            lock: Options::lock(plan.rotate.is_some()),
            wary: dropping && nix::unistd::geteuid().is_root(),
        };
        let opened = match place.open() {
            Ok(opened) => Some(opened),
            Err(why) if may_come(path, &why) => None,
            Err(why) => return Err(Error::new(&doing, explain(path, &why))),
        };
        if let Some(opened) = &opened {
            if opened.made {
                made.0.push((path.clone(), opened.identity));
            }
            // Two names of one file are one output.
            let twin = files.places.iter().position(|(_, other)| {
                let other = other.as_ref();
                other.is_some_and(|other| other.identity == opened.identity && opened.regular)
            });
            if let Some(twin) = twin {
                files.index.push(twin);
                continue;
            }
            if opened.regular {
                place
                    .lock(&opened.file)
                    .map_err(|why| Error::new(&doing, describe(&why)))?;
            }
        }
        if plan.rotate.is_some() && !opened.as_ref().is_some_and(|opened| opened.regular) {
            return Err(Error::new(&doing, "--max-size is for regular files"));
        }
        files.index.push(files.places.len());
        files.places.push((place, opened));
    }
    Ok(files)
}

/// The socket and the pid file, for whom we are going to be.
fn give(path: &Path, plan: &Plan) {
    if let Some(user) = &plan.user {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        // Whoever is that user already, or may not: the owner of the socket is root then, who may ask.
        let _ = nix::unistd::fchownat(
            nix::fcntl::AT_FDCWD,
            path,
            Some(uid),
            Some(gid),
            nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
        );
    }
}

/// A copy of one of our own descriptors, as something to be written by a thread.
fn copy_of(fd: RawFd) -> Option<Opened> {
    let copy = standard(fd).try_clone_to_owned().ok()?;
    let file = File::from(copy);
    Some(Opened {
        identity: fd_identity(&file).ok()?,
        regular: true,
        made: false,
        remote: false,
        ragged: false,
        size: 0,
        file,
    })
}

/// How our own two descriptors are written.
#[derive(Default)]
struct Ours {
    own: [Option<Own>; 2],
    /// The writer, if it leads to a file.
    writers: [Option<usize>; 2],
    voice: Voice,
}

/// Our own two descriptors: what leads to a file is written by a thread, for it can hang too. `files` are the
/// ones that were named.
fn open_ours(
    plan: &Plan,
    log: &Log,
    events: &Loop,
    outputs: &mut Vec<Output>,
    files: &[Option<Identity>],
) -> Result<Ours> {
    let mut ours = Ours::default();
    let stderr_is_file = kind_of(standard(2)) == Kind::File;
    let own = fd_identity(standard(2)).ok();
    let through = files
        .iter()
        .position(|file| stderr_is_file && file.is_some() && *file == own);
    for fd in [2, 1] {
        let index = fd as usize - 1;
        match through {
            Some(through) if fd == 2 => {
                ours.voice = Voice::Through(through);
                continue;
            }
            _ if fd == 1 && (!plan.tee || same(standard(1), standard(2))) => continue,
            Some(_) | None => {}
        }
        let opened = match kind_of(standard(fd)) {
            Kind::File => copy_of(fd),
            Kind::Terminal | Kind::Socket | Kind::Other => None,
        };
        let Some(opened) = opened else {
            ours.own[index] = Some(Own::open(fd));
            continue;
        };
        let options = Options {
            fsync: Fsync::Never,
            follow: Duration::ZERO,
            rotate: None,
            hold_rotation: false,
            log: log.clone(),
        };
        let queue = Queue::new(OWN_BUFFER, OnFull::Drop);
        let shared = Arc::new(Shared::new(queue).doing("make an eventfd")?);
        let writer = Writer::new(Arc::clone(&shared), None, Some(opened), options, None);
        ours.writers[index] = Some(outputs.len());
        if fd == 2 {
            ours.voice = Voice::Writer(outputs.len());
        }
        begin(events, outputs, shared, writer, None)?;
    }
    Ok(ours)
}

/// Starts what the plan says.
///
/// # Errors
/// A file cannot be opened, the socket or pid file not be made, the command not be started.
pub fn start(plan: Plan) -> Result<Pumping> {
    let inherited = wrap::inherited();
    common::fds::ensure_standard()?;
    let signals = Signals::block()?;
    common::sys::return_memory();

    let log = Log::new("logreopen", plan.log_format, plan.threshold);
    let mut made = Made::default();
    let files = open_files(&plan, &mut made)?;
    let pid_file = plan.pid_file.as_deref().map(PidFile::create).transpose()?;
    let server = match &plan.control {
        Some(path) => Some(Server::open(path, |id| CLIENT + id)?),
        None => None,
    };
    for path in plan.control.iter().chain(&plan.pid_file) {
        give(path, &plan);
    }
    if let Some(user) = &plan.user {
        common::privs::become_user(user)?;
    }

    let events = Loop::new()?;
    events.add(&signals, SIGNALS, Interest::Read)?;
    if let Some(server) = &server {
        events.add(server, DOOR, Interest::Read)?;
    }
    // Without it (fs.inotify.max_user_instances) the files are looked at now and then.
    let inotify = if plan.follow.is_zero() {
        None
    } else {
        Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()
    };
    let inotify = inotify.map(Arc::new);
    if let Some(inotify) = &inotify {
        events.add(inotify, INOTIFY, Interest::Read)?;
    }

    let count = files.places.len();
    let identities: Vec<Option<Identity>> = files
        .places
        .iter()
        .map(|(_, opened)| opened.as_ref().map(|opened| opened.identity))
        .collect();
    let mut outputs = Vec::new();
    let mut said = Vec::new();
    for (place, opened) in files.places {
        let queue = Queue::new(plan.buffer, plan.on_full);
        said.push((
            place.path.clone(),
            opened.as_ref().map_or(0, |opened| opened.identity.ino),
        ));
        let path = place.path.clone();
        let options = Options {
            fsync: plan.fsync,
            follow: plan.follow,
            rotate: plan.rotate,
            hold_rotation: plan.on_rotate.is_some(),
            log: log.clone(),
        };
        let shared = Arc::new(Shared::new(queue).doing("make an eventfd")?);
        let writer = Writer::new(
            Arc::clone(&shared),
            Some(place),
            opened,
            options,
            inotify.clone(),
        );
        begin(&events, &mut outputs, shared, writer, Some(path))?;
    }

    let ours = open_ours(&plan, &log, &events, &mut outputs, &identities)?;
    let mut pumping = Pumping::new(Base {
        plan,
        log,
        events,
        signals,
        inotify,
        outputs,
        files: count,
        own: ours.own,
        own_writers: ours.writers,
        one: same(standard(1), standard(2)),
        voice: ours.voice,
        server,
        pid_file,
    });
    pumping.attach(&files.index, &inherited)?;
    made.keep();
    for (path, inode) in said {
        say_opened(&mut pumping, &path, inode);
    }
    pumping.say_started();
    Ok(pumping)
}

/// Also that its first reopen would fail: now, rather than some night.
fn say_opened(pumping: &mut Pumping, path: &Path, inode: u64) {
    let file = path.to_string_lossy().into_owned();
    pumping.say(
        Level::Info,
        events::OUTPUT_OPENED,
        &[("file", file.clone().into()), ("inode", inode.into())],
        None,
    );
    let directory = directory_of(path);
    let allowed = nix::unistd::faccessat(
        nix::fcntl::AT_FDCWD,
        directory,
        AccessFlags::W_OK | AccessFlags::X_OK,
        nix::fcntl::AtFlags::AT_EACCESS,
    );
    let regular = path.metadata().is_ok_and(|found| found.is_file());
    if let (Err(why), true) = (allowed, regular) {
        let directory = directory.to_string_lossy().into_owned();
        pumping.say(
            Level::Warning,
            events::REOPEN_DOUBTFUL,
            &[
                ("file", file.into()),
                ("directory", directory.into()),
                ("error", describe(&why.into()).into()),
            ],
            None,
        );
    }
}

/// The path, or what it links to, names a descriptor of ours.
fn is_descriptor(path: &Path) -> bool {
    let mut path = path.to_owned();
    // As many links as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        if ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"]
            .iter()
            .any(|name| path.starts_with(name))
        {
            return true;
        }
        match std::fs::read_link(&path) {
            Ok(to) => path = directory_of(&path).join(to),
            Err(_) => return false,
        }
    }
    false
}

fn begin(
    events: &Loop,
    outputs: &mut Vec<Output>,
    shared: Arc<Shared>,
    writer: Writer,
    path: Option<PathBuf>,
) -> Result<()> {
    events.add(&*shared, WRITER + outputs.len() as u64, Interest::Read)?;
    events.add(shared.alarm(), ALARM + outputs.len() as u64, Interest::Read)?;
    writer.start().doing("start a thread")?;
    outputs.push(Output::new(shared, path));
    Ok(())
}

impl Pumping {
    /// The streams, and the command at their other end.
    fn attach(&mut self, index: &[usize], inherited: &[RawFd]) -> Result<()> {
        let (words, out, err) = match &self.plan.input {
            Input::Stdin => {
                let stream = Stream::stdin(index.first().copied().unwrap_or(0));
                return self.add_stream(stream, 1);
            }
            Input::Command { words, out, err } => (words.clone(), *out, *err),
        };
        let mut readers: Vec<(OwnedFd, usize, usize)> = Vec::new();
        let mut writers: Vec<OwnedFd> = Vec::new();
        let mut descriptors: [RawFd; 3] = [0, 1, 2];
        for (fd, file) in [(1, out), (2, err)] {
            let Some(file) = file else {
                continue;
            };
            let (reader, writer) = common::child::output_pipe().doing("make a pipe")?;
            descriptors[fd] = writer.as_raw_fd();
            let output = index.get(file).copied().unwrap_or(0);
            readers.push((reader, output, fd));
            writers.push(writer);
        }
        // It holds the read ends too: if we are killed, its writes do not fail while it stops.
        let added: Vec<RawFd> = readers.iter().map(|(fd, ..)| fd.as_raw_fd()).collect();
        let order = wrap::Order {
            command: &words,
            standard: descriptors,
            inherited,
            added: &added,
        };
        let wrapped = Wrapped::start(&order)?;
        drop(writers);
        // Only the command has them now, as if we were not there.
        for fd in inherited {
            drop(common::sys::adopt(*fd));
        }
        self.let_go_of_standard();
        self.events.add(wrapped.child(), COMMAND, Interest::Read)?;
        self.wrapped = Some(wrapped);
        for (reader, output, fd) in readers {
            let stream = Stream::pipe(reader, output, fd - 1);
            self.add_stream(stream, fd)?;
        }
        Ok(())
    }

    fn add_stream(&mut self, mut stream: Stream, fd: usize) -> Result<()> {
        let token = STREAM + self.streams.len() as u64;
        if self.plan.tee {
            stream.tee = Some(if self.one { 1 } else { fd - 1 });
        }
        if !stream.always {
            stream.registered = self.events.add(&stream, token, Interest::Read).is_ok();
            // EPERM: what cannot be waited for (a file, /dev/null) is always ready.
            stream.always = !stream.registered;
        }
        if stream.size() < PIPE {
            self.small_pipes.push(stream.size());
        }
        self.streams.push(stream);
        Ok(())
    }

    /// What only the command needs: whoever reads or writes the other end sees its end by the command's.
    fn let_go_of_standard(&mut self) {
        let Ok(null) = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
        else {
            return;
        };
        let _ = nix::unistd::dup2_stdin(&null);
        // A FILE that is one of ours by another name (/dev/stdout) must lead there at a reopen too.
        if self.plan.files.iter().any(|path| is_descriptor(path)) {
            return;
        }
        if !self.plan.tee {
            let _ = nix::unistd::dup2_stdout(&null);
        }
        if matches!(self.voice, Voice::Through(_)) {
            // Or the old file would stay open when it has been let go.
            let _ = nix::unistd::dup2_stderr(&null);
        }
    }
}
