//! Each set-up of examples/ is run, by the program that it is for where a Debian package has that one. What differs
//! from the files as they lie there is paths and ports.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::load::{Load, Options};
use kit::{Dir, Finished, Run, eventually, free_port, root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// Listens on a port of loopback, or on a path.
const APP: &str = "
const server = require('http').createServer((request, response) => {
  console.log('asked');
  response.end(`hello ${process.pid}\\n`);
});
if (process.env.PORT.includes('/')) server.listen(process.env.PORT);
else server.listen(Number(process.env.PORT), '127.0.0.1');
console.error('begun');
";

/// A host with the shop on it: `srv` is /srv/shop.
struct Host {
    dir: Dir,
    port: u16,
}

fn text_of(path: &str) -> String {
    let path = root().join("examples").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn done(run: &Finished) {
    assert_eq!(run.status, 0, "{}{}", run.out, run.err);
}

/// The words of a line that ends with a JSON array, as Docker and Kubernetes write commands.
fn words_of(text: &str, before: &str) -> Vec<String> {
    let (_, rest) = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before}"));
    let array = &rest[rest.find('[').unwrap()..=rest.find(']').unwrap()];
    serde_json::from_str(array).unwrap()
}

impl Host {
    fn new() -> Host {
        kit::mount::need_root();
        for name in ["heartbeat", "logreopen", "watchtouch"] {
            let _ = kit::sibling(PROGRAM, name);
        }
        let (dir, port) = (Dir::new(), free_port());
        let logs = dir.path().join("srv/shared/logs");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::create_dir_all(dir.path().join("srv/releases/1")).unwrap();
        std::fs::write(dir.path().join("srv/releases/1/app.js"), APP).unwrap();
        std::os::unix::fs::symlink("releases/1", dir.path().join("srv/current")).unwrap();
        let user = nix::unistd::User::from_name("www-data").unwrap().unwrap();
        for owned in [logs.as_path(), logs.parent().unwrap()] {
            nix::unistd::chown(owned, Some(user.uid), Some(user.gid)).unwrap();
        }
        Host { dir, port }
    }

    fn srv(&self, name: &str) -> PathBuf {
        self.dir.path().join("srv").join(name)
    }

    fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        let own = Path::new(PROGRAM).parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap();
        let sbin = ["/usr/sbin".into(), "/sbin".into()];
        let paths = std::iter::once(own)
            .chain(std::env::split_paths(&path))
            .chain(sbin);
        Run::new("env")
            .arg(program)
            .dir(self.dir.path())
            .env("PATH", std::env::join_paths(paths).unwrap())
            .env("PORT", self.port.to_string())
            .env("NODE_PATH", kit::cache().join("frameworks/node_modules"))
    }

    /// The same file for this host: its paths, its port.
    fn adapted(&self, text: &str) -> String {
        text.replace(
            "/srv/shop",
            self.srv("").display().to_string().trim_end_matches('/'),
        )
        .replace("3000", &self.port.to_string())
    }

    fn answers(&self) -> Option<String> {
        kit::http::get(format!("127.0.0.1:{}", self.port), "/")
            .ok()
            .map(|reply| reply.body)
    }

    fn serves(&self) -> String {
        eventually("the shop answers", || {
            self.answers().filter(|body| body.starts_with("hello "))
        })
    }

    fn ask(&self, request: &[&str]) -> Finished {
        self.run("spawnwork")
            .arg("--ctl")
            .arg(self.srv("shared/app.sock"))
            .args(request)
            .finish()
    }

    fn generation(&self, wanted: u32) {
        eventually("the next generation serves", || {
            let status = self.ask(&["status", "json"]).out;
            status
                .contains(&format!("\"generation\":{wanted},"))
                .then_some(())
        });
    }

    fn pid(&self) -> Option<i32> {
        let status = self.ask(&["status", "json"]);
        let (_, rest) = status.out.split_once("\"pid\":")?;
        rest.split(',').next()?.parse().ok()
    }

    fn load(&self, address: String) -> Load {
        let options = Options {
            address,
            keep_alive: 3,
            fresh: 2,
            paths: vec!["/"],
            expect: "hello ",
            timeout: Duration::from_secs(30),
        };
        Load::paced(&options, Duration::from_millis(20))
    }
}

