//! Rotation by the real logrotate, under load: no line lost, none torn, none twice.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use kit::logs::{Found, files, found, numbers, report};
use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");
/// Lines of a test, and their length in bytes.
const LINES: u64 = 1_000_000;
const LENGTH: usize = 100;
const ROTATIONS: u32 = 50;

/// A service that writes numbered lines, its log files, and logrotate.
struct Set {
    dir: Dir,
    service: Running,
    names: Vec<&'static str>,
    rotations: u32,
}

impl Set {
    /// `fds`: the descriptors that the service writes to in turn, with `-l` and `-e` accordingly.
    fn new(options: &[&str], fds: &[&str]) -> Set {
        let dir = Dir::new();
        let mut names = Vec::new();
        let numbers = numbers(&dir);
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        // About ten seconds for all, in bursts.
        let count = LINES.to_string();
        let mut run = Run::new(PROGRAM).dir(dir.path()).args(options);
        for (fd, option, name) in [("1", "-l", "logs/app.out"), ("2", "-e", "logs/app.err")] {
            if fds.contains(&fd) {
                run = run.args([option, name]);
                names.push(name);
            }
        }
        let mut service = run
            .args(["--control", "log.sock", "--pid-file", "log.pid", "--"])
            .arg(&numbers)
            .args([&*count, "100", "2000", "400"])
            .args(fds)
            .env("NUMBERS_REPORT", dir.path().join("report"))
            .start();
        service.event("command-started");
        Set {
            dir,
            service,
            names,
            rotations: 0,
        }
    }

    fn written(&self) -> bool {
        report(&self.dir.path().join("report")).is_some()
    }

    /// The log files, as a block of logrotate's begins.
    fn pattern(&self) -> String {
        let path = |name: &&str| self.dir.path().join(name).display().to_string();
        self.names.iter().map(path).collect::<Vec<_>>().join(" ")
    }

    /// A block with the answered reopen after each rotation.
    fn with_reopen(&self, block: &str) -> String {
        let socket = self.dir.path().join("log.sock");
        let command = format!("{PROGRAM} --ctl {} reopen", socket.display());
        format!("rotate 1000\n{block}\npostrotate\n{command} >/dev/null\nendscript")
    }

    /// One run of logrotate with this block; it must have nothing to complain about.
    fn rotate(&mut self, block: &str) {
        let (status, err) = self.logrotate(block, &["-f"]);
        assert_eq!((status, &*err), (0, ""), "{block}");
        self.rotations += 1;
    }

    fn logrotate(&self, block: &str, options: &[&str]) -> (i32, String) {
        let text = format!("{} {{\n{block}\n}}\n", self.pattern());
        let config = self.dir.write("logrotate.conf", &text);
        let run = Run::new("/usr/sbin/logrotate")
            .args(options)
            .arg("-s")
            .arg(self.dir.path().join("state"))
            .arg(config)
            .finish();
        (run.status, run.err)
    }

    /// Rotates again and again, at least so often and until the service has written all; `after` each.
    fn rotate_all(&mut self, block: &str, mut after: impl FnMut(&mut Set)) {
        while self.rotations < ROTATIONS || !self.written() {
            self.rotate(block);
            after(self);
        }
    }

    /// All files have been changed for new ones.
    fn reopened(&mut self) {
        for _ in 0..self.names.len() {
            self.service.event("output-reopened");
        }
    }

    /// Ends the service: what of its lines is in which files.
    fn found(&mut self) -> Found {
        eventually("all lines are written", || self.written().then_some(()));
        assert_eq!(self.service.stop(), 0, "{:?}", self.service.err());
        let written = report(&self.dir.path().join("report")).unwrap();
        assert_eq!((written.lines, written.failed), (LINES, 0));
        found(&self.all_files(), LINES, LENGTH)
    }

    fn all_files(&self) -> Vec<PathBuf> {
        let mut list = files(&self.dir.path().join("logs"), "app.");
        if let Ok(entries) = std::fs::read_dir(self.dir.path().join("old")) {
            list.extend(entries.map(|entry| entry.unwrap().path()));
        }
        list
    }
}

/// Rotates with the answered reopen.
fn exact(block: &str, fds: &[&str]) -> Set {
    let mut set = Set::new(&[], fds);
    let block = set.with_reopen(block);
    set.rotate_all(&block, |_| {});
    set.found().assert_all(LINES);
    set
}

// Edge case 8.
#[test]
fn compress_without_delaycompress() {
    let set = exact("compress\ncreate 640 www-data adm\nsharedscripts", &["1"]);
    let made = std::fs::metadata(set.dir.path().join("logs/app.out")).unwrap();
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let user = nix::unistd::User::from_name("www-data").unwrap().unwrap();
    let group = nix::unistd::Group::from_name("adm").unwrap().unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o640, "taken as made");
    assert_eq!(
        (made.uid(), made.gid()),
        (user.uid.as_raw(), group.gid.as_raw())
    );
    assert!(set.rotations >= ROTATIONS);
}

