//! One MQTT connection without I/O: which packets may come when, what they mean to the hub, what goes back.
//!
//! MQTT 3.1.1 as IoT Hub speaks it: an error ends the connection, as the protocol has no way to tell of one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iothub_protocol::address::Address;
use iothub_protocol::id::ModelId;
use iothub_protocol::topic::{FromDevice, Subscription, decode_bag};
use iothub_protocol::twin::limit;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, SubAck, Subscribe, SubscribeReasonCode, UnsubAck,
    Unsubscribe,
};
use rumqttc::mqttbytes::{Protocol, QoS};

use crate::certificate::ClientCertificate;
use crate::hub::{ConnectRequest, Credentials, Granted, LinkInput, LinkOutput};

/// A client that has not said who it is so long after its connection was made is cut.
const CONNECT_TIME_LIMIT: Duration = Duration::from_secs(30);
/// The hub waits at most so long between packets, whatever keep-alive the client asked for; Azure's number.
const MAX_SILENCE: Duration = Duration::from_secs(1767);
/// Publications with QoS 1 that may be with the hub at once: enough to keep it busy over a commit, and few beside the
/// room for what goes to one device.
const MAX_UNACKNOWLEDGED: usize = 64;
/// Largest packet: a message of 256 KiB, a topic of 64 KiB with its properties, and the header.
pub const MAX_PACKET: usize = 256 * 1024 + 64 * 1024 + 16;
// A whole twin, and news of a whole section, reach the device in one packet.
const _: () = assert!(2 * limit::TEXT + 1024 <= MAX_PACKET && limit::PATCH_TEXT + 1024 <= MAX_PACKET);

/// What the connection should do.
#[derive(Debug)]
pub enum Action {
    Send(Packet),
    ToHub(LinkInput),
    /// Send what is queued, then close. The hub hears [`LinkInput::Closed`] from the driver.
    Close {
        graceful: bool,
        reason: &'static str,
    },
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// How long the client may say nothing.
    silence: Duration,
    last_heard: Instant,
    /// Publications that are with the hub and will be acknowledged.
    unacknowledged: usize,
    /// The client's, until CONNECT.
    certificate: Option<Arc<ClientCertificate>>,
}

#[derive(Debug)]
enum State {
    AwaitConnect,
    /// CONNECT is with the hub.
    AwaitVerdict(Address),
    Up(Address),
    Over,
}

impl Session {
    /// Of a client that connected at `since` and has shown this certificate.
    pub fn new(since: Instant, certificate: Option<Arc<ClientCertificate>>) -> Session {
        let state = State::AwaitConnect;
        Session { state, silence: CONNECT_TIME_LIMIT, last_heard: since, unacknowledged: 0, certificate }
    }

    /// When to call [`Session::handle_deadline`].
    pub fn deadline(&self) -> Instant {
        self.last_heard + self.silence
    }

