//! What an expression is for a row.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::functions::Function;
use super::{Comparison, Constant, Expression, Operator, Path};

/// A value while it is computed with: borrowed from the row or the query wherever it stands in one of them, so that
/// paths, constants and comparisons cost no memory. Numbers are doubles, which hold every integer that a twin may.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Term<'a> {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    /// An object or an array: can be projected and asked for its type, not compared.
    Composite(Cow<'a, Value>),
}

/// A condition holds only for the boolean `true`.
pub(super) fn holds(expression: &Expression, row: &Value) -> bool {
    evaluate(expression, row) == Term::Bool(true)
}

pub(super) fn evaluate<'a>(expression: &'a Expression, row: &'a Value) -> Term<'a> {
    match expression {
        Expression::Undefined => Term::Undefined,
        Expression::Constant(constant) => Term::from(constant),
        Expression::Path(path) => look_up(path, row),
        Expression::Call { function: Function::Concat, arguments } => concat(arguments, row),
        Expression::Call { function, arguments } => {
            let argument = |place| arguments.get(place).map_or(Term::Undefined, |argument| evaluate(argument, row));
            let third = arguments.get(2).map(|argument| evaluate(argument, row));
            call(*function, &argument(0), &argument(1), third.as_ref())
        }
        Expression::Array(elements) => {
            let elements = elements.iter().filter_map(|element| evaluate(element, row).into_json()).collect();
            Term::Composite(Cow::Owned(Value::Array(elements)))
        }
        Expression::Or(any) => decide(any, row, true),
        Expression::And(all) => decide(all, row, false),
        Expression::Not(operand) => not(evaluate(operand, row)),
        Expression::Compare { left, comparison, right } => {
            compare(&evaluate(left, row), *comparison, &evaluate(right, row))
        }
        Expression::In { value, list, negated } => {
            let found = is_in(&evaluate(value, row), list);
            if *negated { not(found) } else { found }
        }
        Expression::Arithmetic { first, rest } => {
            let first = evaluate(first, row).number();
            let result = rest.iter().try_fold(first, |left, (operator, operand)| {
                let (left, right) = (left?, evaluate(operand, row).number()?);
                Some(Some(compute(left, *operator, right)))
            });
            number(result.flatten())
        }
        Expression::Negate(operand) => number(evaluate(operand, row).number().map(|n| -n)),
    }
}

pub(super) fn look_up<'a>(path: &Path, row: &'a Value) -> Term<'a> {
    let found = path.0.iter().try_fold(row, |value, name| value.as_object()?.get(name));
    found.map_or(Term::Undefined, Term::from)
}

/// `OR` is decided by one `true`, `AND` by one `false`; else anything that is no boolean makes it undefined.
fn decide<'a>(operands: &[Expression], row: &Value, decisive: bool) -> Term<'a> {
    let mut result = Term::Bool(!decisive);
    for operand in operands {
        match evaluate(operand, row) {
            Term::Bool(value) if value == decisive => return Term::Bool(decisive),
            Term::Bool(_) => {}
            _ => result = Term::Undefined,
        }
    }
    result
}

fn not(term: Term<'_>) -> Term<'_> {
    match term {
        Term::Bool(value) => Term::Bool(!value),
        _ => Term::Undefined,
    }
}

fn compare<'a>(left: &Term<'_>, comparison: Comparison, right: &Term<'_>) -> Term<'a> {
    if !left.is_primitive() || !right.is_primitive() {
        return Term::Undefined;
    }
    let ordering = match (left, right) {
        (Term::Number(a), Term::Number(b)) => a.partial_cmp(b),
        (Term::Text(a), Term::Text(b)) => Some(a.cmp(b)),
        (Term::Bool(a), Term::Bool(b)) => Some(a.cmp(b)),
        (Term::Null, Term::Null) => Some(Ordering::Equal),
        _ => None,
    };
    match (comparison, ordering) {
        (Comparison::Equal, ordering) => Term::Bool(ordering == Some(Ordering::Equal)),
        (Comparison::NotEqual, ordering) => Term::Bool(ordering != Some(Ordering::Equal)),
        (_, None) => Term::Undefined,
        (Comparison::Less, Some(ordering)) => Term::Bool(ordering.is_lt()),
        (Comparison::LessOrEqual, Some(ordering)) => Term::Bool(ordering.is_le()),
        (Comparison::Greater, Some(ordering)) => Term::Bool(ordering.is_gt()),
        (Comparison::GreaterOrEqual, Some(ordering)) => Term::Bool(ordering.is_ge()),
    }
}

fn is_in<'a>(value: &Term<'_>, list: &[Constant]) -> Term<'a> {
    if !value.is_primitive() {
        return Term::Undefined;
    }
    Term::Bool(list.iter().any(|constant| Term::from(constant) == *value))
}

fn compute(left: f64, operator: Operator, right: f64) -> f64 {
    match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        Operator::Remainder => left % right,
    }
}

fn number<'a>(value: Option<f64>) -> Term<'a> {
    // A division by zero and the like is undefined: JSON has no infinity.
    value.filter(|value| value.is_finite()).map_or(Term::Undefined, Term::Number)
}

