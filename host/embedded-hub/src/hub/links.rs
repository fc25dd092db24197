//! Devices and modules connect, subscribe, publish and go.

use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::RequestId;
use iothub_protocol::topic::{FromDevice, Subscription, ToDevice, decode_bag};
use serde_json::{Map, Value};

use super::{ConnectRequest, Granted, Hub, LinkId, LinkInput, LinkOutput, Now, Output, Subscriptions};
use crate::events::{AuthMethod, HubEvent, Sender, TwinChange};

/// Most bytes of a message: its body, the values of system properties, names and values of the others.
const MAX_MESSAGE: usize = 256 * 1024;

/// A connected device or module.
pub(super) struct Link {
    address: Address,
    expiry: DateTime<chrono::Utc>,
    will: Option<(FromDevice, Bytes)>,
    auth: AuthMethod,
}

impl<R> Hub<R> {
    pub(super) fn handle_link(&mut self, now: Now, link: LinkId, input: LinkInput) {
        if let LinkInput::Connect(request) = input {
            return self.connect(now, link, *request);
        }
        // A link that was cut may still have said something; it is no longer anybody's.
        let Some(address) = self.links.get(&link).map(|link| link.address.clone()) else { return };
        self.heard(now, &address);
        match input {
            LinkInput::Connect(_) => {}
            LinkInput::Subscribe { pkid, filters } => self.subscribe(now, link, &address, pkid, &filters),
            LinkInput::Unsubscribe { pkid, subscriptions } => self.unsubscribe(link, &address, pkid, &subscriptions),
            LinkInput::Published { message, payload, packet_id } => {
                let is_message = matches!(message, FromDevice::Telemetry { .. });
                self.published(now, link, &address, message, &payload);
                if let Some(packet_id) = packet_id.filter(|_| self.links.contains_key(&link)) {
                    // Behind what came of it, and like that only once all of it is durable.
                    self.gated.push_back(Output::Link(link, LinkOutput::PubAck { packet_id, is_message }));
                }
            }
            LinkInput::Acknowledged { packet_id } => self.message_acknowledged(now, link, &address, packet_id),
            LinkInput::Closed { graceful } => self.closed(now, link, graceful),
        }
    }

    fn connect(&mut self, now: Now, link: LinkId, request: ConnectRequest) {
        let (expiry, auth) = match self.authenticate(now, &request.address, &request.credentials) {
            Ok(proof) => proof,
            Err(reason) => {
                tracing::info!(device = %request.address, %reason, "connection refused");
                return self.immediate.push_back(Output::Link(link, LinkOutput::Refused));
            }
        };
        let Some(entity) = self.entities.get(&request.address) else { return };
        // The newer connection wins. The device is never shown as disconnected in between.
        if let Some(older) = entity.link {
            if let Some(ended) = self.forget(older) {
                self.send_will(now, &request.address, ended.auth, ended.will);
            }
            self.end_calls_to(&request.address, &taken_over());
            self.release_messages(now, &request.address, older);
            let reason = "the device connected again elsewhere";
            self.immediate.push_back(Output::Link(older, LinkOutput::Close { reason }));
        } else {
            self.gated.push_back(Output::Event(HubEvent::connected(request.address.clone(), now.wall)));
        }
        let Some(entity) = self.entities.get_mut(&request.address) else { return };
        entity.link = Some(link);
        entity.is_clean = request.clean_session;
        let had_subscriptions = !entity.subscriptions.is_empty();
        let has_new_model = request.model.is_some() && entity.twin.model_id != request.model;
        if has_new_model {
            Arc::make_mut(&mut entity.twin).model_id = request.model;
        }
        if request.clean_session {
            entity.subscriptions.clear();
        }
        if has_new_model {
            self.unwritten(&request.address).twin = true;
        }
        if request.clean_session && had_subscriptions {
            self.unwritten(&request.address).subscriptions = true;
        }
        self.heard(now, &request.address);
        let session_present = !request.clean_session && had_subscriptions;
        self.expiries.insert((expiry, link));
        self.links.insert(link, Link { address: request.address.clone(), expiry, will: request.will, auth });
        self.immediate.push_back(Output::Link(link, LinkOutput::Accepted { session_present }));
        // Calls and messages that waited for the device can go if its subscriptions were kept.
        self.release_waiting_calls(now, &request.address);
        self.attend_queue(now, &request.address);
    }

    fn subscribe(&mut self, now: Now, link: LinkId, id: &Address, pkid: u16, filters: &[(Subscription, Granted)]) {
        self.change_subscriptions(id, |kept| kept.extend(filters.iter().copied()));
        let granted = filters.iter().map(|(_, granted)| *granted).collect();
        self.gated.push_back(Output::Link(link, LinkOutput::SubAck { pkid, granted }));
        self.release_waiting_calls(now, id);
        self.attend_queue(now, id);
    }

    fn unsubscribe(&mut self, link: LinkId, id: &Address, pkid: u16, subscriptions: &[Subscription]) {
        self.change_subscriptions(id, |kept| kept.retain(|subscription, _| !subscriptions.contains(subscription)));
        self.gated.push_back(Output::Link(link, LinkOutput::UnsubAck { pkid }));
    }

    fn change_subscriptions(&mut self, id: &Address, change: impl FnOnce(&mut Subscriptions)) {
        let Some(entity) = self.entities.get_mut(id) else { return };
        let before = entity.subscriptions.clone();
        change(&mut entity.subscriptions);
        if entity.subscriptions != before && !entity.is_clean {
            self.unwritten(id).subscriptions = true;
        }
        self.show(id);
    }

