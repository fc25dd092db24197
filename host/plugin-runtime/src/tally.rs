//! How the calls of a version end, over all devices.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one version since it was loaded. Every device adds to it, at the cost of an atomic addition.
#[derive(Debug, Default)]
pub struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
}

/// What a [`Tally`] has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub calls: u64,
    /// Calls that trapped, ran too long, or could not begin.
    pub failures: u64,
}

impl Tally {
    /// A call returned.
    pub fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A call did not return.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        let failures = self.failed.load(Ordering::Relaxed);
        Counts { calls: self.answered.load(Ordering::Relaxed) + failures, failures }
    }
}

impl Counts {
    /// What was counted after `before`.
    pub(crate) fn since(self, before: Counts) -> Counts {
        Counts {
            calls: self.calls.saturating_sub(before.calls),
            failures: self.failures.saturating_sub(before.failures),
        }
    }
}
