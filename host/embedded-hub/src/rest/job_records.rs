//! What is kept of jobs that Azure's API does not show: every attempt at a device, and who did what.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use job_engine::Page;
use serde::Deserialize;
use serde_json::Value;

use super::RestState;
use super::extract::{Path, Query, Target};
use super::reply::{CONTINUATION, Refusal, header_text, json, page_size};
use crate::policy::Rights;

/// `GET /jobs/v2/{id}/attempts`, page by page.
pub(super) async fn attempts(
    State(state): State<RestState>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    let token = header_text(&headers, &CONTINUATION);
    let page = state.jobs.attempts(&JobId::parse(&id)?, page_size(&headers), token).await?;
    Ok(page_of(page, |attempt| attempt.to_json()))
}

/// `GET /jobs/v2/{job}/devices/{id}/attempts`, and the same for a module; there are no pages.
pub(super) async fn device_attempts(
    State(state): State<RestState>,
    target: Target,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    let job = target.job().ok_or_else(|| HubError::new(ErrorCode::ArgumentNull, "the job is missing"))?;
    let attempts = state.jobs.device_attempts(&JobId::parse(job)?, &target.address()?).await?;
    Ok(json(&attempts.iter().map(|attempt| attempt.to_json()).collect()))
}

#[derive(Deserialize)]
pub(super) struct AuditQuery {
    /// Check the whole trail instead of showing some of it.
    #[serde(default)]
    verify: bool,
}

/// `GET /jobs/v2/{id}/audit`, the newest entry first. A job that is gone still has its entries.
pub(super) async fn audit_of_job(
    State(state): State<RestState>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    trail(&state, Some(JobId::parse(&id)?), &headers).await
}

/// `GET /jobs/v2/query/audit`: of all jobs, or with `?verify=true` what a check of the trail finds.
pub(super) async fn audit(
    State(state): State<RestState>,
    Query(query): Query<AuditQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    if !query.verify {
        return trail(&state, None, &headers).await;
    }
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    Ok(json(&state.jobs.check_audit().await?.to_json()))
}

async fn trail(state: &RestState, job: Option<JobId>, headers: &HeaderMap) -> Result<Response, Refusal> {
    state.authorize(headers, Rights::SERVICE_CONNECT)?;
    let token = header_text(headers, &CONTINUATION);
    let page = state.jobs.audit_trail(job, page_size(headers), token).await?;
    Ok(page_of(page, |entry| entry.to_json()))
}

fn page_of<T>(page: Page<T>, to_json: impl Fn(&T) -> Value) -> Response {
    let mut response = json(&page.items.iter().map(to_json).collect());
    if let Some(token) = page.continuation.and_then(|token| HeaderValue::from_str(&token).ok()) {
        response.headers_mut().insert(CONTINUATION, token);
    }
    response
}
