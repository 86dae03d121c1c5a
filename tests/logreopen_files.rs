//! What a FILE may be, who owns it, and what stands at its path later.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::logs::{files, found, numbers, report};
use kit::mount::{Mounted, need_root};
use kit::{Dir, Finished, Run, Running, eventually, field};
use nix::sys::signal::Signal;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");
/// nobody, nogroup
const NOBODY: u32 = 65_534;

fn logreopen(dir: &Dir, args: &[&str]) -> Run {
    Run::new(PROGRAM).args(args).dir(dir.path())
}

fn read(dir: &Dir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap_or_default()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A command that writes a line whenever the file `go` is there, and takes it away by that.
fn talker(dir: &Dir, args: &[&str]) -> Running {
    let script =
        "n=1; while :; do if [ -e go ]; then rm go; echo line $n; n=$((n+1)); fi; sleep 0.01; done";
    let mut service = logreopen(dir, args)
        .args(["--", "sh", "-c", script])
        .start();
    service.event("command-started");
    service
}

fn talk(dir: &Dir) {
    dir.write("go", "");
    eventually("it has talked", || {
        (!dir.path().join("go").exists()).then_some(())
    });
}

fn holds(dir: &Dir, name: &str, text: &str) {
    eventually(&format!("{text:?} in {name}"), || {
        (read(dir, name) == text).then_some(())
    });
}

fn reopen(dir: &Dir) -> Finished {
    logreopen(dir, &["--ctl", "s", "reopen"]).finish()
}

// Edge case 11.
#[test]
fn an_absolute_path_leads_to_the_new_directory_and_a_relative_one_stays() {
    let dir = Dir::new();
    for release in ["1", "2"] {
        std::fs::create_dir_all(dir.path().join(release).join("logs")).unwrap();
    }
    symlink("1", dir.path().join("current")).unwrap();
    let absolute = dir.path().join("current/logs/abs").display().to_string();
    // A relative one: we begin in current, which is 1.
    let script = "cd current && exec \"$@\"";
    let mut service = Run::new("sh")
        .args([
            "-c",
            script,
            "sh",
            PROGRAM,
            "-l",
            &absolute,
            "-e",
            "logs/rel",
            "--control",
            "../s",
            "--",
        ])
        .args([
            "sh",
            "-c",
            "while :; do echo out; echo err >&2; sleep 0.01; done",
        ])
        .dir(dir.path())
        .start();
    service.event("command-started");
    std::fs::remove_file(dir.path().join("current")).unwrap();
    symlink("2", dir.path().join("current")).unwrap();
    let asked = reopen(&dir);
    assert_eq!(asked.status, 0, "{}", asked.err);
    assert!(asked.out.contains("logs/rel unchanged"), "{}", asked.out);
    eventually("it goes on in 2", || {
        (!read(&dir, "2/logs/abs").is_empty()).then_some(())
    });
    assert!(!dir.path().join("2/logs/rel").exists());
    assert_eq!(service.stop(), 143);
}

// Edge case 12.
#[test]
fn a_link_is_followed_and_devices_are_written() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
    // Leads nowhere yet: it is made where the link points.
    symlink("elsewhere/target", dir.path().join("link")).unwrap();
    let run = logreopen(&dir, &["-l", "link", "--", "echo", "x"]).finish();
    assert_eq!(
        (run.status, &*read(&dir, "elsewhere/target")),
        (0, "x\n"),
        "{}",
        run.err
    );
    assert!(
        dir.path()
            .join("link")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
    let run = logreopen(
        &dir,
        &["-l", "/dev/null", "-e", "/dev/null", "--", "echo", "x"],
    )
    .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    // Our own stdout, by its name and by a link, also after a reopen.
    symlink("/dev/stdout", dir.path().join("own")).unwrap();
    for name in ["/dev/stdout", "own"] {
        let script = "echo one; sleep 0.1; kill -HUP $PPID; sleep 0.1; echo two";
        let run = logreopen(&dir, &["-l", name, "--", "sh", "-c", script]).finish();
        assert_eq!((run.status, &*run.out), (0, "one\ntwo\n"), "{}", run.err);
    }
}

// Edge case 12: a FIFO without a reader is like a full disk; and its reader may come, go and come back.
#[test]
fn a_fifo_without_a_reader() {
    let dir = Dir::new();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut service = talker(&dir, &["-l", "fifo", "--control", "s"]);
    service.event_with("reopen-failed", "nobody reads it");
    talk(&dir);
    let status = logreopen(&dir, &["--ctl", "s", "status"]).finish();
    assert_eq!(status.status, 1, "{}", status.err);
    for expected in ["line 1\n", "line 2\n"] {
        let mut fifo = std::fs::File::open(dir.path().join("fifo")).unwrap();
        let mut got = vec![0; expected.len()];
        if expected == "line 2\n" {
            talk(&dir);
        }
        fifo.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), expected);
        drop(fifo);
    }
    assert_eq!(service.stop(), 143);
}

