//! Timers: when they fire, in which order, and what becomes of one that is not dealt with.

use std::time::Duration;

use plugin_runtime::Effects;
use serde_json::json;

use super::bench::*;
use crate::actor::Input;
use crate::failure::FailureKind;

/// A ticker that has set these timers, each due so many milliseconds from now, with their names as payloads.
fn waiting(due: &[(&str, u64)]) -> Bench {
    let mut bench = Bench::connected(&[ticker("1")]);
    bench.method("1", "start");
    let due: Vec<_> = due.iter().map(|&(name, after)| (name, bench.wall + after, name)).collect();
    bench.returns(timers(&due));
    bench.write_all();
    bench.input(Input::Evict);
    bench.answers();
    bench
}

fn fired(bench: &Bench) -> Option<String> {
    bench.timer().map(|(_, name, _)| name)
}

#[test]
fn a_timer_fires_when_it_is_due_and_is_gone_with_what_it_did() {
    let mut bench = waiting(&[("step", 1500)]);
    assert_eq!((bench.db.timers[&name("ticker")].len(), bench.actor.view().timers), (1, 1));
    bench.disconnect();
    assert_eq!(bench.wait_for_deadline(), Duration::from_millis(1500));
    assert_eq!(bench.timer(), Some(("1".into(), "step".into(), "step".into())));
    let snapshot = &bench.call.as_ref().expect("a call").snapshot;
    assert!(snapshot.timers.is_empty(), "no longer pending");
    bench.returns(sets("progress", "1"));
    assert_eq!(bench.db.timers[&name("ticker")].len(), 1, "not before it is recorded");
    let changes = bench.write();
    assert!(changes.state.is_some() && changes.timers.is_some(), "in one record");
    assert!(bench.db.timers[&name("ticker")].is_empty());
    bench.wait(Duration::from_secs(3600));
    assert_eq!((fired(&bench), bench.actor.view().timers), (None, 0));
}

#[test]
fn timers_fire_in_the_order_in_which_they_are_due() {
    let mut bench = waiting(&[("z", 10), ("b", 20), ("a", 20), ("later", 5000)]);
    bench.wait(Duration::from_millis(15));
    bench.method("2", "start");
    bench.wait(Duration::from_millis(10));
    bench.method("3", "start");
    let mut order = Vec::new();
    while bench.call.is_some() {
        order.push(fired(&bench).unwrap_or("method".into()));
        bench.returns(Effects::default());
        bench.write_all();
    }
    assert_eq!(order, ["z", "method", "a", "b", "method"]);
}

#[test]
fn a_timer_may_set_itself_again_and_lets_others_pass() {
    let mut bench = waiting(&[("tick", 0)]);
    let mut order = Vec::new();
    for n in 0..6 {
        order.push(fired(&bench).unwrap_or("method".into()));
        if n == 1 {
            bench.method("2", "start");
        }
        bench.now += Duration::from_millis(1);
        // A time long ago: it lines up behind the method all the same.
        let again = if fired(&bench).is_some() { timers(&[("tick", 5, "again")]) } else { Effects::default() };
        bench.returns(again);
        bench.write_all();
    }
    assert_eq!(order, ["tick", "tick", "method", "tick", "tick", "tick"]);
    assert_eq!(bench.db.timers[&name("ticker")]["tick"].due, 5);
}

#[test]
fn what_fell_due_while_the_host_was_down_fires_once_after_the_start() {
    let mut bench = waiting(&[("step", 1000)]);
    bench.wait(Duration::from_secs(2));
    bench.returns(sets("k", "lost"));
    let (wall, db) = (bench.wall + 86_400_000, bench.db);
    let mut bench = Bench::at(wall, db, &[ticker("1")]);
    assert_eq!(fired(&bench).as_deref(), Some("step"), "what was not recorded has not happened");
    bench.returns(sets("k", "kept"));
    bench.write_all();
    let bench = Bench::at(wall, bench.db, &[ticker("1")]);
    assert_eq!((fired(&bench), bench.actor.deadline()), (None, None), "what was recorded has");
}

#[test]
fn a_timer_that_is_not_dealt_with_comes_again_later_each_time() {
    let mut bench = waiting(&[("bad", 0), ("good", 1)]);
    bench.wants_it_later();
    bench.wait(Duration::from_millis(1));
    assert_eq!(fired(&bench).as_deref(), Some("good"), "which holds up nobody");
    bench.returns(Effects::default());
    bench.write_all();
    let mut waits = Vec::new();
    for fail in [
        |bench: &mut Bench| bench.fails(FailureKind::Trap),
        Bench::wants_it_later,
        |bench: &mut Bench| {
            bench.returns(sets("k", "v"));
            bench.cannot_write();
        },
    ] {
        let before = bench.now;
        while fired(&bench).is_none() {
            bench.wait_for_deadline();
        }
        waits.push((bench.now - before).as_secs_f64());
        fail(&mut bench);
        bench.write_all();
    }
    assert!(waits.iter().zip([1.0, 2.0, 4.0]).all(|(wait, full)| (full / 2.0..=full).contains(wait)), "{waits:?}");
    assert!(bench.db.state.is_empty() && fired(&bench).is_none());
    bench.plugins(2, &[ticker("2")]);
    assert_eq!(bench.timer(), Some(("2".into(), "bad".into(), "bad".into())), "another version need not wait");
}

#[test]
fn timers_outlive_a_version_that_has_no_use_for_them() {
    let mut bench = waiting(&[("step", 1000)]);
    let deaf = || std::sync::Arc::new(crate::lineup::Plugin { has_ticks: false, ..(*ticker("2")).clone() });
    bench.plugins(2, &[deaf()]);
    bench.wait(Duration::from_secs(5));
    assert_eq!((fired(&bench), bench.actor.deadline(), bench.actor.view().timers), (None, None, 1));
    bench.plugins(3, &[ticker("3")]);
    assert_eq!(bench.timer(), Some(("3".into(), "step".into(), "step".into())));
}

#[test]
fn a_clock_that_is_set_moves_timers() {
    let mut bench = waiting(&[("step", 10_000)]);
    bench.wait(Duration::from_secs(9));
    bench.wall -= 3_600_000;
    bench.wait(Duration::from_secs(1));
    assert_eq!(fired(&bench), None, "not before its time on the clock");
    assert_eq!(bench.actor.deadline(), Some(bench.now + Duration::from_secs(60)), "but it looks");
    bench.wall += 7_200_000;
    bench.wait_for_deadline();
    assert_eq!(fired(&bench).as_deref(), Some("step"));
}

#[test]
fn a_stop_leaves_timers_for_the_next_start() {
    let mut bench = waiting(&[("step", 1000)]);
    bench.method("2", "start");
    bench.input(Input::Stop);
    bench.now += Duration::from_secs(2);
    bench.wall += 2000;
    bench.returns(timers(&[("more", 0, "")]));
    bench.write_all();
    assert!(bench.stopped && bench.call.is_none());
    assert_eq!(bench.db.timers[&name("ticker")].len(), 2);
}

#[test]
fn a_change_sets_timers_too() {
    let mut bench = Bench::connected(&[ticker("1")]);
    bench.desired(2, json!({"x": 1}));
    bench.returns(timers(&[("step", bench.wall, "")]));
    bench.write_all();
    assert_eq!(fired(&bench).as_deref(), Some("step"));
}
