//! The agent in real Node processes: all releases, both kinds of modules, and what must not hurt them.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::live::Live;
use kit::{NODES, eventually, node, sibling};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

const CJS: &str = "globalThis.counter = 5; globalThis.turns = 0;\n\
    setInterval(() => { globalThis.turns += 1; }, 10).unref();\n\
    require('http').createServer((q, s) => s.end('hello\\n')).listen(process.env.PORT || 0);\n";
const ESM: &str = "import http from 'http'; globalThis.counter = 5; globalThis.turns = 0;\n\
    setInterval(() => { globalThis.turns += 1; }, 10).unref();\n\
    http.createServer((q, s) => s.end('hello\\n')).listen(process.env.PORT || 0);\n";

fn live(version: &str) -> Live {
    let node = node(version);
    Live::start(
        PROGRAM,
        &[("app.js", CJS)],
        &[node.to_str().unwrap(), "app.js"],
    )
}

/// The app's loop turns, and its values are what they were.
fn is_well(live: &mut Live, what: &str) {
    let before: u64 = live.value("String(turns)").parse().unwrap();
    eventually(what, || {
        let now: u64 = live.value("String(turns)").parse().unwrap();
        (now > before).then_some(())
    });
    assert_eq!(live.value("counter"), "5", "{what}");
}

#[test]
fn every_release_and_both_kinds_of_modules() {
    for version in NODES {
        let node = node(version);
        for (name, text) in [("app.js", CJS), ("app.mjs", ESM)] {
            let live = Live::start(PROGRAM, &[(name, text)], &[node.to_str().unwrap(), name]);
            let _ = live.socket();
            for (expression, out) in [
                ("let x = 1", "undefined"),
                ("let x = 2; x", "2"),
                ("await 7", "7"),
                (
                    "require('path').basename(__filename_of_nobody = 'a/b')",
                    "b",
                ),
                ("typeof require('./data.json')", "object"),
                ("new Map([[1, { a: 2n }]])", "Map(1) { 1 => { a: 2n } }"),
                ("class A { #b = 1 }; new A()", "A {}"),
                ("{ a: 1 }", "{ a: 1 }"),
                ("[-0, NaN]", "[ -0, NaN ]"),
                ("typeof globalThis.require", "function"),
            ] {
                if expression.contains("data.json") {
                    live.dir.write("data.json", "{\"a\": 1}");
                }
                let answer = live.ask(&["eval", "--raw", "--timeout", "60s", "shop", expression]);
                let out = if out == "undefined" { "" } else { out };
                assert_eq!(
                    (answer.status, answer.out.trim_end()),
                    (0, out),
                    "{version} {name}: {expression}: {}",
                    answer.err
                );
            }
            let thrown = live.ask(&[
                "eval",
                "shop",
                "function f() { throw new Error('boo') }; f()",
            ]);
            assert_eq!(thrown.status, 1);
            assert!(
                thrown
                    .err
                    .starts_with("Uncaught Error: boo\n    at f (replsock-"),
                "{version}: {}",
                thrown.err
            );
            assert!(!thrown.err.contains("agent.cjs"), "{}", thrown.err);
        }
    }
}

#[test]
fn what_was_lent_is_taken_back() {
    for version in ["16", "26"] {
        let live = live(version);
        let _ = live.socket();
        let looked = "[Object.getOwnPropertyNames(globalThis).filter(n => n === '_'), process.exit.toString().includes('would end')]";
        // While it is evaluated it is lent: what the app sees is asked from a timer.
        let asked = format!(
            "setTimeout(() => {{ globalThis.seen = JSON.stringify([typeof globalThis.require, process.exit.toString().includes('would end'), {looked}.length]) }}, 20); 1"
        );
        assert_eq!(live.value(&asked), "1");
        let seen = eventually("the timer", || {
            let seen = live.value("String(globalThis.seen)");
            (seen != "undefined").then_some(seen)
        });
        assert_eq!(seen, "[\"undefined\",false,2]", "{version}");
    }
}

