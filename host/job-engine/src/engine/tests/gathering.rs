//! Jobs that devices join while they run.

use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{
    AbortRule, EndRule, EndThen, JobPolicy, MaintenanceWindow, OfflineEnd, OfflineRule, Stage, WindowZone, ZoneTag,
};
use iothub_protocol::job::targets::JobTargets;

use super::*;

fn continuous(request: JobRequest) -> JobRequest {
    JobRequest { targets: Some(JobTargets { continuous: true, ..JobTargets::default() }), ..request }
}

fn found(numbers: &[usize], stages: Vec<u32>) -> Found {
    let with_building = |number: &usize| {
        let labels = [Some(format!("b{number}").into())];
        Selected { address: device(*number), labels: labels.into() }
    };
    Found { devices: numbers.iter().map(with_building).collect(), excluded: 0, stages }
}

impl World {
    fn change(&mut self, numbers: &[usize]) {
        let changed = numbers.iter().copied().map(device).collect();
        self.engine.handle(at(self.now), Input::Changed(changed));
        self.settle();
    }

    /// Whom the one look that is out is at; all, if there is no list.
    fn asked(&self) -> Option<Vec<Address>> {
        let [(_, selection)] = &self.gatherings[..] else { panic!("{:?}", self.gatherings) };
        selection.among.clone()
    }

    /// Answer it.
    fn gather(&mut self, found: Found) {
        let (job, _) = self.gatherings.remove(0);
        self.engine.handle(at(self.now), Input::Gathered { job, result: Ok(found) });
        self.settle();
    }

    /// A device changes and is found to match.
    fn come(&mut self, number: usize) {
        self.change(&[number]);
        self.pass(1);
        assert_eq!(self.asked(), Some(vec![device(number)]));
        self.gather(found(&[number], Vec::new()));
    }

    fn count(&self, name: &str) -> u64 {
        self.job(name).statistics.unwrap_or_default().device_count
    }
}

#[test]
fn devices_that_come_join_once_and_the_job_ends_with_its_time() {
    let mut world = World::new(2, Limits::default());
    assert!(!world.engine.gathers());
    world.create(continuous(twin_job("j")));
    assert!(world.engine.gathers(), "changes are listened to before it is asked who matches");
    world.settle();
    assert_eq!(world.job("j").to_json()["latch"]["progress"]["continuousUntil"], json!("1970-01-01T00:01:40.000Z"));
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Running, 2, 0);

    // Changes are looked at together.
    world.change(&[5, 1]);
    world.pass(0);
    assert!(world.gatherings.is_empty());
    world.change(&[6, 5]);
    world.pass(1);
    assert_eq!(world.asked(), Some([1, 5, 6].map(device).to_vec()));
    // While that look is out, others change; it finds one of them twice.
    world.change(&[7]);
    world.pass(1);
    assert_eq!(world.gatherings.len(), 1, "one at a time");
    world.gather(found(&[5, 5], Vec::new()));
    assert_eq!((world.count("j"), world.row("j", 5).created), (3, at(2)));
    assert_eq!(world.asked(), Some(vec![device(7)]));
    // One that is under way in the job need not be looked at, one that has ended may have to be.
    world.gather(found(&[], Vec::new()));
    world.change(&[5]);
    world.answer("j", 5, UPDATED);
    world.pass(1);
    assert!(world.gatherings.is_empty());
    world.come(8);
    world.is("j", JobStatus::Running, 3, 0);

    // Its time is over, and somebody has not answered.
    world.pass(96);
    assert!(!world.engine.gathers());
    world.is("j", JobStatus::Completed, 3, 1);
    world.failed_with("j", 8, ErrorCode::GatewayTimeout);
    assert_eq!(world.job("j").continuous_until, None);
    world.engine.handle(at(world.now), Input::Gathered { job: job_id("j"), result: Ok(found(&[9], Vec::new())) });
    world.settle();
    assert_eq!((world.count("j"), world.engine.deadline()), (4, None));
}

