//! The hub itself, without I/O: who may connect, what a twin becomes, which call waits for which answer.
//!
//! Every input is handled at once and completely; what must happen outside is an [`Output`]. An output that tells of a
//! change, or of state that a change made earlier, is *gated*: the driver lets it go only once everything stored
//! before it is durable, in order. So are events, which therefore stand in the order in which things happened. Method
//! calls change nothing that is stored and pass at once.

mod calls;
mod configure;
mod credentials;
mod links;
mod messages;
mod operation;
mod registry;
mod residency;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::feedback::FeedbackRecord;
use iothub_protocol::id::{DeviceId, ModelId, ModuleId};
use iothub_protocol::identity::Identity;
use iothub_protocol::topic::{FromDevice, Subscription};
use iothub_protocol::twin::{Twin, TwinFacts};
use serde_json::Value;

use crate::events::{HubEvent, TwinChange};
use crate::feedback::FeedbackQueue;
use crate::policy::Policy;
use crate::presence::{Presence, Seen};
use crate::queue::{Queue, Queued};
use calls::Calls;
use links::Link;
use messages::Waiters;
use residency::{Residence, Residency};

pub use credentials::Credentials;
pub(crate) use links::properties_size;
pub(crate) use messages::{held_size, numbered};
pub use operation::{Answer, Operation};
pub(crate) use registry::{MAX_MODULES, already_exists, new_identity, too_many_modules};

/// Both clocks at one moment: the wall's for what is written down, the steady one for waiting.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub wall: DateTime<Utc>,
    pub steady: Instant,
}

/// One MQTT connection; never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What reaches the hub. `R` is whatever the driver answers a request through.
#[derive(Debug)]
pub enum Input<R> {
    Link(LinkId, LinkInput),
    Request { reply: R, operation: Operation },
}

/// From the connection of a device or a module, after the session has read the packets.
#[derive(Debug)]
pub enum LinkInput {
    Connect(Box<ConnectRequest>),
    Subscribe {
        pkid: u16,
        filters: Vec<(Subscription, Granted)>,
    },
    Unsubscribe {
        pkid: u16,
        subscriptions: Vec<Subscription>,
    },
    Published {
        message: FromDevice,
        payload: Bytes,
        /// Of QoS 1: acknowledged once the hub has done what it asks.
        packet_id: Option<u16>,
    },
    /// PUBACK of a cloud-to-device message.
    Acknowledged {
        packet_id: u16,
    },
    /// The connection has ended; `graceful` if the device said so, which silences its will.
    Closed {
        graceful: bool,
    },
}

/// The quality of service that a subscription was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    AtMostOnce,
    AtLeastOnce,
}

/// Who wants to connect.
pub struct ConnectRequest {
    pub address: Address,
    pub credentials: Credentials,
    pub clean_session: bool,
    /// Sent as telemetry if the link drops without a DISCONNECT.
    pub will: Option<(FromDevice, Bytes)>,
    /// The model that the device says it implements; one that says nothing keeps that of before.
    pub model: Option<ModelId>,
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest").field("address", &self.address).finish_non_exhaustive()
    }
}

/// To a device's connection.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkOutput {
    Accepted {
        session_present: bool,
    },
    Refused,
    SubAck {
        pkid: u16,
        granted: Vec<Granted>,
    },
    UnsubAck {
        pkid: u16,
    },
    /// What the device has published with QoS 1 is done; `is_message` if it was telemetry.
    PubAck {
        packet_id: u16,
        is_message: bool,
    },
    /// QoS 0, as the hub sends twin and method messages.
    Publish {
        topic: String,
        payload: Bytes,
    },
    /// QoS 1: a cloud-to-device message, until it is acknowledged.
    Message {
        packet_id: u16,
        is_repeated: bool,
        topic: String,
        payload: Bytes,
    },
    Close {
        reason: &'static str,
    },
}

/// The registry in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Devices.
    pub total: usize,
    /// Disabled devices.
    pub disabled: usize,
    /// Modules of all devices.
    pub modules: usize,
    /// Connected devices.
    pub connected: usize,
}

/// What must happen outside.
#[derive(Debug)]
pub enum Output<R> {
    Link(LinkId, LinkOutput),
    Reply(R, Result<Answer, HubError>),
    Event(HubEvent),
    /// It is connected and has subscribed to methods.
    Listens(Address),
}

