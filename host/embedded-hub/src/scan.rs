//! Reading many devices past the hub: queries, lists and numbers come from what is committed.
//!
//! Whoever has been told of a change finds it here, as the hub tells of it after the commit only.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

use durable_store::{Store, StoreError};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::query::{Condition, Executor, Parts, Query};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::driver::HubHandle;
use crate::hub::{Counts, not_found};
use crate::presence::Presence;
use crate::store::{self, Chunk, DeclaredIndex, Kind, MAX_ROWS, QueryRow, Selection};

/// The store and what stands beside it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reads {
    pub(crate) store: Store,
    presence: Presence,
    /// The declared indexes, as the planner knows them.
    pub(crate) indexes: Arc<RwLock<Vec<DeclaredIndex>>>,
}

impl Reads {
    pub(crate) fn new(store: Store, presence: Presence, indexes: Vec<DeclaredIndex>) -> Reads {
        Reads { store, presence, indexes: Arc::new(RwLock::new(indexes)) }
    }

    fn selection(&self, condition: &Condition, parts: Parts, most: usize) -> Selection {
        let indexes = self.indexes.read().unwrap_or_else(PoisonError::into_inner);
        plan::selection(condition, parts, most, &indexes, |kind| self.presence.connected(kind == Kind::Modules))
    }

    fn begin_chunk(&self, selection: &Arc<Selection>, after: String) -> JoinHandle<Result<Chunk, StoreError>> {
        let (selection, presence) = (selection.clone(), self.presence.clone());
        let read = self.store.scan(move |connection| store::chunk(connection, &selection, &after, &presence));
        tokio::spawn(read)
    }

    /// Push all devices that may count to an aggregate. It goes to the reader's thread, so that no row has to come from there:
    /// what making them costs is less than what handing a million of them on does.
    ///
    /// # Errors
    /// 503001 if the store cannot be read.
    async fn fold(&self, mut executor: Executor<Arc<Query>>) -> Result<Executor<Arc<Query>>, HubError> {
        let query = executor.query();
        let selection = Arc::new(self.selection(query.condition(), query.parts(), MAX_ROWS));
        let mut next = Some(String::new());
        while let Some(after) = next {
            let (selection, presence) = (selection.clone(), self.presence.clone());
            let read = self.store.scan(move |connection| {
                let mut push = |row: &Value| drop(executor.push(row));
                let next = store::each_row(connection, &selection, &after, &presence, &mut push)?;
                Ok((executor, next))
            });
            (executor, next) = read.await.map_err(unreadable)?;
        }
        Ok(executor)
    }
}

impl HubHandle {
    /// Devices in order of their ids, after `after`.
    ///
    /// # Errors
    /// 503001 if the store cannot be read, or could not be written.
    pub async fn list_devices(&self, after: Option<DeviceId>, limit: usize) -> Result<Vec<(Address, Value)>, HubError> {
        let reads = self.reads()?;
        let presence = reads.presence.clone();
        let after = after.map(String::from).unwrap_or_default();
        let read = reads.store.scan(move |connection| store::devices(connection, &after, limit, &presence));
        read.await.map_err(unreadable)
    }

    /// The modules of a device, in order of their ids.
    ///
    /// # Errors
    /// 404001 if there is no such device, else as [`HubHandle::list_devices`].
    pub async fn list_modules(&self, device: DeviceId) -> Result<Vec<(Address, Value)>, HubError> {
        let reads = self.reads()?;
        let (presence, id) = (reads.presence.clone(), device.clone());
        let read = reads.store.scan(move |connection| store::modules(connection, &id, &presence));
        read.await.map_err(unreadable)?.ok_or_else(|| not_found(&device.into()))
    }

    /// Push all devices or modules that may count to an aggregate.
    ///
    /// # Errors
    /// As [`HubHandle::list_devices`].
    pub(crate) async fn fold(&self, executor: Executor<Arc<Query>>) -> Result<Executor<Arc<Query>>, HubError> {
        self.reads()?.fold(executor).await
    }

    /// Whether a device or module is connected, and whether a method would reach it.
    ///
    /// # Errors
    /// 503001 if the hub could not write its store.
    pub(crate) fn is_there(&self, address: &Address) -> Result<(bool, bool), HubError> {
        let seen = self.reads()?.presence.seen(address);
        Ok((seen.is_some_and(|seen| seen.connected), seen.is_some_and(|seen| seen.listens)))
    }

