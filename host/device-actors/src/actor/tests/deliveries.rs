//! Messages from the cloud.

use std::time::Duration;

use iothub_protocol::link::{CloudMessage, FromHub, ToHub};
use plugin_runtime::{Effects, MessageSource};
use serde_json::json;

use super::bench::*;
use crate::actor::{Input, Work};
use crate::failure::FailureKind;
use crate::inbox::HANDLED_LIMIT;
use crate::record::DeviceRecord;

fn reading() -> Bench {
    let mut bench = Bench::connected(&[reader("a", "1")]);
    bench.take_sent();
    bench
}

/// Everything that can be done without waiting.
fn read_all(bench: &mut Bench) -> Vec<(String, String)> {
    let mut read = Vec::new();
    while let Some(letter) = bench.letter() {
        read.push(letter);
        bench.returns(Effects::default());
        bench.write_all();
    }
    read
}

#[test]
fn a_message_is_taken_once_what_it_did_is_recorded() {
    let mut bench = reading();
    bench.message(1, "m1");
    assert_eq!(bench.letter(), Some(("a".into(), "m1".into())));
    let Some(Work::Message(letter)) = bench.call.as_ref().map(|call| call.work.clone()) else { panic!("no message") };
    assert_eq!(letter.source, MessageSource::Cloud);
    bench.message(2, "m2");
    bench.returns(sets("k", "v"));
    assert!(bench.taken().is_empty() && bench.letter().is_none(), "one at a time, until it is recorded");
    let changes = bench.write();
    assert!(changes.state.is_some() && changes.handled.is_some(), "in one record");
    assert_eq!((bench.taken(), bench.letter()), (vec![1], Some(("a".into(), "m2".into()))));
    assert_eq!(bench.actor.view().messages, 1);
    bench.returns(Effects::default());
    bench.write_all();
    assert_eq!((bench.taken(), bench.actor.view().messages), (vec![2], 0));
}

#[test]
fn a_recorded_message_is_not_handled_again_and_an_unrecorded_one_is() {
    let mut bench = reading();
    bench.message(1, "recorded");
    bench.returns(sets("k", "v"));
    bench.write_all();
    bench.message(2, "lost");
    bench.returns(sets("k", "gone"));
    let mut bench = Bench::on(bench.db, &[reader("a", "1")]);
    bench.connect(json!({}), 1);
    bench.message(1, "recorded");
    bench.message(2, "lost");
    assert_eq!((bench.taken(), bench.letter()), (vec![1], Some(("a".into(), "lost".into()))));
    assert_eq!(bench.call.as_ref().expect("a call").snapshot.state["k"], b"v");
    read_all(&mut bench);
    assert_eq!(bench.taken(), [2]);
}

#[test]
fn only_what_has_an_id_is_known_again() {
    let nameless = |token| FromHub::Message {
        token,
        message: Box::new(CloudMessage { body: b"toggle".to_vec(), ..CloudMessage::default() }),
    };
    let mut bench = reading();
    bench.hub(nameless(1));
    bench.hub(nameless(1));
    assert_eq!(read_all(&mut bench).len(), 1, "the hub repeats it on the same connection");
    bench.hub(nameless(2));
    assert_eq!(read_all(&mut bench).len(), 1, "it may be another one");
    assert_eq!(bench.taken(), [1, 2]);

    bench.message(3, "m");
    read_all(&mut bench);
    let other = CloudMessage { body: b"another text".to_vec(), ..cloud_message("m") };
    bench.hub(FromHub::Message { token: 4, message: Box::new(other) });
    assert_eq!(read_all(&mut bench).len(), 1, "a sender that uses an id again");
}

#[test]
fn a_message_that_comes_again_while_it_waits_is_one() {
    let mut bench = reading();
    bench.message(1, "m");
    bench.message(2, "m");
    assert_eq!(bench.actor.view().messages, 1);
    assert_eq!(read_all(&mut bench).len(), 1);
    assert_eq!(bench.taken(), [2], "what the hub waits for now");
}

