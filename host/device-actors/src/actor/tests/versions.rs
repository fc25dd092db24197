//! Which version runs, and what the twin is told of it.

use iothub_protocol::link::ToHub;
use plugin_runtime::Effects;
use serde_json::{Value, json};

use super::bench::*;
use crate::failure::FailureKind;

/// The version that answers a call, which fails or not.
fn call(bench: &mut Bench, fails: bool) -> String {
    bench.method("1", "lockDoor");
    let version = bench.call.as_ref().map(|call| call.plugin.label.to_string());
    match version {
        Some(_) if fails => bench.fails(FailureKind::Trap),
        Some(_) => bench.returns(Effects::default()),
        None => {}
    }
    bench.write_all();
    version.unwrap_or_else(|| "paused".to_owned())
}

/// What was reported since the last look. The hub takes it.
fn reported(bench: &mut Bench) -> Vec<Value> {
    let mut reported = Vec::new();
    loop {
        let patches = bench.take_sent().into_iter().filter_map(|message| match message {
            ToHub::Report { token, patch } => Some((token, patch)),
            _ => None,
        });
        let patches: Vec<_> = patches.collect();
        if patches.is_empty() {
            return reported;
        }
        for (token, patch) in patches {
            reported.push(Value::Object(patch));
            let message = String::new();
            bench.hub(iothub_protocol::link::FromHub::Reported { token, status: 204, version: None, message });
            bench.write_all();
        }
    }
}

fn pins(pin: Value) -> Value {
    json!({"latch": {"plugins": {"lock-door": pin}}})
}

#[test]
fn a_pin_in_the_twin_is_followed_and_reported() {
    let mut bench = Bench::connected(&[]);
    bench.versions(&lock_door("2.0.0"), &[lock_door("1.0.0")]);
    assert_eq!((call(&mut bench, false), reported(&mut bench)), ("2.0.0".to_owned(), vec![]));

    bench.desired(2, pins(json!("1.0.0")));
    bench.write_all();
    assert_eq!(call(&mut bench, false), "1.0.0");
    let active = json!({"version": "1.0.0", "status": "active", "reason": "pinned by the twin"});
    assert_eq!(reported(&mut bench), [pins(active)]);
    assert_eq!(bench.wanted, [format!("{:0>64}", "1.0.0")]);

    bench.desired(3, pins(json!("7.0.0")));
    bench.write_all();
    assert_eq!(call(&mut bench, false), "2.0.0");
    let reason = "no version 7.0.0 is kept here; there are 2.0.0, 1.0.0";
    let unknown = json!({"version": "2.0.0", "status": "unknown-version", "reason": reason});
    assert_eq!(reported(&mut bench), [pins(unknown)]);

    // It is there after all: what was pinned before runs.
    bench.versions(&lock_door("2.0.0"), &[lock_door("7.0.0"), lock_door("1.0.0")]);
    bench.write_all();
    assert_eq!(call(&mut bench, false), "7.0.0");
    assert_eq!(reported(&mut bench)[0].pointer("/latch/plugins/lock-door/status"), Some(&json!("active")));

    // A restart says nothing new.
    bench.settle();
    let mut bench = Bench::on(bench.db, &[]);
    bench.versions(&lock_door("2.0.0"), &[lock_door("7.0.0"), lock_door("1.0.0")]);
    bench.connect(pins(json!("7.0.0")), 3);
    bench.write_all();
    assert_eq!((call(&mut bench, false), reported(&mut bench)), ("7.0.0".to_owned(), vec![]));

    bench.desired(4, pins(Value::Null));
    bench.write_all();
    assert_eq!((call(&mut bench, false), reported(&mut bench)), ("2.0.0".to_owned(), vec![pins(Value::Null)]));
    assert!(bench.wanted.is_empty());
}

