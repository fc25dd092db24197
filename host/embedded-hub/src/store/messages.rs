//! Queues of cloud-to-device messages, and feedback that waits.

use std::collections::HashMap;
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

pub(super) fn load_queues(connection: &sql::Connection) -> sql::Result<HashMap<DeviceId, Queue>> {
    let mut select = connection.prepare(
        "SELECT device, sequence, packet_id, enqueued, expiry, delivery_count, message_id, correlation_id, user_id,
                asked_expiry, content_type, content_encoding, feedback, properties, body
         FROM messages",
    )?;
    let rows = select.query_map([], |row| Ok((parsed(row, 0, DeviceId::parse)?, queued(row)?)))?;
    let mut messages: HashMap<DeviceId, Vec<Queued>> = HashMap::new();
    for row in rows {
        let (device, queued) = row?;
        messages.entry(device).or_default().push(queued);
    }
    Ok(messages.into_iter().map(|(device, messages)| (device, Queue::restored(messages))).collect())
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
        "INSERT INTO messages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
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

        let queues = store.read(load_queues).await.expect("readable");
        let [kept] = queues[&id()].messages() else { panic!("{queues:?}") };
        assert_eq!((kept.sequence, kept.packet_id, kept.delivery_count), (3, u16::MAX, 5));
        assert_eq!((&*kept.message, kept.enqueued, kept.expiry), (&whole, now, now));
        let feedback = store.read(load_feedback).await.expect("readable");
        let kept: Vec<_> = feedback.records().map(|(sequence, record)| (sequence, record.clone())).collect();
        let expected = (1..).zip(records).skip(1).chain([(9, record(None, MessageEnd::Success))]);
        assert_eq!(kept, expected.collect::<Vec<_>>());

        store.write(|tx| store::apply(tx, &Change::Deleted(id()))).await.expect("written");
        assert!(store.read(load_queues).await.expect("readable").is_empty());
        store.close().await;
    }

    #[tokio::test]
    async fn a_store_from_before_there_were_messages_is_taken_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hub.db");
        let old = Store::open(&path, &MIGRATIONS[..1], Durability::Process).expect("a store");
        let rows = old.write(|tx| {
            let twin = serde_json::to_string(&iothub_protocol::twin::Twin::new(DateTime::UNIX_EPOCH)).expect("JSON");
            let key = crate::policy::random_key().to_base64();
            tx.execute("INSERT INTO devices VALUES ('d1', 1, 1, 1, NULL, NULL, ?1, ?1)", [key])?;
            tx.execute("INSERT INTO twins VALUES ('d1', ?1)", [twin])?;
            tx.execute("INSERT INTO subscriptions VALUES ('d1', 'device-bound')", [])
        });
        rows.await.expect("written");
        old.close().await;
        let store = store::open(&path).expect("a store");
        let devices = store.read(store::load_devices).await.expect("readable");
        let subscriptions: Vec<_> = devices[0].subscriptions.values().copied().collect();
        assert_eq!((subscriptions, devices[0].queue.len()), (vec![Granted::AtLeastOnce], 0));
        store.close().await;
    }
}
