//! What share of a pinned version's calls fails on one device, and when that is too much. Pure.
//!
//! Failures in a row stop a version; one that fails now and then is never stopped by that, and whoever pinned it, to
//! roll it out, wants to hear of it.

use std::sync::Arc;

use plugin_runtime::PluginName;

use crate::lineup::{Lineup, Plugin};

/// The last calls that count.
const CALLS: u32 = 20;
/// Failures before anything is said: a single one says little.
const FEWEST: u32 = 2;
/// Percent of them that may fail.
const MAX_FAILURES: u32 = 10;

/// The last calls of versions that the twin pins, since it did. A restart forgets them, and begins anew.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// A device has few pins, so they are looked through.
    shares: Vec<Share>,
}

#[derive(Debug)]
struct Share {
    plugin: PluginName,
    /// [`Plugin::id`].
    id: Arc<str>,
    calls: u32,
    /// A bit for each of the last calls, the latest the lowest; set if it failed.
    failed: u32,
    failing: Option<String>,
}

impl Shares {
    /// A call of the version has ended. Tells whether that changes what there is to say of it: a version is failing from
    /// the call on that makes too many fail, until so many as count have worked in a row. What is said stays the same
    /// in between, as each change is a message to the hub.
    pub(crate) fn count(&mut self, plugin: &Plugin, failed: bool) -> bool {
        let place = self.shares.iter().position(|share| share.id == plugin.id).unwrap_or_else(|| {
            self.forget(plugin.name.as_str());
            let (plugin, id) = (plugin.name.clone(), plugin.id.clone());
            self.shares.push(Share { plugin, id, calls: 0, failed: 0, failing: None });
            self.shares.len() - 1
        });
        let share = &mut self.shares[place];
        share.calls = (share.calls + 1).min(CALLS);
        share.failed = (share.failed << 1 | u32::from(failed)) & ((1 << CALLS) - 1);
        let failures = share.failed.count_ones();
        let is_failing = match share.failing {
            None => failures >= FEWEST && failures * 100 > share.calls * MAX_FAILURES,
            Some(_) => failures > 0,
        };
        if is_failing == share.failing.is_some() {
            return false;
        }
        share.failing = is_failing.then(|| format!("{failures} of its last {} calls failed", share.calls));
        true
    }

    /// Versions of which too many calls fail, by [`Plugin::id`], and how that came.
    pub(crate) fn failing(&self) -> impl Iterator<Item = (&PluginName, &Arc<str>, &str)> {
        self.shares.iter().filter_map(|share| Some((&share.plugin, &share.id, share.failing.as_deref()?)))
    }

    /// The plugin's version is pinned anew.
    pub(crate) fn forget(&mut self, plugin: &str) {
        self.shares.retain(|share| share.plugin.as_str() != plugin);
    }

    /// Forget versions that are gone.
    pub(crate) fn keep(&mut self, lineup: &Lineup) {
        self.shares.retain(|share| lineup.has_version(&share.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(version: &str) -> Plugin {
        Plugin {
            name: PluginName::parse("lock-door").expect("a name"),
            id: Arc::from(version),
            hash: Arc::from(version),
            label: Arc::from(version),
            methods: Vec::new(),
            watched: Vec::new(),
            has_messages: false,
            has_ticks: false,
            has_lifecycle: false,
            state_format: 0,
        }
    }

    /// What is said after each call, where that changed.
    fn said(shares: &mut Shares, calls: &str) -> Vec<(usize, Option<String>)> {
        let plugin = plugin("2.0.0");
        let counted = calls.chars().enumerate().filter_map(|(number, call)| {
            let changed = shares.count(&plugin, call == 'x');
            let said = shares.failing().next().map(|(_, _, reason)| reason.to_owned());
            changed.then_some((number + 1, said))
        });
        counted.collect()
    }

    #[test]
    fn a_version_that_fails_now_and_then_is_failing_until_it_works_for_long() {
        let some = |call: usize, text: &str| (call, Some(text.to_owned()));
        for (calls, expected) in [
            ("....", vec![]),
            ("x", vec![]),
            ("xx", vec![some(2, "2 of its last 2 calls failed")]),
            ("x...................", vec![]),
            ("....x....x....x....x....x", vec![some(10, "2 of its last 10 calls failed")]),
            ("..................xx", vec![]),
            (".................xx", vec![some(19, "2 of its last 19 calls failed")]),
            ("x..................xxx", vec![some(22, "3 of its last 20 calls failed")]),
            ("x.................x.x", vec![some(19, "2 of its last 19 calls failed")]),
            ("xx....................", vec![some(2, "2 of its last 2 calls failed"), (22, None)]),
            ("xx...................x", vec![some(2, "2 of its last 2 calls failed")]),
        ] {
            assert_eq!(said(&mut Shares::default(), calls), expected, "{calls}");
        }
    }

    #[test]
    fn a_new_pin_or_another_version_begins_anew() {
        let mut shares = Shares::default();
        assert_eq!(said(&mut shares, "....xx").len(), 1);
        shares.forget("lamp");
        assert_eq!(shares.failing().count(), 1);
        shares.forget("lock-door");
        assert_eq!((shares.failing().count(), said(&mut shares, "...x")), (0, vec![]));
        shares.count(&plugin("3.0.0"), true);
        assert_eq!(shares.shares.len(), 1);
        shares.keep(&Lineup::default());
        assert!(shares.shares.is_empty());
    }
}
