use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn twin() -> Value {
    json!({
        "deviceId": "door-1", "status": "enabled", "connectionState": "Connected",
        "statusUpdateTime": "2021-05-07T00:50:38.0543092Z",
        "tags": {"site": "A", "Floor": 3, "odd key": {"x": 1}, "nothing": null, "list": [1], "true": true},
        "properties": {"desired": {"$version": 4}, "reported": {"temp": 21.5, "fw": "1.2.0"}},
    })
}

#[track_caller]
fn holds(condition: &str, expected: bool) {
    let parsed = Condition::parse_job(condition).unwrap_or_else(|e| panic!("{condition}: {e}"));
    assert_eq!(parsed.matches(&twin()), expected, "{condition}");
}

#[track_caller]
fn refused(query: &str, line: usize, column: usize, message: &str) {
    let error = Query::parse(query).expect_err(query);
    assert_eq!((error.line, error.column, error.message.as_str()), (line, column, message), "{query}");
}

#[test]
fn conditions_hold_only_for_true() {
    for condition in [
        "*",
        "deviceId = 'door-1'",
        "DEVICEID = \"door-1\"",
        "devices.deviceId IN ['x', 'door-1']",
        "deviceId NIN ['x']",
        "tags.site = 'A' AND tags.Floor >= 3",
        "tags.[[odd key]].x = 1",
        "properties.desired.$version = 0x4",
        "properties.reported.temp > 20 and properties.reported.temp < 22",
        "IS_DEFINED(DeviceId)",
        "is_defined(tags.nothing)",
        "NOT IS_DEFINED(tags.absent)",
        "tags.absent = 1 OR tags.site = 'A'",
        "NOT (tags.absent = 1 AND tags.site = 'B')",
        "tags.nothing = null",
        "tags.site != null",
        "tags.site <> 1",
        "tags.true",
        "1 + 2 * 3 - -4 = 11 AND (1 + 2) * 3 = 9 AND 7 % 4 = 3",
        "10 - 4 - 3 = 3 AND 16 / 4 / 2 = 2",
        "false AND false OR true",
        "NOT false = true",
        "STARTS_WITH(deviceId, 'door-') AND ENDS_WITH(deviceId, '1') AND CONTAINS(deviceId, '-')",
        "CONCAT(UPPER(tags.site), LOWER('B'), 'c') = 'Abc' AND LENGTH(deviceId) = 6",
        "SUBSTRING(deviceId, 5) = '1' AND SUBSTRING('abc', 1, 1) = 'b' AND INDEX_OF(deviceId, 'r') = 3",
        "ABS(-2) = 2 AND POWER(2, 3) = 8 AND SQUARE(3) = 9 AND SQRT(9) = 3 AND SIGN(-4) = -1 AND EXP(0) = 1",
        "CEILING(1.2) = 2 AND FLOOR(-1.2) = -2 AND AS_NUMBER('1.5') = 1.5",
        "IS_ARRAY(tags.list) AND IS_OBJECT(tags) AND IS_STRING(tags.site) AND IS_NUMBER(tags.Floor)",
        "IS_NULL(tags.nothing) AND IS_BOOL(true) AND IS_PRIMITIVE(1) AND NOT IS_PRIMITIVE(tags)",
        r"'it\'s' = 'it\u0027s' AND '\ud83d\ude80' = '🚀'",
        "STARTSWITH(deviceId, 'door-') AND endsWith(deviceId, '1')",
        "'it''s' = \"it's\" AND 'a\"\"b' != \"a\"\"b\" AND LENGTH('''') = 1 AND '' IN ['']",
        "devices.tags.site = 'A'",
        "IS_ARRAY([1, tags.site]) AND IS_ARRAY([]) AND NOT IS_PRIMITIVE([[1], [2]])",
        "tags.site < 'B' AND tags.site >= 'A' AND 'a' > 'B'",
        "statusUpdatedTime > '2021-05-07' AND statusUpdateTime < '2021-05-08T00:00:00'",
        "false < true AND null = null AND NOT true != true",
        "0x10 = 16 AND 0XfF = 255 AND 1e2 = 100 AND 1.5E-1 = 0.15",
    ] {
        holds(condition, true);
    }
    for condition in [
        "null",
        "undefined",
        "'true'",
        "1",
        "tags",
        "tags.Site = 'A'",
        "tags.floor = 3",
        "tags.absent != 1",
        "NOT tags.absent = 1",
        "tags = tags",
        "tags.list IN [1]",
        "tags.absent NIN [1]",
        "tags.site < 1",
        "1 / 0 = 1 / 0",
        "tags.site = 'A' AND 'A'",
        "deviceId IN []",
        "STARTS_WITH(tags.Floor, '3')",
        "tags.list = [1]",
        "[1] = [1] OR [1] IN [1]",
        "tags.site + 'x' = 'Ax'",
        "null < 1 OR null > 1 OR null < null",
        "tags.site IN ['a', 1, null]",
        "AS_NUMBER('inf') > 0 OR AS_NUMBER(tags.absent) = AS_NUMBER(tags.absent)",
    ] {
        holds(condition, false);
    }
}

