//! A disk that is full, hangs, is read-only or has gone: the command goes on, and what is lost is counted.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::logs::{Report, files, found, numbers, report};
use kit::mount::Mounted;
use kit::{Dir, Run, Running, eventually, field};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");
const LENGTH: usize = 200;

/// A service that writes numbered lines of [`LENGTH`] bytes into `app.out` on a file system.
struct Set {
    dir: Dir,
    service: Running,
    log: PathBuf,
}

impl Set {
    /// `numbers`: count, pause in microseconds, lines between pauses.
    fn new(log: &Path, options: &[&str], numbers_of: [u64; 3]) -> Set {
        let dir = Dir::new();
        let numbers = numbers(&dir);
        let log = log.to_owned();
        let [count, pause, every] = numbers_of.map(|number| number.to_string());
        let mut service = Run::new(PROGRAM)
            .arg("-l")
            .arg(&log)
            .args(["--control", "log.sock"])
            .args(options)
            .arg("--")
            .arg(&numbers)
            .args([&count, &LENGTH.to_string(), &pause, &every])
            .env("NUMBERS_REPORT", dir.path().join("report"))
            .dir(dir.path())
            .start();
        service.event("command-started");
        Set { dir, service, log }
    }

    fn report(&self) -> Report {
        eventually("the service has written all", || self.report_now())
    }

    fn report_now(&self) -> Option<Report> {
        report(&self.dir.path().join("report"))
    }

    fn ask(&self, request: &str) -> (i32, String, String) {
        ask(self.dir.path(), request)
    }

    fn archives(&self) -> Vec<PathBuf> {
        files(self.log.parent().unwrap(), "app.out")
    }
}

fn ask(dir: &Path, request: &str) -> (i32, String, String) {
    let run = Run::new(PROGRAM)
        .args(["--ctl", "log.sock"])
        .args(request.split(' '))
        .dir(dir)
        .finish();
    (run.status, run.out, run.err)
}

fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [65_536, 1] {
        let block = vec![0; size];
        while file.write_all(&block).is_ok() {}
    }
}

// Edge case 19.
#[test]
fn a_full_disk_that_is_freed_loses_what_the_buffer_cannot_hold_and_says_how_much() {
    let disk = Mounted::tmpfs(8 << 20);
    // 12 MB into 8 MiB that are half full, with a buffer of 1 MiB.
    let log = disk.path().join("app.out");
    let junk = disk.path().join("junk");
    std::fs::write(&junk, vec![0; 4 << 20]).unwrap();
    let mut set = Set::new(&log, &["--buffer", "1M"], [60_000, 1000, 100]);
    let failed = set.service.event("write-failed");
    assert_eq!(field(&failed, "error"), "no space left on device");
    let written = set.report();
    assert_eq!((written.lines, written.failed), (60_000, 0));
    let (status, table, why) = set.ask("status");
    assert_eq!(status, 1, "{table}{why}");
    assert!(why.contains("no space left on device"), "{why}");
    // Room for all: the file that is there is moved elsewhere, and goes on.
    std::fs::remove_file(&junk).unwrap();
    let recovered = set.service.event("write-recovered");
    assert!(
        field(&recovered, "lost").parse::<u64>().unwrap() > 0,
        "{recovered}"
    );
    let lost = set.service.event("lines-lost");
    let (lines, bytes): (u64, u64) = (
        field(&lost, "lines").parse().unwrap(),
        field(&lost, "bytes").parse().unwrap(),
    );
    assert_eq!(bytes, lines * LENGTH as u64);
    assert_eq!(set.ask("status").0, 0);
    assert_eq!(set.service.stop(), 0);
    let found = found(&[log], 60_000, LENGTH);
    assert_eq!(found.lost, lines, "the count is exact");
    assert_eq!(found.lines, 60_000 - lines);
    assert_eq!(
        (found.torn, found.twice, found.disorder, found.ragged),
        (0, 0, 0, 0),
        "{found:?}"
    );
    assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
    for key in ["lines", "bytes", "since", "until"] {
        assert_eq!(field(found.notes[0].trim_end(), key), field(&lost, key));
    }
    let said = set.service.err();
    for event in ["write-failed", "write-recovered", "lines-lost"] {
        let count = said.iter().filter(|line| line.contains(event)).count();
        assert_eq!(count, 1, "{event}: {said:?}");
    }
}

