//! The TLS settings of every connection out of this process, device and service alike: one set, shared.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, InconsistentKeys, RootCertStore};

/// Whom to trust.
#[derive(Debug, Clone, Copy)]
pub enum Roots<'a> {
    /// The certificates in this PEM text and no others.
    Pem(&'a [u8]),
    /// The operating system's.
    System,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the file is no PEM: {0}")]
    Pem(rustls::pki_types::pem::Error),
    #[error("the CA file holds no certificate")]
    Empty,
    #[error("a certificate of the CA file cannot be used: {0}")]
    Certificate(rustls::Error),
    #[error("the system's certificate store holds no usable certificate{0}; name a CA file")]
    System(String),
    #[error("there is no certificate in PEM in the device's file")]
    NoCertificate,
    #[error("there is no private key in PEM in the device's file")]
    NoKey,
    #[error("the device's private key cannot be used: {0}")]
    Key(rustls::Error),
    #[error("the device's private key is not that of its certificate, which must stand first in its file")]
    OtherKey,
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Settings for `iothub-device` and for the service client.
///
/// The cryptography is ring's, named here: an installed default would be one more thing that a program can forget, and
/// forgetting it panics at the first connection.
pub fn client_config(roots: Roots<'_>) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match roots {
        Roots::Pem(pem) => roots_from_pem(pem)?,
        Roots::System => system_roots()?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The same settings for one device that proves itself with a certificate. `chain` is PEM with the device's own
/// certificate first and then those that lead to an authority of the hub, `key` PEM with its private key.
///
/// # Errors
/// If one of them cannot be used, or they do not belong together.
pub fn with_certificate(config: &ClientConfig, chain: &[u8], key: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(TlsError::Pem)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey)?;
    let key = config.crypto_provider().key_provider.load_private_key(key).map_err(TlsError::Key)?;
    let certified = CertifiedKey::new(chain, key);
    // What else it says is that it cannot tell, as with certificates of version 1.
    if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = certified.keys_match() {
        return Err(TlsError::OtherKey);
    }
    let mut config = config.clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    // A session of another device, taken up again, would speak for that device.
    config.resumption = Resumption::in_memory_sessions(1);
    Ok(Arc::new(config))
}

/// Whether a handshake failed because the peer's certificate leads to none of the roots. Two CAs of the same name, as
/// two data folders have them, differ by key only, and that shows as a bad signature.
pub(crate) fn is_untrusted(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature))
    )
}

fn roots_from_pem(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(TlsError::Pem)?).map_err(TlsError::Certificate)?;
    }
    if roots.is_empty() { Err(TlsError::Empty) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A store usually holds a few oddities that no one needs; only an empty result matters.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reasons = found.errors.iter().map(|error| format!(": {error}")).collect();
        return Err(TlsError::System(reasons));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_its_key_belong_together() {
        let made = || rcgen::generate_simple_self_signed(vec!["d1".into()]).expect("a certificate");
        let (own, other) = (made(), made());
        let (chain, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        let config = client_config(Roots::Pem(chain.as_bytes())).expect("a config");
        let with = |chain: &str, key: &str| with_certificate(&config, chain.as_bytes(), key.as_bytes());
        let made = with(&chain, &key).expect("a config");
        assert!(made.client_auth_cert_resolver.has_certs() && !config.client_auth_cert_resolver.has_certs());
        for (chain, key, text) in [
            ("", key.as_str(), "no certificate"),
            (&chain, "", "no private key"),
            (&chain, &chain, "no private key"),
            (&chain, &other.signing_key.serialize_pem(), "not that of its certificate"),
        ] {
            let error = with(chain, key).expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_ca_file_is_used_or_refused_with_its_reason() {
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        assert!(client_config(Roots::Pem(certified.cert.pem().as_bytes())).is_ok());
        for (pem, text) in [
            ("", "holds no certificate"),
            ("hello", "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "no PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be used"),
        ] {
            let error = client_config(Roots::Pem(pem.as_bytes())).expect_err(pem);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
