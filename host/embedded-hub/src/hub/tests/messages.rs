//! Cloud-to-device messages between back ends, the hub and a device.

use iothub_protocol::link::Feedback;

use super::*;
use crate::feedback;
use crate::queue::{Disposition, LOCK, MAX_DELIVERY_COUNT, MAX_DEPTH};

const TOPIC: &str = "devices/a/messages/devicebound/%24.mid=";
const TO: &str = "%24.to=%2Fdevices%2Fa%2Fmessages%2Fdevicebound";

fn message(message_id: &str) -> CloudMessage {
    CloudMessage { message_id: Some(message_id.to_owned()), body: b"hello".to_vec(), ..CloudMessage::default() }
}

/// The line of a delivery.
fn delivery(link: u64, packet: &str, message_id: &str) -> String {
    format!("{link} #{packet} {TOPIC}{message_id}&{TO} hello")
}

impl Fixture {
    fn send(&mut self, reply: u32, message: CloudMessage) {
        self.send_to(reply, "a", message, false);
    }

    fn send_to(&mut self, reply: u32, device: &str, message: CloudMessage, wait: bool) {
        self.request(reply, Operation::SendMessage { id: device_id(device), message: Box::new(message), wait });
    }

    /// Send `m1` and on, with this life and feedback, and forget the answers.
    fn queue(&mut self, count: usize, life: u64, feedback: Feedback) {
        for number in 1..=count {
            let expiry = Some(self.now.wall + Duration::from_secs(life));
            self.send(0, CloudMessage { expiry, feedback, ..message(&format!("m{number}")) });
        }
        self.heard();
        self.events.clear();
    }

    /// Connect device `a` with a subscription to its queue, and forget the answers.
    fn listen(&mut self, link: u64, granted: Granted) {
        self.connect_well(link, "a", 1);
        self.subscribe_as(link, Subscription::DeviceBound, granted);
    }

    fn acknowledge(&mut self, link: u64, packet_id: u16) {
        self.link(link, LinkInput::Acknowledged { packet_id });
    }

    fn close(&mut self, link: u64) {
        self.link(link, LinkInput::Closed { graceful: false });
    }

    /// The document that a request is answered with.
    fn ask(&mut self, operation: Operation) -> Value {
        self.outputs.clear();
        self.request(99, operation);
        match self.outputs.pop() {
            Some(Output::Reply(99, Ok(Answer::Document(document)))) => document,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(&mut self, operation: Operation) -> u32 {
        self.outputs.clear();
        self.request(99, operation);
        match self.outputs.pop() {
            Some(Output::Reply(99, Err(error))) => error.code.number(),
            other => panic!("{other:?}"),
        }
    }

    /// What feedback waits, as `message status`.
    fn feedback(&mut self) -> Vec<String> {
        let records = self.ask(Operation::ListFeedback);
        let records = records.as_array().expect("an array").iter();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        records
            .map(|record| format!("{} {}", text(&record["originalMessageId"]), text(&record["statusCode"])))
            .collect()
    }

    fn depth(&mut self) -> u64 {
        let identity = self.ask(Operation::GetIdentity(id("a")));
        let twin = self.ask(Operation::GetTwin(id("a")));
        assert_eq!(identity["cloudToDeviceMessageCount"], twin["cloudToDeviceMessageCount"]);
        identity["cloudToDeviceMessageCount"].as_u64().expect("a number")
    }
}

#[test]
fn a_message_is_stored_then_sent_then_acknowledged() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.heard();
    hub.changes.clear();
    hub.send(7, message("m1"));
    assert_eq!(hub.heard(), ["reply 7 ok".to_owned(), delivery(1, "1", "m1")]);
    assert_eq!(std::mem::take(&mut hub.changes), ["message a 1 0"]);
    assert_eq!(hub.depth(), 1);
    hub.acknowledge(1, 2);
    assert_eq!(hub.depth(), 1, "another packet");
    hub.acknowledge(1, 1);
    assert_eq!(hub.changes, ["message gone a 1"]);
    assert_eq!(hub.depth(), 0);
    assert_eq!(hub.events[1..], ["queued", "settled"]);
    assert_eq!(hub.feedback(), [""; 0], "nobody asked for it");
}

#[test]
fn messages_wait_for_the_device_and_its_subscription_in_order() {
    let mut hub = Fixture::new();
    hub.queue(2, 3600, Feedback::None);
    hub.connect_well(1, "a", 1);
    assert_eq!(hub.heard(), ["1 Accepted { session_present: false }"]);
    hub.subscribe_as(1, Subscription::DeviceBound, Granted::AtLeastOnce);
    let heard = hub.heard();
    assert!(heard[0].starts_with("1 SubAck"), "{heard:?}");
    assert!(heard[1].contains("m1") && heard[2].contains("m2"), "{heard:?}");
    // Once more, as the Node SDK does: nothing that is in the device's hand comes twice.
    hub.subscribe_as(1, Subscription::DeviceBound, Granted::AtLeastOnce);
    assert_eq!(hub.heard().len(), 1);
    hub.acknowledge(1, 1);
    hub.close(1);
    // The subscription was kept: what was not acknowledged comes at once.
    hub.connect_well(2, "a", 1);
    let heard = hub.heard();
    assert!(heard[0].contains("Accepted") && heard[1].starts_with("2 #2 again devices/a/"), "{heard:?}");
    assert_eq!(heard.len(), 2, "{heard:?}");
}

#[test]
fn a_clean_session_gets_the_queue_with_its_own_subscription() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.close(1);
    hub.queue(1, 3600, Feedback::None);
    let credentials = with_token(hub.token("a", 1));
    hub.connect_as(2, ConnectRequest { address: id("a"), credentials, clean_session: true, will: None, model: None });
    assert_eq!(hub.heard().len(), 1, "it has subscribed to nothing");
    hub.subscribe_as(2, Subscription::DeviceBound, Granted::AtLeastOnce);
    assert_eq!(hub.heard().len(), 2);
}

