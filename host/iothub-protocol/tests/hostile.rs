//! Whatever comes from a network is read or refused, never a panic; and what was taken can be read again.

use chrono::DateTime;
use iothub_protocol::address::Address;
use iothub_protocol::connection_string::{DeviceConnectionString, HostName, ServiceConnectionString};
use iothub_protocol::error::HubError;
use iothub_protocol::id::{DeviceId, JobId, MethodName, RequestId};
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::job::JobRequest;
use iothub_protocol::link::{CloudMessage, Feedback, TwinDocument};
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::plugin_report::PinState;
use iothub_protocol::sas::{SharedKey, Token};
use iothub_protocol::topic::{
    FromDevice, Subscription, ToDevice, cloud_message_topic, decode_bag, encode_bag, parse_cloud_message,
};
use iothub_protocol::twin::{DesiredNotice, Twin, TwinPatch};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn device() -> DeviceId {
    DeviceId::parse("d1").expect("an id")
}

/// A device's, and a module's.
fn addresses() -> [Address; 2] {
    ["d1", "d1/m1"].map(|text| Address::parse(text).expect("an address"))
}

fn job() -> JobId {
    JobId::parse("j1").expect("an id")
}

/// JSON with the members that the readers look for, in right and wrong places, and numbers of every size.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["*", "d1", "m", "scheduleUpdateTwin", "scheduleDeviceMethod", "sas", "enabled"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any_key(), inner, 0..6)
                .prop_map(|members| Value::Object(Map::from_iter(members))),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    let known = [
        "$version",
        "$metadata",
        "authentication",
        "cloudToDeviceMethod",
        "connectTimeoutInSeconds",
        "desired",
        "deviceId",
        "etag",
        "jobId",
        "maxExecutionTimeInSeconds",
        "methodName",
        "payload",
        "primaryKey",
        "properties",
        "queryCondition",
        "reported",
        "responseTimeoutInSeconds",
        "startTime",
        "status",
        "symmetricKey",
        "tags",
        "type",
        "updateTwin",
    ];
    prop_oneof![4 => prop::sample::select(known.map(str::to_owned).to_vec()), 1 => any::<String>(), 1 => "[a-c]"]
}

/// The field `latch` of a job, with values that are nearly right.
fn any_policy() -> impl Strategy<Value = Value> {
    let number = || {
        prop_oneof![
            6 => (0..=100_u32).prop_map(Value::from),
            1 => any::<i64>().prop_map(Value::from),
            1 => any::<f64>().prop_map(|n| json!(n)),
            1 => any_json(),
        ]
    };
    let members = |names: &'static [&'static str]| {
        let some = prop::sample::subsequence(names.to_vec(), 0..=names.len());
        (some, prop::collection::vec(number(), names.len()))
            .prop_map(|(names, numbers)| Value::Object(names.into_iter().map(str::to_owned).zip(numbers).collect()))
    };
    let stage = members(&["percent", "successThreshold", "minimumSample", "pauseInSeconds"]);
    let stages = prop::collection::vec(stage, 0..3).prop_map(|mut stages| {
        // Few are right without this.
        stages.push(json!({"percent": 100}));
        Value::from(stages)
    });
    let succeed = members(&["soakInSeconds", "timeoutInSeconds"]).prop_map(|mut succeed| {
        succeed["plugin"] = json!("door");
        succeed
    });
    let abort = members(&["failurePercent", "minimum", "windowInSeconds"]);
    let on_abort = prop::sample::select(vec!["keep", "unpin", "explode"]).prop_map(Value::from);
    let parts = (stages, number(), abort, succeed, on_abort);
    let all = ["stages", "rate", "abort", "succeed", "onAbort"];
    (parts, prop::sample::subsequence(all.to_vec(), 0..=5)).prop_map(
        |((stages, rate, abort, succeed, on_abort), used)| {
            let policy =
                json!({"stages": stages, "rate": rate, "abort": abort, "succeed": succeed, "onAbort": on_abort});
            let policy = used.into_iter().map(|name| (name.to_owned(), policy[name].clone()));
            json!({"version": 1, "policy": Map::from_iter(policy)})
        },
    )
}

