//! Jobs with a policy.

use std::collections::HashSet;

use iothub_protocol::job::policy::{AbortRule, JobPolicy, OnAbort, Rate, ReportRule, Stage, SuccessRule};
use iothub_protocol::job::{JobAction, TwinUpdate};
use iothub_protocol::plugin_report::{PinState, pin};
use serde_json::Value;

use super::*;

/// A twin that pins 2.0.0, whose device reports that status after that.
pub(super) fn state(status: Option<&&'static str>) -> PinState {
    let section = |entry: Value, second: u32| {
        let stamp = json!({"$lastUpdated": format!("2026-11-24T08:00:0{second}Z")});
        json!({"latch": {"plugins": {"lock-door": entry}}, "$metadata": {"latch": {"plugins": {"lock-door": stamp}}}})
    };
    let mut properties = json!({"desired": section(json!("2.0.0"), 1)});
    if let Some(status) = status {
        properties["reported"] = section(json!({"version": "2.0.0", "status": status, "reason": "so it is"}), 2);
    }
    PinState::of_twin(&json!({"properties": properties}), "lock-door")
}

pub(super) fn stage(percent: u8) -> Stage {
    Stage::new(percent)
}

pub(super) fn with(policy: JobPolicy) -> JobRequest {
    JobRequest { policy: Some(policy), ..twin_job("j") }
}

/// A job that pins lock-door: a device succeeds when it has reported for 5 seconds to run it, and fails after 30.
fn rollout(policy: JobPolicy) -> JobRequest {
    let rule = ReportRule { plugin: "lock-door".into(), soak_in_seconds: 5, timeout_in_seconds: 30 };
    let succeed = SuccessRule::Report(rule);
    let action = JobAction::UpdateTwin(TwinUpdate { tags: None, desired: Some(pin("lock-door", "2.0.0")) });
    JobRequest { action, max_execution_time_in_seconds: 1000, ..with(JobPolicy { succeed: Some(succeed), ..policy }) }
}

pub(super) fn abort(failure_percent: u8, minimum: u32, window_in_seconds: Option<u32>) -> Vec<AbortRule> {
    vec![AbortRule { minimum, window_in_seconds, ..AbortRule::new(failure_percent) }]
}

impl World {
    /// The devices of the stage, in the order in which they have their turns.
    fn stage_devices(&self, stage: u32) -> Vec<Address> {
        let mut devices: Vec<_> =
            rows(&self.journal, &job_id("j")).into_iter().filter(|row| row.stage == Some(stage)).collect();
        devices.sort_by_key(|row| row.address.rollout_place());
        devices.into_iter().map(|row| row.address).collect()
    }

    /// The devices with a call that is out, all of which are answered.
    pub(super) fn answer_all(&mut self, result: &Result<DeviceJobOutcome, HubError>) -> HashSet<Address> {
        let mut answered = HashSet::new();
        for (job, device, attempt) in std::mem::take(&mut self.calls) {
            answered.insert(device.clone());
            self.engine.handle(at(self.now), Input::Outcome { job, device, attempt, result: result.clone() });
            self.settle();
        }
        answered
    }

    /// Time passes, and reports are looked at each second.
    fn pass_looking(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.pass(1);
            self.see();
            self.settle();
        }
    }

    fn report(&mut self, devices: &[Address], status: &'static str) {
        self.reported.extend(devices.iter().map(|device| (device.clone(), status)));
    }

    fn reason(&self) -> String {
        self.job("j").failure_reason.unwrap_or_default()
    }

    fn status_of(&self, device: &Address) -> (DeviceJobStatus, String) {
        let row = rows(&self.journal, &job_id("j")).into_iter().find(|row| row.address == *device).expect("a row");
        let text = match row.outcome {
            Some(DeviceJobOutcome::Error { code, description }) => format!("{code}: {description}"),
            Some(_) => "done".to_owned(),
            None => String::new(),
        };
        (row.status, text)
    }
}