#[test]
fn errors_say_where() {
    refused("", 1, 1, "Unexpected end of the text, expected SELECT");
    refused(
        "SELECT *\nFROM twins",
        2,
        6,
        "Unexpected character at input 'twins', expected devices, devices.modules or devices.jobs",
    );
    refused("SELECT * FROM devices WHERE", 1, 28, "Unexpected end of the text, expected a value");
    refused("SELECT * FROM devices WHERE a = = b", 1, 33, "Unexpected character at input '=', expected a value");
    refused("SELECT * FROM devices WHERE a IN ('b')", 1, 34, "Unexpected character at input '(', expected '['");
    refused("SELECT * FROM devices WHERE a = 'b", 1, 33, "The text that begins here has no closing '");
    refused("SELECT * FROM devices WHERE a = 12x", 1, 33, "'12x' is not a number");
    refused("SELECT * FROM devices WHERE a = 1e999", 1, 33, "'1e999' is not a number");
    refused("SELECT * FROM devices WHERE a ~ 1", 1, 31, "Unexpected character at input '~'");
    refused("SELECT * FROM devices WHERE nope(1)", 1, 29, "Unknown function 'nope'");
    refused("SELECT * FROM devices WHERE POWER(1)", 1, 29, "POWER does not take 1 arguments");
    refused(
        "SELECT * FROM devices WHERE COUNT() > 1",
        1,
        29,
        "The aggregate 'COUNT' can only be an item of the SELECT list",
    );
    refused("SELECT COUNT(*) FROM devices", 1, 14, "Unexpected character at input '*', COUNT() takes no argument");
    refused(
        "SELECT COUNT() FROM devices GROUP BY tags.a, tags.b",
        1,
        44,
        "Unexpected character at input ',', GROUP BY takes one path",
    );
    refused(
        "SELECT * FROM devices WHERE tags['a b'] = 1",
        1,
        33,
        "Unexpected character at input '[', odd names in a path are written .[[name]]",
    );
    refused(
        "SELECT * FROM devices.jobs WHERE devices.tags.a = 1",
        1,
        34,
        "Queries FROM devices.jobs cannot refer to the device's twin ('tags')",
    );
    refused("SELECT TOP 0 * FROM devices", 1, 12, "Unexpected character at input '0', TOP needs a whole number from 1");
    refused("SELECT tags.a. FROM devices", 1, 15, "A name must follow the dot; odd names are written [[name]]");
    refused("SELECT tags.[[a FROM devices", 1, 13, "[[ is not closed by ]]");
    refused("SELECT a.x, b.x FROM devices", 1, 8, "Two items are called 'x', rename one of them with AS");
    refused("SELECT a, COUNT() FROM devices", 1, 8, "Item 1 is neither an aggregate nor what the query groups by");
    refused("SELECT * FROM devices GROUP BY tags.a", 1, 8, "SELECT * cannot be grouped");
    refused("SELECT jobId FROM devices.jobs", 1, 8, "FROM devices.jobs allows SELECT * only");
    refused(&"x".repeat(MAX_QUERY + 1), 1, 1, "The text is longer than 8192 characters");
}

