//! What is rare: an app that has no room for more clients, no descriptor, little memory; a socket that somebody
//! removed or replaced; clients that stand still; workers that were forked; a reload that takes its time.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    missing_docs
)]

use kit::live::Live;
use kit::{NODES, Run, eventually, node, sibling};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

const APP: &str = "globalThis.counter = 5; globalThis.turns = 0;\n\
    const beat = setInterval(() => { globalThis.turns += 1; if (globalThis.leave) clearInterval(beat); }, 10);\n";

fn live(version: &str) -> Live {
    let node = node(version);
    Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    )
}

fn turns_on(live: &Live, what: &str) {
    let turns = || live.value("String(turns)").parse::<u64>().unwrap();
    let before = turns();
    eventually(what, || (turns() > before).then_some(()));
}

// Edge case 46.
#[test]
fn a_full_house_is_busy_not_gone() {
    for version in ["16", "26"] {
        let live = live(version);
        let socket = live.socket();
        let mut crowd: Vec<UnixStream> = (0..256)
            .map(|_| UnixStream::connect(&socket).unwrap())
            .collect();
        // Those who looked for it are counted until they are gone: their places are taken, too.
        let mut refused_by = |words: &[&str]| {
            eventually("a full house", || {
                let answer = live.command_of(words[0], &words[1..]).finish();
                if answer.out == "5\n" || answer.out == "2\n" {
                    crowd.push(UnixStream::connect(&socket).unwrap());
                    return None;
                }
                Some(answer)
            })
        };
        let refused = refused_by(&[PROGRAM, "eval", "shop", "counter"]);
        assert_eq!(refused.status, 125, "{version}: {}", refused.err);
        assert!(
            refused.err.contains("it is busy: 256 clients are there"),
            "{}",
            refused.err
        );
        let line = format!("echo 1+1 | socat -t30 - UNIX:'{}'", socket.display());
        let text = refused_by(&["sh", "-c", &line]);
        assert!(
            text.out.starts_with("it is busy"),
            "{}{}",
            text.out,
            text.err
        );
        // Who looks for what is gone does not take the name of one who is there.
        let listed = live.ask(&["ls", "--prune"]);
        assert!(listed.out.contains("  busy  "), "{}", listed.out);
        assert!(socket.exists());
        drop(crowd);
        eventually("room again", || {
            (live.ask(&["eval", "shop", "counter"]).out == "5\n").then_some(())
        });
    }
}

// Edge case 47.
#[test]
fn an_app_without_a_descriptor_left_lives_on() {
    for version in NODES {
        let node = node(version);
        let live = Live::start(
            PROGRAM,
            &[("app.js", APP)],
            &["prlimit", "--nofile=48", node.to_str().unwrap(), "app.js"],
        );
        let socket = live.socket();
        let crowd: Vec<UnixStream> = (0..100)
            .filter_map(|_| UnixStream::connect(&socket).ok())
            .collect();
        let refused = live.ask(&["eval", "--timeout", "1s", "shop", "counter"]);
        assert!(
            [124, 125].contains(&refused.status),
            "{version}: {} {}",
            refused.status,
            refused.err
        );
        let _ = live.ask(&["ls", "--prune"]);
        assert!(
            socket.exists(),
            "{version}: it was taken for one that is gone"
        );
        drop(crowd);
        eventually("room again", || {
            (live.ask(&["eval", "shop", "counter"]).out == "5\n").then_some(())
        });
        turns_on(&live, version);
    }
}

// Edge case 19.
#[test]
fn what_lies_where_its_socket_was_is_not_removed() {
    for version in NODES {
        let mut live = live(version);
        let socket = live.socket();
        let aside = socket.with_file_name("aside.sock");
        std::fs::rename(&socket, &aside).unwrap();
        std::fs::write(&socket, "a stranger's").unwrap();
        let told = live.ask(&["eval", aside.to_str().unwrap(), "leave = true"]);
        assert_eq!(told.status, 0, "{version}: {}", told.err);
        assert_eq!(live.running.end(), 0, "{version}");
        assert_eq!(
            std::fs::read_to_string(&socket).ok().as_deref(),
            Some("a stranger's"),
            "{version}"
        );
    }
}

