//! `/jobs/v2/{id}/targets`: lists of devices that come after their jobs.
//!
//! A list is a set: its parts may come in any order, at once, and again. It is whole when its count and its hash are those
//! that its sender says, so a part that was lost on the way is not left out silently.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::targets::{ListPart, ListSeal};
use serde_json::{Value, json};

use crate::JobApi;
use crate::extract::Path;
use crate::reply::{Refusal, json as json_reply, read_body};

pub(crate) async fn extend(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    let part = ListPart::from_json(&read_json(body).await?)?;
    let listed = state.jobs.extend_list(&JobId::parse(&id)?, part).await?;
    Ok(json_reply(&json!({"count": listed.count, "repeated": listed.repeated})))
}

pub(crate) async fn complete(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    let seal = ListSeal::from_json(&read_json(body).await?)?;
    Ok(json_reply(&state.jobs.complete_list(&JobId::parse(&id)?, seal).await?.to_json()))
}

async fn read_json(body: Body) -> Result<Value, HubError> {
    let not_json = |e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is not JSON: {e}"));
    serde_json::from_slice(&read_body(body).await?).map_err(not_json)
}
