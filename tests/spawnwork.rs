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
use std::path::Path;

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
    executed(pid);
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
    let pid = number(&running.event("worker-ready"), "pid");
    executed(pid);
    pid
}

/// On a busy machine a process can have lived for a while before it is the program.
fn executed(pid: i32) {
    eventually("its program", || {
        let all = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&all).contains("\0SPAWNWORK_GENERATION=");
        (ours || !alive(pid)).then_some(())
    });
}

/// A shell has become the program.
fn became(pid: i32, program: &str) {
    eventually(program, || {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        (name.trim() == program).then_some(())
    });
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

// Edge case 30.
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

// Edge case 36.
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

// Edge case 29.
#[test]
fn a_port_in_use_names_its_holder() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let pid = format!("(held by pid {}, {})", std::process::id(), name.trim());
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

// Edge case 8.
// Edge case 9.
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

// Edge case 27.
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

// As root it would be /dev/null that is replaced, and removed at the end.
#[test]
fn a_pid_file_takes_no_device_s_place() {
    use std::os::unix::fs::FileTypeExt;
    let dir = Dir::new();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let args = ["--pid-file", &text(&fifo), "-n", "1", "sleep", "1000"];
    refused(brief(args), &["fifo", "no regular file"]);
    assert!(fifo.symlink_metadata().unwrap().file_type().is_fifo());
}

// Edge case 28.
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

/// A program of tests/apps in C.
fn compiled(dir: &Dir, source: &str) -> String {
    let binary = text(dir.path().join(source.trim_end_matches(".c")));
    let run = Run::new("cc")
        .args([&text(app(source)), "-Wall", "-o", &binary])
        .finish();
    assert_eq!((run.status, &*run.err), (0, ""));
    binary
}

/// All workers answer on that address.
fn all_answer(address: &str, workers: usize) {
    let mut seen = BTreeSet::new();
    eventually(&format!("{workers} workers on {address}"), || {
        let reply = match kit::http::get(address, "/") {
            Ok(reply) => reply,
            // TERM ends a plain server in mid-answer; but somebody always listens.
            Err(why) if why == "Reset" || why == "Empty" => return None,
            Err(why) => panic!("{address}: {why}"),
        };
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

// Edge case 32.
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

// Edge case 30.
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
    let binary = compiled(&dir, "plain_server.c");
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = spawnwork(["-n", "2", "-l", &address, "--", &binary]).start();
    run.event("generation-serving");
    for _ in 0..20 {
        assert_eq!(kit::http::get(&address, "/").unwrap().body, "from C\n");
    }
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    // TERM ends this one in mid-answer; so not before the old ones have gone.
    run.event("worker-exited");
    run.event("worker-exited");
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

// ---- a worker's surroundings ----

#[test]
fn a_worker_holds_exactly_the_descriptors_that_the_page_names() {
    let link =
        |pid: i32, fd: i32| text(std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap());
    let held = |pid: i32| -> BTreeSet<i32> {
        let list = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        list.map(|one| one.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect()
    };
    // The loader of a program that has just begun has its libraries open for a moment.
    let holds = |pid: i32, expected: BTreeSet<i32>| {
        let what = format!("{expected:?}, not {:?}", held(pid));
        eventually(&what, || (held(pid) == expected).then_some(()));
    };
    let sockets = ["-n", "1", "-l", "127.0.0.1:0", "-l", "127.0.0.1:0"];

    // Two sockets, and the read ends of its two pipes.
    let mut run = brief(sockets).args(["sleep", "1000"]).start();
    let pid = ready(&mut run);
    holds(pid, (0..=6).collect());
    assert_eq!(link(pid, 0), "/dev/null");
    for fd in [3, 4] {
        assert!(link(pid, fd).starts_with("socket:"), "{}", link(pid, fd));
    }
    let ends: BTreeSet<String> = [5, 6].into_iter().map(|fd| link(pid, fd)).collect();
    assert_eq!(ends, [1, 2].into_iter().map(|fd| link(pid, fd)).collect());
    assert_eq!(run.stop(), 0);

    // Its end of --ready fd:N besides.
    let script = "echo >&9; exec sleep 1000";
    let mut run = spawnwork(sockets)
        .args(["--ready", "fd:9", "--", "sh", "-c", script])
        .start();
    let pid = ready(&mut run);
    became(pid, "sleep");
    holds(pid, (0..=6).chain([9]).collect());
    assert_eq!(run.stop(), 0);

    // Our own output: no pipes.
    let mut run = brief(sockets)
        .args(["--output", "inherit", "sleep", "1000"])
        .start();
    let pid = ready(&mut run);
    holds(pid, (0..=4).collect());
    for fd in [1, 2] {
        assert_eq!(link(pid, fd), link(run.pid(), fd));
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_worker_has_default_signals_and_a_group_of_its_own() {
    // Whatever we were started with.
    let script = "trap '' HUP INT QUIT PIPE TERM USR1; exec \"$0\" \"$@\"";
    let mut run = Run::new("sh")
        .args(["-c", script, SPAWNWORK, "--ready", "alive:100ms"])
        .args(["-n", "2", "sleep", "1000"])
        .start();
    let pid = ready(&mut run);
    assert_eq!(proc_status(pid, "SigBlk"), "0".repeat(16));
    for mask in ["SigIgn", "SigCgt"] {
        // But 32 and 33, which glibc has for itself: its posix_spawn(3), by which the tests start
        // programs, leaves them ignored, and its sigaction(2) does not take them.
        let set = u64::from_str_radix(&proc_status(pid, mask), 16).unwrap();
        assert_eq!(set & !(0b11 << 31), 0, "{mask}: {set:x}");
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let group = stat.rsplit(')').next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(group, pid.to_string());
    run.event("generation-serving");
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "worker-killed").is_empty());
    let ends = lines_of(&run, "worker-exited");
    assert_eq!(ends.len(), 2, "{ends:?}");
    for end in ends {
        assert_eq!(field(&end, "signal"), "TERM");
        assert!(!end.contains(" error="), "{end}");
    }
}

#[test]
fn the_environment_of_a_worker() {
    let args = [
        "-n",
        "2",
        "--env",
        "X=%i/%g/%%",
        "--env",
        "Y=%x",
        "--env",
        "PATH=/usr/bin:/bin",
    ];
    let mut run = brief(args)
        .args(["sleep", "1000"])
        .env("NOTIFY_SOCKET", "/nowhere")
        .env("WATCHDOG_USEC", "1000000")
        .env("WATCHDOG_PID", "1")
        .env("FDSTORE", "7")
        .env("LISTEN_FDNAMES", "old")
        .env("LISTEN_PID", "1")
        .env("SPAWNWORK_VERBOSE", "true")
        .env("SPAWNWORK_PREFIX", "w%i ")
        .env("WORKER_ID", "77")
        .env("KEPT", "yes")
        .start();
    let slot = |run: &mut Running, slot: &str| number(&run.event_with("worker-ready", slot), "pid");
    run.event("generation-serving");
    let ready = lines_of(&run, "worker-ready");
    let of = |slot: &str| {
        number(
            ready.iter().find(|line| line.contains(slot)).unwrap(),
            "pid",
        )
    };
    for (index, pid) in [of("slot=0"), of("slot=1")].into_iter().enumerate() {
        let all = environment(pid);
        for pair in [
            format!("WORKER_ID={index}"),
            "SPAWNWORK_WORKERS=2".to_owned(),
            "SPAWNWORK_GENERATION=1".to_owned(),
            format!("SPAWNWORK_PID={}", run.pid()),
            format!("X={index}/1/%"),
            "Y=%x".to_owned(),
            "KEPT=yes".to_owned(),
            "PATH=/usr/bin:/bin".to_owned(),
        ] {
            assert!(all.contains(&pair), "no {pair} in {all:?}");
        }
        let names: BTreeSet<&str> = all
            .iter()
            .map(|pair| pair.split('=').next().unwrap())
            .collect();
        assert_eq!(names.len(), all.len(), "a variable twice: {all:?}");
        for name in names {
            let ours = ["SPAWNWORK_WORKERS", "SPAWNWORK_GENERATION", "SPAWNWORK_PID"];
            let foreign = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE"];
            assert!(
                !foreign.contains(&name) && !name.starts_with("LISTEN_"),
                "{name}"
            );
            assert!(
                !name.starts_with("SPAWNWORK_") || ours.contains(&name),
                "{name}"
            );
        }
    }
    send(of("slot=1"), Signal::SIGKILL);
    run.event_with("worker-exited", "slot=1");
    let pid = slot(&mut run, "slot=1");
    assert_eq!(
        variable(pid, "SPAWNWORK_LAST_EXIT").as_deref(),
        Some("signal KILL")
    );
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    let (_, slots) = status(&mut run);
    for line in slots {
        let pid = number(&line, "pid");
        let expected = format!("{}/2/%", field(&line, "slot"));
        assert_eq!(variable(pid, "X"), Some(expected));
        assert_eq!(variable(pid, "SPAWNWORK_GENERATION").as_deref(), Some("2"));
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_file_of_variables_is_read_anew_by_each_reload() {
    let dir = Dir::new();
    let first = "# settings\n\nGREETING=\"good morning\"\nexport NAME='x y'\nBOTH=file\nEMPTY=\nRAW=$HOME\n";
    let file = dir.write("app.env", first);
    let args = [
        "-n",
        "1",
        "--env",
        "BOTH=option",
        "--env-file",
        &text(&file),
    ];
    let mut run = brief(args).args(["sleep", "1000"]).start();
    let pid = ready(&mut run);
    for (name, value) in [
        ("GREETING", "good morning"),
        ("NAME", "x y"),
        ("BOTH", "option"),
        ("EMPTY", ""),
        ("RAW", "$HOME"),
    ] {
        assert_eq!(variable(pid, name).as_deref(), Some(value), "{name}");
    }
    // What cannot be read refuses the reload, and the worker stays.
    std::fs::remove_file(&file).unwrap();
    run.signal(Signal::SIGUSR2);
    assert!(run.event("reload-refused").contains("app.env"));
    dir.write("app.env", "GREETING=hello\nno pair\n");
    run.signal(Signal::SIGUSR2);
    assert!(run.event("reload-refused").contains("line 2"));
    assert!(alive(pid));
    // A worker that dies now is still one of the first generation.
    send(pid, Signal::SIGKILL);
    let again = ready(&mut run);
    assert_eq!(variable(again, "GREETING").as_deref(), Some("good morning"));
    dir.write("app.env", "GREETING=hello\n");
    run.signal(Signal::SIGUSR2);
    let new = ready(&mut run);
    run.event("reload-committed");
    assert_eq!(variable(new, "GREETING").as_deref(), Some("hello"));
    assert_eq!(variable(new, "NAME"), None);
    assert_eq!(run.stop(), 0);
}

// Edge case 26.
#[test]
fn another_user_for_good() {
    needs_root();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (
        nobody.uid.as_raw().to_string(),
        nobody.gid.as_raw().to_string(),
    );
    for user in ["nobody", &uid, &format!("nobody:{gid}")] {
        let mut run = brief(["-n", "1", "-u", user, "sleep", "1000"]).start();
        let pid = ready(&mut run);
        assert_eq!(proc_status(pid, "Uid"), [&*uid; 4].join("\t"), "{user}");
        assert_eq!(proc_status(pid, "Gid"), [&*gid; 4].join("\t"), "{user}");
        // No way back: neither an identity nor a capability of root is left.
        assert!(
            !proc_status(pid, "Groups")
                .split(' ')
                .any(|group| group == "0")
        );
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(proc_status(pid, set), "0".repeat(16), "{set}");
        }
        assert_eq!(variable(pid, "HOME").unwrap(), text(&nobody.dir));
        assert_eq!(variable(pid, "USER").as_deref(), Some("nobody"));
        assert_eq!(variable(pid, "LOGNAME").as_deref(), Some("nobody"));
        assert_eq!(variable(pid, "SHELL").unwrap(), text(&nobody.shell));
        // Dropping root cleared this one; it is set again.
        run.signal(Signal::SIGKILL);
        run.end();
        gone(pid);
    }
}

#[test]
fn the_number_of_descriptors_a_worker_may_have() {
    let limits = |pid: i32| {
        let all = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = all.lines().find(|line| line.starts_with("Max open files"));
        let mut words = line.unwrap().split_whitespace().skip(3).map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap())
    };
    let hard = limits(std::process::id() as i32).1;
    let table: [(&[&str], &str); 3] = [
        (&[], &hard),
        (&["--nofile", "max"], &hard),
        (&["--nofile", "200"], "200"),
    ];
    for (options, soft) in table {
        let mut run = brief(options).args(["-n", "1", "sleep", "1000"]).start();
        let pid = ready(&mut run);
        assert_eq!(limits(pid).0, soft, "{options:?}");
        assert_eq!(run.stop(), 0);
    }
    // Without root the hard limit is the end.
    needs_root();
    let script =
        "ulimit -n 500; exec setpriv --reuid=nobody --clear-groups --inh-caps=-all \"$0\" \"$@\"";
    let copy = Dir::new();
    let binary = copy.path().join("spawnwork");
    std::fs::copy(SPAWNWORK, &binary).unwrap();
    let wrapped =
        Run::new("sh").args(["-c", script, &text(&binary), "--nofile", "501", "echo", "x"]);
    refused(wrapped, &["501"]);
}

// ---- releases ----

// Edge case 1.
// Edge case 37.
#[test]
fn a_switched_link_is_followed_by_a_reload_and_by_nothing_else() {
    let up = |name: &str| format!("echo \"$PWD\" >up.$$; echo {name}; exec sleep 1000");
    let (one, two) = (up("one"), up("two"));
    let bad = "echo 'cannot find module' >&2; exit 3";
    let releases = Releases::new(&[("1", &one), ("2", &two), ("bad", bad)]);
    let mut run = releases.run(&["-n", "1"]).start();
    let first = ready(&mut run);
    said(&run, "one");
    let real = releases.0.path().canonicalize().unwrap().join("releases/1");
    assert_eq!(variable(first, "PWD").unwrap(), text(&real));

    // A bad release: the old one goes on, and one line says why.
    releases.switch("bad");
    run.signal(Signal::SIGUSR2);
    let line = run.event("reload-failed");
    assert_eq!(field(&line, "generation"), "2");
    assert!(
        line.contains("cannot find module") && line.contains("status 3"),
        "{line}"
    );
    assert!(alive(first));
    assert!(status(&mut run).0.contains(" frozen=2"));

    // What dies now comes back in the old release, wherever the link points.
    send(first, Signal::SIGKILL);
    let line = run.event("worker-ready");
    assert_eq!(field(&line, "generation"), "1");
    let again = number(&line, "pid");
    let cwd = std::fs::read_link(format!("/proc/{again}/cwd")).unwrap();
    assert_eq!(cwd, real);

    // A link to nothing refuses the reload.
    releases.switch("missing");
    run.signal(Signal::SIGUSR2);
    assert!(run.event("reload-refused").contains("current"));
    assert!(alive(again));

    releases.switch("2");
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    said(&run, "two");
    gone(again);
    let (head, slots) = status(&mut run);
    assert!(!head.contains("frozen"), "{head}");
    assert!(!slots[0].contains(" generation=1 "), "{}", slots[0]);
    assert_eq!(run.stop(), 0);
}

// Edge case 1.
// Edge case 2.
// Edge case 3.
#[test]
fn a_release_that_is_not_ready_in_time_or_dies_on_probation_fails() {
    let hangs = "exec sleep 1000";
    let good = ": >ready.$SPAWNWORK_PID; exec sleep 1000";
    let dies = ": >ready.$SPAWNWORK_PID; sleep 1; echo 'out of luck' >&2; exit 5";
    let crashes = "echo 'no such module' >&2; exit 1";
    let releases = Releases::new(&[
        ("good", good),
        ("crashes", crashes),
        ("hangs", hangs),
        ("dies", dies),
    ]);
    let current = text(releases.0.path().join("current"));
    let check = "exec:test -e /proc/$PID/cwd/ready.*";
    let mut run = spawnwork(["-n", "2", "-C", &current, "--ready", check])
        .args([
            "--ready-timeout",
            "2s",
            "--probation",
            "4s",
            "--",
            "sh",
            "app.sh",
        ])
        .start();
    run.event("generation-serving");
    let before = status(&mut run).1;
    for (release, part) in [
        ("crashes", "no such module"),
        ("hangs", "not ready within 2s"),
        ("dies", "out of luck"),
    ] {
        releases.switch(release);
        run.signal(Signal::SIGUSR2);
        let line = run.event("reload-failed");
        assert!(line.contains(part), "{line}");
        // Nothing but the canary was started.
        let number = field(&line, "generation");
        let started = lines_of(&run, "worker-started");
        let of = format!(" generation={number}");
        assert_eq!(started.iter().filter(|line| line.ends_with(&of)).count(), 1);
    }
    let pids = |lines: &[String]| {
        lines
            .iter()
            .map(|line| field(line, "pid"))
            .collect::<Vec<_>>()
    };
    assert_eq!(pids(&before), pids(&status(&mut run).1));
    releases.switch("good");
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    assert_eq!(run.stop(), 0);
}

#[test]
fn reloads_of_each_surge_and_the_way_back_from_the_middle() {
    let dir = Dir::new();
    let address = format!("127.0.0.1:{}", free_port());
    let bad = dir.path().join("bad");
    let script = format!(
        "[ -e '{}' ] && [ $SPAWNWORK_GENERATION != 1 ] && [ $WORKER_ID = 1 ] && exit 3; \
         exec python3 \"$0\" notify",
        text(&bad)
    );
    let app = text(app("plain_server.py"));
    for surge in ["1", "0", "50%"] {
        std::fs::write(&bad, "").unwrap();
        let mut run = spawnwork(["-n", "3", "-l", &address, "--surge", surge])
            .args(["--probation", "200ms", "--ready", "notify", "--"])
            .args(["sh", "-c", &script, &app])
            .start();
        run.event("generation-serving");
        all_answer(&address, 3);
        run.signal(Signal::SIGUSR2);
        run.event("reload-failed");
        eventually("the old generation in all slots", || {
            let (_, slots) = status(&mut run);
            let old = |line: &String| line.contains(" generation=1 state=serving");
            slots.iter().all(old).then_some(())
        });
        assert!(status(&mut run).0.contains(" frozen=2"));
        all_answer(&address, 3);
        std::fs::remove_file(&bad).unwrap();
        run.signal(Signal::SIGUSR2);
        let line = run.event("reload-committed");
        let (head, slots) = status(&mut run);
        assert!(!head.contains("frozen"), "{head}");
        let new = format!(" generation={} state=serving", field(&line, "generation"));
        assert!(slots.iter().all(|line| line.contains(&new)), "{slots:?}");
        all_answer(&address, 3);
        assert_eq!(run.stop(), 0, "surge {surge}");
    }
}

// ---- sockets that we were started with ----

fn passed(first: &str, names: &str, pid: &str, ports: &[u16]) -> Run {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    Run::new("python3")
        .args([text(app("plain_pass.py"))])
        .args([first, names, pid, &ports.join(","), SPAWNWORK])
}

fn plain_server() -> [String; 3] {
    [
        "--".to_owned(),
        "python3".to_owned(),
        text(app("plain_server.py")),
    ]
}

#[test]
fn an_activators_sockets_are_handed_on() {
    let port = free_port();
    for options in [
        &["--listen", "sd:web"][..],
        &["--listen", "other=sd:web"],
        &[],
    ] {
        let mut run = Run::new("systemd-socket-activate")
            .args([
                "-l",
                &format!("127.0.0.1:{port}"),
                "--fdname=web",
                SPAWNWORK,
                "-n",
                "1",
            ])
            .args(options)
            .args(["--ready", "notify"])
            .args(plain_server())
            .args(["notify"])
            .start();
        // The first connection starts it, and is served.
        let reply = eventually("an answer", || {
            kit::http::get(format!("127.0.0.1:{port}"), "/").ok()
        });
        assert!(reply.body.starts_with("worker=0 "), "{}", reply.body);
        let worker = ready(&mut run);
        let name = if options.len() == 2 && options[1].starts_with("other") {
            "other"
        } else {
            "web"
        };
        assert_eq!(variable(worker, "LISTEN_FDNAMES").as_deref(), Some(name));
        assert_eq!(variable(worker, "LISTEN_PID"), Some(worker.to_string()));
        assert_eq!(run.stop(), 0);
    }
}

#[test]
fn inherited_sockets_by_name_and_number() {
    let (one, two) = (free_port(), free_port());
    let mut run = passed("3", "one:two", "self", &[one, two])
        .args([
            "-n",
            "1",
            "-l",
            "sd:two",
            "-l",
            "extra=127.0.0.1:0",
            "-l",
            "fd:3",
        ])
        .args(plain_server())
        .start();
    let worker = ready(&mut run);
    assert_eq!(variable(worker, "LISTEN_FDS").as_deref(), Some("3"));
    assert_eq!(
        variable(worker, "LISTEN_FDNAMES").as_deref(),
        Some("two:extra:one")
    );
    for port in [one, two] {
        all_answer(&format!("127.0.0.1:{port}"), 1);
    }
    assert_eq!(run.stop(), 0);

    // One of no LISTEN_FDS.
    let mut run = passed("7", "-", "-", &[one])
        .args(["-n", "1", "-l", "web=fd:7"])
        .args(plain_server())
        .start();
    let worker = ready(&mut run);
    assert_eq!(variable(worker, "LISTEN_FDNAMES").as_deref(), Some("web"));
    all_answer(&format!("127.0.0.1:{one}"), 1);
    assert_eq!(run.stop(), 0);
}

// Edge case 33.
#[test]
fn sockets_for_another_pid_are_refused_unless_told_otherwise() {
    for options in [&[][..], &["-l", "sd:web"]] {
        refused(
            passed("3", "web", "1", &[free_port()])
                .args(options)
                .args(["echo", "x"]),
            &["LISTEN_PID", "--no-listen-pid"],
        );
    }
    let port = free_port();
    let mut run = passed("3", "web", "1", &[port])
        .args(["-n", "1", "--no-listen-pid"])
        .args(plain_server())
        .start();
    ready(&mut run);
    all_answer(&format!("127.0.0.1:{port}"), 1);
    assert_eq!(run.stop(), 0);
}

// ---- ready ----

// Edge case 34.
#[test]
fn ready_by_notify() {
    let socket = ["-n", "1", "-l", "127.0.0.1:0"];
    for how in ["notify", "helper"] {
        let mut run = server(&socket, how).start();
        ready(&mut run);
        assert_eq!(run.stop(), 0);
        let mut run = server(&[&socket[..], &["--ready", "notify"]].concat(), how).start();
        ready(&mut run);
        assert_eq!(run.stop(), 0);
    }
    // One that never says it.
    let args = [
        "-n",
        "1",
        "--ready",
        "notify",
        "--ready-timeout",
        "300ms",
        "sleep",
        "1000",
    ];
    let run = spawnwork(args).finish();
    assert_eq!(run.status, 1, "{}", run.err);
    assert!(run.err.contains("worker-failed"), "{}", run.err);
    assert!(run.err.contains("not ready within 300ms"), "{}", run.err);
    assert!(!run.err.contains("worker-ready"), "{}", run.err);
}

#[test]
fn who_says_anything_on_the_notify_socket_must_say_ready() {
    let dir = Dir::new();
    let file = text(dir.path().join("loaded"));
    // Quick to start: it has a second for the first word.
    let binary = compiled(&dir, "plain_late.c");
    let mut run = spawnwork(["-n", "1", "--", &binary, &file]).start();
    run.event("worker-started");
    // Without that word the second alone would do.
    eventually("two seconds of its life", || {
        let line = status(&mut run).1.remove(0);
        assert!(line.contains("state=starting"), "{line}");
        let uptime = field(&line, "uptime");
        let seconds = uptime.strip_suffix('s')?.parse::<f64>().ok()?;
        (seconds > 2.0 && !uptime.ends_with("ms")).then_some(())
    });
    dir.write("loaded", "");
    ready(&mut run);
    assert_eq!(run.stop(), 0);
}

// Edge case 34.
#[test]
fn ready_by_a_strangers_word_is_none() {
    let mut run = spawnwork(["-n", "1", "--ready", "notify", "sleep", "1000"]).start();
    let worker = number(&run.event("worker-started"), "pid");
    let name = eventually("its environment", || variable(worker, "NOTIFY_SOCKET"));
    // The tests' own process is no descendant of the worker.
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
    use std::os::fd::AsRawFd;
    let out = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    let to = UnixAddr::new_abstract(name.strip_prefix('@').unwrap().as_bytes()).unwrap();
    sendto(out.as_raw_fd(), b"READY=1", &to, MsgFlags::empty()).unwrap();
    // By the time that both answers to two signals came, it has been read.
    for _ in 0..2 {
        assert!(status(&mut run).1[0].contains("state=starting"));
    }
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "worker-ready").is_empty());
}

#[test]
fn ready_by_descriptor_command_and_time() {
    let mut run = server(&["-n", "1", "-l", "127.0.0.1:0", "--ready", "fd:9"], "fd:9").start();
    ready(&mut run);
    assert_eq!(run.stop(), 0);

    // One that closes it without a word never was ready.
    let args = [
        "-n",
        "1",
        "--ready",
        "fd:5",
        "--ready-timeout",
        "300ms",
        "--",
    ];
    let run = spawnwork(args)
        .args(["sh", "-c", "exec 5>&-; exec sleep 1000"])
        .finish();
    assert_eq!(run.status, 1, "{}", run.err);

    let dir = Dir::new();
    let file = text(dir.path().join("up"));
    let check = format!(
        "exec:test -e '{file}' && test -d /proc/$PID && echo \"$PID $WORKER_ID\" >'{file}'"
    );
    let mut run = spawnwork(["-n", "1", "--ready", &check, "sleep", "1000"]).start();
    run.event("worker-started");
    assert!(status(&mut run).1[0].contains("state=starting"));
    dir.write("up", "");
    let pid = ready(&mut run);
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!("{pid} 0\n")
    );
    assert_eq!(run.stop(), 0);

    let mut run = spawnwork(["-n", "1", "--ready", "alive:250ms", "sleep", "1000"]).start();
    ready(&mut run);
    assert_eq!(run.stop(), 0);
}

// ---- C: life and death of workers ----

/// Says `up PID` and stays, whatever TERM says.
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 1; done";

#[test]
fn a_killed_worker_is_started_again() {
    let mut run = brief(["-n", "2", "sleep", "1000"]).start();
    let first = ready(&mut run);
    let second = ready(&mut run);
    run.event("generation-serving");
    send(first, Signal::SIGKILL);
    let line = run.event("worker-exited");
    assert_eq!(field(&line, "signal"), "KILL");
    let slot = field(&line, "slot");
    let line = run.event("worker-ready");
    assert_eq!(field(&line, "slot"), slot);
    assert!(alive(second));
    let (_, slots) = status(&mut run);
    for line in slots {
        let expected = if field(&line, "slot") == slot {
            "1"
        } else {
            "0"
        };
        assert_eq!(field(&line, "restarts"), expected);
    }
    // All at once.
    for line in status(&mut run).1 {
        send(number(&line, "pid"), Signal::SIGKILL);
    }
    ready(&mut run);
    ready(&mut run);
    assert_eq!(run.stop(), 0);
}

// Edge case 6.
#[test]
fn a_worker_that_ends_with_status_0_is_started_again() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = server(&["-n", "1", "-l", &address], "notify").start();
    let first = ready(&mut run);
    run.event("generation-serving");
    for (end, said) in [("0", "status 0"), ("7", "status 7")] {
        let _ = kit::http::get(&address, &format!("/exit/{end}"));
        let line = run.event("worker-exited");
        assert_eq!(field(&line, "status"), end);
        let pid = ready(&mut run);
        assert_ne!(pid, first);
        assert_eq!(variable(pid, "SPAWNWORK_LAST_EXIT").as_deref(), Some(said));
    }
    // Each death is one line.
    assert_eq!(lines_of(&run, "worker-exited").len(), 2);
    assert_eq!(kit::http::get(&address, "/").unwrap().status, 200);
    assert_eq!(run.stop(), 0);
}

// Edge case 7.
#[test]
fn a_job_that_just_ends_is_no_service() {
    let run = spawnwork(["-n", "2", "--", "true"]).finish();
    assert_eq!(run.status, 1, "{}", run.err);
    assert_eq!(
        run.err.matches(": worker-started ").count(),
        2,
        "{}",
        run.err
    );
    assert!(run.err.contains("status 0"), "{}", run.err);
    assert!(run.err.lines().last().unwrap().contains("stopped status=1"));
}

// Edge case 12.
#[test]
fn one_slot_that_crashes_is_held_and_the_others_serve() {
    let script = "[ $WORKER_ID = 1 ] && { echo 'no luck' >&2; exit 3; }; exec sleep 1000";
    let mut run = brief([
        "-n",
        "3",
        "--respawn-limit",
        "3/60s",
        "--backoff",
        "10ms..100s",
    ])
    .args(["--", "sh", "-c", script])
    .start();
    assert_eq!(field(&run.event("worker-held"), "slot"), "1");
    let ends = lines_of(&run, "worker-exited");
    assert_eq!(ends.len(), 4, "{ends:?}");
    for line in ends {
        assert_eq!(
            (&*field(&line, "slot"), &*field(&line, "status")),
            ("1", "3")
        );
        assert_eq!(field(&line, "stderr"), "no luck");
    }
    let (_, slots) = status(&mut run);
    assert_eq!(field(&slots[1], "state"), "held");
    // A worker's report is its own: the master serves on, and reloads.
    eventually("the others", || {
        let (_, slots) = status(&mut run);
        let serving = |index: usize| field(&slots[index], "state") == "serving";
        (serving(0) && serving(2)).then_some(())
    });
    assert_eq!(run.stop(), 0);
}

// Edge case 13.
#[test]
fn without_a_slot_that_works_the_end_is_1() {
    let limit = [
        "-n",
        "2",
        "--respawn-limit",
        "1/60s",
        "--backoff",
        "10ms..20ms",
    ];
    let run = spawnwork(limit).args(["--", "sh", "-c", "exit 3"]).finish();
    assert_eq!(run.status, 1, "{}", run.err);
    assert_eq!(run.err.matches(": worker-held ").count(), 2, "{}", run.err);
    assert_eq!(
        run.err.matches(": worker-exited ").count(),
        4,
        "{}",
        run.err
    );

    // Only what the filter names counts; and `5 60` is read too.
    let filtered = [
        "-n",
        "1",
        "--respawn-limit",
        "1 60:SEGV,4",
        "--backoff",
        "1ms..2ms",
    ];
    let script = "echo >>tries; case $(wc -l <tries) in 1|2|3|4|5|6) exit 3;; 7|8) exit 4;; *) kill -SEGV $$;; esac";
    let dir = Dir::new();
    let run = spawnwork(filtered)
        .args(["--", "sh", "-c", script])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 1, "{}", run.err);
    assert_eq!(
        run.err.matches(": worker-exited ").count(),
        8,
        "{}",
        run.err
    );
}

#[test]
fn on_limit_exit_ends_with_1_and_stops_the_others() {
    let script = "[ $WORKER_ID = 1 ] && exit 3; exec sleep 1000";
    let mut run = brief(["-n", "2", "--on-limit", "exit", "--respawn-limit", "2/60s"])
        .args(["--backoff", "10ms..20ms", "--", "sh", "-c", script])
        .start();
    let other = number(&run.event_with("worker-started", "slot=0"), "pid");
    assert_eq!(run.end(), 1);
    assert!(!alive(other));
    assert_eq!(lines_of(&run, "worker-held").len(), 1);
}

#[test]
fn all_that_a_dying_worker_said_comes_through() {
    let script = "seq 1 100000; echo last words >&2; exit 7";
    let limit = [
        "-n",
        "1",
        "--respawn-limit",
        "1/60s",
        "--backoff",
        "1ms..2ms",
    ];
    let run = spawnwork(limit).args(["--", "sh", "-c", script]).finish();
    assert_eq!(run.status, 1);
    let numbers: Vec<String> = (1..=100_000).map(|line| line.to_string()).collect();
    let lines: Vec<&str> = run.out.lines().collect();
    assert_eq!(lines.len(), 200_000);
    assert!(lines[..100_000] == numbers && lines[100_000..] == numbers);
    assert!(run.err.contains("stderr=\"last words\""), "{}", run.err);
}

#[test]
fn lines_of_several_workers_never_mix() {
    let script = "line=$(printf '%05000d' 0 | tr 0 $WORKER_ID); \
        for i in $(seq 200); do echo \"$line\"; done; echo end; exec sleep 1000";
    let mut run = brief(["-n", "4", "--prefix", "%i/%g/%p: "])
        .args(["--", "sh", "-c", script])
        .start();
    run.event("generation-serving");
    eventually("all lines", || {
        (run.out().matches(": end\n").count() == 4).then_some(())
    });
    let out = run.out();
    assert_eq!(out.lines().count(), 4 * 201);
    for line in out.lines() {
        let (prefix, text) = line.split_once(": ").unwrap();
        let (slot, rest) = prefix.split_once("/1/").unwrap();
        assert!(rest.parse::<i32>().unwrap() > 1);
        assert!(text == "end" || text == slot.repeat(5000), "{line}");
    }
    assert_eq!(run.stop(), 0);
}

// ---- stop ----

// Edge case 19.
#[test]
fn a_worker_that_ignores_the_signal_is_killed_in_time() {
    let mut run = brief([
        "-n",
        "1",
        "--stop-timeout",
        "300ms",
        "--",
        "sh",
        "-c",
        STUBBORN,
    ])
    .start();
    let pid = ready(&mut run);
    said(&run, "up");
    assert_eq!(run.stop(), 0);
    let line = run.event("worker-killed");
    assert_eq!(number(&line, "pid"), pid);
    assert_eq!(field(&run.event("worker-exited"), "signal"), "KILL");
}

// Edge case 19.
#[test]
fn a_stopped_worker_leaves_too() {
    let mut run = brief(["-n", "1", "--stop-timeout", "1000s", "sleep", "1000"]).start();
    let pid = ready(&mut run);
    send(pid, Signal::SIGSTOP);
    eventually("its stop", || {
        proc_status(pid, "State").starts_with('T').then_some(())
    });
    assert_eq!(run.stop(), 0);
    assert_eq!(field(&run.event("worker-exited"), "signal"), "TERM");
}

// Edge case 18.
#[test]
fn a_stop_before_any_worker_is_ready() {
    let mut run = spawnwork(["-n", "2", "--ready", "notify", "sleep", "1000"]).start();
    let pid = number(&run.event("worker-started"), "pid");
    assert_eq!(run.stop(), 0);
    assert!(!alive(pid));
    // And as early as possible: no worker is left by any order of things.
    for _ in 0..10 {
        let mut run = spawnwork(["-n", "2", "sleep", "1000"]).start();
        run.event("started");
        assert_eq!(run.stop(), 0);
        for line in lines_of(&run, "worker-started") {
            assert!(!alive(number(&line, "pid")));
        }
    }
}

#[test]
fn quit_and_a_second_request_stop_at_once() {
    let signals: [&[Signal]; 4] = [
        &[Signal::SIGQUIT],
        &[Signal::SIGTERM, Signal::SIGTERM],
        &[Signal::SIGINT, Signal::SIGTERM],
        &[Signal::SIGTERM, Signal::SIGQUIT],
    ];
    for list in signals {
        let mut run = brief([
            "-n",
            "2",
            "--stop-timeout",
            "1000s",
            "--",
            "sh",
            "-c",
            STUBBORN,
        ])
        .start();
        run.event("generation-serving");
        eventually("both traps", || (run.out() == "up\nup\n").then_some(()));
        for (index, signal) in list.iter().enumerate() {
            if index > 0 {
                run.event("worker-stopping");
            }
            run.signal(*signal);
        }
        assert_eq!(run.end(), 0, "{list:?}");
        for line in lines_of(&run, "worker-exited") {
            assert_eq!(field(&line, "signal"), "KILL");
        }
    }
}

// Edge case 17.
#[test]
fn a_stop_in_mid_reload_stops_both_generations() {
    let mut run = spawnwork(["-n", "2", "--ready", "alive:100ms", "--probation", "1000s"])
        .args(["sleep", "1000"])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGUSR2);
    run.event("reload-canary");
    assert_eq!(run.stop(), 0);
    let started = lines_of(&run, "worker-started");
    assert_eq!(started.len(), 3);
    for line in started {
        assert!(!alive(number(&line, "pid")));
    }
    assert!(lines_of(&run, "reload-failed").is_empty());
}

