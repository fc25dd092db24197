//! A whole hub and its store: devices that are not in memory, and those who read past it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use embedded_hub::events::EventKind;
use embedded_hub::hub::{Answer, Credentials, Operation};
use embedded_hub::import::{Created, ExportError, HubReader, IdentityRows, NewIdentity, OfflineHub};
use embedded_hub::{EmbeddedHub, HubFleet, HubSettings};
use iothub_protocol::address::Address;
use iothub_protocol::error::ErrorCode;
use iothub_protocol::feedback::MessageEnd;
use iothub_protocol::id::{DeviceId, ModuleId};
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::link::CloudMessage;
use iothub_protocol::query::Condition;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::twin::TwinPatch;
use job_engine::{Fleet as _, Selection};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// More than a hub keeps in memory.
const MANY: usize = 2500;

async fn start(folder: &std::path::Path) -> EmbeddedHub {
    let mqtt = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let https = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let data = folder.to_owned();
    let settings = HubSettings {
        data,
        mqtt,
        https,
        machine_name: None,
        jobs: Default::default(),
        rehearsal: Default::default(),
        connections: Default::default(),
    };
    EmbeddedHub::start(settings).await.expect("a hub")
}

fn device_id(number: usize) -> DeviceId {
    DeviceId::parse(&format!("d-{number:05}")).expect("an id")
}

fn id(number: usize) -> Address {
    device_id(number).into()
}

fn put(number: usize) -> Operation {
    let keys = [SharedKey::from_random([1; 32]), SharedKey::from_random([2; 32])];
    Operation::PutIdentity { id: id(number), request: IdentityRequest::default(), if_match: None, keys }
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
    let gone =
        all(&hub, (0..MANY).step_by(2).map(|number| Operation::DeleteIdentity { id: id(number), if_match: None }));
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
    let listed = hub.handle.list_devices(Some(device_id(3)), 2).await.expect("a list");
    assert_eq!(listed.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [id(5), id(7)]);
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_with_more_modules_than_it_keeps_in_memory_knows_them_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = start(folder.path()).await;
    let module = |number: usize, name: &str| {
        let name = ModuleId::parse(name).expect("an id");
        Address::of_module(device_id(number), name)
    };
    let put_module = |number: usize, name: &str| {
        let keys = [SharedKey::from_random([3; 32]), SharedKey::from_random([4; 32])];
        let request = IdentityRequest::default();
        Operation::PutIdentity { id: module(number, name), request, if_match: None, keys }
    };
    let tag_module = |number: usize, tags: Value| {
        let patch = TwinPatch { tags: tags.as_object().cloned(), desired: None };
        Operation::PatchTwin { id: module(number, "m"), patch, if_match: None }
    };
    // In any order: which modules there can be is known from devices that have left memory.
    assert!(all(&hub, (0..MANY).map(put)).await.iter().all(Result::is_ok));
    assert!(all(&hub, (0..MANY).map(|number| put_module(number, "m"))).await.iter().all(Result::is_ok));
    let again = all(&hub, (0..MANY).map(|number| put_module(number, "m"))).await;
    assert!(again.iter().all(|answer| *answer == Err(ErrorCode::ModuleAlreadyExistsOnDevice)));
    let changes = |number: usize| {
        let tags = [json!({"a": number}), json!({"b": number})];
        tags.map(|tags| tag_module(number, tags))
            .into_iter()
            .chain([put_module(number, "n"), tag(number, &json!({"c": 1}))])
    };
    assert!(all(&hub, (0..MANY).flat_map(changes)).await.iter().all(Result::is_ok));
    let gone = (0..MANY).step_by(2).map(|number| Operation::DeleteIdentity { id: id(number), if_match: None });
    let gone_module = |number| Operation::DeleteIdentity { id: module(number, "n"), if_match: None };
    let gone = gone.chain((1..MANY).step_by(2).map(gone_module));
    assert!(all(&hub, gone).await.iter().all(Result::is_ok));
    let counts = hub.handle.counts().await.expect("numbers");
    assert_eq!((counts.total, counts.modules), (MANY / 2, MANY / 2));
    hub.stop().await;
    let hub = start(folder.path()).await;
    let found = all(&hub, (0..MANY).map(|number| Operation::GetTwin(module(number, "m")))).await;
    let count =
        |wanted: &dyn Fn(&Result<Answer, ErrorCode>) -> bool| found.iter().filter(|answer| wanted(answer)).count();
    let is_whole = |answer: &Result<Answer, ErrorCode>| matches!(answer, Ok(Answer::Document(twin)) if twin["version"] == 3 && twin["tags"]["a"] == twin["tags"]["b"]);
    assert_eq!((count(&is_whole), count(&|answer| *answer == Err(ErrorCode::DeviceNotFound))), (MANY / 2, MANY / 2));
    let listed = hub.handle.list_modules(device_id(1)).await.expect("a list");
    assert_eq!(listed.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [module(1, "m")]);
    hub.stop().await;
}

