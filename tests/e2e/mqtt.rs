//! A device that says to the hub, over TLS, whatever it is told to.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use chrono::{TimeDelta, Utc};
use iothub_protocol::connection_string::DeviceConnectionString;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::back_end;

/// No answer of the hub takes long; a hub that keeps a connection which it should close never answers.
const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// Beyond what a hub takes, so that it can be shown too much.
const MAX_PACKET: usize = 4 * 1024 * 1024;

/// A TLS connection to the MQTT port of a hub.
pub(crate) struct Link {
    stream: StreamOwned<ClientConnection, TcpStream>,
    incoming: BytesMut,
}

/// The connection string that the hub has written for a device.
pub(crate) fn connection(data: &Path, device: &str) -> DeviceConnectionString {
    let file = data.join("devices").join(format!("{device}.connstr"));
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    DeviceConnectionString::parse(text.trim()).expect("a connection string")
}

/// The CONNECT of a device with nothing wrong about it.
pub(crate) fn connect_packet(connection: &DeviceConnectionString) -> Connect {
    let (host, device) = (connection.host.authority(), &connection.device_id);
    let resource = format!("{host}/devices/{device}");
    let mut connect = Connect::new(device.as_str());
    let password = connection.key().expect("a key").sign(&resource, None, Utc::now() + TimeDelta::hours(1));
    connect.set_login(format!("{host}/{device}/?api-version=2021-04-12"), password);
    connect
}

/// A plain TCP connection to the MQTT port.
pub(crate) fn tcp(connection: &DeviceConnectionString) -> TcpStream {
    let port = connection.host.port.expect("a hub on free ports names its port");
    let stream = TcpStream::connect((connection.host.name.as_str(), port)).expect("the hub listens");
    stream.set_read_timeout(Some(ANSWER_BOUND)).expect("a bound that is not zero");
    stream
}

impl Link {
    /// TLS, and nothing said yet.
    pub(crate) fn open(data: &Path, connection: &DeviceConnectionString) -> Link {
        let name = ServerName::try_from(connection.host.name.clone()).expect("a host name");
        let session = ClientConnection::new(back_end::tls(data), name).expect("TLS settings");
        Link { stream: StreamOwned::new(session, tcp(connection)), incoming: BytesMut::new() }
    }

    /// Connected as the device.
    pub(crate) fn connected(data: &Path, connection: &DeviceConnectionString) -> Link {
        let mut link = Link::open(data, connection);
        link.send(Packet::Connect(connect_packet(connection)));
        assert_eq!(link.connack(), Some(ConnectReturnCode::Success));
        link
    }

    pub(crate) fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, MAX_PACKET).expect("a packet that can be written");
        self.send_bytes(&bytes);
    }

    /// If the hub closes meanwhile, reading shows it.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes).and_then(|()| self.stream.flush()));
    }

    /// The next packet; `None` if the hub closes the connection instead.
    pub(crate) fn receive(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.incoming, MAX_PACKET) {
                Ok(packet) => return Some(packet),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the hub says what is no MQTT: {error}"),
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.incoming.extend_from_slice(&bytes[..count]),
                Err(error) if is_close(&error) => return None,
                Err(error) => panic!("the hub neither answers nor closes the connection: {error}"),
            }
        }
    }

    /// The hub's verdict; `None` if it closes the connection without one.
    pub(crate) fn connack(&mut self) -> Option<ConnectReturnCode> {
        match self.receive()? {
            Packet::ConnAck(ack) => Some(ack.code),
            other => panic!("instead of CONNACK the hub sends {other:?}"),
        }
    }
}

/// Whether an error of a read says that the other side has closed.
pub(crate) fn is_close(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
