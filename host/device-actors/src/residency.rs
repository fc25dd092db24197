//! How many instances there may be at once, over all devices.
//!
//! An instance needs a [`Place`]. Whoever wants one when all are taken asks the device with the longest unused
//! instance to give up its own, and waits in line. Only unused instances are asked for: those in use come free by
//! themselves, since each call has a time limit and none begins on them while somebody waits, and a device that waits
//! keeps nothing in use. So the line always moves.

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

/// A line of the instances that are not in use. An instance joins and leaves it with each call, so both cost nothing
/// but a look at its neighbours.
#[derive(Debug, Default)]
struct Unused {
    /// One for each place that is taken, and for some that were.
    slots: Vec<Slot>,
    /// Slots without a place.
    free: Vec<usize>,
    /// The longest unused, which is asked first, and the last that joined.
    ends: Option<(usize, usize)>,
    waiting: usize,
}

#[derive(Debug)]
struct Slot {
    /// Rung when the instance should go. None without a place.
    owner: Option<Bell>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InUse,
    /// In the line, between these.
    Unused {
        before: Option<usize>,
        after: Option<usize>,
    },
    /// Unused, and its owner has been asked to let it go.
    Asked,
}

/// The right to have one instance; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    residency: Residency,
    slot: usize,
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
        let slot = self.lock().add(owner);
        Place { residency: self.clone(), slot, _permit: permit }
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
        unused.join(self.slot);
        true
    }

    /// The instance is in use again. If it was asked for, another one goes in its stead.
    pub(crate) fn take(&mut self) {
        let mut unused = self.residency.lock();
        let was_asked = unused.leave(self.slot) == State::Asked;
        if was_asked && unused.waiting > 0 {
            unused.ask();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.residency.lock().remove(self.slot);
    }
}

impl Unused {
    /// A slot for an instance that is in use.
    fn add(&mut self, owner: Bell) -> usize {
        let slot = Slot { owner: Some(owner), state: State::InUse };
        match self.free.pop() {
            Some(free) => {
                self.slots[free] = slot;
                free
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    fn remove(&mut self, slot: usize) {
        self.leave(slot);
        self.slots[slot].owner = None;
        self.free.push(slot);
    }

    /// It is not in use any more: the last that will be asked.
    fn join(&mut self, slot: usize) {
        let last = self.ends.map(|(_, last)| last);
        if let Some(State::Unused { after, .. }) = last.map(|last| &mut self.slots[last].state) {
            *after = Some(slot);
        }
        self.slots[slot].state = State::Unused { before: last, after: None };
        self.ends = Some((self.ends.map_or(slot, |(first, _)| first), slot));
    }

    /// It is in use from now on. Answers what it was.
    fn leave(&mut self, slot: usize) -> State {
        let state = std::mem::replace(&mut self.slots[slot].state, State::InUse);
        let State::Unused { before, after } = state else { return state };
        if let Some(State::Unused { after: its, .. }) = before.map(|before| &mut self.slots[before].state) {
            *its = after;
        }
        if let Some(State::Unused { before: its, .. }) = after.map(|after| &mut self.slots[after].state) {
            *its = before;
        }
        // Whoever has nobody on one side is that end.
        self.ends = self.ends.and_then(|(first, last)| {
            let first = if before.is_none() { after? } else { first };
            Some((first, if after.is_none() { before? } else { last }))
        });
        state
    }

    /// Ask for the instance that is unused for longest.
    fn ask(&mut self) {
        let Some((first, _)) = self.ends else { return };
        self.leave(first);
        self.slots[first].state = State::Asked;
        if let Some(owner) = &self.slots[first].owner {
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
    use std::collections::VecDeque;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

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

    /// The line, from either end.
    fn line(unused: &Unused) -> VecDeque<usize> {
        let mut line = VecDeque::new();
        let mut next = unused.ends.map(|(first, _)| first);
        while let Some(slot) = next {
            let State::Unused { before, after } = unused.slots[slot].state else { panic!("{slot} is in use") };
            assert_eq!(before, line.back().copied());
            line.push_back(slot);
            next = after;
        }
        assert_eq!(unused.ends.map(|(_, last)| last), line.back().copied());
        line
    }

    #[test]
    fn the_line_stays_whole_whoever_leaves_it() {
        let (mut unused, mut random) = (Unused::default(), SmallRng::seed_from_u64(7));
        let (mut in_use, mut expected) = (Vec::new(), VecDeque::new());
        for _ in 0..10_000 {
            match random.random_range(0..5) {
                0 if unused.slots.len() - unused.free.len() < 20 => in_use.push(unused.add(bell().0)),
                1 if !in_use.is_empty() => unused.remove(in_use.swap_remove(random.random_range(0..in_use.len()))),
                2 if !expected.is_empty() => {
                    let slot = expected.remove(random.random_range(0..expected.len())).expect("one of them");
                    assert!(matches!(unused.leave(slot), State::Unused { .. }));
                    in_use.push(slot);
                }
                3 => {
                    unused.ask();
                    if let Some(slot) = expected.pop_front() {
                        assert_eq!(unused.leave(slot), State::Asked);
                        in_use.push(slot);
                    }
                }
                _ if !in_use.is_empty() => {
                    let slot = in_use.swap_remove(random.random_range(0..in_use.len()));
                    unused.join(slot);
                    expected.push_back(slot);
                }
                _ => {}
            }
            assert_eq!(line(&unused), expected);
        }
    }
}
