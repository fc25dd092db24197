//! Maintenance windows, in virtual time.

use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{
    JobPolicy, MaintenanceWindow, OfflineEnd, OfflineRule, Rate, RetryRule, Stage, WindowState, WindowZone, ZoneTag,
};
use iothub_protocol::job::steps::{Step, StepCondition};
use iothub_protocol::job::targets::JobTargets;
use iothub_protocol::time;
use proptest::prelude::*;

use super::*;
use crate::fleet::Selected;
use crate::occurrences::Pattern;

const HOUR: i64 = 3600;

fn window(cron: &str, duration_in_seconds: u32, zone: &str) -> MaintenanceWindow {
    let time_zone = WindowZone::Zone(zone.to_owned());
    MaintenanceWindow { cron: cron.to_owned(), duration_in_seconds, time_zone }
}

/// From 2:00 to 4:00 on each device's own clock.
fn own(default: Option<&str>) -> MaintenanceWindow {
    let tag = TagPath::parse("tags.zone").expect("a tag");
    let time_zone = WindowZone::Tag(ZoneTag { tag, default: default.map(str::to_owned) });
    MaintenanceWindow { time_zone, ..window("0 2 * * *", 7200, "UTC") }
}

/// A method job of three days.
fn job(policy: JobPolicy) -> JobRequest {
    JobRequest { policy: Some(policy), max_execution_time_in_seconds: 3 * 24 * 3600, ..method_job("j") }
}

fn nightly() -> JobPolicy {
    JobPolicy { windows: vec![window("0 2 * * *", 7200, "UTC")], ..JobPolicy::default() }
}

fn answered() -> Result<DeviceJobOutcome, HubError> {
    Ok(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!(null) }))
}

impl World {
    fn called(&self) -> Vec<usize> {
        let number = |address: &Address| (0..self.fleet).find(|number| device(*number) == *address).expect("a device");
        self.calls.iter().map(|(_, address, _)| number(address)).collect()
    }

    /// Time passes, and the engine is called only when it wants to be.
    fn until_wanted(&mut self, end: i64) {
        while let Some(deadline) = self.engine.deadline().filter(|deadline| *deadline < at(end)) {
            assert!(deadline >= at(self.now), "it wants to be called in the past");
            // Whole seconds, and not too early.
            self.pass((deadline + TimeDelta::milliseconds(999)).timestamp() - self.now);
        }
        self.pass(end - self.now);
    }

    /// Have the devices found with these zones.
    fn select_with(&mut self, zones: &[Option<&str>]) {
        self.pump();
        let (job, selection) = self.selections.pop().expect("a selection");
        assert_eq!(selection.labels.iter().map(ToString::to_string).collect::<Vec<_>>(), ["tags.zone"]);
        let found = zones
            .iter()
            .enumerate()
            .map(|(number, zone)| Selected { address: device(number), labels: Box::new([zone.map(Into::into)]) });
        let result = Ok(found.collect::<Vec<_>>().into());
        self.engine.handle(at(self.now), Input::Selected { job, result });
        self.settle();
    }

    fn told(&self, number: usize) -> (DeviceJobStatus, Option<String>) {
        let row = self.row("j", number);
        let code = row.outcome.and_then(|outcome| match outcome {
            DeviceJobOutcome::Error { code, .. } => Some(code),
            _ => None,
        });
        (row.status, code)
    }
}

#[test]
fn devices_are_begun_only_while_a_window_is_open_also_after_restarts() {
    let mut world = World::new(3, limits(1, 8));
    world.create(job(nightly()));
    world.settle();
    world.is("j", JobStatus::Running, 0, 0);
    assert_eq!(world.engine.deadline(), Some(at(2 * HOUR)), "nothing before it opens");
    world.pass(HOUR);
    world.restart();
    world.settle();
    world.pass(HOUR - 1);
    assert!(world.calls.is_empty());
    world.pass(1);
    assert_eq!(world.calls.len(), 1);
    let first = world.called()[0];
    world.pass(2 * HOUR - 1);
    world.answer("j", first, answered());
    assert_eq!(world.calls.len(), 1, "in the last second another one begins");
    let second = world.called()[0];
    world.pass(1);
    world.answer("j", second, answered());
    world.is("j", JobStatus::Running, 2, 0);
    assert!(world.calls.is_empty(), "it is closed");
    world.restart();
    world.settle();
    assert_eq!(world.engine.deadline(), Some(at(26 * HOUR)));
    world.pass(22 * HOUR);
    let third = world.called()[0];
    world.answer("j", third, answered());
    world.is("j", JobStatus::Completed, 3, 0);
    assert_eq!(world.engine.deadline(), None);
}

