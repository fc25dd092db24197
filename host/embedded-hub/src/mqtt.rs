//! The MQTT listener: frames, and one task for each connection around a [`Session`].

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rumqttc::mqttbytes::Error as FrameError;
use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{self, Arrival, Peers};
use crate::certificate::ClientCertificate;
use crate::driver::{HubHandle, LinkEnd};
use crate::hub::{LinkInput, LinkOutput};
use crate::places::{Place, Places};
use crate::rehearsal::gate::{Gate, Passage, Turn};
use crate::session::{Action, MAX_PACKET, Session};

/// A client that takes nothing for so long is cut, as it would hold up its connection's task.
const WRITE_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes that are taken at once.
const READ_SIZE: usize = 4096;
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

/// Who comes to the door.
pub(crate) struct Guest {
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
    pub(crate) place: Place,
    /// When the connection was made: a client has only so long to say who it is.
    pub(crate) since: Instant,
}

impl Door {
    /// Connections end soon after `cancel`.
    pub(crate) fn new(hub: HubHandle, cancel: CancellationToken) -> Door {
        Door { hub, cancel, guests: TaskTracker::new() }
    }

    /// Accept until cancelled; returns after the last connection has ended, guests included.
    pub(crate) async fn serve(self, listener: TcpListener, tls: Arc<ServerConfig>, peers: Peers, places: Places) {
        let door = self.clone();
        accept::serve(listener, tls, places, self.cancel.clone(), move |arrival| {
            let (door, certificate) = (door.clone(), peers.certificate(&arrival.stream));
            let Arrival { stream, place, since } = arrival;
            async move { door.handle(stream, Guest { certificate, place, since }).await }
        })
        .await;
        self.guests.close();
        self.guests.wait().await;
    }

