//! What a worker says on NOTIFY_SOCKET: any datagram is one message of the one who sent it.

#[path = "../../../bins/spawnwork/src/notify.rs"]
mod notify;

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// One input.
pub fn run(bytes: &[u8]) {
    let (events, now) = (
        common::wait::Loop::new().unwrap(),
        std::time::Instant::now(),
    );
    let mut socket = notify::Notify::open().unwrap();
    let address = SocketAddr::from_abstract_name(socket.name()).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.send_to_addr(bytes, &address).unwrap();
    let said = socket.next(&events, now).unwrap();
    assert_eq!(said.pid, std::process::id() as i32);
    let holds = |wanted: &[u8]| {
        bytes
            .split(|byte| *byte == b'\n')
            .any(|line| line == wanted)
    };
    // More than a page is no message of anybody's.
    if bytes.len() <= 4096 {
        assert_eq!(said.ready, holds(b"READY=1"));
        assert_eq!(
            said.alive == Some(notify::Alive::No),
            holds(b"WATCHDOG=trigger")
        );
    }
    assert_eq!(socket.next(&events, now), None);
}