#[tokio::test]
async fn messages_expire_though_nobody_asks_for_their_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = start(folder.path()).await;
    hub.handle.request(put(1)).await.expect("made");
    let expiry = Utc::now() + Duration::from_millis(200);
    let message = CloudMessage { expiry: Some(expiry), body: b"x".to_vec(), ..CloudMessage::default() };
    let send = Operation::SendMessage { id: device_id(1), message: Box::new(message), wait: false };
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
            if let Some((_, event)) = page.events.iter().find(|(_, event)| event.address == id(1)) {
                return event.kind.clone();
            }
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it expires");
    assert!(matches!(event, EventKind::Settled { ended: MessageEnd::Expired, .. }), "{event:?}");
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
    let credentials = Credentials { token: Some(password), certificate: None };
    let receive = Operation::ReceiveMessage { id: device_id(1), credentials, token: 1, lock: Duration::from_secs(60) };
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

/// So many that a hub does not have them in memory, and an answer comes in several parts.
const IMPORTED: usize = 20_000;
/// Enough for a copy that takes a moment.
const COPIED: usize = 5000;

fn imported(number: usize) -> IdentityRows {
    let line = json!({
        "id": format!("d-{number:05}"),
        "status": if number.is_multiple_of(1000) { "disabled" } else { "enabled" },
        "tags": {"site": format!("s{}", number % 40), "n": number},
        "properties": {"desired": {"floor": number % 7}, "reported": {"battery": {"level": number % 100}}},
    });
    rows(&line)
}

fn rows(line: &Value) -> IdentityRows {
    NewIdentity::from_json(line.to_string().as_bytes(), Utc::now()).and_then(|new| new.rows()).expect("a line")
}

async fn import(folder: &std::path::Path, count: usize) {
    let hub = OfflineHub::open(folder).await.expect("a store");
    for begin in (0..count).step_by(5000) {
        let made = hub.import((begin..begin + 5000).map(imported).collect()).await.expect("written");
        assert!(made.into_iter().all(|made| made == Created::Made));
    }
    assert_eq!(hub.import(vec![imported(7)]).await.expect("written"), [Created::IsThere]);
    hub.close().await;
}

#[tokio::test]
async fn twenty_thousand_imported_twins_are_found_with_and_without_indexes() {
    let folder = tempfile::tempdir().expect("a folder");
    import(folder.path(), IMPORTED).await;
    let hub = start(folder.path()).await;
    let counts = hub.handle.counts().await.expect("numbers");
    assert_eq!((counts.total, counts.disabled), (IMPORTED, IMPORTED / 1000));
    let fleet = HubFleet::new(hub.handle.clone());
    let select = async |condition: &str| {
        let condition = Condition::parse_job(condition).expect(condition);
        let site = TagPath::parse("tags.site").expect("a tag");
        let with_site = Selection { condition: condition.clone(), among: None, labels: vec![site] };
        let labelled = fleet.select(&with_site).await.expect("selected");
        let selected = fleet.select(&Selection { condition, among: None, labels: Vec::new() }).await.expect("selected");
        assert!(selected.is_sorted_by_key(|selected| &selected.address));
        for (one, other) in selected.iter().zip(&labelled) {
            assert!(one.address == other.address && one.labels.is_empty(), "{one:?} {other:?}");
            assert!(
                other.labels[0].as_deref().is_none_or(|site| site.starts_with('s') || site == "elsewhere"),
                "{other:?}"
            );
        }
        assert_eq!(selected.len(), labelled.len());
        // Every other one of them, one that is not there, and one for which it may not hold.
        let mut among: Vec<_> = selected.iter().step_by(2).map(|selected| selected.address.clone()).collect();
        let expected = among.clone();
        among.push(Address::parse("nobody").expect("an address"));
        let with_among = Selection { among: Some(among), ..with_site };
        let found = fleet.select(&with_among).await.expect("selected");
        assert!(found.iter().map(|selected| &selected.address).eq(&expected), "{}", found.len());
        assert!(selected.is_empty() || labelled.iter().any(|labelled| labelled.labels[0].is_some()));
        selected.len()
    };
    for with_indexes in [false, true] {
        if with_indexes {
            assert!(hub.handle.add_index("tags.site").await.expect("declared"));
            assert!(hub.handle.add_index("properties.reported.battery.level").await.expect("declared"));
            assert_eq!(hub.handle.indexes().expect("some"), ["properties.reported.battery.level", "tags.site"]);
        }
        for (condition, expected) in [
            ("*", IMPORTED),
            ("tags.site = 's7'", 500),
            ("tags.site IN ['s7', 's8', 'none']", 1000),
            ("tags.site = 's7' AND properties.desired.floor = 0", 72),
            ("properties.reported.battery.level >= 98", 400),
            ("properties.reported.battery.level < 90", 18_000),
            ("status = 'disabled'", 20),
            ("STARTS_WITH(deviceId, 'd-199')", 100),
            ("connectionState = 'Connected'", 0),
            ("tags.site = 'none'", 0),
        ] {
            assert_eq!(select(condition).await, expected, "{condition}, {with_indexes}");
        }
    }
    // What was changed since is found by the index as well.
    hub.handle.request(tag(7, &json!({"site": "elsewhere"}))).await.expect("changed");
    assert_eq!((select("tags.site = 's7'").await, select("tags.site = 'elsewhere'").await), (499, 1));
    hub.stop().await;
    let hub = start(folder.path()).await;
    assert_eq!(hub.handle.indexes().expect("some").len(), 2, "they outlive the hub");
    assert!(hub.handle.remove_index("tags.site").await.expect("removed"));
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_is_copied_and_exported_while_it_works() {
    let folder = tempfile::tempdir().expect("a folder");
    import(folder.path(), COPIED).await;
    let hub = start(folder.path()).await;
    let writing = all(&hub, (0..2000).map(|number| tag(number, &json!({"new": true}))));
    let (data, other) = (folder.path().to_owned(), tempfile::tempdir().expect("a folder"));
    let copy = other.path().join("hub.db");
    let lines = tokio::task::spawn_blocking(move || {
        let reader = HubReader::open(&data).expect("a store");
        reader.backup(&copy).expect("a copy");
        assert!(reader.backup(&copy).is_err(), "it is there already");
        let mut lines = Vec::new();
        reader.export(true, |line| {
            lines.push(line);
            Ok(())
        })?;
        Ok::<_, ExportError>(lines)
    });
    let (answers, lines) = tokio::join!(writing, lines);
    assert!(answers.iter().all(Result::is_ok));
    let lines = lines.expect("no panic").expect("exported");
    assert_eq!(lines.len(), COPIED);
    let first: Value = serde_json::from_str(&lines[0]).expect("JSON");
    let Ok(Answer::Document(identity)) = hub.handle.request(Operation::GetIdentity(id(0))).await else { panic!() };
    assert_eq!((&first["id"], &first["authentication"]), (&json!("d-00000"), &identity["authentication"]));
    hub.stop().await;
    let copied = start(other.path()).await;
    assert_eq!(copied.handle.counts().await.expect("numbers").total, COPIED);
    let Ok(Answer::Document(same)) = copied.handle.request(Operation::GetIdentity(id(0))).await else { panic!() };
    assert_eq!(same["authentication"], identity["authentication"]);
    copied.stop().await;
}

#[tokio::test]
async fn a_folder_that_holds_no_usable_store_is_refused_with_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("hub.db")).expect("made");
    let refused = OfflineHub::open(folder.path()).await.err().expect("a folder in the place of the file").to_string();
    assert!(refused.contains("hub.db"), "{refused}");
    let refused = HubReader::open(&folder.path().join("none")).err().expect("nothing there").to_string();
    assert!(refused.contains("hub.db: No such file"), "{refused}");
}

