//! The masters that are measured: how each is started, told to reload, and found again with all that it started.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]
// Each part of the bench uses some of it.
#![allow(dead_code)]

use crate::proc;
use crate::report::{self, Better, Figure};
use kit::http::{self, Connection};
use kit::{Dir, free_port};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long clients watch after a reload was asked for.
const WATCH: Duration = Duration::from_secs(9);
const PAUSE: Duration = Duration::from_millis(100);
/// How long anything is waited for; a slow machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A deploy whose command takes longer has no answer.
const DEPLOY: Duration = Duration::from_secs(20);
/// Marks all processes of a master, to find them again.
const MARK: &str = "DEPLOYS_BENCH_MARK";

pub type Outcome<T> = Result<T, String>;

/// What is run. Like is compared with like: it stands in the names of the figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum App {
    /// Node's http server, which listens by itself.
    Node,
    /// For a Python server that brings the workers along.
    Wsgi,
    /// Python's own http.server with threads, on a socket that it is given.
    Server,
    /// No app: an answer that stands in nginx's own configuration.
    Static,
    /// small.c
    Small,
}

impl App {
    pub fn name(self) -> &'static str {
        match self {
            App::Node => "node",
            App::Wsgi | App::Server => "python",
            App::Static => "static",
            App::Small => "small program",
        }
    }

    fn file(self) -> Option<&'static str> {
        match self {
            App::Node => Some("app.js"),
            App::Wsgi | App::Server => Some("app.py"),
            App::Static => Some("nginx.conf"),
            App::Small => None,
        }
    }
}

/// In the shell, for all of these: `$PORT`; `$PID`, the master's; `$count` workers; `$ready`, the seconds until a
/// worker has failed; and the paths `$spawnwork`, `$pm2`, `$recluster`, `$python`, `$gunicorn`, `$uwsgi`, `$bench`,
/// `$small`, `$supervise`.
pub struct Master {
    pub name: &'static str,
    pub app: App,
    /// Done before its start, and not a part of it.
    pub prepare: &'static str,
    pub start: &'static str,
    /// Its end is the reload's, if `tells`.
    pub reload: &'static str,
    pub tells: bool,
    /// Must succeed, or the peer is not there.
    pub needs: &'static str,
    pub how: &'static str,
    /// A worker is a fork of it, and executes nothing.
    pub forks: bool,
    /// It writes the pid of what goes on behind it into the file `pid`.
    pub daemon: bool,
    pub workers: usize,
    pub takes: &'static [&'static str],
}

impl Master {
    pub fn is_ours(&self) -> bool {
        self.name.starts_with("spawnwork")
    }
}

const BASE: Master = Master {
    name: "",
    app: App::Node,
    prepare: "",
    start: "",
    reload: "",
    tells: false,
    needs: "true",
    how: "",
    forks: false,
    daemon: false,
    workers: 2,
    takes: &[
        "start", "crash", "deploys", "master", "idle", "respawn", "requests", "reload",
    ],
};
/// For what is no other master, but another way of one.
const UNDER_LOAD: &[&str] = &["requests", "reload"];
const REQUESTS: &[&str] = &["requests"];
const RESPAWN: &[&str] = &["respawn"];
/// A directory for each service, with what it runs, as s6, runit and daemontools have it.
const SERVICES: &str =
    "for n in $(seq $count); do mkdir -p s/$n && ln -sf $small s/$n/run || exit; done";
const SUPERVISES: &[&str] = &["idle", "respawn", "many"];

