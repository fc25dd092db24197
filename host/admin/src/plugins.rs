//! Plugins: what runs where, and what the operator decides about it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use iothub_protocol::id::DeviceId;
use plugin_runtime::{
    CanaryPolicy, CanaryView, Catalog, CatalogEntry, DeviceGlob, DeviceGlobError, DeviceSelector, DeviceSelectorError,
    LoadError, Placement, PluginName, PluginNameError, RolloutError, SwapReport, VersionView,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{AdminError, AdminState, when};

/// Largest component that can be put; the runtime has a limit of its own, not above this.
const MAX_COMPONENT: usize = 64 << 20;

/// Largest rule: as many of the longest device ids as a rule may list.
pub(crate) const MAX_RULE: usize = 16 << 20;

/// Devices by plugin and hash of the version that they run.
type Running = HashMap<(PluginName, Arc<str>), u64>;

pub(crate) async fn list(State(state): State<AdminState>) -> Response {
    let mut running = Running::new();
    for (_, view) in state.roster.views() {
        for plugin in &view.lineup.plugins {
            *running.entry((plugin.name.clone(), plugin.hash.clone())).or_default() += 1;
        }
    }
    let entries = state.catalog.map(|catalog| catalog.list()).unwrap_or_default();
    axum::Json(Value::Array(entries.iter().map(|entry| entry_json(entry, &running)).collect())).into_response()
}

/// One plugin as in the list, with the ids of the devices that run each version, and of those that do not run what the
/// rules say.
pub(crate) async fn show(State(state): State<AdminState>, Path(name): Path<String>) -> Result<Response, AdminError> {
    let views = state.roster.views();
    let (catalog, name) = named(state, &name)?;
    let entry = catalog.list().into_iter().find(|entry| entry.name == name.as_str());
    let entry = entry.ok_or_else(|| RolloutError::UnknownPlugin { name: name.clone() })?;
    let mut by_hash: HashMap<Arc<str>, Vec<DeviceId>> = HashMap::new();
    let (mut quarantined, mut not_activated) = (Vec::new(), Vec::new());
    for (device, view) in views {
        for (_, version) in view.quarantined.iter().filter(|(plugin, _)| *plugin == name) {
            quarantined.push(json!({"deviceId": device, "version": version}));
        }
        for held in view.held_back.iter().filter(|held| held.plugin == name) {
            not_activated.push(json!({"deviceId": device, "version": held.version, "reason": held.reason}));
        }
        if let Some(plugin) = view.lineup.plugins.iter().find(|plugin| plugin.name == name) {
            by_hash.entry(plugin.hash.clone()).or_default().push(device);
        }
    }
    let running = by_hash.iter().map(|(hash, devices)| ((name.clone(), hash.clone()), devices.len() as u64)).collect();
    let mut shown = entry_json(&entry, &running);
    for version in shown["versions"].as_array_mut().into_iter().flatten() {
        let devices = version["hash"].as_str().and_then(|hash| by_hash.get(hash)).map_or(&[][..], Vec::as_slice);
        version["deviceIds"] = json!(devices);
    }
    shown["quarantined"] = quarantined.into();
    shown["notActivated"] = not_activated.into();
    Ok(axum::Json(shown).into_response())
}

/// The query of a canary. A plain swap has none.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CanaryQuery {
    percent: Option<u8>,
    devices: Option<String>,
    /// In seconds.
    window: Option<u32>,
    /// In percent.
    max_failures: Option<u8>,
    /// Only check it and keep it.
    #[serde(default)]
    stage: bool,
}

pub(crate) async fn put(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    query: Result<Query<CanaryQuery>, QueryRejection>,
    body: Body,
) -> Result<Response, AdminError> {
    let (catalog, name) = named(state, &name)?;
    let query = query?.0;
    let stage = query.stage;
    let policy = query.policy()?;
    if stage && policy.is_some() {
        let text = "a component that is staged is no canary yet; POST to /canary makes it one";
        return Err(AdminError(StatusCode::BAD_REQUEST, text.to_owned()));
    }
    let component = to_bytes(body, MAX_COMPONENT).await.map_err(|_| {
        AdminError(StatusCode::PAYLOAD_TOO_LARGE, format!("the component is larger than {MAX_COMPONENT} bytes"))
    })?;
    let refused = |error: RolloutError| match error {
        RolloutError::Load(error) => {
            AdminError(StatusCode::UNPROCESSABLE_ENTITY, format!("{name} was not swapped: {error}"))
        }
        other => AdminError::from(other),
    };
    if stage {
        let (version, hash) = catalog.stage(&name, component.to_vec()).await.map_err(refused)?;
        let answer = json!({"name": name.to_string(), "version": version, "hash": hash});
        return Ok(axum::Json(answer).into_response());
    }
    let report = match policy {
        Some(policy) => catalog.canary(&name, component.to_vec(), policy).await,
        None => catalog.swap(&name, component.to_vec()).await.map_err(RolloutError::Load),
    };
    Ok(report_json(&report.map_err(refused)?))
}

