//! The HTTP API of a running host, for its operator: which plugins run where, swaps, and what each actor does.
//!
//! Served over the Unix socket in the data folder, or over TCP by whoever checks a token first; this crate only answers.
//! It does not know where it listens, and nothing of hubs.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use chrono::{DateTime, Utc};
use device_actors::{ActorView, Roster};
use iothub_protocol::id::DeviceId;
use iothub_protocol::time;
use plugin_runtime::{Catalog, CatalogEntry, PluginName};
use serde_json::{Value, json};

/// Largest component that can be put; the runtime has a limit of its own, not above this.
const MAX_COMPONENT: usize = 64 << 20;

/// What the API shows.
#[derive(Clone)]
pub struct AdminState {
    pub roster: Arc<Roster>,
    /// `None` for a host without a plugin directory.
    pub catalog: Option<Catalog>,
}

/// The routes:
/// `GET /plugins`, `PUT /plugins/{name}` with the component as body, `GET /actors`, `GET /actors/{device}`.
/// Errors are `{"error": "…"}` with a status of 400 and above.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/plugins", get(plugins))
        .route("/plugins/{name}", put(swap))
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

async fn plugins(State(state): State<AdminState>) -> Response {
    let entries = state.catalog.map(|catalog| catalog.list()).unwrap_or_default();
    axum::Json(Value::Array(entries.iter().map(entry_json).collect())).into_response()
}

async fn swap(State(state): State<AdminState>, Path(name): Path<String>, body: Body) -> Result<Response, AdminError> {
    let Some(catalog) = state.catalog else {
        let text = "this latch has no plugin directory; start it with --plugins DIR";
        return Err(AdminError(StatusCode::CONFLICT, text.to_owned()));
    };
    let name = PluginName::parse(&name).map_err(|e| AdminError(StatusCode::BAD_REQUEST, e.to_string()))?;
    let component = to_bytes(body, MAX_COMPONENT).await.map_err(|_| {
        AdminError(StatusCode::PAYLOAD_TOO_LARGE, format!("the component is larger than {MAX_COMPONENT} bytes"))
    })?;
    let report = catalog
        .swap(&name, component.to_vec())
        .await
        .map_err(|e| AdminError(StatusCode::UNPROCESSABLE_ENTITY, format!("{name} was not swapped: {e}")))?;
    let answer = json!({
        "name": report.name.to_string(),
        "from": report.from,
        "to": report.to,
        "generation": report.generation,
    });
    Ok(axum::Json(answer).into_response())
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

fn entry_json(entry: &CatalogEntry) -> Value {
    let version = entry.version.as_ref().map(|version| {
        json!({
            "label": version.label(),
            "semver": version.semver(),
            "hash": version.hash(),
            "size": version.size(),
            "methods": version.methods(),
            "watched": version.watched(),
        })
    });
    json!({
        "name": entry.name,
        "version": version,
        "loadedAt": entry.loaded_at.map(when),
        "removed": entry.removed,
        "refused": entry.refusal.as_ref().map(|refusal| {
            json!({"reason": refusal.reason, "hash": refusal.hash, "at": when(refusal.at)})
        }),
    })
}

fn actor_json(device: &DeviceId, view: &ActorView) -> Value {
    let plugins: Vec<Value> = view
        .lineup
        .plugins
        .iter()
        .map(|plugin| json!({"name": plugin.name.to_string(), "version": plugin.label, "hash": plugin.hash}))
        .collect();
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
    })
}

fn when(moment: SystemTime) -> String {
    time::format(DateTime::<Utc>::from(moment))
}