// Edge case 8.
#[test]
fn nocreate_and_several_files_in_one_block_with_and_without_sharedscripts() {
    exact("compress\nnocreate\nsharedscripts", &["1", "2"]);
    exact("compress\nnocreate", &["1", "2"]);
}

// Edge case 8.
#[test]
fn olddir_and_su() {
    let mut set = Set::new(&[], &["1", "2"]);
    let old = set.dir.path().join("old");
    std::fs::create_dir(&old).unwrap();
    let block = format!(
        "compress\ncreate 600 root root\nsu root root\nolddir {}\nsharedscripts",
        old.display()
    );
    let block = set.with_reopen(&block);
    set.rotate_all(&block, |_| {});
    set.found().assert_all(LINES);
}

// Edge case 8. A name for each second, so there is one rotation a second.
#[test]
fn dateext() {
    let mut set = Set::new(&[], &["1"]);
    let block = set.with_reopen("compress\nnocreate\ndateext\ndateformat -%s");
    set.rotate_all(&block, |_| {
        // Not the second in which this one began: it may have ended in the next.
        let last = second(Duration::ZERO);
        // time(2), by which logrotate goes, may be some milliseconds behind.
        let behind = Duration::from_millis(20);
        eventually("the next second", || (second(behind) > last).then_some(()));
    });
    set.found().assert_all(LINES);
    assert!(files(&set.dir.path().join("logs"), "app.out-").len() >= ROTATIONS as usize);
}

/// The second that it is for a clock that is so far behind.
fn second(behind: Duration) -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .saturating_sub(behind)
        .as_secs()
}

// Edge case 8.
#[test]
fn maxsize_with_an_hourly_run() {
    let mut set = Set::new(&[], &["1"]);
    let block = set.with_reopen("hourly\nmaxsize 100k\ncompress\nnocreate");
    let archives = |set: &Set| files(&set.dir.path().join("logs"), "app.out.").len();
    while archives(&set) < 5 || !set.written() {
        let (status, err) = set.logrotate(&block, &[]);
        assert_eq!((status, &*err), (0, ""));
    }
    set.found().assert_all(LINES);
}

#[test]
fn hup_with_delaycompress() {
    let mut set = Set::new(&[], &["1", "2"]);
    let pid = set.dir.path().join("log.pid");
    let block = format!(
        "rotate 1000\ncompress\ndelaycompress\nnocreate\nsharedscripts\npostrotate\nkill -HUP $(cat {})\nendscript",
        pid.display()
    );
    // The next rotation, that compresses, is a day away in real life.
    set.rotate_all(&block, Set::reopened);
    set.found().assert_all(LINES);
}

// Edge case 9: nobody says that the file was moved, and `create` makes the new one with O_EXCL.
#[test]
fn no_postrotate_at_all_with_create() {
    let mut set = Set::new(&["--follow", "1s"], &["1", "2"]);
    set.rotate_all(
        "rotate 1000\ncompress\ndelaycompress\ncreate 640 root adm",
        Set::reopened,
    );
    set.found().assert_all(LINES);
    let moved = set.service.err().join("\n");
    assert!(moved.contains("output-moved"), "{moved}");
    for file in set.all_files() {
        assert!(!file.to_string_lossy().contains("backup"), "{file:?}");
    }
}

// Edge case 9: nobody makes it, so we do.
#[test]
fn no_postrotate_at_all_with_nocreate() {
    let mut set = Set::new(&["--follow", "200ms", "--mode", "0604"], &["1"]);
    set.rotate_all(
        "rotate 1000\ncompress\ndelaycompress\nnocreate",
        Set::reopened,
    );
    set.found().assert_all(LINES);
    use std::os::unix::fs::PermissionsExt;
    let made = std::fs::metadata(set.dir.path().join("logs/app.out")).unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o604);
}

// Edge case 8: lossy by its nature, but nothing of ours is torn, and it is said.
#[test]
fn copytruncate_goes_on_at_the_beginning_and_says_so() {
    let mut set = Set::new(&[], &["1"]);
    while !set.written() {
        set.rotate("rotate 1000\ncopytruncate\ncompress");
    }
    let before = std::fs::metadata(set.dir.path().join("logs/app.out")).unwrap();
    assert!(before.len() < LINES * LENGTH as u64 / 2, "{}", before.len());
    let found = set.found();
    // What lies between copy and truncation is lost, and what the copy ends with may be half a line.
    assert_eq!((found.twice, found.disorder), (0, 0), "{found:?}");
    assert!(found.lost < LINES / 2, "{found:?}");
    let said = set.service.err().join("\n");
    assert!(
        said.contains(" truncated file=logs/app.out from="),
        "{said}"
    );
    let last = std::fs::read(set.dir.path().join("logs/app.out")).unwrap();
    assert!(!last.contains(&0), "no hole at the beginning");
}

