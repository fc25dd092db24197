//! Maintenance windows: when devices can be begun.
//!
//! Devices of one zone open and close together, and a fleet of a million has few zones: what is worked out is worked out
//! for each zone, and whoever waits for one stands in its line, without a timer of its own. Windows are at times of day,
//! so that a clock that is set opens or closes them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::DeviceJobOutcome;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{MaintenanceWindow, PolicyOutcome, WindowState, WindowZone, ZoneTag};
use iothub_protocol::time;

use super::fresh::{Fresh, Turn};
use super::job::Job;
use super::outcome::policy_outcome;
use super::policy::fail;
use super::{BegunTarget, Engine, push};
use crate::occurrences::Pattern;

/// The name of a device's own zone, if it has one.
pub(super) type ZoneName = Option<Arc<str>>;
/// Which of a job's zones a device is in. There are as many as the IANA database has, at most.
pub(super) type Place = u16;

/// The windows of a job.
#[derive(Debug)]
pub(crate) struct Windows {
    rules: Vec<MaintenanceWindow>,
    zones: Vec<Zone>,
    by_name: HashMap<ZoneName, Place>,
    /// When any zone opens or closes; `None` if none does.
    next_change: Option<DateTime<Utc>>,
}

/// The devices whose windows open together.
#[derive(Debug)]
struct Zone {
    openings: Vec<Opening>,
    is_open: bool,
    /// Until when that is so; for ever if `None`.
    until: Option<DateTime<Utc>>,
    /// How long after the job's beginning it opened first.
    opened_after: TimeDelta,
    /// Those that have had a turn, and wait for the next opening.
    closed_out: VecDeque<Address>,
}

#[derive(Debug)]
struct Opening {
    pattern: Pattern,
    duration: TimeDelta,
}

/// Whether a job that begins at `start` and has so many seconds can begin devices by these rules, as far as that does
/// not depend on devices with zones of their own.
///
/// # Errors
/// Says what is wrong, for people.
pub(crate) fn check(rules: &[MaintenanceWindow], start: DateTime<Utc>, seconds: u32) -> Result<(), String> {
    for (number, rule) in rules.iter().enumerate() {
        let at = |text: String| format!("windows[{number}]: {text}");
        let default = matches!(&rule.time_zone, WindowZone::Tag(ZoneTag { default: Some(_), .. }));
        let name = (rule.tag().is_some() && !default).then_some("UTC");
        let opening = opening(rule, name).map_err(at)?;
        if opening.pattern.next_after(start - opening.duration).is_none() {
            return Err(at("it never opens".to_owned()));
        }
    }
    let Some(opens) = first_opening(rules, start) else { return Ok(()) };
    match opens < start + TimeDelta::seconds(seconds.into()) {
        true => Ok(()),
        false => Err(format!(
            "windows: the next one opens at {}, when the job's time is over: maxExecutionTimeInSeconds is {seconds}",
            time::format(opens)
        )),
    }
}

/// When the next window opens of a job all of whose devices are in one zone, if none is open.
pub(crate) fn first_opening(rules: &[MaintenanceWindow], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let state = state(rules, now, [None]).filter(|state| !state.is_open && zone_tag(rules).is_none());
    state.and_then(|state| state.opens_at)
}

/// How the windows of devices in zones of these names are; `None` if no device of them has any.
pub(crate) fn state(
    rules: &[MaintenanceWindow],
    now: DateTime<Utc>,
    zones: impl IntoIterator<Item = ZoneName>,
) -> Option<WindowState> {
    let mut windows = Windows::new(rules)?;
    // Devices whose zone is none have failed.
    let known = zones.into_iter().filter(|name| windows.zone(now, now, name.clone()).is_ok()).count();
    let is_open = windows.zones.iter().any(|zone| zone.is_open);
    let closes_at = windows.zones.iter().filter(|zone| zone.is_open).filter_map(|zone| zone.until).max();
    let opens_at = windows.zones.iter().filter_map(Zone::opens).min();
    (known > 0).then_some(WindowState { is_open, closes_at, opens_at })
}

