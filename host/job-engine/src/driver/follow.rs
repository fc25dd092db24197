//! For those who follow jobs, or are told of what happens to them.

use chrono::{TimeDelta, Utc};
use iothub_protocol::error::HubError;
use iothub_protocol::id::JobId;

use super::{JobEngine, foretold, not_found, store_error};
use crate::journal::{self, JobEvent, Progress};

impl JobEngine {
    /// A job and the number of its last change.
    ///
    /// # Errors
    /// 404002 if there is no such job.
    pub async fn progress(&self, id: &JobId) -> Result<Progress, HubError> {
        let job = id.clone();
        let found = self.store.read(move |connection| journal::progress(connection, &job)).await;
        found.map_err(|error| store_error(&error))?.map(told).ok_or_else(|| not_found(id))
    }

    /// Jobs that have changed after that change, in the order of their last; with `unfinished`, only those that have not
    /// ended. Each is told as it is now, however often it has changed. New ones are there once [`JobEngine::commits`] says
    /// so.
    pub async fn changed(&self, after: u64, unfinished: bool, limit: usize) -> Result<Vec<Progress>, HubError> {
        let found = self.store.read(move |connection| journal::changed(connection, after, unfinished, limit));
        Ok(found.await.map_err(|error| store_error(&error))?.into_iter().map(told).collect())
    }

    /// The number of the last change of any job.
    pub async fn last_change(&self) -> Result<u64, HubError> {
        self.store.read(journal::last_change).await.map_err(|error| store_error(&error))
    }

    /// The number of the last event that this listener was told of; of a new one, of the last event that there is.
    pub async fn listener(&self, name: &str) -> Result<u64, HubError> {
        let name = name.to_owned();
        self.store.write(move |tx| journal::listener(tx, &name)).await.map_err(|error| store_error(&error))
    }

    /// The first event after that one that is not older than `patience`. New ones are there once [`JobEngine::commits`]
    /// says so.
    pub async fn next_event(&self, after: u64, patience: TimeDelta) -> Result<Option<JobEvent>, HubError> {
        let now = Utc::now();
        let found = self.store.read(move |connection| journal::next_event(connection, after, now, patience));
        found.await.map_err(|error| store_error(&error))
    }

    /// A listener has been told of that event. It is not told of it again once this returns.
    pub async fn told(&self, name: &str, number: u64) -> Result<(), HubError> {
        let name = name.to_owned();
        self.store.write(move |tx| journal::told(tx, &name, number)).await.map_err(|error| store_error(&error))
    }

    /// A name for an event that no other event has, of this journal or another's.
    pub fn event_id(&self, event: &JobEvent) -> String {
        self.audit.name(&format!("event {} {}", event.number, event.at.timestamp_millis()))
    }
}

fn told(progress: Progress) -> Progress {
    Progress { job: foretold(progress.job, Utc::now()), ..progress }
}
