//! What a twin may hold.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{ErrorCode, HubError};

/// Limits that the hub enforces on a twin; the numbers are Azure's, except for [`TEXT`](limit::TEXT) and
/// [`PATCH_TEXT`](limit::PATCH_TEXT).
pub mod limit {
    /// Bytes of all tags, by the rule of [`super::size`].
    pub const TAGS: usize = 8 * 1024;
    /// Bytes of desired and of reported properties, each.
    pub const PROPERTIES: usize = 32 * 1024;
    /// Bytes of a key.
    pub const KEY: usize = 1024;
    /// Bytes of a string value.
    pub const STRING: usize = 4096;
    /// Levels of objects and arrays below tags, desired or reported.
    pub const DEPTH: usize = 10;
    /// Largest integer; the smallest is `-INTEGER - 1`.
    pub const INTEGER: i64 = 4_503_599_627_370_495;
    /// Bytes of a section as JSON text. [`super::size`] counts nothing for nulls in arrays, empty values and control
    /// characters, so without this one a section within its size could grow until no packet carries it.
    pub const TEXT: usize = 128 * 1024;
    /// Bytes of a change of desired properties as JSON text: it must reach the device in one packet, nulls included.
    pub const PATCH_TEXT: usize = 2 * TEXT;
}

/// One of the three parts of a twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Tags,
    Desired,
    Reported,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Tags => "tags",
            Part::Desired => "desired",
            Part::Reported => "reported",
        }
    }

    fn limit(self) -> usize {
        match self {
            Part::Tags => limit::TAGS,
            Part::Desired | Part::Reported => limit::PROPERTIES,
        }
    }
}

/// Whether `patch` keeps the rules for keys, values and depth.
///
/// # Errors
/// 400004 with the path of what is wrong.
pub fn check_patch(part: Part, patch: &Map<String, Value>) -> Result<(), HubError> {
    check_object(patch, 1).map_err(|wrong| {
        let path: String = wrong.within.iter().rev().map(String::as_str).collect();
        invalid(format!("{}{path} {}", part.name(), wrong.problem))
    })
}

/// Whether `section`, as it would be after a merge, is within the part's size.
///
/// # Errors
/// 400004 naming size and limit.
pub fn check_size(part: Part, section: &Map<String, Value>) -> Result<(), HubError> {
    let found = size(section);
    if found > part.limit() {
        return Err(invalid(format!("{} would have {found} bytes; the limit is {}", part.name(), part.limit())));
    }
    check_text(part.name(), section, limit::TEXT)
}

/// Whether `object` takes at most `limit` bytes as JSON text.
pub(super) fn check_text(name: &str, object: &Map<String, Value>, limit: usize) -> Result<(), HubError> {
    let found = text_length(object);
    if found > limit {
        return Err(invalid(format!("{name} would take {found} bytes as JSON text; the limit is {limit}")));
    }
    Ok(())
}

fn text_length(value: &impl Serialize) -> usize {
    struct Counter(usize);
    impl Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // A JSON value always has a text; whatever had none would be too long for any limit.
    serde_json::to_writer(&mut counter, value).map_or(usize::MAX, |()| counter.0)
}

/// A section's size as the hub counts it: keys and values; a number is 8 bytes, a boolean 4, control characters none.
pub fn size(section: &Map<String, Value>) -> usize {
    section.iter().map(|(key, value)| text_size(key) + value_size(value)).sum()
}

fn text_size(text: &str) -> usize {
    text.chars().filter(|c| !c.is_control()).map(char::len_utf8).sum()
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text_size(text),
        Value::Array(items) => items.iter().map(value_size).sum(),
        Value::Object(object) => size(object),
    }
}

fn invalid(text: String) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, text)
}

/// What is wrong, and where: the path is only put together once there is something to say, as long paths over many
/// values would otherwise cost more than the whole check.
struct Wrong {
    /// `.key` and `[index]`, innermost first.
    within: Vec<String>,
    problem: String,
}

impl Wrong {
    fn new(problem: String) -> Wrong {
        Wrong { within: Vec::new(), problem }
    }

    fn inside(mut self, place: impl fmt::Display) -> Wrong {
        self.within.push(place.to_string());
        self
    }
}

fn check_object(object: &Map<String, Value>, level: usize) -> Result<(), Wrong> {
    check_level(level)?;
    for (key, value) in object {
        if key.is_empty() || key.len() > limit::KEY {
            let problem = format!("has a key of {} bytes; 1 to {} are allowed", key.len(), limit::KEY);
            return Err(Wrong::new(problem));
        }
        if let Some(character) = key.chars().find(|c| c.is_control() || matches!(c, '.' | '$' | ' ')) {
            return Err(Wrong::new(format!("has the key {key:?}, which contains {character:?}")));
        }
        check_value(value, level).map_err(|wrong| wrong.inside(format_args!(".{key}")))?;
    }
    Ok(())
}

fn check_array(items: &[Value], level: usize) -> Result<(), Wrong> {
    check_level(level)?;
    items
        .iter()
        .enumerate()
        .try_for_each(|(index, item)| check_value(item, level).map_err(|wrong| wrong.inside(format_args!("[{index}]"))))
}

fn check_level(level: usize) -> Result<(), Wrong> {
    if level > limit::DEPTH + 1 {
        return Err(Wrong::new(format!("is nested deeper than {} levels", limit::DEPTH)));
    }
    Ok(())
}

fn check_value(value: &Value, level: usize) -> Result<(), Wrong> {
    match value {
        Value::String(text) if text.len() > limit::STRING => {
            Err(Wrong::new(format!("is a string of {} bytes; the limit is {}", text.len(), limit::STRING)))
        }
        Value::Number(number) => {
            let fits = match (number.as_i64(), number.as_u64()) {
                (Some(n), _) => (-limit::INTEGER - 1..=limit::INTEGER).contains(&n),
                (None, Some(_)) => false,
                (None, None) => true,
            };
            if fits { Ok(()) } else { Err(Wrong::new(format!("is an integer outside of ±{}", limit::INTEGER))) }
        }
        Value::Array(items) => check_array(items, level + 1),
        Value::Object(object) => check_object(object, level + 1),
        _ => Ok(()),
    }
}
