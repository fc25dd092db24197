//! A client of an IoT hub's service API: devices, twins, direct methods, jobs and queries over REST.
//!
//! The crate knows the API, and of what it is used for only that jobs act on devices. It talks to Azure's hub and to the embedded one alike,
//! and reads no environment: connection string and TLS settings are given to it.
//!
//! - [`request`] writes each call down: method, path, headers, body. Pure.
//! - [`client`] sends it, signs it, repeats it where that is safe. Start at [`ServiceClient`].
//! - [`fleet`] is the hub as a job engine sees it: it keeps to what the hub takes, and outlasts its bad minutes.
//! - [`error`] tells apart what the hub said from why it could not be reached.
//!
//! Devices, twins, jobs and rows come back as the JSON that the hub sent, since they are mostly shown or passed on, and
//! a hub may send more than this client knows.

pub mod client;
pub mod error;
mod events;
pub mod fleet;
pub mod request;
#[cfg(test)]
mod testing;

pub use client::{Page, ServiceClient, client_connection};
pub use error::{Problem, ServiceError};
pub use events::JobEvents;
pub use fleet::RestFleet;
pub use request::{JobFilter, PageRequest};