// Edge case 34.
#[test]
fn two_of_us_on_one_file() {
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let start = |name: &str| {
        logreopen(&dir, &["-l", "out", "--stamp", "--prefix", name, "--"])
            .arg(&numbers)
            .args(["20000", "3000", "0", "0"])
            .env("NUMBERS_END", "1")
            .start()
    };
    let (mut one, mut two) = (start("one "), start("two "));
    assert_eq!((one.end(), two.end()), (0, 0));
    let text = read(&dir, "out");
    for name in ["one", "two"] {
        let lines = text
            .lines()
            .filter(|line| line.split(' ').nth(1) == Some(name));
        let mut expected = 0u64;
        for line in lines {
            expected += 1;
            assert_eq!(line.len(), 2999 + 25 + 4, "torn: {line:.80}");
            assert!(line.ends_with(&format!(" {expected:010}")), "{line:.80}");
        }
        assert_eq!(expected, 20_000);
    }
    assert_eq!(text.lines().count(), 40_000);
}

// Edge case 38.
#[test]
fn mode_owner_and_umask() {
    need_root();
    let dir = Dir::new();
    dir.write("there", "");
    std::fs::set_permissions(dir.path().join("there"), PermissionsExt::from_mode(0o604)).unwrap();
    let script = "umask 077; exec \"$@\"";
    let run = Run::new("sh")
        .args([
            "-c",
            script,
            "sh",
            PROGRAM,
            "-l",
            "there",
            "-e",
            "sub/dir/new",
            "--mkdir",
        ])
        .args(["--mode", "0664", "--owner", "nobody:nogroup", "--", "true"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    let new = dir.path().join("sub/dir/new");
    assert_eq!(
        (mode(&new), mode(&dir.path().join("there"))),
        (0o664, 0o604)
    );
    for path in [
        &*new,
        &*dir.path().join("sub"),
        &*dir.path().join("sub/dir"),
    ] {
        let found = std::fs::metadata(path).unwrap();
        assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY), "{path:?}");
    }
    assert_eq!(mode(&dir.path().join("sub/dir")), 0o750);
    assert_eq!(
        std::fs::metadata(dir.path().join("there")).unwrap().uid(),
        0
    );
    // The default mode.
    let run = logreopen(&dir, &["-l", "default", "--", "true"]).finish();
    assert_eq!(run.status, 0, "{}", run.err);
    assert_eq!(mode(&dir.path().join("default")), 0o640);
}

// Edge case 38: root opens, the user goes on; a directory that he cannot write is said at the start.
#[test]
fn root_is_dropped_for_good_and_the_first_reopen_is_thought_of() {
    need_root();
    let dir = Dir::new();
    let script =
        "id -u; id -g; id -G; grep -h CapEff /proc/self/status /proc/$PPID/status; exec sleep 1000";
    let mut service = logreopen(
        &dir,
        &[
            "-u",
            "nobody",
            "-l",
            "out",
            "--control",
            "s",
            "--",
            "sh",
            "-c",
            script,
        ],
    )
    .start();
    let doubt = service.event("reopen-doubtful");
    assert_eq!(field(&doubt, "error"), "permission denied");
    assert_eq!(field(&doubt, "directory"), ".");
    eventually("its words", || {
        (read(&dir, "out").lines().count() == 5).then_some(())
    });
    let none = "CapEff:\t0000000000000000\n";
    assert_eq!(
        read(&dir, "out"),
        format!("{NOBODY}\n{NOBODY}\n{NOBODY}\n{none}{none}")
    );
    let made = std::fs::metadata(dir.path().join("out")).unwrap();
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    // The kernel tells us of the file as it does without the drop.
    let mut watched = String::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", service.pid())).unwrap() {
        watched += &std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
    }
    assert!(watched.contains("inotify wd:"), "{watched}");
    std::fs::rename(dir.path().join("out"), dir.path().join("out.1")).unwrap();
    let asked = reopen(&dir);
    assert_eq!(asked.status, 1);
    assert!(asked.err.contains("permission denied"), "{}", asked.err);
    // Its user may ask too.
    let asked = Run::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            PROGRAM,
            "--ctl",
            "s",
            "version",
        ])
        .dir(dir.path())
        .finish();
    assert_eq!(asked.status, 0, "{}", asked.err);
    // logrotate's create makes it possible: tried each second.
    let new = dir.write("new", "");
    std::os::unix::fs::chown(&new, Some(NOBODY), Some(NOBODY)).unwrap();
    std::fs::rename(&new, dir.path().join("out")).unwrap();
    service.event("output-reopened");
    assert_eq!(service.stop(), 143);
}

