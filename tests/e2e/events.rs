//! Following a hub from the command line, and tokens for those who follow it otherwise.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use crate::harness::{FREE_PORTS, Latch, Process, latch, latch_command, latch_ok};
use crate::rest::{Request, Rest};

/// From what happened to the line that tells of it, with a hub that has to come back before.
const SEEN_BOUND: Duration = Duration::from_secs(30);

/// `latch events ARGS`, which goes on.
fn follow(data: &Path, args: &[&str]) -> Process {
    Process::spawn("events", &mut latch_command(data, &[&["events"], args].concat()))
}

/// The next line without its time.
fn seen(events: &Process) -> String {
    let line = events.wait_for_line("20", SEEN_BOUND);
    line.split_once(' ').expect("a time").1.to_owned()
}

fn interrupt(process: &Process) {
    let asked = Command::new("sh").args(["-c", "kill -INT \"$0\"", &process.pid().to_string()]).status();
    assert!(asked.is_ok_and(|status| status.success()));
}

#[test]
fn a_follower_outlives_the_hub_and_says_what_it_missed() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let hub = Latch::start(data, &[&["hub"], FREE_PORTS].concat());
    let ports = hub.same_ports();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let mut events = follow(data, &["--follow", "--since", "1h", "--kind", "lifecycle", "--device", "d*"]);
    latch_ok(data, &["device", "create", "lamp"]);
    latch_ok(data, &["device", "create", "d1"]);
    assert_eq!(seen(&events), "d1 created");
    hub.kill();
    let _hub = Latch::start(data, &[&["hub"], ports.as_slice()].concat());
    latch_ok(data, &["device", "create", "d2"]);
    assert_eq!(seen(&events), "d2 created");
    latch_ok(data, &["device", "delete", "d1"]);
    assert_eq!(seen(&events), "d1 deleted");
    interrupt(&events);
    assert_eq!(events.wait(SEEN_BOUND).code(), Some(0), "{}", events.transcript());
    let said = events.transcript();
    assert!(said.contains("! the hub has gone") && said.contains("! missed events: the hub was restarted"), "{said}");
}

#[test]
fn following_ends_when_there_is_enough_or_the_time_is_over() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let one = latch_ok(data, &["events", "--since", "1h", "--kind", "created", "--count", "1", "--json"]);
    let event: Value = serde_json::from_str(&one).expect("one line of JSON");
    assert_eq!(
        (&event["deviceId"], &event["properties"]["opType"]),
        (&"door-0001".into(), &"createDeviceIdentity".into())
    );
    assert_eq!(latch_ok(data, &["events", "--timeout", "10ms"]), "");
    let few = latch(data, &["events", "--kind", "telemetry", "--count", "2", "--timeout", "10ms"]);
    assert_eq!((few.code, few.stdout.as_str()), (Some(4), ""), "{few:#?}");
    assert!(few.stderr.contains("saw 0 of 2 events in 10ms"), "{few:#?}");
    for (args, code, says) in [
        (&["events", "--kind", "twins"][..], 2, "possible values"),
        (&["events", "--since", "soon"], 1, "neither a time"),
        (&["events", "--timeout", "5"], 2, "a duration is"),
        (&["events", "--count", "0"], 2, "0 is not in"),
    ] {
        let refused = latch(data, args);
        assert!(refused.code == Some(code) && refused.stderr.contains(says), "{args:?}: {refused:#?}");
    }
}

#[test]
fn a_token_lets_plain_clients_in_as_far_as_its_policy_goes() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "1"], FREE_PORTS].concat());
    let rest = Rest::of(data);
    let get = |target: &str, token: &str| {
        let headers = vec![("authorization", token.trim().to_owned())];
        rest.send(Request { method: Method::GET, target, headers, body: vec![] }).status.as_u16()
    };
    let file = data.join("service.connstr");
    let file = file.to_str().expect("a readable name");
    for (args, twin, device) in [
        (&["hub", "token"][..], 200, 401),
        (&["hub", "token", "--policy", "registryRead", "--ttl", "5m"], 401, 200),
        (&["hub", "token", "--hub", file], 200, 200),
    ] {
        let token = latch_ok(data, args);
        assert_eq!((get("/twins/door-0001", &token), get("/devices/door-0001", &token)), (twin, device), "{args:?}");
    }
    for (args, says) in [
        (&["hub", "token", "--policy", "nobody"][..], "it has iothubowner, service"),
        (&["hub", "token", "--ttl", "400d"], "between 1s and 365d"),
        (&["hub", "token", "--hub", file, "--policy", "service"], "a key of the policy iothubowner only"),
    ] {
        let refused = latch(data, args);
        assert!(refused.code == Some(1) && refused.stderr.contains(says), "{args:?}: {refused:#?}");
    }
}
