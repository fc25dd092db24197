//! A schedule, read: which of its occurrences get a job, and when the next one is due.

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::job::recurrence::{Missed, Overlap, Schedule};

use crate::occurrences::Pattern;

/// An occurrence that is seen no later than this was not missed: a host restarts within it, and a clock that is set is
/// noticed.
pub(crate) const ON_TIME: TimeDelta = TimeDelta::seconds(60);
/// How many missed occurrences are made up for at most, the latest ones: a day of hourly ones.
pub(crate) const MADE_UP: usize = 24;

/// When the jobs of a series begin.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pattern: Pattern,
    from: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    count: Option<u32>,
    missed: Missed,
    overlap: Overlap,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Due {
    /// To begin now, in this order.
    pub begin: Vec<DateTime<Utc>>,
    /// The last one that was missed and is not made up for.
    pub missed: Option<DateTime<Utc>>,
    /// `None` if the series is over.
    pub next: Option<DateTime<Utc>>,
}

impl Plan {
    /// # Errors
    /// Says what is wrong with the pattern or the zone, for people.
    pub(crate) fn new(schedule: &Schedule, start_time: Option<DateTime<Utc>>) -> Result<Plan, String> {
        let Schedule { cron, time_zone, from, until, count, missed, overlap } = schedule;
        Ok(Plan {
            pattern: Pattern::parse(cron, time_zone)?,
            from: start_time.into_iter().chain(*from).max(),
            until: *until,
            count: *count,
            missed: *missed,
            overlap: *overlap,
        })
    }

    /// The first occurrence of a series that is created now; `None` if it has none.
    pub(crate) fn first(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let from = self.from.map_or(now, |from| from.max(now));
        self.within(self.pattern.next_from(from))
    }

    /// The occurrences that follow on one, it included, so many at most.
    pub(crate) fn upcoming(&self, next: DateTime<Utc>, most: usize) -> Vec<DateTime<Utc>> {
        let following = |at: &DateTime<Utc>| self.within(self.pattern.next_after(*at));
        std::iter::successors(Some(next), following).take(most).collect()
    }

    /// What to do at `now`, when the occurrence `next` is due.
    pub(crate) fn due(&self, next: DateTime<Utc>, now: DateTime<Utc>) -> Due {
        let before_next = next - TimeDelta::nanoseconds(1);
        let until = self.until.map_or(now, |until| until.min(now));
        let late_until = until.min(now - ON_TIME);
        let last = |until, most| self.pattern.last_up_to(before_next, until, most);
        let on_time = self.pattern.last_up_to(before_next.max(now - ON_TIME), until, usize::MAX);
        let late = match self.missed {
            Missed::Run => last(late_until, MADE_UP),
            Missed::Latest if on_time.is_empty() => last(late_until, 1),
            Missed::Latest | Missed::Skip => last(late_until, 0),
        };
        let before_late = late.front().map_or(late_until, |first| *first - TimeDelta::nanoseconds(1));
        Due {
            missed: last(before_late, 1).pop_back(),
            begin: late.into_iter().chain(on_time).collect(),
            next: self.within(self.pattern.next_after(now)),
        }
    }

    /// Whether so many jobs are all.
    pub(crate) fn is_complete(&self, jobs: u32) -> bool {
        self.count.is_some_and(|count| jobs >= count)
    }

    pub(crate) fn overlap(&self) -> Overlap {
        self.overlap
    }

    fn within(&self, occurrence: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        occurrence.filter(|at| self.until.is_none_or(|until| *at <= until))
    }
}

#[cfg(test)]
mod tests {
    use iothub_protocol::time;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        time::parse(text).expect(text)
    }

    fn hourly(missed: Missed) -> Plan {
        let until = Some(at("2026-11-26T00:00:00Z"));
        Plan::new(&Schedule { missed, until, ..Schedule::new("0 * * * *") }, None).expect("a plan")
    }

    #[test]
    fn the_first_occurrence_is_none_before_any_bound() {
        let schedule = Schedule { from: Some(at("2026-11-24T10:00:00Z")), ..Schedule::new("0 * * * *") };
        let plan = |start| Plan::new(&schedule, start).expect("a plan");
        let now = at("2026-11-24T08:30:00Z");
        assert_eq!(plan(None).first(now), Some(at("2026-11-24T10:00:00Z")), "one at the bound counts");
        assert_eq!(plan(Some(at("2026-11-24T10:00:01Z"))).first(now), Some(at("2026-11-24T11:00:00Z")));
        assert_eq!(plan(None).first(at("2026-11-24T12:00:00.001Z")), Some(at("2026-11-24T13:00:00Z")));
        let plan = hourly(Missed::Run);
        assert_eq!(plan.first(at("2026-11-26T00:00:00Z")), Some(at("2026-11-26T00:00:00Z")));
        assert_eq!(plan.first(at("2026-11-26T00:00:01Z")), None);
        assert_eq!(plan.upcoming(at("2026-11-25T22:00:00Z"), 5).len(), 3);
    }

    #[test]
    fn what_was_missed_is_made_up_for_as_the_schedule_says() {
        let (next, hour) = (at("2026-11-24T08:00:00Z"), TimeDelta::hours(1));
        let hours = |first: i32, last: i32| (first..=last).map(|number| next + hour * number).collect::<Vec<_>>();
        for (missed, late, begin, left_out) in [
            // On time, or nearly.
            (Missed::Skip, TimeDelta::zero(), hours(0, 0), None),
            (Missed::Skip, TimeDelta::seconds(59), hours(0, 0), None),
            (Missed::Skip, TimeDelta::seconds(60), vec![], Some(0)),
            // Five hours and a half later.
            (Missed::Run, TimeDelta::minutes(330), hours(0, 5), None),
            (Missed::Latest, TimeDelta::minutes(330), hours(5, 5), Some(4)),
            (Missed::Skip, TimeDelta::minutes(330), vec![], Some(5)),
            // Five hours and a moment later: the last one is not missed.
            (Missed::Run, TimeDelta::seconds(5 * 3600 + 3), hours(0, 5), None),
            (Missed::Latest, TimeDelta::seconds(5 * 3600 + 3), hours(5, 5), Some(4)),
            (Missed::Skip, TimeDelta::seconds(5 * 3600 + 3), hours(5, 5), Some(4)),
            // There is a bound.
            (Missed::Run, TimeDelta::minutes(30 * 60 + 30), hours(7, 30), Some(6)),
        ] {
            let due = hourly(missed).due(next, next + late);
            let left_out = left_out.map(|number| next + hour * number);
            assert_eq!((due.begin, due.missed), (begin, left_out), "{missed:?} {late}");
            assert_eq!(due.next, Some(next + hour * i32::try_from(late.num_hours() + 1).expect("few")));
        }
        // Over: nothing after the end, however late.
        let due = hourly(Missed::Run).due(at("2026-11-25T23:00:00Z"), at("2027-06-01T00:00:00Z"));
        assert_eq!(due.begin, [at("2026-11-25T23:00:00Z"), at("2026-11-26T00:00:00Z")]);
        assert_eq!((due.missed, due.next), (None, None));
    }
}
