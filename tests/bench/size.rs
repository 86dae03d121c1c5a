//! `make bench`, the last part: how much of a disk the programs take; the peers with what they bring along, by what
//! their package says of itself or by what lies in its directory.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

const OURS: [&str; 5] = [
    "heartbeat",
    "logreopen",
    "replsock",
    "spawnwork",
    "watchtouch",
];
const PACKAGES: [&str; 14] = [
    "s6",
    "runit",
    "daemontools",
    "supervisor",
    "monit",
    "gunicorn",
    "uwsgi-core",
    "libserver-starter-perl",
    "apache2-utils",
    "cronolog",
    "inotify-tools",
    "entr",
    "socat",
    "dtach",
];
const MODULES: [&str; 2] = ["pm2", "recluster"];

fn hand_over(name: &str, subject: &str, kib: f64) {
    println!("{name:24} {subject:24} {kib:9.0} KiB");
    report::less("size", name, "KiB", subject, &[kib]);
}

/// All files below it, in KiB; links are not followed.
fn below(path: &Path) -> f64 {
    let Ok(metadata) = path.symlink_metadata() else {
        return 0.0;
    };
    if !metadata.is_dir() {
        return metadata.len() as f64 / 1024.0;
    }
    let entries = std::fs::read_dir(path).unwrap().flatten();
    entries.map(|entry| below(&entry.path())).sum()
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench size");
        return;
    }
    let root = kit::root().canonicalize().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let release = root.join(target).join("release");
    let mut all = 0.0;
    for name in OURS {
        let kib = below(&release.join(name));
        all += kib;
        hand_over("a program", name, kib);
    }
    hand_over("installed", "spawnwork and the other four", all);
    for name in PACKAGES {
        let asked = Command::new("dpkg-query")
            .args(["-W", "-f", "${Installed-Size}", name])
            .output();
        let size = asked
            .ok()
            .and_then(|output| String::from_utf8_lossy(&output.stdout).parse().ok());
        match size {
            Some(kib) => hand_over("installed", name, kib),
            None => report::absent("size", name, "not installed"),
        }
    }
    let modules = kit::cache().join("frameworks/node_modules");
    for name in MODULES {
        if modules.join(name).exists() {
            hand_over(
                "installed",
                &format!("{name}, without what it depends on"),
                below(&modules.join(name)),
            );
        } else {
            report::absent("size", name, "not installed");
        }
    }
}
