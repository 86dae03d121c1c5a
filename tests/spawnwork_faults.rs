//! Calls to the kernel that fail, one after the other, in a master that is asked for everything meanwhile, and
//! in its workers: no request fails but those in the hands of a worker that was killed, and when the fault is
//! over, all is well, and nothing is left of it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::faults::{Fault, Faults};
use kit::http::Failure;
use kit::load::{Load, Options, Tally};
use kit::run::children_of;
use kit::{Dir, Finished, Run, Running, app, eventually, free_port};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::Duration;

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

/// What fails in the master, all the time that the fault lasts.
const FAULTS: &[(&str, Errno)] = &[
    ("clone", Errno::EAGAIN),
    ("clone", Errno::ENOMEM),
    ("pipe2", Errno::EMFILE),
    ("socketpair", Errno::EMFILE),
    ("pidfd_open", Errno::EMFILE),
    ("epoll_ctl", Errno::ENOMEM),
    ("epoll_ctl", Errno::ENOSPC),
    ("accept4", Errno::EMFILE),
    ("accept4", Errno::ENOMEM),
    ("openat", Errno::EMFILE),
    ("openat", Errno::EIO),
    ("openat", Errno::ENOMEM),
    ("write", Errno::ENOSPC),
    ("sendmsg", Errno::ENOBUFS),
    ("sendto", Errno::ENOBUFS),
    ("recvmsg", Errno::ENOMEM),
    ("recvfrom", Errno::ENOMEM),
    ("statx", Errno::EIO),
    ("getdents64", Errno::EIO),
    ("getsockopt", Errno::ENOBUFS),
];

struct Service {
    dir: Dir,
    master: Running,
    load: Load,
    /// Workers that were killed.
    killed: BTreeSet<String>,
    descriptors: usize,
}

impl Service {
    fn start(faults: &Faults) -> Service {
        let (dir, port) = (Dir::new(), free_port());
        let mut master = faults
            .run(SPAWNWORK)
            .args(["-n", "2", "--control", "c.sock", "--pid-file", "pid"])
            .args(["--probation", "50ms", "--respawn-limit", "0"])
            .args(["--backoff", "50ms..200ms", "--", "node"])
            .arg(app("hello.js"))
            .env("PORT", port.to_string())
            .dir(dir.path())
            .start();
        master.event("generation-serving");
        let options = Options {
            address: format!("127.0.0.1:{port}"),
            keep_alive: 3,
            fresh: 2,
            paths: vec!["/"],
            expect: "hello ",
            timeout: kit::PATIENCE,
        };
        let load = Load::paced(&options, Duration::from_millis(5));
        load.answer(20);
        let descriptors = descriptors(master.pid());
        Service {
            dir,
            master,
            load,
            killed: BTreeSet::new(),
            descriptors,
        }
    }

    fn ctl(&self, words: &str, limit: &str) -> Finished {
        let run = Run::new(SPAWNWORK).args(["--ctl", "c.sock", "--timeout", limit]);
        run.args(words.split(' ')).dir(self.dir.path()).finish()
    }

    fn workers(&self) -> Vec<i32> {
        children_of(self.master.pid())
    }

    fn kill_one(&mut self) {
        let victim = self.workers()[0];
        self.killed.insert(victim.to_string());
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    }

    /// A deploy goes through, all is well, and neither a process nor a descriptor is left over.
    fn is_well(&self, fault: &str) {
        eventually(&format!("a deploy after {fault}"), || {
            (self.ctl("reload", "60s").status == 0).then_some(())
        });
        eventually(&format!("all is well after {fault}"), || {
            (self.ctl("status", "60s").status == 0).then_some(())
        });
        eventually(&format!("the old ones are gone after {fault}"), || {
            (self.workers().len() == 2).then_some(())
        });
        eventually(&format!("as many descriptors as before {fault}"), || {
            (descriptors(self.master.pid()) <= self.descriptors).then_some(())
        });
    }

