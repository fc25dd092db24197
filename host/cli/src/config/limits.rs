//! `[limits]`: what bounds devices and plugins. Each default and its reason stand with the type that is filled.

use std::time::Duration;

use device_actors::{Backoff, Limits};
use plugin_runtime::{CallLimits, MAX_RESIDENT, RuntimeSettings};

use super::document::{Entry, Section};
use crate::units::{shown_duration, shown_size};

/// Limits of the whole host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostLimits {
    /// Of plugins. They hold from one start to the next, since memory is laid out by them.
    pub(crate) runtime: RuntimeSettings,
    /// Plugin instances kept at once; `None` for as many as the machine can bear.
    pub(crate) instances: Option<u32>,
    /// Of each device. They can change while it runs.
    pub(crate) actors: Limits,
}

/// One limit, for people.
pub(crate) struct ShownLimit {
    /// As it is called in the file.
    pub(crate) name: &'static str,
    pub(crate) value: String,
    /// Whether it can change while the host runs.
    pub(crate) is_live: bool,
}

impl HostLimits {
    /// The limits of `other` that differ.
    pub(crate) fn differences(&self, other: &HostLimits) -> impl Iterator<Item = ShownLimit> {
        self.shown()
            .into_iter()
            .zip(other.shown())
            .filter(|(one, other)| one.value != other.value)
            .map(|(_, other)| other)
    }

    fn shown(&self) -> Vec<ShownLimit> {
        let HostLimits { runtime, actors, instances } = self;
        let calls = &runtime.calls;
        let (time, size) = (shown_duration, |bytes: usize| shown_size(bytes as u64));
        let backoff = |backoff: &Backoff| format!("{} to {}", time(backoff.first), time(backoff.cap));
        let at_start = [
            ("limits.call-time", time(runtime.call_time_limit)),
            ("limits.memory", size(runtime.memory_limit)),
            ("limits.instances", instances.map_or_else(|| "as many as fit".to_owned(), |count| count.to_string())),
            ("limits.calls-in-flight", runtime.max_in_flight.to_string()),
            ("limits.component-size", size(runtime.max_component_size)),
            ("limits.calls.log-line", size(calls.log_line)),
            ("limits.calls.log-lines", calls.log_lines.to_string()),
            ("limits.calls.state", size(calls.state)),
            ("limits.calls.timers", calls.timers.to_string()),
            ("limits.calls.timer-payload", size(calls.timer_payload)),
            ("limits.calls.timer-ahead", time(calls.timer_ahead)),
            ("limits.calls.name", size(calls.name)),
            ("limits.calls.argument", size(calls.argument)),
            ("limits.calls.random", shown_size(calls.random)),
            ("limits.calls.handles", calls.handles.to_string()),
            ("limits.calls.files", calls.files.to_string()),
            ("limits.calls.lookups", calls.lookups.to_string()),
            ("limits.calls.peer-messages", calls.peer_messages.to_string()),
            ("limits.calls.peer-bytes", size(calls.peer_bytes)),
        ];
        let live = [
            ("limits.mailbox", actors.mailbox.to_string()),
            ("limits.inbox", actors.inbox.to_string()),
            ("limits.message-tries", actors.message_tries.to_string()),
            ("limits.method-expiry", time(actors.method_expiry)),
            ("limits.twin-wait", time(actors.twin_wait)),
            ("limits.idle", time(actors.idle)),
            ("limits.telemetry-queue", size(actors.telemetry_bytes)),
            ("limits.telemetry-window", actors.telemetry_window.to_string()),
            ("limits.report-timeout", time(actors.report_timeout)),
            ("limits.retry", backoff(&actors.retry)),
            ("limits.failures-before-pause", actors.failures_in_a_row.to_string()),
            ("limits.pause", backoff(&actors.pause)),
            ("limits.restart", backoff(&actors.restart)),
            ("limits.failures-before-quarantine", actors.quarantine_after.to_string()),
        ];
        let shown = |is_live| move |(name, value)| ShownLimit { name, value, is_live };
        at_start.into_iter().map(shown(false)).chain(live.into_iter().map(shown(true))).collect()
    }
}

