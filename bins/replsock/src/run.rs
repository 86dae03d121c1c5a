//! Which command does what.

use crate::cli::{Cli, Command};
use common::error::Result;
use common::exit::Exit;

/// Does what was typed.
pub fn run(cli: Cli) -> Result<Exit> {
    match cli.command {
        Command::Flame(order) => crate::flame::run(order),
        Command::Eval(order) => crate::eval::run(order),
        Command::Ls(order) => crate::ls::run(order),
        Command::Serve(order) => crate::serve::run(order),
        Command::Env(order) => crate::env::run(order),
        Command::Attach(order) => crate::attach::run(order),
        Command::Prof(order) => crate::take::prof(order),
        Command::Heap(order) => crate::take::heap(order),
        Command::Stack(order) => crate::take::stack(order),
        Command::ThroughThePort(order) => crate::inject::inside(order.pid, order.start, order.deed),
    }
}
