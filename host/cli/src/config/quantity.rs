//! Durations and sizes as people write them: a whole number with a unit.

use std::time::Duration;

/// The largest unit first.
const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// `"5s"`. None if `text` is no duration.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    quantity(text, &DURATIONS).map(Duration::from_millis)
}

/// `"64KiB"`, in bytes. None if `text` is no size.
pub(super) fn size(text: &str) -> Option<u64> {
    quantity(text, &SIZES)
}

/// In the largest unit that leaves a whole number.
pub(crate) fn shown_duration(duration: Duration) -> String {
    shown(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATIONS)
}

/// In the largest unit that leaves a whole number.
pub(crate) fn shown_size(bytes: u64) -> String {
    shown(bytes, &SIZES)
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, size) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*size)
}

fn shown(amount: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, size): &&(&str, u64)| amount > 0 && amount.is_multiple_of(*size);
    let (name, size) = units.iter().find(fits).or(units.last()).expect("there are units");
    format!("{}{name}", amount / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_with_a_unit() {
        for (text, expected) in [
            ("5s", Some(5000)),
            ("5 s", Some(5000)),
            ("250ms", Some(250)),
            ("2m", Some(120_000)),
            ("366d", Some(31_622_400_000)),
            ("0s", Some(0)),
            ("5", None),
            ("s", None),
            ("", None),
            ("1.5s", None),
            ("-5s", None),
            ("5S", None),
            ("5 sec", None),
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

    proptest::proptest! {
        #[test]
        fn what_is_shown_can_be_written(amount in 0..u64::MAX / 2) {
            proptest::prop_assert_eq!(size(&shown_size(amount)), Some(amount));
            let time = Duration::from_millis(amount);
            proptest::prop_assert_eq!(duration(&shown_duration(time)), Some(time));
        }
    }
}
