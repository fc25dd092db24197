//! The task that waits, writes and calls for the engine.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use durable_store::{Store, StoreError};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::{DeviceJobOutcome, JobAction, JobRequest, TwinUpdate};
use iothub_protocol::plugin_report;
use serde_json::Value;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Message;
use super::clock::Clock;
use super::preview::preview;
use super::targets::{find, find_new};
use crate::engine::{Engine, Input, Obedience, Output, Record};
use crate::fleet::Fleet;
use crate::journal;
use crate::preview::Tally;

/// The longest sleep: the engine's deadlines are times of day, and the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Between tries to write what the store refused. Nothing is sent meanwhile, as nothing can be recorded.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// Changed devices that are taken together.
const MOST_CHANGES: usize = 1000;

/// One write at a time: whatever the engine decides during it goes into the next, so that a thousand outcomes take a
/// few commits and not a thousand.
type Write = Pin<Box<dyn Future<Output = Result<Arc<Record>, StoreError>> + Send>>;

pub(super) struct Task<F> {
    engine: Engine,
    clock: Clock,
    fleet: Arc<F>,
    store: Store,
    inbox: mpsc::UnboundedReceiver<Message>,
    committed: watch::Sender<u64>,
    /// `None` if the fleet does not tell, or no longer.
    arrivals: Option<broadcast::Receiver<Address>>,
    /// As long as a job wants to hear of them.
    changes: Option<broadcast::Receiver<Address>>,
    /// The fleet does not tell of changes.
    is_untold: bool,
    calls: JoinSet<Input>,
    /// What a call that panicked is taken for.
    panicked: HashMap<Id, Input>,
    write: Option<Write>,
    /// Who waits for the write that is under way.
    awaiting_write: Vec<oneshot::Sender<Obedience>>,
    /// Who waits for the one after it.
    awaiting_next: Vec<oneshot::Sender<Obedience>>,
}

