//! What went wrong on a device, by name: a policy's rules tell failures apart by their class.

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::job::DeviceJobOutcome;

/// The kind of a failure; the names are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureClass {
    /// The device was not connected, or went away before it answered.
    Offline,
    /// It did not answer in time.
    Timeout,
    /// The hub, or the device, has more to do than it takes.
    Throttled,
    /// The device does not exist, or is disabled.
    Missing,
    /// What the job asks for is not possible on this device: its twin would grow too large, say.
    Refused,
    /// The hub failed, or the device answered with what is no answer.
    Fault,
    /// The device answered with a status that does not count as success, or its twin is not as a step wants it.
    Answer,
    /// It is not known whether the device was reached.
    Unknown,
    /// The device reports that the plugin version fails on it, or did not report in time that it runs it.
    Version,
    /// Its maintenance window was not open for its turn, or it has no time zone that says when it is.
    Window,
}

impl FailureClass {
    pub const ALL: [FailureClass; 10] = [
        FailureClass::Offline,
        FailureClass::Timeout,
        FailureClass::Throttled,
        FailureClass::Missing,
        FailureClass::Refused,
        FailureClass::Fault,
        FailureClass::Answer,
        FailureClass::Unknown,
        FailureClass::Version,
        FailureClass::Window,
    ];

    /// The wire's name.
    pub fn name(self) -> &'static str {
        match self {
            FailureClass::Offline => "offline",
            FailureClass::Timeout => "timeout",
            FailureClass::Throttled => "throttled",
            FailureClass::Missing => "missing",
            FailureClass::Refused => "refused",
            FailureClass::Fault => "fault",
            FailureClass::Answer => "answer",
            FailureClass::Unknown => "unknown",
            FailureClass::Version => "version",
            FailureClass::Window => "window",
        }
    }

    pub fn by_name(name: &str) -> Option<FailureClass> {
        FailureClass::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Of a request that the hub answered with this code.
    pub fn of_error(code: ErrorCode) -> FailureClass {
        match code {
            ErrorCode::DeviceNotOnline | ErrorCode::DeviceConnectionClosedRemotely => FailureClass::Offline,
            ErrorCode::GatewayTimeout => FailureClass::Timeout,
            ErrorCode::IotHubQuotaExceeded
            | ErrorCode::DeviceMaximumInflightMethodExceeded
            | ErrorCode::DeviceMaximumQueueDepthExceeded
            | ErrorCode::ThrottlingException
            | ErrorCode::ThrottlingMaxActiveJobCountExceeded => FailureClass::Throttled,
            ErrorCode::DeviceNotFound | ErrorCode::ModuleNotFound | ErrorCode::DeviceDisabled => FailureClass::Missing,
            other if other.http_status() >= 500 => FailureClass::Fault,
            _ => FailureClass::Refused,
        }
    }

    /// Of a device that failed with this outcome.
    pub fn of_outcome(outcome: &DeviceJobOutcome) -> FailureClass {
        match outcome {
            DeviceJobOutcome::Method(_) => FailureClass::Answer,
            DeviceJobOutcome::TwinUpdated => FailureClass::Version,
            DeviceJobOutcome::Error { code, .. } => FailureClass::of_code(code),
        }
    }

    /// Of a device whose row has this error code.
    pub fn of_code(code: &str) -> FailureClass {
        match (PolicyOutcome::by_code(code), ErrorCode::by_name(code)) {
            (Some(outcome), _) => outcome.class(),
            (None, Some(code)) => FailureClass::of_error(code),
            // A code of a hub that knows more codes.
            (None, None) => FailureClass::Fault,
        }
    }
}

/// Why a device of a job with a policy has the outcome that it has; beside IoT Hub's own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyOutcome {
    /// The device reports that the version fails on it, or that it does not run it.
    PluginVersionFailed,
    /// The device did not report in time that it runs the version.
    PluginVersionNotReported,
    /// The host ended after the device's turn had begun, and the policy does not have it asked again.
    AttemptInDoubt,
    /// The device was not connected, and the policy does not wait for it, or waits no longer.
    DeviceWasOffline,
    /// The job was aborted before the device's turn, or before its outcome was known.
    JobAborted,
    /// The job was cancelled before the device's outcome was known.
    JobCancelled,
    /// The device's answer or twin was not, or not in time, as the job's next step wants it.
    StepConditionNotMet,
    /// The job's time was over before the device's turn came within its maintenance window.
    WindowMissed,
    /// The tag that names the device's time zone is not there, or names none.
    NoTimeZone,
    /// The device took longer than the policy gives it, with all its attempts.
    DeviceTimedOut,
    /// The end that the policy gives the job came before the device's turn, or before its outcome was known.
    JobEnded,
}

