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

pub(super) fn put(tx: &Transaction<'_>, identity: &Identity) -> sql::Result<()> {
    let (mut keys, mut thumbprints) = ([const { String::new() }; 2], [None, None]);
    match &identity.authentication {
        Authentication::Sas { primary, secondary } => keys = [primary.to_base64(), secondary.to_base64()],
        Authentication::SelfSigned { primary, secondary } => thumbprints = [primary.as_ref(), secondary.as_ref()],
        Authentication::CertificateAuthority => {}
    }
    tx.prepare_cached(
        "INSERT OR REPLACE INTO devices (id, generation, revision, enabled, status_reason, status_updated, primary_key,
             secondary_key, authentication, primary_thumbprint, secondary_thumbprint)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        identity.device_id.as_str(),
        number(identity.generation_id),
        number(identity.revision),
        identity.enabled,
        identity.status_reason,
        identity.status_updated.map(iothub_protocol::time::format),
        keys[0],
        keys[1],
        identity.authentication.kind(),
        thumbprints[0].map(Thumbprint::as_str),
        thumbprints[1].map(Thumbprint::as_str),
    ])?;
    Ok(())
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
