//! On what terms each plugin runs, and where; decided by whoever runs the host, and changed while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use iothub_protocol::id::MethodName;

use super::Catalog;
use super::shelf::Conflict;
use crate::name::PluginName;
use crate::terms::{Placement, Terms};
use crate::version::{LoadError, PluginVersion};

/// What is decided for a plugin, whether or not it is there yet: on what terms it runs, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginPlan {
    pub terms: Terms,
    pub placement: Placement,
}

/// Plans by plugin. One without a plan runs everywhere and is granted nothing.
pub type PluginPlans = BTreeMap<PluginName, PluginPlan>;

/// Why plans did not come into force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("version {version} of {plugin} does not load on these terms: {error}")]
    Load { plugin: PluginName, version: String, error: LoadError },
    #[error("the plugins {plugin} and {other} would both answer the method {method} on some devices")]
    Conflict { plugin: PluginName, other: PluginName, method: MethodName },
}

impl PlanError {
    /// The plugin whose plan is to be changed.
    pub fn plugin(&self) -> &PluginName {
        match self {
            PlanError::Load { plugin, .. } | PlanError::Conflict { plugin, .. } => plugin,
        }
    }
}

impl From<Conflict> for PlanError {
    fn from(Conflict { plugin, other, method }: Conflict) -> PlanError {
        PlanError::Conflict { plugin, other, method }
    }
}

impl Catalog {
    /// Run the plugins on these plans from now on, instead of those before. Versions that are loaded on other terms are
    /// loaded anew, and files that were refused are looked at again if the reason may be gone. Answers the plugins that
    /// were loaded anew. Once begun it ends, even if the future is dropped.
    ///
    /// # Errors
    /// Says everything that stands in the way; then nothing has changed.
    pub async fn set_plans(&self, plans: PluginPlans) -> Result<Vec<PluginName>, Vec<PlanError>> {
        self.whole(move |catalog| async move { catalog.set_plans_whole(plans).await }).await
    }

    async fn set_plans_whole(&self, plans: PluginPlans) -> Result<Vec<PluginName>, Vec<PlanError>> {
        let arriving = self.inner.arriving.lock().await;
        if *self.shelf().plans() == plans {
            return Ok(Vec::new());
        }
        let outdated = self.shelf().outdated(&plans);
        let (mut renewed, mut lost, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (version, in_force) in outdated {
            match self.load_again(&version, &plans).await {
                Ok(version) => renewed.push(version),
                Err(error) if in_force => {
                    let (plugin, version) = (version.name().clone(), version.label().to_owned());
                    errors.push(PlanError::Load { plugin, version, error });
                }
                // Some device asked for it, and is told.
                Err(error) => lost.push((version, Arc::from(error.to_string()))),
            }
        }
        let conflicts = self.shelf().conflicts(&plans, &renewed);
        errors.extend(conflicts.into_iter().map(PlanError::from));
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut names: Vec<_> = renewed.iter().map(|version| version.name().clone()).collect();
        names.dedup();
        let worth_a_look = {
            let mut shelf = self.shelf();
            let worth_a_look = shelf.replan(plans, renewed, lost, SystemTime::now());
            shelf.begin_trials(Instant::now());
            worth_a_look
        };
        self.inner.demand.stir();
        let generation = self.publish();
        tracing::info!(generation, loaded_anew = names.len(), "plugins run on other plans");
        for stem in worth_a_look {
            let (wasm, _) = self.read(&stem).await;
            self.arrived(&arriving, &stem, wasm).await;
        }
        Ok(names)
    }

    /// The same code on the terms of `plans`.
    async fn load_again(
        &self,
        version: &Arc<PluginVersion>,
        plans: &PluginPlans,
    ) -> Result<Arc<PluginVersion>, LoadError> {
        let wasm = self.read_kept(version.name(), version.hash()).await?;
        let terms = plans.get(version.name()).map(|plan| plan.terms.clone()).unwrap_or_default();
        self.load_on(version.name(), wasm, terms).await
    }
}
