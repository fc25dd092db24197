//! One task for each device: drives a [`Session`] over one TLS socket.
//!
//! Only this file knows the MQTT event loop. A new one is made for each connection and dropped with it: a kept one
//! carries packet ids, collisions and acknowledgements over a break, and what was in flight is the actor's to repeat.
//!
//! Nothing grows without bound. While the actor does not take what came, nothing more is read from the socket; while
//! the hub does not acknowledge, nothing more is taken from the actor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use iothub_protocol::connection_string::{DeviceConnectionString, DeviceCredentials, HostName};
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{FromHub, ToHub};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet,
    Publish, QoS, StateError, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::session::{
    Credentials, Input, LinkState, MAX_PACKET, Now, Output, Publication, Refusal, Session, SessionSettings,
};
use crate::tls;

#[cfg(test)]
mod tests;

/// MQTT over TLS.
pub const DEFAULT_PORT: u16 = 8883;
/// The hub drops a client that is silent for one and a half times this.
pub const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(60);
/// As every SDK has it.
pub const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// For TCP, TLS and CONNACK together, and for one flush. Generous: thousands may be connecting on two cores.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the last acknowledgements may take to come, and a DISCONNECT to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Unacknowledged publications. Small, for the event loop keeps a slot for each from the start.
const MAX_INFLIGHT: u16 = 32;
/// Requests handed to the event loop and not yet processed by it.
const MAX_REQUESTS: usize = 8;
/// Above this many deliveries waiting for the actor, the actor's messages, which can lead to more, wait too.
const MAX_DELIVERIES: usize = 64;

/// How a device connects.
#[derive(Debug, Clone)]
pub struct DeviceConnectionSettings {
    pub device_id: DeviceId,
    /// As in the connection string; without a port it is [`DEFAULT_PORT`].
    pub host: HostName,
    pub credentials: DeviceCredentials,
    /// Shared by all devices, see [`client_config`](crate::tls::client_config); of a device with a certificate its own, see
    /// [`with_certificate`](crate::tls::with_certificate).
    pub tls: Arc<ClientConfig>,
    pub keep_alive: Duration,
    pub token_lifetime: Duration,
    /// A permit is held from the first packet to the hub's CONNACK, so that a fleet does not come all at once.
    pub connects: Arc<Semaphore>,
    /// See [`SessionSettings::seed`].
    pub seed: u64,
}

impl DeviceConnectionSettings {
    /// With the default times.
    pub fn new(
        connection: DeviceConnectionString,
        tls: Arc<ClientConfig>,
        connects: Arc<Semaphore>,
        seed: u64,
    ) -> DeviceConnectionSettings {
        DeviceConnectionSettings {
            device_id: connection.device_id,
            host: connection.host,
            credentials: connection.credentials,
            tls,
            keep_alive: DEFAULT_KEEP_ALIVE,
            token_lifetime: DEFAULT_TOKEN_LIFETIME,
            connects,
            seed,
        }
    }
}

/// A running connection.
#[derive(Debug)]
pub struct DeviceConnection {
    pub device_id: DeviceId,
    /// Where it stands; [`LinkState::Stopped`] once the task has ended.
    pub state: watch::Receiver<LinkState>,
    pub task: JoinHandle<()>,
}

/// Connect, and stay connected until `cancel`; what the actor had sent before that still leaves.
///
/// The task ends in the same way when the actor's side of either channel is gone. Both channels may be small (8 is plenty), but
/// an actor that waits for room in `from_actor` must go on reading what comes through `to_actor`: if each side waited
/// for the other, neither would move.
pub fn spawn(
    settings: DeviceConnectionSettings,
    to_actor: mpsc::Sender<FromHub>,
    from_actor: mpsc::Receiver<ToHub>,
    cancel: CancellationToken,
) -> DeviceConnection {
    let device_id = settings.device_id.clone();
    let (state_sender, state) = watch::channel(LinkState::Connecting { after: None });
    let session = Session::new(
        SessionSettings {
            device_id: settings.device_id.clone(),
            host: settings.host.clone(),
            credentials: settings.credentials.clone(),
            token_lifetime: settings.token_lifetime,
            seed: settings.seed,
        },
        Instant::now(),
    );
    let deliveries = VecDeque::new();
    let driver = Driver { settings, session, to_actor, from_actor, cancel, state: state_sender, deliveries };
    DeviceConnection { device_id, state, task: tokio::spawn(driver.run()) }
}