pub const MASTERS: [Master; 21] = [
    Master {
        name: "spawnwork, node",
        start: "exec $spawnwork -n 2 --control c.sock --ready-timeout ${ready}s --respawn-limit 0 --orphans adopt -- node app.js",
        reload: "$spawnwork --ctl c.sock reload",
        tells: true,
        how: "--ready-timeout 3s, --orphans adopt; --ctl reload",
        ..BASE
    },
    Master {
        name: "spawnwork slots, node",
        start: "exec $spawnwork -n 2 --balance slots -- node app.js",
        takes: REQUESTS,
        ..BASE
    },
    Master {
        name: "spawnwork round-robin, node",
        start: "exec $spawnwork -n 2 --balance round-robin -- node app.js",
        takes: REQUESTS,
        ..BASE
    },
    Master {
        name: "node cluster",
        start: "exec node $bench/cluster.js app.js",
        reload: "kill -USR2 $PID",
        how: "cluster.js: USR2 starts the new ones and disconnects the old ones when all listen",
        takes: &["start", "crash", "idle", "respawn", "requests", "reload"],
        ..BASE
    },
    Master {
        name: "PM2",
        start: "export PM2_HOME=$PWD/pm2; node $pm2 start app.js -i 2 --name app --listen-timeout ${ready}000 && cp $PM2_HOME/pm2.pid pid",
        reload: "PM2_HOME=$PWD/pm2 node $pm2 reload app",
        tells: true,
        needs: "test -e $pm2",
        how: "cluster mode, --listen-timeout 3000; pm2 reload",
        daemon: true,
        ..BASE
    },
    Master {
        name: "recluster",
        prepare: "printf \"var c = require('$recluster')('app.js', {workers: 2, readyWhen: 'listening'}); c.run(); process.on('SIGUSR2', () => c.reload());\" > master.js",
        start: "exec node master.js",
        reload: "kill -USR2 $PID",
        needs: "test -d $recluster",
        how: "readyWhen 'listening'; USR2 -> reload(), which has no result",
        ..BASE
    },
    Master {
        name: "bare fork+exec in C, node",
        start: "exec $supervise 2 node app.js",
        needs: "test -x $supervise",
        takes: RESPAWN,
        ..BASE
    },
    Master {
        name: "spawnwork, python",
        app: App::Server,
        start: "exec $spawnwork -n 2 --control c.sock --ready-timeout ${ready}s --respawn-limit 0 --orphans adopt -l 127.0.0.1:$PORT -- $python app.py",
        reload: "$spawnwork --ctl c.sock reload",
        tells: true,
        how: "the same, with a socket by LISTEN_FDS and READY=1",
        ..BASE
    },
    Master {
        name: "gunicorn",
        app: App::Wsgi,
        start: "exec $gunicorn -w 2 -b 127.0.0.1:$PORT app:app",
        reload: "kill -HUP $PID",
        needs: "command -v $gunicorn",
        how: "two sync workers, no preload; HUP, which has no result",
        forks: true,
        ..BASE
    },
    Master {
        name: "gunicorn gthread",
        app: App::Wsgi,
        start: "exec $gunicorn -w 2 -k gthread --threads 16 -b 127.0.0.1:$PORT app:app",
        reload: "kill -HUP $PID",
        needs: "command -v $gunicorn",
        how: "two gthread workers of 16 threads; HUP",
        forks: true,
        takes: UNDER_LOAD,
        ..BASE
    },
    Master {
        name: "uWSGI",
        app: App::Wsgi,
        start: "touch again; exec $uwsgi --plugin python3 --http-socket 127.0.0.1:$PORT --master --processes 2 --lazy-apps --need-app --disable-logging --wsgi-file app.py --callable app --touch-chain-reload again",
        reload: "touch again",
        needs: "command -v $uwsgi",
        how: "--lazy-apps --need-app --touch-chain-reload, which has no result",
        forks: true,
        ..BASE
    },
    Master {
        name: "start_server",
        app: App::Server,
        start: "exec start_server --port 127.0.0.1:$PORT --interval 2 --signal-on-hup TERM -- $python app.py",
        reload: "kill -HUP $PID",
        needs: "command -v start_server",
        how: "--interval 2, one worker with threads; HUP, which has no result",
        workers: 1,
        ..BASE
    },
    Master {
        name: "bare fork+exec in C, python",
        app: App::Server,
        // The socket at 3, as spawnwork hands it down.
        start: "exec $python -c 'import os, socket, sys; s = socket.create_server((\"127.0.0.1\", int(sys.argv[1]))); os.dup2(s.fileno(), 3); os.set_inheritable(3, True); os.execv(sys.argv[2], sys.argv[2:])' $PORT $supervise 2 $python app.py",
        needs: "test -x $supervise",
        takes: RESPAWN,
        ..BASE
    },
    Master {
        name: "nginx",
        app: App::Static,
        start: "exec nginx -p $PWD -c nginx.conf",
        reload: "kill -HUP $PID",
        needs: "command -v nginx",
        how: "two workers, `return 200`; HUP",
        forks: true,
        takes: UNDER_LOAD,
        ..BASE
    },
    Master {
        name: "spawnwork",
        app: App::Small,
        start: "exec $spawnwork -q -n $count --start-parallel $count --respawn-limit 0 -- $small",
        takes: SUPERVISES,
        ..BASE
    },
    Master {
        name: "bare fork+exec in C",
        app: App::Small,
        start: "exec $supervise $count $small",
        needs: "test -x $supervise",
        takes: SUPERVISES,
        ..BASE
    },
    Master {
        name: "s6",
        app: App::Small,
        prepare: SERVICES,
        start: "exec s6-svscan -c 1000 s",
        needs: "command -v s6-svscan",
        takes: SUPERVISES,
        ..BASE
    },
    Master {
        name: "runit",
        app: App::Small,
        prepare: SERVICES,
        start: "exec runsvdir s",
        needs: "command -v runsvdir",
        takes: SUPERVISES,
        ..BASE
    },
    Master {
        name: "daemontools",
        app: App::Small,
        prepare: SERVICES,
        start: "exec svscan s",
        needs: "command -v svscan",
        takes: SUPERVISES,
        ..BASE
    },
    Master {
        name: "supervisord",
        app: App::Small,
        prepare: "printf '[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\nminfds=4096\npidfile=%s/pid\n[program:w]\ncommand=%s\nnumprocs=%s\nprocess_name=w%%(process_num)d\nautorestart=true\nstartsecs=0\nstdout_logfile=NONE\nstderr_logfile=NONE\n' \"$PWD\" \"$small\" \"$count\" > c",
        start: "exec supervisord -c c",
        needs: "command -v supervisord",
        takes: SUPERVISES,
        ..BASE
    },
    Master {
        name: "start_server",
        app: App::Small,
        start: "exec start_server --port 127.0.0.1:$PORT --interval 1 -- $small",
        needs: "command -v start_server",
        workers: 1,
        takes: &["idle", "respawn"],
        ..BASE
    },
];

