//! The embedded hub as the job engine sees it.

use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::job::TwinUpdate;
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::query::Condition;
use iothub_protocol::twin::TwinPatch;
use job_engine::Fleet;

use crate::driver::HubHandle;
use crate::hub::{Answer, Operation};
use crate::scan::Walk;

/// Jobs act on the hub's devices through this: the same requests that back ends make, without HTTP.
#[derive(Clone)]
pub struct HubFleet {
    hub: HubHandle,
}

impl HubFleet {
    pub fn new(hub: HubHandle) -> HubFleet {
        HubFleet { hub }
    }
}

impl Fleet for HubFleet {
    async fn select(&self, condition: &Condition) -> Result<Vec<DeviceId>, HubError> {
        let mut walk = Walk::ids(&self.hub, condition);
        let mut selected = Vec::new();
        while let Some(twins) = walk.next().await? {
            selected.extend(twins.into_iter().map(|(id, _)| id));
        }
        Ok(selected)
    }

    async fn call_method(&self, device: &DeviceId, method: &DirectMethod) -> Result<MethodResponse, HubError> {
        let operation = Operation::CallMethod { id: device.clone(), method: method.clone() };
        match self.hub.request(operation).await? {
            Answer::Method(response) => Ok(response),
            other => Err(HubError::new(ErrorCode::ServerError, format!("the hub answered a call with {other:?}"))),
        }
    }

    async fn patch_twin(&self, device: &DeviceId, update: &TwinUpdate) -> Result<(), HubError> {
        let patch = TwinPatch { tags: update.tags.clone(), desired: update.desired.clone() };
        self.hub.request(Operation::PatchTwin { id: device.clone(), patch, if_match: None }).await?;
        Ok(())
    }
}
