//! What is rare: errors of file servers, automounts, files mounted by themselves, paths with dots, fleets.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::mount::{Mounted, need_root};
use kit::touch::{Lines, ago, touch, touch_at};
use kit::{Dir, Run, Running, eventually, field};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");
const QUICK: [&str; 4] = ["--min-gap", "0", "--settle", "10ms"];

fn done(words: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let run = Run::new("/usr/bin/env")
        .args(words)
        .env("PATH", path)
        .finish();
    assert_eq!(run.status, 0, "{words:?}: {}", run.err);
}

fn times(running: &Running, event: &str) -> usize {
    let part = format!(": {event} ");
    let said = running.err();
    said.iter().filter(|line| line.contains(&part)).count()
}

// Edge case 23.
#[test]
fn errors_of_a_file_server_are_neither_a_removal_nor_a_touch() {
    let (dir, other) = (Dir::new(), Dir::new());
    let shim = other.path().join("statx_errno.so");
    let built = Run::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([&shim])
        .args([kit::app("statx_errno.c")])
        .arg("-ldl")
        .finish();
    assert_eq!(built.status, 0, "{}", built.err);
    let file = dir.write("f", "x");
    let errno = other.path().join("errno");
    let set = |number: i32| {
        fs::write(other.path().join("new"), number.to_string()).unwrap();
        fs::rename(other.path().join("new"), &errno).unwrap();
    };
    let start = || {
        Run::new(PROGRAM)
            .arg(&file)
            .args(QUICK)
            .args(["--poll", "--interval", "30ms", "--on", "remove"])
            .env("LD_PRELOAD", &shim)
            .env("STATX_ERRNO", &errno)
    };
    let mut watched = Lines::start(start(), &other.path().join("end"));
    let errors = [
        (nix::libc::EIO, "input/output error"),
        (nix::libc::ESTALE, "stale file handle"),
        (nix::libc::ETIMEDOUT, "timed out"),
        (nix::libc::EACCES, "permission denied"),
    ];
    for (number, (code, words)) in errors.into_iter().enumerate() {
        set(code);
        let failed = watched.running.event("look-failed");
        assert!(field(&failed, "error").contains(words), "{failed}");
        // It is neither removed, nor touched by coming back as it was.
        watched.exactly("/f", number);
        fs::remove_file(&errno).unwrap();
        watched.running.event("look-recovered");
        watched.exactly("/f", number);
        // Touched meanwhile: once.
        set(code);
        watched.running.event("look-failed");
        touch_at(&file, ago(100 + number as u64));
        fs::remove_file(&errno).unwrap();
        watched.running.event("look-recovered");
        watched.exactly("/f", number + 1);
    }
    assert_eq!(times(&watched.running, "look-failed"), 2 * errors.len());
    assert_eq!(watched.running.stop(), 0);

    // At the start it is waited for, for the server may come back; that is no touch either.
    set(nix::libc::ESTALE);
    let mut late = Lines::start(start(), &other.path().join("end"));
    assert_eq!(times(&late.running, "look-failed"), 1);
    fs::remove_file(&errno).unwrap();
    late.running.event("look-recovered");
    late.exactly("/f", 0);
    touch(&file);
    late.exactly("/f", 1);
}

/// Unmounts what a failed test has left.
struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

