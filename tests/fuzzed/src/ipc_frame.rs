//! A worker's channel: whatever it sends, in whatever pieces, is read as messages or ends the channel.

#[path = "../../../bins/spawnwork/src/node/channel.rs"]
mod channel;
#[path = "../../../bins/spawnwork/src/node/message.rs"]
mod message;

/// One input.
pub fn run(bytes: &[u8]) {
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
}