// All of them answer `hello PID VERSION`: at once, or on /slow after 300 ms.
const NODE: &str = "EARLY\nrequire('http').createServer((q, r) => { const answer = () => r.end(`hello ${process.pid} VERSION\\n`); if (q.url === '/slow') setTimeout(answer, 300); else answer(); }).listen(Number(process.env.PORT), '127.0.0.1', () => { LATE });\n";
const WSGI: &str = "import os, threading, time\nEARLY\nLATE\ndef app(environ, start):\n    if environ['PATH_INFO'] == '/slow':\n        time.sleep(0.3)\n    body = b'hello %d VERSION\\n' % os.getpid()\n    start('200 OK', [('Content-Length', str(len(body))), ('Connection', 'close')])\n    return [body]\n";
const SERVER: &str = r#"import http.server, os, signal, socket, threading, time
EARLY
leaving = False

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(0.3)
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

given = os.environ.get("SERVER_STARTER_PORT", "=3").rpartition("=")[2]
server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.daemon_threads = False
server.socket.close()
server.socket = socket.socket(fileno=int(given))
server.socket.setblocking(False)

def leave(*_):
    global leaving
    leaving = True
    threading.Thread(target=server.shutdown).start()

signal.signal(signal.SIGTERM, leave)
if "NOTIFY_SOCKET" in os.environ:
    name = os.environ["NOTIFY_SOCKET"]
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", "\0" + name[1:])
LATE
server.serve_forever(0.05)
server.server_close()
"#;