#[test]
fn it_is_asked_again_only_after_what_was_found_is_recorded() {
    let mut world = World::new(1, Limits::default());
    world.create(continuous(twin_job("j")));
    world.pump();
    world.engine.handle(at(0), Input::Changed(vec![device(3)]));
    let (job, selection) = world.selections.pop().expect("a selection");
    world.engine.handle(at(0), Input::Selected { job, result: Ok(selected(1, &selection).into()) });
    world.now = 5;
    world.engine.handle(at(5), Input::Tick);
    world.pump();
    assert!(world.gatherings.is_empty(), "the journal has not the devices of the beginning");
    world.settle();
    world.pass(0);
    assert_eq!(world.asked(), Some(vec![device(3)]), "a change since before the beginning is not lost");
    let (job, _) = world.gatherings.remove(0);
    world.engine.handle(at(5), Input::Gathered { job, result: Ok(found(&[3], Vec::new())) });
    world.engine.handle(at(5), Input::Changed(vec![device(4)]));
    world.now = 9;
    world.engine.handle(at(9), Input::Tick);
    world.pump();
    assert!(world.gatherings.is_empty() && world.calls.iter().all(|(_, other, _)| *other != device(3)));
    world.settle();
    world.pass(0);
    assert_eq!(world.asked(), Some(vec![device(4)]));
    assert!(world.calls.iter().any(|(_, other, _)| *other == device(3)));
}

#[test]
fn all_are_looked_at_after_a_restart_and_where_nobody_tells_who_has_changed() {
    let mut world = World::new(1, Limits::default());
    world.create(continuous(JobRequest { max_execution_time_in_seconds: 10_000, ..twin_job("j") }));
    world.settle();
    world.answer_all(&UPDATED);
    world.pass(59);
    assert!(world.gatherings.is_empty());
    world.pass(1);
    assert_eq!(world.asked(), None);
    // It takes ten seconds, and so the next comes not before a hundred.
    world.pass(10);
    world.gather(found(&[4], Vec::new()));
    world.pass(99);
    assert!(world.gatherings.is_empty());
    world.restart();
    world.settle();
    assert_eq!((world.asked(), world.count("j")), (None, 2), "anybody may have come meanwhile");
    world.gather(found(&[5], Vec::new()));
    assert_eq!(world.count("j"), 3);

    // Where changes are told of, it is for what they do not say.
    world.engine.is_told_of_changes(true);
    world.pass(60);
    world.gather(found(&[], Vec::new()));
    world.pass(599);
    assert!(world.gatherings.is_empty());
    world.pass(1);
    assert_eq!(world.asked(), None);
    // One that fails comes again.
    let failed = || Err(HubError::new(ErrorCode::ServiceUnavailable, "not now"));
    let (job, _) = world.gatherings.remove(0);
    world.engine.handle(at(world.now), Input::Gathered { job, result: failed() });
    world.pass(9);
    assert!(world.gatherings.is_empty());
    world.pass(1);
    world.gather(found(&[], Vec::new()));
    // So it is for changes: whose they were is not known any more.
    world.change(&[6]);
    world.pass(1);
    let (job, _) = world.gatherings.remove(0);
    world.engine.handle(at(world.now), Input::Gathered { job, result: failed() });
    world.pass(10);
    assert_eq!(world.asked(), None);
    world.gather(found(&[], Vec::new()));

    // If nobody can tell who has changed, or too many have.
    world.engine.handle(at(world.now), Input::ManyChanged);
    world.pass(1);
    assert_eq!(world.asked(), None);
    world.gather(found(&[], Vec::new()));
    world.change(&(0..10_100).collect::<Vec<_>>());
    world.pass(1);
    assert_eq!(world.asked(), None);
    world.gather(found(&[], Vec::new()));
    // Modules are nobody's that is for devices.
    let module = Address::parse("door-0001/lock").expect("an address");
    world.engine.handle(at(world.now), Input::Changed(vec![module]));
    world.pass(5);
    assert!(world.gatherings.is_empty());
}

