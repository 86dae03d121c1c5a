//! All unsafe code of the workspace: one purpose each, each with the reason why it is sound.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// What a child needs between fork and exec, prepared before the fork: the child allocates nothing.
#[derive(Debug, Default)]
pub struct Image {
    /// Paths to try in turn, as execvp(3) would (the search in `PATH` is done by the parent).
    pub candidates: Vec<CString>,
    /// The argument vector, `argv[0]` first.
    pub arguments: Vec<CString>,
    /// The environment, `NAME=value` each.
    pub environment: Vec<CString>,
    /// Adds `LISTEN_PID=` with the child's own pid (sd_listen_fds(3)); known only after the fork.
    pub listen_pid: bool,
    /// (descriptor of ours, its number in the child), 0 to 2 included; everything else is closed.
    pub descriptors: Vec<(RawFd, RawFd)>,
    /// The working directory, as an open directory.
    pub directory: Option<RawFd>,
    /// RLIMIT_NOFILE, soft and hard.
    pub nofile: Option<(u64, u64)>,
    /// The identity to change to: uid, gid, supplementary groups.
    pub identity: Option<(u32, u32, Vec<u32>)>,
    /// A process group of its own.
    pub own_group: bool,
    /// The session that it is in.
    pub session: Session,
    /// The signal that the child gets when this process dies (PR_SET_PDEATHSIG); with 0 it gets none,
    /// and only executes nothing if this process is gone by then.
    pub death_signal: Option<c_int>,
    /// The read end of a pipe, among `descriptors` too, that kills the group of the child when its last write
    /// end closes (`own_group`): that of this process, if nobody else has one for longer than until an exec.
    pub lifeline: Option<RawFd>,
    /// The cgroup to be born in, an open directory of cgroup v2. For a process with one thread only:
    /// see [`clone_into`]. That it cannot be had does not keep the program from being started.
    pub cgroup: Option<RawFd>,
    /// Start it on our memory, without a copy: faster, but this thread waits until it has executed, so it is
    /// for programs that certainly lie on a local disk, and for images without an [`Image::identity`]: the
    /// C library would change that of our other threads.
    pub borrows_memory: bool,
}

/// Which session a child is in (setsid(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Session {
    /// Ours.
    #[default]
    Ours,
    /// One of its own, without a terminal: it cannot type into ours (TIOCSTI).
    Own,
    /// One of its own, on the terminal that its descriptor 0 is.
    OnTerminal,
}

/// The step between fork and exec that failed; the value travels through the error pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// setpgid(2)
    Group = 1,
    /// dup2(2), fcntl(2) or close_range(2)
    Descriptors,
    /// fchdir(2)
    Directory,
    /// setrlimit(2)
    Limit,
    /// setgroups(2), setgid(2) or setuid(2), or root could be had back afterwards
    Identity,
    /// prctl(2), or the parent was gone already
    Parent,
    /// execve(2)
    Exec,
    /// setsid(2), or TIOCSCTTY of ioctl_tty(2)
    Session,
}

impl Step {
    /// The step that a byte of the error pipe stands for.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Step> {
        [
            Step::Group,
            Step::Descriptors,
            Step::Directory,
            Step::Limit,
            Step::Identity,
            Step::Parent,
            Step::Exec,
            Step::Session,
        ]
        .into_iter()
        .find(|step| *step as u8 == byte)
    }
}

const SHELL: &std::ffi::CStr = c"/bin/sh";

/// What [`fork_exec`] has made.
#[derive(Debug)]
pub struct Forked {
    /// Its pid.
    pub pid: i32,
    /// The read end (non-blocking) of the error pipe: at its end of file the program runs; five bytes
    /// (step, errno in native order) say why not.
    pub failure: OwnedFd,
    /// It was born in [`Image::cgroup`], for certain.
    pub in_cgroup: bool,
}

