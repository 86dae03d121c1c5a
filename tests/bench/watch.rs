//! `make bench`, fifth part: watchtouch beside inotifywait, entr, watchexec, node and bare inotify.
//!
//! From a touch to the action: the touch is utimensat(2), the action a byte in a FIFO that this process reads, written
//! by the watcher itself (a line) or by a shell that it starts (a command). All watchers run at the same time, each on a
//! file of its own, and are touched in turn, so whatever else the machine does falls on all of them. Then nothing is
//! touched: processor, wake-ups, memory. Then, in a guest with a real NFS server: from a touch on the server to the line.
//! A peer that is not installed is left out, and named. No duration is judged.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

// Each part of the bench uses some of it.
#[allow(dead_code)]
mod proc;
mod report;

use kit::Dir;
use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use report::{less, wanted};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 60;
/// fs.watchFile looks every 5 s by default; so many rounds of that are enough.
const SLOW_ROUNDS: usize = 4;
/// Between two touches: longer than any watcher's own quiet time.
const APART: Duration = Duration::from_millis(60);
/// A touch that is not answered by then is missed.
const PATIENCE: Duration = Duration::from_secs(1);
const SLOW_PATIENCE: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(20);
/// Each command is this, in whatever runs it.
const ACTION: &str = "echo > \"$FIFO\"";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// It writes a line to its standard output.
    Line,
    /// It starts a shell.
    Shell,
}

/// A watcher to be.
struct Peer {
    name: &'static str,
    deed: Deed,
    /// In the shell, with `$FILE`, `$FIFO`, and `$ACTION` where it takes one.
    command: String,
    needs: String,
    /// It is touched by a write, because it does not see anything less.
    written: bool,
    slow: bool,
    /// Its memory and wake-ups are of interest.
    idle: bool,
}

/// One that runs.
struct Watcher {
    peer: Peer,
    file: PathBuf,
    fifo: File,
    child: Child,
    took: Vec<Duration>,
    missed: usize,
    place: PathBuf,
}

fn program() -> PathBuf {
    let root = kit::root().canonicalize().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let ours = root.join(target).join("release/watchtouch");
    assert!(
        ours.exists(),
        "{} is missing: run 'make' first",
        ours.display()
    );
    ours
}

/// Where tests/setup.sh puts it, or on the path.
fn watchexec() -> PathBuf {
    let built = kit::cache().join("watchexec/bin/watchexec");
    if built.exists() {
        built
    } else {
        "watchexec".into()
    }
}

