//! `latch plugin test`: plugins on the clock of a scenario, with no hub.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    FREE_PORTS, Latch, Outcome, guests, latch, latch_json, latch_ok, plugin_folder, repository, wait_until,
};
use crate::operator;

/// A file that settles, a component that a debug build compiles, its scenarios, on a busy machine.
const TESTED_BOUND: Duration = Duration::from_secs(60);

/// Runs one scenario; its report is in `stdout`.
fn test(component: &str, scenario: &str) -> Outcome {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("scenario.toml");
    fs::write(&file, scenario).expect("written");
    let component = guests().join(component);
    let arguments = ["plugin", "test", text(&file), "--plugin", text(&component), "--json"];
    latch(folder.path(), &arguments)
}

/// What went wrong in a scenario: the step, and each difference as place, expectation and finding.
fn failed(outcome: &Outcome) -> (u64, Vec<[String; 3]>) {
    assert_eq!(outcome.code, Some(4), "{outcome:#?}");
    let report: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let failed = &report["scenarios"][0]["failed"];
    let differences = failed["differences"].as_array().expect("differences").iter();
    let differences = differences.map(|difference| {
        ["place", "expected", "found"].map(|key| difference[key].as_str().expect("a text").to_owned())
    });
    (failed["step"].as_u64().expect("a step"), differences.collect())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable name")
}

#[test]
fn what_is_put_off_comes_again_in_its_time() {
    let outcome = test(
        "fixtures/reluctant.wasm",
        r#"
        [device]
        timers = { early = { due = "in 10s", payload = "first" } }

        [[step]]
        call = "remind"
        payload = '"tea"'
        timers = { early = "in 10s", reminder = { due = "in 1m", payload = '"tea"' } }

        [[step]]
        about = "put off again and again, later each time; the other timer does not wait for it"
        wait = "1m"
        retry = "nobody has called ready"
        timers = { early = "2026-01-01T00:00:10Z", reminder = "2026-01-01T00:01:00Z" }
        telemetry = []

        [[step]]
        desired = '{"colour": "red"}'
        retry = "nobody has called ready"
        reported = '{}'

        [[step]]
        about = "a restart tries at once"
        restart = true
        retry = "nobody has called ready"
        fired = ["early", "reminder"]

        [[step]]
        call = "ready"

        [[step]]
        restart = "1s"
        reported = '{"colour": "red"}'
        telemetry = [{ body = "first" }, { body = '"tea"' }]
        timers = {}

        [[step]]
        again = true
        fails = "nothing was put off"
        "#,
    );
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
}

#[test]
fn again_waits_for_the_back_off() {
    let outcome = test(
        "fixtures/reluctant.wasm",
        r#"
        [[step]]
        desired = '{"colour": "red"}'
        retry = "nobody"

        [[step]]
        again = true
        retry = "nobody"

        [[step]]
        call = "ready"
        reported = '{}'

        [[step]]
        again = true
        reported = '{"colour": "red"}'
        "#,
    );
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
}

#[test]
fn a_message_comes_again_until_it_is_dealt_with() {
    let outcome = test(
        "fixtures/reluctant.wasm",
        r#"
        [[step]]
        message = "tea is ready"
        id = "m1"
        retry = "nobody has called ready"
        state = {}

        [[step]]
        about = "the hub brings it again to the next host"
        restart = true
        retry = "nobody has called ready"

        [[step]]
        call = "ready"

        [[step]]
        again = true
        state = { ready = "yes", message = "tea is ready" }

        [[step]]
        restart = true
        state = { ready = "yes", message = "tea is ready" }

        [[step]]
        message = "from next door"
        from = "lamp-1"
        state = { ready = "yes", message = "from next door" }
        peers = []
        "#,
    );
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
}

