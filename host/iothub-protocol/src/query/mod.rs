//! The IoT Hub query language: text to a tree, and the tree over JSON rows.
//!
//! ```text
//! query  := SELECT [TOP n] list FROM source [WHERE condition] [GROUP BY path]
//! source := devices | devices.modules | devices.jobs | c
//! list   := * | item [AS name] {, item [AS name]}
//! item   := expression | COUNT() | AVG(path) | SUM(path) | MIN(path) | MAX(path)
//! path   := name {. name | .[[any text]]}
//! ```
//!
//! An expression is a constant (`undefined`, `null`, a number, a text, `true`, `false`), a path, a function of
//! expressions, `[a, b]`, or made of others by `+ - * / %`, `= != <> < <= > >=`, `IN [ ]`, `NIN [ ]`, `NOT`, `AND` and
//! `OR`, the last of which binds most loosely.
//!
//! [`Query`] is a whole `SELECT`, [`Condition`] its WHERE part, which is also what a job's `queryCondition` holds.
//! [`Executor`] takes rows one by one, so that a hub can page. Both trees print as text that parses to the same tree.
//!
//! Where the documentation is silent, this is what holds:
//! - Keywords, functions and root attributes (`deviceId`, `tags`) are case-insensitive, names below `tags` and
//!   `properties` are not.
//! - Logic is three-valued. Whatever is undefined, or compares objects or arrays, is undefined; so is `NOT` of it. A
//!   condition holds only for the boolean `true`. So `tags.floor != 1` does not hold where there is no such tag.
//! - Two primitives of different types are unequal (`!=` holds) and have no order.
//! - Functions that Azure documents for message routing only (`STARTS_WITH`, `LOWER`, …) work on twins and jobs as
//!   well, and `STARTSWITH` and `ENDSWITH` by the names that Azure's own twin queries know them by.
//! - A path may begin with its source (`devices.modules.moduleId`), with `devices.`, or with `c.` where the source is
//!   called so. Jobs have no twin: `tags` and `properties` are refused there, as is everything but `SELECT *`.
//! - Texts are ordered by their characters, so that times in ISO 8601 compare as times do.
//! - A quotation mark in a text may also be doubled, as Microsoft's tools write it.
//! - Groups come in the order of their value: undefined, null, false, true, numbers, texts, then objects and arrays.
//! - An item without `AS` is named by its path's last part, else `$1`, `$2`, … by its place. Aggregates over no usable
//!   value are left out, `COUNT()` is 0.

mod display;
mod eval;
mod execute;
mod functions;
mod group;
mod lexer;
mod parse;
#[cfg(test)]
mod random;
mod requirement;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::error::{ErrorCode, HubError};

pub use execute::Executor;
use functions::Function;
pub use group::GroupKey;
pub use requirement::{Demand, Operand, Parts, Requirement};

/// Longest text of a query or condition, in characters: IoT Hub's own limit.
pub const MAX_QUERY: usize = 8192;

/// Why a text is no query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SQL query parse failed due to following errors: Line {line}:{column} {message}")]
pub struct QueryError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters. In a job's condition it counts from the start of the query that the condition completes,
    /// `SELECT * FROM devices WHERE `, as Azure's texts do.
    pub column: usize,
    pub message: String,
}

impl From<QueryError> for HubError {
    fn from(error: QueryError) -> HubError {
        HubError::new(ErrorCode::ArgumentInvalid, error.to_string())
    }
}

/// What rows a query is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Devices,
    Modules,
    Jobs,
}

/// What the rows of an answer are: the header `x-ms-item-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemType {
    Twin,
    DeviceJob,
    Raw,
}

/// A whole `SELECT`.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    top: Option<u64>,
    list: List,
    condition: Condition,
    group_by: Option<Path>,
}

/// The WHERE part of a query, or the lack of one, which holds for every row.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    source: Source,
    expression: Option<Expression>,
}

