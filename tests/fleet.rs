//! A fleet: one touch on a shared directory rolls three hosts, one at a time, by a lock of a real etcd, behind a
//! real nginx, under load. The hosts are network namespaces; what they run in their turn is the example's script.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::etcd::Etcd;
use kit::fuse::Fuse;
use kit::load::{Load, Options};
use kit::net::{Net, address, hub};
use kit::touch::touch;
use kit::{Dir, Run, Running, eventually, sibling};
use std::path::Path;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// The networks: by the first the hosts serve, by the second they reach etcd.
const FRONT: usize = 0;
const ENGINE: usize = 1;
const HOSTS: [&str; 3] = ["a", "b", "c"];
/// Of the lock, in seconds.
const LEASE: u64 = 2;

const APP: &str = "
const body = `hello ${process.env.HOST}.${process.env.SPAWNWORK_GENERATION}\\n`;
require('http').createServer((request, response) => response.end(body)).listen(3000);
";

struct Fleet {
    // Dropped in this order.
    hosts: Vec<Running>,
    nginx: Running,
    etcd: Etcd,
    net: Net,
    shared: Fuse,
    dir: Dir,
}

impl Fleet {
    fn start() -> Fleet {
        let _ = sibling(PROGRAM, "watchtouch");
        let (dir, net) = (Dir::new(), Net::new(HOSTS.len(), 2));
        let etcd = Etcd::start_at(&dir, &hub(ENGINE), |program| net.hub.run(program));
        // As a client of NFS it remembers what it has seen, and inotify says nothing of other hosts.
        let shared = Fuse::bindfs();
        let mut fleet = Fleet {
            hosts: Vec::new(),
            nginx: Run::new("true").start(),
            etcd,
            net,
            shared,
            dir,
        };
        fleet.release(APP);
        std::fs::write(fleet.shared.server().join("restart"), "").unwrap();
        fleet.hosts = (0..HOSTS.len()).map(|at| fleet.host(at)).collect();
        for host in &fleet.hosts {
            eventually("it serves and watches", || {
                let said = host.err().join("\n");
                (said.contains(": generation-serving ") && said.contains(": ready ")).then_some(())
            });
        }
        fleet.nginx = fleet.nginx();
        let socket = fleet.dir.path().join("web.sock");
        eventually("nginx", || {
            kit::http::get(format!("unix:{}", socket.display()), "/").ok()
        });
        fleet
    }

    fn release(&self, app: &str) {
        std::fs::write(self.shared.server().join("app.js"), app).unwrap();
    }

    fn host(&self, at: usize) -> Running {
        let own = self.dir.path().join(HOSTS[at]);
        std::fs::create_dir(&own).unwrap();
        let tools = Path::new(PROGRAM).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut run = self.net.hosts[at]
            .run(tools.join("watchtouch"))
            .arg(self.shared.path().join("restart"))
            .args(["--interval", "200ms", "--retries", "10", "--lock-with"])
            .arg(format!("etcdctl lock --ttl {LEASE} fleet/shop/lock --"))
            .arg("--on-touch")
            .arg(
                kit::root()
                    .join("examples/fleet/roll")
                    .canonicalize()
                    .unwrap(),
            )
            .args(["--", "spawnwork", "-n", "2", "--probation", "1s"])
            .args(["--control", "app.sock", "-C"])
            .arg(self.shared.path())
            .args(["--", "node", "app.js"])
            .env("PATH", format!("{}:{path}", tools.display()))
            .env("HOST", HOSTS[at])
            .dir(own);
        for (name, value) in self.etcd.env() {
            run = run.env(name, value);
        }
        run.start()
    }

