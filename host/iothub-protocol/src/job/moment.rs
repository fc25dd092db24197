//! Times in the field `latch`, for `#[serde(with = …)]`: as IoT Hub writes them, to the millisecond.

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

use crate::time;

#[expect(clippy::ref_option, reason = "serde hands it so")]
pub(super) fn serialize<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&time::format(*time)),
        None => serializer.serialize_none(),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let wrong =
        || D::Error::custom(format!("{text:?} is not an ISO 8601 time with a zone, such as 2026-11-24T08:40:04Z"));
    time::parse(&text).map(|time| Some(time.trunc_subsecs(3))).ok_or_else(wrong)
}
