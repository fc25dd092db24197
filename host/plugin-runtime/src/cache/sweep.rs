//! Which entries go when there are too many. Knows no disk.

use std::time::SystemTime;

/// An entry as the disk shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// In bytes.
    pub(super) size: u64,
    /// When it was last written or read.
    pub(super) used: SystemTime,
}

/// The names of those that must go so that the rest has at most `room` bytes: the longest unused first. The entry named
/// `coming` is about to be replaced; it takes no room and does not go.
pub(super) fn surplus(mut entries: Vec<Entry>, coming: &str, room: u64) -> Vec<String> {
    entries.retain(|entry| entry.name != coming);
    // By name where the clock is too coarse, so that the order is always the same.
    entries.sort_by(|one, other| (one.used, &one.name).cmp(&(other.used, &other.name)));
    let mut left: u64 = entries.iter().map(|entry| entry.size).fold(0, u64::saturating_add);
    let mut names = Vec::new();
    for entry in entries {
        if left <= room {
            break;
        }
        left = left.saturating_sub(entry.size);
        names.push(entry.name);
    }
    names
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(name: &str, size: u64, used: u64) -> Entry {
        Entry { name: name.to_owned(), size, used: SystemTime::UNIX_EPOCH + Duration::from_secs(used) }
    }

    #[test]
    fn the_longest_unused_go_until_the_rest_fits() {
        let entries = || vec![entry("new", 30, 9), entry("old", 10, 1), entry("mid", 20, 5), entry("mad", 5, 5)];
        for (coming, room, gone) in [
            ("other", 65, &[][..]),
            ("other", 64, &["old"][..]),
            ("other", 55, &["old"]),
            ("other", 54, &["old", "mad"]),
            ("other", 29, &["old", "mad", "mid", "new"]),
            ("other", 0, &["old", "mad", "mid", "new"]),
            ("old", 55, &[]),
            ("old", 54, &["mad"]),
        ] {
            assert_eq!(surplus(entries(), coming, room), gone, "{room} bytes for all but {coming}");
        }
        assert!(surplus(Vec::new(), "", 0).is_empty());
    }
}
