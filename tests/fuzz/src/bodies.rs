//! Bodies of requests and messages: JSON.

use chrono::DateTime;
use iothub_protocol::address::Address;
use iothub_protocol::configuration::ConfigurationRequest;
use iothub_protocol::id::{ConfigurationId, JobId};
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::job::JobRequest;
use iothub_protocol::link::TwinDocument;
use iothub_protocol::method::{DirectMethod, MAX_PAYLOAD, MethodResponse};
use iothub_protocol::twin::{DesiredNotice, Part, Twin, TwinPatch, check_size, merge};
use serde_json::{Map, Value, json};

/// Patches of a twin, one on each line: the first letter says whose.
pub(crate) fn twin(data: &[u8]) {
    let mut twin = Twin::new(DateTime::UNIX_EPOCH);
    for line in data.split(|byte| *byte == b'\n').take(50) {
        let Some((kind, body)) = line.split_first() else { continue };
        let before = twin.clone();
        let noticed = match kind {
            b'r' => report(&mut twin, body),
            b'p' => TwinPatch::from_json(body).and_then(|patch| twin.replace(&patch, DateTime::UNIX_EPOCH)),
            _ => TwinPatch::from_json(body).and_then(|patch| twin.patch(&patch, DateTime::UNIX_EPOCH)),
        };
        match noticed {
            Ok(notice) => holds(&before, &twin, notice.as_ref()),
            Err(_) => assert_eq!(twin, before, "what is refused changes nothing"),
        }
    }
}

fn report(twin: &mut Twin, body: &[u8]) -> Result<Option<DesiredNotice>, iothub_protocol::error::HubError> {
    let Ok(Value::Object(patch)) = serde_json::from_slice(body) else { return Ok(None) };
    twin.report(&patch, None, DateTime::UNIX_EPOCH).map(|_| None)
}

/// A device that merges its notices has what the hub has, and everything keeps its limits.
fn holds(before: &Twin, after: &Twin, notice: Option<&DesiredNotice>) {
    let parts = [
        (Part::Tags, &after.tags),
        (Part::Desired, &after.desired.properties),
        (Part::Reported, &after.reported.properties),
    ];
    for (part, section) in parts {
        check_size(part, section).expect("a twin keeps its limits");
    }
    let mut seen = before.desired.properties.clone();
    if let Some(notice) = notice {
        assert_eq!(notice.version, before.desired.version + 1);
        let body = notice.to_json().to_string();
        assert_eq!(DesiredNotice::from_json(body.as_bytes()).as_ref(), Some(notice));
        merge(&mut seen, &notice.properties);
    }
    assert_eq!(seen, after.desired.properties, "what a device makes of the notice");
    let document = TwinDocument::from_json(after.device_json().to_string().as_bytes()).expect("it can be read");
    assert_eq!((&document.desired, document.desired_version), (&after.desired.properties, after.desired.version));
    assert_eq!((&document.reported, document.reported_version), (&after.reported.properties, after.reported.version));
    mirrors(&after.desired.properties, &after.desired.metadata);
    mirrors(&after.reported.properties, &after.reported.metadata);
}

/// Every value has its stamp, and nothing else has one.
fn mirrors(properties: &Map<String, Value>, metadata: &Map<String, Value>) {
    let stamps = metadata.keys().filter(|key| !key.starts_with('$'));
    assert!(stamps.eq(properties.keys()), "{metadata:?} is not of {properties:?}");
    for (key, value) in properties {
        let stamp = metadata[key].as_object().expect("a stamp is an object");
        let none = Map::new();
        mirrors(value.as_object().unwrap_or(&none), stamp);
    }
}

/// The body of `PUT /devices/{id}`, and of `PUT /devices/{id}/modules/{id}`.
pub(crate) fn identity(data: &[u8]) {
    for address in ["d1", "d1/m1"] {
        match IdentityRequest::from_json(&Address::parse(address).expect("an address"), data) {
            Ok(request) => drop(format!("{request:?}")),
            Err(error) => drop(error.envelope("t", DateTime::UNIX_EPOCH)),
        }
    }
}

/// The body of a direct method, and what a device answers.
pub(crate) fn method(data: &[u8]) {
    if let Ok(method) = DirectMethod::from_json(data) {
        assert!(method.payload.to_string().len() <= MAX_PAYLOAD);
        let written = json!(method).to_string();
        assert_eq!(DirectMethod::from_json(written.as_bytes()), Ok(method));
    }
    if let Ok(response) = MethodResponse::from_device(200, data) {
        let written = json!(response).to_string();
        assert_eq!(serde_json::from_str::<MethodResponse>(&written).ok(), Some(response), "{written}");
    }
}

/// The body of `PUT /jobs/v2/{id}`.
pub(crate) fn job(data: &[u8]) {
    let id = JobId::parse("j1").expect("an id");
    match JobRequest::from_json(id.clone(), data) {
        Ok(request) => {
            let written = request.to_json().to_string();
            // A journal keeps the job so; times are written to the millisecond.
            let again = JobRequest::from_json(id.clone(), written.as_bytes());
            let again = again.unwrap_or_else(|error| panic!("{written} cannot be read again: {error}"));
            assert_eq!(again.to_json().to_string(), written);
            assert_eq!(JobRequest { start_time: None, ..again }, JobRequest { start_time: None, ..request });
        }
        Err(error) => drop(error.envelope("t", DateTime::UNIX_EPOCH)),
    }
}

/// The body of `PUT /configurations/{id}`.
pub(crate) fn configuration(data: &[u8]) {
    let id = ConfigurationId::parse("c1").expect("an id");
    match ConfigurationRequest::from_json(&id, data) {
        Ok(request) => drop(format!("{request:?}")),
        Err(error) => drop(error.envelope("t", DateTime::UNIX_EPOCH)),
    }
}