#[test]
fn stages_follow_each_other_and_a_larger_one_contains_a_smaller() {
    let mut world = World::new(40, Limits::default());
    world.create(with(JobPolicy { stages: vec![stage(5), stage(6), stage(50), stage(100)], ..JobPolicy::default() }));
    world.settle();
    let sizes = [1, 2, 3, 4].map(|stage| world.stage_devices(stage).len());
    assert_eq!(sizes, [2, 1, 17, 20], "rounded up, so that there is a first device");
    let all: Vec<_> = [1, 2, 3, 4].into_iter().flat_map(|stage| world.stage_devices(stage)).collect();
    assert!(all.is_sorted_by_key(|device| device.rollout_place()), "in the order of every rollout");
    for number in 1..=4 {
        assert_eq!(world.job("j").stage, Some(number));
        let expected: HashSet<_> = world.stage_devices(number).into_iter().collect();
        assert_eq!(world.answer_all(&UPDATED), expected);
    }
    world.is("j", JobStatus::Completed, 40, 0);
    assert_eq!(world.reason(), "");
}

#[test]
fn a_stage_that_cannot_be_good_any_more_aborts_the_job() {
    let mut world = World::new(40, Limits::default());
    let half = Stage { success_threshold: 50, ..stage(10) };
    world.create(with(JobPolicy { stages: vec![half, stage(100)], ..JobPolicy::default() }));
    world.settle();
    let first = world.stage_devices(1);
    assert_eq!(first.len(), 4);
    let number = |device: &Address| device.to_string()[5..].parse::<usize>().expect("a number");
    for device in &first[..2] {
        world.answer("j", number(device), offline());
        world.is("j", JobStatus::Running, 0, world.job("j").statistics.expect("counts").failed_count);
    }
    world.answer("j", number(&first[2]), offline());
    world.is("j", JobStatus::Running, 0, 3);
    let reason = "stage 1 of 2 (10%): 3 of 4 devices failed, and at least 50% must succeed";
    let reason = format!("{reason}; {}: DeviceNotOnline: Timed out waiting for device to connect.", first[2]);
    assert_eq!(world.reason(), reason, "it is told at once");
    // What is in flight keeps its outcome; the others have a named one.
    world.answer("j", number(&first[3]), UPDATED);
    world.is("j", JobStatus::Failed, 1, 3);
    assert_eq!(world.reason(), reason);
    for device in world.stage_devices(2) {
        let skipped = "JobAborted: skipped: the job was aborted before this device's turn";
        assert_eq!(world.status_of(&device), (DeviceJobStatus::Canceled, skipped.to_owned()));
    }
    assert_eq!((world.engine.deadline(), world.engine.in_flight()), (None, 0));
}

#[test]
fn an_abort_that_a_crash_interrupts_asks_nobody_again() {
    let mut world = World::new(3, limits(2, 1));
    world.create(with(JobPolicy { abort: abort(0, 1, None), ..JobPolicy::default() }));
    world.settle();
    let (job, failing, attempt) = world.calls.pop().expect("a call");
    let (_, in_doubt, _) = world.calls[0].clone();
    world.engine.handle(at(0), Input::Outcome { job, device: failing, attempt, result: offline() });
    world.settle();
    world.is("j", JobStatus::Running, 0, 1);
    let reason = world.reason();
    world.restart();
    world.settle();
    world.is("j", JobStatus::Failed, 0, 1);
    assert_eq!((world.reason(), world.calls.len()), (reason, 0));
    let (status, text) = world.status_of(&in_doubt);
    assert_eq!(status, DeviceJobStatus::Canceled);
    assert!(text.starts_with("JobAborted: the job was aborted after the device's turn had begun"), "{text}");
}

