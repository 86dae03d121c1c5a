//! Who did what: one line for each connection, evaluation, profile. Made here, written by whoever has a log.

use common::error::{Doing, Result};
use common::event::{Format, Level, Log, Value};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

/// `--audit-expr`: what of an expression is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Expressions {
    /// Nothing.
    None,
    /// Length and SHA-256.
    Hash,
    /// Besides, the first 200 bytes.
    Full,
}

/// Who came, as far as /proc tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Who logged in, before any sudo; `None`: nobody (a daemon), or unknown.
    pub login: Option<u32>,
}

impl Who {
    /// The one with this pid and uid.
    #[must_use]
    pub fn of(pid: i32, uid: u32) -> Who {
        let login = std::fs::read_to_string(format!("/proc/{pid}/loginuid"))
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
            // (uid_t) -1: never logged in (proc_pid_loginuid in Linux' Documentation/ABI).
            .filter(|uid| *uid != u32::MAX);
        Who { pid, uid, login }
    }

    /// The fields of a line: `uid`, `user`, `login`, `peer`.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, Value)> {
        let mut fields = vec![
            ("uid", self.uid.into()),
            ("user", crate::door::user_name(self.uid).into()),
        ];
        if let Some(login) = self.login {
            fields.push(("login", crate::door::user_name(login).into()));
        }
        fields.push(("peer", self.pid.into()));
        fields
    }
}

/// Where the client's own lines go: a file that was named, or syslog.
#[derive(Debug)]
pub struct Trail {
    log: Log,
    way: Way,
    how: Expressions,
    target: String,
    who: Who,
}

#[derive(Debug)]
enum Way {
    File(File),
    Syslog(UnixDatagram),
    /// No syslog here.
    None,
}

impl Trail {
    /// For what is done to `target`.
    ///
    /// # Errors
    /// The file that was named cannot be appended to.
    pub fn open(file: Option<&Path>, how: Expressions, target: &str) -> Result<Trail> {
        let way = match file {
            Some(path) => Way::File(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(path)
                    .doing(&format!("write the audit lines to {}", path.display()))?,
            ),
            None => syslog().map_or(Way::None, Way::Syslog),
        };
        Ok(Trail {
            log: Log::new("replsock", Some(Format::Text), Level::Info),
            way,
            how,
            target: target.to_owned(),
            who: Who::of(std::process::id() as i32, nix::unistd::getuid().as_raw()),
        })
    }

    /// One line.
    pub fn say(&mut self, event: &str, more: &[(&str, Value)]) {
        let mut fields: Vec<(&str, Value)> = vec![("target", self.target.as_str().into())];
        fields.extend(self.who.fields());
        fields.extend_from_slice(more);
        let Some(line) = self.log.line(Level::Info, event, &fields) else {
            return;
        };
        // An audit that cannot be written must not keep the operator from his work: he is his own witness.
        let _ = match &mut self.way {
            Way::File(file) => file.write_all(&line),
            Way::Syslog(socket) => {
                let text = String::from_utf8_lossy(&line);
                let (_, said) = text.split_once("]: ").unwrap_or(("", &text));
                // authpriv.notice (syslog(3), RFC 3164).
                let packet = format!("<85>replsock[{}]: {}", std::process::id(), said.trim_end());
                socket.send(packet.as_bytes()).map(|_| ())
            }
            Way::None => Ok(()),
        };
    }

    /// An evaluation.
    pub fn evaluated(&mut self, text: &str, ok: bool, took: Duration) {
        let mut fields = vec![("ok", yes(ok)), ("took", took.into())];
        if self.how == Expressions::Full {
            fields.push(("expression", shown(text).into()));
        }
        if self.how != Expressions::None {
            fields.push(("bytes", text.len().into()));
            fields.push(("sha256", hex(&sha256(text.as_bytes())).into()));
        }
        self.say(crate::events::EVALUATED, &fields);
    }

    /// A profile, a snapshot, a stack.
    pub fn inspected(&mut self, what: &str, ok: bool, took: Duration) {
        let fields = vec![
            ("what", what.into()),
            ("ok", yes(ok)),
            ("took", took.into()),
        ];
        self.say(crate::events::INSPECTED, &fields);
    }

    /// The port was opened.
    pub fn injected(&mut self, pid: i32, ok: bool, took: Duration) {
        let fields = vec![("pid", pid.into()), ("ok", yes(ok)), ("took", took.into())];
        self.say(crate::events::INJECTED, &fields);
    }
}

fn yes(ok: bool) -> Value {
    if ok { "yes" } else { "no" }.into()
}

/// The first [`SHOWN`] bytes, or a few less.
fn shown(text: &str) -> &str {
    let mut end = text.len().min(SHOWN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn syslog() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect("/dev/log").ok()?;
    // A logger that does not read keeps nobody waiting.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// So much of an expression stands in a line.
const SHOWN: usize = 200;

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
const ROUNDS: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

/// FIPS 180-4. Forty lines, where a crate would be five more: it protects nothing here, it names.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut state: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let mut message = bytes.to_vec();
    message.push(0x80);
    message.resize(message.len().next_multiple_of(64), 0);
    if message.len() - bytes.len() < 9 {
        message.resize(message.len() + 64, 0);
    }
    let end = message.len();
    message[end - 8..].copy_from_slice(&((bytes.len() as u64) * 8).to_be_bytes());
    for block in message.chunks_exact(64) {
        let mut words = [0u32; 64];
        for (word, part) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([part[0], part[1], part[2], part[3]]);
        }
        for at in 16..64 {
            let (a, b) = (words[at - 15], words[at - 2]);
            let low = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let high = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            words[at] = words[at - 16]
                .wrapping_add(low)
                .wrapping_add(words[at - 7])
                .wrapping_add(high);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
        for (word, round) in words.iter().zip(ROUNDS) {
            let high = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let choice = (e & f) ^ (!e & g);
            let one = h
                .wrapping_add(high)
                .wrapping_add(choice)
                .wrapping_add(round)
                .wrapping_add(*word);
            let low = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let two = low.wrapping_add((a & b) ^ (a & c) ^ (b & c));
            (h, g, f, e, d, c, b, a) =
                (g, f, e, d.wrapping_add(one), c, b, a, one.wrapping_add(two));
        }
        for (sum, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *sum = sum.wrapping_add(new);
        }
    }
    let mut out = [0u8; 32];
    for (part, word) in out.chunks_exact_mut(4).zip(state) {
        part.copy_from_slice(&word.to_be_bytes());
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    /// FIPS 180-4's own examples, and lengths round the edge of a block.
    #[test]
    fn sha256_of_the_standard() {
        for (text, digest) in [
            (
                "",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                "abc",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ] {
            assert_eq!(hex(&sha256(text.as_bytes())), digest, "{text}");
        }
        assert_eq!(
            hex(&sha256(&[b'a'; 1_000_000])),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
    }

    #[test]
    fn what_of_an_expression_is_written_down() {
        assert_eq!(shown(&"é".repeat(300)), "é".repeat(100));
        assert_eq!(shown(&format!("x{}", "é".repeat(300))).len(), 199);
        assert_eq!(shown("short"), "short");
    }
}
