//! Nothing that a worker starts outlives it, where our cgroup was delegated to us; and nothing is done to
//! one that was not.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs
)]

use kit::{Dir, Run, Running, app, eventually, field};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

// ---- help of our own ----

/// Where the unified hierarchy is; mounted where it is not. `None`: this kernel does not have it.
fn hierarchy() -> Option<PathBuf> {
    static FOUND: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    let find = || {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes cgroups: run it as root (sudo make test)"
        );
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted = mounts.lines().find_map(|line| {
            let point = line.split(' ').nth(4)?;
            line.contains(" - cgroup2 ").then(|| PathBuf::from(point))
        });
        mounted.or_else(|| {
            // Below the system's directory, which outlives the test: other processes may be in it.
            let point = std::env::temp_dir().join("nirvana-test-cgroup2");
            std::fs::create_dir_all(&point).unwrap();
            let mount = Run::new("mount")
                .args(["-t", "cgroup2", "none"])
                .arg(&point);
            (mount.finish().status == 0).then_some(point)
        })
    };
    let found = FOUND.get_or_init(find).clone();
    if found.is_none() {
        eprintln!("no cgroup v2 here, and none can be mounted: nothing was tested");
    }
    found
}

/// A cgroup for one test, which goes with all that is in it.
struct Cgroup(PathBuf);

/// Whether it is marked as systemd would.
#[derive(PartialEq, Eq)]
enum Mark {
    Delegated,
    Nothing,
}

