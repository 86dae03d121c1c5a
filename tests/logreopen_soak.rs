//! Many lines over many rotations by the real logrotate. `make soak-logs` makes it 10^8 and 1,000; here it is the same in
//! small.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use kit::logs::{files, found, numbers, report};
use kit::{Dir, Run, eventually};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");

fn asked(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    text.parse().unwrap_or(otherwise)
}

#[test]
fn no_line_is_lost_torn_or_there_twice() {
    let lines = asked("SOAK_LINES", 1_000_000);
    let rotations = asked("SOAK_ROTATIONS", 10);
    let dir = Dir::new();
    let numbers = numbers(&dir);
    // As fast as it goes, for as long as the rotations take.
    let mut service = Run::new(PROGRAM)
        .args([
            "-l",
            "app.out",
            "--control",
            "s",
            "--on-full",
            "block",
            "--",
        ])
        .arg(numbers)
        .args([&lines.to_string(), "100", "1000", "500"])
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .dir(dir.path())
        .start();
    service.event("command-started");
    let text = format!(
        "{0}/app.out {{\n rotate 100000\n compress\n nocreate\n postrotate\n {PROGRAM} --ctl {0}/s reopen >/dev/null\n endscript\n}}\n",
        dir.path().display()
    );
    let config = dir.write("logrotate.conf", &text);
    let written = || report(&dir.path().join("report"));
    let size = || std::fs::metadata(dir.path().join("app.out")).map_or(0, |file| file.len());
    let begun = Instant::now();
    let mut count = 0;
    while count < rotations || written().is_none() {
        // Spread over the lines, not over the time.
        let share = lines * 100 / rotations;
        let patience = Duration::from_secs(600);
        let since = Instant::now();
        while size() < share && written().is_none() && since.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        let run = Run::new("/usr/sbin/logrotate")
            .args(["-f", "-s"])
            .arg(dir.path().join("state"))
            .arg(&config)
            .finish();
        assert_eq!((run.status, &*run.err), (0, ""));
        count += 1;
    }
    eventually("all is written", written);
    assert_eq!(service.stop(), 0);
    let list = files(dir.path(), "app.out");
    found(&list, lines, 100).assert_all(lines);
    println!(
        "{lines} lines, {count} rotations, {:.0} s: 0 lost, 0 torn, 0 twice",
        begun.elapsed().as_secs_f64()
    );
}
