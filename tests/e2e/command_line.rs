//! What people type: help, builds, the demo, files, events, hub and host apart.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::back_end::BackEnd;
use crate::harness::{
    FREE_PORTS, Latch, guests, latch, latch_command, latch_json, latch_ok, outcome, plugin_folder, repository, target,
    wait_until,
};

/// From a hub's return to its devices': their pauses grow while it is away.
const RETURN_BOUND: Duration = Duration::from_secs(60);
/// From something a command or device did to its being seen.
const SEEN_BOUND: Duration = Duration::from_secs(20);
/// What a rebuild of unchanged plugins may take.
const REBUILD_BOUND: Duration = Duration::from_secs(2);

#[test]
fn help_names_the_commands_and_the_exit_codes() {
    let nowhere = Path::new("unused");
    let help = latch_ok(nowhere, &["--help"]);
    let commands = help.split_once("Commands:\n").expect("commands").1.split_once("\n\n").expect("an end").0;
    let commands: Vec<_> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for command in [
        "demo",
        "up",
        "hub",
        "run",
        "device",
        "module",
        "twin",
        "method",
        "message",
        "query",
        "job",
        "events",
        "configuration",
        "plugin",
    ] {
        assert!(commands.contains(&command), "no {command} in\n{help}");
        assert!(latch_ok(nowhere, &[command, "--help"]).contains("Usage: latch "), "{command}");
    }
    let codes = help.split_once("Exit codes:\n").expect("exit codes").1;
    let codes: Vec<_> = codes.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(codes, ["0", "1", "2", "3", "4"], "{help}");
    assert!(latch_ok(nowhere, &["--version"]).starts_with("latch 0."));
}

#[test]
fn plugins_are_built_whatever_the_environment_is_set_for_and_quickly_again() {
    guests();
    let out = tempfile::tempdir().expect("a temporary folder");
    build_in_another_builds_environment(out.path());
    for plugin in ["building.wasm", "lock-door.wasm", "next/lock-door.wasm"] {
        let (here, there) = (out.path().join(plugin), guests().join(plugin));
        assert!(fs::read(here).expect("built") == fs::read(there).expect("built"), "{plugin} is not always the same");
    }
    // Other tests take the processors from some of them.
    let rebuilds: Vec<_> = (0..3).map(|_| build_in_another_builds_environment(out.path())).collect();
    assert!(rebuilds.iter().all(|(_, unchanged)| *unchanged));
    let best = rebuilds.iter().map(|(took, _)| *took).min().expect("three");
    assert!(best < REBUILD_BOUND, "a rebuild with nothing changed takes {best:?}");
}

/// How long a build of all plugins took, and whether it changed nothing.
fn build_in_another_builds_environment(out: &Path) -> (Duration, bool) {
    let mut command = latch_command(out, &["plugin", "build", "--json"]);
    command.arg("--out").arg(out).arg("--tools").arg(target().join("tools"));
    // Cargo would follow each of them, and compile with it again what is compiled already.
    for name in ["RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "CARGO_BUILD_TARGET", "RUSTC"] {
        command.env(name, "/dev/null/nonsense");
    }
    let begun = Instant::now();
    let built = outcome(&mut command);
    let took = begun.elapsed();
    assert_eq!(built.code, Some(0), "{built:#?}");
    let rows: Vec<Value> = serde_json::from_str(&built.stdout).expect("JSON");
    for (name, version) in [("building", "1.0.0"), ("lock-door", "1.0.0"), ("lock-door", "2.0.0")] {
        let found = rows.iter().any(|row| row["name"] == json!(name) && row["version"] == json!(version));
        assert!(found, "{name} {version} was not built: {rows:#?}");
    }
    (took, rows.iter().all(|row| row["changed"] == json!(false)))
}

#[test]
fn the_demo_tells_the_truth() {
    guests();
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Builds go to the folder `target` where it is run.
    symlink(target(), folder.path().join("target")).expect("a link");
    let source = repository().join("plugins");
    let source = source.to_str().expect("a readable name");
    let mut demo = latch_command(folder.path(), &["demo", "--devices", "10", "--source", source]);
    demo.current_dir(folder.path());
    let told = outcome(&mut demo);
    assert_eq!(told.code, Some(0), "{told:#?}");
    for text in [
        "10 doors connected over MQTT and TLS",
        "10 doors answered, each through lock-door 1.0.0",
        "accepted the change on all 10 doors",
        "1.0.0 -> 2.0.0",
        "calls lost: 0",
        "10 doors answered, each through lock-door 2.0.0",
        "Done in ",
    ] {
        assert!(told.stdout.contains(text), "no {text:?} in\n{}\n{}", told.stdout, told.stderr);
    }
}