    /// What fails is not tried on another host: clients would not see it. Nor is an idle connection used again when
    /// its app may be closing it (examples/nginx).
    fn nginx(&self) -> Running {
        let at = self.dir.path().display();
        let servers: String = (0..HOSTS.len())
            .map(|host| format!("server {}:3000 max_fails=0;\n", address(host, FRONT)))
            .collect();
        let config = self.dir.write(
            "nginx.conf",
            &format!(
                "daemon off;\nuser www-data;\npid {at}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
                 access_log off;\nclient_body_temp_path {at}/body;\nproxy_temp_path {at}/proxy;\n\
                 fastcgi_temp_path {at}/fastcgi;\nuwsgi_temp_path {at}/uwsgi;\nscgi_temp_path {at}/scgi;\n\
                 upstream shop {{\n{servers}keepalive 32;\nkeepalive_timeout 1s;\n}}\n\
                 server {{\nlisten unix:{at}/web.sock;\nlocation / {{\nproxy_pass http://shop;\n\
                 proxy_http_version 1.1;\nproxy_set_header Connection \"\";\nproxy_next_upstream off;\n}}\n}}\n}}\n"
            ),
        );
        self.net
            .hub
            .run("nginx")
            .args(["-e", "stderr", "-c"])
            .arg(config)
            .start()
    }

    fn load(&self) -> Load {
        let options = Options {
            address: format!("unix:{}/web.sock", self.dir.path().display()),
            keep_alive: 6,
            fresh: 3,
            paths: vec!["/"],
            expect: "hello ",
            timeout: Duration::from_secs(60),
        };
        Load::paced(&options, Duration::from_millis(20))
    }

    /// By somebody else than these hosts.
    fn touch(&self) {
        touch(self.shared.server().join("restart"));
    }

    fn etcdctl(&self, words: &[&str]) -> String {
        let asked = self.etcd.ask(self.net.hub.run("etcdctl").args(words));
        assert_eq!(asked.status, 0, "{}", asked.err);
        asked.out
    }

    /// The lines of these events, of that host.
    fn lines(&self, host: usize, event: &str) -> Vec<String> {
        let wanted = format!(": {event} ");
        let said = self.hosts[host].err().into_iter();
        said.filter(|line| line.contains(&wanted)).collect()
    }

    fn count(&self, host: usize, event: &str) -> usize {
        self.lines(host, event).len()
    }

    /// Until those hosts have so many reloads behind them, and their turns are over.
    fn reloaded(&self, hosts: &[usize], times: usize) {
        eventually("reloads", || {
            let done = |host: &usize| {
                self.count(*host, "reload-committed") >= times
                    && self.count(*host, "action-ended") >= times
            };
            hosts.iter().all(done).then_some(())
        });
    }

    /// From when to when each host was busy with a reload, in order. The times are of one clock, and are compared as
    /// the text that they are.
    fn turns(&self) -> Vec<(String, String, &'static str)> {
        let mut turns = Vec::new();
        for (at, name) in HOSTS.into_iter().enumerate() {
            let time = |line: &String| line.split(' ').next().unwrap().to_owned();
            let began = self.lines(at, "reload-started");
            let mut ended = self.lines(at, "reload-committed");
            ended.extend(self.lines(at, "reload-failed"));
            ended.sort();
            assert_eq!(began.len(), ended.len(), "{name}:\n{}", self.said());
            let pairs = began.iter().zip(&ended);
            turns.extend(pairs.map(|(began, ended)| (time(began), time(ended), name)));
        }
        turns.sort();
        turns
    }

    fn assert_one_after_another(&self) {
        let turns = self.turns();
        for pair in turns.windows(2) {
            assert!(
                pair[0].1 <= pair[1].0,
                "together: {turns:#?}\n{}",
                self.said()
            );
        }
    }

    fn said(&self) -> String {
        let hosts = self.hosts.iter().zip(HOSTS);
        hosts
            .map(|(host, name)| format!("---- {name}\n{}\n", host.err().join("\n")))
            .collect()
    }

    fn stop(&mut self) {
        for host in &mut self.hosts {
            assert_eq!(host.stop(), 0, "{:?}", host.err());
        }
        assert_eq!(self.nginx.stop(), 0);
    }
}

/// Nothing can tell that a lease is over but time, and etcd ends it late rather than early.
fn longer_than_the_lease(fleet: &Fleet, holders: usize) {
    eventually("the end of the lease", || {
        let keys = fleet.etcdctl(&["get", "--prefix", "--keys-only", "fleet/shop/lock/"]);
        let count = keys.lines().filter(|line| !line.is_empty()).count();
        (count == holders).then_some(())
    });
}

#[test]
fn one_touch_rolls_the_hosts_one_after_another() {
    let mut fleet = Fleet::start();
    let load = fleet.load();
    load.answer(100);
    fleet.touch();
    fleet.reloaded(&[0, 1, 2], 1);
    fleet.assert_one_after_another();
    load.answer(100);

    // One host is cut off from etcd, and serves on: it waits, and the others do not.
    fleet.net.cut(2, ENGINE);
    fleet.touch();
    eventually("its turn is asked for", || {
        (fleet.count(2, "action-started") == 2).then_some(())
    });
    fleet.reloaded(&[0, 1], 2);
    load.answer(100);
    assert_eq!(fleet.count(2, "reload-started"), 1, "{}", fleet.said());
    fleet.net.mend(2, ENGINE);
    fleet.reloaded(&[2], 2);
    load.answer(100);

    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, fleet.said());
    let served: Vec<&str> = tally.served.keys().map(String::as_str).collect();
    assert_eq!(
        served,
        [
            "a.1", "a.2", "a.3", "b.1", "b.2", "b.3", "c.1", "c.2", "c.3"
        ]
    );
    fleet.assert_one_after_another();
    for host in 0..HOSTS.len() {
        assert_eq!(fleet.count(host, "reload-committed"), 2, "{}", fleet.said());
    }
    fleet.stop();
}

#[test]
fn who_lost_its_place_in_the_queue_takes_a_new_one() {
    let mut fleet = Fleet::start();
    // Somebody has the lock until he is told otherwise.
    let mut holder = fleet.net.hub.run("etcdctl").dir(fleet.dir.path());
    for (name, value) in fleet.etcd.env() {
        holder = holder.env(name, value);
    }
    let hold = "while [ ! -e go ]; do sleep 0.05; done";
    let mut holder = holder
        .args(["lock", "--ttl", "60", "fleet/shop/lock", "--"])
        .args(["sh", "-c", hold])
        .start();
    longer_than_the_lease(&fleet, 1);
    fleet.touch();
    // All wait; then one is cut off for longer than its lease. It does not know that, and thinks itself next.
    longer_than_the_lease(&fleet, 4);
    fleet.net.cut(0, ENGINE);
    let since = Instant::now();
    longer_than_the_lease(&fleet, 3);
    assert!(since.elapsed() >= Duration::from_secs(LEASE / 2));
    fleet.net.mend(0, ENGINE);
    touch(fleet.dir.path().join("go"));
    assert_eq!(holder.end(), 0, "{:?}", holder.err());
    fleet.reloaded(&[0, 1, 2], 1);
    fleet.assert_one_after_another();
    fleet.stop();
}

#[test]
fn a_bad_release_stops_at_the_first_host() {
    let mut fleet = Fleet::start();
    let load = fleet.load();
    load.answer(100);
    fleet.release("throw new Error('a bad release');");
    fleet.touch();
    eventually("all have had their turn", || {
        let over = |host| fleet.count(host, "action-ended") == 1;
        (0..HOSTS.len()).all(over).then_some(())
    });
    // The first has tried twice: the second time it found its own stop.
    let tried = |event| (0..HOSTS.len()).map(|host| fleet.count(host, event)).sum();
    let (started, failed, tries): (usize, usize, usize) = (
        tried("reload-started"),
        tried("reload-failed"),
        tried("action-failed"),
    );
    assert_eq!((started, failed, tries), (1, 1, 1), "{}", fleet.said());
    let stop = fleet.etcdctl(&["get", "--print-value-only", "fleet/shop/stop"]);
    assert_eq!(fleet.said().matches("roll: stopped by ").count(), 3);
    assert!(
        fleet.said().contains(&format!("roll: stopped by {stop}")),
        "{stop}"
    );

    fleet.release(APP);
    fleet.etcdctl(&["del", "fleet/shop/stop"]);
    fleet.touch();
    fleet.reloaded(&[0, 1, 2], 1);
    load.answer(100);
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, fleet.said());
    fleet.assert_one_after_another();
    fleet.stop();
}
