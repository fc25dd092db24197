//! Scenarios on a clock of our own.

use iothub_protocol::id::MethodName;
use iothub_protocol::link::{CloudMessage, TelemetryMessage, TwinDocument};
use iothub_protocol::sas::SharedKey;
use iothub_protocol::sas::Token;
use serde_json::{Map, Value, json};

use super::*;

const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";
const LIFETIME: Duration = Duration::from_secs(3600);

/// A session, its clock, and what it wanted last.
struct Bench {
    session: Session,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        let settings = SessionSettings {
            device_id: DeviceId::parse("d1").expect("an id"),
            host: HostName::parse("localhost:18883").expect("a host"),
            credentials: DeviceCredentials::Key(SharedKey::parse(KEY).expect("a key")),
            token_lifetime: LIFETIME,
            seed: 7,
        };
        let now = Instant::now();
        Bench { session: Session::new(settings, now), start: now, now }
    }

    /// Subscribed, with GET number 1 out.
    fn connected() -> Bench {
        let mut bench = Bench::new();
        bench.reconnect();
        bench
    }

    /// With a twin at desired version 5.
    fn ready() -> Bench {
        let mut bench = Bench::connected();
        bench.answer_get(1, 5);
        bench
    }

    fn wall(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(1_900_000_000, 0).expect("a time") + (self.now - self.start)
    }

    fn on(&mut self, input: Input) -> Vec<Output> {
        self.session.handle(Now { monotonic: self.now, wall: self.wall() }, input);
        std::iter::from_fn(|| self.session.poll()).collect()
    }

    fn after(&mut self, wait: Duration) -> Vec<Output> {
        self.now += wait;
        self.on(Input::Elapsed)
    }

    /// Go to the deadline.
    fn wait(&mut self) -> (Duration, Vec<Output>) {
        let deadline = self.session.deadline().expect("a deadline");
        let waited = deadline.saturating_duration_since(self.now);
        (waited, self.after(waited))
    }

    fn reconnect(&mut self) -> Vec<Output> {
        let (_, outputs) = self.wait();
        assert!(matches!(outputs.last(), Some(Output::Connect(_))), "{outputs:?}");
        self.on(Input::Accepted);
        (0..3).flat_map(|_| self.on(Input::Subscribed { granted: true })).collect()
    }

    fn receive(&mut self, topic: &str, body: &str) -> Vec<Output> {
        self.publication(topic, body, None)
    }

    fn publication(&mut self, topic: &str, body: &str, packet_id: Option<u16>) -> Vec<Output> {
        self.on(Input::Received { topic: topic.to_owned(), payload: body.as_bytes().to_vec(), packet_id })
    }

    fn message(&mut self, id: &str, packet_id: u16) -> Vec<Output> {
        self.publication(&format!("devices/d1/messages/devicebound/%24.mid={id}"), id, Some(packet_id))
    }

    fn message_taken(&mut self, token: u64) -> Vec<Output> {
        self.on(Input::Send(ToHub::MessageTaken { token }))
    }

    fn answer_get(&mut self, rid: u64, version: u64) -> Vec<Output> {
        let body = json!({"desired": {"a": 1, "$version": version}, "reported": {"$version": 2}});
        self.receive(&format!("$iothub/twin/res/200/?$rid={rid}"), &body.to_string())
    }

    fn notice(&mut self, version: u64) -> Vec<Output> {
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
        self.receive(&topic, &json!({"a": version, "$version": version}).to_string())
    }

    fn method(&mut self, rid: &str) -> Vec<Output> {
        self.receive(&format!("$iothub/methods/POST/lockDoor/?$rid={rid}"), "")
    }

    fn method_response(&mut self, id: &str, status: i32) -> Vec<Output> {
        self.on(Input::Send(ToHub::MethodResponse { rid: rid(id), status, payload: "{}".into() }))
    }

    fn lose(&mut self) -> Vec<Output> {
        self.on(Input::Lost { reason: "cut".into() })
    }
}

