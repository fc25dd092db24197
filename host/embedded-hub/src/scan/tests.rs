//! Whatever way leads to the rows, the answer is the same.

use chrono::DateTime;
use durable_store::Store;
use iothub_protocol::query::Query;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::import::NewIdentity;
use crate::presence::Seen;
use crate::store::{Access, Created};

/// Values of all kinds, and such as SQLite could take for others.
fn values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(1.5),
        json!(-3),
        json!(0.1),
        json!(100_000.000_001),
        json!(4_503_599_627_370_495_i64),
        json!(1e15),
        json!("1"),
        json!(""),
        json!("a"),
        json!("A"),
        json!("a b"),
        json!("ab"),
        json!("a\u{0}b"),
        json!("\"quoted\\\""),
        json!("é"),
        json!("\u{1f600}"),
        json!({"k": "a"}),
        json!(["a"]),
        json!("[\"a\"]"),
        json!("{\"k\":\"a\"}"),
    ]
}

struct Fixture {
    _folder: tempfile::TempDir,
    store: Store,
    presence: Presence,
    twins: Vec<(Address, Value)>,
}

impl Fixture {
    /// A device for each value, which is in a tag and in a reported property, and one without. The first have modules.
    async fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store::open(&folder.path().join("hub.db")).expect("a store");
        let lines = values().into_iter().enumerate().map(|(number, value)| {
            let status = if number % 5 == 0 { "disabled" } else { "enabled" };
            // A null cannot be set; it stands in an array then.
            let value = if value.is_null() { json!([null]) } else { value };
            json!({
                "id": format!("d{number:02}"),
                "status": status,
                "tags": {"v": value, "other": number},
                "properties": {"reported": {"deep": {"v": value}}, "desired": {"n": number}},
            })
        });
        let modules = (0..5).flat_map(|number| ["lock", "sensor"].map(|module| (number, module)));
        let modules = modules.map(|(number, module)| {
            let tags = json!({"v": values()[number + 1], "other": number});
            json!({"id": format!("d{number:02}"), "moduleId": module, "tags": tags})
        });
        let lines = lines.chain([json!({"id": "plain"}), json!({"id": "d"}), json!({"id": "d", "moduleId": "lock"})]);
        let lines = lines.chain(modules).map(|line| line.to_string());
        let devices: Vec<NewIdentity> = lines
            .map(|line| {
                NewIdentity::from_json(line.as_bytes(), DateTime::UNIX_EPOCH).unwrap_or_else(|e| panic!("{e} {line}"))
            })
            .collect();
        let presence = Presence::default();
        let seen = Seen { connected: true, listens: false, last_activity: DateTime::from_timestamp(1_800_000_000, 0) };
        for connected in ["d03", "d02/lock"] {
            presence.set(&Address::parse(connected).expect("an address"), seen);
        }
        let mut rows: Vec<_> = devices
            .iter()
            .map(|device| {
                let id = device.identity.address.clone();
                let seen = presence.seen(&id);
                let (connected, last_activity) = seen.map_or((false, None), |seen| (true, seen.last_activity));
                let facts = crate::hub::facts(&device.identity, connected, last_activity, 0);
                (id, device.twin.to_json(&facts))
            })
            .collect();
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        let devices: Vec<_> = devices.iter().map(|device| device.rows().expect("rows")).collect();
        let created = store.write(move |tx| devices.iter().map(|device| device.create(tx)).collect()).await;
        let created: Vec<Created> = created.expect("written");
        assert!(created.into_iter().all(|created| created == Created::Made));
        Fixture { _folder: folder, store, presence, twins: rows }
    }

    async fn declare(&self, path: &'static str) {
        crate::indexes::add(&self.store, path).await.expect(path);
    }

    async fn indexes(&self) -> Vec<DeclaredIndex> {
        crate::indexes::all(&self.store).await.expect("readable")
    }

    fn selection(&self, query: &Query, indexes: &[DeclaredIndex], most: usize) -> Selection {
        plan::selection(query.condition(), query.parts(), most, indexes, |kind| {
            self.presence.connected(kind == Kind::Modules)
        })
    }

    /// The answer of a query by the way that is planned for it, in chunks of so many rows.
    async fn answer(&self, text: &str, indexes: &[DeclaredIndex], most: usize) -> Vec<Value> {
        let query = Query::parse(text).expect(text);
        let selection = Arc::new(self.selection(&query, indexes, most));
        let (mut rows, mut next) = (Vec::new(), Some(String::new()));
        while let Some(after) = next {
            let (selection, presence) = (selection.clone(), self.presence.clone());
            let read = self.store.scan(move |connection| store::chunk(connection, &selection, &after, &presence));
            let chunk = read.await.unwrap_or_else(|error| panic!("{text}: {error}"));
            rows.extend(chunk.rows.into_iter().map(|(_, row)| row));
            next = chunk.next;
        }
        query.run(rows)
    }

    /// The same of an aggregate, folded where it is read.
    async fn folded(&self, text: &str, indexes: &[DeclaredIndex]) -> Vec<Value> {
        let query = Query::parse(text).expect(text);
        let reads = Reads::new(self.store.clone(), self.presence.clone(), indexes.to_vec());
        let executor = reads.fold(Executor::new(Arc::new(query))).await;
        executor.unwrap_or_else(|error| panic!("{text}: {error}")).finish()
    }

    fn expected(&self, text: &str) -> Vec<Value> {
        let query = Query::parse(text).expect(text);
        let kind = Kind::of_source(query.source());
        query.run(self.twins.iter().filter(|(id, _)| Kind::of(id) == kind).map(|(_, twin)| twin))
    }
}

