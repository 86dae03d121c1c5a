//! replsock serve by pipes: plain text and our own client, under all that clients and commands do.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs
)]

use kit::served::Served;
use kit::{Dir, Run, eventually, field};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

fn serve(options: &[&str], command: &[&str]) -> Served {
    Served::start(PROGRAM, options, command)
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

fn rest_of(mut stream: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

fn gone(pid: i32) {
    eventually(&format!("the end of {pid}"), || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}

/// VmRSS of proc_pid_status(5), in KiB.
fn rss(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.unwrap().split_whitespace().nth(1);
    words.unwrap().parse().unwrap()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not root: another user cannot be had");
    }
    root
}

/// Ours where everybody can run it, and as somebody else.
fn as_nobody(dir: &Dir, words: &[&str]) -> Run {
    let copy = dir.path().join("replsock");
    if !copy.exists() {
        std::fs::copy(PROGRAM, &copy).unwrap();
    }
    Run::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy)
        .args(words)
        .dir(dir.path())
}

// ---- answers and ends ----

#[test]
fn an_answer_comes_however_late() {
    // Edge cases 1 to 3: socat loses it after half a second.
    let served = serve(&[], &["sh", "-c", "read a; sleep 2; echo \"got $a\""]);
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
    // A limit is kept where one is given.
    let answer = served.eval(&["--timeout", "100ms"], "5\n");
    assert_eq!(answer.status, 124, "{}", answer.err);
    assert!(served.told(b"").starts_with("got"));
}

#[test]
fn the_commands_end_is_the_clients() {
    let served = serve(&[], &["sh"]);
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
    // Bytes are bytes.
    let cat = serve(&[], &["cat"]);
    let odd: Vec<u8> = (1..=255u8).chain([0]).cycle().take(300_000).collect();
    std::fs::write(cat.dir.path().join("odd"), &odd).unwrap();
    let line = format!("'{PROGRAM}' eval ./s.sock < odd > back && cmp odd back");
    let same = Run::new("sh")
        .args(["-c", &line])
        .dir(cat.dir.path())
        .finish();
    assert_eq!(same.status, 0, "{}{}", same.out, same.err);
    assert_eq!(cat.told(&odd), String::from_utf8_lossy(&odd));
    // Edge case 4.
    let line = format!("yes | '{PROGRAM}' eval ./s.sock | head -1; echo ${{PIPESTATUS[1]}}");
    let cut = Run::new("bash")
        .args(["-c", &line])
        .dir(cat.dir.path())
        .finish();
    assert_eq!(cut.out, "y\n141\n", "{}", cut.err);
}

#[test]
fn a_command_that_is_not_there() {
    let dir = Served::place();
    let refused = |words: &[&str]| Run::new(PROGRAM).args(words).dir(dir.path()).finish();
    // Before anybody came.
    let missing = refused(&["serve", "s.sock", "--", "no-such-command"]);
    assert_eq!(missing.status, 127, "{}", missing.err);
    let file = dir.write("plain", "text");
    let file = file.to_str().unwrap();
    assert_eq!(refused(&["serve", "s.sock", "--", file]).status, 126);
    assert_eq!(refused(&["serve", "s.sock"]).status, 2);
    assert!(!dir.path().join("s.sock").exists());
    // Edge case 44: and when it has gone since.
    let script = dir.write("script", "#!/bin/sh\necho ran\n");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let served = Served::start_in(dir, PROGRAM, &[], &["./script"]);
    assert_eq!(served.told(b""), "ran\n");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o644)).unwrap();
    let answer = served.eval(&[], "");
    if !is_root() || answer.status != 0 {
        assert_eq!(answer.status, 126, "{}", answer.err);
    }
    std::fs::remove_file(&script).unwrap();
    let answer = served.eval(&[], "");
    assert_eq!(answer.status, 127, "{}", answer.err);
    assert!(answer.err.contains("no such file"), "{}", answer.err);
    assert!(served.told(b"").contains("no such file"));
}

