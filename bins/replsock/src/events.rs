//! Every event name, once. The man page's EVENTS is checked against this file.

/// Somebody came to a process.
pub const CONNECTED: &str = "connected";
/// Something was evaluated there.
pub const EVALUATED: &str = "evaluated";
/// A profile or a snapshot was taken, begun or ended, or a stack looked at.
pub const INSPECTED: &str = "inspected";
/// The agent was brought in through the inspector's port.
pub const INJECTED: &str = "injected";
/// `serve` listens.
pub const LISTENING: &str = "server-listening";
/// A client of `serve` has its command.
pub const CLIENT_CONNECTED: &str = "client-connected";
/// A client was not let in.
pub const CLIENT_REFUSED: &str = "client-refused";
/// A client is gone.
pub const CLIENT_LEFT: &str = "client-left";
/// A client's command has ended.
pub const COMMAND_ENDED: &str = "command-ended";
/// The shared command runs.
pub const COMMAND_STARTED: &str = "command-started";
/// The shared command could not be executed.
pub const COMMAND_FAILED: &str = "command-failed";
/// A session is not recorded.
pub const RECORD_FAILED: &str = "record-failed";
/// Nobody is accepted for a moment.
pub const ACCEPT_PAUSED: &str = "accept-paused";
/// The socket was removed, and made anew.
pub const SOCKET_RENEWED: &str = "socket-renewed";
/// The path leads to something else, or the socket cannot be made anew.
pub const SOCKET_LOST: &str = "socket-lost";
/// `serve` ends.
pub const STOPPED: &str = "server-stopped";
