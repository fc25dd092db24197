//! Against a scripted hub on a real TLS socket.

use iothub_protocol::error::ErrorCode;
use iothub_protocol::sas::Token as SasToken;
use rustls::pki_types::PrivateKeyDer;
use rustls::{RootCertStore, ServerConfig, crypto};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;

const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";

/// A hub that gives these answers in this order, on one connection, and then returns what it was asked.
struct Hub {
    roots: RootCertStore,
    port: u16,
    requests: JoinHandle<Vec<String>>,
}

impl Hub {
    async fn start(answers: Vec<String>) -> Hub {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a server config");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a root");
        let requests = tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), answers));
        Hub { roots, port, requests }
    }

    fn client(&self, roots: &RootCertStore) -> ServiceClient {
        client(&format!("localhost:{}", self.port), roots)
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, answers: Vec<String>) -> Vec<String> {
    let (socket, _) = listener.accept().await.expect("a connection");
    let Ok(mut stream) = acceptor.accept(socket).await else { return Vec::new() };
    let mut requests = Vec::new();
    for answer in answers {
        let mut request = String::new();
        while !is_complete(&request) {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).await.expect("a request");
            assert_ne!(count, 0, "closed in the middle of a request");
            request.push_str(std::str::from_utf8(&bytes[..count]).expect("text"));
        }
        requests.push(request);
        stream.write_all(answer.as_bytes()).await.expect("answered");
    }
    requests
}

