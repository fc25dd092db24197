//! How long to wait before the next attempt, so that a fleet does not come back all at once.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

/// The first attempt after a working connection is nearly immediate: most breaks are short, and callers wait.
const QUICK: Duration = Duration::from_millis(250);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A wrong key does not become right within a second, and refused attempts count against the hub's quota.
const REFUSED_FIRST: Duration = Duration::from_secs(10);
const REFUSED_LONGEST: Duration = Duration::from_secs(300);

/// Counts failures in a row. Waits are drawn evenly from zero to a limit that doubles ("full jitter").
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
    refusals: u32,
}

impl Backoff {
    /// After a connection that could not be made or broke.
    pub fn after_failure(&mut self, rng: &mut SmallRng) -> Duration {
        let limit = match self.failures {
            0 => QUICK,
            n => doubled(FIRST, n - 1, LONGEST),
        };
        self.failures = self.failures.saturating_add(1);
        rng.random_range(Duration::ZERO..=limit)
    }

    /// After the hub said that it is too busy, or answered a request with an error: as a failure, but never at once.
    pub fn after_busy(&mut self, rng: &mut SmallRng) -> Duration {
        self.failures = self.failures.max(1);
        self.after_failure(rng).max(QUICK)
    }

    /// After the hub refused the credentials.
    pub fn after_refusal(&mut self, rng: &mut SmallRng) -> Duration {
        let limit = doubled(REFUSED_FIRST * 2, self.refusals, REFUSED_LONGEST);
        self.refusals = self.refusals.saturating_add(1);
        rng.random_range(REFUSED_FIRST..=limit)
    }

    /// After something that worked long enough to count.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// The longest of many waits at each step.
    fn longest(steps: usize, wait: fn(&mut Backoff, &mut SmallRng) -> Duration) -> Vec<f64> {
        let mut longest = vec![Duration::ZERO; steps];
        for seed in 0..300 {
            let (mut backoff, mut rng) = (Backoff::default(), SmallRng::seed_from_u64(seed));
            for slot in &mut longest {
                *slot = (*slot).max(wait(&mut backoff, &mut rng));
            }
        }
        longest.iter().map(Duration::as_secs_f64).collect()
    }

    #[test]
    fn waits_double_up_to_a_limit() {
        let limits = [0.25, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0];
        for (found, limit) in longest(limits.len(), Backoff::after_failure).into_iter().zip(limits) {
            assert!(found <= limit && found > limit * 0.8, "{found} of {limit}");
        }
    }

    #[test]
    fn a_refusal_waits_from_ten_seconds_to_five_minutes() {
        let limits = [20.0, 40.0, 80.0, 160.0, 300.0, 300.0];
        for (found, limit) in longest(limits.len(), Backoff::after_refusal).into_iter().zip(limits) {
            assert!(found <= limit && found > limit * 0.8, "{found} of {limit}");
        }
        let mut rng = SmallRng::seed_from_u64(1);
        assert!((0..100).all(|_| Backoff::default().after_refusal(&mut rng) >= REFUSED_FIRST));
    }

    #[test]
    fn a_reset_makes_the_next_one_quick() {
        let (mut backoff, mut rng) = (Backoff::default(), SmallRng::seed_from_u64(1));
        for _ in 0..10 {
            backoff.after_failure(&mut rng);
        }
        backoff.reset();
        assert!(backoff.after_failure(&mut rng) <= QUICK);
    }
}
