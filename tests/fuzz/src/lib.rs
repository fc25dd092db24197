//! Drives every parser that reads the network with any bytes, and checks what must hold whatever they are.
//!
//! Each target is a function from bytes to nothing that panics when something does not hold. A fuzzer calls it (the
//! programs of `targets/`), and so does an ordinary test with the seeds that are kept (`host/embedded-hub/tests/seeds.rs`
//! takes these modules in).

mod bodies;
mod certificates;
mod mqtt;
mod texts;
mod websockets;

/// Takes any bytes, and panics only if they show a fault.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its program and of its folder of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("mqtt", mqtt::stranger),
    ("session", mqtt::device),
    ("websocket", websockets::frames),
    ("certificate", certificates::certificate),
    ("topic", texts::topic),
    ("bag", texts::bag),
    ("sas", texts::sas),
    ("connection_string", texts::connection_string),
    ("query", texts::query),
    ("answer", texts::answer),
    ("twin", bodies::twin),
    ("identity", bodies::identity),
    ("method", bodies::method),
    ("job", bodies::job),
    ("configuration", bodies::configuration),
];

/// Runs one target.
///
/// # Panics
/// When there is no such target, or something does not hold.
pub fn run(target: &str, data: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of the table");
    run(data);
}
