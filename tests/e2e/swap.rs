//! A plugin is swapped while calls run: none is lost, none is answered by what is over, nothing is forgotten.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iothub_service::ServiceClient;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::back_end::{BackEnd, call, door};
use crate::harness::{FREE_PORTS, Latch, guests, latch, latch_ok, plugin_folder, wait_until};
use crate::operator;

const DOORS: u32 = 20;
const CALLERS: u32 = 16;
const SWAPS: usize = 20;
/// Calls that are answered between two swaps: each caller makes some, each door gets some.
const CALLS_BETWEEN: usize = 100;
const VERSIONS: [&str; 2] = ["1.0.0", "2.0.0"];
/// From a file's arrival to its being current or refused: two seconds of patience with a broken one, and a debug build.
const TAKEN_BOUND: Duration = Duration::from_secs(30);

/// One call that was answered.
struct Answered {
    door: u32,
    from: Instant,
    until: Instant,
    status: i32,
    payload: Value,
}

/// The time of one version.
struct Term {
    version: &'static str,
    /// It was not current before.
    not_before: Instant,
    /// From then on the one before was not.
    alone_from: Instant,
}

#[test]
fn twenty_swaps_under_load_lose_nothing() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let _latch = fleet(data, plugins, DOORS);
    let back_end = BackEnd::of(data);

    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    let mut terms = vec![Term { version: VERSIONS[0], not_before: Instant::now(), alone_from: Instant::now() }];
    for caller in 0..CALLERS {
        let calls = call_until(back_end.service.clone(), caller, count.clone(), stop.clone());
        callers.spawn_on(calls, back_end.runtime.handle());
    }
    for swap in 0..SWAPS {
        let enough = count.load(Ordering::Relaxed) + CALLS_BETWEEN;
        wait_until("calls between two swaps", TAKEN_BOUND, || (count.load(Ordering::Relaxed) >= enough).then_some(()));
        let version = VERSIONS[(swap + 1) % 2];
        let not_before = Instant::now();
        // In turn, and so that each way brings either version.
        if (swap + swap / 2).is_multiple_of(2) {
            let told = latch_ok(data, &["plugin", "swap", "lock-door", path_text(&component(version))]);
            assert_eq!(told, format!("lock-door {} -> {version}\n", VERSIONS[swap % 2]));
        } else {
            put(&fs::read(component(version)).expect("a component"), plugins);
            wait_until("the new file is current", TAKEN_BOUND, || {
                (operator::plugin(data, "lock-door").0.as_deref() == Some(version)).then_some(())
            });
        }
        terms.push(Term { version, not_before, alone_from: Instant::now() });
    }
    let enough = count.load(Ordering::Relaxed) + CALLS_BETWEEN;
    wait_until("calls after the last swap", TAKEN_BOUND, || (count.load(Ordering::Relaxed) >= enough).then_some(()));
    stop.store(true, Ordering::Relaxed);
    let calls: Vec<Answered> = back_end.runtime.block_on(callers.join_all()).into_iter().flatten().collect();

    check_versions(&calls, &terms);
    check_counts(&calls, &back_end);
}

/// One caller: locks and unlocks doors, one call after the other.
async fn call_until(
    service: Arc<ServiceClient>,
    caller: u32,
    count: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Vec<Answered> {
    let mut calls = Vec::new();
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let number = (caller + turn * CALLERS) % DOORS + 1;
        let method = if turn.is_multiple_of(2) { "lockDoor" } else { "unlockDoor" };
        let from = Instant::now();
        let answer = call(&service, &door(number), method).await;
        let until = Instant::now();
        let answer = answer.unwrap_or_else(|error| panic!("a call was lost: {method} on {}: {error}", door(number)));
        assert!(matches!(answer.status, 200 | 409), "{method} on {}: {answer:?}", door(number));
        calls.push(Answered { door: number, from, until, status: answer.status, payload: answer.payload });
        count.fetch_add(1, Ordering::Relaxed);
    }
    calls
}

