//! What a store holds beside the guest: its call, its limits, its empty WASI.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use crate::context::{CallContext, Effects, Snapshot};
use crate::limiter::Limiter;
use crate::output::{Output, Standard};
use crate::terms::Terms;
use crate::version::PluginVersion;

/// The data of a store.
pub(crate) struct Guest {
    pub(crate) call: CallContext,
    pub(crate) terms: Arc<Terms>,
    pub(crate) limiter: Limiter,
    pub(crate) output: Output,
    /// When the guest must have returned.
    pub(crate) deadline: Instant,
    /// Whether a timer that it sets could fire.
    pub(crate) has_ticks: bool,
    wasi: WasiCtx,
    table: ResourceTable,
}

impl Guest {
    pub(crate) fn new(version: &PluginVersion, memory: usize, time: Duration) -> Guest {
        let output = Output::new(version.name.clone(), version.label.clone());
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_LIMIT);
        let wasi = wasi(&output);
        let limiter = Limiter::new(memory);
        Guest {
            call: CallContext::default(),
            terms: version.terms.clone(),
            limiter,
            output,
            deadline: Instant::now() + time,
            has_ticks: version.exports.ticks(),
            wasi,
            table,
        }
    }

    pub(crate) fn begin(&mut self, snapshot: Option<Snapshot>, time: Duration) {
        self.call = CallContext::new(snapshot);
        self.output.begin(self.call.device_id());
        self.limiter.begin();
        self.deadline = Instant::now() + time;
    }

    pub(crate) fn end(&mut self) -> Effects {
        self.output.end();
        std::mem::take(&mut self.call).into_effects()
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Clocks, randomness and a voice. The rest is linked, because toolchains import it whether it is used or not, but
/// nothing is granted: no environment, no folder, no socket, no name lookup.
fn wasi(output: &Output) -> WasiCtx {
    WasiCtx::builder()
        .stdout(output.stream(Standard::Output))
        .stderr(output.stream(Standard::Error))
        .allow_tcp(false)
        .allow_udp(false)
        .max_random_size(RANDOM_LIMIT)
        .build()
}

/// Handles that a guest may hold (streams, pollables): a leak ends in an error, not in the host's memory.
const RESOURCES_LIMIT: usize = 1000;
/// Random bytes at once; the host allocates them before the guest has room for them.
const RANDOM_LIMIT: u64 = 64 << 10;
