//! Queues of cloud-to-device messages, and feedback that waits.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use durable_store::sql::{self, Row, Transaction, params};
use iothub_protocol::feedback::{FeedbackRecord, MessageEnd};
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{CloudMessage, Feedback};
use iothub_protocol::time;

use super::{number, parsed};
use crate::feedback::FeedbackQueue;
use crate::queue::{Queue, Queued};

/// A row whose text is not what this crate writes.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not what the hub stores there")]
struct Unreadable(String);

/// The queue of a device, which has had messages up to the number `last_sequence`.
pub(super) fn load_queue(connection: &sql::Connection, id: &DeviceId, last_sequence: u64) -> sql::Result<Queue> {
    let mut select = connection.prepare_cached(
        "SELECT device, sequence, packet_id, enqueued, expiry, delivery_count, message_id, correlation_id, user_id,
                asked_expiry, content_type, content_encoding, feedback, properties, body
         FROM messages WHERE device = ?1",
    )?;
    let rows = select.query_map([id.as_str()], queued)?;
    Ok(Queue::restored(rows.collect::<sql::Result<Vec<_>>>()?).numbered_from(last_sequence))
}

/// What all queues together hold, in bytes as the hub counts them.
pub(crate) fn queued_bytes(connection: &sql::Connection) -> sql::Result<usize> {
    let sum = connection.query_row("SELECT COALESCE(SUM(size), 0) FROM messages", [], |row| row.get::<_, i64>(0))?;
    Ok(usize::try_from(sum).unwrap_or_default())
}

/// When the first message expires that does after `now`.
pub(crate) fn next_expiry(connection: &sql::Connection, now: DateTime<Utc>) -> sql::Result<Option<DateTime<Utc>>> {
    let mut select = connection.prepare_cached("SELECT MIN(expiry) FROM messages WHERE expiry > ?1")?;
    let found = select.query_row([time::format(now)], |row| row.get::<_, Option<String>>(0))?;
    Ok(found.and_then(|text| time::parse(&text)))
}

/// Some of the devices with a message that has expired by `now`, in order of expiry after `after`; each comes once for
/// each such message.
pub(crate) fn due_queues(
    connection: &sql::Connection,
    now: DateTime<Utc>,
    after: Option<&(DateTime<Utc>, DeviceId)>,
    limit: usize,
) -> sql::Result<Vec<(DateTime<Utc>, DeviceId)>> {
    let mut select = connection.prepare_cached(
        "SELECT DISTINCT expiry, device FROM messages WHERE (expiry, device) > (?1, ?2) AND expiry <= ?3
         ORDER BY expiry, device LIMIT ?4",
    )?;
    let (expiry, device) = after.map_or_else(Default::default, |(at, id)| (time::format(*at), id.to_string()));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = select.query_map(params![expiry, device, time::format(now), limit], |row| {
        Ok((moment(row, 0)?, parsed(row, 1, DeviceId::parse)?))
    })?;
    rows.collect()
}

fn queued(row: &Row<'_>) -> sql::Result<Queued> {
    let message = CloudMessage {
        message_id: row.get(6)?,
        correlation_id: row.get(7)?,
        user_id: row.get(8)?,
        expiry: row.get::<_, Option<String>>(9)?.and_then(|text| time::parse(&text)),
        content_type: row.get(10)?,
        content_encoding: row.get(11)?,
        feedback: parsed(row, 12, |text| Feedback::parse(text).ok_or_else(|| Unreadable(text.to_owned())))?,
        properties: parsed(row, 13, |text| serde_json::from_str(text))?,
        body: row.get(14)?,
    };
    let sequence = u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default();
    let mut queued = Queued::new(sequence, row.get(2)?, Arc::new(message), moment(row, 3)?, moment(row, 4)?);
    queued.delivery_count = row.get(5)?;
    Ok(queued)
}

pub(super) fn put(tx: &Transaction<'_>, id: &DeviceId, queued: &Queued) -> sql::Result<()> {
    let message = &queued.message;
    let properties =
        serde_json::to_string(&message.properties).map_err(|e| sql::Error::ToSqlConversionFailure(e.into()))?;
    tx.prepare_cached(
        "INSERT INTO messages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
         ON CONFLICT (device, sequence) DO UPDATE SET delivery_count = ?6",
    )?
    .execute(params![
        id.as_str(),
        number(queued.sequence),
        queued.packet_id,
        time::format(queued.enqueued),
        time::format(queued.expiry),
        queued.delivery_count,
        message.message_id,
        message.correlation_id,
        message.user_id,
        message.expiry.map(time::format),
        message.content_type,
        message.content_encoding,
        message.feedback.name(),
        properties,
        message.body,
        number(crate::hub::held_size(message) as u64),
    ])?;
    Ok(())
}

pub(super) fn remove(tx: &Transaction<'_>, id: &DeviceId, sequence: u64) -> sql::Result<()> {
    tx.prepare_cached("DELETE FROM messages WHERE device = ?1 AND sequence = ?2")?
        .execute(params![id.as_str(), number(sequence)])?;
    Ok(())
}

