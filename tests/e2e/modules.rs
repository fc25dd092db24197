//! Modules of devices by the command line.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok};

#[test]
fn modules_are_made_listed_shown_and_deleted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let running = Latch::start(&data, &[&["hub", "--devices", "1"], FREE_PORTS].concat());
    let file = folder.path().join("lock.connstr").display().to_string();
    let made = latch_ok(&data, &["module", "create", "door-0001/lock", "--managed-by", "ops", "--save", &file]);
    assert_eq!(made, format!("created door-0001/lock\nits connection string is in {file}\n"));
    let string = fs::read_to_string(&file).expect("a connection string");
    assert!(string.starts_with("HostName=localhost;DeviceId=door-0001;ModuleId=lock;SharedAccessKey="), "{string}");
    let identity = latch_json(&data, &["module", "create", "door-0001/sensor"]);
    assert!(identity["authentication"]["symmetricKey"]["primaryKey"].is_string(), "who makes it needs its keys");
    let shown: Value = serde_json::from_str(&latch_ok(&data, &["module", "show", "door-0001/lock"])).expect("JSON");
    assert_eq!((&shown["moduleId"], &shown["managedBy"]), (&json!("lock"), &json!("ops")));
    assert_eq!(shown["authentication"]["symmetricKey"]["primaryKey"], "(hidden)");

    let listed = latch_ok(&data, &["module", "list"]);
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{listed}");
    assert_eq!((rows[1][0], rows[1][1], rows[1][2]), ("door-0001", "lock", "Disconnected"));
    assert_eq!(latch_json(&data, &["module", "list", "nobody"]), json!([]));

    latch_ok(&data, &["twin", "update", "door-0001/lock", "--desired", r#"{"bolts": 2}"#]);
    let twin = latch_json(&data, &["twin", "show", "door-0001/lock"]);
    assert_eq!((&twin["moduleId"], &twin["properties"]["desired"]["bolts"]), (&json!("lock"), &json!(2)));
    let away = latch(&data, &["method", "door-0001/lock", "turn"]);
    assert!(away.code != Some(0) && away.stderr.contains("DeviceNotOnline"), "{away:?}");
    let condition = "FROM devices.modules WHERE moduleId = 'lock'";
    latch_ok(&data, &["job", "twin", "--desired", r#"{"bolts": 3}"#, "--query", condition, "--id", "j", "--wait"]);
    let results = latch_ok(&data, &["job", "results", "j"]);
    assert!(results.contains("door-0001/lock  completed"), "{results}");

    let exported = latch_ok(&data, &["hub", "export", "-"]);
    assert_eq!(exported.lines().filter(|line| line.contains("\"moduleId\"")).count(), 2, "{exported}");
    let lines = folder.path().join("lines.jsonl");
    fs::write(&lines, &exported).expect("written");
    let (copy, lines) = (folder.path().join("copy"), lines.display().to_string());
    assert_eq!(latch_ok(&copy, &["hub", "import", &lines]), "imported 1 devices and 2 modules\n");
    let again = latch_json(&copy, &["hub", "import", &lines, "--skip-existing"]);
    assert_eq!(again, json!({"created": 0, "modules": 0, "skipped": 3, "failed": 0}));

    assert_eq!(latch_ok(&data, &["module", "delete", "door-0001/lock"]), "deleted door-0001/lock\n");
    let gone = latch(&data, &["module", "show", "door-0001/lock"]);
    assert!(gone.code != Some(0) && gone.stderr.contains("ModuleNotFound"), "{gone:?}");
    let wrong = latch(&data, &["module", "show", "door-0001"]);
    assert!(wrong.code != Some(0) && wrong.stderr.contains("DEVICE/MODULE"), "{wrong:?}");
    assert!(running.stop().success());
}
