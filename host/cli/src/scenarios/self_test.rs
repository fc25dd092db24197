//! Scenarios that lie beside a plugin: a new version must pass them before a device runs it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use plugin_runtime::{PluginSource, Runtime, SelfTest};

use super::{Difference, Outcome, check, find};

/// The test of new versions: the scenarios in `NAME.tests` beside `NAME.wasm` in `plugins`, if there is such a folder.
pub(crate) fn self_test(plugins: &Path, runtime: &Runtime) -> SelfTest {
    let (plugins, runtime) = (plugins.to_owned(), runtime.clone());
    Arc::new(move |source| {
        let folder = plugins.join(format!("{}.tests", source.name));
        if folder.is_dir() { passes(&folder, &runtime, source).map_err(|error| format!("{error:#}")) } else { Ok(()) }
    })
}

fn passes(folder: &Path, runtime: &Runtime, source: &PluginSource) -> anyhow::Result<()> {
    let (_, outcomes) = check(runtime, source, find(folder)?, Some(LIMIT))?;
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| Some((outcome, outcome.stop.as_ref()?))).collect();
    let Some((Outcome { scenario, .. }, (stop, instances))) = failed.first() else { return Ok(()) };
    let (number, all, file) = (failed.len(), outcomes.len(), scenario.file.display());
    let Some(Difference { line, place, expected, found }) = stop.differences.first() else { return Ok(()) };
    bail!(
        "{number} of {all} scenarios failed; {file}:{line}: {place}: expected {expected}, found {found} ({})",
        instances.words()
    )
}

/// For all scenarios of a plugin, as no other plugin can change meanwhile.
const LIMIT: Duration = Duration::from_secs(60);
