//! What counts as a touch and what does not, on each local file system: exactly the right number of fires.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::mount::Mounted;
use kit::touch::{Lines, ago, touch, touch_at};
use kit::{Dir, Run, eventually};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");

/// What is done in a directory where `f` and `current -> one` stand, which file is watched, and the fires.
type Row = (
    &'static str,
    &'static str,
    fn(&Path),
    &'static [&'static str],
);

fn nothing(_: &Path) {}

fn replace(at: &Path) {
    fs::write(at.join("new"), "x").unwrap();
    fs::rename(at.join("new"), at.join("f")).unwrap();
}

fn switch(at: &Path, to: &str) {
    symlink(to, at.join("link")).unwrap();
    fs::rename(at.join("link"), at.join("current")).unwrap();
}

fn shell(at: &Path, script: &str) {
    let run = Run::new("sh").args(["-c", script]).dir(at).finish();
    assert_eq!(run.status, 0, "{script}: {}", run.err);
}

/// The columns of the matrix, and what else is not or is a touch.
const ROWS: &[Row] = &[
    ("nothing", "f", nothing, &[]),
    ("utime", "f", |at| touch(at.join("f")), &["touched"]),
    (
        "the modification time alone",
        "f",
        |at| {
            let file = fs::File::open(at.join("f")).unwrap();
            file.set_modified(ago(100)).unwrap();
        },
        &["touched"],
    ),
    // Edge case 8.
    (
        "an older time",
        "f",
        |at| touch_at(at.join("f"), ago(100_000)),
        &["touched"],
    ),
    ("touch(1)", "f", |at| shell(at, "touch f"), &["touched"]),
    (
        "written",
        "f",
        |at| fs::write(at.join("f"), "more").unwrap(),
        &["touched"],
    ),
    (
        "appended",
        "f",
        |at| {
            let mut file = OpenOptions::new().append(true).open(at.join("f")).unwrap();
            file.write_all(b"x").unwrap();
        },
        &["touched"],
    ),
    // Edge case 9.
    (
        "chmod",
        "f",
        |at| {
            fs::set_permissions(at.join("f"), PermissionsExt::from_mode(0o600)).unwrap();
        },
        &[],
    ),
    (
        "chown",
        "f",
        |at| std::os::unix::fs::chown(at.join("f"), Some(1), Some(1)).unwrap(),
        &[],
    ),
    (
        "the same time again",
        "f",
        |at| {
            let time = fs::metadata(at.join("f")).unwrap().modified().unwrap();
            touch_at(at.join("f"), time);
        },
        &[],
    ),
    ("touch -a", "f", |at| shell(at, "touch -a f"), &[]),
    ("read", "f", |at| drop(fs::read(at.join("f")).unwrap()), &[]),
    (
        "one link more",
        "f",
        |at| fs::hard_link(at.join("f"), at.join("g")).unwrap(),
        &[],
    ),
    // Edge case 10.
    (
        "opened for writing and closed",
        "f",
        |at| {
            drop(OpenOptions::new().append(true).open(at.join("f")).unwrap());
        },
        &[],
    ),
    // Edge case 6.
    ("replaced by rename", "f", replace, &["replaced"]),
    (
        "replaced with the same time and size",
        "f",
        |at| shell(at, "cp -p f new && mv new f"),
        &["replaced"],
    ),
    (
        "sed -i",
        "f",
        |at| shell(at, "sed -i s/x/y/ f"),
        &["replaced"],
    ),
    (
        "ln -f",
        "f",
        |at| shell(at, "echo > o && ln -f o f"),
        &["replaced"],
    ),
    // Edge case 5.
    (
        "removed",
        "f",
        |at| fs::remove_file(at.join("f")).unwrap(),
        &[],
    ),
    (
        "moved away",
        "f",
        |at| fs::rename(at.join("f"), at.join("g")).unwrap(),
        &[],
    ),
    (
        "moved away and back",
        "f",
        |at| {
            fs::rename(at.join("f"), at.join("g")).unwrap();
            fs::rename(at.join("g"), at.join("f")).unwrap();
        },
        &[],
    ),
    // Edge case 7: the same number on ext4, at once.
    (
        "removed and made again",
        "f",
        |at| {
            fs::remove_file(at.join("f")).unwrap();
            fs::write(at.join("f"), "x").unwrap();
        },
        &["replaced"],
    ),
    // Edge case 2.
    (
        "made",
        "missing",
        |at| touch(at.join("missing")),
        &["created"],
    ),
    // Edge case 3.
    (
        "a directory made later",
        "a/b/c",
        |at| {
            fs::create_dir_all(at.join("a/b")).unwrap();
            touch(at.join("a/b/c"));
        },
        &["created"],
    ),
    // Edge case 14.
    (
        "a link on the way switched",
        "current/f",
        |at| switch(at, "two"),
        &["replaced"],
    ),
    // Edge case 16.
    (
        "switched and back",
        "current/f",
        |at| {
            switch(at, "two");
            switch(at, "one");
        },
        &[],
    ),
    (
        "touched behind the link",
        "current/f",
        |at| touch(at.join("one/f")),
        &["touched"],
    ),
    // Edge case 15.
    (
        "a dangling link gets its target",
        "dangling",
        |at| touch(at.join("target")),
        &["created"],
    ),
    // Edge case 17: as a ConfigMap is updated.
    (
        "..data is swapped",
        "map/key",
        |at| {
            fs::create_dir(at.join("map/..2")).unwrap();
            fs::write(at.join("map/..2/key"), "2").unwrap();
            symlink("..2", at.join("map/..data_tmp")).unwrap();
            fs::rename(at.join("map/..data_tmp"), at.join("map/..data")).unwrap();
            fs::remove_dir_all(at.join("map/..1")).unwrap();
        },
        &["replaced"],
    ),
    // Edge case 4.
    (
        "a directory made anew",
        "one/f",
        |at| {
            fs::rename(at.join("one"), at.join("old")).unwrap();
            fs::create_dir(at.join("one")).unwrap();
            touch(at.join("one/f"));
        },
        &["replaced"],
    ),
    (
        "touched in a directory of the same name that was removed",
        "one/f",
        |at| {
            fs::remove_dir_all(at.join("one")).unwrap();
            fs::create_dir(at.join("one")).unwrap();
            fs::write(at.join("one/f"), "x").unwrap();
        },
        &["replaced"],
    ),
    // Edge case 36.
    (
        "a directory gets a name",
        "one",
        |at| touch(at.join("one/new")),
        &["touched"],
    ),
    // Edge case 18.
    (
        "a loop",
        "f",
        |at| {
            fs::remove_file(at.join("f")).unwrap();
            symlink("f", at.join("f")).unwrap();
        },
        &[],
    ),
];