fn peers(floor: &Path) -> Vec<Peer> {
    let ours = program();
    let watchexec = watchexec();
    let watchexec = watchexec.to_str().unwrap();
    let (ours, floor) = (ours.display(), floor.display());
    let at_once = "--settle 0 --min-gap 0 -q";
    let peer = |name, deed, command: String, needs: &str| Peer {
        name,
        deed,
        command,
        needs: needs.to_owned(),
        written: false,
        slow: false,
        idle: deed == Deed::Line,
    };
    let node = |call: &str| {
        format!(
            "exec node -e \"require('fs').{call}, () => require('fs').writeSync(1, 'x\\n'))\" \"$FILE\""
        )
    };
    let mut list = vec![
        peer("bare inotify", Deed::Line, format!("exec {floor} \"$FILE\""), "cc"),
        peer(
            "watchtouch --settle 0",
            Deed::Line,
            format!("exec {ours} \"$FILE\" {at_once}"),
            "true",
        ),
        peer(
            "watchtouch",
            Deed::Line,
            format!("exec {ours} \"$FILE\" --min-gap 0 -q"),
            "true",
        ),
        peer(
            "inotifywait -m",
            Deed::Line,
            "exec inotifywait -q -m -e attrib -e modify \"$FILE\"".into(),
            "inotifywait",
        ),
        peer("node fs.watch", Deed::Line, node("watch(process.argv[1]"), "node"),
        Peer {
            slow: true,
            ..peer(
                "node fs.watchFile",
                Deed::Line,
                node("watchFile(process.argv[1]"),
                "node",
            )
        },
        peer(
            "bare inotify",
            Deed::Shell,
            format!("exec {floor} \"$FILE\" \"$ACTION\""),
            "cc",
        ),
        peer(
            "watchtouch --settle 0",
            Deed::Shell,
            format!("exec {ours} \"$FILE\" {at_once} --on-touch \"$ACTION\""),
            "true",
        ),
        peer(
            "inotifywait -m | while read",
            Deed::Shell,
            "inotifywait -q -m -e attrib -e modify \"$FILE\" | while read -r _; do sh -c \"$ACTION\"; done".into(),
            "inotifywait",
        ),
        peer(
            "while inotifywait",
            Deed::Shell,
            "while inotifywait -qq -e attrib -e modify \"$FILE\"; do sh -c \"$ACTION\"; done".into(),
            "inotifywait",
        ),
        peer(
            "entr -np",
            Deed::Shell,
            "echo \"$FILE\" | exec entr -np sh -c \"$ACTION\"".into(),
            "entr",
        ),
        Peer {
            written: true,
            idle: true,
            ..peer(
                "entr -np, file written to",
                Deed::Shell,
                "echo \"$FILE\" > \"$FILE.list\"; exec entr -np sh -c \"$ACTION\" < \"$FILE.list\"".into(),
                "entr",
            )
        },
        Peer {
            idle: true,
            ..peer(
                "watchexec",
                Deed::Shell,
                format!("exec {watchexec} -q -p -w \"$FILE\" -- sh -c \"$ACTION\""),
                watchexec,
            )
        },
        peer(
            "watchexec -d 0ms",
            Deed::Shell,
            format!("exec {watchexec} -q -p -d 0ms -w \"$FILE\" -- sh -c \"$ACTION\""),
            watchexec,
        ),
    ];
    list.retain(|peer| {
        let there = installed(&peer.needs);
        if !there {
            println!("{:28} is not installed", peer.name);
            report::absent("touch", peer.name, "not installed");
        }
        there
    });
    list
}

fn installed(program: &str) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("command -v {program}")]);
    shell.stdout(Stdio::null()).status().unwrap().success()
}

impl Watcher {
    fn start(number: usize, peer: Peer) -> Watcher {
        // Beside the program, for in /tmp others are busy, and some watch every directory on the way. The FIFO is
        // in a directory that nobody watches.
        let own = format!("watch-bench-{}-{number}", std::process::id());
        let place = program().with_file_name(own);
        for name in ["watched", "told"] {
            std::fs::create_dir_all(place.join(name)).unwrap();
        }
        let file = place.join("watched/file");
        std::fs::write(&file, "").unwrap();
        let path = place.join("told/fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        // Both ends: it never ends, and nobody waits for the other to open it.
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        let stdout: Stdio = match peer.deed {
            Deed::Line => OpenOptions::new().write(true).open(&path).unwrap().into(),
            Deed::Shell => Stdio::null(),
        };
        let child = Command::new("sh")
            .args(["-c", &peer.command])
            .env("FILE", &file)
            .env("FIFO", &path)
            .env("ACTION", ACTION)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut watcher = Watcher {
            peer,
            file,
            fifo,
            child,
            took: Vec::new(),
            missed: 0,
            place,
        };
        // It watches when it answers. All of them see a write.
        let end = Instant::now() + Duration::from_secs(30);
        while !watcher.write_and_wait(Duration::from_millis(300)) {
            assert!(
                Instant::now() < end,
                "{} does not answer",
                watcher.peer.name
            );
        }
        watcher
    }

    fn write_and_wait(&mut self, patience: Duration) -> bool {
        self.write();
        self.answered(patience)
    }

    fn write(&self) {
        let mut file = OpenOptions::new().append(true).open(&self.file).unwrap();
        file.write_all(b"x").unwrap();
    }

    /// Something is in the FIFO, or comes within `patience`.
    fn answered(&mut self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self.fifo.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(patience).unwrap()).unwrap() > 0
    }

