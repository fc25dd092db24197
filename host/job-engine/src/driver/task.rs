//! The task that waits, writes and calls for the engine.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use durable_store::{Store, StoreError};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::{DeviceJobOutcome, JobAction, TwinUpdate};
use iothub_protocol::plugin_report;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Message;
use super::targets::find;
use crate::engine::{Engine, Input, Obedience, Output, Record};
use crate::fleet::Fleet;
use crate::journal;

/// The longest sleep: the engine's deadlines are times of day, and the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Between tries to write what the store refused. Nothing is sent meanwhile, as nothing can be recorded.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// One write at a time: whatever the engine decides during it goes into the next, so that a thousand outcomes take a
/// few commits and not a thousand.
type Write = Pin<Box<dyn Future<Output = Result<Arc<Record>, StoreError>> + Send>>;

pub(super) struct Task<F> {
    engine: Engine,
    fleet: Arc<F>,
    store: Store,
    inbox: mpsc::UnboundedReceiver<Message>,
    committed: watch::Sender<u64>,
    /// `None` if the fleet does not tell, or no longer.
    arrivals: Option<broadcast::Receiver<Address>>,
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
            arrivals: fleet.arrivals(),
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
                    Ok(device) => self.engine.handle(Utc::now(), Input::Arrived(device)),
                    Err(RecvError::Lagged(_)) => self.engine.handle(Utc::now(), Input::ManyArrived),
                    Err(RecvError::Closed) => self.arrivals = None,
                },
                () = sleep(timer) => self.engine.handle(Utc::now(), Input::Tick),
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

    fn carry_out(&mut self) {
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
                self.engine.handle(Utc::now(), Input::Created(job));
            }
            Message::Written => self.committed.send_modify(|commits| *commits += 1),
            Message::Command { job, command, note, reply } => match self.engine.command(Utc::now(), &job, command) {
                Obedience::Begun => {
                    self.engine.audit(Utc::now(), &job, note);
                    self.awaiting_next.push(reply);
                }
                // The caller may have gone away.
                other => _ = reply.send(other),
            },
        }
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
                self.engine.handle(Utc::now(), input);
            }
            next = self.calls.try_join_next_with_id();
        }
    }

    fn written(&mut self, record: Arc<Record>) {
        self.write = None;
        self.engine.handle(Utc::now(), Input::Recorded(record));
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