// Edge case 25.
#[test]
fn a_look_triggers_an_automount() {
    need_root();
    let dir = Dir::new();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("server")).unwrap();
    fs::write(at("server/f"), "x").unwrap();
    dir.write(
        "map",
        &format!("data -fstype=bind :{}\n", at("server").display()),
    );
    dir.write(
        "master",
        &format!(
            "{} {} --timeout=600\n",
            at("auto").display(),
            at("map").display()
        ),
    );
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    // In a group of its own: from the daemon's group nothing triggers a mount.
    let mut daemon = Run::new("/usr/bin/env")
        .args([
            "setsid",
            "automount",
            "--foreground",
            "--verbose",
            "--pid-file",
        ])
        .arg(at("pid"))
        .arg(at("master"))
        .env("PATH", path)
        .start();
    let _clean = Unmount(at("auto"));
    let mounted = |what: &str| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&format!(" {} ", at(what).display()))
    };
    daemon.line("automount is ready", |line| {
        line.contains("mounted indirect")
    });
    assert!(!mounted("auto/data"));
    let run = Run::new(PROGRAM)
        .arg(at("auto/data/f"))
        .args(QUICK)
        .args(["--interval", "50ms"]);
    let mut watched = Lines::start(run, &at("end"));
    assert!(mounted("auto/data"));
    touch(at("server/f"));
    watched.exactly("data/f", 1);
    // Unmounted, as when nobody has used it for long, and mounted by the next look: no touch.
    done(&["umount", at("auto/data").to_str().unwrap()]);
    watched.exactly("data/f", 1);
    touch(at("server/f"));
    watched.exactly("data/f", 2);
    assert_eq!(watched.running.stop(), 0);
    // It unmounts what it has mounted.
    assert_eq!(daemon.stop(), 0, "{:?}", daemon.err());
}

// Edge case 26.
#[test]
fn mounted_anew_an_untouched_file_is_untouched() {
    let mut mounted = Mounted::ext4();
    fs::write(mounted.path().join("f"), "x").unwrap();
    touch_at(mounted.path().join("f"), ago(7200));
    let other = Dir::new();
    let run = Run::new(PROGRAM)
        .arg(mounted.path().join("f"))
        .args(QUICK)
        .args(["--safety", "50ms"]);
    let mut watched = Lines::start(run, &other.path().join("end"));
    for read_only in [true, false] {
        mounted.remount(read_only);
        watched.exactly("/f", 0);
    }
    touch(mounted.path().join("f"));
    watched.exactly("/f", 1);
    mounted.freeze();
    watched.exactly("/f", 1);
    mounted.thaw();
}

// Edge case 38.
#[test]
fn dots_and_slashes_mean_what_they_mean_to_the_kernel() {
    for (path, change, fires) in [
        // After the link, not before it.
        ("current/../up", "true", 0),
        ("current/../up", "touch releases/up", 1),
        ("current/../up", "touch up", 0),
        (
            "current/../up",
            "ln -s elsewhere/3 new; mv -T new current",
            1,
        ),
        ("./releases//1/.././up", "touch releases/up", 1),
        // A slash at the end: a directory, and no file.
        ("releases/up/", "touch releases/up", 0),
        ("releases/1/", "touch releases/1/new", 1),
        ("later/", "echo > later", 0),
        ("later/", "mkdir later", 1),
        (".", "touch new", 1),
        ("..//cwd/up", "touch up", 1),
    ] {
        let dir = Dir::new();
        let cwd = dir.path().join("cwd");
        for name in ["releases/1", "releases/2", "elsewhere/3"] {
            fs::create_dir_all(cwd.join(name)).unwrap();
        }
        for name in ["releases/up", "elsewhere/up", "up"] {
            fs::write(cwd.join(name), "").unwrap();
            touch_at(cwd.join(name), ago(1000));
        }
        symlink("releases/1", cwd.join("current")).unwrap();
        let mut watched = Lines::start(
            Run::new(PROGRAM).arg(path).args(QUICK).dir(&cwd),
            &dir.path().join("end"),
        );
        let run = Run::new("sh").args(["-c", change]).dir(&cwd).finish();
        assert_eq!(run.status, 0, "{change}: {}", run.err);
        // The path is printed absolute, and else as it was typed.
        watched.exactly(&format!("/cwd/{path}"), fires);
    }
}