    /// The hub did not listen until now, so nothing is wrong with a client that it did not hear.
    pub fn forgive_silence(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// Whether to give packets now. A client need not wait for the answer to its CONNECT, nor for one PUBACK before it
    /// publishes again; the connection does, so that what the hub has for it stays bounded.
    pub fn takes_packets(&self) -> bool {
        !matches!(self.state, State::AwaitVerdict(_)) && self.unacknowledged < MAX_UNACKNOWLEDGED
    }

    pub fn handle_deadline(&mut self) -> Action {
        self.close(false, "the client was silent for too long")
    }

    pub fn handle_packet(&mut self, now: Instant, packet: Packet) -> Vec<Action> {
        self.last_heard = now;
        match (&self.state, packet) {
            (State::AwaitConnect, Packet::Connect(connect)) => self.connect(connect),
            (State::Up(address), packet) => {
                let address = address.clone();
                self.handle_up(&address, packet)
            }
            _ => vec![self.close(false, "a packet came before CONNECT was accepted")],
        }
    }

    /// Turn what the hub says into packets.
    pub fn handle_output(&mut self, output: LinkOutput) -> Vec<Action> {
        match (output, &self.state) {
            (LinkOutput::Accepted { session_present }, State::AwaitVerdict(address)) => {
                self.state = State::Up(address.clone());
                vec![Action::Send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session_present)))]
            }
            (LinkOutput::Refused, _) => self.refuse(ConnectReturnCode::NotAuthorized, "the hub refused the device"),
            (LinkOutput::Close { reason }, _) => vec![self.close(false, reason)],
            (_, State::AwaitConnect | State::AwaitVerdict(_) | State::Over) => vec![],
            (LinkOutput::Accepted { .. }, State::Up(_)) => vec![],
            (LinkOutput::SubAck { pkid, granted }, State::Up(_)) => {
                let codes = granted.into_iter().map(|granted| SubscribeReasonCode::Success(quality(granted))).collect();
                vec![Action::Send(Packet::SubAck(SubAck::new(pkid, codes)))]
            }
            (LinkOutput::PubAck { packet_id, is_message: _ }, State::Up(_)) => {
                self.unacknowledged = self.unacknowledged.saturating_sub(1);
                vec![Action::Send(Packet::PubAck(PubAck::new(packet_id)))]
            }
            (LinkOutput::UnsubAck { pkid }, State::Up(_)) => vec![Action::Send(Packet::UnsubAck(UnsubAck::new(pkid)))],
            (LinkOutput::Publish { topic, payload }, State::Up(_)) => {
                vec![Action::Send(Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, payload)))]
            }
            (LinkOutput::Message { packet_id, is_repeated, topic, payload }, State::Up(_)) => {
                let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, payload);
                publish.pkid = packet_id;
                publish.dup = is_repeated;
                vec![Action::Send(Packet::Publish(publish))]
            }
        }
    }

    fn connect(&mut self, connect: Connect) -> Vec<Action> {
        if connect.protocol != Protocol::V4 {
            return self.refuse(ConnectReturnCode::RefusedProtocolVersion, "the client does not speak MQTT 3.1.1");
        }
        let Some(login) = connect.login else {
            return self.refuse(ConnectReturnCode::NotAuthorized, "CONNECT has no user name");
        };
        // `host/clientId/?api-version=…`, with and without the question mark; any version will do.
        let named = login.username.split_once('/').map_or("", |(_, rest)| rest);
        let Ok(address) = Address::parse(&connect.client_id) else {
            return self.refuse(ConnectReturnCode::BadClientId, "the client id is neither device nor device/module");
        };
        if !names(named, &connect.client_id) {
            return self.refuse(ConnectReturnCode::BadClientId, "the user name is for another client id");
        }
        let will = match connect.last_will {
            None => None,
            Some(will) => match FromDevice::parse(&address, &will.topic) {
                // Copied, as it would hold the whole packet for as long as the connection lasts.
                Some(mut message @ FromDevice::Telemetry { .. }) => {
                    mark_retained(&mut message, will.retain);
                    Some((message, Bytes::copy_from_slice(&will.message)))
                }
                _ => return self.refuse(ConnectReturnCode::NotAuthorized, "the will's topic is not the device's"),
            },
        };
        self.silence = match connect.keep_alive {
            // None asked for. A client that is gone without a word must be missed all the same.
            0 => MAX_SILENCE,
            seconds => (Duration::from_secs(seconds.into()) * 3 / 2).min(MAX_SILENCE),
        };
        self.state = State::AwaitVerdict(address.clone());
        let token = Some(login.password).filter(|password| !password.is_empty());
        let credentials = Credentials { token, certificate: self.certificate.take() };
        let (clean_session, model) = (connect.clean_session, announced_model(&login.username));
        let request = ConnectRequest { address, credentials, clean_session, will, model };
        vec![Action::ToHub(LinkInput::Connect(Box::new(request)))]
    }

    fn handle_up(&mut self, address: &Address, packet: Packet) -> Vec<Action> {
        match packet {
            Packet::Publish(publish) => self.publish(address, publish),
            Packet::Subscribe(subscribe) => self.subscribe(address, &subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(address, &unsubscribe),
            Packet::PingReq => vec![Action::Send(Packet::PingResp)],
            Packet::PubAck(ack) => vec![Action::ToHub(LinkInput::Acknowledged { packet_id: ack.pkid })],
            // We send nothing with QoS 2, so these mean nothing; they do no harm either.
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => vec![],
            Packet::Disconnect => vec![self.close(true, "the client disconnected")],
            _ => vec![self.close(false, "the packet is not one that a client sends")],
        }
    }

    fn publish(&mut self, address: &Address, publish: Publish) -> Vec<Action> {
        if publish.qos == QoS::ExactlyOnce {
            return vec![self.close(false, "PUBLISH with QoS 2 is not supported")];
        }
        let Some(mut message) = FromDevice::parse(address, &publish.topic) else {
            return vec![self.close(false, "PUBLISH to a topic that is not the device's")];
        };
        mark_retained(&mut message, publish.retain);
        let packet_id = (publish.qos == QoS::AtLeastOnce).then_some(publish.pkid);
        self.unacknowledged += usize::from(packet_id.is_some());
        vec![Action::ToHub(LinkInput::Published { message, payload: publish.payload, packet_id })]
    }

    fn subscribe(&mut self, address: &Address, subscribe: &Subscribe) -> Vec<Action> {
        if subscribe.pkid == 0 {
            return vec![self.close(false, "SUBSCRIBE without a packet id")];
        }
        // There are fewer filters than the five subscriptions that a device may have.
        let filters = subscribe.filters.iter().map(|filter| {
            // QoS 2 is granted as 1. Only cloud-to-device messages heed it, the hub's own go as QoS 0.
            let granted = if filter.qos == QoS::AtMostOnce { Granted::AtMostOnce } else { Granted::AtLeastOnce };
            Some((Subscription::parse(address, &filter.path)?, granted))
        });
        match filters.collect() {
            Some(filters) => vec![Action::ToHub(LinkInput::Subscribe { pkid: subscribe.pkid, filters })],
            None => vec![self.close(false, "SUBSCRIBE with a filter that is not the device's")],
        }
    }

    fn unsubscribe(&mut self, address: &Address, unsubscribe: &Unsubscribe) -> Vec<Action> {
        if unsubscribe.pkid == 0 || unsubscribe.topics.is_empty() {
            return vec![self.close(false, "UNSUBSCRIBE without a packet id or a filter")];
        }
        // A filter that never was subscribed is no error when it goes.
        let subscriptions =
            unsubscribe.topics.iter().filter_map(|filter| Subscription::parse(address, filter)).collect();
        vec![Action::ToHub(LinkInput::Unsubscribe { pkid: unsubscribe.pkid, subscriptions })]
    }

    fn refuse(&mut self, code: ConnectReturnCode, reason: &'static str) -> Vec<Action> {
        vec![Action::Send(Packet::ConnAck(ConnAck::new(code, false))), self.close(false, reason)]
    }

    fn close(&mut self, graceful: bool, reason: &'static str) -> Action {
        self.state = State::Over;
        Action::Close { graceful, reason }
    }
}

