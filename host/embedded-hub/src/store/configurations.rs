//! Configurations in `hub.db`.

use durable_store::sql::{self, Connection, Transaction, params};
use iothub_protocol::configuration::Configuration;
use iothub_protocol::id::ConfigurationId;

use super::parsed;

/// A row without a document is of a configuration that was deleted and that twins are still marked by.
pub(super) const TABLES: &str = "
    CREATE TABLE configurations (id TEXT PRIMARY KEY, document TEXT) WITHOUT ROWID;
";

/// All of them, and the ids of those that were deleted.
pub(crate) fn load(connection: &Connection) -> sql::Result<(Vec<Configuration>, Vec<ConfigurationId>)> {
    let (mut kept, mut deleted) = (Vec::new(), Vec::new());
    let mut statement = connection.prepare("SELECT id, document FROM configurations")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if row.get_ref(1)? == sql::types::ValueRef::Null {
            deleted.push(parsed(row, 0, ConfigurationId::parse)?);
        } else {
            kept.push(parsed(row, 1, |text| serde_json::from_str(text))?);
        }
    }
    Ok((kept, deleted))
}

pub(crate) fn put(tx: &Transaction<'_>, configuration: &Configuration) -> sql::Result<()> {
    let document =
        serde_json::to_string(configuration).map_err(|error| sql::Error::ToSqlConversionFailure(error.into()))?;
    tx.execute(
        "INSERT INTO configurations VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET document = ?2",
        params![configuration.id.as_str(), document],
    )?;
    Ok(())
}

/// Keep the id of one that is deleted.
pub(crate) fn bury(tx: &Transaction<'_>, id: &ConfigurationId) -> sql::Result<()> {
    tx.execute("UPDATE configurations SET document = NULL WHERE id = ?1", [id.as_str()])?;
    Ok(())
}

/// Forget the id of one that was deleted, unless there is one by that name again.
pub(crate) fn forget(tx: &Transaction<'_>, id: &ConfigurationId) -> sql::Result<()> {
    tx.execute("DELETE FROM configurations WHERE id = ?1 AND document IS NULL", [id.as_str()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use iothub_protocol::configuration::ConfigurationRequest;

    use super::*;

    fn configuration(id: &str) -> Configuration {
        let id = ConfigurationId::parse(id).expect("an id");
        let request = ConfigurationRequest::from_json(&id, b"{}").expect("a request");
        Configuration::new(id, request, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn what_is_deleted_is_known_until_it_is_forgotten_or_made_anew() {
        let mut connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch(TABLES).expect("tables");
        let tx = connection.transaction().expect("a transaction");
        let (a, b) = (configuration("a"), configuration("b"));
        for each in [&a, &b] {
            put(&tx, each).expect("written");
        }
        assert_eq!(load(&tx).expect("read"), (vec![a.clone(), b.clone()], vec![]));
        bury(&tx, &a.id).expect("written");
        bury(&tx, &b.id).expect("written");
        put(&tx, &b).expect("written");
        assert_eq!(load(&tx).expect("read"), (vec![b.clone()], vec![a.id.clone()]));
        for each in [&a, &b] {
            forget(&tx, &each.id).expect("written");
        }
        assert_eq!(load(&tx).expect("read"), (vec![b], vec![]), "one that is there again stays");
    }
}
