//! `/jobs/v2`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::{JobRequest, JobStatus};
use job_engine::JobFilter;
use serde::Deserialize;
use serde_json::Value;

use crate::JobApi;
use crate::extract::{Path, Query};
use crate::reply::{CONTINUATION, ITEM_TYPE, Refusal, header_text, json, page_size, read_body};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListQuery {
    job_type: Option<String>,
    job_status: Option<String>,
}

pub(crate) async fn create(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    let request = JobRequest::from_json(JobId::parse(&id)?, &read_body(body).await?)?;
    let created = request.created();
    state.jobs.create(request).await?;
    Ok(json(&created))
}

pub(crate) async fn get(State(state): State<JobApi>, Path(id): Path, headers: HeaderMap) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    Ok(json(&state.jobs.get(&JobId::parse(&id)?).await?.to_json()))
}

pub(crate) async fn cancel(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    Ok(json(&state.jobs.cancel(&JobId::parse(&id)?).await?.to_json()))
}

pub(crate) async fn query(
    State(state): State<JobApi>,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    let filter = JobFilter {
        job_type: query.job_type.filter(|text| !text.is_empty()),
        status: match query.job_status.filter(|text| !text.is_empty()) {
            None => None,
            Some(name) => Some(JobStatus::by_name(&name).ok_or_else(|| {
                HubError::new(ErrorCode::ArgumentInvalid, format!("there is no job status {name:?}"))
            })?),
        },
    };
    let token = header_text(&headers, &CONTINUATION).map(str::to_owned);
    let page = state.jobs.list(filter, page_size(&headers), token).await?;
    let mut response = json(&Value::Array(page.items.iter().map(|job| job.to_json()).collect()));
    response.headers_mut().insert(ITEM_TYPE, HeaderValue::from_static("JobResponse"));
    if let Some(token) = page.continuation.and_then(|token| HeaderValue::from_str(&token).ok()) {
        response.headers_mut().insert(CONTINUATION, token);
    }
    Ok(response)
}
