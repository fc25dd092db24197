//! The runtime: from bytes to versions, from versions to instances.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use iothub_protocol::id::DeviceId;
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use crate::bindings::{self, Exports};
use crate::cache::{Cache, CacheSettings, CacheStats};
use crate::guest::Guest;
use crate::inspect;
use crate::instance::{CallFailure, Instance};
use crate::settings::{RuntimeError, RuntimeSettings};
use crate::tally::Tally;
use crate::version::{self, LoadError, PluginSource, PluginVersion};

/// The engine and everything that is made once for a process. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    linker: Linker<Guest>,
    settings: RuntimeSettings,
    compiled: Mutex<Compiled>,
    cache: Option<Cache>,
    /// Versions are loaded one at a time: compiling takes every core already, and the pool has room for one self-test.
    loading: Mutex<()>,
}

impl Runtime {
    /// A runtime that compiles whatever it has not in memory.
    ///
    /// # Errors
    /// If the machine cannot give what `settings` ask for.
    pub fn new(settings: RuntimeSettings) -> Result<Runtime, RuntimeError> {
        Runtime::start(settings, None)
    }

    /// A runtime that keeps what it compiles on disk. A cache that cannot be used is done without, and the log says why.
    ///
    /// # Errors
    /// If the machine cannot give what `settings` ask for.
    pub fn with_cache(settings: RuntimeSettings, cache: &CacheSettings) -> Result<Runtime, RuntimeError> {
        Runtime::start(settings, Some(cache))
    }

    fn start(settings: RuntimeSettings, cache: Option<&CacheSettings>) -> Result<Runtime, RuntimeError> {
        let engine = crate::engine::start(&settings)?;
        let linker = linker(&engine).map_err(|error| RuntimeError::Engine { reason: format!("{error:#}") })?;
        let cache = cache.and_then(|cache| open(cache, &engine));
        let limit = if cache.is_some() { COMPILED_BYTES_WITH_CACHE } else { COMPILED_BYTES };
        let compiled = Mutex::new(Compiled::new(limit));
        let loading = Mutex::new(());
        Ok(Runtime { inner: Arc::new(Inner { engine, linker, settings, compiled, cache, loading }) })
    }

    pub fn settings(&self) -> &RuntimeSettings {
        &self.inner.settings
    }

