//! Random trees over random rows: what is printed reads back, and what is computed is what a naive reading of the
//! language says.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::eval::evaluate;
use super::functions::Function;
use super::*;

fn name() -> impl Strategy<Value = String> {
    let odd = ["a", "b", "c", "odd key", "AND", "devices", "modules", "jobs", "1x", "é", "$version", "x-y", "[x", ""];
    prop::sample::select(odd.to_vec()).prop_map(str::to_owned)
}

/// Roots are as rows have them: a path to `DEVICEID` is one to `deviceId`.
fn path(source: Source) -> impl Strategy<Value = Path> {
    let mut roots = vec!["deviceId", "status", "devices", "modules", "jobs", "c", "select", "odd root", "7"];
    if source != Source::Jobs {
        roots.extend(["tags", "tags", "tags", "properties"]);
    }
    (prop::sample::select(roots), prop::collection::vec(name(), 0..3)).prop_map(|(root, mut parts)| {
        parts.insert(0, root.to_owned());
        Path(parts)
    })
}

fn number() -> impl Strategy<Value = f64> {
    let any = any::<f64>().prop_filter("not in JSON", |number| number.is_finite());
    prop_oneof![any, (-9i32..10).prop_map(f64::from), Just(1e15), Just(2f64.powi(53))]
}

fn constant() -> impl Strategy<Value = Constant> {
    prop_oneof![
        Just(Constant::Null),
        any::<bool>().prop_map(Constant::Bool),
        number().prop_map(Constant::Number),
        "[ab\\'\"\\\\\n\u{1F680}]{0,3}".prop_map(Constant::Text),
    ]
}

fn negated(operand: Expression) -> Expression {
    match operand {
        // A sign before a number is the number's.
        Expression::Constant(Constant::Number(number)) if number.is_sign_positive() => {
            Expression::Constant(Constant::Number(-number))
        }
        operand => Expression::Negate(Box::new(operand)),
    }
}

fn call() -> impl Strategy<Value = (Function, usize)> {
    prop::sample::select(Function::ALL.to_vec()).prop_flat_map(|function| {
        let most = (*function.arity().end()).min(4);
        (Just(function), *function.arity().start()..=most)
    })
}

fn expression(source: Source) -> impl Strategy<Value = Expression> {
    let leaf = prop_oneof![
        1 => Just(Expression::Undefined),
        4 => constant().prop_map(Expression::Constant),
        4 => path(source).prop_map(Expression::Path),
    ];
    leaf.prop_recursive(5, 48, 4, |inner| {
        let several = prop::collection::vec(inner.clone(), 2..4);
        let operators = |operators: &[Operator]| prop::sample::select(operators.to_vec());
        let chain = |first: BoxedStrategy<Expression>, operator: BoxedStrategy<Operator>| {
            let rest = prop::collection::vec((operator, first.clone()), 1..3);
            (first, rest).prop_map(|(first, rest)| Expression::Arithmetic { first: Box::new(first), rest })
        };
        let boxed = inner.clone().boxed();
        prop_oneof![
            several.clone().prop_map(Expression::Or),
            several.clone().prop_map(Expression::And),
            inner.clone().prop_map(|operand| Expression::Not(Box::new(operand))),
            inner.clone().prop_map(negated),
            (inner.clone(), prop::sample::select(Comparison::ALL.to_vec()), inner.clone()).prop_map(
                |(left, comparison, right)| Expression::Compare {
                    left: Box::new(left),
                    comparison,
                    right: Box::new(right)
                }
            ),
            (inner.clone(), prop::collection::vec(constant(), 0..4), any::<bool>())
                .prop_map(|(value, list, negated)| Expression::In { value: Box::new(value), list, negated }),
            chain(boxed.clone(), operators(&[Operator::Add, Operator::Subtract]).boxed()),
            chain(boxed, operators(&[Operator::Multiply, Operator::Divide, Operator::Remainder]).boxed()),
            (call(), prop::collection::vec(inner.clone(), 4)).prop_map(|((function, count), mut arguments)| {
                arguments.truncate(count);
                Expression::Call { function, arguments }
            }),
            prop::collection::vec(inner, 0..3).prop_map(Expression::Array),
        ]
    })
}

fn aggregate(source: Source) -> impl Strategy<Value = ItemValue> {
    let fold = (prop::sample::select(Fold::ALL.to_vec()), path(source));
    prop_oneof![Just(Aggregate::Count), fold.prop_map(|(fold, path)| Aggregate::Of(fold, path))]
        .prop_map(ItemValue::Aggregate)
}

fn named(values: Vec<ItemValue>) -> List {
    let items = values.into_iter().enumerate();
    List::Items(items.map(|(place, value)| Item { value, alias: Some(format!("n{place}")) }).collect())
}

