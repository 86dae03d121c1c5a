//! A server of HTTP that does what no server should: each way in which a reply can go wrong.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it does with a connection, after the request's head has come.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these one by one, with so much time between them.
    Drip(Vec<u8>, Duration),
    /// Sends these again and again, until nobody wants them.
    Endless(Vec<u8>),
    /// Does nothing, until the other side has gone.
    Wait,
    /// Breaks off with RST.
    Reset,
    /// Closes in order.
    Close,
}

/// A reply of these bytes, then an orderly end.
#[must_use]
pub fn says(text: impl AsRef<[u8]>) -> Vec<Step> {
    vec![Step::Send(text.as_ref().to_vec()), Step::Close]
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Hostile {
    /// Its port, on 127.0.0.1.
    pub port: u16,
    served: Arc<AtomicU32>,
    requests: Arc<Mutex<Vec<String>>>,
    _queue: Vec<TcpStream>,
    _listener: Option<TcpListener>,
    _unix: Option<OwnedFd>,
}

impl Hostile {
    /// Does the same with each connection.
    #[must_use]
    pub fn new(steps: Vec<Step>) -> Hostile {
        Hostile::in_turn(vec![steps])
    }

    /// Does the first with the first connection, and so on; the last with all that follow.
    #[must_use]
    pub fn in_turn(all: Vec<Vec<Step>>) -> Hostile {
        Hostile::on("127.0.0.1", all)
    }

    /// The same on another address than 127.0.0.1.
    #[must_use]
    pub fn on(address: &str, all: Vec<Vec<Step>>) -> Hostile {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::new(AtomicU32::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (counter, log) = (served.clone(), requests.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { continue };
                let turn = counter.fetch_add(1, Ordering::SeqCst) as usize;
                let steps = all[turn.min(all.len() - 1)].clone();
                let log = log.clone();
                std::thread::spawn(move || serve(connection, &steps, &log));
            }
        });
        Hostile {
            port,
            served,
            requests,
            _queue: Vec::new(),
            _listener: None,
            _unix: None,
        }
    }

    /// Listens with a backlog that is full, and never accepts.
    #[must_use]
    pub fn full() -> Hostile {
        use nix::sys::socket::{Backlog, listen};
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        // One fits; the kernel drops the next ones' handshakes.
        while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queue.push(one);
        }
        Hostile {
            port: address.port(),
            served: Arc::default(),
            requests: Arc::default(),
            _queue: queue,
            _listener: Some(listener),
            _unix: None,
        }
    }

    /// The same for a unix socket.
    #[must_use]
    pub fn full_unix(path: &Path) -> Hostile {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
        use nix::sys::socket::{bind, connect, listen, socket};
        let make = |flags| socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        let listener = make(SockFlag::SOCK_CLOEXEC);
        let address = UnixAddr::new(path).unwrap();
        bind(listener.as_raw_fd(), &address).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut kept = Vec::new();
        loop {
            let one = make(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
            if connect(one.as_raw_fd(), &address).is_err() {
                break;
            }
            kept.push(one);
        }
        // They are to stay as long as the process of the test does.
        std::mem::forget(kept);
        Hostile {
            port: 0,
            served: Arc::default(),
            requests: Arc::default(),
            _queue: Vec::new(),
            _listener: None,
            _unix: Some(listener),
        }
    }

    /// Connections so far.
    #[must_use]
    pub fn served(&self) -> u32 {
        self.served.load(Ordering::SeqCst)
    }

    /// The heads of the requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// A server on a unix socket that says the same to all.
pub fn on_unix(path: &Path, text: &'static str) {
    let listener = UnixListener::bind(path).unwrap();
    serve_unix(listener, text);
}

/// The same on an abstract name.
pub fn on_abstract(name: &str, text: &'static str) {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    serve_unix(UnixListener::bind_addr(&address).unwrap(), text);
}

fn serve_unix(listener: UnixListener, text: &'static str) {
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                continue;
            };
            std::thread::spawn(move || {
                let mut buffer = [0u8; 4096];
                let _ = connection.read(&mut buffer);
                let _ = connection.write_all(text.as_bytes());
            });
        }
    });
}

fn serve(mut connection: TcpStream, steps: &[Step], log: &Mutex<Vec<String>>) {
    let _ = connection.set_nodelay(true);
    let mut head = Vec::new();
    let mut buffer = [0u8; 4096];
    // Something that is no HTTP (TLS) is answered too, when it has come.
    loop {
        match connection.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => head.extend_from_slice(&buffer[..count]),
        }
        if head.windows(4).any(|four| four == b"\r\n\r\n") || head.first() == Some(&0x16) {
            break;
        }
    }
    log.lock()
        .unwrap()
        .push(String::from_utf8_lossy(&head).into_owned());
    for step in steps {
        let done = match step {
            Step::Send(bytes) => connection.write_all(bytes).is_ok(),
            Step::Drip(bytes, pause) => bytes.iter().all(|byte| {
                std::thread::sleep(*pause);
                connection.write_all(&[*byte]).is_ok()
            }),
            Step::Endless(bytes) => {
                while connection.write_all(bytes).is_ok() {}
                false
            }
            Step::Wait => {
                while connection.read(&mut buffer).is_ok_and(|count| count > 0) {}
                false
            }
            Step::Reset => {
                let linger = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                let set = nix::sys::socket::sockopt::Linger;
                nix::sys::socket::setsockopt(&connection, set, &linger).unwrap();
                return;
            }
            Step::Close => {
                let _ = connection.shutdown(Shutdown::Write);
                while connection.read(&mut buffer).is_ok_and(|count| count > 0) {}
                return;
            }
        };
        if !done {
            return;
        }
    }
}