// Edge case 20: it is looked for each half minute.
#[test]
fn a_socket_that_was_cleaned_away_comes_back() {
    let python = "counter = 5\nimport time\nwhile True: time.sleep(0.1)\n";
    let ruby = "$counter = 5\nsleep\n";
    let (old, new) = (node("16"), node("26"));
    let apps = [
        (
            "app.js",
            APP,
            vec![old.to_str().unwrap(), "app.js"],
            "counter",
        ),
        (
            "app.js",
            APP,
            vec![new.to_str().unwrap(), "app.js"],
            "counter",
        ),
        (
            "app.py",
            python,
            vec!["/usr/bin/python3", "app.py"],
            "counter",
        ),
        ("app.rb", ruby, vec!["ruby", "app.rb"], "$counter"),
    ];
    let all: Vec<(Live, PathBuf, &str)> = apps
        .iter()
        .map(|(name, text, command, what)| {
            let live = Live::start(PROGRAM, &[(name, text)], command);
            let socket = live.socket();
            (live, socket, *what)
        })
        .collect();
    for (at, (_, socket, _)) in all.iter().enumerate() {
        match at {
            // The whole directory, or the name alone.
            1 => std::fs::remove_dir_all(socket.parent().unwrap()).unwrap(),
            _ => std::fs::remove_file(socket).unwrap(),
        }
    }
    for (live, socket, what) in &all {
        let end = Instant::now() + Duration::from_secs(120);
        while live.ask(&["eval", "shop", what]).out != "5\n" {
            assert!(Instant::now() < end, "{socket:?} does not come back");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(socket.symlink_metadata().unwrap().file_type().is_socket());
        assert_eq!(socket.symlink_metadata().unwrap().mode() & 0o777, 0o600);
        let names = std::fs::read_dir(socket.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "{socket:?}");
    }
}

// Edge cases 15 and 16: the client itself is stopped with an answer under way, others are not.
#[test]
fn a_stopped_client_stops_nobody_else() {
    let live = live("22");
    let _ = live.socket();
    let mut large = live
        .command(&[
            "eval",
            "--raw",
            "--limit",
            "0",
            "--timeout",
            "60s",
            "shop",
            "globalThis.asked = true; 'x'.repeat(3e7)",
        ])
        .start();
    // It is stopped while it waits for its answer, or reads it.
    let _ = live.value("1");
    large.signal(Signal::SIGSTOP);
    turns_on(&live, "the loop, beside a client that is stopped");
    for _ in 0..20 {
        assert_eq!(live.value("counter"), "5");
    }
    large.signal(Signal::SIGCONT);
    assert_eq!(large.end(), 0, "{:?}", large.err());
    assert_eq!(large.out_to_its_end().len(), 30_000_001);
}

#[test]
fn a_hundred_clients_at_once_are_all_answered() {
    let live = live("24");
    let socket = live.socket();
    let clients: Vec<_> = (0..100)
        .map(|number: u32| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut stream = UnixStream::connect(&socket).unwrap();
                let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
                for round in 0..3 {
                    writeln!(stream, "{number} * 1000 + {round}").unwrap();
                    let answer = answers.next().unwrap().unwrap();
                    assert_eq!(answer, (number * 1000 + round).to_string());
                }
            })
        })
        .collect();
    turns_on(&live, "the loop, beside a hundred clients");
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(live.value("counter"), "5");
}

/// A memory cgroup of its own for a test, of version 1 or 2.
struct Limited {
    place: PathBuf,
    file: &'static str,
}