#[test]
fn what_has_begun_goes_on_after_the_window_and_retries_wait_for_the_next() {
    let mut world = World::new(1, Limits::default());
    let retry = RetryRule {
        on: vec![FailureClass::Timeout],
        retries: 3,
        backoff_in_seconds: 60,
        maximum_backoff_in_seconds: 60,
    };
    world.create(job(JobPolicy { retry: vec![retry], ..nightly() }));
    world.settle();
    world.pass(2 * HOUR);
    world.pass(2 * HOUR - 10);
    let late = || Err(HubError::new(ErrorCode::GatewayTimeout, "late"));
    world.answer("j", 0, late());
    world.until_wanted(26 * HOUR - 1);
    assert!(world.calls.is_empty(), "its time came when the window was closed");
    world.pass(1);
    assert_eq!(world.calls.len(), 1);
    // Sent in the window and answered after it.
    world.pass(3 * HOUR);
    world.answer("j", 0, answered());
    world.is("j", JobStatus::Completed, 1, 0);
    assert_eq!(world.row("j", 0).attempts, 2);
}

#[test]
fn a_device_that_has_done_its_first_step_does_the_others_after_the_window() {
    let mut world = World::new(2, limits(1, 1));
    let then = vec![Step { action: twin_job("j").action, when: StepCondition::default() }];
    world.create(JobRequest { then, ..job(nightly()) });
    world.settle();
    world.pass(2 * HOUR);
    world.pass(2 * HOUR + 60);
    let first = world.called()[0];
    world.answer("j", first, answered());
    assert_eq!((world.called(), world.sent.last()), (vec![first], Some(&"scheduleUpdateTwin")));
    world.answer("j", first, UPDATED);
    world.is("j", JobStatus::Running, 1, 0);
    assert!(world.calls.is_empty(), "the other one has not begun");
}

#[test]
fn each_device_has_its_own_clock_and_one_without_fails_with_the_reason() {
    let mut world = World::new(5, Limits::default());
    world.create(job(JobPolicy { windows: vec![own(None)], ..JobPolicy::default() }));
    // At midnight UTC it is 1:00 in Berlin, 9:00 in Tokyo and 19:00 in New York, on the day before.
    let zones = [Some("Europe/Berlin"), Some("Asia/Tokyo"), None, Some("Mars/Phobos"), Some("America/New_York")];
    world.select_with(&zones);
    world.is("j", JobStatus::Running, 0, 2);
    for (number, reason) in [(2, "the device has no tags.zone"), (3, "\"Mars/Phobos\" is no time zone")] {
        assert_eq!(world.told(number), (DeviceJobStatus::Failed, Some("DeviceHasNoTimeZone".to_owned())));
        let Some(DeviceJobOutcome::Error { description, .. }) = world.row("j", number).outcome else { panic!() };
        assert!(description.contains(reason), "{description}");
    }
    assert_eq!(world.job("j").statistics.expect("some").failures.get(FailureClass::Window), 2);
    let zones = world.job("j").zones;
    assert_eq!(zones.len(), 5, "{zones:?}");
    for (hours, number) in [(1, 0), (7, 4), (17, 1)] {
        world.until_wanted(hours * HOUR - 1);
        assert_eq!(world.called(), Vec::<usize>::new(), "{number}");
        world.restart();
        world.settle();
        world.pass(1);
        assert_eq!(world.called(), [number]);
        world.answer("j", number, answered());
    }
    world.is("j", JobStatus::Completed, 3, 2);

    let mut world = World::new(1, Limits::default());
    world.create(job(JobPolicy { windows: vec![own(Some("Europe/Berlin"))], ..JobPolicy::default() }));
    world.select_with(&[None]);
    world.until_wanted(HOUR);
    assert_eq!(world.called(), [0]);
}

