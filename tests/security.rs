//! What a user must not get from root or from another user by way of ours: modes whatever the umask, races for
//! names, and an environment that came along from somebody else.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::mount::need_root;
use kit::run::children_of;
use kit::served::Terminal;
use kit::{Dir, Run, Running, app, eventually, field, node, sibling};
use nix::sys::signal::Signal;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");
const NOBODY: u32 = 65534;

fn tool(name: &str) -> PathBuf {
    match name {
        "spawnwork" => PathBuf::from(PROGRAM),
        name => sibling(PROGRAM, name),
    }
}

fn mode(path: impl AsRef<Path>) -> u32 {
    let path = path.as_ref();
    let found = path.symlink_metadata();
    found
        .unwrap_or_else(|why| panic!("{}: {why}", path.display()))
        .mode()
        & 0o7777
}

/// One of ours under that umask.
fn under(umask: &str, name: &str, dir: &Dir, words: &[&str]) -> Running {
    Run::new("sh")
        .args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"])
        .arg(tool(name))
        .args(words)
        .env("REPLSOCK_DIR", dir.path().join("sockets"))
        .dir(dir.path())
        .start()
}

#[test]
fn modes_whatever_the_umask() {
    for umask in ["000", "077"] {
        let dir = Dir::new();
        let at = |name: &str| dir.path().join(name);

        let words = [
            "-l",
            "out",
            "--control",
            "l.sock",
            "--pid-file",
            "l.pid",
            "--",
            "sleep",
            "1000",
        ];
        let mut logs = under(umask, "logreopen", &dir, &words);
        logs.event("command-started");
        assert_eq!((mode(at("out")), mode(at("l.sock"))), (0o640, 0o600));
        assert_eq!(mode(at("l.pid")) & !0o044, 0o600, "{umask}");

        let own = std::process::id().to_string();
        let words = ["--pid", &own, "--lock", "h.pid", "--metrics", "m.prom"];
        let _heart = under(umask, "heartbeat", &dir, &words);
        eventually("metrics", || at("m.prom").exists().then_some(()));
        assert_eq!(mode(at("m.prom")) & !0o044, 0o600, "{umask}");
        assert_eq!(mode(at("h.pid")) & !0o044, 0o600, "{umask}");

        let words = [
            "watched",
            "--since",
            "stamp",
            "--lock",
            "lock",
            "--run-at-start",
            "--on-touch",
            "true",
        ];
        let mut watch = under(umask, "watchtouch", &dir, &words);
        watch.event("action-ended");
        eventually("a stamp", || at("stamp").exists().then_some(()));
        assert_eq!(mode(at("stamp")) & !0o044, 0o600, "{umask}");
        // For all who are to take turns: what the umask leaves, as with flock(1).
        assert_eq!(mode(at("lock")) & !0o066, 0o600, "{umask}");

        dir.write("app.js", "setInterval(() => {}, 1000);\n");
        let node = node("20");
        let words = [
            "-n",
            "1",
            "--pid-file",
            "s.pid",
            "--control",
            "s.sock",
            "-l",
            "unix:u.sock",
            "--ready",
            "alive:10ms",
            "--",
            node.to_str().unwrap(),
            "app.js",
        ];
        let mut master = under(umask, "spawnwork", &dir, &words);
        master.event("generation-serving");
        // Never more than what everybody may read.
        assert_eq!(mode(at("s.pid")) & !0o044, 0o600, "{umask}");
        assert_eq!(mode(at("s.sock")), 0o600);
        assert_eq!(mode(at("u.sock")), 0o600);
        let preload = preload_of(children_of(master.pid())[0]);
        assert_eq!(
            (mode(&preload), mode(preload.parent().unwrap())),
            (0o444, 0o755)
        );

        let words = [
            "env",
            "--app",
            "shop",
            "--",
            node.to_str().unwrap(),
            "app.js",
        ];
        let live = under(umask, "replsock", &dir, &words);
        let socket = at(&format!("sockets/shop/{}.sock", live.pid()));
        eventually("its socket", || socket.exists().then_some(()));
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(at("sockets/shop")), 0o700);
        assert_eq!(mode(at("sockets")) & 0o066, 0);

        // An audit's file, and what was typed.
        let line = format!(
            "umask {umask}; export REPLSOCK_DIR={0}/sockets XDG_STATE_HOME={0}/state REPLSOCK_AUDIT={0}/audit; '{1}' shop",
            dir.path().display(),
            tool("replsock").display()
        );
        let mut person = Terminal::open(dir.path(), &line);
        person.shows("# ");
        person.types("6 * 7\r");
        person.shows("42");
        person.types("\x04");
        person.ends(0);
        assert_eq!(mode(at("audit")), 0o600, "{umask}");
        assert_eq!(mode(at("state/replsock")), 0o700, "{umask}");
        assert_eq!(mode(at("state/replsock/shop.history")), 0o600, "{umask}");

        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let mut serve = under(umask, "replsock", &dir, &["serve", "r.sock", "--", "cat"]);
        serve.event("server-listening");
        assert_eq!(mode(at("r.sock")), 0o600);
    }
}

