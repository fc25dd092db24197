//! A query over rows, one by one.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Deref;

use serde_json::{Map, Value};

use super::eval::{Term, evaluate, json_number, look_up};
use super::{Aggregate, Fold, GroupKey, Item, ItemValue, List, Query};

/// Takes a query's rows one by one. A plain projection answers each at once; aggregates and groups come at the end. `Q` is
/// a pointer to the query.
#[derive(Debug)]
pub struct Executor<Q> {
    query: Q,
    /// How many rows were given out.
    given: u64,
    groups: BTreeMap<GroupKey, Group>,
    /// The last group of the pages before.
    after: Option<GroupKey>,
    /// How many groups are kept: the first ones in their order.
    room: usize,
    /// Whether there are groups that had no room.
    has_more: bool,
}

/// What is known of the rows with one value.
#[derive(Debug)]
struct Group {
    /// The list's plain items, from the first row: they are the same in each.
    plain: Map<String, Value>,
    /// One for each item of the list.
    tallies: Vec<Tally>,
}

/// What an aggregate has seen.
#[derive(Debug)]
enum Tally {
    /// Of an item that is no aggregate.
    Nothing,
    Count(u64),
    Sum {
        numbers: u64,
        sum: f64,
    },
    Least(Option<Extreme>),
    Greatest(Option<Extreme>),
}

/// Numbers come before texts, as in the store that IoT Hub's language stems from.
#[derive(Debug, PartialEq, PartialOrd)]
enum Extreme {
    Number(f64),
    Text(String),
}

impl<Q: Deref<Target = Query>> Executor<Q> {
    pub fn new(query: Q) -> Executor<Q> {
        Executor::resume(query, 0)
    }

    /// Go on after `given` rows of earlier pages, which count towards `TOP`.
    pub fn resume(query: Q, given: u64) -> Executor<Q> {
        Executor::page_of_groups(query, given, None, usize::MAX)
    }

    /// As [`Executor::resume`], for a page of at most `limit` groups: the first ones after `after`. All rows are to be
    /// pushed again for each page; no more than `limit` groups are in memory, however many there are.
    /// What [`Executor::finish_page`] gives tells where the next page begins.
    pub fn page_of_groups(query: Q, given: u64, after: Option<GroupKey>, limit: usize) -> Executor<Q> {
        Executor { query, given, groups: BTreeMap::new(), after, room: limit.max(1), has_more: false }
    }

    pub fn query(&self) -> &Q {
        &self.query
    }

    /// Take a row; get what it becomes, if it is in the answer by itself.
    pub fn push(&mut self, row: &Value) -> Option<Value> {
        if self.is_done() || !self.query.condition.matches(row) {
            return None;
        }
        if self.query.is_aggregate() {
            self.fold(row);
            return None;
        }
        self.given += 1;
        Some(match &self.query.list {
            List::All => row.clone(),
            List::Items(items) => Value::Object(project(items, row)),
        })
    }

    /// Whether no further row can change the answer, because `TOP` is reached.
    pub fn is_done(&self) -> bool {
        self.query.top.is_some_and(|top| self.given >= top)
    }

    /// The rows that had to wait for the last one: aggregates and groups.
    pub fn finish(self) -> Vec<Value> {
        self.finish_page().0
    }

    /// As [`Executor::finish`]; with the last row's group, if there are groups after it that the query wants.
    pub fn finish_page(mut self) -> (Vec<Value>, Option<GroupKey>) {
        let List::Items(items) = &self.query.list else { return (Vec::new(), None) };
        if !self.query.is_aggregate() {
            return (Vec::new(), None);
        }
        // Without groups there is one row, whatever there was to count.
        if self.query.group_by.is_none() && self.groups.is_empty() {
            self.groups.insert(GroupKey::of(&Term::Undefined), Group::new(items, &Value::Null));
        }
        let left = self.query.top.map_or(u64::MAX, |top| top.saturating_sub(self.given));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let next = self.groups.last_key_value().map(|(last, _)| last.clone());
        let next = next.filter(|_| self.has_more && self.groups.len() < left);
        (self.groups.into_values().take(left).map(|group| group.finish(items)).collect(), next)
    }