#[test]
fn a_device_that_joins_a_continuous_job_waits_for_its_own_window() {
    let mut world = World::new(3, Limits::default());
    let rule = OfflineRule { wait_in_seconds: 600, then: OfflineEnd::Skip };
    let policy = JobPolicy { windows: vec![own(None)], offline: rule, ..JobPolicy::default() };
    let request = job(policy);
    let targets = Some(JobTargets { continuous: true, ..JobTargets::default() });
    world.create(JobRequest { targets, ..request });
    world.select_with(&[Some("Europe/Berlin")]);
    world.until_wanted(3 * HOUR);
    world.answer("j", 0, answered());
    let (job, selection) = world.gatherings.remove(0);
    assert_eq!(selection.labels.len(), 1, "whoever comes has a clock, too");
    let found = [(1, Some("Asia/Tokyo")), (2, None)]
        .map(|(number, zone)| Selected { address: device(number), labels: Box::new([zone.map(Into::into)]) });
    let result = Ok(found.to_vec().into());
    world.engine.handle(at(world.now), Input::Gathered { job, result });
    world.settle();
    world.is("j", JobStatus::Running, 1, 1);
    assert_eq!(world.told(2), (DeviceJobStatus::Failed, Some("DeviceHasNoTimeZone".to_owned())));
    assert_eq!(world.job("j").zones, [None, Some("Asia/Tokyo".into()), Some("Europe/Berlin".into())]);
    world.until_wanted(17 * HOUR - 1);
    world.restart();
    world.settle();
    assert!(world.calls.is_empty());
    world.pass(1);
    assert_eq!(world.called(), [1]);
    // It is waited for from then on, and not from when it came.
    world.answer("j", 1, offline());
    world.until_wanted(17 * HOUR + 30);
    world.answer("j", 1, offline());
    assert_eq!(world.row("j", 1).status, DeviceJobStatus::Pending);
    world.until_wanted(17 * HOUR + 90);
    world.answer("j", 1, answered());
    world.is("j", JobStatus::Running, 2, 1);
}

#[test]
fn at_the_end_of_the_job_a_device_whose_window_did_not_open_fails_with_that_reason() {
    let mut world = World::new(2, Limits::default());
    let request = job(JobPolicy { windows: vec![own(None)], ..JobPolicy::default() });
    world.create(JobRequest { max_execution_time_in_seconds: 4 * 3600, ..request });
    world.select_with(&[Some("Europe/Berlin"), Some("Asia/Tokyo")]);
    world.until_wanted(HOUR);
    world.answer("j", 0, answered());
    world.until_wanted(4 * HOUR);
    world.is("j", JobStatus::Completed, 1, 1);
    assert_eq!(world.told(1), (DeviceJobStatus::Failed, Some("MaintenanceWindowMissed".to_owned())));
}

#[test]
fn a_closed_window_takes_no_turn_from_other_jobs_and_keeps_stages_and_the_rate() {
    let mut world = World::new(4, Limits { in_flight: 1, ..Limits::default() });
    let stages = vec![Stage::new(50), Stage::new(100)];
    let policy = JobPolicy { stages, rate: Some(Rate::Constant(1)), priority: Priority(9), ..nightly() };
    world.create(job(policy));
    world.settle();
    world.create(twin_job("k"));
    world.settle();
    for _ in 0..4 {
        let number = world.called()[0];
        world.answer("k", number, UPDATED);
    }
    world.is("k", JobStatus::Completed, 4, 0);
    world.until_wanted(2 * HOUR);
    for done in 0..4 {
        assert_eq!(world.called().len(), 1, "{done}");
        let number = world.called()[0];
        assert_eq!(world.row("j", number).stage, Some(1 + done / 2));
        world.answer("j", number, answered());
        assert!(world.calls.is_empty(), "the rate");
        world.until_wanted(2 * HOUR + i64::from(done) + 1);
    }
    world.is("j", JobStatus::Completed, 4, 0);
}

#[test]
fn a_paused_job_begins_nothing_in_its_window_and_goes_on_in_what_is_left_of_it() {
    let mut world = World::new(1, Limits::default());
    world.create(job(nightly()));
    world.settle();
    let pause = Command::Pause { reason: String::new() };
    assert_eq!(world.engine.command(at(world.now), &job_id("j"), pause), Obedience::Begun);
    world.settle();
    world.until_wanted(3 * HOUR);
    assert!(world.calls.is_empty());
    assert_eq!(world.engine.command(at(world.now), &job_id("j"), Command::Resume), Obedience::Begun);
    world.settle();
    assert_eq!(world.called(), [0]);
}

