//! What is known about one connection while it lasts.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use iothub_protocol::id::RequestId;
use iothub_protocol::link::{FromHub, TwinDocument};
use iothub_protocol::twin::DesiredNotice;
use rand::rngs::SmallRng;
use serde_json::Value;

use crate::backoff::Backoff;

/// After this long a GET is sent again, under a new number. A late answer to the earlier one still counts.
const TWIN_TIMEOUT: Duration = Duration::from_secs(10);
/// After this long without a sign that the hub takes messages, one of them is lost, or its PUBACK; as in Node's SDK. On
/// the same link MQTT has no way to ask for it.
const PUBACK_TIMEOUT: Duration = Duration::from_secs(30);
/// How many GETs are remembered as asked.
const MAX_GETS: usize = 4;
/// How much is kept of what comes before its time. A persisted subscription can bring a burst right after the connect.
const MAX_EARLY: usize = 64;
/// No caller waits longer for a method; a number's bound stands beside it against a flood.
const LONGEST_METHOD: Duration = Duration::from_secs(300);
const MAX_METHODS: usize = 1024;
/// Messages that are not acknowledged. A hub's queue holds 50 for a device; one that is forgotten comes again.
const MAX_MESSAGES: usize = 128;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) since: Instant,
    pub(super) stage: Stage,
    /// Methods and messages.
    pub(super) early: Vec<FromHub>,
    pub(super) reports: BTreeMap<u64, PendingReport>,
    renewal: Instant,
    /// Methods given to the actor and not answered, oldest first.
    methods: VecDeque<(Instant, RequestId)>,
    /// Numbers of the GETs whose answer counts, and how often one brought an error.
    gets: VecDeque<u64>,
    get_failures: Backoff,
    early_notices: Vec<DesiredNotice>,
    pub(super) messages_subscribed: bool,
    /// Messages that wait for their acknowledgement, by token, with their packet ids; oldest first.
    messages: VecDeque<(u64, u16)>,
    /// Telemetry without a PUBACK, by token, and when that is overdue; oldest first.
    telemetry: VecDeque<(u64, Instant)>,
}

#[derive(Debug)]
pub(super) enum Stage {
    Subscribing { missing: usize, deadline: Instant },
    GettingTwin { retry_at: Instant },
    Ready { desired_version: u64 },
}

#[derive(Debug)]
pub(super) struct PendingReport {
    pub(super) token: u64,
    pub(super) deadline: Instant,
}

/// What a notice of desired properties leads to.
#[derive(Debug)]
pub(super) enum Notice {
    Deliver(FromHub),
    /// It is old, or kept for later.
    Nothing,
    /// It is lost: only the whole twin can tell what it said.
    GetTwin {
        reason: &'static str,
    },
}

#[derive(Debug)]
pub(super) enum TwinAnswer {
    NotAsked,
    Failed {
        message: String,
        retry_in: Duration,
    },
    /// With `gap`, a notice after that twin did not come.
    Twin {
        deliveries: Vec<FromHub>,
        gap: bool,
    },
}

impl Link {
    pub(super) fn new(since: Instant, renewal: Instant, stage: Stage) -> Link {
        Link {
            since,
            stage,
            early: Vec::new(),
            reports: BTreeMap::new(),
            renewal,
            methods: VecDeque::new(),
            gets: VecDeque::new(),
            get_failures: Backoff::default(),
            early_notices: Vec::new(),
            messages_subscribed: false,
            messages: VecDeque::new(),
            telemetry: VecDeque::new(),
        }
    }

    /// Whether the actor knows of this connection.
    pub(super) fn is_announced(&self) -> bool {
        !matches!(self.stage, Stage::Subscribing { .. })
    }

    pub(super) fn deadline(&self, patience: Duration) -> Instant {
        // With methods in flight, the last answer or the end of patience decides, not the time at which it became due.
        let renewal = if self.methods.is_empty() { self.renewal } else { self.renewal + patience };
        let report = self.reports.values().map(|report| report.deadline).min();
        let stage = match self.stage {
            Stage::Subscribing { deadline, .. } => Some(deadline),
            Stage::GettingTwin { retry_at } => Some(retry_at),
            Stage::Ready { .. } => None,
        };
        [report, stage, self.telemetry_deadline()].into_iter().flatten().fold(renewal, Instant::min)
    }

    pub(super) fn telemetry_sent(&mut self, token: u64, now: Instant) {
        self.telemetry.push_back((token, now + PUBACK_TIMEOUT));
    }

    /// A hub takes messages in their order, so those behind this one have only now got their turn; one before it has
    /// been passed over, and its time runs on.
    pub(super) fn telemetry_taken(&mut self, token: u64, now: Instant) {
        let Some(position) = self.telemetry.iter().position(|(sent, _)| *sent == token) else { return };
        self.telemetry.remove(position);
        for (_, deadline) in self.telemetry.iter_mut().skip(position) {
            *deadline = now + PUBACK_TIMEOUT;
        }
    }

    pub(super) fn telemetry_is_overdue(&self, now: Instant) -> bool {
        self.telemetry_deadline().is_some_and(|deadline| deadline <= now)
    }

