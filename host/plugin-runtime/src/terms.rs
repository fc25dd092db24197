//! On what terms a plugin runs: its settings, what it may do beyond the device, and what it may spend.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iothub_protocol::id::DeviceId;

use crate::catalog::DeviceGlob;

/// Together with the code they make a version: other terms are another version, which devices take as they take new code.
/// Not printable, since settings and environment can be secrets.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Settings that the guest can ask for.
    pub config: BTreeMap<String, String>,
    pub grants: Grants,
    pub limits: PluginLimits,
}

/// What a plugin may do through WASI. The default is nothing.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    /// Environment variables, by name. Never the host's own.
    pub environment: BTreeMap<String, String>,
    /// Where it may connect to.
    pub addresses: Vec<AddressGrant>,
    /// A folder of the host in which each device and plugin has one of its own.
    pub folder: Option<PathBuf>,
    pub clock: ClockGrant,
    /// Random numbers that nobody can foretell.
    pub randomness: bool,
}

/// An address or a network, and the ports there, to which a guest may open connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AddressGrant {
    pub network: IpAddr,
    /// Leading bits of `network` that count: 32 or 128 for one address.
    pub prefix: u8,
    /// `None` for every port.
    pub port: Option<u16>,
}

/// How well a guest may know the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ClockGrant {
    /// The time at which its call began, to the second, all through the call: nothing can be measured with it.
    #[default]
    CallStart,
    /// The time in steps of 100 milliseconds.
    Coarse,
    /// The host's clock.
    Real,
}

/// What a plugin may spend, where that is less than every plugin may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PluginLimits {
    /// How long one call may take. Never longer than [`RuntimeSettings::call_time_limit`](crate::RuntimeSettings).
    pub call_time: Option<Duration>,
    /// Bytes of memory of one instance. Never more than [`RuntimeSettings::memory_limit`](crate::RuntimeSettings).
    pub memory: Option<usize>,
}

/// The devices on which a plugin runs. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Placement {
    #[default]
    Everywhere,
    /// On devices that match one of the patterns or are named.
    On { patterns: Vec<DeviceGlob>, devices: Arc<BTreeSet<DeviceId>> },
}

impl Placement {
    pub fn includes(&self, device: &DeviceId) -> bool {
        match self {
            Placement::Everywhere => true,
            Placement::On { patterns, devices } => {
                devices.contains(device) || patterns.iter().any(|pattern| pattern.matches(device))
            }
        }
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("limits", &self.limits).finish_non_exhaustive()
    }
}