impl Cgroup {
    fn new(mark: Mark) -> Option<Cgroup> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nirvana-test-{}-{number}", std::process::id());
        Some(Cgroup::make(&hierarchy()?.join(name), mark))
    }

    fn make(path: &Path, mark: Mark) -> Cgroup {
        std::fs::create_dir(path).unwrap_or_else(|why| {
            panic!("this test needs cgroups of its own, and cannot make {path:?}: {why}")
        });
        if mark == Mark::Delegated {
            let script = "import os, sys; os.setxattr(sys.argv[1], 'user.delegate', b'1')";
            let done = Run::new("python3").args(["-c", script]).arg(path).finish();
            assert_eq!(done.status, 0, "{}", done.err);
        }
        Cgroup(path.to_owned())
    }

    /// A program that starts in it.
    fn run(&self, program: &str) -> Run {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display());
        Run::new("sh").args(["-c", &enter, "sh", program])
    }

    fn spawnwork(&self, options: &[&str]) -> Run {
        self.run(SPAWNWORK).args(options)
    }

    /// The names of the groups in it.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The group of a process, seen from here; empty for this one.
    fn of(&self, pid: i32) -> String {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let place = text.lines().find_map(|line| line.strip_prefix("0::"));
        let place = place.unwrap().to_owned();
        let (_, own) = place
            .split_once(self.0.file_name().unwrap().to_str().unwrap())
            .unwrap_or_else(|| panic!("{pid} is in {place}"));
        own.trim_start_matches('/').to_owned()
    }

    fn becomes_empty(&self) {
        eventually("no groups are left", || {
            self.names().is_empty().then_some(())
        });
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let end = Instant::now() + Duration::from_secs(10);
        while self.0.exists() && Instant::now() < end {
            let mut all = vec![self.0.clone()];
            let mut next = 0;
            while next < all.len() {
                let entries = std::fs::read_dir(&all[next])
                    .into_iter()
                    .flatten()
                    .flatten();
                let below = entries.filter(|entry| entry.file_type().is_ok_and(|one| one.is_dir()));
                let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
                all.extend(below);
                next += 1;
            }
            all.iter()
                .rev()
                .for_each(|path| drop(std::fs::remove_dir(path)));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A worker that starts what nobody can find: in a session of its own, with init or a subreaper for its
/// parent, and nothing in its environment. It is deaf to TERM, and its pid is in `escaped-SLOT`.
const ESCAPE: &str = r#"
import os, signal, sys, time
def escape(name):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open(name + '.new', 'w') as file:
                file.write(str(os.getpid()))
            os.rename(name + '.new', name)
            os.execve('/bin/sleep', ['sleep', '600'], {})
        os._exit(0)
    os.wait()
    while not os.path.exists(name):
        time.sleep(0.002)
name = 'escaped-' + os.environ['WORKER_ID']
if os.path.exists(name):
    os.unlink(name)
escape(name)
if 'DEAF' in os.environ:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(9, b'\n')
while True:
    time.sleep(600)
"#;

const WORKER: [&str; 4] = ["--", "python3", "-c", ESCAPE];

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

fn gone(pid: i32) {
    eventually(&format!("the end of {pid}"), || (!alive(pid)).then_some(()));
}

fn pid_of(line: &str) -> i32 {
    field(line, "pid").parse().unwrap()
}

/// Who escaped from the worker in a slot; another one than `before`.
fn escaped(dir: &Dir, slot: usize, before: Option<i32>) -> i32 {
    eventually("an escape", || {
        let text = std::fs::read_to_string(dir.path().join(format!("escaped-{slot}"))).ok()?;
        let pid: i32 = text.parse().ok()?;
        // It is what it will be: its environment is empty.
        let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        (Some(pid) != before && environ.is_empty() && alive(pid)).then_some(pid)
    })
}

/// A master whose workers are ready.
fn serving(run: Run, dir: &Dir) -> (Running, i32) {
    let mut master = run.dir(dir.path()).start();
    let worker = pid_of(&master.event("worker-ready"));
    master.event("generation-serving");
    (master, worker)
}

/// Ready when it has escaped and its signals are handled.
const QUICK: [&str; 4] = ["-n", "1", "--ready", "fd:9"];

fn with<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let all = QUICK.iter().chain(options).chain(&WORKER);
    all.copied().collect()
}

// ---- nothing outlives its worker ----

#[test]
fn what_escaped_is_gone_after_a_stop() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let (mut master, worker) = serving(group.spawnwork(&with(&["--stop-timeout", "300ms"])), &dir);
    let hidden = escaped(&dir, 0, None);
    // The worker has a group of its own, and the master has stayed.
    let name = group.of(worker);
    assert!(
        name.starts_with(&format!("spawnwork-{}-", master.pid())),
        "{name}"
    );
    assert_eq!(group.of(hidden), name);
    assert_eq!(group.of(master.pid()), "");
    assert_eq!(group.names(), [name]);
    assert_eq!(master.stop(), 0);
    assert!(!alive(hidden) && !alive(worker), "both at its end");
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn a_kill_at_the_stop_timeout_takes_all_at_once() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let run = group
        .spawnwork(&with(&["--stop-timeout", "3s"]))
        .env("DEAF", "1");
    let (mut master, worker) = serving(run, &dir);
    let hidden = escaped(&dir, 0, None);
    master.signal(Signal::SIGTERM);
    master.event("worker-stopping");
    assert!(alive(hidden), "only the process group is asked to go");
    master.event("worker-killed");
    let since = Instant::now();
    gone(hidden);
    // What is swept later has the stop-timeout once more.
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(master.end(), 0);
    assert!(!alive(worker));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn quit_takes_all_at_once() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let (mut master, _) = serving(group.spawnwork(&with(&["--stop-timeout", "60s"])), &dir);
    let hidden = escaped(&dir, 0, None);
    master.signal(Signal::SIGQUIT);
    master.end();
    assert!(!alive(hidden));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn a_crash_takes_all_that_the_worker_had_started() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let run = group.spawnwork(&with(&[
        "--stop-timeout",
        "200ms",
        "--backoff",
        "10ms..20ms",
    ]));
    let (mut master, worker) = serving(run, &dir);
    let hidden = escaped(&dir, 0, None);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let next = pid_of(&master.event("worker-ready"));
    let second = escaped(&dir, 0, Some(hidden));
    gone(hidden);
    // Its group goes too, and the next worker's is another.
    eventually("one group", || {
        (group.names() == [group.of(next)]).then_some(())
    });
    assert!(alive(second) && alive(next));
    master.signal(Signal::SIGUSR1);
    let line = master.event("status");
    assert_eq!(field(&line, "sweep"), "cgroup", "{line}");
    assert_eq!(master.stop(), 0);
    assert!(!alive(second));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

/// What it starts is asked to go, and starts another that nobody has seen and that is deaf.
const HYDRA: &str = r#"
import os, signal, time
def grow(*_):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        with open('head.new', 'w') as file:
            file.write(str(os.getpid()))
        os.rename('head.new', 'head')
        os.execve('/bin/sleep', ['sleep', '600'], {})
    os._exit(0)
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, grow)
    os.write(9, b'\n')
    while True:
        time.sleep(600)
