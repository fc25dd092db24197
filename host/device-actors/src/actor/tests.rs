//! Scenarios with a fake clock, then all of them shuffled.

mod activation;
mod bench;
mod cut_off;
mod deliveries;
mod messages;
mod outbox;
mod peers;
mod shuffled;
mod timers;
mod twin;
mod versions;
