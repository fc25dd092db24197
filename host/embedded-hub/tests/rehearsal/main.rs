//! What is rehearsed, as devices and back ends meet it at a whole hub's sockets.

mod bad_days;
mod fixture;
#[path = "../support/mod.rs"]
mod support;
mod tiers;
