//! On what terms a plugin runs: its settings, what it may do beyond the device, and what it may spend.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use iothub_protocol::id::DeviceId;

use crate::catalog::DeviceGlob;

/// Together with the code they make a version: other terms are another version, which devices take as they take new
/// code. Not printable, since settings and environment can be secrets.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Settings that the guest can ask for.
    pub config: BTreeMap<String, String>,
    pub grants: Grants,
    pub limits: PluginLimits,
}

/// What a plugin may do through WASI. The default is nothing.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    /// Environment variables, by name. Never the host's own.
    pub environment: BTreeMap<String, String>,
    /// Where it may connect to by TCP and send datagrams by UDP; datagrams reach it from there only. It never listens.
    /// A guest that is granted any address may look up names, too (what they resolve to is checked like any address),
    /// and so tell something to whoever answers for a name.
    pub addresses: Vec<AddressGrant>,
    /// A folder of the host, in which each device has a folder of its own for each plugin: `PLUGIN/DEVICE`, made when
    /// it is needed, for the host's user only. The guest finds it as `/data`. What it writes there is no part of the
    /// call's transaction and of no limited size: use a file system of its own, or one with quotas, and one that tells
    /// capital letters from small ones, as device ids do. Time stamps in it show the host's clock. A guest can leave
    /// symbolic links there that lead elsewhere; it cannot follow them itself, and other programs had better not.
    pub folder: Option<PathBuf>,
    pub clock: ClockGrant,
    /// Random numbers that nobody can foretell. Without it numbers follow from plugin, version, device and the time at
    /// which the instance was made, and a guest that asks `wasi:random/random` traps, unless its language's runtime
    /// asks for them at the start.
    pub randomness: bool,
}

/// An address or a network, and the ports there, to which a guest may open connections. A network that includes the
/// host itself (127.0.0.0/8 and its own addresses) opens the services there, too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AddressGrant {
    pub network: IpAddr,
    /// Leading bits of `network` that count: 32 or 128 for one address.
    pub prefix: u8,
    /// `None` for every port.
    pub port: Option<u16>,
}

/// How well a guest may know the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ClockGrant {
    /// The time at which its call began, to the second, all through the call, by the wall clock and by the monotonic
    /// one: what a call does follows from what it was given. (A guest can still sleep; one that is after the time can
    /// guess it from what it gets done meanwhile.)
    #[default]
    CallStart,
    /// The time in steps of 100 milliseconds.
    Coarse,
    /// The host's clock.
    Real,
}

/// What a plugin may spend, where that is less than every plugin may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PluginLimits {
    /// How long one call may take. Never longer than [`RuntimeSettings::call_time_limit`](crate::RuntimeSettings).
    pub call_time: Option<Duration>,
    /// Bytes of memory of one instance. Never more than [`RuntimeSettings::memory_limit`](crate::RuntimeSettings).
    pub memory: Option<usize>,
}

/// The devices on which a plugin runs. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Placement {
    #[default]
    Everywhere,
    /// On devices that match one of the patterns or are named.
    On { patterns: Vec<DeviceGlob>, devices: Arc<BTreeSet<DeviceId>> },
}

impl Placement {
    pub fn includes(&self, device: &DeviceId) -> bool {
        match self {
            Placement::Everywhere => true,
            Placement::On { patterns, devices } => {
                devices.contains(device) || patterns.iter().any(|pattern| pattern.matches(device))
            }
        }
    }

    /// Whether there can be a device that both include.
    pub fn overlaps(&self, other: &Placement) -> bool {
        let any = |one: &Placement, other: &Placement| one.named().any(|device| other.includes(device));
        let patterns = || self.patterns().iter().any(|one| other.patterns().iter().any(|other| one.overlaps(other)));
        any(self, other) || any(other, self) || patterns()
    }

    fn patterns(&self) -> &[DeviceGlob] {
        static ALL: LazyLock<[DeviceGlob; 1]> = LazyLock::new(|| [DeviceGlob::all()]);
        match self {
            Placement::Everywhere => &*ALL,
            Placement::On { patterns, .. } => patterns,
        }
    }

    fn named(&self) -> impl Iterator<Item = &DeviceId> {
        let devices = match self {
            Placement::Everywhere => None,
            Placement::On { devices, .. } => Some(devices),
        };
        devices.into_iter().flat_map(|devices| devices.iter())
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(patterns: &[&str], devices: &[&str]) -> Placement {
        let patterns = patterns.iter().map(|text| DeviceGlob::parse(text).expect("a pattern"));
        let devices = devices.iter().map(|id| DeviceId::parse(id).expect("an id"));
        Placement::On { patterns: patterns.collect(), devices: Arc::new(devices.collect()) }
    }

    #[test]
    fn placements_overlap_by_pattern_by_id_and_by_both() {
        let nowhere = on(&[], &[]);
        for (one, other, expected) in [
            (&Placement::Everywhere, &Placement::Everywhere, true),
            (&Placement::Everywhere, &on(&["x*"], &[]), true),
            (&Placement::Everywhere, &on(&[], &["x"]), true),
            (&Placement::Everywhere, &nowhere, false),
            (&nowhere, &nowhere, false),
            (&on(&["door-*"], &[]), &on(&["gate-*", "*-1"], &[]), true),
            (&on(&["door-*"], &[]), &on(&["gate-*", "hall"], &[]), false),
            (&on(&["door-*"], &[]), &on(&[], &["gate-1", "door-1"]), true),
            (&on(&["door-*"], &[]), &on(&[], &["gate-1"]), false),
            (&on(&[], &["a", "b"]), &on(&[], &["b", "c"]), true),
            (&on(&[], &["a", "b"]), &on(&[], &["c"]), false),
        ] {
            assert_eq!((one.overlaps(other), other.overlaps(one)), (expected, expected), "{one:?} {other:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_overlaps_shares_a_device(
            one in (proptest::collection::vec("[ab*]{1,3}", 0..3), proptest::collection::vec("[ab]{1,3}", 0..3)),
            other in (proptest::collection::vec("[ab*]{1,3}", 0..3), proptest::collection::vec("[ab]{1,3}", 0..3)),
        ) {
            let placement = |(patterns, devices): &(Vec<String>, Vec<String>)| on(
                &patterns.iter().map(String::as_str).collect::<Vec<_>>(),
                &devices.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            let (one, other) = (placement(&one), placement(&other));
            let ids = (1..=6).flat_map(|length| (0..1_u32 << length).map(move |bits| -> String {
                (0..length).map(|bit| if bits >> bit & 1 == 0 { 'a' } else { 'b' }).collect()
            }));
            let found = ids.map(|id| DeviceId::parse(&id).expect("an id"))
                .any(|id| one.includes(&id) && other.includes(&id));
            proptest::prop_assert_eq!(one.overlaps(&other), found);
        }
    }
}