// Edge case 43.
#[test]
fn a_file_that_is_mounted_by_itself_is_seen_touched_but_not_replaced() {
    need_root();
    let dir = Dir::new();
    for side in ["host", "container"] {
        fs::create_dir(dir.path().join(side)).unwrap();
        fs::write(dir.path().join(side).join("f"), "x").unwrap();
    }
    let (host, inside) = (dir.path().join("host/f"), dir.path().join("container/f"));
    let inside_text = inside.to_str().unwrap();
    done(&["mount", "--bind", host.to_str().unwrap(), inside_text]);
    let _clean = Unmount(inside.clone());
    let run =
        Run::new(PROGRAM)
            .arg(&inside)
            .args(QUICK)
            .args(["--safety", "0", "--interval", "50ms"]);
    let mut watched = Lines::start(run, &dir.path().join("end"));
    touch(&host);
    watched.exactly("container/f", 1);
    fs::write(&host, "more").unwrap();
    watched.exactly("container/f", 2);
    // It stays the old file here.
    fs::write(dir.path().join("host/new"), "y").unwrap();
    fs::rename(dir.path().join("host/new"), &host).unwrap();
    watched.exactly("container/f", 2);
    touch(&host);
    watched.exactly("container/f", 2);
    assert_eq!(watched.running.stop(), 0);
}

fn delay(dir: &Path, host: &str, by: &str) -> u64 {
    // Its own name for the host, and a place of its own for what it says.
    let out = dir.join(format!("{host}.{by}"));
    let script = "echo \"$NAME\" > /proc/sys/kernel/hostname && exec \"$0\" \"$@\"";
    let mut running = Run::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--uts",
            "sh",
            "-c",
            script,
            PROGRAM,
        ])
        .arg(dir.join("f"))
        .args(["--once", "--run-at-start", "--settle", "0"])
        .args(["--splay", "2s", "--splay-by", by])
        .args(["--on-touch", "echo $WATCHTOUCH_DELAY_MS > \"$OUT\""])
        .env("NAME", host)
        .env("OUT", &out)
        .start();
    assert_eq!(running.end(), 0, "{:?}", running.err());
    fs::read_to_string(out).unwrap().trim().parse().unwrap()
}