#[test]
fn qos_0_completes_a_message_by_sending_it() {
    let mut hub = Fixture::new();
    hub.queue(2, 3600, Feedback::Full);
    hub.listen(1, Granted::AtMostOnce);
    let heard = hub.heard();
    let plain = |number: u32| heard.iter().any(|line| line.starts_with(&format!("1 {TOPIC}m{number}&")));
    assert!(plain(1) && plain(2), "{heard:?}");
    assert_eq!(hub.depth(), 0);
    assert_eq!(hub.feedback(), ["m1 Success", "m2 Success"]);
}

#[test]
fn a_lock_runs_out_and_the_message_comes_again() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.send(0, message("m1"));
    hub.heard();
    let due = hub.hub.deadline(hub.now).expect("a deadline");
    assert_eq!(due, hub.now.steady + LOCK);
    hub.advance(LOCK.as_secs() - 1);
    assert_eq!(hub.heard(), [""; 0]);
    hub.advance(1);
    assert_eq!(hub.heard(), [delivery(1, "1 again", "m1")]);
    assert_eq!(hub.ask(Operation::ListMessages(device_id("a")))[0]["deliveryCount"], 0);
}

#[test]
fn a_link_that_ends_counts_and_too_many_end_the_message() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.queue(1, 2 * 24 * 3600, Feedback::Negative);
    hub.changes.clear();
    // By its end, or by another that takes its place.
    for count in 1..u64::from(MAX_DELIVERY_COUNT) {
        if count % 2 == 0 {
            hub.close(count);
        }
        hub.connect_well(count + 1, "a", 1);
        assert_eq!(std::mem::take(&mut hub.changes), [format!("message a 1 {count}")]);
        assert!(hub.heard().iter().any(|line| line.starts_with(&format!("{} #1 again", count + 1))), "{count}");
    }
    hub.close(10);
    assert_eq!(hub.changes, ["message gone a 1", "feedback 1 DeliveryCountExceeded"]);
    assert_eq!(hub.feedback(), ["m1 DeliveryCountExceeded"]);
    assert_eq!(hub.depth(), 0);
}

