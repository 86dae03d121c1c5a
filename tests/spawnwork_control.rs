//! The control socket: what it answers, what it refuses, and that nobody who asks delays the work.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::get;
use kit::{Dir, Finished, Run, Running, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

/// Options that a test does not give itself.
fn with_defaults<'a>(options: &[&'a str], defaults: &[[&'a str; 2]]) -> Vec<&'a str> {
    let missing = defaults.iter().filter(|[name, _]| !options.contains(name));
    missing.flatten().chain(options).copied().collect()
}

struct Service {
    dir: Dir,
    master: Running,
    port: u16,
}

impl Service {
    /// Workers of `hello.js`.
    fn node(options: &[&str]) -> Service {
        let (dir, port) = (Dir::new(), free_port());
        std::fs::copy(app("hello.js"), dir.path().join("app.js")).unwrap();
        let mut master = Run::new(SPAWNWORK)
            .args(["--control", "c.sock"])
            .args(with_defaults(options, &[["--probation", "50ms"]]))
            .args(["--", "node", "app.js"])
            .env("PORT", port.to_string())
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        Service { dir, master, port }
    }

    /// Workers of a shell script that are ready when they have lived for a moment.
    fn shell(options: &[&str], script: &str) -> Service {
        let dir = Dir::new();
        let mut master = Run::new(SPAWNWORK)
            .args(["--control", "c.sock", "--ready", "alive:50ms"])
            .args(with_defaults(
                options,
                &[["--probation", "50ms"], ["--backoff", "10ms..50ms"]],
            ))
            .args(["--", "sh", "-c", script])
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        Service {
            dir,
            master,
            port: 0,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        Run::new(SPAWNWORK)
            .arg("--ctl")
            .args([self.socket()])
            .args(words)
            .finish()
    }

    /// A request in bytes, and all that is answered.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(kit::PATIENCE)).unwrap();
        let _ = stream.write_all(request);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn json(&self) -> String {
        self.ctl(&["status", "json"]).out
    }

    fn metric(&self, series: &str) -> Option<f64> {
        let text = self.ctl(&["metrics"]).out;
        text.lines().find_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            (name == series).then(|| value.parse().unwrap())
        })
    }

    fn write(&self, text: &str) {
        self.dir.write("app.js", text);
    }
}

// Edge case 1.
#[test]
fn a_reload_ends_with_its_result() {
    let mut service = Service::node(&["-n", "2", "--check", "node --check app.js"]);
    let good = service.ctl(&["reload"]);
    assert_eq!(good.status, 0, "{}", good.err);
    assert!(
        good.out.starts_with("generation 2 serves: 2 workers in "),
        "{}",
        good.out
    );
    assert!(
        !good.out.contains("canary"),
        "no progress without a terminal: {}",
        good.out
    );

    service.write("throw new Error('not today')");
    let bad = service.ctl(&["reload"]);
    assert_eq!(bad.status, 1);
    assert!(bad.err.contains("| Error: not today"), "{}", bad.err);
    assert!(
        bad.err.contains("spawnwork: generation 3 failed: worker 0"),
        "{}",
        bad.err
    );
    assert!(bad.err.contains("generation 2 goes on"), "{}", bad.err);

    let status = service.ctl(&["status"]);
    assert_eq!(status.status, 1, "frozen is not healthy");
    assert!(
        status.out.contains("FROZEN: generation 3 failed"),
        "{}",
        status.out
    );
    assert!(
        status.out.contains("  | Error: not today"),
        "{}",
        status.out
    );

    service.write("this is no JavaScript");
    let refused = service.ctl(&["reload"]);
    assert_eq!(refused.status, 4);
    assert!(refused.err.contains("SyntaxError"), "{}", refused.err);
    assert!(
        refused.err.contains("refused: --check ended with status 1"),
        "{}",
        refused.err
    );
    assert!(
        service.json().contains("\"generation\":3"),
        "the freeze of generation 3 stays"
    );

    std::fs::copy(app("hello.js"), service.dir.path().join("app.js")).unwrap();
    assert_eq!(service.ctl(&["reload"]).status, 0);
    let status = service.ctl(&["status"]);
    assert_eq!(
        (status.status, status.out.contains("FROZEN")),
        (0, false),
        "{}",
        status.out
    );
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn progress_is_for_a_terminal() {
    let service = Service::node(&["-n", "2"]);
    let line = format!("{SPAWNWORK} --ctl {} reload", service.socket().display());
    let shown = Run::new("script")
        .args(["-qec", &line, "/dev/null"])
        .finish();
    assert_eq!(shown.status, 0, "{}{}", shown.out, shown.err);
    for step in [
        "canary ready in ",
        "2/2 ready",
        "1/2 replaced",
        "2/2 replaced",
        "generation 2 serves",
    ] {
        assert!(shown.out.contains(step), "{step}: {}", shown.out);
    }
}

#[test]
fn a_newer_reload_takes_the_place_of_an_older_one_and_both_clients_know() {
    let service = Service::node(&["-n", "2", "--ready-timeout", "30s"]);
    service.write("setInterval(() => {}, 1000);");
    let mut first = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([service.socket()])
        .args(["reload"])
        .start();
    eventually("the reload begins", || {
        service.json().contains("\"step\":\"canary\"").then_some(())
    });
    std::fs::copy(app("hello.js"), service.dir.path().join("app.js")).unwrap();
    let second = service.ctl(&["reload"]);
    assert_eq!(second.status, 0, "{}", second.err);
    assert_eq!(first.end(), 3, "{:?}", first.err());
}

#[test]
fn a_reload_behind_another_one_has_its_own_result() {
    let mut service = Service::node(&["-n", "2", "--surge", "1", "--probation", "700ms"]);
    let mut first = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([service.socket()])
        .args(["reload"])
        .start();
    eventually("slots change hands", || {
        service.json().contains("\"switched\":1").then_some(())
    });
    service.write("process.exit(7)");
    let second = service.ctl(&["reload"]);
    // The file is the new one for whichever worker of the first reload is started after it, too.
    let (first, second_status) = (first.end(), second.status);
    assert_eq!(second_status, 1, "{}", second.err);
    assert!(second.err.contains("status 7"), "{}", second.err);
    assert!(first == 0 || first == 1, "{first}");
    service.master.event("reload-queued");
}

#[test]
fn the_time_limit_is_the_clients_and_the_reload_goes_on() {
    let mut service = Service::node(&["-n", "1", "--probation", "1s"]);
    let late = service.ctl(&["reload", "--timeout", "100ms"]);
    assert_eq!(late.status, 124, "{}", late.err);
    service.master.event("reload-committed");
}

#[test]
fn while_it_stops_a_reload_is_refused() {
    let mut service = Service::shell(
        &["-n", "1", "--stop-timeout", "60s"],
        "trap '' TERM; while :; do sleep 0.1; done",
    );
    assert_eq!(service.ctl(&["stop", "nowait"]).status, 0);
    service.master.event("worker-stopping");
    let refused = service.ctl(&["reload"]);
    assert_eq!(refused.status, 4, "{}", refused.err);
    // A second request to stop does not wait for the stubborn one.
    assert_eq!(service.ctl(&["stop"]).status, 0);
    assert_eq!(service.master.end(), 0);
    assert_eq!(service.ctl(&["status"]).status, 125);
}

#[test]
fn after_stop_everything_is_free_for_the_next() {
    let (dir, port) = (Dir::new(), free_port());
    let start = || {
        let mut master = Run::new(SPAWNWORK)
            .args([
                "-n",
                "2",
                "--control",
                "c.sock",
                "--pid-file",
                "a.pid",
                "-l",
            ])
            .args([format!("127.0.0.1:{port}")])
            .args(["--ready", "alive:10ms", "--", "sleep", "600"])
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        master
    };
    let socket = dir.path().join("c.sock");
    let mut master = start();
    for _ in 0..5 {
        let stopped = Run::new(SPAWNWORK)
            .arg("--ctl")
            .args([&socket])
            .args(["stop"])
            .finish();
        assert_eq!(
            (stopped.status, stopped.out.as_str()),
            (0, "stopped\n"),
            "{}",
            stopped.err
        );
        let next = start();
        assert_eq!(std::mem::replace(&mut master, next).end(), 0);
    }
}

#[test]
fn the_number_of_workers() {
    let mut service = Service::shell(&["-n", "2"], "exec sleep 600");
    for (words, said) in [
        (&["add"][..], "3 workers\n"),
        (&["add", "3"], "6 workers\n"),
        (&["remove", "2"], "4 workers\n"),
        (&["workers", "3"], "3 workers\n"),
        (&["remove", "9"], "1 workers\n"),
    ] {
        let answer = service.ctl(words);
        assert_eq!(
            (answer.status, answer.out.as_str()),
            (0, said),
            "{words:?}: {}",
            answer.err
        );
    }
    eventually("one worker is left", || {
        (kit::run::children_of(service.master.pid()).len() == 1).then_some(())
    });
    assert_eq!(service.master.stop(), 0);
}

#[test]
fn who_ended_a_worker() {
    let service = Service::shell(
        &["-n", "2", "--stop-timeout", "200ms"],
        "trap '' TERM; echo \"last words of $WORKER_ID\" >&2; if [ -e leave ]; then rm leave; exit 3; fi; while :; do sleep 0.05; [ $WORKER_ID = 0 ] || continue; if [ -e leave ]; then rm leave; exit 3; fi; done",
    );
    let ends = |by: &str| {
        let series = format!("spawnwork_worker_exits_total{{by=\"{by}\"}}");
        service.metric(&series).unwrap()
    };
    let pid_of = |slot: usize| -> i32 {
        let table = service.ctl(&["status"]).out;
        let row = table
            .lines()
            .find(|line| line.starts_with(&format!("{slot} ")))
            .unwrap();
        row.split_whitespace().nth(1).unwrap().parse().unwrap_or(0)
    };
    let serving = || {
        eventually("both serve", || {
            (service.ctl(&["status"]).status == 0).then_some(())
        });
    };
    for by in [
        "itself",
        "asked",
        "stop-timeout",
        "ready-timeout",
        "operator",
        "oom-killer",
        "outside",
    ] {
        assert_eq!(ends(by), 0.0, "{by}");
    }
    service.dir.write("leave", "");
    eventually("it leaves", || (ends("itself") == 1.0).then_some(()));
    serving();
    let status = service.json();
    assert!(
        status.contains("\"status\":3,\"signal\":null,\"by\":\"itself\""),
        "{status}"
    );
    assert!(
        status.contains("\"stderr\":[\"last words of 0\"]"),
        "{status}"
    );

    kill(Pid::from_raw(pid_of(1)), Signal::SIGKILL).unwrap();
    eventually("it is killed", || (ends("outside") == 1.0).then_some(()));
    serving();
    let table = service.ctl(&["status"]).out;
    assert!(table.contains("signal KILL (outside), "), "{table}");

    assert_eq!(service.ctl(&["signal", "KILL", "0"]).status, 0);
    eventually("it is killed", || (ends("operator") == 1.0).then_some(()));
    serving();
    assert_eq!(service.ctl(&["remove"]).status, 0);
    eventually("it is killed, late", || {
        (ends("stop-timeout") == 1.0).then_some(())
    });
    assert_eq!(
        service.ctl(&["signal", "TERM", "7"]).status,
        1,
        "there is no slot 7"
    );
}

// Edge case 51.
#[test]
fn the_oom_killer_is_told_from_a_kill_by_hand() {
    // Either version of the memory controller, where it can be used.
    let group = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
        .iter()
        .map(|root| PathBuf::from(root).join(format!("spawnwork-test-{}", std::process::id())))
        .find(|path| {
            let made = std::fs::create_dir(path).is_ok();
            made && (path.join("memory.limit_in_bytes").exists()
                || path.join("memory.max").exists())
        })
        .expect("a cgroup with a memory controller (as root)");
    let limit = ["memory.limit_in_bytes", "memory.max"]
        .iter()
        .map(|name| group.join(name))
        .find(|path| path.exists())
        .unwrap();
    std::fs::write(limit, "48M").unwrap();
    let dir = Dir::new();
    dir.write(
        "hungry.py",
        "import os, time\nif os.environ['WORKER_ID'] == '1' and not os.path.exists('fed'):\n    open('fed', 'w').close()\n    time.sleep(0.3)\n    a = bytearray(200 << 20)\ntime.sleep(600)\n",
    );
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.display());
    let mut master = Run::new("sh")
        .args(["-c", &enter, "sh", SPAWNWORK])
        .args([
            "-n",
            "2",
            "--ready",
            "alive:100ms",
            "--",
            "python3",
            "hungry.py",
        ])
        .dir(dir.path())
        .start();
    let line = master.event_with("worker-exited", "slot=1");
    assert_eq!(
        (field(&line, "signal"), field(&line, "by")),
        ("KILL".into(), "oom-killer".into()),
        "{line}"
    );
    let ready = master.event_with("worker-ready", "slot=1");
    kill(
        Pid::from_raw(field(&ready, "pid").parse().unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    let line = master.event_with("worker-exited", "slot=1");
    let line = if field(&line, "by") == "oom-killer" {
        master.event_with("worker-exited", "slot=1")
    } else {
        line
    };
    assert_eq!(field(&line, "by"), "outside", "{line}");
    assert_eq!(master.stop(), 0);
    eventually("the cgroup is empty", || std::fs::remove_dir(&group).ok());
}

#[test]
fn the_queue_of_a_socket_is_counted() {
    let port = free_port();
    let dir = Dir::new();
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "1", "--control", "c.sock", "--backlog", "3", "-l"])
        .args([format!("web=127.0.0.1:{port}")])
        .args([
            "-l",
            "unix:u.sock",
            "--ready",
            "alive:10ms",
            "--",
            "sleep",
            "600",
        ])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let service = Service { dir, master, port };
    let address = format!("127.0.0.1:{port}");
    let series = |what: &str| format!("spawnwork_socket_{what}{{address=\"{address}\"}}");
    assert_eq!(service.metric(&series("queue_limit")), Some(3.0));
    assert_eq!(service.metric(&series("queue_length")), Some(0.0));
    let waiting: Vec<_> = (0..4)
        .map(|_| std::net::TcpStream::connect(&address).unwrap())
        .collect();
    assert_eq!(service.metric(&series("queue_length")), Some(4.0));
    assert_eq!(service.metric(&series("overflows_total")), Some(0.0));
    let full =
        std::net::TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(200));
    assert!(full.is_err());
    assert!(service.metric(&series("overflows_total")).unwrap() > 0.0);
    let _unix = UnixStream::connect(service.dir.path().join("u.sock")).unwrap();
    assert_eq!(
        service.metric("spawnwork_socket_queue_length{address=\"unix:u.sock\"}"),
        Some(1.0)
    );
    assert_eq!(
        service.metric("spawnwork_socket_queue_limit{address=\"unix:u.sock\"}"),
        Some(3.0)
    );
    drop(waiting);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let service = Service::node(&["-n", "2"]);
    service.write("throw 1");
    assert_eq!(service.ctl(&["reload"]).status, 1);
    let line = format!(
        "{SPAWNWORK} --ctl {} metrics > m.txt && promtool check metrics < m.txt",
        service.socket().display()
    );
    let checked = Run::new("sh")
        .args(["-c", &line])
        .dir(service.dir.path())
        .finish();
    assert_eq!(
        (checked.status, checked.out.as_str(), checked.err.as_str()),
        (0, "", "")
    );
    assert_eq!(service.metric("spawnwork_frozen"), Some(1.0));
    assert_eq!(
        service.metric("spawnwork_reloads_total{result=\"failed\"}"),
        Some(1.0)
    );
    assert_eq!(service.metric("spawnwork_workers_serving"), Some(2.0));
    assert!(
        service
            .metric("spawnwork_worker_resident_bytes{slot=\"1\"}")
            .unwrap()
            > 1e6
    );
}

