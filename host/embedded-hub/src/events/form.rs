//! Events as JSON: system properties, application properties and body as Azure's built-in endpoint delivers them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use iothub_protocol::time;
use serde_json::{Map, Value, json};

use super::{AuthMethod, EventKind, EventLog, HubEvent, Sender, TwinChange};

/// The hub's name in events. Azure's is the first label of its host name; this hub is reached as `localhost`.
const HUB_NAME: &str = "localhost";
/// Ticks of 100 ns between year 1601 and 1970.
const FILE_TIME_BEFORE_1970: u64 = 116_444_736_000_000_000;

/// The stamp that names the module.
const MODULE_STAMP: &str = "iothub-connection-module-id";

/// Properties of a message that its sender sets for the system, and their names at the built-in endpoint.
const SYSTEM_PROPERTIES: [(&str, &str); 11] = [
    ("$.mid", "message-id"),
    ("$.cid", "correlation-id"),
    ("$.uid", "user-id"),
    ("$.to", "to"),
    ("$.exp", "absolute-expiry-time"),
    ("$.ct", "content-type"),
    ("$.ce", "content-encoding"),
    ("$.ifid", "iothub-interface-id"),
    ("$.sub", "dt-subject"),
    ("$.on", "iothub-outputname"),
    ("iothub-creation-time-utc", "iothub-creation-time-utc"),
];

impl EventLog {
    /// An event for readers. A body that is JSON stands as JSON, other text as text, bytes as `bodyBase64`.
    pub fn to_json(&self, sequence: u64, event: &HubEvent) -> Value {
        let mut line = Map::new();
        line.insert("id".into(), json!(self.id(sequence)));
        line.insert("sequence".into(), json!(sequence));
        line.insert("time".into(), json!(time::format(event.time)));
        line.insert("kind".into(), json!(event.kind_name()));
        line.insert("deviceId".into(), json!(event.address.device()));
        if let Some(module) = event.address.module() {
            line.insert("moduleId".into(), json!(module));
        }
        match &event.kind {
            EventKind::Telemetry { properties, body, sender } => telemetry(&mut line, event, properties, body, *sender),
            EventKind::Twin { change, body } => {
                let operation = if *change == TwinChange::Replaced { "replaceTwin" } else { "updateTwin" };
                let notification = Notification::new("twinChangeEvents", "twinChangeNotification", operation);
                self.notification(&mut line, sequence, event, &notification, stored(body));
            }
            EventKind::Connected | EventKind::Disconnected => {
                let is_connected = event.kind == EventKind::Connected;
                let operation = if is_connected { "deviceConnected" } else { "deviceDisconnected" };
                let notification =
                    Notification::new("deviceConnectionStateEvents", "deviceConnectionStateNotification", operation);
                let body = json!({"sequenceNumber": self.connection_number(sequence)});
                self.notification(&mut line, sequence, event, &notification, body);
            }
            EventKind::Created { twin } | EventKind::Deleted { twin } => {
                let is_creation = matches!(event.kind, EventKind::Created { .. });
                let notification = Notification::of_life_cycle(is_creation, event.address.is_module());
                self.notification(&mut line, sequence, event, &notification, stored(twin));
            }
            EventKind::Queued { message_id, sequence } => {
                line.insert("messageId".into(), json!(message_id));
                line.insert("messageSequence".into(), json!(sequence));
            }
            EventKind::Settled { message_id, sequence, ended, .. } => {
                line.insert("messageId".into(), json!(message_id));
                line.insert("messageSequence".into(), json!(sequence));
                line.insert("statusCode".into(), json!(ended.name()));
            }
        }
        Value::Object(line)
    }

