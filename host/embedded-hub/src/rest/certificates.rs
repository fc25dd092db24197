//! The authorities that sign devices' certificates. In Azure they belong to the control plane; here to the operator.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use chrono::Utc;
use iothub_protocol::error::{ErrorCode, HubError};
use serde_json::{Value, json};

use super::extract::Path;
use super::operator::OperatorError;
use crate::authorities::{Authorities, AuthorityError};

/// The routes: `GET /certificates`, an array; `PUT /certificates/{name}` with a file in PEM or DER, and `DELETE`.
/// Errors as the operator's others.
pub(crate) fn router(authorities: Authorities) -> Router {
    Router::new()
        .route("/certificates", get(list))
        .route("/certificates/{name}", put(add).delete(remove))
        .with_state(authorities)
}

async fn list(State(authorities): State<Authorities>) -> Response {
    let all: Vec<Value> = authorities.all().iter().map(|authority| authority.to_json()).collect();
    Json(Value::Array(all)).into_response()
}

async fn add(State(authorities): State<Authorities>, Path(name): Path, file: Bytes) -> Result<Response, OperatorError> {
    let added = authorities.add(&name, &file, Utc::now()).await?;
    Ok((StatusCode::CREATED, Json(added.to_json())).into_response())
}

async fn remove(State(authorities): State<Authorities>, Path(name): Path) -> Result<Response, OperatorError> {
    authorities.remove(&name).await?;
    Ok(Json(json!({"removed": name})).into_response())
}

impl From<AuthorityError> for OperatorError {
    fn from(error: AuthorityError) -> OperatorError {
        let code = match &error {
            AuthorityError::Unknown(_) => ErrorCode::IotHubNotFound,
            AuthorityError::Store(_) => ErrorCode::ServiceUnavailable,
            _ => ErrorCode::ArgumentInvalid,
        };
        HubError::new(code, error.to_string()).into()
    }
}