#[test]
fn json_is_json_and_names_what_the_page_names() {
    let service = Service::node(&["-n", "2"]);
    let text = service.json();
    let top: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("state", "\"running\""),
        ("healthy", "true"),
        ("generation", "1"),
        ("workers", "2"),
        ("serving", "2"),
        ("frozen", "null"),
    ] {
        assert_eq!(top[key].get(), value, "{key}");
    }
    let slots: Vec<BTreeMap<String, Box<RawValue>>> =
        serde_json::from_str(top["slots"].get()).unwrap();
    assert_eq!(slots.len(), 2);
    let worker: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(slots[1]["worker"].get()).unwrap();
    let pid: i32 = worker["pid"].get().parse().unwrap();
    assert!(kit::run::children_of(service.master.pid()).contains(&pid));
}

#[test]
fn events_are_streamed_and_socat_is_enough() {
    let dir = Dir::new();
    let master = Run::new(SPAWNWORK)
        .args([
            "-n",
            "2",
            "--quiet",
            "--control",
            "c.sock",
            "--ready",
            "alive:50ms",
        ])
        .args(["--", "sleep", "600"])
        .dir(dir.path())
        .start();
    let mut service = Service {
        dir,
        master,
        port: 0,
    };
    eventually("both serve", || {
        (service.ctl(&["status"]).status == 0).then_some(())
    });
    let socket = service.socket();
    let target = format!("UNIX-CONNECT:{}", socket.display());
    let line = format!("echo status | socat -t 10 - {target}");
    let status = Run::new("sh").args(["-c", &line]).finish();
    assert_eq!(status.status, 0);
    assert!(status.out.starts_with("spawnwork "), "{}", status.out);
    assert_eq!(status.out.lines().last(), Some("OK 2 of 2 workers serve"));

    let listener = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([&socket])
        .args(["events"])
        .start();
    eventually("it listens", || {
        listener.out().contains("# events").then_some(())
    });
    assert_eq!(service.ctl(&["add"]).status, 0);
    eventually(
        "the event comes, though --quiet keeps it out of the log",
        || {
            listener
                .out()
                .contains("workers-changed workers=3")
                .then_some(())
        },
    );
    assert!(!service.master.err().join("\n").contains("workers-changed"));
    assert_eq!(service.master.stop(), 0);
    let mut listener = listener;
    assert_eq!(listener.end(), 0);
    assert!(
        listener.out().contains(": stopped status=0"),
        "{}",
        listener.out()
    );
}

