//! What `latch hub` does beside running a hub, as it is typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::{RehearseCommand, StoreCommand};
use crate::units::duration_argument;

#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Print a token for the header Authorization, for curl and other plain clients of the REST API
    #[command(
        after_help = "The token is signed with a key of the policy: whoever has it can do what the policy may until it ends.

Examples:
  curl --cacert .latch/ca.pem -H \"Authorization: $(latch hub token)\" https://localhost/messages/events
  latch hub token --policy registryRead --ttl 5m"
    )]
    Token(TokenArgs),
    /// Let the running hub have a bad day, to see how devices and back ends bear it
    #[command(subcommand, after_help = super::rehearse::HELP)]
    Rehearse(RehearseCommand),
    /// The authorities whose devices may connect with a certificate that names them
    #[command(subcommand)]
    Ca(CaCommand),
    #[command(flatten)]
    Store(StoreCommand),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenArgs {
    /// The policy: iothubowner, service, device, registryRead or registryReadWrite [default: service, or that of --hub]
    #[arg(long, value_name = "NAME")]
    pub(crate) policy: Option<String>,
    /// How long it is good for, such as 90s, 5m or 1h; at most 365d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration_argument)]
    pub(crate) ttl: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Trust an authority: devices of type certificateAuthority connect with what it has signed
    #[command(after_help = "Example:
  latch hub ca add factory.pem
  latch device create door-0001 --x509-ca")]
    Add {
        /// The authority's certificate, in PEM or DER
        file: PathBuf,
        /// What to call it [default: the file's name without its ending]
        #[arg(long)]
        name: Option<String>,
    },
    /// List the authorities
    List,
    /// Trust an authority no more; devices that are connected stay so
    Remove {
        /// What it is called
        name: String,
    },
}