    fn notification(
        &self,
        line: &mut Map<String, Value>,
        sequence: u64,
        event: &HubEvent,
        notification: &Notification,
        body: Value,
    ) {
        let mut system = json!({
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "correlation-id": self.id(sequence),
            "user-id": HUB_NAME,
            "iothub-connection-device-id": event.address.device(),
            "iothub-enqueuedtime": event.time.timestamp_millis(),
            "iothub-message-source": notification.source,
        });
        let mut application = json!({
            "deviceId": event.address.device(),
            "hubName": HUB_NAME,
            "iothub-message-schema": notification.schema,
            "operationTimestamp": ticks(event.time),
            "opType": notification.operation,
        });
        if let Some(module) = event.address.module() {
            system[MODULE_STAMP] = json!(module);
            application["moduleId"] = json!(module);
        }
        line.insert("systemProperties".into(), system);
        line.insert("properties".into(), application);
        line.insert("body".into(), body);
    }

    /// 64 hexadecimal digits that grow with each event and as text compare like numbers, also over restarts.
    fn connection_number(&self, sequence: u64) -> String {
        let began = self.epoch.saturating_mul(10_000).saturating_add(FILE_TIME_BEFORE_1970);
        format!("{:016}{began:016X}{:08X}{sequence:024X}", 0, 2)
    }
}

/// What tells one kind of notification from another.
struct Notification {
    source: &'static str,
    schema: &'static str,
    operation: &'static str,
}

impl Notification {
    fn new(source: &'static str, schema: &'static str, operation: &'static str) -> Notification {
        Notification { source, schema, operation }
    }

    fn of_life_cycle(is_creation: bool, is_module: bool) -> Notification {
        let (source, schema) = if is_module {
            ("moduleLifecycleEvents", "moduleLifecycleNotification")
        } else {
            ("deviceLifecycleEvents", "deviceLifecycleNotification")
        };
        let operation = match (is_creation, is_module) {
            (true, false) => "createDeviceIdentity",
            (false, false) => "deleteDeviceIdentity",
            (true, true) => "createModuleIdentity",
            (false, true) => "deleteModuleIdentity",
        };
        Notification::new(source, schema, operation)
    }
}

fn telemetry(
    line: &mut Map<String, Value>,
    event: &HubEvent,
    properties: &[(String, String)],
    body: &[u8],
    sender: Sender,
) {
    let (mut system, mut application) = (Map::new(), Map::new());
    for (name, value) in properties {
        match SYSTEM_PROPERTIES.iter().find(|(short, _)| short == name) {
            Some((_, name)) => system.insert((*name).to_owned(), json!(value)),
            None => application.insert(name.clone(), json!(value)),
        };
    }
    let mut stamps = json!({
        "iothub-connection-device-id": event.address.device(),
        "iothub-connection-auth-generation-id": sender.generation_id.to_string(),
        "iothub-connection-auth-method": sender.auth.stamp(event.address.is_module()),
        "iothub-enqueuedtime": event.time.timestamp_millis(),
        "iothub-message-source": "Telemetry",
    });
    if let Some(module) = event.address.module() {
        stamps[MODULE_STAMP] = json!(module);
    }
    // After the sender's own, so that it cannot pass for another.
    system.extend(stamps.as_object().cloned().unwrap_or_default());
    line.insert("systemProperties".into(), Value::Object(system));
    line.insert("properties".into(), Value::Object(application));
    let (name, body) = body_member(body);
    line.insert(name.into(), body);
}

