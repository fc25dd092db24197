//! An IoT Hub on this machine: the same MQTT and REST as Azure's, so that Microsoft's SDKs work unmodified.
//!
//! [`hub`] decides, without I/O: registry, twins, sessions, direct methods. [`session`] is one MQTT connection, also
//! without I/O. Around them: `driver` feeds the hub and writes what it decides to [`store`] before anyone hears of it,
//! `mqtt` and `rest` are the two listeners (`accept` is what they share, `places` bounds them), `fleet` lets the job engine act on the hub's devices, [`tls`] makes the
//! local certificate authority, `configurations` gives devices their desired properties, [`rehearsal`] plays the limits
//! of an Azure tier and the bad days of a hub, [`events`] keeps what back ends may follow. The hub holds in memory whom it
//! deals with; `scan` reads many devices past it, and `presence` is what stands beside the store for that; `indexes` and
//! [`import`] are what an operator does with the store. Start with [`EmbeddedHub::start`].
//!
//! This crate knows nothing of plugins and actors: a Latch device connects to it like any other.

mod accept;
pub mod authorities;
pub mod certificate;
mod configurations;
mod driver;
pub mod events;
pub mod feedback;
mod fleet;
pub mod hub;
pub mod import;
mod indexes;
mod mqtt;
mod places;
mod policy;
mod presence;
pub mod queue;
pub mod rehearsal;
mod rest;
mod scan;
mod server;
pub mod session;
mod store;
mod survey;
pub mod tls;
pub mod websocket;

pub use driver::HubHandle;
pub use fleet::HubFleet;
pub use places::ConnectionLimits;
pub use policy::{Policy, Rights};
pub use server::{EmbeddedHub, HubSettings, StartError};
