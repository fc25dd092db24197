//! `latch plugin`.

use std::path::Path;

use anyhow::{Context as _, bail};
use plugin_runtime::{PluginName, PluginSource, Runtime, RuntimeSettings};
use serde_json::{Value, json};

use crate::args::{BuildArgs, PluginCommand, Toolchain};
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{cell, document, line, say, table};
use crate::plugin_build::{self, BuildRequest, BuiltPlugin, PluginKind, ToolchainChoice};

pub(super) async fn run(command: PluginCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        PluginCommand::Build(args) => build(args, context).await,
        PluginCommand::Check { file } => check(&file, context).await,
        PluginCommand::List => list(context).await,
        PluginCommand::Swap { name, file } => swap(&name, &file, context).await,
    }
}

async fn build(args: BuildArgs, context: &Context) -> anyhow::Result<()> {
    let request = BuildRequest {
        workspace: args.workspace,
        out: args.out,
        toolchain: match args.toolchain {
            Toolchain::Auto => ToolchainChoice::Auto,
            Toolchain::Rustup => ToolchainChoice::Rustup,
            Toolchain::Debian => ToolchainChoice::Debian,
        },
        packages: args.packages,
        tools_dir: args.tools,
        fixtures: args.fixtures,
    };
    let built = compile(request, context).await?;
    if context.json {
        let rows = built.iter().map(|plugin| {
            json!({
                "name": plugin.name,
                "version": plugin.version,
                "path": plugin.path,
                "size": plugin.size,
                "changed": plugin.changed,
            })
        });
        return document(&Value::Array(rows.collect()));
    }
    let rows: Vec<_> = built
        .iter()
        .map(|plugin| {
            let kind = match plugin.kind {
                PluginKind::Current => "",
                PluginKind::Next => "next",
                PluginKind::Fixture => "fixture",
            };
            let state = if plugin.changed { "new" } else { "unchanged" };
            let path = plugin.path.display().to_string();
            let size = format!("{} KiB", plugin.size.div_ceil(1024));
            vec![plugin.name.clone(), plugin.version.clone(), size, state.to_owned(), kind.to_owned(), path]
        })
        .collect();
    table(&["PLUGIN", "VERSION", "SIZE", "STATE", "KIND", "FILE"], &rows)
}

/// Build, telling the steps on stderr.
pub(super) async fn compile(request: BuildRequest, context: &Context) -> anyhow::Result<Vec<BuiltPlugin>> {
    let host_env = context.host_env();
    tokio::task::spawn_blocking(move || plugin_build::build(&request, host_env, &mut |text| say(text))).await?
}

async fn check(file: &Path, context: &Context) -> anyhow::Result<()> {
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = PluginName::parse(stem).with_context(|| format!("{} names no plugin", file.display()))?;
    let started = std::time::Instant::now();
    let loaded = tokio::task::spawn_blocking(move || {
        let runtime = Runtime::new(RuntimeSettings::default())?;
        anyhow::Ok(runtime.load(PluginSource { name, wasm, config: Default::default() }))
    })
    .await??;
    let version = match loaded {
        Ok(version) => version,
        Err(error) => bail!(EndedBadly(format!("{} is refused: {error}", file.display()))),
    };
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if context.json {
        return document(&json!({
            "name": version.name().to_string(),
            "version": version.label(),
            "hash": version.hash(),
            "size": version.size(),
            "methods": version.methods(),
            "watched": version.watched(),
            "loadMilliseconds": milliseconds,
        }));
    }
    let methods: Vec<_> = version.methods().iter().map(ToString::to_string).collect();
    line(&format!("{} {} fits", version.name(), version.label()))?;
    line(&format!("  methods   {}", or_none(&methods)))?;
    line(&format!("  watches   {}", or_none(version.watched())))?;
    line(&format!("  size      {} KiB, loaded in {milliseconds} ms", version.size().div_ceil(1024)))?;
    line(&format!("  hash      {}", version.hash()))
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let plugins = context.admin().get("/plugins").await?;
    if context.json {
        return document(&plugins);
    }
    let entries = plugins.as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            let version = &entry["version"];
            let names = |list: &Value| {
                let names: Vec<_> = list.as_array().into_iter().flatten().map(cell).collect();
                or_none(&names)
            };
            let state = match (version.is_null(), entry["refused"].is_null(), entry["removed"] == json!(true)) {
                (true, _, _) => "refused",
                (_, false, _) => "running, new file refused",
                (_, _, true) => "running, file removed",
                _ => "running",
            };
            vec![
                cell(&entry["name"]),
                cell(&version["label"]),
                state.to_owned(),
                names(&version["methods"]),
                names(&version["watched"]),
                cell(&entry["loadedAt"]),
            ]
        })
        .collect();
    table(&["PLUGIN", "VERSION", "STATE", "METHODS", "WATCHES", "SINCE"], &rows)?;
    for entry in entries {
        if let Some(reason) = entry["refused"]["reason"].as_str() {
            say(&format!("{} was refused: {reason}", cell(&entry["name"])));
        }
    }
    Ok(())
}

async fn swap(name: &str, file: &Path, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(name)?;
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let report = context.admin().put(&format!("/plugins/{name}"), wasm).await?;
    if context.json {
        return document(&report);
    }
    if report["from"] == report["to"] {
        return line(&format!("{name} {} runs already", cell(&report["to"])));
    }
    line(&format!("{name} {} -> {}", cell(&report["from"]), cell(&report["to"])))
}