#[test]
fn programs_with_a_console() {
    let sqlite = serve(&[], &["sqlite3", "shop.db"]);
    let made = "create table t(a); insert into t values(40),(2); select sum(a) from t;";
    assert_eq!(sqlite.eval(&[made], "").out, "42\n");
    assert_eq!(sqlite.told(b"select count(*) from t;"), "2\n");
    let wrong = sqlite.eval(&["select nothing from nowhere;"], "");
    assert_eq!(wrong.status, 1);
    assert!(wrong.err.contains("nowhere"), "{}", wrong.err);
    // Edge case 2: the last line is not whole.
    let python = serve(&[], &["python3", "-q", "-i"]);
    let answer = python.eval(&[], "print(40 + 2)");
    assert_eq!((answer.status, answer.out.as_str()), (0, "42\n"));
    assert_eq!(python.eval(&[], "import sys; sys.exit(7)\n").status, 7);
    let irb = serve(&[], &["irb", "-f", "--noprompt", "--noecho"]);
    let answer = irb.eval(&[], "puts 40 + 2\n");
    assert!(answer.out.contains("42"), "{} {}", answer.out, answer.err);
    let port = kit::free_port().to_string();
    let redis = Run::new("redis-server")
        .args(["--port", &port, "--save", ""])
        .dir(sqlite.dir.path())
        .start();
    let client = serve(&[], &["redis-cli", "-p", &port]);
    eventually("redis", || {
        client.told(b"ping\n").contains("PONG").then_some(())
    });
    assert_eq!(client.told(b"set a 42\nget a\n"), "OK\n42\n");
    drop(redis);
}

#[test]
fn a_grandchild_that_holds_the_output_holds_nobody() {
    // Edge case 7.
    let served = serve(
        &[],
        &["sh", "-c", "echo said; sleep 1000 & echo $! > pid; exit 4"],
    );
    let answer = served.eval(&[], "");
    assert_eq!((answer.status, answer.out.as_str()), (4, "said\n"));
    assert_eq!(served.told(b""), "said\n");
    // And one that goes on writing.
    let served = serve(&[], &["sh", "-c", "yes & echo $! > pid; sleep 0.1; exit 4"]);
    assert_eq!(served.eval(&[], "").status, 4);
}

#[test]
fn a_slow_reader_gets_every_byte() {
    // Edge case 8.
    let served = serve(
        &[],
        &["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; exit 5"],
    );
    let stream = served.plain();
    eventually("the end of the command", || {
        (served
            .server
            .err()
            .iter()
            .any(|line| line.contains("client-connected"))
            && served.children().len() <= 1)
            .then_some(())
    });
    // Longer than what is granted to those who left a pipe open.
    let since = Instant::now();
    eventually("a while in which nothing is read", || {
        (since.elapsed() > Duration::from_secs(1)).then_some(())
    });
    assert_eq!(rest_of(&stream).len(), 1_000_000);
}

#[test]
fn our_own_directory_is_made_and_no_other() {
    let dir = Dir::new();
    let own = dir.path().join("run/replsock");
    let run = |socket: &Path| {
        Run::new(PROGRAM)
            .arg("serve")
            .arg(socket)
            .args(["--", "cat"])
            .env("REPLSOCK_DIR", &own)
    };
    let mut server = run(&own.join("db.sock")).start();
    server.event("server-listening");
    let mode = std::fs::metadata(&own).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    server.stop();
    let refused = run(&dir.path().join("other/db.sock")).finish();
    assert_eq!(refused.status, 127, "{}", refused.err);
    assert!(!dir.path().join("other").exists());
}

// ---- what clients do ----

#[test]
fn frames_that_come_late_are_frames() {
    let served = serve(&[], &["sh", "-c", "read a; echo got $a; exit 3"]);
    let mut stream = served.plain();
    eventually("the command of a silent client", || {
        (served.children().len() == 1).then_some(())
    });
    stream.write_all(&[0]).unwrap();
    stream.write_all(&frame(1, b"{}")).unwrap();
    stream.write_all(&frame(2, b"x\n")).unwrap();
    let list = frames(&rest_of(&stream));
    assert_eq!(list[0].0, 1, "{list:?}");
    let wanted = [(2, "got x\n".to_owned()), (7, "\0\u{3}".to_owned())];
    assert_eq!(&list[1..], wanted);
    eventually("the end of both", || {
        served.children().is_empty().then_some(())
    });
    // One that was greeted already has to come again.
    let served = serve(&[], &["sh", "-c", "echo welcome; read a; echo got $a"]);
    let mut stream = served.plain();
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&[0]).unwrap();
    assert_eq!(rest_of(&stream), b"");
}

