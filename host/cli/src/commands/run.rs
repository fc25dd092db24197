//! `latch run`: the host alone, against any hub.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use iothub_protocol::connection_string::DeviceConnectionString;

use crate::admin_server::AdminServer;
use crate::args::RunArgs;
use crate::context::Context;
use crate::data_folder::DataFolder;
use crate::descriptors::{check_descriptors, descriptors};
use crate::fleet::{Fleet, Plugins};
use crate::jobs::RunningJobs;
use crate::output::line;
use crate::reload::{self, Configuration, Connections};
use crate::settings::{Flags, HostSettings};
use crate::signals::{self, drain};
use crate::webhook::{self, Telling};

/// Each device has its end of a connection in the process.
const DESCRIPTORS_OF_A_DEVICE: u64 = 1;

pub(super) async fn run(args: RunArgs, context: &Context) -> anyhow::Result<()> {
    let webhook = match args.jobs {
        true => webhook::wanted(&args.webhook)?,
        false if args.webhook.job_webhook.is_some() => {
            bail!("--job-webhook tells of jobs that this process runs\nhint: give --jobs, too")
        }
        false => None,
    };
    let configuration = Configuration::read(&args.host)?;
    let source = if args.connections.is_some() { Connections::Flag } else { Connections::File };
    let devices = match (&args.connections, configuration.connect(&source).await?) {
        (Some(path), _) => connections(path)?,
        (None, Some(devices)) if !devices.is_empty() => devices,
        (None, _) if args.jobs => Vec::new(),
        (None, _) => bail!(
            "no devices are named\nhint: give --connections PATH, or a configuration with [devices] by --config FILE"
        ),
    };
    let service = args.jobs.then(|| context.service()).transpose()?;
    check_descriptors(devices.len(), DESCRIPTORS_OF_A_DEVICE)?;
    let flags = Flags { host: args.host, tier: args.quota.sku()?, ..Flags::default() };
    let settings = HostSettings::new(&flags, &configuration.config);
    let tls = context.tls()?;
    let data = DataFolder::open(&context.data)?;
    let plugins = Plugins::load(&settings, &data).await?;
    let left = descriptors().saturating_sub(devices.len() as u64 * DESCRIPTORS_OF_A_DEVICE);
    let fleet = Arc::new(Fleet::start(plugins, &settings, &data, devices, tls).await?);
    let mut router = admin::router(fleet.admin_state());
    let jobs = match service {
        None => None,
        Some(service) => {
            let jobs = RunningJobs::start(&data, service, settings.tier, left).await?;
            router = router.merge(jobs.router());
            Some(jobs)
        }
    };
    let telling = jobs.as_ref().zip(webhook).map(|(jobs, webhook)| Telling::start(webhook, jobs.engine()));
    let admin = AdminServer::start(&data, router, settings.admin).await?;
    let reload = configuration.follow(flags, source, DESCRIPTORS_OF_A_DEVICE, fleet.clone())?;
    let ready = async {
        fleet.connected().await?;
        let plugins = fleet.catalog.as_ref().map_or(0, |catalog| catalog.current().plugins.len());
        let jobs = jobs.as_ref().map(|jobs| format!(" jobs={}", jobs.hub())).unwrap_or_default();
        line(&format!("ready devices={} plugins={plugins}{jobs}", fleet.len()))?;
        std::future::pending::<anyhow::Result<()>>().await
    };
    let stop = signals::stop()?;
    let result = tokio::select! {
        result = ready => result,
        never = reload::run(reload) => match never {},
        () = stop => Ok(()),
    };
    admin.stop();
    drain(async {
        if let Some(telling) = telling {
            telling.stop().await;
        }
        // Jobs first: a device that is going would fail the calls that a job still sends.
        if let Some(jobs) = jobs {
            jobs.stop().await;
        }
        fleet.stop().await;
    })
    .await;
    result
}

/// All mistakes are told at once, by file and line, without the strings, which hold keys.
fn connections(path: &Path) -> anyhow::Result<Vec<DeviceConnectionString>> {
    let (mut devices, mut mistakes) = (Vec::new(), Vec::new());
    for file in files(path)? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (number, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            match DeviceConnectionString::parse(text) {
                Ok(device) => devices.push(device),
                Err(error) => mistakes.push(format!("{}:{number}: {error}", file.display())),
            }
        }
    }
    if !mistakes.is_empty() {
        bail!("{}", mistakes.join("\n"));
    }
    if devices.is_empty() {
        bail!("{} holds no device connection string", path.display());
    }
    devices.sort_by(|a, b| a.device_id.cmp(&b.device_id));
    if let Some(pair) = devices.windows(2).find(|pair| pair[0].device_id == pair[1].device_id) {
        bail!("{} names the device {} twice", path.display(), pair[0].device_id);
    }
    Ok(devices)
}

fn files(path: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "connstr") {
            files.push(file);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_told_without_the_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("devices.txt");
        fs::write(&file, "# doors\nHostName=h;DeviceId=a;SharedAccessKey=hush!\n\nnonsense\n").expect("written");
        let error = connections(&file).map(|_| ()).expect_err("wrong").to_string();
        assert!(error.contains("devices.txt:2: ") && error.contains("devices.txt:4: "), "{error}");
        assert!(!error.contains("hush"), "{error}");
        assert!(connections(&folder.path().join("none")).is_err());
        assert!(connections(folder.path()).map(|_| ()).expect_err("empty").to_string().contains("holds no device"));
    }
}
