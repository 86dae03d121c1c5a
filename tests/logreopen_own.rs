//! Own rotation: --max-size, --keep, --on-rotate.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::logs::{files, found, numbers, report};
use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");

fn logreopen(dir: &Dir, args: &[&str]) -> Run {
    Run::new(PROGRAM).args(args).dir(dir.path())
}

/// Numbered lines of 100 bytes, until TERM.
fn service(dir: &Dir, args: &[&str], of: [&str; 4]) -> Running {
    let numbers = numbers(dir);
    let mut service = logreopen(dir, args)
        .arg("--")
        .arg(&numbers)
        .args(of)
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .start();
    service.event("command-started");
    service
}

fn names(dir: &Dir, prefix: &str) -> Vec<String> {
    files(dir.path(), prefix)
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn files_stay_below_the_size_and_nothing_is_lost() {
    let dir = Dir::new();
    let mut service = service(
        &dir,
        &["--max-size", "100K", "--keep", "1000", "-l", "out"],
        ["50000", "100", "1000", "200"],
    );
    eventually("all is written", || report(&dir.path().join("report")));
    assert_eq!(service.stop(), 0);
    let all = files(dir.path(), "out");
    assert!(all.len() > 48, "{}", all.len());
    for file in &all {
        assert!(
            std::fs::metadata(file).unwrap().len() <= 100 << 10,
            "{file:?}"
        );
    }
    found(&all, 50_000, 100).assert_all(50_000);
}

#[test]
fn only_so_many_are_kept() {
    let dir = Dir::new();
    let mut service = service(
        &dir,
        &["--max-size", "10K", "--keep", "3", "-l", "out"],
        ["5000", "100", "1000", "200"],
    );
    eventually("all is written", || report(&dir.path().join("report")));
    assert_eq!(service.stop(), 0);
    assert_eq!(names(&dir, "out"), ["out", "out.1", "out.2", "out.3"]);
    // The newest lines are there.
    let found = found(&files(dir.path(), "out"), 5000, 100);
    assert_eq!((found.torn, found.twice), (0, 0));
    assert!(found.lines > 300, "{found:?}");
}

// Edge case 36.
#[test]
fn with_gzip_after_each_rotation_and_gaps() {
    let dir = Dir::new();
    let options = [
        "--max-size",
        "50K",
        "--keep",
        "1000",
        "--on-rotate",
        "gzip \"$LOGREOPEN_FILE\"",
        "-l",
        "out",
        "--control",
        "s",
    ];
    let mut service = service(&dir, &options, ["30000", "100", "1000", "100"]);
    eventually("some are there", || {
        dir.path().join("out.5.gz").exists().then_some(())
    });
    // A gap: what is behind it stays where it is, until the gap is filled.
    std::fs::rename(dir.path().join("out.3.gz"), dir.path().join("aside.gz")).unwrap();
    eventually("all is written", || report(&dir.path().join("report")));
    assert_eq!(service.stop(), 0, "{:?}", service.err());
    let mut all = files(dir.path(), "out");
    all.push(dir.path().join("aside.gz"));
    found(&all, 30_000, 100).assert_all(30_000);
    assert!(
        all.iter()
            .filter(|file| file.extension().is_some_and(|end| end == "gz"))
            .count()
            > 6
    );
    assert!(
        !service.err().join("\n").contains("action-failed"),
        "{:?}",
        service.err()
    );
}

// Edge case 34.
#[test]
fn a_second_one_that_rotates_or_writes_is_refused() {
    let dir = Dir::new();
    let mut first = logreopen(
        &dir,
        &["--max-size", "1M", "-l", "out", "--", "sleep", "1000"],
    )
    .start();
    first.event("command-started");
    let second = logreopen(&dir, &["--max-size", "1M", "-l", "out", "--", "true"]).finish();
    assert_eq!(second.status, 125);
    assert!(
        second
            .err
            .contains("cannot open out: another program writes it"),
        "{}",
        second.err
    );
    assert_eq!(first.stop(), 143);
    // One that only writes would not see the rotation of the other in time.
    let mut first = logreopen(&dir, &["-l", "out", "--", "sleep", "1000"]).start();
    first.event("command-started");
    let second = logreopen(&dir, &["--max-size", "1M", "-l", "out", "--", "true"]).finish();
    assert_eq!(second.status, 125);
    assert_eq!(first.stop(), 143);
}

// Edge case 35: logrotate, or somebody, renames too.
#[test]
fn somebody_else_rotates_too() {
    let dir = Dir::new();
    let mut service = service(
        &dir,
        &["--max-size", "20K", "--keep", "1000", "-l", "out"],
        ["20000", "100", "1000", "50"],
    );
    let mut count = 0;
    while report(&dir.path().join("report")).is_none() {
        let old = dir.path().join(format!("out.by-hand-{count}"));
        if std::fs::rename(dir.path().join("out"), old).is_ok() {
            count += 1;
        }
        service.signal(Signal::SIGHUP);
        eventually("there is a file again", || {
            dir.path().join("out").exists().then_some(())
        });
    }
    assert_eq!(service.stop(), 0);
    assert!(count > 10, "{count}");
    found(&files(dir.path(), "out"), 20_000, 100).assert_all(20_000);
}

// Edge case 35: what stands there is not overwritten.
#[test]
fn a_name_that_exists_is_never_overwritten() {
    let dir = Dir::new();
    dir.write("out.1", "somebody's\n");
    dir.write("out.20260101", "logrotate's\n");
    dir.write("out.2.keep", "also somebody's\n");
    let mut service = logreopen(
        &dir,
        &[
            "--max-size",
            "1M",
            "-l",
            "out",
            "--control",
            "s",
            "--",
            "sh",
            "-c",
            "echo line; exec sleep 1000",
        ],
    )
    .start();
    service.event("command-started");
    eventually("it has written", || {
        (std::fs::read_to_string(dir.path().join("out")).unwrap() == "line\n").then_some(())
    });
    let asked = logreopen(&dir, &["--ctl", "s", "rotate"]).finish();
    assert_eq!(
        (asked.status, &*asked.out),
        (0, "out rotated to ./out.1\n"),
        "{}",
        asked.err
    );
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(text("out.1"), "line\n");
    assert_eq!(text("out.2"), "somebody's\n");
    assert_eq!(text("out.3.keep"), "also somebody's\n");
    assert_eq!(text("out.20260101"), "logrotate's\n");
    // An empty file is not rotated.
    let asked = logreopen(&dir, &["--ctl", "s", "rotate"]).finish();
    assert_eq!(
        (asked.status, &*asked.out),
        (0, "out unchanged\n"),
        "{}",
        asked.err
    );
    assert_eq!(service.stop(), 143);
}

// Edge case 37.
#[test]
fn a_rotation_that_fails_goes_on_in_the_same_file_and_is_said_once() {
    kit::mount::need_root();
    let dir = Dir::new();
    // After the drop the directory cannot be written.
    let mut service = service(
        &dir,
        &["-u", "nobody", "--max-size", "10K", "-l", "out"],
        ["5000", "100", "1000", "20"],
    );
    service.event("rotate-failed");
    eventually("all is written", || {
        std::fs::metadata(dir.path().join("out"))
            .is_ok_and(|file| file.len() == 500_000)
            .then_some(())
    });
    assert_eq!(service.stop(), 0);
    found(&[dir.path().join("out")], 5000, 100).assert_all(5000);
    let said = service
        .err()
        .iter()
        .filter(|line| line.contains("rotate-failed"))
        .count();
    assert_eq!(said, 1);
}

#[test]
fn an_action_that_fails_or_hangs_is_reported_and_ends_nothing() {
    let dir = Dir::new();
    for (command, error) in [("exit 3", "status 3"), ("sleep 1000", "signal TERM")] {
        let mut service = logreopen(
            &dir,
            &[
                "--max-size",
                "1M",
                "--on-rotate",
                command,
                "--action-timeout",
                "300ms",
            ],
        )
        .args([
            "-l",
            "out",
            "--control",
            "s",
            "--",
            "sh",
            "-c",
            "echo line; exec sleep 1000",
        ])
        .start();
        service.event("command-started");
        eventually("it has written", || {
            std::fs::metadata(dir.path().join("out"))
                .is_ok_and(|file| file.len() > 0)
                .then_some(())
        });
        let asked = logreopen(&dir, &["--ctl", "s", "rotate"]).finish();
        assert_eq!(asked.status, 0, "{}", asked.err);
        service.event_with("action-failed", error);
        assert_eq!(service.stop(), 143);
    }
}

#[test]
fn a_line_longer_than_a_file_may_be_has_one_of_its_own() {
    let dir = Dir::new();
    let script = "echo short; printf '%0500d\\n' 7; echo short";
    let run = logreopen(
        &dir,
        &["--max-size", "100", "-l", "out", "--", "sh", "-c", script],
    )
    .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(
        (text("out"), text("out.2")),
        ("short\n".into(), "short\n".into())
    );
    assert_eq!(text("out.1").len(), 501);
}
