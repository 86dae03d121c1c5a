//! Signals with other actions, sockets in the words of other masters, a socket for each slot, an address
//! that is busy, and what is said without doing it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::{self, Failure, get};
use kit::load::{Load, Options};
use kit::{Dir, Finished, Run, Running, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

fn spawnwork<T: AsRef<OsStr>>(args: impl IntoIterator<Item = T>) -> Run {
    Run::new(SPAWNWORK).args(args)
}

/// One for which staying alive for a moment is being ready.
fn brief<T: AsRef<OsStr>>(args: impl IntoIterator<Item = T>) -> Run {
    spawnwork(["--ready", "alive:100ms", "--probation", "100ms"]).args(args)
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// plain_server.py, ready when it says so.
fn server(options: &[&str]) -> Run {
    spawnwork(["--ready", "notify", "--probation", "100ms"])
        .args(options)
        .args(["--", "python3", &text(app("plain_server.py")), "notify"])
}

fn number(line: &str, key: &str) -> i32 {
    field(line, key).parse().unwrap()
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn stopped(pid: i32) {
    send(pid, Signal::SIGSTOP);
    eventually("it is stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let state = stat.rsplit(") ").next().unwrap().chars().next();
        (state == Some('T')).then_some(())
    });
}

fn lines_of(running: &Running, event: &str) -> Vec<String> {
    let head = format!(": {event} ");
    let lines = running.err().into_iter();
    lines.filter(|line| line.contains(&head)).collect()
}

fn said(running: &Running, what: &str, times: usize) {
    eventually(&format!("'{what}' in its output"), || {
        let count = running.out().lines().filter(|line| *line == what).count();
        (count == times).then_some(())
    });
}

/// The line that the status has for the whole.
fn status(running: &mut Running) -> String {
    running.signal(Signal::SIGUSR1);
    running.event_with("status", "workers=")
}

/// The pid of each slot's first worker.
fn pids(running: &mut Running, workers: usize) -> Vec<i32> {
    let mut pids = vec![0; workers];
    for _ in 0..workers {
        let line = running.event("worker-ready");
        pids[number(&line, "slot") as usize] = number(&line, "pid");
    }
    pids
}

/// Ends with 2 and one line that holds `parts`.
fn wrong(run: Run, parts: &[&str]) {
    let run = run.finish();
    assert_eq!(run.status, 2, "{}", run.err);
    assert_eq!(run.err.lines().count(), 1, "{}", run.err);
    for part in parts {
        assert!(run.err.contains(part), "no '{part}' in: {}", run.err);
    }
    assert_eq!(run.out, "");
}

// ---- --on-signal ----

#[test]
fn a_forwarded_signal_reaches_every_workers_group_and_does_nothing_else() {
    // The shell's child is in the group, too.
    let script = "(trap 'echo child' HUP; echo up; while :; do sleep 0.05; done) & \
                  trap 'echo got' HUP; trap 'echo other' WINCH; echo up; while :; do sleep 0.05; done";
    let mut run = brief(["-n", "2", "--output", "lines"])
        .args([
            "--on-signal",
            "HUP=forward",
            "--on-signal",
            "ALRM=forward:winch",
        ])
        .args(["--", "sh", "-c", script])
        .start();
    run.event("generation-serving");
    said(&run, "up", 4);
    run.signal(Signal::SIGHUP);
    let line = run.event("signal-forwarded");
    assert_eq!(
        (field(&line, "signal"), number(&line, "workers")),
        ("HUP".to_owned(), 2)
    );
    said(&run, "got", 2);
    said(&run, "child", 2);
    run.signal(Signal::SIGALRM);
    let line = run.event("signal-forwarded");
    assert_eq!(
        (field(&line, "signal"), number(&line, "workers")),
        ("WINCH".to_owned(), 2)
    );
    said(&run, "other", 2);
    status(&mut run);
    assert!(lines_of(&run, "reload-started").is_empty());
    assert!(lines_of(&run, "worker-exited").is_empty());
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_worker_that_starts_gets_a_forwarded_signal_when_it_is_ready() {
    let dir = Dir::new();
    let (go, up) = (text(dir.path().join("go")), text(dir.path().join("up")));
    // Until the file is there, HUP would end it.
    let script = "echo begun; while [ ! -e \"$1\" ]; do sleep 0.05; done; trap 'echo got' HUP; : > \"$2\"; \
                  while :; do sleep 0.05; done";
    let ready = format!("exec:test -e {up}");
    let mut run = spawnwork(["-n", "1", "--output", "lines", "--ready", &ready])
        .args([
            "--on-signal",
            "HUP=forward",
            "--",
            "sh",
            "-c",
            script,
            "sh",
            &go,
            &up,
        ])
        .start();
    said(&run, "begun", 1);
    run.signal(Signal::SIGHUP);
    assert_eq!(number(&run.event("signal-forwarded"), "workers"), 1);
    assert!(lines_of(&run, "worker-exited").is_empty());
    dir.write("go", "");
    run.event("worker-ready");
    said(&run, "got", 1);
    assert_eq!(run.stop(), 0);
    assert_eq!(lines_of(&run, "worker-started").len(), 1);
}

#[test]
fn any_signal_can_have_any_action() {
    let mut run = brief(["-n", "1"])
        .args(["--on-signal", "WINCH=add", "--on-signal", "SIGALRM=remove"])
        .args(["--on-signal", "pipe=status", "--on-signal", "USR1=reload"])
        .args([
            "--on-signal",
            "USR2=ignore",
            "--on-signal",
            "HUP=stop",
            "--",
            "sleep",
            "1000",
        ])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGWINCH);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 2);
    run.signal(Signal::SIGALRM);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 1);
    run.signal(Signal::SIGUSR2);
    run.signal(Signal::SIGPIPE);
    run.event_with("status", "workers=1");
    run.signal(Signal::SIGUSR1);
    assert_eq!(field(&run.event("reload-started"), "generation"), "2");
    run.event("reload-committed");
    run.signal(Signal::SIGHUP);
    assert_eq!(field(&run.event("stop-requested"), "signal"), "HUP");
    assert_eq!(run.end(), 0);

    let mut run = brief(["-n", "1", "--on-signal", "ALRM=quit"])
        .args([
            "--",
            "sh",
            "-c",
            "trap '' TERM; while :; do sleep 0.1; done",
        ])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGALRM);
    run.event_with("worker-exited", "signal=KILL");
    assert_eq!(run.end(), 0);
}