/// Each answer is by a version that was current when the call was made, or that came while it ran.
fn check_versions(calls: &[Answered], terms: &[Term]) {
    let mut answered_by = BTreeMap::new();
    for call in calls {
        let version = call.payload["version"].as_str().expect("a version");
        let current = terms.iter().enumerate().any(|(number, term)| {
            let over = terms.get(number + 1).is_some_and(|next| next.alone_from < call.from);
            term.version == version && term.not_before <= call.until && !over
        });
        let swaps_before = terms.iter().filter(|term| term.alone_from < call.from).count() - 1;
        assert!(current, "after {swaps_before} swaps {} was answered by {version}", door(call.door));
        *answered_by.entry(version).or_insert(0) += 1;
    }
    assert_eq!(answered_by.keys().copied().collect::<Vec<_>>(), VERSIONS, "{answered_by:?}");
}

/// Each door has counted exactly the moves that its callers were told of.
fn check_counts(calls: &[Answered], back_end: &BackEnd) {
    let mut moves: BTreeMap<u32, Vec<u64>> = (1..=DOORS).map(|number| (number, Vec::new())).collect();
    for call in calls.iter().filter(|call| call.status == 200) {
        moves.entry(call.door).or_default().push(call.payload["count"].as_u64().expect("a count"));
    }
    for (number, mut counts) in moves {
        counts.sort_unstable();
        assert!(counts.iter().copied().eq(1..=counts.len() as u64), "{} has moved {counts:?}", door(number));
        let last = back_end.call(&door(number), "lockDoor");
        let expected = counts.len() + usize::from(last.status == 200);
        assert_eq!(last.payload["count"].as_u64(), Some(expected as u64), "{}", door(number));
    }
}

#[test]
fn a_file_that_is_no_plugin_is_refused_and_the_old_version_goes_on() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let _latch = fleet(data, plugins, 1);
    let back_end = BackEnd::of(data);

    let whole = fs::read(component("2.0.0")).expect("a component");
    let half = &whole[..whole.len() / 2];
    let other_world = fs::read(guests().join("fixtures/wrong-world.wasm")).expect("a component");
    for (broken, reason) in [
        (
            &b"echo no plugin at all\n"[..],
            "the file is text, not a compiled component: it begins with \"echo no plugin",
        ),
        (half, &format!("the file ends early, after {} bytes", half.len())),
        (&other_world, "the component exports nothing; a plugin exports `iothub:plugin/methods@0.1.0`, "),
    ] {
        let elsewhere = tempfile::tempdir().expect("a temporary folder");
        let file = elsewhere.path().join("broken.wasm");
        fs::write(&file, broken).expect("written");
        let swap = latch(data, &["plugin", "swap", "lock-door", path_text(&file)]);
        assert_eq!(swap.code, Some(1), "{swap:?}");
        assert!(swap.stderr.contains("lock-door was not swapped") && swap.stderr.contains(reason), "{swap:?}");
        assert_eq!(operator::plugin(data, "lock-door").0.as_deref(), Some("1.0.0"));

        put(broken, plugins);
        wait_until(reason, TAKEN_BOUND, || {
            operator::plugin(data, "lock-door").1.filter(|refusal| refusal.contains(reason))
        });
        let list = latch(data, &["plugin", "list"]);
        assert!(list.stdout.contains("running, new file refused"), "{list:?}");
        assert!(list.stderr.contains("lock-door was refused") && list.stderr.contains(reason), "{list:?}");
        assert_eq!(back_end.call(&door(1), "lockDoor").payload["version"], "1.0.0", "{reason}");
    }

    put(&whole, plugins);
    wait_until("a good file is current", TAKEN_BOUND, || {
        (operator::plugin(data, "lock-door") == (Some("2.0.0".to_owned()), None)).then_some(())
    });
    let answer = back_end.call(&door(1), "lockDoor");
    assert_eq!(
        (answer.status, &answer.payload["version"], &answer.payload["count"]),
        (409, &"2.0.0".into(), &1.into())
    );
}

fn fleet(data: &Path, plugins: &Path, doors: u32) -> Latch {
    Latch::start(
        data,
        &[&["up", "--devices", &doors.to_string(), "--plugins", path_text(plugins)], FREE_PORTS].concat(),
    )
}

/// Where that version of lock-door is.
fn component(version: &str) -> PathBuf {
    guests().join(if version == VERSIONS[0] { "lock-door.wasm" } else { "next/lock-door.wasm" })
}

/// Replaces lock-door as installers do: whole, in one step.
fn put(content: &[u8], plugins: &Path) {
    let temporary = plugins.join(".lock-door.new");
    fs::write(&temporary, content).expect("written");
    fs::rename(&temporary, plugins.join("lock-door.wasm")).expect("renamed");
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a readable name")
}