// Edge case 39.
#[test]
fn root_follows_no_link_in_a_directory_of_others_when_it_is_to_be_dropped() {
    need_root();
    let dir = Dir::new();
    let secret = dir.write("secret", "");
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    symlink(&secret, logs.join("out")).unwrap();
    let run = |user: &[&str]| {
        logreopen(&dir, user)
            .args(["-l", "logs/out", "--", "echo", "x"])
            .finish()
    };
    // Root's own directory: the link is root's own wish.
    assert_eq!(run(&["-u", "nobody"]).status, 0);
    assert_eq!(read(&dir, "secret"), "x\n");
    for open in [true, false] {
        let (mode, owner) = if open { (0o777, 0) } else { (0o755, NOBODY) };
        std::fs::set_permissions(&logs, PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&logs, Some(owner), None).unwrap();
        let refused = run(&["-u", "nobody"]);
        assert_eq!(refused.status, 125);
        assert!(
            refused
                .err
                .contains("a symbolic link in a directory that others can write"),
            "{}",
            refused.err
        );
    }
    assert_eq!(read(&dir, "secret"), "x\n");
}

// Edge case 5: no inode is left, and no descriptor.
#[test]
fn a_reopen_without_inodes_or_permission_keeps_the_old_file() {
    need_root();
    let disk = Mounted::tmpfs_with("size=1m,nr_inodes=4,mode=0755");
    let dir = Dir::new();
    let log = disk.path().join("app.out");
    let mut service = talker(&dir, &["-l", log.to_str().unwrap(), "--control", "s"]);
    let mut junk = 0;
    while std::fs::File::create(disk.path().join(format!("junk{junk}"))).is_ok() {
        junk += 1;
    }
    std::fs::rename(&log, disk.path().join("app.out.1")).unwrap();
    let asked = reopen(&dir);
    assert_eq!(asked.status, 1);
    assert!(
        asked.err.contains("no space left on device"),
        "{}",
        asked.err
    );
    talk(&dir);
    eventually("the old file is written", || {
        (std::fs::read_to_string(disk.path().join("app.out.1")).unwrap() == "line 1\n")
            .then_some(())
    });
    std::fs::remove_file(disk.path().join("junk0")).unwrap();
    service.event("output-reopened");
    talk(&dir);
    eventually("the new one", || {
        (std::fs::read_to_string(&log).unwrap() == "line 2\n").then_some(())
    });
    let failed = service
        .err()
        .iter()
        .filter(|line| line.contains("reopen-failed"))
        .count();
    assert_eq!(failed, 1, "said once");
    assert_eq!(service.stop(), 143);
}

// Edge case 5: EMFILE.
#[test]
fn a_reopen_without_descriptors_keeps_the_old_file() {
    let dir = Dir::new();
    let mut service = talker(&dir, &["-l", "out", "--pid-file", "pid"]);
    let pid = service.pid();
    let limit = |soft: &str| {
        let run = Run::new("prlimit")
            .args([format!("--pid={pid}"), format!("--nofile={soft}:")])
            .finish();
        assert_eq!(run.status, 0, "{}", run.err);
    };
    std::fs::rename(dir.path().join("out"), dir.path().join("out.1")).unwrap();
    limit("3");
    service.signal(Signal::SIGHUP);
    service.event_with("reopen-failed", "too many open files");
    talk(&dir);
    holds(&dir, "out.1", "line 1\n");
    limit("1024");
    service.event("output-reopened");
    assert_eq!(service.stop(), 143);
}

