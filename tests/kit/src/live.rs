//! An app that replsock can reach, and replsock beside it.

use crate::{Dir, Finished, Run, Running, eventually};
use std::path::{Path, PathBuf};

/// It runs, in a directory of its own.
#[derive(Debug)]
pub struct Live {
    /// The app, or what runs its workers.
    pub running: Running,
    /// Where it was started, and its sockets are: in `sockets`.
    pub dir: Dir,
    program: PathBuf,
}

impl Live {
    /// `replsock env --app shop -- command`, with these files in its directory; in the command, `%` stands
    /// for that directory.
    #[must_use]
    pub fn start(program: &str, files: &[(&str, &str)], command: &[&str]) -> Live {
        let dir = Dir::new();
        for (name, text) in files {
            dir.write(name, text);
        }
        let running = Run::new(program)
            .args(["env", "--app", "shop", "--"])
            .args(command)
            .dir(dir.path())
            .env("REPLSOCK_DIR", dir.path().join("sockets"))
            .env("XDG_STATE_HOME", dir.path().join("state"))
            .start();
        Live {
            running,
            dir,
            program: program.into(),
        }
    }

    /// A command of replsock's, at the same sockets.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Run {
        self.command_of(&self.program, words)
    }

    /// Another program's, that will start ours.
    #[must_use]
    pub fn command_of(&self, program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Run {
        Run::new(program)
            .args(words)
            .dir(self.dir.path())
            .env("REPLSOCK_DIR", self.dir.path().join("sockets"))
            .env("XDG_STATE_HOME", self.dir.path().join("state"))
            .env("HOME", self.dir.path())
    }

    /// The same, to its end.
    #[must_use]
    pub fn ask(&self, words: &[&str]) -> Finished {
        self.command(words).finish()
    }

    /// With something on its standard input.
    #[must_use]
    pub fn tell(&self, words: &[&str], input: &str) -> Finished {
        let path = self.dir.write("input", input);
        let file = std::fs::File::open(path).unwrap();
        self.command(words).stdin(file).finish()
    }

    /// Waits until so many processes can be reached; their sockets.
    #[must_use]
    pub fn sockets(&self, count: usize) -> Vec<PathBuf> {
        eventually("the sockets of the app", || {
            let found = self.ask(&["ls", "--json", "shop"]);
            let lines: Vec<PathBuf> = found
                .out
                .lines()
                .filter(|line| line.contains("\"state\":\"ok\""))
                .filter_map(|line| {
                    let (_, rest) = line.split_once("\"socket\":\"")?;
                    Some(Path::new(rest.split('"').next()?).to_owned())
                })
                .collect();
            (lines.len() == count).then_some(lines)
        })
    }

    /// The only one.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.sockets(1).remove(0)
    }

    /// The value of an expression in the only process; it must have one.
    #[must_use]
    pub fn value(&self, expression: &str) -> String {
        let answer = self.ask(&["eval", "--timeout", "60s", "--raw", "shop", expression]);
        assert_eq!(
            answer.status, 0,
            "{expression}: {}{}",
            answer.out, answer.err
        );
        answer.out.trim_end().to_owned()
    }
}
