//! The throttles and the daily quota of a tier, together: what may go, and what it costs. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDate, Utc};
use iothub_protocol::error::{ErrorCode, HubError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::hub::Now;
use iothub_protocol::quota::limiter::{Limiter, Shaping, Verdict};
use iothub_protocol::quota::tier::{Class, Sku};

/// Jobs are paced rather than refused: a second's worth goes at once, the rest as the rate has it.
const JOB_PACE: Shaping = Shaping { burst: Duration::from_secs(1), queue: Duration::ZERO };

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Now,
    /// Not before this time.
    At(Instant),
    /// Too much of its class; there is room after so long.
    Throttled {
        class: Class,
        retry_after: Duration,
    },
    /// The day's messages are used up.
    QuotaSpent {
        used: u64,
        limit: u64,
    },
}

/// The count of a day, as it is kept over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spent {
    /// In UTC.
    pub day: NaiveDate,
    pub messages: u64,
}

/// All throttles of a hub, and its quota.
#[derive(Debug)]
pub struct Meter {
    sku: Sku,
    limiters: BTreeMap<Class, Limiter>,
    spent: Spent,
    delayed: BTreeMap<Class, u64>,
    refused: BTreeMap<Class, u64>,
}

impl Meter {
    /// `spent` is what the hub remembers; of an earlier day it counts for nothing.
    pub fn new(sku: Sku, shaping: Shaping, now: DateTime<Utc>, spent: Option<Spent>) -> Meter {
        let limiter = |class| {
            let shaping = if class == Class::JobDevices { JOB_PACE } else { shaping };
            (class, Limiter::new(sku.rate(class), shaping))
        };
        let spent = spent.unwrap_or(Spent { day: now.date_naive(), messages: 0 });
        let limiters = Class::ALL.into_iter().map(limiter).collect();
        let mut meter = Meter { sku, limiters, spent, delayed: BTreeMap::new(), refused: BTreeMap::new() };
        meter.turn_day(now);
        meter
    }

    pub fn sku(&self) -> Sku {
        self.sku
    }

    /// The day's count.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Judge something that takes `amount` of its class's rate. A connection is let in though the quota be spent: it is
    /// cut at the first message, as devices have seen it at Azure.
    pub fn admit(&mut self, now: Now, class: Class, amount: u64) -> Admission {
        self.turn_day(now.wall);
        if class != Class::Connections && self.spent.messages >= self.sku.daily_messages() {
            *self.refused.entry(class).or_default() += 1;
            return Admission::QuotaSpent { used: self.spent.messages, limit: self.sku.daily_messages() };
        }
        let Some(limiter) = self.limiters.get_mut(&class) else { return Admission::Now };
        if class == Class::JobDevices {
            let at = limiter.pace(now.steady, amount);
            return if at > now.steady { Admission::At(at) } else { Admission::Now };
        }
        match limiter.admit(now.steady, amount) {
            Verdict::Now => Admission::Now,
            Verdict::At(at) => {
                *self.delayed.entry(class).or_default() += 1;
                Admission::At(at)
            }
            Verdict::Refused { retry_after } => {
                *self.refused.entry(class).or_default() += 1;
                Admission::Throttled { class, retry_after }
            }
        }
    }

    /// Count something of so many bytes against the day. Even nothing counts as a message.
    pub fn charge(&mut self, now: DateTime<Utc>, bytes: u64) {
        self.turn_day(now);
        let messages = bytes.div_ceil(self.sku.message_block()).max(1);
        self.spent.messages = self.spent.messages.saturating_add(messages);
    }

    /// For the operator.
    pub fn to_json(&mut self, now: DateTime<Utc>) -> Value {
        self.turn_day(now);
        let counts = |counts: &BTreeMap<Class, u64>| -> Value {
            counts.iter().map(|(class, count)| (class.name().to_owned(), json!(count))).collect()
        };
        json!({
            "tier": self.sku.tier().name(),
            "units": self.sku.units(),
            "messagesToday": self.spent.messages,
            "dailyQuota": self.sku.daily_messages(),
            "delayed": counts(&self.delayed),
            "refused": counts(&self.refused),
        })
    }

    /// The quota is new at midnight, UTC. A clock that was set back changes nothing.
    fn turn_day(&mut self, now: DateTime<Utc>) {
        let today = now.date_naive();
        if today > self.spent.day {
            self.spent = Spent { day: today, messages: 0 };
        }
    }
}

