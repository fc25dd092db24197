//! `/configurations`: automatic device management.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use chrono::Utc;
use iothub_protocol::configuration::{ConfigurationRequest, MAX_CONFIGURATIONS, test_queries};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::ConfigurationId;
use iothub_protocol::sas::Token;
use serde::Deserialize;
use serde_json::Value;

use super::RestState;
use super::extract::{Path, Query};
use super::reply::{Refusal, header_text, if_match, json, read_body};
use crate::policy::Rights;
use iothub_protocol::quota::tier::Sku;

#[derive(Deserialize)]
pub(super) struct ListQuery {
    top: Option<String>,
}

pub(super) async fn list(
    State(state): State<RestState>,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    authorize(&state, &headers, Rights::REGISTRY_READ)?;
    // There are no pages; a number that is none, or too large, is the largest.
    let asked = query.top.and_then(|text| text.parse().ok());
    let limit = asked.filter(|top| (1..=MAX_CONFIGURATIONS).contains(top)).unwrap_or(MAX_CONFIGURATIONS);
    Ok(json(&Value::Array(state.configurations.list(limit).await)))
}

pub(super) async fn get(
    State(state): State<RestState>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    authorize(&state, &headers, Rights::REGISTRY_READ)?;
    Ok(json(&state.configurations.get(&ConfigurationId::parse(&id)?).await?))
}

pub(super) async fn put(
    State(state): State<RestState>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    authorize(&state, &headers, Rights::REGISTRY_WRITE)?;
    let id = ConfigurationId::parse(&id)?;
    let request = ConfigurationRequest::from_json(&id, &read_body(body).await?)?;
    let most = state.hub.rehearsal().sku().map_or(MAX_CONFIGURATIONS, Sku::configurations);
    let condition = if_match(&headers);
    Ok(json(&state.configurations.put(id, request, condition.as_deref(), most, Utc::now()).await?))
}

pub(super) async fn delete(
    State(state): State<RestState>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    authorize(&state, &headers, Rights::REGISTRY_WRITE)?;
    state.configurations.delete(&ConfigurationId::parse(&id)?, if_match(&headers).as_deref()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /configurations/testQueries`.
pub(super) async fn test(State(state): State<RestState>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    authorize(&state, &headers, Rights::REGISTRY_READ)?;
    Ok(json(&test_queries(&read_body(body).await?)?))
}

/// As for the registry, but a token whose resource is `devices` does not reach here.
fn authorize(state: &RestState, headers: &HeaderMap, rights: Rights) -> Result<(), HubError> {
    state.authorize(headers, rights)?;
    let token = header_text(headers, &header::AUTHORIZATION).map(Token::parse);
    if token.is_some_and(|token| token.is_ok_and(|token| token.covers_hub())) {
        return Ok(());
    }
    Err(HubError::new(ErrorCode::IotHubUnauthorized, "the token is for another resource"))
}
