//! Which devices are in jobs.

use durable_store::sql::{self, Connection, params};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;

use super::unreadable;
use super::write::number_of;

/// Jobs that are looked at, the newest first: each costs a look at every device.
const MOST: usize = 16;

/// Which of these devices are in a job, or have been.
pub fn members(connection: &Connection, job: &JobId, devices: &[Address]) -> sql::Result<Vec<bool>> {
    let number = number_of(connection, job)?;
    let mut look = connection.prepare_cached("SELECT 1 FROM device_jobs WHERE job = ?1 AND device = ?2")?;
    devices.iter().map(|device| look.exists(params![number, device.to_string()])).collect()
}

/// Of each job that runs, how many of these devices have no outcome in it yet.
pub fn overlaps(connection: &Connection, devices: &[Address]) -> sql::Result<Vec<(JobId, u64)>> {
    let running = "SELECT number, id FROM jobs WHERE ended IS NULL AND begun IS NOT NULL AND pending + running > 0
                   ORDER BY number DESC LIMIT ?1";
    let mut select = connection.prepare_cached(running)?;
    let jobs = select.query_map([MOST.cast_signed()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
    let jobs = jobs.collect::<sql::Result<Vec<_>>>()?;
    let mut look =
        connection.prepare_cached("SELECT 1 FROM device_jobs WHERE job = ?1 AND device = ?2 AND ended IS NULL")?;
    let keys: Vec<String> = devices.iter().map(Address::to_string).collect();
    let mut overlaps = Vec::with_capacity(jobs.len());
    for (number, id) in jobs {
        let mut count = 0;
        for key in &keys {
            count += u64::from(look.exists(params![number, key])?);
        }
        overlaps.push((JobId::parse(&id).map_err(|error| unreadable(1, error))?, count));
    }
    Ok(overlaps)
}
