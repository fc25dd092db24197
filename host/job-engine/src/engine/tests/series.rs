//! Jobs that come again, in virtual time.

use iothub_protocol::job::recurrence::{
    Missed, OccurrenceStatus, Overlap, PassedOver, Recurrence, Schedule, SeriesProgress, series_of,
};
use iothub_protocol::time;
use proptest::prelude::*;

use super::*;
use crate::occurrences::Pattern;
use crate::occurrences::tests::reference;
use crate::plan::Plan;

const HOUR: i64 = 3600;

fn moment(text: &str) -> DateTime<Utc> {
    time::parse(text).expect(text)
}

fn series(schedule: Schedule) -> JobRequest {
    JobRequest { recurrence: Some(Recurrence::Series(schedule)), ..twin_job("s") }
}

/// Everything that is missed is made up for.
fn run_all(cron: &str, zone: &str) -> Schedule {
    Schedule { time_zone: zone.to_owned(), missed: Missed::Run, ..Schedule::new(cron) }
}

impl World {
    /// So many devices, each of which answers at once, at that time.
    fn starting(from: &str, fleet: usize) -> World {
        let mut world = World::new(fleet, Limits::default());
        world.now = moment(from).timestamp();
        world.engine = Engine::new(world.limits, at(world.now), Vec::new());
        world
    }

    fn create_series(&mut self, schedule: Schedule) {
        let request = series(schedule.clone());
        let first = Plan::new(&schedule, request.start_time).expect("a plan").first(at(self.now)).expect("one");
        let tx = self.journal.transaction().expect("a transaction");
        let job = journal::insert_series(&tx, request, first, at(self.now)).expect("an insert").expect("a new id");
        tx.commit().expect("a commit");
        self.engine.handle(at(self.now), Input::Created(Box::new(job)));
        self.settle();
    }

    /// Time passes, the engine is called whenever it wants to be, and all calls are answered.
    fn live(&mut self, seconds: i64) {
        let end = self.now + seconds;
        while let Some(deadline) = self.engine.deadline().filter(|deadline| *deadline < at(end)) {
            self.pass((deadline.timestamp() - self.now).max(0));
            self.answer_calls();
        }
        self.pass(end - self.now);
        self.answer_calls();
    }

    fn answer_calls(&mut self) {
        while !self.calls.is_empty() {
            self.answer_all(&UPDATED);
        }
    }

    /// The process was down for so long.
    fn down(&mut self, seconds: i64) {
        self.now += seconds;
        self.restart();
        self.settle();
        self.live(0);
    }

    fn set_clock(&mut self, seconds: i64) {
        self.now += seconds;
        self.engine.clock_set(TimeDelta::seconds(seconds));
        self.engine.handle(at(self.now), Input::Tick);
        self.settle();
    }

    /// The occurrences that became jobs, in the order of that.
    fn occurrences(&self) -> Vec<DateTime<Utc>> {
        let page = journal::jobs(&self.journal, &journal::JobFilter::default(), 10_000, None).expect("jobs");
        let jobs = page.items.into_iter().rev().filter(|job| job.request.job_id != job_id("s"));
        let occurrence = |job: JobResponse| {
            let at = job.request.start_time.expect("a time");
            let id = &job.request.job_id;
            assert_eq!((series_of(id), id.as_str()), (Some(job_id("s")), &*at.format("s-%Y%m%dT%H%M%SZ").to_string()));
            at
        };
        jobs.map(occurrence).collect()
    }

    fn progress(&self) -> SeriesProgress {
        self.job("s").series.expect("a series")
    }

    fn statuses(&self) -> Vec<JobStatus> {
        let page = journal::jobs(&self.journal, &journal::JobFilter::default(), 100, None).expect("jobs");
        let jobs = page.items.into_iter().rev().filter(|job| job.request.job_id != job_id("s"));
        jobs.map(|job| job.status).collect()
    }
}

