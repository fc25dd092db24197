//! What a condition asks of single places in a row, for whoever has an index.

use super::{Comparison, Condition, Constant, Expression, Function, List, Path, Query};

/// Something that must hold of one place in a row, or the whole condition does not. More may be needed for the condition to
/// hold, so rows that were found by it still have to match.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement<'q> {
    /// Without the source's prefix: `["tags", "site"]`. Root attributes are spelt as rows have them.
    pub path: &'q [String],
    pub demand: Demand<'q>,
}

impl<'q> Requirement<'q> {
    /// Whether it is of the root attribute `name`.
    pub fn is_root(&self, name: &str) -> bool {
        self.path == [name]
    }

    /// The texts of which root attribute `name` must equal one, if this is what it says.
    pub fn root_texts(&self, name: &str) -> Option<Vec<&'q str>> {
        let Demand::OneOf(operands) = &self.demand else { return None };
        // What is no text equals no text.
        let texts = operands.iter().filter_map(|operand| match operand {
            Operand::Text(text) => Some(*text),
            _ => None,
        });
        self.is_root(name).then(|| texts.collect())
    }
}

/// What a place must hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Demand<'q> {
    /// One of these.
    OneOf(Vec<Operand<'q>>),
    /// This or more, of the same type.
    AtLeast(Operand<'q>),
    /// This or less, of the same type.
    AtMost(Operand<'q>),
    /// A text that begins so.
    StartsWith(&'q str),
}

/// A constant that something is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operand<'q> {
    Null,
    Bool(bool),
    Number(f64),
    Text(&'q str),
}

/// Which parts of a row a query looks at, beside `deviceId`: the others need not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    pub tags: bool,
    /// Desired properties with their version.
    pub desired: bool,
    /// Reported properties with their version.
    pub reported: bool,
    /// The metadata of desired and reported properties.
    pub metadata: bool,
    /// Everything else.
    pub rest: bool,
}

impl Parts {
    pub const ALL: Parts = Parts { tags: true, desired: true, reported: true, metadata: true, rest: true };

    /// What is in either.
    #[must_use]
    pub fn and(self, other: Parts) -> Parts {
        Parts {
            tags: self.tags || other.tags,
            desired: self.desired || other.desired,
            reported: self.reported || other.reported,
            metadata: self.metadata || other.metadata,
            rest: self.rest || other.rest,
        }
    }
}

impl Condition {
    /// What must hold of single places for the condition to hold.
    pub fn requirements(&self) -> Vec<Requirement<'_>> {
        self.required().filter_map(Expression::requirement).collect()
    }

    /// Which parts of a row decide whether the condition holds.
    pub fn parts(&self) -> Parts {
        self.expression.as_ref().map_or(Parts::default(), Expression::parts)
    }
}

impl Query {
    /// Which parts of a row decide what the answer is.
    pub fn parts(&self) -> Parts {
        // Every field is named, so that a new one that looks at rows is not forgotten here.
        let Query { top: _, list, condition, group_by } = self;
        let listed = match list {
            List::All => Parts::ALL,
            List::Items(items) => items.iter().map(|item| item.value.parts()).fold(Parts::default(), Parts::and),
        };
        let grouped = group_by.as_ref().map_or(Parts::default(), Path::parts);
        listed.and(condition.parts()).and(grouped)
    }
}

impl super::ItemValue {
    fn parts(&self) -> Parts {
        match self {
            super::ItemValue::Expression(expression) => expression.parts(),
            super::ItemValue::Aggregate(super::Aggregate::Count) => Parts::default(),
            super::ItemValue::Aggregate(super::Aggregate::Of(_, path)) => path.parts(),
        }
    }
}

impl Path {
    fn parts(&self) -> Parts {
        let mut names = self.0.iter().map(String::as_str);
        let none = Parts::default();
        match (names.next(), names.next(), names.next()) {
            (Some("deviceId" | "moduleId"), ..) => none,
            (Some("tags"), ..) => Parts { tags: true, ..none },
            (Some("properties"), Some("desired"), third) => {
                Parts { desired: true, metadata: third.is_none_or(|name| name == "$metadata"), ..none }
            }
            (Some("properties"), Some("reported"), third) => {
                Parts { reported: true, metadata: third.is_none_or(|name| name == "$metadata"), ..none }
            }
            (Some("properties"), ..) => Parts { desired: true, reported: true, metadata: true, ..none },
            _ => Parts::ALL,
        }
    }
}

impl Expression {
    fn requirement(&self) -> Option<Requirement<'_>> {
        let (place, demand) = match self {
            Expression::Compare { left, comparison, right } => match (&**left, &**right) {
                (place, Expression::Constant(constant)) => (place, comparison.demand(constant.operand()?)?),
                (Expression::Constant(constant), place) => (place, comparison.flipped().demand(constant.operand()?)?),
                _ => return None,
            },
            Expression::In { value, list, negated: false } => {
                let operands: Option<Vec<_>> = list.iter().map(Constant::operand).collect();
                (&**value, Demand::OneOf(operands?))
            }
            Expression::Call { function: Function::StartsWith, arguments } => match arguments.as_slice() {
                [place, Expression::Constant(prefix)] => (place, Demand::StartsWith(prefix.text()?)),
                _ => return None,
            },
            _ => return None,
        };
        let Expression::Path(Path(path)) = place else { return None };
        Some(Requirement { path, demand })
    }

    fn parts(&self) -> Parts {
        let all = |operands: &[Expression]| operands.iter().map(Expression::parts).fold(Parts::default(), Parts::and);
        match self {
            Expression::Undefined | Expression::Constant(_) => Parts::default(),
            Expression::Path(path) => path.parts(),
            Expression::Array(operands) | Expression::Or(operands) | Expression::And(operands) => all(operands),
            Expression::Call { function: _, arguments } => all(arguments),
            Expression::Not(operand) | Expression::Negate(operand) => operand.parts(),
            Expression::Compare { left, comparison: _, right } => left.parts().and(right.parts()),
            Expression::In { value, list: _, negated: _ } => value.parts(),
            Expression::Arithmetic { first, rest } => {
                rest.iter().map(|(_, operand)| operand.parts()).fold(first.parts(), Parts::and)
            }
        }
    }
}