#[test]
fn our_client_comes_again_when_it_was_taken_for_another() {
    let dir = Served::place();
    let listener = UnixListener::bind(dir.path().join("s.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut late, _) = listener.accept().unwrap();
        late.write_all(b"welcome\n").unwrap();
        drop(late);
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        let mut answer = frame(1, br#"{"version":1,"mode":"serve"}"#);
        answer.extend(frame(2, b"hello\n"));
        answer.extend(frame(7, &[0, 6]));
        stream.write_all(&answer).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        first[0]
    });
    let answer = Run::new(PROGRAM)
        .args(["eval", "./s.sock", "x"])
        .dir(dir.path())
        .finish();
    assert_eq!(
        (answer.status, answer.out.as_str()),
        (6, "hello\n"),
        "{}",
        answer.err
    );
    assert_eq!(server.join().unwrap(), 0);
}

#[test]
fn what_is_no_frame_ends_the_connection() {
    // Edge case 48.
    let served = serve(&[], &["cat"]);
    for bytes in [
        &[0, 99, 1, 2][..],
        &[0, 1, 255, 255, 255],
        &[0, 1, 2, 0, 0, b'{', b'['],
        b"\0\0",
    ] {
        let mut stream = served.plain();
        stream.write_all(bytes).unwrap();
        let list = frames(&rest_of(&stream));
        let (kind, text) = list.last().unwrap();
        assert_eq!((*kind, text.as_bytes()[0]), (8, 125), "{bytes:?}: {list:?}");
    }
    assert_eq!(served.told(b"alive"), "alive");
    // Whoever looks for an agent starts nothing, and types nothing.
    let place = served.dir.path().join("sockets/shop");
    std::fs::create_dir_all(&place).unwrap();
    let mut here = Run::new(PROGRAM)
        .args(["serve", "1.sock", "--", "tee", "typed"])
        .dir(&place)
        .start();
    here.event("server-listening");
    let list = Run::new(PROGRAM)
        .args(["ls", "shop"])
        .env("REPLSOCK_DIR", served.dir.path().join("sockets"))
        .finish();
    assert!(list.out.contains("ok"), "{}{}", list.out, list.err);
    let stack = Run::new(PROGRAM)
        .args(["prof", "--top", "./1.sock"])
        .dir(&place)
        .finish();
    assert_eq!(stack.status, 125, "{}", stack.err);
    assert!(!place.join("typed").exists());
}

#[test]
fn a_client_that_is_killed_leaves_no_command() {
    // Edge case 5: idle, busy, and one that does not listen to a hang-up.
    let served = serve(&[], &["sh", "-c", "eval \"$(cat go)\""]);
    for work in [
        "cat",
        "while :; do :; done",
        "trap '' HUP; while :; do :; done",
    ] {
        served.dir.write("go", work);
        let mut client = served.client(&[]).stdin(kit_pipe()).start();
        let child = eventually("its command", || served.children().first().copied());
        client.signal(Signal::SIGKILL);
        let _ = client.end();
        gone(child);
    }
    served.dir.write("go", "cat");
    assert_eq!(served.told(b"alive"), "alive");
}

/// An input that never comes and never ends.
fn kit_pipe() -> File {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    std::mem::forget(writer);
    reader.into()
}

#[test]
fn the_server_is_killed() {
    // Edge case 6, and 22: nothing is left behind, and the client says so.
    let mut served = serve(&[], &["sh", "-c", "trap '' TERM; while :; do :; done"]);
    let mut client = served.client(&[]).stdin(kit_pipe()).start();
    let child = eventually("its command", || served.children().first().copied());
    served.server.signal(Signal::SIGKILL);
    let _ = served.server.end();
    gone(child);
    assert_eq!(client.end(), 125);
    // Edge case 28: what it left there is replaced.
    let again = Served::start_in(served.dir, PROGRAM, &[], &["cat"]);
    assert_eq!(again.told(b"again"), "again");
    // Edge case 27: and a live one never.
    let second = Run::new(PROGRAM)
        .args(["serve", "s.sock", "--", "cat"])
        .dir(again.dir.path())
        .finish();
    assert_eq!(second.status, 125);
    let holder = format!("in use by pid {}", again.server.pid());
    assert!(second.err.contains(&holder), "{}", second.err);
    assert_eq!(again.told(b"first"), "first");
}

#[test]
fn floods_and_those_who_never_read_hurt_nobody_else() {
    let served = serve(
        &[],
        &[
            "sh",
            "-c",
            "read how; case $how in flood) sleep 1000;; talk) yes;; *) echo $how;; esac",
        ],
    );
    assert_eq!(served.told(b"warm\n"), "warm\n");
    let before = rss(served.server.pid());
    // Edge cases 15 to 17: many that send without end to what does not read, many that never read.
    let mut floods = Vec::new();
    let mut mutes = Vec::new();
    for _ in 0..8 {
        let mut flood = served.plain();
        flood.write_all(b"flood\n").unwrap();
        flood.set_nonblocking(true).unwrap();
        floods.push(flood);
        let mut mute = served.plain();
        mute.write_all(b"talk\n").unwrap();
        mutes.push(mute);
    }
    let chunk = vec![b'x'; 1 << 20];
    let mut sent = 0;
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        for flood in &mut floods {
            sent += flood.write(&chunk).unwrap_or(0);
        }
        assert_eq!(served.told(b"other\n"), "other\n");
    }
    assert!(sent > 1 << 20, "{sent}");
    // 64 KiB and a read of 256 KiB for each of them, and no more.
    let grown = rss(served.server.pid()) - before;
    assert!(grown < 16 * 1024, "{grown} KiB more");
    // Whoever reads again gets the rest.
    let mut line = [0; 64];
    mutes[0].read_exact(&mut line).unwrap();
    assert_eq!(&line[..4], b"y\ny\n");
    drop((floods, mutes));
    eventually("the end of all", || {
        served.children().is_empty().then_some(())
    });
}

