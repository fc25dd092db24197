//! A client of an IoT hub's service API: devices, twins, direct methods, jobs and queries over REST.
//!
//! The crate knows the API and nothing of what it is used for. It talks to Azure's hub and to the embedded one alike,
//! and reads no environment: connection string and TLS settings are given to it.
//!
//! - [`request`] writes each call down: method, path, headers, body. Pure.
//! - [`client`] sends it, signs it, repeats it where that is safe. Start at [`ServiceClient`].
//! - [`error`] tells apart what the hub said from why it could not be reached.
//!
//! Devices, twins, jobs and rows come back as the JSON that the hub sent, since they are mostly shown or passed on, and
//! a hub may send more than this client knows.

pub mod client;
pub mod error;
pub mod request;

pub use client::{Page, ServiceClient, client_connection};
pub use error::{Problem, ServiceError};
pub use request::{JobFilter, PageRequest};
