//! The masters that are measured: how each is started, told to reload, and found again with all that it started.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]
// Each part of the bench uses some of it.
#![allow(dead_code)]

use kit::http::{self, Connection};
use kit::{Dir, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long clients watch after a reload was asked for.
const WATCH: Duration = Duration::from_secs(9);
const PAUSE: Duration = Duration::from_millis(100);
/// A reload command that takes longer has no answer.
const PATIENCE: Duration = Duration::from_secs(20);
const START: Duration = Duration::from_secs(30);
/// Marks all processes of a master, to find them again.
const MARK: &str = "DEPLOYS_BENCH_MARK";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum App {
    Node,
    Wsgi,
    Server,
}

pub struct Master {
    pub name: &'static str,
    pub app: App,
    /// In the shell; `$PORT` and `$PID` are set.
    pub start: String,
    pub reload: &'static str,
    /// Must succeed, or the peer is not there.
    pub needs: String,
    pub how: &'static str,
}

pub fn masters() -> Vec<Master> {
    let root = kit::root().canonicalize().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let spawnwork = root.join(target).join("release/spawnwork");
    let spawnwork = spawnwork.display();
    let modules = kit::cache().join("frameworks/node_modules");
    let pm2 = modules.join("pm2/bin/pm2");
    let pm2 = pm2.display();
    let recluster = modules.join("recluster");
    let recluster = recluster.display();
    vec![
        Master {
            name: "spawnwork, node",
            app: App::Node,
            start: format!("exec {spawnwork} -n 2 --control c.sock --ready-timeout 3s --orphans adopt -- node app.js"),
            reload: "SPAWNWORK --ctl c.sock reload",
            needs: format!("test -x {spawnwork}"),
            how: "--ready-timeout 3s, --orphans adopt; --ctl reload",
        },
        Master {
            name: "spawnwork, python",
            app: App::Server,
            start: format!("exec {spawnwork} -n 2 --control c.sock --ready-timeout 3s --orphans adopt -l 127.0.0.1:$PORT -- python3 app.py"),
            reload: "SPAWNWORK --ctl c.sock reload",
            needs: format!("test -x {spawnwork}"),
            how: "the same, with a socket by LISTEN_FDS and READY=1",
        },
        Master {
            name: "PM2",
            app: App::Node,
            start: format!("export PM2_HOME=$PWD/pm2; node {pm2} start app.js -i 2 --name app --listen-timeout 3000 && cp $PM2_HOME/pm2.pid pid"),
            reload: "PM2_HOME=$PWD/pm2 node PM2 reload app",
            needs: format!("test -e {pm2}"),
            how: "cluster mode, --listen-timeout 3000; pm2 reload",
        },
        Master {
            name: "recluster",
            app: App::Node,
            start: format!("printf \"var c = require('{recluster}')('app.js', {{workers: 2, readyWhen: 'listening'}}); c.run(); process.on('SIGUSR2', () => c.reload());\" > master.js; exec node master.js"),
            reload: "kill -USR2 $PID",
            needs: format!("test -d {recluster}"),
            how: "readyWhen 'listening'; USR2 -> reload(), which has no result",
        },
        Master {
            name: "gunicorn",
            app: App::Wsgi,
            start: "exec gunicorn -w 2 -b 127.0.0.1:$PORT app:app".to_owned(),
            reload: "kill -HUP $PID",
            needs: "command -v gunicorn".to_owned(),
            how: "two sync workers, no preload; HUP, which has no result",
        },
        Master {
            name: "uWSGI",
            app: App::Wsgi,
            start: "touch again; exec $(command -v uwsgi || command -v uwsgi-core) --plugin python3 --http-socket 127.0.0.1:$PORT --master --processes 2 --lazy-apps --need-app --wsgi-file app.py --callable app --touch-chain-reload again".to_owned(),
            reload: "touch again",
            needs: "command -v uwsgi || command -v uwsgi-core".to_owned(),
            how: "--lazy-apps --need-app --touch-chain-reload, which has no result",
        },
        Master {
            name: "start_server",
            app: App::Server,
            start: "exec start_server --port 127.0.0.1:$PORT --interval 2 --signal-on-hup TERM -- python3 app.py".to_owned(),
            reload: "kill -HUP $PID",
            needs: "command -v start_server".to_owned(),
            how: "--interval 2, one worker with threads; HUP, which has no result",
        },
    ]
}

const NODE: &str = "EARLY\nrequire('http').createServer((q, r) => r.end(`hello ${process.pid} VERSION\\n`)).listen(Number(process.env.PORT), '127.0.0.1', () => { LATE });\n";
const WSGI: &str = "import os, threading, time\nEARLY\nLATE\ndef app(environ, start):\n    body = b'hello %d VERSION\\n' % os.getpid()\n    start('200 OK', [('Content-Length', str(len(body))), ('Connection', 'close')])\n    return [body]\n";
const SERVER: &str = r#"import http.server, os, signal, socket, threading, time
EARLY
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
    };
    let source = source.replace("EARLY", early).replace("LATE", late);
    source.replace("VERSION", version)
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub requests: u64,
    pub failed: u64,
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
            seen.requests += 1;
            match ask(port, slot, keep) {
                Some(version) => *seen.versions.entry(version).or_default() += 1,
                None => seen.failed += 1,
            }
        }
        std::thread::sleep(PAUSE);
    }
    seen
}

