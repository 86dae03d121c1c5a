//! An error that says what was tried, why it failed, and with which status the program ends.

use crate::exit::Exit;
use std::fmt;
use std::io;

/// One line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// `cannot bind 127.0.0.1:3000: address already in use`
    pub message: String,
    /// The exit status that goes with it.
    pub exit: Exit,
}

/// A result with such an error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The tool could not do its work (125).
    pub fn new(doing: &str, why: impl fmt::Display) -> Error {
        Error {
            message: format!("cannot {doing}: {why}"),
            exit: Exit::Fault,
        }
    }

    /// The command line was wrong (2).
    pub fn usage(message: impl Into<String>) -> Error {
        Error {
            message: message.into(),
            exit: Exit::Usage,
        }
    }

    /// The same with another exit status.
    #[must_use]
    pub fn with_exit(self, exit: Exit) -> Error {
        Error { exit, ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when an error came.
pub trait Doing<T> {
    /// `open(path).doing("open /etc/x")?`
    ///
    /// # Errors
    /// The one that it was called on, with its cause in words.
    fn doing(self, what: &str) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|why| Error::new(what, describe(&why)))
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|why| Error::new(what, describe(&io::Error::from(why))))
    }
}

/// An error of the system as a person says it: lower case, without its number.
#[must_use]
pub fn describe(why: &io::Error) -> String {
    let text = why.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        // An abbreviation (I/O, EOF) keeps its capitals.
        Some(first)
            if !letters
                .as_str()
                .starts_with(|second: char| !second.is_lowercase()) =>
        {
            first.to_lowercase().collect::<String>() + letters.as_str()
        }
        _ => text.to_owned(),
    }
}

/// An error that says nothing of what was looked at: descriptors or memory of our own were lacking.
#[must_use]
pub fn is_our_want(why: &io::Error) -> bool {
    matches!(
        why.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_in_words() {
        assert_eq!(
            describe(&io::Error::from_raw_os_error(98)),
            "address already in use"
        );
        assert_eq!(
            describe(&io::Error::from_raw_os_error(2)),
            "no such file or directory"
        );
        let error = nix::Result::<()>::Err(nix::Error::EACCES).doing("bind 127.0.0.1:80");
        assert_eq!(
            error.map_err(|error| error.to_string()),
            Err("cannot bind 127.0.0.1:80: permission denied".to_owned())
        );
    }
}
