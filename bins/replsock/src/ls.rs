//! `ls`: who can be reached.

use crate::cli::Ls;
use crate::door::user_name;
use crate::target::{Found, State, survey};
use common::error::{Error, Result};
use common::exit::Exit;
use nix::unistd::{SysconfVar, sysconf};
use std::time::Duration;

/// Prints a line for each.
pub fn run(order: Ls) -> Result<Exit> {
    if let Some(app) = order.app.as_deref() {
        if !crate::target::is_app(app) {
            return Err(Error::usage(format!("'{app}' is no name of an app")));
        }
    }
    let mut found = survey(order.app.as_deref())?;
    if order.prune {
        found.retain(|found| {
            found.state != State::Stale || std::fs::remove_file(&found.path).is_err()
        });
    }
    if order.json {
        for one in &found {
            if !common::cli::print(&json(one))? {
                break;
            }
        }
    } else if !found.is_empty() {
        let rows: Vec<[String; 9]> = std::iter::once(HEAD.map(str::to_owned))
            .chain(found.iter().map(row))
            .collect();
        for line in table(&rows) {
            if !common::cli::print(&line)? {
                break;
            }
        }
    }
    if let (Some(app), true) = (&order.app, found.is_empty()) {
        return Err(
            Error::new(&format!("find {app}"), "nobody of that name can be reached")
                .with_exit(Exit::NotFound),
        );
    }
    Ok(Exit::Ok)
}

const HEAD: [&str; 9] = [
    "APP", "WORKER", "GEN", "PID", "USER", "UPTIME", "RSS", "STATE", "SOCKET",
];

fn row(found: &Found) -> [String; 9] {
    let none = || "-".to_owned();
    let number = |number: Option<u32>| number.map_or_else(none, |number| number.to_string());
    let alive = found.state != State::Stale;
    [
        found.app.clone(),
        number(found.worker),
        number(found.generation),
        found.pid.to_string(),
        user_name(found.uid),
        uptime(found.pid)
            .filter(|_| alive)
            .map_or_else(none, |length| match length.as_secs() {
                0 => "0s".to_owned(),
                seconds => common::time::say(Duration::from_secs(seconds)),
            }),
        common::child::rss(found.pid)
            .filter(|_| alive)
            .map_or_else(none, |bytes| format!("{}M", bytes >> 20)),
        found.state.name().to_owned(),
        common::control::visible(&found.path.to_string_lossy()),
    ]
}

/// Columns as wide as their widest, two blanks between.
fn table(rows: &[[String; 9]]) -> Vec<String> {
    let mut widths = [0usize; 9];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 9]| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// How long a process runs.
fn uptime(pid: i32) -> Option<Duration> {
    let stat = common::child::stat(pid)?;
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten()?.max(1) as f64;
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = text.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(up - stat.start as f64 / ticks).ok()
}

fn json(found: &Found) -> String {
    serde_json::json!({
        "app": found.app,
        "worker": found.worker,
        "generation": found.generation,
        "pid": found.pid,
        "user": user_name(found.uid),
        "uptime": uptime(found.pid).map(|length| length.as_secs()),
        "rss": common::child::rss(found.pid),
        "state": found.state.name(),
        "socket": found.path.to_string_lossy(),
    })
    .to_string()
}
