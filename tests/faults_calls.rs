//! Calls to the kernel that fail, one after the other, in the four tools whose work is not spawnwork's (its own are in
//! spawnwork_faults): the fault is said where somebody has to know, nobody spins, and when it is over the work is done
//! again. All of it a second time costs no memory and no descriptor.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::faults::{Fault, Faults};
use kit::hostile::{Hostile, says};
use kit::{Dir, Run, Running, eventually, sibling};
use nix::errno::Errno;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// A call, what it fails with, in how many percent of all cases, and what is said of it (nothing: it may be done
/// without).
type Row = (&'static str, Errno, u32, &'static str);

/// One of ours, whose calls fail.
struct Subject {
    faults: Faults,
    running: Running,
    rows: &'static [Row],
}

impl Subject {
    fn new(
        name: &str,
        rows: &'static [Row],
        more: &[&str],
        how: impl FnOnce(Run) -> Run,
    ) -> Subject {
        let mut calls: Vec<&str> = rows.iter().map(|row| row.0).collect();
        calls.extend(more);
        let faults = Faults::of(&calls);
        let running = how(faults.run(sibling(PROGRAM, name))).start();
        Subject {
            faults,
            running,
            rows,
        }
    }

    fn said(&self) -> String {
        [self.running.out(), self.running.err().join("\n")].concat()
    }

    /// Each fault, twice. `work` begins what the fault is to fail, `well` waits until that is done again.
    fn befallen(&mut self, mut work: impl FnMut(&mut Running), mut well: impl FnMut(&mut Running)) {
        let pid = self.running.pid();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let mut before = None;
        for turn in 0..2 {
            for (call, error, percent, words) in self.rows {
                let context = format!("{}: {call}: {error:?}, turn {turn}", name.trim());
                let from = (
                    self.running.out().len(),
                    self.running.err().join("\n").len(),
                );
                let who = match *call {
                    // Between fork(2) and exec(2) it has another pid, and our program.
                    "execve" => name.trim().to_owned(),
                    _ => format!("pid:{pid}"),
                };
                self.faults.fail(&[Fault {
                    call,
                    error: *error,
                    who,
                    percent: *percent,
                }]);
                work(&mut self.running);
                eventually(&format!("it happens: {context}"), || {
                    (self.faults.hits() > 0).then_some(())
                });
                eventually(&format!("'{words}': {context}\n{}", self.said()), || {
                    let out = self.running.out()[from.0..].contains(words);
                    let err = self.running.err().join("\n")[from.1..].contains(words);
                    (out || err).then_some(())
                });
                let (took, hits, since) = (ticks(pid), self.faults.hits(), Instant::now());
                std::thread::sleep(Duration::from_millis(300));
                let seconds = since.elapsed().as_secs_f64();
                let tries = (self.faults.hits() - hits) as f64 / seconds;
                let share = (ticks(pid) - took) as f64 / 100.0 / seconds;
                assert!(share < 0.5, "{context}: {share} of a processor");
                assert!(tries < 1000.0, "{context}: {tries} tries a second");
                self.faults.heal();
                well(&mut self.running);
            }
            let now = (anonymous(pid), descriptors(pid));
            match before {
                None => before = Some(now),
                Some((memory, fds)) => {
                    assert!(
                        now.0 <= memory + 192,
                        "{name}: {memory} KiB, then {}",
                        now.0
                    );
                    eventually(&format!("{name}: as many descriptors as {fds}"), || {
                        (descriptors(pid) <= fds).then_some(())
                    });
                }
            }
        }
        assert!(!self.said().contains("panicked"), "{}", self.said());
    }
}

fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let words = rest.split_whitespace().skip(11).take(2);
    words.map(|word| word.parse::<u64>().unwrap()).sum()
}