// Edge case 21.
#[test]
fn what_a_worker_leaves_behind_is_swept() {
    // Out of its group and its session, with its output.
    let leave = |traps: &str| {
        format!(
            "(setsid sh -c '{traps} echo grand $$; while :; do sleep 1; done' &); exec sleep 1000"
        )
    };
    let grand = |run: &Running| {
        eventually("the grandchild", || {
            let out = run.out();
            let line = out
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix("grand "));
            line.map(|pid| pid.parse::<i32>().unwrap())
        })
    };
    for traps in ["", "trap \"\" TERM HUP;"] {
        let mut run = brief(["-n", "1", "--stop-timeout", "500ms"])
            .args(["--", "sh", "-c", &leave(traps)])
            .start();
        let worker = ready(&mut run);
        let first = grand(&run);
        // After a death, while we go on.
        send(worker, Signal::SIGKILL);
        ready(&mut run);
        gone(first);
        let second = eventually("the next", || Some(grand(&run)).filter(|pid| *pid != first));
        // And at the end, which does not wait for its output.
        assert_eq!(run.stop(), 0);
        assert!(!alive(second));
    }
}

#[test]
fn when_spawnwork_is_killed_its_workers_get_term() {
    let script = "trap 'echo bye >bye; exit 0' TERM; while :; do sleep 0.05; done";
    let dir = Dir::new();
    let mut run = brief(["-n", "1", "--", "sh", "-c", script])
        .dir(dir.path())
        .start();
    let pid = ready(&mut run);
    run.signal(Signal::SIGKILL);
    assert_eq!(run.end(), 128 + 9);
    gone(pid);
    assert!(dir.path().join("bye").exists());
}