#[test]
fn messages_expire_and_tell_whoever_asked() {
    let mut hub = Fixture::new();
    for (message_id, life, feedback) in [
        ("m1", 10, Feedback::Full),
        ("m2", 10, Feedback::Negative),
        ("m3", 10, Feedback::Positive),
        ("m4", 10, Feedback::None),
        ("m5", 20, Feedback::Full),
    ] {
        let expiry = Some(hub.now.wall + Duration::from_secs(life));
        hub.send(0, CloudMessage { expiry, feedback, ..message(message_id) });
    }
    hub.send(0, CloudMessage { feedback: Feedback::Full, ..message("m6") });
    assert_eq!(hub.hub.deadline(hub.now), Some(hub.now.steady + Duration::from_secs(10)));
    hub.advance(9);
    assert_eq!(hub.depth(), 6);
    hub.advance(1);
    assert_eq!(hub.feedback(), ["m1 Expired", "m2 Expired"]);
    hub.advance(10);
    assert_eq!(hub.depth(), 1);
    hub.advance(3600 - 20 - 1);
    assert_eq!(hub.depth(), 1, "an hour is the default");
    hub.advance(1);
    assert_eq!(hub.depth(), 0);
    // That of the first two waited for an hour since they expired, that of m5 for ten seconds less.
    assert_eq!(hub.feedback(), ["m1 Expired", "m2 Expired", "m5 Expired", "m6 Expired"]);
    hub.advance(feedback::RETENTION.as_secs() - 3590);
    assert_eq!(hub.feedback(), ["m5 Expired", "m6 Expired"]);
}

#[test]
fn a_queue_is_bounded_and_what_has_expired_makes_room() {
    let mut hub = Fixture::new();
    hub.queue(MAX_DEPTH, 10, Feedback::None);
    let send = || Operation::SendMessage { id: device_id("a"), message: Box::new(message("late")), wait: false };
    assert_eq!(hub.refusal(send()), 403_004);
    assert_eq!(hub.depth(), MAX_DEPTH as u64);
    // The clock has moved, and nobody has told the hub yet.
    hub.now.wall += Duration::from_secs(10);
    assert_eq!(hub.ask(send())["messageId"], "late");
    assert_eq!(hub.depth(), 1);
}

#[test]
fn what_is_no_message_is_refused_with_its_code() {
    let mut hub = Fixture::new();
    let now = hub.now.wall;
    let with = |change: &dyn Fn(&mut CloudMessage)| {
        let mut message = message("m1");
        change(&mut message);
        message
    };
    let property = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let size = 64 * 1024;
    for (message, code) in [
        (with(&|m| m.body = vec![0; size - 2]), None),
        (with(&|m| m.body = vec![0; size - 1]), Some(413_001)),
        (with(&|m| m.properties = property("k", &"v".repeat(size - 8))), Some(413_001)),
        (with(&|m| m.properties = property("k", &"v".repeat(size / 2))), None),
        // Within the limit, but three times as long once it is encoded.
        (with(&|m| m.properties = property("k", &"é".repeat(size / 4))), Some(413_001)),
        (with(&|m| m.properties = property("", "v")), Some(400_004)),
        (with(&|m| m.properties = property("$.mid", "v")), Some(400_004)),
        (with(&|m| m.properties = property("iothub-ack", "full")), Some(400_004)),
        (with(&|m| m.message_id = Some(String::new())), Some(400_004)),
        (with(&|m| m.message_id = Some("x".repeat(129))), Some(400_004)),
        (with(&|m| m.message_id = Some("a b".into())), Some(400_004)),
        (with(&|m| m.message_id = None), None),
        (with(&|m| m.expiry = Some(now)), Some(403_009)),
        (with(&|m| m.expiry = Some(now + Duration::from_secs(2 * 24 * 3600))), None),
        (with(&|m| m.expiry = Some(now + Duration::from_secs(2 * 24 * 3600 + 1))), Some(403_009)),
    ] {
        let shown = format!("{:?} {:?}", message.message_id, message.expiry);
        hub.outputs.clear();
        hub.send(1, message);
        let answer = code.map_or("reply 1 ok".to_owned(), |code| format!("reply 1 {code}"));
        assert_eq!(hub.heard(), [answer], "{shown}");
    }
    hub.send_to(2, "nobody", message("m1"), true);
    hub.request(3, Operation::ListMessages(device_id("nobody")));
    hub.request(4, Operation::PurgeMessages(device_id("nobody")));
    assert_eq!(hub.heard(), ["reply 2 404001", "reply 3 404001", "reply 4 404001"]);
}