#[test]
fn a_pinned_version_that_fails_now_and_then_goes_on_and_is_reported_as_failing() {
    let mut bench = Bench::connected(&[]);
    bench.versions(&lock_door("1.0.0"), &[lock_door("2.0.0")]);
    let call_five = |bench: &mut Bench, version: &str| {
        for number in 1..=5 {
            assert_eq!(call(bench, number == 5), version);
        }
        reported(bench)
    };
    assert_eq!(call_five(&mut bench, "1.0.0"), Vec::<Value>::new(), "nobody pinned it");
    bench.desired(2, pins(json!("2.0.0")));
    bench.write_all();
    let active = json!({"version": "2.0.0", "status": "active", "reason": "pinned by the twin"});
    assert_eq!(reported(&mut bench), [pins(active)]);
    assert_eq!(call_five(&mut bench, "2.0.0"), Vec::<Value>::new(), "one is none");
    let failing = json!({"status": "failing", "reason": "2 of its last 10 calls failed"});
    assert_eq!(call_five(&mut bench, "2.0.0"), [pins(failing.clone())], "what has changed");
    assert_eq!(call_five(&mut bench, "2.0.0"), Vec::<Value>::new(), "nothing new to say");
    // A change that has nothing to do with it leaves the report as it is.
    bench.desired(3, json!({"other": 1}));
    bench.versions(&lock_door("1.1.0"), &[lock_door("2.0.0"), lock_door("1.0.0")]);
    bench.write_all();
    assert_eq!(reported(&mut bench), Vec::<Value>::new());

    // A pin that is set again is another chance, and so are twenty calls that work.
    let active = pins(json!({"status": "active", "reason": "pinned by the twin"}));
    bench.desired(4, pins(json!("2.0.0")));
    bench.write_all();
    assert_eq!(reported(&mut bench), std::slice::from_ref(&active));
    assert_eq!(call_five(&mut bench, "2.0.0"), Vec::<Value>::new());
    assert_eq!(call_five(&mut bench, "2.0.0"), [pins(failing)]);
    for _ in 0..20 {
        assert_eq!(call(&mut bench, false), "2.0.0");
    }
    assert_eq!(reported(&mut bench), [active]);
}

#[test]
fn a_version_that_keeps_failing_is_put_in_quarantine_and_the_good_one_comes_back() {
    let mut bench = Bench::connected(&[]);
    bench.versions(&lock_door("1.0.0"), &[]);
    assert_eq!(call(&mut bench, false), "1.0.0");
    bench.versions(&lock_door("2.0.0"), &[lock_door("1.0.0")]);
    for failure in 0..5 {
        assert_eq!(call(&mut bench, true), "2.0.0", "{failure}");
        bench.wait(std::time::Duration::from_secs(5));
    }
    assert_eq!(call(&mut bench, false), "1.0.0");
    let reason = "2.0.0 failed 5 times in a row";
    let quarantined = json!({"version": "1.0.0", "status": "quarantined", "reason": reason});
    assert_eq!(reported(&mut bench), [pins(quarantined)]);
    assert_eq!(bench.actor.view().quarantined.len(), 1);

    // A pin does not help while it is the same, and does once it is made again.
    bench.desired(2, pins(json!("2.0.0")));
    bench.write_all();
    assert_eq!(call(&mut bench, true), "2.0.0");
    assert_eq!(reported(&mut bench)[0].pointer("/latch/plugins/lock-door/status"), Some(&json!("active")));
    for _ in 0..4 {
        bench.wait(std::time::Duration::from_secs(5));
        call(&mut bench, true);
    }
    bench.desired(3, json!({"other": 1}));
    bench.write_all();
    assert_eq!(call(&mut bench, false), "1.0.0");
    bench.desired(4, pins(json!("2.0.0")));
    bench.write_all();
    assert_eq!(call(&mut bench, false), "2.0.0");

    // Nor is there a quarantine where another version has become current.
    bench.desired(5, pins(Value::Null));
    bench.versions(&lock_door("3.0.0"), &[lock_door("2.0.0"), lock_door("1.0.0")]);
    bench.write_all();
    assert_eq!(call(&mut bench, false), "3.0.0");
    assert_eq!(reported(&mut bench).last(), Some(&pins(Value::Null)));
    assert!(bench.actor.view().quarantined.is_empty());
}

