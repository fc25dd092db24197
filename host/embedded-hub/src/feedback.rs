//! Feedback that waits for back ends, without I/O.
//!
//! A back end takes a batch, locked under a token, and completes it; what it abandons or forgets comes again. Feedback that
//! nobody takes in time is gone, as is the feedback of a deleted device.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use iothub_protocol::feedback::FeedbackRecord;
use iothub_protocol::id::DeviceId;

/// Records of one batch; Azure's number.
pub const BATCH: usize = 64;
/// How long feedback waits for a back end; Azure's default.
pub const RETENTION: Duration = Duration::from_secs(3600);
/// How long a batch that was taken stays out of others' sight; Azure's default.
pub const LOCK: Duration = Duration::from_secs(60);
/// How often a record may be abandoned; Azure's default.
pub const MAX_DELIVERY_COUNT: u32 = 10;
/// Most records that wait, so that a hub whose back end never asks does not grow; the oldest go first.
pub const MAX_RECORDS: usize = 10_000;

/// All feedback of a hub, in the order in which it came.
#[derive(Debug, Default)]
pub struct FeedbackQueue {
    records: BTreeMap<u64, Waiting>,
    last_sequence: u64,
}

#[derive(Debug)]
struct Waiting {
    record: FeedbackRecord,
    delivery_count: u32,
    lock: Option<(u128, Instant)>,
}

impl FeedbackQueue {
    /// Feedback as it was stored.
    pub fn restored(records: Vec<(u64, FeedbackRecord)>) -> FeedbackQueue {
        let waiting = |record| Waiting { record, delivery_count: 0, lock: None };
        let records: BTreeMap<_, _> =
            records.into_iter().map(|(sequence, record)| (sequence, waiting(record))).collect();
        let last_sequence = records.last_key_value().map_or(0, |(sequence, _)| *sequence);
        FeedbackQueue { records, last_sequence }
    }

    pub fn get(&self, sequence: u64) -> Option<&FeedbackRecord> {
        self.records.get(&sequence).map(|waiting| &waiting.record)
    }

    /// Everything that waits, taken or not.
    pub fn records(&self) -> impl Iterator<Item = (u64, &FeedbackRecord)> {
        self.records.iter().map(|(sequence, waiting)| (*sequence, &waiting.record))
    }

    /// Add a record; gives its number, and that of the one which had to go for it.
    pub fn push(&mut self, record: FeedbackRecord) -> (u64, Option<u64>) {
        let dropped = if self.records.len() < MAX_RECORDS { None } else { self.records.pop_first() };
        self.last_sequence += 1;
        self.records.insert(self.last_sequence, Waiting { record, delivery_count: 0, lock: None });
        (self.last_sequence, dropped.map(|(sequence, _)| sequence))
    }

    /// Lock the next batch under `token`; empty if there is nothing to take.
    pub fn receive(&mut self, now: Instant, token: u128) -> Vec<&FeedbackRecord> {
        let is_free = |waiting: &&mut Waiting| waiting.lock.is_none_or(|(_, until)| until <= now);
        let free = self.records.values_mut().filter(is_free).take(BATCH);
        free.map(|waiting| {
            waiting.lock = Some((token, now + LOCK));
            &waiting.record
        })
        .collect()
    }

    /// A batch was dealt with; the numbers of its records, none if the lock has run out.
    pub fn complete(&mut self, now: Instant, token: u128) -> Vec<u64> {
        self.extract(|waiting| waiting.is_locked(now, token))
    }

    /// A batch is given back. The numbers of the records that were abandoned too often and are gone now; `None` if the
    /// lock has run out.
    pub fn abandon(&mut self, now: Instant, token: u128) -> Option<Vec<u64>> {
        let mut any = false;
        for waiting in self.records.values_mut().filter(|waiting| waiting.is_locked(now, token)) {
            any = true;
            waiting.lock = None;
            waiting.delivery_count += 1;
        }
        any.then(|| self.extract(|waiting| waiting.delivery_count >= MAX_DELIVERY_COUNT))
    }

    /// The device is gone, and its feedback with it.
    pub fn forget(&mut self, device: &DeviceId) -> Vec<u64> {
        self.extract(|waiting| waiting.record.device_id == *device)
    }

