//! watchtouch: run an action when a file is touched, on any file system.
#![forbid(unsafe_code)]

mod act;
mod cli;
mod events;
mod eye;
mod lock;
mod notice;
mod place;
mod plan;
mod print;
mod run;
mod settle;
mod signature;
mod stamp;
mod walk;

fn main() -> std::process::ExitCode {
    common::cli::main("watchtouch", |cli| run::run(plan::Plan::make(cli)?))
}
