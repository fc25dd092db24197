//! One plugin in four languages: each passes the same scenarios, and one takes over from the other on a running host.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::back_end::{BackEnd, door};
use crate::harness::{
    FREE_PORTS, Latch, Process, guests, guests_folder, latch_command, latch_ok, lock, plugin_folder, repository, target,
};

/// The languages beside Rust.
const LANGUAGES: [&str; 3] = ["js", "python", "c"];
/// From nothing: tools from npm and PyPI, then each plugin.
const BUILD_BOUND: Duration = Duration::from_secs(600);
/// A debug build takes half a minute to compile the component with a whole Python.
const TEST_BOUND: Duration = Duration::from_secs(180);

/// Where the lock-door in that language is.
fn lock_door(language: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let _lock = lock("test-languages.lock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_latch"));
        command.args(["plugin", "build", "--lang", &LANGUAGES.join(","), "--out"]).arg(guests_folder());
        command.arg("--tools").arg(target().join("tools")).current_dir(repository());
        Process::spawn("latch plugin build", &mut command).succeed(BUILD_BOUND);
    });
    guests_folder().join("lang").join(language).join("lock-door.wasm")
}

#[test]
fn a_door_passes_from_one_language_to_the_next() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let arguments = [&["up", "--devices", "1", "--plugins", path_text(plugins)], FREE_PORTS].concat();
    let latch = Latch::start(data, &arguments);
    let back_end = BackEnd::of(data);
    let call = |method: &str| {
        let answer = back_end.call(&door(1), method);
        (answer.status, answer.payload)
    };
    let moved = |count: u64, locked: bool| (200, json!({ "count": count, "locked": locked, "version": "1.0.0" }));

    assert_eq!(call("lockDoor"), moved(1, true));
    swap(data, "1.0.0", "1.0.0+js", &lock_door("js"));
    assert_eq!(call("lockDoor").0, 409, "it is locked already, by the plugin in Rust");
    assert_eq!(call("unlockDoor"), moved(2, false));
    swap(data, "1.0.0+js", "1.0.0+c", &lock_door("c"));
    assert_eq!(call("lockDoor"), moved(3, true));
    swap(data, "1.0.0+c", "1.0.0", &guests().join("lock-door.wasm"));
    assert_eq!(call("unlockDoor"), moved(4, false));

    let said = latch.transcript();
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
}

fn swap(data: &Path, from: &str, to: &str, component: &Path) {
    let told = latch_ok(data, &["plugin", "swap", "lock-door", path_text(component)]);
    assert_eq!(told, format!("lock-door {from} -> {to}\n"));
}

#[test]
fn every_language_passes_the_shared_scenarios() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let components = LANGUAGES.map(lock_door).into_iter().chain([guests().join("lock-door.wasm")]);
    for component in components {
        let arguments = ["plugin", "test", "plugins/lock-door/tests", "--plugin", path_text(&component)];
        Process::spawn("latch plugin test", &mut latch_command(data.path(), &arguments)).succeed(TEST_BOUND);
    }
}

#[test]
fn a_scenario_that_differs_says_where() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[[step]]\ncall = 'lockDoor'\nstatus = 200\nanswer = '{\"count\": 2, \"locked\": true}'\n")
        .expect("written");
    let component = guests().join("lock-door.wasm");
    let arguments = ["plugin", "test", path_text(&file), "--plugin", path_text(&component), "--json"];
    let outcome = crate::harness::latch(folder.path(), &arguments);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(4), "error: 1 of 1 scenarios failed\n"));
    let report: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let failed = &report["scenarios"][0]["failed"];
    assert_eq!((&failed["step"], &failed["line"]), (&json!(1), &json!(1)));
    assert_eq!(
        failed["differences"],
        json!([
            { "line": 4, "place": "answer.count", "expected": "2", "found": "1" },
            { "line": 4, "place": "answer.version", "expected": "nothing", "found": "\"1.0.0\"" },
        ])
    );
}

#[test]
fn a_new_project_builds_and_passes_its_test() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (data, project) = (folder.path(), folder.path().join("my-door"));
    lock_door("js");
    latch_ok(data, &["plugin", "new", "my-door", "--lang", "js", "--into", path_text(data)]);
    let (out, tools) = (folder.path().join("out"), target().join("tools"));
    let paths = ["--workspace", path_text(&project), "--out", path_text(&out), "--tools", path_text(&tools)];
    let build = || latch_ok(data, &[&["plugin", "build", "--json"], &paths[..]].concat());
    let changed = |told: String| serde_json::from_str::<Value>(&told).expect("JSON")[0]["changed"].clone();
    assert_eq!(changed(build()), json!(true));
    assert_eq!(changed(build()), json!(false));
    let component = out.join("my-door.wasm");
    latch_ok(data, &["plugin", "test", path_text(&project.join("tests")), "--plugin", path_text(&component)]);
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a readable name")
}
