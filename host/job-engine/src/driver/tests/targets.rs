//! Jobs over lists, and without some.

use iothub_protocol::job::policy::{FailureClass, Stage};
use iothub_protocol::job::targets::{Exclusion, JobTargets, List, ListDigest, ListPart, ListSeal};

use super::*;

fn devices(numbers: impl IntoIterator<Item = usize>) -> Vec<Address> {
    numbers.into_iter().map(device).collect()
}

fn uploaded(exclude: Option<Exclusion>) -> Option<JobTargets> {
    Some(JobTargets { list: Some(List::Uploaded), exclude, continuous: false })
}

fn seal(devices: &[Address], excluded: &[Address]) -> ListSeal {
    let mut digest = ListDigest::new();
    for (list, is_excluded) in [(devices, false), (excluded, true)] {
        let mut texts: Vec<_> = list.iter().map(Address::to_string).collect();
        texts.sort_unstable();
        texts.iter().for_each(|text| digest.push(text, is_excluded));
    }
    digest.finish()
}

#[tokio::test]
async fn a_long_list_comes_in_parts_over_a_restart_and_each_device_of_it_has_its_outcome() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Scripted::new(30_000, |_| Answer::Status(200));
    let running = start(folder.path(), &fleet).await;
    let exclude = Exclusion { condition: Some("tags.building = 'b3'".into()), list: Some(List::Uploaded) };
    let targets = uploaded(Some(exclude));
    running.engine.create(JobRequest { targets, ..method_job("j") }).await.expect("a job");
    // More than are looked at together, and some that do not exist.
    let (all, excluded) = (devices(18_000..30_020), devices(18_000..18_010));
    let first = ListPart { devices: all[..6000].to_vec(), excluded: excluded.clone() };
    let id = job_id("j");
    let listed = running.engine.extend_list(&id, first.clone()).await.expect("a part");
    assert_eq!(listed, Listed { count: 6010, repeated: 0 });
    let job = running.engine.get(&id).await.expect("the job");
    assert_eq!((job.status, job.to_json()["latch"]["progress"].clone()), (JobStatus::Queued, json!({"listed": 6010})));
    running.stop().await;

    let running = start(folder.path(), &fleet).await;
    let again = running.engine.extend_list(&id, first).await.expect("the same part");
    assert_eq!(again, Listed { count: 6010, repeated: 6010 });
    let code = |result: Result<JobResponse, HubError>| result.map(|job| job.status).map_err(|error| error.code);
    let early = running.engine.complete_list(&id, seal(&all, &excluded)).await;
    assert_eq!(code(early), Err(ErrorCode::PreconditionFailed));
    assert!(fleet.asked().is_empty(), "nobody is asked before the list is whole");
    let second = ListPart { devices: all[6000..].to_vec(), excluded: Vec::new() };
    running.engine.extend_list(&id, second.clone()).await.expect("a part");
    running.engine.complete_list(&id, seal(&all, &excluded)).await.expect("the whole");
    let again = running.engine.complete_list(&id, seal(&all, &excluded)).await.expect("said again");
    assert_eq!(again.listed, None);
    let late = running.engine.extend_list(&id, second).await.map_err(|error| error.code);
    assert_eq!(late, Err(ErrorCode::JobRunPreconditionFailed));

    let job = running.engine.ended(&id).await.expect("its end");
    // One of ten is in the building; of the ten that are listed to be left out one is there, too.
    let left_out = 1200 + 9;
    let counts = job.statistics.expect("numbers");
    assert_eq!((job.excluded, counts.device_count, counts.failed_count), (Some(left_out), 12_020 - left_out, 20));
    let rows = running.rows("j").await;
    let is_left_out = |number: usize| number < 18_010 || (number < 30_000 && number % 10 == 3);
    assert!(!rows.iter().any(|row| is_left_out(number(&row.address))));
    for row in rows.iter().filter(|row| row.status == DeviceJobStatus::Failed) {
        let outcome = row.outcome.as_ref().expect("an outcome");
        assert!(
            number(&row.address) >= 30_000 && FailureClass::of_outcome(outcome) == FailureClass::Missing,
            "{row:?}"
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn a_job_whose_list_is_to_come_is_cancelled_and_one_without_takes_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(folder.path(), &Scripted::new(1, |_| Answer::Status(200))).await;
    let engine = &running.engine;
    engine.create(JobRequest { targets: uploaded(None), ..method_job("j") }).await.expect("a job");
    let id = job_id("j");
    let (ended, cancelled) = tokio::join!(engine.ended(&id), engine.command(&id, Command::Cancel));
    let cancelled = cancelled.expect("cancelled");
    assert_eq!((cancelled.status, cancelled.statistics), (JobStatus::Cancelled, None));
    assert_eq!(ended.map(|job| job.status), Ok(JobStatus::Cancelled), "whoever waits is told");
    let part = ListPart { devices: devices([0]), excluded: Vec::new() };
    let late = engine.complete_list(&job_id("j"), seal(&part.devices, &[])).await.map_err(|error| error.code);
    assert_eq!(late.map(|job| job.status), Err(ErrorCode::JobRunPreconditionFailed));
    engine.create(twin_job("k")).await.expect("a job");
    for (name, expected) in [("k", ErrorCode::JobRunPreconditionFailed), ("nothing", ErrorCode::JobNotFound)] {
        let refused = engine.extend_list(&job_id(name), part.clone()).await.map_err(|error| error.code);
        assert_eq!(refused, Err(expected));
    }
    running.stop().await;
}

#[tokio::test]
async fn exclusions_are_left_out_of_a_condition_and_of_a_short_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Scripted::new(12_000, |_| Answer::Status(200));
    let running = start(folder.path(), &fleet).await;
    let exclude = || Exclusion {
        condition: Some("tags.building IN ['b1', 'b2']".into()),
        list: Some(List::Inline(devices([5, 1]))),
    };
    let list = Some(List::Inline(devices([1, 5, 6, 12])));
    for (name, list, excluded, count) in [("all", None, 2401, 9599), ("list", list, 3, 1)] {
        let targets = Some(JobTargets { list, exclude: Some(exclude()), continuous: false });
        running.engine.create(JobRequest { targets, ..twin_job(name) }).await.expect("a job");
        let job = running.engine.ended(&job_id(name)).await.expect("its end");
        let found = job.statistics.map(|counts| counts.succeeded_count);
        assert_eq!((job.excluded, found), (Some(excluded), Some(count)), "{name}");
    }
    assert_eq!(running.rows("list").await[0].address, device(6));
    running.stop().await;
}

