//! Identities of devices and modules as the registry shows and takes them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::address::Address;
use crate::authentication::{Authentication, AuthenticationBody, AuthenticationRequest};
use crate::error::{ErrorCode, HubError};
use crate::time;

/// Longest reason for a status, in characters; the registry's limit.
const MAX_STATUS_REASON: usize = 128;
/// Longest name of what manages a module, in characters: our choice, as Azure documents none.
const MAX_MANAGED_BY: usize = 128;

/// A device or a module as the registry keeps it.
#[derive(Clone)]
pub struct Identity {
    pub address: Address,
    /// 18 digits, new when what was deleted is created again.
    pub generation_id: u64,
    /// Grows with each change; the etag is made of it.
    pub revision: u64,
    /// A module is always: it may connect as long as its device may.
    pub enabled: bool,
    pub status_reason: Option<String>,
    pub status_updated: Option<DateTime<Utc>>,
    /// What manages a module, such as `iotEdge`: a word for back ends. Devices have none.
    pub managed_by: Option<String>,
    pub authentication: Authentication,
}

/// What a back end asks for with `PUT /devices/{id}` or `PUT /devices/{id}/modules/{id}`: the whole identity. What it leaves out is not kept: an update
/// without authentication makes new keys, as at Azure.
#[derive(Debug, Clone, Default)]
pub struct IdentityRequest {
    pub disabled: bool,
    pub status_reason: Option<String>,
    pub managed_by: Option<String>,
    pub authentication: AuthenticationRequest,
}

impl IdentityRequest {
    /// What is not for a module (status) or not for a device (`managedBy`) is not looked at: clients send back what they
    /// were shown.
    ///
    /// # Errors
    /// 400-codes for a body that is not an identity, or is another one's, and for authentication that is none.
    pub fn from_json(address: &Address, body: &[u8]) -> Result<IdentityRequest, HubError> {
        let kind = if address.is_module() { "module" } else { "device" };
        let body: Body = serde_json::from_slice(body)
            .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is no {kind}: {e}")))?;
        if body.device_id.as_deref().is_some_and(|id| id != address.device().as_str()) {
            return Err(invalid("the body's deviceId is not the path's".into()));
        }
        let authentication = AuthenticationRequest::from_body(body.authentication.unwrap_or_default())?;
        let Some(module) = address.module() else {
            let disabled = read_status(body.status.as_deref())?;
            check_length("statusReason", body.status_reason.as_deref(), MAX_STATUS_REASON)?;
            return Ok(IdentityRequest {
                disabled,
                status_reason: body.status_reason,
                managed_by: None,
                authentication,
            });
        };
        if body.module_id.as_deref().is_some_and(|id| id != module.as_str()) {
            return Err(invalid("the body's moduleId is not the path's".into()));
        }
        check_length("managedBy", body.managed_by.as_deref(), MAX_MANAGED_BY)?;
        Ok(IdentityRequest { managed_by: body.managed_by, authentication, ..IdentityRequest::default() })
    }
}

/// Whether it is disabled.
fn read_status(status: Option<&str>) -> Result<bool, HubError> {
    match status {
        None | Some("enabled") => Ok(false),
        Some("disabled") => Ok(true),
        Some(other) => Err(invalid(format!("status {other:?} is neither enabled nor disabled"))),
    }
}

fn check_length(name: &str, text: Option<&str>, limit: usize) -> Result<(), HubError> {
    match text.is_some_and(|text| text.chars().count() > limit) {
        true => Err(invalid(format!("{name} is longer than {limit} characters"))),
        false => Ok(()),
    }
}

fn invalid(text: String) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, text)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    device_id: Option<String>,
    module_id: Option<String>,
    status: Option<String>,
    status_reason: Option<String>,
    managed_by: Option<String>,
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
        let mut identity = json!({
            "deviceId": self.address.device(),
            "generationId": format!("{:018}", self.generation_id),
            "etag": self.etag(),
            "connectionState": if connected { "Connected" } else { "Disconnected" },
            "connectionStateUpdatedTime": when(last_activity),
            "lastActivityTime": when(last_activity),
            "cloudToDeviceMessageCount": message_count,
            "authentication": self.authentication.to_json(),
        });
        match self.address.module() {
            Some(module) => {
                identity["moduleId"] = json!(module);
                identity["managedBy"] = json!(self.managed_by);
            }
            None => {
                identity["status"] = json!(if self.enabled { "enabled" } else { "disabled" });
                identity["statusReason"] = json!(self.status_reason);
                identity["statusUpdatedTime"] = json!(when(self.status_updated));
                identity["capabilities"] = json!({"iotEdge": false});
                identity["deviceScope"] = Value::Null;
            }
        }
        identity
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("address", &self.address)
            .field("generation_id", &self.generation_id)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<IdentityRequest, HubError> {
        IdentityRequest::from_json(&Address::parse("d1").expect("an address"), body.as_bytes())
    }

    fn read_module(body: &str) -> Result<IdentityRequest, HubError> {
        IdentityRequest::from_json(&Address::parse("d1/m1").expect("an address"), body.as_bytes())
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
        let long = format!(r#"{{"managedBy":"{}"}}"#, "x".repeat(129));
        for (body, text) in [
            (r#"{"deviceId":"d2"}"#, "deviceId is not the path's"),
            (r#"{"moduleId":"m2"}"#, "moduleId is not the path's"),
            (long.as_str(), "managedBy is longer than 128"),
            ("[]", "no module"),
        ] {
            let error = read_module(body).expect_err(body);
            assert!(error.message.contains(text), "{body}: {error}");
        }
    }

    #[test]
    fn a_module_has_a_manager_and_no_status() {
        let body =
            r#"{"deviceId":"d1","moduleId":"m1","managedBy":"ops","status":"off","capabilities":{"iotEdge":true}}"#;
        let request = read_module(body).expect("a module");
        assert_eq!((request.managed_by.as_deref(), request.disabled), (Some("ops"), false));
        let key = || crate::sas::SharedKey::from_random([1; crate::sas::KEY_BYTES]);
        let identity = Identity {
            address: Address::parse("d1/m1").expect("an address"),
            generation_id: 7,
            revision: 1,
            enabled: true,
            status_reason: None,
            status_updated: None,
            managed_by: request.managed_by,
            authentication: Authentication::of_request(request.authentication, [key(), key()]),
        };
        let shown = identity.to_json(true, None, 0);
        let members: Vec<&str> = shown.as_object().expect("an object").keys().map(String::as_str).collect();
        let expected = [
            "authentication",
            "cloudToDeviceMessageCount",
            "connectionState",
            "connectionStateUpdatedTime",
            "deviceId",
            "etag",
            "generationId",
            "lastActivityTime",
            "managedBy",
            "moduleId",
        ];
        assert_eq!(
            (members.as_slice(), &shown["moduleId"], &shown["managedBy"]),
            (&expected[..], &json!("m1"), &json!("ops"))
        );
    }
}
