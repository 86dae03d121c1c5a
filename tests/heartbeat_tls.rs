//! HTTPS: certificates that signed themselves, that a CA has signed, that ended; and who speaks what.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, says};
use kit::{Dir, Finished, Run, Running, certs, eventually, free_port};
use nix::sys::signal::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");

/// node behind the certificate of `dir`.
struct Server {
    dir: Dir,
    port: String,
    node: Running,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.node.signal(Signal::SIGKILL);
    }
}

impl Server {
    fn new(dir: Dir) -> Server {
        let port = free_port().to_string();
        dir.write(
            "tls.js",
            "const fs = require('fs');\n\
             const options = { key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') };\n\
             require('https').createServer(options, (q, r) => r.end('hello'))\n\
             .listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));\n",
        );
        let mut node = Run::new("node")
            .arg("tls.js")
            .env("PORT", &port)
            .dir(dir.path())
            .start();
        node.out_line("listening", |line| line == "listening");
        Server { dir, port, node }
    }

    fn once(&self, words: &[&str]) -> Finished {
        let url = format!("https://localhost:{}/", self.port);
        Run::new(PROGRAM)
            .args(["--once", "--url", &url])
            .args(words)
            .dir(self.dir.path())
            .finish()
    }
}

// Edge case 42.
#[test]
fn a_certificate_that_signed_itself() {
    let dir = Dir::new();
    certs::self_signed(&dir, 30);
    let server = Server::new(dir);
    let found = server.once(&[]);
    assert!(
        found.status == 1 && found.out.contains(" cert "),
        "{}{}",
        found.out,
        found.err
    );
    let found = server.once(&["--cacert", "cert.pem", "--body", "hello"]);
    assert_eq!(found.status, 0, "{}{}", found.out, found.err);
    let found = server.once(&["--insecure"]);
    assert_eq!(found.status, 0, "{}", found.out);
    // It ends within sixty days, but not within ten.
    let found = server.once(&["--cacert", "cert.pem", "--cert-warn", "60d"]);
    assert!(
        found.status == 0
            && found.out.contains(" slow ")
            && found.out.contains("the certificate ends on 20"),
        "{}",
        found.out
    );
    let found = server.once(&[
        "--cacert",
        "cert.pem",
        "--cert-warn",
        "60d",
        "--format",
        "nagios",
    ]);
    assert!(
        found.status == 1 && found.out.starts_with("HEARTBEAT WARNING - "),
        "{}",
        found.out
    );
    let found = server.once(&["--cacert", "cert.pem", "--cert-warn", "10d"]);
    assert!(
        found.status == 0 && found.out.contains(" ok "),
        "{}",
        found.out
    );
}

#[test]
fn a_certificate_of_a_ca() {
    let dir = Dir::new();
    certs::ca_signed(&dir);
    let server = Server::new(dir);
    let found = server.once(&["--cacert", "ca.pem"]);
    assert_eq!(found.status, 0, "{}{}", found.out, found.err);
    let found = server.once(&[]);
    assert!(
        found
            .out
            .contains("cert its issuer is unknown (--cacert would do)"),
        "{}",
        found.out
    );
    let found = server.once(&["--cacert", "ca.pem", "--host", "other.test"]);
    assert!(
        found.out.contains("cert it is for another name"),
        "{}",
        found.out
    );
    // By its address, which the certificate names too.
    let url = format!("https://127.0.0.1:{}/", server.port);
    let found = Run::new(PROGRAM)
        .args(["--once", "--url", &url, "--cacert", "ca.pem"])
        .dir(server.dir.path())
        .finish();
    assert_eq!(found.status, 0, "{}", found.out);
    // Whom the system trusts is in the file that SSL_CERT_FILE names.
    let url = format!("https://localhost:{}/", server.port);
    let found = Run::new(PROGRAM)
        .args(["--once", "--url", &url])
        .env("SSL_CERT_FILE", server.dir.path().join("ca.pem"))
        .finish();
    assert_eq!(found.status, 0, "{}{}", found.out, found.err);
}

#[test]
fn a_certificate_that_ended() {
    let dir = Dir::new();
    certs::expired(&dir);
    let server = Server::new(dir);
    for file in ["ca.pem", "cert.pem"] {
        let found = server.once(&["--cacert", file]);
        assert!(
            found.status == 1 && found.out.contains(" cert it ended on 2020-02-01"),
            "{file}: {}{}",
            found.out,
            found.err
        );
    }
    assert_eq!(server.once(&["--insecure"]).status, 0);
}

