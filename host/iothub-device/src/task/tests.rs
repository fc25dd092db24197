//! Against a scripted hub on a real TLS socket.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use iothub_protocol::id::RequestId;
use iothub_protocol::link::{CloudMessage, TelemetryMessage};
use rumqttc::mqttbytes::v4::{Codec, Connect};
use rumqttc::{ConnAck, PubAck, Publish, SubAck};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Map, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::codec::Framed;

use super::*;
use crate::tls::{Roots, client_config};

const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";

struct Hub {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ca: String,
}

impl Hub {
    async fn start() -> Hub {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a server config");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Hub { listener, acceptor: TlsAcceptor::from(Arc::new(config)), ca: cert.pem() }
    }

    fn device(&self, ca: &str) -> Device {
        device_at(self.port(), ca)
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().expect("an address").port()
    }

    async fn accept(&self) -> (Peer, Connect) {
        let (socket, _) = soon(self.listener.accept()).await.expect("a connection");
        let tls = soon(self.acceptor.accept(socket)).await.expect("TLS");
        let codec = Codec { max_incoming_size: MAX_PACKET, max_outgoing_size: MAX_PACKET };
        let mut peer = Peer(Framed::new(tls, codec));
        match peer.next().await {
            Packet::Connect(connect) => (peer, connect),
            other => panic!("{other:?}"),
        }
    }

    /// Until the twin has been asked for; returns the GET's request id.
    async fn accept_until_get(&self) -> (Peer, String) {
        let (mut peer, connect) = self.accept().await;
        assert_eq!((connect.client_id.as_str(), connect.clean_session), ("d1", false));
        peer.send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))).await;
        for expected in ["$iothub/methods/POST/#", "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#"] {
            let Packet::Subscribe(subscribe) = peer.next().await else { panic!("no subscribe to {expected}") };
            assert_eq!(subscribe.filters[0].path, expected);
            let granted = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce)];
            peer.send(Packet::SubAck(SubAck::new(subscribe.pkid, granted))).await;
        }
        let get = peer.published().await;
        let rid = get.topic.strip_prefix("$iothub/twin/GET/?$rid=").expect("a GET").to_owned();
        (peer, rid)
    }

    /// Until the device is ready, with desired version 1.
    async fn accept_until_ready(&self, device: &mut Device) -> Peer {
        let (mut peer, rid) = self.accept_until_get().await;
        assert_eq!(device.next().await, FromHub::Connected);
        peer.publish(
            &format!("$iothub/twin/res/200/?$rid={rid}"),
            r#"{"desired":{"$version":1},"reported":{"$version":1}}"#,
        )
        .await;
        assert!(matches!(device.next().await, FromHub::Twin(twin) if twin.desired_version == 1));
        device.until(LinkState::is_ready).await;
        peer
    }
}

struct Peer(Framed<TlsStream<TcpStream>, Codec>);

impl Peer {
    async fn next(&mut self) -> Packet {
        soon(self.0.next()).await.expect("a packet").expect("a sound packet")
    }

    async fn send(&mut self, packet: Packet) {
        soon(self.0.send(packet)).await.expect("sent");
    }

    async fn publish(&mut self, topic: &str, payload: &str) {
        self.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload))).await;
    }

    /// The next PUBLISH, acknowledged.
    async fn published(&mut self) -> Publish {
        let Packet::Publish(publish) = self.next().await else { panic!("no publish") };
        assert_eq!(publish.qos, QoS::AtLeastOnce);
        self.send(Packet::PubAck(PubAck::new(publish.pkid))).await;
        publish
    }
}

struct Device {
    connection: DeviceConnection,
    from_hub: mpsc::Receiver<FromHub>,
    to_hub: mpsc::Sender<ToHub>,
    connects: Arc<Semaphore>,
    cancel: CancellationToken,
}

impl Device {
    async fn next(&mut self) -> FromHub {
        soon(self.from_hub.recv()).await.expect("a message")
    }

    async fn send(&self, message: ToHub) {
        soon(self.to_hub.send(message)).await.expect("a task");
    }

    async fn until(&mut self, wanted: fn(&LinkState) -> bool) -> LinkState {
        soon(self.connection.state.wait_for(wanted)).await.expect("a task").clone()
    }

    async fn failure(&mut self) -> (bool, String) {
        let state = self.until(|state| state.failure().is_some()).await;
        state.failure().map(|failure| (failure.refused, failure.reason.clone())).expect("a failure")
    }
}

fn device_at(port: u16, ca: &str) -> Device {
    device_with(port, ca, DEFAULT_KEEP_ALIVE)
}