// Edge case 35.
#[test]
fn a_fleet_is_spread_in_the_same_order_each_time() {
    let dir = Dir::new();
    let hosts = ["web1", "web2", "web3", "db1", "db2", "cache-17"];
    let round = |by: &str| -> Vec<u64> {
        std::thread::scope(|scope| {
            let all: Vec<_> = hosts
                .iter()
                .map(|host| scope.spawn(|| delay(dir.path(), host, by)))
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    let (first, second) = (round("host"), round("host"));
    // Late they may be, on a busy machine; early never. So of the later of the two each was due by then.
    let apart = |delays: &[u64]| delays.iter().max().unwrap() - delays.iter().min().unwrap();
    assert!(apart(&first) > 100, "{first:?}");
    for one in 0..hosts.len() {
        for other in 0..hosts.len() {
            if first[one] + 500 < first[other] {
                assert!(second[one] < second[other], "{first:?} {second:?}");
            }
        }
    }
    // By chance, each has another place each time.
    let (first, second) = (round("random"), round("random"));
    assert!(apart(&first) > 100, "{first:?}");
    assert_ne!(first, second);
}

// inotify has one watch for a directory, under however many names.
#[test]
fn a_directory_that_is_mounted_twice_is_listened_to_under_both_names() {
    need_root();
    let dir = Dir::new();
    let at = |name: &str| dir.path().join(name);
    for name in ["one", "two"] {
        fs::create_dir(at(name)).unwrap();
    }
    for name in ["one/f", "one/g"] {
        fs::write(at(name), "x").unwrap();
    }
    done(&[
        "mount",
        "--bind",
        at("one").to_str().unwrap(),
        at("two").to_str().unwrap(),
    ]);
    let _clean = Unmount(at("two"));
    let run = Run::new(PROGRAM)
        .args([at("one/f"), at("two/f"), at("two/g")])
        .args(QUICK)
        .args(["--no-poll", "--safety", "0"]);
    let mut watched = Lines::start(run, &at("end"));
    for count in 1..=3 {
        touch_at(at("one/f"), ago(count));
        watched.exactly("one/f", count as usize);
        watched.exactly("two/f", count as usize);
        touch_at(at("two/g"), ago(count));
        watched.exactly("two/g", count as usize);
    }
    assert_eq!(watched.running.stop(), 0);

    // One of the names is of interest no more.
    fs::create_dir(at("three")).unwrap();
    fs::write(at("three/f"), "x").unwrap();
    symlink("two", at("link")).unwrap();
    let run = Run::new(PROGRAM)
        .args([at("one/f"), at("link/f")])
        .args(QUICK)
        .args(["--no-poll", "--safety", "0"]);
    let mut watched = Lines::start(run, &at("end"));
    symlink("three", at("new")).unwrap();
    fs::rename(at("new"), at("link")).unwrap();
    watched.exactly("link/f", 1);
    touch_at(at("one/f"), ago(9));
    watched.exactly("one/f", 1);
    touch_at(at("three/f"), ago(9));
    watched.exactly("link/f", 2);
    assert_eq!(watched.running.stop(), 0);
}

/// An ext4 on a loop device that keeps its number when it is unmounted.
struct Disk {
    device: String,
    dir: Dir,
}

impl Disk {
    fn new() -> Disk {
        need_root();
        let dir = Dir::new();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        done(&["mkfs.ext4", "-q", image.to_str().unwrap()]);
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let run = Run::new("/usr/bin/env")
            .args(["losetup", "--find", "--show"])
            .arg(&image)
            .env("PATH", path)
            .finish();
        assert_eq!(run.status, 0, "{}", run.err);
        let device = run.out.trim().to_owned();
        Disk { device, dir }
    }

    fn point(&self) -> std::path::PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self) {
        done(&["mount", &self.device, self.point().to_str().unwrap()]);
    }

    fn umount(&self) {
        done(&["umount", self.point().to_str().unwrap()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Unmount(self.point()));
        let _ = Run::new("/usr/bin/env")
            .args(["losetup", "--detach", &self.device])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .finish();
    }
}

// Unmounted and mounted again between two looks, nothing looks different, and the watch is gone.
#[test]
fn a_watch_that_ended_unseen_is_made_anew() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    for flood in [0, limit] {
        let (disk, other) = (Disk::new(), Dir::new());
        disk.mount();
        fs::write(disk.point().join("f"), "x").unwrap();
        let run = Run::new(PROGRAM)
            .arg(disk.point().join("f"))
            .args(QUICK)
            .args(["--no-poll", "--safety", "0"]);
        let mut watched = Lines::start(run, &other.path().join("end"));
        watched.running.signal(Signal::SIGSTOP);
        // With a flood that nobody is told of it.
        for number in 0..flood {
            let name = format!("noise{}", number % 2);
            drop(fs::File::create(other.path().join(name)).unwrap());
        }
        disk.umount();
        disk.mount();
        watched.running.signal(Signal::SIGCONT);
        watched.exactly("/f", 0);
        for count in 1..=2 {
            touch_at(disk.point().join("f"), ago(count));
            watched.exactly("/f", count as usize);
        }
        assert_eq!(watched.running.stop(), 0);
    }
}

// Edge case 18.
#[test]
fn links_in_a_circle_are_said_once_each_time() {
    let dir = Dir::new();
    let file = dir.write("f", "x");
    let run = Run::new(PROGRAM)
        .arg(&file)
        .args(QUICK)
        .args(["--safety", "20ms"]);
    let mut watched = Lines::start(run, &dir.path().join("end"));
    for count in 1..=2 {
        fs::remove_file(&file).unwrap();
        symlink("f", &file).unwrap();
        let said = watched.running.event("link-loop");
        assert!(field(&said, "file").ends_with("/f"));
        // Looked at again and again meanwhile.
        watched.exactly("/f", count - 1);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "y").unwrap();
        watched.exactly("/f", count);
        assert_eq!(times(&watched.running, "link-loop"), count);
    }
    assert_eq!(watched.running.stop(), 0);
}

// Edge case 24, where the stamp says otherwise.
#[test]
fn what_was_touched_before_its_file_system_was_mounted_is_told_by_the_stamp() {
    need_root();
    let (image, dir) = (Mounted::tmpfs(16 << 20), Dir::new());
    fs::write(image.path().join("f"), "x").unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("point")).unwrap();
    let (from, to) = (image.path().to_str().unwrap(), at("point"));
    let to = to.to_str().unwrap();
    let start = || {
        let run = Run::new(PROGRAM)
            .arg(at("point/f"))
            .args(QUICK)
            .args(["--safety", "50ms", "--since"])
            .arg(at("stamp"));
        Lines::start(run, &at("end"))
    };
    done(&["mount", "--bind", from, to]);
    let _clean = Unmount(at("point"));
    let mut watched = start();
    touch_at(image.path().join("f"), ago(100));
    watched.exactly("point/f", 1);
    assert_eq!(watched.running.stop(), 0);
    for touched in [0, 1] {
        done(&["umount", to]);
        if touched == 1 {
            touch_at(image.path().join("f"), ago(50));
        }
        let mut watched = start();
        watched.exactly("point/f", 0);
        done(&["mount", "--bind", from, to]);
        watched.exactly("point/f", touched);
        // It has been seen, and is kept: two files are there.
        eventually("the stamp", || {
            let stamp = fs::read_to_string(at("stamp")).unwrap_or_default();
            (stamp.matches("\nthere ").count() == 2).then_some(())
        });
        assert_eq!(watched.running.stop(), 0);
    }
}