#[test]
fn a_sample_is_enough_and_a_pause_is_kept_over_a_restart() {
    let mut world = World::new(40, Limits::default());
    let sample = Stage { minimum_sample: Some(2), pause_in_seconds: 20, ..stage(10) };
    world.create(with(JobPolicy { stages: vec![sample, stage(100)], ..JobPolicy::default() }));
    world.settle();
    for _ in 0..2 {
        let (job, device, attempt) = world.calls.pop().expect("a call");
        world.engine.handle(at(world.now), Input::Outcome { job, device, attempt, result: UPDATED });
        world.settle();
    }
    world.pass(19);
    assert_eq!(world.job("j").stage, Some(1));
    world.restart();
    world.settle();
    assert_eq!((world.calls.len(), world.engine.deadline()), (2, Some(at(39))), "the pause begins anew");
    world.pass(20);
    assert_eq!(world.job("j").stage, Some(2));
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Completed, 40, 0);
}

#[test]
fn a_rate_spreads_starts() {
    let mut world = World::new(50, Limits::default());
    world.create(with(JobPolicy { rate: Some(Rate::Constant(10)), ..JobPolicy::default() }));
    world.settle();
    let mut sent = Vec::new();
    for _ in 0..5 {
        sent.push(world.calls.len());
        // A second in which the engine is called whenever it wants to be.
        let end = world.now + 1;
        while let Some(deadline) = world.engine.deadline().filter(|deadline| *deadline <= at(end)) {
            world.engine.handle(deadline, Input::Tick);
            world.settle();
        }
        world.now = end;
    }
    assert_eq!(sent, [1, 11, 21, 31, 41]);
    // Who could not start anybody does not make up for it all at once.
    let mut world = World::new(50, Limits::default());
    world.create(with(JobPolicy { rate: Some(Rate::Constant(10)), ..JobPolicy::default() }));
    world.settle();
    world.pass(60);
    assert_eq!(world.calls.len(), 3);
    world.cancel("j");
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Cancelled, 3, 0);
}

#[test]
fn a_failure_rate_aborts_within_its_window_only() {
    for (window, aborted) in [(None, true), (Some(50), false), (Some(100), true)] {
        let mut world = World::new(30, limits(1, 1));
        world.create(with(JobPolicy { abort: abort(40, 4, window), ..JobPolicy::default() }));
        world.settle();
        let answer = |world: &mut World, result| {
            let (job, device, attempt) = world.calls.pop().expect("a call");
            world.engine.handle(at(world.now), Input::Outcome { job, device, attempt, result });
            world.settle();
        };
        // Not so many that it would be judged.
        (0..2).for_each(|_| answer(&mut world, offline()));
        world.now += 60;
        world.restart();
        world.settle();
        (0..2).for_each(|_| answer(&mut world, UPDATED));
        assert_eq!(world.job("j").status == JobStatus::Failed, aborted, "{window:?}: {}", world.reason());
        if aborted {
            let within = window.map(|seconds| format!(" within {seconds} s")).unwrap_or_default();
            assert_eq!(world.reason(), format!("2 of 4 devices failed{within}, more than 40%"));
            assert_eq!(world.job("j").statistics.expect("counts").failed_count, 2);
        } else {
            (0..2).for_each(|_| answer(&mut world, UPDATED));
            let late = || Err(HubError::new(ErrorCode::GatewayTimeout, "late"));
            (0..3).for_each(|_| answer(&mut world, late()));
            assert!(
                world.reason().starts_with("3 of 7 devices failed within 50 s, more than 40%; door-"),
                "{window:?}"
            );
        }
    }
}

#[test]
fn a_device_succeeds_by_what_it_reports_for_long_enough() {
    let mut world = World::new(4, Limits::default());
    world.create(rollout(JobPolicy::default()));
    world.settle();
    let devices = world.stage_devices(1);
    assert_eq!(world.answer_all(&UPDATED).len(), 4);
    assert_eq!(world.engine.in_flight(), 0, "they are in nobody's way");
    world.report(&devices[..3], "active");
    world.pass_looking(5);
    world.is("j", JobStatus::Running, 0, 0);
    world.report(&devices[1..2], "failing");
    world.report(&devices[2..3], "on-its-way");
    world.pass_looking(1);
    world.is("j", JobStatus::Running, 1, 1);
    let failed = (DeviceJobStatus::Failed, "PluginVersionFailed: 2.0.0 failing: so it is".to_owned());
    assert_eq!(world.status_of(&devices[1]), failed);
    assert_eq!(world.status_of(&devices[0]), (DeviceJobStatus::Completed, "done".to_owned()));
    // The soak begins anew, and may end after the time in which the device had to report.
    world.pass_looking(22);
    world.report(&devices[2..3], "active");
    world.pass_looking(2);
    let unreported = (DeviceJobStatus::Failed, "PluginVersionNotReported: it has reported nothing".to_owned());
    assert_eq!(world.status_of(&devices[3]), unreported);
    world.is("j", JobStatus::Running, 1, 2);
    world.pass_looking(4);
    world.is("j", JobStatus::Completed, 2, 2);
    assert_eq!(world.engine.deadline(), None);
}

