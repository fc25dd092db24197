//! `latch demo`: the tutorial, whole, on an embedded hub of its own. Everything that it says is checked.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use iothub_protocol::address::Address;
use iothub_protocol::id::{JobId, MethodName};
use iothub_protocol::job::{DEFAULT_MAX_EXECUTION, JobAction, JobRequest, TwinUpdate};
use iothub_protocol::method::DirectMethod;
use iothub_service::ServiceClient;
use plugin_runtime::PluginName;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use crate::args::{DemoArgs, ListenArgs};
use crate::context::{Context, tls_for};
use crate::data_folder::DataFolder;
use crate::descriptors::{check_descriptors, connection_limits, descriptors};
use crate::exit::EndedBadly;
use crate::fleet::{Fleet, Plugins};
use crate::hub::RunningHub;
use crate::listeners;
use crate::output::{document, line};
use crate::plugin_build::{BuildRequest, ToolchainChoice};
use crate::settings::HostSettings;
use crate::watch;

/// Calls always in flight while the plugin is swapped.
const CALLERS: u32 = 16;
/// How long the callers call before and after the swap.
const CALLING: Duration = Duration::from_millis(700);
/// How long the reactors may take to report.
const REPORT_TIME: Duration = Duration::from_secs(20);
/// Pause between looks at what was reported.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

const LOCK_DOOR: &str = "lock-door";

pub(super) async fn run(args: DemoArgs, context: &Context) -> anyhow::Result<()> {
    check_descriptors(args.devices as usize, 2)?;
    let started = Instant::now();
    let components = build(&args, context).await?;
    let folder = TemporaryFolder::new()?;
    let plugins = folder.0.join("plugins");
    std::fs::create_dir(&plugins)?;
    for name in [LOCK_DOOR, "building"] {
        let file = format!("{name}.wasm");
        std::fs::copy(components.join(&file), plugins.join(&file)).with_context(|| format!("cannot copy {file}"))?;
    }
    let stage = Stage::set(&args, &folder, plugins).await?;
    let told = stage.tell(&components).await;
    stage.clear().await;
    told?;
    line(&format!("\nDone in {:.1} s. Next: latch up --devices 100 --plugins target/plugins", seconds(started)))
}

/// The plugins and the later lock-door.
async fn build(args: &DemoArgs, context: &Context) -> anyhow::Result<PathBuf> {
    heading("Build the plugins: Rust to WebAssembly components")?;
    let out = PathBuf::from("target/plugins");
    let request = BuildRequest {
        workspace: args.source.clone(),
        out: out.clone(),
        toolchain: ToolchainChoice::Auto,
        packages: vec![],
        tools_dir: PathBuf::from("target/tools"),
        fixtures: false,
        languages: Vec::new(),
    };
    for plugin in super::plugin::compile(request, context).await? {
        line(&format!("  {} {} ({} KiB)", plugin.name, plugin.version, plugin.size.div_ceil(1024)))?;
    }
    Ok(out)
}

/// Hub, doors and a back end.
struct Stage {
    hub: RunningHub,
    fleet: Fleet,
    service: Arc<ServiceClient>,
    doors: u64,
}

impl Stage {
    async fn set(args: &DemoArgs, folder: &TemporaryFolder, plugins: PathBuf) -> anyhow::Result<Stage> {
        heading(&format!("Start a hub, and {} doors that run the plugins", args.devices))?;
        let begun = Instant::now();
        let data = Arc::new(DataFolder::open(&folder.0.join("data"))?);
        let any_port = ([127, 0, 0, 1], 0).into();
        let listeners = listeners::bind(&ListenArgs { https: Some(any_port), mqtt: Some(any_port) }).await?;
        let host = HostSettings { plugins: Some(plugins), ..HostSettings::default() };
        let loaded = Plugins::load(&host, &data).await?;
        let room = connection_limits(None, args.devices as usize, descriptors())?;
        let hub = RunningHub::start(data.clone(), listeners, None, room).await?;
        let devices = hub.ensure_doors(args.devices).await?;
        let tls = tls_for(&data.path().join(embedded_hub::tls::CA_FILE))?;
        let service = Arc::new(ServiceClient::new(hub.service.clone(), tls.clone())?);
        let fleet = Fleet::start(loaded, &host, &data, devices, tls).await?;
        fleet.connected().await?;
        line(&format!("  {} doors connected over MQTT and TLS in {:.1} s", fleet.len(), seconds(begun)))?;
        Ok(Stage { hub, fleet, service, doors: args.devices.into() })
    }