pub(crate) fn load_feedback(connection: &sql::Connection) -> sql::Result<FeedbackQueue> {
    let mut select =
        connection.prepare("SELECT sequence, device, generation, message_id, time, ended FROM feedback")?;
    let rows = select.query_map([], |row| {
        let record = FeedbackRecord {
            message_id: row.get(3)?,
            time: moment(row, 4)?,
            ended: parsed(row, 5, |text| MessageEnd::by_name(text).ok_or_else(|| Unreadable(text.to_owned())))?,
            device_id: parsed(row, 1, DeviceId::parse)?,
            generation_id: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
        };
        Ok((u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(), record))
    })?;
    Ok(FeedbackQueue::restored(rows.collect::<sql::Result<Vec<_>>>()?))
}

pub(super) fn put_feedback(tx: &Transaction<'_>, sequence: u64, record: &FeedbackRecord) -> sql::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO feedback VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        number(sequence),
        record.device_id.as_str(),
        number(record.generation_id),
        record.message_id,
        time::format(record.time),
        record.ended.name(),
    ])?;
    Ok(())
}

pub(super) fn remove_feedback(tx: &Transaction<'_>, sequence: u64) -> sql::Result<()> {
    tx.prepare_cached("DELETE FROM feedback WHERE sequence = ?1")?.execute([number(sequence)])?;
    Ok(())
}

