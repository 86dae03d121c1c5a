//! The wrapped command and the filter: every byte arrives, in whole lines; what is typed wrongly is refused.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::logs::{found, numbers};
use kit::{Dir, Finished, Run, Running, app, eventually, field};
use nix::sys::signal::Signal;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");

fn logreopen(dir: &Dir, args: &[&str]) -> Run {
    Run::new(PROGRAM).args(args).dir(dir.path())
}

fn read(dir: &Dir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap_or_default()
}

fn pipe() -> (std::fs::File, std::fs::File) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

/// A filter with a pipe into it.
fn filter(dir: &Dir, args: &[&str]) -> (Running, std::fs::File) {
    let (reader, writer) = pipe();
    let mut filter = logreopen(dir, args).stdin(reader).start();
    filter.event("output-opened");
    (filter, writer)
}

fn holds(dir: &Dir, name: &str, text: &str) {
    eventually(&format!("{text:?} in {name}"), || {
        (read(dir, name) == text).then_some(())
    });
}

#[test]
fn the_two_streams_of_a_command_and_its_status() {
    let dir = Dir::new();
    let script = "echo out; echo err >&2; exit 7";
    let run = logreopen(&dir, &["-l", "out", "-e", "err", "--", "sh", "-c", script]).finish();
    assert_eq!(run.status, 7);
    assert_eq!(
        (read(&dir, "out"), read(&dir, "err")),
        ("out\n".into(), "err\n".into())
    );
    assert_eq!(run.out, "");
    assert!(run.err.contains("command-exited status=7"), "{}", run.err);
}

// Edge case 32.
#[test]
fn a_stream_that_is_not_named_passes_untouched() {
    let dir = Dir::new();
    let script = "echo out; echo err >&2; readlink /proc/self/fd/1 /proc/self/fd/2 > links";
    let run = logreopen(&dir, &["-q", "-l", "out", "--", "sh", "-c", script]).finish();
    assert_eq!((&*run.out, &*run.err), ("", "err\n"));
    let run = logreopen(&dir, &["-q", "-e", "err", "--", "sh", "-c", script]).finish();
    assert_eq!((&*run.out, &*run.err), ("out\n", ""));
    assert_eq!(
        (read(&dir, "out"), read(&dir, "err")),
        ("out\n".into(), "err\n".into())
    );
}

#[test]
fn a_filter_passes_everything_and_ends_with_its_input() {
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let (reader, writer) = pipe();
    let mut source = Run::new(numbers)
        .args(["200000", "100", "0", "0"])
        .env("NUMBERS_END", "1")
        .stdout(writer)
        .start();
    let run = logreopen(&dir, &["app.log"]).stdin(reader).finish();
    assert_eq!((run.status, source.end()), (0, 0), "{}", run.err);
    found(&[dir.path().join("app.log")], 200_000, 100).assert_all(200_000);
}

#[test]
fn a_filter_reads_from_a_file_and_from_nothing() {
    let dir = Dir::new();
    let text = "line\n".repeat(100_000);
    let source = dir.write("source", &text);
    let run = logreopen(&dir, &["app.log"])
        .stdin(std::fs::File::open(source).unwrap())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    assert_eq!(read(&dir, "app.log"), text);
    // /dev/null
    assert_eq!(logreopen(&dir, &["empty.log"]).finish().status, 0);
    assert_eq!(read(&dir, "empty.log"), "");
}

// A burst before process.exit, which `cat` gets 4,769 lines of.
#[test]
fn a_burst_before_the_end_arrives_whole() {
    let dir = Dir::new();
    for count in [5_000, 20_000, 100_000] {
        let name = format!("err.{count}");
        let run = logreopen(&dir, &["-e", &name, "--", "node"])
            .args([app("burst.js")])
            .arg(count.to_string())
            .finish();
        assert_eq!(run.status, 1);
        let text = read(&dir, &name);
        let expected: String = (1..=count).map(|n| format!("burst {n}\n")).collect();
        assert!(text == expected, "{} of {count}", text.lines().count());
    }
}

