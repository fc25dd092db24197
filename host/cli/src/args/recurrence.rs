//! When a job comes again.

use chrono::{DateTime, Utc};
use clap::Args as ClapArgs;
use iothub_protocol::job::recurrence::{Missed, Overlap};
use iothub_protocol::time;

/// Where `--help` shows them.
const RECURRENCE: &str = "Recurrence (for the engines of latch run --jobs and of the embedded hub; Azure's has none)";

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct RecurrenceArgs {
    /// Come again whenever a pattern of cron says, such as '0 2 * * 1-5', or with seconds '30 0 2 * * 1-5'
    #[arg(long, value_name = "PATTERN", conflicts_with = "wait", help_heading = RECURRENCE)]
    pub(crate) cron: Option<String>,
    /// Whose clock the pattern is of, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "cron", help_heading = RECURRENCE)]
    pub(crate) time_zone: Option<String>,
    /// Do not come again after that, such as 2026-12-24T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "cron", help_heading = RECURRENCE)]
    pub(crate) until: Option<DateTime<Utc>>,
    /// Come so many times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "cron", help_heading = RECURRENCE)]
    pub(crate) count: Option<u32>,
    /// What was missed while the hub did not run: run it all, the latest, or skip it [default: latest]
    #[arg(long, value_name = "RULE", value_parser = missed, requires = "cron", help_heading = RECURRENCE)]
    pub(crate) missed: Option<Missed>,
    /// While a job of before has not ended: queue the new one, skip it, or start it all the same [default: queue]
    #[arg(long, value_name = "RULE", value_parser = overlap, requires = "cron", help_heading = RECURRENCE)]
    pub(crate) overlap: Option<Overlap>,
}

/// A time with its zone.
pub(crate) fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    time::parse(text).ok_or_else(|| "a time has a date and a zone, such as 2026-12-24T18:00:00Z".to_owned())
}

fn missed(text: &str) -> Result<Missed, String> {
    match text {
        "run" => Ok(Missed::Run),
        "latest" => Ok(Missed::Latest),
        "skip" => Ok(Missed::Skip),
        _ => Err("what was missed is for run, latest or skip".to_owned()),
    }
}

fn overlap(text: &str) -> Result<Overlap, String> {
    match text {
        "queue" => Ok(Overlap::Queue),
        "skip" => Ok(Overlap::Skip),
        "start" => Ok(Overlap::Start),
        _ => Err("a job that overlaps is for queue, skip or start".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_times_are_read_or_refused() {
        assert_eq!(
            ["run", "latest", "skip", "none"].map(|text| missed(text).ok()),
            [Some(Missed::Run), Some(Missed::Latest), Some(Missed::Skip), None]
        );
        assert_eq!(
            ["queue", "skip", "start", ""].map(|text| overlap(text).ok()),
            [Some(Overlap::Queue), Some(Overlap::Skip), Some(Overlap::Start), None]
        );
        assert!(moment("2026-12-24T18:00:00+01:00").is_ok() && moment("2026-12-24T18:00:00").is_err());
    }
}
