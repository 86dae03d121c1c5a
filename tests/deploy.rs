//! examples/deploy over a real sshd on loopback, with git over ssh, in dash and in busybox's shell: spawnwork is
//! the judge of each release, and clients see nothing of any of them fail.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::load::{Load, Options};
use kit::{Dir, Finished, Run, Running, eventually, free_port, root};
use nix::fcntl::{Flock, FlockArg};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// A host with its sshd, a repository, and a configuration.
struct Site {
    dir: Dir,
    shell: Vec<&'static str>,
    port: u16,
    app_port: u16,
    _sshd: Running,
}

fn done(run: &Finished) {
    assert_eq!(run.status, 0, "{}{}", run.out, run.err);
}

impl Site {
    /// The shell runs the script here; on the host, `sh` is the same one.
    fn new(shell: &[&'static str]) -> Site {
        kit::mount::need_root();
        let (dir, port, app_port) = (Dir::new(), free_port(), free_port());
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "repo", "srv"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        symlink(which(shell[0]), at("bin/sh")).unwrap();
        for key in ["host", "user"] {
            done(
                &Run::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(at(key))
                    .finish(),
            );
        }
        let own = Path::new(PROGRAM).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let ssh = Site::ssh(dir.path(), port);
        let text = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nStrictModes no\n\
             PermitRootLogin yes\nUsePAM no\nPidFile none\n\
             SetEnv \"PATH={0}/bin:{1}:{path}\" \"GIT_SSH_COMMAND=ssh {ssh}\"\n",
            dir.path().display(),
            own.display()
        );
        let config = dir.write("sshd_config", &text);
        std::fs::create_dir_all("/run/sshd").unwrap();
        let sshd = Run::new(which("sshd"))
            .args(["-D", "-e", "-f"])
            .arg(config)
            .start();
        eventually("sshd listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let site = Site {
            dir,
            shell: shell.to_vec(),
            port,
            app_port,
            _sshd: sshd,
        };
        site.git(&["init", "-q", "-b", "main"]);
        site.configure("");
        site
    }

    fn ssh(dir: &Path, port: u16) -> String {
        let (dir, null) = (dir.display(), "/dev/null");
        format!(
            "-F {null} -i {dir}/user -p {port} -o StrictHostKeyChecking=no -o UserKnownHostsFile={null} -o LogLevel=ERROR"
        )
    }

    /// The configuration, with more lines for its environment.
    fn configure(&self, lines: &str) {
        let (dir, port) = (self.dir.path().display(), self.port);
        let ssh = Site::ssh(self.dir.path(), port);
        let text = format!(
            "# Of all environments\n[default]\nrepo ssh://root@127.0.0.1:{port}{dir}/repo\npath /nowhere\nkeep 3\n\
             user root\nssh {ssh}\nshared logs/ .env\n\n[test]\nhost 127.0.0.1\npath {dir}/srv/app\n\
             control {dir}/srv/app.sock\ntimeout 60s\ntrial 1\n{lines}\n\n[two]\nhost 127.0.0.1 127.0.0.2\n\
             path {dir}/srv/app\ncontrol {dir}/srv/app.sock\ntrial 0\n\n[three]\nhost 127.0.0.1 localhost 127.0.0.2\n\
             path {dir}/srv/app\n"
        );
        self.dir.write("deploy.conf", &text);
    }

    fn git(&self, words: &[&str]) {
        let run = Run::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@example.com"])
            .args(words)
            .dir(self.dir.path().join("repo"))
            .finish();
        done(&run);
    }

    /// A commit with a tag.
    fn release(&self, tag: &str, app: &str) {
        std::fs::write(self.dir.path().join("repo/app.js"), app).unwrap();
        self.git(&["add", "app.js"]);
        self.git(&["commit", "-q", "-m", tag]);
        self.git(&["tag", tag]);
    }

    fn command(&self, words: &[&str]) -> Run {
        Run::new(self.shell[0])
            .args(&self.shell[1..])
            .arg(root().join("examples/deploy/deploy"))
            .args(words)
            .dir(self.dir.path())
    }

    fn deploy(&self, words: &[&str]) -> Finished {
        self.command(&[&["test"], words].concat()).finish()
    }

    fn app(&self) -> PathBuf {
        self.dir.path().join("srv/app")
    }

    /// The name of the release that is current, without its commit.
    fn current(&self) -> String {
        let asked = self.deploy(&["current"]);
        done(&asked);
        asked.out.split('-').next().unwrap().to_owned()
    }

