//! Processes: workers that spin, memory and descriptors, pid files, and who is never signalled.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, Step, says};
use kit::load::{Load, Options};
use kit::run::children_of;
use kit::{Dir, Run, Running, eventually, free_port, sibling};
use nix::sys::signal::Signal;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");

const QUICK: [&str; 12] = [
    "--interval",
    "100ms",
    "--fast-interval",
    "100ms",
    "--start-interval",
    "100ms",
    "--jitter",
    "0",
    "--start-period",
    "0",
    "--grace",
    "0",
];

fn out(running: &mut Running, part: &str) -> String {
    running.out_line(part, |line| line.contains(part))
}

/// Edge case 35: one worker of four spins. Over the shared port nobody sees it; its own pid is named, the
/// action is about it alone, and clients of the others see no error.
#[test]
fn one_of_four_workers_spins() {
    let spawnwork = sibling(PROGRAM, "spawnwork");
    let (dir, port) = (Dir::new(), free_port());
    dir.write(
        "app.js",
        "const http = require('http');\n\
         process.on('SIGUSR2', () => setTimeout(() => { require('fs').writeFileSync('spins', ''); for (;;); }, 0));\n\
         http.createServer((q, r) => r.end(`hello ${process.pid}`)).listen(Number(process.env.PORT), '127.0.0.1');\n",
    );
    let mut master = Run::new(spawnwork)
        .args([
            "-n",
            "4",
            "--probation",
            "50ms",
            "--stop-timeout",
            "1s",
            "--pid-file",
            "app.pid",
        ])
        .args(["--", "node", "app.js"])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let workers = children_of(master.pid());
    assert_eq!(workers.len(), 4);
    let stuck = workers[2];
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &port.to_string(),
            "--pid-file",
            "app.pid",
            "--children",
            "--stuck",
            "5s",
        ])
        .args([
            "--on-fail",
            "kill -KILL $PID",
            "--interval",
            "1s",
            "--start-interval",
            "200ms",
        ])
        .dir(dir.path())
        .start();
    out(&mut beat, " UP ");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stuck), Signal::SIGUSR2).unwrap();
    // The worker accepts no more by itself; what it had accepted before is none of this test's.
    eventually("it spins", || {
        dir.path().join("spins").exists().then_some(())
    });
    let options = Options {
        address: format!("127.0.0.1:{port}"),
        keep_alive: 0,
        fresh: 4,
        paths: vec!["/"],
        expect: "hello ",
        timeout: Duration::from_secs(30),
    };
    let load = Load::paced(&options, Duration::from_millis(20));
    let down = out(&mut beat, " DOWN ");
    assert!(
        down.contains(&format!(": worker {stuck} spins for ")) && down.contains(" stuck x"),
        "{down}"
    );
    let run = out(&mut beat, " run ");
    assert!(
        run.contains(&format!("run  kill -KILL {stuck} (attempt 1")),
        "{run}"
    );
    out(&mut beat, " UP ");
    eventually("four workers", || {
        let now = children_of(master.pid());
        (now.len() == 4 && !now.contains(&stuck)).then_some(())
    });
    let others: Vec<i32> = workers
        .iter()
        .copied()
        .filter(|pid| *pid != stuck)
        .collect();
    let now = children_of(master.pid());
    assert!(
        others.iter().all(|pid| now.contains(pid)),
        "{workers:?} {now:?}"
    );
    let report = load.stop();
    assert_eq!(report.failures(), 0, "{report:?}");
    beat.stop();
    assert_eq!(beat.out().matches(" run ").count(), 1, "{}", beat.out());
}

#[test]
fn http_alone_sees_nothing_of_a_spinning_worker() {
    let spawnwork = sibling(PROGRAM, "spawnwork");
    let (dir, port) = (Dir::new(), free_port());
    dir.write(
        "app.js",
        "const http = require('http');\n\
         process.on('SIGUSR2', () => setTimeout(() => { require('fs').writeFileSync('spins', ''); for (;;); }, 0));\n\
         http.createServer((q, r) => r.end(`hello ${process.pid}`)).listen(Number(process.env.PORT), '127.0.0.1');\n",
    );
    let mut master = Run::new(spawnwork)
        .args([
            "-n",
            "4",
            "--probation",
            "50ms",
            "--stop-timeout",
            "1s",
            "--",
            "node",
            "app.js",
        ])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let stuck = children_of(master.pid())[1];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stuck), Signal::SIGUSR2).unwrap();
    eventually("it spins", || {
        dir.path().join("spins").exists().then_some(())
    });
    for _ in 0..20 {
        let found = Run::new(PROGRAM)
            .args(["--once", "--port", &port.to_string()])
            .finish();
        assert_eq!(found.status, 0, "{}", found.out);
    }
    let found = Run::new(PROGRAM)
        .args([
            "--once",
            "--pid",
            &master.pid().to_string(),
            "--children",
            "--stuck",
            "1s",
        ])
        .finish();
    assert!(
        found.status == 1 && found.out.contains(&format!("worker {stuck} spins for ")),
        "{}",
        found.out
    );
}

