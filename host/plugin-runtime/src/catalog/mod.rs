//! The plugins of a directory, kept current.
//!
//! [`shelf`] decides what is current; it knows no files. [`settling`] decides when a file that changed is worth a
//! look; it reads no clock. [`files`] touches the disk. [`watcher`] and this module drive them.

mod files;
mod settling;
mod shelf;
mod watcher;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{MutexGuard, watch};
use tokio::task::JoinHandle;

use crate::name::PluginName;
use crate::runtime::Runtime;
use crate::version::{self, LoadError, PluginSource, PluginVersion};
use files::Listing;
use shelf::Shelf;

pub use shelf::{PluginSet, Refusal};

/// Settings for plugins by name, handed to each version that is loaded.
pub type PluginConfigs = BTreeMap<PluginName, BTreeMap<String, String>>;

/// The plugins of one directory. Every `*.wasm` directly in it is a plugin, named by its file; sub-folders and hidden
/// files are not looked at. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    runtime: Runtime,
    configs: PluginConfigs,
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

/// One plugin, or one file that could be one.
#[derive(Debug, Clone)]
pub struct CatalogEntry {
    /// The file's name without `.wasm`.
    pub name: String,
    /// What runs. `None` if no version was ever accepted.
    pub version: Option<Arc<PluginVersion>>,
    pub loaded_at: Option<SystemTime>,
    /// Whether the file is gone; the version keeps running until the host ends.
    pub removed: bool,
    /// Why the file as it is now is not what runs.
    pub refusal: Option<Refusal>,
}

impl Catalog {
    /// Load every plugin of `directory`. A file that cannot be loaded is refused, which the log and [`Catalog::list`]
    /// say; the rest is loaded.
    ///
    /// # Errors
    /// If there is no such directory, or it cannot be read.
    pub async fn open(directory: &Path, runtime: Runtime) -> Result<Catalog, CatalogError> {
        Catalog::open_with(directory, runtime, PluginConfigs::new()).await
    }

    /// [`Catalog::open`] with settings for some of the plugins.
    ///
    /// # Errors
    /// The same.
    pub async fn open_with(
        directory: &Path,
        runtime: Runtime,
        configs: PluginConfigs,
    ) -> Result<Catalog, CatalogError> {
        let path = directory.to_owned();
        let listing = blocking(move || files::list(&path)).await;
        let first_listing = listing
            .map_err(|error| CatalogError::Directory { path: directory.to_owned(), reason: error.to_string() })?;
        let inner = Inner {
            directory: directory.to_owned(),
            runtime,
            configs,
            shelf: Mutex::new(Shelf::default()),
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

    /// Make `wasm` the current version of `name`, and keep it in the directory for the next start. Whoever follows
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
        let _arriving = self.inner.arriving.lock().await;
        let version = self.load(name, wasm.clone()).await?;
        self.shelf().check(&version)?;
        let written = blocking(move || files::write(&path, &wasm)).await;
        written.map_err(|error| LoadError::File { action: "written", reason: error.to_string() })?;
        self.publish(version)
    }

    /// A file was read under `stem`: take it, or refuse it. It was read under the lock that is held, so that it is no
    /// older than what a swap has written meanwhile.
    async fn arrived(&self, _arriving: &MutexGuard<'_, ()>, stem: &str, wasm: Result<Vec<u8>, LoadError>) {
        let hash = wasm.as_ref().map_or_else(|_| String::new(), |wasm| version::hash(wasm));
        if let Err(error) = self.take(stem, wasm).await {
            let is_conflict = matches!(error, LoadError::Conflict { .. });
            let reason = error.to_string();
            let refusal = Refusal { reason: reason.clone(), hash, at: SystemTime::now() };
            if self.shelf().refuse(stem, refusal, is_conflict) {
                tracing::warn!(plugin = stem, reason, "plugin file refused");
            }
        }
    }

    async fn take(&self, stem: &str, wasm: Result<Vec<u8>, LoadError>) -> Result<SwapReport, LoadError> {
        let name = PluginName::parse(stem).map_err(|reason| LoadError::Name { reason })?;
        let version = self.load(&name, wasm?).await?;
        self.publish(version)
    }

    async fn load(&self, name: &PluginName, wasm: Vec<u8>) -> Result<Arc<PluginVersion>, LoadError> {
        let config = self.inner.configs.get(name).cloned().unwrap_or_default();
        let source = PluginSource { name: name.clone(), wasm, config };
        let runtime = self.inner.runtime.clone();
        // A component that a compiler cannot bear must not take the directory's watcher with it.
        let load = move || panic::catch_unwind(AssertUnwindSafe(|| runtime.load(source)));
        let crash = || LoadError::Compile { reason: "the compiler panicked, see the log".to_owned() };
        blocking(load).await.unwrap_or_else(|_| Err(crash()))
    }

    fn publish(&self, version: Arc<PluginVersion>) -> Result<SwapReport, LoadError> {
        let mut shelf = self.shelf();
        let (name, to) = (version.name().clone(), version.label().to_owned());
        let placed = shelf.place(version, SystemTime::now())?;
        let (from, generation) = (placed.from.clone(), shelf.generation());
        if placed.changed {
            let from = from.as_deref().unwrap_or("none");
            tracing::info!(plugin = %name, from, to, generation, "plugin version is current");
            self.inner.published.send_replace(Arc::new(shelf.set()));
        }
        Ok(SwapReport { name, from, to, generation })
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
