//! The fleet's configuration: where plugins run, what they are told, and what changes without a restart.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use iothub_service::ServiceClient;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::back_end::{self, BackEnd, door};
use crate::harness::{FREE_PORTS, Latch, guests, latch, latch_json, latch_ok, plugin_folder, wait_until};
use crate::operator;

/// From a change of a file to its effect: a quiet moment, a debug build that loads plugins anew, a busy machine.
const TAKEN_BOUND: Duration = Duration::from_secs(60);
const SECRET: &str = "hush-hush-1234";

/// A folder with plugins and their configuration, and a data folder.
struct Fleet {
    folder: TempDir,
}

impl Fleet {
    /// lock-door, a later lock-door named lock-gate, and building.
    fn new(configuration: &str) -> Fleet {
        let fleet = Fleet { folder: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir(fleet.path("plugins")).expect("made");
        for (from, to) in [("lock-door", "lock-door"), ("next/lock-door", "lock-gate"), ("building", "building")] {
            let to = fleet.path("plugins").join(format!("{to}.wasm"));
            fs::copy(guests().join(format!("{from}.wasm")), to).expect("copied");
        }
        fleet.write("token.txt", SECRET);
        fleet.write("latch.toml", configuration);
        fleet
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file as editors do.
    fn write(&self, name: &str, content: &str) {
        let temporary = self.path(".new");
        fs::write(&temporary, content).expect("written");
        fs::rename(temporary, self.path(name)).expect("renamed");
    }

    fn up(&self, args: &[&str]) -> Latch {
        let plugins = self.path("plugins");
        Latch::start(&self.path("data"), &[&["up", "--plugins", text(&plugins)], args, FREE_PORTS].concat())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// Doors and gates, each with a plugin of its own for the same methods.
fn doors_and_gates(devices: &str, highest_floor: u32) -> String {
    format!(
        r#"
        [devices]
        {devices}
        [plugins.lock-door]
        devices = "door-*"
        config = {{ token = {{ file = "token.txt" }}, highest-floor = {highest_floor} }}
        [plugins.lock-gate]
        devices = ["gate-*"]
        devices-file = "more-gates.txt"
        [plugins.building]
        config = {{ highest-floor = {highest_floor} }}
        "#
    )
}

/// What the plugin `building` says of a floor.
fn floor_status(back_end: &BackEnd, data: &Path, device: &str, floor: u32) -> Value {
    latch_ok(data, &["twin", "update", device, "--desired", &json!({ "floor": floor }).to_string()]);
    wait_until("the floor is answered", TAKEN_BOUND, || {
        let rows = back_end.query(&format!("SELECT * FROM devices WHERE deviceId = '{device}'"));
        let (desired, answer) = (&rows[0]["properties"]["desired"], &rows[0]["properties"]["reported"]["floor"]);
        (answer["av"] == desired["$version"]).then(|| answer["ac"].clone())
    })
}

fn said(latch: &Latch, words: &str) {
    wait_until(&format!("it says `{words}`"), TAKEN_BOUND, || latch.transcript().contains(words).then_some(()));
}

#[test]
fn plugins_run_where_they_are_placed_on_the_terms_that_they_are_given() {
    let fleet =
        Fleet::new(&doors_and_gates("pattern = [\"door-{1..2}\", \"gate-{1..2}\"]\nids = [\"hall\", \"porch\"]", 5));
    fleet.write("more-gates.txt", "# by tag\nporch\n");
    let latch = fleet.up(&[]);
    assert!(latch.ready().contains("devices=6 plugins=3"), "{}", latch.ready());
    let back_end = BackEnd::of(latch.data());
    for (device, version) in [("door-1", "1.0.0"), ("door-2", "1.0.0"), ("gate-1", "2.0.0"), ("porch", "2.0.0")] {
        assert_eq!(back_end.call(device, "lockDoor").payload["version"], version, "{device}");
    }
    assert_eq!(back_end.call("hall", "lockDoor").status, 404);
    for (device, floor, status) in [("hall", 5, 200), ("hall", 6, 400), ("door-1", 6, 400)] {
        assert_eq!(floor_status(&back_end, latch.data(), device, floor), status, "{device} {floor}");
    }
    let reason = "the plugin lock-door is not placed on this device";
    latch_ok(
        latch.data(),
        &["twin", "update", "gate-1", "--desired", r#"{"latch": {"plugins": {"lock-door": "1.0.0"}}}"#],
    );
    wait_until("a pin for another device is answered", TAKEN_BOUND, || {
        let rows = back_end.query("SELECT * FROM devices WHERE deviceId = 'gate-1'");
        (rows[0]["properties"]["reported"]["latch"]["plugins"]["lock-door"]["reason"] == reason).then_some(())
    });
    let placed = latch_json(latch.data(), &["plugin", "list", "lock-gate"])["placement"].clone();
    assert_eq!(placed, json!({"patterns": ["gate-*"], "deviceIds": ["porch"]}));
    assert!(!latch.transcript().contains(SECRET));
    assert!(latch.stop().success());

    let latch = fleet.up(&["--devices", "3"]);
    assert!(latch.ready().contains("devices=3 "), "flags win: {}", latch.ready());
}

#[test]
fn a_changed_configuration_is_taken_while_calls_run_and_none_is_lost() {
    let fleet = Fleet::new(&doors_and_gates("pattern = \"door-{0001..0005}\"", 5));
    fleet.write("more-gates.txt", "");
    let latch = fleet.up(&[]);
    let data = latch.data();
    let back_end = BackEnd::of(data);
    assert_eq!(back_end.call(&door(5), "lockDoor").payload["count"], 1);

    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for number in 1..=4 {
        let calls = call_until(back_end.service.clone(), door(number), stop.clone(), count.clone());
        callers.spawn_on(calls, back_end.runtime.handle());
    }
    let some_calls = || {
        let enough = count.load(Ordering::Relaxed) + 20;
        wait_until("calls go on", TAKEN_BOUND, || (count.load(Ordering::Relaxed) >= enough).then_some(()));
    };
    some_calls();
    fleet.write("latch.toml", &doors_and_gates("pattern = \"door-{0001..0004}\"\nids = \"gate-1\"", 7));
    said(&latch, "is in force: plugins building, lock-door; devices 1 added, 1 removed");
    some_calls();
    assert_eq!(floor_status(&back_end, data, "gate-1", 7), 200, "a setting has changed");
    assert_eq!(floor_status(&back_end, data, &door(1), 8), 400);
    assert_eq!(back_end.call("gate-1", "lockDoor").payload["version"], "2.0.0", "a device has come");
    let running: Vec<_> = operator::actors(data).iter().map(|actor| actor["deviceId"].clone()).collect();
    assert_eq!(running, [door(1), door(2), door(3), door(4), "gate-1".to_owned()], "and one has gone");
    let gone = latch_json(data, &["device", "show", &door(5)]);
    assert_eq!(gone["connectionState"], "Disconnected", "{gone}");

    fleet.write("more-gates.txt", "porch\n");
    said(&latch, "is in force: plugins lock-gate\n");
    fleet.write("latch.toml", &doors_and_gates("pattern = \"door-{0001..0005}\"\nids = \"gate-1\"", 7));
    said(&latch, "is in force: devices 1 added\n");
    wait_until("the device is connected again", TAKEN_BOUND, || {
        operator::actors(data)
            .iter()
            .any(|actor| actor["deviceId"] == door(5) && actor["connected"] == true)
            .then_some(())
    });
    let answer = back_end.call(&door(5), "unlockDoor");
    assert_eq!((answer.status, &answer.payload["count"]), (200, &json!(2)), "with all that it has kept");
    some_calls();
    stop.store(true, Ordering::Relaxed);
    back_end.runtime.block_on(callers.join_all());
    assert!(!latch.transcript().contains(SECRET), "{}", latch.transcript());
}

/// Locks and unlocks one door; each move is counted, whatever happens around it.
async fn call_until(service: Arc<ServiceClient>, door: String, stop: Arc<AtomicBool>, count: Arc<AtomicUsize>) {
    for turn in 1_u64.. {
        let method = if turn.is_multiple_of(2) { "unlockDoor" } else { "lockDoor" };
        let answer = back_end::call(&service, &door, method).await;
        let answer = answer.unwrap_or_else(|error| panic!("a call was lost: {method} on {door}: {error}"));
        assert_eq!((answer.status, &answer.payload["count"]), (200, &json!(turn)), "{door}: {answer:?}");
        count.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn a_wrong_configuration_changes_nothing_and_says_all_that_is_wrong() {
    let good = doors_and_gates("pattern = \"door-{1..2}\"", 5);
    let fleet = Fleet::new(&good);
    fleet.write("more-gates.txt", "gate-1\n");
    let latch = fleet.up(&[]);
    let back_end = BackEnd::of(latch.data());
    // Another floor each time, as the same one again is no change.
    let mut floors = [6, 7].into_iter().cycle();
    let mut is_as_before = || {
        assert_eq!(operator::actors(latch.data()).len(), 2);
        assert_eq!(back_end.call("door-1", "lockDoor").payload["version"], "1.0.0");
        let floor = floors.next().expect("there is no end");
        assert_eq!(floor_status(&back_end, latch.data(), "door-2", floor), 400);
    };
    let wrong = good.replace("door-{1..2}", "door-{1..9}").replace("highest-floor = 5", "highest-floor = 9");
    fleet.write("latch.toml", &format!("{wrong}[limits]\nidel = \"1s\"\nmailbox = \"{SECRET}\"\n"));
    said(&latch, "latch.toml:13:1: unknown key in limits; did you mean idle?");
    said(&latch, "latch.toml:14:11: limits.mailbox: expected a whole number");
    said(&latch, "is not taken, everything stays as it is");
    is_as_before();

    // Doors are answered by two plugins.
    fleet.write("latch.toml", &wrong.replace("\"gate-*\"", "\"*-1\""));
    said(&latch, "the plugins lock-gate and lock-door would both answer the method lockDoor on some devices");
    is_as_before();

    fs::remove_file(fleet.path("latch.toml")).expect("removed");
    said(&latch, "latch.toml cannot be read: No such file");
    is_as_before();

    fleet.write("latch.toml", &good);
    said(&latch, "latch.toml is read again, nothing has changed");
    let reads = || latch.transcript().matches("nothing has changed").count();
    let before = reads();
    let hung_up = Command::new("sh").args(["-c", "kill -HUP \"$0\"", &latch.pid().to_string()]).status();
    assert!(hung_up.is_ok_and(|status| status.success()));
    wait_until("SIGHUP has it read again", TAKEN_BOUND, || (reads() > before).then_some(()));
    is_as_before();
    fleet.write("latch.toml", &format!("{good}[limits]\nidle = \"2s\"\nmemory = \"32MiB\"\n"));
    said(&latch, "limits.memory takes effect at the next start");
    said(&latch, "is in force: limits of devices");
    assert!(!latch.transcript().contains(SECRET), "{}", latch.transcript());
}

#[test]
fn a_host_without_a_hub_takes_its_devices_from_the_file() {
    let hub = tempfile::tempdir().expect("a temporary folder");
    let running = Latch::start(hub.path(), &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    let fleet = Fleet::new("");
    let connection = |number: u32| {
        let file = running.data().join("devices").join(format!("{}.connstr", door(number)));
        fs::read_to_string(file).expect("the hub writes it")
    };
    fs::create_dir(fleet.path("keys")).expect("made");
    fleet.write("keys/one.connstr", &connection(1));
    fleet.write("two.txt", &connection(2));
    let configuration = "[host]\nplugins = \"plugins\"\n[devices]\nfolder = \"keys\"\nfile = \"two.txt\"\n";
    let apart = "[plugins.lock-door]\ndevices = \"door-*\"\n[plugins.lock-gate]\ndevices = \"gate-*\"\n";
    let (config, ca, data) = (fleet.path("latch.toml"), running.data().join("ca.pem"), fleet.path("data"));
    let args = ["run", "--config", text(&config), "--ca", text(&ca)];

    fleet.write("latch.toml", &format!("{configuration}pattern = \"door-{{0001..0009}}\"\n"));
    let refused = latch(&data, &args);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let says = "latch.toml:3:1: devices: 7 of 9 have no connection string (door-0003, door-0004, door-0005, …)";
    assert!(refused.stderr.contains(says), "{refused:?}");

    fleet.write("latch.toml", &format!("{configuration}{apart}"));
    let host = Latch::start(&data, &args);
    assert!(host.ready().contains("devices=2 plugins=3"), "{}", host.ready());
    let back_end = BackEnd::of(hub.path());
    assert_eq!(back_end.call(&door(2), "lockDoor").status, 200);
    fleet.write("keys/three.connstr", &connection(3));
    said(&host, "is in force: devices 1 added");
    wait_until("the device is connected", TAKEN_BOUND, || {
        operator::actors(&data).iter().all(|actor| actor["connected"] == true).then_some(())
    });
    assert_eq!(back_end.call(&door(3), "lockDoor").status, 200);
    let key = connection(1).split_once("SharedAccessKey=").expect("a key").1.trim().to_owned();
    assert!(!host.transcript().contains(&key));
}

#[test]
fn a_configuration_can_be_checked_without_starting_anything() {
    let fleet = Fleet::new(&doors_and_gates("pattern = \"door-{1..9}\"", 5));
    fleet.write("more-gates.txt", "");
    let (config, data) = (fleet.path("latch.toml"), fleet.path("data"));
    let check = ["config", "check", text(&config)];
    let told = latch_ok(&data, &check);
    assert!(told.contains("latch.toml is in order\n  devices   9, of which 0 have a connection string\n"), "{told}");
    assert!(told.contains("lock-door on 9 of these devices; settings highest-floor, token\n"), "{told}");
    assert!(told.contains("latch.toml:8:20: plugins.lock-gate.devices: matches none of the devices"), "{told}");
    let json = latch_json(&data, &check);
    assert_eq!(
        (&json["fits"], &json["devices"], &json["plugins"][0]["name"]),
        (&json!(true), &json!(9), &json!("building"))
    );
    assert!(!told.contains(SECRET) && !json.to_string().contains(SECRET));

    fleet.write("latch.toml", "[host]\nport = 1\n[devices]\nids = \"HostName=h;DeviceId=d;SharedAccessKey=hush\"\n");
    let refused = latch(&data, &check);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    let lines: Vec<_> =
        refused.stdout.lines().map(|line| line.rsplit_once("latch.toml:").expect("a place").1).collect();
    assert_eq!(
        (lines.len(), lines[0]),
        (2, "2:1: unknown key in host; there are admin, certificates, https, mqtt, plugins, tier, units"),
        "{refused:?}"
    );
    assert!(lines[1].starts_with("4:30: a key stands here"), "{refused:?}");
    let up = latch(&data, &[&["up", "--config", text(&config)], FREE_PORTS].concat());
    assert_eq!(up.code, Some(1), "{up:?}");
    assert!(
        up.stderr.contains("latch.toml has mistakes\n") && up.stderr.contains("latch.toml:2:1: unknown key"),
        "{up:?}"
    );
    assert!(!format!("{refused:?}{up:?}").contains("hush"));
    let absent = latch(&data, &["config", "check", "/nowhere/latch.toml"]);
    assert!(absent.code == Some(1) && absent.stderr.contains("/nowhere/latch.toml cannot be read"), "{absent:?}");
    assert!(!data.exists(), "nothing was started");
}

#[test]
fn a_plugin_gets_what_it_is_granted_and_nothing_else() {
    let fleet = Fleet { folder: plugin_folder(&["fixtures/curious"]) };
    let configuration = |grants: &str| format!("[devices]\nids = \"door-1\"\n[plugins.curious]\n{grants}");
    fleet.write("latch.toml", &configuration(""));
    let plugins = text(fleet.folder.path());
    let config = fleet.path("latch.toml");
    let args = ["up", "--plugins", plugins, "--config", text(&config)];
    let data = tempfile::tempdir().expect("a temporary folder");
    let latch = Latch::start(data.path(), &[&args, FREE_PORTS].concat());
    let look = || latch_json(latch.data(), &["method", "door-1", "look"]);
    let nothing = json!({"environment": {}, "visits": null, "fraction": 0});
    assert_eq!(look()["payload"], nothing);

    fleet.write("key.txt", SECRET);
    let grants = "[plugins.curious.grants]\nenvironment = { SITE = \"north\", KEY = { file = \"key.txt\" } }\n\
                  folder = \"given\"\nclock = \"real\"\n";
    fleet.write("latch.toml", &configuration(grants));
    said(&latch, "is in force: plugins curious");
    for visits in 1..=2 {
        let seen = &look()["payload"];
        assert_eq!(seen["environment"], json!({"KEY": SECRET, "SITE": "north"}));
        assert_eq!(seen["visits"], visits);
        assert_ne!(seen["fraction"], 0, "the real clock");
    }
    let kept = fs::read_to_string(fleet.path("given/curious/door-1/visits")).expect("in the device's own folder");
    assert_eq!(kept, "2");

    fleet.write("latch.toml", &configuration(""));
    wait_until("the grants are taken back", TAKEN_BOUND, || (look()["payload"] == nothing).then_some(()));
    assert!(!latch.transcript().contains(SECRET), "{}", latch.transcript());
}