/// Forks and executes `image`.
///
/// # Errors
/// Those of pipe2(2) and fork(2): EMFILE, EAGAIN, ENOMEM.
pub fn fork_exec(image: &Image) -> io::Result<Forked> {
    let mut ends = [0 as c_int; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 succeeded, so both are open and owned by nobody else.
    let (reader, writer) =
        unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };

    let mut arguments: Vec<*const c_char> = image.arguments.iter().map(|a| a.as_ptr()).collect();
    arguments.push(ptr::null());
    // For a script without #!: /bin/sh PATH arguments; the path is filled in by the child.
    let mut shell_arguments: Vec<*const c_char> = vec![SHELL.as_ptr(), ptr::null()];
    shell_arguments.extend(image.arguments.iter().skip(1).map(|a| a.as_ptr()));
    shell_arguments.push(ptr::null());
    let mut own_pid = *b"LISTEN_PID=\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut environment: Vec<*const c_char> =
        image.environment.iter().map(|e| e.as_ptr()).collect();
    if image.listen_pid {
        environment.push(own_pid.as_ptr().cast());
    }
    environment.push(ptr::null());
    let mut moved: Vec<RawFd> = vec![-1; image.descriptors.len()];
    let lowest_free = image
        .descriptors
        .iter()
        .map(|d| d.1)
        .max()
        .unwrap_or(2)
        .max(2)
        + 1;
    let parent = std::process::id() as libc::pid_t;

    let mut prepared = Prepared {
        image,
        arguments: &arguments,
        shell_arguments: &mut shell_arguments,
        environment: &environment,
        own_pid: &mut own_pid,
        moved: &mut moved,
        lowest_free,
        parent,
        pipe: writer.as_raw_fd(),
    };
    let born = match image.cgroup {
        Some(directory) => clone_into(directory)?,
        None if image.borrows_memory && image.identity.is_none() => {
            Some(clone_on_our_memory(&mut prepared)?)
        }
        None => None,
    };
    let pid = match born {
        Some(pid) => pid,
        // SAFETY: the child runs `child` alone, which makes only async-signal-safe calls on memory that
        // was prepared above, and ends in execve or _exit: it never returns into this program.
        None => unsafe { libc::fork() },
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if let (Some(directory), None) = (image.cgroup, born) {
                enter_cgroup(directory);
            }
            prepared.become_it()
        }
        pid => Ok(Forked {
            pid,
            failure: reader,
            in_cgroup: image.cgroup.is_some() && born.is_some(),
        }),
    }
}

/// All that a child needs, on the memory of its parent or on its copy of it.
struct Prepared<'a> {
    image: &'a Image,
    arguments: &'a [*const c_char],
    shell_arguments: &'a mut [*const c_char],
    environment: &'a [*const c_char],
    own_pid: &'a mut [u8; 23],
    moved: &'a mut [RawFd],
    lowest_free: RawFd,
    parent: libc::pid_t,
    pipe: RawFd,
}

impl Prepared<'_> {
    /// In the child: executes the program, or ends.
    fn become_it(&mut self) -> ! {
        let (_, errno) = child(
            self.image,
            self.arguments,
            self.shell_arguments,
            self.environment,
            self.own_pid,
            self.moved,
            self.lowest_free,
            self.parent,
            self.pipe,
        );
        // SAFETY: _exit(2) is async-signal-safe and ends the child without running destructors.
        unsafe { libc::_exit(if errno == libc::ENOENT { 127 } else { 126 }) }
    }
}

/// What `child` needs of stack, many times over.
const BORROWED_STACK: usize = 64 << 10;

/// As fork(2) for the child, but without a copy of our memory, whose making and whose page faults cost
/// both of us more than all the rest of a start: it uses ours, on a stack of its own, while this thread
/// waits until it executes or ends. That is what posix_spawn(3) does, which knows no close_range(2).
///
/// # Errors
/// Those of fork(2): EAGAIN, ENOMEM.
fn clone_on_our_memory(prepared: &mut Prepared<'_>) -> io::Result<libc::pid_t> {
    extern "C" fn begin(prepared: *mut libc::c_void) -> c_int {
        // SAFETY: it is the `prepared` of the call below, whose thread does not run now.
        let prepared = unsafe { &mut *prepared.cast::<Prepared<'_>>() };
        prepared.become_it()
    }
    let mut stack = vec![0u128; BORROWED_STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `top` is the end of a stack that grows downwards, aligned to 16, and lives until the child has
    // let go of our memory, for CLONE_VFORK returns no earlier. Until then the child runs `child` alone: it
    // makes system calls, allocates nothing and takes no lock; what it writes to is its stack and what
    // `prepared` borrows mutably. Its descriptors and dispositions are copies (no CLONE_FILES, no
    // CLONE_SIGHAND). All signals are blocked in each of our threads, so no handler runs on our memory: the
    // child sets the default for all of them before it unblocks any.
    let pid = unsafe { libc::clone(begin, top.cast(), flags, ptr::from_mut(prepared).cast()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pid)
}

/// The arguments of clone3(2), as far as Linux 5.7 knows them (struct clone_args in linux/sched.h).
#[derive(Debug, Default)]
#[repr(C)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// fork(2) into a cgroup, by clone3(2) with CLONE_INTO_CGROUP. A write to cgroup.procs would do as well,
/// but it takes a lock for which the kernel may have to wait for all processors (15 ms were measured,
/// against 0.1 ms).
///
/// The C library does not learn of this fork, so the child has to be content with its parent's notes of
/// threads: as long as there is one thread they are right.
///
/// `None`: not in this way; an older kernel, a filter of system calls (containers'), or that cgroup is gone.
///
/// # Errors
/// Those of fork(2): EAGAIN, ENOMEM.
fn clone_into(directory: RawFd) -> io::Result<Option<libc::pid_t>> {
    const INTO_CGROUP: u64 = 0x2_0000_0000; // CLONE_INTO_CGROUP, linux/sched.h
    let arguments = CloneArguments {
        flags: INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: directory as u64,
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM and with no stack given this is a fork: the child goes on here, on its own
    // copy of everything. The structure lives until the call returns, and its size is given. What the
    // child runs is what `fork_exec` says.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(&arguments),
            size_of::<CloneArguments>(),
        )
    };
    if pid >= 0 {
        return Ok(Some(pid as libc::pid_t));
    }
    let why = io::Error::last_os_error();
    match why.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM) => Err(why),
        Some(_) | None => Ok(None),
    }
}