#[test]
fn a_paused_job_takes_devices_in_and_begins_them_when_it_goes_on() {
    let mut world = World::new(1, Limits::default());
    world.create(continuous(twin_job("j")));
    world.settle();
    world.answer_all(&UPDATED);
    world.pass(10);
    let id = job_id("j");
    world.engine.command(at(world.now), &id, Command::Pause { reason: String::new() });
    world.settle();
    world.come(3);
    assert_eq!((world.count("j"), world.calls.len(), world.job("j").continuous_until), (2, 0, None));
    world.pass(500);
    world.gatherings.clear();
    world.is("j", JobStatus::Running, 1, 0);
    world.engine.command(at(world.now), &id, Command::Resume);
    world.settle();
    assert_eq!(world.job("j").continuous_until, Some(at(100 + 501)), "its time has stood still");
    world.answer("j", 3, UPDATED);
    world.pass(89);
    world.is("j", JobStatus::Running, 2, 0);
    world.pass(1);
    world.is("j", JobStatus::Completed, 2, 0);
}

#[test]
fn a_cancelled_or_aborted_job_takes_nobody_in() {
    for is_aborted in [false, true] {
        let mut world = World::new(1, Limits::default());
        let policy = JobPolicy { abort: vec![AbortRule { minimum: 2, ..AbortRule::new(50) }], ..JobPolicy::default() };
        world.create(continuous(JobRequest { policy: Some(policy), ..twin_job("j") }));
        world.settle();
        world.answer_all(&UPDATED);
        for number in [1, 2] {
            world.come(number);
        }
        world.change(&[7]);
        world.pass(1);
        if is_aborted {
            let gone = || Err(HubError::new(ErrorCode::DeviceNotFound, "gone"));
            world.answer("j", 1, gone());
            world.is("j", JobStatus::Running, 1, 1);
            world.answer("j", 2, gone());
            world.is("j", JobStatus::Failed, 1, 2);
        } else {
            world.cancel("j");
            assert!(!world.engine.gathers());
            world.is("j", JobStatus::Running, 1, 0);
            assert_eq!(world.job("j").continuous_until, None);
        }
        world.gather(found(&[7], Vec::new()));
        world.change(&[8]);
        world.pass(5);
        assert_eq!((world.gatherings.len(), world.count("j")), (0, 3));
        if !is_aborted {
            world.answer_all(&UPDATED);
            world.is("j", JobStatus::Cancelled, 3, 0);
        }
    }
}

#[test]
fn who_comes_is_in_a_stage_that_has_not_begun_or_in_the_last() {
    let mut world = World::new(4, Limits::default());
    let stage = |ring: &str| Stage::of_condition(Some(format!("tags.ring = '{ring}'")));
    let stages = vec![stage("one"), stage("two"), Stage::new(100)];
    let policy =
        JobPolicy { stages, group_by: Some(TagPath::parse("tags.building").expect("a tag")), ..JobPolicy::default() };
    world.create(continuous(JobRequest { policy: Some(policy), ..twin_job("j") }));
    let Some(Output::Select { job, selection, scope }) = world.engine.poll() else { panic!("it selects") };
    assert_eq!((selection.labels.len(), scope.stages.len()), (1, 2));
    let result = Ok(found(&[0, 1, 2, 3], vec![1, 2, 0, 0]));
    world.engine.handle(at(0), Input::Selected { job, result });
    world.settle();
    world.change(&[4, 5, 6]);
    world.pass(1);
    world.gather(found(&[4, 5, 6], vec![1, 2, 0]));
    let place = |world: &World, number| world.row("j", number).stage;
    assert_eq!([4, 5, 6].map(|number| place(&world, number)), [3, 2, 3].map(Some));
    world.restart();
    world.settle();
    let first: Vec<_> = world.calls.iter().map(|(_, device, _)| device.clone()).collect();
    assert_eq!(first, [device(0)]);
    world.gather(found(&[], Vec::new()));
    world.answer_all(&UPDATED);
    assert_eq!(world.calls.len(), 2, "the second stage has one more");
    world.answer_all(&UPDATED);
    world.answer_all(&UPDATED);
    world.is("j", JobStatus::Running, 7, 0);
    world.come(7);
    assert_eq!(place(&world, 7), Some(3));
    world.answer_all(&UPDATED);
    let report = journal::report(&world.journal, &job_id("j")).expect("a report").expect("the job");
    assert_eq!(report["groups"].as_array().map(Vec::len), Some(8));
    assert_eq!(report["continuousUntil"], json!("1970-01-01T00:01:40.000Z"));
}

