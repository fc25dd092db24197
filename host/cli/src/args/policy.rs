//! How a job goes over its devices.

use std::time::Duration;

use clap::Args as ClapArgs;

use super::ScheduleArgs;
use crate::units::duration;

/// Where `--help` shows them.
const POLICY: &str = "Policy (the embedded hub's; Azure has none)";

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct PolicyArgs {
    /// Go over the devices in stages: growing percentages of them, the last 100, such as 5,50,100
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', help_heading = POLICY)]
    pub(crate) stage: Vec<u8>,
    /// Percent of a stage's devices that must succeed before the next; else the job is aborted [default: 90]
    #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "stage", help_heading = POLICY)]
    pub(crate) stage_success: Option<u8>,
    /// Devices of a stage whose outcome must be known before the next [default: all of them]
    #[arg(long, value_name = "N", requires = "stage", help_heading = POLICY)]
    pub(crate) stage_sample: Option<u32>,
    /// How long to wait after a stage that went well, such as 10m
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "stage", help_heading = POLICY)]
    pub(crate) pause: Option<u32>,
    /// Start so many devices a second at most
    #[arg(long, value_name = "N", help_heading = POLICY)]
    pub(crate) rate: Option<u32>,
    /// Abort the job when more than so many percent of the devices failed
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = POLICY)]
    pub(crate) abort_failures: Option<u8>,
    /// Not before the outcome of so many devices is known [default: 10]
    #[arg(long, value_name = "N", requires = "abort_failures", help_heading = POLICY)]
    pub(crate) minimum: Option<u32>,
    /// Count only the outcomes of so long, such as 10m [default: all]
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "abort_failures", help_heading = POLICY)]
    pub(crate) abort_window: Option<u32>,
}

/// When a device of a twin job has succeeded.
#[derive(Debug, ClapArgs)]
pub(crate) struct SuccessArgs {
    /// A device succeeds when it reports that it runs the version that the update pins, such as plugin:lock-door
    #[arg(long, value_name = "plugin:NAME", value_parser = plugin_name, help_heading = POLICY)]
    pub(crate) success_by: Option<String>,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct ReportArgs {
    /// How long a device must report that before it has succeeded, such as 10s [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = seconds, help_heading = POLICY)]
    pub(crate) soak: Option<u32>,
    /// How long a device may take to report it, the time that it is offline included [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = seconds, help_heading = POLICY)]
    pub(crate) report_within: Option<u32>,
    /// If the job is aborted, remove the pin from the devices that got it; one that was there before does not come back
    #[arg(long, help_heading = POLICY)]
    pub(crate) unpin_on_abort: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RolloutArgs {
    /// The plugin's name
    pub(crate) name: String,
    /// The version: a semantic version, or a hash (its first 12 digits or more)
    #[arg(value_name = "VERSION")]
    pub(crate) wanted: String,
    #[command(flatten)]
    pub(crate) schedule: ScheduleArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// `10` or `10%`.
fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|number| *number <= 100).ok_or_else(|| "a percentage is a whole number up to 100".to_owned())
}

/// A duration in whole seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let whole = |duration: Duration| duration.subsec_nanos() == 0;
    let seconds = duration(text).filter(|duration| whole(*duration)).map(|duration| duration.as_secs());
    seconds
        .and_then(|seconds| u32::try_from(seconds).ok())
        .ok_or_else(|| "a time is a whole number of seconds with its unit: 10s, 5m, 2h".to_owned())
}

fn plugin_name(text: &str) -> Result<String, String> {
    match text.strip_prefix("plugin:") {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err("only the report of a plugin's version can be the measure: plugin:NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_or_refused() {
        let numbers = |texts: &[&str]| texts.iter().map(|text| percent(text).ok()).collect::<Vec<_>>();
        assert_eq!(
            numbers(&["10", "10%", "100%", "101", "-1", "%", "1.5"]),
            [Some(10), Some(10), Some(100), None, None, None, None]
        );
        let times = |texts: &[&str]| texts.iter().map(|text| seconds(text).ok()).collect::<Vec<_>>();
        assert_eq!(
            times(&["10s", "5m", "0s", "2000ms", "250ms", "10", "x"]),
            [Some(10), Some(300), Some(0), Some(2), None, None, None]
        );
        assert_eq!(plugin_name("plugin:lock-door"), Ok("lock-door".to_owned()));
        assert!(plugin_name("lock-door").is_err() && plugin_name("plugin:").is_err());
    }
}