// Edge case 44.
#[test]
fn a_dry_run_of_logrotate_changes_nothing() {
    let mut set = Set::new(&[], &["1"]);
    let block = set.with_reopen("compress");
    let (status, _) = set.logrotate(&block, &["-d", "-f"]);
    assert_eq!(status, 0);
    set.found().assert_all(LINES);
    assert!(!set.service.err().join("\n").contains("output-reopened"));
    assert_eq!(set.all_files().len(), 1);
}

#[test]
fn logrotate_reports_a_postrotate_with_nobody_at_the_socket() {
    let mut set = Set::new(&[], &["1"]);
    let block = set.with_reopen("nocreate").replace("log.sock", "no.sock");
    let (status, err) = set.logrotate(&block, &["-f"]);
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("nobody answers there"), "{err}");
    let asked = Run::new(PROGRAM)
        .args(["--ctl", "no.sock", "reopen"])
        .dir(set.dir.path())
        .finish();
    assert_eq!(asked.status, 125);
    // Nothing else is harmed: the file is taken up anew by itself.
    set.reopened();
    set.found().assert_all(LINES);
}

// Edge case 3: a thousand a second are taken together.
#[test]
fn a_thousand_hups_a_second() {
    let mut set = Set::new(&[], &["1"]);
    let mut sent = 0;
    while !set.written() {
        set.service.signal(Signal::SIGHUP);
        sent += 1;
        if sent % 100 == 0 {
            let name = set.dir.path().join("logs/app.out");
            std::fs::rename(&name, name.with_extension(format!("out.{sent}"))).unwrap();
        }
        pause(Duration::from_millis(1));
    }
    assert!(sent > 1000, "only {sent}");
    set.found().assert_all(LINES);
}

/// Between two signals: how fast they come is what is tested.
fn pause(length: Duration) {
    let until = Instant::now() + length;
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

/// The article's set-up: its logrotate file, its `-l` and `-e`, workers behind spawnwork.
fn article(postrotate: &str, rotations: u32, after: impl Fn(&mut Running)) -> (Found, u64) {
    let dir = Dir::new();
    let spawnwork = kit::sibling(PROGRAM, "spawnwork");
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let app = kit::app("numbered.js");
    let total = LINES;
    let port = kit::free_port().to_string();
    let mut service = Run::new(PROGRAM)
        .args(["-l", "logs/myserver.out", "-e", "logs/myserver.err"])
        .args(["--control", "log.sock", "--pid-file", "log.pid", "--"])
        .arg(&spawnwork)
        .args(["-n", "4", "--", "node"])
        .arg(app)
        .args([(total / 4).to_string(), "25000".to_owned()])
        .env("PORT", &port)
        .env("NUMBERED_DIR", dir.path())
        .dir(dir.path())
        .start();
    service.event("command-started");
    let text = format!(
        "\"{0}/myserver.out\"\n\"{0}/upstart\"\n\"{0}/myserver.err\" {{\n daily\n missingok\n create 777 www-data www-data\n rotate 1000\n compress\n postrotate\n {1} >/dev/null 2>&1 || true\n endscript\n}}\n",
        logs.display(),
        postrotate.replace("DIR", &dir.path().display().to_string())
    );
    let config = dir.write("logrotate.conf", &text);
    let done = || files(dir.path(), "numbered.done").len() == 4;
    eventually("workers write", || {
        std::fs::metadata(logs.join("myserver.out"))
            .is_ok_and(|file| file.len() > 0)
            .then_some(())
    });
    let mut count = 0;
    while count < rotations || !done() {
        let run = Run::new("/usr/sbin/logrotate")
            .args(["-f", "-s"])
            .arg(dir.path().join("state"))
            .arg(&config)
            .finish();
        if !postrotate.contains("HUP") {
            assert_eq!((run.status, &*run.err), (0, ""));
        }
        count += 1;
        after(&mut service);
    }
    assert_eq!(service.stop(), 0, "{:?}", service.err());
    (
        found(&files(&logs, "myserver."), total, LENGTH),
        u64::from(count),
    )
}

#[test]
fn the_articles_set_up_loses_nothing() {
    let reopen = format!("{PROGRAM} --ctl DIR/log.sock reopen");
    let (found, count) = article(&reopen, 40, |_| {});
    // Among the lines of four workers there is no order, and spawnwork's events are there too.
    for note in &found.notes {
        assert!(note.contains("Z spawnwork["), "{note}");
    }
    let found = Found {
        disorder: 0,
        notes: Vec::new(),
        ..found
    };
    found.assert_all(LINES);
    assert!(count >= 40);
}

/// With the article's own way to say it, a signal that nobody answers, gzip may read the old file before its
/// last line is there: the page asks for `delaycompress` then. How many lines that costs is printed.
#[test]
fn the_articles_set_up_with_its_plain_hup() {
    let (found, count) = article("kill -HUP $(cat DIR/log.pid)", 40, |_| {});
    println!(
        "plain HUP: {} of {LINES} lines lost in {count} rotations",
        found.lost
    );
    assert_eq!(found.twice, 0);
    assert_eq!(found.lines + found.lost, LINES);
    // Not more than are written while gzip starts, each time.
    assert!(found.lost < LINES / 100, "{found:?}");
}
