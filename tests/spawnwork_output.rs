//! What workers say: whole, complete, and no reason to stop serving.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::get;
use kit::load::{Load, Options};
use kit::{Dir, Run, app, eventually, free_port};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

fn spawnwork(args: &[&str]) -> Run {
    Run::new(env!("CARGO_BIN_EXE_spawnwork")).args(args)
}

// Edge case 59.
#[test]
fn lines_of_four_workers_at_once_are_whole_and_all_there() {
    for (length, count) in [(100, 20_000), (5_000, 2_000), (100_000, 100), (1 << 20, 8)] {
        let mut master = spawnwork(&["-n", "4", "--", "node"])
            .args([app("talk.js")])
            .args([length.to_string(), count.to_string()])
            .env("PORT", free_port().to_string())
            .start();
        master.event("generation-serving");
        let total = 4 * count * (length + 1);
        eventually("all lines came", || {
            (master.out().len() >= total).then_some(())
        });
        assert_eq!(master.stop(), 0);
        let out = master.out_to_its_end();
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for line in out.lines() {
            assert_eq!(line.len(), length, "torn: {:.60}", line);
            let mark = &line[..9];
            assert!(line.ends_with(mark), "torn: {mark}");
            let number: usize = mark[2..].parse().unwrap();
            let last = seen.entry(&line[..1]).or_default();
            assert_eq!(number, *last + 1, "lost, or out of order: {mark}");
            *last = number;
        }
        assert_eq!(seen.values().copied().collect::<Vec<_>>(), [count; 4]);
    }
}

// Edge case 60.
#[test]
fn a_burst_before_the_end_is_all_there_and_its_last_lines_are_in_the_report() {
    let mut master = spawnwork(&["-n", "1", "--respawn-limit", "1/1h", "--", "node"])
        .args([app("burst.js")])
        .args(["100000"])
        .start();
    let report = master.event("worker-exited");
    assert!(report.contains("burst 100000\""), "{report}");
    assert!(report.contains("burst 99981 | burst 99982"), "{report}");
    // It may be given another try: what counts is that no number of the first burst is missing.
    master.end();
    let err = master.err();
    let burst: Vec<&String> = err
        .iter()
        .filter(|line| line.starts_with("burst "))
        .collect();
    assert_eq!(burst.len() % 100_000, 0, "{}", burst.len());
    for (index, line) in burst.iter().enumerate() {
        assert_eq!(**line, format!("burst {}", index % 100_000 + 1));
    }
}

// Edge case 61.
#[test]
fn a_reader_that_stops_for_five_seconds_costs_no_request() {
    let port = free_port();
    let (mut reader, writer) = pipe();
    let mut master = spawnwork(&["-n", "2", "--probation", "100ms", "--", "node"])
        .args([app("chatty.js")])
        .env("PORT", port.to_string())
        .stdout(writer)
        .start();
    master.event("generation-serving");
    let options = Options {
        address: format!("127.0.0.1:{port}"),
        keep_alive: 8,
        fresh: 8,
        paths: vec!["/"],
        expect: "hello ",
        timeout: Duration::from_secs(30),
    };
    // What nobody reads is to be as much as can be had.
    let load = Load::paced(&options, Duration::ZERO);
    // Nobody reads. The reload shows that the master goes on as ever.
    std::thread::sleep(Duration::from_secs(5));
    master.signal(Signal::SIGUSR2);
    master.event("reload-committed");
    let lines = std::thread::spawn(move || {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        text
    });
    load.answer(100);
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    assert_eq!(master.stop(), 0);
    drop(master);
    let text = lines.join().unwrap();
    let lines = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let mut count = 0;
    for line in lines {
        assert_eq!(line.len(), 202, "torn: {}", String::from_utf8_lossy(line));
        count += 1;
    }
    assert_eq!(count, tally.requests, "a line for each request");
}

// Edge case 61.
#[test]
fn a_reader_that_is_gone_kills_nobody() {
    let port = free_port();
    let (reader, writer) = pipe();
    let mut master = spawnwork(&["-n", "2", "--", "node"])
        .args([app("chatty.js")])
        .env("PORT", port.to_string())
        .stdout(writer)
        .start();
    master.event("generation-serving");
    drop(reader);
    for _ in 0..50 {
        get(format!("127.0.0.1:{port}"), "/").unwrap();
    }
    master.event("lines-lost");
    get(format!("127.0.0.1:{port}"), "/").unwrap();
    assert!(!master.err().join("\n").contains("worker-exited"));
    assert_eq!(master.stop(), 0);
}

