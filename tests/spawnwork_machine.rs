//! What the machine does to a master: steps between fork and exec that fail, a clock that jumps, numbers
//! of processes that are used again, a terminal or a disk that takes no more.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::get;
use kit::{Dir, Finished, Run, Running, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes what the machine offers: run it as root (sudo make test)"
    );
}

/// One for which staying alive for a moment is being ready.
fn brief(options: &[&str]) -> Run {
    Run::new(SPAWNWORK)
        .args(["--ready", "alive:100ms", "--probation", "100ms"])
        .args(options)
}

fn ctl(dir: &Dir, words: &[&str]) -> Finished {
    Run::new(SPAWNWORK)
        .args(["--ctl", "c.sock"])
        .args(words)
        .dir(dir.path())
        .finish()
}

fn kill_worker(line: &str) {
    let pid: i32 = field(line, "pid").parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

// ---- between fork and exec ----

// Edge case 9.
// Edge case 36.
#[test]
fn a_user_that_cannot_be_changed_to_ends_the_start_with_125() {
    needs_root();
    let wrappers: [&[&str]; 3] = [
        &["setpriv", "--bounding-set=-setuid"],
        &["setpriv", "--bounding-set=-setgid"],
        // setgroups(2) is denied in such a namespace (user_namespaces(7)).
        &["unshare", "--user", "--map-root-user"],
    ];
    for wrapper in wrappers {
        let run = Run::new(wrapper[0])
            .args(&wrapper[1..])
            .args([SPAWNWORK, "-n", "2", "-u", "nobody", "--", "sleep", "1000"])
            .finish();
        assert_eq!(run.status, 125, "{wrapper:?}: {}", run.err);
        let why = "cannot change the user: ";
        assert!(run.err.contains(why), "{wrapper:?}: {}", run.err);
        assert!(!run.err.contains("worker-ready"), "{}", run.err);
    }
}

// Edge case 9.
#[test]
fn a_directory_that_may_not_be_entered_any_more_fails_its_slot_and_a_reload() {
    needs_root();
    let dir = Dir::new();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::copy(SPAWNWORK, dir.path().join("spawnwork")).unwrap();
    let release = dir.path().join("release");
    std::fs::create_dir(&release).unwrap();
    let mut master = Run::new("setpriv")
        .args(["--reuid=54322", "--regid=54322", "--clear-groups"])
        .args(["./spawnwork", "--ready", "alive:100ms", "-n", "1"])
        .args(["--probation", "100ms", "--respawn-limit", "0"])
        .args(["--backoff", "20ms..50ms", "-C", "release"])
        .args(["--", "sleep", "1000"])
        .dir(dir.path())
        .start();
    let ready = master.event("worker-ready");
    master.event("generation-serving");
    std::fs::set_permissions(&release, PermissionsExt::from_mode(0o000)).unwrap();
    let why = "cannot change the directory: permission denied";
    // A reload first: it fails, and the worker stays.
    master.signal(Signal::SIGUSR2);
    let failed = master.event("reload-failed");
    assert!(failed.contains(why), "{failed}");
    kill_worker(&ready);
    let failed = master.event("worker-failed");
    assert!(failed.contains(why), "{failed}");
    std::fs::set_permissions(&release, PermissionsExt::from_mode(0o755)).unwrap();
    master.event("worker-ready");
    assert_eq!(master.stop(), 0);
}

// Edge case 38.
#[test]
fn a_release_that_was_deleted_is_named_as_the_reason() {
    let dir = Dir::new();
    let release = dir.path().join("release");
    std::fs::create_dir(&release).unwrap();
    let mut master = brief(&["-n", "2", "-C", "release", "--respawn-limit", "0"])
        .args(["--backoff", "20ms..50ms", "--control", "c.sock"])
        .args(["--", "sleep", "1000"])
        .dir(dir.path())
        .start();
    let ready = master.event("worker-ready");
    master.event("generation-serving");
    std::fs::remove_dir(&release).unwrap();
    kill_worker(&ready);
    let failed = master.event("worker-failed");
    assert_eq!(field(&failed, "slot"), field(&ready, "slot"));
    let why = "release: the directory was removed";
    assert!(failed.contains(why), "{failed}");
    // The other one is not asked.
    let status = ctl(&dir, &["status"]);
    assert_eq!(status.status, 1);
    assert!(
        status.out.contains("1 of 2 workers serve"),
        "{}",
        status.out
    );
    std::fs::create_dir(&release).unwrap();
    assert_eq!(ctl(&dir, &["reload"]).status, 0);
    assert_eq!(ctl(&dir, &["status"]).status, 0);
    assert_eq!(master.stop(), 0);
}

// ---- time ----

// Edge case 14.
#[test]
fn a_clock_that_jumps_is_nobodys_age() {
    let dir = Dir::new();
    let library = dir.path().join("clock.so");
    let built = Run::new("cc")
        .args(["-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&library])
        .args([app("clock_jump.c")])
        .finish();
    assert_eq!(built.status, 0, "{}", built.err);
    let jump = dir.path().join("jump");
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "2", "--control", "c.sock", "--ready", "alive:200ms"])
        .args(["--probation", "500ms", "--max-lifetime", "2h"])
        .args(["--ready-timeout", "1h", "--backoff", "1h..1h"])
        .args(["--", "sleep", "1000"])
        .env("LD_PRELOAD", &library)
        .env("JUMP", &jump)
        .dir(dir.path())
        .start();
    let first = master.event("worker-ready");
    master.event("generation-serving");
    let hour = |line: &str| line[11..13].parse::<i32>().unwrap();
    let ahead = |master: &mut Running| {
        master.signal(Signal::SIGUSR1);
        // Of the first line alone: the others may be those of the last time.
        let line = master.event_with("status", "workers=");
        (hour(&line) - hour(&first)).rem_euclid(24) >= 10
    };
    assert!(!ahead(&mut master));
    std::fs::write(&jump, "").unwrap();
    assert!(ahead(&mut master), "the clock has jumped");
    let seconds = |text: &str, key: &str| -> f64 {
        let at = text.find(key).unwrap_or_else(|| panic!("{key} in {text}"));
        let rest = &text[at + key.len()..];
        let end = rest.find([',', '}']).unwrap();
        rest[..end].parse().unwrap()
    };
    let json = ctl(&dir, &["status", "json"]).out;
    assert!(seconds(&json, "\"uptime\":") < 3600.0, "{json}");
    // Forward, and back in the middle of a reload.
    master.signal(Signal::SIGUSR2);
    master.event("reload-canary");
    std::fs::remove_file(&jump).unwrap();
    master.event("reload-committed");
    assert!(!ahead(&mut master));
    // One that had been up for more than a second comes back at once, whatever the clock says.
    let ready = eventually("two seconds of a worker", || {
        let json = ctl(&dir, &["status", "json"]).out;
        let worker = &json[json.find("\"worker\":").unwrap()..];
        (seconds(worker, "\"uptime\":") > 2.0).then(|| seconds(worker, "\"pid\":"))
    });
    std::fs::write(&jump, "").unwrap();
    kill(Pid::from_raw(ready as i32), Signal::SIGKILL).unwrap();
    master.event("worker-exited");
    std::fs::remove_file(&jump).unwrap();
    master.event("worker-ready");
    assert_eq!(master.stop(), 0);
    let err = master.err().join("\n");
    for bad in [
        "worker-killed",
        "worker-recycled",
        "worker-failed",
        "worker-backoff",
    ] {
        assert!(!err.contains(bad), "{bad} in {err}");
    }
}

// ---- numbers of processes ----

// Edge case 22.
#[test]
fn a_number_that_belongs_to_somebody_else_by_now_is_not_signalled() {
    needs_root();
    assert!(
        Path::new("/proc/sys/kernel/ns_last_pid").exists(),
        "the kernel has no way to choose the next pid"
    );
    // In a namespace of its own, where nobody else takes numbers. The stranger leads a session and a
    // group of the dead worker's number.
    let script = r#"
        "$0" --ready alive:100ms --probation 100ms --stop-timeout 300ms -n 1 -- sleep 1000 2>log &
        master=$!
        worker() { sed -n "$1s/.*worker-ready slot=0 pid=\([0-9]*\).*/\1/p" ready; }
        until_ready() { while :; do
            grep 'worker-ready' log >ready; [ "$(wc -l <ready)" -ge "$1" ] && break; sleep 0.02
        done; }
        until_ready 1
        old=$(worker 1)
        kill -9 "$old"
        until_ready 2
        while :; do
            echo $((old - 1)) >/proc/sys/kernel/ns_last_pid
            setsid sleep 777 &
            [ $! = "$old" ] && break
            kill -9 $!
        done
        kill -9 "$(worker 2)"
        until_ready 3
        kill -USR2 $master
        until_ready 4
        while ! grep -q reload-committed log; do sleep 0.02; done
        kill -TERM $master
        wait $master
        echo "status $?"
        kill -0 "$old" && echo "the stranger lives"
        cat log >&2
    "#;
    let dir = Dir::new();
    let run = Run::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .args(["sh", "-c", script, SPAWNWORK])
        .dir(dir.path())
        .finish();
    assert_eq!(run.out, "status 0\nthe stranger lives\n", "{}", run.err);
}

// ---- what takes no more ----

/// Processor time that it has taken, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let mut words = rest.split_whitespace().skip(11);
    (0..2)
        .map(|_| words.next().unwrap().parse::<u64>().unwrap())
        .sum()
}

