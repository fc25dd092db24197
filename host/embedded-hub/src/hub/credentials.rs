//! Who a device or a module is: what it shows, and what the registry has of it.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::authentication::{Authentication, Thumbprint};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::sas::Token;

use super::{Entity, Hub, Now};
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

/// Why a device may not connect, for the log; holds no secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denial {
    #[error("{0}")]
    Reason(&'static str),
    /// In Azure's words.
    #[error(
        "Thumbprint does not match configuration: Thumbprint: SHA1Hash={sha1}, SHA2Hash={sha256}; Configuration: \
         PrimaryThumbprint={primary}, SecondaryThumbprint={secondary}"
    )]
    Thumbprint { sha1: Thumbprint, sha256: Thumbprint, primary: String, secondary: String },
}

impl From<&'static str> for Denial {
    fn from(reason: &'static str) -> Denial {
        Denial::Reason(reason)
    }
}

impl Denial {
    /// For a request over HTTPS. Over MQTT there is a code only.
    pub(super) fn answer(&self) -> HubError {
        let text = match self {
            Denial::Thumbprint { .. } => self.to_string(),
            Denial::Reason(_) => {
                "Authentication failed for this device, renew token or certificate and reconnect".to_owned()
            }
        };
        HubError::new(ErrorCode::IotHubUnauthorized, text)
    }
}

/// Until when a device may be connected, and by what.
pub(super) type Proof = (DateTime<Utc>, AuthMethod);

impl<R> Hub<R> {
    /// When what the device shows expires, and what it is; or why it may not connect. A token is judged where there is
    /// one, else the certificate.
    pub(super) fn authenticate(&self, now: Now, id: &Address, credentials: &Credentials) -> Result<Proof, Denial> {
        let device = self.entities.get(&id.device().into()).ok_or("the device is not registered")?;
        let entity = self.entities.get(id).ok_or("the device has no such module")?;
        let proof = match (&credentials.token, &credentials.certificate) {
            (Some(token), _) => self.judge_token(now, entity, token)?,
            (None, Some(certificate)) => (judge_certificate(now, entity, certificate)?, AuthMethod::Certificate),
            (None, None) => return Err("there is neither a SAS token nor a certificate".into()),
        };
        if !device.identity.enabled {
            return Err("the device is disabled".into());
        }
        Ok(proof)
    }

    fn judge_token(&self, now: Now, entity: &Entity, text: &str) -> Result<Proof, Denial> {
        let token = Token::parse(text).map_err(|_| "the password is no SAS token")?;
        let signed = match (token.policy(), &entity.identity.authentication) {
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
        if !token.covers(&entity.identity.address) {
            return Err("the token is for another resource".into());
        }
        // A token made to last forever is no error: it is cut at the end of time.
        let expiry = DateTime::from_timestamp(token.expiry(), 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
        let method = if token.policy().is_some() { AuthMethod::PolicyKey } else { AuthMethod::OwnKey };
        Ok((expiry, method))
    }
}

fn judge_certificate(now: Now, entity: &Entity, certificate: &ClientCertificate) -> Result<DateTime<Utc>, Denial> {
    match &entity.identity.authentication {
        Authentication::Sas { .. } => return Err("the device connects with a SAS token, not with a certificate".into()),
        Authentication::SelfSigned { primary, secondary } => {
            let known = [primary.as_ref(), secondary.as_ref()];
            if !known.into_iter().flatten().any(|thumbprint| certificate.has_thumbprint(thumbprint)) {
                return Err(wrong_thumbprint(certificate, known));
            }
        }
        Authentication::CertificateAuthority => {
            if certificate.authority.is_none() {
                return Err(
                    "the certificate leads to no authority of this hub, or one on the way is not valid now".into()
                );
            }
            let expected = entity.identity.address.to_string();
            if certificate.common_name.as_deref() != Some(expected.as_str()) {
                return Err("the certificate's common name is not the id of the device, or device/module".into());
            }
        }
    }
    if !certificate.is_valid_at(now.wall) {
        return Err("the certificate has expired or is not valid yet".into());
    }
    Ok(certificate.not_after)
}

fn wrong_thumbprint(certificate: &ClientCertificate, known: [Option<&Thumbprint>; 2]) -> Denial {
    let [primary, secondary] = known.map(|known| known.map(ToString::to_string).unwrap_or_default());
    Denial::Thumbprint { sha1: certificate.sha1.clone(), sha256: certificate.sha256.clone(), primary, secondary }
}