/// A directory of a supervisor in the style of daemontools, and what each deed is called there.
fn supervised(
    example: &str,
    supervise: &[&str],
    hup: &[&str],
    usr2: &[&str],
    down: &[&str],
    exit: &[&str],
) {
    let host = Host::new();
    let service = host.dir.path().join("shop");
    std::fs::create_dir(&service).unwrap();
    for name in ["run", "finish", "conf"] {
        let from = root().join("examples").join(example).join(name);
        std::fs::copy(&from, service.join(name)).unwrap();
    }
    std::fs::write(
        service.join("conf"),
        host.adapted(&text_of(&format!("{example}/conf"))),
    )
    .unwrap();
    let mut supervisor = host
        .run(supervise[0])
        .args(&supervise[1..])
        .arg(&service)
        .start();
    let tell = |words: &[&str]| done(&host.run(words[0]).args(&words[1..]).arg(&service).finish());
    host.serves();
    let load = host.load(format!("127.0.0.1:{}", host.port));
    load.answer(10);
    // Other log files.
    let log = host.srv("shared/logs/shop.out");
    std::fs::rename(&log, log.with_extension("out.1")).unwrap();
    tell(hup);
    eventually("a new log file", || log.exists().then_some(()));
    // Another generation.
    host.generation(1);
    tell(usr2);
    host.generation(2);
    load.answer(10);
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    // What ends is started anew.
    let first = host.pid().unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    eventually("another one", || host.pid().filter(|pid| *pid != first));
    host.serves();
    tell(down);
    eventually("nobody listens", || host.answers().is_none().then_some(()));
    tell(exit);
    assert_eq!(supervisor.end(), 0);
}

#[test]
fn runit() {
    supervised(
        "runit",
        &["runsv"],
        &["sv", "hup"],
        &["sv", "2"],
        &["sv", "-w", "50", "down"],
        &["sv", "exit"],
    );
}

#[test]
fn s6() {
    supervised(
        "s6",
        &["s6-supervise"],
        &["s6-svc", "-h"],
        &["s6-svc", "-2"],
        &["s6-svc", "-wD", "-T", "50000", "-d"],
        &["s6-svc", "-x"],
    );
}

#[test]
fn logrotate() {
    let text = text_of("logrotate/shop");
    // One source: the page has the same block, for another place.
    let page = std::fs::read_to_string(root().join("man/man1/logreopen.1")).unwrap();
    let block = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .skip_while(|line| !line.contains("shared/logs/*.out"));
        let lines = lines.skip(1).take_while(|line| *line != "}");
        lines
            .map(|line| {
                line.trim()
                    .replace("\\-", "-")
                    .replace("/run/myserver", "/srv/shop/shared")
            })
            .collect()
    };
    let of_page = block(&page);
    assert!(of_page.len() >= 7, "{of_page:?}");
    for line in of_page {
        assert!(block(&text).contains(&line), "{line}");
    }

    let host = Host::new();
    let mut service = host
        .run("logreopen")
        .args(["-u", "www-data", "-l"])
        .arg(host.srv("shared/logs/shop.out"))
        .arg("-e")
        .arg(host.srv("shared/logs/shop.err"))
        .arg("--control")
        .arg(host.srv("shared/log.sock"))
        .args(["--", "node"])
        .arg(host.srv("current/app.js"))
        .start();
    let config = host.dir.write(
        "logrotate.conf",
        &format!("su root root\n{}", host.adapted(&text)),
    );
    for round in 1..=3 {
        host.serves();
        let log = host.srv("shared/logs/shop.out");
        eventually("a line", || {
            std::fs::metadata(&log)
                .is_ok_and(|file| file.len() > 0)
                .then_some(())
        });
        done(
            &host
                .run("logrotate")
                .args(["-f", "-s", "state"])
                .arg(&config)
                .finish(),
        );
        let old = log.with_extension(format!("out.{round}.gz"));
        assert!(
            kit::logs::gunzipped(&old).ends_with(b"asked\n"),
            "{}",
            old.display()
        );
    }
    assert_eq!(service.stop(), 143);
}

#[test]
fn nginx() {
    let host = Host::new();
    let socket = host.srv("shared/web.sock");
    let mut service = host
        .run("spawnwork")
        .args(["-n", "2", "--probation", "300ms", "-u", "www-data"])
        .args(["--socket-owner", "www-data", "-l"])
        .arg(&socket)
        .arg("-C")
        .arg(host.srv("current"))
        .arg("--control")
        .arg(host.srv("shared/app.sock"))
        .args(["--", "node", "app.js"])
        .env("PORT", &socket)
        .start();
    service.event("generation-serving");
    let text = host
        .adapted(&text_of("nginx/shop.conf"))
        .replace("listen 80;", &format!("listen 127.0.0.1:{};", host.port));
    let config = host.dir.write(
        "nginx.conf",
        &format!(
            "daemon off;\nuser www-data;\npid {0}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
             http {{\naccess_log off;\nclient_body_temp_path {0}/body;\nproxy_temp_path {0}/proxy;\n\
             fastcgi_temp_path {0}/fastcgi;\nuwsgi_temp_path {0}/uwsgi;\nscgi_temp_path {0}/scgi;\n{text}}}\n",
            host.dir.path().display()
        ),
    );
    let mut nginx = host
        .run("nginx")
        .args(["-e", "stderr", "-c"])
        .arg(config)
        .start();
    host.serves();
    let load = host.load(format!("127.0.0.1:{}", host.port));
    for generation in 2..=4 {
        load.answer(30);
        done(&host.ask(&["reload", "--timeout", "60s"]));
        host.generation(generation);
    }
    load.answer(30);
    let tally = load.stop();
    assert_eq!(
        tally.failures(),
        0,
        "{:?}\n{}",
        tally.failed,
        nginx.err().join("\n")
    );
    assert!(tally.served.len() >= 4, "{:?}", tally.served);
    assert_eq!((nginx.stop(), service.stop()), (0, 0));
}