fn limit_descriptors(pid: i32, limit: &str) {
    let run = Run::new("prlimit")
        .args([format!("--nofile={limit}"), format!("--pid={pid}")])
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
}

// Edge case 46.
#[test]
fn without_a_free_descriptor_connections_wait_and_the_master_does_not_spin() {
    let port = free_port();
    let dir = Dir::new();
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "1", "--balance", "round-robin", "--control", "c.sock"])
        .args(["--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    // Not one more: the limit is one of numbers, and the next one would be the lowest that is free.
    let taken = |fd: &usize| Path::new(&format!("/proc/{}/fd/{fd}", master.pid())).exists();
    let free = (0..).find(|fd| !taken(fd)).unwrap();
    limit_descriptors(master.pid(), &format!("{free}:"));
    let clients: Vec<_> = (0..3)
        .map(|_| std::thread::spawn(move || get(format!("127.0.0.1:{port}"), "/")))
        .collect();
    // A client of the control socket is turned away by the spare one, and connections wait all the same.
    let turned_away = ctl(&dir, &["status"]);
    assert_eq!(turned_away.status, 125, "{}", turned_away.out);
    assert!(
        turned_away.err.contains("too many open files"),
        "{}",
        turned_away.err
    );
    // Two seconds in which nothing can be done: it would take all of them if it tried without end.
    let (before, end) = (ticks(master.pid()), Instant::now() + Duration::from_secs(2));
    eventually("two seconds", || (Instant::now() > end).then_some(()));
    let taken = ticks(master.pid()) - before;
    assert!(taken < 40, "{taken} ticks of 200");
    limit_descriptors(master.pid(), "1024:");
    for client in clients {
        assert_eq!(client.join().unwrap().unwrap().status, 200);
    }
    assert_eq!(ctl(&dir, &["status"]).status, 0);
    assert_eq!(master.stop(), 0);
}

// Edge case 46.
#[test]
fn the_usual_limit_of_descriptors_does_not_limit_the_workers() {
    let dir = Dir::new();
    // Four for each of forty are more than 64.
    let mut master = Run::new("bash")
        .args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\"", SPAWNWORK])
        .args(["-n", "40", "--ready", "alive:50ms", "--nofile", "300"])
        .args(["--check", "ulimit -Sn >check", "--probation", "50ms"])
        .args(["--", "sh", "-c", "ulimit -Sn >$WORKER_ID; exec sleep 1000"])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let said = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!((said("0"), said("39")), ("300\n".into(), "300\n".into()));
    master.signal(Signal::SIGHUP);
    master.event("reload-started");
    eventually("the check", || {
        (dir.path().join("check").exists() && !said("check").is_empty()).then_some(())
    });
    assert_eq!(said("check"), "300\n", "as a worker's");
    assert!(!master.err().join("\n").contains("worker-failed"));
    assert_eq!(master.stop(), 0);
}

