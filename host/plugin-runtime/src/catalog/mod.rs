//! The plugins of a directory, kept current.
//!
//! [`shelf`] decides what is current, [`ledger`] what is remembered, [`canary`] when a version on trial has failed; they
//! know no files and no clock. [`settling`] decides when a file that changed is worth a look; it reads no clock.
//! [`files`] and [`archive`] touch the disk. [`watcher`], [`operator`], [`plans`] and this module drive
//! them.

mod archive;
mod canary;
mod demand;
mod files;
mod glob;
mod ledger;
mod operator;
mod plans;
mod selector;
mod set;
mod settling;
mod shelf;
mod view;
mod watcher;

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{MutexGuard, watch};
use tokio::task::JoinHandle;

use crate::name::PluginName;
use crate::runtime::Runtime;
use crate::terms::Terms;
use crate::version::{self, LoadError, PluginSource, PluginVersion};
use archive::Archive;
use files::Listing;
use shelf::Shelf;

pub use canary::CanaryPolicy;
pub use demand::{Demand, Lease};
pub use glob::{DeviceGlob, DeviceGlobError};
pub use operator::RolloutError;
pub use plans::{PlanError, PluginPlan, PluginPlans};
pub use selector::{DeviceSelector, DeviceSelectorError, MAX_LISTED};
pub use set::{CanaryRule, KnownVersion, PinRule, PluginSet, Rollout};
pub use shelf::Refusal;
pub use view::{CanaryView, CatalogEntry, VersionView, WithdrawnView};

/// The plugins of one directory. Every `*.wasm` directly in it is a plugin, named by its file; sub-folders and hidden
/// files are not looked at. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    runtime: Runtime,
    archive: Arc<Archive>,
    demand: Demand,
    shelf: Mutex<Shelf>,
    published: watch::Sender<Arc<PluginSet>>,
    /// Held from reading a new version to publishing it, so that versions arrive one after the other.
    arriving: tokio::sync::Mutex<()>,
    /// The directory as [`Catalog::open`] found it, where watching begins.
    first_listing: Listing,
}

/// Why there is no catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    #[error("the plugin directory {} cannot be read: {reason}", path.display())]
    Directory { path: PathBuf, reason: String },
    #[error("the folder of plugin versions {} cannot be used: {reason}", path.display())]
    Versions { path: PathBuf, reason: String },
}

/// What a swap did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapReport {
    pub name: PluginName,
    /// The label of the version before; `None` if the plugin is new.
    pub from: Option<String>,
    /// The label of the version now. Equal to `from` where the bytes were the same, and then nothing was published.
    pub to: String,
    /// Of the set that has the version.
    pub generation: u64,
}

impl Catalog {
    /// Load every plugin of `directory`. A file that cannot be loaded is refused, which the log and [`Catalog::list`]
    /// say; the rest is loaded. The folder `versions` belongs to the catalog, which keeps earlier versions in it, and what
    /// the operator decided.
    ///
    /// # Errors
    /// If there is no such directory, or one of the two cannot be used.
    pub async fn open(directory: &Path, versions: &Path, runtime: Runtime) -> Result<Catalog, CatalogError> {
        Catalog::open_with(directory, versions, runtime, PluginPlans::new()).await
    }

    /// [`Catalog::open`] with plans for some of the plugins.
    ///
    /// # Errors
    /// The same.
    pub async fn open_with(
        directory: &Path,
        versions: &Path,
        runtime: Runtime,
        plans: PluginPlans,
    ) -> Result<Catalog, CatalogError> {
        let path = directory.to_owned();
        let listing = blocking(move || files::list(&path)).await;
        let first_listing = listing
            .map_err(|error| CatalogError::Directory { path: directory.to_owned(), reason: error.to_string() })?;
        let path = versions.to_owned();
        let kept = blocking(move || Archive::open(path)).await;
        let (archive, ledger) =
            kept.map_err(|error| CatalogError::Versions { path: versions.to_owned(), reason: error.to_string() })?;
        let demand = Demand::default();
        let inner = Inner {
            directory: directory.to_owned(),
            runtime,
            archive: Arc::new(archive),
            demand: demand.clone(),
            shelf: Mutex::new(Shelf::new(plans, ledger, demand)),
            published: watch::Sender::new(Arc::default()),
            arriving: tokio::sync::Mutex::new(()),
            first_listing,
        };
        let catalog = Catalog { inner: Arc::new(inner) };
        for stem in catalog.inner.first_listing.keys() {
            let arriving = catalog.inner.arriving.lock().await;
            let (wasm, _) = catalog.read(stem).await;
            catalog.arrived(&arriving, stem, wasm).await;
        }
        catalog.load_missing().await;
        Ok(catalog)
    }

    /// The current plugins, and every later set of them.
    pub fn subscribe(&self) -> watch::Receiver<Arc<PluginSet>> {
        self.inner.published.subscribe()
    }

    /// The current plugins.
    pub fn current(&self) -> Arc<PluginSet> {
        self.inner.published.borrow().clone()
    }

    /// What runs and what was refused, by name.
    pub fn list(&self) -> Vec<CatalogEntry> {
        self.shelf().list()
    }