impl AuthMethod {
    /// JSON text, as the hub stamps it on messages.
    fn stamp(self, is_module: bool) -> String {
        let own = if is_module { "module" } else { "device" };
        let (scope, kind) = match self {
            AuthMethod::OwnKey => (own, "sas"),
            AuthMethod::PolicyKey => ("hub", "sas"),
            AuthMethod::Certificate => (own, "x509"),
        };
        format!(r#"{{"scope":"{scope}","type":"{kind}","issuer":"iothub","acceptingIpFilterRule":null}}"#)
    }
}

/// A message's body under the name that says how it is shown: JSON as JSON, other text as text, bytes in base64.
pub(crate) fn body_member(body: &[u8]) -> (&'static str, Value) {
    match (serde_json::from_slice::<Value>(body), std::str::from_utf8(body)) {
        (Ok(document), _) => ("body", document),
        (Err(_), Ok(text)) => ("body", json!(text)),
        (Err(_), Err(_)) => ("bodyBase64", json!(BASE64.encode(body))),
    }
}

/// A body that this hub wrote.
fn stored(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// As .NET writes times: seven digits of a second.
fn ticks(time: DateTime<Utc>) -> String {
    format!("{}.{:07}Z", time.format("%Y-%m-%dT%H:%M:%S"), time.timestamp_subsec_nanos() / 100 % 10_000_000)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use iothub_protocol::address::Address;

    use super::super::tests::{SENDER, telemetry};
    use super::*;

    fn id() -> Address {
        Address::parse("d1").expect("an address")
    }

    #[test]
    fn a_body_is_shown_as_what_it_is() {
        let log = EventLog::new();
        assert_eq!(log.to_json(0, &telemetry(b"{\"a\":1}"))["body"], json!({"a": 1}));
        assert_eq!(log.to_json(0, &telemetry(b"hello"))["body"], json!("hello"));
        assert_eq!(log.to_json(0, &telemetry(&[0xff]))["bodyBase64"], json!("/w=="));
    }

    #[test]
    fn telemetry_has_the_systems_names_and_stamps() {
        let properties = [
            ("$.mid", "m1"),
            ("$.ct", "application/json"),
            ("iothub-creation-time-utc", "2026-11-24T12:00:00Z"),
            ("colour", "red"),
        ];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let event = HubEvent::telemetry(id(), DateTime::UNIX_EPOCH, properties, b"{}", SENDER);
        let log = EventLog::new();
        let auth = r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#;
        let expected = json!({
            "id": log.id(7), "sequence": 7, "time": "1970-01-01T00:00:00.000Z", "kind": "telemetry", "deviceId": "d1",
            "systemProperties": {
                "message-id": "m1",
                "content-type": "application/json",
                "iothub-creation-time-utc": "2026-11-24T12:00:00Z",
                "iothub-connection-device-id": "d1",
                "iothub-connection-auth-generation-id": "638000000000000000",
                "iothub-connection-auth-method": auth,
                "iothub-enqueuedtime": 0,
                "iothub-message-source": "Telemetry",
            },
            "properties": {"colour": "red"},
            "body": {},
        });
        assert_eq!(log.to_json(7, &event), expected);
        for auth in [AuthMethod::OwnKey, AuthMethod::PolicyKey, AuthMethod::Certificate] {
            assert!(serde_json::from_str::<Value>(&auth.stamp(false)).is_ok_and(|stamp| stamp["issuer"] == "iothub"));
        }
    }

    #[test]
    fn a_modules_events_name_it_beside_its_device() {
        let module = || Address::parse("d1/m1").expect("an address");
        let log = EventLog::new();
        let properties = vec![("$.on".to_owned(), "out".to_owned())];
        let line = log.to_json(0, &HubEvent::telemetry(module(), DateTime::UNIX_EPOCH, properties, b"1", SENDER));
        let system = &line["systemProperties"];
        assert_eq!((&line["deviceId"], &line["moduleId"]), (&json!("d1"), &json!("m1")));
        assert_eq!((&system[MODULE_STAMP], &system["iothub-outputname"]), (&json!("m1"), &json!("out")));
        assert_eq!(system["iothub-connection-device-id"], "d1");
        let auth = r#"{"scope":"module","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#;
        assert_eq!(system["iothub-connection-auth-method"], auth);
        let twin = json!({});
        for (event, source, operation) in [
            (HubEvent::created(module(), DateTime::UNIX_EPOCH, &twin), "moduleLifecycleEvents", "createModuleIdentity"),
            (HubEvent::deleted(module(), DateTime::UNIX_EPOCH, &twin), "moduleLifecycleEvents", "deleteModuleIdentity"),
            (HubEvent::connected(module(), DateTime::UNIX_EPOCH), "deviceConnectionStateEvents", "deviceConnected"),
            (
                HubEvent::twin(module(), DateTime::UNIX_EPOCH, TwinChange::Reported, &twin),
                "twinChangeEvents",
                "updateTwin",
            ),
        ] {
            let line = log.to_json(0, &event);
            let (system, application) = (&line["systemProperties"], &line["properties"]);
            assert_eq!((&system["iothub-message-source"], &application["opType"]), (&json!(source), &json!(operation)));
            assert_eq!((&system[MODULE_STAMP], &application["moduleId"]), (&json!("m1"), &json!("m1")), "{operation}");
        }
    }

    #[test]
    fn notifications_are_azures() {
        let log = EventLog::new();
        let twin = json!({"version": 2});
        let at = DateTime::from_timestamp_nanos(1_654_109_018_556_102_400);
        for (event, source, schema, operation) in [
            (
                HubEvent::connected(id(), at),
                "deviceConnectionStateEvents",
                "deviceConnectionStateNotification",
                "deviceConnected",
            ),
            (
                HubEvent::disconnected(id(), at),
                "deviceConnectionStateEvents",
                "deviceConnectionStateNotification",
                "deviceDisconnected",
            ),
            (
                HubEvent::created(id(), at, &twin),
                "deviceLifecycleEvents",
                "deviceLifecycleNotification",
                "createDeviceIdentity",
            ),
            (
                HubEvent::deleted(id(), at, &twin),
                "deviceLifecycleEvents",
                "deviceLifecycleNotification",
                "deleteDeviceIdentity",
            ),
            (
                HubEvent::twin(id(), at, TwinChange::Reported, &twin),
                "twinChangeEvents",
                "twinChangeNotification",
                "updateTwin",
            ),
            (
                HubEvent::twin(id(), at, TwinChange::Updated, &twin),
                "twinChangeEvents",
                "twinChangeNotification",
                "updateTwin",
            ),
            (
                HubEvent::twin(id(), at, TwinChange::Replaced, &twin),
                "twinChangeEvents",
                "twinChangeNotification",
                "replaceTwin",
            ),
        ] {
            let line = log.to_json(3, &event);
            let system = json!({
                "content-encoding": "utf-8",
                "content-type": "application/json",
                "correlation-id": log.id(3),
                "user-id": "localhost",
                "iothub-connection-device-id": "d1",
                "iothub-enqueuedtime": 1_654_109_018_556_u64,
                "iothub-message-source": source,
            });
            let application = json!({
                "deviceId": "d1",
                "hubName": "localhost",
                "iothub-message-schema": schema,
                "operationTimestamp": "2022-06-01T18:43:38.5561024Z",
                "opType": operation,
            });
            assert_eq!((&line["systemProperties"], &line["properties"]), (&system, &application), "{operation}");
            if source == "deviceConnectionStateEvents" {
                let number = line["body"]["sequenceNumber"].as_str().expect("a number");
                assert!(number.len() == 64 && number.bytes().all(|byte| byte.is_ascii_hexdigit()), "{number}");
                assert!(number < log.connection_number(4).as_str());
            } else {
                assert_eq!(line["body"], twin, "{operation}");
            }
        }
    }

    #[test]
    fn later_rings_have_larger_connection_numbers() {
        let (mut earlier, mut later) = (EventLog::new(), EventLog::new());
        (earlier.epoch, later.epoch) = (1_654_109_018_000, 1_654_109_019_000);
        assert!(earlier.connection_number(u64::MAX) < later.connection_number(0));
        assert_eq!(&earlier.connection_number(7)[..40], "000000000000000001D875E7819EE90000000002");
        assert!(ticks(DateTime::UNIX_EPOCH).ends_with("00:00:00.0000000Z"));
        let event =
            HubEvent { address: id(), time: DateTime::UNIX_EPOCH, kind: EventKind::Created { twin: Bytes::new() } };
        assert_eq!(earlier.to_json(0, &event)["body"], Value::Null, "nothing that is stored can make it panic");
    }
}
