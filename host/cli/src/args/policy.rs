//! How a job goes over its devices.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args as ClapArgs;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{
    EndThen, FailureClass, GrowAfter, MAX_PRIORITY, MaintenanceWindow, WindowZone, ZoneTag,
};

use super::recurrence::moment;
use super::{EngineChoice, ScheduleArgs};
use crate::units::duration;

/// Where `--help` shows them.
const POLICY: &str = "Policy (for the engines of latch run --jobs and of the embedded hub; Azure's has none)";

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct PolicyArgs {
    /// Go over the devices in stages: growing percentages of them, the last 100, such as 5,50,100. Before them, several
    /// times, those for which a condition holds: query:tags.ring = 'canary'
    #[arg(long, value_name = "PERCENT,…|query:CONDITION", value_parser = stages, help_heading = POLICY)]
    pub(crate) stage: Vec<Stages>,
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
    /// Begin devices only in a maintenance window, several times for several: when it opens, as a pattern of cron, how long
    /// it is open, and whose clock that is: '0 2 * * * 2h' for UTC, '0 2 * * * 2h Europe/Berlin', or each device's own,
    /// by its tag: '0 2 * * * 2h tags.zone', with =ZONE after it for devices that have none
    #[arg(long, value_name = "PATTERN TIME [ZONE]", value_parser = window, help_heading = POLICY)]
    pub(crate) window: Vec<MaintenanceWindow>,
    /// When the job ends: a time such as 2026-12-24T18:00:00Z, or so long after it began, such as 8h
    #[arg(long, value_name = "TIME", value_parser = end, help_heading = POLICY)]
    pub(crate) end: Option<End>,
    /// What then: stop begins no other device, cancel waits only for answers that are out, force for none [default: stop]
    #[arg(long, value_name = "WHAT", value_parser = end_then, requires = "end", help_heading = POLICY)]
    pub(crate) end_then: Option<EndThen>,
    /// How long a device may take from its first attempt on, with all that follows
    #[arg(long, value_name = "TIME", value_parser = seconds, help_heading = POLICY)]
    pub(crate) device_timeout: Option<u32>,
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

/// One or several stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stages {
    Percent(Vec<u8>),
    Query(String),
}

/// When a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    At(DateTime<Utc>),
    /// So many seconds after it began.
    After(u32),
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

/// `5,50,100` or `query:tags.ring = 'canary'`.
fn stages(text: &str) -> Result<Stages, String> {
    if let Some(condition) = text.strip_prefix("query:") {
        return Ok(Stages::Query(condition.trim().to_owned()));
    }
    let percentages = text.split(',').map(|text| text.trim().parse()).collect::<Result<_, _>>();
    percentages.map(Stages::Percent).map_err(|_| "a stage is percentages, 5,50,100, or query:CONDITION".to_owned())
}

/// `timeout,fault:3`.
fn retries(text: &str) -> Result<Retries, String> {
    let wrong = || "a retry names failures and how often to try again: timeout,fault:3".to_owned();
    let (classes, count) = text.rsplit_once(':').ok_or_else(wrong)?;
    let on = classes.split(',').map(class).collect::<Result<_, _>>()?;
    Ok(Retries { on, retries: count.parse().map_err(|_| wrong())? })
}

/// `0 2 * * * 2h Europe/Berlin`: a pattern has no word that is a time.
fn window(text: &str) -> Result<MaintenanceWindow, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let wrong = || {
        "a window is a pattern of cron, how long it is open, and a zone or a tag: '0 2 * * * 2h Europe/Berlin', \
         '0 2 * * * 2h tags.zone'"
            .to_owned()
    };
    let place = words.iter().position(|word| seconds(word).is_ok()).ok_or_else(wrong)?;
    let time_zone = match words[place + 1..] {
        [] => WindowZone::default(),
        [zone] if zone.starts_with("tags.") => {
            let (tag, default) = zone.split_once('=').map_or((zone, None), |(tag, default)| (tag, Some(default)));
            WindowZone::Tag(ZoneTag { tag: TagPath::parse(tag)?, default: default.map(str::to_owned) })
        }
        [zone] => WindowZone::Zone(zone.to_owned()),
        _ => return Err(wrong()),
    };
    Ok(MaintenanceWindow { cron: words[..place].join(" "), duration_in_seconds: seconds(words[place])?, time_zone })
}

fn end(text: &str) -> Result<End, String> {
    let wrong = || "an end is a time such as 2026-12-24T18:00:00Z, or so long after the beginning: 8h".to_owned();
    seconds(text).map(End::After).or_else(|_| moment(text).map(End::At)).map_err(|_| wrong())
}

fn end_then(text: &str) -> Result<EndThen, String> {
    EndThen::by_name(text).ok_or_else(|| "at its end, a job can stop, cancel or force".to_owned())
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
        let zone = |text: &str| window(text).map(|window| (window.cron, window.duration_in_seconds, window.time_zone));
        let of = |seconds, zone| Ok(("0 2 * * 1-5".to_owned(), seconds, zone));
        assert_eq!(zone("0 2 * * 1-5 2h"), of(7200, WindowZone::default()));
        assert_eq!(zone("0 2 * * 1-5  90s Asia/Tokyo"), of(90, WindowZone::Zone("Asia/Tokyo".to_owned())));
        let tag = |default: Option<&str>| {
            WindowZone::Tag(ZoneTag {
                tag: TagPath::parse("tags.zone").expect("a tag"),
                default: default.map(str::to_owned),
            })
        };
        assert_eq!(zone("0 2 * * 1-5 2h tags.zone"), of(7200, tag(None)));
        assert_eq!(zone("0 2 * * 1-5 2h tags.zone=UTC"), of(7200, tag(Some("UTC"))));
        assert!(
            ["", "0 2 * * *", "0 2 * * * 2h UTC now", "0 2 * * * 2h tags."].iter().all(|text| window(text).is_err())
        );
        let christmas = moment("2026-12-24T18:00:00Z").expect("a time");
        assert_eq!((end("8h"), end("2026-12-24T18:00:00Z")), (Ok(End::After(28_800)), Ok(End::At(christmas))));
        assert!(end("tomorrow").is_err() && end_then("never").is_err() && end_then("force") == Ok(EndThen::Force));
        assert_eq!(plugin_name("plugin:lock-door"), Ok("lock-door".to_owned()));
        assert!(plugin_name("lock-door").is_err() && plugin_name("plugin:").is_err());
    }
}
