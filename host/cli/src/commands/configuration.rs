//! `latch configuration`.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use iothub_protocol::id::ConfigurationId;
use iothub_service::ServiceClient;
use serde_json::Value;

use crate::args::ConfigurationCommand;
use crate::context::Context;
use crate::output::{cell, document, line, table};

pub(super) async fn run(command: ConfigurationCommand, context: &Context) -> anyhow::Result<()> {
    let service = context.service()?;
    match command {
        ConfigurationCommand::List => list(&service, context).await,
        ConfigurationCommand::Show { id } => document(&service.get_configuration(&id).await?),
        ConfigurationCommand::Create { file } => {
            let (id, configuration) = read(&file)?;
            let created = service.create_configuration(&id, configuration).await?;
            if context.json { document(&created) } else { line(&format!("created {id}")) }
        }
        ConfigurationCommand::Delete { id } => {
            service.delete_configuration(&id, None).await?;
            if context.json { Ok(()) } else { line(&format!("deleted {id}")) }
        }
    }
}

fn read(file: &Path) -> anyhow::Result<(ConfigurationId, Value)> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let configuration: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    let id = configuration["id"].as_str().with_context(|| format!("{} has no \"id\"", file.display()))?;
    Ok((ConfigurationId::parse(id)?, configuration))
}

async fn list(service: &ServiceClient, context: &Context) -> anyhow::Result<()> {
    let configurations = service.list_configurations().await?;
    if context.json {
        return document(&Value::Array(configurations));
    }
    let rows: Vec<_> = configurations
        .iter()
        .map(|configuration| {
            let counted = &configuration["systemMetrics"]["results"];
            vec![
                cell(&configuration["id"]),
                cell(&configuration["priority"]),
                cell(&counted["targetedCount"]),
                cell(&counted["appliedCount"]),
                cell(&configuration["targetCondition"]),
            ]
        })
        .collect();
    table(&["CONFIGURATION", "PRIORITY", "TARGETED", "APPLIED", "CONDITION"], &rows)
}
