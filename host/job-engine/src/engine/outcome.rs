//! How devices end that do not succeed.

use iothub_protocol::address::Address;
use iothub_protocol::error::ErrorCode;
use iothub_protocol::job::policy::PolicyOutcome;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus};

use super::What;
use super::job::Lack;

pub(super) fn failed(device: &Address, code: ErrorCode, text: &str) -> What {
    let outcome = Some(error_outcome(code, text));
    What::Ended { device: device.clone(), status: DeviceJobStatus::Failed, outcome }
}

fn error_outcome(code: ErrorCode, text: &str) -> DeviceJobOutcome {
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
        };
        error_outcome(code, text)
    }
}