#[test]
fn lines_of_four_workers_are_whole_while_files_change() {
    let dir = Dir::new();
    let spawnwork = kit::sibling(PROGRAM, "spawnwork");
    for (length, count) in [(100, 20_000), (5_000, 2_000), (100_000, 100)] {
        let name = format!("out.{length}.");
        let current = format!("{name}0");
        let mut service = logreopen(
            &dir,
            &["-l", &current, "-e", &current, "--control", "s", "--"],
        )
        .arg(&spawnwork)
        .args(["-n", "4", "--", "node"])
        .args([app("talk.js")])
        .args([length.to_string(), count.to_string()])
        .env("PORT", kit::free_port().to_string())
        .start();
        service.event("command-started");
        let total = (4 * count * (length + 1)) as u64;
        let mut number = 0;
        eventually("all lines came", || {
            number += 1;
            let old = format!("{name}{number}");
            std::fs::rename(dir.path().join(&current), dir.path().join(old)).unwrap();
            let asked = logreopen(&dir, &["--ctl", "s", "reopen"]).finish();
            assert_eq!(asked.status, 0, "{}", asked.err);
            let size: u64 = kit::logs::files(dir.path(), &name)
                .iter()
                .map(|file| std::fs::metadata(file).unwrap().len())
                .sum();
            (size >= total).then_some(())
        });
        assert_eq!(service.stop(), 0);
        let mut lines = std::collections::BTreeMap::new();
        for file in kit::logs::files(dir.path(), &name) {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'));
            for line in text.lines().filter(|line| !line.contains("Z spawnwork[")) {
                assert_eq!(line.len(), length, "torn: {line:.60}");
                let mark = &line[..9];
                assert!(line.ends_with(mark), "torn: {mark}");
                *lines.entry(mark.to_owned()).or_insert(0) += 1;
            }
        }
        assert_eq!(lines.len(), 4 * count);
        assert!(
            lines.values().all(|times| *times == 1),
            "a line is there twice"
        );
    }
}

// Edge case 1: its end comes in time.
#[test]
fn a_hup_within_a_line_waits_for_its_end() {
    let dir = Dir::new();
    let (mut filter, mut writer) = filter(&dir, &["--control", "s", "app.log"]);
    writer.write_all(b"one\nha").unwrap();
    holds(&dir, "app.log", "one\n");
    std::fs::rename(dir.path().join("app.log"), dir.path().join("app.log.1")).unwrap();
    filter.signal(Signal::SIGHUP);
    // It is known to have been taken up when the status says so.
    let status = logreopen(&dir, &["--ctl", "s", "status"]).finish();
    assert_eq!(status.status, 0);
    writer.write_all(b"lf\n").unwrap();
    let reopened = filter.event("output-reopened");
    assert_eq!(field(&reopened, "lines"), "2");
    writer.write_all(b"two\n").unwrap();
    drop(writer);
    assert_eq!(filter.end(), 0);
    assert_eq!(read(&dir, "app.log.1"), "one\nhalf\n");
    assert_eq!(read(&dir, "app.log"), "two\n");
    assert!(!filter.err().join("\n").contains("line-split"));
}

// Edge case 1: its end does not come.
#[test]
fn a_line_whose_end_does_not_come_is_cut_after_a_second_and_that_is_said() {
    let dir = Dir::new();
    let (mut filter, mut writer) = filter(&dir, &["app.log"]);
    writer.write_all(b"connecting ... ").unwrap();
    // The beginning is shown, for whoever looks why nothing goes on.
    holds(&dir, "app.log", "connecting ... ");
    std::fs::rename(dir.path().join("app.log"), dir.path().join("app.log.1")).unwrap();
    filter.signal(Signal::SIGHUP);
    filter.event("line-split");
    filter.event("output-reopened");
    writer.write_all(b"done\n").unwrap();
    drop(writer);
    assert_eq!(filter.end(), 0);
    assert_eq!(read(&dir, "app.log.1"), "connecting ... \n");
    assert_eq!(read(&dir, "app.log"), "done\n");
}

