//! The reader threads, and backup, which is a long read.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::StoreError;
use crate::open::{FILE_MODE, StoreFile, with_suffix};
use crate::sql::backup::{Backup, StepResult};
use crate::sql::{self, Connection};

/// Of each kind, so that one slow query leaves a thread for the rest.
const READERS: usize = 2;

pub(crate) enum Message {
    Query(Box<dyn FnOnce(&Connection) + Send>),
    /// Ends the reader that takes it; answered once its connection is closed.
    Stop(oneshot::Sender<()>),
}

/// Starts a set of readers; `name` is what the operating system shows of their threads.
pub(crate) fn start(file: &StoreFile, name: &str) -> Result<Sender<Message>, StoreError> {
    let (sender, receiver) = mpsc::channel();
    let queue = Arc::new(Mutex::new(receiver));
    for _ in 0..READERS {
        let connection = file.connect_reader()?;
        let queue = Arc::clone(&queue);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(connection, &queue))
            .map_err(|error| file.explain_io(error))?;
    }
    Ok(sender)
}

/// Asks every reader to stop after what is queued.
pub(crate) fn stop(readers: &Sender<Message>) -> Vec<oneshot::Receiver<()>> {
    let ask = |_| {
        let (stopped, stopping) = oneshot::channel();
        // Where nobody reads any more, the answer is dropped, which says the same.
        drop(readers.send(Message::Stop(stopped)));
        stopping
    };
    (0..READERS).map(ask).collect()
}

fn run(connection: Connection, queue: &Mutex<Receiver<Message>>) {
    loop {
        // The guard is a temporary: the lock is free again while the query runs.
        let received = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match received {
            Ok(Message::Query(query)) => query(&connection),
            Ok(Message::Stop(stopped)) => {
                drop(connection);
                let _ = stopped.send(());
                return;
            }
            Err(_) => return,
        }
    }
}

/// Runs `query` on one consistent view of what is committed.
pub(crate) fn on_one_view<T>(
    connection: &Connection,
    file: &StoreFile,
    query: impl FnOnce(&Connection) -> sql::Result<T>,
) -> Result<T, StoreError> {
    // A failed query has no state to undo: the view ends with the transaction either way.
    let view = connection.unchecked_transaction().map_err(|error| file.explain(error))?;
    query(&view).map_err(|error| file.explain(error))
}

/// Copies the database of `connection` to `target`, which appears whole or not at all.
pub(crate) fn back_up(connection: &Connection, target: &Path) -> Result<(), StoreError> {
    let explain = |error| StoreError::from_io(target, error);
    if fs::exists(target).map_err(explain)? {
        return Err(explain(io::Error::from(io::ErrorKind::AlreadyExists)));
    }
    let partial = with_suffix(target, ".partial");
    let written = write_copy(connection, &partial).and_then(|()| publish(&partial, target).map_err(explain));
    if written.is_err() {
        // The reason of the failure matters more than a left-over, which the next backup overwrites.
        drop(fs::remove_file(&partial));
    }
    written
}

fn write_copy(connection: &Connection, partial: &Path) -> Result<(), StoreError> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(partial)
        .map_err(|error| StoreError::from_io(partial, error))?;
    let explain = |error| StoreError::from_sql(partial, error);
    let mut copy = Connection::open(partial).map_err(explain)?;
    let backup = Backup::new(connection, &mut copy).map_err(explain)?;
    // All pages in one step: one view of the data, which in the log's mode holds up no writer.
    match backup.step(-1).map_err(explain)? {
        StepResult::Done => Ok(()),
        _ => Err(StoreError::Locked { path: partial.to_owned() }),
    }
}

/// Onto the disk, then under its name.
fn publish(partial: &Path, target: &Path) -> io::Result<()> {
    File::open(partial)?.sync_all()?;
    fs::rename(partial, target)?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
