use std::fs;
use std::time::Duration;

use iothub_protocol::id::DeviceId;

use super::settling::Settling;
use super::*;
use crate::tally::Counts;
use crate::terms::{Placement, PluginLimits, Terms};
use crate::testing::{Component, runtime, with_version};

fn plugin(method: &str, version: &str) -> Vec<u8> {
    with_version(Component::echo(method).wasm(), version)
}

fn name(text: &str) -> PluginName {
    PluginName::parse(text).expect("a name")
}

async fn open(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Catalog) {
    let directory = tempfile::tempdir().expect("a directory");
    for (file, content) in files {
        fs::write(directory.path().join(file), content).expect("written");
    }
    let catalog = reopen(&directory).await;
    (directory, catalog)
}

/// The catalog as a restart makes it. What it keeps lies in a folder that is not looked at for plugins.
async fn reopen(directory: &tempfile::TempDir) -> Catalog {
    Catalog::open(directory.path(), &directory.path().join("versions"), runtime()).await.expect("a catalog")
}

fn running(set: &PluginSet) -> Vec<String> {
    set.plugins.iter().map(|version| format!("{} {}", version.name(), version.label())).collect()
}

fn refusal(catalog: &Catalog, stem: &str) -> Option<String> {
    let entry = catalog.list().into_iter().find(|entry| entry.name == stem)?;
    entry.refusal.map(|refusal| refusal.reason)
}

/// The next set that is published, while the directory is followed.
async fn next(catalog: &Catalog, change: impl FnOnce()) -> Arc<PluginSet> {
    let mut sets = catalog.subscribe();
    change();
    tokio::select! {
        never = catalog.watch() => match never {},
        set = tokio::time::timeout(Duration::from_secs(30), sets.changed()) => {
            set.expect("in time").expect("a catalog");
        }
    }
    catalog.current()
}

/// Follow the directory until `condition` holds.
async fn until(catalog: &Catalog, condition: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let holds = async {
        while !condition() {
            looks.tick().await;
        }
    };
    tokio::select! {
        never = catalog.watch() => match never {},
        result = tokio::time::timeout(Duration::from_secs(30), holds) => result.expect("in time"),
    }
}

#[tokio::test]
async fn a_directory_is_loaded_and_broken_files_are_kept_as_refused() {
    let door = plugin("lockDoor", "1.0.0");
    let lamp = plugin("light", "2.0.0");
    let (_directory, catalog) = open(&[
        ("lock-door.wasm", &door),
        ("lamp.wasm", &lamp),
        ("broken.wasm", &lamp[..100]),
        ("Upper.wasm", &lamp),
        ("notes.txt", b"not a plugin"),
        (".hidden.wasm", b"not a plugin"),
    ])
    .await;
    assert_eq!(running(&catalog.current()), ["lamp 2.0.0", "lock-door 1.0.0"]);
    assert_eq!(refusal(&catalog, "broken").as_deref(), Some("the file ends early, after 100 bytes"));
    assert!(refusal(&catalog, "Upper").is_some_and(|reason| reason.contains("'U'")));
    assert_eq!(catalog.list().len(), 4);

    let set = catalog.current();
    let (device, method) = (DeviceId::parse("door-0001").expect("an id"), crate::testing::name("light"));
    assert_eq!(set.answering(&device, &method).map(|version| version.name().as_str()), Some("lamp"));
    assert_eq!(set.get(&name("lock-door")).map(|version| version.label()), Some("1.0.0"));
}

#[tokio::test]
async fn no_directory_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("plugins");
    let error = Catalog::open(&missing, directory.path(), runtime()).await.expect_err("missing");
    assert!(error.to_string().starts_with(&format!("the plugin directory {} cannot be read", missing.display())));
}

#[tokio::test]
async fn the_later_of_two_plugins_with_one_method_is_refused() {
    let door = plugin("lockDoor", "1.0.0");
    let (_directory, catalog) = open(&[("b.wasm", &door), ("a.wasm", &door)]).await;
    assert_eq!(running(&catalog.current()), ["a 1.0.0"]);
    let reason = "the plugins b and a both answer the method lockDoor; a was there first";
    assert_eq!(refusal(&catalog, "b").as_deref(), Some(reason));
    let error = catalog.swap(&name("c"), door).await.expect_err("a conflict");
    assert!(matches!(error, LoadError::Conflict { .. }));
}

