//! How fast calls of one kind go to a hub: no faster than its tier allows, where that is known, and slower as soon as it
//! says that it has too much to do. Pure.
//!
//! Others use the same hub, so its tier is not all for us: what it refuses says more than what it promises. After a 429
//! nothing goes until the time that the hub asks for is over; then calls keep a distance, twice as large after each
//! further 429, and ever smaller while it goes well. So many callers at once do not come back all at once.

use std::time::{Duration, Instant};

use iothub_protocol::quota::limiter::{Limiter, Shaping, Verdict};
use iothub_protocol::quota::tier::Rate;

/// A second's worth at once, the rest as the rate has it: below the burst that a hub lets through, which is for others.
const SHAPING: Shaping = Shaping { burst: Duration::from_secs(1), queue: Duration::ZERO };
/// How long nothing goes after a 429 that names no time.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest such time, whatever the hub asks for: then one call tries whether it is so.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The largest distance: below the slowest rate of any tier.
const LARGEST_DISTANCE: Duration = Duration::from_secs(10);
/// A distance below this is none.
const SMALLEST_DISTANCE: Duration = Duration::from_millis(1);
/// While it goes well, the distance falls to a third in about this time.
const RECOVERY: Duration = Duration::from_secs(20);
/// Whoever sends fewer than so many a second is not the one that the hub has too much of, or not alone.
const FEW: u32 = 10;
/// Over how long it is counted how many calls have gone.
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Pace {
    /// What the tier allows.
    tier: Option<Limiter>,
    /// Nothing goes before.
    closed_until: Option<Instant>,
    /// From one call to the next; zero until the hub has refused one.
    distance: Duration,
    /// When the last call went.
    last: Option<Instant>,
    /// Until when the distance has been adapted.
    adapted: Option<Instant>,
    /// How many calls have gone since when, and in the second before that.
    count: Count,
}

#[derive(Debug, Default)]
struct Count {
    since: Option<Instant>,
    now: u32,
    before: u32,
}

/// Whether a call may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    /// Ask again then.
    At(Instant),
}

impl Pace {
    pub(super) fn new(rate: Option<Rate>) -> Pace {
        Pace {
            tier: rate.map(|rate| Limiter::new(rate, SHAPING)),
            closed_until: None,
            distance: Duration::ZERO,
            last: None,
            adapted: None,
            count: Count::default(),
        }
    }

    /// Ask for a call that takes `amount` of the tier's rate. [`Turn::Now`] takes it.
    pub(super) fn turn(&mut self, now: Instant, amount: u64) -> Turn {
        let spaced = self.last.map(|last| last + self.distance);
        let next = self.closed_until.into_iter().chain(spaced).max();
        if let Some(at) = next.filter(|at| *at > now) {
            return Turn::At(at);
        }
        if let Some(tier) = &mut self.tier {
            match tier.admit(now, amount) {
                Verdict::Now => {}
                Verdict::At(at) => return Turn::At(at),
                Verdict::Refused { retry_after } => return Turn::At(now + retry_after),
            }
        }
        self.last = Some(now);
        self.count.one(now);
        Turn::Now
    }

    /// A call was refused with 429, and the hub asks for that pause.
    pub(super) fn throttled(&mut self, now: Instant, asked: Option<Duration>) {
        // Those that were on their way before the pause say nothing new.
        let is_news = self.closed_until.is_none_or(|until| until <= now);
        let until = now + asked.unwrap_or(PAUSE).min(LONGEST_PAUSE);
        self.closed_until = self.closed_until.max(Some(until));
        self.adapted = self.closed_until;
        if is_news {
            let current = match self.distance.is_zero() {
                true => SECOND / self.count.a_second(now).max(FEW),
                false => self.distance,
            };
            self.distance = (current * 2).min(LARGEST_DISTANCE);
        }
    }

    /// A call came through.
    pub(super) fn went_well(&mut self, now: Instant) {
        let Some(adapted) = self.adapted.filter(|adapted| *adapted < now) else { return };
        let passed = (now - adapted).min(SECOND);
        self.distance = self.distance.mul_f64(1.0 - passed.div_duration_f64(RECOVERY));
        self.adapted = Some(now);
        if self.distance < SMALLEST_DISTANCE {
            (self.distance, self.adapted) = (Duration::ZERO, None);
        }
    }
}

impl Count {
    fn one(&mut self, now: Instant) {
        self.turn(now);
        self.now += 1;
    }

    /// How many went in a second, of late.
    fn a_second(&mut self, now: Instant) -> u32 {
        self.turn(now);
        self.now.max(self.before)
    }

    fn turn(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if passed >= SECOND {
            self.before = if passed < 2 * SECOND { self.now } else { 0 };
            (self.now, self.since) = (0, Some(now));
        }
    }
}
