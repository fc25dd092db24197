//! When is a file that changed worth a look? Pure: it is told what the directory holds and what the time is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::files::{Listing, Stamp};

/// How long a file must not have changed. Writers pause less than this between two blocks.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// How long a file may stay half-written, or gone, before somebody is told. Linkers and slow copies pause; some
/// editors remove a file before they write it anew.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The files of a directory on their way to rest.
pub(super) struct Settling {
    files: BTreeMap<String, Tracked>,
}

struct Tracked {
    /// `None` if the file is gone.
    stamp: Option<Stamp>,
    /// When it was first seen like this.
    since: Instant,
    phase: Phase,
}

#[derive(PartialEq, Eq)]
enum Phase {
    /// Has changed, and was not looked at since.
    Moving,
    /// Was looked at, and was not whole.
    Doubtful,
    /// Was dealt with.
    Settled,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Read the file. If it is not whole, call [`Settling::doubt`].
    Look { stem: String },
    /// Read the file, and refuse it if it is still not whole.
    LastLook { stem: String },
    /// The file is gone for good.
    Gone { stem: String },
}

impl Settling {
    /// Begin with files that were dealt with already.
    pub(super) fn new(now: Instant, listing: &Listing) -> Settling {
        let settled = |(stem, stamp): (&String, &Stamp)| {
            (stem.clone(), Tracked { stamp: Some(*stamp), since: now, phase: Phase::Settled })
        };
        Settling { files: listing.iter().map(settled).collect() }
    }

    /// The directory as it is at `now`.
    pub(super) fn observe(&mut self, now: Instant, listing: &Listing) {
        for (stem, tracked) in &mut self.files {
            tracked.observe(now, listing.get(stem).copied());
        }
        for (stem, stamp) in listing {
            if !self.files.contains_key(stem) {
                let tracked = Tracked { stamp: Some(*stamp), since: now, phase: Phase::Moving };
                self.files.insert(stem.clone(), tracked);
            }
        }
    }

    /// What has rested long enough.
    pub(super) fn due(&self, now: Instant) -> Vec<Due> {
        let due = self.files.iter().filter(|(_, tracked)| tracked.deadline().is_some_and(|deadline| deadline <= now));
        due.map(|(stem, tracked)| tracked.due(stem.clone())).collect()
    }

    /// When something will be due if nothing changes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.files.values().filter_map(Tracked::deadline).min()
    }

    /// The file was dealt with as it was with `stamp`. If it has changed since, it moves on.
    pub(super) fn settle(&mut self, stem: &str, stamp: Option<Stamp>) {
        self.advance(stem, stamp, Phase::Settled);
    }

    /// The file was not whole as it was with `stamp`: wait for more of it.
    pub(super) fn doubt(&mut self, stem: &str, stamp: Option<Stamp>) {
        self.advance(stem, stamp, Phase::Doubtful);
    }

    /// A file that was dealt with is worth another look for a reason that is not in it.
    pub(super) fn look_again(&mut self, stem: &str) {
        if let Some(tracked) = self.files.get_mut(stem).filter(|tracked| tracked.phase == Phase::Settled) {
            tracked.phase = Phase::Moving;
        }
    }

    /// A file that is gone was dealt with.
    pub(super) fn forget(&mut self, stem: &str) {
        self.files.remove(stem);
    }

    fn advance(&mut self, stem: &str, stamp: Option<Stamp>, phase: Phase) {
        if let Some(tracked) = self.files.get_mut(stem)
            && stamp.is_some()
            && tracked.stamp == stamp
        {
            tracked.phase = phase;
        }
    }
}