#[test]
fn what_other_languages_have_is_refused_by_name() {
    for (word, query) in [
        ("ORDER", "SELECT * FROM devices ORDER BY deviceId"),
        ("ORDER", "SELECT * FROM devices WHERE tags.a = 1 order by deviceId DESC"),
        ("HAVING", "SELECT COUNT() AS n FROM devices GROUP BY tags.a HAVING n > 1"),
        ("DISTINCT", "SELECT DISTINCT tags.a FROM devices"),
        ("VALUE", "SELECT VALUE deviceId FROM devices"),
        ("JOIN", "SELECT * FROM devices JOIN devices.modules"),
        ("LIMIT", "SELECT * FROM devices LIMIT 5"),
        ("LIKE", "SELECT * FROM devices WHERE deviceId LIKE 'a%'"),
        ("BETWEEN", "SELECT * FROM devices WHERE tags.a BETWEEN 1 AND 2"),
    ] {
        let error = Query::parse(query).expect_err(query);
        assert!(error.message.contains("Unexpected character at input"), "{error}");
        assert!(error.message.ends_with(&format!("IoT Hub's query language has no {word}")), "{error}");
    }
    refused("SELECT * FROM devices d", 1, 23, "Unexpected character at input 'd'");
    refused("SELECT d.deviceId FROM devices AS d", 1, 32, "Unexpected character at input 'AS'");
    // They are names all the same.
    Query::parse("SELECT tags.order, [[1], value] AS x FROM devices WHERE limit = 1 GROUP BY tags.like")
        .expect_err("items");
    Query::parse("SELECT tags.order, value FROM devices WHERE limit = 1 AND exists > offset").expect("names");
}

#[test]
fn a_jobs_condition_is_no_query() {
    let error = Condition::parse_job("SELECT * FROM devices").expect_err("a query");
    let text = "SQL query parse failed due to following errors: Line 1:29 Unexpected character at input 'SELECT'";
    assert!(error.to_string().starts_with(text), "{error}");
    assert_eq!(HubError::from(error).code, ErrorCode::ArgumentInvalid);
    let error = Condition::parse_job("FROM devices.jobs WHERE jobId = 'j'").expect_err("jobs");
    assert_eq!((error.column, error.message.as_str()), (10, "A condition is FROM devices or FROM devices.modules"));
    assert_eq!(Condition::parse_job("fromage =").expect_err("half of one").column, 38);
    let error = Condition::parse_job("from devices.modules where moduleId =").expect_err("half of one");
    assert_eq!((error.column, error.message.as_str()), (47, "Unexpected end of the text, expected a value"));
    assert!(Condition::parse_job(" ").is_err());
    assert!(Condition::parse_job("* AND x").is_err());
    let module = json!({"deviceId": "d", "moduleId": "m", "tags": {"building": 9}});
    for (text, source, matches) in [
        ("FROM devices.modules WHERE ModuleId = 'm'", Source::Modules, true),
        ("from devices.modules where tags.building = 8", Source::Modules, false),
        ("FROM devices.modules", Source::Modules, true),
        ("FROM devices WHERE tags.building = 9", Source::Devices, true),
        ("FROM devices", Source::Devices, true),
    ] {
        let condition = Condition::parse_job(text).expect(text);
        assert_eq!((condition.source(), condition.matches(&module)), (source, matches), "{text}");
        assert_eq!(Condition::parse_job(&condition.to_string()).as_ref(), Ok(&condition), "{condition}");
    }
}

