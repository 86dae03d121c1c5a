//! The inspector's port may be anybody's: whatever answers there, in HTTP and WebSocket, is read or refused, in time.

#[path = "../../../bins/replsock/src/inspector.rs"]
mod inspector;

use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

const LIST: &[u8] =
    b"HTTP/1.0 200 OK\r\n\r\n[{\"webSocketDebuggerUrl\":\"ws://127.0.0.1:9229/a\"}]";
const UPGRADE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

/// One input.
pub fn run(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Three stages, of which the first ones may be as they should, so that the last is come to.
    let (list, socket) = match how % 3 {
        0 => (bytes.to_vec(), Vec::new()),
        1 => (LIST.to_vec(), bytes.to_vec()),
        _ => (LIST.to_vec(), [UPGRADE, bytes].concat()),
    };
    let server = std::thread::spawn(move || {
        for said in [list, socket] {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let _ = stream.write_all(&said);
            let _ = stream.shutdown(Shutdown::Write);
            // Unread requests would make a reset of the close.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
            let mut buffer = [0u8; 4096];
            while std::io::Read::read(&mut stream, &mut buffer).is_ok_and(|count| count > 0) {}
        }
    });
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(5);
    if let Ok(mut session) = inspector::Inspector::open(address, deadline) {
        let _ = session.call("Runtime.enable", &serde_json::json!({}), deadline);
        let _ = session.event("Runtime.x", deadline);
        while let Ok(Some(_)) = session.receive(deadline) {}
    }
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "it waits though all was said"
    );
    // So that the server's thread ends, however many connections there were.
    for _ in 0..2 {
        let _ = std::net::TcpStream::connect(address);
    }
    let _ = server.join();
}