/// A row to write.
#[derive(Debug, Clone)]
pub enum Change {
    Identity(Identity),
    Twin(Address, Arc<Twin>),
    Subscriptions(Address, Subscriptions),
    /// When it was last heard of, and the number of the last message that was queued for it.
    Activity(Address, Option<DateTime<Utc>>, u64),
    Message(DeviceId, Box<Queued>),
    /// The message of this number has left its queue.
    MessageGone(DeviceId, u64),
    Feedback(u64, FeedbackRecord),
    FeedbackGone(u64),
    /// A device goes with its modules.
    Deleted(Address),
}

/// What a device or a module has subscribed to, and how it is sent that.
pub type Subscriptions = BTreeMap<Subscription, Granted>;

/// A device or a module as the hub keeps it.
#[derive(Debug)]
pub struct Entity {
    pub identity: Identity,
    /// Shared with the writer until it is written.
    pub twin: Arc<Twin>,
    /// Outlives the connection, and the hub, unless the session is a clean one.
    pub subscriptions: Subscriptions,
    /// Cloud-to-device messages. Outlive everything but the device; a module has none.
    pub queue: Queue,
    /// The names of a device's modules; they are in memory or not for themselves.
    modules: BTreeSet<ModuleId>,
    /// The client asked for a clean session: its subscriptions end with the connection and are not stored.
    is_clean: bool,
    link: Option<LinkId>,
    last_activity: Option<DateTime<Utc>>,
    residence: Residence,
}

impl Entity {
    pub fn new(identity: Identity, twin: Twin, subscriptions: Subscriptions, queue: Queue) -> Entity {
        Entity {
            identity,
            twin: Arc::new(twin),
            subscriptions,
            queue,
            modules: BTreeSet::new(),
            is_clean: false,
            link: None,
            last_activity: None,
            residence: Residence::default(),
        }
    }

    /// A device with the names of its modules.
    pub fn with_modules(self, modules: BTreeSet<ModuleId>) -> Entity {
        Entity { modules, ..self }
    }

    /// With the time at which it was last heard of.
    pub fn last_seen(mut self, last_activity: Option<DateTime<Utc>>) -> Entity {
        self.last_activity = last_activity;
        self
    }

    fn facts(&self) -> TwinFacts {
        facts(&self.identity, self.link.is_some(), self.last_activity, self.queue.len())
    }

    fn twin_json(&self) -> Value {
        self.twin.to_json(&self.facts())
    }

    fn identity_json(&self) -> Value {
        self.identity.to_json(self.link.is_some(), self.last_activity, self.queue.len())
    }

    /// The link, if the client would hear a message of this kind.
    fn listening(&self, subscription: Subscription) -> Option<LinkId> {
        self.link.filter(|_| self.subscriptions.contains_key(&subscription))
    }
}

/// What is shown of a device or a module together with its twin.
pub(crate) fn facts(
    identity: &Identity,
    connected: bool,
    last_activity: Option<DateTime<Utc>>,
    message_count: usize,
) -> TwinFacts {
    TwinFacts {
        address: identity.address.clone(),
        device_etag: identity.etag(),
        enabled: identity.enabled,
        status_reason: identity.status_reason.clone(),
        status_updated: identity.status_updated,
        connected,
        last_activity,
        message_count,
        authentication_type: identity.authentication.kind(),
        thumbprints: identity.authentication.thumbprints_json(),
    }
}

/// What of a device or a module is to be written. The state itself is taken when it is, so that many changes make one row.
#[derive(Default)]
struct Unwritten {
    /// Before whatever else there is: it may have been made anew.
    deletion: bool,
    identity: bool,
    twin: bool,
    subscriptions: bool,
    activity: bool,
    /// The numbers of messages that came, changed or went.
    messages: BTreeSet<u64>,
}

/// The machine.
pub struct Hub<R> {
    policies: Vec<Policy>,
    /// Those in memory. The driver has them put here before an input reaches the hub that concerns them.
    entities: HashMap<Address, Entity>,
    residency: Residency,
    presence: Presence,
    links: HashMap<LinkId, Link>,
    /// When the tokens and certificates of connected links expire, soonest first.
    expiries: BTreeSet<(DateTime<Utc>, LinkId)>,
    calls: Calls<R>,
    waiters: Waiters<R>,
    /// What all queues hold, in bytes.
    queued_bytes: usize,
    schedule: messages::Schedule,
    feedback: FeedbackQueue,
    unwritten: BTreeMap<Address, Unwritten>,
    /// The numbers of feedback records that came or went.
    unwritten_feedback: BTreeSet<u64>,
    immediate: VecDeque<Output<R>>,
    gated: VecDeque<Output<R>>,
}