#[tokio::test]
async fn a_plugin_that_was_in_conflict_is_taken_once_the_other_has_changed() {
    let door = plugin("lockDoor", "1.0.0");
    let (_directory, catalog) = open(&[("a.wasm", &door), ("b.wasm", &door)]).await;
    catalog.swap(&name("a"), plugin("light", "2.0.0")).await.expect("a swap");
    until(&catalog, || catalog.current().plugins.len() == 2).await;
    assert_eq!(running(&catalog.current()), ["a 2.0.0", "b 1.0.0"]);
    assert_eq!(refusal(&catalog, "b"), None);
}

#[tokio::test]
async fn a_file_is_read_no_earlier_than_a_swap_in_hand_has_written_it() {
    let (directory, catalog) = open(&[]).await;
    let path = directory.path().join("lock-door.wasm");
    fs::write(&path, plugin("lockDoor", "1.0.0")).expect("written");
    let mut settling = Settling::new(std::time::Instant::now(), &Listing::new());
    let swapping = catalog.inner.arriving.lock().await;
    let mut look = std::pin::pin!(catalog.look("lock-door", &mut settling, true));
    tokio::time::timeout(Duration::from_millis(50), &mut look).await.expect_err("a swap is in hand");
    fs::write(&path, plugin("lockDoor", "2.0.0")).expect("written");
    drop(swapping);
    look.await;
    assert_eq!(running(&catalog.current()), ["lock-door 2.0.0"]);
}

#[tokio::test]
async fn a_directory_may_go_and_come_back() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    fs::remove_dir_all(directory.path()).expect("removed");
    let back = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::create_dir(directory.path()).expect("made again");
        fs::write(directory.path().join("lock-door.wasm"), plugin("lockDoor", "1.1.0")).expect("written");
    };
    tokio::join!(back, until(&catalog, || running(&catalog.current()) == ["lock-door 1.1.0"]));
}

#[tokio::test]
async fn versions_that_were_replaced_are_freed() {
    let (_directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let mut old = Vec::new();
    for version in 1..30 {
        old.push(Arc::downgrade(&catalog.current().plugins[0]));
        catalog.swap(&name("lock-door"), plugin("lockDoor", &format!("1.{version}.0"))).await.expect("a swap");
    }
    assert!(old.iter().all(|version| version.strong_count() == 0));
}

#[tokio::test]
async fn a_swap_is_published_once_and_kept_on_disk() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let (old, new) = (catalog.current(), plugin("lockDoor", "1.1.0"));
    for (from, generation) in [("1.0.0", 2), ("1.1.0", 2)] {
        let report = catalog.swap(&name("lock-door"), new.clone()).await.expect("a swap");
        let (from, to) = (Some(from.to_owned()), "1.1.0".to_owned());
        assert_eq!(report, SwapReport { name: name("lock-door"), from, to, generation });
    }
    assert_eq!(running(&old), ["lock-door 1.0.0"]);
    assert_eq!(running(&catalog.current()), ["lock-door 1.1.0"]);
    assert_eq!(fs::read(directory.path().join("lock-door.wasm")).expect("the file"), new);
    let files = fs::read_dir(directory.path()).expect("readable").count();
    assert_eq!(files, 2, "the plugin, and the folder of versions; nothing temporary");
}

#[tokio::test]
async fn a_swap_that_is_refused_changes_nothing() {
    let good = plugin("lockDoor", "1.0.0");
    let (directory, catalog) = open(&[("lock-door.wasm", &good)]).await;
    let error = catalog.swap(&name("lock-door"), good[..50].to_vec()).await.expect_err("refused");
    assert_eq!(error, LoadError::Truncated { bytes: 50 });
    assert_eq!(catalog.current().generation, 1);
    assert_eq!(fs::read(directory.path().join("lock-door.wasm")).expect("the file"), good);
}

#[tokio::test]
async fn files_that_arrive_by_copy_rename_or_link_are_taken() {
    let (directory, catalog) = open(&[]).await;
    let elsewhere = tempfile::tempdir_in(directory.path()).expect("a directory");
    let (from, to) = (elsewhere.path().join("new.wasm"), directory.path().join("lock-door.wasm"));

    let set = next(&catalog, || fs::write(&to, plugin("lockDoor", "1.0.0")).expect("written")).await;
    assert_eq!(running(&set), ["lock-door 1.0.0"]);

    fs::write(&from, plugin("lockDoor", "1.1.0")).expect("written");
    let set = next(&catalog, || fs::rename(&from, &to).expect("renamed")).await;
    assert_eq!(running(&set), ["lock-door 1.1.0"]);

    fs::write(&from, plugin("lockDoor", "1.2.0")).expect("written");
    let set = next(&catalog, || {
        fs::remove_file(&to).expect("removed");
        fs::hard_link(&from, &to).expect("linked");
    })
    .await;
    assert_eq!(running(&set), ["lock-door 1.2.0"]);
}

