//! Device identities as the registry shows and takes them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::authentication::{Authentication, AuthenticationBody, AuthenticationRequest};
use crate::error::{ErrorCode, HubError};
use crate::id::DeviceId;
use crate::time;

/// Longest reason for a status, in characters; the registry's limit.
const MAX_STATUS_REASON: usize = 128;

/// A device as the registry keeps it.
#[derive(Clone)]
pub struct Identity {
    pub device_id: DeviceId,
    /// 18 digits, new when a deleted device is created again.
    pub generation_id: u64,
    /// Grows with each change; the etag is made of it.
    pub revision: u64,
    pub enabled: bool,
    pub status_reason: Option<String>,
    pub status_updated: Option<DateTime<Utc>>,
    pub authentication: Authentication,
}

/// What a back end asks for with `PUT /devices/{id}`: the whole identity. What it leaves out is not kept: an update
/// without authentication makes new keys, as at Azure.
#[derive(Debug, Clone, Default)]
pub struct IdentityRequest {
    pub disabled: bool,
    pub status_reason: Option<String>,
    pub authentication: AuthenticationRequest,
}

impl IdentityRequest {
    /// # Errors
    /// 400-codes for a body that is not an identity, and for authentication that is none.
    pub fn from_json(device_id: &DeviceId, body: &[u8]) -> Result<IdentityRequest, HubError> {
        let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
        let body: Body = serde_json::from_slice(body)
            .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is no device: {e}")))?;
        if body.device_id.as_deref().is_some_and(|id| id != device_id.as_str()) {
            return Err(invalid("the body's deviceId is not the path's".into()));
        }
        let disabled = match body.status.as_deref() {
            None | Some("enabled") => false,
            Some("disabled") => true,
            Some(other) => return Err(invalid(format!("status {other:?} is neither enabled nor disabled"))),
        };
        if body.status_reason.as_ref().is_some_and(|reason| reason.chars().count() > MAX_STATUS_REASON) {
            return Err(invalid(format!("statusReason is longer than {MAX_STATUS_REASON} characters")));
        }
        let authentication = AuthenticationRequest::from_body(body.authentication.unwrap_or_default())?;
        Ok(IdentityRequest { disabled, status_reason: body.status_reason, authentication })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    device_id: Option<String>,
    status: Option<String>,
    status_reason: Option<String>,
    authentication: Option<AuthenticationBody>,
}

impl Identity {
    /// Base64 of a decimal number.
    pub fn etag(&self) -> String {
        BASE64.encode(self.revision.to_string())
    }

    /// The registry's answer, keys included: for a caller with the right to read them.
    pub fn to_json(&self, connected: bool, last_activity: Option<DateTime<Utc>>, message_count: usize) -> Value {
        let when = |time: Option<DateTime<Utc>>| time.map_or_else(|| time::NEVER.to_owned(), time::format);
        json!({
            "deviceId": self.device_id,
            "generationId": format!("{:018}", self.generation_id),
            "etag": self.etag(),
            "connectionState": if connected { "Connected" } else { "Disconnected" },
            "status": if self.enabled { "enabled" } else { "disabled" },
            "statusReason": self.status_reason,
            "connectionStateUpdatedTime": when(last_activity),
            "statusUpdatedTime": when(self.status_updated),
            "lastActivityTime": when(last_activity),
            "cloudToDeviceMessageCount": message_count,
            "authentication": self.authentication.to_json(),
            "capabilities": {"iotEdge": false},
            "deviceScope": null,
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("device_id", &self.device_id)
            .field("generation_id", &self.generation_id)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<IdentityRequest, HubError> {
        IdentityRequest::from_json(&DeviceId::parse("d1").expect("an id"), body.as_bytes())
    }

    #[test]
    fn the_sdks_bodies_are_read() {
        let node =
            r#"{"deviceId":"d1","authentication":{"type":"sas","symmetricKey":{"primaryKey":"","secondaryKey":""}}}"#;
        let python = r#"{"deviceId":"d1","status":"disabled","authentication":{"symmetricKey":{},"type":"sas"},"capabilities":{"iotEdge":false}}"#;
        assert!(read(node).is_ok_and(|request| {
            !request.disabled && matches!(request.authentication, AuthenticationRequest::Sas { keys: None })
        }));
        assert!(read(python).is_ok_and(|request| request.disabled));
        assert!(read(r#"{"deviceId":"d1"}"#).is_ok());
    }

    #[test]
    fn a_wrong_body_is_refused_with_its_reason() {
        for (body, text) in [
            (r#"{"deviceId":"d2"}"#, "not the path's"),
            (r#"{"status":"off"}"#, "neither enabled nor disabled"),
            (r#"{"authentication":{"type":"none"}}"#, "is none of"),
            (r#"{"authentication":{"symmetricKey":{"primaryKey":"??"}}}"#, "both keys"),
            ("[]", "no device"),
        ] {
            let error = read(body).expect_err(body);
            assert!(error.message.contains(text), "{body}: {error}");
        }
    }
}
