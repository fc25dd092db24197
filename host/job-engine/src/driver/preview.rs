//! Looks at what a job would come to.

use std::collections::HashSet;

use chrono::Utc;
use durable_store::Store;
use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::job::JobRequest;
use iothub_protocol::job::targets::List;
use iothub_protocol::query::{Condition, Source};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{JobEngine, Message, check_times, first_occurrence, stopped, store_error};
use crate::engine::Scope;
use crate::fleet::{Fleet, Survey};
use crate::journal;
use crate::preview::{Counter, Tally, Terms, list_needed};

/// Devices of a list that are looked at together.
const PAGE: usize = 10_000;
/// Pages that are read ahead.
const AHEAD: usize = 2;

impl JobEngine {
    /// What a job would come to, and what it would meet. It changes nothing. A long list comes in parts, each with the
    /// member `tally` of the answer to the one before.
    ///
    /// # Errors
    /// 400004 if a condition or a schedule is none, a list is not there, or the job's times do not fit each other; else what
    /// the fleet says.
    pub async fn preview(&self, request: JobRequest, tally: Tally) -> Result<Value, HubError> {
        let (reply, replied) = oneshot::channel();
        let message = Message::Preview { request: Box::new(request), tally, reply };
        self.messages.send(message).map_err(|_| stopped())?;
        replied.await.unwrap_or_else(|_| Err(stopped()))
    }
}

pub(super) async fn preview<F: Fleet>(
    fleet: &F,
    store: &Store,
    request: &JobRequest,
    tally: Tally,
    in_flight: usize,
) -> Result<Value, HubError> {
    let now = Utc::now();
    let first = first_occurrence(request, now)?;
    check_times(request, now, first)?;
    let condition = Condition::parse_job(&request.query_condition)?;
    let scope = Scope::new(request.targets.as_ref(), request.policy.as_ref())?;
    let (mut counter, marks) = Counter::new(&scope, tally)?;
    match &scope.list {
        None => count(fleet, store, Survey { condition, among: None, marks }, &mut counter, |_| ()).await?,
        Some(List::Inline(devices)) => {
            for page in devices.chunks(PAGE) {
                let mut missing: HashSet<Address> = page.iter().cloned().collect();
                for source in [Source::Devices, Source::Modules] {
                    let (condition, among) = (Condition::all_of(source), Some(page.to_vec()));
                    let survey = Survey { condition, among, marks: marks.clone() };
                    count(fleet, store, survey, &mut counter, |device| _ = missing.remove(device)).await?;
                }
                let missing = page.iter().filter(|device| missing.contains(device));
                let missing: Vec<_> = missing.filter(|device| counter.count_missing(device)).cloned().collect();
                count_overlaps(store, missing, &mut counter).await?;
            }
        }
        Some(List::Uploaded) => return Err(list_needed("latch.targets")),
    }
    Ok(counter.finish(request, &Terms { now, first, in_flight, own: fleet.quota() }))
}

/// Count what a survey finds.
async fn count<F: Fleet>(
    fleet: &F,
    store: &Store,
    survey: Survey,
    counter: &mut Counter,
    mut found: impl FnMut(&Address),
) -> Result<(), HubError> {
    let (pages, mut taken) = mpsc::channel(AHEAD);
    let look = async {
        let looked = fleet.survey(&survey, &pages).await;
        drop(pages);
        looked
    };
    let take = async {
        while let Some(page) = taken.recv().await {
            page.iter().for_each(|device| found(&device.address));
            let targets = page.into_iter().filter(|device| counter.count(device)).map(|device| device.address);
            count_overlaps(store, targets.collect(), counter).await?;
        }
        Ok(())
    };
    let (looked, taken) = tokio::join!(look, take);
    looked.and(taken)
}

async fn count_overlaps(store: &Store, targets: Vec<Address>, counter: &mut Counter) -> Result<(), HubError> {
    let overlaps = store.scan(move |connection| journal::overlaps(connection, &targets)).await;
    for (job, devices) in overlaps.map_err(|error| store_error(&error))? {
        counter.count_overlap(&job, devices);
    }
    Ok(())
}
