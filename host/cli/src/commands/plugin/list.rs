//! `latch plugin list NAME`: who runs which version of one plugin.

use plugin_runtime::PluginName;
use serde_json::Value;

use super::super::rollout::{canary, pinned};
use crate::context::Context;
use crate::output::{cell, document, line, say, table};

/// Ids that are shown of the devices of one version.
const NAMED: usize = 5;
/// Devices that are shown of those that do not run what they should.
const ROWS: usize = 50;

pub(super) async fn run(name: &str, context: &Context) -> anyhow::Result<()> {
    let name = PluginName::parse(name)?;
    let plugin = context.admin().get(&format!("/plugins/{name}")).await?;
    if context.json {
        return document(&plugin);
    }
    if let Some(placement) = placement(&plugin["placement"]) {
        say(&format!("{name} is configured to run on {placement}"));
    }
    let rows: Vec<_> = list(&plugin["versions"]).iter().map(|version| row(version, &plugin["canary"])).collect();
    table(&["VERSION", "STATE", "CALLS", "FAILED", "DEVICES", "RUNNING ON", "SINCE", "HASH"], &rows)?;
    if let Some(reason) = plugin["refused"]["reason"].as_str() {
        say(&format!("a file of {name} was refused: {reason}"));
    }
    let troubled = troubled(&plugin);
    if troubled.is_empty() {
        return Ok(());
    }
    line("")?;
    table(&["DEVICE", "DOES NOT RUN", "WHY"], &troubled[..troubled.len().min(ROWS)])?;
    if let Some(more) = troubled.len().checked_sub(ROWS).filter(|more| *more > 0) {
        say(&format!("and {more} more devices; --json shows all"));
    }
    Ok(())
}

fn row(version: &Value, of_canary: &Value) -> Vec<String> {
    let state = if version["role"] == "canary" { canary(of_canary) } else { cell(&version["role"]) };
    vec![
        cell(&version["label"]),
        state + &pinned(version),
        cell(&version["calls"]),
        cell(&version["failures"]),
        cell(&version["devices"]),
        some(list(&version["deviceIds"])),
        cell(&version["arrivedAt"]),
        version["hash"].as_str().map_or_else(String::new, |hash| hash.chars().take(12).collect()),
    ]
}

/// The devices that the configuration names; nothing if it leaves the plugin to all.
fn placement(placement: &Value) -> Option<String> {
    let mut places: Vec<_> = list(placement.get("patterns")?).iter().map(cell).collect();
    let devices = list(&placement["deviceIds"]);
    if !devices.is_empty() {
        places.push(some(devices));
    }
    Some(if places.is_empty() { "no device".to_owned() } else { places.join(", ") })
}

/// The first few.
fn some(devices: &[Value]) -> String {
    let named: Vec<_> = devices.iter().take(NAMED).map(cell).collect();
    match devices.len().checked_sub(NAMED) {
        None if devices.is_empty() => "-".to_owned(),
        None | Some(0) => named.join(" "),
        Some(more) => format!("{} and {more} more", named.join(" ")),
    }
}

/// Devices that do not run what the rules say, with the version and the reason.
fn troubled(plugin: &Value) -> Vec<Vec<String>> {
    let quarantined =
        list(&plugin["quarantined"]).iter().map(|one| (one, "in quarantine: it failed too often".to_owned()));
    let held_back = list(&plugin["notActivated"]).iter();
    let held_back = held_back.map(|one| (one, format!("it was not activated: {}", cell(&one["reason"]))));
    let all = quarantined.chain(held_back);
    all.map(|(one, why)| vec![cell(&one["deviceId"]), cell(&one["version"]), why]).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn many_devices_are_few_words() {
        let devices: Vec<_> = (1..=7).map(|number| json!(format!("d{number}"))).collect();
        let shown = [0, 1, 5, 6, 7].map(|count| some(&devices[..count]));
        assert_eq!(shown, ["-", "d1", "d1 d2 d3 d4 d5", "d1 d2 d3 d4 d5 and 1 more", "d1 d2 d3 d4 d5 and 2 more"]);
    }

    #[test]
    fn where_a_plugin_may_run_is_told_if_it_is_not_everywhere() {
        let of = |patterns: &[&str], devices: &[&str]| json!({"patterns": patterns, "deviceIds": devices});
        assert_eq!(placement(&Value::Null), None);
        assert_eq!(placement(&of(&["door-*", "gate"], &["a", "b"])).as_deref(), Some("door-*, gate, a b"));
        assert_eq!(placement(&of(&[], &[])).as_deref(), Some("no device"));
    }

    #[test]
    fn who_does_not_run_what_it_should_is_told_with_the_reason() {
        let plugin = json!({
            "quarantined": [{"deviceId": "a", "version": "2.0.0"}],
            "notActivated": [{"deviceId": "b", "version": "3.0.0", "reason": "no room"}],
        });
        let expected =
            [["a", "2.0.0", "in quarantine: it failed too often"], ["b", "3.0.0", "it was not activated: no room"]];
        assert_eq!(troubled(&plugin), expected.map(|row| row.map(str::to_owned).to_vec()));
        assert!(troubled(&json!({})).is_empty());
    }
}
