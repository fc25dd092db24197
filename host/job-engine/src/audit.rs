//! Who did what to jobs: a trail that shows when it was tampered with.
//!
//! Each entry holds the SHA-256 of the one before and is signed with a key that is not in the database, so that whoever
//! can edit the database can neither change an entry nor take one out without a trace. The trail's ends are signed, too:
//! the last entries cannot be cut off, and the oldest are given up only by [`prune`]. What no trail in one file shows is
//! that the whole file was put back as it once was; for that, compare its head with one noted elsewhere.
//!
//! An entry is written in the transaction of what it tells of: by [`append`] where that is a closure of the caller's, else
//! as a change of the engine's record.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use durable_store::sql::{self, Connection, OptionalExtension, Row, Transaction, params};
use iothub_protocol::id::JobId;
use iothub_protocol::time;
use ring::digest::{SHA256, digest};
use ring::hmac;
use serde_json::{Value, json};

use crate::journal::Page;

/// The key's file in the data folder.
pub const KEY_FILE: &str = "audit.key";
const KEY_BYTES: usize = 32;
/// Characters of a name.
const NAME: usize = 24;
/// Breaks that a check tells of; one who sees so many need not see all.
const MAX_BREAKS: usize = 100;
/// How many entries one step of [`prune`] removes.
const PRUNE_STEP: u32 = 5000;

/// What signs entries. Its `Debug` shows nothing; the default signs so that anybody can, for tests.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Key([u8; KEY_BYTES]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} holds no key of {KEY_BYTES} bytes in hexadecimal; put back what it held, as the audit trail is signed with that", path.display())]
    Content { path: PathBuf },
}

impl Key {
    /// The key in `folder`, made from `random` with mode 0600 if there is none.
    ///
    /// # Errors
    /// If its file cannot be read or written, or holds something else.
    pub fn in_folder(folder: &Path, random: [u8; KEY_BYTES]) -> Result<Key, KeyError> {
        let path = folder.join(KEY_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => from_hex(text.trim()).map(Key).ok_or(KeyError::Content { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let write = || -> io::Result<()> {
                    // Whole or not at all: half a key would be one that nobody can put back.
                    let temporary = path.with_added_extension("new");
                    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
                    let mut file = open?;
                    writeln!(file, "{}", to_hex(&random))?;
                    file.sync_all()?;
                    fs::rename(&temporary, &path)
                };
                write().map_err(|source| KeyError::File { action: "write", path: path.clone(), source })?;
                Ok(Key(random))
            }
            Err(source) => Err(KeyError::File { action: "read", path, source }),
        }
    }

    /// A name that nobody else's key gives, of what this key's owner calls so.
    pub(crate) fn name(&self, text: &str) -> String {
        let mut name = self.sign(text);
        name.truncate(NAME);
        name
    }

    fn sign(&self, text: &str) -> String {
        to_hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), text.as_bytes()).as_ref())
    }

    fn signed(&self, text: &str, signature: &str) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        from_hex::<KEY_BYTES>(signature).is_some_and(|tag| hmac::verify(&key, text.as_bytes(), &tag).is_ok())
    }
}

/// What is to be written down: who did what to which job, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    pub key: Key,
    pub at: DateTime<Utc>,
    /// The name of the policy whose key signed the request, or `host` for this process itself. Never a key.
    pub actor: String,
    /// A word such as `create` or `cancel`.
    pub action: &'static str,
    pub job: Option<JobId>,
    /// A small object; what is large is named by its [`fingerprint`].
    pub details: Value,
}

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Counted from 1, without gaps.
    pub number: i64,
    pub at: DateTime<Utc>,
    pub actor: String,
    pub action: String,
    /// Not checked to be an id: whatever the database holds is shown.
    pub job: Option<String>,
    pub details: String,
    /// The hash of the entry before.
    pub previous: String,
    pub signature: String,
}