#[test]
fn an_actor_that_begins_anew_gets_a_new_connection_after_a_while() {
    let again = || Input::Send(ToHub::Reconnect { after: Duration::from_secs(7) });
    let mut bench = Bench::ready();
    bench.method("1");
    let reason = "the device's actor begins anew".to_owned();
    let disconnected = Output::Deliver(FromHub::Disconnected { reason: reason.clone() });
    assert_eq!(bench.on(again()), [disconnected, Output::Disconnect]);
    assert_eq!(bench.method_response("1", 200), [], "the hub has told the caller");
    let failure = Failure { refused: false, reason };
    let retry_in = Duration::from_secs(7);
    assert_eq!(bench.lose(), [Output::State(LinkState::Waiting { failure, retry_in })]);
    assert_eq!(bench.on(again()), [], "it is away already");
    let outputs = bench.reconnect();
    assert_eq!(bench.now - bench.start, retry_in);
    assert_eq!(outputs[..2], [Output::Deliver(FromHub::Connected), get(2)]);

    // On its way it is new to the actor in any case; waiting after a failure, it waits at least as long.
    bench.lose();
    assert_eq!(bench.on(again()), []);
    let (waited, outputs) = bench.wait();
    assert!(waited == retry_in && matches!(outputs.last(), Some(Output::Connect(_))), "{outputs:?}");
    assert_eq!(bench.on(again()), []);
    bench.on(Input::Accepted);
    assert_eq!(bench.on(again()), [Output::Disconnect], "nothing was announced yet");
}

