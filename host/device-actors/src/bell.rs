//! What wakes a driver beside its connection.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What a driver is told by others of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// What became of a record, from the store's thread.
    Recorded { id: u64, written: bool },
    /// Somebody waits for room, and unused instances are to go.
    Evict,
    /// There may be other plugins.
    Plugins,
    /// Other bounds hold.
    Limits,
    /// Finish, and take nothing more.
    Stop,
}

/// Wakes one driver with a signal; clones wake the same one. A driver that is gone does not hear it.
///
/// A channel would do the same, and take a kilobyte of each device that is never rung.
#[derive(Debug, Clone)]
pub(crate) struct Bell(Arc<Mutex<Rung>>);

/// The driver's end.
#[derive(Debug)]
pub(crate) struct Signals {
    rung: Arc<Mutex<Rung>>,
    /// Once heard it holds for every driver of the device.
    stops: bool,
}

/// There is no bound, since nobody who rings can wait: a driver has few records on their way, its instances are asked for
/// once each, and the roster rings once for each change.
#[derive(Debug, Default)]
struct Rung {
    signals: VecDeque<Signal>,
    /// Of the driver, while it waits.
    waker: Option<Waker>,
}

pub(crate) fn bell() -> (Bell, Signals) {
    let rung = Arc::default();
    (Bell(Arc::clone(&rung)), Signals { rung, stops: false })
}

impl Bell {
    pub(crate) fn ring(&self, signal: Signal) {
        let waker = {
            let mut rung = lock(&self.0);
            rung.signals.push_back(signal);
            rung.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Signals {
    /// Forget what was for a driver before this one. Tells whether the device is to stop.
    pub(crate) fn clear(&mut self) -> bool {
        self.stops |= lock(&self.rung).signals.drain(..).any(|signal| signal == Signal::Stop);
        self.stops
    }

    /// Until the device is to stop; what else is heard is forgotten.
    pub(crate) async fn stop(&mut self) {
        while !self.stops {
            self.next().await;
        }
    }

    /// The next signal. May be dropped before it is ready without losing one.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Signal> {
        let mut rung = lock(&self.rung);
        if let Some(signal) = rung.signals.pop_front() {
            self.stops |= signal == Signal::Stop;
            return Poll::Ready(signal);
        }
        if !rung.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            rung.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // The waker would keep the task's memory for as long as somebody has a bell.
        lock(&self.rung).waker = None;
    }
}

fn lock(rung: &Mutex<Rung>) -> MutexGuard<'_, Rung> {
    // Nothing under the lock panics, and there is nothing in it that could be half done.
    rung.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_come_in_order_and_wake_whoever_waits() {
        let (bell, mut signals) = bell();
        bell.ring(Signal::Plugins);
        bell.clone().ring(Signal::Evict);
        assert_eq!((signals.next().await, signals.next().await), (Signal::Plugins, Signal::Evict));
        let waiting = tokio::spawn(async move { signals.next().await });
        tokio::task::yield_now().await;
        bell.ring(Signal::Stop);
        assert_eq!(waiting.await.expect("no panic"), Signal::Stop);
        bell.ring(Signal::Limits);
    }
}
