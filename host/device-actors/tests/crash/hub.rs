//! A hub with one device, which outlives the host, and what it may expect of that device.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iothub_protocol::twin;
use serde_json::{Map, Value};

use crate::wire::{FromHost, Sent, Step, ToHost};

/// What the device is given to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Method,
    Letter,
    Change,
}

impl Kind {
    /// With which an entry begins that is of this kind.
    fn letter(self) -> char {
        match self {
            Kind::Method => 'm',
            Kind::Letter => 'c',
            Kind::Change => 'd',
        }
    }
}

#[derive(Default)]
pub(crate) struct Hub {
    /// What is to be done yet, and how much of it the device may have in hand.
    to_do: VecDeque<Kind>,
    at_once: usize,
    /// Numbers what the device is given.
    given: u32,
    in_hand: BTreeSet<String>,
    tokens: u64,
    desired: Map<String, Value>,
    version: u64,
    reported: Map<String, Value>,
    /// Whether the device wants messages on this connection.
    subscribed: bool,
    /// Messages that the device has not dealt with yet, as far as the hub knows; with the token of the last delivery.
    letters: BTreeMap<String, u64>,
    /// Message ids and bodies, in the order in which they came first.
    telemetry: Vec<(String, String)>,
    repeated: usize,
    /// By the host's log: for what the calls were that are recorded.
    recorded: Vec<String>,
    /// Entries in the device's ledger, as far as it was shown.
    ledger: Vec<String>,
    /// Entries that the hub has heard of without the ledger, and how many calls were recorded by then.
    heard_of: Vec<(String, usize)>,
}

/// What a hub can say about a line from the host: its answers, or what is wrong.
pub(crate) type Heard = Result<Vec<ToHost>, String>;

impl Hub {
    pub(crate) fn new(to_do: &[Kind], at_once: usize) -> Hub {
        Hub { to_do: to_do.iter().copied().collect(), at_once, version: 1, ..Hub::default() }
    }

    /// The device connects. The first that it is asked for is a method, whose answer shows all that it has kept.
    pub(crate) fn connected(&mut self) -> Vec<ToHost> {
        // Whoever waited for an answer has been told that there is none.
        self.in_hand.clear();
        self.subscribed = false;
        self.to_do.push_front(Kind::Method);
        let (desired, reported) = (self.desired.clone(), self.reported.clone());
        let mut said = vec![ToHost::Connected, ToHost::Twin { desired, version: self.version, reported }];
        said.extend(self.go_on());
        said
    }

    pub(crate) fn hear(&mut self, line: FromHost) -> Heard {
        let mut said = match line {
            FromHost::Step(Step { what, work }) => {
                if what == "record is written" && !work.is_empty() {
                    self.recorded.push(work);
                }
                Vec::new()
            }
            FromHost::Sent(sent) => self.take(sent)?,
        };
        said.extend(self.go_on());
        Ok(said)
    }

    fn take(&mut self, sent: Sent) -> Heard {
        Ok(match sent {
            Sent::Subscribe => {
                self.subscribed = true;
                let letters: Vec<_> = self.letters.keys().cloned().collect();
                letters.into_iter().map(|entry| self.bring(entry)).collect()
            }
            Sent::Answer { rid, status, payload } => {
                if !self.in_hand.remove(&rid) || status != 200 {
                    return Err(format!("nobody waits for an answer {status} {payload} to {rid}"));
                }
                let ledger = payload.trim_matches('"');
                self.see(ledger)?;
                if !ledger.ends_with(&rid) {
                    return Err(format!("the answer to {rid} is of another call: {ledger}"));
                }
                Vec::new()
            }
            Sent::Report { token, patch } => {
                self.heard_of.extend(patch.keys().map(|entry| (entry.clone(), self.recorded.len())));
                twin::merge(&mut self.reported, &patch);
                vec![ToHost::ReportTaken { token }]
            }
            Sent::Telemetry { token, id, body } => {
                self.see(&body)?;
                match self.telemetry.iter().find(|(known, _)| *known == id) {
                    Some((_, before)) if *before == body => self.repeated += 1,
                    Some((_, before)) => return Err(format!("message {id} says {body}, and said {before}")),
                    None => self.telemetry.push((id, body)),
                }
                vec![ToHost::TelemetryTaken { token }]
            }
            Sent::LetterTaken { token } => {
                let Some((entry, _)) = self.letters.extract_if(.., |_, last| *last == token).next() else {
                    return Err(format!("there is no message with the token {token}"));
                };
                self.in_hand.remove(&entry);
                self.heard_of.push((entry, self.recorded.len()));
                Vec::new()
            }
        })
    }

    /// The device shows its ledger, which must be as it was shown before, or longer; nothing in it may be unrecorded.
    fn see(&mut self, text: &str) -> Result<(), String> {
        let shown: Vec<String> = text.as_bytes().chunks(3).map(|entry| String::from_utf8_lossy(entry).into()).collect();
        let known = &self.ledger[..self.ledger.len().min(shown.len())];
        if shown[..known.len()] != *known {
            return Err(format!("the ledger is {shown:?}, and was {:?}", self.ledger));
        }
        let works: Vec<&str> = shown.iter().map(|entry| work(entry)).collect();
        if works.len() > self.recorded.len() || works[..] != self.recorded[..works.len()] {
            return Err(format!("the ledger is {shown:?}, and what is recorded {:?}", self.recorded));
        }
        if let Some((_, entry)) = shown.iter().enumerate().find(|(at, entry)| shown[..*at].contains(entry)) {
            return Err(format!("{entry} was dealt with twice: {shown:?}"));
        }
        if shown.len() > self.ledger.len() {
            self.ledger = shown;
        }
        let ledger = &self.ledger;
        self.in_hand.retain(|entry| !is_change(entry) || !ledger.contains(entry));
        Ok(())
    }

