//! The hub with a fake clock: what each party hears, and when.

mod credentials;
mod messages;
mod modules;
mod residency;

use std::time::Duration;

use iothub_protocol::id::{MethodName, RequestId};
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::link::CloudMessage;
use iothub_protocol::method::DirectMethod;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::twin::TwinPatch;
use serde_json::json;

use super::*;
use crate::policy::Rights;

const POLICY: &str = "iothubowner";

struct Fixture {
    hub: Hub<u32>,
    now: Now,
    outputs: Vec<Output<u32>>,
    events: Vec<&'static str>,
    changes: Vec<String>,
}

fn id(text: &str) -> Address {
    Address::parse(text).expect("an address")
}

/// Of what only devices have.
fn device_id(text: &str) -> DeviceId {
    DeviceId::parse(text).expect("an id")
}

fn rid(text: &str) -> RequestId {
    RequestId::parse(text).expect("a request id")
}

fn with_token(token: String) -> Credentials {
    Credentials { token: Some(token), certificate: None }
}

fn key(byte: u8) -> SharedKey {
    SharedKey::from_random([byte; 32])
}

impl Fixture {
    /// A hub with devices `a` and `b`, whose keys are made of 1 and 2.
    fn new() -> Fixture {
        let policy =
            Policy { name: POLICY.into(), rights: Rights::DEVICE_CONNECT, primary_key: key(8), secondary_key: key(9) };
        let now = Now { wall: DateTime::from_timestamp(1_800_000_000, 0).expect("a time"), steady: Instant::now() };
        let mut fixture = Fixture {
            hub: Hub::new(vec![policy], vec![], FeedbackQueue::default()),
            now,
            outputs: vec![],
            events: vec![],
            changes: vec![],
        };
        for (name, byte) in [("a", 1), ("b", 2)] {
            let request = IdentityRequest::default();
            fixture.request(
                0,
                Operation::PutIdentity { id: id(name), request, if_match: None, keys: [key(byte), key(3)] },
            );
        }
        fixture.outputs.clear();
        fixture.events.clear();
        fixture.changes.clear();
        fixture
    }

    fn handle(&mut self, input: Input<u32>) {
        self.hub.handle(self.now, input);
        self.collect();
    }

    fn collect(&mut self) {
        let outcome = self.hub.take_outcome();
        self.changes.extend(outcome.changes.iter().map(|change| match change {
            Change::Identity(identity) => format!("identity {}", identity.address),
            Change::Twin(id, twin) => format!("twin {id} {}", twin.desired.version),
            Change::Subscriptions(id, subscriptions) => format!("subscriptions {id} {}", subscriptions.len()),
            Change::Activity(id, _, last_sequence) => format!("activity {id} {last_sequence}"),
            Change::Message(id, queued) => format!("message {id} {} {}", queued.sequence, queued.delivery_count),
            Change::MessageGone(id, sequence) => format!("message gone {id} {sequence}"),
            Change::Feedback(sequence, record) => format!("feedback {sequence} {}", record.ended.name()),
            Change::FeedbackGone(sequence) => format!("feedback gone {sequence}"),
            Change::Deleted(id) => format!("deleted {id}"),
        }));
        for output in outcome.immediate.into_iter().chain(outcome.gated) {
            match output {
                Output::Event(event) => self.events.push(event.kind_name()),
                Output::Listens(_) => {}
                output => self.outputs.push(output),
            }
        }
    }

    fn request(&mut self, reply: u32, operation: Operation) {
        self.handle(Input::Request { reply, operation });
    }

    fn link(&mut self, link: u64, input: LinkInput) {
        self.handle(Input::Link(LinkId(link), input));
    }

    fn connect(&mut self, link: u64, device: &str, password: String) {
        let credentials = with_token(password);
        self.connect_as(
            link,
            ConnectRequest { address: id(device), credentials, clean_session: false, will: None, model: None },
        );
    }

    fn connect_as(&mut self, link: u64, request: ConnectRequest) {
        self.link(link, LinkInput::Connect(Box::new(request)));
    }

    fn connect_well(&mut self, link: u64, device: &str, byte: u8) {
        let password = self.token(device, byte);
        self.connect(link, device, password);
    }