// Edge case 46.
#[test]
fn what_a_worker_left_behind_is_looked_for_again_when_there_are_descriptors() {
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "1", "--ready", "alive:100ms", "--probation", "100ms"])
        .args(["--", "sh", "-c", "sleep 1000 & exec sleep 2000"])
        .start();
    let worker: i32 = field(&master.event("worker-ready"), "pid").parse().unwrap();
    master.event("generation-serving");
    let left = *kit::run::children_of(worker).first().unwrap();
    let taken = |fd: &usize| Path::new(&format!("/proc/{}/fd/{fd}", master.pid())).exists();
    let free = (0..).find(|fd| !taken(fd)).unwrap();
    limit_descriptors(master.pid(), &format!("{free}:"));
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    master.event("worker-exited");
    let (before, end) = (ticks(master.pid()), Instant::now() + Duration::from_secs(2));
    eventually("two seconds", || (Instant::now() > end).then_some(()));
    let taken = ticks(master.pid()) - before;
    assert!(taken < 40, "{taken} ticks of 200");
    limit_descriptors(master.pid(), "1024:");
    eventually("the end of what was left behind", || {
        (!Path::new(&format!("/proc/{left}")).exists()).then_some(())
    });
    eventually("the end of the dead worker", || {
        (!Path::new(&format!("/proc/{worker}")).exists()).then_some(())
    });
    master.event("worker-ready");
    assert_eq!(master.stop(), 0);
}

