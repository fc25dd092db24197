//! `latch plugin check`: what a component is, and whether the host would take it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::bail;
use plugin_runtime::{
    Description, LoadError, PluginName, PluginSource, PluginVersion, Runtime, RuntimeSettings, Terms, describe,
};
use serde_json::{Value, json};

use super::{or_none, read_component};
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{document, line};

pub(super) async fn run(file: &Path, context: &Context) -> anyhow::Result<()> {
    let (name, wasm) = read_component(file)?;
    let (description, size) = (describe(&wasm), wasm.len());
    let source = PluginSource { name: name.clone(), wasm, terms: Terms::default() };
    let (loaded, milliseconds) = tokio::task::spawn_blocking(move || {
        let runtime = Runtime::new(RuntimeSettings::default())?;
        let started = Instant::now();
        let loaded = runtime.load(source);
        anyhow::Ok((loaded, u64::try_from(started.elapsed().as_millis())?))
    })
    .await??;
    let loaded = loaded.as_deref();
    if context.json {
        document(&report(&name, loaded, description.as_ref(), size, milliseconds))?;
    } else {
        tell(&name, loaded, description.as_ref(), size, milliseconds)?;
    }
    match loaded {
        Ok(_) => Ok(()),
        Err(error) => bail!(EndedBadly(format!("{} is refused: {error}", file.display()))),
    }
}

fn report(
    name: &PluginName,
    loaded: Result<&PluginVersion, &LoadError>,
    description: Option<&Description>,
    size: usize,
    milliseconds: u64,
) -> Value {
    let mut report = json!({
        "name": name.to_string(),
        "size": size,
        "fits": loaded.is_ok(),
        "loadMilliseconds": milliseconds,
    });
    match loaded {
        Ok(version) => {
            report["version"] = json!(version.label());
            report["hash"] = json!(version.hash());
            report["methods"] = json!(version.methods());
            report["watched"] = json!(version.watched());
        }
        Err(error) => report["refused"] = json!(error.to_string()),
    }
    if let Some(description) = description {
        report["worlds"] = json!(worlds(&description.exports));
        report["exports"] = json!(description.exports);
        report["imports"] = json!(description.imports);
        report["mayUse"] = json!(description.may_use());
        report["initialMemory"] = json!(description.initial_memory);
    }
    report
}

fn tell(
    name: &PluginName,
    loaded: Result<&PluginVersion, &LoadError>,
    description: Option<&Description>,
    size: usize,
    milliseconds: u64,
) -> anyhow::Result<()> {
    match loaded {
        Ok(version) => {
            line(&format!("{name} {} fits", version.label()))?;
            let methods: Vec<_> = version.methods().iter().map(ToString::to_string).collect();
            line(&format!("  methods   {}", or_none(&methods)))?;
            line(&format!("  watches   {}", or_none(version.watched())))?;
        }
        Err(_) => line(&format!("{name} does not fit"))?,
    }
    if let Some(description) = description {
        let worlds = worlds(&description.exports).into_iter().map(str::to_owned).collect::<Vec<_>>();
        line(&format!("  worlds    {}", or_none(&worlds)))?;
        line(&format!("  exports   {}", or_none(&description.exports)))?;
        for (label, names) in grouped(&description.imports) {
            line(&format!("  {label:<8}  {}", names.join(", ")))?;
        }
        let grants = description.may_use();
        line(&format!(
            "  grants    may use: {}",
            if grants.is_empty() { "none".to_owned() } else { grants.join(", ") }
        ))?;
        line(&format!("  memory    {} KiB at the start", description.initial_memory.div_ceil(1024)))?;
    }
    line(&format!("  size      {} KiB", size.div_ceil(1024)))?;
    if let Ok(version) = loaded {
        line(&format!("  compiled  in {milliseconds} ms"))?;
        line(&format!("  hash      {}", version.hash()))?;
    }
    Ok(())
}

/// The worlds of `iothub:plugin` and the interfaces that each exports.
const WORLDS: [(&str, &[&str]); 6] = [
    ("full-plugin", &["methods", "reactions", "ticks", "lifecycle"]),
    ("device-plugin", &["methods", "reactions"]),
    ("timed-handler", &["methods", "ticks"]),
    ("timed-reactor", &["reactions", "ticks"]),
    ("method-handler", &["methods"]),
    ("twin-reactor", &["reactions"]),
];

/// Which worlds of `iothub:plugin` a component with these exports is of, as far as names tell.
fn worlds(exports: &[String]) -> Vec<&'static str> {
    let has = |interface: &str| {
        exports
            .iter()
            .any(|name| name.strip_prefix("iothub:plugin/").and_then(|rest| rest.split('@').next()) == Some(interface))
    };
    WORLDS.iter().filter(|(_, needed)| needed.iter().all(|interface| has(interface))).map(|(world, _)| *world).collect()
}

/// Imports by whose they are: what plugins ask of the device, what languages' runtimes ask of WASI (its packages are
/// enough), and whatever the host has not.
fn grouped(imports: &[String]) -> Vec<(&'static str, Vec<&str>)> {
    let mut grouped = Vec::new();
    for (label, prefix, until) in [("device", "iothub:device/", '@'), ("wasi", "wasi:", '/')] {
        let names = imports.iter().filter_map(|name| name.strip_prefix(prefix)?.split(until).next());
        grouped.push((label, names.collect::<BTreeSet<_>>().into_iter().collect()));
    }
    let others = imports.iter().filter(|name| !name.starts_with("iothub:device/") && !name.starts_with("wasi:"));
    grouped.push(("others", others.map(String::as_str).collect()));
    grouped.retain(|(_, names): &(_, Vec<&str>)| !names.is_empty());
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_told_by_owner() {
        let imports = ["wasi:io/poll@0.2.6", "iothub:device/state@0.1.0", "wasi:io/error@0.2.6", "acme:lock/pins"];
        let imports = imports.map(str::to_owned);
        let expected = [("device", vec!["state"]), ("wasi", vec!["io"]), ("others", vec!["acme:lock/pins"])];
        assert_eq!(grouped(&imports), expected);
        assert_eq!(grouped(&imports[..1]), [("wasi", vec!["io"])]);
    }

    #[test]
    fn worlds_follow_from_exports() {
        let names = |exports: &[&str]| worlds(&exports.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["iothub:plugin/methods@0.1.0"]), ["method-handler"]);
        assert_eq!(names(&["iothub:plugin/reactions@0.1.0", "iothub:plugin/methods@0.1.2"]).len(), 3);
        assert!(names(&["wasi:cli/run@0.2.0"]).is_empty());
    }
}
