//! What an actor shows of itself.

use std::sync::Arc;

use plugin_runtime::PluginName;

use crate::activation::HeldBack;
use crate::failure::LastCrash;
use crate::failure::LastFailure;
use crate::lineup::Lineup;

/// A snapshot of one actor; cheap to take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActorView {
    /// The plugin versions that the next message runs on.
    pub lineup: Arc<Lineup>,
    /// Plugins with the labels of versions that failed here too often and are not run.
    pub quarantined: Vec<(PluginName, Arc<str>)>,
    /// Methods that wait for their turn.
    pub mailbox: usize,
    /// Messages from the cloud and from peers that wait for their turn.
    pub messages: usize,
    /// Messages from peers that came and are lost: for want of room, or since no plugin would deal with them.
    pub lost_messages: u64,
    /// Whether a message is in hand.
    pub busy: bool,
    pub connected: bool,
    /// Instances, in use or not.
    pub resident: usize,
    /// Calls of plugins since the start, and how many of them did not return.
    pub calls: u64,
    pub failures: u64,
    pub last_failure: Option<Arc<LastFailure>>,
    /// How often the actor itself failed, which is a mistake of the host, and was started again.
    pub restarts: u32,
    pub last_crash: Option<Arc<LastCrash>>,
    /// Version of the last desired properties seen.
    pub desired_version: u64,
    /// Current versions that could not be activated here.
    pub held_back: Vec<HeldBack>,
    /// Timers that are set.
    pub timers: usize,
    /// Messages that the hub has not taken yet.
    pub queued_telemetry: usize,
}
