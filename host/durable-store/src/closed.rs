//! Reading a store that this process does not own, whether or not its owner runs.

use std::path::Path;

use crate::open::{self, StoreFile};
use crate::sql::{self, Connection};
use crate::{StoreError, reader};

/// A store that can be read and copied, not written. Its owner may be another process and may go on writing: each read is
/// of one consistent view of what it has committed.
pub struct ClosedStore {
    file: StoreFile,
    connection: Connection,
}

impl ClosedStore {
    /// Opens an existing file. Blocks, as all that this type does.
    ///
    /// # Errors
    /// If there is no such file, if it is no store, or if it has not had exactly these migrations.
    pub fn open(path: &Path, migrations: &[&str]) -> Result<ClosedStore, StoreError> {
        let file = StoreFile::new(path);
        // SQLite's own text for a missing file does not say that it is missing.
        std::fs::metadata(path).map_err(|error| file.explain_io(error))?;
        let connection = file.connect_reader()?;
        if open::schema(&connection, &file, migrations)? < migrations.len() {
            return Err(StoreError::OlderSchema { path: path.to_owned() });
        }
        Ok(ClosedStore { file, connection })
    }

    /// Runs `query` on one consistent view of what is committed at that moment.
    pub fn read<T>(&self, query: impl FnOnce(&Connection) -> sql::Result<T>) -> Result<T, StoreError> {
        reader::on_one_view(&self.connection, &self.file, query)
    }

    /// As [`Store::backup`](crate::Store::backup).
    pub fn backup(&self, path: &Path) -> Result<(), StoreError> {
        reader::back_up(&self.connection, path)
    }
}