#[test]
fn who_is_offline_is_waited_for_from_when_it_came() {
    for is_restarted in [false, true] {
        let mut world = World::new(1, Limits::default());
        let offline_rule = OfflineRule { wait_in_seconds: 20, then: OfflineEnd::Skip };
        let policy = JobPolicy { offline: offline_rule, ..JobPolicy::default() };
        world.create(continuous(JobRequest { policy: Some(policy), ..method_job("j") }));
        world.settle();
        world.answer_all(&Ok(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!(null) })));
        world.pass(50);
        world.come(3);
        world.answer("j", 3, offline());
        assert_eq!(world.row("j", 3).next_attempt, Some(at(71)));
        if is_restarted {
            world.restart();
            world.settle();
            world.gather(found(&[], Vec::new()));
        }
        world.pass(19);
        assert_eq!(world.row("j", 3).status, DeviceJobStatus::Pending);
        world.pass(1);
        let row = world.row("j", 3);
        assert_eq!(row.status, DeviceJobStatus::Canceled, "{row:?}");
        let why = format!("{:?}", row.outcome);
        assert!(why.contains("within 20 s since it is in the job"), "{why}");
        world.is("j", JobStatus::Running, 1, 0);
    }
}

#[test]
fn a_job_that_waits_for_devices_keeps_no_other_from_running() {
    let mut world = World::new(1, limits(2, 1));
    world.create(continuous(twin_job("j")));
    world.create(twin_job("k"));
    world.settle();
    world.is("k", JobStatus::Queued, 0, 0);
    world.answer_all(&UPDATED);
    world.is("k", JobStatus::Running, 0, 0);
    world.come(3);
    world.answer("j", 3, UPDATED);
    world.answer("k", 0, UPDATED);
    world.is("k", JobStatus::Completed, 1, 0);
}

#[test]
fn a_process_that_is_asked_to_end_asks_nobody() {
    let mut world = World::new(1, Limits::default());
    world.create(continuous(twin_job("j")));
    world.settle();
    world.answer_all(&UPDATED);
    world.change(&[3]);
    world.engine.drain();
    world.pass(2);
    assert!(world.gatherings.is_empty() && world.engine.take_record().is_none());
}

#[test]
fn so_many_continuous_jobs_run_at_once_and_others_pass_those_that_wait() {
    let mut world = World::new(0, Limits::default());
    for number in 0..66 {
        world.create(continuous(twin_job(&format!("j{number}"))));
        world.settle();
    }
    world.create(twin_job("k"));
    world.settle();
    world.is("k", JobStatus::Completed, 0, 0);
    world.is("j63", JobStatus::Running, 0, 0);
    world.is("j64", JobStatus::Queued, 0, 0);
    world.cancel("j7");
    world.is("j64", JobStatus::Running, 0, 0);
    world.is("j65", JobStatus::Queued, 0, 0);
    world.pass(100);
    world.is("j64", JobStatus::Completed, 0, 0);
    world.is("j65", JobStatus::Running, 0, 0);
}