#[test]
fn nesting_is_bounded_and_length_is_not_depth() {
    for (open, close) in [("(", ")"), ("NOT ", ""), ("-", ""), ("ABS(", ")"), ("-(", ")"), ("[", "]")] {
        let deep = format!("{}1{}", open.repeat(1000), close.repeat(1000));
        assert!(Condition::parse_job(&deep).expect_err(open).message.contains("nested"), "{open}");
    }
    // As deep as may be is not too deep for a thread's stack: to read, to compute, to print and to read again.
    for (open, close) in [("(", ")"), ("NOT ", ""), ("-", ""), ("ABS(", ")"), ("[", "]"), ("1 - (", ")")] {
        let deep = format!("{}a{}", open.repeat(63), close.repeat(63));
        let condition = Condition::parse_job(&deep).expect(open);
        assert!(!condition.matches(&json!({"a": 1})), "{open}");
        assert_eq!(Condition::parse_job(&condition.to_string()), Ok(condition), "{open}");
    }
    for operator in ["+", "*", " OR ", " AND "] {
        let long = vec!["1"; 1300].join(operator);
        let condition = Condition::parse_job(&long).expect(operator);
        assert!(!condition.matches(&Value::Null));
        assert_eq!(Condition::parse_job(&condition.to_string().replace(" + ", "+").replace(" * ", "*")), Ok(condition));
    }
}

fn rows() -> Vec<Value> {
    [("a", Some("x"), 1), ("b", Some("y"), 2), ("c", Some("x"), 4), ("d", None, 8)]
        .map(|(id, state, n)| json!({"deviceId": id, "tags": {"n": n}, "properties": {"reported": {"s": state}}}))
        .into_iter()
        .map(|mut row| {
            if row["properties"]["reported"]["s"].is_null() {
                row["properties"]["reported"] = json!({});
            }
            row
        })
        .collect()
}

#[track_caller]
fn answers(query: &str, expected: Value) {
    let parsed = Query::parse(query).unwrap_or_else(|e| panic!("{query}: {e}"));
    assert_eq!(Value::Array(parsed.run(rows())), expected, "{query}");
    assert_eq!(Query::parse(&parsed.to_string()).as_ref(), Ok(&parsed), "{parsed}");
}

#[test]
fn queries_project_group_and_aggregate() {
    answers("select DEVICEID from devices where devices.tags.n > 2", json!([{"deviceId": "c"}, {"deviceId": "d"}]));
    answers("SELECT TOP 1 deviceId AS id, tags.n * 2, 'k' AS k FROM devices", json!([{"id": "a", "$2": 2, "k": "k"}]));
    answers("SELECT c.tags FROM c WHERE c.deviceId = 'b'", json!([{"tags": {"n": 2}}]));
    answers("SELECT properties.reported.s FROM devices WHERE deviceId = 'd'", json!([{}]));
    answers(
        "SELECT properties.reported.s AS s, COUNT() AS n FROM devices GROUP BY properties.reported.s",
        json!([{"n": 1}, {"s": "x", "n": 2}, {"s": "y", "n": 1}]),
    );
    answers(
        "SELECT COUNT(), AVG(tags.n) AS a, SUM(tags.n) AS s, MIN(deviceId) AS lo, MAX(tags.n) AS hi FROM devices",
        json!([{"$1": 4, "a": 3.75, "s": 15, "lo": "a", "hi": 8}]),
    );
    answers("SELECT COUNT() AS n, SUM(tags.n) AS s FROM devices WHERE false", json!([{"n": 0}]));
    answers("SELECT COUNT() AS n FROM devices WHERE false GROUP BY tags.n", json!([]));
    answers("SELECT TOP 2 tags.n FROM devices GROUP BY tags.n", json!([{"n": 1}, {"n": 2}]));
    assert_eq!(Query::parse("SELECT TOP 3 * FROM devices").expect("a query").run(rows()), rows()[..3]);
}

