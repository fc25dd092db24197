//! `state.db`: what every device keeps, one transaction for each call of a plugin.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use durable_store::{Durability, Store, StoreError, sql};
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::TelemetryMessage;
use plugin_runtime::{PluginName, Timer, VersionTag};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sql::types::Type;
use sql::{Connection, Row, Transaction, named_params, params};

use crate::record::{Applied, Changes, DeviceRecord, QueuedTelemetry, TimerChanges, Unsent};

/// The state of all devices in one file.
#[derive(Clone)]
pub struct StateStore {
    store: Store,
}

impl StateStore {
    /// Opens or creates the file. Blocks: its integrity is checked.
    pub fn open(path: &Path, durability: Durability) -> Result<StateStore, StoreError> {
        Ok(StateStore { store: Store::open(path, MIGRATIONS, durability)? })
    }

    /// Everything there is; one pass, for a start with thousands of devices.
    pub(crate) async fn load_all(&self) -> Result<HashMap<DeviceId, DeviceRecord>, StoreError> {
        self.store.read(|connection| load(connection, None)).await
    }

    /// One device; the default record if it was never seen.
    pub(crate) async fn load(&self, device: &DeviceId) -> Result<DeviceRecord, StoreError> {
        let wanted = device.clone();
        let mut loaded = self.store.read(move |connection| load(connection, Some(&wanted))).await?;
        Ok(loaded.remove(device).unwrap_or_default())
    }

    /// Queue `changes`; `then` runs when they are durable, or not written at all. Calls take effect in their order.
    pub(crate) fn write(
        &self,
        device: DeviceId,
        changes: Changes,
        then: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) {
        self.store.write_then(move |transaction| write(transaction, &device, &changes), then);
    }

