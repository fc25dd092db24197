//! What a store holds beside the guest: its call, its limits, its WASI.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iothub_protocol::id::DeviceId;
use wasmtime_wasi::sockets::WasiSocketsCtxView;
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use crate::clock::CallTime;
use crate::context::{CallContext, Effects, Snapshot};
use crate::deadline::Deadline;
use crate::grants::{self, Surroundings};
use crate::limiter::Limiter;
use crate::output::Output;
use crate::random::{Foretold, Seeding};
use crate::settings::CallLimits;
use crate::terms::Terms;
use crate::version::PluginVersion;

/// The data of a store.
pub(crate) struct Guest {
    pub(crate) call: CallContext,
    pub(crate) terms: Arc<Terms>,
    pub(crate) limits: CallLimits,
    pub(crate) limiter: Limiter,
    pub(crate) output: Output,
    time: CallTime,
    /// Its random numbers, unless it is granted better ones.
    pub(crate) foretold: Option<Foretold>,
    pub(crate) seeding: Arc<Seeding>,
    /// Names that it may still look up in this call.
    lookups: usize,
    pub(crate) deadline: Deadline,
    /// Whether a timer that it sets could fire.
    pub(crate) has_ticks: bool,
    wasi: WasiCtx,
    table: ResourceTable,
}

impl Guest {
    /// A guest for `origin`, whose own start is to run within `limit`. The granted folder is made already.
    pub(crate) fn new(
        version: &PluginVersion,
        origin: &Origin<'_>,
        memory: usize,
        limits: CallLimits,
        limit: Duration,
    ) -> wasmtime::Result<Guest> {
        let (grants, device) = (&version.terms.grants, origin.device.map_or("", DeviceId::as_str));
        let output = Output::new(version.name.clone(), version.label.clone(), limits);
        output.begin(device);
        let time = CallTime::default();
        time.set(origin.now);
        let folder = origin.folder.as_deref();
        let surroundings = Surroundings { output: &output, time: &time, folder, reaches_out: origin.device.is_some() };
        let wasi = grants::context(grants, limits, &surroundings)?;
        let mut table = ResourceTable::new();
        let holds_files = folder.is_some() || !grants.addresses.is_empty();
        table.set_max_capacity(if holds_files { limits.handles.min(limits.files) } else { limits.handles });
        let foretold = (!grants.randomness).then(|| {
            let parts = [version.name.as_str(), &version.hash, device].map(str::as_bytes);
            Foretold::new(&[parts[0], parts[1], parts[2], &origin.now.to_le_bytes()])
        });
        Ok(Guest {
            call: CallContext::default(),
            terms: version.terms.clone(),
            limits,
            limiter: Limiter::new(memory),
            output,
            time,
            foretold,
            seeding: version.seeding.clone(),
            lookups: limits.lookups,
            deadline: Deadline::within(limit),
            has_ticks: version.exports.ticks(),
            wasi,
            table,
        })
    }

    pub(crate) fn begin(&mut self, snapshot: Option<Snapshot>, limit: Duration) {
        if let Some(snapshot) = &snapshot {
            self.time.set(snapshot.now);
        }
        self.call = CallContext::new(snapshot, self.limits);
        self.output.begin(self.call.device_id());
        self.limiter.begin();
        self.lookups = self.limits.lookups;
        self.deadline = Deadline::within(limit);
    }

    /// The settings that it was loaded with, in byte order of their keys.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        self.terms.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Its sockets, and how many names it may still look up.
    pub(crate) fn lookups(&mut self) -> (&mut usize, WasiSocketsCtxView<'_>) {
        let sockets = WasiSocketsCtxView { ctx: self.wasi.sockets(), table: &mut self.table };
        (&mut self.lookups, sockets)
    }

    pub(crate) fn end(&mut self) -> Effects {
        self.output.end();
        std::mem::take(&mut self.call).into_effects()
    }
}

/// For what an instance is made.
pub(crate) struct Origin<'a> {
    /// `None` for the self-test.
    pub(crate) device: Option<&'a DeviceId>,
    /// Milliseconds since the beginning of 1970, UTC.
    pub(crate) now: u64,
    /// The device's folder, if one is granted.
    pub(crate) folder: Option<PathBuf>,
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}
