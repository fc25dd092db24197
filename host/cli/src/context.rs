//! What a command line means together with the environment. The only module that reads the environment.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use iothub_device::tls::{Roots, client_config};
use iothub_protocol::connection_string::ServiceConnectionString;
use iothub_protocol::id::DeviceId;
use iothub_service::ServiceClient;
use rustls::ClientConfig;
use tracing_subscriber::EnvFilter;

use crate::admin_client::AdminClient;
use crate::args::GlobalArgs;
use crate::data_folder;
use crate::exit::Unreachable;
use crate::plugin_build::HostEnv;

/// How often, and with what pause, to look for the file of a new device.
const DEVICE_FILE_LOOKS: u32 = 50;
const DEVICE_FILE_PAUSE: Duration = Duration::from_millis(20);

/// Settings that every command shares.
pub(crate) struct Context {
    pub(crate) json: bool,
    pub(crate) data: PathBuf,
    hub_file: Option<PathBuf>,
    hub_string: Option<String>,
    ca_file: Option<PathBuf>,
    verbose: u8,
    log: Option<String>,
}

impl Context {
    pub(crate) fn new(args: &GlobalArgs) -> Context {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        Context {
            json: args.json,
            data: args.data.clone(),
            hub_file: args.hub.clone(),
            hub_string: variable("LATCH_HUB").or_else(|| variable("IOTHUB_CONNECTION_STRING")),
            ca_file: args.ca.clone().or_else(|| variable("LATCH_CA").map(PathBuf::from)),
            verbose: args.verbose,
            log: variable("LATCH_LOG"),
        }
    }

    /// Log to stderr: warnings, unless more is asked for.
    pub(crate) fn start_logging(&self) {
        let default = match self.verbose {
            0 => "warn",
            1 => "info",
            _ => "debug,hyper=info,h2=info,rustls=info,wasmtime=info,cranelift=info",
        };
        let (filter, complaint) = match self.log.as_deref().map(EnvFilter::try_new) {
            None => (EnvFilter::new(default), None),
            Some(Ok(filter)) => (filter, None),
            Some(Err(error)) => (EnvFilter::new(default), Some(error)),
        };
        let colour = std::io::stderr().is_terminal();
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
        if let Some(error) = complaint {
            tracing::warn!(%error, "LATCH_LOG is not understood and is ignored");
        }
    }

    /// A variable that a configuration names.
    pub(crate) fn variable(name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    /// The environment that builds of guests get.
    pub(crate) fn host_env(&self) -> HostEnv {
        HostEnv::new(std::env::vars_os())
    }

    /// A client of the hub: of the one named by `--hub`, else by the environment, else of the data folder's.
    pub(crate) fn service(&self) -> anyhow::Result<ServiceClient> {
        let connection = self.connection_string()?;
        Ok(ServiceClient::new(connection, self.tls()?)?)
    }

    /// The connection string that `--hub` or the environment gives; `None` if neither does.
    pub(crate) fn named_connection(&self) -> anyhow::Result<Option<ServiceConnectionString>> {
        let is_named = self.hub_file.is_some() || self.hub_string.is_some();
        is_named.then(|| self.connection_string()).transpose()
    }

    fn connection_string(&self) -> anyhow::Result<ServiceConnectionString> {
        let (text, from) = match (&self.hub_file, &self.hub_string) {
            (Some(file), _) => (read(file)?, file.display().to_string()),
            (None, Some(text)) => (text.clone(), "LATCH_HUB or IOTHUB_CONNECTION_STRING".to_owned()),
            (None, None) => {
                let file = self.data.join(data_folder::SERVICE_FILE);
                if !file.exists() {
                    let text = format!(
                        "no hub: {} does not exist\nhint: start one with `latch up`, name its data folder with --data, or \
                         give a connection string by --hub FILE or LATCH_HUB",
                        file.display()
                    );
                    bail!(Unreachable(text));
                }
                (read(&file)?, file.display().to_string())
            }
        };
        ServiceConnectionString::parse(text.trim())
            .with_context(|| format!("{from} holds no service connection string"))
    }

    /// TLS for clients: trust `--ca` or LATCH_CA alone, else the data folder's authority, else the system's.
    pub(crate) fn tls(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let own = self.data.join(embedded_hub::tls::CA_FILE);
        let file = match &self.ca_file {
            Some(file) => Some(file.clone()),
            // A hub named otherwise is another hub, for which this authority does not speak.
            None if self.hub_file.is_none() && self.hub_string.is_none() && own.exists() => Some(own),
            None => None,
        };
        match file {
            Some(file) => tls_for(&file),
            None => Ok(client_config(Roots::System)?),
        }
    }

    /// Where the hub of the data folder has put a device's connection string, right after the device was made.
    pub(crate) async fn device_file(&self, id: &DeviceId) -> Option<PathBuf> {
        if self.hub_file.is_some() || self.hub_string.is_some() {
            return None;
        }
        let file = data_folder::device_path(&self.data, id);
        // The hub writes it a moment after it has answered.
        for _ in 0..DEVICE_FILE_LOOKS {
            if file.exists() {
                return Some(file);
            }
            tokio::time::sleep(DEVICE_FILE_PAUSE).await;
        }
        None
    }

    /// A client of the latch that runs on the data folder.
    pub(crate) fn admin(&self) -> AdminClient {
        AdminClient::new(self.data.join(data_folder::ADMIN_SOCKET))
    }
}

/// TLS that trusts the authority in `file` alone.
pub(crate) fn tls_for(file: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let pem = fs::read(file).with_context(|| format!("cannot read the certificate authority {}", file.display()))?;
    client_config(Roots::Pem(&pem)).with_context(|| format!("{} cannot be used", file.display()))
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
