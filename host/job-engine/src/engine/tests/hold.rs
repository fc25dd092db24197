//! Jobs that are paused, wait for approval, and tell groups of devices apart.

use iothub_protocol::job::HoldCause;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{AbortRule, JobPolicy, OfflineEnd, OfflineRule, OnAbort, Stage};

use super::policy::{abort, stage, with};
use super::*;

fn pause() -> Command {
    Command::Pause { reason: "a look first".to_owned() }
}

fn late() -> Result<DeviceJobOutcome, HubError> {
    Err(HubError::new(ErrorCode::GatewayTimeout, "late"))
}

impl World {
    fn command(&mut self, command: Command) -> Obedience {
        let met = self.engine.command(at(self.now), &job_id("j"), command);
        self.settle();
        met
    }

    /// What holds the job, and why.
    fn hold(&self) -> Option<(HoldCause, String)> {
        self.job("j").hold.map(|hold| (hold.cause, hold.reason))
    }

    /// Answer those calls that are out, each by its device's number.
    fn answer_by(&mut self, mut result: impl FnMut(usize) -> Result<DeviceJobOutcome, HubError>) {
        for (job, device, attempt) in std::mem::take(&mut self.calls) {
            let number = device.device().as_str().trim_start_matches("door-").parse().expect("a number");
            self.engine.handle(at(self.now), Input::Outcome { job, device, attempt, result: result(number) });
            self.settle();
        }
    }
}

#[test]
fn a_paused_job_begins_nothing_new_keeps_outcomes_and_goes_on_with_the_rest() {
    let mut world = World::new(6, limits(2, 9));
    world.create(twin_job("j"));
    world.settle();
    assert_eq!(world.calls.len(), 2);
    assert_eq!(world.command(pause()), Obedience::Begun);
    assert_eq!(world.command(pause()), Obedience::Begun, "again is as once");
    assert_eq!(world.hold(), Some((HoldCause::Operator, "a look first".to_owned())));
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Running, 2, 0);
    assert!(world.calls.is_empty(), "what was out is taken, and nothing follows");
    // Its window of 100 seconds stands still, over a restart as well.
    world.pass(500);
    world.restart();
    world.pass(500);
    world.is("j", JobStatus::Running, 2, 0);
    assert!(world.calls.is_empty());
    assert_eq!(world.engine.deadline(), None, "nothing is waited for");

    assert_eq!(world.command(Command::Resume), Obedience::Begun);
    assert_eq!((world.hold(), world.calls.len()), (None, 2));
    assert_eq!(world.engine.deadline(), Some(at(1100)), "100 seconds, and the 1000 of the pause");
    world.restart();
    world.settle();
    assert_eq!(world.engine.deadline(), Some(at(1100)), "and that is recorded");
    while !world.calls.is_empty() {
        world.answer_all(&UPDATED);
    }
    world.is("j", JobStatus::Completed, 6, 0);
    assert_eq!(world.command(pause()), Obedience::Unknown);
}

#[test]
fn a_job_that_is_paused_before_its_time_begins_when_it_is_resumed() {
    let mut world = World::new(1, Limits::default());
    world.create(JobRequest { start_time: Some(at(50)), ..twin_job("j") });
    world.settle();
    world.command(pause());
    world.pass(60);
    world.restart();
    world.pass(40);
    world.is("j", JobStatus::Scheduled, 0, 0);
    world.command(Command::Resume);
    world.is("j", JobStatus::Running, 0, 0);
    assert_eq!(world.engine.deadline(), Some(at(200)), "with all of its time");
}

#[test]
fn a_job_that_is_paused_while_it_selects_begins_with_all_of_its_time() {
    let mut world = World::new(1, Limits::default());
    world.create(twin_job("j"));
    world.pump();
    world.engine.command(at(0), &job_id("j"), pause());
    world.now = 30;
    world.settle();
    assert!(world.calls.is_empty() && world.job("j").status == JobStatus::Running);
    world.now = 40;
    world.command(Command::Resume);
    assert_eq!((world.calls.len(), world.engine.deadline()), (1, Some(at(140))));
}

