//! How a job goes over its devices.

use std::time::Duration;

use clap::Args as ClapArgs;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{FailureClass, GrowAfter, MAX_PRIORITY};

use super::{EngineChoice, ScheduleArgs};
use crate::units::duration;

/// Where `--help` shows them.
const POLICY: &str = "Policy (for the engines of latch run --jobs and of the embedded hub; Azure's has none)";

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
    /// Pause the job after each stage that went well, until somebody approves of the next: latch job approve ID
    #[arg(long, requires = "stage", help_heading = POLICY)]
    pub(crate) stage_approval: bool,
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
    /// Count only these failures, such as timeout,fault [default: all]
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = class, requires = "abort_failures", help_heading = POLICY)]
    pub(crate) abort_on: Vec<FailureClass>,
    /// The limit holds for each group of devices by itself, as --group-by makes them
    #[arg(long, requires = "abort_failures", requires = "group_by", help_heading = POLICY)]
    pub(crate) abort_per_group: bool,
    /// Pause the job where it would be aborted; latch job resume ID goes on with the rest
    #[arg(long, help_heading = POLICY)]
    pub(crate) pause_on_abort: bool,
    /// Tell devices apart by a tag, such as tags.building: latch job report ID shows how each group does
    #[arg(long, value_name = "TAG", value_parser = TagPath::parse, help_heading = POLICY)]
    pub(crate) group_by: Option<TagPath>,
    /// Let the rate grow each time so many devices were started or have succeeded, such as succeeded:100
    #[arg(long, value_name = "WHAT:N", value_parser = growth, requires = "rate", help_heading = POLICY)]
    pub(crate) grow_after: Option<GrowAfter>,
    /// By how much the rate is multiplied then [default: 2]
    #[arg(long, value_name = "N", requires = "grow_after", help_heading = POLICY)]
    pub(crate) rate_factor: Option<u32>,
    /// Let the rate grow no further [default: 10000]
    #[arg(long, value_name = "N", requires = "grow_after", help_heading = POLICY)]
    pub(crate) rate_max: Option<u32>,
    /// Try devices again whose failure is one of these, so often, such as timeout,fault:3; several times for several
    /// rules. Failures are offline, timeout, throttled, missing, refused, fault and answer
    #[arg(long, value_name = "CLASS,…:N", value_parser = retries, help_heading = POLICY)]
    pub(crate) retry: Vec<Retries>,
    /// How long to wait before the first retry; each further one waits twice as long [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "retry", help_heading = POLICY)]
    pub(crate) backoff: Option<u32>,
    /// The longest wait before a retry [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "retry", help_heading = POLICY)]
    pub(crate) backoff_max: Option<u32>,
    /// Whose turn it is first, of jobs that want to begin more than there is room for: 0 to 9, the highest first
    /// [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_PRIORITY)), help_heading = POLICY)]
    pub(crate) priority: Option<u8>,
    /// If the hub ends while a device is asked, the device has failed, instead of being asked again
    #[arg(long, help_heading = POLICY)]
    pub(crate) fail_in_doubt: bool,
}

/// What a method job makes of its devices' answers, and of those that are not there.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct AnswerArgs {
    /// Count only answers with these statuses as success, such as 200-299,409 [default: any answer]
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = statuses, help_heading = POLICY)]
    pub(crate) success_status: Vec<[i32; 2]>,
    /// Wait for devices that are not connected: so long from the job's beginning, each runs when it connects
    #[arg(long, value_name = "TIME", value_parser = seconds, help_heading = POLICY)]
    pub(crate) wait_offline: Option<u32>,
    /// Leave out devices that are not connected, or not in time, instead of counting them as failed
    #[arg(long, help_heading = POLICY)]
    pub(crate) skip_offline: bool,
}

/// Failures after which a device is tried again, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Retries {
    pub(crate) on: Vec<FailureClass>,
    pub(crate) retries: u32,
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
    #[arg(long, conflicts_with = "pause_on_abort", help_heading = POLICY)]
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
    /// Which engine is to have the job [default: whichever can run it]
    #[arg(long, value_enum, value_name = "ENGINE", default_value_t, hide_default_value = true)]
    pub(crate) engine: EngineChoice,
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

pub(super) fn class(text: &str) -> Result<FailureClass, String> {
    let names = || FailureClass::ALL.map(FailureClass::name).join(", ");
    FailureClass::by_name(text).ok_or_else(|| format!("a class of failures is one of {}", names()))
}

/// `timeout,fault:3`.
fn retries(text: &str) -> Result<Retries, String> {
    let wrong = || "a retry names failures and how often to try again: timeout,fault:3".to_owned();
    let (classes, count) = text.rsplit_once(':').ok_or_else(wrong)?;
    let on = classes.split(',').map(class).collect::<Result<_, _>>()?;
    Ok(Retries { on, retries: count.parse().map_err(|_| wrong())? })
}

/// `started:100` or `succeeded:100`.
fn growth(text: &str) -> Result<GrowAfter, String> {
    let wrong = || "a rate grows after started:N or succeeded:N".to_owned();
    let (what, count) = text.split_once(':').ok_or_else(wrong)?;
    let count = count.parse().map_err(|_| wrong())?;
    match what {
        "started" => Ok(GrowAfter::Started(count)),
        "succeeded" => Ok(GrowAfter::Succeeded(count)),
        _ => Err(wrong()),
    }
}

/// `409` or `200-299`.
fn statuses(text: &str) -> Result<[i32; 2], String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok().map(i32::from);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok([first, last]),
        _ => Err("statuses are a number, or two with a dash between them: 200-299,409".to_owned()),
    }
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
        let retry = Retries { on: vec![FailureClass::Timeout, FailureClass::Fault], retries: 3 };
        assert_eq!(retries("timeout,fault:3"), Ok(retry));
        assert!(["timeout", "timeout:x", "late:3", ":3"].iter().all(|text| retries(text).is_err()));
        assert_eq!(growth("succeeded:100"), Ok(GrowAfter::Succeeded(100)));
        assert!(["100", "failed:1", "started:"].iter().all(|text| growth(text).is_err()));
        assert_eq!((statuses("200-299"), statuses("409")), (Ok([200, 299]), Ok([409, 409])));
        assert!(["", "299-200", "-5", "x"].iter().all(|text| statuses(text).is_err()));
        assert_eq!(plugin_name("plugin:lock-door"), Ok("lock-door".to_owned()));
        assert!(plugin_name("lock-door").is_err() && plugin_name("plugin:").is_err());
    }
}
