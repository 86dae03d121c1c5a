//! `eval`: a program for one process or for all of an app, its value on stdout, its fate as the status.

use crate::audit::Trail;
use crate::cli::Eval;
use crate::events;
use crate::frames::Hello;
use crate::link::{Link, wait_for};
use crate::served::{self, Input};
use crate::target::{self, Target};
use crate::wire::{Answer, Request};
use common::cli::{note, print};
use common::control::visible;
use common::error::{Doing, Error, Result};
use common::exit::Exit;
use nix::unistd::isatty;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The agent keeps the time limit itself; so much later it is plain that it cannot.
pub const GRACE: Duration = Duration::from_secs(1);

/// The default of `--timeout`.
const USUAL: Duration = Duration::from_secs(5);

/// Evaluates.
pub fn run(order: Eval) -> Result<Exit> {
    if order.compare && !order.all {
        return Err(Error::usage(
            "--compare needs --all: one answer has nothing to differ from",
        ));
    }
    if let Some(exit) = served(&order)? {
        return Ok(exit);
    }
    let code = program(&order)?;
    if code.trim().is_empty() {
        return Ok(Exit::Ok);
    }
    let targets = if order.all {
        target::all(&order.reach)?
    } else {
        vec![crate::inject::target(&order.reach)?]
    };
    let name = &order.reach.target;
    let mut trail = Trail::open(order.reach.audit.as_deref(), order.reach.audit_expr, name)?;
    trail.say(events::CONNECTED, &[]);
    let begun = Instant::now();
    let fates = ask(&order, &code, targets)?;
    let ok = fates.iter().all(|(_, fate)| exit_of(fate) == Exit::Ok);
    trail.evaluated(&code, ok, begun.elapsed());
    if order.json {
        tell_json(&fates)?;
    } else if order.compare {
        return tell_groups(&fates);
    } else if order.all {
        tell_each(&fates)?;
    } else {
        return fates
            .into_iter()
            .next()
            .map_or(Ok(Exit::Ok), |(_, fate)| tell_one(fate));
    }
    Ok(worst(&fates))
}

/// A path or a port may lead to a command that is served: then the input is the command's, byte for byte,
/// and its status is ours. `None`: it is an agent.
fn served(order: &Eval) -> Result<Option<Exit>> {
    if order.all || !target::is_place(&order.reach.target) {
        return Ok(None);
    }
    let Some(target) = target::all(&order.reach)?.into_iter().next() else {
        return Ok(None);
    };
    let hello = Hello {
        mode: "pipe".to_owned(),
        read_only: order.read_only,
        ..Hello::default()
    };
    let limit = timeout(order);
    let deadline = (!limit.is_zero()).then(|| Instant::now() + limit + GRACE);
    let (link, answer) = Link::meet(&target.place, &hello, deadline)?;
    if answer.mode != "serve" {
        return Ok(None);
    }
    let input = if order.expression.is_empty() {
        something_to_read()?;
        Input::Stdin
    } else {
        Input::Given((order.expression.join(" ") + "\n").into_bytes())
    };
    let name = &order.reach.target;
    let mut trail = Trail::open(order.reach.audit.as_deref(), order.reach.audit_expr, name)?;
    trail.say(events::CONNECTED, &[]);
    let begun = Instant::now();
    let session = served::Order {
        reach: &order.reach,
        input,
        // However late an answer comes, unless somebody has said how late it may be.
        timeout: order.timeout.filter(|limit| !limit.is_zero()),
    };
    let end = served::run(link, &answer, session);
    if !order.expression.is_empty() {
        let ok = matches!(&end, Ok(exit) if exit.code() == 0);
        trail.evaluated(&order.expression.join(" "), ok, begun.elapsed());
    }
    end.map(Some)
}

/// For an agent.
fn timeout(order: &Eval) -> Duration {
    order.timeout.unwrap_or(USUAL)
}

fn something_to_read() -> Result<()> {
    if isatty(common::sys::standard(0)).unwrap_or(false) {
        return Err(Error::usage(
            "nothing to evaluate: an expression behind TARGET, or a program on stdin would do; replsock TARGET is the interactive session",
        ));
    }
    Ok(())
}

/// What is evaluated: the words, or all of stdin as one program.
fn program(order: &Eval) -> Result<String> {
    if !order.expression.is_empty() {
        return Ok(order.expression.join(" "));
    }
    something_to_read()?;
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .doing("read the program from standard input")?;
    String::from_utf8(bytes).map_err(|_| Error::usage("the program on standard input is no UTF-8"))
}

