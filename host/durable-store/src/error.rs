//! What can go wrong with a store, and what to do about it.

use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ffi::ErrorCode;

use crate::sql;

/// Why a file did not open or a job has no result. Cheap to clone: one failed commit answers a whole group.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another store of this one, has the file.
    #[error("{} is in use by another process: stop that one, or use another data folder", path.display())]
    Locked { path: PathBuf },
    /// The file was written by a later version of the program.
    #[error(
        "{} was written by a newer version (schema {found}, this version knows {known}): \
         use that version, or a backup from before the upgrade",
        path.display()
    )]
    NewerSchema { path: PathBuf, found: usize, known: usize },
    /// The file was written by an earlier version, and may only be read.
    #[error("{} was written by an older version: start that which owns it once, so that it is converted", path.display())]
    OlderSchema { path: PathBuf },
    /// The file is damaged, or is no database.
    #[error("{} is damaged ({detail}): move it away and put a backup in its place", path.display())]
    Corrupt { path: PathBuf, detail: String },
    /// No room for the write. Nothing of it is kept; later writes work once there is room.
    #[error("no room left for {}: free space on its disk, then try again", path.display())]
    DiskFull { path: PathBuf },
    /// The file or its folder cannot be written.
    #[error("{} cannot be written: give this user write access to the file and its folder", path.display())]
    ReadOnly { path: PathBuf },
    /// The operating system refused something else.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: Arc<io::Error> },
    /// A migration failed; the file is as it was before it.
    #[error("{}: migration {step} failed: {source}", path.display())]
    Migration { path: PathBuf, step: usize, source: Arc<sql::Error> },
    /// The job's own statement failed.
    #[error(transparent)]
    Sql(Arc<sql::Error>),
    /// The job panicked; its changes are undone.
    #[error("a store job panicked: {message}")]
    Panicked { message: String },
    /// The store was closed before the job ran.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn from_sql(path: &Path, error: sql::Error) -> StoreError {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Corrupt { path, detail: error.to_string() }
            }
            Some(ErrorCode::DiskFull) => StoreError::DiskFull { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::ReadOnly { path },
            _ => StoreError::Sql(Arc::new(error)),
        }
    }

    pub(crate) fn from_io(path: &Path, error: io::Error) -> StoreError {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull { path },
            _ => StoreError::Io { path, source: Arc::new(error) },
        }
    }
}

/// Runs foreign code on a thread that must outlive its panics.
pub(crate) fn catching<T>(run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // What the code touched is rolled back or dropped by the caller, so a broken invariant cannot be seen.
    panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(StoreError::Panicked { message: panic_message(panic.as_ref()) }))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
