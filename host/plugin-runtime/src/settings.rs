//! What a runtime may spend.

use std::time::Duration;

/// Limits of a runtime. Each has a default that suits a gateway with a few hundred devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeSettings {
    /// How long one call, or the making of one instance, may take by the clock on the wall. 5 seconds: the shortest
    /// response time-out that a caller of a direct method can ask for, so that a hanging plugin is named by the host
    /// before the hub gives up in silence.
    pub call_time_limit: Duration,
    /// Bytes of linear memory and tables that one instance may hold, over all its memories. 64 MiB: room for a
    /// scripting engine inside a component, and 256 such instances still fit into a server.
    pub memory_limit: usize,
    /// Instances that may be kept between calls. 256: at about 90 KB each they cost 23 MB.
    pub max_resident: u32,
    /// Calls that may run at once, on instances beyond the resident ones.
    pub max_in_flight: u32,
    /// Bytes of a component file. 64 MiB: Python components have 20 MB; compile time and memory grow with this.
    pub max_component_size: usize,
}

impl Default for RuntimeSettings {
    fn default() -> RuntimeSettings {
        RuntimeSettings {
            call_time_limit: Duration::from_secs(5),
            memory_limit: 64 << 20,
            max_resident: 256,
            max_in_flight: 64,
            max_component_size: 64 << 20,
        }
    }
}

impl RuntimeSettings {
    /// Instances that may exist at once. Whoever makes instances stays below this; the pool then never runs dry.
    pub fn max_instances(&self) -> u32 {
        self.max_resident.saturating_add(self.max_in_flight)
    }
}

/// Why no runtime could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    #[error("the WebAssembly engine cannot start: {reason}")]
    Engine { reason: String },
    #[error("the thread that limits the time of plugins cannot start: {reason}")]
    Ticker { reason: String },
}