    /// Finish what is queued and close the file.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

fn write(transaction: &Transaction<'_>, device: &DeviceId, changes: &Changes) -> sql::Result<()> {
    let device = device.as_str();
    write_device(transaction, device, changes)?;
    if let Some((plugin, state)) = &changes.state {
        let mut set = transaction.prepare_cached(
            "INSERT INTO state (device, plugin, key, value) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (device, plugin, key) DO UPDATE SET value = excluded.value",
        )?;
        let mut delete =
            transaction.prepare_cached("DELETE FROM state WHERE device = ?1 AND plugin = ?2 AND key = ?3")?;
        for (key, value) in &**state {
            match value {
                Some(value) => set.execute(params![device, plugin.as_str(), key, value])?,
                None => delete.execute(params![device, plugin.as_str(), key])?,
            };
        }
    }
    if let Some((plugin, timers)) = &changes.timers {
        write_timers(transaction, device, plugin, timers)?;
    }
    if let Some((plugin, version)) = &changes.version {
        transaction
            .prepare_cached(
                "INSERT INTO version (device, plugin, label, hash) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (device, plugin) DO UPDATE SET label = excluded.label, hash = excluded.hash",
            )?
            .execute(params![device, plugin.as_str(), &*version.label, &*version.hash])?;
    }
    for (plugin, applied) in &changes.applied {
        transaction
            .prepare_cached(
                "INSERT INTO applied (device, plugin, version, view) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (device, plugin) DO UPDATE SET version = excluded.version, view = excluded.view",
            )?
            .execute(params![device, plugin.as_str(), integer(applied.version), json(&applied.view)?])?;
    }
    for sequence in &changes.telemetry_taken {
        transaction
            .prepare_cached("DELETE FROM telemetry WHERE device = ?1 AND sequence = ?2")?
            .execute(params![device, integer(*sequence)])?;
    }
    changes.telemetry_queued.iter().try_for_each(|queued| queue(transaction, device, queued))
}

fn write_device(transaction: &Transaction<'_>, device: &str, changes: &Changes) -> sql::Result<()> {
    let desired = changes.desired.as_ref();
    if desired.is_none() && changes.reported.is_none() && changes.unsent.is_none() {
        return Ok(());
    }
    transaction
        .prepare_cached(
            "INSERT INTO device (id, desired, desired_version, reported, in_flight, pending)
             VALUES (:id, coalesce(:desired, '{}'), coalesce(:version, 0), coalesce(:reported, '{}'),
                 coalesce(:in_flight, '{}'), coalesce(:pending, '{}'))
             ON CONFLICT (id) DO UPDATE SET
                 desired = coalesce(:desired, desired), desired_version = coalesce(:version, desired_version),
                 reported = coalesce(:reported, reported),
                 in_flight = coalesce(:in_flight, in_flight), pending = coalesce(:pending, pending)",
        )?
        .execute(named_params! {
            ":id": device,
            ":desired": desired.map(|(document, _)| json(&**document)).transpose()?,
            ":version": desired.map(|(_, version)| integer(*version)),
            ":reported": changes.reported.as_deref().map(json).transpose()?,
            ":in_flight": changes.unsent.as_ref().map(|unsent| json(&unsent.in_flight)).transpose()?,
            ":pending": changes.unsent.as_ref().map(|unsent| json(&unsent.pending)).transpose()?,
        })?;
    Ok(())
}

fn write_timers(
    transaction: &Transaction<'_>,
    device: &str,
    plugin: &PluginName,
    timers: &TimerChanges,
) -> sql::Result<()> {
    let mut set = transaction.prepare_cached(
        "INSERT INTO timer (device, plugin, name, due, payload) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (device, plugin, name) DO UPDATE SET due = excluded.due, payload = excluded.payload",
    )?;
    let mut delete = transaction.prepare_cached("DELETE FROM timer WHERE device = ?1 AND plugin = ?2 AND name = ?3")?;
    for (name, timer) in timers {
        match timer {
            Some(timer) => set.execute(params![device, plugin.as_str(), name, integer(timer.due), &*timer.payload])?,
            None => delete.execute(params![device, plugin.as_str(), name])?,
        };
    }
    Ok(())
}

fn queue(transaction: &Transaction<'_>, device: &str, queued: &QueuedTelemetry) -> sql::Result<()> {
    let message = &queued.message;
    transaction
        .prepare_cached(
            "INSERT INTO telemetry
                 (device, sequence, message_id, content_type, content_encoding, properties, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            device,
            integer(queued.sequence),
            message.message_id,
            message.content_type,
            message.content_encoding,
            json(&message.properties)?,
            message.body,
        ])?;
    Ok(())
}

fn load(connection: &Connection, only: Option<&DeviceId>) -> sql::Result<HashMap<DeviceId, DeviceRecord>> {
    let mut records: HashMap<DeviceId, DeviceRecord> = HashMap::new();
    each(
        connection,
        "SELECT id, desired, desired_version, reported, in_flight, pending FROM device WHERE id",
        only,
        |row| {
            let record = records.entry(id(row, 0)?).or_default();
            (record.desired, record.desired_version) = (parsed(row, 1)?, unsigned(row, 2)?);
            record.reported = parsed(row, 3)?;
            record.unsent = Unsent { in_flight: parsed(row, 4)?, pending: parsed(row, 5)? };
            Ok(())
        },
    )?;
    each(connection, "SELECT device, plugin, key, value FROM state WHERE device", only, |row| {
        let state = records.entry(id(row, 0)?).or_default().state.entry(plugin(row, 1)?).or_default();
        state.insert(row.get(2)?, row.get(3)?);
        Ok(())
    })?;
    each(connection, "SELECT device, plugin, version, view FROM applied WHERE device", only, |row| {
        let applied = Applied { version: unsigned(row, 2)?, view: parsed(row, 3)? };
        records.entry(id(row, 0)?).or_default().applied.insert(plugin(row, 1)?, applied);
        Ok(())
    })?;
    each(connection, "SELECT device, plugin, name, due, payload FROM timer WHERE device", only, |row| {
        let timer = Timer { due: unsigned(row, 3)?, payload: row.get::<_, Vec<u8>>(4)?.into() };
        let timers = records.entry(id(row, 0)?).or_default().timers.entry(plugin(row, 1)?).or_default();
        timers.insert(row.get(2)?, timer);
        Ok(())
    })?;
    each(connection, "SELECT device, plugin, label, hash FROM version WHERE device", only, |row| {
        let version = VersionTag { label: row.get::<_, String>(2)?.into(), hash: row.get::<_, String>(3)?.into() };
        records.entry(id(row, 0)?).or_default().versions.insert(plugin(row, 1)?, version);
        Ok(())
    })?;
    let telemetry = "SELECT device, sequence, message_id, content_type, content_encoding, properties, body
                     FROM telemetry WHERE device";
    each(connection, telemetry, only, |row| {
        let message = TelemetryMessage {
            message_id: row.get(2)?,
            content_type: row.get(3)?,
            content_encoding: row.get(4)?,
            properties: parsed(row, 5)?,
            body: row.get(6)?,
        };
        let queued = QueuedTelemetry { sequence: unsigned(row, 1)?, message: Arc::new(message) };
        records.entry(id(row, 0)?).or_default().telemetry.push(queued);
        Ok(())
    })?;
    Ok(records)
}

/// Run a query that ends in the name of the device's column, over one device or all, in order of the primary key.
fn each(
    connection: &Connection,
    query: &str,
    only: Option<&DeviceId>,
    mut visit: impl FnMut(&Row<'_>) -> sql::Result<()>,
) -> sql::Result<()> {
    let filter = if only.is_some() { "= ?1" } else { "IS NOT NULL" };
    let mut statement = connection.prepare(&format!("{query} {filter} ORDER BY 1, 2"))?;
    let mut rows = match only {
        Some(device) => statement.query([device.as_str()])?,
        None => statement.query([])?,
    };
    while let Some(row) = rows.next()? {
        visit(row)?;
    }
    Ok(())
}

fn id(row: &Row<'_>, column: usize) -> sql::Result<DeviceId> {
    let text: String = row.get(column)?;
    DeviceId::parse(&text).map_err(|error| unreadable(column, error))
}

fn plugin(row: &Row<'_>, column: usize) -> sql::Result<PluginName> {
    let text: String = row.get(column)?;
    PluginName::parse(&text).map_err(|error| unreadable(column, error))
}

fn parsed<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> sql::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, error))
}

