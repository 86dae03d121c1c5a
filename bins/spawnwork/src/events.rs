//! Every event name, once. The man page's EVENTS is checked against this file.

/// The master runs and starts its workers.
pub const STARTED: &str = "started";
/// A worker's process was made.
pub const WORKER_STARTED: &str = "worker-started";
/// A worker shows that it serves.
pub const WORKER_READY: &str = "worker-ready";
/// A worker ended.
pub const WORKER_EXITED: &str = "worker-exited";
/// A worker could not be started, or was not ready in time.
pub const WORKER_FAILED: &str = "worker-failed";
/// A slot waits before its next start.
pub const WORKER_BACKOFF: &str = "worker-backoff";
/// A worker was replaced by another one of its generation.
pub const WORKER_RECYCLED: &str = "worker-recycled";
/// Its replacement did not come, and it stays.
pub const RECYCLE_FAILED: &str = "recycle-failed";
/// A slot is over its respawn limit.
pub const WORKER_HELD: &str = "worker-held";
/// A worker was asked to stop.
pub const WORKER_STOPPING: &str = "worker-stopping";
/// A worker did not stop in time.
pub const WORKER_KILLED: &str = "worker-killed";
/// A killed worker hangs in the kernel; its slot gets another one.
pub const WORKER_STUCK: &str = "worker-stuck";
/// We end without a worker, or what it left behind, that hangs in the kernel.
pub const WORKER_LEFT: &str = "worker-left";
/// A worker's watchdog was not fed in time.
pub const WORKER_HUNG: &str = "worker-hung";
/// A worker of a dead master was found.
pub const ORPHAN_FOUND: &str = "orphan-found";
/// What a worker of a dead master holds cannot be taken over.
pub const ORPHAN_REFUSED: &str = "orphan-refused";
/// A worker of a dead master was asked to leave.
pub const ORPHAN_STOPPING: &str = "orphan-stopping";
/// It did not, in time.
pub const ORPHAN_KILLED: &str = "orphan-killed";
/// A worker of a dead master is gone.
pub const ORPHAN_EXITED: &str = "orphan-exited";
/// Every slot of a generation serves.
pub const GENERATION_SERVING: &str = "generation-serving";
/// A reload began.
pub const RELOAD_STARTED: &str = "reload-started";
/// The first worker of the new generation serves, and is on probation.
pub const RELOAD_CANARY: &str = "reload-canary";
/// The new generation has taken over.
pub const RELOAD_COMMITTED: &str = "reload-committed";
/// The new generation failed; the old one goes on.
pub const RELOAD_FAILED: &str = "reload-failed";
/// A reload waits for the running one to finish its switch.
pub const RELOAD_QUEUED: &str = "reload-queued";
/// A newer reload takes the place of the running one.
pub const RELOAD_SUPERSEDED: &str = "reload-superseded";
/// The new generation died after it had taken over; the old one comes back.
pub const RELOAD_ROLLED_BACK: &str = "reload-rolled-back";
/// A reload was not begun at all.
pub const RELOAD_REFUSED: &str = "reload-refused";
/// A socket was bound.
pub const SOCKET_BOUND: &str = "socket-bound";
/// A socket came back from the supervisor's store.
pub const SOCKET_RETURNED: &str = "socket-returned";
/// A socket was taken over from the workers of a dead master.
pub const SOCKET_ADOPTED: &str = "socket-adopted";
/// A socket was closed, because nobody serves it any more.
pub const SOCKET_DROPPED: &str = "socket-dropped";
/// A worker had shut a shared listener down; it listens again.
pub const SOCKET_RELISTENED: &str = "socket-relistened";
/// net.core.somaxconn cuts the backlog.
pub const BACKLOG_CUT: &str = "backlog-cut";
/// A worker's channel was closed because of what came through it.
pub const CHANNEL_CLOSED: &str = "channel-closed";
/// A worker asked for a socket that it cannot have.
pub const BIND_REFUSED: &str = "bind-refused";
/// Lines could not be passed on.
pub const LINES_LOST: &str = "lines-lost";
/// A signal asked us to stop.
pub const STOP_REQUESTED: &str = "stop-requested";
/// The supervisor above us cannot be told anything.
pub const SUPERVISOR_UNREACHED: &str = "supervisor-unreached";
/// A slot's or a socket's state, asked for by USR1.
pub const STATUS: &str = "status";
/// The failed deploy, and deaths counted against slots, were forgotten on request.
pub const CLEARED: &str = "cleared";
/// An address is in use, and is tried again.
pub const BIND_WAITING: &str = "bind-waiting";
/// Connections that waited for a slot that is gone.
pub const QUEUE_LOST: &str = "queue-lost";
/// A signal was passed on to the workers.
pub const SIGNAL_FORWARDED: &str = "signal-forwarded";
/// The number of workers is to be changed.
pub const WORKERS_QUEUED: &str = "workers-queued";
/// The number of workers was changed.
pub const WORKERS_CHANGED: &str = "workers-changed";
/// Another program has taken our place, with the same pid, workers and sockets.
pub const REEXECUTED: &str = "reexecuted";
/// It could not, and nothing has happened.
pub const REEXEC_FAILED: &str = "reexec-failed";
/// The master ends.
pub const STOPPED: &str = "stopped";
