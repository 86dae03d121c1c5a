//! On what it was measured, when, and with which versions.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Programs that say their version, and how they are asked.
const ASKED: [(&str, &str); 17] = [
    ("node", "node --version"),
    (
        "PM2",
        "node -p 'require(process.env.CACHE + \"/frameworks/node_modules/pm2/package.json\").version'",
    ),
    (
        "recluster",
        "node -p 'require(process.env.CACHE + \"/frameworks/node_modules/recluster/package.json\").version'",
    ),
    (
        "gunicorn",
        "$(ls \"$CACHE/python/bin/gunicorn\" || echo gunicorn) --version",
    ),
    (
        "watchexec",
        "$(ls \"$CACHE/watchexec/bin/watchexec\" || echo watchexec) --version",
    ),
    (
        "uWSGI",
        "$(command -v uwsgi || command -v uwsgi-core) --version",
    ),
    ("start_server", "start_server --version"),
    ("nginx", "nginx -v 2>&1"),
    ("check_http", "/usr/lib/nagios/plugins/check_http --version"),
    ("curl", "curl --version"),
    ("wget", "wget --version"),
    ("socat", "socat -V | grep -i 'socat version'"),
    ("dtach", "dtach --version"),
    ("monit", "monit --version"),
    ("supervisor", "supervisord --version"),
    ("entr", "entr 2>&1 | grep release"),
    ("inotifywait", "inotifywait --help 2>&1"),
];
/// Those that do not, by their Debian package.
const PACKAGED: [&str; 6] = [
    "s6",
    "runit",
    "daemontools",
    "apache2-utils",
    "cronolog",
    "etcd-server",
];

fn shell(line: &str) -> Option<String> {
    let output = Command::new("sh")
        .args(["-c", line])
        .env("CACHE", kit::cache())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    Some(line.trim().to_owned())
}

pub fn date() -> String {
    shell("date -u '+%F %H:%M'").unwrap_or_default()
}

pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("-").to_owned()
}

pub fn describe() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    format!(
        "Linux {}, {cpus} CPUs ({model}), {} GiB",
        kernel.trim(),
        (kib + (1 << 19)) >> 20
    )
}

/// One line: ours, then the peers that are there.
pub fn versions(root: &Path) -> String {
    let mut list = Vec::new();
    let revision = format!("git -C '{}' rev-parse --short HEAD", root.display());
    list.push(format!("ours {}", shell(&revision).unwrap_or_default()));
    for (name, line) in ASKED {
        if let Some(version) = shell(line).as_deref().and_then(digits) {
            list.push(format!("{name} {version}"));
        }
    }
    for name in PACKAGED {
        let line = format!("dpkg-query -W -f '${{Version}}' {name}");
        if let Some(version) = shell(&line) {
            list.push(format!("{name} {version}"));
        }
    }
    list.join(", ")
}

/// The first word that is a number with points in it.
fn digits(line: &str) -> Option<String> {
    line.split([' ', '/', ',', '(', ')', ':'])
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit()))
        .map(str::to_owned)
}
