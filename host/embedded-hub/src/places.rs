//! How many connections there are at once, so that clients cannot take the descriptors that the hub itself needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most connections of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Over both listeners.
    pub all: usize,
    /// At each listener, of clients that have not shown who they are; further ones wait to be accepted. On the REST
    /// listener that is every client but those that go on as devices by WebSocket.
    pub unknown: usize,
}

impl ConnectionLimits {
    /// So many, of which a quarter may be unknown; at least so many that a fleet which comes back is not held up, at
    /// most so many that what their handshakes hold is bounded.
    pub fn of(all: usize) -> ConnectionLimits {
        ConnectionLimits { all, unknown: (all / 4).clamp(64, 4096) }
    }
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits::of(10_000)
    }
}

/// What is left of them at one listener. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Places {
    limits: ConnectionLimits,
    all: Arc<Semaphore>,
    unknown: Arc<Semaphore>,
    /// Whether the last client was turned away, which is logged once.
    is_full: Arc<AtomicBool>,
}

/// A connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _one: OwnedSemaphorePermit,
    unknown: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(crate) fn new(limits: ConnectionLimits) -> Places {
        let (all, unknown) = (Arc::new(Semaphore::new(limits.all)), Arc::new(Semaphore::new(limits.unknown)));
        Places { limits, all, unknown, is_full: Arc::default() }
    }

    /// For another listener, with unknown clients of its own.
    pub(crate) fn beside(&self) -> Places {
        Places { unknown: Arc::new(Semaphore::new(self.limits.unknown)), ..self.clone() }
    }

    /// Wait until one more client may come that nobody knows.
    pub(crate) async fn wait(&self) -> OwnedSemaphorePermit {
        self.unknown.clone().acquire_owned().await.expect("it is never closed")
    }

    /// A place for that client; `None` if there is none left.
    pub(crate) fn take(&self, unknown: OwnedSemaphorePermit) -> Option<Place> {
        let one = self.all.clone().try_acquire_owned().ok();
        let was_full = self.is_full.swap(one.is_none(), Ordering::Relaxed);
        if one.is_none() && !was_full {
            tracing::warn!(connections = self.limits.all, "there are as many connections as may be, others are closed");
        }
        Some(Place { _one: one?, unknown: Some(unknown) })
    }
}

impl Place {
    /// The client has shown who it is.
    pub(crate) fn known(&mut self) {
        self.unknown = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_may_be_unknown_within_bounds() {
        for (all, unknown) in [(10, 64), (768, 192), (10_000, 2500), (1_000_000, 4096)] {
            assert_eq!(ConnectionLimits::of(all), ConnectionLimits { all, unknown });
        }
    }

    #[tokio::test]
    async fn places_are_taken_and_given_back() {
        let mqtt = Places::new(ConnectionLimits { all: 2, unknown: 1 });
        let https = mqtt.beside();
        let mut first = mqtt.take(mqtt.wait().await).expect("a place");
        assert_eq!(mqtt.unknown.available_permits(), 0);
        first.known();
        let second = mqtt.take(mqtt.wait().await).expect("a place");
        assert!(https.take(https.wait().await).is_none(), "both listeners share them");
        drop(first);
        let third = https.take(https.wait().await).expect("a place");
        drop((second, third));
        assert_eq!((mqtt.all.available_permits(), https.unknown.available_permits()), (2, 1));
    }
}
