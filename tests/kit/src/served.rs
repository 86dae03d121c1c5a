//! A command behind `replsock serve`, and those who come to it.

use crate::{Dir, Finished, Run, Running, eventually};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The server, in a directory of its own.
#[derive(Debug)]
pub struct Served {
    /// Where `s.sock` is.
    pub dir: Dir,
    /// It.
    pub server: Running,
    program: String,
}

impl Served {
    /// `replsock serve s.sock OPTIONS -- COMMAND`, when it listens.
    #[must_use]
    pub fn start(program: &str, options: &[&str], command: &[&str]) -> Served {
        Served::start_in(Served::place(), program, options, command)
    }

    /// A directory that nobody else can write to.
    #[must_use]
    pub fn place() -> Dir {
        let dir = Dir::new();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        dir
    }

    /// The same in a directory that is there.
    #[must_use]
    pub fn start_in(dir: Dir, program: &str, options: &[&str], command: &[&str]) -> Served {
        let mut server = Run::new(program)
            .args(["serve", "s.sock"])
            .args(options)
            .arg("--")
            .args(command)
            .dir(dir.path())
            .start();
        server.event("server-listening");
        Served {
            dir,
            server,
            program: program.to_owned(),
        }
    }

    /// Its path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s.sock")
    }

    /// A connection of plain bytes.
    #[must_use]
    pub fn plain(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        let patience = Some(crate::PATIENCE);
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        stream
    }

    /// What a script gets for its input, by plain bytes.
    #[must_use]
    pub fn told(&self, input: &[u8]) -> String {
        let mut stream = self.plain();
        stream.write_all(input).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let end = Instant::now() + crate::PATIENCE;
        let (mut all, mut part) = (Vec::new(), [0u8; 65536]);
        loop {
            let count = stream.read(&mut part).unwrap();
            if count == 0 {
                return String::from_utf8_lossy(&all).into_owned();
            }
            all.extend_from_slice(&part[..count]);
            // One that talks on and on has not come to its end either.
            assert!(
                Instant::now() < end,
                "no end: {}",
                String::from_utf8_lossy(&all)
            );
        }
    }

    /// `replsock eval ./s.sock WORDS`
    #[must_use]
    pub fn client(&self, words: &[&str]) -> Run {
        Run::new(&self.program)
            .args(["eval", "./s.sock"])
            .args(words)
            .dir(self.dir.path())
    }

    /// The same with this on its standard input.
    #[must_use]
    pub fn eval(&self, words: &[&str], input: &str) -> Finished {
        let path = self.dir.write("input", input);
        self.client(words).stdin(File::open(path).unwrap()).finish()
    }

    /// The commands that run.
    #[must_use]
    pub fn children(&self) -> Vec<i32> {
        crate::run::children_of(self.server.pid())
    }

    /// Somebody at a terminal.
    #[must_use]
    pub fn attach(&self) -> Terminal {
        Terminal::open(self.dir.path(), &format!("'{}' ./s.sock", self.program))
    }
}

/// A person at a terminal, who sees what is on it. What was looked at is behind him.
#[derive(Debug)]
pub struct Terminal {
    running: Running,
    keys: Option<File>,
    seen: usize,
}

impl Terminal {
    /// A shell's line on a terminal of 80 columns and 24 rows; then its status and `icanon` are shown, with
    /// a dash if the terminal was left raw.
    #[must_use]
    pub fn open(dir: &Path, line: &str) -> Terminal {
        let (reader, keys) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let line = format!(
            "stty cols 80 rows 24; {line}; echo \"status $?\"; stty -a | grep -o '[-]*icanon'"
        );
        let running = Run::new("script")
            .args(["-qec", &line, "/dev/null"])
            .dir(dir)
            .env("TERM", "xterm")
            .env("SHELL", "/bin/bash")
            .stdin(File::from(reader))
            .start();
        Terminal {
            running,
            keys: Some(keys.into()),
            seen: 0,
        }
    }

    /// This comes, behind what was seen.
    pub fn shows(&mut self, text: &str) {
        let end = std::time::Instant::now() + crate::PATIENCE;
        loop {
            let all = self.running.out();
            if let Some(at) = all.get(self.seen..).and_then(|new| new.find(text)) {
                self.seen += at + text.len();
                return;
            }
            assert!(
                std::time::Instant::now() < end,
                "no '{text}' behind {}: {all:?}",
                self.seen
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// All that was shown so far.
    #[must_use]
    pub fn all(&self) -> String {
        self.running.out()
    }

    /// Keys.
    pub fn types(&mut self, keys: &str) {
        self.keys
            .as_mut()
            .unwrap()
            .write_all(keys.as_bytes())
            .unwrap();
    }

    /// The client's process.
    #[must_use]
    pub fn client(&self) -> i32 {
        fn below(pid: i32) -> Option<i32> {
            for child in crate::run::children_of(pid) {
                let name = std::fs::read_to_string(format!("/proc/{child}/comm"));
                if name.is_ok_and(|name| name.trim() == "replsock") {
                    return Some(child);
                }
                if let Some(found) = below(child) {
                    return Some(found);
                }
            }
            None
        }
        eventually("the client", || below(self.running.pid()))
    }

    /// The terminal gets another size, as if its window had been pulled.
    pub fn resize(&self, columns: u16, rows: u16) {
        let tty = std::fs::read_link(format!("/proc/{}/fd/0", self.client())).unwrap();
        let done = Run::new("stty")
            .args(["-F", tty.to_str().unwrap()])
            .args(["cols", &columns.to_string(), "rows", &rows.to_string()])
            .finish();
        assert_eq!(done.status, 0, "{}", done.err);
    }

    /// The session is over with this status, and the terminal is as it was.
    pub fn ends(mut self, status: i32) {
        self.shows(&format!("status {status}\r\n"));
        self.shows("icanon");
        let at = self.seen - "icanon".len();
        assert!(
            !self.running.out()[..at].ends_with('-'),
            "the terminal was left raw"
        );
        self.keys = None;
        let _ = self.running.end();
    }
}