/// The child moves itself, before anything else. If it cannot it goes on where it is.
fn enter_cgroup(directory: RawFd) {
    // SAFETY: three system calls that are async-signal-safe, on constants and on a descriptor that fork
    // has copied.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let procs = libc::openat(directory, c"cgroup.procs".as_ptr(), flags);
        if procs >= 0 {
            libc::write(procs, c"0".as_ptr().cast(), 1);
            libc::close(procs);
        }
    }
}

/// fgetxattr(2) of a short value; `None` where there is none, or it is longer.
#[must_use]
pub fn extended_attribute(fd: BorrowedFd<'_>, name: &std::ffi::CStr) -> Option<Vec<u8>> {
    let mut value = [0u8; 16];
    // SAFETY: the name ends in NUL; the kernel writes at most the size that it is given into `value`.
    let length = unsafe {
        libc::fgetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let length = usize::try_from(length).ok()?;
    value.get(..length).map(<[u8]>::to_vec)
}

/// Makes the kernel kill the caller's process group, of which it is the leader, when the last write end of a
/// pipe closes: its read end is given the group as owner, and SIGKILL as its signal (F_SETOWN, F_SETSIG,
/// O_ASYNC of fcntl(2)). It works for as long as anybody holds this open read end.
///
/// The child does it, for then there is no moment in which its program runs and is not tied: the copy of the
/// write end that fork gave it closes with its exec, so that its parent's death before that is noticed there.
/// Before it changes its user: the signal is sent with the rights of the one who asked for it.
///
/// # Safety
/// Between fork and exec: three bare system calls, with integers. What fails is left: PR_SET_PDEATHSIG is
/// there too.
unsafe fn kill_group_at_hangup(reader: RawFd) {
    // SAFETY: as above.
    unsafe {
        libc::fcntl(reader, libc::F_SETOWN, -libc::getpid());
        libc::fcntl(reader, F_SETSIG, libc::SIGKILL);
        libc::fcntl(reader, libc::F_SETFL, libc::O_ASYNC);
    }
}

/// asm-generic/fcntl.h; the library does not name it for every target.
const F_SETSIG: c_int = 10;

/// The child's way from fork to exec. Returns only when a step failed, after it told the parent.
#[allow(clippy::too_many_arguments)]
fn child(
    image: &Image,
    arguments: &[*const c_char],
    shell_arguments: &mut [*const c_char],
    environment: &[*const c_char],
    own_pid: &mut [u8; 23],
    moved: &mut [RawFd],
    lowest_free: RawFd,
    parent: libc::pid_t,
    mut pipe: RawFd,
) -> (Step, c_int) {
    let failed = |step: Step, pipe: RawFd| {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        report(pipe, step, errno);
        (step, errno)
    };
    // SAFETY: every call below is async-signal-safe (signal-safety(7), or a bare system call), works
    // on descriptors and memory that are valid in the child since fork copied them, and runs in the
    // only thread of the child.
    unsafe {
        // Default dispositions: Rust ignores SIGPIPE, and what our parent ignored is not the child's
        // business. 64 is the last signal; KILL, STOP and the two of the C library refuse, harmlessly.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        if image.own_group && libc::setpgid(0, 0) != 0 {
            return failed(Step::Group, pipe);
        }
        if let Some(reader) = image.lifeline {
            kill_group_at_hangup(reader);
        }
        if image.session != Session::Ours && libc::setsid() < 0 {
            return failed(Step::Session, pipe);
        }
        // First everything above the numbers that are wanted, so that no dup2 hits a source.
        pipe = libc::fcntl(pipe, libc::F_DUPFD_CLOEXEC, lowest_free);
        if pipe < 0 {
            return (Step::Descriptors, libc::EMFILE);
        }
        for (index, (source, target)) in image.descriptors.iter().enumerate() {
            if source == target {
                // It stays where it is, however high that is.
                continue;
            }
            moved[index] = libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, lowest_free);
            if moved[index] < 0 {
                return failed(Step::Descriptors, pipe);
            }
        }
        let directory = match image.directory {
            Some(fd) => libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest_free),
            None => -1,
        };
        if image.directory.is_some() && directory < 0 {
            return failed(Step::Descriptors, pipe);
        }
        for (index, (_, target)) in image.descriptors.iter().enumerate() {
            let placed = if moved[index] < 0 {
                libc::fcntl(*target, libc::F_SETFD, 0)
            } else {
                libc::dup2(moved[index], *target)
            };
            if placed < 0 {
                return failed(Step::Descriptors, pipe);
            }
        }
        if close_on_exec_from(3, lowest_free, image) != 0 {
            return failed(Step::Descriptors, pipe);
        }
        // It is in its place now; the session was made above, and has no terminal yet.
        if image.session == Session::OnTerminal && libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
            return failed(Step::Session, pipe);
        }
        if directory >= 0 && libc::fchdir(directory) != 0 {
            return failed(Step::Directory, pipe);
        }
        if let Some((soft, hard)) = image.nofile {
            let limit = libc::rlimit {
                rlim_cur: soft,
                rlim_max: hard,
            };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
                return failed(Step::Limit, pipe);
            }
        }
        if let Some((uid, gid, groups)) = &image.identity {
            if libc::geteuid() == 0 && libc::setgroups(groups.len(), groups.as_ptr()) != 0 {
                return failed(Step::Identity, pipe);
            }
            if libc::setresgid(*gid, *gid, *gid) != 0 || libc::setresuid(*uid, *uid, *uid) != 0 {
                return failed(Step::Identity, pipe);
            }
            if *uid != 0 && libc::setuid(0) == 0 {
                report(pipe, Step::Identity, libc::EPERM);
                return (Step::Identity, libc::EPERM);
            }
        }
        // After setuid, which clears it; then the parent may be gone already (prctl(2)).
        if let Some(signal) = image.death_signal {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) != 0 {
                return failed(Step::Parent, pipe);
            }
            if libc::getppid() != parent {
                report(pipe, Step::Parent, libc::ESRCH);
                return (Step::Parent, libc::ESRCH);
            }
        }
        write_number(&mut own_pid[11..], libc::getpid() as u32);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());

        let mut refused = libc::ENOENT;
        for candidate in &image.candidates {
            libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            let mut errno = *libc::__errno_location();
            if errno == libc::ENOEXEC {
                shell_arguments[1] = candidate.as_ptr();
                libc::execve(
                    SHELL.as_ptr(),
                    shell_arguments.as_ptr(),
                    environment.as_ptr(),
                );
                errno = libc::ENOEXEC;
            }
            // As execvp(3): what is not there, or may not be run, does not end the search.
            match errno {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => refused = errno,
                _ => {
                    refused = errno;
                    break;
                }
            }
        }
        report(pipe, Step::Exec, refused);
        (Step::Exec, refused)
    }
}

