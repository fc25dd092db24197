//! Why a call of a plugin did not return.

use std::sync::Arc;
use std::time::Instant;

use plugin_runtime::{CallFailure, PluginName};

/// The cases that a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    Trap,
    Timeout,
    Memory,
    /// No instance could be made.
    Start,
    /// It does not want to take over.
    Activation,
}

impl FailureKind {
    /// For whoever called the method.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            FailureKind::Trap => "the plugin trapped",
            FailureKind::Timeout => "the plugin ran past its time limit",
            FailureKind::Memory => "the plugin ran out of its memory limit",
            FailureKind::Start => "the plugin could not be started",
            FailureKind::Activation => "the plugin could not be activated",
        }
    }
}

/// A failed call: the kind for its caller, the detail for the log and the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub detail: String,
}

impl From<CallFailure> for Failure {
    fn from(failure: CallFailure) -> Failure {
        let kind = match failure {
            CallFailure::Trap { .. } => FailureKind::Trap,
            CallFailure::Timeout { .. } => FailureKind::Timeout,
            CallFailure::Memory { .. } => FailureKind::Memory,
            CallFailure::Instantiate { .. } | CallFailure::Missing { .. } | CallFailure::Ended => FailureKind::Start,
        };
        Failure { kind, detail: failure.to_string() }
    }
}

/// The last failed call of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFailure {
    pub at: Instant,
    pub plugin: PluginName,
    pub version: Arc<str>,
    pub failure: Failure,
}
