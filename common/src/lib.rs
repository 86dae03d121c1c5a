//! What the five tools share. I need ... -> module:
//!
//! - a command line, a value parser, the shape of `main` -> [`cli`]
//! - an exit status, the end of a process -> [`exit`]; an error that says what was tried -> [`error`]
//! - an event line -> [`event`]; durations, rates, jitter -> [`time`]
//! - work that may hang -> [`aside`]
//! - signals as events, their names, a child's clean state -> [`signal`]; the loop -> [`wait`]
//! - to start a process, to hold and signal it -> [`child`]; a group that it cannot leave -> [`cgroup`]
//! - to run a command as its wrapper -> [`wrap`]; a shell command on an event -> [`action`], and how often -> [`limiter`]
//! - to watch and signal another program's process -> [`watched`]
//! - to be asked something while it runs -> [`control`], and to ask -> [`ask`]
//! - whole lines out of pipes -> [`lines`]; our own stdout and stderr -> [`output`]
//! - addresses, listening sockets, who holds a port -> [`socket`]; inherited descriptors -> [`fds`]
//! - users, groups, limits -> [`privs`]; pid files, file identity -> [`file`]
//! - the kernel, unsafely -> [`sys`], and nowhere else

pub mod action;
pub mod aside;
pub mod ask;
pub mod cgroup;
pub mod child;
pub mod cli;
pub mod control;
pub mod error;
pub mod event;
pub mod exit;
pub mod fds;
pub mod file;
pub mod limiter;
pub mod lines;
pub mod output;
pub mod privs;
pub mod signal;
pub mod socket;
pub mod sys;
pub mod time;
pub mod wait;
pub mod watched;
pub mod wrap;
