//! Desired properties: what counts, who gets what of it, and when again.

use std::time::Duration;

use iothub_protocol::link::FromHub;
use plugin_runtime::Effects;
use serde_json::json;

use super::bench::*;
use crate::failure::FailureKind;
use crate::record::{Applied, DeviceRecord};

#[test]
fn a_change_is_recorded_with_what_it_did() {
    let mut bench = Bench::connected(&[reactor("1", &["lock", "cfg.speed"])]);
    bench.desired(2, json!({"lock": true, "cfg": {"speed": 3, "other": 1}, "latch": {"x": 1}}));
    assert_eq!(bench.change(), Some(("1".into(), 2, json!({"lock": true, "cfg": {"speed": 3}}))));
    assert!(!bench.call.as_ref().expect("a call").snapshot.desired.contains_key("latch"));
    // The document as such is written at once and waits for nobody.
    assert_eq!(bench.write().desired.expect("the document").1, 2);
    bench.returns(reports(json!({"lock": true})));
    let changes = bench.write();
    let view = object(json!({"lock": true, "cfg": {"speed": 3}}));
    assert_eq!(changes.applied, [(name("reactor"), Applied { version: 2, view })]);
    assert_eq!(changes.unsent, Some(unsent(json!({}), json!({"lock": true}))));
    bench.desired(3, json!({"cfg": {"other": 2}}));
    assert_eq!(bench.change(), None, "not watched");
    bench.desired(4, json!({"cfg": null, "lock": null}));
    assert_eq!(bench.change(), Some(("1".into(), 4, json!({"lock": null, "cfg": null}))));
}

#[test]
fn a_notice_counts_only_if_it_is_news() {
    let mut bench = Bench::connected(&[reactor("1", &["a"])]);
    bench.connect(json!({"a": 1}), 5);
    bench.returns(Effects::default());
    bench.write_all();
    for stale in [4, 5] {
        bench.desired(stale, json!({"a": 0}));
        assert_eq!(bench.change(), None);
    }
    bench.disconnect();
    bench.desired(6, json!({"a": 6}));
    assert_eq!(bench.change(), None, "of a connection that is gone");
    bench.hub(FromHub::Connected);
    bench.desired(6, json!({"a": 6}));
    bench.desired(7, json!({"a": 7}));
    assert_eq!(bench.change(), None, "the GET comes first");
    bench.twin(json!({"a": 6}), 6);
    assert_eq!(bench.change(), Some(("1".into(), 7, json!({"a": 7}))));
}

#[test]
fn a_get_brings_the_difference() {
    let db = DeviceRecord {
        desired: object(json!({"a": 1, "b": {"c": 1, "d": 1}})),
        desired_version: 5,
        applied: [(name("reactor"), Applied { version: 5, view: object(json!({"a": 1, "b": {"c": 1, "d": 1}})) })]
            .into(),
        ..DeviceRecord::default()
    };
    for (document, version, expected) in [
        (json!({"a": 1, "b": {"c": 1, "d": 1}}), 5, None),
        (json!({"b": {"c": 2}}), 9, Some(json!({"a": null, "b": {"c": 2, "d": null}}))),
        // The same version with another content: re-created, and changed as often.
        (json!({"a": 2, "b": {"c": 1, "d": 1}}), 5, Some(json!({"a": 2}))),
        // An older version: re-created. Everything again, and null for what is gone.
        (json!({"a": 1, "b": {"c": 1}}), 2, Some(json!({"a": 1, "b": {"c": 1, "d": null}}))),
        (json!({}), 1, Some(json!({"a": null, "b": null}))),
    ] {
        let mut bench = Bench::on(db.clone(), &[reactor("1", &["a", "b"])]);
        bench.connect(document.clone(), version);
        assert_eq!(bench.change(), expected.clone().map(|patch| ("1".into(), version, patch)), "{document}");
        // A crash before the plugin has seen it: the record tells as much.
        bench.write_all();
        let mut bench = Bench::on(bench.db, &[reactor("1", &["a", "b"])]);
        bench.connect(document.clone(), version);
        assert_eq!(bench.change(), expected.map(|patch| ("1".into(), version, patch)), "{document} after a crash");
    }
}

