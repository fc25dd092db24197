//! The embedded hub as the job engine sees it.

use std::collections::{HashMap, HashSet};

use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::job::TwinUpdate;
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::plugin_report::PinState;
use iothub_protocol::query::{Condition, Parts};
use iothub_protocol::twin::TwinPatch;
use job_engine::{Fleet, LabelReader, Quota, Selected, Selection, Survey, Surveyed};
use serde_json::json;
use tokio::sync::{broadcast, mpsc};

use crate::driver::HubHandle;
use crate::hub::{Answer, Operation};
use crate::scan::Walk;
use crate::store::Kind;
use crate::survey::survey;
use iothub_protocol::quota::tier::Class;

/// Jobs act on the hub's devices and modules through this: the same requests that back ends make, without HTTP.
#[derive(Clone)]
pub struct HubFleet {
    hub: HubHandle,
}

impl HubFleet {
    pub fn new(hub: HubHandle) -> HubFleet {
        HubFleet { hub }
    }

    /// Under a tier, jobs go at its pace.
    async fn pace(&self) -> Result<(), HubError> {
        self.hub.rehearsal().pass_or_fail(Class::JobDevices, 1).await
    }
}

impl Fleet for HubFleet {
    fn arrivals(&self) -> Option<broadcast::Receiver<Address>> {
        Some(self.hub.arrivals())
    }

    fn changes(&self) -> Option<broadcast::Receiver<Address>> {
        Some(self.hub.changes())
    }

    async fn select(&self, selection: &Selection) -> Result<Vec<Selected>, HubError> {
        let Selection { condition, among, labels } = selection;
        let parts = Parts { tags: !labels.is_empty() || condition.parts().tags, ..condition.parts() };
        let mut walk = match among {
            None => Walk::parts(&self.hub, condition, parts),
            Some(among) => Walk::among(&self.hub, condition, among, parts),
        };
        let mut reader = LabelReader::new(selection);
        let mut selected = Vec::new();
        while let Some(twins) = walk.next().await? {
            let with_labels = |(address, twin)| Selected { labels: reader.read(&twin), address };
            selected.extend(twins.into_iter().map(with_labels));
        }
        Ok(selected)
    }

    async fn survey(&self, asked: &Survey, pages: &mpsc::Sender<Vec<Surveyed>>) -> Result<(), HubError> {
        survey(&self.hub, asked, pages).await
    }

    fn quota(&self) -> Option<Quota> {
        self.hub.rehearsal().sku().map(Quota::Jobs)
    }

    async fn call_method(&self, address: &Address, method: &DirectMethod) -> Result<MethodResponse, HubError> {
        self.pace().await?;
        let operation = Operation::CallMethod { id: address.clone(), method: method.clone() };
        let rehearsal = self.hub.rehearsal();
        rehearsal.charge(|| method.payload.to_string().len());
        let answer = self.hub.request(operation).await.inspect_err(|error| {
            // The answer that the device is not there is a message, too.
            if error.code == ErrorCode::DeviceNotOnline {
                rehearsal.charge(|| 0);
            }
        });
        match answer? {
            Answer::Method(response) => {
                rehearsal.charge(|| response.payload.to_string().len());
                Ok(response)
            }
            other => Err(HubError::new(ErrorCode::ServerError, format!("the hub answered a call with {other:?}"))),
        }
    }

    async fn patch_twin(&self, address: &Address, update: &TwinUpdate) -> Result<(), HubError> {
        self.pace().await?;
        let size = |section: &Option<_>| section.as_ref().map_or(0, |section| json!(section).to_string().len());
        self.hub.rehearsal().charge(|| size(&update.tags) + size(&update.desired));
        let patch = TwinPatch { tags: update.tags.clone(), desired: update.desired.clone() };
        self.hub.request(Operation::MergeTwin { id: address.clone(), patch, if_match: None }).await?;
        Ok(())
    }

    async fn matching(&self, condition: &Condition, targets: &[Address]) -> Result<HashSet<Address>, HubError> {
        let mut matching = HashSet::new();
        for kind in [Kind::Devices, Kind::Modules] {
            let of_kind: Vec<_> = targets.iter().filter(|target| Kind::of(target) == kind).cloned().collect();
            let mut walk = Walk::of(&self.hub, kind, &of_kind, condition.parts());
            while let Some(twins) = walk.next().await? {
                matching.extend(twins.into_iter().filter(|(_, twin)| condition.matches(twin)).map(|(id, _)| id));
            }
        }
        Ok(matching)
    }

    async fn pin_states(&self, plugin: &str, targets: &[Address]) -> Result<HashMap<Address, PinState>, HubError> {
        let mut states = HashMap::with_capacity(targets.len());
        for kind in [Kind::Devices, Kind::Modules] {
            let of_kind: Vec<_> = targets.iter().filter(|target| Kind::of(target) == kind).cloned().collect();
            let mut walk = Walk::of(&self.hub, kind, &of_kind, PinState::PARTS);
            while let Some(twins) = walk.next().await? {
                states.extend(twins.into_iter().map(|(id, twin)| (id, PinState::of_twin(&twin, plugin))));
            }
        }
        Ok(states)
    }
}
