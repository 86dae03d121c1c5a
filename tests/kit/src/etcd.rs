//! A real etcd, of one member.

use crate::{Dir, Finished, Run, Running, eventually, free_port};
use nix::sys::signal::Signal;

/// It runs, and has nothing to remember: killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    server: Running,
    /// For its clients.
    pub endpoint: String,
}

impl Etcd {
    /// On this machine.
    #[must_use]
    pub fn start(dir: &Dir) -> Etcd {
        Etcd::start_at(dir, "127.0.0.1", |program| Run::new(program))
    }

    /// At that address; `run` starts programs on its host.
    #[must_use]
    pub fn start_at(dir: &Dir, address: &str, run: impl Fn(&str) -> Run) -> Etcd {
        let (client, peer) = (free_port(), free_port());
        let endpoint = format!("http://{address}:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let server = run("etcd")
            .args(["--data-dir", "etcd", "--listen-client-urls", &endpoint])
            .args(["--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .dir(dir.path())
            .start();
        let etcd = Etcd { server, endpoint };
        eventually("etcd", || {
            let health = etcd.ask(run("etcdctl").args(["endpoint", "health"]));
            (health.status == 0).then_some(())
        });
        etcd
    }

    /// Its client, told where it is.
    #[must_use]
    pub fn ask(&self, etcdctl: Run) -> Finished {
        let mut run = etcdctl;
        for (name, value) in self.env() {
            run = run.env(name, value);
        }
        run.finish()
    }

    /// The variables that tell its client where it is.
    #[must_use]
    pub fn env(&self) -> [(&'static str, &str); 2] {
        [("ETCDCTL_API", "3"), ("ETCDCTL_ENDPOINTS", &self.endpoint)]
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.server.signal(Signal::SIGKILL);
    }
}
