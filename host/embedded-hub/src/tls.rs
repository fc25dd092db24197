//! The local certificate authority, made at first start, and the server's certificate, made at every start.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{CipherSuite, ServerConfig};

use crate::certificate::Ask;

/// The authority's certificate, for clients to trust.
pub const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
/// Followed by some digits of its key's hash: a client that trusts several authorities picks by name, and two of one
/// name would hide each other.
const CA_NAME: &str = "Latch local hub CA";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not the key of a certificate authority ({reason}); delete it and {CA_FILE} to have new ones made", path.display())]
    Key { path: PathBuf, reason: String },
    #[error("{} is not the certificate of {CA_KEY_FILE} beside it ({reason}); delete it to have a new one made", path.display())]
    Certificate { path: PathBuf, reason: String },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// A TLS server configuration for `localhost`, its addresses and this machine's name, signed by the authority in
/// `folder`, which is made if it is not there: P-256, as all SDKs accept it; the key with mode 0600. Clients are asked for
/// a certificate, and need not have one.
pub fn server_config(folder: &Path, machine_name: Option<&str>) -> Result<Arc<ServerConfig>, TlsError> {
    let (ca, ca_pem) = authority(folder)?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(machine_name.filter(|name| !names.iter().any(|known| known == name)).map(str::to_owned));
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = common_name("localhost");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serial_number = Some(SerialNumber::from(rand::random::<u64>() >> 1));
    let now = chrono::Utc::now();
    set_validity(&mut params, now - chrono::Duration::days(1), now + chrono::Duration::days(825));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &ca)?;

    let mut provider = rustls::crypto::ring::default_provider();
    // Handshakes hash much, and unlike SHA-384 processors do SHA-256 themselves.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Ask::new())
        .with_single_cert(vec![certificate.der().clone(), ca_pem], key)?;
    config.ignore_client_order = true;
    // A client takes up its session again once at a time.
    config.send_tls13_tickets = 1;
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// The authority in `folder`. Its certificate follows from its key, so the key is what counts.
fn authority(folder: &Path) -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>), TlsError> {
    let key_path = folder.join(CA_KEY_FILE);
    let certificate_path = folder.join(CA_FILE);
    let key = match fs::read_to_string(&key_path) {
        Ok(pem) => {
            KeyPair::from_pem(&pem).map_err(|e| TlsError::Key { path: key_path.clone(), reason: e.to_string() })?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            write_private(&key_path, key.serialize_pem().as_bytes()).map_err(|source| TlsError::File {
                action: "write",
                path: key_path.clone(),
                source,
            })?;
            // A certificate without its key is of no use to anybody.
            let _ = fs::remove_file(&certificate_path);
            key
        }
        Err(source) => return Err(TlsError::File { action: "read", path: key_path, source }),
    };
    let params = authority_params(&key);
    let certificate = match fs::read(&certificate_path) {
        Ok(pem) => certificate_of(&pem, &key)
            .map_err(|reason| TlsError::Certificate { path: certificate_path, reason: reason.to_owned() })?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let certificate = params.self_signed(&key)?;
            fs::write(&certificate_path, certificate.pem()).map_err(|source| TlsError::File {
                action: "write",
                path: certificate_path,
                source,
            })?;
            certificate.der().clone()
        }
        Err(source) => return Err(TlsError::File { action: "read", path: certificate_path, source }),
    };
    Ok((Issuer::new(params, key), certificate))
}

fn authority_params(key: &KeyPair) -> CertificateParams {
    let hash = ring::digest::digest(&ring::digest::SHA256, key.public_key_raw());
    let digits: String = hash.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("{CA_NAME} {digits}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from(rand::random::<u64>() >> 1));
    let now = chrono::Utc::now();
    set_validity(&mut params, now - chrono::Duration::days(1), now + chrono::Duration::days(3650));
    params
}

fn set_validity(
    params: &mut CertificateParams,
    from: chrono::DateTime<chrono::Utc>,
    to: chrono::DateTime<chrono::Utc>,
) {
    use chrono::Datelike as _;
    let day = |time: chrono::DateTime<chrono::Utc>| {
        rcgen::date_time_ymd(
            time.year(),
            u8::try_from(time.month()).unwrap_or(1),
            u8::try_from(time.day()).unwrap_or(1),
        )
    };
    params.not_before = day(from);
    params.not_after = day(to);
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The certificate in a file, if it is the one of this key: clients that trust another would refuse the hub.
fn certificate_of(pem: &[u8], key: &KeyPair) -> Result<CertificateDer<'static>, &'static str> {
    use rustls::pki_types::pem::PemObject as _;
    let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| "no certificate is inside")?;
    let public_key = key.public_key_raw();
    // A certificate holds its public key as it is, so no parser is needed to find it.
    let is_the_keys = certificate.windows(public_key.len()).any(|bytes| bytes == public_key);
    if is_the_keys { Ok(certificate) } else { Err("it belongs to another key") }
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_authority_stays_and_its_key_is_private() {
        let folder = tempfile::tempdir().expect("a folder");
        server_config(folder.path(), Some("box")).expect("a configuration");
        let first = fs::read(folder.path().join(CA_FILE)).expect("a certificate");
        server_config(folder.path(), None).expect("a second start");
        assert_eq!(fs::read(folder.path().join(CA_FILE)).expect("a certificate"), first);
        let mode = fs::metadata(folder.path().join(CA_KEY_FILE)).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_key_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(CA_KEY_FILE), "nonsense").expect("written");
        let error = server_config(folder.path(), None).expect_err("refused").to_string();
        assert!(error.contains("ca.key") && error.contains("delete it"), "{error}");
    }

    #[test]
    fn a_certificate_of_another_key_is_named() {
        let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        server_config(folder.path(), None).expect("a configuration");
        server_config(other.path(), None).expect("a configuration");
        fs::copy(other.path().join(CA_FILE), folder.path().join(CA_FILE)).expect("copied");
        let error = server_config(folder.path(), None).expect_err("refused").to_string();
        assert!(error.contains("ca.pem") && error.contains("another key"), "{error}");
    }
}
