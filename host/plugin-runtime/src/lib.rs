//! Runs plugins: WebAssembly components that answer a device's direct methods, react to its desired properties or deal
//! with its messages.
//!
//! This crate alone knows wasmtime. It does not know connections, mailboxes or databases: whoever owns a device hands
//! over a [`Snapshot`] for one call and gets [`Effects`] back, which it then makes durable. It reads no environment and
//! no configuration file.
//!
//! How the parts fit:
//!
//! - A [`Runtime`] holds the engine. [`Runtime::load`] turns bytes into a [`PluginVersion`]: inspected, type-checked,
//!   compiled and asked for what it answers. A version is immutable. What was compiled once is kept on disk, if
//!   [`CacheSettings`] say where.
//! - [`Runtime::instantiate`] makes an [`Instance`] of a version in microseconds. It takes one call at a time; after
//!   any [`CallFailure`] it is worth nothing and is dropped.
//! - A [`Catalog`] keeps the versions of a plugin directory current and publishes them as a [`PluginSet`].
//!
//! A guest sees the interfaces of `wit/` and an empty WASI: standard output and error, which arrive in the log, and the
//! second in which its call began. Whoever runs the host may grant more ([`Grants`]): environment variables, addresses,
//! a folder, a clock, randomness. What a guest does through them is no part of the call's transaction: it stays if the
//! call fails.

mod bindings;
mod cache;
mod capacity;
mod catalog;
mod clock;
mod context;
mod deadline;
mod describe;
mod engine;
mod folder;
mod grants;
mod guest;
mod inspect;
mod instance;
mod limiter;
mod name;
mod output;
mod random;
mod reported;
mod runtime;
mod settings;
mod signature;
mod tally;
mod terms;
#[cfg(test)]
mod testing;
mod version;

pub use cache::{CacheSettings, CacheStats};
pub use capacity::{MAX_RESIDENT, Machine};
pub use catalog::{
    CanaryPolicy, CanaryRule, CanaryView, Catalog, CatalogEntry, CatalogError, CatalogOptions, Demand, DeviceGlob,
    DeviceGlobError, DeviceSelector, DeviceSelectorError, KnownVersion, Lease, MAX_LISTED, PinRule, PlanError,
    PluginPlan, PluginPlans, PluginSet, Refusal, Rollout, RolloutError, SelfTest, SwapReport, VersionView,
    WithdrawnView,
};
pub use context::{Effects, IncomingMessage, MessageSource, OutgoingTelemetry, PeerMessage, Snapshot, Timer};
pub use describe::{Description, describe};
pub use instance::{CallFailure, GuestResponse, Instance, Verdict};
pub use name::{PluginName, PluginNameError};
pub use runtime::Runtime;
pub use settings::{CallLimits, RuntimeError, RuntimeSettings};
pub use tally::{Counts, Tally};
pub use terms::{AddressGrant, ClockGrant, Grants, Placement, PluginLimits, Terms};
pub use version::{LoadError, PluginSource, PluginVersion, VersionTag, resolve_version};