fn make(at: &Path) {
    fs::create_dir_all(at.join("one")).unwrap();
    fs::create_dir_all(at.join("two")).unwrap();
    fs::create_dir_all(at.join("map/..1")).unwrap();
    for name in ["f", "one/f", "two/f", "map/..1/key"] {
        fs::write(at.join(name), "x").unwrap();
        touch_at(at.join(name), ago(50));
    }
    symlink("one", at.join("current")).unwrap();
    symlink("target", at.join("dangling")).unwrap();
    symlink("..1", at.join("map/..data")).unwrap();
    symlink("..data/key", at.join("map/key")).unwrap();
}

fn matrix(on: &Path, more: &[&str]) {
    for (index, (what, file, action, kinds)) in ROWS.iter().enumerate() {
        let at = on.join(index.to_string());
        make(&at);
        let run = Run::new(PROGRAM)
            .arg(at.join(file))
            .args(["--min-gap", "0", "--settle", "30ms", "--safety", "0"])
            .args(more);
        let end = on.join(format!("{index}.end"));
        touch(&end);
        let mut lines = Lines::start(run, &end);
        action(&at);
        let name = format!("/{index}/{file}");
        let seen = lines.exactly(&name, kinds.len());
        assert_eq!(seen, *kinds, "{what}: {:?}", lines.running.err());
        // And it is not blind for what comes after.
        if *what == "a loop" {
            fs::remove_file(at.join("f")).unwrap();
        }
        if let Some(directory) = at.join(file).parent() {
            fs::create_dir_all(directory).unwrap();
        }
        touch(at.join(file));
        lines.exactly(&name, kinds.len() + 1);
        assert_eq!(lines.running.stop(), 0);
    }
}

