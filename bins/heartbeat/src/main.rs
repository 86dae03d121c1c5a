//! heartbeat: is it alive, and if not, act.
#![forbid(unsafe_code)]

mod cli;
mod events;
mod expect;
mod explain;
mod heal;
mod http;
mod judge;
mod metrics;
mod outcome;
mod plan;
mod probe;
mod process;
mod run;
mod schedule;
mod seek;
mod tell;
#[cfg(feature = "tls")]
mod tls;
mod url;
mod wire;

fn main() -> std::process::ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if tell::for_nagios(&words) {
        return tell::nagios_main(words, run::run);
    }
    common::cli::main_with("heartbeat", words, |cli| run::run(plan::Plan::make(cli)?))
}
