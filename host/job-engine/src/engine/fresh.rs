//! The devices of a job that have not had a turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use chrono::TimeDelta;

use crate::record::BegunTarget;

/// In the order of their turns, those of earlier stages first. There may be a million of them, for hours: the list is
/// the one that the journal is given, and a device becomes a target of its own with its first turn.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    list: Arc<Vec<BegunTarget>>,
    next: usize,
    /// Those that have joined while the job ran, by their stages and after those of the list. Each with how long after the
    /// job's beginning that was.
    joined: BTreeMap<Option<u32>, VecDeque<(BegunTarget, TimeDelta)>>,
}

impl Fresh {
    pub(super) fn new(list: Arc<Vec<BegunTarget>>) -> Fresh {
        Fresh { list, ..Fresh::default() }
    }

    /// Those that had had no turn when the process ended.
    pub(super) fn again(targets: Vec<(BegunTarget, TimeDelta)>) -> Fresh {
        let mut fresh = Fresh::default();
        let mut list = Vec::new();
        for (target, late) in targets {
            match late.is_zero() {
                true => list.push(target),
                false => fresh.join(target, late),
            }
        }
        list.sort_by_key(|target| target.stage);
        Fresh { list: Arc::new(list), ..fresh }
    }

    pub(super) fn join(&mut self, target: BegunTarget, late: TimeDelta) {
        self.joined.entry(target.stage).or_default().push_back((target, late));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next >= self.list.len() && self.joined.is_empty()
    }

    /// Whether there is a next device, whose stage is not after this one. Stages count from 1; without a policy there are
    /// none.
    pub(super) fn has_next(&self, stage: u32) -> bool {
        self.is_next_listed(stage)
            || self.joined.first_key_value().is_some_and(|(of, _)| of.is_none_or(|of| of <= stage))
    }

    /// The next device of [`Fresh::has_next`], which is no longer among them, and how long after the job's beginning it has
    /// joined.
    pub(super) fn pop(&mut self, stage: u32) -> Option<(BegunTarget, TimeDelta)> {
        if self.is_next_listed(stage) {
            let target = self.list.get(self.next)?.clone();
            self.next += 1;
            return Some((target, TimeDelta::zero()));
        }
        let mut first = self.joined.first_entry().filter(|entry| entry.key().is_none_or(|of| of <= stage))?;
        let joined = first.get_mut().pop_front();
        if first.get().is_empty() {
            first.remove();
        }
        joined
    }

    fn is_next_listed(&self, stage: u32) -> bool {
        self.list.get(self.next).is_some_and(|target| target.stage.is_none_or(|of| of <= stage))
    }

    pub(super) fn clear(&mut self) {
        *self = Fresh::default();
    }
}
