//! Rows of the registry.

use durable_store::sql::{self, Row, Transaction, params, types::Type};
use iothub_protocol::address::Address;
use iothub_protocol::authentication::{Authentication, Thumbprint};
use iothub_protocol::identity::Identity;

use super::{Kind, key, number, parsed};

/// Columns of an identity, for [`read`].
pub(super) fn columns(kind: Kind) -> String {
    let own = match kind {
        Kind::Devices => "d.enabled, d.status_reason, d.status_updated, NULL",
        // A module has no status, so that it is not disabled.
        Kind::Modules => "1, NULL, NULL, d.managed_by",
    };
    format!(
        "d.id, d.generation, d.revision, {own}, d.authentication, d.primary_key, d.secondary_key, \
         d.primary_thumbprint, d.secondary_thumbprint"
    )
}

/// How many they are.
pub(super) const COUNT: usize = 12;

/// An identity whose columns begin at `first`.
pub(super) fn read(row: &Row<'_>, first: usize) -> sql::Result<Identity> {
    Ok(Identity {
        address: parsed(row, first, Address::parse)?,
        generation_id: u64::try_from(row.get::<_, i64>(first + 1)?).unwrap_or_default(),
        revision: u64::try_from(row.get::<_, i64>(first + 2)?).unwrap_or_default(),
        enabled: row.get(first + 3)?,
        status_reason: row.get(first + 4)?,
        status_updated: row.get::<_, Option<String>>(first + 5)?.and_then(|text| iothub_protocol::time::parse(&text)),
        managed_by: row.get(first + 6)?,
        authentication: authentication(row, [7, 8, 9, 10, 11].map(|column| first + column))?,
    })
}

pub(super) fn put(tx: &Transaction<'_>, identity: &Identity) -> sql::Result<()> {
    let (mut keys, mut thumbprints) = ([const { String::new() }; 2], [None, None]);
    match &identity.authentication {
        Authentication::Sas { primary, secondary } => keys = [primary.to_base64(), secondary.to_base64()],
        Authentication::SelfSigned { primary, secondary } => thumbprints = [primary.as_ref(), secondary.as_ref()],
        Authentication::CertificateAuthority => {}
    }
    let (id, kind) = (identity.address.to_string(), identity.authentication.kind());
    let (generation, revision) = (number(identity.generation_id), number(identity.revision));
    let [primary_key, secondary_key] = keys;
    let [primary_thumbprint, secondary_thumbprint] = thumbprints.map(|known| known.map(Thumbprint::as_str));
    match Kind::of(&identity.address) {
        Kind::Devices => tx
            .prepare_cached(
                "INSERT OR REPLACE INTO devices (id, generation, revision, authentication, primary_key, secondary_key,
                     primary_thumbprint, secondary_thumbprint, enabled, status_reason, status_updated)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                id,
                generation,
                revision,
                kind,
                primary_key,
                secondary_key,
                primary_thumbprint,
                secondary_thumbprint,
                identity.enabled,
                identity.status_reason,
                identity.status_updated.map(iothub_protocol::time::format),
            ])?,
        Kind::Modules => tx
            .prepare_cached(
                "INSERT OR REPLACE INTO modules (id, generation, revision, authentication, primary_key, secondary_key,
                     primary_thumbprint, secondary_thumbprint, managed_by)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                id,
                generation,
                revision,
                kind,
                primary_key,
                secondary_key,
                primary_thumbprint,
                secondary_thumbprint,
                identity.managed_by,
            ])?,
    };
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
