//! Opening the file: lock, mode, settings, integrity, migrations.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::sql::config::DbConfig;
use crate::sql::{self, Connection, OpenFlags};
use crate::{Durability, StoreError};

/// The store is its owner's alone: it may hold keys.
pub(crate) const FILE_MODE: u32 = 0o600;
/// How long a connection waits for another's lock. Ours never hold one long; a stranger's tool may, for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The log is cut back to this size after a burst; it would otherwise keep its largest size for ever.
const LOG_SIZE_LIMIT: i64 = 64 * 1024 * 1024;
/// Files up to this size are checked whole when they are opened, which takes less than a second. A larger one would keep
/// its owner from starting for long, so it is checked while it is in use.
pub const CHECKED_AT_OPENING: u64 = 64 * 1024 * 1024;
/// Marks a file as a store of this crate; it stands in SQLite's header.
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"Ltch");
/// Enough for every statement of one kind of store.
const CACHED_STATEMENTS: usize = 64;

/// Where a store is; names it in errors.
#[derive(Clone)]
pub(crate) struct StoreFile {
    path: Arc<Path>,
}

/// A checked file, ready for the writer.
pub(crate) struct Opened {
    pub(crate) file: StoreFile,
    pub(crate) connection: Connection,
    /// Whether the whole file was checked, not only its header.
    pub(crate) is_checked: bool,
    /// Held as long as the connection lives.
    pub(crate) lock: File,
}

impl StoreFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn new(path: &Path) -> StoreFile {
        StoreFile { path: Arc::from(path) }
    }

    pub(crate) fn explain(&self, error: sql::Error) -> StoreError {
        StoreError::from_sql(&self.path, error)
    }

    pub(crate) fn explain_io(&self, error: io::Error) -> StoreError {
        StoreError::from_io(&self.path, error)
    }

    pub(crate) fn corrupt(&self, detail: String) -> StoreError {
        StoreError::Corrupt { path: self.path.to_path_buf(), detail }
    }

    /// A connection that cannot write.
    pub(crate) fn connect_reader(&self) -> Result<Connection, StoreError> {
        self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| self.explain(error))
    }

    fn connect(&self, access: OpenFlags) -> sql::Result<Connection> {
        // Each connection stays on its own thread, so SQLite's own mutexes are not needed.
        let connection = Connection::open_with_flags(&self.path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Else a statement that was kept is prepared anew for other values, though no statistics tell a better plan for them.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        Ok(connection)
    }
}

pub(crate) fn open(path: &Path, migrations: &[&str], durability: Durability) -> Result<Opened, StoreError> {
    let file = StoreFile::new(path);
    let lock = lock(path)?;
    create(path)?;
    let mut connection = file.connect(OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|error| file.explain(error))?;
    check_owner(&connection, &file)?;
    configure(&connection, durability).map_err(|error| file.explain(error))?;
    let is_checked = fs::metadata(path).map_err(|error| StoreError::from_io(path, error))?.len() <= CHECKED_AT_OPENING;
    if is_checked {
        check_integrity(&connection, &file)?;
    }
    migrate(&mut connection, &file, migrations)?;
    tracing::debug!(path = %path.display(), ?durability, schema = migrations.len(), "store opened");
    Ok(Opened { file, connection, is_checked, lock })
}

/// Takes the file for this store alone.
///
/// SQLite lets many processes write to one file, each unaware of what the others keep in memory. The lock is on a file
/// of its own, because closing any other descriptor of the database would drop SQLite's locks on it.
fn lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = with_suffix(path, ".lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(FILE_MODE)
        .open(&lock_path)
        .map_err(|error| StoreError::from_io(&lock_path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(StoreError::from_io(&lock_path, error)),
    }
}

/// Makes the file before SQLite does, so that it never has another mode; SQLite gives its log the mode of the file.
fn create(path: &Path) -> Result<(), StoreError> {
    let created = OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path);
    created
        .and_then(|_| fs::set_permissions(path, fs::Permissions::from_mode(FILE_MODE)))
        .map_err(|error| StoreError::from_io(path, error))
}

fn configure(connection: &Connection, durability: Durability) -> sql::Result<()> {
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_SIZE_LIMIT, |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// Reads the header, which tells a database from anything else, and whether it is one of ours.
fn check_owner(connection: &Connection, file: &StoreFile) -> Result<(), StoreError> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    match number("application_id").map_err(|error| file.explain(error))? {
        // A file from before there was a mark, or a new one.
        0 => {
            connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(|error| file.explain(error))?;
            Ok(())
        }
        APPLICATION_ID => Ok(()),
        _ => Err(file.corrupt("it is a database of another program".to_owned())),
    }
}

/// Reads the whole file.
pub(crate) fn check_integrity(connection: &Connection, file: &StoreFile) -> Result<(), StoreError> {
    let finding: String =
        connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(|error| file.explain(error))?;
    if finding == "ok" {
        return Ok(());
    }
    Err(file.corrupt(finding))
}

fn migrate(connection: &mut Connection, file: &StoreFile, migrations: &[&str]) -> Result<(), StoreError> {
    let applied = schema(connection, file, migrations)?;
    for (index, migration) in migrations.iter().enumerate().skip(applied) {
        let step = index + 1;
        apply(connection, migration, step).map_err(|error| {
            let path = file.path.to_path_buf();
            StoreError::Migration { path, step, source: Arc::new(error) }
        })?;
    }
    Ok(())
}

/// How many of the migrations the file has had.
pub(crate) fn schema(connection: &Connection, file: &StoreFile, migrations: &[&str]) -> Result<usize, StoreError> {
    let applied: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(|error| file.explain(error))?;
    let applied = usize::try_from(applied).unwrap_or(usize::MAX);
    if applied > migrations.len() {
        let path = file.path.to_path_buf();
        return Err(StoreError::NewerSchema { path, found: applied, known: migrations.len() });
    }
    Ok(applied)
}

fn apply(connection: &mut Connection, migration: &str, step: usize) -> sql::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(migration)?;
    transaction.pragma_update(None, "user_version", u32::try_from(step).unwrap_or(u32::MAX))?;
    transaction.commit()
}

/// `path` with `suffix` after its whole name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
