//! The examples of logreopen(1), of --help and of the README run, its block for logrotate included.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");

fn page() -> String {
    std::fs::read_to_string(kit::root().join("man/man1/logreopen.1")).unwrap()
}

/// The lines of a document one after another, as a person would type them: what writes logs stays until
/// the next one of that kind, and other commands run beside it.
struct Session {
    dir: Dir,
    running: Option<Running>,
    count: usize,
}

impl Session {
    fn new() -> Session {
        let dir = Dir::new();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        dir.write("app.js", "setInterval(() => { console.log('out'); console.error('err'); }, 5);\nrequire('http').createServer().listen(0);\n");
        dir.write("job.js", "console.log('done');\n");
        // Some lines need the other program.
        let _ = kit::sibling(PROGRAM, "spawnwork");
        Session {
            dir,
            running: None,
            count: 0,
        }
    }

    fn shell(&self, line: &str) -> Run {
        let directory = Path::new(PROGRAM).parent().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let paths: Vec<PathBuf> = std::iter::once(directory.to_owned())
            .chain(std::env::split_paths(&path))
            .collect();
        Run::new("setsid")
            .args(["sh", "-c", line])
            .dir(self.dir.path())
            .env("PATH", std::env::join_paths(paths).unwrap())
    }

    fn run(&mut self, line: &str) {
        self.count += 1;
        let line = line.split(" #").next().unwrap();
        let stays = line.contains("node ");
        if !stays {
            let run = self.shell(line).finish();
            assert_eq!(run.status, 0, "{line}: {}", run.err);
            return;
        }
        self.stop();
        let mut running = self.shell(line).start();
        let opened = running.event("output-opened");
        let file = self.dir.path().join(kit::field(&opened, "file"));
        eventually(line, || {
            std::fs::metadata(&file)
                .is_ok_and(|file| file.len() > 0)
                .then_some(())
        });
        self.running = Some(running);
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // A job has ended by itself.
            let _ = killpg(Pid::from_raw(running.pid()), Signal::SIGTERM);
            let status = running.end();
            assert!([0, 143].contains(&status), "{status}: {:?}", running.err());
        }
    }
}

#[test]
fn those_of_the_page() {
    let page = page();
    let mut session = Session::new();
    for line in page.lines() {
        if let Some(line) = line.strip_prefix(".Dl $ ") {
            session.run(&line.replace("\\-", "-").replace("\\(dq", "\""));
        }
    }
    session.stop();
    assert!(session.count >= 5, "{}", session.count);
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
    session.stop();
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
            line if within && line.contains("logreopen ") => session.run(line),
            _ => {}
        }
    }
    session.stop();
    assert!(session.count >= 3, "{}", session.count);
}

#[test]
fn the_block_for_logrotate() {
    kit::mount::need_root();
    let page = page();
    let block: Vec<&str> = page
        .lines()
        .skip_while(|line| !line.starts_with("/var/www/myserver/shared/logs/*.out"))
        .take_while(|line| *line != ".Ed")
        .collect();
    let mut session = Session::new();
    session.run("logreopen -l logs/app.out -e logs/app.err --control log.sock -- node app.js");
    let dir = session.dir.path().to_owned();
    let text = block
        .join("\n")
        .replace("\\-", "-")
        .replace(
            "/var/www/myserver/shared/logs",
            &dir.join("logs").display().to_string(),
        )
        .replace(
            "/run/myserver/log.sock",
            &dir.join("log.sock").display().to_string(),
        );
    let config = session.dir.write("logrotate.conf", &(text + "\n"));
    for _ in 0..3 {
        let run = session
            .shell(&format!("logrotate -f -s state {}", config.display()))
            .finish();
        assert_eq!((run.status, &*run.err), (0, ""));
    }
    eventually("lines in the new files", || {
        let size = |name: &str| std::fs::metadata(dir.join(name)).map_or(0, |file| file.len());
        (size("logs/app.out") > 0 && size("logs/app.err") > 0).then_some(())
    });
    for name in ["app.out", "app.err"] {
        for number in 1..=3 {
            let archive = dir.join(format!("logs/{name}.{number}.gz"));
            let bytes = kit::logs::gunzipped(&archive);
            assert!(bytes.ends_with(b"\n"), "{archive:?}");
        }
    }
    session.stop();
}
