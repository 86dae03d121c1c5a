//! When it acts: settling, gaps, while an action runs, splay, retries, over restarts and stops.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::touch::{Lines, ago, touch, touch_at};
use kit::{Dir, Run, Running, eventually, field};
use nix::sys::signal::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");

fn ready(dir: &Dir, args: &[&str]) -> Running {
    let mut running = Run::new(PROGRAM).args(args).dir(dir.path()).start();
    running.event("ready");
    running
}

fn lines(dir: &Dir, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn count(running: &Running, event: &str) -> usize {
    let part = format!("]: {event} ");
    running
        .err()
        .iter()
        .filter(|line| line.contains(&part))
        .count()
}

/// An action that notes that it began and ends when it may.
const HELD: &str = "echo $WATCHTOUCH_COUNT >> began; while [ ! -e go ]; do sleep 0.05; done";

// Edge case 11.
#[test]
fn ten_touches_in_the_settle_time_are_one() {
    let dir = Dir::new();
    let mut running = ready(&dir, &["f", "--settle", "1s", "--on-touch", "true"]);
    for number in 1..=10 {
        touch_at(dir.path().join("f"), ago(number * 100));
        // So that the touches can be told from each other.
        let next = std::time::Instant::now() + std::time::Duration::from_millis(10);
        eventually("10 ms", || (std::time::Instant::now() > next).then_some(()));
    }
    let touched = running.event("file-touched");
    assert!(
        field(&touched, "count").parse::<u32>().unwrap() >= 2,
        "{touched}"
    );
    running.event("action-ended");
    assert_eq!(running.stop(), 0);
    assert_eq!(count(&running, "file-touched"), 1);
}

// Edge case 12.
#[test]
fn a_writer_without_an_end_is_not_waited_for_for_ever() {
    let dir = Dir::new();
    let args = ["f", "--settle", "300ms", "--settle-max", "600ms", "--once"];
    let mut running = ready(&dir, &args);
    let pid = running.pid();
    eventually("its end", || {
        touch(dir.path().join("f"));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    assert_eq!(running.end(), 0);
}

// Edge case 30.
#[test]
fn while_it_runs_ten_touches_are_one_more_run() {
    let dir = Dir::new();
    let mut running = ready(
        &dir,
        &[
            "f",
            "--min-gap",
            "0",
            "--settle",
            "30ms",
            "--on-touch",
            HELD,
        ],
    );
    touch(dir.path().join("f"));
    running.event("action-started");
    for number in 0..10 {
        touch_at(dir.path().join("f"), ago(number * 10));
    }
    running.event("action-queued");
    touch(dir.path().join("go"));
    running.event("action-ended");
    running.event("action-started");
    running.event("action-ended");
    touch(dir.path().join("f"));
    running.event("action-ended");
    assert_eq!(running.stop(), 0);
    assert_eq!(lines(&dir, "began").len(), 3);
    assert_eq!(count(&running, "action-queued"), 1);
}

#[test]
fn while_it_runs_touches_may_be_ignored_or_restart_it_or_tell_it() {
    let dir = Dir::new();
    let start = |busy: &str, action: &str| {
        ready(
            &dir,
            &[
                "f",
                "--min-gap",
                "0",
                "--settle",
                "30ms",
                "--busy",
                busy,
                "--on-touch",
                action,
            ],
        )
    };
    let mut running = start("ignore", HELD);
    touch(dir.path().join("f"));
    running.event("action-started");
    touch_at(dir.path().join("f"), ago(9));
    running.event("touch-ignored");
    touch(dir.path().join("go"));
    running.event("action-ended");
    assert_eq!(running.stop(), 0);
    assert_eq!(lines(&dir, "began").len(), 1);

    let script = "trap 'echo term >> told; exit 1' TERM; trap 'echo usr1 >> told' USR1; \
                  echo up >> up; while :; do sleep 0.05; done";
    let mut running = start("restart", script);
    touch_at(dir.path().join("f"), ago(8));
    eventually("up", || (lines(&dir, "up").len() == 1).then_some(()));
    touch_at(dir.path().join("f"), ago(7));
    running.event("action-stopped");
    running.event("action-started");
    eventually("up", || (lines(&dir, "up").len() == 2).then_some(()));
    assert_eq!(lines(&dir, "told"), ["term"]);
    assert_eq!(running.stop(), 0);

    let _ = std::fs::remove_file(dir.path().join("told"));
    let mut running = start("signal=USR1", script);
    touch_at(dir.path().join("f"), ago(6));
    eventually("up", || (lines(&dir, "up").len() == 3).then_some(()));
    touch_at(dir.path().join("f"), ago(5));
    let told = running.event("action-signalled");
    assert_eq!(field(&told, "signal"), "USR1");
    eventually("told", || (lines(&dir, "told") == ["usr1"]).then_some(()));
    assert_eq!(running.stop(), 0);
}

// Edge case 32.
#[test]
fn an_action_that_fails_is_tried_again() {
    let dir = Dir::new();
    let action = "echo x >> tries; [ $(wc -l < tries) -ge 3 ]";
    let mut running = ready(
        &dir,
        &["f", "--once", "--retries", "3", "--on-touch", action],
    );
    touch(dir.path().join("f"));
    assert_eq!(running.end(), 0);
    assert_eq!(count(&running, "action-retried"), 2);
    let mut running = ready(
        &dir,
        &["f", "--once", "--retries", "1", "--on-touch", "exit 7"],
    );
    touch_at(dir.path().join("f"), ago(9));
    assert_eq!(running.end(), 7);
    assert_eq!(count(&running, "action-failed"), 2);
}

// Edge case 31.
#[test]
fn an_action_that_touches_its_own_file_comes_to_an_end() {
    let dir = Dir::new();
    let args = [
        "f",
        "--min-gap",
        "200ms",
        "--settle",
        "10ms",
        "--on-touch",
        "echo x > f; sleep 0.1",
    ];
    let mut running = ready(&dir, &args);
    touch(dir.path().join("f"));
    let held = running.event("touch-loop");
    assert!(field(&held, "error").contains("itself"));
    assert_eq!(count(&running, "action-started"), 6);
    // Somebody else's touch is acted upon at once.
    touch(dir.path().join("f"));
    running.event("action-started");
    assert_eq!(running.stop(), 0);
}

// Edge case 33.
#[test]
fn what_happened_while_it_was_stopped_fires_once() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    let run = Run::new(PROGRAM)
        .arg(&file)
        .args(["--min-gap", "0", "--settle", "30ms"]);
    let mut watched = Lines::start(run, &dir.path().join("end"));
    watched.running.signal(Signal::SIGSTOP);
    for number in 0..5 {
        touch_at(&file, ago(number * 10));
    }
    dir.write("f", "y");
    watched.running.signal(Signal::SIGCONT);
    watched.exactly("/f", 1);
}

// Edge cases 34 and 35.
#[test]
fn a_splay_is_not_put_off_and_what_waits_at_the_end_is_kept() {
    let dir = Dir::new();
    let args = [
        "f",
        "--settle",
        "0",
        "--min-gap",
        "0",
        "--splay",
        "1h",
        "--since",
        "stamp",
    ];
    let mut running = ready(&dir, &args);
    touch(dir.path().join("f"));
    eventually("a stamp", || {
        dir.path().join("stamp").exists().then_some(())
    });
    assert_eq!(running.stop(), 0);
    assert_eq!(running.out(), "");
    let mut running = ready(&dir, &["f", "--since", "stamp", "--once"]);
    assert_eq!(running.end(), 0);
    assert!(running.out_to_its_end().contains(" created "));

    let run = |by: &str| {
        let dir = Dir::new();
        let args = [
            "f",
            "--settle",
            "0",
            "--splay",
            "300ms",
            "--splay-by",
            by,
            "--once",
        ];
        let mut running = ready(
            &dir,
            &[
                &args[..],
                &["--on-touch", "echo $WATCHTOUCH_DELAY_MS > delay"],
            ]
            .concat(),
        );
        touch(dir.path().join("f"));
        assert_eq!(running.end(), 0);
        lines(&dir, "delay")[0].parse::<u64>().unwrap()
    };
    for by in ["random", "host"] {
        let delay = run(by);
        assert!(delay <= 300 + 200, "{by}: {delay}");
    }
}

#[test]
fn a_stamp_remembers_over_restarts() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    let args = [
        "f",
        "--since",
        "stamp",
        "--min-gap",
        "0",
        "--settle",
        "30ms",
    ];
    let mut running = ready(&dir, &args);
    touch_at(&file, ago(50));
    eventually("the touch", || {
        running.out().contains("touched").then_some(())
    });
    assert_eq!(running.stop(), 0);
    // Untouched meanwhile: nothing.
    let mut running = ready(
        &dir,
        &[&args[..], &["--once", "--timeout", "300ms"]].concat(),
    );
    assert_eq!(running.end(), 124);
    // Touched, replaced, removed and made again meanwhile: once.
    touch_at(&file, ago(40));
    dir.write("f", "z");
    let mut running = ready(&dir, &args);
    eventually("the touch", || {
        running.out().contains("replaced").then_some(())
    });
    assert_eq!(running.stop(), 0);
    assert_eq!(running.out().lines().count(), 1);
    // What is no stamp is not written over.
    dir.write("precious", "mine\n");
    let run = Run::new(PROGRAM)
        .args(["f", "--since", "precious"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 125);
    assert!(run.err.contains("no stamp of ours"), "{}", run.err);
    assert_eq!(lines(&dir, "precious"), ["mine"]);
    // And a device keeps its place; here it is a FIFO.
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let run = Run::new(PROGRAM)
        .args(["f", "--since", "fifo", "--once", "--timeout", "300ms"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 125);
    assert!(run.err.contains("no regular file"), "{}", run.err);
    let kind = fifo.symlink_metadata().unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&kind));
}

// Edge case 1.
#[test]
fn the_watch_stands_before_ready_is_said() {
    for _ in 0..50 {
        let dir = Dir::new();
        let file = dir.write("f", "x");
        let mut running = ready(&dir, &["f", "--safety", "0", "--settle", "0", "--once"]);
        touch(&file);
        assert_eq!(running.end(), 0);
    }
}

// Edge case 44.
#[test]
fn several_files_are_one_run() {
    let dir = Dir::new();
    let action = "echo \"$WATCHTOUCH_PATHS\" > paths; echo \"$WATCHTOUCH_PATH\" > path";
    let mut running = ready(
        &dir,
        &[
            "a",
            "b",
            "c",
            "--once",
            "--settle",
            "300ms",
            "--on-touch",
            action,
        ],
    );
    touch(dir.path().join("a"));
    touch(dir.path().join("c"));
    assert_eq!(running.end(), 0);
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    assert_eq!(lines(&dir, "paths"), [at("a"), at("c")]);
    assert_eq!(lines(&dir, "path"), [at("a")]);
}

/// Ends what goes on in another thread, also when the test fails.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The inotify watches that a process has.
fn watches(pid: i32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    files
        .flatten()
        .map(|file| std::fs::read_to_string(file.path()).unwrap_or_default())
        .map(|text| text.matches("inotify wd:").count())
        .sum()
}

// Edge case 29.
#[test]
fn a_directory_where_too_much_happens_is_looked_at_instead() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let (dir, other) = (Dir::new(), Dir::new());
    let file = dir.write("f", "x");
    let run = Run::new(PROGRAM).arg(&file).args([
        "--min-gap",
        "0",
        "--settle",
        "10ms",
        "--safety",
        "0",
        "--interval",
        "100ms",
    ]);
    let mut watched = Lines::start(run, &other.path().join("end"));
    let pid = watched.running.pid();
    let before = watches(pid);
    let quiet = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&quiet);
        scope.spawn(|| {
            while !quiet.load(Relaxed) {
                drop(std::fs::File::create(dir.path().join("noise")).unwrap());
            }
        });
        let polling = watched.running.event("watch-polling");
        assert!(
            field(&polling, "error").contains("more than 1000 events a second"),
            "{polling}"
        );
        touch(&file);
        watched.exactly("/f", 1);
        std::fs::write(dir.path().join("new"), "y").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        watched.exactly("/f", 2);
        drop(stop);
    });
    // What nobody listens to any more goes when there is a pause.
    eventually("one watch less", || {
        (watches(pid) == before - 1).then_some(())
    });
    // HUP asks for what is asked for after a minute.
    watched.running.signal(Signal::SIGHUP);
    let from = std::time::Instant::now();
    watched.running.event("watch-restored");
    assert!(from.elapsed().as_secs() < 20, "after its time, not by HUP");
    assert_eq!(watches(pid), before);
    touch(&file);
    watched.exactly("/f", 3);
    let said = watched.running.err();
    let polling = said.iter().filter(|line| line.contains("watch-polling"));
    assert_eq!(polling.count(), 1, "{said:?}");
    assert_eq!(watched.running.stop(), 0);
}

