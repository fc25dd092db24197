//! Each bad day.

use std::time::{Duration, Instant};

use chrono::Utc;
use embedded_hub::hub::Now;
use embedded_hub::rehearsal::bad_days::{BadDay, BadDays, Plan, Wishes};
use iothub_protocol::address::Address;
use rumqttc::mqttbytes::v4::{Packet, PubAck};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{bad_days, message, rest, twin_get, until_count};
use crate::support::{PATIENCE, Service};

fn begin(hub: &Service, what: BadDay, seed: u64, wishes: Wishes) -> u64 {
    let plan = Plan::new(what, seed, wishes).expect("a plan");
    hub.hub.handle.rehearsal().begin(plan).expect("a day")
}

fn percent(percent: u8) -> Wishes {
    Wishes { percent: Some(percent), ..Wishes::default() }
}

fn lasting(milliseconds: u64) -> Wishes {
    Wishes { length: Some(Duration::from_millis(milliseconds)), ..Wishes::default() }
}

/// A seed with which `d1` is struck within the first thousandth of the day.
fn early_seed(what: BadDay) -> u64 {
    let (device, now) = (Address::parse("d1").expect("an address"), Now { wall: Utc::now(), steady: Instant::now() });
    let is_early = |seed: &u64| {
        let mut days = BadDays::default();
        days.begin(now, Plan::new(what, *seed, lasting(100_000)).expect("a plan")).expect("a day");
        days.strike(&device, now.steady).is_some_and(|strike| strike.at - now.steady < Duration::from_millis(100))
    };
    (0..).find(is_early).expect("one of many")
}

async fn connected(hub: &Service) -> usize {
    hub.hub.handle.counts().await.expect("numbers").connected
}

#[tokio::test]
async fn a_token_cut_ends_the_link_once() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    begin(&hub, BadDay::TokenCut, early_seed(BadDay::TokenCut), lasting(100_000));
    assert_eq!(device.next().await, None);
    let mut device = hub.device("d1").await;
    device.send(&[Packet::PingReq]).await;
    assert_eq!(device.next().await, Some(Packet::PingResp));
    assert_eq!(bad_days(&hub)[0]["count"], 1);
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_storm_cuts_all_links_at_once_and_is_over() {
    let hub = Service::new().await;
    let mut devices = Vec::new();
    for id in ["d1", "d2", "d3"] {
        devices.push(hub.device(id).await);
    }
    begin(&hub, BadDay::ReconnectStorm, 1, Wishes::default());
    for device in &mut devices {
        assert_eq!(device.next().await, None);
    }
    let mut device = hub.device("d1").await;
    device.send(&[Packet::PingReq]).await;
    assert_eq!(device.next().await, Some(Packet::PingResp));
    hub.hub.stop().await;
}

#[tokio::test]
async fn an_intruder_takes_the_connection_over_until_the_device_takes_it_back() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    begin(&hub, BadDay::TakeOver, early_seed(BadDay::TakeOver), lasting(100_000));
    assert_eq!(device.next().await, None);
    assert_eq!(connected(&hub).await, 1, "the intruder");
    let mut device = hub.device("d1").await;
    device.send(&[twin_get(1)]).await;
    assert!(device.next_publish().await.0.starts_with("$iothub/twin/res/200/"));
    assert_eq!((connected(&hub).await, &bad_days(&hub)[0]["count"]), (1, &json!(1)));
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_lost_puback_is_not_sent_and_its_message_is_taken() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    let day = begin(&hub, BadDay::LostPubacks, 1, percent(100));
    // The answer comes behind the acknowledgement of the message, if there is one.
    device.send(&[message(7), twin_get(1)]).await;
    assert!(device.next_publish().await.0.starts_with("$iothub/twin/res/200/"));
    let events = hub.hub.handle.events().page(0, 9).events;
    assert!(events.iter().any(|(_, event)| event.kind_name() == "telemetry"), "{events:?}");
    assert_eq!(bad_days(&hub)[0]["count"], 1);
    assert_eq!(hub.hub.handle.rehearsal().stop(Some(day)), 1);
    device.send(&[message(7)]).await;
    assert_eq!(device.next().await, Some(Packet::PubAck(PubAck::new(7))));
    hub.hub.stop().await;
}

