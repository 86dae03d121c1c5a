//! A worker's channel: whatever it sends, in whatever pieces, is read as messages or ends the channel.
#![no_main]
#![allow(dead_code, missing_docs)]

#[path = "../../../bins/spawnwork/src/node/channel.rs"]
mod channel;
#[path = "../../../bins/spawnwork/src/node/message.rs"]
mod message;

/// A channel can be handed to a new program in the master's place, which is nothing that a worker sends: as
/// much of it as is needed to build.
mod state {
    use common::error::{Error, Result};
    use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    pub struct Hex(String);

    impl Hex {
        pub fn new(_bytes: &[u8]) -> Hex {
            Hex(String::new())
        }

        pub fn bytes(&self) -> Vec<u8> {
            Vec::new()
        }
    }

    pub struct Open;

    impl Open {
        pub fn keep(&mut self, fd: impl AsFd) -> RawFd {
            fd.as_fd().as_raw_fd()
        }
    }

    pub struct Taken;

    impl Taken {
        pub fn own(&mut self, _number: RawFd) -> Result<OwnedFd> {
            Err(Error::new("take the state over", "nothing was saved"))
        }

        pub fn shared(&mut self, number: RawFd) -> Result<std::rc::Rc<OwnedFd>> {
            self.own(number).map(std::rc::Rc::new)
        }
    }
}

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|byte| *byte == b'\n') {
        let _ = message::parse(line);
    }
    let Ok((mut ours, theirs)) = channel::pair() else {
        return;
    };
    let mut messages = Vec::new();
    for piece in bytes.chunks(4096) {
        let _ = nix::unistd::write(&theirs, piece);
        if ours.receive(&mut messages).is_err() {
            return;
        }
    }
});
