//! Figures: what Linux tells of a process, and whether they are good enough.

use std::fs;

/// Resident memory of a process, in MiB.
pub(crate) fn resident(pid: u32) -> f64 {
    memory(pid, "VmRSS:")
}

/// The most that it has had since it began, or since [`reset_peak`].
pub(crate) fn peak(pid: u32) -> f64 {
    memory(pid, "VmHWM:")
}

pub(crate) fn reset_peak(pid: u32) {
    // Linux's number for it.
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a process may ask it of its own user's");
}

fn memory(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells it");
    let kilobytes: f64 = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kilobytes / 1024.0
}

/// Processor time of a process until now, in seconds.
pub(crate) fn processor_time(pid: u32) -> f64 {
    /// Of a second, in which Linux tells it.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // Behind the name, which may hold spaces: the state, and so on to user and system time.
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / TICKS
}

/// Marks a figure that misses its target.
pub(crate) fn verdict(holds: bool) -> &'static str {
    if holds { "" } else { "  <-- misses its target" }
}
