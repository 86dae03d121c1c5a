//! `serve`: any program with a REPL on its stdin, on a unix socket; and its client.

pub mod cli;

use crate::frames::{Decoder, Hello};
use common::error::{Error, Result};
use common::exit::Exit;
use std::os::fd::OwnedFd;

/// Serves until it is told to end.
pub fn run(_order: cli::Serve) -> Result<Exit> {
    Err(Error::usage("not there yet"))
}

/// The client's side of a served command. [`crate::frames::PREFACE`] and our HELLO (`pty` or `pipe`, with
/// the terminal's size) were sent, and `answer` is the server's HELLO; what came behind it is in `decoder`.
pub fn attach(_stream: OwnedFd, _decoder: Decoder, _answer: &Hello) -> Result<Exit> {
    Err(Error::usage("not there yet"))
}