#[test]
fn with_no_poll_a_noisy_directory_is_listened_to_all_the_same() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    let run = Run::new(PROGRAM).arg(&file).args([
        "--no-poll",
        "--min-gap",
        "0",
        "--settle",
        "10ms",
        "--safety",
        "0",
    ]);
    let mut watched = Lines::start(run, &dir.path().join("end"));
    for number in 0..5000 {
        std::fs::write(dir.path().join(format!("noise{}", number % 7)), "x").unwrap();
    }
    touch(&file);
    watched.exactly("/f", 1);
    assert_eq!(count(&watched.running, "watch-polling"), 0);
}

// Edge case 27.
#[test]
fn when_the_queue_of_inotify_runs_over_the_touch_is_not_lost() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    // So that nothing but the notice of the overflow can lead to a look.
    let run = Run::new(PROGRAM).arg(&file).args([
        "--no-poll",
        "--min-gap",
        "0",
        "--settle",
        "10ms",
        "--safety",
        "0",
    ]);
    let mut watched = Lines::start(run, &dir.path().join("end"));
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    watched.running.signal(Signal::SIGSTOP);
    // Each makes at least two events, of two names in turn, so that none is merged with the one before.
    for number in 0..limit {
        drop(std::fs::File::create(dir.path().join(format!("noise{}", number % 2))).unwrap());
    }
    touch(&file);
    watched.running.signal(Signal::SIGCONT);
    watched.exactly("/f", 1);
}

