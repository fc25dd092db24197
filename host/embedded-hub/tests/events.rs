//! Events as a back end reads them: over HTTPS, as a stream.

mod support;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, PubAck, Publish};
use serde_json::{Value, json};
use support::Service;

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().unwrap_or_default()).collect()
}

#[tokio::test]
async fn everything_that_happens_arrives_as_azure_says_it() {
    let hub = Service::new().await;
    let authorization = format!("Authorization: {}", hub.token("service"));
    let mut events = hub.events("/messages/events?api-version=2021-04-12", &[&authorization]).await;
    let mut device = hub.device("d1").await;
    device.publish("devices/d1/messages/events/%24.mid=m1&%24.ct=application%2Fjson&colour=red", r#"{"t":21}"#).await;
    device.report(&json!({"door": "open"})).await;
    let patch = r#"{"tags":{"site":"A"},"properties":{"desired":{"floor":3}}}"#;
    assert_eq!(hub.owner("PATCH /twins/d1", &[], patch).await.status, 200);
    let replacement = r#"{"tags":{"site":"B"},"properties":{"desired":{"floor":4}}}"#;
    assert_eq!(hub.owner("PUT /twins/d1", &[], replacement).await.status, 200);
    // Changes nothing, so that there is nothing to tell.
    assert_eq!(hub.owner("PATCH /twins/d1", &[], r#"{"properties":{"desired":{}}}"#).await.status, 200);
    device.leave().await;
    assert_eq!(hub.owner("DELETE /devices/d1", &[], "").await.status, 204);

    let mut seen = Vec::new();
    for _ in 0..8 {
        seen.push(events.next().await);
    }
    let expected = ["created", "connected", "telemetry", "reported", "updated", "replaced", "disconnected", "deleted"];
    assert_eq!(kinds(&seen), expected);
    let [created, connected, telemetry, reported, updated, replaced, disconnected, deleted] =
        seen.try_into().expect("eight");

    let new = json!({"$lastUpdated": created["body"]["properties"]["desired"]["$metadata"]["$lastUpdated"]});
    let section = json!({"$metadata": new, "$version": 1});
    let properties = json!({"desired": section, "reported": section});
    let body = json!({"deviceId": "d1", "etag": "AAAAAAAAAAE=", "version": 1, "properties": properties});
    assert_eq!((&created["body"], &created["properties"]["opType"]), (&body, &json!("createDeviceIdentity")));

    assert_eq!((&telemetry["body"], &telemetry["properties"]), (&json!({"t": 21}), &json!({"colour": "red"})));
    let system = &telemetry["systemProperties"];
    assert_eq!((&system["message-id"], &system["content-type"]), (&json!("m1"), &json!("application/json")));
    assert_eq!(system["iothub-message-source"], json!("Telemetry"));
    let auth = system["iothub-connection-auth-method"].as_str().expect("a text");
    assert!(auth.contains(r#""scope":"device","type":"sas""#), "{auth}");
    let generation = system["iothub-connection-auth-generation-id"].as_str().expect("a text");
    assert_eq!(generation.len(), 18, "{generation}");

    assert_eq!(reported["body"]["properties"]["reported"]["door"], json!("open"));
    assert_eq!(reported["body"]["properties"]["reported"]["$version"], json!(2));
    assert_eq!(
        (&updated["properties"]["opType"], &updated["body"]["tags"]),
        (&json!("updateTwin"), &json!({"site": "A"}))
    );
    let desired = &updated["body"]["properties"]["desired"];
    assert_eq!((&desired["floor"], &desired["$metadata"]["floor"]["$lastUpdatedVersion"]), (&json!(3), &json!(2)));
    assert_eq!(replaced["properties"]["opType"], json!("replaceTwin"));
    assert_eq!((&replaced["body"]["deviceId"], &replaced["body"]["version"]), (&json!("d1"), &json!(3)));
    assert_eq!(replaced["body"]["properties"]["reported"]["door"], json!("open"), "the twin whole");
    assert_eq!(deleted["body"]["tags"], json!({"site": "B"}));
    let number = |event: &Value| event["body"]["sequenceNumber"].as_str().expect("a number").to_owned();
    assert!(number(&connected) < number(&disconnected));
    for event in [&created, &connected, &reported, &updated, &replaced, &disconnected, &deleted] {
        assert_eq!((&event["deviceId"], &event["properties"]["deviceId"]), (&json!("d1"), &json!("d1")), "{event}");
        assert!(event["systemProperties"]["iothub-enqueuedtime"].is_u64(), "{event}");
    }
    hub.hub.stop().await;
    assert_eq!(events.frame().await, None, "the stream ends with the hub, at once");
}

#[tokio::test]
async fn readers_get_what_they_asked_for_and_go_on_where_they_were() {
    let hub = Service::new().await;
    let authorization = format!("Authorization: {}", hub.token("service"));
    for id in ["door-1", "door-2", "lamp-1"] {
        hub.device(id).await.leave().await;
    }
    let all = "/messages/events?since=1970-01-01T00:00:00Z";
    let mut doors = hub.events(&format!("{all}&device=door-*&kind=connected,lifecycle"), &[&authorization]).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(doors.next().await);
    }
    assert_eq!(kinds(&seen), ["created", "connected", "created", "connected"]);
    assert_eq!(seen[3]["deviceId"], json!("door-2"));

    let last = format!("Last-Event-ID: {}", seen[3]["id"].as_str().expect("an id"));
    let mut resumed = hub.events("/messages/events?kind=lifecycle", &[&authorization, &last]).await;
    let frame = resumed.frame().await.expect("an event");
    assert!(frame.starts_with("id: ") && frame.contains(r#""deviceId":"lamp-1""#), "{frame}");

    // The key outlives the hub, the events do not, and the reader is told.
    let hub = hub.restart().await;
    let authorization = format!("Authorization: {}", hub.token("service"));
    let mut after = hub.events("/messages/events", &[&authorization, &last]).await;
    let gap = after.frame().await.expect("a gap");
    assert!(gap.starts_with("event: gap\ndata: ") && gap.contains("restarted"), "{gap}");
    hub.device("door-1").await.leave().await;
    assert_eq!(after.next().await["kind"], json!("connected"));
    hub.hub.stop().await;
}

#[tokio::test]
async fn who_may_not_or_asks_wrongly_is_refused() {
    let hub = Service::new().await;
    let path = "GET /messages/events";
    for (policy, expected) in
        [("registryReadWrite", "IotHubUnauthorizedAccess"), ("device", "IotHubUnauthorizedAccess")]
    {
        let refused = hub.with_token(&hub.token(policy), path, &[], "").await;
        assert_eq!((refused.status, refused.error().as_str()), (401, expected));
    }
    assert_eq!(hub.plain(path, &[], b"").await.error(), "IotHubUnauthorized");
    for query in ["kind=twins", "since=yesterday", "after=x", "kind=twin&kind=twin"] {
        let refused = hub.owner(&format!("{path}?{query}"), &[], "").await;
        assert_eq!((refused.status, refused.error().as_str()), (400, "ArgumentInvalid"), "{query}");
    }
    // What a browser's EventSource can send.
    let token: String = hub.token("service").bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut events = hub.events(&format!("/messages/events?token={token}"), &["Origin: null"]).await;
    hub.device("d1").await;
    assert_eq!(events.next().await["kind"], json!("created"));
    let refused = hub.owner(&format!("{path}?token=x"), &[], "").await;
    assert_eq!(refused.status, 401, "the token that was given counts");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_told_how_far() {
    let hub = Service::new().await;
    let authorization = format!("Authorization: {}", hub.token("service"));
    let mut device = hub.device("d1").await;
    let mut events = hub.events("/messages/events?kind=telemetry", &[&authorization]).await;
    // More than the hub keeps and the sockets hold, while nobody reads.
    let body = "x".repeat(200 * 1024);
    for number in 0..400 {
        device.publish(&format!("devices/d1/messages/events/number={number}"), &body).await;
    }
    device.report(&json!({"done": true})).await;
    let (mut told, mut missed, mut next) = (0, 0, 0);
    while told + missed < 400 {
        let event = events.next().await;
        if event["kind"] == "gap" {
            let count = event["count"].as_u64().expect("a count");
            missed += count;
            next += count;
        } else {
            assert_eq!(event["properties"]["number"], json!(next.to_string()), "in order, without a silent gap");
            told += 1;
            next += 1;
        }
    }
    assert!(missed > 0 && told > 0, "{told} {missed}");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_message_that_is_acknowledged_can_be_read() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    let events = hub.hub.handle.events();
    for packet_id in 1..=200 {
        let publish = Publish::new("devices/d1/messages/events/", QoS::AtLeastOnce, packet_id.to_string());
        device.send(&[Packet::Publish(Publish { pkid: packet_id, ..publish })]).await;
        assert_eq!(device.next().await, Some(Packet::PubAck(PubAck::new(packet_id))));
        let page = events.page(0, 1000).events;
        let messages = page.iter().filter(|(_, event)| event.kind_name() == "telemetry").count();
        assert_eq!(messages, usize::from(packet_id));
    }
    // Whoever does not wait is acknowledged in order, however much comes at once.
    let many: Vec<Packet> = (1..=2000)
        .map(|packet_id| {
            let publish = Publish::new("devices/d1/messages/events/", QoS::AtLeastOnce, "x");
            Packet::Publish(Publish { pkid: packet_id, ..publish })
        })
        .collect();
    device.send(&many).await;
    for packet_id in 1..=2000 {
        assert_eq!(device.next().await, Some(Packet::PubAck(PubAck::new(packet_id))));
    }
    hub.hub.stop().await;
}