/// Slow by its size: nginx sends what `limit_rate` allows for a second at once, and the rest of it a second later.
const STATIC: &str = r#"daemon off;
worker_processes 2;
pid nginx.pid;
error_log stderr error;
events {
    worker_connections 1024;
}
http {
    access_log off;
    client_body_temp_path temp1;
    proxy_temp_path temp2;
    fastcgi_temp_path temp3;
    uwsgi_temp_path temp4;
    scgi_temp_path temp5;
    server {
        listen 127.0.0.1:PORT;
        location / {
            return 200 "hello $pid VERSION\n";
        }
        location /slow {
            limit_rate 1000;
            return 200 "hello $pid VERSION FILLED\n";
        }
    }
}
"#;

pub fn text(app: App, version: &str, how: &str) -> String {
    let (source, early, late) = match (app, how) {
        (App::Node, "crash") => (NODE, "throw new Error('no');", ""),
        (App::Node, "hang") => (NODE, "for (;;);", ""),
        (App::Node, "late") => (NODE, "", "setTimeout(() => process.exit(1), 1500);"),
        (App::Node, _) => (NODE, "", ""),
        (App::Wsgi, "crash") => (WSGI, "raise Exception('no')", ""),
        (App::Server, "crash") => (SERVER, "raise Exception('no')", ""),
        (App::Wsgi, "hang") => (WSGI, "time.sleep(600)", ""),
        // It speaks for itself, so it is not taken to be up because it lives.
        (App::Server, "hang") => (
            SERVER,
            "if 'NOTIFY_SOCKET' in os.environ:\n    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'STATUS=loading', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\ntime.sleep(600)",
            "",
        ),
        (App::Wsgi, "late") => (
            WSGI,
            "",
            "threading.Timer(1.5, lambda: os._exit(1)).start()",
        ),
        (App::Server, "late") => (
            SERVER,
            "",
            "threading.Timer(1.5, lambda: os._exit(1)).start()",
        ),
        (App::Wsgi, _) => (WSGI, "", ""),
        (App::Server, _) => (SERVER, "", ""),
        (App::Static, _) => (STATIC, "", ""),
        (App::Small, _) => ("", "", ""),
    };
    let source = source.replace("EARLY", early).replace("LATE", late);
    source
        .replace("FILLED", &"x".repeat(1300))
        .replace("VERSION", version)
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub requests: u64,
    pub failed: u64,
    /// Those of all that were made over a connection which is kept, if the server keeps it.
    pub over_kept: u64,
    pub failed_over_kept: u64,
    pub versions: BTreeMap<String, u64>,
}

pub fn ask(port: u16, kept: &mut Option<Connection>, keep: bool) -> Option<String> {
    let address = format!("127.0.0.1:{port}");
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => http::connect(&address, Duration::from_secs(2)).ok()?,
    };
    let reply = http::exchange(&mut connection, "/", keep).ok()?;
    if keep && reply.keeps {
        *kept = Some(connection);
    }
    let version = reply.body.split_whitespace().nth(2).map(str::to_owned);
    version.filter(|_| reply.status == 200)
}

/// The pid of a worker that answers.
pub fn whoever(port: u16) -> Option<i32> {
    let address = format!("127.0.0.1:{port}");
    let mut connection = http::connect(&address, Duration::from_secs(2)).ok()?;
    let reply = http::exchange(&mut connection, "/", false).ok()?;
    reply.body.split_whitespace().nth(1)?.parse().ok()
}