    fn token(&self, device: &str, byte: u8) -> String {
        let expiry = self.now.wall + Duration::from_secs(3600);
        key(byte).sign(&format!("localhost/{}", id(device).path()), None, expiry)
    }

    fn put(&mut self, reply: u32, device: &str, if_match: Option<&str>) {
        let (request, if_match) = (IdentityRequest::default(), if_match.map(str::to_owned));
        self.request(reply, Operation::PutIdentity { id: id(device), request, if_match, keys: [key(5), key(6)] });
    }

    fn publish(&mut self, link: u64, bag: &str, size: usize) {
        let message = FromDevice::Telemetry { bag: bag.to_owned() };
        self.link(link, LinkInput::Published { message, payload: vec![b' '; size].into(), packet_id: None });
    }

    fn subscribe(&mut self, link: u64, subscription: Subscription) {
        self.subscribe_as(link, subscription, Granted::AtMostOnce);
    }

    fn subscribe_as(&mut self, link: u64, subscription: Subscription, granted: Granted) {
        self.link(link, LinkInput::Subscribe { pkid: 1, filters: vec![(subscription, granted)] });
    }

    fn call(&mut self, reply: u32, device: &str, connect_timeout: u32) {
        let method = DirectMethod {
            method_name: MethodName::parse("lockDoor").expect("a name"),
            payload: Value::Null,
            response_timeout_in_seconds: Some(10),
            connect_timeout_in_seconds: Some(connect_timeout),
        };
        self.request(reply, Operation::CallMethod { id: id(device), method });
    }

    fn answer(&mut self, link: u64, rid_text: &str) {
        let message = FromDevice::MethodResponse { status: 200, rid: rid(rid_text) };
        self.link(link, LinkInput::Published { message, payload: Bytes::from_static(b"\"ok\""), packet_id: None });
    }

    fn advance(&mut self, seconds: u64) {
        self.now.steady += Duration::from_secs(seconds);
        self.now.wall += Duration::from_secs(seconds);
        self.hub.handle_deadline(self.now);
        self.collect();
    }

    /// What went out since the last time, as short text, but for events.
    fn heard(&mut self) -> Vec<String> {
        let outputs = std::mem::take(&mut self.outputs);
        outputs
            .into_iter()
            .filter_map(|output| match output {
                Output::Link(link, LinkOutput::Publish { topic, payload }) => {
                    Some(format!("{} {topic} {}", link.0, String::from_utf8_lossy(&payload)))
                }
                Output::Link(link, LinkOutput::Message { packet_id, is_repeated, topic, payload }) => {
                    let repeated = if is_repeated { " again" } else { "" };
                    let payload = String::from_utf8_lossy(&payload).into_owned();
                    Some(format!("{} #{packet_id}{repeated} {topic} {payload}", link.0))
                }
                Output::Link(link, output) => Some(format!("{} {output:?}", link.0)),
                Output::Reply(reply, Ok(Answer::Method(method))) => Some(format!("reply {reply} {}", method.status)),
                Output::Reply(reply, Ok(_)) => Some(format!("reply {reply} ok")),
                Output::Reply(reply, Err(error)) => Some(format!("reply {reply} {}", error.code.number())),
                Output::Event(_) | Output::Listens(_) => None,
            })
            .collect()
    }
}

#[test]
fn only_a_valid_token_for_the_device_connects() {
    let mut hub = Fixture::new();
    let later = hub.now.wall + Duration::from_secs(60);
    let resource = "localhost/devices/a";
    for (password, accepted) in [
        (key(1).sign(resource, None, later), true),
        (key(3).sign(resource, None, later), true),
        (key(8).sign("localhost", Some(POLICY), later), true),
        (key(2).sign(resource, None, later), false),
        (key(1).sign("localhost/devices/b", None, later), false),
        (key(1).sign(resource, None, hub.now.wall), false),
        (key(1).sign("localhost", Some("nobody"), later), false),
        ("nonsense".to_owned(), false),
    ] {
        hub.connect(1, "a", password.clone());
        let heard = hub.heard();
        assert_eq!(heard.iter().any(|line| line.contains("Accepted")), accepted, "{password} {heard:?}");
        hub.link(1, LinkInput::Closed { graceful: true });
        hub.heard();
    }
    hub.connect(1, "unknown", key(1).sign("localhost/devices/unknown", None, later));
    assert_eq!(hub.heard(), ["1 Refused"]);
}

