//! How many instances a machine can hold.
//!
//! Two things run out. Memory maps: the kernel gives a process so many (`vm.max_map_count`, usually 65,530), and once they
//! are gone not only the next instance fails but whatever the host allocates, which ends it. And memory.

use crate::engine::{MEMORIES_EACH, SPARE};
use crate::settings::RuntimeSettings;

/// What a machine lets this process have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Memory maps that a process may have, `vm.max_map_count`.
    pub max_maps: u64,
    /// Those that this process has, without a runtime.
    pub maps: u64,
    /// Bytes of memory that this process may still take.
    pub memory: u64,
}

impl Machine {
    /// A suitable [`RuntimeSettings::max_resident`]; at least 1, at most [`MAX_RESIDENT`].
    pub fn resident_cap(&self, settings: &RuntimeSettings) -> u32 {
        let by_memory = u32::try_from(self.memory / MEMORY_SHARE / MEMORY_EACH).unwrap_or(u32::MAX);
        self.resident_that_fit(settings).min(by_memory).clamp(1, MAX_RESIDENT)
    }

    /// The largest [`RuntimeSettings::max_resident`] with which the maps cannot run out.
    pub fn resident_that_fit(&self, settings: &RuntimeSettings) -> u32 {
        let free = self.max_maps.saturating_sub(self.maps);
        let instances = free / MAPS_SHARE.1 * MAPS_SHARE.0 / MAPS_EACH;
        let others = beside_resident(settings);
        u32::try_from(instances.saturating_sub(others)).unwrap_or(u32::MAX)
    }

    /// Memory maps that so many resident instances may come to.
    pub fn maps_of(&self, resident: u32, settings: &RuntimeSettings) -> u64 {
        (u64::from(resident) + beside_resident(settings)) * MAPS_EACH
    }

    /// A `vm.max_map_count` under which so many resident instances fit.
    pub fn max_maps_for(&self, resident: u32, settings: &RuntimeSettings) -> u64 {
        self.maps + self.maps_of(resident, settings).div_ceil(MAPS_SHARE.0) * MAPS_SHARE.1
    }
}

/// The pool has room for these as well.
fn beside_resident(settings: &RuntimeSettings) -> u64 {
    u64::from(settings.max_in_flight) + u64::from(SPARE)
}

/// More are of no use to anybody, since a fresh instance takes microseconds; and the address space that is set aside for
/// so many, 8 GiB each, is half of what 47 bits can address.
pub const MAX_RESIDENT: u32 = 8192;
/// Maps of one place in the pool: 2 for its stack and the page that guards it, which are there from the start; and for
/// each memory up to 4, since what the component initialises is mapped between what it does not and what is out of reach.
/// They stay when the instance goes, for the next one in that place. Counted on Linux 6.18: 2 and 4 for plugins with one
/// memory in Rust, C and Python, 2 and 3 in JavaScript.
const MAPS_EACH: u64 = 2 + 4 * MEMORIES_EACH as u64;
/// Three quarters of the free maps are for instances. The rest is for the code of loaded versions (3 each), threads, and
/// the allocator of the host, which has no other limit.
const MAPS_SHARE: (u64, u64) = (3, 4);
/// Bytes of one instance after a call. One in Python has 5.6 MB, in JavaScript 0.5 MB, in Rust 0.06 MB. A guest may take
/// as much as the memory limit says, but hardly all of them at once.
const MEMORY_EACH: u64 = 6 << 20;
/// One half of the memory is for instances: the other is for devices, stores and compiled code, and for guests that
/// take more than their like.
const MEMORY_SHARE: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_cap_follows_the_scarcer_of_maps_and_memory() {
        let settings = RuntimeSettings { max_in_flight: 64, ..RuntimeSettings::default() };
        for (max_maps, maps, memory, cap) in [
            // A server with the kernel's default.
            (65_530, 130, 64 * GIB, 4840),
            // The same with much more in it already.
            (65_530, 30_130, 64 * GIB, 2590),
            // A distribution that has raised the limit.
            (1_048_576, 130, 64 * GIB, 5461),
            (1_048_576, 130, 512 * GIB, MAX_RESIDENT),
            // A laptop, a gateway, a small container.
            (65_530, 130, 8 * GIB, 682),
            (65_530, 130, GIB, 85),
            (65_530, 130, 64 << 20, 5),
            // Where nothing is left, devices take turns.
            (65_530, 130, 0, 1),
            (100, 130, GIB, 1),
        ] {
            let machine = Machine { max_maps, maps, memory };
            assert_eq!(machine.resident_cap(&settings), cap, "{machine:?}");
        }
    }

    #[test]
    fn what_is_said_to_make_room_makes_room() {
        for (max_in_flight, maps, wanted) in [(64, 130, 8192), (0, 130, 1), (64, 0, 4841), (3, 77, 5000)] {
            let settings = RuntimeSettings { max_in_flight, ..RuntimeSettings::default() };
            let machine = Machine { max_maps: 65_530, maps, memory: 0 };
            let raised = Machine { max_maps: machine.max_maps_for(wanted, &settings), ..machine };
            assert_eq!(raised.resident_that_fit(&settings), wanted);
            assert!(raised.maps + raised.maps_of(wanted, &settings) < raised.max_maps);
        }
    }
}