#[test]
fn redis() {
    let host = Host::new();
    let port = free_port();
    let at = format!("127.0.0.1:{port}");
    let mut server = host
        .run("redis-server")
        .args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--port",
            &port.to_string(),
        ])
        .start();
    let readme = text_of("redis/README.md");
    let check = readme
        .lines()
        .find(|line| line.contains("heartbeat --once"))
        .unwrap();
    let check = check.trim().replace("127.0.0.1:6379", &at);
    let ping = || host.run("sh").args(["-c", &check]).finish().status;
    eventually("redis answers", || (ping() == 0).then_some(()));
    let mut service = host
        .run("spawnwork")
        .args(["-n", "2", "--probation", "300ms", "--control"])
        .arg(host.srv("shared/app.sock"))
        .args(["--", "node"])
        .arg(root().join("examples/redis/app.js"))
        .env("REDIS", &at)
        .start();
    service.event("generation-serving");
    // Whoever serves, the visits are counted on; after a reload too.
    let url = format!("http://127.0.0.1:{}/", host.port);
    for visit in 1..=8 {
        let asked = host
            .run("curl")
            .args(["-s", "-c", "jar", "-b", "jar", &url])
            .finish();
        assert!(
            asked.out.ends_with(&format!("visit {visit}\n")),
            "{visit}: {}",
            asked.out
        );
        if visit == 4 {
            done(&host.ask(&["reload", "--timeout", "60s"]));
        }
    }
    // Without redis there are no sessions, but the shop is not to blame.
    assert_eq!(server.stop(), 0);
    assert_eq!(ping(), 1);
    let asked = host
        .run("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url])
        .finish();
    assert_eq!(asked.out, "503");
    let health = ["--once", "--quiet", "--path", "/health", "--port"];
    done(
        &host
            .run("heartbeat")
            .args(health)
            .arg(host.port.to_string())
            .finish(),
    );
    assert_eq!(service.stop(), 0);
}

#[test]
fn app() {
    let host = Host::new();
    let app = root().join("examples/app/app.js");
    let mut alone = host.run("node").arg(&app).start();
    alone.out_line("it listens", |line| line.starts_with("listening on "));
    host.serves();
    let second = host.run("node").arg(&app).finish();
    assert_eq!(second.status, 1);
    assert!(
        second.err.contains("address already in use"),
        "{}",
        second.err
    );
    assert_eq!(alone.stop(), 143);
    let mut service = host
        .run("spawnwork")
        .args(["-n", "2", "--", "node"])
        .arg(&app)
        .start();
    service.event("generation-serving");
    host.serves();
    let queue = host
        .run("ss")
        .args(["-Hltn", &format!("sport = :{}", host.port)])
        .finish();
    assert!(queue.out.contains(" 4096 "), "{}", queue.out);
    assert_eq!(service.stop(), 0);
}

/// What Docker would run, without it.
#[test]
fn docker() {
    let host = Host::new();
    let text = text_of("docker/Dockerfile").replace("3000", &host.port.to_string());
    let mut words = words_of(&text, "ENTRYPOINT ");
    words.extend(words_of(&text, "\nCMD "));
    let health = words_of(&text, "HEALTHCHECK ");
    let mut service = host
        .run(&words[0])
        .args(&words[1..])
        .dir(root().join("examples/app"))
        .env("WEB_CONCURRENCY", "2")
        .start();
    service.event_with("generation-serving", "workers=2");
    done(&host.run(&health[0]).args(&health[1..]).finish());
    assert_eq!(service.stop(), 0);
    assert_eq!(host.run(&health[0]).args(&health[1..]).finish().status, 1);
}

