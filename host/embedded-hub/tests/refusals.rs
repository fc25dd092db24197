//! Who may do what, and how everything else is refused: every route of the service API.

mod support;

use chrono::{TimeDelta, Utc};
use iothub_protocol::id::DeviceId;
use iothub_protocol::sas::SharedKey;
use serde_json::Value;
use support::{POLICIES, Reply, Service};

/// What a route needs of a policy.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    RegistryRead,
    RegistryWrite,
    ServiceConnect,
    DeviceConnect,
}

use Needs::{DeviceConnect, RegistryRead, RegistryWrite, ServiceConnect};

impl Needs {
    /// The policies that have it, by Azure's table of default policies.
    fn policies(self) -> &'static [&'static str] {
        match self {
            RegistryRead => &["iothubowner", "registryRead", "registryReadWrite"],
            RegistryWrite => &["iothubowner", "registryReadWrite"],
            ServiceConnect => &["iothubowner", "service"],
            DeviceConnect => &["iothubowner", "device"],
        }
    }
}

const LOCK: &str = "00000000-0000-0000-0000-000000000000";

/// Every route, with a body that a route which reads one takes, and what it needs.
fn routes() -> Vec<(String, &'static str, Needs)> {
    let lock = |prefix: &str, suffix: &str| format!("{prefix}/{LOCK}{suffix}");
    let routes = [
        ("GET /devices", "", RegistryRead),
        ("GET /devices/", "", RegistryRead),
        ("POST /devices", "[]", RegistryWrite),
        ("GET /devices/d1", "", RegistryRead),
        ("PUT /devices/d1", "{}", RegistryWrite),
        ("DELETE /devices/d9", "", RegistryWrite),
        ("DELETE /devices/d1/commands", "", ServiceConnect),
        ("GET /configurations", "", RegistryRead),
        ("GET /configurations/c1", "", RegistryRead),
        ("PUT /configurations/c1", "{}", RegistryWrite),
        ("DELETE /configurations/c9", "", RegistryWrite),
        ("POST /configurations/testQueries", "{}", RegistryRead),
        ("GET /messages/events?kind=twins", "", ServiceConnect),
        ("GET /statistics/devices", "", RegistryRead),
        ("GET /statistics/service", "", ServiceConnect),
        ("GET /twins/d1", "", ServiceConnect),
        ("PATCH /twins/d1", "{}", ServiceConnect),
        ("PUT /twins/d1", "{}", ServiceConnect),
        ("POST /twins/d1/methods", r#"{"methodName":"m"}"#, ServiceConnect),
        ("POST /devices/query", r#"{"query":"SELECT * FROM devices"}"#, ServiceConnect),
        ("GET /jobs/v2/query", "", ServiceConnect),
        ("PUT /jobs/v2/j1", "{}", ServiceConnect),
        ("GET /jobs/v2/j1", "", ServiceConnect),
        ("POST /jobs/v2/j1/cancel", "", ServiceConnect),
        ("GET /messages/serviceBound/feedback", "", ServiceConnect),
        ("GET /devices/d1/messages/deviceBound", "", DeviceConnect),
    ];
    let mut routes: Vec<_> = routes.map(|(request, body, needs)| (request.to_owned(), body, needs)).to_vec();
    for (prefix, suffix, needs) in [
        ("DELETE /messages/serviceBound/feedback", "", ServiceConnect),
        ("POST /messages/servicebound/feedback", "/abandon", ServiceConnect),
        ("DELETE /devices/d1/messages/deviceBound", "", DeviceConnect),
        ("DELETE /devices/d1/messages/devicebound", "?reject", DeviceConnect),
        ("POST /devices/d1/messages/deviceBound", "/abandon", DeviceConnect),
    ] {
        routes.push((lock(prefix, suffix), "", needs));
    }
    routes
}

fn assert_refused(reply: &Reply, status: u16, code: &str, what: &str) {
    assert_eq!((reply.status, reply.error().as_str()), (status, code), "{what}: {reply:?}");
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{what}: {reply:?}");
    assert_eq!(reply.header("iothub-errorcode"), Some(code.to_ascii_lowercase().as_str()), "{what}");
    assert!(!reply.body.contains("sig="), "{what}: a token is shown");
    let envelope = reply.json();
    assert!(envelope["Message"].is_string() && envelope["ExceptionMessage"].is_string(), "{what}: {envelope}");
}

#[tokio::test]
async fn every_policy_may_do_what_it_is_for_and_nothing_else() {
    let hub = Service::new().await;
    hub.owner("PUT /devices/d1", &[], "{}").await;
    for (request, body, needs) in routes() {
        for policy in POLICIES {
            let reply = hub.with_token(&hub.token(policy), &request, &[], body).await;
            let what = format!("{request} by {policy}");
            if needs.policies().contains(&policy) {
                assert_ne!(reply.status, 401, "{what}: {reply:?}");
            } else if needs == DeviceConnect {
                // As over MQTT, a device is not told why.
                assert_refused(&reply, 401, "IotHubUnauthorized", &what);
            } else {
                assert_refused(&reply, 401, "IotHubUnauthorizedAccess", &what);
            }
        }
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_token_that_is_none_opens_nothing() {
    let hub = Service::new().await;
    let id = DeviceId::parse("d1").expect("an id");
    let credentials = hub.hub.handle.ensure_device(&id).await.expect("a device");
    let later = Utc::now() + TimeDelta::seconds(60);
    let owner = hub.token("iothubowner");
    let device = credentials.key().expect("a key").sign("localhost/devices/d1", None, later);
    let bad = [
        ("nonsense", "nonsense".to_owned()),
        ("a scheme alone", "SharedAccessSignature".to_owned()),
        ("a bearer", "Bearer abc".to_owned()),
        ("expired", hub.token_for("iothubowner", "localhost", TimeDelta::seconds(-1))),
        ("another key", SharedKey::from_random([7; 32]).sign("localhost", Some("iothubowner"), later)),
        ("another policy's name", owner.replace("skn=iothubowner", "skn=service")),
        ("no such policy", owner.replace("skn=iothubowner", "skn=nobody")),
        ("no policy", owner.replace("&skn=iothubowner", "")),
        ("a changed expiry", owner.replace("&se=", "&se=9")),
        ("a changed resource", owner.replace("sr=localhost", "sr=otherhost")),
        ("another device", hub.token_for("iothubowner", "localhost/devices/d2", TimeDelta::seconds(60))),
    ];
    for (request, body, needs) in routes() {
        let missing = hub.plain(&request, &[], body.as_bytes()).await;
        assert_refused(&missing, 401, "IotHubUnauthorized", &request);
        for (name, token) in &bad {
            let reply = hub.with_token(token, &request, &[], body).await;
            assert_refused(&reply, 401, "IotHubUnauthorized", &format!("{request} with {name}"));
        }
        let own = hub.with_token(&device, &request, &[], body).await;
        if needs == DeviceConnect {
            assert_ne!(own.status, 401, "{request}: {own:?}");
        } else {
            assert_refused(&own, 401, "IotHubUnauthorized", &format!("{request} with the device's key"));
        }
    }
    // A token for the registry alone reaches the registry alone.
    let registry = hub.token_for("iothubowner", "localhost/devices", TimeDelta::seconds(60));
    for (request, body, needs) in routes() {
        let reply = hub.with_token(&registry, &request, &[], body).await;
        let is_elsewhere = needs == ServiceConnect || request.contains("/configurations");
        assert_eq!(reply.status == 401, is_elsewhere, "{request}: {reply:?}");
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused_wherever_there_is_one() {
    let hub = Service::new().await;
    hub.owner("PUT /devices/d1", &[], "{}").await;
    let reads = |request: &str, body: &str| !body.is_empty() || request.starts_with("PUT");
    let bodies: Vec<_> = routes().into_iter().filter(|(request, body, _)| reads(request, body)).collect();
    assert_eq!(bodies.len(), 9, "the routes that read a body");
    let large = format!("\"{}\"", "x".repeat(1024 * 1024));
    for (request, body, _) in bodies {
        for broken in ["{", "", "\u{0}", "nul", "\"\\ud800\""] {
            let reply = hub.owner(&request, &[], broken).await;
            assert_refused(&reply, 400, "IotHubFormatError", &format!("{request} with {broken:?}"));
        }
        for shape in ["7", "\"text\""] {
            let reply = hub.owner(&request, &[], shape).await;
            assert_eq!(reply.status, 400, "{request} with {shape}: {reply:?}");
        }
        let reply = hub.owner(&request, &[], &large).await;
        assert_refused(&reply, 413, "MessageTooLarge", &request);
        for other in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "x", ""] {
            let header = format!("Content-Type: {other}");
            let reply = hub.owner(&request, &[&header], body).await;
            assert_refused(&reply, 415, "GenericUnsupportedMediaType", &format!("{request} as {other:?}"));
        }
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=UTF-8"] {
            let header = format!("Content-Type: {json}");
            assert_ne!(hub.owner(&request, &[&header], body).await.status, 415, "{request} as {json:?}");
        }
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn each_mistake_has_its_code() {
    let hub = Service::new().await;
    hub.owner("PUT /devices/d1", &[], "{}").await;
    let long_id = "x".repeat(129);
    let many: Vec<Value> = (0..101).map(|n| serde_json::json!({"id": format!("b{n}")})).collect();
    let many = Value::Array(many).to_string();
    let twin_job = |more: &str| {
        format!(
            r#"{{"type":"scheduleUpdateTwin","updateTwin":{{"etag":"*","tags":{{"a":1}}}},"queryCondition":"*"{more}}}"#
        )
    };
    let job = twin_job("");
    assert_eq!(hub.owner("PUT /jobs/v2/j1", &[], &job).await.status, 200);
    assert_eq!(hub.owner("PUT /configurations/c1", &[], "{}").await.status, 200);
    let no_etag = job.replace(r#""etag":"*","#, "");
    let odd_type = job.replace("scheduleUpdateTwin", "scheduleTwinUpdate");
    let long_query = format!(r#"{{"query":"SELECT * FROM devices WHERE deviceId = '{}'"}}"#, "x".repeat(8192));
    for (request, headers, body, status, code) in [
        // What is not there.
        ("GET /nowhere", &[][..], "", 404, "IotHubNotFound"),
        ("GET /devices/d9", &[], "", 404, "DeviceNotFound"),
        ("DELETE /devices/d9", &[], "", 404, "DeviceNotFound"),
        ("PUT /devices/d9", &["If-Match: \"*\""], "{}", 404, "DeviceNotFound"),
        ("GET /twins/d9", &[], "", 404, "DeviceNotFound"),
        ("PATCH /twins/d9", &[], "{}", 404, "DeviceNotFound"),
        ("PUT /twins/d9", &[], "{}", 404, "DeviceNotFound"),
        ("POST /twins/d9/methods", &[], r#"{"methodName":"m"}"#, 404, "DeviceNotFound"),
        ("DELETE /devices/d9/commands", &[], "", 404, "DeviceNotFound"),
        ("GET /jobs/v2/j9", &[], "", 404, "JobNotFound"),
        ("POST /jobs/v2/j9/cancel", &[], "", 404, "JobNotFound"),
        ("GET /configurations/c9", &[], "", 404, "ConfigurationNotFound"),
        ("DELETE /configurations/c9", &[], "", 404, "ConfigurationNotFound"),
        ("PUT /configurations/c9", &["If-Match: *"], "{}", 404, "ConfigurationNotFound"),
        // What is there already, or not any more as it was.
        ("PUT /configurations/c1", &[], "{}", 409, "ConfigurationAlreadyExists"),
        ("PUT /configurations/c1", &["If-Match: \"AAAA\""], "{}", 412, "PreconditionFailed"),
        ("DELETE /configurations/c1", &["If-Match: AAAA"], "", 412, "PreconditionFailed"),
        ("PUT /devices/d1", &[], "{}", 409, "DeviceAlreadyExists"),
        ("PUT /jobs/v2/j1", &[], &job, 409, "JobAlreadyExists"),
        ("PUT /devices/d1", &["If-Match: \"AAAA\""], "{}", 412, "PreconditionFailed"),
        ("DELETE /devices/d1", &["If-Match: AAAA"], "", 412, "PreconditionFailed"),
        ("PATCH /twins/d1", &["If-Match: \"AAAA\""], "{}", 412, "PreconditionFailed"),
        ("PUT /twins/d1", &["If-Match: AAAA"], "{}", 412, "PreconditionFailed"),
        ("PUT /jobs/v2/j2", &[], &no_etag, 412, "PreconditionFailed"),
        ("DELETE /messages/serviceBound/feedback/x", &[], "", 412, "DeviceMessageLockLost"),
        // Methods that a resource does not have.
        ("POST /devices/d1", &[], "", 405, "GenericMethodNotAllowed"),
        ("PATCH /devices/d1", &[], "{}", 405, "GenericMethodNotAllowed"),
        ("DELETE /twins/d1", &[], "", 405, "GenericMethodNotAllowed"),
        ("GET /twins/d1/methods", &[], "", 405, "GenericMethodNotAllowed"),
        ("DELETE /jobs/v2/j1", &[], "", 405, "GenericMethodNotAllowed"),
        ("GET /devices/query", &[], "", 405, "GenericMethodNotAllowed"),
        ("PATCH /configurations/c1", &[], "{}", 405, "GenericMethodNotAllowed"),
        ("POST /devices/d1/applyConfigurationContent", &[], "{}", 404, "IotHubNotFound"),
        // Ids that are none.
        ("PUT /configurations/Upper", &[], "{}", 400, "ArgumentInvalid"),
        ("GET /devices/a%2Fb", &[], "", 400, "ArgumentInvalid"),
        ("PUT /devices/a%20b", &[], "{}", 400, "ArgumentInvalid"),
        ("DELETE /devices/%c3%a9", &[], "", 400, "ArgumentInvalid"),
        ("GET /twins/%ff", &[], "", 400, "ArgumentInvalid"),
        ("PATCH /twins/a%3Cb", &[], "{}", 400, "ArgumentInvalid"),
        ("POST /twins/a%20b/methods", &[], r#"{"methodName":"m"}"#, 400, "ArgumentInvalid"),
        ("GET /jobs/v2/a%20b", &[], "", 400, "ArgumentInvalid"),
        (&format!("GET /devices/{long_id}"), &[], "", 400, "ArgumentInvalid"),
        // What a body says.
        ("PUT /devices/d2", &[], r#"{"deviceId":"d3"}"#, 400, "ArgumentInvalid"),
        ("PUT /devices/d2", &[], r#"{"status":"asleep"}"#, 400, "ArgumentInvalid"),
        ("PATCH /twins/d1", &[], r#"{"tags":[]}"#, 400, "ArgumentInvalid"),
        ("PATCH /twins/d1", &[], r#"{"properties":{"desired":{"a.b":1}}}"#, 400, "ArgumentInvalid"),
        ("PUT /configurations/c2", &[], r#"{"priority":-1}"#, 400, "ArgumentInvalid"),
        ("PUT /configurations/c2", &[], r#"{"targetCondition":"tags.a ="}"#, 400, "ArgumentInvalid"),
        ("POST /devices", &[], &many, 413, "TooManyDevices"),
        ("POST /devices", &[], r#"[{"id":"a"},{"id":"a"}]"#, 400, "DeviceDefinedMultipleTimes"),
        ("POST /twins/d1/methods", &[], r#"{"methodName":"m","responseTimeoutInSeconds":4}"#, 400, "ArgumentInvalid"),
        ("POST /twins/d1/methods", &[], r#"{"methodName":"m"}"#, 404, "DeviceNotOnline"),
        ("PUT /jobs/v2/j2", &[], &odd_type, 400, "GenericBadRequest"),
        ("POST /devices/query", &[], "{}", 400, "ArgumentNull"),
        ("POST /devices/query", &[], r#"{"query":"SELECT"}"#, 400, "ArgumentInvalid"),
        ("POST /devices/query", &[], &long_query, 400, "ArgumentInvalid"),
        // What stands in headers and after the question mark.
        ("GET /devices?top=1&top=2", &[], "", 400, "ArgumentInvalid"),
        ("GET /jobs/v2/query?jobStatus=odd", &[], "", 400, "ArgumentInvalid"),
        (
            "POST /devices/query",
            &["x-ms-continuation: x"],
            r#"{"query":"SELECT * FROM devices"}"#,
            400,
            "ArgumentInvalid",
        ),
        ("GET /devices/d1/messages/deviceBound", &["IotHub-MessageLockTimeout: 4"], "", 400, "ArgumentInvalid"),
    ] {
        assert_refused(&hub.owner(request, headers, body).await, status, code, &format!("{request} {body:.80}"));
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn methods_are_refused_in_their_own_envelope() {
    let hub = Service::new().await;
    hub.owner("PUT /devices/d1", &[], "{}").await;
    let methods = "POST /twins/d1/methods?api-version=2021-04-12";
    let call = r#"{"methodName":"m"}"#;
    let unsigned = hub.plain(methods, &[], call.as_bytes()).await;
    let wrong_type = hub.owner(methods, &["Content-Type: text/plain"], call).await;
    let odd_id = hub.owner("POST /twins/a%20b/methods", &[], call).await;
    let offline = hub.owner(methods, &[], call).await;
    for (reply, number) in [(&unsigned, 401_003), (&wrong_type, 415_000), (&odd_id, 400_004), (&offline, 404_103)] {
        let envelope = reply.json();
        let inner: Value = serde_json::from_str(envelope["Message"].as_str().expect("text")).expect("JSON in the text");
        assert_eq!(inner["errorCode"], number, "{reply:?}");
        for member in ["trackingId", "message", "timestampUtc"] {
            assert!(inner[member].is_string(), "{member}: {inner}");
        }
        assert_eq!(envelope["ExceptionMessage"], "");
    }
    let inner: Value = serde_json::from_str(offline.json()["Message"].as_str().expect("text")).expect("JSON");
    assert_eq!(inner["message"], "Timed out waiting for device to connect.");
    assert_eq!(inner["info"]["timeout"], "00:00:00");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_device_is_deleted_with_and_without_a_condition() {
    let hub = Service::new().await;
    for (headers, expected) in [(&[][..], 204), (&["If-Match: *"], 204), (&["If-Match: \"MQ==\""], 412)] {
        let created = hub.owner("PUT /devices/d1", &[], "{}").await.status;
        assert_eq!(created, 200);
        let reply = hub.owner("DELETE /devices/d1", headers, "").await;
        assert_eq!(reply.status, expected, "{headers:?}: {reply:?}");
    }
    hub.hub.stop().await;
}
