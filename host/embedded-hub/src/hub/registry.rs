//! Devices and modules come, change and go; back ends change twins.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::authentication::Authentication;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::identity::{Identity, IdentityRequest};
use iothub_protocol::sas::SharedKey;
use iothub_protocol::topic::{Subscription, ToDevice};
use iothub_protocol::twin::{Twin, TwinPatch, etag_matches};

use super::{Answer, Entity, Hub, LinkId, LinkOutput, Now, Output, Subscriptions, Unwritten, not_found};
use crate::events::{HubEvent, TwinChange};
use crate::import::NewIdentity;
use crate::queue::Queue;

/// Ticks of 100 ns between year 1 and 1970: generation ids look like .NET ticks, 18 digits.
const TICKS_BEFORE_1970: i64 = 621_355_968_000_000_000;
/// A new identity's revision is below this: etags of ten digits at most, as Azure's are.
const FIRST_REVISIONS: u64 = 1_000_000_000;
/// Modules of a device; Azure's number.
pub(crate) const MAX_MODULES: usize = 50;

impl<R> Hub<R> {
    /// Create without `if_match`, update with it. `keys` are fresh, for where the request names none.
    pub(super) fn put_identity(
        &mut self,
        now: Now,
        id: &Address,
        request: IdentityRequest,
        if_match: Option<&str>,
        keys: [SharedKey; 2],
    ) -> Result<Answer, HubError> {
        match (self.entities.get(id), if_match) {
            (Some(_), None) => Err(already_exists(id)),
            (None, Some(_)) => Err(not_found(id)),
            (None, None) => self.create(now, id, request, keys),
            (Some(entity), Some(_)) if !etag_matches(&entity.identity.etag(), if_match) => Err(etag_mismatch()),
            (Some(_), Some(_)) => self.update(now, id, request, keys),
        }
    }

    fn create(
        &mut self,
        now: Now,
        id: &Address,
        request: IdentityRequest,
        keys: [SharedKey; 2],
    ) -> Result<Answer, HubError> {
        let identity = new_identity(now.wall, id, request, keys);
        let answer = Answer::Document(identity.to_json(false, None, 0));
        self.insert(now, identity, Twin::new(now.wall))?;
        Ok(answer)
    }

    /// Take in what was imported.
    pub(super) fn import(&mut self, now: Now, new: NewIdentity) -> Result<Answer, HubError> {
        if self.entities.contains_key(&new.identity.address) {
            return Err(already_exists(&new.identity.address));
        }
        self.insert(now, new.identity, new.twin)?;
        Ok(Answer::Done)
    }

    fn insert(&mut self, now: Now, identity: Identity, twin: Twin) -> Result<(), HubError> {
        let id = &identity.address.clone();
        if let Some(module) = id.module() {
            let device = self.device_of(id)?;
            if device.modules.len() >= MAX_MODULES {
                return Err(too_many_modules(id));
            }
            device.modules.insert(module.clone());
        }
        let unwritten = self.unwritten(id);
        unwritten.identity = true;
        unwritten.twin = true;
        let entity = Entity::new(identity, twin, Subscriptions::new(), Queue::default());
        let event = HubEvent::created(id.clone(), now.wall, &entity.twin.whole_body(id));
        self.entities.insert(id.clone(), entity);
        self.residency.is_there(id);
        self.gated.push_back(Output::Event(event));
        Ok(())
    }

    fn update(
        &mut self,
        now: Now,
        id: &Address,
        request: IdentityRequest,
        keys: [SharedKey; 2],
    ) -> Result<Answer, HubError> {
        let entity = self.entities.get_mut(id).ok_or_else(|| not_found(id))?;
        let identity = &mut entity.identity;
        if identity.enabled == request.disabled {
            identity.enabled = !request.disabled;
            identity.status_updated = Some(now.wall);
        }
        identity.status_reason = request.status_reason;
        identity.managed_by = request.managed_by;
        identity.revision += 1;
        identity.authentication = Authentication::of_request(request.authentication, keys);
        self.unwritten(id).identity = true;
        if request.disabled {
            for link in self.links_of(id) {
                self.cut(now, link, "the device was disabled");
            }
        }
        self.entity(id).map(|entity| Answer::Document(entity.identity_json()))
    }

    /// The connections that end with the device: its own and its modules'.
    fn links_of(&self, id: &Address) -> Vec<LinkId> {
        let entities = self.modules_of(id).into_iter().chain([id.clone()]);
        entities.filter_map(|address| self.entities.get(&address)?.link).collect()
    }

    /// The modules of a device, whether or not they are in memory.
    fn modules_of(&self, id: &Address) -> Vec<Address> {
        let modules = self.entities.get(id).map(|device| device.modules.iter().cloned()).into_iter().flatten();
        modules.map(|module| Address::of_module(id.device().clone(), module)).collect()
    }

