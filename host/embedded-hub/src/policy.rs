//! Shared access policies of the hub: named keys with rights.

use iothub_protocol::sas::{SharedKey, Token};

/// What a policy's key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    pub const REGISTRY_READ: Rights = Rights(1);
    pub const REGISTRY_WRITE: Rights = Rights(2);
    pub const SERVICE_CONNECT: Rights = Rights(4);
    pub const DEVICE_CONNECT: Rights = Rights(8);

    pub fn contains(self, wanted: Rights) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    const fn and(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

/// A named pair of keys.
#[derive(Debug, Clone)]
pub struct Policy {
    pub name: String,
    pub rights: Rights,
    pub primary_key: SharedKey,
    pub secondary_key: SharedKey,
}

/// The five policies that every IoT Hub begins with.
pub(crate) const DEFAULT_POLICIES: [(&str, Rights); 5] = [
    (
        "iothubowner",
        Rights::REGISTRY_READ.and(Rights::REGISTRY_WRITE).and(Rights::SERVICE_CONNECT).and(Rights::DEVICE_CONNECT),
    ),
    ("service", Rights::SERVICE_CONNECT),
    ("device", Rights::DEVICE_CONNECT),
    ("registryRead", Rights::REGISTRY_READ),
    ("registryReadWrite", Rights::REGISTRY_READ.and(Rights::REGISTRY_WRITE)),
];

impl Policy {
    /// Whether one of the policy's keys made the token's signature.
    pub fn signed(&self, token: &Token<'_>) -> bool {
        token.signed_by(&self.primary_key) || token.signed_by(&self.secondary_key)
    }
}

/// A new random key.
pub(crate) fn random_key() -> SharedKey {
    SharedKey::from_random(rand::random())
}