while True:
    time.sleep(600)
"#;

#[test]
fn what_is_forked_on_the_way_out_goes_too() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let run = group
        .spawnwork(&QUICK)
        .args(["--stop-timeout", "1s", "--", "python3", "-c", HYDRA]);
    let (mut master, _) = serving(run, &dir);
    master.signal(Signal::SIGTERM);
    let head: i32 = eventually("TERM, and another head", || {
        let text = std::fs::read_to_string(dir.path().join("head")).ok()?;
        text.parse().ok()
    });
    assert_eq!(master.end(), 0);
    assert!(!alive(head));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn many_respawns_leave_no_directory() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let options = [
        "--stop-timeout",
        "50ms",
        "--backoff",
        "1ms..2ms",
        "--respawn-limit",
        "0",
    ];
    let (mut master, mut worker) = serving(group.spawnwork(&with(&options)), &dir);
    let mut hidden = Vec::new();
    for _ in 0..50 {
        hidden.push(escaped(&dir, 0, hidden.last().copied()));
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        master.event("worker-exited");
        worker = pid_of(&master.event("worker-started"));
    }
    let last = escaped(&dir, 0, hidden.last().copied());
    hidden.iter().for_each(|pid| gone(*pid));
    eventually("one group", || {
        (group.names() == [group.of(worker)]).then_some(())
    });
    let open = std::fs::read_dir(format!("/proc/{}/fd", master.pid())).unwrap();
    assert!(
        open.count() < 30,
        "no descriptor is kept for those that are gone"
    );
    assert_eq!(master.stop(), 0);
    assert!(!alive(last));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn groups_that_a_worker_made_go_with_it() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let script = "own=$(sed -n 's/^0:://p' /proc/self/cgroup); d=$HIERARCHY$own/a/b; mkdir -p $d
        setsid sh -c 'trap \"\" TERM; echo $$ > '$d'/cgroup.procs; echo $$ > inner; exec env -i sleep 600' &
        until [ -s inner ]; do sleep 0.01; done; sleep 600";
    let run = group
        .spawnwork(&["-n", "1", "--ready", "alive:50ms"])
        .args(["--stop-timeout", "300ms", "--", "sh", "-c", script]);
    let (mut master, worker) = serving(run.env("HIERARCHY", hierarchy().unwrap()), &dir);
    let inner: i32 = eventually("the inner one", || {
        let text = std::fs::read_to_string(dir.path().join("inner")).ok()?;
        text.trim().parse().ok()
    });
    assert_eq!(group.of(inner), format!("{}/a/b", group.of(worker)));
    assert_eq!(master.stop(), 0);
    assert!(!alive(inner));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

// ---- whose cgroup it is ----

