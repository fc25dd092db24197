//! Devices that fail and are tried again, are waited for, or are left out.

use iothub_protocol::job::policy::{
    AbortRule, AnswerRule, FailureClass, GrowAfter, GrowingRate, InDoubt, JobPolicy, OfflineEnd, OfflineRule, Rate,
    RetryRule, Stage, SuccessRule,
};

use super::policy::abort;
use super::*;

fn calls(policy: JobPolicy) -> JobRequest {
    JobRequest { policy: Some(policy), max_execution_time_in_seconds: 2000, ..method_job("j") }
}

fn retry(on: &[FailureClass], retries: u32) -> RetryRule {
    RetryRule { on: on.to_vec(), retries, backoff_in_seconds: 10, maximum_backoff_in_seconds: 40 }
}

fn late() -> Result<DeviceJobOutcome, HubError> {
    Err(HubError::new(ErrorCode::GatewayTimeout, "late"))
}

pub(super) fn answered(status: i32) -> Result<DeviceJobOutcome, HubError> {
    Ok(DeviceJobOutcome::Method(MethodResponse { status, payload: json!(null) }))
}

fn waiting(wait_in_seconds: u32, then: OfflineEnd) -> JobRequest {
    calls(JobPolicy { offline: OfflineRule { wait_in_seconds, then }, ..JobPolicy::default() })
}

impl World {
    fn arrives(&mut self, number: usize) {
        self.engine.handle(at(self.now), Input::Arrived(device(number)));
        self.settle();
    }

    fn code(&self, number: usize) -> String {
        match self.row("j", number).outcome {
            Some(DeviceJobOutcome::Error { code, .. }) => code,
            other => format!("{other:?}"),
        }
    }

    /// Until the device has a call again; how long that took.
    fn until_called(&mut self) -> i64 {
        let begun = self.now;
        while self.calls.is_empty() {
            assert!(self.now < begun + 1000, "it is not called again");
            self.pass(1);
        }
        self.now - begun
    }
}

#[test]
fn a_failure_that_a_rule_names_is_tried_again_later_each_time_and_over_a_restart() {
    let mut world = World::new(1, Limits::default());
    world.create(calls(JobPolicy { retry: vec![retry(&[FailureClass::Timeout], 3)], ..JobPolicy::default() }));
    world.settle();
    let mut waits = Vec::new();
    for number in 1..=3 {
        world.answer("j", 0, late());
        let row = world.row("j", 0);
        assert_eq!((row.status, row.attempts), (DeviceJobStatus::Pending, number));
        let next = row.next_attempt.expect("it is tried again");
        if number == 2 {
            world.restart();
            world.settle();
            assert_eq!(world.row("j", 0).next_attempt, Some(next), "the wait is kept");
        }
        waits.push(world.until_called());
        assert!(at(world.now) >= next);
    }
    for (wait, longest) in waits.into_iter().zip([10, 20, 40]) {
        assert!((longest / 2..=longest + 1).contains(&wait), "{wait} of {longest}");
    }
    world.is("j", JobStatus::Running, 0, 0);
    world.answer("j", 0, late());
    world.is("j", JobStatus::Completed, 0, 1);
    world.failed_with("j", 0, ErrorCode::GatewayTimeout);
    assert_eq!(world.row("j", 0).attempts, 4);
}

#[test]
fn another_failure_is_an_outcome_at_once_and_a_later_success_counts() {
    let rule = retry(&[FailureClass::Timeout, FailureClass::Fault], 9);
    let mut world = World::new(2, Limits::default());
    world.create(calls(JobPolicy { retry: vec![rule], ..JobPolicy::default() }));
    world.settle();
    world.answer("j", 0, offline());
    world.is("j", JobStatus::Running, 0, 1);
    world.answer("j", 1, late());
    world.until_called();
    world.answer("j", 1, answered(200));
    world.is("j", JobStatus::Completed, 1, 1);
    assert_eq!(world.row("j", 1).outcome, answered(200).ok());
}

