//! Direct methods as a back end invokes them: the REST body and its answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ErrorCode, HubError};
use crate::id::MethodName;

/// Largest payload of a request and of an answer, each, in bytes of JSON text.
pub const MAX_PAYLOAD: usize = 128 * 1024;

/// What to invoke and how long to wait. Field names and ranges are those of `POST /twins/{id}/methods`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectMethod {
    pub method_name: MethodName,
    /// Any JSON; absent is `null`.
    #[serde(default)]
    pub payload: Value,
    /// 5 to 300 seconds for the device's answer; 30 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_timeout_in_seconds: Option<u32>,
    /// 0 to 300 seconds for an offline device to connect; 0, it must be there now, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout_in_seconds: Option<u32>,
}

/// What a device answered. Any status is an answer: 500 from a device is still a success of the call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodResponse {
    pub status: i32,
    pub payload: Value,
}

impl DirectMethod {
    /// Read a REST body.
    ///
    /// # Errors
    /// 400004 or 400005 with the text that Azure gives, 413001 for a payload over [`MAX_PAYLOAD`].
    pub fn from_json(body: &[u8]) -> Result<DirectMethod, HubError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is not JSON: {e}")))?;
        if value.get("methodName").is_none_or(Value::is_null) {
            return Err(HubError::new(ErrorCode::ArgumentNull, "methodName is missing"));
        }
        let method: DirectMethod =
            serde_json::from_value(value).map_err(|e| HubError::new(ErrorCode::ArgumentInvalid, e.to_string()))?;
        method.checked()
    }

    /// The ranges that the service enforces.
    pub fn checked(self) -> Result<DirectMethod, HubError> {
        if !(5..=300).contains(&self.response_timeout()) {
            return Err(HubError::new(ErrorCode::ArgumentInvalid, "responseTimeoutInSeconds must be within [5; 300]."));
        }
        if self.connect_timeout() > 300 {
            return Err(HubError::new(ErrorCode::ArgumentInvalid, "connectTimeoutInSeconds must be within [0; 300]."));
        }
        if self.payload.to_string().len() > MAX_PAYLOAD {
            return Err(HubError::new(ErrorCode::MessageTooLarge, "the payload is larger than 128 KiB"));
        }
        Ok(self)
    }

    /// Seconds to wait for the answer.
    pub fn response_timeout(&self) -> u32 {
        self.response_timeout_in_seconds.unwrap_or(30)
    }

    /// Seconds to wait for the device to connect.
    pub fn connect_timeout(&self) -> u32 {
        self.connect_timeout_in_seconds.unwrap_or(0)
    }
}
