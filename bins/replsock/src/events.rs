//! Every event name, once. The man page's EVENTS is checked against this file.

/// Somebody came to a process.
pub const CONNECTED: &str = "connected";
/// Something was evaluated there.
pub const EVALUATED: &str = "evaluated";
/// A profile or a snapshot was taken, begun or ended, or a stack looked at.
pub const INSPECTED: &str = "inspected";
/// The agent was brought in through the inspector's port.
pub const INJECTED: &str = "injected";