#[test]
fn a_clock_that_is_set_closes_and_opens_windows() {
    let mut world = World::new(2, limits(1, 1));
    world.create(job(nightly()));
    world.settle();
    world.pass(2 * HOUR);
    let set = |world: &mut World, hours: i64| {
        world.now += hours * HOUR;
        world.engine.clock_set(TimeDelta::hours(hours));
        world.engine.handle(at(world.now), Input::Tick);
        world.settle();
    };
    set(&mut world, -1);
    let first = world.called()[0];
    world.answer("j", first, answered());
    assert!(world.calls.is_empty(), "it is 1:00 again");
    world.until_wanted(2 * HOUR - 1);
    assert!(world.calls.is_empty());
    world.pass(1);
    assert_eq!(world.called().len(), 1);
    set(&mut world, 2);
    let second = world.called()[0];
    world.answer("j", second, answered());
    world.is("j", JobStatus::Completed, 2, 0);
}

#[test]
fn a_device_that_is_offline_runs_once_when_it_connects_in_its_window_and_is_left_out_after_it() {
    let offline_for = |wait_in_seconds| {
        let rule = OfflineRule { wait_in_seconds, then: OfflineEnd::Skip };
        let mut world = World::new(1, Limits::default());
        let request = job(JobPolicy { offline: rule, ..nightly() });
        world.create(JobRequest { max_execution_time_in_seconds: 20 * 3600, ..request });
        world.settle();
        world.until_wanted(2 * HOUR);
        world.answer("j", 0, offline());
        world
    };
    let arrive = |world: &mut World| {
        world.engine.handle(at(world.now), Input::Arrived(device(0)));
        world.settle();
    };
    // It is looked for now and then, is away for ten minutes, and then connects.
    let mut world = offline_for(1800);
    while world.now < 2 * HOUR + 600 {
        let next = world.engine.deadline().expect("a try").timestamp().min(2 * HOUR + 600);
        world.pass(next - world.now);
        if !world.calls.is_empty() {
            world.answer("j", 0, offline());
        }
    }
    arrive(&mut world);
    assert_eq!(world.called(), [0]);
    world.answer("j", 0, answered());
    arrive(&mut world);
    world.is("j", JobStatus::Completed, 1, 0);

    // The wait is over before it connects: it began with the window, not with the job two hours before.
    let mut world = offline_for(1800);
    world.until_wanted(2 * HOUR + 30);
    world.answer("j", 0, offline());
    world.restart();
    world.settle();
    while world.now < 2 * HOUR + 1799 {
        let next = world.engine.deadline().expect("a try").timestamp().min(2 * HOUR + 1799);
        world.pass(next - world.now);
        if !world.calls.is_empty() {
            world.answer("j", 0, offline());
        }
    }
    world.is("j", JobStatus::Running, 0, 0);
    world.pass(1);
    arrive(&mut world);
    world.is("j", JobStatus::Completed, 0, 0);
    assert_eq!(world.told(0), (DeviceJobStatus::Canceled, Some("DeviceWasOffline".to_owned())));

    // It is waited for for longer than its window is open, and connects after that.
    let mut world = offline_for(10 * 3600);
    world.now = 5 * HOUR;
    arrive(&mut world);
    assert!(world.calls.is_empty(), "it is closed");
    world.until_wanted(20 * HOUR);
    world.is("j", JobStatus::Completed, 0, 0);
    assert_eq!(world.told(0), (DeviceJobStatus::Canceled, Some("DeviceWasOffline".to_owned())));
    let Some(DeviceJobOutcome::Error { description, .. }) = world.row("j", 0).outcome else { panic!() };
    assert!(description.contains("while one was open"), "{description}");
}

