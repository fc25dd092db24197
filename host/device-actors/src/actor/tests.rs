//! Scenarios with a fake clock, then all of them shuffled.

mod activation;
mod bench;
mod deliveries;
mod messages;
mod outbox;
mod shuffled;
mod timers;
mod twin;
mod versions;