#[tokio::test]
async fn a_preview_counts_what_the_job_would_find_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Scripted::new(12_000, |number| if number < 5 { Answer::Never } else { Answer::Status(200) });
    let running = start(folder.path(), &fleet).await;
    // Five devices are out in another job.
    let query_condition = "deviceId < 'door-0005'".to_owned();
    running.engine.create(JobRequest { query_condition, ..method_job("other") }).await.expect("a job");
    let mut commits = running.engine.commits();
    while running.engine.get(&job_id("other")).await.expect("the job").statistics.is_none() {
        commits.changed().await.expect("the engine runs");
    }
    let canary = Stage::of_condition(Some("tags.building = 'b4'".into()));
    let policy = || Some(JobPolicy { stages: vec![canary.clone(), Stage::new(100)], ..JobPolicy::default() });
    let exclude = || Exclusion { condition: Some("tags.building = 'b3'".into()), list: None };
    let list = || Some(List::Inline(devices([0, 3, 4, 12_345])));
    let all = JobTargets { exclude: Some(exclude()), ..JobTargets::default() };
    let some = JobTargets { list: list(), ..all.clone() };
    for (targets, counts, overlap, canaries) in [(all, [10_800, 1200, 0], 4, 1200), (some, [3, 1, 1], 2, 1)] {
        let request = JobRequest { targets: Some(targets), policy: policy(), ..method_job("j") };
        let preview = running.engine.preview(request.clone(), Tally::default()).await.expect("a preview");
        let found = ["targets", "excluded", "missing"].map(|name| preview[name].as_u64().unwrap_or_default());
        assert_eq!((found, &preview["stages"][0]["devices"]), (counts, &json!(canaries)), "{preview:#}");
        assert_eq!(preview["overlaps"], json!([{"jobId": "other", "devices": overlap}]));
        assert_eq!(preview["connected"], Value::Null, "nobody knows");
        // The job itself finds as many.
        let id = job_id(if overlap == 4 { "all" } else { "some" });
        running.engine.create(JobRequest { job_id: id.clone(), ..request }).await.expect("a job");
        while running.engine.get(&id).await.expect("the job").statistics.is_none() {
            commits.changed().await.expect("the engine runs");
        }
        let job = running.engine.get(&id).await.expect("the job");
        assert_eq!(job.statistics.map(|counts| counts.device_count), Some(counts[0]));
        running.engine.command(&id, Command::Cancel).await.expect("cancelled");
    }
    let uploaded = JobRequest { targets: uploaded(None), ..method_job("j") };
    let refused = running.engine.preview(uploaded, Tally::default()).await.map_err(|error| error.code);
    assert_eq!(refused, Err(ErrorCode::ArgumentInvalid));
    assert_eq!(running.engine.get(&job_id("j")).await.map_err(|error| error.code), Err(ErrorCode::JobNotFound));
    running.stop().await;
}