/// Where descriptors end that we were started with; 0: nobody has said so.
static INHERITED_BELOW: AtomicI32 = AtomicI32::new(0);

/// What we open ourselves is close-on-exec. What we were started with lies below this soft limit, which was ours
/// before it was raised.
pub fn inherited_are_below(soft: u64) {
    let most = RawFd::try_from(soft.clamp(1024, 1 << 20)).unwrap_or(1 << 20);
    INHERITED_BELOW.store(most, Ordering::Relaxed);
}

/// Marks everything from `from` on close-on-exec, but for the descriptors that `image` hands down.
fn close_on_exec_from(from: RawFd, lowest_free: RawFd, image: &Image) -> c_int {
    for fd in from..lowest_free {
        if !image.descriptors.iter().any(|(_, target)| *target == fd) {
            // SAFETY: fcntl on a number that may not be open fails with EBADF, which is fine here.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    // SAFETY: close_range(2) takes three integers; with CLOEXEC it closes nothing now.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            lowest_free as libc::c_uint,
            libc::c_uint::MAX,
            4 as libc::c_uint, // CLOSE_RANGE_CLOEXEC, linux/close_range.h, since 5.11
        )
    };
    if done == 0 {
        return 0;
    }
    // An older kernel: one by one, as far as the limit allows a descriptor to be that is not ours.
    // SAFETY: sysconf(3) reads a limit; fcntl as above.
    unsafe {
        let most = match INHERITED_BELOW.load(Ordering::Relaxed) {
            0 => libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20) as RawFd,
            most => most,
        };
        for fd in lowest_free..most {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    0
}

/// Five bytes into the error pipe.
fn report(pipe: RawFd, step: Step, errno: c_int) {
    let mut message = [step as u8, 0, 0, 0, 0];
    message[1..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: write(2) of five bytes that live on the stack.
    unsafe { libc::write(pipe, message.as_ptr().cast(), message.len()) };
}

/// `number` in decimal with a NUL behind it; async-signal-safe, unlike the formatting machinery.
fn write_number(into: &mut [u8], mut number: u32) {
    let mut digits = [0u8; 10];
    let mut count = 0;
    loop {
        digits[count] = b'0' + (number % 10) as u8;
        count += 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    for (place, digit) in into.iter_mut().zip(digits[..count].iter().rev()) {
        *place = *digit;
    }
    if let Some(end) = into.get_mut(count) {
        *end = 0;
    }
}

/// pidfd_open(2).
///
/// # Errors
/// ESRCH when there is no such process, EMFILE, ENOSYS before Linux 5.3.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two integers in, a new descriptor (close-on-exec by definition) or an error out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// pidfd_send_signal(2).
///
/// # Errors
/// ESRCH when the process has ended, EPERM.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: integers and a null siginfo, for which the kernel fills in that of kill(2).
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// pidfd_getfd(2): a copy of another process's descriptor, close-on-exec.
///
/// # Errors
/// EPERM without PTRACE_MODE_ATTACH_REALCREDS, EBADF, ESRCH, EMFILE, ENOSYS before Linux 5.6.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: three integers in, a new descriptor (close-on-exec by definition) or an error out.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}

/// Takes over a descriptor that this process was started with, and marks it close-on-exec.
/// `None` when the number is not open. Each number may be adopted once; the caller keeps that book.
#[must_use]
pub fn adopt(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl only inspects and marks the number.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: it is open, and by the contract above no other owner exists.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What becomes of a descriptor when this process executes another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExec {
    /// It is closed.
    Closed,
    /// The other program has it, under the same number.
    Kept,
}

/// FD_CLOEXEC of an open descriptor, by its number; one that is not open is left alone.
pub fn set_on_exec(fd: RawFd, what: OnExec) {
    let flags = match what {
        OnExec::Closed => libc::FD_CLOEXEC,
        OnExec::Kept => 0,
    };
    // SAFETY: fcntl(2) with integers; it owns and closes nothing.
    unsafe { libc::fcntl(fd, libc::F_SETFD, flags) };
}

/// The number is open and survives execve(2).
#[must_use]
pub fn is_kept_on_exec(fd: RawFd) -> bool {
    // SAFETY: fcntl(2) with integers; a number that is not open is an error, which is a "no".
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// A descriptor number as borrowed, for the three standard ones.
#[must_use]
pub fn standard(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: 0, 1 and 2 are opened at start (see `fds::ensure_standard`) and never closed by us.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// PR_SET_CHILD_SUBREAPER: orphans of our workers become our children, so they can be found.
pub fn become_subreaper() -> bool {
    // SAFETY: prctl with integers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong) == 0 }
}

/// A signal's disposition is "ignore": what nohup(1) leaves behind.
#[must_use]
pub fn is_ignored(signal: c_int) -> bool {
    // SAFETY: sigaction with a null new action only reads into the zeroed structure.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Ends this process by `signal`, with its default disposition, for a parent that looks at it.
pub fn die_by(signal: c_int) {
    // SAFETY: plain calls on the own process; a signal that does not end it lets this return.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut only: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut only);
        libc::sigaddset(&mut only, signal);
        libc::raise(signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &only, ptr::null_mut());
    }
}

/// Keeps large blocks of memory apart, so that each goes back to the kernel when it is freed: the C
/// library would raise that limit with the first one, and keep what a burst has needed (mallopt(3)). One
/// arena, so that a thread that frees what another has allocated does not keep it either.
pub fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt with integers, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// How often `byte` is there. By vectors, where the processor certainly has them: memchr's count adds up bit by bit
/// without the `popcnt` of newer ones, and was 8 % of what logreopen spends on a GB; this is 3 %.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn count_byte(byte: u8, bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi64, _mm_cmpeq_epi8, _mm_cvtsi128_si64, _mm_loadu_si128, _mm_sad_epu8,
        _mm_set1_epi8, _mm_setzero_si128, _mm_sub_epi8, _mm_unpackhi_epi64,
    };
    const WIDTH: usize = size_of::<__m128i>();
    let rows = bytes.chunks_exact(WIDTH * 2);
    let rest = rows.remainder();
    let rows = &bytes[..bytes.len() - rest.len()];
    // SAFETY: SSE2 is part of x86_64. Each load reads the 16 bytes at an address that need not be aligned, both of
    // them within the slice `row`, which chunks_exact makes 32 bytes long. All else is arithmetic on values.
    let total = unsafe {
        let (wanted, zero) = (_mm_set1_epi8(byte as i8), _mm_setzero_si128());
        let mut total = zero;
        // A lane of eight bits counts to 255.
        for block in rows.chunks(WIDTH * 2 * 255) {
            let (mut even, mut odd) = (zero, zero);
            for row in block.chunks_exact(WIDTH * 2) {
                let at = row.as_ptr().cast::<__m128i>();
                // Equal is -1.
                even = _mm_sub_epi8(even, _mm_cmpeq_epi8(_mm_loadu_si128(at), wanted));
                odd = _mm_sub_epi8(odd, _mm_cmpeq_epi8(_mm_loadu_si128(at.add(1)), wanted));
            }
            total = _mm_add_epi64(total, _mm_sad_epu8(even, zero));
            total = _mm_add_epi64(total, _mm_sad_epu8(odd, zero));
        }
        let high = _mm_unpackhi_epi64(total, total);
        _mm_cvtsi128_si64(_mm_add_epi64(total, high))
    };
    total as u64 + memchr::memchr_iter(byte, rest).count() as u64
}

/// How often `byte` is there.
#[cfg(not(target_arch = "x86_64"))]
#[must_use]
pub fn count_byte(byte: u8, bytes: &[u8]) -> u64 {
    memchr::memchr_iter(byte, bytes).count() as u64
}

/// Lets go of the code that was only needed to start: all pages of programs and libraries that are mapped
/// to be executed. What is run from now on comes back from the page cache, 64 KiB around each fault.
pub fn forget_start() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for line in maps.lines() {
        // 7f00-7f80 r-xp 00001000 08:01 1234 /usr/lib/libc.so.6 (proc_pid_maps(5))
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp"), Some(path)) = (words.next(), words.next(), words.nth(3))
        else {
            continue;
        };
        let ends = range.split_once('-');
        let ends = ends.map(|(from, to)| {
            (
                usize::from_str_radix(from, 16),
                usize::from_str_radix(to, 16),
            )
        });
        if let (true, Some((Ok(from), Ok(to)))) = (path.starts_with('/'), ends) {
            // SAFETY: a private mapping of a file that is executable and not writable holds nothing but the
            // file's bytes: position-independent code is not relocated. MADV_DONTNEED drops the page table
            // entries, and the next access reads the same bytes (madvise(2)); this very function included.
            unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
        }
    }
}

/// renameat2(2) with RENAME_NOREPLACE: what stands at `to` is never overwritten.
///
/// # Errors
/// EEXIST when something stands there; EINVAL where the file system cannot do it.
pub fn rename_to_free(from: &std::ffi::CStr, to: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: two strings that end in NUL and outlive the call, and integers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// TIOCGWINSZ: columns and rows of a terminal; `None` when it is none, or does not know.
#[must_use]
pub fn window_size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    // SAFETY: a structure of four integers, for which all zeroes are a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one winsize to a pointer to one.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (done == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// TIOCSWINSZ: tells a terminal how large it is; who runs on it gets WINCH if that is new.
pub fn set_window_size(fd: BorrowedFd<'_>, columns: u16, rows: u16) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads one winsize from a pointer to one; a descriptor that is none is refused.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size) };
}

/// FIONREAD: how many bytes can be read at once; of a terminal in canonical mode, those of whole lines
/// (ioctl_tty(2)). `None` for what has no such count.
#[must_use]
pub fn unread(fd: BorrowedFd<'_>) -> Option<usize> {
    let mut count: c_int = 0;
    // SAFETY: the kernel writes one int to a pointer to one.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut count) };
    (done == 0).then(|| usize::try_from(count).unwrap_or(0))
}

/// SO_PEERGROUPS: the supplementary groups of the process at the other end of a unix socket, as they were
/// when it connected (unix(7), since Linux 4.13). `None` where the kernel does not tell.
#[must_use]
pub fn peer_groups(fd: BorrowedFd<'_>) -> Option<Vec<u32>> {
    // NGROUPS_MAX of limits.h.
    let mut groups = vec![0u32; 65536];
    let mut size = (groups.len() * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into `groups`, and how many it wrote into `size`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &mut size,
        )
    };
    if done != 0 {
        return None;
    }
    groups.truncate(size as usize / size_of::<u32>());
    Some(groups)
}

/// F_GETPIPE_SZ: what a pipe has room for, in bytes; `None` when it is no pipe.
#[must_use]
pub fn pipe_size(fd: BorrowedFd<'_>) -> Option<usize> {
    // SAFETY: fcntl without an argument on an open descriptor.
    let size = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) };
    usize::try_from(size).ok().filter(|size| *size > 0)
}

/// F_SETPIPE_SZ; a refusal (pipe-user-pages-soft) leaves the pipe as it is.
pub fn widen_pipe(fd: BorrowedFd<'_>, bytes: c_int) -> bool {
    // SAFETY: fcntl with an integer on an open descriptor.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) >= 0 }
}

/// SO_PASSCRED: each message then carries pid, uid and gid of its sender (unix(7)).
///
/// # Errors
/// Those of setsockopt(2).
pub fn pass_credentials(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the option takes an int, and `on` is one.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            ptr::from_ref(&on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The accept queue of a listening TCP socket: how many connections wait in it, and how many may.
/// For a listener the kernel reports them in two fields of TCP_INFO (tcp_get_info in net/ipv4/tcp.c).
#[must_use]
pub fn accept_queue(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    // SAFETY: the kernel writes at most the size that it is given, into a zeroed plain structure.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
        let done = libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            ptr::from_mut(&mut info).cast(),
            &mut size,
        );
        (done == 0).then_some((info.tcpi_unacked, info.tcpi_sacked))
    }
}

/// Connections that a listening socket has dropped because its queue was full, since it was made:
/// SK_MEMINFO_DROPS of SO_MEMINFO (linux/sock_diag.h, since Linux 4.12), which counts for this socket
/// alone where /proc/net/netstat counts for all.
#[must_use]
pub fn socket_drops(fd: BorrowedFd<'_>) -> Option<u32> {
    const DROPS: usize = 8;
    let mut values = [0u32; DROPS + 1];
    let mut size = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into `values`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &mut size,
        )
    };
    (done == 0 && size as usize == size_of_val(&values)).then_some(values[DROPS])
}