#[test]
fn every_plugin_that_gets_messages_gets_each_once() {
    let plugins = [reader("a", "1"), lock_door("1"), reader("b", "1")];
    let mut bench = Bench::connected(&plugins);
    bench.message(1, "m1");
    bench.returns(Effects::default());
    bench.write_all();
    assert!(bench.taken().is_empty(), "b has it still to do");
    assert_eq!(bench.letter(), Some(("b".into(), "m1".into())));
    bench.returns(sets("k", "lost"));
    let mut bench = Bench::on(bench.db, &plugins);
    bench.connect(json!({}), 1);
    bench.message(1, "m1");
    assert_eq!(read_all(&mut bench), [("b".into(), "m1".into())], "a has done it");
    assert_eq!(bench.taken(), [1]);
}

#[test]
fn messages_come_in_order_among_methods() {
    let mut bench = reading();
    bench.method("0", "read");
    for n in 1..4 {
        bench.now += Duration::from_millis(1);
        bench.message(n, &n.to_string());
        bench.now += Duration::from_millis(1);
        bench.method(&n.to_string(), "read");
    }
    let mut order = Vec::new();
    while bench.call.is_some() {
        order.push(bench.letter().map_or("method".into(), |(_, id)| id));
        bench.returns(Effects::default());
        bench.write_all();
    }
    assert_eq!(order, ["method", "1", "method", "2", "method", "3", "method"]);
}

#[test]
fn a_message_that_is_not_dealt_with_comes_again_and_holds_up_nobody() {
    let mut bench = reading();
    bench.message(1, "bad");
    bench.wants_it_later();
    bench.message(2, "good");
    assert_eq!(read_all(&mut bench), [("a".into(), "good".into())]);
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
        while bench.letter().is_none() {
            bench.wait_for_deadline();
        }
        waits.push((bench.now - before).as_secs_f64());
        fail(&mut bench);
        bench.write_all();
    }
    assert!(waits.iter().zip([1.0, 2.0, 4.0]).all(|(wait, full)| (full / 2.0..=full).contains(wait)), "{waits:?}");
    assert!(bench.db.state.is_empty() && bench.letter().is_none());
    bench.plugins(2, &[reader("a", "2")]);
    assert!(bench.letter().is_some(), "another version need not wait");
    read_all(&mut bench);
    assert_eq!(bench.taken(), [2, 1]);
}

#[test]
fn a_message_that_nobody_can_deal_with_is_left_to_the_hub() {
    let mut bench = Bench::connected(&[reader("a", "1"), reader("b", "1")]);
    bench.message(1, "bad");
    let (mut of_a, mut of_b) = (0, 0);
    while bench.actor.view().messages > 0 {
        match bench.letter() {
            Some((plugin, _)) if plugin == "a" => {
                of_a += 1;
                bench.returns(Effects::default());
                bench.write_all();
            }
            Some(_) => {
                of_b += 1;
                bench.wants_it_later();
            }
            None => {
                bench.wait_for_deadline();
            }
        }
    }
    assert_eq!((of_a, of_b, bench.taken()), (1, 10, vec![]));
    bench.message(2, "bad");
    assert_eq!(bench.letter(), Some(("b".into(), "bad".into())), "when the hub brings it again");
}

#[test]
fn what_does_not_fit_stays_with_the_hub() {
    let mut bench = reading();
    for n in 0..70 {
        bench.message(n, &n.to_string());
    }
    assert_eq!(bench.actor.view().messages, 64);
    assert_eq!(read_all(&mut bench).len(), 64);
    bench.message(70, "69");
    assert_eq!(read_all(&mut bench), [("a".into(), "69".into())]);
    assert!(bench.taken().into_iter().eq((0..64).chain([70])));
}

