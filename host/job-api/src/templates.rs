//! `/jobs/templates`: ours, Azure has none.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::{JobId, TemplateName};
use iothub_protocol::job::template::JobTemplate;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::JobApi;
use crate::extract::Path;
use crate::jobs::optional;
use crate::reply::{Refusal, json, read_body};

pub(crate) async fn put(
    State(state): State<JobApi>,
    Path(name): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let jobs = state.authorize(&headers)?;
    let body: Value = serde_json::from_slice(&read_body(body).await?)
        .map_err(|error| HubError::new(ErrorCode::IotHubFormatError, format!("the body is not JSON: {error}")))?;
    let template = JobTemplate::from_json(TemplateName::parse(&name)?, &body)?;
    jobs.put_template(&template).await?;
    Ok(json(&template.to_json()))
}

pub(crate) async fn get(
    State(state): State<JobApi>,
    Path(name): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    Ok(json(&state.jobs.template(&TemplateName::parse(&name)?).await?.to_json()))
}

pub(crate) async fn list(State(state): State<JobApi>, headers: HeaderMap) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    Ok(json(&Value::Array(state.jobs.templates().await?)))
}

pub(crate) async fn delete(
    State(state): State<JobApi>,
    Path(name): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?.delete_template(&TemplateName::parse(&name)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Run {
    job_id: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Make a job of a template.
pub(crate) async fn run(
    State(state): State<JobApi>,
    Path(name): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let jobs = state.authorize(&headers)?;
    let Run { job_id, parameters } = optional(body).await?;
    let template = jobs.template(&TemplateName::parse(&name)?).await?;
    let request = template.job(JobId::parse(&job_id)?, &parameters)?;
    let created = request.created();
    jobs.create(request).await?;
    Ok(json(&created))
}
