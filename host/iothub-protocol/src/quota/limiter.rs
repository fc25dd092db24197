//! A throttle in Azure's three phases: what is above the rate passes for a while, then waits in a queue that moves at
//! the rate, then is refused.
//!
//! One number says all of it: until when what was let in so far would have kept the hub busy at the rate.

use std::time::{Duration, Instant};

use super::tier::Rate;

/// How long each phase lasts, in the time that the rate needs for what the phase takes in. Azure's documents say that
/// bursts are let through "for the first minute or two" at twice the rate, that throttles are "applied in minute
/// ranges", and that the queue is limited. They do not say how long it is; this one is well below the half minute after
/// which SDKs give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shaping {
    /// What may be let through ahead of the rate.
    pub burst: Duration,
    /// What may wait beyond that.
    pub queue: Duration,
}

impl Default for Shaping {
    fn default() -> Shaping {
        Shaping { burst: Duration::from_secs(60), queue: Duration::from_secs(10) }
    }
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Now,
    /// Not before this time.
    At(Instant),
    /// The queue is full; it has room for this one after so long.
    Refused {
        retry_after: Duration,
    },
}

/// One throttle.
#[derive(Debug, Clone)]
pub struct Limiter {
    rate: Rate,
    shaping: Shaping,
    /// When all that was let in is done, at the rate.
    busy_until: Option<Instant>,
}

impl Limiter {
    pub fn new(rate: Rate, shaping: Shaping) -> Limiter {
        Limiter { rate, shaping, busy_until: None }
    }

    /// Judge something that takes `amount` of the rate. What is refused takes nothing.
    pub fn admit(&mut self, now: Instant, amount: u64) -> Verdict {
        let backlog = self.backlog(now);
        let takes = self.time_for(amount);
        let wait = (backlog + takes).saturating_sub(self.shaping.burst);
        // When nothing is ahead of it, even what is larger than a burst goes.
        let passes = backlog.is_zero() || wait.is_zero();
        if !passes && wait > self.shaping.queue {
            return Verdict::Refused { retry_after: (wait - self.shaping.queue).min(backlog) };
        }
        self.busy_until = Some(now + backlog + takes);
        if passes { Verdict::Now } else { Verdict::At(now + wait) }
    }

    /// When something may go that is never refused. It waits for its turn, however many are ahead.
    pub fn pace(&mut self, now: Instant, amount: u64) -> Instant {
        let backlog = self.backlog(now);
        let takes = self.time_for(amount);
        self.busy_until = Some(now + backlog + takes);
        now + (backlog + takes).saturating_sub(self.shaping.burst)
    }

    fn backlog(&self, now: Instant) -> Duration {
        self.busy_until.map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now))
    }

    fn time_for(&self, amount: u64) -> Duration {
        let nanoseconds = self.rate.per.as_nanos() * u128::from(amount) / u128::from(self.rate.amount.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quota::tier::{Class, Sku, Tier};

    fn registry() -> (Limiter, Instant) {
        let rate = Sku::new(Tier::S1, 1).expect("a size").rate(Class::Registry);
        (Limiter::new(rate, Shaping::default()), Instant::now())
    }

    #[test]
    fn a_burst_passes_then_waits_then_is_refused() {
        let (mut limiter, start) = registry();
        let step = Duration::from_millis(600);
        for number in 0..100 {
            assert_eq!(limiter.admit(start, 1), Verdict::Now, "{number}");
        }
        // The queue moves at the rate.
        for place in 1..=16 {
            assert_eq!(limiter.admit(start, 1), Verdict::At(start + step * place));
        }
        let retry_after = Duration::from_millis(200);
        assert_eq!(limiter.admit(start, 1), Verdict::Refused { retry_after });
        assert_eq!(limiter.admit(start, 1), Verdict::Refused { retry_after }, "a refused one takes no place");
        // As long as it was told to wait.
        let later = start + retry_after;
        assert_eq!(limiter.admit(later, 1), Verdict::At(later + Duration::from_secs(10)));
        assert!(matches!(limiter.admit(later, 1), Verdict::Refused { .. }));
    }

    #[test]
    fn what_keeps_to_the_rate_never_waits_and_rest_gives_the_burst_back() {
        let (mut limiter, start) = registry();
        let mut now = start;
        for _ in 0..1000 {
            now += Duration::from_millis(600);
            assert_eq!(limiter.admit(now, 1), Verdict::Now);
        }
        (0..100).for_each(|_| _ = limiter.admit(now, 1));
        assert!(matches!(limiter.admit(now, 1), Verdict::At(_)));
        now += Duration::from_secs(62);
        assert!((0..100).all(|_| limiter.admit(now, 1) == Verdict::Now));
    }

    #[test]
    fn two_hundred_a_second_pass_for_a_minute() {
        // The documents' own example: 200 messages a second to a hub that takes 100.
        let rate = Sku::new(Tier::S1, 1).expect("a size").rate(Class::Telemetry);
        let (mut limiter, start) = (Limiter::new(rate, Shaping::default()), Instant::now());
        let second_of = |wanted: fn(&Verdict) -> bool, limiter: &mut Limiter| {
            (0_u32..40_000)
                .map(|n| start + Duration::from_millis(5) * n)
                .find(|now| wanted(&limiter.admit(*now, 1)))
                .map(|now| (now - start).as_secs())
        };
        assert_eq!(second_of(|verdict| matches!(verdict, Verdict::At(_)), &mut limiter.clone()), Some(59));
        assert_eq!(second_of(|verdict| matches!(verdict, Verdict::Refused { .. }), &mut limiter), Some(69));
    }

    #[test]
    fn something_larger_than_a_burst_goes_when_it_is_alone() {
        let rate = Rate { amount: 10, per: Duration::from_secs(1) };
        let shaping = Shaping { burst: Duration::from_millis(100), queue: Duration::ZERO };
        let (mut limiter, start) = (Limiter::new(rate, shaping), Instant::now());
        assert_eq!(limiter.admit(start, 50), Verdict::Now);
        assert_eq!(limiter.admit(start, 1), Verdict::Refused { retry_after: Duration::from_secs(5) });
        assert_eq!(limiter.pace(start, 1), start + Duration::from_secs(5), "what is paced waits instead");
    }

    proptest! {
        #[test]
        fn no_more_goes_than_the_burst_and_the_rate(steps in prop::collection::vec((0_u64..400, 1_u64..5), 1..300)) {
            let (mut limiter, start) = registry();
            let mut now = start;
            let mut gone: Vec<(Instant, u64)> = Vec::new();
            for (pause, amount) in steps {
                now += Duration::from_millis(pause);
                match limiter.admit(now, amount) {
                    Verdict::Now => gone.push((now, amount)),
                    Verdict::At(at) => {
                        prop_assert!(at > now && at <= now + Duration::from_secs(10));
                        gone.push((at, amount));
                    }
                    Verdict::Refused { retry_after } => prop_assert!(!retry_after.is_zero()),
                }
            }
            let end = gone.iter().map(|(at, _)| *at).max().unwrap_or(start);
            let total: u64 = gone.iter().map(|(_, amount)| amount).sum();
            let allowed = (end - start + Duration::from_secs(60)).as_millis() / 600 + 1;
            prop_assert!(u128::from(total) <= allowed, "{total} of {allowed}");
        }
    }
}
