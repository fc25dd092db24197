//! Certificates of devices that connect with one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use embedded_hub::certificate::ClientCertificate;
use iothub_device::tls::with_certificate;
use iothub_protocol::connection_string::{DeviceConnectionString, DeviceCredentials};
use iothub_protocol::time;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// TLS for each device.
pub(crate) struct DeviceTls {
    shared: Arc<ClientConfig>,
    /// Holds `ID.pem`, the device's certificate and those that lead to an authority, and `ID.key`.
    folder: Option<PathBuf>,
}

impl DeviceTls {
    pub(crate) fn new(shared: Arc<ClientConfig>, folder: Option<PathBuf>) -> DeviceTls {
        DeviceTls { shared, folder }
    }

    /// # Errors
    /// If the device needs a certificate and there is none, or none that can be used.
    pub(crate) fn of(&self, device: &DeviceConnectionString) -> anyhow::Result<Arc<ClientConfig>> {
        if let DeviceCredentials::Key(_) = device.credentials {
            return Ok(self.shared.clone());
        }
        let id = &device.device_id;
        let Some(folder) = &self.folder else {
            bail!(
                "{id} connects with a certificate (x509=true)\nhint: name the folder with {id}.pem and {id}.key by \
                 --certificates, or in the configuration as certificates under [host]"
            );
        };
        // Ids cannot hold a slash, so these stay inside the folder.
        let (chain, key) = (folder.join(format!("{id}.pem")), folder.join(format!("{id}.key")));
        let certificates = read(&chain)?;
        let used = with_certificate(&self.shared, &certificates, &read(&key)?);
        let used = used.with_context(|| format!("{} and {} cannot be used", chain.display(), key.display()))?;
        if let Some(ended) = end_of(&certificates).filter(|end| *end < Utc::now()) {
            let ended = time::format(ended);
            bail!("{} has expired on {ended}: every hub refuses it, put a new one in its place", chain.display());
        }
        Ok(used)
    }
}

/// Until when the first certificate of a file is valid; what cannot be read is the hub's to judge.
fn end_of(file: &[u8]) -> Option<DateTime<Utc>> {
    let first = CertificateDer::from_pem_slice(file).ok()?;
    Some(ClientCertificate::read(&[first], &[], Utc::now()).ok()??.not_after)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use iothub_device::tls::{Roots, client_config};

    use super::*;

    /// A root that is nobody's.
    const ROOT: &str = "-----BEGIN CERTIFICATE-----
MIIBdjCCARugAwIBAgIUfdj1GGgvEE8jzlQY6vI1bmKdAiQwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjQxOTAwNTNaGA8yMTI2MTAzMTE5MDA1
M1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOTB
88z1rEoWyKzKjcC0Vxh6l9FU7qvmgLFPPTifNYgpJIvrSX/L2ymUPm07dyW/iNFP
sc8BrLEQMkgV2mjaBGSjUzBRMB0GA1UdDgQWBBQBY1tWqnzo/nMuUOCmjO+WKjPa
TTAfBgNVHSMEGDAWgBQBY1tWqnzo/nMuUOCmjO+WKjPaTTAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0kAMEYCIQC2RHLmxykQmAL4ML03Y7V2OM67aS7upN24
yD01vFYCcAIhAOm8oucMzA1/VVwn61FpNG9LyT+K4KEOjVvZn3YYSYkD
-----END CERTIFICATE-----
";

    #[test]
    fn what_is_missing_is_named() {
        let shared = client_config(Roots::Pem(ROOT.as_bytes())).expect("a config");
        let device = |proof: &str| {
            DeviceConnectionString::parse(&format!("HostName=h;DeviceId=d1;{proof}")).expect("a connection string")
        };
        let key = device("SharedAccessKey=c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=");
        let folder = tempfile::tempdir().expect("a folder");
        let error = |folder: Option<&Path>| {
            let tls = DeviceTls::new(shared.clone(), folder.map(Path::to_owned));
            assert!(tls.of(&key).is_ok_and(|config| Arc::ptr_eq(&config, &shared)));
            format!("{:#}", tls.of(&device("x509=true")).map(|_| ()).expect_err("no certificate"))
        };
        assert!(error(None).contains("--certificates"));
        assert!(error(Some(folder.path())).contains("d1.pem"));
        fs::write(folder.path().join("d1.pem"), ROOT).expect("written");
        assert!(error(Some(folder.path())).contains("d1.key"));
        fs::write(folder.path().join("d1.key"), ROOT).expect("written");
        assert!(error(Some(folder.path())).contains("no private key"));
    }
}