#[test]
fn each_occurrence_is_an_ordinary_job_of_the_series() {
    let mut world = World::starting("2026-11-24T08:30:00Z", 2);
    world.create_series(Schedule { count: Some(3), ..Schedule::new("0 * * * *") });
    let job = world.job("s");
    assert_eq!((job.status, job.start_time), (JobStatus::Scheduled, moment("2026-11-24T09:00:00Z")));
    assert_eq!((job.statistics, world.progress().jobs), (None, 0));
    world.live(HOUR / 2 - 1);
    assert!(world.occurrences().is_empty());
    world.live(1);
    let first = "s-20261124T090000Z";
    world.is(first, JobStatus::Completed, 2, 0);
    assert_eq!(rows(&world.journal, &job_id("s")).len(), 0);
    assert_eq!(world.job(first).request.recurrence.expect("one").occurrence().expect("one").job, job_id("s"));
    world.live(HOUR);
    let expected = SeriesProgress {
        next: vec![moment("2026-11-24T11:00:00Z")],
        jobs: 2,
        last: ["s-20261124T100000Z", first]
            .map(|id| OccurrenceStatus {
                job_id: job_id(id),
                status: JobStatus::Completed,
                start_time: world.job(id).start_time,
            })
            .to_vec(),
        passed_over: None,
    };
    assert_eq!(world.progress(), expected);
    world.live(HOUR);
    assert_eq!(world.job("s").status, JobStatus::Completed, "it came as often as it was to");
    assert_eq!((world.progress().next, world.engine.deadline()), (vec![], None));
    world.live(10 * HOUR);
    assert_eq!(world.occurrences().len(), 3);
}

#[test]
fn it_ends_at_its_end_and_an_occurrence_at_that_moment_counts() {
    let mut world = World::starting("2026-11-24T08:30:00Z", 1);
    let until = Some(moment("2026-11-24T10:00:00Z"));
    world.create_series(Schedule { until, ..Schedule::new("0 * * * *") });
    world.live(HOUR);
    assert_eq!(world.job("s").status, JobStatus::Scheduled);
    world.live(HOUR);
    assert_eq!((world.job("s").status, world.occurrences().len()), (JobStatus::Completed, 2));
}

