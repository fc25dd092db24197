//! Modules as back ends and the modules themselves meet them.

mod support;

use chrono::{TimeDelta, Utc};
use iothub_protocol::sas::SharedKey;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet};
use serde_json::{Value, json};
use support::{Client, Device, Service};

/// Make a module, and its device if there is none; its identity.
async fn create(hub: &Service, device: &str, module: &str) -> Value {
    hub.owner(&format!("PUT /devices/{device}"), &[], "{}").await;
    let body = json!({"deviceId": device, "moduleId": module, "managedBy": "ops"}).to_string();
    let reply = hub.owner(&format!("PUT /devices/{device}/modules/{module}"), &[], &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// How the hub answers the CONNECT of a module, and the connection.
async fn connect(hub: &Service, device: &str, module: &str, key: &str) -> (ConnectReturnCode, Device) {
    let mut connect = Connect::new(format!("{device}/{module}"));
    connect.clean_session = false;
    connect.keep_alive = 60;
    let resource = format!("localhost/devices/{device}/modules/{module}");
    let token = SharedKey::parse(key).expect("a key").sign(&resource, None, Utc::now() + TimeDelta::seconds(60));
    connect.set_login(format!("localhost/{device}/{module}/?api-version=2021-04-12"), token);
    let mut link = hub.link(Client::default()).await;
    link.send(&[Packet::Connect(connect)]).await;
    match link.next().await {
        Some(Packet::ConnAck(ack)) => (ack.code, link),
        other => panic!("{other:?}"),
    }
}

fn primary_key(identity: &Value) -> String {
    identity["authentication"]["symmetricKey"]["primaryKey"].as_str().expect("a key").to_owned()
}

/// Make a module and connect it.
async fn module(hub: &Service, device: &str, module: &str) -> Device {
    let key = primary_key(&create(hub, device, module).await);
    let (code, link) = connect(hub, device, module, &key).await;
    assert_eq!(code, ConnectReturnCode::Success);
    link
}

async fn rows(hub: &Service, query: &str) -> Vec<Value> {
    let reply = hub.owner("POST /devices/query", &[], &json!({"query": query}).to_string()).await;
    assert_eq!(reply.status, 200, "{query}: {reply:?}");
    assert_eq!(reply.header("x-ms-continuation"), None, "{query}");
    reply.json().as_array().cloned().expect("an array")
}

#[tokio::test]
async fn the_registry_has_modules_beside_devices() {
    let hub = Service::new().await;
    let made = create(&hub, "d1", "m1").await;
    assert_eq!((&made["deviceId"], &made["moduleId"], &made["managedBy"]), (&json!("d1"), &json!("m1"), &json!("ops")));
    assert_eq!((primary_key(&made).len(), made.get("status"), made.get("capabilities")), (44, None, None));
    assert_eq!(made["connectionState"], "Disconnected");
    let twice = hub.owner("PUT /devices/d1/modules/m1", &[], "{}").await;
    assert_eq!((twice.status, twice.error().as_str()), (409, "ModuleAlreadyExistsOnDevice"));
    let thumbprint = "ab".repeat(20);
    let body = json!({"authentication": {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": thumbprint}}});
    let etag = format!("If-Match: \"{}\"", made["etag"].as_str().expect("an etag"));
    let updated = hub.owner("PUT /devices/d1/modules/m1", &[&etag], &body.to_string()).await.json();
    assert_eq!(updated["authentication"]["x509Thumbprint"]["primaryThumbprint"], json!(thumbprint));
    assert_eq!((&updated["managedBy"], &updated["generationId"]), (&Value::Null, &made["generationId"]));
    let late = hub.owner("PUT /devices/d1/modules/m1", &[&etag], &body.to_string()).await;
    assert_eq!((late.status, late.error().as_str()), (412, "PreconditionFailed"));

    create(&hub, "d1", "m0").await;
    create(&hub, "d10", "m1").await;
    let listed = hub.owner("GET /devices/d1/modules", &[], "").await.json();
    let ids: Vec<&str> =
        listed.as_array().expect("an array").iter().filter_map(|row| row["moduleId"].as_str()).collect();
    assert_eq!(ids, ["m0", "m1"]);
    for (request, status, code) in [
        ("GET /devices/d1/modules/m2", 404, "ModuleNotFound"),
        ("GET /devices/d2/modules/m1", 404, "DeviceNotFound"),
        ("GET /devices/d2/modules", 404, "DeviceNotFound"),
        ("PUT /devices/d2/modules/m1", 404, "DeviceNotFound"),
        ("DELETE /devices/d1/modules/m2", 404, "ModuleNotFound"),
        ("GET /twins/d1/modules/m2", 404, "ModuleNotFound"),
        ("GET /devices/d1/modules/a%20b", 400, "ArgumentInvalid"),
        ("POST /devices/d1/modules/m1", 405, "GenericMethodNotAllowed"),
    ] {
        let refused = hub.owner(request, &[], "{}").await;
        assert_eq!((refused.status, refused.error().as_str()), (status, code), "{request}");
    }
    let numbers = hub.owner("GET /statistics/devices", &[], "").await.json();
    assert_eq!(numbers["totalDeviceCount"], 2, "modules are no devices");
    assert_eq!(hub.owner("DELETE /devices/d1/modules/m0", &["If-Match: *"], "").await.status, 204);
    assert_eq!(hub.owner("DELETE /devices/d1", &[], "").await.status, 204);
    hub.owner("PUT /devices/d1", &[], "{}").await;
    assert_eq!(hub.owner("GET /devices/d1/modules", &[], "").await.json(), json!([]), "they went with their device");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_policy_may_do_with_modules_what_it_may_with_devices() {
    let hub = Service::new().await;
    create(&hub, "d1", "m1").await;
    for (request, allowed) in [
        ("GET /devices/d1/modules/m1", ["iothubowner", "registryRead", "registryReadWrite"].as_slice()),
        ("GET /devices/d1/modules", &["iothubowner", "registryRead", "registryReadWrite"]),
        ("GET /twins/d1/modules/m1", &["iothubowner", "service"]),
        ("PATCH /twins/d1/modules/m1", &["iothubowner", "service"]),
        ("DELETE /devices/d1/modules/none", &["iothubowner", "registryReadWrite"]),
    ] {
        for policy in support::POLICIES {
            let reply = hub.with_token(&hub.token(policy), request, &[], "{}").await;
            let may = reply.status != 401;
            assert_eq!(may, allowed.contains(&policy), "{request} as {policy}: {reply:?}");
        }
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn many_are_made_in_one_request() {
    let hub = Service::new().await;
    let items = json!([
        {"id": "d1", "importMode": "create"},
        {"id": "d1", "moduleId": "m1", "importMode": "create", "managedBy": "ops", "tags": {"a": 1}},
        {"id": "d1", "moduleId": "m2", "importMode": "create"},
        {"id": "d2", "moduleId": "m1", "importMode": "create"},
    ]);
    let reply = hub.owner("POST /devices", &[], &items.to_string()).await;
    let error = &reply.json()["errors"][0];
    assert_eq!((reply.status, &error["moduleId"], &error["errorCode"]), (400, &json!("m1"), &json!("DeviceNotFound")));
    assert_eq!(reply.json()["errors"].as_array().map(Vec::len), Some(1), "{reply:?}");
    let twin = hub.owner("GET /twins/d1/modules/m1", &[], "").await.json();
    assert_eq!(twin["tags"], json!({"a": 1}));
    let items = json!([
        {"id": "d1", "moduleId": "m1", "importMode": "updateTwin", "tags": {"a": 2}},
        {"id": "d1", "moduleId": "m2", "importMode": "delete"},
    ]);
    assert_eq!(hub.owner("POST /devices", &[], &items.to_string()).await.status, 200);
    let left = rows(&hub, "SELECT moduleId, tags.a AS a FROM devices.modules").await;
    assert_eq!(left, [json!({"moduleId": "m1", "a": 2})]);
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_module_has_a_twin_and_methods_of_its_own() {
    let hub = Service::new().await;
    let mut device = hub.device("d1").await;
    let mut link = module(&hub, "d1", "m1").await;
    for filter in
        ["$iothub/methods/POST/#", "$iothub/twin/PATCH/properties/desired/#", "devices/d1/modules/m1/inputs/#"]
    {
        link.subscribe(filter).await;
    }
    link.report(&json!({"bolts": 2})).await;
    let patch = json!({"tags": {"site": "A"}, "properties": {"desired": {"bolts": 3}}}).to_string();
    let twin = hub.owner("PATCH /twins/d1/modules/m1", &[], &patch).await.json();
    assert_eq!((&twin["deviceId"], &twin["moduleId"]), (&json!("d1"), &json!("m1")));
    assert_eq!((&twin["connectionState"], twin.get("capabilities")), (&json!("Connected"), None));
    assert_eq!(twin["properties"]["reported"]["bolts"], 2);
    let (topic, body) = link.next_publish().await;
    assert_eq!(
        (topic.as_str(), body.as_str()),
        ("$iothub/twin/PATCH/properties/desired/?$version=2", r#"{"$version":2,"bolts":3}"#)
    );
    let of_device = hub.owner("GET /twins/d1", &[], "").await.json();
    assert_eq!((of_device["version"].as_u64(), of_device.get("moduleId")), (Some(1), None), "its device's is another");

    let call = json!({"methodName": "turn", "payload": 1, "responseTimeoutInSeconds": 5}).to_string();
    let answering = async {
        let (topic, _) = link.next_publish().await;
        let rid = topic.split("$rid=").nth(1).expect("a request id").to_owned();
        link.publish(&format!("$iothub/methods/res/200/?$rid={rid}"), r#"{"turned":1}"#).await;
        link
    };
    let (answer, mut link) = tokio::join!(hub.owner("POST /twins/d1/modules/m1/methods", &[], &call), answering);
    assert_eq!(answer.json(), json!({"status": 200, "payload": {"turned": 1}}));
    let offline = hub.owner("POST /twins/d1/methods", &[], &call).await;
    assert_eq!(
        (offline.status, offline.error().as_str()),
        (404, "DeviceNotOnline"),
        "the device itself does not listen"
    );
    let missing = hub.owner("POST /twins/d1/modules/m2/methods", &[], &call).await;
    assert_eq!((missing.status, missing.error().as_str()), (404, "ModuleNotFound"));

    // What is the device's alone ends the connection, and the device's goes on.
    link.publish("devices/d1/messages/events/", "x").await;
    assert!(link.next().await.is_none());
    device.report(&json!({"still": "here"})).await;
    let replaced = hub.owner("PUT /twins/d1/modules/m1", &[], r#"{"properties":{"desired":{}}}"#).await.json();
    assert_eq!((&replaced["tags"], replaced["properties"]["desired"].get("bolts")), (&json!({"site": "A"}), None));
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_module_connects_with_its_own_key_while_its_device_may() {
    let hub = Service::new().await;
    let key = primary_key(&create(&hub, "d1", "m1").await);
    let other = primary_key(&create(&hub, "d1", "m2").await);
    let device = primary_key(&hub.owner("GET /devices/d1", &[], "").await.json());
    for (key, code) in [
        (&key, ConnectReturnCode::Success),
        (&other, ConnectReturnCode::NotAuthorized),
        (&device, ConnectReturnCode::NotAuthorized),
    ] {
        assert_eq!(connect(&hub, "d1", "m1", key).await.0, code);
    }
    let (_, mut link) = connect(&hub, "d1", "m1", &key).await;
    let disabled = r#"{"status":"disabled"}"#;
    assert_eq!(hub.owner("PUT /devices/d1", &["If-Match: *"], disabled).await.status, 200);
    assert!(link.next().await.is_none(), "it is cut");
    assert_eq!(connect(&hub, "d1", "m1", &key).await.0, ConnectReturnCode::NotAuthorized);
    hub.hub.stop().await;
}

#[tokio::test]
async fn its_events_name_the_module() {
    let hub = Service::new().await;
    let authorization = format!("Authorization: {}", hub.token("service"));
    let mut events = hub.events("/messages/events?device=d1/*", &[&authorization]).await;
    let mut link = module(&hub, "d1", "m1").await;
    link.publish("devices/d1/modules/m1/messages/events/%24.on=out&colour=red/", "21").await;
    link.report(&json!({"bolts": 2})).await;
    link.leave().await;
    assert_eq!(hub.owner("DELETE /devices/d1/modules/m1", &[], "").await.status, 204);
    let expected = [
        ("created", "moduleLifecycleEvents", "createModuleIdentity"),
        ("connected", "deviceConnectionStateEvents", "deviceConnected"),
        ("telemetry", "Telemetry", ""),
        ("reported", "twinChangeEvents", "updateTwin"),
        ("disconnected", "deviceConnectionStateEvents", "deviceDisconnected"),
        ("deleted", "moduleLifecycleEvents", "deleteModuleIdentity"),
    ];
    for (kind, source, operation) in expected {
        let event = events.next().await;
        let system = &event["systemProperties"];
        assert_eq!(
            (&event["kind"], &event["deviceId"], &event["moduleId"]),
            (&json!(kind), &json!("d1"), &json!("m1"))
        );
        assert_eq!(
            (&system["iothub-message-source"], &system["iothub-connection-module-id"]),
            (&json!(source), &json!("m1"))
        );
        assert_eq!(event["properties"]["opType"].as_str().unwrap_or_default(), operation);
        if kind == "telemetry" {
            assert_eq!((&event["body"], &event["properties"]["colour"]), (&json!(21), &json!("red")));
            let auth = system["iothub-connection-auth-method"].as_str().expect("a text");
            assert!(auth.contains(r#""scope":"module","type":"sas""#), "{auth}");
        }
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn queries_over_modules_have_all_that_queries_over_devices_have() {
    let hub = Service::new().await;
    for device in 0..4 {
        for module in ["lock", "sensor"] {
            create(&hub, &format!("d{device}"), module).await;
            let body =
                json!({"tags": {"site": if device < 3 { "A" } else { "B" }}, "properties": {"desired": {"n": device}}});
            let path = format!("PATCH /twins/d{device}/modules/{module}");
            assert_eq!(hub.owner(&path, &[], &body.to_string()).await.status, 200);
        }
    }
    let whole = rows(&hub, "SELECT * FROM devices.modules WHERE deviceId = 'd1' AND moduleId = 'lock'").await;
    assert_eq!(whole, [hub.owner("GET /twins/d1/modules/lock", &[], "").await.json()]);
    assert_eq!(rows(&hub, "SELECT * FROM devices").await.len(), 4, "modules are no devices");
    for (query, expected) in [
        (
            "SELECT deviceId, moduleId FROM devices.modules WHERE tags.site = 'B'",
            json!([{"deviceId": "d3", "moduleId": "lock"}, {"deviceId": "d3", "moduleId": "sensor"}]),
        ),
        (
            "SELECT moduleId FROM devices.modules WHERE devices.deviceId IN ['d3', 'd0'] AND properties.desired.n < 1",
            json!([{"moduleId": "lock"}, {"moduleId": "sensor"}]),
        ),
        (
            "SELECT moduleId, COUNT() AS n, SUM(properties.desired.n) AS sum FROM devices.modules GROUP BY moduleId",
            json!([{"moduleId": "lock", "n": 4, "sum": 6}, {"moduleId": "sensor", "n": 4, "sum": 6}]),
        ),
        ("SELECT COUNT() AS n FROM devices.modules WHERE connectionState = 'Connected'", json!([{"n": 0}])),
        ("SELECT COUNT() AS n FROM devices.modules WHERE STARTSWITH(deviceId, 'd')", json!([{"n": 8}])),
        ("SELECT COUNT() AS n FROM devices.modules WHERE status = 'enabled'", json!([{"n": 8}])),
        ("SELECT TOP 1 deviceId FROM devices.modules WHERE moduleId = 'sensor'", json!([{"deviceId": "d0"}])),
    ] {
        assert_eq!(Value::Array(rows(&hub, query).await), expected, "{query}");
    }
    // Page by page, over a restart.
    let query = json!({"query": "SELECT deviceId, moduleId FROM devices.modules"}).to_string();
    let first = hub.owner("POST /devices/query", &["x-ms-max-item-count: 3"], &query).await;
    assert_eq!(
        (first.json()[2].clone(), first.header("x-ms-item-type")),
        (json!({"deviceId": "d1", "moduleId": "lock"}), Some("raw"))
    );
    let lower = first.head.clone();
    assert!(lower.contains("x-ms-continuation"));
    hub.hub.stop().await;
}

#[tokio::test]
async fn jobs_go_to_modules() {
    let hub = Service::new().await;
    let mut link = module(&hub, "d1", "m1").await;
    link.subscribe("$iothub/methods/POST/#").await;
    create(&hub, "d2", "m1").await;
    create(&hub, "d2", "m2").await;
    let twin_job = json!({"type": "scheduleUpdateTwin", "queryCondition": "FROM devices.modules WHERE moduleId = 'm1'",
        "updateTwin": {"etag": "*", "properties": {"desired": {"x": 1}}}});
    assert_eq!(hub.owner("PUT /jobs/v2/twins", &[], &twin_job.to_string()).await.status, 200);
    let job = hub.until("/jobs/v2/twins", "completed", |job| job["status"] == "completed").await;
    assert_eq!(
        (&job["deviceJobStatistics"]["deviceCount"], &job["deviceJobStatistics"]["succeededCount"]),
        (&json!(2), &json!(2))
    );
    for (path, version) in [("d1/modules/m1", 2), ("d2/modules/m1", 2), ("d2/modules/m2", 1), ("d1", 1)] {
        let twin = hub.owner(&format!("GET /twins/{path}"), &[], "").await.json();
        assert_eq!(twin["properties"]["desired"]["$version"], version, "{path}");
    }
    let method_job = json!({"type": "scheduleDeviceMethod", "queryCondition": "FROM devices.modules WHERE deviceId = 'd1'",
        "cloudToDeviceMethod": {"methodName": "turn", "payload": null, "responseTimeoutInSeconds": 5}});
    assert_eq!(hub.owner("PUT /jobs/v2/calls", &[], &method_job.to_string()).await.status, 200);
    let (topic, _) = link.next_publish().await;
    let rid = topic.split("$rid=").nth(1).expect("a request id").to_owned();
    link.publish(&format!("$iothub/methods/res/201/?$rid={rid}"), "7").await;
    hub.until("/jobs/v2/calls", "completed", |job| job["status"] == "completed").await;
    let found = rows(&hub, "SELECT * FROM devices.jobs WHERE jobId = 'calls' AND deviceId = 'd1'").await;
    let [row] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((&row["deviceId"], &row["moduleId"]), (&json!("d1"), &json!("m1")));
    assert_eq!(row["outcome"]["deviceMethodResponse"], json!({"status": 201, "payload": 7}));
    let found = rows(&hub, "SELECT * FROM devices.jobs WHERE jobId = 'twins'").await;
    let targets: Vec<_> = found.iter().map(|row| (row["deviceId"].clone(), row["moduleId"].clone())).collect();
    assert_eq!(targets, [(json!("d1"), json!("m1")), (json!("d2"), json!("m1"))]);
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_configuration_follows_its_modules() {
    let hub = Service::new().await;
    create(&hub, "d1", "lock").await;
    create(&hub, "d1", "sensor").await;
    let configuration = json!({
        "content": {"moduleContent": {"properties.desired.bolts": 2}},
        "targetCondition": "FROM devices.modules WHERE moduleId = 'lock'",
        "priority": 1,
        "metrics": {"queries": {"mine": "SELECT moduleId FROM devices.modules WHERE configurations.[[bolts]].status = 'Applied'"}},
    });
    assert_eq!(hub.owner("PUT /configurations/bolts", &[], &configuration.to_string()).await.status, 200);
    let has_bolts = |twin: &Value| twin["properties"]["desired"]["bolts"] == 2;
    let twin = hub.until("/twins/d1/modules/lock", "bolts", has_bolts).await;
    assert_eq!(twin["configurations"], json!({"bolts": {"status": "Applied"}}));
    // One that comes later, too.
    create(&hub, "d2", "lock").await;
    hub.until("/twins/d2/modules/lock", "bolts", has_bolts).await;
    let counted = hub.until("/configurations/bolts", "counts", |configuration| {
        configuration["systemMetrics"]["results"]["appliedCount"] == 2
    });
    assert_eq!(counted.await["metrics"]["results"], json!({"mine": 2}));
    for path in ["/twins/d1", "/twins/d1/modules/sensor"] {
        let twin = hub.owner(&format!("GET {path}"), &[], "").await.json();
        assert!(twin.get("configurations").is_none() && !has_bolts(&twin), "{twin}");
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn modules_and_their_sessions_outlive_the_hub() {
    let hub = Service::new().await;
    let key = primary_key(&create(&hub, "d1", "m1").await);
    let (_, mut link) = connect(&hub, "d1", "m1", &key).await;
    link.subscribe("$iothub/twin/PATCH/properties/desired/#").await;
    link.report(&json!({"bolts": 2})).await;
    link.leave().await;
    let before = hub.owner("GET /devices/d1/modules/m1", &[], "").await.json();
    let twin = hub.owner("GET /twins/d1/modules/m1", &[], "").await.json();
    let hub = hub.restart().await;
    assert_eq!(hub.owner("GET /devices/d1/modules/m1", &[], "").await.json(), before);
    assert_eq!(hub.owner("GET /twins/d1/modules/m1", &[], "").await.json(), twin);
    let (_, mut link) = connect(&hub, "d1", "m1", &key).await;
    let patch = r#"{"properties":{"desired":{"x":1}}}"#;
    assert_eq!(hub.owner("PATCH /twins/d1/modules/m1", &[], patch).await.status, 200);
    let (topic, _) = link.next_publish().await;
    assert_eq!(topic, "$iothub/twin/PATCH/properties/desired/?$version=2", "its subscription is still there");
    hub.hub.stop().await;
}
