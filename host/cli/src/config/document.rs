//! Reads a TOML document by hand, so that every mistake is found at once and is told with its place.
//!
//! A [`Section`] is a table; what nobody asked it for is a mistake when it is left. An [`Entry`] is a value that answers
//! none once it has told what is wrong with it. No message repeats a value: it may be a secret in the wrong place.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, Position};
use super::sources::Sources;
use crate::units;

type Value<'a> = Spanned<DeValue<'a>>;

/// One reading of one text.
pub(super) struct Reader<'a> {
    text: &'a str,
    pub(super) sources: &'a Sources<'a>,
    mistakes: RefCell<Vec<Mistake>>,
    /// What is odd, and yet may be meant.
    remarks: RefCell<Vec<Mistake>>,
}

/// A table.
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    /// As `plugins.lock-door.limits`; empty for the whole document.
    name: String,
    table: &'a DeTable<'a>,
    asked: RefCell<BTreeSet<&'static str>>,
}

/// A value and what it is called.
#[derive(Clone)]
pub(super) struct Entry<'a> {
    reader: &'a Reader<'a>,
    pub(super) name: String,
    value: &'a Value<'a>,
}

/// A key that the user has chosen, and its value.
pub(super) struct Named<'a> {
    pub(super) key: &'a str,
    pub(super) position: Position,
    pub(super) entry: Entry<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, sources: &'a Sources<'a>) -> Reader<'a> {
        Reader { text, sources, mistakes: RefCell::default(), remarks: RefCell::default() }
    }

    /// Read `document`, which was parsed from the text with these `errors`.
    pub(super) fn document<T>(
        &'a self,
        document: &'a DeTable<'a>,
        errors: &[toml::de::Error],
        read: impl FnOnce(&Section<'a>) -> T,
    ) -> T {
        for offset in keys_in(self.text) {
            self.mistake(offset..offset, HOLDS_KEY);
        }
        let section = Section { reader: self, name: String::new(), table: document, asked: RefCell::default() };
        let result = read(&section);
        section.finish();
        // What could not be parsed makes little sense; what was made of it, none.
        let broken: Vec<Mistake> = errors.iter().map(|error| self.syntax(error)).collect();
        let lines: BTreeSet<_> = broken.iter().map(|mistake| mistake.position.line).collect();
        let mut mistakes = self.mistakes.borrow_mut();
        mistakes.retain(|mistake| !lines.contains(&mistake.position.line) || mistake.text == HOLDS_KEY);
        mistakes.extend(broken);
        result
    }

    /// What was found, in order: mistakes and remarks.
    pub(super) fn found(&self) -> (Vec<Mistake>, Vec<Mistake>) {
        let sorted = |found: &RefCell<Vec<Mistake>>| {
            let mut found = found.take();
            found.sort();
            found.dedup();
            found
        };
        (sorted(&self.mistakes), sorted(&self.remarks))
    }

    fn syntax(&self, error: &toml::de::Error) -> Mistake {
        let offset = error.span().map_or(self.text.len(), |span| span.start);
        Mistake { position: Position::of(self.text, offset), text: format!("this is not TOML: {}", error.message()) }
    }

    fn mistake(&self, span: Range<usize>, text: impl Into<String>) {
        let position = Position::of(self.text, span.start);
        self.mistakes.borrow_mut().push(Mistake { position, text: text.into() });
    }
}

impl<'a> Section<'a> {
    /// The value of `key`, if it is there.
    pub(super) fn get(&self, key: &'static str) -> Option<Entry<'a>> {
        self.asked.borrow_mut().insert(key);
        let value = self.table.get(key)?;
        Some(Entry { reader: self.reader, name: self.path(key), value })
    }

    /// Every value, where keys are the user's.
    pub(super) fn all(&self) -> impl Iterator<Item = Named<'a>> {
        self.table.iter().map(|(key, value)| {
            let name: &'a str = key.get_ref();
            let entry = Entry { reader: self.reader, name: self.path(name), value };
            Named { key: name, position: Position::of(self.reader.text, key.span().start), entry }
        })
    }

    /// Put a duration into `target`, if it stands here and is in `range`.
    pub(super) fn duration(&self, key: &'static str, range: RangeInclusive<Duration>, target: &mut Duration) {
        put(target, self.get(key).and_then(|entry| entry.duration(range)));
    }