struct Driver {
    settings: DeviceConnectionSettings,
    session: Session,
    to_actor: mpsc::Sender<FromHub>,
    from_actor: mpsc::Receiver<ToHub>,
    cancel: CancellationToken,
    state: watch::Sender<LinkState>,
    deliveries: VecDeque<FromHub>,
}

/// Asked to end, or no one is left to talk to.
struct Stop;

impl Driver {
    async fn run(mut self) {
        while let Ok((credentials, permit)) = self.offline().await {
            if let Err(Stop) = self.online(credentials, permit).await {
                break;
            }
        }
        self.state.send_replace(LinkState::Stopped);
    }

    /// Until the session wants to connect and may.
    async fn offline(&mut self) -> Result<(Credentials, OwnedSemaphorePermit), Stop> {
        let mut wanted = None;
        let mut permit = std::pin::pin!(self.settings.connects.clone().acquire_owned());
        loop {
            while let Some(output) = self.session.poll() {
                match output {
                    Output::Connect(credentials) => wanted = Some(credentials),
                    Output::Deliver(message) => self.deliveries.push_back(message),
                    Output::State(state) => self.show(state),
                    // Wishes of the connection that was just lost.
                    Output::Subscribe { .. } | Output::Publish(_) | Output::Acknowledge { .. } | Output::Disconnect => {
                    }
                }
            }
            let deadline = self.session.deadline();
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Stop),
                () = sleep_until(deadline) => self.handle(Input::Elapsed),
                taken = deliver(&self.to_actor, &mut self.deliveries), if !self.deliveries.is_empty() => taken?,
                message = self.from_actor.recv(), if self.deliveries.len() < MAX_DELIVERIES => {
                    self.handle(Input::Send(message.ok_or(Stop)?));
                }
                permit = &mut permit, if wanted.is_some() => {
                    return wanted.take().zip(permit.ok()).ok_or(Stop);
                }
            }
        }
    }

    /// One connection, from the first packet to the last.
    async fn online(&mut self, credentials: Credentials, permit: OwnedSemaphorePermit) -> Result<(), Stop> {
        let (client, mut events) = self.event_loop(credentials);
        let mut wire = Wire::new(client, permit);
        let mut stopping = false;
        loop {
            // Pinned over all rounds until it yields: dropped in the middle of a write, it would lose a packet.
            let mut event = std::pin::pin!(events.poll());
            let event = loop {
                self.carry_out(&mut wire);
                wire.flush();
                let deadline = self.session.deadline();
                let owed = !self.deliveries.is_empty();
                let has_room = wire.is_idle() && self.deliveries.len() < MAX_DELIVERIES;
                tokio::select! {
                    biased;
                    () = self.cancel.cancelled(), if !stopping => stopping = self.begin_stop(&mut wire),
                    () = sleep_until(wire.closing) => break Ok(Event::Outgoing(Outgoing::Disconnect)),
                    () = sleep_until(deadline), if !stopping => self.handle(Input::Elapsed),
                    taken = deliver(&self.to_actor, &mut self.deliveries), if owed && !stopping => {
                        if let Err(Stop) = taken {
                            stopping = self.begin_stop(&mut wire);
                        }
                    }
                    event = &mut event, if !owed || wire.closing.is_some() => break event,
                    message = self.from_actor.recv(), if has_room && !stopping => match message {
                        Some(message) => self.handle(Input::Send(message)),
                        None => stopping = self.begin_stop(&mut wire),
                    },
                }
            };
            let ended = match event {
                Ok(event) => self.event(event, &mut wire),
                Err(error) => Some(self.failure(&error)),
            };
            match ended {
                Some(_) if stopping => return Err(Stop),
                Some(input) => {
                    self.handle(input);
                    return Ok(());
                }
                None => {}
            }
        }
    }

    fn event_loop(&self, credentials: Credentials) -> (AsyncClient, EventLoop) {
        let DeviceConnectionSettings { device_id, host, tls, keep_alive, .. } = &self.settings;
        let mut options = MqttOptions::new(device_id.as_str(), host.name.as_str(), self.port());
        options
            .set_credentials(credentials.username, credentials.password)
            // The hub keeps the subscriptions, and so the methods of a short break have somewhere to go.
            .set_clean_session(false)
            // The session says when: a message is acknowledged once it is dealt with.
            .set_manual_acks(true)
            .set_keep_alive((*keep_alive).max(Duration::from_secs(1)))
            .set_max_packet_size(MAX_PACKET, MAX_PACKET)
            .set_inflight(MAX_INFLIGHT)
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
        let (client, mut events) = AsyncClient::new(options, MAX_REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        events.set_network_options(network);
        (client, events)
    }

    fn carry_out(&mut self, wire: &mut Wire) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Subscribe { filter } => wire.requests.push_back(Request::Subscribe(filter)),
                Output::Publish(publication) => wire.requests.push_back(Request::Publish(publication)),
                Output::Acknowledge { packet_id } => wire.requests.push_back(Request::Acknowledge(packet_id)),
                Output::Disconnect => wire.close(),
                Output::Deliver(message) => self.deliveries.push_back(message),
                Output::State(state) => self.show(state),
                // Only after a loss, and that ends `online`.
                Output::Connect(_) => {}
            }
        }
    }

    /// The end was asked for, or the actor has gone: what it had sent leaves, then the connection closes.
    fn begin_stop(&mut self, wire: &mut Wire) -> bool {
        while let Ok(message) = self.from_actor.try_recv() {
            self.handle(Input::Send(message));
        }
        self.carry_out(wire);
        wire.close();
        true
    }

    /// `Some` if the connection has ended.
    fn event(&mut self, event: Event, wire: &mut Wire) -> Option<Input> {
        let input = match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                wire.accepted();
                Input::Accepted
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                Input::Subscribed { granted: !answer.return_codes.contains(&SubscribeReasonCode::Failure) }
            }
            Event::Incoming(Packet::Publish(publish)) => {
                // QoS 2 is never granted.
                let packet_id = (publish.qos == QoS::AtLeastOnce).then_some(publish.pkid);
                Input::Received { topic: publish.topic, payload: publish.payload.into(), packet_id }
            }
            Event::Incoming(Packet::PubAck(ack)) => Input::Taken { token: wire.acknowledged(ack.pkid)? },
            Event::Outgoing(Outgoing::Publish(packet_id)) => {
                wire.numbered(packet_id);
                return None;
            }
            Event::Outgoing(Outgoing::Subscribe(_) | Outgoing::PubAck(_)) => {
                wire.processed();
                return None;
            }
            Event::Outgoing(Outgoing::Disconnect) => return Some(Input::Lost { reason: "closed".to_owned() }),
            _ => return None,
        };
        self.handle(input);
        None
    }

    fn failure(&self, error: &ConnectionError) -> Input {
        let place = format!("{}:{}", self.settings.host.name, self.port());
        let reason = match error {
            ConnectionError::ConnectionRefused(code) => {
                return refusal(*code).map_or_else(
                    || Input::Lost { reason: format!("{place} answered the connection with {code:?}") },
                    Input::Refused,
                );
            }
            ConnectionError::NetworkTimeout => {
                format!("{place} did not accept the connection within {} s", CONNECT_TIMEOUT.as_secs())
            }
            ConnectionError::FlushTimeout => format!("{place} takes no more data"),
            ConnectionError::Io(error) => format!("{place}: {error}"),
            ConnectionError::Tls(rumqttc::TlsError::Io(error)) if tls::is_untrusted(error) => {
                format!("the certificate of {place} is not from a CA that is trusted here: {error}")
            }
            ConnectionError::Tls(rumqttc::TlsError::Io(error)) => format!("TLS with {place} failed: {error}"),
            ConnectionError::Tls(error) => format!("TLS with {place} failed: {error}"),
            ConnectionError::MqttState(StateError::ConnectionAborted) => "the hub closed the connection".to_owned(),
            ConnectionError::MqttState(StateError::AwaitPingResp) => "the hub did not answer a ping".to_owned(),
            other => format!("{place}: {other}"),
        };
        Input::Lost { reason }
    }

    fn handle(&mut self, input: Input) {
        self.session.handle(Now { monotonic: Instant::now(), wall: Utc::now() }, input);
    }

    fn show(&self, state: LinkState) {
        let device = &self.settings.device_id;
        match &state {
            LinkState::Waiting { failure, retry_in } if failure.refused => {
                warn!(%device, reason = failure.reason, ?retry_in, "refused by the hub");
            }
            LinkState::Waiting { failure, retry_in } => {
                info!(%device, reason = failure.reason, ?retry_in, "not connected");
            }
            LinkState::Connecting { .. } | LinkState::Ready | LinkState::Stopped => {
                debug!(%device, ?state, "connection")
            }
        }
        self.state.send_replace(state);
    }

    fn port(&self) -> u16 {
        self.settings.host.port.unwrap_or(DEFAULT_PORT)
    }
}

