//! How many files and sockets the process may have open, and how many devices and connections that is.

use anyhow::bail;
use embedded_hub::ConnectionLimits;

/// Descriptors beside those of devices: listeners, stores, plugins, requests, the standard ones.
const SPARE_DESCRIPTORS: u64 = 256;
/// Those of them that requests may not have.
const OWN_DESCRIPTORS: u64 = 128;
/// Most connections of a hub where nothing limits them.
const MOST_CONNECTIONS: u64 = 1_000_000;

/// How many descriptors the process may have, after raising the limit as far as the system allows.
pub(crate) fn descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // No limit at all is a limit of as many as there are numbers.
    current.unwrap_or(u64::MAX)
}

/// Whether so many devices fit under the descriptor limit.
///
/// # Errors
/// If not, with how many do.
pub(crate) fn check_descriptors(devices: usize, each: u64) -> anyhow::Result<()> {
    let current = descriptors();
    let fit = current.saturating_sub(SPARE_DESCRIPTORS) / each;
    if devices as u64 > fit {
        bail!(
            "{devices} devices do not fit: this process may open {current} files, enough for {fit} devices\nhint: raise the \
             limit with `ulimit -n`, or start fewer"
        );
    }
    Ok(())
}

/// How many connections a hub takes: as many as `asked` for, else as many as fit under a limit of `descriptors`, beside the
/// other ends of `own` devices in this process.
///
/// # Errors
/// If those asked for do not fit.
pub(crate) fn connection_limits(asked: Option<u32>, own: usize, descriptors: u64) -> anyhow::Result<ConnectionLimits> {
    let fit = descriptors.saturating_sub(OWN_DESCRIPTORS).saturating_sub(own as u64).max(1);
    if let Some(asked) = asked.filter(|asked| u64::from(*asked) > fit) {
        bail!(
            "{asked} connections do not fit: this process may open {descriptors} files, enough for {fit}\nhint: raise the \
             limit with `ulimit -n`, or lower --max-connections"
        );
    }
    let all = asked.map_or(fit.min(MOST_CONNECTIONS), u64::from);
    Ok(ConnectionLimits::of(usize::try_from(all).unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_as_many_as_asked_for_or_as_fit() {
        let all = |asked, own, descriptors| connection_limits(asked, own, descriptors).map(|limits| limits.all);
        assert_eq!(all(None, 0, 20_000).expect("it fits"), 19_872);
        assert_eq!(all(None, 9_000, 20_000).expect("it fits"), 10_872);
        assert_eq!(all(None, 0, u64::MAX).expect("it fits"), 1_000_000);
        assert_eq!(all(Some(100), 0, 1024).expect("it fits"), 100);
        assert_eq!(
            all(Some(1000), 0, 1024).expect_err("too many").to_string(),
            "1000 connections do not fit: this process may open 1024 files, enough for 896\nhint: raise the limit with \
             `ulimit -n`, or lower --max-connections"
        );
    }
}