    /// Give the device what it may have, once things before have had their effects. One change at a time, since a later
    /// one may take the place of an earlier.
    fn go_on(&mut self) -> Vec<ToHost> {
        let mut said = Vec::new();
        while self.in_hand.len() < self.at_once
            && let Some(kind) = self
                .to_do
                .pop_front_if(|kind| *kind != Kind::Change || !self.in_hand.iter().any(|entry| is_change(entry)))
        {
            said.extend(self.give(kind));
        }
        said
    }

    fn give(&mut self, kind: Kind) -> Vec<ToHost> {
        self.given += 1;
        assert!(self.given < 100, "numbers have two digits");
        let entry = format!("{}{:02}", kind.letter(), self.given);
        self.in_hand.insert(entry.clone());
        match kind {
            Kind::Method => vec![ToHost::Method { rid: entry.clone(), entry }],
            Kind::Letter if self.subscribed => vec![self.bring(entry)],
            Kind::Letter => {
                self.letters.insert(entry, 0);
                Vec::new()
            }
            Kind::Change => {
                let patch = Map::from_iter([("x".to_owned(), Value::from(entry))]);
                twin::merge(&mut self.desired, &patch);
                self.version += 1;
                vec![ToHost::Desired { version: self.version, patch }]
            }
        }
    }

    fn bring(&mut self, entry: String) -> ToHost {
        self.tokens += 1;
        self.letters.insert(entry.clone(), self.tokens);
        ToHost::Letter { token: self.tokens, entry }
    }

    /// What keeps the device and its hub from being done with each other.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let open = |what: &str, count: usize| (count > 0).then(|| format!("{count} {what}"));
        let told: BTreeSet<&str> = self.telemetry.iter().map(|(_, body)| body.as_str()).collect();
        open("things to do", self.to_do.len() + self.in_hand.len())
            .or(open("messages that are not dealt with", self.letters.len()))
            .or(open("recorded calls that the ledger does not show", self.recorded.len() - self.ledger.len()))
            .or(open("timers", self.open_timers().count()))
            .or(open("messages from the device", self.ledger.len().abs_diff(told.len())))
            .or(open("reported properties", self.ledger.len().abs_diff(self.reported.len())))
    }

    /// Those that the ledger says were set and that have not fired.
    fn open_timers(&self) -> impl Iterator<Item = String> {
        let set = self.ledger.iter().filter_map(|entry| Some(format!("{}{}", timer_after(entry)?, &entry[1..])));
        set.filter(|timer| !self.ledger.contains(timer))
    }

    /// How many calls of the device the ledger shows.
    pub(crate) fn entries(&self) -> usize {
        self.ledger.len()
    }

    /// How many messages came more than once.
    pub(crate) fn repeated(&self) -> usize {
        self.repeated
    }

    /// Whether everything has come about as promised, now that nothing is waited for.
    pub(crate) fn check(&self) -> Result<(), String> {
        if let Some(what) = self.waits_for() {
            return Err(format!("there is more to come: {what}"));
        }
        let place = |entry: &str| self.ledger.iter().position(|known| known == entry);
        for (at, entry) in self.ledger.iter().enumerate() {
            if let Some(before) = timer_before(entry)
                && !self.ledger[..at].iter().any(|other| before.contains(&other[..1]) && other[1..] == entry[1..])
            {
                return Err(format!("{entry} fired, and nobody had set it"));
            }
        }
        for (entry, recorded) in &self.heard_of {
            if place(entry).is_none_or(|at| at >= *recorded) {
                return Err(format!("the hub has heard of {entry} before it was recorded"));
            }
        }
        if let Some(entry) = self.ledger.iter().find(|entry| !self.reported.contains_key(*entry)) {
            return Err(format!("what {entry} reported is lost"));
        }
        if let Some(entry) = self.desired.get("x").and_then(Value::as_str).filter(|entry| place(entry).is_none()) {
            return Err(format!("the change to {entry} was not dealt with"));
        }
        let told: Vec<&str> = self.telemetry.iter().map(|(_, body)| body.as_str()).collect();
        let ledger = self.ledger.concat();
        if !told.iter().copied().eq((1..=self.ledger.len()).map(|entries| &ledger[..3 * entries])) {
            return Err(format!("the device said {told:?}"));
        }
        Ok(())
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        format!("ledger {:?}\nrecorded {:?}\nin hand {:?}", self.ledger, self.recorded, self.in_hand)
    }
}

fn is_change(entry: &str) -> bool {
    entry.starts_with('d')
}

/// What a call with this entry is for.
fn work(entry: &str) -> &'static str {
    match &entry[..1] {
        "m" => "method",
        "c" => "message",
        "d" => "change",
        "t" | "u" => "timer",
        _ => "nothing that the hub or the plugin has thought of",
    }
}

/// Which timer a call sets with this entry.
fn timer_after(entry: &str) -> Option<&'static str> {
    match &entry[..1] {
        "u" => None,
        "t" => Some("u"),
        _ => Some("t"),
    }
}

/// Which entries set the timer with this entry.
fn timer_before(entry: &str) -> Option<&'static str> {
    match &entry[..1] {
        "u" => Some("t"),
        "t" => Some("mcd"),
        _ => None,
    }
}
