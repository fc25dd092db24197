//! One device's MQTT connection to an IoT hub.
//!
//! The crate knows the device's side of the protocol and nothing of what the device does: it meets the device's actor
//! as a pair of channels of [`FromHub`](iothub_protocol::link::FromHub) and [`ToHub`](iothub_protocol::link::ToHub).
//! It knows no plugins, no storage and no hub of ours; Azure's and the embedded one look the same from here.
//!
//! - [`session`] decides: when to connect, what to subscribe to, which answer belongs to which request, when to renew
//!   the token, how long to wait. It is pure: no clock, no socket, no task.
//! - [`task`] does: it drives one session over one socket. Start at [`task::spawn`].
//! - [`backoff`] spaces the attempts, [`tls`] makes the TLS settings that all connections of a process share.

pub mod backoff;
pub mod session;
pub mod task;
pub mod tls;

pub use session::{Failure, LinkState};
pub use task::{DeviceConnection, DeviceConnectionSettings, spawn};
