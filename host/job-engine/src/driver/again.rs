//! Jobs that are made of others: once more, or once more for those that failed.

use chrono::{DateTime, Utc};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::job::targets::{JobTargets, List};
use iothub_protocol::job::{JobRequest, JobResponse};
use tokio::sync::oneshot;

use super::{JobEngine, Message, check_times, stopped, store_error};
use crate::audit;
use crate::journal::{self, Again, Copied};

/// What another job is made of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneRequest {
    pub job_id: JobId,
    /// `None` is at once.
    pub start_time: Option<DateTime<Utc>>,
    /// Only the devices that failed so, by any failure if there is no class; `None` is as the job itself was, so that
    /// its condition is asked again.
    pub failed: Option<Vec<FailureClass>>,
}

impl JobEngine {
    /// Make a job like another. Answers as it is then; it is durable when this returns.
    ///
    /// # Errors
    /// 404002 if there is no such job, 409104 if the new one's id is taken, 412003 if no device of the job failed so, its
    /// list is still to come, or it is continuous and its list of those to leave out was uploaded.
    pub async fn clone_job(&self, source: &JobId, wanted: CloneRequest) -> Result<JobResponse, HubError> {
        let found = self.get(source).await?;
        if found.listed.is_some() {
            let text = format!("the list of the job {source} is not complete: clone it then");
            return Err(HubError::new(ErrorCode::JobRunPreconditionFailed, text));
        }
        let CloneRequest { job_id, start_time, failed } = wanted;
        // What is made of one of a series' jobs is a job by itself.
        let recurrence = found.request.recurrence.clone().filter(|recurrence| recurrence.schedule().is_some());
        let request = JobRequest { job_id: job_id.clone(), start_time, recurrence, ..found.request };
        let has_list = request.targets.as_ref().is_some_and(JobTargets::is_uploaded);
        if failed.is_none() && has_list && request.is_continuous() && found.statistics.is_some() {
            let text = format!(
                "the job {source} is continuous and leaves out those of a list that was sent for it alone: make a new job, \
                 with that list"
            );
            return Err(HubError::new(ErrorCode::JobRunPreconditionFailed, text));
        }
        let (request, copied) = match failed {
            None if !has_list => {
                self.create_like(request, Some(source)).await?;
                return self.get(&job_id).await;
            }
            // What was left out of it is left out of its rows; before it has begun, it has its list as it came.
            None if found.statistics.is_none() => (request, Copied::All),
            None => (over_list(request), Copied::All),
            Some(classes) => (over_list(request), Copied::Failed(classes)),
        };
        let (answer, answered) = oneshot::channel();
        let (messages, job) = (self.messages.clone(), source.clone());
        let note = self.audit_creation(&request, Some(source));
        check_times(&request, note.at, None)?;
        self.store.write_then(
            move |tx| {
                let made = journal::insert_copy(tx, &job, request, &copied, note.at)?;
                if let Again::Made(_) = made {
                    audit::append(tx, &note)?;
                }
                Ok(made)
            },
            move |made| {
                // From here, as for a job that is created.
                let answered = match made {
                    Ok(Again::Made(job)) => messages.send(Message::Created(job)).map(|()| None).map_err(|_| stopped()),
                    Ok(other) => Ok(Some(other)),
                    Err(error) => Err(store_error(&error)),
                };
                drop(answer.send(answered));
            },
        );
        match answered.await.unwrap_or_else(|_| Err(stopped()))? {
            None | Some(Again::Made(_)) => self.get(&job_id).await,
            Some(Again::Taken) => Err(taken(&job_id)),
            Some(Again::Nobody) => {
                let text = format!("no device of the job {source} failed so: there is nothing to try again");
                Err(HubError::new(ErrorCode::JobRunPreconditionFailed, text))
            }
        }
    }
}

fn over_list(request: JobRequest) -> JobRequest {
    let targets = Some(JobTargets { list: Some(List::Uploaded), ..JobTargets::default() });
    JobRequest { query_condition: "*".to_owned(), targets, ..request }
}

pub(super) fn taken(job: &JobId) -> HubError {
    HubError::new(ErrorCode::JobAlreadyExists, format!("the job {job} exists already, choose another id"))
}
