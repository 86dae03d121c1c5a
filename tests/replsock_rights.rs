//! Who may come in, and where sockets may lie. Run as root, which can be another user, too.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs
)]

use kit::live::Live;
use kit::{Dir, Run, eventually, node};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

const APP: &str = "globalThis.counter = 5; setInterval(() => {}, 1000);\n";

fn live() -> Live {
    let node = node("20");
    Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    )
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
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn nothing_is_for_others_from_its_first_moment() {
    let live = live();
    let socket = live.socket();
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
    let outer = socket.parent().unwrap().parent().unwrap();
    let wanted = if nix::unistd::geteuid().is_root() {
        0o711
    } else {
        0o700
    };
    assert_eq!(mode(outer), wanted);
}

#[test]
fn another_user_does_not_come_in() {
    if !is_root() {
        return;
    }
    // Edge case 24.
    let live = live();
    let socket = live.socket();
    let ask = |path: &str| {
        as_nobody(&live.dir, &["eval", path, "counter = 9"])
            .env("REPLSOCK_DIR", live.dir.path().join("sockets"))
            .finish()
    };
    let refused = ask(socket.to_str().unwrap());
    assert_eq!(refused.status, 126, "{}", refused.err);
    let refused = ask("shop");
    assert!([126, 127].contains(&refused.status), "{}", refused.err);
    // Where the directory was opened, the socket itself keeps him out.
    let place = socket.parent().unwrap();
    std::fs::set_permissions(place, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(ask(socket.to_str().unwrap()).status, 126);
    assert_eq!(live.value("counter"), "5");
}

#[test]
fn a_trap_of_another_user_is_not_walked_into() {
    if !is_root() {
        return;
    }
    // Root looks for APP, and nobody has laid something out in a directory of root's that he can write to.
    let dir = Dir::new();
    let place = dir.path().join("sockets");
    let shop = place.join("shop");
    std::fs::create_dir_all(&shop).unwrap();
    for path in [&place, &shop] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o1777)).unwrap();
    }
    let trap = shop.join("1.sock");
    let _nobody = Run::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "socat"])
        .args([&format!("UNIX-LISTEN:{},fork", trap.display()), "PIPE"])
        .start();
    eventually("the trap", || trap.exists().then_some(()));
    let ask = |target: &str| {
        Run::new(PROGRAM)
            .args(["eval", target, "1"])
            .env("REPLSOCK_DIR", &place)
            .finish()
    };
    let refused = ask(trap.to_str().unwrap());
    assert_eq!(refused.status, 126, "{}", refused.err);
    assert!(
        refused.err.contains("no process of ours"),
        "{}",
        refused.err
    );
    assert_eq!(ask("shop").status, 126);
}

#[test]
fn directories_that_others_could_use_are_refused() {
    let node = node("20");
    let dir = Dir::new();
    let start = |place: &Path| {
        Run::new(PROGRAM)
            .args([
                "env",
                "--app",
                "shop",
                "--",
                node.to_str().unwrap(),
                "-p",
                "1",
            ])
            .env("REPLSOCK_DIR", place)
            .finish()
    };
    // Edge case 26.
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    for rights in [0o777, 0o770, 0o722] {
        std::fs::set_permissions(&open, PermissionsExt::from_mode(rights)).unwrap();
        let refused = start(&open);
        assert_eq!(refused.status, 126, "{rights:o}: {}", refused.err);
        assert!(
            refused.err.contains("others can write there"),
            "{}",
            refused.err
        );
        let refused = Run::new(PROGRAM)
            .arg("ls")
            .env("REPLSOCK_DIR", &open)
            .finish();
        assert_eq!(refused.status, 126, "{}", refused.err);
    }
    let real = dir.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let link: PathBuf = dir.path().join("link");
    symlink(&real, &link).unwrap();
    let refused = start(&link);
    assert_eq!(refused.status, 126, "{}", refused.err);
    assert!(refused.err.contains("symbolic link"), "{}", refused.err);
    let file = dir.write("file", "");
    assert_eq!(start(&file).status, 126);
    if is_root() {
        let others = dir.path().join("others");
        std::fs::create_dir(&others).unwrap();
        std::os::unix::fs::chown(&others, Some(65534), Some(65534)).unwrap();
        let refused = as_nobody(&dir, &["ls"]).env("REPLSOCK_DIR", &real).finish();
        // Root's own is fine for looking; it holds nothing.
        assert_eq!(
            (refused.status, refused.out.as_str()),
            (0, ""),
            "{}",
            refused.err
        );
    }
}

#[test]
fn an_app_that_becomes_another_user_is_reached_by_root() {
    if !is_root() {
        return;
    }
    // Edge case 25: its sockets go where it can make some; root finds them there.
    let node_path = node("20");
    let dir = Dir::new();
    let copy = dir.path().join("node");
    std::fs::copy(&node_path, &copy).unwrap();
    let app = format!("shop{}", std::process::id());
    let program = "globalThis.counter = 5; setInterval(() => {}, 1000)";
    let place = dir.path().join("sockets");
    let mut running = Run::new(PROGRAM)
        .args(["env", "--app", &app, "--", "setpriv"])
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["-e", program])
        .env("REPLSOCK_DIR", &place)
        .start();
    let socket = PathBuf::from(format!("/tmp/replsock-65534/{app}/{}.sock", running.pid()));
    eventually("its socket", || socket.exists().then_some(()));
    assert_eq!(mode(&socket), 0o600);
    let answer = Run::new(PROGRAM).args(["eval", &app, "counter"]).finish();
    assert_eq!(
        (answer.status, answer.out.as_str()),
        (0, "5\n"),
        "{}",
        answer.err
    );
    assert_eq!(running.stop(), 143);
    let _ = std::fs::remove_dir_all(socket.parent().unwrap());
}

#[test]
fn a_stale_socket_of_the_same_number_is_taken_over_and_a_live_one_is_not() {
    // Two pid namespaces share a directory, and both have a process 1: the second takes another name.
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let place = dir.path().join("sockets");
    let node = node("20");
    let start = |marker: &str| {
        Run::new(PROGRAM)
            .args([
                "env",
                "--app",
                "shop",
                "--",
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .arg(&node)
            .args([
                "-e",
                &format!("globalThis.me = '{marker}'; setInterval(() => {{}}, 1000)"),
            ])
            .env("REPLSOCK_DIR", &place)
            .start()
    };
    let ask = |words: &[&str]| {
        Run::new(PROGRAM)
            .args(words)
            .env("REPLSOCK_DIR", &place)
            .finish()
    };
    let first = start("one");
    eventually("the first", || {
        (ask(&["eval", "shop", "me"]).out == "'one'\n").then_some(())
    });
    let _second = start("two");
    eventually("both", || {
        let all = ask(&["eval", "--all", "--raw", "shop", "me"]).out;
        (all.contains(": one") && all.contains(": two")).then_some(())
    });
    // Edge case 27 and 28, and 30: the pid is the one of our own namespace.
    let listed = ask(&["ls", "--json", "shop"]).out;
    assert!(!listed.contains("\"pid\":1,"), "{listed}");
    drop(first);
}
