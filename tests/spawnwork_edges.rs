//! Machines that are not as one would like them: no process left, no /proc, an older kernel, a master
//! that was stopped for a while, everybody dead at once.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::get;
use kit::mount::Mounted;
use kit::{Dir, Run, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes what the machine offers: run it as root (sudo make test)"
    );
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap())
}

// Edge case 10.
#[test]
fn no_process_left_for_some_is_no_end_for_the_others() {
    needs_root();
    let dir = Dir::new();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    // A user of its own, since the limit counts all processes of a user: the master, and two workers.
    std::fs::copy(SPAWNWORK, dir.path().join("spawnwork")).unwrap();
    let mut master = Run::new("setpriv")
        .args(["--reuid=54321", "--regid=54321", "--clear-groups"])
        .args(["prlimit", "--nproc=3:9", "./spawnwork", "-n", "4"])
        .args([
            "--ready",
            "alive:50ms",
            "--backoff",
            "20ms..100ms",
            "--respawn-limit",
            "0",
        ])
        .args(["--", "sleep", "600"])
        .dir(dir.path())
        .start();
    let served: BTreeSet<String> = (0..2)
        .map(|_| field(&master.event("worker-ready"), "slot"))
        .collect();
    let failed = master.event("worker-failed");
    assert!(failed.contains("start a worker"), "{failed}");
    assert!(failed.contains("temporarily unavailable"), "{failed}");
    assert!(!served.contains(&field(&failed, "slot")));
    let mark = master.pid().to_string();
    let raised = Run::new("setpriv")
        .args(["--reuid=54321", "--regid=54321", "--clear-groups"])
        .args(["prlimit", "--nproc=9:9", "--pid", &mark])
        .finish();
    assert_eq!(raised.status, 0, "{}", raised.err);
    master.event("generation-serving");
    assert!(
        !master.err().join("\n").contains("worker-exited"),
        "nobody died of it"
    );
    assert_eq!(master.stop(), 0);
}

// Edge case 11.
// Edge case 23.
#[test]
fn all_at_once_dead_and_all_come_back_but_not_all_at_once() {
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "8", "--start-parallel", "2", "--ready", "notify"])
        .args(["--", "python3", "-c"])
        .args(["import os, socket, time\ntime.sleep(0.05)\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\ntime.sleep(600)"])
        .start();
    master.event("generation-serving");
    let before: BTreeSet<i32> = kit::run::children_of(master.pid()).into_iter().collect();
    assert_eq!(before.len(), 8);
    // Up for a second: they come back without a wait.
    eventually("a second passes", || {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let now: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let young = before.iter().any(|pid| now - started(*pid) < 1.1);
        (!young).then_some(())
    });
    before
        .iter()
        .for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap());
    let mut serving = BTreeSet::new();
    while serving.len() < 8 {
        let line = master.event("worker-ready");
        serving.insert(field(&line, "slot"));
    }
    let log = master.err();
    let from = log
        .iter()
        .position(|line| line.contains("worker-exited"))
        .unwrap();
    let mut starting: i32 = 0;
    for line in &log[from..] {
        starting += i32::from(line.contains(": worker-started "));
        starting -= i32::from(line.contains(": worker-ready "));
        assert!(starting <= 2, "{starting} at once: {line}");
    }
    assert!(!log.join("\n").contains("worker-backoff"));
    assert_eq!(master.stop(), 0);
}

/// When a process was started, in seconds since the boot.
fn started(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: f64 = rest.split_whitespace().nth(19).unwrap().parse().unwrap();
    ticks / 100.0
}

