//! Which way leads to the devices or modules for which a condition can hold.
//!
//! SQLite only preselects: the whole condition is held against every row that it finds, so a way may lead to too many
//! devices and never to too few. Where SQLite's idea of a value could differ from the query language's, bounds are widened or
//! the way is not taken.

use durable_store::sql::types::Value as SqlValue;
use iothub_protocol::address::Address;
use iothub_protocol::id::DeviceId;
use iothub_protocol::query::{Condition, Demand, Operand, Parts, Requirement};
use serde_json::json;

use crate::store::{Access, DeclaredIndex, Kind, MAX_ROWS, Selection, TwinPath, modules_of};

/// Numbers up to this are the same in SQLite, JSON and the query language.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// By how much the bound of a range of numbers is widened, as SQLite may read the last digit of a fraction otherwise.
const SLACK: f64 = 1e-9;

/// `connected` gives those who are.
pub(super) fn selection(
    condition: &Condition,
    parts: Parts,
    most: usize,
    indexes: &[DeclaredIndex],
    connected: impl FnOnce(Kind) -> Vec<Address>,
) -> Selection {
    let kind = Kind::of_source(condition.source());
    let requirements = condition.requirements();
    let access = match kind {
        Kind::Devices => access(&requirements, indexes, || connected(kind)),
        Kind::Modules => access_to_modules(&requirements, || connected(kind)),
    };
    let needles = requirements.iter().filter_map(needles).collect();
    Selection { kind, condition: condition.clone(), parts, access, most: most.min(MAX_ROWS), needles }
}

/// These.
pub(super) fn selection_of(kind: Kind, addresses: &[Address], parts: Parts, most: usize) -> Selection {
    let access = by_keys(addresses.iter().map(Address::to_string).collect());
    Selection { kind, condition: Condition::all(), parts, access, most, needles: Vec::new() }
}

fn by_keys(mut keys: Vec<String>) -> Access {
    keys.sort_unstable();
    keys.dedup();
    Access::Keys(keys.into())
}