#[test]
fn many_at_once_and_the_end_of_all() {
    let mut served = serve(&[], &["cat"]);
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
    // Edge case 46: one more is told so.
    let refused = served.eval(&[], "x\n");
    assert_eq!(refused.status, 125, "{}", refused.err);
    assert!(refused.err.contains("busy"), "{}", refused.err);
    assert!(served.told(b"x\n").contains("busy"));
    // Edge case 18.
    assert_eq!(served.server.stop(), 0);
    assert!(!served.socket().exists());
    for stream in &streams {
        assert!(rest_of(stream).is_empty());
    }
    let line = served.server.event("command-ended");
    assert_eq!(field(&line, "end"), "signal HUP");
}

#[test]
fn without_descriptors_those_who_are_there_stay() {
    // Edge case 47.
    let dir = Served::place();
    let mut server = Run::new("prlimit")
        .args(["--nofile=30:30", PROGRAM, "serve", "s.sock", "--", "cat"])
        .dir(dir.path())
        .start();
    server.event("server-listening");
    let connect = || {
        let stream = UnixStream::connect(dir.path().join("s.sock")).unwrap();
        stream.set_read_timeout(Some(kit::PATIENCE)).unwrap();
        stream
    };
    let mut first = connect();
    first.write_all(b"1").unwrap();
    let mut byte = [0; 1];
    first.read_exact(&mut byte).unwrap();
    let mut others: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    for other in &mut others {
        let _ = other.write_all(b"2");
    }
    server.event("accept-paused");
    first.write_all(b"3").unwrap();
    first.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"3");
    drop(others);
    eventually("room", || {
        let mut again = connect();
        again.write_all(b"4").ok()?;
        let mut byte = [0; 1];
        again.read_exact(&mut byte).ok()?;
        (&byte == b"4").then_some(())
    });
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_client_in_which_nothing_moves_is_left() {
    // Edge case 45.
    let mut served = serve(&["--idle", "300ms"], &["cat"]);
    let silent = served.plain();
    assert_eq!(rest_of(&silent), b"");
    let mut client = served.client(&[]).stdin(kit_pipe()).start();
    assert_eq!(client.end(), 124, "{:?}", client.err());
    served.server.event("client-left");
    eventually("the end of both", || {
        served.children().is_empty().then_some(())
    });
}

