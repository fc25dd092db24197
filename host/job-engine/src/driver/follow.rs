//! For those who follow jobs.

use iothub_protocol::error::HubError;
use iothub_protocol::id::JobId;

use super::{JobEngine, not_found, store_error};
use crate::journal::{self, Progress};

impl JobEngine {
    /// A job and the number of its last change.
    ///
    /// # Errors
    /// 404002 if there is no such job.
    pub async fn progress(&self, id: &JobId) -> Result<Progress, HubError> {
        let job = id.clone();
        let found = self.store.read(move |connection| journal::progress(connection, &job)).await;
        found.map_err(|error| store_error(&error))?.ok_or_else(|| not_found(id))
    }

    /// Jobs that have changed after that change, in the order of their last; with `unfinished`, only those that have not
    /// ended. Each is told as it is now, however often it has changed. New ones are there once [`JobEngine::commits`] says
    /// so.
    pub async fn changed(&self, after: u64, unfinished: bool, limit: usize) -> Result<Vec<Progress>, HubError> {
        let found = self.store.read(move |connection| journal::changed(connection, after, unfinished, limit));
        found.await.map_err(|error| store_error(&error))
    }

    /// The number of the last change of any job.
    pub async fn last_change(&self) -> Result<u64, HubError> {
        self.store.read(journal::last_change).await.map_err(|error| store_error(&error))
    }
}
