//! spawnwork from outside, with programs that know nothing of Node: what the page promises of its
//! options, of a worker's surroundings, and of its life.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs
)]

use kit::{Dir, Run, Running, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

// ---- help of our own ----

fn spawnwork<T: AsRef<OsStr>>(args: impl IntoIterator<Item = T>) -> Run {
    Run::new(SPAWNWORK).args(args)
}

/// One for which staying alive for a moment is being ready.
fn brief<T: AsRef<OsStr>>(args: impl IntoIterator<Item = T>) -> Run {
    spawnwork(["--ready", "alive:100ms", "--probation", "100ms"]).args(args)
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// plain_server.py with its arguments, behind the options.
fn server(options: &[&str], how: &str) -> Run {
    let run = spawnwork(options).args(["--", "python3"]);
    run.args([text(app("plain_server.py")), how.to_owned()])
}

fn number(line: &str, key: &str) -> i32 {
    field(line, key).parse().unwrap()
}

fn alive(pid: i32) -> bool {
    // A process that is dead and not yet reaped is gone for our purposes.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

fn gone(pid: i32) {
    eventually(&format!("the end of {pid}"), || (!alive(pid)).then_some(()));
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A line of /proc/PID/status, without its name.
fn proc_status(pid: i32, name: &str) -> String {
    let all = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = all
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

fn environment(pid: i32) -> BTreeSet<String> {
    let all = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    all.split(|byte| *byte == 0)
        .filter(|one| !one.is_empty())
        .map(|one| String::from_utf8_lossy(one).into_owned())
        .collect()
}

fn variable(pid: i32, name: &str) -> Option<String> {
    environment(pid).into_iter().find_map(|pair| {
        let (found, value) = pair.split_once('=')?;
        (found == name).then(|| value.to_owned())
    })
}

/// The lines of one event so far.
fn lines_of(running: &Running, event: &str) -> Vec<String> {
    let head = format!(": {event} ");
    let lines = running.err().into_iter();
    lines.filter(|line| line.contains(&head)).collect()
}

/// The first worker, when it is ready.
fn ready(running: &mut Running) -> i32 {
    number(&running.event("worker-ready"), "pid")
}

/// The status' first line, and the lines of the slots.
fn status(running: &mut Running) -> (String, Vec<String>) {
    running.signal(Signal::SIGUSR1);
    let head = running.event_with("status", "workers=");
    let slots = (0..number(&head, "workers"))
        .map(|slot| running.event_with("status", &format!(" slot={slot} ")))
        .collect();
    (head, slots)
}

fn said(running: &Running, what: &str) {
    eventually(&format!("'{what}' in its output"), || {
        running.out().lines().any(|line| line == what).then_some(())
    });
}

fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root (sudo make test)"
    );
}

/// Releases in `releases/NAME`, each with an `app.sh`, and `current`, which points to one.
struct Releases(Dir);

impl Releases {
    fn new(list: &[(&str, &str)]) -> Releases {
        let dir = Dir::new();
        for (name, script) in list {
            let release = dir.path().join("releases").join(name);
            std::fs::create_dir_all(&release).unwrap();
            std::fs::write(release.join("app.sh"), script).unwrap();
        }
        let this = Releases(dir);
        this.switch(list[0].0);
        this
    }

    fn switch(&self, name: &str) {
        let (new, link) = (self.0.path().join("new"), self.0.path().join("current"));
        symlink(format!("releases/{name}"), &new).unwrap();
        std::fs::rename(new, link).unwrap();
    }

    fn run(&self, options: &[&str]) -> Run {
        let current = text(self.0.path().join("current"));
        brief(["-C", &current])
            .args(options)
            .args(["--", "sh", "app.sh"])
    }
}

// ---- A: what is wrong is said, and nothing is started ----

#[test]
fn a_wrong_value_ends_with_2_and_the_options_name() {
    let long = format!("unix:/tmp/{}", "x".repeat(103));
    assert_eq!(long.len(), "unix:".len() + 108);
    let table: &[(&str, &[&str])] = &[
        ("--workers", &["x", "0", "-1", "1.5", "10001", ""]),
        (
            "--listen",
            &[
                "nonsense",
                "",
                "web=",
                "99999",
                "host:",
                ":80",
                "[::1",
                "[x]:1",
                "unix:",
                "127.0.0.1:x",
                "fd:x",
                &long,
                &long[5..],
            ],
        ),
        ("--backlog", &["x", "0", "-1", "99999999999"]),
        ("--node", &["maybe", ""]),
        ("--balance", &["fair", "round-robin"]),
        ("--nofile", &["few", "0", "-1"]),
        ("--env", &["NAME", "=value", ""]),
        (
            "--ready",
            &[
                "soon", "listen", "fd:", "fd:2", "fd:x", "exec:", "alive:", "alive:x", "",
            ],
        ),
        ("--ready-timeout", &["soon", "-1s", "", "5 parsecs"]),
        ("--probation", &["soon", "-1s", ""]),
        ("--surge", &["x", "-1", "101%", "%", "1.5"]),
        ("--start-parallel", &["x", "0", "-1"]),
        ("--stop-signal", &["NOPE", "0", "999", "-1", ""]),
        ("--stop-timeout", &["soon", "-1s", ""]),
        (
            "--respawn-limit",
            &["x", "5", "5/", "/60", "-1/60", "5/x", "5/60:NOPE"],
        ),
        ("--backoff", &["5", "2s..1s", "x..1s", "1s..", ".."]),
        ("--on-limit", &["panic", ""]),
        ("--output", &["file", ""]),
        ("--socket-mode", &["999", "rw", "", "7777"]),
        ("--log-format", &["xml", ""]),
    ];
    for (option, values) in table {
        for value in *values {
            let by_option = spawnwork([&format!("{option}={value}"), "--", "true"]).finish();
            assert_eq!(by_option.status, 2, "{option}={value}: {}", by_option.err);
            assert!(
                by_option.err.contains(option),
                "{option}={value}: {}",
                by_option.err
            );
            if value.is_empty() {
                // An empty variable may be meant as none.
                continue;
            }
            let name = format!("SPAWNWORK{}", option[1..].replace('-', "_").to_uppercase());
            let by_variable = spawnwork(["--", "true"]).env(&name, value).finish();
            assert_eq!(by_variable.status, 2, "{name}={value}: {}", by_variable.err);
            assert!(
                by_variable.err.contains(option),
                "{name}={value}: {}",
                by_variable.err
            );
            for run in [by_option, by_variable] {
                assert_eq!(run.out, "", "{option}={value}");
                assert_eq!(run.err.lines().count(), 1, "{option}={value}: {}", run.err);
            }
        }
    }
}

#[test]
fn wrong_usage_of_other_kinds() {
    let all: &[&[&str]] = &[
        &[],
        &["-n", "1"],
        &["-n", "1", "--"],
        &["--nonsense", "true"],
        &["-q", "-v", "true"],
        &["-n", "1", "-n", "2", "true"],
        &["-l", "127.0.0.1:0", "--ready", "fd:3", "true"],
    ];
    for args in all {
        let run = spawnwork(*args).finish();
        assert_eq!(run.status, 2, "{args:?}: {}", run.err);
        assert!(run.err.starts_with("spawnwork: "), "{args:?}: {}", run.err);
    }
    let run = spawnwork(["true"]).env("WEB_CONCURRENCY", "lots").finish();
    assert_eq!(run.status, 2);
    assert!(run.err.contains("WEB_CONCURRENCY"), "{}", run.err);
}

#[test]
fn a_log_file_for_listen_is_the_business_of_another_tool() {
    for value in ["logs/app.out", "app.log", "/var/log/app.err"] {
        let run = spawnwork(["-l", value, "--", "true"]).finish();
        assert_eq!(run.status, 2, "{}", run.err);
        assert!(run.err.contains("--listen"), "{}", run.err);
        let line = format!("logreopen -l {value}");
        assert!(run.err.contains(&line), "{}", run.err);
    }
}

#[test]
fn the_environment_gives_options_and_the_command_line_wins() {
    for value in ["1", "true"] {
        let run = spawnwork(["-n", "1", "true"])
            .env("SPAWNWORK_QUIET", value)
            .finish();
        assert_eq!(run.status, 1, "SPAWNWORK_QUIET={value}: {}", run.err);
        assert!(!run.err.contains("worker-started"), "{}", run.err);
    }
    let mut run = brief(["-n", "2", "sleep", "1000"])
        .env("SPAWNWORK_WORKERS", "5")
        .env("SPAWNWORK_STOP_SIGNAL", "int")
        .start();
    assert_eq!(number(&run.event("generation-serving"), "workers"), 2);
    assert_eq!(run.stop(), 0);
    run.event_with("worker-exited", "signal=INT");
    for (variable, value) in [("WEB_CONCURRENCY", "3"), ("SPAWNWORK_WORKERS", "3")] {
        let mut run = brief(["sleep", "1000"]).env(variable, value).start();
        assert_eq!(number(&run.event("started"), "workers"), 3);
        assert_eq!(run.stop(), 0);
    }
}

/// Ends with 125 before any worker was started.
fn refused(run: Run, parts: &[&str]) {
    let run = run.finish();
    assert_eq!(run.status, 125, "{}", run.err);
    for part in parts {
        assert!(run.err.contains(part), "no '{part}' in: {}", run.err);
    }
    assert!(!run.err.contains("worker-started"), "{}", run.err);
    assert_eq!(run.out, "");
}

#[test]
fn what_the_machine_cannot_give_ends_with_125_before_a_worker_starts() {
    let dir = Dir::new();
    let echo = ["--", "echo", "started"];
    let dangling = dir.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    let wrong_lines = dir.write("wrong.env", "A=1\nno pair\n");
    let file = dir.write("file", "");
    let (dangling, wrong_lines, file) = (text(dangling), text(wrong_lines), text(file));
    let missing = text(dir.path().join("missing/file"));
    let above: u64 = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .unwrap()
        .trim()
        .parse::<u64>()
        .unwrap()
        + 1;
    let above = above.to_string();
    let table: &[(&[&str], &[&str])] = &[
        (&["--user", "nobody-of-this-name"], &["nobody-of-this-name"]),
        (&["--user", "root:no-such-group"], &["no-such-group"]),
        (
            &["--socket-owner", "nobody-of-this-name"],
            &["nobody-of-this-name"],
        ),
        (&["--chdir", &dangling], &[&dangling]),
        (&["--chdir", &file], &[&file]),
        (&["--chdir", &missing], &[&missing]),
        (&["--nofile", &above], &[&above]),
        (&["--env-file", &missing], &[&missing]),
        (&["--env-file", &wrong_lines], &[&wrong_lines, "line 2"]),
        (&["--pid-file", &missing], &[&missing]),
        (&["--listen", "fd:99"], &["fd:99"]),
        (&["--listen", "sd:web"], &["sd:web"]),
        (&["--listen", &missing], &[&missing]),
        (&["--listen", "192.0.2.1:80"], &["192.0.2.1:80"]),
    ];
    for (options, parts) in table {
        refused(spawnwork(*options).args(echo), parts);
    }
}

#[test]
fn a_port_in_use_names_its_holder() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let pid = format!("pid {}", std::process::id());
    refused(
        spawnwork(["-l", &address, "--", "echo", "started"]),
        &[&address, &pid],
    );
}

#[test]
fn a_unix_socket_in_use_and_a_file_in_its_place_are_left_alone() {
    let dir = Dir::new();
    let path = dir.path().join("live.sock");
    let _holder = UnixListener::bind(&path).unwrap();
    refused(
        spawnwork(["-l", &text(&path), "--", "echo", "x"]),
        &[&text(&path)],
    );
    assert!(path.exists());
    let file = dir.write("data", "precious");
    refused(
        spawnwork(["-l", &text(&file), "--", "echo", "x"]),
        &[&text(&file)],
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_missing_program_ends_with_127_and_one_without_rights_with_126() {
    let dir = Dir::new();
    let plain = dir.write("plain", "#!/bin/sh\n");
    let missing = text(dir.path().join("missing"));
    for (program, expected) in [
        ("no-such-program-anywhere", 127),
        (&missing, 127),
        (&text(&plain), 126),
        (&text(dir.path()), 126),
    ] {
        let run = spawnwork(["-n", "3", "--", program]).finish();
        assert_eq!(run.status, expected, "{program}: {}", run.err);
        assert!(run.err.contains(program), "{}", run.err);
    }
}

// ---- pid file ----

#[test]
fn a_pid_file_is_locked_and_removed_at_the_end() {
    let dir = Dir::new();
    let file = dir.path().join("app.pid");
    // A stale one, whatever pid it names.
    std::fs::write(&file, "1\n").unwrap();
    let args = ["--pid-file", &text(&file), "-n", "1", "sleep", "1000"];
    let mut first = brief(args).start();
    first.event("generation-serving");
    let pid = first.pid().to_string();
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), pid);
    refused(brief(args), &["app.pid", &pid]);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), pid);
    assert_eq!(first.stop(), 0);
    assert!(!file.exists());
    // And it is free again, also after an end that could remove nothing.
    let mut second = brief(args).start();
    let worker = ready(&mut second);
    second.signal(Signal::SIGKILL);
    assert_eq!(second.end(), 128 + 9);
    gone(worker);
    assert!(file.exists());
    let mut third = brief(args).start();
    third.event("generation-serving");
    assert_eq!(third.stop(), 0);
    assert!(!file.exists());
}

