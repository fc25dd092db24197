//! The handle to a running engine, and what starts it.

mod again;
mod clock;
mod lists;
mod targets;
mod task;
mod templates;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use durable_store::{Store, StoreError};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::recurrence::Recurrence;
use iothub_protocol::job::targets::JobTargets;
use iothub_protocol::job::{DeviceJob, JobRequest, JobResponse};
use iothub_protocol::query::Condition;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::engine::{Command, Engine, Limits, Obedience};
use crate::fleet::Fleet;
use crate::journal::{self, JobFilter, Page, Position};
use crate::plan::Plan;
use crate::record::SavedJob;
pub use again::CloneRequest;
pub use lists::Listed;
use task::Task;

/// How long ended jobs are kept, as Azure does.
const HISTORY: TimeDelta = TimeDelta::days(30);
const PRUNE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How many occurrences of a series are shown before they come.
const FORETOLD: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub limits: Limits,
    /// How long to wait, when stopping, for the answers that are out. What has none by then is in doubt, and is sent
    /// again at the next start.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { limits: Limits::default(), drain: Duration::from_secs(5) }
    }
}

/// A handle to the engine. Clones share it; the engine runs until it is cancelled, with or without handles.
#[derive(Clone)]
pub struct JobEngine {
    store: Store,
    // Unbounded, because the store's writer thread sends into it. Each message has a caller who waits for its answer.
    messages: mpsc::UnboundedSender<Message>,
    commits: watch::Receiver<u64>,
}

enum Message {
    Created(Box<SavedJob>),
    Command {
        job: JobId,
        command: Command,
        reply: oneshot::Sender<Obedience>,
    },
    /// Somebody else has written the journal.
    Written,
}

impl JobEngine {
    /// Take up what the journal has and go on with it, until `cancel`. The store is opened with [`crate::MIGRATIONS`],
    /// and belongs to this engine alone.
    pub async fn start<F: Fleet>(
        fleet: Arc<F>,
        store: Store,
        settings: Settings,
        cancel: CancellationToken,
    ) -> Result<JobEngine, StoreError> {
        let saved = store.read(journal::unfinished).await?;
        tracing::info!(unfinished = saved.len(), "job engine started");
        let engine = Engine::new(settings.limits, Utc::now(), saved);
        let (messages, inbox) = mpsc::unbounded_channel();
        let (committed, commits) = watch::channel(0);
        let task = Task::new(engine, fleet, store.clone(), inbox, committed);
        tokio::spawn(task.run(settings.drain, cancel.clone()));
        tokio::spawn(prune_daily(store.clone(), cancel.clone()));
        let engine = JobEngine { store, messages, commits };
        tokio::spawn(lists::drop_forsaken(engine.clone(), cancel));
        Ok(engine)
    }

    /// Take a job. It is durable when this returns. One with our extension can be sent again, as by a client that has
    /// not heard the answer: it is one job.
    ///
    /// # Errors
    /// 409104 if its id is taken by another; as at Azure by any, for a job as at Azure. 400004 for a schedule by which
    /// nothing comes.
    pub async fn create(&self, request: JobRequest) -> Result<(), HubError> {
        let now = Utc::now();
        let first = first_occurrence(&request, now)?;
        let job = request.job_id.clone();
        let (answer, answered) = oneshot::channel();
        let messages = self.messages.clone();
        self.store.write_then(
            move |tx| {
                let again = request.clone();
                let inserted = match first {
                    Some(first) => journal::insert_series(tx, request, first, now)?,
                    None => journal::insert(tx, request, now)?,
                };
                let is_same = inserted.is_none() && again.extension().is_some() && journal::is_same(tx, &again)?;
                Ok((inserted, is_same))
            },
            move |inserted| {
                // From here, and not after the await below: the job runs even if its creator has gone away.
                let answered = match inserted {
                    // The engine hears of it once its list is whole.
                    Ok((Some(job), _)) if job.request.targets.as_ref().is_some_and(JobTargets::is_uploaded) => {
                        messages.send(Message::Written).map(|()| true).map_err(|_| stopped())
                    }
                    Ok((Some(job), _)) => {
                        messages.send(Message::Created(Box::new(job))).map(|()| true).map_err(|_| stopped())
                    }
                    Ok((None, is_same)) => Ok(is_same),
                    Err(error) => Err(store_error(&error)),
                };
                drop(answer.send(answered));
            },
        );
        if answered.await.unwrap_or_else(|_| Err(stopped()))? {
            tracing::info!(%job, "job created");
            return Ok(());
        }
        Err(again::taken(&job))
    }

    /// # Errors
    /// 404002 if there is no such job.
    pub async fn get(&self, id: &JobId) -> Result<JobResponse, HubError> {
        let job = id.clone();
        let found = self.store.read(move |connection| journal::job(connection, &job)).await;
        let mut found = found.map_err(|error| store_error(&error))?;
        if let Some(job) = &mut found {
            foretell(job);
        }
        found.ok_or_else(|| not_found(id))
    }

