//! Which version of each plugin is current, and which others are loaded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use iothub_protocol::id::MethodName;

use super::canary::{CanaryPolicy, Judgement, KEEP, Trial, Watched};
use super::demand::Demand;
use super::ledger::{Ledger, Record};
use super::plans::{PluginPlan, PluginPlans};
use super::set::{CanaryRule, KnownVersion, PinRule, PluginSet, Rollout};
use super::view::{CanaryView, CatalogEntry, VersionView, WithdrawnView};
use crate::name::PluginName;
use crate::terms::{Placement, Terms};
use crate::version::{LoadError, PluginVersion};

/// Why a file is not what runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    /// SHA-256 of what was refused; empty if it could not be read.
    pub hash: String,
    pub at: SystemTime,
}

/// Everything that is known by name.
pub(super) struct Shelf {
    generation: u64,
    entries: BTreeMap<String, Entry>,
    plans: PluginPlans,
    ledger: Ledger,
    demand: Demand,
}

#[derive(Default)]
struct Entry {
    version: Option<Arc<PluginVersion>>,
    loaded_at: Option<SystemTime>,
    removed: bool,
    refusal: Option<Refusal>,
    /// Whether the file was refused for what another plugin answers, which may change.
    in_conflict: bool,
    /// Versions that are loaded beside the current one, by hash.
    others: BTreeMap<String, Arc<PluginVersion>>,
    /// Kept versions that could not be loaded, and why.
    failed: BTreeMap<String, Arc<str>>,
    /// Of the canary in the ledger.
    trial: Option<Trial>,
}

/// Two plugins that answer one method on some device.
#[derive(PartialEq)]
pub(super) struct Conflict {
    pub(super) plugin: PluginName,
    pub(super) other: PluginName,
    pub(super) method: MethodName,
}

/// What became of a version.
pub(super) struct Placed {
    /// The label of the version before.
    pub(super) from: Option<String>,
    pub(super) changed: bool,
    /// Plugins without a file that gave way to it.
    pub(super) replaced: Vec<PluginName>,
}

/// A canary that was just judged.
pub(super) struct Judged {
    pub(super) name: PluginName,
    pub(super) judgement: Judgement,
    pub(super) watched: Watched,
    pub(super) policy: CanaryPolicy,
}

impl Shelf {
    pub(super) fn new(plans: PluginPlans, ledger: Ledger, demand: Demand) -> Shelf {
        Shelf { generation: 0, entries: BTreeMap::new(), plans, ledger, demand }
    }

    pub(super) fn plans(&self) -> &PluginPlans {
        &self.plans
    }

