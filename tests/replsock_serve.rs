//! replsock serve: a command on a socket, by pipes and plain text, by our own client, under all that clients do.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs
)]

use kit::{Dir, Finished, Run, Running, eventually, field};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

/// A server, in a directory of its own.
struct Served {
    dir: Dir,
    server: Running,
}

impl Served {
    fn start(options: &[&str], command: &[&str]) -> Served {
        let dir = Dir::new();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let mut server = Run::new(PROGRAM)
            .args(["serve", "s.sock"])
            .args(options)
            .arg("--")
            .args(command)
            .dir(dir.path())
            .start();
        server.event("server-listening");
        Served { dir, server }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s.sock")
    }

    fn plain(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        let patience = Some(kit::PATIENCE);
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        stream
    }

    /// What a script gets for its input.
    fn told(&self, input: &[u8]) -> String {
        let mut stream = self.plain();
        stream.write_all(input).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Our own client, with this on its standard input.
    fn eval(&self, words: &[&str], input: &str) -> Finished {
        let path = self.dir.write("input", input);
        Run::new(PROGRAM)
            .args(["eval", "./s.sock"])
            .args(words)
            .dir(self.dir.path())
            .stdin(File::open(path).unwrap())
            .finish()
    }

    fn children(&self) -> Vec<i32> {
        kit::run::children_of(self.server.pid())
    }
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes()[..3]);
    bytes.extend_from_slice(body);
    bytes
}

/// The frames in what came.
fn frames(mut bytes: &[u8]) -> Vec<(u8, String)> {
    let mut list = Vec::new();
    while let [kind, a, b, c, rest @ ..] = bytes {
        let length = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
        list.push((*kind, String::from_utf8_lossy(&rest[..length]).into_owned()));
        bytes = &rest[length..];
    }
    list
}

#[test]
fn an_answer_comes_however_late() {
    // Edge cases 1 to 3: socat loses it after half a second.
    let served = Served::start(&[], &["sh", "-c", "read a; sleep 2; echo \"got $a\""]);
    assert_eq!(served.told(b"1\n"), "got 1\n");
    let answer = served.eval(&[], "2\n");
    assert_eq!((answer.status, answer.out.as_str()), (0, "got 2\n"));
    let answer = served.eval(&["3"], "");
    assert_eq!((answer.status, answer.out.as_str()), (0, "got 3\n"));
    let path = format!("UNIX:{}", served.socket().display());
    let socat = Run::new("socat")
        .args(["-t9", "-", &path])
        .stdin(File::open(served.dir.write("line", "4\n")).unwrap())
        .finish();
    assert_eq!(socat.out, "got 4\n");
}

#[test]
fn the_commands_end_is_the_clients() {
    let served = Served::start(&[], &["sh"]);
    for (line, status) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill $$", 143),
        ("", 0),
    ] {
        let answer = served.eval(&[], line);
        assert_eq!(answer.status, status, "{line}: {}", answer.err);
    }
    let both = served.eval(&[], "echo out; echo err >&2; exit 3");
    assert_eq!(
        (both.status, both.out.as_str(), both.err.as_str()),
        (3, "out\n", "err\n")
    );
}

#[test]
fn frames_that_come_late_are_frames() {
    let served = Served::start(&[], &["sh", "-c", "read a; echo got $a; exit 3"]);
    let mut stream = served.plain();
    eventually("the command of a silent client", || {
        (served.children().len() == 1).then_some(())
    });
    let first = served.children();
    stream.write_all(&[0]).unwrap();
    stream.write_all(&frame(1, b"{}")).unwrap();
    stream.write_all(&frame(2, b"x\n")).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let list = frames(&all);
    assert_eq!(list[0].0, 1, "{list:?}");
    assert_eq!(
        &list[1..],
        [(2, "got x\n".to_owned()), (7, "\0\u{3}".to_owned())]
    );
    eventually("the end of both", || {
        served.children().is_empty().then_some(())
    });
    assert_eq!(first.len(), 1);
}

#[test]
fn many_at_once_and_the_end_of_all() {
    let mut served = Served::start(&[], &["cat"]);
    let mut streams: Vec<UnixStream> = (0..100).map(|_| served.plain()).collect();
    for (at, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("{at}\n").as_bytes()).unwrap();
    }
    for (at, stream) in streams.iter_mut().enumerate() {
        let mut line = vec![0; at.to_string().len() + 1];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("{at}\n").as_bytes());
    }
    assert_eq!(served.children().len(), 100);
    // One more is told so.
    let refused = served.eval(&[], "x\n");
    assert_eq!(refused.status, 125, "{}", refused.err);
    assert!(refused.err.contains("busy"), "{}", refused.err);
    assert!(served.told(b"x\n").contains("busy"));
    // Edge case 18.
    assert_eq!(served.server.stop(), 0);
    assert!(!served.socket().exists());
    for stream in &mut streams {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
    let line = served.server.event("command-ended");
    assert_eq!(field(&line, "end"), "signal HUP");
}