/// setfsuid(2), setfsgid(2): file system access as that user; returns the former ids.
/// This thread only, and reversible: for binding a unix socket on behalf of a worker.
pub fn file_system_ids(uid: u32, gid: u32) -> (u32, u32) {
    // SAFETY: integers; the calls return the former id and never fail otherwise.
    unsafe {
        let former_gid = libc::setfsgid(gid) as u32;
        let former_uid = libc::setfsuid(uid) as u32;
        (former_uid, former_gid)
    }
}

/// Which children [`wait_id`] looks at.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Any child.
    Any,
    /// The child with this pid, known not to be reaped yet.
    Pid(i32),
    /// The child behind this pidfd.
    Pidfd(BorrowedFd<'a>),
}

/// Whether [`wait_id`] leaves the zombie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reap {
    /// It stays, and its pid with it.
    No,
    /// Its pid may be given to another process from now on.
    Yes,
}

/// waitid(2) for a child that has ended, without waiting: its pid, and its status or signal. The
/// library's own wrapper refuses real-time signals.
///
/// # Errors
/// ECHILD.
pub fn wait_id(which: Which<'_>, reap: Reap) -> io::Result<Option<(i32, crate::exit::End)>> {
    let (kind, id) = match which {
        Which::Any => (libc::P_ALL, 0),
        Which::Pid(pid) => (libc::P_PID, pid as libc::id_t),
        Which::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as libc::id_t),
    };
    let keep = if reap == Reap::No { libc::WNOWAIT } else { 0 };
    loop {
        // SAFETY: waitid writes the one zeroed siginfo_t that it is given; for a child's end the kernel
        // fills in the fields that si_pid and si_status read, and without one si_pid stays 0.
        let (done, pid, code, status) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let done = libc::waitid(kind, id, &mut info, libc::WEXITED | libc::WNOHANG | keep);
            (done, info.si_pid(), info.si_code, info.si_status())
        };
        if done == 0 {
            let end = if code == libc::CLD_EXITED {
                crate::exit::End::Exited(status)
            } else {
                crate::exit::End::Killed(status)
            };
            return Ok((pid != 0).then_some((pid, end)));
        }
        let why = io::Error::last_os_error();
        if why.kind() != io::ErrorKind::Interrupted {
            return Err(why);
        }
    }
}

