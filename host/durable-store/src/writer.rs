//! The writer thread: group commit.

use std::fs::File;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use tokio::sync::oneshot;

use crate::StoreError;
use crate::error::catching;
use crate::open::{Opened, StoreFile};
use crate::sql::{self, Connection, Transaction, TransactionBehavior};

/// Most jobs in one transaction. A bound on how long the first waits for the last; far above where one commit's cost
/// stops to matter.
const MAX_GROUP: usize = 1024;

pub(crate) enum Message {
    Job(Box<dyn Job>),
    /// Answered once the file is closed.
    Close(oneshot::Sender<()>),
}

/// One queued write, its types erased. Dropped unsettled, it answers [`StoreError::Closed`].
pub(crate) trait Job: Send {
    /// Runs the caller's closure, once.
    fn run(&mut self, transaction: &Transaction<'_>, file: &StoreFile) -> Result<(), StoreError>;
    /// Tells the caller.
    fn settle(self: Box<Self>, outcome: Result<(), StoreError>);
}

/// Makes a job of a closure and what is to happen after its commit.
pub(crate) fn job<T, F>(write: F, then: impl FnOnce(Result<T, StoreError>) + Send + 'static) -> Box<dyn Job>
where
    T: Send + 'static,
    F: FnOnce(&Transaction<'_>) -> sql::Result<T> + Send + 'static,
{
    Box::new(Write { write: Some(write), value: None, then: Some(Box::new(then)) })
}

type Then<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

struct Write<T, F> {
    write: Option<F>,
    value: Option<T>,
    then: Option<Then<T>>,
}

impl<T, F> Write<T, F> {
    fn answer(&mut self, outcome: Result<T, StoreError>) {
        let Some(then) = self.then.take() else { return };
        let called = catching(|| {
            then(outcome);
            Ok(())
        });
        if let Err(error) = called {
            tracing::error!(%error, "what follows a commit failed");
        }
    }
}

impl<T, F> Job for Write<T, F>
where
    T: Send,
    F: FnOnce(&Transaction<'_>) -> sql::Result<T> + Send,
{
    fn run(&mut self, transaction: &Transaction<'_>, file: &StoreFile) -> Result<(), StoreError> {
        let Some(write) = self.write.take() else { return Err(StoreError::Closed) };
        let value = catching(|| write(transaction).map_err(|error| file.explain(error)))?;
        self.value = Some(value);
        Ok(())
    }

    fn settle(mut self: Box<Self>, outcome: Result<(), StoreError>) {
        let value = self.value.take();
        let outcome = outcome.and_then(|()| value.ok_or(StoreError::Closed));
        self.answer(outcome);
    }
}

impl<T, F> Drop for Write<T, F> {
    fn drop(&mut self) {
        self.answer(Err(StoreError::Closed));
    }
}

pub(crate) fn start(opened: Opened) -> Result<Sender<Message>, StoreError> {
    let (sender, queue) = mpsc::channel();
    let Opened { file, connection, lock, is_checked: _ } = opened;
    let path = file.clone();
    let writer = Writer { file, connection, queue, lock };
    thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || writer.run())
        .map_err(|error| path.explain_io(error))?;
    Ok(sender)
}

struct Writer {
    // In the order of closing: the lock goes last.
    connection: Connection,
    file: StoreFile,
    queue: Receiver<Message>,
    lock: File,
}

impl Writer {
    fn run(mut self) {
        // The queue ends when the last handle is gone and everything queued has been done.
        while let Ok(first) = self.queue.recv() {
            let closing = match first {
                Message::Job(job) => self.commit_group(job),
                Message::Close(closed) => Some(closed),
            };
            if let Some(closed) = closing {
                self.close();
                // Whoever asked may have gone away.
                let _ = closed.send(());
                return;
            }
        }
        self.close();
    }

    /// Runs `first` and whatever else is queued in one transaction, then answers each. Gives back a close request that
    /// came behind them.
    fn commit_group(&mut self, first: Box<dyn Job>) -> Option<oneshot::Sender<()>> {
        let mut group = Group { settled: Vec::new() };
        let transaction = match self.connection.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(transaction) => transaction,
            Err(error) => {
                first.settle(Err(self.file.explain(error)));
                return None;
            }
        };
        let mut closing = None;
        let mut next = Some(first);
        let mut whole = Ok(());
        while let Some(job) = next.take() {
            whole = group.run(job, &transaction, &self.file);
            if whole.is_err() || group.settled.len() == MAX_GROUP {
                break;
            }
            match self.queue.try_recv() {
                Ok(Message::Job(job)) => next = Some(job),
                Ok(Message::Close(closed)) => closing = Some(closed),
                // Nothing queued, or nobody left to queue: commit what there is.
                Err(_) => {}
            }
        }
        tracing::trace!(path = %self.file.path().display(), writes = group.settled.len(), "commit begins");
        let committed = whole.and_then(|()| transaction.commit().map_err(|error| self.file.explain(error)));
        group.settle(committed);
        closing
    }

    fn close(self) {
        let Writer { connection, file, queue, lock } = self;
        if let Err((_, error)) = connection.close() {
            tracing::warn!(error = %file.explain(error), "store closed with an error");
        }
        // What came after the close request is answered before the lock lets the next owner in.
        drop(queue);
        drop(lock);
    }
}

/// The jobs that share a commit, each with its own outcome so far.
struct Group {
    settled: Vec<(Box<dyn Job>, Result<(), StoreError>)>,
}

impl Group {
    /// Runs one job in a savepoint. An error means that the whole transaction is lost.
    fn run(
        &mut self,
        mut job: Box<dyn Job>,
        transaction: &Transaction<'_>,
        file: &StoreFile,
    ) -> Result<(), StoreError> {
        let outcome = in_savepoint(job.as_mut(), transaction, file);
        let undone = match &outcome {
            Ok(()) => Ok(()),
            // SQLite may answer a full disk by rolling everything back, not just the statement.
            Err(error) if transaction.is_autocommit() => Err(error.clone()),
            Err(_) => execute(transaction, "ROLLBACK TO job")
                .and_then(|()| execute(transaction, "RELEASE job"))
                .map_err(|error| file.explain(error)),
        };
        self.settled.push((job, outcome));
        undone
    }

    fn settle(self, committed: Result<(), StoreError>) {
        for (job, outcome) in self.settled {
            job.settle(outcome.and_then(|()| committed.clone()));
        }
    }
}

fn in_savepoint(job: &mut dyn Job, transaction: &Transaction<'_>, file: &StoreFile) -> Result<(), StoreError> {
    execute(transaction, "SAVEPOINT job").map_err(|error| file.explain(error))?;
    job.run(transaction, file)?;
    execute(transaction, "RELEASE job").map_err(|error| file.explain(error))
}

fn execute(transaction: &Transaction<'_>, statement: &str) -> sql::Result<()> {
    transaction.prepare_cached(statement)?.execute([]).map(drop)
}
