//! Everything of the hub put together.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use durable_store::{Durability, Store, StoreError};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::sas::SharedKey;
use job_engine::{JobEngine, Settings as JobSettings};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::driver::{self, HubHandle};
use crate::fleet::HubFleet;
use crate::hub::{Answer, Hub, Operation};
use crate::policy::{Policy, random_key};
use crate::rest::{self, RestState};
use crate::scan::Reads;
use crate::tls::{self, TlsError};
use crate::{mqtt, store};

/// What a hub is made of.
pub struct HubSettings {
    /// For `hub.db`, `jobs.db`, `ca.pem` and `ca.key`. Must exist and belong to this process alone.
    pub data: PathBuf,
    pub mqtt: TcpListener,
    pub https: TcpListener,
    /// This machine's name, to be named in the certificate.
    pub machine_name: Option<String>,
    pub jobs: JobSettings,
}

/// Why there is no hub.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A task and what stops it.
struct Part {
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Part {
    async fn stop(self) {
        self.cancel.cancel();
        // One that panicked has nothing left to wait for.
        drop(self.task.await);
    }
}

/// A running hub.
pub struct EmbeddedHub {
    pub handle: HubHandle,
    pub jobs: JobEngine,
    policies: Arc<[Policy]>,
    stores: [Store; 2],
    /// `None` once no more work is taken.
    https: Option<Part>,
    mqtt: Part,
    jobs_cancel: CancellationToken,
    hub: Part,
}

impl EmbeddedHub {
    /// Open the stores, make the certificates, and listen.
    pub async fn start(settings: HubSettings) -> Result<EmbeddedHub, StartError> {
        let tls = tls::server_config(&settings.data, settings.machine_name.as_deref())?;
        let hub_path = settings.data.join(store::FILE);
        let hub_store = blocking(move || store::open(&hub_path)).await?;
        let policies: Arc<[Policy]> = hub_store.write(store::load_policies).await?.into();
        let queued = hub_store.read(store::queued_bytes).await?;
        let indexes = hub_store.read(store::load_indexes).await?;
        let feedback = hub_store.read(store::load_feedback).await?;

        let hub_cancel = CancellationToken::new();
        let hub = Hub::new(policies.to_vec(), vec![], feedback).with_queued_bytes(queued);
        let reads = Reads::new(hub_store.clone(), hub.presence(), indexes);
        let (handle, driver) = driver::spawn(hub, reads, hub_cancel.clone());

        let jobs_path = settings.data.join("jobs.db");
        let jobs_store = blocking(move || Store::open(&jobs_path, job_engine::MIGRATIONS, Durability::Power)).await?;
        let fleet = Arc::new(HubFleet::new(handle.clone()));
        let jobs_cancel = CancellationToken::new();
        let jobs = JobEngine::start(fleet, jobs_store.clone(), settings.jobs, jobs_cancel.clone()).await?;

        let state = RestState { hub: handle.clone(), jobs: jobs.clone(), policies: policies.clone() };
        let (mqtt_cancel, https_cancel) = (CancellationToken::new(), CancellationToken::new());
        let mqtt = mqtt::serve(settings.mqtt, tls.clone(), handle.clone(), mqtt_cancel.clone());
        let https = rest::serve(settings.https, tls, rest::router(state), https_cancel.clone());
        Ok(EmbeddedHub {
            handle,
            jobs,
            policies,
            stores: [hub_store, jobs_store],
            https: Some(Part { cancel: https_cancel, task: tokio::spawn(https) }),
            mqtt: Part { cancel: mqtt_cancel, task: tokio::spawn(mqtt) },
            jobs_cancel,
            hub: Part { cancel: hub_cancel, task: driver },
        })
    }

    /// A policy's primary key, for `service.connstr`.
    pub fn policy_key(&self, name: &str) -> Option<SharedKey> {
        self.policies.iter().find(|policy| policy.name == name).map(|policy| policy.primary_key.clone())
    }

    /// What the operator's socket serves of the hub: events, sending cloud-to-device messages, and feedback on them.
    pub fn operator_router(&self) -> Router {
        rest::operator::router(self.handle.clone())
    }

    /// Take no more work: back ends are answered what they have asked and heard no more, and jobs pause where they are
    /// (calls that are out still get their answers). Devices stay connected, so that those in this process can finish.
    pub async fn finish_work(&mut self) {
        if let Some(https) = self.https.take() {
            https.stop().await;
        }
        self.jobs_cancel.cancel();
        self.jobs.stopped().await;
    }

    /// Stop from the outside in, so that each part can finish what it has in hand: work, then the devices, then the hub.
    pub async fn stop(mut self) {
        self.finish_work().await;
        self.mqtt.stop().await;
        self.hub.stop().await;
        for store in self.stores {
            store.close().await;
        }
    }
}

impl HubHandle {
    /// Make sure that a device exists; its primary key either way.
    pub async fn ensure_device(&self, id: &DeviceId) -> Result<SharedKey, HubError> {
        let (request, keys) = (IdentityRequest::default(), [random_key(), random_key()]);
        let created = Operation::PutDevice { id: id.clone(), request, if_match: None, keys };
        match self.request(created).await {
            Ok(_) => {}
            Err(error) if error.code == ErrorCode::DeviceAlreadyExists => {}
            Err(error) => return Err(error),
        }
        let gone = || HubError::new(ErrorCode::DeviceNotFound, format!("{id} was deleted meanwhile"));
        self.device_key(id).await?.ok_or_else(gone)
    }

    /// A device's primary key; `None` if there is no such device.
    pub async fn device_key(&self, id: &DeviceId) -> Result<Option<SharedKey>, HubError> {
        let identity = match self.request(Operation::GetDevice(id.clone())).await {
            Ok(Answer::Document(identity)) => identity,
            Ok(_) => return Ok(None),
            Err(error) if error.code == ErrorCode::DeviceNotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let key = identity["authentication"]["symmetricKey"]["primaryKey"].as_str().unwrap_or_default();
        Ok(Some(SharedKey::parse(key).expect("the registry keeps keys that were parsed")))
    }

    /// All devices, in order of their ids.
    pub async fn device_ids(&self) -> Result<Vec<DeviceId>, HubError> {
        let mut ids: Vec<DeviceId> = Vec::new();
        loop {
            let devices = self.list_devices(ids.last().cloned(), 1000).await?;
            if devices.is_empty() {
                return Ok(ids);
            }
            ids.extend(devices.into_iter().map(|(id, _)| id));
        }
    }
}

async fn blocking<T: Send + 'static>(
    open: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(open).await.expect("opening a store does not panic")
}