    /// Make `wasm` the current version of `name`, and keep it in the directory for the next start. That ends the trial of
    /// a canary. Whoever follows
    /// [`Catalog::subscribe`] takes it from there. Once begun it ends, even if the future is dropped.
    ///
    /// # Errors
    /// Says why the version that was current stays so.
    pub async fn swap(&self, name: &PluginName, wasm: Vec<u8>) -> Result<SwapReport, LoadError> {
        let (catalog, name) = (self.clone(), name.clone());
        // Given up half-way, it could leave a file in the making to the next swap.
        joined(tokio::spawn(async move { catalog.swap_whole(&name, wasm).await })).await
    }

    async fn swap_whole(&self, name: &PluginName, wasm: Vec<u8>) -> Result<SwapReport, LoadError> {
        let path = self.inner.directory.join(files::file_name(name.as_str()));
        let arriving = self.inner.arriving.lock().await;
        let version = self.load(name, wasm.clone()).await?;
        self.shelf().check(&version)?;
        self.keep(&version, wasm.clone()).await?;
        let written = blocking(move || files::write(&path, &wasm)).await;
        written.map_err(|error| LoadError::File { action: "written", reason: error.to_string() })?;
        self.make_placed(&arriving, version).await
    }

    /// A file was read under `stem`: take it, or refuse it. It was read under the lock that is held, so that it is no
    /// older than what a swap has written meanwhile.
    async fn arrived(&self, arriving: &MutexGuard<'_, ()>, stem: &str, wasm: Result<Vec<u8>, LoadError>) {
        let hash = wasm.as_ref().map_or_else(|_| String::new(), |wasm| version::hash(wasm));
        if let Err(error) = self.take(arriving, stem, wasm).await {
            let is_conflict = matches!(error, LoadError::Conflict { .. });
            let reason = error.to_string();
            let refusal = Refusal { reason: reason.clone(), hash, at: SystemTime::now() };
            if self.shelf().refuse(stem, refusal, is_conflict) {
                tracing::warn!(plugin = stem, reason, "plugin file refused");
            }
        }
    }

    async fn take(
        &self,
        arriving: &MutexGuard<'_, ()>,
        stem: &str,
        wasm: Result<Vec<u8>, LoadError>,
    ) -> Result<SwapReport, LoadError> {
        let name = PluginName::parse(stem).map_err(|reason| LoadError::Name { reason })?;
        let wasm = wasm?;
        let version = self.load(&name, wasm.clone()).await?;
        self.shelf().check(&version)?;
        self.keep(&version, wasm).await?;
        self.make_placed(arriving, version).await
    }

    async fn load(&self, name: &PluginName, wasm: Vec<u8>) -> Result<Arc<PluginVersion>, LoadError> {
        let terms = self.shelf().terms(name.as_str());
        self.load_on(name, wasm, terms).await
    }

    async fn load_on(&self, name: &PluginName, wasm: Vec<u8>, terms: Terms) -> Result<Arc<PluginVersion>, LoadError> {
        let source = PluginSource { name: name.clone(), wasm, terms };
        let runtime = self.inner.runtime.clone();
        // A component that a compiler cannot bear must not take the directory's watcher with it.
        let load = move || panic::catch_unwind(AssertUnwindSafe(|| runtime.load(source)));
        let crash = || LoadError::Compile { reason: "the compiler panicked, see the log".to_owned() };
        blocking(load).await.unwrap_or_else(|_| Err(crash()))
    }

    /// Make current what is kept already.
    async fn make_placed(
        &self,
        _arriving: &MutexGuard<'_, ()>,
        version: Arc<PluginVersion>,
    ) -> Result<SwapReport, LoadError> {
        let (name, to) = (version.name().clone(), version.label().to_owned());
        let (placed, ledger) = {
            let mut shelf = self.shelf();
            let before = shelf.ledger().clone();
            let placed = shelf.place(version, SystemTime::now())?;
            (placed, Some(shelf.ledger().clone()).filter(|ledger| *ledger != before))
        };
        let mut generation = self.current().generation;
        if placed.changed {
            generation = self.publish();
            let from = placed.from.as_deref().unwrap_or("none");
            tracing::info!(plugin = %name, from, to, generation, "plugin version is current");
        }
        // The directory says what is current, so losing this costs no more than the memory of it.
        if let Some(ledger) = ledger
            && let Err(error) = self.save(&ledger).await
        {
            tracing::error!(plugin = %name, %error, "the history of plugin versions could not be written");
        }
        Ok(SwapReport { name, from: placed.from, to, generation })
    }

    /// Hand out what holds now. Answers its generation.
    fn publish(&self) -> u64 {
        let mut shelf = self.shelf();
        self.inner.published.send_replace(Arc::new(shelf.next_set()));
        shelf.generation()
    }

    /// Read a file whole, with its state when it was read.
    async fn read(&self, stem: &str) -> (Result<Vec<u8>, LoadError>, Option<files::Stamp>) {
        let path = self.inner.directory.join(files::file_name(stem));
        let limit = self.inner.runtime.settings().max_component_size;
        blocking(move || files::read(&path, limit)).await
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.inner.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("directory", &self.inner.directory).finish_non_exhaustive()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work)).await
}

async fn joined<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => panic::resume_unwind(panic),
            // The async runtime is shutting down, and drops whoever waits here as well.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests;
