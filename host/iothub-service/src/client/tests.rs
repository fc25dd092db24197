//! Against a scripted hub on a real TLS socket.

use iothub_protocol::error::ErrorCode;
use iothub_protocol::sas::Token as SasToken;
use rustls::RootCertStore;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::testing::{KEY, ScriptedHub, answer, client, header};

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
    let hub = ScriptedHub::start(vec![
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
    let client = hub.client();
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
    let hub = ScriptedHub::start(vec![
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
    let client = hub.client();
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
    let (hub, other) = (ScriptedHub::start(Vec::new()).await, ScriptedHub::start(Vec::new()).await);
    let error =
        client(&format!("localhost:{}", hub.port), &other.roots).get_twin(&device()).await.expect_err("another CA");
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
