//! The engine and the thread that moves its epoch.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use wasmtime::{Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::settings::{RuntimeError, RuntimeSettings};

/// How often a running guest is looked at: the grain of time limits and of fairness between guests on one thread. Each
/// look costs the guest's loops one load and one compare.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// An engine for `settings`, with its epoch moving.
pub(crate) fn start(settings: &RuntimeSettings) -> Result<Engine, RuntimeError> {
    let engine = Engine::new(&config(settings, WHOLE_ADDRESS_SPACE))
        .or_else(|error| {
            tracing::info!(%error, "little address space: plugins run with explicit bounds checks");
            Engine::new(&config(settings, Reservation { memory: round_up(settings.memory_limit), guard: PAGE }))
        })
        .map_err(|error| RuntimeError::Engine { reason: format!("{error:#}") })?;
    start_ticker(engine.weak())?;
    Ok(engine)
}

/// Address space for each linear memory.
struct Reservation {
    memory: u64,
    guard: u64,
}

/// With all that 32 bits can address set aside, compiled code needs no bounds checks.
const WHOLE_ADDRESS_SPACE: Reservation = Reservation { memory: 4 << 30, guard: 32 << 20 };

fn config(settings: &RuntimeSettings, reservation: Reservation) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_reservation(reservation.memory)
        .memory_guard_size(reservation.guard)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES))
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(settings)));
    // WASI 0.3's machinery makes every call several times dearer, and no plugin of WASI 0.2 can use it.
    config.concurrency_support(false);
    config
}

fn pool(settings: &RuntimeSettings) -> PoolingAllocationConfig {
    let instances = settings.max_instances().saturating_add(SPARE);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_EACH))
        .total_memories(instances.saturating_mul(MEMORIES_EACH))
        .total_tables(instances.saturating_mul(TABLES_EACH))
        // A store that has made an asynchronous call keeps its stack, so resident instances need one each, too.
        .total_stacks(instances)
        .max_core_instances_per_component(CORE_INSTANCES_EACH)
        .max_memories_per_component(MEMORIES_EACH)
        .max_tables_per_component(TABLES_EACH)
        .max_memory_size(usize::try_from(round_up(settings.memory_limit)).unwrap_or(settings.memory_limit))
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(KEEP_RESIDENT)
        // Resets only the pages that the last guest touched, where the kernel can tell: nearly three times the rate.
        .pagemap_scan(Enabled::Auto);
    pool
}

fn round_up(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(PAGE)
}

/// Moves the epoch until nothing holds the engine any more: neither runtime, nor version, nor instance. A plain thread,
/// because guests that spin could keep every thread of an async runtime busy, and a task on one would never run.
fn start_ticker(engine: EngineWeak) -> Result<(), RuntimeError> {
    let tick = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::park_timeout(TICK);
        }
    };
    thread::Builder::new()
        .name("plugin-epoch".to_owned())
        .spawn(tick)
        .map(drop)
        .map_err(|error| RuntimeError::Ticker { reason: error.to_string() })
}

/// Instances beyond the settings' for the self-test of a version being loaded; one is loaded at a time.
pub(crate) const SPARE: u32 = 1;
/// A Rust component has 4 or so; a Python component, which links shared libraries, has 8 and more.
const CORE_INSTANCES_EACH: u32 = 32;
/// Every language's tools make one; 2 leaves room for a composition of two components.
pub(crate) const MEMORIES_EACH: u32 = 2;
/// Beside the guest's own table there is one for each adapter.
const TABLES_EACH: u32 = 8;
/// What a guest usually touches is set to zero and kept; giving it back to the kernel would cost a fault each.
const KEEP_RESIDENT: usize = 64 << 10;
/// The innermost functions say where a trap is; more would only be noise in a log.
const BACKTRACE_FRAMES: usize = 16;
/// A page of WebAssembly memory.
const PAGE: u64 = 64 << 10;
