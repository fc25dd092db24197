//! A network for each test, in which the ports that the SDKs fix are free and may be taken by anyone.
//!
//! The test runs itself once more, under `unshare`, and that second process does the work. Its process namespace sees
//! to it that nothing outlives the test. Where the system allows no namespaces, tests take the machine's own ports in
//! turn.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{self, GUESTS_VARIABLE, Process};
use crate::sdk::Sdk;

/// Set for the second process.
const INSIDE_VARIABLE: &str = "LATCH_INTEROP_INSIDE";
/// What the second process says when the scenario has run to its end: that it succeeded without running anything
/// would otherwise pass.
const DONE: &str = "scenario done:";
/// One scenario, SDKs and guests being there; most of it is the start of interpreters.
const SCENARIO_BOUND: Duration = Duration::from_secs(180);

/// Root may make namespaces; others may make one in which they are root, unless the system forbids it.
const WAYS: &[&[&str]] =
    &[&["--net", "--pid", "--fork", "--kill-child"], &["--map-root-user", "--net", "--pid", "--fork", "--kill-child"]];

/// A new network has only a loopback device, which is down. Python is there for its SDK; `ip` may be missing.
const RAISE_LOOPBACK: &str = "
import fcntl, socket, struct
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    request = struct.pack('16sH14s', b'lo', 0, b'')
    flags, = struct.unpack('16xH14x', fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack('16sH14s', b'lo', flags | IFF_UP, b''))
";

/// Runs `scenario`, the body of the test `name`, in a network of its own, where the SDK is installed. A scenario that
/// needs guests has them built by its caller: there is no network to build from inside.
pub(crate) fn isolated(name: &str, sdk: Sdk, scenario: impl FnOnce()) {
    if env::var_os(INSIDE_VARIABLE).is_some() {
        scenario();
        announce_done(name);
        return;
    }
    sdk.install();
    let way = WAYS.iter().find(|way| works(way));
    // Without a network of its own, a test has the ports for itself by waiting for them.
    let _turn = way.is_none().then(|| harness::lock("interop/ports.lock"));
    let mut command = inside(way.copied(), name);
    command.env(INSIDE_VARIABLE, "1").env(GUESTS_VARIABLE, harness::guests_folder());
    let mut process = Process::spawn(name, &mut command);
    process.succeed(SCENARIO_BOUND);
    if !process.transcript().contains(&format!("{DONE} {name}")) {
        process.fail("ran no scenario");
    }
}

#[expect(clippy::print_stdout, reason = "the first process reads it")]
fn announce_done(name: &str) {
    println!("{DONE} {name}");
}

/// Fails if `latch` had to do without the ports that the SDKs fix.
pub(crate) fn demand_standard_ports(data: &Path) {
    let service = fs::read_to_string(data.join("service.connstr")).expect("latch has written service.connstr");
    let host = service.trim().split(';').find_map(|pair| pair.strip_prefix("HostName="));
    assert_eq!(
        host,
        Some("localhost"),
        "the hub could not take port 443. Microsoft's SDKs reach no other. Allow one of: user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, \
         user.max_user_namespaces above 0); running the tests as root with CAP_SYS_ADMIN; low ports for everybody \
         (sysctl net.ipv4.ip_unprivileged_port_start=443) with 443 and 8883 unused"
    );
}

fn works(way: &[&str]) -> bool {
    let mut trial = Command::new("unshare");
    trial.args(way).args(["python3", "-c", RAISE_LOOPBACK]);
    trial.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn inside(way: Option<&[&str]>, name: &str) -> Command {
    let test = env::current_exe().expect("a test knows its own file");
    let arguments = ["--exact", name, "--nocapture", "--test-threads=1"];
    let Some(way) = way else {
        let mut command = Command::new(test);
        command.args(arguments);
        return command;
    };
    let mut command = Command::new("unshare");
    command.args(way).args(["sh", "-c", "python3 -c \"$RAISE_LOOPBACK\" && exec \"$0\" \"$@\""]);
    command.arg(test).args(arguments).env("RAISE_LOOPBACK", RAISE_LOOPBACK);
    command
}