#[test]
fn the_hub_brings_again_what_waits_when_the_link_breaks() {
    let mut bench = reading();
    bench.message(1, "m1");
    bench.message(2, "m2");
    bench.disconnect();
    assert_eq!(bench.actor.view().messages, 0);
    bench.returns(sets("k", "v"));
    bench.write_all();
    assert!(bench.call.is_none(), "the second was not begun");
    bench.connect(json!({}), 1);
    bench.take_sent();
    bench.message(3, "m1");
    bench.message(4, "m2");
    assert_eq!(read_all(&mut bench), [("a".into(), "m2".into())]);
    assert_eq!(bench.taken(), [3, 4]);
}

#[test]
fn a_message_in_hand_that_comes_again_is_still_one() {
    let mut bench = reading();
    bench.message(1, "m");
    bench.disconnect();
    bench.connect(json!({}), 1);
    bench.message(2, "m");
    assert_eq!(read_all(&mut bench).len(), 1);
    assert_eq!(bench.taken(), [2]);
}

#[test]
fn an_expired_message_is_not_handled_late() {
    let mut bench = reading();
    let expiry = i64::try_from(bench.wall + 1000).expect("a time");
    let expiry = chrono::DateTime::from_timestamp_millis(expiry);
    bench.message(1, "first");
    bench.hub(FromHub::Message { token: 2, message: Box::new(CloudMessage { expiry, ..cloud_message("late") }) });
    bench.wait(Duration::from_secs(1));
    assert_eq!(read_all(&mut bench), [("a".into(), "first".into())]);
    assert_eq!((bench.taken(), bench.actor.view().messages), (vec![1], 0));
}

#[test]
fn messages_are_asked_for_when_a_plugin_gets_them() {
    let asked = |bench: &mut Bench| bench.take_sent().contains(&ToHub::SubscribeMessages);
    let mut bench = Bench::connected(&[lock_door("1")]);
    assert!(!asked(&mut bench));
    bench.message(1, "of an earlier subscription");
    assert_eq!((bench.taken(), bench.letter()), (vec![], None), "left to the hub");
    bench.plugins(2, &[lock_door("1"), reader("a", "1")]);
    assert!(asked(&mut bench));
    bench.plugins(3, &[reader("a", "2")]);
    assert!(!asked(&mut bench), "once for each connection");
    bench.disconnect();
    bench.hub(FromHub::Connected);
    assert!(asked(&mut bench));
}

#[test]
fn a_message_waits_for_a_version_that_may_run() {
    let mut bench = reading();
    for id in ["1", "2", "3"] {
        bench.method(id, "read");
        bench.fails(FailureKind::Trap);
    }
    bench.message(1, "m");
    assert_eq!(bench.letter(), None, "the plugin is paused");
    bench.message(2, "without a plugin");
    bench.plugins(2, &[lock_door("1")]);
    assert_eq!((bench.actor.view().messages, bench.taken()), (0, vec![]), "left to the hub");
}

#[test]
fn a_stop_leaves_messages_with_the_hub() {
    let mut bench = reading();
    bench.message(1, "m1");
    bench.message(2, "m2");
    bench.input(Input::Stop);
    bench.message(3, "m3");
    bench.returns(sets("k", "v"));
    bench.write_all();
    assert!(bench.stopped && bench.call.is_none());
    assert_eq!(bench.taken(), [1]);
}

#[test]
fn the_last_messages_are_remembered() {
    let mut bench = Bench::on(DeviceRecord::default(), &[reader("a", "1")]);
    bench.connect(json!({}), 1);
    let count = HANDLED_LIMIT as u64 + 1;
    for n in 0..count {
        bench.message(n, &n.to_string());
        read_all(&mut bench);
    }
    for n in 1..count {
        bench.message(n + count, &n.to_string());
        assert!(bench.letter().is_none(), "{n}");
    }
    bench.message(3 * count, "0");
    assert!(bench.letter().is_some(), "too long ago");
}
