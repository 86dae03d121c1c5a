//! `TOOL --ctl`: asks a running program, and ends with its answer.

use crate::cli::{note, print};
use crate::control::{self, Reply};
use crate::error::{Error, Result};
use crate::exit::Exit;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// What is asked, of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The program's socket.
    pub path: PathBuf,
    /// The request line.
    pub request: String,
    /// How long an answer is waited for; `None`: for ever.
    pub timeout: Option<Duration>,
}

impl Question {
    /// From the words after `--ctl SOCKET`; `--timeout D` may stand among them.
    ///
    /// # Errors
    /// No request (`which` says what there is), a word that cannot be part of one, a wrong duration.
    pub fn new(
        path: PathBuf,
        words: &[OsString],
        timeout: Option<Duration>,
        which: &str,
    ) -> Result<Question> {
        let mut question = Question {
            path,
            request: String::new(),
            timeout,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let text = word
                .to_str()
                .filter(|text| !text.chars().any(char::is_control))
                .ok_or_else(|| {
                    Error::usage(format!("'{}' is no request", word.to_string_lossy()))
                })?;
            let length = match text.split_once('=') {
                Some(("--timeout", length)) => Some(length),
                _ if text == "--timeout" => Some(
                    words
                        .next()
                        .and_then(|next| next.to_str())
                        .ok_or_else(|| Error::usage("--timeout takes a duration, such as 30s"))?,
                ),
                _ => None,
            };
            match length {
                Some(length) => {
                    let length = crate::cli::duration(length)
                        .map_err(|why| Error::usage(format!("--timeout: {why}")))?;
                    question.timeout = Some(length);
                }
                None => {
                    if !question.request.is_empty() {
                        question.request.push(' ');
                    }
                    question.request.push_str(text);
                }
            }
        }
        if question.request.is_empty() {
            return Err(Error::usage(format!("--ctl: which request? {which}")));
        }
        Ok(question)
    }
}

/// Asks, prints what comes, and ends with the answer's status.
///
/// # Errors
/// Nobody is there (125), no answer in time (124), or the answer is no (its own status).
pub fn run(question: &Question) -> Result<Exit> {
    let terminal = nix::unistd::isatty(crate::sys::standard(1)).unwrap_or(false);
    let mut printed = false;
    let mut heard = true;
    let mut failed = None;
    let mut say = |line: &str| {
        let more = print(line);
        let goes_on = matches!(more, Ok(true));
        failed = failed.take().or(more.err());
        goes_on
    };
    let reply = control::ask(
        &question.path,
        &question.request,
        question.timeout,
        &mut |line| {
            if let Some(step) = line.strip_prefix("progress ") {
                // For whoever watches; a script asks for the result.
                if terminal {
                    heard &= say(step);
                }
            } else if let Some(words) = line.strip_prefix("stderr ") {
                note(&format!("| {words}"));
            } else {
                printed = true;
                heard &= say(line);
            }
            heard
        },
    )?;
    match reply {
        Some(Reply::Ok(text)) if !printed && !text.is_empty() => drop(say(&text)),
        None | Some(Reply::Ok(_)) => {}
        Some(Reply::Err(code, text)) => {
            return Err(Error {
                message: text,
                exit: Exit::Code(code),
            });
        }
    }
    // Not the whole answer: whoever keeps it in a file is not to take it for one.
    failed.map_or(Ok(Exit::Ok), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(words: &[&str]) -> Result<Question> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Question::new("s".into(), &words, None, "status")
    }

    #[test]
    fn words_make_a_request_and_the_timeout_may_stand_anywhere() {
        for words in [
            &["status", "json", "--timeout", "2s"][..],
            &["status", "--timeout=2s", "json"],
            &["--timeout", "2", "status json"],
        ] {
            let asked = question(words).map(|asked| (asked.request, asked.timeout));
            let expected = ("status json".to_owned(), Some(Duration::from_secs(2)));
            assert_eq!(asked, Ok(expected), "{words:?}");
        }
        for words in [
            &[][..],
            &["--timeout"],
            &["--timeout", "x", "status"],
            &["a\nb"],
        ] {
            let exit = question(words).map_err(|why| why.exit);
            assert_eq!(exit.err(), Some(Exit::Usage), "{words:?}");
        }
    }
}
