//! CPU profiles of V8 (.cpuprofile): flame graphs, folded stacks, a table.

pub mod cli;
mod profile;
mod svg;
mod tree;

use crate::whole::Whole;
use common::error::{Doing, Error, Result};
use common::exit::Exit;
use profile::Profile;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use tree::{Idle, Tree};

/// Rows of the table: a screen.
const ROWS: usize = 30;

/// The filter.
///
/// # Errors
/// The file cannot be read, is no profile, or the output cannot be written.
pub fn run(order: cli::Flame) -> Result<Exit> {
    let name = order.file.as_deref().filter(|file| *file != Path::new("-"));
    let shown = name.map_or("standard input".into(), Path::to_string_lossy);
    if !order.top && !order.folded && order.output.is_none() && is_terminal() {
        return Err(Error::usage(
            "a graph is nothing for a terminal; -o FILE.svg, --top or --folded would do",
        ));
    }
    let mut bytes = Vec::new();
    let doing = format!("read the profile {shown}");
    match name {
        Some(path) => File::open(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .doing(&doing)?,
        None => io::stdin().lock().read_to_end(&mut bytes).doing(&doing)?,
    };
    let idle = if order.with_idle {
        Idle::Shown
    } else {
        Idle::LeftOut
    };
    let tree = grow(&bytes, idle).map_err(|why| Error::new(&doing, why))?;
    let text = if order.top {
        tree.table(ROWS)
    } else if order.folded {
        tree.folded()
    } else {
        let title = name
            .and_then(Path::file_stem)
            .map_or("CPU profile".into(), |stem| stem.to_string_lossy());
        svg::draw(&tree, &title)
    };
    match &order.output {
        Some(path) => Whole::put(path, text.as_bytes())?,
        None => match io::stdout().lock().write_all(text.as_bytes()) {
            Err(why) if why.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.doing("write to standard output")?,
        },
    }
    Ok(Exit::Ok)
}

fn is_terminal() -> bool {
    nix::unistd::isatty(common::sys::standard(1)).unwrap_or(false)
}

fn grow(bytes: &[u8], idle: Idle) -> std::result::Result<Tree, String> {
    Ok(Tree::of(&Profile::read(bytes)?, idle))
}

/// The flame graph of a profile, as `prof --svg` writes it.
///
/// # Errors
/// It is no profile.
pub fn svg(profile: &[u8], title: &str) -> Result<String> {
    let tree = grow(profile, Idle::LeftOut).map_err(|why| Error::new("draw the profile", why))?;
    Ok(svg::draw(&tree, title))
}

/// The table of `--top`: lines with their newlines.
///
/// # Errors
/// It is no profile.
pub fn top(profile: &[u8]) -> Result<String> {
    let tree = grow(profile, Idle::LeftOut).map_err(|why| Error::new("read the profile", why))?;
    Ok(tree.table(ROWS))
}