/// A function of at most three arguments, which are all but one.
fn call<'a>(function: Function, first: &Term<'_>, second: &Term<'_>, third: Option<&Term<'_>>) -> Term<'a> {
    match function {
        Function::IsDefined => Term::Bool(*first != Term::Undefined),
        Function::IsArray => Term::Bool(matches!(first, Term::Composite(value) if value.is_array())),
        Function::IsBool => Term::Bool(matches!(first, Term::Bool(_))),
        Function::IsNull => Term::Bool(*first == Term::Null),
        Function::IsNumber => Term::Bool(matches!(first, Term::Number(_))),
        Function::IsObject => Term::Bool(matches!(first, Term::Composite(value) if value.is_object())),
        Function::IsPrimitive => Term::Bool(first.is_primitive()),
        Function::IsString => Term::Bool(matches!(first, Term::Text(_))),
        Function::AsNumber => match first {
            Term::Text(text) => number(text.trim().parse().ok()),
            other => number(other.number()),
        },
        Function::Power => number(first.number().zip(second.number()).map(|(base, exponent)| base.powf(exponent))),
        Function::Abs => numeric(first, f64::abs),
        Function::Exp => numeric(first, f64::exp),
        Function::Square => numeric(first, |n| n * n),
        Function::Ceiling => numeric(first, f64::ceil),
        Function::Floor => numeric(first, f64::floor),
        Function::Sqrt => numeric(first, f64::sqrt),
        Function::Sign => numeric(first, |n| if n == 0.0 { 0.0 } else { n.signum() }),
        Function::Concat => Term::Undefined,
        Function::Length => first.text().map_or(Term::Undefined, |t| Term::Number(t.chars().count() as f64)),
        Function::Lower => first.text().map_or(Term::Undefined, |t| text(t.to_lowercase())),
        Function::Upper => first.text().map_or(Term::Undefined, |t| text(t.to_uppercase())),
        Function::Substring => substring(first, second, third).map_or(Term::Undefined, text),
        Function::StartsWith => with_texts(first, second, |t, part| Term::Bool(t.starts_with(part))),
        Function::EndsWith => with_texts(first, second, |t, part| Term::Bool(t.ends_with(part))),
        Function::Contains => with_texts(first, second, |t, part| Term::Bool(t.contains(part))),
        Function::IndexOf => with_texts(first, second, |t, part| {
            let before = t.find(part).and_then(|at| t.get(..at));
            Term::Number(before.map_or(-1.0, |before| before.chars().count() as f64))
        }),
    }
}

fn concat<'a>(arguments: &[Expression], row: &Value) -> Term<'a> {
    let mut whole = String::new();
    for argument in arguments {
        match evaluate(argument, row) {
            Term::Text(part) => whole.push_str(&part),
            _ => return Term::Undefined,
        }
    }
    text(whole)
}

fn numeric<'a>(argument: &Term<'_>, compute: impl Fn(f64) -> f64) -> Term<'a> {
    number(argument.number().map(compute))
}

fn with_texts<'a>(first: &Term<'_>, second: &Term<'_>, compute: impl Fn(&str, &str) -> Term<'a>) -> Term<'a> {
    first.text().zip(second.text()).map_or(Term::Undefined, |(first, second)| compute(first, second))
}

fn substring(whole: &Term<'_>, start: &Term<'_>, length: Option<&Term<'_>>) -> Option<String> {
    let count = |term: &Term<'_>| term.number().filter(|n| *n >= 0.0).map(|n| n as usize);
    let length = match length {
        Some(length) => count(length)?,
        None => usize::MAX,
    };
    Some(whole.text()?.chars().skip(count(start)?).take(length).collect())
}

fn text<'a>(text: String) -> Term<'a> {
    Term::Text(Cow::Owned(text))
}

impl Term<'_> {
    fn is_primitive(&self) -> bool {
        !matches!(self, Term::Undefined | Term::Composite(_))
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Term::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Term::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As JSON; `None` for undefined, which is left out of an answer.
    pub(super) fn into_json(self) -> Option<Value> {
        match self {
            Term::Undefined => None,
            Term::Null => Some(Value::Null),
            Term::Bool(value) => Some(Value::Bool(value)),
            Term::Number(number) => Some(json_number(number)),
            Term::Text(text) => Some(Value::String(text.into_owned())),
            Term::Composite(value) => Some(value.into_owned()),
        }
    }
}

/// Whole numbers without a fraction, as they stand in twins.
pub(super) fn json_number(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT { Value::from(number as i64) } else { Value::from(number) }
}

impl<'a> From<&'a Value> for Term<'a> {
    fn from(value: &'a Value) -> Term<'a> {
        match value {
            Value::Null => Term::Null,
            Value::Bool(value) => Term::Bool(*value),
            Value::Number(value) => number(value.as_f64()),
            Value::String(text) => Term::Text(Cow::Borrowed(text)),
            Value::Array(_) | Value::Object(_) => Term::Composite(Cow::Borrowed(value)),
        }
    }
}

impl<'a> From<&'a Constant> for Term<'a> {
    fn from(constant: &'a Constant) -> Term<'a> {
        match constant {
            Constant::Null => Term::Null,
            Constant::Bool(value) => Term::Bool(*value),
            Constant::Number(number) => Term::Number(*number),
            Constant::Text(text) => Term::Text(Cow::Borrowed(text)),
        }
    }
}
