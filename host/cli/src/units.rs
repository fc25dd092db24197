//! Durations and sizes as people write them: whole numbers with units.

use std::time::Duration;

/// A unit's name and how many of the smallest it is; the largest unit first.
type Units = [(&'static str, u64)];

const DURATIONS: &Units = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
const SIZES: &Units = &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// `90s`, `250ms` or `1h 30m`, the larger units first. None if `text` is no duration.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    amount(text, DURATIONS).map(Duration::from_millis)
}

/// `64KiB`, in bytes. None if `text` is no size.
pub(crate) fn size(text: &str) -> Option<u64> {
    amount(text, SIZES)
}

/// As [`duration`] reads it; what is below a millisecond is left out.
pub(crate) fn shown_duration(duration: Duration) -> String {
    shown(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), DURATIONS).unwrap_or_else(|| "0s".to_owned())
}

/// As [`size`] reads it.
pub(crate) fn shown_size(bytes: u64) -> String {
    shown(bytes, SIZES).unwrap_or_else(|| "0B".to_owned())
}

/// A duration as an argument.
///
/// # Errors
/// Says how durations are written.
pub(crate) fn duration_argument(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "a duration is whole numbers with d, h, m, s or ms, such as 90s or 1h 30m".to_owned())
}

/// The sum of the parts, each in a smaller unit than the one before.
fn amount(text: &str, mut units: &Units) -> Option<u64> {
    let (mut rest, mut sum) = (text.trim(), None);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (name, after) = after.split_at(letters);
        let place = units.iter().position(|(known, _)| *known == name)?;
        let part = number.parse::<u64>().ok()?.checked_mul(units[place].1)?;
        sum = Some(sum.unwrap_or(0_u64).checked_add(part)?);
        (rest, units) = (after.trim_start(), &units[place + 1..]);
    }
    sum
}

/// None of nothing, which has no unit.
fn shown(mut amount: u64, units: &Units) -> Option<String> {
    let mut parts = Vec::new();
    for (name, unit) in units {
        if amount >= *unit {
            parts.push(format!("{}{name}", amount / unit));
            amount %= unit;
        }
    }
    (!parts.is_empty()).then(|| parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_with_units() {
        for (text, expected) in [
            ("5s", Some(5000)),
            ("5 s", Some(5000)),
            ("250ms", Some(250)),
            ("2m", Some(120_000)),
            ("1h 30m", Some(5_400_000)),
            ("1h30m", Some(5_400_000)),
            ("2d 1ms", Some(172_800_001)),
            ("0s", Some(0)),
            ("5", None),
            ("s", None),
            ("", None),
            ("1.5s", None),
            ("-5s", None),
            ("5S", None),
            ("5 sec", None),
            ("1m 1h", None),
            ("1s 1s", None),
            ("1week", None),
            ("99999999999999999999s", None),
            ("9999999999999999999d", None),
        ] {
            assert_eq!(duration(text).map(|duration| duration.as_millis()), expected, "{text}");
        }
        for (text, expected) in [
            ("64KiB", Some(65_536)),
            ("1GiB", Some(1 << 30)),
            ("7B", Some(7)),
            ("7", None),
            ("7KB", None),
            ("7kib", None),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
    }

    #[test]
    fn the_largest_units_first() {
        let shown = |milliseconds| shown_duration(Duration::from_millis(milliseconds));
        assert_eq!([shown(0), shown(90_000), shown(5_400_000)], ["0s", "1m 30s", "1h 30m"]);
        assert_eq!([shown_size(0), shown_size(65_536), shown_size(1025)], ["0B", "64KiB", "1KiB 1B"]);
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_can_be_written(amount in 0..u64::MAX / 2) {
            proptest::prop_assert_eq!(size(&shown_size(amount)), Some(amount));
            let time = Duration::from_millis(amount);
            proptest::prop_assert_eq!(duration(&shown_duration(time)), Some(time));
        }
    }
}
