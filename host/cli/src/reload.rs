//! The configuration of a host: read at its start, and followed while it runs.
//!
//! A file that is changed counts once it has been quiet for [`QUIET`]. If anything in it is wrong, everything stays as it
//! is. Else the difference is put in force: plans of plugins, limits of devices, devices that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use iothub_protocol::connection_string::DeviceConnectionString;
use iothub_protocol::id::DeviceId;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use plugin_runtime::{PlanError, PluginPlans};
use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::args::HostArgs;
use crate::config::{ConfigFile, FleetConfig, Mistake, Reading, Stamp};
use crate::context::Context;
use crate::descriptors::check_descriptors;
use crate::fleet::{DeviceChanges, Fleet};
use crate::hub::DeviceMaker;
use crate::output::say;
use crate::settings::{Flags, HostSettings};
use crate::signals;

/// The configuration at the start.
pub(crate) struct Configuration {
    pub(crate) config: FleetConfig,
    source: Option<Source>,
}

/// A file, and how it and all that it names were when it was read.
struct Source {
    file: ConfigFile,
    stamps: Stamps,
}

type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Where devices get their connection strings.
pub(crate) enum Connections {
    /// From a flag, for good.
    Flag,
    /// From the embedded hub, which makes the devices.
    Hub(DeviceMaker),
    /// From the configuration.
    File,
}

/// Follows the configuration of a running host.
pub(crate) struct Reload {
    flags: Flags,
    source: Source,
    connections: Connections,
    /// File descriptors that a device takes.
    descriptors: u64,
    fleet: Arc<Fleet>,
    /// Settings at the start: what cannot change until the next one is compared with these.
    started: HostSettings,
    plans: PluginPlans,
    /// Where there was a file at the start. Without one a terminal that closes ends the process, as is usual.
    hangup: Option<Signal>,
}

impl Configuration {
    /// Find and read it; without a file, it is empty.
    ///
    /// # Errors
    /// Every mistake in it.
    pub(crate) fn read(args: &HostArgs) -> anyhow::Result<Configuration> {
        let Some(file) = ConfigFile::find(args.config.as_deref(), args.plugins.as_deref()) else {
            return Ok(Configuration { config: FleetConfig::default(), source: None });
        };
        let (Reading { config, .. }, stamps) = read_whole(&file, BTreeSet::new());
        let config = match config {
            Ok(config) => {
                if file.is_optional() {
                    say(&format!("the configuration is {}", file.path.display()));
                }
                config
            }
            Err(error) if error.is_absence() && file.is_optional() => FleetConfig::default(),
            Err(error) => return Err(error.into()),
        };
        Ok(Configuration { config, source: Some(Source { file, stamps }) })
    }

    /// The devices to run, unless a flag names them.
    ///
    /// # Errors
    /// If one has no connection string, or the hub cannot make it.
    pub(crate) async fn connect(
        &self,
        connections: &Connections,
    ) -> anyhow::Result<Option<Vec<DeviceConnectionString>>> {
        let file = self.source.as_ref().map_or(Path::new(""), |source| &source.file.path);
        connections.of(&self.config, file).await
    }

    /// Follow it, if there can be a file. What is odd in it is told.
    pub(crate) fn follow(
        self,
        flags: Flags,
        connections: Connections,
        descriptors: u64,
        fleet: Arc<Fleet>,
    ) -> anyhow::Result<Option<Reload>> {
        let Configuration { config, source } = self;
        let Some(source) = source else { return Ok(None) };
        let started = HostSettings::new(&flags, &config);
        let is_there = source.stamps.get(&source.file.path).is_some_and(Option::is_some);
        let hangup = is_there.then(signals::hangup).transpose()?;
        let plans = started.plans.clone();
        let reload = Reload { flags, source, connections, descriptors, fleet, started, plans, hangup };
        reload.remark(&config);
        Ok(Some(reload))
    }
}

impl Connections {
    async fn of(&self, config: &FleetConfig, file: &Path) -> anyhow::Result<Option<Vec<DeviceConnectionString>>> {
        match self {
            Connections::Flag => Ok(None),
            Connections::Hub(hub) => {
                let devices: Vec<DeviceId> = config.devices.keys().cloned().collect();
                Ok(Some(hub.ensure(devices).await.context("the devices of the configuration cannot be made")?))
            }
            Connections::File => Ok(Some(own_connections(config, file)?)),
        }
    }
}

