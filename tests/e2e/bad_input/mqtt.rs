//! Bad clients on the hub's MQTT port. The protocol has no words for an error, so the hub closes the connection.

use std::io::{Read as _, Write as _};

use chrono::{TimeDelta, Utc};
use iothub_protocol::sas::SharedKey;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PingReq, Publish, Subscribe};
use tempfile::TempDir;

use super::assert_healthy;
use crate::harness::{FREE_PORTS, Latch};
use crate::mqtt::{Link, connect_packet, connection, is_close, tcp};

fn hub() -> (Latch, TempDir) {
    let data = tempfile::tempdir().expect("a temporary folder");
    let latch = Latch::start(data.path(), &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    (latch, data)
}

#[test]
fn devices_that_are_not_who_they_say() {
    let (_latch, data) = hub();
    let device = connection(data.path(), "door-0001");
    let other = connection(data.path(), "door-0002");
    let (host, resource) = (device.host.authority(), format!("{}/devices/door-0001", device.host.authority()));
    let good = || connect_packet(&device);
    let with = |change: &dyn Fn(&mut Connect)| {
        let mut packet = good();
        change(&mut packet);
        packet
    };
    let password = |text: String| {
        with(&|packet| {
            packet.set_login(format!("{host}/door-0001"), text.clone());
        })
    };
    let hour = Utc::now() + TimeDelta::hours(1);

    for (name, packet, code) in [
        (
            "a wrong key",
            password(SharedKey::from_random([7; 32]).sign(&resource, None, hour)),
            ConnectReturnCode::NotAuthorized,
        ),
        (
            "another device's key",
            password(other.key().expect("a key").sign(&resource, None, hour)),
            ConnectReturnCode::NotAuthorized,
        ),
        (
            "a token of the past",
            password(device.key().expect("a key").sign(&resource, None, Utc::now())),
            ConnectReturnCode::NotAuthorized,
        ),
        ("no token", password("hush".to_owned()), ConnectReturnCode::NotAuthorized),
        ("no login", with(&|packet| packet.login = None), ConnectReturnCode::NotAuthorized),
        (
            "an unknown device",
            with(&|packet| {
                packet.client_id = "nobody".to_owned();
                packet.set_login(format!("{host}/nobody"), device.key().expect("a key").sign(&host, None, hour));
            }),
            ConnectReturnCode::NotAuthorized,
        ),
        (
            "another's user name",
            with(&|packet| packet.client_id = "door-0002".to_owned()),
            ConnectReturnCode::BadClientId,
        ),
    ] {
        let mut link = Link::open(data.path(), &device);
        link.send(Packet::Connect(packet));
        assert_eq!(link.connack(), Some(code), "{name}");
        assert_eq!(link.receive(), None, "{name}");
        assert_healthy(data.path(), name);
    }
}

#[test]
fn packets_that_no_device_may_send() {
    let (_latch, data) = hub();
    let device = connection(data.path(), "door-0001");
    let events = "devices/door-0001/messages/events/";
    let publish = |topic: &str, qos, payload: Vec<u8>| {
        let mut publish = Publish::new(topic, qos, payload);
        publish.pkid = 1;
        Packet::Publish(publish)
    };
    let subscribe = |filter: &str| {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 1;
        Packet::Subscribe(subscribe)
    };

    // What a device may do, so that the refusals below are not of something else.
    let mut link = Link::connected(data.path(), &device);
    link.send(subscribe("$iothub/methods/POST/#"));
    assert!(matches!(link.receive(), Some(Packet::SubAck(ack)) if ack.pkid == 1));
    link.send(publish(events, QoS::AtLeastOnce, vec![b'x'; 200 << 10]));
    assert!(matches!(link.receive(), Some(Packet::PubAck(ack)) if ack.pkid == 1));
    drop(link);

    for (name, packet) in [
        ("another device's topic", publish("devices/door-0002/messages/events/", QoS::AtLeastOnce, b"{}".to_vec())),
        ("a topic of no meaning", publish("hello", QoS::AtMostOnce, b"{}".to_vec())),
        ("quality of service 2", publish(events, QoS::ExactlyOnce, b"{}".to_vec())),
        ("a message of 1 MiB", publish(events, QoS::AtLeastOnce, vec![b'x'; 1 << 20])),
        ("all topics", subscribe("#")),
        ("another device's messages", subscribe("devices/door-0002/messages/devicebound/#")),
        ("a second CONNECT", Packet::Connect(connect_packet(&device))),
        ("what only a hub says", Packet::PingResp),
    ] {
        let mut link = Link::connected(data.path(), &device);
        link.send(packet);
        assert_eq!(link.receive(), None, "{name}");
        assert_healthy(data.path(), name);
    }
}

#[test]
fn connections_that_are_no_mqtt() {
    let (_latch, data) = hub();
    let device = connection(data.path(), "door-0001");
    let mut ping = bytes::BytesMut::new();
    PingReq.write(&mut ping).expect("a packet");
    let nonsense = [
        ("garbage", &[0xff; 64][..]),
        ("a packet longer than allowed", &[0x10, 0xff, 0xff, 0xff, 0x7f]),
        ("a length without end", &[0x10, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ];
    for (name, bytes) in nonsense {
        let mut link = Link::connected(data.path(), &device);
        link.send_bytes(bytes);
        assert_eq!(link.receive(), None, "{name} after CONNECT");
        assert_healthy(data.path(), name);
    }
    let http = b"GET /devices?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
    for (name, bytes) in nonsense.into_iter().chain([("HTTP", &http[..]), ("a packet before CONNECT", &ping)]) {
        let mut link = Link::open(data.path(), &device);
        link.send_bytes(bytes);
        assert_eq!(link.receive(), None, "{name}");
        assert_healthy(data.path(), name);
    }
    let mut stream = tcp(&device);
    stream.write_all(&[b'x'; 4096]).expect("sent");
    let closed = stream.read_to_end(&mut Vec::new());
    assert!(closed.as_ref().map_or_else(is_close, |_| true), "no TLS: {closed:?}");
    assert_healthy(data.path(), "no TLS");
}
