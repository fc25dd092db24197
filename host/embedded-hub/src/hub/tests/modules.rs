//! Modules beside their device: who may connect, what is whose, and what goes with what.

use iothub_protocol::link::Feedback;

use super::*;
use crate::events::EventKind;

impl Fixture {
    /// A hub with the modules `a/m` and `a/n`, whose keys are made of 11 and 12.
    fn with_modules() -> Fixture {
        let mut hub = Fixture::new();
        for (name, byte) in [("a/m", 11), ("a/n", 12)] {
            let (request, keys) = (IdentityRequest::default(), [key(byte), key(13)]);
            hub.request(0, Operation::PutIdentity { id: id(name), request, if_match: None, keys });
        }
        assert_eq!(hub.heard(), ["reply 0 ok"; 2]);
        hub.events.clear();
        hub.changes.clear();
        hub
    }

    fn delete(&mut self, reply: u32, name: &str) {
        self.request(reply, Operation::DeleteIdentity { id: id(name), if_match: None });
    }
}

#[test]
fn only_a_valid_token_for_the_module_connects_it() {
    let mut hub = Fixture::with_modules();
    let later = hub.now.wall + Duration::from_secs(60);
    let resource = "localhost/devices/a/modules/m";
    for (password, accepted) in [
        (key(11).sign(resource, None, later), true),
        (key(13).sign(resource, None, later), true),
        (key(8).sign("localhost", Some(POLICY), later), true),
        (key(8).sign("localhost/devices/a", Some(POLICY), later), true),
        (key(8).sign("localhost/devices/a/modules/n", Some(POLICY), later), false),
        (key(1).sign(resource, None, later), false),
        (key(12).sign(resource, None, later), false),
        (key(11).sign("localhost/devices/a/modules/n", None, later), false),
    ] {
        hub.connect(1, "a/m", password.clone());
        let heard = hub.heard();
        assert_eq!(heard.iter().any(|line| line.contains("Accepted")), accepted, "{password} {heard:?}");
        hub.link(1, LinkInput::Closed { graceful: true });
        hub.heard();
    }
    for (name, byte) in [("a/x", 11), ("b/m", 11), ("x/m", 11)] {
        hub.connect_well(2, name, byte);
        assert_eq!(hub.heard(), ["2 Refused"], "{name}");
    }
    hub.connect(3, "a", key(11).sign(resource, None, later));
    assert_eq!(hub.heard(), ["3 Refused"], "a module is not its device");
}

#[test]
fn a_device_and_its_modules_each_have_their_own_connection_twin_and_calls() {
    let mut hub = Fixture::with_modules();
    for (link, name, byte) in [(1, "a", 1), (2, "a/m", 11), (3, "a/n", 12)] {
        hub.connect_well(link, name, byte);
        hub.subscribe(link, Subscription::Methods);
        hub.subscribe(link, Subscription::Desired);
    }
    hub.heard();
    hub.call(1, "a/m", 0);
    assert_eq!(hub.heard(), ["2 $iothub/methods/POST/lockDoor/?$rid=1 null"]);
    hub.answer(1, "1");
    hub.answer(3, "1");
    assert_eq!(hub.heard(), [""; 0], "neither the device nor another module answers for it");
    hub.answer(2, "1");
    assert_eq!(hub.heard(), ["reply 1 200"]);
    let patch = TwinPatch { tags: None, desired: json!({"x": 1}).as_object().cloned() };
    hub.request(2, Operation::PatchTwin { id: id("a/n"), patch, if_match: None });
    let expected = ["3 $iothub/twin/PATCH/properties/desired/?$version=2 {\"$version\":2,\"x\":1}", "reply 2 ok"];
    assert_eq!(hub.heard(), expected);
    assert!(hub.changes.contains(&"twin a/n 2".to_owned()), "{:?}", hub.changes);

    hub.connect_well(4, "a/m", 11);
    let heard = hub.heard();
    assert!(heard.iter().any(|line| line.starts_with("2 Close")), "the newer one wins: {heard:?}");
    assert!(!heard.iter().any(|line| line.starts_with("1 ") || line.starts_with("3 ")), "{heard:?}");
    hub.link(4, LinkInput::Closed { graceful: true });
    hub.call(3, "a", 0);
    assert!(hub.heard().iter().any(|line| line.starts_with("1 $iothub/methods/POST/")), "the device is still there");
}

#[test]
fn what_a_module_sends_names_it() {
    let mut hub = Fixture::with_modules();
    hub.connect_well(1, "a/m", 11);
    hub.hub.take_outcome();
    let message = FromDevice::Telemetry { bag: "%24.on=out".to_owned() };
    hub.hub.handle(
        hub.now,
        Input::Link(LinkId(1), LinkInput::Published { message, payload: Bytes::new(), packet_id: None }),
    );
    let event = hub.hub.take_outcome().gated.into_iter().find_map(|output| match output {
        Output::Event(event) => Some(event),
        _ => None,
    });
    let event = event.expect("telemetry");
    let own = hub.hub.entities[&id("a/m")].identity.generation_id;
    assert_eq!(event.address, id("a/m"));
    assert!(matches!(event.kind, EventKind::Telemetry { sender, .. } if sender.generation_id == own), "{event:?}");
}

