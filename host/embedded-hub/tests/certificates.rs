//! Devices that connect with certificates, and by WebSocket, as they meet the hub at its sockets.

mod support;

use std::sync::Arc;

use bytes::BytesMut;
use chrono::{TimeDelta, Utc};
use iothub_protocol::id::DeviceId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SigningKey as _};
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use support::{Client, PATIENCE, Service};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use x509_cert::certificate::Version;
use x509_cert::der::asn1::BitString;
use x509_cert::der::{Decode as _, Encode as _};

/// A certificate with its key, and those that lead to its authority.
struct Made {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    issuer: Issuer<'static, KeyPair>,
}

impl Made {
    fn new(name: &str, is_ca: bool, by: Option<&Made>) -> Made {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let certificate = match by {
            Some(by) => params.signed_by(&key, &by.issuer),
            None => params.self_signed(&key),
        };
        let own = certificate.expect("a certificate").der().clone();
        let between = by.map(|by| by.chain.clone()).unwrap_or_default();
        let chain = [vec![own], between].concat();
        let again = KeyPair::try_from(key.serialize_der()).expect("a key");
        Made { chain, issuer: Issuer::new(params, again), key }
    }

    /// The same of version 1, as OpenSSL's `x509 -req -signkey` makes it.
    fn of_version_1(name: &str) -> Made {
        let mut made = Made::new(name, false, None);
        let mut certificate = x509_cert::Certificate::from_der(&made.chain[0]).expect("a certificate");
        certificate.tbs_certificate.version = Version::V1;
        certificate.tbs_certificate.extensions = None;
        let signed = made.key.sign(&certificate.tbs_certificate.to_der().expect("DER")).expect("a signature");
        certificate.signature = BitString::from_bytes(&signed).expect("bits");
        made.chain = vec![certificate.to_der().expect("DER").into()];
        made
    }

    fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("a key");
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain.clone(), key)))
    }

    fn thumbprint(&self, algorithm: &'static ring::digest::Algorithm) -> String {
        let digest = ring::digest::digest(algorithm, &self.chain[0]);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.chain[0]);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }
}

fn connect(device: &str, password: &str) -> Packet {
    let mut connect = Connect::new(device);
    connect.keep_alive = 60;
    connect.set_login(format!("localhost/{device}/?api-version=2021-04-12"), password);
    Packet::Connect(connect)
}

