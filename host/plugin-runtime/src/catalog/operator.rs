//! What an operator does beyond a plain swap: canaries, rollbacks and pins. Each is written before it takes effect.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::MutexGuard;

use super::canary::{CanaryPolicy, Judgement};
use super::ledger::Ledger;
use super::selector::DeviceSelector;
use super::shelf::Judged;
use super::{Catalog, SwapReport, blocking, files, joined};
use crate::name::PluginName;
use crate::version::{LoadError, PluginVersion};

/// Why the versions that run stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    #[error("{0}")]
    Load(#[from] LoadError),
    #[error("no plugin {name} runs here")]
    UnknownPlugin { name: PluginName },
    #[error("no version {wanted} of {name} is kept here; there are {known}")]
    UnknownVersion { name: PluginName, wanted: String, known: String },
    #[error("{name} has no earlier version to go back to")]
    NoPrevious { name: PluginName },
    #[error("{name} has no canary")]
    NoCanary { name: PluginName },
    #[error("{label} is the current version of {name}; a canary is another one")]
    IsCurrent { name: PluginName, label: String },
    #[error("{name} is not pinned for these devices")]
    NoPin { name: PluginName },
    #[error("a canary goes to 1 to 100 percent of the devices, of whose calls 0 to 99 percent may fail")]
    Percent,
    #[error("the decision cannot be kept: {reason}")]
    Store { reason: String },
}

type Arriving<'a> = MutexGuard<'a, ()>;

impl Catalog {
    /// Put a version on trial: the devices of `policy` run it, the others what they ran. If its calls fail too often, it
    /// is withdrawn by itself; else it stays a canary until [`Catalog::promote`] or another version becomes current.
    ///
    /// # Errors
    /// Says why no device will run it.
    pub async fn canary(
        &self,
        name: &PluginName,
        wasm: Vec<u8>,
        policy: CanaryPolicy,
    ) -> Result<SwapReport, RolloutError> {
        check_policy(&policy)?;
        let name = name.clone();
        self.whole(move |catalog| async move {
            let arriving = catalog.inner.arriving.lock().await;
            let version = catalog.stage_whole(&arriving, &name, wasm).await?;
            catalog.begin_canary(&arriving, version, policy).await
        })
        .await
    }

    /// [`Catalog::canary`] with a version that is kept. `wanted` is as in [`Catalog::pin`].
    ///
    /// # Errors
    /// The same, and if there is no such version.
    pub async fn canary_of(
        &self,
        name: &PluginName,
        wanted: &str,
        policy: CanaryPolicy,
    ) -> Result<SwapReport, RolloutError> {
        check_policy(&policy)?;
        let (name, wanted) = (name.clone(), wanted.to_owned());
        self.whole(move |catalog| async move {
            let arriving = catalog.inner.arriving.lock().await;
            catalog.current_of(&name)?;
            let hash = catalog.find(&name, &wanted)?;
            let version = catalog.loaded_or_load(&name, &hash).await?;
            catalog.shelf().check(&version)?;
            catalog.begin_canary(&arriving, version, policy).await
        })
        .await
    }

    /// Check and keep a version that no device runs yet, for a rule to follow. Answers the label and the hash.
    ///
    /// # Errors
    /// Says why it is not kept.
    pub async fn stage(&self, name: &PluginName, wasm: Vec<u8>) -> Result<(String, String), RolloutError> {
        let name = name.clone();
        self.whole(move |catalog| async move {
            let arriving = catalog.inner.arriving.lock().await;
            let version = catalog.stage_whole(&arriving, &name, wasm).await?;
            Ok((version.label().to_owned(), version.hash().to_owned()))
        })
        .await
    }

