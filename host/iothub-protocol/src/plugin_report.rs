//! What a twin says of the versions of plugins: `desired.latch.plugins.NAME` pins one, `reported.latch.plugins.NAME` is
//! the device's answer, `{"version", "status", "reason"}`.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::query::Parts;
use crate::time;

/// The key of the host, in desired and reported properties.
pub const HOST_KEY: &str = "latch";
/// What of the host's is about plugins.
pub const PLUGINS: &str = "plugins";

/// The pinned version runs, and does not fail more than it may.
pub const ACTIVE: &str = "active";
/// The pinned version runs, and too many of its calls fail.
pub const FAILING: &str = "failing";
/// The pinned version failed too often in a row; another one runs.
pub const QUARANTINED: &str = "quarantined";
/// The version would not take over; the one before runs.
pub const NOT_ACTIVATED: &str = "not-activated";
/// There is no such version, or no such plugin, on the device.
pub const UNKNOWN_VERSION: &str = "unknown-version";

/// Digits with which a version is named by its hash at the least, and always where it has no semantic version.
const HASH_DIGITS: usize = 12;

/// Characters of each text of a report that are read: a device may report anything.
const SHOWN: usize = 200;

/// The pins in a document of desired properties, by plugin.
pub fn pins(desired: &Map<String, Value>) -> Option<&Map<String, Value>> {
    desired.get(HOST_KEY)?.get(PLUGINS)?.as_object()
}

/// The desired patch that removes a plugin's pin.
pub fn unpin(plugin: &str) -> Map<String, Value> {
    pin(plugin, Value::Null)
}

/// The desired patch that pins a plugin to a version: a semantic version, or the first digits of a hash, 12 at least.
pub fn pin(plugin: &str, version: impl Into<Value>) -> Map<String, Value> {
    let plugins = Map::from_iter([(plugin.to_owned(), version.into())]);
    Map::from_iter([(
        HOST_KEY.to_owned(),
        Value::Object(Map::from_iter([(PLUGINS.to_owned(), Value::Object(plugins))])),
    )])
}

/// A twin's pin of one plugin, and the device's report of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PinState {
    pin: Option<String>,
    pinned_at: Option<DateTime<Utc>>,
    report: Option<Report>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    version: String,
    status: String,
    reason: String,
    at: Option<DateTime<Utc>>,
}

/// How a device stands to a pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is no answer to this pin yet; what there is instead.
    Unanswered(String),
    /// The device runs the version.
    Runs,
    /// The device does not run it, or not well; why.
    Failed(String),
}

impl PinState {
    /// Which parts of a twin [`PinState::of_twin`] looks at.
    pub const PARTS: Parts = Parts { tags: false, desired: true, reported: true, metadata: true, rest: false };

    /// From a twin as the service API shows it, metadata included.
    pub fn of_twin(twin: &Value, plugin: &str) -> PinState {
        let section = |name: &str| twin.get("properties").and_then(|properties| properties.get(name));
        let entry = |of: Option<&Value>| of?.get(HOST_KEY)?.get(PLUGINS)?.get(plugin).cloned();
        let stamp = |name: &str| {
            let entry = entry(section(name)?.get("$metadata"))?;
            time::parse(entry.get("$lastUpdated")?.as_str()?)
        };
        let text = |report: &Value, name: &str| {
            let text = report.get(name).and_then(Value::as_str).unwrap_or_default();
            text.chars().take(SHOWN).collect()
        };
        let report = entry(section("reported")).map(|report| Report {
            version: text(&report, "version"),
            status: text(&report, "status"),
            reason: text(&report, "reason"),
            at: stamp("reported"),
        });
        let pin = entry(section("desired")).and_then(|pin| pin.as_str().map(str::to_owned));
        PinState { pin, pinned_at: stamp("desired"), report }
    }