#[test]
fn prefixes_go_before_each_line_of_both_streams() {
    let script = "echo out $WORKER_ID; echo err $WORKER_ID >&2; printf unfinished; exec sleep 1000";
    let mut master = spawnwork(&[
        "-n",
        "2",
        "--prefix",
        "[%i %g %p] ",
        "--ready",
        "alive:100ms",
    ])
    .args(["--", "sh", "-c", script])
    .start();
    let first = master.event_with("worker-started", "slot=0");
    let pid = kit::field(&first, "pid");
    master.event("generation-serving");
    let wanted = format!("[0 1 {pid}] ");
    assert!(
        master.err().contains(&format!("{wanted}err 0")),
        "{:?}",
        master.err()
    );
    assert!(
        master.out().contains(&format!("{wanted}out 0\n")),
        "{}",
        master.out()
    );
    assert_eq!(master.stop(), 0);
    // What has no newline at its end is a line when its writer has gone.
    let out = master.out_to_its_end();
    assert!(out.contains(&format!("{wanted}unfinished\n")), "{out}");
}

#[test]
fn output_that_is_inherited_goes_straight_to_the_file() {
    let dir = Dir::new();
    let path = dir.path().join("out");
    let file = std::fs::File::create(&path).unwrap();
    let mut master = spawnwork(&["-n", "1", "--ready", "alive:100ms", "--", "sh", "-c"])
        .args(["readlink /proc/self/fd/1; exec sleep 1000"])
        .stdout(file)
        .start();
    master.event("generation-serving");
    let said = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        said.trim(),
        path.canonicalize().unwrap().display().to_string()
    );
    assert_eq!(master.stop(), 0);
}

fn pipe() -> (std::fs::File, std::fs::File) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

/// Processor time that it has taken, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let words = rest.split_whitespace().skip(11).take(2);
    words.map(|word| word.parse::<u64>().unwrap()).sum()
}

/// A loop that spins takes time in any second, however busy the machine is.
fn rests(pid: i32, when: &str) {
    eventually(&format!("a second without work, {when}"), || {
        let before = ticks(pid);
        std::thread::sleep(Duration::from_secs(1));
        (ticks(pid) == before).then_some(())
    });
}

fn healthy(dir: &Dir) {
    eventually("it serves", || {
        let asked = spawnwork(&["--ctl", "c.sock", "status"])
            .dir(dir.path())
            .finish();
        (asked.status == 0).then_some(())
    });
}

#[test]
fn a_reader_who_leaves_while_nothing_is_said_is_no_work() {
    for which in ["stdout", "stderr"] {
        let dir = Dir::new();
        let (reader, writer) = std::io::pipe().unwrap();
        let run = spawnwork(&["-n", "1", "--ready", "alive:50ms", "--control", "c.sock"])
            .args(["--", "sleep", "600"])
            .dir(dir.path());
        let mut master = match which {
            "stdout" => run.stdout(writer).start(),
            _ => run.stderr(writer).start(),
        };
        healthy(&dir);
        drop(reader);
        rests(master.pid(), &format!("without a reader of {which}"));
        healthy(&dir);
        assert_eq!(master.stop(), 0);
    }
}

#[test]
fn a_reader_who_leaves_while_much_waits_for_him_is_no_work() {
    let dir = Dir::new();
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    // More than the socket takes, and less than holds the worker up.
    let burst = "yes | head -c 600000 >&2; exec sleep 600";
    let mut master = spawnwork(&["-n", "1", "--ready", "alive:50ms", "--control", "c.sock"])
        .args(["--", "sh", "-c", burst])
        .dir(dir.path())
        .stderr(std::os::fd::OwnedFd::from(writer))
        .start();
    healthy(&dir);
    eventually("the worker has said all", || {
        let worker = kit::run::children_of(master.pid()).into_iter().next()?;
        let name = std::fs::read_to_string(format!("/proc/{worker}/comm"));
        (name.ok()? == "sleep\n").then_some(())
    });
    rests(master.pid(), "with a reader who does not read");
    drop(reader);
    rests(master.pid(), "without him");
    healthy(&dir);
    assert_eq!(master.stop(), 0);
}

#[test]
fn what_a_dead_worker_left_unread_is_no_work_while_our_reader_does_not_read() {
    let dir = Dir::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    // It fills our reader's pipe, what we keep for him, and half of its own pipe.
    let burst = "[ -e once ] || { : >once; yes | head -c 1700000; }; exec sleep 600";
    let mut master = spawnwork(&["-n", "1", "--ready", "alive:50ms", "--respawn-limit", "0"])
        .args(["--", "sh", "-c", burst])
        .dir(dir.path())
        .stdout(writer)
        .start();
    master.event("worker-ready");
    let worker = eventually("the worker has said all", || {
        let worker = kit::run::children_of(master.pid()).into_iter().next()?;
        let name = std::fs::read_to_string(format!("/proc/{worker}/comm"));
        (name.ok()? == "sleep\n").then_some(worker)
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    master.event("worker-exited");
    master.event("worker-ready");
    rests(master.pid(), "with what it left");
    let read = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all.len()
    });
    assert_eq!(master.stop(), 0);
    assert_eq!(read.join().unwrap(), 1_700_000);
}
