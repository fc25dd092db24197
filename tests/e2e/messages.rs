//! Cloud-to-device messages: from the command line through the hub to a device, whatever happens between.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe};
use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok, wait_until};
use crate::mqtt::{Link, connect_packet, connection};

const DEVICE: &str = "door-0001";
/// From what a device said to what the hub shows of it.
const SEEN_BOUND: Duration = Duration::from_secs(20);

fn hub(data: &Path) -> Latch {
    Latch::start(data, &[&["hub", "--devices", "1"], FREE_PORTS].concat())
}

/// The device, connected with a session that is kept.
fn device(data: &Path) -> Link {
    let connection = connection(data, DEVICE);
    let mut link = Link::open(data, &connection);
    link.send(Packet::Connect(Connect { clean_session: false, ..connect_packet(&connection) }));
    assert_eq!(link.connack(), Some(ConnectReturnCode::Success));
    link
}

fn subscribe(link: &mut Link, qos: QoS) {
    let filter = format!("devices/{DEVICE}/messages/devicebound/#");
    link.send(Packet::Subscribe(Subscribe { pkid: 1, ..Subscribe::new(filter, qos) }));
    assert!(matches!(link.receive(), Some(Packet::SubAck(_))));
}

fn message(link: &mut Link) -> Publish {
    match link.receive() {
        Some(Packet::Publish(publish)) => publish,
        other => panic!("instead of a message the hub sends {other:?}"),
    }
}

fn body(publish: &Publish) -> String {
    String::from_utf8_lossy(&publish.payload).into_owned()
}

fn queue(data: &Path) -> Vec<Value> {
    latch_json(data, &["message", "list", DEVICE]).as_array().expect("an array").clone()
}

/// The feedback that waits: which message, and how it ended.
fn feedback(data: &Path) -> Vec<(String, String)> {
    let lines = latch_ok(data, &["message", "feedback", "--json"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    records.map(|record| (text(&record["originalMessageId"]), text(&record["statusCode"]))).collect()
}

fn ended(message_id: &str, status: &str) -> (String, String) {
    (message_id.to_owned(), status.to_owned())
}

#[test]
fn a_message_waits_for_its_device_through_the_death_of_the_hub() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let first = hub(data);
    let ports = first.same_ports();
    for (number, ack) in [("1", "full"), ("2", "none"), ("3", "full")] {
        let message_id = format!("m{number}");
        let send = ["message", "send", DEVICE, number, "--message-id", &message_id, "--ack", ack];
        assert!(latch_ok(data, &send).starts_with(&format!("{message_id} queued until ")));
    }
    let mut link = device(data);
    subscribe(&mut link, QoS::AtLeastOnce);
    let (one, two) = (message(&mut link), message(&mut link));
    assert_eq!((body(&one), body(&two)), ("1".into(), "2".into()));
    link.send(Packet::PubAck(PubAck::new(one.pkid)));
    wait_until("m1 is completed", SEEN_BOUND, || (queue(data).len() == 2).then_some(()));
    first.kill();

    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let second = Latch::start(data, &[&["hub"], &ports[..]].concat());
    assert_eq!(feedback(data), [ended("m1", "Success")], "it had been told");
    assert_eq!(latch_json(data, &["device", "show", DEVICE])["cloudToDeviceMessageCount"], json!(2));
    // Its subscription is kept as well.
    let mut link = device(data);
    let (two_again, three) = (message(&mut link), message(&mut link));
    assert_eq!((body(&two_again), body(&three)), ("2".into(), "3".into()));
    assert_eq!(two_again.pkid, two.pkid);
    drop(link);

    // A link that ends with messages in hand gives them back, and that is counted.
    let given_back = || queue(data).iter().all(|message| message["deliveryCount"] == 1).then_some(());
    wait_until("both are given back", SEEN_BOUND, given_back);
    let mut link = device(data);
    let (two, three) = (message(&mut link), message(&mut link));
    assert!(two.dup && three.dup);
    link.send(Packet::PubAck(PubAck::new(three.pkid)));
    wait_until("m3 is completed", SEEN_BOUND, || (queue(data).len() == 1).then_some(()));
    assert_eq!(latch_ok(data, &["message", "purge", DEVICE]), format!("purged 1 message of {DEVICE}\n"));
    assert_eq!(feedback(data), [ended("m1", "Success"), ended("m3", "Success")], "m2 asked for none");
    assert!(second.stop().success());
}

#[test]
fn a_message_arrives_with_all_that_was_said_about_it() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = hub(data);
    let mut link = device(data);
    subscribe(&mut link, QoS::AtMostOnce);
    let file = data.join("body.bin");
    let bytes: Vec<u8> = (0..=255).collect();
    std::fs::write(&file, &bytes).expect("written");
    let options = [
        ["--file", file.to_str().expect("a readable name")],
        ["--property", "colour=dark red"],
        ["--property", "empty="],
        ["--content-type", "application/octet-stream"],
        ["--content-encoding", "utf-8"],
        ["--message-id", "m-1"],
        ["--correlation-id", "c 1"],
        ["--user-id", "ann"],
        ["--ack", "positive"],
    ];
    // QoS 0: it is completed by being sent, so that waiting for its end needs nothing of the device.
    let send = [&["message", "send", DEVICE, "--wait"], options.as_flattened()].concat();
    assert_eq!(latch_ok(data, &send), "m-1 Success\n");
    let arrived = message(&mut link);
    assert_eq!((&arrived.payload[..], arrived.qos), (&bytes[..], QoS::AtMostOnce));
    let bag = "%24.mid=m-1&%24.to=%2Fdevices%2Fdoor-0001%2Fmessages%2Fdevicebound&%24.cid=c%201&%24.uid=ann\
               &%24.ct=application%2Foctet-stream&%24.ce=utf-8&iothub-ack=positive&colour=dark%20red&empty=";
    assert_eq!(arrived.topic, format!("devices/{DEVICE}/messages/devicebound/{bag}"));
    assert_eq!(feedback(data), [ended("m-1", "Success")]);
    let events = latch_ok(data, &["events", "--kind", "queued,settled"]);
    let events: Vec<_> = events.lines().map(|line| line.split_once(' ').expect("a time").1).collect();
    assert_eq!(events, ["door-0001 queued m-1", "door-0001 settled m-1 Success"]);
}

