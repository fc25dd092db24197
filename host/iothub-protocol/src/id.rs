//! Names that cannot hold a wrong value: checked once, where they enter.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{kind} is empty")]
    Empty { kind: &'static str },
    #[error("{kind} is longer than {limit} characters")]
    TooLong { kind: &'static str, limit: usize },
    #[error("{kind} contains {character:?}; allowed are {allowed}")]
    Character { kind: &'static str, character: char, allowed: &'static str },
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $limit:literal, $allowed_text:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn parse(text: &str) -> Result<$name, IdError> {
                let allowed: fn(char) -> bool = $allowed;
                if text.is_empty() {
                    return Err(IdError::Empty { kind: $kind });
                }
                if let Some(character) = text.chars().find(|&c| !allowed(c)) {
                    return Err(IdError::Character { kind: $kind, character, allowed: $allowed_text });
                }
                if text.chars().count() > $limit {
                    return Err(IdError::TooLong { kind: $kind, limit: $limit });
                }
                Ok($name(Arc::from(text)))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<$name, IdError> {
                $name::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.to_string()
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<$name, IdError> {
                $name::parse(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

id!(
    /// A device's name in its hub: up to 128 case-sensitive characters. The identity registry's rule.
    ///
    /// `#` and `+` are legal in an id although they are wildcards in an MQTT filter; an id is only ever put into
    /// topics, never into filters.
    DeviceId,
    "a device id",
    128,
    "ASCII letters, digits and - . + % _ # * ? ! ( ) , : = @ $ '",
    |c| c.is_ascii_alphanumeric() || "-.+%_#*?!(),:=@$'".contains(c)
);

id!(
    /// A module's name in its device: the same characters as a device's.
    ModuleId,
    "a module id",
    128,
    "ASCII letters, digits and - . + % _ # * ? ! ( ) , : = @ $ '",
    |c| c.is_ascii_alphanumeric() || "-.+%_#*?!(),:=@$'".contains(c)
);

impl DeviceId {
    /// Where a device stands in every rollout, 0 to 99, and how those with the same place are ordered. The same on every
    /// host and in every version of it, so that a canary of 5 % and a job's first 5 % are about the same devices.
    pub fn rollout_place(&self) -> (u8, u64) {
        rollout_place(self.as_str())
    }
}

pub(crate) fn rollout_place(text: &str) -> (u8, u64) {
    // FNV-1a, stirred once more as its low bits are weak.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    ((hash % 100) as u8, hash)
}

id!(
    /// The model that a device says it implements: a digital twin model identifier (DTMI), such as
    /// `dtmi:com:example:Thermostat;1`. The characters and the length are those of DTDL, version 2.
    ModelId,
    "a model id",
    2048,
    "ASCII letters, digits and _ : ; .",
    |c| c.is_ascii_alphanumeric() || "_:;.".contains(c)
);

id!(
    /// A direct method's name: printable ASCII except separators, up to 100 characters.
    ///
    /// The documentation names the characters; the length is our choice, made so that a topic stays small.
    MethodName,
    "a method name",
    100,
    "printable ASCII except $ ( ) < > @ , ; : \\ \" / [ ] ? = { } and space",
    |c| c.is_ascii_graphic() && !"$()<>@,;:\\\"/[]?={}".contains(c)
);

id!(
    /// A job's name, chosen by who creates it: up to 128 characters, as a device id without the odd ones that a
    /// path could not carry.
    JobId,
    "a job id",
    128,
    "ASCII letters, digits and - . _ : = @ + % ' ( ) ! *",
    |c| c.is_ascii_alphanumeric() || "-._:=@+%'()!*".contains(c)
);

id!(
    /// The name of a job's template: up to 128 characters.
    TemplateName,
    "a template's name",
    128,
    "ASCII letters, digits and - . _",
    |c| c.is_ascii_alphanumeric() || "-._".contains(c)
);

id!(
    /// A configuration's name: up to 128 characters, lower-case letters among them, as Azure documents.
    ConfigurationId,
    "a configuration id",
    128,
    "lower-case ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; '",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-:.+%_#*?!(),=@;'".contains(c)
);

id!(
    /// The `$rid` that pairs a request with its answer on a device connection. Opaque; kept short and safe for URLs
    /// by whoever makes one.
    RequestId,
    "a request id",
    256,
    "printable ASCII except & # ? and space",
    |c| c.is_ascii_graphic() && !"&#?".contains(c)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_refused_with_the_reason() {
        assert_eq!(DeviceId::parse("door-0001").map(|id| id.to_string()), Ok("door-0001".to_owned()));
        assert_eq!(DeviceId::parse(""), Err(IdError::Empty { kind: "a device id" }));
        assert_eq!(
            DeviceId::parse("a/b").expect_err("a slash").to_string(),
            "a device id contains '/'; allowed are ASCII letters, digits and - . + % _ # * ? ! ( ) , : = @ $ '"
        );
        assert!(DeviceId::parse(&"a".repeat(128)).is_ok());
        assert!(matches!(DeviceId::parse(&"a".repeat(129)), Err(IdError::TooLong { limit: 128, .. })));
    }

    #[test]
    fn a_method_name_has_no_separators() {
        for name in ["lockDoor", "a-b_c.d*e", "x!"] {
            assert!(MethodName::parse(name).is_ok(), "{name}");
        }
        for name in ["", "lock door", "lock/door", "lock?", "$x", "lökk"] {
            assert!(MethodName::parse(name).is_err(), "{name}");
        }
    }
}