impl<F: Fleet> Task<F> {
    pub(super) fn new(
        engine: Engine,
        fleet: Arc<F>,
        store: Store,
        inbox: mpsc::UnboundedReceiver<Message>,
        committed: watch::Sender<u64>,
    ) -> Task<F> {
        Task {
            engine,
            clock: Clock::new(Instant::now(), Utc::now()),
            arrivals: fleet.arrivals(),
            changes: None,
            is_untold: false,
            fleet,
            store,
            inbox,
            committed,
            calls: JoinSet::new(),
            panicked: HashMap::new(),
            write: None,
            awaiting_write: Vec::new(),
            awaiting_next: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, drain: Duration, cancel: CancellationToken) {
        let mut stop_at = None;
        loop {
            self.carry_out();
            if stop_at.is_some() && self.engine.in_flight() == 0 && self.write.is_none() {
                break;
            }
            let timer = self.timer(stop_at);
            tokio::select! {
                Some(message) = self.inbox.recv() => self.take(message),
                Some(ended) = self.calls.join_next_with_id() => self.called(ended),
                written = pending(&mut self.write) => match written {
                    Ok(record) => self.written(record),
                    // Only a closed store gives up; then nothing can be recorded any more, and so nothing be done.
                    Err(error) => {
                        tracing::error!(%error, "job engine stops");
                        break;
                    }
                },
                arrival = next_arrival(&mut self.arrivals) => match arrival {
                    Ok(device) => self.handle(Input::Arrived(device)),
                    Err(RecvError::Lagged(_)) => self.handle(Input::ManyArrived),
                    Err(RecvError::Closed) => self.arrivals = None,
                },
                changed = next_changes(&mut self.changes) => match changed {
                    Ok(devices) => self.handle(Input::Changed(devices)),
                    Err(RecvError::Lagged(_)) => self.handle(Input::ManyChanged),
                    Err(RecvError::Closed) => (self.changes, self.is_untold) = (None, true),
                },
                () = sleep(timer) => self.handle(Input::Tick),
                () = cancel.cancelled(), if stop_at.is_none() => {
                    self.engine.drain();
                    stop_at = Some(Instant::now() + drain);
                }
            }
            if stop_at.is_some_and(|stop_at| stop_at <= Instant::now()) {
                let in_flight = self.engine.in_flight();
                tracing::warn!(
                    in_flight,
                    "stopped before all devices had answered, they are asked again at the next start"
                );
                break;
            }
        }
        tracing::info!("job engine stopped");
    }

    fn handle(&mut self, input: Input) {
        let now = self.now();
        self.engine.handle(now, input);
    }

    /// The time of day. If the clock was set, the engine knows it first.
    fn now(&mut self) -> DateTime<Utc> {
        let now = Utc::now();
        if let Some(set) = self.clock.look(Instant::now(), now) {
            tracing::warn!(
                seconds = set.num_seconds(),
                "the clock was set, what is measured in seconds goes on as before"
            );
            self.engine.clock_set(set);
        }
        now
    }

    /// Listen for changes as long as a job gathers devices: from before it asks for those that it begins with.
    fn listen(&mut self) {
        let gathers = self.engine.gathers();
        if !gathers {
            self.changes = None;
        } else if self.changes.is_none() && !self.is_untold {
            self.changes = self.fleet.changes();
            self.is_untold = self.changes.is_none();
        }
        self.engine.is_told_of_changes(self.changes.is_some());
    }

    fn carry_out(&mut self) {
        self.listen();
        while let Some(output) = self.engine.poll() {
            self.call(output);
        }
        if self.write.is_some() {
            return;
        }
        match self.engine.take_record() {
            Some(record) => {
                self.awaiting_write.append(&mut self.awaiting_next);
                self.write = Some(Box::pin(write(self.store.clone(), Arc::new(record))));
            }
            None => reply(&mut self.awaiting_next),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Created(job) => {
                self.committed.send_modify(|commits| *commits += 1);
                self.handle(Input::Created(job));
            }
            Message::Preview { request, tally, reply } => self.preview(*request, tally, reply),
            Message::Written => self.committed.send_modify(|commits| *commits += 1),
            Message::Command { job, command, note, reply } => {
                let now = self.now();
                match self.engine.command(now, &job, command) {
                    Obedience::Begun => {
                        self.engine.audit(now, &job, note);
                        self.awaiting_next.push(reply);
                    }
                    // The caller may have gone away.
                    other => _ = reply.send(other),
                }
            }
        }
    }

    /// Beside the jobs, until whoever asked for it has gone.
    fn preview(&self, request: JobRequest, tally: Tally, mut reply: oneshot::Sender<Result<Value, HubError>>) {
        let (fleet, store, in_flight) = (Arc::clone(&self.fleet), self.store.clone(), self.engine.in_flight_per_job());
        tokio::spawn(async move {
            let previewed = tokio::select! {
                previewed = preview(&*fleet, &store, &request, tally, in_flight) => previewed,
                () = reply.closed() => return,
            };
            // It may have gone this instant.
            drop(reply.send(previewed));
        });
    }

    fn called(&mut self, first: Result<(Id, Input), JoinError>) {
        let mut next = Some(first);
        // All that have ended by now, for one record.
        while let Some(ended) = next {
            let (id, input) = match ended {
                Ok((id, input)) => (id, Some(input)),
                Err(error) => {
                    tracing::error!(%error, "a call to the fleet failed");
                    (error.id(), None)
                }
            };
            let panicked = self.panicked.remove(&id);
            if let Some(input) = input.or(panicked) {
                self.handle(input);
            }
            next = self.calls.try_join_next_with_id();
        }
    }

    fn written(&mut self, record: Arc<Record>) {
        self.write = None;
        self.handle(Input::Recorded(record));
        self.committed.send_modify(|commits| *commits += 1);
        reply(&mut self.awaiting_write);
    }

    fn call(&mut self, output: Output) {
        let fleet = Arc::clone(&self.fleet);
        let panic = || HubError::new(ErrorCode::ServerError, "the call failed inside the hub, see its log");
        let (handle, panicked) = match output {
            Output::Select { job, selection, scope } => {
                let panicked = Input::Selected { job: job.clone(), result: Err(panic()) };
                let store = self.store.clone();
                let select = async move {
                    let result = find(&*fleet, &store, &job, &selection, &scope).await;
                    Input::Selected { job, result }
                };
                (self.calls.spawn(select), panicked)
            }
            Output::Gather { job, selection, scope } => {
                let panicked = Input::Gathered { job: job.clone(), result: Err(panic()) };
                let store = self.store.clone();
                let gather = async move {
                    let result = find_new(&*fleet, &store, &job, &selection, &scope).await;
                    if let Err(error) = &result {
                        tracing::warn!(%job, %error, "devices that have come cannot be read, trying again");
                    }
                    Input::Gathered { job, result }
                };
                (self.calls.spawn(gather), panicked)
            }
            Output::Look { job, plugin, devices } => {
                let panicked = Input::Seen { job: job.clone(), devices: devices.clone(), result: Err(panic()) };
                let look = async move {
                    let result = fleet.pin_states(&plugin, &devices).await;
                    if let Err(error) = &result {
                        tracing::warn!(%job, %error, "devices' reports cannot be read, trying again");
                    }
                    Input::Seen { job, devices, result }
                };
                (self.calls.spawn(look), panicked)
            }
            Output::Match { job, step, condition, devices } => {
                let result = Err(panic());
                let panicked = Input::Matched { job: job.clone(), step, devices: devices.clone(), result };
                let look = async move {
                    let result = fleet.matching(&condition, &devices).await;
                    if let Err(error) = &result {
                        tracing::warn!(%job, %error, "devices' twins cannot be read, trying again");
                    }
                    Input::Matched { job, step, devices, result }
                };
                (self.calls.spawn(look), panicked)
            }
            Output::Unpin { job, device, plugin } => {
                let panicked = Input::Unpinned { job: job.clone(), result: Err(panic()) };
                (self.calls.spawn(unpin(fleet, job, device, plugin)), panicked)
            }
            Output::Send { job, device, attempt, action } => {
                let result = Err(panic());
                let panicked = Input::Outcome { job: job.clone(), device: device.clone(), attempt, result };
                (self.calls.spawn(send(fleet, job, device, attempt, action)), panicked)
            }
        };
        self.panicked.insert(handle.id(), panicked);
    }

    fn timer(&self, stop_at: Option<Instant>) -> Duration {
        let wait = self.engine.deadline().map(|deadline| (deadline - Utc::now()).to_std().unwrap_or_default());
        let stop = stop_at.map(|stop_at| stop_at.saturating_duration_since(Instant::now()));
        wait.into_iter().chain(stop).min().unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }
}

async fn send<F: Fleet>(fleet: Arc<F>, job: JobId, device: Address, attempt: u32, action: Arc<JobAction>) -> Input {
    let result = match &*action {
        JobAction::Method(method) => fleet.call_method(&device, method).await.map(DeviceJobOutcome::Method),
        JobAction::UpdateTwin(update) => {
            fleet.patch_twin(&device, update).await.map(|()| DeviceJobOutcome::TwinUpdated)
        }
    };
    Input::Outcome { job, device, attempt, result }
}

async fn unpin<F: Fleet>(fleet: Arc<F>, job: JobId, device: Address, plugin: String) -> Input {
    let update = TwinUpdate { tags: None, desired: Some(plugin_report::unpin(&plugin)) };
    let result = fleet.patch_twin(&device, &update).await;
    if let Err(error) = &result {
        tracing::warn!(%job, %device, plugin, %error, "the device could not be unpinned");
    }
    Input::Unpinned { job, result }
}

/// Write until it succeeds.
async fn write(store: Store, record: Arc<Record>) -> Result<Arc<Record>, StoreError> {
    loop {
        let written = Arc::clone(&record);
        match store.write(move |tx| journal::record(tx, &written)).await {
            Ok(()) => return Ok(record),
            Err(StoreError::Closed) => return Err(StoreError::Closed),
            Err(error) => {
                tracing::error!(%error, "job journal cannot be written, trying again");
                sleep(WRITE_AGAIN).await;
            }
        }
    }
}

/// The next device that connects; never, where nobody tells.
async fn next_arrival(arrivals: &mut Option<broadcast::Receiver<Address>>) -> Result<Address, RecvError> {
    match arrivals {
        Some(arrivals) => arrivals.recv().await,
        None => std::future::pending().await,
    }
}

/// Devices that have changed; never, where nobody tells.
async fn next_changes(changes: &mut Option<broadcast::Receiver<Address>>) -> Result<Vec<Address>, RecvError> {
    let Some(changes) = changes else { return std::future::pending().await };
    let mut changed = vec![changes.recv().await?];
    while changed.len() < MOST_CHANGES {
        match changes.try_recv() {
            Ok(device) => changed.push(device),
            Err(TryRecvError::Lagged(missed)) => return Err(RecvError::Lagged(missed)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    Ok(changed)
}

/// The write's end; never, while there is none.
async fn pending(write: &mut Option<Write>) -> Result<Arc<Record>, StoreError> {
    match write {
        Some(write) => write.await,
        None => std::future::pending().await,
    }
}

fn reply(waiting: &mut Vec<oneshot::Sender<Obedience>>) {
    for reply in waiting.drain(..) {
        // The caller may have gone away.
        _ = reply.send(Obedience::Begun);
    }
}
