//! A tree as text that parses to the same tree.

use std::fmt;

use super::functions::Function;
use super::lexer::{is_first_name, is_name, keyword};
use super::{Aggregate, Condition, Constant, Expression, Fold, Item, ItemValue, List, Operator, Path, Query, Source};

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.source();
        f.write_str("SELECT ")?;
        if let Some(top) = self.top {
            write!(f, "TOP {top} ")?;
        }
        match &self.list {
            List::All => f.write_str("*")?,
            List::Items(items) => separated(f, items, ", ", |f, item| write_item(f, item, source))?,
        }
        f.write_str(" ")?;
        write_source(f, &self.condition)?;
        if let Some(path) = &self.group_by {
            f.write_str(" GROUP BY ")?;
            write_path(f, path, source)?;
        }
        Ok(())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.source, &self.expression) {
            (Source::Devices, None) => f.write_str("*"),
            (Source::Devices, Some(expression)) => write_expression(f, expression, self.source),
            _ => write_source(f, self),
        }
    }
}

impl fmt::Display for Fold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Constant::Null => f.write_str("null"),
            Constant::Bool(value) => write!(f, "{value}"),
            // Whole numbers without a point; others, and very large ones, in the shortest form that reads back.
            Constant::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => write!(f, "{number}"),
            Constant::Number(number) => write!(f, "{number:?}"),
            Constant::Text(text) => {
                f.write_str("'")?;
                for c in text.chars() {
                    if c == '\'' || c == '\\' {
                        f.write_str("\\")?;
                    }
                    write!(f, "{c}")?;
                }
                f.write_str("'")
            }
        }
    }
}

/// How tightly an expression binds; it needs parentheses where more is wanted. The parser's levels, in its order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Or,
    And,
    Not,
    Comparison,
    Sum,
    Product,
    Signed,
    Primary,
}

fn binding(expression: &Expression) -> Binding {
    match expression {
        Expression::Or(_) => Binding::Or,
        Expression::And(_) => Binding::And,
        Expression::Not(_) => Binding::Not,
        Expression::Compare { .. } | Expression::In { .. } => Binding::Comparison,
        Expression::Arithmetic { rest, .. } if is_sum(rest) => Binding::Sum,
        Expression::Arithmetic { .. } => Binding::Product,
        Expression::Negate(_) => Binding::Signed,
        Expression::Constant(Constant::Number(number)) if number.is_sign_negative() => Binding::Signed,
        Expression::Undefined
        | Expression::Constant(_)
        | Expression::Path(_)
        | Expression::Call { .. }
        | Expression::Array(_) => Binding::Primary,
    }
}

fn is_sum(rest: &[(Operator, Expression)]) -> bool {
    rest.first().is_some_and(|(operator, _)| operator.is_additive())
}

fn write_source(f: &mut fmt::Formatter<'_>, condition: &Condition) -> fmt::Result {
    write!(f, "FROM {}", condition.source.prefix().join("."))?;
    match &condition.expression {
        None => Ok(()),
        Some(expression) => {
            f.write_str(" WHERE ")?;
            write_expression(f, expression, condition.source)
        }
    }
}

fn write_item(f: &mut fmt::Formatter<'_>, item: &Item, source: Source) -> fmt::Result {
    match &item.value {
        ItemValue::Expression(expression) => write_expression(f, expression, source)?,
        ItemValue::Aggregate(Aggregate::Count) => f.write_str("COUNT()")?,
        ItemValue::Aggregate(Aggregate::Of(fold, path)) => {
            write!(f, "{fold}(")?;
            write_path(f, path, source)?;
            f.write_str(")")?;
        }
    }
    match &item.alias {
        Some(alias) => write!(f, " AS {alias}"),
        None => Ok(()),
    }
}

fn write_expression(f: &mut fmt::Formatter<'_>, expression: &Expression, source: Source) -> fmt::Result {
    match expression {
        Expression::Undefined => f.write_str("undefined"),
        Expression::Constant(constant) => write!(f, "{constant}"),
        Expression::Path(path) => write_path(f, path, source),
        Expression::Call { function, arguments } => {
            write!(f, "{function}(")?;
            separated(f, arguments, ", ", |f, argument| write_expression(f, argument, source))?;
            f.write_str(")")
        }
        Expression::Array(elements) => {
            f.write_str("[")?;
            separated(f, elements, ", ", |f, element| write_expression(f, element, source))?;
            f.write_str("]")
        }
        Expression::Or(any) => separated(f, any, " OR ", |f, one| write_bound(f, one, Binding::And, source)),
        Expression::And(all) => separated(f, all, " AND ", |f, one| write_bound(f, one, Binding::Not, source)),
        Expression::Not(operand) => {
            f.write_str("NOT ")?;
            write_bound(f, operand, Binding::Not, source)
        }
        Expression::Compare { left, comparison, right } => {
            write_bound(f, left, Binding::Sum, source)?;
            write!(f, " {} ", comparison.symbol())?;
            write_bound(f, right, Binding::Sum, source)
        }
        Expression::In { value, list, negated } => {
            write_bound(f, value, Binding::Sum, source)?;
            f.write_str(if *negated { " NIN [" } else { " IN [" })?;
            separated(f, list, ", ", |f, constant| write!(f, "{constant}"))?;
            f.write_str("]")
        }
        Expression::Arithmetic { first, rest } => {
            let wanted = if is_sum(rest) { Binding::Product } else { Binding::Signed };
            write_bound(f, first, wanted, source)?;
            for (operator, operand) in rest {
                write!(f, " {} ", operator.symbol())?;
                write_bound(f, operand, wanted, source)?;
            }
            Ok(())
        }
        Expression::Negate(operand) => {
            f.write_str("-")?;
            write_bound(f, operand, Binding::Signed, source)
        }
    }
}

fn write_bound(f: &mut fmt::Formatter<'_>, expression: &Expression, wanted: Binding, source: Source) -> fmt::Result {
    if binding(expression) >= wanted {
        return write_expression(f, expression, source);
    }
    f.write_str("(")?;
    write_expression(f, expression, source)?;
    f.write_str(")")
}

/// With the source's prefix where the path would be read as something else without it.
fn write_path(f: &mut fmt::Formatter<'_>, path: &Path, source: Source) -> fmt::Result {
    let is_ambiguous = match path.0.as_slice() {
        [name] => !is_first_name(name) || keyword(name).is_some(),
        [first, ..] => !is_first_name(first) || first.eq_ignore_ascii_case("devices"),
        [] => false,
    };
    let prefix = if is_ambiguous { source.prefix() } else { &[] };
    let parts = prefix.iter().copied().chain(path.0.iter().map(String::as_str));
    for (place, part) in parts.enumerate() {
        if place > 0 {
            f.write_str(".")?;
        }
        if is_name(part) {
            f.write_str(part)?;
        } else {
            write!(f, "[[{part}]]")?;
        }
    }
    Ok(())
}

fn separated<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    separator: &str,
    write: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            f.write_str(separator)?;
        }
        write(f, item)?;
    }
    Ok(())
}
