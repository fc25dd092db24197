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
    /// Other bounds hold.
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
pub(crate) struct Signals {
    receiver: mpsc::UnboundedReceiver<Signal>,
    /// Once heard it holds for every driver of the device.
    stops: bool,
}

pub(crate) fn bell() -> (Bell, Signals) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Bell(sender), Signals { receiver, stops: false })
}

impl Bell {
    pub(crate) fn ring(&self, signal: Signal) {
        // An error says that nobody hears it any more.
        let _ = self.0.send(signal);
    }
}

impl Signals {
    /// Forget what was for a driver before this one. Tells whether the device is to stop.
    pub(crate) fn clear(&mut self) -> bool {
        while let Ok(signal) = self.receiver.try_recv() {
            self.stops |= signal == Signal::Stop;
        }
        self.stops
    }

    /// Until the device is to stop; what else is heard is forgotten.
    pub(crate) async fn stop(&mut self) {
        while !self.stops && self.next().await.is_some() {}
    }

    /// The next signal; none once every bell is gone, which cannot be while the driver keeps one itself.
    pub(crate) async fn next(&mut self) -> Option<Signal> {
        let signal = self.receiver.recv().await;
        self.stops |= signal == Some(Signal::Stop);
        signal
    }
}