    async fn clear(self) {
        self.fleet.stop().await;
        self.hub.stop().await;
    }

    async fn tell(&self, components: &std::path::Path) -> anyhow::Result<()> {
        heading("Job 1: invoke lockDoor on every enabled door")?;
        self.method_job("demo-lock", "lockDoor", "1.0.0").await?;
        heading("Job 2: set the desired properties building and floor")?;
        self.twin_job().await?;
        heading("Swap lock-door 1.0.0 for 2.0.0 while calls run")?;
        self.swap(components).await?;
        heading("Job 3: invoke unlockDoor, on the new version")?;
        self.method_job("demo-unlock", "unlockDoor", "2.0.0").await
    }

    async fn method_job(&self, id: &str, method: &str, version: &str) -> anyhow::Result<()> {
        let action = JobAction::Method(direct_method(method, json!({"by": "demo"}))?);
        self.job(id, action).await?;
        let rows = self.service.query_all(&format!("SELECT * FROM devices.jobs WHERE jobId = '{id}'")).await?;
        if let Some(row) = rows.first() {
            line(&format!("  {}", row))?;
        }
        let answered = rows
            .iter()
            .filter(|row| row.pointer("/outcome/deviceMethodResponse/payload/version") == Some(&json!(version)));
        let answered = answered.count() as u64;
        as_told(answered == self.doors, || format!("{answered} of {} doors answered as {version}", self.doors))?;
        line(&format!("  {answered} doors answered, each through {LOCK_DOOR} {version}"))
    }

    async fn twin_job(&self) -> anyhow::Result<()> {
        let desired = Map::from_iter([("building".to_owned(), json!("43")), ("floor".to_owned(), json!(3))]);
        let update = TwinUpdate { tags: None, desired: Some(desired) };
        self.job("demo-twin", JobAction::UpdateTwin(update)).await?;
        let accepted = "SELECT COUNT() AS doors FROM devices WHERE properties.reported.building.value = '43' \
                        AND properties.reported.building.ac = 200 AND properties.reported.floor.value = 3 \
                        AND properties.reported.floor.ac = 200";
        let begun = Instant::now();
        loop {
            let rows = self.service.query_all(accepted).await?;
            let count = rows.first().and_then(|row| row["doors"].as_u64()).unwrap_or(0);
            if count == self.doors {
                break;
            }
            as_told(begun.elapsed() < REPORT_TIME, || format!("{count} of {} doors reported", self.doors))?;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let twin = self.service.get_twin(&Address::parse("door-0001")?).await?;
        let reported = &twin["properties"]["reported"];
        line(&format!("  door-0001 reports building {} floor {}", reported["building"], reported["floor"]))?;
        line(&format!("  the plugin `building` accepted the change on all {} doors", self.doors))
    }

    /// Create a job and follow it to its end.
    async fn job(&self, id: &str, action: JobAction) -> anyhow::Result<()> {
        let request = JobRequest {
            job_id: JobId::parse(id)?,
            action,
            query_condition: "status = 'enabled'".to_owned(),
            start_time: None,
            max_execution_time_in_seconds: DEFAULT_MAX_EXECUTION,
            policy: None,
            targets: None,
            then: Vec::new(),
            recurrence: None,
        };
        let begun = Instant::now();
        self.service.create_job(&request).await?;
        // Whoever has had enough ends the demo, as ever.
        let job = watch::follow(&self.service, &request.job_id, watch::Print::Nothing, pending()).await?;
        let took = seconds(begun);
        document(&job)?;
        let succeeded = job["deviceJobStatistics"]["succeededCount"].as_u64();
        as_told(job["status"] == json!("completed") && succeeded == Some(self.doors), || {
            format!("the job {id} should have succeeded on {} doors", self.doors)
        })?;
        line(&format!("  completed on {} doors in {took:.2} s", self.doors))
    }

    async fn swap(&self, components: &std::path::Path) -> anyhow::Result<()> {
        let next = std::fs::read(components.join("next/lock-door.wasm")).context("cannot read the next lock-door")?;
        let catalog = self.fleet.catalog.as_ref().context("the demo has a plugin directory")?;
        let stop = tokio_util::sync::CancellationToken::new();
        let tally = Arc::new(Tally::default());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(call_until(self.service.clone(), caller, self.doors, tally.clone(), stop.clone()));
        }
        tokio::time::sleep(CALLING).await;
        let report = catalog.swap(&PluginName::parse(LOCK_DOOR)?, next).await;
        tokio::time::sleep(CALLING).await;
        stop.cancel();
        while let Some(ended) = callers.join_next().await {
            ended?;
        }
        let report = report?;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        line(&format!("  {} -> {}", report.from.as_deref().unwrap_or("none"), report.to))?;
        line(&format!(
            "  calls made: {}, answered by 1.0.0: {}, by 2.0.0: {}, calls lost: {}",
            count(&tally.made),
            count(&tally.first),
            count(&tally.second),
            count(&tally.lost)
        ))?;
        as_told(count(&tally.lost) == 0, || "calls were lost".to_owned())?;
        as_told(count(&tally.first) > 0 && count(&tally.second) > 0, || {
            "both versions should have answered calls".to_owned()
        })
    }
}

