//! spawnwork's own modules, as they stand in the program, and what the fuzzer does with them.
#![cfg(not(test))]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    dead_code,
    missing_docs,
    unused_imports
)]

#[path = "../../../../bins/spawnwork/src/actions.rs"]
mod actions;
#[path = "../../../../bins/spawnwork/src/adopt.rs"]
mod adopt;
#[path = "../../../../bins/spawnwork/src/ask.rs"]
mod ask;
#[path = "../../../../bins/spawnwork/src/cgroups.rs"]
mod cgroups;
#[path = "../../../../bins/spawnwork/src/check.rs"]
mod check;
#[path = "../../../../bins/spawnwork/src/check_config.rs"]
mod check_config;
#[path = "../../../../bins/spawnwork/src/cli.rs"]
mod cli;
#[path = "../../../../bins/spawnwork/src/compat.rs"]
mod compat;
#[path = "../../../../bins/spawnwork/src/control.rs"]
mod control;
#[path = "../../../../bins/spawnwork/src/cpus.rs"]
mod cpus;
#[path = "../../../../bins/spawnwork/src/deaths.rs"]
mod deaths;
#[path = "../../../../bins/spawnwork/src/ends.rs"]
mod ends;
#[path = "../../../../bins/spawnwork/src/events.rs"]
mod events;
#[path = "../../../../bins/spawnwork/src/launch.rs"]
mod launch;
#[path = "../../../../bins/spawnwork/src/lifeline.rs"]
mod lifeline;
#[path = "../../../../bins/spawnwork/src/node/mod.rs"]
mod node;
#[path = "../../../../bins/spawnwork/src/notify.rs"]
mod notify;
#[path = "../../../../bins/spawnwork/src/output.rs"]
mod output;
#[path = "../../../../bins/spawnwork/src/perform.rs"]
mod perform;
#[path = "../../../../bins/spawnwork/src/plan.rs"]
mod plan;
#[path = "../../../../bins/spawnwork/src/pool/mod.rs"]
mod pool;
#[path = "../../../../bins/spawnwork/src/primary.rs"]
mod primary;
#[path = "../../../../bins/spawnwork/src/probe.rs"]
mod probe;
#[path = "../../../../bins/spawnwork/src/reexec.rs"]
mod reexec;
#[path = "../../../../bins/spawnwork/src/resize.rs"]
mod resize;
#[path = "../../../../bins/spawnwork/src/run.rs"]
mod run;
#[path = "../../../../bins/spawnwork/src/slots.rs"]
mod slots;
#[path = "../../../../bins/spawnwork/src/state.rs"]
mod state;
#[path = "../../../../bins/spawnwork/src/status.rs"]
mod status;
#[path = "../../../../bins/spawnwork/src/store.rs"]
mod store;
#[path = "../../../../bins/spawnwork/src/supervisor.rs"]
mod supervisor;
#[path = "../../../../bins/spawnwork/src/watchdog.rs"]
mod watchdog;
#[path = "../../../../bins/spawnwork/src/worker.rs"]
mod worker;

pub mod spawnwork_command_line;
pub mod spawnwork_env_file;
pub mod spawnwork_proc;
pub mod spawnwork_request;
pub mod spawnwork_state;