#[test]
fn a_pid_file_of_somebody_else_is_not_removed() {
    let dir = Dir::new();
    let file = dir.path().join("app.pid");
    for replacement in [None, Some("12345\n")] {
        let args = ["--pid-file", &text(&file), "-n", "1", "sleep", "1000"];
        let mut run = brief(args).start();
        run.event("generation-serving");
        std::fs::remove_file(&file).unwrap();
        if let Some(content) = replacement {
            dir.write("app.pid", content);
        }
        run.signal(Signal::SIGUSR2);
        run.event("reload-committed");
        assert_eq!(run.stop(), 0);
        let left = std::fs::read_to_string(&file).ok();
        assert_eq!(left.as_deref(), replacement);
    }
}

// ---- B: other programs on sockets ----

/// All workers answer on that address.
fn all_answer(address: &str, workers: usize) {
    let mut seen = BTreeSet::new();
    eventually(&format!("{workers} workers on {address}"), || {
        let reply = kit::http::get(address, "/").unwrap();
        assert_eq!(reply.status, 200);
        let worker = reply.body.split(' ').next().unwrap().to_owned();
        seen.insert(worker);
        (seen.len() == workers).then_some(())
    });
}

#[test]
fn python_accepts_blocking_on_a_port_of_both_families() {
    let port = free_port();
    let mut run = server(&["-n", "2", "-l", &port.to_string()], "").start();
    run.event_with("socket-bound", &port.to_string());
    run.event("generation-serving");
    all_answer(&format!("127.0.0.1:{port}"), 2);
    let reply = kit::http::get(format!("[::1]:{port}"), "/").unwrap();
    assert!(reply.body.starts_with("worker="), "{}", reply.body);
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "worker-killed").is_empty());
    assert!(
        TcpListener::bind(("::", port)).is_ok(),
        "the port is free again"
    );
}