fn device_with(port: u16, ca: &str, keep_alive: Duration) -> Device {
    let text = format!("HostName=localhost:{port};DeviceId=d1;SharedAccessKey={KEY}");
    let connection = DeviceConnectionString::parse(&text).expect("a connection string");
    let tls = client_config(Roots::Pem(ca.as_bytes())).expect("a config");
    let connects = Arc::new(Semaphore::new(1));
    let settings =
        DeviceConnectionSettings { keep_alive, ..DeviceConnectionSettings::new(connection, tls, connects.clone(), 1) };
    let ((to_actor, from_hub), (to_hub, from_actor)) = (mpsc::channel(1), mpsc::channel(1));
    let cancel = CancellationToken::new();
    let connection = spawn(settings, to_actor, from_actor, cancel.clone());
    Device { connection, from_hub, to_hub, connects, cancel }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s")
}

fn telemetry(token: u64, size: usize) -> ToHub {
    let message = TelemetryMessage {
        message_id: format!("m{token}"),
        content_type: None,
        content_encoding: None,
        properties: Vec::new(),
        body: vec![b'x'; size],
    };
    ToHub::Telemetry { token, message: Box::new(message) }
}

#[tokio::test]
async fn a_device_lives_through_a_cut_and_says_good_bye() {
    let hub = Hub::start().await;
    let mut device = hub.device(&hub.ca);
    let mut peer = hub.accept_until_ready(&mut device).await;
    assert_eq!(device.connects.available_permits(), 1, "the permit is back after the CONNACK");

    peer.publish("$iothub/methods/POST/lockDoor/?$rid=a", "").await;
    let FromHub::Method { rid, name, payload } = device.next().await else { panic!("no method") };
    assert_eq!((rid.as_str(), name.as_str(), payload.as_str()), ("a", "lockDoor", "null"));
    device.send(ToHub::MethodResponse { rid, status: 200, payload: "1".into() }).await;
    let answer = peer.published().await;
    assert_eq!((answer.topic.as_str(), &answer.payload[..]), ("$iothub/methods/res/200/?$rid=a", &b"1"[..]));

    device.send(ToHub::Report { token: 5, patch: Map::from_iter([("a".into(), json!(1))]) }).await;
    let patch = peer.published().await;
    let rid = patch.topic.strip_prefix("$iothub/twin/PATCH/properties/reported/?$rid=").expect("a patch").to_owned();
    peer.publish(&format!("$iothub/twin/res/204/?$rid={rid}&$version=2"), "").await;
    let reported = FromHub::Reported { token: 5, status: 204, version: Some(2), message: String::new() };
    assert_eq!(device.next().await, reported);

    drop(peer);
    assert!(matches!(device.next().await, FromHub::Disconnected { .. }));
    let mut peer = hub.accept_until_ready(&mut device).await;

    device.send(telemetry(9, 256 * 1024)).await;
    device.cancel.cancel();
    assert_eq!(peer.published().await.payload.len(), 256 * 1024);
    assert_eq!(peer.next().await, Packet::Disconnect);
    device.until(|state| *state == LinkState::Stopped).await;
    soon(&mut device.connection.task).await.expect("a clean end");
}

#[tokio::test]
async fn a_link_that_is_half_open_is_noticed_and_made_anew() {
    let hub = Hub::start().await;
    let mut device = device_with(hub.port(), &hub.ca, Duration::from_secs(1));
    let _mute = hub.accept_until_ready(&mut device).await;
    let FromHub::Disconnected { reason } = device.next().await else { panic!("no end") };
    assert!(reason.contains("did not answer a ping"), "{reason}");
    hub.accept_until_ready(&mut device).await;
}

#[tokio::test]
async fn what_an_actor_sent_last_leaves_although_the_actor_has_gone() {
    let hub = Hub::start().await;
    for message_at_the_end in [false, true] {
        let mut device = hub.device(&hub.ca);
        let mut peer = hub.accept_until_ready(&mut device).await;
        if message_at_the_end {
            peer.publish("$iothub/methods/POST/lockDoor/?$rid=a", "").await;
        }
        device.send(telemetry(9, 256 * 1024)).await;
        let Device { connection, from_hub, to_hub, .. } = device;
        drop((from_hub, to_hub));
        assert_eq!(peer.published().await.payload.len(), 256 * 1024);
        assert_eq!(peer.next().await, Packet::Disconnect);
        soon(connection.task).await.expect("a clean end");
    }
}

#[tokio::test]
async fn an_actor_that_begins_anew_gets_a_new_connection() {
    let hub = Hub::start().await;
    let mut device = hub.device(&hub.ca);
    let mut peer = hub.accept_until_ready(&mut device).await;
    device.send(ToHub::Reconnect { after: Duration::ZERO }).await;
    assert_eq!(peer.next().await, Packet::Disconnect);
    let reason = "the device's actor begins anew".to_owned();
    assert_eq!(device.next().await, FromHub::Disconnected { reason });
    drop(peer);
    hub.accept_until_ready(&mut device).await;
}