    async fn stage_whole(
        &self,
        arriving: &Arriving<'_>,
        name: &PluginName,
        wasm: Vec<u8>,
    ) -> Result<Arc<PluginVersion>, RolloutError> {
        let current = self.current_of(name)?;
        let version = self.load(name, wasm.clone()).await?;
        if version.hash() == current.hash() {
            return Err(RolloutError::IsCurrent { name: name.clone(), label: version.label().to_owned() });
        }
        self.shelf().check(&version)?;
        self.keep(&version, wasm).await?;
        self.decide(arriving, |ledger| ledger.record(name).arrived(&version, SystemTime::now())).await?;
        Ok(version)
    }

    async fn begin_canary(
        &self,
        arriving: &Arriving<'_>,
        version: Arc<PluginVersion>,
        policy: CanaryPolicy,
    ) -> Result<SwapReport, RolloutError> {
        let name = version.name();
        let current = self.current_of(name)?;
        if version.hash() == current.hash() {
            return Err(RolloutError::IsCurrent { name: name.clone(), label: version.label().to_owned() });
        }
        self.decide(arriving, |ledger| ledger.record(name).begin_canary(version.hash(), &policy)).await?;
        let (percent, devices) = (policy.percent, policy.devices);
        tracing::info!(plugin = %name, version = version.label(), percent, %devices, "plugin version is a canary");
        let (name, from, to) = (name.clone(), Some(current.label().to_owned()), version.label().to_owned());
        {
            let mut shelf = self.shelf();
            shelf.add(version);
            // A second trial of the same version begins anew.
            shelf.end_trial(&name);
            shelf.begin_trials(Instant::now());
        }
        self.inner.demand.stir();
        Ok(SwapReport { name, from, to, generation: self.publish() })
    }

    /// Make the canary the current version.
    ///
    /// # Errors
    /// If there is none, or it cannot be put into the plugin directory.
    pub async fn promote(&self, name: &PluginName) -> Result<SwapReport, RolloutError> {
        let name = name.clone();
        self.whole(move |catalog| async move { catalog.promote_whole(&name).await }).await
    }

    async fn promote_whole(&self, name: &PluginName) -> Result<SwapReport, RolloutError> {
        let arriving = self.inner.arriving.lock().await;
        self.current_of(name)?;
        let canary = self.shelf().ledger().get(name.as_str()).and_then(|record| record.canary.clone());
        let canary = canary.ok_or_else(|| RolloutError::NoCanary { name: name.clone() })?;
        let version = self.loaded_or_load(name, &canary.hash).await?;
        self.put_into_directory(&version).await?;
        Ok(self.make_placed(&arriving, version).await?)
    }

    /// Withdraw the canary; without one, go back to the version that was current before.
    ///
    /// # Errors
    /// If there is neither, or the earlier version can no longer be loaded.
    pub async fn rollback(&self, name: &PluginName) -> Result<SwapReport, RolloutError> {
        let name = name.clone();
        self.whole(move |catalog| async move { catalog.rollback_whole(&name).await }).await
    }

    async fn rollback_whole(&self, name: &PluginName) -> Result<SwapReport, RolloutError> {
        let arriving = self.inner.arriving.lock().await;
        let current = self.current_of(name)?;
        if let Some(from) = self.withdraw(&arriving, name, "withdrawn by the operator").await? {
            let (from, to) = (Some(from), current.label().to_owned());
            return Ok(SwapReport { name: name.clone(), from, to, generation: self.publish() });
        }
        let previous = self.shelf().ledger().get(name.as_str()).and_then(|record| record.previous().map(str::to_owned));
        let previous = previous.ok_or_else(|| RolloutError::NoPrevious { name: name.clone() })?;
        let version = self.loaded_or_load(name, &previous).await?;
        self.put_into_directory(&version).await?;
        self.decide(&arriving, |ledger| ledger.record(name).went_back()).await?;
        Ok(self.make_placed(&arriving, version).await?)
    }

    /// Keep devices on a version, whatever is current; a pin in a device's twin is stronger. `wanted` is a semantic
    /// version, of which the newest counts, or a hash. Answers the label and the hash.
    ///
    /// # Errors
    /// If there is no such version, or it cannot be loaded.
    pub async fn pin(
        &self,
        name: &PluginName,
        wanted: &str,
        devices: &DeviceSelector,
    ) -> Result<(String, String), RolloutError> {
        let (name, wanted, devices) = (name.clone(), wanted.to_owned(), devices.clone());
        self.whole(move |catalog| async move { catalog.pin_whole(&name, &wanted, &devices).await }).await
    }

