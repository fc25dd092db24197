//! Which devices are in memory: who may leave, and what is known of who has left.

use iothub_protocol::feedback::MessageEnd;
use iothub_protocol::link::Feedback;

use super::*;
use crate::presence::Seen;
use crate::queue::Holder;

/// Let go whatever may, when everything so far is durable.
fn let_go(hub: &mut Fixture) -> Vec<String> {
    hub.collect();
    let durable = hub.hub.take_outcome().batch;
    // The first time finds everything used a moment ago.
    for _ in 0..2 {
        hub.hub.let_go_beyond(0, durable);
    }
    let mut there: Vec<_> = hub.hub.entities.keys().map(ToString::to_string).collect();
    there.sort_unstable();
    there
}

#[test]
fn who_is_idle_leaves_once_everything_is_durable() {
    let mut hub = Fixture::new();
    hub.request(1, Operation::GetTwin(id("a")));
    for _ in 0..3 {
        hub.hub.let_go_beyond(0, 0);
    }
    assert!(hub.hub.lacks(&id("a")).is_none() && hub.hub.lacks(&id("b")).is_none(), "not durable yet");
    assert_eq!(let_go(&mut hub), [""; 0]);
    assert!(hub.hub.lacks(&id("a")).is_some());
}

#[test]
fn who_is_busy_stays() {
    let mut hub = Fixture::new();
    hub.connect_well(1, "a", 1);
    hub.call(1, "b", 10);
    assert_eq!(let_go(&mut hub), ["a", "b"], "a connection, a call");
    hub.advance(10);
    hub.link(1, LinkInput::Closed { graceful: true });
    hub.changes.clear();
    assert_eq!(let_go(&mut hub), ["a"], "when it was last heard of is to be written");
    assert_eq!(let_go(&mut hub), [""; 0]);
    assert_eq!(hub.changes, ["activity a 0"]);
}

#[test]
fn a_message_in_somebody_s_hand_keeps_its_device() {
    let mut hub = Fixture::new();
    let message = CloudMessage { body: b"x".to_vec(), ..CloudMessage::default() };
    hub.request(1, Operation::SendMessage { id: device_id("a"), message: Box::new(message), wait: false });
    let lock = Duration::from_secs(60);
    let receive =
        |password| Operation::ReceiveMessage { id: device_id("a"), credentials: with_token(password), token: 7, lock };
    let password = hub.token("a", 1);
    hub.request(2, receive(password));
    for _ in 0..2 {
        let_go(&mut hub);
    }
    assert_eq!(hub.hub.entities.len(), 1);
    assert!(hub.hub.entities[&id("a")].queue.messages()[0].is_invisible(), "{:?}", Holder::Token(7));
    hub.advance(60);
    let looks = (0..3).filter_map(|_| {
        let durable = hub.hub.take_outcome().batch;
        hub.hub.let_go_beyond(0, durable)
    });
    let due = looks.min();
    assert!(hub.hub.entities.is_empty());
    assert_eq!(due, Some(hub.now.wall + Duration::from_secs(3600 - 60)), "somebody must see to its queue then");
}

#[test]
fn a_device_that_comes_back_has_its_queue_seen_to() {
    let mut hub = Fixture::new();
    let message = CloudMessage { body: b"x".to_vec(), feedback: Feedback::Full, ..CloudMessage::default() };
    hub.request(1, Operation::SendMessage { id: device_id("a"), message: Box::new(message), wait: false });
    let Some(stored) = hub.hub.entities.remove(&id("a")) else { panic!("it was made") };
    hub.hub.schedule_none(&id("a"));
    hub.advance(3600);
    hub.events.clear();
    hub.hub.take_in(hub.now, &id("a"), Some(stored));
    hub.collect();
    assert_eq!(hub.events, ["settled"]);
    assert_eq!(hub.hub.feedback.records().map(|(_, record)| record.ended).collect::<Vec<_>>(), [MessageEnd::Expired]);
    assert_eq!(hub.hub.queued_bytes, 0);
}

#[test]
fn that_there_is_no_device_is_known_until_the_deletion_is_durable() {
    let mut hub = Fixture::new();
    hub.request(1, Operation::DeleteIdentity { id: id("a"), if_match: None });
    hub.collect();
    hub.hub.let_go_beyond(0, 0);
    hub.hub.let_go_beyond(0, 0);
    assert!(hub.hub.lacks(&id("a")).is_none(), "the store may still have it");
    let_go(&mut hub);
    assert!(hub.hub.lacks(&id("a")).is_some());
    hub.hub.take_in(hub.now, &id("a"), None);
    assert!(hub.hub.lacks(&id("a")).is_none());
    hub.put(2, "a", None);
    assert!(hub.hub.entities.contains_key(&id("a")));
}

