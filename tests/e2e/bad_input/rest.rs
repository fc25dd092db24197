//! Bad requests to the hub.

use std::path::Path;

use chrono::{TimeDelta, Utc};
use durable_store::sql::{Connection, OpenFlags};
use iothub_protocol::connection_string::ServiceConnectionString;
use iothub_protocol::error::ErrorCode::{self, *};
use iothub_protocol::sas::SharedKey;
use reqwest::Method;
use serde_json::{Value, json};

use super::assert_healthy;
use crate::harness::{FREE_PORTS, Latch, latch_ok};
use crate::rest::{Request, Rest};
use crate::{back_end, mqtt};

/// Request line, body, and what the refusal has to be: its code and some of its words.
type Case = (&'static str, Vec<u8>, ErrorCode, &'static str);

struct Hub {
    _latch: Latch,
    data: tempfile::TempDir,
    rest: Rest,
}

impl Hub {
    fn start() -> Hub {
        let data = tempfile::tempdir().expect("a temporary folder");
        let latch = Latch::start(data.path(), &[&["hub", "--devices", "1"], FREE_PORTS].concat());
        let rest = Rest::of(data.path());
        Hub { _latch: latch, data, rest }
    }

    /// Sends what is bad, with these headers, and checks the refusal and the hub after it.
    fn refuses(&self, headers: &[(&str, &str)], (line, body, code, says): Case) {
        let (method, target) = line.split_once(' ').expect("a method and a target");
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let reply = self.rest.send(Request { method, target, headers, body });
        assert_eq!((reply.status.as_u16(), reply.error.code), (code.http_status(), code), "{line}: {reply:?}");
        assert_eq!(reply.error_code, code.name(), "{line}: {reply:?}");
        assert!(reply.error.message.contains(says), "{line} should say {says:?}: {reply:?}");
        assert_healthy(self.data.path(), line);
    }

    fn refuses_owner(&self, case: Case) {
        self.refuses(&[("authorization", &self.rest.owner_token())], case);
    }
}

#[test]
fn tokens_that_are_none_or_too_weak() {
    let hub = Hub::start();
    let (rest, owner) = (&hub.rest, &hub.rest.owner);
    let hour = TimeDelta::hours(1);
    let stranger = ServiceConnectionString { key: SharedKey::from_random([7; 32]), ..owner.clone() };
    let nobody = ServiceConnectionString { policy: "nobody".to_owned(), ..owner.clone() };
    let device = mqtt::connection(hub.data.path(), "door-0001");
    let device_scope = format!("{}/devices/door-0001", owner.host.authority());
    let no_expiry =
        rest.owner_token().split('&').filter(|field| !field.starts_with("se=")).collect::<Vec<_>>().join("&");

    for (token, says) in [
        ("Bearer abc", "does not begin with"),
        ("SharedAccessSignature nonsense", "no usable sr"),
        (&no_expiry, "no usable se"),
        (&rest.owner_token().replace("sig=", "sig=%25"), "no usable sig"),
        (&rest.token(&stranger, hour), "not signed with a key of this hub"),
        (&rest.token(&nobody, hour), "not signed with a key of this hub"),
        (&rest.token(owner, TimeDelta::seconds(-1)), "the token has expired"),
        (&owner.key.sign(&device_scope, Some(&owner.policy), Utc::now() + hour), "for another resource"),
        (
            &device.key().expect("a key").sign(&device_scope, None, Utc::now() + hour),
            "not signed with a key of this hub",
        ),
    ] {
        hub.refuses(&[("authorization", token)], ("GET /twins/door-0001", vec![], IotHubUnauthorized, says));
    }
    let missing = "Authorization header missing";
    hub.refuses(&[], ("GET /twins/door-0001", vec![], IotHubUnauthorized, missing));
    // A client that sends everything before it listens must hear why, and not of a connection that was reset. It is a
    // matter of moments which of them it would be.
    for _ in 0..10 {
        hub.refuses(&[], ("PUT /jobs/v2/large", vec![b' '; 1 << 20], IotHubUnauthorized, missing));
        hub.refuses(&[], ("PUT /nowhere", vec![b' '; 1 << 20], IotHubNotFound, "no such resource"));
    }

    for (policy, line) in [
        ("device", "GET /twins/door-0001"),
        ("device", "GET /devices/door-0001"),
        ("service", "GET /devices/door-0001"),
        ("registryRead", "DELETE /devices/door-0001"),
        ("registryReadWrite", "GET /jobs/v2/any"),
    ] {
        let token = rest.token(&policy_of(hub.data.path(), policy), hour);
        hub.refuses(&[("authorization", &token)], (line, vec![], IotHubUnauthorizedAccess, policy));
    }
}

