//! The TLS settings of every connection out of this process, device and service alike: one set, shared.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{CertificateError, ClientConfig, RootCertStore};

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
    #[error("the CA file is no PEM: {0}")]
    Pem(rustls::pki_types::pem::Error),
    #[error("the CA file holds no certificate")]
    Empty,
    #[error("a certificate of the CA file cannot be used: {0}")]
    Certificate(rustls::Error),
    #[error("the system's certificate store holds no usable certificate{0}; name a CA file")]
    System(String),
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
