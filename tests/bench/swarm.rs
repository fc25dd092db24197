//! Many devices as light as a device can be: a socket, TLS that verifies the hub, one packet at a time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use iothub_protocol::id::DeviceId;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::topic::Subscription;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Subscribe, SubscribeFilter};
use rumqttc::mqttbytes::{Error as FrameError, QoS};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Devices that connect at the same time.
const AT_ONCE: usize = 128;
/// Nothing that a device waits for takes longer.
const BOUND: Duration = Duration::from_secs(60);
/// Longest packet that the hub answers with.
const MAX_PACKET: usize = 4096;
/// Longer than any run: an idle device has nothing to say meanwhile.
const KEEP_ALIVE: u16 = 1100;
/// What a device subscribes to that uses all that a hub has for it.
const SUBSCRIPTIONS: [Subscription; 4] =
    [Subscription::Methods, Subscription::TwinResponses, Subscription::Desired, Subscription::DeviceBound];

/// The id of a device.
pub(crate) fn id(number: usize) -> DeviceId {
    DeviceId::parse(&format!("device-{number:05}")).expect("an id")
}

/// A device's own key; no two have the same.
pub(crate) fn key(number: usize) -> SharedKey {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    SharedKey::from_random(bytes)
}

/// Where the devices connect.
#[derive(Clone)]
pub(crate) struct Hub {
    address: SocketAddr,
    /// As a connection string names it.
    host: String,
    tls: TlsConnector,
}

impl Hub {
    /// `tls` verifies the hub's certificate. Each handshake is a whole one: no device has been here before.
    pub(crate) fn new(address: SocketAddr, tls: &ClientConfig) -> Hub {
        let mut tls = tls.clone();
        tls.resumption = Resumption::disabled();
        Hub { address, host: format!("localhost:{}", address.port()), tls: TlsConnector::from(Arc::new(tls)) }
    }
}

/// A device that is connected and has subscribed.
pub(crate) struct Device {
    stream: TlsStream<TcpStream>,
    incoming: BytesMut,
}

impl Device {
    async fn connect(hub: &Hub, number: usize) -> io::Result<Device> {
        let stream = TcpStream::connect(hub.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = hub.tls.connect(name, stream).await?;
        let mut device = Device { stream, incoming: BytesMut::new() };
        let id = id(number);
        let mut connect = Connect::new(id.as_str());
        connect.clean_session = false;
        connect.keep_alive = KEEP_ALIVE;
        let token = key(number).sign(
            &format!("{}/devices/{id}", hub.host),
            None,
            chrono::Utc::now() + Duration::from_secs(3600),
        );
        connect.set_login(format!("{}/{id}/?api-version=2021-04-12", hub.host), token);
        match device.ask(Packet::Connect(connect)).await? {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {}
            other => return Err(unexpected(&other)),
        }
        let address = (&id).into();
        let filters = SUBSCRIPTIONS
            .iter()
            .filter_map(|subscription| subscription.filter(&address))
            .map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 1;
        match device.ask(Packet::Subscribe(subscribe)).await? {
            Packet::SubAck(ack) if ack.return_codes.len() == SUBSCRIPTIONS.len() => {}
            other => return Err(unexpected(&other)),
        }
        Ok(device)
    }

    /// Whether the hub still answers it.
    async fn ping(&mut self) -> io::Result<()> {
        match self.ask(Packet::PingReq).await? {
            Packet::PingResp => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&mut self, packet: Packet) -> io::Result<Packet> {
        let mut outgoing = BytesMut::new();
        packet.write(&mut outgoing, MAX_PACKET).map_err(io::Error::other)?;
        self.stream.write_all(&outgoing).await?;
        self.stream.flush().await?;
        loop {
            match Packet::read(&mut self.incoming, MAX_PACKET) {
                Ok(packet) => {
                    // An idle device needs no room for what may come.
                    self.incoming = BytesMut::new();
                    return Ok(packet);
                }
                Err(FrameError::InsufficientBytes(_)) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn unexpected(packet: &Packet) -> io::Error {
    io::Error::other(format!("the hub answered {packet:?}"))
}

/// Connects devices 0 to `count`, [`AT_ONCE`] at a time; all of them are there afterwards.
pub(crate) async fn connect(hub: &Hub, count: usize) -> (Vec<Device>, Duration) {
    let begun = Instant::now();
    let mut connecting = JoinSet::new();
    for first in 0..AT_ONCE {
        let hub = hub.clone();
        connecting.spawn(async move {
            let mut devices = Vec::new();
            for number in (first..count).step_by(AT_ONCE) {
                let connected = tokio::time::timeout(BOUND, Device::connect(&hub, number)).await;
                let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                devices.push(connected.unwrap_or_else(|error| panic!("device {number}: {error}")));
            }
            devices
        });
    }
    let devices: Vec<Device> = connecting.join_all().await.into_iter().flatten().collect();
    let took = begun.elapsed();
    assert_eq!(devices.len(), count);
    (devices, took)
}

/// Has each device ping once; all of them are answered, or it panics.
pub(crate) async fn ping(devices: &mut [Device]) -> Duration {
    let begun = Instant::now();
    for devices in devices.chunks_mut(AT_ONCE) {
        let pings = futures_util::future::join_all(devices.iter_mut().map(Device::ping));
        let answers = tokio::time::timeout(BOUND, pings).await.expect("the hub answers in time");
        answers.into_iter().collect::<io::Result<()>>().expect("every device is still connected");
    }
    begun.elapsed()
}
