//! A hub on free ports, and both sides of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use chrono::Utc;
use embedded_hub::rehearsal::RehearsalSettings;
use embedded_hub::{EmbeddedHub, HubSettings, tls};
use iothub_protocol::id::DeviceId;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish, Subscribe};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Nothing here takes so long; a test that waits in vain ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Fixture {
    pub(crate) hub: EmbeddedHub,
    pub(crate) folder: tempfile::TempDir,
    https: u16,
    mqtt: u16,
}

/// What a back end is answered.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Fixture {
    pub(crate) async fn calm() -> Fixture {
        Fixture::new(RehearsalSettings::default()).await
    }

    pub(crate) async fn new(rehearsal: RehearsalSettings) -> Fixture {
        Fixture::in_folder(rehearsal, tempfile::tempdir().expect("a folder")).await
    }

    pub(crate) async fn in_folder(rehearsal: RehearsalSettings, folder: tempfile::TempDir) -> Fixture {
        let mqtt = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let https = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let ports = [&mqtt, &https].map(|listener| listener.local_addr().expect("an address").port());
        let data = folder.path().to_owned();
        let settings = HubSettings { data, mqtt, https, machine_name: None, jobs: Default::default(), rehearsal };
        let hub = EmbeddedHub::start(settings).await.expect("a hub");
        Fixture { hub, mqtt: ports[0], https: ports[1], folder }
    }

    async fn tls(&self, port: u16) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.folder.path().join(tls::CA_FILE)).expect("a certificate");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
    }

    /// One request as the policy `iothubowner`.
    pub(crate) async fn rest(&self, request: &str, body: &str) -> Reply {
        let key = self.hub.policy_key("iothubowner").expect("a policy");
        let token = key.sign("localhost", Some("iothubowner"), Utc::now() + Duration::from_secs(60));
        let mut stream = self.tls(self.https).await;
        let length = body.len();
        let text = format!(
            "{request}?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: {token}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("received");
        reply(answer)
    }

    /// A TLS connection on which nothing has been said.
    pub(crate) async fn stranger(&self) -> Device {
        Device { stream: self.tls(self.mqtt).await, incoming: BytesMut::new() }
    }

    /// A connected device, with a session that is kept.
    pub(crate) async fn device(&self, id: &str) -> Device {
        let mut device = self.stranger().await;
        device.send(&[self.connect(id).await]).await;
        assert!(matches!(device.next().await, Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success));
        device
    }

    /// The CONNECT of a device, which is made if there is none.
    pub(crate) async fn connect(&self, id: &str) -> Packet {
        let credentials = self.hub.handle.ensure_device(&DeviceId::parse(id).expect("an id")).await.expect("a device");
        let mut connect = Connect::new(id);
        connect.clean_session = false;
        connect.keep_alive = 60;
        let token = credentials.key().expect("a key").sign(
            &format!("localhost/devices/{id}"),
            None,
            Utc::now() + Duration::from_secs(60),
        );
        connect.set_login(format!("localhost/{id}/?api-version=2021-04-12"), token);
        Packet::Connect(connect)
    }

    /// The bad days under way.
    pub(crate) fn bad_days(&self) -> Vec<Value> {
        let shown = self.hub.handle.rehearsal().to_json();
        shown["badDays"].as_array().expect("an array").clone()
    }

    /// Until the only bad day under way has gone wrong so often.
    pub(crate) async fn until_count(&self, count: u64) {
        let reached = async {
            while self.bad_days().first().is_none_or(|day| day["count"] != count) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("in time");
    }
}

pub(crate) fn reply(answer: Vec<u8>) -> Reply {
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

pub(crate) struct Device {
    stream: TlsStream<TcpStream>,
    incoming: BytesMut,
}

impl Device {
    pub(crate) async fn send(&mut self, packets: &[Packet]) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet.write(&mut bytes, usize::MAX).expect("a packet");
        }
        self.stream.write_all(&bytes).await.expect("sent");
    }

    /// The next packet; `None` at the connection's end.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Ok(packet) = Packet::read(&mut self.incoming, usize::MAX) {
                return Some(packet);
            }
            let read = self.stream.read_buf(&mut self.incoming);
            if tokio::time::timeout(PATIENCE, read).await.expect("in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn next_publish(&mut self) -> (String, String) {
        match self.next().await {
            Some(Packet::Publish(publish)) => {
                (publish.topic, String::from_utf8(publish.payload.to_vec()).expect("text"))
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn subscribe(&mut self, filter: &str) {
        self.send(&[Packet::Subscribe(Subscribe { pkid: 1, ..Subscribe::new(filter, QoS::AtMostOnce) })]).await;
        assert!(matches!(self.next().await, Some(Packet::SubAck(_))));
    }
}

/// A message of `d1` with QoS 1.
pub(crate) fn message(packet_id: u16) -> Packet {
    let publish = Publish::new("devices/d1/messages/events/", QoS::AtLeastOnce, "{}");
    Packet::Publish(Publish { pkid: packet_id, ..publish })
}

pub(crate) fn twin_get(rid: u32) -> Packet {
    Packet::Publish(Publish::new(format!("$iothub/twin/GET/?$rid={rid}"), QoS::AtMostOnce, " "))
}