#[test]
fn a_busy_loop_that_answers_is_not_stuck_and_a_stopped_process_is_not_either() {
    let (dir, port) = (Dir::new(), free_port());
    dir.write(
        "app.js",
        // As busy as can be, but it reads and writes between.
        "const http = require('http');\n\
         http.createServer((q, r) => r.end('hello')).listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));\n\
         (function busy() { const end = Date.now() + 50; while (Date.now() < end); require('fs').readFileSync('app.js'); setImmediate(busy); })();\n",
    );
    let mut node = Run::new("node")
        .arg("app.js")
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    node.out_line("listening", |line| line == "listening");
    let pid = node.pid().to_string();
    let words = ["--once", "--pid", &pid, "--stuck", "1s"];
    let found = Run::new(PROGRAM).args(words).finish();
    assert_eq!(found.status, 0, "{}", found.out);
    let found = Run::new(PROGRAM)
        // As much as it gets, among the other tests.
        .args(["--once", "--pid", &pid, "--max-cpu", "5%:1s"])
        .finish();
    assert!(
        found.status == 1
            && found.out.contains(" cpu pid ")
            && found.out.contains("% of a CPU over 1s, more than 5%"),
        "{}",
        found.out
    );
    node.signal(Signal::SIGSTOP);
    let found = Run::new(PROGRAM).args(words).finish();
    assert_eq!(found.status, 0, "{}", found.out);
    node.signal(Signal::SIGKILL);
}

// Edge case 37.
#[test]
fn memory_and_descriptors() {
    let dir = Dir::new();
    // 200 MiB of a file that is mapped, and read, are not its own; 60 MiB are. And 100 descriptors.
    dir.write(
        "app.py",
        "import mmap, os, time\n\
         with open('big', 'wb') as f: f.write(b'x' * (200 << 20))\n\
         f = open('big', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
         s = sum(m[i] for i in range(0, len(m), 4096))\n\
         own = bytearray(60 << 20)\n\
         fds = [os.open('/dev/null', os.O_RDONLY) for _ in range(100)]\n\
         print('ready', flush=True)\n\
         time.sleep(600)\n",
    );
    let mut python = Run::new("python3").arg("app.py").dir(dir.path()).start();
    python.out_line("ready", |line| line == "ready");
    let pid = python.pid().to_string();
    for (words, status, part) in [
        (["--max-rss", "150M"], 0, "ok "),
        (["--max-rss", "50M"], 1, " rss pid "),
        (["--max-fds", "1000"], 0, "ok "),
        (["--max-fds", "50"], 1, " fds pid "),
        (["--max-fds", "99%"], 0, "ok "),
    ] {
        let found = Run::new(PROGRAM)
            .args(["--once", "--pid", &pid])
            .args(words)
            .finish();
        assert!(
            found.status == status && found.out.contains(part),
            "{words:?}: {}{}",
            found.out,
            found.err
        );
    }
    python.signal(Signal::SIGKILL);
}

// Edge case 36.
#[test]
fn counters_of_another_user_are_done_without() {
    let mut spins = Run::new("sh").args(["-c", "while :; do :; done"]).start();
    let pid = spins.pid().to_string();
    let found = Run::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            PROGRAM,
        ])
        .args(["--once", "--pid", &pid, "--stuck", "1s"])
        .finish();
    assert!(
        found.status == 1 && found.out.contains(" stuck pid "),
        "{}{}",
        found.out,
        found.err
    );
    assert_eq!(
        found.err.matches("counters-hidden").count(),
        1,
        "{}",
        found.err
    );
    spins.signal(Signal::SIGKILL);
}

// Edge case 33.
#[test]
fn a_process_that_ends_and_one_that_takes_its_place() {
    let dir = Dir::new();
    let mut first = Run::new("sleep").arg("600").start();
    dir.write("app.pid", &format!("{}\n", first.pid()));
    let mut beat = Run::new(PROGRAM)
        .args([
            "--pid-file",
            "app.pid",
            "--fails",
            "2",
            "--start-interval",
            "50ms",
        ])
        .args([
            "--interval",
            "100ms",
            "--fast-interval",
            "100ms",
            "--start-period",
            "1h",
            "--jitter",
            "0",
            "--verbose",
        ])
        .dir(dir.path())
        .start();
    out(&mut beat, " UP ");
    first.signal(Signal::SIGKILL);
    first.end();
    let down = out(&mut beat, " DOWN ");
    assert!(
        down.contains("process:app.pid gone x2 ") && down.contains("no process has pid"),
        "{down}"
    );
    // A new one, with a start period of its own: it is up with its first success.
    let second = Run::new("sleep").arg("600").start();
    dir.write("app.pid", &format!("{}\n", second.pid()));
    let found = beat.line("another", |line| {
        line.contains("process-found") && line.contains(&format!("pid={}", second.pid()))
    });
    assert!(found.contains("heartbeat["), "{found}");
    out(&mut beat, " UP ");
    beat.stop();
}