#[test]
fn the_end_of_the_window_is_a_device_s_last_failure() {
    let mut world = World::new(2, Limits::default());
    let policy = JobPolicy { retry: vec![retry(&[FailureClass::Timeout], 9)], ..JobPolicy::default() };
    world.create(JobRequest { max_execution_time_in_seconds: 4, ..calls(policy) });
    world.settle();
    world.answer("j", 0, late());
    world.pass(4);
    world.is("j", JobStatus::Completed, 0, 2);
    assert_eq!(world.row("j", 0).outcome, Some(error_outcome(ErrorCode::GatewayTimeout, "late")));
}

#[test]
fn a_cancelled_job_tries_nobody_again() {
    let mut world = World::new(2, Limits::default());
    world.create(calls(JobPolicy { retry: vec![retry(&[FailureClass::Timeout], 9)], ..JobPolicy::default() }));
    world.settle();
    world.answer("j", 0, late());
    world.cancel("j");
    world.answer("j", 1, late());
    world.is("j", JobStatus::Cancelled, 0, 1);
    assert_eq!(world.row("j", 0).status, DeviceJobStatus::Canceled);
    assert_eq!(world.engine.deadline(), None);
}

#[test]
fn a_device_that_answers_badly_has_failed_with_its_answer() {
    let succeed = Some(SuccessRule::Answer(AnswerRule { statuses: vec![[200, 299]] }));
    let mut world = World::new(2, Limits::default());
    let stop = AbortRule { on: vec![FailureClass::Answer], ..abort(40, 2, None).remove(0) };
    world.create(calls(JobPolicy { succeed, abort: vec![stop], ..JobPolicy::default() }));
    world.settle();
    world.answer("j", 0, answered(500));
    assert_eq!((world.row("j", 0).status, world.row("j", 0).outcome), (DeviceJobStatus::Failed, answered(500).ok()));
    world.answer("j", 1, answered(204));
    world.is("j", JobStatus::Failed, 1, 1);
    let reason = world.job("j").failure_reason.unwrap_or_default();
    assert_eq!(reason, "1 of 2 devices failed by answer, more than 40%; door-0000: it answered 500");
}

#[test]
fn only_the_failures_that_a_rule_names_abort() {
    let mut world = World::new(30, Limits::default());
    let stop = AbortRule { on: vec![FailureClass::Timeout, FailureClass::Fault], ..abort(20, 5, None).remove(0) };
    world.create(calls(JobPolicy { abort: vec![stop], ..JobPolicy::default() }));
    world.settle();
    (0..10).for_each(|number| world.answer("j", number, offline()));
    world.is("j", JobStatus::Running, 0, 10);
    world.restart();
    world.settle();
    world.answer("j", 10, late());
    world.answer("j", 11, late());
    world.is("j", JobStatus::Running, 0, 12);
    world.answer("j", 12, late());
    let reason = world.job("j").failure_reason.unwrap_or_default();
    assert!(reason.starts_with("3 of 13 devices failed by timeout or fault, more than 20%; door-0012"), "{reason}");
}

#[test]
fn a_device_that_connects_in_time_runs_once_and_another_is_left_out() {
    let mut world = World::new(3, Limits::default());
    world.create(waiting(900, OfflineEnd::Skip));
    world.settle();
    (0..3).for_each(|number| world.answer("j", number, offline()));
    world.is("j", JobStatus::Running, 0, 0);
    // It is looked for now and then, in vain.
    for _ in 0..600 {
        world.pass(1);
        let calls: Vec<_> = world.calls.iter().map(|(_, device, _)| device.clone()).collect();
        for number in (0..3).filter(|number| calls.contains(&device(*number))) {
            world.answer("j", number, offline());
        }
    }
    world.restart();
    world.settle();
    assert!(world.calls.is_empty(), "the wait is kept");
    world.arrives(0);
    assert_eq!(world.calls.len(), 1);
    world.arrives(0);
    world.answer("j", 0, answered(200));
    world.is("j", JobStatus::Running, 1, 0);
    while world.now < 900 {
        world.pass(1);
        let calls: Vec<_> = world.calls.iter().map(|(_, device, _)| device.clone()).collect();
        for number in (1..3).filter(|number| calls.contains(&device(*number))) {
            world.answer("j", number, offline());
        }
    }
    world.is("j", JobStatus::Completed, 1, 0);
    world.arrives(1);
    assert!(world.calls.is_empty());
    let row = world.row("j", 1);
    let text = "the device was not connected within 900 s of the job's beginning";
    let outcome = DeviceJobOutcome::Error { code: "DeviceWasOffline".into(), description: text.into() };
    assert_eq!((row.status, row.outcome), (DeviceJobStatus::Canceled, Some(outcome)));
}

