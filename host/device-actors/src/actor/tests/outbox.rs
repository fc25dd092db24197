//! Reported properties and telemetry on their way.

use std::time::Duration;

use iothub_protocol::link::{FromHub, ToHub};
use plugin_runtime::Effects;
use serde_json::{Value, json};

use super::bench::*;
use crate::actor::Input;
use crate::record::Unsent;

fn done(bench: &mut Bench, effects: Effects) {
    bench.method("m", "lockDoor");
    bench.returns(effects);
    bench.write_all();
}

fn reported(bench: &mut Bench) -> Vec<(u64, Value)> {
    let reports = bench.take_sent().into_iter().filter_map(|message| match message {
        ToHub::Report { token, patch } => Some((token, Value::Object(patch))),
        _ => None,
    });
    reports.collect()
}

fn sent_telemetry(bench: &mut Bench) -> Vec<(u64, String, String)> {
    let sent = bench.take_sent().into_iter().filter_map(|message| match message {
        ToHub::Telemetry { token, message } => {
            Some((token, message.message_id, String::from_utf8(message.body).expect("text")))
        }
        _ => None,
    });
    sent.collect()
}

fn answer(bench: &mut Bench, token: u64, status: u16) {
    bench.hub(FromHub::Reported { token, status, version: None, message: String::new() });
}

#[test]
fn reports_merge_while_one_is_in_flight() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    done(&mut bench, reports(json!({"a": 1, "b": {"x": 1}})));
    done(&mut bench, reports(json!({"a": 2})));
    done(&mut bench, reports(json!({"b": null})));
    assert_eq!(reported(&mut bench), [(1, json!({"a": 1, "b": {"x": 1}}))]);
    assert_eq!(bench.db.unsent, unsent(json!({"a": 1, "b": {"x": 1}}), json!({"a": 2, "b": null})));
    answer(&mut bench, 1, 204);
    assert_eq!(reported(&mut bench), [(2, json!({"a": 2, "b": null}))]);
    assert!(bench.records.is_empty(), "that waits for company");
    bench.settle();
    assert_eq!(bench.db.reported, object(json!({"a": 1, "b": {"x": 1}})));
    answer(&mut bench, 1, 204);
    assert!(bench.records.is_empty(), "answered twice");
    answer(&mut bench, 2, 204);
    bench.settle();
    assert_eq!((bench.db.reported, bench.db.unsent), (object(json!({"a": 2})), Unsent::default()));
}

#[test]
fn a_report_that_was_in_flight_at_a_disconnect_is_sent_again() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    done(&mut bench, reports(json!({"a": 1})));
    done(&mut bench, reports(json!({"b": 1})));
    assert_eq!(reported(&mut bench).len(), 1);
    bench.disconnect();
    bench.hub(FromHub::Connected);
    assert!(reported(&mut bench).is_empty(), "after the twin");
    bench.twin(json!({}), 1);
    assert_eq!(reported(&mut bench), [(2, json!({"a": 1, "b": 1}))]);
    answer(&mut bench, 1, 204);
    assert!(reported(&mut bench).is_empty());
}

#[test]
fn a_patch_that_arrived_without_an_answer_leaves_nothing_behind() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    done(&mut bench, reports(json!({"a": {"y": 3}})));
    done(&mut bench, reports(json!({"a": 1})));
    done(&mut bench, reports(json!({"a": {"x": 7}})));
    assert_eq!(bench.db.unsent, unsent(json!({"a": {"y": 3}}), json!({"a": {"y": null, "x": 7}})));
    // It did arrive, as the twin shows after a crash.
    let mut bench = Bench::on(bench.db, &[lock_door("1")]);
    bench.db.reported = object(json!({"a": {"y": 3}}));
    bench.connect(json!({}), 1);
    assert_eq!(reported(&mut bench), [(1, json!({"a": {"y": null, "x": 7}}))]);
}