#[test]
fn what_is_typed_in_does_not_kill_the_app() {
    for version in NODES {
        let mut live = live(version);
        let _ = live.socket();
        // Edge case 38 and 40.
        for expression in [
            "Promise.reject(new Error('mine'))",
            "Promise.reject(1)",
            "import('fs')",
            "setTimeout(() => { throw new Error('timer') }, 1); 0",
            "setImmediate(() => { throw new Error('immediate') }); 0",
            "queueMicrotask(() => { throw new Error('microtask') }); 0",
            "process.nextTick(() => { throw new Error('tick') }); 0",
            "(async () => { await 1; throw new Error('async') })(); 0",
            "throw null",
            "throw undefined",
            "new Proxy({}, { get() { throw 1 }, ownKeys() { throw 2 } })",
            "({ [require('util').inspect.custom]() { throw new Error('shown') } })",
            "process.abort()",
            "process.kill(process.pid)",
            "process.reallyExit(1)",
        ] {
            let _ = live.ask(&["eval", "--timeout", "60s", "shop", expression]);
        }
        is_well(&mut live, version);
        // And what the app does itself ends it as ever: its own timer, which was not typed in.
        let own = live.ask(&[
            "eval", "shop",
            "require('vm').runInThisContext('setTimeout(() => { throw new Error(\"own\") }, 1)', { filename: 'own.js' }); 0",
        ]);
        assert!(own.status == 0 || own.status == 125, "{}", own.err);
        assert_eq!(live.running.end(), 1, "{version}");
        assert!(
            live.running
                .err()
                .iter()
                .any(|line| line.contains("Error: own")),
            "{version}: {:?}",
            live.running.err()
        );
    }
}

#[test]
fn clients_of_all_kinds_leave_the_loop_alone() {
    let mut live = live("20");
    let socket = live.socket();
    let connect = || UnixStream::connect(&socket).unwrap();

    // Edge case 5: killed, idle and in the middle.
    let mut waiting = live
        .command(&[
            "eval",
            "--timeout",
            "0",
            "shop",
            "await new Promise(() => {})",
        ])
        .start();
    eventually("a client that waits", || {
        let clients = live.value("String(process._getActiveHandles().length)");
        (clients != "0").then_some(())
    });
    kill(Pid::from_raw(waiting.pid()), Signal::SIGKILL).unwrap();
    assert_eq!(waiting.end(), 137);

    // It closes with an answer unread: a reset.
    for _ in 0..20 {
        let mut stream = connect();
        stream.write_all(b"'x'.repeat(1e6)\n1\n").unwrap();
        let mut byte = [0u8; 1];
        stream.read_exact(&mut byte).unwrap();
    }
    // Edge case 15 and 16: one that asks and never reads.
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    let mut asked = 0;
    for _ in 0..2000 {
        match deaf.write(b"'x'.repeat(1e5)\n") {
            Ok(count) => asked += count,
            Err(_) => break,
        }
    }
    assert!(asked > 0);
    is_well(&mut live, "a client that never reads");
    // Edge case 17: a flood, also of what is no request. Edge case 48: a NUL, and then no frame.
    for bytes in [
        &b"\0\x02\xff\xff\xff"[..],
        b"\0\x63abcdef",
        b"\0\x02\x05\0\0{bad\n",
        &[b'('; 100_000],
    ] {
        let mut stream = connect();
        let _ = stream.write_all(bytes);
    }
    let mut flood = connect();
    flood
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let line = "1\n".repeat(10_000);
    for _ in 0..20 {
        if flood.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    is_well(&mut live, "a flood");
    drop(flood);
    drop(deaf);
    // Edge case 45: it says nothing.
    let silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    is_well(&mut live, "a hundred clients");
    // Edge case 46: more than there is room for are turned away, and the app lives.
    let crowd: Vec<UnixStream> = (0..300).map(|_| connect()).collect();
    drop(silent);
    drop(crowd);
    eventually("room again", || {
        (live.ask(&["eval", "shop", "1"]).status == 0).then_some(())
    });
    is_well(&mut live, "a crowd");
}

#[test]
fn a_flood_leaves_the_loop_its_time() {
    // Measured in the app's own turns within the same run; generous, since others work on this machine.
    let live = live("22");
    let socket = live.socket();
    let count = "await new Promise(done => { let n = 0; const end = Date.now() + 1500; \
        (function turn() { n += 1; Date.now() < end ? setTimeout(turn, 1) : done(String(n)); })(); })";
    let idle: f64 = live.value(count).parse().unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let there = stop.clone();
    let flooder = std::thread::spawn(move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut buffer = [0u8; 65536];
        while !there.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = stream.write(b"for (let i = 0; i < 1e5; i++); 1\n");
            let _ = stream.read(&mut buffer);
            std::thread::yield_now();
        }
    });
    let flooded: f64 = live.value(count).parse().unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flooder.join().unwrap();
    assert!(flooded > idle * 0.5, "{flooded} turns against {idle}");
}

