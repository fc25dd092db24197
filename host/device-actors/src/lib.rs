//! One actor for each device: it owns the device's state, gives its messages to plugins one at a time and sends what
//! they report.
//!
//! [`actor`] decides and is pure: it reads no clock, opens no file and spawns nothing. `driver` waits for it: one task
//! for each device, between a connection's two channels of protocol types, the plugins that are current and the store.
//! [`Roster`] starts the tasks and shows what they do. One whose driver fails is started again by `supervisor`. Behind
//! the driver stand `residency`, which bounds the instances of all devices together, and [`StateStore`], which keeps
//! what must outlive the process.
//!
//! This crate does not know how a device is connected, where plugins come from, or what wasm is.

mod activation;
pub mod actor;
mod answer;
mod bell;
mod clocks;
mod desired;
mod driver;
mod failure;
mod health;
mod inbox;
mod limits;
mod lineup;
mod outbox;
mod peers;
mod record;
mod residency;
mod roster;
mod selection;
mod share;
mod store;
mod supervisor;
mod timers;
mod view;

pub use activation::HeldBack;
pub use failure::{Failure, FailureKind, LastCrash, LastFailure};
pub use limits::{Backoff, Limits};
pub use lineup::{Lineup, Offer, Offered, Offers, Plugin};
pub use record::{Applied, Changes, DeviceRecord, Handled, PluginPast, Quarantined, QueuedTelemetry, Unsent};
pub use roster::{Roster, RosterSettings};
pub use store::StateStore;
pub use timers::Now;
pub use view::ActorView;