// Edge case 4: the signal is pending when we start.
#[test]
fn a_hup_before_the_files_are_open_is_one_reopen() {
    let dir = Dir::new();
    let script = "kill -HUP $$; kill -HUP $$; exec \"$@\"";
    let run = Run::new("env")
        .args(["--block-signal=HUP", "sh", "-c", script, "sh", PROGRAM])
        .args(["-v", "-l", "out", "--", "sh", "-c", "sleep 0.3; echo out"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    assert_eq!(
        run.err.matches("output-unchanged").count(),
        1,
        "{}",
        run.err
    );
    assert_eq!(read(&dir, "out"), "out\n");
}

// Edge cases 14 and 15.
#[test]
fn newlines_at_the_beginning_and_the_end_of_a_file() {
    let dir = Dir::new();
    dir.write("app.log", "crashed in the mid");
    let (mut filter, mut writer) = filter(&dir, &["app.log"]);
    assert_eq!(
        read(&dir, "app.log"),
        "crashed in the mid",
        "not before there is a line"
    );
    writer.write_all(b"new\nlast words").unwrap();
    drop(writer);
    assert_eq!(filter.end(), 0);
    assert_eq!(
        read(&dir, "app.log"),
        "crashed in the mid\nnew\nlast words\n"
    );
}

// Edge cases 16 and 17.
#[test]
fn binary_without_a_newline_passes_byte_for_byte_and_long_lines_are_not_split() {
    let dir = Dir::new();
    let (mut filter, mut writer) = filter(&dir, &["app.log"]);
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .map(|byte| if byte == b'\n' { 0 } else { byte })
        .collect();
    writer.write_all(&bytes[..1_000_000]).unwrap();
    // More than a buffer of it has been written, so a rotation falls into the line.
    eventually("a part is there", || {
        (read_bytes(&dir, "app.log").len() >= 512 << 10).then_some(())
    });
    std::fs::rename(dir.path().join("app.log"), dir.path().join("app.log.1")).unwrap();
    filter.signal(Signal::SIGHUP);
    writer.write_all(&bytes[1_000_000..]).unwrap();
    writer.write_all(b"\nnext\n").unwrap();
    filter.event("output-reopened");
    drop(writer);
    assert_eq!(filter.end(), 0);
    let first = read_bytes(&dir, "app.log.1");
    assert!(first[..3_000_000] == bytes && first[3_000_000] == b'\n');
    // What follows the long line may be in either, whole.
    let rest = [&first[3_000_001..], &read_bytes(&dir, "app.log")].concat();
    assert_eq!(rest, b"next\n");
    assert!(!filter.err().join("\n").contains("line-split"));
}

fn read_bytes(dir: &Dir, name: &str) -> Vec<u8> {
    std::fs::read(dir.path().join(name)).unwrap_or_default()
}

// Edge case 17: no newline ever.
#[test]
fn zeros_without_end() {
    let dir = Dir::new();
    let run = Run::new("sh")
        .args(["-c", "head -c 5000000 /dev/zero | \"$0\" app.log", PROGRAM])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    let bytes = read_bytes(&dir, "app.log");
    assert_eq!(bytes.len(), 5_000_001);
    assert!(bytes[..5_000_000].iter().all(|byte| *byte == 0));
}

// Edge case 40.
#[test]
fn nothing_in_a_line_or_prefix_is_interpreted() {
    let dir = Dir::new();
    let text = "%s %d %n %% \\n \\0 \u{1b}[31m $HOME `id` {} %p\n";
    let (mut filter, mut writer) = filter(&dir, &["--prefix", "%d \\t{} ", "app.log"]);
    writer.write_all(text.as_bytes()).unwrap();
    drop(writer);
    assert_eq!(filter.end(), 0);
    assert_eq!(read(&dir, "app.log"), format!("%d \\t{{}} {text}"));
}

// Edge case 41.
#[test]
fn stamps_of_three_styles_never_go_back() {
    let dir = Dir::new();
    for (words, pattern) in [
        (
            &["--stamp"][..],
            "^2[0-9-]*T[0-9:]*\\.[0-9][0-9][0-9]Z line [0-9]*$",
        ),
        (
            &["--stamp", "epoch"],
            "^[0-9]*\\.[0-9][0-9][0-9] line [0-9]*$",
        ),
        (
            &["--stamp=tai64n", "--prefix", "x "],
            "^@4[0-9a-f]\\{23\\} x line [0-9]*$",
        ),
    ] {
        let script = "seq -f 'line %g' 1 5000; sleep 0.05; seq -f 'line %g' 5001 10000";
        let run = logreopen(&dir, words)
            .args(["-l", "out", "--", "sh", "-c", script])
            .finish();
        assert_eq!(run.status, 0, "{}", run.err);
        let text = read(&dir, "out");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 10_000);
        let stamps: Vec<&str> = lines
            .iter()
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        assert!(stamps.windows(2).all(|pair| pair[0] <= pair[1]));
        let wrong = Run::new("grep")
            .args(["-c", "-v", pattern, "out"])
            .dir(dir.path())
            .finish();
        assert_eq!(wrong.out, "0\n", "{pattern}");
        std::fs::remove_file(dir.path().join("out")).unwrap();
    }
}

// Edge case 7: twice the same file, by one name or two.
#[test]
fn both_streams_in_one_file_are_whole_lines() {
    for (index, name) in ["out", "./out", "link", "hard"].into_iter().enumerate() {
        let dir = Dir::new();
        dir.write("out", "");
        std::os::unix::fs::symlink("out", dir.path().join("link")).unwrap();
        std::fs::hard_link(dir.path().join("out"), dir.path().join("hard")).unwrap();
        let numbers = numbers(&dir);
        let length = [5000, 6000, 7000, 8000][index];
        let run = logreopen(&dir, &["-l", "out", "-e", name, "--"])
            .arg(numbers)
            .args(["20000", &length.to_string(), "0", "0", "1", "2"])
            .env("NUMBERS_END", "1")
            .finish();
        assert_eq!(run.status, 0, "{}", run.err);
        let mut found = found(&[dir.path().join("out")], 20_000, length);
        // Between the two streams there is no order.
        found.disorder = 0;
        found.assert_all(20_000);
        assert_eq!(run.err.matches("output-opened").count(), 1, "{}", run.err);
    }
}

// Edge case 7, with lines longer than the buffer: while one is open, the other stream waits.
#[test]
fn long_lines_of_two_streams_in_one_file() {
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let run = logreopen(&dir, &["-l", "out", "-e", "out", "--"])
        .arg(numbers)
        .args(["60", "700000", "0", "0", "1", "2"])
        .env("NUMBERS_END", "1")
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    let mut found = found(&[dir.path().join("out")], 60, 700_000);
    found.disorder = 0;
    found.assert_all(60);
}

#[test]
fn tee_shows_it_too() {
    let dir = Dir::new();
    let script = "echo out; echo err >&2";
    let run = logreopen(
        &dir,
        &[
            "-q", "--tee", "-l", "out", "-e", "err", "--", "sh", "-c", script,
        ],
    )
    .finish();
    assert_eq!((&*run.out, &*run.err), ("out\n", "err\n"));
    assert_eq!(
        (read(&dir, "out"), read(&dir, "err")),
        ("out\n".into(), "err\n".into())
    );
    // Into a file.
    let file = std::fs::File::create(dir.path().join("copy")).unwrap();
    let run = logreopen(
        &dir,
        &["-q", "--tee", "-l", "out", "--", "sh", "-c", script],
    )
    .stdout(file)
    .finish();
    assert_eq!((&*run.err, &*read(&dir, "copy")), ("err\n", "out\n"));
}

// Edge case 33.
#[test]
fn tee_to_a_closed_stdout_goes_on_in_the_file() {
    let dir = Dir::new();
    let (reader, writer) = pipe();
    drop(reader);
    let numbers = numbers(&dir);
    let run = logreopen(&dir, &["--tee", "-l", "out", "--"])
        .arg(numbers)
        .args(["10000", "100", "0", "0"])
        .env("NUMBERS_END", "1")
        .stdout(writer)
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    found(&[dir.path().join("out")], 10_000, 100).assert_all(10_000);
    assert!(
        run.err.contains("lines-lost file=- lines=10000"),
        "{}",
        run.err
    );
}

#[test]
fn every_option_has_its_variable_and_the_command_line_wins() {
    let dir = Dir::new();
    let run = Run::new(PROGRAM)
        .args(["--prefix", "line ", "--", "echo", "x"])
        .env("LOGREOPEN_STDOUT", "out")
        .env("LOGREOPEN_PREFIX", "variable ")
        .env("LOGREOPEN_QUIET", "true")
        .env("LOGREOPEN_STAMP", "epoch")
        .dir(dir.path())
        .finish();
    assert_eq!((run.status, &*run.err), (0, ""));
    let text = read(&dir, "out");
    assert!(
        text.ends_with(" line x\n") && text.starts_with('1') || text.starts_with('2'),
        "{text}"
    );
}

// Edge case 13.
#[test]
fn names_of_any_bytes() {
    let dir = Dir::new();
    for name in [
        &b"with space"[..],
        b"new\nline",
        b"\xff\xfe",
        b"-dash",
        b"%d",
    ] {
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        let run = Run::new(PROGRAM)
            .arg("-l")
            .arg(Path::new(".").join(name))
            .args([
                "--control",
                "s",
                "--",
                "sh",
                "-c",
                "echo out; kill -HUP $PPID",
            ])
            .dir(dir.path())
            .finish();
        assert_eq!(run.status, 0, "{}", run.err);
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), b"out\n");
        for line in run.err.lines() {
            assert!(
                line.contains(" logreopen["),
                "no name forges a line: {line}"
            );
        }
    }
}

