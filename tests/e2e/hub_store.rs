//! What an operator does with a hub's store: import, export, indexes, a copy to go back to; whether the hub runs or not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::back_end::BackEnd;
use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok};

const DEVICES: usize = 3000;

fn file(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().expect("a readable name").to_owned()
}

/// Lines of devices from a number on.
fn lines(from: usize, count: usize) -> String {
    let line = |number: usize| {
        let tags = json!({"site": format!("s{}", number % 10)});
        format!("{}\n", json!({"id": format!("d-{number:05}"), "tags": tags}))
    };
    (from..from + count).map(line).collect()
}

fn hub(data: &Path) -> Latch {
    Latch::start(data, &[&["hub"], FREE_PORTS].concat())
}

fn of_site(data: &Path, site: &str) -> usize {
    BackEnd::of(data).query(&format!("SELECT deviceId FROM devices WHERE tags.site = '{site}'")).len()
}

#[test]
fn devices_are_imported_and_exported_whether_or_not_the_hub_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    let data = folder.join("data");
    let first = file(folder, "first.jsonl");
    fs::write(&first, lines(0, DEVICES)).expect("written");
    assert_eq!(latch_ok(&data, &["hub", "import", &first]), format!("imported {DEVICES} devices\n"));

    let running = hub(&data);
    assert_eq!(of_site(&data, "s7"), DEVICES / 10);
    let second = file(folder, "second.jsonl");
    fs::write(&second, lines(DEVICES, DEVICES)).expect("written");
    let imported = latch_json(&data, &["hub", "import", &second]);
    assert_eq!(imported, json!({"created": DEVICES, "modules": 0, "skipped": 0, "failed": 0}));
    assert_eq!(of_site(&data, "s7"), DEVICES / 5);
    // A device that was just made is like any other.
    latch_ok(&data, &["twin", "update", "d-05999", "--tags", r#"{"site": "elsewhere"}"#]);

    let mut exports = Vec::new();
    let exported = file(folder, "running.jsonl");
    assert_eq!(
        latch_ok(&data, &["hub", "export", &exported]),
        format!("exported {} devices to {exported}\n", 2 * DEVICES)
    );
    assert_eq!(fs::metadata(&exported).expect("there").permissions().mode() & 0o777, 0o600, "keys are in it");
    exports.push(fs::read_to_string(&exported).expect("text"));
    assert!(running.stop().success());
    exports.push(latch_ok(&data, &["hub", "export", "-"]));
    assert!(exports[0] == exports[1], "the same, whether the hub runs or not");
    assert!(!latch_ok(&data, &["hub", "export", "-", "--without-keys"]).contains("primaryKey"));

    let copy = folder.join("copy");
    latch_ok(&copy, &["hub", "import", &exported]);
    let without_etags = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            line["eTag"] = Value::Null;
            line
        });
        lines.collect()
    };
    assert!(without_etags(&latch_ok(&copy, &["hub", "export", "-"])) == without_etags(&exports[0]), "keys and all");
    let refused = latch(&copy, &["hub", "export", &exported]);
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("exists already"), "{refused:#?}");
}

#[test]
fn wrong_lines_are_told_with_their_numbers_and_the_others_imported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let wrong = file(folder.path(), "wrong.jsonl");
    let text = "{\"id\":\"a\"}\n\nnonsense\n{\"id\":\"b/c\"}\n{\"id\":\"a\"}\n{\"id\":\"d\",\"tags\":{\"x y\":1}}\n{\"id\":\"z\"}";
    fs::write(&wrong, text).expect("written");
    let check = |created: usize| {
        let outcome = latch(&data, &["hub", "import", &wrong]);
        assert_eq!(outcome.code, Some(4), "{outcome:#?}");
        assert_eq!(outcome.stdout, format!("imported {created} devices\n"));
        for (line, reason) in [(3, "no device"), (4, "contains '/'"), (5, "already registered"), (6, "contains ' '")] {
            let told = outcome.stderr.lines().find(|told| told.starts_with(&format!("{wrong}:{line}: ")));
            assert!(told.is_some_and(|told| told.contains(reason)), "line {line}: {outcome:#?}");
        }
    };
    check(2);
    let running = hub(&data);
    check(0);
    let skipping = latch(&data, &["hub", "import", &wrong, "--skip-existing"]);
    assert_eq!(skipping.stdout, "imported 0 devices, left 3 alone that exist\n", "{skipping:#?}");
    assert!(running.stop().success());
    let missing = latch(&data, &["hub", "import", "/nowhere"]);
    assert!(missing.code == Some(1) && missing.stderr.contains("cannot read /nowhere"), "{missing:#?}");
}

