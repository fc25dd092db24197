//! Has the hub do what configurations want: for each twin that changed, at once; for all, when a configuration changed
//! and now and then, in pages and with rests, so that devices and back ends do not wait for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::query::{Condition, Parts, Source};
use iothub_protocol::twin::TwinPatch;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Configurations;
use super::plan::{Decision, Plan, Tally};
use crate::driver::HubHandle;
use crate::events::{EventKind, EventLog, HubEvent};
use crate::hub::Operation;
use crate::scan::Walk;
use crate::store::Kind;

/// All twins are looked at so often without a reason, for conditions on what no event tells of. Azure takes five
/// minutes.
const INTERVAL: Duration = Duration::from_secs(60);
/// Counts are renewed so long after a change at the earliest.
const LEAST_REST: Duration = Duration::from_millis(250);
/// A rest between two walks over all twins is so many times as long as the walk.
const RESTS: u32 = 19;
/// Changes that come within this time are looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// Events read together.
const EVENTS: usize = 1000;
/// Twins that changed are looked at together once there are so many.
const TWINS: usize = 256;
/// Twins changed at once: each waits for the disk, together they share its commits.
const CHANGES: usize = 32;

/// Go on until `cancel`.
pub(crate) async fn run(configurations: Configurations, hub: HubHandle, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        never = Worker { configurations, hub }.run() => match never {},
    }
}

struct Worker {
    configurations: Configurations,
    hub: HubHandle,
}

/// When to walk over all twins.
struct Timetable {
    due: Instant,
    /// Not before.
    rested: Instant,
}

impl Timetable {
    /// A walk began and has ended.
    fn walked(began: Instant, ended: Instant) -> Timetable {
        let rest = (ended - began).saturating_mul(RESTS).max(LEAST_REST);
        Timetable { due: ended + rest.max(INTERVAL), rested: ended + rest }
    }

    /// Something was changed that may have been counted.
    fn hurry(&mut self) {
        self.due = self.due.min(self.rested);
    }
}

