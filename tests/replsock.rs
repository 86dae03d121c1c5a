//! replsock as a script uses it: eval, ls, env, statuses, targets.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::live::Live;
use kit::{Run, eventually, node, sibling};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

const APP: &str = "globalThis.counter = 5;\n\
    require('http').createServer((q, s) => s.end('hello\\n')).listen(process.env.PORT || 0);\n";

fn alone() -> Live {
    let node = node("20");
    Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    )
}

/// Four workers of spawnwork's.
fn four() -> Live {
    let spawnwork = sibling(PROGRAM, "spawnwork");
    let node = node("20");
    Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[
            spawnwork.to_str().unwrap(),
            "-n",
            "4",
            "--",
            node.to_str().unwrap(),
            "app.js",
        ],
    )
}

#[test]
fn a_value_on_stdout_and_its_fate_as_the_status() {
    let live = alone();
    let _ = live.socket();
    for (words, status, out) in [
        (&["eval", "shop", "1+1"][..], 0, "2\n"),
        (&["eval", "shop", "1", "+", "2"], 0, "3\n"),
        (&["eval", "shop", "'a'"], 0, "'a'\n"),
        (&["eval", "--raw", "shop", "'a'"], 0, "a\n"),
        (&["eval", "shop", "--raw", "'a'"], 0, "a\n"),
        (&["eval", "shop", "throw new Error('boo')"], 1, ""),
        (&["eval", "shop", "nope.nope"], 1, ""),
        (&["eval", "shop", "1 +"], 1, ""),
        (&["eval", "--compare", "shop", "1"], 2, ""),
        (&["eval", "sh op", "1"], 2, ""),
        (&["eval", "--timeout", "200ms", "shop", "for(;;);"], 124, ""),
        (
            &[
                "eval",
                "--timeout",
                "200ms",
                "shop",
                "await new Promise(() => {})",
            ],
            124,
            "",
        ),
        (
            &[
                "eval",
                "--timeout",
                "500ms",
                "shop",
                "/^(a+)+$/.test('a'.repeat(40) + 'b')",
            ],
            124,
            "",
        ),
        (&["eval", "shop", "process.exit()"], 126, ""),
        (&["eval", "--read-only", "shop", "counter = 9"], 1, ""),
        (&["eval", "--read-only", "shop", "counter"], 0, "5\n"),
        (&["eval", "nobody", "1"], 127, ""),
        (&["eval", "shop/99999", "1"], 127, ""),
        (&["eval", "./none.sock", "1"], 127, ""),
        (&["eval", "tcp:10.0.0.1:1", "1"], 2, ""),
        // Edge case 42.
        (&["eval", "shop", "undefined"], 0, ""),
        (&["eval", "--json", "shop", "[1n]"], 1, ""),
        // Edge case 41: a cycle, a big integer, something huge, a getter that throws.
        (
            &["eval", "shop", "const o = {}; o.o = o; o"],
            0,
            "<ref *1> { o: [Circular *1] }\n",
        ),
        (
            &["eval", "shop", "10n ** 20n"],
            0,
            "100000000000000000000n\n",
        ),
        (
            &["eval", "shop", "({ get a() { throw 1 } })"],
            0,
            "{ a: [Getter] }\n",
        ),
        (
            &["eval", "--raw", "--limit", "10", "shop", "'x'.repeat(3e6)"],
            0,
            "xxxxxxxxxx\n",
        ),
    ] {
        let answer = live.ask(words);
        assert_eq!(
            answer.status, status,
            "{words:?}: {}{}",
            answer.out, answer.err
        );
        if status == 0 {
            assert_eq!(answer.out, out, "{words:?}");
        } else {
            let said = answer.err + &answer.out;
            assert!(!said.is_empty(), "{words:?} says nothing");
        }
    }
    assert_eq!(live.value("counter"), "5");
    let json = live.ask(&["eval", "--json", "shop", "undefined"]);
    assert!(
        json.out.contains("\"value\":null,\"undefined\":true"),
        "{}",
        json.out
    );
}

