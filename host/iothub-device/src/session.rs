//! What a device connection decides, without doing any of it.
//!
//! A driver feeds [`Input`]s to [`Session::handle`], carries out what [`Session::poll`] returns, and calls `handle`
//! with [`Input::Elapsed`] at [`Session::deadline`]. Time and randomness come from outside, so every run can be
//! repeated.
//!
//! On each connect the rule of the SDKs holds: subscribe, GET the twin, then let through the notices that are newer
//! than what the GET brought. What the hub sends before that is kept, within a bound, and given to the actor in order.
//! Where a version is missing between two notices, one did not come, and the twin is read again.
//! When the link breaks everything in flight is forgotten: the actor keeps what must arrive and sends it again. A hub
//! that does not acknowledge a message in time makes for a new link, as MQTT has no other way to repeat it.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::connection_string::{DeviceCredentials, HostName};
use iothub_protocol::id::{DeviceId, RequestId};
use iothub_protocol::link::{FromHub, ToHub};
use iothub_protocol::topic::{
    FromDevice, Subscription, ToDevice, device_bound_filter, is_cloud_message, parse_cloud_message,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tracing::{debug, warn};

use crate::backoff::Backoff;

mod link;
mod outgoing;
#[cfg(test)]
mod tests;

use link::{Link, Stage, TwinAnswer};

/// Largest MQTT packet in either direction: the largest message, 256 KiB, with the longest topic that MQTT can carry.
pub const MAX_PACKET: usize = 256 * 1024 + MAX_TOPIC + 16;
/// MQTT writes a topic's length in two bytes.
const MAX_TOPIC: usize = 65_535;
/// The hub answers these within milliseconds; after this long something is lost.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);
/// An actor has one patch out at a time; this only bounds what a wrong one can make us remember.
const MAX_REPORTS: usize = 32;
/// A connection that lasted this long was a good one: the next failure starts counting anew.
const STABLE: Duration = Duration::from_secs(30);
/// How long a due renewal waits for methods in flight, whose callers it would fail.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(30);
/// A connection by certificate has nothing to renew.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const API_VERSION: &str = "2021-04-12";
const CLIENT_TYPE: &str = concat!("latch%2F", env!("CARGO_PKG_VERSION"));

/// Who connects, as whom, and for how long at a time.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    pub device_id: DeviceId,
    /// As in the connection string: it stands in the user name and in the token.
    pub host: HostName,
    pub credentials: DeviceCredentials,
    /// How long a token is valid; it is renewed after four fifths of that. A certificate needs none.
    pub token_lifetime: Duration,
    /// Spreads waits and renewals; different for each device, so that a fleet does not act in step.
    pub seed: u64,
}

/// The moment of an input.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For waits and limits.
    pub monotonic: Instant,
    /// For the expiry of tokens.
    pub wall: DateTime<Utc>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The hub accepted the connection.
    Accepted,
    /// The hub refused the connection.
    Refused(Refusal),
    /// The connection could not be made, broke, or was closed as asked.
    Lost { reason: String },
    /// The answer to one [`Output::Subscribe`].
    Subscribed { granted: bool },
    /// A publication of the hub. One with a packet id waits for its [`Output::Acknowledge`].
    Received { topic: String, payload: Vec<u8>, packet_id: Option<u16> },
    /// The hub has taken the publication with this token.
    Taken { token: u64 },
    /// The actor wants to send.
    Send(ToHub),
    /// The deadline has passed.
    Elapsed,
}

/// Why a hub refuses, by CONNACK code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the hub does not speak this version of MQTT (CONNACK 1)")]
    ProtocolVersion,
    #[error("the hub refused the device id (CONNACK 2)")]
    Identifier,
    #[error("the hub is throttling or unavailable (CONNACK 3)")]
    Unavailable,
    #[error("the hub refused the user name or the token (CONNACK 4)")]
    Credentials,
    #[error(
        "the hub refused the device (CONNACK 5): it is unknown or disabled there, its key or certificate differs or the \
         clock is off"
    )]
    NotAuthorized,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Connect(Credentials),
    Subscribe {
        filter: String,
    },
    Publish(Publication),
    /// Send the PUBACK of a publication of the hub. Not always in the order in which these came, as MQTT has it: a
    /// message is acknowledged when it is dealt with, and must not hold up the rest. A hub pairs them by packet id.
    Acknowledge {
        packet_id: u16,
    },
    /// Close in good order, after what was published before; then [`Input::Lost`].
    Disconnect,
    /// Give this to the actor.
    Deliver(FromHub),
    /// For whoever watches the connection.
    State(LinkState),
}

