//! One SQLite file with one writer, whose answers come after the commit.
//!
//! A [`Store`] is a handle to a writer thread and a few reader threads. [`Store::write`] queues a closure; the writer
//! runs whatever is queued in one transaction, commits once and only then answers each caller ("group commit"), so
//! that a thousand waiting callers pay for one commit. It never waits for more work: a lone write is committed at
//! once. Readers have connections of their own and see committed data only. There are two sets of them, so that what
//! takes long ([`Store::scan`], [`Store::backup`], the check of a large file) holds up no short [`Store::read`].
//!
//! The crate does not know what it keeps: tables are the caller's migrations, rows the caller's closures.

mod closed;
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
use tokio::sync::{oneshot, watch};

pub use closed::ClosedStore;
pub use error::StoreError;
pub use open::CHECKED_AT_OPENING;

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
    scanners: mpsc::Sender<reader::Message>,
    file: open::StoreFile,
    /// What the check of the whole file found, once it is done.
    checked: watch::Receiver<Option<Result<(), StoreError>>>,
}

impl Store {
    /// Opens or creates the file, checks its integrity and applies the migrations that it lacks.
    ///
    /// `migrations` only ever grows at its end: the file remembers how many it has had, and a file that has had more
    /// than there are is refused. Blocks: the check reads a file of up to [`CHECKED_AT_OPENING`] bytes whole. Of a larger
    /// one only the header is read here; the rest is checked while it is in use, see [`Store::checked`].
    pub fn open(path: &Path, migrations: &'static [&'static str], durability: Durability) -> Result<Store, StoreError> {
        let opened = open::open(path, migrations, durability)?;
        let file = opened.file.clone();
        let is_checked = opened.is_checked;
        let readers = reader::start(&file, "store-reader")?;
        let scanners = reader::start(&file, "store-scanner")?;
        let writer = writer::start(opened)?;
        let (found, checked) = watch::channel(is_checked.then_some(Ok(())));
        let store = Store { shared: Arc::new(Shared { writer, readers, scanners, file, checked }) };
        if !is_checked {
            store.check_in_the_background(found);
        }
        Ok(store)
    }

    /// Resolves once the whole file has been checked: at once, unless the file is large.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if it is damaged: what was read or will be read of it may be wrong.
    pub fn checked(&self) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let mut checked = self.shared.checked.clone();
        async move {
            let found = checked.wait_for(Option::is_some).await.map_err(|_| StoreError::Closed)?;
            found.clone().unwrap_or(Err(StoreError::Closed))
        }
    }

    fn check_in_the_background(&self, found: watch::Sender<Option<Result<(), StoreError>>>) {
        // What it finds is told on the reader's thread; there is nobody to wait for the answer.
        drop(self.on_reader(&self.shared.scanners, move |connection, file| {
            let outcome = open::check_integrity(connection, file);
            if let Err(error) = &outcome {
                tracing::error!(%error, "the check of a store has found damage");
            }
            found.send_replace(Some(outcome));
            Ok(())
        }));
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
        self.on_reader(&self.shared.readers, move |connection, file| reader::on_one_view(connection, file, query))
    }

    /// Like [`Store::read`], for what may take long: it waits for others of its kind, and [`Store::read`] not for it.
    pub fn scan<T, F>(&self, query: F) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&sql::Connection) -> sql::Result<T> + Send + 'static,
    {
        self.on_reader(&self.shared.scanners, move |connection, file| reader::on_one_view(connection, file, query))
    }

    /// Writes a consistent copy to `path`, which must not exist, while reads and writes go on.
    ///
    /// The copy appears under its name only when it is complete and on the disk.
    pub fn backup(&self, path: &Path) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let target = path.to_owned();
        self.on_reader(&self.shared.scanners, move |connection, _| reader::back_up(connection, &target))
    }

    /// Finishes what is queued, folds the log into the file and closes it; the file may be opened again afterwards.
    /// Later calls on any clone answer [`StoreError::Closed`].
    pub async fn close(&self) {
        // The readers first, so that the writer's connection is the last and can remove the log.
        let readers = [&self.shared.readers, &self.shared.scanners].map(reader::stop);
        for stopped in readers.into_iter().flatten() {
            // An error means that it has stopped already.
            drop(stopped.await);
        }
        let (closed, closing) = oneshot::channel();
        drop(self.shared.writer.send(writer::Message::Close(closed)));
        drop(closing.await);
    }

    fn on_reader<T, F>(
        &self,
        readers: &mpsc::Sender<reader::Message>,
        query: F,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
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
        drop(readers.send(message));
        async move { answered.await.unwrap_or(Err(StoreError::Closed)) }
    }
}
