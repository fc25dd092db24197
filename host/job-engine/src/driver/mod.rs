//! The handle to a running engine, and what starts it.

mod again;
mod clock;
mod follow;
mod lists;
mod preview;
mod targets;
mod task;
mod templates;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use durable_store::{Store, StoreError};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::recurrence::Recurrence;
use iothub_protocol::job::targets::JobTargets;
use iothub_protocol::job::{DeviceAttempt, DeviceJob, JobRequest, JobResponse};
use iothub_protocol::query::Condition;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Note};
use crate::engine::{Command, Engine, Limits, Obedience, windows};
use crate::fleet::Fleet;
use crate::journal::{self, JobFilter, Page, Position};
use crate::plan::Plan;
use crate::preview::Tally;
use crate::record::SavedJob;
pub use again::CloneRequest;
pub use lists::Listed;
use task::Task;

/// How long the audit trail goes back: longer than jobs, as questions of who did something come late.
const AUDIT_HISTORY: TimeDelta = TimeDelta::days(366);
/// Who acts where nobody else is named.
const HOST: &str = "host";
/// How many occurrences of a series are shown before they come.
const FORETOLD: usize = 5;
const PRUNE_EVERY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub limits: Limits,
    /// How long ended jobs are kept, with all that is known of their devices.
    pub history: TimeDelta,
    /// Signs the audit trail.
    pub audit: audit::Key,
    /// How long to wait, when stopping, for the answers that are out. What has none by then is in doubt, and is sent
    /// again at the next start.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        // Azure keeps jobs for 30 days.
        let (limits, history, audit) = (Limits::default(), TimeDelta::days(30), audit::Key::default());
        Settings { limits, history, audit, drain: Duration::from_secs(5) }
    }
}

/// A handle to the engine. Clones share it; the engine runs until it is cancelled, with or without handles.
#[derive(Clone)]
pub struct JobEngine {
    store: Store,
    // Unbounded, because the store's writer thread sends into it. Each message has a caller who waits for its answer.
    messages: mpsc::UnboundedSender<Message>,
    commits: watch::Receiver<u64>,
    audit: audit::Key,
    /// For whom this handle acts.
    actor: Arc<str>,
}

