//! The binary frames on a socket: one byte NUL, then frames of a type (u8), a length (u24, little endian)
//! and that many bytes. Pure: bytes in, frames out. replsock-protocol(7) is its description.

use serde::{Deserialize, Serialize};

/// The first byte of a client that speaks frames. The server sends none.
pub const PREFACE: u8 = 0;

/// What three bytes can count.
pub const LONGEST: usize = (1 << 24) - 1;

/// The length of type and length.
pub const HEAD: usize = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The first of each side: a [`Hello`].
    Hello = 1,
    /// Input, output; of an agent: JSON lines, a line may come in several.
    Data = 2,
    /// The sender's data are at their end.
    Eof = 3,
    /// The terminal's size: columns, rows (u16 each, little endian).
    Winch = 4,
    /// A signal for the command: its number (u8).
    Signal = 5,
    /// What the command wrote to its standard error.
    Stderr = 6,
    /// How the command ended: 0 and its status, or 1 and the signal (u8 each).
    Exit = 7,
    /// Why the server does not, or no more: an exit status (u8) and a line of text.
    Error = 8,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        [
            Kind::Hello,
            Kind::Data,
            Kind::Eof,
            Kind::Winch,
            Kind::Signal,
            Kind::Stderr,
            Kind::Exit,
            Kind::Error,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// Not of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// No such type.
    Type(u8),
    /// Longer than this side takes.
    Long(usize),
}

impl std::fmt::Display for Bad {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Type(byte) => write!(formatter, "a frame of the unknown type {byte}"),
            Bad::Long(length) => write!(formatter, "a frame of {length} bytes, which is too long"),
        }
    }
}

/// Appends `body` as frames of `kind`: several where one cannot hold it, one where it is empty.
pub fn put(out: &mut Vec<u8>, kind: Kind, body: &[u8]) {
    let mut rest = body;
    loop {
        let (part, behind) = rest.split_at(rest.len().min(LONGEST));
        out.push(kind as u8);
        out.extend_from_slice(&(part.len() as u32).to_le_bytes()[..3]);
        out.extend_from_slice(part);
        rest = behind;
        if rest.is_empty() {
            return;
        }
    }
}

/// The same in a buffer of its own.
#[cfg(test)]
pub fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + HEAD);
    put(&mut out, kind, body);
    out
}

/// The body of [`Kind::Winch`].
#[must_use]
pub fn size_body(columns: u16, rows: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
    [a, b, c, d]
}

/// Columns and rows of the body of [`Kind::Winch`].
#[must_use]
pub fn size_of_body(body: &[u8]) -> Option<(u16, u16)> {
    match body {
        [a, b, c, d] => Some((u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]))),
        _ => None,
    }
}

/// Takes bytes as they come, gives frames. After [`Bad`] there is no way on: the connection is dropped.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    at: usize,
    limit: usize,
}

impl Decoder {
    /// For frames of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Decoder {
        Decoder {
            bytes: Vec::new(),
            at: 0,
            limit,
        }
    }

    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The bytes that were not taken, for whoever goes on in another way.
    #[must_use]
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.at);
        self.bytes
    }

    /// Bytes that are no whole frame yet.
    #[cfg(test)]
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// An unknown type, or too long: said as soon as the head is there.
    pub fn take(&mut self) -> Result<Option<Frame>, Bad> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let [kind, a, b, c, body @ ..] = rest else {
            // The type alone is enough to refuse.
            return match rest.first() {
                Some(kind) if Kind::of(*kind).is_none() => Err(Bad::Type(*kind)),
                _ => Ok(None),
            };
        };
        let length = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
        let kind = Kind::of(*kind).ok_or(Bad::Type(*kind))?;
        if length > self.limit {
            return Err(Bad::Long(length));
        }
        let Some(body) = body.get(..length) else {
            return Ok(None);
        };
        let frame = Frame {
            kind,
            body: body.to_vec(),
        };
        self.at += HEAD + length;
        Ok(Some(frame))
    }
}