/// One instruction of classic BPF (linux/filter.h): code, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// SO_ATTACH_REUSEPORT_CBPF (socket(7)): the program chooses, by its number in the group of sockets
/// with SO_REUSEPORT that `fd` is in, the one that a new connection goes to. It takes the place of one
/// that is there.
///
/// # Errors
/// ENOPROTOOPT before Linux 4.6; EINVAL for a program that the kernel's checker refuses.
pub fn attach_selector(fd: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|(code, jt, jf, k)| libc::sock_filter {
            code: *code,
            jt: *jt,
            jf: *jf,
            k: *k,
        })
        .collect();
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the option takes a sock_fprog, whose pointer and length are those of `filter`, which
    // lives until the kernel has copied it.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How fresh the attributes of [`statx`] are on a network file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// As stat(2): from the client's cache, which may be a minute old.
    AsStat,
    /// Asked for at the server, now (AT_STATX_FORCE_SYNC).
    Force,
    /// From the client's cache, however old (AT_STATX_DONT_SYNC): nobody is waited for.
    Cached,
}

/// What statx(2) says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its device.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// In bytes.
    pub size: u64,
    /// Of its content: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Of its inode.
    pub ctime: (i64, u32),
    /// When it was made, where the file system knows.
    pub btime: Option<(i64, u32)>,
    /// Something is mounted here: it is known under another name, too. Linux says so since 5.8.
    pub mount_root: bool,
}

