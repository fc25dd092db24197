//! `POST /jobs/v2/preview`: what a job would come to.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::job::JobRequest;
use job_engine::Tally;
use serde::Deserialize as _;
use serde_json::Value;

use crate::JobApi;
use crate::extract::Path;
use crate::reply::{Refusal, json, read_body};

/// The body is that of the job's PUT. A list stands in it whole, or in parts: then each but the first has, as `tally`, that
/// of the answer to the one before.
pub(crate) async fn run(
    State(state): State<JobApi>,
    Path(id): Path,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    // A job can be called so, and is another resource.
    if id != "preview" {
        let text = "a job is not posted: PUT it, or POST it to /jobs/v2/preview";
        return Err(HubError::new(ErrorCode::GenericMethodNotAllowed, text).into());
    }
    let body: Value = serde_json::from_slice(&read_body(body).await?)
        .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is not JSON: {e}")))?;
    let tally = match body.get("tally").filter(|tally| !tally.is_null()) {
        None => Tally::default(),
        Some(tally) => Tally::deserialize(tally)
            .map_err(|e| HubError::new(ErrorCode::ArgumentInvalid, format!("tally is not that of a preview: {e}")))?,
    };
    Ok(json(&state.jobs.preview(JobRequest::of_preview(&body)?, tally).await?))
}
