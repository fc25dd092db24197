//! The end that a policy gives its job, and the time that it gives each device, in virtual time.

use iothub_protocol::job::policy::{EndRule, EndThen, JobPolicy, OfflineEnd, OfflineRule, RetryRule, Stage};
use iothub_protocol::job::steps::{Step, StepCondition, TwinWait};

use super::*;

fn ends(then: EndThen, at: Option<i64>) -> JobPolicy {
    let at = at.map(super::at);
    let after_in_seconds = if at.is_some() { None } else { Some(50) };
    JobPolicy { end: Some(EndRule { at, after_in_seconds, then }), ..JobPolicy::default() }
}

fn job(policy: JobPolicy) -> JobRequest {
    JobRequest { policy: Some(policy), max_execution_time_in_seconds: 1000, ..method_job("j") }
}

fn late() -> Result<DeviceJobOutcome, HubError> {
    Err(HubError::new(ErrorCode::GatewayTimeout, "late"))
}

fn answered() -> Result<DeviceJobOutcome, HubError> {
    Ok(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!(null) }))
}

fn retries() -> Vec<RetryRule> {
    let on = vec![FailureClass::Timeout];
    vec![RetryRule { on, retries: 50, backoff_in_seconds: 20, maximum_backoff_in_seconds: 20 }]
}

fn told(world: &World, number: usize) -> (DeviceJobStatus, String) {
    let row = world.row("j", number);
    let Some(DeviceJobOutcome::Error { code, .. }) = row.outcome else { panic!("{row:?}") };
    (row.status, code)
}

#[test]
fn at_its_end_a_job_stops_with_what_has_begun_also_over_restarts() {
    for (rule, restarts) in [(None, false), (None, true), (Some(50), true)] {
        let mut world = World::new(4, limits(2, 1));
        let policy = JobPolicy { retry: retries(), ..ends(EndThen::Stop, rule) };
        world.create(job(policy));
        world.settle();
        let [first, second] = [0, 1].map(|place: usize| world.calls[place].1.clone());
        let number = |address: &Address| (0..4).find(|number| device(*number) == *address).expect("one");
        let (first, second) = (number(&first), number(&second));
        world.pass(45);
        world.answer("j", first, late());
        let third = world.calls.iter().map(|(_, address, _)| number(address)).find(|one| *one != second);
        assert_eq!(world.calls.len(), 2);
        world.pass(4);
        assert_eq!(world.engine.deadline(), Some(at(50)));
        if restarts {
            world.restart();
            world.settle();
        }
        world.pass(1);
        let left_out = (0..4).filter(|one| ![Some(first), Some(second), third].contains(&Some(*one)));
        for number in left_out {
            assert_eq!(told(&world, number), (DeviceJobStatus::Canceled, "JobEnded".to_owned()));
        }
        world.is("j", JobStatus::Running, 0, 0);
        if restarts {
            world.restart();
            world.settle();
        }
        world.until_idle();
        world.is("j", JobStatus::Completed, 3, 0);
        assert!(world.row("j", first).attempts > 1, "retries are part of what has begun");
        assert_eq!((world.job("j").failure_reason, world.engine.deadline()), (None, None));
    }
}

impl World {
    /// Answer everything, until the job has ended.
    fn until_idle(&mut self) {
        while let Some(deadline) = self.engine.deadline() {
            while let Some((_, address, _)) = self.calls.first().cloned() {
                let number = (0..self.fleet).find(|number| device(*number) == address).expect("one");
                self.answer("j", number, answered());
            }
            if self.engine.deadline() == Some(deadline) {
                self.pass((deadline + TimeDelta::milliseconds(999)).timestamp() - self.now);
            }
        }
    }
}

#[test]
fn at_its_end_a_job_is_cancelled_or_waits_for_nothing() {
    for then in [EndThen::Cancel, EndThen::Force] {
        let mut world = World::new(3, limits(2, 1));
        world.create(job(ends(then, None)));
        world.settle();
        world.pass(50);
        if then == EndThen::Cancel {
            world.is("j", JobStatus::Running, 0, 0);
            world.answer_calls_with(answered);
            world.is("j", JobStatus::Cancelled, 2, 0);
        } else {
            world.is("j", JobStatus::Cancelled, 0, 0);
            // Answers that come after all are kept, and change nothing.
            world.answer_calls_with(answered);
            world.is("j", JobStatus::Cancelled, 0, 0);
        }
        let rows = rows(&world.journal, &job_id("j"));
        let left_out: Vec<_> = rows.iter().filter(|row| row.status == DeviceJobStatus::Canceled).collect();
        assert_eq!(left_out.len(), if then == EndThen::Cancel { 1 } else { 3 });
        assert!(left_out.iter().all(|row| matches!(&row.outcome,
            Some(DeviceJobOutcome::Error { code, .. }) if code == "JobEnded")));
        assert_eq!(world.job("j").failure_reason.as_deref(), Some("the end came that its policy gives it"));
        assert_eq!((world.engine.deadline(), world.engine.in_flight()), (None, 0));
    }
}

impl World {
    fn answer_calls_with(&mut self, answer: impl Fn() -> Result<DeviceJobOutcome, HubError>) {
        for (job, device, attempt) in std::mem::take(&mut self.calls) {
            self.engine.handle(at(self.now), Input::Outcome { job, device, attempt, result: answer() });
        }
        self.settle();
    }
}