#[tokio::test]
async fn devices_that_come_join_a_continuous_job_once_and_excluded_ones_do_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Scripted::new(2, |_| Answer::Status(200));
    let running = start(folder.path(), &fleet).await;
    let exclude = Exclusion { condition: Some("tags.building = 'b3'".into()), list: Some(List::Uploaded) };
    let targets = Some(JobTargets { list: None, exclude: Some(exclude), continuous: true });
    let policy = JobPolicy { stages: vec![Stage::new(100)], ..JobPolicy::default() };
    let job = JobRequest { targets, policy: Some(policy), max_execution_time_in_seconds: 600, ..method_job("j") };
    running.engine.create(job).await.expect("a job");
    let (id, excluded) = (job_id("j"), devices([1, 5]));
    let part = ListPart { devices: Vec::new(), excluded: excluded.clone() };
    running.engine.extend_list(&id, part).await.expect("a part");
    running.engine.complete_list(&id, seal(&[], &excluded)).await.expect("the whole");
    let succeeded = async |running: &Running, count: u64| {
        let mut commits = running.engine.commits();
        loop {
            let job = running.engine.get(&id).await.expect("the job");
            assert!(!job.status.is_terminal(), "{:?}", job.status);
            let counts = job.statistics.unwrap_or_default();
            if counts.succeeded_count >= count {
                assert_eq!((counts.device_count, job.excluded), (count, Some(1)), "as at the beginning");
                return;
            }
            commits.changed().await.expect("the engine runs");
        }
    };
    succeeded(&running, 1).await;
    // Few enough to tell which, with one of those before; then more than can be told of.
    fleet.changes.send(device(0)).expect("the engine listens");
    fleet.grow(5);
    succeeded(&running, 3).await;
    fleet.grow(20);
    succeeded(&running, 16).await;
    running.stop().await;

    // Who came meanwhile is found after the restart.
    fleet.size.store(21, Ordering::SeqCst);
    let running = start(folder.path(), &fleet).await;
    succeeded(&running, 17).await;
    let asked = fleet.asked();
    let expected = devices((0..21).filter(|number| ![1, 3, 5, 13].contains(number)));
    assert_eq!(asked, expected, "each once");
    let again = CloneRequest { job_id: job_id("again"), start_time: None, failed: None };
    let refused = running.engine.clone_job(&id, again).await.map_err(|error| error.code);
    assert_eq!(refused.map(|job| job.status), Err(ErrorCode::JobRunPreconditionFailed), "its list is not another's");
    running.engine.command(&id, Command::Cancel).await.expect("cancelled");
    let job = running.engine.ended(&id).await.expect("its end");
    assert_eq!((job.status, job.continuous_until), (JobStatus::Cancelled, None));
    let left = running
        .store
        .read(|connection| connection.query_row("SELECT count(*) FROM job_lists", [], |row| row.get::<_, i64>(0)));
    assert_eq!(left.await.expect("a count"), 0, "the list has served");
    running.stop().await;
}