#[test]
fn in_a_flood_of_events_a_new_directory_is_listened_to_at_once() {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let (dir, other) = (Dir::new(), Dir::new());
    let at = |name: &str| dir.path().join(name);
    for name in ["one", "two"] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("f"), name).unwrap();
        touch_at(at(name).join("f"), ago(500));
    }
    symlink("one", at("current")).unwrap();
    let run = Run::new(PROGRAM).arg(at("current/f")).args([
        "--no-poll",
        "--min-gap",
        "0",
        "--settle",
        "0",
        "--safety",
        "0",
    ]);
    let mut watched = Lines::start(run, &other.path().join("end"));
    let quiet = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&quiet);
        for name in ["noise1", "noise2"] {
            let name = dir.path().join(name);
            let quiet = &quiet;
            scope.spawn(move || {
                while !quiet.load(Relaxed) {
                    drop(std::fs::File::create(&name).unwrap());
                }
            });
        }
        symlink("two", at("link")).unwrap();
        std::fs::rename(at("link"), at("current")).unwrap();
        watched.exactly("current/f", 1);
        for count in 2..=4 {
            touch_at(at("two/f"), ago(count));
            watched.exactly("current/f", count as usize);
        }
        assert_eq!(watched.running.stop(), 0);
        drop(stop);
    });
}
