//! Messages as plugins get them: from the cloud, and from each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{FREE_PORTS, Latch, guests, latch_json, latch_ok, wait_until};
use crate::operator;

/// From a message to what its plugin reports, through a debug build on a busy machine.
const SAID_BOUND: Duration = Duration::from_secs(60);

const CONFIGURATION: &str = r#"
    [devices]
    ids = ["hall-1", "hall-2", "hall-3", "cellar"]
    [plugins.announcer]
    devices = "hall-*"
    config = { beside = "hall-2 hall-3 cellar attic" }
    grants = { peers = ["hall-*", "cellar", "attic"] }
"#;

/// A folder with the plugins `names`, a configuration and a data folder.
fn fleet(configuration: &str, names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("plugins")).expect("made");
    for name in names {
        add(folder.path(), name);
    }
    fs::write(folder.path().join("latch.toml"), configuration).expect("written");
    folder
}

/// A plugin arrives, whole at once.
fn add(folder: &Path, name: &str) {
    let temporary = folder.join(".new");
    fs::copy(guests().join(format!("{name}.wasm")), &temporary).expect("copied");
    fs::rename(temporary, folder.join("plugins").join(format!("{name}.wasm"))).expect("renamed");
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn up(folder: &Path) -> Latch {
    let plugins = folder.join("plugins");
    let plugins = plugins.to_str().expect("paths of tests are text");
    Latch::start(&data(folder), &[&["up", "--plugins", plugins], FREE_PORTS].concat())
}

fn announcement(data: &Path, device: &str) -> Value {
    latch_json(data, &["twin", "show", device])
        .pointer("/properties/reported/announcement")
        .cloned()
        .unwrap_or_default()
}

fn said(data: &Path, device: &str, text: &str, from: &str) {
    wait_until(&format!("{device} says {text} from {from}"), SAID_BOUND, || {
        let announcement = announcement(data, device);
        (announcement["said"] == text && announcement["from"] == from).then_some(())
    });
}

fn actor(data: &Path, device: &str) -> Value {
    operator::actors(data).into_iter().find(|actor| actor["deviceId"] == device).expect("an actor")
}

#[test]
fn a_message_is_dealt_with_completed_and_passed_on_within_the_host() {
    let folder = fleet(CONFIGURATION, &["announcer", "lock-door"]);
    let latch = up(folder.path());
    let data = latch.data();
    let sent = latch_ok(data, &["message", "send", "hall-1", "fire drill", "--message-id", "m1", "--wait"]);
    assert_eq!(sent, "m1 Success\n");
    said(data, "hall-1", "fire drill", "cloud");
    said(data, "hall-2", "fire drill", "hall-1");
    said(data, "hall-3", "fire drill", "hall-1");
    wait_until("the other two are counted", SAID_BOUND, || (actor(data, "hall-1")["undelivered"] == 1).then_some(()));
    let lost = || (actor(data, "cellar")["lostMessages"] == 1).then_some(());
    wait_until("nobody listens in the cellar", SAID_BOUND, lost);
    assert!(latch.stop().success());
}

#[test]
fn without_a_grant_nothing_is_passed_on() {
    let configuration = CONFIGURATION.lines().filter(|line| !line.contains("grants")).collect::<Vec<_>>().join("\n");
    let folder = fleet(&configuration, &["announcer"]);
    let latch = up(folder.path());
    latch_ok(latch.data(), &["message", "send", "hall-1", "fire drill", "--wait"]);
    said(latch.data(), "hall-1", "fire drill", "cloud");
    assert_eq!(announcement(latch.data(), "hall-2"), Value::Null);
    let denied = || latch.transcript().contains("not passed on to hall-2: Error::Denied").then_some(());
    wait_until("the log says why", SAID_BOUND, denied);
}

#[test]
fn a_message_waits_in_the_hub_for_a_plugin_that_gets_messages() {
    let folder = fleet(CONFIGURATION, &["lock-door"]);
    let latch = up(folder.path());
    let data = latch.data();
    latch_ok(data, &["message", "send", "hall-1", "welcome"]);
    assert_eq!(actor(data, "hall-1")["messages"], 0);
    assert_eq!(latch_json(data, &["message", "list", "hall-1"]).as_array().map(Vec::len), Some(1));
    add(folder.path(), "announcer");
    said(data, "hall-1", "welcome", "cloud");
    let completed = || (latch_json(data, &["message", "list", "hall-1"]) == json!([])).then_some(());
    wait_until("the message is completed", SAID_BOUND, completed);
}

#[test]
fn a_message_that_is_put_off_comes_again_also_after_the_death_of_the_host() {
    let folder = fleet(CONFIGURATION, &["announcer"]);
    let first = up(folder.path());
    latch_ok(first.data(), &["twin", "update", "hall-1", "--desired", r#"{"muted": true}"#]);
    latch_ok(first.data(), &["message", "send", "hall-1", "later", "--message-id", "m1", "--ack", "full"]);
    wait_until("it is put off", SAID_BOUND, || {
        let actor = actor(first.data(), "hall-1");
        (actor["messages"] == 1 && actor["calls"] != 0 && actor["busy"] == false).then_some(())
    });
    assert_eq!(announcement(first.data(), "hall-1"), Value::Null);
    first.kill();

    let second = up(folder.path());
    let data = second.data();
    latch_ok(data, &["twin", "update", "hall-1", "--desired", r#"{"muted": false}"#]);
    said(data, "hall-1", "later", "cloud");
    wait_until("its sender is told", SAID_BOUND, || {
        let feedback = latch_ok(data, &["message", "feedback", "--json"]);
        let record: Value = serde_json::from_str(feedback.lines().next()?).expect("JSON");
        (record["originalMessageId"] == "m1" && record["statusCode"] == "Success").then_some(())
    });
}
