//! `POST /devices`: up to a hundred registry operations in one request.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use chrono::Utc;
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::{DeviceId, ModuleId};
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::twin::{Twin, TwinPatch};
use serde_json::{Value, json};

use super::RestState;
use super::reply::{Refusal, json as json_reply, read_body};
use crate::hub::Operation;
use crate::policy::{Rights, random_key};

/// Most items of one request; Azure's number.
const MAX_ITEMS: usize = 100;

/// Items are independent: what can be done is done, what cannot is named in the answer, which then has status 400.
pub(super) async fn run(State(state): State<RestState>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::REGISTRY_WRITE)?;
    let items = read_items(&read_body(body).await?)?;
    let mut errors = Vec::new();
    // All at once, so that they share commits; they reach the hub in order, a device before its modules.
    let applied = futures_util::future::join_all(items.iter().map(|item| apply(&state, item))).await;
    for (item, applied) in items.iter().zip(applied) {
        if let Err(error) = applied {
            errors.push(json!({
                "deviceId": item["id"],
                "moduleId": module_of(item),
                "errorCode": error.code.name(),
                "errorStatus": error.message,
            }));
        }
    }
    let result = json_reply(&json!({"isSuccessful": errors.is_empty(), "errors": errors, "warnings": []}));
    let status = if errors.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    Ok((status, result).into_response())
}

fn read_items(body: &[u8]) -> Result<Vec<Value>, HubError> {
    let items: Vec<Value> = serde_json::from_slice(body)
        .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is no array of devices: {e}")))?;
    if items.len() > MAX_ITEMS {
        let text = format!("at most {MAX_ITEMS} devices go in one request");
        return Err(HubError::new(ErrorCode::TooManyDevices, text));
    }
    let mut seen = BTreeSet::new();
    let names = items.iter().filter_map(|item| Some((item["id"].as_str()?, module_of(item))));
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some((id, None)) => {
            let text = format!("the device {id:?} is there twice");
            Err(HubError::new(ErrorCode::DeviceDefinedMultipleTimes, text))
        }
        Some((id, Some(module))) => {
            let text = format!("the module {module:?} of the device {id:?} is there twice");
            Err(HubError::new(ErrorCode::DeviceDefinedMultipleTimes, text))
        }
        None => Ok(items),
    }
}

/// The module that an item is of; clients send nulls and empty texts for none.
fn module_of(item: &Value) -> Option<&str> {
    item["moduleId"].as_str().filter(|module| !module.is_empty())
}

async fn apply(state: &RestState, item: &Value) -> Result<(), HubError> {
    let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
    let id = item["id"].as_str().ok_or_else(|| invalid("an item has no id".into()))?;
    let id = match module_of(item) {
        None => DeviceId::parse(id).map(Address::from),
        Some(module) => DeviceId::parse(id).and_then(|device| Ok(Address::of_module(device, ModuleId::parse(module)?))),
    };
    let id = id.map_err(|e| invalid(e.to_string()))?;
    let etag = |name: &str| match etag_of(item, name) {
        Some(etag) => Ok(Some(etag.to_owned())),
        None => Err(HubError::new(ErrorCode::ArgumentNull, format!("{name} is missing"))),
    };
    let any = || Some("*".to_owned());
    match item["importMode"].as_str().unwrap_or("create").to_ascii_lowercase().as_str() {
        "create" => {
            let patch = twin_patch(item)?;
            // What the twin would refuse must not leave a device behind that the answer calls failed.
            Twin::new(Utc::now()).patch(&patch, Utc::now())?;
            put(state, &id, item, None).await?;
            if patch != TwinPatch::default() {
                state.hub.request(Operation::MergeTwin { id, patch, if_match: None }).await?;
            }
            Ok(())
        }
        "update" => put(state, &id, item, any()).await,
        "updateifmatchetag" => put(state, &id, item, etag("eTag")?).await,
        "delete" => delete(state, id, any()).await,
        "deleteifmatchetag" => delete(state, id, etag("eTag")?).await,
        "updatetwin" => patch_twin(state, id, item, any()).await,
        "updatetwinifmatchetag" => patch_twin(state, id, item, etag("twinETag")?).await,
        other => Err(invalid(format!("there is no importMode {other:?}"))),
    }
}

/// The Python SDK writes `eTag`, as the documentation does; the Node SDK leaves the identity's own `etag` in.
fn etag_of<'a>(item: &'a Value, name: &str) -> Option<&'a str> {
    let (_, etag) = item.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    etag.as_str().filter(|etag| !etag.is_empty())
}

async fn put(state: &RestState, id: &Address, item: &Value, if_match: Option<String>) -> Result<(), HubError> {
    let identity = json!({
        "status": item["status"],
        "statusReason": item["statusReason"],
        "managedBy": item["managedBy"],
        "authentication": item["authentication"],
    });
    let request = IdentityRequest::from_json(id, identity.to_string().as_bytes())?;
    let keys = [random_key(), random_key()];
    state.hub.request(Operation::PutIdentity { id: id.clone(), request, if_match, keys }).await?;
    Ok(())
}

async fn delete(state: &RestState, id: Address, if_match: Option<String>) -> Result<(), HubError> {
    state.hub.request(Operation::DeleteIdentity { id, if_match }).await?;
    Ok(())
}

async fn patch_twin(state: &RestState, id: Address, item: &Value, if_match: Option<String>) -> Result<(), HubError> {
    let patch = twin_patch(item)?;
    state.hub.request(Operation::MergeTwin { id, patch, if_match }).await?;
    Ok(())
}

fn twin_patch(item: &Value) -> Result<TwinPatch, HubError> {
    let body = json!({"tags": item["tags"], "properties": item["properties"]});
    TwinPatch::from_json(body.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sdks_spellings_of_an_etag_are_read() {
        for item in [json!({"eTag": "MQ=="}), json!({"etag": "MQ=="})] {
            assert_eq!(etag_of(&item, "eTag"), Some("MQ=="), "{item}");
        }
        for item in [json!({}), json!({"eTag": ""}), json!({"eTag": 1}), json!({"twinETag": "MQ=="}), json!([])] {
            assert_eq!(etag_of(&item, "eTag"), None, "{item}");
        }
    }

    #[test]
    fn a_device_comes_once() {
        assert!(read_items(br#"[{"id":"a"},{"id":"b"}]"#).is_ok());
        let twice = read_items(br#"[{"id":"a"},{"id":"a"}]"#).expect_err("twice");
        assert_eq!(twice.code, ErrorCode::DeviceDefinedMultipleTimes);
        let many: Vec<Value> = (0..101).map(|n| json!({"id": n.to_string()})).collect();
        let refused = read_items(Value::Array(many).to_string().as_bytes()).expect_err("too many");
        assert_eq!(refused.code, ErrorCode::TooManyDevices);
        assert!(read_items(b"{}").is_err());
        let items = br#"[{"id":"a"},{"id":"a","moduleId":"m"},{"id":"a","moduleId":"n"},{"id":"b","moduleId":"m"}]"#;
        assert!(read_items(items).is_ok());
        let twice = read_items(br#"[{"id":"a","moduleId":"m"},{"id":"a","moduleId":"m"}]"#).expect_err("twice");
        assert_eq!(twice.code, ErrorCode::DeviceDefinedMultipleTimes);
        assert!(read_items(br#"[{"id":"a"},{"id":"a","moduleId":""}]"#).is_err(), "an empty text is no module");
    }
}
