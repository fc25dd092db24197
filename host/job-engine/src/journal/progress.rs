//! What has changed of jobs, for those who follow them.
//!
//! Changes of all jobs are counted together, and a job has the number of its last one: whoever knows up to which number
//! it has seen misses nothing, and sees a job that has changed a hundred times meanwhile once, as it is now.

use durable_store::sql::{self, Connection, OptionalExtension, params};
use iothub_protocol::id::JobId;
use iothub_protocol::job::JobResponse;

use super::read::{SELECT_JOB, read_job};

/// A job as it is, and the number of the change that has made it so.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub change: u64,
    pub job: JobResponse,
}

/// The number of the last change of any job; 0 if there was none.
pub fn last_change(connection: &Connection) -> sql::Result<u64> {
    connection.query_row("SELECT changes FROM clock", [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

pub fn progress(connection: &Connection, id: &JobId) -> sql::Result<Option<Progress>> {
    let query = format!("{SELECT_JOB} WHERE id = ?1");
    let found = connection.prepare_cached(&query)?.query_row([id.as_str()], read_job).optional()?;
    Ok(found.map(|job| Progress { change: job.change, job: job.response }))
}

/// Jobs that have changed after that change, in the order of their last; with `unfinished`, only those that have not
/// ended.
pub fn changed(connection: &Connection, after: u64, unfinished: bool, limit: usize) -> sql::Result<Vec<Progress>> {
    let query = format!("{SELECT_JOB} WHERE changed > ?1 AND (?2 = 0 OR ended IS NULL) ORDER BY changed LIMIT ?3");
    let values = params![after.cast_signed(), unfinished, i64::try_from(limit).unwrap_or(i64::MAX)];
    let mut statement = connection.prepare_cached(&query)?;
    let found = statement.query_map(values, read_job)?;
    found.map(|job| job.map(|job| Progress { change: job.change, job: job.response })).collect()
}