    /// Put a size in bytes into `target`, if it stands here and is in `range`.
    pub(super) fn size<N: TryFrom<u64>>(&self, key: &'static str, range: RangeInclusive<u64>, target: &mut N) {
        let size = self.get(key).and_then(|entry| entry.size(range));
        put(target, size.and_then(|size| N::try_from(size).ok()));
    }

    /// Put a number into `target`, if it stands here and is in `range`.
    pub(super) fn count<N: TryFrom<u64>>(&self, key: &'static str, range: RangeInclusive<u64>, target: &mut N) {
        let count = self.get(key).and_then(|entry| entry.count(range));
        put(target, count.and_then(|count| N::try_from(count).ok()));
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// What nobody asked for is unknown.
    fn finish(self) {
        let asked = self.asked.into_inner();
        for key in self.table.keys().filter(|key| !asked.contains(&**key.get_ref())) {
            let place = if self.name.is_empty() { String::new() } else { format!(" in {}", self.name) };
            let hint = match nearest(key.get_ref(), asked.iter().copied()) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("there are {}", asked.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            self.reader.mistake(key.span(), format!("unknown key{place}; {hint}"));
        }
    }
}

impl Named<'_> {
    /// The key is wrong.
    pub(super) fn mistake(&self, text: impl AsRef<str>) {
        let text = format!("{}: {}", self.entry.name, text.as_ref());
        self.entry.reader.mistakes.borrow_mut().push(Mistake { position: self.position, text });
    }
}

impl<'a> Entry<'a> {
    pub(super) fn sources(&self) -> &'a Sources<'a> {
        self.reader.sources
    }

    /// What stands here is wrong.
    pub(super) fn mistake(&self, text: impl AsRef<str>) {
        self.reader.mistake(self.value.span(), format!("{}: {}", self.name, text.as_ref()));
    }

    /// Whether something was found to be wrong, wherever it stands.
    pub(super) fn has_mistakes(&self) -> bool {
        !self.reader.mistakes.borrow().is_empty()
    }

    /// What stands here is odd.
    pub(super) fn remark(&self, text: impl AsRef<str>) {
        let text = format!("{}: {}", self.name, text.as_ref());
        self.reader.remarks.borrow_mut().push(Mistake { position: self.position(), text });
    }

    pub(super) fn position(&self) -> Position {
        Position::of(self.reader.text, self.value.span().start)
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// Read it as a table. Keys that `read` does not ask for are mistakes.
    pub(super) fn section<T>(&self, read: impl FnOnce(&Section<'a>) -> T) -> Option<T> {
        let section = self.open()?;
        let result = read(&section);
        section.finish();
        Some(result)
    }

    /// Read it as a table whose keys are the user's.
    pub(super) fn table(&self) -> Vec<Named<'a>> {
        self.open().map(|section| section.all().collect()).unwrap_or_default()
    }

    fn open(&self) -> Option<Section<'a>> {
        let Some(table) = self.value.get_ref().as_table() else {
            self.mistake("expected a table");
            return None;
        };
        Some(Section { reader: self.reader, name: self.name.clone(), table, asked: RefCell::default() })
    }

    /// Itself, or what is in it if it is a list.
    pub(super) fn each(&self) -> Vec<Entry<'a>> {
        match self.value.get_ref().as_array() {
            None => vec![self.clone()],
            Some(list) => {
                let entry = |value| Entry { reader: self.reader, name: self.name.clone(), value };
                list.iter().map(entry).collect()
            }
        }
    }

    pub(super) fn is_empty_list(&self) -> bool {
        self.value.get_ref().as_array().is_some_and(|list| list.is_empty())
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.value.get_ref().as_str();
        if text.is_none() {
            self.mistake("expected a text in quotes");
        }
        // Told already.
        text.filter(|text| keys_in(text).next().is_none())
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let boolean = self.value.get_ref().as_bool();
        if boolean.is_none() {
            self.mistake("expected true or false");
        }
        boolean
    }