impl Query {
    /// Read a query.
    ///
    /// # Errors
    /// Where the text goes wrong, and how. No text can exhaust the stack: nesting is bounded.
    pub fn parse(text: &str) -> Result<Query, QueryError> {
        parse::query(text)
    }

    pub fn source(&self) -> Source {
        self.condition.source
    }

    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    /// The most rows that the query wants, if it says so.
    pub fn top(&self) -> Option<u64> {
        self.top
    }

    pub fn item_type(&self) -> ItemType {
        match (&self.list, self.source()) {
            (_, Source::Jobs) => ItemType::DeviceJob,
            (List::All, _) => ItemType::Twin,
            (List::Items(_), _) => ItemType::Raw,
        }
    }

    /// Whether rows are folded into others (aggregates, `GROUP BY`), so that none can be given out before the last one
    /// was seen.
    pub fn is_aggregate(&self) -> bool {
        match &self.list {
            List::All => false,
            List::Items(items) => self.group_by.is_some() || items.iter().any(|item| item.aggregate().is_some()),
        }
    }

    /// Run over all rows at once.
    pub fn run<R: std::borrow::Borrow<Value>>(&self, rows: impl IntoIterator<Item = R>) -> Vec<Value> {
        let mut executor = Executor::new(self);
        let mut results = Vec::new();
        for row in rows {
            if executor.is_done() {
                break;
            }
            results.extend(executor.push(row.borrow()));
        }
        results.extend(executor.finish());
        results
    }
}

impl Condition {
    /// Holds for every device.
    pub fn all() -> Condition {
        Condition::all_of(Source::Devices)
    }

    /// Holds for every row of the source.
    pub fn all_of(source: Source) -> Condition {
        Condition { source, expression: None }
    }

    /// Read the `queryCondition` of a job: `*` for all devices, else what would follow `WHERE`. One over modules names
    /// its source: `FROM devices.modules WHERE moduleId = 'm'`. The target condition of a configuration is written so,
    /// too.
    ///
    /// # Errors
    /// As [`Query::parse`]. A whole `SELECT` is refused, as Azure does when such a job starts.
    pub fn parse_job(text: &str) -> Result<Condition, QueryError> {
        parse::job_condition(text)
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// Whether it holds for every row, whatever is in it.
    pub fn is_all(&self) -> bool {
        self.expression.is_none()
    }

    pub fn matches(&self, row: &Value) -> bool {
        self.expression.as_ref().is_none_or(|expression| eval::holds(expression, row))
    }

    /// The text that root attribute `name` must equal for the condition to hold, if there is such a requirement.
    /// For the use of an index: rows found by it still have to match the whole condition.
    pub fn equals(&self, name: &str) -> Option<&str> {
        self.required().find_map(|expression| expression.equality(name))
    }

    /// The texts of which root attribute `name` must equal one: from `=` or `IN`. As [`Condition::equals`].
    pub fn one_of(&self, name: &str) -> Option<Vec<&str>> {
        self.required().find_map(|expression| match expression {
            Expression::In { value, list, negated: false } if value.is_root(name) => {
                // What is no text equals no text.
                Some(list.iter().filter_map(Constant::text).collect())
            }
            other => other.equality(name).map(|text| vec![text]),
        })
    }

    /// The expressions that must all hold.
    fn required(&self) -> impl Iterator<Item = &Expression> {
        match &self.expression {
            None => [].iter(),
            Some(Expression::And(all)) => all.iter(),
            Some(one) => std::slice::from_ref(one).iter(),
        }
    }
}

impl Source {
    /// What a path may begin with to say where it is from, besides `devices` alone.
    fn prefix(self) -> &'static [&'static str] {
        match self {
            Source::Devices => &["devices"],
            Source::Modules => &["devices", "modules"],
            Source::Jobs => &["devices", "jobs"],
        }
    }
}

