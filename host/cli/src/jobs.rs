//! The job engine as `latch run --jobs` runs it: on a hub behind its service API, with a journal of its own. Commands
//! reach it through the socket in the data folder, by the routes that a hub has for jobs.

use std::path::Path;
use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use durable_store::{Durability, Store};
use iothub_protocol::quota::tier::Sku;
use iothub_service::{RestFleet, ServiceClient, ServiceError};
use job_api::JobApi;
use job_engine::{JobEngine, Settings, audit};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::admin_client::AdminClient;
use crate::data_folder::{ADMIN_SOCKET, DataFolder};

/// In the data folder. An embedded hub's has this name, too: no folder is both's.
pub(crate) const JOURNAL: &str = "jobs.db";
/// Whom the audit trail names: whoever reaches the socket.
const OPERATOR: &str = "operator";
/// Which hub's jobs they are.
const HUB_ROUTE: &str = "/jobs";
/// Calls that are out at once, and so connections to the hub: as many as the largest tier could take up.
const CONNECTIONS: u64 = 1024;

/// An engine that runs.
pub(crate) struct RunningJobs {
    engine: JobEngine,
    store: Store,
    /// Host and port.
    hub: String,
    cancel: CancellationToken,
}

impl RunningJobs {
    /// Go on with the jobs in the folder. Nothing is asked of the hub before one of them begins. `descriptors` are those
    /// that the process has left.
    pub(crate) async fn start(
        data: &DataFolder,
        service: ServiceClient,
        tier: Option<Sku>,
        descriptors: u64,
    ) -> anyhow::Result<RunningJobs> {
        let hub = service.host().authority();
        data.keep_jobs_of(&hub)?;
        let path = data.path().join(JOURNAL);
        let open = move || Store::open(&path, job_engine::MIGRATIONS, Durability::Power);
        let store = tokio::task::spawn_blocking(open).await??;
        // Half of them: a connection that ends is not gone at once.
        let connections = (descriptors / 2).clamp(1, CONNECTIONS) as usize;
        let fleet = Arc::new(RestFleet::new(service, tier, connections));
        let cancel = CancellationToken::new();
        let settings = Settings { audit: audit::Key::in_folder(data.path(), rand::random())?, ..Settings::default() };
        let engine = JobEngine::start(fleet, store.clone(), settings, cancel.clone()).await?;
        Ok(RunningJobs { engine, store, hub, cancel })
    }

    pub(crate) fn engine(&self) -> JobEngine {
        self.engine.clone()
    }

    pub(crate) fn hub(&self) -> &str {
        &self.hub
    }

    /// For the socket, where whoever reaches it may ask.
    pub(crate) fn router(&self) -> Router {
        let api = JobApi::new(self.engine.clone(), |_| Ok(OPERATOR.to_owned()));
        let hub = json!({"hub": self.hub});
        Router::new()
            .route(HUB_ROUTE, get(async move || Json(hub)))
            .merge(job_api::router(api.clone()))
            .merge(job_api::rows_router(api))
    }

    /// Begin nothing new, wait a while for the answers that are out, and close the journal.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.engine.stopped().await;
        self.store.close().await;
    }
}

/// The hub, host and port, on which the latch behind the socket runs jobs; `None` if there is none, or it runs none so.
pub(crate) async fn hub_of_running(latch: &AdminClient) -> Option<String> {
    latch.get(HUB_ROUTE).await.ok()?["hub"].as_str().map(str::to_owned)
}

/// A client of the engine that runs on the data folder.
///
/// # Errors
/// If there can be no client.
pub(crate) fn client(data: &Path) -> Result<ServiceClient, ServiceError> {
    ServiceClient::over_socket(&data.join(ADMIN_SOCKET), &format!("latch run on {}", data.display()))
}