impl Admission {
    /// What the caller is told, if the operation does not go.
    pub fn refusal(self) -> Option<HubError> {
        match self {
            Admission::Now | Admission::At(_) => None,
            Admission::Throttled { class, .. } => {
                let text = format!(
                    "Too many requests: the hub's throttle for {} is exceeded. Back off and retry.",
                    class.name()
                );
                Some(HubError::new(ErrorCode::ThrottlingException, text))
            }
            Admission::QuotaSpent { used, limit } => {
                let text = format!(
                    "Total number of messages on IotHub exceeded the allocated quota. Max allowed message count : \
                     '{limit}', current message count : '{used}'. Send and Receive operations are blocked for this hub \
                     until the next UTC day. Consider increasing the units for this hub to increase the quota."
                );
                Some(HubError::new(ErrorCode::IotHubQuotaExceeded, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iothub_protocol::quota::tier::Tier;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn free(now: &str, spent: Option<Spent>) -> Meter {
        Meter::new(Sku::new(Tier::F1, 1).expect("a size"), Shaping::default(), at(now), spent)
    }

    fn now(wall: &str) -> Now {
        Now { wall: at(wall), steady: Instant::now() }
    }

    #[test]
    fn the_quota_ends_at_midnight() {
        let mut meter = free("2026-11-24T23:00:00Z", None);
        for _ in 0..7999 {
            meter.charge(at("2026-11-24T23:00:00Z"), 512);
        }
        assert_eq!(meter.admit(now("2026-11-24T23:59:59Z"), Class::TwinReads, 1), Admission::Now);
        meter.charge(at("2026-11-24T23:59:59Z"), 513);
        let spent = Admission::QuotaSpent { used: 8001, limit: 8000 };
        assert_eq!(meter.admit(now("2026-11-24T23:59:59Z"), Class::TwinReads, 1), spent);
        let error = spent.refusal().expect("a refusal");
        assert_eq!(error.code, ErrorCode::IotHubQuotaExceeded);
        assert!(error.message.contains("'8000'") && error.message.contains("'8001'"), "{error}");
        let connect = meter.admit(now("2026-11-24T23:59:59Z"), Class::Connections, 1);
        assert_eq!(connect, Admission::Now, "it is cut later");
        assert_eq!(meter.admit(now("2026-11-25T00:00:00Z"), Class::TwinReads, 1), Admission::Now);
        assert_eq!(meter.spent().messages, 0);
        meter.charge(at("2026-11-25T00:00:01Z"), 0);
        meter.charge(at("2026-11-24T12:00:00Z"), 1);
        assert_eq!(meter.spent().messages, 2, "a clock that is set back gives no new day");
    }

    #[test]
    fn the_count_goes_on_after_a_restart_on_the_same_day() {
        let mut meter = free("2026-11-24T10:00:00Z", None);
        (0..10).for_each(|_| meter.charge(at("2026-11-24T10:00:00Z"), 1));
        let kept = serde_json::to_string(&meter.spent()).expect("JSON");
        assert_eq!(kept, r#"{"day":"2026-11-24","messages":10}"#);
        let kept: Spent = serde_json::from_str(&kept).expect("a count");
        assert_eq!(free("2026-11-24T20:00:00Z", Some(kept)).spent().messages, 10);
        assert_eq!(free("2026-11-25T00:00:00Z", Some(kept)).spent().messages, 0);
    }

    #[test]
    fn each_class_is_limited_by_itself_and_jobs_are_paced() {
        let wall = "2026-11-24T10:00:00Z";
        let start = Instant::now();
        let now = Now { wall: at(wall), steady: start };
        let mut meter = free(wall, None);
        (0..24).for_each(|_| _ = meter.admit(now, Class::Queries, 1));
        let refused = meter.admit(now, Class::Queries, 1);
        assert_eq!(refused.refusal().map(|error| error.code), Some(ErrorCode::ThrottlingException), "{refused:?}");
        assert_eq!(meter.admit(now, Class::Registry, 1), Admission::Now);
        let paced: Vec<_> = (0..40).map(|_| meter.admit(now, Class::JobDevices, 1)).collect();
        assert!(paced[..10].iter().all(|admission| *admission == Admission::Now));
        assert_eq!(paced[39], Admission::At(start + Duration::from_secs(3)));
        let shown = meter.to_json(at(wall));
        assert_eq!((&shown["delayed"]["queries"], &shown["refused"]["queries"]), (&json!(3), &json!(2)), "{shown}");
    }
}
