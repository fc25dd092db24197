//! A fleet in this process, whose hub is the benchmark, and what happens to it.

pub(crate) mod channels;
pub(crate) mod neighbours;
pub(crate) mod rollout;
pub(crate) mod swapping;
pub(crate) mod vices;
