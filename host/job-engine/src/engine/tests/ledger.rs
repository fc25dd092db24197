//! What is kept of attempts, and who did what.

use iothub_protocol::job::policy::{FailureClass, JobPolicy, OfflineEnd, OfflineRule, RetryRule};

use super::*;
use crate::audit::{self, Note};

const ANSWERED: Result<DeviceJobOutcome, HubError> = UPDATED;

fn timed_out() -> Result<DeviceJobOutcome, HubError> {
    Err(HubError::new(ErrorCode::GatewayTimeout, "late"))
}

impl World {
    /// Of each attempt at a device of the job `j` its error's code, `-` for none, with a `+` if an answer came late.
    fn attempts(&self, number: usize) -> Vec<String> {
        let attempts = journal::device_attempts(&self.journal, &job_id("j"), &device(number)).expect("a read");
        let attempts = attempts.expect("a device of the job");
        for (place, attempt) in attempts.iter().enumerate() {
            assert_eq!(attempt.number as usize, place + 1);
        }
        let shown = attempts.into_iter().map(|attempt| {
            let code = match attempt.outcome {
                Some(DeviceJobOutcome::Error { code, .. }) => code,
                _ => "-".to_owned(),
            };
            if attempt.late.is_some() { code + "+" } else { code }
        });
        shown.collect()
    }
}

#[test]
fn an_answer_after_the_window_is_late_and_changes_nothing() {
    let mut world = World::new(2, Limits::default());
    world.create(twin_job("j"));
    world.settle();
    let calls = world.calls.clone();
    world.pass(100);
    world.is("j", JobStatus::Completed, 0, 2);
    // One answers, one fails: that is no answer.
    for ((job, device, attempt), result) in calls.into_iter().zip([ANSWERED, timed_out()]) {
        world.engine.handle(at(world.now), Input::Outcome { job, device, attempt, result });
    }
    world.settle();
    let mut attempts = [0, 1].map(|number| world.attempts(number));
    attempts.sort();
    assert_eq!(attempts, [["GatewayTimeout"], ["GatewayTimeout+"]]);
    world.is("j", JobStatus::Completed, 0, 2);
    assert_eq!(world.engine.in_flight(), 0);
    assert_eq!(world.job("j").statistics.map(|it| it.failures.get(FailureClass::Timeout)), Some(2));
}

#[test]
fn an_answer_after_its_time_out_is_late_while_the_next_attempt_is_out() {
    let mut world = World::new(1, Limits::default());
    let retry =
        RetryRule { on: vec![FailureClass::Timeout], retries: 3, backoff_in_seconds: 1, maximum_backoff_in_seconds: 1 };
    let policy = Some(JobPolicy { retry: vec![retry], ..JobPolicy::default() });
    world.create(JobRequest { policy, ..method_job("j") });
    world.settle();
    world.answer("j", 0, timed_out());
    world.pass(1);
    assert_eq!(world.calls.len(), 1, "it is asked again");
    let outcome = DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!("late") });
    let late = |attempt| Input::Late { job: job_id("j"), device: device(0), attempt, outcome: outcome.clone() };
    world.engine.handle(at(world.now), late(1));
    world.settle();
    assert_eq!(world.attempts(0), ["GatewayTimeout+", "-"]);
    assert_eq!(world.row("j", 0).status, DeviceJobStatus::Running, "the second attempt decides");
    world.answer("j", 0, timed_out());
    world.restart();
    world.settle();
    // Also while it waits, and told twice it is kept once.
    for _ in 0..2 {
        world.engine.handle(at(world.now), late(2));
        world.settle();
    }
    assert_eq!(world.attempts(0), ["GatewayTimeout+", "GatewayTimeout+"]);
    world.is("j", JobStatus::Running, 0, 0);
}

#[test]
fn each_look_for_a_device_and_each_doubt_is_an_attempt() {
    let mut world = World::new(1, Limits::default());
    let offline_rule = OfflineRule { wait_in_seconds: 90, then: OfflineEnd::Fail };
    let policy = Some(JobPolicy { offline: offline_rule, ..JobPolicy::default() });
    world.create(JobRequest { policy, ..method_job("j") });
    world.settle();
    world.answer("j", 0, offline());
    world.engine.handle(at(world.now), Input::Arrived(device(0)));
    world.settle();
    world.restart();
    world.settle();
    world.answer("j", 0, ANSWERED);
    assert_eq!(world.attempts(0), ["DeviceNotOnline", "AttemptInDoubt", "-"]);
    world.is("j", JobStatus::Completed, 1, 0);
}

#[test]
fn who_did_what_is_recorded_with_it() {
    let mut world = World::new(1, Limits::default());
    world.create(twin_job("j"));
    world.settle();
    let note = Note {
        key: audit::Key::default(),
        at: at(5),
        actor: "service".to_owned(),
        action: "cancel",
        job: Some(job_id("j")),
        details: json!({}),
    };
    assert_eq!(world.engine.command(at(5), &job_id("j"), Command::Cancel), Obedience::Begun);
    world.engine.audit(at(5), &job_id("j"), note);
    let record = world.engine.take_record().expect("a record");
    let is_cancelling = record.changes.iter().any(|change| change.what == What::Cancelling);
    let is_audited = record.changes.iter().any(|change| matches!(change.what, What::Audited(_)));
    assert!(is_cancelling && is_audited, "{record:?}");
    let tx = world.journal.transaction().expect("a transaction");
    journal::record(&tx, &record).expect("a record");
    tx.commit().expect("a commit");
    let entries = audit::entries(&world.journal, Some(&job_id("j")), 9, None).expect("entries").items;
    assert_eq!(
        entries.iter().map(|entry| (&*entry.actor, &*entry.action)).collect::<Vec<_>>(),
        [("service", "cancel")]
    );
}