/// What handling one or more inputs led to.
pub struct Outcome<R> {
    /// To be written in one transaction.
    pub changes: Vec<Change>,
    /// May go at once.
    pub immediate: VecDeque<Output<R>>,
    /// May go once `changes`, and all changes before, are durable.
    pub gated: VecDeque<Output<R>>,
    /// The number of `changes`, or of the last ones before.
    pub batch: u64,
}

impl<R> Hub<R> {
    /// A hub that has these in memory to begin with.
    pub fn new(policies: Vec<Policy>, entities: Vec<Entity>, feedback: FeedbackQueue) -> Hub<R> {
        let entities = entities.into_iter().map(|entity| (entity.identity.address.clone(), entity)).collect();
        let mut hub = Hub {
            policies,
            entities,
            residency: Residency::default(),
            presence: Presence::default(),
            links: HashMap::new(),
            expiries: BTreeSet::new(),
            calls: Calls::default(),
            waiters: Waiters::default(),
            queued_bytes: 0,
            schedule: messages::Schedule::default(),
            feedback,
            unwritten: BTreeMap::new(),
            unwritten_feedback: BTreeSet::new(),
            immediate: VecDeque::new(),
            gated: VecDeque::new(),
        };
        hub.take_up_queues();
        hub
    }

    /// What the input concerns, if anything, the hub [knows](Hub::lacks).
    pub fn handle(&mut self, now: Now, input: Input<R>) {
        let address = input.address();
        match input {
            Input::Link(link, input) => self.handle_link(now, link, input),
            Input::Request { reply, operation } => self.handle_request(now, reply, operation),
        }
        if let Some(address) = address {
            self.used(&address);
        }
    }

    /// Cut links whose token or certificate has expired, end calls whose time is up, and see to queues.
    pub fn handle_deadline(&mut self, now: Now) {
        while let Some((expiry, link)) = self.expiries.first().copied().filter(|(expiry, _)| *expiry <= now.wall) {
            self.expiries.remove(&(expiry, link));
            self.cut(now, link, "the token or the certificate has expired: renew it and reconnect");
        }
        self.end_overdue_calls(now);
        self.attend_due_queues(now);
        self.expire_feedback(now);
    }

    /// When [`Hub::handle_deadline`] is next due.
    pub fn deadline(&self, now: Now) -> Option<Instant> {
        let expiry = self.expiries.first().map(|(expiry, _)| *expiry);
        let by_wall = [expiry, self.schedule.next_by_wall(), self.feedback.next_expiry()].into_iter().flatten().min();
        let by_wall = by_wall.map(|due| now.steady + (due - now.wall).to_std().unwrap_or_default());
        [by_wall, self.schedule.next_by_steady(), self.calls.deadline()].into_iter().flatten().min()
    }

    /// What the inputs handled since the last call led to.
    pub fn take_outcome(&mut self) -> Outcome<R> {
        Outcome {
            changes: self.take_changes(),
            batch: self.residency.batch(),
            immediate: std::mem::take(&mut self.immediate),
            gated: std::mem::take(&mut self.gated),
        }
    }

    fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let batch = self.residency.next_batch(!self.unwritten.is_empty() || !self.unwritten_feedback.is_empty());
        for (id, unwritten) in std::mem::take(&mut self.unwritten) {
            self.changed_in(&id, batch);
            if unwritten.deletion {
                changes.push(Change::Deleted(id.clone()));
            }
            let Some(entity) = self.entities.get(&id) else { continue };
            if unwritten.identity {
                changes.push(Change::Identity(entity.identity.clone()));
            }
            if unwritten.twin {
                changes.push(Change::Twin(id.clone(), Arc::clone(&entity.twin)));
            }
            if unwritten.subscriptions {
                let kept = if entity.is_clean { Subscriptions::new() } else { entity.subscriptions.clone() };
                changes.push(Change::Subscriptions(id.clone(), kept));
            }
            if unwritten.activity {
                changes.push(Change::Activity(id.clone(), entity.last_activity, entity.queue.last_sequence()));
            }
            changes.extend(unwritten.messages.into_iter().map(|sequence| match entity.queue.get(sequence) {
                Some(queued) => Change::Message(id.device().clone(), Box::new(queued.clone())),
                None => Change::MessageGone(id.device().clone(), sequence),
            }));
        }
        let feedback = std::mem::take(&mut self.unwritten_feedback);
        changes.extend(feedback.into_iter().map(|sequence| match self.feedback.get(sequence) {
            Some(record) => Change::Feedback(sequence, record.clone()),
            None => Change::FeedbackGone(sequence),
        }));
        changes
    }

    /// Note what of a device or a module is to be written.
    fn unwritten(&mut self, id: &Address) -> &mut Unwritten {
        self.unwritten.entry(id.clone()).or_default()
    }

    fn handle_request(&mut self, now: Now, reply: R, operation: Operation) {
        // A module is looked for in its device, so that there is one from here on.
        if let Some(address) = operation.address().filter(|address| address.is_module())
            && let Err(error) = self.entity(&address.device().into())
        {
            return self.gated.push_back(Output::Reply(reply, Err(error)));
        }
        let answer = match operation {
            Operation::CallMethod { id, method } => return self.call_method(now, reply, &id, method),
            Operation::SendMessage { id, message, wait } => {
                return self.send_message(now, reply, &id.into(), *message, wait);
            }
            Operation::PutIdentity { id, request, if_match, keys } => {
                self.put_identity(now, &id, request, if_match.as_deref(), keys)
            }
            Operation::GetIdentity(id) => self.entity(&id).map(|entity| Answer::Document(entity.identity_json())),
            Operation::Import(new) => self.import(now, *new),
            Operation::DeleteIdentity { id, if_match } => self.delete_identity(now, &id, if_match.as_deref()),
            Operation::GetTwin(id) => self.twin(&id),
            Operation::PatchTwin { id, patch, if_match } => {
                let changed = self.change_twin(now, &id, if_match.as_deref(), &patch, TwinChange::Updated);
                changed.and_then(|()| self.twin(&id))
            }
            Operation::MergeTwin { id, patch, if_match } => {
                let changed = self.change_twin(now, &id, if_match.as_deref(), &patch, TwinChange::Updated);
                changed.map(|()| Answer::Done)
            }
            Operation::ReplaceTwin { id, patch, if_match } => {
                let changed = self.change_twin(now, &id, if_match.as_deref(), &patch, TwinChange::Replaced);
                changed.and_then(|()| self.twin(&id))
            }
            Operation::Configure { id, patch, marks, if_match } => {
                self.configure(now, &id, &patch, marks, if_match.as_deref())
            }
            Operation::ListMessages(id) => self.entity(&id.into()).map(messages::list),
            Operation::PurgeMessages(id) => self.purge_messages(now, &id.into()),
            Operation::Authenticate { id, credentials } => {
                self.authenticate(now, &id, &credentials).map(|_| Answer::Done).map_err(|denial| denial.answer())
            }
            Operation::ReceiveMessage { id, credentials, token, lock } => {
                self.receive_message(now, &id.into(), &credentials, token, lock)
            }
            Operation::SettleMessage { id, credentials, token, disposition } => {
                self.settle_message(now, &id.into(), &credentials, token, disposition)
            }
            Operation::ListFeedback => Ok(self.list_feedback()),
            Operation::ReceiveFeedback { token } => Ok(self.receive_feedback(now, token)),
            Operation::SettleFeedback { token, disposition } => self.settle_feedback(now, token, disposition),
        };
        self.gated.push_back(Output::Reply(reply, answer));
    }

    fn twin(&self, id: &Address) -> Result<Answer, HubError> {
        self.entity(id).map(|entity| Answer::Document(entity.twin_json()))
    }

    fn entity(&self, id: &Address) -> Result<&Entity, HubError> {
        self.entities.get(id).ok_or_else(|| not_found(id))
    }
}

pub(crate) fn not_found(id: &Address) -> HubError {
    let device = id.device().as_str();
    match id.module() {
        None => HubError::new(ErrorCode::DeviceNotFound, format!("the hub has no device {device:?}")),
        Some(module) => {
            let text = format!("the device {device:?} has no module {:?}", module.as_str());
            HubError::new(ErrorCode::ModuleNotFound, text)
        }
    }
}
