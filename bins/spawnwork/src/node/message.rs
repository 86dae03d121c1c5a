//! The messages: JSON lines in, typed; JSON lines out.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// What a worker says to its primary.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// The cluster module is loaded.
    Online,
    /// The app calls listen() or bind(): it wants a socket.
    Query(Query),
    /// It listens, with this key's socket; the port is the real one.
    Listening,
    /// The app closed this socket.
    Close(String),
    /// The app leaves of its own will, and waits for an answer.
    Leaving(u64),
    /// The answer to a connection handed over: (our seq, accepted).
    Accepted(u64, bool),
    /// A descriptor arrived.
    HandleAck,
    /// A descriptor did not arrive: the worker has no free one (EMFILE).
    HandleNack,
    /// The app sent a handle to us: to be acknowledged and closed.
    ForeignHandle,
    /// The app's own message, or an internal one that we do not know: no concern of ours.
    Other,
}

/// `queryServer`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// To be repeated in the answer.
    pub seq: u64,
    /// What is wanted.
    pub wanted: Wanted,
    /// Tells listens on port 0 apart.
    pub index: i64,
    /// Opaque data that all workers share: the first one's wins (TLS ticket keys: never log it).
    pub data: String,
    /// Rights of a unix socket beyond the owner's.
    pub readable_all: bool,
    /// The same for writing.
    pub writable_all: bool,
}

/// The socket that a worker wants, which is also what makes two queries mean the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Wanted {
    /// A TCP port on an address (`None`: all).
    Tcp {
        host: Option<String>,
        port: u16,
        v6only: bool,
    },
    /// A unix socket.
    Unix(String),
    /// An open descriptor, as numbered in the worker's LISTEN_FDS.
    Fd(i32),
    /// A UDP port.
    Udp {
        host: Option<String>,
        port: u16,
        v6: bool,
        v6only: bool,
        reuse: bool,
    },
}

/// Not a message of Node's: the channel cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbage;

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    cmd: Cow<'a, str>,
    #[serde(borrow, default)]
    act: Option<Cow<'a, str>>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    ack: Option<u64>,
    #[serde(default)]
    accepted: bool,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow, default)]
    address: Option<Cow<'a, str>>,
    #[serde(default)]
    port: Option<i64>,
    #[serde(borrow, default)]
    address_type: Option<&'a RawValue>,
    #[serde(default)]
    fd: Option<i64>,
    #[serde(default)]
    flags: Option<i64>,
    #[serde(default)]
    index: i64,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    readable_all: Option<bool>,
    #[serde(default)]
    writable_all: Option<bool>,
}

/// Reads one line (without its newline).
///
/// # Errors
/// It is no JSON text in UTF-8.
pub fn parse(line: &[u8]) -> Result<Message, Garbage> {
    // bun puts a \x02 before internal messages.
    let line = line.strip_prefix(b"\x02").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| Garbage)?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|_| Garbage)?;
    if !text.starts_with('{') || !text.contains("\"NODE_") {
        return Ok(Message::Other);
    }
    // Valid JSON that is not of this shape is a message of the app's.
    let Ok(head) = serde_json::from_str::<Head>(text) else {
        return Ok(Message::Other);
    };
    Ok(match head.cmd.as_ref() {
        "NODE_HANDLE_ACK" => Message::HandleAck,
        "NODE_HANDLE_NACK" => Message::HandleNack,
        "NODE_HANDLE" => Message::ForeignHandle,
        "NODE_CLUSTER" => cluster(&head, text),
        _ => Message::Other,
    })
}

fn cluster(head: &Head, text: &str) -> Message {
    if let Some(ack) = head.ack {
        return Message::Accepted(ack, head.accepted);
    }
    match head.act.as_deref() {
        Some("online") => Message::Online,
        Some("listening") => Message::Listening,
        Some("close") => head
            .key
            .as_ref()
            .map_or(Message::Other, |key| Message::Close(key.to_string())),
        Some("exitedAfterDisconnect") => Message::Leaving(head.seq),
        Some("queryServer") => query(head.seq, text).map_or(Message::Other, Message::Query),
        _ => Message::Other,
    }
}

