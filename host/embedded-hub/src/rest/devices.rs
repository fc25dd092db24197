//! `/devices`, `/devices/{id}/modules` and `/statistics`: the identity registry.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::IdentityRequest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::RestState;
use super::extract::{Path, Query, Target};
use super::reply::{Refusal, if_match, json as json_reply, read_body};
use crate::hub::{Answer, Operation};
use crate::policy::{Rights, random_key};

/// Most identities of one list.
const MAX_LIST: usize = 1000;

#[derive(Deserialize)]
pub(super) struct ListQuery {
    top: Option<String>,
}

pub(super) async fn put(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::REGISTRY_WRITE)?;
    let id = target.address()?;
    let request = IdentityRequest::from_json(&id, &read_body(body).await?)?;
    let keys = [random_key(), random_key()];
    let operation = Operation::PutIdentity { id, request, if_match: if_match(&headers), keys };
    document(&state, operation).await
}

pub(super) async fn get(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::REGISTRY_READ)?;
    document(&state, Operation::GetIdentity(target.address()?)).await
}

pub(super) async fn delete(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::REGISTRY_WRITE)?;
    let id = target.address()?;
    state.hub.request(Operation::DeleteIdentity { id, if_match: if_match(&headers) }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn list(
    State(state): State<RestState>,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::REGISTRY_READ)?;
    // Anything else than 1 to 1000 is 1000.
    let asked = query.top.and_then(|text| text.parse().ok());
    let limit = asked.filter(|top| (1..=MAX_LIST).contains(top)).unwrap_or(MAX_LIST);
    let devices = state.hub.list_devices(None, limit).await?;
    let devices: Vec<Value> = devices.into_iter().map(|(_, device)| device).collect();
    Ok(json_reply(&Value::Array(devices)))
}

/// `GET /devices/{id}/modules`: all of them, as a device has few.
pub(super) async fn list_modules(
    State(state): State<RestState>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::REGISTRY_READ)?;
    let modules = state.hub.list_modules(DeviceId::parse(&id)?).await?;
    Ok(json_reply(&Value::Array(modules.into_iter().map(|(_, module)| module).collect())))
}

pub(super) async fn statistics(State(state): State<RestState>, headers: HeaderMap) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::REGISTRY_READ)?;
    let counts = state.hub.counts().await?;
    Ok(json_reply(&json!({
        "totalDeviceCount": counts.total,
        "enabledDeviceCount": counts.total - counts.disabled,
        "disabledDeviceCount": counts.disabled,
    })))
}

pub(super) async fn service_statistics(
    State(state): State<RestState>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    Ok(json_reply(&json!({"connectedDeviceCount": state.hub.counts().await?.connected})))
}

/// Ask for something that is answered with one document.
pub(super) async fn document(state: &RestState, operation: Operation) -> Result<Response, Refusal> {
    match state.hub.request(operation).await? {
        Answer::Document(document) => Ok(json_reply(&document)),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}
