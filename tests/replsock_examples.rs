//! The examples of replsock(1), replsock-protocol(7), of --help and of the README run.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Finished, Run, Running, eventually, node, root, sibling};
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

struct Place {
    dir: Dir,
    app: Option<Running>,
    served: Vec<Running>,
    count: usize,
}

impl Place {
    fn new() -> Place {
        let dir = Dir::new();
        dir.write(
            "app.js",
            "require('http').createServer((q, s) => s.end('hello\\n')).listen(process.env.PORT || 0);\n",
        );
        let _ = sibling(PROGRAM, "spawnwork");
        Place {
            dir,
            app: None,
            served: Vec::new(),
            count: 0,
        }
    }

    fn shell(&self, line: &str) -> Run {
        let own = Path::new(PROGRAM).parent().unwrap().to_owned();
        let node = node("20").parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = [own, node].into_iter().chain(std::env::split_paths(&path));
        Run::new("/bin/sh")
            .args(["-c", line])
            .dir(self.dir.path())
            .env("PATH", std::env::join_paths(paths).unwrap())
            .env("REPLSOCK_DIR", self.dir.path().join("sockets"))
            // The port of root's process is open for a moment; here it may be.
            .env("REPLSOCK_YES_OPEN_PORT", "1")
    }

    fn listed(&self) -> Vec<(String, String)> {
        let found = self.shell("replsock ls --json shop").finish();
        let value = |line: &str, name: &str| {
            let (_, rest) = line.split_once(&format!("\"{name}\":")).unwrap();
            rest.trim_start_matches('"')
                .split(['"', ','])
                .next()
                .unwrap()
                .to_owned()
        };
        found
            .out
            .lines()
            .filter(|line| line.contains("\"state\":\"ok\""))
            .map(|line| (value(line, "pid"), value(line, "socket")))
            .collect()
    }

    fn run(&mut self, line: &str) {
        let line = line.split(" #").next().unwrap().trim();
        self.count += 1;
        if line.starts_with("replsock env ") {
            // The one before has to be gone, or there are two of each number.
            if let Some(mut before) = self.app.take() {
                assert_eq!(before.stop(), 0);
            }
            self.app = Some(self.shell(&format!("exec {line}")).start());
            eventually("four workers", || (self.listed().len() == 4).then_some(()));
            return;
        }
        if line.contains("replsock serve ") || line.contains("replsock eval /run") {
            return self.serve(line.trim_end_matches(" &"));
        }
        if self.app.is_none() {
            self.count -= 1;
            self.run("replsock env --app shop -- spawnwork -n 4 -- node app.js");
        }
        let (pid, socket) = self.listed().remove(0);
        let adapted = line
            .replace("/run/replsock/shop/4711.sock", &socket)
            .replace("4711", &pid);
        let input = self.dir.write("input", "40 + 2\n");
        let done: Finished = self
            .shell(&adapted)
            .stdin(std::fs::File::open(input).unwrap())
            .finish();
        assert_eq!(done.status, 0, "{adapted}: {}{}", done.out, done.err);
        if line == "replsock shop/2" {
            assert_eq!(done.out, "42\n");
        }
        if line.contains("1 + 1") {
            assert_eq!(done.out, "2\n");
        }
    }
}

impl Place {
    /// What is served, or a question to it.
    fn serve(&mut self, line: &str) {
        let place = self.dir.path().join("served");
        std::fs::create_dir_all(&place).unwrap();
        let adapted = line.replace("/run/replsock", place.to_str().unwrap());
        if line.contains("replsock serve ") {
            // The one before, with the same socket.
            for mut before in self.served.drain(..) {
                before.signal(nix::sys::signal::Signal::SIGTERM);
                let _ = before.end();
            }
            let mut server = self.shell(&format!("exec {adapted}")).start();
            server.event("server-listening");
            self.served.push(server);
            return;
        }
        let answer = self.shell(&adapted).finish();
        assert_eq!(
            (answer.status, answer.out.as_str()),
            (0, "42\n"),
            "{adapted}: {}",
            answer.err
        );
    }
}

fn text_of(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

#[test]
fn examples_run() {
    let mut place = Place::new();
    for page in ["man/man1/replsock.1", "man/man7/replsock-protocol.7"] {
        for line in text_of(page).lines() {
            if let Some(line) = line.strip_prefix(".Dl $ ") {
                place.run(&line.replace("\\-", "-"));
            }
        }
    }
    let help = Run::new(PROGRAM).arg("--help").finish();
    for line in help.out.lines().skip_while(|line| *line != "Examples:") {
        if let Some(line) = line.strip_prefix("  ") {
            place.run(line);
        }
    }
    let mut within = false;
    for line in text_of("README.md").lines().map(str::trim) {
        match line {
            "```sh" => within = true,
            "```" => within = false,
            line if within && line.contains("replsock ") => place.run(line),
            _ => {}
        }
    }
    assert!(place.count >= 14, "only {} examples", place.count);
    assert_eq!(place.app.take().unwrap().stop(), 0);
}
