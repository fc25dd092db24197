//! `latch config check`: what is wrong with a configuration, or what it comes to.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;
use plugin_runtime::{ClockGrant, DeviceGlob, Grants, Placement, PluginName, PluginPlan};
use serde_json::{Value, json};

use crate::args::ConfigCommand;
use crate::config::{ConfigError, ConfigFile, Devices, FleetConfig, HostLimits, Mistake};
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{document, line};

pub(super) fn run(command: &ConfigCommand, context: &Context) -> anyhow::Result<()> {
    let ConfigCommand::Check { file } = command;
    let Some(source) = ConfigFile::find(Some(file), None) else { bail!("no file is named") };
    match source.read(&Context::variable).config {
        Ok(config) => {
            let remarks = remarks(&config);
            if context.json { document(&summary_json(file, &config, &remarks)) } else { tell(file, &config, &remarks) }
        }
        Err(ConfigError::Mistakes { file, mistakes }) => {
            if context.json {
                document(&json!({"file": file, "fits": false, "mistakes": places_json(&mistakes)}))?;
            } else {
                mistakes.iter().try_for_each(|mistake| line(&mistake.told(&file)))?;
            }
            bail!(EndedBadly(format!("{} is not in order, mistakes: {}", file.display(), mistakes.len())))
        }
        Err(error) => Err(error.into()),
    }
}

/// What is odd, plugins that are not there included if the file says where they should be.
fn remarks(config: &FleetConfig) -> Vec<Mistake> {
    let mut remarks = config.remarks.clone();
    let files = config.host.plugins.as_ref().and_then(|folder| std::fs::read_dir(folder).ok());
    if let Some(files) = files {
        let paths = files.flatten().map(|entry| entry.path());
        let components = paths.filter(|path| path.extension().is_some_and(|extension| extension == "wasm"));
        let stems = components.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
        remarks.extend(config.absent_plugins(&stems.collect::<BTreeSet<_>>()));
    }
    remarks.sort();
    remarks
}

fn tell(file: &Path, config: &FleetConfig, remarks: &[Mistake]) -> anyhow::Result<()> {
    line(&format!("{} is in order", file.display()))?;
    let connected = with_connection(&config.devices);
    line(&format!("  devices   {}, of which {connected} have a connection string", config.devices.len()))?;
    for (name, plan) in &config.plugins {
        line(&format!("  plugin    {}", plugin(name, plan, &config.devices)))?;
    }
    let limits = HostLimits::default();
    for limit in limits.differences(&config.limits) {
        line(&format!("  limit     {} {}", limit.name, limit.value))?;
    }
    remarks.iter().try_for_each(|remark| line(&format!("  remark    {}", remark.told(file))))
}

/// Names of settings and variables, never their values.
fn plugin(name: &PluginName, plan: &PluginPlan, devices: &Devices) -> String {
    let mut parts = vec![match running(plan, devices) {
        None => format!("{name} on every device"),
        Some(count) => format!("{name} on {count} of these devices"),
    }];
    let list = |what: &str, names: Vec<&str>| (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")));
    parts.extend(list("settings", plan.terms.config.keys().map(String::as_str).collect()));
    let Grants { environment, addresses, folder, clock, randomness, peers } = &plan.terms.grants;
    parts.extend(list("environment", environment.keys().map(String::as_str).collect()));
    let addresses: Vec<String> = addresses.iter().map(|grant| format!("{grant}")).collect();
    parts.extend(list("addresses", addresses.iter().map(String::as_str).collect()));
    parts.extend(folder.as_ref().map(|folder| format!("folder {}", folder.display())));
    parts.extend((*clock != ClockGrant::default()).then(|| format!("clock {}", clock_name(*clock))));
    parts.extend(randomness.then(|| "randomness".to_owned()));
    parts.extend(list("peers", peers.iter().map(DeviceGlob::as_str).collect()));
    parts.join("; ")
}

fn summary_json(file: &Path, config: &FleetConfig, remarks: &[Mistake]) -> Value {
    let plugins = config.plugins.iter().map(|(name, plan)| {
        let Grants { environment, addresses, folder, clock, randomness, peers } = &plan.terms.grants;
        json!({
            "name": name.to_string(),
            "devices": running(plan, &config.devices),
            "settings": plan.terms.config.keys().collect::<Vec<_>>(),
            "environment": environment.keys().collect::<Vec<_>>(),
            "addresses": addresses.iter().map(|grant| grant.to_string()).collect::<Vec<_>>(),
            "folder": folder,
            "clock": clock_name(*clock),
            "randomness": randomness,
            "peers": peers.iter().map(DeviceGlob::as_str).collect::<Vec<_>>(),
        })
    });
    let limits = HostLimits::default();
    let limits = limits.differences(&config.limits).map(|limit| (limit.name.to_owned(), Value::String(limit.value)));
    json!({
        "file": file,
        "fits": true,
        "devices": config.devices.len(),
        "withConnectionString": with_connection(&config.devices),
        "plugins": plugins.collect::<Vec<_>>(),
        "limits": limits.collect::<serde_json::Map<_, _>>(),
        "remarks": places_json(remarks),
    })
}

fn places_json(mistakes: &[Mistake]) -> Vec<Value> {
    let place =
        |Mistake { position, text }: &Mistake| json!({"line": position.line, "column": position.column, "text": text});
    mistakes.iter().map(place).collect()
}

fn with_connection(devices: &Devices) -> usize {
    devices.values().flatten().count()
}

/// How many of the devices run the plugin; none if it runs everywhere.
fn running(plan: &PluginPlan, devices: &Devices) -> Option<usize> {
    let placed = plan.placement != Placement::Everywhere;
    placed.then(|| devices.keys().filter(|id| plan.placement.includes(id)).count())
}

fn clock_name(clock: ClockGrant) -> &'static str {
    match clock {
        ClockGrant::CallStart => "call-start",
        ClockGrant::Coarse => "coarse",
        ClockGrant::Real => "real",
    }
}
