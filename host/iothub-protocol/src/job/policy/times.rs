//! The rules of a policy that are about time: when devices can be begun, when the job ends, how long a device may take.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{MAX_RULES, range};
use crate::job::label::TagPath;
use crate::job::{MAX_MAX_EXECUTION, moment};
use crate::time;

/// Longest maintenance window, in seconds: a week.
pub const MAX_WINDOW: u32 = 7 * 24 * 3600;

/// When devices can be begun, and tried again. One that has come through its first step goes on after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MaintenanceWindow {
    /// When it opens: a pattern of cron, as in a schedule.
    pub cron: String,
    /// How long it is open, in seconds of real time, 1 to [`MAX_WINDOW`].
    pub duration_in_seconds: u32,
    /// Whose clock the pattern is of.
    #[serde(default)]
    pub time_zone: WindowZone,
}

/// Whose clock a window's pattern is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "timeZone is a zone such as \"Europe/Berlin\", or an object with tag and default")]
pub enum WindowZone {
    /// One for all devices: a name of the IANA database.
    Zone(String),
    /// Each device's own.
    Tag(ZoneTag),
}

/// The tag that names a device's time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZoneTag {
    pub tag: TagPath,
    /// The zone of devices without the tag; they fail if it is absent. A name that is no zone fails in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

/// When the job ends, beside the time that it may take at most. Exactly one of the two times is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndRule {
    /// A time of day, to the millisecond.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    pub at: Option<DateTime<Utc>>,
    /// Seconds from when the job began, 1 to less than it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_in_seconds: Option<u32>,
    #[serde(default)]
    pub then: EndThen,
}

/// What is done then. The names are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndThen {
    /// Nothing new begins; devices that have begun go on to their ends, their retries included.
    #[default]
    Stop,
    /// Only answers and reports that are out are waited for.
    Cancel,
    /// Nothing is waited for.
    Force,
}

/// How the windows of a job are at a moment, those of all its devices together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowState {
    /// Whether that of any device is open.
    pub is_open: bool,
    /// When the last of those closes that are.
    pub closes_at: Option<DateTime<Utc>>,
    /// When the next one opens of those that are not, or of those that are, again; `None` if none does.
    pub opens_at: Option<DateTime<Utc>>,
}

impl WindowState {
    /// `latch.progress.window`.
    pub(in crate::job) fn to_json(self) -> Value {
        json!({
            "open": self.is_open,
            "closesAt": self.closes_at.map(time::format),
            "opensAt": self.opens_at.map(time::format),
        })
    }
}

impl Default for WindowZone {
    fn default() -> WindowZone {
        WindowZone::Zone("UTC".to_owned())
    }
}

impl MaintenanceWindow {
    pub(super) fn check(&self) -> Result<(), String> {
        range("durationInSeconds", self.duration_in_seconds, 1, MAX_WINDOW)
    }

    /// The tag that names each device's zone, if it has its own.
    pub fn tag(&self) -> Option<&TagPath> {
        match &self.time_zone {
            WindowZone::Zone(_) => None,
            WindowZone::Tag(zone) => Some(&zone.tag),
        }
    }
}

impl EndThen {
    const ALL: [EndThen; 3] = [EndThen::Stop, EndThen::Cancel, EndThen::Force];

    pub fn name(self) -> &'static str {
        match self {
            EndThen::Stop => "stop",
            EndThen::Cancel => "cancel",
            EndThen::Force => "force",
        }
    }

    pub fn by_name(name: &str) -> Option<EndThen> {
        EndThen::ALL.into_iter().find(|then| then.name() == name)
    }
}

impl EndRule {
    pub(super) fn check(&self) -> Result<(), String> {
        match (self.at, self.after_in_seconds) {
            (Some(_), None) => Ok(()),
            (None, Some(seconds)) => range("afterInSeconds", seconds, 1, MAX_MAX_EXECUTION - 1),
            _ => Err("at or afterInSeconds must be there, and not both".to_owned()),
        }
    }
}

/// A job's windows: all tags are the same, so that a device has one zone.
pub(super) fn check_windows(windows: &[MaintenanceWindow]) -> Result<(), String> {
    if windows.len() > MAX_RULES {
        return Err(format!("windows has more than {MAX_RULES} of them"));
    }
    for (number, window) in windows.iter().enumerate() {
        window.check().map_err(|text| format!("windows[{number}].{text}"))?;
    }
    let mut tags = windows.iter().filter_map(MaintenanceWindow::tag);
    match tags.next().is_some_and(|first| tags.any(|other| other != first)) {
        true => Err("windows can name one tag only: a device has one time zone".to_owned()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_a_zone_for_all_or_one_for_each_device() {
        let read = |value: &Value| MaintenanceWindow::deserialize(value).map_err(|error| error.to_string());
        let window = read(&json!({"cron": "0 2 * * *", "durationInSeconds": 60})).expect("a window");
        assert_eq!((window.time_zone.clone(), window.tag()), (WindowZone::Zone("UTC".to_owned()), None));
        let tag = json!({"cron": "0 2 * * *", "durationInSeconds": 60, "timeZone": {"tag": "tags.zone"}});
        let tagged = read(&tag).expect("a window");
        assert_eq!((tagged.tag().map(ToString::to_string).as_deref(), json!(tagged)), (Some("tags.zone"), tag));
        for zone in [json!({"tag": "zone"}), json!({"tag": "tags.zone", "else": "UTC"}), json!(1)] {
            let wrong = json!({"cron": "0 2 * * *", "durationInSeconds": 60, "timeZone": zone});
            assert!(read(&wrong).expect_err("no zone").contains("timeZone is a zone such as"), "{wrong}");
        }
        let other = MaintenanceWindow {
            time_zone: WindowZone::Tag(ZoneTag { tag: TagPath::parse("tags.z").expect("a tag"), default: None }),
            ..window.clone()
        };
        assert_eq!(check_windows(&[window.clone(), tagged.clone(), tagged.clone()]), Ok(()));
        assert!(check_windows(&[other, tagged]).is_err());
        assert!(check_windows(&[MaintenanceWindow { duration_in_seconds: 0, ..window }]).is_err());
    }

    #[test]
    fn an_end_is_at_a_time_of_day_or_so_long_after_the_beginning() {
        let read = |value: Value| EndRule::deserialize(&value).map_err(|error| error.to_string())?.check();
        for right in [json!({"at": "2026-12-24T18:00:00Z"}), json!({"afterInSeconds": 60, "then": "force"})] {
            assert_eq!(read(right.clone()), Ok(()), "{right}");
        }
        for wrong in [
            json!({}),
            json!({"at": "2026-12-24T18:00:00Z", "afterInSeconds": 60}),
            json!({"afterInSeconds": 0}),
            json!({"at": "tomorrow"}),
            json!({"afterInSeconds": 60, "then": "wait"}),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
