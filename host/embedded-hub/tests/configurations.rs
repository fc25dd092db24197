//! Automatic device management as back ends and devices meet it.

mod support;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Subscribe};
use serde_json::{Value, json};
use support::Service;

const CHILLER: &str = "/configurations/chiller?api-version=2021-04-12";

fn chiller() -> Value {
    json!({
        "id": "chiller",
        "schemaVersion": "1.0",
        "content": {"deviceContent": {"properties.desired.chiller": {"temperature": 66}}},
        "targetCondition": "tags.site = 'A'",
        "priority": 10,
        "metrics": {"queries": {
            "cold": "SELECT deviceId FROM devices WHERE properties.reported.cold = true",
            "applied": "SELECT deviceId FROM devices WHERE configurations.[[chiller]].status = 'Applied'",
        }},
    })
}

async fn put(hub: &Service, headers: &[&str], configuration: &Value) -> Value {
    let path = format!("PUT /configurations/{}", configuration["id"].as_str().expect("an id"));
    let reply = hub.owner(&path, headers, &configuration.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

async fn tag(hub: &Service, device: &str, site: &str) {
    let body = json!({"tags": {"site": site}}).to_string();
    assert_eq!(hub.owner(&format!("PATCH /twins/{device}"), &[], &body).await.status, 200);
}

async fn create(hub: &Service, device: &str, site: &str) {
    assert_eq!(hub.owner(&format!("PUT /devices/{device}"), &[], "{}").await.status, 200);
    tag(hub, device, site).await;
}

fn desired(twin: &Value) -> Value {
    let mut desired = twin["properties"]["desired"].clone();
    let members = desired.as_object_mut().expect("an object");
    members.retain(|key, _| !key.starts_with('$'));
    desired
}

async fn until_desired(hub: &Service, device: &str, expected: Value) -> Value {
    hub.until(&format!("/twins/{device}"), &expected.to_string(), |twin| desired(twin) == expected).await
}

#[tokio::test]
async fn a_configuration_follows_its_devices() {
    let hub = Service::new().await;
    create(&hub, "d1", "A").await;
    create(&hub, "d2", "B").await;
    let made = put(&hub, &[], &chiller()).await;
    assert_eq!(made["systemMetrics"]["results"], json!({"targetedCount": 0, "appliedCount": 0}));
    let twin = until_desired(&hub, "d1", json!({"chiller": {"temperature": 66}})).await;
    assert_eq!(twin["configurations"], json!({"chiller": {"status": "Applied"}}));
    let counted = hub.until(CHILLER, "counts", |c| c["systemMetrics"]["results"]["appliedCount"] == 1).await;
    assert_eq!(counted["systemMetrics"]["results"]["targetedCount"], 1);
    assert_eq!(counted["metrics"]["results"], json!({"cold": 0, "applied": 1}));
    let untouched = hub.owner("GET /twins/d2", &[], "").await.json();
    assert_eq!((desired(&untouched), untouched.get("configurations")), (json!({}), None));

    // Devices come into its scope and leave it, and new ones come.
    tag(&hub, "d2", "A").await;
    until_desired(&hub, "d2", json!({"chiller": {"temperature": 66}})).await;
    tag(&hub, "d1", "B").await;
    let left = until_desired(&hub, "d1", json!({})).await;
    assert_eq!(left.get("configurations"), None);
    let bulk = r#"[{"id":"d3","importMode":"create","tags":{"site":"A"}}]"#;
    assert_eq!(hub.owner("POST /devices", &[], bulk).await.status, 200);
    until_desired(&hub, "d3", json!({"chiller": {"temperature": 66}})).await;
    hub.until(CHILLER, "two", |c| c["systemMetrics"]["results"]["appliedCount"] == 2).await;
    // What someone changes by hand is put right.
    let by_hand = r#"{"properties":{"desired":{"chiller":{"temperature":1,"own":true}}}}"#;
    assert_eq!(hub.owner("PATCH /twins/d3", &[], by_hand).await.status, 200);
    until_desired(&hub, "d3", json!({"chiller": {"temperature": 66, "own": true}})).await;

    // One of higher priority overrides it where both set the same, and is gone again.
    let mut strong = chiller();
    strong["id"] = json!("strong");
    strong["priority"] = json!(11);
    strong["targetCondition"] = json!("deviceId = 'd2'");
    strong["content"]["deviceContent"] = json!({"properties.desired.chiller": {"temperature": 70}});
    put(&hub, &[], &strong).await;
    let twin = until_desired(&hub, "d2", json!({"chiller": {"temperature": 70}})).await;
    assert_eq!(twin["configurations"], json!({"chiller": {"status": "Targeted"}, "strong": {"status": "Applied"}}));
    assert_eq!(hub.owner("DELETE /configurations/strong", &[], "").await.status, 204);
    let twin = until_desired(&hub, "d2", json!({"chiller": {"temperature": 66}})).await;
    assert_eq!(twin["configurations"], json!({"chiller": {"status": "Applied"}}));

    // Deleted for good: what it has set stays, the mark goes.
    assert_eq!(hub.owner(&format!("DELETE {CHILLER}"), &["If-Match: *"], "").await.status, 204);
    let twin = hub.until("/twins/d2", "no mark", |twin| twin.get("configurations").is_none()).await;
    assert_eq!(desired(&twin), json!({"chiller": {"temperature": 66}}));
    assert_eq!(hub.owner("GET /configurations", &[], "").await.body, "[]");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_connected_device_hears_of_it_once() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    let mut subscribe = Subscribe::new("$iothub/twin/PATCH/properties/desired/#", QoS::AtLeastOnce);
    subscribe.pkid = 1;
    device.send(&[Packet::Subscribe(subscribe)]).await;
    assert!(matches!(device.next().await, Some(Packet::SubAck(_))));
    put(&hub, &[], &chiller()).await;
    // By a reported property, too.
    let mut reported = chiller();
    reported["id"] = json!("reported");
    reported["targetCondition"] = json!("properties.reported.cold = true");
    reported["content"]["deviceContent"] = json!({"properties.desired.heat": true});
    put(&hub, &[], &reported).await;
    tag(&hub, "d1", "A").await;
    let mut next = async || match device.next().await {
        Some(Packet::Publish(publish)) => String::from_utf8(publish.payload.to_vec()).expect("text"),
        other => panic!("{other:?}"),
    };
    assert_eq!(next().await, r#"{"$version":2,"chiller":{"temperature":66}}"#);
    device.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"cold":true}"#).await;
    let mut next = async || match device.next().await {
        Some(Packet::Publish(publish)) => publish,
        other => panic!("{other:?}"),
    };
    assert!(next().await.topic.starts_with("$iothub/twin/res/204/"));
    assert_eq!(&next().await.payload[..], br#"{"$version":3,"heat":true}"#);
    hub.until(CHILLER, "counts", |c| c["metrics"]["results"] == json!({"cold": 1, "applied": 1})).await;
    let twin = hub.owner("GET /twins/d1", &[], "").await.json();
    assert_eq!(twin["properties"]["desired"]["$version"], 3, "walks change nothing that is as it should be");
    hub.hub.stop().await;
}

#[tokio::test]
async fn configurations_outlive_the_hub() {
    let hub = Service::new().await;
    create(&hub, "d1", "A").await;
    create(&hub, "d2", "B").await;
    let made = put(&hub, &[], &chiller()).await;
    until_desired(&hub, "d1", json!({"chiller": {"temperature": 66}})).await;
    let hub = hub.restart().await;
    let kept = hub.owner(&format!("GET {CHILLER}"), &[], "").await.json();
    for member in ["etag", "createdTimeUtc", "content", "targetCondition", "priority", "labels"] {
        assert_eq!(kept[member], made[member], "{member}");
    }
    tag(&hub, "d2", "A").await;
    until_desired(&hub, "d2", json!({"chiller": {"temperature": 66}})).await;
    tag(&hub, "d1", "B").await;
    until_desired(&hub, "d1", json!({})).await;
    hub.hub.stop().await;
}

#[tokio::test]
async fn changes_keep_to_the_etag_and_to_what_may_change() {
    let hub = Service::new().await;
    create(&hub, "d1", "A").await;
    let made = put(&hub, &[], &chiller()).await;
    let quoted = format!("If-Match: \"{}\"", made["etag"].as_str().expect("a text"));
    let mut changed = made.clone();
    changed["priority"] = json!(20);
    changed["labels"] = json!({"version": "2"});
    let updated = put(&hub, &[&quoted], &changed).await;
    assert_eq!((&updated["priority"], &updated["labels"]), (&json!(20), &json!({"version": "2"})));
    assert_ne!(updated["etag"], made["etag"]);
    let path = format!("PUT {CHILLER}");
    let stale = hub.owner(&path, &[&quoted], &changed.to_string()).await;
    assert_eq!(stale.error(), "PreconditionFailed");
    changed["content"]["deviceContent"] = json!({"properties.desired.other": 1});
    let immutable = hub.owner(&path, &["If-Match: *"], &changed.to_string()).await;
    assert_eq!((immutable.status, immutable.error().as_str()), (400, "ArgumentInvalid"));

    // The condition may: its settings go from the devices that it does not cover any more.
    until_desired(&hub, "d1", json!({"chiller": {"temperature": 66}})).await;
    let mut nobody = updated.clone();
    nobody["targetCondition"] = json!("");
    put(&hub, &["If-Match: *"], &nobody).await;
    until_desired(&hub, "d1", json!({})).await;

    let tested = r#"{"targetCondition":"tags.site =","customMetricQueries":{"m":"SELECT"}}"#;
    let tested = hub.owner("POST /configurations/testQueries", &[], tested).await.json();
    assert!(tested["targetConditionError"].is_string() && tested["customMetricQueryErrors"]["m"].is_string());
    hub.hub.stop().await;
}

#[tokio::test]
async fn there_are_a_hundred_at_most() {
    let hub = Service::new().await;
    for number in 0..100 {
        put(&hub, &[], &json!({"id": format!("c{number:03}")})).await;
    }
    let one_more = hub.owner("PUT /configurations/more", &[], "{}").await;
    assert_eq!((one_more.status, one_more.error().as_str()), (413, "ConfigurationCountLimitExceeded"));
    let listed = async |query: &str| {
        let list = hub.owner(&format!("GET /configurations{query}"), &[], "").await.json();
        list.as_array().expect("an array").len()
    };
    assert_eq!((listed("").await, listed("?top=7").await, listed("?top=0").await), (100, 7, 100));
    assert_eq!(hub.owner("DELETE /configurations/c000", &[], "").await.status, 204);
    put(&hub, &[], &json!({"id": "more"})).await;
    hub.hub.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_into_a_twin_is_targeted_and_not_applied() {
    let hub = Service::new().await;
    create(&hub, "d1", "A").await;
    let large = vec!["x".repeat(4000); 7];
    let own = json!({"properties": {"desired": {"own": large}}}).to_string();
    assert_eq!(hub.owner("PATCH /twins/d1", &[], &own).await.status, 200);
    let mut configuration = chiller();
    configuration["content"]["deviceContent"] = json!({"properties.desired.more": large});
    put(&hub, &[], &configuration).await;
    let counted = hub.until(CHILLER, "counts", |c| c["systemMetrics"]["results"]["targetedCount"] == 1).await;
    assert_eq!(counted["systemMetrics"]["results"]["appliedCount"], 0);
    let twin = hub.owner("GET /twins/d1", &[], "").await.json();
    assert_eq!(twin["configurations"], json!({"chiller": {"status": "Targeted"}}));
    hub.hub.stop().await;
}