#[tokio::test]
async fn a_broken_file_leaves_the_old_version_and_a_good_one_clears_the_refusal() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let path = directory.path().join("lock-door.wasm");
    let new = plugin("lockDoor", "1.1.0");

    fs::write(&path, &new[..new.len() / 2]).expect("written");
    until(&catalog, || refusal(&catalog, "lock-door").is_some()).await;
    assert_eq!(running(&catalog.current()), ["lock-door 1.0.0"]);

    let set = next(&catalog, || fs::write(&path, &new).expect("written")).await;
    assert_eq!(running(&set), ["lock-door 1.1.0"]);
    assert_eq!(refusal(&catalog, "lock-door"), None);
}

#[tokio::test]
async fn a_plugin_whose_file_goes_keeps_running() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    fs::remove_file(directory.path().join("lock-door.wasm")).expect("removed");
    until(&catalog, || catalog.list().iter().any(|entry| entry.removed)).await;
    assert_eq!(running(&catalog.current()), ["lock-door 1.0.0"]);
}

#[tokio::test]
async fn a_file_that_is_renamed_takes_over_under_its_new_name() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let (from, to) = (directory.path().join("lock-door.wasm"), directory.path().join("front-door.wasm"));
    fs::rename(&from, &to).expect("renamed");
    let is_removed = || catalog.list().iter().any(|entry| entry.removed);
    let step = std::cell::Cell::new(0);
    // One watch over both, as a second one would begin with the directory of the start.
    until(&catalog, || match step.get() {
        0 if running(&catalog.current()) == ["front-door 1.0.0"] => {
            assert_eq!((catalog.list().len(), refusal(&catalog, "front-door")), (1, None), "the other one is given up");
            fs::remove_file(&to).expect("removed");
            step.set(1);
            false
        }
        step => step == 1 && is_removed(),
    })
    .await;

    // Another plugin gives way only to what would be current in its place.
    catalog.swap(&name("lock-door"), plugin("light", "1.1.0")).await.expect("a swap");
    assert_eq!(running(&catalog.current()), ["front-door 1.0.0", "lock-door 1.1.0"], "another method: both run");
    catalog.stage(&name("lock-door"), plugin("lockDoor", "1.2.0")).await.expect_err("beside it, nobody gives way");
    catalog.swap(&name("lock-door"), plugin("lockDoor", "1.2.0")).await.expect("a swap");
    assert_eq!(running(&catalog.current()), ["lock-door 1.2.0"]);
}

#[tokio::test]
async fn a_version_that_arrives_must_pass_its_tests() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    drop(catalog);
    let tested = Arc::new(Mutex::new(Vec::new()));
    let seen = tested.clone();
    let self_test: SelfTest = Arc::new(move |source| {
        let bad = source.wasm.windows(5).any(|text| text == b"2.0.0");
        seen.lock().expect("nobody panics").push(format!("{} {bad}", source.name));
        if bad { Err("x.toml:3: answer: expected 1, found 2".to_owned()) } else { Ok(()) }
    });
    let options = CatalogOptions { self_test: Some(self_test), ..CatalogOptions::default() };
    let versions = directory.path().join("versions");
    let catalog = Catalog::open_with(directory.path(), &versions, runtime(), options).await.expect("a catalog");
    assert_eq!(running(&catalog.current()), ["lock-door 1.0.0"]);
    assert!(tested.lock().expect("nobody panics").is_empty(), "it was current before");

    let name = name("lock-door");
    let reason = "the component does not pass its own tests: x.toml:3: answer: expected 1, found 2";
    let refused = catalog.swap(&name, plugin("lockDoor", "2.0.0")).await.expect_err("refused");
    assert_eq!(refused.to_string(), reason);
    let canary = catalog.canary(&name, plugin("lockDoor", "2.0.0"), CanaryPolicy::default()).await;
    assert_eq!(canary.expect_err("refused").to_string(), reason);
    fs::write(directory.path().join("lock-door.wasm"), plugin("lockDoor", "2.0.0")).expect("written");
    until(&catalog, || refusal(&catalog, "lock-door").as_deref() == Some(reason)).await;
    catalog.swap(&name, plugin("lockDoor", "1.1.0")).await.expect("a good one");
    catalog.rollback(&name).await.expect("what is kept was tested");
    let tested = tested.lock().expect("nobody panics").join(", ");
    assert_eq!(tested, "lock-door true, lock-door true, lock-door true, lock-door false");
}

