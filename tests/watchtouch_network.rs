//! Where inotify says nothing: FUSE file systems whose client remembers, one that hangs, and inotify exhausted.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::fuse::Fuse;
use kit::touch::{Lines, ago, touch, touch_at};
use kit::{Dir, Run, eventually, field};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");

fn lines(file: &Path, dir: &Dir, interval: &str) -> Lines {
    let run = Run::new(PROGRAM).arg(file).args([
        "--interval",
        interval,
        "--min-gap",
        "0",
        "--settle",
        "30ms",
    ]);
    Lines::start(run, &dir.path().join("end"))
}

/// Whether the client asks its server for the target of a link each time. sshfs remembers that by itself for
/// 20 seconds, whatever it is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    Asked,
    Remembered,
}

/// Everything that a server may do behind the client's back, each seen once. The caches are filled before.
fn behind_its_back(fuse: &Fuse, links: Links) {
    let dir = Dir::new();
    let at = |name: &str| fuse.server().join(name);
    let client = |name: &str| fuse.path().join(name);
    for release in ["one", "two"] {
        fs::create_dir(at(release)).unwrap();
        fs::write(at(release).join("f"), release).unwrap();
        touch_at(at(release).join("f"), ago(500));
    }
    symlink("one", at("current")).unwrap();
    // Edge cases 19 and 21.
    let mut watched = lines(&client("current/f"), &dir, "100ms");
    let from = Instant::now();
    touch(at("one/f"));
    watched.exactly("current/f", 1);
    fs::write(at("one/new"), "x").unwrap();
    fs::rename(at("one/new"), at("one/f")).unwrap();
    watched.exactly("current/f", 2);
    symlink("two", at("link")).unwrap();
    fs::rename(at("link"), at("current")).unwrap();
    watched.exactly("current/f", 3);
    fs::remove_file(at("two/f")).unwrap();
    watched.exactly("current/f", 3);
    fs::write(at("two/f"), "x").unwrap();
    watched.exactly("current/f", 4);
    // Whoever waits for the client to forget needs 20 seconds for each.
    let patience = Duration::from_secs(if links == Links::Asked { 15 } else { 35 });
    assert!(from.elapsed() < patience, "{:?}", from.elapsed());

    // Edge case 20: through the mount itself, by one who is on this host.
    // (Written: bindfs drops the time of a utimensat(2) that leaves the other time as it is.)
    fs::write(client("two/f"), "more").unwrap();
    watched.exactly("current/f", 5);
    assert_eq!(watched.running.stop(), 0);

    let mut later = lines(&client("later/on/f"), &dir, "100ms");
    fs::create_dir_all(at("later/on")).unwrap();
    fs::write(at("later/on/f"), "x").unwrap();
    later.exactly("later/on/f", 1);
    // Nothing happens, and is seen as nothing, for several looks.
    later.exactly("later/on/f", 1);
    assert_eq!(later.running.stop(), 0);
}

#[test]
fn bindfs_that_remembers_for_a_minute() {
    behind_its_back(&Fuse::bindfs(), Links::Asked);
}

#[test]
fn sshfs_that_remembers_for_twenty_seconds() {
    behind_its_back(&Fuse::sshfs(), Links::Remembered);
}

#[test]
fn a_touch_is_seen_within_one_interval() {
    let fuse = Fuse::bindfs();
    fs::write(fuse.server().join("f"), "x").unwrap();
    let run = Run::new(PROGRAM).arg(fuse.path().join("f")).args([
        "--settle",
        "0",
        "--min-gap",
        "0",
        "--format",
        "json",
    ]);
    let dir = Dir::new();
    let lines = Lines::start(run, &dir.path().join("end"));
    let mut worst = Duration::ZERO;
    for count in 1..=3 {
        touch(fuse.server().join("f"));
        let from = Instant::now();
        eventually("the touch", || {
            (lines.running.out().matches("\"via\":\"poll\"").count() >= count).then_some(())
        });
        worst = worst.max(from.elapsed());
    }
    // The interval of 1 s, the 0.2 s that are promised, and as much again for a busy machine.
    assert!(worst < Duration::from_millis(1400), "{worst:?}");
}

