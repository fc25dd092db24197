//! A query over rows, one by one.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::eval::{Term, evaluate, json_number, look_up};
use super::{Aggregate, Fold, Item, ItemValue, List, Query};

/// Takes a query's rows one by one. A plain projection answers each at once; aggregates and groups come at the end.
#[derive(Debug)]
pub struct Executor<'q> {
    query: &'q Query,
    /// How many rows were given out.
    given: u64,
    /// By the grouped value's JSON text, `None` where it is undefined; ordered, so that answers do not depend on
    /// chance.
    groups: BTreeMap<Option<String>, Group>,
}

/// What is known of the rows with one value.
#[derive(Debug)]
struct Group {
    /// The list's plain items, from the first row: they are the same in each.
    plain: Map<String, Value>,
    /// One for each item of the list.
    tallies: Vec<Tally>,
}

#[derive(Debug, Clone, Default)]
struct Tally {
    rows: u64,
    numbers: u64,
    sum: f64,
    least: Option<Extreme>,
    greatest: Option<Extreme>,
}

/// Numbers come before texts, as in the store that IoT Hub's language stems from.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
enum Extreme {
    Number(f64),
    Text(String),
}

impl<'q> Executor<'q> {
    pub fn new(query: &'q Query) -> Executor<'q> {
        Executor::resume(query, 0)
    }

    /// Go on after `given` rows of earlier pages, which count towards `TOP`.
    pub fn resume(query: &'q Query, given: u64) -> Executor<'q> {
        Executor { query, given, groups: BTreeMap::new() }
    }

    /// Take a row; get what it becomes, if it is in the answer by itself.
    pub fn push(&mut self, row: &Value) -> Option<Value> {
        if self.is_done() || !self.query.condition.matches(row) {
            return None;
        }
        let items = match &self.query.list {
            List::All => None,
            List::Items(items) => Some(items),
        };
        if self.query.is_aggregate() {
            self.fold(items?, row);
            return None;
        }
        self.given += 1;
        Some(items.map_or_else(|| row.clone(), |items| Value::Object(project(items, row))))
    }

    /// Whether no further row can change the answer, because `TOP` is reached.
    pub fn is_done(&self) -> bool {
        self.query.top.is_some_and(|top| self.given >= top)
    }

    /// The rows that had to wait for the last one: aggregates and groups.
    pub fn finish(mut self) -> Vec<Value> {
        let List::Items(items) = &self.query.list else { return Vec::new() };
        if !self.query.is_aggregate() {
            return Vec::new();
        }
        // Without groups there is one row, whatever there was to count.
        if self.query.group_by.is_none() && self.groups.is_empty() {
            self.groups.insert(None, Group::new(items, &Value::Null));
        }
        let top = self.query.top.and_then(|top| usize::try_from(top).ok()).unwrap_or(usize::MAX);
        self.groups.into_values().take(top).map(|group| group.finish(items)).collect()
    }

    fn fold(&mut self, items: &[Item], row: &Value) {
        let key = self.query.group_by.as_ref().and_then(|path| look_up(path, row).to_json()).map(|v| v.to_string());
        let group = self.groups.entry(key).or_insert_with(|| Group::new(items, row));
        for (item, tally) in items.iter().zip(&mut group.tallies) {
            match item.aggregate() {
                Some(Aggregate::Count) => tally.rows += 1,
                Some(Aggregate::Of(_, path)) => tally.add(&look_up(path, row)),
                None => {}
            }
        }
    }
}

fn project(items: &[Item], row: &Value) -> Map<String, Value> {
    let members = items.iter().enumerate().filter_map(|(place, item)| match &item.value {
        ItemValue::Expression(expression) => Some((item.name(place), evaluate(expression, row).to_json()?)),
        ItemValue::Aggregate(_) => None,
    });
    members.collect()
}

impl Group {
    fn new(items: &[Item], row: &Value) -> Group {
        Group { plain: project(items, row), tallies: vec![Tally::default(); items.len()] }
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
    fn add(&mut self, term: &Term<'_>) {
        let value = match (term.number(), term.text()) {
            (Some(number), _) => {
                self.numbers += 1;
                self.sum += number;
                Extreme::Number(number)
            }
            (None, Some(text)) => Extreme::Text(text.to_owned()),
            (None, None) => return,
        };
        if self.least.as_ref().is_none_or(|least| value < *least) {
            self.least = Some(value.clone());
        }
        if self.greatest.as_ref().is_none_or(|greatest| value > *greatest) {
            self.greatest = Some(value);
        }
    }

    fn result(self, aggregate: &Aggregate) -> Option<Value> {
        match aggregate {
            Aggregate::Count => Some(Value::from(self.rows)),
            Aggregate::Of(Fold::Sum, _) => (self.numbers > 0).then(|| json_number(self.sum)),
            Aggregate::Of(Fold::Average, _) => (self.numbers > 0).then(|| json_number(self.sum / self.numbers as f64)),
            Aggregate::Of(Fold::Minimum, _) => self.least.map(Extreme::into_json),
            Aggregate::Of(Fold::Maximum, _) => self.greatest.map(Extreme::into_json),
        }
    }
}

impl Extreme {
    fn into_json(self) -> Value {
        match self {
            Extreme::Number(number) => json_number(number),
            Extreme::Text(text) => Value::String(text),
        }
    }
}