#[test]
fn a_device_that_connects_while_its_attempt_fails_is_not_missed() {
    let mut world = World::new(2, Limits::default());
    world.create(waiting(900, OfflineEnd::Fail));
    world.settle();
    world.arrives(0);
    world.answer("j", 0, offline());
    assert!(world.calls.contains(&(job_id("j"), device(0), 2)), "asked again at once");
    world.answer("j", 0, offline());
    assert!(!world.calls.contains(&(job_id("j"), device(0), 3)), "once for each time that it connects");
    world.arrives(0);
    assert!(world.calls.contains(&(job_id("j"), device(0), 3)));
    // In doubt, it is asked again at once, whenever it was to be looked for before it connected.
    world.restart();
    world.settle();
    assert!(world.calls.contains(&(job_id("j"), device(0), 4)));
    world.answer("j", 1, offline());
    world.engine.handle(at(world.now), Input::ManyArrived);
    world.settle();
    assert!(world.calls.contains(&(job_id("j"), device(1), 3)));
    world.answer("j", 0, answered(200));
    world.answer("j", 1, offline());
    world.pass(1000);
    world.is("j", JobStatus::Completed, 1, 1);
    assert_eq!(world.code(1), "DeviceWasOffline");
}

#[test]
fn a_device_can_be_left_out_without_waiting_and_its_stage_goes_on() {
    let stage = |percent| Stage { success_threshold: 100, ..Stage::new(percent) };
    let mut world = World::new(2, Limits::default());
    let offline_rule = OfflineRule { wait_in_seconds: 0, then: OfflineEnd::Skip };
    let stages = vec![stage(50), stage(100)];
    world.create(calls(JobPolicy { stages, offline: offline_rule, ..JobPolicy::default() }));
    world.settle();
    let first = world.calls[0].1.clone();
    let number = (0..2).find(|number| device(*number) == first).expect("one of them");
    world.answer("j", number, offline());
    assert_eq!((world.code(number).as_str(), world.calls.len()), ("DeviceWasOffline", 1), "the next stage");
    world.answer("j", 1 - number, answered(200));
    world.is("j", JobStatus::Completed, 1, 0);
}

#[test]
fn in_doubt_can_be_a_failure() {
    let mut world = World::new(2, limits(1, 1));
    world.create(calls(JobPolicy { in_doubt: InDoubt::Fail, ..JobPolicy::default() }));
    world.settle();
    let first = (0..2).find(|number| device(*number) == world.calls[0].1).expect("one of them");
    world.restart();
    world.settle();
    world.is("j", JobStatus::Running, 0, 1);
    assert_eq!(world.code(first), "AttemptInDoubt");
    assert_eq!(world.calls, [(job_id("j"), device(1 - first), 1)]);
    world.answer("j", 1 - first, answered(200));
    world.is("j", JobStatus::Completed, 1, 1);
}