// Edge case 22.
#[test]
fn a_server_that_hangs_holds_nobody_up() {
    let mut fuse = Fuse::bindfs();
    let dir = Dir::new();
    fs::write(fuse.server().join("f"), "x").unwrap();
    let mut watched = lines(&fuse.path().join("f"), &dir, "50ms");
    fuse.hang();
    let stale = watched.running.event("watch-stale");
    assert!(field(&stale, "file").ends_with("/client/f"));
    // Other files are watched meanwhile, and nothing is invented of this one.
    watched.exactly("client/f", 0);
    touch(fuse.server().join("f"));
    fuse.resume();
    watched.running.event("watch-recovered");
    watched.exactly("client/f", 1);
    let said = watched.running.err();
    assert_eq!(
        said.iter()
            .filter(|line| line.contains("watch-stale"))
            .count(),
        1,
        "{said:?}"
    );

    fuse.hang();
    watched.running.event("watch-stale");
    let from = Instant::now();
    assert_eq!(watched.running.stop(), 0);
    let took = from.elapsed();
    // 0.2 s, and more on a busy machine: the server never answers.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn those_who_waited_for_a_server_do_not_stay_in_step() {
    let mut fuse = Fuse::bindfs();
    let dir = Dir::new();
    fs::write(fuse.server().join("f"), "x").unwrap();
    let mut all: Vec<Lines> = (0..8)
        .map(|number| {
            // Without inotify: on one machine, what happens in /tmp would wake them together.
            let run = Run::new(PROGRAM).arg(fuse.path().join("f")).args([
                "--poll",
                "--interval",
                "2s",
                "--settle",
                "0",
            ]);
            Lines::start(run, &dir.path().join(number.to_string()))
        })
        .collect();
    fuse.hang();
    for lines in &mut all {
        lines.running.event("watch-stale");
    }
    fuse.resume();
    for lines in &mut all {
        lines.running.event("watch-recovered");
    }
    let from = Instant::now();
    touch(fuse.server().join("f"));
    let mut seen: Vec<Option<Duration>> = vec![None; all.len()];
    eventually("the touch, by all", || {
        for (at, lines) in seen.iter_mut().zip(&all) {
            if at.is_none() && lines.running.out().contains(" touched ") {
                *at = Some(from.elapsed());
            }
        }
        seen.iter().all(Option::is_some).then_some(())
    });
    // That eight of them look by chance within a tenth of their interval happens once in a million times.
    let spread = *seen.iter().max().unwrap();
    let spread = spread.unwrap() - seen.iter().min().unwrap().unwrap();
    assert!(spread > Duration::from_millis(200), "{seen:?}");
}

#[test]
fn a_server_that_hangs_at_the_start_keeps_no_command_from_running() {
    let mut fuse = Fuse::bindfs();
    let dir = Dir::new();
    fuse.hang();
    let mut running = Run::new(PROGRAM)
        .arg(fuse.path().join("f"))
        .args([
            "--interval",
            "100ms",
            "--on-touch",
            "echo x > touched",
            "--",
            "sh",
            "-c",
        ])
        .arg("echo up; sleep 1000")
        .dir(dir.path())
        .start();
    eventually("the command", || running.out().contains("up").then_some(()));
    assert!(!running.err().iter().any(|line| line.contains(": ready ")));
    fuse.resume();
    running.event("ready");
    touch(fuse.server().join("f"));
    eventually("the action", || {
        dir.path().join("touched").exists().then_some(())
    });
    fuse.hang();
    running.event("watch-stale");
    assert_eq!(running.stop(), 143);
    // And alone: a time limit is kept.
    let run = Run::new(PROGRAM)
        .arg(fuse.path().join("f"))
        .args(["--once", "--timeout", "300ms"])
        .finish();
    assert_eq!(run.status, 124, "{}", run.err);
}

// Edge case 23.
#[test]
fn an_error_is_no_removal() {
    let fuse = Fuse::bindfs();
    let dir = Dir::new();
    fs::write(fuse.server().join("f"), "x").unwrap();
    let run = Run::new(PROGRAM).arg(fuse.path().join("f")).args([
        "--interval",
        "50ms",
        "--on",
        "remove",
        "--settle",
        "30ms",
        "--min-gap",
        "0",
    ]);
    let mut watched = Lines::start(run, &dir.path().join("end"));
    // Its daemon is killed: ENOTCONN from then on, ECONNABORTED for a look that it was answering.
    drop_daemon(&fuse);
    let failed = watched.running.event("look-failed");
    assert!(
        failed.contains("not connected") || failed.contains("connection abort"),
        "{failed}"
    );
    watched.exactly("client/f", 0);
    let said = watched.running.err();
    assert_eq!(
        said.iter()
            .filter(|line| line.contains("look-failed"))
            .count(),
        1,
        "{said:?}"
    );
    assert_eq!(watched.running.stop(), 0);
}

fn drop_daemon(fuse: &Fuse) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(fuse.daemon()), Signal::SIGKILL).unwrap();
}

/// In a user namespace of its own, whose limits of inotify are set without touching those of the machine.
fn limited(limit: &str, dir: &Dir, args: &[&str]) -> Run {
    let script = format!("echo 0 > /proc/sys/user/{limit} || exit 99; exec \"$0\" \"$@\"");
    Run::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script, PROGRAM])
        .args(args)
        .dir(dir.path())
}

// Edge case 28.
#[test]
fn without_inotify_it_looks_and_says_so_once() {
    for (limit, part) in [
        ("max_inotify_instances", "max_user_instances"),
        ("max_inotify_watches", "max_user_watches"),
    ] {
        let dir = Dir::new();
        let args = ["f", "--interval", "50ms", "--min-gap", "0"];
        let mut watched = Lines::start(limited(limit, &dir, &args), &dir.path().join("end"));
        for count in 1..=3 {
            touch(dir.path().join("f"));
            watched.exactly("/f", count);
        }
        let said = watched.running.err();
        let polling: Vec<_> = said
            .iter()
            .filter(|line| line.contains("watch-polling"))
            .collect();
        // Once for each of the two files.
        assert!(polling.len() == 2 && polling[0].contains(part), "{said:?}");
        assert_eq!(watched.running.stop(), 0);

        let refused = limited(limit, &dir, &["f", "--no-poll"]).finish();
        assert_eq!(refused.status, 125, "{}", refused.err);
        assert!(refused.err.contains("--no-poll"), "{}", refused.err);
    }
}

