//! Versions that want to be told when they take over.

use std::time::Duration;

use plugin_runtime::Effects;
use serde_json::json;

use super::bench::*;
use crate::failure::FailureKind;
use crate::record::DeviceRecord;

/// A device on version 1, which is activated and has left something.
fn on_version_1() -> Bench {
    let mut bench = Bench::on(DeviceRecord::default(), &[living("1")]);
    bench.returns(sets("k", "1"));
    bench.write_all();
    bench.connect(json!({}), 1);
    bench.write_all();
    bench
}

fn version_that_answers(bench: &mut Bench) -> String {
    bench.method("m", "start");
    bench.returns(Effects::default());
    bench.answers().remove(0).2["version"].as_str().expect("a version").to_owned()
}

#[test]
fn a_version_is_activated_once_before_anything_else_and_told_who_was_before() {
    let mut bench = Bench::on(DeviceRecord::default(), &[living("1")]);
    assert_eq!(bench.activation(), Some(("1".into(), None)));
    bench.connect(json!({}), 1);
    bench.method("1", "start");
    bench.returns(timers(&[("tick", bench.wall + 1000, "")]));
    assert!(bench.call.is_none(), "recorded first");
    bench.write_all();
    bench.returns(sets("k", "1"));
    bench.write_all();
    assert_eq!(bench.answers()[0].1, 200);

    let mut bench = Bench::on(bench.db, &[living("1")]);
    assert_eq!(bench.activation(), None, "not after a restart");
    bench.plugins(2, &[living("2")]);
    assert_eq!(bench.activation(), Some(("2".into(), Some("1".into()))));
    let snapshot = &bench.call.as_ref().expect("a call").snapshot;
    assert_eq!((&snapshot.state["k"][..], snapshot.timers.len()), (&b"1"[..], 1));
    bench.returns(sets("k", "2"));
    bench.write_all();
    assert_eq!(bench.db.state[&name("ticker")]["k"], b"2");
    bench.plugins(3, &[living("1")]);
    assert_eq!(bench.activation(), Some(("1".into(), Some("2".into()))), "the way back, too");
}

#[test]
fn a_version_that_fails_leaves_the_device_on_the_one_before() {
    for fail in [|bench: &mut Bench| bench.refuses("no"), |bench: &mut Bench| bench.fails(FailureKind::Trap)] {
        let mut bench = on_version_1();
        bench.plugins(2, &[living("2")]);
        bench.method("1", "start");
        fail(&mut bench);
        bench.returns(Effects::default());
        assert_eq!(bench.answers()[0].2["version"], "1", "it waited, and got the old one");
        let view = bench.actor.view();
        assert_eq!((&*view.lineup.plugins[0].label, &*view.held_back[0].version), ("1", "2"));
        assert_eq!((view.failures, &*view.last_failure.expect("a failure").version), (1, "2"));
        bench.wait(Duration::from_secs(3600));
        bench.plugins(3, &[living("2"), lock_door("1")]);
        assert_eq!((bench.activation(), version_that_answers(&mut bench)), (None, "1".into()), "not again");
        bench.plugins(4, &[living("3")]);
        assert_eq!(bench.activation(), Some(("3".into(), Some("1".into()))));
        bench.returns(Effects::default());
        bench.write_all();
        assert_eq!(version_that_answers(&mut bench), "3");
        assert!(bench.actor.view().held_back.is_empty());
    }
}

#[test]
fn a_version_that_is_withdrawn_during_its_activation_leaves_nothing_behind() {
    let mut bench = on_version_1();
    bench.plugins(2, &[living("2")]);
    bench.plugins(3, &[living("1")]);
    bench.refuses("no");
    assert_eq!((version_that_answers(&mut bench), bench.actor.view().held_back), ("1".into(), vec![]));
}

#[test]
fn without_a_version_before_the_activation_is_repeated() {
    let mut bench = Bench::on(DeviceRecord::default(), &[living("1")]);
    bench.connect(json!({"x": 1}), 2);
    bench.write_all();
    let mut waits = Vec::new();
    for _ in 0..3 {
        bench.refuses("not yet");
        bench.method("1", "start");
        let (_, status, payload) = bench.answers().remove(0);
        assert_eq!((status, &payload["error"]), (503, &json!("not-activated")));
        assert!(bench.call.is_none(), "its changes wait");
        waits.push(bench.wait_for_deadline().as_secs_f64());
        assert_eq!(bench.activation(), Some(("1".into(), None)));
    }
    assert!(waits.iter().zip([1.0, 2.0, 4.0]).all(|(wait, full)| (full / 2.0..=full).contains(wait)), "{waits:?}");
    bench.returns(sets("k", "lost"));
    bench.cannot_write();
    while bench.activation().is_none() {
        bench.wait_for_deadline();
    }
    assert!(bench.call.as_ref().expect("a call").snapshot.state.is_empty());
    bench.returns(Effects::default());
    bench.write_all();
    assert_eq!(bench.change(), Some(("1".into(), 2, json!({"x": 1}))));
}

#[test]
fn a_version_without_this_interface_is_known_by_what_it_left() {
    let mut bench = Bench::connected(&[ticker("1")]);
    bench.method("1", "start");
    bench.returns(sets("k", "v"));
    bench.write_all();
    let bench = Bench::on(bench.db, &[living("2")]);
    assert_eq!(bench.activation(), Some(("2".into(), Some("1".into()))));
}

#[test]
fn a_version_learns_in_which_form_the_state_is() {
    let mut bench = on_version_1();
    bench.plugins(2, &[living("3")]);
    assert_eq!(bench.format_before(), Some(1), "to be migrated");
    bench.refuses("cannot");
    bench.method("1", "start");
    bench.returns(sets("k", "of version 1 still"));
    bench.write_all();
    assert_eq!(bench.activation(), None, "not again, whatever the version before records");
    bench.plugins(3, &[living("4")]);
    assert_eq!(bench.format_before(), Some(1), "a migration that failed has left nothing");
    bench.returns(sets("k", "of version 4"));
    bench.write_all();

    let mut bench = Bench::on(bench.db, &[living("2")]);
    bench.connect(json!({}), 1);
    assert_eq!(
        (bench.activation(), bench.format_before()),
        (Some(("2".into(), Some("4".into()))), Some(4)),
        "a rollback"
    );
    bench.refuses("state of format 4 is too new");
    bench.plugins(2, &[ticker("5")]);
    bench.method("1", "start");
    bench.returns(sets("k", "in a form that nobody names"));
    bench.write_all();
    bench.plugins(3, &[living("6")]);
    assert_eq!(bench.format_before(), Some(0));
}