#[derive(Default)]
struct Tally {
    made: AtomicU64,
    first: AtomicU64,
    second: AtomicU64,
    lost: AtomicU64,
}

/// One caller: locks and unlocks doors of its own, one after the other.
async fn call_until(
    service: Arc<ServiceClient>,
    caller: u32,
    doors: u64,
    tally: Arc<Tally>,
    stop: tokio_util::sync::CancellationToken,
) {
    for turn in 0_u64.. {
        if stop.is_cancelled() {
            return;
        }
        let door = (u64::from(caller) + turn * u64::from(CALLERS)) % doors + 1;
        let method = if (turn / doors).is_multiple_of(2) { "unlockDoor" } else { "lockDoor" };
        tally.made.fetch_add(1, Ordering::Relaxed);
        let counter = match call(&service, door, method).await {
            Ok(version) if version == "1.0.0" => &tally.first,
            Ok(version) if version == "2.0.0" => &tally.second,
            Ok(_) => &tally.lost,
            Err(error) => {
                tracing::warn!(door, error = format!("{error:#}"), "a call was lost");
                &tally.lost
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The version that answered.
async fn call(service: &ServiceClient, door: u64, method: &str) -> anyhow::Result<String> {
    let device = Address::parse(&format!("door-{door:04}"))?;
    let response = service.invoke_method(&device, &direct_method(method, Value::Null)?).await?;
    ensure!(matches!(response.status, 200 | 409), "{device} answered {}", response.status);
    Ok(response.payload["version"].as_str().unwrap_or_default().to_owned())
}

fn direct_method(name: &str, payload: Value) -> anyhow::Result<DirectMethod> {
    Ok(DirectMethod {
        method_name: MethodName::parse(name)?,
        payload,
        response_timeout_in_seconds: Some(15),
        connect_timeout_in_seconds: None,
    })
}

/// Fails the demo if what was told is not so.
fn as_told(holds: bool, otherwise: impl FnOnce() -> String) -> anyhow::Result<()> {
    if !holds {
        bail!(EndedBadly(format!("not as told: {}", otherwise())));
    }
    Ok(())
}

fn heading(text: &str) -> anyhow::Result<()> {
    line(&format!("\n== {text}"))
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// A folder that goes when the demo ends.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn new() -> anyhow::Result<TemporaryFolder> {
        let path = std::env::temp_dir().join(format!("latch-demo-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(TemporaryFolder(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the demo's folder could not be removed");
        }
    }
}