#[test]
fn a_program_on_standard_input() {
    let live = alone();
    let _ = live.socket();
    // Edge case 1 and 2: no newline at the end, and however late it comes.
    let late = live.tell(
        &["eval", "shop"],
        "let a = 1\nawait new Promise(done => setTimeout(done, 1500)); a + 1",
    );
    assert_eq!((late.status, late.out.as_str()), (0, "2\n"), "{}", late.err);
    // `replsock TARGET` in a pipe is the same.
    let short = live.tell(&["shop"], "process.pid > 1");
    assert_eq!(
        (short.status, short.out.as_str()),
        (0, "true\n"),
        "{}",
        short.err
    );
    // Edge case 3.
    for nothing in ["", " \n\n"] {
        let none = live.tell(&["eval", "shop"], nothing);
        assert_eq!((none.status, none.out.as_str()), (0, ""), "{}", none.err);
    }
}

#[test]
fn whoever_reads_no_more_ends_it_quietly() {
    let live = alone();
    let _ = live.socket();
    // Edge case 4.
    let shell =
        format!("'{PROGRAM}' eval --raw --limit 0 shop '\"x\\\\n\".repeat(400000)' | head -1");
    let shell = Run::new("/bin/sh")
        .args(["-c", &shell])
        .dir(live.dir.path())
        .env("REPLSOCK_DIR", live.dir.path().join("sockets"))
        .finish();
    assert_eq!(shell.status, 0, "{}", shell.err);
    assert_eq!(shell.err, "");
    assert_eq!(live.value("counter"), "5");
}

#[test]
fn plain_text_for_socat() {
    let live = alone();
    let socket = live.socket();
    // Half-closed at once, and the answer comes a second later.
    let input = "1+1\nfunction f(x) {\n return x * 2 }\nf(4)\nawait new Promise(d => setTimeout(d, 1000, 'late'))\nprocess.exit()\n'end'";
    let path = live.dir.write("text", input);
    let answer = Run::new("socat")
        .args(["-t30", "-", &format!("UNIX:{}", socket.display())])
        .stdin(std::fs::File::open(path).unwrap())
        .finish();
    assert_eq!(
        answer.out,
        "2\nundefined\n8\n'late'\nUncaught [Error: process.exit() would end the app]\n'end'\n"
    );
}