// Edge case 19.
#[test]
fn a_full_disk_with_block_loses_nothing() {
    let disk = Mounted::tmpfs(8 << 20);
    let log = disk.path().join("app.out");
    let junk = disk.path().join("junk");
    std::fs::write(&junk, vec![0; 4 << 20]).unwrap();
    let options = ["--buffer", "1M", "--on-full", "block"];
    let mut set = Set::new(&log, &options, [40_000, 0, 0]);
    set.service.event("write-failed");
    // The pipe is full too, and the service waits.
    let pid = kit::run::children_of(set.service.pid())[0];
    eventually("the service waits", || {
        let at = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap();
        at.contains("pipe").then_some(())
    });
    assert!(set.report_now().is_none());
    std::fs::remove_file(&junk).unwrap();
    assert_eq!(set.report().lines, 40_000);
    assert_eq!(set.service.stop(), 0);
    found(&[log], 40_000, LENGTH).assert_all(40_000);
}

// Edge cases 19 and 21: SIGXFSZ kills nobody, and a reopen while stuck takes the held lines along.
#[test]
fn a_file_size_limit_is_like_a_full_disk_and_another_file_cures_it() {
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let log = dir.path().join("app.out");
    // 1001 blocks of 512 bytes for us, which ends within a line; the service has no files.
    let mut service = Run::new("/bin/sh")
        .args(["-c", "ulimit -f 1001; exec \"$@\"", "sh", PROGRAM, "-l"])
        .arg(&log)
        .args(["--control", "log.sock", "--"])
        .arg(&numbers)
        .args(["3000", "200", "0", "0"])
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .dir(dir.path())
        .start();
    let failed = service.event("write-failed");
    assert_eq!(field(&failed, "error"), "file too large");
    std::fs::rename(&log, dir.path().join("app.out.1")).unwrap();
    let (status, _, err) = ask(dir.path(), "reopen");
    assert_eq!(status, 0, "{err}");
    eventually("all is written", || {
        std::fs::metadata(&log)
            .is_ok_and(|file| file.len() > 80_000)
            .then_some(())
    });
    assert_eq!(service.stop(), 0, "{:?}", service.err());
    let first = std::fs::metadata(dir.path().join("app.out.1"))
        .unwrap()
        .len();
    assert!(first <= 512_512 && first > 512_000, "{first}");
    assert_eq!(
        first % LENGTH as u64,
        0,
        "the half line went to the new file as a whole"
    );
    found(&files(dir.path(), "app.out"), 3000, LENGTH).assert_all(3000);
}

/// The service's longest write while the disk hangs, and that nothing is lost.
fn while_frozen(meanwhile: impl FnOnce(&mut Set)) -> Set {
    // 200 kB a second.
    frozen_for(Duration::from_secs(4), &[], [0, 1000, 1], meanwhile)
}

fn frozen_for(
    length: Duration,
    options: &[&str],
    numbers_of: [u64; 3],
    meanwhile: impl FnOnce(&mut Set),
) -> Set {
    let mut disk = Mounted::ext4();
    let log = disk.path().join("app.out");
    let mut set = Set::new(&log, options, numbers_of);
    eventually("it writes", || {
        std::fs::metadata(&log)
            .is_ok_and(|file| file.len() > 10_000)
            .then_some(())
    });
    disk.freeze();
    let since = Instant::now();
    meanwhile(&mut set);
    eventually("a disk that hangs for so long", || {
        (since.elapsed() > length).then_some(())
    });
    disk.thaw();
    assert_eq!(set.service.stop(), 0, "{:?}", set.service.err());
    let written = set.report();
    let mut list = set.archives();
    list.sort();
    found(&list, written.lines, LENGTH).assert_all(written.lines);
    // Whom the disk holds up waits for as long as it hangs; the machine's own hiccups are shorter. How long a
    // write takes is measured by the bench.
    assert!(
        u128::from(written.longest) < length.as_micros() / 2,
        "the longest write took {} us",
        written.longest
    );
    set
}

#[test]
fn a_disk_that_hangs_for_four_seconds_holds_nobody_up() {
    while_frozen(|set| {
        let (status, _, err) = set.ask("status");
        assert_eq!(status, 0, "{err}");
    });
}

// While much comes the writer reads the pipe itself, until it hangs.
#[test]
fn a_disk_that_hangs_while_much_is_written_holds_nobody_up() {
    let time = Duration::from_secs(3);
    // 200 kB each 10 ms.
    frozen_for(time, &["--buffer", "256M"], [0, 10_000, 1000], |_| {});
}