/// Where the trail does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// The entry at which that shows.
    pub number: i64,
    pub reason: String,
}

/// What a check of the whole trail found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Entries that are there.
    pub entries: u64,
    /// The number and the hash of the last one, to be noted elsewhere.
    pub head: (i64, String),
    pub breaks: Vec<Break>,
}

/// The name of a content, such as a job's request.
pub fn fingerprint(text: &str) -> String {
    format!("sha256:{}", hash(text))
}

/// Write an entry, in the transaction of what it tells of.
pub fn append(tx: &Transaction<'_>, note: &Note) -> sql::Result<()> {
    let (last, previous) = end(tx, LAST)?.map_or_else(beginning, |end| (end.number, end.hash));
    let Note { key, at, actor, action, job, details } = note;
    let mut entry = Entry {
        number: last + 1,
        at: *at,
        actor: actor.clone(),
        action: (*action).to_owned(),
        job: job.as_ref().map(|job| job.as_str().to_owned()),
        details: details.to_string(),
        previous,
        signature: String::new(),
    };
    entry.signature = key.sign(&entry.text());
    let row = "INSERT INTO audit (number, at, actor, action, job, details, previous, signature)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let Entry { number, actor, action, job, details, previous, signature, .. } = &entry;
    let values = params![number, at.timestamp_millis(), actor, action, job, details, previous, signature];
    tx.prepare_cached(row)?.execute(values)?;
    set_end(tx, key, LAST, entry.number, &entry.hash())
}

/// Entries, the newest first; of one job, or all. `after` is the continuation of the page before.
pub fn entries(
    connection: &Connection,
    job: Option<&JobId>,
    limit: usize,
    after: Option<i64>,
) -> sql::Result<Page<Entry>> {
    let query = "SELECT * FROM audit WHERE number < ?1 AND (?2 IS NULL OR job = ?2) ORDER BY number DESC LIMIT ?3";
    let one_more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let values = params![after.unwrap_or(i64::MAX), job.map(JobId::as_str), one_more];
    let mut items =
        connection.prepare_cached(query)?.query_map(values, Entry::read)?.collect::<sql::Result<Vec<_>>>()?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let continuation = items.last().filter(|_| has_more).map(|last| last.number.to_string());
    Ok(Page { items, continuation })
}

/// Check the whole trail, and that jobs which are still there are as they were created.
pub fn check(connection: &Connection, key: &Key) -> sql::Result<Check> {
    let mut breaks = Vec::new();
    let mut found = |number: i64, reason: String| {
        if breaks.len() < MAX_BREAKS {
            breaks.push(Break { number, reason });
        }
    };
    let first = end(connection, FIRST)?;
    if let Some(first) = first.as_ref().filter(|first| !first.is_signed(key, FIRST)) {
        found(first.number, "what says which entries were given up by age has been changed".to_owned());
    }
    let (mut number, mut previous) = first.map_or_else(beginning, |first| (first.number, first.hash));
    let mut count = 0;
    let mut statement = connection.prepare("SELECT * FROM audit ORDER BY number")?;
    for entry in statement.query_map([], Entry::read)? {
        let entry = entry?;
        count += 1;
        if entry.number > number + 1 {
            found(entry.number, format!("entries {} to {} are missing", number + 1, entry.number - 1));
        } else if entry.previous != previous {
            found(entry.number, format!("entry {} is not the one that stood before it", entry.number - 1));
        }
        if !key.signed(&entry.text(), &entry.signature) {
            found(entry.number, "the entry has been changed, or was not made by this hub".to_owned());
        } else if let Some(reason) = contradiction(connection, &entry)? {
            found(entry.number, reason);
        }
        (number, previous) = (entry.number, entry.hash());
    }
    match end(connection, LAST)? {
        Some(last) if !last.is_signed(key, LAST) => {
            found(number, "what says which entry is the last has been changed".to_owned());
        }
        Some(last) if last.number > number => {
            found(number, format!("entries {} to {} are missing at the end", number + 1, last.number));
        }
        Some(last) if (last.number, &last.hash) != (number, &previous) => {
            found(number, "the last entry is not the one that was".to_owned());
        }
        None if count > 0 => found(number, "what says which entry is the last is missing".to_owned()),
        Some(_) | None => {}
    }
    Ok(Check { entries: count, head: (number, previous), breaks })
}

