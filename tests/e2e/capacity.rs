//! What plugins cost a host: compiling, once for all starts, and memory maps, which bound how many instances there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::back_end::{BackEnd, door};
use crate::harness::{FREE_PORTS, Latch, guests, latch_ok, plugin_folder};
use crate::operator;

/// Devices of the test of memory maps.
const DEVICES: u32 = 150;
/// Maps of a resident instance with one memory, beside those of its stack, which are there from the start.
const MAPS_EACH: usize = 4;
/// Maps that the process may get meanwhile for other things, such as threads.
const OTHER_MAPS: usize = 100;

#[test]
fn what_was_compiled_once_is_not_compiled_again() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door", "building"]));
    let (data, plugins) = (data.path(), plugins.path());
    let start = || {
        let arguments = ["up", "-vv", "--devices", "1", "--plugins", plugins.to_str().expect("a readable name")];
        Latch::start(data, &[&arguments, FREE_PORTS].concat())
    };
    let compiled = |latch: &Latch| {
        let said = latch.transcript();
        (count(&said, "component is compiled"), count(&said, "compiled code came from the cache"))
    };
    let next = guests().join("next/lock-door.wasm");
    let swap = || latch_ok(data, &["plugin", "swap", "lock-door", next.to_str().expect("a readable name")]);

    let latch = start();
    swap();
    latch_ok(data, &["plugin", "rollback", "lock-door"]);
    assert_eq!(compiled(&latch), (3, 0));
    latch.kill();

    let entries = entries(&data.join("cache"));
    assert_eq!(entries.len(), 3);
    let latch = start();
    swap();
    assert_eq!(BackEnd::of(data).call(&door(1), "lockDoor").payload["version"], "2.0.0");
    assert_eq!(compiled(&latch), (0, 3));
    latch.stop();

    // Damage costs a compilation, and says so.
    for entry in entries {
        let entry = data.join("cache").join(entry);
        let code = fs::read(&entry).expect("an entry");
        fs::write(&entry, &code[..code.len() - 1]).expect("ours");
    }
    let latch = start();
    assert_eq!(compiled(&latch), (2, 0));
    let said = latch.transcript();
    assert_eq!(count(&said, "compiled code from the cache is not used, it is compiled anew"), 2, "{said}");
}

fn entries(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).expect("the cache");
    files.map(|file| file.expect("a file").file_name().into_string().expect("a name")).collect()
}

fn count(said: &str, what: &str) -> usize {
    said.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_resident_instance_takes_the_maps_that_the_default_cap_counts_on() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let data = data.path();
    let (devices, cap) = (DEVICES.to_string(), DEVICES.to_string());
    let plugins = plugins.path().to_str().expect("a readable name");
    let arguments = ["up", "--devices", &devices, "--plugins", plugins, "--idle", "600000", "--max-instances", &cap];
    let latch = Latch::start(data, &[&arguments, FREE_PORTS].concat());
    let back_end = BackEnd::of(data);
    let maps = || fs::read_to_string(format!("/proc/{}/maps", latch.pid())).expect("it runs").lines().count();

    back_end.call(&door(1), "lockDoor");
    let before = maps();
    for number in 2..=DEVICES {
        assert_eq!(back_end.call(&door(number), "lockDoor").status, 200);
    }
    let resident: u64 = operator::actors(data).iter().filter_map(|actor| actor["resident"].as_u64()).sum();
    assert_eq!(resident, u64::from(DEVICES));
    let more = maps() - before;
    assert!(more <= (DEVICES as usize - 1) * MAPS_EACH + OTHER_MAPS, "{more} maps for {DEVICES} instances");
}
