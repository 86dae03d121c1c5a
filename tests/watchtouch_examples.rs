//! The examples of watchtouch(1), of --help and of the README run.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::touch::touch;
use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");

/// A place with an app, and a service that a pid file names.
struct Session {
    dir: Dir,
    app: Running,
    count: usize,
}

impl Session {
    fn new() -> Session {
        let dir = Dir::new();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        dir.write("app.js", "require('http').createServer((request, response) => response.end('hello\\n')).listen(process.env.PORT);\n");
        let _ = kit::sibling(PROGRAM, "spawnwork");
        let script = "trap 'echo hit' USR2; echo up; while :; do sleep 0.05; done";
        let app = Run::new("sh").args(["-c", script]).start();
        dir.write("app.pid", &app.pid().to_string());
        eventually("the app", || app.out().contains("up").then_some(()));
        Session { dir, app, count: 0 }
    }

    /// Runs a line as a person would, touches its file, and looks whether what it promises comes.
    fn run(&mut self, line: &str) {
        self.count += 1;
        let line = line.split(" # ").next().unwrap();
        let directory = Path::new(PROGRAM).parent().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let paths: Vec<PathBuf> = std::iter::once(directory.to_owned())
            .chain(std::env::split_paths(&path))
            .collect();
        let splay = line
            .replace("--splay 30s", "--splay 100ms")
            .replace("sleep 5", "sleep 0.1");
        let mut running = Run::new("setsid")
            .args(["sh", "-c", &splay])
            .dir(self.dir.path())
            .env("PATH", std::env::join_paths(paths).unwrap())
            .env("PORT", kit::free_port().to_string())
            .start();
        running.event("ready");
        if line.contains("spawnwork") {
            running.event("generation-serving");
        }
        let file = line
            .split(' ')
            .find(|word| word.ends_with("restart.txt") || *word == "flag")
            .unwrap();
        touch(self.dir.path().join(file));
        if line.contains("--once") {
            assert_eq!(running.end(), 0, "{line}");
            assert!(running.out_to_its_end().ends_with("seen\n"));
            return;
        }
        if line.contains("spawnwork") {
            running.event("reload-committed");
        } else if line.contains("app.pid") {
            let before = self.app.out().matches("hit").count();
            eventually(line, || {
                (self.app.out().matches("hit").count() > before || before > 0).then_some(())
            });
        } else {
            eventually(line, || running.out().contains("created ").then_some(()));
        }
        killpg(Pid::from_raw(running.pid()), Signal::SIGTERM).unwrap();
        running.end();
        let _ = std::fs::remove_file(self.dir.path().join(file));
    }
}

#[test]
fn those_of_the_page() {
    let page = std::fs::read_to_string(kit::root().join("man/man1/watchtouch.1")).unwrap();
    let mut session = Session::new();
    for line in page.lines() {
        if let Some(line) = line.strip_prefix(".Dl $ ") {
            session.run(&line.replace("\\-", "-").replace("\\(dq", "\""));
        }
    }
    assert_eq!(session.count, 5);
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
            line if within && line.contains("watchtouch ") => session.run(line),
            _ => {}
        }
    }
    assert_eq!(session.count, 3);
}