/// statx(2) of a path, which is not followed if it is a link.
///
/// # Errors
/// ENOENT, ENOTDIR, EACCES, ESTALE, EIO, and what else a file system may say.
pub fn statx(path: &std::ffi::CStr, sync: Sync) -> io::Result<Attributes> {
    statx_at(libc::AT_FDCWD, path, libc::AT_SYMLINK_NOFOLLOW, sync)
}

/// statx(2) of an open file.
///
/// # Errors
/// ESTALE, EIO, and what else a file system may say.
pub fn statx_fd(fd: BorrowedFd<'_>, sync: Sync) -> io::Result<Attributes> {
    statx_at(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH, sync)
}

/// statx(2) of a path that leads over no link, if that can be said without waiting for anything, be it a disk,
/// a file server or an automount: all of the path has to be in the kernel's cache, and the attributes are
/// taken as they are there.
///
/// # Errors
/// EAGAIN: not without waiting; ENOSYS before Linux 5.12 (openat2(2), RESOLVE_CACHED); EPERM where a filter
/// of system calls does not know it; ENOENT and what else a path may lack.
pub fn statx_cached(path: &std::ffi::CStr) -> io::Result<Attributes> {
    // SAFETY: three integers; zero is the default of each.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_CACHED | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: `path` ends with a NUL and lives through the call, and so does `how`, whose size is given.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    statx_at(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH, Sync::Cached)
}

