//! Microsoft's unmodified SDKs as clients of `latch`: tours and mishaps here, single rules in [`conformance`].
//!
//! Each test starts `latch` once and lets a script of `node/` or `python/` drive it; the script ends with a message and
//! a status other than zero if anything is not as Azure does it. The SDKs fix the ports 443 and 8883, so each test runs
//! in a network of its own (see [`isolation`]); the SDKs are installed once, before (see [`sdk`]).

mod conformance;
#[path = "../harness/mod.rs"]
mod harness;
mod isolation;
mod sdk;

use harness::{Latch, guests};
use isolation::isolated;
use sdk::Sdk;

/// A device and a back end by the Node SDK: Microsoft's tutorial on jobs, twins, queries, methods, the SDK's errors.
#[test]
fn node_tutorial() {
    on_hub("node_tutorial", Sdk::Node, "tutorial.js");
}

/// The same tour by the Python SDKs.
#[test]
fn python_tutorial() {
    on_hub("python_tutorial", Sdk::Python, "tutorial.py");
}

/// The Node SDK runs jobs on devices whose behaviour is plugins.
#[test]
fn node_drives_latch_devices() {
    on_fleet("node_drives_latch_devices", Sdk::Node, "fleet.js");
}

/// The Python SDK does.
#[test]
fn python_drives_latch_devices() {
    on_fleet("python_drives_latch_devices", Sdk::Python, "fleet.py");
}

/// One job over a device of the Node SDK and Latch's own.
#[test]
fn one_job_over_both_kinds_of_device() {
    on_fleet("one_job_over_both_kinds_of_device", Sdk::Node, "mixed.js");
}

/// Cloud-to-device messages at a device of the Node SDK: listening, away, over HTTPS.
#[test]
fn node_gets_messages() {
    on_hub("node_gets_messages", Sdk::Node, "messages.js");
}

/// Cloud-to-device messages at a device of the Python SDK, and its calls for purge and feedback.
#[test]
fn python_gets_messages() {
    on_hub("python_gets_messages", Sdk::Python, "messages.py");
}

/// Configurations by the Node SDK's registry, and what they do to a connected device.
#[test]
fn node_configures_devices() {
    on_hub("node_configures_devices", Sdk::Node, "configurations.js");
}

/// Configurations by the Python SDK's manager.
#[test]
fn python_configures_devices() {
    on_hub("python_configures_devices", Sdk::Python, "configurations.py");
}

/// The hub is killed under a connected Node device, which must not notice more than a reconnect.
#[test]
fn node_device_survives_the_hub() {
    on_dying_hub("node_device_survives_the_hub", Sdk::Node, "reconnect.js");
}

/// The hub is killed under a connected Python device.
#[test]
fn python_device_survives_the_hub() {
    on_dying_hub("python_device_survives_the_hub", Sdk::Python, "reconnect.py");
}

/// The hub is killed under a hundred Node devices while their twins are changed.
#[test]
fn a_hundred_node_devices_survive_the_hub() {
    on_dying_hub("a_hundred_node_devices_survive_the_hub", Sdk::Node, "hundred.js");
}

/// The wire to a Node device is cut in the middle of things.
#[test]
fn node_device_survives_the_wire() {
    on_wired_hub("node_device_survives_the_wire", Sdk::Node, "wire.js");
}

/// The wire to a Python device is cut in the middle of things.
#[test]
fn python_device_survives_the_wire() {
    on_wired_hub("python_device_survives_the_wire", Sdk::Python, "wire.py");
}

/// Wrong keys, tokens of the past, unknown and disabled devices, as the Node SDK reports them.
#[test]
fn node_sees_refusals() {
    on_hub("node_sees_refusals", Sdk::Node, "refusals.js");
}

/// Wrong keys, tokens of the past and unknown devices, as the Python SDKs report them.
#[test]
fn python_sees_refusals() {
    on_hub("python_sees_refusals", Sdk::Python, "refusals.py");
}

/// Runs a script against a hub alone.
fn on_hub(test: &str, sdk: Sdk, script: &str) {
    isolated(test, sdk, || run_against(&["hub"], sdk, script));
}

/// Runs a script that is itself the way from the port that the SDK knows to the hub, on a port of its own network.
fn on_wired_hub(test: &str, sdk: Sdk, script: &str) {
    isolated(test, sdk, || run_against(&["hub", "--mqtt", "127.0.0.1:18883"], sdk, script));
}

/// Runs a script against a hub with five devices, `door-0001` and on, that run all example plugins.
fn on_fleet(test: &str, sdk: Sdk, script: &str) {
    let plugins = guests().to_str().expect("the target folder has a readable name");
    isolated(test, sdk, || run_against(&["up", "--devices", "5", "--plugins", plugins], sdk, script));
}

/// Runs a script against a hub that is killed when the script says so, and started again.
fn on_dying_hub(test: &str, sdk: Sdk, script: &str) {
    isolated(test, sdk, || {
        let data = tempfile::tempdir().expect("a temporary folder can be made");
        let first = Latch::start(data.path(), &["hub"]);
        isolation::demand_standard_ports(data.path());
        let mut script = sdk.start(script, data.path());
        script.wait_for_line("kill the hub", sdk::SCRIPT_BOUND);
        first.kill();
        let _second = Latch::start(data.path(), &["hub"]);
        script.tell("it is back");
        script.succeed(sdk::SCRIPT_BOUND);
    });
}

fn run_against(args: &[&str], sdk: Sdk, script: &str) {
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let latch = Latch::start(data.path(), args);
    isolation::demand_standard_ports(data.path());
    let mut process = sdk.start(script, data.path());
    let status = process.wait(sdk::SCRIPT_BOUND);
    if !status.success() {
        process.fail(&format!("failed: {status}\n--- latch said:\n{}---", latch.transcript()));
    }
    let status = latch.stop();
    assert!(status.success(), "latch ended with {status} on SIGTERM");
}