    /// The terms on which versions of `name` are loaded.
    pub(super) fn terms(&self, name: &str) -> Terms {
        self.plans.get(name).map(|plan| plan.terms.clone()).unwrap_or_default()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What devices get from now on.
    pub(super) fn next_set(&mut self) -> PluginSet {
        self.generation += 1;
        let mut set = PluginSet { generation: self.generation, demand: self.demand.clone(), ..PluginSet::default() };
        for (name, entry) in &self.entries {
            let Some(version) = &entry.version else { continue };
            let Some(record) = self.ledger.get(name) else { continue };
            set.plugins.push(version.clone());
            set.rollouts.push(entry.rollout(version.name(), record, placement(&self.plans, name)));
        }
        set
    }

    pub(super) fn list(&self) -> Vec<CatalogEntry> {
        let none = Record::default();
        let entries = self.entries.iter().map(|(name, entry)| {
            let record = self.ledger.get(name).unwrap_or(&none);
            CatalogEntry {
                name: name.clone(),
                version: entry.version.clone(),
                loaded_at: entry.loaded_at,
                removed: entry.removed,
                refusal: entry.refusal.clone(),
                placement: placement(&self.plans, name).clone(),
                versions: entry.version_views(record),
                canary: entry.canary_view(record),
                withdrawn: record.withdrawn.as_ref().map(|withdrawn| WithdrawnView {
                    hash: withdrawn.hash.clone(),
                    label: withdrawn.label.clone(),
                    reason: withdrawn.reason.clone(),
                    at: withdrawn.at(),
                }),
            }
        });
        entries.collect()
    }

    pub(super) fn current(&self, name: &PluginName) -> Option<&Arc<PluginVersion>> {
        self.entries.get(name.as_str())?.version.as_ref()
    }

    pub(super) fn loaded(&self, name: &PluginName, hash: &str) -> Option<&Arc<PluginVersion>> {
        self.entries.get(name.as_str())?.loaded(hash)
    }

    /// Whether `version` could be current: nobody else answers its methods on the same device, nor would if a rule took
    /// effect. A plugin whose file is gone gives way.
    pub(super) fn check(&self, version: &PluginVersion) -> Result<(), LoadError> {
        let mut conflicts = self.conflicts_of(version).filter(|(entry, _)| !entry.removed);
        conflicts.next().map_or(Ok(()), |(_, conflict)| Err(conflict.into()))
    }

    /// Whether `version` could run beside what is current: as [`Shelf::check`], but nobody gives way.
    pub(super) fn check_beside(&self, version: &PluginVersion) -> Result<(), LoadError> {
        self.conflicts_of(version).next().map_or(Ok(()), |(_, conflict)| Err(conflict.into()))
    }

    /// Who else answers a method of `version` on the same device.
    fn conflicts_of(&self, version: &PluginVersion) -> impl Iterator<Item = (&Entry, Conflict)> {
        let others = self.in_force().filter(|(_, other)| other.name() != version.name());
        others.filter_map(|(entry, other)| Some((entry, Conflict::between(version, other, &self.plans)?)))
    }

    /// Plugins in the way of `version`, all of which have lost their files, are given up. Answers which.
    fn give_way(&mut self, version: &PluginVersion) -> Vec<PluginName> {
        let mut replaced: Vec<_> = self.conflicts_of(version).map(|(_, conflict)| conflict.other).collect();
        replaced.dedup();
        self.entries.retain(|name, _| !replaced.iter().any(|replaced| replaced.as_str() == name));
        replaced
    }

    /// Every version that devices may run by the operator's rules, or because it is current.
    fn in_force(&self) -> impl Iterator<Item = (&Entry, &Arc<PluginVersion>)> {
        self.entries.iter().flat_map(|(name, entry)| {
            let record = self.ledger.get(name);
            let ruled_in = move |hash: &str| record.is_some_and(|record| record.is_ruled_in(hash));
            let beside = entry.others.iter().filter(move |(hash, _)| ruled_in(hash)).map(|(_, version)| version);
            entry.version.iter().chain(beside).map(move |version| (entry, version))
        })
    }

    /// The loaded versions whose terms are others by `plans`, and whether each is in force.
    pub(super) fn outdated(&self, plans: &PluginPlans) -> Vec<(Arc<PluginVersion>, bool)> {
        let none = Terms::default();
        let loaded = self.entries.values().flat_map(|entry| entry.version.iter().chain(entry.others.values()));
        let outdated =
            loaded.filter(|version| version.terms() != terms(plans, version.name().as_str()).unwrap_or(&none));
        let in_force = |version: &PluginVersion| self.in_force().any(|(_, other)| other.is_same(version));
        outdated.map(|version| (version.clone(), in_force(version))).collect()
    }

    /// The pairs that could not run together by `plans`, if `renewed` stood for what is loaded of the same code.
    pub(super) fn conflicts(&self, plans: &PluginPlans, renewed: &[Arc<PluginVersion>]) -> Vec<Conflict> {
        let renewal = |version: &Arc<PluginVersion>| {
            let same_code =
                |other: &&Arc<PluginVersion>| other.name() == version.name() && other.hash() == version.hash();
            renewed.iter().find(same_code).unwrap_or(version).clone()
        };
        let versions: Vec<_> = self.in_force().map(|(_, version)| renewal(version)).collect();
        let pairs = versions.iter().enumerate();
        let pairs = pairs.flat_map(|(position, one)| versions[..position].iter().map(move |other| (one, other)));
        let mut conflicts: Vec<_> = pairs
            .filter(|(one, other)| one.name() != other.name())
            .filter_map(|(one, other)| Conflict::between(one, other, plans))
            .collect();
        conflicts.dedup();
        conflicts
    }

    /// Put `plans` in force, with what was loaded anew and what could not be. Answers the files that were refused and
    /// that may be taken now.
    pub(super) fn replan(
        &mut self,
        plans: PluginPlans,
        renewed: Vec<Arc<PluginVersion>>,
        lost: Vec<(Arc<PluginVersion>, Arc<str>)>,
        now: SystemTime,
    ) -> Vec<String> {
        let before = std::mem::replace(&mut self.plans, plans);
        let mut worth_a_look = Vec::new();
        for (name, entry) in &mut self.entries {
            let changed = terms(&before, name) != terms(&self.plans, name);
            if changed {
                // What did not load on the terms before may load now; and counting begins anew.
                entry.failed.clear();
                entry.trial = None;
                if let Some(canary) = self.ledger.canary_mut(name) {
                    (canary.watched, canary.passed) = (Watched::default(), false);
                }
            }
            if entry.refusal.is_some() && (changed || entry.in_conflict) {
                worth_a_look.push(name.clone());
            }
        }
        for version in renewed {
            if let Some(entry) = self.entries.get_mut(version.name().as_str()) {
                entry.renew(version, now);
            }
        }
        for (version, reason) in lost {
            if let Some(entry) = self.entries.get_mut(version.name().as_str()) {
                entry.others.remove(version.hash());
                entry.failed.insert(version.hash().to_owned(), reason);
            }
        }
        worth_a_look
    }

    /// Make `version` current. The same code on the same terms again changes nothing.
    pub(super) fn place(&mut self, version: Arc<PluginVersion>, now: SystemTime) -> Result<Placed, LoadError> {
        self.check(&version)?;
        let replaced = self.give_way(&version);
        let record = self.ledger.record(version.name());
        if record.current() != Some(version.hash()) || record.find(version.hash()).is_none() {
            record.arrived(&version, now);
        }
        record.became_current(version.hash());
        let entry = self.entries.entry(version.name().to_string()).or_default();
        entry.refusal = None;
        entry.in_conflict = false;
        entry.removed = false;
        let from = entry.version.as_ref().map(|before| before.label().to_owned());
        let changed = entry.version.as_ref().is_none_or(|before| !before.is_same(&version));
        if changed {
            entry.others.remove(version.hash());
            if let Some(before) = entry.version.replace(version) {
                entry.others.insert(before.hash().to_owned(), before);
            }
            entry.loaded_at = Some(now);
        }
        self.tidy();
        Ok(Placed { from, changed, replaced })
    }

    /// Put what was decided in force. It is on disk already.
    pub(super) fn install(&mut self, ledger: Ledger) {
        self.ledger = ledger;
        self.tidy();
    }

    /// A version beside the current one is loaded.
    pub(super) fn add(&mut self, version: Arc<PluginVersion>) {
        let Some(entry) = self.entries.get_mut(version.name().as_str()) else { return };
        entry.failed.remove(version.hash());
        if entry.loaded(version.hash()).is_none() {
            entry.others.insert(version.hash().to_owned(), version);
        }
    }

    pub(super) fn cannot_load(&mut self, name: &PluginName, hash: &str, reason: &str) {
        if let Some(entry) = self.entries.get_mut(name.as_str()) {
            entry.failed.insert(hash.to_owned(), Arc::from(reason));
        }
    }

    /// Kept versions that somebody needs and that are not loaded.
    pub(super) fn missing(&self) -> Vec<(PluginName, String)> {
        let ruled = self.ledger.iter().filter_map(|(name, record)| Some((PluginName::parse(name).ok()?, record)));
        let ruled = ruled.flat_map(|(name, record)| {
            let hashes = record.canary.iter().map(|canary| &canary.hash);
            hashes.chain(record.pins.iter().map(|pin| &pin.hash)).map(move |hash| (name.clone(), hash.clone()))
        });
        let wanted = self.demand.wanted().into_iter().map(|(name, hash)| (name, hash.to_string()));
        let mut missing: Vec<_> = ruled.chain(wanted).filter(|(name, hash)| self.is_missing(name, hash)).collect();
        missing.sort();
        missing.dedup();
        missing
    }

    fn is_missing(&self, name: &PluginName, hash: &str) -> bool {
        let Some(entry) = self.entries.get(name.as_str()).filter(|entry| entry.version.is_some()) else { return false };
        let kept = self.ledger.get(name.as_str()).is_some_and(|record| record.find(hash).is_some());
        kept && entry.loaded(hash).is_none() && !entry.failed.contains_key(hash)
    }

    /// Begin the trial of each canary that is loaded and has none yet.
    pub(super) fn begin_trials(&mut self, now: Instant) {
        for (name, entry) in &mut self.entries {
            let canary = self.ledger.get(name).and_then(|record| record.canary.as_ref());
            let Some((canary, version)) = canary.and_then(|canary| Some((canary, entry.loaded(&canary.hash)?))) else {
                continue;
            };
            let before = version.tally().counts();
            let (earlier, passed) = (canary.watched, canary.passed);
            entry.trial.get_or_insert(Trial { since: now, before, earlier, kept_at: now, passed });
        }
    }

    /// A trial that has begun is void.
    pub(super) fn end_trial(&mut self, name: &PluginName) {
        if let Some(entry) = self.entries.get_mut(name.as_str()) {
            entry.trial = None;
        }
    }

    /// Whether a canary is being watched.
    pub(super) fn on_trial(&self) -> bool {
        self.entries.values().any(|entry| entry.trial.as_ref().is_some_and(|trial| !trial.passed))
    }

    /// Judge every canary whose trial is open. Answers those that passed or failed.
    pub(super) fn judge(&self, now: Instant) -> Vec<Judged> {
        let judged = self.entries.values().filter_map(|entry| {
            let trial = entry.trial.as_ref().filter(|trial| !trial.passed)?;
            let name = entry.version.as_ref()?.name().clone();
            let canary = self.ledger.get(name.as_str())?.canary.as_ref()?;
            let (policy, version) = (canary.policy()?, entry.loaded(&canary.hash)?);
            let watched = trial.watched(now, version.tally().counts());
            let judgement = trial.judge(&policy, watched);
            Some(Judged { name, judgement, watched, policy })
        });
        judged.filter(|judged| judged.judgement != Judgement::Open).collect()
    }

    /// What was seen of the canaries on trial since it was last kept; of those for which that is some time ago, unless
    /// `all` are asked for. It counts as kept from now on.
    pub(super) fn take_unkept(&mut self, now: Instant, all: bool) -> Vec<(PluginName, Watched)> {
        let mut to_keep = Vec::new();
        for entry in self.entries.values_mut() {
            let Some(name) = entry.version.as_ref().map(|version| version.name().clone()) else { continue };
            let canary = self.ledger.get(name.as_str()).and_then(|record| record.canary.as_ref());
            let Some(canary) = canary.filter(|canary| !canary.passed) else { continue };
            let Some(counts) = entry.loaded(&canary.hash).map(|version| version.tally().counts()) else { continue };
            let Some(trial) = &mut entry.trial else { continue };
            let watched = trial.watched(now, counts);
            let is_due = all || now.saturating_duration_since(trial.kept_at) >= KEEP;
            if is_due && watched.counts() != canary.watched.counts() {
                trial.kept_at = now;
                to_keep.push((name, watched));
            }
        }
        to_keep
    }

    /// The canary of `name` did well.
    pub(super) fn passed(&mut self, name: &PluginName) {
        if let Some(trial) = self.entries.get_mut(name.as_str()).and_then(|entry| entry.trial.as_mut()) {
            trial.passed = true;
        }
    }

    /// The files that were refused because of another plugin.
    pub(super) fn in_conflict(&self) -> Vec<String> {
        let stems = self.entries.iter().filter(|(_, entry)| entry.in_conflict);
        stems.map(|(stem, _)| stem.clone()).collect()
    }

    /// Keep why a file was refused. Answers whether that is news.
    pub(super) fn refuse(&mut self, stem: &str, refusal: Refusal, in_conflict: bool) -> bool {
        let entry = self.entries.entry(stem.to_owned()).or_default();
        entry.removed = false;
        entry.in_conflict = in_conflict;
        let known = entry.refusal.as_ref();
        if known.is_some_and(|known| known.hash == refusal.hash && known.reason == refusal.reason) {
            return false;
        }
        entry.refusal = Some(refusal);
        true
    }

    /// A file is gone. Answers the label of the version that keeps running.
    pub(super) fn remove(&mut self, stem: &str) -> Option<String> {
        let entry = self.entries.get_mut(stem)?;
        let Some(version) = &entry.version else {
            self.entries.remove(stem);
            return None;
        };
        entry.removed = true;
        entry.refusal = None;
        entry.in_conflict = false;
        Some(version.label().to_owned())
    }

    /// Drop what nobody needs any more.
    fn tidy(&mut self) {
        let wanted = self.demand.wanted();
        let is_wanted =
            |name: &str, hash: &str| wanted.iter().any(|(other, known)| other.as_str() == name && &**known == hash);
        self.ledger.forget_old(is_wanted);
        for (name, entry) in &mut self.entries {
            let Some(record) = self.ledger.get(name) else { continue };
            entry.others.retain(|hash, _| record.is_ruled_in(hash) || is_wanted(name, hash));
            entry.failed.retain(|hash, _| record.find(hash).is_some());
            if record.canary.is_none() {
                entry.trial = None;
            }
        }
    }
}

impl Entry {
    fn loaded(&self, hash: &str) -> Option<&Arc<PluginVersion>> {
        self.version.as_ref().filter(|version| version.hash() == hash).or_else(|| self.others.get(hash))
    }

