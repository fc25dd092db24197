//! `latch message`, as it is typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use iothub_protocol::id::DeviceId;

/// Two days, the longest life of a message.
const MAX_EXPIRY: u64 = 2 * 24 * 3600;

#[derive(Debug, Subcommand)]
pub(crate) enum MessageCommand {
    /// Queue a message for a device of the embedded hub
    #[command(
        after_help = "The message waits in the device's queue, at most 50, until the device has completed it or it expires; over MQTT, \
completing is acknowledging. The hub may be restarted meanwhile.

Examples:
  latch message send door-0001 'open at 8'
  latch message send door-0001 '{\"open\": true}' --content-type application/json --property urgent=yes
  latch message send door-0001 --file schedule.bin --expiry 600 --ack full
  latch message send door-0001 hello --wait"
    )]
    Send(Box<SendArgs>),
    /// List what waits in a device's queue
    List {
        /// The device's id
        device: DeviceId,
    },
    /// Remove all messages from a device's queue, of the embedded hub or Azure's
    Purge {
        /// The device's id
        device: DeviceId,
    },
    /// Show the feedback that messages asked for; back ends that take it still get it
    #[command(after_help = "Feedback waits for an hour.

Example:
  latch message feedback --follow")]
    Feedback {
        /// Keep following
        #[arg(long, short)]
        follow: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SendArgs {
    /// The device's id
    pub(crate) device: DeviceId,
    /// The body, a text [default: empty]
    #[arg(conflicts_with = "file")]
    pub(crate) body: Option<String>,
    /// Take the body from a file, whatever is in it
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// An application property; may be given again
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    pub(crate) properties: Vec<(String, String)>,
    /// The body's type, such as application/json
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    /// The body's encoding, such as utf-8
    #[arg(long, value_name = "ENCODING")]
    pub(crate) content_encoding: Option<String>,
    /// The message's id, which feedback names [default: made up]
    #[arg(long, value_name = "ID")]
    pub(crate) message_id: Option<String>,
    /// What the message answers to
    #[arg(long, value_name = "ID")]
    pub(crate) correlation_id: Option<String>,
    /// Who sends it
    #[arg(long, value_name = "ID")]
    pub(crate) user_id: Option<String>,
    /// Seconds until the message expires, at most two days [default: an hour]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=MAX_EXPIRY))]
    pub(crate) expiry: Option<u64>,
    /// Which end to give feedback on
    #[arg(long, value_enum, default_value_t = Ack::None)]
    pub(crate) ack: Ack,
    /// Wait until the message has ended, and say how
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ack {
    /// No feedback
    None,
    /// That the device has completed it
    Positive,
    /// That it expired, was given back too often, rejected or purged
    Negative,
    /// Either
    Full,
}

fn property(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| "it is not NAME=VALUE".to_owned())?;
    Ok((name.to_owned(), value.to_owned()))
}
