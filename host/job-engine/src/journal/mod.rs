//! Jobs and their device rows in SQLite.
//!
//! The functions are plain and synchronous, for the closures of a [`durable_store::Store`]. Times are milliseconds
//! since 1970. A job's number grows with each job created, so that it orders them and serves as a continuation.

mod again;
mod attempts;
mod events;
mod list;
mod overlap;
mod progress;
mod read;
mod report;
mod templates;
#[cfg(test)]
mod tests;
mod write;

use chrono::{DateTime, Utc};
use durable_store::sql;
use iothub_protocol::job::JobStatus;

pub use again::{Again, Copied, insert_copy, is_same};
pub use attempts::{attempts, device_attempts};
pub use events::{JobEvent, listener, next_event, told};
pub use list::{ListState, cancel_list, expire_lists, extend_list, listed, listed_among, seal_list, sealed};
pub use overlap::{members, overlaps};
pub use progress::{Progress, changed, last_change, progress};
pub use read::{Position, device_rows, job, jobs, unfinished};
pub use report::report;
pub use templates::{delete_template, put_template, template, templates};
pub use write::{insert, insert_series, prune, record};

/// For [`durable_store::Store::open`].
pub const MIGRATIONS: &[&str] = &[
    r"
    CREATE TABLE jobs (
        number     INTEGER PRIMARY KEY AUTOINCREMENT,
        id         TEXT NOT NULL UNIQUE,
        type       TEXT NOT NULL,
        request    TEXT NOT NULL,
        status     TEXT NOT NULL,
        created    INTEGER NOT NULL,
        start      INTEGER NOT NULL,
        begun      INTEGER,
        ended      INTEGER,
        cancelling INTEGER NOT NULL DEFAULT 0,
        reason     TEXT,
        devices    INTEGER NOT NULL DEFAULT 0,
        pending    INTEGER NOT NULL DEFAULT 0,
        running    INTEGER NOT NULL DEFAULT 0,
        succeeded  INTEGER NOT NULL DEFAULT 0,
        failed     INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX unfinished_jobs ON jobs (number) WHERE ended IS NULL;
    CREATE INDEX ended_jobs ON jobs (ended) WHERE ended IS NOT NULL;

    CREATE TABLE device_jobs (
        job         INTEGER NOT NULL REFERENCES jobs (number),
        device      TEXT NOT NULL,
        status      TEXT NOT NULL,
        attempt     INTEGER NOT NULL DEFAULT 0,
        created     INTEGER NOT NULL,
        updated     INTEGER NOT NULL,
        started     INTEGER,
        ended       INTEGER,
        answer      INTEGER,
        payload     TEXT,
        error       TEXT,
        description TEXT,
        PRIMARY KEY (job, device)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX device_jobs_by_device ON device_jobs (device);
",
    r"
    -- Of jobs with a policy: the stage under way, each device's stage, and since when its report is waited for.
    ALTER TABLE jobs ADD COLUMN stage INTEGER;
    ALTER TABLE device_jobs ADD COLUMN stage INTEGER;
    ALTER TABLE device_jobs ADD COLUMN awaited INTEGER;
",
    r"
    -- Of a device that is tried again: how often it has failed, and when its turn comes. Its last failure is in the
    -- columns of the outcome.
    ALTER TABLE device_jobs ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE device_jobs ADD COLUMN until INTEGER;
",
    r"
    -- Rows of a module stand under device/module, and are found by their device, too.
    DROP INDEX device_jobs_by_device;
    CREATE INDEX device_jobs_of_device ON device_jobs (substr(device, 1, instr(device || '/', '/') - 1));
",
    r"
    -- Why a job is paused and since when, how long it was before, and until when its outcomes break no rule any more.
    ALTER TABLE jobs ADD COLUMN hold TEXT;
    ALTER TABLE jobs ADD COLUMN hold_reason TEXT;
    ALTER TABLE jobs ADD COLUMN held_since INTEGER;
    ALTER TABLE jobs ADD COLUMN held_for INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN forgiven INTEGER;
    -- The value of the tag by which the job's policy tells devices apart.
    ALTER TABLE device_jobs ADD COLUMN grp TEXT;
",
    r"
    -- The step of a job with several that a device does or did last, counted from 0.
    ALTER TABLE device_jobs ADD COLUMN step INTEGER NOT NULL DEFAULT 0;
",
    r"
    CREATE TABLE job_templates (
        name    TEXT PRIMARY KEY,
        body    TEXT NOT NULL,
        updated INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    r"
    -- How many devices are excluded from a job. Of one whose list is uploaded: how many are listed so far, those to
    -- leave out included, and when the last came, as long as the list is not whole.
    ALTER TABLE jobs ADD COLUMN excluded INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN listed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN listing INTEGER;
    CREATE INDEX listing_jobs ON jobs (listing) WHERE listing IS NOT NULL;
    -- Uploaded lists, until their jobs begin.
    CREATE TABLE job_lists (
        job      INTEGER NOT NULL REFERENCES jobs (number),
        excluded INTEGER NOT NULL,
        device   TEXT NOT NULL,
        PRIMARY KEY (job, excluded, device)
    ) STRICT, WITHOUT ROWID;
    -- Jobs that come again: the number of the series that a job is of; and of a series when its next job is due, how many
    -- it has begun, and the last occurrence that got none.
    ALTER TABLE jobs ADD COLUMN parent INTEGER;
    CREATE INDEX jobs_of_series ON jobs (parent, number) WHERE parent IS NOT NULL;
    CREATE TABLE series (
        job    INTEGER PRIMARY KEY REFERENCES jobs (number) ON DELETE CASCADE,
        next   INTEGER,
        jobs   INTEGER NOT NULL DEFAULT 0,
        passed INTEGER,
        why    TEXT
    ) STRICT;
",
    r"
    -- Attempts that did not end their device, and (late = 1) answers that came when the attempt was over. The attempt
    -- that ended it stands in the device's own row, which has when it began if it was not the first.
    CREATE TABLE attempts (
        job         INTEGER NOT NULL REFERENCES jobs (number),
        device      TEXT NOT NULL,
        attempt     INTEGER NOT NULL,
        late        INTEGER NOT NULL,
        -- Of a job with several steps, the one that it was for, counted from 0.
        step        INTEGER NOT NULL DEFAULT 0,
        succeeded   INTEGER NOT NULL DEFAULT 0,
        started     INTEGER,
        ended       INTEGER NOT NULL,
        answer      INTEGER,
        payload     TEXT,
        error       TEXT,
        description TEXT,
        PRIMARY KEY (job, device, attempt, late)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE device_jobs ADD COLUMN attempted INTEGER;

    -- Failed devices by class, as JSON.
    ALTER TABLE jobs ADD COLUMN failures TEXT;

    -- Counts changes of all jobs; a job has the number of its last one.
    CREATE TABLE clock (changes INTEGER NOT NULL) STRICT;
    INSERT INTO clock VALUES (0);
    ALTER TABLE jobs ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX changed_jobs ON jobs (changed);

    -- Who did what, each entry with the hash of the one before, and the ends of the trail.
    CREATE TABLE audit (
        number    INTEGER PRIMARY KEY,
        at        INTEGER NOT NULL,
        actor     TEXT NOT NULL,
        action    TEXT NOT NULL,
        job       TEXT,
        details   TEXT NOT NULL,
        previous  TEXT NOT NULL,
        signature TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_of_job ON audit (job, number) WHERE job IS NOT NULL;
    CREATE TABLE audit_ends (
        place     TEXT PRIMARY KEY,
        number    INTEGER NOT NULL,
        hash      TEXT NOT NULL,
        signature TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    r"
    -- What has happened to jobs, and up to where those who are told of it have been.
    CREATE TABLE job_events (
        number  INTEGER PRIMARY KEY AUTOINCREMENT,
        job     INTEGER NOT NULL REFERENCES jobs (number),
        at      INTEGER NOT NULL,
        kind    TEXT NOT NULL,
        details TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_job ON job_events (job);
    CREATE TABLE listeners (
        name TEXT PRIMARY KEY,
        told INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    r"
    -- What is being done since the end has come that a job's policy gives it; and what its devices name as their time
    -- zones, each of those once for the job, as JSON.
    ALTER TABLE jobs ADD COLUMN ending TEXT;
    ALTER TABLE jobs ADD COLUMN zones TEXT;
    ALTER TABLE device_jobs ADD COLUMN zone TEXT;
",
    r"
    -- How often a row has been written. A row of before has counted none.
    ALTER TABLE device_jobs ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
",
];

/// Some of a list, and where the next page begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// `None` on the last page. It names a position, so it stays good over restarts.
    pub continuation: Option<String>,
}

/// Which jobs to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobFilter {
    /// `type` on the wire.
    pub job_type: Option<String>,
    pub status: Option<JobStatus>,
}

fn millis(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

/// A column that holds what this program never writes.
fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> sql::Error {
    sql::Error::FromSqlConversionFailure(column, sql::types::Type::Text, Box::new(error))
}