#[test]
fn clear_forgets_the_freeze_and_lets_held_slots_try_again() {
    let mut service = Service::shell(
        &[
            "-n",
            "2",
            "--respawn-limit",
            "1/60s",
            "--backoff",
            "10ms..60s",
        ],
        "[ $WORKER_ID = 0 ] || [ ! -e bad ] || exit 1; exec sleep 600",
    );
    service.dir.write("bad", "");
    let line = service.ctl(&["status"]).out;
    let row = line.lines().find(|line| line.starts_with("1 ")).unwrap();
    let pid: i32 = row.split_whitespace().nth(1).unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    service.master.event("worker-held");
    assert_eq!(service.ctl(&["status"]).status, 1);
    assert!(service.ctl(&["status"]).out.contains(" held "));
    std::fs::remove_file(service.dir.path().join("bad")).unwrap();
    assert_eq!(service.ctl(&["clear"]).status, 0);
    service.master.event("cleared");
    eventually("both serve", || {
        (service.ctl(&["status"]).status == 0).then_some(())
    });
}

#[test]
fn what_is_no_request_is_refused_and_nothing_happens() {
    let service = Service::shell(&["-n", "1"], "exec sleep 600");
    for (request, start) in [
        (&b"bogus\n"[..], "ERR 2 unknown request 'bogus'"),
        (b"add -1\n", "ERR 2 '-1': a number"),
        (b"\xff\xfe\x00\x01\n", "ERR 2 the request is no text"),
        (b"status\x1b[2J\n", "ERR 2 the request is no text"),
        (b"\n", "ERR 2 an empty request"),
        (
            b"status json extra\n",
            "ERR 2 status is asked as: status [json]",
        ),
    ] {
        let answer = service.raw(request);
        assert!(answer.starts_with(start), "{request:?}: {answer}");
        assert_eq!(answer.lines().count(), 1);
    }
    let long = [b"help ".as_slice(), &[b'x'; 5000]].concat();
    assert!(
        service
            .raw(&long)
            .starts_with("ERR 2 a request has at most 4096 bytes")
    );
    assert!(
        service
            .raw(b"version\nstatus\n")
            .starts_with("OK spawnwork ")
    );
    for (words, status) in [
        (&["bogus"][..], 2),
        (&["add", "0"], 2),
        (&["version"], 0),
        (&["help"], 0),
    ] {
        assert_eq!(service.ctl(words).status, status, "{words:?}");
    }
    let nothing = Run::new(SPAWNWORK).args(["--ctl", "nowhere.sock"]).finish();
    assert_eq!(nothing.status, 2, "{}", nothing.err);
    let nobody = Run::new(SPAWNWORK)
        .args(["--ctl", "nowhere.sock", "status"])
        .finish();
    assert_eq!(nobody.status, 125);
    assert!(
        nobody.err.contains("nobody answers there"),
        "{}",
        nobody.err
    );
    let timeout = Run::new(SPAWNWORK)
        .args(["--timeout", "3", "--", "true"])
        .finish();
    assert_eq!(timeout.status, 2, "{}", timeout.err);
}

