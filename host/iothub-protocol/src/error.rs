//! IoT Hub's error codes and both of its REST envelopes.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::time;

macro_rules! codes {
    ($($name:ident = $code:literal),* $(,)?) => {
        /// The codes that this hub uses. The first three digits are the HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ErrorCode { $($name = $code),* }

        impl ErrorCode {
            /// The name in the `iothub-errorcode` header and in the envelope.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => stringify!($name)),* }
            }

            /// The code of that name.
            pub fn by_name(name: &str) -> Option<ErrorCode> {
                match name { $(stringify!($name) => Some(ErrorCode::$name),)* _ => None }
            }

            /// The code of that number.
            pub fn by_number(number: u32) -> Option<ErrorCode> {
                match number { $($code => Some(ErrorCode::$name),)* _ => None }
            }
        }
    };
}

codes! {
    GenericBadRequest = 400000,
    InvalidOperation = 400003,
    ArgumentInvalid = 400004,
    ArgumentNull = 400005,
    IotHubFormatError = 400006,
    DeviceDefinedMultipleTimes = 400011,
    ConnectionForcefullyClosedOnNewConnection = 400027,
    IotHubUnauthorizedAccess = 401002,
    IotHubUnauthorized = 401003,
    IotHubQuotaExceeded = 403002,
    DeviceMaximumQueueDepthExceeded = 403004,
    InvalidMessageExpiryTime = 403009,
    DeviceDisabled = 403012,
    DeviceMaximumInflightMethodExceeded = 403800,
    IotHubNotFound = 404000,
    DeviceNotFound = 404001,
    JobNotFound = 404002,
    ModuleNotFound = 404010,
    DeviceNotOnline = 404103,
    DeviceConnectionClosedRemotely = 404104,
    ConfigurationNotFound = 404301,
    GenericMethodNotAllowed = 405000,
    DeviceAlreadyExists = 409001,
    ModuleAlreadyExistsOnDevice = 409301,
    JobAlreadyExists = 409104,
    ConfigurationAlreadyExists = 409401,
    PreconditionFailed = 412001,
    DeviceMessageLockLost = 412002,
    JobRunPreconditionFailed = 412003,
    MessageTooLarge = 413001,
    TooManyDevices = 413002,
    TooManyModulesOnDevice = 413003,
    ConfigurationCountLimitExceeded = 413101,
    GenericUnsupportedMediaType = 415000,
    ThrottlingException = 429001,
    ThrottlingMaxActiveJobCountExceeded = 429004,
    ServerError = 500001,
    // The number is ours: the SDKs know the status 502, no document the code.
    BadDeviceResponse = 502001,
    ServiceUnavailable = 503001,
    GatewayTimeout = 504101,
}

impl ErrorCode {
    pub fn number(self) -> u32 {
        self as u32
    }

    pub fn http_status(self) -> u16 {
        u16::try_from(self.number() / 1000).unwrap_or(500)
    }
}

/// An error as the service or a device meets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct HubError {
    pub code: ErrorCode,
    /// For people; says what to do where there is something to do. Holds no secret.
    pub message: String,
}

impl HubError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> HubError {
        HubError { code, message: message.into() }
    }

    /// The usual envelope: registry, twins, jobs, query. A `;` in the text would cut it short in the Node SDK.
    pub fn envelope(&self, tracking_id: &str, now: DateTime<Utc>) -> Value {
        json!({
            "Message": format!("ErrorCode:{};{}", self.code.name(), self.message.replace(';', ",")),
            "ExceptionMessage": format!("Tracking ID:{tracking_id}-G:0-TimeStamp:{}", now.format("%m/%d/%Y %H:%M:%S")),
        })
    }

    /// The envelope of direct methods: JSON text inside JSON. `waited` is the time-out that was applied.
    pub fn method_envelope(&self, tracking_id: &str, waited: Option<u32>, now: DateTime<Utc>) -> Value {
        let info = match waited {
            Some(s) => json!({"timeout": format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)}),
            None => json!({}),
        };
        let inner = json!({
            "errorCode": self.code.number(),
            "trackingId": format!("{tracking_id}-G:0-TimeStamp:{}", now.format("%m/%d/%Y %H:%M:%S")),
            "message": self.message,
            "info": info,
            "timestampUtc": time::format(now),
        });
        json!({"Message": inner.to_string(), "ExceptionMessage": ""})
    }

    /// The body of a twin answer over MQTT with a status of 400 and above.
    pub fn twin_body(&self, tracking_id: &str, now: DateTime<Utc>) -> Value {
        json!({
            "errorCode": self.code.number(),
            "trackingId": tracking_id,
            "message": self.message,
            "timestampUtc": time::format(now),
        })
    }

    /// Read any of the envelopes back, for a client. `status` decides where the body says nothing usable.
    pub fn from_response(status: u16, body: &str) -> HubError {
        let fallback = || {
            let code = match status {
                400 => ErrorCode::GenericBadRequest,
                401 => ErrorCode::IotHubUnauthorized,
                403 => ErrorCode::DeviceDisabled,
                404 => ErrorCode::IotHubNotFound,
                405 => ErrorCode::GenericMethodNotAllowed,
                409 => ErrorCode::DeviceAlreadyExists,
                412 => ErrorCode::PreconditionFailed,
                413 => ErrorCode::MessageTooLarge,
                429 => ErrorCode::ThrottlingException,
                503 => ErrorCode::ServiceUnavailable,
                504 => ErrorCode::GatewayTimeout,
                _ => ErrorCode::ServerError,
            };
            HubError::new(
                code,
                format!("the hub answered HTTP {status}: {}", body.chars().take(500).collect::<String>()),
            )
        };
        let Ok(envelope) = serde_json::from_str::<Value>(body) else { return fallback() };
        let Some(message) = envelope.get("Message").and_then(Value::as_str) else { return fallback() };
        if let Some(rest) = message.strip_prefix("ErrorCode:") {
            let (name, text) = rest.split_once(';').unwrap_or((rest, ""));
            return ErrorCode::by_name(name).map_or_else(fallback, |code| HubError::new(code, text));
        }
        let Ok(inner) = serde_json::from_str::<Value>(message) else { return fallback() };
        let number = inner.get("errorCode").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let text = inner.get("message").and_then(Value::as_str).unwrap_or_default();
        number.and_then(ErrorCode::by_number).map_or_else(fallback, |code| HubError::new(code, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_envelopes_are_read_back() {
        let now = DateTime::UNIX_EPOCH;
        let error = HubError::new(ErrorCode::DeviceNotOnline, "Timed out waiting for device to connect.");
        for body in [error.envelope("abc", now), error.method_envelope("abc", Some(61), now)] {
            assert_eq!(HubError::from_response(404, &body.to_string()), error);
        }
    }

    #[test]
    fn a_method_error_is_json_text_inside_json_with_the_applied_time_out() {
        let error = HubError::new(ErrorCode::GatewayTimeout, "Timed out waiting for the response from device.");
        let envelope = error.method_envelope("t", Some(30), DateTime::UNIX_EPOCH);
        let inner: Value = serde_json::from_str(envelope["Message"].as_str().expect("text")).expect("json");
        assert_eq!(inner["errorCode"], 504101);
        assert_eq!(inner["info"]["timeout"], "00:00:30");
    }

    #[test]
    fn a_body_that_is_no_envelope_keeps_the_status() {
        let error = HubError::from_response(429, "slow down");
        assert_eq!(error.code, ErrorCode::ThrottlingException);
        assert!(error.message.contains("slow down"));
    }
}
