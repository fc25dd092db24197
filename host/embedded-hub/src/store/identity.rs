//! Rows of the registry.

use durable_store::sql::{self, Row, Transaction, params, types::Type};
use iothub_protocol::authentication::{Authentication, Thumbprint};
use iothub_protocol::id::DeviceId;
use iothub_protocol::identity::Identity;

use super::{key, number, parsed};

/// Columns of an identity, for [`read`].
pub(super) const COLUMNS: &str = "d.id, d.generation, d.revision, d.enabled, d.status_reason, d.status_updated, \
                                  d.authentication, d.primary_key, d.secondary_key, d.primary_thumbprint, \
                                  d.secondary_thumbprint";
/// How many they are.
pub(super) const COUNT: usize = 11;

/// An identity whose columns begin at `first`.
pub(super) fn read(row: &Row<'_>, first: usize) -> sql::Result<Identity> {
    Ok(Identity {
        device_id: parsed(row, first, DeviceId::parse)?,
        generation_id: u64::try_from(row.get::<_, i64>(first + 1)?).unwrap_or_default(),
        revision: u64::try_from(row.get::<_, i64>(first + 2)?).unwrap_or_default(),
        enabled: row.get(first + 3)?,
        status_reason: row.get(first + 4)?,
        status_updated: row.get::<_, Option<String>>(first + 5)?.and_then(|text| iothub_protocol::time::parse(&text)),
        authentication: authentication(row, [6, 7, 8, 9, 10].map(|column| first + column))?,
    })
}

/// An identity as it stands in the table.
#[derive(Debug)]
pub(super) struct IdentityRow {
    id: DeviceId,
    generation: i64,
    revision: i64,
    is_enabled: bool,
    status_reason: Option<String>,
    status_updated: Option<String>,
    authentication: &'static str,
    /// Primary and secondary; empty where there are none.
    keys: [String; 2],
    thumbprints: [Option<Thumbprint>; 2],
}

/// What follows `INSERT INTO`.
const INTO_DEVICES: &str = "devices (id, generation, revision, enabled, status_reason, status_updated, primary_key, \
                            secondary_key, authentication, primary_thumbprint, secondary_thumbprint)
                            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

impl IdentityRow {
    pub(super) fn new(identity: &Identity) -> IdentityRow {
        let (mut keys, mut thumbprints) = ([const { String::new() }; 2], [None, None]);
        match &identity.authentication {
            Authentication::Sas { primary, secondary } => keys = [primary.to_base64(), secondary.to_base64()],
            Authentication::SelfSigned { primary, secondary } => thumbprints = [primary.clone(), secondary.clone()],
            Authentication::CertificateAuthority => {}
        }
        IdentityRow {
            id: identity.device_id.clone(),
            generation: number(identity.generation_id),
            revision: number(identity.revision),
            is_enabled: identity.enabled,
            status_reason: identity.status_reason.clone(),
            status_updated: identity.status_updated.map(iothub_protocol::time::format),
            authentication: identity.authentication.kind(),
            keys,
            thumbprints,
        }
    }

    pub(super) fn put(&self, tx: &Transaction<'_>) -> sql::Result<()> {
        self.execute(tx, &format!("INSERT OR REPLACE INTO {INTO_DEVICES}")).map(drop)
    }

    /// `false` if there is one of its name, which is left as it is.
    pub(super) fn insert(&self, tx: &Transaction<'_>) -> sql::Result<bool> {
        Ok(self.execute(tx, &format!("INSERT INTO {INTO_DEVICES} ON CONFLICT (id) DO NOTHING"))? == 1)
    }

    fn execute(&self, tx: &Transaction<'_>, statement: &str) -> sql::Result<usize> {
        tx.prepare_cached(statement)?.execute(params![
            self.id.as_str(),
            self.generation,
            self.revision,
            self.is_enabled,
            self.status_reason,
            self.status_updated,
            self.keys[0],
            self.keys[1],
            self.authentication,
            self.thumbprints[0].as_ref().map(Thumbprint::as_str),
            self.thumbprints[1].as_ref().map(Thumbprint::as_str),
        ])
    }
}

/// From the columns of type, both keys and both thumbprints.
fn authentication(row: &Row<'_>, columns: [usize; 5]) -> sql::Result<Authentication> {
    let [kind, primary_key, secondary_key, primary_thumbprint, secondary_thumbprint] = columns;
    match row.get_ref(kind)?.as_str()? {
        "sas" => Ok(Authentication::Sas { primary: key(row, primary_key)?, secondary: key(row, secondary_key)? }),
        "selfSigned" => Ok(Authentication::SelfSigned {
            primary: thumbprint(row, primary_thumbprint)?,
            secondary: thumbprint(row, secondary_thumbprint)?,
        }),
        "certificateAuthority" => Ok(Authentication::CertificateAuthority),
        other => {
            let text = format!("a device has the authentication {other:?}, which this version does not know");
            Err(sql::Error::FromSqlConversionFailure(kind, Type::Text, text.into()))
        }
    }
}

fn thumbprint(row: &Row<'_>, column: usize) -> sql::Result<Option<Thumbprint>> {
    match row.get_ref(column)?.as_str_or_null()? {
        None => Ok(None),
        Some(_) => parsed(row, column, Thumbprint::parse).map(Some),
    }
}