    /// What clients get.
    fn answer(&self) -> String {
        let reply = kit::http::get(format!("127.0.0.1:{}", self.app_port), "/").unwrap();
        reply.body.split_whitespace().nth(2).unwrap().to_owned()
    }

    fn ask(&self, request: &str) -> Finished {
        let socket = self.dir.path().join("srv/app.sock");
        Run::new(PROGRAM)
            .arg("--ctl")
            .arg(socket)
            .arg(request)
            .finish()
    }

    /// Its pid.
    fn master(&self) -> i32 {
        let socket = self.dir.path().join("srv/app.sock");
        let status = Run::new(PROGRAM)
            .arg("--ctl")
            .arg(socket)
            .args(["status", "json"])
            .finish();
        let status: serde_json::Value = serde_json::from_str(status.out.trim()).unwrap();
        status["pid"].as_i64().unwrap().try_into().unwrap()
    }

    /// What runs the releases, as a command of the host's shell.
    fn service(&self) -> String {
        format!(
            "PORT={} nohup spawnwork -n 2 --control app.sock --probation 300ms --check 'node --check app.js' \
             -C app/current -- node app.js",
            self.app_port
        )
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Nobody else ends what `start` has started.
        let _ = self.ask("quit");
    }
}

fn which(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is missing: run tests/setup.sh"))
}

fn app(version: &str) -> String {
    format!(
        "require('http').createServer((request, response) => response.end(`hello ${{process.pid}} {version}\\n`))\n\
         .listen(Number(process.env.PORT), '127.0.0.1');\n"
    )
}

enum Length {
    Short,
    Whole,
}

