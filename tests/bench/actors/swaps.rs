//! Very many calls over very many swaps between two versions: nothing lost, nothing answered by what is over, nothing
//! forgotten, and nothing left behind in memory.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::Asked;
use crate::figures::{Times, maps, resident};
use crate::fleet::channels::{Fleet, Sizes, in_time};
use crate::fleet::swapping::{Caller, Terms, VERSIONS};
use crate::harness::{guests, plugin_folder};

const CALLS: usize = 100_000;
const SWAPS: usize = 100;
const DEVICES: usize = 100;
const CALLERS: usize = 10;
/// Lines in the table of memory.
const LOOKS: usize = 10;

pub(crate) fn run(asked: &Asked) {
    let (calls, swaps) = (asked.size("calls", CALLS), asked.size("swaps", SWAPS));
    Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(async move {
        tokio::spawn(measure(calls, swaps)).await.expect("no call is lost");
    });
}

async fn measure(calls: usize, swaps: usize) {
    let (data, plugins) = (tempfile::tempdir().expect("a folder"), plugin_folder(&["lock-door"]));
    let (fleet, mut doors) = Fleet::start(data.path(), plugins.path(), Sizes::of(DEVICES)).await;
    let (terms, made) = (Arc::new(Terms::default()), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..CALLERS {
        let doors = doors.split_off(doors.len() - DEVICES / CALLERS);
        let (mut caller, made) = (Caller::new(doors, terms.clone()), made.clone());
        callers.spawn(async move {
            while made.fetch_add(Caller::CALLS, Ordering::Relaxed) < calls {
                caller.turn().await;
            }
            caller
        });
    }
    let wasm = VERSIONS.map(|file| fs::read(guests().join(file)).expect("a component"));
    let mut took = Vec::new();
    let (mut low, mut high) = ((f64::MAX, usize::MAX), (0.0_f64, 0));
    for swap in 1..=swaps {
        in_time("calls between two swaps", wait_for(&made, calls * swap / (swaps + 1))).await;
        let at = Instant::now();
        terms.swap(&fleet.catalog, &wasm).await;
        took.push(at.elapsed());
        if swap.is_multiple_of(swaps.div_ceil(LOOKS)) {
            println!("after {swap} swaps: resident memory {:.1} MiB, memory maps {}", resident(), maps());
        }
        // The first tenth fills what is kept on purpose.
        if swap > swaps / 10 {
            low = (low.0.min(resident()), low.1.min(maps()));
            high = (high.0.max(resident()), high.1.max(maps()));
        }
    }
    let callers = in_time("the last calls", callers.join_all()).await;
    let made: u64 = callers.iter().map(Caller::made).sum();
    println!(
        "{made} calls over {swaps} swaps in {:.1?}: 0 lost, 0 by a version that was over, each counted once",
        begun.elapsed()
    );
    println!("a swap took: {}", Times::new(took).summary());
    println!(
        "over the last nine tenths: resident memory {:.1} to {:.1} MiB, memory maps {} to {}",
        low.0, high.0, low.1, high.1
    );
    fleet.stop().await;
}

async fn wait_for(made: &AtomicUsize, enough: usize) {
    while made.load(Ordering::Relaxed) < enough {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