impl Windows {
    /// `None` if there are no rules: devices can be begun at any time.
    pub(super) fn new(rules: &[MaintenanceWindow]) -> Option<Box<Windows>> {
        let windows = Windows { rules: rules.to_vec(), zones: Vec::new(), by_name: HashMap::new(), next_change: None };
        (!rules.is_empty()).then(|| Box::new(windows))
    }

    /// The place of the zone of a device that names its own like this, in a job that began at `begun`.
    ///
    /// # Errors
    /// There is no such zone, or it names none and has to; for people.
    pub(super) fn zone(&mut self, now: DateTime<Utc>, begun: DateTime<Utc>, name: ZoneName) -> Result<Place, String> {
        if let Some(place) = self.by_name.get(&name) {
            return Ok(*place);
        }
        let place = Place::try_from(self.zones.len()).map_err(|error| error.to_string())?;
        let openings = self.rules.iter().map(|rule| opening(rule, name.as_deref()));
        let mut zone = Zone {
            openings: openings.collect::<Result<_, _>>()?,
            is_open: false,
            until: None,
            opened_after: TimeDelta::zero(),
            closed_out: VecDeque::new(),
        };
        zone.look(begun);
        if let Some(opens) = zone.until.filter(|_| !zone.is_open) {
            zone.opened_after = opens - begun;
        }
        zone.look(now);
        self.next_change = self.next_change.into_iter().chain(zone.until).min();
        self.zones.push(zone);
        self.by_name.insert(name, place);
        Ok(place)
    }

    /// Open and close what is to be by now. Answers those whose wait is over.
    pub(super) fn look(&mut self, now: DateTime<Utc>) -> Vec<Address> {
        let mut opened = Vec::new();
        if self.next_change.is_none_or(|at| at > now) {
            return opened;
        }
        for zone in &mut self.zones {
            if zone.until.is_some_and(|until| until <= now) {
                zone.look(now);
            }
            if zone.is_open {
                opened.extend(zone.closed_out.drain(..));
            }
        }
        self.next_change = self.zones.iter().filter_map(|zone| zone.until).min();
        opened
    }

    /// Whether a device of that zone can be begun, as of the last look.
    pub(super) fn is_open(&self, place: Place) -> bool {
        self.zones.get(usize::from(place)).is_none_or(|zone| zone.is_open)
    }

    /// How long a device of that zone that has joined so long after the job's beginning had to wait for a window then.
    pub(super) fn opens_after(&self, place: Place, begun: DateTime<Utc>, late: TimeDelta) -> TimeDelta {
        let Some(zone) = self.zones.get(usize::from(place)) else { return TimeDelta::zero() };
        if late.is_zero() {
            return zone.opened_after;
        }
        let joined = begun + late;
        let opens = zone.openings.iter().filter_map(|opening| opening.pattern.next_after(joined - opening.duration));
        opens.min().map_or_else(TimeDelta::zero, |opens| (opens - joined).max(TimeDelta::zero()))
    }

    /// Let a device wait for the next opening.
    pub(super) fn close_out(&mut self, place: Place, device: Address) {
        if let Some(zone) = self.zones.get_mut(usize::from(place)) {
            zone.closed_out.push_back(device);
        }
    }

    /// When somebody's wait is over; `waits` tells whether others of a zone wait than those that were closed out.
    pub(super) fn deadline(&self, waits: impl Fn(Place) -> bool) -> Option<DateTime<Utc>> {
        let closed = (0..).zip(&self.zones).filter(|(_, zone)| !zone.is_open);
        let waited_for = closed.filter(|(place, zone)| !zone.closed_out.is_empty() || waits(*place));
        waited_for.filter_map(|(_, zone)| zone.until).min()
    }

    /// Nobody waits any more.
    pub(super) fn stop(&mut self) {
        self.zones.iter_mut().for_each(|zone| zone.closed_out.clear());
    }

    /// The clock was set: the next look is at all zones.
    pub(super) fn clock_set(&mut self) {
        self.zones.iter_mut().for_each(|zone| zone.until = Some(DateTime::<Utc>::MIN_UTC));
        self.next_change = Some(DateTime::<Utc>::MIN_UTC);
    }
}

