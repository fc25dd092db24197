//! What Azure's tiers allow: the numbers of its documents, and nothing else.
//!
//! Rates, concurrent jobs, message sizes: learn.microsoft.com, "IoT Hub quotas and throttling". Messages a day and what
//! they are counted in: "Azure IoT Hub pricing" and "IoT Hub billing information". Units: "Azure subscription limits".

use std::fmt;
use std::time::Duration;

use crate::configuration::MAX_CONFIGURATIONS;

/// A tier of IoT Hub, by the name of its first size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    F1,
    S1,
    S2,
    S3,
}

/// A tier with a number of units, which multiply most of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sku {
    tier: Tier,
    units: u32,
}

/// Why there is no hub of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hub of the tier {tier} has 1 to {most} units")]
pub struct SkuError {
    tier: Tier,
    most: u32,
}

/// What is limited by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Create, retrieve, list, update and delete identities, and the statistics.
    Registry,
    /// New connections of devices.
    Connections,
    /// Device-to-cloud messages.
    Telemetry,
    /// Cloud-to-device messages on their way in.
    CloudSends,
    /// Cloud-to-device messages that a device takes over HTTPS.
    CloudReceives,
    /// Direct methods, which are limited in bytes and not in calls.
    Methods,
    Queries,
    TwinReads,
    TwinUpdates,
    /// Create, cancel, show and list jobs.
    Jobs,
    /// What jobs do on devices.
    JobDevices,
    /// Automatic device management.
    Configurations,
}

/// So much in so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub amount: u64,
    pub per: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Direct methods are metered in steps of so many bytes.
pub const METHOD_STEP: u64 = 4 * 1024;
const KIB: u64 = 1024;

impl Tier {
    pub const ALL: [Tier; 4] = [Tier::F1, Tier::S1, Tier::S2, Tier::S3];