fn rid(text: &str) -> RequestId {
    RequestId::parse(text).expect("a request id")
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

fn published(topic: &str, payload: &str) -> Output {
    Output::Publish(Publication { topic: topic.into(), payload: payload.into(), token: None })
}

fn get(rid: u64) -> Output {
    published(&format!("$iothub/twin/GET/?$rid={rid}"), " ")
}

fn twin(version: u64) -> Output {
    Output::Deliver(FromHub::Twin(TwinDocument {
        desired: object(json!({"a": 1})),
        desired_version: version,
        reported: Map::new(),
        reported_version: 2,
    }))
}

fn desired(version: u64) -> Output {
    Output::Deliver(FromHub::Desired { version, patch: object(json!({"a": version})) })
}

fn method(id: &str) -> Output {
    let name = MethodName::parse("lockDoor").expect("a name");
    Output::Deliver(FromHub::Method { rid: rid(id), name, payload: "null".into() })
}

fn message(token: u64, id: &str) -> Output {
    let message = CloudMessage { message_id: Some(id.into()), body: id.into(), ..CloudMessage::default() };
    Output::Deliver(FromHub::Message { token, message: Box::new(message) })
}

fn acknowledge(packet_id: u16) -> Output {
    Output::Acknowledge { packet_id }
}

fn disconnected(reason: &str) -> Output {
    Output::Deliver(FromHub::Disconnected { reason: reason.into() })
}

#[test]
fn a_connect_subscribes_gets_the_twin_and_is_ready() {
    let mut bench = Bench::new();
    let (waited, outputs) = bench.wait();
    assert_eq!(waited, Duration::ZERO);
    let [Output::State(LinkState::Connecting { after: None }), Output::Connect(credentials)] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert!(credentials.username.starts_with("localhost:18883/d1/?api-version=2021-04-12&DeviceClientType=latch%2F"));
    let token = Token::parse(&credentials.password).expect("a token");
    assert!(token.signed_by(&SharedKey::parse(KEY).expect("a key")));
    assert!(token.covers(&Address::parse("d1").expect("an address")) && !token.covers_hub());
    assert_eq!(token.expiry(), 1_900_003_600);
    assert!(!format!("{outputs:?}").contains("SharedAccessSignature"));

    let filters = ["$iothub/methods/POST/#", "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#"];
    assert_eq!(bench.on(Input::Accepted), filters.map(|filter| Output::Subscribe { filter: filter.into() }));
    assert_eq!(bench.on(Input::Subscribed { granted: true }), []);
    assert_eq!(bench.on(Input::Subscribed { granted: true }), []);
    assert_eq!(bench.on(Input::Subscribed { granted: true }), [Output::Deliver(FromHub::Connected), get(1)]);
    assert_eq!(bench.answer_get(1, 5), [twin(5), Output::State(LinkState::Ready)]);
}

#[test]
fn notices_count_only_if_newer_than_the_twin() {
    let mut bench = Bench::connected();
    for early in [4, 5, 6, 7] {
        assert_eq!(bench.notice(early), []);
    }
    assert_eq!(bench.answer_get(1, 5), [twin(5), desired(6), desired(7), Output::State(LinkState::Ready)]);
    assert_eq!(bench.notice(7), []);
    assert_eq!(bench.notice(8), [desired(8)]);
}

#[test]
fn a_lost_or_unreadable_notice_asks_for_the_whole_twin() {
    let mut bench = Bench::connected();
    for version in 6..70 {
        assert_eq!(bench.notice(version), []);
    }
    assert_eq!(bench.notice(70), [get(2)]);
    assert_eq!(bench.answer_get(1, 69), [], "asked before the notice was lost");
    assert_eq!(bench.answer_get(2, 70), [twin(70), Output::State(LinkState::Ready)]);

    assert_eq!(bench.receive("$iothub/twin/PATCH/properties/desired/?$version=71", "{"), [get(3)]);
    assert_eq!(bench.notice(72), []);
    assert_eq!(bench.answer_get(3, 71), [twin(71), desired(72), Output::State(LinkState::Ready)]);
}

#[test]
fn a_get_is_repeated_on_silence_and_on_error() {
    let mut bench = Bench::connected();
    assert_eq!(bench.wait(), (Duration::from_secs(10), vec![get(2)]));
    let mut slept = Duration::ZERO;
    for rid in 2..10 {
        assert_eq!(bench.receive(&format!("$iothub/twin/res/429/?$rid={rid}"), r#"{"message":"slow down"}"#), []);
        let (waited, outputs) = bench.wait();
        assert_eq!(outputs, [get(rid + 1)]);
        assert!((Duration::from_millis(250)..=Duration::from_secs(60)).contains(&waited), "{waited:?}");
        slept += waited;
    }
    assert!(slept > Duration::from_secs(20), "the waits grow: {slept:?}");
    assert_eq!(bench.answer_get(10, 5), [twin(5), Output::State(LinkState::Ready)]);
}

#[test]
fn a_late_answer_to_an_earlier_get_counts() {
    let mut bench = Bench::connected();
    bench.wait();
    assert_eq!(bench.answer_get(1, 5).len(), 2);
    assert_eq!(bench.answer_get(2, 5), []);
}

#[test]
fn methods_that_come_before_the_subscriptions_follow_connected() {
    let mut bench = Bench::new();
    bench.wait();
    bench.on(Input::Accepted);
    assert_eq!(bench.method("a"), []);
    bench.on(Input::Subscribed { granted: true });
    bench.on(Input::Subscribed { granted: true });
    let outputs = bench.on(Input::Subscribed { granted: true });
    assert_eq!(outputs, [Output::Deliver(FromHub::Connected), method("a"), get(1)]);
    assert_eq!(bench.method("b"), [method("b")]);
    assert_eq!(bench.method_response("a", -3), [published("$iothub/methods/res/-3/?$rid=a", "{}")]);
}

#[test]
fn an_answer_to_a_method_of_a_broken_link_is_dropped() {
    let mut bench = Bench::ready();
    assert_eq!(bench.method("a"), [method("a")]);
    let outputs = bench.lose();
    assert_eq!(outputs[0], disconnected("cut"));
    assert!(matches!(&outputs[1], Output::State(LinkState::Waiting { failure, .. }) if failure.reason == "cut"));
    assert_eq!(bench.method_response("a", 200), []);
    assert_eq!(bench.reconnect(), [Output::Deliver(FromHub::Connected), get(2)]);
    assert_eq!(bench.method_response("a", 200), []);
    bench.method("b");
    assert_eq!(bench.method_response("b", 200).len(), 1);
    assert_eq!(bench.method_response("b", 200), [], "answered once");
}

#[test]
fn reports_are_answered_by_the_hub_or_by_the_clock() {
    let mut bench = Bench::ready();
    let report = |token| Input::Send(ToHub::Report { token, patch: object(json!({"b": null})) });
    assert_eq!(bench.on(report(11)), [published("$iothub/twin/PATCH/properties/reported/?$rid=2", r#"{"b":null}"#)]);
    bench.on(report(12));
    bench.on(report(13));
    let reported = |token, status, version, message: &str| {
        [Output::Deliver(FromHub::Reported { token, status, version, message: message.into() })]
    };
    assert_eq!(bench.receive("$iothub/twin/res/204/?$rid=2&$version=9", ""), reported(11, 204, Some(9), ""));
    assert_eq!(
        bench.receive("$iothub/twin/res/400/?$rid=3", r#"{"errorCode":400004,"message":"bad key"}"#),
        reported(12, 400, None, "bad key")
    );
    assert_eq!(bench.wait(), (REPORT_TIMEOUT, reported(13, 504, None, "no answer within 30 s").to_vec()));
    assert_eq!(bench.receive("$iothub/twin/res/204/?$rid=4&$version=9", ""), []);

    let big = object(json!({"b": "x".repeat(MAX_PACKET)}));
    let outputs = bench.on(Input::Send(ToHub::Report { token: 14, patch: big }));
    assert!(matches!(outputs[..], [Output::Deliver(FromHub::Reported { token: 14, status: 413, .. })]));
}

#[test]
fn telemetry_is_taken_once_acknowledged() {
    let mut bench = Bench::ready();
    let message = |size| TelemetryMessage {
        message_id: "m+1".into(),
        content_type: Some("application/json".into()),
        content_encoding: None,
        properties: vec![("a b".into(), "#".into())],
        body: vec![b'x'; size],
    };
    let telemetry = |token, size| Input::Send(ToHub::Telemetry { token, message: Box::new(message(size)) });
    let topic = "devices/d1/messages/events/%24.mid=m%2B1&%24.ct=application%2Fjson&a%20b=%23";
    let publication = Publication { topic: topic.into(), payload: vec![b'x'; 2], token: Some(3) };
    assert_eq!(bench.on(telemetry(3, 2)), [Output::Publish(publication)]);
    let taken = |token| [Output::Deliver(FromHub::TelemetryTaken { token })];
    assert_eq!(bench.on(Input::Taken { token: 3 }), taken(3));
    assert_eq!(bench.on(telemetry(4, MAX_PACKET)), taken(4), "never to be carried, so out of the way");
    bench.lose();
    assert_eq!(bench.on(telemetry(5, 2)), []);
}

#[test]
fn a_message_without_its_puback_ends_the_connection() {
    let message = || TelemetryMessage {
        message_id: "m".into(),
        content_type: None,
        content_encoding: None,
        properties: vec![],
        body: vec![b'x'],
    };
    let second = Duration::from_secs(1);
    let telemetry = |token| Input::Send(ToHub::Telemetry { token, message: Box::new(message()) });
    let is_end = |outputs: &[Output]| {
        matches!(outputs, [Output::Deliver(FromHub::Disconnected { reason }), Output::Disconnect]
        if reason.contains("acknowledge"))
    };
    let mut bench = Bench::ready();
    bench.on(telemetry(1));
    let (waited, outputs) = bench.wait();
    assert!(waited == second * 30 && is_end(&outputs), "{waited:?} {outputs:?}");
    bench.lose();
    bench.reconnect();
    assert!(bench.session.deadline().is_some_and(|deadline| deadline <= bench.now + second * 10), "it is forgotten");

    // A hub that is slow and takes one after the other has not lost any.
    let mut bench = Bench::ready();
    (1..=5).for_each(|token| _ = bench.on(telemetry(token)));
    for token in 1..=5 {
        assert_eq!(bench.after(second * 29), []);
        bench.on(Input::Taken { token });
    }
    assert!(bench.session.deadline().is_some_and(|deadline| deadline > bench.now + second * 60), "all are taken");

    // One that was passed over is lost, however busy the link.
    (6..=9).for_each(|token| _ = bench.on(telemetry(token)));
    bench.on(Input::Taken { token: 6 });
    bench.after(second * 20);
    bench.on(Input::Taken { token: 8 });
    let (waited, outputs) = bench.wait();
    assert!(waited == second * 10 && is_end(&outputs), "{waited:?} {outputs:?}");
}

#[test]
fn a_notice_that_did_not_come_asks_for_the_whole_twin() {
    let mut bench = Bench::ready();
    assert_eq!(bench.notice(6), [desired(6)]);
    assert_eq!(bench.notice(8), [get(2)], "7 is missing");
    assert_eq!(bench.answer_get(2, 8), [twin(8), Output::State(LinkState::Ready)]);
    assert_eq!(bench.notice(9), [desired(9)]);

    let mut bench = Bench::connected();
    for early in [6, 8] {
        assert_eq!(bench.notice(early), []);
    }
    assert_eq!(bench.answer_get(1, 5), [twin(5), desired(6), Output::State(LinkState::Ready), get(2)]);
    assert_eq!(bench.answer_get(2, 8), [twin(8), Output::State(LinkState::Ready)]);
}

#[test]
fn the_token_is_renewed_after_four_fifths_of_its_life() {
    let mut bench = Bench::ready();
    let (waited, outputs) = bench.wait();
    let share = waited.as_secs_f64() / LIFETIME.as_secs_f64();
    assert!((0.76..0.84).contains(&share), "{share}");
    assert_eq!(outputs, [disconnected("the connection is renewed with a new token"), Output::Disconnect]);
    assert_eq!(bench.session.deadline(), None);
    assert_eq!(bench.lose(), []);
    let (waited, outputs) = bench.wait();
    assert_eq!(waited, Duration::ZERO);
    let Some(Output::Connect(credentials)) = outputs.last() else { panic!("{outputs:?}") };
    let token = Token::parse(&credentials.password).expect("a token");
    assert_eq!(token.expiry(), (bench.wall() + LIFETIME).timestamp());
}

#[test]
fn a_certificate_needs_no_token_and_no_renewal() {
    let mut bench = Bench::new();
    bench.session.settings.credentials = DeviceCredentials::X509;
    let outputs = bench.after(Duration::ZERO);
    let Some(Output::Connect(credentials)) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!(credentials.password, "");
    assert!(credentials.username.starts_with("localhost:18883/d1/?api-version="), "{credentials:?}");
    bench.on(Input::Accepted);
    for _ in 0..3 {
        bench.on(Input::Subscribed { granted: true });
    }
    bench.answer_get(1, 5);
    assert!(bench.session.deadline().is_some_and(|deadline| deadline > bench.now + 100 * LIFETIME));
}

#[test]
fn a_renewal_waits_for_a_method_but_not_for_ever() {
    let mut bench = Bench::ready();
    let renewal = bench.session.deadline().expect("a deadline") - bench.now;
    bench.after(renewal - Duration::from_secs(1));
    bench.method("a");
    assert_eq!(bench.after(Duration::from_secs(2)), []);
    let outputs = bench.method_response("a", 200);
    assert!(matches!(outputs[..], [Output::Publish(_), Output::Deliver(_), Output::Disconnect]), "{outputs:?}");

    let mut bench = Bench::ready();
    bench.method("a");
    let (waited, outputs) = bench.wait();
    assert_eq!(waited, renewal + RENEWAL_PATIENCE);
    assert_eq!(outputs.last(), Some(&Output::Disconnect));
}

#[test]
fn failures_in_a_row_wait_longer_and_a_stable_connection_forgives_them() {
    let mut bench = Bench::new();
    let mut waits = Vec::new();
    for _ in 0..12 {
        let (waited, outputs) = bench.wait();
        waits.push(waited);
        assert!(matches!(outputs.last(), Some(Output::Connect(_))));
        assert!(matches!(bench.lose()[..], [Output::State(LinkState::Waiting { .. })]), "no actor to tell");
    }
    assert!(waits[1] <= Duration::from_millis(250), "the first retry is quick: {waits:?}");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(60)));
    assert!(waits[7..].iter().any(|wait| *wait > Duration::from_secs(10)), "{waits:?}");

    bench.reconnect();
    bench.after(STABLE);
    bench.lose();
    assert!(bench.wait().0 <= Duration::from_millis(250));
}

#[test]
fn a_refusal_says_so_and_waits_long_but_goes_on() {
    for (refusal, refused, shortest) in [
        (Refusal::Identifier, true, 10),
        (Refusal::Credentials, true, 10),
        (Refusal::NotAuthorized, true, 10),
        (Refusal::Unavailable, false, 0),
    ] {
        let mut bench = Bench::new();
        for _ in 0..20 {
            bench.wait();
            let outputs = bench.on(Input::Refused(refusal));
            let [Output::State(state @ LinkState::Waiting { retry_in, .. })] = &outputs[..] else {
                panic!("{outputs:?}")
            };
            assert_eq!(state.failure(), Some(&Failure { refused, reason: refusal.to_string() }));
            assert!((Duration::from_secs(shortest)..=Duration::from_secs(300)).contains(retry_in));
            assert_eq!(bench.session.deadline(), Some(bench.now + *retry_in));
        }
    }
}

#[test]
fn silent_or_refused_subscriptions_end_the_connection() {
    for silent in [true, false] {
        let mut bench = Bench::new();
        bench.wait();
        bench.on(Input::Accepted);
        let outputs = if silent { bench.wait().1 } else { bench.on(Input::Subscribed { granted: false }) };
        assert_eq!(outputs, [Output::Disconnect]);
        let outputs = bench.lose();
        let [Output::State(state)] = &outputs[..] else { panic!("{outputs:?}") };
        assert!(state.failure().is_some_and(|failure| failure.reason.contains("subscription")), "{state:?}");
    }
}

#[test]
fn a_message_is_acknowledged_when_it_is_dealt_with_and_everything_else_at_once() {
    let mut bench = Bench::ready();
    assert_eq!(bench.message("a", 7), [message(1, "a")]);
    assert_eq!(bench.message("b", 8), [message(2, "b")]);
    let topic = "$iothub/methods/POST/lockDoor/?$rid=r";
    assert_eq!(bench.publication(topic, "", Some(9)), [acknowledge(9), method("r")]);
    assert_eq!(bench.publication("unknown", "", Some(10)), [acknowledge(10)]);
    assert_eq!(bench.message_taken(2), [acknowledge(8)]);
    assert_eq!(bench.message_taken(2), [], "once");
    assert_eq!(bench.message("a", 7), [message(1, "a")], "the hub repeats it");
    assert_eq!(bench.message_taken(1), [acknowledge(7)]);
    assert_eq!(bench.message("c", 7), [message(3, "c")]);
}

#[test]
fn a_message_of_a_connection_that_is_gone_cannot_be_acknowledged() {
    let mut bench = Bench::ready();
    bench.message("a", 7);
    bench.lose();
    bench.reconnect();
    assert_eq!(bench.message("a", 7), [message(2, "a")]);
    assert_eq!(bench.message_taken(1), [], "as it may be another message by now");
    assert_eq!(bench.message_taken(2), [acknowledge(7)]);
}

#[test]
fn messages_that_come_early_wait_for_the_subscriptions() {
    let mut bench = Bench::new();
    bench.wait();
    bench.on(Input::Accepted);
    for n in 0..64 {
        assert_eq!(bench.message(&n.to_string(), n + 1), []);
    }
    assert_eq!(bench.message("one more", 99), [], "left with the hub");
    let outputs: Vec<_> = (0..3).flat_map(|_| bench.on(Input::Subscribed { granted: true })).collect();
    assert_eq!(outputs.len(), 1 + 64 + 1);
    assert_eq!(outputs[..2], [Output::Deliver(FromHub::Connected), message(1, "0")]);
}

#[test]
fn messages_are_subscribed_to_when_someone_deals_with_them() {
    let subscription = [Output::Subscribe { filter: "devices/d1/messages/devicebound/#".into() }];
    let mut bench = Bench::ready();
    assert_eq!(bench.on(Input::Send(ToHub::SubscribeMessages)), subscription);
    assert_eq!(bench.on(Input::Send(ToHub::SubscribeMessages)), [], "once for each connection");
    assert_eq!(bench.on(Input::Subscribed { granted: false }), [], "the rest goes on without them");
    bench.lose();
    bench.reconnect();
    assert_eq!(bench.on(Input::Send(ToHub::SubscribeMessages)), subscription);
}

#[test]
fn an_unreadable_message_stays_with_the_hub() {
    let mut bench = Bench::ready();
    assert_eq!(bench.publication("devices/d1/messages/devicebound/a=%ff", "", Some(1)), []);
}
