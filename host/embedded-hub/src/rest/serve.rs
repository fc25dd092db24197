//! The HTTPS listener.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::accept::{self, Arrival, Peers, Stream};
use crate::certificate::ClientCertificate;
use crate::mqtt::Guest;
use crate::places::Places;

/// A request whose head takes longer is given up.
const HEAD_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Requests in hand get so long when the hub stops: some wait for a device that may never answer.
const DRAIN_TIME_LIMIT: Duration = Duration::from_secs(5);

/// Accept until `cancel`; then requests in hand are answered if they can be soon, and idle connections closed.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    peers: Peers,
    places: Places,
    cancel: CancellationToken,
) {
    let (stop, router) = (cancel.clone(), TowerToHyperService::new(router));
    accept::serve(listener, tls, places, cancel, move |arrival| {
        let Arrival { stream, place, since } = arrival;
        let certificate = peers.certificate(&stream);
        let guest = Arc::new(Mutex::new(Some(Guest { certificate: certificate.clone(), place, since })));
        handle(stream, Peer { certificate, guest }, router.clone(), stop.clone())
    })
    .await;
}

/// Stands in each request's extensions.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    /// For who goes on as a device; its place is the connection's for as long as that is HTTP.
    guest: Arc<Mutex<Option<Guest>>>,
}

impl Peer {
    /// Who the client is to the listener of devices, from now on; the second time there is nobody left.
    pub(super) fn into_guest(self) -> Option<Guest> {
        let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner).take();
        guest.map(|guest| Guest { since: Instant::now(), ..guest })
    }
}

async fn handle(stream: Stream, peer: Peer, router: TowerToHyperService<Router>, cancel: CancellationToken) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIME_LIMIT, connection).await {
                Ok(ended) => ended,
                Err(_) => return tracing::debug!("an HTTPS request was still in hand when the hub stopped"),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTPS connection ended");
    }
}
