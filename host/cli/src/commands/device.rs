//! `latch device`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use iothub_protocol::authentication::{AuthenticationRequest, Thumbprint};
use iothub_protocol::connection_string::HostName;
use iothub_protocol::identity::IdentityRequest;
use iothub_service::device_connection;
use serde_json::{Value, json};

use crate::args::DeviceCommand;
use crate::context::Context;
use crate::output::{cell, document, line, table};

pub(super) async fn run(command: DeviceCommand, context: &Context) -> anyhow::Result<()> {
    let service = context.service()?;
    match command {
        DeviceCommand::Create { id, x509_thumbprint, x509_ca, save } => {
            let request = request(&x509_thumbprint, x509_ca)?;
            // Before the device is made, so that its keys are not lost if the file cannot be.
            let file = save.as_deref().map(new_private_file).transpose()?;
            let identity = service.create_device(&id, &request).await?;
            if let Some(mut file) = file {
                // Devices reach the hub by the same name, on MQTT's own port.
                let host = HostName { name: service.host().name.clone(), port: None };
                writeln!(file, "{}", device_connection(&identity, host)?.reveal())?;
            }
            if context.json {
                // Whoever creates a device needs its keys; this is the one place that prints them.
                return document(&identity);
            }
            line(&format!("created {id}"))?;
            match save.or(context.device_file(&id).await) {
                Some(file) => line(&format!("its connection string is in {}", file.display())),
                None => Ok(()),
            }
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
                let shown = identity.pointer_mut(&format!("/authentication/symmetricKey/{key}"));
                if let Some(shown) = shown.filter(|key| !key.is_null()) {
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

fn request(thumbprints: &[Thumbprint], by_authority: bool) -> anyhow::Result<IdentityRequest> {
    let authentication = match (thumbprints, by_authority) {
        ([], false) => AuthenticationRequest::default(),
        ([], true) => AuthenticationRequest::CertificateAuthority,
        ([primary, rest @ ..], _) if rest.len() < 2 => {
            AuthenticationRequest::SelfSigned { primary: Some(primary.clone()), secondary: rest.first().cloned() }
        }
        _ => bail!("--x509-thumbprint takes one thumbprint or two"),
    };
    Ok(IdentityRequest { authentication, ..IdentityRequest::default() })
}

fn new_private_file(path: &Path) -> anyhow::Result<File> {
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    open.with_context(|| format!("cannot create {}", path.display()))
}