/// Take one step to give up entries from before `before`, oldest first. `false` once there are none.
pub fn prune(tx: &Transaction<'_>, key: &Key, before: DateTime<Utc>) -> sql::Result<bool> {
    let query =
        "SELECT * FROM (SELECT * FROM audit ORDER BY number LIMIT ?2) WHERE at < ?1 ORDER BY number DESC LIMIT 1";
    let newest = tx.query_row(query, params![before.timestamp_millis(), PRUNE_STEP], Entry::read).optional()?;
    let Some(newest) = newest else { return Ok(false) };
    tx.execute("DELETE FROM audit WHERE number <= ?1", [newest.number])?;
    set_end(tx, key, FIRST, newest.number, &newest.hash())?;
    Ok(true)
}

/// A job that is there, was created by this entry, and is not what was created.
fn contradiction(connection: &Connection, entry: &Entry) -> sql::Result<Option<String>> {
    if entry.action != CREATE {
        return Ok(None);
    }
    let query = "SELECT request FROM jobs WHERE id = ?1 AND created = ?2";
    let values = params![entry.job, entry.at.timestamp_millis()];
    let request = connection.prepare_cached(query)?.query_row(values, |row| row.get::<_, String>(0)).optional()?;
    let details: Value = serde_json::from_str(&entry.details).unwrap_or_default();
    let is_other = request.is_some_and(|request| details[REQUEST] != json!(fingerprint(&request)));
    Ok(is_other.then(|| format!("the job {} is not what was created", entry.job.as_deref().unwrap_or_default())))
}

/// The action of an entry that tells of a job's creation.
pub(crate) const CREATE: &str = "create";
/// Its detail that names the job's request.
pub(crate) const REQUEST: &str = "request";

impl Entry {
    /// As `GET /jobs/v2/{id}/audit` shows it.
    pub fn to_json(&self) -> Value {
        json!({
            "number": self.number,
            "timeUtc": time::format(self.at),
            "actor": self.actor,
            "action": self.action,
            "jobId": self.job,
            "details": serde_json::from_str(&self.details).unwrap_or_else(|_| json!(self.details)),
            "previous": self.previous,
            "signature": self.signature,
        })
    }

    /// All of it but the signature, in a form that stands for no other.
    fn text(&self) -> String {
        let at = self.at.timestamp_millis();
        json!([self.number, at, self.actor, self.action, self.job, self.details, self.previous]).to_string()
    }

    fn hash(&self) -> String {
        hash(&format!("{}\n{}", self.text(), self.signature))
    }

    fn read(row: &Row<'_>) -> sql::Result<Entry> {
        Ok(Entry {
            number: row.get("number")?,
            at: DateTime::from_timestamp_millis(row.get("at")?).unwrap_or_default(),
            actor: row.get("actor")?,
            action: row.get("action")?,
            job: row.get("job")?,
            details: row.get("details")?,
            previous: row.get("previous")?,
            signature: row.get("signature")?,
        })
    }
}

impl Check {
    pub fn to_json(&self) -> Value {
        let breaks = self.breaks.iter().map(|it| json!({"number": it.number, "reason": it.reason}));
        json!({
            "verified": self.breaks.is_empty(),
            "entries": self.entries,
            "head": {"number": self.head.0, "hash": self.head.1},
            "breaks": breaks.collect::<Vec<_>>(),
        })
    }
}

/// The entry before the first one that is kept.
const FIRST: &str = "first";
/// The last entry.
const LAST: &str = "last";

