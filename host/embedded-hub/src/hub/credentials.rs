//! Who a device is: what it shows, and what the registry has of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use iothub_protocol::authentication::{Authentication, Thumbprint};
use iothub_protocol::id::DeviceId;
use iothub_protocol::sas::Token;

use super::{Device, Hub, Now};
use crate::certificate::ClientCertificate;
use crate::events::AuthMethod;
use crate::policy::Rights;

/// What whoever connects as a device shows. The token is never shown on.
#[derive(Clone, Default)]
pub struct Credentials {
    /// A SAS token, or what was given in its place.
    pub token: Option<String>,
    /// The client's certificate, whose key TLS has seen it use.
    pub certificate: Option<Arc<ClientCertificate>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why a device may not connect; holds no secret.
pub(super) type Denial = Cow<'static, str>;

/// Until when a device may be connected, and by what.
pub(super) type Proof = (DateTime<Utc>, AuthMethod);

impl<R> Hub<R> {
    /// When what the device shows expires, and what it is; or why it may not connect. A token is judged where there is
    /// one, else the certificate.
    pub(super) fn authenticate(&self, now: Now, id: &DeviceId, credentials: &Credentials) -> Result<Proof, Denial> {
        let device = self.devices.get(id).ok_or("the device is not registered")?;
        let proof = match (&credentials.token, &credentials.certificate) {
            (Some(token), _) => self.judge_token(now, device, token)?,
            (None, Some(certificate)) => (judge_certificate(now, device, certificate)?, AuthMethod::Certificate),
            (None, None) => return Err("there is neither a SAS token nor a certificate".into()),
        };
        if !device.identity.enabled {
            return Err("the device is disabled".into());
        }
        Ok(proof)
    }

    fn judge_token(&self, now: Now, device: &Device, text: &str) -> Result<Proof, Denial> {
        let token = Token::parse(text).map_err(|_| "the password is no SAS token")?;
        let signed = match (token.policy(), &device.identity.authentication) {
            (None, Authentication::Sas { primary, secondary }) => {
                token.signed_by(primary) || token.signed_by(secondary)
            }
            (None, _) => return Err("the device has no keys, it connects with a certificate".into()),
            (Some(name), _) => self
                .policies
                .iter()
                .find(|policy| policy.name == name && policy.rights.contains(Rights::DEVICE_CONNECT))
                .is_some_and(|policy| policy.signed(&token)),
        };
        if !signed {
            return Err("the token's signature is wrong".into());
        }
        if token.is_expired(now.wall) {
            return Err("the token has expired".into());
        }
        if !token.covers_device(&device.identity.device_id) {
            return Err("the token is for another resource".into());
        }
        // A token made to last forever is no error: it is cut at the end of time.
        let expiry = DateTime::from_timestamp(token.expiry(), 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
        let method = if token.policy().is_some() { AuthMethod::PolicyKey } else { AuthMethod::DeviceKey };
        Ok((expiry, method))
    }
}

fn judge_certificate(now: Now, device: &Device, certificate: &ClientCertificate) -> Result<DateTime<Utc>, Denial> {
    match &device.identity.authentication {
        Authentication::Sas { .. } => return Err("the device connects with a SAS token, not with a certificate".into()),
        Authentication::SelfSigned { primary, secondary } => {
            let known = [primary.as_ref(), secondary.as_ref()];
            if !known.into_iter().flatten().any(|thumbprint| certificate.has_thumbprint(thumbprint)) {
                return Err(wrong_thumbprint(certificate, known).into());
            }
        }
        Authentication::CertificateAuthority => {
            if certificate.authority.is_none() {
                return Err(
                    "the certificate leads to no authority of this hub, or one on the way is not valid now".into()
                );
            }
            if certificate.common_name.as_deref() != Some(device.identity.device_id.as_str()) {
                return Err("the certificate's common name is not the device's id".into());
            }
        }
    }
    if !certificate.is_valid_at(now.wall) {
        return Err("the certificate has expired or is not valid yet".into());
    }
    Ok(certificate.not_after)
}

/// In Azure's words.
fn wrong_thumbprint(certificate: &ClientCertificate, [primary, secondary]: [Option<&Thumbprint>; 2]) -> String {
    let text = |thumbprint: Option<&Thumbprint>| thumbprint.map(ToString::to_string).unwrap_or_default();
    format!(
        "Thumbprint does not match configuration: Thumbprint: SHA1Hash={}, SHA2Hash={}; Configuration: \
         PrimaryThumbprint={}, SecondaryThumbprint={}",
        certificate.sha1,
        certificate.sha256,
        text(primary),
        text(secondary)
    )
}