/// Two may look at a file: a thread that goes the whole way, and the loop, at the file alone. Here the first is held
/// up on its way.
#[test]
fn what_is_seen_late_is_not_taken_for_news() {
    let other = Dir::new();
    let shim = other.path().join("statx_held.so");
    let built = Run::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([&shim])
        .args([kit::app("statx_held.c")])
        .arg("-ldl")
        .finish();
    assert_eq!(built.status, 0, "{}", built.err);
    let gate = other.path().join("gate");
    let waits = other.path().join("gate.waits");
    for (held, changed) in [
        // The link is read, and switched while its file is asked for.
        ("one/f", "current"),
        // The file is asked for, and touched before the answer.
        ("one/f", "f"),
        ("/current", "current"),
    ] {
        let dir = Dir::new();
        let at = |name: &str| dir.path().join(name);
        for (name, seconds) in [("one", 500), ("two", 600)] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("f"), name).unwrap();
            touch_at(at(name).join("f"), ago(seconds));
        }
        symlink("one", at("current")).unwrap();
        let run = Run::new(PROGRAM)
            .arg(at("current/f"))
            .args(["--min-gap", "0", "--settle", "0", "--safety", "0"])
            .args(["--format", "json"])
            .env("LD_PRELOAD", &shim)
            .env("STATX_HELD", held)
            .env("STATX_GATE", &gate);
        let mut running = run.start();
        running.event("ready");
        fs::write(&gate, "").unwrap();
        running.signal(Signal::SIGHUP);
        eventually("a look that is held up", || waits.exists().then_some(()));
        let last = if changed == "current" {
            symlink("two", at("link")).unwrap();
            fs::rename(at("link"), at("current")).unwrap();
            // Not the file any more, though the thread that looks is still on its way to it.
            touch_at(at("one/f"), std::time::UNIX_EPOCH + Duration::from_secs(7));
            "two"
        } else {
            touch_at(at("one/f"), std::time::UNIX_EPOCH + Duration::from_secs(8));
            "one"
        };
        let end = |text: &str| running.out().contains(text);
        fs::remove_file(&gate).unwrap();
        // What is done after that is seen, and before it the truth alone.
        let time = std::time::UNIX_EPOCH + Duration::from_secs(9);
        eventually("the first change", || {
            (!running.out().is_empty()).then_some(())
        });
        touch_at(at(last).join("f"), time);
        eventually("the last touch", || end("\"mtime\":9.").then_some(()));
        let out = running.out();
        assert!(!out.contains("\"mtime\":7."), "{held} {changed}: {out}");
        assert_eq!(out.lines().count(), 2, "{held} {changed}: {out}");
        assert_eq!(running.stop(), 0);
    }
}