#[test]
fn a_paused_job_can_be_cancelled_and_leaves_its_place_to_others() {
    let mut world = World::new(2, limits(1, 1));
    world.create(twin_job("j"));
    world.create(JobRequest { query_condition: "deviceId = 'door-0001'".into(), ..twin_job("k") });
    world.settle();
    world.is("k", JobStatus::Queued, 0, 0);
    world.command(pause());
    world.settle();
    world.answer_all(&UPDATED);
    world.answer_all(&UPDATED);
    world.is("k", JobStatus::Completed, 1, 0);
    world.restart();
    assert_eq!(world.command(Command::Cancel), Obedience::Begun);
    assert_eq!(world.hold(), None);
}

#[test]
fn devices_that_are_waited_for_are_so_longer_by_the_pause() {
    let offline_rule = OfflineRule { wait_in_seconds: 60, then: OfflineEnd::Skip };
    let mut world = World::new(1, Limits::default());
    let policy = Some(JobPolicy { offline: offline_rule, ..JobPolicy::default() });
    world.create(JobRequest { policy, max_execution_time_in_seconds: 100, ..method_job("j") });
    world.settle();
    world.command(pause());
    world.answer_all(&offline());
    world.pass(300);
    world.is("j", JobStatus::Running, 0, 0);
    world.command(Command::Resume);
    // It was offline before, and is asked again at once.
    world.answer_all(&offline());
    world.pass(59);
    world.answer_all(&offline());
    assert_eq!(world.job("j").status, JobStatus::Running);
    world.pass(1);
    world.is("j", JobStatus::Completed, 0, 0);
    assert_eq!(rows(&world.journal, &job_id("j"))[0].status, DeviceJobStatus::Canceled);
}

#[test]
fn a_stage_waits_for_approval_and_its_own_devices_go_on_meanwhile() {
    let mut world = World::new(20, Limits::default());
    let first = Stage { approval: true, minimum_sample: Some(1), pause_in_seconds: 5, ..stage(10) };
    world.create(with(JobPolicy { stages: vec![first, stage(100)], ..JobPolicy::default() }));
    world.settle();
    let two = world.calls.len();
    let (job, device, attempt) = world.calls.remove(0);
    world.engine.handle(at(0), Input::Outcome { job, device, attempt, result: UPDATED });
    world.settle();
    assert_eq!(world.hold(), None, "its pause comes first");
    world.pass(5);
    let reason = "stage 1 of 2 went well: 1 of 2 devices succeeded";
    assert_eq!((two, world.hold()), (2, Some((HoldCause::Approval, reason.to_owned()))));
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Running, 2, 0);
    world.restart();
    world.pass(5000);
    assert!(world.calls.is_empty());
    let refused = |met: Obedience| matches!(met, Obedience::Refused(_));
    assert!(refused(world.command(Command::Resume)), "it takes more than that");
    assert!(refused(world.command(Command::Approve { stage: Some(2) })), "that is not the stage");
    assert_eq!(world.command(Command::Approve { stage: Some(1) }), Obedience::Begun);
    assert_eq!((world.hold(), world.job("j").stage, world.calls.len()), (None, Some(2), 18));
    assert!(refused(world.command(Command::Approve { stage: None })), "nothing to approve of");
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Completed, 20, 0);
}

