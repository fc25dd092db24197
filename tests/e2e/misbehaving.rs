//! Plugins that misbehave on purpose, beside one that does not.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::back_end::{BackEnd, call, door};
use crate::harness::{FREE_PORTS, Latch, latch_json, plugin_folder};
use crate::operator;

const PLUGINS: &[&str] = &["lock-door", "fixtures/endless-loop", "fixtures/trap", "fixtures/memory-hoard"];
/// What a busy machine may add to it.
const MARGIN: Duration = Duration::from_secs(5);

/// Five doors whose plugins get that many seconds for a call.
fn fleet(data: &Path, plugins: &Path, call_limit: Duration) -> Latch {
    let (call_limit, plugins) = (call_limit.as_secs().to_string(), plugins.to_str().expect("a readable name"));
    let args = ["up", "--devices", "5", "--call-limit", &call_limit, "--plugins", plugins];
    Latch::start(data, &[&args, FREE_PORTS].concat())
}

#[test]
fn a_plugin_that_fails_costs_one_call_and_its_caller_hears_why() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(PLUGINS));
    let call_limit = Duration::from_secs(1);
    let _latch = fleet(data.path(), plugins.path(), call_limit);
    let back_end = BackEnd::of(data.path());

    for (number, method, status, error, plugin, reason) in [
        (1, "spin", 504, "timeout", "endless-loop", "the plugin ran past its time limit"),
        (2, "crash", 500, "trap", "trap", "the plugin trapped"),
        (3, "hoard", 500, "memory", "memory-hoard", "the plugin ran out of its memory limit"),
    ] {
        let device = door(number);
        let begun = Instant::now();
        let answer = back_end.call(&device, method);
        let took = begun.elapsed();
        let expected = json!({"error": error, "plugin": plugin, "version": "1.0.0", "reason": reason});
        assert_eq!((answer.status, &answer.payload), (status, &expected), "{method}");
        assert!(took < call_limit + MARGIN, "{method} took {took:?}");

        let locked = back_end.call(&device, "lockDoor");
        assert_eq!((locked.status, &locked.payload["count"]), (200, &json!(1)), "{device} after {method}");
        let actors = operator::actors(data.path());
        let actor = actors.iter().find(|actor| actor["deviceId"] == json!(device)).expect("an actor");
        assert_eq!((&actor["failures"], &actor["lastFailure"]["plugin"]), (&json!(1), &json!(plugin)), "{actor:#}");
    }

    // What the trap reported before it crashed was never said to the hub, what the door reported after it was.
    let reported = &latch_json(data.path(), &["twin", "show", &door(2)])["properties"]["reported"];
    assert_eq!((reported.get("crashed"), &reported["door"]["locked"]), (None, &json!(true)), "{reported:#}");
}

#[test]
fn a_plugin_that_keeps_failing_is_paused_and_only_it() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(PLUGINS));
    let _latch = fleet(data.path(), plugins.path(), Duration::from_secs(1));
    let back_end = BackEnd::of(data.path());

    let statuses: Vec<_> = (0..4).map(|_| back_end.call(&door(1), "crash").status).collect();
    assert_eq!(statuses, [500, 500, 500, 503]);
    assert_eq!(back_end.call(&door(1), "lockDoor").status, 200, "another plugin of the device");
    assert_eq!(back_end.call(&door(2), "crash").status, 500, "the plugin on another device");
}

#[test]
fn endless_loops_hold_up_nobody_else() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(PLUGINS));
    let call_limit = Duration::from_secs(3);
    let _latch = fleet(data.path(), plugins.path(), call_limit);
    let back_end = BackEnd::of(data.path());

    // More than one for each of the host's threads, on a machine with few of them.
    let spins: Vec<_> = (1..=4)
        .map(|number| {
            let service = back_end.service.clone();
            back_end.runtime.spawn(async move { call(&service, &door(number), "spin").await })
        })
        .collect();
    let begun = Instant::now();
    let locked = back_end.call(&door(5), "lockDoor");
    assert_eq!(locked.status, 200);
    let spinning = spins.iter().filter(|spin| !spin.is_finished()).count();
    assert_eq!(spinning, spins.len(), "the fifth door was answered only after {:?}", begun.elapsed());

    for spin in spins {
        let answer = back_end.runtime.block_on(spin).expect("no panic").expect("an answer");
        assert_eq!(answer.status, 504);
    }
    assert!(begun.elapsed() < call_limit + MARGIN, "four endless loops took {:?}", begun.elapsed());
    for number in 1..=4 {
        assert_eq!(back_end.call(&door(number), "lockDoor").status, 200);
    }
}
