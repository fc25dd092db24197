//! The embedded hub as `up`, `hub` and `demo` run it, with the files that lead others to it.

use std::sync::Arc;

use anyhow::Context as _;
use embedded_hub::events::{EventKind, EventLog, HubEvent};
use embedded_hub::rehearsal::RehearsalSettings;
use embedded_hub::{ConnectionLimits, EmbeddedHub, HubHandle, HubSettings};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use iothub_protocol::connection_string::{DeviceConnectionString, HostName, ServiceConnectionString};
use iothub_protocol::id::DeviceId;
use iothub_protocol::quota::tier::Sku;
use tokio::task::JoinHandle;

use crate::data_folder::DataFolder;
use crate::listeners::Listeners;

/// The policy whose key `service.connstr` holds.
const OWNER: &str = "iothubowner";
/// Most devices whose connection strings are kept as files: beyond that a folder of them serves nobody, and a start would
/// take as long as writing them does. Devices of `--devices` and of the configuration have theirs in any case.
const MAX_FILES: usize = 10_000;
/// Devices made at once: each waits for the disk, together they share its commits.
const CREATES: usize = 64;

/// A hub that listens.
pub(crate) struct RunningHub {
    pub(crate) hub: EmbeddedHub,
    pub(crate) https: std::net::SocketAddr,
    pub(crate) mqtt: std::net::SocketAddr,
    pub(crate) service: ServiceConnectionString,
    mqtt_host: HostName,
    data: Arc<DataFolder>,
    files: JoinHandle<()>,
}

impl RunningHub {
    /// Start the hub on `listeners`, within the limits of `tier` if there is one and with so many connections, and write its
    /// files into the folder.
    pub(crate) async fn start(
        data: Arc<DataFolder>,
        listeners: Listeners,
        tier: Option<Sku>,
        connections: ConnectionLimits,
    ) -> anyhow::Result<RunningHub> {
        data.keep_own_jobs()?;
        let (https, mqtt) = (listeners.https.local_addr()?, listeners.mqtt.local_addr()?);
        let settings = HubSettings {
            data: data.path().to_owned(),
            mqtt: listeners.mqtt,
            https: listeners.https,
            machine_name: machine_name(),
            jobs: Default::default(),
            rehearsal: RehearsalSettings { tier, ..RehearsalSettings::default() },
            connections,
        };
        let hub = EmbeddedHub::start(settings).await.context("the hub cannot start")?;
        let key = hub.policy_key(OWNER).context("the hub has lost its policies")?;
        let service = ServiceConnectionString { host: listeners.https_host, policy: OWNER.to_owned(), key };
        data.write_service(&service)?;
        let keeper = FileKeeper { data: data.clone(), hub: hub.handle.clone(), host: listeners.mqtt_host.clone() };
        let next = hub.handle.events().next();
        keeper.write_all().await?;
        let files = tokio::spawn(keeper.follow(hub.handle.events().clone(), next));
        Ok(RunningHub { hub, https, mqtt, service, mqtt_host: listeners.mqtt_host, data, files })
    }

    /// Make sure that `door-0001` to `door-N` exist. Those that do keep keys, twin and state.
    pub(crate) async fn ensure_doors(&self, count: u32) -> anyhow::Result<Vec<DeviceConnectionString>> {
        self.maker().ensure(doors(count)?).await
    }

    /// For whoever makes devices later.
    pub(crate) fn maker(&self) -> DeviceMaker {
        DeviceMaker { hub: self.hub.handle.clone(), host: self.mqtt_host.clone(), data: self.data.clone() }
    }

    /// Take no more work, from back ends or jobs.
    pub(crate) async fn finish_work(&mut self) {
        self.hub.finish_work().await;
    }

    pub(crate) async fn stop(self) {
        self.files.abort();
        self.hub.stop().await;
    }
}

/// Makes devices on a hub.
#[derive(Clone)]
pub(crate) struct DeviceMaker {
    hub: HubHandle,
    host: HostName,
    data: Arc<DataFolder>,
}

impl DeviceMaker {
    /// Make sure that these devices exist. Those that do keep keys, twin and state.
    pub(crate) async fn ensure(&self, devices: Vec<DeviceId>) -> anyhow::Result<Vec<DeviceConnectionString>> {
        stream::iter(devices)
            .map(|device_id| async move {
                let credentials = self.hub.ensure_device(&device_id).await?;
                let connection = DeviceConnectionString { host: self.host.clone(), device_id, credentials };
                self.data.write_device(&connection)?;
                anyhow::Ok(connection)
            })
            .buffered(CREATES)
            .try_collect()
            .await
    }
}

/// `door-0001` to `door-N`.
pub(crate) fn doors(count: u32) -> anyhow::Result<Vec<DeviceId>> {
    (1..=count).map(|number| Ok(DeviceId::parse(&format!("door-{number:04}"))?)).collect()
}

/// Keeps `devices/*.connstr` as the registry is.
struct FileKeeper {
    data: Arc<DataFolder>,
    hub: HubHandle,
    host: HostName,
}

impl FileKeeper {
    /// Whether so many devices have files.
    fn has_files(count: usize) -> bool {
        count <= MAX_FILES
    }

    async fn count(&self) -> anyhow::Result<usize> {
        Ok(self.hub.counts().await?.total)
    }

    async fn write_all(&self) -> anyhow::Result<()> {
        if !FileKeeper::has_files(self.count().await?) {
            tracing::info!("there are more than {MAX_FILES} devices: their connection strings are not kept as files");
            return Ok(());
        }
        for id in self.hub.device_ids().await? {
            self.write(&id).await?;
        }
        Ok(())
    }

    async fn write(&self, device_id: &DeviceId) -> anyhow::Result<()> {
        // It may have been deleted since.
        let Some(credentials) = self.hub.device_credentials(device_id).await? else { return Ok(()) };
        let (host, device_id) = (self.host.clone(), device_id.clone());
        self.data.write_device(&DeviceConnectionString { host, device_id, credentials })
    }

    async fn follow(self, events: EventLog, mut next: u64) {
        while events.wait(next).await {
            let page = events.page(next, 1000);
            next = page.next;
            let mut result = Ok(());
            if page.missed > 0 {
                result = self.write_all().await;
            }
            let is_creation = |event: &HubEvent| matches!(event.kind, EventKind::Created { .. });
            let has_files = if page.events.iter().any(|(_, event)| is_creation(event)) {
                let count = self.count().await;
                let has_files = count.as_ref().is_ok_and(|count| FileKeeper::has_files(*count));
                result = result.and(count.map(drop));
                has_files
            } else {
                false
            };
            // Whoever makes a module gets its connection string with `latch module create --save`.
            for (_, event) in page.events.iter().filter(|(_, event)| !event.address.is_module()) {
                let device = event.address.device();
                let done = match event.kind {
                    EventKind::Created { .. } if has_files => self.write(device).await,
                    EventKind::Deleted { .. } => self.data.remove_device(device),
                    _ => Ok(()),
                };
                result = result.and(done);
            }
            if let Err(error) = result {
                tracing::warn!(error = format!("{error:#}"), "the devices' connection strings are not up to date");
            }
        }
    }
}

/// For the certificate; a machine without a readable name does without.
fn machine_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!name.is_empty() && name != "localhost" && name.chars().all(fits)).then(|| name.to_owned())
}
