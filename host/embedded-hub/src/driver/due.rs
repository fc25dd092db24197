//! Messages that expire in queues of devices that are not in memory.

use chrono::{DateTime, Utc};
use durable_store::{Store, StoreError};
use iothub_protocol::id::DeviceId;

use crate::store;

/// Most devices that are looked for at once.
const MAX_BATCH: usize = 256;

/// Where the search for due queues is.
#[derive(Default)]
pub(super) struct DueQueues {
    /// When there is something to look for.
    next: Option<DateTime<Utc>>,
    /// How far the search that goes on has got.
    after: Option<(DateTime<Utc>, DeviceId)>,
    is_searching: bool,
}

/// What a search has found.
pub(super) struct Found {
    due: Vec<(DateTime<Utc>, DeviceId)>,
    next: Option<DateTime<Utc>>,
}

impl DueQueues {
    /// Whatever is stored may be due.
    pub(super) fn new() -> DueQueues {
        DueQueues { next: Some(DateTime::UNIX_EPOCH), ..DueQueues::default() }
    }

    /// When [`DueQueues::search`] finds something to do.
    pub(super) fn next(&self) -> Option<DateTime<Utc>> {
        self.next.filter(|_| !self.is_searching)
    }

    /// A device has left memory with a message that expires then.
    pub(super) fn note(&mut self, expiry: Option<DateTime<Utc>>) {
        self.next = [self.next, expiry].into_iter().flatten().min();
    }

    /// Look for what is due by `now`, if it is time for that.
    pub(super) fn search(
        &mut self,
        store: &Store,
        now: DateTime<Utc>,
    ) -> Option<impl Future<Output = Result<Found, StoreError>> + Send + use<>> {
        self.next().filter(|next| *next <= now)?;
        (self.is_searching, self.next) = (true, None);
        let after = self.after.clone();
        Some(store.read(move |connection| {
            let due = store::due_queues(connection, now, after.as_ref(), MAX_BATCH)?;
            Ok(Found { due, next: store::next_expiry(connection, now)? })
        }))
    }

    /// The devices to be taken into memory, which sees to their queues. Those that are there already do so by themselves.
    pub(super) fn found(&mut self, found: Found) -> Vec<DeviceId> {
        self.is_searching = false;
        self.note(found.next);
        self.after = None;
        if found.due.len() == MAX_BATCH {
            // There may be more. What is found stays in the store until its end is written, so go on behind it.
            self.after = found.due.last().cloned();
            self.note(Some(DateTime::UNIX_EPOCH));
        }
        found.due.into_iter().map(|(_, id)| id).collect()
    }
}