async fn create(hub: &Service, device: &str, authentication: Value) -> Value {
    let body = json!({"deviceId": device, "authentication": authentication}).to_string();
    let reply = hub.owner(&format!("PUT /devices/{device}"), &[], &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// The code that a device's CONNECT without a password is answered with.
async fn mqtt(hub: &Service, client: Client, device: &str) -> ConnectReturnCode {
    let mut link = hub.link(client).await;
    link.send(&[connect(device, "")]).await;
    match link.next().await {
        Some(Packet::ConnAck(ack)) => ack.code,
        other => panic!("{other:?}"),
    }
}

fn with(made: &Made) -> Client {
    Client { certificate: Some(made.resolver()), ..Client::default() }
}

#[tokio::test]
async fn a_device_connects_with_its_own_certificate() {
    let hub = Service::new().await;
    let (first, next, old, other) = (
        Made::new("x", false, None),
        Made::new("x", false, None),
        Made::of_version_1("x"),
        Made::new("x", false, None),
    );
    let thumbprint = json!({
        "primaryThumbprint": first.thumbprint(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY),
        "secondaryThumbprint": next.thumbprint(&ring::digest::SHA256),
    });
    let identity = create(&hub, "d1", json!({"type": "selfSigned", "x509Thumbprint": thumbprint})).await;
    let no_keys = json!({"primaryKey": null, "secondaryKey": null});
    let shown = json!({"type": "selfSigned", "x509Thumbprint": thumbprint, "symmetricKey": no_keys});
    assert_eq!(identity["authentication"], shown);
    let twin = hub.owner("GET /twins/d1", &[], "").await.json();
    assert_eq!((&twin["authenticationType"], &twin["x509Thumbprint"]), (&json!("selfSigned"), &thumbprint));
    let old_thumbprint = json!({"primaryThumbprint": old.thumbprint(&ring::digest::SHA256)});
    create(&hub, "d2", json!({"type": "selfSigned", "x509Thumbprint": old_thumbprint})).await;
    create(&hub, "d3", json!({"type": "sas"})).await;

    let hub = hub.restart().await;
    assert_eq!(hub.owner("GET /devices/d1", &[], "").await.json()["authentication"], shown, "after a restart");
    let (yes, no) = (ConnectReturnCode::Success, ConnectReturnCode::NotAuthorized);
    for version in [&TLS12, &TLS13] {
        for (name, made, device, expected) in [
            ("primary", Some(&first), "d1", yes),
            ("secondary", Some(&next), "d1", yes),
            ("another's", Some(&other), "d1", no),
            ("none", None, "d1", no),
            ("of version 1", Some(&old), "d2", yes),
            ("of version 1, another's", Some(&old), "d1", no),
            ("a device with keys", Some(&first), "d3", no),
            ("an unknown device", Some(&first), "d4", no),
        ] {
            let certificate = made.map(Made::resolver);
            let code = mqtt(&hub, Client { certificate, versions: vec![version] }, device).await;
            assert_eq!(code, expected, "{name} {version:?}");
        }
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_device_connects_with_a_certificate_of_a_known_authority() {
    let hub = Service::new().await;
    create(&hub, "d1", json!({"type": "certificateAuthority"})).await;
    let root = Made::new("factory", true, None);
    let middle = Made::new("line 1", true, Some(&root));
    let (direct, far) = (Made::new("d1", false, Some(&root)), Made::new("d1", false, Some(&middle)));
    let other_device = Made::new("d2", false, Some(&root));
    let (yes, no) = (ConnectReturnCode::Success, ConnectReturnCode::NotAuthorized);
    assert_eq!(mqtt(&hub, with(&direct), "d1").await, no, "nobody knows the authority yet");

    let added = hub.operator("PUT", "/certificates/factory", root.pem()).await;
    assert_eq!((added.0, &added.1["subject"]), (201, &json!("factory")));
    assert_eq!(hub.operator("PUT", "/certificates/factory", root.pem()).await.0, 400, "the name is taken");
    assert_eq!(hub.operator("PUT", "/certificates/d1", direct.pem()).await.0, 400, "no authority");
    let hub = hub.restart().await;
    let list = hub.operator("GET", "/certificates", String::new()).await.1;
    assert_eq!((list.as_array().map(Vec::len), &list[0]["name"]), (Some(1), &json!("factory")));
    for (name, made, expected) in [
        ("by the root", &direct, yes),
        ("by one below it", &far, yes),
        ("for another device", &other_device, no),
        ("of nobody", &Made::new("d1", false, None), no),
        ("of another root of that name", &Made::new("d1", false, Some(&Made::new("factory", true, None))), no),
    ] {
        assert_eq!(mqtt(&hub, with(made), "d1").await, expected, "{name}");
    }
    assert_eq!(hub.operator("DELETE", "/certificates/factory", String::new()).await.0, 200);
    assert_eq!(hub.operator("DELETE", "/certificates/factory", String::new()).await.0, 404);
    assert_eq!(mqtt(&hub, with(&direct), "d1").await, no, "the authority has gone");
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_certificate_is_good_for_https_too() {
    let hub = Service::new().await;
    let (own, other) = (Made::new("x", false, None), Made::new("x", false, None));
    let thumbprint = json!({"primaryThumbprint": own.thumbprint(&ring::digest::SHA256)});
    create(&hub, "d1", json!({"type": "selfSigned", "x509Thumbprint": thumbprint})).await;
    let receive = "GET /devices/d1/messages/deviceBound";
    assert_eq!(hub.ask(with(&own), receive, &[]).await.status, 204);
    let refused = hub.ask(with(&other), receive, &[]).await;
    assert_eq!((refused.status, refused.error().as_str()), (401, "IotHubUnauthorized"));
    assert!(refused.body.contains("Thumbprint does not match configuration"), "{refused:?}");
    assert_eq!(hub.ask(Client::default(), receive, &[]).await.status, 401);
    assert_eq!(hub.ask(with(&own), "GET /devices/d1", &[]).await.status, 401, "a device is no back end");
    hub.hub.stop().await;
}

/// A frame of a client, masked with zeroes.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let size = u16::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&[0x80 | opcode, 0x80 | 126], &size[..], &[0; 4], payload].concat()
}

#[tokio::test]
async fn mqtt_goes_by_web_socket() {
    let hub = Service::new().await;
    let own = Made::new("x", false, None);
    let thumbprint = json!({"primaryThumbprint": own.thumbprint(&ring::digest::SHA256)});
    create(&hub, "d1", json!({"type": "selfSigned", "x509Thumbprint": thumbprint})).await;
    let d2 = hub.hub.handle.ensure_device(&DeviceId::parse("d2").expect("an id")).await.expect("a device");
    let token = d2.key().expect("a key").sign("localhost/devices/d2", None, Utc::now() + TimeDelta::seconds(60));
    // Long, so that the frames are of the form that the test makes.
    let pad = "x".repeat(400);
    for (client, device, password, expected) in [
        (with(&own), "d1", "", ConnectReturnCode::Success),
        (Client::default(), "d1", "", ConnectReturnCode::NotAuthorized),
        (Client::default(), "d2", token.as_str(), ConnectReturnCode::Success),
    ] {
        let mut stream = hub.https(client).await;
        let handshake = "GET /$iothub/websocket?iothub-no-client-cert=true HTTP/1.1\r\nHost: localhost:443\r\n\
                         Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
        stream.write_all(handshake.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("in time").expect("a head"));
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        assert!(head.contains("sec-websocket-protocol: mqtt"), "{head}");

        let mut packets = BytesMut::new();
        let mut packet = Connect::new(device);
        packet.set_login(format!("localhost/{device}/?api-version=2021-04-12&DeviceClientType={pad}"), password);
        Packet::Connect(packet).write(&mut packets, usize::MAX).expect("a packet");
        // One packet in two messages, as MQTT allows.
        let (first, second) = packets.split_at(150);
        let messages = [frame(2, first), frame(2, second)].concat();
        let mut answer = [0; 6];
        let talk = async {
            stream.write_all(&messages).await.expect("sent");
            stream.read_exact(&mut answer).await.expect("an answer");
        };
        tokio::time::timeout(PATIENCE, talk).await.expect("in time");
        let mut ack = BytesMut::from(&answer[2..]);
        let ack = Packet::read(&mut ack, usize::MAX).expect("a packet");
        assert_eq!(answer[..2], [0x82, 4], "{answer:?}");
        assert!(matches!(&ack, Packet::ConnAck(ack) if ack.code == expected), "{device} {ack:?}");
    }
    let reply = hub.owner("GET /$iothub/websocket", &[], "").await;
    assert_eq!((reply.status, reply.error().as_str()), (400, "GenericBadRequest"));
    // The hub ends what came by WebSocket as it ends the rest.
    tokio::time::timeout(PATIENCE, hub.hub.stop()).await.expect("in time");
}