#[test]
fn windows_that_cannot_open_in_the_jobs_time_are_refused() {
    let start = at(5 * HOUR);
    let check = |rules: &[MaintenanceWindow], hours: u32| crate::engine::windows::check(rules, start, hours * 3600);
    let nightly = || window("0 2 * * *", 7200, "UTC");
    assert_eq!((check(&[], 1), check(&[nightly()], 22)), (Ok(()), Ok(())));
    let refused = check(&[nightly()], 21).expect_err("it opens when the job is over");
    assert!(refused.contains("opens at 1970-01-02T02:00:00.000Z"), "{refused}");
    assert_eq!(check(&[nightly(), window("* * * * *", 60, "UTC")], 1), Ok(()), "one is enough");
    assert_eq!(crate::engine::windows::check(&[nightly()], at(3 * HOUR), 60), Ok(()), "it is open");
    assert_eq!(check(&[own(None)], 1), Ok(()), "whose zones, nobody knows yet");
    assert!(check(&[own(Some("Europe/Berlin"))], 1).is_ok(), "neither here");
    for (wrong, text) in [
        (window("x", 60, "UTC"), "windows[0]: cron"),
        (window("* * * * *", 60, "Mars"), "windows[0]: \"Mars\" is no time zone"),
        (own(Some("Mars")), "windows[0]: \"Mars\" is no time zone"),
        (window("0 0 30 2 *", 60, "UTC"), "windows[0]: it never opens"),
    ] {
        let refused = check(&[wrong], 1).expect_err(text);
        assert!(refused.contains(text), "{refused}");
    }
    let zones = ["Europe/Berlin", "Asia/Tokyo", "Mars"].map(|zone| Some(zone.into()));
    let state = |now| crate::engine::windows::state(&[own(None)], at(now), zones.clone());
    let opens = |hours| Some(at(hours * HOUR));
    assert_eq!(state(0), Some(WindowState { is_open: false, closes_at: None, opens_at: opens(1) }));
    assert_eq!(state(HOUR), Some(WindowState { is_open: true, closes_at: opens(3), opens_at: opens(17) }));
    let one = |now| crate::engine::windows::state(&[own(None)], at(now), [Some("Europe/Berlin".into())]);
    assert_eq!(one(HOUR), Some(WindowState { is_open: true, closes_at: opens(3), opens_at: opens(25) }));
    assert_eq!(crate::engine::windows::state(&[own(None)], at(0), [Some("Mars".into())]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Around days on which clocks are set and leap days, with restarts and a clock that is set back: a device is begun
    /// only in a window, and as soon as there is one.
    #[test]
    fn devices_begin_in_their_windows_and_in_the_first_there_is(
        zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
        cron in prop::sample::select(vec!["30 2 * * *", "0 1 * * *", "15 2 29 2 *", "*/90 * * * *", "45 1,3 * * 7"]),
        day in prop::sample::select(vec![
            "2026-03-28", "2026-10-24", "2026-03-07", "2026-10-31", "2026-10-03", "2026-04-04", "2028-02-28",
        ]),
        minutes in 0_i64..1440,
        duration in prop::sample::select(vec![1_u32, 900, 3600, 7200]),
        restarts in prop::collection::vec(0_i64..3000, 2),
        is_set_back in any::<bool>(),
    ) {
        let start = time::parse(&format!("{day}T00:00:00Z")).expect("a day") + TimeDelta::minutes(minutes);
        let mut world = World::new(1, Limits::default());
        world.now = start.timestamp();
        let policy = JobPolicy { windows: vec![window(cron, duration, zone)], ..JobPolicy::default() };
        world.create(job(policy));
        world.settle();
        let pattern = Pattern::parse(cron, zone).expect("a pattern");
        let is_open = |now: i64| {
            let from = at(now) - TimeDelta::seconds(duration.into());
            pattern.next_after(from).is_some_and(|opens| opens <= at(now))
        };
        let end = start.timestamp() + 3 * 24 * HOUR;
        for minutes in restarts {
            let when = (start.timestamp() + minutes * 60).min(end - 1);
            if world.calls.is_empty() && when > world.now {
                world.until_wanted(when);
            }
            if !world.calls.is_empty() {
                break;
            }
            world.restart();
            world.settle();
            if is_set_back && world.calls.is_empty() {
                world.now -= HOUR;
                world.engine.clock_set(TimeDelta::hours(-1));
                world.engine.handle(at(world.now), Input::Tick);
                world.settle();
            }
        }
        while world.calls.is_empty() && world.job("j").status == JobStatus::Running {
            prop_assert!(!is_open(world.now), "open and not begun at {}", at(world.now));
            let next = pattern.next_after(at(world.now)).map_or(end, |opens| opens.timestamp());
            let next = next.min(world.engine.deadline().expect("an end").timestamp());
            prop_assert!(next > world.now);
            world.pass(next - world.now);
        }
        let rows = rows(&world.journal, &job_id("j"));
        if let Some(begun) = rows[0].start {
            prop_assert!(is_open(begun.timestamp()), "begun and not open at {begun}");
        }
    }
}
