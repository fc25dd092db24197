//! The hub with a store that fails.

use durable_store::{Durability, sql};
use iothub_protocol::identity::IdentityRequest;

use super::*;
use crate::feedback::FeedbackQueue;
use crate::policy::random_key;

struct Fixture {
    folder: tempfile::TempDir,
    store: Store,
    hub: HubHandle,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Fixture {
    fn new(open: impl FnOnce(&std::path::Path) -> Result<Store, StoreError>) -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder.path().join(store::FILE)).expect("a store");
        let hub = Hub::new(vec![], vec![], FeedbackQueue::default());
        let reads = Reads::new(store.clone(), hub.presence(), vec![]);
        let cancel = CancellationToken::new();
        let (hub, task) = spawn(hub, reads, cancel.clone());
        Fixture { folder, store, hub, cancel, task }
    }

    async fn ask(&self, operation: Operation) -> Result<Answer, ErrorCode> {
        self.hub.request(operation).await.map_err(|error| error.code)
    }

    async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.task.await.expect("no panic");
        self.store.close().await;
        self.folder
    }
}

fn id(number: usize) -> Address {
    Address::parse(&format!("d{number}")).expect("an address")
}

fn put(number: usize) -> Operation {
    let (request, keys) = (IdentityRequest::default(), [random_key(), random_key()]);
    Operation::PutIdentity { id: id(number), request, if_match: None, keys }
}

#[tokio::test]
async fn after_a_failed_write_nobody_hears_what_rests_on_it() {
    // Without the hub's tables nothing of it can succeed.
    let hub = Fixture::new(|path| Store::open(path, &[], Durability::Process));
    for operation in [put(1), Operation::GetIdentity(id(1)), Operation::ListFeedback] {
        assert_eq!(hub.ask(operation).await, Err(ErrorCode::ServiceUnavailable));
    }
    assert_eq!(hub.hub.counts().await.map_err(|error| error.code), Err(ErrorCode::ServiceUnavailable));
    assert_eq!(hub.hub.events().next(), 0, "the event of the creation");
    hub.hub.failed().await;
    hub.stop().await;
}

/// Makes devices until the hub says that it cannot; what it has acknowledged is there when it starts again.
async fn fill(hub: Fixture, limit: impl FnOnce(&sql::Transaction<'_>) -> sql::Result<()> + Send + 'static) -> String {
    hub.ask(put(0)).await.expect("there is room");
    hub.store.write(limit).await.expect("a limit");
    let mut made = 1;
    while made < 10_000 {
        match hub.ask(put(made)).await {
            Ok(_) => made += 1,
            Err(code) => {
                assert_eq!(code, ErrorCode::ServiceUnavailable);
                break;
            }
        }
    }
    let reason = hub.hub.failed().await;
    // From then on nothing is promised, and nothing is told that rests on what is lost.
    for operation in [put(made + 1), Operation::GetIdentity(id(made)), Operation::GetTwin(id(0))] {
        assert_eq!(hub.ask(operation).await, Err(ErrorCode::ServiceUnavailable));
    }
    let folder = hub.stop().await;
    let path = folder.path().join(store::FILE);
    assert!(reason.to_string().contains(&path.display().to_string()), "{reason}");
    let store = store::open(&path).expect("it is whole");
    let ids = (0..made).map(id);
    let kept = store
        .read(|connection| ids.map(|id| Ok(store::load(connection, &id)?.is_some())).collect::<sql::Result<Vec<_>>>());
    assert!(kept.await.expect("readable").into_iter().all(|kept| kept), "{made} were acknowledged");
    store.close().await;
    reason.to_string()
}

#[tokio::test]
async fn a_full_disk_ends_the_hub_with_its_reason_and_loses_nothing_acknowledged() {
    let hub = Fixture::new(store::open);
    let reason = fill(hub, |tx| {
        let pages: i64 = tx.pragma_query_value(None, "page_count", |row| row.get(0))?;
        tx.pragma_update(None, "max_page_count", pages + 20)
    });
    assert!(reason.await.contains("free space on its disk"));
}

#[tokio::test]
async fn a_file_that_cannot_be_written_any_more_ends_the_hub_with_its_reason() {
    let hub = Fixture::new(store::open);
    let reason = fill(hub, |tx| tx.pragma_update(None, "query_only", true));
    assert!(reason.await.contains("give this user write access"));
}

#[tokio::test]
async fn what_cannot_be_read_of_one_device_is_no_matter_of_the_others() {
    let hub = Fixture::new(store::open);
    for number in [1, 2] {
        hub.ask(put(number)).await.expect("made");
    }
    let folder = hub.stop().await;
    let connection = sql::Connection::open(folder.path().join(store::FILE)).expect("the file");
    connection.execute("UPDATE twins SET tags = '{' WHERE id = 'd1'", []).expect("changed");
    drop(connection);
    let hub = Fixture::new(|_| store::open(&folder.path().join(store::FILE)));
    assert_eq!(hub.ask(Operation::GetTwin(id(1))).await, Err(ErrorCode::ServerError));
    assert!(hub.ask(Operation::GetTwin(id(2))).await.is_ok());
    hub.stop().await;
}