    /// Take the same code on other terms.
    fn renew(&mut self, version: Arc<PluginVersion>, now: SystemTime) {
        match &mut self.version {
            Some(current) if current.hash() == version.hash() => {
                *current = version;
                self.loaded_at = Some(now);
            }
            _ => {
                self.others.insert(version.hash().to_owned(), version);
            }
        }
    }

    fn rollout(&self, name: &PluginName, record: &Record, placement: &Placement) -> Rollout {
        let versions = record.versions.iter().rev().map(|kept| KnownVersion {
            hash: Arc::from(&*kept.hash),
            semver: kept.semver.as_deref().map(Arc::from),
            label: Arc::from(&*kept.label),
            version: self.loaded(&kept.hash).cloned(),
            failed: self.failed.get(&kept.hash).cloned(),
        });
        let canary = record.canary.as_ref().and_then(|canary| {
            let CanaryPolicy { percent, devices, .. } = canary.policy()?;
            Some(CanaryRule { hash: Arc::from(&*canary.hash), percent, devices })
        });
        let pins = record.pins.iter().rev();
        let pins = pins.filter_map(|pin| Some(PinRule { hash: Arc::from(&*pin.hash), devices: pin.devices()? }));
        Rollout {
            name: name.clone(),
            placement: placement.clone(),
            versions: versions.collect(),
            previous: record.previous().map(Arc::from),
            canary,
            pins: pins.collect(),
        }
    }