    /// Drop what waited in vain.
    pub fn expire(&mut self, wall: DateTime<Utc>) -> Vec<u64> {
        let mut gone = Vec::new();
        while let Some(first) = self.records.first_entry()
            && first.get().record.time + RETENTION <= wall
        {
            gone.push(*first.key());
            first.remove();
        }
        gone
    }

    /// When [`FeedbackQueue::expire`] is next due.
    pub fn next_expiry(&self) -> Option<DateTime<Utc>> {
        self.records.first_key_value().map(|(_, waiting)| waiting.record.time + RETENTION)
    }

    fn extract(&mut self, is_meant: impl Fn(&Waiting) -> bool) -> Vec<u64> {
        let meant = self.records.iter().filter(|(_, waiting)| is_meant(waiting));
        let meant: Vec<u64> = meant.map(|(sequence, _)| *sequence).collect();
        for sequence in &meant {
            self.records.remove(sequence);
        }
        meant
    }
}

impl Waiting {
    fn is_locked(&self, now: Instant, token: u128) -> bool {
        self.lock.is_some_and(|(holder, until)| holder == token && until > now)
    }
}

#[cfg(test)]
mod tests {
    use iothub_protocol::feedback::MessageEnd;

    use super::*;

    fn record(number: i64, device: &str) -> FeedbackRecord {
        FeedbackRecord {
            message_id: Some(format!("m{number}")),
            time: DateTime::from_timestamp(number, 0).expect("a time"),
            ended: MessageEnd::Success,
            device_id: DeviceId::parse(device).expect("an id"),
            generation_id: 1,
        }
    }

    #[test]
    fn a_batch_is_locked_until_it_is_dealt_with_or_forgotten() {
        let (mut feedback, now) = (FeedbackQueue::default(), Instant::now());
        for number in 0..100 {
            feedback.push(record(number, "a"));
        }
        assert_eq!(feedback.receive(now, 1).len(), BATCH);
        assert_eq!(feedback.receive(now, 2).len(), 100 - BATCH);
        assert_eq!(feedback.receive(now, 3).len(), 0);
        assert_eq!(feedback.complete(now, 1).len(), BATCH);
        assert_eq!(feedback.complete(now, 1).len(), 0, "a second time");
        assert_eq!(feedback.complete(now + LOCK, 2).len(), 0, "too late");
        assert_eq!(feedback.receive(now + LOCK, 4)[0].message_id.as_deref(), Some("m64"));
        assert_eq!(feedback.complete(now + LOCK, 4).len(), 100 - BATCH);
        assert_eq!(feedback.records().count(), 0);
    }

    #[test]
    fn what_is_abandoned_comes_again_but_not_for_ever() {
        let (mut feedback, now) = (FeedbackQueue::default(), Instant::now());
        feedback.push(record(1, "a"));
        for _ in 1..MAX_DELIVERY_COUNT {
            assert_eq!(feedback.receive(now, 1).len(), 1);
            assert_eq!(feedback.abandon(now, 1), Some(vec![]));
        }
        assert_eq!(feedback.abandon(now, 1), None, "not taken");
        assert_eq!(feedback.receive(now, 1).len(), 1);
        assert_eq!(feedback.abandon(now, 1), Some(vec![1]));
        assert_eq!(feedback.receive(now, 1).len(), 0);
    }

    #[test]
    fn feedback_ends_with_its_device_by_the_clock_and_by_number() {
        let mut feedback = FeedbackQueue::default();
        for (number, device) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
            feedback.push(record(number, device));
        }
        assert_eq!(feedback.forget(&DeviceId::parse("a").expect("an id")), [1, 3]);
        let due = feedback.next_expiry().expect("two wait");
        assert_eq!(feedback.expire(due - Duration::from_secs(1)), [0; 0]);
        assert_eq!(feedback.expire(due), [2]);
        for number in 5..=MAX_RECORDS as i64 + 3 {
            assert_eq!(feedback.push(record(number, "a")).1, None);
        }
        assert_eq!(feedback.push(record(0, "a")).1, Some(4), "the oldest goes");

        let kept = feedback.records().map(|(sequence, record)| (sequence, record.clone())).collect();
        let mut restored = FeedbackQueue::restored(kept);
        let (last, _) = feedback.push(record(0, "a"));
        assert_eq!(restored.push(record(0, "a")).0, last, "numbers go on after a restart");
    }
}
