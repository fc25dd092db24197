//! A whole hub on free ports for the tests of its services' side.

#![allow(dead_code, reason = "each test target uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use chrono::{TimeDelta, Utc};
use embedded_hub::rehearsal::RehearsalSettings;
use embedded_hub::{ConnectionLimits, EmbeddedHub, HubSettings, tls};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use iothub_protocol::id::DeviceId;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish, Subscribe};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Nothing here takes so long; a test that waits in vain ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const POLICIES: [&str; 5] = ["iothubowner", "service", "device", "registryRead", "registryReadWrite"];

/// How a client comes.
#[derive(Default)]
pub(crate) struct Client {
    pub(crate) certificate: Option<Arc<dyn ResolvesClientCert>>,
    /// Of TLS; all, if none is named.
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
}

pub(crate) struct Service {
    pub(crate) hub: EmbeddedHub,
    https: u16,
    mqtt: u16,
    folder: tempfile::TempDir,
}

/// What a request was answered with.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The name of the error in the envelope of either dialect.
    pub(crate) fn error(&self) -> String {
        let message = self.json()["Message"].as_str().unwrap_or_default().to_owned();
        if let Some(rest) = message.strip_prefix("ErrorCode:") {
            return rest.split(';').next().unwrap_or_default().to_owned();
        }
        let inner: Value = serde_json::from_str(&message).unwrap_or_default();
        let number = inner["errorCode"].as_u64().and_then(|number| u32::try_from(number).ok());
        let code = number.and_then(iothub_protocol::error::ErrorCode::by_number);
        code.map(|code| code.name().to_owned()).unwrap_or_default()
    }
}

impl Service {
    pub(crate) async fn new() -> Service {
        Service::rehearsing(RehearsalSettings::default(), tempfile::tempdir().expect("a folder")).await
    }

    pub(crate) async fn rehearsing(rehearsal: RehearsalSettings, folder: tempfile::TempDir) -> Service {
        Service::within(ConnectionLimits::default(), rehearsal, folder).await
    }

    /// With so many connections.
    pub(crate) async fn with_room_for(all: usize, unknown: usize) -> Service {
        let limits = ConnectionLimits { all, unknown };
        Service::within(limits, RehearsalSettings::default(), tempfile::tempdir().expect("a folder")).await
    }

    async fn within(connections: ConnectionLimits, rehearsal: RehearsalSettings, folder: tempfile::TempDir) -> Service {
        let mqtt = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let https = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let ports = [&mqtt, &https].map(|listener| listener.local_addr().expect("an address").port());
        let data = folder.path().to_owned();
        let (machine_name, jobs) = (None, Default::default());
        let settings = HubSettings { data, mqtt, https, machine_name, jobs, rehearsal, connections };
        let hub = EmbeddedHub::start(settings).await.expect("a hub");
        Service { hub, mqtt: ports[0], https: ports[1], folder }
    }

    pub(crate) async fn restart(self) -> Service {
        self.restart_rehearsing(RehearsalSettings::default()).await
    }

    pub(crate) async fn restart_rehearsing(self, rehearsal: RehearsalSettings) -> Service {
        self.hub.stop().await;
        Service::rehearsing(rehearsal, self.folder).await
    }

    /// A header's value for a policy, good for a minute.
    pub(crate) fn token(&self, policy: &str) -> String {
        self.token_for(policy, "localhost", TimeDelta::seconds(60))
    }

    pub(crate) fn token_for(&self, policy: &str, resource: &str, life: TimeDelta) -> String {
        self.hub.policy_key(policy).expect("a policy").sign(resource, Some(policy), Utc::now() + life)
    }

    /// A request of the hub's owner.
    pub(crate) async fn owner(&self, request: &str, headers: &[&str], body: &str) -> Reply {
        self.with_token(&self.token("iothubowner"), request, headers, body).await
    }

