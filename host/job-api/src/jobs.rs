//! `/jobs/v2`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::job::{JobRequest, JobStatus};
use iothub_protocol::time;
use job_engine::{CloneRequest, Command, JobFilter};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::JobApi;
use crate::extract::{Path, Query};
use crate::reply::{CONTINUATION, ITEM_TYPE, Refusal, header_text, json, page_size, read_body};

/// Longest reason of a pause, in characters.
const MAX_REASON: usize = 1000;

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
    let jobs = state.authorize(&headers)?;
    let request = JobRequest::from_json(JobId::parse(&id)?, &read_body(body).await?)?;
    let created = request.created();
    jobs.create(request).await?;
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
    command(&state, &id, &headers, Command::Cancel).await
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pause {
    /// For whoever looks at the job.
    #[serde(default)]
    reason: String,
}

pub(crate) async fn pause(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Pause { reason } = optional(body).await?;
    if reason.chars().count() > MAX_REASON {
        let text = format!("the reason is longer than {MAX_REASON} characters");
        return Err(HubError::new(ErrorCode::ArgumentInvalid, text).into());
    }
    command(&state, &id, &headers, Command::Pause { reason }).await
}

pub(crate) async fn resume(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    command(&state, &id, &headers, Command::Resume).await
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Approval {
    stage: Option<u32>,
}

pub(crate) async fn approve(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Approval { stage } = optional(body).await?;
    command(&state, &id, &headers, Command::Approve { stage }).await
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Clone {
    job_id: JobId,
    #[serde(default)]
    start_time: Option<String>,
    #[serde(default)]
    devices: Devices,
    /// Which failures count, with `devices` `failed`; all if there is none.
    #[serde(default)]
    failures: Vec<FailureClass>,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
enum Devices {
    /// As the job itself says.
    #[default]
    Same,
    Failed,
}

/// Make a job like this one, perhaps for those devices only that failed.
pub(crate) async fn clone(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let jobs = state.authorize(&headers)?;
    let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
    let wanted: Clone =
        serde_json::from_slice(&read_body(body).await?).map_err(|e| invalid(format!("the body: {e}")))?;
    let Clone { job_id, start_time, devices, failures } = wanted;
    if devices == Devices::Same && !failures.is_empty() {
        return Err(invalid("failures needs \"devices\": \"failed\"".to_owned()).into());
    }
    let start_time = match start_time {
        None => None,
        Some(text) => {
            let wrong = || invalid(format!("startTime {text:?} is not an ISO 8601 time with a zone"));
            Some(time::parse(&text).ok_or_else(wrong)?)
        }
    };
    let failed = (devices == Devices::Failed).then_some(failures);
    let made = jobs.clone_job(&JobId::parse(&id)?, CloneRequest { job_id, start_time, failed }).await?;
    Ok(json(&made.to_json()))
}

/// How the devices of each group stand, and how those failed that did.
pub(crate) async fn report(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    Ok(json(&state.jobs.report(&JobId::parse(&id)?).await?))
}

async fn command(state: &JobApi, id: &str, headers: &HeaderMap, command: Command) -> Result<Response, Refusal> {
    let jobs = state.authorize(headers)?;
    Ok(json(&jobs.command(&JobId::parse(id)?, command).await?.to_json()))
}

/// A body that need not be there.
pub(crate) async fn optional<T: DeserializeOwned + Default>(body: Body) -> Result<T, HubError> {
    let body = read_body(body).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body)
        .map_err(|error| HubError::new(ErrorCode::ArgumentInvalid, format!("the body: {error}")))
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
