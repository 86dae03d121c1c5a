//! Deploys, good and bad, by way of the control socket: what clients saw, and what the result said.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::get;
use kit::load::{Load, Options};
use kit::{Dir, Finished, Run, Running, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

const NODE: &str = "require('http').createServer((q, r) => r.end(`hello ${process.pid} VERSION\\n`)).listen(Number(process.env.PORT), '127.0.0.1');\n";

/// Keeps connections, and leaves as a good server does: what it has is answered, with the word that the
/// connection ends.
const PYTHON: &str = r#"
import http.server, os, signal, socket, sys, threading, time

lock = threading.Lock()
connections = 0
leaving = False

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"hello %d VERSION\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if leaving:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    def get_request(self):
        global connections
        with lock:
            accepted = self.socket.accept()
            connections += 1
        return accepted
    def shutdown_request(self, request):
        global connections
        super().shutdown_request(request)
        with lock:
            connections -= 1

server = Server(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
server.socket.setblocking(False)

def leave(*_):
    global leaving
    leaving = True
    threading.Thread(target=server.shutdown).start()

signal.signal(signal.SIGTERM, leave)
LATE
name = os.environ["NOTIFY_SOCKET"]
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", "\0" + name[1:])
server.serve_forever(0.05)
server.server_close()
"#;

/// Dies while it has no connection: those that it has when it dies nobody could save.
const PYTHON_LATE: &str = r#"
def die():
    time.sleep(0.25)
    while True:
        with lock:
            if connections == 0:
                print("dead, late", flush=True, file=sys.stderr)
                os._exit(1)
        time.sleep(0.001)

threading.Thread(target=die, daemon=True).start()
"#;

struct Service {
    dir: Dir,
    master: Running,
    port: u16,
    file: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Node,
    Python,
}

impl Language {
    fn good(self, version: &str) -> String {
        let text = match self {
            Language::Node => NODE.to_owned(),
            Language::Python => PYTHON.replace("LATE", ""),
        };
        text.replace("VERSION", version)
    }

    fn bad(self, how: &str) -> String {
        match (self, how) {
            (Language::Node, "crash") => "throw new Error('at load');\n".to_owned(),
            (Language::Node, "hang") => "setInterval(() => {}, 1000);\n".to_owned(),
            (Language::Node, _) => {
                self.good("late") + "setTimeout(() => { console.error('dead, late'); process.exit(1); }, 250);\n"
            }
            (Language::Python, "crash") => "raise Exception('at load')\n".to_owned(),
            (Language::Python, "hang") => {
                "import os, socket, time\nname = os.environ['NOTIFY_SOCKET']\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.sendto(b'STATUS=loading', '\\0' + name[1:])\ntime.sleep(600)\n".to_owned()
            }
            (Language::Python, _) => PYTHON.replace("LATE", PYTHON_LATE).replace("VERSION", "late"),
        }
    }
}

impl Service {
    fn new(language: Language, options: &[&str]) -> Service {
        let (dir, port) = (Dir::new(), free_port());
        let (file, program) = match language {
            Language::Node => ("app.js", "node"),
            Language::Python => ("app.py", "python3"),
        };
        dir.write(file, &language.good("one"));
        let mut run = Run::new(SPAWNWORK).args(["--control", "c.sock"]);
        if language == Language::Python {
            run = run.args(["-l", &format!("127.0.0.1:{port}")]);
        }
        let mut master = run
            .args(options)
            .args(["--", program, file])
            .env("PORT", port.to_string())
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        Service {
            dir,
            master,
            port,
            file,
        }
    }

    fn deploy(&self, text: &str) {
        self.dir.write(self.file, text);
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        Run::new(SPAWNWORK)
            .arg("--ctl")
            .args([self.dir.path().join("c.sock")])
            .args(words)
            .finish()
    }

    fn version(&self) -> String {
        let body = get(format!("127.0.0.1:{}", self.port), "/").unwrap().body;
        body.split_whitespace().nth(2).unwrap().to_owned()
    }

    /// An old worker may take one more connection until it has read that it is to go.
    fn comes_to(&self, version: &str, what: &str) {
        eventually(&format!("{version}: {what}"), || {
            (self.version() == version).then_some(())
        });
    }
}

/// Twenty bad deploys of a kind, each followed by the fix, under a watch of ten requests a second over
/// new connections, and as many over one that is kept.
fn twenty(language: Language, how: &str) {
    let mut options = vec!["-n", "2", "--ready-timeout", "5s", "--probation", "500ms"];
    if language == Language::Python {
        // Told, not found: on a busy machine it may take a second to say its first word.
        options.extend(["--ready", "notify"]);
    }
    let service = Service::new(language, &options);
    let probes = Options {
        address: format!("127.0.0.1:{}", service.port),
        keep_alive: 1,
        fresh: 1,
        paths: vec!["/"],
        expect: "hello ",
        timeout: Duration::from_secs(30),
    };
    let load = Load::paced(&probes, Duration::from_millis(100));
    for round in 0..20 {
        let what = format!("{language:?}, {how}, round {round}");
        service.deploy(&language.bad(how));
        // 1, and not 124: what --ready-timeout ends.
        let bad = service.ctl(&["reload", "--timeout", "30s"]);
        assert_eq!(bad.status, 1, "{what}: {}", bad.err);
        load.answer(2);
        service.deploy(&language.good(&format!("v{round}")));
        let fix = service.ctl(&["reload"]);
        assert_eq!(fix.status, 0, "{what}, the fix: {}", fix.err);
        service.comes_to(&format!("v{round}"), &what);
    }
    let tally = load.stop();
    assert_eq!(
        tally.failures(),
        0,
        "{language:?}, {how}: {:?}",
        tally.failed
    );
    assert!(tally.requests > 100, "{}", tally.requests);
    let mut service = service;
    assert_eq!(service.master.stop(), 0);
}

// Edge case 1.
// Edge case 2.
// Edge case 3.
#[test]
fn bad_deploys_cost_nothing_and_neither_does_the_fix() {
    // They wait more than they work, so all at once.
    let cells: Vec<_> = [Language::Node, Language::Python]
        .into_iter()
        .flat_map(|language| ["crash", "hang", "late"].map(|how| (language, how)))
        .map(|(language, how)| std::thread::spawn(move || twenty(language, how)))
        .collect();
    let failed: Vec<_> = cells
        .into_iter()
        .filter_map(|cell| cell.join().err())
        .collect();
    assert!(
        failed.is_empty(),
        "{} of 6 cells failed, see above",
        failed.len()
    );
}

#[test]
fn a_generation_that_dies_after_it_took_over_is_taken_back() {
    let mut service = Service::new(Language::Node, &["-n", "4", "--probation", "2s"]);
    let doomed = "setInterval(() => { if (require('fs').existsSync('die')) { console.error('after all'); process.exit(9); } }, 20);\n";
    service.deploy(&(NODE.replace("VERSION", "two") + doomed));
    let reload = service.ctl(&["reload"]);
    assert_eq!(reload.status, 0, "{}", reload.err);
    service.comes_to("two", "the new release");
    // A generation's directory is what it keeps; in this one the old code must be there again.
    service.deploy(&NODE.replace("VERSION", "one"));
    service.dir.write("die", "");
    let line = service.master.event("reload-rolled-back");
    assert_eq!(field(&line, "generation"), "2");
    assert!(
        line.contains("after all") && line.contains("generation 1 comes back"),
        "{line}"
    );
    eventually("the old generation serves", || {
        let status = service.ctl(&["status"]);
        (status.out.contains("4 of 4 workers serve") && status.out.contains("generation 1,"))
            .then_some(())
    });
    let status = service.ctl(&["status"]);
    assert_eq!(status.status, 1);
    assert!(
        status.out.contains("FROZEN: generation 2 failed"),
        "{}",
        status.out
    );
    for _ in 0..8 {
        assert_eq!(service.version(), "one");
    }
    assert_eq!(service.ctl(&["reload"]).status, 0);
    assert_eq!(service.ctl(&["status"]).status, 0);
    assert_eq!(service.master.stop(), 0);
}

/// Releases in directories of their own, and a link.
fn releases(dir: &Dir, list: &[(&str, &str)]) {
    for (name, text) in list {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("app.js"), text).unwrap();
    }
}

fn switch(dir: &Dir, to: &str) {
    let (new, link) = (dir.path().join("new"), dir.path().join("current"));
    std::os::unix::fs::symlink(to, &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

// Edge case 37.
#[test]
fn the_check_sees_the_new_release_and_a_worker_that_dies_after_it_failed_runs_the_old_one() {
    let (dir, port) = (Dir::new(), free_port());
    let (one, two) = (
        NODE.replace("VERSION", "one"),
        NODE.replace("VERSION", "two"),
    );
    releases(
        &dir,
        &[
            ("1", &one),
            ("2", "throw new Error('two is broken')"),
            ("3", "no JavaScript"),
            ("4", &two),
        ],
    );
    switch(&dir, "1");
    dir.write("settings", "FLAVOUR=first\n");
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "2", "-C", "current", "--env-file", "settings", "--control", "c.sock", "--probation", "50ms"])
        .args(["--check", "echo looking at $(basename $PWD) of $FLAVOUR generation $SPAWNWORK_GENERATION; node --check app.js"])
        .args(["--", "node", "app.js"])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let mut service = Service {
        dir,
        master,
        port,
        file: "app.js",
    };

    switch(&service.dir, "2");
    dir_write(&service, "FLAVOUR=second\n");
    let bad = service.ctl(&["reload"]);
    assert_eq!(bad.status, 1, "{}", bad.err);
    assert!(bad.err.contains("two is broken"), "{}", bad.err);
    let said = service.master.err().join("\n");
    assert!(
        said.contains("looking at 2 of second generation 2"),
        "{said}"
    );

    // `current` points to 2, and so it stays; the dead worker comes back as release 1.
    // Not every child: one of the release that failed may still be on its way out.
    let lines = service.master.err();
    let ready = lines.iter().filter(|line| line.contains(": worker-ready "));
    let victims: Vec<i32> = ready
        .filter(|line| field(line, "generation") == "1")
        .map(|line| field(line, "pid").parse().unwrap())
        .collect();
    assert_eq!(victims.len(), 2);
    for pid in &victims {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        let ready = service.master.event("worker-ready");
        let pid = field(&ready, "pid");
        let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert!(directory.ends_with("1"), "{}", directory.display());
    }
    assert_eq!(service.version(), "one");

    switch(&service.dir, "3");
    let refused = service.ctl(&["reload"]);
    assert_eq!(refused.status, 4, "{}", refused.err);
    assert!(refused.err.contains("SyntaxError"), "{}", refused.err);
    std::fs::remove_file(service.dir.path().join("current")).unwrap();
    std::os::unix::fs::symlink("nowhere", service.dir.path().join("current")).unwrap();
    let dangling = service.ctl(&["reload"]);
    assert_eq!(dangling.status, 4, "{}", dangling.err);
    assert!(dangling.err.contains("current"), "{}", dangling.err);
    switch(&service.dir, "4");
    assert_eq!(service.ctl(&["reload"]).status, 0);
    service.comes_to("two", "the new release");
    assert_eq!(service.master.stop(), 0);
}

fn dir_write(service: &Service, settings: &str) {
    service.dir.write("settings", settings);
}

#[test]
fn a_check_that_hangs_is_ended_and_so_is_what_it_started() {
    let service = Service::new(
        Language::Node,
        &[
            "-n",
            "1",
            "--ready-timeout",
            "4s",
            "--check",
            "sleep 611 & echo $! > hangs; echo waiting; wait",
        ],
    );
    let refused = service.ctl(&["reload"]);
    assert_eq!(refused.status, 4, "{}", refused.err);
    assert!(
        refused.err.contains("not done within 4s"),
        "{}",
        refused.err
    );
    assert!(refused.err.contains("| waiting"), "{}", refused.err);
    let pid = std::fs::read_to_string(service.dir.path().join("hangs")).unwrap();
    eventually("its child is gone", || {
        (!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists()).then_some(())
    });
    assert_eq!(service.version(), "one");
}

#[test]
fn a_stop_during_a_check() {
    let mut service = Service::new(
        Language::Node,
        &["-n", "1", "--check", "echo checking; sleep 622"],
    );
    let mut reload = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([service.dir.path().join("c.sock")])
        .args(["reload"])
        .start();
    eventually("the check runs", || {
        service
            .ctl(&["status", "json"])
            .out
            .contains("\"step\":\"check\"")
            .then_some(())
    });
    assert_eq!(service.master.stop(), 0);
    assert_eq!(reload.end(), 4, "{:?}", reload.err());
    let left = Run::new("pgrep").args(["-f", "sleep 622"]).finish();
    assert_eq!(left.status, 1, "{}", left.out);
}

#[test]
fn a_probe_is_answered_before_any_client_is() {
    let options = [
        "-n",
        "2",
        "--balance",
        "round-robin",
        "--probe",
        "/health?deep=1",
        "--probation",
        "200ms",
        "--ready-timeout",
        "5s",
    ];
    let service = Service::new(Language::Node, &options);
    let app = |health: &str| {
        format!(
            "let first; require('http').createServer((q, r) => {{ first ||= q.url; if (q.url.startsWith('/health')) {{ {health} }} else r.end(`hello ${{process.pid}} ${{first}}\\n`); }}).listen(Number(process.env.PORT), '127.0.0.1');"
        )
    };
    for (health, why) in [
        ("r.statusCode = 503; r.end();", "answered 503"),
        ("q.socket.destroy();", "closed without an answer"),
        ("", "no answer within 5s"),
        ("q.socket.end('SSH-2.0-hello\\r\\n');", "no HTTP"),
        ("console.error('unwell'); process.exit(3);", "unwell"),
    ] {
        service.deploy(&app(health));
        let bad = service.ctl(&["reload"]);
        assert_eq!(bad.status, 1, "{why}: {}", bad.err);
        assert!(bad.err.contains(why), "{why}: {}", bad.err);
        assert_eq!(service.version(), "one");
    }
    let load = Load::paced(
        &Options {
            address: format!("127.0.0.1:{}", service.port),
            keep_alive: 2,
            fresh: 4,
            paths: vec!["/"],
            expect: "hello ",
            timeout: Duration::from_secs(30),
        },
        Duration::from_millis(5),
    );
    load.answer(10);
    service.deploy(&app("r.end('fine');"));
    let good = service.ctl(&["reload"]);
    assert_eq!(good.status, 0, "{}", good.err);
    load.answer(10);
    assert_eq!(load.stop().failures(), 0);
    // The canary's first request was the probe; the other worker's was a client's.
    let all = BTreeSet::from(["/".to_owned(), "/health?deep=1".to_owned()]);
    eventually("the first requests of both", || {
        let seen: BTreeSet<String> = (0..8).map(|_| service.version()).collect();
        (seen == all).then_some(())
    });
}

// Edge case 15.
#[test]
fn two_signals_within_ten_milliseconds_make_one_effective_reload() {
    for workers in ["1", "2", "4"] {
        let mut service = Service::new(Language::Node, &["-n", workers, "--probation", "300ms"]);
        let most = 2 * workers.parse::<usize>().unwrap();
        for round in 0..5 {
            service.master.signal(Signal::SIGUSR2);
            let second = Instant::now() + Duration::from_millis(2 * round);
            while Instant::now() < second {
                std::hint::spin_loop();
            }
            service.master.signal(Signal::SIGUSR2);
            let mut highest = 0;
            eventually("the reload ends", || {
                let count = kit::run::children_of(service.master.pid()).len();
                highest = highest.max(count);
                let status = service.ctl(&["status", "json"]).out;
                (status.contains("\"reload\":null") && status.contains("\"leaving\":[]"))
                    .then_some(())
            });
            assert!(highest <= most, "{highest} processes for {workers} workers");
        }
        assert_eq!(service.master.stop(), 0);
    }
}

// Edge case 53.
#[test]
fn more_than_three_generations_that_drain_are_too_many() {
    let dir = Dir::new();
    // It never leaves by itself.
    dir.write("app.js", "process.on('SIGTERM', () => {}); setInterval(() => {}, 1000); require('net').createServer(() => {}).listen(Number(process.env.PORT), '127.0.0.1');");
    let port = free_port();
    let mut master = Run::new(SPAWNWORK)
        .args([
            "-n",
            "1",
            "--control",
            "c.sock",
            "--probation",
            "10ms",
            "--stop-timeout",
            "600s",
            "--stop-signal",
            "TERM",
        ])
        .args(["--", "node", "app.js"])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let first = field(
        &master
            .err()
            .iter()
            .find(|line| line.contains("worker-ready"))
            .unwrap()
            .clone(),
        "pid",
    );
    let mut service = Service {
        dir,
        master,
        port,
        file: "app.js",
    };
    for _ in 0..3 {
        assert_eq!(service.ctl(&["reload"]).status, 0);
    }
    assert!(!service.master.err().join("\n").contains("worker-killed"));
    assert_eq!(service.ctl(&["reload"]).status, 0);
    let killed = service.master.event("worker-killed");
    assert_eq!(field(&killed, "pid"), first, "{killed}");
    service.master.signal(Signal::SIGQUIT);
    assert_eq!(service.master.end(), 0);
}

// Edge case 53.
#[test]
fn a_reload_while_a_slot_is_in_its_backoff() {
    let mut service = Service::new(
        Language::Node,
        &["-n", "2", "--backoff", "60s..60s", "--probation", "100ms"],
    );
    service.deploy("process.exit(4)");
    let ready = kit::run::children_of(service.master.pid());
    kill(Pid::from_raw(ready[0]), Signal::SIGKILL).unwrap();
    // Up for a second or not: in the end it waits.
    service.master.event("worker-backoff");
    service.deploy(&NODE.replace("VERSION", "two"));
    assert_eq!(service.ctl(&["reload"]).status, 0);
    assert_eq!(service.ctl(&["status"]).status, 0);
    service.comes_to("two", "the new release");
    assert_eq!(service.master.stop(), 0);
}
