//! Jobs over lists, and without some.

use iothub_protocol::job::targets::{Exclusion, JobTargets, List};

use super::*;

fn listed(numbers: &[usize]) -> List {
    List::Inline(numbers.iter().copied().map(device).collect())
}

#[test]
fn a_job_says_what_else_there_is_to_its_devices_and_shows_how_many_are_excluded() {
    let mut world = World::new(3, Limits::default());
    let exclude = Exclusion { condition: Some("tags.building = 'b1'".into()), list: Some(listed(&[2])) };
    let targets = JobTargets { list: Some(listed(&[0, 1, 2])), exclude: Some(exclude) };
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
    let found = Found { devices, excluded: 2 };
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
