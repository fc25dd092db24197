//! The days on which clocks are set, against a reference that walks through time.

use chrono::{Datelike as _, Timelike as _};
use proptest::prelude::*;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect(text)
}

/// So many occurrences after a moment, as local times with their offsets.
fn after(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let pattern = Pattern::parse(cron, zone).expect(cron);
    let next = |at: &DateTime<Utc>| pattern.next_after(*at);
    let found = std::iter::successors(next(&at(from)), next).take(count);
    found.map(|at| at.with_timezone(&pattern.zone).format("%d %H:%M%:z").to_string()).collect()
}

#[test]
fn a_local_time_that_a_day_has_not_is_the_first_moment_after_the_gap() {
    for (cron, zone, from, expected) in [
        // 02:00 to 03:00 on the 29th.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["29 03:00+02:00", "30 02:30+02:00"]),
        ("0 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["29 03:00+02:00", "30 02:00+02:00"]),
        ("0 3 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["29 03:00+02:00", "30 03:00+02:00"]),
        ("30 1 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["29 01:30+01:00", "30 01:30+02:00"]),
        // Four times within the gap are one occurrence.
        ("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["29 03:00+02:00", "30 02:00+02:00"]),
        ("59 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["29 03:00+02:00", "29 03:59+02:00"]),
        // 02:00 to 03:00 on the 8th.
        ("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", ["08 03:00-04:00", "09 02:30-04:00"]),
        // 02:00 to 02:30 on the 4th.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", ["04 02:30+11:00", "05 02:15+11:00"]),
        ("45 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", ["04 02:45+11:00", "05 02:45+11:00"]),
        // A whole day, the 30th, which was a Friday.
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", ["29 12:00-10:00", "31 00:00+14:00"]),
    ] {
        assert_eq!(after(cron, zone, from, 2), expected, "{cron} {zone}");
    }
}

#[test]
fn a_local_time_that_a_day_has_twice_counts_once_and_the_first_time() {
    for (cron, zone, from, expected) in [
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", ["25 02:30+02:00", "26 02:30+01:00"]),
        // As asked in the middle of the second time.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", ["26 02:30+01:00", "27 02:30+01:00"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", ["01 01:30-04:00", "02 01:30-05:00"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", ["05 01:45+11:00", "06 01:45+10:30"]),
        ("15 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", ["05 01:15+11:00", "06 01:15+10:30"]),
        ("*/30 2 25 * *", "Europe/Berlin", "2026-10-24T12:00:00Z", ["25 02:00+02:00", "25 02:30+02:00"]),
    ] {
        assert_eq!(after(cron, zone, from, 2), expected, "{cron} {zone}");
    }
}

#[test]
fn a_pattern_of_every_hour_goes_by_real_time() {
    let quarters = after("*/15 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", 9);
    let expected = ["02:00+02:00", "02:15+02:00", "02:30+02:00", "02:45+02:00", "02:00+01:00", "02:15+01:00"];
    assert_eq!(quarters[..6], expected.map(|time| format!("25 {time}")));
    let quarters = after("*/15 * * * *", "Europe/Berlin", "2026-03-29T00:15:00Z", 3);
    assert_eq!(quarters, ["29 01:30+01:00", "29 01:45+01:00", "29 03:00+02:00"]);
    let quarters = after("*/15 * * * *", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", 3);
    assert_eq!(quarters, ["04 01:45+10:30", "04 02:30+11:00", "04 02:45+11:00"]);
    // No two are closer to each other or further from each other than the pattern says.
    for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"] {
        let pattern = Pattern::parse("*/15 * * * *", zone).expect("a pattern");
        let mut last = at("2026-01-01T00:00:00Z");
        for _ in 0..4 * 24 * 366 {
            let next = pattern.next_after(last).expect("there is always one");
            assert_eq!(next - last, TimeDelta::minutes(15), "{zone} {last}");
            last = next;
        }
    }
}

#[test]
fn a_leap_day_comes_when_there_is_one() {
    let leap = |from| {
        let pattern = Pattern::parse("0 12 29 2 *", "UTC").expect("a pattern");
        pattern.next_after(at(from)).map(|at| at.year())
    };
    assert_eq!(leap("2026-11-24T00:00:00Z"), Some(2028));
    assert_eq!(leap("2028-02-29T12:00:00Z"), Some(2032));
    assert_eq!(leap("2096-02-29T12:00:00Z"), Some(2104), "2100 has none");
    assert_eq!(after("0 0 L 2 *", "UTC", "2027-01-01T00:00:00Z", 2), ["28 00:00+00:00", "29 00:00+00:00"]);
    // A leap day that is a Monday.
    let monday = Pattern::parse("0 0 29 2 +1", "UTC").expect("a pattern");
    assert_eq!(monday.next_after(at("2026-11-24T00:00:00Z")).map(|at| at.year()), Some(2044));
}

#[test]
fn what_never_comes_has_no_occurrence_and_what_is_no_pattern_is_refused() {
    for never in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * * 30 2 *"] {
        assert_eq!(Pattern::parse(never, "UTC").expect(never).next_after(at("2026-11-24T00:00:00Z")), None, "{never}");
    }
    for wrong in ["", "* * * *", "* * * * * * 2026", "61 * * * *", "@reboot", "0 2 * * mo", &"1,".repeat(300)] {
        assert!(Pattern::parse(wrong, "UTC").is_err(), "{wrong}");
    }
    for wrong in ["", "Mars/Phobos", "europe/berlin", "+01:00"] {
        let refused = Pattern::parse("* * * * *", wrong).expect_err(wrong);
        assert!(refused.contains("is no time zone of the IANA database"), "{refused}");
    }
}

#[test]
fn seconds_are_allowed_and_fractions_do_not_matter() {
    let pattern = Pattern::parse("*/20 * * * * *", "UTC").expect("a pattern");
    let next = |from| pattern.next_after(at(from)).expect("one").second();
    assert_eq!(next("2026-11-24T00:00:19.999999999Z"), 20);
    assert_eq!(next("2026-11-24T00:00:20Z"), 40);
    assert_eq!(pattern.next_from(at("2026-11-24T00:00:20Z")), Some(at("2026-11-24T00:00:20Z")));
    assert_eq!(pattern.next_from(at("2026-11-24T00:00:20.5Z")), Some(at("2026-11-24T00:00:40Z")));
}

#[test]
fn the_last_of_very_many_are_found_without_going_over_all() {
    let pattern = Pattern::parse("* * * * * *", "Europe/Berlin").expect("a pattern");
    let (from, until) = (at("1990-01-01T00:00:00Z"), at("2026-11-24T00:00:00Z"));
    let last = pattern.last_up_to(from, until, 24);
    let expected = (0..24).rev().map(|seconds| until - TimeDelta::seconds(seconds)).collect::<Vec<_>>();
    assert_eq!(last, expected);
    let yearly = Pattern::parse("0 0 1 1 *", "UTC").expect("a pattern");
    let years = yearly.last_up_to(from, until, 3).into_iter().map(|at| at.year()).collect::<Vec<_>>();
    assert_eq!(years, [2024, 2025, 2026]);
    assert_eq!(yearly.last_up_to(from, until, 100).len(), 36, "the first one is not after the bound");
    assert_eq!(yearly.last_up_to(until, from, 3).len(), 0);
}

/// The occurrences of a pattern after one moment and up to another, minute by minute: the same rules, told the plain
/// way.
pub(crate) fn reference(pattern: &Pattern, after: DateTime<Utc>, until: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let zone = pattern.zone;
    let matches = |local: &NaiveDateTime| pattern.cron.is_time_matching(local).expect("a time");
    let minute = TimeDelta::minutes(1);
    let minutes = std::iter::successors(Some(after), |at| Some(*at + minute)).take_while(|at| *at <= until).skip(1);
    if pattern.is_steady {
        return minutes.filter(|at| matches(&at.with_timezone(&zone).naive_local())).collect();
    }
    // For each moment, the local times that it has or, after a gap, those that the gap took; each is seen once.
    let mut seen = after.with_timezone(&zone).naive_local() - TimeDelta::hours(3);
    let mut is_early = true;
    let mut found = Vec::new();
    for at in std::iter::successors(Some(after - TimeDelta::hours(3)), |at| Some(*at + minute)) {
        if at > until {
            return found;
        }
        let local = at.with_timezone(&zone).naive_local();
        if is_early {
            (seen, is_early) = (local - minute, false);
        }
        let mut is_due = false;
        while seen < local {
            seen += minute;
            is_due |= matches(&seen);
        }
        if is_due && at > after {
            found.push(at);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn occurrences_are_those_of_a_walk_through_every_minute(
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns",
            "Africa/Casablanca", "Antarctica/Troll", "Pacific/Chatham", "America/Sao_Paulo",
        ]),
        minutes in prop::sample::select(vec!["0", "*/15", "30", "7-50/13", "*", "0,45"]),
        hours in prop::sample::select(vec!["*", "*/6", "2", "1-3", "0", "23,3", "2,1"]),
        days in prop::sample::select(vec!["* * *", "* * 1-5", "*/2 * *", "1,29,L * *", "* * 7"]),
        // Around a change of the clocks, mostly.
        month in prop::sample::select(vec![
            "2026-03-07", "2026-03-28", "2026-04-04", "2026-10-03", "2026-10-24", "2026-10-31", "2028-02-28",
            "2026-02-14", "2026-03-21", "2026-12-30",
        ]),
        offset in 0_i64..3000,
    ) {
        let pattern = Pattern::parse(&format!("{minutes} {hours} {days}"), zone).expect("a pattern");
        let from = at(&format!("{month}T00:00:00Z")) + TimeDelta::minutes(offset - 600);
        let until = from + TimeDelta::days(2);
        let mut found = Vec::new();
        let mut last = from;
        while let Some(next) = pattern.next_after(last).filter(|next| *next <= until) {
            found.push(next);
            last = next;
        }
        prop_assert_eq!(found, reference(&pattern, from, until));
    }
}