#[test]
fn all_queues_together_are_bounded() {
    let mut hub = Fixture::new();
    let full = Operation::SendMessage {
        id: device_id("a"),
        message: Box::new(CloudMessage { body: vec![0; 60 * 1024], ..CloudMessage::default() }),
        wait: false,
    };
    hub.ask(full);
    let held = hub.hub.queued_bytes;
    assert!((60 * 1024..61 * 1024).contains(&held), "{held}");
    hub.ask(Operation::PurgeMessages(device_id("a")));
    assert_eq!(hub.hub.queued_bytes, 0);
    hub.hub.queued_bytes = 256 * 1024 * 1024;
    hub.send(1, message("m1"));
    assert_eq!(hub.heard(), ["reply 1 403002"]);
}

#[test]
fn a_purge_ends_everything_and_says_how_much() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.queue(3, 3600, Feedback::Negative);
    let purged = hub.ask(Operation::PurgeMessages(device_id("a")));
    assert_eq!(purged, json!({"totalMessagesPurged": 3, "deviceId": "a", "moduleId": null}));
    assert_eq!(hub.feedback(), ["m1 Purged", "m2 Purged", "m3 Purged"]);
    hub.acknowledge(1, 1);
    assert_eq!(hub.feedback().len(), 3, "it comes too late");
    assert_eq!(hub.ask(Operation::PurgeMessages(device_id("a")))["totalMessagesPurged"], 0);
    assert_eq!(hub.ask(Operation::ListMessages(device_id("a"))), json!([]));
}

#[test]
fn a_deleted_device_takes_its_queue_and_feedback_along() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.queue(2, 3600, Feedback::Full);
    hub.acknowledge(1, 1);
    hub.send_to(5, "a", message("waited-for"), true);
    hub.heard();
    hub.changes.clear();
    hub.request(6, Operation::DeleteIdentity { id: id("a"), if_match: None });
    let heard = hub.heard();
    assert!(heard.contains(&"reply 5 404001".to_owned()) && heard.contains(&"reply 6 ok".to_owned()), "{heard:?}");
    assert_eq!(hub.changes, ["deleted a", "feedback gone 1"]);
    assert_eq!(hub.hub.queued_bytes, 0);
    hub.put(7, "a", None);
    assert_eq!((hub.depth(), hub.feedback()), (0, vec![]));
    assert_eq!(hub.hub.deadline(hub.now), None);
}

#[test]
fn whoever_waits_for_the_end_hears_of_it() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.heard();
    hub.send_to(1, "a", message("m1"), true);
    assert_eq!(hub.heard(), [delivery(1, "1", "m1")], "no answer yet");
    hub.acknowledge(1, 1);
    match hub.outputs.pop() {
        Some(Output::Reply(1, Ok(Answer::Document(ended)))) => {
            assert_eq!((&ended["messageId"], &ended["statusCode"]), (&json!("m1"), &json!("Success")));
        }
        other => panic!("{other:?}"),
    }
    hub.send_to(2, "a", message("m2"), true);
    hub.heard();
    hub.request(3, Operation::PurgeMessages(device_id("a")));
    assert_eq!(hub.heard(), ["reply 2 ok", "reply 3 ok"]);
    assert!(hub.hub.waiters.is_empty());
}