/// The labels of what is kept of lock-door, the newest first, with what each one is.
fn kept(catalog: &Catalog) -> Vec<String> {
    let entry = catalog.list().into_iter().find(|entry| entry.name == "lock-door").expect("a plugin");
    let canary = entry.canary.map(|canary| canary.hash);
    let describe = |version: VersionView| {
        let marks = [
            (version.is_current, " current"),
            (version.is_previous, " previous"),
            (canary.as_ref() == Some(&version.hash), " canary"),
            (!version.pinned.is_empty(), " pinned"),
        ];
        let marks: String = marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect();
        version.label + &marks
    };
    entry.versions.into_iter().map(describe).collect()
}

#[tokio::test]
async fn versions_are_kept_across_restarts_and_a_rollback_goes_back_through_them() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let name = name("lock-door");
    assert!(matches!(catalog.rollback(&name).await, Err(RolloutError::NoPrevious { .. })));
    catalog.swap(&name, plugin("lockDoor", "1.1.0")).await.expect("a swap");
    drop(catalog);
    fs::write(directory.path().join("lock-door.wasm"), plugin("lockDoor", "1.2.0")).expect("written");
    let catalog = reopen(&directory).await;
    assert_eq!(kept(&catalog), ["1.2.0 current", "1.1.0 previous", "1.0.0"]);

    for (from, to) in [("1.2.0", "1.1.0"), ("1.1.0", "1.0.0")] {
        let report = catalog.rollback(&name).await.expect("a rollback");
        assert_eq!((report.from.as_deref(), &*report.to), (Some(from), to));
        assert_eq!(running(&catalog.current()), [format!("lock-door {to}")]);
    }
    assert!(matches!(catalog.rollback(&name).await, Err(RolloutError::NoPrevious { .. })));
    drop(catalog);
    assert_eq!(running(&reopen(&directory).await.current()), ["lock-door 1.0.0"], "the file was put back");
}

#[tokio::test]
async fn old_versions_that_nobody_uses_are_removed_from_the_disk() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let name = name("lock-door");
    let some = DeviceSelector::from(DeviceGlob::parse("door-1*").expect("a pattern"));
    catalog.pin(&name, "1.0.0", &some).await.expect("a pin");
    for version in 1..20 {
        catalog.swap(&name, plugin("lockDoor", &format!("1.{version}.0"))).await.expect("a swap");
    }
    let files = || fs::read_dir(directory.path().join("versions/lock-door")).expect("a folder").count();
    assert_eq!((files(), kept(&catalog).len()), (18, 18), "16, the current one and the pinned one");
    assert_eq!(catalog.unpin(&name, None).await, Ok(1));
    assert!(matches!(catalog.unpin(&name, None).await, Err(RolloutError::NoPin { .. })));
    assert_eq!(files(), 17);
}

#[tokio::test]
async fn pins_and_canaries_survive_a_restart() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let name = name("lock-door");
    let some = DeviceSelector::from(DeviceGlob::parse("door-1*").expect("a pattern"));
    let policy = CanaryPolicy { percent: 20, ..CanaryPolicy::default() };
    let error = catalog.canary(&name, plugin("lockDoor", "1.0.0"), policy.clone()).await.expect_err("the current one");
    assert!(matches!(error, RolloutError::IsCurrent { .. }));
    catalog.swap(&name, plugin("lockDoor", "1.1.0")).await.expect("a swap");
    catalog.pin(&name, "1.0.0", &some).await.expect("a pin");
    let error = catalog.pin(&name, "9", &some).await.expect_err("unknown");
    assert_eq!(error.to_string(), "no version 9 of lock-door is kept here; there are 1.0.0, 1.1.0");
    catalog.canary(&name, plugin("lockDoor", "2.0.0"), policy).await.expect("a canary");
    drop(catalog);

    let catalog = reopen(&directory).await;
    assert_eq!(kept(&catalog), ["2.0.0 canary", "1.1.0 current", "1.0.0 previous pinned"]);
    let set = catalog.current();
    assert_eq!((running(&set), set.loaded().count()), (vec!["lock-door 1.1.0".to_owned()], 3));
    let rollout = &set.rollouts[0];
    assert_eq!(rollout.canary.as_ref().map(|canary| canary.percent), Some(20));
    assert_eq!(rollout.pins[0].devices, some);

    let report = catalog.promote(&name).await.expect("promoted");
    assert_eq!((report.from.as_deref(), &*report.to), (Some("1.1.0"), "2.0.0"));
    assert_eq!(kept(&catalog), ["2.0.0 current", "1.1.0 previous", "1.0.0 pinned"]);
    assert!(matches!(catalog.promote(&name).await, Err(RolloutError::NoCanary { .. })));
}

