//! `latch plugin`.

mod check;
mod list;
mod new;
pub(super) mod test;

use std::path::Path;

use anyhow::Context as _;
use plugin_runtime::PluginName;
use serde_json::{Value, json};

use super::{job, rollout};
use crate::args::{BuildArgs, BuildLanguage, PluginCommand, Toolchain};
use crate::context::Context;
use crate::output::{document, say, table};
use crate::plugin_build::{self, BuildRequest, BuiltPlugin, Language, PluginKind, ToolchainChoice};

pub(super) async fn run(command: PluginCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        PluginCommand::New(args) => new::run(&args, context),
        PluginCommand::Build(args) => build(args, context).await,
        PluginCommand::Test(args) => test::run(args, context).await,
        PluginCommand::Check { file } => check::run(&file, context).await,
        PluginCommand::List { name: None } => rollout::list(context).await,
        PluginCommand::List { name: Some(name) } => list::run(&name, context).await,
        PluginCommand::Swap(args) => rollout::swap(args, context).await,
        PluginCommand::Promote { name } => rollout::step(&name, "promote", context).await,
        PluginCommand::Rollback { name } => rollout::step(&name, "rollback", context).await,
        PluginCommand::Rollout(args) => job::rollout(*args, context).await,
        PluginCommand::Pin { name, wanted, devices } => rollout::pin(&name, &wanted, devices, context).await,
        PluginCommand::Unpin { name, devices, query } => rollout::unpin(&name, devices, query, context).await,
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
        languages: languages(&args.lang),
        tools_dir: args.tools,
        fixtures: args.fixtures,
    };
    let built = compile(request, context).await?;
    if context.json {
        let rows = built.iter().map(|plugin| {
            json!({
                "name": plugin.name,
                "version": plugin.version,
                "language": plugin.language.name(),
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
            let language = plugin.language.name();
            let texts = [&plugin.name, &plugin.version, language, &size, state, kind, &path];
            texts.map(str::to_owned).to_vec()
        })
        .collect();
    table(&["PLUGIN", "VERSION", "LANG", "SIZE", "STATE", "KIND", "FILE"], &rows)
}

fn languages(asked: &[BuildLanguage]) -> Vec<Language> {
    let languages = asked.iter().flat_map(|language| match language {
        BuildLanguage::Rust => &[Language::Rust][..],
        BuildLanguage::Js => &[Language::JavaScript],
        BuildLanguage::Python => &[Language::Python],
        BuildLanguage::C => &[Language::C],
        BuildLanguage::All => &Language::ALL,
    });
    languages.copied().collect()
}

/// Build, telling the steps on stderr.
pub(super) async fn compile(request: BuildRequest, context: &Context) -> anyhow::Result<Vec<BuiltPlugin>> {
    let host_env = context.host_env();
    tokio::task::spawn_blocking(move || plugin_build::build(&request, host_env, &mut |text| say(text))).await?
}

/// A component, and the plugin that its file's name names.
fn read_component(file: &Path) -> anyhow::Result<(PluginName, Vec<u8>)> {
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = PluginName::parse(stem).with_context(|| format!("{} names no plugin", file.display()))?;
    Ok((name, wasm))
}