impl Worker {
    async fn run(self) -> std::convert::Infallible {
        let mut seen = self.hub.events().next();
        let mut timetable = Timetable { due: Instant::now(), rested: Instant::now() };
        loop {
            let plan = self.configurations.plan().await;
            if plan.is_empty() {
                self.configurations.changed().await;
                timetable = Timetable { due: Instant::now(), rested: Instant::now() };
                continue;
            }
            let events = self.hub.events().clone();
            tokio::select! {
                () = self.configurations.changed() => timetable.due = Instant::now(),
                () = tokio::time::sleep_until(timetable.due.into()) => {
                    // What happens from here on is seen by the walk or is looked at after it.
                    seen = events.next();
                    let began = Instant::now();
                    if let Err(error) = self.walk(&plan).await {
                        tracing::warn!(%error, "configurations were not applied to all devices");
                    }
                    timetable = Timetable::walked(began, Instant::now());
                }
                is_open = events.wait(seen) => {
                    // The hub has stopped, and so will this.
                    if !is_open {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(GATHER).await;
                    let gathered = Gathered::read(&events, &mut seen);
                    if gathered.is_counted {
                        timetable.hurry();
                    }
                    if let Err(error) = self.look_at(&plan, gathered.touched).await {
                        tracing::warn!(%error, "configurations were not applied to devices that changed");
                    }
                }
            }
        }
    }

    /// All twins.
    async fn walk(&self, plan: &Plan) -> Result<(), HubError> {
        let mut tally = Tally::new(plan);
        for source in [Source::Devices, Source::Modules] {
            let mut walk = Walk::over(&self.hub, &Condition::all_of(source));
            loop {
                let asked = Instant::now();
                let Some(twins) = walk.next().await? else { break };
                // The hub was busy with that for so long at most; it gets as long for others.
                let busy = asked.elapsed();
                self.apply(plan, twins, Some(&mut tally)).await;
                tokio::time::sleep(busy).await;
            }
        }
        self.configurations.set_results(tally.finish()).await;
        let forgotten = self.configurations.forget(plan.deleted()).await;
        forgotten.map_err(|error| HubError::new(ErrorCode::ServiceUnavailable, error.to_string()))
    }

    async fn look_at(&self, plan: &Plan, touched: BTreeSet<Address>) -> Result<(), HubError> {
        let (modules, devices): (Vec<_>, Vec<_>) = touched.into_iter().partition(Address::is_module);
        for (kind, touched) in [(Kind::Devices, devices), (Kind::Modules, modules)] {
            let mut walk = Walk::of(&self.hub, kind, &touched, Parts::ALL);
            while let Some(twins) = walk.next().await? {
                self.apply(plan, twins, None).await;
            }
        }
        Ok(())
    }

    async fn apply(&self, plan: &Plan, twins: Vec<(Address, Value)>, mut tally: Option<&mut Tally<'_>>) {
        let (mut refused, mut reason) = (0_u64, None);
        let looks = stream::iter(twins).map(|(id, twin)| self.look(plan, id, twin)).buffer_unordered(CHANGES);
        let mut looks = std::pin::pin!(looks);
        while let Some((mut twin, decision, error)) = looks.next().await {
            if let Some(tally) = &mut tally {
                tally.count(&mut twin, &decision);
            }
            if let Some(error) = error {
                refused += 1;
                reason.get_or_insert(error);
            }
        }
        if let Some(error) = reason {
            tracing::warn!(devices = refused, %error, "configurations do not fit into twins");
        }
    }

    /// The twin as it was, what has become of it, and why that is not what was wanted.
    async fn look(&self, plan: &Plan, id: Address, mut twin: Value) -> (Value, Decision, Option<HubError>) {
        let decision = plan.decide(&mut twin);
        if !decision.is_change() {
            return (twin, decision, None);
        }
        let etag = twin["etag"].as_str().map(str::to_owned);
        match self.change(&id, &decision, etag.clone()).await {
            Ok(()) => (twin, decision, None),
            // One that has changed or gone meanwhile is looked at again for that.
            Err(error) if is_of_another_time(error.code) => (twin, decision, None),
            Err(error) => {
                let refused = decision.refused();
                // If this fails as well there is nothing that it would say beyond the first.
                drop(self.change(&id, &refused, etag).await);
                (twin, refused, Some(error))
            }
        }
    }

    async fn change(&self, id: &Address, decision: &Decision, if_match: Option<String>) -> Result<(), HubError> {
        let patch = TwinPatch { tags: None, desired: Some(decision.desired.clone()) };
        let marks = decision.marks.clone();
        self.hub.request(Operation::Configure { id: id.clone(), patch, marks, if_match }).await.map(|_| ())
    }
}

/// What events say since the last look.
struct Gathered {
    /// Whose twins changed.
    touched: BTreeSet<Address>,
    /// Whether counts may be others.
    is_counted: bool,
}

impl Gathered {
    /// Read on from `seen`, as far as there is something or until there is enough.
    fn read(events: &EventLog, seen: &mut u64) -> Gathered {
        let mut gathered = Gathered { touched: BTreeSet::new(), is_counted: false };
        while gathered.touched.len() < TWINS {
            let page = events.page(*seen, EVENTS);
            *seen = page.next;
            // Those that are gone may have told of any twin, which the walk sees.
            gathered.is_counted |= page.missed > 0 || page.events.iter().any(|(_, event)| is_counted(event));
            gathered.touched.extend(page.events.iter().filter_map(|(_, event)| touched(event)));
            if page.events.is_empty() {
                break;
            }
        }
        gathered
    }
}

/// Whether a twin has changed or gone since it was read.
fn is_of_another_time(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::PreconditionFailed | ErrorCode::DeviceNotFound | ErrorCode::ModuleNotFound)
}

/// Whether an event may change what is counted.
fn is_counted(event: &HubEvent) -> bool {
    matches!(event.kind, EventKind::Deleted { .. }) || touched(event).is_some()
}

/// The device or module whose twin an event tells of.
fn touched(event: &HubEvent) -> Option<Address> {
    matches!(event.kind, EventKind::Twin { .. } | EventKind::Created { .. }).then(|| event.address.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_followed_by_a_rest_that_fits_it() {
        let began = Instant::now();
        let mut quick = Timetable::walked(began, began + Duration::from_millis(1));
        assert_eq!(quick.due - began, Duration::from_millis(1) + INTERVAL);
        quick.hurry();
        assert_eq!(quick.due - began, Duration::from_millis(1) + LEAST_REST);
        let mut long = Timetable::walked(began, began + Duration::from_secs(20));
        let rested = Duration::from_secs(20 + 20 * 19);
        assert_eq!(long.due - began, rested);
        long.hurry();
        assert_eq!(long.due - began, rested, "no hurry shortens it");
    }
}
