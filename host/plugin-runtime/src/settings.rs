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
    /// Instances that may be kept between calls. 256: what any machine can bear, 16 MB in Rust and 1.4 GB in Python.
    /// [`Machine::resident_cap`](crate::Machine::resident_cap) says what suits a certain one.
    pub max_resident: u32,
    /// Calls that may run at once, on instances beyond the resident ones.
    pub max_in_flight: u32,
    /// Bytes of a component file. 64 MiB: Python components have 20 MB; compile time and memory grow with this.
    pub max_component_size: usize,
    pub calls: CallLimits,
}

/// What a guest may take of the host in one call through imports.
///
/// `wit/` names the defaults to authors of plugins: a host that gives less breaks what relies on them. What the hub
/// itself refuses is no setting: 32 KiB of reported properties, 256 KiB and a topic of 64 KiB for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Bytes of a line in the log; the rest is cut. 4 KiB: a line that is longer is data, not a message.
    pub log_line: usize,
    /// Lines in the log; further ones are dropped. 100: a call that says more floods the log of a whole fleet.
    pub log_lines: usize,
    /// Bytes of a plugin's state on one device, keys and values. 64 KiB: all of it is copied into each call.
    pub state: usize,
    /// Timers of a plugin on one device. 64: enough for each thing that a device does; a plugin with more to wait for
    /// keeps a list in its state.
    pub timers: usize,
    /// Bytes of a timer's payload. 4 KiB: it says what to go on with; what that is belongs into the state.
    pub timer_payload: usize,
    /// How far ahead a timer may be. 366 days: "in a year" is possible, and a slip in the unit is found.
    pub timer_ahead: Duration,
    /// Bytes of the name of a timer or of a key of the state. 256: it is a name, not a value.
    pub name: usize,
    /// Messages that a call may send to peers; a further one is `busy`. 16: enough for a room of devices, and few enough
    /// that plugins that answer each other cannot fill all inboxes of a host at once.
    pub peer_messages: usize,
    /// Bytes of one message to a peer, and bytes after which a call can send no more of them. 64 KiB, as much as a hub
    /// takes for a message to a device.
    pub peer_bytes: usize,
    /// Bytes that one call of an import, or the answer to the host, may bring to the host; more is a trap. 512 KiB:
    /// the largest legal argument is a message of 256 KiB, and twice that lets a guest learn that it asked too much
    /// (`too-large`), instead of being ended.
    pub argument: usize,
    /// Random bytes at once; more is a trap. 64 KiB: the host allocates them before the guest has room for them.
    pub random: u64,
    /// Handles that an instance may hold (streams, pollables). 1000: a leak ends in an error, not in the host's memory.
    pub handles: usize,
    /// The same, for an instance that is granted addresses or a folder: each handle can then be an open file of the
    /// host's process, which has a few ten thousand for all. 64: a dozen connections.
    pub files: usize,
    /// Names that a call may look up, if any addresses are granted; a further lookup fails. 8: each takes a thread of
    /// the host until the resolver gives up.
    pub lookups: usize,
}

impl Default for CallLimits {
    fn default() -> CallLimits {
        CallLimits {
            log_line: 4 << 10,
            log_lines: 100,
            state: 64 << 10,
            timers: 64,
            timer_payload: 4 << 10,
            timer_ahead: Duration::from_secs(366 * 24 * 60 * 60),
            name: 256,
            peer_messages: 16,
            peer_bytes: 64 << 10,
            argument: 512 << 10,
            random: 64 << 10,
            handles: 1000,
            files: 64,
            lookups: 8,
        }
    }
}

impl Default for RuntimeSettings {
    fn default() -> RuntimeSettings {
        RuntimeSettings {
            call_time_limit: Duration::from_secs(5),
            memory_limit: 64 << 20,
            max_resident: 256,
            max_in_flight: 64,
            max_component_size: 64 << 20,
            calls: CallLimits::default(),
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