#[test]
fn a_report_is_repeated_as_long_as_that_can_help() {
    for (status, repeated) in [(429, true), (500, true), (503, true), (400, false), (413, false)] {
        let mut bench = Bench::connected(&[lock_door("1")]);
        done(&mut bench, reports(json!({"a": 1})));
        bench.wait(Duration::from_secs(2));
        reported(&mut bench);
        answer(&mut bench, 1, status);
        if repeated {
            assert!(bench.wait_for_deadline() <= Duration::from_secs(1));
            assert_eq!(reported(&mut bench), [(2, json!({"a": 1}))]);
        } else {
            bench.settle();
            assert_eq!((bench.actor.deadline(), &bench.db.unsent), (None, &Unsent::default()), "{status}");
            bench.method("2", "lockDoor");
            assert!(bench.call.expect("a call").snapshot.reported.is_empty(), "as the hub has it");
        }
    }
    let mut silent = Bench::connected(&[lock_door("1")]);
    done(&mut silent, reports(json!({"a": 1})));
    reported(&mut silent);
    silent.wait(Duration::from_secs(30));
    silent.wait(Duration::from_secs(1));
    assert_eq!(reported(&mut silent), [(2, json!({"a": 1}))]);
}

#[test]
fn telemetry_leaves_in_order_and_keeps_its_ids() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    let bodies = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    done(&mut bench, sends(&bodies));
    let first = sent_telemetry(&mut bench);
    assert_eq!(first.iter().map(|sent| sent.2.as_str()).collect::<Vec<_>>(), bodies[..8]);
    bench.hub(FromHub::TelemetryTaken { token: first[0].0 });
    bench.hub(FromHub::TelemetryTaken { token: first[0].0 });
    assert_eq!(sent_telemetry(&mut bench).len(), 1, "the window moves by one");
    bench.settle();
    // After a crash, from the record: the same messages with the same ids.
    let mut bench = Bench::on(bench.db, &[lock_door("1")]);
    assert!(sent_telemetry(&mut bench).is_empty());
    bench.hub(FromHub::Connected);
    let again = sent_telemetry(&mut bench);
    assert_eq!(again[..7], first[1..]);
    bench.disconnect();
    bench.hub(FromHub::Connected);
    assert_eq!(sent_telemetry(&mut bench), again);
    for (token, ..) in again {
        bench.hub(FromHub::TelemetryTaken { token });
    }
    bench.settle();
    assert_eq!(bench.db.telemetry.len(), 1, "the ninth, in flight");
}

#[test]
fn the_queue_has_a_size_and_tells_what_is_free() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    bench.disconnect();
    bench.connect(json!({}), 1);
    let body = "x".repeat(100 * 1024);
    done(&mut bench, sends(&[&body, &body]));
    bench.method("2", "lockDoor");
    assert_eq!(bench.call.as_ref().map(|call| call.snapshot.telemetry_room), Some(56 * 1024 - 2 * 64));
    let sent = sent_telemetry(&mut bench);
    bench.hub(FromHub::TelemetryTaken { token: sent[0].0 });
    bench.returns(Effects::default());
    bench.method("3", "lockDoor");
    assert_eq!(bench.call.as_ref().map(|call| call.snapshot.telemetry_room), Some(156 * 1024 - 64));
}

#[test]
fn what_nobody_waits_for_is_written_again_later() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    done(&mut bench, reports(json!({"a": 1})));
    bench.wait(Duration::from_secs(2));
    answer(&mut bench, 1, 204);
    bench.wait_for_deadline();
    bench.cannot_write();
    assert!(bench.records.is_empty());
    bench.wait_for_deadline();
    bench.write();
    assert_eq!((bench.db.reported, bench.db.unsent), (object(json!({"a": 1})), Unsent::default()));
}

#[test]
fn confirmations_are_written_together_with_the_next_call_or_at_the_stop() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    let confirmed = |bench: &mut Bench| {
        done(bench, sends(&["0"]));
        let (token, ..) = sent_telemetry(bench).remove(0);
        bench.hub(FromHub::TelemetryTaken { token });
        assert_eq!((bench.records.len(), bench.db.telemetry.len()), (0, 1));
    };
    confirmed(&mut bench);
    bench.method("2", "lockDoor");
    bench.returns(reports(json!({"a": 1})));
    let changes = bench.write();
    assert_eq!((changes.telemetry_taken.len(), changes.unsent.is_some(), bench.records.len()), (1, true, 0));
    assert!(bench.db.telemetry.is_empty());

    confirmed(&mut bench);
    bench.input(Input::Stop);
    bench.write();
    assert!(bench.stopped && bench.db.telemetry.is_empty());
}
