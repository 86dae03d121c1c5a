//! The examples of heartbeat(1), of --help and of the README run.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Run, Running, eventually, free_port};
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");

/// The lines of a document, each beside a service on a port of its own: what goes on is stopped when it
/// has said that the service is well.
struct Session {
    dir: Dir,
    port: u16,
    redis: u16,
    _services: Vec<Running>,
    count: usize,
}

impl Session {
    fn new() -> Session {
        let (dir, port, redis) = (Dir::new(), free_port(), free_port());
        dir.write(
            "app.js",
            "require('http').createServer((q, r) => r.end('ok\\n')).listen(Number(process.env.PORT));\n",
        );
        let mut master = Run::new(kit::sibling(PROGRAM, "spawnwork"))
            .args(["-n", "2", "--pid-file", "app.pid", "--", "node", "app.js"])
            .env("PORT", port.to_string())
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        let server = Run::new("redis-server")
            .args([
                "--port",
                &redis.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .dir(dir.path())
            .start();
        eventually("redis listens", || {
            std::net::TcpStream::connect(("127.0.0.1", redis)).ok()
        });
        Session {
            dir,
            port,
            redis,
            _services: vec![master, server],
            count: 0,
        }
    }

    /// All that differs from what is written there is the ports.
    fn run(&mut self, line: &str) {
        self.count += 1;
        let wraps = line.contains(" -- ");
        let port = if wraps { free_port() } else { self.port };
        let line = line
            .replace("--port 3000", &format!("--port {port}"))
            .replace("localhost:6379", &format!("localhost:{}", self.redis));
        let directory = Path::new(PROGRAM).parent().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let paths: Vec<PathBuf> = std::iter::once(directory.to_owned())
            .chain(std::env::split_paths(&path))
            .collect();
        let one_shot = ["--once", "--wait", "--explain"]
            .iter()
            .any(|word| line.contains(word));
        let shell = Run::new("sh")
            .args([
                "-c",
                &if one_shot {
                    line.clone()
                } else {
                    format!("exec {line}")
                },
            ])
            .dir(self.dir.path())
            .env("PORT", port.to_string())
            .env("PATH", std::env::join_paths(paths).unwrap());
        if one_shot {
            let found = shell.finish();
            assert_eq!(
                (found.status, &*found.err),
                (0, ""),
                "{line}: {}",
                found.out
            );
            assert!(!found.out.contains("not well"), "{line}: {}", found.out);
            return;
        }
        let mut running = shell.start();
        if wraps {
            running.event("service-up");
        } else {
            running.out_line(&line, |said| said.contains(" UP "));
        }
        assert!(
            [0, 143].contains(&running.stop()),
            "{line}: {:?}",
            running.err()
        );
    }
}

#[test]
fn those_of_the_page() {
    let page = std::fs::read_to_string(kit::root().join("man/man1/heartbeat.1")).unwrap();
    let mut session = Session::new();
    for line in page.lines() {
        if let Some(line) = line.strip_prefix(".Dl $ ") {
            session.run(&line.replace("\\-", "-").replace("\\e", "\\"));
        }
    }
    assert!(session.count >= 7, "{}", session.count);
}

#[test]
fn those_of_help() {
    let help = Run::new(PROGRAM).arg("--help").finish().out;
    let mut session = Session::new();
    for line in help.lines().skip_while(|line| *line != "Examples:") {
        if let Some(line) = line.strip_prefix("  ") {
            session.run(line);
        }
    }
    assert_eq!(session.count, 2);
}

#[test]
fn those_of_the_readme() {
    let text = std::fs::read_to_string(kit::root().join("README.md")).unwrap();
    let mut session = Session::new();
    let mut within = false;
    for line in text.lines().map(str::trim) {
        match line {
            "```sh" => within = true,
            "```" => within = false,
            line if within && line.starts_with("heartbeat ") => session.run(line),
            _ => {}
        }
    }
    assert!(session.count >= 4, "{}", session.count);
}
