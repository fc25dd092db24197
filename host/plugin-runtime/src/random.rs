//! Random numbers for guests that are not granted any.
//!
//! Languages' runtimes ask for random numbers whether a plugin uses them or not, so something has to be there. What was
//! seen: Rust and JavaScript (QuickJS) take the keys of hash maps from `wasi:random/insecure-seed`, which promises no
//! secrecy; C asks for nothing; Python seeds its `random` module from `wasi:random/random` in the first call of each
//! instance. Without the grant, numbers follow from plugin, version, device and the time at which the instance was made
//! ([`Foretold`]): enough to hash and to spread load, and the same call can be played again.
//!
//! A guest that makes a key of such numbers would be worse off than one that is ended. So `wasi:random/random` answers
//! with them only to versions whose runtime cannot do without, which the self-test shows, and says so once in the log;
//! any other version traps there ([`Seeding`]).

use std::sync::atomic::{AtomicU8, Ordering};

use ring::digest::{Context, SHA256};

/// Numbers that look random, and that anyone who knows where they come from can tell in advance.
pub(crate) struct Foretold {
    state: u64,
}

impl Foretold {
    /// The numbers that follow from `parts`.
    pub(crate) fn new(parts: &[&[u8]]) -> Foretold {
        let mut digest = Context::new(&SHA256);
        for part in parts {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let mut state = [0; 8];
        state.copy_from_slice(&digest.finish().as_ref()[..8]);
        Foretold { state: u64::from_le_bytes(state) }
    }

    /// SplitMix64, which takes any seed.
    pub(crate) fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count.next_multiple_of(8));
        while bytes.len() < count {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// Whether a version's runtime asks for secure random numbers as it starts. Found out once, for all its instances.
#[derive(Debug, Default)]
pub(crate) struct Seeding(AtomicU8);

/// What becomes of a request for secure random numbers that are not granted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ungranted {
    /// It gets foretold ones; nobody has been told yet.
    First,
    /// It gets foretold ones.
    Again,
    /// It can do without, so the plugin itself wants them.
    Refused,
}

impl Seeding {
    pub(crate) fn ask(&self) -> Ungranted {
        match self.0.compare_exchange(UNKNOWN, ASKS, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ungranted::First,
            Err(ASKS) => Ungranted::Again,
            Err(_) => Ungranted::Refused,
        }
    }

    /// Code of the guest has run in the self-test; if it has not asked, it can do without.
    pub(crate) fn started(&self) {
        // Fails if it has asked.
        let _ = self.0.compare_exchange(UNKNOWN, ASKS_NOT, Ordering::Relaxed, Ordering::Relaxed);
    }
}

const UNKNOWN: u8 = 0;
const ASKS: u8 = 1;
const ASKS_NOT: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foretold_numbers_follow_from_what_they_come_from() {
        let bytes = |parts: &[&[u8]]| Foretold::new(parts).bytes(20);
        assert_eq!(bytes(&[b"door-1", b"v1"]), bytes(&[b"door-1", b"v1"]));
        assert_ne!(bytes(&[b"door-1", b"v1"]), bytes(&[b"door-2", b"v1"]));
        assert_ne!(bytes(&[b"door-1", b"v1"]), bytes(&[b"door-1v", b"1"]), "parts are kept apart");
        assert_eq!(bytes(&[]).len(), 20);
        let mut numbers = Foretold { state: 0 };
        // The first two of the published reference.
        assert_eq!((numbers.number(), numbers.number()), (0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4));
    }

    #[test]
    fn a_version_that_asks_as_it_starts_may_ask_again_and_another_may_not() {
        let asks = Seeding::default();
        assert_eq!(asks.ask(), Ungranted::First);
        asks.started();
        assert_eq!(asks.ask(), Ungranted::Again);
        let asks_not = Seeding::default();
        asks_not.started();
        assert_eq!(asks_not.ask(), Ungranted::Refused);
    }
}
