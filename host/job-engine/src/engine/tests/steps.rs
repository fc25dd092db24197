//! Jobs that do more than one thing on each device.

use iothub_protocol::job::policy::{AnswerRule, FailureClass, RetryRule};
use iothub_protocol::job::policy::{JobPolicy, OnAbort, Rate, SuccessRule};
use iothub_protocol::job::steps::{Otherwise, Step, StepCondition, TwinWait};
use iothub_protocol::job::{JobAction, TwinUpdate};

use super::policy::{abort, with};
use super::retries::answered;
use super::*;

/// Tag the device.
fn tag(when: StepCondition) -> Step {
    let tags = json!({"state": "locked"}).as_object().cloned();
    Step { action: JobAction::UpdateTwin(TwinUpdate { tags, desired: None }), when }
}

fn call(when: StepCondition) -> Step {
    Step { action: method_job("x").action, when }
}

fn after_answer(status: i32, otherwise: Otherwise) -> StepCondition {
    StepCondition { answer: Some(AnswerRule { statuses: vec![[status, status]] }), twin: None, otherwise }
}

fn after_report(within_in_seconds: u32) -> StepCondition {
    let condition = "properties.reported.locked = true".to_owned();
    let twin = Some(TwinWait { condition, within_in_seconds });
    StepCondition { answer: None, twin, otherwise: Otherwise::Fail }
}

fn lock_then(then: Vec<Step>) -> JobRequest {
    JobRequest { then, max_execution_time_in_seconds: 1000, ..method_job("j") }
}

impl World {
    /// Answer the looks at twins that are out: those of devices that are locked match.
    fn see_locked(&mut self, locked: &[usize]) {
        for (job, step, condition, devices) in std::mem::take(&mut self.matches) {
            assert!(condition.matches(&json!({"properties": {"reported": {"locked": true}}})));
            let locked: Vec<_> = locked.iter().map(|number| device(*number)).collect();
            let result = Ok(devices.iter().filter(|device| locked.contains(device)).cloned().collect());
            self.engine.handle(at(self.now), Input::Matched { job, step, devices, result });
        }
        self.settle();
    }

    fn steps(&self) -> Vec<(u32, u32)> {
        rows(&self.journal, &job_id("j")).iter().map(|row| (row.step, row.attempts)).collect()
    }
}

#[test]
fn steps_follow_each_other_on_each_device_and_the_answer_stays_its_outcome() {
    let mut world = World::new(2, limits(1, 9));
    world.create(lock_then(vec![call(StepCondition::default()), tag(StepCondition::default())]));
    world.settle();
    world.answer("j", 0, answered(200));
    assert_eq!(world.calls.len(), 1, "the first goes on, and the second waits for its turn");
    world.answer("j", 0, answered(201));
    assert_eq!(world.steps(), [(3, 3), (1, 0)]);
    world.answer("j", 0, UPDATED);
    assert_eq!(world.row("j", 0).outcome, answered(201).ok());
    for result in [answered(200), answered(200), UPDATED] {
        world.answer("j", 1, result);
    }
    world.is("j", JobStatus::Completed, 2, 0);
    assert_eq!(world.row("j", 1).to_json()["latch"]["step"], 3);
}

#[test]
fn each_step_has_its_own_action_and_a_restart_repeats_the_one_in_doubt() {
    let mut world = World::new(1, Limits::default());
    world.create(lock_then(vec![tag(StepCondition::default())]));
    world.settle();
    world.answer("j", 0, answered(200));
    world.restart();
    world.settle();
    assert_eq!((world.steps(), world.sent.last().cloned()), (vec![(2, 3)], Some("scheduleUpdateTwin")));
    world.answer("j", 0, UPDATED);
    world.is("j", JobStatus::Completed, 1, 0);
    assert_eq!(world.row("j", 0).outcome, answered(200).ok(), "what was answered before the restart");
    assert_eq!(world.sent, ["scheduleDeviceMethod", "scheduleUpdateTwin", "scheduleUpdateTwin"]);
}

#[test]
fn a_step_waits_for_the_devices_twin_over_a_restart_and_fails_the_device_in_time() {
    let mut world = World::new(3, limits(1, 9));
    world.create(lock_then(vec![tag(after_report(90))]));
    world.settle();
    for number in 0..3 {
        world.answer("j", number, answered(200));
    }
    assert!(world.calls.is_empty(), "nobody is in the way of others while it waits");
    world.pass(1);
    world.see_locked(&[0]);
    world.answer("j", 0, UPDATED);
    world.is("j", JobStatus::Running, 1, 0);
    world.pass(40);
    world.restart();
    world.pass(1);
    world.see_locked(&[1]);
    world.answer("j", 1, UPDATED);
    world.pass(47);
    world.see_locked(&[]);
    world.is("j", JobStatus::Running, 2, 0);
    // After a restart devices have 60 seconds at least to come back.
    world.pass(20);
    world.see_locked(&[]);
    world.is("j", JobStatus::Completed, 2, 1);
    let failed = world.row("j", 2).to_json();
    let text = "step 2: within 90 s the device's twin did not fulfil: properties.reported.locked = true";
    assert_eq!(
        (&failed["error"]["code"], &failed["error"]["description"]),
        (&json!("StepConditionNotMet"), &json!(text))
    );
}

