//! Finds the devices that a job is for: those that it begins with, and those that come later.

use std::collections::{HashMap, HashSet};

use durable_store::Store;
use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::id::JobId;
use iothub_protocol::job::targets::List;
use iothub_protocol::query::{Condition, Source};

use super::store_error;
use crate::engine::{Found, Scope, includes};
use crate::fleet::{Fleet, Selected, Selection};
use crate::journal;

/// Devices that are looked at together.
const PAGE: usize = 10_000;

/// # Errors
/// What the fleet or the journal says; then the job cannot begin.
pub(super) async fn find<F: Fleet>(
    fleet: &F,
    store: &Store,
    job: &JobId,
    selection: &Selection,
    scope: &Scope,
) -> Result<Found, HubError> {
    if scope.is_plain() {
        return Ok(fleet.select(selection).await?.into());
    }
    let mut finder = Finder::new(fleet, store, job, scope);
    match &scope.list {
        None => finder.take(fleet.select(selection).await?).await?,
        Some(List::Inline(devices)) => finder.take_listed(devices.clone(), selection).await?,
        Some(List::Uploaded) => {
            let mut last: Option<Address> = None;
            loop {
                let (id, after) = (job.clone(), last.clone());
                let read = store.read(move |connection| journal::listed(connection, &id, after.as_ref(), PAGE)).await;
                let page = read.map_err(|error| store_error(&error))?;
                last = page.last().cloned();
                if last.is_none() {
                    break;
                }
                finder.take_listed(page, selection).await?;
            }
        }
    }
    Ok(finder.found)
}

/// Those that match and were never in the job, which has begun.
///
/// # Errors
/// What the fleet or the journal says; then they can be looked for again.
pub(super) async fn find_new<F: Fleet>(
    fleet: &F,
    store: &Store,
    job: &JobId,
    selection: &Selection,
    scope: &Scope,
) -> Result<Found, HubError> {
    let mut finder = Finder::new(fleet, store, job, scope);
    let devices = match &selection.among {
        // A look at a row of the journal is shorter than one at a twin.
        Some(changed) => {
            let changed = finder.newcomers(changed.clone(), Clone::clone).await?;
            if changed.is_empty() {
                return Ok(Found::default());
            }
            fleet.select(&Selection { among: Some(changed), ..selection.clone() }).await?
        }
        None => {
            let matching = fleet.select(selection).await?;
            finder.newcomers(matching, |selected| selected.address.clone()).await?
        }
    };
    if !devices.is_empty() {
        finder.take(devices).await?;
    }
    Ok(finder.found)
}

struct Finder<'a, F> {
    fleet: &'a F,
    store: &'a Store,
    job: &'a JobId,
    scope: &'a Scope,
    /// Devices of the job's request to leave out, sorted.
    excluded: Vec<Address>,
    found: Found,
}

