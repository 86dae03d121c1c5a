//! Every event name, once. The man page's EVENTS is checked against this file.

/// A file was opened at the start.
pub const OUTPUT_OPENED: &str = "output-opened";
/// The old file was let go, and another one taken.
pub const OUTPUT_REOPENED: &str = "output-reopened";
/// The path still leads to the file that is open.
pub const OUTPUT_UNCHANGED: &str = "output-unchanged";
/// A file was moved or removed, and nobody said so.
pub const OUTPUT_MOVED: &str = "output-moved";
/// Another file could not be opened; the old one is kept, and it is tried again.
pub const REOPEN_FAILED: &str = "reopen-failed";
/// The directory of a file cannot be written: a reopen is going to fail.
pub const REOPEN_DOUBTFUL: &str = "reopen-doubtful";
/// A file cannot be written; what comes is held.
pub const WRITE_FAILED: &str = "write-failed";
/// It can be written again.
pub const WRITE_RECOVERED: &str = "write-recovered";
/// What was written cannot be brought to the disk.
pub const SYNC_FAILED: &str = "sync-failed";
/// More came than may be held, and was dropped.
pub const LINES_LOST: &str = "lines-lost";
/// A line was cut in two, because its end did not come.
pub const LINE_SPLIT: &str = "line-split";
/// Somebody made a file shorter.
pub const TRUNCATED: &str = "truncated";
/// We rotated a file ourselves.
pub const ROTATED: &str = "rotated";
/// We could not, and go on in the same file.
pub const ROTATE_FAILED: &str = "rotate-failed";
/// The command of `--on-rotate` failed.
pub const ACTION_FAILED: &str = "action-failed";
/// The command runs.
pub const COMMAND_STARTED: &str = "command-started";
/// The command ended.
pub const COMMAND_EXITED: &str = "command-exited";
/// At the end a file could not be written in time.
pub const DRAIN_GAVE_UP: &str = "drain-gave-up";
/// A pipe is smaller than it should be.
pub const PIPE_SMALL: &str = "pipe-small";