/// KiB of its own.
fn anonymous(pid: i32) -> u64 {
    let all = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = all.lines().find(|line| line.starts_with("Anonymous:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

fn assert_no_alarm(subject: &Subject, dir: &Dir) {
    let said = subject.said();
    assert!(
        !said.contains(" DOWN ") && !dir.path().join("acted").exists(),
        "{said}"
    );
}

#[test]
fn heartbeat_says_that_it_cannot_check_and_raises_no_alarm() {
    const ROWS: &[Row] = &[
        ("socket", Errno::EMFILE, 100, ": check-impossible "),
        ("socket", Errno::ENFILE, 100, ": check-impossible "),
        ("clone", Errno::EAGAIN, 100, ": check-impossible "),
        ("pipe2", Errno::EMFILE, 100, ": check-impossible "),
        ("pidfd_open", Errno::EMFILE, 100, ""),
        ("openat", Errno::EMFILE, 100, ": metrics-failed "),
        ("openat", Errno::ENFILE, 100, ": metrics-failed "),
        ("openat", Errno::ENOMEM, 100, ": metrics-failed "),
        ("rename", Errno::EIO, 100, ": metrics-failed "),
        ("epoll_wait", Errno::EINTR, 70, ""),
        ("poll", Errno::EINTR, 70, ""),
    ];
    let dir = Dir::new();
    let server = Hostile::new(says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    let watched = Run::new("sleep").arg("1000").start();
    let pid_file = dir.write("pid", &watched.pid().to_string());
    let mut subject = Subject::new("heartbeat", ROWS, &[], |run| {
        run.args(["--port", &server.port.to_string(), "--exec", "true"])
            .args([
                "--interval",
                "50ms",
                "--start-interval",
                "50ms",
                "--fails",
                "1",
            ])
            .arg("--pid-file")
            .arg(&pid_file)
            .args([
                "--metrics",
                "m.prom",
                "--on-fail",
                "touch acted",
                "--verbose",
            ])
            .dir(dir.path())
    });
    subject.running.out_line("up", |line| line.contains(" UP "));
    subject.befallen(
        |_| {},
        |running| {
            let from = running.out().len();
            for check in ["ok   http", "ok   exec"] {
                eventually(check, || {
                    running.out()[from..].contains(check).then_some(())
                });
            }
            let old = std::fs::read_to_string(dir.path().join("m.prom")).unwrap();
            eventually("metrics", || {
                let new = std::fs::read_to_string(dir.path().join("m.prom")).ok()?;
                (new != old).then_some(())
            });
        },
    );
    assert_eq!(subject.running.stop(), 0);
    assert_no_alarm(&subject, &dir);
}

#[test]
fn heartbeat_without_descriptors_declares_nobody_dead_who_is_named_by_a_number() {
    const ROWS: &[Row] = &[
        ("openat", Errno::EMFILE, 100, ": metrics-failed "),
        ("openat", Errno::ENOMEM, 100, ": metrics-failed "),
        ("pidfd_open", Errno::EMFILE, 100, ""),
    ];
    let dir = Dir::new();
    let mut watched = Run::new("sleep").arg("1000").start();
    let number = watched.pid().to_string();
    // With a command, for each check of it needs a pidfd.
    let mut subject = Subject::new("heartbeat", ROWS, &[], |run| {
        run.args(["--pid", &number, "--exec", "true", "--interval", "50ms"])
            .args(["--start-interval", "50ms", "--fails", "1", "--verbose"])
            .args(["--metrics", "m.prom", "--on-fail", "touch acted"])
            .dir(dir.path())
    });
    subject.running.out_line("up", |line| line.contains(" UP "));
    subject.befallen(
        |_| {},
        |running| {
            let from = running.out().len();
            eventually("a check of the process", || {
                running.out()[from..].contains("ok   process").then_some(())
            });
        },
    );
    assert_no_alarm(&subject, &dir);
    // And one who has died is still found out, with the same words as ever.
    watched.signal(nix::sys::signal::Signal::SIGKILL);
    watched.end();
    subject.running.out_line("down", |line| {
        line.contains(" DOWN ") && line.contains("has ended")
    });
    eventually("the action", || {
        dir.path().join("acted").exists().then_some(())
    });
    subject.running.stop();
}

#[test]
fn watchtouch_acts_in_the_end() {
    const ROWS: &[Row] = &[
        ("clone", Errno::EAGAIN, 100, ": action-failed "),
        ("clone", Errno::ENOMEM, 100, ": action-failed "),
        ("execve", Errno::ENOENT, 100, ": action-failed "),
        ("execve", Errno::ENOMEM, 100, ": action-failed "),
        ("pipe2", Errno::EMFILE, 100, ": action-failed "),
        ("openat", Errno::EMFILE, 100, ""),
        ("openat", Errno::ENFILE, 100, ""),
        ("rename", Errno::EIO, 100, ": stamp-failed "),
        ("statx", Errno::EIO, 100, ": look-failed "),
        ("statx", Errno::ENOMEM, 100, ": look-failed "),
        ("epoll_wait", Errno::EINTR, 70, ""),
    ];
    let dir = Dir::new();
    let file = dir.write("f", "");
    let mut subject = Subject::new("watchtouch", ROWS, &[], |run| {
        run.arg(&file)
            .args([
                "--on-touch",
                "echo >>done",
                "--settle",
                "10ms",
                "--min-gap",
                "10ms",
            ])
            .args(["--retries", "100", "--since", "stamp", "--safety", "100ms"])
            .dir(dir.path())
    });
    subject.running.event("ready");
    let done = || std::fs::metadata(dir.path().join("done")).map_or(0, |found| found.len());
    subject.befallen(
        |_| kit::touch::touch(&file),
        |_| {
            let before = done();
            // What was touched is done late, or was done; what is touched now is done at once.
            kit::touch::touch(&file);
            eventually("a touch is acted upon", || (done() > before).then_some(()));
        },
    );
    assert_eq!(subject.running.stop(), 0);
}

#[test]
fn watchtouch_without_inotify_looks() {
    let dir = Dir::new();
    for (call, error) in [
        ("inotify_init1", Errno::EMFILE),
        ("inotify_init1", Errno::ENFILE),
        ("inotify_add_watch", Errno::ENOSPC),
        ("inotify_add_watch", Errno::ENOMEM),
    ] {
        let faults = Faults::of(&[call]);
        faults.fail(&[Fault::each(call, error, "watchtouch")]);
        let file = dir.write("f", "");
        let mut running = faults
            .run(sibling(PROGRAM, "watchtouch"))
            .arg(&file)
            .args(["--interval", "20ms"])
            .start();
        running.event("watch-polling");
        running.event("ready");
        kit::touch::touch(&file);
        running.out_line("a touch", |line| line.contains(" touched "));
        let (took, hits) = (ticks(running.pid()), faults.hits());
        std::thread::sleep(Duration::from_millis(300));
        assert!(ticks(running.pid()) - took < 15 && faults.hits() < hits + 10);
        assert_eq!(running.stop(), 0, "{call}: {error:?}");
    }
}

#[test]
fn logreopen_loses_no_line() {
    const ROWS: &[Row] = &[
        ("openat", Errno::EMFILE, 100, ": reopen-failed "),
        ("openat", Errno::ENFILE, 100, ": reopen-failed "),
        ("openat", Errno::ENOMEM, 100, ": reopen-failed "),
        ("accept4", Errno::EMFILE, 100, ""),
        ("accept4", Errno::ENOMEM, 100, ""),
        // Only of what can wait: an eventfd(2), for one, is written at once or not at all.
        ("epoll_wait", Errno::EINTR, 70, ""),
        ("ppoll", Errno::EINTR, 70, ""),
        ("fdatasync", Errno::EIO, 100, ": sync-failed "),
    ];
    let dir = Dir::new();
    let script = "n=0; while [ ! -e end ]; do n=$((n+1)); echo $n; sleep 0.01; done";
    let mut subject = Subject::new("logreopen", ROWS, &[], |run| {
        run.args(["-l", "out", "--control", "s", "--fsync", "20ms", "--"])
            .args(["sh", "-c", script])
            .dir(dir.path())
    });
    subject.running.event("command-started");
    let ask = |limit: &str, request: &str| {
        Run::new(sibling(PROGRAM, "logreopen"))
            .args(["--ctl", "s", "--timeout", limit, request])
            .dir(dir.path())
            .finish()
            .status
    };
    let mut files = 0;
    subject.befallen(
        |running| {
            files += 1;
            let _ = std::fs::rename(
                dir.path().join("out"),
                dir.path().join(format!("out.{files:03}")),
            );
            running.signal(nix::sys::signal::Signal::SIGHUP);
            let _ = ask("200ms", "status");
        },
        |_| {
            eventually("all is well", || {
                (ask("60s", "reopen") == 0 && ask("60s", "status") == 0).then_some(())
            });
            let size = || std::fs::metadata(dir.path().join("out")).map_or(0, |found| found.len());
            let before = size();
            eventually("lines", || (size() > before).then_some(()));
        },
    );
    dir.write("end", "");
    assert_eq!(subject.running.end(), 0);
    let mut numbers = Vec::new();
    let mut all = kit::logs::files(dir.path(), "out.");
    all.push(dir.path().join("out"));
    for file in all {
        let text = std::fs::read_to_string(file).unwrap();
        numbers.extend(text.lines().map(|line| line.parse::<usize>().unwrap()));
    }
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
}

#[test]
fn replsock_serves_the_next_client() {
    const ROWS: &[Row] = &[
        ("accept4", Errno::EMFILE, 100, ": accept-paused "),
        ("accept4", Errno::ENOBUFS, 100, ": accept-paused "),
        ("clone", Errno::EAGAIN, 100, ""),
        ("clone", Errno::ENOMEM, 100, ""),
        ("execve", Errno::ENOENT, 100, ""),
        ("execve", Errno::ENOMEM, 100, ""),
        ("pipe2", Errno::EMFILE, 100, ""),
        ("epoll_ctl", Errno::ENOMEM, 100, ""),
        ("epoll_wait", Errno::EINTR, 70, ""),
    ];
    let dir = Dir::new();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut subject = Subject::new("replsock", ROWS, &[], |run| {
        run.args(["serve", "s.sock", "--", "cat"]).dir(dir.path())
    });
    subject.running.event("server-listening");
    dir.write("input", "a line\n");
    let client = || {
        Run::new(sibling(PROGRAM, "replsock"))
            .arg("./s.sock")
            .stdin(std::fs::File::open(dir.path().join("input")).unwrap())
            .dir(dir.path())
            .start()
    };
    let mut clients = Vec::new();
    subject.befallen(
        |_| clients.push(client()),
        |_| {
            let mut one = client();
            assert_eq!(one.end(), 0, "{:?}", one.err());
            assert_eq!(one.out_to_its_end(), "a line\n");
        },
    );
    // Who met the fault was served late, or was told why not.
    for mut one in clients {
        let status = one.end();
        let told = one.err().join("\n");
        assert!(
            status == 0 || told.starts_with("replsock: "),
            "{status}: {told}"
        );
    }
    assert_eq!(subject.running.stop(), 0);
}
