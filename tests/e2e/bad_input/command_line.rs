//! Bad commands, folders and files.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::back_end::BackEnd;
use crate::harness::{FREE_PORTS, Latch, guests, latch, latch_command, outcome, plugin_folder, wait_until};
use crate::operator;

/// From a file's arrival to its being current or refused.
const TAKEN_BOUND: Duration = Duration::from_secs(30);

#[test]
fn commands_are_refused_with_a_code_and_a_reason() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let hub = Latch::start(data.path(), &[&["hub", "--devices", "1"], FREE_PORTS].concat());
    let bad_ca = data.path().join("bad.pem");
    fs::write(&bad_ca, "hello").expect("written");
    let (bad_ca, pid) = (bad_ca.to_str().expect("a readable name"), hub.pid().to_string());

    for (args, code, says) in [
        (&["device", "show", "nobody"][..], 1, "DeviceNotFound: "),
        (&["twin", "show", "nobody"], 1, "DeviceNotFound: "),
        (&["method", "nobody", "lockDoor"], 1, "DeviceNotFound: "),
        (&["method", "door-0001", "lockDoor"], 1, "DeviceNotOnline: "),
        (&["method", "door-0001", "lockDoor", "--payload", "{by: ann}"], 1, "--payload is not JSON"),
        (&["device", "create", "door-0001"], 1, "DeviceAlreadyExists: "),
        (&["twin", "update", "door-0001", "--desired", "[1]"], 1, "--desired is not a JSON object"),
        (&["twin", "update", "door-0001", "--tags", "{}", "--etag", "stale"], 1, "PreconditionFailed: "),
        (&["query", "SELECT FROM devices"], 1, "1:8"),
        (&["query", "SELECT * FROM devices ORDER BY deviceId"], 1, "\n                        ^"),
        (&["job", "show", "nothing"], 1, "JobNotFound: "),
        (&["job", "results", "nothing"], 1, "JobNotFound: "),
        (&["job", "method", "lockDoor", "--query", "*", "--start", "tomorrow"], 1, "is not a time with a zone"),
        (&["job", "twin", "--tags", "{}", "--query", "*", "--soak", "10s"], 1, "need --success-by plugin:NAME"),
        (&["job", "twin", "--tags", "{}", "--query", "*", "--stage", "5,50"], 1, "must end with {\"percent\": 100}"),
        (
            &["plugin", "rollout", "lock-door", "2.0.0", "--query", "*", "--stage", "50,5"],
            1,
            "percent must be above 50",
        ),
        (&["device", "list", "--ca", bad_ca], 1, "bad.pem cannot be used"),
        (&["device", "list", "--hub", bad_ca], 1, "holds no service connection string"),
        (&["device", "list", "--hub", "/nowhere"], 1, "cannot read /nowhere"),
        (&["plugin", "swap", "lock-door", "/nowhere.wasm"], 1, "cannot read /nowhere.wasm"),
        (&["run", "--connections", bad_ca], 1, "bad.pem:1: "),
        (&["hub", "--https", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"], 1, &format!("is in use by process {pid}\n")),
        (&["up", "--https", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"], 1, &format!("is in use by process {pid}\n")),
        (&[], 2, "Usage: latch"),
        (&["dance"], 2, "unrecognized subcommand 'dance'"),
        (&["method", "door-0001"], 2, "<NAME>"),
        (&["method", "door-0001", "lock door"], 2, "invalid value 'lock door'"),
        (&["method", "door-0001", "lockDoor", "--response-timeout", "4"], 2, "4 is not in 5..=300"),
        (&["twin", "update", "door-0001"], 2, "--desired <JSON>"),
        (&["job", "method", "lockDoor", "--query", "*", "--pause", "10s"], 2, "--stage <PERCENT"),
        (&["job", "method", "lockDoor", "--query", "*", "--abort-failures", "110%"], 2, "a whole number up to 100"),
        (&["job", "twin", "--tags", "{}", "--query", "*", "--success-by", "luck"], 2, "plugin:NAME"),
        (&["up", "--devices", "many"], 2, "invalid value 'many'"),
        (&["up", "--mqtt", "here"], 2, "invalid value 'here'"),
    ] {
        let refused = latch(data.path(), args);
        assert_eq!(refused.code, Some(code), "{args:?}: {refused:#?}");
        assert!(refused.stderr.contains(says), "{args:?} should say {says:?}: {refused:#?}");
        assert!(refused.stdout.is_empty(), "{args:?}: {refused:#?}");
        super::assert_healthy(data.path(), &args.join(" "));
    }
}

#[test]
fn nobody_answers() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    for args in [&["device", "list"][..], &["job", "list"], &["plugin", "list"], &["events"]] {
        let refused = latch(empty.path(), args);
        assert_eq!(refused.code, Some(3), "{args:?}: {refused:#?}");
        assert!(refused.stderr.contains("hint: start"), "{args:?}: {refused:#?}");
    }
    let stopped = tempfile::tempdir().expect("a temporary folder");
    assert!(Latch::start(stopped.path(), &[&["hub"], FREE_PORTS].concat()).stop().success());
    let refused = latch(stopped.path(), &["device", "list"]);
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    assert!(refused.stderr.contains("connection refused, nothing listens there"), "{refused:#?}");
}

#[test]
fn another_hubs_authority_is_not_trusted() {
    let (ours, theirs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let _ours = Latch::start(ours.path(), &[&["hub"], FREE_PORTS].concat());
    let _theirs = Latch::start(theirs.path(), &[&["hub"], FREE_PORTS].concat());
    let ca = theirs.path().join("ca.pem");
    let refused = latch(ours.path(), &["device", "list", "--ca", ca.to_str().expect("a readable name")]);
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    assert!(refused.stderr.contains("not from a CA that is trusted here"), "{refused:#?}");
}

#[test]
fn plugin_folders_and_files() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let refused = latch(data.path(), &[&["up", "--plugins", "/nowhere"], FREE_PORTS].concat());
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("the plugin directory /nowhere cannot be read"), "{refused:#?}");
    assert!(refused.stderr.contains("latch plugin build"), "{refused:#?}");

    // One bad file is no reason not to run the good ones.
    let plugins = plugin_folder(&["lock-door"]);
    fs::write(plugins.path().join("notes.wasm"), "remember the milk").expect("written");
    let folder = plugins.path().to_str().expect("a readable name");
    let latch_up = Latch::start(data.path(), &[&["up", "--devices", "1", "--plugins", folder], FREE_PORTS].concat());
    assert!(latch_up.ready().ends_with("devices=1 plugins=1"), "{}", latch_up.ready());
    let list = latch(data.path(), &["plugin", "list"]);
    assert!(list.stdout.lines().any(|line| line.starts_with("notes ") && line.contains("refused")), "{list:#?}");
    let reason = "notes was refused: the file is text, not a compiled component: it begins with \"remember the";
    assert!(list.stderr.contains(reason), "{list:#?}");
    assert_eq!(BackEnd::of(data.path()).call("door-0001", "lockDoor").status, 200);

    // Two plugins for one method: the one that was first has it.
    fs::copy(guests().join("lock-door.wasm"), plugins.path().join("other-door.wasm")).expect("copied");
    let refusal = wait_until("a refusal", TAKEN_BOUND, || operator::plugin(data.path(), "other-door").1);
    assert!(refusal.contains("the plugins other-door and lock-door both answer the method lockDoor"), "{refusal}");
    super::assert_healthy(data.path(), "bad plugin files");
}

#[test]
fn plugin_check_tells_what_does_not_fit() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let text = data.path().join("text.wasm");
    fs::write(&text, "(component)").expect("written");
    let wrong_world = guests().join("fixtures/wrong-world.wasm");
    for (file, code, says) in [
        (&text, 4, "text.wasm is refused: the file is text, not a compiled component"),
        (&wrong_world, 4, "a plugin exports `iothub:plugin/methods@0.1.0`"),
        (&data.path().join("none.wasm"), 1, "cannot read"),
    ] {
        let checked = latch(data.path(), &["plugin", "check", file.to_str().expect("a readable name")]);
        assert_eq!(checked.code, Some(code), "{checked:#?}");
        assert!(checked.stderr.contains(says), "{checked:#?}");
    }
    let good = guests().join("lock-door.wasm");
    let checked = latch(data.path(), &["plugin", "check", good.to_str().expect("a readable name")]);
    assert_eq!(checked.code, Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("lock-door 1.0.0 fits") && checked.stdout.contains("lockDoor, unlockDoor"));
    // What Rust's runtime imports; which of it is up to the toolchain, but no socket is.
    let may_use = checked.stdout.lines().find(|line| line.starts_with("  grants    may use: "));
    let is_some = |grants: &str| grants.contains("environment") || grants.contains("clock");
    assert!(may_use.is_some_and(|grants| is_some(grants) && !grants.contains("addresses")), "{checked:#?}");
    let checked = latch(data.path(), &["plugin", "check", "--json", good.to_str().expect("a readable name")]);
    let report: serde_json::Value = serde_json::from_str(&checked.stdout).expect("JSON");
    let may_use = report["mayUse"].as_array().expect("a list");
    assert!(!may_use.is_empty() && !may_use.contains(&"addresses".into()), "{report}");
}

#[test]
fn more_devices_than_the_system_lets_connect() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let latch = latch_command(data.path(), &[&["up", "--devices", "1000000"], FREE_PORTS].concat());
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 2256 && exec \"$0\" \"$@\""]).arg(latch.get_program()).args(latch.get_args());
    let refused = outcome(&mut limited);
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("1000000 devices do not fit"), "{refused:#?}");
    assert!(refused.stderr.contains("enough for 1000 devices"), "{refused:#?}");
}