/// Processor time that it has taken, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let words = rest.split_whitespace().skip(11).take(2);
    words.map(|word| word.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_disk_that_hangs_is_no_work_while_nothing_may_be_dropped() {
    let mut disk = Mounted::ext4();
    let log = disk.path().join("app.out");
    // A line each millisecond: after each read the pipe is left alone for a moment.
    let options = ["--on-full", "block", "--buffer", "64K"];
    let mut set = Set::new(&log, &options, [0, 1000, 1]);
    eventually("it writes", || {
        std::fs::metadata(&log)
            .is_ok_and(|file| file.len() > 10_000)
            .then_some(())
    });
    disk.freeze();
    let held = |set: &Set| -> Option<u64> {
        let (_, text, _) = set.ask("status json");
        let held = text.split("\"held\":").nth(1)?;
        held.split(',').next()?.parse().ok()
    };
    let mut last = None;
    eventually("it is full", || {
        let now = held(&set);
        let full = now.is_some_and(|held| held > 10_000) && now == last;
        last = now;
        std::thread::sleep(Duration::from_millis(200));
        full.then_some(())
    });
    eventually("three seconds without work", || {
        let before = ticks(set.service.pid());
        std::thread::sleep(Duration::from_secs(3));
        (ticks(set.service.pid()) == before).then_some(())
    });
    disk.thaw();
    assert_eq!(set.service.stop(), 0, "{:?}", set.service.err());
    let written = set.report();
    let mut list = set.archives();
    list.sort();
    found(&list, written.lines, LENGTH).assert_all(written.lines);
}

// Edge case 2.
#[test]
fn a_reopen_while_the_disk_hangs_is_answered_when_it_is_done() {
    let mut answer = None;
    let set = while_frozen(|set| {
        // Nobody can rename on a frozen file system, so it stays the same file.
        let (status, _, err) = ask(set.dir.path(), "reopen --timeout 500ms");
        assert_eq!(status, 124, "{err}");
        set.service.signal(Signal::SIGHUP);
        let dir = set.dir.path().to_owned();
        answer = Some(std::thread::spawn(move || ask(&dir, "reopen")));
    });
    let (status, out, err) = answer.unwrap().join().unwrap();
    assert_eq!(status, 0, "{out}{err}");
    drop(set);
}

// Edge case 27.
#[test]
fn term_while_the_disk_hangs_reaches_the_command_and_ends_us_in_time() {
    let mut disk = Mounted::ext4();
    let log = disk.path().join("app.out");
    let mut set = Set::new(&log, &["--drain-timeout", "1s"], [0, 1000, 1]);
    eventually("it writes", || {
        std::fs::metadata(&log)
            .is_ok_and(|file| file.len() > 10_000)
            .then_some(())
    });
    disk.freeze();
    eventually("it hangs", || {
        let (_, text, _) = set.ask("status json");
        let held = text.split("\"held\":").nth(1)?;
        let held: u64 = held.split(',').next()?.parse().ok()?;
        (held > 10_000).then_some(())
    });
    set.service.signal(Signal::SIGTERM);
    // The command has ended by that.
    set.report();
    set.service.event("command-exited");
    let gave_up = set.service.event("drain-gave-up");
    assert!(
        field(&gave_up, "held").parse::<u64>().unwrap() > 10_000,
        "{gave_up}"
    );
    // The kernel lets no process go while one of its threads hangs in the disk: the rest is over.
    eventually("we are dead but for the hanging thread", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", set.service.pid())).ok()?;
        stat.contains(") Z ").then_some(())
    });
    disk.thaw();
    assert_eq!(set.service.end(), 0);
}

// Edge cases 5 and 9: the directory is removed, and comes back.
#[test]
fn the_directory_removed_and_back() {
    let dir = Dir::new();
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let log = logs.join("app.out");
    let mut set = Set::new(&log, &["--follow", "300ms"], [0, 1000, 1]);
    let count = || std::fs::metadata(&log).map_or(0, |file| file.len()) / LENGTH as u64;
    eventually("it writes", || (count() > 50).then_some(()));
    std::fs::remove_dir_all(&logs).unwrap();
    let failed = set.service.event("reopen-failed");
    assert!(failed.contains("its directory is missing"), "{failed}");
    let (status, _, err) = set.ask("status");
    assert_eq!(status, 1, "{err}");
    let (status, _, err) = set.ask("reopen");
    assert_eq!(status, 1);
    assert!(err.contains("its directory is missing"), "{err}");
    std::fs::create_dir(&logs).unwrap();
    set.service.event("output-reopened");
    eventually("it writes again", || (count() > 50).then_some(()));
    assert_eq!(set.service.stop(), 0);
    // What was in the removed file is gone by somebody's wish; all that came later is there.
    let text = std::fs::read_to_string(&log).unwrap();
    let first: u64 = text[..10].parse().unwrap();
    let lines = set.report().lines;
    assert_eq!(text.lines().count() as u64, lines - first + 1);
    assert!(first > 50, "{first}");
    assert_eq!(
        set.service
            .err()
            .iter()
            .filter(|line| line.contains("reopen-failed"))
            .count(),
        2,
        "once by itself, once for who asked: {:?}",
        set.service.err()
    );
}