/// The connection, and the number of what was asked there.
type Asked = std::result::Result<(Link, u64), Error>;

/// How it went at one process.
type Fate = std::result::Result<Answer, Error>;

fn request(order: &Eval, code: &str) -> Request {
    Request {
        op: "eval",
        code: Some(code.to_owned()),
        mode: Some(if order.json {
            "json"
        } else if order.raw {
            "raw"
        } else {
            "text"
        }),
        timeout_ms: Some(timeout(order).as_millis() as u64),
        read_only: Some(order.read_only),
        colors: Some(
            !order.compare
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                && isatty(common::sys::standard(1)).unwrap_or(false),
        ),
        limit: Some(order.limit),
        force: Some(order.force),
        ..Request::default()
    }
}

/// All are connected to first, then all are asked, then all are waited for.
fn ask(order: &Eval, code: &str, targets: Vec<Target>) -> Result<Vec<(Target, Fate)>> {
    let mut links: Vec<(Target, Asked)> = targets
        .into_iter()
        .map(|mut target| {
            let hello = Hello {
                mode: "json".to_owned(),
                read_only: order.read_only,
                ..Hello::default()
            };
            let asked = Link::open(&target.place, &hello).and_then(|mut link| {
                target.pid = if link.peer.pid > 0 {
                    link.peer.pid
                } else {
                    target.pid
                };
                let id = link.ask(request(order, code))?;
                Ok((link, id))
            });
            (target, asked)
        })
        .collect();
    let deadline = (!timeout(order).is_zero()).then(|| Instant::now() + timeout(order) + GRACE);
    let mut fates: Vec<Option<Fate>> = links
        .iter_mut()
        .map(|(_, asked)| asked.as_ref().err().map(|error| Err(error.clone())))
        .collect();
    while fates.iter().any(Option::is_none) {
        let open: Vec<usize> = (0..links.len())
            .filter(|at| fates.get(*at).is_some_and(Option::is_none))
            .collect();
        let fds: Vec<_> = open
            .iter()
            .filter_map(|at| links.get(*at)?.1.as_ref().ok())
            .map(|(link, _)| link.as_fd())
            .collect();
        let ready = wait_for(&fds, deadline)?;
        if !ready.contains(&true) {
            for at in open {
                if let (Some(fate), Some((target, _))) = (fates.get_mut(at), links.get(at)) {
                    *fate = Some(Err(blocked(target, timeout(order))));
                }
            }
            break;
        }
        for (at, ready) in open.into_iter().zip(ready) {
            let Some((_, Ok((link, id)))) = links.get_mut(at) else {
                continue;
            };
            if !ready {
                continue;
            }
            let fate = hear(link, *id);
            if let (Some(slot), Some(fate)) = (fates.get_mut(at), fate) {
                *slot = Some(fate);
            }
        }
    }
    Ok(links
        .into_iter()
        .zip(fates)
        .filter_map(|((target, _), fate)| Some((target, fate?)))
        .collect())
}

fn hear(link: &mut Link, id: u64) -> Option<Fate> {
    if let Err(error) = link.read() {
        return Some(Err(error));
    }
    while let Some(answer) = link.next_answer() {
        if answer.id == Some(id) {
            return Some(Ok(answer));
        }
    }
    if let Ok(hello) = link.greeting(Some(Instant::now())) {
        if hello.mode == "serve" {
            return Some(Err(Error::new(
                "evaluate there",
                "it is a command that is served, no agent: name its socket by its path, without --all",
            )));
        }
    }
    None
}

fn blocked(target: &Target, limit: Duration) -> Error {
    Error::new(
        &format!("evaluate in {}", target.name),
        format!(
            "no answer within {}: its event loop is blocked (replsock stack --inject {} shows where)",
            common::time::say(limit + GRACE),
            target.pid
        ),
    )
    .with_exit(Exit::TimedOut)
}

fn exit_of(fate: &Fate) -> Exit {
    match fate {
        Ok(answer) if answer.ok => Exit::Ok,
        Ok(answer) if answer.timed_out => Exit::TimedOut,
        Ok(answer) if answer.would_end => Exit::NotExecutable,
        Ok(_) => Exit::No,
        Err(error) => error.exit,
    }
}

fn worst(fates: &[(Target, Fate)]) -> Exit {
    fates
        .iter()
        .map(|(_, fate)| exit_of(fate))
        .max_by_key(|exit| exit.code())
        .unwrap_or(Exit::Ok)
}