    fn fold(&mut self, row: &Value) {
        let List::Items(items) = &self.query.list else { return };
        let value = self.query.group_by.as_ref().map_or(Term::Undefined, |path| look_up(path, row));
        let key = GroupKey::of(&value);
        if self.after.as_ref().is_some_and(|after| key <= *after) {
            return;
        }
        let is_full = self.groups.len() >= self.room;
        if is_full && self.groups.last_key_value().is_some_and(|(last, _)| key > *last) {
            self.has_more = true;
            return;
        }
        let group = match self.groups.entry(key) {
            Entry::Occupied(group) => group.into_mut(),
            Entry::Vacant(place) => {
                // The last one makes room, once this one is in.
                self.has_more |= is_full;
                place.insert(Group::new(items, row))
            }
        };
        for (item, tally) in items.iter().zip(&mut group.tallies) {
            match item.aggregate() {
                Some(Aggregate::Count) => tally.count(),
                Some(Aggregate::Of(_, path)) => tally.add(&look_up(path, row)),
                None => {}
            }
        }
        if self.groups.len() > self.room {
            self.groups.pop_last();
        }
    }
}

fn project(items: &[Item], row: &Value) -> Map<String, Value> {
    let members = items.iter().enumerate().filter_map(|(place, item)| match &item.value {
        ItemValue::Expression(expression) => Some((item.name(place), evaluate(expression, row).into_json()?)),
        ItemValue::Aggregate(_) => None,
    });
    members.collect()
}

impl Group {
    fn new(items: &[Item], row: &Value) -> Group {
        Group { plain: project(items, row), tallies: items.iter().map(|item| Tally::new(item.aggregate())).collect() }
    }

    fn finish(self, items: &[Item]) -> Value {
        let mut row = self.plain;
        for (place, (item, tally)) in items.iter().zip(self.tallies).enumerate() {
            if let Some(value) = item.aggregate().and_then(|aggregate| tally.result(aggregate)) {
                row.insert(item.name(place), value);
            }
        }
        Value::Object(row)
    }
}

impl Tally {
    fn new(aggregate: Option<&Aggregate>) -> Tally {
        match aggregate {
            None => Tally::Nothing,
            Some(Aggregate::Count) => Tally::Count(0),
            Some(Aggregate::Of(Fold::Sum | Fold::Average, _)) => Tally::Sum { numbers: 0, sum: 0.0 },
            Some(Aggregate::Of(Fold::Minimum, _)) => Tally::Least(None),
            Some(Aggregate::Of(Fold::Maximum, _)) => Tally::Greatest(None),
        }
    }

    fn count(&mut self) {
        if let Tally::Count(rows) = self {
            *rows += 1;
        }
    }

    /// What is neither a number nor a text has no sum and no order, and is left out.
    fn add(&mut self, term: &Term<'_>) {
        match (self, term) {
            (Tally::Sum { numbers, sum }, Term::Number(number)) => {
                *numbers += 1;
                *sum += number;
            }
            (Tally::Least(least), term) if least.as_ref().is_none_or(|least| least.is_above(term)) => {
                *least = Extreme::new(term).or(least.take());
            }
            (Tally::Greatest(greatest), term) if greatest.as_ref().is_none_or(|greatest| greatest.is_below(term)) => {
                *greatest = Extreme::new(term).or(greatest.take());
            }
            _ => {}
        }
    }

    fn result(self, aggregate: &Aggregate) -> Option<Value> {
        match self {
            Tally::Nothing => None,
            Tally::Count(rows) => Some(Value::from(rows)),
            Tally::Sum { numbers: 0, .. } => None,
            Tally::Sum { numbers, sum } => match aggregate {
                Aggregate::Of(Fold::Average, _) => Some(json_number(sum / numbers as f64)),
                _ => Some(json_number(sum)),
            },
            Tally::Least(extreme) | Tally::Greatest(extreme) => extreme.map(Extreme::into_json),
        }
    }
}

impl Extreme {
    fn new(term: &Term<'_>) -> Option<Extreme> {
        match term {
            Term::Number(number) => Some(Extreme::Number(*number)),
            Term::Text(text) => Some(Extreme::Text(text.clone().into_owned())),
            _ => None,
        }
    }

    fn is_above(&self, term: &Term<'_>) -> bool {
        match (self, term) {
            (Extreme::Number(number), Term::Number(other)) => number > other,
            (Extreme::Text(text), Term::Text(other)) => text.as_str() > &**other,
            (Extreme::Text(_), Term::Number(_)) => true,
            _ => false,
        }
    }

    fn is_below(&self, term: &Term<'_>) -> bool {
        match (self, term) {
            (Extreme::Number(number), Term::Number(other)) => number < other,
            (Extreme::Text(text), Term::Text(other)) => text.as_str() < &**other,
            (Extreme::Number(_), Term::Text(_)) => true,
            _ => false,
        }
    }

    fn into_json(self) -> Value {
        match self {
            Extreme::Number(number) => json_number(number),
            Extreme::Text(text) => Value::String(text),
        }
    }
}