#[test]
fn a_disabled_device_keeps_its_modules_from_connecting() {
    let mut hub = Fixture::with_modules();
    hub.connect_well(1, "a/m", 11);
    hub.connect_well(2, "b", 2);
    hub.heard();
    let request = IdentityRequest { disabled: true, ..IdentityRequest::default() };
    let update =
        |request| Operation::PutIdentity { id: id("a"), request, if_match: Some("*".into()), keys: [key(1), key(3)] };
    hub.request(1, update(request));
    assert_eq!(hub.heard(), ["1 Close { reason: \"the device was disabled\" }", "reply 1 ok"]);
    hub.connect_well(3, "a/m", 11);
    assert_eq!(hub.heard(), ["3 Refused"]);
    hub.request(2, update(IdentityRequest::default()));
    hub.connect_well(4, "a/m", 11);
    assert!(hub.heard().iter().any(|line| line.contains("Accepted")));
}

#[test]
fn a_module_is_made_once_in_a_device_that_is_there() {
    let mut hub = Fixture::with_modules();
    hub.put(1, "a/m", None);
    hub.put(2, "a/x", Some("*"));
    hub.put(3, "x/m", None);
    hub.put(4, "a/m", Some("\"nonsense\""));
    hub.put(5, "a/m", Some("*"));
    hub.call(6, "a/x", 0);
    hub.request(7, Operation::GetTwin(id("x/m")));
    hub.delete(8, "a/x");
    let expected = [
        "reply 1 409301",
        "reply 2 404010",
        "reply 3 404001",
        "reply 4 412001",
        "reply 5 ok",
        "reply 6 404010",
        "reply 7 404001",
        "reply 8 404010",
    ];
    let mut heard = hub.heard();
    heard.sort_unstable();
    assert_eq!(heard, expected);
    for number in 0..MAX_MODULES - 2 {
        hub.put(0, &format!("a/more-{number}"), None);
    }
    hub.heard();
    hub.put(9, "a/one-too-many", None);
    hub.put(10, "b/m", None);
    hub.delete(11, "a/more-0");
    hub.put(12, "a/one-too-many", None);
    assert_eq!(hub.heard(), ["reply 9 413003", "reply 10 ok", "reply 11 ok", "reply 12 ok"]);
}

#[test]
fn a_module_goes_by_itself_or_with_its_device() {
    let mut hub = Fixture::with_modules();
    let message = CloudMessage { body: b"x".to_vec(), feedback: Feedback::Full, ..CloudMessage::default() };
    hub.request(0, Operation::SendMessage { id: device_id("a"), message: Box::new(message), wait: false });
    hub.connect_well(1, "a/m", 11);
    hub.connect_well(2, "a/n", 12);
    hub.subscribe(2, Subscription::Methods);
    hub.call(1, "a/n", 0);
    hub.heard();
    hub.changes.clear();
    hub.events.clear();
    hub.delete(2, "a/m");
    assert_eq!(hub.heard(), ["1 Close { reason: \"the module was deleted\" }", "reply 2 ok"]);
    assert_eq!(
        (hub.changes.as_slice(), hub.events.as_slice()),
        (&["deleted a/m".to_owned()][..], &["disconnected", "deleted"][..])
    );
    assert_eq!(hub.hub.entities[&id("a")].queue.len(), 1, "what is its device's stays");
    hub.changes.clear();
    hub.events.clear();
    hub.delete(3, "a");
    let heard = hub.heard();
    assert_eq!(heard, ["reply 1 404104", "2 Close { reason: \"the device was deleted\" }", "reply 3 ok"]);
    assert_eq!(hub.changes, ["deleted a"]);
    assert_eq!(hub.events, ["disconnected", "deleted"], "the device's deletion tells of its modules'");
    hub.connect_well(4, "a/n", 12);
    hub.request(4, Operation::GetTwin(id("a/n")));
    assert_eq!(hub.heard(), ["4 Refused", "reply 4 404001"]);
    hub.put(5, "a", None);
    hub.request(6, Operation::GetTwin(id("a/n")));
    assert_eq!(hub.heard(), ["reply 5 ok", "reply 6 404010"], "a device made anew has no modules");
}

#[test]
fn what_was_about_to_be_written_of_a_module_goes_with_its_device() {
    let mut hub = Fixture::with_modules();
    let patch = || TwinPatch { tags: json!({"x": 1}).as_object().cloned(), desired: None };
    let requests = [
        Operation::PatchTwin { id: id("a/m"), patch: patch(), if_match: None },
        Operation::DeleteIdentity { id: id("a"), if_match: None },
        Operation::PutIdentity {
            id: id("a"),
            request: IdentityRequest::default(),
            if_match: None,
            keys: [key(1), key(3)],
        },
        Operation::PutIdentity {
            id: id("a/n"),
            request: IdentityRequest::default(),
            if_match: None,
            keys: [key(1), key(3)],
        },
    ];
    for (reply, operation) in (1..).zip(requests) {
        hub.hub.handle(hub.now, Input::Request { reply, operation });
    }
    hub.collect();
    let expected = ["deleted a", "identity a", "twin a 1", "identity a/n", "twin a/n 1"];
    assert_eq!(hub.changes, expected, "a device goes before anything of what is made anew");
}
