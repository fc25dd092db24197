//! Starts an actor again when it fails.
//!
//! That an actor fails is a mistake of the host, and no reason for its device to be silent until somebody looks. The
//! next one starts from what is recorded, as after a restart of the process. The connection begins anew with it: so the
//! hub tells the callers of what was in hand, and the new actor learns what it has to know.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use iothub_protocol::id::DeviceId;
use iothub_protocol::link::ToHub;
use plugin_runtime::PluginSet;
use tokio::sync::watch;

use crate::actor::Actor;
use crate::bell::{Bell, Signals};
use crate::clocks::Clocks;
use crate::driver::{Driver, HubLink, Shared};
use crate::failure::LastCrash;
use crate::limits::Backoff;
use crate::record::DeviceRecord;
use crate::view::{ActorView, Showing};

/// What an actor runs on, whichever time.
pub(crate) struct Supervised {
    pub(crate) device: DeviceId,
    pub(crate) plugins: watch::Receiver<Arc<PluginSet>>,
    pub(crate) shared: Arc<Shared>,
    /// Open for as long as the device is looked after.
    pub(crate) showing: Showing,
    pub(crate) bell: Bell,
}

/// What a driver lives on, and leaves to the next one if it fails.
pub(crate) struct Wires {
    pub(crate) link: HubLink,
    pub(crate) signals: Signals,
}

/// How often an actor failed, and how.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    count: u32,
    /// Without a good while between.
    in_a_row: u32,
    last: Option<Arc<LastCrash>>,
}

/// Runs to its end, or says why it could not begin.
pub(crate) type Run<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

impl Supervised {
    /// Until the actor has stopped. `record` is what the device keeps.
    pub(crate) async fn run(&self, record: DeviceRecord, mut wires: Wires) {
        let mut record = Some(record);
        supervise(self, &mut wires, |this, wires, crashes| Box::pin(this.run_once(record.take(), wires, crashes)))
            .await;
    }

    async fn run_once(&self, record: Option<DeviceRecord>, wires: &mut Wires, crashes: &Crashes) -> Result<(), String> {
        let record = match record {
            Some(record) => record,
            None => {
                let loaded = self.shared.store.load_after_writes(&self.device).await;
                // Nothing is being written any more, so what is told of records is told now, and not to another actor.
                if wires.signals.clear() {
                    return Ok(());
                }
                loaded.map_err(|error| format!("what the device keeps cannot be read: {error}"))?
            }
        };
        let (limits, now) = (*self.shared.limits.borrow(), Clocks::default().now());
        let actor = Actor::new(self.device.clone(), record, limits, rand::random(), now);
        Box::new(Driver::new(self, actor, wires, crashes)).run().await;
        Ok(())
    }
}

impl Crashes {
    /// One that has run since `started` failed at `now`. Answers how long to wait before the next one.
    fn add(&mut self, backoff: Backoff, started: Instant, now: Instant, reason: String) -> Duration {
        let was_good = now.saturating_duration_since(started) > backoff.cap;
        self.in_a_row = if was_good { 1 } else { self.in_a_row.saturating_add(1) };
        self.count = self.count.saturating_add(1);
        self.last = Some(Arc::new(LastCrash { at: now, reason }));
        backoff.delay(self.in_a_row)
    }

    pub(crate) fn show(&self, view: &mut ActorView) {
        view.restarts = self.count;
        view.last_crash.clone_from(&self.last);
    }
}

/// Run what `run` makes, again after each failure, until it ends by itself or is to stop.
async fn supervise(
    supervised: &Supervised,
    wires: &mut Wires,
    mut run: impl for<'a> FnMut(&'a Supervised, &'a mut Wires, &'a Crashes) -> Run<'a> + Send,
) {
    let Supervised { device, showing, shared, .. } = supervised;
    let mut crashes = Crashes::default();
    loop {
        let started = Instant::now();
        let Err(reason) = caught(run(supervised, wires, &crashes)).await else { return };
        let pause = crashes.add(shared.limits.borrow().restart, started, Instant::now(), reason.clone());
        tracing::error!(%device, reason, restarts = crashes.count, ?pause, "actor has failed and is started again");
        showing.show(|view| {
            (view.connected, view.busy, view.mailbox, view.resident) = (false, false, 0, 0);
            crashes.show(view);
        });
        reconnect(&mut wires.link, pause).await;
        tokio::select! {
            () = wires.signals.stop() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Drive `task`, and take a panic of it as a failure.
async fn caught(mut task: Run<'_>) -> Result<(), String> {
    let ended = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(ended)) => Poll::Ready(ended),
        Err(panic) => Poll::Ready(Err(words(&*panic))),
    });
    let ended = ended.await;
    // What is left of it may panic as well when it goes.
    let gone = catch_unwind(AssertUnwindSafe(|| drop(task)));
    ended.and(gone.map_err(|panic| words(&*panic)))
}

/// Have the connection made anew, but not before `after`. What comes meanwhile was for the actor that has failed.
async fn reconnect(link: &mut HubLink, after: Duration) {
    let HubLink { from_hub, to_hub, .. } = link;
    loop {
        tokio::select! {
            biased;
            permit = to_hub.reserve() => {
                if let Ok(permit) = permit {
                    permit.send(ToHub::Reconnect { after });
                }
                return;
            }
            // A connection that cannot give this would not take the other.
            message = from_hub.recv() => if message.is_none() { return },
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "a panic without words".to_owned(), |text| format!("panic: {text}"))
}

#[cfg(test)]
mod tests;