fn own_connections(config: &FleetConfig, file: &Path) -> anyhow::Result<Vec<DeviceConnectionString>> {
    let without: Vec<&str> =
        config.devices.iter().filter(|(_, connection)| connection.is_none()).map(|(id, _)| id.as_str()).collect();
    if let Some(position) = config.devices_at.filter(|_| !without.is_empty()) {
        let shown = without.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let text = format!(
            "devices: {} of {} have no connection string ({shown}{}), and this host has no hub of its own; name files or \
             variables with them by file, folder or env",
            without.len(),
            config.devices.len(),
            if without.len() > NAMED { ", …" } else { "" }
        );
        bail!("{}", Mistake { position, text }.told(file));
    }
    Ok(config.devices.values().flatten().cloned().collect())
}

/// Follow a configuration, if there is one, until the future is dropped.
pub(crate) async fn run(reload: Option<Reload>) -> Infallible {
    match reload {
        Some(reload) => reload.run().await,
        None => std::future::pending().await,
    }
}

impl Reload {
    async fn run(mut self) -> Infallible {
        let changed = Arc::new(Notify::new());
        // Held for its effect: notifications end when it is dropped.
        let mut _watcher = watch(&self.source.stamps, changed.clone());
        loop {
            let asked = tokio::select! {
                () = changed.notified() => false,
                () = sleep(POLL) => false,
                () = hung_up(&mut self.hangup) => true,
            };
            if !asked && self.stamps().await == self.source.stamps {
                sleep(PAUSE).await;
                continue;
            }
            self.wait_until_quiet().await;
            self.reload().await;
            _watcher = watch(&self.source.stamps, changed.clone());
        }
    }

    async fn wait_until_quiet(&self) {
        let mut before = self.stamps().await;
        loop {
            sleep(QUIET).await;
            let now = self.stamps().await;
            if now == before {
                return;
            }
            before = now;
        }
    }

    async fn stamps(&self) -> Stamps {
        let files: BTreeSet<_> = self.source.stamps.keys().cloned().collect();
        blocking(move || stamps(&files)).await
    }

    async fn reload(&mut self) {
        let (file, known) = (self.source.file.clone(), self.source.stamps.keys().cloned().collect());
        let (reading, stamps) = blocking(move || read_whole(&file, known)).await;
        self.source.stamps = stamps;
        let result = match reading.config {
            Ok(config) => {
                // What is not named any more does not matter any more.
                self.source.stamps.retain(|file, _| reading.files.contains(file));
                self.apply(&config).await.inspect(|_| self.remark(&config))
            }
            Err(error) => Err(error.lines()),
        };
        let file = self.source.file.path.display();
        match result {
            Ok(changes) if changes.is_empty() => say(&format!("{file} is read again, nothing has changed")),
            Ok(changes) => say(&format!("{file} is in force: {}", changes.join("; "))),
            Err(mistakes) => {
                for mistake in mistakes {
                    tracing::error!("{mistake}");
                }
                tracing::error!("{file} is not taken, everything stays as it is");
            }
        }
    }

    /// Put the differences in force. Answers them, for people.
    async fn apply(&mut self, config: &FleetConfig) -> Result<Vec<String>, Vec<String>> {
        let failed = |error: anyhow::Error| vec![format!("{error:#}")];
        let settings = HostSettings::new(&self.flags, config);
        let devices = self.connections.of(config, &self.source.file.path).await.map_err(failed)?;
        if let Some(devices) = &devices {
            check_descriptors(devices.len(), self.descriptors).map_err(failed)?;
        }
        let mut changes = Vec::new();
        if let Some(catalog) = &self.fleet.catalog {
            let set = catalog.set_plans(settings.plans.clone()).await;
            set.map_err(|errors| self.told(config, &errors))?;
            changes.extend(plans_changed(&self.plans, &settings.plans));
            self.plans = settings.plans.clone();
        }
        let actors = settings.limits.actors;
        if self.fleet.roster.set_limits(actors) {
            changes.push("limits of devices".to_owned());
        }
        if let Some(devices) = devices {
            let set = self.fleet.set_devices(devices).await;
            changes.extend(devices_changed(set.map_err(failed)?));
        }
        let later = self.started.needs_restart(&settings);
        if !later.is_empty() {
            tracing::warn!("{}: {} takes effect at the next start", self.source.file.path.display(), later.join(", "));
        }
        Ok(changes)
    }

