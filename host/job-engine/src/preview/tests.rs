use iothub_protocol::job::policy::{GrowAfter, GrowingRate, OfflineEnd, OfflineRule, Rate};
use iothub_protocol::job::steps::{Step, StepCondition};
use iothub_protocol::job::targets::{Exclusion, JobTargets};
use iothub_protocol::method::DirectMethod;

use super::*;
use crate::testing::{at, device, job_id, method_job, twin_job};

fn terms(own: Option<Quota>) -> Terms {
    Terms { now: at(1000), first: None, in_flight: 10, own }
}

fn surveyed(number: usize, marks: u32, standing: Standing) -> Surveyed {
    Surveyed { address: device(number), marks, standing }
}

fn policy() -> JobPolicy {
    let canary = Stage::of_condition(Some("tags.ring = 'canary'".into()));
    let canary = Stage { pause_in_seconds: 60, ..canary };
    JobPolicy { stages: vec![canary, Stage::new(50), Stage::new(100)], ..JobPolicy::default() }
}

#[test]
fn targets_are_counted_by_stage_and_standing_in_parts_as_at_once() {
    let exclude = Exclusion { condition: Some("tags.pilot = true".into()), list: Some(List::Inline(vec![device(9)])) };
    let targets = Some(JobTargets { exclude: Some(exclude), ..JobTargets::default() });
    let abort = vec![AbortRule { minimum: 20, ..AbortRule::new(10) }];
    let policy = Some(JobPolicy { abort, ..policy() });
    let request = JobRequest { targets, policy, start_time: Some(at(0)), ..method_job("j") };
    let scope = Scope::new(request.targets.as_ref(), request.policy.as_ref()).expect("conditions");
    let standing = |number: usize| Standing {
        is_connected: Some(number.is_multiple_of(2)),
        is_listening: Some(number.is_multiple_of(4)),
        is_disabled: Some(number == 5),
    };
    let count = |counter: &mut Counter, numbers: std::ops::Range<usize>| {
        for number in numbers {
            // 7 and 8 are pilots, the first three canaries.
            let marks = u32::from((7..9).contains(&number)) | u32::from(number < 3) << 1;
            let is_target = counter.count(&surveyed(number, marks, standing(number)));
            assert_eq!(is_target, !(7..=9).contains(&number), "{number}");
        }
    };
    let (mut whole, marks) = Counter::new(&scope, Tally::default()).expect("a counter");
    assert_eq!(marks.len(), 2);
    count(&mut whole, 0..23);
    assert!(whole.count_missing(&device(30)) && !whole.count_missing(&device(9)));
    whole.count_overlap(&job_id("other"), 4);
    whole.count_overlap(&job_id("none"), 0);
    let whole = whole.finish(&request, &terms(None));

    let (mut first, _) = Counter::new(&scope, Tally::default()).expect("a counter");
    count(&mut first, 0..12);
    let first = first.finish(&request, &terms(None));
    let tally = serde_json::from_value(first["tally"].clone()).expect("a tally");
    let (mut second, _) = Counter::new(&scope, tally).expect("a counter");
    count(&mut second, 12..23);
    second.count_missing(&device(30));
    second.count_missing(&device(9));
    second.count_overlap(&job_id("other"), 4);
    assert_eq!(second.finish(&request, &terms(None)), whole);

    let counts = ["targets", "excluded", "missing", "connected", "listening", "disabled"];
    let counts = counts.map(|name| whole[name].as_u64().expect(name));
    // 23 without three, one that does not exist; 9 is listed twice as excluded, once as missing.
    assert_eq!(counts, [21, 4, 1, 11, 5, 1]);
    let stages: Vec<_> = whole["stages"].as_array().expect("stages").iter().collect();
    let sizes = stages.iter().map(|stage| (stage["devices"].as_u64(), stage["abortsAtFailures"].as_u64()));
    assert_eq!(sizes.collect::<Vec<_>>(), [(Some(3), Some(1)), (Some(8), Some(1)), (Some(10), Some(2))]);
    assert_eq!(whole["abort"][0]["soonestAtFailures"], json!(3));
    assert_eq!(whole["abort"][0]["ofAllAtFailures"], json!(3));
    assert_eq!(whole["overlaps"], json!([{"jobId": "other", "devices": 4}]));
    let sample: Vec<_> = whole["sample"].as_array().expect("a sample").iter().filter_map(Value::as_str).collect();
    let mut canaries = [0, 1, 2].map(device);
    canaries.sort_by_key(Address::rollout_place);
    assert_eq!(
        (sample.len(), &sample[..3]),
        (SAMPLE, &canaries.map(|id| id.to_string())[..].iter().map(String::as_str).collect::<Vec<_>>()[..])
    );
    let warnings = whole["warnings"].as_array().expect("warnings").iter().filter_map(Value::as_str).collect::<Vec<_>>();
    for text in ["1 of the listed devices do not exist", "1 of the devices are disabled", "lies in the past"] {
        assert!(warnings.iter().any(|warning| warning.contains(text)), "{text}: {warnings:?}");
    }
}

