//! End-to-end tests of the binary `latch`, a file for each behaviour.

#[path = "../harness/mod.rs"]
mod harness;
mod timers;