// ---- signals ----

// Edge case 15.
#[test]
fn one_reload_takes_the_place_of_another() {
    let mut run = spawnwork(["-n", "2", "--ready", "alive:100ms", "--probation", "2s"])
        .args(["sleep", "1000"])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGUSR2);
    let canary = number(&run.event("reload-canary"), "pid");
    run.signal(Signal::SIGUSR2);
    assert_eq!(field(&run.event("reload-superseded"), "generation"), "2");
    run.event_with("reload-started", "generation=3");
    assert_eq!(field(&run.event("reload-committed"), "generation"), "3");
    gone(canary);
    // As fast as one can: one that counts.
    run.signal(Signal::SIGUSR2);
    run.signal(Signal::SIGUSR2);
    let number = field(&run.event("reload-committed"), "generation");
    for line in status(&mut run).1 {
        assert_eq!(field(&line, "generation"), number);
    }
    assert_eq!(run.stop(), 0);
    assert_eq!(lines_of(&run, "reload-committed").len(), 2);
}

// Edge case 53.
#[test]
fn a_reload_waits_for_one_whose_slots_change_hands() {
    let mut run = spawnwork(["-n", "2", "--surge", "1", "--ready", "alive:100ms"])
        .args(["--probation", "1s", "sleep", "1000"])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGUSR2);
    run.event("worker-stopping");
    for _ in 0..2 {
        run.signal(Signal::SIGUSR2);
        run.event("reload-queued");
    }
    run.event_with("reload-committed", "generation=2");
    run.event_with("reload-committed", "generation=3");
    for line in status(&mut run).1 {
        assert_eq!(field(&line, "generation"), "3");
    }
    assert_eq!(run.stop(), 0);
    assert_eq!(lines_of(&run, "reload-committed").len(), 2);
}