// Edge case 14.
#[test]
fn a_master_that_was_stopped_for_a_while_kills_nobody_for_it() {
    let port = free_port();
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "2", "--ready-timeout", "700ms", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    let first = field(&master.event("worker-started"), "pid");
    master.signal(Signal::SIGSTOP);
    // Its time passes while nobody looks; it says that it listens, to nobody.
    eventually("the time is over", || {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let now: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        (now - started(first.parse().unwrap()) > 1.5).then_some(())
    });
    master.signal(Signal::SIGCONT);
    master.event("generation-serving");
    let log = master.err().join("\n");
    assert!(
        !log.contains("worker-failed") && !log.contains("worker-exited"),
        "{log}"
    );
    assert!(
        log.contains(&format!("worker-ready slot=0 pid={first} ")),
        "{log}"
    );
    assert!(get(format!("127.0.0.1:{port}"), "/").is_ok());
    assert_eq!(master.stop(), 0);
}

// Edge case 47.
#[test]
fn without_proc_it_starts_respawns_reloads_and_stops() {
    needs_root();
    let (dir, port) = (Dir::new(), free_port());
    let script = "umount -l /proc && [ ! -e /proc/self ] && exec \"$@\"";
    let mut master = Run::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", SPAWNWORK])
        .args([
            "-n",
            "2",
            "--probation",
            "50ms",
            "--control",
            "c.sock",
            "-l",
        ])
        .args([format!("127.0.0.1:{port}")])
        .args(["--ready", "alive:300ms", "--", "python3"])
        .args([app("plain_server.py")])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    // The app is no graceful one: what an old worker has in hand when it is told to go is lost.
    eventually("an answer", || get(format!("127.0.0.1:{port}"), "/").ok());
    let victim = field(
        master
            .err()
            .iter()
            .find(|line| line.contains("worker-ready"))
            .unwrap(),
        "pid",
    );
    kill(pid(&victim), Signal::SIGKILL).unwrap();
    master.event("worker-exited");
    master.event("worker-ready");
    master.signal(Signal::SIGUSR2);
    master.event("reload-committed");
    // The app is no graceful one: what an old worker has in hand when it is told to go is lost.
    eventually("an answer", || get(format!("127.0.0.1:{port}"), "/").ok());
    let status = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([dir.path().join("c.sock")])
        .args(["status"])
        .finish();
    assert_eq!(status.status, 0, "{}{}", status.out, status.err);
    assert_eq!(master.stop(), 0);
}

// Edge case 48.
#[test]
fn an_older_kernel_will_do() {
    // close_range, pidfd_getfd, and waitid on nothing newer: Linux 5.4, say.
    let dir = Dir::new();
    let tool = dir.path().join("enosys");
    let built = Run::new("cc")
        .args(["-Wall", "-Werror", "-o"])
        .args([&tool])
        .args([app("enosys.c")])
        .finish();
    assert_eq!(built.status, 0, "{}", built.err);
    let port = free_port();
    let mut master = Run::new(&tool)
        .args([
            "436,438",
            SPAWNWORK,
            "-n",
            "2",
            "--probation",
            "50ms",
            "--",
            "node",
        ])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    let ready = master.event("worker-ready");
    master.event("generation-serving");
    // Nothing of ours is left open in a worker but what it is to have: 0, 1, 2, the channel, and the read
    // ends of its two pipes.
    let worker = field(&ready, "pid");
    let anonymous = std::fs::read_dir(format!("/proc/{worker}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("anon_inode:[signalfd]"))
        .count();
    assert_eq!(anonymous, 0, "the master's signalfd is not the worker's");
    master.signal(Signal::SIGUSR2);
    master.event("reload-committed");
    assert!(get(format!("127.0.0.1:{port}"), "/").is_ok());
    assert_eq!(master.stop(), 0);
}

// Edge case 30.
#[test]
fn a_unix_socket_is_never_seen_with_another_mode() {
    let dir = Dir::new();
    let path = dir.path().join("s");
    let over = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (path, over) = (path.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            let (mut seen, mut wrong) = (0u64, Vec::new());
            while !over.load(Ordering::Relaxed) {
                if let Ok(found) = std::fs::symlink_metadata(&path) {
                    seen += 1;
                    let mode = found.permissions().mode() & 0o777;
                    if mode != 0o640 || !found.file_type().is_socket() {
                        wrong.push(mode);
                    }
                }
            }
            (seen, wrong)
        })
    };
    for _ in 0..10 {
        let mut master = Run::new("sh")
            .args([
                "-c",
                "umask 000; exec \"$@\"",
                "sh",
                SPAWNWORK,
                "-n",
                "1",
                "-l",
            ])
            .args([&path])
            .args([
                "--socket-mode",
                "0640",
                "--ready",
                "alive:10ms",
                "--",
                "sleep",
                "600",
            ])
            .start();
        master.event("generation-serving");
        assert_eq!(master.stop(), 0);
    }
    over.store(true, Ordering::Relaxed);
    let (seen, wrong) = watcher.join().unwrap();
    assert!(seen > 100, "{seen}");
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A worker of slot 0 that hangs in the kernel as long as the disk does: at its start if it is the first,
/// else when it is told to go.
const HANGS: &str = r#"
echo $$ >>pids
if mkdir first-$WORKER_ID-$1 2>/dev/null && test $WORKER_ID = 0; then
    case $1 in
    start) echo start >"$DISK/file" ;;
    stop) trap 'echo stop >"$DISK/file"' TERM ;;
    esac