#[test]
fn a_growing_rate_grows_and_knows_over_a_restart_how_far_it_has_come() {
    let growing = GrowingRate { base: 1, factor: 2, maximum: 8, grow_after: GrowAfter::Started(4) };
    let mut world = World::new(100, Limits::default());
    world.create(calls(JobPolicy { rate: Some(Rate::Growing(growing)), ..JobPolicy::default() }));
    world.settle();
    let second = |world: &mut World| {
        let (before, end) = (world.calls.len(), world.now + 1);
        while let Some(deadline) = world.engine.deadline().filter(|deadline| *deadline <= at(end)) {
            world.engine.handle(deadline, Input::Tick);
            world.settle();
        }
        world.now = end;
        world.calls.len() - before
    };
    let first: Vec<_> = (0..5).map(|_| second(&mut world)).collect();
    assert_eq!(first, [1, 1, 1, 2, 2]);
    let later: Vec<_> = (0..6).map(|_| second(&mut world)).collect();
    assert!(later.is_sorted() && later.last() == Some(&8), "{later:?}");
    world.answer_all(&answered(200));
    world.restart();
    world.settle();
    assert_eq!(second(&mut world), 8);
}

/// It had been said that the device was there, but of an attempt before.
#[test]
fn a_device_that_was_there_for_an_attempt_before_is_waited_for_all_the_same() {
    let mut world = World::new(1, Limits::default());
    let policy = JobPolicy { retry: vec![retry(&[FailureClass::Timeout], 9)], ..JobPolicy::default() };
    world.create(calls(JobPolicy { offline: OfflineRule { wait_in_seconds: 600, then: OfflineEnd::Fail }, ..policy }));
    world.settle();
    world.arrives(0);
    world.answer("j", 0, late());
    world.until_called();
    world.answer("j", 0, offline());
    assert_eq!(world.row("j", 0).next_attempt, Some(at(world.now + 30)));
}

#[test]
fn a_device_that_failed_and_is_waited_for_is_so_after_a_restart() {
    let rule = retry(&[FailureClass::Timeout], 9);
    let offline_rule = OfflineRule { wait_in_seconds: 600, then: OfflineEnd::Fail };
    let mut world = World::new(2, Limits::default());
    world.create(calls(JobPolicy { retry: vec![rule], offline: offline_rule, ..JobPolicy::default() }));
    world.settle();
    for number in 0..2 {
        world.answer("j", number, late());
    }
    for number in 0..2 {
        world.until_called();
        while world.calls.iter().all(|(_, target, _)| *target != device(number)) {
            world.pass(1);
        }
        world.answer("j", number, offline());
    }
    assert_eq!(world.row("j", 0).outcome, None, "it has no failure to show while it is waited for");
    world.restart();
    world.settle();
    world.arrives(0);
    assert_eq!(world.calls, [(job_id("j"), device(0), 3)], "as soon as it connects");
    world.pass(600);
    assert_eq!(world.code(1), "DeviceWasOffline");
}

#[test]
fn who_is_waited_for_at_the_window_s_end_was_offline_also_after_a_restart() {
    let mut world = World::new(1, Limits::default());
    world.create(JobRequest { max_execution_time_in_seconds: 20, ..waiting(600, OfflineEnd::Fail) });
    world.settle();
    world.answer("j", 0, offline());
    world.restart();
    world.pass(20);
    world.failed_with("j", 0, ErrorCode::DeviceNotOnline);
}

/// As its successes are longer ago, a rule with a window can be broken when nothing is in flight.
#[test]
fn a_job_that_time_alone_aborts_ends_at_once() {
    let policy = JobPolicy {
        retry: vec![RetryRule { backoff_in_seconds: 30, ..retry(&[FailureClass::Timeout], 9) }],
        abort: abort(60, 1, Some(8)),
        ..JobPolicy::default()
    };
    let mut world = World::new(3, Limits::default());
    world.create(calls(policy));
    world.settle();
    world.answer("j", 1, late());
    let next = (world.row("j", 1).next_attempt.expect("it is tried again") - at(0)).num_seconds();
    world.pass(next - 9);
    world.answer("j", 0, answered(200));
    world.pass(7);
    world.answer("j", 2, offline());
    world.is("j", JobStatus::Running, 1, 1);
    world.pass(3);
    world.is("j", JobStatus::Failed, 1, 1);
}
