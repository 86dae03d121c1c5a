//! A server for machines without node: answers on the first socket of LISTEN_FDS, and ends on TERM when
//! the requests that it has begun are answered. It logs a numbered line before each answer, and spins when asked to.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr
)]

use common::fds::{ListenPid, inherited};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Lines so far.
static LINES: Mutex<u64> = Mutex::new(0);
/// For ever, from now on.
static SPINS: AtomicBool = AtomicBool::new(false);

fn main() {
    // Before any thread: all of them are to inherit the mask, so that the one below gets the signal.
    let mut term = nix::sys::signal::SigSet::empty();
    term.add(nix::sys::signal::Signal::SIGTERM);
    term.thread_block().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let open = Arc::new(AtomicUsize::new(0));
    {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            term.wait().unwrap();
            over.store(true, Ordering::SeqCst);
        });
    }
    let socket = inherited(ListenPid::Checked)
        .unwrap()
        .into_iter()
        .next()
        .expect("a socket in LISTEN_FDS: start it with spawnwork --listen");
    let listener = TcpListener::from(socket.fd);
    listener.set_nonblocking(true).unwrap();
    while !over.load(Ordering::SeqCst) {
        while SPINS.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        match listener.accept() {
            Ok((connection, _)) => {
                open.fetch_add(1, Ordering::SeqCst);
                let (over, open) = (Arc::clone(&over), Arc::clone(&open));
                std::thread::spawn(move || {
                    let _ = serve(connection, &over);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    while open.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn serve(connection: TcpStream, over: &AtomicBool) -> std::io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_nodelay(true)?;
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    loop {
        let mut request = String::new();
        let mut close = false;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            close |= line.eq_ignore_ascii_case("connection: close\r\n");
            if request.is_empty() {
                request = line;
            }
        }
        if request.starts_with("GET /slow ") {
            std::thread::sleep(Duration::from_millis(300));
        }
        close |= over.load(Ordering::SeqCst);
        let body = if request.starts_with("GET /health ") {
            "well\n".to_owned()
        } else {
            // Whole lines in their order: one at a time.
            let mut count = LINES.lock().unwrap();
            *count += 1;
            let line = format!("line {} {count}\n", std::process::id());
            std::io::stdout().write_all(line.as_bytes())?;
            format!("hello {}\n", std::process::id())
        };
        let kept = if close { "close" } else { "keep-alive" };
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {kept}\r\n\r\n{body}",
            body.len()
        )?;
        SPINS.fetch_or(request.starts_with("GET /spin "), Ordering::SeqCst);
        if close {
            return Ok(());
        }
    }
}
