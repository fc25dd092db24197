//! Follows the directory: notifications for speed, a slow poll for certainty.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::settling::{Due, Settling};
use super::{Catalog, blocking, files};
use crate::inspect;

impl Catalog {
    /// Follow the directory until the future is dropped: take new versions as their files arrive, refuse broken ones,
    /// and say when a file goes. Meanwhile load the versions that devices ask for, and judge canaries. Run it once for
    /// each directory.
    pub async fn watch(&self) -> Infallible {
        tokio::select! {
            never = self.follow_directory() => never,
            never = self.tend() => never,
        }
    }

    async fn tend(&self) -> Infallible {
        loop {
            self.load_missing().await;
            let watching = self.shelf().on_trial();
            tokio::select! {
                () = self.inner.demand.changed() => {}
                () = sleep(JUDGE), if watching => {
                    self.judge(now()).await;
                    self.keep_watched(now(), false).await;
                }
            }
        }
    }

    async fn follow_directory(&self) -> Infallible {
        let changed = Arc::new(Notify::new());
        // Held for its effect: notifications end when it is dropped.
        let mut _notifications = notifications(&self.inner.directory, changed.clone());
        let mut settling = Settling::new(now(), &self.inner.first_listing);
        let mut readable = true;
        // None that there is, as versions may have changed since the directory was opened.
        let mut generation = 0;
        loop {
            let directory = self.inner.directory.clone();
            let listing = blocking(move || files::list(&directory)).await;
            if let Err(error) = &listing
                && readable
            {
                let directory = self.inner.directory.display();
                tracing::warn!(%directory, %error, "plugin directory cannot be read; plugins keep running");
            }
            if listing.is_ok() && !readable {
                // What is there under the name now is another directory, or may be.
                _notifications = notifications(&self.inner.directory, changed.clone());
            }
            readable = listing.is_ok();
            let mut next = Instant::now() + POLL;
            // Files that cannot be seen may be back with their directory; none of them is said to be gone.
            if let Ok(listing) = listing {
                settling.observe(now(), &listing);
                for due in settling.due(now()) {
                    self.deal_with(due, &mut settling).await;
                }
                self.reconsider_conflicts(&mut generation, &mut settling);
                next = settling.deadline().map_or(next, |deadline| next.min(Instant::from_std(deadline)));
            }
            sleep(PAUSE).await;
            tokio::select! {
                () = changed.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    async fn deal_with(&self, due: Due, settling: &mut Settling) {
        match due {
            Due::Look { stem } => self.look(&stem, settling, true).await,
            Due::LastLook { stem } => self.look(&stem, settling, false).await,
            Due::Gone { stem } => {
                settling.forget(&stem);
                let mut shelf = self.shelf();
                if let Some(version) = shelf.remove(&stem) {
                    tracing::warn!(plugin = stem, version, "plugin file is gone; its version keeps running");
                }
                // It gives way to a file that was refused because of it.
                shelf.in_conflict().iter().for_each(|other| settling.look_again(other));
            }
        }
    }

    /// Another version is current: what stood in a file's way may be gone.
    fn reconsider_conflicts(&self, seen: &mut u64, settling: &mut Settling) {
        let shelf = self.shelf();
        if *seen != shelf.generation() {
            *seen = shelf.generation();
            shelf.in_conflict().iter().for_each(|stem| settling.look_again(stem));
        }
    }

    pub(super) async fn look(&self, stem: &str, settling: &mut Settling, patient: bool) {
        let arriving = self.inner.arriving.lock().await;
        let (wasm, stamp) = self.read(stem).await;
        if stamp.is_none() && wasm.is_ok() {
            // It changed under our hands; the next listing shows it.
            return;
        }
        let limit = self.inner.runtime.settings().max_component_size;
        let whole = wasm.as_ref().is_ok_and(|wasm| inspect::inspect(wasm, limit).is_ok());
        if patient && !whole {
            settling.doubt(stem, stamp);
            return;
        }
        self.arrived(&arriving, stem, wasm).await;
        settling.settle(stem, stamp);
    }
}

/// Wake `changed` when something happens in `directory`. Where that cannot be had, the poll alone follows it.
fn notifications(directory: &Path, changed: Arc<Notify>) -> Option<RecommendedWatcher> {
    let wake = move |event: notify::Result<Event>| {
        // Reading the directory, as each wake does, is an event as well.
        if event.is_ok_and(|event| is_reading(event.kind)) {
            return;
        }
        changed.notify_one();
    };
    let watching = notify::recommended_watcher(wake).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(|error| {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "no notifications for the plugin directory; it is read every 2 s");
        })
        .ok()
}

fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// For file systems that notify nobody, and for a file changed through another link to it.
const POLL: Duration = Duration::from_secs(2);
/// How often a canary is judged: soon enough that few calls fail after the one too many.
const JUDGE: Duration = Duration::from_millis(200);
/// A copy notifies at each block; the directory is read no oftener than this.
const PAUSE: Duration = Duration::from_millis(20);