impl<'a, F: Fleet> Finder<'a, F> {
    fn new(fleet: &'a F, store: &'a Store, job: &'a JobId, scope: &'a Scope) -> Finder<'a, F> {
        let mut excluded = match &scope.exclude_list {
            Some(List::Inline(devices)) => devices.clone(),
            Some(List::Uploaded) | None => Vec::new(),
        };
        excluded.sort_unstable();
        Finder { fleet, store, job, scope, excluded, found: Found::default() }
    }

    /// Those of these devices that were never in the job.
    async fn newcomers<D>(&self, devices: Vec<D>, address: impl Fn(&D) -> Address) -> Result<Vec<D>, HubError> {
        let mut are_members = Vec::with_capacity(devices.len());
        for page in devices.chunks(PAGE) {
            let (job, page) = (self.job.clone(), page.iter().map(&address).collect::<Vec<_>>());
            let read = self.store.read(move |connection| journal::members(connection, &job, &page)).await;
            are_members.extend(read.map_err(|error| store_error(&error))?);
        }
        let with_notes = devices.into_iter().zip(are_members);
        Ok(with_notes.filter(|(_, is_member)| !is_member).map(|(device, _)| device).collect())
    }

    /// Devices of a list, whether or not they exist: one that does not fails when its turn comes.
    async fn take_listed(&mut self, devices: Vec<Address>, selection: &Selection) -> Result<(), HubError> {
        let mut labels = HashMap::new();
        if !selection.labels.is_empty() {
            for source in [Source::Devices, Source::Modules] {
                let condition = Condition::all_of(source);
                let among = Selection { condition, among: Some(devices.clone()), labels: selection.labels.clone() };
                let selected = self.fleet.select(&among).await?;
                labels.extend(selected.into_iter().map(|found| (found.address, found.labels)));
            }
        }
        let without_labels = || vec![None; selection.labels.len()].into();
        let devices = devices.into_iter().map(|address| {
            let labels = labels.remove(&address).unwrap_or_else(without_labels);
            Selected { address, labels }
        });
        self.take(devices.collect()).await
    }

    /// All of these that are not excluded.
    async fn take(&mut self, devices: Vec<Selected>) -> Result<(), HubError> {
        let is_excluded = self.excluded(&devices).await?;
        let count = is_excluded.iter().filter(|is_excluded| **is_excluded).count();
        self.found.excluded += count as u64;
        let kept = devices.into_iter().zip(is_excluded).filter(|(_, is_excluded)| !is_excluded);
        let kept: Vec<Selected> = kept.map(|(device, _)| device).collect();
        if !self.scope.stages.is_empty() {
            let stages = self.stages(&kept).await?;
            self.found.stages.extend(stages);
        }
        match self.found.devices.is_empty() {
            true => self.found.devices = kept,
            false => self.found.devices.extend(kept),
        }
        Ok(())
    }

    /// Of each of these devices the first stage by condition that it is in; 0 if there is none.
    async fn stages(&self, devices: &[Selected]) -> Result<Vec<u32>, HubError> {
        let mut stages = vec![0; devices.len()];
        for (number, condition) in (1..).zip(&self.scope.stages) {
            let matching = matching(self.fleet, condition, devices).await?;
            for (stage, device) in stages.iter_mut().zip(devices) {
                if *stage == 0 && matching.contains(&device.address) {
                    *stage = number;
                }
            }
        }
        Ok(stages)
    }

    /// Of each of these devices whether it is excluded.
    async fn excluded(&self, devices: &[Selected]) -> Result<Vec<bool>, HubError> {
        let mut excluded: Vec<bool> = devices.iter().map(|device| includes(&self.excluded, &device.address)).collect();
        if self.scope.exclude_list == Some(List::Uploaded) {
            for (places, page) in pages(&mut excluded, devices) {
                let (id, addresses) = (self.job.clone(), page);
                let read = self.store.read(move |connection| journal::listed_among(connection, &id, &addresses)).await;
                for (place, is_listed) in places.iter_mut().zip(read.map_err(|error| store_error(&error))?) {
                    *place |= is_listed;
                }
            }
        }
        if let Some(condition) = &self.scope.exclude {
            let matching = matching(self.fleet, condition, devices).await?;
            for (place, device) in excluded.iter_mut().zip(devices) {
                *place |= matching.contains(&device.address);
            }
        }
        Ok(excluded)
    }
}

/// Those of these devices for which a condition holds, and others.
async fn matching<F: Fleet>(
    fleet: &F,
    condition: &Condition,
    devices: &[Selected],
) -> Result<HashSet<Address>, HubError> {
    let among = || devices.iter().map(|device| device.address.clone()).collect();
    // Of very many one walk over all is shorter than a look at each.
    let among = (devices.len() <= PAGE).then(among);
    let selection = Selection { condition: condition.clone(), among, labels: Vec::new() };
    Ok(fleet.select(&selection).await?.into_iter().map(|selected| selected.address).collect())
}

/// What is noted of each device, with the devices, some at a time.
fn pages<'a>(notes: &'a mut [bool], devices: &'a [Selected]) -> impl Iterator<Item = (&'a mut [bool], Vec<Address>)> {
    let addresses = devices.chunks(PAGE).map(|page| page.iter().map(|device| device.address.clone()).collect());
    notes.chunks_mut(PAGE).zip(addresses)
}
