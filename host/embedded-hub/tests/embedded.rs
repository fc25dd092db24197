//! A whole hub on free ports: what devices and back ends meet at its sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use chrono::Utc;
use embedded_hub::hub::{Answer, Operation};
use embedded_hub::{EmbeddedHub, HubSettings, tls};
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{CloudMessage, Feedback};
use iothub_protocol::sas::SharedKey;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[path = "embedded/queries.rs"]
mod queries;

/// Nothing here takes so long; a test that waits in vain ends.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    hub: EmbeddedHub,
    https: u16,
    mqtt: u16,
    folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        Fixture::in_folder(tempfile::tempdir().expect("a folder")).await
    }

    async fn in_folder(folder: tempfile::TempDir) -> Fixture {
        let mqtt = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let https = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let ports = [&mqtt, &https].map(|listener| listener.local_addr().expect("an address").port());
        let data = folder.path().to_owned();
        let settings = HubSettings {
            data,
            mqtt,
            https,
            machine_name: None,
            jobs: Default::default(),
            rehearsal: Default::default(),
            connections: Default::default(),
        };
        let hub = EmbeddedHub::start(settings).await.expect("a hub");
        Fixture { hub, mqtt: ports[0], https: ports[1], folder }
    }

    async fn restart(self) -> Fixture {
        self.hub.stop().await;
        Fixture::in_folder(self.folder).await
    }

    async fn tls(&self, port: u16, versions: &[&'static SupportedProtocolVersion]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.folder.path().join(tls::CA_FILE)).expect("a certificate");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
    }

    /// One request as the policy `iothubowner`: status, head and body.
    async fn rest(&self, request: &str, headers: &[&str], body: &str) -> (u16, String, String) {
        let key = self.hub.policy_key("iothubowner").expect("a policy");
        let token = key.sign("localhost", Some("iothubowner"), Utc::now() + Duration::from_secs(60));
        let authorization = format!("Authorization: {token}");
        self.raw(request, &[&[authorization.as_str()], headers].concat(), body).await
    }

    /// As [`Fixture::rest`], with headers of one's own, and the answer's head in small letters.
    async fn raw(&self, request: &str, headers: &[&str], body: &str) -> (u16, String, String) {
        let (status, head, body) = self.raw_as_sent(request, headers, body).await;
        (status, head.to_ascii_lowercase(), body)
    }

    async fn raw_as_sent(&self, request: &str, headers: &[&str], body: &str) -> (u16, String, String) {
        let mut stream = self.tls(self.https, rustls::ALL_VERSIONS).await;
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("received");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_owned(), body.to_owned())
    }

    async fn device(&self, versions: &[&'static SupportedProtocolVersion]) -> Device {
        Device { stream: self.tls(self.mqtt, versions).await, incoming: BytesMut::new() }
    }

    /// Queue a message for `d1`, with feedback whatever becomes of it.
    async fn send(&self, message_id: &str) {
        let message = CloudMessage {
            message_id: Some(message_id.to_owned()),
            feedback: Feedback::Full,
            properties: vec![("colour".into(), "dark red".into())],
            body: b"hello".to_vec(),
            ..CloudMessage::default()
        };
        let operation = Operation::SendMessage { id: id("d1"), message: Box::new(message), wait: false };
        let queued = self.hub.handle.request(operation).await.expect("queued");
        assert!(matches!(queued, Answer::Document(_)), "{queued:?}");
    }

    /// All feedback that waits: which message, and how it ended.
    async fn feedback(&self) -> Vec<(String, String)> {
        let Ok(Answer::Document(records)) = self.hub.handle.request(Operation::ListFeedback).await else {
            return vec![];
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let records = records.as_array().expect("an array").iter();
        records.map(|record| (text(&record["originalMessageId"]), text(&record["statusCode"]))).collect()
    }

    async fn key(&self, id: &str) -> SharedKey {
        let credentials = self.hub.handle.ensure_device(&DeviceId::parse(id).expect("an id")).await.expect("a device");
        credentials.key().expect("a key").clone()
    }
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).expect("an id")
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn ended(message_id: &str, status: &str) -> (String, String) {
    (message_id.to_owned(), status.to_owned())
}

struct Device {
    stream: TlsStream<TcpStream>,
    incoming: BytesMut,
}

impl Device {
    async fn send(&mut self, packets: &[Packet]) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet.write(&mut bytes, usize::MAX).expect("a packet");
        }
        self.stream.write_all(&bytes).await.expect("sent");
    }

    /// The next packet; `None` at the connection's end.
    async fn next(&mut self) -> Option<Packet> {
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

    /// The next packet, which is a cloud-to-device message.
    async fn next_message(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) if publish.topic.contains("/messages/devicebound/") => publish,
            other => panic!("{other:?}"),
        }
    }

    async fn next_publish(&mut self) -> (String, String) {
        match self.next().await {
            Some(Packet::Publish(publish)) => {
                (publish.topic, String::from_utf8(publish.payload.to_vec()).expect("text"))
            }
            other => panic!("{other:?}"),
        }
    }
}

