//! `latch up` and `latch hub`.

use std::sync::Arc;

use anyhow::bail;
use iothub_protocol::quota::tier::Sku;

use crate::admin_server::AdminServer;
use crate::args::{HubArgs, UpArgs};
use crate::context::{Context, tls_for};
use crate::data_folder::DataFolder;
use crate::descriptors::{check_descriptors, connection_limits, descriptors};
use crate::fleet::{Fleet, Plugins};
use crate::hub::RunningHub;
use crate::listeners;
use crate::output::line;
use crate::reload::{self, Configuration, Connections};
use crate::settings::{Flags, HostSettings};
use crate::signals::{self, drain};
use crate::webhook::{self, Telling};

/// Each device has both ends of its connection in the process.
const DESCRIPTORS_OF_A_DEVICE: u64 = 2;

pub(super) async fn up(args: UpArgs, context: &Context) -> anyhow::Result<()> {
    let webhook = webhook::wanted(&args.webhook)?;
    let configuration = Configuration::read(&args.host)?;
    let flags = Flags { host: args.host, listen: args.listen, tier: args.tier.sku()? };
    let settings = HostSettings::new(&flags, &configuration.config);
    let count = args.devices.map_or(configuration.config.devices.len(), |devices| devices as usize);
    check_descriptors(count, DESCRIPTORS_OF_A_DEVICE)?;
    let room = connection_limits(args.room.max_connections, count, descriptors())?;
    check_tier(count, settings.tier)?;
    let data = Arc::new(DataFolder::open(&context.data)?);
    let plugins = Plugins::load(&settings, &data).await?;
    let listeners = listeners::bind(&settings.listen).await?;
    let mut hub = RunningHub::start(data.clone(), listeners, settings.tier, room).await?;
    let telling = webhook.map(|webhook| Telling::start(webhook, hub.hub.jobs.clone()));
    let connections = if args.devices.is_some() { Connections::Flag } else { Connections::Hub(hub.maker()) };
    let devices = match configuration.connect(&connections).await? {
        Some(devices) => devices,
        None => hub.ensure_doors(args.devices.unwrap_or_default()).await?,
    };
    let tls = tls_for(&data.path().join(embedded_hub::tls::CA_FILE))?;
    let fleet = Arc::new(Fleet::start(plugins, &settings, &data, devices, tls).await?);
    let router = admin::router(fleet.admin_state()).merge(hub.hub.operator_router());
    let admin = AdminServer::start(&data, router, settings.admin).await?;
    let plugin_count = fleet.catalog.as_ref().map_or(0, |catalog| catalog.current().plugins.len());
    let reload = configuration.follow(flags, connections, DESCRIPTORS_OF_A_DEVICE, fleet.clone())?;

    let stop = signals::stop()?;
    let result = tokio::select! {
        result = ready_then_wait(&fleet, &hub, plugin_count) => result,
        never = reload::run(reload) => match never {},
        () = stop => Ok(()),
    };
    admin.stop();
    drain(async {
        // Jobs first: a device that is going would fail the calls that a job still sends.
        hub.finish_work().await;
        if let Some(telling) = telling {
            telling.stop().await;
        }
        fleet.stop().await;
        hub.stop().await;
    })
    .await;
    result
}

async fn ready_then_wait(fleet: &Fleet, hub: &RunningHub, plugins: usize) -> anyhow::Result<()> {
    fleet.connected().await?;
    line(&format!("ready https={} mqtt={} devices={} plugins={plugins}", hub.https, hub.mqtt, fleet.len()))?;
    store_failure(hub).await
}

pub(super) async fn hub(args: HubArgs, context: &Context) -> anyhow::Result<()> {
    check_descriptors(args.devices as usize, 1)?;
    let room = connection_limits(args.room.max_connections, 0, descriptors())?;
    let tier = args.tier.sku()?;
    let webhook = webhook::wanted(&args.webhook)?;
    check_tier(args.devices as usize, tier)?;
    let data = Arc::new(DataFolder::open(&context.data)?);
    let mut hub = RunningHub::start(data.clone(), listeners::bind(&args.listen).await?, tier, room).await?;
    let telling = webhook.map(|webhook| Telling::start(webhook, hub.hub.jobs.clone()));
    let devices = hub.ensure_doors(args.devices).await?;
    let admin = AdminServer::start(&data, hub.hub.operator_router(), args.admin).await?;
    let stop = signals::stop()?;
    line(&format!("ready https={} mqtt={} devices={}", hub.https, hub.mqtt, devices.len()))?;
    let result = tokio::select! {
        result = store_failure(&hub) => result,
        () = stop => Ok(()),
    };
    admin.stop();
    drain(async {
        hub.finish_work().await;
        if let Some(telling) = telling {
            telling.stop().await;
        }
        hub.stop().await;
    })
    .await;
    result
}

/// Devices that a hub of that tier cannot have are refused before anything is made.
fn check_tier(devices: usize, tier: Option<Sku>) -> anyhow::Result<()> {
    match tier {
        Some(tier) if devices > tier.devices() => {
            bail!("a hub of the tier {} has at most {} devices, not {devices}", tier.tier(), tier.devices())
        }
        _ => Ok(()),
    }
}

/// Does not end while the hub can write.
async fn store_failure(hub: &RunningHub) -> anyhow::Result<()> {
    let error = hub.hub.handle.failed().await;
    Err(anyhow::Error::new(error).context("the hub has stopped, since it cannot write its store"))
}
