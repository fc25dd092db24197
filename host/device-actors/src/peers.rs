//! The ways between the devices of a host, for messages from plugin to plugin.
//!
//! A message that finds no way, or no room on it, is lost: whoever sends must not wait for whoever gets.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use iothub_protocol::id::DeviceId;
use plugin_runtime::IncomingMessage;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// All ways of a host. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Peers {
    ways: Arc<RwLock<HashMap<DeviceId, Way>>>,
}

type Way = mpsc::Sender<Box<IncomingMessage>>;

/// A device's end of its way. Dropped, the device cannot be reached any more.
pub(crate) struct Reachable {
    device: DeviceId,
    peers: Peers,
    way: Way,
    messages: mpsc::Receiver<Box<IncomingMessage>>,
}

/// Why a message is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// There is no such device on this host, or it has stopped.
    Unknown,
    /// The device is busy, and too many wait.
    Full,
}

impl Lost {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Lost::Unknown => "no such device runs on this host",
            Lost::Full => "the device is busy and too many messages wait",
        }
    }
}

impl Peers {
    /// From now on `device` can be reached, by this way only.
    pub(crate) fn join(&self, device: DeviceId) -> Reachable {
        let (way, messages) = mpsc::channel(ROOM);
        // A map of handles is whole after any panic.
        self.ways.write().unwrap_or_else(PoisonError::into_inner).insert(device.clone(), way.clone());
        Reachable { device, peers: self.clone(), way, messages }
    }

    pub(crate) fn send(&self, to: &DeviceId, message: IncomingMessage) -> Result<(), Lost> {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        let way = ways.get(to).ok_or(Lost::Unknown)?;
        way.try_send(Box::new(message)).map_err(|error| match error {
            TrySendError::Full(_) => Lost::Full,
            TrySendError::Closed(_) => Lost::Unknown,
        })
    }
}

impl Reachable {
    pub(crate) async fn next(&mut self) -> Option<Box<IncomingMessage>> {
        self.messages.recv().await
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        let mut ways = self.peers.ways.write().unwrap_or_else(PoisonError::into_inner);
        // Unless another actor of the same device has taken over.
        if ways.get(&self.device).is_some_and(|way| way.same_channel(&self.way)) {
            ways.remove(&self.device);
        }
    }
}

/// Messages on one way. The actor takes each into its inbox as soon as its task runs, so this need only hold what comes
/// in between.
const ROOM: usize = 16;

#[cfg(test)]
mod tests {
    use iothub_protocol::link::CloudMessage;
    use plugin_runtime::MessageSource;

    use super::*;

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).expect("an id")
    }

    fn message(body: &str) -> IncomingMessage {
        let message = CloudMessage { body: body.into(), ..CloudMessage::default() };
        IncomingMessage { source: MessageSource::Peer(device("sender")), message }
    }

    #[tokio::test]
    async fn a_message_finds_its_way_while_there_is_one() {
        let peers = Peers::default();
        assert_eq!(peers.send(&device("lamp"), message("1")), Err(Lost::Unknown));
        let mut lamp = peers.join(device("lamp"));
        assert_eq!(peers.send(&device("lamp"), message("2")), Ok(()));
        assert_eq!(lamp.next().await.as_deref(), Some(&message("2")));
        drop(lamp);
        assert_eq!(peers.send(&device("lamp"), message("3")), Err(Lost::Unknown));
        assert!(peers.ways.read().expect("sound").is_empty());
    }

    #[tokio::test]
    async fn a_full_way_loses_what_comes_and_nobody_waits() {
        let peers = Peers::default();
        let mut lamp = peers.join(device("lamp"));
        for _ in 0..ROOM {
            assert_eq!(peers.send(&device("lamp"), message("fits")), Ok(()));
        }
        assert_eq!(peers.send(&device("lamp"), message("lost")), Err(Lost::Full));
        lamp.next().await.expect("a message");
        assert_eq!(peers.send(&device("lamp"), message("fits")), Ok(()));
    }

    #[tokio::test]
    async fn the_way_of_a_successor_stays() {
        let peers = Peers::default();
        let before = peers.join(device("lamp"));
        let mut after = peers.join(device("lamp"));
        drop(before);
        assert_eq!(peers.send(&device("lamp"), message("1")), Ok(()));
        assert!(after.next().await.is_some());
    }
}
