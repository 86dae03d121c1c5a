//! Everything that an operator can ask of a master, in random order and under load: no request fails, and
//! in the end all is well. SPAWNWORK_SEED repeats a run; SPAWNWORK_STEPS makes it longer.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::load::{Load, Options};
use kit::random::Random;
use kit::{Dir, Run, eventually, free_port};
use nix::sys::signal::Signal;

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

const GOOD: &str = "require('http').createServer((q, r) => r.end(`hello ${process.pid} VERSION\\n`)).listen(Number(process.env.PORT), '127.0.0.1');\n";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn anything(seed: u64, options: &[&str]) {
    let seed = number("SPAWNWORK_SEED").unwrap_or(seed);
    let steps = number("SPAWNWORK_STEPS").unwrap_or(60);
    let mut random = Random(seed);
    let (dir, port) = (Dir::new(), free_port());
    dir.write("app.js", &GOOD.replace("VERSION", "0"));
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "3", "--control", "c.sock", "--pid-file", "pid"])
        .args(["--probation", "200ms", "--ready-timeout", "20s"])
        .args(["--respawn-limit", "0"])
        .args(options)
        .args(["--", "node", "app.js"])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let ctl = |words: &str| {
        let run = Run::new(SPAWNWORK).args(["--ctl", "c.sock", "--timeout", "60s"]);
        run.args(words.split(' ')).dir(dir.path()).finish()
    };
    let load = Load::start(&Options {
        address: format!("127.0.0.1:{port}"),
        keep_alive: 4,
        fresh: 2,
        paths: vec!["/"],
        expect: "hello ",
        timeout: kit::PATIENCE,
    });
    let mut done = Vec::new();
    for step in 0..steps {
        let deploy = |text: String| drop(dir.write("app.js", &text));
        let good = GOOD.replace("VERSION", &step.to_string());
        let what = match random.below(17) {
            0 | 1 => {
                deploy(good);
                "reload".to_owned()
            }
            2 | 3 => {
                deploy(good);
                "reload nowait".to_owned()
            }
            4 => {
                deploy("throw new Error('at load');\n".to_owned());
                "reload".to_owned()
            }
            // With a socket for each slot a worker that is added has clients at once, and takes them along.
            5 if options.contains(&"slots") => {
                deploy("process.exit(3);\n".to_owned());
                "reload nowait".to_owned()
            }
            5 => {
                deploy(good + "setTimeout(() => process.exit(3), 20);\n");
                "reload nowait".to_owned()
            }
            6 => "add".to_owned(),
            7 => "remove".to_owned(),
            8 => format!("workers {}", 1 + random.below(4)),
            9 => format!("restart {}", random.below(4)),
            10 => "restart all".to_owned(),
            11 => "clear".to_owned(),
            12 => "status json".to_owned(),
            13 => "reexec".to_owned(),
            14 => {
                master.signal(Signal::SIGUSR2);
                "version".to_owned()
            }
            15 => {
                master.signal(Signal::SIGTTIN);
                "version".to_owned()
            }
            _ => {
                master.signal(Signal::SIGTTOU);
                "metrics".to_owned()
            }
        };
        let answer = ctl(&what);
        // Whatever it says to that: it is there, and it answers.
        assert!(
            [0, 1, 3, 4].contains(&answer.status),
            "seed {seed}, {done:?}, {what}: {} {}",
            answer.status,
            answer.err
        );
        done.push(what);
        let answered = std::panic::AssertUnwindSafe(|| load.answer(20));
        if std::panic::catch_unwind(answered).is_err() {
            // What is needed to find out why nobody is answered.
            let (status, sockets) = (ctl("status json").out, Run::new("ss").arg("-tanp").finish());
            let err = master.err().join("\n");
            panic!("seed {seed}, {done:?}\n{status}\n{}\n{err}", sockets.out);
        }
    }
    let last = || {
        dir.write("app.js", &GOOD.replace("VERSION", "last"));
        (ctl("reload").status == 0).then_some(())
    };
    eventually("a good deploy", last);
    eventually("all is well", || (ctl("status").status == 0).then_some(()));
    let tally = load.stop();
    // With what is needed to find out whose it was.
    let whole = || master.err().join("\n");
    assert_eq!(
        tally.failures(),
        0,
        "seed {seed}, {done:?}: {:?}, {:?}\n{}",
        tally.failed,
        tally.broken,
        whole()
    );
    assert_eq!(master.stop(), 0, "seed {seed}, {done:?}");
    let err = master.err().join("\n");
    assert!(!err.contains("panicked"), "{err}");
    // Nobody had to be killed: they all leave by themselves.
    assert!(
        !err.contains("worker-killed"),
        "seed {seed}, {done:?}: {err}"
    );
}

#[test]
fn whatever_is_asked_in_whatever_order_no_request_fails() {
    anything(1, &[]);
}

#[test]
fn the_same_with_one_new_worker_at_a_time() {
    anything(2, &["--surge", "1", "--max-lifetime", "2s"]);
}

#[test]
fn the_same_with_round_robin_and_a_probe() {
    anything(3, &["--balance", "round-robin", "--probe", "/"]);
}

#[test]
fn the_same_with_a_socket_for_each_slot_and_a_check() {
    anything(4, &["--balance", "slots", "--check", "node --check app.js"]);
}