fn conditions() -> Vec<String> {
    let constants =
        ["'a'", "'1'", "1", "1.5", "0", "-3", "0.1", "true", "false", "null", "''", "'é'", "'[\"a\"]'", "1e15"];
    let mut conditions = Vec::new();
    for path in ["tags.v", "properties.reported.deep.v"] {
        for constant in constants {
            for comparison in ["=", "!=", "<", "<=", ">", ">="] {
                conditions.push(format!("{path} {comparison} {constant}"));
            }
        }
        conditions.push(format!("{path} IN ['a', 'ab', 'none']"));
        conditions.push(format!("{path} IN ['a', 1, true]"));
        conditions.push(format!("{path} IN ['a', null]"));
        conditions.push(format!("{path} NIN ['a']"));
        conditions.push(format!("{path} >= 'a' AND {path} <= 'b'"));
        conditions.push(format!("{path} > 0 AND {path} < 2"));
        conditions.push(format!("STARTS_WITH({path}, 'a')"));
        conditions.push(format!("{path} = 'a' OR {path} = 1"));
    }
    for other in [
        "deviceId = 'd03'",
        "deviceId IN ['d03', 'plain', 'none', 'd03']",
        "deviceId > 'd03'",
        "deviceId >= 'd03' AND deviceId < 'd10'",
        "deviceId <= 'd'",
        "STARTS_WITH(deviceId, 'd1')",
        "STARTS_WITH(deviceId, '')",
        "status = 'disabled'",
        "status = 'enabled' AND tags.v = 'a'",
        "status = 'disabled' AND tags.other > 10",
        "connectionState = 'Connected'",
        "connectionState = 'Disconnected' AND tags.v = 1",
        "connectionState = 'Connected' AND lastActivityTime > '2026-01-01'",
        "tags.v = 'a' AND deviceId > 'd'",
        "IS_DEFINED(tags.v)",
        "NOT IS_DEFINED(tags.v)",
        "properties.desired.n = tags.other",
        "properties.reported.$version > 1",
    ] {
        conditions.push(other.to_owned());
    }
    conditions
}

