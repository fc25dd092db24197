//! The REST listener: Azure's service API over the hub and the job engine.
//!
//! Every reply is JSON with its content type, as the Node SDK reads nothing else; every refusal has the envelope and
//! the `iothub-errorcode` header of its dialect.

mod auth;
mod bulk;
mod devices;
pub(crate) mod events;
mod extract;
mod jobs;
mod query;
mod reply;
mod serve;
mod twins;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post, put};
use iothub_protocol::error::{ErrorCode, HubError};
use job_engine::JobEngine;

use crate::driver::HubHandle;
use crate::policy::Policy;
use reply::Refusal;

pub(crate) use query::Walk;
pub(crate) use serve::serve;

/// What every handler needs.
#[derive(Clone)]
pub(crate) struct RestState {
    pub(crate) hub: HubHandle,
    pub(crate) jobs: JobEngine,
    pub(crate) policies: Arc<[Policy]>,
}

/// The routes. Paths, methods and status codes are those of the service API, version 2021-04-12; any version is
/// accepted.
pub(crate) fn router(state: RestState) -> Router {
    Router::new()
        .route("/devices", get(devices::list).post(bulk::run))
        .route("/devices/", get(devices::list).post(bulk::run))
        .route("/devices/query", post(query::run))
        .route("/devices/{id}", put(devices::put).get(devices::get).delete(devices::delete))
        .route("/statistics/devices", get(devices::statistics))
        .route("/statistics/service", get(devices::service_statistics))
        .route("/twins/{id}", get(twins::get).patch(twins::patch).put(twins::replace))
        .route("/twins/{id}/methods", post(twins::call))
        .route("/jobs/v2/query", get(jobs::query))
        .route("/jobs/v2/{id}", put(jobs::create).get(jobs::get))
        .route("/jobs/v2/{id}/cancel", post(jobs::cancel))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(state)
}

async fn no_such_route() -> Refusal {
    HubError::new(ErrorCode::IotHubNotFound, "the hub has no such resource").into()
}

async fn no_such_method() -> Refusal {
    HubError::new(ErrorCode::GenericMethodNotAllowed, "the resource does not have this method").into()
}
