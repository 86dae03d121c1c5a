//! Another program in the master's place, under load: the same pid, the same workers, no request lost.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::load::{Load, Options};
use kit::{Dir, Finished, Run, Running, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

struct Service {
    dir: Dir,
    master: Running,
    port: u16,
}

/// A copy of the program of its own, which can be replaced.
fn installed(dir: &Dir) -> PathBuf {
    let path = dir.path().join("spawnwork");
    std::fs::copy(env!("CARGO_BIN_EXE_spawnwork"), &path).unwrap();
    path
}

/// As a package manager does it: another file under the same name, and by another process. While this one had it
/// open for writing, a child that another of our threads forks would have it too, and nobody could execute it.
fn replace(path: &Path, text: Option<&str>) {
    let (new, source) = (path.with_extension("new"), path.with_extension("source"));
    let source = match text {
        Some(text) => {
            std::fs::write(&source, text).unwrap();
            source
        }
        None => PathBuf::from(env!("CARGO_BIN_EXE_spawnwork")),
    };
    let copy = Run::new("cp").args([&source, &new]).finish();
    assert_eq!(copy.status, 0, "{}", copy.err);
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(new, path).unwrap();
}

impl Service {
    fn new(options: &[&str], command: &[&str]) -> Service {
        let (dir, port) = (Dir::new(), free_port());
        let program = installed(&dir);
        let mut run = Run::new(program).args(["--control", "c.sock", "--pid-file", "a.pid"]);
        for word in options.iter().chain(command) {
            run = run.arg(word.replace("PORT", &port.to_string()));
        }
        let mut master = run.env("PORT", port.to_string()).dir(dir.path()).start();
        master.event("generation-serving");
        Service { dir, master, port }
    }

    fn node(options: &[&str]) -> Service {
        let app = app("hello.js");
        Service::new(options, &["--", "node", app.to_str().unwrap()])
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        Run::new(env!("CARGO_BIN_EXE_spawnwork"))
            .arg("--ctl")
            .args([self.dir.path().join("c.sock")])
            .args(words)
            .finish()
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("spawnwork")
    }

    fn reexec(&mut self) {
        let answer = self.ctl(&["reexec", "--timeout", "30s"]);
        assert_eq!(
            answer.status,
            0,
            "{}\n{}",
            answer.err,
            self.master.err().join("\n")
        );
        assert!(answer.out.contains("has taken over"), "{}", answer.out);
        let line = self.master.event("reexecuted");
        assert!(
            line.contains(&format!("spawnwork[{}]", self.master.pid())),
            "{line}"
        );
    }

    fn workers(&self) -> BTreeSet<i32> {
        kit::run::children_of(self.master.pid())
            .into_iter()
            .collect()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.master.pid()))
            .unwrap()
            .count()
    }

    fn load(&self) -> Load {
        Load::start(&Options {
            address: format!("127.0.0.1:{}", self.port),
            keep_alive: 12,
            fresh: 4,
            paths: vec!["/", "/", "/", "/slow"],
            expect: "hello ",
            timeout: Duration::from_secs(30),
        })
    }
}

#[test]
fn twenty_times_under_load_with_the_same_pid_and_the_same_workers() {
    for balance in ["shared", "round-robin", "slots"] {
        let mut service = Service::node(&["-n", "2", "--balance", balance, "--probation", "50ms"]);
        let workers = service.workers();
        let load = service.load();
        service.reexec();
        let open = service.descriptors();
        for _ in 0..19 {
            load.answer(30);
            replace(&service.program(), None);
            service.reexec();
        }
        load.answer(30);
        assert_eq!(service.workers(), workers, "{balance}");
        if balance == "shared" {
            // A client that is being seen off has one for a moment; nineteen would be left behind.
            eventually("no descriptor is left behind", || {
                (service.descriptors() <= open).then_some(())
            });
        }
        // The one that took over can do all that the first one could.
        assert_eq!(service.ctl(&["reload"]).status, 0);
        load.answer(30);
        let tally = load.stop();
        assert_eq!(tally.failures(), 0, "{balance}: {:?}", tally.failed);
        eventually("the old ones have left", || {
            service.workers().is_disjoint(&workers).then_some(())
        });
        let pid = std::fs::read_to_string(service.dir.path().join("a.pid")).unwrap();
        assert_eq!(pid.trim(), service.master.pid().to_string());
        assert_eq!(service.master.stop(), 0);
        for name in ["c.sock", "a.pid"] {
            assert!(!service.dir.path().join(name).exists(), "{name}");
        }
    }
}

#[test]
fn what_it_knew_it_still_knows() {
    let mut service = Service::new(
        &[
            "-n",
            "3",
            "-l",
            "unix:u.sock",
            "-l",
            "web=127.0.0.1:PORT",
            "--ready",
            "alive:50ms",
            "--prefix",
            "%i/%p: ",
        ],
        &[
            "--",
            "sh",
            "-c",
            "echo \"I am $WORKER_ID\" >&2; exec sleep 600",
        ],
    );
    assert_eq!(service.ctl(&["add"]).status, 0);
    eventually("all serve", || {
        (service.ctl(&["status"]).status == 0).then_some(())
    });
    let before = service.workers();
    let victim = *before.iter().next().unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    service.master.event("worker-exited");
    eventually("all serve", || {
        (service.ctl(&["status"]).status == 0).then_some(())
    });
    let status = service.ctl(&["status", "json"]).out;
    service.reexec();
    let after = service.ctl(&["status", "json"]).out;
    let part = |text: &str, from: &str, to: &str| -> String {
        let start = text
            .find(from)
            .unwrap_or_else(|| panic!("{from} in {text}"));
        let end = text[start..].find(to).unwrap();
        text[start..start + end].to_owned()
    };
    for (from, to) in [
        ("\"workers\":", ",\"serving"),
        ("\"deaths\":", "}"),
        ("\"sockets\":", "]"),
    ] {
        assert_eq!(part(&status, from, to), part(&after, from, to));
    }
    assert!(
        after.contains("\"signal\":\"KILL\",\"by\":\"outside\""),
        "{after}"
    );
    // Its children are its children: an end is seen, and the slot filled.
    let victim = *service.workers().iter().next().unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let line = service.master.event("worker-exited");
    assert_eq!(field(&line, "pid"), victim.to_string());
    assert!(line.contains("I am "), "its last words were kept: {line}");
    service.master.event("worker-ready");
    assert!(std::os::unix::net::UnixStream::connect(service.dir.path().join("u.sock")).is_ok());
    assert_eq!(service.master.stop(), 0);
    assert!(!service.dir.path().join("u.sock").exists());
}