fn query(seq: u64, text: &str) -> Option<Query> {
    let body = serde_json::from_str::<Body>(text).ok()?;
    let flags = body.flags.unwrap_or(0);
    // UV_TCP_IPV6ONLY and UV_UDP_IPV6ONLY are 1, UV_UDP_REUSEADDR is 4 (deps/uv/include/uv.h).
    let v6only = flags & 1 != 0;
    let host = body
        .address
        .as_deref()
        .filter(|host| !host.is_empty())
        .map(str::to_owned);
    let port = || u16::try_from(body.port.unwrap_or(0)).ok();
    let wanted = match body.address_type.map(RawValue::get) {
        Some("\"udp4\"") => Wanted::Udp {
            host,
            port: port()?,
            v6: false,
            v6only: false,
            reuse: flags & 4 != 0,
        },
        Some("\"udp6\"") => Wanted::Udp {
            host,
            port: port()?,
            v6: true,
            v6only,
            reuse: flags & 4 != 0,
        },
        Some("-1") => Wanted::Unix(host?),
        Some("4" | "6") => Wanted::Tcp {
            host,
            port: port()?,
            v6only,
        },
        None | Some("null") => Wanted::Fd(i32::try_from(body.fd?).ok()?),
        Some(_) => return None,
    };
    Some(Query {
        seq,
        wanted,
        index: body.index,
        data: body.data.map_or("null", RawValue::get).to_owned(),
        readable_all: body.readable_all.unwrap_or(false),
        writable_all: body.writable_all.unwrap_or(false),
    })
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The kind of a descriptor in NODE_HANDLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleType {
    /// TCP and unix, listening or connected.
    Net,
    /// UDP.
    Datagram,
}

/// A cluster message that travels with a descriptor.
#[must_use]
pub fn with_handle(kind: HandleType, message: &str) -> String {
    let kind = match kind {
        HandleType::Net => "net.Native",
        HandleType::Datagram => "dgram.Native",
    };
    format!("{{\"cmd\":\"NODE_HANDLE\",\"type\":\"{kind}\",\"msg\":{message}}}\n")
}

/// The answer to a query that has a shared socket with it; for [`with_handle`].
#[must_use]
pub fn shared(seq: u64, ack: u64, key: &str, data: &str) -> String {
    let key = quoted(key);
    format!(
        "{{\"cmd\":\"NODE_CLUSTER\",\"errno\":0,\"key\":{key},\"ack\":{ack},\"data\":{data},\"seq\":{seq}}}"
    )
}

/// The answer to a query whose connections the master will hand over.
#[must_use]
pub fn round_robin(
    seq: u64,
    ack: u64,
    key: &str,
    data: &str,
    name: Option<std::net::SocketAddr>,
) -> String {
    let key = quoted(key);
    let name = name.map_or(String::new(), |name| {
        let family = if name.is_ipv4() { "IPv4" } else { "IPv6" };
        let (address, port) = (name.ip(), name.port());
        format!(
            ",\"sockname\":{{\"address\":\"{address}\",\"family\":\"{family}\",\"port\":{port}}}"
        )
    });
    format!(
        "{{\"cmd\":\"NODE_CLUSTER\",\"errno\":null,\"key\":{key},\"ack\":{ack},\"data\":{data}{name},\"seq\":{seq}}}\n"
    )
}

/// The answer to a query that cannot be met; the app sees it as the error of its listen().
#[must_use]
pub fn refused(seq: u64, ack: u64, key: &str, data: &str, errno: i32) -> String {
    let key = quoted(key);
    format!(
        "{{\"cmd\":\"NODE_CLUSTER\",\"errno\":-{errno},\"key\":{key},\"ack\":{ack},\"data\":{data},\"seq\":{seq}}}\n"
    )
}

/// A connection for the worker; for [`with_handle`].
#[must_use]
pub fn connection(seq: u64, key: &str) -> String {
    let key = quoted(key);
    format!("{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":{key},\"seq\":{seq}}}")
}

/// Asks the worker to close its servers and leave when their last connection has ended.
#[must_use]
pub fn disconnect(seq: u64) -> String {
    format!("{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"disconnect\",\"seq\":{seq}}}\n")
}

/// Lets a worker that was held back accept connections: a message to our preload alone. Node makes an
/// `internalMessage` of every `cmd` that begins with NODE_, and its cluster module passes over this one.
#[must_use]
pub fn accept_now(backlog: i32) -> String {
    format!("{{\"cmd\":\"NODE_SPAWNWORK_ACCEPT\",\"backlog\":{backlog}}}\n")
}

/// A bare answer.
#[must_use]
pub fn acknowledge(seq: u64, ack: u64) -> String {
    format!("{{\"cmd\":\"NODE_CLUSTER\",\"ack\":{ack},\"seq\":{seq}}}\n")
}

/// The answer to a handle of the app's.
#[must_use]
pub fn handle_ack() -> String {
    "{\"cmd\":\"NODE_HANDLE_ACK\"}\n".to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(text: &str) -> Wanted {
        match parse(text.as_bytes()) {
            Ok(Message::Query(query)) => query.wanted,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_node_asks_for() {
        let tcp = |host: Option<&str>, port, v6only| Wanted::Tcp {
            host: host.map(str::to_owned),
            port,
            v6only,
        };
        assert_eq!(
            asked(
                r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":3000,"addressType":4,"seq":1}"#
            ),
            tcp(None, 3000, false)
        );
        assert_eq!(
            asked(
                r#"{"cmd":"NODE_CLUSTER","act":"queryServer","address":"::","port":1,"addressType":6,"flags":1,"seq":1}"#
            ),
            tcp(Some("::"), 1, true)
        );
        assert_eq!(
            asked(
                r#"{"cmd":"NODE_CLUSTER","act":"queryServer","address":"/a.sock","port":-1,"addressType":-1,"seq":1}"#
            ),
            Wanted::Unix("/a.sock".to_owned())
        );
        assert_eq!(
            asked(
                r#"{"cmd":"NODE_CLUSTER","act":"queryServer","address":null,"port":null,"addressType":null,"fd":3,"seq":1}"#
            ),
            Wanted::Fd(3)
        );
        assert_eq!(
            asked(
                r#"{"cmd":"NODE_CLUSTER","act":"queryServer","address":"127.0.0.1","port":9,"addressType":"udp4","fd":-1,"flags":4,"seq":1}"#
            ),
            Wanted::Udp {
                host: Some("127.0.0.1".to_owned()),
                port: 9,
                v6: false,
                v6only: false,
                reuse: true
            }
        );
    }

    #[test]
    fn messages_of_the_app_are_no_concern_of_ours_whatever_they_hold() {
        for text in [
            r#""ready""#,
            "1",
            "null",
            "[]",
            r#"{"hello":1}"#,
            r#"{"cmd":7,"x":"NODE_"}"#,
            r#"{"cmd":"NODE_CLUSTER","act":7}"#,
            r#"{"cmd":"NODE_CLUSTER","act":"queryServer","port":"x","seq":1}"#,
        ] {
            assert_eq!(parse(text.as_bytes()), Ok(Message::Other), "{text}");
        }
        for text in ["", "{", "hello", "\u{0}", "{\"a\":1}}"] {
            assert_eq!(parse(text.as_bytes()), Err(Garbage), "{text}");
        }
        assert_eq!(parse(b"\"\xff\""), Err(Garbage));
        // Deeper than any parser wants to go.
        assert_eq!(parse("[".repeat(100_000).as_bytes()), Err(Garbage));
    }

    #[test]
    fn the_answers() {
        assert_eq!(
            parse(br#"{"cmd":"NODE_CLUSTER","ack":3,"accepted":true,"seq":3}"#),
            Ok(Message::Accepted(3, true))
        );
        assert_eq!(
            parse(br#"{"cmd":"NODE_HANDLE_NACK"}"#),
            Ok(Message::HandleNack)
        );
        assert_eq!(
            parse(br#"{"cmd":"NODE_CLUSTER","act":"close","key":"null:5000:4:null","seq":3}"#),
            Ok(Message::Close("null:5000:4:null".to_owned()))
        );
        let text = refused(0, 4, "a\"b\n", "null", 98);
        assert_eq!(
            text,
            "{\"cmd\":\"NODE_CLUSTER\",\"errno\":-98,\"key\":\"a\\\"b\\n\",\"ack\":4,\"data\":null,\"seq\":0}\n"
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn random_fields_never_panic(act in "[a-zA-Z]{0,14}", port in any::<i64>(), kind in "(4|6|-1|null|\"udp4\"|\"x\"|7)", fd in any::<i64>()) {
            let text = format!(r#"{{"cmd":"NODE_CLUSTER","act":"{act}","port":{port},"addressType":{kind},"fd":{fd},"seq":1}}"#);
            let _ = parse(text.as_bytes());
            let text = text.replace(&format!("\"{act}\""), "\"queryServer\"");
            let _ = parse(text.as_bytes());
        }
    }
}