#[test]
fn missing_directories_are_made_again_at_a_reopen() {
    let dir = Dir::new();
    let mut service = talker(
        &dir,
        &[
            "--mkdir",
            "--follow",
            "200ms",
            "-l",
            "a/b/out",
            "--control",
            "s",
        ],
    );
    std::fs::remove_dir_all(dir.path().join("a")).unwrap();
    service.event("output-reopened");
    talk(&dir);
    holds(&dir, "a/b/out", "line 1\n");
    assert_eq!(service.stop(), 143);
}

// Edge case 9: renamed, and put back: nothing happened.
#[test]
fn a_file_that_is_put_back_in_time_is_the_same_file() {
    let dir = Dir::new();
    let mut service = talker(
        &dir,
        &["-v", "--follow", "2s", "-l", "out", "--control", "s"],
    );
    std::fs::rename(dir.path().join("out"), dir.path().join("x")).unwrap();
    std::fs::rename(dir.path().join("x"), dir.path().join("out")).unwrap();
    talk(&dir);
    holds(&dir, "out", "line 1\n");
    let asked = reopen(&dir);
    assert_eq!(asked.out, "out unchanged\n");
    assert!(!service.err().join("\n").contains("output-moved"));
    assert_eq!(service.stop(), 143);
}

#[test]
fn follow_0_follows_nobody() {
    let dir = Dir::new();
    let mut service = talker(&dir, &["--follow", "0", "-l", "out", "--control", "s"]);
    std::fs::rename(dir.path().join("out"), dir.path().join("out.1")).unwrap();
    talk(&dir);
    holds(&dir, "out.1", "line 1\n");
    let asked = reopen(&dir);
    assert!(asked.out.contains("out reopened"), "{}", asked.out);
    talk(&dir);
    holds(&dir, "out", "line 2\n");
    assert!(!service.err().join("\n").contains("output-moved"));
    assert_eq!(service.stop(), 143);
}

#[test]
fn lines_are_synced_when_that_is_asked_for() {
    let dir = Dir::new();
    let numbers = numbers(&dir);
    // strace would change the times that other tests look at, so it is used here only.
    let run = Run::new("strace")
        .args([
            "-f",
            "-o",
            "trace",
            "-e",
            "trace=fdatasync",
            PROGRAM,
            "--fsync",
            "100ms",
            "-l",
            "out",
            "--",
        ])
        .arg(&numbers)
        .args(["500", "100", "1000", "1"])
        .env("NUMBERS_END", "1")
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    let count = read(&dir, "trace").matches("fdatasync(").count();
    assert!(
        (2..50).contains(&count),
        "{count} times in half a second or more"
    );
    found(&[dir.path().join("out")], 500, 100).assert_all(500);
}

// A server that other machines write to cannot be had here; a FUSE file system is as unseen by inotify as
// NFS is, and it is looked at now and then.
#[test]
fn a_file_system_without_inotify_is_looked_at() {
    need_root();
    let dir = Dir::new();
    let below = dir.path().join("below");
    let mount = dir.path().join("mnt");
    std::fs::create_dir(&below).unwrap();
    std::fs::create_dir(&mount).unwrap();
    let mut fuse = Run::new("bindfs").arg("-f").arg(&below).arg(&mount).start();
    eventually("it is mounted", || {
        let text = std::fs::read_to_string("/proc/self/mounts").unwrap();
        text.contains(&*mount.to_string_lossy()).then_some(())
    });
    let numbers = numbers(&dir);
    let mut service = logreopen(&dir, &["--follow", "500ms", "-l", "mnt/app.out", "--"])
        .arg(&numbers)
        .args(["0", "100", "1000", "10"])
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .start();
    service.event("command-started");
    // Behind its back.
    std::fs::rename(below.join("app.out"), below.join("app.out.1")).unwrap();
    service.event("output-moved");
    service.event("output-reopened");
    assert_eq!(service.stop(), 0);
    let lines = report(&dir.path().join("report")).unwrap().lines;
    found(&files(&below, "app."), lines, 100).assert_all(lines);
    let unmounted = Run::new("umount").arg(&mount).finish();
    assert_eq!(unmounted.status, 0, "{}", unmounted.err);
    fuse.end();
}
