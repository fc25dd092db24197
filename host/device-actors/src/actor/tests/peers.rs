//! Messages between the devices of a host.

use std::time::Duration;

use plugin_runtime::{Effects, MessageSource};
use serde_json::json;

use super::bench::*;
use crate::actor::{Input, Work};
use crate::failure::FailureKind;
use crate::record::DeviceRecord;

#[test]
fn messages_leave_after_the_record_of_their_call_and_only_then() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    bench.method("1", "lockDoor");
    bench.returns(sends_to(&[("lamp", "on"), ("bell", "ring")]));
    assert!(bench.take_to_peers().is_empty() && bench.answers().is_empty());
    bench.write();
    let sent = [("lamp", "door-0001", "on"), ("bell", "door-0001", "ring")];
    let sent = sent.map(|(to, from, body)| (to.to_owned(), from.to_owned(), body.to_owned()));
    assert_eq!(bench.take_to_peers(), sent);
    assert_eq!(bench.answers()[0].1, 200);
    bench.input(Input::Undelivered);
    assert_eq!(bench.actor.view().undelivered, 1);

    bench.method("2", "lockDoor");
    bench.returns(sends_to(&[("lamp", "off")]));
    bench.cannot_write();
    assert!(bench.take_to_peers().is_empty());

    bench.method("3", "lockDoor");
    bench.returns(sends_to(&[("lamp", "off")]));
    let bench = Bench::on(bench.db, &[lock_door("1")]);
    assert!(bench.to_peers.is_empty(), "at most once");
}

#[test]
fn a_message_from_a_peer_reaches_plugins_connected_or_not() {
    let plugins = [reader("a", "1"), lock_door("1"), reader("b", "1")];
    let mut bench = Bench::on(DeviceRecord::default(), &plugins);
    bench.peer_message("hello");
    let Some(Work::Message(message)) = bench.call.as_ref().map(|call| call.work.clone()) else { panic!("no message") };
    assert!(matches!(&message.source, MessageSource::Peer(device) if device.as_str() == "lamp"));
    bench.returns(sets("k", "v"));
    bench.write_all();
    assert_eq!(bench.letter(), Some(("b".into(), "hello".into())));
    bench.returns(Effects::default());
    bench.write_all();
    assert!(bench.call.is_none() && bench.sent.is_empty());
    assert_eq!((bench.actor.view().messages, bench.actor.view().lost_messages), (0, 0));
    assert!(bench.db.handled.is_empty(), "it cannot come again");
}

#[test]
fn messages_from_peers_wait_for_their_turn_until_there_are_too_many() {
    let mut bench = Bench::connected(&[reader("a", "1")]);
    for n in 0..66 {
        bench.peer_message(&n.to_string());
    }
    bench.message(1, "from the cloud");
    let view = bench.actor.view();
    assert_eq!((view.messages, view.lost_messages), (65, 2), "the cloud's have room of their own");
    bench.disconnect();
    bench.connect(json!({}), 1);
    assert_eq!(bench.actor.view().messages, 64, "no matter for a hub");
}

#[test]
fn a_message_from_a_peer_is_lost_in_the_end() {
    let mut bench = Bench::connected(&[reader("a", "1"), reader("b", "1")]);
    bench.peer_message("bad");
    let mut failures = 0;
    while bench.actor.view().messages > 0 {
        match bench.letter() {
            Some((plugin, _)) if plugin == "a" => {
                bench.returns(Effects::default());
                bench.write_all();
            }
            Some(_) => {
                failures += 1;
                bench.wants_it_later();
            }
            None => {
                bench.wait_for_deadline();
            }
        }
    }
    assert_eq!((failures, bench.actor.view().lost_messages), (10, 1));
}

#[test]
fn without_a_plugin_for_messages_they_are_lost() {
    let mut bench = Bench::connected(&[lock_door("1")]);
    bench.peer_message("hello");
    bench.plugins(2, &[reader("a", "1")]);
    bench.peer_message("hello");
    bench.fails(FailureKind::Trap);
    bench.plugins(3, &[lock_door("1")]);
    let view = bench.actor.view();
    assert_eq!((view.messages, view.lost_messages, bench.call.is_none()), (0, 2, true));
}

#[test]
fn a_stop_loses_what_waits() {
    let mut bench = Bench::connected(&[reader("a", "1")]);
    bench.peer_message("in hand");
    bench.peer_message("waits");
    bench.input(Input::Stop);
    bench.peer_message("too late");
    bench.returns(sends_to(&[("lamp", "done")]));
    bench.write_all();
    assert!(bench.stopped && bench.call.is_none());
    assert_eq!(bench.take_to_peers().len(), 1, "what is in hand is finished");
    bench.wait(Duration::from_secs(60));
    assert_eq!(bench.actor.view().lost_messages, 2);
}
