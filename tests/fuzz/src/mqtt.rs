//! MQTT: what a socket brings, through frames, session and hub, and back.

use std::time::Instant;

use bytes::BytesMut;
use chrono::DateTime;
use embedded_hub::events::EventLog;
use embedded_hub::feedback::FeedbackQueue;
use embedded_hub::hub::{Answer, Hub, Input, LinkId, LinkInput, Now, Operation, Output};
use embedded_hub::session::{Action, MAX_PACKET, Session};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::link::CloudMessage;
use iothub_protocol::method::DirectMethod;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::twin::TwinPatch;
use rumqttc::mqttbytes::v4::{Connect, Packet};
use serde_json::Value;

const DEVICE: &str = "d1";
const LINK: LinkId = LinkId(1);
/// Keys of the device: of these bytes.
const KEY: u8 = 7;

/// The bytes of a client that has not said who it is.
pub(crate) fn stranger(data: &[u8]) {
    let mut peer = Peer::new();
    peer.feed(data);
    peer.end();
}

/// The bytes of a device that has connected: what a device could do to its hub. Between two packets a back end acts,
/// in turn, so that there are calls to answer, messages to acknowledge and changes to miss.
pub(crate) fn device(data: &[u8]) {
    let mut peer = Peer::new();
    let key = SharedKey::from_random([KEY; 32]);
    let expiry = DateTime::from_timestamp(1_900_000_000, 0).expect("a time");
    let mut connect = Connect::new(DEVICE);
    connect.clean_session = false;
    let token = key.sign(&format!("localhost/devices/{DEVICE}"), None, expiry);
    connect.set_login(format!("localhost/{DEVICE}/?api-version=2021-04-12"), token);
    peer.take(Packet::Connect(connect));
    assert!(peer.session.takes_packets(), "the device is let in");
    peer.feed(data);
    peer.end();
}

/// A hub with one device, and one connection to it.
struct Peer {
    hub: Hub<()>,
    session: Session,
    events: EventLog,
    now: Now,
    is_open: bool,
    acts: usize,
    /// The answers to requests.
    answers: Vec<Answer>,
}

impl Peer {
    fn new() -> Peer {
        let now = Now { wall: DateTime::from_timestamp(1_800_000_000, 0).expect("a time"), steady: Instant::now() };
        let hub = Hub::new(vec![], vec![], FeedbackQueue::default());
        let session = Session::new(now.steady, None);
        let mut peer = Peer { hub, session, events: EventLog::new(), now, is_open: true, acts: 0, answers: Vec::new() };
        let keys = [SharedKey::from_random([KEY; 32]), SharedKey::from_random([KEY; 32])];
        peer.request(Operation::PutIdentity {
            id: id().into(),
            request: IdentityRequest::default(),
            if_match: None,
            keys,
        });
        peer
    }

    /// Reads packets as the listener does.
    fn feed(&mut self, data: &[u8]) {
        let mut incoming = BytesMut::from(data);
        while self.is_open && !incoming.is_empty() {
            let left = incoming.len();
            let Ok(packet) = Packet::read(&mut incoming, MAX_PACKET) else { return };
            assert!(incoming.len() < left, "a packet takes bytes");
            self.take(packet);
            self.act();
        }
    }

    fn take(&mut self, packet: Packet) {
        let actions = self.session.handle_packet(self.now.steady, packet);
        self.perform(actions);
        self.deliver();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(packet) => self.send(packet),
                Action::ToHub(input) => self.hub.handle(self.now, Input::Link(LINK, input)),
                Action::Close { .. } => self.is_open = false,
            }
        }
    }

    /// What the hub sends fits into a packet and can be read again.
    fn send(&mut self, packet: Packet) {
        let mut wire = BytesMut::new();
        packet.write(&mut wire, MAX_PACKET).expect("a packet of the hub can be written");
        let read = Packet::read(&mut wire, MAX_PACKET).expect("a packet of the hub can be read");
        assert!(wire.is_empty() && std::mem::discriminant(&read) == std::mem::discriminant(&packet));
    }

    /// Passes on what the hub says until it says nothing more.
    fn deliver(&mut self) {
        loop {
            let outcome = self.hub.take_outcome();
            if outcome.immediate.is_empty() && outcome.gated.is_empty() {
                return;
            }
            for output in outcome.immediate.into_iter().chain(outcome.gated) {
                match output {
                    Output::Link(link, output) => {
                        assert_eq!(link, LINK);
                        let actions = self.session.handle_output(output);
                        self.perform(actions);
                    }
                    Output::Reply((), answer) => self.answers.extend(answer),
                    Output::Event(event) => drop(self.events.to_json(1, &event).to_string()),
                    Output::Listens(_) => {}
                }
            }
        }
    }

    fn request(&mut self, operation: Operation) {
        self.hub.handle(self.now, Input::Request { reply: (), operation });
        self.deliver();
    }

    /// One of the things that a back end does.
    fn act(&mut self) {
        self.acts += 1;
        let body = format!(
            r#"{{"methodName":"m","payload":{n},"tags":{{"n":{n}}},"properties":{{"desired":{{"n":{n}}}}}}}"#,
            n = self.acts
        );
        match self.acts % 3 {
            0 => {
                let method = DirectMethod::from_json(body.as_bytes()).expect("a method");
                self.request(Operation::CallMethod { id: id().into(), method });
            }
            1 => {
                let patch = TwinPatch::from_json(body.as_bytes()).expect("a patch");
                self.request(Operation::PatchTwin { id: id().into(), patch, if_match: None });
            }
            _ => {
                let message = Box::new(CloudMessage { body: body.into_bytes(), ..CloudMessage::default() });
                self.request(Operation::SendMessage { id: id(), message, wait: false });
            }
        }
    }

    /// The connection ends, and the hub is none the worse for it.
    fn end(mut self) {
        self.hub.handle(self.now, Input::Link(LINK, LinkInput::Closed { graceful: !self.is_open }));
        self.deliver();
        while let Some(due) = self.hub.deadline(self.now).filter(|_| self.acts < 1000) {
            self.acts += 1;
            let waited = due.saturating_duration_since(self.now.steady).max(std::time::Duration::from_secs(1));
            self.now = Now { wall: self.now.wall + waited, steady: self.now.steady + waited };
            self.hub.handle_deadline(self.now);
            self.deliver();
        }
        self.request(Operation::GetTwin(id().into()));
        let Some(Answer::Document(twin)) = self.answers.pop() else { panic!("the device is still there") };
        assert_eq!(twin["connectionState"], "Disconnected");
        assert!(twin["properties"]["reported"]["$version"].is_u64());
        assert!(serde_json::from_str::<Value>(&twin.to_string()).is_ok(), "a twin can be read");
    }
}

fn id() -> DeviceId {
    DeviceId::parse(DEVICE).expect("an id")
}
