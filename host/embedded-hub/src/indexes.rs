//! Declaring indexes on parts of twins: of a running hub, and of the store of one that does not run.

use std::sync::PoisonError;

use durable_store::{Store, StoreError};
use iothub_protocol::error::{ErrorCode, HubError};

use crate::driver::HubHandle;
use crate::store::{self, DeclaredIndex, MAX_INDEXES, TwinPath};

impl HubHandle {
    /// The declared indexes: paths such as `tags.site`, in order.
    ///
    /// # Errors
    /// 503001 if the store could not be written.
    pub fn indexes(&self) -> Result<Vec<String>, HubError> {
        let indexes = self.reads()?.indexes.read().unwrap_or_else(PoisonError::into_inner);
        Ok(indexes.iter().map(|index| index.path.to_string()).collect())
    }

    /// Declare an index and build it, which takes seconds with a million devices; other writes wait that long. `false` if it
    /// is there already.
    ///
    /// # Errors
    /// 400004 for a path that cannot be indexed or one index too many, 503001 if the store cannot be written.
    pub async fn add_index(&self, path: &str) -> Result<bool, HubError> {
        let reads = self.reads()?;
        let added = add(&reads.store, path).await?;
        self.know(all(&reads.store).await?)?;
        Ok(added)
    }

    /// Remove a declared index; `false` if there is none.
    ///
    /// # Errors
    /// 400004 for what is no path, 503001 if the store cannot be written.
    pub async fn remove_index(&self, path: &str) -> Result<bool, HubError> {
        let reads = self.reads()?;
        let removed = remove(&reads.store, path).await?;
        self.know(all(&reads.store).await?)?;
        Ok(removed)
    }

    /// A query that was planned before this finds out by itself if its index is gone.
    fn know(&self, indexes: Vec<DeclaredIndex>) -> Result<(), HubError> {
        *self.reads()?.indexes.write().unwrap_or_else(PoisonError::into_inner) = indexes;
        Ok(())
    }
}

pub(crate) async fn add(store: &Store, path: &str) -> Result<bool, HubError> {
    let path = parse(path)?;
    let added = store.write(move |tx| store::add_index(tx, &path)).await.map_err(unwritten)?;
    added.ok_or_else(|| {
        let text = format!("there are {MAX_INDEXES} indexes already, which is all there may be: remove one first");
        HubError::new(ErrorCode::ArgumentInvalid, text)
    })
}

pub(crate) async fn remove(store: &Store, path: &str) -> Result<bool, HubError> {
    let path = parse(path)?;
    store.write(move |tx| store::remove_index(tx, &path)).await.map_err(unwritten)
}

pub(crate) async fn all(store: &Store) -> Result<Vec<DeclaredIndex>, HubError> {
    store.read(store::load_indexes).await.map_err(unwritten)
}

fn parse(path: &str) -> Result<TwinPath, HubError> {
    TwinPath::parse(path).map_err(|error| HubError::new(ErrorCode::ArgumentInvalid, error.to_string()))
}

/// Nothing has changed then, so the hub goes on.
fn unwritten(error: StoreError) -> HubError {
    HubError::new(ErrorCode::ServiceUnavailable, error.to_string())
}
