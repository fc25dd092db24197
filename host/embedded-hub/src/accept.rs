//! Accepting connections over TLS, for both listeners.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authorities::Authorities;
use crate::certificate::ClientCertificate;
use crate::places::{Place, Places};

/// A client behind TLS. On the heap: it goes from hand to hand, and each of them would keep room for it.
pub(crate) type Stream = Box<TlsStream<TcpStream>>;

/// A TLS handshake that takes longer is given up. A device has so long for that and its CONNECT together.
const HANDSHAKE_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Pause after a failed accept (out of descriptors, mostly), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who has been accepted.
pub(crate) struct Arrival {
    pub(crate) stream: Stream,
    pub(crate) place: Place,
    /// When its connection was made.
    pub(crate) since: Instant,
}

/// Accept until `cancel`, as there are places, and run `handle` on a task of its own for each client that completes its
/// handshake. Returns after the last connection has ended; it is `handle` that must end soon after `cancel`.
pub(crate) async fn serve<F, Fut>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    places: Places,
    cancel: CancellationToken,
    handle: F,
) where
    F: Fn(Arrival) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    loop {
        // Before anybody is accepted: whoever has to wait does so in the system's own queue.
        let Some(unknown) = cancel.run_until_cancelled(places.wait()).await else { break };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = cancel.cancelled() => break,
        };
        // To close it at once is all that costs nothing.
        let Some(place) = places.take(unknown) else { continue };
        let since = Instant::now();
        let (acceptor, handle, cancel) = (acceptor.clone(), handle.clone(), cancel.clone());
        connections.spawn(async move {
            // Of its own on the heap, as it needs much and not for long.
            if let Some(stream) = Box::pin(set_up(stream, &acceptor, &cancel)).await {
                handle(Arrival { stream, place, since }).await;
            }
        });
    }
    connections.close();
    connections.wait().await;
}

async fn set_up(stream: TcpStream, acceptor: &TlsAcceptor, cancel: &CancellationToken) -> Option<Stream> {
    let handshake = async {
        stream.set_nodelay(true)?;
        acceptor.accept(stream).await
    };
    let done = cancel.run_until_cancelled(tokio::time::timeout(HANDSHAKE_TIME_LIMIT, handshake)).await?;
    match done {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
    None
}

/// Tells who is at the other end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers(pub(crate) Authorities);

impl Peers {
    /// The certificate of a client that has shown one.
    pub(crate) fn certificate(&self, stream: &TlsStream<TcpStream>) -> Option<Arc<ClientCertificate>> {
        let chain = stream.get_ref().1.peer_certificates()?;
        // The handshake has failed already if it cannot be read.
        ClientCertificate::read(chain, &self.0.all(), Utc::now()).ok().flatten().map(Arc::new)
    }
}