// Edge case 16.
#[test]
fn a_reload_before_the_first_generation_serves_starts_it_over() {
    let good = ": >ready; exec sleep 1000";
    let releases = Releases::new(&[("hangs", "exec sleep 1000"), ("good", good)]);
    let current = text(releases.0.path().join("current"));
    let mut run = spawnwork(["-n", "2", "-C", &current, "--start-parallel", "2"])
        .args([
            "--ready",
            "exec:test -e /proc/$PID/cwd/ready",
            "--",
            "sh",
            "app.sh",
        ])
        .start();
    let old = [run.event("worker-started"), run.event("worker-started")];
    releases.switch("good");
    run.signal(Signal::SIGUSR2);
    let line = run.event("generation-serving");
    assert_eq!(field(&line, "generation"), "2");
    for line in old {
        gone(number(&line, "pid"));
    }
    for line in status(&mut run).1 {
        assert_eq!(field(&line, "generation"), "2");
    }
    assert_eq!(run.stop(), 0);
}

// Edge case 40.
#[test]
fn one_worker_more_and_one_fewer_but_never_the_last() {
    let mut run = brief(["-n", "1", "sleep", "1000"]).start();
    let first = ready(&mut run);
    run.event("generation-serving");
    run.signal(Signal::SIGTTOU);
    assert_eq!(field(&status(&mut run).0, "workers"), "1");
    run.signal(Signal::SIGTTIN);
    assert_eq!(field(&run.event("workers-changed"), "workers"), "2");
    let line = run.event("worker-ready");
    assert_eq!(field(&line, "slot"), "1");
    let second = number(&line, "pid");
    assert_eq!(variable(second, "WORKER_ID").as_deref(), Some("1"));
    assert_eq!(variable(second, "SPAWNWORK_WORKERS").as_deref(), Some("2"));
    run.signal(Signal::SIGTTOU);
    assert_eq!(field(&run.event("workers-changed"), "workers"), "1");
    assert_eq!(number(&run.event("worker-exited"), "pid"), second);
    run.signal(Signal::SIGTTOU);
    let (head, slots) = status(&mut run);
    assert_eq!(field(&head, "workers"), "1");
    assert_eq!(number(&slots[0], "pid"), first);
    // The new number is that of a reload as well.
    run.signal(Signal::SIGTTIN);
    run.event("worker-ready");
    run.signal(Signal::SIGUSR2);
    assert_eq!(field(&run.event("reload-committed"), "workers"), "2");
    assert_eq!(run.stop(), 0);
    assert_eq!(lines_of(&run, "workers-changed").len(), 3);
}