#[tokio::test]
async fn an_answer_does_not_depend_on_the_way() {
    let fixture = Fixture::new().await;
    let mut indexes = Vec::new();
    for with_indexes in [false, true] {
        if with_indexes {
            for path in ["tags.v", "tags.other", "properties.reported.deep.v"] {
                fixture.declare(path).await;
            }
            indexes = fixture.indexes().await;
        }
        for condition in conditions() {
            for list in ["COUNT() AS n", "MAX(tags.v) AS most, SUM(properties.desired.n) AS sum"] {
                let text = format!("SELECT {list} FROM devices WHERE {condition}");
                assert_eq!(fixture.folded(&text, &indexes).await, fixture.expected(&text), "{text}, {with_indexes}");
            }
            let text = format!("SELECT tags.v, COUNT() FROM devices WHERE {condition} GROUP BY tags.v");
            assert_eq!(fixture.folded(&text, &indexes).await, fixture.expected(&text), "{text}, {with_indexes}");
            for list in ["deviceId", "*"] {
                let text = format!("SELECT {list} FROM devices WHERE {condition}");
                let expected = fixture.expected(&text);
                for most in [1, 1000] {
                    assert_eq!(fixture.answer(&text, &indexes, most).await, expected, "{text}, {most}, {with_indexes}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_an_index_can_tell_is_asked_of_it() {
    let fixture = Fixture::new().await;
    let way = |condition: &str, indexes: &[DeclaredIndex]| {
        let query = Query::parse(&format!("SELECT deviceId FROM devices WHERE {condition}")).expect(condition);
        fixture.selection(&query, indexes, 10).access
    };
    assert!(matches!(way("tags.v = 'a'", &[]), Access::Range { .. }));
    fixture.declare("tags.v").await;
    let indexes = fixture.indexes().await;
    for (condition, expected) in [
        ("tags.v = 'a'", "Index"),
        ("status = 'disabled' AND tags.v = 'a'", "Index"),
        ("tags.v IN ['a', 'b']", "Index"),
        ("tags.v > 5", "IndexRange"),
        ("deviceId = 'a' AND tags.v = 'a'", "Keys"),
        ("connectionState = 'Connected'", "Keys"),
        ("status = 'disabled'", "Disabled"),
        ("tags.v = null", "Range"),
        ("tags.v = 0.5", "Range"),
        ("tags.v = 'a' OR tags.v = 'b'", "Range"),
    ] {
        let found = format!("{:?}", way(condition, &indexes));
        assert!(
            found.starts_with(&format!("{expected} "))
                || found.starts_with(&format!("{expected}("))
                || found == expected,
            "{condition}: {found}"
        );
    }
    // SQLite sees it as it was meant.
    let plan = fixture.store.read(|connection| {
        let query = "EXPLAIN QUERY PLAN SELECT id FROM twins INDEXED BY declared_1
                     WHERE json_extract(tags, '$.\"v\"') = 'a' AND id > 'd' ORDER BY id LIMIT 9";
        connection.query_row(query, [], |row| row.get::<_, String>(3))
    });
    assert_eq!(plan.await.expect("a plan"), "SEARCH twins USING COVERING INDEX declared_1 (<expr>=? AND id>?)");
}

#[tokio::test]
async fn every_way_to_modules_leads_to_the_same() {
    let fixture = Fixture::new().await;
    fixture.declare("tags.v").await;
    let indexes = fixture.indexes().await;
    for (condition, way, count) in [
        ("true", "Range", 11),
        ("deviceId = 'd02'", "Range", 2),
        ("deviceId = 'd'", "Range", 1),
        ("deviceId IN ['d', 'd03', 'd01', 'nobody', 'no id']", "Range", 5),
        ("deviceId = 'd02' AND moduleId = 'lock'", "Keys", 1),
        ("deviceId IN ['d01', 'd02'] AND moduleId IN ['lock', 'a b']", "Keys", 2),
        ("deviceId IN []", "Keys", 0),
        ("moduleId = 'sensor'", "Range", 5),
        ("connectionState = 'Connected'", "Keys", 1),
        ("connectionState != 'Connected'", "Range", 10),
        ("status = 'disabled'", "Range", 0),
        ("tags.v = true", "Range", 2),
        ("STARTSWITH(deviceId, 'd0') AND tags.other > 2", "Range", 4),
    ] {
        let text = format!("SELECT * FROM devices.modules WHERE {condition}");
        let Ok(query) = Query::parse(&text) else { panic!("{text}") };
        let found = format!("{:?}", fixture.selection(&query, &indexes, 10).access);
        assert!(found.starts_with(way), "{condition}: {found}");
        for most in [1, 3, 1000] {
            let answer = fixture.answer(&text, &indexes, most).await;
            assert_eq!(answer, fixture.expected(&text), "{condition}");
            assert_eq!(answer.len(), count, "{condition}");
        }
    }
    let text = "SELECT moduleId, COUNT() AS n FROM devices.modules GROUP BY moduleId";
    assert_eq!(fixture.answer(text, &indexes, 2).await, fixture.expected(text));
}

#[tokio::test]
async fn a_way_whose_index_was_removed_leads_to_the_same() {
    let fixture = Fixture::new().await;
    fixture.declare("tags.v").await;
    let before = fixture.indexes().await;
    assert!(crate::indexes::remove(&fixture.store, "tags.v").await.expect("removed"));
    assert!(!crate::indexes::remove(&fixture.store, "tags.v").await.expect("gone already"));
    let text = "SELECT deviceId FROM devices WHERE tags.v = 'a'";
    assert_eq!(fixture.answer(text, &before, 1000).await, fixture.expected(text));
    for number in 0..16 {
        let path = format!("tags.t{number}");
        assert!(crate::indexes::add(&fixture.store, &path).await.expect("there is room"));
        assert!(!crate::indexes::add(&fixture.store, &path).await.expect("there already"));
    }
    let error = crate::indexes::add(&fixture.store, "tags.t16").await.expect_err("one too many");
    assert!(error.message.contains("remove one first"), "{error}");
}

fn any_text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!['a', 'b', '\u{0}', '"', '\\', 'é', '\u{1f600}', '\u{7f}']), 0..4)
        .prop_map(|characters| characters.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Texts and numbers, where SQLite's order and its reading of JSON count.
    #[test]
    fn an_index_finds_every_row_that_matches(
        texts in prop::collection::vec(any_text(), 1..8),
        numbers in prop::collection::vec(prop_oneof![any::<f64>().prop_filter("finite", |n| n.is_finite()), (-9..9i32).prop_map(f64::from)], 1..8),
        asked in any_text(),
    ) {
        let connection = durable_store::sql::Connection::open_in_memory().expect("a database");
        connection.execute_batch("CREATE TABLE twins (id INTEGER PRIMARY KEY, tags TEXT)").expect("a table");
        let tags = texts.iter().map(|text| json!({"v": text})).chain(numbers.iter().map(|number| json!({"v": number})));
        let rows: Vec<Value> = tags.map(|tags| json!({"deviceId": "d", "tags": tags})).collect();
        for row in &rows {
            connection.execute("INSERT INTO twins (tags) VALUES (?1)", [row["tags"].to_string()]).expect("a row");
        }
        let index = DeclaredIndex {
            path: store::TwinPath::parse("tags.v").expect("a path"),
            name: "i".into(),
        };
        let asked = asked.replace(['\'', '\\'], "");
        let number = numbers[0];
        for condition in ["=", "<", "<=", ">", ">="].iter().flat_map(|comparison| [
            format!("tags.v {comparison} '{asked}'"), format!("tags.v {comparison} {number:?}"),
        ]) {
            let Ok(query) = Query::parse(&format!("SELECT * FROM devices WHERE {condition}")) else { continue };
            let selection = plan::selection(query.condition(), Parts::ALL, 9, std::slice::from_ref(&index), |_| Vec::new());
            let (place, bounds) = match selection.access {
                Access::Index { expression, values, .. } => (expression, vec![("=", values[0].clone())]),
                Access::IndexRange { expression, least, most, .. } => {
                    let bounds = [(">=", least), ("<=", most)];
                    (expression, bounds.into_iter().filter_map(|(operator, bound)| Some((operator, bound?))).collect())
                }
                _ => continue,
            };
            for (operator, bound) in bounds {
                let text = format!("SELECT id FROM twins WHERE {place} {operator} ?1");
                let mut select = connection.prepare(&text).expect("a statement");
                let found = select.query_map([bound], |row| row.get::<_, i64>(0)).expect("rows");
                let found: Vec<i64> = found.map(|id| id.expect("an id")).collect();
                for (place, row) in (1..).zip(&rows) {
                    prop_assert!(!query.condition().matches(row) || found.contains(&place), "{condition}: {row}");
                    let needle = selection.needles.iter().all(|(_, needles)| {
                        needles.iter().any(|needle| row["tags"].to_string().contains(needle.as_str()))
                    });
                    prop_assert!(needle || !query.condition().matches(row), "{condition}: {row}");
                }
            }
        }
    }
}
