//! Automatic device management: configurations that give devices their desired properties, for as long as they are
//! targeted.
//!
//! [`Configurations`] keeps them, in memory and in the store. [`plan`] decides, without I/O, what they make of one
//! twin; [`apply`] walks over the twins, whenever something has changed and now and then, and has the hub do what is
//! decided. The hub itself knows only the marks that they leave in twins.

pub(crate) mod apply;
pub(crate) mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use durable_store::{Store, StoreError};
use iothub_protocol::configuration::{Configuration, ConfigurationRequest, ConfigurationResults};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::ConfigurationId;
use iothub_protocol::twin::etag_matches;
use serde_json::Value;
use tokio::sync::{Mutex, Notify};

use crate::store::configurations as rows;
use plan::Plan;

/// All configurations of a hub. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Configurations {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    /// Held while the store writes, so that what is in memory is what is stored.
    state: Mutex<State>,
    /// Told when there is another plan.
    changed: Notify,
}

struct State {
    kept: BTreeMap<ConfigurationId, Kept>,
    /// Deleted, but still marked in twins.
    deleted: BTreeSet<ConfigurationId>,
    /// Made of the rest when it is asked for.
    plan: Option<Arc<Plan>>,
}

struct Kept {
    configuration: Configuration,
    results: ConfigurationResults,
}

impl Kept {
    fn to_json(&self) -> Value {
        self.configuration.to_json(&self.results)
    }
}

impl Configurations {
    pub(crate) async fn load(store: Store) -> Result<Configurations, StoreError> {
        let (kept, deleted) = store.read(rows::load).await?;
        let kept = kept.into_iter().map(|configuration| {
            (configuration.id.clone(), Kept { configuration, results: ConfigurationResults::default() })
        });
        let state = State { kept: kept.collect(), deleted: deleted.into_iter().collect(), plan: None };
        Ok(Configurations { inner: Arc::new(Inner { store, state: Mutex::new(state), changed: Notify::new() }) })
    }

    pub(crate) async fn get(&self, id: &ConfigurationId) -> Result<Value, HubError> {
        self.inner.state.lock().await.kept.get(id).map(Kept::to_json).ok_or_else(|| not_found(id))
    }

    /// Up to `limit`, in order of their ids.
    pub(crate) async fn list(&self, limit: usize) -> Vec<Value> {
        self.inner.state.lock().await.kept.values().take(limit).map(Kept::to_json).collect()
    }

    /// Create without `if_match`, if there are fewer than `most`; update with it. The configuration as it is then.
    ///
    /// # Errors
    /// 409401 if there is one already, 404301 if there is none to update, 412001 for another etag, 413101 for one too
    /// many, and what [`Configuration::update`] refuses.
    pub(crate) async fn put(
        &self,
        id: ConfigurationId,
        request: ConfigurationRequest,
        if_match: Option<&str>,
        most: usize,
        now: DateTime<Utc>,
    ) -> Result<Value, HubError> {
        let mut state = self.inner.state.lock().await;
        let configuration = match (state.kept.get(&id), if_match) {
            (Some(_), None) => {
                let text = format!("A configuration with ID '{id}' already exists.");
                return Err(HubError::new(ErrorCode::ConfigurationAlreadyExists, text));
            }
            (None, Some(_)) => return Err(not_found(&id)),
            (None, None) if state.kept.len() >= most => {
                let text = format!("Number of deployments exceed the maximum quota {most} for this IotHub.");
                return Err(HubError::new(ErrorCode::ConfigurationCountLimitExceeded, text));
            }
            (None, None) => Configuration::new(id.clone(), request, now),
            (Some(kept), Some(_)) => {
                check_etag(&kept.configuration, if_match)?;
                kept.configuration.update(request, now)?
            }
        };
        let row = configuration.clone();
        self.inner.store.write(move |tx| rows::put(tx, &row)).await.map_err(|e| unwritten(&e))?;
        state.deleted.remove(&id);
        // Counts stay until there are others, but not those of metrics that went.
        let mut results = state.kept.remove(&id).map(|kept| kept.results).unwrap_or_default();
        results.metrics.retain(|name, _| configuration.metrics.contains_key(name));
        let kept = Kept { configuration, results };
        let answer = kept.to_json();
        state.kept.insert(id, kept);
        self.tell(&mut state);
        Ok(answer)
    }

    /// Devices keep what it has set, unless another one targets them.
    ///
    /// # Errors
    /// 404301, 412001.
    pub(crate) async fn delete(&self, id: &ConfigurationId, if_match: Option<&str>) -> Result<(), HubError> {
        let mut state = self.inner.state.lock().await;
        let kept = state.kept.get(id).ok_or_else(|| not_found(id))?;
        check_etag(&kept.configuration, if_match)?;
        let row = id.clone();
        self.inner.store.write(move |tx| rows::bury(tx, &row)).await.map_err(|e| unwritten(&e))?;
        state.kept.remove(id);
        state.deleted.insert(id.clone());
        self.tell(&mut state);
        Ok(())
    }

    fn tell(&self, state: &mut State) {
        state.plan = None;
        self.inner.changed.notify_one();
    }

    /// What is in force.
    async fn plan(&self) -> Arc<Plan> {
        let mut state = self.inner.state.lock().await;
        let State { kept, deleted, plan } = &mut *state;
        let made = plan.get_or_insert_with(|| {
            Arc::new(Plan::new(kept.values().map(|kept| &kept.configuration), deleted.iter().cloned()))
        });
        made.clone()
    }

    /// Resolves once for any number of changes since the last time.
    async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// What was counted. Those that came meanwhile keep what they have.
    async fn set_results(&self, results: BTreeMap<ConfigurationId, ConfigurationResults>) {
        let mut state = self.inner.state.lock().await;
        for (id, counted) in results {
            if let Some(kept) = state.kept.get_mut(&id) {
                kept.results = counted;
                let metrics = &kept.configuration.metrics;
                kept.results.metrics.retain(|name, _| metrics.contains_key(name));
            }
        }
    }

    /// No twin is marked by these any more.
    async fn forget(&self, ids: &BTreeSet<ConfigurationId>) -> Result<(), StoreError> {
        let mut state = self.inner.state.lock().await;
        let gone: BTreeSet<_> = ids.intersection(&state.deleted).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let rows = gone.clone();
        self.inner.store.write(move |tx| rows.iter().try_for_each(|id| rows::forget(tx, id))).await?;
        state.deleted.retain(|id| !gone.contains(id));
        state.plan = None;
        Ok(())
    }
}

fn check_etag(configuration: &Configuration, if_match: Option<&str>) -> Result<(), HubError> {
    if etag_matches(&configuration.etag(), if_match) {
        return Ok(());
    }
    let text = "The etag in the request does not match the etag of the existing resource, as per RFC7232";
    Err(HubError::new(ErrorCode::PreconditionFailed, text))
}

fn not_found(id: &ConfigurationId) -> HubError {
    HubError::new(ErrorCode::ConfigurationNotFound, format!("the hub has no configuration {:?}", id.as_str()))
}

fn unwritten(error: &StoreError) -> HubError {
    tracing::error!(%error, "a configuration cannot be written");
    HubError::new(ErrorCode::ServiceUnavailable, "the hub cannot write its store, see its log")
}