#[test]
fn on_ext4() {
    matrix(Mounted::ext4().path(), &[]);
}

#[test]
fn on_tmpfs() {
    matrix(Mounted::tmpfs(64 << 20).path(), &[]);
}

#[test]
fn on_overlay() {
    matrix(Mounted::overlay().path(), &[]);
}

#[test]
fn by_polling() {
    matrix(Mounted::ext4().path(), &["--poll", "--interval", "10ms"]);
}

// Edge case 42.
#[test]
fn an_overlay_changed_in_its_layer_is_seen() {
    let overlay = Mounted::overlay();
    let file = overlay.path().join("f");
    fs::write(&file, "x").unwrap();
    let end = overlay.path().join("end");
    let mut lines = Lines::start(Run::new(PROGRAM).arg(&file).args(["--min-gap", "0"]), &end);
    touch_at(overlay.below().join("f"), ago(9));
    lines.exactly("/f", 1);
}

#[test]
fn what_else_counts_when_asked_for() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    let run = Run::new(PROGRAM).arg(&file).args([
        "--on",
        "remove,attr",
        "--min-gap",
        "0",
        "--settle",
        "30ms",
        "--safety",
        "0",
    ]);
    let mut lines = Lines::start(run, &dir.path().join("end"));
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    lines.exactly("/f", 1);
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    touch_at(&file, time);
    lines.exactly("/f", 2);
    fs::remove_file(&file).unwrap();
    lines.exactly("/f", 3);
    touch(&file);
    assert_eq!(
        lines.exactly("/f", 4),
        ["attr", "attr", "removed", "created"]
    );
}

// Edge case 5.
#[test]
fn what_was_gone_for_a_while_is_created() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    let run =
        Run::new(PROGRAM)
            .arg(&file)
            .args(["--min-gap", "0", "--settle", "30ms", "--safety", "0"]);
    let mut lines = Lines::start(run, &dir.path().join("end"));
    fs::rename(&file, dir.path().join("g")).unwrap();
    lines.exactly("/f", 0);
    fs::rename(dir.path().join("g"), &file).unwrap();
    assert_eq!(lines.exactly("/f", 1), ["created"]);
}

// Edge case 13.
#[test]
fn a_write_through_a_mapping_is_seen_by_the_look_for_safety() {
    let dir = Dir::new();
    let file = dir.write("f", &"x".repeat(4096));
    let start = |safety: &str| {
        let run = Run::new(PROGRAM)
            .arg(&file)
            .args(["--min-gap", "0", "--safety", safety]);
        Lines::start(run, &dir.path().join("end"))
    };
    let (mut lines, mut without) = (start("100ms"), start("0"));
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[0:1]=b'y'\nm.flush()\nprint('done',flush=True)\nsys.stdin.read()";
    let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let python = Run::new("python3")
        .args(["-c", script])
        .arg(&file)
        .stdin(_reader)
        .start();
    eventually("the write", || python.out().contains("done").then_some(()));
    lines.exactly("/f", 1);
    without.exactly("/f", 0);
    // inotify tells of its end.
    drop(writer);
    without.exactly("/f", 1);
    lines.exactly("/f", 1);
}

