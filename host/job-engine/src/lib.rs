//! Jobs over a fleet: schedule, fan out, retry, finish.
//!
//! - [`engine`] decides, and is pure: it takes the time and what happened, and says what to record and what to send.
//! - [`journal`] keeps jobs and their device rows in SQLite: rows are written before a send and after an outcome.
//! - [`JobEngine`] is the driver and its handle: it waits, writes and calls.
//! - [`Fleet`] is what jobs act on: devices to select, call and patch. The crate does not know whether that is a hub in
//!   this process or one behind HTTP, nor anything of MQTT, HTTP or WebAssembly.
//!
//! A method runs at least once for each attempt, and at most one outcome is recorded for a device. Whatever a caller
//! can see is read from the journal, so it is durable, and a recorded outcome is never sent for again.

pub mod audit;
mod driver;
pub mod engine;
mod fleet;
pub mod journal;
mod occurrences;
mod plan;
mod preview;
mod record;
#[cfg(test)]
mod testing;

pub use driver::{CloneRequest, JobEngine, Listed, Settings};
pub use engine::{Command, Limits};
pub use fleet::{Fleet, LabelReader, Quota, Selected, Selection, Standing, Survey, Surveyed};
pub use journal::{JobEvent, JobFilter, MIGRATIONS, Page, Progress};
pub use preview::Tally;
