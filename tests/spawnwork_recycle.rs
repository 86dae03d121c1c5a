//! Workers that are replaced because they are too large, too old, or because somebody wants it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::load::{Load, Options};
use kit::{Dir, Finished, Run, Running, eventually, field, free_port};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::Duration;

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

/// Grows by a megabyte with each request, if it is to.
const LEAKY: &str = "const kept = []; require('http').createServer((q, r) => { if (require('fs').existsSync('leak')) kept.push(Buffer.alloc(1 << 20, 1)); r.end(`hello ${process.pid} VERSION\\n`); }).listen(Number(process.env.PORT), '127.0.0.1');\n";

struct Service {
    dir: Dir,
    master: Running,
    port: u16,
}

impl Service {
    fn new(options: &[&str]) -> Service {
        let (dir, port) = (Dir::new(), free_port());
        dir.write("app.js", &LEAKY.replace("VERSION", "one"));
        let mut master = Run::new(SPAWNWORK)
            .args(["--control", "c.sock"])
            .args(if options.contains(&"--probation") {
                &[][..]
            } else {
                &["--probation", "50ms"]
            })
            .args(options)
            .args(["--", "node", "app.js"])
            .env("PORT", port.to_string())
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        Service { dir, master, port }
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        Run::new(SPAWNWORK)
            .arg("--ctl")
            .args([self.dir.path().join("c.sock")])
            .args(words)
            .finish()
    }

    fn load(&self) -> Load {
        let options = Options {
            address: format!("127.0.0.1:{}", self.port),
            keep_alive: 6,
            fresh: 2,
            paths: vec!["/"],
            expect: "hello ",
            timeout: Duration::from_secs(30),
        };
        Load::paced(&options, Duration::from_millis(10))
    }

    fn workers(&self) -> BTreeSet<i32> {
        kit::run::children_of(self.master.pid())
            .into_iter()
            .collect()
    }
}

/// At each moment of the log, as many workers serve as there are slots: one goes only when another is
/// ready, and no two are replaced at once.
fn one_at_a_time(log: &[String], slots: usize) {
    let from = log
        .iter()
        .position(|line| line.contains(": generation-serving "))
        .unwrap();
    let (mut serving, mut starting) = (slots as i64, 0i64);
    for line in &log[from..] {
        match line
            .split("]: ")
            .nth(1)
            .and_then(|said| said.split(' ').next())
        {
            Some("worker-started") => starting += 1,
            Some("worker-ready") => {
                starting -= 1;
                serving += 1;
            }
            Some("worker-stopping") => serving -= 1,
            _ => {}
        }
        assert!(starting <= 1, "two at once: {line}\n{}", log.join("\n"));
        assert!(
            serving >= slots as i64,
            "too few: {line}\n{}",
            log.join("\n")
        );
    }
}

// Edge case 41.
#[test]
fn all_over_the_limit_at_once_are_replaced_one_by_one_and_no_request_is_lost() {
    let mut service = Service::new(&["-n", "3", "--max-rss", "120M"]);
    let before = service.workers();
    let load = service.load();
    load.answer(20);
    service.dir.write("leak", "");
    for _ in 0..3 {
        let line = service.master.event("worker-recycled");
        assert_eq!(field(&line, "reason"), "memory", "{line}");
        assert!(
            field(&line, "rss").parse::<u64>().unwrap() > 120 << 20,
            "{line}"
        );
        if line.contains("slot=") {
            load.answer(5);
        }
    }
    let _ = std::fs::remove_file(service.dir.path().join("leak"));
    eventually("the old ones are gone", || {
        service.workers().is_disjoint(&before).then_some(())
    });
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    let status = service.ctl(&["status", "json"]).out;
    assert!(status.contains("\"by\":\"memory-limit\""), "{status}");
    assert_eq!(service.master.stop(), 0);
    let log = service.master.err();
    let stop = log
        .iter()
        .position(|line| line.contains("stop-requested"))
        .unwrap();
    one_at_a_time(&log[..stop], 3);
}

