//! The ports: Azure's where they can be had.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use iothub_protocol::connection_string::HostName;
use tokio::net::TcpListener;

use crate::args::ListenArgs;
use crate::output::say;

const HTTPS_PORT: u16 = 443;
/// Used where 443 cannot be bound: it needs a privilege, and one process only can have it.
const HTTPS_PORT_INSTEAD: u16 = 8443;
const MQTT_PORT: u16 = 8883;
const MQTT_USUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), MQTT_PORT);

/// Bound listeners and the host name that leads to each.
pub(crate) struct Listeners {
    pub(crate) https: TcpListener,
    pub(crate) mqtt: TcpListener,
    pub(crate) https_host: HostName,
    pub(crate) mqtt_host: HostName,
}

pub(crate) async fn bind(args: &ListenArgs) -> anyhow::Result<Listeners> {
    let address = args.mqtt.unwrap_or(MQTT_USUAL);
    let mqtt = listen(address).await.with_context(|| {
        format!("cannot listen for MQTT on {address}\nhint: another hub may run there; choose an address with --mqtt")
    })?;
    let https = bind_https(args.https).await?;
    let https_host = host_name(&https, HTTPS_PORT)?;
    let mqtt_host = host_name(&mqtt, MQTT_PORT)?;
    Ok(Listeners { https, mqtt, https_host, mqtt_host })
}

async fn bind_https(asked: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    if let Some(address) = asked {
        return listen(address).await.with_context(|| {
            format!("cannot listen for HTTPS on {address}\nhint: choose another address with --https")
        });
    }
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTPS_PORT));
    let error = match listen(usual).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let instead = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTPS_PORT_INSTEAD));
    let listener = listen(instead).await.with_context(|| {
        format!("cannot listen for HTTPS on {usual} ({error}) nor on {instead}\nhint: choose an address with --https")
    })?;
    say(&format!(
        "port {HTTPS_PORT} cannot be had ({error}); REST listens on {HTTPS_PORT_INSTEAD}. Microsoft's clients that always \
         use {HTTPS_PORT} (Node's azure-iothub) will not reach it."
    ));
    Ok(listener)
}

async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // A fleet connects at once: a short queue would drop SYNs and cost each a second.
    socket.listen(4096)
}

/// `localhost`, with a port only where it is not the protocol's own.
fn host_name(listener: &TcpListener, usual: u16) -> anyhow::Result<HostName> {
    let port = listener.local_addr()?.port();
    Ok(HostName { name: "localhost".to_owned(), port: (port != usual).then_some(port) })
}