    /// The registry in numbers.
    ///
    /// # Errors
    /// As [`HubHandle::list_devices`].
    pub async fn counts(&self) -> Result<Counts, HubError> {
        let reads = self.reads()?;
        let counts = reads.store.scan(store::counts).await.map_err(unreadable)?;
        Ok(Counts { connected: reads.presence.connected_count(), ..counts })
    }
}

fn unreadable(error: StoreError) -> HubError {
    tracing::error!(%error, "the hub's store cannot be read");
    HubError::new(ErrorCode::ServiceUnavailable, "the hub cannot read its store, see its log")
}

/// A walk over the devices or modules for which a condition holds, in the order of their keys.
pub(crate) struct Walk {
    /// Or why there is nothing to read.
    reads: Result<Reads, HubError>,
    selection: Arc<Selection>,
    state: State,
}

enum State {
    /// To be read from here.
    At(String),
    /// Being read.
    Reading(JoinHandle<Result<Chunk, StoreError>>),
    Over,
}

impl Walk {
    /// With whole twins.
    pub(crate) fn over(hub: &HubHandle, condition: &Condition) -> Walk {
        Walk::begin(hub, condition, Parts::ALL, None, MAX_ROWS)
    }

    /// Over those of these devices, or of these modules, that exist.
    pub(crate) fn of(hub: &HubHandle, kind: Kind, addresses: &[Address], parts: Parts) -> Walk {
        let mut walk = Walk::over(hub, &Condition::all());
        let selection = plan::selection_of(kind, addresses, parts, MAX_ROWS);
        walk.selection = Arc::new(selection);
        if addresses.is_empty() {
            walk.state = State::Over;
        }
        walk
    }

    /// With these parts, which include those that decide whether the condition holds.
    pub(crate) fn parts(hub: &HubHandle, condition: &Condition, parts: Parts) -> Walk {
        Walk::begin(hub, condition, parts, None, MAX_ROWS)
    }

    /// As [`Walk::parts`], over those of these devices and modules that exist.
    pub(crate) fn among(hub: &HubHandle, condition: &Condition, addresses: &[Address], parts: Parts) -> Walk {
        let kind = Kind::of_source(condition.source());
        let of_kind: Vec<_> = addresses.iter().filter(|address| Kind::of(address) == kind).cloned().collect();
        let mut walk = Walk::of(hub, kind, &of_kind, parts);
        if let Some(selection) = Arc::get_mut(&mut walk.selection) {
            selection.condition = condition.clone();
        }
        walk
    }

    /// With what the query looks at. `limit` is how many rows its page may have.
    pub(crate) fn of_query(hub: &HubHandle, query: &Query, after: Option<&Address>, limit: usize) -> Walk {
        // One more, which tells whether there is another page.
        Walk::begin(hub, query.condition(), query.parts(), after, limit.saturating_add(1))
    }

    fn begin(hub: &HubHandle, condition: &Condition, parts: Parts, after: Option<&Address>, most: usize) -> Walk {
        let reads = hub.reads().cloned();
        let selection = reads.as_ref().map_or_else(
            |_| plan::selection(condition, parts, most, &[], |_| Vec::new()),
            |reads| reads.selection(condition, parts, most),
        );
        let after = after.map(Address::to_string).unwrap_or_default();
        Walk { reads, selection: Arc::new(selection), state: State::At(after) }
    }

    /// The next few; `None` at the end. There may be none among them while there are more.
    ///
    /// # Errors
    /// 503001 if the store cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<QueryRow>>, HubError> {
        let reads = self.reads.as_ref().map_err(Clone::clone)?;
        let (reading, is_first) = match std::mem::replace(&mut self.state, State::Over) {
            State::Over => return Ok(None),
            State::At(after) => (reads.begin_chunk(&self.selection, after), true),
            State::Reading(reading) => (reading, false),
        };
        let chunk = reading.await.unwrap_or(Err(StoreError::Closed)).map_err(unreadable)?;
        self.state = match chunk.next {
            None => State::Over,
            // Most pages are done with the first chunk; whoever wants more will want all.
            Some(next) if is_first => State::At(next),
            Some(next) => State::Reading(reads.begin_chunk(&self.selection, next)),
        };
        Ok(Some(chunk.rows))
    }

    /// Whether the chunk that came last was the last.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }
}