// Edge case 10: the space of a file that was removed because the disk is full is free again soon.
#[test]
fn a_file_that_is_removed_from_a_full_disk_is_let_go() {
    let disk = Mounted::tmpfs(4 << 20);
    let log = disk.path().join("app.out");
    let mut set = Set::new(&log, &["--follow", "300ms"], [0, 200, 10]);
    set.service.event("write-failed");
    std::fs::remove_file(&log).unwrap();
    set.service.event("output-reopened");
    eventually("it writes again", || {
        std::fs::metadata(&log)
            .is_ok_and(|file| file.len() > 0)
            .then_some(())
    });
    assert_eq!(set.service.stop(), 0);
}

// Edge cases 5 and 6.
#[test]
fn one_of_two_files_cannot_be_opened_and_the_other_is_changed() {
    let disk = Mounted::tmpfs(16 << 20);
    let log = disk.path().join("app.out");
    let other = Dir::new();
    let err = other.path().join("app.err");
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let mut service = Run::new(PROGRAM)
        .arg("-l")
        .arg(&log)
        .arg("-e")
        .arg(&err)
        .args(["--control", "log.sock", "--"])
        .arg(&numbers)
        .args(["0", "200", "1000", "10", "1", "2"])
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .dir(dir.path())
        .start();
    service.event("command-started");
    let moved = |name: &Path| std::fs::rename(name, name.with_extension("1")).unwrap();
    moved(&log);
    moved(&err);
    std::fs::create_dir(&log).unwrap();
    let (status, out, said) = ask(dir.path(), "reopen");
    assert_eq!(status, 1, "{out}{said}");
    assert!(said.contains("is a directory"), "{said}");
    assert!(out.contains("app.err reopened"), "{out}");
    std::fs::remove_dir(&log).unwrap();
    // It is tried again each second, without being asked.
    service.event_with("output-reopened", "app.out");
    assert_eq!(service.stop(), 0);
    let written = report(&dir.path().join("report")).unwrap();
    let mut list = files(disk.path(), "app.");
    list.extend(files(other.path(), "app."));
    found(&list, written.lines, LENGTH).assert_all(written.lines);
}

// Edge case 5: EROFS.
#[test]
fn a_file_system_that_is_read_only_at_the_reopen() {
    let disk = Mounted::tmpfs(16 << 20);
    let target = Dir::new();
    // The name is a link: first into a writable place, then into one that is not.
    let link = target.path().join("app.out");
    let first = target.path().join("first");
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let mut set = Set::new(&link, &[], [0, 1000, 10]);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(disk.path().join("second"), &link).unwrap();
    disk.remount(true);
    let (status, _, err) = set.ask("reopen");
    assert_eq!(status, 1);
    assert!(err.contains("read-only file system"), "{err}");
    // Nothing is harmed: the old file is written.
    let before = std::fs::metadata(&first).unwrap().len();
    eventually("the old file grows", || {
        (std::fs::metadata(&first).unwrap().len() > before).then_some(())
    });
    disk.remount(false);
    set.service.event("output-reopened");
    assert_eq!(set.service.stop(), 0);
    let written = set.report();
    found(&[first, disk.path().join("second")], written.lines, LENGTH).assert_all(written.lines);
}