fn connect(id: &str, key: &SharedKey) -> Packet {
    let mut connect = Connect::new(id);
    connect.clean_session = false;
    connect.keep_alive = 60;
    let token = key.sign(&format!("localhost/devices/{id}"), None, Utc::now() + Duration::from_secs(60));
    connect.set_login(format!("localhost/{id}/?api-version=2021-04-12"), token);
    Packet::Connect(connect)
}

fn publish(topic: &str, payload: Vec<u8>) -> Packet {
    Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload))
}

#[tokio::test]
async fn a_device_that_does_not_wait_for_answers_gets_them_all() {
    let hub = Fixture::new().await;
    let key = hub.key("d1").await;
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let mut device = hub.device(versions).await;
        let mut subscribe = Subscribe::new("$iothub/twin/res/#", QoS::AtMostOnce);
        subscribe.pkid = 1;
        let get = publish("$iothub/twin/GET/?$rid=1", b" ".to_vec());
        device.send(&[connect("d1", &key), Packet::Subscribe(subscribe), get]).await;
        assert!(matches!(device.next().await, Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success));
        assert!(matches!(device.next().await, Some(Packet::SubAck(_))));
        let (topic, body) = device.next_publish().await;
        assert_eq!(topic, "$iothub/twin/res/200/?$rid=1");
        assert_eq!(body, r#"{"desired":{"$version":1},"reported":{"$version":1}}"#);
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn subscriptions_and_twins_outlive_the_hub() {
    let hub = Fixture::new().await;
    let key = hub.key("d1").await;
    let mut device = hub.device(rustls::ALL_VERSIONS).await;
    let mut subscribe = Subscribe::new("$iothub/twin/PATCH/properties/desired/#", QoS::AtLeastOnce);
    subscribe.pkid = 1;
    // As large as a report may be, in many reads.
    let report = json!({"large": vec!["x".repeat(4000); 8]}).to_string().into_bytes();
    let report = publish("$iothub/twin/PATCH/properties/reported/?$rid=7", report);
    device.send(&[connect("d1", &key), Packet::Subscribe(subscribe), report]).await;
    assert!(matches!(device.next().await, Some(Packet::ConnAck(ack)) if !ack.session_present));
    assert!(matches!(device.next().await, Some(Packet::SubAck(_))));
    assert_eq!(device.next_publish().await, ("$iothub/twin/res/204/?$rid=7&$version=2".to_owned(), String::new()));

    let hub = hub.restart().await;
    assert!(device.next().await.is_none(), "the old hub has cut the link");
    let mut device = hub.device(rustls::ALL_VERSIONS).await;
    device.send(&[connect("d1", &key)]).await;
    assert!(matches!(device.next().await, Some(Packet::ConnAck(ack)) if ack.session_present));
    let patch = r#"{"properties":{"desired":{"building":"43"}}}"#;
    let (status, _, twin) = hub.rest("PATCH /twins/d1?api-version=2021-04-12", &["If-Match: \"*\""], patch).await;
    assert_eq!(status, 200, "{twin}");
    let notice = ("$iothub/twin/PATCH/properties/desired/?$version=2", r#"{"$version":2,"building":"43"}"#);
    assert_eq!(device.next_publish().await, (notice.0.to_owned(), notice.1.to_owned()));
    let twin: Value = serde_json::from_str(&twin).expect("a twin");
    assert_eq!(twin["properties"]["reported"]["large"].as_array().map(Vec::len), Some(8));
    hub.hub.stop().await;
}

#[tokio::test]
async fn what_is_refused_ends_the_connection() {
    let hub = Fixture::new().await;
    let key = hub.key("d1").await;
    let mut stranger = hub.device(rustls::ALL_VERSIONS).await;
    stranger.send(&[connect("d1", &SharedKey::from_random([1; 32]))]).await;
    assert!(
        matches!(stranger.next().await, Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::NotAuthorized)
    );
    assert!(stranger.next().await.is_none());
    for packets in [
        [connect("d1", &key), publish("devices/d2/messages/events/", vec![])],
        [connect("d1", &key), publish("devices/d1/messages/events/", vec![0; 256 * 1024 + 1])],
        [connect("d1", &key), publish("devices/d1/messages/events/", vec![0; 512 * 1024])],
        [connect("d1", &key), connect("d1", &key)],
    ] {
        let mut device = hub.device(rustls::ALL_VERSIONS).await;
        let mut bytes = BytesMut::new();
        for packet in &packets {
            packet.write(&mut bytes, usize::MAX).expect("a packet");
        }
        // The hub may close before it has read all.
        let _ = device.stream.write_all(&bytes).await;
        while device.next().await.is_some() {}
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn every_refusal_is_json_with_its_code() {
    let hub = Fixture::new().await;
    hub.key("d1").await;
    for (request, headers, body, status, code) in [
        ("GET /nowhere", &[][..], "", 404, "iothubnotfound"),
        ("POST /devices/d1", &[], "", 405, "genericmethodnotallowed"),
        ("OPTIONS /devices/d1", &[], "", 405, "genericmethodnotallowed"),
        ("GET /devices/a%2Fb", &[], "", 400, "argumentinvalid"),
        ("GET /devices/%ff", &[], "", 400, "argumentinvalid"),
        ("GET /devices?top=1&top=2", &[], "", 400, "argumentinvalid"),
        ("GET /devices/d2", &[], "", 404, "devicenotfound"),
        ("PUT /devices/d1", &[], "{}", 409, "devicealreadyexists"),
        ("PUT /devices/d1", &["If-Match: \"x\""], "{}", 412, "preconditionfailed"),
        ("PUT /devices/d2", &["If-Match: *"], "{}", 404, "devicenotfound"),
        ("DELETE /devices/d1", &["If-Match: \u{e9}"], "", 412, "preconditionfailed"),
        ("PATCH /twins/d1", &[], "{", 400, "iothubformaterror"),
        ("PATCH /twins/d1", &[], r#"{"properties":{"desired":{"a b":1}}}"#, 400, "argumentinvalid"),
        ("POST /twins/d1/methods", &[], r#"{"methodName":"m"}"#, 404, "devicenotonline"),
        (
            "POST /devices/query",
            &["x-ms-continuation: x"],
            r#"{"query":"SELECT * FROM devices"}"#,
            400,
            "argumentinvalid",
        ),
        ("GET /jobs/v2/query?jobStatus=odd", &[], "", 400, "argumentinvalid"),
        ("GET /jobs/v2/j1", &[], "", 404, "jobnotfound"),
        ("POST /jobs/v2/j1/cancel", &[], "", 404, "jobnotfound"),
        ("DELETE /devices/d2/commands", &[], "", 404, "devicenotfound"),
        ("GET /devices/d1/commands", &[], "", 405, "genericmethodnotallowed"),
        ("DELETE /messages/serviceBound/feedback/x", &[], "", 412, "devicemessagelocklost"),
        ("POST /devices/d1/messages/deviceBound/x/abandon", &[], "", 412, "devicemessagelocklost"),
        ("GET /devices/d1/messages/deviceBound", &["IotHub-MessageLockTimeout: 4"], "", 400, "argumentinvalid"),
        ("GET /devices/d2/messages/deviceBound", &[], "", 401, "iothubunauthorized"),
    ] {
        let (found, head, answer) = hub.rest(request, headers, body).await;
        assert_eq!(found, status, "{request} {answer}");
        assert!(head.contains("content-type: application/json"), "{request} {head}");
        assert!(head.contains(&format!("iothub-errorcode: {code}\r\n")) || head.ends_with(code), "{request} {head}");
        assert!(serde_json::from_str::<Value>(&answer).is_ok_and(|answer| answer["Message"].is_string()), "{answer}");
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn the_registry_answers_as_the_sdks_expect() {
    let hub = Fixture::new().await;
    let identity =
        r#"{"deviceId":"d(1)","authentication":{"type":"sas","symmetricKey":{"primaryKey":"","secondaryKey":""}}}"#;
    let (status, _, created) = hub.rest("PUT /devices/d%281%29?api-version=2021-04-12", &[], identity).await;
    assert_eq!(status, 200, "{created}");
    // Node updates with any etag and the whole identity.
    let (status, _, updated) = hub.rest("PUT /devices/d(1)", &["If-Match: \"*\""], &created).await;
    assert_eq!(status, 200);
    let (created, updated): (Value, Value) =
        (serde_json::from_str(&created).expect("json"), serde_json::from_str(&updated).expect("json"));
    assert_eq!(created["authentication"], updated["authentication"]);
    assert_ne!(created["etag"], updated["etag"]);

    for list in ["GET /devices/?api-version=2021-04-12", "GET /devices?top=0"] {
        let (status, _, body) = hub.rest(list, &[], "").await;
        let devices: Value = serde_json::from_str(&body).expect("json");
        assert_eq!((status, devices.as_array().map(Vec::len)), (200, Some(1)), "{list}");
    }
    let bulk = json!([
        {"id": "d2", "importMode": "create", "tags": {"site": "A"}},
        {"id": "d3", "importMode": "create", "tags": {"a b": 1}},
        {"id": "d4", "importMode": "create", "status": 5},
        {"id": "d(1)", "importMode": "deleteIfMatchETag"},
    ]);
    let (status, _, result) = hub.rest("POST /devices", &[], &bulk.to_string()).await;
    let result: Value = serde_json::from_str(&result).expect("json");
    let failed: Vec<_> = result["errors"].as_array().expect("errors").iter().map(|error| &error["deviceId"]).collect();
    assert_eq!((status, failed), (400, vec![&json!("d3"), &json!("d4"), &json!("d(1)")]));
    assert_eq!(hub.rest("GET /devices/d3", &[], "").await.0, 404, "a refused item leaves nothing behind");

    let query = r#"{"query":"SELECT deviceId FROM devices"}"#;
    let (_, head, rows) = hub.rest("POST /devices/query", &["x-ms-max-item-count: 1"], query).await;
    assert_eq!(rows, r#"[{"deviceId":"d(1)"}]"#);
    let token = head.lines().find(|line| line.starts_with("x-ms-continuation: "));
    assert!(token.is_some(), "{head}");
    let (_, head, rows) = hub.rest("POST /devices/query", &["x-ms-max-item-count: nonsense"], query).await;
    assert_eq!(rows, r#"[{"deviceId":"d(1)"},{"deviceId":"d2"}]"#);
    assert!(!head.contains("x-ms-continuation"), "the last page");

    let (status, head, body) = hub.rest("DELETE /devices/d2", &["If-Match: *"], "").await;
    assert_eq!((status, body.as_str()), (204, ""), "{head}");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_policy_may_do_what_it_is_for() {
    let hub = Fixture::new().await;
    hub.key("d1").await;
    let later = Utc::now() + Duration::from_secs(60);
    let policy = |name: &str| hub.hub.policy_key(name).expect("a policy");
    let signed = |name: &str, resource: &str| policy(name).sign(resource, Some(name), later);
    let requests = [
        ("GET /devices/d1", ""),
        ("PUT /devices/d1", "{}"),
        ("GET /twins/d1", ""),
        ("DELETE /devices/d1/commands", ""),
        ("GET /messages/serviceBound/feedback", ""),
        ("GET /devices/d1/messages/deviceBound", ""),
    ];
    for (token, expected) in [
        (signed("iothubowner", "localhost"), [200, 409, 200, 200, 204, 204]),
        (signed("iothubowner", "localhost/devices"), [200, 409, 401, 401, 401, 204]),
        (signed("iothubowner", "localhost/devices/d1"), [401, 401, 401, 401, 401, 204]),
        (signed("service", "localhost"), [401, 401, 200, 200, 204, 401]),
        (signed("device", "localhost"), [401, 401, 401, 401, 401, 204]),
        (signed("registryRead", "localhost"), [200, 401, 401, 401, 401, 401]),
        (signed("registryReadWrite", "localhost"), [200, 409, 401, 401, 401, 401]),
        (policy("iothubowner").sign("localhost", None, later), [401; 6]),
        (policy("iothubowner").sign("localhost", Some("service"), later), [401; 6]),
        (policy("iothubowner").sign("localhost", Some("iothubowner"), Utc::now()), [401; 6]),
        (hub.key("d1").await.sign("localhost/devices/d1", None, later), [401, 401, 401, 401, 401, 204]),
        ("SharedAccessSignature".to_owned(), [401; 6]),
    ] {
        for ((request, body), expected) in requests.into_iter().zip(expected) {
            let (status, _, answer) = hub.raw(request, &[&format!("Authorization: {token}")], body).await;
            assert_eq!(status, expected, "{request} {answer}");
            assert!(!answer.contains("sig="), "{answer}");
        }
    }
    assert_eq!(hub.raw("GET /devices/d1", &[], "").await.0, 401);
    hub.hub.stop().await;
}

#[tokio::test]
async fn messages_outlive_the_hub_and_reach_the_device_until_it_acknowledges_them() {
    let hub = Fixture::new().await;
    let key = hub.key("d1").await;
    hub.send("m1").await;
    hub.send("m2").await;
    let hub = hub.restart().await;
    let mut device = hub.device(rustls::ALL_VERSIONS).await;
    let mut subscribe = Subscribe::new("devices/d1/messages/devicebound/#", QoS::AtLeastOnce);
    subscribe.pkid = 1;
    device.send(&[connect("d1", &key), Packet::Subscribe(subscribe)]).await;
    assert!(matches!(device.next().await, Some(Packet::ConnAck(ack)) if !ack.session_present));
    assert!(matches!(device.next().await, Some(Packet::SubAck(_))));
    let first = device.next_message().await;
    let topic = "devices/d1/messages/devicebound/%24.mid=m1&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound\
                 &iothub-ack=full&colour=dark%20red";
    assert_eq!((first.topic.as_str(), &first.payload[..], first.qos), (topic, &b"hello"[..], QoS::AtLeastOnce));
    assert!(!first.dup && device.next_message().await.topic.contains("m2"));
    device.send(&[Packet::PubAck(PubAck::new(first.pkid)), publish("$iothub/twin/GET/?$rid=1", b" ".to_vec())]).await;
    // The hub takes what a device says in order.
    assert!(device.next_publish().await.0.starts_with("$iothub/twin/res/200/"));
    assert_eq!(hub.feedback().await, [ended("m1", "Success")]);

    let hub = hub.restart().await;
    let mut device = hub.device(rustls::ALL_VERSIONS).await;
    device.send(&[connect("d1", &key)]).await;
    assert!(matches!(device.next().await, Some(Packet::ConnAck(ack)) if ack.session_present));
    assert!(
        device.next_message().await.topic.contains("m2"),
        "the subscription is kept, and what was not acknowledged"
    );
    let (status, _, purged) = hub.rest("DELETE /devices/d1/commands?api-version=2021-04-12", &[], "").await;
    assert_eq!((status, purged.as_str()), (200, r#"{"deviceId":"d1","moduleId":null,"totalMessagesPurged":1}"#));
    assert_eq!(hub.feedback().await, [ended("m1", "Success"), ended("m2", "Purged")]);
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_device_takes_and_settles_its_messages_over_https() {
    let hub = Fixture::new().await;
    let key = hub.key("d1").await;
    let token = key.sign("localhost/devices/d1", None, Utc::now() + Duration::from_secs(60));
    let authorization = format!("Authorization: {token}");
    for message_id in ["m1", "m2", "m3"] {
        hub.send(message_id).await;
    }
    let queue = "/devices/d1/messages/deviceBound";
    let take = async |count: &str, message_id: &str| {
        let (status, head, body) = hub.raw(&format!("GET {queue}?api-version=2021-04-12"), &[&authorization], "").await;
        assert_eq!((status, body.as_str()), (200, "hello"), "{head}");
        assert_eq!(header(&head, "iothub-messageid"), Some(message_id), "{head}");
        assert_eq!(header(&head, "iothub-deliverycount"), Some(count), "{head}");
        assert_eq!(header(&head, "iothub-app-colour"), Some("dark red"), "{head}");
        header(&head, "etag").expect("a lock").trim_matches('"').to_owned()
    };
    let settle = async |request: String| hub.raw(&request, &[&authorization], "").await.0;
    let (first, second) = (take("0", "m1").await, take("0", "m2").await);
    assert_eq!(settle(format!("DELETE {queue}/{first}?api-version=2021-04-12")).await, 204);
    assert_eq!(settle(format!("DELETE {queue}/{first}")).await, 412, "once");
    assert_eq!(settle(format!("POST {queue}/{second}/abandon")).await, 204);
    let second = take("1", "m2").await;
    assert_eq!(settle(format!("DELETE {queue}/{second}?api-version=2021-04-12&reject")).await, 204);
    let third = take("0", "m3").await;
    assert_eq!(hub.raw(&format!("GET {queue}"), &[&authorization], "").await.0, 204, "all is taken");
    assert_eq!(hub.raw(&format!("DELETE {queue}/{third}"), &[], "").await.0, 401);
    let other = hub.key("d2").await.sign("localhost/devices/d2", None, Utc::now() + Duration::from_secs(60));
    assert_eq!(hub.raw(&format!("GET {queue}"), &[&format!("Authorization: {other}")], "").await.0, 401);
    assert_eq!(hub.feedback().await, [ended("m1", "Success"), ended("m2", "Rejected")]);

    let taken = "/messages/servicebound/feedback?api-version=2021-04-12";
    let (status, head, body) = hub.rest(&format!("GET {taken}"), &[], "").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(header(&head, "content-type"), Some("application/vnd.microsoft.iothub.feedback.json"));
    let records: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&records[0]["originalMessageId"], &records[1]["description"]), (&json!("m1"), &json!("Rejected")));
    assert_eq!(hub.rest(&format!("GET {taken}"), &[], "").await.0, 204);
    let lock = header(&head, "etag").expect("a lock").trim_matches('"');
    let abandon = format!("POST /messages/serviceBound/feedback/{lock}/abandon");
    assert_eq!(hub.rest(&abandon, &[], "").await.0, 204);
    let (_, head, _) = hub.rest(&format!("GET {taken}"), &[], "").await;
    let lock = header(&head, "etag").expect("a lock").trim_matches('"');
    assert_eq!(hub.rest(&format!("DELETE /messages/serviceBound/feedback/{lock}"), &[], "").await.0, 204);
    assert_eq!(hub.feedback().await, []);
    hub.hub.stop().await;
}