#[test]
fn where_it_is_not_delegated_nothing_is_made_and_the_sweep_is_as_ever() {
    let Some(group) = Cgroup::new(Mark::Nothing) else {
        return;
    };
    let dir = Dir::new();
    let script = "setsid sleep 600 & echo $! > left; wait";
    let run = group.spawnwork(&[
        "-n",
        "2",
        "--ready",
        "alive:50ms",
        "--stop-timeout",
        "300ms",
    ]);
    let run = run.args(["--control", "c.sock", "--", "sh", "-c", script]);
    let (mut master, worker) = serving(run, &dir);
    let left: i32 = eventually("a child", || {
        let text = std::fs::read_to_string(dir.path().join("left")).ok()?;
        text.trim().parse().ok()
    });
    assert_eq!(
        (group.of(worker), group.of(left)),
        (String::new(), String::new())
    );
    assert!(group.names().is_empty(), "{:?}", group.names());
    let ask = |words: &[&str]| {
        let run = Run::new(SPAWNWORK)
            .arg("--ctl")
            .args([dir.path().join("c.sock")]);
        run.args(words).finish().out
    };
    assert!(ask(&["status", "json"]).contains("\"sweep\":\"subreaper\""));
    assert!(ask(&["status"]).contains("\nsweep: subreaper\n"));
    assert_eq!(master.stop(), 0);
    gone(left);
    assert!(group.names().is_empty(), "{:?}", group.names());
    let told = group
        .spawnwork(&["--check-config", "--", "sleep", "1"])
        .finish();
    assert!(
        told.out
            .contains("\nsweep: subreaper, since our cgroup is not delegated to us\n"),
        "{}",
        told.out
    );
}

#[test]
fn the_status_and_the_check_of_the_configuration_say_so() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let told = group
        .spawnwork(&["--check-config", "--", "sleep", "1"])
        .finish();
    let line = format!(
        "\nsweep: cgroup, below {} (delegated by its attribute)\n",
        group.0.display()
    );
    assert!(told.out.contains(&line), "{}", told.out);
    assert!(group.names().is_empty(), "nothing is made");
    let dir = Dir::new();
    let (mut master, _) = serving(
        group.spawnwork(&with(&["--control", "c.sock", "--stop-timeout", "1s"])),
        &dir,
    );
    let ask = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([dir.path().join("c.sock")]);
    let told = ask.args(["status", "json"]).finish();
    assert!(told.out.contains("\"sweep\":\"cgroup\""), "{}", told.out);
    assert_eq!(master.stop(), 0);
}