// Edge case 20: each file has its own buffer, so that one that is stuck takes nothing from the other.
#[test]
fn two_stuck_files_share_nothing() {
    let (one, two) = (Mounted::tmpfs(1 << 20), Mounted::tmpfs(1 << 20));
    for disk in [&one, &two] {
        fill(&disk.path().join("junk"));
    }
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let mut service = Run::new(PROGRAM)
        .arg("-l")
        .arg(one.path().join("app.out"))
        .arg("-e")
        .arg(two.path().join("app.err"))
        .args(["--buffer", "1M", "--control", "log.sock", "--"])
        .arg(&numbers)
        .args(["12000", "200", "1000", "100", "1", "2"])
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .dir(dir.path())
        .start();
    service.event("command-started");
    eventually("all is written", || report(&dir.path().join("report")));
    let held = eventually("both hold their share", || {
        let (_, text, _) = ask(dir.path(), "status json");
        let held: Vec<u64> = text
            .split("\"held\":")
            .skip(1)
            .filter_map(|rest| rest.split(',').next()?.parse().ok())
            .collect();
        let lost = text.matches("\"lost_lines\":0,").count();
        (held.len() == 2 && lost == 0).then_some(held)
    });
    for held in held {
        assert!(held <= 1 << 20 && held > (1 << 20) - 4096, "{held}");
    }
    for disk in [&one, &two] {
        std::fs::remove_file(disk.path().join("junk")).unwrap();
    }
}

// A pipe whose writers are gone is readable for ever, whether its file takes anything or not.
#[test]
fn a_filter_that_waits_for_a_full_disk_sleeps() {
    let disk = Mounted::tmpfs(1 << 20);
    let dir = Dir::new();
    let log = disk.path().join("app.out");
    let script = "head -c 3000000 /dev/zero | tr '\\0' '\\n' | exec \"$@\"";
    let mut filter = Run::new("sh")
        .args(["-c", script, "sh", PROGRAM, "--on-full", "block"])
        .args(["--buffer", "256K", "--pid-file", "pid"])
        .arg(&log)
        .dir(dir.path())
        .start();
    filter.event("write-failed");
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
        let words = stat.rsplit(") ").next().unwrap().split(' ');
        words
            .skip(11)
            .take(2)
            .map(|word| word.parse::<u64>().unwrap())
            .sum()
    };
    let mut last = (ticks(), Instant::now());
    eventually("a second with less than a tenth of it used", || {
        if last.1.elapsed() < Duration::from_secs(1) {
            return None;
        }
        let now = ticks();
        let used = now - last.0;
        last = (now, Instant::now());
        (used < 10).then_some(())
    });
    // There is room for all.
    let roomy = std::ffi::CString::new("size=16m").unwrap();
    nix::mount::mount(
        None::<&str>,
        disk.path(),
        None::<&str>,
        nix::mount::MsFlags::MS_REMOUNT,
        Some(roomy.as_c_str()),
    )
    .unwrap();
    assert_eq!(filter.end(), 0, "{:?}", filter.err());
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 3_000_000);
}

// Edge case 19: what a dying disk, a quota and a file server that was set up anew answer.
#[test]
fn errors_that_are_hard_to_make_lose_nothing_either() {
    let dir = Dir::new();
    let shim = dir.path().join("write_errno.so");
    let built = Run::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([&shim])
        .args([kit::app("write_errno.c")])
        .arg("-ldl")
        .finish();
    assert_eq!(built.status, 0, "{}", built.err);
    let script = "n=0; while test ! -e end; do if test -e line; then rm line; n=$((n+1)); echo $n; fi; sleep 0.02; done";
    let mut service = Run::new(PROGRAM)
        .args(["-l", "app.out", "--control", "log.sock", "--"])
        .args(["env", "-u", "LD_PRELOAD", "sh", "-c", script])
        .env("LD_PRELOAD", &shim)
        .env("WRITE_ERRNO", dir.path().join("errno"))
        .dir(dir.path())
        .start();
    service.event("command-started");
    let log = dir.path().join("app.out");
    let holds = |text: &str| {
        eventually(text, || {
            (std::fs::read_to_string(&log).unwrap_or_default() == text).then_some(())
        });
    };
    let mut text = String::new();
    let errors = [
        (nix::libc::EIO, "input/output error"),
        (nix::libc::EDQUOT, "disk quota exceeded"),
        (nix::libc::ESTALE, "stale file handle"),
    ];
    for (number, (errno, words)) in errors.into_iter().enumerate() {
        dir.write("errno", &errno.to_string());
        dir.write("line", "");
        let failed = service.event("write-failed");
        assert_eq!(field(&failed, "error"), words, "{failed}");
        assert_eq!(ask(dir.path(), "status").0, 1);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), text);
        std::fs::remove_file(dir.path().join("errno")).unwrap();
        service.event("write-recovered");
        text.push_str(&format!("{}\n", number + 1));
        holds(&text);
        assert_eq!(ask(dir.path(), "status").0, 0);
    }
    dir.write("end", "");
    assert_eq!(service.end(), 0);
    holds(&text);
}