#[test]
fn an_address_of_one_family_and_any_free_port() {
    let mut run = server(&["-n", "1", "-l", "127.0.0.1:0", "-l", "[::1]:0"], "").start();
    let first = field(&run.event("socket-bound"), "address");
    let second = field(&run.event("socket-bound"), "address");
    assert!(
        first.starts_with("127.0.0.1:") && !first.ends_with(":0"),
        "{first}"
    );
    assert!(
        second.starts_with("[::1]:") && !second.ends_with("]:0"),
        "{second}"
    );
    run.event("generation-serving");
    for address in [first, second] {
        assert_eq!(kit::http::get(&address, "/").unwrap().status, 200);
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_unix_socket_has_its_mode_and_owner_and_goes_at_the_end() {
    needs_root();
    let dir = Dir::new();
    let (first, second) = (
        dir.path().join("first.sock"),
        dir.path().join("second.sock"),
    );
    // Nobody answers any more on this one.
    drop(UnixListener::bind(&first).unwrap());
    assert!(first.exists());
    let mut run = server(
        &[
            "-n",
            "1",
            "--socket-mode",
            "0660",
            "--socket-owner",
            "nobody",
            "-l",
            &text(&first),
            "-l",
            &format!("unix:{}", text(&second)),
        ],
        "",
    )
    .start();
    let worker = ready(&mut run);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    for path in [&first, &second] {
        let meta = std::fs::metadata(path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o660);
        assert_eq!(meta.uid(), nobody.uid.as_raw());
        all_answer(&format!("unix:{}", text(path)), 1);
    }
    // A worker's end takes nothing away.
    send(worker, Signal::SIGKILL);
    run.event_with("worker-exited", "signal=KILL");
    assert_ne!(ready(&mut run), worker);
    all_answer(&format!("unix:{}", text(&first)), 1);
    assert_eq!(run.stop(), 0);
    assert!(!first.exists() && !second.exists());
}

#[test]
fn a_unix_socket_is_for_its_owner_only_by_default() {
    let dir = Dir::new();
    // As long as a path may be.
    let name = "s".repeat(107 - dir.path().as_os_str().len() - 1);
    let path = dir.path().join(name);
    let mut run = server(&["-n", "1", "-l", &text(&path)], "").start();
    run.event("generation-serving");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    all_answer(&format!("unix:{}", text(&path)), 1);
    // Somebody else's file by now: not ours to remove.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "theirs").unwrap();
    assert_eq!(run.stop(), 0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
}

#[test]
fn a_server_in_c() {
    let dir = Dir::new();
    let binary = dir.path().join("server");
    let compiled = Run::new("cc")
        .args([text(app("plain_server.c")), "-o".to_owned(), text(&binary)])
        .finish();
    assert_eq!(compiled.status, 0, "{}", compiled.err);
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = spawnwork(["-n", "2", "-l", &address, "--", &text(&binary)]).start();
    run.event("generation-serving");
    for _ in 0..20 {
        assert_eq!(kit::http::get(&address, "/").unwrap().body, "from C\n");
    }
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    assert_eq!(kit::http::get(&address, "/").unwrap().body, "from C\n");
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "worker-killed").is_empty());
}

#[test]
fn gunicorn() {
    let address = format!("127.0.0.1:{}", free_port());
    let apps = text(app(""));
    let mut run = spawnwork(["-n", "2", "-l", &address, "--ready", "notify", "--"])
        .args(["gunicorn", "--chdir", &apps, "wsgi:app"])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .start();
    run.event("generation-serving");
    let reply = kit::http::get(&address, "/").unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.body.ends_with("of gunicorn\n"), "{}", reply.body);
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    assert_eq!(kit::http::get(&address, "/").unwrap().status, 200);
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "worker-killed").is_empty());
}

#[test]
fn sockets_are_told_as_sd_listen_fds_reads_them() {
    let script = "echo \"$LISTEN_FDS $LISTEN_FDNAMES\"; \
        [ \"$LISTEN_PID\" = $$ ] && echo mine; \
        [ -S /proc/self/fd/3 ] && [ -S /proc/self/fd/4 ] && echo sockets; exec sleep 1000";
    let args = [
        "-n",
        "1",
        "-l",
        "web=127.0.0.1:0",
        "-l",
        "admin=127.0.0.1:0",
    ];
    let mut run = brief(args).args(["--", "sh", "-c", script]).start();
    for line in ["2 web:admin", "mine", "sockets"] {
        said(&run, line);
    }
    assert_eq!(run.stop(), 0);
    let mut run = brief(["-n", "1", "-l", "0", "--", "sh", "-c", script]).start();
    said(&run, "1 unknown");
    assert_eq!(run.stop(), 0);
    let script =
        "echo \"${LISTEN_FDS-none} ${LISTEN_PID-none} ${LISTEN_FDNAMES-none}\"; exec sleep 1000";
    let mut run = brief(["-n", "1", "--", "sh", "-c", script]).start();
    said(&run, "none none none");
    assert_eq!(run.stop(), 0);
}