#[test]
fn inotify_is_taken_when_it_can_be_had_again() {
    let dir = Dir::new();
    // HUP tries at once what is tried each minute.
    let script = "echo 0 > /proc/sys/user/max_inotify_instances; \"$0\" f --interval 60s & pid=$!; \
                  while [ ! -e more ]; do sleep 0.05; done; echo 100 > /proc/sys/user/max_inotify_instances; \
                  kill -HUP $pid; trap 'kill $pid' TERM; wait; wait";
    let mut running = Run::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script, PROGRAM])
        .dir(dir.path())
        .start();
    running.event("watch-polling");
    running.event("ready");
    touch(dir.path().join("more"));
    running.event("watch-restored");
    touch(dir.path().join("f"));
    eventually("the touch", || {
        running.out().contains(" created ").then_some(())
    });
    running.stop();
}

// Besides the files themselves, what else may lie on a file server that is away.
#[test]
fn a_pid_file_on_a_server_that_hangs_holds_nobody_up() {
    let mut fuse = Fuse::bindfs();
    let (dir, local) = (Dir::new(), Dir::new());
    let app = Run::new("sh")
        .args([
            "-c",
            "trap 'echo hit' USR2; echo up; while :; do sleep 0.05; done",
        ])
        .start();
    eventually("the app", || app.out().contains("up").then_some(()));
    fs::write(fuse.server().join("pid"), app.pid().to_string()).unwrap();
    let run = |deed: &[&str]| {
        let mut running = Run::new(PROGRAM)
            .arg(local.path().join("f"))
            .args([
                "--min-gap",
                "0",
                "--settle",
                "0",
                "--action-timeout",
                "300ms",
            ])
            .arg("--pid-file")
            .arg(fuse.path().join("pid"))
            .args(deed)
            .dir(dir.path())
            .start();
        running.event("ready");
        running
    };
    let mut sends = run(&["--signal", "USR2"]);
    let mut runs = run(&["--on-touch", "echo $PID > pid"]);
    fuse.hang();
    // More than there may be threads that hang: what cannot be asked is said, and nobody waits for it.
    for count in 1..=6 {
        touch_at(local.path().join("f"), ago(count));
        let failed = sends.event("signal-failed");
        assert!(
            field(&failed, "error").contains("cannot be read"),
            "{failed}"
        );
        let next = |event: &str| {
            let said = runs.err();
            said.iter().filter(|line| line.contains(event)).count() as u64
        };
        eventually("the action's end", || {
            (next(": action-failed ") + next(": action-ended ") >= count).then_some(())
        });
    }
    fuse.resume();
    // The threads come back one by one.
    let mut older = 100;
    eventually("a signal", || {
        older += 1;
        touch_at(local.path().join("f"), ago(older));
        app.out().contains("hit").then_some(())
    });
    holds(&dir, "pid", &format!("{}\n", app.pid()));
    fuse.hang();
    touch(local.path().join("f"));
    runs.event("file-touched");
    let from = Instant::now();
    assert_eq!(runs.stop(), 0);
    assert_eq!(sends.stop(), 0);
    let took = from.elapsed();
    // 0.2 s each, and more on a busy machine: the server never answers.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

fn holds(dir: &Dir, name: &str, text: &str) {
    eventually(&format!("{text:?} in {name}"), || {
        let found = fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        (found == text).then_some(())
    });
}

// Edge case 37: it cannot be opened to be asked for at its server.
#[test]
fn a_file_that_may_not_be_read_is_believed_as_it_is() {
    kit::mount::need_root();
    use std::os::unix::fs::PermissionsExt;
    let (fuse, dir) = (Fuse::bindfs(), Dir::new());
    fs::write(fuse.server().join("f"), "x").unwrap();
    fs::set_permissions(fuse.server().join("f"), PermissionsExt::from_mode(0o000)).unwrap();
    for path in [fuse.path().parent().unwrap(), fuse.server()] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let run = Run::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", PROGRAM])
        .arg(fuse.path().join("f"))
        .args(["--interval", "100ms", "--min-gap", "0", "--settle", "0"]);
    let mut watched = Lines::start(run, &dir.path().join("end"));
    for count in 1..=2 {
        // Its owner writes to it.
        fs::write(fuse.server().join("f"), "y".repeat(count)).unwrap();
        watched.exactly("client/f", count);
    }
    assert!(
        !watched
            .running
            .err()
            .iter()
            .any(|line| line.contains("look-failed"))
    );
    assert_eq!(watched.running.stop(), 0);
}
