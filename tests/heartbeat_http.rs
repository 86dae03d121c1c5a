//! HTTP and dialogues against servers that do what none should, and against real ones.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, Step, on_abstract, on_unix, says};
use kit::{Dir, Finished, Run, app, eventually, free_port};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn once(words: &[&str]) -> Finished {
    Run::new(PROGRAM).arg("--once").args(words).finish()
}

fn port_of(server: &Hostile) -> String {
    server.port.to_string()
}

/// A single check of a server ends so, and says so.
fn check(steps: Vec<Step>, options: &[&str], status: i32, part: &str) -> String {
    let server = Hostile::new(steps);
    let port = port_of(&server);
    let words = [&["--port", &port, "--timeout", "5s"][..], options].concat();
    let found = once(&words);
    assert!(
        found.status == status && found.out.contains(part) && found.out.lines().count() == 1,
        "expected {status} '{part}', got {} {}{}",
        found.status,
        found.out,
        found.err
    );
    found.out
}

fn with_body(length: usize, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn chunked(chunks: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")
}

#[test]
fn verdicts_on_whole_and_broken_replies() {
    for (reply, status, part) in [
        (OK.to_owned(), 0, "ok "),
        // Without a length, in HTTP/1.0: the end is the end.
        ("HTTP/1.0 200 OK\r\n\r\nhello".to_owned(), 0, "ok "),
        ("HTTP/1.1 200 OK\n\nhello".to_owned(), 0, "ok "),
        (
            "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n".to_owned(),
            0,
            "ok ",
        ),
        (chunked("5\r\nhello\r\n0\r\n\r\n"), 0, "ok "),
        // Edge case 11.
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), 0, " 204 "),
        ("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(), 0, " 304 "),
        // Edge case 12: a redirect is well, and not followed.
        (
            "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"
                .to_owned(),
            0,
            " 302 ",
        ),
        (
            "HTTP/1.1 500 Internal\r\nContent-Length: 0\r\n\r\n".to_owned(),
            1,
            "status 500",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            1,
            "status 404",
        ),
        // Edge case 9: the final status counts.
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Internal\r\nContent-Length: 0\r\n\r\n"
                .to_owned(),
            1,
            "status 500",
        ),
        (format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"), 0, " 200 "),
        (
            format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}"),
            0,
            " 200 ",
        ),
        // Edge case 7: less than was promised.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc".to_owned(),
            1,
            "eof closed after",
        ),
        (chunked("5\r\nhel"), 1, "eof "),
        (chunked("5\r\nhello\r\n"), 1, "eof "),
        (
            "HTTP/1.1 200 OK\r\nContent-".to_owned(),
            1,
            "eof closed after 25 bytes",
        ),
        (String::new(), 1, "eof closed without a reply"),
        // Chunks that are none, lengths that contradict each other.
        (chunked("zz\r\nhello\r\n0\r\n\r\n"), 1, "protocol "),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_owned(),
            1,
            "protocol ",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello".to_owned(),
            1,
            "protocol ",
        ),
        ("HTTP/1.1 1000 Huh\r\n\r\n".to_owned(), 1, "protocol "),
        // Edge case 13: HTTP/0.9, another protocol, no protocol.
        (
            "<html>hello</html>".to_owned(),
            1,
            "protocol not HTTP, got \"<html>",
        ),
        (
            "SSH-2.0-OpenSSH_9.2p1\r\n".to_owned(),
            1,
            "protocol not HTTP, got \"SSH-2.0-",
        ),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            1,
            "protocol ",
        ),
        (
            "\u{1}\u{2}\u{1b}[31m\u{7f}\r\n\r\n".to_owned(),
            1,
            "protocol not HTTP, got \"\\x01\\x02\\x1b[31m",
        ),
    ] {
        check(says(&reply), &[], status, part);
    }
}

// Edge case 8.
#[test]
fn a_reset_in_the_head_or_the_body_is_a_reset() {
    let pause = Duration::from_millis(100);
    for begun in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
    ] {
        let steps = vec![
            Step::Send(begun.into()),
            // The bytes are to be read before the reset discards them.
            Step::Drip(
                if begun.is_empty() {
                    vec![]
                } else {
                    b"x".to_vec()
                },
                pause,
            ),
            Step::Reset,
        ];
        check(steps, &[], 1, " reset ");
    }
}