#[test]
fn hup_reloads_unless_it_was_ignored_at_the_start() {
    // Also where these tests were started by nohup.
    let mut run = Run::new("env")
        .args(["--default-signal=HUP", SPAWNWORK])
        .args(["--ready", "alive:100ms", "--probation", "100ms"])
        .args(["-n", "1", "sleep", "1000"])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGHUP);
    run.event("reload-committed");
    assert_eq!(run.stop(), 0);

    let mut run = Run::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", SPAWNWORK])
        .args(["--ready", "alive:100ms", "-n", "1", "sleep", "1000"])
        .start();
    run.event("generation-serving");
    run.signal(Signal::SIGHUP);
    // Both signals are there; the answer to the second comes after the first was dealt with.
    status(&mut run);
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "reload-started").is_empty());
}

#[test]
fn signals_that_mean_nothing_end_nobody() {
    let mut run = brief(["-n", "1", "sleep", "1000"]).start();
    let pid = ready(&mut run);
    run.event("generation-serving");
    for signal in [Signal::SIGWINCH, Signal::SIGPIPE, Signal::SIGCHLD] {
        run.signal(signal);
    }
    assert_eq!(number(&status(&mut run).1[0], "pid"), pid);
    assert_eq!(run.stop(), 0);
}

#[test]
fn usr1_writes_the_status() {
    let mut run = brief(["-n", "2", "-l", "127.0.0.1:0", "sleep", "1000"]).start();
    let address = field(&run.event("socket-bound"), "address");
    let pids = BTreeSet::from([ready(&mut run), ready(&mut run)]);
    let (head, slots) = status(&mut run);
    assert!(head.contains(" generation=1 workers=2"), "{head}");
    assert!(!head.contains("frozen") && !head.contains("lost"), "{head}");
    for line in &slots {
        assert_eq!(field(line, "state"), "serving");
        assert_eq!(field(line, "generation"), "1");
        assert_eq!(field(line, "restarts"), "0");
        assert!(!field(line, "uptime").is_empty());
    }
    assert_eq!(
        slots
            .iter()
            .map(|line| number(line, "pid"))
            .collect::<BTreeSet<_>>(),
        pids
    );
    run.event_with("status", &format!("address={address}"));
    assert_eq!(run.stop(), 0);
}