#[tokio::test]
async fn acknowledgements_find_their_messages_in_any_order() {
    let hub = Hub::start().await;
    let mut device = hub.device(&hub.ca);
    let mut peer = hub.accept_until_ready(&mut device).await;
    let mut packet_ids = Vec::new();
    for token in 100..110 {
        device.send(telemetry(token, 10)).await;
        let Packet::Publish(publish) = peer.next().await else { panic!("no publish") };
        assert_eq!(publish.topic, format!("devices/d1/messages/events/%24.mid=m{token}"));
        packet_ids.push((publish.pkid, token));
    }
    for (packet_id, token) in packet_ids.into_iter().rev() {
        peer.send(Packet::PubAck(PubAck::new(packet_id))).await;
        assert_eq!(device.next().await, FromHub::TelemetryTaken { token });
    }
}

#[tokio::test]
async fn a_message_is_acknowledged_only_when_the_actor_has_dealt_with_it() {
    let hub = Hub::start().await;
    let mut device = hub.device(&hub.ca);
    let mut peer = hub.accept_until_ready(&mut device).await;
    device.send(ToHub::SubscribeMessages).await;
    let Packet::Subscribe(subscribe) = peer.next().await else { panic!("no subscription") };
    assert_eq!(subscribe.filters[0].path, "devices/d1/messages/devicebound/#");
    assert_eq!(subscribe.filters[0].qos, QoS::AtLeastOnce);

    for packet_id in 1..=20 {
        let topic = format!("devices/d1/messages/devicebound/%24.mid=m{packet_id}");
        peer.send(Packet::Publish(Publish { pkid: packet_id, ..Publish::new(topic, QoS::AtLeastOnce, "x") })).await;
    }
    let method = Publish::new("$iothub/methods/POST/lockDoor/?$rid=a", QoS::AtLeastOnce, "");
    peer.send(Packet::Publish(Publish { pkid: 21, ..method })).await;

    let mut tokens = Vec::new();
    for packet_id in 1..=20_u16 {
        let FromHub::Message { token, message } = device.next().await else { panic!("no message") };
        let expected = CloudMessage { message_id: Some(format!("m{packet_id}")), ..CloudMessage::default() };
        assert_eq!(*message, CloudMessage { body: b"x".to_vec(), ..expected });
        tokens.push((token, packet_id));
    }
    assert!(matches!(device.next().await, FromHub::Method { .. }));
    assert_eq!(peer.next().await, Packet::PubAck(PubAck::new(21)), "not held up by the messages before it");
    for (token, packet_id) in tokens.into_iter().rev() {
        device.send(ToHub::MessageTaken { token }).await;
        assert_eq!(peer.next().await, Packet::PubAck(PubAck::new(packet_id)));
    }
}

#[tokio::test]
async fn nothing_is_lost_while_either_side_is_slow() {
    let hub = Hub::start().await;
    let mut device = hub.device(&hub.ca);
    let mut peer = hub.accept_until_ready(&mut device).await;
    let versions = 2..1000;
    for version in versions.clone() {
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
        peer.publish(&topic, &json!({"$version": version}).to_string()).await;
    }
    for version in versions {
        assert_eq!(device.next().await, FromHub::Desired { version, patch: Map::new() });
    }

    // More than fits into every queue on the way, against a hub that acknowledges only afterwards.
    let to_hub = device.to_hub.clone();
    let sender = tokio::spawn(async move {
        for token in 0..200 {
            to_hub.send(telemetry(token, 10)).await.expect("a task");
        }
    });
    for token in 0..200 {
        peer.published().await;
        assert_eq!(device.next().await, FromHub::TelemetryTaken { token });
    }
    soon(sender).await.expect("all sent");
}

#[tokio::test]
async fn a_refusal_shows_in_the_state() {
    let hub = Hub::start().await;
    let mut device = hub.device(&hub.ca);
    let (mut peer, _) = hub.accept().await;
    assert_eq!(device.connects.available_permits(), 0, "held until the CONNACK");
    peer.send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::NotAuthorized, false))).await;
    let (refused, reason) = device.failure().await;
    assert!(refused && reason.contains("CONNACK 5"), "{reason}");
    device
        .send(ToHub::MethodResponse { rid: RequestId::parse("a").expect("an id"), status: 1, payload: "1".into() })
        .await;
    device.cancel.cancel();
    soon(&mut device.connection.task).await.expect("a clean end");
}

#[tokio::test]
async fn what_prevents_a_connection_is_named() {
    let (hub, other) = (Hub::start().await, Hub::start().await);
    let mut device = hub.device(&other.ca);
    let (socket, _) = soon(hub.listener.accept()).await.expect("a connection");
    assert!(soon(hub.acceptor.accept(socket)).await.is_err());
    let (refused, reason) = device.failure().await;
    assert!(!refused && reason.contains("is not from a CA that is trusted here"), "{reason}");

    let port = other.listener.local_addr().expect("an address").port();
    let ca = other.ca.clone();
    drop(other);
    let (_, reason) = device_at(port, &ca).failure().await;
    assert!(reason.contains(&format!("localhost:{port}")) && reason.contains("refused"), "{reason}");
}