#[test]
fn signals_reach_the_command_and_the_third_control_c_ends() {
    // Edge case 21.
    let served = serve(
        &[],
        &[
            "sh",
            "-c",
            "trap 'echo heard' INT; echo ready; while :; do sleep 0.05; done",
        ],
    );
    let mut client = served.client(&[]).stdin(kit_pipe()).start();
    client.out_line("ready", |line| line == "ready");
    client.signal(Signal::SIGINT);
    client.out_line("heard", |line| line == "heard");
    client.signal(Signal::SIGINT);
    client.out_line("heard again", |line| line == "heard");
    client.signal(Signal::SIGINT);
    assert_eq!(client.end(), 130);
    let mut client = served.client(&[]).stdin(kit_pipe()).start();
    client.out_line("ready", |line| line == "ready");
    assert_eq!(client.stop(), 143);
    eventually("the end of both", || {
        served.children().is_empty().then_some(())
    });
}

// ---- who may come in ----

#[test]
fn others_are_let_in_only_by_allow() {
    if !is_root() {
        return;
    }
    // Edge case 24: the directory, the socket's mode, and who is at the other end.
    let open = |options: &[&str]| {
        let served = serve(options, &["cat"]);
        let closed = as_nobody(&served.dir, &["eval", "./s.sock", "hello"]);
        assert_ne!(closed.finish().status, 0);
        std::fs::set_permissions(served.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        served
    };
    let mode = |served: &Served| {
        let found = std::fs::metadata(served.socket()).unwrap();
        found.permissions().mode() & 0o777
    };
    let mut served = open(&[]);
    assert_eq!(mode(&served), 0o600);
    let ask = |served: &Served| as_nobody(&served.dir, &["eval", "./s.sock", "hello"]).finish();
    let refused = ask(&served);
    assert_eq!(refused.status, 126, "{}", refused.err);
    assert!(refused.err.contains("belongs to root"), "{}", refused.err);
    // Somebody has opened it by hand.
    std::fs::set_permissions(served.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    let refused = ask(&served);
    assert_eq!(refused.status, 126, "{}", refused.err);
    assert!(refused.err.contains("--allow"), "{}", refused.err);
    let line = served.server.event("client-refused");
    assert_eq!(field(&line, "uid"), "65534");
    assert!(served.children().is_empty());
    for (who, rights) in [("65534", 0o666), ("nobody", 0o666), ("@65534", 0o660)] {
        let mut served = open(&["--allow", who]);
        assert_eq!(mode(&served), rights, "{who}");
        let answer = ask(&served);
        assert_eq!(
            (answer.status, answer.out.as_str()),
            (0, "hello\n"),
            "{who}: {}",
            answer.err
        );
        let line = served.server.event("client-connected");
        assert_eq!(field(&line, "uid"), "65534");
    }
    let wrong = Run::new(PROGRAM)
        .args([
            "serve",
            "x.sock",
            "--allow",
            "nobody-of-that-name",
            "--",
            "cat",
        ])
        .finish();
    assert_eq!(wrong.status, 2, "{}", wrong.err);
}

#[test]
fn a_supplementary_group_is_let_in() {
    if !is_root() {
        return;
    }
    let served = serve(&["--allow", "1", "--allow", "@54321"], &["cat"]);
    std::fs::set_permissions(served.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = served.dir.path().join("replsock");
    std::fs::copy(PROGRAM, &copy).unwrap();
    for (groups, status) in [("54321", 0), ("54322", 126)] {
        let answer = Run::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                &format!("--groups={groups}"),
            ])
            .arg(&copy)
            .args(["eval", "./s.sock", "hello"])
            .dir(served.dir.path())
            .finish();
        assert_eq!(answer.status, status, "{groups}: {}", answer.err);
    }
}

#[test]
fn another_users_server_is_taken_where_only_he_can_be() {
    if !is_root() {
        return;
    }
    // Nobody serves, daemon (1) comes: in nobody's own directory, and then in one for all.
    let dir = Dir::new();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let own = dir.path().join("own");
    let all = dir.path().join("all");
    for (place, mode) in [(&own, 0o755), (&all, 0o1777)] {
        std::fs::create_dir(place).unwrap();
        std::fs::set_permissions(place, PermissionsExt::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::chown(&own, Some(65534), Some(65534)).unwrap();
    for (place, status) in [(&own, 0), (&all, 126)] {
        let path = place.join("s.sock");
        let path = path.to_str().unwrap();
        let mut server = as_nobody(&dir, &["serve", path, "--allow", "1", "--", "cat"]).start();
        server.event("server-listening");
        let answer = Run::new("setpriv")
            .args(["--reuid=1", "--regid=1", "--clear-groups"])
            .arg(dir.path().join("replsock"))
            .args(["eval", path, "hello"])
            .finish();
        assert_eq!(answer.status, status, "{path}: {}", answer.err);
        assert_eq!(server.stop(), 0);
    }
}

#[test]
fn loopback_wants_the_token() {
    let dir = Served::place();
    let port = kit::free_port().to_string();
    let served = Served::start_in(
        dir,
        PROGRAM,
        &["--tcp", &port, "--token-file", "token"],
        &["cat"],
    );
    let token = served.dir.path().join("token");
    assert_eq!(
        token.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    let ask = |file: &str| {
        Run::new(PROGRAM)
            .args([
                "eval",
                &format!("tcp:{port}"),
                "--token-file",
                file,
                "hello",
            ])
            .dir(served.dir.path())
            .finish()
    };
    let answer = ask("token");
    assert_eq!(
        (answer.status, answer.out.as_str()),
        (0, "hello\n"),
        "{}",
        answer.err
    );
    let other = served.dir.write("other", &"0".repeat(64));
    std::fs::set_permissions(&other, PermissionsExt::from_mode(0o600)).unwrap();
    let refused = ask("other");
    assert_eq!(refused.status, 126, "{}", refused.err);
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(ask("token").status, 126);
    // Plain text has no token.
    let mut plain = std::net::TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    plain.write_all(b"hello\n").unwrap();
    let mut said = String::new();
    plain.read_to_string(&mut said).unwrap();
    assert!(said.contains("token"), "{said}");
    // And who says nothing starts nothing.
    let silent = std::net::TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    silent.set_read_timeout(Some(kit::PATIENCE)).unwrap();
    let mut none = Vec::new();
    assert_eq!((&silent).read_to_end(&mut none).unwrap(), 0);
    let elsewhere = Run::new(PROGRAM)
        .args([
            "serve",
            "t.sock",
            "--tcp",
            "0.0.0.0:1",
            "--token-file",
            "token",
            "--",
            "cat",
        ])
        .dir(served.dir.path())
        .finish();
    assert_eq!(elsewhere.status, 2);
    assert!(elsewhere.err.contains("ssh -L"), "{}", elsewhere.err);
    let without = Run::new(PROGRAM)
        .args(["serve", "t.sock", "--tcp", "1", "--", "cat"])
        .finish();
    assert_eq!(without.status, 2, "{}", without.err);
}

#[test]
fn places_that_others_could_use_are_refused() {
    let dir = Served::place();
    let start = |path: &str| {
        Run::new(PROGRAM)
            .args(["serve", path, "--", "cat"])
            .dir(dir.path())
            .finish()
    };
    std::fs::create_dir(dir.path().join("open")).unwrap();
    std::fs::set_permissions(dir.path().join("open"), PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(start("open/s.sock").status, 126);
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    assert_eq!(start("link/s.sock").status, 126);
    let file = dir.write("file", "precious");
    assert_eq!(start("file").status, 125);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    // Edge case 29.
    let long = dir.path().join("x".repeat(70)).join("y".repeat(70));
    std::fs::create_dir_all(&long).unwrap();
    let path = long.join("s.sock");
    let path = path.to_str().unwrap();
    let mut server = Run::new(PROGRAM).args(["serve", path, "--", "cat"]).start();
    server.event("server-listening");
    let answer = Run::new(PROGRAM).args(["eval", path, "far"]).finish();
    assert_eq!(
        (answer.status, answer.out.as_str()),
        (0, "far\n"),
        "{}",
        answer.err
    );
    assert_eq!(server.stop(), 0);
    assert!(!Path::new(path).exists());
}

#[test]
fn a_socket_that_is_removed_comes_back_and_a_strangers_is_left_alone() {
    // Edge cases 19 and 20.
    let mut served = serve(&[], &["cat"]);
    std::fs::remove_file(served.socket()).unwrap();
    served.server.event("socket-renewed");
    assert_eq!(served.told(b"again"), "again");
    std::fs::remove_file(served.socket()).unwrap();
    let stranger = UnixListener::bind(served.socket()).unwrap();
    served.server.event("socket-lost");
    assert_eq!(served.server.stop(), 0);
    assert!(served.socket().exists());
    drop(stranger);
}

#[test]
fn what_a_session_showed_is_kept() {
    let dir = Served::place();
    std::fs::create_dir(dir.path().join("casts")).unwrap();
    let mut served = Served::start_in(
        dir,
        PROGRAM,
        &["--record", "casts"],
        &[
            "sh",
            "-c",
            "printf 'gr\\303'; sleep 0.2; printf '\\274n \"q\" \\377\\n'; cat",
        ],
    );
    let answer = served.eval(&[], "typed\n");
    assert_eq!(answer.status, 0);
    served.server.event("client-left");
    assert_eq!(served.server.stop(), 0);
    let files: Vec<_> = std::fs::read_dir(served.dir.path().join("casts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [file] = files.as_slice() else {
        panic!("{files:?}");
    };
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let check = "import json,sys\n\
        lines = [json.loads(line) for line in open(sys.argv[1])]\n\
        head, events = lines[0], lines[1:]\n\
        assert head['version'] == 2 and head['width'] == 80 and head['height'] == 24, head\n\
        times = [e[0] for e in events]\n\
        assert times == sorted(times) and all(e[1] == 'o' for e in events), events\n\
        print(''.join(e[2] for e in events), end='')\n";
    let parsed = Run::new("python3").args(["-c", check]).arg(file).finish();
    assert_eq!(parsed.status, 0, "{}", parsed.err);
    assert_eq!(parsed.out, "grün \"q\" \u{fffd}\ntyped\n");
    let missing = Run::new(PROGRAM)
        .args(["serve", "t.sock", "--record", "nowhere", "--", "cat"])
        .dir(served.dir.path())
        .finish();
    assert_ne!(missing.status, 0);
    assert!(missing.err.contains("nowhere"), "{}", missing.err);
}

#[test]
fn a_recording_that_cannot_be_written_ends_no_session() {
    if !is_root() {
        return;
    }
    let disk = kit::mount::Mounted::tmpfs(64 << 10);
    std::fs::set_permissions(disk.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut served = serve(&["--record", disk.path().to_str().unwrap()], &["cat"]);
    let much = "x".repeat(300_000);
    assert_eq!(served.told(much.as_bytes()).len(), much.len());
    let line = served.server.event("record-failed");
    assert!(line.contains("no space left"), "{line}");
    assert_eq!(served.told(b"alive"), "alive");
    assert_eq!(served.server.stop(), 0);
}

#[test]
fn a_stopped_client_is_patiently_waited_for() {
    let served = serve(&[], &["sh", "-c", "head -c 3000000 /dev/zero; exit 9"]);
    let mut client = served
        .client(&[])
        .stdin(kit_pipe())
        .stdout(File::create(served.dir.path().join("out")).unwrap())
        .start();
    client.signal(Signal::SIGSTOP);
    assert!(served.told(b"").len() >= 3_000_000);
    kill(Pid::from_raw(client.pid()), Signal::SIGCONT).unwrap();
    assert_eq!(client.end(), 9);
    assert_eq!(
        served.dir.path().join("out").metadata().unwrap().len(),
        3_000_000
    );
}

// The door is shut for a moment when nobody can be let in, and it may take more than one try to open it.
#[test]
fn a_door_that_cannot_be_waited_for_is_tried_again() {
    use kit::faults::{Fault, Faults};
    use nix::errno::Errno::ENOMEM;
    let (dir, faults) = (kit::Dir::new(), Faults::of(&["accept4", "epoll_ctl"]));
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut server = faults
        .run(PROGRAM)
        .args(["serve", "s.sock", "--", "cat"])
        .dir(dir.path())
        .start();
    server.event("server-listening");
    let who = format!("pid:{}", server.pid());
    faults.fail(&[Fault::each("accept4", ENOMEM, &who)]);
    let input = std::fs::File::open(dir.write("input", "a line\n")).unwrap();
    let mut client = Run::new(PROGRAM)
        .arg("./s.sock")
        .dir(dir.path())
        .stdin(input)
        .start();
    server.event("accept-paused");
    faults.fail(&[
        Fault::each("accept4", ENOMEM, &who),
        Fault::each("epoll_ctl", ENOMEM, &who),
    ]);
    eventually("tries to wait for it", || {
        (faults.hits() >= 2).then_some(())
    });
    faults.heal();
    assert_eq!(client.end(), 0, "{:?}", client.err());
    assert_eq!(client.out_to_its_end(), "a line\n");
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_session_that_epoll_refuses_is_told_so_and_closed() {
    use kit::faults::{Fault, Faults};
    use nix::errno::Errno::{ENOMEM, ENOSPC};
    let (dir, faults) = (kit::Dir::new(), Faults::of(&["epoll_ctl"]));
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut server = faults
        .run(PROGRAM)
        .args(["serve", "s.sock", "--", "cat"])
        .dir(dir.path())
        .start();
    server.event("server-listening");
    let who = format!("pid:{}", server.pid());
    let input = dir.write("input", "a line\n");
    let client = || {
        let input = std::fs::File::open(&input).unwrap();
        let run = Run::new(PROGRAM).arg("./s.sock").dir(dir.path());
        run.stdin(input).finish()
    };
    for error in [ENOSPC, ENOMEM] {
        faults.fail(&[Fault::each("epoll_ctl", error, &who)]);
        // In frames, in plain text, and before it has said anything.
        let refused = client();
        assert_eq!(refused.status, 125, "{}", refused.err);
        assert!(refused.err.contains("epoll watches"), "{}", refused.err);
        for word in ["a line\n", ""] {
            let mut plain = UnixStream::connect(dir.path().join("s.sock")).unwrap();
            plain.write_all(word.as_bytes()).unwrap();
            plain.set_read_timeout(Some(kit::PATIENCE)).unwrap();
            let mut all = String::new();
            plain.read_to_string(&mut all).unwrap();
            assert!(all.contains("epoll watches"), "{word:?}: {all}");
        }
        let line = server.event("client-refused");
        assert!(line.contains("status=125"), "{line}");
        faults.heal();
        let served = client();
        assert_eq!(
            (served.status, &*served.out),
            (0, "a line\n"),
            "{}",
            served.err
        );
    }
    // Whichever of a session's descriptors it is, the session ends: with what it asked for, or with the reason.
    let some = Fault {
        percent: 30,
        ..Fault::each("epoll_ctl", ENOSPC, &who)
    };
    faults.fail(&[some]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let served = client();
        match served.status {
            0 => assert_eq!(served.out, "a line\n"),
            status => assert_eq!(status, 125, "{}", served.err),
        }
        seen.insert(served.status);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    faults.heal();
    eventually("no command is left", || {
        kit::run::children_of(server.pid()).is_empty().then_some(())
    });
    assert_eq!(server.stop(), 0);
}