    /// The device that a module is of.
    fn device_of(&mut self, module: &Address) -> Result<&mut Entity, HubError> {
        let device = module.device().into();
        self.entities.get_mut(&device).ok_or_else(|| not_found(&device))
    }

    pub(super) fn delete_identity(
        &mut self,
        now: Now,
        id: &Address,
        if_match: Option<&str>,
    ) -> Result<Answer, HubError> {
        if !etag_matches(&self.entity(id)?.identity.etag(), if_match) {
            return Err(etag_mismatch());
        }
        for module in self.modules_of(id) {
            self.remove(now, &module, "the device was deleted");
            // It goes with its device, and so does what was still to be written of it.
            self.unwritten.remove(&module);
        }
        let reason = if id.is_module() { "the module was deleted" } else { "the device was deleted" };
        let twin = self.remove(now, id, reason).map(|entity| entity.twin.whole_body(id)).unwrap_or_default();
        if let Some(module) = id.module() {
            self.device_of(id)?.modules.remove(module);
        } else {
            self.is_absent(id);
        }
        // What is still to be written of it must not be taken for what is made anew under its name.
        self.unwritten.insert(id.clone(), Unwritten { deletion: true, ..Unwritten::default() });
        self.gated.push_back(Output::Event(HubEvent::deleted(id.clone(), now.wall, &twin)));
        Ok(Answer::Done)
    }

    /// End all that goes on with it.
    fn remove(&mut self, now: Now, id: &Address, reason: &'static str) -> Option<Entity> {
        if let Some(link) = self.entities.get(id).and_then(|entity| entity.link) {
            self.cut(now, link, reason);
        }
        self.end_calls_to(id, &not_found(id));
        if !id.is_module() {
            self.drop_messages(id);
        }
        self.presence.forget(id);
        self.entities.remove(id)
    }

    /// A back end's change of tags or desired properties: told to the client if it listens, and to who follows events.
    pub(super) fn change_twin(
        &mut self,
        now: Now,
        id: &Address,
        if_match: Option<&str>,
        patch: &TwinPatch,
        change: TwinChange,
    ) -> Result<(), HubError> {
        let entity = self.entities.get_mut(id).ok_or_else(|| not_found(id))?;
        if !entity.twin.matches(if_match) {
            return Err(etag_mismatch());
        }
        let version = entity.twin.version;
        let notice = match change {
            TwinChange::Replaced => Arc::make_mut(&mut entity.twin).replace(patch, now.wall)?,
            TwinChange::Updated | TwinChange::Reported => Arc::make_mut(&mut entity.twin).patch(patch, now.wall)?,
        };
        if let (Some(notice), Some(link)) = (notice, entity.listening(Subscription::Desired)) {
            let topic = ToDevice::Desired { version: notice.version }.format();
            let payload = notice.to_json().to_string().into();
            self.gated.push_back(Output::Link(link, LinkOutput::Publish { topic, payload }));
        }
        if entity.twin.version != version {
            let body = match change {
                TwinChange::Replaced => entity.twin.whole_body(id),
                TwinChange::Updated | TwinChange::Reported => entity.twin.updated_body(patch),
            };
            self.gated.push_back(Output::Event(HubEvent::twin(id.clone(), now.wall, change, &body)));
        }
        self.unwritten(id).twin = true;
        Ok(())
    }
}

/// An identity that there was not before. `keys` are for where the request names none.
pub(crate) fn new_identity(
    now: DateTime<Utc>,
    id: &Address,
    request: IdentityRequest,
    keys: [SharedKey; 2],
) -> Identity {
    let ticks = now.timestamp_nanos_opt().unwrap_or_default() / 100 + TICKS_BEFORE_1970;
    let generation_id = u64::try_from(ticks).unwrap_or_default();
    Identity {
        address: id.clone(),
        generation_id,
        // Not the same for each generation: an etag from before a deletion must not match the device made anew.
        revision: generation_id % FIRST_REVISIONS,
        enabled: !request.disabled,
        status_reason: request.status_reason,
        status_updated: None,
        managed_by: request.managed_by,
        authentication: Authentication::of_request(request.authentication, keys),
    }
}

pub(crate) fn already_exists(id: &Address) -> HubError {
    let device = id.device();
    match id.module() {
        None => {
            let text = format!("A device with ID '{device}' is already registered.");
            HubError::new(ErrorCode::DeviceAlreadyExists, text)
        }
        Some(module) => {
            let text = format!("Device {device} already contains Module {module}.");
            HubError::new(ErrorCode::ModuleAlreadyExistsOnDevice, text)
        }
    }
}

pub(crate) fn too_many_modules(id: &Address) -> HubError {
    let text = format!("device {} has {MAX_MODULES} modules, which is all it may have: delete one first", id.device());
    HubError::new(ErrorCode::TooManyModulesOnDevice, text)
}

fn etag_mismatch() -> HubError {
    let text = "The etag in the request does not match the etag of the existing resource, as per RFC7232";
    HubError::new(ErrorCode::PreconditionFailed, text)
}
