//! How a device proves who it is: by a key, by its own certificate, or by one of an authority.

use std::fmt;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{ErrorCode, HubError};
use crate::sas::SharedKey;

/// What the registry keeps of it.
#[derive(Debug, Clone)]
pub enum Authentication {
    /// By SAS tokens, signed with one of these keys.
    Sas { primary: SharedKey, secondary: SharedKey },
    /// By a certificate with one of these thumbprints, whoever signed it. Without any no certificate will do.
    SelfSigned { primary: Option<Thumbprint>, secondary: Option<Thumbprint> },
    /// By a certificate that an authority of the hub has signed, whose common name is the device's id.
    CertificateAuthority,
}

/// What a back end asks for. Keys that it does not name are made.
#[derive(Debug, Clone)]
pub enum AuthenticationRequest {
    Sas { keys: Option<[SharedKey; 2]> },
    SelfSigned { primary: Option<Thumbprint>, secondary: Option<Thumbprint> },
    CertificateAuthority,
}

impl Default for AuthenticationRequest {
    fn default() -> AuthenticationRequest {
        AuthenticationRequest::Sas { keys: None }
    }
}

/// The SHA-1 or SHA-256 of a certificate, as hexadecimal digits. Kept as it was given; the letters' case does not count.
#[derive(Clone)]
pub struct Thumbprint(Box<str>);

/// Why a text is no thumbprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a thumbprint is 40 hexadecimal digits (SHA-1) or 64 (SHA-256), without separators")]
pub struct ThumbprintError;

impl Thumbprint {
    /// # Errors
    /// For anything but 40 or 64 hexadecimal digits; Azure, too, takes no colons.
    pub fn parse(text: &str) -> Result<Thumbprint, ThumbprintError> {
        let fits = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if fits { Ok(Thumbprint(text.into())) } else { Err(ThumbprintError) }
    }

