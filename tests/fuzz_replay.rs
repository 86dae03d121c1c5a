//! What the fuzzer found worth keeping, once more, without a fuzzer.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use std::path::Path;

/// Runs each file of a target's corpus, and of each what is left of it when it is cut short: half a message
/// is what comes from one who dies.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        run(&bytes);
        run(&bytes[..bytes.len() / 2]);
        count += 1;
    }
    assert!(count > 3, "{target}: a corpus of {count}");
    run(b"");
}

#[test]
fn arguments() {
    replay("arguments", fuzzed::arguments::run);
}

#[test]
fn control() {
    replay("control", fuzzed::control::run);
}

#[test]
fn ipc_frame() {
    replay("ipc_frame", fuzzed::ipc_frame::run);
}

#[test]
fn sd_notify() {
    replay("sd_notify", fuzzed::sd_notify::run);
}

#[test]
fn pid_file() {
    replay("pid_file", fuzzed::pid_file::run);
}

#[test]
fn proc() {
    replay("proc", fuzzed::proc::run);
}

#[test]
fn replsock_frames() {
    replay("replsock_frames", fuzzed::replsock_frames::run);
}

#[test]
fn replsock_inspector() {
    replay("replsock_inspector", fuzzed::replsock_inspector::run);
}

#[test]
fn replsock_lines() {
    replay("replsock_lines", fuzzed::replsock_lines::run);
}

#[test]
fn replsock_profile() {
    replay("replsock_profile", fuzzed::replsock_profile::run);
}

#[test]
fn heartbeat_url() {
    replay("heartbeat_url", fuzzed::heartbeat_url::run);
}