/// The preload that a worker's NODE_OPTIONS name, as soon as it has become node.
fn preload_of(pid: i32) -> PathBuf {
    eventually("its NODE_OPTIONS", || {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = String::from_utf8_lossy(&environment).into_owned();
        let options = text
            .split('\0')
            .find_map(|one| one.strip_prefix("NODE_OPTIONS=--require="))?;
        Some(PathBuf::from(options.split(' ').next()?))
    })
}

/// Another user may not have what root's workers load.
#[test]
fn the_runtime_directory_of_another_user_is_not_used() {
    need_root();
    let dir = Dir::new();
    let place = dir.path().join("runtime");
    std::fs::create_dir(&place).unwrap();
    dir.write("app.js", "setInterval(() => {}, 1000);\n");
    let preload = |owner: u32, rights: u32| {
        std::fs::set_permissions(&place, PermissionsExt::from_mode(rights)).unwrap();
        std::os::unix::fs::chown(&place, Some(owner), Some(owner)).unwrap();
        let mut master = Run::new(PROGRAM)
            .args(["-n", "1", "--ready", "alive:10ms", "--"])
            .arg(node("20"))
            .arg("app.js")
            .env("XDG_RUNTIME_DIR", &place)
            .dir(dir.path())
            .start();
        let ready = master.event("worker-ready");
        let preload = preload_of(field(&ready, "pid").parse().unwrap());
        assert_eq!(master.stop(), 0);
        preload
    };
    assert!(preload(0, 0o700).starts_with(&place));
    assert!(!preload(NOBODY, 0o700).starts_with(&place));
    assert!(!preload(0, 0o777).starts_with(&place));
    assert!(!preload(0, 0o770).starts_with(&place));
}

/// What is root's, outside of the directory that the attacker can write to.
struct Victims {
    dir: Dir,
}

impl Victims {
    fn new() -> Victims {
        let dir = Dir::new();
        dir.write("file", "root's own\n");
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        for name in ["file", "directory"] {
            let rights = PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(dir.path().join(name), rights).unwrap();
        }
        Victims { dir }
    }

    fn assert_whole(&self, when: &str) {
        for name in ["file", "directory"] {
            let found = self.dir.path().join(name).symlink_metadata().unwrap();
            let seen = (found.mode() & 0o7777, found.uid(), found.gid());
            assert_eq!(seen, (0o700, 0, 0), "{name}, {when}");
        }
        let text = std::fs::read_to_string(self.dir.path().join("file")).unwrap();
        assert_eq!(text, "root's own\n", "{when}");
        let inside = std::fs::read_dir(self.dir.path().join("directory")).unwrap();
        assert_eq!(inside.count(), 0, "{when}");
    }
}

#[test]
fn metrics_are_not_written_through_a_link_that_was_laid_out() {
    let (victims, dir) = (Victims::new(), Dir::new());
    let metrics = dir.path().join("m.prom");
    // The name that could be known before: that of the process.
    let script =
        "ln -s \"$1\" \"$2.$$\"; exec \"$3\" --pid $PPID --interval 100ms --metrics \"$2\"";
    let mut heart = Run::new("sh")
        .args(["-c", script, "sh"])
        .arg(victims.dir.path().join("file"))
        .arg(&metrics)
        .arg(tool("heartbeat"))
        .start();
    eventually("metrics", || metrics.exists().then_some(()));
    assert!(metrics.symlink_metadata().unwrap().is_file());
    let _ = heart.stop();
    victims.assert_whole("metrics");
}

