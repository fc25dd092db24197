//! `latch events`, as it is typed.

use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};

use crate::units::duration_argument;

pub(crate) const HELP: &str =
    "The hub keeps the latest 10,000 events, at most 16 MiB of them, until it stops. While following, a hub
that goes is waited for, and what was missed is told. Interrupting ends with code 0.

Examples:
  latch events --follow
  latch events --device 'door-*' --kind telemetry,twin --json
  latch events --since 10m --kind connection
  latch events --device 'door-0001/*'
  latch events --device door-0001 --kind reported --count 1 --timeout 30s";

#[derive(Debug, ClapArgs)]
pub(crate) struct EventsArgs {
    /// Keep following: from now on, unless --since says otherwise
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only of these devices and their modules: an id, in which * stands for any text and ? for one character; or only of
    /// modules, as DEVICE/MODULE
    #[arg(long, value_name = "PATTERN")]
    pub(crate) device: Option<String>,
    /// Only these kinds, or kinds of these categories
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    pub(crate) kind: Vec<EventKind>,
    /// Only from then on: a time, such as 2026-12-24T18:00:00Z, or how long ago, such as 10m
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Follow until there were this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Follow for so long, such as 30s; code 4 if there were fewer than --count
    #[arg(long, value_name = "DURATION", value_parser = duration_argument)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventKind {
    /// A device sent a message
    Telemetry,
    /// A twin changed: reported, updated, replaced
    Twin,
    /// A device reported properties
    Reported,
    /// A back end changed tags or desired properties
    Updated,
    /// A back end replaced tags or desired properties
    Replaced,
    /// The registry changed: created, deleted
    Lifecycle,
    Created,
    Deleted,
    /// Devices came and went: connected, disconnected
    Connection,
    Connected,
    Disconnected,
    /// Cloud-to-device messages: queued, settled
    Message,
    /// A cloud-to-device message was queued
    Queued,
    /// A cloud-to-device message has left its queue
    Settled,
}