#[test]
fn to_show_a_value_is_of_a_clients_share_too() {
    // 2 % of the loop's time, of which it has a little at once: what is slow to show comes slowly.
    let live = live("20");
    let socket = live.socket();
    let mut stream = UnixStream::connect(socket).unwrap();
    let lines = "'x'.repeat(4e5)\n".repeat(250);
    stream.write_all(lines.as_bytes()).unwrap();
    let mut buffer = vec![0u8; 1 << 20];
    let mut answers = 0;
    let mut until = None;
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    while until.is_none_or(|until| std::time::Instant::now() < until) {
        let Ok(count) = stream.read(&mut buffer) else {
            continue;
        };
        answers += buffer[..count]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        let _ = until.get_or_insert_with(|| std::time::Instant::now() + Duration::from_secs(4));
    }
    assert!(answers < 60, "{answers} in four seconds");
}

#[test]
fn nodes_own_cluster_has_its_workers_reached() {
    let app = "const cluster = require('cluster');\n\
        if (cluster.isMaster) { cluster.fork(); cluster.fork(); setTimeout(() => cluster.fork(), 300); }\n\
        else require('http').createServer((q, s) => s.end(String(process.env.REPLSOCK_AGENT))).listen(0);\n";
    for version in NODES {
        let node = node(version);
        let live = Live::start(
            PROGRAM,
            &[("app.js", app)],
            &[node.to_str().unwrap(), "app.js"],
        );
        let sockets = live.sockets(4);
        // Each is its worker's own, not the primary's.
        let listed = live.ask(&["ls", "--json", "shop"]).out;
        for socket in sockets {
            use std::os::unix::fs::PermissionsExt;
            let pid = socket.file_stem().unwrap().to_str().unwrap();
            assert!(listed.contains(&format!("\"pid\":{pid},")), "{listed}");
            let mode = socket.symlink_metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{version}");
        }
        let all = live.ask(&[
            "eval",
            "--all",
            "--compare",
            "shop",
            "[process.env.REPLSOCK_AGENT, process.env.NODE_OPTIONS]",
        ]);
        assert!(
            all.out.starts_with("4 workers  [ undefined, undefined ]"),
            "{version}: {}{}",
            all.out,
            all.err
        );
    }
}

#[test]
fn under_spawnwork_each_release_reloads_with_a_session_open() {
    let spawnwork = sibling(PROGRAM, "spawnwork");
    for version in ["16", "26"] {
        let node = node(version);
        let mut live = Live::start(
            PROGRAM,
            &[("app.js", CJS)],
            &[
                spawnwork.to_str().unwrap(),
                "-n",
                "2",
                "--",
                node.to_str().unwrap(),
                "app.js",
            ],
        );
        let sockets = live.sockets(2);
        let session = UnixStream::connect(&sockets[0]).unwrap();
        live.running.event("generation-serving");
        live.running.signal(Signal::SIGUSR2);
        live.running.event("reload-committed");
        let renewed = live.sockets(2);
        assert!(!renewed.contains(&sockets[0]), "{version}");
        let generations = live.ask(&["ls", "--json", "shop"]).out;
        assert_eq!(
            generations.matches("\"generation\":2").count(),
            2,
            "{generations}"
        );
        drop(session);
        assert_eq!(live.running.stop(), 0, "{version}");
    }
}

