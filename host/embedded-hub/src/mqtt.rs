//! The MQTT listener: frames, and one task for each connection around a [`Session`].

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rumqttc::mqttbytes::Error as FrameError;
use rumqttc::mqttbytes::v4::Packet;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{self, Peers};
use crate::certificate::ClientCertificate;
use crate::driver::{HubHandle, LinkEnd};
use crate::hub::LinkInput;
use crate::session::{Action, MAX_PACKET, Session};

/// A client that takes nothing for so long is cut, as it would hold up its connection's task.
const WRITE_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Room for what comes next, which is all that an idle connection holds. Most packets fit; for larger ones it doubles.
const READ_SIZE: usize = 1024;
/// Packets that are ready together share one write of about so many bytes.
const WRITE_SIZE: usize = 64 * 1024;

/// Where connections of devices go, whichever listener they came to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    hub: HubHandle,
    cancel: CancellationToken,
    /// Connections that came to the other listener.
    guests: TaskTracker,
}

impl Door {
    /// Connections end soon after `cancel`.
    pub(crate) fn new(hub: HubHandle, cancel: CancellationToken) -> Door {
        Door { hub, cancel, guests: TaskTracker::new() }
    }

    /// Accept until cancelled; returns after the last connection has ended, guests included.
    pub(crate) async fn serve(self, listener: TcpListener, tls: Arc<ServerConfig>, peers: Peers) {
        let door = self.clone();
        accept::serve(listener, tls, self.cancel.clone(), move |stream| {
            let (door, certificate) = (door.clone(), peers.certificate(&stream));
            async move { door.handle(stream, certificate).await }
        })
        .await;
        self.guests.close();
        self.guests.wait().await;
    }

    /// Take a connection that another listener has made ready.
    pub(crate) fn admit<F, S>(&self, certificate: Option<Arc<ClientCertificate>>, ready: F)
    where
        F: Future<Output = Option<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let door = self.clone();
        self.guests.spawn(async move {
            if let Some(Some(stream)) = door.cancel.run_until_cancelled(ready).await {
                door.handle(stream, certificate).await;
            }
        });
    }

    async fn handle<S>(&self, stream: S, certificate: Option<Arc<ClientCertificate>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Some(link) = self.hub.attach().await else { return };
        let id = link.id;
        let connection = Connection {
            stream,
            link,
            hub: self.hub.clone(),
            session: Session::new(Instant::now(), certificate),
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
        };
        let end = connection.run(self.cancel.clone()).await;
        tracing::debug!(link = id.0, reason = end.reason, "MQTT connection ended");
        self.hub.link_input(id, LinkInput::Closed { graceful: end.graceful }).await;
    }
}

/// Why the hub ends a connection that missed a message.
const LOST: &str = "the client reads too slowly, or the hub cannot write its store";

struct Connection<S> {
    stream: S,
    link: LinkEnd,
    hub: HubHandle,
    session: Session,
    incoming: BytesMut,
    outgoing: BytesMut,
}

/// How a connection ended.
struct End {
    graceful: bool,
    reason: &'static str,
}

impl End {
    fn abrupt(reason: &'static str) -> End {
        End { graceful: false, reason }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    async fn run(mut self, cancel: CancellationToken) -> End {
        let end = loop {
            if let Err(end) = self.step(&cancel).await {
                break end;
            }
        };
        // What was queued before the end, such as a refusing CONNACK, still goes.
        let farewell = async {
            flush(&mut self.stream, &mut self.outgoing).await?;
            self.stream.shutdown().await
        };
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(1), farewell).await {
            tracing::debug!(%error, "the client had gone already");
        }
        end
    }

    /// Wait for one thing and deal with it.
    async fn step(&mut self, cancel: &CancellationToken) -> Result<(), End> {
        let deadline = self.session.deadline();
        self.incoming.reserve(READ_SIZE);
        tokio::select! {
            read = self.stream.read_buf(&mut self.incoming), if self.session.takes_packets() => match read {
                Ok(0) => return Err(End::abrupt("the client closed the connection")),
                Ok(_) => self.read_packets().await?,
                Err(_) => return Err(End::abrupt("the connection broke")),
            },
            output = self.link.outputs.recv() => {
                let Some(output) = output else { return Err(End::abrupt("the hub has stopped")) };
                let actions = self.session.handle_output(output);
                self.perform(actions).await?;
                while self.outgoing.len() < WRITE_SIZE && let Ok(output) = self.link.outputs.try_recv() {
                    let actions = self.session.handle_output(output);
                    self.perform(actions).await?;
                }
                // The verdict on a CONNECT may have been among them, and what came behind that waits.
                self.read_packets().await?;
            },
            () = tokio::time::sleep_until(deadline.into()) => {
                let action = self.session.handle_deadline();
                self.perform(vec![action]).await?;
            },
            () = self.link.lost.cancelled() => return Err(End::abrupt(LOST)),
            () = cancel.cancelled() => return Err(End::abrupt("the hub is stopping")),
        }
        let flushing = flush(&mut self.stream, &mut self.outgoing);
        tokio::select! {
            written = tokio::time::timeout(WRITE_TIME_LIMIT, flushing) => match written {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(End::abrupt("the connection broke")),
                Err(_) => Err(End::abrupt("the client takes nothing")),
            },
            () = self.link.lost.cancelled() => Err(End::abrupt(LOST)),
            () = cancel.cancelled() => Err(End::abrupt("the hub is stopping")),
        }
    }

    async fn read_packets(&mut self) -> Result<(), End> {
        while self.session.takes_packets() && !self.incoming.is_empty() {
            match Packet::read(&mut self.incoming, MAX_PACKET) {
                Ok(packet) => {
                    let actions = self.session.handle_packet(Instant::now(), packet);
                    self.perform(actions).await?;
                }
                Err(FrameError::InsufficientBytes(_)) => break,
                Err(FrameError::PayloadSizeLimitExceeded { .. }) => return Err(End::abrupt("a packet is too large")),
                Err(_) => return Err(End::abrupt("a packet is malformed")),
            }
        }
        if self.incoming.is_empty() {
            // What a large packet needed goes back.
            self.incoming = BytesMut::new();
        }
        Ok(())
    }

    async fn perform(&mut self, actions: Vec<Action>) -> Result<(), End> {
        for action in actions {
            match action {
                Action::Send(packet) => {
                    if packet.write(&mut self.outgoing, MAX_PACKET).is_err() {
                        return Err(End::abrupt("a packet for the client is too large"));
                    }
                }
                Action::ToHub(input) => {
                    if !self.hub.link_input(self.link.id, input).await {
                        return Err(End::abrupt("the hub has stopped"));
                    }
                }
                Action::Close { graceful, reason } => return Err(End { graceful, reason }),
            }
        }
        Ok(())
    }
}

async fn flush(stream: &mut (impl AsyncWrite + Unpin), outgoing: &mut BytesMut) -> io::Result<()> {
    if !outgoing.is_empty() {
        stream.write_all_buf(outgoing).await?;
        stream.flush().await?;
        // What a large packet needed goes back.
        *outgoing = BytesMut::new();
    }
    Ok(())
}