/// Of a kept version.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CanaryBody {
    version: String,
    percent: Option<u8>,
    devices: Option<DevicesBody>,
    query: Option<String>,
    /// In seconds.
    window: Option<u32>,
    /// In percent.
    max_failures: Option<u8>,
}

/// A pattern, or the ids that a query gave.
#[derive(Deserialize)]
#[serde(untagged, expecting = "devices are a pattern or a list of ids")]
enum DevicesBody {
    Pattern(String),
    Listed(BTreeSet<DeviceId>),
}

pub(crate) async fn canary(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    body: Result<axum::Json<CanaryBody>, JsonRejection>,
) -> Result<Response, AdminError> {
    let (catalog, name) = named(state, &name)?;
    let CanaryBody { version, percent, devices, query, window, max_failures } = body?.0;
    let defaults = CanaryPolicy::default();
    let policy = CanaryPolicy {
        percent: percent.unwrap_or(defaults.percent),
        devices: selector(devices, query)?,
        window: window.map_or(defaults.window, |seconds| Duration::from_secs(seconds.into())),
        max_failures: max_failures.unwrap_or(defaults.max_failures),
    };
    Ok(report_json(&catalog.canary_of(&name, &version, policy).await?))
}

pub(crate) async fn promote(State(state): State<AdminState>, Path(name): Path<String>) -> Result<Response, AdminError> {
    let (catalog, name) = named(state, &name)?;
    Ok(report_json(&catalog.promote(&name).await?))
}