#[test]
fn the_reason_of_an_end_outlasts_a_restart_between_the_end_and_the_last_answer() {
    let mut world = World::new(1, Limits::default());
    world.create(job(ends(EndThen::Cancel, None)));
    world.settle();
    world.pass(50);
    world.restart();
    world.settle();
    let job = world.job("j");
    assert_eq!(job.status, JobStatus::Cancelled);
    assert_eq!(job.failure_reason.as_deref(), Some("the end came that its policy gives it"));
    assert_eq!(told(&world, 0), (DeviceJobStatus::Canceled, "JobEnded".to_owned()));
}

#[test]
fn a_pause_moves_an_end_after_so_many_seconds_and_not_one_at_a_time_of_day() {
    for (rule, expected) in [(None, 150), (Some(50), 50)] {
        let mut world = World::new(1, Limits::default());
        world.create(job(ends(EndThen::Force, rule)));
        world.settle();
        world.pass(10);
        let pause = Command::Pause { reason: String::new() };
        assert_eq!(world.engine.command(at(world.now), &job_id("j"), pause), Obedience::Begun);
        world.settle();
        world.pass(100);
        let has_ended = world.job("j").status == JobStatus::Cancelled;
        assert_eq!(has_ended, expected == 50, "{rule:?}");
        if !has_ended {
            assert_eq!(world.engine.command(at(world.now), &job_id("j"), Command::Resume), Obedience::Begun);
            world.settle();
            assert_eq!(world.engine.deadline(), Some(at(expected)));
            // An hour back, and it is as far away as before.
            world.now -= 3600;
            world.engine.clock_set(TimeDelta::hours(-1));
            assert_eq!(world.engine.deadline(), Some(at(expected - 3600)));
        }
    }
}

#[test]
fn a_job_whose_end_has_come_goes_on_to_no_other_stage_and_waits_for_no_approval() {
    let mut world = World::new(4, Limits::default());
    let first = Stage { approval: true, ..Stage::new(50) };
    let policy = JobPolicy { stages: vec![first, Stage::new(100)], ..ends(EndThen::Stop, None) };
    world.create(job(policy));
    world.settle();
    assert_eq!(world.calls.len(), 2);
    world.pass(50);
    world.answer_calls_with(answered);
    world.is("j", JobStatus::Completed, 2, 0);
    assert_eq!(world.job("j").stage, Some(1));
}

#[test]
fn a_device_has_so_much_time_for_all_its_attempts() {
    let timeout = |policy| JobPolicy { device_timeout_in_seconds: Some(60), ..policy };
    for restarts in [false, true] {
        let mut world = World::new(2, limits(1, 1));
        world.create(job(timeout(JobPolicy { retry: retries(), ..JobPolicy::default() })));
        world.settle();
        let number = |world: &World| (0..2).find(|number| device(*number) == world.calls[0].1).expect("one");
        let first = number(&world);
        world.pass(30);
        world.answer("j", first, late());
        let second = number(&world);
        assert_ne!(first, second);
        world.answer("j", second, answered());
        if restarts {
            world.restart();
            world.settle();
        }
        // Its next attempt is out when its time is over, and its answer changes nothing.
        world.pass(20);
        assert_eq!(world.calls.len(), 1);
        world.pass(9);
        world.is("j", JobStatus::Running, 1, 0);
        world.pass(1);
        assert_eq!(told(&world, first), (DeviceJobStatus::Failed, "DeviceExecutionTimedOut".to_owned()));
        world.is("j", JobStatus::Completed, 1, 1);
        assert_eq!(world.job("j").statistics.expect("some").failures.get(FailureClass::Timeout), 1);
        world.answer_calls_with(answered);
        assert_eq!((world.engine.deadline(), world.engine.in_flight()), (None, 0));
    }

    // Waiting for a connection counts, and so does waiting for the twin before a step; a pause of the job does not.
    let rule = OfflineRule { wait_in_seconds: 900, then: OfflineEnd::Skip };
    let mut world = World::new(2, Limits::default());
    let twin = Some(TwinWait { condition: "properties.reported.locked = true".to_owned(), within_in_seconds: 900 });
    let when = StepCondition { twin, ..StepCondition::default() };
    let then = vec![Step { action: twin_job("j").action, when }];
    let policy = timeout(JobPolicy { offline: rule, ..JobPolicy::default() });
    world.create(JobRequest { then, ..job(policy) });
    world.settle();
    world.answer("j", 0, offline());
    world.answer("j", 1, answered());
    world.pass(20);
    let pause = Command::Pause { reason: String::new() };
    assert_eq!(world.engine.command(at(world.now), &job_id("j"), pause), Obedience::Begun);
    world.settle();
    world.pass(500);
    world.is("j", JobStatus::Running, 0, 0);
    assert_eq!(world.engine.command(at(world.now), &job_id("j"), Command::Resume), Obedience::Begun);
    world.settle();
    world.answer_calls_with(offline);
    world.pass(39);
    world.is("j", JobStatus::Running, 0, 0);
    world.pass(1);
    world.is("j", JobStatus::Completed, 0, 2);
    for number in 0..2 {
        assert_eq!(told(&world, number), (DeviceJobStatus::Failed, "DeviceExecutionTimedOut".to_owned()));
    }
}
