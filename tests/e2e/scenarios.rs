//! `latch plugin test`: plugins on the clock of a scenario, with no hub.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Outcome, guests, latch};

/// Runs one scenario; its report is in `stdout`.
fn test(component: &str, scenario: &str) -> Outcome {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("scenario.toml");
    std::fs::write(&file, scenario).expect("written");
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
