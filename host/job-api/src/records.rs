//! What is kept of jobs that Azure's API does not show: every attempt at a device, and who did what.

use axum::extract::rejection::PathRejection;
use axum::extract::{self, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use iothub_protocol::address::Address;
use iothub_protocol::id::{DeviceId, JobId, ModuleId};
use job_engine::Page;
use serde::Deserialize;
use serde_json::Value;

use crate::JobApi;
use crate::extract::{Path, Query, refusal};
use crate::reply::{CONTINUATION, Refusal, header_text, json, page_size};

/// `GET /jobs/v2/{id}/attempts`, page by page.
pub(crate) async fn attempts(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let jobs = state.authorize(&headers)?;
    let token = header_text(&headers, &CONTINUATION);
    let page = jobs.attempts(&JobId::parse(&id)?, page_size(&headers), token).await?;
    Ok(page_of(page, |attempt| attempt.to_json()))
}

#[derive(Deserialize)]
pub(crate) struct Target {
    job: String,
    device: String,
    module: Option<String>,
}

/// `GET /jobs/v2/{job}/devices/{device}/attempts`, and the same for a module; there are no pages.
pub(crate) async fn device_attempts(
    State(state): State<JobApi>,
    target: Result<extract::Path<Target>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let jobs = state.authorize(&headers)?;
    let extract::Path(Target { job, device, module }) = target.map_err(|error| refusal(error.body_text()))?;
    let device = DeviceId::parse(&device)?;
    let address = match module {
        None => device.into(),
        Some(module) => Address::of_module(device, ModuleId::parse(&module)?),
    };
    let attempts = jobs.device_attempts(&JobId::parse(&job)?, &address).await?;
    Ok(json(&attempts.iter().map(|attempt| attempt.to_json()).collect()))
}

#[derive(Deserialize)]
pub(crate) struct AuditQuery {
    /// Check the whole trail instead of showing some of it.
    #[serde(default)]
    verify: bool,
}

/// `GET /jobs/v2/{id}/audit`, the newest entry first. A job that is gone still has its entries.
pub(crate) async fn audit_of_job(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    trail(&state, Some(JobId::parse(&id)?), &headers).await
}

/// `GET /jobs/v2/query/audit`: of all jobs, or with `?verify=true` what a check of the trail finds.
pub(crate) async fn audit(
    State(state): State<JobApi>,
    Query(query): Query<AuditQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    if !query.verify {
        return trail(&state, None, &headers).await;
    }
    Ok(json(&state.authorize(&headers)?.check_audit().await?.to_json()))
}

async fn trail(state: &JobApi, job: Option<JobId>, headers: &HeaderMap) -> Result<Response, Refusal> {
    let jobs = state.authorize(headers)?;
    let token = header_text(headers, &CONTINUATION);
    let page = jobs.audit_trail(job, page_size(headers), token).await?;
    Ok(page_of(page, |entry| entry.to_json()))
}

fn page_of<T>(page: Page<T>, to_json: impl Fn(&T) -> Value) -> Response {
    let mut response = json(&page.items.iter().map(to_json).collect());
    if let Some(token) = page.continuation.and_then(|token| HeaderValue::from_str(&token).ok()) {
        response.headers_mut().insert(CONTINUATION, token);
    }
    response
}