// Edge case 40.
#[test]
fn what_is_mounted_over_it_is_seen_and_a_mount_alone_is_no_touch() {
    kit::mount::need_root();
    let mounted = Mounted::tmpfs(16 << 20);
    let point = mounted.path().join("point");
    fs::create_dir(&point).unwrap();
    fs::write(point.join("f"), "x").unwrap();
    let run = Run::new(PROGRAM)
        .arg(point.join("f"))
        .args(["--min-gap", "0", "--safety", "50ms"]);
    let mut lines = Lines::start(run, &mounted.path().join("end"));
    let other = mounted.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("f"), "y").unwrap();
    let mount = |words: &[&str]| {
        let run = Run::new(words[0]).args(&words[1..]).finish();
        assert_eq!(run.status, 0, "{}", run.err);
    };
    let point_text = point.to_str().unwrap();
    mount(&["mount", "-t", "tmpfs", "none", point_text]);
    lines.exactly("/point/f", 0);
    // Made in what is mounted there now: a touch, and inotify is at it.
    fs::write(point.join("f"), "z").unwrap();
    lines.exactly("/point/f", 1);
    mount(&["umount", point_text]);
    lines.exactly("/point/f", 2);
    fs::write(point.join("f"), "w").unwrap();
    lines.exactly("/point/f", 3);
}

// Edge case 24.
#[test]
fn a_file_system_mounted_after_the_start_is_no_touch() {
    kit::mount::need_root();
    let (image, place) = (Mounted::tmpfs(16 << 20), Dir::new());
    fs::write(image.path().join("f"), "x").unwrap();
    let point = place.path().join("point");
    fs::create_dir(&point).unwrap();
    let run =
        Run::new(PROGRAM)
            .arg(point.join("f"))
            .args(["--min-gap", "0", "--safety", "50ms", "-v"]);
    let mut lines = Lines::start(run, &place.path().join("end"));
    let mount = |words: &[&str]| {
        let run = Run::new(words[0]).args(&words[1..]).finish();
        assert_eq!(run.status, 0, "{}", run.err);
    };
    let (from, to) = (image.path().to_str().unwrap(), point.to_str().unwrap());
    mount(&["mount", "--bind", from, to]);
    lines.exactly("/point/f", 0);
    for count in 1..=2 {
        touch(point.join("f"));
        lines.exactly("/point/f", count);
    }
    // Away, touched meanwhile, and back.
    mount(&["umount", to]);
    lines.exactly("/point/f", 2);
    touch(image.path().join("f"));
    mount(&["mount", "--bind", from, to]);
    lines.exactly("/point/f", 3);
    // Away and back as it was.
    mount(&["umount", to]);
    lines.exactly("/point/f", 3);
    mount(&["mount", "--bind", from, to]);
    lines.exactly("/point/f", 3);
    mount(&["umount", to]);
}