// Edge case 10.
#[test]
fn an_upgrade_that_nobody_asked_for_is_no_success() {
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    let server = Hostile::new(says(upgrade));
    let found = once(&["--port", &port_of(&server)]);
    assert_eq!(found.status, 1, "{}", found.out);
    let found = once(&["--port", &port_of(&server), "--expect", "101"]);
    assert_eq!(found.status, 0, "{}", found.out);
}

#[test]
fn head_requests_have_no_body() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    let server = Hostile::new(says(head));
    let found = once(&["--port", &port_of(&server), "--method", "head"]);
    assert_eq!(found.status, 0, "{}", found.out);
    assert!(server.requests()[0].starts_with("HEAD / HTTP/1.1\r\n"));
}

#[test]
fn what_is_asked() {
    let server = Hostile::new(says(OK));
    let found = once(&[
        "--port",
        &port_of(&server),
        "--path",
        "/health?a=b",
        "--host",
        "www.example.org",
        "--header",
        "Accept: text/html",
        "--header",
        "X-Own: 1",
    ]);
    assert_eq!(found.status, 0, "{}", found.out);
    let head = server.requests()[0].to_lowercase();
    assert!(head.starts_with("get /health?a=b http/1.1\r\n"), "{head}");
    for line in [
        "host: www.example.org",
        "accept: text/html",
        "x-own: 1",
        "connection: close",
        "accept-encoding: identity",
        concat!("user-agent: heartbeat/", env!("CARGO_PKG_VERSION")),
    ] {
        assert_eq!(
            head.matches(&format!("{line}\r\n")).count(),
            1,
            "{line} in {head}"
        );
    }
}

/// The time limit is for all of it, however it is spent: the tool's own measure of each.
fn times_out(server: &Hostile, phase: &str) {
    let limit = Duration::from_millis(700);
    let port = port_of(server);
    let words = ["--port", &port, "-4", "--timeout", "700ms"];
    let found = once(&words);
    let expected = format!("timeout after 700.0ms ({phase}");
    assert!(
        found.status == 1 && found.out.contains(&expected),
        "expected '{expected}', got {}{}",
        found.out,
        found.err
    );
    let found = once(&[&words[..], &["--format", "nagios"]].concat());
    assert_eq!(found.status, 2, "{}", found.out);
    let took = found
        .out
        .split("time=")
        .nth(1)
        .unwrap()
        .split('s')
        .next()
        .unwrap();
    let took = Duration::from_secs_f64(took.parse().unwrap());
    // Never earlier; a busy machine may be late, the bench says how late.
    assert!(
        took >= limit && took < limit + Duration::from_secs(5),
        "{took:?}"
    );
}

// Edge case 1.
#[test]
fn accepts_and_says_nothing() {
    times_out(&Hostile::new(vec![Step::Wait]), "connected, no reply)");
}

// Edge case 3.
#[test]
fn a_full_backlog_is_a_timeout() {
    times_out(&Hostile::full(), "no connection)");
    let dir = Dir::new();
    let path = dir.path().join("s");
    let _server = Hostile::full_unix(&path);
    let found = once(&["--unix", path.to_str().unwrap(), "--timeout", "300ms"]);
    assert!(
        found.out.contains("timeout after 300.0ms (no connection)"),
        "{}",
        found.out
    );
}

// Edge case 4.
#[test]
fn drops_that_never_make_a_reply() {
    let pause = Duration::from_millis(30);
    let long = "x".repeat(10_000);
    let head = format!("HTTP/1.1 200 OK\r\nX: {long}");
    times_out(&Hostile::new(vec![Step::Drip(head.into(), pause)]), "");
    let steps = vec![
        Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n".into()),
        Step::Drip(long.clone().into(), pause),
    ];
    times_out(&Hostile::new(steps), "");
    let steps = vec![
        Step::Send("HTTP/1.1 200 OK\r\n\r\n".into()),
        Step::Drip(long.into(), pause),
    ];
    times_out(&Hostile::new(steps), "");
    // Interim replies without end.
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(500);
    times_out(
        &Hostile::new(vec![Step::Drip(interim.into(), Duration::from_millis(1))]),
        "",
    );
}