    fn version_views(&self, record: &Record) -> Vec<VersionView> {
        let pins_of = |hash: &str| {
            let pins = record.pins.iter().rev().filter(|pin| pin.hash == hash);
            pins.filter_map(|pin| Some(pin.devices()?.to_string())).collect()
        };
        let views = record.versions.iter().rev().map(|kept| VersionView {
            hash: kept.hash.clone(),
            semver: kept.semver.clone(),
            label: kept.label.clone(),
            arrived: kept.arrived(),
            is_current: record.current() == Some(&kept.hash),
            is_previous: record.previous() == Some(&kept.hash),
            pinned: pins_of(&kept.hash),
            counts: self.loaded(&kept.hash).map(|version| version.tally().counts()),
        });
        views.collect()
    }

    fn canary_view(&self, record: &Record) -> Option<CanaryView> {
        let (canary, trial) = (record.canary.as_ref()?, self.trial.as_ref()?);
        let counts = trial.watched(trial.since, self.loaded(&canary.hash)?.tally().counts()).counts();
        let (hash, label) = (canary.hash.clone(), record.label(&canary.hash));
        Some(CanaryView { hash, label, policy: canary.policy()?, passed: trial.passed, counts })
    }
}

impl From<Conflict> for LoadError {
    fn from(Conflict { plugin, other, method }: Conflict) -> LoadError {
        LoadError::Conflict { plugin, other, method }
    }
}

impl Conflict {
    fn between(version: &PluginVersion, other: &PluginVersion, plans: &PluginPlans) -> Option<Conflict> {
        let method = version.methods().iter().find(|method| other.methods().contains(method))?;
        let placement = |version: &PluginVersion| placement(plans, version.name().as_str());
        placement(version).overlaps(placement(other)).then(|| Conflict {
            plugin: version.name().clone(),
            other: other.name().clone(),
            method: method.clone(),
        })
    }
}

fn terms<'a>(plans: &'a PluginPlans, name: &str) -> Option<&'a Terms> {
    plans.get(name).map(|plan| &plan.terms).filter(|terms| **terms != Terms::default())
}

fn placement<'a>(plans: &'a PluginPlans, name: &str) -> &'a Placement {
    static EVERYWHERE: Placement = Placement::Everywhere;
    plans.get(name).map_or(&EVERYWHERE, |plan: &PluginPlan| &plan.placement)
}
