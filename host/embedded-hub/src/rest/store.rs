//! What the operator's socket serves of the hub's store: declared indexes, and devices and modules in bulk.

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use chrono::Utc;
use futures_util::stream::{self, StreamExt as _};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::extract::Query;
use super::operator::OperatorError;
use super::rehearse::too_many_devices;
use crate::driver::HubHandle;
use crate::hub::{Operation, already_exists};
use crate::import::NewIdentity;
use iothub_protocol::quota::tier::Sku;

/// Largest request: so many lines of devices with twins of the usual size; who has larger ones sends fewer lines.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Most lines of a request: each may be wrong, and the answer says how.
const MAX_LINES: usize = 10_000;
/// Devices that are made at once: enough to share commits, few enough to leave the hub to others in between.
const AT_ONCE: usize = 1024;

/// The routes:
/// `GET`, `POST` and `DELETE /store/indexes?path=…`; `POST /store/devices` with lines of devices and modules, answered with
/// how many were made, how many of them are modules, and what is wrong with the others.
pub(super) fn router() -> Router<HubHandle> {
    Router::new()
        .route("/store/indexes", get(list_indexes).post(add_index).delete(remove_index))
        .route("/store/devices", post(import).layer(DefaultBodyLimit::max(MAX_BODY)))
}

#[derive(Deserialize)]
struct IndexQuery {
    path: String,
}

async fn list_indexes(State(hub): State<HubHandle>) -> Result<Response, OperatorError> {
    Ok(Json(json!(hub.indexes()?)).into_response())
}

async fn add_index(State(hub): State<HubHandle>, Query(query): Query<IndexQuery>) -> Result<Response, OperatorError> {
    Ok(Json(json!({"path": query.path, "added": hub.add_index(&query.path).await?})).into_response())
}

async fn remove_index(
    State(hub): State<HubHandle>,
    Query(query): Query<IndexQuery>,
) -> Result<Response, OperatorError> {
    Ok(Json(json!({"path": query.path, "removed": hub.remove_index(&query.path).await?})).into_response())
}

async fn import(State(hub): State<HubHandle>, body: Bytes) -> Result<Response, OperatorError> {
    let parsed = tokio::task::spawn_blocking(move || read_lines(&body)).await;
    let parsed = parsed.map_err(|_| HubError::new(ErrorCode::ServerError, "the lines cannot be read"))??;
    // One after the other, so that two requests do not both see the last free place.
    let _turn = hub.rehearsal().turn().await;
    let mut room = match hub.rehearsal().sku() {
        Some(sku) => {
            let counts = hub.counts().await?;
            Some((sku, sku.devices().saturating_sub(counts.total + counts.modules)))
        }
        None => None,
    };
    let mut lines = parsed.into_iter().peekable();
    let (mut created, mut modules, mut errors) = (0, 0_u64, Vec::new());
    while lines.peek().is_some() {
        // As many as there is room for; of the others each is looked at.
        let next = room.map_or(usize::MAX, |(_, room)| room.max(1));
        let full_tier = room.filter(|(_, room)| *room == 0).map(|(sku, _)| sku);
        let made = lines.by_ref().take(next).map(|(number, new)| {
            let hub = hub.clone();
            async move {
                let made = match (new, full_tier) {
                    (Ok(new), Some(sku)) => Err(full(&hub, sku, new.identity.address).await),
                    (Ok(new), None) => {
                        let is_module = new.identity.address.is_module();
                        hub.request(Operation::Import(Box::new(new))).await.map(|_| is_module)
                    }
                    (Err(error), _) => Err(error),
                };
                (number, made)
            }
        });
        let mut made = stream::iter(made).buffered(AT_ONCE);
        while let Some((number, made)) = made.next().await {
            match made {
                Ok(is_module) => {
                    created += 1;
                    modules += u64::from(is_module);
                    room = room.map(|(sku, room)| (sku, room.saturating_sub(1)));
                }
                Err(error) => {
                    errors.push(json!({"line": number, "code": error.code.name(), "error": error.to_string()}));
                }
            }
        }
    }
    Ok((StatusCode::OK, Json(json!({"created": created, "modules": modules, "errors": Value::Array(errors)})))
        .into_response())
}

/// Why a device or a module is not made on a hub that has as many as its tier allows: if it is there already, that.
async fn full(hub: &HubHandle, sku: Sku, address: Address) -> HubError {
    match hub.request(Operation::GetIdentity(address.clone())).await {
        Ok(_) => already_exists(&address),
        Err(error) if matches!(error.code, ErrorCode::DeviceNotFound | ErrorCode::ModuleNotFound) => {
            too_many_devices(sku, sku.devices())
        }
        Err(error) => error,
    }
}

/// The number of a line, and what is in it.
type NumberedLine = (usize, Result<NewIdentity, HubError>);

/// Each line with its number, from 1; empty ones are left out.
fn read_lines(body: &[u8]) -> Result<Vec<NumberedLine>, HubError> {
    let now = Utc::now();
    let lines = body.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let lines: Vec<_> = lines.take(MAX_LINES + 1).collect();
    if lines.len() > MAX_LINES {
        let text = format!("at most {MAX_LINES} lines go in one request");
        return Err(HubError::new(ErrorCode::ArgumentInvalid, text));
    }
    Ok(lines.into_iter().map(|(index, line)| (index + 1, NewIdentity::from_json(line, now))).collect())
}
