//! `hub.db`: policies, devices, twins, subscriptions, cloud-to-device messages and feedback on them.

pub(crate) mod configurations;
mod identity;
mod messages;

use std::path::Path;

use durable_store::sql::{self, OptionalExtension as _, Row, Transaction, params, types::Type};
use durable_store::{Durability, Store, StoreError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::Identity;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::topic::Subscription;
use iothub_protocol::twin::Twin;

use crate::hub::{Change, Device, Granted, Subscriptions};
use crate::policy::{DEFAULT_POLICIES, Policy, random_key};

pub(crate) use messages::load_feedback;

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE policies (name TEXT PRIMARY KEY, primary_key TEXT NOT NULL, secondary_key TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE devices (
        id TEXT PRIMARY KEY,
        generation INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        enabled INTEGER NOT NULL,
        status_reason TEXT,
        status_updated TEXT,
        primary_key TEXT NOT NULL,
        secondary_key TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE twins (id TEXT PRIMARY KEY, document TEXT NOT NULL);
    CREATE TABLE subscriptions (id TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (id, name)) WITHOUT ROWID;
",
    // A subscription from before is taken for what the SDKs ask for.
    "
    ALTER TABLE subscriptions ADD COLUMN at_least_once INTEGER NOT NULL DEFAULT 1;
    CREATE TABLE messages (
        device TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        packet_id INTEGER NOT NULL,
        enqueued TEXT NOT NULL,
        expiry TEXT NOT NULL,
        delivery_count INTEGER NOT NULL,
        message_id TEXT,
        correlation_id TEXT,
        user_id TEXT,
        asked_expiry TEXT,
        content_type TEXT,
        content_encoding TEXT,
        feedback TEXT NOT NULL,
        properties TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (device, sequence)
    );
    CREATE TABLE feedback (
        sequence INTEGER PRIMARY KEY,
        device TEXT NOT NULL,
        generation INTEGER NOT NULL,
        message_id TEXT,
        time TEXT NOT NULL,
        ended TEXT NOT NULL
    );
",
    configurations::TABLES,
    // Certificates of devices, and of authorities that sign them.
    "
    ALTER TABLE devices ADD COLUMN authentication TEXT NOT NULL DEFAULT 'sas';
    ALTER TABLE devices ADD COLUMN primary_thumbprint TEXT;
    ALTER TABLE devices ADD COLUMN secondary_thumbprint TEXT;
    CREATE TABLE authorities (name TEXT PRIMARY KEY, certificate BLOB NOT NULL) WITHOUT ROWID;
",
];

pub(crate) fn open(path: &Path) -> Result<Store, StoreError> {
    // Registry and desired properties are promised to survive a loss of power.
    Store::open(path, MIGRATIONS, Durability::Power)
}

/// The default policies, with keys made the first time.
pub(crate) fn load_policies(tx: &Transaction<'_>) -> sql::Result<Vec<Policy>> {
    DEFAULT_POLICIES
        .into_iter()
        .map(|(name, rights)| {
            let kept = tx
                .query_row("SELECT primary_key, secondary_key FROM policies WHERE name = ?1", [name], |row| {
                    Ok((key(row, 0)?, key(row, 1)?))
                })
                .optional()?;
            let (primary_key, secondary_key) = match kept {
                Some(keys) => keys,
                None => {
                    let keys = (random_key(), random_key());
                    let row = params![name, keys.0.to_base64(), keys.1.to_base64()];
                    tx.execute("INSERT INTO policies VALUES (?1, ?2, ?3)", row)?;
                    keys
                }
            };
            Ok(Policy { name: name.to_owned(), rights, primary_key, secondary_key })
        })
        .collect()
}

pub(crate) fn load_devices(connection: &sql::Connection) -> sql::Result<Vec<Device>> {
    let mut subscriptions = connection.prepare("SELECT name, at_least_once FROM subscriptions WHERE id = ?1")?;
    let mut queues = messages::load_queues(connection)?;
    let mut devices = connection.prepare(
        "SELECT d.id, generation, revision, enabled, status_reason, status_updated, primary_key, secondary_key,
                document, authentication, primary_thumbprint, secondary_thumbprint
         FROM devices d JOIN twins t ON t.id = d.id",
    )?;
    let rows = devices.query_map([], |row| {
        let identity = Identity {
            device_id: parsed(row, 0, DeviceId::parse)?,
            generation_id: u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default(),
            revision: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
            enabled: row.get(3)?,
            status_reason: row.get(4)?,
            status_updated: row.get::<_, Option<String>>(5)?.and_then(|text| iothub_protocol::time::parse(&text)),
            authentication: identity::authentication(row, [9, 6, 7, 10, 11])?,
        };
        let twin: Twin = parsed(row, 8, |text| serde_json::from_str(text))?;
        Ok((identity, twin))
    })?;
    rows.map(|row| {
        let (identity, twin) = row?;
        let rows = subscriptions
            .query_map([identity.device_id.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))?;
        let rows = rows.collect::<sql::Result<Vec<_>>>()?;
        let granted = |at_least_once| if at_least_once { Granted::AtLeastOnce } else { Granted::AtMostOnce };
        let kept = rows.iter().filter_map(|(name, quality)| Some((subscription(name)?, granted(*quality))));
        let (kept, queue) = (kept.collect(), queues.remove(&identity.device_id).unwrap_or_default());
        Ok(Device::new(identity, twin, kept, queue))
    })
    .collect()
}

pub(crate) fn apply(tx: &Transaction<'_>, change: &Change) -> sql::Result<()> {
    match change {
        Change::Identity(identity) => identity::put(tx, identity),
        Change::Twin(id, twin) => {
            let document = serde_json::to_string(twin).map_err(|e| sql::Error::ToSqlConversionFailure(e.into()))?;
            tx.prepare_cached("INSERT INTO twins VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET document = ?2")?
                .execute(params![id.as_str(), document])?;
            Ok(())
        }
        Change::Subscriptions(id, subscriptions) => put_subscriptions(tx, id, subscriptions),
        Change::Message(id, queued) => messages::put(tx, id, queued),
        Change::MessageGone(id, sequence) => messages::remove(tx, id, *sequence),
        Change::Feedback(sequence, record) => messages::put_feedback(tx, *sequence, record),
        Change::FeedbackGone(sequence) => messages::remove_feedback(tx, *sequence),
        Change::Deleted(id) => {
            for (table, column) in [("devices", "id"), ("twins", "id"), ("subscriptions", "id"), ("messages", "device")]
            {
                tx.execute(&format!("DELETE FROM {table} WHERE {column} = ?1"), [id.as_str()])?;
            }
            Ok(())
        }
    }
}

fn put_subscriptions(tx: &Transaction<'_>, id: &DeviceId, subscriptions: &Subscriptions) -> sql::Result<()> {
    tx.prepare_cached("DELETE FROM subscriptions WHERE id = ?1")?.execute([id.as_str()])?;
    let mut insert = tx.prepare_cached("INSERT INTO subscriptions VALUES (?1, ?2, ?3)")?;
    for (subscription, granted) in subscriptions {
        let is_at_least_once = *granted == Granted::AtLeastOnce;
        insert.execute(params![id.as_str(), subscription_name(*subscription), is_at_least_once])?;
    }
    Ok(())
}

fn subscription_name(subscription: Subscription) -> &'static str {
    match subscription {
        Subscription::Methods => "methods",
        Subscription::TwinResponses => "twin-responses",
        Subscription::Desired => "desired",
        Subscription::DeviceBound => "device-bound",
    }
}

fn subscription(name: &str) -> Option<Subscription> {
    Subscription::ALL.into_iter().find(|subscription| subscription_name(*subscription) == name)
}

/// SQLite has no unsigned numbers; none of ours comes near the end of the signed ones.
fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn key(row: &Row<'_>, column: usize) -> sql::Result<SharedKey> {
    parsed(row, column, SharedKey::parse)
}

fn parsed<T, E: std::error::Error + Send + Sync + 'static>(
    row: &Row<'_>,
    column: usize,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> sql::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    parse(text).map_err(|e| sql::Error::FromSqlConversionFailure(column, Type::Text, e.into()))
}