fi
echo >&9
while :; do sleep 1 9>&- & wait $!; done
"#;

// Edge case 20.
#[test]
fn a_worker_that_hangs_in_the_kernel_is_replaced_marked_and_not_waited_for() {
    let (dir, mut disk) = (Dir::new(), Mounted::ext4());
    let control = dir.path().join("c.sock");
    let ctl = |words: &[&str]| {
        let run = Run::new(SPAWNWORK).args(["--ctl"]).args([&control]);
        run.args(words).finish()
    };
    disk.freeze();
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "2", "--ready", "fd:9", "--ready-timeout", "2s"])
        .args(["--stop-timeout", "300ms", "--control"])
        .args([&control])
        .args(["--", "sh", "-c", HANGS, "sh", "start"])
        .env("DISK", disk.path())
        .dir(dir.path())
        .start();
    let stuck = master.event("worker-stuck");
    assert_eq!(field(&stuck, "slot"), "0", "{stuck}");
    let stuck = field(&stuck, "pid");
    let state = std::fs::read_to_string(format!("/proc/{stuck}/stat")).unwrap();
    assert!(state.contains(") D "), "{state}");
    // Its slot has another one, and all serve.
    let instead = master.event_with("worker-ready", "slot=0");
    assert_ne!(field(&instead, "pid"), stuck);
    master.event("generation-serving");
    let status = ctl(&["status"]);
    assert_eq!(status.status, 0, "{}", status.out);
    let line = status.out.lines().find(|line| line.contains(&stuck));
    assert!(
        line.is_some_and(|line| line.contains("stuck")),
        "{}",
        status.out
    );
    // Deploys go on without it.
    assert_eq!(ctl(&["reload"]).status, 0);
    // When the disk comes back, it ends, and nothing follows from that.
    disk.thaw();
    let gone = master.event_with("worker-exited", &format!("pid={stuck}"));
    assert_eq!(field(&gone, "by"), "ready-timeout", "{gone}");
    assert_eq!(ctl(&["status"]).status, 0);
    assert_eq!(master.stop(), 0);
}

// Edge case 20.
#[test]
fn the_end_does_not_wait_for_a_worker_that_hangs_in_the_kernel() {
    let (dir, mut disk) = (Dir::new(), Mounted::ext4());
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "2", "--ready", "fd:9", "--stop-timeout", "300ms"])
        .args(["--", "sh", "-c", HANGS, "sh", "stop"])
        .env("DISK", disk.path())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    disk.freeze();
    master.signal(Signal::SIGTERM);
    let left = master.event("worker-left");
    assert_eq!(field(&left, "slot"), "0", "{left}");
    assert_eq!(master.end(), 0);
    let left = field(&left, "pid");
    let stat = || std::fs::read_to_string(format!("/proc/{left}/stat")).unwrap_or_default();
    assert!(stat().contains(") D "), "{}", stat());
    disk.thaw();
    eventually("the end of what hung", || {
        (stat().is_empty() || stat().contains(") Z ")).then_some(())
    });
}
