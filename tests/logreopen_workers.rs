//! Workers of spawnwork whose output logreopen writes, while logrotate rotates: every line whole, and once.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Run, eventually};
use std::collections::BTreeMap;
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");
const COUNT: u64 = 2000;

/// All that stands in the files whose names begin so, archives too.
fn everything(directory: &Path, name: &str) -> Vec<u8> {
    let mut text = Vec::new();
    for path in kit::logs::files(directory, name) {
        let read = if path.extension().is_some_and(|ending| ending == "gz") {
            let run = std::process::Command::new("gzip")
                .arg("-dc")
                .arg(&path)
                .output();
            let run = run.unwrap();
            assert!(run.status.success(), "{}", path.display());
            run.stdout
        } else {
            std::fs::read(&path).unwrap()
        };
        assert!(
            read.is_empty() || read.ends_with(b"\n"),
            "{} ends in mid-line",
            path.display()
        );
        text.extend(read);
    }
    text
}

#[test]
fn lines_of_any_length_of_four_workers_on_both_streams_while_rotating() {
    let dir = Dir::new();
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let mut service = Run::new(PROGRAM)
        .args(["-l", "logs/app.out", "-e", "logs/app.err"])
        .args(["--control", "log.sock", "--"])
        .arg(kit::sibling(PROGRAM, "spawnwork"))
        .args(["-n", "4", "--", "node"])
        .arg(kit::app("mixed.js"))
        .arg(COUNT.to_string())
        .env("PORT", kit::free_port().to_string())
        .env("MIXED_DIR", dir.path())
        .dir(dir.path())
        .start();
    service.event("command-started");
    let text = format!(
        "{0}/app.out {0}/app.err {{\n rotate 1000\n missingok\n create 640 root root\n compress\n sharedscripts\n postrotate\n {PROGRAM} --ctl {1}/log.sock reopen >/dev/null\n endscript\n}}\n",
        logs.display(),
        dir.path().display()
    );
    let config = dir.write("logrotate.conf", &text);
    eventually("workers write", || {
        let size = |name: &str| std::fs::metadata(logs.join(name)).map_or(0, |file| file.len());
        (size("app.out") > 0 && size("app.err") > 0).then_some(())
    });
    let done = || kit::logs::files(dir.path(), "mixed.done").len() == 4;
    let mut rotations = 0;
    while rotations < 20 || !done() {
        let run = Run::new("/usr/sbin/logrotate")
            .args(["-f", "-s"])
            .arg(dir.path().join("state"))
            .arg(&config)
            .finish();
        assert_eq!((run.status, &*run.err), (0, ""));
        rotations += 1;
    }
    assert_eq!(service.stop(), 0, "{:?}", service.err());

    let mut seen: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    let mut longest = 0;
    for (name, odd) in [("app.out", false), ("app.err", true)] {
        for line in everything(&logs, name).split(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(line).unwrap();
            if line.is_empty() || (odd && line.contains("Z spawnwork[")) {
                continue;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let [worker, number, filling, again, twice] = words[..] else {
                panic!("torn: {} words, {:.60}...", words.len(), line);
            };
            assert_eq!((worker, number), (again, twice), "torn: {:.60}...", line);
            assert!(
                filling.bytes().all(|byte| byte == b'x'),
                "mixed: {line:.60}"
            );
            let number: u64 = number.parse().unwrap();
            assert_eq!(number % 2 == 1, odd, "in the wrong file: {line:.60}");
            longest = longest.max(line.len() + 1);
            *seen.entry((worker.parse().unwrap(), number)).or_default() += 1;
        }
    }
    assert_eq!(seen.len() as u64, 4 * COUNT, "lines are missing");
    assert!(
        seen.values().all(|count| *count == 1),
        "lines are there twice"
    );
    assert!(longest > 90_000, "{longest}");
}