#[test]
fn workers_by_their_numbers_and_answers_that_differ() {
    let mut live = four();
    let _ = live.sockets(4);
    let listed = live.ask(&["ls", "shop"]);
    let head: Vec<&str> = listed
        .out
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        head,
        [
            "APP", "WORKER", "GEN", "PID", "USER", "UPTIME", "RSS", "STATE", "SOCKET"
        ]
    );
    let numbers: Vec<&str> = listed
        .out
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert_eq!(numbers, ["0", "1", "2", "3"]);
    // The variables are gone from the workers.
    let clean = live.ask(&[
        "eval",
        "--all",
        "--compare",
        "shop",
        "[process.env.REPLSOCK_AGENT, (process.env.NODE_OPTIONS || '').includes('agent.cjs')]",
    ]);
    assert_eq!(clean.status, 0, "{}{}", clean.out, clean.err);
    assert!(
        clean
            .out
            .starts_with("4 workers  [ undefined, false ]  (pids "),
        "{}",
        clean.out
    );

    // Several match: a list, and status 2.
    let several = live.ask(&["eval", "shop", "1"]);
    assert_eq!(several.status, 2);
    assert_eq!(
        several
            .err
            .lines()
            .filter(|line| line.contains("  pid "))
            .count(),
        4
    );
    let one = live.ask(&["eval", "shop/2", "counter = 6; process.env.WORKER_ID"]);
    assert_eq!((one.status, one.out.as_str()), (0, "'2'\n"), "{}", one.err);
    let pid = live.ask(&["eval", "--raw", "shop/2", "String(process.pid)"]);
    for target in [
        format!("shop/{}", pid.out.trim()),
        pid.out.trim().to_owned(),
    ] {
        let same = live.ask(&["eval", &target, "counter"]);
        assert_eq!(same.out, "6\n", "{target}: {}", same.err);
    }

    let differ = live.ask(&["eval", "--all", "--compare", "shop", "counter"]);
    assert_eq!(differ.status, 1, "{}{}", differ.out, differ.err);
    let lines: Vec<&str> = differ.out.lines().collect();
    assert!(
        lines[0].starts_with("3 workers  5  (pids "),
        "{}",
        differ.out
    );
    assert!(
        lines[1].starts_with(&format!("1 worker  6  (pid {})", pid.out.trim())),
        "{}",
        differ.out
    );
    let each = live.ask(&[
        "eval",
        "--all",
        "shop",
        "if (process.env.WORKER_ID == 1) throw new Error('one'); 7",
    ]);
    assert_eq!(each.status, 1);
    assert_eq!(
        each.out
            .lines()
            .filter(|line| line.ends_with(": 7"))
            .count(),
        3,
        "{}",
        each.out
    );
    assert!(
        each.err.contains("shop/1 (pid ") && each.err.contains("one"),
        "{}",
        each.err
    );
    let json = live.ask(&[
        "eval",
        "--all",
        "--json",
        "shop",
        "({ a: process.env.WORKER_ID })",
    ]);
    assert_eq!(
        json.out
            .lines()
            .filter(|line| line.contains("\"value\":{\"a\":\""))
            .count(),
        4
    );

    // A worker that is stuck is 124, and is shown so. Edge case 37.
    let started = live.ask(&[
        "eval",
        "--timeout",
        "0",
        "shop/3",
        "setTimeout(() => { const end = Date.now() + 6000; while (Date.now() < end); }, 100); 1",
    ]);
    assert_eq!(started.status, 0, "{}", started.err);
    eventually("a busy worker", || {
        live.ask(&["ls", "shop"])
            .out
            .contains("  busy  ")
            .then_some(())
    });
    let stuck = live.ask(&["eval", "--timeout", "200ms", "shop/3", "1"]);
    assert_eq!(stuck.status, 124, "{}{}", stuck.out, stuck.err);
    assert!(stuck.err.contains("event loop is blocked"), "{}", stuck.err);
    assert_eq!(live.running.stop(), 0);
}

#[test]
fn what_drains_is_shown_during_a_reload() {
    // Edge case 32: the old worker has a request under way.
    let app = "process.on('SIGTERM', () => setTimeout(() => process.exit(0), 4000));\n\
        require('http').createServer((q, s) => s.end('hello\\n')).listen(process.env.PORT || 0);\n";
    let node = node("22");
    let mut live = Live::start(
        PROGRAM,
        &[("app.js", app)],
        &[node.to_str().unwrap(), "app.js"],
    );
    let _ = live.socket();
    live.running.signal(nix::sys::signal::Signal::SIGTERM);
    let listed = eventually("a draining process", || {
        let listed = live.ask(&["ls", "shop"]).out;
        listed.contains("  draining  ").then_some(listed)
    });
    assert_eq!(listed.lines().count(), 2);
    let all = live.ask(&["eval", "--all", "shop", "1"]);
    assert!(all.out.contains(", draining): 1"), "{}{}", all.out, all.err);
    assert_eq!(live.running.end(), 0);
}