// Edge case 46.
#[test]
fn without_a_free_descriptor_scripts_of_npm_are_turned_away() {
    let (dir, port) = (Dir::new(), free_port());
    dir.write(
        "package.json",
        r#"{"name": "hello", "version": "1.0.0", "private": true, "scripts": {"start": "node hello.js"}}"#,
    );
    std::fs::copy(app("hello.js"), dir.path().join("hello.js")).unwrap();
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "1", "--control", "c.sock", "--", "npm", "start"])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    let pid = field(&master.event("worker-ready"), "pid");
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let shim = environ
        .split('\0')
        .find_map(|pair| pair.strip_prefix("SPAWNWORK_SHIM="))
        .unwrap();
    let name = shim.rsplit_once(':').unwrap().0;
    let taken = |fd: &usize| Path::new(&format!("/proc/{}/fd/{fd}", master.pid())).exists();
    let free = (0..).find(|fd| !taken(fd)).unwrap();
    limit_descriptors(master.pid(), &format!("{free}:"));
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let address = SocketAddr::from_abstract_name(name).unwrap();
    for _ in 0..3 {
        let mut stream = UnixStream::connect_addr(&address).unwrap();
        stream.set_read_timeout(Some(kit::PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0u8; 8]).unwrap(), 0);
    }
    limit_descriptors(master.pid(), "1024:");
    assert_eq!(ctl(&dir, &["reload"]).status, 0);
    assert_eq!(get(format!("127.0.0.1:{port}"), "/").unwrap().status, 200);
    assert_eq!(master.stop(), 0);
}

