//! The article's chain: a touch, a reload, and no request that failed.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]
use kit::load::{Load, Options};
use kit::touch::touch;
use kit::{Dir, Run, app, free_port, sibling};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");

/// `watchtouch tmp/restart.txt --signal USR2 -- spawnwork -n 2 -- node app.js`, five touches, each a reload.
#[test]
fn a_touch_reloads_and_no_request_fails() {
    let dir = Dir::new();
    let port = free_port();
    let mut chain = Run::new(PROGRAM)
        .args(["tmp/restart.txt", "--signal", "USR2", "--"])
        .arg(sibling(PROGRAM, "spawnwork"))
        .args(["-n", "2", "--probation", "50ms", "--", "node"])
        .arg(app("hello.js"))
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    chain.event("generation-serving");
    let load = Load::start(&Options {
        address: format!("127.0.0.1:{port}"),
        keep_alive: 24,
        fresh: 8,
        paths: vec!["/"],
        expect: "hello ",
        timeout: Duration::from_secs(30),
    });
    // The directory is made by the first deploy.
    std::fs::create_dir(dir.path().join("tmp")).unwrap();
    for _ in 0..5 {
        load.answer(50);
        touch(dir.path().join("tmp/restart.txt"));
        chain.event("signal-sent");
        chain.event("reload-committed");
    }
    load.answer(50);
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    assert!(tally.served.len() >= 12, "{:?}", tally.served);
    assert_eq!(chain.stop(), 0);
    let said = chain.err();
    assert_eq!(
        said.iter()
            .filter(|line| line.contains("reload-committed"))
            .count(),
        5
    );
    assert_eq!(
        said.iter()
            .filter(|line| line.contains("signal-sent"))
            .count(),
        5
    );
}
