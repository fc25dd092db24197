//! The devices of a job that have not had a turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use chrono::TimeDelta;

use super::windows::Place;
use crate::record::BegunTarget;

/// In the order of their turns, those of earlier stages first. There may be a million of them, for hours: the list is
/// the one that the journal is given, and a device becomes a target of its own with its first turn.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    list: Arc<Vec<BegunTarget>>,
    /// Of a job without windows: the first that has not had its turn.
    next: usize,
    /// Of a job with windows: the places in the list of the devices of each zone.
    zones: Option<Vec<VecDeque<u32>>>,
    /// Those that have joined while the job ran, by their stages and zones, and after those of the list.
    joined: BTreeMap<(Option<u32>, Place), VecDeque<Turn>>,
}

/// A device whose turn has come.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) target: BegunTarget,
    /// How long after the job's beginning it has joined.
    pub(super) late: TimeDelta,
    /// Of its zone; 0 in a job without windows.
    pub(super) place: Place,
}

impl Fresh {
    pub(super) fn new(list: Arc<Vec<BegunTarget>>) -> Fresh {
        Fresh { list, ..Fresh::default() }
    }

    /// Of a job with windows. Given is the zone of each device; one that has none is not among them.
    pub(super) fn by_zone(list: Arc<Vec<BegunTarget>>, places: &[Option<Place>]) -> Fresh {
        let count = places.iter().flatten().max().map_or(0, |place| usize::from(*place) + 1);
        let mut zones = vec![VecDeque::new(); count];
        for (number, place) in (0..).zip(places) {
            if let Some(place) = place {
                zones[usize::from(*place)].push_back(number);
            }
        }
        Fresh { list, zones: Some(zones), ..Fresh::default() }
    }

    pub(super) fn join(&mut self, turn: Turn) {
        self.joined.entry((turn.target.stage, turn.place)).or_default().push_back(turn);
    }

    pub(super) fn len(&self) -> usize {
        let listed = match &self.zones {
            None => self.list.len().saturating_sub(self.next),
            Some(zones) => zones.iter().map(VecDeque::len).sum(),
        };
        listed + self.joined.values().map(VecDeque::len).sum::<usize>()
    }

    pub(super) fn is_empty(&self) -> bool {
        let is_any_listed = match &self.zones {
            None => self.next < self.list.len(),
            Some(zones) => !zones.iter().all(VecDeque::is_empty),
        };
        !is_any_listed && self.joined.is_empty()
    }

    /// Whether there is a next device, whose stage is not after this one and whose zone is open. Stages count from 1;
    /// without a policy there are none.
    pub(super) fn has_next(&self, stage: u32, is_open: impl Fn(Place) -> bool) -> bool {
        self.next_listed(stage, &is_open).is_some() || self.next_joined(stage, &is_open).is_some()
    }

    /// The next device of [`Fresh::has_next`], which is no longer among them.
    pub(super) fn pop(&mut self, stage: u32, is_open: impl Fn(Place) -> bool) -> Option<Turn> {
        if let Some((number, place)) = self.next_listed(stage, &is_open) {
            match &mut self.zones {
                None => self.next += 1,
                Some(zones) => _ = zones.get_mut(usize::from(place)).and_then(VecDeque::pop_front),
            }
            let target = self.list.get(number)?.clone();
            return Some(Turn { target, late: TimeDelta::zero(), place });
        }
        let key = self.next_joined(stage, &is_open)?;
        let line = self.joined.get_mut(&key)?;
        let turn = line.pop_front();
        if line.is_empty() {
            self.joined.remove(&key);
        }
        turn
    }

    /// Whether a device of that zone waits for its turn, which has come if its zone is open.
    pub(super) fn waits(&self, stage: u32, zone: Place) -> bool {
        let number = match &self.zones {
            None => Some(self.next),
            Some(zones) => zones.get(usize::from(zone)).and_then(|line| usize::try_from(*line.front()?).ok()),
        };
        let is_of_stage = |of: &Option<u32>| of.is_none_or(|of| of <= stage);
        number.and_then(|number| self.list.get(number)).is_some_and(|target| is_of_stage(&target.stage))
            || self.joined.keys().any(|(of, place)| *place == zone && is_of_stage(of))
    }

    pub(super) fn clear(&mut self) {
        *self = Fresh::default();
    }

    /// The place of the next device in the list, and its zone.
    fn next_listed(&self, stage: u32, is_open: &impl Fn(Place) -> bool) -> Option<(usize, Place)> {
        let (number, place) = match &self.zones {
            None => (self.next, 0),
            Some(zones) => {
                let fronts = (0..).zip(zones).filter_map(|(place, line)| Some((*line.front()?, place)));
                let (number, place) = fronts.filter(|(_, place)| is_open(*place)).min()?;
                (usize::try_from(number).ok()?, place)
            }
        };
        let target = self.list.get(number)?;
        target.stage.is_none_or(|of| of <= stage).then_some((number, place))
    }

    fn next_joined(&self, stage: u32, is_open: &impl Fn(Place) -> bool) -> Option<(Option<u32>, Place)> {
        let is_next = |(of, place): &&(Option<u32>, Place)| of.is_none_or(|of| of <= stage) && is_open(*place);
        self.joined.keys().find(is_next).copied()
    }
}
