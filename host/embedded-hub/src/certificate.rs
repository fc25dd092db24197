//! What a client's certificate says, and how TLS asks for one.
//!
//! TLS only proves that the client has the certificate's key. Whether the certificate is any device's is the hub's to
//! decide, for which it gets a [`ClientCertificate`]: facts, without any DER.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use iothub_protocol::authentication::Thumbprint;
use ring::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::verify_tls13_signature_with_raw_key;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, PeerIncompatible, SignatureScheme,
};
use x509_cert::certificate::Version;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::{Decode as _, Encode as _, Tag, Tagged as _};
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::time::Time;

use crate::authorities::Authority;

/// A certificate that a client has proven to be its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub sha1: Thumbprint,
    pub sha256: Thumbprint,
    /// The last one of the subject, as the most specific one stands there.
    pub common_name: Option<String>,
    pub not_before: DateTime<Utc>,
    pub not_after: DateTime<Utc>,
    /// The name of the hub's authority that it leads to, where all between are valid at the time of the handshake.
    pub authority: Option<String>,
}

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is not DER as X.509 has it")]
pub struct Unreadable;

impl ClientCertificate {
    /// What the first of `chain` says, and which of `authorities` the rest leads it to. `None` for an empty chain.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(
        chain: &[CertificateDer<'_>],
        authorities: &[Arc<Authority>],
        now: DateTime<Utc>,
    ) -> Result<Option<ClientCertificate>, Unreadable> {
        let Some((leaf, between)) = chain.split_first() else { return Ok(None) };
        let read = Read::new(leaf)?;
        let authority = authorities.iter().find(|authority| authority.vouches_for(leaf, between, now));
        Ok(Some(ClientCertificate {
            sha1: thumbprint(&digest::SHA1_FOR_LEGACY_USE_ONLY, leaf),
            sha256: thumbprint(&digest::SHA256, leaf),
            common_name: read.common_name,
            not_before: read.not_before,
            not_after: read.not_after,
            authority: authority.map(|authority| authority.name.clone()),
        }))
    }

    pub fn has_thumbprint(&self, thumbprint: &Thumbprint) -> bool {
        self.sha1 == *thumbprint || self.sha256 == *thumbprint
    }

    pub fn is_valid_at(&self, now: DateTime<Utc>) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

fn thumbprint(algorithm: &'static digest::Algorithm, certificate: &[u8]) -> Thumbprint {
    let digest = digest::digest(algorithm, certificate);
    Thumbprint::of_digest(digest.as_ref()).expect("SHA-1 and SHA-256 have the lengths of thumbprints")
}

/// A certificate, as far as anybody here looks at it.
pub(crate) struct Read {
    pub(crate) common_name: Option<String>,
    pub(crate) not_before: DateTime<Utc>,
    pub(crate) not_after: DateTime<Utc>,
    /// `None` where it does not say, as in version 1.
    pub(crate) is_authority: Option<bool>,
}

impl Read {
    pub(crate) fn new(der: &[u8]) -> Result<Read, Unreadable> {
        let certificate = x509_cert::Certificate::from_der(der).map_err(|_| Unreadable)?.tbs_certificate;
        let names = certificate.subject.0.iter().flat_map(|part| part.0.iter());
        let common_name = names.rev().find(|name| name.oid == CN).and_then(|name| {
            let is_text = matches!(name.value.tag(), Tag::Utf8String | Tag::PrintableString | Tag::Ia5String);
            String::from_utf8(name.value.value().to_vec()).ok().filter(|_| is_text)
        });
        let constraints = certificate.get::<BasicConstraints>().map_err(|_| Unreadable)?;
        Ok(Read {
            common_name,
            not_before: moment(certificate.validity.not_before)?,
            not_after: moment(certificate.validity.not_after)?,
            is_authority: constraints.map(|(_, constraints)| constraints.ca),
        })
    }
}

fn moment(time: Time) -> Result<DateTime<Utc>, Unreadable> {
    let seconds = i64::try_from(time.to_unix_duration().as_secs()).map_err(|_| Unreadable)?;
    DateTime::from_timestamp(seconds, 0).ok_or(Unreadable)
}

pub(crate) fn unix_time(now: DateTime<Utc>) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.timestamp()).unwrap_or_default()))
}

/// Asks each client for a certificate, is content without one, and takes any that the client has the key of.
pub(crate) struct Ask {
    algorithms: WebPkiSupportedAlgorithms,
}

impl Ask {
    pub(crate) fn new() -> Arc<Ask> {
        Arc::new(Ask { algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms })
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask")
    }
}

