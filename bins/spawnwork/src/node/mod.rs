//! Node's cluster protocol, spoken from outside Node.
//!
//! Source of the messages: lib/internal/cluster/{child,primary,shared_handle,round_robin_handle}.js and
//! lib/internal/child_process.js of Node 10 to 26, which do not differ on the wire.

pub mod balance;
pub mod channel;
pub mod message;
pub mod preload;
pub mod shim;
pub mod sockets;
