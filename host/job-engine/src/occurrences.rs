//! When a pattern of cron falls due in a time zone.
//!
//! A clock on the wall can leave out an hour and show another one twice. What that means depends on the pattern:
//! - One that names hours of the day (`0 2 * * *`, `0 */6 * * *`) falls due once for each local time that it names. One
//!   that the day does not have counts as the first moment after the gap, and one that the day has twice falls due the
//!   first time. Several times within one gap are one occurrence.
//! - One that takes every hour (`*/15 * * * *`) goes by real time: it falls due at every moment whose local time it
//!   matches, through a repeated hour as well, and loses nothing to a gap.
//!
//! Whatever is asked for comes strictly after a given moment, so a clock that is set back makes nothing fall due twice.

use std::collections::VecDeque;

use chrono::offset::LocalResult;
use chrono::{DateTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::{GapInfo, Tz};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// How far ahead to look: dates and days of the week come together again within 40 years, those of a leap day as well.
const HORIZON: TimeDelta = TimeDelta::days(41 * 366);
/// How far apart two changes of a zone's offset are at least.
const STEADY: TimeDelta = TimeDelta::days(7);
/// Longest pattern, in characters; sixty values in each of the fields fit.
const MAX_PATTERN: usize = 512;
const HOURS_OF_A_DAY: usize = 24;

/// A pattern of cron in its time zone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pattern {
    cron: Cron,
    zone: Tz,
    /// It takes every hour, and so goes by real time.
    is_steady: bool,
}

impl Pattern {
    /// Five fields, or six with seconds before them, and a name of the IANA database.
    ///
    /// # Errors
    /// Says what is wrong, for people.
    pub(crate) fn parse(cron: &str, zone: &str) -> Result<Pattern, String> {
        let zone = parse_zone(zone)?;
        if cron.chars().count() > MAX_PATTERN {
            return Err(format!("cron is longer than {MAX_PATTERN} characters"));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(cron).map_err(|error| {
            format!("cron {cron:?} is no pattern such as \"0 2 * * 1-5\", or with seconds \"30 0 2 * * 1-5\": {error}")
        })?;
        let is_steady = cron.pattern.hours.values().len() == HOURS_OF_A_DAY;
        Ok(Pattern { cron, zone, is_steady })
    }

    /// The first occurrence strictly after that; `None` if there is none within 40 years.
    pub(crate) fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let next = if self.is_steady { self.next_moment(after) } else { self.next_named(after) };
        next.filter(|next| *next - after <= HORIZON)
    }

    /// The first occurrence at that moment or after it.
    pub(crate) fn next_from(&self, from: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.next_after(from - TimeDelta::nanoseconds(1))
    }

    /// The last occurrences after one moment and up to another, `most` at most, the oldest first.
    pub(crate) fn last_up_to(
        &self,
        after: DateTime<Utc>,
        until: DateTime<Utc>,
        most: usize,
    ) -> VecDeque<DateTime<Utc>> {
        // All of them may be very many, so they are looked for from ever further back.
        let mut back = TimeDelta::minutes(1);
        loop {
            let from = (until - back).max(after);
            let found = self.last_between(from, until, most);
            if found.len() >= most || from <= after {
                return found;
            }
            back = back * 4;
        }
    }

    fn last_between(&self, after: DateTime<Utc>, until: DateTime<Utc>, most: usize) -> VecDeque<DateTime<Utc>> {
        let mut found = VecDeque::new();
        let mut at = after;
        while let Some(next) = self.next_after(at).filter(|next| *next <= until) {
            found.push_back(next);
            if found.len() > most {
                found.pop_front();
            }
            at = next;
        }
        found
    }

    /// By real time.
    fn next_moment(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (mut from, mut is_inclusive) = (after, false);
        let last = after + HORIZON;
        while from <= last {
            let offset = self.offset(from);
            let local = from.naive_utc() + offset;
            let next = self.cron.find_next_occurrence(&local, is_inclusive).ok()?.and_utc() - offset;
            match self.change_within(from, next.min(last)) {
                None => return Some(next),
                Some(change) => (from, is_inclusive) = (change, true),
            }
        }
        None
    }

    /// By the local times that it names.
    fn next_named(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut local = after.naive_utc() + self.offset(after);
        // In a repeated hour those of its first time are behind; there are not more of them than it has seconds.
        loop {
            local = self.cron.find_next_occurrence(&local, false).ok()?;
            let next = self.moment(local)?;
            if next > after {
                return Some(next);
            }
        }
    }

    /// When the local time is, or what counts for it.
    fn moment(&self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        match self.zone.from_local_datetime(&local) {
            LocalResult::Single(moment) | LocalResult::Ambiguous(moment, _) => Some(moment.to_utc()),
            LocalResult::None => GapInfo::new(&local, &self.zone)?.end.map(|end| end.to_utc()),
        }
    }

    /// The first moment after `from` and up to `to` with another offset than `from` has.
    fn change_within(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let offset = self.offset(from);
        let mut same = from;
        loop {
            let probe = (same + STEADY).min(to);
            if self.offset(probe) != offset {
                // Whole seconds, as offsets change at those.
                let (mut before, mut after) = (same.timestamp(), probe.timestamp());
                while after - before > 1 {
                    let middle = before + (after - before) / 2;
                    match DateTime::from_timestamp(middle, 0)? {
                        moment if self.offset(moment) == offset => before = middle,
                        _ => after = middle,
                    }
                }
                return DateTime::from_timestamp(after, 0);
            }
            if probe == to {
                return None;
            }
            same = probe;
        }
    }

    fn offset(&self, at: DateTime<Utc>) -> TimeDelta {
        TimeDelta::seconds(self.zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc().into())
    }
}

/// A zone by its name in the IANA database, such as `Europe/Berlin`.
///
/// # Errors
/// Says so, for people.
pub(crate) fn parse_zone(name: &str) -> Result<Tz, String> {
    name.parse().map_err(|_| format!("{name:?} is no time zone of the IANA database, such as Europe/Berlin or UTC"))
}

#[cfg(test)]
pub(crate) mod tests;