pub struct Running<'a> {
    pub master: &'a Master,
    pub dir: Dir,
    pub port: u16,
    pub mark: String,
    pub child: Option<Child>,
    pub pid: i32,
    /// From its start to its first answer.
    pub answered: Option<Duration>,
}

pub fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|pair| pair == wanted.as_bytes())
        })
        .collect()
}

impl<'a> Running<'a> {
    pub fn start(master: &'a Master) -> Option<Running<'a>> {
        let (dir, port) = (Dir::new(), free_port());
        let mark = format!("{}-{port}", std::process::id());
        let mut running = Running {
            master,
            dir,
            port,
            mark,
            child: None,
            pid: 0,
            answered: None,
        };
        running.deploy("v1", "good");
        running.launch().then_some(running)
    }

    pub fn deploy(&self, version: &str, how: &str) {
        let file = match self.master.app {
            App::Node => "app.js",
            App::Wsgi | App::Server => "app.py",
        };
        // Python takes a source of the same second and length for the one it has compiled.
        let _ = fs::remove_dir_all(self.dir.path().join("__pycache__"));
        self.dir.write(file, &text(self.master.app, version, how));
    }

    fn shell(&self, line: &str) -> Command {
        let spawnwork = self.master.start.split(' ').nth(1).unwrap_or_default();
        let pm2 = kit::cache().join("frameworks/node_modules/pm2/bin/pm2");
        let line = line
            .replace("SPAWNWORK", spawnwork)
            .replace("node PM2", &format!("node {}", pm2.display()));
        let mut command = Command::new("sh");
        command
            .args(["-c", &line])
            .current_dir(self.dir.path())
            .env("PORT", self.port.to_string())
            .env("PID", self.pid.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env(MARK, &self.mark)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        command
    }

    /// Starts the master; true when it answers.
    pub fn launch(&mut self) -> bool {
        let mut child = self.shell(&self.master.start.clone()).spawn().unwrap();
        self.pid = child.id() as i32;
        let began = Instant::now();
        let end = began + START;
        while Instant::now() < end {
            // An orphan of the one before may answer, and this one be at its end already.
            if matches!(child.try_wait(), Ok(Some(status)) if !status.success()) {
                return false;
            }
            if ask(self.port, &mut None, false).is_some() {
                self.answered = Some(began.elapsed());
                if let Ok(pid) = fs::read_to_string(self.dir.path().join("pid")) {
                    self.pid = pid.trim().parse().unwrap();
                    let _ = child.wait();
                }
                self.child = Some(child);
                // All workers, not only the first; and not only an orphan of the one before.
                std::thread::sleep(Duration::from_secs(1));
                let child = self.child.as_mut().unwrap();
                return !matches!(child.try_wait(), Ok(Some(status)) if !status.success());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
        false
    }

    /// The status of the reload command, if it ends in time.
    pub fn reload(&self) -> Option<i32> {
        let mut child = self.shell(self.master.reload).spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Ok(Some(status)) = child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    pub fn watched_reload(&self) -> (Seen, Option<i32>) {
        let over = Arc::new(AtomicBool::new(false));
        let (port, there) = (self.port, Arc::clone(&over));
        let clients = std::thread::spawn(move || watch(port, &there));
        let begun = Instant::now();
        let status = self.reload();
        std::thread::sleep(WATCH.saturating_sub(begun.elapsed()));
        over.store(true, Ordering::Relaxed);
        (clients.join().unwrap(), status)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        for _ in 0..20 {
            let left = marked(&self.mark);
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if let Some(child) = self.child.as_mut() {
                let _ = child.try_wait();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

/// Those that are installed, and the others.
pub fn installed(masters: &[Master]) -> (Vec<&Master>, Vec<&Master>) {
    masters.iter().partition(|master| {
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &master.needs]).stdout(Stdio::null());
        shell.status().is_ok_and(|status| status.success())
    })
}
