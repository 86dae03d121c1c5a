//! `prof`, `heap` and `stack`: what is taken out of a live process, and written where it was asked for.

use crate::audit::Trail;
use crate::cli::{Heap, Prof, Stack};
use crate::frames::Hello;
use crate::link::{Came, Link, wait_for};
use crate::whole::Whole;
use crate::wire::{Answer, Request};
use crate::{events, flame, inject, room, target, terminal};
use common::cli::{note, print};
use common::control::visible;
use common::error::{Error, Result};
use common::exit::Exit;
use nix::unistd::isatty;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// A loop that is not blocked answers within microseconds.
const ANSWER: Duration = Duration::from_secs(10);
/// A long profile takes its time to be put together.
const FETCH: Duration = Duration::from_secs(120);

fn open(reach: &crate::cli::Reach) -> Result<(target::Target, Link, Trail)> {
    let found = inject::target(reach)?;
    let link = Link::open(
        &found.place,
        &Hello {
            mode: "json".to_owned(),
            ..Hello::default()
        },
    )?;
    let mut trail = Trail::open(reach.audit.as_deref(), reach.audit_expr, &reach.target)?;
    trail.say(events::CONNECTED, &[]);
    Ok((found, link, trail))
}

fn done(doing: &str, answer: Answer) -> Result<Answer> {
    if answer.ok {
        return Ok(answer);
    }
    Err(Error::new(doing, visible(&answer.text)).with_exit(Exit::No))
}

/// `replsock prof`
pub fn prof(order: Prof) -> Result<Exit> {
    if !order.start && order.output.is_none() && order.svg.is_none() && !order.top {
        return Err(Error::usage(
            "nothing to do with the profile: -o FILE, --svg FILE or --top would do",
        ));
    }
    let (found, mut link, mut trail) = open(&order.reach)?;
    let doing = format!("profile {}", found.name);
    let begun = Instant::now();
    if !order.stop {
        let id = link.ask(Request {
            op: "profile",
            action: Some("start"),
            interval_us: Some((order.sampling.as_micros() as u64).max(50)),
            owned: Some(!order.start),
            ..Request::default()
        })?;
        let answer = link.answer(id, Some(Instant::now() + ANSWER))?;
        trail.inspected("profile", answer.ok, Duration::ZERO);
        done(&doing, answer)?;
        if order.start {
            note(&format!(
                "{} is profiled; replsock prof --stop fetches it",
                found.name
            ));
            return Ok(Exit::Ok);
        }
        count_down(&link, order.length)?;
    }
    let id = link.ask(Request {
        op: "profile",
        action: Some("stop"),
        ..Request::default()
    })?;
    let answer = link.answer(id, Some(Instant::now() + FETCH))?;
    trail.inspected("profile", answer.ok, begun.elapsed());
    let answer = done(&doing, answer)?;
    let profile = answer
        .profile
        .as_ref()
        .map(|profile| profile.get())
        .ok_or_else(|| Error::new(&doing, "its answer holds no profile"))?;
    let write = |path: &Path, text: &str| Whole::put(path, text.as_bytes());
    if let Some(path) = &order.output {
        write(path, profile)?;
    }
    if let Some(path) = &order.svg {
        let title = format!("{} (pid {})", found.name, link.peer.pid);
        write(path, &flame::svg(profile.as_bytes(), &title)?)?;
    }
    if order.top {
        print(flame::top(profile.as_bytes())?.trim_end())?;
    }
    Ok(Exit::Ok)
}

/// Waits, and says how long on a terminal; Control-C ends it early, the profile is kept.
fn count_down(link: &Link, length: Duration) -> Result<()> {
    let interrupts = terminal::guard(&[])?;
    let shown = isatty(common::sys::standard(2)).unwrap_or(false);
    let end = Instant::now() + length;
    loop {
        let now = Instant::now();
        let left = end.saturating_duration_since(now);
        if left.is_zero() {
            break;
        }
        if shown {
            let seconds = left.as_secs_f64().ceil();
            let _ = std::io::stderr()
                .lock()
                .write_all(format!("\r{seconds:4.0} s ").as_bytes());
        }
        let next = now + left.min(Duration::from_secs(1));
        let ready = wait_for(&[link.as_fd(), interrupts.as_fd()], Some(next))?;
        // Control-C, or the process has ended, which the next question will tell.
        if ready.contains(&true) {
            break;
        }
    }
    if shown {
        let _ = std::io::stderr().lock().write_all(b"\r\x1b[K");
    }
    Ok(())
}

/// `replsock heap`
pub fn heap(order: Heap) -> Result<Exit> {
    let (found, mut link, mut trail) = open(&order.reach)?;
    let doing = format!("take a snapshot of {}", found.name);
    let id = link.ask(Request {
        op: "info",
        ..Request::default()
    })?;
    let info = link.answer(id, Some(Instant::now() + ANSWER))?;
    let pid = link.peer.pid;
    let heap = info.heap_total;
    note(&format!(
        "replsock: pid {pid} stands still meanwhile, and may need another {} MB of memory",
        heap >> 20
    ));
    let room = room::of(pid).filter(|(free, _)| *free < heap.saturating_mul(2));
    if let (Some((free, place)), false) = (room, order.force) {
        return Err(Error::new(
            &doing,
            format!(
                "memory is short: its heap has {} MB, {} MB are free {place}; --force does it all the same",
                heap >> 20,
                free >> 20
            ),
        )
        .with_exit(Exit::NotExecutable));
    }
    let mut file = Whole::create(&order.output)?;
    let begun = Instant::now();
    let id = link.ask(Request {
        op: "heap",
        ..Request::default()
    })?;
    let answer = loop {
        match link.receive(Some(Instant::now() + FETCH))? {
            Came::Nothing => {
                return Err(Error::new(&doing, "nothing comes any more").with_exit(Exit::TimedOut));
            }
            Came::Answer(answer) if answer.id == Some(id) => match answer.chunk {
                Some(chunk) => file.write(chunk.as_bytes())?,
                None => break *answer,
            },
            Came::Answer(_) => {}
        }
    };
    trail.inspected("heap", answer.ok, begun.elapsed());
    done(&doing, answer)?;
    file.finish()?;
    Ok(Exit::Ok)
}

/// `replsock stack`
pub fn stack(order: Stack) -> Result<Exit> {
    if !order.reach.inject {
        return Err(Error::usage(
            "a loop that is stuck can only be looked into through Node's inspector, whose port is open to all users of this machine for a moment: --inject allows it",
        ));
    }
    // A worker in a loop has a socket all the same: its pid is known by that.
    let pid = match order.reach.target.parse::<i32>() {
        Ok(pid) => pid,
        Err(_) => target::one(&order.reach)?.pid,
    };
    let begun = Instant::now();
    let mut trail = Trail::open(
        order.reach.audit.as_deref(),
        order.reach.audit_expr,
        &order.reach.target,
    )?;
    let said = inject::through_the_port(&order.reach, pid, inject::Deed::Stack);
    trail.inspected("stack", said.is_ok(), begun.elapsed());
    print(said?.trim_end())?;
    Ok(Exit::Ok)
}
