//! When to stop.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output::say;

/// How long a stop may take, whatever clients and plugins do.
const DRAIN: Duration = Duration::from_secs(10);

/// From now on SIGTERM and SIGINT do not end the process; the future resolves at the first of them. To be called before
/// anybody is told that the process is ready, and so may send one.
pub(crate) fn stop() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// From now on SIGHUP does not end the process: whoever waits is told of each.
pub(crate) fn hangup() -> anyhow::Result<Signal> {
    Ok(signal(SignalKind::hangup())?)
}

/// Let `stopping` finish what is in hand. What takes longer is given up, which loses nothing: it is in the stores, and the
/// next start goes on with it.
pub(crate) async fn drain(stopping: impl Future<Output = ()>) {
    say("stopping");
    if tokio::time::timeout(DRAIN, stopping).await.is_err() {
        say(&format!("gave up what was still in hand after {} s", DRAIN.as_secs()));
    }
}
