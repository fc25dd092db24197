//! The conformance suite: what Microsoft's SDKs must find as they find it at Azure, case by case.
//!
//! Each area is a program of `node/conformance/` or `python/conformance/`: a table of cases that runs against one hub and
//! tells of each case in a line of the Test Anything Protocol. The numbers here see to it that no case gets lost.

use std::path::Path;

use super::{Sdk, isolated, isolation, sdk};
use crate::harness::{Certificate, Latch, Valid};

/// How many cases there are to be at least.
const WANTED: usize = 150;

macro_rules! areas {
    ($($name:ident: $sdk:ident $script:literal $cases:literal;)*) => {
        $(
            #[test]
            fn $name() {
                let name = concat!("conformance::", stringify!($name));
                isolated(name, Sdk::$sdk, || run(Sdk::$sdk, concat!("conformance/", $script), $cases));
            }
        )*

        const CASES: usize = 0 $(+ $cases)*;
    };
}

areas! {
    node_identities: Node "identities.js" 22;
    node_bulk: Node "bulk.js" 9;
    node_twins: Node "twins.js" 26;
    node_device_twins: Node "device_twins.js" 16;
    node_methods: Node "methods.js" 22;
    node_jobs: Node "jobs.js" 25;
    node_queries: Node "queries.js" 20;
    node_query_language: Node "query_language.js" 15;
    node_telemetry: Node "telemetry.js" 9;
    node_c2d: Node "c2d.js" 10;
    node_connections: Node "connections.js" 16;
    node_websockets: Node "websockets.js" 8;
    node_modules: Node "modules.js" 18;
    node_certificates: Node "certificates.js" 19;
    python_identities: Python "identities.py" 10;
    python_bulk: Python "bulk.py" 9;
    python_twins: Python "twins.py" 11;
    python_device_twins: Python "device_twins.py" 10;
    python_methods: Python "methods.py" 11;
    python_jobs: Python "jobs.py" 9;
    python_queries: Python "queries.py" 7;
    python_messages: Python "messages.py" 9;
    python_connections: Python "connections.py" 13;
    python_websockets: Python "websockets.py" 6;
    python_modules: Python "modules.py" 10;
    python_certificates: Python "certificates.py" 14;
}

const _: () = assert!(CASES >= WANTED);

/// Runs an area against a hub of its own; every one of its cases must succeed.
fn run(sdk: Sdk, script: &str, cases: usize) {
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    make_certificates(&data.path().join("devices-of-tests"));
    let latch = Latch::start(data.path(), &["hub"]);
    isolation::demand_standard_ports(data.path());
    let mut process = sdk.start(script, data.path());
    let status = process.wait(sdk::SCRIPT_BOUND);
    let verdict = judge(&process.transcript(), cases);
    if !status.success() || verdict.is_err() {
        let why = verdict.err().unwrap_or_default();
        process.fail(&format!("ended with {status}. {why}\n--- latch said:\n{}---", latch.transcript()));
    }
    let status = latch.stop();
    assert!(status.success(), "latch ended with {status} on SIGTERM");
}

/// What devices show that connect with a certificate, as `NAME.pem` and `NAME.key`.
fn make_certificates(folder: &Path) {
    for name in ["own", "next", "other"] {
        Certificate::self_signed(name, Valid::Now).save(folder, name);
    }
    Certificate::self_signed("expired", Valid::InThePast).save(folder, "expired");
    let (factory, stranger) = (Certificate::root("factory"), Certificate::root("factory"));
    let line = factory.sign_authority("line 1");
    factory.save(folder, "factory");
    // The common name of a certificate that an authority has signed is the id of its device.
    factory.sign("signed", Valid::Now).save(folder, "signed");
    line.sign("signed-below", Valid::Now).save(folder, "signed-below");
    factory.sign("signed-expired", Valid::InThePast).save(folder, "signed-expired");
    stranger.sign("signed-elsewhere", Valid::Now).save(folder, "signed-elsewhere");
}

/// Whether what a program said tells of so many cases, all of them well.
fn judge(said: &str, cases: usize) -> Result<(), String> {
    let lines = |prefix: &str| said.lines().filter(|line| line.starts_with(prefix)).count();
    let planned = said.lines().find_map(|line| line.strip_prefix("1..")?.parse::<usize>().ok());
    let (passed, failed) = (lines("ok "), lines("not ok "));
    if planned != Some(cases) {
        return Err(format!(
            "{cases} cases are listed, the program has {planned:?}: change the list in conformance.rs"
        ));
    }
    if failed > 0 || passed != cases {
        return Err(format!("{passed} of {cases} cases succeeded, {failed} failed"));
    }
    Ok(())
}

#[test]
fn a_program_is_judged_by_every_case() {
    assert_eq!(judge("1..2\nok 2 - b\nok 1 - a\n", 2), Ok(()));
    for bad in [
        "",
        "ok 1 - a\nok 2 - b\n",
        "1..2\nok 1 - a\n",
        "1..2\nok 1 - a\nnot ok 2 - b\n",
        "1..2\nok 1 - a\nok 2 - b\nnot ok 2 - b\n",
        "1..3\nok 1 - a\nok 2 - b\nok 3 - c\n",
        "1..2\nok 1 - a\n! ok 2 - b\n",
    ] {
        assert!(judge(bad, 2).is_err(), "{bad:?}");
    }
}
