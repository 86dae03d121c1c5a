//! spawnwork: run N workers of a program on shared sockets, and never drop a request.
#![forbid(unsafe_code)]

mod actions;
mod adopt;
mod ask;
mod cgroups;
mod check;
mod check_config;
mod cli;
mod compat;
mod control;
mod cpus;
mod deaths;
mod ends;
mod events;
mod launch;
mod lifeline;
mod node;
mod notify;
mod output;
mod perform;
mod plan;
mod pool;
mod primary;
mod probe;
mod reexec;
mod resize;
mod run;
mod slots;
mod state;
mod status;
mod store;
mod supervisor;
mod watchdog;
mod worker;

fn main() -> std::process::ExitCode {
    if let Some(result) = node::shim::instead() {
        return common::cli::finish("spawnwork", result);
    }
    common::cli::main("spawnwork", |cli| match plan::Order::make(cli)? {
        plan::Order::Run(plan) => run::run(*plan),
        plan::Order::Ask(question) => ask::run(&question),
        plan::Order::CheckState(number) => reexec::check(number),
        plan::Order::Check(plan) => check_config::run(&plan),
    })
}