#[test]
fn subscriptions_outlive_the_connection() {
    let mut hub = Fixture::new();
    hub.connect_well(1, "a", 1);
    hub.subscribe(1, Subscription::Desired);
    hub.link(1, LinkInput::Closed { graceful: true });
    hub.connect_well(2, "a", 1);
    hub.heard();
    let desired = Some(json!({"x": 1}).as_object().expect("an object").clone());
    let patch = TwinPatch { tags: None, desired };
    hub.request(7, Operation::PatchTwin { id: id("a"), patch, if_match: None });
    assert_eq!(
        hub.heard(),
        ["2 $iothub/twin/PATCH/properties/desired/?$version=2 {\"$version\":2,\"x\":1}", "reply 7 ok"]
    );
}

#[test]
fn a_method_is_answered_by_its_device_only() {
    let mut hub = Fixture::new();
    for (link, device, byte) in [(1, "a", 1), (2, "b", 2)] {
        hub.connect_well(link, device, byte);
        hub.subscribe(link, Subscription::Methods);
    }
    hub.heard();
    hub.call(7, "a", 0);
    assert_eq!(hub.heard(), ["1 $iothub/methods/POST/lockDoor/?$rid=1 null"]);
    hub.answer(2, "1");
    assert_eq!(hub.heard(), [""; 0], "another device's answer");
    hub.answer(1, "1");
    assert_eq!(hub.heard(), ["reply 7 200"]);
    hub.answer(1, "1");
    assert_eq!(hub.heard(), [""; 0], "a second answer");
}

#[test]
fn a_method_ends_by_the_clock_or_with_the_link() {
    let mut hub = Fixture::new();
    hub.call(1, "a", 0);
    assert_eq!(hub.heard(), ["reply 1 404103"]);
    hub.call(2, "a", 5);
    hub.advance(5);
    assert_eq!(hub.heard(), ["reply 2 404103"]);
    hub.connect_well(1, "a", 1);
    hub.subscribe(1, Subscription::Methods);
    hub.heard();
    hub.call(3, "a", 0);
    hub.heard();
    hub.advance(10);
    assert_eq!(hub.heard(), ["reply 3 504101"]);
    hub.call(4, "a", 0);
    hub.heard();
    hub.link(1, LinkInput::Closed { graceful: false });
    assert_eq!(hub.heard(), ["reply 4 404104"]);
    hub.call(5, "nobody", 0);
    assert_eq!(hub.heard(), ["reply 5 404001"]);
}

#[test]
fn a_method_waits_for_a_device_to_connect_and_subscribe() {
    let mut hub = Fixture::new();
    hub.call(1, "a", 30);
    hub.connect_well(1, "a", 1);
    assert!(!hub.heard().iter().any(|line| line.contains("methods/POST")));
    hub.subscribe(1, Subscription::Methods);
    assert!(hub.heard().iter().any(|line| line.contains("methods/POST")));
    hub.answer(1, "1");
    assert_eq!(hub.heard(), ["reply 1 200"]);
}

#[test]
fn the_newer_connection_wins() {
    let mut hub = Fixture::new();
    hub.connect_well(1, "a", 1);
    hub.subscribe(1, Subscription::Methods);
    hub.call(1, "a", 0);
    hub.heard();
    hub.connect_well(2, "a", 1);
    let heard = hub.heard();
    assert!(heard.contains(&"reply 1 400027".to_owned()), "{heard:?}");
    assert!(heard.iter().any(|line| line.starts_with("1 Close")), "{heard:?}");
    // The older link's end must not take the newer one's place.
    hub.link(1, LinkInput::Closed { graceful: false });
    hub.call(2, "a", 0);
    assert!(hub.heard().iter().any(|line| line.starts_with("2 $iothub/methods/POST/")));
}

