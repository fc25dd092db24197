//! Scenarios with a fake clock, then all of them shuffled.

mod bench;
mod messages;
mod outbox;
mod shuffled;
mod twin;
mod versions;