    /// How the device stands to the pin `wanted`.
    ///
    /// That it runs the version counts whenever it was reported, since a device that ran it before says nothing new; that
    /// it failed counts only if it was reported after the pin was set, since setting a pin gives a version another
    /// chance. Both times are the hub's.
    pub fn standing(&self, wanted: &str) -> Standing {
        match &self.pin {
            Some(pin) if pin == wanted => {}
            Some(pin) => return Standing::Unanswered(format!("the twin pins {pin} now")),
            None => return Standing::Unanswered("the twin pins no version now".to_owned()),
        }
        let Some(report) = &self.report else { return Standing::Unanswered("it has reported nothing".to_owned()) };
        let is_fresh = report.at.zip(self.pinned_at).is_some_and(|(reported, pinned)| reported >= pinned);
        let is_hash = wanted.len() >= HASH_DIGITS && wanted.bytes().all(|digit| digit.is_ascii_hexdigit());
        // A report does not repeat a hash, but a version with a semantic version is named by that.
        let is_of_version = report.version == wanted
            || is_hash && (is_fresh || report.version.len() >= HASH_DIGITS && wanted.starts_with(&report.version));
        let said = match (report.version.as_str(), report.reason.as_str()) {
            ("", reason) => format!("{}: {reason}", report.status),
            (version, reason) => format!("{version} {}: {reason}", report.status),
        };
        match report.status.as_str() {
            ACTIVE if is_of_version => Standing::Runs,
            FAILING if is_of_version && is_fresh => Standing::Failed(said),
            QUARANTINED | NOT_ACTIVATED | UNKNOWN_VERSION if is_fresh => Standing::Failed(said),
            _ => Standing::Unanswered(format!("it has last reported {said}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HASH: &str = "3f1c9a7be20433f1c9a7be204";

    fn standing(pin: Value, pinned_at: &str, report: Value, reported_at: &str, wanted: &str) -> Standing {
        let section = |entry: Value, at: &str| {
            let stamp = json!({"$lastUpdated": at});
            json!({"latch": {"plugins": {"door": entry}}, "$metadata": {"latch": {"plugins": {"door": stamp}}}})
        };
        let twin = json!({"deviceId": "d", "properties":
            {"desired": section(pin, pinned_at), "reported": section(report, reported_at)}});
        PinState::of_twin(&twin, "door").standing(wanted)
    }

    #[test]
    fn a_report_is_an_answer_to_a_pin_or_not_yet() {
        let (pinned, before, after) =
            ("2026-11-24T08:40:04.171Z", "2026-11-24T08:40:04.170Z", "2026-11-24T08:40:04.2Z");
        let failed = |said: &str| Standing::Failed(said.to_owned());
        let unanswered = |said: &str| Standing::Unanswered(said.to_owned());
        for (pin, version, status, reported_at, expected) in [
            ("2.0.0", "2.0.0", "active", after, Standing::Runs),
            ("2.0.0", "2.0.0", "active", before, Standing::Runs),
            ("2.0.0", "1.0.0", "active", before, unanswered("it has last reported 1.0.0 active: r")),
            ("2.0.0", "1.0.0", "active", after, unanswered("it has last reported 1.0.0 active: r")),
            ("2.0.0", "2.0.0", "failing", pinned, failed("2.0.0 failing: r")),
            ("2.0.0", "2.0.0", "failing", before, unanswered("it has last reported 2.0.0 failing: r")),
            ("2.0.0", "1.0.0", "failing", after, unanswered("it has last reported 1.0.0 failing: r")),
            ("2.0.0", "1.0.0", "quarantined", after, failed("1.0.0 quarantined: r")),
            ("2.0.0", "1.0.0", "quarantined", before, unanswered("it has last reported 1.0.0 quarantined: r")),
            ("2.0.0", "1.0.0", "unknown-version", after, failed("1.0.0 unknown-version: r")),
            ("2.0.0", "2.0.0", "not-activated", after, failed("2.0.0 not-activated: r")),
            ("2.0.0", "2.0.0", "odd", after, unanswered("it has last reported 2.0.0 odd: r")),
            (HASH, &HASH[..12], "active", before, Standing::Runs),
            (HASH, "2.0.0", "active", after, Standing::Runs),
            (HASH, "2.0.0", "active", before, unanswered("it has last reported 2.0.0 active: r")),
        ] {
            let report = json!({"version": version, "status": status, "reason": "r"});
            let found = standing(json!(pin), pinned, report, reported_at, pin);
            assert_eq!(found, expected, "{pin} {version} {status} {reported_at}");
        }
        let absent = json!({"status": "unknown-version", "reason": "no plugin door runs here"});
        let expected = failed("unknown-version: no plugin door runs here");
        assert_eq!(standing(json!("2.0.0"), pinned, absent, after, "2.0.0"), expected);
        let other = standing(json!("3.0.0"), pinned, json!({"version": "2.0.0", "status": "active"}), after, "2.0.0");
        assert_eq!(other, unanswered("the twin pins 3.0.0 now"));
        let bare =
            PinState::of_twin(&json!({"properties": {"desired": {"latch": {"plugins": {"door": "1"}}}}}), "door");
        assert_eq!(bare.standing("1"), unanswered("it has reported nothing"));
        assert_eq!(PinState::of_twin(&json!({}), "door").standing("1"), unanswered("the twin pins no version now"));
    }
}