// Edge case 35.
#[test]
fn standard_error_that_is_full_delays_nothing_but_who_writes_there() {
    let dir = Dir::new();
    let fifo = dir.path().join("err");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // A reader that never reads.
    let _reader = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    let mut master = Run::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 2>err", SPAWNWORK])
        .args(["--ready", "alive:100ms", "--probation", "100ms", "-n", "1"])
        .args(["--verbose", "--control", "c.sock"])
        .args(["--", "sh", "-c", "echo up; exec yes >&2"])
        .dir(dir.path())
        .start();
    // Held back by a full pipe, the worker sleeps in write(2).
    eventually("a full pipe", || {
        let worker = *kit::run::children_of(master.pid()).first()?;
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).ok()?;
        let ours = std::fs::read_to_string(format!("/proc/{worker}/comm")).ok()? == "yes\n";
        (ours && stat.contains(") S ")).then_some(())
    });
    eventually("it serves", || {
        (ctl(&dir, &["status"]).status == 0).then_some(())
    });
    for generation in 2..=4 {
        master.signal(Signal::SIGUSR2);
        eventually("its reload", || {
            let json = ctl(&dir, &["status", "json"]).out;
            (json.contains(&format!("\"generation\":{generation},"))
                && json.contains("\"reload\":null"))
            .then_some(())
        });
    }
    // Lines of its own there is no room for: more than it keeps waiting.
    for _ in 0..2000 {
        master.signal(Signal::SIGUSR1);
    }
    let status = ctl(&dir, &["status"]);
    assert_eq!(status.status, 0, "{}", status.out);
    assert_eq!(master.stop(), 0);
    assert_eq!(master.out().matches("up\n").count(), 4);
}

