//! Certificates that clients show: TLS passes them on unread, since a hub takes any and looks for itself.

use std::sync::{Arc, LazyLock};

use chrono::DateTime;
use embedded_hub::authorities::Authority;
use embedded_hub::certificate::ClientCertificate;
use rustls::pki_types::CertificateDer;

/// One of the seeds is an authority, and another a certificate that it has signed.
static AUTHORITY: LazyLock<Arc<Authority>> = LazyLock::new(|| {
    let certificate = CertificateDer::from(&include_bytes!("../seeds/certificate/authority")[..]);
    Arc::new(Authority::read("seed", certificate).expect("an authority"))
});

/// A certificate, DER.
pub(crate) fn certificate(data: &[u8]) {
    let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
    let chain = [CertificateDer::from(data), CertificateDer::from(data)];
    let read = ClientCertificate::read(&chain, &[AUTHORITY.clone()], now);
    if let Ok(Some(certificate)) = read {
        assert!(certificate.has_thumbprint(&certificate.sha1) && certificate.has_thumbprint(&certificate.sha256));
        // Nobody guesses a signature: only the seed that the authority has signed leads to it.
        let signed = include_bytes!("../seeds/certificate/signed");
        assert_eq!(certificate.authority.is_some(), data == signed);
    }
    drop(Authority::read("other", CertificateDer::from(data.to_vec())));
}
