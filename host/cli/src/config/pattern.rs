//! Many device ids in one text: `door-{0001..1000}`.

use iothub_protocol::id::DeviceId;

enum Part<'a> {
    Text(&'a str),
    /// Filled with zeroes up to `width`.
    Numbers {
        first: u64,
        last: u64,
        width: usize,
    },
}

/// The ids that `pattern` stands for, in order: each range in braces is counted through, the last one fastest.
///
/// # Errors
/// Says what is wrong with the pattern, or that it stands for more than `limit` ids.
pub(super) fn expand(pattern: &str, limit: usize) -> Result<Vec<DeviceId>, String> {
    let parts = parts(pattern)?;
    let sizes = parts.iter().map(|part| match part {
        Part::Text(_) => 1,
        Part::Numbers { first, last, .. } => last - first + 1,
    });
    let count = sizes.fold(1_u64, u64::saturating_mul);
    if count > limit as u64 {
        return Err(format!("the pattern stands for {count} devices; there may be {limit}"));
    }
    (0..count).map(|position| parsed(&text_at(&parts, position))).collect()
}

fn parsed(id: &str) -> Result<DeviceId, String> {
    DeviceId::parse(id).map_err(|error| error.to_string())
}

fn text_at(parts: &[Part<'_>], mut position: u64) -> String {
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts.iter().rev() {
        texts.push(match part {
            Part::Text(text) => (*text).to_owned(),
            Part::Numbers { first, last, width } => {
                let size = last - first + 1;
                let number = first + position % size;
                position /= size;
                format!("{number:0width$}")
            }
        });
    }
    texts.reverse();
    texts.concat()
}

fn parts(pattern: &str) -> Result<Vec<Part<'_>>, String> {
    let (mut parts, mut rest) = (Vec::new(), pattern);
    while let Some((text, after)) = rest.split_once('{') {
        let (range, after) =
            after.split_once('}').ok_or("a brace is not closed; a range is written {0001..1000}".to_owned())?;
        parts.extend([Part::Text(text), numbers(range)?]);
        rest = after;
    }
    parts.push(Part::Text(rest));
    let stray = parts.iter().any(|part| matches!(part, Part::Text(text) if text.contains('}')));
    if stray { Err("a brace is not opened; a range is written {0001..1000}".to_owned()) } else { Ok(parts) }
}

/// As shells have it: a number that begins with a zero makes all of them as long as the longest.
fn numbers(range: &str) -> Result<Part<'static>, String> {
    let wrong = || "in braces stands a range of whole numbers, as {0001..1000}".to_owned();
    let (first, last) = range.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| {
        let plain = (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u64>().ok()).flatten().ok_or_else(wrong)
    };
    let padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err("a range begins with its smaller number, as {0001..1000}".to_owned());
    }
    Ok(Part::Numbers { first, last, width })
}

/// More than any fleet needs, and far below what a `u64` can count.
const MAX_DIGITS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, expected: Result<&[&str], &str>) {
        let found = expand(pattern, 1000);
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found.iter().map(DeviceId::as_str).collect::<Vec<_>>(), expected, "{pattern}");
            }
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{pattern}: {found}"),
            (found, expected) => panic!("{pattern}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn ranges_are_counted_through() {
        check("door-{0009..0011}", Ok(&["door-0009", "door-0010", "door-0011"]));
        check("door-{9..11}", Ok(&["door-9", "door-10", "door-11"]));
        check(
            "door-{08..100}-x",
            Ok(&(8..=100)
                .map(|n| format!("door-{n:03}-x"))
                .collect::<Vec<_>>()
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()),
        );
        check("{0..1}{a}", Err("a range of whole numbers"));
        check("{0..1}-{1..2}", Ok(&["0-1", "0-2", "1-1", "1-2"]));
        check("d{0..0}", Ok(&["d0"]));
        check("gate", Ok(&["gate"]));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        check("door-{1..", Err("not closed"));
        check("door-1..3}", Err("not opened"));
        check("door-{{1..3}}", Err("a range of whole numbers"));
        check("door-{1-3}", Err("a range of whole numbers"));
        check("door-{-1..3}", Err("a range of whole numbers"));
        check("door-{1..3..2}", Err("a range of whole numbers"));
        check("door-{1..9999999999999}", Err("a range of whole numbers"));
        check("door-{3..1}", Err("begins with its smaller number"));
        check("door {1..3}", Err("a device id contains ' '"));
        check("", Err("a device id is empty"));
        check("{1..1001}", Err("stands for 1001 devices; there may be 1000"));
        check("{1..999999999999}{1..999999999999}", Err("there may be 1000"));
    }
}
