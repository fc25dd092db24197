//! Methods, failures, swaps, instances, stopping.

use std::time::Duration;

use iothub_protocol::link::ToHub;
use plugin_runtime::{Effects, GuestResponse};
use serde_json::json;

use super::bench::*;
use crate::actor::{Input, Outcome};
use crate::failure::FailureKind;
use crate::record::DeviceRecord;

#[test]
fn an_answer_waits_for_the_record_if_there_is_one() {
    let mut bench = Bench::connected(&[lock_door("1.0.0")]);
    bench.method("1", "lockDoor");
    bench.returns(Effects::default());
    assert_eq!(bench.answers(), [("1".into(), 200, json!({"version": "1.0.0"}))]);
    assert!(bench.records.is_empty());

    bench.method("2", "lockDoor");
    bench.returns(Effects { reported: object(json!({"lock": true})), ..sets("locked", "yes") });
    bench.method("3", "lockDoor");
    assert!(bench.take_sent().is_empty() && bench.call.is_none(), "one message at a time, until it is recorded");
    bench.write();
    assert_eq!(bench.db.state[&name("lock-door")]["locked"], b"yes");
    assert_eq!(bench.db.unsent, unsent(json!({}), json!({"lock": true})));
    assert!(matches!(&bench.take_sent()[..], [ToHub::MethodResponse { .. }, ToHub::Report { .. }]));
    let snapshot = &bench.call.as_ref().expect("the third").snapshot;
    assert_eq!(snapshot.state["locked"], b"yes");
    assert_eq!(*snapshot.reported, object(json!({"lock": true})), "merged, sent or not");
}

#[test]
fn nothing_is_left_of_a_call_that_does_not_return() {
    for (kind, status, error) in
        [(FailureKind::Trap, 500, "trap"), (FailureKind::Timeout, 504, "timeout"), (FailureKind::Memory, 500, "memory")]
    {
        let mut bench = Bench::connected(&[lock_door("1.0.0")]);
        bench.method("1", "lockDoor");
        bench.fails(kind);
        let (_, answered, payload) = bench.answers().remove(0);
        assert_eq!((answered, &payload["error"], &payload["version"]), (status, &json!(error), &json!("1.0.0")));
        assert_eq!(payload["plugin"], "lock-door");
        assert!(!payload.to_string().contains("backtrace"), "{payload}");
        assert_eq!(bench.dropped, ["lock-door@1.0.0"]);
        assert!(bench.records.is_empty());
        bench.method("2", "lockDoor");
        bench.returns(Effects::default());
        assert_eq!(bench.answers()[0].1, 200);
        let view = bench.actor.view();
        assert_eq!((view.calls, view.failures), (2, 1));
        assert_eq!(view.last_failure.expect("a failure").failure.detail, "wasm backtrace");
    }
}

#[test]
fn a_plugin_that_keeps_failing_is_paused() {
    let mut bench = Bench::connected(&[lock_door("1"), reactor("1", &["x"])]);
    for id in ["1", "2", "3"] {
        bench.method(id, "lockDoor");
        bench.fails(FailureKind::Trap);
    }
    bench.answers();
    bench.method("4", "lockDoor");
    let (_, status, payload) = bench.answers().remove(0);
    assert_eq!((status, &payload["error"], &payload["retryAfterMs"]), (503, &json!("paused"), &json!(1000)));
    bench.desired(2, json!({"x": 1}));
    assert!(bench.change().is_some(), "another plugin is not affected");
    bench.returns(Effects::default());
    bench.write_all();
    bench.plugins(2, &[lock_door("2"), reactor("1", &["x"])]);
    bench.method("5", "lockDoor");
    bench.returns(Effects::default());
    assert_eq!(bench.answers()[0].1, 200, "another version begins anew");
}

#[test]
fn a_swap_is_taken_between_two_messages() {
    let mut bench = Bench::connected(&[lock_door("1.0.0")]);
    bench.method("1", "lockDoor");
    bench.method("2", "lockDoor");
    bench.plugins(2, &[lock_door("1.1.0")]);
    assert!(bench.dropped.is_empty(), "in use");
    bench.returns(sets("k", "old"));
    assert_eq!(bench.dropped, ["lock-door@1.0.0"]);
    bench.write();
    let next = bench.call.as_ref().expect("the second");
    assert_eq!((&*next.plugin.label, &next.snapshot.state["k"][..]), ("1.1.0", &b"old"[..]));
    bench.returns(Effects::default());
    let versions: Vec<_> = bench.answers().into_iter().map(|(_, _, payload)| payload["version"].clone()).collect();
    assert_eq!(versions, ["1.0.0", "1.1.0"]);
    bench.plugins(3, &[lock_door("1.2.0")]);
    assert_eq!(bench.dropped, ["lock-door@1.0.0", "lock-door@1.1.0"]);
}