/// A piece of what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of DATA: as many as are there, of one frame.
    Data(&'a [u8]),
    /// Bytes of STDERR, likewise.
    Stderr(&'a [u8]),
    /// Any other frame, whole.
    Whole(Kind, &'a [u8]),
}

/// As [`Decoder`], but DATA and STDERR are handed on as they come, without a copy and however long their
/// frames are: what it keeps is one short frame.
#[derive(Debug, Default)]
pub struct Stream {
    /// The head, as far as it is there.
    head: [u8; HEAD],
    have: usize,
    /// Of the current frame, once its head is whole.
    left: usize,
    /// Of a frame that has to be whole.
    body: Vec<u8>,
    /// The body was handed out, and is over.
    spent: bool,
}

/// The longest frame that is neither DATA nor STDERR: a HELLO with a long token, a message.
pub const LONGEST_SHORT: usize = 8192;

impl Stream {
    /// The next piece of `bytes`, which are shortened by it; `None`: they are used up.
    ///
    /// # Errors
    /// [`Bad`], as soon as it is seen.
    pub fn take<'s, 'b: 's>(&'s mut self, bytes: &mut &'b [u8]) -> Result<Option<Piece<'s>>, Bad> {
        if self.spent {
            self.spent = false;
            // Nobody says hello twice: what it took is given back.
            self.body = Vec::new();
        }
        loop {
            while self.have < HEAD {
                let Some((first, rest)) = bytes.split_first() else {
                    return Ok(None);
                };
                *bytes = rest;
                self.head[self.have] = *first;
                self.have += 1;
                if self.have == 1 && Kind::of(*first).is_none() {
                    return Err(Bad::Type(*first));
                }
                if self.have == HEAD {
                    let [_, a, b, c] = self.head;
                    self.left = u32::from_le_bytes([a, b, c, 0]) as usize;
                }
            }
            let kind = Kind::of(self.head[0]).ok_or(Bad::Type(self.head[0]))?;
            let flows = matches!(kind, Kind::Data | Kind::Stderr);
            if !flows && self.left + self.body.len() > LONGEST_SHORT {
                return Err(Bad::Long(self.left));
            }
            let (part, rest) = bytes.split_at(self.left.min(bytes.len()));
            *bytes = rest;
            self.left -= part.len();
            if self.left == 0 {
                self.have = 0;
            }
            match kind {
                // An empty frame says nothing.
                Kind::Data | Kind::Stderr if part.is_empty() => {
                    if self.left > 0 {
                        return Ok(None);
                    }
                }
                Kind::Data => return Ok(Some(Piece::Data(part))),
                Kind::Stderr => return Ok(Some(Piece::Stderr(part))),
                kind => {
                    if self.left == 0 && self.body.is_empty() {
                        return Ok(Some(Piece::Whole(kind, part)));
                    }
                    self.body.extend_from_slice(part);
                    if self.left > 0 {
                        return Ok(None);
                    }
                    self.spent = true;
                    return Ok(Some(Piece::Whole(kind, &self.body)));
                }
            }
        }
    }
}

/// The head of a frame of `length` bytes, at most [`LONGEST`].
#[must_use]
pub fn head(kind: Kind, length: usize) -> [u8; HEAD] {
    let [a, b, c, _] = (length as u32).to_le_bytes();
    [kind as u8, a, b, c]
}

/// The body of HELLO, in JSON. What is not known is passed over, so that either side may be older.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// The version of the protocol: 1.
    pub version: u32,
    /// Of a client: `pty`, `pipe` or `json` (operations of an agent). Of a server: `agent` or `serve`.
    pub mode: String,
    /// The client's terminal: columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// Its `TERM`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub term: String,
    /// The client only looks.
    pub read_only: bool,
    /// What proves a client over TCP.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// Of a server: the app.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app: String,
    /// Of a server: its process, as it sees itself.
    pub pid: i32,
    /// Of a server: its command is there for all clients, and outlives them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Of a server: its command has a terminal, which the client is to be one of.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

impl Hello {
    /// As the body of a frame.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        // A structure of numbers and strings can always be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Out of the body of a frame.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Hello> {
        serde_json::from_slice(body).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_those_of_the_page() {
        assert_eq!(frame(Kind::Data, b"1+1"), b"\x02\x03\0\x001+1");
        assert_eq!(frame(Kind::Eof, b""), b"\x03\0\0\0");
        assert_eq!(size_of_body(&size_body(80, 24)), Some((80, 24)));
        assert_eq!(size_of_body(b"123"), None);
    }

    #[test]
    fn what_one_frame_cannot_hold_comes_in_two() {
        let long = vec![7u8; LONGEST + 2];
        let mut decoder = Decoder::new(LONGEST);
        decoder.push(&frame(Kind::Data, &long));
        assert_eq!(decoder.take().unwrap().unwrap().body.len(), LONGEST);
        assert_eq!(decoder.take().unwrap().unwrap().body, [7, 7]);
        assert_eq!(decoder.take(), Ok(None));
    }

    #[test]
    fn what_is_none_is_refused_at_its_first_bytes() {
        let mut decoder = Decoder::new(100);
        decoder.push(b"\x63");
        assert_eq!(decoder.take(), Err(Bad::Type(0x63)));
        let mut decoder = Decoder::new(100);
        decoder.push(b"\x02\x65\0\0");
        assert_eq!(decoder.take(), Err(Bad::Long(101)));
    }

    #[test]
    fn hello_of_another_version() {
        let hello = Hello::read(br#"{"version":9,"mode":"pty","what":[1]}"#).unwrap();
        assert_eq!((hello.version, hello.mode.as_str()), (9, "pty"));
        assert_eq!(Hello::read(&hello.body()), Some(hello));
        assert_eq!(Hello::read(b"{"), None);
    }

    fn kind() -> impl Strategy<Value = Kind> {
        (1u8..=8).prop_map(|byte| Kind::of(byte).unwrap())
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_same_frames_come_out(
            frames in prop::collection::vec((kind(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            step in 1usize..64,
        ) {
            let mut bytes = Vec::new();
            for (kind, body) in &frames {
                put(&mut bytes, *kind, body);
            }
            let mut decoder = Decoder::new(300);
            let mut out = Vec::new();
            for part in bytes.chunks(step) {
                decoder.push(part);
                while let Some(frame) = decoder.take().unwrap() {
                    out.push((frame.kind, frame.body));
                }
            }
            prop_assert_eq!(out, frames);
            prop_assert_eq!(decoder.pending(), 0);
        }

        #[test]
        fn a_stream_gives_the_same_bytes(
            frames in prop::collection::vec((kind(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            step in 1usize..400,
        ) {
            let mut bytes = Vec::new();
            let mut wanted: Vec<(u8, Vec<u8>)> = Vec::new();
            let note = |kind: Kind, body: &[u8], list: &mut Vec<(u8, Vec<u8>)>| {
                let flows = matches!(kind, Kind::Data | Kind::Stderr);
                match list.last_mut() {
                    Some((last, all)) if flows && *last == kind as u8 => all.extend_from_slice(body),
                    _ if flows && body.is_empty() => {}
                    _ => list.push((kind as u8, body.to_vec())),
                }
            };
            for (kind, body) in &frames {
                put(&mut bytes, *kind, body);
                note(*kind, body, &mut wanted);
            }
            let mut stream = Stream::default();
            let mut out = Vec::new();
            for mut part in bytes.chunks(step) {
                while let Some(piece) = stream.take(&mut part).unwrap() {
                    match piece {
                        Piece::Data(body) => note(Kind::Data, body, &mut out),
                        Piece::Stderr(body) => note(Kind::Stderr, body, &mut out),
                        Piece::Whole(kind, body) => note(kind, body, &mut out),
                    }
                }
            }
            prop_assert_eq!(out, wanted);
        }

        #[test]
        fn any_bytes_are_streamed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), step in 1usize..99) {
            let mut stream = Stream::default();
            'all: for mut part in bytes.chunks(step) {
                loop {
                    match stream.take(&mut part) {
                        Ok(Some(Piece::Whole(_, body))) => prop_assert!(body.len() <= LONGEST_SHORT),
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::new(1000);
            decoder.push(&bytes);
            let mut count = 0;
            while let Ok(Some(frame)) = decoder.take() {
                prop_assert!(frame.body.len() <= 1000);
                count += 1;
                prop_assert!(count <= bytes.len());
            }
            let _ = Hello::read(&bytes);
        }
    }
}