#[test]
fn a_path_may_begin_with_its_source() {
    let module = json!({"deviceId": "d", "moduleId": "m", "properties": {"reported": {"State": "Running"}}});
    for (query, rows) in [
        ("select * from devices.modules where devices.deviceId = 'd'", json!([module])),
        (
            "SELECT properties.reported.State FROM devices.modules WHERE devices.modules.moduleId = 'm' and \
          devices.deviceId = 'd'",
            json!([{"State": "Running"}]),
        ),
        (
            "SELECT deviceId, ModuleId FROM devices.modules WHERE deviceId IN ['d', 'e']",
            json!([{"deviceId": "d", "moduleId": "m"}]),
        ),
        ("SELECT COUNT() AS n FROM devices.modules GROUP BY properties.reported.State", json!([{"n": 1}])),
        ("SELECT * FROM devices.modules WHERE devices.modules.devices.deviceId = 'd'", json!([])),
    ] {
        let parsed = Query::parse(query).unwrap_or_else(|e| panic!("{query}: {e}"));
        assert_eq!(Value::Array(parsed.run([&module])), rows, "{query}");
        assert_eq!(Query::parse(&parsed.to_string()).as_ref(), Ok(&parsed), "{parsed}");
    }
    let job =
        json!({"deviceId": "d", "jobId": "j", "status": "completed", "createdDateTimeUtc": "2016-09-29T18:18:56Z"});
    for (condition, expected) in [
        ("devices.jobs.deviceId = 'd' AND devices.jobs.status = 'completed'", true),
        ("devices.jobs.createdTimeUtc > '2016-09-01' AND JOBID = 'j'", true),
        ("devices.jobs.createdDateTimeUtc > '2016-10'", false),
    ] {
        let query = Query::parse(&format!("SELECT * FROM devices.jobs WHERE {condition}")).expect(condition);
        assert_eq!(query.condition().matches(&job), expected, "{condition}");
    }
}

#[test]
fn groups_come_in_the_order_of_their_value() {
    let values = [json!("b"), json!(10), json!(9), json!({"x": 1}), json!(null), json!(true), json!("a"), json!(9.0)];
    let rows: Vec<Value> = values.into_iter().map(|value| json!({"tags": {"v": value}})).collect();
    let query = Query::parse("SELECT tags.v, COUNT() AS n FROM devices GROUP BY tags.v").expect("a query");
    let expected = json!([
        {"v": null, "n": 1}, {"v": true, "n": 1}, {"v": 9, "n": 2}, {"v": 10, "n": 1}, {"v": "a", "n": 1},
        {"v": "b", "n": 1}, {"v": {"x": 1}, "n": 1},
    ]);
    assert_eq!(Value::Array(query.run(&rows)), expected);
    let mut page = Executor::page_of_groups(&query, 0, None, 2);
    rows.iter().for_each(|row| assert_eq!(page.push(row), None));
    let (first, next) = page.finish_page();
    assert_eq!(first, expected.as_array().expect("rows")[..2]);
    // Rows that come between two pages are in the next one if their group is.
    let mut page = Executor::page_of_groups(&query, 2, next, 9);
    let late = [json!({"tags": {"v": false}}), json!({"tags": {"v": 9}})];
    rows.iter().chain(&late).for_each(|row| assert_eq!(page.push(row), None));
    let (rest, end) = page.finish_page();
    assert_eq!((rest[0].clone(), rest.len(), end), (json!({"v": 9, "n": 3}), 5, None));
}

#[test]
fn aggregates_leave_out_what_has_no_order() {
    let rows = [json!("x"), json!(2), json!(null), json!({}), json!(5), json!(true)].map(|v| json!({"tags": {"v": v}}));
    let query = "SELECT MIN(tags.v) AS least, MAX(tags.v) AS most, SUM(tags.v) AS sum, AVG(tags.v) AS mean, \
                 MAX(tags.none) AS none, COUNT() AS n FROM devices";
    let answer = Query::parse(query).expect("a query").run(&rows);
    assert_eq!(answer, [json!({"least": 2, "most": "x", "sum": 7, "mean": 3.5, "n": 6})]);
}