// Edge case 14.
#[test]
fn plain_on_a_port_that_is_asked_for_tls_and_the_other_way_round() {
    let plain = Hostile::new(says(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    ));
    let url = format!("https://localhost:{}/", plain.port);
    let found = Run::new(PROGRAM)
        .args(["--once", "--insecure", "--url", &url])
        .finish();
    assert!(
        found.status == 1
            && found
                .out
                .contains("tls the server speaks plain HTTP: http:// would do"),
        "{}",
        found.out
    );

    // node's TLS closes without a word, or with an alert; nginx explains itself in plain HTTP.
    let dir = Dir::new();
    certs::self_signed(&dir, 30);
    let server = Server::new(dir);
    let found = Run::new(PROGRAM)
        .args(["--once", "--port", &server.port])
        .finish();
    assert!(
        found.status == 1
            && (found.out.contains("eof closed without a reply")
                || found
                    .out
                    .contains("tls the server speaks TLS: https:// would do")),
        "{}",
        found.out
    );
    let port = free_port().to_string();
    let dir = &server.dir;
    dir.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;\n\
             events {{}}\n\
             http {{ access_log off; server {{ listen 127.0.0.1:{port} ssl;\n\
             ssl_certificate cert.pem; ssl_certificate_key key.pem; return 200 hello; }} }}\n"
        ),
    );
    let prefix = dir.path().to_str().unwrap();
    let mut nginx = Run::new("nginx")
        .args(["-p", prefix, "-c", "nginx.conf"])
        .dir(dir.path())
        .start();
    let url = format!("https://localhost:{port}/");
    let found = Run::new(PROGRAM)
        .args(["--wait", "60s", "--start-interval", "50ms", "--url", &url])
        .args(["--cacert", "cert.pem", "--body", "hello"])
        .dir(dir.path())
        .finish();
    assert_eq!(found.status, 0, "{}{}", found.out, found.err);
    let found = Run::new(PROGRAM).args(["--once", "--port", &port]).finish();
    assert!(
        found.status == 1 && found.out.contains(" status 400"),
        "{}",
        found.out
    );
    nginx.signal(Signal::SIGKILL);
}

// Edge case 42, in the loop: the certificate is said to end soon once, and not at each check.
#[test]
fn a_certificate_that_ends_soon_is_said_once() {
    let dir = Dir::new();
    certs::self_signed(&dir, 30);
    let server = Server::new(dir);
    let url = format!("https://localhost:{}/", server.port);
    let words = [
        &["--url", &url, "--cacert", "cert.pem", "--fails", "2"][..],
        &["--start-interval", "50ms", "--interval", "50ms"],
        &["--fast-interval", "50ms", "--jitter", "0"],
        &[
            "--on-slow",
            "echo told >>told",
            "--on-ok",
            "echo ok >>count",
        ],
    ]
    .concat();
    let checks = || {
        let text = std::fs::read_to_string(server.dir.path().join("count")).unwrap_or_default();
        text.lines().count()
    };
    let start = |more: &[&str]| {
        let _ = std::fs::remove_file(server.dir.path().join("count"));
        Run::new(PROGRAM)
            .args(&words)
            .args(more)
            .dir(server.dir.path())
            .start()
    };
    let mut beat = start(&["--cert-warn", "60d"]);
    let line = beat.out_line("slow", |line| line.contains(" SLOW "));
    assert!(line.contains(" the certificate ends on 20"), "{line}");
    eventually("ten more checks", || (checks() >= 12).then_some(()));
    assert_eq!(beat.stop(), 0);
    // The first success, and then that.
    assert_eq!(beat.out().lines().count(), 3, "{}", beat.out());
    assert!(beat.out().contains(" run  echo told"), "{}", beat.out());
    let told = std::fs::read_to_string(server.dir.path().join("told")).unwrap();
    assert_eq!(told, "told\n");
    // As an event, which says why as well.
    let mut beat = start(&["--cert-warn", "60d", "--format", "json"]);
    let line = beat.out_line("slow", |line| line.contains("service-slow"));
    assert!(
        line.contains("\"error\":\"the certificate ends on 20"),
        "{line}"
    );
    beat.stop();
    // Long before its end nothing is said.
    let mut beat = start(&["--cert-warn", "10d"]);
    eventually("ten checks", || (checks() >= 10).then_some(()));
    beat.stop();
    assert_eq!(beat.out().lines().count(), 1, "{}", beat.out());
}

#[test]
fn a_handshake_that_hangs_obeys_the_limit() {
    let silent = Hostile::new(vec![kit::hostile::Step::Wait]);
    let url = format!("https://localhost:{}/", silent.port);
    let found = Run::new(PROGRAM)
        .args(["--once", "--insecure", "--timeout", "400ms", "--url", &url])
        .finish();
    assert!(
        found
            .out
            .contains("timeout after 400.0ms (connected, no TLS)"),
        "{}",
        found.out
    );
}

#[test]
fn certificates_are_read_again_on_hup() {
    let dir = Dir::new();
    certs::ca_signed(&dir);
    std::fs::copy(dir.path().join("ca.pem"), dir.path().join("right.pem")).unwrap();
    let other = Dir::new();
    certs::self_signed(&other, 30);
    std::fs::copy(
        other.path().join("cert.pem"),
        dir.path().join("trusted.pem"),
    )
    .unwrap();
    let server = Server::new(dir);
    let url = format!("https://localhost:{}/", server.port);
    let mut beat = Run::new(PROGRAM)
        .args(["--url", &url, "--cacert", "trusted.pem", "--verbose"])
        .args(["--start-interval", "100ms", "--interval", "100ms"])
        .dir(server.dir.path())
        .start();
    beat.out_line("unknown", |line| line.contains("its issuer is unknown"));
    std::fs::copy(
        server.dir.path().join("right.pem"),
        server.dir.path().join("trusted.pem"),
    )
    .unwrap();
    beat.signal(Signal::SIGHUP);
    beat.event("reloaded");
    beat.out_line("up", |line| line.contains(" UP "));
    // One that cannot be read changes nothing.
    server.dir.write("trusted.pem", "nothing\n");
    beat.signal(Signal::SIGHUP);
    let line = beat.event("reloaded");
    assert!(line.contains("it holds no certificate in PEM"), "{line}");
    beat.out_line("ok", |line| line.contains(" ok "));
    assert_eq!(beat.stop(), 0);
}
