//! The devices of a job that have not had a turn.

use std::sync::Arc;

use crate::record::BegunTarget;

/// In the order of their turns, those of earlier stages first. There may be a million of them, for hours: the list is
/// the one that the journal is given, and a device becomes a target of its own with its first turn.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    list: Arc<Vec<BegunTarget>>,
    next: usize,
}

impl Fresh {
    pub(super) fn new(list: Arc<Vec<BegunTarget>>) -> Fresh {
        Fresh { list, next: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next >= self.list.len()
    }

    /// The next device, unless its stage is after this one. Stages count from 1; without a policy there are none.
    pub(super) fn front(&self, stage: u32) -> Option<&BegunTarget> {
        self.list.get(self.next).filter(|target| target.stage.is_none_or(|of| of <= stage))
    }

    /// As [`Fresh::front`], and it is no longer among them.
    pub(super) fn pop(&mut self, stage: u32) -> Option<BegunTarget> {
        let target = self.front(stage)?.clone();
        self.next += 1;
        Some(target)
    }

    pub(super) fn clear(&mut self) {
        *self = Fresh::default();
    }
}