#[test]
fn a_query_knows_its_source_and_its_items() {
    for (text, source, item_type) in [
        ("SELECT * FROM devices", Source::Devices, "Twin"),
        ("SELECT deviceId FROM devices", Source::Devices, "Raw"),
        ("SELECT * FROM devices.modules", Source::Modules, "Twin"),
        ("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'j'", Source::Jobs, "DeviceJob"),
    ] {
        let query = Query::parse(text).expect(text);
        assert_eq!((query.source(), query.item_type().name()), (source, item_type), "{text}");
    }
}

#[test]
fn an_index_can_be_used_for_what_must_hold() {
    let query = Query::parse("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'j' AND deviceId IN ['a', 1, 'b']");
    let query = query.expect("a query");
    assert_eq!(query.condition().equals("jobId"), Some("j"));
    assert_eq!(query.condition().equals("deviceId"), None);
    assert_eq!(query.condition().one_of("deviceId"), Some(vec!["a", "b"]));
    assert_eq!(query.condition().one_of("jobId"), Some(vec!["j"]));
    for loose in ["deviceId = 'a' OR true", "NOT deviceId = 'a'", "deviceId NIN ['a']", "tags.deviceId = 'a'", "*"] {
        let condition = Condition::parse_job(loose).expect(loose);
        assert_eq!(condition.one_of("deviceId"), None, "{loose}");
    }
    assert_eq!(Condition::parse_job("'a' = DeviceId").expect("one").equals("deviceId"), Some("a"));
}

#[test]
fn a_path_prints_with_its_source_where_it_would_be_misread() {
    for text in ["devices.devices.x = 1", "devices.select = 1", "devices.[[a b]] = 1", "devices.1x = 1", "devices = 1"]
    {
        let condition = Condition::parse_job(text).expect(text);
        assert_eq!(Condition::parse_job(&condition.to_string()).as_ref(), Ok(&condition), "{condition}");
    }
}

fn expression() -> impl Strategy<Value = String> {
    let number = prop_oneof![(0u32..1000).prop_map(|n| n.to_string()), Just("1.5e-7".into()), Just("2e300".into())];
    let text = "[a-z'\\\\\u{e9}\"\n]{0,4}".prop_map(|t| Constant::Text(t).to_string());
    let path =
        prop_oneof![Just("tags.a"), Just("devices.IN"), Just("x.[[ ]].y"), Just("DeviceId"), Just("devices.devices.z")];
    let leaf = prop_oneof![number, text, path.prop_map(str::to_owned), Just("null".into()), Just("undefined".into())];
    leaf.prop_recursive(5, 40, 3, |inner| {
        let operator =
            prop::sample::select(vec!["+", "-", "*", "/", "%", "AND", "OR", "=", "!=", "<", "<=", ">", ">="]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(a, o, b)| format!("({a}) {o} ({b})")),
            (inner.clone(), Just("+"), inner.clone()).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
            inner.clone().prop_map(|a| format!("NOT ({a})")),
            inner.clone().prop_map(|a| format!("-({a})")),
            inner.clone().prop_map(|a| format!("({a}) NIN [1, -2, 'x']")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("CONCAT({a}, {b})")),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,60}") {
        let _ = Query::parse(&text);
        let _ = Condition::parse_job(&text);
    }

    #[test]
    fn no_word_salad_panics(words in prop::collection::vec(prop::sample::select(vec![
        "SELECT", "*", "FROM", "devices", "WHERE", "TOP", "1", "GROUP", "BY", "a.b", "(", ")", "[", "]", ",", "NOT", "-",
        "IN", "COUNT", "AS", "'x'", "AND", "=", "IS_DEFINED", "devices.jobs", ".[[", "\\u", "0x", "1e",
    ]), 0..20)) {
        if let Ok(query) = Query::parse(&words.join(" ")) {
            query.run([twin()]);
            prop_assert_eq!(Query::parse(&query.to_string()), Ok(query));
        }
    }

    #[test]
    fn a_printed_tree_reads_back(text in expression()) {
        if let Ok(condition) = Condition::parse_job(&text) {
            condition.matches(&twin());
            let printed = condition.to_string();
            prop_assert_eq!(Condition::parse_job(&printed), Ok(condition), "{}", printed);
        }
    }
}