fn is_complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    body.len() >= header(head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let pairs = request.lines().filter_map(|line| line.split_once(": "));
    pairs.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn client(host: &str, roots: &RootCertStore) -> ServiceClient {
    let text = format!("HostName={host};SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}");
    let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    ServiceClient::new(ServiceConnectionString::parse(&text).expect("a string"), Arc::new(tls)).expect("a client")
}

fn device() -> Address {
    Address::parse("d1").expect("an address")
}

fn problem(error: ServiceError) -> Problem {
    match error {
        ServiceError::Transport { problem, .. } => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn calls_share_a_connection_and_errors_keep_their_code() {
    let now = DateTime::UNIX_EPOCH;
    let missing = HubError::new(ErrorCode::DeviceNotFound, "no device d1");
    let offline = HubError::new(ErrorCode::DeviceNotOnline, "Timed out waiting for device to connect.");
    let hub = Hub::start(vec![
        answer(404, "", &missing.envelope("t", now).to_string()),
        answer(404, "", &offline.method_envelope("t", Some(0), now).to_string()),
        answer(200, "", r#"{"status":500,"payload":null}"#),
        answer(204, "", ""),
        answer(200, "x-ms-continuation: next\r\nx-ms-item-type: Twin\r\n", r#"[{"deviceId":"d1"}]"#),
        answer(200, "", r#"[{"deviceId":"d2"}]"#),
        answer(200, "", "[]"),
        answer(200, "", "<html>"),
    ])
    .await;
    let client = hub.client(&hub.roots);
    let method: DirectMethod = serde_json::from_value(json!({"methodName": "lockDoor"})).expect("a method");

    assert!(matches!(client.get_twin(&device()).await, Err(ServiceError::Hub(error)) if error == missing));
    let invoked = client.invoke_method(&device(), &method).await;
    assert!(matches!(invoked, Err(ServiceError::Hub(error)) if error == offline));
    let invoked = client.invoke_method(&device(), &method).await.expect("an answer");
    assert_eq!(invoked, MethodResponse { status: 500, payload: Value::Null });
    client.delete_identity(&device(), None).await.expect("deleted");
    let first = client.list_devices(&PageRequest::default()).await.expect("a page");
    let expected = Page {
        items: vec![json!({"deviceId": "d1"})],
        continuation: Some("next".into()),
        item_type: Some("Twin".into()),
    };
    assert_eq!(first, expected);
    let rest = PageRequest { max_items: None, continuation: first.continuation };
    assert_eq!(client.list_devices(&rest).await.expect("a page").continuation, None);
    let job = JobId::parse("j1").expect("an id");
    assert!(matches!(client.get_job(&job).await, Err(ServiceError::Decode { .. })), "an array is no job");
    let error = client.query("SELECT", &rest).await.expect_err("no JSON").to_string();
    assert!(error.contains("POST /devices/query") && error.contains("cannot be read"), "{error}");

    let requests = hub.requests.await.expect("requests");
    let token = header(&requests[0], "authorization").expect("a token");
    let parsed = SasToken::parse(token).expect("a token");
    assert!(parsed.signed_by(&SharedKey::parse(KEY).expect("a key")) && parsed.covers_hub());
    assert!(parsed.policy() == Some("iothubowner") && !parsed.is_expired(Utc::now()));
    assert!(requests.iter().all(|request| header(request, "authorization") == Some(token)), "one token for all");
    assert!(requests[3].starts_with("DELETE /devices/d1?api-version=2021-04-12 HTTP/1.1\r\n"));
    assert_eq!(header(&requests[5], "x-ms-continuation"), Some("next"));
}

#[tokio::test]
async fn a_throttled_call_is_sent_again_an_unavailable_hub_only_where_it_is_safe() {
    let unavailable = HubError::new(ErrorCode::ServiceUnavailable, "later").envelope("t", DateTime::UNIX_EPOCH);
    let hub = Hub::start(vec![
        answer(429, "retry-after: 0\r\n", ""),
        answer(200, "", r#"{"status":200,"payload":1}"#),
        answer(503, "retry-after: 0\r\n", ""),
        answer(200, "", "{}"),
        answer(503, "retry-after: 0\r\n", &unavailable.to_string()),
        answer(429, "retry-after: 0\r\n", ""),
        answer(429, "retry-after: 0\r\n", ""),
        answer(429, "retry-after: 0\r\n", ""),
        answer(429, "retry-after: 0\r\n", ""),
    ])
    .await;
    let client = hub.client(&hub.roots);
    let method: DirectMethod = serde_json::from_value(json!({"methodName": "lockDoor"})).expect("a method");
    assert!(client.invoke_method(&device(), &method).await.is_ok());
    assert!(client.get_twin(&device()).await.is_ok());
    let refused = client.invoke_method(&device(), &method).await;
    assert!(matches!(refused, Err(ServiceError::Hub(error)) if error.code == ErrorCode::ServiceUnavailable));
    let refused = client.get_twin(&device()).await;
    assert!(matches!(refused, Err(ServiceError::Hub(error)) if error.code == ErrorCode::ThrottlingException));
    assert_eq!(hub.requests.await.expect("requests").len(), 9);
}

#[test]
fn the_wait_is_the_hubs_or_doubles() {
    let mut headers = HeaderMap::new();
    let wait = |headers: &HeaderMap, attempt| wait_before_retry(retry_after(headers), attempt).as_secs();
    assert_eq!([1, 2, 3].map(|attempt| wait(&headers, attempt)), [1, 2, 4]);
    for (asked, expected) in [("7", 7), ("3600", 30), ("soon", 1)] {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(asked));
        assert_eq!(wait(&headers, 1), expected, "{asked}");
    }
}

#[tokio::test]
async fn what_keeps_the_hub_out_of_reach_is_told_apart() {
    let (hub, other) = (Hub::start(Vec::new()).await, Hub::start(Vec::new()).await);
    let error = hub.client(&other.roots).get_twin(&device()).await.expect_err("another CA");
    assert!(error.to_string().starts_with(&format!("localhost:{}: its certificate is not from a CA", hub.port)));
    assert!(matches!(problem(error), Problem::UntrustedCertificate { .. }));

    let roots = other.roots.clone();
    let error =
        client(&format!("127.0.0.1:{}", other.port), &roots).get_twin(&device()).await.expect_err("another name");
    assert!(matches!(problem(error), Problem::Tls { .. }));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let error = client(&format!("127.0.0.1:{port}"), &roots).get_twin(&device()).await.expect_err("nothing there");
    assert_eq!(problem(error), Problem::Refused);
}

#[test]
fn a_token_is_used_for_most_of_its_hour() {
    let client = client("localhost", &RootCertStore::empty());
    let start = DateTime::UNIX_EPOCH;
    let signer = client.signer.as_ref().expect("a key");
    let token = |minutes| signer.authorization(&client.host, start + TimeDelta::minutes(minutes));
    let first = token(0);
    assert_eq!(token(49), first);
    assert_ne!(token(51), first);
    assert!(!format!("{client:?}").contains("sig="), "{client:?}");
}

#[test]
fn an_identity_makes_a_connection_string() {
    let authentication = json!({"symmetricKey": {"primaryKey": KEY}});
    let identity = json!({"deviceId": "d1", "authentication": authentication});
    let host = HostName { name: "localhost".into(), port: Some(18883) };
    let connection = client_connection(&identity, &host).expect("a connection");
    assert_eq!(connection, format!("HostName=localhost:18883;DeviceId=d1;SharedAccessKey={KEY}"));
    assert!(client_connection(&json!({"deviceId": "d1"}), &host).is_err());
    let identity = json!({"deviceId": "d1", "authentication": {"type": "selfSigned"}});
    let connection = client_connection(&identity, &host).expect("a connection");
    assert_eq!(connection, "HostName=localhost:18883;DeviceId=d1;x509=true");
    let identity = json!({"deviceId": "d1", "moduleId": "m1", "authentication": authentication});
    let connection = client_connection(&identity, &host).expect("a connection");
    assert_eq!(connection, format!("HostName=localhost:18883;DeviceId=d1;ModuleId=m1;SharedAccessKey={KEY}"));
}
