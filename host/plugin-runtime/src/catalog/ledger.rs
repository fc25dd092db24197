//! What is remembered of every plugin: the versions that were here, which were current, and what the operator decided.
//! Pure data and rules, with the form in which it is kept on disk.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::canary::CanaryPolicy;
use super::selector::{DeviceSelector, KeptSelector};
use crate::name::PluginName;
use crate::version::{PluginVersion, resolve_version};

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    plugins: BTreeMap<String, Record>,
}

/// Of one plugin.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Record {
    /// The last to arrive is last.
    pub(super) versions: Vec<Kept>,
    /// Hashes of the versions that were current, one after the other; the last one is.
    terms: Vec<String>,
    pub(super) canary: Option<KeptCanary>,
    pub(super) withdrawn: Option<Withdrawn>,
    /// The last one made is last, and is the one that counts.
    pub(super) pins: Vec<KeptPin>,
}

/// A version whose component is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    pub(super) hash: String,
    pub(super) semver: Option<String>,
    pub(super) label: String,
    arrived: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeptCanary {
    pub(super) hash: String,
    percent: u8,
    #[serde(flatten)]
    devices: KeptSelector,
    window_seconds: u64,
    max_failures: u8,
    /// Whether its window is over.
    pub(super) passed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Withdrawn {
    pub(super) hash: String,
    pub(super) label: String,
    pub(super) reason: String,
    at: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KeptPin {
    pub(super) hash: String,
    #[serde(flatten)]
    devices: KeptSelector,
}

impl Ledger {
    pub(super) fn get(&self, name: &str) -> Option<&Record> {
        self.plugins.get(name)
    }

    pub(super) fn record(&mut self, name: &PluginName) -> &mut Record {
        self.plugins.entry(name.to_string()).or_default()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.plugins.iter().map(|(name, record)| (name.as_str(), record))
    }

    /// Forget versions that are too many and not in use.
    pub(super) fn forget_old(&mut self, is_wanted: impl Fn(&str, &str) -> bool) {
        for (name, record) in &mut self.plugins {
            record.forget_old(|hash| is_wanted(name, hash));
        }
    }
}

impl Record {
    /// A version is here, and is the newest, whether or not it was here before.
    pub(super) fn arrived(&mut self, version: &PluginVersion, now: SystemTime) {
        let semver = version.semver().map(str::to_owned);
        let kept = Kept { hash: version.hash().into(), semver, label: version.label().into(), arrived: seconds(now) };
        self.versions.retain(|known| known.hash != kept.hash);
        self.versions.push(kept);
    }

    /// A version becomes current, which ends the trial of any other. Nothing if it is current already.
    pub(super) fn became_current(&mut self, hash: &str) {
        if self.current() == Some(hash) {
            return;
        }
        self.terms.push(hash.to_owned());
        (self.canary, self.withdrawn) = (None, None);
    }

    pub(super) fn current(&self) -> Option<&str> {
        self.terms.last().map(String::as_str)
    }

    /// The version that was current before the current one.
    pub(super) fn previous(&self) -> Option<&str> {
        self.terms.iter().nth_back(1).map(String::as_str)
    }

    /// The current version's time is over; the one before is current again.
    pub(super) fn went_back(&mut self) {
        if self.terms.len() > 1 {
            self.terms.pop();
        }
        (self.canary, self.withdrawn) = (None, None);
    }

    pub(super) fn find(&self, wanted: &str) -> Option<&Kept> {
        let newest_first = self.versions.iter().rev();
        let position = resolve_version(wanted, newest_first.map(|kept| (&*kept.hash, kept.semver.as_deref())))?;
        self.versions.iter().nth_back(position)
    }

    pub(super) fn begin_canary(&mut self, hash: &str, policy: &CanaryPolicy) {
        self.withdrawn = None;
        self.canary = Some(KeptCanary {
            hash: hash.to_owned(),
            percent: policy.percent,
            devices: KeptSelector::from(&policy.devices),
            window_seconds: policy.window.as_secs(),
            max_failures: policy.max_failures,
            passed: false,
        });
    }

    /// Take the canary from the devices that have it. Answers its label.
    pub(super) fn withdraw_canary(&mut self, reason: &str, now: SystemTime) -> Option<String> {
        let hash = self.canary.take()?.hash;
        let label = self.label(&hash);
        self.withdrawn = Some(Withdrawn { hash, label: label.clone(), reason: reason.to_owned(), at: seconds(now) });
        Some(label)
    }

    /// Pin devices to a version. A pin that was made with the same text is replaced.
    pub(super) fn pin(&mut self, hash: &str, devices: &DeviceSelector) {
        self.unpin(Some(devices.text()));
        self.pins.push(KeptPin { hash: hash.to_owned(), devices: KeptSelector::from(devices) });
    }

    /// Remove the pin that was made with this pattern or query, or all pins. Answers how many there were.
    pub(super) fn unpin(&mut self, made_with: Option<&str>) -> usize {
        let before = self.pins.len();
        self.pins.retain(|pin| made_with.is_some_and(|text| pin.devices.text() != text));
        before - self.pins.len()
    }

    pub(super) fn label(&self, hash: &str) -> String {
        let known = self.versions.iter().find(|kept| kept.hash == hash);
        known.map_or_else(|| hash.to_owned(), |kept| kept.label.clone())
    }

    /// Whether the operator decided that devices may run the version: canary or pinned.
    pub(super) fn is_ruled_in(&self, hash: &str) -> bool {
        self.canary.as_ref().is_some_and(|canary| canary.hash == hash) || self.pins.iter().any(|pin| pin.hash == hash)
    }

    fn forget_old(&mut self, is_wanted: impl Fn(&str) -> bool) {
        let unused = |record: &Record, hash: &str| {
            record.current() != Some(hash) && !record.is_ruled_in(hash) && !is_wanted(hash)
        };
        let count = self.versions.iter().filter(|kept| unused(self, &kept.hash)).count();
        let mut surplus = count.saturating_sub(KEPT);
        let mut versions = std::mem::take(&mut self.versions);
        versions.retain(|kept| {
            let goes = surplus > 0 && unused(self, &kept.hash);
            surplus -= usize::from(goes);
            !goes
        });
        self.versions = versions;
        self.terms.retain(|hash| self.versions.iter().any(|kept| kept.hash == *hash));
        self.terms.dedup();
        let too_many = self.terms.len().saturating_sub(KEPT);
        self.terms.drain(..too_many);
    }
}

impl Kept {
    pub(super) fn arrived(&self) -> SystemTime {
        time(self.arrived)
    }
}

impl KeptCanary {
    /// None if what is kept cannot be read as a rule.
    pub(super) fn policy(&self) -> Option<CanaryPolicy> {
        Some(CanaryPolicy {
            percent: self.percent,
            devices: self.devices.read()?,
            window: Duration::from_secs(self.window_seconds),
            max_failures: self.max_failures,
        })
    }
}

impl Withdrawn {
    pub(super) fn at(&self) -> SystemTime {
        time(self.at)
    }
}

impl KeptPin {
    pub(super) fn devices(&self) -> Option<DeviceSelector> {
        self.devices.read()
    }
}

fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Versions beyond those in use whose components are kept: a few weeks of daily releases, and at most a few hundred MiB of
/// the largest plugins.
pub(super) const KEPT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::DeviceGlob;

    fn with(versions: &[(&str, &str)]) -> Record {
        let kept = |&(hash, semver): &(&str, &str)| Kept {
            hash: hash.repeat(64),
            semver: Some(semver.to_owned()),
            label: semver.to_owned(),
            arrived: 0,
        };
        Record { versions: versions.iter().map(kept).collect(), ..Record::default() }
    }

    #[test]
    fn a_version_is_found_by_semver_or_by_hash() {
        let record = with(&[("a", "1.0.0"), ("b", "1.0.0"), ("c", "2.0.0")]);
        let found = |wanted: &str| record.find(wanted).map(|kept| kept.hash[..1].to_owned());
        assert_eq!(found("1.0.0").as_deref(), Some("b"), "the newest such");
        assert_eq!(found(&"a".repeat(64)).as_deref(), Some("a"));
        assert_eq!(found(&"a".repeat(12)).as_deref(), Some("a"));
        assert_eq!((found(&"a".repeat(11)), found("3.0.0"), found("")), (None, None, None));
    }

    #[test]
    fn going_back_walks_the_terms() {
        let mut record = with(&[("a", "1"), ("b", "2")]);
        for hash in ["a", "b", "b", "a"] {
            record.became_current(&hash.repeat(64));
        }
        let a = "a".repeat(64);
        assert_eq!((record.current(), record.previous().map(|hash| &hash[..1])), (Some(&*a), Some("b")));
        record.went_back();
        assert_eq!(record.previous(), Some(&*a));
        record.went_back();
        record.went_back();
        assert_eq!((record.current(), record.previous()), (Some(&*a), None));
    }

    #[test]
    fn old_versions_go_unless_they_are_in_use() {
        let names: Vec<String> = (0..30).map(|number| format!("{number:02}")).collect();
        let mut record = with(&names.iter().map(|name| (name.as_str(), name.as_str())).collect::<Vec<_>>());
        let hash = |number: usize| names[number].repeat(64);
        (0..30).for_each(|number| record.became_current(&hash(number)));
        record.pin(&hash(3), &DeviceSelector::all());
        record.begin_canary(&hash(4), &CanaryPolicy::default());
        record.forget_old(|wanted| wanted == hash(5));
        let labels: Vec<_> = record.versions.iter().map(|kept| kept.label.as_str()).collect();
        assert_eq!(&labels[..4], ["03", "04", "05", "13"]);
        assert_eq!((labels.len(), record.current()), (3 + KEPT + 1, Some(&*hash(29))));
        assert_eq!((record.terms.len(), record.previous()), (KEPT, Some(&*hash(28))));
    }

    #[test]
    fn a_pin_for_the_same_devices_is_replaced() {
        let mut record = with(&[("a", "1"), ("b", "2")]);
        let some = DeviceSelector::from(DeviceGlob::parse("door-1*").expect("a pattern"));
        record.pin("a", &DeviceSelector::all());
        record.pin("a", &some);
        record.pin("b", &DeviceSelector::all());
        assert_eq!(record.pins.iter().map(|pin| &*pin.hash).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((record.unpin(Some("door-1*")), record.unpin(None), record.pins.len()), (1, 1, 0));
    }
}
