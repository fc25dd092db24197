//! The HTTPS listener.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A TLS handshake, and the head of a request, that take longer are given up.
const HEAD_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Requests in hand get so long when the hub stops: some wait for a device that may never answer.
const DRAIN_TIME_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of descriptors, mostly), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accept until `cancel`; then requests in hand are answered if they can be soon, and idle connections closed.
pub(crate) async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, cancel: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTPS connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = cancel.cancelled() => break,
        };
        connections.spawn(handle(stream, acceptor.clone(), router.clone(), cancel.clone()));
    }
    connections.close();
    connections.wait().await;
}

async fn handle(stream: TcpStream, acceptor: TlsAcceptor, router: Router, cancel: CancellationToken) {
    let set_up = async {
        stream.set_nodelay(true)?;
        acceptor.accept(stream).await
    };
    let stream = tokio::select! {
        done = tokio::time::timeout(HEAD_TIME_LIMIT, set_up) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        },
        () = cancel.cancelled() => return,
    };
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