impl ItemType {
    /// As the header has it; SDKs read it case-sensitively.
    pub fn name(self) -> &'static str {
        match self {
            ItemType::Twin => "Twin",
            ItemType::DeviceJob => "DeviceJob",
            ItemType::Raw => "Raw",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum List {
    All,
    Items(Vec<Item>),
}

#[derive(Debug, Clone, PartialEq)]
struct Item {
    value: ItemValue,
    alias: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum ItemValue {
    Expression(Expression),
    Aggregate(Aggregate),
}

#[derive(Debug, Clone, PartialEq)]
enum Aggregate {
    Count,
    Of(Fold, Path),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fold {
    Average,
    Sum,
    Minimum,
    Maximum,
}

impl Item {
    fn aggregate(&self) -> Option<&Aggregate> {
        match &self.value {
            ItemValue::Aggregate(aggregate) => Some(aggregate),
            ItemValue::Expression(_) => None,
        }
    }

    /// The member it becomes; `place` counts from 0.
    fn name(&self, place: usize) -> String {
        match (&self.alias, &self.value) {
            (Some(alias), _) => alias.clone(),
            (None, ItemValue::Expression(Expression::Path(path))) => path.last().to_owned(),
            (None, _) => format!("${}", place + 1),
        }
    }
}

impl Fold {
    const ALL: [Fold; 4] = [Fold::Average, Fold::Sum, Fold::Minimum, Fold::Maximum];

    fn name(self) -> &'static str {
        match self {
            Fold::Average => "AVG",
            Fold::Sum => "SUM",
            Fold::Minimum => "MIN",
            Fold::Maximum => "MAX",
        }
    }
}

/// A place in a row, without its source's prefix. Never empty.
#[derive(Debug, Clone, PartialEq)]
struct Path(Vec<String>);

impl Path {
    fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Constant {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
}

impl Constant {
    fn text(&self) -> Option<&str> {
        match self {
            Constant::Text(text) => Some(text),
            Constant::Null | Constant::Bool(_) | Constant::Number(_) => None,
        }
    }
}

/// Chains (`a AND b AND c`, `1 + 2 - 3`) are one flat node, so that a tree is never deeper than its text is nested.
#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Undefined,
    Constant(Constant),
    Path(Path),
    Call { function: Function, arguments: Vec<Expression> },
    Array(Vec<Expression>),
    Or(Vec<Expression>),
    And(Vec<Expression>),
    Not(Box<Expression>),
    Compare { left: Box<Expression>, comparison: Comparison, right: Box<Expression> },
    In { value: Box<Expression>, list: Vec<Constant>, negated: bool },
    Arithmetic { first: Box<Expression>, rest: Vec<(Operator, Expression)> },
    Negate(Box<Expression>),
}

impl Expression {
    fn is_root(&self, name: &str) -> bool {
        matches!(self, Expression::Path(Path(parts)) if parts.as_slice() == [name])
    }

    /// The text that root attribute `name` must equal, if that is what this says.
    fn equality(&self, name: &str) -> Option<&str> {
        let Expression::Compare { left, comparison: Comparison::Equal, right } = self else { return None };
        match (&**left, &**right) {
            (path, Expression::Constant(constant)) | (Expression::Constant(constant), path) if path.is_root(name) => {
                constant.text()
            }
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Comparison {
    const ALL: [Comparison; 6] = [
        Comparison::Equal,
        Comparison::NotEqual,
        Comparison::Less,
        Comparison::LessOrEqual,
        Comparison::Greater,
        Comparison::GreaterOrEqual,
    ];

    fn symbol(self) -> &'static str {
        match self {
            Comparison::Equal => "=",
            Comparison::NotEqual => "!=",
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        }
    }
}

impl Operator {
    fn symbol(self) -> &'static str {
        match self {
            Operator::Add => "+",
            Operator::Subtract => "-",
            Operator::Multiply => "*",
            Operator::Divide => "/",
            Operator::Remainder => "%",
        }
    }

    fn is_additive(self) -> bool {
        matches!(self, Operator::Add | Operator::Subtract)
    }
}