// Edge case 5.
#[test]
fn a_body_without_end_is_capped() {
    let endless = || {
        vec![
            Step::Send("HTTP/1.1 200 OK\r\n\r\n".into()),
            Step::Endless(vec![b'x'; 65536]),
        ]
    };
    check(endless(), &[], 0, "ok ");
    check(endless(), &["--not-body", "y"], 0, "ok ");
    check(
        endless(),
        &["--body", "y"],
        1,
        "body no match in the first 65536 bytes",
    );
    check(
        endless(),
        &["--body", "y", "--max-body", "1K"],
        1,
        "body no match in the first 1024 bytes",
    );
    let chunks = format!("10000\r\n{}\r\n", "x".repeat(65536));
    let steps = vec![Step::Send(chunked("").into()), Step::Endless(chunks.into())];
    check(steps, &[], 0, "ok ");
}

// Edge case 6.
#[test]
fn a_match_that_was_found_needs_no_more_body() {
    let steps = vec![Step::Send(with_body(1000, "all is ready")), Step::Wait];
    check(steps, &["--body", "ready"], 0, "ok ");
    let steps = vec![Step::Send(with_body(1000, "all is ready")), Step::Wait];
    check(steps, &["--body", "steady"], 1, "timeout after 5.0s (");
}

#[test]
fn bodies_are_matched() {
    for (options, status, part) in [
        (&["--body", "^hel+o$"][..], 0, "ok "),
        (&["--body", "bye"], 1, "body no match in 5 bytes: \"hello\""),
        (&["--not-body", "bye"], 0, "ok "),
        (&["--not-body", "l+"], 1, "body \"ll\" was found"),
        (&["--body", "hello", "--not-body", "bye"], 0, "ok "),
        (&["--expect", "204"], 1, "status 200"),
        (&["--expect", "2xx"], 0, "ok "),
        (&["--expect", "!200"], 1, "status 200"),
    ] {
        check(says(OK), options, status, part);
    }
}

// Edge case 43.
#[test]
fn a_head_that_is_too_large() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    check(says(long), &[], 1, "protocol header too large");
    let mut many = String::from("HTTP/1.1 200 OK\r\n");
    for number in 0..300 {
        many.push_str(&format!("X-{number}: y\r\n"));
    }
    check(says(many + "\r\n"), &[], 1, "protocol header too large");
    let steps = vec![
        Step::Send("HTTP/1.1 200 OK\r\nX: ".into()),
        Step::Endless(vec![b'x'; 4096]),
    ];
    check(steps, &[], 1, "protocol header too large");
    // What is large, but not too large, is no failure.
    let long = format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n",
        "x".repeat(50_000)
    );
    check(says(long), &[], 0, "ok ");
}

// Edge case 12.
#[test]
fn redirects_are_followed_on_the_same_host_only() {
    let to = |location: &str| {
        says(format!(
            "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 2\r\n\r\nhi"
        ))
    };
    let server = Hostile::in_turn(vec![to("/next"), says(OK)]);
    let found = once(&[
        "--port",
        &port_of(&server),
        "--follow",
        "3",
        "--body",
        "hello",
    ]);
    assert_eq!((found.status, server.served()), (0, 2), "{}", found.out);
    assert!(server.requests()[1].starts_with("GET /next "));

    check(to("/"), &["--follow", "3"], 1, "more than 3 redirects");
    check(
        to("http://192.0.2.1/"),
        &["--follow", "3"],
        1,
        "another host",
    );
    check(
        to("https://localhost/"),
        &["--follow", "3"],
        1,
        "another host",
    );
    check(
        to("http://[broken"),
        &["--follow", "3"],
        1,
        "cannot be read",
    );
}

