//! Automatic device management from the command line.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok, wait_until};

/// From a configuration to what it does.
const SEEN_BOUND: Duration = Duration::from_secs(20);

#[test]
fn a_configuration_is_made_counted_and_deleted() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    let file = data.join("chiller.json");
    let configuration = json!({
        "id": "chiller",
        "priority": 10,
        "targetCondition": "deviceId != 'door-0003'",
        "content": {"deviceContent": {"properties.desired.chiller": {"temperature": 66}}},
    });
    fs::write(&file, configuration.to_string()).expect("written");
    let path = file.to_str().expect("a readable name");
    assert_eq!(latch_ok(data, &["configuration", "create", path]), "created chiller\n");
    let again = latch(data, &["configuration", "create", path]);
    assert!(again.code == Some(1) && again.stderr.contains("already exists"), "{again:#?}");
    wait_until("the counts", SEEN_BOUND, || {
        let shown = latch_json(data, &["configuration", "show", "chiller"]);
        (shown["systemMetrics"]["results"] == json!({"targetedCount": 2, "appliedCount": 2})).then_some(())
    });
    let list = latch_ok(data, &["configuration", "list"]);
    let row = list.lines().nth(1).expect("a row").split_whitespace().collect::<Vec<_>>();
    assert_eq!(row[..4], ["chiller", "10", "2", "2"], "{list}");
    let twin = latch_json(data, &["twin", "show", "door-0001"]);
    assert_eq!(twin["properties"]["desired"]["chiller"], json!({"temperature": 66}));
    assert_eq!(latch_ok(data, &["configuration", "delete", "chiller"]), "deleted chiller\n");
    assert_eq!(latch_json(data, &["configuration", "list"]), json!([]));
    for (text, says) in [("{", "is not JSON"), ("{}", "has no \"id\""), (r#"{"id":"A"}"#, "lower-case")] {
        fs::write(&file, text).expect("written");
        let refused = latch(data, &["configuration", "create", path]);
        assert!(refused.code == Some(1) && refused.stderr.contains(says), "{text}: {refused:#?}");
    }
}