impl Comparison {
    /// With its sides exchanged.
    fn flipped(self) -> Comparison {
        match self {
            Comparison::Less => Comparison::Greater,
            Comparison::LessOrEqual => Comparison::GreaterOrEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::LessOrEqual,
            same => same,
        }
    }

    fn demand(self, operand: Operand<'_>) -> Option<Demand<'_>> {
        match self {
            Comparison::Equal => Some(Demand::OneOf(vec![operand])),
            Comparison::Greater | Comparison::GreaterOrEqual => Some(Demand::AtLeast(operand)),
            Comparison::Less | Comparison::LessOrEqual => Some(Demand::AtMost(operand)),
            Comparison::NotEqual => None,
        }
    }
}

impl Constant {
    fn operand(&self) -> Option<Operand<'_>> {
        Some(match self {
            Constant::Null => Operand::Null,
            Constant::Bool(value) => Operand::Bool(*value),
            Constant::Number(number) => Operand::Number(*number),
            Constant::Text(text) => Operand::Text(text),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(text).expect(text)
    }

    #[test]
    fn what_must_hold_is_found_and_nothing_else() {
        let one_of = |operands: &[Operand<'static>]| Demand::OneOf(operands.to_vec());
        for (condition, expected) in [
            ("tags.site = 'x'", vec![("tags.site", one_of(&[Operand::Text("x")]))]),
            ("'x' = tags.site", vec![("tags.site", one_of(&[Operand::Text("x")]))]),
            ("DEVICEID IN ['a', 'b']", vec![("deviceId", one_of(&[Operand::Text("a"), Operand::Text("b")]))]),
            (
                "tags.a > 1 AND 5 >= tags.b",
                vec![
                    ("tags.a", Demand::AtLeast(Operand::Number(1.0))),
                    ("tags.b", Demand::AtMost(Operand::Number(5.0))),
                ],
            ),
            ("STARTS_WITH(deviceId, 'door-')", vec![("deviceId", Demand::StartsWith("door-"))]),
            ("tags.a = true AND (tags.b = 1 OR tags.c = 1)", vec![("tags.a", one_of(&[Operand::Bool(true)]))]),
            ("tags.a = 1 OR tags.b = 1", vec![]),
            ("NOT tags.a = 1", vec![]),
            ("tags.a != 1", vec![]),
            ("tags.a NIN [1]", vec![]),
            ("tags.a = tags.b", vec![]),
        ] {
            let query = query(&format!("SELECT * FROM devices WHERE {condition}"));
            let found = query.condition().requirements();
            let found: Vec<_> = found.into_iter().map(|found| (found.path.join("."), found.demand)).collect();
            let expected: Vec<_> = expected.into_iter().map(|(path, demand)| (path.to_owned(), demand)).collect();
            assert_eq!(found, expected, "{condition}");
        }
    }

    #[test]
    fn a_query_says_what_it_looks_at() {
        let none = Parts::default();
        for (text, expected) in [
            ("SELECT * FROM devices", Parts::ALL),
            ("SELECT deviceId FROM devices WHERE tags.site = 'x'", Parts { tags: true, ..none }),
            ("SELECT COUNT() AS n FROM devices GROUP BY tags.site", Parts { tags: true, ..none }),
            ("SELECT COUNT() AS n FROM devices", none),
            ("SELECT MAX(properties.reported.n) AS n FROM devices", Parts { reported: true, ..none }),
            ("SELECT properties.desired FROM devices", Parts { desired: true, metadata: true, ..none }),
            ("SELECT properties.desired.$version FROM devices", Parts { desired: true, ..none }),
            (
                "SELECT deviceId FROM devices WHERE properties.reported.$metadata.$lastUpdated > '2026'",
                Parts { reported: true, metadata: true, ..none },
            ),
            ("SELECT deviceId FROM devices WHERE status = 'enabled'", Parts::ALL),
            (
                "SELECT [tags.a, properties.reported.b] AS both FROM devices",
                Parts { tags: true, reported: true, ..none },
            ),
            ("SELECT tags.a + 2 * tags.b AS sum FROM devices", Parts { tags: true, ..none }),
            ("SELECT 1 + tags.a - status AS odd FROM devices", Parts::ALL),
        ] {
            assert_eq!(query(text).parts(), expected, "{text}");
        }
    }
}
