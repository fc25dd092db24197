//! One SQLite file with one writer, whose answers come after the commit.
//!
//! A [`Store`] is a handle to a writer thread and a few reader threads. [`Store::write`] queues a closure; the writer
//! runs whatever is queued in one transaction, commits once and only then answers each caller ("group commit"), so
//! that a thousand waiting callers pay for one commit. It never waits for more work: a lone write is committed at
//! once. Readers have connections of their own and see committed data only.
//!
//! The crate does not know what it keeps: tables are the caller's migrations, rows the caller's closures.

mod error;
mod open;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, mpsc};

pub use rusqlite as sql;
use tokio::sync::oneshot;

pub use error::StoreError;

/// What a committed write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, even by `kill -9`: the operating system has the bytes, the disk perhaps not yet.
    Process,
    /// Power loss too: each commit waits for the disk.
    Power,
}

/// A handle to one open file. Clones share it; the file closes with the last one, or by [`Store::close`].
///
/// The queues are unbounded, because `write_then` is called where nothing can wait. Callers bound themselves: an
/// actor that has one record outstanding, a request handler that awaits its answer.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    writer: mpsc::Sender<writer::Message>,
    readers: mpsc::Sender<reader::Message>,
    file: open::StoreFile,
}

impl Store {
    /// Opens or creates the file, checks its integrity and applies the migrations that it lacks.
    ///
    /// `migrations` only ever grows at its end: the file remembers how many it has had, and a file that has had more
    /// than there are is refused. Blocks: the check reads the whole file.
    pub fn open(path: &Path, migrations: &'static [&'static str], durability: Durability) -> Result<Store, StoreError> {
        let opened = open::open(path, migrations, durability)?;
        let file = opened.file.clone();
        let readers = reader::start(&file)?;
        let writer = writer::start(opened)?;
        Ok(Store { shared: Arc::new(Shared { writer, readers, file }) })
    }

    /// Runs `job` in a transaction; resolves after its commit.
    ///
    /// The job is queued by the call itself, not by the first poll, and jobs run in the order of the calls. It runs
    /// even if the future is dropped. A job that fails or panics is undone as if it had not run and leaves its
    /// neighbours alone. Deferred constraints are checked when the whole group commits, so tables must not have any.
    pub fn write<T, F>(&self, job: F) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&sql::Transaction<'_>) -> sql::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        // A caller that went away does not want the answer.
        self.write_then(job, move |outcome| drop(answer.send(outcome)));
        async move { answered.await.unwrap_or(Err(StoreError::Closed)) }
    }

    /// Like [`Store::write`], with a callback in place of a future.
    ///
    /// `then` runs exactly once, on the writer thread after the commit, in the order of the calls. It holds up every
    /// later write, so it should do no more than hand the outcome on. If the store is closed already it runs at once,
    /// on the caller's thread.
    pub fn write_then<T, F>(&self, job: F, then: impl FnOnce(Result<T, StoreError>) + Send + 'static)
    where
        T: Send + 'static,
        F: FnOnce(&sql::Transaction<'_>) -> sql::Result<T> + Send + 'static,
    {
        let message = writer::Message::Job(writer::job(job, then));
        // A job that is dropped without having run tells its caller that the store is closed.
        drop(self.shared.writer.send(message));
    }

    /// Runs `query` on a reader thread, on one consistent view of what is committed at that moment.
    pub fn read<T, F>(&self, query: F) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&sql::Connection) -> sql::Result<T> + Send + 'static,
    {
        self.on_reader(move |connection, file| {
            // A failed query has no state to undo: the view ends with the transaction either way.
            let view = connection.unchecked_transaction().map_err(|error| file.explain(error))?;
            query(&view).map_err(|error| file.explain(error))
        })
    }

    /// Writes a consistent copy to `path`, which must not exist, while reads and writes go on.
    ///
    /// The copy appears under its name only when it is complete and on the disk.
    pub fn backup(&self, path: &Path) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let target = path.to_owned();
        self.on_reader(move |connection, _| reader::back_up(connection, &target))
    }

    /// Finishes what is queued, folds the log into the file and closes it; the file may be opened again afterwards.
    /// Later calls on any clone answer [`StoreError::Closed`].
    pub async fn close(&self) {
        // The readers first, so that the writer's connection is the last and can remove the log.
        let readers = reader::stop(&self.shared.readers);
        for stopped in readers {
            // An error means that it has stopped already.
            drop(stopped.await);
        }
        let (closed, closing) = oneshot::channel();
        drop(self.shared.writer.send(writer::Message::Close(closed)));
        drop(closing.await);
    }

    fn on_reader<T, F>(&self, query: F) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&sql::Connection, &open::StoreFile) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let file = self.shared.file.clone();
        let message = reader::Message::Query(Box::new(move |connection| {
            let outcome = error::catching(|| query(connection, &file));
            drop(answer.send(outcome));
        }));
        drop(self.shared.readers.send(message));
        async move { answered.await.unwrap_or(Err(StoreError::Closed)) }
    }
}