fn statx_at(
    directory: RawFd,
    path: &std::ffi::CStr,
    flags: c_int,
    sync: Sync,
) -> io::Result<Attributes> {
    let sync = match sync {
        Sync::AsStat => libc::AT_STATX_SYNC_AS_STAT,
        Sync::Force => libc::AT_STATX_FORCE_SYNC,
        Sync::Cached => libc::AT_STATX_DONT_SYNC,
    };
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    loop {
        // SAFETY: `path` ends with a NUL and lives through the call; `found` has room for one struct statx.
        let done = unsafe {
            libc::statx(
                directory,
                path.as_ptr(),
                flags | sync,
                mask,
                found.as_mut_ptr(),
            )
        };
        if done == 0 {
            break;
        }
        let why = io::Error::last_os_error();
        if why.kind() != io::ErrorKind::Interrupted {
            return Err(why);
        }
    }
    // SAFETY: all of its fields are integers, zeroed before, and the kernel has filled it in.
    let found = unsafe { found.assume_init() };
    let time = |stamp: libc::statx_timestamp| (stamp.tv_sec, stamp.tv_nsec);
    Ok(Attributes {
        dev: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
        ino: found.stx_ino,
        mode: u32::from(found.stx_mode),
        size: found.stx_size,
        mtime: time(found.stx_mtime),
        ctime: time(found.stx_ctime),
        btime: (found.stx_mask & libc::STATX_BTIME != 0).then(|| time(found.stx_btime)),
        // STATX_ATTR_MOUNT_ROOT, linux/stat.h
        mount_root: found.stx_attributes & 0x2000 != 0,
    })
}
