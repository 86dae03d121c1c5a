//! A real NFS server and its clients, v3 and v4.2, in user-mode Linux: an ordinary process, without root.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use kit::Dir;
use std::process::Command;

// Edge cases 19, 21 and 22.
#[test]
fn on_nfs_each_change_is_seen_at_the_next_look() {
    let dir = Dir::new();
    let uml = kit::root().join("tests/uml").canonicalize().unwrap();
    // Into the one directory that the guest shares: its /tmp is its own, and may hide ours.
    for (from, name) in [
        (env!("CARGO_BIN_EXE_watchtouch").into(), "watchtouch"),
        (uml.join("nfs.sh"), "nfs.sh"),
        (uml.join("nfs.py"), "nfs.py"),
    ] {
        std::fs::copy(from, dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("program"), "/mnt/out/watchtouch\n").unwrap();
    // By then the client asks its server once a minute, if nobody makes it.
    std::fs::write(dir.path().join("idle"), "100\n").unwrap();
    let output = Command::new(uml.join("run.sh"))
        .arg("/mnt/out/nfs.sh")
        .arg(dir.path())
        .env("LIMIT", "400")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("touched after 100 s").count(), 2, "{said}");
}
