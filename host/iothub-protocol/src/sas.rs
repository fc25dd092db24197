//! Shared access signatures: how a device and a back end prove who they are.
//!
//! The signature covers the resource and the expiry **exactly as they stand in the token**: SDKs escape them in
//! different ways, so nothing here decodes before verifying and nothing encodes again.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;

use crate::address::Address;

/// Bytes of a generated key; the hub makes 32.
pub const KEY_BYTES: usize = 32;

const UNRESERVED_KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A symmetric key. Its `Debug` shows nothing, it has no `Display`, and comparing is left to [`Token::signed_by`].
#[derive(Clone)]
pub struct SharedKey(Box<[u8]>);

impl SharedKey {
    /// From base64, as connection strings and the registry carry it.
    pub fn parse(text: &str) -> Result<SharedKey, SasError> {
        let bytes = BASE64.decode(text).map_err(|_| SasError::KeyNotBase64)?;
        if !(16..=64).contains(&bytes.len()) {
            return Err(SasError::KeyLength { found: bytes.len() });
        }
        Ok(SharedKey(bytes.into()))
    }

    /// From random bytes.
    pub fn from_random(bytes: [u8; KEY_BYTES]) -> SharedKey {
        SharedKey(Box::new(bytes))
    }

    /// Base64, for where a key must be handed over: a connection string or the registry's answer.
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0)
    }

    /// A token for `resource` (not yet escaped, such as `localhost/devices/d1`), valid until `expiry`.
    /// `policy` names the hub's policy whose key this is; `None` for a device's own key.
    pub fn sign(&self, resource: &str, policy: Option<&str>, expiry: DateTime<Utc>) -> String {
        let resource = utf8_percent_encode(resource, UNRESERVED_KEPT).to_string();
        let expiry = expiry.timestamp().to_string();
        let signature = hmac::sign(&self.hmac_key(), signed_text(&resource, &expiry).as_bytes());
        let signature = BASE64.encode(signature);
        let signature = utf8_percent_encode(&signature, UNRESERVED_KEPT);
        let policy =
            policy.map(|name| format!("&skn={}", utf8_percent_encode(name, UNRESERVED_KEPT))).unwrap_or_default();
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{policy}")
    }

    fn hmac_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(…)")
    }
}

/// Why a key or token is refused. Never holds any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SasError {
    #[error("the key is not base64")]
    KeyNotBase64,
    #[error("the key has {found} bytes; 16 to 64 are allowed")]
    KeyLength { found: usize },
    #[error("the token does not begin with \"SharedAccessSignature \"")]
    Scheme,
    #[error("the token has no usable {field}")]
    Field { field: &'static str },
}

/// A token taken apart, not yet trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Token<'a> {
    resource: &'a str,
    expiry_text: &'a str,
    signature: Vec<u8>,
    policy: Option<String>,
    expiry: i64,
}

impl<'a> Token<'a> {
    /// Take a token apart: fields in any order, `sig` percent-decoded (`+` is no space), the rest left as it is.
    pub fn parse(text: &'a str) -> Result<Token<'a>, SasError> {
        let fields = text.strip_prefix("SharedAccessSignature ").ok_or(SasError::Scheme)?;
        let (mut resource, mut signature, mut expiry_text, mut policy) = (None, None, None, None);
        for field in fields.trim().split('&') {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            match name {
                "sr" => resource = Some(value),
                "sig" => signature = Some(value),
                "se" => expiry_text = Some(value),
                "skn" => policy = Some(value),
                _ => {}
            }
        }
        let resource = resource.filter(|text| !text.is_empty()).ok_or(SasError::Field { field: "sr" })?;
        let expiry_text = expiry_text.ok_or(SasError::Field { field: "se" })?;
        let expiry = expiry_text.parse().map_err(|_| SasError::Field { field: "se" })?;
        let signature: Vec<u8> = percent_decode_str(signature.ok_or(SasError::Field { field: "sig" })?).collect();
        let signature = BASE64.decode(signature).map_err(|_| SasError::Field { field: "sig" })?;
        let policy = match policy.filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => {
                Some(percent_decode_str(name).decode_utf8().map_err(|_| SasError::Field { field: "skn" })?.into_owned())
            }
        };
        Ok(Token { resource, expiry_text, signature, policy, expiry })
    }