fn a_life(shell: &[&'static str], length: Length) {
    let site = Site::new(shell);
    site.release("v1", &app("one"));

    // Nothing is there yet.
    let early = site.deploy(&["v1"]);
    assert_eq!(early.status, 1);
    assert!(early.err.contains("run setup first"), "{}", early.err);
    done(&site.deploy(&["setup"]));
    done(&site.deploy(&["setup"]));
    assert_eq!(site.deploy(&["current"]).status, 1);
    // A first release that cannot even be started leaves nothing.
    site.configure("start false");
    assert_eq!(site.deploy(&["v1"]).status, 1);
    assert_eq!(site.deploy(&["current"]).status, 1);
    // One that can is waited for until it serves; the service does not hold the lock.
    let (srv, service) = (site.dir.path().join("srv"), site.service());
    let start = format!("cd {} && {{ {service} >log 2>&1 & }}", srv.display());
    site.configure(&format!("start {start}"));
    done(&site.deploy(&["v1"]));
    assert_eq!((&*site.current(), &*site.answer()), ("1", "one"));
    site.configure("");
    let shared = std::fs::read_link(site.app().join("current/logs")).unwrap();
    assert!(shared.ends_with("shared/logs") && site.app().join("current/logs").is_dir());

    let load = Load::paced(
        &Options {
            address: format!("127.0.0.1:{}", site.app_port),
            keep_alive: 3,
            fresh: 1,
            paths: vec!["/"],
            expect: "hello ",
            timeout: Duration::from_secs(30),
        },
        Duration::from_millis(20),
    );
    site.release("v2", &app("two"));
    done(&site.deploy(&["v2"]));
    assert_eq!((&*site.current(), &*site.answer()), ("2", "two"));

    // Rolled back: it does not live.
    site.release("v3", "throw new Error('of no use');");
    let bad = site.deploy(&["v3"]);
    assert_eq!(bad.status, 1, "{}", bad.err);
    assert!(bad.err.contains("of no use"), "{}", bad.err);
    assert!(bad.err.contains("rolled back: 3-"), "{}", bad.err);
    assert_eq!((&*site.current(), &*site.answer()), ("2", "two"));
    if let Length::Short = length {
        done(&site.deploy(&["revert"]));
        assert_eq!((&*site.current(), &*site.answer()), ("1", "one"));
        let tally = load.stop();
        assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
        return;
    }
    // Taken back after it had taken over.
    let late = "setTimeout(() => process.exit(3), 700);\n";
    site.release("late", &(app("late") + late));
    let late = site.deploy(&["late"]);
    assert_eq!(late.status, 1, "{}", late.err);
    assert!(late.err.contains("rolled back: 3-"), "{}", late.err);
    assert_eq!(site.current(), "2");
    eventually("the old release answers", || {
        (site.answer() == "two").then_some(())
    });
    // Refused: it is no program.
    site.release("v4", "}");
    let refused = site.deploy(&["v4"]);
    assert_eq!(refused.status, 1, "{}", refused.err);
    assert!(refused.err.contains("refused: 3-"), "{}", refused.err);
    // It serves, but its own test says no.
    site.configure("test test $RELEASE = none");
    site.release("v5", &app("five"));
    let failed = site.deploy(&["v5"]);
    assert_eq!(failed.status, 1, "{}", failed.err);
    assert!(failed.err.contains("the test failed"), "{}", failed.err);
    assert_eq!((&*site.current(), &*site.answer()), ("2", "two"));
    // It cannot be prepared.
    site.configure("pre-deploy false");
    let failed = site.deploy(&["v5"]);
    assert_eq!(failed.status, 1, "{}", failed.err);
    assert!(failed.err.contains("nothing was changed"), "{}", failed.err);
    // There is no such thing.
    let missing = site.deploy(&["v99"]);
    assert_eq!(missing.status, 1, "{}", missing.err);
    assert!(missing.err.contains("there is no 'v99'"), "{}", missing.err);
    // What did not succeed leaves nothing behind.
    let list = site.deploy(&["list"]);
    assert_eq!(list.out.lines().count(), 2, "{}", list.out);
    assert!(list.out.starts_with("* 2-"), "{}", list.out);

    // Hooks, with what they are told; a branch; only three are kept.
    site.configure("pre-deploy echo $RELEASE >prepared\npost-deploy pwd >$DEPLOY_PATH/posted");
    for number in 3..=5 {
        site.release(&format!("w{number}"), &app(&format!("w{number}")));
        done(&site.deploy(&["main"]));
        let (release, answer) = (site.current(), site.answer());
        assert_eq!(
            (release, answer),
            (number.to_string(), format!("w{number}"))
        );
    }
    let prepared = std::fs::read_to_string(site.app().join("current/prepared")).unwrap();
    assert!(prepared.starts_with("5-"), "{prepared}");
    let posted = std::fs::read_to_string(site.app().join("posted")).unwrap();
    assert!(posted.contains("/releases/5-"), "{posted}");
    assert_eq!(site.deploy(&["list"]).out.lines().count(), 3);

    // Back, and on.
    done(&site.deploy(&["revert"]));
    assert_eq!((&*site.current(), &*site.answer()), ("4", "w4"));
    let ran = site.deploy(&["exec", "cat", "REVISION;", "echo \"it's here\""]);
    done(&ran);
    assert!(
        ran.out.ends_with("it's here\n") && ran.out.len() > 50,
        "{}",
        ran.out
    );
    assert_eq!(site.deploy(&["exec", "exit 7"]).status, 7);
    site.dir.write("typed", "pwd\nexit\n");
    let typed = std::fs::File::open(site.dir.path().join("typed")).unwrap();
    let console = site.command(&["test", "console"]).stdin(typed).finish();
    assert!(
        console.out.contains("/releases/4-") || console.out.contains("/app/current"),
        "{}",
        console.out
    );

    // Two hosts, of which one cannot be reached: the other goes back.
    let two = site.command(&["two", "v1"]).finish();
    assert_eq!(two.status, 125, "{}", two.err);
    assert!(two.err.contains("127.0.0.2: no connection"), "{}", two.err);
    assert_eq!((&*site.current(), &*site.answer()), ("4", "w4"));

    // Two at once on one host.
    let file = std::fs::File::create(site.app().join(".lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    let second = site.deploy(&["revert"]);
    assert_eq!(second.status, 1, "{}", second.err);
    assert!(second.err.contains("another deploy"), "{}", second.err);
    drop(lock);

    load.answer(20);
    let tally = load.stop();
    // A release that dies after it has taken over takes along what its workers have in hand.
    let refused = tally.of(kit::http::Failure::Refused) + tally.of(kit::http::Failure::TimedOut);
    assert_eq!(refused, 0, "{:?}", tally.failed);

    // Where nothing runs, a release is only put there.
    assert_eq!(site.ask("stop").status, 0);
    let put = site.deploy(&["v2"]);
    done(&put);
    assert!(put.err.contains("start the service"), "{}", put.err);
}

#[test]
fn in_dash() {
    a_life(&["dash"], Length::Whole);
}

#[test]
fn in_busybox() {
    a_life(&["busybox", "sh"], Length::Short);
}

#[test]
fn hosts_that_cannot_go_back_are_told_from_those_that_can() {
    let site = Site::new(&["dash"]);
    site.release("v1", &app("one"));
    done(&site.deploy(&["setup"]));
    // Two names of one host here: what is the first release to the first is not to the second.
    let differ = site.command(&["three", "v1"]).finish();
    assert_eq!(differ.status, 3, "{}", differ.err);
    for said in [
        "127.0.0.2: no connection",
        "is the first release, and stays",
        "localhost: back",
    ] {
        assert!(differ.err.contains(said), "{said}: {}", differ.err);
    }
    assert_eq!(site.current(), "1", "{}", differ.err);
}

#[test]
fn a_result_that_does_not_come_in_time_is_none() {
    let site = Site::new(&["dash"]);
    site.release("v1", &app("one"));
    done(&site.deploy(&["setup"]));
    // Nobody comes: the host's seconds are short here.
    symlink(which("true"), site.dir.path().join("bin/sleep")).unwrap();
    let socket = site.dir.path().join("srv/app.sock");
    let listener = format!(
        "python3 -c 'import socket; socket.socket(1).bind(\"{}\")'",
        socket.display()
    );
    for start in ["true".to_owned(), listener] {
        site.configure(&format!("start {start}"));
        let early = site.deploy(&["v1"]);
        assert_eq!(early.status, 1, "{}", early.err);
        assert!(
            early.err.contains("nothing is current again"),
            "{}",
            early.err
        );
        assert_eq!(site.deploy(&["current"]).status, 1);
        let _ = std::fs::remove_file(&socket);
    }
    std::fs::remove_file(site.dir.path().join("bin/sleep")).unwrap();

    let (srv, service) = (site.dir.path().join("srv"), site.service());
    let start = format!("cd {} && {{ {service} >log 2>&1 & }}", srv.display());
    site.configure(&format!("start {start}"));
    done(&site.deploy(&["v1"]));
    // It neither listens nor ends; the old one is current again, and a reload of it takes its place.
    site.release("v2", "setInterval(() => {}, 1000);\n");
    site.configure("timeout 3s");
    let late = site.deploy(&["v2"]);
    assert_eq!(late.status, 1, "{}", late.err);
    assert!(late.err.contains("no result within 3s"), "{}", late.err);
    assert_eq!((&*site.current(), &*site.answer()), ("1", "one"));
    assert_eq!(site.deploy(&["list"]).out.lines().count(), 1);
    eventually("all is well", || {
        (site.ask("status").status == 0).then_some(())
    });
    // An answer that is as late leaves a service that nobody could ask.
    let paused: i32 = {
        let status = site.ask("status");
        assert_eq!(status.status, 0, "{}", status.err);
        site.master()
    };
    site.release("v3", &app("three"));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(paused),
        nix::sys::signal::Signal::SIGSTOP,
    )
    .unwrap();
    let deaf = site.deploy(&["v3"]);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(paused),
        nix::sys::signal::Signal::SIGCONT,
    )
    .unwrap();
    assert_eq!(deaf.status, 1, "{}", deaf.err);
    for said in ["no result within 3s", "its workers could not be put back"] {
        assert!(deaf.err.contains(said), "{said}: {}", deaf.err);
    }
    assert_eq!(site.current(), "1");
}

#[test]
fn wrong_usage_is_said_before_anything_is_done() {
    let dir = Dir::new();
    dir.write(
        "deploy.conf",
        "[default]\nrepo x\n[a]\nhost h\npath relative\n[b]\nhost h\npath /p\nkeep no\n[c]\n",
    );
    for (words, said) in [
        (vec!["a"], "what to do"),
        (vec!["nope", "list"], "no section [nope]"),
        (vec!["a", "list"], "does not begin with a slash"),
        (vec!["b", "list"], "keep 'no'"),
        (vec!["c", "list"], "has no 'host'"),
        (vec!["-c", "missing", "a", "list"], "cannot be read"),
    ] {
        let run = Run::new("sh")
            .arg(root().join("examples/deploy/deploy"))
            .args(&words)
            .dir(dir.path())
            .finish();
        assert_eq!(run.status, 2, "{words:?}: {}", run.err);
        assert!(run.err.contains(said), "{words:?}: {}", run.err);
    }
}