pub(crate) async fn rollback(
    State(state): State<AdminState>,
    Path(name): Path<String>,
) -> Result<Response, AdminError> {
    let (catalog, name) = named(state, &name)?;
    Ok(report_json(&catalog.rollback(&name).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PinBody {
    version: String,
    devices: Option<DevicesBody>,
    query: Option<String>,
}

pub(crate) async fn pin(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    body: Result<axum::Json<PinBody>, JsonRejection>,
) -> Result<Response, AdminError> {
    let (catalog, name) = named(state, &name)?;
    let PinBody { version, devices, query } = body?.0;
    let devices = selector(devices, query)?;
    let (version, hash) = catalog.pin(&name, &version, &devices).await?;
    let answer = json!({"name": name.to_string(), "version": version, "hash": hash, "devices": devices.to_string()});
    Ok(axum::Json(answer).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnpinBody {
    devices: Option<String>,
    query: Option<String>,
}

pub(crate) async fn unpin(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    body: Result<axum::Json<UnpinBody>, JsonRejection>,
) -> Result<Response, AdminError> {
    let (catalog, name) = named(state, &name)?;
    let UnpinBody { devices, query } = body?.0;
    let removed = catalog.unpin(&name, devices.or(query).as_deref()).await?;
    Ok(axum::Json(json!({"name": name.to_string(), "removed": removed})).into_response())
}

fn named(state: AdminState, name: &str) -> Result<(Catalog, PluginName), AdminError> {
    let Some(catalog) = state.catalog else {
        let text = "this latch has no plugin directory; start it with --plugins DIR";
        return Err(AdminError(StatusCode::CONFLICT, text.to_owned()));
    };
    Ok((catalog, PluginName::parse(name)?))
}

impl CanaryQuery {
    fn policy(self) -> Result<Option<CanaryPolicy>, AdminError> {
        let CanaryQuery { percent, devices, window, max_failures, stage: _ } = self;
        let defaults = CanaryPolicy::default();
        if percent.is_none() && devices.is_none() {
            if window.is_some() || max_failures.is_some() {
                let text = "window and maxFailures are for a canary, which has percent or devices";
                return Err(AdminError(StatusCode::BAD_REQUEST, text.to_owned()));
            }
            return Ok(None);
        }
        Ok(Some(CanaryPolicy {
            percent: percent.unwrap_or(defaults.percent),
            devices: selector(devices.map(DevicesBody::Pattern), None)?,
            window: window.map_or(defaults.window, |seconds| Duration::from_secs(seconds.into())),
            max_failures: max_failures.unwrap_or(defaults.max_failures),
        }))
    }
}

/// All devices, unless a pattern or a list says which.
fn selector(devices: Option<DevicesBody>, query: Option<String>) -> Result<DeviceSelector, AdminError> {
    match (devices, query) {
        (None, None) => Ok(DeviceSelector::all()),
        (Some(DevicesBody::Pattern(pattern)), None) => Ok(DeviceGlob::parse(&pattern)?.into()),
        (Some(DevicesBody::Listed(ids)), Some(query)) => Ok(DeviceSelector::listed(&query, ids)?),
        _ => {
            let text = "devices are a pattern, or a list of ids with the query that gave them";
            Err(AdminError(StatusCode::BAD_REQUEST, text.to_owned()))
        }
    }
}

fn report_json(report: &SwapReport) -> Response {
    let answer = json!({
        "name": report.name.to_string(),
        "from": report.from,
        "to": report.to,
        "generation": report.generation,
    });
    axum::Json(answer).into_response()
}

fn entry_json(entry: &CatalogEntry, running: &Running) -> Value {
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
    let canary = entry.canary.as_ref();
    let versions = entry.versions.iter().map(|version| version_json(&entry.name, version, canary, running));
    json!({
        "name": entry.name,
        "version": version,
        "loadedAt": entry.loaded_at.map(when),
        "removed": entry.removed,
        "refused": entry.refusal.as_ref().map(|refusal| {
            json!({"reason": refusal.reason, "hash": refusal.hash, "at": when(refusal.at)})
        }),
        "placement": placement_json(&entry.placement),
        "versions": versions.collect::<Vec<_>>(),
        "canary": canary.map(canary_json),
        "withdrawn": entry.withdrawn.as_ref().map(|withdrawn| {
            json!({
                "version": withdrawn.label,
                "hash": withdrawn.hash,
                "reason": withdrawn.reason,
                "at": when(withdrawn.at),
            })
        }),
    })
}

/// `null` for a plugin that runs everywhere.
fn placement_json(placement: &Placement) -> Value {
    match placement {
        Placement::Everywhere => Value::Null,
        Placement::On { patterns, devices } => {
            let patterns: Vec<_> = patterns.iter().map(DeviceGlob::to_string).collect();
            json!({"patterns": patterns, "deviceIds": devices})
        }
    }
}

fn version_json(name: &str, version: &VersionView, canary: Option<&CanaryView>, running: &Running) -> Value {
    let role = if version.is_current {
        "current"
    } else if canary.is_some_and(|canary| canary.hash == version.hash) {
        "canary"
    } else if version.is_previous {
        "previous"
    } else {
        "kept"
    };
    let key = PluginName::parse(name).ok().map(|name| (name, Arc::from(&*version.hash)));
    json!({
        "label": version.label,
        "semver": version.semver,
        "hash": version.hash,
        "role": role,
        "arrivedAt": when(version.arrived),
        "pinned": version.pinned,
        "devices": key.and_then(|key| running.get(&key).copied()).unwrap_or(0),
        "calls": version.counts.map(|counts| counts.calls),
        "failures": version.counts.map(|counts| counts.failures),
    })
}

fn canary_json(canary: &CanaryView) -> Value {
    json!({
        "version": canary.label,
        "hash": canary.hash,
        "percent": canary.policy.percent,
        "devices": canary.policy.devices.to_string(),
        "windowSeconds": canary.policy.window.as_secs(),
        "maxFailures": canary.policy.max_failures,
        "status": if canary.passed { "healthy" } else { "watched" },
        "calls": canary.counts.calls,
        "failures": canary.counts.failures,
    })
}

impl From<RolloutError> for AdminError {
    fn from(error: RolloutError) -> AdminError {
        let status = match &error {
            RolloutError::UnknownPlugin { .. } | RolloutError::UnknownVersion { .. } | RolloutError::NoPin { .. } => {
                StatusCode::NOT_FOUND
            }
            RolloutError::NoPrevious { .. } | RolloutError::NoCanary { .. } | RolloutError::IsCurrent { .. } => {
                StatusCode::CONFLICT
            }
            RolloutError::Percent => StatusCode::BAD_REQUEST,
            RolloutError::Load(LoadError::File { .. }) | RolloutError::Store { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            RolloutError::Load(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        AdminError(status, error.to_string())
    }
}

impl From<JsonRejection> for AdminError {
    fn from(rejection: JsonRejection) -> AdminError {
        AdminError(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for AdminError {
    fn from(rejection: QueryRejection) -> AdminError {
        AdminError(rejection.status(), rejection.body_text())
    }
}

impl From<PluginNameError> for AdminError {
    fn from(error: PluginNameError) -> AdminError {
        AdminError(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<DeviceSelectorError> for AdminError {
    fn from(error: DeviceSelectorError) -> AdminError {
        AdminError(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<DeviceGlobError> for AdminError {
    fn from(error: DeviceGlobError) -> AdminError {
        AdminError(StatusCode::BAD_REQUEST, error.to_string())
    }
}