/// Text made of what topics, tokens and connection strings are made of.
fn any_text() -> impl Strategy<Value = String> {
    let pieces = [
        "$iothub/",
        "methods/",
        "POST/",
        "res/",
        "twin/",
        "GET/",
        "PATCH/properties/",
        "desired/",
        "reported/",
        "devices/",
        "d1",
        "/messages/events/",
        "/messages/devicebound/",
        "%24.mid=",
        "%24.exp=2026-11-24T08:40:04Z",
        "iothub-ack=full",
        "?",
        "$rid=",
        "$version=",
        "&",
        "=",
        "%",
        "%24",
        "%ff",
        "1",
        "-1",
        "/",
        "SharedAccessSignature ",
        "sr=",
        "sig=",
        "se=",
        "skn=",
        "HostName=",
        "DeviceId=",
        "SharedAccessKey=",
        ";",
        ":",
        "AAAA",
        "é",
    ];
    let piece = prop_oneof![8 => prop::sample::select(pieces.map(str::to_owned).to_vec()), 1 => any::<String>()];
    prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

fn read_everything(body: &[u8]) {
    let _ = addresses().map(|address| drop(IdentityRequest::from_json(&address, body)));
    let _ = MethodResponse::from_device(200, body);
    let _ = DesiredNotice::from_json(body);
    let _ = TwinDocument::from_json(body);
    let _ = HubError::from_response(400, &String::from_utf8_lossy(body));
    if let Ok(method) = DirectMethod::from_json(body) {
        assert_eq!(DirectMethod::from_json(json!(method).to_string().as_bytes()), Ok(method));
    }
    if let Ok(request) = JobRequest::from_json(job(), body) {
        let again = JobRequest::from_json(job(), request.to_json().to_string().as_bytes());
        assert_eq!(again.map(|job| (job.action, job.policy)), Ok((request.action, request.policy)));
    }
    if let Ok(patch) = TwinPatch::from_json(body) {
        let mut twin = Twin::new(DateTime::UNIX_EPOCH);
        let _ = twin.patch(&patch, DateTime::UNIX_EPOCH);
        let _ = twin.replace(&patch, DateTime::UNIX_EPOCH);
        assert_can_be_kept(&twin);
    }
    if let Ok(Value::Object(patch)) = serde_json::from_slice(body) {
        let mut twin = Twin::new(DateTime::UNIX_EPOCH);
        let _ = twin.report(&patch, None, DateTime::UNIX_EPOCH);
        assert_can_be_kept(&twin);
    }
}

/// A twin that cannot be read back would keep its hub from ever starting again.
fn assert_can_be_kept(twin: &Twin) {
    let document = serde_json::to_string(twin).expect("a document");
    assert_eq!(serde_json::from_str::<Twin>(&document).expect("readable").desired, twin.desired);
}

fn any_cloud_message() -> impl Strategy<Value = CloudMessage> {
    let text = || prop::option::of(any::<String>());
    let property = ("[^$].*", any::<String>()).prop_filter("for the hub", |(name, _)| name != "iothub-ack");
    let feedback = prop::sample::select(vec![Feedback::None, Feedback::Positive, Feedback::Negative, Feedback::Full]);
    let times = 0..4_000_000_000_000_i64;
    let expiry = prop::option::of(times.prop_map(|ms| DateTime::from_timestamp_millis(ms).expect("a time")));
    let parts = (text(), text(), text(), text(), text(), expiry, feedback, prop::collection::vec(property, 0..4));
    (parts, any::<Vec<u8>>()).prop_map(|((mid, cid, uid, ct, ce, expiry, feedback, properties), body)| CloudMessage {
        message_id: mid,
        correlation_id: cid,
        user_id: uid,
        expiry,
        content_type: ct,
        content_encoding: ce,
        feedback,
        properties,
        body,
    })
}

proptest! {
    #[test]
    fn cloud_messages_arrive_as_they_were_sent(message in any_cloud_message()) {
        let topic = cloud_message_topic(&device(), &message);
        prop_assert!(!topic.contains(['+', '#']));
        prop_assert_eq!(parse_cloud_message(&device(), &topic, message.body.clone()), Some(message));
    }

    #[test]
    fn any_bytes(body in prop::collection::vec(any::<u8>(), 0..256)) {
        read_everything(&body);
    }

    #[test]
    fn json_of_any_shape(value in any_json()) {
        read_everything(value.to_string().as_bytes());
        // The recursive strategy seldom makes an object with the right members at the top.
        read_everything(json!({"properties": {"desired": value}, "tags": value}).to_string().as_bytes());
        let method = json!({"methodName": "m", "payload": value});
        read_everything(method.to_string().as_bytes());
        let update = json!({"etag": "*", "tags": value, "properties": {"desired": value}});
        for action in [
            json!({"type": "scheduleDeviceMethod", "cloudToDeviceMethod": method, "queryCondition": "*"}),
            json!({"type": "scheduleUpdateTwin", "updateTwin": update, "queryCondition": "*", "startTime": value}),
        ] {
            read_everything(action.to_string().as_bytes());
        }
    }

    #[test]
    fn policies_and_reports_of_any_kind(latch in any_policy(), value in any_json(), wanted in any::<String>()) {
        let update = json!({"etag": "*", "properties": {"desired": {"latch": {"plugins": {"door": "1.0.0"}}}}});
        let job = json!({"type": "scheduleUpdateTwin", "updateTwin": update, "queryCondition": "*", "latch": latch});
        read_everything(job.to_string().as_bytes());
        let section = json!({"latch": {"plugins": {"door": value}}, "$metadata": value});
        let twin = json!({"properties": {"desired": section, "reported": section}});
        let _ = PinState::of_twin(&twin, "door").standing(&wanted);
    }

    #[test]
    fn json_of_any_depth(levels in 0usize..140, object in any::<bool>()) {
        let (open, close) = if object { (r#"{"a":"#, "}") } else { ("[", "]") };
        let deep = format!("{}1{}", open.repeat(levels), close.repeat(levels));
        for body in [
            deep.clone(),
            format!(r#"{{"a":{deep}}}"#),
            format!(r#"{{"tags":{{"a":{deep}}},"properties":{{"desired":{{"a":{deep}}}}}}}"#),
            format!(r#"{{"methodName":"m","payload":{deep}}}"#),
        ] {
            read_everything(body.as_bytes());
        }
    }

    #[test]
    fn text_of_any_kind(text in any_text()) {
        let _ = (Address::parse(&text), DeviceId::parse(&text), MethodName::parse(&text), JobId::parse(&text), RequestId::parse(&text));
        for sender in addresses() {
            let _ = Subscription::parse(&sender, &text);
            if let Some(message) = FromDevice::parse(&sender, &text) {
                prop_assert_eq!(FromDevice::parse(&sender, &message.format(&sender)), Some(message));
            }
        }
        if let Some(message) = ToDevice::parse(&text) {
            prop_assert_eq!(ToDevice::parse(&message.format()), Some(message));
        }
        if let Some(message) = parse_cloud_message(&device(), &text, Vec::new()) {
            let topic = cloud_message_topic(&device(), &message);
            prop_assert_eq!(parse_cloud_message(&device(), &topic, Vec::new()), Some(message));
        }
        if let Some(properties) = decode_bag(&text) {
            let bag = encode_bag(properties.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            prop_assert_eq!(decode_bag(&bag), Some(properties));
        }
        if let Ok(token) = Token::parse(&text) {
            prop_assert!(!token.signed_by(&SharedKey::from_random([7; 32])));
            let _ = (token.covers_hub(), token.covers_registry(), addresses().map(|address| token.covers(&address)));
        }
        let _ = (SharedKey::parse(&text), HostName::parse(&text));
        let _ = (DeviceConnectionString::parse(&text), ServiceConnectionString::parse(&text));
    }
}
