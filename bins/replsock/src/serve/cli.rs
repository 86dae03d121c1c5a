//! What was typed behind `serve`.

use std::ffi::OsString;
use std::path::PathBuf;

/// `replsock serve`
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// The socket to make
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
