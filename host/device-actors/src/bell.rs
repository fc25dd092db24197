//! What wakes a driver beside its connection.

use tokio::sync::mpsc;

/// What a driver is told by others of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// What became of a record, from the store's thread.
    Recorded { id: u64, written: bool },
    /// Somebody waits for room, and unused instances are to go.
    Evict,
    /// There may be other plugins.
    Plugins,
    /// There are other limits.
    Limits,
    /// Finish, and take nothing more.
    Stop,
}

/// Wakes one driver with a signal; clones wake the same one. A driver that is gone does not hear it.
#[derive(Debug, Clone)]
pub(crate) struct Bell(mpsc::UnboundedSender<Signal>);

/// The driver's end. There is no bound, since nobody who rings can wait: a driver has few records on their way, its
/// instances are asked for once each, and the roster rings once for each change.
#[derive(Debug)]
pub(crate) struct Signals(mpsc::UnboundedReceiver<Signal>);

pub(crate) fn bell() -> (Bell, Signals) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Bell(sender), Signals(receiver))
}

impl Bell {
    pub(crate) fn ring(&self, signal: Signal) {
        // An error says that nobody hears it any more.
        let _ = self.0.send(signal);
    }
}

impl Signals {
    /// The next signal; none once every bell is gone, which cannot be while the driver keeps one itself.
    pub(crate) async fn next(&mut self) -> Option<Signal> {
        self.0.recv().await
    }
}
