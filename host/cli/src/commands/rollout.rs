//! `latch plugin list`, `swap`, `promote`, `rollback`, `pin` and `unpin`: which version runs where.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use iothub_protocol::id::DeviceId;
use iothub_protocol::query::{Condition, Query, Source};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use plugin_runtime::PluginName;
use serde_json::{Value, json};

use super::plugin;
use crate::args::{DevicesArgs, SwapArgs};
use crate::context::Context;
use crate::output::{cell, document, line, or_none, say, table};

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

pub(super) fn canary(canary: &Value) -> String {
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

pub(super) fn pinned(version: &Value) -> String {
    let pins: Vec<_> = version["pinned"].as_array().into_iter().flatten().map(cell).collect();
    if pins.is_empty() { String::new() } else { format!(", pinned for {}", pins.join(" ")) }
}

pub(super) async fn swap(args: SwapArgs, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(&args.name)?;
    let file = &args.file;
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if let Some(scenarios) = &args.test {
        let tested = plugin::test::must_pass(&name, &wasm, scenarios).await;
        tested.with_context(|| format!("{name} was not swapped"))?;
    }
    let query = query(&args);
    let admin = context.admin();
    let mut on = String::new();
    let report = match &args.devices.query {
        None => admin.put(&format!("/plugins/{name}{query}"), wasm).await?,
        Some(condition) => {
            let devices = selected(condition, context).await?;
            let staged = admin.put(&format!("/plugins/{name}?stage=true"), wasm).await?;
            let share = args.percent.map(|percent| format!("{percent}% of ")).unwrap_or_default();
            on = format!(" for {share}{} devices", devices.len());
            let mut body = json!({"version": staged["hash"], "devices": devices, "query": condition});
            for (key, number) in [
                ("percent", args.percent.map(u32::from)),
                ("window", args.window),
                ("maxFailures", args.max_failures.map(u32::from)),
            ] {
                if let Some(number) = number {
                    body[key] = number.into();
                }
            }
            admin.post(&format!("/plugins/{name}/canary"), &body).await?
        }
    };
    if context.json {
        return document(&report);
    }
    let (from, to) = (cell(&report["from"]), cell(&report["to"]));
    if !query.is_empty() || !on.is_empty() {
        return line(&format!("{name} {to} is a canary beside {from}{on}"));
    }
    if from == to {
        return line(&format!("{name} {to} runs already"));
    }
    line(&format!("{name} {from} -> {to}"))
}

fn query(args: &SwapArgs) -> String {
    let devices =
        args.devices.devices.as_deref().map(|devices| utf8_percent_encode(devices, NON_ALPHANUMERIC).to_string());
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

pub(super) async fn pin(name: &str, version: &str, devices: DevicesArgs, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(name)?;
    let DevicesArgs { devices, query } = devices;
    let body = match &query {
        None => json!({"version": version, "devices": devices}),
        Some(condition) => {
            json!({"version": version, "devices": selected(condition, context).await?, "query": condition})
        }
    };
    let pinned = context.admin().post(&format!("/plugins/{name}/pin"), &body).await?;
    if context.json {
        return document(&pinned);
    }
    line(&format!("{name} {} is pinned for {}", cell(&pinned["version"]), cell(&pinned["devices"])))
}

pub(super) async fn unpin(
    name: &str,
    devices: Option<String>,
    query: Option<String>,
    context: &Context,
) -> anyhow::Result<()> {
    let name = PluginName::parse(name)?;
    let body = json!({"devices": devices, "query": query});
    let removed = context.admin().post(&format!("/plugins/{name}/unpin"), &body).await?;
    if context.json {
        return document(&removed);
    }
    line(&format!("{name}: {} pins removed", cell(&removed["removed"])))
}

/// The devices that the hub gives for a condition on twins or for a whole `SELECT`, which must give their ids.
async fn selected(condition: &str, context: &Context) -> anyhow::Result<BTreeSet<DeviceId>> {
    let query = select(condition)?;
    let rows = context.service()?.query_all(&query).await?;
    let id = |row: &Value| match row["deviceId"].as_str() {
        Some(id) => Ok(DeviceId::parse(id)?),
        None => bail!("the query gives rows without deviceId\nhint: SELECT deviceId FROM devices WHERE …"),
    };
    let devices: BTreeSet<_> = rows.iter().map(id).collect::<anyhow::Result<_>>()?;
    if devices.is_empty() {
        bail!("no device meets: {condition}\nhint: latch query {query:?}");
    }
    Ok(devices)
}

fn select(condition: &str) -> anyhow::Result<String> {
    let text = condition.trim();
    if text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select")) {
        if Query::parse(text)?.source() != Source::Devices {
            bail!("--query is over devices: SELECT deviceId FROM devices WHERE …");
        }
        return Ok(text.to_owned());
    }
    let condition = Condition::parse_job(text)?;
    if condition.source() != Source::Devices {
        bail!("--query is over devices: SELECT deviceId FROM devices WHERE …");
    }
    if text.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("from")) {
        return Ok(format!("SELECT deviceId {text}"));
    }
    let everybody = condition.is_all();
    Ok(format!("SELECT deviceId FROM devices{}", if everybody { String::new() } else { format!(" WHERE {text}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_becomes_a_query_for_ids() {
        let all = "SELECT deviceId FROM devices";
        for (condition, expected) in [
            ("*", Some(all.to_owned())),
            (" tags.site = 'A' ", Some(format!("{all} WHERE tags.site = 'A'"))),
            (
                "select * from devices where tags.floor > 2",
                Some("select * from devices where tags.floor > 2".to_owned()),
            ),
            ("from devices where tags.floor > 2", Some("SELECT deviceId from devices where tags.floor > 2".to_owned())),
            ("SELECT * FROM devices.jobs", None),
            ("FROM devices.modules WHERE moduleId = 'm'", None),
            ("tags.site =", None),
            ("", None),
        ] {
            assert_eq!(select(condition).ok(), expected, "{condition:?}");
        }
    }
}