/// User name and password of a CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A PUBLISH with QoS 1. With a `token`, its PUBACK comes back as [`Input::Taken`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    pub topic: String,
    pub payload: Vec<u8>,
    pub token: Option<u64>,
}

/// Where the connection stands, for people and for whoever waits until all are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// On the way; `after` is why the attempt before this one failed.
    Connecting { after: Option<Failure> },
    /// Connected, subscribed, and the twin is here.
    Ready,
    /// Not connected; tries again after `retry_in`. It never gives up.
    Waiting { failure: Failure, retry_in: Duration },
    /// Ended, because it was asked to.
    Stopped,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The hub said no to these credentials; waiting alone will not help.
    pub refused: bool,
    pub reason: String,
}

impl LinkState {
    pub fn is_ready(&self) -> bool {
        matches!(self, LinkState::Ready)
    }

    /// The latest reason why it is not ready, if there was one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            LinkState::Connecting { after } => after.as_ref(),
            LinkState::Waiting { failure, .. } => Some(failure),
            LinkState::Ready | LinkState::Stopped => None,
        }
    }
}

/// One device's connection, over all its reconnects.
#[derive(Debug)]
pub struct Session {
    settings: SessionSettings,
    rng: SmallRng,
    backoff: Backoff,
    phase: Phase,
    /// Never reset, so that an answer cannot match a request of an earlier connection.
    next_rid: u64,
    /// Never reset, for the same reason.
    next_message: u64,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum Phase {
    Waiting {
        until: Instant,
        after: Option<Failure>,
    },
    Connecting {
        token_made: Instant,
    },
    Online(Box<Link>),
    /// [`Output::Disconnect`] is out.
    Closing {
        reason: String,
        again: Again,
    },
}

/// When to connect again.
#[derive(Debug, Clone, Copy)]
enum Again {
    /// For a new token: at once.
    Renewal,
    /// Something is wrong.
    BackOff,
    /// The actor has asked for it.
    After(Duration),
}

impl Session {
    /// The first deadline is `now`: at it, the session connects.
    pub fn new(settings: SessionSettings, now: Instant) -> Session {
        let rng = SmallRng::seed_from_u64(settings.seed);
        let phase = Phase::Waiting { until: now, after: None };
        let backoff = Backoff::default();
        Session { settings, rng, backoff, phase, next_rid: 1, next_message: 1, outputs: VecDeque::new() }
    }

