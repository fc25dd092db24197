//! Direct methods as a back end invokes them: the REST body and its answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ErrorCode, HubError};
use crate::id::MethodName;

/// Largest payload of a request and of an answer, each, in bytes of JSON text.
pub const MAX_PAYLOAD: usize = 128 * 1024;
/// Deepest payload, in levels. Most readers of JSON, ours too, go no deeper than 128, and a payload comes to them with
/// more around it; what nobody could read again must not be taken.
const MAX_DEPTH: usize = 100;

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
        if !is_within(&self.payload, MAX_DEPTH) {
            let text = format!("the payload is nested deeper than {MAX_DEPTH} levels");
            return Err(HubError::new(ErrorCode::ArgumentInvalid, text));
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

impl MethodResponse {
    /// Read what a device answered: JSON, or nothing, which is `null`.
    ///
    /// # Errors
    /// 502001 for what is no JSON, larger than [`MAX_PAYLOAD`], or too deep to be passed on.
    pub fn from_device(status: i32, payload: &[u8]) -> Result<MethodResponse, HubError> {
        let bad = |text: String| HubError::new(ErrorCode::BadDeviceResponse, text);
        if payload.is_empty() {
            return Ok(MethodResponse { status, payload: Value::Null });
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(bad("the device's answer is larger than 128 KiB".into()));
        }
        let payload =
            serde_json::from_slice(payload).map_err(|e| bad(format!("the device's answer is not JSON: {e}")))?;
        if !is_within(&payload, MAX_DEPTH) {
            return Err(bad(format!("the device's answer is nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(MethodResponse { status, payload })
    }
}

/// Whether a value has at most so many levels of objects and arrays.
fn is_within(value: &Value, levels: usize) -> bool {
    let inside = |value: &Value| levels > 0 && is_within(value, levels - 1);
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(inside),
        Value::Object(object) => levels > 0 && object.values().all(inside),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_or_refused_with_its_reason() {
        let deep = format!(r#"{{"methodName":"m","payload":{}{}}}"#, "[".repeat(101), "]".repeat(101));
        let large = format!(r#"{{"methodName":"m","payload":"{}"}}"#, "x".repeat(MAX_PAYLOAD));
        for (body, code) in [
            (r#"{"methodName":"m"}"#, None),
            (r#"{"methodName":"m","responseTimeoutInSeconds":5,"connectTimeoutInSeconds":300}"#, None),
            (r#"{"methodName":"m","responseTimeoutInSeconds":4}"#, Some(ErrorCode::ArgumentInvalid)),
            (r#"{"methodName":"m","responseTimeoutInSeconds":-5}"#, Some(ErrorCode::ArgumentInvalid)),
            (r#"{"methodName":"m","connectTimeoutInSeconds":301}"#, Some(ErrorCode::ArgumentInvalid)),
            (r#"{"methodName":"a b"}"#, Some(ErrorCode::ArgumentInvalid)),
            (r#"{"methodName":null}"#, Some(ErrorCode::ArgumentNull)),
            ("[]", Some(ErrorCode::ArgumentNull)),
            ("", Some(ErrorCode::IotHubFormatError)),
            (deep.as_str(), Some(ErrorCode::ArgumentInvalid)),
            (large.as_str(), Some(ErrorCode::MessageTooLarge)),
        ] {
            let found = DirectMethod::from_json(body.as_bytes()).err().map(|error| error.code);
            assert_eq!(found, code, "{}", body.chars().take(80).collect::<String>());
        }
    }

    #[test]
    fn an_answer_is_json_or_nothing() {
        let read = |payload: &[u8]| MethodResponse::from_device(200, payload).map(|response| response.payload);
        assert_eq!(read(b""), Ok(Value::Null));
        assert_eq!(read(b"\"ok\""), Ok(Value::from("ok")));
        let deep = [vec![b'['; 101], vec![b']'; 101]].concat();
        for wrong in [b"ok".to_vec(), vec![0xff], vec![b' '; MAX_PAYLOAD + 1], deep] {
            assert_eq!(read(&wrong).map_err(|error| error.code), Err(ErrorCode::BadDeviceResponse));
        }
    }
}