impl Limited {
    fn new() -> Option<Limited> {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes a cgroup: run it as root (sudo make test)"
        );
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = |kind: &str| {
            let line = mounts.lines().find(|line| {
                line.contains(&format!(" - {kind} "))
                    && (kind == "cgroup2" || line.ends_with(",memory"))
            })?;
            Some(PathBuf::from(line.split(' ').nth(4)?))
        };
        let own = format!("nirvana-test-heap-{}", std::process::id());
        let found = match (point("cgroup"), point("cgroup2")) {
            (Some(v1), _) => Some((v1, "memory.limit_in_bytes")),
            (None, Some(v2)) => {
                let _ = std::fs::write(v2.join("cgroup.subtree_control"), "+memory");
                Some((v2, "memory.max"))
            }
            (None, None) => None,
        };
        let Some((point, file)) = found else {
            eprintln!("no memory cgroup can be had here: nothing was tested");
            return None;
        };
        let place = point.join(own);
        std::fs::create_dir(&place)
            .unwrap_or_else(|why| panic!("this test cannot make {place:?}: {why}"));
        assert!(
            place.join(file).exists(),
            "the memory controller cannot be switched on in {place:?}"
        );
        Some(Limited { place, file })
    }

    fn limit(&self, megabytes: u64) {
        std::fs::write(self.place.join(self.file), (megabytes << 20).to_string()).unwrap();
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir(&self.place).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_heap_snapshot_is_refused_where_memory_is_short() {
    let Some(group) = Limited::new() else {
        return;
    };
    group.limit(4000);
    // Large strings: a heap of some size, whose snapshot is small.
    let app = "globalThis.counter = 5; globalThis.hold = [];\n\
        for (let n = 0; n < 200; n += 1) hold.push(Buffer.alloc(1 << 19, 97 + n % 20).latin1Slice());\n\
        setInterval(() => {}, 1000);\n";
    let node = node("20");
    let enter = format!(
        "echo $$ > {}/cgroup.procs && exec \"$@\"",
        group.place.display()
    );
    let mut live = Live::start(
        PROGRAM,
        &[("app.js", app)],
        &["sh", "-c", &enter, "sh", node.to_str().unwrap(), "app.js"],
    );
    let _ = live.socket();
    let snapshot = live.dir.path().join("a.heapsnapshot");
    let take = |more: &[&str]| {
        let mut words = vec!["heap", "shop", "-o", "a.heapsnapshot"];
        words.extend(more);
        live.ask(&words)
    };
    group.limit(250);
    let refused = take(&[]);
    assert_eq!(refused.status, 126, "{}", refused.err);
    assert!(
        refused.err.contains("memory is short")
            && refused.err.contains(" MB are free in its cgroup; --force"),
        "{}",
        refused.err
    );
    assert!(!snapshot.exists());
    assert_eq!(live.value("counter"), "5");
    let forced = take(&["--force"]);
    assert_eq!(forced.status, 0, "{}", forced.err);
    assert!(snapshot.metadata().unwrap().len() > 100_000);
    std::fs::remove_file(&snapshot).unwrap();
    group.limit(4000);
    let taken = take(&[]);
    assert_eq!(taken.status, 0, "{}", taken.err);
    assert!(snapshot.exists());
    assert_eq!(live.running.stop(), 143);
}

#[test]
fn a_forgotten_profile_ends_by_itself() {
    let node = node("20");
    let dir = kit::Dir::new();
    dir.write("app.js", APP);
    let run = |words: &[&str]| {
        Run::new(PROGRAM)
            .args(words)
            .dir(dir.path())
            .env("REPLSOCK_DIR", dir.path().join("sockets"))
    };
    let _app = run(&[
        "env",
        "--app",
        "shop",
        "--prof-max",
        "1s",
        "--",
        node.to_str().unwrap(),
        "app.js",
    ])
    .start();
    eventually("the app", || {
        (run(&["eval", "shop", "1"]).finish().status == 0).then_some(())
    });
    assert_eq!(run(&["prof", "shop", "--start"]).finish().status, 0);
    // It is beside the socket, whole, and nothing is running any more.
    let written = eventually("the profile's file", || {
        let names = std::fs::read_dir(dir.path().join("sockets/shop")).unwrap();
        names
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|end| end == "cpuprofile"))
    });
    assert_eq!(written.metadata().unwrap().mode() & 0o777, 0o600);
    let table = run(&["flame", "--top", written.to_str().unwrap()]).finish();
    assert_eq!(table.status, 0, "{}", table.err);
    let late = run(&["prof", "shop", "--stop", "--top"]).finish();
    assert_eq!(late.status, 1, "{}{}", late.out, late.err);
    assert!(late.err.contains("no profile is running"), "{}", late.err);
}

