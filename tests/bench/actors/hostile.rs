//! What 99 devices notice of a bad plugin on the hundredth.

use std::time::Duration;

use tokio::runtime::Builder;

use crate::Asked;
use crate::figures::{Times, verdict};
use crate::fleet::neighbours::{Evil, Load, Noticed, observe};
use crate::harness::plugin_folder;

const LOAD: Load = Load { devices: 100, pause: Duration::from_millis(40), calls: 100 };
/// Of a call: short, so that what breaks it does so often.
const CALL_LIMIT: Duration = Duration::from_millis(500);
/// What its caller may wait beyond the limit.
const MARGIN: Duration = Duration::from_millis(100);
/// How much longer the neighbours' slowest hundredth may take.
const RATIO: f64 = 2.0;

pub(crate) fn run(asked: &Asked) {
    let calls = u32::try_from(asked.size("calls", LOAD.calls as usize)).expect("fewer");
    let pause = Duration::from_millis(asked.size("pause", LOAD.pause.as_millis() as usize) as u64);
    let load = Load { calls, pause, ..LOAD };
    println!("99 devices, each called every {pause:?}, {calls} times; call limit {CALL_LIMIT:?}");
    let alone = look(None, load);
    let without = Times::new(alone.neighbours).at(0.99);
    println!("without a bad one: p99 {without:.1?}");
    for evil in Evil::all() {
        let Noticed { neighbours, bad } = look(Some(evil), load);
        let (calls, neighbours, bad) = (bad.len(), Times::new(neighbours), Times::new(bad));
        let ratio = neighbours.at(0.99).as_secs_f64() / without.as_secs_f64();
        println!(
            "{evil:?}: p99 {:.1?}, {ratio:.2} times{}; the bad one, {calls} times: longest {:.1?}{}",
            neighbours.at(0.99),
            verdict(ratio <= RATIO),
            bad.at(1.0),
            verdict(bad.at(1.0) <= CALL_LIMIT + MARGIN)
        );
    }
}

fn look(evil: Option<Evil>, load: Load) -> Noticed {
    let (data, plugins) = (tempfile::tempdir().expect("a folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path().to_owned(), plugins.path().to_owned());
    let runtime = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        tokio::spawn(async move { observe(&data, &plugins, evil, load, CALL_LIMIT).await })
            .await
            .expect("no call is lost")
    })
}
