//! Texts: topics, property bags, tokens, connection strings, queries, answers of a hub.

use std::str;

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::connection_string::{DeviceConnectionString, HostName, ServiceConnectionString};
use iothub_protocol::error::HubError;
use iothub_protocol::job::MAX_CONDITION;
use iothub_protocol::query::{Condition, Query};
use iothub_protocol::sas::{SharedKey, Token};
use iothub_protocol::topic::{self, FromDevice, Subscription, ToDevice};
use serde_json::json;

/// The address of a device or a module, a line break, and a topic of that.
pub(crate) fn topic(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (id, topic) = text.split_once('\n').unwrap_or(("d1", text));
    let Ok(address) = Address::parse(id) else { return };
    assert_eq!(Address::parse(&address.to_string()).as_ref(), Ok(&address));
    let device = address.device();
    if let Some(message) = FromDevice::parse(&address, topic) {
        assert_eq!(FromDevice::parse(&address, &message.format(&address)).as_ref(), Some(&message));
    }
    if let Some(message) = ToDevice::parse(topic) {
        assert_eq!(ToDevice::parse(&message.format()).as_ref(), Some(&message));
    }
    if let Some(subscription) = Subscription::parse(&address, topic) {
        // A module has two filters for its inputs.
        let filter = subscription.filter(&address).expect("what was read can be written");
        assert!(filter == topic || topic == format!("{}/#", address.path()), "{filter}");
    }
    if let Some(message) = topic::parse_cloud_message(device, topic, Vec::new()) {
        assert!(topic::is_cloud_message(device, topic));
        let written = topic::cloud_message_topic(device, &message);
        assert_eq!(topic::parse_cloud_message(device, &written, Vec::new()), Some(message));
    }
}

/// A property bag.
pub(crate) fn bag(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Some(properties) = topic::decode_bag(text) else { return };
    let pairs = properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let written = topic::encode_bag(pairs);
    assert!(!written.contains(['+', '#', ' ', '/', '\0']), "it can stand in a topic: {written}");
    let read = topic::decode_bag(&written).expect("what was written can be read");
    assert_eq!(read, properties);
}

/// A token; its first line may be a key, base64, which then signs another for what the token names.
pub(crate) fn sas(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (key, text) = text.split_once('\n').unwrap_or(("", text));
    if let Ok(token) = Token::parse(text) {
        let _ = (token.covers_hub(), token.covers_registry(), token.expiry());
        token.covers(&Address::parse("d1/m1").expect("an address"));
        assert!(!token.signed_by(&SharedKey::from_random([7; 32])), "nobody can guess a signature");
    }
    let Ok(key) = SharedKey::parse(key) else { return };
    assert!(SharedKey::parse(&key.to_base64()).is_ok_and(|again| again.to_base64() == key.to_base64()));
    let (policy, seconds) = (text.get(..8), i64::try_from(text.len()).unwrap_or_default());
    let expiry = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    let signed = key.sign(&format!("localhost/devices/{text}"), policy.filter(|name| !name.is_empty()), expiry);
    let token = Token::parse(&signed).expect("our own token can be read");
    assert!(token.signed_by(&key) && token.expiry() == seconds);
    assert!(token.is_expired(DateTime::<Utc>::MAX_UTC));
    assert_eq!(token.policy(), policy.filter(|name| !name.is_empty()));
}

/// A connection string of a device or of a policy.
pub(crate) fn connection_string(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match DeviceConnectionString::parse(text) {
        Ok(parsed) => {
            let again = DeviceConnectionString::parse(&parsed.reveal()).expect("what was written can be read");
            assert_eq!((again.reveal(), again.device_id), (parsed.reveal(), parsed.device_id));
        }
        Err(error) => drop(error.to_string()),
    }
    if let Ok(parsed) = ServiceConnectionString::parse(text) {
        let again = ServiceConnectionString::parse(&parsed.reveal()).expect("what was written can be read");
        assert_eq!((again.reveal(), again.policy), (parsed.reveal(), parsed.policy));
    }
    if let Ok(host) = HostName::parse(text) {
        assert_eq!(HostName::parse(&host.authority()), Ok(host));
    }
}

/// A query, or the condition of a job.
pub(crate) fn query(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let rows = [
        json!({
            "deviceId": "d1", "status": "enabled", "etag": "AAAAAAAAAAE=",
            "tags": {"site": "a", "n": 3, "odd key": {"x": [1, "2", null]}, "b": true, "empty": {}},
            "properties": {"desired": {"$version": 4, "t": 21.5}, "reported": {"$version": 1, "s": "ü"}},
        }),
        json!({"deviceId": "d2", "jobId": "j1", "status": "failed", "tags": null}),
        json!(null),
    ];
    match Query::parse(text) {
        Ok(query) => {
            let written = query.to_string();
            if written.chars().count() > MAX_CONDITION {
                // With the blanks that it was written without it is longer than a query may be.
                return;
            }
            let again = Query::parse(&written);
            let again = again.unwrap_or_else(|error| panic!("{written:?} cannot be read again: {error}"));
            assert_eq!(again.to_string(), written);
            assert_eq!(query.run(&rows), again.run(&rows), "{written}");
        }
        Err(error) => drop(error.to_string()),
    }
    if let Ok(condition) = Condition::parse_job(text) {
        let _ = (condition.one_of("deviceId"), condition.equals("jobId"));
        for row in &rows {
            condition.matches(row);
        }
    }
}

/// What a hub answers a client with.
pub(crate) fn answer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for status in [400, 404, 504, 999] {
        let error = HubError::from_response(status, &text);
        let again = error.envelope("t", DateTime::UNIX_EPOCH).to_string();
        assert_eq!(HubError::from_response(status, &again).code, error.code);
        let again = error.method_envelope("t", Some(u32::MAX), DateTime::UNIX_EPOCH).to_string();
        assert_eq!(HubError::from_response(status, &again), error);
    }
}
