//! Timers outlive the process: a firmware update that was begun goes on after `kill -9`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, latch_json, plugin_folder, wait_until};

/// Four steps of a second each, and a busy machine.
const STEP_BOUND: Duration = Duration::from_secs(30);

fn firmware(data: &Path) -> Value {
    latch_json(data, &["twin", "show", "door-0001"])["properties"]["reported"]["firmware"].clone()
}

/// Looks until the update has come to `status`; every progress seen on the way goes to `seen`.
fn wait_for(data: &Path, status: &str, seen: &mut Vec<u64>) -> Value {
    wait_until(&format!("firmware status {status}"), STEP_BOUND, || {
        let firmware = firmware(data);
        let progress = firmware["progress"].as_u64()?;
        if seen.last() != Some(&progress) {
            seen.push(progress);
        }
        (firmware["status"] == status).then_some(firmware)
    })
}

#[test]
fn a_firmware_update_goes_on_after_the_host_was_killed() {
    let plugins = plugin_folder(&["firmware"]);
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let folder = plugins.path().to_str().expect("a plain path");
    let up = [&["up", "--devices", "1", "--plugins", folder], FREE_PORTS].concat();

    let latch = Latch::start(data.path(), &up);
    let method = ["method", "door-0001", "firmwareUpdate", "--payload", r#"{"version": "2.1.0"}"#];
    let answer = latch_json(data.path(), &method);
    assert_eq!(answer["status"], 202, "{answer}");
    let begun = json!({ "firmware": { "version": "2.1.0", "status": "downloading", "progress": 0 } });
    assert_eq!(answer["payload"], begun);
    let mut seen = Vec::new();
    wait_for(data.path(), "applying", &mut seen);
    latch.kill();

    let latch = Latch::start(data.path(), &up);
    let done = wait_for(data.path(), "done", &mut seen);
    assert_eq!(done, json!({ "version": "2.1.0", "status": "done", "progress": 100 }));
    assert!(seen.is_sorted() && seen.contains(&75), "no step is repeated or comes late: {seen:?}");
    assert!(latch.stop().success());
}