#[test]
fn a_new_plugin_gets_everything_and_a_swapped_one_only_what_is_new_to_it() {
    let mut bench = Bench::connected(&[]);
    bench.desired(2, json!({"a": 1, "b": 2}));
    bench.plugins(2, &[reactor("1", &["a"])]);
    assert_eq!(bench.change(), Some(("1".into(), 2, json!({"a": 1}))));
    bench.returns(Effects::default());
    bench.write_all();
    bench.plugins(3, &[reactor("2", &["a"])]);
    assert_eq!(bench.change(), None);
    bench.plugins(4, &[reactor("3", &["b"])]);
    assert_eq!(bench.change(), Some(("3".into(), 2, json!({"b": 2}))), "no null for what it does not watch");
}

#[test]
fn nothing_acts_on_old_desired_properties_before_the_hub_was_asked() {
    let db = DeviceRecord { desired: object(json!({"a": 1})), desired_version: 5, ..DeviceRecord::default() };
    let mut bench = Bench::on(db, &[reactor("1", &["a"])]);
    assert_eq!((bench.change(), bench.actor.deadline()), (None, None));
    bench.connect(json!({"a": 2}), 6);
    assert_eq!(bench.change(), Some(("1".into(), 6, json!({"a": 2}))));
}

#[test]
fn a_failed_change_comes_again_later_each_time_and_with_what_came_meanwhile() {
    let mut bench = Bench::connected(&[reactor("1", &["a", "b"])]);
    bench.desired(2, json!({"a": 1}));
    let mut waits = Vec::new();
    for _ in 0..8 {
        bench.wants_it_later();
        bench.write_all();
        bench.disconnect();
        assert!(bench.call.is_none());
        while bench.call.is_none() {
            waits.push(bench.wait_for_deadline().as_secs_f64());
        }
        bench.connect(json!({"a": 1}), 2);
    }
    // The deadline of the unused instance comes first each time: one second.
    let waits: Vec<f64> = waits.chunks(2).map(|pair| pair.iter().sum()).collect();
    assert!(waits.last().is_some_and(|last| (30.0..=60.0).contains(last)), "{waits:?}");
    assert!(waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0]).all(|(wait, full)| *wait >= full / 2.0), "{waits:?}");
    bench.wants_it_later();
    bench.desired(3, json!({"a": 2, "b": 1}));
    assert_eq!(bench.change(), Some(("1".into(), 3, json!({"a": 2, "b": 1}))), "news need not wait");
    bench.fails(FailureKind::Trap);
    assert_eq!(bench.change(), None);
    bench.plugins(2, &[reactor("2", &["a", "b"])]);
    assert_eq!(bench.change(), Some(("2".into(), 3, json!({"a": 2, "b": 1}))), "nor need another version");
}

#[test]
fn a_change_that_is_taken_back_meanwhile_is_not_brought_again() {
    let mut bench = Bench::connected(&[reactor("1", &["a"])]);
    bench.desired(2, json!({"a": 1}));
    bench.wants_it_later();
    bench.desired(3, json!({"a": null}));
    bench.write_all();
    bench.wait(Duration::from_secs(600));
    assert_eq!((bench.change(), bench.actor.deadline()), (None, None));
}

#[test]
fn messages_are_taken_in_the_order_in_which_they_came() {
    let mut bench = Bench::connected(&[lock_door("1"), reactor("1", &["a"])]);
    bench.method("1", "lockDoor");
    bench.now += Duration::from_millis(1);
    bench.method("2", "lockDoor");
    bench.now += Duration::from_millis(1);
    bench.desired(2, json!({"a": 1}));
    bench.now += Duration::from_millis(1);
    bench.method("3", "lockDoor");
    let mut order = Vec::new();
    while let Some(call) = &bench.call {
        order.push(call.plugin.name.to_string());
        bench.returns(Effects::default());
        bench.write_all();
    }
    assert_eq!(order, ["lock-door", "lock-door", "reactor", "lock-door"]);
}