    fn end(mut self) {
        let tally = self.load.stop();
        let stopped = self.master.stop();
        let log = self.master.err().join("\n");
        let foreign = not_of(&tally, &self.killed);
        assert!(foreign.is_empty(), "{foreign:?} {:?}\n{log}", tally.failed);
        assert_eq!(stopped, 0, "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// The failures that the deaths of these workers do not explain.
fn not_of(tally: &Tally, killed: &BTreeSet<String>) -> Vec<String> {
    let own = |kind: &Failure| matches!(kind, Failure::Reset | Failure::Empty);
    let broken = tally
        .broken
        .iter()
        .filter(|(kind, who)| !own(kind) || !killed.contains(who))
        .map(|(kind, who)| format!("{kind:?} by {who}"));
    let others = tally.failed.keys().filter(|kind| !own(kind));
    broken
        .chain(others.map(|kind| format!("{kind:?}")))
        .collect()
}

fn descriptors(pid: i32) -> usize {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    all.count()
}

/// Processor time that it has taken, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let words = rest.split_whitespace().skip(11).take(2);
    words.map(|word| word.parse::<u64>().unwrap()).sum()
}

#[test]
fn whatever_fails_in_the_master_it_serves_and_recovers() {
    let calls: Vec<&str> = FAULTS.iter().map(|(call, _)| *call).collect();
    let faults = Faults::of(&calls);
    let mut service = Service::start(&faults);
    let who = format!("pid:{}", service.master.pid());
    for (call, error) in FAULTS {
        let fault = format!("{call}: {error:?}");
        faults.fail(&[Fault::each(call, *error, &who)]);
        service.kill_one();
        let _ = service.ctl("status", "300ms");
        let reload = service.ctl("reload", "300ms");
        // What it answers depends on what fails; that it serves does not.
        assert!(
            [0, 1, 124, 125].contains(&reload.status),
            "{fault}: {} {}",
            reload.status,
            reload.err
        );
        service.load.answer(20);
        eventually(&format!("{fault} happens"), || {
            (faults.hits() > 0).then_some(())
        });
        faults.heal();
        service.is_well(&fault);
    }
    service.end();
}

#[test]
fn a_door_that_cannot_be_opened_is_not_rattled_at() {
    let faults = Faults::of(&["accept4"]);
    let service = Service::start(&faults);
    let who = format!("pid:{}", service.master.pid());
    for error in [Errno::ENOMEM, Errno::ENOBUFS, Errno::EMFILE] {
        let before = ticks(service.master.pid());
        faults.fail(&[Fault::each("accept4", error, &who)]);
        assert_eq!(service.ctl("status", "2s").status, 124);
        // Twenty looks at a door that is shut for 100 ms, and with EMFILE two tries for each.
        let (hits, taken) = (faults.hits(), ticks(service.master.pid()) - before);
        assert!(hits > 0 && hits < 100, "{error}: {hits} tries");
        assert!(taken < 40, "{error}: {taken} ticks of 200");
        faults.heal();
        assert_eq!(service.ctl("status", "60s").status, 0, "{error}");
    }
    service.end();
}

#[test]
fn workers_without_descriptors_or_threads_or_a_program_are_no_end_of_the_service() {
    let faults = Faults::of(&["clone3", "execve", "openat"]);
    let mut service = Service::start(&faults);
    let node = Run::new("node")
        .args(["-p", "process.execPath"])
        .finish()
        .out;
    let node = node.trim().rsplit('/').next().unwrap().to_owned();
    for (call, error) in [
        ("openat", Errno::EMFILE),
        // A thread of V8's.
        ("clone3", Errno::EAGAIN),
        // Between fork and exec it is the master's program still.
        ("execve", Errno::ENOENT),
        ("execve", Errno::ENOMEM),
    ] {
        let fault = format!("{call}: {error:?} in a worker");
        let who = match call {
            "execve" => "spawnwork",
            _ => &node,
        };
        faults.fail(&[Fault::each(call, error, who)]);
        let failed = service.ctl("reload", "60s");
        assert_eq!(failed.status, 1, "{fault}: {}{}", failed.out, failed.err);
        service.kill_one();
        // The other one serves.
        service.load.answer(20);
        service.master.event("worker-backoff");
        assert!(faults.hits() > 0);
        faults.heal();
        service.is_well(&fault);
    }
    service.end();
}

#[test]
fn a_limit_of_memory_fails_the_deploy_and_not_the_service() {
    let faults = Faults::of(&["clone"]);
    let service = Service::start(&faults);
    let limit = |bytes: &str| {
        let run = Run::new("prlimit").arg(format!("--as={bytes}:"));
        let run = run.args(["--pid", &service.master.pid().to_string()]);
        assert_eq!(run.finish().status, 0);
    };
    // Enough for the master, and what it starts inherits it: no node begins with that.
    limit("67108864");
    let failed = service.ctl("reload", "60s");
    assert_eq!(failed.status, 1, "{}{}", failed.out, failed.err);
    service.load.answer(20);
    limit("unlimited");
    service.is_well("a limit of memory");
    service.end();
}

#[test]
fn standard_error_on_a_disk_that_had_errors_is_written_again() {
    let (dir, faults) = (Dir::new(), Faults::of(&["write"]));
    let log = dir.path().join("log");
    let worker = "while :; do echo a line >&2; sleep 0.02; done";
    let mut master = faults
        .run(SPAWNWORK)
        .args(["-n", "1", "--ready", "alive:50ms", "--", "sh", "-c", worker])
        .stderr(std::fs::File::create(&log).unwrap())
        .start();
    let said = || std::fs::read_to_string(&log).unwrap();
    let after = |from: usize, what: &str| said()[from..].contains(what).then_some(());
    eventually("it serves", || after(0, ": generation-serving "));
    let who = format!("pid:{}", master.pid());
    for error in [Errno::EIO, Errno::ENOSPC] {
        faults.fail(&[Fault::each("write", error, &who)]);
        master.signal(Signal::SIGUSR1);
        eventually("lines that cannot be written", || {
            (faults.hits() > 3).then_some(())
        });
        let from = said().len();
        faults.heal();
        master.signal(Signal::SIGUSR1);
        eventually("events again", || after(from, ": status "));
        eventually("lines of the worker again", || after(from, "a line\n"));
        eventually("what was lost is counted", || after(from, " lost="));
    }
    assert_eq!(master.stop(), 0);
}

/// What a rest of 50 ms between two tries allows in two seconds, and something for the calls that are another's.
const FEW: u64 = 80;

#[test]
fn a_channel_that_the_kernel_has_no_memory_for_is_left_alone_for_a_moment() {
    let faults = Faults::of(&["sendmsg", "recvmsg"]);
    let mut service = Service::start(&faults);
    let who = format!("pid:{}", service.master.pid());
    for (call, error) in [
        ("sendmsg", Errno::ENOBUFS),
        ("sendmsg", Errno::ENOMEM),
        ("sendmsg", Errno::ETOOMANYREFS),
        ("recvmsg", Errno::ENOMEM),
    ] {
        let fault = format!("{call}: {error:?}");
        faults.fail(&[Fault::each(call, error, &who)]);
        // The new one asks for its socket.
        service.kill_one();
        eventually(&format!("{fault} happens"), || {
            (faults.hits() > 0).then_some(())
        });
        std::thread::sleep(Duration::from_secs(2));
        let hits = faults.hits();
        assert!(hits < FEW, "{fault}: {hits} tries");
        faults.heal();
        service.is_well(&fault);
    }
    let log = service.master.err().join("\n");
    assert!(!log.contains("channel-closed"), "{log}");
    service.end();
}

#[test]
fn scripts_of_npm_that_cannot_be_let_in_are_not_tried_again_without_end() {
    let dir = Dir::new();
    let script = format!("node {}", app("hello.js").display());
    let package =
        serde_json::json!({"name": "shop", "version": "1.0.0", "scripts": {"start": script}});
    dir.write("package.json", &package.to_string());
    for error in [Errno::ENOMEM, Errno::EMFILE] {
        let faults = Faults::of(&["accept4"]);
        faults.fail(&[Fault::each("accept4", error, "spawnwork")]);
        let mut master = faults
            .run(SPAWNWORK)
            .args(["-n", "1", "--", "npm", "start"])
            .env("PORT", free_port().to_string())
            .dir(dir.path())
            .start();
        eventually("the script knocks", || (faults.hits() > 0).then_some(()));
        std::thread::sleep(Duration::from_secs(2));
        let hits = faults.hits();
        assert!(hits < FEW, "{error:?}: {hits} tries");
        faults.heal();
        master.event("generation-serving");
        assert_eq!(master.stop(), 0);
    }
}

#[test]
fn words_of_a_worker_that_cannot_be_read_are_not_tried_again_without_end() {
    let faults = Faults::of(&["recvmsg"]);
    faults.fail(&[Fault::each("recvmsg", Errno::ENOMEM, "spawnwork")]);
    let program = "import os, socket, time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\ntime.sleep(600)";
    let mut master = faults
        .run(SPAWNWORK)
        .args(["-n", "1", "--ready", "notify", "--", "python3", "-c"])
        .arg(program)
        .start();
    eventually("it is read", || (faults.hits() > 0).then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    let hits = faults.hits();
    assert!(hits < FEW, "{hits} tries");
    faults.heal();
    master.event("generation-serving");
    assert_eq!(master.stop(), 0);
}