/// What the agent says of itself, in frames.
fn profiling(socket: &Path) -> bool {
    let mut stream = UnixStream::connect(socket).unwrap();
    let ask = b"{\"id\":1,\"op\":\"info\"}\n";
    let mut bytes = vec![0, 2, ask.len() as u8, 0, 0];
    bytes.extend_from_slice(ask);
    stream.write_all(&bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.contains("\"profiling\":"), "{text}");
    text.contains("\"profiling\":true")
}

#[test]
fn a_profile_by_command_and_by_signal() {
    let hot = "globalThis.counter = 5; function hot() { const end = Date.now() + 20; let n = 0; while (Date.now() < end) n += 1; return n; }\n\
        setInterval(hot, 25);\n";
    // From 22 on V8 counts what it had inlined before as its caller, if nothing is done about it.
    for version in ["16", "22", "26"] {
        let node = node(version);
        let live = Live::start(
            PROGRAM,
            &[("app.js", hot)],
            &[node.to_str().unwrap(), "app.js"],
        );
        let socket = live.socket();
        let file = live.dir.path().join("a.cpuprofile");
        let taken = live.ask(&["prof", "shop", "--for", "1s", "-o", "a.cpuprofile"]);
        assert_eq!(taken.status, 0, "{version}: {}", taken.err);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.contains("\"functionName\":\"hot\"") && text.contains("\"timeDeltas\""),
            "{version}: {text}"
        );
        // The flame graph and the table are of the same samples.
        let drawn = live.ask(&["prof", "shop", "--for", "1s", "--svg", "a.svg", "--top"]);
        assert_eq!(drawn.status, 0, "{version}: {}", drawn.err);
        assert!(drawn.out.contains("hot"), "{version}: {}", drawn.out);
        let svg = std::fs::read_to_string(live.dir.path().join("a.svg")).unwrap();
        assert!(svg.contains("<svg") && svg.contains("hot"), "{version}");
        assert_eq!(live.ask(&["prof", "shop", "--start"]).status, 0);
        // One at a time.
        assert_eq!(live.ask(&["prof", "shop", "--start"]).status, 1);
        assert_eq!(
            live.ask(&["prof", "shop", "--stop", "-o", "b.cpuprofile"])
                .status,
            0
        );
        assert_eq!(
            live.ask(&["prof", "shop", "--stop", "-o", "c.cpuprofile"])
                .status,
            1
        );
        assert_eq!(live.ask(&["prof", "shop"]).status, 2);
        // One that was begun by a client who is killed ends with him.
        let mut killed = live
            .command(&["prof", "shop", "--for", "1h", "-o", "d.cpuprofile"])
            .start();
        eventually("a profile under way", || profiling(&socket).then_some(()));
        kill(Pid::from_raw(killed.pid()), Signal::SIGKILL).unwrap();
        let _ = killed.end();
        eventually("its end", || (!profiling(&socket)).then_some(()));

        let place = socket.parent().unwrap().to_owned();
        let profiles = |place: &Path| {
            let names = std::fs::read_dir(place).unwrap().flatten();
            let names = names.map(|entry| entry.path());
            names
                .filter(|path| path.extension().is_some_and(|end| end == "cpuprofile"))
                .collect::<Vec<_>>()
        };
        let signal = || kill(Pid::from_raw(live.running.pid()), Signal::SIGURG).unwrap();
        signal();
        eventually("a profile under way", || profiling(&socket).then_some(()));
        signal();
        let written = eventually("the profile's file", || profiles(&place).pop());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            written.metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

#[test]
fn an_app_that_has_nothing_more_to_do_ends_though_somebody_is_there() {
    let app = "globalThis.counter = 5; const wait = setInterval(() => { if (globalThis.leave) clearInterval(wait); }, 10);\n";
    for version in NODES {
        let node = node(version);
        let mut live = Live::start(
            PROGRAM,
            &[("app.js", app)],
            &[node.to_str().unwrap(), "app.js"],
        );
        let socket = live.socket();
        let mut session = UnixStream::connect(&socket).unwrap();
        session
            .write_all(b"1\nawait new Promise(() => {})\n")
            .unwrap();
        let mut byte = [0u8; 2];
        session.read_exact(&mut byte).unwrap();
        let idle = UnixStream::connect(&socket).unwrap();
        let mut leaving = UnixStream::connect(&socket).unwrap();
        leaving.write_all(b"globalThis.leave = true\n").unwrap();
        assert_eq!(live.running.end(), 0, "{version}");
        drop((session, idle, leaving));
    }
}

#[test]
fn all_are_asked_during_a_reload() {
    let spawnwork = sibling(PROGRAM, "spawnwork");
    let node = node("22");
    let mut live = Live::start(
        PROGRAM,
        &[("app.js", CJS)],
        &[
            spawnwork.to_str().unwrap(),
            "-n",
            "4",
            "--",
            node.to_str().unwrap(),
            "app.js",
        ],
    );
    let _ = live.sockets(4);
    live.running.event("generation-serving");
    live.running.signal(Signal::SIGUSR2);
    let mut asked = 0;
    while !live
        .running
        .err()
        .iter()
        .any(|line| line.contains(": reload-committed"))
    {
        let all = live.ask(&[
            "eval",
            "--all",
            "--compare",
            "--timeout",
            "60s",
            "shop",
            "counter",
        ]);
        // A worker may end between the list and the question: that is said, and the others answer.
        assert!(
            [0, 125, 127].contains(&all.status),
            "{}{}",
            all.out,
            all.err
        );
        assert!(all.out.contains("  5  ("), "{}{}", all.out, all.err);
        asked += 1;
    }
    assert!(asked > 0);
    assert_eq!(live.running.stop(), 0);
}

#[test]
fn a_heap_snapshot_is_whole() {
    for version in ["16", "26"] {
        let live = live(version);
        let _ = live.socket();
        let taken = live.ask(&["heap", "shop", "-o", "a.heapsnapshot"]);
        assert_eq!(taken.status, 0, "{version}: {}", taken.err);
        assert!(taken.err.contains("stands still"), "{}", taken.err);
        let text = std::fs::read_to_string(live.dir.path().join("a.heapsnapshot")).unwrap();
        assert!(
            text.starts_with("{\"snapshot\"") && text.trim_end().ends_with('}'),
            "{version}"
        );
        assert_eq!(live.value("counter"), "5");
    }
}

#[test]
fn threads_of_the_app_are_not_meant() {
    // Though this one is given what the agent is told by: it has no socket, and no harm.
    let app = "const { Worker } = require('worker_threads');\n\
        globalThis.counter = 5;\n\
        const agent = Object.keys(require.cache).find((name) => name.endsWith('agent.cjs'));\n\
        const told = JSON.stringify({ app: 'shop', dir: process.env.REPLSOCK_DIR });\n\
        const thread = new Worker(`require('worker_threads').parentPort.postMessage([Boolean(globalThis[Symbol.for('replsock.agent')]), process.umask()]); setInterval(() => {}, 1000)`,\n\
        { eval: true, env: { ...process.env, REPLSOCK_AGENT: told, NODE_OPTIONS: `--require=${agent}` } });\n\
        thread.on('message', (said) => { globalThis.said = JSON.stringify(said); });\n\
        thread.on('error', (why) => { globalThis.said = String(why); });\n";
    for version in NODES {
        let node = node(version);
        let live = Live::start(
            PROGRAM,
            &[("app.js", app)],
            &[node.to_str().unwrap(), "app.js"],
        );
        let socket = live.socket();
        let said = eventually("the thread's word", || {
            let said = live.value("String(globalThis.said)");
            (said != "undefined").then_some(said)
        });
        assert!(said.starts_with("[false,"), "{version}: {said}");
        let names = std::fs::read_dir(socket.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "{version}");
    }
}
