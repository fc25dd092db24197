//! What the hub is asked, and what it answers.

use std::fmt;
use std::time::Duration;

use iothub_protocol::address::Address;
use iothub_protocol::configuration::ConfigurationMarks;
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::link::CloudMessage;
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::sas::SharedKey;
use iothub_protocol::twin::TwinPatch;
use serde_json::Value;

use super::Credentials;
use crate::import::NewIdentity;
use crate::queue::{Disposition, Queued};

/// What a back end asks, or a device over HTTPS.
#[derive(Debug)]
pub enum Operation {
    PutIdentity {
        id: Address,
        request: IdentityRequest,
        if_match: Option<String>,
        keys: [SharedKey; 2],
    },
    GetIdentity(Address),
    /// Make a device or a module with its twin.
    Import(Box<NewIdentity>),
    /// A device goes with its modules.
    DeleteIdentity {
        id: Address,
        if_match: Option<String>,
    },
    GetTwin(Address),
    PatchTwin {
        id: Address,
        patch: TwinPatch,
        if_match: Option<String>,
    },
    /// As [`Operation::PatchTwin`], for who changes very many: answered without the twin.
    MergeTwin {
        id: Address,
        patch: TwinPatch,
        if_match: Option<String>,
    },
    ReplaceTwin {
        id: Address,
        patch: TwinPatch,
        if_match: Option<String>,
    },
    /// What configurations make of a twin: desired properties to merge, and all that target it.
    Configure {
        id: Address,
        patch: TwinPatch,
        marks: ConfigurationMarks,
        if_match: Option<String>,
    },
    CallMethod {
        id: Address,
        method: DirectMethod,
    },
    /// Queue a cloud-to-device message; answered when it is stored, or with `wait` when it has ended.
    SendMessage {
        id: DeviceId,
        message: Box<CloudMessage>,
        wait: bool,
    },
    /// A device's queue, as an array.
    ListMessages(DeviceId),
    PurgeMessages(DeviceId),
    /// Whether a device or a module would be let in that shows this.
    Authenticate {
        id: Address,
        credentials: Credentials,
    },
    /// A device takes its next message, locked for so long under `token`.
    ReceiveMessage {
        id: DeviceId,
        credentials: Credentials,
        token: u128,
        lock: Duration,
    },
    /// A device deals with a message that it has taken.
    SettleMessage {
        id: DeviceId,
        credentials: Credentials,
        token: u128,
        disposition: Disposition,
    },
    /// All feedback that waits, as an array; it goes on waiting.
    ListFeedback,
    /// Take a batch of feedback, locked under `token`.
    ReceiveFeedback {
        token: u128,
    },
    /// Deal with a batch of feedback; rejecting it is completing it.
    SettleFeedback {
        token: u128,
        disposition: Disposition,
    },
}

impl Operation {
    /// Whom it concerns.
    pub(super) fn address(&self) -> Option<Address> {
        match self {
            Operation::GetIdentity(id)
            | Operation::GetTwin(id)
            | Operation::PutIdentity { id, .. }
            | Operation::DeleteIdentity { id, .. }
            | Operation::PatchTwin { id, .. }
            | Operation::MergeTwin { id, .. }
            | Operation::ReplaceTwin { id, .. }
            | Operation::Configure { id, .. }
            | Operation::CallMethod { id, .. }
            | Operation::Authenticate { id, .. } => Some(id.clone()),
            Operation::ListMessages(id)
            | Operation::PurgeMessages(id)
            | Operation::SendMessage { id, .. }
            | Operation::ReceiveMessage { id, .. }
            | Operation::SettleMessage { id, .. } => Some(id.into()),
            Operation::Import(new) => Some(new.identity.address.clone()),
            Operation::ListFeedback | Operation::ReceiveFeedback { .. } | Operation::SettleFeedback { .. } => None,
        }
    }
}

/// What whoever asked gets.
#[derive(Clone, PartialEq)]
pub enum Answer {
    Document(Value),
    Method(MethodResponse),
    /// A message that a device has taken.
    Message(Box<Queued>),
    Done,
}

impl fmt::Debug for Answer {
    /// The kind only: an identity's document holds its keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Answer::Document(_) => "Document",
            Answer::Method(_) => "Method",
            Answer::Message(_) => "Message",
            Answer::Done => "Done",
        })
    }
}
