//! End-to-end tests of the binary `latch`, a file for each behaviour.
//!
//! Each test starts what it needs on free ports, in folders of its own, and waits for events, never for time to pass.
//! Beside the behaviours: [`back_end`] is a client of the hub in this process, [`rest`] and [`mqtt`] say to a hub what no
//! good client would, and [`operator`] looks into a running host.

#[path = "../harness/mod.rs"]
mod harness;

mod back_end;
mod mqtt;
mod operator;
mod rest;

mod announcements;
mod bad_input;
mod capacity;
mod certificates;
mod command_line;
mod config;
mod configuration;
mod events;
mod fleet_job;
mod host_jobs;
mod hub_store;
mod job_events;
mod job_policy;
mod job_records;
mod job_targets;
mod job_webhook;
mod languages;
mod messages;
mod misbehaving;
mod modules;
mod recurrence;
mod rehearsal;
mod restart;
mod rollout;
mod scenarios;
mod staged_rollout;
mod swap;
mod timers;
mod times;
