//! Calls while versions of lock-door take turns: what each answer may say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iothub_protocol::id::MethodName;
use plugin_runtime::{Catalog, PluginName};
use serde_json::Value;

use super::channels::{Answer, Door, method};

/// The components that take turns, beginning with the one that runs at the start.
pub(crate) const VERSIONS: [&str; 2] = ["lock-door.wasm", "next/lock-door.wasm"];
/// What they call themselves in their answers.
const LABELS: [&str; 2] = ["1.0.0", "2.0.0"];

/// The terms of the versions, one after the other. In term N the version N modulo 2 is current.
#[derive(Default)]
pub(crate) struct Terms {
    /// The term that some device may have begun.
    begun: AtomicU64,
    /// The term that every device has begun, or will before it takes another call.
    current: AtomicU64,
}

impl Terms {
    /// The next term, with one of these components.
    pub(crate) async fn swap(&self, catalog: &Catalog, wasm: &[Vec<u8>; 2]) {
        let term = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let name = PluginName::parse("lock-door").expect("a name");
        let report = catalog.swap(&name, wasm[(term % 2) as usize].clone()).await.expect("a good version");
        assert_eq!(report.to, LABELS[(term % 2) as usize]);
        self.current.store(term, Ordering::SeqCst);
    }

    /// The first term from `not_before` on in which `label` was current; fails if there is none yet.
    fn of(&self, label: &str, not_before: u64) -> u64 {
        let term = if LABELS[(not_before % 2) as usize] == label { not_before } else { not_before + 1 };
        assert_eq!(LABELS[(term % 2) as usize], label, "a version of ours");
        let begun = self.begun.load(Ordering::SeqCst);
        assert!(term <= begun, "answered by {label} when that was over: its terms before {not_before}, now {begun}");
        term
    }
}

/// Whoever calls some doors, several calls at a time, and remembers what it has seen.
pub(crate) struct Caller {
    doors: Vec<Door>,
    /// Moves of each door, as it told.
    moves: Vec<u64>,
    next: usize,
    terms: Arc<Terms>,
    /// The last term that an answer came from.
    seen: u64,
    calls: u64,
    names: [MethodName; 2],
}

impl Caller {
    /// Calls of a turn, that are all in one mailbox.
    pub(crate) const CALLS: usize = 4;

    pub(crate) fn new(doors: Vec<Door>, terms: Arc<Terms>) -> Caller {
        let moves = vec![0; doors.len()];
        let names = [method("lockDoor"), method("unlockDoor")];
        Caller { doors, moves, next: 0, terms, seen: 0, calls: 0, names }
    }

    pub(crate) fn made(&self) -> u64 {
        self.calls
    }

    /// Lock and unlock a door, without waiting in between, and check every answer: whose it is, and that the door has
    /// counted exactly the calls that were made up to then.
    pub(crate) async fn turn(&mut self) {
        let place = self.next % self.doors.len();
        self.next += 1;
        let mut not_before = Vec::new();
        for call in 0..Caller::CALLS {
            not_before.push(self.seen.max(self.terms.current.load(Ordering::SeqCst)));
            self.doors[place].ask(&self.names[call % 2], "null").await;
        }
        for not_before in not_before {
            let answer = self.doors[place].answer().await;
            self.moves[place] += 1;
            self.calls += 1;
            let (version, count) = told(&answer);
            assert_eq!(count, self.moves[place], "{} has lost or repeated a call", self.doors[place].id);
            self.seen = self.terms.of(&version, not_before.max(self.seen));
        }
    }
}

fn told(answer: &Answer) -> (String, u64) {
    assert_eq!(answer.status, 200, "every call moves its door: {answer:?}");
    let body: Value = serde_json::from_str(&answer.payload).expect("JSON");
    let version = body["version"].as_str().expect("a version").to_owned();
    (version, body["count"].as_u64().expect("a count"))
}
