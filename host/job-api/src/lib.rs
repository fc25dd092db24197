//! A job engine over HTTP, as Azure's service API has it: `/jobs/v2`, and the rows of `devices.jobs`.
//!
//! The embedded hub serves it among its other routes, a host that runs jobs on another hub by itself. Who may ask is
//! theirs to say ([`JobApi::new`]). [`reply`] and [`extract`] are how requests and answers of that API look, whatever
//! they are about.

mod events;
pub mod extract;
mod jobs;
mod preview;
pub mod query;
mod records;
pub mod reply;
mod targets;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::{get, post, put};
use iothub_protocol::error::HubError;
use job_engine::JobEngine;
use tokio_util::sync::CancellationToken;

use events::Streams;

/// What every handler needs.
#[derive(Clone)]
pub struct JobApi {
    jobs: JobEngine,
    authorize: Arc<Authorize>,
    streams: Streams,
}

type Authorize = dyn Fn(&HeaderMap) -> Result<String, HubError> + Send + Sync;

impl JobApi {
    /// `authorize` looks at the headers of each request before anything else does, and names who asks, for the audit
    /// trail, or refuses who may not.
    pub fn new(
        jobs: JobEngine,
        authorize: impl Fn(&HeaderMap) -> Result<String, HubError> + Send + Sync + 'static,
    ) -> JobApi {
        let streams = Streams::new(CancellationToken::new());
        JobApi { jobs, authorize: Arc::new(authorize), streams }
    }

    /// With streams that end when `stopping` is cancelled, and not only with the engine: a listener that waits for what
    /// is in hand has that done before it waits.
    #[must_use]
    pub fn with_streams_until(self, stopping: CancellationToken) -> JobApi {
        JobApi { streams: Streams::new(stopping), ..self }
    }

    /// The engine, acting for whoever asks.
    fn authorize(&self, headers: &HeaderMap) -> Result<JobEngine, HubError> {
        (self.authorize)(headers).map(|caller| self.jobs.by(&caller))
    }
}

/// The routes of `/jobs/v2`, Azure's and ours, and of `/jobs/templates`, for a router of any state. Whoever merges them
/// answers what has no route.
pub fn router<S: Clone + Send + Sync + 'static>(api: JobApi) -> Router<S> {
    Router::new()
        .route("/jobs/v2/query", get(jobs::query))
        .route("/jobs/v2/{id}", put(jobs::create).get(jobs::get).post(preview::run))
        .route("/jobs/v2/{id}/cancel", post(jobs::cancel))
        // Ours: Azure cannot do these.
        .route("/jobs/v2/{id}/pause", post(jobs::pause))
        .route("/jobs/v2/{id}/resume", post(jobs::resume))
        .route("/jobs/v2/{id}/approve", post(jobs::approve))
        .route("/jobs/v2/{id}/clone", post(jobs::clone))
        .route("/jobs/v2/{id}/report", get(jobs::report))
        .route("/jobs/v2/{id}/events", get(events::of_job))
        .route("/jobs/v2/{id}/attempts", get(records::attempts))
        .route("/jobs/v2/{job}/devices/{device}/attempts", get(records::device_attempts))
        .route("/jobs/v2/{job}/devices/{device}/modules/{module}/attempts", get(records::device_attempts))
        .route("/jobs/v2/{id}/audit", get(records::audit_of_job))
        .route("/jobs/v2/query/audit", get(records::audit))
        .route("/jobs/v2/query/events", get(events::of_all))
        .route("/jobs/v2/{id}/targets", post(targets::extend))
        .route("/jobs/v2/{id}/targets/complete", post(targets::complete))
        .route("/jobs/templates", get(templates::list))
        .route("/jobs/templates/{name}", put(templates::put).get(templates::get).delete(templates::delete))
        .route("/jobs/templates/{name}/run", post(templates::run))
        .with_state(api)
}

/// `POST /devices/query` for rows of jobs and nothing else, where there is no hub to ask for twins.
pub fn rows_router<S: Clone + Send + Sync + 'static>(api: JobApi) -> Router<S> {
    Router::new().route("/devices/query", post(query::rows_alone)).with_state(api)
}