impl Tracked {
    fn observe(&mut self, now: Instant, stamp: Option<Stamp>) {
        if self.stamp != stamp {
            *self = Tracked { stamp, since: now, phase: Phase::Moving };
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match (&self.phase, self.stamp) {
            (Phase::Settled, _) => None,
            (Phase::Moving, Some(_)) => Some(self.since + QUIET),
            (Phase::Doubtful, _) | (Phase::Moving, None) => Some(self.since + PATIENCE),
        }
    }

    fn due(&self, stem: String) -> Due {
        match (&self.phase, self.stamp) {
            (_, None) => Due::Gone { stem },
            (Phase::Doubtful, Some(_)) => Due::LastLook { stem },
            (_, Some(_)) => Due::Look { stem },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory and a clock.
    struct World {
        settling: Settling,
        listing: Listing,
        now: Instant,
    }

    impl World {
        fn new(files: &[(&str, u64)]) -> World {
            let now = Instant::now();
            let listing = listing(files);
            World { settling: Settling::new(now, &listing), listing, now }
        }

        fn becomes(&mut self, files: &[(&str, u64)]) {
            self.listing = listing(files);
            self.settling.observe(self.now, &self.listing);
        }

        fn after(&mut self, time: Duration) -> Vec<Due> {
            self.now += time;
            self.settling.observe(self.now, &self.listing);
            self.settling.due(self.now)
        }

        fn stamp(&self, stem: &str) -> Option<Stamp> {
            self.listing.get(stem).copied()
        }
    }

    fn listing(files: &[(&str, u64)]) -> Listing {
        files.iter().map(|(stem, length)| ((*stem).to_owned(), Stamp::sample(*length))).collect()
    }

    fn look(stem: &str) -> Vec<Due> {
        vec![Due::Look { stem: stem.to_owned() }]
    }

    #[test]
    fn what_was_there_at_first_is_at_rest() {
        let mut world = World::new(&[("a", 1)]);
        assert_eq!(world.after(PATIENCE * 2), []);
        assert_eq!(world.settling.deadline(), None);
    }

    #[test]
    fn a_file_counts_once_it_has_been_quiet() {
        let mut world = World::new(&[]);
        world.becomes(&[("a", 1)]);
        assert_eq!(world.after(QUIET / 2), []);
        world.becomes(&[("a", 2)]);
        assert_eq!(world.after(QUIET / 2), []);
        assert_eq!(world.settling.deadline(), Some(world.now + QUIET / 2));
        assert_eq!(world.after(QUIET / 2), look("a"));
        world.settling.settle("a", world.stamp("a"));
        assert_eq!(world.after(PATIENCE), []);
    }

    #[test]
    fn a_half_written_file_gets_two_seconds() {
        let mut world = World::new(&[]);
        world.becomes(&[("a", 1)]);
        assert_eq!(world.after(QUIET), look("a"));
        world.settling.doubt("a", world.stamp("a"));
        assert_eq!(world.after(PATIENCE - QUIET * 2), []);
        assert_eq!(world.after(QUIET), [Due::LastLook { stem: "a".to_owned() }]);
    }

    #[test]
    fn a_half_written_file_that_grows_is_looked_at_again() {
        let mut world = World::new(&[]);
        world.becomes(&[("a", 1)]);
        assert_eq!(world.after(QUIET), look("a"));
        world.settling.doubt("a", world.stamp("a"));
        world.becomes(&[("a", 2)]);
        assert_eq!(world.after(QUIET), look("a"));
    }

    #[test]
    fn a_file_that_changed_while_it_was_read_is_read_again() {
        let mut world = World::new(&[]);
        world.becomes(&[("a", 1)]);
        assert_eq!(world.after(QUIET), look("a"));
        world.settling.settle("a", None);
        assert_eq!(world.after(Duration::ZERO), look("a"));
        let read = world.stamp("a");
        world.becomes(&[("a", 2)]);
        world.settling.settle("a", read);
        assert_eq!(world.after(QUIET), look("a"));
    }

    #[test]
    fn a_file_is_gone_when_it_does_not_come_back() {
        let mut world = World::new(&[("a", 1), ("b", 1)]);
        world.becomes(&[]);
        assert_eq!(world.after(PATIENCE / 2), []);
        world.becomes(&[("a", 1)]);
        assert_eq!(world.after(QUIET), look("a"));
        world.settling.settle("a", world.stamp("a"));
        assert_eq!(world.after(PATIENCE / 2), [Due::Gone { stem: "b".to_owned() }]);
        world.settling.forget("b");
        assert_eq!(world.after(PATIENCE), []);
    }
}
