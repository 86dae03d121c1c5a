//! A control socket: whatever a client sends, in whatever pieces, is one line of text or is refused; and what
//! a server answers is read.

use common::control::{LONGEST, Reply, Server};
use common::wait::{Loop, Wake};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// One input.
pub fn run(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Some(Reply::Ok(said)) = Reply::parse(text) {
            assert!(said.len() <= text.len());
        }
    }
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let path = std::env::temp_dir().join(format!("fuzz-control-{}", std::process::id()));
    let events = Loop::new().unwrap();
    let mut server = Server::open(&path, |id| id).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let now = Instant::now();
    server.accept(&events, u64::MAX, now);
    let Some(id) = (0..64).find(|id| server.has(*id)) else {
        return;
    };
    let (mut heard, mut said) = (None, 0);
    for part in bytes.chunks(usize::from(*step).max(1)) {
        if client.write_all(part).is_err() {
            break;
        }
        said += part.len();
        heard = server.hear(&events, id, readable(), now);
        if heard.is_some() || !server.has(id) {
            break;
        }
    }
    if heard.is_none() && server.has(id) {
        let _ = client.shutdown(std::net::Shutdown::Write);
        heard = server.hear(&events, id, readable(), now);
    }
    if let Some(line) = heard {
        assert!(line.len() <= LONGEST && !line.chars().any(char::is_control));
        assert!(line.len() <= said);
        server.end(&events, id, &Reply::Ok(line.clone()), now);
        server.finish(&events, Duration::from_secs(1));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(
            Reply::parse(answer.trim_end_matches('\n')),
            Some(Reply::Ok(line))
        );
    }
    server.unlink();
}

fn readable() -> Wake {
    Wake {
        token: 0,
        readable: true,
        writable: false,
    }
}
