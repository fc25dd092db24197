//! Versions that some device needs beyond those that everybody may get: pinned by its twin, or brought back on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::name::PluginName;

/// Where devices say which kept versions they need; clones share it. A version is loaded when the first one needs it.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: Mutex<BTreeMap<Key, usize>>,
    changed: Notify,
}

type Key = (PluginName, Arc<str>);

/// One device's need of one version, for as long as this lives.
#[derive(Debug)]
pub struct Lease {
    demand: Demand,
    key: Key,
}

impl Demand {
    /// Need the version of `name` with this hash. It comes with a later [`super::PluginSet`], unless it cannot be
    /// loaded.
    pub fn want(&self, name: PluginName, hash: Arc<str>) -> Lease {
        let key = (name, hash);
        *self.lock().entry(key.clone()).or_insert(0) += 1;
        self.inner.changed.notify_one();
        Lease { demand: self.clone(), key }
    }

    pub(super) fn wanted(&self) -> Vec<Key> {
        self.lock().keys().cloned().collect()
    }

    /// Make [`Demand::changed`] return once more.
    pub(super) fn stir(&self) {
        self.inner.changed.notify_one();
    }

    pub(super) async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, usize>> {
        // Counts are whole after any panic.
        self.inner.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut wanted = self.demand.lock();
        if let Some(count) = wanted.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(&self.key);
            }
        }
    }
}