/// What Kubernetes would run, without it.
#[test]
fn kubernetes() {
    let host = Host::new();
    let socket = host.dir.path().join("app.sock").display().to_string();
    let text = text_of("kubernetes/shop.yaml")
        .replace("3000", &host.port.to_string())
        .replace("/tmp/app.sock", &socket);
    let words = words_of(&text, "image: ");
    let mut service = host
        .run(&words[0])
        .args(&words[1..])
        .dir(root().join("examples/app"))
        .start();
    service.event("generation-serving");
    let probes =
        ["readinessProbe:", "livenessProbe:", "startupProbe:"].map(|name| words_of(&text, name));
    for probe in &probes {
        done(&host.run(&probe[0]).args(&probe[1..]).finish());
    }
    // The grace is longer than what comes before KILL.
    let number = |before: &str| -> u32 {
        let (_, rest) = text.split_once(before).unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let grace = number("terminationGracePeriodSeconds: ");
    assert!(grace > number("\"sleep\", \"") + number("\"--stop-timeout\", \""));
    assert_eq!(service.stop(), 0);
    for (probe, status) in probes.iter().zip([1, 125, 1]) {
        let asked = host.run(&probe[0]).args(&probe[1..]).finish();
        assert_eq!(asked.status, status, "{probe:?}");
    }
}

#[test]
fn systemd() {
    let host = Host::new();
    let units = host.dir.path().join("units");
    std::fs::create_dir(&units).unwrap();
    for name in ["shop.service", "shop.socket"] {
        let text = text_of(&format!("systemd/{name}")).replace("/usr/local/bin/spawnwork", PROGRAM);
        std::fs::write(units.join(name), text).unwrap();
    }
    let man = root().join("man").canonicalize().unwrap();
    let checked = host
        .run("systemd-analyze")
        .args([
            "verify",
            "--recursive-errors=no",
            "units/shop.service",
            "units/shop.socket",
        ])
        .env("MANPATH", man)
        .finish();
    // systemd before 253 does not know these two.
    let complaints: Vec<&str> = checked
        .err
        .lines()
        .filter(|line| line.contains("shop."))
        .filter(|line| !line.contains("notify-reload") && !line.contains("'ReloadSignal'"))
        .collect();
    assert!(complaints.is_empty(), "{}", checked.err);

    // The port of the socket unit, handed over as systemd does it, to what the service unit starts.
    let unit = text_of("systemd/shop.service");
    let command = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"))
        .unwrap();
    let command = host.adapted(command).replace(
        "/run/shop/app.sock",
        &host.srv("shared/app.sock").display().to_string(),
    );
    let mut service = host
        .run("systemd-socket-activate")
        .args([
            "-l",
            &format!("127.0.0.1:{}", host.port),
            "-E",
            &format!("PORT={}", host.port),
            "--fdname",
            "web",
            "--",
        ])
        .args(command.split(' '))
        .start();
    host.serves();
    done(&host.ask(&["reload", "--timeout", "60s"]));
    host.generation(2);
    host.serves();
    assert_eq!(service.stop(), 0);
}

/// Without upstart, which no Debian has any more: its two scripts run as it runs them, by `sh -e`.
#[test]
fn upstart() {
    let host = Host::new();
    let text = host.adapted(&text_of("upstart/shop.conf"));
    assert!(text.contains("\nrespawn\nrespawn limit 5 60\n"));
    let script = |head: &str| -> String {
        let lines = text.lines().skip_while(|line| *line != head).skip(1);
        lines
            .take_while(|line| *line != "end script")
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let shell = |script: String| {
        host.run("sh")
            .args(["-e", "-c", &script])
            .env("HOME_DIR", host.srv(""))
            .env("NODE_ENV", "production")
    };
    done(&shell(script("pre-start script")).finish());
    let mut service = shell(script("script")).start();
    host.serves();
    let owner = host
        .run("ps")
        .args(["-o", "user=", "-p", &host.pid().unwrap().to_string()])
        .finish();
    assert_eq!(owner.out.trim(), "www-data");
    // The touch of the deploy.
    kit::touch::touch(host.srv("shared/restart.txt"));
    host.generation(2);
    assert_eq!(service.stop(), 0);
}

/// Without OpenRC, which has to have booted the machine: what it would start.
#[test]
fn openrc() {
    let host = Host::new();
    let script = root().join("examples/openrc/shop").canonicalize().unwrap();
    let line = ". \"$SCRIPT\"; exec \"${command##*/}\" $command_args";
    let shop = |line: &str| {
        host.run("sh")
            .args(["-e", "-c", line])
            .env("SCRIPT", &script)
            .env("home_dir", host.srv(""))
            .env("port", host.port.to_string())
            .env("workers", "2")
            .env("app_socket", host.srv("shared/app.sock"))
            .env("log_socket", host.srv("shared/log.sock"))
    };
    let mut service = shop(line).start();
    host.serves();
    // Its own commands, with the words that OpenRC has for their result.
    let words = "ebegin() { :; }; eend() { return $1; }; . \"$SCRIPT\"; reload; reopen";
    done(&shop(words).finish());
    host.generation(2);
    assert_eq!(service.stop(), 0);
}
