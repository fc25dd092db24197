//! The time that a guest is shown, by its [`ClockGrant`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder};

use crate::terms::ClockGrant;

/// Give `wasi` the clocks of `grant`. `call` is the time of each call, for those that see no more.
pub(crate) fn grant(grant: ClockGrant, call: &CallTime, wasi: &mut WasiCtxBuilder) {
    match grant {
        ClockGrant::CallStart => wasi.wall_clock(call.clone()).monotonic_clock(call.clone()),
        ClockGrant::Coarse => wasi.wall_clock(Coarse::new()).monotonic_clock(Coarse::new()),
        // What a context begins with.
        ClockGrant::Real => wasi,
    };
}

/// The second in which a call began. Only a new call moves it: neither clock shows how long something takes, and what
/// a call does depends on nothing but what it was given.
///
/// Waiting goes by the host's clock all the same (`subscribe-duration`): a guest that sleeps is woken, and
/// ended by its time limit. One that waits in a loop until the clock shows a time meets that limit.
#[derive(Clone, Default)]
pub(crate) struct CallTime {
    /// In seconds since the beginning of 1970, UTC.
    wall: Arc<AtomicU64>,
    /// The same, but it never goes back when the host's clock is set.
    steady: Arc<AtomicU64>,
}

impl CallTime {
    /// `now` in milliseconds since the beginning of 1970, UTC.
    pub(crate) fn set(&self, now: u64) {
        let seconds = now / 1000;
        self.wall.store(seconds, Ordering::Relaxed);
        self.steady.fetch_max(seconds, Ordering::Relaxed);
    }
}

impl HostWallClock for CallTime {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::from_secs(self.wall.load(Ordering::Relaxed))
    }
}

impl HostMonotonicClock for CallTime {
    fn resolution(&self) -> u64 {
        NANOSECONDS
    }

    fn now(&self) -> u64 {
        self.steady.load(Ordering::Relaxed).saturating_mul(NANOSECONDS)
    }
}

/// The host's clocks in steps of 100 milliseconds.
struct Coarse {
    since: Instant,
}

impl Coarse {
    fn new() -> Coarse {
        Coarse { since: Instant::now() }
    }
}

impl HostWallClock for Coarse {
    fn resolution(&self) -> Duration {
        STEP
    }

    fn now(&self) -> Duration {
        stepped(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl HostMonotonicClock for Coarse {
    fn resolution(&self) -> u64 {
        nanoseconds(STEP)
    }

    fn now(&self) -> u64 {
        nanoseconds(stepped(self.since.elapsed()))
    }
}

fn stepped(time: Duration) -> Duration {
    let past = time.as_nanos() % STEP.as_nanos();
    time.saturating_sub(Duration::from_nanos(u64::try_from(past).unwrap_or(u64::MAX)))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

const STEP: Duration = Duration::from_millis(100);
/// In a second.
const NANOSECONDS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_call_is_whole_seconds_and_its_steady_clock_never_goes_back() {
        let time = CallTime::default();
        let shown = || (HostWallClock::now(&time).as_millis(), HostMonotonicClock::now(&time));
        time.set(1_700_000_000_999);
        assert_eq!(shown(), (1_700_000_000_000, 1_700_000_000 * NANOSECONDS));
        time.set(1_600_000_000_001);
        assert_eq!(shown(), (1_600_000_000_000, 1_700_000_000 * NANOSECONDS), "the host's clock was set back");
        time.set(u64::MAX);
        assert_eq!(shown().1, u64::MAX);
    }

    #[test]
    fn coarse_time_is_cut_to_its_step() {
        for (time, expect) in [(0, 0), (99_999_999, 0), (100_000_000, 100_000_000), (1_999_999_999, 1_900_000_000)] {
            assert_eq!(stepped(Duration::from_nanos(time)), Duration::from_nanos(expect));
        }
        let coarse = Coarse::new();
        assert_eq!(HostWallClock::now(&coarse).as_nanos() % STEP.as_nanos(), 0);
        assert_eq!(HostMonotonicClock::now(&coarse) % nanoseconds(STEP), 0);
    }
}