#[test]
fn an_action_for_hup_holds_where_hup_was_ignored_at_the_start() {
    let mut run = Run::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", SPAWNWORK])
        .args([
            "--ready",
            "alive:100ms",
            "-n",
            "1",
            "--on-signal",
            "HUP=add",
        ])
        .args(["--", "sleep", "1000"])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGHUP);
    run.event_with("workers-changed", "workers=2");
    assert_eq!(run.stop(), 0);
}

#[test]
fn signals_and_actions_that_cannot_be_are_refused_by_name() {
    for (value, part) in [
        ("KILL=stop", "KILL"),
        ("SIGSTOP=ignore", "STOP"),
        ("CHLD=reload", "CHLD"),
        ("SEGV=status", "SEGV"),
        ("7=status", "BUS"),
        ("HUP=restart", "restart"),
        ("HUP=forward:NOPE", "NOPE"),
        ("NOPE=reload", "NOPE"),
        ("HUP", "SIG=ACTION"),
    ] {
        wrong(
            spawnwork(["--on-signal", value, "--", "true"]),
            &["--on-signal", part],
        );
        wrong(
            spawnwork(["true"]).env("SPAWNWORK_ON_SIGNAL", value),
            &["--on-signal", part],
        );
    }
    let twice = [
        "--on-signal",
        "HUP=stop",
        "--on-signal",
        "SIGHUP=reload",
        "true",
    ];
    wrong(spawnwork(twice), &["--on-signal", "HUP", "two actions"]);
}

// ---- more workers and fewer, at any time ----

