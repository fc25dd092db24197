//! Follows the host's steps by its log, tells the hub of each, and ends the process at one of them.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::wire::{FromHost, Sent, Step};

/// At the `nth` time, counted from 1, that the host takes the step, or any step at all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) step: Option<Step>,
    pub(crate) nth: usize,
}

/// Where all steps come together, one after the other.
#[derive(Clone)]
pub(crate) struct Steps(Arc<Mutex<State>>);

struct State {
    hub: UnixStream,
    last: Option<Point>,
    /// How often the step at which all ends was taken.
    taken: usize,
    call: Call,
    /// Records in the commit that is going on, which the store does not yet say to be written.
    committing: u64,
}

/// How far the call in hand is, as far as the log says.
#[derive(Default)]
struct Call {
    work: String,
    is_over: bool,
    record: Option<u64>,
}

/// What an event of the log says.
#[derive(Default)]
struct Said {
    message: String,
    work: String,
    record: Option<u64>,
    writes: u64,
}

impl Steps {
    /// `hub` is told of each; `last` is where the process ends.
    pub(crate) fn new(hub: UnixStream, last: Option<Point>) -> Steps {
        Steps(Arc::new(Mutex::new(State { hub, last, taken: 0, call: Call::default(), committing: 0 })))
    }

    /// Something arrives at the hub.
    pub(crate) fn send(&self, sent: Sent) {
        let line = FromHost::Sent(sent);
        let mut state = self.0.lock().expect("nobody panics");
        state.tell(&line);
        state.end_at(&line.step());
    }
}

impl State {
    fn take(&mut self, said: Said) {
        let work = match said.message.as_str() {
            "call begins" => {
                self.call = Call { work: said.work, ..Call::default() };
                self.call.work.clone()
            }
            "call is over" => {
                self.call.is_over = true;
                self.call.work.clone()
            }
            // A call that is over hands over what it did before anything else happens.
            "record is handed over" if std::mem::take(&mut self.call.is_over) => {
                self.call.record = said.record;
                self.call.work.clone()
            }
            "record is written" if self.call.record.is_some() && self.call.record == said.record => {
                std::mem::take(&mut self.call).work
            }
            "about to return" => self.call.work.clone(),
            "commit begins" if self.call.record.is_some() => self.call.work.clone(),
            _ => String::new(),
        };
        let step = Step { what: said.message, work };
        self.tell(&FromHost::Step(step.clone()));
        if step.what == "record is written" {
            self.committing = self.committing.saturating_sub(1);
        }
        self.end_at(&step);
        // Only now, since at the beginning of a commit it is certain that nothing is committed.
        self.committing += said.writes;
    }

    fn tell(&mut self, line: &FromHost) {
        let line = serde_json::to_string(line).expect("JSON") + "\n";
        // Once the hub has gone, this process is about to follow.
        drop(self.hub.write_all(line.as_bytes()));
    }

    /// Whoever waits for the lock waits for ever, so no step follows. While the store commits, which it does on a thread
    /// of its own, nobody could say what it has done by then: the end comes with its last word about that.
    fn end_at(&mut self, step: &Step) {
        let Some(last) = &self.last else { return };
        self.taken += usize::from(last.step.as_ref().is_none_or(|last| last == step));
        if self.taken >= last.nth && self.committing == 0 {
            kill_process(getpid(), Signal::KILL).expect("one may end oneself");
            loop {
                thread::park();
            }
        }
    }
}

impl Subscriber for Steps {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let from = metadata.target().split("::").next();
        metadata.is_event() && from.is_some_and(|from| ["device_actors", "durable_store", "plugin"].contains(&from))
    }

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        self.0.lock().expect("nobody panics").take(said);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for Said {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "record" => self.record = Some(value),
            "writes" => self.writes = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "work" {
            self.work = value.to_owned();
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            write!(self.message, "{value:?}").expect("text takes text");
        }
    }
}