#[test]
fn warnings_tell_what_will_not_go_well() {
    let warnings = |request: &JobRequest, tally: Tally, own| {
        let scope = Scope::new(request.targets.as_ref(), request.policy.as_ref()).expect("conditions");
        let (counter, _) = Counter::new(&scope, tally).expect("a counter");
        counter.finish(request, &terms(own))["warnings"].to_string()
    };
    let many = || Tally { targets: 500_000, listening: Some(0), ..Tally::default() };
    let none = warnings(&twin_job("j"), Tally::default(), None);
    assert_eq!(none, r#"["no device is in the job"]"#);
    let targets = Some(JobTargets { continuous: true, ..JobTargets::default() });
    let continuous = JobRequest { targets, ..twin_job("j") };
    assert_eq!(warnings(&continuous, Tally::default(), None), "[]", "they may come");
    let small = Sku::new(Tier::S1, 1).ok().map(Quota::Jobs);
    let told = warnings(&method_job("j"), many(), small);
    for text in [
        "none of the devices listens",
        "takes 50000 s at least, and its time is over after 100 s",
        "S1 with 1 unit has 400000 a day",
    ] {
        assert!(told.contains(text), "{text}: {told}");
    }
    assert_eq!(warnings(&twin_job("j"), Tally { listening: Some(0), targets: 5, ..Tally::default() }, None), "[]");
    let staged = JobRequest { policy: Some(policy()), max_execution_time_in_seconds: 1000, ..twin_job("j") };
    let told = warnings(&staged, Tally { targets: 5, stages: vec![0], ..Tally::default() }, None);
    assert_eq!(told, r#"["no device is in the stage of tags.ring = 'canary'"]"#);
    let list = Some(List::Uploaded);
    let scope = Scope { exclude_list: list, ..Scope::default() };
    assert!(Counter::new(&scope, Tally::default()).is_err_and(|error| error.message.contains("in parts")));
}

#[test]
fn the_time_is_that_of_rates_pauses_tiers_and_answers() {
    let pace = |devices| Pace { in_flight: 10, devices };
    let with = |policy| JobRequest { policy: Some(policy), max_execution_time_in_seconds: 100_000, ..method_job("j") };
    let plain = JobRequest { max_execution_time_in_seconds: 100_000, ..method_job("j") };
    // A method waits 15 s for an answer and none for the connection, ten at a time.
    assert_eq!(seconds(&plain, &[100], pace(None)), (0, 150));
    assert_eq!(seconds(&plain, &[100], pace(Some(10.0))), (10, 150));
    assert_eq!(
        seconds(&JobRequest { max_execution_time_in_seconds: 70, ..plain.clone() }, &[100], pace(None)),
        (0, 70)
    );
    assert_eq!(
        seconds(&JobRequest { max_execution_time_in_seconds: 100, ..twin_job("j") }, &[100], pace(None)),
        (0, 0)
    );
    let rate = |rate| JobPolicy { rate: Some(rate), ..JobPolicy::default() };
    assert_eq!(seconds(&with(rate(Rate::Constant(5))), &[100], pace(None)), (20, 150));
    let growing = GrowingRate { base: 1, factor: 2, maximum: 4, grow_after: GrowAfter::Started(10) };
    // Ten at 1, ten at 2, the rest at 4.
    assert_eq!(seconds(&with(rate(Rate::Growing(growing))), &[100], pace(None)).0, 10 + 5 + 20);
    assert_eq!(seconds(&with(policy()), &[3, 8, 10], pace(None)), (60, 60 + 45));
    let offline = OfflineRule { wait_in_seconds: 600, then: OfflineEnd::Skip };
    assert_eq!(seconds(&with(JobPolicy { offline, ..JobPolicy::default() }), &[10], pace(None)), (0, 615));
    assert_eq!(seconds(&plain, &[0], pace(None)), (0, 0));
}

#[test]
fn a_job_by_calls_is_under_other_throttles_than_one_of_the_hubs() {
    let sku = Sku::new(Tier::S1, 1).expect("a size");
    let step = |action| Step { action, when: StepCondition::default() };
    let large = || {
        let JobAction::Method(method) = method_job("j").action else { panic!("it is a method's") };
        JobAction::Method(DirectMethod { payload: json!("x".repeat(4096)), ..method })
    };
    let (method, update) = (method_job("j").action, twin_job("j").action);
    for (first, then, by_jobs, by_calls) in [
        (method.clone(), None, 10.0, 40.0),
        (update.clone(), None, 10.0, 50.0),
        (method.clone(), Some(update.clone()), 5.0, 40.0),
        (update.clone(), Some(update), 5.0, 25.0),
        // A little more than one step of the meter.
        (method, Some(large()), 5.0, 13.33),
    ] {
        let request = JobRequest { action: first, then: then.into_iter().map(step).collect(), ..twin_job("j") };
        for (quota, expected) in [(Quota::Jobs(sku), by_jobs), (Quota::Calls(sku), by_calls)] {
            let row = cost_row(&request, 100, quota, true);
            assert_eq!(row["devicesPerSecond"], json!(expected), "{request:?} {quota:?}");
            assert_eq!(row["seconds"], json!((100.0_f64 / expected).ceil() as u64));
        }
    }
}
