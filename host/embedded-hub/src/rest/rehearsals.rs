//! The operator's way to bad days and to what a tier has counted.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use bytes::Bytes;
use iothub_protocol::error::{ErrorCode, HubError};
use serde::Deserialize;
use serde_json::json;

use super::extract::Path;
use super::operator::OperatorError;
use crate::driver::HubHandle;
use crate::rehearsal::bad_days::{BadDay, Plan, Wishes};
use crate::rehearsal::pattern::DevicePattern;

/// The routes: `GET /rehearsals`, the tier and the bad days under way; `POST /rehearsals` with a bad day, which answers
/// its number and its seed; `DELETE /rehearsals/{number}` and `DELETE /rehearsals`, all of them.
pub(super) fn router() -> Router<HubHandle> {
    Router::new()
        .route("/rehearsals", get(list).post(begin).delete(stop_all))
        .route("/rehearsals/{number}", delete(stop))
}

async fn list(State(hub): State<HubHandle>) -> Response {
    Json(hub.rehearsal().to_json()).into_response()
}

/// A bad day as the operator asks for it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BadDayBody {
    name: String,
    /// A pattern with `*` and `?`.
    devices: Option<String>,
    percent: Option<u8>,
    length_milliseconds: Option<u64>,
    /// Made up if there is none.
    seed: Option<u64>,
    /// At least and at most.
    delay_milliseconds: Option<(u64, u64)>,
}

async fn begin(State(hub): State<HubHandle>, body: Bytes) -> Result<Response, OperatorError> {
    let plan = read_plan(&body)?;
    let (name, seed) = (plan.what.name(), plan.seed);
    let number = hub.rehearsal().begin(plan).map_err(invalid)?;
    // As text: it may be larger than the numbers that every JSON reader keeps.
    Ok(Json(json!({"number": number, "name": name, "seed": seed.to_string()})).into_response())
}

fn read_plan(body: &[u8]) -> Result<Plan, HubError> {
    let read: BadDayBody = serde_json::from_slice(body)
        .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is no bad day: {e}")))?;
    let names = || BadDay::ALL.map(BadDay::name).join(", ");
    let what = BadDay::by_name(&read.name)
        .ok_or_else(|| invalid(format!("there is no bad day {:?}, but {}", read.name, names())))?;
    let (milliseconds, pattern) = (Duration::from_millis, |text: String| DevicePattern::parse(&text));
    let wishes = Wishes {
        devices: read.devices.map(pattern).transpose().map_err(invalid)?,
        percent: read.percent,
        length: read.length_milliseconds.map(milliseconds),
        delay: read.delay_milliseconds.map(|(from, to)| (milliseconds(from), milliseconds(to))),
    };
    Plan::new(what, read.seed.unwrap_or_else(rand::random), wishes).map_err(invalid)
}

async fn stop(State(hub): State<HubHandle>, Path(number): Path) -> Result<Response, OperatorError> {
    let stopped = number.parse().map(|number| hub.rehearsal().stop(Some(number))).unwrap_or_default();
    if stopped == 0 {
        let text = format!("there is no bad day {number:?} under way");
        return Err(HubError::new(ErrorCode::IotHubNotFound, text).into());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn stop_all(State(hub): State<HubHandle>) -> Response {
    Json(json!({"stopped": hub.rehearsal().stop(None)})).into_response()
}

fn invalid(error: impl ToString) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_day_is_read_with_what_is_usual_for_it() {
        let plan = read_plan(br#"{"name":"silence","seed":18446744073709551615}"#).expect("a plan");
        assert_eq!((plan.what, plan.length.as_secs(), plan.percent, plan.seed), (BadDay::Silence, 240, 100, u64::MAX));
        let body =
            r#"{"name":"slow-hub","devices":"a*","percent":5,"lengthMilliseconds":50,"delayMilliseconds":[1,2]}"#;
        let plan = read_plan(body.as_bytes()).expect("a plan");
        assert_eq!((plan.devices.to_string().as_str(), plan.percent, plan.length.as_millis()), ("a*", 5, 50));
        for (body, expected) in [
            ("", "no bad day"),
            (r#"{"name":"rain"}"#, "lost-notices, reconnect-storm"),
            (r#"{"name":"silence","colour":"grey"}"#, "colour"),
            (r#"{"name":"silence","devices":""}"#, "1 to 256 characters"),
            (r#"{"name":"silence","percent":0}"#, "1 to 100"),
        ] {
            let error = read_plan(body.as_bytes()).expect_err(body);
            assert!(error.message.contains(expected) && error.code.http_status() == 400, "{error}");
        }
    }
}