struct End {
    number: i64,
    hash: String,
    signature: String,
}

impl End {
    fn is_signed(&self, key: &Key, place: &str) -> bool {
        key.signed(&end_text(place, self.number, &self.hash), &self.signature)
    }
}

fn end_text(place: &str, number: i64, hash: &str) -> String {
    json!([place, number, hash]).to_string()
}

/// The number and the hash before the first entry.
fn beginning() -> (i64, String) {
    (0, String::new())
}

fn end(connection: &Connection, place: &str) -> sql::Result<Option<End>> {
    let query = "SELECT number, hash, signature FROM audit_ends WHERE place = ?1";
    let read = |row: &Row<'_>| Ok(End { number: row.get(0)?, hash: row.get(1)?, signature: row.get(2)? });
    connection.prepare_cached(query)?.query_row([place], read).optional()
}

fn set_end(tx: &Transaction<'_>, key: &Key, place: &str, number: i64, hash: &str) -> sql::Result<()> {
    let row = "INSERT OR REPLACE INTO audit_ends (place, number, hash, signature) VALUES (?1, ?2, ?3, ?4)";
    let signature = key.sign(&end_text(place, number, hash));
    tx.prepare_cached(row)?.execute(params![place, number, hash, signature]).map(drop)
}

fn hash(text: &str) -> String {
    to_hex(digest(&SHA256, text.as_bytes()).as_ref())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::{at, database, job_id};

    const KEY: Key = Key([7; KEY_BYTES]);

    fn note(second: i64, job: &str) -> Note {
        let (at, job) = (at(second), Some(job_id(job)));
        Note { key: KEY, at, actor: "service".to_owned(), action: "cancel", job, details: json!({"n": second}) }
    }

    /// A trail of so many entries, of two jobs in turn.
    fn trail(entries: i64) -> Connection {
        let mut connection = database();
        let tx = connection.transaction().expect("a transaction");
        for second in 1..=entries {
            append(&tx, &note(second, if second % 2 == 0 { "even" } else { "odd" })).expect("an entry");
        }
        tx.commit().expect("a commit");
        connection
    }

    fn breaks(connection: &Connection) -> Vec<(i64, String)> {
        let check = check(connection, &KEY).expect("a check");
        check.breaks.into_iter().map(|it| (it.number, it.reason)).collect()
    }

    #[test]
    fn entries_read_back_by_job_and_page_by_page() {
        let connection = trail(5);
        let page = entries(&connection, None, 3, None).expect("a page");
        let numbers = |page: &Page<Entry>| page.items.iter().map(|entry| entry.number).collect::<Vec<_>>();
        assert_eq!((numbers(&page), page.continuation.as_deref()), (vec![5, 4, 3], Some("3")));
        let rest = entries(&connection, None, 3, Some(3)).expect("a page");
        assert_eq!((numbers(&rest), rest.continuation), (vec![2, 1], None));
        let of_one = entries(&connection, Some(&job_id("even")), 9, None).expect("a page");
        assert_eq!(numbers(&of_one), [4, 2]);
        let shown = of_one.items[0].to_json();
        assert_eq!((&shown["actor"], &shown["details"]), (&json!("service"), &json!({"n": 4})));
        assert_eq!(shown["previous"], json!(page.items[2].hash()));
        let check = check(&connection, &KEY).expect("a check");
        assert_eq!((check.entries, check.breaks.len(), check.head.0), (5, 0, 5));
        assert_eq!(check.head.1, page.items[0].hash());
    }

    #[test]
    fn every_way_to_edit_the_trail_shows_where() {
        for (edit, expected) in [
            ("UPDATE audit SET actor = 'nobody' WHERE number = 2", vec![(2, "changed"), (3, "not the one")]),
            ("UPDATE audit SET at = at + 1 WHERE number = 5", vec![(5, "changed"), (5, "last entry is not")]),
            ("UPDATE audit SET signature = '' WHERE number = 1", vec![(1, "changed"), (2, "not the one")]),
            (
                "UPDATE audit SET previous = '' WHERE number = 4",
                vec![(4, "not the one"), (4, "changed"), (5, "not the one")],
            ),
            ("DELETE FROM audit WHERE number IN (2, 3)", vec![(4, "entries 2 to 3 are missing")]),
            ("DELETE FROM audit WHERE number = 1", vec![(2, "entries 1 to 1 are missing")]),
            ("DELETE FROM audit WHERE number > 3", vec![(3, "entries 4 to 5 are missing at the end")]),
            ("DELETE FROM audit", vec![(0, "entries 1 to 5 are missing at the end")]),
            ("DELETE FROM audit_ends", vec![(5, "which entry is the last is missing")]),
            (
                "UPDATE audit_ends SET number = 4; DELETE FROM audit WHERE number = 5",
                vec![(4, "last has been changed")],
            ),
            (
                "UPDATE audit SET number = 9 WHERE number = 4; UPDATE audit SET number = 4 WHERE number = 5;
                 UPDATE audit SET number = 5 WHERE number = 9",
                vec![(4, "not the one"), (4, "changed"), (5, "not the one"), (5, "changed"), (5, "last entry is not")],
            ),
        ] {
            let connection = trail(5);
            connection.execute_batch(edit).expect(edit);
            let found = breaks(&connection);
            assert_eq!(found.len(), expected.len(), "{edit}: {found:?}");
            for ((number, reason), (at, text)) in found.iter().zip(expected) {
                assert!(*number == at && reason.contains(text), "{edit}: {found:?}");
            }
        }
    }

    #[test]
    fn an_entry_made_with_another_key_is_none() {
        let mut connection = trail(2);
        let tx = connection.transaction().expect("a transaction");
        append(&tx, &Note { key: Key([8; KEY_BYTES]), ..note(3, "odd") }).expect("an entry");
        tx.commit().expect("a commit");
        let found = breaks(&connection);
        assert_eq!(found.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [3, 3], "{found:?}");
    }

    #[test]
    fn old_entries_are_given_up_and_the_rest_still_holds() {
        let mut connection = trail(5);
        let tx = connection.transaction().expect("a transaction");
        assert_eq!(prune(&tx, &KEY, at(4)), Ok(true));
        assert_eq!(prune(&tx, &KEY, at(4)), Ok(false));
        append(&tx, &note(6, "even")).expect("an entry");
        tx.commit().expect("a commit");
        assert_eq!((breaks(&connection), check(&connection, &KEY).expect("a check").entries), (vec![], 3));
        connection.execute_batch("DELETE FROM audit WHERE number = 4").expect("an edit");
        assert_eq!(breaks(&connection)[0], (5, "entries 4 to 4 are missing".to_owned()));
        connection.execute_batch("UPDATE audit_ends SET number = 4 WHERE place = 'first'").expect("an edit");
        assert!(breaks(&connection)[0].1.contains("given up by age has been changed"));
        // All of it may go.
        let mut connection = trail(2);
        let tx = connection.transaction().expect("a transaction");
        assert_eq!(prune(&tx, &KEY, at(9)), Ok(true));
        append(&tx, &note(9, "odd")).expect("an entry");
        tx.commit().expect("a commit");
        assert_eq!(breaks(&connection), []);
    }

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = Key::in_folder(folder.path(), [1; KEY_BYTES]).expect("a key");
        assert_eq!(Key::in_folder(folder.path(), [2; KEY_BYTES]).expect("a key"), made);
        let path = folder.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{made:?}"), "Key(…)");
        for content in ["", "01", &"g".repeat(64), &"é".repeat(32)] {
            fs::write(&path, content).expect("a file");
            let error = Key::in_folder(folder.path(), [2; KEY_BYTES]).expect_err(content).to_string();
            assert!(error.contains("audit.key holds no key"), "{error}");
        }
    }
}