#[test]
fn a_rule_that_pauses_names_the_group_and_the_rest_follows_after_a_resume() {
    // One device of each ten is in the building b3, where every second one fails.
    let mut world = World::new(200, limits(50, 9));
    let rule = AbortRule { per_group: true, minimum: 3, ..AbortRule::new(30) };
    let group_by = Some(TagPath::parse("tags.building").expect("a tag"));
    let stages = vec![Stage { success_threshold: 0, ..stage(50) }, stage(100)];
    let policy = JobPolicy { stages, abort: vec![rule], on_abort: OnAbort::Pause, group_by, ..JobPolicy::default() };
    world.create(with(policy));
    world.settle();
    let fails = |number: usize| number % 10 == 3 && number % 20 == 3;
    while world.hold().is_none() {
        assert!(!world.calls.is_empty() && world.job("j").stage == Some(1), "it has to stop in the first stage");
        world.answer_by(|number| if fails(number) { late() } else { UPDATED });
    }
    let (cause, reason) = world.hold().expect("a hold");
    assert_eq!(cause, HoldCause::Rule);
    assert!(reason.contains("devices of b3 failed, more than 30%; by tags.building: b3: "), "{reason}");
    let is_terminal = |row: &DeviceJob| row.status.is_terminal();
    let before: Vec<_> = rows(&world.journal, &job_id("j")).into_iter().filter(is_terminal).collect();
    let failed = before.iter().filter(|row| row.status == DeviceJobStatus::Failed).count() as u64;
    assert!(before.len() < 200 && failed > 0);
    let report = journal::report(&world.journal, &job_id("j")).expect("a read").expect("the job");
    assert_eq!((&report["groupBy"], &report["groups"][0]["group"]), (&"tags.building".into(), &"b3".into()));
    assert_eq!(report["groups"][0]["failures"]["timeout"], failed);
    assert_eq!((&report["groups"][1]["failures"], &report["devices"]), (&json!({}), &200.into()));

    // Mended. What failed does not count any more, and no device is asked twice, whatever restarts.
    world.restart();
    assert_eq!(world.command(Command::Resume), Obedience::Begun);
    world.restart();
    world.settle();
    while !world.calls.is_empty() {
        for (_, device, _) in &world.calls {
            assert!(before.iter().all(|row| row.address != *device), "{device} has had its outcome");
        }
        world.answer_by(|_| UPDATED);
    }
    world.is("j", JobStatus::Completed, 200 - failed, failed);
    let after = rows(&world.journal, &job_id("j"));
    assert!(before.iter().all(|row| after.contains(row)), "what could be read is as it was");
}

#[test]
fn a_job_that_fails_on_after_a_resume_is_paused_again() {
    let mut world = World::new(40, limits(10, 9));
    world.create(with(JobPolicy { abort: abort(50, 4, None), on_abort: OnAbort::Pause, ..JobPolicy::default() }));
    world.settle();
    for round in 1..=2 {
        world.answer_all(&late());
        let (cause, reason) = world.hold().expect("a hold");
        assert_eq!(cause, HoldCause::Rule);
        assert!(reason.starts_with("4 of 4 devices failed, more than 50%; door-"), "round {round}: {reason}");
        world.command(Command::Resume);
    }
}

#[test]
fn a_wait_that_began_during_a_pause_ends_with_that_of_all() {
    let offline_rule = OfflineRule { wait_in_seconds: 5, then: OfflineEnd::Fail };
    let mut world = World::new(1, Limits::default());
    world.create(JobRequest {
        policy: Some(JobPolicy { offline: offline_rule, ..JobPolicy::default() }),
        ..method_job("j")
    });
    world.settle();
    world.command(pause());
    world.answer("j", 0, offline());
    world.command(Command::Resume);
    assert_eq!(world.engine.deadline(), Some(at(5)), "and not when it would be tried again");
    world.restart();
    world.settle();
    assert_eq!(world.engine.deadline(), Some(at(5)));
    world.pass(5);
    world.is("j", JobStatus::Completed, 0, 1);
}

#[test]
fn a_stage_s_pause_begins_anew_after_one_of_the_job() {
    let mut world = World::new(2, Limits::default());
    let first = Stage { pause_in_seconds: 10, ..stage(50) };
    world.create(with(JobPolicy { stages: vec![first, stage(100)], ..JobPolicy::default() }));
    world.settle();
    world.answer_all(&UPDATED);
    world.pass(9);
    world.command(pause());
    world.command(Command::Resume);
    world.pass(9);
    assert_eq!(world.job("j").stage, Some(1));
    world.pass(1);
    assert_eq!(world.job("j").stage, Some(2));
}