#[tokio::test]
async fn a_rule_for_listed_devices_survives_a_restart() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let name = name("lock-door");
    let listed = |ids: &[&str]| {
        let ids = ids.iter().map(|id| DeviceId::parse(id).expect("an id"));
        DeviceSelector::listed("tags.site = 'A'", ids.collect()).expect("a list")
    };
    let policy = CanaryPolicy { devices: listed(&["door-7", "door-9"]), ..CanaryPolicy::default() };
    assert!(matches!(
        catalog.canary_of(&name, "2.0.0", policy.clone()).await,
        Err(RolloutError::UnknownVersion { .. })
    ));
    let (label, hash) = catalog.stage(&name, plugin("lockDoor", "2.0.0")).await.expect("kept");
    assert_eq!((&*label, kept(&catalog)), ("2.0.0", vec!["2.0.0".to_owned(), "1.0.0 current".to_owned()]));
    catalog.canary_of(&name, &hash, policy.clone()).await.expect("a canary");
    catalog.pin(&name, "1.0.0", &listed(&["door-9"])).await.expect("a pin");
    drop(catalog);

    let catalog = reopen(&directory).await;
    let set = catalog.current();
    let rollout = &set.rollouts[0];
    assert_eq!(rollout.canary.as_ref().map(|canary| &canary.devices), Some(&policy.devices));
    assert_eq!(rollout.pins[0].devices, listed(&["door-9"]));
    let error = catalog.canary_of(&name, "1.0.0", policy).await.expect_err("the current one");
    assert!(matches!(error, RolloutError::IsCurrent { .. }));
    assert_eq!(catalog.unpin(&name, Some("tags.site = 'A'")).await, Ok(1));
}

#[tokio::test]
async fn a_canary_that_fails_is_withdrawn_and_one_that_does_well_stays() {
    let (_directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let name = name("lock-door");
    let start = std::time::Instant::now();
    for (failures, healthy) in [(0, true), (1, false)] {
        catalog.canary(&name, plugin("lockDoor", "2.0.0"), CanaryPolicy::default()).await.expect("a canary");
        let version = catalog.current().loaded().find(|version| version.label() == "2.0.0").cloned().expect("loaded");
        (0..10 - failures).for_each(|_| version.tally().answered());
        (0..failures).for_each(|_| version.tally().failed());
        catalog.judge(start + Duration::from_secs(120)).await;
        let entry = catalog.list().remove(0);
        assert_eq!((entry.canary.is_some_and(|canary| canary.passed), entry.withdrawn.is_none()), (healthy, healthy));
    }
    let withdrawn = catalog.list().remove(0).withdrawn.expect("withdrawn");
    assert_eq!((&*withdrawn.label, &*withdrawn.reason), ("2.0.0", "1 of 10 calls failed; 5% may"));
    assert!(catalog.current().rollouts[0].canary.is_none());
    assert_eq!(catalog.current().loaded().count(), 1, "its code is freed");
}

#[tokio::test]
async fn a_restart_neither_forgets_a_failing_canary_nor_lets_it_pass() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let name = name("lock-door");
    let start = std::time::Instant::now();
    let canary = |catalog: &Catalog| {
        catalog.current().loaded().find(|version| version.label() == "2.0.0").cloned().expect("loaded")
    };
    let shown = |catalog: &Catalog| catalog.list().remove(0).canary.map(|canary| canary.counts);
    catalog.canary(&name, plugin("lockDoor", "2.0.0"), CanaryPolicy::default()).await.expect("a canary");
    (0..9).for_each(|_| canary(&catalog).tally().answered());
    catalog.keep_watched(start + Duration::from_secs(30), false).await;
    canary(&catalog).tally().failed();
    catalog.keep_watched(start + Duration::from_secs(31), false).await;
    drop(catalog);

    // Killed: the last second is lost, the rest is not.
    let catalog = reopen(&directory).await;
    assert_eq!(shown(&catalog), Some(Counts { calls: 9, failures: 0 }));
    catalog.judge(std::time::Instant::now() + Duration::from_secs(29)).await;
    assert!(shown(&catalog).is_some(), "too few calls to tell");
    canary(&catalog).tally().failed();
    catalog.keep_trials().await;
    drop(catalog);

    let catalog = reopen(&directory).await;
    assert_eq!(shown(&catalog), Some(Counts { calls: 10, failures: 1 }));
    catalog.judge(std::time::Instant::now()).await;
    let withdrawn = catalog.list().remove(0).withdrawn.expect("withdrawn at the first look");
    assert_eq!(withdrawn.reason, "1 of 10 calls failed; 5% may");
}

