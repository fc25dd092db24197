//! `[plugins.NAME]`: where a plugin runs, with what settings and grants, within what limits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use iothub_protocol::id::DeviceId;
use plugin_runtime::{DeviceGlob, Placement, PluginLimits, PluginName, PluginPlan, PluginPlans, Terms};

use super::document::{Entry, Section};
use super::limits::{HostLimits, MIN_CALL_TIME, MIN_MEMORY};
use super::mistake::Position;
use super::{Devices, devices, grants, pattern};

pub(super) fn read(
    entry: &Entry<'_>,
    limits: &HostLimits,
    devices: &Devices,
) -> (PluginPlans, BTreeMap<PluginName, Position>) {
    let (mut plans, mut positions) = (PluginPlans::new(), BTreeMap::new());
    for plugin in entry.table() {
        let plan = plugin.entry.section(|section| plan(section, limits, devices));
        match (PluginName::parse(plugin.key), plan) {
            (Ok(name), Some(plan)) => {
                positions.insert(name.clone(), plugin.position);
                plans.insert(name, plan);
            }
            (Err(error), _) => plugin.mistake(error.to_string()),
            (Ok(_), None) => {}
        }
    }
    (plans, positions)
}

fn plan(section: &Section<'_>, limits: &HostLimits, devices: &Devices) -> PluginPlan {
    let placement = placement(section, devices);
    let config = section.get("config").map(|entry| settings(&entry)).unwrap_or_default();
    let grants = section.get("grants").and_then(|entry| entry.section(grants::read)).unwrap_or_default();
    let limits = section.get("limits").and_then(|entry| entry.section(|section| own_limits(section, limits)));
    PluginPlan { terms: Terms { config, grants, limits: limits.unwrap_or_default() }, placement }
}

/// Everywhere, unless something is said.
fn placement(section: &Section<'_>, devices: &Devices) -> Placement {
    let (named, listed) = (section.get("devices"), section.get("devices-file"));
    if named.is_none() && listed.is_none() {
        return Placement::Everywhere;
    }
    let (mut patterns, mut ids) = (Vec::new(), BTreeSet::new());
    for entry in named.iter().filter(|entry| entry.is_empty_list()) {
        entry.mistake("the list is empty; leave it out for all devices, or remove the plugin's file for none");
    }
    for entry in named.iter().flat_map(Entry::each) {
        let Some(text) = entry.text() else { continue };
        match pattern_or_ids(text) {
            Ok((pattern, of_pattern)) => {
                let is_there = |id: &DeviceId| pattern.iter().any(|glob| glob.matches(id)) || of_pattern.contains(id);
                if !devices.is_empty() && !devices.keys().any(is_there) {
                    entry.remark("matches none of the devices in this file");
                }
                patterns.extend(pattern);
                ids.extend(of_pattern);
            }
            Err(error) => entry.mistake(error),
        }
    }
    if patterns.len() > MAX_PATTERNS {
        section.get("devices").iter().for_each(|entry| {
            entry.mistake(format!("there may be {MAX_PATTERNS} patterns; list the devices in a devices-file"));
        });
    }
    for entry in listed.iter().flat_map(Entry::each) {
        read_ids(&entry, &mut ids);
    }
    Placement::On { patterns, devices: Arc::new(ids) }
}

/// A range in braces is ids, anything else a pattern.
fn pattern_or_ids(text: &str) -> Result<(Option<DeviceGlob>, BTreeSet<DeviceId>), String> {
    if text.contains(['{', '}']) {
        return Ok((None, pattern::expand(text, devices::MAX_DEVICES)?.into_iter().collect()));
    }
    let glob = DeviceGlob::parse(text).map_err(|error| error.to_string())?;
    if !glob.overlaps(&DeviceGlob::all()) {
        return Err("no device can have such an id; * stands for any text, ? for one character".to_owned());
    }
    Ok((Some(glob), BTreeSet::new()))
}

/// A file with one id a line.
fn read_ids(entry: &Entry<'_>, ids: &mut BTreeSet<DeviceId>) {
    let Some(name) = entry.text() else { return };
    let text = match entry.sources().file(name) {
        Ok(text) => text,
        Err(error) => return entry.mistake(error),
    };
    for (number, line) in devices::numbered(&text) {
        match DeviceId::parse(line) {
            Ok(id) if ids.len() < devices::MAX_DEVICES => {
                ids.insert(id);
            }
            Ok(_) => return entry.mistake(format!("{name} names more than {} devices", devices::MAX_DEVICES)),
            Err(error) => entry.mistake(format!("{name}:{number}: {error}")),
        }
    }
}

/// Texts by name, each written here, or in a file or a variable that is named here.
pub(super) fn settings(entry: &Entry<'_>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for setting in entry.table() {
        let value = if setting.entry.is_table() { secret(&setting.entry) } else { setting.entry.scalar() };
        if let Some(value) = value {
            settings.insert(setting.key.to_owned(), value);
        }
    }
    let size: usize = settings.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_SETTINGS {
        entry.mistake(format!(
            "these are {size} bytes; all of it is kept in memory for each plugin, so there may be {MAX_SETTINGS}"
        ));
    }
    settings
}

/// `{ file = "…" }` or `{ env = "…" }`.
fn secret(entry: &Entry<'_>) -> Option<String> {
    let named = entry.section(|section| (section.get("file"), section.get("env")))?;
    let (named, found) = match named {
        (Some(file), None) => {
            let found = entry.sources().file(file.text()?);
            (file, found.map(|text| text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)))
        }
        (None, Some(variable)) => {
            let found = entry.sources().variable(variable.text()?);
            (variable, found)
        }
        _ => {
            entry.mistake("expected { file = \"…\" } or { env = \"…\" }");
            return None;
        }
    };
    found.map_err(|error| named.mistake(error)).ok()
}

/// Less than what every plugin may have.
fn own_limits(section: &Section<'_>, host: &HostLimits) -> PluginLimits {
    let (most_time, most_memory) = (host.runtime.call_time_limit, host.runtime.memory_limit);
    let call_time = section.get("call-time");
    let call_time: Option<Duration> = call_time.and_then(|entry| entry.duration(MIN_CALL_TIME..=most_time));
    let memory = section.get("memory").and_then(|entry| entry.size(MIN_MEMORY..=most_memory as u64));
    PluginLimits { call_time, memory: memory.and_then(|memory| usize::try_from(memory).ok()) }
}

/// Each pair of plugins that answer one method is compared pattern by pattern.
const MAX_PATTERNS: usize = 64;
/// Bytes of a plugin's settings, and of its environment: a guest that asks for all gets them in one piece.
const MAX_SETTINGS: usize = 256 << 10;