    /// Take a connection that another listener has made ready.
    pub(crate) fn admit<F, S>(&self, guest: Guest, ready: F)
    where
        F: Future<Output = Option<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let door = self.clone();
        self.guests.spawn(async move {
            if let Some(Some(stream)) = door.cancel.run_until_cancelled(ready).await {
                door.handle(stream, guest).await;
            }
        });
    }

    async fn handle<S>(&self, stream: S, guest: Guest)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Some(link) = self.hub.attach().await else { return };
        let id = link.id;
        let mut connection = Connection {
            stream,
            link,
            hub: self.hub.clone(),
            session: Session::new(guest.since, guest.certificate),
            place: guest.place,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            gate: Gate::new(&self.hub),
            held: None,
            send_at: None,
            mute: None,
            is_forgotten: false,
        };
        let end = connection.run(&self.cancel).await;
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
    place: Place,
    incoming: BytesMut,
    outgoing: BytesMut,
    gate: Gate,
    /// What waits at a throttle, and until when. Nothing is read meanwhile.
    held: Option<(Instant, Vec<Action>)>,
    /// When what is in `outgoing` goes, if that is late.
    send_at: Option<Instant>,
    /// The client has not been listened to; `true` if the link ends after that.
    mute: Option<bool>,
    /// The hub was told that the link is gone, and the client was not.
    is_forgotten: bool,
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
    async fn run(&mut self, cancel: &CancellationToken) -> End {
        let end = loop {
            if let Err(end) = self.step(cancel).await {
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
        match self.gate.turn(Instant::now(), &self.hub) {
            Some(Turn::Close { reason }) => return Err(End::abrupt(reason)),
            Some(Turn::Mute { until, ends }) => {
                self.mute = Some(ends);
                return self.say_nothing(until, cancel).await;
            }
            None => match self.mute.take() {
                Some(ends) if ends || self.is_forgotten => return Err(End::abrupt("the link was half open")),
                Some(_) => self.session.forgive_silence(Instant::now()),
                None => {}
            },
        }
        let wake = self.wake_at();
        let has_room = self.outgoing.len() < WRITE_SIZE;
        tokio::select! {
            read = read(&mut self.stream, &mut self.incoming), if has_room && self.takes_packets() => match read {
                Ok(0) => return Err(End::abrupt("the client closed the connection")),
                Ok(_) => self.read_packets().await?,
                Err(_) => return Err(End::abrupt("the connection broke")),
            },
            output = self.link.outputs.recv(), if has_room => {
                let Some(output) = output else { return Err(End::abrupt("the hub has stopped")) };
                self.pass_on(*output).await?;
                while self.outgoing.len() < WRITE_SIZE && let Ok(output) = self.link.outputs.try_recv() {
                    self.pass_on(*output).await?;
                }
                // The verdict on a CONNECT may have been among them, and what came behind that waits.
                self.read_packets().await?;
            },
            () = tokio::time::sleep_until(wake.into()) => self.awake().await?,
            () = self.gate.changed() => {}
            () = self.link.lost.cancelled() => return Err(End::abrupt(LOST)),
            () = cancel.cancelled() => return Err(End::abrupt("the hub is stopping")),
        }
        if !self.outgoing.is_empty() && self.send_at.is_none() {
            self.send_at = self.gate.lateness().map(|late| Instant::now() + late);
        }
        if self.send_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        self.send_at = None;
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

    /// The next moment at which something is due. One timer for all, as each would cost every idle connection its memory.
    fn wake_at(&self) -> Instant {
        let held = self.held.as_ref().map_or_else(|| self.session.deadline(), |(until, _)| *until);
        [self.send_at, self.gate.deadline()].into_iter().flatten().fold(held, Instant::min)
    }

    async fn awake(&mut self) -> Result<(), End> {
        let now = Instant::now();
        match &self.held {
            Some((until, _)) if *until <= now => self.let_go().await,
            None if self.session.deadline() <= now => {
                let action = self.session.handle_deadline();
                self.perform(vec![action]).await
            }
            _ => Ok(()),
        }
    }

    /// Neither read nor write, as if the network were broken in the middle. The hub misses the client in time; the
    /// client hears nothing of that.
    async fn say_nothing(&mut self, until: Instant, cancel: &CancellationToken) -> Result<(), End> {
        let (deadline, is_half_open) = (self.session.deadline(), self.mute == Some(true));
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => return Ok(()),
            () = self.gate.changed() => return Ok(()),
            () = tokio::time::sleep_until(deadline.into()), if is_half_open && !self.is_forgotten => {}
            () = self.link.lost.cancelled(), if !self.is_forgotten => {}
            () = cancel.cancelled() => return Err(End::abrupt("the hub is stopping")),
        }
        self.is_forgotten = true;
        self.hub.link_input(self.link.id, LinkInput::Closed { graceful: false }).await;
        Ok(())
    }

    fn takes_packets(&self) -> bool {
        self.held.is_none() && self.session.takes_packets()
    }

    async fn pass_on(&mut self, output: LinkOutput) -> Result<(), End> {
        if let LinkOutput::Accepted { .. } = output {
            self.place.known();
        }
        let is_heard = self.gate.reaches(Instant::now(), &output);
        let actions = self.session.handle_output(output);
        if is_heard { self.perform(actions).await } else { Ok(()) }
    }

    /// What was held has waited long enough.
    async fn let_go(&mut self) -> Result<(), End> {
        let Some((_, actions)) = self.held.take() else { return Ok(()) };
        self.session.forgive_silence(Instant::now());
        self.carry_out(actions, true).await?;
        self.read_packets().await
    }

    async fn read_packets(&mut self) -> Result<(), End> {
        while self.takes_packets() && !self.incoming.is_empty() {
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
        self.carry_out(actions, false).await
    }

    /// `is_admitted` if the first of them has waited already.
    async fn carry_out(&mut self, actions: Vec<Action>, mut is_admitted: bool) -> Result<(), End> {
        let mut actions = actions.into_iter();
        while let Some(action) = actions.next() {
            match action {
                Action::Send(packet) => self.write(packet)?,
                Action::ToHub(input) => {
                    let is_free = std::mem::take(&mut is_admitted);
                    match if is_free { Passage::Go } else { self.passage(&input).await } {
                        Passage::Go => self.tell_hub(input).await?,
                        Passage::WaitUntil(until) => {
                            let rest = std::iter::once(Action::ToHub(input)).chain(actions).collect();
                            self.held = Some((until, rest));
                            return Ok(());
                        }
                        Passage::Answer(output) => self.answer(output, &input)?,
                        Passage::Busy => return Err(self.refuse_busily()?),
                        Passage::Close { reason } => return Err(End::abrupt(reason)),
                    }
                }
                Action::Close { graceful, reason } => return Err(End { graceful, reason }),
            }
        }
        Ok(())
    }

    async fn passage(&mut self, input: &LinkInput) -> Passage {
        let is_known = match input {
            // Whom the hub refuses takes nothing of what a tier has for others.
            LinkInput::Connect(request) if self.hub.rehearsal().has_tier() => {
                self.hub.admits(request.address.clone(), request.credentials.clone()).await
            }
            _ => true,
        };
        self.gate.passage(input, is_known)
    }

    async fn tell_hub(&mut self, input: LinkInput) -> Result<(), End> {
        let is_there = self.hub.link_input(self.link.id, input).await;
        if is_there { Ok(()) } else { Err(End::abrupt("the hub has stopped")) }
    }

    /// In the hub's place, which knows nothing of it.
    fn answer(&mut self, output: LinkOutput, input: &LinkInput) -> Result<(), End> {
        let acknowledgement = match input {
            LinkInput::Published { packet_id: Some(packet_id), .. } => {
                Some(LinkOutput::PubAck { packet_id: *packet_id, is_message: false })
            }
            _ => None,
        };
        for output in std::iter::once(output).chain(acknowledgement) {
            for action in self.session.handle_output(output) {
                let Action::Send(packet) = action else { continue };
                self.write(packet)?;
            }
        }
        Ok(())
    }

    fn refuse_busily(&mut self) -> Result<End, End> {
        self.write(Packet::ConnAck(ConnAck::new(ConnectReturnCode::ServiceUnavailable, false)))?;
        Ok(End::abrupt("more devices connect at once than the tier allows"))
    }

    fn write(&mut self, packet: Packet) -> Result<(), End> {
        match packet.write(&mut self.outgoing, MAX_PACKET) {
            Ok(_) => Ok(()),
            Err(_) => Err(End::abrupt("a packet for the client is too large")),
        }
    }
}

/// Append what has come, 0 bytes at the end. There is no room for it before it is there: an idle connection would hold that
/// all the time.
async fn read(stream: &mut (impl AsyncRead + Unpin), incoming: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|context| {
        let mut room = [MaybeUninit::uninit(); READ_SIZE];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
        incoming.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
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