impl Zone {
    /// When it opens next, as of the last look.
    fn opens(&self) -> Option<DateTime<Utc>> {
        let until = self.until?;
        let openings = self.openings.iter().filter_map(|opening| opening.pattern.next_from(until));
        if self.is_open { openings.min() } else { Some(until) }
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

/// The tag that names each device's zone, if there is one.
pub(super) fn zone_tag(rules: &[MaintenanceWindow]) -> Option<&TagPath> {
    rules.iter().find_map(MaintenanceWindow::tag)
}

impl Job {
    /// Open and close windows; those whose wait is over are ready.
    pub(super) fn look_at_windows(&mut self, now: DateTime<Utc>) {
        if let Some(windows) = &mut self.windows {
            self.ready.extend(windows.look(now));
        }
    }

    /// If the device that is ready to be next can be begun only in its window, and that is closed, it waits for that.
    /// Whether it is so.
    pub(super) fn closes_out_next(&mut self) -> bool {
        let (Some(windows), Some(device)) = (&mut self.windows, self.ready.front()) else { return false };
        let Some(target) = self.targets.get(device).filter(|target| target.step == 0) else { return false };
        if windows.is_open(target.zone) {
            return false;
        }
        windows.close_out(target.zone, device.clone());
        self.ready.pop_front();
        true
    }

    /// The place of a device's zone; 0 if there are no windows.
    ///
    /// # Errors
    /// As [`Windows::zone`].
    pub(super) fn zone(&mut self, now: DateTime<Utc>, name: ZoneName) -> Result<Place, String> {
        let begun = self.begun.unwrap_or(now);
        self.windows.as_mut().map_or(Ok(0), |windows| windows.zone(now, begun, name))
    }
}

impl Engine {
    /// Put the devices of a job in line that have not had a turn. Those whose time zone is none fail.
    pub(super) fn line_up(&mut self, now: DateTime<Utc>, id: &JobId, list: &Arc<Vec<BegunTarget>>) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if job.windows.is_none() {
            job.fresh = Fresh::new(Arc::clone(list));
            return;
        }
        let (mut places, mut lost) = (Vec::with_capacity(list.len()), Vec::new());
        for target in &**list {
            let place = job.zone(now, target.zone.clone());
            places.push(place.as_ref().ok().copied());
            if let Err(reason) = place {
                lost.push((target, reason));
            }
        }
        job.fresh = Fresh::by_zone(Arc::clone(list), &places);
        for (target, reason) in lost {
            if let Some(job) = self.jobs.get_mut(id) {
                job.take_in(target.clone(), TimeDelta::zero(), 0);
            }
            self.fail_without_zone(now, id, &target.device, reason);
        }
    }

    /// As [`Engine::line_up`], of devices that have joined the job, each so long after its beginning.
    pub(super) fn line_up_joined(&mut self, now: DateTime<Utc>, id: &JobId, joined: Vec<(BegunTarget, TimeDelta)>) {
        for (target, late) in joined {
            let Some(job) = self.jobs.get_mut(id) else { return };
            match job.zone(now, target.zone.clone()) {
                Ok(place) => job.fresh.join(Turn { target, late, place }),
                Err(reason) => {
                    let device = target.device.clone();
                    job.take_in(target, late, 0);
                    self.fail_without_zone(now, id, &device, reason);
                }
            }
        }
    }

    pub(super) fn fail_without_zone(&mut self, now: DateTime<Utc>, id: &JobId, device: &Address, reason: String) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let what = fail(now, job, device, policy_outcome(PolicyOutcome::NoTimeZone, reason));
        push(&mut self.changes, now, id, what);
    }
}

/// What a device has whose turn did not come while its window was open.
pub(super) fn missed() -> DeviceJobOutcome {
    let text = "the job's time was over before the device's turn came within its maintenance window";
    policy_outcome(PolicyOutcome::WindowMissed, text.to_owned())
}
