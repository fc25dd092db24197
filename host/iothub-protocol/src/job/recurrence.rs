//! Jobs that come again and again: a series has a schedule, and for each of its occurrences there is an ordinary job.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::extension::invalid;
use super::{JobRequest, JobStatus, moment};
use crate::error::HubError;
use crate::id::{IdError, JobId};
use crate::time;

/// The zone of a schedule that names none.
pub const DEFAULT_TIME_ZONE: &str = "UTC";
/// Characters of an occurrence's job id after those of its series.
const SUFFIX: usize = "-20261224T180000Z".len();
const SUFFIX_FORMAT: &str = "-%Y%m%dT%H%M%SZ";

/// What a job has to do with recurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recurrence {
    /// It is a series: `latch.schedule`.
    Series(Schedule),
    /// It is one of the jobs of a series: `latch.series`. The hub makes those itself.
    Occurrence(Occurrence),
}

/// When the jobs of a series begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schedule {
    /// A pattern of cron: five fields, or six with seconds before them.
    pub cron: String,
    /// The name of a zone in the IANA database, whose clock the pattern is of.
    #[serde(default = "default_time_zone")]
    pub time_zone: String,
    /// No occurrence before that, and none before the job's `startTime`. To the millisecond.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    pub from: Option<DateTime<Utc>>,
    /// No occurrence after that. To the millisecond.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    pub until: Option<DateTime<Utc>>,
    /// After so many jobs the series is over, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    #[serde(default)]
    pub missed: Missed,
    #[serde(default)]
    pub overlap: Overlap,
}

/// What becomes of occurrences that fell due while no engine ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Missed {
    /// Each of them is made up for, those of long ago beyond the engine's bound left out.
    Run,
    /// The latest is.
    #[default]
    Latest,
    /// None is.
    Skip,
}

/// What becomes of an occurrence while a job of the series has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Overlap {
    /// Its job waits for those before it. What was asked for is done, if late: nothing is dropped silently.
    #[default]
    Queue,
    /// It has none.
    Skip,
    /// Its job begins beside the others.
    Start,
}

/// Which occurrence a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Occurrence {
    /// The series.
    pub job: JobId,
    /// Whether it waits for the jobs of the series before it.
    pub queued: bool,
}

/// How far a series has come.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SeriesProgress {
    /// The occurrences to come; not all of them.
    pub next: Vec<DateTime<Utc>>,
    /// How many jobs it has begun.
    pub jobs: u32,
    /// The last of them that are still known, the newest first.
    pub last: Vec<OccurrenceStatus>,
    /// The last occurrence that got no job, and why.
    pub passed_over: Option<(DateTime<Utc>, PassedOver)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OccurrenceStatus {
    pub job_id: JobId,
    pub status: JobStatus,
    pub start_time: DateTime<Utc>,
}

/// Why an occurrence got no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedOver {
    /// No engine ran, and the schedule does not have it made up for.
    Missed,
    /// A job of the series had not ended, or too many waited.
    Overlap,
}

impl Schedule {
    /// A pattern alone, with every default.
    pub fn new(cron: impl Into<String>) -> Schedule {
        Schedule {
            cron: cron.into(),
            time_zone: default_time_zone(),
            from: None,
            until: None,
            count: None,
            missed: Missed::default(),
            overlap: Overlap::default(),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.count == Some(0) {
            return Err("count must be at least 1".to_owned());
        }
        match (self.from, self.until) {
            (Some(from), Some(until)) if from > until => Err("until is before from".to_owned()),
            _ => Ok(()),
        }
    }
}

impl Recurrence {
    /// Read `latch.schedule` and `latch.series`. Whether the pattern and the zone exist is for the engine to say.
    ///
    /// # Errors
    /// 400004, naming the place and what is allowed there.
    pub(super) fn from_json(schedule: Option<&Value>, series: Option<&Value>) -> Result<Option<Recurrence>, HubError> {
        match (schedule, series) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(invalid("latch.schedule and latch.series do not go together".into())),
            (Some(schedule), None) => {
                let at = |text: String| invalid(format!("latch.schedule: {text}"));
                let schedule = Schedule::deserialize(schedule).map_err(|error| at(error.to_string()))?;
                schedule.check().map_err(at)?;
                Ok(Some(Recurrence::Series(schedule)))
            }
            (None, Some(series)) => {
                let occurrence = Occurrence::deserialize(series);
                let occurrence = occurrence.map_err(|error| invalid(format!("latch.series: {error}")))?;
                Ok(Some(Recurrence::Occurrence(occurrence)))
            }
        }
    }

    pub fn schedule(&self) -> Option<&Schedule> {
        match self {
            Recurrence::Series(schedule) => Some(schedule),
            Recurrence::Occurrence(_) => None,
        }
    }

    pub fn occurrence(&self) -> Option<&Occurrence> {
        match self {
            Recurrence::Series(_) => None,
            Recurrence::Occurrence(occurrence) => Some(occurrence),
        }
    }
}

impl JobRequest {
    /// The job of a series' occurrence at that time; `None` if this is no series, or its id leaves no room.
    pub fn at_occurrence(&self, at: DateTime<Utc>) -> Option<JobRequest> {
        let Some(Recurrence::Series(schedule)) = &self.recurrence else { return None };
        let occurrence = Occurrence { job: self.job_id.clone(), queued: schedule.overlap == Overlap::Queue };
        Some(JobRequest {
            job_id: occurrence_id(&self.job_id, at).ok()?,
            start_time: Some(at),
            recurrence: Some(Recurrence::Occurrence(occurrence)),
            ..self.clone()
        })
    }
}