    /// Of the bytes of a SHA-1 or SHA-256.
    pub fn of_digest(digest: &[u8]) -> Result<Thumbprint, ThumbprintError> {
        Thumbprint::parse(&digest.iter().map(|byte| format!("{byte:02X}")).collect::<String>())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Thumbprint {
    fn eq(&self, other: &Thumbprint) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Thumbprint {}

impl std::str::FromStr for Thumbprint {
    type Err = ThumbprintError;
    fn from_str(text: &str) -> Result<Thumbprint, ThumbprintError> {
        Thumbprint::parse(text)
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Authentication {
    /// `sas`, `selfSigned` or `certificateAuthority`.
    pub fn kind(&self) -> &'static str {
        match self {
            Authentication::Sas { .. } => SAS,
            Authentication::SelfSigned { .. } => SELF_SIGNED,
            Authentication::CertificateAuthority => CERTIFICATE_AUTHORITY,
        }
    }

    /// What a request leads to. `fresh` are new keys, for where it names none.
    pub fn of_request(request: AuthenticationRequest, fresh: [SharedKey; 2]) -> Authentication {
        match request {
            AuthenticationRequest::Sas { keys } => {
                let [primary, secondary] = keys.unwrap_or(fresh);
                Authentication::Sas { primary, secondary }
            }
            AuthenticationRequest::SelfSigned { primary, secondary } => {
                Authentication::SelfSigned { primary, secondary }
            }
            AuthenticationRequest::CertificateAuthority => Authentication::CertificateAuthority,
        }
    }

    /// As an identity shows it, keys included.
    pub fn to_json(&self) -> Value {
        let (primary, secondary) = match self {
            Authentication::Sas { primary, secondary } => (Some(primary.to_base64()), Some(secondary.to_base64())),
            Authentication::SelfSigned { .. } | Authentication::CertificateAuthority => (None, None),
        };
        json!({
            "symmetricKey": {"primaryKey": primary, "secondaryKey": secondary},
            "x509Thumbprint": self.thumbprints_json(),
            "type": self.kind(),
        })
    }

    /// `x509Thumbprint` of an identity and of a twin.
    pub fn thumbprints_json(&self) -> Value {
        let (primary, secondary) = match self {
            Authentication::SelfSigned { primary, secondary } => (primary.as_ref(), secondary.as_ref()),
            Authentication::Sas { .. } | Authentication::CertificateAuthority => (None, None),
        };
        let text = |thumbprint: Option<&Thumbprint>| thumbprint.map(|thumbprint| thumbprint.as_str().to_owned());
        json!({"primaryThumbprint": text(primary), "secondaryThumbprint": text(secondary)})
    }
}

impl AuthenticationRequest {
    /// The member `authentication` of an identity's body, as [`AuthenticationRequest::from_body`] reads it.
    pub fn to_json(&self) -> Value {
        match self {
            // Empty keys ask the hub to make some.
            AuthenticationRequest::Sas { keys: None } => {
                json!({"type": SAS, "symmetricKey": {"primaryKey": "", "secondaryKey": ""}})
            }
            AuthenticationRequest::Sas { keys: Some([primary, secondary]) } => json!({
                "type": SAS,
                "symmetricKey": {"primaryKey": primary.to_base64(), "secondaryKey": secondary.to_base64()},
            }),
            AuthenticationRequest::SelfSigned { primary, secondary } => json!({
                "type": SELF_SIGNED,
                "x509Thumbprint": {
                    "primaryThumbprint": primary.as_ref().map(Thumbprint::as_str),
                    "secondaryThumbprint": secondary.as_ref().map(Thumbprint::as_str),
                },
            }),
            AuthenticationRequest::CertificateAuthority => json!({"type": CERTIFICATE_AUTHORITY}),
        }
    }

    /// What a type does not use is not looked at: clients send back what they were shown, nulls and all.
    ///
    /// # Errors
    /// 400004 for an unknown type, for one key without the other, and for what is no key or thumbprint.
    pub(crate) fn from_body(body: AuthenticationBody) -> Result<AuthenticationRequest, HubError> {
        let AuthenticationBody { kind, symmetric_key, x509_thumbprint } = body;
        let thumbprints = x509_thumbprint.unwrap_or_default();
        let has_thumbprint = thumbprints.primary_thumbprint.is_some() || thumbprints.secondary_thumbprint.is_some();
        match kind.as_deref() {
            None if has_thumbprint => thumbprints.read(),
            None | Some(SAS) => symmetric_key.unwrap_or_default().read(),
            Some(SELF_SIGNED) => thumbprints.read(),
            Some(CERTIFICATE_AUTHORITY) => Ok(AuthenticationRequest::CertificateAuthority),
            Some(other) => Err(invalid(format!(
                "authentication type {other:?} is none of {SAS:?}, {SELF_SIGNED:?} and {CERTIFICATE_AUTHORITY:?}"
            ))),
        }
    }
}

const SAS: &str = "sas";
const SELF_SIGNED: &str = "selfSigned";
const CERTIFICATE_AUTHORITY: &str = "certificateAuthority";

/// The member `authentication` as it comes.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuthenticationBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<SymmetricKey>,
    x509_thumbprint: Option<X509Thumbprint>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SymmetricKey {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct X509Thumbprint {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

impl SymmetricKey {
    fn read(self) -> Result<AuthenticationRequest, HubError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let key = |name: &str, text: &str| SharedKey::parse(text).map_err(|e| invalid(format!("{name}: {e}")));
        let keys = match (given(self.primary_key), given(self.secondary_key)) {
            (None, None) => None,
            (Some(primary), Some(secondary)) => Some([key("primaryKey", &primary)?, key("secondaryKey", &secondary)?]),
            _ => return Err(invalid("Either no keys or both keys can be set".to_owned())),
        };
        Ok(AuthenticationRequest::Sas { keys })
    }
}

impl X509Thumbprint {
    fn read(self) -> Result<AuthenticationRequest, HubError> {
        let thumbprint = |text: Option<String>| match text.filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => Thumbprint::parse(&text)
                .map(Some)
                .map_err(|_| invalid(format!("'{}' is not a valid X.509 thumbprint.", shown(&text)))),
        };
        let (primary, secondary) = (thumbprint(self.primary_thumbprint)?, thumbprint(self.secondary_thumbprint)?);
        Ok(AuthenticationRequest::SelfSigned { primary, secondary })
    }
}

/// As much of a text as an error should repeat.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

fn invalid(text: String) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";

    fn read(body: &Value) -> Result<AuthenticationRequest, HubError> {
        AuthenticationRequest::from_body(serde_json::from_value(body.clone()).expect("a body"))
    }

    fn fresh() -> [SharedKey; 2] {
        [SharedKey::from_random([1; 32]), SharedKey::from_random([2; 32])]
    }

    #[test]
    fn what_a_type_leads_to() {
        let (sha1, sha256) = ("aB".repeat(20), "0f".repeat(32));
        let none = json!({"primaryThumbprint": null, "secondaryThumbprint": null});
        let both = json!({"primaryThumbprint": sha1, "secondaryThumbprint": sha256});
        let no_keys = json!({"primaryKey": null, "secondaryKey": null});
        let keys = json!({"primaryKey": KEY, "secondaryKey": KEY});
        let made: [String; 2] = fresh().map(|key| key.to_base64());
        let made = json!({"primaryKey": made[0], "secondaryKey": made[1]});
        for (body, kind, key, thumbprints) in [
            (json!({}), "sas", &made, &none),
            (json!({"type": "sas", "symmetricKey": {"primaryKey": "", "secondaryKey": null}}), "sas", &made, &none),
            (json!({"type": "sas", "symmetricKey": keys, "x509Thumbprint": both}), "sas", &keys, &none),
            (json!({"symmetricKey": keys, "x509Thumbprint": none}), "sas", &keys, &none),
            (
                json!({"type": "selfSigned", "symmetricKey": keys, "x509Thumbprint": both}),
                "selfSigned",
                &no_keys,
                &both,
            ),
            (json!({"x509Thumbprint": both}), "selfSigned", &no_keys, &both),
            (json!({"type": "selfSigned"}), "selfSigned", &no_keys, &none),
            (json!({"type": "certificateAuthority"}), "certificateAuthority", &no_keys, &none),
        ] {
            let request = read(&body).expect("a request");
            let again = read(&request.to_json()).expect("its own words");
            for request in [request, again] {
                let shown = Authentication::of_request(request, fresh()).to_json();
                let expected = json!({"type": kind, "symmetricKey": key, "x509Thumbprint": thumbprints});
                assert_eq!(shown, expected, "{body}");
            }
        }
    }

    #[test]
    fn what_is_no_credential_is_refused_with_its_reason() {
        let colons = vec!["ab"; 20].join(":");
        for (body, text) in [
            (json!({"type": "none"}), "is none of"),
            (json!({"type": "selfsigned"}), "is none of"),
            (json!({"symmetricKey": {"primaryKey": KEY}}), "Either no keys or both"),
            (json!({"symmetricKey": {"primaryKey": KEY, "secondaryKey": "??"}}), "secondaryKey: the key is not base64"),
            (json!({"symmetricKey": {"primaryKey": KEY, "secondaryKey": "AAAA"}}), "3 bytes"),
            (json!({"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": colons}}), "not a valid X.509"),
            (json!({"x509Thumbprint": {"secondaryThumbprint": "ab"}}), "'ab' is not a valid X.509 thumbprint."),
        ] {
            let error = read(&body).expect_err("refused");
            assert_eq!(error.code, ErrorCode::ArgumentInvalid, "{body}");
            assert!(error.message.contains(text), "{body}: {error}");
        }
    }

    #[test]
    fn a_thumbprint_is_compared_without_its_case() {
        let thumbprint = |text: &str| Thumbprint::parse(text).expect("a thumbprint");
        assert_eq!(thumbprint(&"ab".repeat(20)), thumbprint(&"AB".repeat(20)));
        assert_ne!(thumbprint(&"ab".repeat(20)), thumbprint(&"ab".repeat(32)));
        assert_eq!(Thumbprint::of_digest(&[0xab; 20]), Ok(thumbprint(&"ab".repeat(20))));
        assert_eq!(Thumbprint::of_digest(&[0xab; 16]), Err(ThumbprintError));
        for text in ["", "ab", &"g".repeat(40), &"ä".repeat(20)] {
            assert_eq!(Thumbprint::parse(text), Err(ThumbprintError), "{text}");
        }
    }
}
