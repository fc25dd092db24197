//! How many instances there may be at once, over all devices.
//!
//! An instance needs a [`Place`]. Whoever wants one when all are taken asks the device with the longest unused
//! instance to give up its own, and waits in line. Only unused instances are asked for: those in use come free by
//! themselves, since each call has a time limit and none begins on them while somebody waits, and a device that waits
//! keeps nothing in use. So the line always moves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bell::{Bell, Signal};

/// The places; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Residency {
    /// First come, first served.
    places: Arc<Semaphore>,
    unused: Arc<Mutex<Unused>>,
}

#[derive(Debug, Default)]
struct Unused {
    /// Whom to ask, the longest unused first.
    owners: BTreeMap<u64, Bell>,
    next_stamp: u64,
    waiting: usize,
}

/// The right to have one instance; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    residency: Residency,
    /// Rung when the instance should go.
    owner: Bell,
    /// While unused.
    stamp: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Residency {
    /// At least one place: with none, nothing would ever run.
    pub(crate) fn new(places: usize) -> Residency {
        Residency { places: Arc::new(Semaphore::new(places.max(1))), unused: Arc::default() }
    }

    /// A place for an instance that is about to be used. `owner` is rung whenever an unused one of its should go.
    pub(crate) async fn admit(&self, owner: Bell) -> Place {
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait_for_permit().await,
        };
        Place { residency: self.clone(), owner, stamp: None, _permit: permit }
    }

    async fn wait_for_permit(&self) -> OwnedSemaphorePermit {
        let waiting = InLine::new(self);
        let permit = self.places.clone().acquire_owned().await;
        drop(waiting);
        permit.expect("the semaphore is never closed")
    }

    fn lock(&self) -> MutexGuard<'_, Unused> {
        // Nothing under the lock panics, and there is nothing in it that could be half done.
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The instance is not in use. `false` if somebody waits: it is to go at once, before its owner can use it again,
    /// since an owner with enough to do would never let go of it.
    #[must_use]
    pub(crate) fn park(&mut self) -> bool {
        let mut unused = self.residency.lock();
        if unused.waiting > 0 {
            return false;
        }
        let stamp = unused.next_stamp;
        unused.next_stamp += 1;
        unused.owners.insert(stamp, self.owner.clone());
        self.stamp = Some(stamp);
        true
    }

    /// The instance is in use again. If it was asked for, another one goes in its stead.
    pub(crate) fn take(&mut self) {
        let Some(stamp) = self.stamp.take() else { return };
        let mut unused = self.residency.lock();
        if unused.owners.remove(&stamp).is_none() && unused.waiting > 0 {
            unused.ask();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(stamp) = self.stamp {
            self.residency.lock().owners.remove(&stamp);
        }
    }
}

impl Unused {
    /// Ask for the instance that is unused for longest.
    fn ask(&mut self) {
        if let Some((_, owner)) = self.owners.pop_first() {
            owner.ring(Signal::Evict);
        }
    }
}

/// Counts as waiting for as long as it lives, so that a wait that is given up does not count.
struct InLine<'a>(&'a Residency);

impl<'a> InLine<'a> {
    fn new(residency: &'a Residency) -> InLine<'a> {
        let mut unused = residency.lock();
        unused.waiting += 1;
        unused.ask();
        InLine(residency)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::bell::{Signals, bell};

    fn owners(count: usize) -> (Vec<Bell>, Vec<Signals>) {
        (0..count).map(|_| bell()).unzip()
    }

    fn is_asked(owner: &mut Signals) -> bool {
        now(owner.next()) == Some(Signal::Evict)
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        poll(pin!(future).as_mut())
    }

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_longest_unused_is_asked_and_the_line_is_fair() {
        let residency = Residency::new(2);
        let (owners, mut asked) = owners(4);
        let mut first = now(residency.admit(owners[0].clone())).expect("room");
        let mut second = now(residency.admit(owners[1].clone())).expect("room");
        assert!(first.park() && second.park());
        first.take();
        assert!(first.park());
        let mut third = pin!(residency.admit(owners[2].clone()));
        assert!(poll(third.as_mut()).is_none());
        assert!(is_asked(&mut asked[1]), "unused for longest");
        assert!(!is_asked(&mut asked[0]));
        let mut fourth = pin!(residency.admit(owners[3].clone()));
        assert!(poll(fourth.as_mut()).is_none());
        assert!(is_asked(&mut asked[0]));
        drop(second);
        assert!(poll(fourth.as_mut()).is_none(), "not its turn");
        let mut third = poll(third.as_mut()).expect("its turn");
        assert!(!third.park(), "somebody waits");
        drop(third);
        assert!(poll(fourth.as_mut()).is_some());
    }

    #[test]
    fn what_was_asked_for_may_be_used_once_more_and_another_goes_in_its_stead() {
        let residency = Residency::new(2);
        let (owners, mut asked) = owners(2);
        let mut places: Vec<Place> =
            owners.iter().map(|owner| now(residency.admit(owner.clone())).expect("room")).collect();
        assert!(places.iter_mut().all(Place::park));
        let mut waiting = pin!(residency.admit(bell().0));
        assert!(poll(waiting.as_mut()).is_none());
        assert!(is_asked(&mut asked[0]) && !is_asked(&mut asked[1]));
        places[0].take();
        assert!(is_asked(&mut asked[1]));
        places.pop();
        assert!(poll(waiting.as_mut()).is_some());
    }

    #[test]
    fn who_stops_waiting_is_not_waited_for() {
        let residency = Residency::new(1);
        let (owner, mut asked) = bell();
        let mut place = now(residency.admit(owner.clone())).expect("room");
        {
            let mut given_up = pin!(residency.admit(bell().0));
            assert!(poll(given_up.as_mut()).is_none());
        }
        assert!(place.park());
        assert!(!is_asked(&mut asked));
        place.take();
    }
}