#[test]
fn what_messages_did_otherwise_is_told() {
    let scenario = r#"
        [config]
        beside = "hall-2"
        [grants]
        peers = ["hall-2"]
        [[step]]
        message = "fire drill"
        peers = [{ to = "hall-3", body = "fire drill" }]
        "#;
    let expected = [["peers[0].to", r#""hall-3""#, r#""hall-2""#].map(str::to_owned)];
    assert_eq!(failed(&test("announcer.wasm", scenario)), (1, expected.to_vec()));
    let (_, differences) = failed(&test("lock-door.wasm", "[[step]]\nmessage = 'x'\n"));
    assert_eq!(differences[0][0], "message");
    assert!(differences[0][2].starts_with("the plugin gets no messages"), "{differences:?}");
}

#[test]
fn a_version_is_told_in_which_form_the_state_is() {
    let scenario = |format| {
        let previous = format!("{{ version = '0.9.0', state-format = {format} }}");
        format!("[device]\nprevious = {previous}\n[[step]]\nwait = '0s'\n")
    };
    assert_eq!(test("fixtures/reluctant.wasm", &scenario(1)).code, Some(0));
    let (_, differences) = failed(&test("fixtures/reluctant.wasm", &scenario(3)));
    assert_eq!(differences[0][2], "it was not activated: the state has format 3, which is too new");
}

#[test]
fn what_timers_did_otherwise_is_told() {
    let outcome = test(
        "firmware.wasm",
        r#"
        [[step]]
        call = "reboot"

        [[step]]
        wait = "1s"
        fired = []
        timers = { task = "in 1s", other = { due = "2026-01-01T00:00:00Z", payload = "1" } }
        "#,
    );
    let expected = [
        ["fired[0]", "nothing", r#""task""#],
        ["timers.other", r#"{"due":"2026-01-01T00:00:00.000Z","payload":1}"#, "nothing"],
        ["timers.task", r#"{"due":"in 1s"}"#, "nothing"],
    ];
    assert_eq!(failed(&outcome), (2, expected.map(|row| row.map(str::to_owned)).to_vec()));
}

#[test]
fn a_version_that_does_not_take_over_fails_the_first_step() {
    let scenario = "[device]\nstate = { broken = 'yes' }\n[[step]]\nwait = '0s'\n";
    let (step, differences) = failed(&test("fixtures/reluctant.wasm", scenario));
    let found = "it was not activated: the state is broken";
    assert_eq!((step, differences), (1, vec![["activation", "the version is activated", found].map(str::to_owned)]));
    let expected = format!("{scenario}fails = 'is broken'\n");
    assert_eq!(test("fixtures/reluctant.wasm", &expected).code, Some(0));
}

#[test]
fn a_plugin_that_traps_fails_and_leaves_nothing() {
    let scenario = "[[step]]\ncall = 'crash'\nfails = 'crashed on purpose'\nreported = '{}'\nstate = {}\n";
    let outcome = test("fixtures/trap.wasm", scenario);
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
    let (_, differences) = failed(&test("fixtures/trap.wasm", "[[step]]\ncall = 'crash'\n"));
    assert_eq!(json!(differences[0][..2]), json!(["call", "an answer"]));
}

#[test]
fn a_version_that_fails_its_scenarios_never_runs() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let scenarios = repository().join("plugins/lock-door/tests");
    let args = ["up", "--devices", "1", "--plugins", text(plugins)];
    let _latch = Latch::start(data, &[&args, FREE_PORTS].concat());
    let answered_by = || latch_json(data, &["method", "door-0001", "lockDoor"])["payload"]["version"].clone();

    // Asked for once, by whoever swaps.
    let next = guests().join("next/lock-door.wasm");
    let swap = ["plugin", "swap", "lock-door", text(&next)];
    let refused = latch(data, &[&swap, &["--test", text(&scenarios)][..]].concat());
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(4), ""), "{refused:#?}");
    assert!(refused.stderr.ends_with("error: lock-door was not swapped: 2 of 3 scenarios failed\n"), "{refused:#?}");
    assert!(refused.stderr.contains("      found     {\"count\":0,\"lastMovedBy\":null"), "{refused:#?}");
    assert_eq!(answered_by(), "1.0.0");

    // Asked for each time, by the folder beside the plugin.
    let beside = plugins.join("lock-door.tests");
    fs::create_dir(&beside).expect("made");
    fs::copy(scenarios.join("takes-over.toml"), beside.join("takes-over.toml")).expect("copied");
    let refused = latch(data, &swap);
    let reason = "the component does not pass its own tests: 1 of 1 scenarios failed; ";
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.starts_with(&format!("error: lock-door was not swapped: {reason}")), "{refused:#?}");
    assert!(refused.stderr.contains("takes-over.toml:12: answer-text: expected "), "{refused:#?}");
    fs::copy(&next, plugins.join("lock-door.wasm")).expect("copied");
    wait_until("the file is refused", TESTED_BOUND, || {
        let (current, refusal) = operator::plugin(data, "lock-door");
        assert_eq!(current.as_deref(), Some("1.0.0"));
        refusal.filter(|refusal| refusal.starts_with(reason))
    });
    assert_eq!(answered_by(), "1.0.0");
    fs::remove_dir_all(&beside).expect("removed");
    assert_eq!(latch_ok(data, &swap), "lock-door 1.0.0 -> 2.0.0\n");
}