fn folds(source: Source) -> impl Strategy<Value = (List, Option<Path>)> {
    let parts = (prop::collection::vec(aggregate(source), 1..4), prop::option::weighted(0.8, path(source)));
    parts.prop_map(|(mut values, group)| {
        values.extend(group.clone().map(|path| ItemValue::Expression(Expression::Path(path))));
        (named(values), group)
    })
}

fn list_and_group(source: Source) -> BoxedStrategy<(List, Option<Path>)> {
    if source == Source::Jobs {
        return Just((List::All, None)).boxed();
    }
    let plain = prop::collection::vec(expression(source).prop_map(ItemValue::Expression), 1..4).prop_map(named);
    prop_oneof![Just((List::All, None)), plain.prop_map(|list| (list, None)), folds(source)].boxed()
}

fn query_of(
    source: Source,
    list_and_group: impl Strategy<Value = (List, Option<Path>)>,
) -> impl Strategy<Value = Query> {
    let top = prop::option::of(prop_oneof![1u64..4, 1u64..1_000_000_000]);
    let condition = prop::option::of(expression(source));
    (top, list_and_group, condition).prop_map(move |(top, (list, group_by), expression)| Query {
        top,
        list,
        condition: Condition { source, expression },
        group_by,
    })
}

fn query() -> impl Strategy<Value = Query> {
    prop::sample::select(vec![Source::Devices, Source::Modules, Source::Jobs])
        .prop_flat_map(|source| query_of(source, list_and_group(source)))
}

/// With groups, over all rows.
fn grouped() -> impl Strategy<Value = Query> {
    query_of(Source::Devices, folds(Source::Devices))
        .prop_map(|query| Query { condition: Condition { expression: None, ..query.condition }, ..query })
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..4).prop_map(Value::from),
        number().prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn row() -> impl Strategy<Value = Value> {
    (json_value(), json_value(), json_value()).prop_map(
        |(tags, reported, devices)| json!({"deviceId": "a", "tags": tags, "properties": reported, "devices": devices}),
    )
}

/// The language as its documentation reads, one case after the other, without a thought for speed. `None` is
/// undefined.
fn naive(expression: &Expression, row: &Value) -> Option<Value> {
    match expression {
        Expression::Undefined => None,
        Expression::Constant(constant) => Some(match constant {
            Constant::Null => Value::Null,
            Constant::Bool(value) => json!(value),
            Constant::Number(number) => json!(number),
            Constant::Text(text) => json!(text),
        }),
        Expression::Path(Path(parts)) => {
            let empty = Map::new();
            let mut value = row;
            for part in parts {
                value = value.as_object().unwrap_or(&empty).get(part)?;
            }
            Some(value.clone())
        }
        Expression::Or(operands) => {
            let values: Vec<_> = operands.iter().map(|operand| truth(naive(operand, row))).collect();
            let known = values.contains(&Some(true)).then_some(true);
            known.or_else(|| values.iter().all(|value| *value == Some(false)).then_some(false)).map(Value::from)
        }
        Expression::And(operands) => {
            let values: Vec<_> = operands.iter().map(|operand| truth(naive(operand, row))).collect();
            let known = values.contains(&Some(false)).then_some(false);
            known.or_else(|| values.iter().all(|value| *value == Some(true)).then_some(true)).map(Value::from)
        }
        Expression::Not(operand) => truth(naive(operand, row)).map(|value| json!(!value)),
        Expression::Compare { left, comparison, right } => {
            let (left, right) = (primitive(naive(left, row))?, primitive(naive(right, row))?);
            let order = order(&left, &right);
            let is = match comparison {
                Comparison::Equal => order == Some(0),
                Comparison::NotEqual => order != Some(0),
                Comparison::Less => order? < 0,
                Comparison::LessOrEqual => order? <= 0,
                Comparison::Greater => order? > 0,
                Comparison::GreaterOrEqual => order? >= 0,
            };
            Some(json!(is))
        }
        Expression::In { value, list, negated } => {
            let value = primitive(naive(value, row))?;
            let found = list.iter().any(|constant| {
                let constant = naive(&Expression::Constant(constant.clone()), row);
                constant.is_some_and(|constant| order(&value, &constant) == Some(0))
            });
            Some(json!(found != *negated))
        }
        Expression::Arithmetic { first, rest } => {
            let mut result = naive(first, row)?.as_f64()?;
            for (operator, operand) in rest {
                let operand = naive(operand, row)?.as_f64()?;
                result = match operator {
                    Operator::Add => result + operand,
                    Operator::Subtract => result - operand,
                    Operator::Multiply => result * operand,
                    Operator::Divide => result / operand,
                    Operator::Remainder => result % operand,
                };
            }
            result.is_finite().then(|| json!(result))
        }
        Expression::Negate(operand) => Some(json!(-naive(operand, row)?.as_f64()?)),
        Expression::Array(elements) => Some(elements.iter().filter_map(|element| naive(element, row)).collect()),
        // Functions have a table of their own.
        Expression::Call { .. } => evaluate(expression, row).into_json(),
    }
}

