//! The HTTPS listener.

use std::sync::Arc;
use std::time::Duration;

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

use crate::accept::{self, Peers, Stream};
use crate::certificate::ClientCertificate;

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
    cancel: CancellationToken,
) {
    let (stop, router) = (cancel.clone(), TowerToHyperService::new(router));
    accept::serve(listener, tls, cancel, move |stream| {
        let certificate = peers.certificate(&stream);
        handle(stream, Peer(certificate), router.clone(), stop.clone())
    })
    .await;
}

/// Stands in each request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Peer(pub(super) Option<Arc<ClientCertificate>>);

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