/// Who it is by proc_pid_status(5), and that nothing of root is left.
fn assert_is_nobody(pid: i32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("{key} in {status}"))
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    for key in ["Uid:", "Gid:"] {
        assert_eq!(of(key), ["65534"; 4], "{status}");
    }
    assert_eq!(of("Groups:"), ["65534"], "{status}");
    for key in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(of(key), ["0000000000000000"], "{status}");
    }
    // Never set by us: a program of the worker's may be setuid (sendmail).
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("NoNewPrivs:"));
    assert!(status.contains(own.unwrap()), "{status}");
}

/// Each tool that drops privileges, and what of the caller's environment reaches the other side.
#[test]
fn nothing_of_root_is_left_and_the_environment_is_the_callers() {
    need_root();
    let dir = Dir::new();
    dir.write("app.js", "setInterval(() => {}, 1000);\n");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let node = std::fs::canonicalize("/usr/bin/node").unwrap();
    let caller = |run: Run| {
        run.env("LD_LIBRARY_PATH", "/nonexistent")
            .env("NODE_OPTIONS", "--no-warnings")
            .env("XDG_RUNTIME_DIR", dir.path().join("runtime"))
            .dir(dir.path())
    };
    let environment = |pid: i32| {
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut master = caller(Run::new(PROGRAM))
        .args(["-n", "1", "-u", "nobody", "--ready", "alive:100ms", "--"])
        .arg(&node)
        .arg("app.js")
        .start();
    let ready = master.event("worker-ready");
    let worker = field(&ready, "pid").parse().unwrap();
    assert_is_nobody(worker);
    let given = environment(worker);
    assert!(
        given.contains("\0LD_LIBRARY_PATH=/nonexistent\0"),
        "{given}"
    );
    // What root's worker loads lies where that user cannot write.
    let preload = preload_of(worker);
    assert!(
        given.contains(&format!("={} --no-warnings\0", preload.display())),
        "{given}"
    );
    for place in preload.ancestors().take(2) {
        let found = place.metadata().unwrap();
        assert_eq!(
            (found.uid(), found.mode() & 0o022),
            (0, 0),
            "{}",
            place.display()
        );
    }
    assert_eq!(master.stop(), 0);

    let mut logs = caller(Run::new(tool("logreopen")))
        .args(["-u", "nobody", "-l", "out", "--", "sleep", "1000"])
        .start();
    let started = logs.event("command-started");
    let command = field(&started, "pid").parse().unwrap();
    assert_is_nobody(logs.pid());
    assert_is_nobody(command);
    let given = environment(command);
    assert!(given.contains("LD_LIBRARY_PATH=/nonexistent\0"), "{given}");
    let _ = logs.stop();
}

/// heartbeat, watchtouch and replsock with each path that they write to, as root, for a moment.
fn others_at_work(at: &dyn Fn(&str) -> std::ffi::OsString, place: &Path) {
    let own = std::process::id().to_string();
    let mut all = vec![
        Run::new(tool("heartbeat"))
            .args([
                "--pid",
                &own,
                "--interval",
                "20ms",
                "--start-interval",
                "20ms",
            ])
            .args(["--lock".into(), at("h"), "--metrics".into(), at("m.prom")])
            .start(),
        Run::new(tool("watchtouch"))
            .arg(at("w"))
            .args(["--run-at-start", "--on-touch", "true", "--min-gap", "10ms"])
            .args(["--on", "attr", "--settle", "10ms"])
            .args(["--since".into(), at("stamp"), "--lock".into(), at("lock")])
            .start(),
        Run::new(tool("replsock"))
            .arg("serve")
            .arg(at("r"))
            .args(["--record".into(), at("rec"), "--".into(), "cat".into()])
            .start(),
        Run::new(tool("logreopen"))
            .args(["--pid-file".into(), at("lp"), "--control".into(), at("lc")])
            .args(["-l", "/dev/null", "--", "sleep", "0.3"])
            .start(),
    ];
    // So long that the attacker has had each name some times.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(place.exists());
    for one in &mut all {
        one.signal(Signal::SIGTERM);
    }
    for one in &mut all {
        let _ = one.end();
    }
}

/// Neither a device nor a file that is not there yet, whoever else can write the directory.
#[test]
fn links_lead_root_to_no_device_and_to_no_new_file() {
    need_root();
    let (victims, dir) = (Victims::new(), Dir::new());
    let place = dir.path().join("place");
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(NOBODY), Some(NOBODY)).unwrap();
    let link = |name: &str, to: &Path| {
        std::os::unix::fs::symlink(to, place.join(name)).unwrap();
        place.join(name)
    };
    let metrics = link("m.prom", Path::new("/dev/null"));
    let mut heart = Run::new(tool("heartbeat"))
        .args(["--pid", &std::process::id().to_string()])
        .args(["--interval", "100ms", "--metrics"])
        .arg(&metrics)
        .start();
    eventually("metrics of its own", || {
        metrics.symlink_metadata().unwrap().is_file().then_some(())
    });
    assert_eq!(heart.stop(), 0);

    let lock = link("lock", &victims.dir.path().join("directory/new"));
    let mut watch = Run::new(tool("watchtouch"))
        .arg(place.join("watched"))
        .args(["--run-at-start", "--on-touch", "true", "--lock"])
        .arg(lock)
        .start();
    watch.event("lock-failed");
    assert_eq!(watch.stop(), 0);
    victims.assert_whole("a lock's link");
}