#[test]
fn an_expired_token_and_a_disabled_device_cut_the_link() {
    let mut hub = Fixture::new();
    hub.connect_well(1, "a", 1);
    hub.heard();
    hub.advance(3600);
    assert!(hub.heard().iter().any(|line| line.contains("has expired")));
    hub.connect_well(2, "a", 1);
    hub.heard();
    let request = IdentityRequest { disabled: true, ..IdentityRequest::default() };
    let update = Operation::PutIdentity { id: id("a"), request, if_match: Some("*".into()), keys: [key(5), key(6)] };
    hub.request(1, update);
    let heard = hub.heard();
    assert!(heard.iter().any(|line| line.contains("disabled")), "{heard:?}");
    hub.connect_well(3, "a", 1);
    assert_eq!(hub.heard(), ["3 Refused"]);
}

#[test]
fn a_device_is_made_once_and_forgotten_whole() {
    let mut hub = Fixture::new();
    hub.put(1, "a", None);
    hub.put(2, "a", Some("\"nonsense\""));
    hub.put(3, "a", Some("*"));
    hub.request(4, Operation::DeleteIdentity { id: id("a"), if_match: Some("*".into()) });
    hub.request(5, Operation::GetTwin(id("a")));
    hub.put(6, "a", Some("*"));
    assert_eq!(
        hub.heard(),
        ["reply 1 409001", "reply 2 412001", "reply 3 ok", "reply 4 ok", "reply 5 404001", "reply 6 404001"]
    );
}

#[test]
fn a_report_is_answered_with_its_version_or_the_reason() {
    let mut hub = Fixture::new();
    hub.connect_well(1, "a", 1);
    hub.heard();
    let mut report = |version: Option<u64>, body: &'static str| {
        let message = FromDevice::ReportedPatch { rid: rid("5"), version };
        hub.link(1, LinkInput::Published { message, payload: Bytes::from_static(body.as_bytes()), packet_id: None });
        hub.heard().remove(0)
    };
    assert_eq!(report(None, "{\"x\":1}"), "1 $iothub/twin/res/204/?$rid=5&$version=2 ");
    assert!(report(Some(1), "{\"x\":2}").starts_with("1 $iothub/twin/res/412/?$rid=5 {\"errorCode\":412001"));
    assert!(report(None, "[]").starts_with("1 $iothub/twin/res/400/?$rid=5 {\"errorCode\":400004"));
    assert!(report(None, "{\"$x\":1}").starts_with("1 $iothub/twin/res/400/"));
}

#[test]
fn a_call_that_waited_goes_after_the_acknowledged_subscription() {
    let mut hub = Fixture::new();
    hub.connect_well(1, "a", 1);
    hub.call(1, "a", 30);
    hub.heard();
    hub.subscribe(1, Subscription::Methods);
    assert_eq!(
        hub.heard(),
        ["1 SubAck { pkid: 1, granted: [AtMostOnce] }", "1 $iothub/methods/POST/lockDoor/?$rid=1 null"]
    );
}

#[test]
fn a_clean_session_begins_and_ends_without_subscriptions() {
    let mut hub = Fixture::new();
    let connect = |hub: &mut Fixture, link, clean_session| {
        let credentials = with_token(hub.token("a", 1));
        hub.connect_as(link, ConnectRequest { address: id("a"), credentials, clean_session, will: None, model: None });
        hub.heard().into_iter().find(|line| line.contains("Accepted")).expect("accepted")
    };
    assert!(connect(&mut hub, 1, false).contains("false"));
    hub.subscribe(1, Subscription::Desired);
    assert!(connect(&mut hub, 2, false).contains("true"));
    assert_eq!(std::mem::take(&mut hub.changes), ["subscriptions a 1"]);
    assert!(connect(&mut hub, 3, true).contains("false"));
    assert_eq!(std::mem::take(&mut hub.changes), ["subscriptions a 0"]);
    hub.subscribe(3, Subscription::Desired);
    assert_eq!(hub.changes, [""; 0], "a clean session is not stored");
    assert!(connect(&mut hub, 4, false).contains("false"), "and leaves nothing to the next");
}

