//! The host's settings as they are meant: the command line, and what a configuration adds to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use iothub_protocol::quota::tier::Sku;
use plugin_runtime::PluginPlans;

use crate::args::{HostArgs, ListenArgs};
use crate::config::{FleetConfig, HostLimits};

/// What the command line says about a host, and about a hub of its own.
#[derive(Default)]
pub(crate) struct Flags {
    pub(crate) host: HostArgs,
    pub(crate) listen: ListenArgs,
    pub(crate) tier: Option<Sku>,
}

/// Of whatever runs plugins.
#[derive(Default)]
pub(crate) struct HostSettings {
    pub(crate) plugins: Option<PathBuf>,
    pub(crate) plans: PluginPlans,
    pub(crate) admin: Option<SocketAddr>,
    /// Where certificates of devices are.
    pub(crate) certificates: Option<PathBuf>,
    /// Where its own hub listens, if it has one.
    pub(crate) listen: ListenArgs,
    /// Whose quotas and throttles it has.
    pub(crate) tier: Option<Sku>,
    pub(crate) limits: HostLimits,
}

impl HostSettings {
    /// Flags win.
    pub(crate) fn new(flags: &Flags, config: &FleetConfig) -> HostSettings {
        let Flags { host: args, listen, tier } = flags;
        let mut limits = config.limits.clone();
        let HostLimits { runtime, actors, instances } = &mut limits;
        set(&mut runtime.call_time_limit, args.call_limit.map(|seconds| Duration::from_secs(seconds.into())));
        set(&mut runtime.memory_limit, args.memory_limit.map(|mebibytes| (mebibytes as usize) << 20));
        *instances = args.max_instances.or(*instances);
        set(&mut actors.idle, args.idle.map(|milliseconds| Duration::from_millis(milliseconds.into())));
        HostSettings {
            plugins: args.plugins.clone().or_else(|| config.host.plugins.clone()),
            plans: config.plugins.clone(),
            admin: args.admin.or(config.host.admin),
            certificates: args.certificates.clone().or_else(|| config.host.certificates.clone()),
            listen: ListenArgs { https: listen.https.or(config.host.https), mqtt: listen.mqtt.or(config.host.mqtt) },
            tier: tier.or(config.host.tier),
            limits,
        }
    }

    /// What is other in `later` and holds only from the next start on, by its name in the file.
    pub(crate) fn needs_restart(&self, later: &HostSettings) -> Vec<&'static str> {
        let mut names = Vec::new();
        let host = [
            ("host.plugins", self.plugins != later.plugins),
            ("host.admin", self.admin != later.admin),
            ("host.certificates", self.certificates != later.certificates),
            ("host.https", self.listen.https != later.listen.https),
            ("host.mqtt", self.listen.mqtt != later.listen.mqtt),
            ("host.tier", self.tier != later.tier),
        ];
        names.extend(host.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name));
        let limits = self.limits.differences(&later.limits).filter(|limit| !limit.is_live);
        names.extend(limits.map(|limit| limit.name));
        names
    }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

#[cfg(test)]
mod tests {
    use iothub_protocol::quota::tier::Tier;

    use super::*;

    fn address(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn flags_win_over_the_file() {
        let mut config = FleetConfig::default();
        config.limits.runtime.call_time_limit = Duration::from_secs(9);
        config.limits.actors.idle = Duration::from_secs(8);
        config.limits.actors.mailbox = 7;
        config.host.plugins = Some("from-file".into());
        (config.host.https, config.host.mqtt) = (address(9), address(2));
        let host = HostArgs { call_limit: Some(1), plugins: Some("from-flag".into()), ..HostArgs::default() };
        let listen = ListenArgs { https: address(1), mqtt: None };
        let sku = |units| Some(Sku::new(Tier::S1, units).expect("a size"));
        config.host.tier = sku(2);
        let flags = Flags { host, listen, tier: sku(1) };
        let HostSettings { plugins, limits, listen, tier, .. } = HostSettings::new(&flags, &config);
        assert_eq!((tier, HostSettings::new(&Flags::default(), &config).tier), (sku(1), sku(2)));
        assert_eq!(plugins, Some("from-flag".into()));
        let (runtime, actors) = (&limits.runtime, &limits.actors);
        assert_eq!(runtime.call_time_limit, Duration::from_secs(1));
        assert_eq!((actors.idle, actors.mailbox), (Duration::from_secs(8), 7));
        assert_eq!((listen.https, listen.mqtt), (address(1), address(2)));
        let settings = HostSettings::new(&Flags::default(), &config);
        assert_eq!((settings.plugins, &settings.limits), (Some("from-file".into()), &config.limits));
        let settings = HostSettings::new(&Flags::default(), &FleetConfig::default());
        assert_eq!(settings.limits, HostLimits::default());
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let before = HostSettings::default();
        let mut after = HostSettings { plugins: Some("p".into()), ..HostSettings::default() };
        after.limits.actors.mailbox = 1;
        after.limits.runtime.memory_limit = 1;
        after.limits.runtime.calls.timers = 1;
        after.listen.mqtt = address(1);
        after.tier = Sku::new(Tier::F1, 1).ok();
        let named = ["host.plugins", "host.mqtt", "host.tier", "limits.memory", "limits.calls.timers"];
        assert_eq!(before.needs_restart(&after), named);
        assert!(before.needs_restart(&before).is_empty());
    }
}
