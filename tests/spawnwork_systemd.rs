//! spawnwork under a supervisor that speaks systemd's protocols, and as the one that speaks them to
//! its workers: what is said upwards, byte by byte; sockets that outlive the master; the watchdogs.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, PATIENCE, Run, Running, app, eventually, field, free_port, http};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    bind, recvmsg, sendmsg, socket,
};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

// ---- help of our own ----

#[derive(Default)]
struct Heard {
    messages: Vec<String>,
    store: BTreeMap<String, OwnedFd>,
}

/// As much of a supervisor as is needed: it writes down what it is told, keeps sockets, and answers
/// barriers.
struct Supervisor {
    dir: Dir,
    name: String,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    seen: usize,
}

impl Supervisor {
    /// Behind a path, or an abstract name.
    fn new(how: &str) -> Supervisor {
        let dir = Dir::new();
        let fd = socket(
            AddressFamily::Unix,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let path = dir.path().join("notify");
        let name = if how == "abstract" {
            let name = text(&path);
            bind(
                fd.as_raw_fd(),
                &UnixAddr::new_abstract(name.as_bytes()).unwrap(),
            )
            .unwrap();
            format!("@{name}")
        } else {
            bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
            text(&path)
        };
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let theirs = Arc::clone(&heard);
        std::thread::spawn(move || {
            loop {
                let (message, mut fds) = receive(&fd);
                let mut heard = theirs.0.lock().unwrap();
                let fdname = message
                    .lines()
                    .find_map(|line| line.strip_prefix("FDNAME="))
                    .map(str::to_owned);
                if message.starts_with("FDSTORE=1\n") {
                    // As systemd: the same socket is not kept twice.
                    let fd = fds.pop().expect("a socket with FDSTORE=1");
                    heard.store.entry(fdname.unwrap()).or_insert(fd);
                } else if message.starts_with("FDSTOREREMOVE=1\n") {
                    heard.store.remove(&fdname.unwrap());
                }
                // A barrier is passed when its descriptor is closed, which is now.
                drop(fds);
                heard.messages.push(message);
                theirs.1.notify_all();
            }
        });
        Supervisor {
            dir,
            name,
            heard,
            seen: 0,
        }
    }

    /// The next message that is `wanted`; those before it are passed over.
    fn until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        let heard = Arc::clone(&self.heard);
        let mut state = heard.0.lock().unwrap();
        loop {
            while let Some(message) = state.messages.get(self.seen) {
                self.seen += 1;
                if wanted(message) {
                    return message.clone();
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let all = state.messages.clone();
            assert!(!left.is_zero(), "no {what} in {all:#?}");
            state = heard.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// The next message, but for a mere request for more time.
    fn next(&mut self) -> String {
        self.until("message", |message| {
            !message.starts_with("EXTEND_TIMEOUT_USEC=")
        })
    }

    fn messages(&self) -> Vec<String> {
        self.heard.0.lock().unwrap().messages.clone()
    }

    fn names(&self) -> Vec<String> {
        self.heard.0.lock().unwrap().store.keys().cloned().collect()
    }

    /// A socket that it has kept from earlier on.
    fn keeps(&self, name: &str, fd: OwnedFd) {
        let mut heard = self.heard.0.lock().unwrap();
        heard.store.insert(name.to_owned(), fd);
    }

    /// spawnwork as its service.
    fn run(&self, args: &[&str]) -> Run {
        Run::new(SPAWNWORK)
            .args(args)
            .env("NOTIFY_SOCKET", &self.name)
            .env("FDSTORE", "16")
    }

    /// The same, with all that it has kept.
    fn again(&self, listen_pid: &str, args: &[&str]) -> Running {
        let path = self.dir.path().join("give");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let running = Run::new("python3")
            .args([text(app("plain_store.py")), text(&path)])
            .args([listen_pid, SPAWNWORK])
            .args(args)
            .env("NOTIFY_SOCKET", &self.name)
            .env("FDSTORE", "16")
            .start();
        let (stream, _) = listener.accept().unwrap();
        let heard = self.heard.0.lock().unwrap();
        let names: Vec<&str> = heard.store.keys().map(String::as_str).collect();
        let fds: Vec<i32> = heard.store.values().map(AsRawFd::as_raw_fd).collect();
        sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(names.join(":").as_bytes())],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        running
    }
}

fn receive(fd: &OwnedFd) -> (String, Vec<OwnedFd>) {
    let mut buffer = [0u8; 8192];
    let mut space = nix::cmsg_space!([i32; 16]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg::<()>(
        fd.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    let mut fds = Vec::new();
    for control in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(list) = control {
            fds.extend(list.into_iter().filter_map(common::sys::adopt));
        }
    }
    let count = received.bytes;
    (String::from_utf8(buffer[..count].to_vec()).unwrap(), fds)
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

fn number(line: &str, key: &str) -> i32 {
    field(line, key).parse().unwrap()
}

fn gone(pid: i32) {
    eventually(&format!("the end of {pid}"), || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_err().then_some(())
    });
}

fn monotonic() -> u128 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_micros()
}

/// Time in which nothing is to happen.
fn passes(length: Duration) {
    let end = Instant::now() + length;
    eventually("time", || (Instant::now() >= end).then_some(()));
}

/// RELOADING=1 with the time in its place.
fn without_time(message: &str, from: u128) -> String {
    let lines = message.lines().map(|line| {
        let Some(time) = line.strip_prefix("MONOTONIC_USEC=") else {
            return line.to_owned();
        };
        let time: u128 = time.parse().unwrap();
        assert!((from..=monotonic()).contains(&time), "{time}");
        "MONOTONIC_USEC=now".to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A worker that is ready after a moment: `what` it does is in a file that each start reads.
fn brief<'a>(options: &[&'a str], file: &'a str) -> Vec<&'a str> {
    let head = ["--ready", "alive:100ms", "--probation", "100ms"];
    let mut list = head.to_vec();
    list.extend(options);
    list.extend(["--", "sh", file]);
    list
}

fn answer(mut client: TcpStream) -> String {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    reply
}

fn port_of(line: &str) -> u16 {
    let address = field(line, "address");
    address.rsplit(':').next().unwrap().parse().unwrap()
}

/// KILL, and the same for everything that ran in it, as systemd does before it starts a unit again.
fn perish(master: &mut Running) {
    let workers = kit::run::children_of(master.pid());
    master.signal(Signal::SIGKILL);
    assert_eq!(master.end(), 137);
    for worker in workers {
        let _ = kill(Pid::from_raw(-worker), Signal::SIGKILL);
        gone(worker);
    }
}

// ---- upwards ----

#[test]
fn a_life_told_byte_by_byte() {
    for how in ["path", "abstract"] {
        let mut supervisor = Supervisor::new(how);
        let dir = Dir::new();
        let file = text(dir.write("app.sh", "exec sleep 1000"));
        let options = ["-n", "2", "--start-parallel", "1"];
        let mut master = supervisor.run(&brief(&options, &file)).start();
        assert_eq!(
            supervisor.next(),
            "STATUS=starting generation 1, 0 of 2 workers ready\nEXTEND_TIMEOUT_USEC=30000000"
        );
        for expected in [
            "STATUS=starting generation 1, 1 of 2 workers ready",
            "READY=1\nSTATUS=generation 1, 2 of 2 workers ready",
        ] {
            assert_eq!(supervisor.next(), expected);
        }

        let from = monotonic();
        master.signal(Signal::SIGHUP);
        for expected in [
            "RELOADING=1\nMONOTONIC_USEC=now\nSTATUS=reloading to generation 2, 0 of 2 ready; \
             generation 1, 2 of 2 workers ready\nEXTEND_TIMEOUT_USEC=30000000",
            "STATUS=reloading to generation 2, 1 of 2 ready; generation 1, 2 of 2 workers ready",
            "STATUS=reloading to generation 2, 2 of 2 ready; generation 1, 2 of 2 workers ready",
            "READY=1\nSTATUS=generation 2, 2 of 2 workers ready; reload committed",
        ] {
            assert_eq!(without_time(&supervisor.next(), from), expected);
        }

        dir.write("app.sh", "exit 3");
        let from = monotonic();
        master.signal(Signal::SIGUSR2);
        for expected in [
            "RELOADING=1\nMONOTONIC_USEC=now\nSTATUS=reloading to generation 3, 0 of 2 ready; \
             generation 2, 2 of 2 workers ready\nEXTEND_TIMEOUT_USEC=30000000",
            "READY=1\nSTATUS=generation 2, 2 of 2 workers ready; \
             reload to generation 3 failed, frozen",
        ] {
            assert_eq!(without_time(&supervisor.next(), from), expected);
        }

        let before = supervisor.messages();
        assert!(!before.iter().any(|message| message.contains("STOPPING")));
        assert_eq!(master.stop(), 0);
        // The workers of the failed reload may be counted still.
        let stopping = supervisor.next();
        let (head, tail) = stopping.split_once("workers left: ").unwrap();
        assert_eq!(head, "STOPPING=1\nSTATUS=stopping, ");
        let (_, tail) = tail.split_once('\n').unwrap();
        assert_eq!(tail, "EXTEND_TIMEOUT_USEC=30000000");
        let after = supervisor.next_until_end();
        for message in after {
            assert!(message.starts_with("STATUS=stopping, "), "{message}");
        }
        // It has bound nothing, so there was nothing to keep.
        assert!(supervisor.names().is_empty());
    }
}

impl Supervisor {
    /// What came last, when the last status says that nobody is left.
    fn next_until_end(&mut self) -> Vec<String> {
        let mut list = Vec::new();
        loop {
            list.push(self.next());
            if list.last().unwrap().contains("stopping, workers left: 0") {
                return list;
            }
        }
    }
}

#[test]
fn a_refused_reload_is_answered_too() {
    let mut supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let file = text(dir.write("app.sh", "exec sleep 1000"));
    let link = dir.path().join("current");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let options = ["-n", "1", "-C", link.to_str().unwrap()];
    let mut master = supervisor.run(&brief(&options, &file)).start();
    supervisor.until("READY=1", |message| message.starts_with("READY=1"));
    std::fs::remove_file(&link).unwrap();
    let from = monotonic();
    master.signal(Signal::SIGHUP);
    master.event("reload-refused");
    assert_eq!(
        without_time(&supervisor.next(), from),
        "RELOADING=1\nMONOTONIC_USEC=now"
    );
    assert_eq!(
        supervisor.next(),
        "READY=1\nSTATUS=generation 1, 1 of 1 workers ready; reload refused"
    );
    assert_eq!(master.stop(), 0);
}

#[test]
fn a_long_start_asks_for_time_again() {
    let mut supervisor = Supervisor::new("path");
    let options = ["-n", "1", "--ready", "alive:11s", "--ready-timeout", "20s"];
    let mut master = supervisor
        .run(&[&options[..], &["--", "sleep", "1000"]].concat())
        .start();
    // 20 s, two for the stagger, ten to spare: the second time two thirds of that are left.
    let first = supervisor.until("a first", |message| message.contains("EXTEND"));
    assert!(first.ends_with("EXTEND_TIMEOUT_USEC=30000000"), "{first}");
    let second = supervisor.until("a second", |message| message.contains("EXTEND"));
    let asked: u64 = second
        .strip_prefix("EXTEND_TIMEOUT_USEC=")
        .unwrap()
        .parse()
        .unwrap();
    assert!(asked <= 22_000_000, "{asked}");
    assert!(
        !supervisor
            .messages()
            .iter()
            .any(|message| message.contains("READY=1"))
    );
    supervisor.until("READY=1", |message| message.starts_with("READY=1"));
    assert_eq!(master.stop(), 0);
}

#[test]
fn signs_of_life_as_long_as_anybody_serves() {
    let mut supervisor = Supervisor::new("abstract");
    let dir = Dir::new();
    let file = text(dir.write("app.sh", "exec sleep 1000"));
    let options = [
        "-n",
        "1",
        "--respawn-limit",
        "0",
        "--backoff",
        "10ms..100ms",
    ];
    let mut master = supervisor
        .run(&brief(&options, &file))
        .env("WATCHDOG_USEC", "200000")
        .start();
    let worker = number(&master.event("worker-ready"), "pid");
    let sign = |message: &str| message == "WATCHDOG=1";
    for _ in 0..5 {
        supervisor.until("WATCHDOG=1", sign);
    }
    let first = supervisor.messages();
    let ready = first.iter().position(|one| one.starts_with("READY=1"));
    assert!(first.iter().position(|one| sign(one)) > ready);

    dir.write("app.sh", "exit 3");
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    supervisor.until("nobody", |message| message.contains(", 0 of 1 workers"));
    let at = supervisor.seen;
    for _ in 0..10 {
        master.event("worker-exited");
    }
    let silent = supervisor.messages();
    assert!(!silent[at..].iter().any(|message| sign(message)));
    dir.write("app.sh", "exec sleep 1000");
    supervisor.until("WATCHDOG=1", sign);
    assert_eq!(master.stop(), 0);

    // Meant for another process.
    let supervisor = Supervisor::new("path");
    let mut master = supervisor
        .run(&brief(&["-n", "1"], &file))
        .env("WATCHDOG_USEC", "20000")
        .env("WATCHDOG_PID", "1")
        .start();
    master.event("generation-serving");
    passes(Duration::from_millis(300));
    assert_eq!(master.stop(), 0);
    assert!(!supervisor.messages().iter().any(|message| sign(message)));
}

#[test]
fn a_supervisor_that_is_gone_or_behind_harms_nobody() {
    let dir = Dir::new();
    let file = text(dir.write("app.sh", "exec sleep 1000"));
    let nowhere = text(dir.path().join("nowhere"));
    for (name, why) in [
        (&nowhere[..], "no such file"),
        ("nonsense", "NOTIFY_SOCKET is 'nonsense'"),
    ] {
        let mut master = Run::new(SPAWNWORK)
            .args(brief(&["-n", "1"], &file))
            .env("NOTIFY_SOCKET", name)
            .start();
        master.event_with("supervisor-unreached", why);
        master.event("generation-serving");
        master.signal(Signal::SIGUSR2);
        master.event("reload-committed");
        assert_eq!(master.stop(), 0);
        let lines = master.err();
        let count = lines.iter().filter(|line| line.contains("unreached"));
        assert_eq!(count.count(), 1);
    }

    // Nobody reads: the queue is full before we say a word.
    let path = dir.path().join("full");
    let reader = UnixDatagram::bind(&path).unwrap();
    let mut fillers = Vec::new();
    loop {
        // One alone may reach the limit of its own buffer before the queue is full.
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        if filler.send_to(b"X=1", &path).is_err() {
            break;
        }
        while filler.send_to(b"X=1", &path).is_ok() {}
        fillers.push(filler);
    }
    let mut master = Run::new(SPAWNWORK)
        .args(brief(&["-n", "1"], &file))
        .env("NOTIFY_SOCKET", &path)
        .start();
    master.event("generation-serving");
    reader.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0u8; 4096];
    loop {
        let count = reader.recv(&mut buffer).unwrap();
        if &buffer[..count] != b"X=1" {
            break;
        }
    }
    // Nothing has changed since: it was tried again.
    assert!(buffer.starts_with(b"READY=1\nSTATUS=generation 1"));
    assert_eq!(master.stop(), 0);
}

#[test]
fn without_a_supervisor_there_are_no_wake_ups() {
    let dir = Dir::new();
    let file = text(dir.write("app.sh", "exec sleep 1000"));
    let mut master = Run::new(SPAWNWORK)
        .args(brief(&["-n", "2"], &file))
        .env("WATCHDOG_USEC", "100000")
        .env("FDSTORE", "16")
        .start();
    master.event("generation-serving");
    let status = format!("/proc/{}/status", master.pid());
    let switches = || {
        let all = std::fs::read_to_string(&status).unwrap();
        let line = all.lines().find(|line| line.starts_with("voluntary_ctxt"));
        line.unwrap().to_owned()
    };
    // A machine that pages may add one now and then; a timer of ours would never leave a second free.
    eventually("a second without a wake-up", || {
        let before = switches();
        passes(Duration::from_secs(1));
        (switches() == before).then_some(())
    });
    assert_eq!(master.stop(), 0);
}

// ---- sockets that outlive us ----

#[test]
fn a_killed_master_refuses_nobody() {
    let supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let unix = format!("unix:{}", text(dir.path().join("a.sock")));
    let server = text(app("plain_server.py"));
    let mut args = vec!["-n", "2", "-l", "127.0.0.1:0", "-l", "[::1]:0", "-l", &unix];
    args.extend(["--ready", "notify", "--", "python3", &server, "notify"]);
    let mut master = supervisor.run(&args).start();
    let first = port_of(&master.event("socket-bound"));
    let second = port_of(&master.event("socket-bound"));
    master.event("generation-serving");
    let path = unix.strip_prefix("unix:").unwrap();
    let names = eventually("three sockets", || {
        Some(supervisor.names()).filter(|names| names.len() == 3)
    });
    assert_eq!(names[0], "spawnwork-tcp-,,1,0");
    assert_eq!(names[1], "spawnwork-tcp-127.0.0.1,0");
    assert!(names[2].starts_with(&format!("spawnwork-unix-{path}=")));
    assert!(
        supervisor
            .messages()
            .contains(&"FDSTORE=1\nFDNAME=spawnwork-tcp-127.0.0.1,0\nFDPOLL=0".to_owned())
    );

    for round in 0..2 {
        perish(&mut master);
        let early = [
            TcpStream::connect(("127.0.0.1", first)).unwrap(),
            TcpStream::connect(("::1", second)).unwrap(),
        ];
        let over_unix = std::thread::spawn({
            let unix = unix.clone();
            move || http::get(&unix, "/").unwrap().body
        });
        // The second time a shell stands between the supervisor and us.
        master = supervisor.again(["self", "1"][round], &args);
        for _ in 0..3 {
            master.event("socket-returned");
        }
        for client in early {
            assert!(answer(client).contains("200 OK"));
        }
        assert!(over_unix.join().unwrap().starts_with("worker="));
        master.event("generation-serving");
        assert_eq!(supervisor.names(), names);
    }

    // A stop may be half of a restart.
    assert_eq!(master.stop(), 0);
    assert!(Path::new(path).exists());
    let early = TcpStream::connect(("127.0.0.1", first)).unwrap();
    let mut master = supervisor.again("self", &args);
    assert!(answer(early).contains("200 OK"));
    assert!(http::get(&unix, "/").is_ok());
    assert_eq!(master.stop(), 0);
    let bound = |line: &String| line.contains(": socket-bound ");
    assert!(!master.err().iter().any(bound));
}

#[test]
fn sockets_that_node_asked_for_outlive_us_and_those_that_nobody_wants_go() {
    let mut supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let (one, two) = (free_port(), free_port());
    let unix = text(dir.path().join("n.sock"));
    let listen = |list: &str| {
        format!(
            "const http = require('http');\n\
             for (const where of [{list}])\n\
             \x20 http.createServer((q, a) => a.end('here\\n')).listen(where);\n\
             const udp = require('dgram').createSocket('udp4');\n\
             udp.on('message', (text, from) => udp.send(text, from.port));\n\
             udp.bind({one}, '127.0.0.1');\n"
        )
    };
    let all = listen(&format!(
        "{{port: {one}, host: '127.0.0.1'}}, {two}, '{unix}'"
    ));
    let fewer = listen(&format!("{{port: {one}, host: '127.0.0.1'}}, '{unix}'"));
    let file = text(dir.write("app.js", &all));
    let args = ["-n", "2", "--probation", "100ms", "--", "node", &file];
    let mut master = supervisor.run(&args).start();
    master.event("generation-serving");
    let names = eventually("four sockets", || {
        Some(supervisor.names()).filter(|names| names.len() == 4)
    });
    assert_eq!(names[0], format!("spawnwork-tcp-*,{two}"));
    assert_eq!(names[1], format!("spawnwork-tcp-127.0.0.1,{one}"));
    assert_eq!(names[2], format!("spawnwork-udp4-127.0.0.1,{one}"));

    perish(&mut master);
    let early = [
        TcpStream::connect(("127.0.0.1", one)).unwrap(),
        TcpStream::connect(("127.0.0.1", two)).unwrap(),
    ];
    let over_udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    over_udp.set_read_timeout(Some(PATIENCE)).unwrap();
    over_udp.send_to(b"early", ("127.0.0.1", one)).unwrap();
    // One that no program asks for any more.
    let stray = TcpListener::bind("127.0.0.1:0").unwrap();
    let stray_port = stray.local_addr().unwrap().port();
    let stray_name = format!("spawnwork-tcp-127.0.0.1,{stray_port}");
    supervisor.keeps(&stray_name, stray.into());
    let mut master = supervisor.again("self", &args);
    for client in early {
        assert!(answer(client).contains("here"));
    }
    let mut buffer = [0u8; 16];
    let (count, _) = over_udp.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"early");
    assert!(http::get(format!("unix:{unix}"), "/").is_ok());
    master.event("generation-serving");
    master.event_with("socket-dropped", &stray_port.to_string());
    supervisor.until("the stray one's end", |message| {
        message == format!("FDSTOREREMOVE=1\nFDNAME={stray_name}")
    });
    assert_eq!(supervisor.names(), names);
    let refused = TcpStream::connect(("127.0.0.1", stray_port));
    assert!(refused.is_err());
    let bound = |line: &String| line.contains(": socket-bound ");
    assert!(!master.err().iter().any(bound), "{:#?}", master.err());

    // A release that has given a port up.
    dir.write("app.js", &fewer);
    master.signal(Signal::SIGUSR2);
    master.event("reload-committed");
    master.event_with("socket-dropped", &two.to_string());
    supervisor.until("the port's end", |message| {
        message == format!("FDSTOREREMOVE=1\nFDNAME=spawnwork-tcp-*,{two}")
    });
    assert_eq!(supervisor.names(), names[1..]);
    assert_eq!(master.stop(), 0);
}

#[test]
fn an_address_that_changed_is_free_again() {
    let supervisor = Supervisor::new("path");
    let server = text(app("plain_server.py"));
    let port = free_port();
    let old = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let name = format!("spawnwork-tcp-127.0.0.1,{port}");
    supervisor.keeps(&name, old.into());
    let all = port.to_string();
    let args = ["-n", "1", "-l", &all, "--ready", "notify", "--"];
    let args = [&args[..], &["python3", &server, "notify"]].concat();
    let mut master = supervisor.again("self", &args);
    master.event("socket-bound");
    master.event("generation-serving");
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert!(answer(client).contains("200 OK"));
    let names = eventually("the new one", || {
        Some(supervisor.names()).filter(|names| !names.is_empty())
    });
    assert_eq!(names, [format!("spawnwork-tcp-*,{port}")]);
    assert_eq!(master.stop(), 0);

    // Now node asks for what --listen had.
    let node = text(app("hello.js"));
    let args = ["-n", "1", "--", "env", &format!("PORT={port}"), "HOST=::"];
    let args = [&["--node", "yes"], &args[..], &["node", &node]].concat();
    let early = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut master = supervisor.again("self", &args);
    master.event("socket-returned");
    assert!(answer(early).contains("hello"));
    assert_eq!(master.stop(), 0);
}

#[test]
fn an_activators_sockets_are_not_ours_to_store() {
    let supervisor = Supervisor::new("path");
    let (port, own) = (free_port(), free_port());
    let own = format!("127.0.0.1:{own}");
    let server = text(app("plain_server.py"));
    let mut master = Run::new("systemd-socket-activate")
        .args(["-l", &format!("127.0.0.1:{port}"), "--fdname=web"])
        .args(["-E", &format!("NOTIFY_SOCKET={}", supervisor.name)])
        .args(["-E", "FDSTORE=16", SPAWNWORK, "-n", "1"])
        .args(["-l", "sd:web", "-l", &own, "--ready", "notify"])
        .args(["--", "python3", &server, "notify"])
        .start();
    let reply = eventually("an answer", || {
        http::get(format!("127.0.0.1:{port}"), "/").ok()
    });
    assert!(reply.body.starts_with("worker=0 "), "{}", reply.body);
    master.event("generation-serving");
    eventually("READY=1", || {
        let all = supervisor.messages();
        all.iter()
            .any(|one| one.starts_with("READY=1"))
            .then_some(())
    });
    let own = own.replace(':', ",");
    assert_eq!(supervisor.names(), [format!("spawnwork-tcp-{own}")]);
    assert_eq!(master.stop(), 0);
}

#[test]
fn nothing_is_stored_where_there_is_no_store_or_no_room() {
    let server = text(app("plain_server.py"));
    let head = ["-n", "1", "-l", "127.0.0.1:0", "-l", "127.0.0.1:0"];
    let tail = ["--ready", "notify", "--", "python3", &server, "notify"];
    let args = [&head[..], &tail[..]].concat();
    for (room, kept) in [("", 0), ("0", 0), ("1", 1), ("2", 2)] {
        let mut supervisor = Supervisor::new("path");
        let mut master = supervisor.run(&args).env("FDSTORE", room).start();
        supervisor.until("READY=1", |message| message.starts_with("READY=1"));
        assert_eq!(supervisor.names().len(), kept, "FDSTORE={room}");
        assert_eq!(master.stop(), 0);
    }
}

// ---- the workers' watchdog ----

const D: &str = "2s";

fn watched(supervisor: &Supervisor, options: &[&str], dir: &Dir, how: &str) -> Running {
    let program = text(app("plain_watchdog.py"));
    supervisor
        .run(&["--watchdog", D, "--ready", "notify"])
        .args(options)
        .args(["--", "python3", &program, &text(dir.path()), how])
        .start()
}

#[test]
fn a_worker_that_hangs_is_aborted_and_replaced() {
    let supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let mut master = watched(
        &supervisor,
        &["-n", "2", "--stop-timeout", "500ms"],
        &dir,
        "",
    );
    let mut pids = [0; 2];
    for _ in 0..2 {
        let line = master.event("worker-ready");
        pids[number(&line, "slot") as usize] = number(&line, "pid");
    }
    for (order, error, signal) in [
        ("silence", "no WATCHDOG=1 within 2s", "ABRT"),
        ("trigger", "it sent WATCHDOG=trigger", "ABRT"),
        ("ignore", "no WATCHDOG=1 within 2s", "KILL"),
        ("stopped", "no WATCHDOG=1 within 2s", "ABRT"),
    ] {
        if order == "stopped" {
            kill(Pid::from_raw(pids[0]), Signal::SIGSTOP).unwrap();
        } else {
            dir.write(&pids[0].to_string(), order);
        }
        let line = master.event("worker-hung");
        assert_eq!(number(&line, "pid"), pids[0]);
        assert_eq!(field(&line, "error"), error);
        if signal == "KILL" {
            let line = master.event("worker-killed");
            assert_eq!(field(&line, "error"), "SIGABRT did not end it");
        }
        let line = master.event("worker-exited");
        assert_eq!(number(&line, "pid"), pids[0]);
        assert_eq!(field(&line, "signal"), signal, "{order}");
        assert_eq!(field(&line, "error"), error);
        let line = master.event("worker-ready");
        assert_eq!(number(&line, "slot"), 0);
        pids[0] = number(&line, "pid");
    }
    // The other one was never touched, and nothing that they said went up.
    let lines = master.err();
    let hung = lines.iter().filter(|line| line.contains(": worker-hung "));
    assert_eq!(hung.count(), 4);
    let messages = supervisor.messages();
    for message in messages {
        assert!(!message.contains("STOPPING") && !message.contains("of a worker"));
    }
    assert_eq!(master.stop(), 0);
}

#[test]
fn a_helper_may_speak_for_the_worker() {
    let supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let mut speaks = watched(&supervisor, &["-n", "1"], &dir, "helper");
    let worker = number(&speaks.event("worker-ready"), "pid");
    // Meanwhile one for whom nobody speaks is aborted twice.
    let mut silent = watched(&supervisor, &["-n", "1"], &dir, "silent");
    for _ in 0..2 {
        silent.event("worker-hung");
    }
    assert!(kit::run::children_of(speaks.pid()).contains(&worker));
    assert!(!speaks.err().iter().any(|line| line.contains("worker-hung")));
    assert_eq!(speaks.stop(), 0);
    assert_eq!(silent.stop(), 0);
}

#[test]
fn a_master_that_was_stopped_murders_nobody() {
    let supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let mut master = watched(&supervisor, &["-n", "3"], &dir, "");
    let mut workers: Vec<i32> = (0..3)
        .map(|_| number(&master.event("worker-ready"), "pid"))
        .collect();
    workers.sort_unstable();
    master.signal(Signal::SIGSTOP);
    // The queue of the socket may be full by then, and the workers wait in the middle of a word.
    passes(Duration::from_secs(6));
    master.signal(Signal::SIGCONT);
    passes(Duration::from_secs(3));
    // The whole machine: we are the first to run again, and nobody could have said anything.
    let all = |signal: Signal| {
        for worker in &workers {
            kill(Pid::from_raw(*worker), signal).unwrap();
        }
    };
    all(Signal::SIGSTOP);
    master.signal(Signal::SIGSTOP);
    passes(Duration::from_secs(6));
    master.signal(Signal::SIGCONT);
    passes(Duration::from_millis(300));
    all(Signal::SIGCONT);
    passes(Duration::from_secs(3));
    let mut now = kit::run::children_of(master.pid());
    now.sort_unstable();
    assert_eq!(now, workers);
    assert!(!master.err().iter().any(|line| line.contains("worker-hung")));
    // Still watched.
    dir.write(&workers[1].to_string(), "silence");
    assert_eq!(number(&master.event("worker-hung"), "pid"), workers[1]);
    assert_eq!(master.stop(), 0);
}

#[test]
fn a_new_generation_that_hangs_on_probation_fails_the_reload() {
    let supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let program = text(app("plain_watchdog.py"));
    let file = text(dir.write(
        "app.sh",
        &format!("exec python3 {program} {}", text(dir.path())),
    ));
    let mut master = supervisor
        .run(&["-n", "1", "--watchdog", "1s", "--ready", "notify"])
        .args(["--probation", "30s", "--", "sh", &file])
        .start();
    let worker = number(&master.event("worker-ready"), "pid");
    let silent = format!("exec python3 {program} {} silent", text(dir.path()));
    dir.write("app.sh", &silent);
    master.signal(Signal::SIGUSR2);
    master.event("worker-hung");
    let line = master.event("reload-failed");
    assert!(field(&line, "error").contains("no WATCHDOG=1 within 1s"));
    assert!(kit::run::children_of(master.pid()).contains(&worker));
    assert_eq!(master.stop(), 0);
}

#[test]
fn ready_is_shown_as_it_was_told_with_a_watchdog_too() {
    let supervisor = Supervisor::new("path");
    let dir = Dir::new();
    let program = text(app("plain_watchdog.py"));
    let mut master = supervisor
        .run(&["-n", "1", "--watchdog", D, "--ready", "fd:9"])
        .args(["--ready-timeout", "1s", "--", "python3", &program])
        .args([text(dir.path())])
        .start();
    // It says READY=1, and nothing on descriptor 9.
    master.event_with("worker-failed", "not ready within 1s");
    assert_eq!(master.end(), 1);
    // 0 is none.
    let mut master = supervisor
        .run(&["-n", "1", "--watchdog", "0", "--ready", "alive:100ms"])
        .args([
            "--",
            "sh",
            "-c",
            "test -z \"$WATCHDOG_USEC\" && exec sleep 1000",
        ])
        .start();
    master.event("generation-serving");
    assert_eq!(master.stop(), 0);
}
