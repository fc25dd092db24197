//! `latch hub rehearse`, as it is typed.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use crate::units::duration_argument;

pub(super) const HELP: &str = "A bad day ends by itself after --for. The same seed makes the same decisions for each device; without --seed one is made
up and printed. Quotas and throttles of an Azure tier are rehearsed by `latch up --tier S1`.

Examples:
  latch hub rehearse reconnect-storm
  latch hub rehearse lost-pubacks --percent 30 --for 5m --seed 7
  latch hub rehearse silence --devices 'door-00*'
  latch hub rehearse list
  latch hub rehearse stop 3";

#[derive(Debug, Subcommand)]
pub(crate) enum RehearseCommand {
    /// Cut each link once, as if its token had expired, at some moment of the day
    TokenCut(BadDayArgs),
    /// Connect as each device once from elsewhere, at some moment of the day; it gets its link back by connecting again
    TakeOver(BadDayArgs),
    /// Take device-to-cloud messages and do not acknowledge them
    LostPubacks(BadDayArgs),
    /// Neither read from the links that there are nor write to them, and do not close them; new ones work
    HalfOpen(BadDayArgs),
    /// Answer devices and back ends late
    SlowHub {
        #[command(flatten)]
        day: BadDayArgs,
        /// How late at least [default: 500ms]
        #[arg(long, value_name = "DURATION", value_parser = duration_argument)]
        min: Option<Duration>,
        /// How late at most [default: 5s]
        #[arg(long, value_name = "DURATION", value_parser = duration_argument)]
        max: Option<Duration>,
    },
    /// Do not tell devices of changes to their desired properties
    LostNotices(BadDayArgs),
    /// Cut all links at once
    ReconnectStorm(BadDayArgs),
    /// Answer nothing at all
    Silence(BadDayArgs),
    /// Show the bad days under way, and what a tier has counted
    List,
    /// End a bad day before its time
    Stop {
        /// Its number, as `list` shows it [default: all]
        number: Option<u64>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BadDayArgs {
    /// Only devices whose id matches: * stands for any text, ? for one character; leaves back ends alone
    #[arg(long, value_name = "GLOB")]
    pub(crate) devices: Option<String>,
    /// How many percent: of devices, or of what is lost or late [default: lost-pubacks 20, lost-notices 50, else 100]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) percent: Option<u8>,
    /// How long [default: token-cut, take-over 1m, lost-pubacks, lost-notices, slow-hub 2m, silence 4m, half-open 5m]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration_argument)]
    pub(crate) length: Option<Duration>,
    /// Makes it the same day again [default: made up]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}
