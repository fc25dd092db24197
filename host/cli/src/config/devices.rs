//! `[devices]`: which devices there are, and how those connect that have a connection string.

use std::collections::btree_map::Entry as Slot;

use iothub_protocol::connection_string::DeviceConnectionString;
use iothub_protocol::id::DeviceId;

use super::Devices;
use super::document::{Entry, Section};
use super::pattern;

/// Takes the devices from one text of one kind.
type ReadSource = fn(&Entry<'_>, &mut Devices);

/// Read a table, or a list of tables.
pub(super) fn read(entry: &Entry<'_>) -> Devices {
    let (mut devices, mut anything_named) = (Devices::new(), false);
    for entry in entry.each() {
        let named = entry.section(|section| read_table(section, &mut devices));
        if named == Some(false) {
            entry.mistake("no device is named; give ids, pattern, file, folder or env");
        }
        anything_named |= named == Some(true);
    }
    if anything_named && devices.is_empty() && !entry.has_mistakes() {
        // A file that is being written anew must not take all devices with it.
        entry.mistake("no device is named in what is listed here; a host without devices has no such section");
    }
    devices
}

/// Answers whether anything stands there that names devices.
fn read_table(section: &Section<'_>, devices: &mut Devices) -> bool {
    let sources: [(&'static str, ReadSource); 5] =
        [("ids", id), ("pattern", pattern), ("file", file), ("folder", folder), ("env", variable)];
    let mut named = false;
    for (key, read) in sources {
        if let Some(entry) = section.get(key) {
            named = true;
            entry.each().iter().for_each(|entry| read(entry, devices));
        }
    }
    named
}

fn id(entry: &Entry<'_>, devices: &mut Devices) {
    let Some(text) = entry.text() else { return };
    match DeviceId::parse(text) {
        Ok(id) => add(devices, entry, id, None),
        Err(error) => entry.mistake(error.to_string()),
    }
}

fn pattern(entry: &Entry<'_>, devices: &mut Devices) {
    let Some(text) = entry.text() else { return };
    match pattern::expand(text, MAX_DEVICES) {
        Ok(ids) => ids.into_iter().for_each(|id| add(devices, entry, id, None)),
        Err(error) => entry.mistake(error),
    }
}

fn file(entry: &Entry<'_>, devices: &mut Devices) {
    let Some(name) = entry.text() else { return };
    match entry.sources().file(name) {
        Ok(text) => lines(entry, name, &text, devices),
        Err(error) => entry.mistake(error),
    }
}

fn folder(entry: &Entry<'_>, devices: &mut Devices) {
    let Some(name) = entry.text() else { return };
    match entry.sources().connection_files(name) {
        Ok(files) => files.iter().for_each(|(name, text)| lines(entry, name, text, devices)),
        Err(error) => entry.mistake(error),
    }
}

fn variable(entry: &Entry<'_>, devices: &mut Devices) {
    let Some(name) = entry.text() else { return };
    match entry.sources().variable(name) {
        Ok(text) => lines(entry, &format!("variable {name}"), &text, devices),
        Err(error) => entry.mistake(error),
    }
}

/// An id or a connection string on each line; empty lines and those that begin with `#` say nothing.
fn lines(entry: &Entry<'_>, source: &str, text: &str, devices: &mut Devices) {
    for (number, line) in numbered(text) {
        // An id may hold a `=`.
        let parsed = if line.contains("HostName=") || line.to_ascii_lowercase().contains("sharedaccess") {
            let connection = DeviceConnectionString::parse(line).map_err(|error| error.to_string());
            connection.map(|connection| (connection.device_id.clone(), Some(connection)))
        } else {
            DeviceId::parse(line).map(|id| (id, None)).map_err(|error| error.to_string())
        };
        match parsed {
            Ok((id, connection)) => add(devices, entry, id, connection),
            Err(error) => entry.mistake(format!("{source}:{number}: {error}")),
        }
    }
}

/// The lines that say something, with their numbers.
pub(super) fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(text.lines()).map(|(number, line)| (number, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// A device may be named several times, as by a pattern and by its connection string.
fn add(devices: &mut Devices, entry: &Entry<'_>, id: DeviceId, connection: Option<DeviceConnectionString>) {
    if devices.len() == MAX_DEVICES && !devices.contains_key(&id) {
        entry.mistake(format!("these are more than {MAX_DEVICES} devices, which one host does not run"));
        return;
    }
    match devices.entry(id) {
        Slot::Vacant(slot) => {
            slot.insert(connection);
        }
        Slot::Occupied(slot) => match (slot.get(), connection) {
            (_, None) => {}
            (None, connection) => *slot.into_mut() = connection,
            (Some(known), Some(connection)) => {
                if known.reveal() != connection.reveal() {
                    entry.mistake(format!("{} has two connection strings that differ; remove one", slot.key()));
                }
            }
        },
    }
}

/// As many actors as one process is built for.
pub(super) const MAX_DEVICES: usize = 100_000;