#[test]
fn a_message_is_bounded_with_its_properties() {
    let mut hub = Fixture::new();
    for (bag, size, taken) in [
        ("", 256 * 1024, true),
        ("", 256 * 1024 + 1, false),
        ("%24.mid=12", 256 * 1024 - 2, true),
        ("%24.mid=12", 256 * 1024 - 1, false),
        ("a%62=12", 256 * 1024 - 4, true),
        ("a%62=12", 256 * 1024 - 3, false),
        ("a=%ff", 0, false),
    ] {
        hub.connect_well(1, "a", 1);
        hub.heard();
        hub.events.clear();
        hub.publish(1, bag, size);
        assert_eq!(hub.events.contains(&"telemetry"), taken, "{bag} {size}");
        assert_eq!(hub.heard().is_empty(), taken, "{bag} {size}");
        hub.link(1, LinkInput::Closed { graceful: true });
    }
}

#[test]
fn a_will_is_sent_unless_the_device_took_its_leave() {
    let mut hub = Fixture::new();
    let connect = |hub: &mut Fixture, link, bag: &str| {
        let will = Some((FromDevice::Telemetry { bag: bag.to_owned() }, Bytes::new()));
        let credentials = with_token(hub.token("a", 1));
        hub.connect_as(link, ConnectRequest { address: id("a"), credentials, clean_session: false, will, model: None });
        hub.events.clear();
    };
    connect(&mut hub, 1, "");
    hub.link(1, LinkInput::Closed { graceful: true });
    assert_eq!(hub.events, ["disconnected"]);
    connect(&mut hub, 2, "");
    hub.link(2, LinkInput::Closed { graceful: false });
    assert_eq!(hub.events, ["telemetry", "disconnected"]);
    connect(&mut hub, 3, "a=%ff");
    hub.link(3, LinkInput::Closed { graceful: false });
    assert_eq!(hub.events, ["disconnected"], "a will that is no message");
    connect(&mut hub, 4, "");
    hub.connect_well(5, "a", 1);
    assert_eq!(hub.events, ["telemetry"], "taken over, and connected throughout");
}

#[test]
fn many_changes_of_a_device_make_one_row() {
    let mut hub = Fixture::new();
    let now = hub.now;
    for version in 1..4 {
        let desired = Some(json!({"x": version}).as_object().expect("an object").clone());
        let patch = TwinPatch { tags: None, desired };
        let operation = Operation::PatchTwin { id: id("a"), patch, if_match: None };
        hub.hub.handle(now, Input::Request { reply: version, operation });
    }
    hub.collect();
    assert_eq!(std::mem::take(&mut hub.changes), ["twin a 4"]);
    assert_eq!(hub.heard(), ["reply 1 ok", "reply 2 ok", "reply 3 ok"]);

    // Changed, deleted and made anew at once: nothing of the old may be left.
    let request = IdentityRequest::default();
    let put = Operation::PutIdentity { id: id("a"), request, if_match: None, keys: [key(5), key(6)] };
    for operation in [Operation::DeleteIdentity { id: id("a"), if_match: None }, put] {
        hub.hub.handle(now, Input::Request { reply: 1, operation });
    }
    hub.collect();
    assert_eq!(hub.changes, ["deleted a", "identity a", "twin a 1"]);
    assert_eq!(hub.events, ["updated", "updated", "updated", "deleted", "created"]);
}

#[test]
fn an_etag_does_not_match_a_device_made_anew() {
    let mut hub = Fixture::new();
    let etag = hub.hub.entities[&id("a")].identity.etag();
    hub.request(1, Operation::DeleteIdentity { id: id("a"), if_match: Some(etag.clone()) });
    hub.advance(1);
    hub.put(2, "a", None);
    hub.request(3, Operation::DeleteIdentity { id: id("a"), if_match: Some(etag) });
    assert_eq!(hub.heard(), ["reply 1 ok", "reply 2 ok", "reply 3 412001"]);
}

#[test]
fn no_secret_is_shown() {
    let mut hub = Fixture::new();
    let password = hub.token("a", 1);
    let credentials = with_token(password.clone());
    let request = ConnectRequest { address: id("a"), credentials, clean_session: true, will: None, model: None };
    let input: Input<u32> = Input::Link(LinkId(1), LinkInput::Connect(Box::new(request)));
    hub.request(1, Operation::GetIdentity(id("a")));
    let shown = format!("{input:?} {:?}", hub.outputs);
    assert!(!shown.contains("sig="), "{shown}");
    assert!(!shown.contains(&key(1).to_base64()), "{shown}");
}
