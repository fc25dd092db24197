//! The HTTPS listener.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::accept;

/// A request whose head takes longer is given up.
const HEAD_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Requests in hand get so long when the hub stops: some wait for a device that may never answer.
const DRAIN_TIME_LIMIT: Duration = Duration::from_secs(5);

/// Accept until `cancel`; then requests in hand are answered if they can be soon, and idle connections closed.
pub(crate) async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, cancel: CancellationToken) {
    let stop = cancel.clone();
    accept::serve(listener, tls, cancel, move |stream| handle(stream, router.clone(), stop.clone())).await;
}

async fn handle(stream: TlsStream<TcpStream>, router: Router, cancel: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
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
