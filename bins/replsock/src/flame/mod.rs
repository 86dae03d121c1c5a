//! CPU profiles of V8 (.cpuprofile): flame graphs, folded stacks, a table.

pub mod cli;

use common::error::{Error, Result};
use common::exit::Exit;

/// The filter.
pub fn run(_order: cli::Flame) -> Result<Exit> {
    Err(Error::usage("not there yet"))
}

/// The flame graph of a profile, as `prof --svg` writes it.
///
/// # Errors
/// It is no profile.
#[allow(dead_code)]
pub fn svg(_profile: &[u8], _title: &str) -> Result<String> {
    Err(Error::usage("not there yet"))
}

/// The table of `--top`: lines with their newlines.
///
/// # Errors
/// It is no profile.
#[allow(dead_code)]
pub fn top(_profile: &[u8]) -> Result<String> {
    Err(Error::usage("not there yet"))
}