    fn published(&mut self, now: Now, link: LinkId, id: &Address, message: FromDevice, payload: &Bytes) {
        match message {
            FromDevice::Telemetry { bag } => {
                let auth = self.links.get(&link).map_or(AuthMethod::OwnKey, |link| link.auth);
                if let Err(reason) = self.telemetry(now, id, auth, &bag, payload, None) {
                    self.cut(now, link, reason);
                }
            }
            FromDevice::MethodResponse { status, rid } => self.method_answered(id, &rid, status, payload),
            FromDevice::TwinGet { rid } => {
                let Some(entity) = self.entities.get(id) else { return };
                let body = entity.twin.device_json().to_string().into();
                self.twin_response(link, 200, rid, None, body);
            }
            FromDevice::ReportedPatch { rid, version } => self.reported(now, link, id, rid, version, payload),
        }
    }

    /// Take a message; `kind` is for one that the hub sends in the device's name. `Err` says why it is none.
    fn telemetry(
        &mut self,
        now: Now,
        id: &Address,
        auth: AuthMethod,
        bag: &str,
        body: &[u8],
        kind: Option<&str>,
    ) -> Result<(), &'static str> {
        let mut properties = decode_bag(bag).ok_or("the property bag of a message is not UTF-8")?;
        if body.len() + properties_size(&properties) > MAX_MESSAGE {
            return Err("a message with its properties is larger than 256 KiB");
        }
        properties.extend(kind.map(|kind| ("iothub-MessageType".to_owned(), kind.to_owned())));
        let generation_id = self.entities.get(id).map_or(0, |entity| entity.identity.generation_id);
        let sender = Sender { generation_id, auth };
        self.gated.push_back(Output::Event(HubEvent::telemetry(id.clone(), now.wall, properties, body, sender)));
        Ok(())
    }

    fn send_will(&mut self, now: Now, id: &Address, auth: AuthMethod, will: Option<(FromDevice, Bytes)>) {
        if let Some((FromDevice::Telemetry { bag }, body)) = will
            && let Err(reason) = self.telemetry(now, id, auth, &bag, &body, Some("Will"))
        {
            tracing::info!(device = %id, reason, "the will was dropped");
        }
    }

    fn reported(
        &mut self,
        now: Now,
        link: LinkId,
        id: &Address,
        rid: RequestId,
        expected: Option<u64>,
        payload: &[u8],
    ) {
        let Some(entity) = self.entities.get_mut(id) else { return };
        let patch = match serde_json::from_slice::<Value>(payload) {
            Ok(Value::Object(patch)) => Ok(patch),
            Ok(_) => Err(HubError::new(ErrorCode::ArgumentInvalid, "the reported patch is not a JSON object")),
            Err(e) => Err(HubError::new(ErrorCode::ArgumentInvalid, format!("the reported patch is not JSON: {e}"))),
        };
        let result: Result<(u64, Value), HubError> = patch.and_then(|patch: Map<String, Value>| {
            let version = Arc::make_mut(&mut entity.twin).report(&patch, expected, now.wall)?;
            Ok((version, entity.twin.reported_body(&patch)))
        });
        match result {
            Ok((version, body)) => {
                self.unwritten(id).twin = true;
                self.twin_response(link, 204, rid, Some(version), Bytes::new());
                let event = HubEvent::twin(id.clone(), now.wall, TwinChange::Reported, &body);
                self.gated.push_back(Output::Event(event));
            }
            Err(error) => {
                let tracking = format!("{:016x}", link.0);
                let body = error.twin_body(&tracking, now.wall).to_string().into();
                self.twin_response(link, error.code.http_status(), rid, None, body);
            }
        }
    }

    /// Sent whether or not the device has subscribed: a client that reconnects may ask before it does.
    fn twin_response(&mut self, link: LinkId, status: u16, rid: RequestId, version: Option<u64>, payload: Bytes) {
        let topic = ToDevice::TwinResponse { status, rid, version }.format();
        self.gated.push_back(Output::Link(link, LinkOutput::Publish { topic, payload }));
    }

    /// End a link from our side.
    pub(super) fn cut(&mut self, now: Now, link: LinkId, reason: &'static str) {
        self.closed(now, link, false);
        self.immediate.push_back(Output::Link(link, LinkOutput::Close { reason }));
    }

    fn closed(&mut self, now: Now, link: LinkId, graceful: bool) {
        let Some(ended) = self.forget(link) else { return };
        let id = ended.address;
        self.send_will(now, &id, ended.auth, ended.will.filter(|_| !graceful));
        self.end_calls_to(&id, &connection_closed());
        self.release_messages(now, &id, link);
        self.gated.push_back(Output::Event(HubEvent::disconnected(id, now.wall)));
    }

    fn forget(&mut self, link: LinkId) -> Option<Link> {
        let ended = self.links.remove(&link)?;
        self.expiries.remove(&(ended.expiry, link));
        if let Some(entity) = self.entities.get_mut(&ended.address)
            && entity.link == Some(link)
        {
            entity.link = None;
            if std::mem::take(&mut entity.is_clean) {
                entity.subscriptions.clear();
            }
            self.show(&ended.address);
            self.used(&ended.address);
        }
        Some(ended)
    }
}

/// What a message's properties count: of the system's own, whose names begin with `$.`, the values only.
pub(crate) fn properties_size(properties: &[(String, String)]) -> usize {
    let name_size = |name: &str| if name.starts_with("$.") { 0 } else { name.len() };
    properties.iter().map(|(name, value)| name_size(name) + value.len()).sum()
}

fn taken_over() -> HubError {
    let text = "The connection was closed because the device connected again elsewhere.";
    HubError::new(ErrorCode::ConnectionForcefullyClosedOnNewConnection, text)
}

fn connection_closed() -> HubError {
    HubError::new(ErrorCode::DeviceConnectionClosedRemotely, "The device's connection was closed during the call.")
}
