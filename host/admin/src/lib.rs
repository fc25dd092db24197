//! The HTTP API of a running host, for its operator: which plugins run where, swaps, and what each actor does.
//!
//! Served over the Unix socket in the data folder, or over TCP by whoever checks a token first; this crate only answers.
//! It does not know where it listens, and nothing of hubs.

mod plugins;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use chrono::{DateTime, Utc};
use device_actors::{ActorView, Roster};
use iothub_protocol::id::DeviceId;
use iothub_protocol::time;
use plugin_runtime::Catalog;
use serde_json::{Value, json};

/// What the API shows.
#[derive(Clone)]
pub struct AdminState {
    pub roster: Arc<Roster>,
    /// `None` for a host without a plugin directory.
    pub catalog: Option<Catalog>,
}

/// The routes:
/// `GET /plugins`; `PUT /plugins/{name}` with the component as body, which becomes current, with `?percent=…` and
/// perhaps `devices`, `window` and `maxFailures` a canary, or with `?stage=true` is only kept;
/// `POST /plugins/{name}/canary` with `{"version", "percent", "devices", "query", "window", "maxFailures"}` for a version
/// that is kept; `POST /plugins/{name}/promote`, `/rollback`, `/pin` with `{"version", "devices", "query"}` and `/unpin`
/// with `{"devices"}` or `{"query"}`; `GET /actors`, `GET /actors/{device}`.
/// `devices` is a pattern for ids or, for a canary or a pin, a list of ids that `query` gave.
/// Errors are `{"error": "…"}` with a status of 400 and above.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/plugins", get(plugins::list))
        .route("/plugins/{name}", put(plugins::put))
        .route("/plugins/{name}/canary", post(plugins::canary).layer(DefaultBodyLimit::max(plugins::MAX_RULE)))
        .route("/plugins/{name}/promote", post(plugins::promote))
        .route("/plugins/{name}/rollback", post(plugins::rollback))
        .route("/plugins/{name}/pin", post(plugins::pin).layer(DefaultBodyLimit::max(plugins::MAX_RULE)))
        .route("/plugins/{name}/unpin", post(plugins::unpin))
        .route("/actors", get(actors))
        .route("/actors/{device}", get(actor))
        .method_not_allowed_fallback(wrong_method)
        .with_state(state)
}

/// An error for the operator.
struct AdminError(StatusCode, String);

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({"error": self.1}))).into_response()
    }
}

async fn actors(State(state): State<AdminState>) -> Response {
    let actors = state.roster.views();
    axum::Json(Value::Array(actors.iter().map(|(device, view)| actor_json(device, view)).collect())).into_response()
}

async fn actor(State(state): State<AdminState>, Path(device): Path<String>) -> Result<Response, AdminError> {
    let device = DeviceId::parse(&device).map_err(|e| AdminError(StatusCode::BAD_REQUEST, e.to_string()))?;
    let view = state.roster.snapshot(&device);
    let view = view.ok_or_else(|| AdminError(StatusCode::NOT_FOUND, format!("no actor runs for {device}")))?;
    Ok(axum::Json(actor_json(&device, &view)).into_response())
}

async fn wrong_method() -> AdminError {
    AdminError(StatusCode::METHOD_NOT_ALLOWED, "this resource has no such method".to_owned())
}

fn actor_json(device: &DeviceId, view: &ActorView) -> Value {
    let plugins: Vec<Value> = view
        .lineup
        .plugins
        .iter()
        .map(|plugin| json!({"name": plugin.name.to_string(), "version": plugin.label, "hash": plugin.hash}))
        .collect();
    let quarantined = view.quarantined.iter();
    let quarantined: Vec<Value> =
        quarantined.map(|(name, version)| json!({"name": name.to_string(), "version": version})).collect();
    let last_failure = view.last_failure.as_ref().map(|last| {
        json!({
            "secondsAgo": Instant::now().saturating_duration_since(last.at).as_secs(),
            "plugin": last.plugin.to_string(),
            "version": last.version,
            "detail": last.failure.detail,
        })
    });
    let held_back: Vec<Value> = view
        .held_back
        .iter()
        .map(|held| json!({"name": held.plugin.to_string(), "version": held.version, "reason": held.reason}))
        .collect();
    json!({
        "deviceId": device,
        "connected": view.connected,
        "busy": view.busy,
        "mailbox": view.mailbox,
        "resident": view.resident,
        "calls": view.calls,
        "failures": view.failures,
        "lastFailure": last_failure,
        "desiredVersion": view.desired_version,
        "timers": view.timers,
        "queuedTelemetry": view.queued_telemetry,
        "plugins": plugins,
        "notActivated": held_back,
        "quarantined": quarantined,
    })
}

fn when(moment: SystemTime) -> String {
    time::format(DateTime::<Utc>::from(moment))
}