impl PolicyOutcome {
    const ALL: [PolicyOutcome; 11] = [
        PolicyOutcome::PluginVersionFailed,
        PolicyOutcome::PluginVersionNotReported,
        PolicyOutcome::AttemptInDoubt,
        PolicyOutcome::DeviceWasOffline,
        PolicyOutcome::JobAborted,
        PolicyOutcome::JobCancelled,
        PolicyOutcome::StepConditionNotMet,
        PolicyOutcome::WindowMissed,
        PolicyOutcome::NoTimeZone,
        PolicyOutcome::DeviceTimedOut,
        PolicyOutcome::JobEnded,
    ];

    /// The error's code in a device's row.
    pub fn code(self) -> &'static str {
        match self {
            PolicyOutcome::PluginVersionFailed => "PluginVersionFailed",
            PolicyOutcome::PluginVersionNotReported => "PluginVersionNotReported",
            PolicyOutcome::AttemptInDoubt => "AttemptInDoubt",
            PolicyOutcome::DeviceWasOffline => "DeviceWasOffline",
            PolicyOutcome::JobAborted => "JobAborted",
            PolicyOutcome::JobCancelled => "JobCancelled",
            PolicyOutcome::StepConditionNotMet => "StepConditionNotMet",
            PolicyOutcome::WindowMissed => "MaintenanceWindowMissed",
            PolicyOutcome::NoTimeZone => "DeviceHasNoTimeZone",
            PolicyOutcome::DeviceTimedOut => "DeviceExecutionTimedOut",
            PolicyOutcome::JobEnded => "JobEnded",
        }
    }

    /// `None` for IoT Hub's own codes.
    pub fn by_code(code: &str) -> Option<PolicyOutcome> {
        PolicyOutcome::ALL.into_iter().find(|outcome| outcome.code() == code)
    }

    fn class(self) -> FailureClass {
        match self {
            PolicyOutcome::PluginVersionFailed | PolicyOutcome::PluginVersionNotReported => FailureClass::Version,
            PolicyOutcome::DeviceWasOffline => FailureClass::Offline,
            PolicyOutcome::StepConditionNotMet => FailureClass::Answer,
            PolicyOutcome::WindowMissed | PolicyOutcome::NoTimeZone => FailureClass::Window,
            PolicyOutcome::DeviceTimedOut => FailureClass::Timeout,
            PolicyOutcome::AttemptInDoubt
            | PolicyOutcome::JobAborted
            | PolicyOutcome::JobCancelled
            | PolicyOutcome::JobEnded => FailureClass::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_class_has_one_name() {
        for class in FailureClass::ALL {
            assert_eq!(FailureClass::by_name(class.name()), Some(class));
            assert_eq!(json!(class), json!(class.name()));
        }
        assert_eq!(FailureClass::by_name("Offline"), None);
    }

    #[test]
    fn failures_are_classed_by_their_code() {
        for (code, class) in [
            ("DeviceNotOnline", FailureClass::Offline),
            ("DeviceConnectionClosedRemotely", FailureClass::Offline),
            ("DeviceWasOffline", FailureClass::Offline),
            ("GatewayTimeout", FailureClass::Timeout),
            ("ThrottlingException", FailureClass::Throttled),
            ("IotHubQuotaExceeded", FailureClass::Throttled),
            ("DeviceNotFound", FailureClass::Missing),
            ("DeviceDisabled", FailureClass::Missing),
            ("ArgumentInvalid", FailureClass::Refused),
            ("MessageTooLarge", FailureClass::Refused),
            ("BadDeviceResponse", FailureClass::Fault),
            ("ServiceUnavailable", FailureClass::Fault),
            ("SomethingNew", FailureClass::Fault),
            ("PluginVersionFailed", FailureClass::Version),
            ("AttemptInDoubt", FailureClass::Unknown),
            ("MaintenanceWindowMissed", FailureClass::Window),
            ("DeviceHasNoTimeZone", FailureClass::Window),
            ("DeviceExecutionTimedOut", FailureClass::Timeout),
        ] {
            let outcome = DeviceJobOutcome::Error { code: code.to_owned(), description: String::new() };
            assert_eq!(FailureClass::of_outcome(&outcome), class, "{code}");
        }
    }
}
