//! Tokens for back ends that cannot sign their own, made for the operator.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use chrono::{TimeDelta, Utc};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::time;
use serde::Deserialize;
use serde_json::json;

use super::extract::{Path, Query};
use super::operator::OperatorError;
use crate::policy::Policy;

/// What a token is for. Verifiers of this hub take any host; its name is what its connection strings say.
const RESOURCE: &str = "localhost";

#[derive(Deserialize)]
pub(super) struct TokenQuery {
    /// How long it is good for.
    seconds: u32,
}

/// `POST /policies/{name}/token?seconds=N`.
pub(super) async fn make(
    State(policies): State<Arc<[Policy]>>,
    Path(name): Path,
    Query(query): Query<TokenQuery>,
) -> Result<Response, OperatorError> {
    let Some(policy) = policies.iter().find(|policy| policy.name == name) else {
        let names: Vec<_> = policies.iter().map(|policy| policy.name.as_str()).collect();
        let text = format!("the hub has no policy {name:?}; it has {}", names.join(", "));
        return Err(HubError::new(ErrorCode::IotHubNotFound, text).into());
    };
    let expiry = Utc::now() + TimeDelta::seconds(query.seconds.into());
    let token = policy.primary_key.sign(RESOURCE, Some(&policy.name), expiry);
    Ok(Json(json!({"policy": name, "token": token, "expires": time::format(expiry)})).into_response())
}
