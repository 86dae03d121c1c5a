//! Lines that are lost over rotations with `compress` and no `delaycompress`: the file is taken away, the writer told,
//! and what was taken is compressed at once, twenty times, while lines are written.

use crate::{pause, progress};
use kit::logs;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::report;

const ROTATIONS: usize = 20;
/// Lines of 100 bytes, a hundred every millisecond.
const WORDS: [&str; 4] = ["0", "100", "1000", "100"];
const LENGTH: usize = 100;

/// Who writes, and how the file is taken away: in the shell, with `$DIR`, `$PID` and the rotation's `$NUMBER`.
struct Way {
    name: &'static str,
    writer: String,
    rotate: String,
}

fn ways() -> Vec<Way> {
    let ours = crate::program();
    let ours = ours.display();
    let way = |name, writer: String, rotate: &str| Way {
        name,
        writer,
        rotate: rotate.to_owned(),
    };
    vec![
        way(
            "logreopen, --ctl reopen",
            format!("exec {ours} -q --control \"$DIR/ctl\" \"$DIR/log\""),
            &format!(
                "mv \"$DIR/log\" \"$DIR/log.$NUMBER\" && {ours} --ctl \"$DIR/ctl\" reopen >/dev/null && gzip \"$DIR/log.$NUMBER\""
            ),
        ),
        way(
            "logreopen, HUP and no wait",
            format!("exec {ours} -q \"$DIR/log\""),
            "mv \"$DIR/log\" \"$DIR/log.$NUMBER\" && kill -HUP $PID && gzip \"$DIR/log.$NUMBER\"",
        ),
        way(
            "cat, copytruncate",
            "exec cat >> \"$DIR/log\"".to_owned(),
            "cp \"$DIR/log\" \"$DIR/log.$NUMBER\" && : > \"$DIR/log\" && gzip \"$DIR/log.$NUMBER\"",
        ),
        way(
            "cat, moved away untold",
            "exec cat >> \"$DIR/log\"".to_owned(),
            "[ ! -e \"$DIR/log\" ] || { mv \"$DIR/log\" \"$DIR/log.$NUMBER\" && gzip \"$DIR/log.$NUMBER\"; }",
        ),
    ]
}

/// Lines that are nowhere afterwards, and how many were written.
fn lost(way: &Way, numbers: &Path, directory: &Path) -> (u64, u64) {
    let mut writer = Command::new("sh")
        .args(["-c", &way.writer])
        .env("DIR", directory)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let report = directory.join("report");
    let mut program = Command::new(numbers)
        .args(WORDS)
        .env("NUMBERS_REPORT", &report)
        .stdout(writer.stdin.take().unwrap())
        .spawn()
        .unwrap();
    pause(Duration::from_millis(500));
    for number in 0..ROTATIONS {
        let status = Command::new("sh")
            .args(["-c", &way.rotate])
            .env("DIR", directory)
            .env("PID", writer.id().to_string())
            .env("NUMBER", number.to_string())
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{}: a rotation", way.name);
        pause(Duration::from_millis(100));
    }
    let pid = nix::unistd::Pid::from_raw(program.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    program.wait().unwrap();
    writer.wait().unwrap();
    let written = logs::report(&report).unwrap().lines;
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("log")
    });
    (logs::found(&files, written, LENGTH).lost, written)
}

pub fn measure(numbers: &Path, memory: &Path) {
    println!(
        "lost over {ROTATIONS} rotations with gzip at once, at 100,000 lines/s or what the writer can do"
    );
    for way in ways() {
        progress(way.name);
        let directory = memory.join("lost");
        fs::create_dir_all(&directory).unwrap();
        let (lost, written) = lost(&way, numbers, &directory);
        fs::remove_dir_all(&directory).unwrap();
        println!("{:28} {lost:9} of {written}", way.name);
        report::less(
            "lost",
            "lines lost of a million",
            "",
            way.name,
            &[lost as f64 * 1e6 / written as f64],
        );
    }
}
