//! The IoT Hub protocols without any I/O: ids, topics, property bags, twins, direct methods, jobs, the query
//! language, SAS tokens, connection strings and errors, each in both directions.
//!
//! Hub and client share this crate, and it alone writes IoT Hub JSON and topics. It reads no clock (every function
//! that needs the time takes it), opens no socket and spawns nothing; it knows neither MQTT packets nor HTTP.
//!
//! Start with [`id`] and [`address`] for the words, [`link`] for what a device connection carries, [`topic`] for how that looks in
//! MQTT, and [`job`] for what a back end schedules.

pub mod address;
pub mod authentication;
pub mod configuration;
pub mod connection_string;
pub mod error;
pub mod feedback;
pub mod id;
pub mod identity;
pub mod job;
pub mod link;
pub mod method;
pub mod plugin_report;
pub mod query;
pub mod quota;
pub mod sas;
pub mod time;
pub mod topic;
pub mod twin;
