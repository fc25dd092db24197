//! `latch plugin test`: a plugin against scripted devices, with no hub and no network.
//!
//! Each scenario runs twice: once with a new instance for every call and once with one for all of them. A host does
//! either, as it has room, so a plugin that keeps something in its globals must not get away with it. The device is the
//! actor that every host runs, on a clock that the scenario turns.

mod clock;
mod difference;
mod host;
mod run;
mod scenario;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use plugin_runtime::{PluginSource, PluginVersion, Runtime, RuntimeSettings, Terms};
use serde_json::{Value, json};

use crate::args::TestArgs;
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{document, line};

use difference::Difference;
use run::{Instances, Stop};
use scenario::Scenario;

/// How one scenario ended.
struct Outcome {
    scenario: Scenario,
    /// The first step that went wrong, if any, and how.
    stop: Option<(Stop, Instances)>,
    milliseconds: u64,
}

pub(super) async fn run(args: TestArgs, context: &Context) -> anyhow::Result<()> {
    let scenarios: Vec<_> =
        files(&args.scenarios)?.iter().map(|file| Scenario::read(file)).collect::<Result<_, _>>()?;
    let (name, wasm) = super::read_component(&args.plugin)?;
    let runtime = Runtime::new(RuntimeSettings::default())?;
    let mut outcomes = Vec::new();
    let mut tested = None;
    for scenario in scenarios {
        let terms = Terms { config: scenario.config.clone(), ..Terms::default() };
        let source = PluginSource { name: name.clone(), wasm: wasm.clone(), terms };
        let loader = runtime.clone();
        let version = match tokio::task::spawn_blocking(move || loader.load(source)).await? {
            Ok(version) => version,
            Err(error) => bail!(EndedBadly(format!("{} is refused: {error}", args.plugin.display()))),
        };
        outcomes.push(test(&runtime, &version, scenario).await?);
        tested = Some(version);
    }
    let version = tested.context("there are scenarios")?;
    if context.json {
        document(&report(&version, &outcomes))?;
    } else {
        line(&format!("{} {}", version.name(), version.label()))?;
        outcomes.iter().try_for_each(tell)?;
    }
    let failed = outcomes.iter().filter(|outcome| outcome.stop.is_some()).count();
    if failed > 0 {
        bail!(EndedBadly(format!("{failed} of {} scenarios failed", outcomes.len())));
    }
    Ok(())
}

async fn test(runtime: &Runtime, version: &Arc<PluginVersion>, scenario: Scenario) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut stop = None;
    for instances in [Instances::OneForEachCall, Instances::OneForAll] {
        if let Some(found) = run::run(runtime, version, &scenario, instances).await {
            stop = Some((found, instances));
            break;
        }
    }
    let milliseconds = u64::try_from(started.elapsed().as_millis())?;
    Ok(Outcome { scenario, stop, milliseconds })
}

/// The scenarios at `path`: the file itself, or every TOML file directly in the folder, by name.
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

fn tell(outcome: &Outcome) -> anyhow::Result<()> {
    let Outcome { scenario, stop, milliseconds } = outcome;
    let file = scenario.file.display();
    let Some((stop, instances)) = stop else {
        return line(&format!("  ok      {file}  {} steps, {milliseconds} ms", scenario.steps.len()));
    };
    let step = &scenario.steps[stop.step];
    let about = step.about.as_ref().map(|about| format!(": {about}")).unwrap_or_default();
    line(&format!("  FAILED  {file}:{}, step {}{about}, {}", step.line, stop.step + 1, instances.words()))?;
    for Difference { line: number, place, expected, found } in &stop.differences {
        line(&format!("    {file}:{number}: {place}"))?;
        line(&format!("      expected  {expected}"))?;
        line(&format!("      found     {found}"))?;
    }
    Ok(())
}

fn report(version: &PluginVersion, outcomes: &[Outcome]) -> Value {
    let scenarios = outcomes.iter().map(|Outcome { scenario, stop, milliseconds }| {
        let failed = stop.as_ref().map(|(stop, instances)| {
            json!({
                "step": stop.step + 1,
                "line": scenario.steps[stop.step].line,
                "instances": instances.words(),
                "differences": stop.differences.iter().map(Difference::to_json).collect::<Vec<_>>(),
            })
        });
        json!({
            "file": scenario.file,
            "steps": scenario.steps.len(),
            "milliseconds": milliseconds,
            "failed": failed,
        })
    });
    json!({
        "plugin": version.name().to_string(),
        "version": version.label(),
        "scenarios": scenarios.collect::<Vec<_>>(),
    })
}