    /// The hub policy whose key signed this, if it was one.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// Seconds since 1970 at which it ends.
    pub fn expiry(&self) -> i64 {
        self.expiry
    }

    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.expiry <= now.timestamp()
    }

    /// Whether `key` made this signature. Takes the same time for every wrong signature.
    pub fn signed_by(&self, key: &SharedKey) -> bool {
        let text = signed_text(self.resource, self.expiry_text);
        hmac::verify(&key.hmac_key(), text.as_bytes(), &self.signature).is_ok()
    }

    /// Whether the token reaches the whole hub, and so every device.
    pub fn covers_hub(&self) -> bool {
        self.path().is_some_and(|path| path.is_empty())
    }

    /// Whether the token reaches the identity registry: the hub, or `devices`.
    pub fn covers_registry(&self) -> bool {
        self.path().is_some_and(|path| path.is_empty() || path == ["devices"])
    }

    /// Whether the token reaches this device or module: by segments, so that `devices/a` does not cover `devices/ab`. What
    /// reaches a device reaches its modules.
    pub fn covers(&self, address: &Address) -> bool {
        self.path().is_some_and(|path| {
            let whole = address.path();
            let mut segments = whole.split('/');
            path.iter().all(|segment| segments.next() == Some(segment))
        })
    }

    /// The segments after the host. The host itself is not compared: it may carry a port or be a gateway's name.
    fn path(&self) -> Option<Vec<String>> {
        let decoded = percent_decode_str(self.resource).decode_utf8().ok()?;
        Some(decoded.split('/').skip(1).filter(|segment| !segment.is_empty()).map(str::to_owned).collect())
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("resource", &self.resource).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Whether two secrets are equal, found out in a time that tells nothing of where they differ.
pub fn same_secret(given: &str, expected: &str) -> bool {
    // Both are hashed under one random-looking key, so that neither length nor content shows in the comparison.
    let key = hmac::Key::new(hmac::HMAC_SHA256, expected.as_bytes());
    hmac::verify(&key, expected.as_bytes(), hmac::sign(&key, given.as_bytes()).as_ref()).is_ok()
}

fn signed_text(resource: &str, expiry: &str) -> String {
    format!("{resource}\n{expiry}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";

    /// Tokens made by the SDKs themselves.
    const VECTORS: [(&str, &str); 5] = [
        ("device", "sr=localhost%2Fdevices%2Fd1&sig=rtHqe50k1QzEHDv6NbHzl7RNgybv8hUeBrTlKITB3hU%3D&se=1900000000"),
        (
            "Node policy",
            "sr=localhost&sig=cQBmQA9htOQDhbTODbjgw%2BryR6b%2F9e0958tU04fK%2B2U%3D&skn=iothubowner&se=1900000000",
        ),
        (
            "Python policy, raw slash",
            "sr=localhost&sig=cQBmQA9htOQDhbTODbjgw%2BryR6b/9e0958tU04fK%2B2U%3D&se=1900000000&skn=iothubowner",
        ),
        (
            "Python policy, port",
            "sr=localhost%3A18443&sig=dmM8dPA5KnDgDv2chXPAOLgQVh9t1R6ww1bxIqUoYrY%3D&se=1900000000&skn=iothubowner",
        ),
        (
            "Node module",
            "sr=localhost%3A8443%2Fdevices%2Fdev%20%281%29%2Fmodules%2Fm1&sig=fHWNzyc1eqtjaIbajKwGO5iw5qTZ%2FN4n%2FEdQgV5%2Bz7c%3D&se=1900000000",
        ),
    ];

    fn key() -> SharedKey {
        SharedKey::parse(KEY).expect("a key")
    }

    #[test]
    fn tokens_of_the_sdks_verify_as_they_stand() {
        let other = SharedKey::from_random([7; KEY_BYTES]);
        for (name, fields) in VECTORS {
            let text = format!("SharedAccessSignature {fields}");
            let token = Token::parse(&text).expect(name);
            assert!(token.signed_by(&key()), "{name}");
            assert!(!token.signed_by(&other), "{name}");
        }
    }

    #[test]
    fn our_own_token_equals_the_sdks() {
        let expiry = DateTime::from_timestamp(1_900_000_000, 0).expect("a time");
        let token = key().sign("localhost/devices/d1", None, expiry);
        assert_eq!(token, format!("SharedAccessSignature {}", VECTORS[0].1));
        let token = key().sign("localhost:18443", Some("iothubowner"), expiry);
        assert_eq!(token, format!("SharedAccessSignature {}", VECTORS[3].1));
    }

    #[test]
    fn secrets_are_equal_or_not() {
        assert!(same_secret("abc", "abc"));
        for other in ["", "abd", "abcd", "ab"] {
            assert!(!same_secret(other, "abc"), "{other}");
        }
    }

    #[test]
    fn scope_goes_by_segment() {
        let covers = |resource: &str, device: &str| {
            let text = format!("SharedAccessSignature sr={resource}&sig=AAAA&se=1");
            Token::parse(&text).expect("a token").covers(&Address::parse(device).expect("an address"))
        };
        assert!(covers("h%2Fdevices%2Fa", "a"));
        assert!(covers("h%3A1%2fdevices%2fa", "a"));
        assert!(covers("h", "a"));
        assert!(covers("h%2Fdevices", "a"));
        assert!(!covers("h%2Fdevices%2Fa", "ab"));
        assert!(!covers("h%2Fdevices%2FA", "a"));
        assert!(!covers("h%2Fdevices%2Fa%2Fmodules%2Fm", "a"));
        assert!(covers("h%2Fdevices%2Fa%2Fmodules%2Fm", "a/m"));
        assert!(covers("h%2Fdevices%2Fa", "a/m"));
        assert!(covers("h", "a/m"));
        assert!(!covers("h%2Fdevices%2Fa%2Fmodules%2Fm", "a/mm"));
        assert!(!covers("h%2Fdevices%2Fa%2Fmodules", "a"));
        assert!(!covers("h%2Fdevices%2Fa%2Fmodules%2Fm%2Fx", "a/m"));
    }

    #[test]
    fn a_bad_token_is_named_without_being_shown() {
        for (text, error) in [
            ("Bearer x", SasError::Scheme),
            ("SharedAccessSignature sig=AA&se=1", SasError::Field { field: "sr" }),
            ("SharedAccessSignature sr=h&se=1", SasError::Field { field: "sig" }),
            ("SharedAccessSignature sr=h&sig=%%%&se=1", SasError::Field { field: "sig" }),
            ("SharedAccessSignature sr=h&sig=AAAA&se=soon", SasError::Field { field: "se" }),
        ] {
            assert_eq!(Token::parse(text).map(|_| ()), Err(error), "{text}");
        }
        assert_eq!(format!("{:?}", key()), "SharedKey(…)");
    }
}