#[test]
fn an_ordinary_user_needs_the_boundary_and_not_merely_the_directory() {
    let Some(group) = Cgroup::new(Mark::Nothing) else {
        return;
    };
    let dir = Dir::new();
    std::fs::copy(SPAWNWORK, dir.path().join("spawnwork")).unwrap();
    let give = |path: &Path| {
        let owner = Some(54321);
        std::os::unix::fs::chown(path, owner, owner).unwrap();
        for name in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            std::os::unix::fs::chown(path.join(name), owner, owner).unwrap();
        }
    };
    let user = ["--reuid=54321", "--regid=54321", "--clear-groups"];
    let check = |group: &Cgroup| {
        let run = group
            .run("setpriv")
            .args(user)
            .arg(dir.path().join("spawnwork"));
        run.args(["--check-config", "--", "sleep", "1"])
            .finish()
            .out
    };
    assert!(check(&group).contains("\nsweep: subreaper, since our cgroup is not delegated"));
    give(&group.0);
    assert!(
        check(&group).contains("\nsweep: cgroup, "),
        "{}",
        check(&group)
    );
    // As the units of a user's own systemd are: all of them the user's, and managed by somebody else.
    let below = Cgroup::make(&group.0.join("unit"), Mark::Nothing);
    give(&below.0);
    assert!(check(&below).contains("\nsweep: subreaper, since our cgroup is not delegated"));
    drop(below);
    std::os::unix::fs::chown(dir.path(), Some(54321), Some(54321)).unwrap();
    let run = group
        .run("setpriv")
        .args(user)
        .arg(dir.path().join("spawnwork"));
    let (mut master, worker) = serving(run.args(with(&["--stop-timeout", "300ms"])), &dir);
    let hidden = escaped(&dir, 0, None);
    assert_eq!(group.names(), [group.of(worker)]);
    assert_eq!(master.stop(), 0);
    assert!(!alive(hidden));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn the_root_of_a_namespace_is_the_containers_with_pid_1_in_it() {
    let Some(group) = Cgroup::new(Mark::Nothing) else {
        return;
    };
    let dir = Dir::new();
    let script =
        "mkdir -p cg && mount -t cgroup2 none cg && grep -qx 0::/ /proc/self/cgroup && exec \"$@\"";
    let run = group
        .run("unshare")
        .args(["-C", "-p", "-f", "-m", "--mount-proc"]);
    let run = run.args(["sh", "-c", script, "sh", SPAWNWORK]);
    let run = run.args(with(&["--stop-timeout", "300ms"])).dir(dir.path());
    let mut master = run.start();
    master.event("generation-serving");
    let name = eventually("a group", || group.names().pop());
    assert!(name.starts_with("spawnwork-1-"), "{name}");
    let procs = std::fs::read_to_string(group.0.join(&name).join("cgroup.procs")).unwrap();
    let members: Vec<i32> = procs.lines().map(|pid| pid.parse().unwrap()).collect();
    assert!(members.len() >= 2, "{members:?}");
    let first = kit::run::children_of(master.pid())[0];
    kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
    assert_eq!(master.end(), 0);
    members.into_iter().for_each(gone);
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn a_namespace_that_cannot_be_seen_is_not_guessed_at() {
    let Some(group) = Cgroup::new(Mark::Nothing) else {
        return;
    };
    // The mount is of the world outside, where `/` is something else.
    let run = group.run("unshare").args(["-C", SPAWNWORK]);
    let told = run.args(["--check-config", "--", "sleep", "1"]).finish();
    assert!(
        told.out
            .contains("\nsweep: subreaper, since there is no cgroup v2 to be seen\n"),
        "{}",
        told.out
    );
}

#[test]
fn who_is_moved_elsewhere_starts_no_more_in_the_old_place() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let Some(other) = Cgroup::new(Mark::Nothing) else {
        return;
    };
    let dir = Dir::new();
    let run = group.spawnwork(&with(&[
        "--stop-timeout",
        "200ms",
        "--backoff",
        "10ms..20ms",
    ]));
    let (mut master, worker) = serving(run, &dir);
    let hidden = escaped(&dir, 0, None);
    std::fs::write(other.0.join("cgroup.procs"), master.pid().to_string()).unwrap();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let next = pid_of(&master.event("worker-ready"));
    assert_eq!(other.of(next), "");
    gone(hidden);
    group.becomes_empty();
    assert!(other.names().is_empty());
    master.signal(Signal::SIGUSR1);
    assert_eq!(field(&master.event("status"), "sweep"), "subreaper");
    assert_eq!(master.stop(), 0);
}

// ---- masters after masters ----

/// Lives on for as long as `stay` is there.
const DRAINS: &str = r#"
import os, signal, time
def leave(*_):
    open('asked', 'w').close()
    while os.path.exists('stay'):
        time.sleep(0.01)
    open('finished', 'w').close()
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
os.write(9, b'\n')
while True:
    time.sleep(600)
"#;

#[test]
fn the_next_master_lets_a_dead_ones_workers_finish_and_removes_their_groups() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    dir.write("stay", "");
    let options = [
        &QUICK[..],
        &["--stop-timeout", "30s", "--", "python3", "-c", DRAINS],
    ]
    .concat();
    let (mut first, worker) = serving(group.spawnwork(&options), &dir);
    let old = group.of(worker);
    first.signal(Signal::SIGKILL);
    first.end();
    eventually("TERM by the master's death", || {
        dir.path().join("asked").exists().then_some(())
    });
    let (mut second, next) = serving(group.spawnwork(&options), &dir);
    let new = group.of(next);
    assert!(old != new && alive(worker), "{old} {new}");
    // Crashes, and the sweeps after them, are none of the old one's business.
    kill(Pid::from_raw(next), Signal::SIGKILL).unwrap();
    second.event("worker-ready");
    assert!(alive(worker) && group.names().contains(&old));
    assert!(!dir.path().join("finished").exists());
    std::fs::remove_file(dir.path().join("stay")).unwrap();
    gone(worker);
    assert!(dir.path().join("finished").exists(), "by itself");
    eventually("its group is removed", || {
        (!group.names().contains(&old)).then_some(())
    });
    assert_eq!(second.stop(), 0);
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn empty_groups_of_a_dead_master_are_removed_at_the_next_start_and_no_others() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    // No process has such a pid; a live one; and what is not ours.
    let own = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = own
        .rsplit(')')
        .next()
        .unwrap()
        .split(' ')
        .nth(20)
        .unwrap()
        .to_owned();
    let me = std::process::id();
    let live = format!("spawnwork-{me}-{start}-w1");
    for name in [
        "spawnwork-4194305-17-w1",
        &format!("spawnwork-{me}-1-w1"),
        &live,
        "spawnwork-x",
        "spawnwork-4194305-w1",
        "other",
    ] {
        std::fs::create_dir(group.0.join(name)).unwrap();
    }
    let (mut master, worker) = serving(group.spawnwork(&with(&["--stop-timeout", "300ms"])), &dir);
    let mut left = vec![
        "other".to_owned(),
        "spawnwork-4194305-w1".to_owned(),
        "spawnwork-x".to_owned(),
        live,
    ];
    left.sort();
    let mut all = left.clone();
    all.push(group.of(worker));
    all.sort();
    assert_eq!(group.names(), all);
    assert_eq!(master.stop(), 0);
    assert_eq!(group.names(), left);
}