fn tell_one(fate: Fate) -> Result<Exit> {
    let answer = fate?;
    let exit = exit_of(&Ok(answer.clone()));
    if answer.ok {
        if answer.kind != "undefined" {
            print(&answer.text)?;
        }
        if answer.truncated {
            note("replsock: the answer was cut; --limit 0 prints all of it");
        }
    } else if answer.would_end {
        let way = if answer
            .message
            .as_deref()
            .is_some_and(|text| text.starts_with("process."))
        {
            "; --force does it"
        } else {
            ""
        };
        note(&format!("replsock: {}{way}", message(&answer)));
    } else if answer.timed_out {
        note(&format!("replsock: {}", answer.text));
    } else {
        note(&answer.text);
    }
    Ok(exit)
}

fn message(answer: &Answer) -> String {
    let text = answer
        .message
        .clone()
        .unwrap_or_else(|| answer.text.clone());
    visible(text.lines().next().unwrap_or_default())
}

/// `shop/1 (pid 4711)`
fn label(target: &Target) -> String {
    let draining = if target.draining { ", draining" } else { "" };
    format!("{} (pid {}{draining})", target.name, target.pid)
}

/// Why one has no value, in one line.
fn failure(fate: &Fate) -> Option<String> {
    match fate {
        Ok(answer) if answer.ok => None,
        Ok(answer) if answer.timed_out => Some(visible(&answer.text)),
        Ok(answer) => Some(visible(answer.text.lines().next().unwrap_or_default())),
        Err(error) => Some(error.to_string()),
    }
}

fn tell_each(fates: &[(Target, Fate)]) -> Result<()> {
    for (target, fate) in fates {
        match (fate, failure(fate)) {
            (Ok(answer), None) => {
                // More lines are set off from the next one's first.
                let text = answer.text.replace('\n', "\n    ");
                if !print(&format!("{}: {text}", label(target)))? {
                    return Ok(());
                }
            }
            (_, why) => note(&format!("{}: {}", label(target), why.unwrap_or_default())),
        }
    }
    Ok(())
}

fn tell_json(fates: &[(Target, Fate)]) -> Result<()> {
    for (target, fate) in fates {
        let value = match fate {
            Ok(answer) => answer.json.as_deref().and_then(|text| {
                serde_json::from_str::<Box<serde_json::value::RawValue>>(text).ok()
            }),
            Err(_) => None,
        };
        #[derive(serde::Serialize)]
        struct Line<'a> {
            name: &'a str,
            pid: i32,
            worker: Option<u32>,
            ok: bool,
            value: Option<Box<serde_json::value::RawValue>>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            undefined: bool,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            draining: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<String>,
            ms: f64,
        }
        let answer = fate.as_ref().ok();
        let line = Line {
            name: &target.name,
            pid: target.pid,
            worker: target.worker,
            ok: answer.is_some_and(|answer| answer.ok),
            value,
            undefined: answer.is_some_and(|answer| answer.undefined),
            draining: target.draining,
            error: failure(fate),
            ms: answer.map_or(0.0, |answer| answer.ms),
        };
        let text = serde_json::to_string(&line)
            .map_err(|why| Error::new("write an answer as JSON", why))?;
        if !print(&text)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Equal answers in one line, the most frequent first.
fn tell_groups(fates: &[(Target, Fate)]) -> Result<Exit> {
    let mut groups: BTreeMap<&str, Vec<&Target>> = BTreeMap::new();
    for (target, fate) in fates {
        match (fate, failure(fate)) {
            (Ok(answer), None) => groups.entry(&answer.text).or_default().push(target),
            (_, why) => note(&format!("{}: {}", label(target), why.unwrap_or_default())),
        }
    }
    let mut lines: Vec<(&str, Vec<&Target>)> = groups.into_iter().collect();
    lines.sort_by_key(|(_, targets)| std::cmp::Reverse(targets.len()));
    for (text, targets) in &lines {
        let pids: Vec<String> = targets
            .iter()
            .map(|target| target.pid.to_string())
            .collect();
        let (workers, names) = if targets.len() == 1 {
            ("1 worker".to_owned(), "pid")
        } else {
            (format!("{} workers", targets.len()), "pids")
        };
        let draining = targets.iter().filter(|target| target.draining).count();
        let draining = match draining {
            0 => String::new(),
            count => format!(", {count} draining"),
        };
        let text = text.replace('\n', "\n    ");
        if !print(&format!(
            "{workers}  {text}  ({names} {}{draining})",
            pids.join(" ")
        ))? {
            break;
        }
    }
    let exit = worst(fates);
    if exit == Exit::Ok && lines.len() > 1 {
        return Ok(Exit::No);
    }
    Ok(exit)
}