// Edge cases 31 and 32: the old worker has a request under way, the new one of its number serves.
#[test]
fn the_old_worker_of_a_reload_is_last_and_not_meant() {
    let app = "const generation = process.env.SPAWNWORK_GENERATION;\n\
        require('http').createServer((q, s) => { q.url === '/slow' ? setTimeout(() => s.end(generation), 6000) : s.end(generation); })\n\
        .listen(process.env.PORT);\n";
    let spawnwork = sibling(PROGRAM, "spawnwork");
    let node = node("22");
    let port = kit::free_port().to_string();
    let mut live = Live::start(
        PROGRAM,
        &[("app.js", app)],
        &[
            "env",
            &format!("PORT={port}"),
            spawnwork.to_str().unwrap(),
            "-n",
            "1",
            "--",
            node.to_str().unwrap(),
            "app.js",
        ],
    );
    let first = live.socket();
    live.running.event("generation-serving");
    let mut slow = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    slow.write_all(b"GET /slow HTTP/1.0\r\n\r\n").unwrap();
    // It is there when the worker has it.
    eventually("the slow request", || {
        let connections = "String(process._getActiveHandles().filter((one) => one.constructor.name === 'Socket' && one.server && one.server.constructor.name === 'Server' && one.parser).length)";
        (live.value(connections) != "0").then_some(())
    });
    live.running.signal(Signal::SIGUSR2);
    let (listed, draining) = eventually("both, and the old one drains", || {
        let listed = live.ask(&["ls", "--json", "shop"]).out;
        let draining: Vec<bool> = listed
            .lines()
            .map(|line| line.contains("\"state\":\"draining\""))
            .collect();
        (draining == [false, true]).then_some((listed, draining))
    });
    assert_eq!(draining, [false, true], "{listed}");
    assert!(
        listed.lines().last().unwrap().contains("\"generation\":1,"),
        "{listed}"
    );
    let answer = live.ask(&[
        "eval",
        "--raw",
        "shop/0",
        "process.env.SPAWNWORK_GENERATION",
    ]);
    assert_eq!(answer.out, "2\n", "{}", answer.err);
    let all = live.ask(&[
        "eval",
        "--all",
        "--raw",
        "shop",
        "process.env.SPAWNWORK_GENERATION",
    ]);
    assert_eq!(all.status, 0, "{}", all.err);
    assert!(
        all.out.contains(", draining): 1") && all.out.contains("): 2"),
        "{}",
        all.out
    );
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.ends_with('1'), "{text}");
    // And when it is gone, it is that: the app is asked all the same.
    eventually("the end of the old one", || (!first.exists()).then_some(()));
    assert_eq!(
        live.ask(&["eval", first.to_str().unwrap(), "1"]).status,
        127
    );
    assert_eq!(live.ask(&["eval", "--raw", "shop", "1"]).out, "1\n");
    assert_eq!(live.running.stop(), 0);
}

