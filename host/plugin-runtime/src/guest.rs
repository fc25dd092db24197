//! What a store holds beside the guest: its call, its limits, its WASI.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iothub_protocol::id::DeviceId;
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use crate::clock::{self, CallTime};
use crate::context::{CallContext, Effects, Snapshot};
use crate::limiter::Limiter;
use crate::output::{Output, Standard};
use crate::settings::CallLimits;
use crate::terms::{Grants, Terms};
use crate::version::PluginVersion;

/// The data of a store.
pub(crate) struct Guest {
    pub(crate) call: CallContext,
    pub(crate) terms: Arc<Terms>,
    limits: CallLimits,
    pub(crate) limiter: Limiter,
    pub(crate) output: Output,
    time: CallTime,
    /// When the guest must have returned.
    pub(crate) deadline: Instant,
    /// Whether a timer that it sets could fire.
    pub(crate) has_ticks: bool,
    wasi: WasiCtx,
    table: ResourceTable,
}

impl Guest {
    pub(crate) fn new(version: &PluginVersion, memory: usize, limits: CallLimits) -> Guest {
        let output = Output::new(version.name.clone(), version.label.clone(), limits);
        let time = CallTime::default();
        let wasi = wasi(&version.terms.grants, &output, &time, limits);
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles);
        Guest {
            call: CallContext::default(),
            terms: version.terms.clone(),
            limits,
            limiter: Limiter::new(memory),
            output,
            time,
            deadline: Instant::now(),
            has_ticks: version.exports.ticks(),
            wasi,
            table,
        }
    }

    /// The guest's own start is to run, which sees no device.
    pub(crate) fn start(&mut self, device: Option<&DeviceId>, now: u64, limit: Duration) {
        self.output.begin(device.map_or("", DeviceId::as_str));
        self.time.set(now);
        self.deadline = Instant::now() + limit;
    }

    pub(crate) fn begin(&mut self, snapshot: Option<Snapshot>, limit: Duration) {
        if let Some(snapshot) = &snapshot {
            self.time.set(snapshot.now);
        }
        self.call = CallContext::new(snapshot, self.limits);
        self.output.begin(self.call.device_id());
        self.limiter.begin();
        self.deadline = Instant::now() + limit;
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

/// A voice, and what is granted. The rest is linked, because toolchains import it whether it is used or not, but
/// nothing is granted: no environment, no folder, no socket, no name lookup.
fn wasi(grants: &Grants, output: &Output, time: &CallTime, limits: CallLimits) -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    wasi.stdout(output.stream(Standard::Output))
        .stderr(output.stream(Standard::Error))
        .allow_tcp(false)
        .allow_udp(false)
        .max_random_size(limits.random);
    clock::grant(grants.clock, time, &mut wasi);
    wasi.build()
}
