//! `latch plugin test`, and the test that `latch plugin swap` runs first.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use plugin_runtime::{LoadError, PluginName, PluginSource, PluginVersion, Runtime, RuntimeSettings, Terms};
use serde_json::{Value, json};

use crate::args::TestArgs;
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{document, line, say};
use crate::scenarios::{self, Difference, Outcome};

pub(super) async fn run(args: TestArgs, context: &Context) -> anyhow::Result<()> {
    let (name, wasm) = super::read_component(&args.plugin)?;
    let (version, outcomes) = test(name, wasm, &args.scenarios).await?;
    if context.json {
        document(&report(&version, &outcomes))?;
    } else {
        line(&format!("{} {}", version.name(), version.label()))?;
        outcomes.iter().flat_map(told).try_for_each(|text| line(&text))?;
    }
    judge(&outcomes)
}

/// Say what is wrong, unless the component passes the scenarios at `scenarios`.
pub(in crate::commands) async fn must_pass(name: &PluginName, wasm: &[u8], scenarios: &Path) -> anyhow::Result<()> {
    let (_, outcomes) = test(name.clone(), wasm.to_vec(), scenarios).await?;
    outcomes.iter().filter(|outcome| outcome.stop.is_some()).flat_map(told).for_each(|text| say(&text));
    judge(&outcomes)
}

async fn test(name: PluginName, wasm: Vec<u8>, scenarios: &Path) -> anyhow::Result<(Arc<PluginVersion>, Vec<Outcome>)> {
    let scenarios = scenarios::find(scenarios)?;
    let runtime = Runtime::new(RuntimeSettings::default())?;
    let source = PluginSource { name: name.clone(), wasm, terms: Terms::default() };
    let checked = tokio::task::spawn_blocking(move || scenarios::check(&runtime, &source, scenarios, None)).await?;
    checked.map_err(|error| match error.downcast::<LoadError>() {
        Ok(refusal) => EndedBadly(format!("{name} is refused: {refusal}")).into(),
        Err(error) => error,
    })
}

fn judge(outcomes: &[Outcome]) -> anyhow::Result<()> {
    let failed = outcomes.iter().filter(|outcome| outcome.stop.is_some()).count();
    if failed > 0 {
        bail!(EndedBadly(format!("{failed} of {} scenarios failed", outcomes.len())));
    }
    Ok(())
}

fn told(outcome: &Outcome) -> Vec<String> {
    let Outcome { scenario, stop, milliseconds } = outcome;
    let file = scenario.file.display();
    let Some((stop, instances)) = stop else {
        return vec![format!("  ok      {file}  {} steps, {milliseconds} ms", scenario.steps.len())];
    };
    let step = &scenario.steps[stop.step];
    let about = step.about.as_ref().map(|about| format!(": {about}")).unwrap_or_default();
    let mut told =
        vec![format!("  FAILED  {file}:{}, step {}{about}, {}", step.line, stop.step + 1, instances.words())];
    for Difference { line, place, expected, found } in &stop.differences {
        told.push(format!("    {file}:{line}: {place}"));
        told.push(format!("      expected  {expected}"));
        told.push(format!("      found     {found}"));
    }
    told
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
