//! The hub with a fake clock: what each party hears, and when.

use std::time::Duration;

use iothub_protocol::id::MethodName;
use iothub_protocol::id::RequestId;
use serde_json::json;

use super::*;
use crate::policy::Rights;

const POLICY: &str = "iothubowner";

struct Fixture {
    hub: Hub<u32>,
    now: Now,
    outputs: Vec<Output<u32>>,
    changes: usize,
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).expect("an id")
}

fn rid(text: &str) -> RequestId {
    RequestId::parse(text).expect("a request id")
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
        let mut fixture = Fixture { hub: Hub::new(vec![policy], vec![]), now, outputs: vec![], changes: 0 };
        for (name, byte) in [("a", 1), ("b", 2)] {
            let request = IdentityRequest::default();
            fixture
                .request(0, Operation::PutDevice { id: id(name), request, if_match: None, keys: [key(byte), key(3)] });
        }
        fixture.outputs.clear();
        fixture
    }

    fn handle(&mut self, input: Input<u32>) {
        self.hub.handle(self.now, input);
        self.collect();
    }

    fn collect(&mut self) {
        let outcome = self.hub.take_outcome();
        self.changes += outcome.changes.len();
        self.outputs.extend(outcome.immediate);
        self.outputs.extend(outcome.gated);
    }

    fn request(&mut self, reply: u32, operation: Operation) {
        self.handle(Input::Request { reply, operation });
    }

    fn link(&mut self, link: u64, input: LinkInput) {
        self.handle(Input::Link(LinkId(link), input));
    }

    fn connect(&mut self, link: u64, device: &str, password: String) {
        let request = ConnectRequest { device: id(device), password, clean_session: false, will: None };
        self.link(link, LinkInput::Connect(Box::new(request)));
    }

    fn connect_well(&mut self, link: u64, device: &str, byte: u8) {
        let expiry = self.now.wall + Duration::from_secs(3600);
        self.connect(link, device, key(byte).sign(&format!("localhost/devices/{device}"), None, expiry));
    }

    fn subscribe(&mut self, link: u64, subscription: Subscription) {
        self.link(link, LinkInput::Subscribe { pkid: 1, subscriptions: vec![subscription] });
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
        self.link(link, LinkInput::Published { message, payload: Bytes::from_static(b"\"ok\"") });
    }

    fn advance(&mut self, seconds: u64) {
        self.now.steady += Duration::from_secs(seconds);
        self.now.wall += Duration::from_secs(seconds);
        self.hub.handle_deadline(self.now);
        self.collect();
    }

    /// What went out since the last time, as short text; events are left out.
    fn heard(&mut self) -> Vec<String> {
        let outputs = std::mem::take(&mut self.outputs);
        outputs
            .into_iter()
            .filter_map(|output| match output {
                Output::Link(link, LinkOutput::Publish { topic, payload }) => {
                    Some(format!("{} {topic} {}", link.0, String::from_utf8_lossy(&payload)))
                }
                Output::Link(link, output) => Some(format!("{} {output:?}", link.0)),
                Output::Reply(reply, Ok(Answer::Method(method))) => Some(format!("reply {reply} {}", method.status)),
                Output::Reply(reply, Ok(_)) => Some(format!("reply {reply} ok")),
                Output::Reply(reply, Err(error)) => Some(format!("reply {reply} {}", error.code.number())),
                Output::Event(_) => None,
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
    assert!(hub.heard().iter().any(|line| line.contains("token has expired")));
    hub.connect_well(2, "a", 1);
    hub.heard();
    let request = IdentityRequest { disabled: true, ..IdentityRequest::default() };
    let update = Operation::PutDevice { id: id("a"), request, if_match: Some("*".into()), keys: [key(5), key(6)] };
    hub.request(1, update);
    let heard = hub.heard();
    assert!(heard.iter().any(|line| line.contains("disabled")), "{heard:?}");
    hub.connect_well(3, "a", 1);
    assert_eq!(hub.heard(), ["3 Refused"]);
}

#[test]
fn a_device_is_made_once_and_forgotten_whole() {
    let mut hub = Fixture::new();
    let put = |if_match: Option<&str>| Operation::PutDevice {
        id: id("a"),
        request: IdentityRequest::default(),
        if_match: if_match.map(str::to_owned),
        keys: [key(5), key(6)],
    };
    hub.request(1, put(None));
    hub.request(2, put(Some("\"nonsense\"")));
    hub.request(3, put(Some("*")));
    hub.request(4, Operation::DeleteDevice { id: id("a"), if_match: Some("*".into()) });
    hub.request(5, Operation::GetTwin(id("a")));
    hub.request(6, put(Some("*")));
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
        hub.link(1, LinkInput::Published { message, payload: Bytes::from_static(body.as_bytes()) });
        hub.heard().remove(0)
    };
    assert_eq!(report(None, "{\"x\":1}"), "1 $iothub/twin/res/204/?$rid=5&$version=2 ");
    assert!(report(Some(1), "{\"x\":2}").starts_with("1 $iothub/twin/res/412/?$rid=5 {\"errorCode\":412001"));
    assert!(report(None, "[]").starts_with("1 $iothub/twin/res/400/?$rid=5 {\"errorCode\":400004"));
    assert!(report(None, "{\"$x\":1}").starts_with("1 $iothub/twin/res/400/"));
}
