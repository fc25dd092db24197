use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use tempfile::TempDir;

use crate::{CHECKED_AT_OPENING, ClosedStore, Durability, Store, StoreError, sql};

const MIGRATIONS: &[&str] = &["CREATE TABLE item (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE)"];
/// Names the file that `kill_leaves_everything_acknowledged` writes to in its child process.
const CHILD_FILE: &str = "DURABLE_STORE_TEST_FILE";

struct Fixture {
    folder: TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("s.db")).unwrap();
    Fixture { folder, store }
}

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, MIGRATIONS, Durability::Process)
}

fn insert(name: impl Into<String>) -> impl FnOnce(&sql::Transaction<'_>) -> sql::Result<i64> + Send + 'static {
    let name = name.into();
    move |tx| {
        tx.execute("INSERT INTO item (name) VALUES (?1)", [name])?;
        Ok(tx.last_insert_rowid())
    }
}

async fn names(store: &Store) -> Vec<String> {
    let query = |connection: &sql::Connection| {
        let mut statement = connection.prepare("SELECT name FROM item ORDER BY id")?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    store.read(query).await.unwrap()
}

/// Holds the writer until the sender is dropped, so that what is queued meanwhile becomes one group.
fn hold_writer(store: &Store) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    store.write_then(
        |_| Ok(()),
        move |_| {
            let _ = held.recv();
        },
    );
    release
}

#[tokio::test]
async fn writes_run_in_call_order_and_answers_follow_the_commit() {
    let Fixture { folder: _folder, store } = fixture();
    let hold = hold_writer(&store);
    let (seen, sees) = mpsc::channel();
    for number in 0..3000 {
        let seen = seen.clone();
        store.write_then(insert(number.to_string()), move |id| seen.send(id.unwrap()).unwrap());
    }
    drop((hold, seen));
    // A write that is queued later is answered later.
    store.write(insert("last")).await.unwrap();
    assert_eq!(sees.iter().collect::<Vec<_>>(), (1..=3000).collect::<Vec<_>>());
    assert_eq!(names(&store).await.len(), 3001);
}

#[tokio::test]
async fn failing_and_panicking_jobs_leave_their_neighbours() {
    let Fixture { folder: _folder, store } = fixture();
    let hold = hold_writer(&store);
    let first = store.write(insert("a"));
    let half_done = store.write(|tx| {
        tx.execute("INSERT INTO item (name) VALUES ('half')", [])?;
        insert("a")(tx)
    });
    let panicking = store.write(|tx| -> sql::Result<()> {
        insert("panic")(tx)?;
        panic!("wrong {}", "turn")
    });
    let last = store.write(insert("b"));
    drop(hold);
    assert!(first.await.is_ok());
    assert!(matches!(half_done.await, Err(StoreError::Sql(_))));
    assert!(matches!(panicking.await, Err(StoreError::Panicked { message }) if message == "wrong turn"));
    assert!(last.await.is_ok());
    assert_eq!(names(&store).await, ["a", "b"]);
}

#[tokio::test]
async fn a_panic_in_a_callback_or_a_query_ends_nothing() {
    let Fixture { folder: _folder, store } = fixture();
    store.write_then(insert("a"), |_| panic!("callback"));
    for _ in 0..4 {
        let failed = store.read(|_| -> sql::Result<()> { panic!("query") }).await;
        assert!(matches!(failed, Err(StoreError::Panicked { .. })));
    }
    store.write(insert("b")).await.unwrap();
    assert_eq!(names(&store).await, ["a", "b"]);
}

#[tokio::test]
async fn a_dropped_future_still_writes() {
    let Fixture { folder: _folder, store } = fixture();
    drop(store.write(insert("a")));
    store.write(insert("b")).await.unwrap();
    assert_eq!(names(&store).await, ["a", "b"]);
}

#[tokio::test]
async fn readers_see_committed_data_only_and_cannot_write() {
    let Fixture { folder: _folder, store } = fixture();
    let (release, held) = mpsc::channel::<()>();
    let (inserted, inserting) = tokio::sync::oneshot::channel();
    let write = store.write(move |tx| {
        insert("a")(tx)?;
        inserted.send(()).unwrap();
        let _ = held.recv();
        Ok(())
    });
    inserting.await.unwrap();
    assert!(names(&store).await.is_empty());
    drop(release);
    write.await.unwrap();
    assert_eq!(names(&store).await, ["a"]);
    let refused = store.read(|connection| connection.execute("DELETE FROM item", [])).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
}

#[tokio::test]
async fn reopening_keeps_data_and_applies_new_migrations_only() {
    let Fixture { folder, store } = fixture();
    let path = folder.path().join("s.db");
    store.write(insert("a")).await.unwrap();
    assert!(matches!(open(&path), Err(StoreError::Locked { .. })));
    store.close().await;
    assert!(matches!(store.write(insert("b")).await, Err(StoreError::Closed)));
    assert!(matches!(store.read(|_| Ok(())).await, Err(StoreError::Closed)));
    store.close().await;

    const GROWN: &[&str] = &[MIGRATIONS[0], "ALTER TABLE item ADD COLUMN size INTEGER"];
    let grown = Store::open(&path, GROWN, Durability::Power).unwrap();
    assert_eq!(names(&grown).await, ["a"]);
    grown.close().await;
    let older = open(&path).err();
    assert!(matches!(older, Some(StoreError::NewerSchema { found: 2, known: 1, .. })), "{older:?}");
}

#[tokio::test]
async fn a_failed_migration_leaves_the_file_as_it_was() {
    let Fixture { folder, store } = fixture();
    store.write(insert("a")).await.unwrap();
    store.close().await;
    let path = folder.path().join("s.db");
    const BROKEN: &[&str] = &[MIGRATIONS[0], "DELETE FROM item; SELECT nonsense"];
    let failed = Store::open(&path, BROKEN, Durability::Process).err();
    assert!(matches!(failed, Some(StoreError::Migration { step: 2, .. })), "{failed:?}");
    assert_eq!(names(&open(&path).unwrap()).await, ["a"]);
}

#[tokio::test]
async fn damaged_files_are_refused() {
    let Fixture { folder, store } = fixture();
    for number in 0..500 {
        drop(store.write(insert(format!("{number:0100}"))));
    }
    store.close().await;
    let path = folder.path().join("s.db");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..12288].fill(0x5a);
    for damaged in [bytes, b"no database, but longer than nothing".to_vec()] {
        fs::write(&path, damaged).unwrap();
        let refused = open(&path).err();
        assert!(matches!(refused, Some(StoreError::Corrupt { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_write_and_not_the_store() {
    let Fixture { folder: _folder, store } = fixture();
    let limit = |pages: i64| move |tx: &sql::Transaction<'_>| tx.pragma_update(None, "max_page_count", pages);
    store.write(limit(8)).await.unwrap();
    let full = store.write(insert("x".repeat(100_000))).await;
    assert!(matches!(full, Err(StoreError::DiskFull { .. })), "{full:?}");
    store.write(insert("small")).await.unwrap();
    store.write(limit(1_000_000)).await.unwrap();
    store.write(insert("x".repeat(100_000))).await.unwrap();
    assert_eq!(names(&store).await.len(), 2);
}

#[test]
fn a_folder_that_cannot_be_written_says_so() {
    // Not even the superuser can make files there.
    let refused = open(Path::new("/sys/s.db")).err();
    assert!(matches!(refused, Some(StoreError::ReadOnly { .. } | StoreError::Io { .. })), "{refused:?}");
}

#[tokio::test]
async fn backup_is_a_whole_store_and_never_overwrites() {
    let Fixture { folder, store } = fixture();
    store.write(insert("a")).await.unwrap();
    let path = folder.path().join("copy.db");
    store.backup(&path).await.unwrap();
    store.write(insert("b")).await.unwrap();
    assert!(matches!(store.backup(&path).await, Err(StoreError::Io { .. })));
    assert!(matches!(store.backup(Path::new("/nowhere/copy.db")).await, Err(StoreError::Io { .. })));
    assert_eq!(names(&open(&path).unwrap()).await, ["a"]);
    for file in ["s.db", "s.db-wal", "copy.db"] {
        let mode = fs::metadata(folder.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn another_process_s_store_is_read_and_copied_while_it_is_written() {
    let Fixture { folder, store } = fixture();
    let path = folder.path().join("s.db");
    store.write(insert("a")).await.unwrap();
    let other = ClosedStore::open(&path, MIGRATIONS).unwrap();
    let count = |connection: &sql::Connection| {
        connection.query_row("SELECT COUNT(*) FROM item", [], |row| row.get::<_, i64>(0))
    };
    assert_eq!(other.read(count).unwrap(), 1);
    store.write(insert("b")).await.unwrap();
    assert_eq!(other.read(count).unwrap(), 2, "each read is of what is committed then");
    other.backup(&folder.path().join("copy.db")).unwrap();
    store.write(insert("c")).await.unwrap();
    assert_eq!(names(&open(&folder.path().join("copy.db")).unwrap()).await, ["a", "b"]);
    assert!(other.read(|connection| connection.execute("DELETE FROM item", [])).is_err());

    let older = ClosedStore::open(&path, &[MIGRATIONS[0], "SELECT 1"]).err();
    assert!(matches!(older, Some(StoreError::OlderSchema { .. })), "{older:?}");
    let missing = ClosedStore::open(&folder.path().join("none.db"), MIGRATIONS).err();
    assert!(matches!(missing, Some(StoreError::Io { .. })), "{missing:?}");
}

#[tokio::test]
async fn a_scan_that_takes_long_holds_up_no_read() {
    let Fixture { folder: _folder, store } = fixture();
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    let scans = [held.clone(), held.clone(), held].map(|held| {
        store.scan(move |_| {
            let _ = held.lock().unwrap().recv();
            Ok(())
        })
    });
    assert!(names(&store).await.is_empty());
    drop(release);
    for scan in scans {
        scan.await.unwrap();
    }
}

#[tokio::test]
async fn a_large_file_is_checked_while_it_is_in_use() {
    let Fixture { folder, store } = fixture();
    store.checked().await.unwrap();
    let large = "x".repeat(1024 * 1024);
    for number in 0..CHECKED_AT_OPENING / 1_000_000 {
        drop(store.write(insert(format!("{number}{large}"))));
    }
    store.close().await;
    let path = folder.path().join("s.db");
    let whole = open(&path).unwrap();
    whole.checked().await.unwrap();
    whole.close().await;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // The second page is the root of the table.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 4096], 4096).unwrap();
    let damaged = open(&path).unwrap();
    let found = damaged.checked().await;
    assert!(matches!(found, Err(StoreError::Corrupt { .. })), "{found:?}");
    damaged.close().await;
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.db");
    let other = sql::Connection::open(&path).unwrap();
    other.execute_batch("PRAGMA application_id = 7; CREATE TABLE theirs (a)").unwrap();
    drop(other);
    let before = fs::read(&path).unwrap();
    let refused = open(&path).err();
    assert!(matches!(refused, Some(StoreError::Corrupt { .. })), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// The child writes until it is killed and prints each number once it is answered.
#[tokio::test]
async fn kill_leaves_everything_acknowledged() {
    if let Some(path) = std::env::var_os(CHILD_FILE) {
        return write_until_killed(&PathBuf::from(path)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::kill_leaves_everything_acknowledged", "--nocapture"])
        .env(CHILD_FILE, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut acknowledged = lines.filter_map(|line| line.strip_prefix("written ")?.parse::<usize>().ok());
    assert!(acknowledged.by_ref().any(|number| number == 200));
    child.kill().unwrap();
    let last = acknowledged.last().unwrap_or(200);
    child.wait().unwrap();

    let kept = names(&open(&path).unwrap()).await;
    assert!(kept.len() > last, "{} kept, {last} acknowledged", kept.len());
    assert!(kept.iter().enumerate().all(|(index, name)| *name == index.to_string()));
}

#[expect(clippy::print_stdout, reason = "the parent process reads it")]
async fn write_until_killed(path: &Path) {
    let store = open(path).unwrap();
    for number in 0.. {
        store.write(insert(number.to_string())).await.unwrap();
        println!("written {number}");
    }
}