#[tokio::test]
async fn modules_are_exported_copied_and_imported_with_their_devices() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines = [
        json!({"id": "d1", "tags": {"site": "A"}}),
        json!({"id": "d1", "moduleId": "m1", "managedBy": "ops", "properties": {"desired": {"n": 1}}}),
        json!({"id": "d1", "moduleId": "m1"}),
        json!({"id": "d2", "moduleId": "m1"}),
    ];
    let hub = OfflineHub::open(folder.path()).await.expect("a store");
    let made = hub.import(lines.iter().map(rows).collect()).await.expect("written");
    assert_eq!(made, [Created::Made, Created::Made, Created::IsThere, Created::NoDevice]);
    let many = (0..50).map(|number| rows(&json!({"id": "d1", "moduleId": format!("more-{number}")}))).collect();
    let made = hub.import(many).await.expect("written");
    assert_eq!((made[48], made[49]), (Created::Made, Created::TooManyModules));
    hub.close().await;

    let export = |folder: &std::path::Path| {
        let (reader, mut lines) = (HubReader::open(folder).expect("a store"), Vec::new());
        let exported = reader.export(true, |line| {
            lines.push(line);
            Ok(())
        });
        let exported = exported.expect("exported");
        assert_eq!(reader.count().expect("numbers"), exported);
        assert_eq!(exported.devices + exported.modules, lines.len() as u64);
        lines
    };
    let exported = export(folder.path());
    assert_eq!(exported.len(), 1 + 50, "devices come first");
    let other = tempfile::tempdir().expect("a folder");
    let hub = start(other.path()).await;
    for line in &exported {
        let new = NewIdentity::from_json(line.as_bytes(), Utc::now()).expect("its own line");
        hub.handle.request(Operation::Import(Box::new(new))).await.expect("made");
    }
    let counts = hub.handle.counts().await.expect("numbers");
    assert_eq!((counts.total, counts.modules), (1, 50));
    hub.stop().await;
    let without_etags = |lines: Vec<String>| -> Vec<Value> {
        let read = lines.iter().map(|line| serde_json::from_str(line).expect("JSON"));
        read.map(|mut line: Value| {
            line["eTag"] = Value::Null;
            line
        })
        .collect()
    };
    assert_eq!(without_etags(export(other.path())), without_etags(exported));
}
