//! `hub.db`: policies, devices, twins and subscriptions.

use std::collections::BTreeSet;
use std::path::Path;

use durable_store::sql::{self, OptionalExtension as _, Row, Transaction, params, types::Type};
use durable_store::{Durability, Store, StoreError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::Identity;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::topic::Subscription;
use iothub_protocol::twin::Twin;

use crate::hub::{Change, Device};
use crate::policy::{DEFAULT_POLICIES, Policy, random_key};

const MIGRATIONS: &[&str] = &["
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
"];

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
    let mut subscriptions = connection.prepare("SELECT name FROM subscriptions WHERE id = ?1")?;
    let mut devices = connection.prepare(
        "SELECT d.id, generation, revision, enabled, status_reason, status_updated, primary_key, secondary_key, document
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
            primary_key: key(row, 6)?,
            secondary_key: key(row, 7)?,
        };
        let twin: Twin = parsed(row, 8, |text| serde_json::from_str(text))?;
        Ok((identity, twin))
    })?;
    rows.map(|row| {
        let (identity, twin) = row?;
        let names = subscriptions.query_map([identity.device_id.as_str()], |row| row.get::<_, String>(0))?;
        let names = names.collect::<sql::Result<Vec<_>>>()?;
        let subscriptions = names.iter().filter_map(|name| subscription(name)).collect();
        Ok(Device::new(identity, twin, subscriptions))
    })
    .collect()
}

pub(crate) fn apply(tx: &Transaction<'_>, change: &Change) -> sql::Result<()> {
    match change {
        Change::Identity(identity) => put_identity(tx, identity),
        Change::Twin(id, twin) => {
            let document = serde_json::to_string(twin).map_err(|e| sql::Error::ToSqlConversionFailure(e.into()))?;
            tx.prepare_cached("INSERT INTO twins VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET document = ?2")?
                .execute(params![id.as_str(), document])?;
            Ok(())
        }
        Change::Subscriptions(id, subscriptions) => put_subscriptions(tx, id, subscriptions),
        Change::Deleted(id) => {
            for table in ["devices", "twins", "subscriptions"] {
                tx.execute(&format!("DELETE FROM {table} WHERE id = ?1"), [id.as_str()])?;
            }
            Ok(())
        }
    }
}

fn put_identity(tx: &Transaction<'_>, identity: &Identity) -> sql::Result<()> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    tx.prepare_cached("INSERT OR REPLACE INTO devices VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(params![
        identity.device_id.as_str(),
        number(identity.generation_id),
        number(identity.revision),
        identity.enabled,
        identity.status_reason,
        identity.status_updated.map(iothub_protocol::time::format),
        identity.primary_key.to_base64(),
        identity.secondary_key.to_base64(),
    ])?;
    Ok(())
}

fn put_subscriptions(tx: &Transaction<'_>, id: &DeviceId, subscriptions: &BTreeSet<Subscription>) -> sql::Result<()> {
    tx.prepare_cached("DELETE FROM subscriptions WHERE id = ?1")?.execute([id.as_str()])?;
    let mut insert = tx.prepare_cached("INSERT INTO subscriptions VALUES (?1, ?2)")?;
    for subscription in subscriptions {
        insert.execute([id.as_str(), subscription_name(*subscription)])?;
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
