//! `hub.db`: policies, devices, modules, twins, subscriptions, cloud-to-device messages and feedback on them.

pub(crate) mod configurations;
mod identity;
mod indexes;
mod kind;
mod messages;
mod rows;
#[cfg(test)]
mod tests;
mod twins;

use std::collections::BTreeSet;
use std::path::Path;

use durable_store::sql::{self, OptionalExtension as _, Row, Transaction, params, types::Type};
use durable_store::{Durability, Store, StoreError};
use iothub_protocol::address::Address;
use iothub_protocol::id::ModuleId;
use iothub_protocol::sas::SharedKey;
use iothub_protocol::topic::Subscription;

use crate::hub::MAX_MODULES;
use crate::hub::{Change, Entity, Granted, Subscriptions};
use crate::import::NewIdentity;
use crate::policy::{DEFAULT_POLICIES, Policy, random_key};
use crate::queue::Queue;
use identity::IdentityRow;
use twins::TwinRow;

pub(crate) use indexes::{DeclaredIndex, MAX_INDEXES, TwinPath, add_index, load_indexes, remove_index};
pub(crate) use kind::{Kind, modules_of};
pub(crate) use messages::{due_queues, load_feedback, next_expiry, queued_bytes};
pub(crate) use rows::{Access, Chunk, MAX_ROWS, Row as QueryRow, Selection, chunk, counts, devices, each_row, modules};

/// In the data folder.
pub(crate) const FILE: &str = "hub.db";

