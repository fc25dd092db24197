//! The fleet's configuration, `latch.toml`: devices, plugins with their terms, limits, and what flags say as well.
//!
//! [`read`] is pure: from a text, and [`Sources`] for the files and variables that it names, to a [`FleetConfig`] or
//! everything that is wrong with it. Each section has a module. [`file`] finds the file and reads the disk.

mod devices;
mod document;
mod file;
mod grants;
mod limits;
mod mistake;
mod pattern;
mod plugins;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use iothub_protocol::connection_string::DeviceConnectionString;
use iothub_protocol::id::DeviceId;
use iothub_protocol::quota::tier::{Sku, Tier};
use plugin_runtime::{PluginName, PluginPlans};
use toml::de::DeTable;

use document::{Entry, Reader, Section};
use sources::Sources;

pub(crate) use file::{ConfigError, ConfigFile, FILE_NAME, Reading, Stamp};
pub(crate) use limits::HostLimits;
pub(crate) use mistake::{Mistake, Position};

/// What a configuration says. Without one, the default.
#[derive(Default)]
pub(crate) struct FleetConfig {
    pub(crate) host: HostSection,
    pub(crate) devices: Devices,
    pub(crate) plugins: PluginPlans,
    /// Where the devices are named.
    pub(crate) devices_at: Option<Position>,
    /// Where each plugin's table begins.
    pub(crate) positions: BTreeMap<PluginName, Position>,
    pub(crate) limits: HostLimits,
    /// What is odd, and yet may be meant.
    pub(crate) remarks: Vec<Mistake>,
}

/// The devices of a host, with the connection strings of those that have one.
pub(crate) type Devices = BTreeMap<DeviceId, Option<DeviceConnectionString>>;

/// Settings that are flags as well; flags win.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostSection {
    pub(crate) plugins: Option<PathBuf>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) https: Option<SocketAddr>,
    pub(crate) mqtt: Option<SocketAddr>,
    pub(crate) certificates: Option<PathBuf>,
    /// `tier` with `units`.
    pub(crate) tier: Option<Sku>,
}

impl FleetConfig {
    /// The plugins that are spoken of and not there, when `present` are.
    pub(crate) fn absent_plugins(&self, present: &BTreeSet<String>) -> Vec<Mistake> {
        let absent = self.positions.iter().filter(|(name, _)| !present.contains(name.as_str()));
        let told = absent.map(|(name, position)| {
            let hint = document::nearest(name.as_str(), present.iter().map(String::as_str));
            let hint = hint.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            let text = format!("plugins.{name}: there is no {name}.wasm in the plugin directory{hint}");
            Mistake { position: *position, text }
        });
        told.collect()
    }
}

/// Read a whole configuration.
///
/// # Errors
/// Every mistake, in order.
fn read(text: &str, sources: &Sources<'_>) -> Result<FleetConfig, Vec<Mistake>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let reader = Reader::new(text, sources);
    let config = reader.document(document.get_ref(), &errors, read_sections);
    let (mistakes, remarks) = reader.found();
    if mistakes.is_empty() { Ok(FleetConfig { remarks, ..config }) } else { Err(mistakes) }
}

fn read_sections(document: &Section<'_>) -> FleetConfig {
    let host = document.get("host").and_then(|entry| entry.section(host)).unwrap_or_default();
    let devices = document.get("devices").map(|entry| devices::read(&entry)).unwrap_or_default();
    let devices_at = document.get("devices").map(|entry| entry.position());
    let limits = document.get("limits").and_then(|entry| entry.section(limits::read)).unwrap_or_default();
    let plugins = document.get("plugins").map(|entry| plugins::read(&entry, &limits, &devices));
    let (plugins, positions) = plugins.unwrap_or_default();
    FleetConfig { host, devices, devices_at, plugins, positions, limits, remarks: Vec::new() }
}

fn host(section: &Section<'_>) -> HostSection {
    let path = |key| section.get(key).and_then(|entry| Some(entry.sources().path(entry.text()?)));
    let (plugins, certificates) = (path("plugins"), path("certificates"));
    let address = |key| section.get(key).and_then(|entry| address(&entry));
    HostSection {
        plugins,
        certificates,
        admin: address("admin"),
        https: address("https"),
        mqtt: address("mqtt"),
        tier: tier(section),
    }
}

fn tier(section: &Section<'_>) -> Option<Sku> {
    let (named, units) = (section.get("tier"), section.get("units"));
    let count = units.as_ref().map_or(Some(1), |entry| entry.count(1..=u64::from(u32::MAX)));
    let Some(named) = named else {
        if let Some(units) = units {
            units.mistake("units are of a tier; add tier = \"S1\"");
        }
        return None;
    };
    let tier = Tier::by_name(named.text()?);
    if tier.is_none() {
        named.mistake("expected \"F1\", \"S1\", \"S2\" or \"S3\"");
    }
    let sku = Sku::new(tier?, u32::try_from(count?).ok()?);
    if let Err(error) = &sku {
        units.as_ref().unwrap_or(&named).mistake(error.to_string());
    }
    sku.ok()
}

fn address(entry: &Entry<'_>) -> Option<SocketAddr> {
    let address = entry.text()?.parse().ok();
    if address.is_none() {
        entry.mistake("expected an IP address with a port, as \"127.0.0.1:8443\" or \"[::1]:8443\"");
    }
    address
}
