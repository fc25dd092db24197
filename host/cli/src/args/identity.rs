//! `latch device` and `latch module`, as they are typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use iothub_protocol::address::Address;
use iothub_protocol::authentication::Thumbprint;
use iothub_protocol::id::DeviceId;

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Create a device with new keys, or for its certificate; with --json, print its identity, keys included
    #[command(after_help = "Examples:
  latch device create door-0001
  latch device create door-0001 --x509-thumbprint $(openssl x509 -in door.pem -noout -fingerprint -sha256 | tr -d : | cut -d= -f2)
  latch device create door-0001 --x509-ca
  latch device create door-0001 --hub azure.connstr --save door-0001.connstr")]
    Create {
        /// The device's id
        id: DeviceId,
        #[command(flatten)]
        identity: IdentityArgs,
    },
    /// List devices and whether they are connected
    List,
    /// Show a device's identity, without its keys
    Show {
        /// The device's id
        id: DeviceId,
    },
    /// Delete a device with its twin and its modules
    Delete {
        /// The device's id
        id: DeviceId,
    },
}

/// How a new device or module proves itself.
#[derive(Debug, ClapArgs)]
pub(crate) struct IdentityArgs {
    /// Thumbprints of its certificate and of the next one: SHA-1 or SHA-256, as hexadecimal digits
    #[arg(long, value_name = "HEX[,HEX]", value_delimiter = ',', num_args = 1)]
    pub(crate) x509_thumbprint: Vec<Thumbprint>,
    /// It has a certificate of an authority that the hub trusts, whose common name is its id, a module's DEVICE/MODULE
    #[arg(long, conflicts_with = "x509_thumbprint")]
    pub(crate) x509_ca: bool,
    /// Write its connection string into this new file, with mode 0600
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModuleCommand {
    /// Create a module with new keys, or for its certificate; with --json, print its identity, keys included
    #[command(after_help = "Examples:
  latch module create door-0001/lock --save lock.connstr
  latch module create door-0001/lock --managed-by ops")]
    Create {
        /// The module, as DEVICE/MODULE
        #[arg(value_name = "DEVICE/MODULE", value_parser = module_address)]
        id: Address,
        /// What manages it, a word for back ends
        #[arg(long, value_name = "TEXT")]
        managed_by: Option<String>,
        #[command(flatten)]
        identity: IdentityArgs,
    },
    /// List modules and whether they are connected
    List {
        /// Only of this device
        device: Option<DeviceId>,
    },
    /// Show a module's identity, without its keys
    Show {
        /// The module, as DEVICE/MODULE
        #[arg(value_name = "DEVICE/MODULE", value_parser = module_address)]
        id: Address,
    },
    /// Delete a module with its twin
    Delete {
        /// The module, as DEVICE/MODULE
        #[arg(value_name = "DEVICE/MODULE", value_parser = module_address)]
        id: Address,
    },
}

fn module_address(text: &str) -> Result<Address, String> {
    let address = Address::parse(text).map_err(|error| error.to_string())?;
    if address.is_module() { Ok(address) } else { Err("a module is named by its device: DEVICE/MODULE".to_owned()) }
}
