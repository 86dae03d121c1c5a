//! What the fuzzer found worth keeping, once more, without a fuzzer.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use std::path::{Path, PathBuf};

/// Miri, which looks at every access to memory, takes a hundred times as long: it gets some of each corpus
/// (`make miri`).
const MOST: usize = if cfg!(miri) { 20 } else { usize::MAX };
/// These ask the system for what Miri does not have (sockets, locks), or are a command line, which takes it minutes.
const NOT_FOR_MIRI: [&str; 7] = [
    "control",
    "heartbeat_command_line",
    "ipc_frame",
    "pid_file",
    "replsock_inspector",
    "sd_notify",
    "spawnwork_command_line",
];

/// Runs each file of a target's corpus, and of each what is left of it when it is cut short: half a message
/// is what comes from one who dies.
fn replay(target: &str, run: impl Fn(&[u8])) {
    if cfg!(miri) && NOT_FOR_MIRI.contains(&target) {
        return;
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus.join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(files.len() > 3, "{target}: a corpus of {}", files.len());
    files.sort();
    for file in files.into_iter().take(MOST) {
        let bytes = std::fs::read(file).unwrap();
        run(&bytes);
        run(&bytes[..bytes.len() / 2]);
    }
    run(b"");
}

/// A test for each target, and that none is left out.
macro_rules! targets {
    ($($krate:ident: $($name:ident)*;)*) => {
        $($(
            #[test]
            fn $name() {
                replay(stringify!($name), $krate::$name::run);
            }
        )*)*

        const TARGETS: &[&str] = &[$($(stringify!($name),)*)*];
    };
}

targets! {
    fuzzed: arguments control events ipc_frame sd_notify pid_file
        proc replsock_frames replsock_inspector replsock_lines replsock_profile heartbeat_url;
    fuzzed_heartbeat: heartbeat_command_line heartbeat_proc;
    fuzzed_logreopen: logreopen_control logreopen_lines logreopen_queue logreopen_rotate;
    fuzzed_replsock: replsock_proc;
    fuzzed_spawnwork: spawnwork_command_line spawnwork_env_file spawnwork_proc spawnwork_request spawnwork_state;
    fuzzed_watchtouch: watchtouch_stamp;
}

#[test]
fn every_target_is_here() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let mut found: Vec<String> = std::fs::read_dir(targets)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    let mut listed = TARGETS.to_vec();
    found.sort();
    listed.sort_unstable();
    assert_eq!(found, listed);
}