// Edge case 35.
#[test]
fn standard_error_that_was_full_from_the_start_delays_nothing() {
    let (dir, port) = (Dir::new(), free_port());
    let fifo = dir.path().join("err");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut held = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(&fifo)
        .unwrap();
    while held.write(&[b'\n'; 4096]).is_ok() {}
    while held.write(b"\n").is_ok() {}
    // A warning of its own for each socket, whoever asks for it.
    let mut master = Run::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 2>err", SPAWNWORK])
        .args(["-n", "1", "--backlog", "1000000000", "--control", "c.sock"])
        .args(["-l", "unix:given.sock", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    eventually("it serves", || {
        let there = dir.path().join("c.sock").exists();
        (there && ctl(&dir, &["status", "--timeout", "5s"]).status == 0).then_some(())
    });
    assert_eq!(get(format!("127.0.0.1:{port}"), "/").unwrap().status, 200);
    assert_eq!(master.stop(), 0);
}

#[test]
fn a_disk_that_is_full_leaves_no_half_of_a_pid_file() {
    needs_root();
    let dir = Dir::new();
    let script = "mount -t tmpfs -o size=4k none . && cd . && head -c 4096 /dev/zero >fill && \
        \"$0\" --pid-file p -n 1 -- sleep 1000; echo \"status $?\"; ls";
    let run = Run::new("unshare")
        .args(["-m", "sh", "-c"])
        .args([format!(
            "cd /; cd \"$1\"; {}",
            script.replace("cd .", "cd \"$1\"")
        )])
        .args([SPAWNWORK, dir.path().to_str().unwrap()])
        .finish();
    assert_eq!(run.out, "status 125\nfill\n", "{}", run.err);
    assert!(run.err.contains("no space left on device"), "{}", run.err);
}

#[test]
fn a_file_of_variables_without_an_end_is_refused_and_one_that_would_block_as_well() {
    let dir = Dir::new();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    for (file, why) in [
        ("/dev/zero", "it is too long"),
        ("fifo", "a pipe can be read only once"),
        ("/", "is a directory"),
    ] {
        let run = brief(&["-n", "1", "--env-file", file, "--", "sleep", "1000"])
            .dir(dir.path())
            .finish();
        assert_eq!(run.status, 125, "{file}: {}", run.err);
        assert!(run.err.contains(why), "{file}: {}", run.err);
    }
    // In a reload it is the service that would stand still.
    dir.write("app.env", "A=1\n");
    let mut master = brief(&["-n", "1", "--env-file", "app.env", "--control", "c.sock"])
        .args(["--", "sleep", "1000"])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    std::fs::rename(&fifo, dir.path().join("app.env")).unwrap();
    let refused = ctl(&dir, &["reload"]);
    assert_eq!(refused.status, 4, "{}", refused.err);
    assert!(refused.err.contains("only once"), "{}", refused.err);
    assert_eq!(ctl(&dir, &["status"]).status, 0);
    assert_eq!(master.stop(), 0);
}

#[test]
fn a_check_that_says_megabytes_is_heard_to_its_end() {
    let dir = Dir::new();
    let check = "head -c 10000000 /dev/zero | tr '\\0' x; echo; seq 1 200000 >&2; test -e good";
    let mut master = brief(&["-n", "1", "--control", "c.sock", "--check", check])
        .args(["--", "sleep", "1000"])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let refused = ctl(&dir, &["reload"]);
    assert_eq!(refused.status, 4, "{}", refused.err);
    let last: Vec<&str> = refused
        .err
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    assert_eq!(last.len(), 20, "{}", refused.err);
    assert_eq!(last.last(), Some(&"| 200000"));
    dir.write("good", "");
    assert_eq!(ctl(&dir, &["reload"]).status, 0);
    // No word of it is kept for longer than that.
    let status = std::fs::read_to_string(format!("/proc/{}/status", master.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(peak < 24 << 10, "{peak} kB");
    assert_eq!(master.stop(), 0);
}

// ---- where it stands ----

#[test]
fn as_many_workers_as_there_are_processors_for_it() {
    let mut master = Run::new("taskset")
        .args(["-c", "0", SPAWNWORK, "--ready", "alive:50ms"])
        .args(["--workers", "auto", "--", "sleep", "1000"])
        .start();
    assert_eq!(field(&master.event("started"), "workers"), "1");
    assert_eq!(master.stop(), 0);
    // The variable of other process masters, for auto only.
    for (options, workers) in [(&["--workers", "auto"][..], "7"), (&["-n", "2"], "2")] {
        let mut master = brief(options)
            .args(["--", "sleep", "1000"])
            .env("WEB_CONCURRENCY", "7")
            .start();
        assert_eq!(field(&master.event("started"), "workers"), workers);
        assert_eq!(master.stop(), 0);
    }
}

#[test]
fn a_terminal_is_the_workers_own_also_behind_a_job_in_the_background() {
    let dir = Dir::new();
    let worker = "[ -t 1 ] && [ -t 2 ] && echo both are terminals; exec sleep 1000";
    let line = format!(
        "set -m; {SPAWNWORK} -n 1 --control c.sock --ready alive:50ms -- sh -c '{worker}' & \
         until {SPAWNWORK} --ctl c.sock status >status 2>&1; do sleep 0.05; done; \
         {SPAWNWORK} --ctl c.sock stop; wait $!; echo end $?"
    );
    let shown = Run::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .dir(dir.path())
        .finish();
    assert!(shown.out.contains("both are terminals"), "{}", shown.out);
    assert!(shown.out.contains("end 0"), "{}", shown.out);
}

#[test]
fn the_form_for_the_journal_is_chosen_where_it_reads_our_stderr() {
    let stream = "$(stat -L -c %d:%i /proc/self/fd/2)";
    for (stream, journal) in [(stream, true), ("1:2", false)] {
        let line = format!("JOURNAL_STREAM={stream} exec \"$0\" -n 1 true");
        let run = Run::new("sh").args(["-c", &line, SPAWNWORK]).finish();
        let first = run.err.lines().next().unwrap();
        assert_eq!(first.starts_with("<6>started "), journal, "{}", run.err);
    }
}
