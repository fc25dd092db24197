//! Lists of devices that come after their jobs.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::JobResponse;
use iothub_protocol::job::targets::{JobTargets, ListPart, ListSeal, MAX_LISTED};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{JobEngine, Message, described, stopped, store_error};
use crate::audit;
use crate::engine::Command;
use crate::journal::{self, ListState};

/// A list that has not grown for so long is not completed any more: whoever sent it has gone.
const FORSAKEN: TimeDelta = TimeDelta::hours(1);
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What became of a part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// How many devices the list has, those to leave out included.
    pub count: u64,
    /// How many of the part it had before.
    pub repeated: u64,
}

impl JobEngine {
    /// Add to a job's list. It is durable when this returns; a part that comes again changes nothing.
    ///
    /// # Errors
    /// 404002 if there is no such job, 412003 if its devices are known already, 403002 if they are too many.
    pub async fn extend_list(&self, id: &JobId, part: ListPart) -> Result<Listed, HubError> {
        let (job, now) = (id.clone(), Utc::now());
        let written = self.store.write(move |tx| journal::extend_list(tx, &job, &part, now)).await;
        match written.map_err(|error| store_error(&error))? {
            ListState::NoJob => Err(no_job(id)),
            ListState::Settled => Err(settled(id)),
            ListState::Full => {
                let text = format!("a list has at most {MAX_LISTED} devices: make several jobs of it");
                Err(HubError::new(ErrorCode::IotHubQuotaExceeded, text))
            }
            ListState::Open { listed, repeated } => Ok(Listed { count: listed, repeated }),
        }
    }

    /// A job's list is whole: from now on it is as any other job. Said again, it changes nothing.
    ///
    /// # Errors
    /// 404002 if there is no such job, 412003 if it has no list to come, 412001 if the list is another.
    pub async fn complete_list(&self, id: &JobId, seal: ListSeal) -> Result<JobResponse, HubError> {
        let found = self.get(id).await?;
        if found.listed.is_none() {
            let is_uploaded = found.request.targets.as_ref().is_some_and(JobTargets::is_uploaded);
            let was_dropped = found.status.is_terminal() && found.statistics.is_none();
            return if is_uploaded && !was_dropped { Ok(found) } else { Err(settled(id)) };
        }
        let job = id.clone();
        let read = self.store.scan(move |connection| journal::sealed(connection, &job)).await;
        let is = read.map_err(|error| store_error(&error))?;
        if is != seal {
            let text = format!(
                "the list of the job {id} has {} devices and the SHA-256 {}, and is to have {} and {}: send what is \
                 missing, and complete it then",
                is.count, is.sha256, seal.count, seal.sha256
            );
            return Err(HubError::new(ErrorCode::PreconditionFailed, text));
        }
        let (answer, answered) = oneshot::channel();
        let (messages, job) = (self.messages.clone(), id.clone());
        let note = self.audit("complete list", Some(id), json!({"count": seal.count, "sha256": seal.sha256}));
        self.store.write_then(
            move |tx| {
                let sealed = journal::seal_list(tx, &job, seal.count)?;
                if sealed.is_some() {
                    audit::append(tx, &note)?;
                }
                Ok(sealed)
            },
            move |sealed| {
                // From here, as for a job that is created.
                let answered = match sealed {
                    Ok(Some(job)) => messages.send(Message::Created(Box::new(job))).map_err(|_| stopped()),
                    // Somebody else has completed, changed or cancelled it this instant; which of it is seen then.
                    Ok(None) => Ok(()),
                    Err(error) => Err(store_error(&error)),
                };
                drop(answer.send(answered));
            },
        );
        answered.await.unwrap_or_else(|_| Err(stopped()))?;
        let found = self.get(id).await?;
        match found.listed {
            None => Ok(found),
            Some(_) => Err(HubError::new(ErrorCode::PreconditionFailed, format!("the list of the job {id} changes"))),
        }
    }

    /// Whether a job was cancelled whose list was still to come.
    pub(super) async fn cancel_list(&self, id: &JobId) -> Result<bool, HubError> {
        let (job, now) = (id.clone(), Utc::now());
        let (action, details) = described(&Command::Cancel);
        let note = self.audit(action, Some(id), details);
        let cancelled = self.store.write(move |tx| {
            let cancelled = journal::cancel_list(tx, &job, now)?;
            if cancelled {
                audit::append(tx, &note)?;
            }
            Ok(cancelled)
        });
        let cancelled = cancelled.await.map_err(|error| store_error(&error))?;
        self.tell_written();
        Ok(cancelled)
    }

    fn tell_written(&self) {
        // An engine that has stopped has nobody to tell.
        drop(self.messages.send(Message::Written));
    }
}

/// End jobs whose lists do not come, as long as the engine runs.
pub(super) async fn drop_forsaken(engine: JobEngine, cancel: CancellationToken) {
    loop {
        let now = Utc::now();
        let reason =
            format!("the list of its devices was not completed, and has not grown for {} min", FORSAKEN.num_minutes());
        match engine.store.write(move |tx| journal::expire_lists(tx, now - FORSAKEN, now, &reason)).await {
            Ok(0) => {}
            Ok(jobs) => {
                tracing::warn!(jobs, "jobs have failed whose lists were not completed");
                engine.tell_written();
            }
            Err(error) => tracing::warn!(%error, "jobs whose lists were not completed could not be ended"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn no_job(id: &JobId) -> HubError {
    HubError::new(ErrorCode::JobNotFound, format!("there is no job {id}"))
}

fn settled(id: &JobId) -> HubError {
    let text = format!("the job {id} takes no list: it was made without one, has begun or has ended");
    HubError::new(ErrorCode::JobRunPreconditionFailed, text)
}