#[test]
fn each_forked_worker_of_gunicorn_is_reached() {
    let app = "import os\ncounter = 5\ndef app(environ, start):\n    start('200 OK', [])\n    return [str(os.getpid()).encode()]\n";
    let mut live = Live::start(
        PROGRAM,
        &[("shop.py", app)],
        &["gunicorn", "-w", "2", "-b", "unix:web.sock", "shop:app"],
    );
    let pids = |live: &Live| -> Vec<String> {
        let mut pids: Vec<String> = live
            .sockets(3)
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        pids.sort();
        pids
    };
    let first = pids(&live);
    // Each answers for itself: no socket is another's, inherited.
    let own = "__import__('os').getpid()";
    for pid in &first {
        let answer = live.ask(&["eval", &format!("shop/{pid}"), own]);
        assert_eq!(answer.out, format!("{pid}\n"), "{}", answer.err);
    }
    let worker = first
        .iter()
        .map(|pid| pid.parse::<i32>().unwrap())
        .find(|pid| *pid != live.running.pid())
        .unwrap();
    let answer = live.ask(&[
        "eval",
        &format!("shop/{worker}"),
        "__import__('sys').modules['shop'].counter",
    ]);
    assert_eq!(answer.out, "5\n", "{}", answer.err);
    // A worker is killed with a client of its master there: the next one is reached, too.
    let session = live
        .dir
        .path()
        .join(format!("sockets/shop/{}.sock", live.running.pid()));
    let mut session = UnixStream::connect(session).unwrap();
    session.write_all(b"1+1\n").unwrap();
    let mut answer = [0u8; 2];
    session.read_exact(&mut answer).unwrap();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let renewed = eventually("another worker", || {
        let now = pids(&live);
        (!now.contains(&worker.to_string())).then_some(now)
    });
    for pid in renewed {
        let answer = live.ask(&["eval", &format!("shop/{pid}"), own]);
        assert_eq!(answer.out, format!("{pid}\n"), "{}", answer.err);
    }
    // The workers do not hold what their master had open.
    assert_eq!(live.running.stop(), 0);
    assert_eq!(session.read(&mut answer).unwrap_or(0), 0);
    assert_eq!(live.ask(&["eval", "shop", "1"]).status, 127);
}

#[test]
fn python_and_ruby_answer_late_and_after_a_fork() {
    let python = "import os, time\ncounter = 5\nif os.fork() == 0: counter = 6\nwhile True: time.sleep(0.1)\n";
    let ruby = "$counter = 5\n$counter = 6 unless fork\nsleep\n";
    for (name, text, command, what, late) in [
        (
            "app.py",
            python,
            "/usr/bin/python3",
            "counter",
            "import time; time.sleep(1.5); counter",
        ),
        ("app.rb", ruby, "ruby", "$counter", "sleep 1.5; $counter"),
    ] {
        let live = Live::start(PROGRAM, &[(name, text)], &[command, name]);
        let sockets = live.sockets(2);
        let all = live.ask(&["eval", "--all", "shop", what]);
        assert!(
            all.out.contains("): 5\n") && all.out.contains("): 6\n"),
            "{name}: {}{}",
            all.out,
            all.err
        );
        // Half-closed at once, and the answer comes a second later.
        let mut answers: Vec<String> = sockets
            .iter()
            .map(|socket| {
                let run = Run::new("sh")
                    .args(["-c", "echo \"$1\" | socat -t30 - UNIX:\"$2\"", "sh", late])
                    .arg(socket)
                    .finish();
                run.out
            })
            .collect();
        answers.sort();
        assert_eq!(answers, ["5\n", "6\n"], "{name}");
        for socket in &sockets {
            let pid: i32 = socket
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            if pid != live.running.pid() {
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            }
        }
    }
}

#[test]
fn a_link_where_its_socket_would_be_is_not_followed() {
    let dir = kit::Dir::new();
    let target = dir.write("precious", "kept");
    std::fs::create_dir_all(dir.path().join("sockets/shop")).unwrap();
    for entry in ["sockets", "sockets/shop"] {
        std::fs::set_permissions(dir.path().join(entry), PermissionsExt::from_mode(0o700)).unwrap();
    }
    let script = format!(
        "ln -s '{}' \"$REPLSOCK_DIR/shop/$$.sock\"; exec '{PROGRAM}' env --app shop -- '{}' app.js",
        target.display(),
        node("20").display()
    );
    dir.write("app.js", APP);
    let running = Run::new("sh")
        .args(["-c", &script])
        .dir(dir.path())
        .env("REPLSOCK_DIR", dir.path().join("sockets"))
        .start();
    let found = eventually("an answer", || {
        let found = Run::new(PROGRAM)
            .args(["eval", "shop", "counter"])
            .env("REPLSOCK_DIR", dir.path().join("sockets"))
            .finish();
        (found.status == 0).then_some(found)
    });
    assert_eq!(found.out, "5\n");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
    drop(running);
}