// Edge case 14, its plain half: TLS where HTTP was meant.
#[test]
fn tls_on_a_port_that_is_asked_plainly() {
    check(
        says(b"\x15\x03\x01\x00\x02\x02\x46"),
        &[],
        1,
        "tls the server speaks TLS: https:// would do",
    );
}

// Edge case 44.
#[test]
fn a_server_that_keeps_alive_sees_an_end_and_no_error() {
    let dir = Dir::new();
    dir.write(
        "app.js",
        "const http = require('http');\n\
         const server = http.createServer((q, r) => { r.setHeader('Connection', 'keep-alive'); r.end('hello'); });\n\
         server.keepAliveTimeout = 0;\n\
         server.on('connection', (c) => { c.on('error', (e) => console.log('error', e.code)); c.on('close', () => console.log('closed')); });\n\
         server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));\n",
    );
    let port = free_port().to_string();
    let mut node = Run::new("node")
        .arg("app.js")
        .env("PORT", &port)
        .dir(dir.path())
        .start();
    node.out_line("listening", |line| line == "listening");
    for _ in 0..5 {
        assert_eq!(once(&["--port", &port]).status, 0);
        let line = node.out_line("the end", |line| {
            line.starts_with("error") || line == "closed"
        });
        assert_eq!(line, "closed");
    }
}

// Edge case 15.
#[test]
fn localhost_is_both_loopbacks() {
    let six = Hostile::on("::1", vec![says(OK)]);
    let port = port_of(&six);
    let found = once(&["--port", &port]);
    assert!(
        found.status == 0 && found.out.contains(&format!("[::1]:{port}")),
        "{}",
        found.out
    );
    let found = once(&["--port", &port, "-4"]);
    assert!(found.out.contains("refused"), "{}", found.out);
    assert_eq!(once(&["--port", &port, "-6"]).status, 0);
    // Nobody on either: refused. One is full, the other refuses: a timeout.
    let found = once(&["--port", &free_port().to_string()]);
    assert!(
        found.status == 1 && found.out.contains(" refused "),
        "{}",
        found.out
    );
    let full = Hostile::full();
    let found = once(&["--port", &port_of(&full), "--timeout", "600ms"]);
    assert!(
        found.out.contains("timeout after 600.0ms (no connection)"),
        "{}",
        found.out
    );
}

// Edge case 16.
#[test]
fn a_name_with_several_addresses() {
    // In a namespace of its own: what it writes to /etc/hosts is nobody else's.
    let server = Hostile::on("127.0.0.9", vec![says(OK)]);
    let dir = Dir::new();
    dir.write(
        "hosts",
        "127.0.0.8 several.test\n127.0.0.9 several.test\n::1 several.test\n",
    );
    let found = Run::new("unshare")
        .args(["-m", "sh", "-c"])
        .arg("mount --bind \"$1\" /etc/hosts && exec \"$2\" --once --url \"http://several.test:$3/\"")
        .arg("sh")
        .arg(dir.path().join("hosts"))
        .arg(PROGRAM)
        .arg(port_of(&server))
        .finish();
    let answered = format!("127.0.0.9:{}", server.port);
    assert!(
        found.status == 0 && found.out.contains(&answered),
        "{}{}",
        found.out,
        found.err
    );
}