#[test]
fn only_root_and_the_user_may_ask() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    let service = Service::shell(&["-n", "1"], "exec sleep 600");
    std::fs::set_permissions(service.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(
        std::fs::metadata(service.socket())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    // Somebody opened it to all.
    std::fs::set_permissions(service.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    let script = format!(
        "import os, socket\nos.setgid(65534); os.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\ns.connect('{}')\ntry:\n    s.sendall(b'quit\\n')\nexcept OSError:\n    pass\nprint(s.recv(4096).decode(), end='')",
        service.socket().display()
    );
    let refused = Run::new("python3").args(["-c", &script]).finish();
    assert_eq!(
        refused.out, "ERR 125 only root and the user of this process may ask\n",
        "{}",
        refused.err
    );
    assert_eq!(service.ctl(&["status"]).status, 0);
}

#[test]
fn clients_that_send_nothing_or_read_nothing_delay_nobody() {
    let mut service = Service::node(&["-n", "2"]);
    let mut clients = Vec::new();
    for number in 0..40 {
        let mut client = UnixStream::connect(service.socket()).unwrap();
        match number % 4 {
            0 => {}
            1 => client.write_all(b"stat").unwrap(),
            2 => drop(client.write_all(b"events\n")),
            _ => drop(client.write_all(b"status json\n")),
        }
        clients.push(client);
    }
    // While they are there, requests are served, and a reload has its result; a place is free as soon
    // as those that do nothing are closed.
    for _ in 0..20 {
        assert!(get(format!("127.0.0.1:{}", service.port), "/").is_ok());
    }
    service.master.signal(Signal::SIGUSR2);
    service.master.event("reload-committed");
    let mut last = clients.pop().unwrap();
    last.set_read_timeout(Some(kit::PATIENCE)).unwrap();
    let mut answer = String::new();
    let _ = last.read_to_string(&mut answer);
    assert!(answer.starts_with("ERR 125 too many clients"), "{answer}");
    // The silent ones are closed by us; the first of them sees the end of file.
    let silent = &mut clients[0];
    silent.set_read_timeout(Some(kit::PATIENCE)).unwrap();
    let mut nothing = [0u8; 8];
    assert_eq!(silent.read(&mut nothing).unwrap(), 0);
    eventually("a place is free", || {
        (service.ctl(&["version"]).status == 0).then_some(())
    });
}

// Edge case 27.
#[test]
fn a_second_master_on_the_same_socket_ends_with_125_and_a_stale_one_is_no_hindrance() {
    let mut service = Service::shell(&["-n", "1"], "exec sleep 600");
    let second = Run::new(SPAWNWORK)
        .args(["--control", "c.sock", "--", "sleep", "600"])
        .dir(service.dir.path())
        .finish();
    assert_eq!(second.status, 125);
    let holder = format!("held by pid {}, spawnwork", service.master.pid());
    assert!(second.err.contains(&holder), "{}", second.err);
    assert_eq!(
        service.ctl(&["status"]).status,
        0,
        "the first one is not disturbed"
    );
    kill(Pid::from_raw(service.master.pid()), Signal::SIGKILL).unwrap();
    service.master.end();
    assert!(service.socket().exists());
    let mut third = Run::new(SPAWNWORK)
        .args([
            "-n",
            "1",
            "--control",
            "c.sock",
            "--ready",
            "alive:10ms",
            "--",
            "sleep",
            "600",
        ])
        .dir(service.dir.path())
        .start();
    third.event("generation-serving");
    assert_eq!(service.ctl(&["status"]).status, 0);
    assert_eq!(third.stop(), 0);
    assert!(!service.socket().exists());
}

// Edge case 46.
#[test]
fn without_a_free_descriptor_clients_are_turned_away_and_nothing_spins() {
    let dir = Dir::new();
    let mut master = Run::new("sh")
        .args(["-c", "ulimit -n 48 && exec \"$@\"", "sh", SPAWNWORK])
        .args([
            "-n",
            "1",
            "--control",
            "c.sock",
            "--ready",
            "alive:10ms",
            "--",
            "sleep",
            "600",
        ])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let service = Service {
        dir,
        master,
        port: 0,
    };
    let clients: Vec<_> = (0..60)
        .filter_map(|_| UnixStream::connect(service.socket()).ok())
        .collect();
    let mut last = clients.last().unwrap().try_clone().unwrap();
    last.set_read_timeout(Some(kit::PATIENCE)).unwrap();
    let mut answer = String::new();
    let _ = last.read_to_string(&mut answer);
    assert!(answer.starts_with("ERR 125 too many"), "{answer}");
    drop(clients);
    eventually("it answers again", || {
        (service.ctl(&["status"]).status == 0).then_some(())
    });
}

#[test]
fn quit_does_not_wait_for_anybody() {
    let mut service = Service::shell(
        &["-n", "2", "--stop-timeout", "600s"],
        "trap '' TERM; while :; do sleep 0.1; done",
    );
    let quit = service.ctl(&["quit"]);
    assert_eq!(quit.status, 0, "{}", quit.err);
    assert_eq!(service.master.end(), 0);
    let line = service.master.event("stop-requested");
    assert_eq!(field(&line, "by"), "operator", "{line}");
    for _ in 0..2 {
        let line = service.master.event("worker-exited");
        assert_eq!(field(&line, "signal"), "KILL", "{line}");
    }
    assert!(!service.socket().exists());
}

#[test]
fn a_worker_that_was_not_ready_in_time_is_told_from_one_that_died() {
    let service = Service::node(&["-n", "1", "--ready-timeout", "4s"]);
    service.write("console.error('I hang'); setInterval(() => {}, 1000);");
    assert_eq!(service.ctl(&["reload"]).status, 1);
    let series = "spawnwork_worker_exits_total{by=\"ready-timeout\"}";
    eventually("its end is counted", || {
        (service.metric(series) == Some(1.0)).then_some(())
    });
    let json = service.json();
    assert!(json.contains("\"by\":\"ready-timeout\""), "{json}");
}

#[test]
fn a_client_that_asks_for_much_and_reads_nothing_is_closed() {
    let service = Service::shell(&["-n", "1"], "exec sleep 600");
    let sockets = || {
        std::fs::read_dir(format!("/proc/{}/fd", service.master.pid()))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    };
    let before = sockets();
    let mut deaf = UnixStream::connect(service.socket()).unwrap();
    deaf.write_all(b"events\n").unwrap();
    eventually("it is there", || (sockets() == before + 1).then_some(()));
    // More than its buffer takes; others are asked and answered meanwhile.
    eventually("it is closed", || {
        for _ in 0..200 {
            kill(Pid::from_raw(service.master.pid()), Signal::SIGUSR1).unwrap();
        }
        assert_eq!(service.ctl(&["version"]).status, 0);
        (sockets() == before).then_some(())
    });
    // What it had been sent is there, and then the end.
    deaf.set_read_timeout(Some(kit::PATIENCE)).unwrap();
    let mut text = Vec::new();
    deaf.read_to_end(&mut text).unwrap();
    assert!(text.starts_with(b"# events"), "{} bytes", text.len());
}

#[test]
fn an_answer_that_cannot_be_kept_is_none() {
    let service = Service::shell(&["-n", "40"], "exec sleep 600");
    let ask = |words: &str, to: &str| {
        let line = format!("exec \"$0\" --ctl c.sock {words} >{to}");
        Run::new("sh")
            .args(["-c", &line, SPAWNWORK])
            .dir(service.dir.path())
            .finish()
    };
    for words in ["status", "metrics", "version"] {
        let full = ask(words, "/dev/full");
        assert_eq!(full.status, 125, "{words}: {}", full.err);
        assert!(
            full.err.contains("no space left on device"),
            "{words}: {}",
            full.err
        );
    }
    // A pipe that somebody has made non-blocking: what does not fit waits, and all of it comes.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut asking = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([service.socket()])
        .args(["metrics"])
        .stdout(writer)
        .start();
    // It waits for room, or is so far.
    eventually("it sleeps", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", asking.pid())).ok()?;
        (stat.contains(") S ") || stat.contains(") Z ")).then_some(())
    });
    let mut text = String::new();
    std::fs::File::from(reader)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(asking.end(), 0, "{:?}", asking.err());
    assert!(text.len() > 8192, "{}", text.len());
    let whole = service.ctl(&["metrics"]).out;
    assert_eq!(text.lines().count(), whole.lines().count());
}