#[test]
fn whoever_waits_hears_how_the_message_ended() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = hub(data);
    let expired = latch(data, &["message", "send", DEVICE, "x", "--message-id", "m1", "--expiry", "1", "--wait"]);
    assert_eq!((expired.code, expired.stdout.as_str()), (Some(4), "m1 Expired\n"), "{expired:#?}");
    let mut link = device(data);
    subscribe(&mut link, QoS::AtLeastOnce);
    let folder = data.to_owned();
    let waiting = thread::spawn(move || latch(&folder, &["message", "send", DEVICE, "x", "--wait", "--json"]));
    let arrived = message(&mut link);
    assert!(!waiting.is_finished(), "it has not been completed");
    link.send(Packet::PubAck(PubAck::new(arrived.pkid)));
    let outcome = waiting.join().expect("no panic");
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
    let answer: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!((&answer["statusCode"], &answer["deliveryCount"]), (&json!("Success"), &json!(0)));
}

#[test]
fn what_cannot_be_queued_is_refused_with_the_reason() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = hub(data);
    let too_large = data.join("large");
    std::fs::write(&too_large, vec![0; 64 * 1024 + 1]).expect("written");
    let too_large = too_large.to_str().expect("a readable name");
    let long = "x".repeat(64 * 1024);
    for (args, code, reason) in [
        (&["nobody", "x"][..], 1, "DeviceNotFound"),
        (&["a/b", "x"], 2, "a device id contains '/'"),
        (&[DEVICE, "x", "--message-id", "a b"], 1, "the message id contains ' '"),
        (&[DEVICE, "x", "--property", "$.mid=1"], 1, "the hub's own"),
        (&[DEVICE, "x", "--property", "a=1", "--property", "a=2"], 1, "there twice"),
        (&[DEVICE, "x", "--property", "a"], 2, "not NAME=VALUE"),
        (&[DEVICE, "x", "--expiry", "172801"], 2, "172800"),
        (&[DEVICE, "--file", too_large], 1, "at most 65536"),
        (&[DEVICE, "--file", "/nowhere"], 1, "cannot read /nowhere"),
        (&[DEVICE, &long], 1, "MessageTooLarge"),
        (&[DEVICE, "x", "--file", too_large], 2, "cannot be used with"),
    ] {
        let outcome = latch(data, &[&["message", "send"], args].concat());
        assert_eq!(outcome.code, Some(code), "{:?}: {}", args.get(2), outcome.stderr);
        assert!(outcome.stderr.contains(reason), "{:?}: {}", args.get(2), outcome.stderr);
    }
    assert_eq!(queue(data), [json!(null); 0]);
    for _ in 0..50 {
        latch_ok(data, &["message", "send", DEVICE, "x"]);
    }
    let full = latch(data, &["message", "send", DEVICE, "x"]);
    assert_eq!(full.code, Some(1), "{full:#?}");
    assert!(full.stderr.contains("DeviceMaximumQueueDepthExceeded") && full.stderr.contains("purge"), "{full:#?}");
    assert_eq!(queue(data).len(), 50);
}