pub(super) fn read(section: &Section<'_>) -> HostLimits {
    let mut limits = HostLimits::default();
    plugins(section, &mut limits.runtime);
    let instances = section.get("instances").and_then(|entry| entry.count(1..=MAX_RESIDENT.into()));
    limits.instances = instances.and_then(|count| u32::try_from(count).ok());
    actors(section, &mut limits.actors);
    if let Some(calls) = section.get("calls") {
        calls.section(|section| of_calls(section, &mut limits.runtime.calls));
    }
    limits
}

fn plugins(section: &Section<'_>, settings: &mut RuntimeSettings) {
    section.duration("call-time", MIN_CALL_TIME..=seconds(300), &mut settings.call_time_limit);
    section.size("memory", MIN_MEMORY..=1 << 30, &mut settings.memory_limit);
    section.count("calls-in-flight", 1..=1024, &mut settings.max_in_flight);
    section.size("component-size", 1 << 10..=64 << 20, &mut settings.max_component_size);
}

fn actors(section: &Section<'_>, limits: &mut Limits) {
    section.count("mailbox", 1..=10_000, &mut limits.mailbox);
    section.count("inbox", 1..=1024, &mut limits.inbox);
    section.count("message-tries", 1..=1000, &mut limits.message_tries);
    section.duration("method-expiry", seconds(1)..=seconds(300), &mut limits.method_expiry);
    section.duration("twin-wait", seconds(0)..=seconds(60), &mut limits.twin_wait);
    section.duration("idle", seconds(0)..=seconds(86_400), &mut limits.idle);
    section.size("telemetry-queue", 1 << 10..=64 << 20, &mut limits.telemetry_bytes);
    section.count("telemetry-window", 1..=32, &mut limits.telemetry_window);
    section.duration("report-timeout", seconds(1)..=seconds(600), &mut limits.report_timeout);
    backoff(section.get("retry"), &mut limits.retry);
    section.count("failures-before-pause", 1..=1000, &mut limits.failures_in_a_row);
    backoff(section.get("pause"), &mut limits.pause);
    backoff(section.get("restart"), &mut limits.restart);
    section.count("failures-before-quarantine", 1..=1000, &mut limits.quarantine_after);
}

/// `{ first = "1s", cap = "60s" }`.
fn backoff(entry: Option<Entry<'_>>, backoff: &mut Backoff) {
    let Some(entry) = entry else { return };
    entry.section(|section| {
        let range = Duration::from_millis(10)..=seconds(86_400);
        section.duration("first", range.clone(), &mut backoff.first);
        section.duration("cap", range, &mut backoff.cap);
    });
    if backoff.first > backoff.cap {
        entry.mistake("first is more than cap, which is the longest delay there is");
    }
}

fn of_calls(section: &Section<'_>, limits: &mut CallLimits) {
    section.size("log-line", 64..=64 << 10, &mut limits.log_line);
    section.count("log-lines", 0..=10_000, &mut limits.log_lines);
    section.size("state", 0..=16 << 20, &mut limits.state);
    section.count("timers", 0..=1000, &mut limits.timers);
    section.size("timer-payload", 0..=64 << 10, &mut limits.timer_payload);
    section.duration("timer-ahead", seconds(1)..=seconds(10 * 366 * 86_400), &mut limits.timer_ahead);
    section.size("name", 16..=1024, &mut limits.name);
    section.size("argument", 64 << 10..=16 << 20, &mut limits.argument);
    section.size("random", 64..=1 << 20, &mut limits.random);
    section.count("handles", 16..=10_000, &mut limits.handles);
    section.count("files", 1..=10_000, &mut limits.files);
    section.count("lookups", 0..=1000, &mut limits.lookups);
    section.count("peer-messages", 0..=1000, &mut limits.peer_messages);
    section.size("peer-bytes", 0..=256 << 10, &mut limits.peer_bytes);
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Less than this, and a busy machine alone ends calls.
pub(super) const MIN_CALL_TIME: Duration = Duration::from_millis(10);
/// A page: nothing begins on less.
pub(super) const MIN_MEMORY: u64 = 64 << 10;
