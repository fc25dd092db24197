//! Everything of the hub put together.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use durable_store::{Durability, Store, StoreError};
use iothub_protocol::connection_string::DeviceCredentials;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::sas::SharedKey;
use job_engine::{JobEngine, Settings as JobSettings, audit};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::accept::Peers;
use crate::authorities::Authorities;
use crate::configurations::{Configurations, apply};
use crate::driver::{self, HubHandle};
use crate::fleet::HubFleet;
use crate::hub::{Answer, Hub, Operation};
use crate::mqtt::Door;
use crate::places::{ConnectionLimits, Places};
use crate::policy::{Policy, random_key};
use crate::rehearsal::{INTRUDERS_POLICY, Rehearsal, RehearsalSettings};
use crate::rest::{self, RestState, Streams};
use crate::scan::Reads;
use crate::store;
use crate::tls::{self, TlsError};

/// What a hub is made of.
pub struct HubSettings {
    /// For `hub.db`, `jobs.db`, `ca.pem`, `ca.key` and `audit.key`. Must exist and belong to this process alone.
    pub data: PathBuf,
    pub mqtt: TcpListener,
    pub https: TcpListener,
    /// This machine's name, to be named in the certificate.
    pub machine_name: Option<String>,
    pub jobs: JobSettings,
    /// Limits of a tier; without one there are none.
    pub rehearsal: RehearsalSettings,
    pub connections: ConnectionLimits,
}

/// Why there is no hub.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Audit(#[from] audit::KeyError),
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
    authorities: Authorities,
    stores: [Store; 2],
    /// `None` once no more work is taken.
    https: Option<Part>,
    mqtt: Part,
    /// Of jobs and configurations, which are work on devices.
    jobs_cancel: CancellationToken,
    rehearsal: Part,
    applying: Option<JoinHandle<()>>,
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
        let intruder = policies.iter().find(|policy| policy.name == INTRUDERS_POLICY).cloned();
        let rehearsal = Rehearsal::new(settings.rehearsal, &settings.data, intruder).await;
        let handle = handle.rehearsing(rehearsal.clone());
        let rehearsal_cancel = CancellationToken::new();
        let keeper = tokio::spawn(rehearsal.clone().keep(rehearsal_cancel.clone()));

        let jobs_path = settings.data.join("jobs.db");
        let jobs_store = blocking(move || Store::open(&jobs_path, job_engine::MIGRATIONS, Durability::Power)).await?;
        let fleet = Arc::new(HubFleet::new(handle.clone()));
        let jobs_cancel = CancellationToken::new();
        let mut jobs_settings = settings.jobs;
        jobs_settings.audit = audit::Key::in_folder(&settings.data, rand::random())?;
        if let Some(sku) = rehearsal.sku() {
            jobs_settings.limits.concurrent_jobs = sku.concurrent_jobs();
        }
        let jobs = JobEngine::start(fleet, jobs_store.clone(), jobs_settings, jobs_cancel.clone()).await?;

        let configurations = Configurations::load(hub_store.clone()).await?;
        let applying = apply::run(configurations.clone(), handle.clone(), jobs_cancel.clone());
        let applying = tokio::spawn(applying);

        let authorities = Authorities::load(hub_store.clone()).await?;
        let peers = Peers(authorities.clone());
        let (mqtt_cancel, https_cancel) = (CancellationToken::new(), CancellationToken::new());
        let door = Door::new(handle.clone(), mqtt_cancel.clone());
        let places = Places::new(settings.connections);
        let mqtt = door.clone().serve(settings.mqtt, tls.clone(), peers.clone(), places.clone());
        let streams = Streams::new(https_cancel.clone());
        let state = RestState {
            hub: handle.clone(),
            jobs: jobs.clone(),
            policies: policies.clone(),
            door,
            streams,
            configurations,
        };
        let https = rest::serve(settings.https, tls, rest::router(state), peers, places.beside(), https_cancel.clone());
        Ok(EmbeddedHub {
            handle,
            jobs,
            policies,
            authorities,
            stores: [hub_store, jobs_store],
            https: Some(Part { cancel: https_cancel, task: tokio::spawn(https) }),
            mqtt: Part { cancel: mqtt_cancel, task: tokio::spawn(mqtt) },
            jobs_cancel,
            rehearsal: Part { cancel: rehearsal_cancel, task: keeper },
            applying: Some(applying),
            hub: Part { cancel: hub_cancel, task: driver },
        })
    }

    /// A policy's primary key, for `service.connstr`.
    pub fn policy_key(&self, name: &str) -> Option<SharedKey> {
        self.policies.iter().find(|policy| policy.name == name).map(|policy| policy.primary_key.clone())
    }

    /// What the operator's socket serves of the hub: events, sending cloud-to-device messages and feedback on them,
    /// tokens of policies, and the authorities that sign devices' certificates.
    pub fn operator_router(&self) -> Router {
        rest::operator::router(self.handle.clone(), self.policies.clone())
            .merge(rest::certificates::router(self.authorities.clone()))
    }

    /// Take no more work: back ends are answered what they have asked and heard no more, and jobs pause where they are
    /// (calls that are out still get their answers). Devices stay connected, so that those in this process can finish.
    pub async fn finish_work(&mut self) {
        if let Some(https) = self.https.take() {
            https.stop().await;
        }
        self.jobs_cancel.cancel();
        self.jobs.stopped().await;
        if let Some(applying) = self.applying.take() {
            // One that panicked has nothing left to wait for.
            drop(applying.await);
        }
    }

    /// Stop from the outside in, so that each part can finish what it has in hand: work, then the devices, then the hub.
    pub async fn stop(mut self) {
        self.finish_work().await;
        self.mqtt.stop().await;
        self.rehearsal.stop().await;
        self.hub.stop().await;
        for store in self.stores {
            store.close().await;
        }
    }
}