#[tokio::test]
async fn a_version_that_a_device_needs_is_loaded_and_freed_after() {
    let (_directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let name = name("lock-door");
    let old = Arc::from(catalog.current().plugins[0].hash());
    catalog.swap(&name, plugin("lockDoor", "1.1.0")).await.expect("a swap");
    let lease = catalog.current().demand.want(name.clone(), old);
    until(&catalog, || catalog.current().loaded().count() == 2).await;
    drop(lease);
    catalog.swap(&name, plugin("lockDoor", "1.2.0")).await.expect("a swap");
    assert_eq!(catalog.current().loaded().count(), 1);
}

fn placed(pattern: &str) -> PluginPlan {
    let patterns = vec![DeviceGlob::parse(pattern).expect("a pattern")];
    PluginPlan { placement: Placement::On { patterns, devices: Arc::default() }, ..PluginPlan::default() }
}

fn with_setting(value: &str) -> PluginPlan {
    let terms = Terms { config: [("key".to_owned(), value.to_owned())].into(), ..Terms::default() };
    PluginPlan { terms, ..PluginPlan::default() }
}

/// Terms on which no component here can begin.
fn impossible() -> PluginPlan {
    let limits = PluginLimits { memory: Some(1), ..PluginLimits::default() };
    PluginPlan { terms: Terms { limits, ..Terms::default() }, ..PluginPlan::default() }
}

fn plans(plans: &[(&str, &PluginPlan)]) -> PluginPlans {
    plans.iter().map(|(plugin, plan)| (name(plugin), (*plan).clone())).collect()
}

#[tokio::test]
async fn plugins_may_answer_one_method_where_they_never_meet() {
    let door = plugin("lockDoor", "1.0.0");
    let (directory, catalog) = open(&[("a.wasm", &door), ("b.wasm", &door)]).await;
    drop(catalog);
    let (versions, apart) = (directory.path().join("versions"), plans(&[("a", &placed("a-*")), ("b", &placed("b-*"))]));
    let catalog = Catalog::open_with(directory.path(), &versions, runtime(), apart).await.expect("a catalog");
    let set = catalog.current();
    assert_eq!(running(&set), ["a 1.0.0", "b 1.0.0"]);
    let answers = |device: &str| {
        let device = DeviceId::parse(device).expect("an id");
        set.answering(&device, &crate::testing::name("lockDoor")).map(|version| version.name().to_string())
    };
    assert_eq!([answers("a-1"), answers("b-1"), answers("c-1")], [Some("a".to_owned()), Some("b".to_owned()), None]);

    let meeting = plans(&[("a", &placed("a-*")), ("b", &placed("*-1"))]);
    let errors = catalog.set_plans(meeting).await.expect_err("they meet on a-1");
    let texts: Vec<_> = errors.iter().map(PlanError::to_string).collect();
    assert_eq!(texts, ["the plugins b and a would both answer the method lockDoor on some devices"]);
    assert_eq!(
        (catalog.current().generation, catalog.current().rollouts[1].placement.clone()),
        (2, placed("b-*").placement)
    );
}

#[tokio::test]
async fn a_plugin_that_was_in_conflict_is_taken_once_it_is_placed_elsewhere() {
    let door = plugin("lockDoor", "1.0.0");
    let (_directory, catalog) = open(&[("a.wasm", &door), ("b.wasm", &door)]).await;
    assert_eq!(running(&catalog.current()), ["a 1.0.0"]);
    let loaded = catalog.set_plans(plans(&[("a", &placed("a-*")), ("b", &placed("b-*"))])).await;
    assert_eq!((loaded, running(&catalog.current())), (Ok(vec![]), vec!["a 1.0.0".to_owned(), "b 1.0.0".to_owned()]));
    assert_eq!(refusal(&catalog, "b"), None);
}

#[tokio::test]
async fn other_terms_are_another_version_of_the_same_code() {
    let (directory, catalog) = open(&[("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let lock_door = name("lock-door");
    catalog.swap(&lock_door, plugin("lockDoor", "1.1.0")).await.expect("a swap");
    catalog.pin(&lock_door, "1.0.0", &DeviceGlob::parse("door-1*").expect("a pattern").into()).await.expect("a pin");
    catalog.canary(&lock_door, plugin("lockDoor", "2.0.0"), CanaryPolicy::default()).await.expect("a canary");
    let (before, kept_before) = (catalog.current(), kept(&catalog));
    before.loaded().for_each(|version| version.tally().failed());
    catalog.keep_trials().await;

    let loaded = catalog.set_plans(plans(&[("lock-door", &with_setting("one"))])).await;
    assert_eq!((loaded, kept(&catalog)), (Ok(vec![lock_door.clone()]), kept_before));
    let after = catalog.current();
    assert_eq!(after.generation, before.generation + 1);
    let hashes = |set: &PluginSet| set.loaded().map(|version| version.hash().to_owned()).collect::<Vec<_>>();
    assert_eq!((hashes(&after), after.loaded().count()), (hashes(&before), 3));
    for version in after.loaded() {
        assert_eq!(version.terms().config["key"], "one", "{}", version.label());
        assert_eq!(version.tally().counts().calls, 0, "counting begins anew");
    }
    let canary = catalog.list().remove(0).canary.expect("still on trial");
    assert_eq!(canary.counts, Counts { calls: 0, failures: 0 }, "so does its trial");
    assert!(before.loaded().all(|version| version.terms().config.is_empty()), "what runs is not changed");
    let again = catalog.set_plans(plans(&[("lock-door", &with_setting("one"))])).await;
    assert_eq!((again, catalog.current().generation), (Ok(vec![]), after.generation), "the same plans are no news");

    catalog.promote(&lock_door).await.expect("promoted");
    catalog.rollback(&lock_door).await.expect("rolled back");
    assert_eq!(catalog.current().plugins[0].terms().config["key"], "one", "an earlier version runs on today's terms");
    drop(catalog);
    assert_eq!(running(&reopen(&directory).await.current()), ["lock-door 1.1.0"]);
}

#[tokio::test]
async fn plans_that_cannot_be_met_change_nothing() {
    let (directory, catalog) =
        open(&[("lamp.wasm", &plugin("light", "2.0.0")), ("lock-door.wasm", &plugin("lockDoor", "1.0.0"))]).await;
    let before = catalog.current();
    let errors = catalog.set_plans(plans(&[("lamp", &with_setting("one")), ("lock-door", &impossible())])).await;
    let errors = errors.expect_err("no memory");
    assert_eq!(errors.iter().map(|error| error.plugin().as_str()).collect::<Vec<_>>(), ["lock-door"]);
    assert!(
        errors[0].to_string().starts_with("version 1.0.0 of lock-door does not load on these terms: "),
        "{errors:?}"
    );
    assert!(Arc::ptr_eq(&before, &catalog.current()));
    catalog.swap(&name("lamp"), plugin("light", "2.1.0")).await.expect("a swap");
    assert!(catalog.current().plugins[0].terms().config.is_empty(), "nor what comes later");

    drop(catalog);
    let (versions, tight) = (directory.path().join("versions"), plans(&[("lock-door", &impossible())]));
    let catalog = Catalog::open_with(directory.path(), &versions, runtime(), tight).await.expect("a catalog");
    assert_eq!(running(&catalog.current()), ["lamp 2.1.0"]);
    assert_eq!(catalog.set_plans(PluginPlans::new()).await, Ok(vec![]));
    assert_eq!(running(&catalog.current()), ["lamp 2.1.0", "lock-door 1.0.0"], "refused for its terms, which are gone");
}
