//! Jobs over lists, and without some.

use iothub_protocol::job::policy::{JobPolicy, Stage};
use iothub_protocol::job::targets::{Exclusion, JobTargets, List};

use super::*;

fn listed(numbers: &[usize]) -> List {
    List::Inline(numbers.iter().copied().map(device).collect())
}

#[test]
fn a_job_says_what_else_there_is_to_its_devices_and_shows_how_many_are_excluded() {
    let mut world = World::new(3, Limits::default());
    let exclude = Exclusion { condition: Some("tags.building = 'b1'".into()), list: Some(listed(&[2])) };
    let targets = JobTargets { list: Some(listed(&[0, 1, 2])), exclude: Some(exclude), continuous: false };
    world.create(JobRequest { targets: Some(targets), ..twin_job("j") });
    world.create(JobRequest { targets: None, ..twin_job("k") });
    let scopes: Vec<Scope> = std::iter::from_fn(|| world.engine.poll())
        .map(|output| match output {
            Output::Select { scope, selection, .. } if selection.among.is_none() => scope,
            other => panic!("{other:?}"),
        })
        .collect();
    let is_same = |one: &Option<Condition>| {
        let twin = |building: &str| json!({"tags": {"building": building}});
        one.as_ref().is_some_and(|one| one.matches(&twin("b1")) && !one.matches(&twin("b2")))
    };
    assert!(is_same(&scopes[0].exclude));
    assert_eq!((&scopes[0].list, &scopes[0].exclude_list), (&Some(listed(&[0, 1, 2])), &Some(listed(&[2]))));
    assert!(scopes[1].is_plain() && !scopes[0].is_plain());

    // One that is not there is in the job all the same.
    let devices = [0, 7].map(|number| Selected { address: device(number), labels: Box::default() }).to_vec();
    let found = Found { devices, excluded: 2, stages: Vec::new() };
    world.engine.handle(at(0), Input::Selected { job: job_id("j"), result: Ok(found) });
    world.settle();
    assert_eq!(world.job("j").to_json()["latch"]["progress"], json!({"excluded": 2}));
    let gone = Err(HubError::new(ErrorCode::DeviceNotFound, "the hub has no device \"door-0007\""));
    world.answer("j", 7, gone);
    world.failed_with("j", 7, ErrorCode::DeviceNotFound);
    world.answer("j", 0, UPDATED);
    world.is("j", JobStatus::Completed, 1, 1);
}

#[test]
fn a_listed_device_stands_for_its_modules() {
    let address = |text: &str| Address::parse(text).expect("an address");
    let mut sorted = ["b", "a/m", "c!"].map(address);
    sorted.sort();
    for (text, expected) in [("a", false), ("a/m", true), ("a/n", false), ("b", true), ("b/x", true), ("c", false)] {
        assert_eq!(includes(&sorted, &address(text)), expected, "{text}");
    }
}

#[test]
fn stages_by_condition_come_first_and_those_by_percentage_count_them_in() {
    for (percents, in_canary, expected) in [
        (&[50, 100][..], 4, [4, 1, 5]),
        // The canaries are more than the first percentage: nobody is left for it.
        (&[50, 100], 6, [6, 0, 4]),
        (&[50, 100], 0, [0, 5, 5]),
    ] {
        let mut world = World::new(10, Limits::default());
        let canary = Stage::of_condition(Some("tags.ring = 'canary'".into()));
        let stages = std::iter::once(canary).chain(percents.iter().copied().map(Stage::new)).collect();
        let policy = Some(JobPolicy { stages, ..JobPolicy::default() });
        world.create(JobRequest { policy, ..twin_job("j") });
        let asked = world.engine.poll();
        assert!(matches!(asked, Some(Output::Select { scope, .. }) if scope.stages.len() == 1));
        let devices = (0..10).map(|number| Selected { address: device(number), labels: Box::default() }).collect();
        let stages = (0..10).map(|number| u32::from(number < in_canary)).collect();
        let found = Found { devices, excluded: 0, stages };
        world.engine.handle(at(0), Input::Selected { job: job_id("j"), result: Ok(found) });
        world.settle();
        let rows = rows(&world.journal, &job_id("j"));
        let sizes = [1, 2, 3].map(|stage| rows.iter().filter(|row| row.stage == Some(stage)).count());
        assert_eq!(sizes, expected);
        assert!(rows.iter().take(in_canary).all(|row| row.stage == Some(1)));
        let first = world.answer_all(&UPDATED);
        let first_size = expected.into_iter().find(|size| *size > 0).expect("some");
        assert_eq!(first.len(), first_size, "a stage without devices is passed over");
        while !world.calls.is_empty() {
            world.answer_all(&UPDATED);
        }
        world.is("j", JobStatus::Completed, 10, 0);
    }
}
