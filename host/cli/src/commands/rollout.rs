//! `latch plugin list`, `swap`, `promote`, `rollback`, `pin` and `unpin`: which version runs where.

use anyhow::Context as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use plugin_runtime::PluginName;
use serde_json::{Value, json};

use super::plugin::or_none;
use crate::args::SwapArgs;
use crate::context::Context;
use crate::output::{cell, document, line, say, table};

pub(super) async fn list(context: &Context) -> anyhow::Result<()> {
    let plugins = context.admin().get("/plugins").await?;
    if context.json {
        return document(&plugins);
    }
    let entries = plugins.as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = entries.iter().flat_map(rows).collect();
    table(&["PLUGIN", "VERSION", "STATE", "DEVICES", "METHODS", "WATCHES", "SINCE"], &rows)?;
    for entry in entries {
        let name = cell(&entry["name"]);
        if let Some(reason) = entry["refused"]["reason"].as_str() {
            say(&format!("{name} was refused: {reason}"));
        }
        let withdrawn = &entry["withdrawn"];
        if let Some(reason) = withdrawn["reason"].as_str() {
            say(&format!("{name} {} was withdrawn: {reason}", cell(&withdrawn["version"])));
        }
    }
    Ok(())
}

/// The current version, then every other one that is kept.
fn rows(entry: &Value) -> Vec<Vec<String>> {
    let version = &entry["version"];
    let names = |list: &Value| {
        let names: Vec<_> = list.as_array().into_iter().flatten().map(cell).collect();
        or_none(&names)
    };
    let versions = entry["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let current = versions.iter().find(|known| known["role"] == "current");
    let state = match (version.is_null(), entry["refused"].is_null(), entry["removed"] == json!(true)) {
        (true, _, _) => "refused",
        (_, false, _) => "running, new file refused",
        (_, _, true) => "running, file removed",
        _ => "running",
    };
    let first = vec![
        cell(&entry["name"]),
        cell(&version["label"]),
        state.to_owned() + &current.map(pinned).unwrap_or_default(),
        current.map_or_else(|| "-".to_owned(), |current| cell(&current["devices"])),
        names(&version["methods"]),
        names(&version["watched"]),
        cell(&entry["loadedAt"]),
    ];
    let others = versions.iter().filter(|known| known["role"] != "current").map(|known| {
        let state = if known["role"] == "canary" { canary(&entry["canary"]) } else { cell(&known["role"]) };
        let (label, state) = (cell(&known["label"]), state + &pinned(known));
        let none = || "-".to_owned();
        vec![cell(&entry["name"]), label, state, cell(&known["devices"]), none(), none(), cell(&known["arrivedAt"])]
    });
    [first].into_iter().chain(others).collect()
}

fn canary(canary: &Value) -> String {
    let text = |name: &str| cell(&canary[name]);
    let devices = if canary["devices"] == "*" { String::new() } else { format!(" of {}", text("devices")) };
    format!(
        "canary {}%{devices}, {}: {} of {} calls failed",
        text("percent"),
        text("status"),
        text("failures"),
        text("calls")
    )
}

fn pinned(version: &Value) -> String {
    let pins: Vec<_> = version["pinned"].as_array().into_iter().flatten().map(cell).collect();
    if pins.is_empty() { String::new() } else { format!(", pinned for {}", pins.join(" ")) }
}

pub(super) async fn swap(args: SwapArgs, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(&args.name)?;
    let file = &args.file;
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let query = query(&args);
    let report = context.admin().put(&format!("/plugins/{name}{query}"), wasm).await?;
    if context.json {
        return document(&report);
    }
    let (from, to) = (cell(&report["from"]), cell(&report["to"]));
    if !query.is_empty() {
        return line(&format!("{name} {to} is a canary beside {from}"));
    }
    if from == to {
        return line(&format!("{name} {to} runs already"));
    }
    line(&format!("{name} {from} -> {to}"))
}

fn query(args: &SwapArgs) -> String {
    let devices = args.devices.as_deref().map(|devices| utf8_percent_encode(devices, NON_ALPHANUMERIC).to_string());
    let parts = [
        ("percent", args.percent.map(|percent| percent.to_string())),
        ("devices", devices),
        ("window", args.window.map(|seconds| seconds.to_string())),
        ("maxFailures", args.max_failures.map(|percent| percent.to_string())),
    ];
    let parts: Vec<_> = parts.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))).collect();
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

/// `promote` or `rollback`.
pub(super) async fn step(name: &str, step: &str, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(name)?;
    let report = context.admin().post(&format!("/plugins/{name}/{step}"), &Value::Null).await?;
    if context.json {
        return document(&report);
    }
    line(&format!("{name} {} -> {}", cell(&report["from"]), cell(&report["to"])))
}

pub(super) async fn pin(name: &str, version: &str, devices: Option<String>, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(name)?;
    let body = json!({"version": version, "devices": devices});
    let pinned = context.admin().post(&format!("/plugins/{name}/pin"), &body).await?;
    if context.json {
        return document(&pinned);
    }
    line(&format!("{name} {} is pinned for {}", cell(&pinned["version"]), cell(&pinned["devices"])))
}

pub(super) async fn unpin(name: &str, devices: Option<String>, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(name)?;
    let removed = context.admin().post(&format!("/plugins/{name}/unpin"), &json!({"devices": devices})).await?;
    if context.json {
        return document(&removed);
    }
    line(&format!("{name}: {} pins removed", cell(&removed["removed"])))
}