    /// Have a command carried out; it is durable when this returns. A job that is cancelled before it was sent anything
    /// is `cancelled` at once, another when the answers that are out have come.
    ///
    /// # Errors
    /// 404002 if there is no such job, 412003 if it has ended or is not so that the command fits.
    pub async fn command(&self, id: &JobId, command: Command) -> Result<JobResponse, HubError> {
        if command == Command::Cancel && self.get(id).await?.listed.is_some() && self.cancel_list(id).await? {
            return self.get(id).await;
        }
        let mut met = self.ask(id, command.clone()).await?;
        if met == Obedience::Unknown && !self.get(id).await?.status.is_terminal() {
            // It is being created this instant. Once this empty write is through, the engine has been told of it.
            self.store.write(|_| Ok(())).await.map_err(|error| store_error(&error))?;
            met = self.ask(id, command).await?;
        }
        let refused = match met {
            Obedience::Begun => return self.get(id).await,
            Obedience::Refused(reason) => reason,
            Obedience::Finished | Obedience::Unknown => format!("the job {id} has ended"),
        };
        Err(HubError::new(ErrorCode::JobRunPreconditionFailed, refused))
    }

    /// How the job's devices stand and how they failed, all together and by the groups that its policy makes.
    ///
    /// # Errors
    /// 404002 if there is no such job.
    pub async fn report(&self, id: &JobId) -> Result<Value, HubError> {
        let job = id.clone();
        let found = self.store.read(move |connection| journal::report(connection, &job)).await;
        found.map_err(|error| store_error(&error))?.ok_or_else(|| not_found(id))
    }

    /// Jobs, the newest first.
    pub async fn list(
        &self,
        filter: JobFilter,
        limit: usize,
        continuation: Option<String>,
    ) -> Result<Page<JobResponse>, HubError> {
        let page =
            self.store.read(move |connection| journal::jobs(connection, &filter, limit, continuation.as_deref()));
        page.await.map_err(|error| store_error(&error))
    }

    /// The rows of `FROM devices.jobs` that match. A page can be short and have a continuation all the same.
    ///
    /// # Errors
    /// 400004 if the continuation is none.
    pub async fn device_rows(
        &self,
        condition: Condition,
        limit: usize,
        continuation: Option<&str>,
    ) -> Result<Page<DeviceJob>, HubError> {
        let invalid = || HubError::new(ErrorCode::ArgumentInvalid, "the continuation token is not one of this hub's");
        let after = continuation.map(|text| Position::parse(text).ok_or_else(invalid)).transpose()?;
        let page =
            self.store.read(move |connection| journal::device_rows(connection, &condition, limit, after.as_ref()));
        page.await.map_err(|error| store_error(&error))
    }

    /// Counts what became durable: it changes whenever a job or a device row did.
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.commits.clone()
    }

    /// Wait for a job's end.
    ///
    /// # Errors
    /// 404002 if there is no such job, 503001 if the engine stops first.
    pub async fn ended(&self, id: &JobId) -> Result<JobResponse, HubError> {
        let mut commits = self.commits();
        loop {
            commits.mark_unchanged();
            let job = self.get(id).await?;
            if job.status.is_terminal() {
                return Ok(job);
            }
            commits.changed().await.map_err(|_| stopped())?;
        }
    }

    /// Wait until the engine has stopped after its cancellation; then the store may be closed.
    pub async fn stopped(&self) {
        self.messages.closed().await;
    }

    async fn ask(&self, id: &JobId, command: Command) -> Result<Obedience, HubError> {
        let (reply, replied) = oneshot::channel();
        self.messages.send(Message::Command { job: id.clone(), command, reply }).map_err(|_| stopped())?;
        replied.await.map_err(|_| stopped())
    }
}

/// When a series first falls due; `None` for any other job.
///
/// # Errors
/// 400004 if its schedule is none, or nothing comes by it.
fn first_occurrence(request: &JobRequest, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, HubError> {
    let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
    let schedule = match &request.recurrence {
        None => return Ok(None),
        Some(Recurrence::Occurrence(_)) => {
            return Err(invalid("latch.series is for the hub to set: give the series a latch.schedule".into()));
        }
        Some(Recurrence::Series(schedule)) => schedule,
    };
    let plan = Plan::new(schedule, request.start_time).map_err(|text| invalid(format!("latch.schedule: {text}")))?;
    let first = plan
        .first(now)
        .ok_or_else(|| invalid("latch.schedule has no occurrence from now on and up to its end".to_owned()))?;
    if request.at_occurrence(first).is_none() {
        return Err(invalid(format!(
            "the job id {} is too long for a series: each of its jobs has its time after it",
            request.job_id
        )));
    }
    Ok(Some(first))
}

/// Add the occurrences after the next one, which is all that the journal knows.
fn foretell(job: &mut JobResponse) {
    let Some(schedule) = job.request.recurrence.as_ref().and_then(Recurrence::schedule) else { return };
    let (Some(series), Ok(plan)) = (&mut job.series, Plan::new(schedule, job.request.start_time)) else { return };
    if let Some(next) = series.next.first() {
        series.next = plan.upcoming(*next, FORETOLD);
    }
}

/// Remove old jobs now and every day, step by step, so that other writes get their turn.
async fn prune_daily(store: Store, cancel: CancellationToken) {
    loop {
        let before: DateTime<Utc> = Utc::now() - HISTORY;
        let pruned = async {
            while store.write(move |tx| journal::prune(tx, before)).await? {}
            Ok::<_, StoreError>(())
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            pruned = pruned => if let Err(error) = pruned {
                tracing::warn!(%error, "old jobs could not be removed");
            },
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
    }
}

fn store_error(error: &StoreError) -> HubError {
    tracing::error!(%error, "job journal failed");
    HubError::new(ErrorCode::ServerError, "the job journal failed, see the log")
}

fn not_found(id: &JobId) -> HubError {
    HubError::new(ErrorCode::JobNotFound, format!("there is no job {id}"))
}

fn stopped() -> HubError {
    HubError::new(ErrorCode::ServiceUnavailable, "the job engine has stopped")
}