/// Whether the part of a user name behind the host begins with this client id. What follows is the client's version.
fn names(user: &str, client_id: &str) -> bool {
    user.strip_prefix(client_id).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The model in a user name, `host/clientId/?api-version=…&model-id=dtmi:…`. What is no model is not heeded.
fn announced_model(username: &str) -> Option<ModelId> {
    let (_, options) = username.rsplit_once('/')?;
    let options = decode_bag(options.trim_start_matches('?'))?;
    let (_, model) = options.into_iter().find(|(name, _)| name == "model-id")?;
    ModelId::parse(&model).ok()
}

/// Nothing is retained; that it was asked for becomes a property of the message.
fn mark_retained(message: &mut FromDevice, retain: bool) {
    if let (FromDevice::Telemetry { bag }, true) = (message, retain) {
        let separator = if bag.is_empty() { "" } else { "&" };
        bag.push_str(separator);
        bag.push_str("mqtt-retain=true");
    }
}

fn quality(granted: Granted) -> QoS {
    match granted {
        Granted::AtMostOnce => QoS::AtMostOnce,
        Granted::AtLeastOnce => QoS::AtLeastOnce,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use rumqttc::mqttbytes::v4::{LastWill, Login, SubscribeFilter};

    use super::*;

    fn connect() -> Connect {
        let mut connect = Connect::new("d1");
        connect.clean_session = false;
        connect.keep_alive = 60;
        connect.set_login("localhost/d1/?api-version=2021-04-12", "token");
        connect
    }

    fn up(now: Instant) -> Session {
        let mut session = Session::new(now, None);
        let actions = session.handle_packet(now, Packet::Connect(connect()));
        assert!(matches!(actions.as_slice(), [Action::ToHub(LinkInput::Connect(_))]), "{actions:?}");
        session.handle_output(LinkOutput::Accepted { session_present: false });
        session
    }

    fn closes(actions: &[Action]) -> bool {
        matches!(actions.last(), Some(Action::Close { graceful: false, .. }))
    }

    #[test]
    fn a_connect_is_refused_with_a_code() {
        let with = |change: &dyn Fn(&mut Connect)| {
            let mut packet = connect();
            change(&mut packet);
            let actions = Session::new(Instant::now(), None).handle_packet(Instant::now(), Packet::Connect(packet));
            assert!(closes(&actions), "{actions:?}");
            match actions.into_iter().next() {
                Some(Action::Send(Packet::ConnAck(ack))) => ack.code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(with(&|c| c.login = None), ConnectReturnCode::NotAuthorized);
        assert_eq!(with(&|c| c.client_id = "d2".into()), ConnectReturnCode::BadClientId);
        assert_eq!(with(&|c| c.client_id = "d1/m1".into()), ConnectReturnCode::BadClientId);
        assert_eq!(with(&|c| c.client_id = "d1/m1/x".into()), ConnectReturnCode::BadClientId);
        assert_eq!(with(&|c| c.protocol = Protocol::V5), ConnectReturnCode::RefusedProtocolVersion);
        let will = LastWill::new("devices/d2/messages/events/", "x", QoS::AtMostOnce, false);
        assert_eq!(with(&|c| c.last_will = Some(will.clone())), ConnectReturnCode::NotAuthorized);
        assert_eq!(
            with(&|c| c.login = Some(Login::new("localhost", "token"))),
            ConnectReturnCode::BadClientId,
            "a user name without the client id"
        );
    }

    #[test]
    fn a_module_connects_as_itself() {
        let login = |user: &str| {
            let mut packet = connect();
            packet.client_id = "d1/m1".into();
            packet.login = Some(Login::new(user, "token"));
            packet
        };
        let now = Instant::now();
        for user in ["localhost/d1/m1/?api-version=2021-04-12", "localhost/d1/m1/api-version=2016-11-14", "h/d1/m1"] {
            let mut session = Session::new(now, None);
            let actions = session.handle_packet(now, Packet::Connect(login(user)));
            let [Action::ToHub(LinkInput::Connect(request))] = actions.as_slice() else { panic!("{actions:?}") };
            assert_eq!(request.address.to_string(), "d1/m1");
            session.handle_output(LinkOutput::Accepted { session_present: false });
            let topic = "devices/d1/modules/m1/messages/events/";
            let own = session.handle_packet(now, Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "x")));
            assert!(matches!(own.as_slice(), [Action::ToHub(LinkInput::Published { .. })]), "{own:?}");
            let devices = Packet::Publish(Publish::new("devices/d1/messages/events/", QoS::AtMostOnce, "x"));
            assert!(closes(&session.handle_packet(now, devices)), "its device's topics are not its own");
        }
        for user in ["localhost/d1/m2/?a", "localhost/d1/m11/?a", "localhost/d1/?a", "d1/m1/?a", "localhost"] {
            let actions = Session::new(now, None).handle_packet(now, Packet::Connect(login(user)));
            assert!(closes(&actions), "{user}: {actions:?}");
        }
    }

    #[test]
    fn what_is_not_the_devices_ends_the_connection() {
        let now = Instant::now();
        let publish = |topic: &str, qos| Packet::Publish(Publish::new(topic, qos, "x"));
        for packet in [
            publish("devices/d2/messages/events/", QoS::AtMostOnce),
            publish("hello", QoS::AtMostOnce),
            publish("devices/d1/messages/events/", QoS::ExactlyOnce),
            Packet::Subscribe(Subscribe::new("devices/d2/messages/devicebound/#", QoS::AtMostOnce)),
            Packet::Connect(connect()),
            Packet::PingResp,
        ] {
            assert!(closes(&up(now).handle_packet(now, packet.clone())), "{packet:?}");
        }
        assert!(closes(&Session::new(now, None).handle_packet(now, Packet::PingReq)), "before CONNECT");
    }

    #[test]
    fn a_retained_message_says_so_in_a_property() {
        let now = Instant::now();
        for (topic, expected) in [
            ("devices/d1/messages/events/", "mqtt-retain=true"),
            ("devices/d1/messages/events/a=b", "a=b&mqtt-retain=true"),
        ] {
            let mut publish = Publish::new(topic, QoS::AtMostOnce, "x");
            publish.retain = true;
            let actions = up(now).handle_packet(now, Packet::Publish(publish));
            let [Action::ToHub(LinkInput::Published { message: FromDevice::Telemetry { bag }, .. })] =
                actions.as_slice()
            else {
                panic!("{actions:?}")
            };
            assert_eq!(bag, expected);
        }
    }

    #[test]
    fn a_retained_will_says_so_in_a_property() {
        let now = Instant::now();
        for (topic, retain, expected) in [
            ("devices/d1/messages/events/", true, "mqtt-retain=true"),
            ("devices/d1/messages/events/a=b", true, "a=b&mqtt-retain=true"),
            ("devices/d1/messages/events/a=b", false, "a=b"),
        ] {
            let mut packet = connect();
            packet.last_will = Some(LastWill::new(topic, "gone", QoS::AtMostOnce, retain));
            let actions = Session::new(now, None).handle_packet(now, Packet::Connect(packet));
            let [Action::ToHub(LinkInput::Connect(request))] = actions.as_slice() else { panic!("{actions:?}") };
            let Some((FromDevice::Telemetry { bag }, body)) = &request.will else { panic!("{actions:?}") };
            assert_eq!((bag.as_str(), &body[..]), (expected, &b"gone"[..]));
        }
    }

    #[test]
    fn a_user_name_may_announce_a_model() {
        let thermostat = ModelId::parse("dtmi:com:example:Thermostat;1").expect("a model");
        for (options, expected) in [
            (
                "?api-version=2021-04-12&model-id=dtmi:com:example:Thermostat;1&DeviceClientType=x%2Fy",
                Some(&thermostat),
            ),
            ("api-version=2020-09-30&model-id=dtmi%3Acom%3Aexample%3AThermostat%3B1", Some(&thermostat)),
            ("?api-version=2021-04-12", None),
            ("?api-version=2021-04-12&model-id=", None),
            ("?api-version=2021-04-12&model-id=no%20model", None),
        ] {
            assert_eq!(announced_model(&format!("localhost/d1/{options}")).as_ref(), expected, "{options}");
        }
        assert_eq!(announced_model("localhost"), None);
    }

    #[test]
    fn qos_1_is_acknowledged_when_the_hub_says_so() {
        let now = Instant::now();
        let mut session = up(now);
        let publish = Publish::new("$iothub/twin/GET/?$rid=1", QoS::AtLeastOnce, " ");
        let actions = session.handle_packet(now, Packet::Publish(Publish { pkid: 7, ..publish }));
        assert!(
            matches!(actions.as_slice(), [Action::ToHub(LinkInput::Published { packet_id: Some(7), .. })]),
            "{actions:?}"
        );
        let actions = session.handle_output(LinkOutput::PubAck { packet_id: 7, is_message: false });
        assert!(matches!(actions.as_slice(), [Action::Send(Packet::PubAck(PubAck { pkid: 7 }))]), "{actions:?}");
    }

    #[test]
    fn a_client_that_publishes_ahead_of_the_hub_is_not_read_meanwhile() {
        let now = Instant::now();
        let mut session = up(now);
        for pkid in 1..=MAX_UNACKNOWLEDGED as u16 {
            assert!(session.takes_packets(), "{pkid}");
            let publish = Publish::new("devices/d1/messages/events/", QoS::AtLeastOnce, "x");
            session.handle_packet(now, Packet::Publish(Publish { pkid, ..publish }));
        }
        assert!(!session.takes_packets());
        session.handle_output(LinkOutput::PubAck { packet_id: 1, is_message: true });
        assert!(session.takes_packets());
    }

    #[test]
    fn a_message_goes_with_qos_1_and_its_acknowledgement_reaches_the_hub() {
        let now = Instant::now();
        let mut session = up(now);
        for is_repeated in [false, true] {
            let (topic, payload) = ("devices/d1/messages/devicebound/".to_owned(), Bytes::from_static(b"x"));
            let output = LinkOutput::Message { packet_id: 9, is_repeated, topic, payload };
            let actions = session.handle_output(output);
            let [Action::Send(Packet::Publish(publish))] = actions.as_slice() else { panic!("{actions:?}") };
            assert_eq!((publish.qos, publish.pkid, publish.dup), (QoS::AtLeastOnce, 9, is_repeated));
        }
        let actions = session.handle_packet(now, Packet::PubAck(PubAck::new(9)));
        assert!(matches!(actions[..], [Action::ToHub(LinkInput::Acknowledged { packet_id: 9 })]), "{actions:?}");
    }

    #[test]
    fn silence_is_measured_from_the_last_packet() {
        let now = Instant::now();
        assert_eq!(Session::new(now, None).deadline(), now + CONNECT_TIME_LIMIT);
        let mut session = up(now);
        let later = now + Duration::from_secs(10);
        session.handle_packet(later, Packet::PingReq);
        assert_eq!(session.deadline(), later + Duration::from_secs(90));
        for (keep_alive, silence) in [(0, MAX_SILENCE), (1, Duration::from_millis(1500)), (u16::MAX, MAX_SILENCE)] {
            let mut session = Session::new(now, None);
            session.handle_packet(now, Packet::Connect(Connect { keep_alive, ..connect() }));
            assert_eq!(session.deadline(), now + silence, "{keep_alive}");
        }
    }

    #[test]
    fn a_subscription_is_granted_what_it_asks_for_but_qos_2() {
        let now = Instant::now();
        let mut session = up(now);
        let filter = |qos| SubscribeFilter::new("$iothub/twin/res/#".to_owned(), qos);
        let filters = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].map(filter);
        let packet = Subscribe { pkid: 5, filters: filters.to_vec() };
        let actions = session.handle_packet(now, Packet::Subscribe(packet));
        let [Action::ToHub(LinkInput::Subscribe { pkid, filters })] = actions.as_slice() else { panic!("{actions:?}") };
        let granted = filters.iter().map(|(_, granted)| *granted).collect();
        let actions = session.handle_output(LinkOutput::SubAck { pkid: *pkid, granted });
        let [Action::Send(Packet::SubAck(ack))] = actions.as_slice() else { panic!("{actions:?}") };
        let expected = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce].map(SubscribeReasonCode::Success);
        assert_eq!((ack.pkid, ack.return_codes.as_slice()), (5, expected.as_slice()));
    }

    #[test]
    fn one_wrong_filter_ends_the_connection() {
        let now = Instant::now();
        let filters =
            ["$iothub/twin/res/#", "$iothub/#"].map(|path| SubscribeFilter::new(path.to_owned(), QoS::AtMostOnce));
        for (pkid, filters) in [(5, filters.to_vec()), (0, filters[..1].to_vec())] {
            assert!(closes(&up(now).handle_packet(now, Packet::Subscribe(Subscribe { pkid, filters }))));
        }
        let unsubscribe = |pkid, topic: &str| Packet::Unsubscribe(Unsubscribe { pkid, topics: vec![topic.to_owned()] });
        assert!(closes(&up(now).handle_packet(now, unsubscribe(0, "$iothub/twin/res/#"))));
        let actions = up(now).handle_packet(now, unsubscribe(5, "unknown"));
        assert!(matches!(actions.as_slice(), [Action::ToHub(LinkInput::Unsubscribe { .. })]), "{actions:?}");
    }

    #[test]
    fn packets_wait_for_the_verdict() {
        let now = Instant::now();
        let mut session = Session::new(now, None);
        assert!(session.takes_packets());
        session.handle_packet(now, Packet::Connect(connect()));
        assert!(!session.takes_packets());
        session.handle_output(LinkOutput::Accepted { session_present: false });
        assert!(session.takes_packets());
    }

    /// What a client may send, whole or broken.
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let text = prop::sample::select(vec![
            "MQTT",
            "d1",
            "localhost/d1/?api-version=2021-04-12",
            "token",
            "$iothub/twin/GET/?$rid=1",
            "$iothub/methods/POST/#",
            "devices/d1/messages/events/%24.mid=1&a=%ff",
            "$iothub/methods/res/-1/?$rid=ff",
        ]);
        let field = text.prop_map(|text| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat());
        let piece = prop_oneof![3 => field, 1 => prop::collection::vec(any::<u8>(), 0..8)];
        let packet = (any::<u8>(), prop::collection::vec(piece, 0..6), 0..2u8).prop_map(|(first, pieces, off)| {
            let body = pieces.concat();
            let length = (body.len() as u8 & 0x7f).saturating_sub(off);
            [vec![first, length], body].concat()
        });
        let connect = Just({
            let mut stream = BytesMut::new();
            connect().write(&mut stream).expect("a packet");
            stream.to_vec()
        });
        let any_packet = prop_oneof![4 => packet, 1 => connect.clone()];
        (connect, prop::collection::vec(any_packet, 0..8)).prop_map(|(first, rest)| [first, rest.concat()].concat())
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_session_panic(bytes in any_bytes(), skip in 0usize..64) {
            for bytes in [&bytes[..], &bytes[skip.min(bytes.len())..]] {
                let now = Instant::now();
                let mut session = Session::new(now, None);
                let mut stream = BytesMut::from(bytes);
                while let Ok(packet) = Packet::read(&mut stream, MAX_PACKET) {
                    let is_connect = matches!(packet, Packet::Connect(_));
                    let actions = session.handle_packet(now, packet);
                    if matches!(actions.last(), Some(Action::Close { .. })) {
                        break;
                    }
                    if is_connect {
                        session.handle_output(LinkOutput::Accepted { session_present: true });
                    }
                }
            }
        }
    }
}
