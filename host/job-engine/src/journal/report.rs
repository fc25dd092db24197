//! How a job's groups of devices stand.

use std::collections::BTreeMap;

use durable_store::sql::{self, Connection, params};
use iothub_protocol::id::JobId;
use iothub_protocol::job::DeviceJobStatus;
use iothub_protocol::time;
use serde_json::{Map, Value, json};

use super::again::failure_class;
use super::read;

#[derive(Default)]
struct Group {
    by_status: BTreeMap<&'static str, u64>,
    failures: BTreeMap<&'static str, u64>,
}

/// Counted from the rows, so it takes some tenths of a second for a million devices. `None` if there is no such job.
pub fn report(connection: &Connection, id: &JobId) -> sql::Result<Option<Value>> {
    let Some(job) = read::job(connection, id)? else { return Ok(None) };
    let query = "SELECT grp, status, error, answer, count(*) FROM device_jobs
                 WHERE job = (SELECT number FROM jobs WHERE id = ?1) GROUP BY grp, status, error, answer";
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query(params![id.as_str()])?;
    let mut groups: BTreeMap<Option<String>, Group> = BTreeMap::new();
    let mut all = Group::default();
    while let Some(row) = rows.next()? {
        let status: String = row.get(1)?;
        let Some(status) = DeviceJobStatus::by_name(&status) else { continue };
        let devices = row.get::<_, i64>(4)?.unsigned_abs();
        let is_failure = status == DeviceJobStatus::Failed;
        let failure =
            is_failure.then_some((row.get(2)?, row.get(3)?)).map(|(code, answer)| failure_class(code, answer));
        for group in [groups.entry(row.get(0)?).or_default(), &mut all] {
            *group.by_status.entry(status.name()).or_default() += devices;
            if let Some(class) = failure {
                *group.failures.entry(class.name()).or_default() += devices;
            }
        }
    }
    let mut report = all.to_json();
    report.insert("jobId".into(), json!(id));
    report.insert("status".into(), json!(job.status.name()));
    if let Some(until) = job.continuous_until {
        report.insert("continuousUntil".into(), json!(time::format(until)));
    }
    if let Some(tag) = job.request.policy.as_ref().and_then(|policy| policy.group_by.as_ref()) {
        report.insert("groupBy".into(), json!(tag));
        let mut groups: Vec<_> = groups.iter().collect();
        // Where most failed comes first.
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.failed()));
        let with_name = |(name, group): (&Option<String>, &Group)| {
            let mut group = group.to_json();
            group.insert("group".into(), json!(name));
            Value::Object(group)
        };
        report.insert("groups".into(), groups.into_iter().map(with_name).collect());
    }
    Ok(Some(Value::Object(report)))
}

impl Group {
    fn failed(&self) -> u64 {
        self.by_status.get(DeviceJobStatus::Failed.name()).copied().unwrap_or_default()
    }

    fn to_json(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("devices".into(), json!(self.by_status.values().sum::<u64>()));
        fields.insert("byStatus".into(), json!(self.by_status));
        fields.insert("failures".into(), json!(self.failures));
        fields
    }
}