    /// What to do next; `None` until the next input.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Session::handle`] with [`Input::Elapsed`], unless something else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { until, .. } => Some(*until),
            Phase::Connecting { .. } | Phase::Closing { .. } => None,
            Phase::Online(link) => Some(link.deadline(RENEWAL_PATIENCE)),
        }
    }

    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Accepted => self.accepted(now.monotonic),
            Input::Refused(refusal) => self.refused(now.monotonic, refusal),
            Input::Lost { reason } => self.lost(now.monotonic, reason),
            Input::Subscribed { granted } => self.subscribed(now.monotonic, granted),
            Input::Received { topic, payload, packet_id } => {
                self.received(now.monotonic, &topic, payload, packet_id);
            }
            Input::Taken { token } => self.taken(now.monotonic, token),
            Input::Send(message) => self.send(now.monotonic, message),
            Input::Elapsed => self.elapsed(now),
        }
        self.renew_if_due(now.monotonic);
    }

    fn elapsed(&mut self, now: Now) {
        match &mut self.phase {
            Phase::Waiting { until, after } if *until <= now.monotonic => {
                let after = after.take();
                self.connect(now, after);
            }
            Phase::Online(link) => match link.stage {
                Stage::Subscribing { deadline, .. } if deadline <= now.monotonic => {
                    self.close("the hub did not answer the subscriptions".to_owned(), Again::BackOff);
                }
                _ if link.telemetry_is_overdue(now.monotonic) => {
                    self.close("the hub did not acknowledge a message in time".to_owned(), Again::BackOff);
                }
                Stage::GettingTwin { retry_at, .. } if retry_at <= now.monotonic => self.get_twin(now.monotonic),
                _ => self.expire_reports(now.monotonic),
            },
            _ => {}
        }
    }

    fn connect(&mut self, now: Now, after: Option<Failure>) {
        let SessionSettings { device_id, host, credentials, token_lifetime, .. } = &self.settings;
        let authority = host.authority();
        let password = match credentials {
            DeviceCredentials::Key(key) => {
                let resource = format!("{authority}/{}", Address::from(device_id).path());
                key.sign(&resource, None, now.wall + *token_lifetime)
            }
            // TLS has shown the certificate.
            DeviceCredentials::X509 => String::new(),
        };
        let username = format!("{authority}/{device_id}/?api-version={API_VERSION}&DeviceClientType={CLIENT_TYPE}");
        self.phase = Phase::Connecting { token_made: now.monotonic };
        self.outputs.push_back(Output::State(LinkState::Connecting { after }));
        self.outputs.push_back(Output::Connect(Credentials { username, password }));
    }

    fn accepted(&mut self, now: Instant) {
        let Phase::Connecting { token_made } = self.phase else { return };
        let share = self.rng.random_range(0.76..0.84);
        let renewal = match self.settings.credentials {
            DeviceCredentials::Key(_) => token_made + self.settings.token_lifetime.mul_f64(share),
            DeviceCredentials::X509 => now + NEVER,
        };
        let wanted = [Subscription::Methods, Subscription::TwinResponses, Subscription::Desired];
        let stage = Stage::Subscribing { missing: wanted.len(), deadline: now + SUBSCRIBE_TIMEOUT };
        self.phase = Phase::Online(Box::new(Link::new(now, renewal, stage)));
        // One packet each, as every SDK does it.
        let address = self.address();
        let filters = wanted.iter().filter_map(|subscription| subscription.filter(&address));
        self.outputs.extend(filters.map(|filter| Output::Subscribe { filter }));
    }

    fn subscribed(&mut self, now: Instant, granted: bool) {
        let Phase::Online(link) = &mut self.phase else { return };
        let Stage::Subscribing { missing, .. } = &mut link.stage else {
            if !granted {
                warn!(device = %self.settings.device_id, "the hub does not let this device have messages");
            }
            return;
        };
        *missing = missing.saturating_sub(1);
        let done = *missing == 0;
        if !granted {
            self.close("the hub refused a subscription".to_owned(), Again::BackOff);
        } else if done {
            let early = std::mem::take(&mut link.early);
            let deliveries = std::iter::once(FromHub::Connected).chain(early);
            self.outputs.extend(deliveries.map(Output::Deliver));
            self.get_twin(now);
        }
    }

    /// Ask for the twin, first or again.
    fn get_twin(&mut self, now: Instant) {
        let (number, rid) = self.request_id();
        if let Phase::Online(link) = &mut self.phase {
            link.expect_twin(number, now);
            self.publish(&FromDevice::TwinGet { rid }, b" ".to_vec());
        }
    }

    fn received(&mut self, now: Instant, topic: &str, payload: Vec<u8>, packet_id: Option<u16>) {
        if !matches!(self.phase, Phase::Online(_)) {
            return;
        }
        if is_cloud_message(&self.settings.device_id, topic) {
            return self.message(topic, payload, packet_id);
        }
        if let Some(packet_id) = packet_id {
            self.outputs.push_back(Output::Acknowledge { packet_id });
        }
        match ToDevice::parse(topic) {
            Some(ToDevice::Method { name, rid }) => {
                let payload = if payload.is_empty() { b"null".to_vec() } else { payload };
                match String::from_utf8(payload) {
                    Ok(payload) => self.method(now, FromHub::Method { rid: rid.clone(), name, payload }, rid),
                    Err(_) => self.answer(rid, 400, r#"{"message":"the payload is not UTF-8"}"#.to_owned()),
                }
            }
            Some(ToDevice::TwinResponse { status, rid, version }) => {
                if let Ok(number) = rid.as_str().parse() {
                    self.twin_response(now, number, status, version, &payload);
                }
            }
            Some(ToDevice::Desired { version }) => self.notice(now, version, &payload),
            None => debug!(device = %self.settings.device_id, topic, "unknown topic ignored"),
        }
    }

    fn method(&mut self, now: Instant, method: FromHub, rid: RequestId) {
        let Phase::Online(link) = &mut self.phase else { return };
        link.method_started(rid, now);
        if !matches!(link.stage, Stage::Subscribing { .. }) {
            self.outputs.push_back(Output::Deliver(method));
        } else if !link.keep_early(method) {
            warn!(device = %self.settings.device_id, "too many methods before the subscriptions are made, one dropped");
        }
    }

    /// Without its acknowledgement the hub keeps the message until it expires, and may bring it again.
    fn message(&mut self, topic: &str, body: Vec<u8>, packet_id: Option<u16>) {
        let device = &self.settings.device_id;
        let Phase::Online(link) = &mut self.phase else { return };
        let Some(message) = parse_cloud_message(device, topic, body) else {
            warn!(%device, "properties of a message are not UTF-8, it is left in the hub's queue");
            return;
        };
        let token = packet_id.map_or(self.next_message, |id| link.message_started(id, self.next_message));
        if token == self.next_message {
            self.next_message += 1;
        }
        let delivery = FromHub::Message { token, message: Box::new(message) };
        if link.is_announced() {
            self.outputs.push_back(Output::Deliver(delivery));
        } else if !link.keep_early(delivery) {
            warn!(%device, "too many messages before the subscriptions are made, one is left in the hub's queue");
        }
    }

    fn subscribe_messages(&mut self) {
        let filter = device_bound_filter(&self.settings.device_id);
        let Phase::Online(link) = &mut self.phase else { return };
        if std::mem::replace(&mut link.messages_subscribed, true) {
            return;
        }
        if self.settings.device_id.as_str().contains(['+', '#']) {
            warn!(device = %self.settings.device_id, "no messages for this device: its id would be a wildcard in mqtt");
            return;
        }
        self.outputs.push_back(Output::Subscribe { filter });
    }

    fn notice(&mut self, now: Instant, version: u64, payload: &[u8]) {
        let Phase::Online(link) = &mut self.phase else { return };
        match link.notice(version, payload) {
            link::Notice::Deliver(notice) => self.outputs.push_back(Output::Deliver(notice)),
            link::Notice::Nothing => {}
            link::Notice::GetTwin { reason } => {
                warn!(device = %self.settings.device_id, version, reason, "asking for the whole twin");
                self.get_twin(now);
            }
        }
    }

    fn twin_response(&mut self, now: Instant, number: u64, status: u16, version: Option<u64>, body: &[u8]) {
        let Phase::Online(link) = &mut self.phase else { return };
        if let Some(report) = link.reports.remove(&number) {
            let message = link::message_of(body);
            let reported = FromHub::Reported { token: report.token, status, version, message };
            self.outputs.push_back(Output::Deliver(reported));
            return;
        }
        match link.twin_answer(number, status, body, now, &mut self.rng) {
            TwinAnswer::NotAsked => {}
            TwinAnswer::Failed { message, retry_in } => {
                warn!(device = %self.settings.device_id, status, message, ?retry_in, "no twin from the hub");
            }
            TwinAnswer::Twin { deliveries, gap } => {
                self.outputs.extend(deliveries.into_iter().map(Output::Deliver));
                self.outputs.push_back(Output::State(LinkState::Ready));
                if gap {
                    warn!(device = %self.settings.device_id, "a notice did not come, asking for the whole twin");
                    self.get_twin(now);
                }
            }
        }
    }

    fn taken(&mut self, now: Instant, token: u64) {
        if let Phase::Online(link) = &mut self.phase {
            link.telemetry_taken(token, now);
            self.outputs.push_back(Output::Deliver(FromHub::TelemetryTaken { token }));
        }
    }

    fn expire_reports(&mut self, now: Instant) {
        let Phase::Online(link) = &mut self.phase else { return };
        let expired = link.reports.extract_if(.., |_, report| report.deadline <= now);
        let expired = expired.map(|(_, report)| unreported(report.token, 504, "no answer within 30 s"));
        self.outputs.extend(expired.map(Output::Deliver));
    }

    fn renew_if_due(&mut self, now: Instant) {
        let Phase::Online(link) = &self.phase else { return };
        if link.renewal_due(now, RENEWAL_PATIENCE) {
            self.close("the connection is renewed with a new token".to_owned(), Again::Renewal);
        }
    }

    /// End the connection from this side.
    fn close(&mut self, reason: String, again: Again) {
        self.end_link(&reason);
        self.outputs.push_back(Output::Disconnect);
        self.phase = Phase::Closing { reason, again };
    }

    /// The actor wants to begin anew.
    fn reconnect(&mut self, now: Instant, after: Duration) {
        match &mut self.phase {
            Phase::Waiting { until, .. } => *until = (*until).max(now + after),
            // What comes is new to the actor anyway.
            Phase::Connecting { .. } => {}
            Phase::Closing { again, .. } => *again = Again::After(after),
            Phase::Online(_) => self.close("the device's actor begins anew".to_owned(), Again::After(after)),
        }
    }

    fn lost(&mut self, now: Instant, reason: String) {
        let (reason, again) = match &mut self.phase {
            Phase::Waiting { .. } => return,
            Phase::Closing { reason, again } => (std::mem::take(reason), *again),
            Phase::Connecting { .. } => (reason, Again::BackOff),
            Phase::Online(link) => {
                if now.saturating_duration_since(link.since) >= STABLE {
                    self.backoff.reset();
                }
                self.end_link(&reason);
                (reason, Again::BackOff)
            }
        };
        match again {
            Again::Renewal => {
                self.backoff.reset();
                self.phase = Phase::Waiting { until: now, after: None };
            }
            Again::BackOff => {
                let retry_in = self.backoff.after_failure(&mut self.rng);
                self.wait(now, Failure { refused: false, reason }, retry_in);
            }
            Again::After(retry_in) => self.wait(now, Failure { refused: false, reason }, retry_in),
        }
    }

    fn refused(&mut self, now: Instant, refusal: Refusal) {
        let unavailable = refusal == Refusal::Unavailable;
        let retry_in = if unavailable {
            self.backoff.after_busy(&mut self.rng)
        } else {
            self.backoff.after_refusal(&mut self.rng)
        };
        self.wait(now, Failure { refused: !unavailable, reason: refusal.to_string() }, retry_in);
    }

    fn wait(&mut self, now: Instant, failure: Failure, retry_in: Duration) {
        self.phase = Phase::Waiting { until: now + retry_in, after: Some(failure.clone()) };
        self.outputs.push_back(Output::State(LinkState::Waiting { failure, retry_in }));
    }

    /// Tell the actor that the link is gone, if it was told that there is one.
    fn end_link(&mut self, reason: &str) {
        if let Phase::Online(link) = &self.phase
            && link.is_announced()
        {
            self.outputs.push_back(Output::Deliver(FromHub::Disconnected { reason: reason.to_owned() }));
        }
    }

    /// The device's: this connects no modules.
    fn address(&self) -> Address {
        Address::from(&self.settings.device_id)
    }

    fn publish(&mut self, topic: &FromDevice, payload: Vec<u8>) {
        let topic = topic.format(&self.address());
        self.outputs.push_back(Output::Publish(Publication { topic, payload, token: None }));
    }

    fn request_id(&mut self) -> (u64, RequestId) {
        let number = self.next_rid;
        self.next_rid += 1;
        (number, RequestId::parse(&number.to_string()).expect("digits make a request id"))
    }
}

fn unreported(token: u64, status: u16, message: &str) -> FromHub {
    FromHub::Reported { token, status, version: None, message: message.to_owned() }
}