    fn told(&self, config: &FleetConfig, errors: &[PlanError]) -> Vec<String> {
        let file = &self.source.file.path;
        let told = errors.iter().map(|error| match config.positions.get(error.plugin()) {
            Some(position) => Mistake { position: *position, text: error.to_string() }.told(file),
            None => format!("{}: {error}", file.display()),
        });
        told.collect()
    }

    /// Tell what is odd.
    fn remark(&self, config: &FleetConfig) {
        let file = &self.source.file.path;
        let absent = match &self.fleet.catalog {
            Some(catalog) => config.absent_plugins(&catalog.list().into_iter().map(|entry| entry.name).collect()),
            None => Vec::new(),
        };
        for remark in config.remarks.iter().chain(&absent) {
            tracing::warn!("{}", remark.told(file));
        }
        if self.fleet.catalog.is_none() && !config.plugins.is_empty() {
            let file = file.display();
            tracing::warn!(
                "{file} speaks of plugins, and there is no plugin directory; give --plugins or host.plugins"
            );
        }
    }
}

async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        // There is no end of signals.
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

fn plans_changed(before: &PluginPlans, after: &PluginPlans) -> Option<String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    let changed: Vec<_> = changed.map(|name| name.as_str()).collect();
    (!changed.is_empty()).then(|| format!("plugins {}", changed.join(", ")))
}

fn devices_changed(changes: DeviceChanges) -> Option<String> {
    let DeviceChanges { added, removed, reconnected } = changes;
    let counts = [(added, "added"), (removed, "removed"), (reconnected, "connected anew")];
    let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let counts: Vec<_> = counts.collect();
    (!counts.is_empty()).then(|| format!("devices {}", counts.join(", ")))
}

/// Read a file and what it names, with how everything was just before. `known` is what it has named up to now.
fn read_whole(file: &ConfigFile, known: BTreeSet<PathBuf>) -> (Reading, Stamps) {
    let mut files = known;
    files.insert(file.path.clone());
    loop {
        let stamps = stamps(&files);
        let reading = file.read(&Context::variable);
        if reading.files.is_subset(&files) || files.len() > MOST_FILES {
            return (reading, stamps);
        }
        // What was not known to be looked at could have changed in between.
        files.extend(reading.files);
    }
}

fn stamps(files: &BTreeSet<PathBuf>) -> Stamps {
    files.iter().map(|file| (file.clone(), Stamp::of(file))).collect()
}

/// Wake `changed` when something happens beside one of the files. Where that cannot be had, the poll alone follows them.
fn watch(files: &Stamps, changed: Arc<Notify>) -> Option<RecommendedWatcher> {
    let wake = move |_| changed.notify_one();
    let mut watcher = notify::recommended_watcher(wake)
        .inspect_err(
            |error| tracing::warn!(%error, "no notifications for the configuration; it is looked at every 2 s"),
        )
        .ok()?;
    // A file may be replaced, or come only later: its folder is what stays.
    let folders = files.keys().filter_map(|file| file.parent());
    let folders: BTreeSet<_> = folders.map(|folder| if folder == "" { Path::new(".") } else { folder }).collect();
    for folder in folders {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::debug!(folder = %folder.display(), %error, "no notifications for a folder of the configuration");
        }
    }
    Some(watcher)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process is ending.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Writers pause less than this between two blocks.
const QUIET: Duration = Duration::from_millis(100);
/// For file systems that notify nobody, and for a file changed through another link to it.
const POLL: Duration = Duration::from_secs(2);
/// A busy folder notifies without end; the files are looked at no oftener than this.
const PAUSE: Duration = Duration::from_millis(100);
/// How many devices a message names.
const NAMED: usize = 3;
/// A connection string for each of as many devices as there may be, and some. A configuration that names other files each
/// time it is read would be read for ever.
const MOST_FILES: usize = 200_000;
