//! Every event name, once. heartbeat(1) lists them with their keys.

/// A check passed.
pub const CHECK_PASSED: &str = "check-passed";
/// A check passed, but late, or with a certificate that ends soon.
pub const CHECK_SLOW: &str = "check-slow";
/// A check failed.
pub const CHECK_FAILED: &str = "check-failed";
/// A check failed because we ourselves did not run in time.
pub const CHECK_LATE: &str = "check-late";
/// A check has not come back long after its time limit; another thread takes over.
pub const CHECK_HANGS: &str = "check-hangs";
/// A check could not be made, for want of descriptors or memory.
pub const CHECK_IMPOSSIBLE: &str = "check-impossible";
/// The service is well.
pub const SERVICE_UP: &str = "service-up";
/// The service is slow.
pub const SERVICE_SLOW: &str = "service-slow";
/// The service is down.
pub const SERVICE_DOWN: &str = "service-down";
/// The limit of actions is reached.
pub const GAVE_UP: &str = "gave-up";
/// An action begins.
pub const ACTION_STARTED: &str = "action-started";
/// An action has ended well.
pub const ACTION_ENDED: &str = "action-ended";
/// An action failed, or could not be started.
pub const ACTION_FAILED: &str = "action-failed";
/// An action has to wait.
pub const ACTION_HELD: &str = "action-held";
/// The check just before the action passed.
pub const ACTION_CANCELLED: &str = "action-cancelled";
/// The pid file names a process.
pub const PROCESS_FOUND: &str = "process-found";
/// The pid file is not read in time.
pub const PID_FILE_HANGS: &str = "pid-file-hangs";
/// Counters of a process cannot be read.
pub const COUNTERS_HIDDEN: &str = "counters-hidden";
/// USR2.
pub const PAUSED: &str = "paused";
/// USR2 again.
pub const RESUMED: &str = "resumed";
/// HUP: certificates were read again, or could not be.
pub const RELOADED: &str = "reloaded";
/// The file of --metrics cannot be written.
pub const METRICS_FAILED: &str = "metrics-failed";
/// Nobody takes what --sd-notify says, or it comes too seldom.
pub const NOTIFY_FAILED: &str = "notify-failed";
/// Lines were dropped because their reader did not take them.
pub const LINES_LOST: &str = "lines-lost";
/// The command runs.
pub const COMMAND_STARTED: &str = "command-started";
/// The command ended.
pub const COMMAND_EXITED: &str = "command-exited";