#[test]
fn a_worker_that_is_killed_leaves_a_stale_socket_and_it_is_pruned() {
    let mut live = alone();
    let socket = live.socket();
    live.running.signal(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(live.running.end(), 137);
    // Edge case 28 and 31.
    let gone = live.ask(&["eval", socket.to_str().unwrap(), "1"]);
    assert_eq!(gone.status, 127, "{}", gone.err);
    assert_eq!(live.ask(&["eval", "shop", "1"]).status, 127);
    assert!(live.ask(&["ls"]).out.contains("  stale  "));
    assert_eq!(live.ask(&["ls", "--prune"]).out, "");
    assert!(!socket.exists());
}

#[test]
fn an_end_of_the_app_takes_its_socket_along() {
    let mut live = alone();
    let socket = live.socket();
    let end = live.ask(&["eval", "--force", "shop", "process.exit(7)"]);
    assert_eq!(end.status, 125, "{}", end.err);
    assert_eq!(live.running.end(), 7);
    assert!(!socket.exists());
}

#[test]
fn env_becomes_the_command_or_prints_lines_for_a_shell() {
    let dir = kit::Dir::new();
    let run = |words: &[&str]| {
        Run::new(PROGRAM)
            .args(words)
            .env("REPLSOCK_DIR", dir.path().join("a b"))
            .env("NODE_OPTIONS", "--no-warnings")
            .finish()
    };
    let lines = run(&["env", "--app", "shop"]);
    assert_eq!(lines.status, 0, "{}", lines.err);
    for name in ["REPLSOCK_AGENT", "NODE_OPTIONS", "PYTHONPATH"] {
        assert!(
            lines.out.contains(&format!("export {name}='")),
            "{}",
            lines.out
        );
    }
    // Edge case 49: what was set stays, and blanks in the path are quoted.
    let node = node("18");
    let words = [
        "env",
        "--",
        node.to_str().unwrap(),
        "-p",
        "process.env.NODE_OPTIONS",
    ];
    let kept = run(&words);
    assert_eq!(
        (kept.status, kept.out.as_str()),
        (0, "--no-warnings\n"),
        "{}",
        kept.err
    );
    let status = run(&["env", "--", "/bin/sh", "-c", "exit 9"]);
    assert_eq!(status.status, 9);
    // Edge case 44.
    assert_eq!(run(&["env", "--", "/none"]).status, 127);
    assert_eq!(run(&["env", "--", "/etc/passwd"]).status, 126);
    assert_eq!(run(&["env", "--app", "../x", "--", "true"]).status, 2);
    let place = dir.path().join("a b/.agents");
    assert_eq!(place.metadata().unwrap().permissions().mode() & 0o022, 0);
}

#[test]
fn nothing_of_the_app_changes() {
    // It ends by itself, its children get nothing, and it writes what it wrote.
    let app = "console.log(process.execArgv.length, process.env.NODE_OPTIONS, Object.keys(globalThis).includes('require'));\n\
        console.log(require('child_process').execFileSync(process.execPath, ['-p', '[process.env.NODE_OPTIONS, process.env.REPLSOCK_AGENT]']).toString().trim());\n";
    for version in kit::NODES {
        let node = node(version);
        let mut live = Live::start(
            PROGRAM,
            &[("app.js", app)],
            &[node.to_str().unwrap(), "app.js"],
        );
        assert_eq!(live.running.end(), 0, "{version}");
        assert_eq!(
            live.running.out_to_its_end(),
            "0 undefined false\n[ undefined, undefined ]\n",
            "{version}"
        );
        assert_eq!(live.running.err(), Vec::<String>::new());
        let left = std::fs::read_dir(live.dir.path().join("sockets/shop")).unwrap();
        assert_eq!(left.count(), 0, "{version}");
    }
}

#[test]
fn an_audit_line_for_each_deed() {
    let live = alone();
    let _ = live.socket();
    let log = live.dir.path().join("audit.log");
    let path = log.to_str().unwrap();
    let ask = |how: &str, expression: &str| {
        let words = [
            "eval",
            "--audit",
            path,
            "--audit-expr",
            how,
            "shop",
            expression,
        ];
        assert_eq!(live.ask(&words).status, 0);
        std::fs::read_to_string(&log).unwrap()
    };
    let text = ask("full", "'geheim\\u001b'");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(text.contains(": connected target=shop uid=0 "), "{text}");
    let line = text
        .lines()
        .find(|line| line.contains(": evaluated "))
        .unwrap();
    assert!(
        line.contains("expression=\"'geheim\\\\u001b'\"")
            && line.contains(" sha256=")
            && line.contains(" ok=yes "),
        "{line}"
    );
    // Edge case 43.
    let text = ask("hash", "'verborgen'");
    assert!(!text.contains("verborgen"), "{text}");
}

#[test]
fn python_and_ruby_speak_the_small_subset() {
    let python = "import os, sys, time\ncounter = 7\nprint('up', os.environ.get('PYTHONPATH'), 'REPLSOCK_AGENT' in os.environ, flush=True)\nwhile True: time.sleep(0.1)\n";
    // The user's own sitecustomize is run as ever.
    let own = "import builtins\nbuiltins.customized = True\n";
    let shell = "mkdir own; mv sitecustomize.py own; PYTHONPATH=$PYTHONPATH:own exec /usr/bin/python3 app.py";
    let live = Live::start(
        PROGRAM,
        &[("app.py", python), ("sitecustomize.py", own)],
        &["/bin/sh", "-c", shell],
    );
    let _ = live.socket();
    for (words, status, out) in [
        (&["eval", "shop", "counter + 1"][..], 0, "8\n"),
        (&["eval", "shop", "import sys; counter"], 0, "7\n"),
        (&["eval", "shop", "customized"], 0, "True\n"),
        (&["eval", "--json", "shop", "{'a': [1]}"], 0, ""),
        (&["eval", "shop", "1/0"], 1, ""),
        (&["eval", "shop", "import sys; sys.exit(3)"], 126, ""),
        (&["eval", "--read-only", "shop", "1"], 1, ""),
    ] {
        let answer = live.ask(words);
        assert_eq!(
            answer.status, status,
            "{words:?}: {}{}",
            answer.out, answer.err
        );
        if !out.is_empty() {
            assert_eq!(answer.out, out);
        }
    }
    assert!(
        live.running.out().contains("up own False"),
        "{}",
        live.running.out()
    );
    let text = Run::new("/bin/sh")
        .args([
            "-c",
            &format!(
                "echo counter | socat -t30 - UNIX:{}",
                live.socket().display()
            ),
        ])
        .finish();
    assert_eq!(text.out, "7\n");

    let live = Live::start(
        PROGRAM,
        &[("app.rb", "$counter = 9\nsleep\n")],
        &["ruby", "app.rb"],
    );
    let _ = live.socket();
    assert_eq!(live.value("$counter + 1"), "10");
    assert_eq!(live.ask(&["eval", "shop", "nope"]).status, 1);
    assert_eq!(live.ask(&["eval", "shop", "ENV['RUBYOPT']"]).out, "");
}

#[test]
fn a_long_path_is_no_hindrance() {
    // Edge case 29.
    let long = kit::Dir::new();
    let place = long.path().join("x".repeat(100)).join("y".repeat(60));
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    let run = |words: &[&str]| Run::new(PROGRAM).args(words).env("REPLSOCK_DIR", &place);
    let node = node("16");
    let program = "setInterval(() => {}, 1000)";
    let _app = run(&[
        "env",
        "--app",
        "shop",
        "--",
        node.to_str().unwrap(),
        "-e",
        program,
    ])
    .start();
    let answer = eventually("an answer", || {
        let answer = run(&["eval", "shop", "6*7"]).finish();
        (answer.status == 0).then_some(answer)
    });
    assert_eq!(answer.out, "42\n");
    let names = std::fs::read_dir(place.join("shop")).unwrap().count();
    assert_eq!(names, 1);
    assert!(Path::new(&place).as_os_str().len() > 150);
}