#[test]
fn a_change_of_the_number_during_a_reload_follows_it() {
    let dir = Dir::new();
    let up = text(dir.path().join("up"));
    let ready = format!("exec:test -e {up}");
    dir.write("up", "");
    let mut run = spawnwork(["-n", "2", "--probation", "100ms", "--control", "c.sock"])
        .args(["--ready", &ready, "--", "sleep", "1000"])
        .dir(dir.path())
        .start();
    run.event("generation-serving");
    std::fs::remove_file(&up).unwrap();
    run.signal(Signal::SIGUSR2);
    run.event("worker-started");
    run.signal(Signal::SIGTTIN);
    assert_eq!(number(&run.event("workers-queued"), "workers"), 3);
    run.signal(Signal::SIGTTOU);
    assert_eq!(number(&run.event("workers-queued"), "workers"), 2);
    let ctl = |words: &[&str]| -> Finished {
        let run = spawnwork(["--ctl", "c.sock"]).args(words).dir(dir.path());
        run.finish()
    };
    let answer = ctl(&["add", "3"]);
    assert_eq!(answer.status, 0, "{}", answer.err);
    assert_eq!(answer.out, "5 workers when the reload is done\n");
    assert_eq!(number(&run.event("workers-queued"), "workers"), 5);
    assert_eq!(number(&status(&mut run), "workers"), 2);
    dir.write("up", "");
    assert_eq!(number(&run.event("reload-committed"), "workers"), 2);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 5);
    for _ in 0..3 {
        run.event_with("worker-ready", "generation=2");
    }
    assert_eq!(ctl(&["workers", "1"]).out, "1 workers\n");
    assert_eq!(number(&run.event("workers-changed"), "workers"), 1);
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_change_of_the_number_while_the_first_generation_starts_is_made_at_once() {
    // The second slot is never ready.
    let mut run = spawnwork(["-n", "2", "--ready", "exec:test $WORKER_ID -eq 0"])
        .args(["--", "sleep", "1000"])
        .start();
    run.event("worker-ready");
    run.signal(Signal::SIGTTIN);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 3);
    assert_eq!(number(&run.event("worker-started"), "slot"), 2);
    run.signal(Signal::SIGTTOU);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 2);
    run.signal(Signal::SIGTTOU);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 1);
    // All that are left serve.
    assert_eq!(number(&run.event("generation-serving"), "workers"), 1);
    assert_eq!(run.stop(), 0);
}

// ---- --compat ----