pub(crate) const MIGRATIONS: &[&str] = &[
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
    // A twin in parts, so that a query reads and parses those that it looks at.
    "
    ALTER TABLE twins RENAME TO twin_documents;
    CREATE TABLE twins (
        id TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        tags TEXT NOT NULL,
        desired_version INTEGER NOT NULL,
        desired TEXT NOT NULL,
        reported_version INTEGER NOT NULL,
        reported TEXT NOT NULL,
        desired_metadata TEXT NOT NULL,
        reported_metadata TEXT NOT NULL,
        configurations TEXT NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO twins SELECT
        id, json_extract(document, '$.version'), json_extract(document, '$.tags'),
        json_extract(document, '$.desired.version'), json_extract(document, '$.desired.properties'),
        json_extract(document, '$.reported.version'), json_extract(document, '$.reported.properties'),
        json_extract(document, '$.desired.metadata'), json_extract(document, '$.reported.metadata'),
        COALESCE(json_extract(document, '$.configurations'), '{}')
        FROM twin_documents;
    DROP TABLE twin_documents;
    CREATE INDEX devices_by_status ON devices (enabled);
    CREATE TABLE activity (id TEXT PRIMARY KEY, last_activity TEXT, last_sequence INTEGER NOT NULL) WITHOUT ROWID;
    ALTER TABLE messages ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
    UPDATE messages SET size = length(body) + length(properties) + 512;
    CREATE INDEX messages_by_expiry ON messages (expiry, device, size);
    CREATE TABLE indexes (path TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
",
    twins::MODELS,
    // Modules: rows as those of devices, under `device/module`. So are their subscriptions and activity.
    "
    CREATE TABLE modules (
        id TEXT PRIMARY KEY,
        generation INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        managed_by TEXT,
        authentication TEXT NOT NULL,
        primary_key TEXT NOT NULL,
        secondary_key TEXT NOT NULL,
        primary_thumbprint TEXT,
        secondary_thumbprint TEXT
    ) WITHOUT ROWID;
    CREATE TABLE module_twins (
        id TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        tags TEXT NOT NULL,
        desired_version INTEGER NOT NULL,
        desired TEXT NOT NULL,
        reported_version INTEGER NOT NULL,
        reported TEXT NOT NULL,
        desired_metadata TEXT NOT NULL,
        reported_metadata TEXT NOT NULL,
        configurations TEXT NOT NULL,
        model_id TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID;
",
];

pub(crate) fn open(path: &Path) -> Result<Store, StoreError> {
    // Registry and desired properties are promised to survive a loss of power.
    Store::open(path, MIGRATIONS, Durability::Power)
}

/// For whoever writes much and promises nothing before it is closed, which is when all of it is on the disk.
pub(crate) fn open_for_bulk(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, MIGRATIONS, Durability::Process)
}

/// Have the log grow further before it is folded into the file, and more of the file in memory.
pub(crate) fn expect_bulk(tx: &Transaction<'_>) -> sql::Result<()> {
    /// Pages of 4 KiB.
    const LOG: i64 = 16 * 1024;
    /// KiB, which SQLite tells from pages by the sign.
    const CACHE: i64 = -64 * 1024;
    tx.pragma_update_and_check(None, "wal_autocheckpoint", LOG, |_| Ok(()))?;
    tx.pragma_update(None, "cache_size", CACHE)
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

/// Whether the error is of what stands in a row, and not of the store.
pub(crate) fn is_unreadable(error: &sql::Error) -> bool {
    matches!(error, sql::Error::FromSqlConversionFailure(..) | sql::Error::InvalidColumnType(..))
}

/// A device or a module with all that is stored of it; `None` if there is none of that name.
pub(crate) fn load(connection: &sql::Connection, id: &Address) -> sql::Result<Option<Entity>> {
    let kind = Kind::of(id);
    let mut select = connection.prepare_cached(&format!("{} WHERE d.id = ?1", select_entities(kind)))?;
    let found =
        select.query_row([id.to_string()], |row| Ok((identity::read(row, 0)?, twins::twin(row, identity::COUNT)?)));
    let Some((identity, twin)) = found.optional()? else { return Ok(None) };
    let (last_activity, last_sequence) = twins::activity(connection, id)?;
    let subscriptions = load_subscriptions(connection, id)?;
    let entity = match kind {
        Kind::Devices => {
            let queue = messages::load_queue(connection, id.device(), last_sequence)?;
            Entity::new(identity, twin, subscriptions, queue).with_modules(load_modules(connection, id)?)
        }
        Kind::Modules => Entity::new(identity, twin, subscriptions, Queue::default()),
    };
    Ok(Some(entity.last_seen(last_activity)))
}

fn select_entities(kind: Kind) -> String {
    let (identities, twins) = (kind.identities(), kind.twins());
    let (identity, twin) = (identity::columns(kind), twins::COLUMNS);
    format!("SELECT {identity}, {twin} FROM {identities} d CROSS JOIN {twins} t ON t.id = d.id")
}

/// The names of a device's modules.
fn load_modules(connection: &sql::Connection, device: &Address) -> sql::Result<BTreeSet<ModuleId>> {
    let (from, below) = modules_of(device.device().as_str());
    let mut select = connection.prepare_cached("SELECT id FROM modules WHERE id >= ?1 AND id < ?2")?;
    let rows = select.query_map([from, below], |row| parsed(row, 0, Address::parse))?;
    rows.map(|row| row.map(|address| address.module().cloned())).filter_map(Result::transpose).collect()
}

fn load_subscriptions(connection: &sql::Connection, id: &Address) -> sql::Result<Subscriptions> {
    let mut select = connection.prepare_cached("SELECT name, at_least_once FROM subscriptions WHERE id = ?1")?;
    let rows = select.query_map([id.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))?;
    let rows = rows.collect::<sql::Result<Vec<_>>>()?;
    let granted = |at_least_once| if at_least_once { Granted::AtLeastOnce } else { Granted::AtMostOnce };
    Ok(rows.iter().filter_map(|(name, quality)| Some((subscription(name)?, granted(*quality)))).collect())
}

pub(crate) fn apply(tx: &Transaction<'_>, change: &Change) -> sql::Result<()> {
    match change {
        Change::Identity(identity) => IdentityRow::new(identity).put(tx),
        Change::Twin(id, twin) => TwinRow::new(twin)?.put(tx, id),
        Change::Activity(id, last_activity, last_sequence) => {
            twins::put_activity(tx, id, *last_activity, *last_sequence)
        }
        Change::Subscriptions(id, subscriptions) => put_subscriptions(tx, id, subscriptions),
        Change::Message(id, queued) => messages::put(tx, id, queued),
        Change::MessageGone(id, sequence) => messages::remove(tx, id, *sequence),
        Change::Feedback(sequence, record) => messages::put_feedback(tx, *sequence, record),
        Change::FeedbackGone(sequence) => messages::remove_feedback(tx, *sequence),
        Change::Deleted(id) => delete(tx, id),
    }
}

fn delete(tx: &Transaction<'_>, id: &Address) -> sql::Result<()> {
    let kind = Kind::of(id);
    for table in [kind.identities(), kind.twins(), "subscriptions", "activity"] {
        tx.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?.execute([id.to_string()])?;
    }
    if kind == Kind::Modules {
        return Ok(());
    }
    tx.prepare_cached("DELETE FROM messages WHERE device = ?1")?.execute([id.to_string()])?;
    let (from, below) = modules_of(id.device().as_str());
    for table in ["modules", "module_twins", "subscriptions", "activity"] {
        let delete = format!("DELETE FROM {table} WHERE id >= ?1 AND id < ?2");
        tx.prepare_cached(&delete)?.execute([&from, &below])?;
    }
    Ok(())
}

/// A device or a module as it stands in the tables. The writer has little to do with it: whoever makes it has done the rest.
#[derive(Debug)]
pub struct IdentityRows {
    address: Address,
    identity: IdentityRow,
    twin: TwinRow,
}

impl IdentityRows {
    pub(crate) fn new(new: &NewIdentity) -> sql::Result<IdentityRows> {
        let NewIdentity { identity, twin } = new;
        let address = identity.address.clone();
        Ok(IdentityRows { address, identity: IdentityRow::new(identity), twin: TwinRow::new(twin)? })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Make it, unless there is one of its name.
    pub(crate) fn create(&self, tx: &Transaction<'_>) -> sql::Result<Created> {
        if self.address.is_module()
            && let Some(refused) = self.refusal(tx)?
        {
            return Ok(refused);
        }
        if !self.identity.insert(tx)? {
            return Ok(Created::IsThere);
        }
        self.twin.put(tx, &self.address)?;
        Ok(Created::Made)
    }

    /// Why there cannot be such a module.
    fn refusal(&self, tx: &Transaction<'_>) -> sql::Result<Option<Created>> {
        let device = self.address.device();
        if !tx.prepare_cached("SELECT 1 FROM devices WHERE id = ?1")?.exists([device.as_str()])? {
            return Ok(Some(Created::NoDevice));
        }
        let modules = load_modules(tx, &self.address)?;
        let is_there = self.address.module().is_some_and(|module| modules.contains(module));
        Ok((modules.len() >= MAX_MODULES && !is_there).then_some(Created::TooManyModules))
    }
}

/// What became of what was to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Made,
    /// There is one of its name.
    IsThere,
    /// Of a module: there is no such device.
    NoDevice,
    /// The device has all the modules that it may have.
    TooManyModules,
}

/// Call `each` with every device, in order of ids, and then with every module, until it fails.
pub(crate) fn each_identity<E>(
    connection: &sql::Connection,
    mut each: impl FnMut(NewIdentity) -> Result<(), E>,
) -> sql::Result<Result<(), E>> {
    for kind in [Kind::Devices, Kind::Modules] {
        let mut select = connection.prepare(&format!("{} ORDER BY d.id", select_entities(kind)))?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (identity, twin) = (identity::read(row, 0)?, twins::twin(row, identity::COUNT)?);
            if let Err(error) = each(NewIdentity { identity, twin }) {
                return Ok(Err(error));
            }
        }
    }
    Ok(Ok(()))
}

fn put_subscriptions(tx: &Transaction<'_>, id: &Address, subscriptions: &Subscriptions) -> sql::Result<()> {
    let id = id.to_string();
    tx.prepare_cached("DELETE FROM subscriptions WHERE id = ?1")?.execute([&id])?;
    let mut insert = tx.prepare_cached("INSERT INTO subscriptions VALUES (?1, ?2, ?3)")?;
    for (subscription, granted) in subscriptions {
        let is_at_least_once = *granted == Granted::AtLeastOnce;
        insert.execute(params![id, subscription_name(*subscription), is_at_least_once])?;
    }
    Ok(())
}

fn subscription_name(subscription: Subscription) -> &'static str {
    match subscription {
        Subscription::Methods => "methods",
        Subscription::TwinResponses => "twin-responses",
        Subscription::Desired => "desired",
        Subscription::DeviceBound => "device-bound",
        Subscription::Inputs => "inputs",
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
