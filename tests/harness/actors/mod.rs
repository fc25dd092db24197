//! What tests and benchmarks of actors share: a fleet in this process, whose hub is the test.
//!
//! A target takes it in by `#[path = "../harness/actors/mod.rs"] mod actors;`, beside `harness`, which builds the plugins.
#![allow(dead_code, reason = "each target uses a part of it")]

pub(crate) mod channels;
pub(crate) mod hostile;
pub(crate) mod neighbours;
pub(crate) mod rollout;
pub(crate) mod swapping;