/// What is on its way over one connection.
struct Wire {
    client: AsyncClient,
    /// Given back at the CONNACK.
    connecting: Option<OwnedSemaphorePermit>,
    requests: VecDeque<Request>,
    /// Requests that the event loop has and did not process yet.
    handed_over: usize,
    /// Tokens of publications without a packet id yet, in their order: the event loop numbers them in that order.
    unnumbered: VecDeque<Option<u64>>,
    unacknowledged: Vec<(u16, Option<u64>)>,
    /// Set once the connection is to close: until when that may take.
    closing: Option<Instant>,
    disconnect_sent: bool,
}

enum Request {
    Subscribe(String),
    Publish(Publication),
    Acknowledge(u16),
}

impl Wire {
    fn new(client: AsyncClient, permit: OwnedSemaphorePermit) -> Wire {
        Wire {
            client,
            connecting: Some(permit),
            requests: VecDeque::new(),
            handed_over: 0,
            unnumbered: VecDeque::new(),
            unacknowledged: Vec::new(),
            closing: None,
            disconnect_sent: false,
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether the hub has everything. Closed before that, the hub's next acknowledgement would meet a closed socket,
    /// and the reset that follows takes what the hub did not read yet with it.
    fn is_acknowledged(&self) -> bool {
        self.unnumbered.is_empty() && self.unacknowledged.is_empty()
    }

    fn accepted(&mut self) {
        self.connecting = None;
    }

    /// Hand over as much as there is room for; the count makes sure that handing over cannot fail for lack of it.
    fn flush(&mut self) {
        while self.handed_over < MAX_REQUESTS {
            let Some(request) = self.requests.pop_front() else {
                if self.closing.is_some() && !self.disconnect_sent && self.is_acknowledged() {
                    self.disconnect_sent = self.client.try_disconnect().is_ok();
                }
                return;
            };
            let taken = match request {
                Request::Subscribe(filter) => self.client.try_subscribe(filter, QoS::AtLeastOnce),
                Request::Publish(Publication { topic, payload, token }) => {
                    self.unnumbered.push_back(token);
                    self.client.try_publish(topic, QoS::AtLeastOnce, false, payload)
                }
                Request::Acknowledge(packet_id) => self.client.try_ack(&received(packet_id)),
            };
            match taken {
                Ok(()) => self.handed_over += 1,
                Err(error) => {
                    warn!(%error, "the mqtt client takes no request, closing");
                    self.close();
                    return;
                }
            }
        }
    }

    /// Send a DISCONNECT once the hub has acknowledged everything else. Before the CONNACK there is nothing to say good-bye to.
    fn close(&mut self) {
        let grace = if self.connecting.is_some() { Duration::ZERO } else { CLOSE_TIMEOUT };
        self.closing.get_or_insert(Instant::now() + grace);
    }

    fn processed(&mut self) {
        self.handed_over = self.handed_over.saturating_sub(1);
    }

    fn numbered(&mut self, packet_id: u16) {
        self.processed();
        if let Some(token) = self.unnumbered.pop_front() {
            self.unacknowledged.push((packet_id, token));
        }
    }

    /// The token of the publication with this packet id, if it had one.
    fn acknowledged(&mut self, packet_id: u16) -> Option<u64> {
        let position = self.unacknowledged.iter().position(|(id, _)| *id == packet_id)?;
        self.unacknowledged.swap_remove(position).1
    }
}

/// Give the actor one message once it has room. Safe to drop while waiting.
async fn deliver(to_actor: &mpsc::Sender<FromHub>, deliveries: &mut VecDeque<FromHub>) -> Result<(), Stop> {
    let room = to_actor.reserve().await.map_err(|_| Stop)?;
    if let Some(message) = deliveries.pop_front() {
        room.send(message);
    }
    Ok(())
}

/// As much of a publication of the hub as its acknowledgement needs.
fn received(packet_id: u16) -> Publish {
    let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
    publish.pkid = packet_id;
    publish
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn refusal(code: ConnectReturnCode) -> Option<Refusal> {
    match code {
        ConnectReturnCode::Success => None,
        ConnectReturnCode::RefusedProtocolVersion => Some(Refusal::ProtocolVersion),
        ConnectReturnCode::BadClientId => Some(Refusal::Identifier),
        ConnectReturnCode::ServiceUnavailable => Some(Refusal::Unavailable),
        ConnectReturnCode::BadUserNamePassword => Some(Refusal::Credentials),
        ConnectReturnCode::NotAuthorized => Some(Refusal::NotAuthorized),
    }
}