    pub fn name(self) -> &'static str {
        match self {
            Tier::F1 => "F1",
            Tier::S1 => "S1",
            Tier::S2 => "S2",
            Tier::S3 => "S3",
        }
    }

    /// By its name, in either case.
    pub fn by_name(name: &str) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| tier.name().eq_ignore_ascii_case(name))
    }

    /// Units that can be had without asking Microsoft.
    pub fn most_units(self) -> u32 {
        match self {
            Tier::F1 => 1,
            Tier::S1 | Tier::S2 => 200,
            Tier::S3 => 10,
        }
    }

    fn pick<T>(self, small: T, middle: T, large: T) -> T {
        match self {
            Tier::F1 | Tier::S1 => small,
            Tier::S2 => middle,
            Tier::S3 => large,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Class {
    pub const ALL: [Class; 12] = [
        Class::Registry,
        Class::Connections,
        Class::Telemetry,
        Class::CloudSends,
        Class::CloudReceives,
        Class::Methods,
        Class::Queries,
        Class::TwinReads,
        Class::TwinUpdates,
        Class::Jobs,
        Class::JobDevices,
        Class::Configurations,
    ];

    /// As the operator reads it.
    pub fn name(self) -> &'static str {
        match self {
            Class::Registry => "registry",
            Class::Connections => "connections",
            Class::Telemetry => "telemetry",
            Class::CloudSends => "cloudSends",
            Class::CloudReceives => "cloudReceives",
            Class::Methods => "methods",
            Class::Queries => "queries",
            Class::TwinReads => "twinReads",
            Class::TwinUpdates => "twinUpdates",
            Class::Jobs => "jobs",
            Class::JobDevices => "jobDevices",
            Class::Configurations => "configurations",
        }
    }
}

impl Sku {
    /// # Errors
    /// If the tier does not come in that many units.
    pub fn new(tier: Tier, units: u32) -> Result<Sku, SkuError> {
        let most = tier.most_units();
        if (1..=most).contains(&units) { Ok(Sku { tier, units }) } else { Err(SkuError { tier, most }) }
    }

    pub fn tier(self) -> Tier {
        self.tier
    }

    pub fn units(self) -> u32 {
        self.units
    }

    /// The rate of a class; of [`Class::Methods`] in bytes.
    pub fn rate(self, class: Class) -> Rate {
        let tier = self.tier;
        match class {
            Class::Registry | Class::CloudSends | Class::Jobs => self.each(tier.pick(100, 100, 5000), MINUTE),
            Class::CloudReceives => self.each(tier.pick(1000, 1000, 50_000), MINUTE),
            Class::Connections | Class::Telemetry => self.at_least(tier.pick(100, 0, 0), tier.pick(12, 120, 6000)),
            Class::Methods => self.each(tier.pick(160 * KIB, 480 * KIB, 24 * KIB * KIB), SECOND),
            Class::Queries => self.each(tier.pick(20, 20, 1000), MINUTE),
            Class::TwinReads => self.at_least(tier.pick(100, 100, 0), tier.pick(0, 10, 500)),
            Class::TwinUpdates => self.at_least(tier.pick(50, 50, 0), tier.pick(0, 5, 250)),
            Class::JobDevices => self.at_least(tier.pick(10, 10, 0), tier.pick(0, 1, 50)),
            Class::Configurations => self.each(20, MINUTE),
        }
    }

    /// Messages a day.
    pub fn daily_messages(self) -> u64 {
        let each = match self.tier {
            Tier::F1 => 8000,
            Tier::S1 => 400_000,
            Tier::S2 => 6_000_000,
            Tier::S3 => 300_000_000,
        };
        each * u64::from(self.units)
    }

    /// Bytes that count as one message.
    pub fn message_block(self) -> u64 {
        if self.tier == Tier::F1 { 512 } else { 4 * KIB }
    }

    pub fn concurrent_jobs(self) -> usize {
        self.tier.pick(1, 5, 10)
    }

    /// Configurations of automatic device management.
    pub fn configurations(self) -> usize {
        if self.tier == Tier::F1 { 20 } else { MAX_CONFIGURATIONS }
    }

    /// Devices that can be registered.
    pub fn devices(self) -> usize {
        if self.tier == Tier::F1 { 500 } else { 1_000_000 }
    }

    fn each(self, amount: u64, per: Duration) -> Rate {
        Rate { amount: amount * u64::from(self.units), per }
    }

    /// The higher of a rate for the hub and one for each unit, a second.
    fn at_least(self, hub: u64, unit: u64) -> Rate {
        Rate { amount: hub.max(unit * u64::from(self.units)), per: SECOND }
    }
}

impl fmt::Display for Sku {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = if self.units == 1 { "unit" } else { "units" };
        write!(f, "{} with {} {units}", self.tier, self.units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(tier: Tier, units: u32, class: Class) -> (u64, u64) {
        let Rate { amount, per } = Sku::new(tier, units).expect("a size").rate(class);
        (amount, per.as_secs())
    }

    #[test]
    fn the_numbers_are_those_of_the_documents() {
        use Class::*;
        use Tier::*;
        for (class, expected) in [
            (Registry, [(100, 60), (100, 60), (100, 60), (5000, 60)]),
            (Connections, [(100, 1), (100, 1), (120, 1), (6000, 1)]),
            (Telemetry, [(100, 1), (100, 1), (120, 1), (6000, 1)]),
            (CloudSends, [(100, 60), (100, 60), (100, 60), (5000, 60)]),
            (CloudReceives, [(1000, 60), (1000, 60), (1000, 60), (50_000, 60)]),
            (Methods, [(163_840, 1), (163_840, 1), (491_520, 1), (25_165_824, 1)]),
            (Queries, [(20, 60), (20, 60), (20, 60), (1000, 60)]),
            (TwinReads, [(100, 1), (100, 1), (100, 1), (500, 1)]),
            (TwinUpdates, [(50, 1), (50, 1), (50, 1), (250, 1)]),
            (Jobs, [(100, 60), (100, 60), (100, 60), (5000, 60)]),
            (JobDevices, [(10, 1), (10, 1), (10, 1), (50, 1)]),
            (Configurations, [(20, 60); 4]),
        ] {
            assert_eq!(Tier::ALL.map(|tier| rate(tier, 1, class)), expected, "{class:?}");
        }
        let configurations = Tier::ALL.map(|tier| Sku::new(tier, 1).expect("a size").configurations());
        assert_eq!(configurations, [20, 100, 100, 100]);
        // Units count where they do: the documents' own examples, and the higher of two.
        assert_eq!((rate(S1, 2, Telemetry), rate(S1, 9, Telemetry)), ((100, 1), (108, 1)));
        assert_eq!((rate(S1, 200, TwinReads), rate(S2, 20, TwinReads)), ((100, 1), (200, 1)));
        assert_eq!((rate(S2, 9, JobDevices), rate(S2, 20, JobDevices)), ((10, 1), (20, 1)));
        assert_eq!((rate(S1, 3, Registry), rate(S3, 10, Connections)), ((300, 60), (60_000, 1)));
        let daily = |tier, units| Sku::new(tier, units).expect("a size").daily_messages();
        assert_eq!((daily(F1, 1), daily(S1, 2), daily(S3, 10)), (8000, 800_000, 3_000_000_000));
        assert!(Class::ALL.into_iter().all(|class| Tier::ALL.into_iter().all(|tier| rate(tier, 1, class).0 > 0)));
    }

    #[test]
    fn a_tier_comes_in_so_many_units() {
        for (tier, units, expected) in
            [(Tier::F1, 1, true), (Tier::F1, 2, false), (Tier::S1, 200, true), (Tier::S3, 11, false)]
        {
            assert_eq!(Sku::new(tier, units).is_ok(), expected, "{tier} {units}");
        }
        let error = Sku::new(Tier::S2, 0).expect_err("none").to_string();
        assert_eq!(error, "a hub of the tier S2 has 1 to 200 units");
        assert_eq!((Tier::by_name("s3"), Tier::by_name("B1")), (Some(Tier::S3), None));
    }
}
