//! spawnwork: run N workers of a program on shared sockets, and never drop a request.
#![forbid(unsafe_code)]

mod cli;
mod cpus;
mod events;
mod launch;
mod node;
mod notify;
mod output;
mod plan;
mod pool;
mod primary;
mod reload;
mod respawn;
mod run;
mod store;
mod supervisor;
mod watchdog;
mod worker;

fn main() -> std::process::ExitCode {
    if let Some(result) = node::shim::instead() {
        return common::cli::finish("spawnwork", result);
    }
    common::cli::main("spawnwork", |cli| run::run(plan::Plan::make(cli)?))
}
