//! The certificate authorities whose devices may connect: uploaded by the operator, kept in the store.
//!
//! Connections look them up at their handshake, so a change counts for those that come after it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use durable_store::sql::{self, params};
use durable_store::{Store, StoreError};
use iothub_protocol::time;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::certificate::{ClientCertificate, Read, unix_time};

/// As many as a hub of Azure's has.
const MAX_AUTHORITIES: usize = 25;
/// Azure's limit for a certificate's name.
const MAX_NAME: usize = 64;

/// An authority that the operator has uploaded, and so trusts: there is no proof of possession to go through.
pub struct Authority {
    pub name: String,
    common_name: Option<String>,
    not_before: DateTime<Utc>,
    not_after: DateTime<Utc>,
    certificate: CertificateDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// Why a certificate is not taken.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the file holds no certificate: give one in PEM or DER")]
    Empty,
    #[error("the file holds several certificates: give the authority's alone")]
    Several,
    #[error("the certificate cannot be read: it is not DER as X.509 has it")]
    Unreadable,
    #[error("the certificate is not one of an authority: its basic constraints say CA:FALSE, or nothing")]
    NoAuthority,
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
    #[error("the certificate has expired on {}", time::format(*.0))]
    Expired(DateTime<Utc>),
    #[error("a name has 1 to {MAX_NAME} ASCII letters, digits and - . _")]
    Name,
    #[error("there is an authority of the name {0:?}; remove it first, or choose another name")]
    NameTaken(String),
    #[error("the hub has {MAX_AUTHORITIES} authorities, which is as many as it may have; remove one")]
    TooMany,
    #[error("there is no authority of the name {0:?}")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Authority {
    /// # Errors
    /// If the certificate is not one of an authority.
    pub fn read(name: &str, certificate: CertificateDer<'static>) -> Result<Authority, AuthorityError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
            return Err(AuthorityError::Name);
        }
        let read = Read::new(&certificate).map_err(|_| AuthorityError::Unreadable)?;
        if read.is_authority != Some(true) {
            return Err(AuthorityError::NoAuthority);
        }
        let unusable = |error: &dyn fmt::Display| AuthorityError::Unusable(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).map_err(|error| unusable(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().map_err(|error| unusable(&error))?;
        let (not_before, not_after) = (read.not_before, read.not_after);
        let (name, common_name) = (name.to_owned(), read.common_name);
        Ok(Authority { name, common_name, not_before, not_after, certificate, verifier })
    }

    /// Whether this authority has signed `leaf`, by way of those `between`, for a client, and all are valid now.
    pub(crate) fn vouches_for(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: DateTime<Utc>,
    ) -> bool {
        (self.not_before..=self.not_after).contains(&now)
            && self.verifier.verify_client_cert(leaf, between, unix_time(now)).is_ok()
    }

    /// For the operator.
    pub(crate) fn to_json(&self) -> Value {
        let thumbprint = ClientCertificate::read(std::slice::from_ref(&self.certificate), &[], self.not_before);
        let thumbprint = thumbprint.ok().flatten().map(|certificate| certificate.sha1.to_string());
        json!({
            "name": self.name,
            "subject": self.common_name,
            "thumbprint": thumbprint,
            "notBefore": time::format(self.not_before),
            "expiry": time::format(self.not_after),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All authorities of a hub. Cheap to clone.
#[derive(Clone)]
pub struct Authorities {
    store: Store,
    known: Arc<RwLock<Arc<[Arc<Authority>]>>>,
    /// One change at a time, so that what is known is what is stored.
    changing: Arc<Mutex<()>>,
}

impl Authorities {
    pub(crate) async fn load(store: Store) -> Result<Authorities, StoreError> {
        let rows = store.read(read_all).await?;
        // What was taken once is taken again.
        let known = rows.into_iter().filter_map(|(name, der)| Authority::read(&name, der.into()).ok());
        let known: Arc<[_]> = known.map(Arc::new).collect();
        Ok(Authorities { store, known: Arc::new(RwLock::new(known)), changing: Arc::default() })
    }

    pub(crate) fn all(&self) -> Arc<[Arc<Authority>]> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Take a certificate in PEM or DER, if it is one of an authority that is still valid.
    pub(crate) async fn add(
        &self,
        name: &str,
        file: &[u8],
        now: DateTime<Utc>,
    ) -> Result<Arc<Authority>, AuthorityError> {
        let authority = Arc::new(Authority::read(name, certificate_in(file)?)?);
        if authority.not_after < now {
            return Err(AuthorityError::Expired(authority.not_after));
        }
        let _changing = self.changing.lock().await;
        let mut all = self.all().to_vec();
        if all.iter().any(|known| known.name == name) {
            return Err(AuthorityError::NameTaken(name.to_owned()));
        }
        if all.len() >= MAX_AUTHORITIES {
            return Err(AuthorityError::TooMany);
        }
        let row = authority.clone();
        let insert = "INSERT INTO authorities VALUES (?1, ?2)";
        self.store.write(move |tx| tx.execute(insert, params![row.name, row.certificate.as_ref()])).await?;
        all.push(authority.clone());
        self.publish(all);
        Ok(authority)
    }

    /// Devices that are connected stay so until their certificate, or the connection, ends.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), AuthorityError> {
        let _changing = self.changing.lock().await;
        let mut all = self.all().to_vec();
        let Some(position) = all.iter().position(|known| known.name == name) else {
            return Err(AuthorityError::Unknown(name.to_owned()));
        };
        let removed = all.remove(position);
        let delete = "DELETE FROM authorities WHERE name = ?1";
        self.store.write(move |tx| tx.execute(delete, [removed.name.as_str()])).await?;
        self.publish(all);
        Ok(())
    }

    fn publish(&self, mut all: Vec<Arc<Authority>>) {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = all.into();
    }
}

fn read_all(connection: &sql::Connection) -> sql::Result<Vec<(String, Vec<u8>)>> {
    let mut statement = connection.prepare("SELECT name, certificate FROM authorities ORDER BY name")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The one certificate in a file.
fn certificate_in(file: &[u8]) -> Result<CertificateDer<'static>, AuthorityError> {
    // DER begins with a SEQUENCE, which no text does.
    if file.first() == Some(&0x30) {
        return Ok(CertificateDer::from(file.to_vec()));
    }
    let mut certificates = CertificateDer::pem_slice_iter(file);
    let first = certificates.next().ok_or(AuthorityError::Empty)?.map_err(|_| AuthorityError::Empty)?;
    if certificates.next().is_some() { Err(AuthorityError::Several) } else { Ok(first) }
}

#[cfg(test)]
mod tests {
    use durable_store::Durability;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;

    /// In PEM, valid from 2020 to 2030.
    fn pem(is_ca: IsCa) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = is_ca;
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2030, 1, 1));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        params.self_signed(&key).expect("a certificate").pem()
    }

    fn at(year: i32) -> DateTime<Utc> {
        format!("{year}-06-01T00:00:00Z").parse().expect("a time")
    }

    #[tokio::test]
    async fn authorities_are_kept_and_go_when_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hub.db");
        let table = &["CREATE TABLE authorities (name TEXT PRIMARY KEY, certificate BLOB NOT NULL) WITHOUT ROWID;"];
        let store = Store::open(&path, table, Durability::Process).expect("a store");
        let authorities = Authorities::load(store.clone()).await.expect("loaded");
        let ca = pem(IsCa::Ca(BasicConstraints::Unconstrained));
        let add = |name: &'static str, file: String, year| {
            let authorities = authorities.clone();
            async move { authorities.add(name, file.as_bytes(), at(year)).await.map(|a| a.name.clone()) }
        };
        assert_eq!(add("b", ca.clone(), 2025).await.expect("taken"), "b");
        assert_eq!(add("a", ca.clone(), 2019).await.expect("not yet valid, but it will be"), "a");
        for (name, file, year, text) in [
            ("a", ca.clone(), 2025, "remove it first"),
            ("c d", ca.clone(), 2025, "a name has"),
            ("c", ca.clone(), 2031, "has expired on 2030"),
            ("c", [ca.clone(), ca].concat(), 2025, "several certificates"),
            ("c", "nonsense".to_owned(), 2025, "holds no certificate"),
            ("c", "0nonsense".to_owned(), 2025, "X.509"),
            ("c", pem(IsCa::ExplicitNoCa), 2025, "not one of an authority"),
            ("c", pem(IsCa::NoCa), 2025, "not one of an authority"),
        ] {
            let error = add(name, file, year).await.expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(matches!(authorities.remove("c").await, Err(AuthorityError::Unknown(_))));
        authorities.remove("b").await.expect("removed");
        let names = |authorities: &Authorities| authorities.all().iter().map(|a| a.name.clone()).collect::<Vec<_>>();
        let again = Authorities::load(store.clone()).await.expect("loaded");
        assert_eq!((names(&authorities), names(&again)), (vec!["a".to_owned()], vec!["a".to_owned()]));
        assert_eq!(again.all()[0].to_json()["expiry"], "2030-01-01T00:00:00.000Z");
        store.close().await;
    }
}
