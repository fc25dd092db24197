//! What an actor shows of itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plugin_runtime::PluginName;
use tokio::sync::Notify;

use crate::activation::HeldBack;
use crate::failure::LastCrash;
use crate::failure::LastFailure;
use crate::lineup::Lineup;

/// A snapshot of one actor; cheap to take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActorView {
    /// The plugin versions that the next message runs on.
    pub lineup: Arc<Lineup>,
    /// Plugins with the labels of versions that failed here too often and are not run.
    pub quarantined: Vec<(PluginName, Arc<str>)>,
    /// Methods that wait for their turn.
    pub mailbox: usize,
    /// Messages from the cloud and from peers that wait for their turn.
    pub messages: usize,
    /// Messages from peers that came and are lost: for want of room, or since no plugin would deal with them.
    pub lost_messages: u64,
    /// Messages that plugins here sent to devices that are not on this host, or had no room.
    pub undelivered: u64,
    /// Whether a message is in hand.
    pub busy: bool,
    pub connected: bool,
    /// Instances, in use or not.
    pub resident: usize,
    /// Calls of plugins since the start, and how many of them did not return.
    pub calls: u64,
    pub failures: u64,
    pub last_failure: Option<Arc<LastFailure>>,
    /// How often the actor itself failed, which is a mistake of the host, and was started again.
    pub restarts: u32,
    pub last_crash: Option<Arc<LastCrash>>,
    /// Version of the last desired properties seen.
    pub desired_version: u64,
    /// Current versions that could not be activated here.
    pub held_back: Vec<HeldBack>,
    /// Timers that are set.
    pub timers: usize,
    /// Messages that the hub has not taken yet.
    pub queued_telemetry: usize,
}

/// Where an actor's view is shown, for as long as it runs.
#[derive(Debug)]
pub(crate) struct Shown {
    /// None once the actor is gone.
    view: Mutex<Option<ActorView>>,
    gone: Notify,
}

/// The actor's side of [`Shown`]: whoever drops it says that the actor is gone.
#[derive(Debug)]
pub(crate) struct Showing(Arc<Shown>);

impl Shown {
    pub(crate) fn view(&self) -> Option<ActorView> {
        self.lock().clone()
    }

    /// Until the actor is gone.
    pub(crate) async fn gone(&self) {
        // From here on it is heard, so that it cannot happen between the look and the wait.
        let gone = self.gone.notified();
        let is_gone = self.lock().is_none();
        if !is_gone {
            gone.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ActorView>> {
        // Each field is whole after any panic, and the next update sets all of them.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Showing {
    pub(crate) fn new(view: ActorView) -> Showing {
        Showing(Arc::new(Shown { view: Mutex::new(Some(view)), gone: Notify::new() }))
    }

    pub(crate) fn shown(&self) -> Arc<Shown> {
        self.0.clone()
    }

    /// Bring what is shown up to date.
    pub(crate) fn show(&self, update: impl FnOnce(&mut ActorView)) {
        update(self.0.lock().get_or_insert_default());
    }
}

impl Drop for Showing {
    fn drop(&mut self) {
        *self.0.lock() = None;
        self.0.gone.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_view_is_shown_until_its_actor_is_gone() {
        let showing = Showing::new(ActorView::default());
        let shown = showing.shown();
        showing.show(|view| view.calls = 7);
        assert_eq!(shown.view().map(|view| view.calls), Some(7));
        let (waited, ()) = tokio::join!(shown.gone(), async { drop(showing) });
        assert_eq!((waited, shown.view()), ((), None));
        shown.gone().await;
    }
}