// ---- where it runs ----

// Edge case 24.
// Edge case 25.
#[test]
fn as_the_first_process_of_a_container() {
    needs_root();
    // Five strangers are left to us, and end later.
    let script = "for i in 1 2 3 4 5; do (setsid sleep 0.3 &); done; echo made; exec sleep 1000";
    let mut run = Run::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", SPAWNWORK])
        .args([
            "--ready",
            "alive:100ms",
            "--probation",
            "100ms",
            "-n",
            "1",
            "--",
            "sh",
            "-c",
            script,
        ])
        .start();
    run.event("generation-serving");
    said(&run, "made");
    let master = kit::run::children_of(run.pid())[0];
    let one_child = || (kit::run::children_of(master).len() == 1).then_some(());
    eventually("one child", one_child);
    // PID 1 gets only the signals that it handles; this one has its effect.
    send(master, Signal::SIGUSR2);
    run.event("reload-committed");
    eventually("one child again", one_child);
    let worker = kit::run::children_of(master)[0];
    send(worker, Signal::SIGKILL);
    run.event_with("worker-exited", "signal=KILL");
    run.event("worker-ready");
    send(master, Signal::SIGTERM);
    assert_eq!(run.end(), 0);
}

// Edge case 61.
#[test]
fn output_that_nobody_reads_ends_no_worker() {
    let dir = Dir::new();
    let file = dir.path().join("count");
    let script = format!(
        "i=0; while :; do echo line || exit 9; i=$((i + 1)); echo $i >'{}'; sleep 0.01; done",
        text(&file)
    );
    let count = || {
        std::fs::read_to_string(&file)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    let mut run = Run::new("python3")
        .args([
            text(app("plain_gone.py")),
            "1".to_owned(),
            SPAWNWORK.to_owned(),
        ])
        .args([
            "--ready",
            "alive:100ms",
            "-n",
            "1",
            "--",
            "sh",
            "-c",
            &script,
        ])
        .start();
    let worker = ready(&mut run);
    eventually("the report", || lines_of(&run, "lines-lost").pop());
    let before = eventually("its writing", count);
    eventually("more of its writing", || {
        count().filter(|now| *now > before + 50)
    });
    let (head, slots) = status(&mut run);
    assert!(number(&head, "lost") > 0, "{head}");
    assert_eq!(number(&slots[0], "pid"), worker);
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "worker-failed").is_empty());
}