#[test]
fn a_client_of_einhorn_finds_its_sockets() {
    let dir = Dir::new();
    let path = dir.path().join("s");
    let port = free_port();
    let (tcp, unix) = (format!("127.0.0.1:{port}"), format!("unix:{}", text(&path)));
    let mut run = brief(["-n", "2", "-l", &tcp, "-l", &unix, "--compat", "einhorn"])
        .args(["--", "python3", &text(app("plain_einhorn.py"))])
        .start();
    run.event("generation-serving");
    let seen = |address: &str, socket: &str| {
        let mut children = BTreeSet::new();
        eventually("both answer", || {
            let body = get(address, "/").unwrap().body;
            let (child, which) = body.split_once(' ').unwrap();
            assert_eq!(which, socket);
            children.insert(child.to_owned());
            (children.len() == 2).then_some(())
        });
        assert_eq!(children, ["child=0", "child=1"].map(str::to_owned).into());
    };
    seen(&tcp, "socket=0");
    seen(&unix, "socket=1");
    assert!(lines_of(&run, "worker-exited").is_empty());
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_client_of_server_starter_finds_its_sockets() {
    let dir = Dir::new();
    let path = text(dir.path().join("s"));
    let port = free_port();
    let tcp = format!("127.0.0.1:{port}");
    let both = ["--compat", "einhorn,server-starter"];
    let mut run = brief(["-n", "1", "-l", &tcp, "-l", &path])
        .args(both)
        .args(["--", "perl", &text(app("plain_starter.pl"))])
        .start();
    run.event("generation-serving");
    for generation in [1, 2] {
        for (address, name) in [(&tcp, &tcp), (&format!("unix:{path}"), &path)] {
            let expected = format!("address={name} generation={generation}");
            eventually(&expected, || {
                let body = get(address, "/").ok()?.body;
                (body == expected).then_some(())
            });
        }
        if generation == 1 {
            run.signal(Signal::SIGUSR2);
            run.event("reload-committed");
        }
    }
    assert_eq!(run.stop(), 0);
}

// Edge case 32.
#[test]
fn any_free_port_is_the_same_one_in_log_status_and_environment() {
    let dir = Dir::new();
    let mut run = brief(["-n", "1", "-l", "127.0.0.1:0", "--control", "c.sock"])
        .args(["--compat", "server-starter", "--", "sleep", "1000"])
        .dir(dir.path())
        .start();
    let address = field(&run.event("socket-bound"), "address");
    assert!(!address.ends_with(":0"), "{address}");
    let pid = field(&run.event("worker-ready"), "pid");
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let told = format!("\0SERVER_STARTER_PORT={address}=3\0");
    assert!(environ.contains(&told), "{environ:?}");
    for words in [&["status"][..], &["status", "json"], &["metrics"]] {
        let answer = spawnwork(["--ctl", "c.sock"])
            .args(words)
            .dir(dir.path())
            .finish();
        assert!(answer.out.contains(&address), "{words:?}: {}", answer.out);
        assert!(
            !answer.out.contains("127.0.0.1:0 "),
            "{words:?}: {}",
            answer.out
        );
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn variables_of_a_master_above_are_not_passed_on() {
    let script = "env | grep -E '^(EINHORN|SERVER_STARTER)_' | sort; echo end; exec sleep 1000";
    let start = |options: &[&str]| {
        brief(["-n", "1", "--output", "lines"])
            .args(options)
            .args(["--", "sh", "-c", script])
            .env("EINHORN_FD_7", "9")
            .env("EINHORN_FD_COUNT", "8")
            .env("SERVER_STARTER_PORT", "80=9")
            .start()
    };
    let run = start(&[]);
    said(&run, "end", 1);
    assert_eq!(run.out(), "end\n");
    // Theirs are set without a socket, too.
    let run = start(&["--compat", "server-starter,einhorn"]);
    said(&run, "end", 1);
    let pid = run.pid();
    assert_eq!(
        run.out(),
        format!(
            "EINHORN_CHILD_INDEX=0\nEINHORN_FDS=\nEINHORN_FD_COUNT=0\nEINHORN_MASTER_PID={pid}\n\
             SERVER_STARTER_GENERATION=1\nSERVER_STARTER_PORT=\nend\n"
        )
    );
}

#[test]
fn what_compat_cannot_say_is_refused() {
    wrong(
        spawnwork(["--compat", "upstart", "true"]),
        &["--compat", "upstart"],
    );
    wrong(spawnwork(["--compat", "", "true"]), &["--compat"]);
    for path in ["/tmp/a=b", "/tmp/a;b"] {
        wrong(
            spawnwork([
                "--compat",
                "server-starter",
                "-l",
                &format!("unix:{path}"),
                "true",
            ]),
            &["--compat server-starter", path],
        );
    }
}

// ---- --balance slots ----

/// Connections that are open, each with a request that was sent.
fn requests(address: &str, count: usize) -> Vec<std::thread::JoinHandle<Result<String, String>>> {
    let connections: Vec<_> = (0..count)
        .map(|_| http::connect(address, kit::PATIENCE).expect("somebody listens"))
        .collect();
    connections
        .into_iter()
        .map(|mut connection| {
            std::thread::spawn(move || {
                let reply = http::exchange(&mut connection, "/", false);
                reply
                    .map(|reply| reply.body)
                    .map_err(|why: Failure| format!("{why:?}"))
            })
        })
        .collect()
}

fn answers(requests: Vec<std::thread::JoinHandle<Result<String, String>>>) -> Vec<String> {
    let all = requests.into_iter().map(|one| one.join().unwrap());
    all.map(|answer| answer.expect("an answer to each"))
        .collect()
}

fn words_of(answers: &[String], index: usize) -> BTreeSet<String> {
    let word = |body: &String| body.split_whitespace().nth(index).unwrap().to_owned();
    answers.iter().map(word).collect()
}

#[test]
fn a_connection_to_a_dead_slot_is_served_by_its_successor() {
    let dir = Dir::new();
    let gate = text(dir.path().join("closed"));
    let address = format!("127.0.0.1:{}", free_port());
    let script = "while [ -e \"$1\" ]; do sleep 0.05; done; exec python3 \"$0\" notify";
    let mut run = spawnwork(["-n", "2", "-l", &address, "--balance", "slots"])
        .args(["--ready", "notify", "--", "sh", "-c", script])
        .args([text(app("plain_server.py")), gate.clone()])
        .start();
    let pids = pids(&mut run, 2);
    assert_eq!(words_of(&answers(requests(&address, 60)), 0).len(), 2);
    dir.write("closed", "");
    send(pids[1], Signal::SIGKILL);
    run.event_with("worker-exited", "slot=1");
    let waiting = requests(&address, 60);
    // Those of the other slot have their answers at once.
    eventually("the answers of slot 0", || {
        waiting.iter().any(|one| one.is_finished()).then_some(())
    });
    assert!(waiting.iter().any(|one| !one.is_finished()));
    std::fs::remove_file(&gate).unwrap();
    let all = answers(waiting);
    let workers = words_of(&all, 0);
    assert_eq!(workers, ["worker=0", "worker=1"].map(str::to_owned).into());
    let successor = run.event_with("worker-ready", "slot=1");
    let successor = format!("pid={}", number(&successor, "pid"));
    assert_eq!(
        words_of(&all, 1),
        [format!("pid={}", pids[0]), successor].into()
    );
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_slot_that_is_removed_empties_its_queue_before_it_goes() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = server(&["-n", "3", "-l", &address, "--balance", "slots"]).start();
    let pids = pids(&mut run, 3);
    run.event("generation-serving");
    stopped(pids[2]);
    let waiting = requests(&address, 90);
    eventually("the answers of the others", || {
        let left = waiting.iter().filter(|one| !one.is_finished()).count();
        (left < 60).then_some(())
    });
    run.signal(Signal::SIGTTOU);
    assert_eq!(number(&run.event("workers-queued"), "workers"), 2);
    // No new connection goes to a slot that is to be removed.
    let new = answers(requests(&address, 60));
    assert_eq!(
        words_of(&new, 0),
        ["worker=0", "worker=1"].map(str::to_owned).into()
    );
    let left = waiting.iter().filter(|one| !one.is_finished()).count();
    assert!(left > 0, "nothing waited for slot 2");
    // It is still one of three, and its worker was told nothing.
    assert_eq!(number(&status(&mut run), "workers"), 3);
    assert!(lines_of(&run, "worker-stopping").is_empty());
    send(pids[2], Signal::SIGCONT);
    assert_eq!(words_of(&answers(waiting), 0).len(), 3);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 2);
    assert_eq!(number(&run.event("worker-exited"), "pid"), pids[2]);
    assert_eq!(words_of(&answers(requests(&address, 60)), 0).len(), 2);

    // One that comes has a socket of its own, and gets its share.
    run.signal(Signal::SIGTTIN);
    assert_eq!(number(&run.event("workers-changed"), "workers"), 3);
    run.event_with("worker-ready", "slot=2");
    assert_eq!(words_of(&answers(requests(&address, 90)), 0).len(), 3);
    assert!(lines_of(&run, "queue-lost").is_empty());
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_removed_slot_that_is_stuck_goes_all_the_same_and_its_loss_is_said() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = server(&["-n", "2", "-l", &address, "--balance", "slots"])
        .env("SPAWNWORK_STOP_TIMEOUT", "1500ms")
        .start();
    let pids = pids(&mut run, 2);
    run.event("generation-serving");
    stopped(pids[1]);
    let waiting = requests(&address, 60);
    run.signal(Signal::SIGTTOU);
    run.event_with("workers-changed", "workers=1");
    let line = run.event("queue-lost");
    let lost = number(&line, "count");
    assert_eq!(field(&line, "address"), address);
    let failed = waiting
        .into_iter()
        .map(|one| one.join().unwrap())
        .filter(Result::is_err)
        .count();
    assert!(failed > 0);
    // SIGCONT follows TERM: it may have taken some with it that it then did not answer.
    assert!(lost as usize <= failed, "{lost} {failed}");
    assert_eq!(
        words_of(&answers(requests(&address, 40)), 0),
        ["worker=0".to_owned()].into()
    );
    assert_eq!(run.stop(), 0);
}

#[test]
fn slots_keep_their_sockets_through_reloads_under_load() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = spawnwork(["-n", "2", "--balance", "slots", "--probation", "100ms"])
        .args([
            OsStr::new("--"),
            kit::node("22").as_os_str(),
            app("hello.js").as_os_str(),
        ])
        .env("PORT", address.rsplit(':').next().unwrap())
        .start();
    run.event("generation-serving");
    let load = Load::start(&Options {
        address: address.clone(),
        keep_alive: 4,
        fresh: 4,
        paths: vec!["/"],
        expect: "hello ",
        timeout: Duration::from_secs(30),
    });
    for generation in 2..5 {
        run.signal(Signal::SIGUSR2);
        run.event_with("reload-committed", &format!("generation={generation}"));
        // More and fewer cost nothing either.
        run.signal(Signal::SIGTTIN);
        run.event("workers-changed");
        run.event_with("worker-ready", "slot=2");
        run.signal(Signal::SIGTTOU);
        run.event("workers-changed");
        run.event_with("worker-exited", "slot=2");
    }
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    assert!(tally.served.len() >= 8, "{:?}", tally.served);
    assert_eq!(lines_of(&run, "socket-bound").len(), 1);
    assert_eq!(run.stop(), 0);
}

#[test]
fn what_waits_for_a_node_worker_that_dies_is_served_by_its_successor() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut run = spawnwork(["-n", "2", "--balance", "slots", "--"])
        .args([kit::node("22").as_os_str(), app("hello.js").as_os_str()])
        .env("PORT", port.to_string())
        .start();
    let pids = pids(&mut run, 2);
    run.event("generation-serving");
    stopped(pids[0]);
    let waiting = requests(&address, 60);
    eventually("the answers of slot 1", || {
        waiting.iter().any(|one| one.is_finished()).then_some(())
    });
    send(pids[0], Signal::SIGKILL);
    let successor = number(&run.event_with("worker-ready", "slot=0"), "pid");
    let expected: BTreeSet<String> = [pids[1], successor].map(|pid| pid.to_string()).into();
    assert_eq!(words_of(&answers(waiting), 1), expected);
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_port_that_only_one_node_worker_listens_on_is_served_by_it_alone() {
    let dir = Dir::new();
    let (all, one) = (free_port(), free_port());
    let program = format!(
        "const http = require('http');\n\
         const serve = (port) => http.createServer((_, response) => response.end('hello ' + process.env.WORKER_ID))\n\
         .listen(port, '127.0.0.1');\n\
         serve({all});\n\
         const last = process.env.SPAWNWORK_GENERATION === '1' ? '1' : '0';\n\
         if (process.env.WORKER_ID === last) serve({one});\n"
    );
    let path = dir.write("app.js", &program);
    let mut run = spawnwork([
        "-n",
        "2",
        "--balance",
        "slots",
        "--probation",
        "100ms",
        "--",
    ])
    .args([kit::node("22").as_os_str(), path.as_os_str()])
    .start();
    run.event("generation-serving");
    let everybody: BTreeSet<String> = ["0", "1"].map(str::to_owned).into();
    let (all, one) = (format!("127.0.0.1:{all}"), format!("127.0.0.1:{one}"));
    assert_eq!(words_of(&answers(requests(&all, 60)), 1), everybody);
    assert_eq!(
        words_of(&answers(requests(&one, 30)), 1),
        ["1".to_owned()].into()
    );
    // The next release has another worker listen there: nothing waits for the one that does not.
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    run.event("worker-exited");
    run.event("worker-exited");
    assert_eq!(
        words_of(&answers(requests(&one, 30)), 1),
        ["0".to_owned()].into()
    );
    assert_eq!(words_of(&answers(requests(&all, 60)), 1), everybody);
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_slots_socket_that_a_worker_shut_down_listens_again() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = server(&["-n", "2", "-l", &address, "--balance", "slots"]).start();
    run.event("generation-serving");
    let reply = get(&address, "/shutdown").unwrap();
    assert!(reply.body.starts_with("worker="), "{}", reply.body);
    run.event_with("socket-relistened", &address);
    let mut seen = BTreeSet::new();
    eventually("both answer again", || {
        seen.extend(
            get(&address, "/").map(|reply| reply.body.split(' ').next().unwrap().to_owned()),
        );
        (seen.len() == 2).then_some(())
    });
    assert_eq!(run.stop(), 0);
}

#[test]
fn slots_are_for_tcp_and_hide_no_address_in_use() {
    let dir = Dir::new();
    let unix = format!("unix:{}", text(dir.path().join("s")));
    wrong(
        spawnwork(["--balance", "slots", "true"]),
        &["--balance slots", "--listen"],
    );
    wrong(
        spawnwork(["--balance", "slots", "-l", &unix, "true"]),
        &["--balance slots", "unix"],
    );
    let address = format!("127.0.0.1:{}", free_port());
    // Beside a TCP socket, a unix socket is shared.
    let mut run = server(&["-n", "2", "-l", &address, "-l", &unix, "--balance", "slots"]).start();
    run.event("generation-serving");
    assert_eq!(words_of(&answers(requests(&address, 60)), 0).len(), 2);
    assert!(get(&unix, "/").unwrap().body.starts_with("worker="));
    let second = server(&["-n", "2", "-l", &address, "--balance", "slots"]).finish();
    assert_eq!(second.status, 125, "{}", second.err);
    assert!(second.err.contains("held by pid"), "{}", second.err);
    assert_eq!(run.stop(), 0);
}

// ---- --bind-retry ----

// Edge case 29.
#[test]
fn an_address_in_use_is_waited_for() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let mut run = server(&["-n", "1", "-l", &address, "--bind-retry", "60s"]).start();
    let line = run.event("bind-waiting");
    assert_eq!(field(&line, "address"), address);
    let pid = format!("pid {}", std::process::id());
    assert!(field(&line, "error").contains(&pid), "{line}");
    drop(holder);
    assert_eq!(field(&run.event("socket-bound"), "address"), address);
    run.event("generation-serving");
    assert!(get(&address, "/").unwrap().body.starts_with("worker=0"));
    assert_eq!(lines_of(&run, "bind-waiting").len(), 1);
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_stop_while_an_address_is_waited_for_ends_with_0() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let dir = Dir::new();
        let mut run = brief(["-l", "unix:s", "-l", &address, "--bind-retry", "1h"])
            .args([
                "--pid-file",
                "pid",
                "--control",
                "c",
                "-n",
                "1",
                "--",
                "sleep",
                "1000",
            ])
            .dir(dir.path())
            .start();
        run.event("bind-waiting");
        // It hears everything meanwhile.
        assert_eq!(number(&status(&mut run), "workers"), 1);
        let answer = spawnwork(["--ctl", "c", "add"]).dir(dir.path()).finish();
        assert_eq!((answer.status, answer.out.as_str()), (0, "2 workers\n"));
        for request in ["clear", "reload nowait"] {
            let words = request.split(' ');
            let asked = spawnwork(["--ctl", "c"]).args(words).dir(dir.path());
            assert_eq!(asked.finish().status, 0, "{request}");
        }
        run.signal(signal);
        assert_eq!(run.end(), 0, "{signal}");
        assert!(lines_of(&run, "worker-started").is_empty());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left"
        );
    }
}

