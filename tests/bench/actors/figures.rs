//! Figures: of times, and of this process.

use std::fs;
use std::time::Duration;

/// Times in order.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Times {
        assert!(!times.is_empty(), "nothing was measured");
        times.sort_unstable();
        Times(times)
    }

    /// The time below which that part of all lies, 0 to 1.
    pub(crate) fn at(&self, part: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * part) as usize]
    }

    pub(crate) fn summary(&self) -> String {
        let (median, p99, longest) = (self.at(0.5), self.at(0.99), self.at(1.0));
        format!("median {median:.1?}, p99 {p99:.1?}, longest {longest:.1?}")
    }
}

/// Resident memory of this process, in MiB.
pub(crate) fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells it");
    let kilobytes: f64 = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kilobytes / 1024.0
}

/// Memory maps of this process, of which the kernel allows `vm.max_map_count`.
pub(crate) fn maps() -> usize {
    fs::read_to_string("/proc/self/maps").expect("Linux tells it").lines().count()
}

/// Marks a figure that misses its target.
pub(crate) fn verdict(holds: bool) -> &'static str {
    if holds { "" } else { "  <-- misses its target" }
}