#[test]
fn lifetimes_end_one_after_the_other() {
    let mut service = Service::new(&["-n", "2", "--max-lifetime", "1500ms", "--jitter", "60%"]);
    let before = service.workers();
    let load = service.load();
    let mut slots = BTreeSet::new();
    while slots.len() < 2 {
        let line = service.master.event("worker-recycled");
        assert_eq!(field(&line, "reason"), "age", "{line}");
        slots.insert(field(&line, "slot"));
    }
    eventually("the old ones are gone", || {
        service.workers().is_disjoint(&before).then_some(())
    });
    assert_eq!(load.stop().failures(), 0);
    assert_eq!(service.master.stop(), 0);
    let log = service.master.err();
    let stop = log
        .iter()
        .position(|line| line.contains("stop-requested"))
        .unwrap();
    one_at_a_time(&log[..stop], 2);
    assert!(log.iter().any(|line| line.contains("by=lifetime")));
}

// Edge case 42.
#[test]
fn a_reload_comes_first_and_a_recycle_waits_for_its_end() {
    let mut service = Service::new(&["-n", "2", "--max-lifetime", "700ms", "--probation", "2s"]);
    service.master.signal(Signal::SIGUSR2);
    service.master.event("reload-canary");
    let canary = service.master.err().len();
    service.master.event("reload-committed");
    let log = service.master.err();
    let end = log
        .iter()
        .position(|line| line.contains("reload-committed"))
        .unwrap();
    let during = &log[canary..end];
    assert!(
        !during.iter().any(|line| line.contains("worker-recycled")),
        "{}",
        log.join("\n")
    );
    service.master.event("worker-recycled");
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn a_reload_calls_a_replacement_off() {
    let mut service = Service::new(&["-n", "2", "--ready-timeout", "20s", "--probation", "50ms"]);
    service.dir.write("app.js", "setInterval(() => {}, 1000);");
    let mut asking = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([service.dir.path().join("c.sock")])
        .args(["restart", "1"])
        .start();
    let next = field(
        &service.master.event_with("worker-started", "slot=1"),
        "pid",
    );
    service
        .dir
        .write("app.js", &LEAKY.replace("VERSION", "two"));
    assert_eq!(service.ctl(&["reload"]).status, 0);
    assert_eq!(asking.end(), 1, "{:?}", asking.err());
    eventually("it is gone", || {
        (!service.workers().contains(&next.parse().unwrap())).then_some(())
    });
    assert_eq!(service.ctl(&["status"]).status, 0);
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn a_replacement_that_does_not_come_leaves_the_old_one_where_it_is() {
    let mut service = Service::new(&[
        "-n",
        "2",
        "--max-lifetime",
        "500ms",
        "--backoff",
        "100ms..200ms",
    ]);
    let before = service.workers();
    service
        .dir
        .write("app.js", "console.error('no more'); process.exit(3);");
    let load = service.load();
    for _ in 0..3 {
        let line = service.master.event("recycle-failed");
        assert!(line.contains("status 3"), "{line}");
    }
    assert!(service.workers().is_superset(&before), "the old ones serve");
    let answer = service.ctl(&["restart", "0"]);
    assert_eq!(answer.status, 1);
    assert!(answer.err.contains("slot 0: "), "{}", answer.err);
    service
        .dir
        .write("app.js", &LEAKY.replace("VERSION", "one"));
    service.master.event("worker-recycled");
    assert_eq!(load.stop().failures(), 0);
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn restart_on_request_one_or_all() {
    let mut service = Service::new(&["-n", "3"]);
    let before = service.workers();
    let load = service.load();
    let one = service.ctl(&["restart", "1"]);
    assert_eq!(
        (one.status, one.out.as_str()),
        (0, "1 worker restarted\n"),
        "{}",
        one.err
    );
    eventually("one is new", || {
        (service.workers().intersection(&before).count() == 2).then_some(())
    });
    let all = service.ctl(&["restart", "all"]);
    assert_eq!(
        (all.status, all.out.as_str()),
        (0, "3 workers restarted\n"),
        "{}",
        all.err
    );
    eventually("all are new", || {
        service.workers().is_disjoint(&before).then_some(())
    });
    assert_eq!(
        service.ctl(&["restart", "3"]).status,
        1,
        "there is no slot 3"
    );
    assert_eq!(service.ctl(&["restart"]).status, 2);
    assert_eq!(load.stop().failures(), 0);
    let status = service.ctl(&["status"]);
    assert_eq!(status.status, 0);
    assert!(status.out.contains("(operator)"), "{}", status.out);
    assert_eq!(service.master.stop(), 0);
    let log = service.master.err();
    let stop = log
        .iter()
        .position(|line| line.contains("stop-requested"))
        .unwrap();
    one_at_a_time(&log[..stop], 3);
}

#[test]
fn after_a_failed_deploy_the_old_release_is_recycled_as_it_was() {
    let (dir, port) = (Dir::new(), free_port());
    for (name, text) in [
        ("1", LEAKY.replace("VERSION", "one")),
        ("2", "throw new Error('two');".to_owned()),
    ] {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("app.js"), text).unwrap();
    }
    std::os::unix::fs::symlink("1", dir.path().join("current")).unwrap();
    let mut master = Run::new(SPAWNWORK)
        .args([
            "-n",
            "2",
            "-C",
            "current",
            "--control",
            "c.sock",
            "--",
            "node",
            "app.js",
        ])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let mut service = Service { dir, master, port };
    std::fs::remove_file(service.dir.path().join("current")).unwrap();
    std::os::unix::fs::symlink("2", service.dir.path().join("current")).unwrap();
    assert_eq!(service.ctl(&["reload"]).status, 1);
    assert_eq!(service.ctl(&["restart", "all"]).status, 0);
    for pid in service.workers() {
        let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert!(directory.ends_with("1"), "{}", directory.display());
    }
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn a_file_that_went_bad_in_place_costs_no_worker_and_no_request() {
    for balance in ["shared", "round-robin"] {
        let mut service = Service::new(&["-n", "2", "--probation", "2s", "--balance", balance]);
        let (before, load) = (service.workers(), service.load());
        let good = LEAKY.replace("VERSION", "one");
        // It is ready, has time to take a client, and dies.
        let late = "\nsetTimeout(() => process.exit(3), 500);\n";
        service.dir.write("app.js", &(good.clone() + late));
        let refused = service.ctl(&["restart", "all"]);
        assert_eq!(refused.status, 1, "{}", refused.out);
        assert!(refused.err.contains("status 3"), "{}", refused.err);
        // The one that failed is said to have ended before it is reaped.
        eventually("the old ones, and nobody else", || {
            (service.workers() == before).then_some(())
        });
        assert_eq!(service.ctl(&["add"]).status, 0);
        for _ in 0..3 {
            let end = service.master.event("worker-exited");
            assert_eq!(field(&end, "status"), "3", "{end}");
            load.answer(20);
        }
        service.dir.write("app.js", &good);
        service.ctl(&["clear"]);
        eventually("the third serves", || {
            (service.ctl(&["status"]).status == 0).then_some(())
        });
        let tally = load.stop();
        assert_eq!(tally.failures(), 0, "{balance}: {:?}", tally.failed);
        assert_eq!(service.master.stop(), 0);
    }
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    for (option, value) in [
        ("--max-rss", "much"),
        ("--max-rss", "0"),
        ("--max-lifetime", "0"),
        ("--jitter", "101%"),
        ("--jitter", "x"),
    ] {
        let refused = Run::new(SPAWNWORK)
            .args([option, value, "--", "true"])
            .finish();
        assert_eq!(refused.status, 2, "{option} {value}");
        assert!(refused.err.contains(option), "{}", refused.err);
    }
}