enum Message {
    Created(Box<SavedJob>),
    Command {
        job: JobId,
        command: Command,
        note: Note,
        reply: oneshot::Sender<Obedience>,
    },
    /// Somebody else has written the journal.
    Written,
    Preview {
        request: Box<JobRequest>,
        tally: Tally,
        reply: oneshot::Sender<Result<Value, HubError>>,
    },
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
        tokio::spawn(prune_daily(store.clone(), settings, cancel.clone()));
        let engine = JobEngine { store, messages, commits, audit: settings.audit, actor: HOST.into() };
        tokio::spawn(lists::drop_forsaken(engine.clone(), cancel));
        Ok(engine)
    }

    /// A handle that acts for `actor`, whom the audit trail names: a policy, never its key.
    #[must_use]
    pub fn by(&self, actor: &str) -> JobEngine {
        JobEngine { actor: actor.into(), ..self.clone() }
    }

    /// What the audit trail is to hold of something that is done to a job, or to what is not of one job, now. It goes with
    /// the command to the engine ([`Engine::audit`]), or into the transaction that does it ([`audit::append`]).
    fn audit(&self, action: &'static str, job: Option<&JobId>, details: Value) -> Note {
        let (actor, job) = (self.actor.to_string(), job.cloned());
        Note { key: self.audit, at: Utc::now(), actor, action, job, details }
    }

    fn audit_creation(&self, request: &JobRequest, source: Option<&JobId>) -> Note {
        let mut details = json!({(audit::REQUEST): audit::fingerprint(&request.to_json().to_string())});
        if let Some(source) = source {
            details["from"] = json!(source);
        }
        self.audit(audit::CREATE, Some(&request.job_id), details)
    }

    /// Take a job. It is durable when this returns. One with our extension can be sent again, as by a client that has
    /// not heard the answer: it is one job.
    ///
    /// # Errors
    /// 409104 if its id is taken by another; as at Azure by any, for a job as at Azure. 400004 for a schedule by which
    /// nothing comes, and for windows and an end between which no device could begin.
    pub async fn create(&self, request: JobRequest) -> Result<(), HubError> {
        self.create_like(request, None).await
    }

    /// As [`JobEngine::create`], of a job that is made of another.
    async fn create_like(&self, request: JobRequest, source: Option<&JobId>) -> Result<(), HubError> {
        let job = request.job_id.clone();
        let note = self.audit_creation(&request, source);
        let first = first_occurrence(&request, note.at)?;
        check_times(&request, note.at, first)?;
        let (answer, answered) = oneshot::channel();
        let messages = self.messages.clone();
        self.store.write_then(
            move |tx| {
                let again = request.clone();
                let inserted = match first {
                    Some(first) => journal::insert_series(tx, request, first, note.at)?,
                    None => journal::insert(tx, request, note.at)?,
                };
                let is_same = inserted.is_none() && again.extension().is_some() && journal::is_same(tx, &again)?;
                if inserted.is_some() {
                    audit::append(tx, &note)?;
                }
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
        let found = found.map_err(|error| store_error(&error))?;
        let told = found.map(|job| foretold(job, Utc::now()));
        told.ok_or_else(|| not_found(id))
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
        let Page { items, continuation } = page.await.map_err(|error| store_error(&error))?;
        let now = Utc::now();
        Ok(Page { items: items.into_iter().map(|job| foretold(job, now)).collect(), continuation })
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
        let after = continuation.map(|text| Position::parse(text).ok_or_else(not_a_continuation)).transpose()?;
        let page =
            self.store.read(move |connection| journal::device_rows(connection, &condition, limit, after.as_ref()));
        page.await.map_err(|error| store_error(&error))
    }

    /// A job's attempts, by device. A page can hold some more than `limit`, and can be short and have a continuation all
    /// the same.
    ///
    /// # Errors
    /// 404002 if there is no such job, 400004 if the continuation is none.
    pub async fn attempts(
        &self,
        id: &JobId,
        limit: usize,
        continuation: Option<&str>,
    ) -> Result<Page<DeviceAttempt>, HubError> {
        let after = continuation.map(|text| Address::parse(text).map_err(|_| not_a_continuation())).transpose()?;
        self.get(id).await?;
        let job = id.clone();
        let page = self.store.read(move |connection| journal::attempts(connection, &job, limit, after.as_ref()));
        page.await.map_err(|error| store_error(&error))
    }

    /// The attempts at one device or module of a job.
    ///
    /// # Errors
    /// 404002 if there is no such job, 404001 if the device is none of its.
    pub async fn device_attempts(&self, id: &JobId, device: &Address) -> Result<Vec<DeviceAttempt>, HubError> {
        let (job, target) = (id.clone(), device.clone());
        let found = self.store.read(move |connection| journal::device_attempts(connection, &job, &target)).await;
        if let Some(attempts) = found.map_err(|error| store_error(&error))? {
            return Ok(attempts);
        }
        self.get(id).await?;
        Err(HubError::new(ErrorCode::DeviceNotFound, format!("{device} is none of the job {id}'s devices")))
    }

    /// Entries of the audit trail, the newest first; of one job, or all.
    ///
    /// # Errors
    /// 400004 if the continuation is none.
    pub async fn audit_trail(
        &self,
        job: Option<JobId>,
        limit: usize,
        continuation: Option<&str>,
    ) -> Result<Page<audit::Entry>, HubError> {
        let after = continuation.map(|text| text.parse().map_err(|_| not_a_continuation())).transpose()?;
        let page = self.store.read(move |connection| audit::entries(connection, job.as_ref(), limit, after));
        page.await.map_err(|error| store_error(&error))
    }

    /// Check the whole audit trail.
    pub async fn check_audit(&self) -> Result<audit::Check, HubError> {
        let key = self.audit;
        let check = self.store.scan(move |connection| audit::check(connection, &key));
        check.await.map_err(|error| store_error(&error))
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
        let (action, details) = described(&command);
        let note = self.audit(action, Some(id), details);
        self.messages.send(Message::Command { job: id.clone(), command, note, reply }).map_err(|_| stopped())?;
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

/// What of a job's policy depends on when it begins: its first occurrence is then, if it is a series.
///
/// # Errors
/// 400004 if its windows do not open in its time, or the end comes before its beginning.
fn check_times(request: &JobRequest, now: DateTime<Utc>, first: Option<DateTime<Utc>>) -> Result<(), HubError> {
    let Some(policy) = &request.policy else { return Ok(()) };
    let start = first.or(request.start_time).map_or(now, |start| start.max(now));
    if policy.end.and_then(|end| end.at).is_some_and(|at| at <= start) {
        let text = "latch.policy.end.at is not after the job's beginning".to_owned();
        return Err(HubError::new(ErrorCode::ArgumentInvalid, text));
    }
    windows::check(&policy.windows, start, request.max_execution_time_in_seconds)
        .map_err(|text| HubError::new(ErrorCode::ArgumentInvalid, format!("latch.policy.{text}")))
}

/// With what the journal does not know: the occurrences after the next one, and how windows are now that devices wait for.
fn foretold(mut job: JobResponse, now: DateTime<Utc>) -> JobResponse {
    if let Some(schedule) = job.request.recurrence.as_ref().and_then(Recurrence::schedule)
        && let (Some(series), Ok(plan)) = (&mut job.series, Plan::new(schedule, job.request.start_time))
        && let Some(next) = series.next.first()
    {
        series.next = plan.upcoming(*next, FORETOLD);
    }
    let pending = job.statistics.filter(|_| !job.status.is_terminal()).map_or(0, |statistics| statistics.pending_count);
    if let Some(policy) = job.request.policy.as_ref().filter(|_| pending > 0) {
        job.window = windows::state(&policy.windows, now, job.zones.iter().cloned());
    }
    job
}

/// What the audit trail says of a command.
fn described(command: &Command) -> (&'static str, Value) {
    match command {
        Command::Cancel => ("cancel", json!({})),
        Command::Pause { reason } => ("pause", json!({"reason": reason})),
        Command::Resume => ("resume", json!({})),
        Command::Approve { stage } => ("approve", json!({"stage": stage})),
    }
}

/// Remove old jobs now and every day, step by step, so that other writes get their turn.
async fn prune_daily(store: Store, settings: Settings, cancel: CancellationToken) {
    loop {
        let now = Utc::now();
        let (jobs_before, audit_before) = (now - settings.history, now - settings.history.max(AUDIT_HISTORY));
        let pruned = async {
            while store.write(move |tx| journal::prune(tx, jobs_before)).await? {}
            while store.write(move |tx| audit::prune(tx, &settings.audit, audit_before)).await? {}
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

fn not_a_continuation() -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, "the continuation token is not one of this hub's")
}

fn not_found(id: &JobId) -> HubError {
    HubError::new(ErrorCode::JobNotFound, format!("there is no job {id}"))
}

fn stopped() -> HubError {
    HubError::new(ErrorCode::ServiceUnavailable, "the job engine has stopped")
}