#[test]
fn adopted_orphans_leave_politely_and_their_groups_go() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    dir.write("stay", "");
    let adopt = [
        "--orphans",
        "adopt",
        "--pid-file",
        "a.pid",
        "--stop-timeout",
        "30s",
    ];
    let options = [&QUICK[..], &adopt, &["--", "python3", "-c", DRAINS]].concat();
    let (mut first, worker) = serving(group.spawnwork(&options), &dir);
    let old = group.of(worker);
    first.signal(Signal::SIGKILL);
    first.end();
    let mut second = group.spawnwork(&options).dir(dir.path()).start();
    assert_eq!(pid_of(&second.event("orphan-found")), worker);
    second.event("orphan-stopping");
    eventually("it is asked", || {
        dir.path().join("asked").exists().then_some(())
    });
    assert!(alive(worker) && group.names().contains(&old));
    std::fs::remove_file(dir.path().join("stay")).unwrap();
    second.event("orphan-exited");
    assert!(dir.path().join("finished").exists(), "by itself");
    eventually("its group is removed", || {
        (!group.names().contains(&old)).then_some(())
    });
    assert_eq!(second.stop(), 0);
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn another_program_in_the_masters_place_keeps_the_groups() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let options = with(&[
        "--control",
        "c.sock",
        "--stop-timeout",
        "300ms",
        "--backoff",
        "10ms..20ms",
    ]);
    let (mut master, worker) = serving(group.spawnwork(&options), &dir);
    let hidden = escaped(&dir, 0, None);
    let name = group.of(worker);
    let ask = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([dir.path().join("c.sock")]);
    let told = ask.args(["reexec", "--timeout", "30s"]).finish();
    assert_eq!(told.status, 0, "{}", told.err);
    master.event("reexecuted");
    assert!(alive(worker) && alive(hidden));
    assert_eq!(group.names(), [name]);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let next = pid_of(&master.event("worker-ready"));
    gone(hidden);
    eventually("one group", || {
        (group.names() == [group.of(next)]).then_some(())
    });
    let second = escaped(&dir, 0, Some(hidden));
    assert_eq!(master.stop(), 0);
    assert!(!alive(second));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn what_a_dead_worker_left_is_still_swept_by_the_program_that_takes_over() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let options = with(&[
        "--control",
        "c.sock",
        "--stop-timeout",
        "4s",
        "--backoff",
        "10ms..20ms",
    ]);
    let (mut master, worker) = serving(group.spawnwork(&options), &dir);
    let hidden = escaped(&dir, 0, None);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let next = pid_of(&master.event("worker-ready"));
    let ask = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([dir.path().join("c.sock")]);
    let told = ask.args(["reexec", "--timeout", "30s"]).finish();
    assert_eq!(told.status, 0, "{}", told.err);
    master.event("reexecuted");
    assert!(alive(hidden), "it still has its time");
    gone(hidden);
    eventually("one group", || {
        (group.names() == [group.of(next)]).then_some(())
    });
    let second = escaped(&dir, 0, Some(hidden));
    master.signal(Signal::SIGQUIT);
    master.end();
    assert!(!alive(second));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

