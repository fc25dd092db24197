//! Rows of the registry.

use durable_store::sql::{self, Row, ToSql, Transaction, types::Type};
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

/// An identity as it stands in the table.
#[derive(Debug)]
pub(super) struct IdentityRow {
    kind: Kind,
    id: String,
    generation: i64,
    revision: i64,
    is_enabled: bool,
    status_reason: Option<String>,
    status_updated: Option<String>,
    managed_by: Option<String>,
    authentication: &'static str,
    /// Primary and secondary; empty where there are none.
    keys: [String; 2],
    thumbprints: [Option<Thumbprint>; 2],
}

/// What follows `INSERT INTO`.
const INTO_DEVICES: &str = "devices (id, generation, revision, primary_key, secondary_key, authentication, \
                             primary_thumbprint, secondary_thumbprint, enabled, status_reason, status_updated)
                             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
const INTO_MODULES: &str = "modules (id, generation, revision, primary_key, secondary_key, authentication, \
                             primary_thumbprint, secondary_thumbprint, managed_by)
                             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

impl IdentityRow {
    pub(super) fn new(identity: &Identity) -> IdentityRow {
        let (mut keys, mut thumbprints) = ([const { String::new() }; 2], [None, None]);
        match &identity.authentication {
            Authentication::Sas { primary, secondary } => keys = [primary.to_base64(), secondary.to_base64()],
            Authentication::SelfSigned { primary, secondary } => thumbprints = [primary.clone(), secondary.clone()],
            Authentication::CertificateAuthority => {}
        }
        IdentityRow {
            kind: Kind::of(&identity.address),
            id: identity.address.to_string(),
            generation: number(identity.generation_id),
            revision: number(identity.revision),
            is_enabled: identity.enabled,
            status_reason: identity.status_reason.clone(),
            status_updated: identity.status_updated.map(iothub_protocol::time::format),
            managed_by: identity.managed_by.clone(),
            authentication: identity.authentication.kind(),
            keys,
            thumbprints,
        }
    }

    pub(super) fn put(&self, tx: &Transaction<'_>) -> sql::Result<()> {
        self.execute(tx, &format!("INSERT OR REPLACE INTO {}", self.target())).map(drop)
    }

    /// `false` if there is one of its name, which is left as it is.
    pub(super) fn insert(&self, tx: &Transaction<'_>) -> sql::Result<bool> {
        Ok(self.execute(tx, &format!("INSERT INTO {} ON CONFLICT (id) DO NOTHING", self.target()))? == 1)
    }

    fn target(&self) -> &'static str {
        match self.kind {
            Kind::Devices => INTO_DEVICES,
            Kind::Modules => INTO_MODULES,
        }
    }

    fn execute(&self, tx: &Transaction<'_>, statement: &str) -> sql::Result<usize> {
        let thumbprints = self.thumbprints.each_ref().map(|thumbprint| thumbprint.as_ref().map(Thumbprint::as_str));
        let shared: [&dyn ToSql; 8] = [
            &self.id,
            &self.generation,
            &self.revision,
            &self.keys[0],
            &self.keys[1],
            &self.authentication,
            &thumbprints[0],
            &thumbprints[1],
        ];
        let own: &[&dyn ToSql] = match self.kind {
            Kind::Devices => &[&self.is_enabled, &self.status_reason, &self.status_updated],
            Kind::Modules => &[&self.managed_by],
        };
        tx.prepare_cached(statement)?.execute([&shared[..], own].concat().as_slice())
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
