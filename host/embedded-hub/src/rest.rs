//! The REST listener: Azure's service API over the hub and the job engine.
//!
//! Every reply is JSON with its content type, as the Node SDK reads nothing else; every refusal has the envelope and
//! the `iothub-errorcode` header of its dialect.

mod auth;
mod bulk;
pub(crate) mod certificates;
mod configurations;
mod devices;
mod events;
mod extract;
mod messages;
pub(crate) mod operator;
mod query;
mod rehearsals;
mod rehearse;
mod serve;
mod store;
mod tokens;
mod twins;
mod websocket;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use iothub_protocol::error::{ErrorCode, HubError};
use job_api::{JobApi, reply};
use job_engine::JobEngine;

use crate::configurations::Configurations;
use crate::driver::HubHandle;
use crate::mqtt::Door;
use crate::policy::{Policy, Rights};
use reply::{Refusal, pass_over, read_body};

pub(crate) use events::Streams;
pub(crate) use serve::serve;

/// What every handler needs.
#[derive(Clone)]
pub(crate) struct RestState {
    pub(crate) hub: HubHandle,
    pub(crate) jobs: JobEngine,
    pub(crate) policies: Arc<[Policy]>,
    /// Where devices go that come by WebSocket.
    pub(crate) door: Door,
    pub(crate) streams: Streams,
    pub(crate) configurations: Configurations,
}

impl RestState {
    fn job_api(&self) -> JobApi {
        let state = self.clone();
        let api = JobApi::new(self.jobs.clone(), move |headers| {
            state.authorize(headers, Rights::SERVICE_CONNECT).map(str::to_owned)
        });
        api.with_streams_until(self.streams.stopping().clone())
    }
}

/// The routes. Paths, methods and status codes are those of the service API, version 2021-04-12; any version is
/// accepted.
pub(crate) fn router(state: RestState) -> Router {
    Router::new()
        .route("/devices", get(devices::list).post(bulk::run))
        .route("/devices/", get(devices::list).post(bulk::run))
        .route("/devices/query", post(query::run))
        .route("/devices/{id}", put(devices::put).get(devices::get).delete(devices::delete))
        .route("/devices/{id}/modules", get(devices::list_modules))
        .route("/devices/{id}/modules/{module}", put(devices::put).get(devices::get).delete(devices::delete))
        .route("/devices/{id}/commands", delete(messages::purge))
        .route("/configurations", get(configurations::list))
        .route("/configurations/testQueries", post(configurations::test))
        .route("/configurations/{id}", put(configurations::put).get(configurations::get).delete(configurations::delete))
        .route("/statistics/devices", get(devices::statistics))
        .route("/statistics/service", get(devices::service_statistics))
        .route("/twins/{id}", get(twins::get).patch(twins::patch).put(twins::replace))
        .route("/twins/{id}/methods", post(twins::call))
        .route("/twins/{id}/modules/{module}", get(twins::get).patch(twins::patch).put(twins::replace))
        .route("/twins/{id}/modules/{module}/methods", post(twins::call))
        // Ours: Azure has these under the same path, but over AMQP.
        .route("/messages/events", get(events::stream))
        .merge(job_api::router(state.job_api()))
        // Azure does not heed the letters' case in these, and neither do those who write them.
        .merge(message_routes("deviceBound", "serviceBound"))
        .merge(message_routes("devicebound", "servicebound"))
        .route("/$iothub/websocket", get(websocket::upgrade))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(state.clone(), rehearse::admit))
        .layer(middleware::from_fn_with_state(state.clone(), with_whole_body))
        .with_state(state)
}

fn message_routes(device_bound: &str, service_bound: &str) -> Router<RestState> {
    let queue = format!("/devices/{{id}}/messages/{device_bound}");
    let feedback = format!("/messages/{service_bound}/feedback");
    Router::new()
        .route(&queue, get(messages::receive))
        .route(&format!("{queue}/{{lock}}"), delete(messages::complete_or_reject))
        .route(&format!("{queue}/{{lock}}/abandon"), post(messages::abandon))
        .route(&feedback, get(messages::receive_feedback))
        .route(&format!("{feedback}/{{lock}}"), delete(messages::complete_feedback))
        .route(&format!("{feedback}/{{lock}}/abandon"), post(messages::abandon_feedback))
}

/// Take the body before anything is decided. A refusal that leaves while the body is still coming closes the connection
/// on it, and a client that sends everything before it listens hears of that and not of the refusal. What comes from a
/// client that no policy knows is not kept: every route that reads a body will refuse it.
async fn with_whole_body(State(state): State<RestState>, request: Request, next: Next) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    if !state.knows(&head.headers) {
        pass_over(body).await;
        return Ok(next.run(Request::from_parts(head, Body::empty())).await);
    }
    let whole = read_body(body).await.and_then(|whole| check_type(&head.headers, &whole).map(|()| whole));
    match whole {
        Ok(whole) => Ok(next.run(Request::from_parts(head, Body::from(whole))).await),
        Err(error) if head.uri.path().ends_with("/methods") => Err(Refusal::of_method(error, None)),
        Err(error) => Err(error.into()),
    }
}

/// Every body of this API is JSON. One without a type is taken for that, one of another is not read.
///
/// # Errors
/// 415000, saying what to send.
fn check_type(headers: &HeaderMap, body: &[u8]) -> Result<(), HubError> {
    let Some(found) = headers.get(header::CONTENT_TYPE).filter(|_| !body.is_empty()) else { return Ok(()) };
    let found = String::from_utf8_lossy(found.as_bytes());
    let essence = found.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let text = format!("the body is {essence:?}: send JSON, with the header Content-Type: application/json");
    Err(HubError::new(ErrorCode::GenericUnsupportedMediaType, text))
}

async fn no_such_route() -> Refusal {
    HubError::new(ErrorCode::IotHubNotFound, "the hub has no such resource").into()
}

async fn no_such_method() -> Refusal {
    HubError::new(ErrorCode::GenericMethodNotAllowed, "the resource does not have this method").into()
}