#[test]
fn presence_tells_what_is_not_stored() {
    let mut hub = Fixture::new();
    let presence = hub.hub.presence();
    assert_eq!(presence.seen(&id("a")), None);
    hub.connect_well(1, "a", 1);
    let seen = |connected| Some(Seen { connected, listens: false, last_activity: Some(hub.now.wall) });
    assert_eq!((presence.seen(&id("a")), presence.connected(false)), (seen(true), vec![id("a")]));
    let expected = seen(false);
    hub.link(1, LinkInput::Closed { graceful: true });
    assert_eq!((presence.seen(&id("a")), presence.connected_count()), (expected, 0));
    let_go(&mut hub);
    let_go(&mut hub);
    assert_eq!(presence.seen(&id("a")), None, "all of it is stored now");
}

#[test]
fn a_hub_that_stops_writes_what_it_had_kept_for_later() {
    let mut hub = Fixture::new();
    hub.connect_well(1, "a", 1);
    hub.link(1, LinkInput::Closed { graceful: true });
    hub.changes.clear();
    hub.hub.settle_up();
    hub.collect();
    assert_eq!(hub.changes, ["activity a 0"]);
}

/// Make a module of device `a`, and give what would be stored of both.
fn with_module(hub: &mut Fixture) -> (Entity, Entity) {
    hub.put(1, "a/m", None);
    hub.heard();
    let copy = |entity: &Entity| {
        let (subscriptions, queue) = (entity.subscriptions.clone(), Queue::default());
        Entity::new(entity.identity.clone(), Twin::clone(&entity.twin), subscriptions, queue)
    };
    let (device, module) = (&hub.hub.entities[&id("a")], &hub.hub.entities[&id("a/m")]);
    (copy(device).with_modules(device.modules.clone()), copy(module))
}

#[test]
fn a_module_is_read_after_its_device_which_knows_of_it() {
    let mut hub = Fixture::new();
    let (device, module) = with_module(&mut hub);
    assert_eq!(let_go(&mut hub), [""; 0]);
    let lacks = |hub: &Fixture, text: &str| hub.hub.lacks(&id(text)).map(|address| address.to_string());
    assert_eq!(lacks(&hub, "a/m").as_deref(), Some("a"), "the device first");
    hub.hub.take_in(hub.now, &id("a/m"), Some(module));
    assert!(hub.hub.entities.is_empty(), "nobody asked for that");
    hub.hub.take_in(hub.now, &id("a"), Some(device));
    assert_eq!((lacks(&hub, "a/m").as_deref(), lacks(&hub, "a/x")), (Some("a/m"), None), "that it has no x is known");
    hub.request(2, Operation::GetTwin(id("a/x")));
    assert_eq!(hub.heard(), ["reply 2 404010"]);
    // A row that should be there and is not: there is no such module.
    hub.hub.take_in(hub.now, &id("a/m"), None);
    assert_eq!(lacks(&hub, "a/m"), None);
    hub.hub.take_in(hub.now, &id("x"), None);
    assert_eq!(lacks(&hub, "x/m"), None, "without a device there are no modules");
}

#[test]
fn what_is_read_of_a_module_that_is_gone_meanwhile_is_not_taken() {
    let mut hub = Fixture::new();
    let (device, module) = with_module(&mut hub);
    let_go(&mut hub);
    hub.hub.take_in(hub.now, &id("a"), Some(device));
    hub.request(2, Operation::DeleteIdentity { id: id("a"), if_match: None });
    hub.put(3, "a", None);
    hub.hub.take_in(hub.now, &id("a/m"), Some(module));
    assert!(!hub.hub.entities.contains_key(&id("a/m")));
}

#[test]
fn a_device_stays_until_its_modules_are_durable_and_a_module_leaves_by_itself() {
    let mut hub = Fixture::new();
    let durable = hub.hub.take_outcome().batch;
    hub.put(1, "a/m", None);
    hub.collect();
    for _ in 0..3 {
        hub.hub.let_go_beyond(0, durable);
    }
    let mut there: Vec<_> = hub.hub.entities.keys().map(ToString::to_string).collect();
    there.sort_unstable();
    assert_eq!(there, ["a", "a/m"], "the store would not know of the module yet");
    hub.connect_well(1, "a/m", 5);
    assert_eq!(let_go(&mut hub), ["a/m"], "a connection keeps the module, and not its device");
    hub.link(1, LinkInput::Closed { graceful: true });
    let_go(&mut hub);
    assert_eq!(let_go(&mut hub), [""; 0]);
}

#[test]
fn presence_tells_modules_from_devices() {
    let mut hub = Fixture::new();
    with_module(&mut hub);
    hub.connect_well(1, "a/m", 5);
    let presence = hub.hub.presence();
    assert_eq!((presence.connected(false), presence.connected(true)), (vec![], vec![id("a/m")]));
    assert_eq!(presence.connected_count(), 0, "a module is no device");
}