    fn drain(&mut self) {
        let mut bytes = [0; 4096];
        while self.fifo.read(&mut bytes).is_ok_and(|count| count > 0) {}
    }

    fn round(&mut self) {
        self.drain();
        let begun = Instant::now();
        if self.peer.written {
            self.write();
        } else {
            let now = TimeSpec::new(0, nix::libc::UTIME_NOW);
            utimensat(
                AT_FDCWD,
                &self.file,
                &now,
                &now,
                UtimensatFlags::FollowSymlink,
            )
            .unwrap();
        }
        let patience = if self.peer.slow {
            SLOW_PATIENCE
        } else {
            PATIENCE
        };
        if self.answered(patience) {
            self.took.push(begun.elapsed());
        } else {
            self.missed += 1;
        }
    }

    /// It gave no answer to any touch: that does not become better.
    fn hopeless(&self) -> bool {
        self.took.is_empty() && self.missed >= 5
    }

    fn row(&mut self) -> String {
        let what = match self.peer.deed {
            Deed::Line => "a line",
            Deed::Shell => "a shell",
        };
        let all = self.took.len() + self.missed;
        let head = format!("{:28} {what:8}", self.peer.name);
        if self.took.is_empty() {
            return format!("{head}        -        -        -   all of {all} missed");
        }
        self.took.sort();
        let took = &self.took;
        let missed = match self.missed {
            0 => String::new(),
            missed => format!(", {missed} missed"),
        };
        format!(
            "{head} {:8.2} {:8.2} {:8.2}   of {all}{missed}",
            ms(took[0]),
            ms(took[took.len() / 2]),
            ms(took[took.len() - 1])
        )
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

fn ms(length: Duration) -> f64 {
    length.as_secs_f64() * 1000.0
}

fn median(watchers: &[Watcher], name: &str, deed: Deed) -> Option<f64> {
    let of = |one: &&Watcher| one.peer.name == name && one.peer.deed == deed;
    let took = &watchers.iter().find(of)?.took;
    took.get(took.len() / 2).copied().map(ms)
}

fn latency(watchers: &mut [Watcher]) {
    let mut slow_rounds = 0;
    for round in 0..ROUNDS {
        let count = watchers.len();
        for step in 0..count {
            // Each is first once.
            let watcher = &mut watchers[(round + step) % count];
            if watcher.hopeless() || (watcher.peer.slow && slow_rounds >= SLOW_ROUNDS) {
                continue;
            }
            watcher.round();
            slow_rounds += usize::from(watcher.peer.slow);
            std::thread::sleep(APART);
        }
    }
    println!("from touch to action, ms          min   median      max");
    for watcher in watchers.iter_mut() {
        println!("{}", watcher.row());
        let name = match watcher.peer.deed {
            Deed::Line => "to a line",
            Deed::Shell => "to a shell that it starts",
        };
        let took: Vec<f64> = watcher.took.iter().copied().map(ms).collect();
        less("touch", name, "ms", watcher.peer.name, &took);
        if took.is_empty() {
            report::absent(
                "touch",
                watcher.peer.name,
                "misses a touch that writes nothing",
            );
        }
    }
    for (deed, what) in [(Deed::Line, "a line"), (Deed::Shell, "a shell")] {
        let ours = median(watchers, "watchtouch --settle 0", deed);
        let bare = median(watchers, "bare inotify", deed);
        if let (Some(ours), Some(bare)) = (ours, bare) {
            println!(
                "watchtouch, {what}: {ours:.2} ms, {:.2} of bare inotify's (goal: 1 ms, 1.3)",
                ours / bare
            );
        }
    }
}

/// What all threads of a process have run.
fn ran(pid: i32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn idle(watchers: &[Watcher]) {
    std::thread::sleep(Duration::from_secs(3));
    let all: Vec<&Watcher> = watchers.iter().filter(|one| one.peer.idle).collect();
    let now = |one: &&Watcher| {
        let pid = one.child.id() as i32;
        (ran(pid), proc::switches(pid).values().sum::<u64>())
    };
    let before: Vec<_> = all.iter().map(now).collect();
    std::thread::sleep(IDLE);
    println!(
        "idle for {} s                 CPU, ms   wake-ups   RSS, kB   PSS, kB   threads",
        IDLE.as_secs()
    );
    for (one, (cpu, switches)) in all.iter().zip(before) {
        let after = now(one);
        let pid = one.child.id() as i32;
        let figures = [
            ("idle for 20 s: CPU", "ms", ms(after.0 - cpu)),
            ("idle for 20 s: wake-ups", "", (after.1 - switches) as f64),
            ("idle: RSS", "kB", proc::rss(pid).unwrap_or(0) as f64),
        ];
        for (name, unit, value) in figures {
            less("touch", name, unit, one.peer.name, &[value]);
        }
        println!(
            "{:28} {:8.2} {:10} {:9} {:9} {:9}",
            one.peer.name,
            ms(after.0 - cpu),
            after.1 - switches,
            proc::rss(pid).unwrap_or(0),
            proc::pss(pid).unwrap_or(0),
            proc::threads(pid).unwrap_or(0)
        );
    }
    println!(
        "(goal: CPU 0, RSS under 3000 kB. watchtouch looks once in 30 s by itself, and wakes for what happens in any\n\
         directory on the way to its file)"
    );
}

/// In a guest, where there is an NFS server: see tests/uml/peers.py.
fn network() {
    let path = std::env::var("PATH").unwrap_or_default();
    if !path
        .split(':')
        .any(|dir| Path::new(dir).join("linux.uml").exists())
    {
        println!("linux.uml is not installed: NFS is left out");
        report::absent("nfs", "all", "linux.uml is not installed");
        return;
    }
    let dir = Dir::new();
    let uml = kit::root().join("tests/uml").canonicalize().unwrap();
    for (from, name) in [
        (program(), "watchtouch"),
        (uml.join("nfs.sh"), "nfs.sh"),
        (uml.join("peers.py"), "nfs.py"),
    ] {
        std::fs::copy(from, dir.path().join(name)).unwrap();
    }
    dir.write("program", "/mnt/out/watchtouch\n");
    let watchexec = watchexec();
    if watchexec.is_absolute() {
        std::fs::copy(watchexec, dir.path().join("watchexec")).unwrap();
    }
    let output = Command::new(uml.join("run.sh"))
        .arg("/mnt/out/nfs.sh")
        .arg(dir.path())
        .envs([("LIMIT", "400"), ("MEM", "1500M")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    for (name, took) in text.lines().filter_map(|line| line.split_at_checked(28)) {
        let (name, took) = (name.trim(), took.trim());
        let seconds = took.strip_suffix(" s").and_then(|took| took.parse().ok());
        if let Some(seconds) = seconds {
            less("nfs", "to a line", "s", name, &[seconds]);
        } else if took.starts_with("never") {
            report::absent("nfs", name, took);
        }
    }
    assert!(output.status.success(), "the guest failed");
    println!("(goal: the interval of 1 s and 0.2 s)");
}

fn main() {
    // `cargo test --all-targets` runs this program too, without that argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench watch");
        return;
    }
    let dir = Dir::new();
    let floor = dir.path().join("floor");
    if installed("cc") {
        let source = kit::root().join("tests/bench/floor.c");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-o"]).arg(&floor).arg(source);
        assert!(cc.status().unwrap().success(), "cc floor.c");
    }
    let list = if wanted("touch") {
        peers(&floor)
    } else {
        Vec::new()
    };
    let mut watchers: Vec<Watcher> = list
        .into_iter()
        .enumerate()
        .map(|(number, peer)| Watcher::start(number, peer))
        .collect();
    if wanted("touch") {
        latency(&mut watchers);
        idle(&watchers);
    }
    drop(watchers);
    if wanted("nfs") {
        network();
    }
}
