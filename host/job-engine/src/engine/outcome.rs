//! How devices end that do not succeed.

use iothub_protocol::address::Address;
use iothub_protocol::error::ErrorCode;
use iothub_protocol::job::policy::PolicyOutcome;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus};

use super::What;
use super::target::Lack;

pub(super) fn failed(device: &Address, outcome: DeviceJobOutcome) -> What {
    What::Ended { device: device.clone(), status: DeviceJobStatus::Failed, outcome: Some(outcome) }
}

/// For people: why a device failed.
pub(super) fn describe(outcome: &DeviceJobOutcome) -> String {
    match outcome {
        DeviceJobOutcome::Method(response) => format!("it answered {}", response.status),
        DeviceJobOutcome::TwinUpdated => "its twin was updated".to_owned(),
        // Ours say it all in words.
        DeviceJobOutcome::Error { code, description } if PolicyOutcome::by_code(code).is_some() => description.clone(),
        DeviceJobOutcome::Error { code, description } => format!("{code}: {description}"),
    }
}

pub(super) fn error_outcome(code: ErrorCode, text: &str) -> DeviceJobOutcome {
    DeviceJobOutcome::Error { code: code.name().to_owned(), description: text.to_owned() }
}

pub(super) fn policy_outcome(outcome: PolicyOutcome, description: String) -> DeviceJobOutcome {
    DeviceJobOutcome::Error { code: outcome.code().to_owned(), description }
}

impl Lack {
    /// Azure's codes and texts.
    pub(super) fn outcome(self) -> DeviceJobOutcome {
        let (code, text) = match self {
            Lack::Start => (
                ErrorCode::JobRunPreconditionFailed,
                "The job did not start within specified period: either device did not come online or invalid endTime \
                 specified.",
            ),
            Lack::Connection => (ErrorCode::DeviceNotOnline, "Timed out waiting for device to connect."),
            Lack::Answer => (ErrorCode::GatewayTimeout, "Timed out waiting for the response from device."),
            Lack::Report => {
                let text = "the job's time was over before the device had reported to run the version for long enough";
                return policy_outcome(PolicyOutcome::PluginVersionNotReported, text.to_owned());
            }
            Lack::Step => {
                let text = "the job's time was over before the device's twin was as the next step wants it";
                return policy_outcome(PolicyOutcome::StepConditionNotMet, text.to_owned());
            }
        };
        error_outcome(code, text)
    }
}