    /// Ask until the answer is as it should be; `what` names that.
    pub(crate) async fn until(&self, path: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let asked = async {
            loop {
                let reply = self.owner(&format!("GET {path}"), &[], "").await;
                if reply.status == 200 && is_so(&reply.json()) {
                    return reply.json();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(found) => found,
            Err(_) => panic!("{what}: {:?}", self.owner(&format!("GET {path}"), &[], "").await),
        }
    }

    pub(crate) async fn with_token(&self, token: &str, request: &str, headers: &[&str], body: &str) -> Reply {
        let authorization = format!("Authorization: {token}");
        self.plain(request, &[&[authorization.as_str()], headers].concat(), body.as_bytes()).await
    }

    /// A request with these headers and no others that matter.
    pub(crate) async fn plain(&self, request: &str, headers: &[&str], body: &[u8]) -> Reply {
        let stream = self.tls(self.https).await;
        Service::talk(stream, request, headers, body).await
    }

    /// A request without a body, of such a client.
    pub(crate) async fn ask(&self, client: Client, request: &str, headers: &[&str]) -> Reply {
        let stream = self.https(client).await;
        Service::talk(stream, request, headers, b"").await
    }

    async fn talk(mut stream: TlsStream<TcpStream>, request: &str, headers: &[&str], body: &[u8]) -> Reply {
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(body).await.expect("sent");
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("received");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// A stream of server-sent events, after its first words.
    pub(crate) async fn events(&self, target: &str, headers: &[&str]) -> Events {
        let mut stream = self.tls(self.https).await;
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        // HTTP/1.0 has no chunks: the body comes as it is.
        let head = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut events = Events { stream, held: String::new() };
        let head = events.until("\r\n\r\n").await.expect("a head");
        assert!(head.contains(" 200 ") && head.to_ascii_lowercase().contains("text/event-stream"), "{head}");
        assert!(events.until("\n\n").await.expect("a first frame").contains("retry: "));
        events
    }

    async fn tls(&self, port: u16) -> TlsStream<TcpStream> {
        self.tls_as(port, Client::default()).await
    }

    async fn tls_as(&self, port: u16, client: Client) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.folder.path().join(tls::CA_FILE)).expect("a certificate");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = if client.versions.is_empty() { rustls::ALL_VERSIONS.to_vec() } else { client.versions };
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions);
        let builder = builder.expect("versions").with_root_certificates(roots);
        let config = match client.certificate {
            Some(certificate) => builder.with_client_cert_resolver(certificate),
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
    }

    /// A connection for MQTT.
    pub(crate) async fn link(&self, client: Client) -> Device {
        Device { stream: self.tls_as(self.mqtt, client).await, incoming: BytesMut::new() }
    }

    /// A connection to the listener for MQTT, without TLS as yet.
    pub(crate) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.mqtt)).await.expect("a connection")
    }

    /// A connection for HTTPS.
    pub(crate) async fn https(&self, client: Client) -> TlsStream<TcpStream> {
        self.tls_as(self.https, client).await
    }

    /// A request on the operator's socket, as far as its router goes: the status and the answer.
    pub(crate) async fn operator(&self, method: &str, target: &str, body: String) -> (u16, Value) {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let service = TowerToHyperService::new(self.hub.operator_router());
        let serve = http1::Builder::new().serve_connection(TokioIo::new(far), service);
        let talk = async {
            let length = body.len();
            let head = format!("{method} {target} HTTP/1.1\r\nHost: latch\r\nConnection: close\r\n");
            let text = format!("{head}Content-Length: {length}\r\n\r\n{body}");
            near.write_all(text.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            near.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        let (answer, served) = tokio::join!(talk, serve);
        served.expect("served");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).expect("JSON"))
    }

    /// Make sure of a device, and connect it.
    pub(crate) async fn device(&self, id: &str) -> Device {
        let mut device = self.stranger().await;
        device.send(&[self.connect(id).await]).await;
        assert!(matches!(device.next().await, Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success));
        device
    }

    /// A connection on which nothing has been said.
    pub(crate) async fn stranger(&self) -> Device {
        Device { stream: self.tls(self.mqtt).await, incoming: BytesMut::new() }
    }

    /// Make sure of a device; what it connects with.
    pub(crate) async fn connect(&self, id: &str) -> Packet {
        let id = DeviceId::parse(id).expect("an id");
        let credentials = self.hub.handle.ensure_device(&id).await.expect("a device");
        let mut connect = Connect::new(id.as_str());
        connect.keep_alive = 60;
        let token = credentials.key().expect("a key").sign(
            &format!("localhost/devices/{id}"),
            None,
            Utc::now() + TimeDelta::seconds(60),
        );
        connect.set_login(format!("localhost/{id}/?api-version=2021-04-12"), token);
        Packet::Connect(connect)
    }
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

    pub(crate) async fn publish(&mut self, topic: &str, payload: &str) {
        self.send(&[Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload))]).await;
    }

    /// The next packet, which is a publication: its topic and its body.
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

    /// Report properties, and wait until they are taken.
    pub(crate) async fn report(&mut self, patch: &Value) {
        self.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", &patch.to_string()).await;
        match self.next().await {
            Some(Packet::Publish(answer)) if answer.topic.starts_with("$iothub/twin/res/204/") => {}
            other => panic!("{other:?}"),
        }
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

    pub(crate) async fn leave(mut self) {
        self.send(&[Packet::Disconnect]).await;
        while self.next().await.is_some() {}
    }
}

pub(crate) struct Events {
    stream: TlsStream<TcpStream>,
    held: String,
}

impl Events {
    /// The next event's document, whatever is between.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            let frame = self.frame().await.expect("the stream goes on");
            if let Some(data) = frame.lines().find_map(|line| line.strip_prefix("data: ")) {
                return serde_json::from_str(data).expect("JSON");
            }
        }
    }

    /// The next frame as it is; `None` at the stream's end.
    pub(crate) async fn frame(&mut self) -> Option<String> {
        self.until("\n\n").await
    }

    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some((frame, rest)) = self.held.split_once(end) {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.held = rest;
                return Some(frame);
            }
            let mut bytes = vec![0; 64 * 1024];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut bytes)).await.expect("in time");
            match read {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.held.push_str(std::str::from_utf8(&bytes[..count]).expect("text")),
            }
        }
    }
}