impl HubHandle {
    /// Make sure that a device exists; what it connects with either way.
    pub async fn ensure_device(&self, id: &DeviceId) -> Result<DeviceCredentials, HubError> {
        let (request, keys) = (IdentityRequest::default(), [random_key(), random_key()]);
        let created = Operation::PutIdentity { id: id.into(), request, if_match: None, keys };
        match self.request(created).await {
            Ok(_) => {}
            Err(error) if error.code == ErrorCode::DeviceAlreadyExists => {}
            Err(error) => return Err(error),
        }
        let gone = || HubError::new(ErrorCode::DeviceNotFound, format!("{id} was deleted meanwhile"));
        self.device_credentials(id).await?.ok_or_else(gone)
    }

    /// What a device connects with: its primary key, where it has one. `None` if there is no such device.
    pub async fn device_credentials(&self, id: &DeviceId) -> Result<Option<DeviceCredentials>, HubError> {
        let identity = match self.request(Operation::GetIdentity(id.into())).await {
            Ok(Answer::Document(identity)) => identity,
            Ok(_) => return Ok(None),
            Err(error) if error.code == ErrorCode::DeviceNotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let credentials = match identity["authentication"]["symmetricKey"]["primaryKey"].as_str() {
            Some(key) => {
                DeviceCredentials::Key(SharedKey::parse(key).expect("the registry keeps keys that were parsed"))
            }
            None => DeviceCredentials::X509,
        };
        Ok(Some(credentials))
    }

    /// All devices, in order of their ids.
    pub async fn device_ids(&self) -> Result<Vec<DeviceId>, HubError> {
        let mut ids: Vec<DeviceId> = Vec::new();
        loop {
            let devices = self.list_devices(ids.last().cloned(), 1000).await?;
            if devices.is_empty() {
                return Ok(ids);
            }
            ids.extend(devices.into_iter().map(|(id, _)| id.device().clone()));
        }
    }
}

async fn blocking<T: Send + 'static>(
    open: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(open).await.expect("opening a store does not panic")
}