// Edge case 12: a terminal takes lines of 4095 bytes at most, so who has none gets pipes.
#[test]
fn a_line_longer_than_a_terminals_comes_through() {
    let dir = kit::Dir::new();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut server = Run::new(PROGRAM)
        .args(["serve", "s.sock", "--", "cat"])
        .dir(dir.path())
        .start();
    server.event("server-listening");
    let line = "x".repeat(100_000);
    let input = dir.write("input", &line);
    let ours = Run::new(PROGRAM)
        .arg("./s.sock")
        .dir(dir.path())
        .stdin(std::fs::File::open(&input).unwrap())
        .finish();
    assert_eq!(
        (ours.status, ours.out.trim_end().len()),
        (0, 100_000),
        "{}",
        ours.err
    );
    let socat = Run::new("socat")
        .args(["-t30", "-", "UNIX:s.sock"])
        .dir(dir.path())
        .stdin(std::fs::File::open(&input).unwrap())
        .finish();
    assert_eq!(socat.out.trim_end().len(), 100_000, "{}", socat.err);
}

/// The numbers behind `Edge case`, up to the end of what may be a list: `1`, `15 and 16`, `1 to 3`, `6, and 22`.
fn numbers(text: &str) -> Vec<u32> {
    let text = text.trim_start_matches('s');
    let end = text
        .find(|letter: char| !letter.is_ascii_digit() && !" ,andto".contains(letter))
        .unwrap_or(text.len());
    let mut found: Vec<u32> = Vec::new();
    let mut range = false;
    for word in text[..end].split([' ', ',']) {
        match word.parse::<u32>() {
            Ok(number) if range => found.extend(found.last().unwrap() + 1..=number),
            Ok(number) => found.push(number),
            Err(_) => {}
        }
        range = word == "to";
    }
    found
}

/// The index of the fifty edge cases of the design: which test has which, printed with `--nocapture`. Each
/// has one, but for the one that would be a test of Node's: a time limit that ends code within
/// `AsyncResource.runInAsyncScope` may abort it (39), which stands in the page's BUGS.
#[test]
fn each_of_the_fifty_has_its_test() {
    assert_eq!(numbers(" 1 to 3: socat"), [1, 2, 3]);
    assert_eq!(numbers("s 6, and 22. But 7"), [6, 22]);
    let mut index: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let sources = [
        kit::root().join("tests"),
        kit::root().join("bins/replsock/src"),
    ];
    let files = sources
        .iter()
        .flat_map(|place| std::fs::read_dir(place).unwrap())
        .map(|entry| entry.unwrap().path());
    for file in files.filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if file.starts_with(&sources[0]) && !name.starts_with("replsock") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for (at, line) in text.lines().enumerate() {
            let Some((before, behind)) = line.split_once("dge case") else {
                continue;
            };
            if !before.trim_start().starts_with("//") {
                continue;
            }
            // The test that it stands in, or before.
            let is = |line: &&str| line.trim_start().starts_with("fn ");
            let lines: Vec<&str> = text.lines().collect();
            let test = if before.starts_with("//") || name == "terminal.rs" {
                lines[at..].iter().copied().find(|line| is(line))
            } else {
                lines[..at].iter().rev().copied().find(|line| is(line))
            };
            let test = test.unwrap_or("fn ?").trim_start()[3..]
                .split('(')
                .next()
                .unwrap();
            for number in numbers(behind) {
                index
                    .entry(number)
                    .or_default()
                    .push(format!("{name} {test}"));
            }
        }
    }
    let page = std::fs::read_to_string(kit::root().join("man/man1/replsock.1")).unwrap();
    assert!(page.contains("AsyncResource"));
    index
        .entry(39)
        .or_default()
        .push("replsock.1 BUGS".to_owned());
    let mut text = String::new();
    for (number, places) in &index {
        text.push_str(&format!("{number:2} {}\n", places.join(", ")));
    }
    println!("{text}");
    let missing: Vec<u32> = (1..=50)
        .filter(|number| !index.contains_key(number))
        .collect();
    assert!(missing.is_empty(), "no test for {missing:?}:\n{text}");
}
