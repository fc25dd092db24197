//! `latch device`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use iothub_protocol::address::Address;
use iothub_protocol::authentication::AuthenticationRequest;
use iothub_protocol::connection_string::HostName;
use iothub_protocol::identity::IdentityRequest;
use iothub_service::client_connection;
use serde_json::{Value, json};

use crate::args::{DeviceCommand, IdentityArgs};
use crate::context::Context;
use crate::output::{cell, document, line, table};

pub(super) async fn run(command: DeviceCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        DeviceCommand::Create { id, identity } => {
            create(&id.clone().into(), &request(&identity)?, identity.save.as_deref(), context).await?;
            if context.json {
                return Ok(());
            }
            match identity.save.or(context.device_file(&id).await) {
                Some(file) => line(&format!("its connection string is in {}", file.display())),
                None => Ok(()),
            }
        }
        DeviceCommand::List => {
            let query = "SELECT deviceId, status, connectionState, lastActivityTime FROM devices";
            let devices = context.service()?.query_all(query).await?;
            if context.json {
                return document(&Value::Array(devices));
            }
            let columns = ["deviceId", "status", "connectionState", "lastActivityTime"];
            let rows: Vec<_> =
                devices.iter().map(|device| columns.iter().map(|column| cell(&device[column])).collect()).collect();
            table(&["DEVICE", "STATUS", "CONNECTION", "LAST ACTIVITY"], &rows)
        }
        DeviceCommand::Show { id } => show(&id.into(), context).await,
        DeviceCommand::Delete { id } => delete(&id.into(), context).await,
    }
}

/// Make a device or a module, with its connection string in the file `save`.
pub(super) async fn create(
    id: &Address,
    request: &IdentityRequest,
    save: Option<&Path>,
    context: &Context,
) -> anyhow::Result<()> {
    let service = context.service()?;
    // Before it is made, so that its keys are not lost if the file cannot be.
    let file = save.map(new_private_file).transpose()?;
    let identity = service.create_identity(id, request).await?;
    if let Some(mut file) = file {
        // Devices reach the hub by the same name, on MQTT's own port.
        let host = HostName { name: service.host().name.clone(), port: None };
        writeln!(file, "{}", client_connection(&identity, &host)?)?;
    }
    if context.json {
        // Whoever creates it needs its keys; this is the one place that prints them.
        return document(&identity);
    }
    line(&format!("created {id}"))
}

pub(super) async fn show(id: &Address, context: &Context) -> anyhow::Result<()> {
    let mut identity = context.service()?.get_identity(id).await?;
    for key in ["primaryKey", "secondaryKey"] {
        let shown = identity.pointer_mut(&format!("/authentication/symmetricKey/{key}"));
        if let Some(shown) = shown.filter(|key| !key.is_null()) {
            *shown = json!("(hidden)");
        }
    }
    document(&identity)
}

pub(super) async fn delete(id: &Address, context: &Context) -> anyhow::Result<()> {
    context.service()?.delete_identity(id, None).await?;
    if !context.json {
        line(&format!("deleted {id}"))?;
    }
    Ok(())
}

pub(super) fn request(args: &IdentityArgs) -> anyhow::Result<IdentityRequest> {
    let authentication = match (args.x509_thumbprint.as_slice(), args.x509_ca) {
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