    async fn pin_whole(
        &self,
        name: &PluginName,
        wanted: &str,
        devices: &DeviceSelector,
    ) -> Result<(String, String), RolloutError> {
        let arriving = self.inner.arriving.lock().await;
        self.current_of(name)?;
        let hash = self.find(name, wanted)?;
        let version = self.loaded_or_load(name, &hash).await?;
        self.shelf().check(&version)?;
        self.decide(&arriving, |ledger| ledger.record(name).pin(&hash, devices)).await?;
        let label = version.label().to_owned();
        tracing::info!(plugin = %name, version = label, %devices, "plugin version is pinned");
        self.shelf().add(version);
        self.publish();
        Ok((label, hash))
    }

    /// Remove the pin that was made with this pattern or query; without one, all pins. Answers how many there were.
    ///
    /// # Errors
    /// If there was none.
    pub async fn unpin(&self, name: &PluginName, made_with: Option<&str>) -> Result<usize, RolloutError> {
        let (name, made_with) = (name.clone(), made_with.map(str::to_owned));
        self.whole(move |catalog| async move { catalog.unpin_whole(&name, made_with.as_deref()).await }).await
    }

    async fn unpin_whole(&self, name: &PluginName, made_with: Option<&str>) -> Result<usize, RolloutError> {
        let arriving = self.inner.arriving.lock().await;
        self.current_of(name)?;
        let removed = self.decide(&arriving, |ledger| ledger.record(name).unpin(made_with)).await?;
        if removed == 0 {
            return Err(RolloutError::NoPin { name: name.clone() });
        }
        self.publish();
        Ok(removed)
    }

    /// Judge the canaries, and withdraw those that fail.
    pub(super) async fn judge(&self, now: Instant) {
        let arriving = self.inner.arriving.lock().await;
        let judged = self.shelf().judge(now);
        for Judged { name, judgement, counts, policy } in judged {
            let kept = if judgement == Judgement::Passed {
                tracing::info!(plugin = %name, calls = counts.calls, failures = counts.failures, "canary is healthy");
                self.shelf().passed(&name);
                self.decide(&arriving, |ledger| {
                    if let Some(canary) = &mut ledger.record(&name).canary {
                        canary.passed = true;
                    }
                })
                .await
            } else {
                let (calls, failures) = (counts.calls, counts.failures);
                let reason = format!("{failures} of {calls} calls failed; {}% may", policy.max_failures);
                let withdrawn = self.withdraw(&arriving, &name, &reason).await;
                withdrawn.map(|_| {
                    self.publish();
                })
            };
            if let Err(error) = kept {
                tracing::error!(plugin = %name, %error, "what became of a canary could not be kept");
            }
        }
    }

    /// Load what somebody needs. Publishes if anything came of it.
    pub(super) async fn load_missing(&self) {
        let _arriving = self.inner.arriving.lock().await;
        let missing = self.shelf().missing();
        if missing.is_empty() {
            return;
        }
        for (name, hash) in missing {
            match self.loaded_or_load(&name, &hash).await {
                Ok(version) => self.shelf().add(version),
                Err(error) => {
                    tracing::error!(plugin = %name, hash, %error, "kept plugin version cannot be loaded");
                    self.shelf().cannot_load(&name, &hash, &error.to_string());
                }
            }
        }
        self.shelf().begin_trials(Instant::now());
        self.publish();
    }

