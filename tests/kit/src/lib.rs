//! The tests' harness: programs are started and watched from outside, as an operator would.
//!
//! | I need | module |
//! | --- | --- |
//! | a program under test, its event lines, its end | [`run`] |
//! | one request | [`http`] |
//! | a server that does what no server should | [`hostile`] |
//! | certificates | [`certs`] |
//! | an app that replsock can reach | [`live`] |
//! | a command that replsock serves, and who comes to it | [`served`] |
//! | many requests, each failure counted by its kind | [`load`] |
//! | hosts with addresses of their own | [`net`] |
//! | an etcd | [`etcd`] |
//! | a temporary directory | [`dir`] |
//! | a file system that fills up, freezes or becomes read-only | [`mount`] |
//! | a file system like that of a network, and one that hangs | [`fuse`] |
//! | numbered lines, and what of them arrived | [`logs`] |
//! | a file touched, and how often that was seen | [`touch`] |
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc
)]

pub mod certs;
pub mod dir;
pub mod etcd;
pub mod fuse;
pub mod hostile;
pub mod http;
pub mod live;
pub mod load;
pub mod logs;
pub mod mount;
pub mod net;
pub mod run;
pub mod served;
pub mod touch;

pub use dir::Dir;
pub use run::{Finished, Run, Running, field};

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything is waited for: a slow machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One of `tests/apps`.
#[must_use]
pub fn app(name: &str) -> PathBuf {
    root().join("tests/apps").canonicalize().unwrap().join(name)
}

/// Another program of the workspace than the one whose tests run, beside it: built when it is missing or
/// older than its source.
#[must_use]
pub fn sibling(own: &str, name: &str) -> PathBuf {
    let path = Path::new(own).with_file_name(name);
    let release = path.components().any(|part| part.as_os_str() == "release");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = std::process::Command::new(cargo);
    build
        .args(["build", "--quiet", "--package", name, "--bin", name])
        .current_dir(root());
    if release {
        build.arg("--release");
    }
    let built = build.output().unwrap();
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    assert!(built.status.success() && path.exists(), "{name}: {said}");
    path
}

/// Where `tests/setup.sh` puts what comes from npm.
#[must_use]
pub fn cache() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from);
    from("NIRVANA_CACHE").unwrap_or_else(|| {
        from("XDG_CACHE_HOME")
            .unwrap_or_else(|| {
                from("HOME")
                    .unwrap_or_else(|| "/root".into())
                    .join(".cache")
            })
            .join("nirvana-tests")
    })
}

/// The node of a major version.
#[must_use]
pub fn node(version: &str) -> PathBuf {
    let path = cache().join(format!("node-{version}/bin/node"));
    assert!(
        path.exists(),
        "{} is missing: run tests/setup.sh",
        path.display()
    );
    path
}

/// The releases of Node that everything is tried on.
pub const NODES: [&str; 6] = ["16", "18", "20", "22", "24", "26"];

/// Asks again and again until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody has at the moment.
#[must_use]
pub fn free_port() -> u16 {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    // Below the range of ephemeral ports, which connecting clients take at random; each process of the
    // tests begins elsewhere, and what one of them was given no other gets: an abstract name stands for it.
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000
            + (std::process::id() as u16)
                .wrapping_mul(37)
                .wrapping_add(step)
                % 20_000;
        let taken = SocketAddr::from_abstract_name(format!("nirvana-test-port-{port}"))
            .and_then(|name| UnixListener::bind_addr(&name));
        let Ok(taken) = taken else {
            continue;
        };
        if std::net::TcpListener::bind(("::", port)).is_ok() {
            TAKEN.lock().unwrap().push(taken);
            return port;
        }
    }
}