#[tokio::test]
async fn the_same_seed_loses_the_same_pubacks() {
    let hub = Service::new().await;
    let mut runs = Vec::new();
    for seed in [11, 11, 12] {
        let day = begin(&hub, BadDay::LostPubacks, seed, percent(40));
        let mut device = hub.device("d1").await;
        // The last one's answer comes behind all acknowledgements.
        let messages: Vec<Packet> = (1..=50).map(message).chain([twin_get(1)]).collect();
        device.send(&messages).await;
        let mut acknowledged = Vec::new();
        while let Some(Packet::PubAck(ack)) = device.next().await {
            acknowledged.push(ack.pkid);
        }
        assert!((10..50).contains(&acknowledged.len()), "{acknowledged:?}");
        runs.push(acknowledged);
        hub.hub.handle.rehearsal().stop(Some(day));
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_half_open_link_says_nothing_and_a_new_one_works() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    let day = begin(&hub, BadDay::HalfOpen, 1, Wishes::default());
    until_count(&hub, 1).await;
    device.send(&[Packet::PingReq, twin_get(1)]).await;
    let mut next = hub.device("d1").await;
    next.send(&[twin_get(2)]).await;
    assert!(next.next_publish().await.0.starts_with("$iothub/twin/res/200/"));
    assert_eq!(hub.hub.handle.rehearsal().stop(Some(day)), 1);
    assert_eq!(device.next().await, None, "not a word before the end");
    next.send(&[Packet::PingReq]).await;
    assert_eq!(next.next().await, Some(Packet::PingResp), "the new one goes on");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_slow_hub_answers_all_the_same() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    let delay = Some((Duration::from_millis(1), Duration::from_millis(3)));
    begin(&hub, BadDay::SlowHub, 1, Wishes { delay, ..Wishes::default() });
    for number in 0..10 {
        device.send(&[twin_get(number)]).await;
        assert!(device.next_publish().await.0.ends_with(&format!("?$rid={number}")));
    }
    assert_eq!(rest(&hub, "GET /twins/d1", "").await.status, 200);
    assert!(bad_days(&hub)[0]["count"].as_u64().is_some_and(|count| count >= 11), "{:?}", bad_days(&hub));
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_lost_notice_is_found_by_reading_the_twin() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    device.subscribe("$iothub/twin/PATCH/properties/desired/#").await;
    let patch = |n: u32| json!({"properties": {"desired": {"n": n}}}).to_string();
    let day = begin(&hub, BadDay::LostNotices, 1, percent(100));
    assert_eq!(rest(&hub, "PATCH /twins/d1", &patch(1)).await.status, 200);
    device.send(&[twin_get(1)]).await;
    let (topic, body) = device.next_publish().await;
    assert!(topic.starts_with("$iothub/twin/res/200/") && body.contains(r#""n":1"#), "{topic} {body}");
    assert_eq!(bad_days(&hub)[0]["count"], 1);
    hub.hub.handle.rehearsal().stop(Some(day));
    assert_eq!(rest(&hub, "PATCH /twins/d1", &patch(2)).await.status, 200);
    assert_eq!(device.next_publish().await.0, "$iothub/twin/PATCH/properties/desired/?$version=3");
    hub.hub.stop().await;
}

#[tokio::test]
async fn in_silence_nobody_is_answered_and_afterwards_everybody() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    begin(&hub, BadDay::Silence, 1, lasting(300));
    until_count(&hub, 1).await;
    device.send(&[Packet::PingReq]).await;
    let mut stranger = hub.stranger().await;
    stranger.send(&[hub.connect("d2").await]).await;
    assert_eq!(rest(&hub, "GET /twins/d1", "").await.status, 200);
    // The day is over when the answer has come, though it may not have been put away yet.
    assert!(bad_days(&hub).iter().all(|day| day["remainingSeconds"] == 0));
    assert_eq!(device.next().await, Some(Packet::PingResp), "the link has lived through it");
    assert!(matches!(stranger.next().await, Some(Packet::ConnAck(_))));
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_silence_can_be_broken() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    begin(&hub, BadDay::Silence, 1, Wishes::default());
    until_count(&hub, 1).await;
    device.send(&[Packet::PingReq]).await;
    assert_eq!(hub.hub.handle.rehearsal().stop(None), 1);
    assert_eq!(device.next().await, Some(Packet::PingResp));
    assert_eq!(rest(&hub, "GET /twins/d1", "").await.status, 200);
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_bad_day_is_over_by_itself() {
    let hub = Service::new().await;
    begin(&hub, BadDay::LostNotices, 1, lasting(20));
    let over = async {
        while !bad_days(&hub).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("in time");
    hub.hub.stop().await;
}

#[tokio::test]
async fn the_operator_begins_and_ends_bad_days() {
    let hub = Service::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(axum::serve(listener, hub.hub.operator_router()).into_future());
    let ask = async |request: &str, body: &str| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let length = body.len();
        let text =
            format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("received");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, body.to_owned())
    };
    let (status, body) = ask("POST /rehearsals", r#"{"name":"silence","devices":"none","seed":7}"#).await;
    assert_eq!((status, body.as_str()), (200, r#"{"name":"silence","number":1,"seed":"7"}"#));
    let listed: Value = serde_json::from_str(&ask("GET /rehearsals", "").await.1).expect("JSON");
    let day = &listed["badDays"][0];
    assert_eq!((&day["name"], &day["devices"], &day["percent"]), (&json!("silence"), &json!("none"), &json!(100)));
    assert_eq!(listed["tier"], Value::Null);
    assert_eq!(ask("POST /rehearsals", r#"{"name":"rain"}"#).await.0, 400);
    assert_eq!(ask("DELETE /rehearsals/2", "").await.0, 404);
    assert_eq!(ask("DELETE /rehearsals/1", "").await.0, 204);
    assert_eq!(ask("DELETE /rehearsals", "").await, (200, r#"{"stopped":0}"#.to_owned()));
    server.abort();
    hub.hub.stop().await;
}
