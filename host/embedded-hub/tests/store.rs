//! A whole hub and its store: devices that are not in memory, and those who read past it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use embedded_hub::hub::{Answer, Operation};
use embedded_hub::{EmbeddedHub, HubSettings};
use iothub_protocol::error::ErrorCode;
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::link::CloudMessage;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::twin::TwinPatch;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// More than a hub keeps in memory.
const MANY: usize = 2500;

async fn start(folder: &std::path::Path) -> EmbeddedHub {
    let mqtt = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let https = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let data = folder.to_owned();
    let settings = HubSettings { data, mqtt, https, machine_name: None, jobs: Default::default() };
    EmbeddedHub::start(settings).await.expect("a hub")
}

fn id(number: usize) -> DeviceId {
    DeviceId::parse(&format!("d-{number:05}")).expect("an id")
}

fn put(number: usize) -> Operation {
    let keys = [SharedKey::from_random([1; 32]), SharedKey::from_random([2; 32])];
    Operation::PutDevice { id: id(number), request: IdentityRequest::default(), if_match: None, keys }
}

fn tag(number: usize, tags: &Value) -> Operation {
    let patch = TwinPatch { tags: tags.as_object().cloned(), desired: None };
    Operation::PatchTwin { id: id(number), patch, if_match: None }
}

async fn all(hub: &EmbeddedHub, operations: impl Iterator<Item = Operation>) -> Vec<Result<Answer, ErrorCode>> {
    let mut asked = JoinSet::new();
    for operation in operations {
        let handle = hub.handle.clone();
        asked.spawn(async move { handle.request(operation).await.map_err(|error| error.code) });
    }
    asked.join_all().await
}

async fn twin(hub: &EmbeddedHub, number: usize) -> Value {
    match hub.handle.request(Operation::GetTwin(id(number))).await {
        Ok(Answer::Document(twin)) => twin,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_hub_with_more_devices_than_it_keeps_in_memory_knows_them_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = start(folder.path()).await;
    let made = all(&hub, (0..MANY).map(put)).await;
    assert!(made.iter().all(Result::is_ok));
    let again = all(&hub, (0..MANY).map(put)).await;
    assert!(again.iter().all(|answer| *answer == Err(ErrorCode::DeviceAlreadyExists)));
    // Twice at the same moment: both changes of each device are there, in whatever order.
    let tags = |number: usize| [tag(number, &json!({"a": number})), tag(number, &json!({"b": number}))];
    assert!(all(&hub, (0..MANY).flat_map(tags)).await.iter().all(Result::is_ok));
    let gone = all(&hub, (0..MANY).step_by(2).map(|number| Operation::DeleteDevice { id: id(number), if_match: None }));
    assert!(gone.await.iter().all(Result::is_ok));
    let counts = hub.handle.counts().await.expect("numbers");
    assert_eq!((counts.total, counts.disabled, counts.connected), (MANY / 2, 0, 0));

    hub.stop().await;
    let hub = start(folder.path()).await;
    for number in [1, 777, MANY - 1] {
        let twin = twin(&hub, number).await;
        assert_eq!((&twin["tags"], &twin["version"]), (&json!({"a": number, "b": number}), &json!(3)));
    }
    let answers = all(&hub, (0..MANY).step_by(2).map(|number| Operation::GetTwin(id(number)))).await;
    assert!(answers.iter().all(|answer| *answer == Err(ErrorCode::DeviceNotFound)));
    assert_eq!(hub.handle.device_ids().await.expect("ids").len(), MANY / 2);
    let listed = hub.handle.list_devices(Some(id(3)), 2).await.expect("a list");
    assert_eq!(listed.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [id(5), id(7)]);
    hub.stop().await;
}

#[tokio::test]
async fn messages_expire_though_nobody_asks_for_their_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = start(folder.path()).await;
    hub.handle.request(put(1)).await.expect("made");
    let expiry = Utc::now() + Duration::from_millis(200);
    let message = CloudMessage { expiry: Some(expiry), body: b"x".to_vec(), ..CloudMessage::default() };
    let send = Operation::SendMessage { id: id(1), message: Box::new(message), wait: false };
    hub.handle.request(send).await.expect("queued");
    hub.stop().await;
    let hub = start(folder.path()).await;
    // It is not in memory, and nobody asks for it: the hub finds it by itself.
    let mut next = 0;
    let ended = async {
        loop {
            assert!(hub.handle.events().wait(next).await);
            let page = hub.handle.events().page(next, 100);
            next = page.next;
            if let Some((_, event)) = page.events.iter().find(|(_, event)| event.device == id(1)) {
                return event.to_json(0);
            }
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it expires");
    assert_eq!((&event["kind"], &event["statusCode"]), (&json!("settled"), &json!("Expired")), "{event}");
    hub.stop().await;
}

#[tokio::test]
async fn when_a_device_was_last_heard_of_outlives_memory_and_hub() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = start(folder.path()).await;
    hub.handle.request(put(1)).await.expect("made");
    let password = SharedKey::from_random([1; 32]).sign(
        &format!("localhost/devices/{}", id(1)),
        None,
        Utc::now() + Duration::from_secs(60),
    );
    let password = embedded_hub::hub::Password(password);
    let receive = Operation::ReceiveMessage { id: id(1), password, token: 1, lock: Duration::from_secs(60) };
    hub.handle.request(receive).await.expect("there is no message");
    let heard = |twin: &Value| {
        let text = twin["lastActivityTime"].as_str().expect("a time").to_owned();
        DateTime::parse_from_rfc3339(&text).expect("a time").timestamp()
    };
    let before = heard(&twin(&hub, 1).await);
    assert!(before > 0);
    let row = &hub.handle.list_devices(None, 1).await.expect("a list")[0].1;
    assert_eq!(heard(row), before);
    hub.stop().await;
    let hub = start(folder.path()).await;
    assert_eq!(heard(&hub.handle.list_devices(None, 1).await.expect("a list")[0].1), before);
    assert_eq!(heard(&twin(&hub, 1).await), before);
    hub.stop().await;
}