pub fn watch(port: u16, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut kept = None;
    while !over.load(Ordering::Relaxed) {
        for keep in [false, true] {
            let mut none = None;
            let slot = if keep { &mut kept } else { &mut none };
            let over_kept = u64::from(slot.is_some());
            seen.requests += 1;
            seen.over_kept += over_kept;
            match ask(port, slot, keep) {
                Some(version) => *seen.versions.entry(version).or_default() += 1,
                None => {
                    seen.failed += 1;
                    seen.failed_over_kept += over_kept;
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
    seen
}

/// What the shell knows besides: see [`Master`].
fn paths() -> &'static [(&'static str, PathBuf)] {
    static PATHS: OnceLock<Vec<(&str, PathBuf)>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let root = kit::root().canonicalize().unwrap();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        let spawnwork = root.join(target).join("release/spawnwork");
        assert!(
            spawnwork.exists(),
            "{} is missing: run 'make'",
            spawnwork.display()
        );
        // A relative one is meant from where cargo was run.
        let cache = root.join(kit::cache());
        let modules = cache.join("frameworks/node_modules");
        // The first that is there, or the name for what needs it to fail with.
        let first = |list: &[PathBuf]| {
            let there = list.iter().find(|path| path.exists());
            there.or(list.last()).unwrap().clone()
        };
        let built = build(&root);
        vec![
            ("spawnwork", spawnwork),
            ("pm2", modules.join("pm2/bin/pm2")),
            ("recluster", modules.join("recluster")),
            // Not a wrapper like pyenv's, which would be started each time.
            (
                "python",
                first(&["/usr/bin/python3".into(), "python3".into()]),
            ),
            (
                "gunicorn",
                first(&[cache.join("python/bin/gunicorn"), "gunicorn".into()]),
            ),
            (
                "uwsgi",
                first(&["/usr/bin/uwsgi".into(), "uwsgi-core".into()]),
            ),
            ("bench", root.join("tests/bench")),
            ("small", built.join("small")),
            ("supervise", built.join("supervise")),
        ]
    })
}

/// small.c and supervise.c, where they stay. Without a compiler what needs them is absent.
fn build(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let place = root.join(target).join("bench/built");
    fs::create_dir_all(&place).unwrap();
    for name in ["small", "supervise"] {
        let source = root.join(format!("tests/bench/{name}.c"));
        let new = place.join(format!("{name}.{}", std::process::id()));
        let made = ["-static", "-O2"].iter().any(|how| {
            let mut cc = Command::new("cc");
            cc.args([how, "-O2", "-o"]).arg(&new).arg(&source);
            cc.stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        });
        if made {
            fs::rename(&new, place.join(name)).unwrap();
        }
    }
    place
}

/// What Debian did not bring, with its version: of npm, and of PyPI.
fn versions() -> &'static [(&'static str, String)] {
    static VERSIONS: OnceLock<Vec<(&str, String)>> = OnceLock::new();
    VERSIONS.get_or_init(|| {
        let of_npm = "node -p \"require(process.argv[1]).version\"";
        let asked = [
            ("PM2", format!("{of_npm} ${{pm2%/bin/pm2}}/package.json")),
            ("recluster", format!("{of_npm} $recluster/package.json")),
            ("gunicorn", "$gunicorn --version | tr -dc 0-9.".to_owned()),
        ];
        let mut list = Vec::new();
        for (name, line) in asked {
            let output = shell(&line, Path::new("/")).stdout(Stdio::piped()).output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            list.extend(text.ok().map(|text| (name, text.trim().to_owned())));
        }
        list.retain(|(_, version)| !version.is_empty());
        list
    })
}

/// Those of a scenario that are installed; the others are named.
pub fn of(scenario: &str) -> Vec<&'static Master> {
    let all = MASTERS.iter().filter(|one| one.takes.contains(&scenario));
    let (there, missing): (Vec<_>, Vec<_>) = all.partition(|master| {
        let mut shell = shell(master.needs, Path::new("/"));
        shell.status().is_ok_and(|status| status.success())
    });
    for master in missing {
        println!("{scenario}: {}: not installed", master.name);
        report::absent(
            scenario,
            master.name,
            "not installed (tests/setup.sh bench)",
        );
    }
    there
}