// Edge case 35.
#[test]
fn standard_error_closed_or_without_a_reader_ends_nobody() {
    let script =
        "i=0; while :; do echo grumble >&2 || exit 9; i=$((i + 1)); echo $$ $i; sleep 0.01; done";
    let args = [
        "--ready",
        "alive:100ms",
        "--probation",
        "100ms",
        "-n",
        "1",
        "--",
        "sh",
        "-c",
        script,
    ];
    let starts: [(&str, Vec<String>); 2] = [
        (
            "sh",
            vec!["-c".to_owned(), "exec \"$0\" \"$@\" 2>&-".to_owned()],
        ),
        ("python3", vec![text(app("plain_gone.py")), "2".to_owned()]),
    ];
    for (wrapper, first) in starts {
        let mut run = Run::new(wrapper)
            .args(first)
            .args([SPAWNWORK])
            .args(args)
            .start();
        let workers = |run: &Running| -> Vec<i32> {
            let out = run.out();
            let mut list: Vec<i32> = out
                .lines()
                .filter(|line| line.ends_with(" 50"))
                .map(|line| line.split(' ').next().unwrap().parse().unwrap())
                .collect();
            list.dedup();
            list
        };
        let first = eventually("fifty lines", || workers(&run).first().copied());
        assert!(alive(first), "{wrapper}");
        run.signal(Signal::SIGUSR2);
        let second = eventually("fifty lines more", || workers(&run).get(1).copied());
        gone(first);
        assert!(alive(second));
        assert_eq!(run.stop(), 0, "{wrapper}");
        assert!(!alive(second));
    }
}

#[test]
fn event_lines_as_json_and_for_the_journal() {
    let script = "printf 'a \"b\" \\\\ \\033 \\303\\244 \\377\\n' >&2; exit 3";
    let args = [
        "-n",
        "1",
        "--respawn-limit",
        "1/60s",
        "--backoff",
        "1ms..2ms",
        "--log-format",
    ];
    let run = spawnwork(args)
        .args(["json", "--", "sh", "-c", script])
        .finish();
    let lines: Vec<&str> = run
        .err
        .lines()
        .filter(|line| line.starts_with('{'))
        .collect();
    assert_eq!(run.err.lines().count(), lines.len() + 2, "{}", run.err);
    let dir = Dir::new();
    let file = dir.write("lines", &(lines.join("\n") + "\n"));
    let parsed = Run::new("python3")
        .args(["-m", "json.tool", "--json-lines", "--compact", &text(file)])
        .finish();
    assert_eq!(parsed.status, 0, "{}\n{}", parsed.err, run.err);
    assert_eq!(parsed.out.lines().count(), lines.len());
    for event in [
        "started",
        "worker-started",
        "worker-exited",
        "worker-held",
        "stopped",
    ] {
        let part = format!("\"event\":\"{event}\"");
        assert!(parsed.out.contains(&part), "no {part} in {}", parsed.out);
    }
    for line in parsed.out.lines() {
        assert!(
            line.contains("\"time\":\"") && line.contains("\"tool\":\"spawnwork\""),
            "{line}"
        );
    }

    let run = spawnwork(args)
        .args(["journal", "--", "sh", "-c", script])
        .finish();
    for (level, event) in [
        ("6", "started "),
        ("4", "worker-exited "),
        ("3", "worker-held "),
        ("6", "stopped "),
    ] {
        let start = format!("<{level}>{event}");
        assert!(
            run.err.lines().any(|line| line.starts_with(&start)),
            "no {start}: {}",
            run.err
        );
    }
    let text_form = spawnwork(args)
        .args(["text", "--", "sh", "-c", script])
        .finish();
    for line in text_form.err.lines().filter(|line| !line.starts_with("a ")) {
        assert!(line.contains(" spawnwork["), "{line}");
    }
}

#[test]
fn quiet_and_verbose() {
    let run = spawnwork(["-q", "-n", "1", "true"]).finish();
    assert_eq!(run.status, 1);
    assert!(
        !run.err.contains(": started ") && run.err.contains(": worker-failed "),
        "{}",
        run.err
    );
    let run = spawnwork(["-v", "-n", "1", "true"]).finish();
    assert!(run.err.contains(": started "), "{}", run.err);
    for (option, first) in [("--version", "spawnwork "), ("--help", "run N workers")] {
        let run = spawnwork([option]).finish();
        assert_eq!(run.status, 0);
        assert!(run.out.starts_with(first), "{}", run.out);
        assert_eq!(run.err, "");
    }
}

// ---- what goes wrong later ----

#[test]
fn a_flag_in_the_environment() {
    for name in [
        "QUIET",
        "VERBOSE",
        "NO_LISTEN_PID",
        "ALLOW_BIND",
        "NO_PRELOAD",
    ] {
        let name = format!("SPAWNWORK_{name}");
        for value in ["1", "true"] {
            let run = spawnwork(["-n", "1", "true"]).env(&name, value).finish();
            assert_eq!(run.status, 1, "{name}={value}: {}", run.err);
            assert_eq!(
                run.err.contains(": started "),
                name != "SPAWNWORK_QUIET",
                "{name}={value}: {}",
                run.err
            );
        }
        let run = spawnwork(["-n", "1", "true"]).env(&name, "maybe").finish();
        assert_eq!(run.status, 2, "{name}=maybe: {}", run.err);
    }
}

// Edge case 31.
#[test]
fn a_worker_that_shuts_a_shared_socket_down_does_not_end_the_service() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut run = server(&["-n", "2", "-l", &address, "--ready", "notify"], "notify").start();
    run.event("generation-serving");
    let reply = kit::http::get(&address, "/shutdown").unwrap();
    assert!(reply.body.starts_with("worker="), "{}", reply.body);
    run.event_with("socket-relistened", &address);
    let reply = eventually("an answer", || kit::http::get(&address, "/").ok());
    assert_eq!(reply.status, 200);
    assert_eq!(run.stop(), 0);
}

// Edge case 8.
#[test]
fn a_program_that_is_gone_for_a_moment_comes_back() {
    let dir = Dir::new();
    let script = "#!/bin/sh\nexec sleep 1000\n";
    let executable = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let program = dir.write("program", script);
    executable(&program);
    let mut run = brief([
        "-n",
        "2",
        "--backoff",
        "50ms..100ms",
        "--respawn-limit",
        "0",
    ])
    .args([text(&program)])
    .start();
    run.event("generation-serving");
    let worker = number(&status(&mut run).1[0], "pid");
    std::fs::remove_file(&program).unwrap();
    send(worker, Signal::SIGKILL);
    assert!(run.event("worker-failed").contains("program"));
    run.event("worker-backoff");
    // A reload fails, and changes nothing.
    run.signal(Signal::SIGUSR2);
    run.event("reload-failed");
    dir.write("program", script);
    executable(&program);
    let line = run.event("worker-ready");
    assert_eq!(
        (&*field(&line, "slot"), &*field(&line, "generation")),
        ("0", "1")
    );
    assert_eq!(run.stop(), 0);
}

// Edge case 38.
// Edge case 53.
#[test]
fn a_release_that_was_deleted_fails_its_slot_only() {
    let up = "exec sleep 1000";
    let releases = Releases::new(&[("1", up), ("2", up)]);
    let mut run = releases
        .run(&["-n", "2", "--backoff", "50ms..100ms"])
        .start();
    run.event("generation-serving");
    let worker = number(&status(&mut run).1[1], "pid");
    releases.switch("2");
    std::fs::remove_dir_all(releases.0.path().join("releases/1")).unwrap();
    send(worker, Signal::SIGKILL);
    run.event_with("worker-exited", "signal=KILL");
    run.event("worker-backoff");
    // While it is in its backoff, or held: a good reload ends that.
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    let (_, slots) = status(&mut run);
    for line in slots {
        assert!(line.contains(" generation=2 state=serving"), "{line}");
    }
    assert_eq!(run.stop(), 0);
}

// Edge case 52.
#[test]
fn more_than_an_exec_takes() {
    let dir = Dir::new();
    // One string of an execve(2) may have 128 KiB.
    let large = format!("X={}\n", "x".repeat(200_000));
    let file = dir.write("app.env", &large);
    let args = ["-n", "1", "--env-file", &text(&file), "sleep", "1000"];
    let run = brief(args).finish();
    assert_eq!(run.status, 125, "{}", run.err);
    assert!(!run.err.contains("worker-ready"), "{}", run.err);
    dir.write("app.env", "X=1\n");
    let mut run = brief(args).start();
    let pid = ready(&mut run);
    run.event("generation-serving");
    dir.write("app.env", &large);
    run.signal(Signal::SIGUSR2);
    let refused = run.event("reload-refused");
    assert!(refused.contains("200003 bytes"), "{refused}");
    // Together they are too many, although none of them alone is.
    let many: String = (0..200)
        .map(|i| format!("X{i}={}\n", "x".repeat(20_000)))
        .collect();
    dir.write("app.env", &many);
    run.signal(Signal::SIGUSR2);
    let refused = run.event("reload-refused");
    assert!(
        refused.contains("arguments and environment have 40"),
        "{refused}"
    );
    assert!(alive(pid));
    assert_eq!(number(&status(&mut run).1[0], "pid"), pid);
    assert_eq!(run.stop(), 0);
}