#[test]
fn a_bad_version_stops_itself_and_a_good_one_reaches_all() {
    let policy = || JobPolicy {
        stages: vec![stage(5), stage(50), stage(100)],
        abort: abort(10, 20, None),
        ..JobPolicy::default()
    };
    let mut world = World::new(60, Limits::default());
    world.create(rollout(policy()));
    world.settle();
    let first = world.stage_devices(1);
    assert_eq!((first.len(), world.answer_all(&UPDATED).len()), (3, 3));
    world.report(&first, "active");
    world.pass_looking(3);
    world.report(&first[..1], "failing");
    world.pass_looking(1);
    world.is("j", JobStatus::Failed, 0, 1);
    let reason = "stage 1 of 3 (5%): 1 of 3 devices failed, and at least 90% must succeed";
    assert_eq!(world.reason(), format!("{reason}; {}: 2.0.0 failing: so it is", first[0]));
    let (status, text) = world.status_of(&first[1]);
    let expected =
        "JobAborted: the job was aborted after the device's turn had begun, and before its outcome was known";
    assert_eq!((status, text.as_str()), (DeviceJobStatus::Canceled, expected));
    assert!(world.calls.is_empty() && world.looks.is_empty());

    let mut world = World::new(60, Limits::default());
    world.create(rollout(policy()));
    world.settle();
    for expected in [3, 27, 30] {
        let reached: Vec<_> = world.answer_all(&UPDATED).into_iter().collect();
        assert_eq!(reached.len(), expected);
        world.report(&reached, "active");
        world.pass_looking(6);
    }
    world.is("j", JobStatus::Completed, 60, 0);
}

#[test]
fn a_rollout_goes_on_after_a_restart_in_any_state() {
    let policy = JobPolicy { stages: vec![stage(10), stage(100)], ..JobPolicy::default() };
    let mut world = World::new(20, limits(1, 1));
    world.create(rollout(policy));
    world.restart();
    world.settle();
    let first = world.stage_devices(1);
    let answer = |world: &mut World| {
        let (job, device, attempt) = world.calls.remove(0);
        world.engine.handle(at(world.now), Input::Outcome { job, device, attempt, result: UPDATED });
        world.settle();
    };
    answer(&mut world);
    // One is awaited, one is in doubt.
    world.restart();
    world.settle();
    assert_eq!(world.calls.iter().map(|(_, device, attempt)| (device, *attempt)).collect::<Vec<_>>(), [(&first[1], 2)]);
    answer(&mut world);
    world.report(&first[..1], "active");
    world.pass_looking(6);
    world.is("j", JobStatus::Running, 1, 0);
    world.restart();
    world.settle();
    assert!(world.calls.is_empty(), "the second stage has not begun");
    // Its devices lost their connections as well, so they have a minute to come back, however late it was before.
    world.pass_looking(59);
    world.is("j", JobStatus::Running, 1, 0);
    world.report(&first[1..], "active");
    world.pass_looking(6);
    assert_eq!((world.job("j").stage, world.calls.len()), (Some(2), 1));
    world.restart();
    world.settle();
    for _ in 0..18 {
        let device = world.calls[0].1.clone();
        answer(&mut world);
        world.report(&[device], "active");
    }
    world.restart();
    world.pass_looking(7);
    world.is("j", JobStatus::Completed, 20, 0);
}

