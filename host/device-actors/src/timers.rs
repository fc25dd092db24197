//! Timers: what each plugin on a device waits for, and which of it is due first.
//!
//! Timers outlive the process, so they are due by the wall clock. That clock may be set while they wait: how long there
//! is left to wait is reckoned anew at each look, and there is one at least every [`LOOK`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin_runtime::{PluginName, Timer};

use crate::lineup::{Lineup, Plugin};
use crate::record::TimerChanges;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What everything within the process waits by.
    pub monotonic: Instant,
    /// Milliseconds since the beginning of 1970, UTC.
    pub wall: u64,
}

#[derive(Debug)]
pub(crate) struct Timers {
    plugins: BTreeMap<PluginName, OfPlugin>,
    now: Now,
}

#[derive(Debug, Default)]
struct OfPlugin {
    pending: Arc<BTreeMap<String, Timer>>,
    /// By the timer's name, if it was set or brought since the start.
    delays: BTreeMap<String, Delay>,
}

/// What a timer waits for beside its due time.
#[derive(Debug)]
struct Delay {
    /// A timer that was set for the past lines up behind what came before it; one that failed comes later each time.
    until: Instant,
    /// The version that failed to deal with it, and how often in a row. Another version need not wait.
    failed: Option<(Arc<str>, u32)>,
}

/// A timer that is brought to its plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firing {
    pub(crate) name: String,
    pub(crate) timer: Timer,
}

impl Timers {
    pub(crate) fn new(recovered: BTreeMap<PluginName, BTreeMap<String, Timer>>, now: Now) -> Timers {
        let of_plugin = |pending| OfPlugin { pending: Arc::new(pending), delays: BTreeMap::new() };
        Timers { plugins: recovered.into_iter().map(|(name, pending)| (name, of_plugin(pending))).collect(), now }
    }

    pub(crate) fn look(&mut self, now: Now) {
        self.now = now;
    }

    pub(crate) fn wall(&self) -> u64 {
        self.now.wall
    }

    /// How many are set.
    pub(crate) fn pending(&self) -> usize {
        self.plugins.values().map(|of_plugin| of_plugin.pending.len()).sum()
    }

    /// What the plugin sees of its timers while it deals with `firing`.
    pub(crate) fn shown(&self, plugin: &PluginName, firing: Option<&Firing>) -> Arc<BTreeMap<String, Timer>> {
        let mut shown = self.plugins.get(plugin).map(|of_plugin| of_plugin.pending.clone()).unwrap_or_default();
        if let Some(firing) = firing {
            Arc::make_mut(&mut shown).remove(&firing.name);
        }
        shown
    }

    /// The timer that can be brought first, to whom, and when.
    pub(crate) fn next<'a>(
        &self,
        lineup: &'a Lineup,
        not_before: impl Fn(&Plugin) -> Option<Instant>,
    ) -> Option<(Instant, &'a Arc<Plugin>, Firing)> {
        let plugins = lineup.plugins.iter().filter(|plugin| plugin.has_ticks);
        let of_plugins = plugins.filter_map(|plugin| Some((plugin, self.plugins.get(&plugin.name)?)));
        let all = of_plugins.flat_map(|(plugin, of_plugin)| {
            let pause = not_before(plugin);
            of_plugin.pending.iter().map(move |(name, timer)| {
                let from = of_plugin.ready(self.now, plugin, name, timer);
                (pause.map_or(from, |pause| from.max(pause)), plugin, name, timer)
            })
        });
        let first = all.min_by_key(|(from, plugin, name, timer)| (*from, timer.due, &plugin.name, *name));
        first.map(|(from, plugin, name, timer)| (from, plugin, Firing { name: name.clone(), timer: timer.clone() }))
    }

    /// When to look again, given when the first timer can be brought: the wall clock may be set meanwhile.
    pub(crate) fn look_at(&self, next: Instant) -> Instant {
        next.min(self.now.monotonic + LOOK)
    }

    /// What a call has set, cancelled and dealt with is recorded.
    pub(crate) fn apply(&mut self, plugin: &PluginName, changes: &TimerChanges) {
        if changes.is_empty() {
            return;
        }
        let of_plugin = self.plugins.entry(plugin.clone()).or_default();
        let pending = Arc::make_mut(&mut of_plugin.pending);
        for (name, change) in changes {
            match change {
                Some(timer) => {
                    pending.insert(name.clone(), timer.clone());
                    of_plugin.delays.insert(name.clone(), Delay { until: self.now.monotonic, failed: None });
                }
                None => {
                    pending.remove(name);
                    of_plugin.delays.remove(name);
                }
            }
        }
    }

    /// The timer comes again after a delay that grows with the failures in a row.
    pub(crate) fn failed(&mut self, plugin: &Plugin, firing: Firing, delay: impl FnOnce(u32) -> Duration) {
        let of_plugin = self.plugins.entry(plugin.name.clone()).or_default();
        let before = of_plugin.delays.remove(&firing.name).and_then(|delay| delay.failed);
        let failures = before.filter(|(id, _)| *id == plugin.id).map_or(0, |(_, failures)| failures).saturating_add(1);
        let until = self.now.monotonic + delay(failures);
        of_plugin.delays.insert(firing.name, Delay { until, failed: Some((plugin.id.clone(), failures)) });
    }
}

impl OfPlugin {
    fn ready(&self, now: Now, plugin: &Plugin, name: &str, timer: &Timer) -> Instant {
        let due = match timer.due.checked_sub(now.wall) {
            Some(left) => now.monotonic + Duration::from_millis(left),
            // A machine that was started a minute ago may know no instant of yesterday.
            None => now.monotonic.checked_sub(Duration::from_millis(now.wall - timer.due)).unwrap_or(now.monotonic),
        };
        match self.delays.get(name) {
            Some(Delay { failed: Some((version, _)), .. }) if *version != plugin.id => due,
            Some(delay) => due.max(delay.until),
            None => due,
        }
    }
}

/// Often enough for whoever sets a clock and watches; a device without timers does not look.
const LOOK: Duration = Duration::from_secs(60);
