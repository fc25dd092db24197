//! A tier's quotas and throttles.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use embedded_hub::rehearsal::RehearsalSettings;
use futures_util::future::join_all;
use iothub_protocol::id::DeviceId;
use iothub_protocol::quota::limiter::Shaping;
use iothub_protocol::quota::tier::{Sku, Tier};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubAck, Publish};
use serde_json::{Value, json};

use crate::fixture::{limited, message, rest, twin_get};
use crate::support::Service;

/// The free tier, with `burst` and `queue` of each throttle in seconds.
fn free(burst: u64, queue: u64) -> RehearsalSettings {
    let shaping = Shaping { burst: Duration::from_secs(burst), queue: Duration::from_secs(queue) };
    RehearsalSettings { tier: Some(Sku::new(Tier::F1, 1).expect("a size")), shaping }
}

#[tokio::test]
async fn a_back_end_in_a_hurry_is_told_when_to_come_again() {
    // One query every three seconds.
    let hub = limited(free(0, 0)).await;
    let query = r#"{"query":"SELECT * FROM devices"}"#;
    assert_eq!(rest(&hub, "POST /devices/query", query).await.status, 200);
    let mut refused = rest(&hub, "POST /devices/query", query).await;
    for _ in 0..20 {
        if refused.status == 429 {
            break;
        }
        refused = rest(&hub, "POST /devices/query", query).await;
    }
    assert_eq!((refused.status, refused.header("iothub-errorcode")), (429, Some("throttlingexception")));
    let after: u64 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1..=3).contains(&after), "{after}");
    let body: Value = serde_json::from_str(&refused.body).expect("JSON");
    assert!(body["Message"].as_str().is_some_and(|text| text.starts_with("ErrorCode:ThrottlingException;")), "{body}");
    assert_eq!(rest(&hub, "GET /twins/nobody", "").await.status, 404, "another class is another throttle");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_twin_that_is_read_too_often_answers_429() {
    let hub = limited(free(0, 0)).await;
    let mut device = hub.device("d1").await;
    device.subscribe("$iothub/twin/res/#").await;
    let gets: Vec<Packet> = (0..200).map(twin_get).collect();
    device.send(&gets).await;
    let mut answers = Vec::new();
    for _ in 0..200 {
        answers.push(device.next_publish().await);
    }
    answers.sort_by_key(|(topic, _)| topic.contains("/200/"));
    assert!(answers.last().is_some_and(|(topic, _)| topic.starts_with("$iothub/twin/res/200/")));
    let (topic, body) = &answers[0];
    assert!(topic.starts_with("$iothub/twin/res/429/?$rid="), "{topic}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["errorCode"], 429001, "{body}");
    hub.hub.stop().await;
}

#[tokio::test]
async fn messages_above_the_rate_wait_and_then_end_the_link() {
    let hub = limited(free(0, 10)).await;
    let mut device = hub.device("d1").await;
    let messages: Vec<Packet> = (1..=20).map(message).collect();
    device.send(&messages).await;
    for packet_id in 1..=20 {
        assert_eq!(device.next().await, Some(Packet::PubAck(PubAck::new(packet_id))));
    }
    let shown = hub.hub.handle.rehearsal().to_json();
    assert!(shown["tier"]["delayed"]["telemetry"].as_u64().is_some_and(|delayed| delayed > 0), "{shown}");
    assert_eq!(shown["tier"]["messagesToday"], 20);
    hub.hub.stop().await;

    let hub = limited(free(0, 0)).await;
    let mut device = hub.device("d1").await;
    device.send(&messages).await;
    while device.next().await.is_some() {}
    let events = hub.hub.handle.events().page(0, 100).events;
    let taken = events.iter().filter(|(_, event)| event.kind_name() == "telemetry").count();
    assert!((1..20).contains(&taken), "{taken} of 20 before the link was closed");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_device_hears_of_the_hub_while_its_messages_wait() {
    let hub = limited(free(0, 60)).await;
    let mut device = hub.device("d1").await;
    device.subscribe("$iothub/twin/PATCH/properties/desired/#").await;
    let messages: Vec<Packet> = (1..=500).map(message).collect();
    device.send(&messages).await;
    assert_eq!(device.next().await, Some(Packet::PubAck(PubAck::new(1))));
    let patch = r#"{"properties":{"desired":{"building":"43"}}}"#;
    assert_eq!(rest(&hub, "PATCH /twins/d1", patch).await.status, 200);
    let mut acknowledged = 1;
    while let Some(Packet::PubAck(_)) = device.next().await {
        acknowledged += 1;
    }
    assert!(acknowledged < 500, "the notice came first");
    hub.hub.stop().await;
}

#[tokio::test]
async fn devices_that_connect_all_at_once_are_told_to_wait() {
    let hub = limited(free(0, 0)).await;
    let mut devices = Vec::new();
    for number in 0..40 {
        let connect = hub.connect(&format!("d{number}")).await;
        devices.push((hub.stranger().await, connect));
    }
    for (device, connect) in &mut devices {
        device.send(std::slice::from_ref(connect)).await;
    }
    let mut busy = 0;
    for (device, _) in &mut devices {
        match device.next().await {
            Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success => {}
            Some(Packet::ConnAck(ack)) => {
                assert_eq!(ack.code, ConnectReturnCode::ServiceUnavailable);
                assert_eq!(device.next().await, None);
                busy += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((1..40).contains(&busy), "{busy} of 40");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_spent_quota_ends_everything_until_tomorrow_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    // A day that does not end while the test runs.
    let kept = json!({"day": "9999-12-30", "messages": 7998});
    std::fs::write(folder.path().join("quota.json"), kept.to_string()).expect("written");
    let hub = Service::rehearsing(free(60, 10), folder).await;
    let mut device = hub.device("d1").await;
    device.send(&[message(1)]).await;
    assert_eq!(device.next().await, Some(Packet::PubAck(PubAck::new(1))));
    device.send(&[twin_get(1)]).await;
    assert!(device.next_publish().await.0.starts_with("$iothub/twin/res/200/"));
    device.send(&[message(2)]).await;
    assert_eq!(device.next().await, None);

    let hub = hub.restart_rehearsing(free(60, 10)).await;
    let mut device = hub.device("d1").await;
    device.send(&[twin_get(1)]).await;
    assert_eq!(device.next().await, None, "let in, and cut at the first message");
    for request in ["GET /twins/d1", "GET /devices/d1", "GET /jobs/v2/query"] {
        let refused = rest(&hub, request, "").await;
        assert_eq!(
            (refused.status, refused.header("iothub-errorcode")),
            (403, Some("iothubquotaexceeded")),
            "{request}"
        );
        assert!(refused.body.contains("'8000', current message count : '8000'"), "{}", refused.body);
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_tier_runs_so_many_jobs_and_has_so_many_devices() {
    let hub = limited(free(60, 10)).await;
    hub.connect("d1").await;
    let job = |start: &str| {
        let method = json!({"methodName": "m", "responseTimeoutInSeconds": 30, "connectTimeoutInSeconds": 300});
        let job = json!({"type": "scheduleDeviceMethod", "cloudToDeviceMethod": method, "queryCondition": "*",
            "startTime": start, "maxExecutionTimeInSeconds": 3600});
        job.to_string()
    };
    assert_eq!(rest(&hub, "PUT /jobs/v2/later", &job("2999-01-01T00:00:00Z")).await.status, 200);
    assert_eq!(
        rest(&hub, "PUT /jobs/v2/one", &job("2020-01-01T00:00:00Z")).await.status,
        200,
        "one that waits is none"
    );
    let refused = rest(&hub, "PUT /jobs/v2/two", &job("2020-01-01T00:00:00Z")).await;
    let code = refused.header("iothub-errorcode");
    assert_eq!((refused.status, code), (429, Some("throttlingmaxactivejobcountexceeded")));

    let ids: Vec<DeviceId> = (1..=500).map(|n| DeviceId::parse(&format!("d{n}")).expect("an id")).collect();
    let made = join_all(ids.iter().map(|id| hub.hub.handle.ensure_device(id))).await;
    assert!(made.iter().all(Result::is_ok));
    let refused = rest(&hub, "PUT /devices/d501", r#"{"deviceId":"d501"}"#).await;
    assert_eq!((refused.status, refused.header("iothub-errorcode")), (413, Some("toomanydevices")));
    let refused = rest(&hub, "PUT /devices/d1/modules/m1", "{}").await;
    assert_eq!(
        (refused.status, refused.header("iothub-errorcode")),
        (413, Some("toomanydevices")),
        "a module is one more"
    );
    let refused = rest(&hub, "POST /devices", r#"[{"id":"d501"},{"id":"d1","importMode":"update"}]"#).await;
    assert_eq!(refused.status, 413);
    let updated = rest(&hub, "POST /devices", r#"[{"id":"d1","importMode":"update"}]"#).await;
    assert_eq!(updated.status, 200, "{}", updated.body);
    hub.hub.stop().await;
}

#[tokio::test]
async fn an_import_stops_at_the_tiers_number_of_devices() {
    let hub = limited(free(60, 10)).await;
    let ids: Vec<DeviceId> = (1..=498).map(|n| DeviceId::parse(&format!("d{n}")).expect("an id")).collect();
    let made = join_all(ids.iter().map(|id| hub.hub.handle.ensure_device(id))).await;
    assert!(made.iter().all(Result::is_ok));
    let lines = ["new-1", "d1", "new-2", "new-3", "d2"].map(|id| json!({"id": id}).to_string()).join("\n");
    let (status, answer) = hub.operator("POST", "/store/devices", lines).await;
    let errors = answer["errors"].as_array().expect("an array");
    let errors: Vec<_> = errors.iter().map(|error| (error["line"].as_u64(), error["code"].as_str())).collect();
    let (exists, too_many) = (Some("DeviceAlreadyExists"), Some("TooManyDevices"));
    assert_eq!((status, &answer["created"]), (200, &json!(2)), "{answer}");
    assert_eq!(errors, [(Some(2), exists), (Some(4), too_many), (Some(5), exists)]);
    assert_eq!(hub.hub.handle.counts().await.expect("numbers").total, 500);
    hub.hub.stop().await;
}

#[tokio::test]
async fn who_may_not_ask_takes_nothing_of_what_others_may() {
    // One query every three seconds, and few connections and messages.
    let hub = limited(free(0, 0)).await;
    let query = r#"{"query":"SELECT * FROM devices"}"#;
    let stranger = ["Authorization: SharedAccessSignature sr=localhost&sig=AAAA&se=9999999999&skn=service"];
    for _ in 0..10 {
        assert_eq!(hub.plain("POST /devices/query", &stranger, query.as_bytes()).await.status, 401);
        let reader = hub.token("registryRead");
        assert_eq!(hub.with_token(&reader, "POST /devices/query", &[], query).await.status, 401);
    }
    assert_eq!(rest(&hub, "POST /devices/query", query).await.status, 200);

    let mut strangers = Vec::new();
    for _ in 0..40 {
        let mut stranger = hub.stranger().await;
        let mut connect = Connect::new("d1");
        connect.set_login("localhost/d1/?api-version=2021-04-12", "SharedAccessSignature sr=x&sig=AAAA&se=1");
        stranger.send(&[Packet::Connect(connect)]).await;
        strangers.push(stranger);
    }
    for stranger in &mut strangers {
        let Some(Packet::ConnAck(ack)) = stranger.next().await else { panic!("an answer") };
        assert_eq!(ack.code, ConnectReturnCode::NotAuthorized);
    }
    hub.device("d1").await;

    let receive = "GET /devices/d1/messages/deviceBound";
    for _ in 0..40 {
        assert_eq!(hub.plain(receive, &stranger, b"").await.status, 401);
    }
    let key = hub.hub.handle.ensure_device(&DeviceId::parse("d1").expect("an id")).await.expect("a device");
    let token = key.key().expect("a key").sign("localhost/devices/d1", None, Utc::now() + TimeDelta::seconds(60));
    assert_eq!(hub.with_token(&token, receive, &[], "").await.status, 204);
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_tier_changes_no_sizes() {
    let hub = limited(free(60, 10)).await;
    let mut device = hub.device("d1").await;
    let sized = |packet_id, size: usize| {
        let publish = Publish::new("devices/d1/messages/events/", QoS::AtLeastOnce, "x".repeat(size));
        Packet::Publish(Publish { pkid: packet_id, ..publish })
    };
    device.send(&[sized(1, 256 * 1024)]).await;
    assert_eq!(device.next().await, Some(Packet::PubAck(PubAck::new(1))));
    device.send(&[sized(2, 256 * 1024 + 1)]).await;
    assert_eq!(device.next().await, None);
    let tags = |size: usize| json!({"tags": {"a": vec!["x".repeat(4000); size / 4000]}}).to_string();
    assert_eq!(rest(&hub, "PATCH /twins/d1", &tags(4000)).await.status, 200);
    assert_eq!(rest(&hub, "PATCH /twins/d1", &tags(12_000)).await.status, 400);
    hub.hub.stop().await;
}
