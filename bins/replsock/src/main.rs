//! replsock: a REPL and a profiler inside the running app, for its owner alone.
#![forbid(unsafe_code)]

mod audit;
mod cli;
mod door;
mod flame;
mod frames;
mod run;
mod serve;

fn main() -> std::process::ExitCode {
    common::cli::main_with("replsock", cli::words(std::env::args_os()), run::run)
}