#[test]
fn nobody_joins_after_the_end_that_the_policy_gives_a_job() {
    for (then, status) in [
        (EndThen::Stop, JobStatus::Completed),
        (EndThen::Cancel, JobStatus::Cancelled),
        (EndThen::Force, JobStatus::Cancelled),
    ] {
        for is_busy in [false, true] {
            let mut world = World::new(1, Limits::default());
            let end = Some(EndRule { at: None, after_in_seconds: Some(50), then });
            let policy = JobPolicy { end, ..JobPolicy::default() };
            world.create(continuous(JobRequest { policy: Some(policy), ..method_job("j") }));
            world.settle();
            assert_eq!(world.job("j").continuous_until, Some(at(50)));
            let answer = Ok(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!(null) }));
            world.answer_all(&answer);
            if is_busy {
                world.come(3);
            }
            world.change(&[4]);
            world.pass(50 - world.now);
            assert_eq!((world.job("j").continuous_until, world.engine.gathers()), (None, false), "{then:?}");
            world.gatherings.clear();
            world.engine.handle(at(50), Input::Gathered { job: job_id("j"), result: Ok(found(&[4], Vec::new())) });
            world.settle();
            if is_busy && then != EndThen::Force {
                assert_eq!(world.job("j").status, JobStatus::Running);
                world.answer_all(&answer);
            }
            let job = world.job("j");
            assert_eq!((job.status, world.count("j")), (status, 1 + u64::from(is_busy)), "{then:?} {is_busy}");
        }
    }
}

#[test]
fn who_comes_begins_in_its_maintenance_window() {
    for is_restarted in [false, true] {
        let mut world = World::new(4, Limits::default());
        let tag = TagPath::parse("tags.zone").expect("a tag");
        let time_zone = WindowZone::Tag(ZoneTag { tag, default: None });
        let window = MaintenanceWindow { cron: "0 2 * * *".to_owned(), duration_in_seconds: 7200, time_zone };
        let policy = JobPolicy { windows: vec![window], ..JobPolicy::default() };
        let job = JobRequest { policy: Some(policy), max_execution_time_in_seconds: 100_000, ..method_job("j") };
        world.create(continuous(job));
        world.pump();
        let zoned = |zones: &[(usize, Option<&str>)]| {
            let devices = zones.iter().map(|(number, zone)| {
                let labels = [zone.map(Into::into)];
                Selected { address: device(*number), labels: labels.into() }
            });
            Found { devices: devices.collect(), excluded: 0, stages: Vec::new() }
        };
        let (job, _) = world.selections.pop().expect("a selection");
        let result = Ok(zoned(&[(0, Some("Europe/Berlin"))]));
        world.engine.handle(at(0), Input::Selected { job, result });
        world.settle();
        world.change(&[1, 2, 3]);
        world.pass(1);
        assert_eq!(world.gatherings[0].1.labels.len(), 1, "the zone is asked for");
        world.gather(zoned(&[(1, Some("Europe/Berlin")), (2, None), (3, Some("Asia/Tokyo"))]));
        assert_eq!((world.row("j", 2).status, world.calls.len()), (DeviceJobStatus::Failed, 0));
        if is_restarted {
            world.restart();
            world.settle();
        }
        // In 1970 Berlin is one hour ahead, and Tokyo nine.
        world.pass(3599 - world.now);
        assert!(world.calls.is_empty());
        world.pass(1);
        let called: BTreeSet<Address> = world.calls.iter().map(|(_, device, _)| device.clone()).collect();
        assert_eq!(called, BTreeSet::from([device(0), device(1)]));
        world.answer_all(&Ok(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!(null) })));
        world.pass(17 * 3600 - world.now);
        assert_eq!(world.calls.len(), 1);
        world.is("j", JobStatus::Running, 2, 1);
    }
}