/// The connection string of a policy, whose key only the hub's store tells.
fn policy_of(data: &Path, policy: &str) -> ServiceConnectionString {
    let hub = Connection::open_with_flags(data.join("hub.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the store");
    let key: String = hub
        .query_row("SELECT primary_key FROM policies WHERE name = ?1", [policy], |row| row.get(0))
        .expect("a policy that every hub has");
    let key = SharedKey::parse(&key).expect("a key");
    ServiceConnectionString { policy: policy.to_owned(), key, ..back_end::connection(data) }
}

#[test]
fn requests_that_make_no_sense() {
    let hub = Hub::start();
    latch_ok(hub.data.path(), &["job", "twin", "--tags", "{}", "--query", "*", "--id", "there", "--wait"]);
    for case in resources().into_iter().chain(methods()).chain(jobs()).chain(queries()) {
        hub.refuses_owner(case);
    }
    let token = hub.rest.owner_token();
    let query = body(json!({"query": "SELECT * FROM devices"}));
    let continued = |text| [("authorization", token.as_str()), ("x-ms-continuation", text)];
    hub.refuses(
        &continued("bogus"),
        ("POST /devices/query", query, ArgumentInvalid, "continuation token is not one of"),
    );
    let stale = [("authorization", token.as_str()), ("if-match", "\"stale\"")];
    hub.refuses(&stale, ("PATCH /twins/door-0001", body(json!({"tags": {"a": 1}})), PreconditionFailed, ""));
}

fn resources() -> Vec<Case> {
    vec![
        ("GET /nowhere", vec![], IotHubNotFound, "no such resource"),
        ("GET /", vec![], IotHubNotFound, "no such resource"),
        ("POST /twins/door-0001", vec![], GenericMethodNotAllowed, "does not have this method"),
        ("DELETE /jobs/v2/there", vec![], GenericMethodNotAllowed, "does not have this method"),
        ("GET /devices/nobody", vec![], DeviceNotFound, "nobody"),
        ("GET /twins/nobody", vec![], DeviceNotFound, "nobody"),
        ("GET /jobs/v2/nothing", vec![], JobNotFound, "nothing"),
        ("POST /jobs/v2/there/cancel", vec![], JobRunPreconditionFailed, "has ended"),
        ("GET /devices/with%20space", vec![], ArgumentInvalid, ""),
        ("PUT /devices/door-0001", body(json!({"deviceId": "door-0001"})), DeviceAlreadyExists, "door-0001"),
        ("PUT /devices/new", body(json!({"deviceId": "other"})), ArgumentInvalid, ""),
        ("PUT /devices/new", b"{".to_vec(), IotHubFormatError, ""),
        ("POST /devices", b"[{}, ".to_vec(), IotHubFormatError, "no array of devices"),
        ("PATCH /twins/door-0001", b"{\"tags\": ".to_vec(), IotHubFormatError, ""),
        ("PATCH /twins/door-0001", body(json!({"properties": {"desired": 5}})), ArgumentInvalid, "desired"),
        ("PATCH /twins/door-0001", body(json!({"properties": {"desired": {"a.b": 5}}})), ArgumentInvalid, "a.b"),
        ("PATCH /twins/door-0001", vec![b' '; 2 << 20], MessageTooLarge, "the body is larger than 1048576 bytes"),
        ("PUT /jobs/v2/large", vec![b'['; 2 << 20], MessageTooLarge, "the body is larger than 1048576 bytes"),
    ]
}

fn methods() -> Vec<Case> {
    let call = |change: Value| {
        let mut call = json!({"methodName": "lockDoor"});
        call.as_object_mut().expect("an object").extend(change.as_object().cloned().expect("an object"));
        body(call)
    };
    let line = "POST /twins/door-0001/methods";
    vec![
        (line, b"lockDoor".to_vec(), IotHubFormatError, "not JSON"),
        (line, b"\xff\xfe".to_vec(), IotHubFormatError, "not JSON"),
        (line, body(json!({"payload": 1})), ArgumentNull, "methodName is missing"),
        (line, call(json!({"methodName": "no such name"})), ArgumentInvalid, ""),
        (line, call(json!({"responseTimeoutInSeconds": 4})), ArgumentInvalid, "must be within [5; 300]"),
        (line, call(json!({"responseTimeoutInSeconds": "x"})), ArgumentInvalid, "invalid type"),
        (line, call(json!({"connectTimeoutInSeconds": 301})), ArgumentInvalid, "must be within [0; 300]"),
        (line, call(json!({"payload": "x".repeat(129 << 10)})), MessageTooLarge, "larger than 128 KiB"),
        (line, vec![b'x'; 2 << 20], MessageTooLarge, "larger than 1048576 bytes"),
        (line, call(json!({})), DeviceNotOnline, "Timed out waiting for device to connect"),
        ("POST /twins/nobody/methods", call(json!({})), DeviceNotFound, "nobody"),
    ]
}

fn jobs() -> Vec<Case> {
    let job = |change: Value| {
        let mut job =
            json!({"type": "scheduleUpdateTwin", "updateTwin": {"etag": "*", "tags": {}}, "queryCondition": "*"});
        job.as_object_mut().expect("an object").extend(change.as_object().cloned().expect("an object"));
        body(job)
    };
    let policy = |policy: Value| job(json!({"latch": {"version": 1, "policy": policy}}));
    let line = "PUT /jobs/v2/new";
    vec![
        ("PUT /jobs/v2/there", job(json!({})), JobAlreadyExists, "the job there exists already"),
        (line, b"{\"type\": ".to_vec(), IotHubFormatError, "not JSON"),
        (line, job(json!({"type": "scheduleTeaTime"})), GenericBadRequest, "BadRequest"),
        (line, job(json!({"type": 7})), GenericBadRequest, "BadRequest"),
        (line, job(json!({"updateTwin": null})), ArgumentNull, "updateTwin is missing"),
        (line, job(json!({"updateTwin": {"etag": "x"}})), PreconditionFailed, "etag"),
        (line, job(json!({"queryCondition": null})), ArgumentNull, "queryCondition is missing"),
        (line, job(json!({"queryCondition": "x".repeat(10_000)})), ArgumentInvalid, "longer than 8192"),
        (line, job(json!({"startTime": "tomorrow"})), ArgumentInvalid, "is not an ISO 8601 time"),
        (line, job(json!({"maxExecutionTimeInSeconds": 0})), ArgumentInvalid, "must be within [1"),
        (line, job(json!({"jobId": "other"})), ArgumentInvalid, "is not the path's"),
        (line, job(json!({"latch": {"version": 2, "policy": {}}})), ArgumentInvalid, "latch.version must be 1"),
        (line, policy(json!({"speed": 1})), ArgumentInvalid, "latch.policy has no field \"speed\", only stages, rate"),
        (line, policy(json!({"stages": [{"percent": 50}]})), ArgumentInvalid, "must end with {\"percent\": 100}"),
        (line, policy(json!({"succeed": {"plugin": "lamp"}})), ArgumentInvalid, "needs a scheduleUpdateTwin that pins"),
        ("GET /jobs/v2/query?jobStatus=sleeping", vec![], ArgumentInvalid, "there is no job status"),
    ]
}

fn queries() -> Vec<Case> {
    let query = |text: &str| body(json!({ "query": text }));
    let line = "POST /devices/query";
    vec![
        (line, b"SELECT * FROM devices".to_vec(), IotHubFormatError, "the body is not"),
        (line, body(json!({})), ArgumentNull, "query is missing"),
        (line, query(""), ArgumentInvalid, "1:1"),
        (line, query("SELECT *\nFROM devices WHERE tags.site = = 'A'"), ArgumentInvalid, "2:32"),
        (line, query("SELECT * FROM planets"), ArgumentInvalid, "1:15"),
        (line, query("SELECT * FROM devices WHERE tags.site = 'A"), ArgumentInvalid, "1:41"),
        (line, query(&format!("SELECT * FROM devices WHERE {}", "(".repeat(5000))), ArgumentInvalid, ""),
    ]
}

fn body(value: Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
