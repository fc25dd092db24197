//! Plugins on scripted devices, with no hub and no network.
//!
//! Each scenario runs twice: once with a new instance for every call and once with one for all of them. A host does
//! either, as it has room, so a plugin that keeps something in its globals must not get away with it. The device is the
//! actor that every host runs, on a clock that the scenario turns.

mod clock;
mod difference;
mod host;
mod run;
mod scenario;
mod self_test;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use plugin_runtime::{PluginSource, PluginVersion, Runtime};

pub(crate) use difference::Difference;
pub(crate) use run::{Instances, Stop};
pub(crate) use scenario::Scenario;
pub(crate) use self_test::self_test;

/// How one scenario ended.
pub(crate) struct Outcome {
    pub(crate) scenario: Scenario,
    /// The first step that went wrong, if any, and how.
    pub(crate) stop: Option<(Stop, Instances)>,
    pub(crate) milliseconds: u64,
}

/// The scenarios at `path`: the file itself, or every TOML file directly in the folder, by name; at least one.
pub(crate) fn find(path: &Path) -> anyhow::Result<Vec<Scenario>> {
    files(path)?.iter().map(|file| Scenario::read(file)).collect()
}

/// Run every scenario on `source`; one that has settings or grants of its own replaces those of `source`. Blocks for as
/// long as it takes, on a thread that drives no asynchronous tasks.
///
/// # Errors
/// If the component is refused, with a [`LoadError`](plugin_runtime::LoadError), or all of it takes longer than
/// `limit`.
pub(crate) fn check(
    runtime: &Runtime,
    source: &PluginSource,
    scenarios: Vec<Scenario>,
    limit: Option<Duration>,
) -> anyhow::Result<(Arc<PluginVersion>, Vec<Outcome>)> {
    let started = Instant::now();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (mut version, mut outcomes) = (None, Vec::new());
    for scenario in scenarios {
        let mut source = source.clone();
        if !scenario.config.is_empty() {
            source.terms.config = scenario.config.clone();
        }
        if !scenario.peers.is_empty() {
            source.terms.grants.peers = scenario.peers.clone();
        }
        let tested = runtime.load(source)?;
        let testing = test(runtime, &tested, scenario);
        outcomes.push(match limit {
            None => tokio.block_on(testing),
            Some(limit) => {
                let left = limit.saturating_sub(started.elapsed());
                let ended = tokio.block_on(async { tokio::time::timeout(left, testing).await });
                ended.map_err(|_| anyhow!("its scenarios take longer than {} s", limit.as_secs()))?
            }
        });
        version = Some(tested);
    }
    Ok((version.context("there are no scenarios")?, outcomes))
}

async fn test(runtime: &Runtime, version: &Arc<PluginVersion>, scenario: Scenario) -> Outcome {
    let started = Instant::now();
    let mut stop = None;
    for instances in [Instances::OneForEachCall, Instances::OneForAll] {
        if let Some(found) = run::run(runtime, version, &scenario, instances).await {
            stop = Some((found, instances));
            break;
        }
    }
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Outcome { scenario, stop, milliseconds }
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let no_access = || format!("no scenarios at {}", path.display());
    if std::fs::metadata(path).with_context(no_access)?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = path.read_dir().and_then(Iterator::collect::<Result<Vec<_>, _>>).with_context(no_access)?;
    let is_toml = |path: &PathBuf| path.extension().is_some_and(|end| end == "toml");
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(is_toml).collect();
    files.sort();
    if files.is_empty() {
        bail!("no scenarios at {}\nhint: name a TOML file or a folder of them", path.display());
    }
    Ok(files)
}
