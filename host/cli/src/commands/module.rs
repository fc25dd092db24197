//! `latch module`.

use iothub_protocol::identity::IdentityRequest;
use serde_json::Value;

use super::device;
use crate::args::ModuleCommand;
use crate::context::Context;
use crate::output::{cell, document, line, table};

pub(super) async fn run(command: ModuleCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        ModuleCommand::Create { id, managed_by, identity } => {
            let request = IdentityRequest { managed_by, ..device::request(&identity)? };
            device::create(&id, &request, identity.save.as_deref(), context).await?;
            match identity.save.filter(|_| !context.json) {
                Some(file) => line(&format!("its connection string is in {}", file.display())),
                None => Ok(()),
            }
        }
        ModuleCommand::List { device } => {
            let mut query =
                "SELECT deviceId, moduleId, connectionState, lastActivityTime FROM devices.modules".to_owned();
            if let Some(device) = device {
                query.push_str(&format!(" WHERE deviceId = '{}'", device.as_str().replace('\'', r"\'")));
            }
            let modules = context.service()?.query_all(&query).await?;
            if context.json {
                return document(&Value::Array(modules));
            }
            let columns = ["deviceId", "moduleId", "connectionState", "lastActivityTime"];
            let rows: Vec<_> =
                modules.iter().map(|module| columns.iter().map(|column| cell(&module[column])).collect()).collect();
            table(&["DEVICE", "MODULE", "CONNECTION", "LAST ACTIVITY"], &rows)
        }
        ModuleCommand::Show { id } => device::show(&id, context).await,
        ModuleCommand::Delete { id } => device::delete(&id, context).await,
    }
}
