//! Certificates of devices, and of the authorities that sign them, made anew for each test.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

/// A certificate with its key.
pub(crate) struct Certificate {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pem: String,
    key: String,
    /// Those between it and its root, in PEM.
    between: String,
    is_root: bool,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Valid {
    Now,
    InThePast,
}

impl Certificate {
    /// A device's own, which nobody vouches for.
    pub(crate) fn self_signed(name: &str, valid: Valid) -> Certificate {
        Certificate::new(name, valid, false, None)
    }

    /// An authority that nobody vouches for.
    pub(crate) fn root(name: &str) -> Certificate {
        Certificate::new(name, Valid::Now, true, None)
    }

    /// An authority that this one vouches for.
    pub(crate) fn sign_authority(&self, name: &str) -> Certificate {
        Certificate::new(name, Valid::Now, true, Some(self))
    }

    /// A device's, which this authority vouches for.
    pub(crate) fn sign(&self, name: &str, valid: Valid) -> Certificate {
        Certificate::new(name, valid, false, Some(self))
    }

    /// Its SHA-256, as identities have it.
    pub(crate) fn thumbprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.der);
        digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
    }

    /// Write `NAME.pem`, with what lies between it and its root, and `NAME.key`.
    pub(crate) fn save(&self, folder: &Path, name: &str) {
        fs::create_dir_all(folder).expect("a folder can be made");
        let chain = format!("{}{}", self.pem, self.between);
        for (ending, text) in [("pem", &chain), ("key", &self.key)] {
            fs::write(folder.join(format!("{name}.{ending}")), text).expect("a file can be written");
        }
    }

    fn new(name: &str, valid: Valid, is_authority: bool, by: Option<&Certificate>) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        if valid == Valid::InThePast {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key can be made");
        let made = match by {
            Some(by) => params.signed_by(&key, &by.issuer),
            None => params.self_signed(&key),
        };
        let made = made.expect("a certificate can be made");
        let between = match by {
            Some(by) if !by.is_root => format!("{}{}", by.pem, by.between),
            _ => String::new(),
        };
        let (der, pem, text) = (made.der().to_vec(), made.pem(), key.serialize_pem());
        Certificate { issuer: Issuer::new(params, key), der, pem, key: text, between, is_root: by.is_none() }
    }
}