    fn telemetry_deadline(&self) -> Option<Instant> {
        self.telemetry.iter().map(|(_, deadline)| *deadline).min()
    }

    pub(super) fn renewal_due(&self, now: Instant, patience: Duration) -> bool {
        now >= self.renewal && (self.methods.is_empty() || now >= self.renewal + patience)
    }

    pub(super) fn method_started(&mut self, rid: RequestId, now: Instant) {
        let over = |started: &Instant| now.saturating_duration_since(*started) > LONGEST_METHOD;
        while self.methods.len() >= MAX_METHODS || self.methods.front().is_some_and(|(started, _)| over(started)) {
            self.methods.pop_front();
        }
        self.methods.push_back((now, rid));
    }

    /// `false` if this connection has no such method in flight.
    pub(super) fn method_ended(&mut self, rid: &RequestId) -> bool {
        let position = self.methods.iter().position(|(_, started)| started == rid);
        position.and_then(|position| self.methods.remove(position)).is_some()
    }

    /// The token of the message in this packet: `new`, unless the hub repeats what was not acknowledged yet.
    pub(super) fn message_started(&mut self, packet_id: u16, new: u64) -> u64 {
        if let Some((token, _)) = self.messages.iter().find(|(_, id)| *id == packet_id) {
            return *token;
        }
        if self.messages.len() == MAX_MESSAGES {
            self.messages.pop_front();
        }
        self.messages.push_back((new, packet_id));
        new
    }

    /// The packet to acknowledge, if this connection brought it.
    pub(super) fn message_ended(&mut self, token: u64) -> Option<u16> {
        let position = self.messages.iter().position(|(started, _)| *started == token)?;
        self.messages.remove(position).map(|(_, packet_id)| packet_id)
    }

    /// `false` if there is no room.
    pub(super) fn keep_early(&mut self, delivery: FromHub) -> bool {
        let room = self.early.len() < MAX_EARLY;
        if room {
            self.early.push(delivery);
        }
        room
    }

    pub(super) fn expect_twin(&mut self, number: u64, now: Instant) {
        if self.gets.len() == MAX_GETS {
            self.gets.pop_front();
        }
        self.gets.push_back(number);
        self.stage = Stage::GettingTwin { retry_at: now + TWIN_TIMEOUT };
    }

    pub(super) fn notice(&mut self, version: u64, body: &[u8]) -> Notice {
        let parsed = DesiredNotice::from_json(body).map(|notice| DesiredNotice { version, ..notice });
        match (&mut self.stage, parsed) {
            (Stage::Ready { desired_version }, Some(notice)) => {
                if notice.version <= *desired_version {
                    return Notice::Nothing;
                }
                if notice.version > *desired_version + 1 {
                    return Notice::GetTwin { reason: "a notice did not come" };
                }
                *desired_version = notice.version;
                Notice::Deliver(desired(notice))
            }
            (Stage::Ready { .. }, None) => Notice::GetTwin { reason: "a notice cannot be read" },
            // The GET is still to be sent and will tell.
            (Stage::Subscribing { .. }, None) => Notice::Nothing,
            (Stage::Subscribing { .. } | Stage::GettingTwin { .. }, Some(notice))
                if self.early_notices.len() < MAX_EARLY =>
            {
                self.early_notices.push(notice);
                Notice::Nothing
            }
            (Stage::Subscribing { .. }, Some(_)) => {
                self.early_notices.clear();
                Notice::Nothing
            }
            (Stage::GettingTwin { .. }, _) => {
                // Answers to GETs sent before now may lack what is lost here.
                self.early_notices.clear();
                self.gets.clear();
                Notice::GetTwin { reason: "a notice was lost before the twin came" }
            }
        }
    }

    pub(super) fn twin_answer(
        &mut self,
        number: u64,
        status: u16,
        body: &[u8],
        now: Instant,
        rng: &mut SmallRng,
    ) -> TwinAnswer {
        if !self.gets.contains(&number) {
            return TwinAnswer::NotAsked;
        }
        let document = if status == 200 { TwinDocument::from_json(body) } else { None };
        let Some(document) = document else {
            self.gets.retain(|&asked| asked != number);
            let retry_in = self.get_failures.after_busy(rng);
            self.stage = Stage::GettingTwin { retry_at: now + retry_in };
            return TwinAnswer::Failed { message: message_of(body), retry_in };
        };
        self.gets.clear();
        self.get_failures.reset();
        let mut version = document.desired_version;
        let mut deliveries = vec![FromHub::Twin(document)];
        let mut gap = false;
        for notice in std::mem::take(&mut self.early_notices) {
            gap |= notice.version > version + 1;
            if notice.version > version && !gap {
                version = notice.version;
                deliveries.push(desired(notice));
            }
        }
        self.stage = Stage::Ready { desired_version: version };
        TwinAnswer::Twin { deliveries, gap }
    }
}

/// The text of a twin error; empty if there is none.
pub(super) fn message_of(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    parsed.as_ref().and_then(|body| body.get("message")?.as_str()).unwrap_or_default().to_owned()
}

fn desired(notice: DesiredNotice) -> FromHub {
    FromHub::Desired { version: notice.version, patch: notice.properties }
}
