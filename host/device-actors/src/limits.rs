//! The numbers that bound an actor, each with its reason.

use std::time::Duration;

use rand::Rng;

/// What bounds one device's actor. The defaults are the documented ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Direct methods that wait for their turn; a further one is answered 429. A device takes them one at a time, and
    /// behind 64 calls of usual length most callers have stopped waiting.
    pub mailbox: usize,
    /// Messages that wait for their turn: so many from the cloud, and so many from peers. What does not fit is left to
    /// the hub, or lost. More than the 50 that a hub's queue holds for a device; at 64 KiB each no more than 8 MiB.
    pub inbox: usize,
    /// Calls of one plugin, in a row, that did not deal with a message before the host lets go of it. With the delays
    /// between them it takes about five minutes; a hub gives up after as many deliveries.
    pub message_tries: u32,
    /// How long a method may wait for its turn. The wire carries no deadline; 300 s is the largest response time-out
    /// that a caller can ask for, so nobody waits for one that is older.
    pub method_expiry: Duration,
    /// How long methods wait, after a connect, for the twin: a plugin should not answer from last week's desired
    /// properties because the method overtook the twin. Longer than a GET takes, far shorter than a caller's patience.
    pub twin_wait: Duration,
    /// How long an unused instance stays. A fresh one costs microseconds, a resident one about 90 KB.
    pub idle: Duration,
    /// Telemetry that waits for the hub, in bytes: one message of the largest size.
    pub telemetry_bytes: usize,
    /// Telemetry in flight. Enough to fill a round trip, few enough that a reconnect repeats little.
    pub telemetry_window: usize,
    /// How long the hub may take to answer a reported patch before it is sent again. Ten times a slow answer.
    pub report_timeout: Duration,
    /// Between tries of what failed: a change that a plugin could not deal with, a patch that the hub throttled, a
    /// record that could not be written.
    pub retry: Backoff,
    /// Failures in a row of one plugin version before its methods are answered 503 for a while.
    pub failures_in_a_row: u32,
    /// How long that while is. Short, because a caller's retry should find the plugin willing again.
    pub pause: Backoff,
    /// How long after a failure of the actor itself it is started again. The first time soon, as its callers wait; not
    /// much later than a minute, as a cause that has gone should not keep a device away.
    pub restart: Backoff,
    /// Failures in a row of one plugin version before the device stops running it, if there is another to run instead:
    /// two more tries after the first pauses.
    pub quarantine_after: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            mailbox: 64,
            inbox: 64,
            message_tries: 10,
            method_expiry: Duration::from_secs(300),
            twin_wait: Duration::from_secs(5),
            idle: Duration::from_secs(1),
            telemetry_bytes: 256 * 1024,
            telemetry_window: 8,
            report_timeout: Duration::from_secs(30),
            retry: Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(60) },
            failures_in_a_row: 3,
            pause: Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(30) },
            restart: Backoff { first: Duration::from_millis(250), cap: Duration::from_secs(64) },
            quarantine_after: 5,
        }
    }
}

/// Doubling delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub cap: Duration,
}

impl Backoff {
    /// The delay after the `nth` failure in a row, counted from 1.
    pub(crate) fn delay(&self, nth: u32) -> Duration {
        let doublings = nth.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.cap)
    }

    /// The same, shortened by up to half, so that a fleet that failed together does not come back together.
    pub(crate) fn jittered(&self, nth: u32, rng: &mut impl Rng) -> Duration {
        self.delay(nth).mul_f64(rng.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_jitter_only_shortens() {
        let backoff = Limits::default().retry;
        let seconds: Vec<u64> = [1, 2, 3, 7, 8, 1000].map(|nth| backoff.delay(nth).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 60, 60, 60]);
        let mut rng = SmallRng::seed_from_u64(7);
        for nth in 1..20 {
            let delay = backoff.jittered(nth, &mut rng);
            assert!(delay >= backoff.delay(nth) / 2 && delay <= backoff.delay(nth));
        }
    }
}
