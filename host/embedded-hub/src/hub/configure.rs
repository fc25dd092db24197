//! What configurations do to a twin.

use iothub_protocol::configuration::ConfigurationMarks;
use iothub_protocol::error::HubError;
use iothub_protocol::id::DeviceId;
use iothub_protocol::twin::TwinPatch;

use super::{Answer, Hub, Now};
use crate::events::TwinChange;

impl<R> Hub<R> {
    /// Merge what configurations set, as a back end would, and note which they are. Marks alone change no version.
    pub(super) fn configure(
        &mut self,
        now: Now,
        id: &DeviceId,
        patch: &TwinPatch,
        marks: ConfigurationMarks,
        if_match: Option<&str>,
    ) -> Result<Answer, HubError> {
        self.change_twin(now, id, if_match, patch, TwinChange::Updated)?;
        if let Some(device) = self.devices.get_mut(id) {
            device.twin.configurations = marks;
        }
        Ok(Answer::Done)
    }
}