/// Edge case 34, and pid 1: what a pid file names is not signalled if it cannot be what was meant.
#[test]
fn who_is_never_signalled() {
    let dir = Dir::new();
    let mut bystander = Run::new("sleep").arg("600").start();
    let server = Hostile::new(says("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"));
    let port = server.port.to_string();
    let cases: [(&str, String, &str); 4] = [
        (
            "older",
            format!("{}\n", bystander.pid()),
            "was given to another process",
        ),
        ("one", "1\n".to_owned(), "refused"),
        ("vanished", "4194305\n".to_owned(), "no process has pid"),
        ("words", "node\n".to_owned(), "no pid stands there"),
    ];
    for (name, text, said) in cases {
        let file = dir.write(&format!("{name}.pid"), &text);
        if name == "older" {
            let touched = Run::new("touch")
                .args(["-d", "1 minute ago"])
                .arg(&file)
                .finish();
            assert_eq!(touched.status, 0);
        }
        for action in [
            ["--signal", "KILL"],
            [
                "--on-fail",
                "echo \"<${PID-unset}>\" >told; kill -KILL $PID",
            ],
        ] {
            let mut beat = Run::new(PROGRAM)
                .args(["--port", &port, "--pid-file"])
                .arg(&file)
                .args(["--fails", "1", "--cooldown", "1h"])
                .args(action)
                .args(QUICK)
                .args(["--verbose"])
                .dir(dir.path())
                .start();
            let line = beat.event("action-failed");
            if action[0] == "--signal" {
                assert!(line.contains("the process is gone"), "{line}");
            } else {
                assert_eq!(
                    std::fs::read_to_string(dir.path().join("told")).unwrap(),
                    "<unset>\n"
                );
            }
            beat.stop();
            assert!(
                beat.out().contains(" gone ") && beat.out().contains(said),
                "{name}: {}",
                beat.out()
            );
        }
    }
    assert!(common::child::stat(bystander.pid()).is_some_and(|stat| stat.state != b'Z'));
    bystander.signal(Signal::SIGKILL);
    // By its number it is refused at once.
    let found = Run::new(PROGRAM)
        .args(["--pid", "4194305", "--on-fail", "kill $PID"])
        .finish();
    assert!(
        found.status == 125
            && found
                .err
                .contains("cannot watch pid 4194305: no process has pid 4194305"),
        "{}",
        found.err
    );
}

// Edge case 23.
#[test]
fn a_suspension_is_no_failure_and_no_burst() {
    let ok = || says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    // The second check is not answered: it is suspended in the middle of that.
    let server = Hostile::in_turn(vec![ok(), vec![Step::Wait], ok()]);
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &server.port.to_string(),
            "--fails",
            "1",
            "--timeout",
            "5s",
        ])
        .args(["--interval", "200ms", "--fast-interval", "200ms"])
        .args([
            "--start-interval",
            "200ms",
            "--start-period",
            "0",
            "--jitter",
            "0",
        ])
        .arg("--verbose")
        .start();
    out(&mut beat, " UP ");
    eventually("the second check", || (server.served() == 2).then_some(()));
    beat.signal(Signal::SIGSTOP);
    let before = beat.out().lines().count();
    let end = std::time::Instant::now() + Duration::from_secs(30);
    eventually("30 s", || (std::time::Instant::now() >= end).then_some(()));
    beat.signal(Signal::SIGCONT);
    // There is no action, so nothing is checked again: one failure that counted would be the end.
    beat.event("check-late");
    eventually("checks again", || {
        (beat.out().lines().count() >= before + 6).then_some(())
    });
    let after: Vec<String> = beat.out().lines().skip(before).map(str::to_owned).collect();
    beat.stop();
    assert!(!beat.out().contains("DOWN"), "{}", beat.out());
    // Ticks that passed are not made up for: between any two lines as much time as ever.
    let second = |line: &str| -> f64 { line[17..23].parse().unwrap() };
    let good: Vec<f64> = after
        .iter()
        .filter(|line| line.contains(" ok "))
        .map(|line| second(line))
        .collect();
    for pair in good.windows(2) {
        let gap = (pair[1] - pair[0]).rem_euclid(60.0);
        assert!(gap > 0.05, "a burst: {after:?}");
    }
}
