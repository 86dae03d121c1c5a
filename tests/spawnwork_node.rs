//! Node programs, unmodified, as clusters: each kind of listen on each release, and each way to start one.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::{exchange, get};
use kit::{Dir, NODES, Run, Running, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

fn spawnwork(args: &[&str]) -> Run {
    Run::new(env!("CARGO_BIN_EXE_spawnwork")).args(args)
}

/// PATH with this release of node in front.
fn path_with(directories: &[&Path]) -> String {
    let mut path: Vec<String> = directories
        .iter()
        .map(|directory| directory.display().to_string())
        .collect();
    path.push(std::env::var("PATH").unwrap());
    path.join(":")
}

fn hello(port: u16) -> Result<String, String> {
    let reply = get(format!("127.0.0.1:{port}"), "/")?;
    if reply.body.starts_with("hello ") {
        Ok(reply.body.trim()["hello ".len()..].to_owned())
    } else {
        Err(reply.body)
    }
}

/// Connects until every worker has answered.
fn everybody_answers(what: &str, workers: usize, ask: impl Fn() -> Vec<String>) {
    let mut seen = BTreeSet::new();
    eventually(&format!("all workers answer on {what}"), || {
        seen.extend(ask());
        (seen.len() >= workers).then_some(())
    });
    assert_eq!(seen.len(), workers, "{what}: {seen:?}");
}

/// Twelve connections that are open at once.
fn twelve<S: Read>(connect: impl Fn() -> std::io::Result<S>) -> Vec<String> {
    let all: Vec<S> = (0..12)
        .map(|_| connect().expect("a listener is there"))
        .collect();
    all.into_iter()
        .map(|mut stream| {
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            assert!(!text.is_empty(), "closed without an answer");
            text
        })
        .collect()
}

fn datagrams(from: &str, to: (&str, u16)) -> Vec<String> {
    let socket = UdpSocket::bind(from).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    for _ in 0..12 {
        socket.send_to(b"?", to).unwrap();
    }
    (0..12)
        .map(|_| {
            let mut buffer = [0u8; 16];
            let (count, _) = socket.recv_from(&mut buffer).expect("an answer to each");
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        })
        .collect()
}

fn all_kinds_of_listen(version: &str, balance: &str) {
    let dir = Dir::new();
    // Twelve ports in a row, of which one is taken by somebody else.
    let base = eventually("a range of free ports", || {
        let base = free_port();
        (base..base + 12)
            .all(|port| TcpListener::bind(("::", port)).is_ok())
            .then_some(base)
    });
    let taken = TcpListener::bind(("127.0.0.1", base + 9)).unwrap();
    let given = (base + 10).to_string();
    let mut master = spawnwork(&["-n", "2", "--balance", balance, "-l", &given, "--"])
        .args([kit::node(version)])
        .args([app("listens.js")])
        .args([&base.to_string(), &dir.path().display().to_string()])
        .env("TAKEN", (base + 9).to_string())
        .start();
    master.event("generation-serving");

    let expected: BTreeMap<&str, &str> = [
        ("any", "ok"),
        ("v4", "ok"),
        ("v6", "ok"),
        ("v6only", "ok"),
        ("unix", "ok"),
        ("unixall", "ok"),
        ("localhost", "ok"),
        ("foreign", "EADDRNOTAVAIL"),
        ("fd3", "ok"),
        ("fd99", "EBADF"),
        ("twice", "EADDRINUSE"),
        ("taken", "EADDRINUSE"),
        ("udp4", "ok"),
        ("udp6", "ok"),
        ("http", "ok"),
    ]
    .into();
    let said = eventually("each listen of both workers has an end", || {
        let out = master.out();
        let said: BTreeSet<String> = out.lines().map(str::to_owned).collect();
        (said.len() >= 2 * (expected.len() + 2)).then_some(said)
    });
    for worker in 0..2 {
        for (name, result) in &expected {
            let line = format!("L {worker} {name} {result}");
            assert!(
                said.contains(&line),
                "node {version}: no '{line}' in {said:#?}"
            );
        }
    }
    let zero = |worker: u8, name: &str| -> u16 {
        let start = format!("L {worker} {name} ok:");
        let line = said.iter().find(|line| line.starts_with(&start));
        line.expect("a port")[start.len()..].parse().unwrap()
    };
    let (first, second) = (zero(0, "zero"), zero(0, "zero2"));
    assert_ne!(first, second, "two servers on port 0 have two ports");
    assert_eq!((zero(1, "zero"), zero(1, "zero2")), (first, second));

    let tcp = |host: &'static str, port: u16| move || twelve(|| TcpStream::connect((host, port)));
    everybody_answers("any, by v4", 2, tcp("127.0.0.1", base));
    everybody_answers("any, by v6", 2, tcp("::1", base));
    everybody_answers("v4", 2, tcp("127.0.0.1", base + 1));
    everybody_answers("v6", 2, tcp("::1", base + 2));
    everybody_answers("v6only", 2, tcp("::1", base + 3));
    assert!(TcpStream::connect(("127.0.0.1", base + 3)).is_err());
    everybody_answers("port 0", 2, tcp("127.0.0.1", first));
    everybody_answers("the other port 0", 2, tcp("127.0.0.1", second));
    everybody_answers("localhost", 2, || {
        twelve(|| TcpStream::connect(("localhost", base + 4)))
    });
    everybody_answers("fd 3", 2, tcp("127.0.0.1", base + 10));
    for name in ["a.sock", "b.sock"] {
        let path = dir.path().join(name);
        everybody_answers(name, 2, || twelve(|| UnixStream::connect(&path)));
    }
    everybody_answers("http", 2, || {
        let clients: Vec<_> = (0..12)
            .map(|_| {
                std::thread::spawn(move || {
                    get(format!("127.0.0.1:{}", base + 8), "/").unwrap().body
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    everybody_answers("udp4", 2, || {
        datagrams("127.0.0.1:0", ("127.0.0.1", base + 6))
    });
    everybody_answers("udp6", 2, || datagrams("[::1]:0", ("::1", base + 7)));

    let mode = |name: &str| {
        std::fs::metadata(dir.path().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("b.sock"), 0o777, "readableAll, writableAll");
    assert_ne!(mode("a.sock"), 0o777);
    assert!(!master.out().contains("ERR_"), "{}", master.out());

    assert_eq!(master.stop(), 0);
    assert!(!dir.path().join("a.sock").exists(), "sockets go at the end");
    assert!(TcpStream::connect(("127.0.0.1", base)).is_err());
    let err = master.err().join("\n");
    assert!(!err.contains("worker-killed"), "a graceful stop: {err}");
    drop(taken);
}

#[test]
fn each_kind_of_listen_on_each_release_with_shared_sockets() {
    NODES
        .iter()
        .for_each(|version| all_kinds_of_listen(version, "shared"));
}

#[test]
fn each_kind_of_listen_on_each_release_with_round_robin() {
    NODES
        .iter()
        .for_each(|version| all_kinds_of_listen(version, "round-robin"));
}

#[test]
fn a_shared_socket_keeps_its_backlog() {
    let port = free_port();
    let mut master = spawnwork(&["-n", "2", "--backlog", "1234", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    master.event("generation-serving");
    let shown = Run::new("ss")
        .args(["-ltnH", "sport", "=", &format!(":{port}")])
        .env("PATH", path_with(&[Path::new("/usr/sbin")]))
        .finish();
    let limit: u32 = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let queue = shown.out.split_whitespace().nth(2).unwrap_or_default();
    assert_eq!(queue, 1234.min(limit).to_string(), "{}", shown.out);
}

// Edge case 55.
#[test]
fn tls_sessions_are_resumed_by_all_workers_and_generations() {
    let dir = Dir::new();
    let made = Run::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a",
        ])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .dir(dir.path())
        .finish();
    assert_eq!(made.status, 0, "{}", made.err);
    for version in NODES {
        let port = free_port();
        let mut master = spawnwork(&["-n", "3", "--probation", "100ms", "--"])
            .args([kit::node(version)])
            .args([app("tls_hello.js")])
            .env("PORT", port.to_string())
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        for _ in 0..2 {
            let mut workers = BTreeSet::new();
            eventually("two workers or more resume sessions", || {
                let client = Run::new(kit::node("22"))
                    .args([app("tls_client.js").display().to_string(), port.to_string()])
                    .finish();
                assert_eq!(client.status, 0, "{}", client.err);
                for line in client.out.lines() {
                    assert!(line.ends_with(" true"), "node {version}: {}", client.out);
                    workers.insert(line.split(' ').next().unwrap().to_owned());
                }
                (workers.len() >= 2).then_some(())
            });
            master.signal(Signal::SIGUSR2);
            master.event("reload-committed");
        }
    }
}

/// Starts, serves, reloads, and stops by itself.
fn lives(mut master: Running, port: u16) {
    master.event("generation-serving");
    everybody_answers("the app", 2, || {
        (0..8).map(|_| hello(port).unwrap()).collect()
    });
    master.signal(Signal::SIGUSR2);
    master.event("reload-committed");
    hello(port).unwrap();
    assert_eq!(master.stop(), 0);
    let err = master.err().join("\n");
    for bad in ["worker-killed", "worker-failed", "reload-failed"] {
        assert!(!err.contains(bad), "{bad} in {err}");
    }
}

// Edge case 57.
#[test]
fn frameworks_modules_and_typescript() {
    let modules = kit::cache().join("frameworks/node_modules");
    let tsx = modules.join("tsx/dist/loader.mjs");
    let tsx = format!("file://{}", tsx.display());
    let cases: [(&str, &str, Vec<&str>, &str); 5] = [
        ("22", "round-robin", vec![], "express_hello.js"),
        ("22", "round-robin", vec![], "fastify_hello.js"),
        ("22", "round-robin", vec![], "hello.mjs"),
        ("22", "round-robin", vec!["--import", &tsx], "hello.ts"),
        ("26", "round-robin", vec!["--no-warnings"], "own_cluster.js"),
    ];
    for (version, balance, before, name) in cases {
        let port = free_port();
        let master = spawnwork(&[
            "-n",
            "2",
            "--probation",
            "100ms",
            "--balance",
            balance,
            "--",
        ])
        .args([kit::node(version)])
        .args(before)
        .args([app(name)])
        .env("PORT", port.to_string())
        .env("NODE_PATH", &modules)
        .start();
        lives(master, port);
    }
}

#[test]
fn es_modules_on_each_release() {
    for version in NODES {
        let port = free_port();
        let master = spawnwork(&[
            "-n",
            "2",
            "--probation",
            "100ms",
            "--balance",
            "round-robin",
            "--",
        ])
        .args([kit::node(version)])
        .args([app("hello.mjs")])
        .env("PORT", port.to_string())
        .start();
        lives(master, port);
    }
}

fn package(dir: &Dir) {
    dir.write(
        "package.json",
        r#"{"name": "hello", "version": "1.0.0", "private": true, "scripts": {"prestart": "node -e 0", "start": "node hello.js"}}"#,
    );
    std::fs::copy(app("hello.js"), dir.path().join("hello.js")).unwrap();
    let bin = dir.path().join("node_modules/.bin");
    std::fs::create_dir_all(&bin).unwrap();
    let text = std::fs::read_to_string(app("hello.js")).unwrap();
    std::fs::write(bin.join("hello"), format!("#!/usr/bin/env node\n{text}")).unwrap();
    std::fs::set_permissions(bin.join("hello"), PermissionsExt::from_mode(0o755)).unwrap();
}

fn started_by(command: &[&str]) {
    let dir = Dir::new();
    package(&dir);
    let port = free_port();
    let bin = kit::cache().join("frameworks/node_modules/.bin");
    let node = kit::cache().join("node-22/bin");
    let master = spawnwork(&[
        "-n",
        "2",
        "--probation",
        "100ms",
        "--balance",
        "round-robin",
        "--",
    ])
    .args(command)
    .dir(dir.path())
    .env("PORT", port.to_string())
    .env("PATH", path_with(&[&node, &bin]))
    .start();
    lives(master, port);
}

// Edge case 39.
#[test]
fn npm_start() {
    started_by(&["npm", "start"]);
}

#[test]
fn npx_of_a_local_program() {
    started_by(&["npx", "--no-install", "hello"]);
}

#[test]
fn pnpm_start() {
    started_by(&["pnpm", "start"]);
}

#[test]
fn yarn_start() {
    started_by(&["yarn", "start"]);
}

// Edge case 39.
#[test]
fn behind_a_shell() {
    let port = free_port();
    let script = format!("node {}; exit $?", app("hello.js").display());
    let master = spawnwork(&[
        "-n",
        "2",
        "--probation",
        "100ms",
        "--balance",
        "round-robin",
        "--node",
        "yes",
    ])
    .args(["--", "sh", "-c", &script])
    .env("PORT", port.to_string())
    .start();
    lives(master, port);
}

// Edge case 58.
#[test]
fn children_and_threads_of_an_app_are_its_own() {
    for version in NODES {
        let port = free_port();
        let mut master = spawnwork(&["-n", "2", "--"])
            .args([kit::node(version)])
            .args([app("facts.js")])
            .env("PORT", port.to_string())
            .start();
        master.event("generation-serving");
        let ask = |path: &str| get(format!("127.0.0.1:{port}"), path).unwrap().body;
        let facts = ask("/");
        assert!(facts.contains("\"left\":[]"), "node {version}: {facts}");
        assert!(!facts.contains("node_options"), "node {version}: {facts}");
        assert_eq!(
            ask("/child").trim(),
            r#"{"isWorker":false}"#,
            "node {version}"
        );
        assert_eq!(
            ask("/thread").trim(),
            r#"{"thread":true}"#,
            "node {version}"
        );
        assert_eq!(master.stop(), 0);
    }
}

// Edge case 54.
#[test]
fn an_app_with_its_own_handler_of_term_leaves_by_itself() {
    for version in NODES {
        let port = free_port();
        let mut master = spawnwork(&["-n", "2", "--"])
            .args([kit::node(version)])
            .args([app("sigterm_close.js")])
            .env("PORT", port.to_string())
            .start();
        master.event("generation-serving");
        hello(port).unwrap();
        assert_eq!(master.stop(), 0);
        let err = master.err().join("\n");
        assert!(!err.contains("worker-killed"), "node {version}: {err}");
        let out = master.out_to_its_end();
        assert_eq!(out.matches("closed").count(), 2, "node {version}: {out}");
    }
}

/// A request to a worker that is stopped while it drains, its answer after that; none where the connection was
/// closed before we came to stop it, as it may be 2 s after the end has begun.
fn stopped_while_it_drains(version: &str) -> Option<String> {
    let (dir, port) = (Dir::new(), free_port());
    dir.write("app.js", "require('http').createServer((q, r) => r.end('hello')).listen(Number(process.env.PORT), '127.0.0.1');\n");
    let bin = kit::node(version);
    let mut master = spawnwork(&["-n", "1", "--", "node", "app.js"])
        .env("PATH", path_with(&[bin.parent().unwrap()]))
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let address = format!("127.0.0.1:{port}");
    let kept = || {
        let mut one = kit::http::connect(&address, kit::PATIENCE).unwrap();
        assert!(exchange(&mut one, "/", true).unwrap().keeps);
        one
    };
    let mut idle = kept();
    let mut others: Vec<_> = (0..200).map(|_| kept()).collect();
    let worker = Pid::from_raw(kit::run::children_of(master.pid())[0]);
    master.signal(Signal::SIGTERM);
    // The end has begun for the worker when it says so to one of the others.
    eventually("an answer that is the last one", || {
        let mut other = others.pop().expect("enough of them");
        (!exchange(&mut other, "/", true).unwrap().keeps).then_some(())
    });
    kill(worker, Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    if idle.is_closed() {
        kill(worker, Signal::SIGCONT).unwrap();
        assert_eq!(master.end(), 0);
        return None;
    }
    idle.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    // By then it is time for it to close what is idle.
    eventually("time to pass", || {
        (stopped.elapsed() > Duration::from_secs(3)).then_some(())
    });
    kill(worker, Signal::SIGCONT).unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).unwrap();
    assert_eq!(master.end(), 0);
    Some(answer)
}

#[test]
fn a_request_that_came_while_everything_stood_still_is_answered_at_the_end_too() {
    for version in NODES {
        let answer = (0..10).find_map(|_| stopped_while_it_drains(version));
        let answer = answer.expect("a machine that lets us come in time");
        assert!(answer.ends_with("hello"), "node {version}: {answer:?}");
    }
}

#[test]
fn node_without_its_preload_still_leaves() {
    let port = free_port();
    let mut master = spawnwork(&["-n", "2", "--no-preload", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    master.event("generation-serving");
    hello(port).unwrap();
    assert_eq!(master.stop(), 0);
    assert!(!master.err().join("\n").contains("worker-killed"));
}

// Edge case 43.
#[test]
fn garbage_on_a_channel_costs_the_worker_its_channel_and_nobody_else_anything() {
    for path in ["/garbage", "/endless"] {
        let port = free_port();
        // Node hides the number of its channel; it is the first one after the standard three.
        let mut master = spawnwork(&["-n", "1", "--env", "CHANNEL_FD=3", "--", "node"])
            .args([app("garbage.js")])
            .env("PORT", port.to_string())
            .start();
        master.event("generation-serving");
        let before = hello(port).unwrap();
        // The request that did it is answered all the same: what was begun is finished.
        let answer = get(format!("127.0.0.1:{port}"), path).unwrap().body;
        assert_eq!(answer, format!("hello {before}\n"));
        let line = master.event("channel-closed");
        assert_eq!(field(&line, "pid"), before);
        master.event("worker-ready");
        let after = eventually("the next worker serves", || {
            hello(port).ok().filter(|pid| *pid != before)
        });
        assert_ne!(before, after);
        assert_eq!(master.stop(), 0);
    }
}

// Edge case 44.
#[test]
fn a_privileged_port_needs_a_word_from_the_operator() {
    let low = "81";
    let start = |more: &[&str]| {
        spawnwork(&["-n", "1", "-u", "nobody", "--ready-timeout", "5s"])
            .args(more)
            .args(["--", "node"])
            .args([app("hello.js")])
            .env("PORT", low)
            .start()
    };
    assert!(nix::unistd::geteuid().is_root(), "run the tests as root");
    let limit = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if limit.trim().parse::<u16>().unwrap() > 81 {
        let mut refused = start(&[]);
        let line = refused.event("bind-refused");
        assert_eq!(field(&line, "address"), "127.0.0.1:81");
        let line = refused.event("worker-exited");
        assert!(field(&line, "stderr").contains("EACCES"), "{line}");
    }
    for more in [["--allow-bind"].as_slice(), &["-l", "127.0.0.1:81"]] {
        let mut master = start(more);
        master.event("generation-serving");
        hello(81).unwrap();
        assert_eq!(master.stop(), 0);
    }
}

#[test]
fn when_the_master_is_killed_node_finishes_its_requests_and_leaves() {
    let port = free_port();
    let mut master = spawnwork(&["-n", "1", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    let pid = field(&master.event("worker-ready"), "pid");
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    // Answered after the slow request was sent: the worker has both.
    hello(port).unwrap();
    master.signal(Signal::SIGKILL);
    assert_eq!(master.end(), 137);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(
        answer.ends_with(&format!("hello {pid}\n")) || answer.contains("hello "),
        "{answer}"
    );
    eventually("the worker leaves", || {
        (!Path::new(&format!("/proc/{pid}")).exists()
            || std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| stat.contains(") Z ")))
        .then_some(())
    });
}

/// Milliseconds since midnight, of the time that a line begins with.
fn time_of(line: &str) -> i64 {
    let time = line.split(' ').next().unwrap().trim_end_matches('Z');
    let time = time.split('T').nth(1).unwrap();
    let (clock, ms) = time.split_once('.').unwrap();
    let seconds = clock
        .split(':')
        .fold(0, |all, part| all * 60 + part.parse::<i64>().unwrap());
    seconds * 1000 + ms.parse::<i64>().unwrap()
}

// Edge case 4.
#[test]
fn ready_is_not_the_first_of_many_sockets_and_counts_for_one_worker_only() {
    let dir = Dir::new();
    // On a busy machine the app may take longer from one port to the next than it is waited for: then
    // that round says nothing.
    eventually("a round without a pause of the machine", || {
        let _ = std::fs::remove_file(dir.path().join("go"));
        let mut master = spawnwork(&["-n", "2", "--start-parallel", "2", "--", "node"])
            .args([app("ports_in_turn.js")])
            .dir(dir.path())
            .start();
        let ready = master.event("worker-ready");
        assert_eq!(field(&ready, "slot"), "0");
        let said = eventually("all ports", || {
            let out = master.out();
            out.lines().next().map(str::to_owned)
        });
        let words: Vec<i64> = said
            .split(' ')
            .skip(1)
            .map(|word| word.parse().unwrap())
            .collect();
        let after_last = time_of(&ready) - words[0] % 86_400_000;
        // Ten sockets of one worker are not one socket of each.
        for _ in 0..2 {
            master.signal(Signal::SIGUSR1);
            master.event_with("status", "workers=2");
            master.event_with("status", "slot=1 ");
        }
        assert!(!master.err().join("\n").contains("generation-serving"));
        dir.write("go", "");
        master.event("generation-serving");
        assert_eq!(master.stop(), 0);
        (words[1] < 40 && after_last >= 45).then_some(())
    });
}

// Edge case 5.
// Edge case 39.
#[test]
fn what_never_listens_fails_with_the_words_that_help() {
    for (options, program, words) in [
        (
            "--node=yes",
            ["node", "queue.js"],
            "an app that never listens needs --ready alive:1s",
        ),
        (
            "--node=yes",
            ["sh", "queue.sh"],
            "it never spoke Node's cluster protocol: is it node? (--node)",
        ),
    ] {
        let dir = Dir::new();
        dir.write("queue.js", "setInterval(() => {}, 1000);");
        dir.write("queue.sh", "exec sleep 1000");
        let run = spawnwork(&["-n", "1", "--ready-timeout", "1500ms", options, "--"])
            .args(program)
            .dir(dir.path())
            .finish();
        assert_eq!(run.status, 1, "{}", run.err);
        let line = run.err.lines().find(|line| line.contains("worker-failed"));
        assert!(line.unwrap().contains(words), "{}", run.err);
    }
}

// Edge case 45.
#[test]
fn what_an_app_sends_to_its_parent_is_no_harm_and_no_line_each() {
    for version in NODES {
        let port = free_port();
        let mut master = spawnwork(&["-n", "1", "--verbose", "--"])
            .args([kit::node(version)])
            .args([app("says.js")])
            .env("PORT", port.to_string())
            .start();
        master.event("generation-serving");
        let pid = hello(port).unwrap();
        let before = master.err().len();
        let answer = get(format!("127.0.0.1:{port}"), "/say").unwrap().body;
        assert_eq!(answer, format!("hello {pid}\n"), "node {version}");
        // It is heard as ever: the next generation comes, and this one leaves.
        master.signal(Signal::SIGUSR2);
        master.event("reload-committed");
        hello(port).unwrap();
        assert_eq!(master.stop(), 0);
        let err = master.err();
        assert!(err.len() < before + 40, "{}", err.join("\n"));
        let err = err.join("\n");
        for bad in ["channel-closed", "worker-killed", "worker-failed"] {
            assert!(!err.contains(bad), "node {version}: {bad} in {err}");
        }
    }
}

// Edge case 50.
#[test]
fn datagrams_that_wait_for_a_worker_that_dies_are_for_the_next() {
    let port = free_port();
    let mut master = spawnwork(&["-n", "1", "--", "node"])
        .args([app("udp_echo.js")])
        .env("PORT", port.to_string())
        .start();
    let pid = field(&master.event("worker-ready"), "pid");
    master.event("generation-serving");
    let worker = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(kit::PATIENCE)).unwrap();
    let receive = || {
        let mut buffer = [0u8; 64];
        let count = client.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        let (who, what) = text.split_once(' ').unwrap();
        (who.to_owned(), what.to_owned())
    };
    client.send(b"first").unwrap();
    assert_eq!(receive(), (pid.clone(), "first".to_owned()));
    // It does not read these.
    nix::sys::signal::kill(worker, Signal::SIGSTOP).unwrap();
    eventually("its stop", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") T ").then_some(())
    });
    for number in 0..5 {
        client.send(format!("waiting {number}").as_bytes()).unwrap();
    }
    nix::sys::signal::kill(worker, Signal::SIGKILL).unwrap();
    let next = field(&master.event("worker-ready"), "pid");
    for number in 0..5 {
        assert_eq!(receive(), (next.clone(), format!("waiting {number}")));
    }
    assert_eq!(master.stop(), 0);
}

// Edge case 56.
#[test]
fn a_connection_that_a_worker_has_no_descriptor_for_is_offered_to_another() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut master = spawnwork(&["-n", "2", "--balance", "round-robin", "--nofile", "64"])
        .args(["--", "node"])
        .args([app("full.js")])
        .env("PORT", port.to_string())
        .start();
    master.event("generation-serving");
    // Over one connection: it stays with its worker.
    let mut kept = kit::http::connect(&address, kit::PATIENCE).unwrap();
    let mut ask = |path: &str| {
        let body = kit::http::exchange(&mut kept, path, true).unwrap().body;
        body.trim().trim_start_matches("hello ").to_owned()
    };
    let full = ask("/");
    assert_eq!(ask("/full"), format!("{full} EMFILE"));
    for _ in 0..40 {
        assert_ne!(hello(port).unwrap(), full, "it has no descriptor for one");
    }
    assert_eq!(ask("/free"), full);
    eventually("it is in turn again", || {
        (hello(port).unwrap() == full).then_some(())
    });
    assert!(!master.err().join("\n").contains("worker-exited"));
    assert_eq!(master.stop(), 0);
}