#[test]
fn the_data_folder_is_private() {
    let parent = tempfile::tempdir().expect("a temporary folder");
    let data = parent.path().join("data");
    let admin = ["up", "--devices", "2", "--admin", "127.0.0.1:0"];
    let _latch = Latch::start(&data, &[&admin, FREE_PORTS].concat());
    latch_ok(&data, &["device", "create", "later"]);
    wait_until("the new device's file", SEEN_BOUND, || data.join("devices/later.connstr").exists().then_some(()));
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join("devices"))), (0o700, 0o700));
    let public = ["ca.pem"];
    for folder in [data.clone(), data.join("devices")] {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && !public.contains(&name.as_str()) {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
    }
    for file in ["ca.key", "service.connstr", "admin.sock", "admin.token", "devices/door-0001.connstr"] {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
}

#[test]
fn events_show_what_a_door_says() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path().to_str().expect("a readable name"));
    let _latch = Latch::start(data, &[&["up", "--devices", "2", "--plugins", plugins], FREE_PORTS].concat());
    let answer = latch_json(data, &["method", "door-0001", "lockDoor", "--payload", r#"{"by": "ann"}"#]);
    assert_eq!(answer, json!({"status": 200, "payload": {"locked": true, "count": 1, "version": "1.0.0"}}));

    let events = wait_until("the door's event", SEEN_BOUND, || {
        let events = latch_ok(data, &["events", "--device", "door-0001", "--kind", "telemetry,reported", "--json"]);
        let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        (events.len() == 2).then_some(events)
    });
    let event = |kind: &str| events.iter().find(|event| event["kind"] == json!(kind)).expect(kind);
    let moved = json!({"event": "doorMoved", "locked": true, "by": "ann", "count": 1});
    assert_eq!(event("telemetry")["body"], moved);
    assert_eq!(event("telemetry")["properties"]["event"], json!("doorMoved"));
    assert_eq!(event("reported")["body"]["properties"]["reported"]["door"], json!({"locked": true}));
    let shown = latch_ok(data, &["events", "--device", "door-0002"]);
    assert!(shown.contains("door-0002 connected") && !shown.contains("door-0001"), "{shown}");
}

#[test]
fn a_host_of_its_own_follows_a_hub_that_dies_and_comes_back() {
    let (hub_data, host_data) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (hub_data, host_data) = (hub_data.path(), host_data.path());
    let plugins = plugin_folder(&["lock-door"]);
    let hub = Latch::start(hub_data, &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    let ports = hub.same_ports();
    let (connections, ca) = (hub_data.join("devices"), hub_data.join("ca.pem"));
    let text = |path: &Path| path.to_str().expect("a readable name").to_owned();
    let (connections, ca, folder) = (text(&connections), text(&ca), text(plugins.path()));
    let host = ["run", "--connections", &connections, "--ca", &ca, "--plugins", &folder];
    let host = Latch::start(host_data, &host);
    assert_eq!(host.ready(), "ready devices=3 plugins=1");

    let back_end = BackEnd::of(hub_data);
    assert_eq!(back_end.call("door-0001", "lockDoor").status, 200);
    let next = text(&guests().join("next/lock-door.wasm"));
    assert_eq!(latch_ok(host_data, &["plugin", "swap", "lock-door", &next]), "lock-door 1.0.0 -> 2.0.0\n");
    let on_the_hub = latch(hub_data, &["plugin", "list"]);
    assert_eq!(on_the_hub.code, Some(1), "the hub alone runs no plugins: {on_the_hub:?}");

    hub.kill();
    let gone = latch(hub_data, &["method", "door-0001", "lockDoor"]);
    assert_eq!(gone.code, Some(3), "{gone:?}");
    let again: Vec<_> = ["hub"].into_iter().chain(ports.iter().map(String::as_str)).collect();
    let hub = Latch::start(hub_data, &again);
    wait_until("all devices are back", RETURN_BOUND, || {
        let connected = "SELECT COUNT() AS doors FROM devices WHERE connectionState = 'Connected'";
        (latch_json(hub_data, &["query", connected]) == json!([{"doors": 3}])).then_some(())
    });
    let answer = latch_json(hub_data, &["method", "door-0001", "lockDoor", "--connect-timeout", "30"]);
    assert_eq!((&answer["status"], &answer["payload"]["count"]), (&json!(409), &json!(1)), "{answer:#}");
    assert_eq!(answer["payload"]["version"], json!("2.0.0"), "{answer:#}");
    assert!(host.stop().success() && hub.stop().success());
}
