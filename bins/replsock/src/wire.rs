//! JSON lines: what an agent is asked and answers. Pure: bytes in, answers out.

use serde::{Deserialize, Serialize};

/// The longest line of an agent: a profile of an hour, or a part of a heap snapshot.
pub const LONGEST_LINE: usize = 1 << 30;

/// One operation. What is `None` is not sent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u64,
    /// `eval`, `complete`, `check`, `info`, `profile`, `heap`, `ping`, `cancel`
    pub op: &'static str,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What is to be completed: the line up to the cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `text`, `raw`, `json`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// 0 or none: without end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How long a promise is waited for; none: as `timeout_ms`, 0: without end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// V8's check for side effects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// For a terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colors: Option<bool>,
    /// Letters of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Even process.exit().
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// Of `profile`: `start`, `stop`, `status`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<&'static str>,
    /// Of `profile start`: it ends with the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owned: Option<bool>,
    /// Of `profile start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_us: Option<u64>,
}

impl Request {
    /// As a line.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        // A structure of numbers and strings can always be written.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// What an agent says. All of it is another program's word: whatever is missing has its default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Of the request; none: not asked for.
    pub id: Option<u64>,
    /// It did.
    pub ok: bool,
    /// The value, or what went wrong.
    pub text: String,
    /// The value as JSON.
    pub json: Option<String>,
    /// It was `undefined`, which JSON does not know.
    pub undefined: bool,
    /// `typeof` the value.
    #[serde(rename = "type")]
    pub kind: String,
    /// The error's message.
    pub message: Option<String>,
    /// Cut at `limit`.
    pub truncated: bool,
    /// Ended by the time limit.
    pub timed_out: bool,
    /// Not waited for any more.
    pub cancelled: bool,
    /// It would have ended the app.
    pub would_end: bool,
    /// How long it took there.
    pub ms: f64,
    /// Of `check`.
    pub whole: bool,
    /// Of `complete`: where the word begins.
    pub start: usize,
    /// Of `complete`.
    pub list: Vec<String>,
    /// Of `heap`: a part.
    pub chunk: Option<String>,
    /// Of `profile`: a profile is under way.
    pub running: bool,
    /// Of `profile stop`.
    pub profile: Option<Box<serde_json::value::RawValue>>,
    /// `guarded`: an error that was typed in was kept from the app.
    pub event: Option<String>,
    /// Of `info`: it serves no new requests.
    pub draining: bool,
    /// Of `info`: bytes.
    pub heap_total: u64,
    /// Of `info`: `node`, `python`, `ruby`
    pub runtime: String,
    /// Of `info`: of the runtime.
    pub version: String,
}

/// Bytes as they come, whole lines out.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// So far there is no newline.
    searched: usize,
}

/// Why a line is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Longer than [`LONGEST_LINE`].
    Long,
    /// No JSON, or something else than an answer.
    Json(String),
}

impl std::fmt::Display for Bad {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Long => write!(formatter, "an answer without end"),
            Bad::Json(why) => write!(formatter, "an answer that is none: {why}"),
        }
    }
}

impl Lines {
    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line.
    ///
    /// # Errors
    /// It is no answer.
    pub fn take(&mut self) -> Result<Option<Answer>, Bad> {
        loop {
            let rest = self.bytes.get(self.searched..).unwrap_or_default();
            let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                return if self.bytes.len() > LONGEST_LINE {
                    Err(Bad::Long)
                } else {
                    Ok(None)
                };
            };
            let line: Vec<u8> = self.bytes.drain(..=self.searched + at).collect();
            self.searched = 0;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return match serde_json::from_slice(&line) {
                Ok(answer) => Ok(Some(answer)),
                Err(why) => Err(Bad::Json(why.to_string())),
            };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_said_is_not_sent() {
        let request = Request {
            id: 7,
            op: "eval",
            code: Some("\"\n\"".to_owned()),
            ..Request::default()
        };
        assert_eq!(
            request.line(),
            b"{\"id\":7,\"op\":\"eval\",\"code\":\"\\\"\\n\\\"\"}\n"
        );
    }

    #[test]
    fn an_answer_of_a_newer_agent() {
        let mut lines = Lines::default();
        lines.push(b"\n{\"id\":1,\"ok\":true,\"text\":\"2\",\"new\":{\"a\":[]}}\n{\"id\":2");
        let answer = lines.take().unwrap().unwrap();
        assert!(answer.ok && answer.id == Some(1) && answer.text == "2");
        assert!(lines.take().unwrap().is_none());
        lines.push(b"}\n7\n");
        assert_eq!(lines.take().unwrap().unwrap().id, Some(2));
        assert!(lines.take().is_err());
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_same_answers_come_out(
            texts in prop::collection::vec("\\PC{0,40}", 0..20),
            step in 1usize..50,
        ) {
            let mut bytes = Vec::new();
            for (id, text) in texts.iter().enumerate() {
                bytes.extend(serde_json::to_vec(&serde_json::json!({"id": id, "ok": true, "text": text})).unwrap());
                bytes.push(b'\n');
            }
            let mut lines = Lines::default();
            let mut out = Vec::new();
            for part in bytes.chunks(step) {
                lines.push(part);
                while let Some(answer) = lines.take().unwrap() {
                    out.push(answer.text);
                }
            }
            prop_assert_eq!(out, texts);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut lines = Lines::default();
            lines.push(&bytes);
            while let Ok(Some(_)) = lines.take() {}
        }
    }
}