fn truth(value: Option<Value>) -> Option<bool> {
    value?.as_bool()
}

fn primitive(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !value.is_object() && !value.is_array())
}

/// `None` for what has no order.
fn order(left: &Value, right: &Value) -> Option<i8> {
    let ordering = match (left, right) {
        (Value::Null, Value::Null) => std::cmp::Ordering::Equal,
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?)?,
        (Value::String(a), Value::String(b)) => a.cmp(b),
        _ => return None,
    };
    Some(ordering as i8)
}

/// With all numbers as doubles, so that 1 and 1.0 are one.
fn doubles(value: Option<Value>) -> Option<Value> {
    value.map(|value| match value {
        Value::Number(number) => json!(number.as_f64().map(|number| number + 0.0)),
        Value::Array(all) => all.into_iter().filter_map(|value| doubles(Some(value))).collect(),
        Value::Object(all) => {
            Value::Object(all.into_iter().filter_map(|(name, value)| Some((name, doubles(Some(value))?))).collect())
        }
        other => other,
    })
}

fn both(node: fn(Vec<Expression>) -> Expression, a: &Expression, b: &Expression) -> Expression {
    node(vec![a.clone(), b.clone()])
}

fn not(operand: Expression) -> Expression {
    Expression::Not(Box::new(operand))
}

fn compare(left: &Expression, comparison: Comparison, right: &Expression) -> Expression {
    Expression::Compare { left: Box::new(left.clone()), comparison, right: Box::new(right.clone()) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_printed_query_reads_back(query in query()) {
        let printed = query.to_string();
        prop_assume!(printed.chars().count() <= MAX_QUERY);
        prop_assert_eq!(Query::parse(&printed), Ok(query), "{}", printed);
    }

    #[test]
    fn what_is_computed_is_what_the_language_says(expression in expression(Source::Devices), row in row()) {
        let computed = evaluate(&expression, &row).into_json();
        let expected = naive(&expression, &row);
        prop_assert_eq!(doubles(computed), doubles(expected.clone()));
        let condition = Condition { source: Source::Devices, expression: Some(expression) };
        prop_assert_eq!(condition.matches(&row), expected == Some(json!(true)));
    }

    #[test]
    fn logic_is_an_algebra(a in expression(Source::Devices), b in expression(Source::Devices), row in row()) {
        let value = |expression: &Expression| evaluate(expression, &row).into_json();
        let same = |left: Expression, right: Expression| prop_assert_eq_values(value(&left), value(&right));
        same(both(Expression::And, &a, &b), both(Expression::And, &b, &a))?;
        same(both(Expression::Or, &a, &b), both(Expression::Or, &b, &a))?;
        same(not(both(Expression::And, &a, &b)), both(Expression::Or, &not(a.clone()), &not(b.clone())))?;
        same(not(both(Expression::Or, &a, &b)), both(Expression::And, &not(a.clone()), &not(b.clone())))?;
        same(not(not(not(a.clone()))), not(a.clone()))?;
        same(compare(&a, Comparison::NotEqual, &b), not(compare(&a, Comparison::Equal, &b)))?;
        same(compare(&a, Comparison::Less, &b), not(compare(&a, Comparison::GreaterOrEqual, &b)))?;
        same(compare(&a, Comparison::Less, &b), compare(&b, Comparison::Greater, &a))?;
    }

    #[test]
    fn any_query_takes_any_rows(query in query(), rows in prop::collection::vec(row(), 0..6)) {
        let answer = query.run(&rows);
        prop_assert!(query.top().is_none_or(|top| answer.len() as u64 <= top));
        if query.is_aggregate() {
            prop_assert!(answer.len() <= rows.len().max(1));
        } else {
            let matching = rows.iter().filter(|row| query.condition().matches(row)).count() as u64;
            prop_assert_eq!(answer.len() as u64, matching.min(query.top().unwrap_or(u64::MAX)));
        }
    }

    #[test]
    fn pages_of_groups_are_the_groups(query in grouped(), rows in prop::collection::vec(row(), 0..9), limit in 1usize..4) {
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let mut page = Executor::page_of_groups(&query, paged.len() as u64, after.take(), limit);
            rows.iter().for_each(|row| assert!(page.push(row).is_none(), "groups come at the end"));
            let (groups, next) = page.finish_page();
            prop_assert!(groups.len() <= limit);
            paged.extend(groups);
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        prop_assert_eq!(paged, query.run(&rows));
    }
}

fn prop_assert_eq_values(left: Option<Value>, right: Option<Value>) -> Result<(), TestCaseError> {
    prop_assert_eq!(left, right);
    Ok(())
}
