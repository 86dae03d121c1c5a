//! The build without TLS: for a health check of half the size.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, says};
use kit::{Dir, Run, root};
use std::path::Path;
use std::process::Command;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn without_tls_https_is_refused_and_all_else_works() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plain");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "heartbeat"])
        .args(["--no-default-features", "--locked", "--offline"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    // No warning either: nothing is left over that only TLS needs.
    assert!(built.status.success() && said.is_empty(), "{said}");
    let program = target.join("debug/heartbeat");
    let run = |words: &[&str]| Run::new(&program).args(words).finish();

    let found = run(&["--once", "--url", "https://localhost/"]);
    assert_eq!(
        (found.status, found.out.as_str(), found.err.as_str()),
        (
            2,
            "",
            "heartbeat: --url: this heartbeat was built without TLS; http://, or a build with the feature tls, would do\n"
        )
    );
    let found = run(&[
        "--once",
        "--format",
        "nagios",
        "--url",
        "https://localhost/",
    ]);
    assert!(
        found.status == 3 && found.out.starts_with("HEARTBEAT UNKNOWN - "),
        "{}",
        found.out
    );
    let server = Hostile::new(says(OK));
    let port = server.port.to_string();
    for words in [
        &["--once", "--port", &port, "--body", "hello"][..],
        &[
            "--once",
            "--tcp",
            &format!("localhost:{port}"),
            "--send",
            "GET /\\r\\n\\r\\n",
            "--receive",
            "200",
        ],
        &["--once", "--exec", "true"],
        &["--once", "--pid", &std::process::id().to_string()],
        &["--explain", "--port", &port],
    ] {
        let found = run(words);
        assert_eq!(found.status, 0, "{words:?}: {}{}", found.out, found.err);
    }
    // TLS where HTTP was meant is seen without it; a redirect to it is not followed.
    let tls = Hostile::new(says(b"\x15\x03\x01\x00\x02\x02\x46"));
    let found = run(&["--once", "--port", &tls.port.to_string()]);
    assert!(
        found.out.contains(" tls the server speaks TLS"),
        "{}",
        found.out
    );
    let away = "HTTP/1.1 302 Found\r\nLocation: https://localhost/\r\nContent-Length: 0\r\n\r\n";
    let away = Hostile::new(says(away));
    let found = run(&["--once", "--follow", "1", "--port", &away.port.to_string()]);
    assert!(
        found.status == 1 && found.out.contains("another host"),
        "{}",
        found.out
    );
    // In the loop, with an action.
    let dir = Dir::new();
    let mut beat = Run::new(&program)
        .args(["--port", &tls.port.to_string(), "--fails", "1"])
        .args(["--start-period", "0", "--interval", "50ms", "--jitter", "0"])
        .args([
            "--on-fail",
            "echo $HEARTBEAT_REASON >told",
            "--exit-on-fail",
        ])
        .dir(dir.path())
        .start();
    assert_eq!(beat.end(), 1);
    let told = std::fs::read_to_string(dir.path().join("told")).unwrap();
    assert_eq!(told, "tls\n");
}
