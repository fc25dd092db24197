//! `--dry-run`: what a job would come to.

use std::collections::HashSet;

use anyhow::bail;
use iothub_protocol::address::Address;
use iothub_protocol::job::JobRequest;
use iothub_service::ServiceClient;
use serde_json::{Value, json};

use super::targets::{Chosen, parts};
use crate::output::{cell, line, or_none, table};
use crate::progress;

/// Bytes of devices to leave out that go with each part of a list, about.
const MOST_EXCLUDED: usize = 400 * 1024;

pub(super) async fn ask(service: &ServiceClient, request: &JobRequest, chosen: &Chosen) -> anyhow::Result<Value> {
    let mut body = request.to_json();
    let (devices, left_out) = match chosen.devices.is_empty() {
        true => (Vec::new(), 0),
        // Those that both files list need not be sent.
        false => without(&chosen.devices, &chosen.excluded),
    };
    if !chosen.excluded.is_empty() {
        let exclude = &mut body["latch"]["targets"]["exclude"];
        match chosen.devices.is_empty() {
            true => {
                let excluded: Vec<_> = chosen.excluded.iter().map(Address::to_string).collect();
                if excluded.iter().map(String::len).sum::<usize>() > MOST_EXCLUDED {
                    bail!("--exclude-list is too long for a preview of a condition; give the devices by --list");
                }
                exclude["list"] = Value::Null;
                exclude["devices"] = json!(excluded);
            }
            false if exclude["condition"].is_null() => *exclude = Value::Null,
            false => exclude["list"] = Value::Null,
        }
    }
    if chosen.devices.is_empty() {
        return Ok(service.preview_job(body).await?);
    }
    if devices.is_empty() {
        bail!("every device of --list is in --exclude-list");
    }
    let bar = progress::count_bar("looked at", devices.len() as u64);
    let mut preview = json!({"tally": {"excluded": left_out}});
    for part in parts(&devices) {
        body["tally"] = preview["tally"].take();
        body["latch"]["targets"]["list"] = Value::Null;
        body["latch"]["targets"]["devices"] = json!(part.iter().map(Address::to_string).collect::<Vec<_>>());
        preview = service.preview_job(body.clone()).await?;
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    Ok(preview)
}

/// The devices that are not excluded, and how many are.
fn without(devices: &[Address], excluded: &[Address]) -> (Vec<Address>, usize) {
    let excluded: HashSet<&Address> = excluded.iter().collect();
    let is_excluded =
        |device: &Address| excluded.contains(device) || excluded.contains(&Address::from(device.device()));
    let kept: Vec<_> = devices.iter().filter(|device| !is_excluded(device)).cloned().collect();
    let count = devices.len() - kept.len();
    (kept, count)
}

/// For people.
pub(super) fn show(preview: &Value) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    for (name, member) in [
        ("devices", "targets"),
        ("excluded", "excluded"),
        ("do not exist", "missing"),
        ("disabled", "disabled"),
        ("connected", "connected"),
        ("listen for methods", "listening"),
    ] {
        row(name, cell(&preview[member]));
    }
    row("takes", format!("{} s to {} s", preview["seconds"]["least"], preview["seconds"]["most"]));
    if !preview["windowOpens"].is_null() {
        row("its window opens", cell(&preview["windowOpens"]));
    }
    if let Some(first) = preview["firstOccurrence"].as_str() {
        row("recurs", format!("first at {first}, for the devices that there are then"));
    }
    if let Some(seconds) = preview["continuousForSeconds"].as_u64() {
        row("continuous", format!("for {seconds} s, with devices that come to match meanwhile"));
    }
    for cost in list(&preview["cost"]) {
        let name = if cost["isOwn"] == true { "this hub" } else { "Azure would take" };
        let [tier, messages, daily] = ["tier", "messages", "dailyMessages"].map(|name| cell(&cost[name]));
        let text = format!("{tier}: {} s, {messages} of {daily} messages a day", cost["seconds"]);
        row(name, text);
    }
    for overlap in list(&preview["overlaps"]) {
        row("also in the job", format!("{}: {} devices", cell(&overlap["jobId"]), overlap["devices"]));
    }
    for rule in list(&preview["abort"]) {
        let text = format!("{} failures at the soonest, {} of all", rule["soonestAtFailures"], rule["ofAllAtFailures"]);
        row("aborted by", text);
    }
    let sample: Vec<_> = list(&preview["sample"]).map(cell).collect();
    row("first", or_none(&sample));
    for warning in list(&preview["warnings"]) {
        row("warning", cell(warning));
    }
    table(&["WHAT", "HOW MUCH"], &rows)?;
    let stages = list(&preview["stages"]).zip(1..).map(|(stage, number)| {
        let percent = stage["percent"].as_u64().map(|percent| format!("{percent}%"));
        let name = percent.unwrap_or_else(|| cell(&stage["condition"]));
        vec![number.to_string(), name, cell(&stage["devices"]), cell(&stage["abortsAtFailures"])]
    });
    let stages: Vec<_> = stages.collect();
    if stages.is_empty() {
        return Ok(());
    }
    line("")?;
    table(&["STAGE", "OF", "DEVICES", "ABORTED AT FAILURES"], &stages)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_files_list_is_left_out_with_modules() {
        let read = |texts: &[&str]| texts.iter().map(|text| Address::parse(text).expect(text)).collect::<Vec<_>>();
        let (kept, count) = without(&read(&["a", "a/m", "b", "b/m", "c"]), &read(&["a", "b/m", "x"]));
        assert_eq!((kept, count), (read(&["b", "c"]), 3));
    }
}