// Edge case 17.
#[test]
fn a_name_server_that_hangs() {
    let dir = Dir::new();
    dir.write(
        "resolv.conf",
        "nameserver 127.0.0.77\noptions timeout:30 attempts:1\n",
    );
    dir.write("nsswitch.conf", "hosts: dns\n");
    // A name server that says nothing.
    let _silent = std::net::UdpSocket::bind("127.0.0.77:53")
        .expect("this test makes a name server of its own: run it as root, with port 53 free");
    let shell = "mount --bind \"$1/resolv.conf\" /etc/resolv.conf && mount --bind \"$1/nsswitch.conf\" /etc/nsswitch.conf && shift && exec \"$@\"";
    let run = |words: &[&str]| {
        Run::new("unshare")
            .args(["-m", "sh", "-c", shell, "sh"])
            .arg(dir.path())
            .arg(PROGRAM)
            .args(words)
            .args([
                "--url",
                "http://name.invalid-zone.test/",
                "--timeout",
                "500ms",
            ])
    };
    let begun = Instant::now();
    let found = run(&["--once"]).finish();
    assert!(
        found.status == 1 && found.out.contains(" dns "),
        "{}{}",
        found.out,
        found.err
    );
    assert!(
        found.out.contains("is not resolved within 500.0ms"),
        "{}",
        found.out
    );
    let found = run(&["--once", "--format", "nagios"]).finish();
    assert!(
        found.status == 3 && found.out.starts_with("HEARTBEAT UNKNOWN - "),
        "{}",
        found.out
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
    // However often it is asked: one thread at most hangs in the look-up.
    let mut running = run(&[
        "--interval",
        "50ms",
        "--start-interval",
        "50ms",
        "--verbose",
        "--jitter",
        "0",
    ])
    .start();
    for _ in 0..5 {
        running.out_line("dns", |line| line.contains(" dns "));
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", running.pid()))
        .unwrap()
        .count();
    assert!(threads <= 3, "{threads} threads");
    assert_eq!(running.stop(), 0);
}

// Edge case 18.
#[test]
fn proxies_of_the_environment_are_ignored() {
    let server = Hostile::new(says(OK));
    let nobody = format!("http://127.0.0.1:{}/", free_port());
    let mut run = Run::new(PROGRAM).args(["--once", "--port", &port_of(&server)]);
    for name in [
        "http_proxy",
        "HTTP_PROXY",
        "ALL_PROXY",
        "all_proxy",
        "https_proxy",
    ] {
        run = run.env(name, &nobody);
    }
    let found = run.finish();
    assert_eq!(found.status, 0, "{}", found.out);
}

// Edge cases 20 and 21.
#[test]
fn unix_sockets_and_abstract_ones() {
    let dir = Dir::new();
    let path = dir.path().join("app.sock");
    let name = path.to_str().unwrap();
    let found = once(&["--unix", name]);
    assert!(
        found.status == 1 && found.out.contains("refused no such file"),
        "{}",
        found.out
    );
    on_unix(&path, OK);
    let found = once(&["--unix", name, "--path", "/x", "--body", "hello"]);
    assert!(
        found.status == 0 && found.out.contains(&format!("unix:{name}:/x 200")),
        "{}",
        found.out
    );
    let abstract_name = format!("heartbeat-test-{}", std::process::id());
    on_abstract(&abstract_name, OK);
    let found = once(&["--unix", &format!("@{abstract_name}")]);
    assert!(found.status == 0, "{}{}", found.out, found.err);
}

#[test]
fn a_dialogue_over_tcp_and_over_a_unix_socket() {
    let server = Hostile::new(vec![Step::Wait]);
    let address = format!("127.0.0.1:{}", server.port);
    assert_eq!(once(&["--tcp", &address]).status, 0);
    // The hostile server waits for the end of a head before it speaks.
    let server = Hostile::new(says("+PONG\r\n"));
    let address = format!("127.0.0.1:{}", server.port);
    let found = once(&[
        "--tcp",
        &address,
        "--send",
        "PING\\r\\n\\r\\n",
        "--receive",
        "+PONG",
    ]);
    assert_eq!(found.status, 0, "{}", found.out);
    let found = once(&[
        "--tcp",
        &address,
        "--send",
        "PING\\r\\n\\r\\n",
        "--receive",
        "+PANG",
    ]);
    assert!(
        found
            .out
            .contains("body \"+PONG\\r\\n\" instead of \"+PANG\""),
        "{}",
        found.out
    );
    let server = Hostile::new(vec![Step::Close]);
    let address = format!("127.0.0.1:{}", server.port);
    let found = once(&[
        "--tcp",
        &address,
        "--send",
        "x\\r\\n\\r\\n",
        "--receive",
        "y",
    ]);
    assert!(
        found.out.contains("eof closed without an answer"),
        "{}",
        found.out
    );
    let found = once(&["--tcp", &format!("127.0.0.1:{}", free_port())]);
    assert!(found.out.contains(" refused "), "{}", found.out);
    let dir = Dir::new();
    let path = dir.path().join("s");
    on_unix(&path, "+PONG\r\n");
    let found = once(&[
        "--unix",
        path.to_str().unwrap(),
        "--send",
        "PING\\r\\n",
        "--receive",
        "+PONG",
    ]);
    assert_eq!(found.status, 0, "{}", found.out);
}

// Edge case 2.
#[test]
fn a_stopped_process_accepts_but_does_not_answer() {
    let port = free_port().to_string();
    let mut node = Run::new("node")
        .arg(app("hello.js"))
        .env("PORT", &port)
        .start();
    eventually("node listens", || {
        (once(&["--port", &port]).status == 0).then_some(())
    });
    node.signal(Signal::SIGSTOP);
    let found = once(&["--port", &port, "--timeout", "500ms"]);
    assert!(
        found
            .out
            .contains("timeout after 500.0ms (connected, no reply)"),
        "{}",
        found.out
    );
    let found = once(&["--tcp", &format!("127.0.0.1:{port}"), "--timeout", "500ms"]);
    assert_eq!(found.status, 0, "the kernel accepts: {}", found.out);
    node.signal(Signal::SIGCONT);
    assert_eq!(once(&["--port", &port]).status, 0);
}

#[test]
fn redis_with_and_without_a_password() {
    let dir = Dir::new();
    let start = |options: &[&str]| {
        let port = free_port().to_string();
        let server = Run::new("redis-server")
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .args(options)
            .dir(dir.path())
            .start();
        let address = format!("127.0.0.1:{port}");
        let waited = Run::new(PROGRAM)
            .args(["--wait", "60s", "--tcp", &address])
            .finish();
        assert_eq!(waited.status, 0, "{}{}", waited.out, waited.err);
        (server, address)
    };
    let ping = [
        "--send",
        "PING\\r\\n",
        "--receive",
        "+PONG",
        "--timeout",
        "1s",
    ];
    let (_open, address) = start(&[]);
    let found = once(&[&["--tcp", &address][..], &ping].concat());
    assert_eq!(found.status, 0, "{}", found.out);
    let (_closed, address) = start(&["--requirepass", "secret"]);
    let found = once(&[&["--tcp", &address][..], &ping].concat());
    let said = "body \"-NOAUTH Authentication required";
    assert!(
        found.status == 1 && found.out.contains(said),
        "{}",
        found.out
    );
    let words = [
        "--tcp",
        &address,
        "--send",
        "AUTH secret\\r\\nPING\\r\\n",
        "--receive",
        "+PONG",
    ];
    assert_eq!(once(&words).status, 0);
}

#[test]
fn nginx_over_tcp_and_a_unix_socket() {
    let dir = Dir::new();
    let port = free_port().to_string();
    let at = dir.path().display();
    dir.write(
        "nginx.conf",
        &format!(
            "daemon off; pid {at}/nginx.pid; error_log stderr; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p;\n\
             fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen 127.0.0.1:{port}; listen unix:{at}/n.sock;\n\
             location /health {{ return 200 'fine'; }} location /gone {{ return 503; }}\n\
             location / {{ return 301 /health; }} }} }}\n"
        ),
    );
    let mut nginx = Run::new("/usr/sbin/nginx")
        .args(["-c", dir.path().join("nginx.conf").to_str().unwrap()])
        .start();
    let waited = Run::new(PROGRAM)
        .args(["--wait", "60s", "--port", &port])
        .finish();
    assert_eq!(
        waited.status,
        0,
        "{}{}{:?}",
        waited.out,
        waited.err,
        nginx.err()
    );
    let socket = dir.path().join("n.sock");
    let socket = socket.to_str().unwrap();
    for (words, status) in [
        (
            &["--port", &port, "--path", "/health", "--body", "^fine$"][..],
            0,
        ),
        (&["--port", &port, "--path", "/gone"], 1),
        (&["--port", &port, "--expect", "301"], 0),
        (&["--port", &port, "--follow", "1", "--body", "fine"], 0),
        (&["--unix", socket, "--path", "/health"], 0),
    ] {
        let found = once(words);
        assert_eq!(found.status, status, "{words:?}: {}", found.out);
    }
    nginx.stop();
}