/// A device on 1.0.0, its twin at version 3 pinning 2.0.0, which is in quarantine.
fn quarantined_under_a_pin() -> Bench {
    let mut bench = Bench::connected(&[]);
    bench.versions(&lock_door("1.0.0"), &[lock_door("2.0.0")]);
    call(&mut bench, false);
    bench.desired(3, pins(json!("2.0.0")));
    bench.write_all();
    for _ in 0..5 {
        assert_eq!(call(&mut bench, true), "2.0.0");
        bench.wait(std::time::Duration::from_secs(5));
    }
    assert_eq!(call(&mut bench, false), "1.0.0");
    bench
}

/// The host starts anew on what `bench` has recorded.
fn restarted(bench: Bench) -> Bench {
    let mut bench = Bench::on(bench.db, &[]);
    bench.versions(&lock_door("1.0.0"), &[lock_door("2.0.0")]);
    bench
}

#[test]
fn quarantine_outlives_a_restart_and_ends_with_its_grounds() {
    let mut bench = restarted(quarantined_under_a_pin());
    assert_eq!(&*bench.actor.view().lineup.plugins[0].label, "1.0.0", "before the hub was asked");
    bench.connect(pins(json!("2.0.0")), 3);
    bench.write_all();
    assert_eq!(call(&mut bench, false), "1.0.0");
    assert_eq!(bench.actor.view().quarantined.len(), 1);

    // The pinned version is not loaded at first, and comes.
    let mut bench = Bench::on(bench.db, &[]);
    let mut offers = versions(&lock_door("1.0.0"), &[lock_door("2.0.0")]);
    offers.plugins[0].versions[1].plugin = None;
    bench.offers(offers);
    bench.connect(pins(json!("2.0.0")), 3);
    bench.versions(&lock_door("1.0.0"), &[lock_door("2.0.0")]);
    bench.write_all();
    assert_eq!(call(&mut bench, false), "1.0.0");

    bench.desired(4, pins(Value::Null));
    bench.write_all();
    assert!(bench.actor.view().quarantined.is_empty() && bench.db.past.is_empty());
    let mut bench = restarted(bench);
    bench.connect(pins(json!("2.0.0")), 5);
    bench.write_all();
    assert_eq!(call(&mut bench, false), "2.0.0", "forgotten");
}

#[test]
fn a_pin_that_was_set_again_while_the_device_was_away_gives_another_chance() {
    for (version, desired, expected) in [
        (3, pins(json!("2.0.0")), "1.0.0"),
        (4, pins(json!("2.0.0")), "2.0.0"),
        (5, pins(json!(format!("{:0>64}", "2.0.0"))), "2.0.0"),
        (4, json!({"latch": {"plugins": {"lock-door": "2.0.0"}}, "floor": 5}), "1.0.0"),
        (1, pins(json!("2.0.0")), "2.0.0"),
    ] {
        let mut away = quarantined_under_a_pin();
        away.disconnect();
        for mut bench in [restarted(quarantined_under_a_pin()), away] {
            bench.connect(desired.clone(), version);
            bench.write_all();
            assert_eq!(call(&mut bench, false), expected, "version {version}: {desired}");
            assert_eq!(bench.db.past.is_empty(), expected == "2.0.0");
        }
    }
}

#[test]
fn with_nothing_else_to_run_a_failing_version_is_only_paused() {
    let mut bench = Bench::connected(&[lock_door("1.0.0")]);
    for _ in 0..8 {
        call(&mut bench, true);
        bench.wait(std::time::Duration::from_secs(60));
    }
    assert_eq!(call(&mut bench, false), "1.0.0");
    assert!(bench.actor.view().quarantined.is_empty() && reported(&mut bench).is_empty());
}