    /// Once begun, work ends, even if whoever asked for it goes away.
    pub(super) async fn whole<T: Send + 'static, F>(&self, work: impl FnOnce(Catalog) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        joined(tokio::spawn(work(self.clone()))).await
    }

    async fn withdraw(
        &self,
        arriving: &Arriving<'_>,
        name: &PluginName,
        reason: &str,
    ) -> Result<Option<String>, RolloutError> {
        let withdraw = |ledger: &mut Ledger| ledger.record(name).withdraw_canary(reason, SystemTime::now());
        let withdrawn = self.decide(arriving, withdraw).await?;
        if let Some(version) = &withdrawn {
            tracing::warn!(plugin = %name, version, reason, "canary is withdrawn");
        }
        Ok(withdrawn)
    }

    /// For the next start, which takes as current what lies there.
    async fn put_into_directory(&self, version: &Arc<PluginVersion>) -> Result<(), LoadError> {
        self.shelf().check(version)?;
        let path = self.inner.directory.join(files::file_name(version.name().as_str()));
        let wasm = self.read_kept(version.name(), version.hash()).await?;
        blocking(move || files::write(&path, &wasm)).await.map_err(|error| file("written", &error))
    }

    /// Write what `change` makes of the ledger, then put it in force.
    async fn decide<T>(
        &self,
        _arriving: &Arriving<'_>,
        change: impl FnOnce(&mut Ledger) -> T,
    ) -> Result<T, RolloutError> {
        let mut ledger = self.shelf().ledger().clone();
        let decided = change(&mut ledger);
        let saved = self.save(&ledger).await;
        saved.map_err(|error| RolloutError::Store { reason: error.to_string() })?;
        self.shelf().install(ledger);
        Ok(decided)
    }

    fn current_of(&self, name: &PluginName) -> Result<Arc<PluginVersion>, RolloutError> {
        let current = self.shelf().current(name).cloned();
        current.ok_or_else(|| RolloutError::UnknownPlugin { name: name.clone() })
    }

    fn find(&self, name: &PluginName, wanted: &str) -> Result<String, RolloutError> {
        let shelf = self.shelf();
        let record = shelf.ledger().get(name.as_str());
        if let Some(kept) = record.and_then(|record| record.find(wanted)) {
            return Ok(kept.hash.clone());
        }
        let known: Vec<_> = record.iter().flat_map(|record| &record.versions).map(|kept| &*kept.label).collect();
        let (name, wanted, known) = (name.clone(), wanted.to_owned(), known.join(", "));
        Err(RolloutError::UnknownVersion { name, wanted, known })
    }

    async fn loaded_or_load(&self, name: &PluginName, hash: &str) -> Result<Arc<PluginVersion>, LoadError> {
        if let Some(version) = self.shelf().loaded(name, hash) {
            return Ok(version.clone());
        }
        let wasm = self.read_kept(name, hash).await?;
        self.load(name, wasm).await
    }

    pub(super) async fn read_kept(&self, name: &PluginName, hash: &str) -> Result<Vec<u8>, LoadError> {
        let (archive, name, hash) = (self.inner.archive.clone(), name.clone(), hash.to_owned());
        let read = blocking(move || archive.read(name.as_str(), &hash)).await;
        read.map_err(|error| file("read", &error))
    }

    /// Keep the component for rollbacks and pins.
    pub(super) async fn keep(&self, version: &Arc<PluginVersion>, wasm: Vec<u8>) -> Result<(), LoadError> {
        let (archive, version) = (self.inner.archive.clone(), version.clone());
        let kept = blocking(move || archive.keep(version.name().as_str(), version.hash(), &wasm)).await;
        kept.map_err(|error| file("kept", &error))
    }

    pub(super) async fn save(&self, ledger: &Ledger) -> std::io::Result<()> {
        let (archive, ledger) = (self.inner.archive.clone(), ledger.clone());
        blocking(move || archive.save(&ledger)).await
    }
}

fn check_policy(policy: &CanaryPolicy) -> Result<(), RolloutError> {
    if (1..=100).contains(&policy.percent) && policy.max_failures <= 99 { Ok(()) } else { Err(RolloutError::Percent) }
}

fn file(action: &'static str, error: &std::io::Error) -> LoadError {
    LoadError::File { action, reason: error.to_string() }
}