fn moment(row: &Row<'_>, column: usize) -> sql::Result<DateTime<Utc>> {
    parsed(row, column, |text| time::parse(text).ok_or_else(|| Unreadable(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use durable_store::{Durability, Store};
    use iothub_protocol::address::Address;
    use iothub_protocol::twin::{Twin, TwinPatch};

    use super::*;
    use crate::hub::{Change, Granted};
    use crate::store::{self, MIGRATIONS};

    fn id() -> DeviceId {
        DeviceId::parse("d1").expect("an id")
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_what_is_removed_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store::open(&folder.path().join("hub.db")).expect("a store");
        let now = time::parse("2026-11-24T08:40:04.171Z").expect("a time");
        let whole = CloudMessage {
            message_id: Some("m1".into()),
            correlation_id: Some("c1".into()),
            user_id: Some("u1".into()),
            expiry: Some(now),
            content_type: Some("text/plain".into()),
            content_encoding: Some("utf-8".into()),
            feedback: Feedback::Full,
            properties: vec![("b".into(), "1".into()), ("a".into(), "\u{0}é".into())],
            body: vec![0, 0xff],
        };
        let mut first = Queued::new(3, u16::MAX, Arc::new(whole.clone()), now, now);
        let second = Queued::new(4, 1, Arc::new(CloudMessage::default()), now, now);
        let record = |message_id: Option<&str>, ended| FeedbackRecord {
            message_id: message_id.map(str::to_owned),
            time: now,
            ended,
            device_id: id(),
            generation_id: 637_025_702_479_770_574,
        };
        let records = MessageEnd::ALL.map(|ended| record(Some("m1"), ended));
        let mut changes = vec![Change::Message(id(), Box::new(first.clone())), Change::Message(id(), Box::new(second))];
        changes.extend((1..).zip(&records).map(|(sequence, record)| Change::Feedback(sequence, record.clone())));
        first.delivery_count = 5;
        changes.push(Change::Message(id(), Box::new(first)));
        changes.push(Change::MessageGone(id(), 4));
        changes.push(Change::FeedbackGone(1));
        changes.push(Change::Feedback(9, record(None, MessageEnd::Success)));
        let written = store.write(move |tx| changes.iter().try_for_each(|change| store::apply(tx, change))).await;
        written.expect("written");

        let queue = store.read(|connection| load_queue(connection, &id(), 7)).await.expect("readable");
        let [kept] = queue.messages() else { panic!("{queue:?}") };
        assert_eq!((kept.sequence, kept.packet_id, kept.delivery_count), (3, u16::MAX, 5));
        assert_eq!((&*kept.message, kept.enqueued, kept.expiry), (&whole, now, now));
        let feedback = store.read(load_feedback).await.expect("readable");
        let kept: Vec<_> = feedback.records().map(|(sequence, record)| (sequence, record.clone())).collect();
        let expected = (1..).zip(records).skip(1).chain([(9, record(None, MessageEnd::Success))]);
        assert_eq!(kept, expected.collect::<Vec<_>>());

        store.write(|tx| store::apply(tx, &Change::Deleted(id().into()))).await.expect("written");
        assert!(store.read(|connection| load_queue(connection, &id(), 0)).await.expect("readable").is_empty());
        store.close().await;
    }

    fn twin() -> Twin {
        let mut twin = Twin::new(DateTime::UNIX_EPOCH);
        let patch = br#"{"tags":{"b":1.5,"a":"\u0001\"\u00e9"},"properties":{"desired":{"n":{"k":[1,null,true]}}}}"#;
        twin.patch(&TwinPatch::from_json(patch).expect("a patch"), DateTime::UNIX_EPOCH).expect("fits");
        let Ok(serde_json::Value::Object(report)) = serde_json::from_str("{\"x\":4503599627370495}") else { panic!() };
        twin.report(&report, None, DateTime::UNIX_EPOCH).expect("fits");
        twin
    }

    #[tokio::test]
    async fn queues_that_are_due_are_found_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store::open(&folder.path().join("hub.db")).expect("a store");
        let at = |second: i64| DateTime::from_timestamp(1_800_000_000 + second, 0).expect("a time");
        let names = ["a", "b", "c"].map(|name| DeviceId::parse(name).expect("an id"));
        let message = |id: &DeviceId, sequence, second| {
            let queued = Queued::new(sequence, 1, Arc::new(CloudMessage::default()), at(0), at(second));
            Change::Message(id.clone(), Box::new(queued))
        };
        let [a, b, c] = &names;
        let changes = [message(a, 1, 5), message(b, 1, 3), message(b, 2, 3), message(c, 1, 9)];
        let written = store.write(move |tx| changes.iter().try_for_each(|change| store::apply(tx, change))).await;
        written.expect("written");
        let due = async |now, after: Option<(DateTime<Utc>, DeviceId)>, limit| {
            store.read(move |connection| due_queues(connection, now, after.as_ref(), limit)).await.expect("readable")
        };
        assert_eq!(due(at(5), None, 9).await, [(at(3), b.clone()), (at(5), a.clone())]);
        assert_eq!(due(at(5), None, 1).await, [(at(3), b.clone())]);
        assert_eq!(due(at(5), Some((at(3), b.clone())), 9).await, [(at(5), a.clone())]);
        let next = async |now| store.read(move |connection| next_expiry(connection, now)).await.expect("readable");
        assert_eq!((next(at(0)).await, next(at(5)).await, next(at(9)).await), (Some(at(3)), Some(at(9)), None));
        let held = 4 * crate::hub::held_size(&CloudMessage::default());
        assert_eq!(store.read(queued_bytes).await.expect("readable"), held);
        store.close().await;
    }

    #[tokio::test]
    async fn a_store_from_before_there_were_messages_is_taken_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hub.db");
        let old = Store::open(&path, &MIGRATIONS[..1], Durability::Process).expect("a store");
        let rows = old.write(|tx| {
            let twin = serde_json::to_string(&twin()).expect("JSON");
            let key = crate::policy::random_key().to_base64();
            tx.execute("INSERT INTO devices VALUES ('d1', 1, 1, 1, NULL, NULL, ?1, ?1)", [key])?;
            tx.execute("INSERT INTO twins VALUES ('d1', ?1)", [twin])?;
            tx.execute("INSERT INTO subscriptions VALUES ('d1', 'device-bound')", [])
        });
        rows.await.expect("written");
        old.close().await;
        let store = store::open(&path).expect("a store");
        let device = store.read(|connection| store::load(connection, &id().into())).await.expect("readable");
        let device = device.expect("it is there");
        let subscriptions: Vec<_> = device.subscriptions.values().copied().collect();
        assert_eq!((subscriptions, device.queue.len()), (vec![Granted::AtLeastOnce], 0));
        assert_eq!(*device.twin, twin(), "taken apart without a loss");
        store.close().await;
    }

    /// What main had before there were modules.
    const BEFORE_MODULES: usize = 6;

    #[tokio::test]
    async fn a_store_from_before_there_were_modules_is_taken_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hub.db");
        let old = Store::open(&path, &MIGRATIONS[..BEFORE_MODULES], Durability::Process).expect("a store");
        let rows = old.write(|tx| {
            let key = crate::policy::random_key().to_base64();
            let device = "INSERT INTO devices (id, generation, revision, enabled, primary_key, secondary_key)
                          VALUES ('d1', 1, 1, 1, ?1, ?1)";
            tx.execute(device, [key])?;
            store::twins::TwinRow::new(&twin())?.put(tx, &id().into())
        });
        rows.await.expect("written");
        old.close().await;
        let store = store::open(&path).expect("a store");
        let line = br#"{"id":"d1","moduleId":"m1","managedBy":"ops"}"#;
        let module = crate::import::NewIdentity::from_json(line, DateTime::UNIX_EPOCH).expect("a module");
        let address = module.identity.address.clone();
        let rows = module.rows().expect("rows");
        let made = store.write(move |tx| rows.create(tx)).await.expect("written");
        assert_eq!(made, store::Created::Made);
        let (device, module) = (Address::from(id()), address.clone());
        let found =
            store.read(move |connection| Ok((store::load(connection, &device)?, store::load(connection, &module)?)));
        let (Some(device), Some(module)) = found.await.expect("readable") else { panic!("both are there") };
        assert_eq!((&*device.twin, module.identity.managed_by.as_deref()), (&twin(), Some("ops")));
        store.write(|tx| store::apply(tx, &Change::Deleted(id().into()))).await.expect("written");
        let gone = store.read(move |connection| store::load(connection, &address)).await.expect("readable");
        assert!(gone.is_none(), "it went with its device");
        store.close().await;
    }
}