/// Somebody puts links in the place of whatever root makes in a directory that he can write to: nothing outside of it
/// is written, cut, given away or opened to others.
#[test]
fn a_race_for_names_gets_nothing_of_roots() {
    need_root();
    let build = Dir::new();
    let racer = build.path().join("racer");
    let built = Run::new("cc")
        .args([app("racer.c").as_path(), Path::new("-O2")])
        .args([Path::new("-Wall"), Path::new("-o"), &racer])
        .finish();
    assert_eq!((built.status, &*built.err), (0, ""));
    let logreopen = tool("logreopen");
    for (rights, owner) in [(0o777, 0), (0o755, NOBODY), (0o1777, 0)] {
        for victim in ["file", "directory"] {
            let victims = Victims::new();
            let dir = Dir::new();
            let place = dir.path().join("place");
            std::fs::create_dir(&place).unwrap();
            std::fs::set_permissions(&place, PermissionsExt::from_mode(rights)).unwrap();
            std::os::unix::fs::chown(&place, Some(owner), Some(owner)).unwrap();
            let mut attacker = Run::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&racer)
                .arg(&place)
                .arg(victims.dir.path().join(victim))
                .start();
            if rights & 0o1000 == 0 {
                dir.write("bait", "");
                std::fs::rename(dir.path().join("bait"), place.join("bait")).unwrap();
                attacker.out_line("a swap", |line| line == "swapped");
            }
            let at = |name: &str| place.join(name).into_os_string();
            for turn in 0..40 {
                let when = format!("{rights:o}, {victim}, {turn}");
                // It may end in any way: only what it leaves behind counts.
                let _ = Run::new(&logreopen)
                    .args(["-u", "nobody", "--mkdir", "--owner", "nobody:nogroup"])
                    .arg("--control")
                    .arg(at("c"))
                    .arg("-l")
                    .arg(at("sub/dir/out"))
                    .args(["-e".into(), at("err")])
                    .args(["--", "echo", "x"])
                    .dir(dir.path())
                    .finish();
                victims.assert_whole(&when);
                if turn % 10 == 0 {
                    if turn == 20 {
                        others_at_work(&at, &place);
                        victims.assert_whole(&when);
                    }
                    let mut master = Run::new(PROGRAM)
                        .args(["-n", "1", "-u", "nobody", "--ready", "alive:1ms"])
                        .args(["--socket-owner", "nobody:nogroup", "--socket-mode", "0666"])
                        .args(["--pid-file".into(), at("p"), "--control".into(), at("m")])
                        .args(["-l".into(), at("u"), "--".into(), "sleep".into()])
                        .arg("1000")
                        .start();
                    eventually("its start, or its refusal", || {
                        let said = master.err().join("\n");
                        (said.contains(": generation-serving ") || said.contains("spawnwork: "))
                            .then_some(())
                    });
                    master.signal(Signal::SIGTERM);
                    let _ = master.end();
                    victims.assert_whole(&when);
                }
            }
            attacker.signal(Signal::SIGKILL);
            let _ = attacker.end();
            // What it has left may be removed as it is.
            let _ = std::fs::remove_dir_all(&place);
        }
    }
}