// Edge case 45.
#[test]
fn control_sockets_stale_in_use_and_in_a_missing_directory() {
    let dir = Dir::new();
    let stale = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    drop(stale);
    let mut first = logreopen(&dir, &["-l", "a", "--control", "s", "--", "sleep", "1000"]).start();
    first.event("command-started");
    let second = logreopen(&dir, &["-l", "b", "--control", "s", "--", "true"]).finish();
    assert_eq!(second.status, 125);
    assert!(
        second.err.contains("address already in use (held by pid "),
        "{}",
        second.err
    );
    assert!(
        !dir.path().join("b").exists(),
        "files are left as they were"
    );
    let none = logreopen(&dir, &["-l", "b", "--control", "no/s", "--", "true"]).finish();
    assert_eq!(none.status, 125);
    assert!(none.err.contains("no/s"), "{}", none.err);
    // Its name is gone: only who knows it by another way could ask, and nothing else is harmed.
    std::fs::remove_file(dir.path().join("s")).unwrap();
    assert_eq!(
        logreopen(&dir, &["--ctl", "s", "status"]).finish().status,
        125
    );
    assert_eq!(first.stop(), 128 + 15);
}

#[test]
fn requests_and_their_answers() {
    let dir = Dir::new();
    let mut service = logreopen(
        &dir,
        &[
            "-l",
            "out",
            "-e",
            "err",
            "--control",
            "s",
            "--",
            "sleep",
            "1000",
        ],
    )
    .start();
    service.event("command-started");
    let ask = |request: &str| -> Finished {
        logreopen(&dir, &["--ctl", "s"])
            .args(request.split(' '))
            .finish()
    };
    assert!(ask("version").out.starts_with("logreopen "));
    assert!(ask("help").out.contains("reopen "));
    assert!(ask("status").out.contains("out"));
    assert!(ask("status json").out.starts_with("{\"version\":"));
    assert_eq!(ask("reopen").out, "out unchanged\nerr unchanged\n");
    std::fs::rename(dir.path().join("out"), dir.path().join("out.1")).unwrap();
    let reopened = ask("reopen");
    assert!(
        reopened.out.contains("out reopened: inode ") && reopened.out.contains("err unchanged\n"),
        "{}",
        reopened.out
    );
    assert_eq!(reopened.status, 0);
    assert_eq!(ask("rotate").status, 1);
    let unknown = ask("explode");
    assert_eq!(unknown.status, 2);
    assert!(
        unknown.err.contains("'explode' is no request"),
        "{}",
        unknown.err
    );
    // Without our client.
    let socat = Run::new("sh")
        .args(["-c", "echo reopen | socat -t 5 - UNIX:s"])
        .dir(dir.path())
        .finish();
    assert_eq!(socat.out, "out unchanged\nerr unchanged\nOK\n");
    assert_eq!(service.stop(), 128 + 15);
    assert!(!dir.path().join("s").exists());
}

