//! Devices and modules have tables of the same form, so that walking over all devices costs nothing for their modules.

use iothub_protocol::address::Address;
use iothub_protocol::query::Source;

/// Whose tables. The key of a module's rows is its address, `device/module`; those of one device stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Devices,
    Modules,
}

impl Kind {
    pub(crate) fn of(address: &Address) -> Kind {
        if address.is_module() { Kind::Modules } else { Kind::Devices }
    }

    /// What a query is over, apart from jobs, which are not here.
    pub(crate) fn of_source(source: Source) -> Kind {
        match source {
            Source::Modules => Kind::Modules,
            Source::Devices | Source::Jobs => Kind::Devices,
        }
    }

    /// The table of identities.
    pub(super) fn identities(self) -> &'static str {
        match self {
            Kind::Devices => "devices",
            Kind::Modules => "modules",
        }
    }

    /// The table of twins.
    pub(super) fn twins(self) -> &'static str {
        match self {
            Kind::Devices => "twins",
            Kind::Modules => "module_twins",
        }
    }
}

/// The keys of a device's modules: from the first on, and below the second. No character of an id lies between the two
/// that stand at their ends.
pub(crate) fn modules_of(device: &str) -> (String, String) {
    (format!("{device}/"), format!("{device}0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_modules_stand_together_and_without_others() {
        let (from, below) = modules_of("d1");
        for (key, expected) in [
            ("d1/m", true),
            ("d1/$edgeAgent", true),
            ("d1/'", true),
            ("d1/zzz", true),
            ("d1", false),
            ("d10/m", false),
            ("d1!/m", false),
            ("d1.5/m", false),
            ("d1z/m", false),
            ("d2/m", false),
        ] {
            assert_eq!((from.as_str()..below.as_str()).contains(&key), expected, "{key}");
        }
    }
}