#[test]
fn indexes_are_declared_and_removed_whether_or_not_the_hub_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let nothing = latch(&data, &["hub", "index", "list"]);
    assert_eq!(nothing.code, Some(3), "{nothing:#?}");
    let devices = file(folder.path(), "devices.jsonl");
    fs::write(&devices, lines(0, DEVICES)).expect("written");
    latch_ok(&data, &["hub", "import", &devices]);
    assert_eq!(latch_ok(&data, &["hub", "index", "add", "tags.site"]), "indexed tags.site\n");
    let running = hub(&data);
    assert_eq!(latch_ok(&data, &["hub", "index", "add", "tags.site"]), "tags.site is indexed already\n");
    latch_ok(&data, &["hub", "index", "add", "properties.reported.a.b"]);
    assert_eq!(latch_json(&data, &["hub", "index", "list"]), json!(["properties.reported.a.b", "tags.site"]));
    assert_eq!(of_site(&data, "s3"), DEVICES / 10);
    latch_ok(&data, &["hub", "index", "remove", "tags.site"]);
    assert_eq!(of_site(&data, "s3"), DEVICES / 10);
    for (path, reason) in [("status", "cannot be indexed"), ("tags.a'b", "cannot be indexed")] {
        let refused = latch(&data, &["hub", "index", "add", path]);
        assert!(refused.code == Some(1) && refused.stderr.contains(reason), "{path}: {refused:#?}");
    }
    let gone = latch(&data, &["hub", "index", "remove", "tags.site"]);
    assert!(gone.code == Some(1) && gone.stderr.contains("no index of tags.site"), "{gone:#?}");
    assert!(running.stop().success());
    assert_eq!(latch_ok(&data, &["hub", "index", "list"]), "properties.reported.a.b\n");
    let mixed = latch(&data, &["hub", "--devices", "5", "index", "list"]);
    assert!(mixed.code == Some(2) && mixed.stderr.contains("cannot be used with"), "{mixed:#?}");
}

#[test]
fn a_copy_made_while_the_hub_runs_is_one_to_go_back_to() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let devices = file(folder.path(), "devices.jsonl");
    fs::write(&devices, lines(0, DEVICES)).expect("written");
    latch_ok(&data, &["hub", "import", &devices]);
    let running = hub(&data);
    let copy = file(folder.path(), "copy.db");
    assert_eq!(latch_ok(&data, &["hub", "backup", &copy]), format!("copied the hub's store to {copy}\n"));
    assert_eq!(fs::metadata(&copy).expect("there").permissions().mode() & 0o777, 0o600);
    let again = latch(&data, &["hub", "backup", &copy]);
    assert!(again.code == Some(1) && again.stderr.contains("exists"), "{again:#?}");
    latch_ok(&data, &["device", "delete", "d-00007"]);
    assert!(running.stop().success());

    for left in ["hub.db-wal", "hub.db-shm"] {
        // They are gone already if the hub was the last to close the store.
        drop(fs::remove_file(data.join(left)));
    }
    fs::copy(&copy, data.join("hub.db")).expect("put in its place");
    let running = hub(&data);
    latch_ok(&data, &["device", "show", "d-00007"]);
    assert!(running.stop().success());
}