#[test]
fn a_thousand_touches_at_random_gaps_are_seen_once_each() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    let mut lines = Lines::start(
        Run::new(PROGRAM).arg(&file).args([
            "--min-gap",
            "0",
            "--settle",
            "0",
            "--format",
            "json",
            "--safety",
            "0",
        ]),
        &dir.path().join("end"),
    );
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let mut last = 0;
    for touches in 1..=1000_u64 {
        // Each has a time of its own, which its line names.
        last = 1_000_000 + touches;
        touch_at(
            &file,
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(last),
        );
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Up to 4 ms; every fourth has its line before the next one comes.
        let until = std::time::Instant::now() + std::time::Duration::from_micros(random % 4000);
        while std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        if touches % 4 == 0 {
            let wanted = format!("\"mtime\":{last}.");
            eventually(&wanted, || {
                lines.running.out().ends_with_line(&wanted).then_some(())
            });
        }
    }
    let out = lines.running.out();
    let times: Vec<u64> = out
        .lines()
        .filter_map(|line| {
            line.split("\"mtime\":")
                .nth(1)?
                .split('.')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    // None twice, in order, the last one too, and not merged more than the gaps did.
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    assert_eq!(times.last(), Some(&last));
    assert!(times.len() >= 250, "{}", times.len());
    assert_eq!(lines.running.stop(), 0);
}

trait LastLine {
    fn ends_with_line(&self, part: &str) -> bool;
}

impl LastLine for String {
    fn ends_with_line(&self, part: &str) -> bool {
        self.lines().last().is_some_and(|line| line.contains(part))
    }
}

/// What is touched is told once, and nothing of what the link does not lead to any more, or not yet.
#[test]
fn links_switched_and_files_touched_in_any_order_tell_the_truth() {
    let dir = Dir::new();
    make(dir.path());
    let at = |name: &str| dir.path().join(name);
    let mut lines = Lines::start(
        Run::new(PROGRAM)
            .arg(at("current/f"))
            .args(["--min-gap", "0", "--settle", "0", "--safety", "0"])
            .args(["--format", "json"]),
        &at("end"),
    );
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let names = ["one", "two"];
    let (mut current, mut times) = (0, [0_u64; 2]);
    // Each file has a time of its own that no other has had.
    for (time, name) in (1..).zip(names) {
        times[time - 1] = time as u64;
        let time = std::time::Duration::from_secs(time as u64);
        touch_at(at(name).join("f"), std::time::UNIX_EPOCH + time);
    }
    let mut led_to = std::collections::HashSet::from([times[0]]);
    let wanted = |time: u64| format!("\"mtime\":{time}.");
    // A look goes step by step, as the kernel's own does: it may be at the file when the link is switched, and
    // see what is done to that just after. When the switch has been told, there is no such look.
    let mut told = true;
    for time in 10..1500_u64 {
        match next(4) {
            0 => {
                current = 1 - current;
                switch(dir.path(), names[current]);
                told = false;
            }
            way => {
                let which = if way == 1 { 1 - current } else { current };
                times[which] = time;
                let time = std::time::Duration::from_secs(time);
                touch_at(at(names[which]).join("f"), std::time::UNIX_EPOCH + time);
            }
        }
        led_to.insert(times[current]);
        if !told {
            led_to.insert(times[1 - current]);
        }
        let until = std::time::Instant::now() + std::time::Duration::from_micros(next(600));
        while std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        if next(8) == 0 {
            let wanted = wanted(times[current]);
            eventually(&wanted, || {
                lines.running.out().ends_with_line(&wanted).then_some(())
            });
            told = true;
        }
    }
    let wanted = wanted(times[current]);
    eventually(&wanted, || {
        lines.running.out().ends_with_line(&wanted).then_some(())
    });
    for line in lines.running.out().lines() {
        let time = line.split("\"mtime\":").nth(1).unwrap();
        let time: u64 = time.split('.').next().unwrap().parse().unwrap();
        assert!(led_to.contains(&time), "{line}");
    }
    assert_eq!(lines.running.stop(), 0);
}

/// What the loop saw by itself is not what the look before it has seen.
#[test]
fn touched_and_touched_back_while_the_way_changes_is_told() {
    let dir = Dir::new();
    make(dir.path());
    let at = |name: &str| dir.path().join(name);
    let (first, file) = (ago(500), at("one/f"));
    touch_at(&file, first);
    let run = Run::new(PROGRAM).arg(at("current/f")).args([
        "--min-gap",
        "0",
        "--settle",
        "0",
        "--safety",
        "0",
    ]);
    let mut lines = Lines::start(run, &at("end"));
    for count in [1, 3, 5] {
        touch_at(&file, ago(400 - count as u64));
        lines.exactly("current/f", count);
        lines.running.signal(nix::sys::signal::Signal::SIGSTOP);
        touch_at(&file, first);
        switch(dir.path(), "two");
        switch(dir.path(), "one");
        lines.running.signal(nix::sys::signal::Signal::SIGCONT);
        lines.exactly("current/f", count + 1);
    }
    assert_eq!(lines.running.stop(), 0);
}