#[test]
fn a_hub_that_cannot_be_asked_fails_nobody() {
    let mut world = World::new(1, Limits::default());
    world.create(rollout(JobPolicy::default()));
    world.settle();
    world.answer_all(&UPDATED);
    world.pass(1);
    let (job, devices) = world.looks.pop().expect("a look");
    world.now = 500;
    let result = Err(HubError::new(ErrorCode::ServiceUnavailable, "away"));
    world.engine.handle(at(500), Input::Seen { job, devices, result });
    world.settle();
    world.is("j", JobStatus::Running, 0, 0);
    world.report(&[device(0)], "active");
    world.pass_looking(6);
    world.is("j", JobStatus::Completed, 1, 0);
}

#[test]
fn a_cancelled_rollout_waits_for_nobody_and_a_window_ends_what_waits() {
    let mut world = World::new(2, limits(1, 1));
    world.create(rollout(JobPolicy::default()));
    world.settle();
    let (job, first, attempt) = world.calls.pop().expect("a call");
    world.engine.handle(at(0), Input::Outcome { job, device: first.clone(), attempt, result: UPDATED });
    world.settle();
    world.cancel("j");
    world.is("j", JobStatus::Running, 0, 0);
    let second = world.answer_all(&UPDATED).into_iter().next().expect("a call was out");
    world.is("j", JobStatus::Cancelled, 0, 0);
    for device in [first, second] {
        let expected =
            "JobCancelled: the job was cancelled after the device's turn had begun, and before its outcome was known";
        assert_eq!(world.status_of(&device), (DeviceJobStatus::Canceled, expected.to_owned()));
    }

    let mut world = World::new(1, Limits::default());
    world.create(JobRequest { max_execution_time_in_seconds: 20, ..rollout(JobPolicy::default()) });
    world.settle();
    world.answer_all(&UPDATED);
    world.pass(20);
    world.is("j", JobStatus::Completed, 0, 1);
    world.failed_as("PluginVersionNotReported");
}

#[test]
fn an_aborted_rollout_takes_its_pins_back_over_a_restart() {
    let mut world = World::new(10, limits(3, 1));
    let policy = JobPolicy { abort: abort(0, 1, None), on_abort: OnAbort::Unpin, ..JobPolicy::default() };
    world.create(rollout(policy));
    world.settle();
    let mut reached = HashSet::new();
    while !world.calls.is_empty() {
        reached.extend(world.answer_all(&UPDATED));
    }
    assert_eq!(reached.len(), 10);
    world.report(&[device(4)], "quarantined");
    world.pass_looking(1);
    world.is("j", JobStatus::Running, 0, 1);
    assert!(world.reason().starts_with("1 of 1 devices failed, more than 0%; door-0004"), "{}", world.reason());
    assert_eq!(world.unpins.len(), 3, "as many as may be in flight");
    assert_eq!(world.cancel("j"), Obedience::Begun);
    let (job, _) = world.unpins.pop().expect("one");
    world.engine.handle(at(1), Input::Unpinned { job, result: Ok(()) });
    world.settle();
    assert_eq!(world.unpins.len(), 3);
    world.restart();
    world.settle();
    let mut unpinned = HashSet::new();
    while let Some((job, target)) = world.unpins.pop() {
        let result = if target == device(9) { Err(HubError::new(ErrorCode::DeviceNotFound, "gone")) } else { Ok(()) };
        unpinned.insert(target);
        world.engine.handle(at(2), Input::Unpinned { job, result });
        world.settle();
    }
    assert_eq!(unpinned, reached, "all of them once more");
    world.is("j", JobStatus::Failed, 0, 1);
    assert!(world.reason().ends_with("; 1 devices could not be unpinned, see the log"), "{}", world.reason());
    assert_eq!(world.engine.deadline(), None);
}

impl World {
    fn failed_as(&self, code: &str) {
        for row in rows(&self.journal, &job_id("j")) {
            assert!(
                matches!(&row.outcome, Some(DeviceJobOutcome::Error { code: found, .. }) if found == code),
                "{row:?}"
            );
        }
    }
}
