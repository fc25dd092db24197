//! Maintenance windows: when devices can be begun.
//!
//! Devices of one zone open and close together, and a fleet of a million has few zones: what is worked out is worked out
//! for each zone, and whoever waits for one stands in its line, without a timer of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{MaintenanceWindow, WindowZone};

use crate::occurrences::Pattern;

/// The name of a device's own zone, if it has one.
pub(super) type ZoneName = Option<Arc<str>>;

#[derive(Debug)]
pub(super) struct Windows {
    rules: Vec<MaintenanceWindow>,
    zones: Vec<Zone>,
    by_name: HashMap<ZoneName, usize>,
}

/// The devices whose windows open together.
#[derive(Debug)]
struct Zone {
    name: ZoneName,
    openings: Vec<Opening>,
    is_open: bool,
    /// Until when that is so; for ever if `None`.
    until: Option<DateTime<Utc>>,
    /// Those that wait for the next opening.
    closed_out: VecDeque<Address>,
}

#[derive(Debug)]
struct Opening {
    pattern: Pattern,
    duration: TimeDelta,
}

/// What is wrong with rules that cannot be read, for people.
pub(crate) fn check(rules: &[MaintenanceWindow]) -> Result<(), String> {
    rules.iter().enumerate().try_for_each(|(number, rule)| {
        let zone = match &rule.time_zone {
            WindowZone::Zone(zone) => zone,
            WindowZone::Tag(zone) => zone.default.as_deref().unwrap_or("UTC"),
        };
        Pattern::parse(&rule.cron, zone).map(drop).map_err(|text| format!("windows[{number}]: {text}"))
    })
}

impl Windows {
    /// `None` if there are no rules: devices can be begun at any time.
    pub(super) fn new(rules: &[MaintenanceWindow]) -> Option<Box<Windows>> {
        let windows = Windows { rules: rules.to_vec(), zones: Vec::new(), by_name: HashMap::new() };
        (!rules.is_empty()).then(|| Box::new(windows))
    }

    /// The tag that names each device's zone, if there is one.
    pub(super) fn tag(&self) -> Option<&TagPath> {
        self.rules.iter().find_map(MaintenanceWindow::tag)
    }

    /// The place of the zone of a device that names its own like this.
    ///
    /// # Errors
    /// There is no such zone, or it names none and has to; for people.
    pub(super) fn zone(&mut self, now: DateTime<Utc>, name: ZoneName) -> Result<usize, String> {
        if let Some(place) = self.by_name.get(&name) {
            return Ok(*place);
        }
        let openings = self.rules.iter().map(|rule| opening(rule, name.as_deref())).collect::<Result<_, _>>()?;
        let mut zone = Zone { name: name.clone(), openings, is_open: false, until: None, closed_out: VecDeque::new() };
        zone.look(now);
        self.zones.push(zone);
        let place = self.zones.len() - 1;
        self.by_name.insert(name, place);
        Ok(place)
    }

    /// Whether a device of that zone can be begun.
    pub(super) fn is_open(&mut self, now: DateTime<Utc>, zone: usize) -> bool {
        self.zones.get_mut(zone).is_none_or(|zone| zone.is_open_at(now))
    }

    /// Let a device wait for the next opening.
    pub(super) fn close_out(&mut self, zone: usize, device: Address) {
        if let Some(zone) = self.zones.get_mut(zone) {
            zone.closed_out.push_back(device);
        }
    }

    /// When somebody's wait is over.
    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        let waited_for = self.zones.iter().filter(|zone| !zone.closed_out.is_empty());
        waited_for.filter_map(|zone| zone.until).min()
    }

    /// Those whose wait is over.
    pub(super) fn opened(&mut self, now: DateTime<Utc>) -> Vec<Address> {
        let waited_for = self.zones.iter_mut().filter(|zone| !zone.closed_out.is_empty());
        let opened = waited_for.filter_map(|zone| zone.is_open_at(now).then(|| std::mem::take(&mut zone.closed_out)));
        opened.flatten().collect()
    }

    /// The names of the zones that were not open for a moment of that time.
    pub(super) fn never_open(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<ZoneName> {
        let never = self.zones.iter().filter(|zone| !zone.openings.iter().any(|opening| opening.is_within(from, to)));
        never.map(|zone| zone.name.clone()).collect()
    }

    /// Nobody waits any more.
    pub(super) fn stop(&mut self) {
        self.zones.iter_mut().for_each(|zone| zone.closed_out.clear());
    }

    /// The clock was set, and this is the time now: windows are at times of day.
    pub(super) fn clock_set(&mut self, now: DateTime<Utc>) {
        self.zones.iter_mut().for_each(|zone| zone.look(now));
    }
}

impl Zone {
    fn is_open_at(&mut self, now: DateTime<Utc>) -> bool {
        if self.until.is_some_and(|until| until <= now) {
            self.look(now);
        }
        self.is_open
    }

    fn look(&mut self, now: DateTime<Utc>) {
        // Of each pattern the first opening that is not over.
        let openings = self.openings.iter().filter_map(|opening| {
            let opens = opening.pattern.next_after(now - opening.duration)?;
            Some((opens, opens + opening.duration))
        });
        let openings: Vec<_> = openings.collect();
        let open_until = openings.iter().filter(|(opens, _)| *opens <= now).map(|(_, closes)| *closes).max();
        self.is_open = open_until.is_some();
        self.until = open_until.or_else(|| openings.iter().map(|(opens, _)| *opens).min());
    }
}

impl Opening {
    fn is_within(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> bool {
        self.pattern.next_after(from - self.duration).is_some_and(|opens| opens < to)
    }
}

/// When a rule's window opens for a device that names its zone like this.
fn opening(rule: &MaintenanceWindow, name: Option<&str>) -> Result<Opening, String> {
    let zone = match &rule.time_zone {
        WindowZone::Zone(zone) => zone,
        WindowZone::Tag(zone) => match (name, &zone.default) {
            (Some(name), _) => name,
            (None, Some(default)) => default,
            (None, None) => return Err(format!("the device has no {}, which would name its time zone", zone.tag)),
        },
    };
    let pattern = Pattern::parse(&rule.cron, zone)?;
    Ok(Opening { pattern, duration: TimeDelta::seconds(rule.duration_in_seconds.into()) })
}