    /// What the cache on disk has done, if there is one.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.inner.cache.as_ref().map(Cache::stats)
    }

    /// Instances that exist now, self-tests included.
    pub fn live_instances(&self) -> u64 {
        self.inner.engine.pooling_allocator_metrics().map_or(0, |metrics| metrics.component_instances())
    }

    /// Make a version: inspect, compile, check types, and ask a first instance what it answers.
    ///
    /// Compiling takes from milliseconds to seconds of every core, and so does waiting for another load; code from the
    /// cache takes reading it. Call this on a thread for blocking work. It panics on a thread that drives asynchronous tasks.
    ///
    /// # Errors
    /// Says what is wrong with the component, for whoever built it.
    pub fn load(&self, source: PluginSource) -> Result<Arc<PluginVersion>, LoadError> {
        let inspection = inspect::inspect(&source.wasm, self.inner.settings.max_component_size)?;
        let _one_at_a_time = lock(&self.inner.loading);
        let hash = version::hash(&source.wasm);
        let component = self.compile(&hash, &source.wasm)?;
        let pre = self
            .inner
            .linker
            .instantiate_pre(&component)
            .map_err(|error| LoadError::Imports { reason: format!("{error:#}") })?;
        let exports = Exports::find(&component, &pre)?;
        let label = inspection.semver.clone().unwrap_or_else(|| hash[..version::LABEL_DIGITS].to_owned());
        let unasked = PluginVersion {
            name: source.name,
            hash,
            semver: inspection.semver,
            label: Arc::from(label),
            size: source.wasm.len(),
            terms: Arc::new(source.terms),
            methods: Vec::new(),
            watched: Vec::new(),
            state_format: 0,
            pre,
            exports,
            tally: Tally::default(),
            seeding: Arc::default(),
        };
        self.ask(Arc::new(unasked))
    }

    /// Make an instance of `version` for `device`, at the time `now` (milliseconds since the beginning of 1970, UTC). At
    /// most [`RuntimeSettings::max_instances`] may exist at once.
    ///
    /// # Errors
    /// If the guest's own start fails or breaks a limit, or the pool is empty.
    pub async fn instantiate(
        &self,
        version: &Arc<PluginVersion>,
        device: &DeviceId,
        now: u64,
    ) -> Result<Instance, CallFailure> {
        Instance::new(version.clone(), &self.inner.settings, Some(device), now).await
    }

    fn compile(&self, hash: &str, wasm: &[u8]) -> Result<Component, LoadError> {
        if let Some(component) = lock(&self.inner.compiled).get(hash) {
            return Ok(component);
        }
        let error = |error: wasmtime::Error| LoadError::Compile { reason: format!("{error:#}") };
        let kept = self.inner.cache.as_ref().and_then(|cache| cache.get(hash));
        let component = match kept {
            Some(component) => {
                tracing::debug!(component = hash, "compiled code came from the cache");
                component
            }
            None => {
                tracing::debug!(component = hash, "component is compiled");
                let component = Component::from_binary(&self.inner.engine, wasm).map_err(error)?;
                if let Some(cache) = &self.inner.cache {
                    cache.put(hash, &component);
                }
                component
            }
        };
        // Otherwise the first instance would pay for it, which is in front of a caller.
        component.initialize_copy_on_write_image().map_err(error)?;
        lock(&self.inner.compiled).put(hash, wasm.len(), &component);
        Ok(component)
    }

    /// The self-test: a version that cannot even say what it answers never reaches a device.
    fn ask(&self, unasked: Arc<PluginVersion>) -> Result<Arc<PluginVersion>, LoadError> {
        let asking = async {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            let mut instance = Instance::new(unasked.clone(), &self.inner.settings, None, now).await?;
            let asked = (instance.names().await?, instance.watched().await?, instance.state_format().await?);
            if unasked.exports.can_be_asked() {
                unasked.seeding.started();
            }
            Ok(asked)
        };
        let failed = |failure| LoadError::SelfTest { failure };
        let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let tokio = tokio.map_err(|error| failed(CallFailure::Instantiate { reason: error.to_string() }))?;
        let (names, paths, state_format) = tokio.block_on(asking).map_err(failed)?;
        let (methods, watched) = (version::methods(&names)?, version::watched(&paths)?);
        let answers = !methods.is_empty() || !watched.is_empty();
        if !answers && !unasked.has_messages() && !unasked.has_lifecycle() {
            return Err(LoadError::Idle);
        }
        let unasked = Arc::into_inner(unasked).expect("the instance that held it is dropped");
        Ok(Arc::new(PluginVersion { methods, watched, state_format, ..unasked }))
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

fn open(settings: &CacheSettings, engine: &Engine) -> Option<Cache> {
    Cache::open(settings, engine)
        .inspect_err(|error| {
            let folder = settings.folder.display();
            tracing::warn!(%folder, %error, "compiled code is not kept, each start compiles it again");
        })
        .ok()
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    bindings::add_to_linker(&mut linker)?;
    Ok(linker)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Components by hash, with their size, the last used one last, so that swapping back takes no compiling.
struct Compiled {
    recent: Vec<(String, usize, Component)>,
    /// Bytes of components.
    limit: usize,
}

impl Compiled {
    fn new(limit: usize) -> Compiled {
        Compiled { recent: Vec::new(), limit }
    }

    fn get(&mut self, hash: &str) -> Option<Component> {
        let position = self.recent.iter().position(|(found, ..)| found == hash)?;
        let entry = self.recent.remove(position);
        let component = entry.2.clone();
        self.recent.push(entry);
        Some(component)
    }

    fn put(&mut self, hash: &str, size: usize, component: &Component) {
        self.recent.push((hash.to_owned(), size, component.clone()));
        let bytes = |recent: &[(String, usize, Component)]| recent.iter().map(|(_, size, _)| size).sum::<usize>();
        while self.recent.len() > COMPILED_LIMIT || self.recent.len() > 1 && bytes(&self.recent) > self.limit {
            self.recent.remove(0);
        }
    }
}

/// A few versions of a few plugins.
const COMPILED_LIMIT: usize = 16;
/// Bytes of the components that are kept compiled. Code of a Rust plugin of 0.1 MB takes 0.3 MB, of a Python plugin of
/// 20 MB 39 MB.
const COMPILED_BYTES: usize = 64 << 20;
/// The same where the disk keeps the code as well, and what is not in memory takes milliseconds: enough for small plugins
/// that are swapped to and fro. A version that runs keeps its code by itself.
const COMPILED_BYTES_WITH_CACHE: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Component, runtime, source, with_version};

    fn refusal(wasm: Vec<u8>) -> LoadError {
        runtime().load(source("p", wasm)).expect_err("refused")
    }

    #[test]
    fn a_version_says_what_it_answers() {
        let runtime = runtime();
        let wasm = Component::echo("lockDoor").reacting("lock.state").wasm();
        let version = runtime.load(source("p", wasm.clone())).expect("a good plugin");
        assert_eq!(version.methods().iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["lockDoor"]);
        assert_eq!(version.watched(), ["lock.state"]);
        assert_eq!((version.size(), version.hash().len()), (wasm.len(), 64));
        assert_eq!((version.semver(), version.label()), (None, &version.hash()[..12]));

        let version = runtime.load(source("p", with_version(wasm, "1.4.0"))).expect("a good plugin");
        assert_eq!((version.semver(), version.label()), (Some("1.4.0"), "1.4.0"));
    }

    #[test]
    fn a_function_of_another_type_is_refused_with_both_types() {
        let wasm = Component::echo("lockDoor").replace("\"status\" s32", "\"status\" u32").wasm();
        assert_eq!(
            refusal(wasm).to_string(),
            "the type of `call` in `iothub:plugin/methods@0.1.0` is wrong: expected \
             func(record{name: string, payload: string}) -> record{status: s32, payload: string}, found \
             func(record{name: string, payload: string}) -> record{status: u32, payload: string}"
        );
    }

    #[test]
    fn an_import_that_nobody_offers_is_named() {
        let wasm = Component::echo("lockDoor").replace("iothub:device/state@0.1.0", "wasi:keyvalue/store@0.2.0").wasm();
        let text = refusal(wasm).to_string();
        assert!(text.contains("imports something that the host does not offer"), "{text}");
        assert!(text.contains("wasi:keyvalue/store@0.2.0"), "{text}");
    }

    #[test]
    fn a_version_that_fails_its_self_test_is_refused() {
        let wasm =
            Component::echo("lockDoor").replace("(func (export \"names\") (result i32)", "$0 unreachable").wasm();
        assert!(matches!(refusal(wasm), LoadError::SelfTest { failure: CallFailure::Trap { .. } }));
        assert!(matches!(refusal(Component::echo("lock door").wasm()), LoadError::MethodName { .. }));
        assert!(matches!(refusal(Component::echo("m").reacting("latch.x").wasm()), LoadError::Watched { .. }));
    }

    #[test]
    fn a_component_that_was_compiled_before_is_not_compiled_again() {
        let runtime = runtime();
        for method in ["a", "b", "a"] {
            runtime.load(source("p", Component::echo(method).wasm())).expect("a good plugin");
        }
        let recent = &lock(&runtime.inner.compiled).recent;
        let hash = version::hash(&Component::echo("a").wasm());
        assert_eq!((recent.len(), recent[1].0.as_str()), (2, hash.as_str()));
    }

    #[test]
    fn few_compiled_components_are_kept() {
        let runtime = runtime();
        let version = runtime.load(source("p", Component::echo("a").wasm())).expect("a good plugin");
        let mut compiled = Compiled::new(COMPILED_BYTES);
        for (hash, size) in [("a", 30 << 20), ("b", 30 << 20), ("c", 30 << 20), ("d", 1), ("e", 60 << 20)] {
            compiled.put(hash, size, version.pre.component());
        }
        assert_eq!(compiled.recent.iter().map(|(hash, ..)| hash.as_str()).collect::<Vec<_>>(), ["d", "e"]);
    }
}