/// The way that is likely to lead to the fewest.
fn access(
    requirements: &[Requirement<'_>],
    indexes: &[DeclaredIndex],
    connected: impl FnOnce() -> Vec<Address>,
) -> Access {
    let texts_of = |name| requirements.iter().find_map(|required| required.root_texts(name));
    if let Some(names) = texts_of("deviceId") {
        return by_keys(ids(names).map(|id| id.to_string()).collect());
    }
    if let Some(access) = requirements.iter().find_map(|required| by_value(required, indexes)) {
        return access;
    }
    if texts_of("connectionState").is_some_and(|states| states == ["Connected"]) {
        return by_keys(connected().iter().map(Address::to_string).collect());
    }
    if texts_of("status").is_some_and(|states| states == ["disabled"]) {
        return Access::Disabled;
    }
    let range = id_range(requirements);
    if range != (Access::Range { from: String::new(), below: None }) {
        return range;
    }
    indexes.iter().find_map(|index| by_range(requirements, index)).unwrap_or(range)
}

/// As [`access`], without indexes, which are of devices' twins. Of one device there are few modules; of several, those
/// between the first and the last are looked at.
fn access_to_modules(requirements: &[Requirement<'_>], connected: impl FnOnce() -> Vec<Address>) -> Access {
    let texts_of = |name| requirements.iter().find_map(|required| required.root_texts(name));
    if let (Some(devices), Some(modules)) = (texts_of("deviceId"), texts_of("moduleId")) {
        let keys = devices.iter().flat_map(|device| modules.iter().map(move |module| format!("{device}/{module}")));
        return by_keys(keys.filter(|key| Address::parse(key).is_ok()).collect());
    }
    if let Some(names) = texts_of("deviceId") {
        let ranges = ids(names).map(|id| modules_of(id.as_str()));
        let whole = ranges.reduce(|(from, below), (least, limit)| (from.min(least), below.max(limit)));
        return match whole {
            Some((from, below)) => Access::Range { from, below: Some(below) },
            None => by_keys(Vec::new()),
        };
    }
    if texts_of("connectionState").is_some_and(|states| states == ["Connected"]) {
        return by_keys(connected().iter().map(Address::to_string).collect());
    }
    Access::Range { from: String::new(), below: None }
}

/// What is no id is no device's.
fn ids(names: Vec<&str>) -> impl Iterator<Item = DeviceId> {
    names.into_iter().filter_map(|name| DeviceId::parse(name).ok())
}

/// By an index that holds what must be equal.
fn by_value(required: &Requirement<'_>, indexes: &[DeclaredIndex]) -> Option<Access> {
    let Demand::OneOf(operands) = &required.demand else { return None };
    let index = index_of(required, indexes)?;
    let mut values: Vec<SqlValue> = Vec::new();
    for operand in operands {
        let value = equal_value(operand)?;
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Some(Access::Index { name: index.name.clone(), expression: index.path.expression(), values })
}

/// What SQLite must have there if the place is equal to `operand`.
fn equal_value(operand: &Operand<'_>) -> Option<SqlValue> {
    match operand {
        // `json_extract` gives the same for null and for nothing.
        Operand::Null => None,
        Operand::Bool(value) => Some(SqlValue::Integer((*value).into())),
        Operand::Number(number) => {
            (number.fract() == 0.0 && number.abs() <= EXACT).then_some(SqlValue::Integer(*number as i64))
        }
        Operand::Text(text) => plain(text),
    }
}

/// A text as SQLite has it; one with a NUL would end there.
fn plain(text: &str) -> Option<SqlValue> {
    (!text.contains('\0')).then(|| SqlValue::Text(text.to_owned()))
}

/// By the range of an index that its bounds make, if there are any.
fn by_range(requirements: &[Requirement<'_>], index: &DeclaredIndex) -> Option<Access> {
    let (mut least, mut most) = (None, None);
    let of_index = requirements.iter().filter(|required| TwinPath::of(required.path).as_ref() == Some(&index.path));
    for required in of_index {
        match &required.demand {
            Demand::OneOf(_) => {}
            Demand::AtLeast(operand) => least = least.or_else(|| bound(operand, -SLACK)),
            Demand::AtMost(operand) => most = most.or_else(|| bound(operand, SLACK)),
            Demand::StartsWith(prefix) => least = least.or_else(|| plain(prefix)),
        }
    }
    // In SQLite every number comes before every text, and a bound of one type leaves the other on one side: that is too
    // many and not too few. Nothing (NULL) is in no range.
    (least.is_some() || most.is_some()).then(|| Access::IndexRange {
        name: index.name.clone(),
        expression: index.path.expression(),
        least,
        most,
    })
}

fn bound(operand: &Operand<'_>, slack: f64) -> Option<SqlValue> {
    match operand {
        Operand::Number(number) => Some(SqlValue::Real(number + slack * number.abs().max(1.0))),
        Operand::Text(text) => plain(text),
        Operand::Bool(_) | Operand::Null => None,
    }
}

/// The ids between which all must be.
fn id_range(requirements: &[Requirement<'_>]) -> Access {
    let (mut from, mut below) = (String::new(), None::<String>);
    for required in requirements.iter().filter(|required| required.is_root("deviceId")) {
        let (least, limit) = match &required.demand {
            Demand::AtLeast(Operand::Text(text)) => ((*text).to_owned(), None),
            // The first text after it.
            Demand::AtMost(Operand::Text(text)) => (String::new(), Some(format!("{text}\0"))),
            Demand::StartsWith(prefix) => ((*prefix).to_owned(), after_prefix(prefix)),
            _ => continue,
        };
        from = from.max(least);
        below = [below, limit].into_iter().flatten().min();
    }
    Access::Range { from, below }
}

/// The first text of ids' characters that is after all that begin with `prefix`.
fn after_prefix(prefix: &str) -> Option<String> {
    // Ids are ASCII, so nothing of theirs is above this.
    (!prefix.is_empty() && prefix.is_ascii()).then(|| format!("{prefix}\u{7f}"))
}

/// The texts of which one stands in the column, if the place is to hold one of them. A column's text is what serde_json
/// writes, and so are these.
fn needles(required: &Requirement<'_>) -> Option<(TwinPath, Vec<String>)> {
    let Demand::OneOf(operands) = &required.demand else { return None };
    let path = TwinPath::of(required.path)?;
    let texts = operands.iter().map(|operand| match operand {
        Operand::Text(text) => Some(json!(text).to_string()),
        _ => None,
    });
    Some((path, texts.collect::<Option<Vec<_>>>()?))
}

fn index_of<'i>(required: &Requirement<'_>, indexes: &'i [DeclaredIndex]) -> Option<&'i DeclaredIndex> {
    let path = TwinPath::of(required.path)?;
    indexes.iter().find(|index| index.path == path)
}