/// The id of the job of an occurrence: `nightly-20261224T180000Z`.
///
/// # Errors
/// The series' id leaves no room for the time.
pub fn occurrence_id(series: &JobId, at: DateTime<Utc>) -> Result<JobId, IdError> {
    JobId::parse(&format!("{series}{}", at.format(SUFFIX_FORMAT)))
}

/// The series of which such an id could be an occurrence's.
pub fn series_of(id: &JobId) -> Option<JobId> {
    let (series, suffix) = id.as_str().split_at_checked(id.as_str().len().checked_sub(SUFFIX)?)?;
    let has_form = suffix.bytes().enumerate().all(|(place, byte)| match place {
        0 => byte == b'-',
        9 => byte == b'T',
        16 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    if has_form { JobId::parse(series).ok() } else { None }
}

impl SeriesProgress {
    /// Into `latch.progress`.
    pub(super) fn write(&self, progress: &mut Map<String, Value>) {
        let next: Vec<_> = self.next.iter().map(|at| time::format(*at)).collect();
        let last: Vec<_> = self
            .last
            .iter()
            .map(|job| {
                json!({"jobId": job.job_id, "status": job.status.name(), "startTime": time::format(job.start_time)})
            })
            .collect();
        progress.insert("next".into(), json!(next));
        progress.insert("jobs".into(), json!(self.jobs));
        progress.insert("last".into(), json!(last));
        if let Some((at, why)) = self.passed_over {
            let passed_over = json!({"occurrence": time::format(at), "reason": why.name()});
            progress.insert("passedOver".into(), passed_over);
        }
    }
}

impl PassedOver {
    pub fn name(self) -> &'static str {
        match self {
            PassedOver::Missed => "missed",
            PassedOver::Overlap => "overlap",
        }
    }

    pub fn by_name(name: &str) -> Option<PassedOver> {
        [PassedOver::Missed, PassedOver::Overlap].into_iter().find(|why| why.name() == name)
    }
}

fn default_time_zone() -> String {
    DEFAULT_TIME_ZONE.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::job::{JobAction, TwinUpdate};

    fn at(text: &str) -> DateTime<Utc> {
        time::parse(text).expect(text)
    }

    fn read(latch: &Value) -> Result<Option<Recurrence>, HubError> {
        Recurrence::from_json(latch.get("schedule"), latch.get("series"))
    }

    #[test]
    fn a_schedule_is_read_with_its_defaults_and_written_back() {
        let given = json!({"schedule": {"cron": "0 2 * * *", "until": "2026-12-24T19:00:00.1234+01:00"}});
        let Ok(Some(Recurrence::Series(schedule))) = read(&given) else { panic!("a schedule") };
        let expected = Schedule { until: Some(at("2026-12-24T18:00:00.123Z")), ..Schedule::new("0 2 * * *") };
        assert_eq!(schedule, expected);
        let written = json!({"schedule": schedule});
        let shown = json!({"cron": "0 2 * * *", "timeZone": "UTC", "until": "2026-12-24T18:00:00.123Z",
            "missed": "latest", "overlap": "queue"});
        assert_eq!(written["schedule"], shown);
        assert_eq!(read(&written), Ok(Some(Recurrence::Series(expected))));
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        let cron = "0 2 * * *";
        for wrong in [
            json!({"schedule": {}}),
            json!({"schedule": {"cron": 5}}),
            json!({"schedule": {"cron": cron, "count": 0}}),
            json!({"schedule": {"cron": cron, "every": "day"}}),
            json!({"schedule": {"cron": cron, "until": "tomorrow"}}),
            json!({"schedule": {"cron": cron, "missed": "all"}}),
            json!({"schedule": {"cron": cron, "from": "2026-12-25T00:00:00Z", "until": "2026-12-24T00:00:00Z"}}),
            json!({"schedule": {"cron": cron}, "series": {"job": "j", "queued": true}}),
            json!({"series": {"job": "a b", "queued": true}}),
        ] {
            assert_eq!(read(&wrong).map_err(|error| error.code), Err(ErrorCode::ArgumentInvalid), "{wrong}");
        }
    }

    #[test]
    fn an_occurrence_is_an_ordinary_job_that_names_its_series() {
        let series = JobRequest {
            job_id: JobId::parse("nightly").expect("an id"),
            action: JobAction::UpdateTwin(TwinUpdate::default()),
            query_condition: "*".to_owned(),
            start_time: None,
            max_execution_time_in_seconds: 60,
            policy: None,
            targets: None,
            then: Vec::new(),
            recurrence: Some(Recurrence::Series(Schedule::new("0 2 * * *"))),
        };
        let christmas = at("2026-12-24T18:00:00Z");
        let job = series.at_occurrence(christmas).expect("a job");
        assert_eq!((job.job_id.as_str(), job.start_time), ("nightly-20261224T180000Z", Some(christmas)));
        assert_eq!(job.to_json()["latch"]["series"], json!({"job": "nightly", "queued": true}));
        assert_eq!(JobRequest::from_json(job.job_id.clone(), job.to_json().to_string().as_bytes()), Ok(job.clone()));
        assert_eq!(series_of(&job.job_id), Some(series.job_id.clone()));
        assert_eq!(job.at_occurrence(christmas), None);
        let long = JobRequest { job_id: JobId::parse(&"a".repeat(112)).expect("an id"), ..series };
        assert_eq!(long.at_occurrence(christmas), None, "no room");
        for other in ["nightly", "-20261224T180000Z", "nightly-20261224-180000", "nightly-2026x224T180000Z"] {
            assert_eq!(series_of(&JobId::parse(other).expect("an id")), None, "{other}");
        }
    }
}