impl ClientCertVerifier for Ask {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None, so that a client sends what it has: the authority of a self-signed certificate is nobody's.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        Read::new(end_entity).map_err(|Unreadable| CertificateError::BadEncoding)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        match key_of_version_1(certificate)? {
            None => verify_tls12_signature(message, certificate, signed, &self.algorithms),
            Some(key) => self.verify_with_key(message, &key, signed),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        match key_of_version_1(certificate)? {
            None => verify_tls13_signature(message, certificate, signed, &self.algorithms),
            Some(key) => verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Ask {
    /// As rustls does it for a certificate of version 3.
    fn verify_with_key(
        &self,
        message: &[u8],
        key: &SubjectPublicKeyInfoDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let refused = TlsError::from(CertificateError::BadSignature);
        let key = webpki::RawPublicKeyEntity::try_from(key).map_err(|_| CertificateError::BadEncoding)?;
        let known = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let (_, algorithms) = known.ok_or(PeerIncompatible::NoSignatureSchemesInCommon)?;
        let is_signed =
            algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok());
        if is_signed { Ok(HandshakeSignatureValid::assertion()) } else { Err(refused) }
    }
}

/// What OpenSSL's `x509 -req -signkey` makes, which Azure's tutorial for self-signed certificates uses, is of version 1,
/// and rustls reads version 3 only.
fn key_of_version_1(certificate: &[u8]) -> Result<Option<SubjectPublicKeyInfoDer<'static>>, TlsError> {
    let unreadable = |_| TlsError::from(CertificateError::BadEncoding);
    let certificate = x509_cert::Certificate::from_der(certificate).map_err(unreadable)?.tbs_certificate;
    if certificate.version != Version::V1 {
        return Ok(None);
    }
    let key = certificate.subject_public_key_info.to_der().map_err(unreadable)?;
    Ok(Some(SubjectPublicKeyInfoDer::from(key)))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
    };

    use super::*;

    fn at(year: i32) -> DateTime<Utc> {
        format!("{year}-06-01T00:00:00Z").parse().expect("a time")
    }

    /// Of the years from 2020 to 2030.
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2030, 1, 1));
        params
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key")
    }

    struct Made {
        der: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority(name: &str, by: Option<&Made>) -> Made {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        made(params, by)
    }

    fn made(params: CertificateParams, by: Option<&Made>) -> Made {
        let key = key();
        let certificate = match by {
            Some(by) => params.signed_by(&key, &by.issuer),
            None => params.self_signed(&key),
        };
        let der = certificate.expect("a certificate").der().clone();
        Made { der, issuer: Issuer::new(params, key) }
    }

    fn known(name: &str, made: &Made) -> Arc<Authority> {
        Arc::new(Authority::read(name, made.der.clone()).expect("an authority"))
    }

    fn read(chain: &[&Made], authorities: &[Arc<Authority>], now: DateTime<Utc>) -> ClientCertificate {
        let chain: Vec<_> = chain.iter().map(|made| made.der.clone()).collect();
        ClientCertificate::read(&chain, authorities, now).expect("readable").expect("a certificate")
    }

    #[test]
    fn a_certificate_says_who_it_is_for_and_when() {
        let made = made(params("door-0001"), None);
        let certificate = read(&[&made], &[], at(2025));
        assert_eq!(certificate.common_name.as_deref(), Some("door-0001"));
        assert_eq!((certificate.sha1.as_str().len(), certificate.sha256.as_str().len()), (40, 64));
        assert!(certificate.has_thumbprint(
            &Thumbprint::of_digest(digest::digest(&digest::SHA256, &made.der).as_ref()).expect("a thumbprint")
        ));
        assert!(!certificate.has_thumbprint(&Thumbprint::parse(&"0".repeat(40)).expect("a thumbprint")));
        let valid = [2019, 2021, 2029, 2031].map(|year| certificate.is_valid_at(at(year)));
        assert_eq!(valid, [false, true, true, false]);
        assert_eq!(ClientCertificate::read(&[], &[], at(2025)), Ok(None));
        let nonsense = CertificateDer::from(vec![0x30, 3, 1, 2, 3]);
        assert_eq!(ClientCertificate::read(&[nonsense], &[], at(2025)), Err(Unreadable));
    }

    #[test]
    fn a_chain_leads_to_the_authority_that_signed_it() {
        let (root, other) = (authority("root", None), authority("root", None));
        let middle = authority("middle", Some(&root));
        let leaf = made(params("d1"), Some(&middle));
        let direct = made(params("d1"), Some(&root));
        let mut server = params("d1");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server = made(server, Some(&root));
        let self_signed = made(params("d1"), None);
        let both = [known("other", &other), known("factory", &root)];
        for (name, chain, authorities, year, expected) in [
            ("by the root", vec![&direct], &both[..], 2025, Some("factory")),
            ("through another", vec![&leaf, &middle], &both, 2025, Some("factory")),
            ("without what is between", vec![&leaf], &both, 2025, None),
            ("the one between is known", vec![&leaf], &[known("line-1", &middle)], 2025, Some("line-1")),
            ("of another root", vec![&direct], &both[..1], 2025, None),
            ("too late", vec![&direct], &both, 2031, None),
            ("too early", vec![&direct], &both, 2019, None),
            ("for servers", vec![&server], &both, 2025, None),
            ("by itself", vec![&self_signed], &both, 2025, None),
            ("no authority is known", vec![&direct], &[], 2025, None),
        ] {
            assert_eq!(read(&chain, authorities, at(year)).authority.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn an_authority_must_be_one() {
        let error = |der: CertificateDer<'static>| Authority::read("a", der).expect_err("refused").to_string();
        assert!(error(made(params("d1"), None).der).contains("is not one"));
        assert!(error(CertificateDer::from(vec![1, 2, 3])).contains("X.509"));
    }
}