#[test]
fn what_the_host_answers_itself() {
    let mut bench = Bench::connected(&[lock_door("1.0.0")]);
    bench.method("1", "reboot");
    let (_, status, payload) = bench.answers().remove(0);
    assert_eq!((status, &payload["methods"]), (404, &json!(["lockDoor", "unlockDoor"])));
    for payload in
        ["{", "", &format!("{}{}", "[".repeat(1000), "]".repeat(1000)), "\"".repeat(2).repeat(70_000).as_str()]
    {
        bench.method("2", "lockDoor");
        bench.call.take();
        let response = GuestResponse { status: 200, payload: payload.to_owned() };
        bench.input(Input::Called(Outcome::Answered { response, effects: Effects::default() }));
        let (_, status, payload) = bench.answers().remove(0);
        assert_eq!((status, &payload["error"]), (500, &json!("invalid-answer")));
    }
}

#[test]
fn a_full_mailbox_refuses_and_an_old_method_is_not_run() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    for id in 0..66 {
        bench.method(&id.to_string(), "lockDoor");
    }
    let (id, status, payload) = bench.answers().remove(0);
    assert_eq!((id.as_str(), status, &payload["error"]), ("65", 429, &json!("mailbox-full")));
    bench.now += Duration::from_secs(300);
    bench.returns(Effects::default());
    assert_eq!(bench.answers().len(), 1, "only the one in hand");
    assert_eq!((bench.call.is_none(), bench.actor.view().mailbox), (true, 0));
}

#[test]
fn what_cannot_be_recorded_is_undone() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    bench.method("1", "lockDoor");
    bench.returns(Effects { telemetry: sends(&["x"]).telemetry, reported: object(json!({"a": 1})), ..sets("k", "v") });
    bench.cannot_write();
    let (_, status, payload) = bench.answers().remove(0);
    assert_eq!((status, &payload["error"]), (500, &json!("not-recorded")));
    bench.method("2", "lockDoor");
    let snapshot = &bench.call.as_ref().expect("a call").snapshot;
    assert!(snapshot.state.is_empty() && snapshot.reported.is_empty());
    bench.returns(Effects::default());
    assert!(bench.take_sent().iter().all(|message| matches!(message, ToHub::MethodResponse { .. })));
}

#[test]
fn a_caller_that_is_gone_is_not_answered_but_what_was_done_stays() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    bench.method("1", "lockDoor");
    bench.method("2", "lockDoor");
    bench.disconnect();
    bench.connect(json!({}), 1);
    bench.returns(sets("k", "v"));
    bench.write();
    assert_eq!(bench.db.state[&name("lock-door")]["k"], b"v");
    assert!(bench.answers().is_empty() && bench.call.is_none(), "the second was not begun");
}

#[test]
fn methods_wait_for_the_twin_but_not_for_ever() {
    let mut bench = Bench::on(DeviceRecord::default(), &[lock_door("1")]);
    bench.hub(iothub_protocol::link::FromHub::Connected);
    bench.method("1", "lockDoor");
    assert!(bench.call.is_none());
    bench.twin(json!({"a": 1}), 7);
    assert_eq!(bench.call.as_ref().expect("a call").snapshot.desired_version, 7);

    let mut bench = Bench::on(DeviceRecord::default(), &[lock_door("1")]);
    bench.hub(iothub_protocol::link::FromHub::Connected);
    bench.method("1", "lockDoor");
    assert_eq!(bench.wait_for_deadline(), Duration::from_secs(5));
    assert!(bench.call.is_some());
}

#[test]
fn an_unused_instance_goes_after_a_while_or_when_asked() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    bench.method("1", "lockDoor");
    bench.input(Input::Evict);
    assert!(bench.dropped.is_empty(), "in use");
    bench.returns(Effects::default());
    assert_eq!(bench.actor.view().resident, 1);
    assert_eq!(bench.wait_for_deadline(), Duration::from_secs(1));
    assert_eq!((bench.dropped.len(), bench.actor.view().resident, bench.actor.deadline()), (1, 0, None));
    bench.method("2", "lockDoor");
    bench.returns(Effects::default());
    bench.input(Input::Evict);
    assert_eq!(bench.dropped.len(), 2);
}

#[test]
fn stopping_finishes_what_was_accepted() {
    let mut bench = Bench::connected(&[lock_door("1"), reactor("1", &["x"])]);
    bench.method("1", "lockDoor");
    bench.method("2", "lockDoor");
    bench.input(Input::Stop);
    bench.method("3", "lockDoor");
    bench.desired(2, json!({"x": 1}));
    bench.returns(sets("k", "v"));
    assert!(!bench.stopped);
    bench.write_all();
    bench.returns(Effects::default());
    bench.write_all();
    let answered: Vec<_> = bench.answers().into_iter().map(|(id, ..)| id).collect();
    assert_eq!(answered, ["1", "2"]);
    assert!(bench.stopped && bench.change().is_none() && bench.actor.deadline().is_none());
    assert_eq!(bench.db.desired_version, 2);
}