#[test]
fn no_line_is_lost_or_torn() {
    let script = "for n in $(seq 1 400); do printf 'line %s ' $n; printf 'of %s\\n' $WORKER_ID; sleep 0.005; done; exec sleep 600";
    let mut service = Service::new(
        &["-n", "2", "--ready", "alive:10ms", "--output", "lines"],
        &["--", "sh", "-c", script],
    );
    for _ in 0..10 {
        service.reexec();
    }
    eventually("the last lines", || {
        let out = service.master.out();
        (out.contains("line 400 of 0\n") && out.contains("line 400 of 1\n")).then_some(())
    });
    let out = service.master.out();
    for worker in 0..2 {
        let lines: Vec<&str> = out
            .lines()
            .filter(|line| line.ends_with(&format!("of {worker}")))
            .collect();
        let expected: Vec<String> = (1..=400).map(|n| format!("line {n} of {worker}")).collect();
        assert_eq!(lines, expected);
    }
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn a_program_that_cannot_is_asked_first_and_nothing_happens() {
    let mut service = Service::node(&["-n", "2"]);
    let workers = service.workers();
    let load = service.load();
    for (text, why) in [
        (
            "#!/bin/sh\necho 'state of version 1, and this program reads 2' >&2\nexit 125\n",
            "this program reads 2",
        ),
        ("#!/bin/sh\nkill -SEGV $$\n", "signal SEGV"),
        // Any other program may end with 0; in our place it would be the end of everything.
        ("#!/bin/sh\nexit 0\n", "is no spawnwork"),
        ("#!/bin/sh\necho hello\n", "it said 'hello'"),
        // Cut off by a full disk: a shell would run that, and nothing would be wrong with it.
        ("", "is no spawnwork"),
        ("this is no program\n", "refused"),
    ] {
        replace(&service.program(), Some(text));
        let answer = service.ctl(&["reexec"]);
        assert_eq!(answer.status, 1, "{text}: {}", answer.err);
        assert!(
            answer.err.contains(why) && answer.err.contains("nothing has happened"),
            "{}",
            answer.err
        );
    }
    std::fs::remove_file(service.program()).unwrap();
    let answer = service.ctl(&["reexec"]);
    assert_eq!(answer.status, 1);
    assert!(answer.err.contains("no such file"), "{}", answer.err);
    load.answer(20);
    assert_eq!(load.stop().failures(), 0);
    assert_eq!(service.workers(), workers);
    replace(&service.program(), None);
    service.reexec();
    assert_eq!(service.workers(), workers);
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn state_of_another_version_or_of_another_process_is_refused() {
    let dir = Dir::new();
    for (text, why) in [
        ("{\"version\":999,\"pid\":1}", "it is of version 999"),
        ("{\"version\":2,\"pid\":1}", "it is of process 1"),
        ("\x7fELF", "it is none"),
        ("", "it is none"),
    ] {
        dir.write("state", text);
        let line = format!(
            "exec 3< state; {} --check-state 3 -n 2 -- sleep 600",
            env!("CARGO_BIN_EXE_spawnwork")
        );
        let refused = Run::new("sh").args(["-c", &line]).dir(dir.path()).finish();
        assert_eq!(refused.status, 125, "{text}: {}", refused.err);
        assert!(refused.err.contains(why), "{}", refused.err);
    }
    let stray = Run::new(env!("CARGO_BIN_EXE_spawnwork"))
        .args(["-n", "1", "--", "sleep", "600"])
        .env("SPAWNWORK_STATE", "77")
        .finish();
    assert_eq!(stray.status, 2, "{}", stray.err);
}

#[test]
fn not_during_a_reload_and_a_stop_during_it_is_no_harm() {
    let mut service = Service::node(&["-n", "1", "--probation", "60s"]);
    assert_eq!(service.ctl(&["reload", "nowait"]).status, 0);
    let answer = service.ctl(&["reexec"]);
    assert_eq!(answer.status, 1);
    assert!(
        answer.err.contains("a reload is under way"),
        "{}",
        answer.err
    );
    assert_eq!(service.master.stop(), 0);

    let mut service = Service::node(&["-n", "1"]);
    replace(&service.program(), Some("#!/bin/sh\nexec sleep 633\n"));
    let mut asking = Run::new(env!("CARGO_BIN_EXE_spawnwork"))
        .arg("--ctl")
        .args([service.dir.path().join("c.sock")])
        .args(["reexec"])
        .start();
    eventually("the new program looks", || {
        (service.workers().len() == 2).then_some(())
    });
    assert_eq!(service.master.stop(), 0);
    assert_ne!(asking.end(), 0);
    assert_eq!(
        Run::new("pgrep").args(["-f", "sleep 633"]).finish().status,
        1
    );
}