/// Without what would make one of them behave in another way than the others.
fn shell(line: &str, directory: &Path) -> Command {
    let mut command = Command::new("sh");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let prefixes = ["SPAWNWORK_", "LISTEN_", "NODE_", "PM2_", "NOTIFY_SOCKET"];
        if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .args(["-c", line])
        .current_dir(directory)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PM2_DISABLE_VERSION_CHECK", "true")
        .envs(paths().iter().map(|(name, path)| (name, path)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}

pub struct Running<'a> {
    pub master: &'a Master,
    pub dir: Dir,
    pub port: u16,
    pub mark: String,
    pub child: Option<Child>,
    pub pid: i32,
    /// From its start to its first answer, or until all its workers run.
    pub answered: Duration,
    /// Workers, where that can be chosen.
    count: usize,
    /// The seconds after which a worker has failed that is not ready.
    ready: u32,
}

/// The processes whose mark begins with `mark`.
pub fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|pair| pair.starts_with(wanted.as_bytes()))
        })
        .collect()
}

fn own_mark() -> String {
    format!("{}-", std::process::id())
}

/// Runs a bench in a child, and when that ends, by itself or by a signal, ends all that it started: each master is in a
/// process group of its own, and PM2's is nobody's child. Not by a thread of the bench, which would need SIGTERM
/// blocked: the masters would inherit that, and their workers would not end when told to.
pub fn guarded(run: impl FnOnce() -> ExitCode) -> ExitCode {
    const GUARDED: &str = "BENCH_GUARDED";
    if std::env::var_os(GUARDED).is_some() {
        return run();
    }
    let own = std::env::current_exe().unwrap();
    let mut bench = Command::new(own)
        .args(std::env::args_os().skip(1))
        .env(GUARDED, "1")
        .spawn()
        .unwrap();
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD];
    let signals: SigSet = signals.into_iter().collect();
    signals.thread_block().expect("the signal mask");
    let status = loop {
        if let Some(status) = bench.try_wait().unwrap() {
            break status;
        }
        if signals.wait().expect("sigwait") != Signal::SIGCHLD {
            let _ = bench.kill();
        }
    };
    for _ in 0..20 {
        for pid in marked(&format!("{}-", bench.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let left = format!("nirvana-test-{}-", bench.id());
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten();
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&left) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl<'a> Running<'a> {
    fn new(master: &'a Master) -> Running<'a> {
        let (dir, port) = (Dir::new(), free_port());
        let running = Running {
            master,
            dir,
            port,
            mark: format!("{}{port}-", own_mark()),
            child: None,
            pid: 0,
            answered: Duration::ZERO,
            count: master.workers,
            ready: PATIENCE.as_secs() as u32,
        };
        running.deploy("v1", "good");
        running
    }

    /// It answers, and so do all its workers.
    pub fn start(master: &'a Master) -> Outcome<Running<'a>> {
        let mut running = Running::new(master);
        running.launch()?;
        running.settle()?;
        Ok(running)
    }

    /// It answers.
    pub fn start_only(master: &'a Master) -> Outcome<Running<'a>> {
        let mut running = Running::new(master);
        running.launch()?;
        Ok(running)
    }

    /// `count` workers run.
    pub fn start_many(master: &'a Master, count: usize) -> Outcome<Running<'a>> {
        let mut running = Running::new(master);
        running.count = count;
        running.launch()?;
        Ok(running)
    }

    /// With a short patience for workers that do not come up. The first ones may need more on a busy machine: once more,
    /// then.
    pub fn start_for_deploys(master: &'a Master) -> Outcome<Running<'a>> {
        let mut tries = 0;
        loop {
            let mut running = Running::new(master);
            running.ready = 3;
            tries += 1;
            match running.launch().and_then(|()| running.settle()) {
                Ok(()) => return Ok(running),
                Err(why) if tries == 3 => return Err(why),
                Err(_) => {}
            }
        }
    }

    pub fn deploy(&self, version: &str, how: &str) {
        let Some(file) = self.master.app.file() else {
            return;
        };
        // Python takes a source of the same second and length for the one it has compiled.
        let _ = fs::remove_dir_all(self.dir.path().join("__pycache__"));
        let text = text(self.master.app, version, how);
        self.dir
            .write(file, &text.replace("PORT;", &format!("{};", self.port)));
    }

    fn shell(&self, line: &str) -> Command {
        let output = self.dir.path().join("output");
        let output = File::options().create(true).append(true).open(output);
        let output = output.unwrap();
        let mut shell = shell(line, self.dir.path());
        shell
            .env("PORT", self.port.to_string())
            .env("PID", self.pid.to_string())
            .env("count", self.count.to_string())
            .env("ready", self.ready.to_string())
            .env("says", self.says())
            .env(MARK, &self.mark)
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        shell
    }

    /// The FIFO where a small program says that it runs.
    pub fn says(&self) -> PathBuf {
        self.dir.path().join("says")
    }

    /// `why`, with the last line that was written.
    fn because(&self, why: &str) -> String {
        let text = fs::read(self.dir.path().join("output")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("{why}; its last line: {}", line.trim()),
            None => why.to_owned(),
        }
    }

    /// Its end, if that is a failure.
    fn has_failed(&mut self) -> bool {
        let end = self.child.as_mut().map(Child::try_wait);
        matches!(end, Some(Ok(Some(status))) if !(status.success() && self.master.daemon))
    }

    fn is_up(&self) -> bool {
        if self.master.app == App::Small {
            return self.workers().len() == self.count;
        }
        // Python's workers under the floor are on no port of their own, but on the same socket.
        ask(self.port, &mut None, false).is_some()
    }

    /// Starts the master, until it answers.
    pub fn launch(&mut self) -> Outcome<()> {
        if !self
            .shell(self.master.prepare)
            .status()
            .is_ok_and(|end| end.success())
        {
            return Err(self.because("its configuration could not be made"));
        }
        let _ = fs::remove_file(self.dir.path().join("pid"));
        let child = self.shell(self.master.start).spawn();
        let child = child.map_err(|why| format!("could not start: {why}"))?;
        self.pid = child.id() as i32;
        self.child = Some(child);
        let began = Instant::now();
        // An orphan of the one before may answer, and this one be at its end already.
        while !self.has_failed() {
            if self.is_up() {
                self.answered = began.elapsed();
                return self.behind();
            }
            if began.elapsed() > PATIENCE {
                return Err(self.because(&format!("not up within {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(self.because("it ended at its start"))
    }

    /// The pid of the daemon, where there is one.
    fn behind(&mut self) -> Outcome<()> {
        let began = Instant::now();
        while self.master.daemon {
            let text = fs::read_to_string(self.dir.path().join("pid")).unwrap_or_default();
            if let Ok(pid) = text.trim().parse() {
                self.pid = pid;
                break;
            }
            if self.has_failed() || began.elapsed() > PATIENCE {
                return Err(self.because("its daemon wrote no pid"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// All workers, not only the first.
    pub fn settle(&mut self) -> Outcome<()> {
        let began = Instant::now();
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if self.has_failed() {
                return Err(self.because("it ended soon after its start"));
            }
            let workers = self.workers().len();
            if workers == self.count {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(self.because(&format!("{workers} workers instead of {}", self.count)));
            }
        }
    }

    /// The workers that have made it to their exec, oldest first, also those that were told to leave.
    pub fn workers(&self) -> Vec<i32> {
        if self.master.app == App::Small {
            let small = paths().iter().find(|(name, _)| *name == "small");
            let small = small.map(|(_, path)| path.clone());
            let mut list = proc::below(self.pid);
            list.retain(|pid| proc::program(*pid) == small);
            return list;
        }
        let own = proc::cmdline(self.pid);
        let mut list = proc::children(self.pid);
        list.retain(|child| {
            let line = proc::cmdline(*child);
            proc::runs(*child) && !line.is_empty() && (self.master.forks || line != own)
        });
        list
    }

    /// Everything that supervises: the master, and what stands between it and the workers.
    pub fn supervisors(&self) -> Vec<i32> {
        let workers = self.workers();
        let mut list = vec![self.pid];
        let mut next = 0;
        while let Some(pid) = list.get(next) {
            let mut children = proc::children(*pid);
            children.retain(|child| !workers.contains(child));
            list.extend(children);
            next += 1;
        }
        list
    }

    /// The status of the reload command, if it ends in time.
    pub fn reload(&self, patience: Duration) -> Option<i32> {
        let mut child = self.shell(self.master.reload).spawn().ok()?;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Ok(Some(status)) = child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// The reload command, which must succeed.
    pub fn reloaded(&self) -> Outcome<()> {
        match self.reload(PATIENCE) {
            Some(0) => Ok(()),
            Some(status) => Err(self.because(&format!("a reload ended with {status}"))),
            None => Err(self.because(&format!("a reload took more than {PATIENCE:?}"))),
        }
    }

    pub fn watched_reload(&self) -> (Seen, Option<i32>) {
        let over = Arc::new(AtomicBool::new(false));
        let (port, there) = (self.port, Arc::clone(&over));
        let clients = std::thread::spawn(move || watch(port, &there));
        let begun = Instant::now();
        let status = self.reload(DEPLOY);
        std::thread::sleep(WATCH.saturating_sub(begun.elapsed()));
        over.store(true, Ordering::Relaxed);
        (clients.join().unwrap(), status)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        for _ in 0..20 {
            let mut left = marked(&self.mark);
            if let Some(child) = self.child.as_mut() {
                // nginx writes its title over its environment.
                if matches!(child.try_wait(), Ok(None)) {
                    left.extend(proc::below(self.pid));
                }
            }
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

// ---- what is said of them ----

/// To standard error, where it does not mix with the figures.
pub fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {text}");
}

/// Runs a scenario if it is wanted. A failure of ours ends it, not the others: see [`outcome`].
pub fn scenario(name: &str, run: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    if !report::wanted(name) {
        return true;
    }
    let began = Instant::now();
    let done = std::panic::catch_unwind(run).is_ok();
    progress(&format!("{name}: {} s", began.elapsed().as_secs()));
    if !done {
        println!("{name}: FAILED, see above");
    }
    done
}

/// A peer that fails is left out, with its reason. Ours does not fail.
pub fn outcome<T>(scenario: &str, master: &Master, outcome: Outcome<T>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(why) => {
            assert!(!master.is_ours(), "{scenario}: {}: {why}", master.name);
            note(scenario, master.name, &why);
            None
        }
    }
}

/// A remark below the table, once.
pub fn note(scenario: &str, subject: &str, text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = format!("{scenario}: {subject}: {text}");
    if SAID.lock().unwrap().insert(line.clone()) {
        println!("{line}");
        report::absent(scenario, subject, text);
    }
}

fn say(scenario: &str, name: &str, unit: &str, better: Better, subject: &str, values: &[f64]) {
    if values.is_empty() {
        return;
    }
    let figure = Figure {
        scenario,
        name,
        unit,
        better,
    };
    report::figure(figure, subject, values);
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, middle, high) = (
        sorted[0],
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1],
    );
    println!(
        "{scenario}: {name:44} {subject:28} {low:.2} {middle:.2} {high:.2} {unit} ({} rounds)",
        values.len()
    );
}

/// A figure of which less is better: handed over and printed, lowest, median and highest.
pub fn less(scenario: &str, name: &str, unit: &str, subject: &str, values: &[f64]) {
    say(scenario, name, unit, Better::Less, subject, values);
}

/// One of which more is better.
pub fn more(scenario: &str, name: &str, unit: &str, subject: &str, values: &[f64]) {
    say(scenario, name, unit, Better::More, subject, values);
}