// Edge case 29.
#[test]
fn an_address_that_stays_in_use_ends_with_125_and_its_holder() {
    let dir = Dir::new();
    let path = dir.path().join("s");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let pid = format!("pid {}", std::process::id());
    for address in [
        tcp.local_addr().unwrap().to_string(),
        format!("unix:{}", text(&path)),
    ] {
        let run = brief(["-l", &address, "--bind-retry", "300ms", "--", "true"]).finish();
        assert_eq!(run.status, 125, "{}", run.err);
        assert!(run.err.contains(": bind-waiting "), "{}", run.err);
        let last = run.err.lines().last().unwrap();
        assert!(last.starts_with("spawnwork: cannot bind "), "{last}");
        assert!(last.contains(&address) && last.contains(&pid), "{last}");
        assert!(!run.err.contains("worker-started"));
    }
    // Another error is none that time cures.
    let run = brief(["-l", "192.0.2.1:80", "--bind-retry", "1h", "--", "true"]).finish();
    assert_eq!(run.status, 125);
    for value in ["soon", "-1s", ""] {
        wrong(
            spawnwork([&format!("--bind-retry={value}"), "true"]),
            &["--bind-retry"],
        );
    }
}

// ---- --check-config ----

#[test]
fn what_would_be_done_is_said_and_not_done() {
    let dir = Dir::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let script = dir.write("app", "#!/bin/sh\necho started\n");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let check = || {
        spawnwork(["-n", "3", "-l", &format!("web={address}"), "-l", "unix:s"])
            .args([
                "--pid-file",
                "pid",
                "--control",
                "c",
                "--on-signal",
                "HUP=forward",
            ])
            .args(["-q", "--check-config", "--", "./app", "two words"])
            .env("SPAWNWORK_STOP_TIMEOUT", "5s")
            .dir(dir.path())
            .finish()
    };
    let run = check();
    assert_eq!((run.status, run.err.as_str()), (0, ""));
    let lines: Vec<&str> = run.out.lines().collect();
    for line in [
        "program: ./app 'two words'",
        "executable: ./app",
        "workers: 3",
        "node: no",
        &format!("listen: {address} as web"),
        "listen: unix:s as unknown, mode 0600",
        "--workers: 3",
        "--pid-file: pid",
        "--on-signal: HUP=forward",
        "--quiet: yes",
        "--stop-timeout: 5s (from SPAWNWORK_STOP_TIMEOUT)",
    ] {
        assert!(lines.contains(&line), "no '{line}' in:\n{}", run.out);
    }
    assert!(lines.iter().all(|line| line.contains(": ")), "{}", run.out);
    for absent in ["--probation", "--check-config", "--backlog", "started"] {
        assert!(!run.out.contains(absent), "{absent}:\n{}", run.out);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    // The same while it runs: that is when it is asked.
    let holder = TcpListener::bind(&address).unwrap();
    let run = check();
    assert_eq!((run.status, run.err.as_str()), (0, ""));
    let line = format!(
        "listen: {address} as web, in use now (held by pid {}, ",
        std::process::id()
    );
    assert!(run.out.contains(&line), "{}", run.out);
    drop(holder);
}

#[test]
fn what_a_start_would_end_with_is_found_without_one() {
    let dir = Dir::new();
    dir.write("file", "");
    dir.write("wrong.env", "nonsense\n");
    let table: &[(&[&str], i32, &[&str])] = &[
        (&["-n", "0", "true"], 2, &["--workers"]),
        (&["-l", "nonsense", "true"], 2, &["--listen"]),
        (&["--balance", "slots", "true"], 2, &["--balance"]),
        (&["--on-signal", "KILL=stop", "true"], 2, &["KILL"]),
        (&["-C", "missing", "true"], 125, &["missing"]),
        (
            &["--env-file", "wrong.env", "true"],
            125,
            &["wrong.env", "line 1"],
        ),
        (
            &["-u", "nobody-of-this-name", "true"],
            125,
            &["nobody-of-this-name"],
        ),
        (
            &["--pid-file", "missing/pid", "true"],
            125,
            &["missing/pid"],
        ),
        (&["--control", "file/c", "true"], 125, &["file/c"]),
        (&["-l", "unix:missing/s", "true"], 125, &["missing/s"]),
        (&["-l", "fd:99", "true"], 125, &["fd:99"]),
        (
            &["nonesuch-program"],
            127,
            &["nonesuch-program", "no such file"],
        ),
        (&["./file"], 126, &["./file", "permission denied"]),
        (&["--env", "PATH=/nonexistent", "true"], 127, &["true"]),
        (&["--ctl", "x", "status"], 2, &["--check-config"]),
    ];
    for (words, status, parts) in table {
        let run = spawnwork(["--check-config"])
            .args(*words)
            .dir(dir.path())
            .finish();
        assert_eq!(run.status, *status, "{words:?}: {}", run.err);
        assert_eq!(run.err.lines().count(), 1, "{words:?}: {}", run.err);
        assert_eq!(run.out, "", "{words:?}");
        for part in *parts {
            assert!(run.err.contains(part), "no '{part}' in: {}", run.err);
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let run = spawnwork(["true"])
        .env("SPAWNWORK_CHECK_CONFIG", "1")
        .finish();
    assert_eq!((run.status, run.err.as_str()), (0, ""));
}