#[test]
fn lines_that_are_long_without_an_end_or_no_text() {
    let script = "head -c 5000000 /dev/zero | tr '\\0' x; echo; printf 'nul \\0 \\377\\n'; \
        printf 'no end'; exec sleep 1000";
    let mut run = brief(["-n", "1", "--", "sh", "-c", script]).start();
    ready(&mut run);
    eventually("the second line", || {
        run.out().contains("nul ").then_some(())
    });
    assert_eq!(run.stop(), 0);
    let out = run.out_to_its_end();
    assert_eq!(out.matches('x').count(), 5_000_000);
    assert!(out.contains("nul \0 \u{fffd}\n"));
    assert!(
        out.ends_with("no end\n") || out.ends_with("no end"),
        "{:?}",
        out.lines().last()
    );
}

// Edge case 21.
#[test]
fn what_stays_in_the_workers_group_is_killed_too() {
    let script =
        "(trap '' TERM; echo child; while :; do sleep 1; done) & echo $! ; exec sleep 1000";
    let mut run = brief([
        "-n",
        "1",
        "--stop-timeout",
        "300ms",
        "--",
        "sh",
        "-c",
        script,
    ])
    .start();
    ready(&mut run);
    said(&run, "child");
    let out = run.out();
    let child: i32 = out.lines().find_map(|line| line.parse().ok()).unwrap();
    assert!(alive(child));
    assert_eq!(run.stop(), 0);
    assert!(!alive(child));
}

#[test]
fn a_check_that_hangs_is_no_sign() {
    let dir = Dir::new();
    let pid = text(dir.path().join("pid"));
    let check = format!("exec:echo $$ >'{pid}'; exec sleep 1000");
    let args = [
        "-n",
        "1",
        "--ready",
        &check,
        "--ready-timeout",
        "500ms",
        "sleep",
        "1000",
    ];
    let run = spawnwork(args).finish();
    assert_eq!(run.status, 1, "{}", run.err);
    assert!(run.err.contains("not ready within 500ms"), "{}", run.err);
    let pid: i32 = std::fs::read_to_string(pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    gone(pid);
}

#[test]
fn a_privileged_port_for_workers_without_privileges() {
    needs_root();
    let dir = Dir::new();
    let binary = compiled(&dir, "plain_server.c");
    let port = (600 + std::process::id() as u16 % 300..1000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let address = format!("127.0.0.1:{}", port.unwrap());
    let check = "exec:[ \"$(id -un)\" = nobody ]";
    let mut run = spawnwork(["-n", "1", "-u", "nobody", "-l", &address, "--ready", check])
        .args(["--", &binary])
        .start();
    let pid = ready(&mut run);
    assert_eq!(kit::http::get(&address, "/").unwrap().body, "from C\n");
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    assert_eq!(
        std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(),
        nobody.uid.as_raw()
    );
    assert_eq!(run.stop(), 0);
}

#[test]
fn the_old_generation_is_looked_after_during_a_reload() {
    let mut run = spawnwork(["-n", "2", "--ready", "alive:100ms", "--probation", "3s"])
        .args(["sleep", "1000"])
        .start();
    run.event("generation-serving");
    let old = number(&status(&mut run).1[1], "pid");
    run.signal(Signal::SIGUSR2);
    run.event("reload-canary");
    send(old, Signal::SIGKILL);
    run.event_with("worker-exited", "signal=KILL");
    let line = run.event("worker-ready");
    assert_eq!(
        (&*field(&line, "slot"), &*field(&line, "generation")),
        ("1", "1")
    );
    run.event("reload-committed");
    for line in status(&mut run).1 {
        assert_eq!(field(&line, "generation"), "2");
    }
    // Whoever dies now is of the new generation.
    let new = number(&status(&mut run).1[0], "pid");
    send(new, Signal::SIGKILL);
    run.event_with("worker-exited", "signal=KILL");
    assert_eq!(field(&run.event("worker-ready"), "generation"), "2");
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_backlog_that_the_kernel_cuts_is_said_and_one_that_is_not_holds() {
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let above = (limit.trim().parse::<u32>().unwrap() + 1).to_string();
    let mut run = brief([
        "-n",
        "1",
        "-l",
        "127.0.0.1:0",
        "--backlog",
        &above,
        "sleep",
        "1000",
    ])
    .start();
    let line = run.event("backlog-cut");
    assert_eq!(field(&line, "limit"), limit.trim());
    assert!(line.contains("net.core.somaxconn"), "{line}");
    assert_eq!(run.stop(), 0);
    let mut run = brief([
        "-n",
        "1",
        "-l",
        "127.0.0.1:0",
        "--backlog",
        "9",
        "sleep",
        "1000",
    ])
    .start();
    let address = field(&run.event("socket-bound"), "address");
    run.event("generation-serving");
    let ss = Run::new("ss").args(["-ltnH", "src", &address]).finish();
    assert_eq!(ss.out.split_whitespace().nth(2), Some("9"), "{}", ss.out);
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "backlog-cut").is_empty());
}

#[test]
fn a_value_of_the_command_line_replaces_one_of_the_environment() {
    let (one, two) = (free_port(), free_port());
    let mut run = brief(["-n", "1", "-l", &format!("127.0.0.1:{one}"), "--env", "B=2"])
        .args(["sleep", "1000"])
        .env("SPAWNWORK_LISTEN", format!("127.0.0.1:{two}"))
        .env("SPAWNWORK_ENV", "A=1")
        .start();
    let pid = ready(&mut run);
    assert_eq!(variable(pid, "LISTEN_FDS").as_deref(), Some("1"));
    assert_eq!(variable(pid, "A"), None);
    assert_eq!(variable(pid, "B").as_deref(), Some("2"));
    assert_eq!(run.stop(), 0);
    let mut run = brief(["-n", "1", "sleep", "1000"])
        .env("SPAWNWORK_LISTEN", format!("web=127.0.0.1:{two}"))
        .env("SPAWNWORK_ENV", "A=1")
        .start();
    let pid = ready(&mut run);
    assert_eq!(variable(pid, "LISTEN_FDNAMES").as_deref(), Some("web"));
    assert_eq!(variable(pid, "A").as_deref(), Some("1"));
    assert_eq!(run.stop(), 0);
}

// Edge case 61.
#[test]
fn a_reader_that_is_stuck_holds_back_workers_and_nothing_else() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut run = brief(["-n", "1", "--", "sh", "-c", "exec yes"])
        .stdout(writer)
        .start();
    let first = ready(&mut run);
    run.event("generation-serving");
    // A worker that cannot write sleeps in write(2).
    eventually("a full pipe", || {
        let call = std::fs::read_to_string(format!("/proc/{first}/syscall")).unwrap_or_default();
        let waits = proc_status(first, "State").starts_with('S');
        (waits && (call.is_empty() || call.starts_with("1 "))).then_some(())
    });
    assert!(!status(&mut run).0.contains(" lost="));
    run.signal(Signal::SIGUSR2);
    run.event("reload-committed");
    gone(first);
    assert_eq!(run.stop(), 0);
    assert!(lines_of(&run, "lines-lost").is_empty());
    assert!(lines_of(&run, "worker-killed").is_empty());
    drop(reader);
}

// Edge case 46.
#[test]
fn too_few_descriptors_for_all_workers_are_enough_for_some() {
    let mut run = Run::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", SPAWNWORK])
        .args(["--ready", "alive:100ms", "-n", "40", "sleep", "1000"])
        .start();
    let first = ready(&mut run);
    run.event("worker-failed");
    assert_eq!(field(&status(&mut run).0, "workers"), "40");
    assert!(alive(first));
    assert_eq!(run.stop(), 0);
    assert!(!alive(first));
}