#[test]
fn a_list_shows_what_waits_and_what_is_out() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    let mut first = message("m1");
    first.properties = vec![("colour".into(), "red".into())];
    first.content_type = Some("application/json".into());
    first.body = b"{\"x\":1}".to_vec();
    first.feedback = Feedback::Full;
    hub.send(0, first);
    hub.link(1, LinkInput::Unsubscribe { pkid: 2, subscriptions: vec![Subscription::DeviceBound] });
    hub.send(0, CloudMessage { body: vec![0xff], ..message("m2") });
    let list = hub.ask(Operation::ListMessages(device_id("a")));
    assert_eq!(
        list,
        json!([
            {
                "deviceId": "a", "sequence": 1, "messageId": "m1", "state": "invisible", "deliveryCount": 0,
                "enqueuedTimeUtc": "2027-01-15T08:00:00.000Z", "expiryTimeUtc": "2027-01-15T09:00:00.000Z",
                "correlationId": null, "userId": null, "contentType": "application/json", "contentEncoding": null,
                "ack": "full", "properties": {"colour": "red"}, "size": 7, "body": {"x": 1},
            },
            {
                "deviceId": "a", "sequence": 2, "messageId": "m2", "state": "enqueued", "deliveryCount": 0,
                "enqueuedTimeUtc": "2027-01-15T08:00:00.000Z", "expiryTimeUtc": "2027-01-15T09:00:00.000Z",
                "correlationId": null, "userId": null, "contentType": null, "contentEncoding": null,
                "ack": "none", "properties": {}, "size": 1, "bodyBase64": "/w==",
            },
        ])
    );
}

#[test]
fn feedback_is_taken_under_a_lock() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtMostOnce);
    hub.queue(2, 3600, Feedback::Full);
    let taken = hub.ask(Operation::ReceiveFeedback { token: 1 });
    assert_eq!(taken.as_array().map(Vec::len), Some(2));
    assert_eq!(taken[0]["originalMessageId"], "m1");
    assert_eq!(taken[0]["deviceGenerationId"].as_str().map(str::len), Some(18));
    assert_eq!(hub.ask(Operation::ReceiveFeedback { token: 2 }), json!([]));
    hub.changes.clear();
    let settle = |token, disposition| Operation::SettleFeedback { token, disposition };
    assert_eq!(hub.refusal(settle(2, Disposition::Complete)), 412_002);
    hub.request(3, settle(1, Disposition::Abandon));
    assert_eq!(hub.refusal(settle(1, Disposition::Abandon)), 412_002);
    assert_eq!(hub.changes, [""; 0]);
    hub.ask(Operation::ReceiveFeedback { token: 4 });
    hub.request(5, settle(4, Disposition::Complete));
    assert_eq!(hub.changes, ["feedback gone 1", "feedback gone 2"]);
    assert_eq!(hub.feedback(), [""; 0]);
}

#[test]
fn a_restarted_hub_goes_on_with_what_was_stored() {
    let mut hub = Fixture::new();
    hub.listen(1, Granted::AtLeastOnce);
    hub.queue(2, 10, Feedback::Full);
    let devices = std::mem::take(&mut hub.hub.entities).into_values().map(|device| {
        let stored = device.queue.messages().iter().map(|queued| {
            Queued::new(queued.sequence, queued.packet_id, queued.message.clone(), queued.enqueued, queued.expiry)
        });
        Entity::new(device.identity, Twin::clone(&device.twin), device.subscriptions, Queue::restored(stored.collect()))
    });
    let held = hub.hub.queued_bytes;
    hub.hub = Hub::new(vec![], devices.collect(), FeedbackQueue::default());
    assert_eq!(hub.hub.queued_bytes, held);
    assert_eq!(hub.hub.deadline(hub.now), Some(hub.now.steady + Duration::from_secs(10)));
    hub.connect_well(1, "a", 1);
    let heard = hub.heard();
    assert_eq!(heard[1..], [delivery_with_expiry(&heard[1], 1), delivery_with_expiry(&heard[2], 2)]);
    hub.acknowledge(1, 1);
    hub.close(1);
    hub.advance(10);
    assert_eq!(hub.feedback(), ["m1 Success", "m2 Expired"]);
}

/// The line itself, if it is the delivery of that message.
fn delivery_with_expiry(line: &str, number: u32) -> String {
    assert!(line.starts_with(&format!("1 #{number} {TOPIC}m{number}&{TO}&%24.exp=")), "{line}");
    line.to_owned()
}