#[test]
fn what_makes_no_sense_is_refused_before_the_command_starts() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
    std::os::unix::fs::symlink("not/there", dir.path().join("nowhere")).unwrap();
    for (args, status, said) in [
        (&["--", "touch", "ran"][..], 2, "'touch' and more words"),
        (&[], 2, "no file is named"),
        (&["-l", "out"], 2, "none is given"),
        (&["--tee"], 2, "no file is named"),
        (&["out", "--", "touch", "ran"], 2, "one FILE and no command"),
        (
            &["-l", "sub", "--", "touch", "ran"],
            125,
            "cannot open sub: is a directory",
        ),
        (
            &["-l", "sub/", "--", "touch", "ran"],
            125,
            "it is a directory",
        ),
        (
            &["-l", "no/out", "--", "touch", "ran"],
            125,
            "cannot open no/out: no such file or directory (its directory is missing; --mkdir makes it)",
        ),
        (
            &["--mkdir", "-l", "nowhere/out", "--", "touch", "ran"],
            125,
            "cannot open nowhere/out: no such file or directory (the link nowhere leads nowhere)",
        ),
        (
            &["-l", "sock", "--", "touch", "ran"],
            125,
            "cannot open sock: it is a socket",
        ),
        (
            &["-l", "out", "--max-size", "0", "--", "touch", "ran"],
            2,
            "--max-size",
        ),
        (
            &["-l", "out", "--max-size", "10X", "--", "touch", "ran"],
            2,
            "'10X' is no size",
        ),
        (
            &["-l", "out", "--buffer", "10X", "--", "touch", "ran"],
            2,
            "'10X' is no size",
        ),
        (
            &["-l", "out", "--owner", "nobody-here", "--", "touch", "ran"],
            125,
            "unknown user 'nobody-here'",
        ),
        (
            &["-l", "out", "-u", "nobody-here", "--", "touch", "ran"],
            125,
            "unknown user 'nobody-here'",
        ),
        (
            &["-l", "out", "--on-full", "explode", "--", "touch", "ran"],
            2,
            "explode",
        ),
        (
            &["-l", "out", "--on-rotate", "true", "--", "touch", "ran"],
            2,
            "--max-size turns on",
        ),
        (
            &["-l", "out", "--follow", "soon", "--", "touch", "ran"],
            2,
            "'soon' is no duration",
        ),
        (
            &["-l", "/dev/null", "--max-size", "1M", "--", "touch", "ran"],
            125,
            "regular files",
        ),
        (&["--ctl", "nobody", "reopen"], 125, "nobody answers there"),
        (&["--ctl", "nobody"], 2, "which request? reopen, status"),
        (&["--nonsense"], 2, "--nonsense"),
    ] {
        let run = logreopen(&dir, args).finish();
        assert_eq!(run.status, status, "{args:?}: {}", run.err);
        assert!(run.err.contains(said), "{args:?}: {}", run.err);
        assert_eq!(run.err.lines().count(), 1, "{args:?}: {}", run.err);
        assert!(run.err.starts_with("logreopen: "), "{}", run.err);
        assert!(!dir.path().join("ran").exists(), "{args:?}");
        assert!(!dir.path().join("out").exists(), "{args:?}");
    }
}
