//! `/twins`: twins and direct methods, of devices and modules.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::method::DirectMethod;
use iothub_protocol::twin::TwinPatch;
use serde_json::{Value, json};

use super::RestState;
use super::devices::document;
use super::extract::Target;
use super::reply::{Refusal, if_match, json as json_reply, read_body};
use crate::hub::{Answer, Operation};
use crate::policy::Rights;

pub(super) async fn get(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    document(&state, Operation::GetTwin(target.address()?)).await
}

pub(super) async fn patch(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    let id = target.address()?;
    let patch = TwinPatch::from_json(&read_body(body).await?)?;
    document(&state, Operation::PatchTwin { id, patch, if_match: if_match(&headers) }).await
}

pub(super) async fn replace(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    let id = target.address()?;
    let patch = TwinPatch::from_json(&read_body(body).await?)?;
    document(&state, Operation::ReplaceTwin { id, patch, if_match: if_match(&headers) }).await
}

pub(super) async fn call(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let plain = |error| Refusal::of_method(error, None);
    state.authorize(&headers, Rights::SERVICE_CONNECT).map_err(plain)?;
    let id = target.address().map_err(|e| plain(HubError::new(ErrorCode::ArgumentInvalid, e.to_string())))?;
    let body = read_body(body).await.map_err(plain)?;
    let method = DirectMethod::from_json(&body).map_err(plain)?;
    let (connect, response) = (method.connect_timeout(), method.response_timeout());
    match state.hub.request(Operation::CallMethod { id, method }).await {
        Ok(Answer::Method(answer)) => Ok(json_reply(&json!(answer))),
        Ok(_) => Ok(json_reply(&Value::Null)),
        Err(error) => {
            let waited = match error.code {
                ErrorCode::DeviceNotOnline => Some(connect),
                ErrorCode::GatewayTimeout => Some(response),
                _ => None,
            };
            Err(Refusal::of_method(error, waited))
        }
    }
}