fn unsigned(row: &Row<'_>, column: usize) -> sql::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|error| unreadable(column, error))
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> sql::Error {
    sql::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

fn json(value: &impl Serialize) -> sql::Result<String> {
    serde_json::to_string(value).map_err(|error| sql::Error::ToSqlConversionFailure(Box::new(error)))
}

/// SQLite's integers are signed. Versions and sequence numbers count single events, times count milliseconds of a few
/// decades: both stay far below.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const MIGRATIONS: &[&str] = &[FIRST, TIMERS, VERSIONS];

const FIRST: &str = "
    CREATE TABLE device (
        id TEXT NOT NULL PRIMARY KEY,
        -- The last desired document seen, and its version.
        desired TEXT NOT NULL,
        desired_version INTEGER NOT NULL,
        -- Reported properties that the hub holds, the patch that it may have, and the one behind that.
        reported TEXT NOT NULL,
        in_flight TEXT NOT NULL,
        pending TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE state (
        device TEXT NOT NULL,
        plugin TEXT NOT NULL,
        key TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (device, plugin, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE applied (
        device TEXT NOT NULL,
        plugin TEXT NOT NULL,
        -- The desired version that the plugin dealt with last, and what it watched of it.
        version INTEGER NOT NULL,
        view TEXT NOT NULL,
        PRIMARY KEY (device, plugin)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE telemetry (
        device TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        message_id TEXT NOT NULL,
        content_type TEXT,
        content_encoding TEXT,
        properties TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (device, sequence)
    ) STRICT, WITHOUT ROWID;
";

const TIMERS: &str = "
    CREATE TABLE timer (
        device TEXT NOT NULL,
        plugin TEXT NOT NULL,
        name TEXT NOT NULL,
        -- Milliseconds since the beginning of 1970, UTC.
        due INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (device, plugin, name)
    ) STRICT, WITHOUT ROWID;
";

const VERSIONS: &str = "
    CREATE TABLE version (
        device TEXT NOT NULL,
        plugin TEXT NOT NULL,
        -- The version whose changes were recorded last.
        label TEXT NOT NULL,
        hash TEXT NOT NULL,
        PRIMARY KEY (device, plugin)
    ) STRICT, WITHOUT ROWID;
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Map, Value, json};

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn device(name: &str) -> DeviceId {
        DeviceId::parse(name).expect("an id")
    }

    fn queued(sequence: u64) -> QueuedTelemetry {
        let message = TelemetryMessage {
            message_id: format!("m{sequence}"),
            content_type: Some("application/json".into()),
            content_encoding: None,
            properties: vec![("a".into(), "b".into())],
            body: vec![0, 255],
        };
        QueuedTelemetry { sequence, message: Arc::new(message) }
    }

    fn write_now(store: &StateStore, name: &str, changes: Changes) -> Result<(), StoreError> {
        let (done, outcome) = std::sync::mpsc::channel();
        store.write(device(name), changes, move |result| done.send(result).expect("the test waits"));
        outcome.recv().expect("an outcome")
    }

    #[tokio::test]
    async fn what_is_written_is_loaded_and_the_rest_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let store = StateStore::open(&path, Durability::Process).expect("opens");
        let lock = PluginName::parse("lock-door").expect("a name");
        let state = |value: Option<&[u8]>| {
            let changes =
                BTreeMap::from([("k".to_owned(), value.map(<[u8]>::to_vec)), ("kept".to_owned(), Some(vec![1]))]);
            Some((lock.clone(), Arc::new(changes)))
        };
        let applied = Applied { version: 4, view: object(json!({"building": "43"})) };
        let timer = |due| Timer { due, payload: Arc::from(*b"next") };
        let timers = |changes: [(&str, Option<Timer>); 2]| {
            let changes = changes.map(|(name, timer)| (name.to_owned(), timer));
            Some((lock.clone(), Arc::new(BTreeMap::from(changes))))
        };
        let version = VersionTag { label: "1.0.0".into(), hash: "abc".into() };
        let unsent = Unsent { in_flight: object(json!({"lock": null})), pending: object(json!({"lock": true})) };
        let first = Changes {
            desired: Some((Arc::new(object(json!({"building": "43"}))), 4)),
            unsent: Some(unsent.clone()),
            state: state(Some(b"v")),
            timers: timers([("gone", Some(timer(1))), ("later", Some(timer(2)))]),
            applied: vec![(lock.clone(), applied.clone())],
            telemetry_queued: vec![queued(9), queued(10)],
            ..Changes::default()
        };
        let mut applied_in_memory = DeviceRecord::default();
        applied_in_memory.apply(first.clone());
        write_now(&store, "door-1", first).expect("written");
        let second = Changes {
            reported: Some(Arc::new(object(json!({"x": 1})))),
            state: state(None),
            version: Some((lock.clone(), version.clone())),
            timers: timers([("gone", None), ("later", Some(timer(3)))]),
            telemetry_taken: vec![9],
            ..Changes::default()
        };
        applied_in_memory.apply(second.clone());
        write_now(&store, "door-1", second).expect("written");
        write_now(&store, "door-2", Changes { telemetry_queued: vec![queued(1)], ..Changes::default() })
            .expect("written");
        store.close().await;

        let store = StateStore::open(&path, Durability::Process).expect("opens again");
        let expected = DeviceRecord {
            desired: object(json!({"building": "43"})),
            desired_version: 4,
            reported: object(json!({"x": 1})),
            unsent,
            state: BTreeMap::from([(lock.clone(), BTreeMap::from([("kept".to_owned(), vec![1])]))]),
            timers: BTreeMap::from([(lock.clone(), BTreeMap::from([("later".to_owned(), timer(3))]))]),
            versions: BTreeMap::from([(lock.clone(), version)]),
            applied: BTreeMap::from([(lock, applied)]),
            telemetry: vec![queued(10)],
        };
        assert_eq!(store.load(&device("door-1")).await.expect("loads"), expected);
        assert_eq!(applied_in_memory, expected);
        assert_eq!(store.load(&device("door-3")).await.expect("loads"), DeviceRecord::default());
        let all = store.load_all().await.expect("loads");
        assert_eq!((all.len(), &all[&device("door-1")]), (2, &expected));
    }
}
