//! Every event name, once. The man page's EVENTS is checked against this file.

/// The watch stands: a touch from now on is seen.
pub const READY: &str = "ready";
/// A file was touched.
pub const FILE_TOUCHED: &str = "file-touched";
/// inotify cannot be had for a file: it is looked at each interval.
pub const WATCH_POLLING: &str = "watch-polling";
/// It can be had again.
pub const WATCH_RESTORED: &str = "watch-restored";
/// A file system does not answer.
pub const WATCH_STALE: &str = "watch-stale";
/// It answers again.
pub const WATCH_RECOVERED: &str = "watch-recovered";
/// A look fails; what was known before stays the measure.
pub const LOOK_FAILED: &str = "look-failed";
/// It does no more.
pub const LOOK_RECOVERED: &str = "look-recovered";
/// Links lead in a circle: as if nothing was there.
pub const LINK_LOOP: &str = "link-loop";
/// An action began.
pub const ACTION_STARTED: &str = "action-started";
/// It ended well.
pub const ACTION_ENDED: &str = "action-ended";
/// It did not, or could not be started.
pub const ACTION_FAILED: &str = "action-failed";
/// It is tried again after a pause.
pub const ACTION_RETRIED: &str = "action-retried";
/// A touch while it ran: one more run follows.
pub const ACTION_QUEUED: &str = "action-queued";
/// A touch while it ran: it is ended, and run again.
pub const ACTION_STOPPED: &str = "action-stopped";
/// A touch while it ran: it got a signal.
pub const ACTION_SIGNALLED: &str = "action-signalled";
/// A touch while it ran, or by itself: dropped.
pub const TOUCH_IGNORED: &str = "touch-ignored";
/// The action seems to touch the file itself: its next run is held.
pub const TOUCH_LOOP: &str = "touch-loop";
/// The signal of `--signal` was sent.
pub const SIGNAL_SENT: &str = "signal-sent";
/// It could not be.
pub const SIGNAL_FAILED: &str = "signal-failed";
/// Another one holds the lock.
pub const LOCK_WAITING: &str = "lock-waiting";
/// The lock is ours.
pub const LOCK_TAKEN: &str = "lock-taken";
/// It cannot be had.
pub const LOCK_FAILED: &str = "lock-failed";
/// The stamp cannot be read or written.
pub const STAMP_FAILED: &str = "stamp-failed";
/// The command runs.
pub const COMMAND_STARTED: &str = "command-started";
/// The command ended.
pub const COMMAND_EXITED: &str = "command-exited";
