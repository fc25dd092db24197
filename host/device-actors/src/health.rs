//! Failures of plugin versions on one device, and the pauses that they earn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits::Limits;
use crate::lineup::Lineup;

/// Failures in a row, by version. A version that works is not listed, so there are hardly ever any.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failing: Vec<Failing>,
}

#[derive(Debug)]
struct Failing {
    id: Arc<str>,
    in_a_row: u32,
    paused_until: Option<Instant>,
}

impl Health {
    pub(crate) fn worked(&mut self, id: &str) {
        self.failing.retain(|failing| *failing.id != *id);
    }

    /// Answers how many failures in a row that makes.
    pub(crate) fn failed(&mut self, now: Instant, id: &Arc<str>, limits: &Limits) -> u32 {
        let place = self.failing.iter().position(|failing| failing.id == *id).unwrap_or_else(|| {
            self.failing.push(Failing { id: id.clone(), in_a_row: 0, paused_until: None });
            self.failing.len() - 1
        });
        let failing = &mut self.failing[place];
        failing.in_a_row = failing.in_a_row.saturating_add(1);
        if let Some(over) = failing.in_a_row.checked_sub(limits.failures_in_a_row) {
            failing.paused_until = Some(now + limits.pause.delay(over + 1));
        }
        failing.in_a_row
    }

    pub(crate) fn paused_until(&self, id: &str) -> Option<Instant> {
        self.failing.iter().find(|failing| *failing.id == *id).and_then(|failing| failing.paused_until)
    }

    /// What is left of a pause.
    pub(crate) fn pause(&self, now: Instant, id: &str) -> Option<Duration> {
        self.paused_until(id).map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Forget versions that are gone: a version that comes back begins anew.
    pub(crate) fn keep(&mut self, lineup: &Lineup) {
        self.failing.retain(|failing| lineup.has_version(&failing.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_failure_in_a_row_pauses_and_a_success_forgives() {
        let (now, limits, id) = (Instant::now(), Limits::default(), Arc::from("v1"));
        let mut health = Health::default();
        let pauses: Vec<u64> = (0..9)
            .map(|_| {
                health.failed(now, &id, &limits);
                health.pause(now, &id).unwrap_or_default().as_secs()
            })
            .collect();
        assert_eq!(pauses, [0, 0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(health.pause(now + Duration::from_secs(30), &id), None);
        health.worked(&id);
        health.failed(now, &id, &limits);
        assert_eq!(health.pause(now, &id), None);
    }
}