// ---- other users, older kernels ----

#[test]
fn a_worker_of_another_user_is_in_there_and_cannot_get_out() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    std::os::unix::fs::chown(dir.path(), Some(54321), Some(54321)).unwrap();
    let options = with(&["--user", "54321:54321", "--stop-timeout", "300ms"]);
    let (mut master, worker) = serving(group.spawnwork(&options), &dir);
    let hidden = escaped(&dir, 0, None);
    let status = std::fs::read_to_string(format!("/proc/{hidden}/status")).unwrap();
    assert!(
        status.contains("\nUid:\t54321\t54321\t54321\t54321\n"),
        "{status}"
    );
    let name = group.of(worker);
    assert_eq!(
        (group.of(hidden), group.names()),
        (name.clone(), vec![name.clone()])
    );
    for place in [group.0.clone(), group.0.join(&name)] {
        let script = format!("echo 0 > {}/cgroup.procs", place.display());
        let tried = Run::new("setpriv").args([
            "--reuid=54321",
            "--regid=54321",
            "--clear-groups",
            "sh",
            "-c",
        ]);
        assert_ne!(tried.arg(script).finish().status, 0, "{place:?}");
    }
    assert_eq!(master.stop(), 0);
    assert!(!alive(hidden));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

fn built(source: &str, dir: &Dir, flags: &[&str]) -> PathBuf {
    let path = dir.path().join(source.trim_end_matches(".c"));
    let cc = Run::new("cc")
        .args(["-Wall", "-Werror"])
        .args(flags)
        .arg("-o")
        .arg(&path);
    let done = cc.arg(app(source)).finish();
    assert_eq!(done.status, 0, "{}", done.err);
    path
}

#[test]
fn without_clone3_the_worker_enters_by_itself() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let tool = built("enosys.c", &dir, &[]);
    // 435: clone3(2), which containers forbid in the same way.
    let run = group.run(tool.to_str().unwrap()).args(["435", SPAWNWORK]);
    let (mut master, worker) = serving(run.args(with(&["--stop-timeout", "300ms"])), &dir);
    let hidden = escaped(&dir, 0, None);
    assert_eq!(group.names(), [group.of(worker)]);
    assert_eq!(group.of(hidden), group.of(worker));
    assert_eq!(master.stop(), 0);
    assert!(!alive(hidden));
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn without_cgroup_kill_they_are_killed_one_by_one() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    let library = built("no_cgroup_kill.c", &dir, &["-shared", "-fPIC"]);
    let run = group
        .spawnwork(&with(&["--stop-timeout", "3s"]))
        .env("DEAF", "1");
    let run = run.env("LD_PRELOAD", library);
    let (mut master, _) = serving(run, &dir);
    let hidden = escaped(&dir, 0, None);
    master.signal(Signal::SIGTERM);
    master.event("worker-killed");
    let since = Instant::now();
    gone(hidden);
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(master.end(), 0);
    assert!(group.names().is_empty(), "{:?}", group.names());
}

#[test]
fn a_limit_on_groups_is_no_limit_on_workers() {
    let Some(group) = Cgroup::new(Mark::Delegated) else {
        return;
    };
    let dir = Dir::new();
    std::fs::write(group.0.join("cgroup.max.descendants"), "1").unwrap();
    let run = group.spawnwork(&["-n", "3", "--ready", "alive:50ms", "--", "sleep", "600"]);
    let (mut master, _) = serving(run, &dir);
    assert_eq!(group.names().len(), 1);
    master.signal(Signal::SIGUSR1);
    assert_eq!(field(&master.event("status"), "sweep"), "subreaper");
    assert_eq!(master.stop(), 0);
    assert!(group.names().is_empty(), "{:?}", group.names());
}
