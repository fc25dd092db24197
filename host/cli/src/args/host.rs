//! `latch up`, `latch hub` and `latch run`, as they are typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use iothub_protocol::quota::tier::{Sku, SkuError, Tier};

use super::{HubCommand, WebhookArgs};

/// Where `--help` shows what bounds plugins.
const LIMITS: &str = "Limits of plugins";

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) tier: TierArgs,
    #[command(flatten)]
    pub(crate) room: RoomArgs,
    #[command(flatten)]
    pub(crate) webhook: WebhookArgs,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Make sure that door-0001 to door-N exist, and run them, instead of the configuration's devices
    #[arg(long, value_name = "N")]
    pub(crate) devices: Option<u32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct HubArgs {
    #[command(subcommand)]
    pub(crate) command: Option<HubCommand>,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) tier: TierArgs,
    #[command(flatten)]
    pub(crate) room: RoomArgs,
    #[command(flatten)]
    pub(crate) webhook: WebhookArgs,
    /// Make sure that door-0001 to door-N exist; their connection strings are written into the data folder
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) devices: u32,
    /// Also serve the admin API on this address; its token is in admin.token in the data folder
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// Device connection strings: a file with one a line, or a folder of .connstr files; instead of the configuration's
    #[arg(long, value_name = "PATH")]
    pub(crate) connections: Option<PathBuf>,
    /// Run jobs on the hub of --hub or LATCH_HUB, too: those that Azure's own engine cannot run
    #[arg(long)]
    pub(crate) jobs: bool,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
    #[command(flatten)]
    pub(crate) webhook: WebhookArgs,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// What the hub takes on which jobs are run.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct QuotaArgs {
    /// Keep jobs to what a hub of this tier takes: F1, S1, S2 or S3 [default: to what the hub does not refuse]
    #[arg(long, value_name = "TIER", value_parser = tier, requires = "jobs")]
    pub(crate) tier: Option<Tier>,
    /// Units of the tier, which multiply most of its limits [default: 1]
    #[arg(long, value_name = "N", requires = "tier")]
    pub(crate) units: Option<u32>,
}

impl QuotaArgs {
    /// # Errors
    /// If the tier does not come in that many units.
    pub(crate) fn sku(&self) -> Result<Option<Sku>, SkuError> {
        sku(self.tier, self.units)
    }
}

#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct ListenArgs {
    /// Where REST listens [default: 127.0.0.1:443, or port 8443 where 443 cannot be had]
    #[arg(long, value_name = "ADDR")]
    pub(crate) https: Option<SocketAddr>,
    /// Where MQTT listens [default: 127.0.0.1:8883]
    #[arg(long, value_name = "ADDR")]
    pub(crate) mqtt: Option<SocketAddr>,
}

#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct RoomArgs {
    /// Connections that the hub takes at once, of devices and back ends [default: as many as the limit of open files allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: Option<u32>,
}

#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct TierArgs {
    /// Let the hub have the quotas and throttles of an Azure tier: F1, S1, S2 or S3 [default: none]
    #[arg(long, value_name = "TIER", value_parser = tier)]
    pub(crate) tier: Option<Tier>,
    /// Units of the tier, which multiply most of its limits [default: 1]
    #[arg(long, value_name = "N", requires = "tier")]
    pub(crate) units: Option<u32>,
}

impl TierArgs {
    /// # Errors
    /// If the tier does not come in that many units.
    pub(crate) fn sku(&self) -> Result<Option<Sku>, SkuError> {
        sku(self.tier, self.units)
    }
}

fn sku(tier: Option<Tier>, units: Option<u32>) -> Result<Option<Sku>, SkuError> {
    tier.map(|tier| Sku::new(tier, units.unwrap_or(1))).transpose()
}

fn tier(text: &str) -> Result<Tier, String> {
    Tier::by_name(text).ok_or_else(|| "the tiers are F1, S1, S2 and S3".to_owned())
}

#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct HostArgs {
    /// The fleet's configuration [default: latch.toml beside the plugin folder, if it is there]
    ///
    /// Devices, where each plugin runs, its settings and grants, and limits. A change is taken up without a restart.
    /// `latch config check` tells what is wrong with it; flags win over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of components; each .wasm directly in it runs on every device, unless the configuration says otherwise, and
    /// is swapped when the file is replaced, once it passes the scenarios in NAME.tests beside it, if there are any
    #[arg(long, value_name = "DIR")]
    pub(crate) plugins: Option<PathBuf>,
    /// Also serve the admin API on this address; its token is in admin.token in the data folder
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// Folder with ID.pem and ID.key of each device whose connection string says x509=true: its certificate, followed by
    /// those that lead to an authority of the hub, and its private key
    #[arg(long, value_name = "DIR")]
    pub(crate) certificates: Option<PathBuf>,
    /// Seconds that a plugin may take for one call [default: 5]
    #[arg(long, help_heading = LIMITS, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=300))]
    pub(crate) call_limit: Option<u32>,
    /// MiB of memory that one plugin instance may have [default: 64]
    #[arg(long, help_heading = LIMITS, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) memory_limit: Option<u32>,
    /// Milliseconds after which an instance without work is dropped [default: 1000]
    #[arg(long, help_heading = LIMITS, value_name = "MS")]
    pub(crate) idle: Option<u32>,
    /// Instances kept at once, over all devices [default: what memory and vm.max_map_count allow]
    #[arg(long, help_heading = LIMITS, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(plugin_runtime::MAX_RESIDENT)))]
    pub(crate) max_instances: Option<u32>,
}