/// A day on which clocks are set, hour by hour with two restarts, one of them in the middle of what is done.
#[test]
fn no_occurrence_is_lost_or_doubled_where_clocks_are_set() {
    for (cron, zone, from, expected) in [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", ["28T01:30", "29T01:00", "30T00:30"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T00:00:00Z", ["24T00:30", "25T00:30", "26T01:30"]),
        ("30 2 * * *", "America/New_York", "2026-03-07T00:00:00Z", ["07T07:30", "08T07:00", "09T06:30"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T00:00:00Z", ["31T05:30", "01T05:30", "02T06:30"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-02T00:00:00Z", ["02T15:45", "03T15:30", "04T15:15"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-03T00:00:00Z", ["03T14:45", "04T14:45", "05T15:15"]),
        ("0 12 29 2 *", "UTC", "2028-02-28T00:00:00Z", ["29T12:00", "", ""]),
    ] {
        let mut world = World::starting(from, 1);
        world.create_series(run_all(cron, zone));
        for hour in 0..72 {
            world.live(HOUR / 2);
            if hour == 26 {
                // The occurrence may be decided on, and is not recorded.
                world.now += HOUR / 2;
                world.engine.handle(at(world.now), Input::Tick);
                world.restart();
                world.settle();
                world.live(0);
            } else if hour == 50 {
                world.down(HOUR / 2);
            } else {
                world.live(HOUR / 2);
            }
        }
        let found: Vec<_> = world.occurrences().iter().map(|at| at.format("%dT%H:%M").to_string()).collect();
        let expected: Vec<_> = expected.into_iter().filter(|text| !text.is_empty()).collect();
        assert_eq!(found, expected, "{cron} {zone}");
        assert!(world.statuses().iter().all(|status| *status == JobStatus::Completed));
    }
}

#[test]
fn a_crash_between_an_occurrence_and_its_job_leaves_neither_or_both() {
    let mut world = World::starting("2026-11-24T08:59:00Z", 1);
    world.create_series(Schedule::new("0 * * * *"));
    world.now += 60;
    world.engine.handle(at(world.now), Input::Tick);
    world.restart();
    assert!(world.occurrences().is_empty(), "nothing was recorded");
    world.now += 5;
    world.engine.handle(at(world.now), Input::Tick);
    let record = world.engine.take_record().expect("the occurrence");
    let tx = world.journal.transaction().expect("a transaction");
    journal::record(&tx, &record).expect("a record");
    tx.commit().expect("a commit");
    // The engine never hears of it.
    world.restart();
    world.settle();
    world.live(0);
    assert_eq!(world.occurrences(), [moment("2026-11-24T09:00:00Z")]);
    world.is("s-20261124T090000Z", JobStatus::Completed, 1, 0);
}

#[test]
fn a_clock_that_is_set_back_doubles_nothing_and_loses_nothing() {
    let mut world = World::starting("2026-11-24T08:50:00Z", 1);
    world.create_series(Schedule { missed: Missed::Skip, ..Schedule::new("*/15 * * * *") });
    for _ in 0..10 {
        world.live(7 * 60);
    }
    assert_eq!(world.occurrences().len(), 5);
    // It is 10:00, and then 9:00 again.
    world.set_clock(-HOUR);
    world.live(30 * 60);
    world.restart();
    world.settle();
    for _ in 0..20 {
        world.live(6 * 60);
    }
    let expected: Vec<_> = (0..11).map(|n| moment("2026-11-24T09:00:00Z") + TimeDelta::minutes(15) * n).collect();
    assert_eq!(world.occurrences(), expected);
    // An hour forward is not to be told from an hour of sleep; the occurrences in it were missed.
    world.set_clock(HOUR);
    world.live(0);
    assert_eq!(world.progress().passed_over.expect("one").1, PassedOver::Missed);
}

#[test]
fn what_was_missed_in_a_long_downtime_is_as_the_schedule_says() {
    for (missed, expected) in [(Missed::Run, 24), (Missed::Latest, 1), (Missed::Skip, 0)] {
        let mut world = World::starting("2026-11-24T08:30:00Z", 1);
        world.create_series(Schedule { missed, ..Schedule::new("0 * * * *") });
        world.live(HOUR);
        assert_eq!(world.occurrences().len(), 1);
        world.down(10 * 24 * HOUR);
        for _ in 0..30 {
            world.live(1);
        }
        assert_eq!(world.occurrences().len(), 1 + expected, "{missed:?}");
        let passed_over = world.progress().passed_over.expect("some");
        let left_out = moment("2026-12-04T09:00:00Z") - TimeDelta::hours(i64::try_from(expected).expect("few"));
        assert_eq!(passed_over, (left_out, PassedOver::Missed), "{missed:?}");
        assert_eq!(world.progress().next, [moment("2026-12-04T10:00:00Z")]);
        assert!(world.statuses().iter().all(|status| *status == JobStatus::Completed));
        world.live(HOUR / 2);
        assert_eq!(world.occurrences().len(), 2 + expected, "and on it goes");
    }
}

#[test]
fn an_occurrence_while_a_job_runs_is_queued_skipped_or_started() {
    let (first, second) = ("s-20261124T090000Z", "s-20261124T091000Z");
    for (overlap, second_is) in
        [(Overlap::Queue, Some(JobStatus::Queued)), (Overlap::Skip, None), (Overlap::Start, Some(JobStatus::Running))]
    {
        // Two devices, so that both jobs have one to ask.
        let mut world = World::starting("2026-11-24T08:55:00Z", 2);
        world.limits = limits(1, 8);
        world.engine = Engine::new(world.limits, at(world.now), Vec::new());
        let schedule = Schedule { overlap, ..Schedule::new("*/10 * * * *") };
        let request = JobRequest { max_execution_time_in_seconds: 10_000, ..series(schedule) };
        let tx = world.journal.transaction().expect("a transaction");
        let when = moment("2026-11-24T09:00:00Z");
        let job = journal::insert_series(&tx, request, when, at(world.now)).expect("an insert").expect("a new id");
        tx.commit().expect("a commit");
        world.engine.handle(at(world.now), Input::Created(Box::new(job)));
        world.settle();
        world.pass(5 * 60);
        assert_eq!(world.calls.len(), 1);
        world.pass(10 * 60);
        assert_eq!(world.statuses(), [Some(JobStatus::Running), second_is].into_iter().flatten().collect::<Vec<_>>());
        // So it is after a restart.
        world.restart();
        world.settle();
        let stored: Vec<_> = [Some(JobStatus::Running), second_is].into_iter().flatten().collect();
        assert_eq!(world.statuses(), stored, "{overlap:?}");
        if overlap == Overlap::Skip {
            let passed_over = Some((moment("2026-11-24T09:10:00Z"), PassedOver::Overlap));
            assert_eq!(world.progress().passed_over, passed_over);
        }
        world.live(0);
        world.is(first, JobStatus::Completed, 2, 0);
        if second_is.is_some() {
            world.is(second, JobStatus::Completed, 2, 0);
        }
    }
}

#[test]
fn not_more_jobs_than_a_day_of_hourly_ones_wait_in_line() {
    let mut world = World::starting("2026-11-24T08:59:00Z", 1);
    world.create_series(Schedule::new("* * * * *"));
    // The job's time is over after 100 seconds; the device never answers.
    for _ in 0..120 {
        world.pass(30);
    }
    let unfinished = world.statuses().iter().filter(|status| !status.is_terminal()).count();
    assert!((20..=25).contains(&unfinished), "{unfinished}");
    assert_eq!(world.progress().passed_over.map(|(_, why)| why), Some(PassedOver::Overlap));
    assert_eq!(world.statuses().iter().filter(|status| **status == JobStatus::Running).count(), 1);
}

#[test]
fn cancelling_a_series_leaves_what_has_begun() {
    let mut world = World::starting("2026-11-24T08:59:30Z", 1);
    world.create_series(Schedule::new("* * * * *"));
    world.pass(30);
    world.pass(60);
    assert_eq!(world.statuses(), [JobStatus::Running, JobStatus::Queued]);
    assert_eq!(world.cancel("s"), Obedience::Begun);
    assert_eq!((world.job("s").status, world.progress().next), (JobStatus::Cancelled, vec![]));
    assert_eq!(world.statuses(), [JobStatus::Running, JobStatus::Cancelled]);
    assert_eq!(world.cancel("s"), Obedience::Unknown);
    world.live(0);
    world.live(HOUR);
    assert_eq!(world.statuses(), [JobStatus::Completed, JobStatus::Cancelled]);
    // So is one whose creation is being recorded.
    let mut world = World::starting("2026-11-24T08:59:30Z", 1);
    world.create_series(Schedule::new("* * * * *"));
    world.now += 30;
    world.engine.handle(at(world.now), Input::Tick);
    assert_eq!(world.cancel("s"), Obedience::Begun);
    assert_eq!((world.job("s").status, world.statuses()), (JobStatus::Cancelled, vec![JobStatus::Cancelled]));
    assert_eq!(world.engine.deadline(), None);
    // A job of a series can be cancelled by itself, too, and makes room for the next.
    let mut world = World::starting("2026-11-24T08:59:30Z", 1);
    world.create_series(Schedule::new("* * * * *"));
    world.pass(30);
    world.pass(60);
    assert_eq!(world.cancel("s-20261124T090100Z"), Obedience::Begun);
    assert_eq!(world.cancel("s-20261124T090000Z"), Obedience::Begun);
    world.answer_all(&UPDATED);
    world.pass(29);
    world.pass(60);
    assert_eq!(world.statuses(), [JobStatus::Cancelled, JobStatus::Cancelled, JobStatus::Running]);
}

#[test]
fn names_of_a_series_jobs_are_its_own() {
    let mut world = World::starting("2026-11-24T08:59:30Z", 1);
    world.create(twin_job("other-20261124T090000Z"));
    world.create_series(Schedule::new("* * * * *"));
    let (now, first) = (at(world.now), at(world.now + 30));
    let tx = world.journal.transaction().expect("a transaction");
    let insert = |name: &str| journal::insert(&tx, twin_job(name), now).expect("an insert").is_some();
    assert!(!insert("s") && !insert("s-20261124T090000Z") && insert("s-2026") && insert("t-20261124T090000Z"));
    let other = JobRequest { job_id: job_id("other"), ..series(Schedule::new("* * * * *")) };
    assert_eq!(journal::insert_series(&tx, other, first, now), Ok(None));
    tx.commit().expect("a commit");
}

/// What is measured in seconds goes on after the clock was set back, and what is at a time of day stays.
#[test]
fn rates_and_retries_do_not_stall_when_the_clock_is_set_back() {
    use iothub_protocol::job::policy::{FailureClass, JobPolicy, Rate, RetryRule};
    let mut world = World::starting("2026-10-25T00:59:00Z", 3);
    let retry = RetryRule {
        on: vec![FailureClass::Offline],
        retries: 3,
        backoff_in_seconds: 10,
        maximum_backoff_in_seconds: 10,
    };
    let policy = JobPolicy { rate: Some(Rate::Constant(1)), retry: vec![retry], ..JobPolicy::default() };
    world.create(JobRequest { policy: Some(policy), max_execution_time_in_seconds: 60, ..twin_job("j") });
    world.create(JobRequest { start_time: Some(at(world.now + 90)), ..twin_job("later") });
    world.settle();
    world.pass(1);
    let (_, first, _) = world.calls[0].clone();
    let number = first.to_string()[5..].parse::<usize>().expect("a number");
    world.answer("j", number, offline());
    world.set_clock(-HOUR);
    world.pass(1);
    assert_eq!(world.calls.len(), 2, "the rate goes on: the other two have their turn");
    world.pass(10);
    assert!(world.calls.iter().any(|(_, device, attempt)| (device, *attempt) == (&first, 2)), "so does the retry");
    // The job's time is over 60 seconds after it began, 12 of which have passed.
    world.pass(47);
    assert_eq!(world.job("j").status, JobStatus::Running);
    world.pass(1);
    assert_eq!(world.job("j").status, JobStatus::Completed);
    world.pass(30);
    assert_eq!(world.job("later").status, JobStatus::Scheduled, "its time of day has not come");
    world.pass(HOUR);
    assert_eq!(world.job("later").status, JobStatus::Running);
}

#[derive(Debug, Clone)]
enum Hap {
    Pass(i64),
    /// Decided, and recorded or not, when the process ends; then down for so many minutes.
    Crash(bool, i64),
    ClockSet(i64),
}

fn hap() -> impl Strategy<Value = Hap> {
    prop_oneof![
        8 => (1..120i64).prop_map(Hap::Pass),
        3 => (any::<bool>(), 0..90i64).prop_map(|(recorded, down)| Hap::Crash(recorded, down)),
        2 => (-60..=60i64).prop_map(Hap::ClockSet),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Through clocks that are set, by law or by hand, crashes and downtimes: each occurrence that a walk through every
    /// minute finds has one job.
    #[test]
    fn every_occurrence_has_exactly_one_job(
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Antarctica/Troll",
        ]),
        cron in prop::sample::select(vec![
            "*/15 * * * *", "0 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 */3 * * *", "7 2,3 * * 7", "0 2 1 * *",
        ]),
        day in prop::sample::select(vec![
            "2026-03-07", "2026-03-28", "2026-04-04", "2026-10-03", "2026-10-24", "2026-10-31", "2028-02-28",
        ]),
        haps in prop::collection::vec(hap(), 1..60),
    ) {
        let mut world = World::starting(&format!("{day}T06:00:00Z"), 0);
        let schedule = Schedule { overlap: Overlap::Start, ..run_all(cron, zone) };
        let pattern = Pattern::parse(cron, zone).expect("a pattern");
        let start = at(world.now);
        world.create_series(schedule);
        let mut latest = world.now;
        for hap in haps {
            match hap {
                Hap::Pass(minutes) => world.pass(minutes * 60),
                Hap::Crash(is_recorded, minutes) => {
                    world.now += 60;
                    world.engine.handle(at(world.now), Input::Tick);
                    if let Some(record) = world.engine.take_record().filter(|_| is_recorded) {
                        let tx = world.journal.transaction().expect("a transaction");
                        journal::record(&tx, &record).expect("a record");
                        tx.commit().expect("a commit");
                    }
                    world.down(minutes * 60);
                }
                Hap::ClockSet(minutes) => world.set_clock(minutes * 60),
            }
            latest = latest.max(world.now);
        }
        // One at the very start counts.
        let expected = reference(&pattern, start - TimeDelta::minutes(1), at(latest));
        prop_assert_eq!(world.occurrences(), expected);
    }
}
