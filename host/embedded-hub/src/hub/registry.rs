//! Devices come, change and go; back ends change twins.

use chrono::{DateTime, Utc};
use iothub_protocol::authentication::Authentication;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::{Identity, IdentityRequest};
use iothub_protocol::sas::SharedKey;
use iothub_protocol::topic::{Subscription, ToDevice};
use iothub_protocol::twin::{Twin, TwinPatch, etag_matches};

use super::{Answer, Device, Hub, LinkOutput, Now, Output, Subscriptions, Unwritten, not_found};
use crate::events::{HubEvent, TwinChange};
use crate::import::NewDevice;
use crate::queue::Queue;

/// Ticks of 100 ns between year 1 and 1970: generation ids look like .NET ticks, 18 digits.
const TICKS_BEFORE_1970: i64 = 621_355_968_000_000_000;
/// A new identity's revision is below this: etags of ten digits at most, as Azure's are.
const FIRST_REVISIONS: u64 = 1_000_000_000;

impl<R> Hub<R> {
    /// Create without `if_match`, update with it. `keys` are fresh, for where the request names none.
    pub(super) fn put_device(
        &mut self,
        now: Now,
        id: &DeviceId,
        request: IdentityRequest,
        if_match: Option<&str>,
        keys: [SharedKey; 2],
    ) -> Result<Answer, HubError> {
        match (self.devices.get(id), if_match) {
            (Some(_), None) => Err(already_exists(id)),
            (None, Some(_)) => Err(not_found(id)),
            (None, None) => Ok(self.create(now, id, request, keys)),
            (Some(device), Some(_)) if !etag_matches(&device.identity.etag(), if_match) => Err(etag_mismatch()),
            (Some(_), Some(_)) => self.update(now, id, request, keys),
        }
    }

    fn create(&mut self, now: Now, id: &DeviceId, request: IdentityRequest, keys: [SharedKey; 2]) -> Answer {
        let identity = new_identity(now.wall, id, request, keys);
        let answer = Answer::Document(identity.to_json(false, None, 0));
        self.insert(now, identity, Twin::new(now.wall));
        answer
    }

    /// Take in a device that was imported.
    pub(super) fn import(&mut self, now: Now, device: NewDevice) -> Result<Answer, HubError> {
        let id = device.identity.device_id.clone();
        if self.devices.contains_key(&id) {
            return Err(already_exists(&id));
        }
        self.insert(now, device.identity, device.twin);
        Ok(Answer::Done)
    }

    fn insert(&mut self, now: Now, identity: Identity, twin: Twin) {
        let id = &identity.device_id.clone();
        let unwritten = self.unwritten(id);
        unwritten.identity = true;
        unwritten.twin = true;
        let device = Device::new(identity, twin, Subscriptions::new(), Queue::default());
        let event = HubEvent::created(id.clone(), now.wall, &device.twin.whole_body(id));
        self.devices.insert(id.clone(), device);
        self.residency.is_there(id);
        self.gated.push_back(Output::Event(event));
    }

    fn update(
        &mut self,
        now: Now,
        id: &DeviceId,
        request: IdentityRequest,
        keys: [SharedKey; 2],
    ) -> Result<Answer, HubError> {
        let device = self.devices.get_mut(id).ok_or_else(|| not_found(id))?;
        let identity = &mut device.identity;
        if identity.enabled == request.disabled {
            identity.enabled = !request.disabled;
            identity.status_updated = Some(now.wall);
        }
        identity.status_reason = request.status_reason;
        identity.revision += 1;
        identity.authentication = Authentication::of_request(request.authentication, keys);
        let link = device.link.filter(|_| request.disabled);
        self.unwritten(id).identity = true;
        if let Some(link) = link {
            self.cut(now, link, "the device was disabled");
        }
        self.device(id).map(|device| Answer::Document(device.identity_json()))
    }

    pub(super) fn delete_device(
        &mut self,
        now: Now,
        id: &DeviceId,
        if_match: Option<&str>,
    ) -> Result<Answer, HubError> {
        let device = self.device(id)?;
        if !etag_matches(&device.identity.etag(), if_match) {
            return Err(etag_mismatch());
        }
        if let Some(link) = device.link {
            self.cut(now, link, "the device was deleted");
        }
        self.end_calls_to(id, &not_found(id));
        self.drop_messages(id);
        let twin = self.devices.remove(id).map(|device| device.twin.whole_body(id)).unwrap_or_default();
        self.is_absent(id);
        // What is still to be written of it must not be taken for what is made anew under its name.
        self.unwritten.insert(id.clone(), Unwritten { deletion: true, ..Unwritten::default() });
        self.gated.push_back(Output::Event(HubEvent::deleted(id.clone(), now.wall, &twin)));
        Ok(Answer::Done)
    }

    /// A back end's change of tags or desired properties: told to the device if it listens, and to who follows events.
    pub(super) fn change_twin(
        &mut self,
        now: Now,
        id: &DeviceId,
        if_match: Option<&str>,
        patch: &TwinPatch,
        change: TwinChange,
    ) -> Result<Answer, HubError> {
        let device = self.devices.get_mut(id).ok_or_else(|| not_found(id))?;
        if !device.twin.matches(if_match) {
            return Err(etag_mismatch());
        }
        let version = device.twin.version;
        let notice = match change {
            TwinChange::Replaced => device.twin.replace(patch, now.wall)?,
            TwinChange::Updated | TwinChange::Reported => device.twin.patch(patch, now.wall)?,
        };
        if let (Some(notice), Some(link)) = (notice, device.listening(Subscription::Desired)) {
            let topic = ToDevice::Desired { version: notice.version }.format();
            let payload = notice.to_json().to_string().into();
            self.gated.push_back(Output::Link(link, LinkOutput::Publish { topic, payload }));
        }
        if device.twin.version != version {
            let body = match change {
                TwinChange::Replaced => device.twin.whole_body(id),
                TwinChange::Updated | TwinChange::Reported => device.twin.updated_body(patch),
            };
            self.gated.push_back(Output::Event(HubEvent::twin(id.clone(), now.wall, change, &body)));
        }
        let answer = Answer::Document(device.twin_json());
        self.unwritten(id).twin = true;
        Ok(answer)
    }
}

/// An identity that there was not before. `keys` are for where the request names none.
pub(crate) fn new_identity(
    now: DateTime<Utc>,
    id: &DeviceId,
    request: IdentityRequest,
    keys: [SharedKey; 2],
) -> Identity {
    let ticks = now.timestamp_nanos_opt().unwrap_or_default() / 100 + TICKS_BEFORE_1970;
    let generation_id = u64::try_from(ticks).unwrap_or_default();
    Identity {
        device_id: id.clone(),
        generation_id,
        // Not the same for each generation: an etag from before a deletion must not match the device made anew.
        revision: generation_id % FIRST_REVISIONS,
        enabled: !request.disabled,
        status_reason: request.status_reason,
        status_updated: None,
        authentication: Authentication::of_request(request.authentication, keys),
    }
}

pub(crate) fn already_exists(id: &DeviceId) -> HubError {
    HubError::new(ErrorCode::DeviceAlreadyExists, format!("A device with ID '{id}' is already registered."))
}

fn etag_mismatch() -> HubError {
    let text = "The etag in the request does not match the etag of the existing resource, as per RFC7232";
    HubError::new(ErrorCode::PreconditionFailed, text)
}