#[test]
fn nobody_fails_while_twins_cannot_be_read() {
    let mut world = World::new(1, Limits::default());
    world.create(lock_then(vec![tag(after_report(5))]));
    world.settle();
    world.answer("j", 0, answered(200));
    world.pass(10);
    let (job, step, _, devices) = world.matches.remove(0);
    let result = Err(HubError::new(ErrorCode::ServiceUnavailable, "not now"));
    world.engine.handle(at(world.now), Input::Matched { job, step, devices, result });
    world.settle();
    world.is("j", JobStatus::Running, 0, 0);
    world.pass(1);
    world.see_locked(&[0]);
    world.answer("j", 0, UPDATED);
    world.is("j", JobStatus::Completed, 1, 0);
}

#[test]
fn an_answer_that_is_not_the_one_that_a_step_wants_fails_the_device_or_finishes_it() {
    for (otherwise, succeeded) in [(Otherwise::Fail, 1), (Otherwise::Finish, 2)] {
        let mut world = World::new(2, Limits::default());
        world.create(lock_then(vec![tag(after_answer(200, otherwise))]));
        world.settle();
        world.answer("j", 0, answered(200));
        world.answer("j", 1, answered(409));
        world.answer("j", 0, UPDATED);
        world.is("j", JobStatus::Completed, succeeded, 2 - succeeded);
        match otherwise {
            Otherwise::Finish => assert_eq!(world.row("j", 1).outcome, answered(409).ok()),
            Otherwise::Fail => {
                let text = "step 2: the answer before it has another status";
                assert_eq!(world.row("j", 1).to_json()["error"]["description"], text);
            }
        }
    }
}

#[test]
fn a_step_that_fails_is_tried_again_and_the_steps_before_are_not() {
    let retry =
        RetryRule { on: vec![FailureClass::Timeout], retries: 2, backoff_in_seconds: 4, maximum_backoff_in_seconds: 4 };
    let mut world = World::new(1, Limits::default());
    let policy = Some(JobPolicy { retry: vec![retry], ..JobPolicy::default() });
    world.create(JobRequest { policy, ..lock_then(vec![tag(StepCondition::default())]) });
    world.settle();
    world.answer("j", 0, answered(200));
    world.answer("j", 0, Err(HubError::new(ErrorCode::GatewayTimeout, "late")));
    world.restart();
    world.pass(4);
    assert_eq!(world.sent, ["scheduleDeviceMethod", "scheduleUpdateTwin", "scheduleUpdateTwin"]);
    world.answer("j", 0, UPDATED);
    world.is("j", JobStatus::Completed, 1, 0);
}

#[test]
fn a_rate_is_one_of_devices_and_a_pause_comes_between_steps() {
    let mut world = World::new(2, Limits::default());
    let policy = Some(JobPolicy { rate: Some(Rate::Constant(1)), ..JobPolicy::default() });
    world.create(JobRequest { policy, ..lock_then(vec![tag(StepCondition::default())]) });
    world.settle();
    let (_, first, _) = world.calls[0].clone();
    world.answer_all(&answered(200));
    assert_eq!(
        world.calls.iter().filter(|(_, device, _)| *device == first).count(),
        1,
        "it does not wait for the rate"
    );
    world.engine.command(at(0), &job_id("j"), Command::Pause { reason: String::new() });
    world.answer_all(&UPDATED);
    world.pass(1);
    assert!(world.calls.is_empty());
    world.engine.command(at(1), &job_id("j"), Command::Resume);
    world.settle();
    world.engine.command(at(1), &job_id("j"), Command::Pause { reason: String::new() });
    world.answer_all(&answered(200));
    assert!(world.calls.is_empty(), "the next step is something new");
    assert_eq!(
        rows(&world.journal, &job_id("j")).iter().filter(|row| row.status == DeviceJobStatus::Pending).count(),
        1
    );
    world.engine.command(at(1), &job_id("j"), Command::Resume);
    world.settle();
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Completed, 2, 0);
}

#[test]
fn a_cancelled_or_aborted_job_leaves_its_further_steps_undone() {
    let mut world = World::new(3, Limits::default());
    world.create(lock_then(vec![tag(after_report(90))]));
    world.settle();
    world.answer("j", 0, answered(200));
    world.cancel("j");
    world.answer("j", 1, answered(200));
    world.answer("j", 2, Err(HubError::new(ErrorCode::GatewayTimeout, "late")));
    world.is("j", JobStatus::Cancelled, 0, 1);
    assert!(world.calls.is_empty());
    let codes = [0, 1].map(|number| world.row("j", number).to_json()["error"]["code"].clone());
    assert_eq!(codes, ["JobCancelled", "JobCancelled"].map(|code| json!(code)));
}

#[test]
fn answers_that_do_not_count_end_a_device_before_its_next_step() {
    let mut world = World::new(1, Limits::default());
    let succeed = Some(SuccessRule::Answer(AnswerRule { statuses: vec![[200, 299]] }));
    let policy = JobPolicy { succeed, abort: abort(0, 1, None), on_abort: OnAbort::Keep, ..JobPolicy::default() };
    let JobRequest { policy, .. } = with(policy);
    world.create(JobRequest { policy, ..lock_then(vec![tag(StepCondition::default())]) });
    world.settle();
    world.answer("j", 0, answered(500));
    world.is("j", JobStatus::Failed, 0, 1);
    assert_eq!(world.sent.len(), 1);
}