    /// A text, or a number or a truth value as text.
    pub(super) fn scalar(&self) -> Option<String> {
        match self.value.get_ref() {
            DeValue::String(_) => self.text().map(str::to_owned),
            DeValue::Boolean(boolean) => Some(boolean.to_string()),
            DeValue::Integer(_) => self.integer().map(|number| number.to_string()),
            DeValue::Float(number) => Some(number.as_str().to_owned()),
            DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                self.mistake("expected a text, a number, true or false; anything else goes into a text, such as JSON");
                None
            }
        }
    }

    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = self.integer()?;
        let number = u64::try_from(number).ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.mistake(format!("expected a number from {} to {}", range.start(), range.end()));
        }
        number
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let shown = units::shown_duration;
        let Some(duration) = units::duration(self.quantity("5s")?) else {
            self.mistake("expected a whole number with a unit, as \"5s\"; units are ms, s, m, h and d");
            return None;
        };
        if !range.contains(&duration) {
            self.mistake(format!("expected from {} to {}", shown(*range.start()), shown(*range.end())));
            return None;
        }
        Some(duration)
    }

    /// In bytes.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let shown = units::shown_size;
        let Some(size) = units::size(self.quantity("64KiB")?) else {
            self.mistake("expected a whole number with a unit, as \"64KiB\"; units are B, KiB, MiB and GiB");
            return None;
        };
        if !range.contains(&size) {
            self.mistake(format!("expected from {} to {}", shown(*range.start()), shown(*range.end())));
            return None;
        }
        Some(size)
    }

    fn quantity(&self, example: &str) -> Option<&'a str> {
        if self.value.get_ref().is_str() {
            return self.text();
        }
        self.mistake(format!("expected a text with a unit, as \"{example}\""));
        None
    }

    fn integer(&self) -> Option<i64> {
        let integer = self.value.get_ref().as_integer();
        let integer = integer.map(|integer| i64::from_str_radix(integer.as_str(), integer.radix()));
        match integer {
            Some(Ok(number)) => Some(number),
            Some(Err(_)) => {
                self.mistake("the number is too large");
                None
            }
            None => {
                self.mistake("expected a whole number");
                None
            }
        }
    }
}

fn put<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// Where keys of IoT Hub stand in `text`, in comments as well.
fn keys_in(text: &str) -> impl Iterator<Item = usize> {
    let lower = text.to_ascii_lowercase();
    let mut found: Vec<usize> = lower.match_indices("sharedaccesssignature").map(|(offset, _)| offset).collect();
    let keys = lower.match_indices("sharedaccesskey");
    let keys =
        keys.filter(|(offset, name)| lower[offset + name.len()..].trim_start_matches([' ', '"']).starts_with('='));
    found.extend(keys.map(|(offset, _)| offset));
    found.into_iter()
}

/// The word that was probably meant.
pub(super) fn nearest<'w>(wrong: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let distances = known.map(|word| (distance(wrong, word), word));
    distances.filter(|(distance, word)| *distance <= 1 + word.len() / 4).min().map(|(_, word)| word)
}

/// How many characters to insert, remove or replace.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    // Longer than any word there is.
    for (i, c) in one.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, d) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(c != *d);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

const HOLDS_KEY: &str = "a key stands here, which this file is not private enough for; put the connection string into a \
                         file of its own or a variable, and name that, as file = \"door.connstr\" or env = \"DOOR\"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_that_was_meant() {
        let known = || ["mailbox", "idle", "twin-wait", "telemetry-window"].into_iter();
        for (wrong, expected) in [
            ("idel", Some("idle")),
            ("idl", Some("idle")),
            ("mailboxes", Some("mailbox")),
            ("mail-box", Some("mailbox")),
            ("twin_wait", Some("twin-wait")),
            ("telemetry_windows", Some("telemetry-window")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(wrong, known()), expected, "{wrong}");
        }
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }

    #[test]
    fn keys_are_found_wherever_they_stand() {
        for (text, expected) in [
            ("HostName=h;DeviceId=d;SharedAccessKey=k", 1),
            ("# sharedaccesskey = \"k\"\nSharedAccessKeyName=owner;SharedAccessKey=k", 2),
            ("\"SharedAccessKey\" = 1", 1),
            ("SharedAccessSignature sr=x&sig=y", 1),
            ("SharedAccessKeyName=owner", 0),
            ("the SharedAccessKey of a door", 0),
        ] {
            assert_eq!(keys_in(text).count(), expected, "{text}");
        }
    }
}
