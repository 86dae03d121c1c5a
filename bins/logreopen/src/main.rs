//! logreopen: log files that survive rotation, a full disk and a hung one.
#![forbid(unsafe_code)]

mod changes;
mod cli;
mod control;
mod cut;
mod events;
mod feed;
mod follow;
mod place;
mod plan;
mod queue;
mod rotate;
mod run;
mod shared;
mod stamp;
mod start;
mod stream;
mod tell;
mod writer;

fn main() -> std::process::ExitCode {
    let words = cli::joined(std::env::args_os().collect());
    common::cli::main_with("logreopen", words, |cli| match plan::Order::make(cli)? {
        plan::Order::Run(plan) => run::run(*plan),
        plan::Order::Ask(question) => common::ask::run(&question),
    })
}
