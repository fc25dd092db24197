//! `latch device`.

use iothub_protocol::identity::IdentityRequest;
use serde_json::{Value, json};

use crate::args::DeviceCommand;
use crate::context::Context;
use crate::data_folder::device_path;
use crate::output::{cell, document, line, table};

pub(super) async fn run(command: DeviceCommand, context: &Context) -> anyhow::Result<()> {
    let service = context.service()?;
    match command {
        DeviceCommand::Create { id } => {
            let identity = service.create_device(&id, &IdentityRequest::default()).await?;
            if context.json {
                // Whoever creates a device needs its keys; this is the one place that prints them.
                return document(&identity);
            }
            line(&format!("created {id}"))?;
            let file = device_path(&context.data, &id);
            if file.exists() {
                line(&format!("its connection string is in {}", file.display()))?;
            }
            Ok(())
        }
        DeviceCommand::List => {
            let query = "SELECT deviceId, status, connectionState, lastActivityTime FROM devices";
            let devices = service.query_all(query).await?;
            if context.json {
                return document(&Value::Array(devices));
            }
            let columns = ["deviceId", "status", "connectionState", "lastActivityTime"];
            let rows: Vec<_> =
                devices.iter().map(|device| columns.iter().map(|column| cell(&device[column])).collect()).collect();
            table(&["DEVICE", "STATUS", "CONNECTION", "LAST ACTIVITY"], &rows)
        }
        DeviceCommand::Show { id } => {
            let mut identity = service.get_device(&id).await?;
            for key in ["primaryKey", "secondaryKey"] {
                if let Some(shown) = identity.pointer_mut(&format!("/authentication/symmetricKey/{key}")) {
                    *shown = json!("(hidden)");
                }
            }
            document(&identity)
        }
        DeviceCommand::Delete { id } => {
            service.delete_device(&id, None).await?;
            if !context.json {
                line(&format!("deleted {id}"))?;
            }
            Ok(())
        }
    }
}
